"""Weights by the trace of the neural tangent kernel, estimated from random signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinnlib.weighting.ratio import Reference, check_reference, mean_of_terms, ratio, reference_size
from pinnlib.weighting.rule import Rule, Seen, State, check_number


@dataclass(frozen=True)
class KernelTrace(Rule):
    r"""Target weights from the traces of the terms' kernels, for :class:`pinnlib.weighting.Follow`.

    .. math:: \hat\lambda_k &= \Big(\frac{R}{T_k}\Big)^\gamma, \\
       T_k &= \Big\lVert \sum_r \tfrac1{\sqrt N} \sum_i z_i \nabla_\theta r_i \Big\rVert_2^2,

    with signs :math:`z_i = \pm 1` drawn anew at every update. The mean of :math:`T_k` over the
    signs is :math:`\sum_r \frac1N \sum_i \lVert\nabla_\theta r_i\rVert_2^2`, the mean diagonal of
    the kernel (:cite:t:`wang2022`), so one backward pass a term estimates it. It does not vanish
    with the residuals.

    Args:
        reference: as for :class:`pinnlib.weighting.Ratio`; jaxpi takes the mean of all terms.
        exponent: γ, 1 for the published rule; ½ for ratios of sizes in place of their squares.
        seed: of the signs. Their generator is a counter, part of the state.

    Raises:
        TypeError: if the exponent is no number, or the seed no whole number.
        ValueError: if one is out of range; later, where losses are given instead of residuals.

    >>> from pinnlib.weighting.follow import Follow
    >>> Follow(KernelTrace(seed=1), alpha=0.1).rule.seed
    1
    """

    reference: Reference = mean_of_terms
    exponent: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("exponent", self.exponent, lambda x: 0 < x <= 1, "a number in (0, 1]")
        check_seed(self.seed)

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        check_reference(self.reference, terms)
        return {"key": torch.full((), self.seed, device=weights.device)}

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        rows = seen.probe(state["key"])
        traces = rows.to(seen.weights.dtype).square().sum(dim=-1)
        R = reference_size(self.reference, seen.terms, traces)
        weights = ratio(traces, R, torch.finfo(rows.dtype).max) ** self.exponent
        return weights, state | {"key": state["key"] + 1}


def check_seed(seed: int) -> None:
    """Raise an error if a seed is no whole number in its range."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed is {seed!r}: pass a whole number")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed}: pass a number from 0 to 2**31 - 1")


def factors(key: Tensor, k: int, j: int, n: int) -> Tensor:
    r"""What the rows of residual j of term k are multiplied with, :math:`z_i / \sqrt N`, ``(n,)``.

    >>> factors(torch.tensor(0), 1, 0, 4).abs().tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    z: Tensor = signs(key * 1009 + 31 * k + j, n) / n**0.5
    return z


def signs(key: Tensor, n: int) -> Tensor:
    """n random signs, ``(n,)``: the highest of the :func:`bits`.

    >>> signs(torch.tensor(0), 1000).abs().unique().tolist()
    [1]
    """
    return torch.where(bits(key, n) < 0, -1, 1)


def bits(key: Tensor, n: int) -> Tensor:
    """n times 64 random bits, ``(n,)``: a pure function of a key, on each device and compiled.

    Integers are mixed as in the generator SplitMix64.

    Args:
        key: an integer tensor without dimensions.
        n: how many.

    >>> bits(torch.tensor(0), 2)
    tensor([                   0, -2152535657050944081])
    """

    def fold(z: Tensor, shift: int) -> Tensor:
        # The shift of a signed integer repeats its sign: only the bits that moved are kept.
        return z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))

    z = torch.arange(n, device=key.device) + (key << 32)
    z = z * -0x61C8864680B583EB
    z = fold(z, 30) * -0x40A7B892E31B1A47
    z = fold(z, 27) * -0x6B2FB644ECCEEE15
    return fold(z, 31)
