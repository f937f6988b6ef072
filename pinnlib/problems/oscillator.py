"""A damped oscillator that was observed for a while, with a stiffness that may be unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems.base import Problem
from pinnlib.problems.measurements import Measurements
from pinnlib.problems.sampling import sizes, uniform


class Oscillator(Problem):
    r"""Damped oscillator on :math:`t \in [0, 1]`, from a few observations in [0, 0.4].

    .. math:: u'' + 2 \delta u' + k u = 0, \\ \delta = 2, \quad k = 400,

    with :math:`u(0) = 1` and :math:`u'(0) = 0`, which only the observations tell:

    .. math:: u &= e^{-\delta t} \left(\cos \omega t
       + \tfrac{\delta}{\omega} \sin \omega t\right), \\ \omega &= \sqrt{k - \delta^2}.

    Residuals: ``observed`` and ``pde``. The stiffness k is known unless it is called
    ``unknown={"stiffness": 100.0}``.

    Args:
        measurements: number of observations, evenly spaced from 0 to 0.4.
        noise: standard deviation of their Gaussian noise.
        seed: of the noise, which stays the same throughout.
        options: those of :class:`Problem`.

    Raises:
        ValueError: if there is no measurement, or the noise is negative.

    >>> batch = Oscillator().sample(128, torch.Generator().manual_seed(0))
    >>> {name: tuple(x.shape) for name, x in batch.items()}
    {'observed': (10, 1), 'values': (10, 1), 'pde': (128, 1)}
    """

    variables = ("t",)
    domain = ((0.0, 1.0),)
    terms = {"data": ("observed",), "pde": ("pde",)}
    coefficients = {"stiffness": 400.0}
    damping = 2.0
    """δ, half the damping constant of a unit mass."""
    until = 0.4
    """When the last observation was made."""

    def __init__(
        self, measurements: int = 10, noise: float = 0.0, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        t = torch.linspace(0, self.until, measurements, dtype=torch.float64)[:, None]
        self.measured = Measurements(t, self.exact(t), noise, seed)

    def exact(self, t: Tensor) -> Tensor:
        """The solution u, ``(…, 1)`` to ``(…, 1)``."""
        omega = math.sqrt(self.coefficients["stiffness"] - self.damping**2)
        swing = torch.cos(omega * t) + self.damping / omega * torch.sin(omega * t)
        u: Tensor = torch.exp(-self.damping * t) * swing
        return u

    def reference(self, x: Tensor) -> Tensor:
        return self.exact(x)

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        size = sizes(n, ("pde",))
        return self.measured.on(generator.device) | {
            "pde": uniform(self.domain, size["pde"], generator)
        }

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        k = self.coefficient(model, "stiffness")
        u, (u_t,), (u_tt,) = self.derivatives(model, batch["pde"])
        return {
            "observed": model(batch["observed"]) - batch["values"],
            "pde": u_tt + 2 * self.damping * u_t + k * u,
        }
