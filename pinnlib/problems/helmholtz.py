"""The Helmholtz equation with a zero boundary, where the simplest rule can fail."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems.base import Problem
from pinnlib.problems.sampling import faces, sizes, uniform


class Helmholtz(Problem):
    r"""Helmholtz equation on :math:`(x, y) \in [-1, 1]^2` with u = 0 on the boundary.

    .. math:: u_{xx} + u_{yy} + k^2 u = q, \qquad k = 1,

    with the source q chosen so that :math:`u = \sin(\pi a_1 x)\sin(\pi a_2 y)`, :math:`a_1 = 1`,
    :math:`a_2 = 4`, as in :cite:t:`wang2021`. Residuals: ``boundary`` and ``pde``.

    >>> problem = Helmholtz()
    >>> batch = problem.sample(128, torch.Generator().manual_seed(0))
    >>> losses = problem.losses(problem.exact, batch)
    >>> {name: round(loss.item(), 4) for name, loss in losses.items()}
    {'data': 0.0, 'pde': 0.0}
    """

    variables = ("x", "y")
    domain = ((-1.0, 1.0), (-1.0, 1.0))
    terms = {"data": ("boundary",), "pde": ("pde",)}
    a = (1.0, 4.0)
    k = 1.0

    def exact(self, x: Tensor) -> Tensor:
        """The solution u, ``(…, 2)`` to ``(…, 1)``."""
        x, y = x.split(1, dim=-1)
        return torch.sin(math.pi * self.a[0] * x) * torch.sin(math.pi * self.a[1] * y)

    def reference(self, x: Tensor) -> Tensor:
        return self.exact(x)

    def source(self, x: Tensor) -> Tensor:
        r"""Source :math:`q = (k^2 - \pi^2 (a_1^2 + a_2^2))\,u`, ``(N, d)`` to ``(N, 1)``."""
        return (self.k**2 - math.pi**2 * (self.a[0] ** 2 + self.a[1] ** 2)) * self.exact(x)

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        size = sizes(n, ("boundary", "pde"))
        edges = [(0, -1.0), (0, 1.0), (1, -1.0), (1, 1.0)]
        return {
            "boundary": faces(self.domain, size["boundary"], generator, edges),
            "pde": uniform(self.domain, size["pde"], generator),
        }

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        u, _, (laplacian,) = self.derivatives(model, batch["pde"], operator=(1.0, 1.0))
        return {
            "boundary": model(batch["boundary"]) - self.exact(batch["boundary"]),
            "pde": laplacian + self.k**2 * u - self.source(batch["pde"]),
        }
