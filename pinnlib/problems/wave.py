"""The wave equation of a string that swings slowly and fast at once."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems.base import Problem
from pinnlib.problems.sampling import in_time


class Wave(Problem):
    r"""Wave equation on :math:`(x, t) \in [0, 1]^2`, four residuals in two terms.

    .. math::

        u_{tt} = c^2 u_{xx}, \quad c = 2, \\ u(0, t) = u(1, t) = 0, \\ u_t(x, 0) = 0,

    with the initial values of the solution, as in :cite:t:`wang2022`,

    .. math:: u &= \sin(\pi x)\cos(c \pi t) \\
       &+ \tfrac12 \sin(4 \pi x)\cos(4 c \pi t).

    Residuals: ``boundary``, ``initial`` (value), ``velocity`` (initial) and ``pde``.

    >>> problem = Wave()
    >>> batch = problem.sample(128, torch.Generator().manual_seed(0))
    >>> losses = problem.losses(problem.exact, batch)
    >>> {name: round(loss.item(), 4) for name, loss in losses.items()}
    {'data': 0.0, 'pde': 0.0}
    """

    variables = ("x", "t")
    domain = ((0.0, 1.0), (0.0, 1.0))
    terms = {"data": ("boundary", "initial", "velocity"), "pde": ("pde",)}
    c = 2.0
    """Speed of the waves."""
    modes = ((1.0, 1), (0.5, 4))
    """Amplitude and number of half waves of each part of the solution."""

    def exact(self, x: Tensor) -> Tensor:
        """The solution u, ``(…, 2)`` to ``(…, 1)``."""
        x, t = x.split(1, dim=-1)
        parts = [
            a * torch.sin(k * math.pi * x) * torch.cos(k * self.c * math.pi * t)
            for a, k in self.modes
        ]
        return reduce(operator.add, parts)

    def reference(self, x: Tensor) -> Tensor:
        return self.exact(x)

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        return in_time(self.domain, n, generator)

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        boundary, initial, interior = batch["boundary"], batch["initial"], batch["pde"]
        u_0, (u_t_0,), _ = self.derivatives(model, initial, order=1, operator=(0.0, 1.0))
        _, _, (wave,) = self.derivatives(model, interior, operator=(-(self.c**2), 1.0))
        return {
            "boundary": model(boundary),
            "initial": u_0 - self.exact(initial),
            "velocity": u_t_0,
            "pde": wave,
        }
