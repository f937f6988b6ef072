"""A Poisson equation whose solution has a large and a small scale."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from pinnlib.derivatives import Derivatives, Model, nested
from pinnlib.problems.base import Problem
from pinnlib.problems.sampling import faces, sizes, uniform


class Poisson(Problem):
    r"""Poisson equation on the unit interval, square or cube with u = 0 on the boundary.

    .. math:: -\Delta u = f

    with the source f chosen so that the solution has two scales,

    .. math:: u = \sum_{j=1}^2 a_j \prod_{i=1}^d \sin(k_j \pi x_i), \\
        (a_j, k_j) = (1, 1),\ (0.1, 10).

    The part of u with the small amplitude is the larger one of f, by a factor of 10. Residuals:
    ``boundary`` and ``pde``. In one dimension, the points of ``boundary`` are the two ends, over
    and over.

    Args:
        terms: as for :class:`~pinnlib.problems.Problem`.
        derivatives: likewise.
        reference: likewise.
        dimension: the number d of inputs, 1, 2 or 3.

    Raises:
        ValueError: if ``dimension`` is another, or as :class:`~pinnlib.problems.Problem`.

    >>> problem = Poisson(dimension=1)
    >>> problem.variables, problem.domain
    (('x',), ((0.0, 1.0),))
    >>> batch = problem.sample(128, torch.Generator().manual_seed(0))
    >>> losses = problem.losses(problem.exact, batch)
    >>> {name: round(loss.item(), 4) for name, loss in losses.items()}
    {'data': 0.0, 'pde': 0.0}
    """

    terms = {"data": ("boundary",), "pde": ("pde",)}
    modes = ((1.0, 1), (0.1, 10))
    """Amplitude and number of half waves of each part of the solution."""

    def __init__(
        self,
        terms: Mapping[str, Sequence[str]] | None = None,
        derivatives: Derivatives = nested,
        reference: Callable[[Tensor], Tensor] | None = None,
        *,
        dimension: int = 2,
    ) -> None:
        if not isinstance(dimension, int) or dimension not in (1, 2, 3):
            raise ValueError(f"dimension is {dimension!r}: use 1, 2 or 3")
        super().__init__(terms, derivatives, reference)
        self.variables = tuple("xyz"[:dimension])
        self.domain = ((0.0, 1.0),) * dimension

    def waves(self, x: Tensor) -> list[Tensor]:
        """The parts of the solution, one for each of the modes, ``(…, d)`` to ``(…, 1)``."""
        sines = [torch.sin(k * math.pi * x).split(1, dim=-1) for _, k in self.modes]
        products = [reduce(operator.mul, columns) for columns in sines]
        return [a * product for (a, _), product in zip(self.modes, products, strict=True)]

    def exact(self, x: Tensor) -> Tensor:
        """The solution u, ``(…, d)`` to ``(…, 1)``."""
        return reduce(operator.add, self.waves(x))

    def reference(self, x: Tensor) -> Tensor:
        return self.exact(x)

    def source(self, x: Tensor) -> Tensor:
        r"""Source :math:`f = -\Delta u = \sum_j d\,(k_j \pi)^2 u_j` of the waves u_j, like u."""
        d = len(self.domain)
        parts = zip(self.modes, self.waves(x), strict=True)
        return reduce(operator.add, [d * (k * math.pi) ** 2 * wave for (_, k), wave in parts])

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        size = sizes(n, ("boundary", "pde"))
        ends = [(column, end) for column, pair in enumerate(self.domain) for end in pair]
        return {
            "boundary": faces(self.domain, size["boundary"], generator, ends),
            "pde": uniform(self.domain, size["pde"], generator),
        }

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ones = (1.0,) * len(self.domain)
        _, _, (laplacian,) = self.derivatives(model, batch["pde"], operator=ones)
        return {"boundary": model(batch["boundary"]), "pde": -laplacian - self.source(batch["pde"])}
