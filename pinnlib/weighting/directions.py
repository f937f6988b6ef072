"""Directions of descent without conflict, as weights: what lies in the row space of G is λ @ G."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from pinnlib.gradients import cosine, l2_norm
from pinnlib.weighting.ratio import check_reference, ratio
from pinnlib.weighting.rule import Rule, Seen, State, is_recording


@dataclass(frozen=True)
class ConFIG(Rule):
    r"""The direction that has the same angle, at most 90°, with the gradient of every term.

    .. math:: \lambda G &= \Big(\sum_k G_k \cdot u\Big)\, u, \\
       u &= \frac{U^+ \mathbf 1}{\lVert U^+ \mathbf 1\rVert_2}, \\
       U_k &= \frac{G_k}{\lVert G_k\rVert_2},

    by :cite:t:`liu2025`. As :math:`U^+ = U^\top (U U^\top)^{-1}`, the cosines
    :math:`C = U U^\top` of :func:`pinnlib.gradients.cosine` are enough:

    .. math:: \lambda_k &= \frac{\sum_j \lVert G_j\rVert_2}{\sum_j w_j} \,
       \frac{w_k}{\lVert G_k\rVert_2}, \\ w &= C^{-1} \mathbf 1 .

    Where no such direction is left, :math:`\lambda G` goes to zero. A term without a gradient has
    no say. For more than two terms, single weights may be negative: update them at every step.

    >>> G = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> ConFIG()(Seen(["data", "pde"], torch.ones(2), rows=lambda: (G, None)), {})[0]
    tensor([2.0000, 0.6667])
    """

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        G = seen.G.to(seen.weights.dtype)
        sizes, C = l2_norm(G), cosine(G)
        # With a ridge, for rows that depend on one another, and once more for what it takes away.
        eye = torch.eye(C.shape[-1], device=C.device)
        A, ones = C + torch.finfo(C.dtype).eps ** 0.5 * eye, torch.ones_like(sizes)[..., None]
        w = torch.linalg.solve_ex(A, ones)[0]  # which does not wait for the device
        w = w + torch.linalg.solve_ex(A, ones - C @ w)[0]
        w = w.squeeze(-1).where(sizes != 0, 0)
        R = sizes.sum(dim=-1) / w.sum(dim=-1).clamp(min=0.5)  # 1 or more where there is a gradient
        targets = ratio(sizes, R, torch.finfo(seen.G.dtype).max)
        return torch.where(targets.isnan(), 1.0, w * targets), state


@dataclass(frozen=True)
class DCGD(Rule):
    r"""The centre of the dual cone of two gradients: that of the equation, and of all other terms.

    .. math:: \lambda G &= \frac{u \cdot (g_1 + g_2)}{\lVert u\rVert_2^2}\, u, \\
       u &= \frac{g_1}{\lVert g_1\rVert_2} + \frac{g_2}{\lVert g_2\rVert_2}, \\
       g_1 &= G_\text{pde}, \\ g_2 &= \sum_{k \neq \text{pde}} G_k,

    by :cite:t:`hwang2024`, the variant *center*. That is the mean of both norms over each norm:

    .. math:: \lambda_k = \frac{\lVert g_1\rVert_2 + \lVert g_2\rVert_2}
       {2\, \lVert g_{i(k)}\rVert_2} .

    Args:
        equation: the term of the equation. Of two terms, each gives the same.

    Raises:
        TypeError: if it is no name, by the balancer.
        ValueError: if there is no such term, by the balancer.

    >>> G = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> DCGD()(Seen(["data", "pde"], torch.ones(2), rows=lambda: (G, None)), {})[0]
    tensor([2.0000, 0.6667])
    """

    equation: str = "pde"

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        if not isinstance(self.equation, str):
            raise TypeError(f"equation is {self.equation!r}: pass the name of a term")
        check_reference(self.equation, terms)
        return {}

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        G = seen.G.to(seen.weights.dtype)
        k = seen.terms.index(self.equation)
        others = torch.cat([G[..., :k, :], G[..., k + 1 :, :]], dim=-2).sum(dim=-2)
        sizes = l2_norm(torch.stack([G[..., k, :], others], dim=-2))
        R = sizes.sum(dim=-1) / (sizes != 0).sum(dim=-1).clamp(min=1)
        targets = ratio(sizes, R, torch.finfo(seen.G.dtype).max)
        equation, rest = targets.nan_to_num(nan=1.0, posinf=inf).unbind(-1)
        columns = [equation if term == self.equation else rest for term in seen.terms]
        return torch.stack(columns, dim=-1), state


@dataclass(frozen=True)
class Gramian(Rule):
    r"""Weights from :math:`G G^\top` by any function, such as the weightings of TorchJD.

    .. math:: \lambda = f\Big(\frac{G G^\top}{\max_k \lVert G_k\rVert_2^2}\Big)

    TorchJD :cite:p:`quinton2024` has UPGrad, MGDA, CAGrad and a dozen more: its classes whose name
    ends in *Weighting*. They solve on the host, so a step waits for the device there, and stacks
    and ``Recorded`` are refused. The division makes the unit of the losses irrelevant; a tolerance
    of the solver would take small gradients for zero otherwise. What a weighting remembers is in no
    checkpoint.

    Args:
        weighting: maps a matrix ``(K, K)`` to weights ``(K,)``, such as ``UPGradWeighting()``.

    Raises:
        TypeError: if it is no function.
        ValueError: by a step: for a stack, while recording, or if it gives other shapes.

    >>> G = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> rule = Gramian(lambda A: A.diagonal())
    >>> rule(Seen(["data", "pde"], torch.ones(2), rows=lambda: (G, None)), {})[0]
    tensor([0.2500, 1.0000])
    """

    weighting: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.weighting):
            raise TypeError(
                f"weighting is {self.weighting!r}: pass a function of G Gᵀ, such as "
                "torchjd.aggregation.UPGradWeighting()"
            )

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        if seen.weights.ndim > 1 or is_recording():
            raise ValueError(
                f"{type(self.weighting).__name__} solves on the host, for one network at a time: "
                "train each network of a stack alone, and leave run=Recorded out"
            )
        G = seen.G.to(seen.weights.dtype)
        G = G / l2_norm(G).amax().clamp(min=torch.finfo(G.dtype).tiny)
        if not G.isfinite().all():  # which the step explains; a solver would not
            return torch.full_like(seen.weights, torch.nan), state
        return self.weighting(G @ G.mT), state
