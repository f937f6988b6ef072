"""Weights by the losses alone: no gradient is measured for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from pinnlib.weighting.kernel import bits, check_seed
from pinnlib.weighting.rule import Rule, Seen, State, check_number


@dataclass(frozen=True)
class SoftAdapt(Rule):
    r"""Larger weights for losses that fall slowly or grow; the weights add up to 1.

    .. math:: \lambda_k &= \frac{e^{\beta s_k}}{\sum_j e^{\beta s_j}}, \\
       s_k &= \mathcal L_k - \mathcal L_k^\text{before},

    by :cite:t:`heydari2019`, where *before* is the update before; at the first, all :math:`s_k` are
    0. The difference has the unit of the losses. So large losses give one term all the weight, and
    small ones, or normalized ones with the published :math:`\beta`, give equal weights: choose β
    with care.

    Args:
        beta: β; negative for larger weights where losses fall fast.
        normalized: divide each :math:`s_k` by :math:`\sum_j |s_j|`.
        loss_weighted: multiply each exponential by its loss :math:`\mathcal L_k`.

    Raises:
        TypeError: if β is no number.
        ValueError: if it is not finite.

    >>> rule, weights = SoftAdapt(beta=1.0), torch.ones(2)
    >>> state = rule.start(["data", "pde"], weights)
    >>> for losses in [torch.tensor([1.0, 5.0]), torch.tensor([1.0, 4.0])]:
    ...     weights, state = rule(Seen(["data", "pde"], weights, losses=losses), state)
    >>> weights
    tensor([0.7311, 0.2689])
    """

    beta: float = 0.1
    normalized: bool = False
    loss_weighted: bool = False

    def __post_init__(self) -> None:
        check_number("beta", self.beta, lambda x: abs(x) < inf, "a finite number")

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        return {"last": torch.full_like(weights, torch.nan)}

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        losses, valid = _losses(seen)
        s = (losses - state["last"]).nan_to_num(nan=0.0)
        if self.normalized:
            s = (s / s.abs().sum(dim=-1, keepdim=True)).nan_to_num(nan=0.0)
        logits = self.beta * s
        if self.loss_weighted:
            logits = logits + losses.log()
        # Undefined where all losses are zero.
        weights = torch.softmax(logits, dim=-1).nan_to_num(nan=1 / losses.shape[-1])
        return weights.where(valid, torch.nan), {"last": losses}


@dataclass(frozen=True)
class ReLoBRaLo(Rule):
    r"""Relative loss balancing with random lookback: weights by how much each loss has fallen.

    .. math:: \lambda_k &\leftarrow (1-\alpha)\, h_k + \alpha\, \hat\lambda_k^\text{last}, \\
       h_k &= \lambda_k \text{ with probability } \rho, \\
       h_k &= \hat\lambda_k^\text{first} \text{ otherwise}, \\
       \hat\lambda_k^t &= K \, \frac{\exp(\mathcal L_k / (T \mathcal L_k^t))}
       {\sum_j \exp(\mathcal L_j / (T \mathcal L_j^t))},

    by :cite:t:`bischof2021`, whose α is 1 − α here. *Last* is the update before, and *first* is the
    first loss that was not zero. Where a loss was zero, its ratio counts as 1. The ratio has no
    unit, so the sizes of the losses make no difference: what is out of balance at the start, stays.

    Args:
        alpha: α, the weight of the *new* value, in (0, 1].
        temperature: T, above 0; the smaller, the sharper.
        rho: ρ, the probability of no lookback, from 0 to 1.
        seed: of the lookbacks. Their generator is a counter, part of the state; all networks of a
            stack look back at once.

    Raises:
        TypeError: if a number is of another kind.
        ValueError: if it is out of its range.

    >>> rule, weights = ReLoBRaLo(alpha=1.0, temperature=1.0), torch.ones(2)
    >>> state = rule.start(["data", "pde"], weights)
    >>> for losses in [torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])]:
    ...     weights, state = rule(Seen(["data", "pde"], weights, losses=losses), state)
    >>> weights
    tensor([1.2449, 0.7551])
    """

    alpha: float = 0.001
    temperature: float = 0.1
    rho: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, lambda x: 0 < x <= 1, "a weight in (0, 1]")
        check_number("temperature", self.temperature, lambda x: 0 < x < inf, "one above 0")
        check_number("rho", self.rho, lambda x: 0 <= x <= 1, "a probability, from 0 to 1")
        check_seed(self.seed)

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        before = {name: torch.full_like(weights, torch.nan) for name in ("first", "last")}
        return before | {"key": torch.full((), self.seed, device=weights.device)}

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        losses, valid = _losses(seen)
        first, last = (state[t].where(state[t] > 0, losses) for t in ("first", "last"))
        # In whole numbers, which are the same on each device: the highest 53 of the random bits.
        stays = bits(state["key"], 1) >> 11 < int(self.rho * 2**53) - 2**52
        old = torch.where(stays, seen.weights, self._relative(losses, first))
        weights = self.alpha * self._relative(losses, last) + (1 - self.alpha) * old
        state = {"first": first, "last": losses, "key": state["key"] + 1}
        return weights.where(valid, torch.nan), state

    def _relative(self, losses: Tensor, before: Tensor) -> Tensor:
        ratios = (losses / before).nan_to_num(nan=1.0)
        largest = ratios.amax(dim=-1, keepdim=True)  # subtracted first, as the ratio may be huge
        return losses.shape[-1] * torch.softmax((ratios - largest) / self.temperature, dim=-1)


@dataclass(frozen=True)
class Uncertainty(Rule):
    r"""Weights that are trained by the weighted loss itself, kept positive by a penalty.

    .. math:: \lambda_k = e^{-s_k}, \\
       \min_{\theta,\, s} \sum_k e^{-s_k} \mathcal L_k + s_k,

    the homoscedastic uncertainty of :cite:t:`kendall2018`, with :math:`s_k` the logarithm of a
    variance. Each update is one step of Adam on :math:`s`, so the weights are those of a network
    and :math:`s` trained together. They move towards :math:`1/\mathcal L_k`.

    As a loss goes to zero, its weight grows without bound and the minimized sum falls below zero
    and on, however wrong the network is: look at the unweighted losses, and bound the weights by
    ``Follow(Uncertainty(), alpha=1.0, bounds=(0.01, 100.0))``.

    Args:
        rate: the learning rate of :math:`s`, above 0; often that of the network.

    Raises:
        TypeError: if the rate is no number.
        ValueError: if it is out of its range.

    >>> rule, weights = Uncertainty(rate=0.1), torch.ones(2)
    >>> state = rule.start(["data", "pde"], weights)
    >>> for _ in range(2):
    ...     seen = Seen(["data", "pde"], weights, losses=torch.tensor([0.1, 9.0]))
    ...     weights, state = rule(seen, state)
    >>> weights
    tensor([1.1052, 0.9048])
    """

    rate: float = 1e-3

    def __post_init__(self) -> None:
        check_number("rate", self.rate, lambda x: 0 < x < inf, "a finite number above 0")

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        zeros = {name: torch.zeros_like(weights) for name in ("s", "mean", "square")}
        return zeros | {"count": torch.zeros((), dtype=torch.int64, device=weights.device)}

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        losses, valid = _losses(seen)
        weights, count = torch.exp(-state["s"]), state["count"] + 1
        gradient = 1 - weights * losses
        mean = 0.9 * state["mean"] + 0.1 * gradient
        square = 0.999 * state["square"] + 0.001 * gradient**2
        t = count.to(weights)
        step = mean / (1 - 0.9**t) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
        s = state["s"] - self.rate * step
        state = {"s": s, "mean": mean, "square": square, "count": count}
        return weights.where(valid, torch.nan), state


def _losses(seen: Seen) -> tuple[Tensor, Tensor]:
    """The losses, ``(…, K)``, zero where they are no size, and where they are one."""
    losses = seen.losses.to(seen.weights)
    valid = (losses >= 0) & (losses < inf)
    return losses.where(valid, 0), valid
