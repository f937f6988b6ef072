"""How to get there: weights that follow a target by a moving average, from a start, in bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from pinnlib.weighting.rule import Rule, Seen, State

Average = Callable[[Tensor, Tensor, float | Tensor], Tensor]
"""Mixes an old and a new weight, given the weight α of the new one."""


def arithmetic_average(old: Tensor, new: Tensor, alpha: float | Tensor) -> Tensor:
    r"""Exponential moving average, :math:`(1-\alpha)\,\lambda + \alpha\,\hat\lambda`.

    Args:
        old: the weights λ so far, ``(…, K)``.
        new: the target weights, ``(…, K)``.
        alpha: α, a number, or ``(M, 1)`` for M rows of weights.

    >>> arithmetic_average(torch.tensor(1.0), torch.tensor(100.0), 0.5)
    tensor(50.5000)
    """
    return (1 - alpha) * old + alpha * new


def logarithmic_average(old: Tensor, new: Tensor, alpha: float | Tensor) -> Tensor:
    r"""The same average of logarithms, :math:`\lambda^{1-\alpha}\,\hat\lambda^{\alpha}`.

    A new value of zero has no logarithm; the old value is then kept. Arguments are those of
    :func:`arithmetic_average`.

    >>> logarithmic_average(torch.tensor(1.0), torch.tensor(100.0), 0.5)
    tensor(10.)
    """
    return torch.where(new > 0, old ** (1 - alpha) * new**alpha, old)


@dataclass(frozen=True)
class Follow(Rule):
    r"""Move towards the target of another rule.

    .. math:: \lambda_k \leftarrow (1-\alpha)\,\lambda_k + \alpha\,\hat\lambda_k

    An undefined target (NaN), where there is nothing to balance, counts as 1.

    Args:
        rule: gives the targets :math:`\hat\lambda`, such as :class:`pinnlib.weighting.Ratio`.
        alpha: α, the weight of the *new* value, in (0, 1]; ``(M, 1)`` for a stack of M networks.
        average: how old and new value are mixed.
        warm_start: let each weight start at the first target measured for it instead of 1.
        bounds: factors with 0 ≤ low ≤ 1 ≤ high: each weight stays between low and high times the
            first target measured for it. A target of zero, or an undefined one, is not a first one.

    Raises:
        TypeError: if the rule or the average is of another kind.
        ValueError: if a number is out of its range.

    >>> from pinnlib.weighting.ratio import Ratio
    >>> Follow(Ratio(), alpha=0.5, bounds=(0.1, 10)).alpha
    0.5
    """

    rule: Rule
    alpha: float | Tensor = 0.9
    average: Average = arithmetic_average
    warm_start: bool = False
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule is {self.rule!r}: pass a rule, such as Ratio()")
        if not callable(self.average):
            raise TypeError(
                f"average is {self.average!r}: pass a function such as arithmetic_average"
            )
        if isinstance(self.alpha, Tensor):
            # A copy: what happens to the caller's tensor later is not seen here.
            object.__setattr__(self, "alpha", self.alpha.detach().clone())
            alphas = self.alpha.flatten().tolist()
            if not alphas or (self.alpha.ndim and self.alpha.shape[-1] != 1):
                raise ValueError(
                    f"alpha has shape {tuple(self.alpha.shape)}: one α a network is (M, 1)"
                )
        else:
            alphas = [self.alpha]
        if not all(isinstance(a, int | float) and 0 < a <= 1 for a in alphas):
            raise ValueError(
                f"alpha is {self.alpha!r}: the weight of the new value must lie in (0, 1]; "
                "a momentum β elsewhere is 1 - alpha here"
            )
        if self.bounds is not None:
            try:
                low, high = self.bounds
                valid = 0 <= low <= 1 <= high
                object.__setattr__(self, "bounds", (low, high))  # a list could be changed
            except (TypeError, ValueError):
                valid = False
            if not valid:
                raise ValueError(
                    f"bounds is {self.bounds!r}: pass two factors with 0 <= low <= 1 <= high"
                )

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        state = self.rule.start(terms, weights)
        if self.warm_start or self.bounds is not None:
            state = state | {"first": torch.full_like(weights, torch.nan)}
        return state

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        old = seen.weights
        target, inner = self.rule(seen, state)
        state = state | inner
        if "first" in state:
            is_first = state["first"].isnan() & (target > 0) & (target < inf)
            first = torch.where(is_first, target, state["first"])
            state = state | {"first": first}
            if self.warm_start:
                old = torch.where(is_first, target, old)
        alpha = self.alpha
        if isinstance(alpha, Tensor):
            if alpha.ndim and alpha.shape[:-1] != old.shape[:-1]:
                raise ValueError(
                    f"alpha has shape {tuple(alpha.shape)}, for weights {tuple(old.shape)}: pass a "
                    "number, or one α for each network of a stack, (M, 1)"
                )
            alpha = alpha.to(old.device)
        weights = self.average(old, target.nan_to_num(nan=1.0), alpha)
        weights = torch.where((weights >= 0) & (target != inf), weights, torch.nan)
        if self.bounds is not None:
            low, high = self.bounds
            bounded = weights.clamp(low * first, high * first)
            # What is not finite is an error, which bounds must not hide.
            weights = torch.where(first.isnan() | (weights == inf), weights, bounded)
        return weights, state

    def target(self, seen: Seen, state: State) -> Tensor:
        return self.rule(seen, state)[0].nan_to_num(nan=1.0, posinf=inf)
