"""The cavity with the velocity and the pressure as unknowns, or with stream function and vorticity.

Both meet the jump at the ends of the lid by points and by weights, as the chapter *A flow with a
true reference* explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from pinnlib.derivatives import Model, taylor
from pinnlib.problems import Cavity

ENDS = ((0.0, 1.0), (1.0, 1.0))
"""Where the lid meets the walls."""


class Pressure(Cavity):
    """Velocity and pressure, with factors that take the growth at the ends of the lid away."""

    unknowns = "u, v, p"
    constants: ClassVar[dict[str, float]] = {
        "momentum_x": 1,
        "momentum_y": 1,
        "continuity": 10,
        "lid": 100,
        "walls": 100,
        "pressure": 1,
    }

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """n inner points and n/5 of lid and walls, more of them near the ends of the lid."""
        size = {"lid": n // 5, "walls": n // 5, "pde": n}
        batch = self.sample(size, generator)
        near = n * 2 // 5
        r, angle = torch.rand(2, near, generator=generator)
        dx, dy = 0.3 * r * torch.cos(torch.pi * angle), 0.3 * r * torch.sin(torch.pi * angle)
        batch["pde"][:near] = torch.stack([torch.where(dx > 0, dx, 1 + dx), 1 - dy], dim=1)
        batch["lid"][:, 0] = torch.sin(torch.pi / 2 * batch["lid"][:, 0]) ** 2
        batch["walls"][:, 1] = 1 - (1 - batch["walls"][:, 1]) ** 2
        squared = torch.cdist(batch["pde"], torch.tensor(ENDS)).amin(dim=1, keepdim=True) ** 2
        batch["of_pde"] = squared / (squared + 0.1**2)
        batch["of_lid"] = ((batch["lid"][:, :1] - 0.5).abs() < 0.45).to(squared)
        return batch

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        residuals = super().residuals(model, batch)
        factors = {"momentum_x": "of_pde", "momentum_y": "of_pde", "lid_u": "of_lid"}
        return residuals | {name: residuals[name] * batch[key] for name, key in factors.items()}

    def velocity(self, model: Model, x: Tensor) -> Tensor:
        return model(x)[..., :2].detach()


class Vorticity(Pressure):
    """Stream function ψ and vorticity ω: nothing can leak."""

    unknowns = "ψ, ω"
    outputs, hidden = 2, 0
    terms = {
        "vorticity": ("vorticity",),
        "transport": ("transport",),
        "stream": ("lid_psi", "walls_psi"),
        "lid": ("lid",),
        "walls": ("walls",),
    }
    constants: ClassVar[dict[str, float]] = {
        "vorticity": 1,
        "transport": 1,
        "stream": 1000,
        "lid": 100,
        "walls": 100,
    }

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values, (by_x, by_y), (laplacian,) = taylor(model, batch["pde"], operator=(1.0, 1.0))
        lid, (_, lid_y), _ = taylor(model, batch["lid"], order=1)
        walls, (walls_x, walls_y), _ = taylor(model, batch["walls"], order=1)
        psi, turn = slice(0, 1), slice(1, None)
        transport = by_y[..., psi] * by_x[..., turn] - by_x[..., psi] * by_y[..., turn]
        transport = transport - laplacian[..., turn] / self.reynolds
        slope = torch.where(batch["walls"][..., 1:] == 0, walls_y, walls_x)
        return {
            "vorticity": (laplacian[..., psi] + values[..., turn]) * batch["of_pde"] ** 0.5,
            "transport": transport * batch["of_pde"] ** 1.5,
            "lid_psi": lid[..., psi],
            "walls_psi": walls[..., psi],
            "lid": lid_y[..., psi] - 1,
            "walls": slope[..., psi],
        }

    def velocity(self, model: Model, x: Tensor) -> Tensor:
        _, (by_x, by_y), _ = taylor(model, x, order=1)
        return torch.cat([by_y[..., :1], -by_x[..., :1]], dim=-1).detach()
