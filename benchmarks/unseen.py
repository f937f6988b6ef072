"""Two problems on which nothing was chosen, for advice that is to be tried."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems import Problem, faces, sizes, uniform


class BoundaryLayer(Problem):
    r"""-ε u'' + u' = 1 on [0, 1] with u(0) = u(1) = 0, ε = 0.05: a steep layer at x = 1.

    The solution is x - (e^((x - 1)/ε) - e^(-1/ε)) / (1 - e^(-1/ε)).
    """

    variables = ("x",)
    domain = ((0.0, 1.0),)
    terms = {"data": ("boundary",), "pde": ("pde",)}
    epsilon = 0.05

    def reference(self, x: Tensor) -> Tensor:
        end = math.exp(-1 / self.epsilon)
        layer: Tensor = (torch.exp((x - 1) / self.epsilon) - end) / (1 - end)
        return x - layer

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        size = sizes(n, ("boundary", "pde"))
        return {
            "boundary": faces(self.domain, size["boundary"], generator, [(0, 0.0), (0, 1.0)]),
            "pde": uniform(self.domain, size["pde"], generator),
        }

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        _, (u_x,), (u_xx,) = self.derivatives(model, batch["pde"])
        return {"boundary": model(batch["boundary"]), "pde": u_x - self.epsilon * u_xx - 1}


class Convection(Problem):
    r"""u_t + 10 u_x = 0 for x in [0, 2π] and t in [0, 1], periodic, with u(x, 0) = sin x.

    The solution is sin(x - 10 t).
    """

    variables = ("x", "t")
    domain = ((0.0, 2 * math.pi), (0.0, 1.0))
    terms = {"data": ("boundary", "initial"), "pde": ("pde",)}
    speed = 10.0

    def reference(self, x: Tensor) -> Tensor:
        return torch.sin(x[..., :1] - self.speed * x[..., 1:])

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        size = sizes(n, ("boundary", "initial", "pde"))
        return {
            "boundary": faces(self.domain, size["boundary"], generator, [(0, 0.0)]),
            "initial": faces(self.domain, size["initial"], generator, [(1, 0.0)]),
            "pde": uniform(self.domain, size["pde"], generator),
        }

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        left, start = batch["boundary"], batch["initial"]
        right = torch.cat([left[..., :1] + 2 * math.pi, left[..., 1:]], dim=-1)
        _, (u_x, u_t), _ = self.derivatives(model, batch["pde"], order=1)
        return {
            "boundary": model(left) - model(right),
            "initial": model(start) - self.reference(start),
            "pde": u_t + self.speed * u_x,
        }
