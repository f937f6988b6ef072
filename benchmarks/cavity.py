"""Long runs on the lid-driven cavity: ``python -m benchmarks.cavity [small | large]``.

A run is 300 balanced steps of Adam and then stretches of one optimizer, each on new points. How far
the centre lines are from published ones is recorded after each. ``small`` is for a CPU, the default
without an accelerator; ``large`` is for a GPU. It can be interrupted: what stands in
``pinnlib/results/cavity_runs.json`` is not run again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import machine, report
from benchmarks.cavity_forms import Pressure, Vorticity
from benchmarks.cavity_reference import PUBLISHED
from benchmarks.second_order import Batch, renewed
from pinnlib import loop
from pinnlib.derivatives import taylor
from pinnlib.networks import MLP
from pinnlib.optimizers import GaussNewton, SSBroyden
from pinnlib.recording import Recorded
from pinnlib.step import Step
from pinnlib.weighting import Balancer, GradientBalancer, geometric_mean_of_terms

PATH = report.SHIPPED / "cavity_runs.json"


class Run(NamedTuple):
    """What is trained, and how."""

    form: type[Pressure]
    reynolds: int
    optimizer: str
    weights: str

    @property
    def title(self) -> str:
        return f"{self.form.unknowns}; Re {self.reynolds}; {self.optimizer}; {self.weights}"


class Size(NamedTuple):
    """A network, how many points it sees within the box, and what is run."""

    width: int
    depth: int
    points: int
    runs: list[Run]


CONSTANT = [
    Run(Vorticity, 100, "Gauss–Newton", "constants"),
    Run(Pressure, 100, "Gauss–Newton", "constants"),
    Run(Vorticity, 400, "Gauss–Newton", "constants"),
    Run(Vorticity, 100, "Broyden", "constants"),
    Run(Pressure, 100, "Broyden", "constants"),
]
BALANCED = [
    Run(form, 100, optimizer, "balanced")
    for optimizer in ("Gauss–Newton", "Adam")
    for form in (Vorticity, Pressure)
]
SIZES = {
    "small": Size(24, 2, 800, [*CONSTANT, *BALANCED]),
    "large": Size(30, 3, 3000, CONSTANT),
}
SEEDS = range(3)
STARTING = 300
"""Balanced steps of Adam before all else."""
STRETCHES = 40
STEPS = {"Gauss–Newton": 20, "Broyden": 300, "Adam": 250}
"""Steps of a stretch."""
APPROACH = 10
"""Stretches in which Re rises from 100 to its value, in equal steps: not for Broyden, whose
compiled loss keeps the first number."""


class Training:
    """A network, its points, and the rule that weighs its terms at first."""

    def __init__(self, run: Run, size: Size, seed: int, device: torch.device) -> None:
        self.run, self.size, self.device = run, size, device
        self.generator = torch.Generator().manual_seed(seed)
        self.problem = problem = run.form(100, derivatives=taylor)
        self.model = MLP(
            problem.domain,
            size.width,
            size.depth,
            outputs=problem.outputs,
            generator=self.generator,
        ).to(device, torch.float64)
        self.balancer = GradientBalancer.bounded(list(problem.terms), geometric_mean_of_terms)
        table = json.loads(PUBLISHED.read_text())["marchi2009"][str(run.reynolds)]
        self.table = {name: torch.tensor(x).to(device, torch.float64) for name, x in table.items()}

    def weights(self) -> Balancer:
        """Those of the stretches: constants, or the rule, before each of them or as Adam has it."""
        if self.run.weights == "constants":
            return Balancer(self.balancer.terms, self.problem.constants)
        return self.balancer if self.run.optimizer == "Adam" else renewed(self.balancer)

    def draw(self) -> Batch:
        batch = self.problem.draw(self.size.points, self.generator)
        return {name: x.to(self.device, torch.float64) for name, x in batch.items()}

    def residuals(self, batch: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        return self.problem.term_residuals(self.model, batch)

    def off(self) -> float:
        """The largest distance of both centre lines from the published ones."""
        table, half = self.table, torch.full_like(self.table["x"], 0.5)
        u = self.problem.velocity(self.model, torch.stack([half, table["y"]], dim=1))[:, 0]
        v = self.problem.velocity(self.model, torch.stack([table["x"], half], dim=1))[:, 1]
        distances = torch.stack([u - table["u"], v - table["v"]]).abs()
        return report.rounded(distances.max().item())

    def curve(self) -> dict[str, list[float]]:
        """Train; the distance and the seconds after the start and after each stretch."""
        found: dict[str, list[float]] = {"off": [], "seconds": []}
        start = time.perf_counter()

        def record() -> None:
            found["off"].append(self.off())
            found["seconds"].append(report.rounded(time.perf_counter() - start))

        adam(self, self.balancer, STARTING)()
        record()
        name = self.run.optimizer
        stretch = OPTIMIZERS[name](self, self.weights(), STEPS[name])
        for number in range(1, STRETCHES + 1):
            rise = min(number / APPROACH, 1)
            self.problem.reynolds = 100 + rise * (self.run.reynolds - 100)
            stretch()
            record()
        return found


def adam(training: Training, weights: Balancer, steps: int) -> Callable[[], None]:
    """A stretch of Adam, with new points in each step."""
    step = Step(training.residuals, training.model, weights)
    optimizer = loop.adam(step.params)
    schedule = loop.decay(optimizer)

    def stretch() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            step(training.draw())
            optimizer.step()
            schedule.step()

    return stretch


def gauss_newton(training: Training, weights: Balancer, steps: int) -> Callable[[], None]:
    """A stretch on new points, before which the optimizer itself asks for the weights."""
    optimizer = GaussNewton(training.model.parameters(), weights, max_iter=steps)

    def stretch() -> None:
        batch = training.draw()
        optimizer.step(lambda: training.residuals(batch))

    return stretch


def broyden(training: Training, weights: Balancer, steps: int) -> Callable[[], None]:
    """A stretch on new points, with constant weights and a compiled loss."""
    step = Step(training.residuals, training.model, weights, run=Recorded)
    optimizer = SSBroyden(step.params, max_iter=steps)

    def stretch() -> None:
        batch = training.draw()

        def closure() -> Tensor:
            optimizer.zero_grad()
            losses, in_force = step(batch)
            return (losses * in_force).sum()

        optimizer.step(closure)

    return stretch


OPTIMIZERS = {"Gauss–Newton": gauss_newton, "Broyden": broyden, "Adam": adam}


def main(names: list[str]) -> None:
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    name = names[0] if names else ("small" if device.type == "cpu" else "large")
    if name == "small":
        device = torch.device("cpu")
    found = report.read(PATH)
    part = found.setdefault(name, {"runs": {}})
    part.update(machine.stamp(device))
    for seed, run in product(SEEDS, SIZES[name].runs):
        seeds = part["runs"].setdefault(run.title, {})
        if str(seed) in seeds:
            continue
        seeds[str(seed)] = curve = Training(run, SIZES[name], seed, device).curve()
        last = f"{curve['off'][-1]:.1e} after {curve['seconds'][-1]:.0f} s"
        print(f"{name}, {run.title}, seed {seed}: {last}", flush=True)
        PATH.write_text(report.compact(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    main(sys.argv[1:])
