"""The Klein–Gordon equation with a cubic term, Part I's problem."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems.base import Problem
from pinnlib.problems.sampling import in_time


class KleinGordon(Problem):
    r"""Klein–Gordon equation on :math:`(x, t) \in [0, 1]^2`, four residuals in two terms.

    .. math::

        u_{tt} - u_{xx} + u^3 = f, \\ u(x, 0) = x, \quad u_t(x, 0) = 0,

    with Dirichlet values at x = 0 and x = 1 and the source f chosen so that
    :math:`u = x\cos(5\pi t) + (xt)^3`, as in :cite:t:`wang2021`. Residuals:
    ``boundary``, ``initial`` (value), ``velocity`` (initial) and ``pde``.

    >>> problem = KleinGordon()
    >>> batch = problem.sample(128, torch.Generator().manual_seed(0))
    >>> {name: tuple(x.shape) for name, x in batch.items()}
    {'boundary': (128, 2), 'initial': (128, 2), 'pde': (128, 2)}
    >>> list(problem.losses(lambda x: x[:, :1] * 0, batch))
    ['data', 'pde']
    """

    variables = ("x", "t")
    domain = ((0.0, 1.0), (0.0, 1.0))
    terms = {"data": ("boundary", "initial", "velocity"), "pde": ("pde",)}

    def exact(self, x: Tensor) -> Tensor:
        """The solution u, ``(…, 2)`` to ``(…, 1)``."""
        x, t = x.split(1, dim=-1)
        u: Tensor = x * torch.cos(5 * math.pi * t) + (x * t) ** 3
        return u

    def reference(self, x: Tensor) -> Tensor:
        return self.exact(x)

    def source(self, x: Tensor) -> Tensor:
        r"""Source :math:`f = u_{tt} - u_{xx} + u^3`, ``(N, d)`` to ``(N, 1)``."""
        u = self.exact(x)
        x, t = x.split(1, dim=-1)
        u_tt = -25 * math.pi**2 * x * torch.cos(5 * math.pi * t) + 6 * x**3 * t
        u_xx = 6 * x * t**3
        f: Tensor = u_tt - u_xx + u**3
        return f

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        return in_time(self.domain, n, generator)

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        boundary, initial, interior = batch["boundary"], batch["initial"], batch["pde"]
        u_0, (u_t_0,), _ = self.derivatives(model, initial, order=1, operator=(0.0, 1.0))
        u, _, (wave,) = self.derivatives(model, interior, operator=(-1.0, 1.0))
        return {
            "boundary": model(boundary) - self.exact(boundary),
            "initial": u_0 - self.exact(initial),
            "velocity": u_t_0,
            "pde": wave + u**3 - self.source(interior),
        }
