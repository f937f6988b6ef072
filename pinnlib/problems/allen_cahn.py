"""The Allen–Cahn equation with periodic conditions, whose fronts become steep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems.base import Problem
from pinnlib.problems.sampling import faces, sizes, uniform
from pinnlib.problems.table import Table

# Multiples of 99, so that a grid of 100 values an input meets values that were computed.
CELLS = 64 * 99
"""Points in space of the solver; twice as many change u by 4e-7, relative."""
STEPS = 2 * 99
"""Its steps in time, all in the table; twice as many change u by 4e-9."""
EVERY = 8
"""Of the points in space, one in so many is in the table."""


class AllenCahn(Problem):
    r"""Allen–Cahn equation on :math:`x \in [-1, 1]`, :math:`t \in [0, 0.5]`, periodic in x.

    .. math::

        u_t = 10^{-4}\,u_{xx} + 5u - 5u^3, \\ u(x, 0) = x^2 \cos \pi x, \\
        u(-1, t) = u(1, t), \\ u_x(-1, t) = u_x(1, t),

    as in :cite:t:`raissi2019`, up to half their time. Residuals: ``boundary`` (value), ``slope``
    (of the boundary), ``initial`` and ``pde``. The set ``boundary`` lies at x = -1; each point has
    its partner at x = 1. At t = 0 the slopes differ, 2 and -2: a layer forms at the boundary. The
    reference is a table, by the splitting of :cite:t:`strang1968` with Fourier modes in space.

    >>> problem = AllenCahn()
    >>> batch = problem.sample(128, torch.Generator().manual_seed(0))
    >>> residuals = problem.residuals(lambda x: x[:, :1] ** 3, batch)
    >>> {name: residuals[name].unique().tolist() for name in ("boundary", "slope")}
    {'boundary': [-2.0], 'slope': [0.0]}
    """

    variables = ("x", "t")
    domain = ((-1.0, 1.0), (0.0, 0.5))
    terms = {"data": ("boundary", "slope", "initial"), "pde": ("pde",)}
    diffusion = 1e-4
    reaction = 5.0

    def reference(self, x: Tensor) -> Tensor:
        """The solution u, ``(…, 2)`` to ``(…, 1)``, from a table that is computed once.

        On ``grid(100)`` the relative error is below 1e-6. Elsewhere the table is interpolated
        linearly: 2e-5 relative, at most 6e-4, and derivatives are useless. Outside it is nan.
        """
        return _table(self.diffusion, self.reaction, self.domain[1][1])(x)

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        size = sizes(n, ("boundary", "initial", "pde"))
        return {
            "boundary": faces(self.domain, size["boundary"], generator, [(0, -1.0)]),
            "initial": faces(self.domain, size["initial"], generator, [(1, 0.0)]),
            "pde": uniform(self.domain, size["pde"], generator),
        }

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        left, initial, interior = batch["boundary"], batch["initial"], batch["pde"]
        right = torch.cat([left[..., :1] + 2, left[..., 1:]], dim=-1)  # one period on
        u_left, (slope_left,), _ = self.derivatives(model, left, 1, operator=(1.0, 0.0))
        u_right, (slope_right,), _ = self.derivatives(model, right, 1, operator=(1.0, 0.0))
        u, (_, u_t), (u_xx,) = self.derivatives(model, interior, operator=(1.0, 0.0))
        return {
            "boundary": u_left - u_right,
            "slope": slope_left - slope_right,
            "initial": model(initial) - _start(initial[..., :1]),
            "pde": u_t - self.diffusion * u_xx - self.reaction * (u - u**3),
        }


def _start(x: Tensor) -> Tensor:
    """u at t = 0."""
    return x**2 * torch.cos(math.pi * x)


def solve(
    start: NDArray[np.float64], diffusion: float, reaction: float, end: float, steps: int
) -> NDArray[np.float64]:
    r"""Solve the Allen–Cahn equation with period 2 by the splitting of :cite:t:`strang1968`.

    For a step h, the reaction acts for h/2, the diffusion for h, and the reaction for h/2 again,
    each by its exact solution,

    .. math::

        u \mapsto \frac{e^{ah/2} u}{\sqrt{1 + (e^{ah} - 1)\,u^2}}, \qquad
        \hat u_k \mapsto e^{-D \pi^2 k^2 h}\, \hat u_k,

    with the Fourier coefficients :math:`\hat u_k`.

    Args:
        start: values at t = 0 at equally spaced points of one period, the end left out.
        diffusion: the number D.
        reaction: the number a.
        end: the last time.
        steps: how many, of one length.

    Returns:
        ``(len(start), steps + 1)``, a column for each time.

    >>> u = solve(np.full(4, 0.5), diffusion=1e-4, reaction=5.0, end=1.0, steps=2)
    >>> u.shape, u[0].round(4).tolist()
    ((4, 3), [0.5, 0.99, 0.9999])
    """
    h, modes = end / steps, np.arange(len(start) // 2 + 1)
    decay = np.exp(-diffusion * (math.pi * modes) ** 2 * h)
    growth = math.exp(reaction * h / 2)

    def react(u: NDArray[np.float64]) -> NDArray[np.float64]:
        return growth * u / np.sqrt(1 + (growth**2 - 1) * u**2)

    times = [start]
    for _ in range(steps):
        spread = np.fft.irfft(decay * np.fft.rfft(react(times[-1])), len(start))
        times.append(react(spread))
    return np.stack(times, axis=1)


@cache
def _table(diffusion: float, reaction: float, end: float) -> Table:
    """The solution on the domain, computed once for each set of numbers."""
    x = torch.linspace(-1, 1, CELLS + 1, dtype=torch.float64, device="cpu")[:-1]
    u = solve(_start(x).numpy(), diffusion, reaction, end, STEPS)[::EVERY]
    return Table(((-1.0, 1.0), (0.0, end)), np.concatenate([u, u[:1]]))
