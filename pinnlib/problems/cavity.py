"""The lid-driven cavity, a steady flow with three outputs whose boundary values jump."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems.base import Problem
from pinnlib.problems.sampling import faces, sizes, uniform
from pinnlib.problems.table import Table

TABLE = Path(__file__).parents[1] / "results" / "cavity.npy"
"""u and v on a grid of 100 × 100 points, the first index that of x."""
REYNOLDS = 100.0
"""The Reynolds number of the table."""


class Cavity(Problem):
    r"""Lid-driven cavity, the steady flow of a fluid in the unit square under a lid that slides.

    The outputs are the velocity (u, v) and the pressure p of the Navier–Stokes equations

    .. math::

        u\,u_x + v\,u_y + p_x &= \tfrac{1}{\mathrm{Re}} \Delta u, \\
        u\,v_x + v\,v_y + p_y &= \tfrac{1}{\mathrm{Re}} \Delta v, \\
        u_x + v_y &= 0,

    with (u, v) = (1, 0) on the lid, y = 1, and (0, 0) on the three walls. Only the gradient of p
    counts, so p = 0 is demanded at one point, the lower left corner. Residuals: ``momentum_x``,
    ``momentum_y``, ``continuity``, ``lid_u`` (u - 1), ``lid_v``, ``walls_u``, ``walls_v`` and
    ``pressure``.

    At both ends of the lid u jumps from 0 to 1, and the pressure and the gradient of u grow without
    bound, like 1/r. A network cannot follow: there, residuals of lid and walls stay, up to 1 in
    sum, and those of the momentum are large. Nothing is smoothed here; a ``gap`` leaves the ends
    of the lid out.

    The reference is (u, v), without p, whose mean square is infinite. At Re = 100 it is a table
    from finite differences, whose centre lines agree with those of :cite:t:`marchi2009` to 1e-6;
    it has the points of ``grid(100)`` and is linear in between. At the ends of the lid it has
    u = 1/2. For any other Re there is none but yours.

    Args:
        reynolds: the number Re, above 0.
        gap: the points of the set ``lid`` keep this distance from its ends, from 0 to below 1/2.
        options: those of :class:`Problem`.

    Raises:
        ValueError: if ``reynolds`` or ``gap`` is another, or as :class:`Problem`.

    >>> problem = Cavity()
    >>> batch = problem.sample(128, torch.Generator().manual_seed(0))
    >>> {name: tuple(x.shape) for name, x in batch.items()}
    {'lid': (128, 2), 'walls': (128, 2), 'pressure': (1, 2), 'pde': (128, 2)}
    >>> problem.reference(torch.tensor([[0.5, 0.5]]))
    tensor([[-0.2091,  0.0575]])

    The error of a network's velocity:

    >>> from pinnlib.evaluation import relative_l2_error
    >>> from pinnlib.networks import MLP
    >>> model = MLP(problem.domain, outputs=3, generator=torch.Generator().manual_seed(0))
    >>> 0.5 < relative_l2_error(model, problem) < 2
    True
    """

    variables = ("x", "y")
    domain = ((0.0, 1.0), (0.0, 1.0))
    outputs, hidden = 3, 1
    terms = {
        "momentum_x": ("momentum_x",),
        "momentum_y": ("momentum_y",),
        "continuity": ("continuity",),
        "lid": ("lid_u", "lid_v"),
        "walls": ("walls_u", "walls_v"),
        "pressure": ("pressure",),
    }

    def __init__(self, reynolds: float = REYNOLDS, gap: float = 0.0, **options: Any) -> None:
        if not 0 < reynolds < math.inf:
            raise ValueError(f"reynolds is {reynolds}: pass a number above 0, such as 100")
        if not 0 <= gap < 0.5:
            raise ValueError(f"gap is {gap}: pass a distance from 0 to below 0.5, half the lid")
        super().__init__(**options)
        self.reynolds, self.gap = reynolds, gap
        if self.reference is None and reynolds == REYNOLDS:
            self.reference = _table()

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        size = sizes(n, ("lid", "walls", "pde"))
        along = ((self.gap, 1 - self.gap), self.domain[1])
        return {
            "lid": faces(along, size["lid"], generator, [(1, 1.0)]),
            "walls": faces(self.domain, size["walls"], generator, [(0, 0.0), (0, 1.0), (1, 0.0)]),
            "pressure": torch.zeros(1, 2, device=generator.device),
            "pde": uniform(self.domain, size["pde"], generator),
        }

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs, by_x_and_y, (laplacian,) = self.derivatives(
            model, batch["pde"], operator=(1.0, 1.0)
        )
        u, v, _ = _split(outputs)
        (u_x, v_x, p_x), (u_y, v_y, p_y) = map(_split, by_x_and_y)
        diffusion_u, diffusion_v, _ = _split(laplacian / self.reynolds)
        lid_u, lid_v, _ = _split(model(batch["lid"]))
        walls_u, walls_v, _ = _split(model(batch["walls"]))
        return {
            "momentum_x": u * u_x + v * u_y + p_x - diffusion_u,
            "momentum_y": u * v_x + v * v_y + p_y - diffusion_v,
            "continuity": u_x + v_y,
            "lid_u": lid_u - 1,
            "lid_v": lid_v,
            "walls_u": walls_u,
            "walls_v": walls_v,
            "pressure": _split(model(batch["pressure"]))[2],
        }


def _split(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of u, v and p, ``(…, 1)`` each."""
    if values.shape[-1] != 3:
        raise ValueError(
            f"model has {values.shape[-1]} outputs: a cavity needs u, v and p, such as those of "
            "MLP(problem.domain, outputs=3)"
        )
    u, v, p = values.split(1, dim=-1)
    return u, v, p


@cache
def _table() -> Table:
    """The velocity at Re = 100, read once."""
    return Table(Cavity.domain, np.load(TABLE))
