"""Hares and lynxes, as the Hudson's Bay Company counted their pelts, and their equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems.base import Problem
from pinnlib.problems.measurements import Measurements
from pinnlib.problems.sampling import sizes, uniform
from pinnlib.problems.table import Table

PELTS = [
    (30.0, 4.0),
    (47.2, 6.1),
    (70.2, 9.8),
    (77.4, 35.2),
    (36.3, 59.4),
    (20.6, 41.7),
    (18.1, 19.0),
    (21.4, 13.0),
    (22.0, 8.3),
    (25.4, 9.1),
    (27.1, 7.4),
    (40.3, 8.0),
    (57.0, 12.3),
    (76.6, 19.5),
    (52.3, 45.7),
    (19.5, 51.1),
    (11.2, 29.7),
    (7.6, 15.8),
    (14.6, 9.7),
    (16.2, 10.1),
    (24.7, 8.6),
]
"""Thousands of pelts of hares and of lynxes in the years from 1900 to 1920."""
START = 33.956, 5.933
"""Published estimates of the first two, beside the published coefficients."""
STEPS = 20 * 99
"""Of the reference solution; twice as many change it by 4e-10. A grid of 100 meets the table."""


class LotkaVolterra(Problem):
    r"""Prey and predators, in logarithms, from pelts that were sold in the years 1900 to 1920.

    .. math:: x' = a - b\, e^y, \qquad y' = -c + d\, e^x

    on :math:`t \in [0, 20]` years, where :math:`e^x` are the hares and :math:`e^y` the lynxes, in
    thousands of pelts. In logarithms, noise that is a share of the number is the same everywhere,
    and no population becomes negative.

    The coefficients a, b, c and d are called ``growth``, ``predation``, ``death`` and
    ``reproduction``. Nobody knows true ones: the values in ``coefficients`` are the posterior means
    of :cite:t:`carpenter2018`, and ``reference`` is the solution that belongs to them, not the
    truth. The pelts are those of :cite:t:`hewitt1921`, as :cite:t:`carpenter2018` lists them.

    Residuals: ``hares``, ``lynxes``, ``prey`` and ``predators``. The model gives x and y.

    Args:
        measurements: how many years are given, from the first.
        options: those of :class:`Problem`; ``unknown={}`` for known coefficients.

    Raises:
        ValueError: if fewer than 1 or more than 21 years are asked for.

    >>> batch = LotkaVolterra().sample(100, torch.Generator().manual_seed(0))
    >>> {name: tuple(x.shape) for name, x in batch.items()}
    {'observed': (21, 1), 'values': (21, 2), 'pde': (100, 1)}
    """

    variables = ("t",)
    domain = ((0.0, 20.0),)
    outputs = 2
    terms = {"data": ("hares", "lynxes"), "pde": ("prey", "predators")}
    coefficients = {"growth": 0.545, "predation": 0.028, "death": 0.803, "reproduction": 0.024}
    unknown = {"growth": 1.0, "predation": 0.05, "death": 1.0, "reproduction": 0.05}

    def __init__(self, measurements: int = len(PELTS), **options: Any) -> None:
        super().__init__(**options)
        if not 1 <= measurements <= len(PELTS):
            raise ValueError(f"measurements is {measurements}: there are years 1 to {len(PELTS)}")
        pelts = torch.tensor(PELTS[:measurements], dtype=torch.float64)
        years = torch.arange(measurements, dtype=torch.float64)[:, None]
        self.measured = Measurements(years, pelts.log())

    def reference(self, x: Tensor) -> Tensor:
        """Logarithms of both populations, ``(…, 1)`` to ``(…, 2)``, from a table; see the class."""
        a, b, c, d = self.coefficients.values()
        return _table(a, b, c, d, self.domain[0][1])(x)

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        size = sizes(n, ("pde",))
        return self.measured.on(generator.device) | {
            "pde": uniform(self.domain, size["pde"], generator)
        }

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        a, b, c, d = (self.coefficient(model, name) for name in self.coefficients)
        misfit = model(batch["observed"]) - batch["values"]
        u, (u_t,), _ = self.derivatives(model, batch["pde"], order=1)
        prey, predators = u.exp().split(1, dim=-1)
        x_t, y_t = u_t.split(1, dim=-1)
        return {
            "hares": misfit[..., :1],
            "lynxes": misfit[..., 1:],
            "prey": x_t - a + b * predators,
            "predators": y_t + c - d * prey,
        }


def solve(
    coefficients: Sequence[float], start: Sequence[float], end: float, steps: int
) -> NDArray[np.float64]:
    """Solve the equations in logarithms by the classical method of Runge and Kutta.

    Args:
        coefficients: a, b, c and d, as in :class:`LotkaVolterra`.
        start: hares and lynxes at t = 0.
        end: the last time.
        steps: how many, of one length.

    Returns:
        ``(steps + 1, 2)``, the logarithms of both at each time.

    >>> solve([0.5, 0.02, 0.8, 0.04], [20.0, 25.0], end=1.0, steps=4).round(6)[-1].tolist()
    [2.995732, 3.218876]
    """
    a, b, c, d = coefficients
    h = end / steps

    def slope(u: NDArray[np.float64]) -> NDArray[np.float64]:
        prey, predators = np.exp(u)
        return np.array([a - b * predators, d * prey - c])

    times = [np.log(np.array(start))]
    for _ in range(steps):
        u = times[-1]
        k1 = slope(u)
        k2 = slope(u + h / 2 * k1)
        k3 = slope(u + h / 2 * k2)
        k4 = slope(u + h * k3)
        times.append(u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return np.stack(times)


@cache
def _table(a: float, b: float, c: float, d: float, end: float) -> Table:
    """The solution, computed once for each set of numbers."""
    return Table(((0.0, end),), solve([a, b, c, d], START, end, STEPS))
