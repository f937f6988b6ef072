"""pinnlib's own methods for the accuracy benchmark: balanced Adam, and what may follow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy_problems import Race, Watch
from benchmarks.second_order import TERMS, Case, counted
from pinnlib import GradientBalancer, Step
from pinnlib.coefficients import coefficient
from pinnlib.optimizers import GaussNewton, SSBroyden
from pinnlib.problems import Problem
from pinnlib.recording import Recorded
from pinnlib.step import eager

torch.set_num_threads(1)

NETWORKS = {
    "Klein–Gordon": (24, 2, 1.0),
    "Helmholtz": (80, 1, 1.0),
    "Poisson": (120, 1, 5.0),
    "Burgers": (20, 3, 1.0),
    "oscillator": (30, 2, 1.0),
}
"""Width, depth and gain of the first layer, for the optimizers that know curvature."""
LARGE = 50, 3, 1.0
"""The same, for those that do not."""
ADAM_STEPS, RATE, DRAWN = 500, 5e-3, 128
"""Steps before a second-order optimizer, the rate, the points of each set that a step draws."""
FINER_AFTER, COMPILED_AFTER = 20.0, 60.0
"""Seconds without an end after which Broyden gets more points, and after which compiling pays."""
POINTS, MORE_POINTS, ROWS = 600, 1200, 1000
"""Points of the equation for Broyden, at first and later, and for Gauss–Newton."""
CANDIDATES = 10
"""Times the points that are kept, where the residual chooses."""


class Run:
    """A network, its points and its balanced steps of Adam."""

    def __init__(self, race: Race, watch: Watch, case: Case) -> None:
        self.watch, self.problem, self.case = watch, watch.problem, case
        self.generator = torch.Generator().manual_seed(race.seed)
        self.model = case.network(self.generator)
        self.counted = counted(self.model)
        self.balancer = GradientBalancer.bounded(TERMS)

    def step(self, weights: Any, how: Any = eager) -> Step:
        """The gradient of the weighted losses, those of a coefficient beside the network's."""
        return Step(
            lambda batch: self.problem.losses(self.model, batch),
            self.counted,
            weights,
            beside=self.model.parameters(),
            run=how,
        )

    def look(self) -> None:
        dtype = self.counted[0].dtype
        is_known = not self.problem.unknown
        self.watch.look(
            lambda x: self.model(x.to(dtype)).double(),
            None if is_known else lambda: coefficient(self.model, "stiffness").item(),
        )

    def draw(self, pde: int = DRAWN, each: int = DRAWN) -> dict[str, Tensor]:
        """New points of the equation, and of each condition."""
        size = {name: pde if name == "pde" else each for name in self.case.sets}
        batch = self.problem.sample(size, self.generator)
        return {name: x.to(self.counted[0]) for name, x in batch.items()}

    def many(self, pde: int) -> dict[str, Tensor]:
        """Points for many steps, fewer in one dimension; on Burgers, where residuals are large."""
        n = pde if len(self.problem.domain) > 1 else pde // 8
        batch = self.draw(n, n // 4)
        if self.watch.title == "Burgers":
            batch["pde"] = by_residual(self.problem, self.model, batch, self.generator)
        return batch

    def adam(self, steps: int) -> None:
        """Balanced steps, eager."""
        step, optimizer = self.step(self.balancer), torch.optim.Adam(self.model.parameters(), RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            step(self.draw())
            optimizer.step()
            self.look()

    def to_the_end(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Steps until the time is over, while the rate falls to a hundredth."""
        rate = optimizer.param_groups[0]["lr"]
        while True:
            optimizer.param_groups[0]["lr"] = rate * 0.01**self.watch.share
            optimizer.zero_grad()
            step(self.draw())
            optimizer.step()
            self.look()


def by_residual(
    problem: Problem, model: nn.Module, batch: Mapping[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Half of the points as they were drawn, half of many candidates by their residuals."""
    n = len(batch["pde"])
    drawn = problem.sample(CANDIDATES * n, generator)["pde"].to(batch["pde"])
    with torch.no_grad():
        size = problem.residuals(model, {**batch, "pde": drawn})["pde"].abs().flatten()
    chosen = torch.multinomial(size, n - n // 2, generator=generator)
    return torch.cat([batch["pde"][: n // 2], drawn[chosen]])


def case_of(title: str, problem: Problem) -> Case:
    return Case(problem, *NETWORKS[title], {})


def adam(race: Race, watch: Watch) -> None:
    """Balanced Adam to the end, compiled, in single precision; its rate falls to a hundredth."""
    run = Run(race, watch, Case(watch.problem, *LARGE, {}))
    run.model.float()
    step = run.step(run.balancer, Recorded)
    with watch.compilation():
        for _ in range(2):  # a step that asks the rule, and one that does not
            step(run.draw())
    run.to_the_end(step, torch.optim.Adam(run.model.parameters(), RATE, fused=True))


def broyden(race: Race, watch: Watch) -> None:
    """Weights held after Adam, then self-scaled Broyden; new points every 200 steps."""
    run = Run(race, watch, case_of(race.problem, watch.problem))
    run.adam(ADAM_STEPS)
    weights = dict(run.balancer.by_term())
    step, optimizer = run.step(weights), SSBroyden(run.model.parameters(), max_iter=200)
    is_compiled = False
    while True:
        batch = run.many(POINTS if watch.seconds < FINER_AFTER else MORE_POINTS)
        if not is_compiled and watch.seconds > COMPILED_AFTER:
            is_compiled, step = True, run.step(weights, Recorded)
            with watch.compilation():
                step(batch)

        def closure(step: Step = step, batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            losses, weights = step(batch)
            return losses @ weights.to(losses)

        optimizer.step(closure)
        run.look()


def gauss_newton(race: Race, watch: Watch) -> None:
    """Weights held after Adam, then Gauss–Newton; new points every 20 steps."""
    run = Run(race, watch, case_of(race.problem, watch.problem))
    run.adam(ADAM_STEPS)
    optimizer = GaussNewton(run.model.parameters(), dict(run.balancer.by_term()), max_iter=20)
    while True:
        batch = run.many(ROWS)
        optimizer.step(lambda batch=batch: run.problem.term_residuals(run.model, batch))
        run.look()
