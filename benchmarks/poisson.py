"""A Poisson equation whose solution has a large and a small scale."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems import Problem, faces, uniform
from pinnlib.problems.sampling import sizes


class Poisson(Problem):
    r"""-(u_xx + u_yy) = f on the unit square, u = 0 on its boundary.

    The solution is sin(πx) sin(πy) + 0.1 sin(10πx) sin(10πy).
    """

    variables = ("x", "y")
    domain = ((0.0, 1.0), (0.0, 1.0))
    terms = {"data": ("boundary",), "pde": ("pde",)}
    modes = ((1.0, 1), (0.1, 10))
    """Amplitude and number of half waves."""

    def waves(self, x: Tensor) -> list[Tensor]:
        return [a * torch.sin(k * math.pi * x).prod(dim=-1, keepdim=True) for a, k in self.modes]

    def reference(self, x: Tensor) -> Tensor:
        return torch.stack(self.waves(x)).sum(dim=0)

    def source(self, x: Tensor) -> Tensor:
        parts = zip(self.modes, self.waves(x), strict=True)
        return torch.stack([2 * (k * math.pi) ** 2 * wave for (_, k), wave in parts]).sum(dim=0)

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        size = sizes(n, ("boundary", "pde"))
        edges = [(0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0)]
        return {
            "boundary": faces(self.domain, size["boundary"], generator, edges),
            "pde": uniform(self.domain, size["pde"], generator),
        }

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        _, _, (laplacian,) = self.derivatives(model, batch["pde"], operator=(1.0, 1.0))
        return {"boundary": model(batch["boundary"]), "pde": -laplacian - self.source(batch["pde"])}
