"""The heat equation with measured temperatures, for a diffusivity that may be unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems.base import Problem
from pinnlib.problems.measurements import Measurements
from pinnlib.problems.sampling import in_time


class Heat(Problem):
    r"""Heat equation on :math:`(x, t) \in [0, 1]^2`, from temperatures measured inside.

    .. math:: u_t = \kappa\, u_{xx}, \\ u(0, t) = u(1, t) = 0,

    with the true diffusivity :math:`\kappa = 0.1` and

    .. math:: u &= e^{-\kappa \pi^2 t} \sin \pi x \\
       &+ \tfrac12 e^{-9 \kappa \pi^2 t} \sin 3 \pi x .

    The initial values are known, and noisy measurements inside tell κ, which is unknown by default.
    Residuals: ``observed``, ``boundary``, ``initial`` and ``pde``.

    Args:
        measurements: how many points were measured, at random places and times.
        noise: standard deviation of the noise.
        seed: of places and noise, which stay the same throughout.
        options: those of :class:`Problem`; ``unknown={}`` for a known κ.

    Raises:
        ValueError: if there is no measurement, or the noise is negative.

    >>> problem = Heat()
    >>> batch = problem.sample(4, torch.Generator().manual_seed(0))
    >>> {name: tuple(x.shape) for name, x in batch.items()}
    {'observed': (100, 2), 'values': (100, 1), 'boundary': (4, 2), 'initial': (4, 2), 'pde': (4, 2)}
    """

    variables = ("x", "t")
    domain = ((0.0, 1.0), (0.0, 1.0))
    terms = {"data": ("observed", "boundary", "initial"), "pde": ("pde",)}
    coefficients = {"diffusivity": 0.1}
    unknown = {"diffusivity": 1.0}

    def __init__(
        self, measurements: int = 100, noise: float = 0.01, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(measurements, 2, generator=generator, dtype=torch.float64)
        self.measured = Measurements(x, self.exact(x), noise, seed)

    def exact(self, x: Tensor) -> Tensor:
        """The solution u, ``(…, 2)`` to ``(…, 1)``."""
        x, t = x.split(1, dim=-1)
        rate = self.coefficients["diffusivity"] * math.pi**2
        slow = torch.exp(-rate * t) * torch.sin(math.pi * x)
        fast = torch.exp(-9 * rate * t) * torch.sin(3 * math.pi * x)
        return slow + fast / 2

    def reference(self, x: Tensor) -> Tensor:
        return self.exact(x)

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        return self.measured.on(generator.device) | in_time(self.domain, n, generator)

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kappa = self.coefficient(model, "diffusivity")
        _, (_, u_t), (u_xx,) = self.derivatives(model, batch["pde"], operator=(1.0, 0.0))
        return {
            "observed": model(batch["observed"]) - batch["values"],
            "boundary": model(batch["boundary"]),
            "initial": model(batch["initial"]) - self.exact(batch["initial"]),
            "pde": u_t - kappa * u_xx,
        }
