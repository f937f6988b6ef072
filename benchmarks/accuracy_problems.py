"""The problems of the accuracy benchmark, what is asked of a method, and the clock of a run."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pinnlib.derivatives import taylor
from pinnlib.evaluation import ErrorOnGrid
from pinnlib.problems import Burgers, Helmholtz, KleinGordon, Oscillator, Poisson, Problem

NOISE, START = 0.01, 100.0
"""Of the oscillator's observations, and where its stiffness starts."""
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "Klein–Gordon": lambda: KleinGordon(derivatives=taylor),
    "Helmholtz": lambda: Helmholtz(derivatives=taylor),
    "Poisson": lambda: Poisson(derivatives=taylor),
    "Burgers": lambda: Burgers(derivatives=taylor),
    "oscillator": lambda: Oscillator(noise=NOISE, derivatives=taylor, unknown={"stiffness": 100.0}),
}
TARGETS = {title: (1e-3, 1e-5, 1e-6) for title in PROBLEMS} | {"oscillator": (1e-2,)}
"""For the relative error; the oscillator's is for its stiffness, with u within the noise."""
GRIDS = {1: 1000, 2: 200}
"""Points along each input, by the number of inputs."""
LOST = 1e9
"""Stands for an error that is not finite."""


def within_noise(problem: Problem) -> float:
    """The relative error that is as large as the oscillator's noise."""
    assert problem.reference is not None
    u = problem.reference(problem.grid(GRIDS[1], dtype=torch.float64))
    return float(NOISE / u.square().mean().sqrt())


class Race(NamedTuple):
    """What a method is given; its weight of the data term is 1 where it balances."""

    problem: str
    method: str
    seed: int
    weight: float
    limit: float


class FinishedError(Exception):
    """The last target is reached, or the time is over."""


def cpu_seconds() -> float:
    """Of this process and of what it has called and awaited, such as a C++ compiler."""
    return sum(os.times()[:4])


class Watch:
    """The clock of a run: it stands still while the error is measured.

    Args:
        problem: its title.
        limit: seconds.
    """

    def __init__(self, problem: str, limit: float) -> None:
        self.problem, self.limit, self.title = PROBLEMS[problem](), limit, problem
        grid = GRIDS[len(self.problem.domain)]
        self.error = ErrorOnGrid(self.problem, grid, dtype=torch.float64)
        self.history: list[list[float]] = []
        self.compiling, self._next = 0.0, 0.0
        self._start = cpu_seconds()

    @property
    def seconds(self) -> float:
        return cpu_seconds() - self._start

    @property
    def share(self) -> float:
        """How much of the time is over."""
        return self.seconds / self.limit

    @contextlib.contextmanager
    def compilation(self) -> Iterator[None]:
        """What happens within is compilation, and told apart."""
        start = cpu_seconds()
        yield
        self.compiling += cpu_seconds() - start

    def look(
        self,
        model: Callable[[Tensor], Tensor],
        stiffness: Callable[[], float] | None = None,
        last: bool = False,
    ) -> None:
        """Measure the error, unless that was done just now.

        Args:
            model: maps points to values.
            stiffness: gives the coefficient that the oscillator looks for.
            last: there is nothing more to come.

        Raises:
            FinishedError: if the run is over.
        """
        seconds = self.seconds
        is_over = last or seconds >= self.limit
        if seconds < self._next and not is_over:
            return
        before = cpu_seconds()
        error = float(self.error(model))
        row = [seconds, error if math.isfinite(error) else LOST]
        if stiffness is not None:
            row.append(abs(stiffness() / self.problem.coefficients["stiffness"] - 1))
        self.history.append(row)
        self._start += cpu_seconds() - before
        self._next = max(1.02 * seconds, seconds + 0.1)
        if is_over or row[1] == LOST or self.goal(row) <= TARGETS[self.title][-1]:
            raise FinishedError

    def goal(self, row: list[float]) -> float:
        """What is compared with the targets: the error, or the stiffness's with u in the noise."""
        if len(row) < 3:
            return row[1]
        return row[2] if row[1] <= within_noise(self.problem) else math.inf
