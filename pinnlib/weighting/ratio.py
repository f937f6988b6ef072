"""What to aim at: weights that make gradients equally large, by ratios of their sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinnlib.gradients import max_abs, mean_abs
from pinnlib.parameters import check_width, layers
from pinnlib.weighting.rule import Rule, Seen, State

Statistic = Callable[[Tensor, Tensor | None], Tensor]
"""Maps rows ``(…, K, P)``, and the entries used or ``None`` for all, to sizes ``(…, K)``."""
Reference = str | Callable[[Tensor], Tensor]
"""The term that sets the size, or a function of all sizes, ``(…, K)`` to ``(…)``."""


def mean_of_terms(sizes: Tensor) -> Tensor:
    r"""Reference :math:`R = \frac1K \sum_k S(G_k)`, the mean of all sizes; ``(…, K)`` to ``(…)``.

    >>> mean_of_terms(torch.tensor([1.0, 3.0]))
    tensor(2.)
    """
    return sizes.mean(dim=-1)


def geometric_mean_of_terms(sizes: Tensor) -> Tensor:
    r"""Reference :math:`R = \big(\prod_k S(G_k)\big)^{1/K}`; ``(…, K)`` to ``(…)``, 0 if one is 0.

    >>> geometric_mean_of_terms(torch.tensor([1.0, 4.0]))
    tensor(2.)
    """
    return sizes.log().mean(dim=-1).exp()


def check_reference(reference: Reference, terms: Sequence[str]) -> None:
    """Raise an error if a reference is neither one of the terms nor a function."""
    if isinstance(reference, str):
        if reference not in terms:
            raise ValueError(
                f"reference {reference!r} is not a term: choose one of {list(terms)} (reference=…)"
            )
    elif not callable(reference):
        raise TypeError(f"reference is {reference!r}: pass a term's name or a function of sizes")


def reference_size(reference: Reference, terms: Sequence[str], sizes: Tensor) -> Tensor:
    """R, ``(…)``, of sizes ``(…, K)``: that of the reference term, or what a function makes."""
    if isinstance(reference, str):
        return sizes[..., list(terms).index(reference)]
    R = reference(sizes)
    if not isinstance(R, Tensor) or R.shape != sizes.shape[:-1]:
        found = tuple(R.shape) if isinstance(R, Tensor) else type(R).__name__
        raise ValueError(
            f"the reference maps {tuple(sizes.shape)} to {found}: let it return a size for all "
            f"terms together, {tuple(sizes.shape[:-1])}"
        )
    return R


def ratio(sizes: Tensor, R: Tensor, largest: float) -> Tensor:
    r"""Targets :math:`\hat\lambda_k = R / S_k`, ``(…, K)``, for sizes ``(…, K)`` and R ``(…)``.

    Undefined (NaN) where the size is zero or the ratio beyond ``largest``: nothing to balance.
    Infinite where a size or R is negative, infinite or undefined: an error of the statistic.
    """
    R = R[..., None]
    targets = R / sizes
    targets = torch.where(targets <= largest, targets, torch.nan)
    # Minimum and maximum hand on what is undefined, and a comparison with that is false.
    valid = (torch.minimum(sizes, R) >= 0) & (torch.maximum(sizes, R) < torch.inf)
    return torch.where(valid, targets, torch.inf)


@dataclass(frozen=True)
class Ratio(Rule):
    r"""Target weights from ratios of gradient sizes, for :class:`pinnlib.weighting.Follow`.

    .. math:: \hat\lambda_k = \frac{R}{S(G_k)}

    Where :math:`S(G_k)` is zero, or so small that the ratio would overflow the precision of G,
    there is nothing to balance: :math:`\hat\lambda_k` is undefined (NaN), which Follow takes for 1.

    Args:
        statistic: S, the size of a row.
        reference: the term whose weight stays 1 and whose gradient sets R; or a function that
            turns the K statistics ``(…, K)`` into R ``(…)``, such as :func:`mean_of_terms`.
        reference_statistic: the size of the reference term's row, where it differs from S.
        weighted: divide by the size of the gradient of the weighted loss,
            :math:`\lambda_k S(G_k)`, which makes :math:`\sqrt{R/S(G_k)}` the fixed point.

    >>> G = torch.tensor([[1.0, 1.0], [4.0, 4.0]])
    >>> Ratio()(Seen(["data", "pde"], torch.ones(2), rows=lambda: (G, None)), {})[0]
    tensor([1.0000, 0.2500])
    """

    statistic: Statistic = mean_abs
    reference: Reference = "data"
    reference_statistic: Statistic | None = None
    weighted: bool = False

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        check_reference(self.reference, terms)
        for statistic in (self.statistic, self.reference_statistic or self.statistic):
            if not callable(statistic):
                raise TypeError(f"statistic is {statistic!r}: pass a function such as mean_abs")
        return {}

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        sizes = self._sizes(self.statistic, seen, slice(None))
        largest = torch.finfo(seen.G.dtype).max
        weighted = seen.weights * sizes if self.weighted else sizes
        k = seen.terms.index(self.reference) if isinstance(self.reference, str) else None
        if k is None or self.reference_statistic is None:
            R = reference_size(self.reference, seen.terms, sizes)
        else:
            R = self._sizes(self.reference_statistic, seen, slice(k, k + 1))[..., 0]
        targets = ratio(weighted, R, largest)
        if k is not None and (self.weighted or self.reference_statistic is not None):
            targets[..., k] = 1.0  # elsewhere it is 1 as it stands
        return targets, state

    @staticmethod
    def _sizes(statistic: Statistic, seen: Seen, rows: slice) -> Tensor:
        G = seen.G[..., rows, :]
        sizes = statistic(G, None if seen.used is None else seen.used[rows])
        if not isinstance(sizes, Tensor) or sizes.shape != G.shape[:-1]:
            found = tuple(sizes.shape) if isinstance(sizes, Tensor) else type(sizes).__name__
            raise ValueError(
                f"the statistic maps {tuple(G.shape)} to {found}: let it return a size for each "
                f"row, {tuple(G.shape[:-1])}"
            )
        # In double precision where there is one, for a ratio may exceed float32.
        return sizes.detach().to(seen.weights)


class LayerMeans:
    r"""Statistic: mean over weight matrices of each one's mean absolute value, without biases.

    .. math:: \frac1{|\text{layers}|} \sum_l \overline{|\partial\mathcal L_k / \partial W_l|}

    What the published code of :cite:t:`wang2021` calls the mean of a gradient.

    Args:
        named_params: ``model.named_parameters()``, those that G will be computed for; those of one
            network, also where a stack of networks is trained.

    Raises:
        ValueError: if there is no weight matrix; later, if G is of another width.

    >>> layer = torch.nn.Linear(2, 1)  # the bias, the last column, does not count
    >>> LayerMeans(layer.named_parameters())(torch.tensor([[3.0, 5.0, 9.0]]))
    tensor([4.])
    """

    def __init__(self, named_params: Iterable[tuple[str, Tensor]]) -> None:
        parts = [part for layer in layers(named_params).values() for part in layer]
        self.width = max((stop for _, stop, _ in parts), default=0)
        self.columns = [slice(start, stop) for start, stop, p in parts if p.ndim > 1]
        if not self.columns:
            raise ValueError("named_params has no weight matrix: pass model.named_parameters()")

    def __call__(self, G: Tensor, used: Tensor | None = None) -> Tensor:
        check_width(G, self.width)
        means = torch.stack([mean_abs(G[..., columns]) for columns in self.columns], dim=-1)
        if used is None:
            return means.mean(dim=-1)
        count = torch.stack([used[..., columns].any(dim=-1) for columns in self.columns], dim=-1)
        return means.sum(dim=-1) / count.sum(dim=-1).clamp(min=1).to(means)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.columns)} weight matrices)"


class LayerMax(LayerMeans):
    r"""Statistic: largest absolute value over all weight matrices, without biases.

    Arguments and errors are those of :class:`LayerMeans`.

    >>> LayerMax(torch.nn.Linear(2, 1).named_parameters())(torch.tensor([[3.0, 5.0, 9.0]]))
    tensor([5.])
    """

    def __call__(self, G: Tensor, used: Tensor | None = None) -> Tensor:
        check_width(G, self.width)
        return torch.stack([max_abs(G[..., columns]) for columns in self.columns]).amax(dim=0)
