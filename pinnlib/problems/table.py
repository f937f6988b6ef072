"""A function known by its values on a regular grid, such as a solver's result."""

from __future__ import annotations

import math
from itertools import product

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pinnlib.problems.sampling import Domain

ROUNDING = 1e-3
"""How far outside, in cells, a point still counts as one of the edge."""


class Table:
    r"""Values on a regular grid, interpolated linearly in each input in between.

    At the place :math:`s \in [0, 1]^d` within a cell, with corners :math:`c \in \{0, 1\}^d`,

    .. math:: u = \sum_c u_c \prod_j \left(c_j s_j + (1 - c_j)(1 - s_j)\right).

    Outside the domain it is nan, since nothing is known there.

    Args:
        domain: one ``(low, high)`` pair for each input: where the first and the last values lie.
        values: ``(n_1, …, n_d)``, or ``(n_1, …, n_d, m)`` for m outputs; values of a tensor stay
            on its device.

    Raises:
        ValueError: if an interval is empty, an input has fewer than 2 values, or a value is not
            finite.

    >>> table = Table([(0, 1), (0, 10)], [[0.0, 1.0], [2.0, 3.0]])
    >>> table(torch.tensor([[0.5, 5.0], [1.0, 0.0], [0.0, 11.0]]))
    tensor([[1.5000],
            [2.0000],
            [   nan]])
    """

    def __init__(self, domain: Domain, values: ArrayLike | Tensor) -> None:
        self.domain = tuple(domain)
        self.values = torch.as_tensor(values).detach().clone()
        d = len(self.domain)
        if self.values.ndim == d:
            self.values = self.values[..., None]
        shape = self.values.shape
        if not d or len(shape) != d + 1 or min(shape[:-1]) < 2 or not shape[-1]:
            raise ValueError(
                f"values has shape {tuple(torch.as_tensor(values).shape)} for {d} inputs: pass "
                "(n_1, …, n_d) or (n_1, …, n_d, m), with 2 values or more along each input"
            )
        for low, high in self.domain:
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"domain has the interval ({low}, {high}): low < high is needed")
        if not self.values.isfinite().all():
            bad = self.values[~self.values.isfinite()]
            raise ValueError(
                f"values has {len(bad)} entries that are not finite, such as {bad[0].item()}: "
                "fill the gaps first"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Values at points ``(…, d)``, as ``(…, m)`` of their dtype and on their device."""
        d = len(self.domain)
        if x.shape[-1:] != (d,) or not x.is_floating_point():
            raise ValueError(f"x is {tuple(x.shape)}, {x.dtype}: pass floats (…, {d})")
        values = self.values.to(x)
        outside = torch.zeros_like(x[..., 0], dtype=torch.bool)
        cells, places = [], []
        for (low, high), size, column in zip(
            self.domain, values.shape[:-1], x.unbind(-1), strict=True
        ):
            position = (column - low) / (high - low) * (size - 1)
            outside |= (position < -ROUNDING) | (position > size - 1 + ROUNDING)
            cell = position.nan_to_num().floor().clamp(0, size - 2)
            cells.append(cell.long())
            places.append(position - cell)
        u = torch.zeros_like(x[..., :1])
        for corner in product((0, 1), repeat=len(cells)):
            at = [cell + c for cell, c in zip(cells, corner, strict=True)]
            shares = [s if c else 1 - s for s, c in zip(places, corner, strict=True)]
            u = u + math.prod(shares[1:], start=shares[0])[..., None] * values[tuple(at)]
        return u.masked_fill(outside[..., None], math.nan)
