"""Weights under a second-order optimizer: ``python -m benchmarks.second_order [NAME …]``.

NAME is ``gauss_newton`` or ``broyden``, both by default. Each run is 500 steps of Adam and then
stretches of the optimizer, each on new points; the error after each is recorded. It can be
interrupted: what stands in ``pinnlib/results/NAME.json`` is not run again. Last, a stretch is
timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine, report
from pinnlib.coefficients import WithCoefficients
from pinnlib.derivatives import taylor
from pinnlib.evaluation import ErrorOnGrid
from pinnlib.gradients import gradient_rows
from pinnlib.networks import MLP
from pinnlib.optimizers import GaussNewton, SSBroyden
from pinnlib.problems import Helmholtz, KleinGordon, Poisson, Problem
from pinnlib.recording import Recorded
from pinnlib.weighting import Balancer, GradientBalancer

SEEDS = range(8)
CONSTANTS = [1.0, 10.0, 100.0, 1000.0]
COLLAPSED = 1e5
"""The weight that the simplified rule freezes on Helmholtz: one of the PDE term of 1e-5."""
RULES = ["held", "renewed"]
SETTINGS = [*(f"{value:g}" for value in [*CONSTANTS, COLLAPSED]), *RULES]
"""A constant weight of the data term, or what becomes of the rule's weights after Adam."""
TERMS = ("data", "pde")
ADAM_STEPS, RATE = 500, 5e-3
POINTS, ON_EACH_SET = 1000, 250
MEASURED = {"observed", "values"}
"""What is not drawn, but stays."""
Batch = dict[str, Tensor]


class Case:
    """A problem with a network for it, chosen on other seeds, and how many stretches it is given.

    Args:
        problem: its unknown coefficients, if any, are trained beside the network.
        width: neurons a layer.
        depth: hidden layers.
        gain: factor of the first layer's initial weights.
        stretches: by optimizer.
    """

    def __init__(
        self, problem: Problem, width: int, depth: int, gain: float, stretches: dict[str, int]
    ) -> None:
        self.problem = problem
        self.width, self.depth, self.gain, self.stretches = width, depth, gain, stretches
        self.sets = set(problem.sample(8, torch.Generator())) - MEASURED

    def network(self, generator: torch.Generator) -> MLP | WithCoefficients:
        model = MLP(self.problem.domain, self.width, self.depth, generator=generator).double()
        with torch.no_grad():
            next(model.parameters()).mul_(self.gain)
        unknown = self.problem.unknown
        return WithCoefficients(model, **unknown) if unknown else model

    def draw(self, generator: torch.Generator) -> Batch:
        size = {name: POINTS if name == "pde" else ON_EACH_SET for name in self.sets}
        return {k: x.double() for k, x in self.problem.sample(size, generator).items()}


CASES = {
    "Klein–Gordon": Case(
        KleinGordon(derivatives=taylor), 24, 2, 1.0, {"gauss_newton": 7, "broyden": 15}
    ),
    "Helmholtz": Case(
        Helmholtz(derivatives=taylor), 80, 1, 1.0, {"gauss_newton": 18, "broyden": 15}
    ),
    "Poisson": Case(Poisson(derivatives=taylor), 120, 1, 5.0, {"gauss_newton": 14, "broyden": 15}),
}


def counted(model: MLP | WithCoefficients) -> list[Tensor]:
    """The parameters that the balancer sees: no coefficients."""
    network = model.model if isinstance(model, WithCoefficients) else model
    return list(network.parameters())


def balancer_of(setting: str) -> Balancer:
    """A constant weight of the data term, or the rule whose bounds keep weights from collapsing."""
    if setting not in RULES:
        return Balancer(TERMS, {"data": float(setting), "pde": 1.0})
    return GradientBalancer.bounded(TERMS)


def renewed(balancer: Balancer) -> Balancer:
    """The same rule, from where it is, asked at every step."""
    often = Balancer(balancer.terms, balancer.rule)
    often.load_state_dict(balancer.state_dict())
    return often


class Runner:
    """One network, whose compiled loss serves every seed and setting of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model = case.network(torch.Generator().manual_seed(0))
        self.params = list(self.model.parameters())
        self.counted = counted(self.model)
        self.error = ErrorOnGrid(case.problem, dtype=torch.float64)
        self.total, self.rows = Recorded(self._total), Recorded(self._rows)

    def _total(self, batch: Batch, weights: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        losses = self.case.problem.losses(self.model, batch)
        loss = (torch.stack(list(losses.values())) * weights).sum()
        return loss, torch.autograd.grad(loss, self.params)

    def _rows(self, batch: Batch) -> Tensor:
        losses = self.case.problem.losses(self.model, batch).values()
        G, _ = gradient_rows([([loss], None) for loss in losses], self.counted)
        return G

    def backward(self, batch: Batch, weights: Tensor) -> Tensor:
        """Write the gradients of the weighted loss, and return it."""
        loss, gradients = self.total(batch, weights)
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = g
        return loss

    def run(self, name: str, setting: str, seed: int) -> tuple[list[float], float, list[float]]:
        """One training: the error after Adam and after each stretch, the weight, the seconds."""
        generator = torch.Generator().manual_seed(seed)
        self.model.load_state_dict(self.case.network(generator).state_dict())
        balancer = balancer_of(setting)
        adam = torch.optim.Adam(self.params, lr=RATE)
        times = [time.perf_counter()]
        for _ in range(ADAM_STEPS):
            batch = self.case.draw(generator)
            self.backward(batch, balancer.update(self.rows(batch)))
            adam.step()
        times.append(time.perf_counter())
        errors = [self.error(self.model).item()]
        if setting == "renewed":
            balancer = renewed(balancer)
        else:
            balancer = Balancer(TERMS, dict(balancer.by_term()))
        stretch = STRETCHES[name](self, balancer)
        for _ in range(self.case.stretches[name]):
            stretch(self.case.draw(generator))
            times.append(time.perf_counter())
            errors.append(self.error(self.model).item())
        data, pde = balancer.weights.tolist()
        return errors, data / pde, np.diff(times).tolist()


def gauss_newton(runner: Runner, balancer: Balancer) -> Callable[[Batch], object]:
    """A stretch of 20 steps, for which the optimizer asks the balancer itself."""
    optimizer = GaussNewton(runner.params, balancer, max_iter=20)
    problem, model = runner.case.problem, runner.model
    return lambda batch: optimizer.step(lambda: problem.term_residuals(model, batch))


def broyden(runner: Runner, balancer: Balancer) -> Callable[[Batch], object]:
    """A stretch of 200 steps, with the balancer asked at its start."""
    optimizer = SSBroyden(runner.params, max_iter=200)

    def stretch(batch: Batch) -> object:
        weights = balancer.update(runner.rows(batch))
        return optimizer.step(lambda: runner.backward(batch, weights))

    return stretch


STRETCHES = {"gauss_newton": gauss_newton, "broyden": broyden}


def study(
    name: str,
    found: dict[str, Any],
    save: Callable[[], None],
    cases: Mapping[str, Case],
    seeds: Iterable[int],
    settings: Iterable[str],
) -> None:
    """Run what is missing, seed after seed."""
    runners: dict[str, Runner] = {}
    for seed, title, setting in product(map(str, seeds), cases, settings):
        errors, weights = (
            found[key].setdefault(title, {}).setdefault(setting, {})
            for key in ("errors", "weights")
        )
        if seed in errors:
            continue
        if title not in runners:
            runners[title] = Runner(cases[title])
        end, weight, _ = runners[title].run(name, setting, int(seed))
        errors[seed], weights[seed] = [report.rounded(x) for x in end], report.rounded(weight)
        print(f"{name}, {title}, {setting}, seed {seed}: {errors[seed][-1]:.1e}", flush=True)
        save()


def timing(name: str, found: dict[str, Any], save: Callable[[], None]) -> None:
    """Seconds of the 500 steps of Adam, and of a stretch, with everything compiled."""
    for title, case in CASES.items():
        runner = Runner(case)
        runner.run(name, "held", SEEDS[0])
        _, _, (adam, *stretches) = runner.run(name, "held", SEEDS[0])
        seconds = {
            "adam": report.rounded(adam),
            "stretch": report.rounded(float(np.median(stretches))),
        }
        found["seconds"][title] = seconds
        print(f"{name}, {title}: {seconds}", flush=True)
        save()


def main(names: list[str]) -> None:
    for name in names or STRETCHES:
        path = report.SHIPPED / f"{name}.json"
        found = {"errors": {}, "weights": {}, "seconds": {}} | report.read(path)

        def save(path: Path = path, found: dict[str, Any] = found) -> None:
            found.update(machine.stamp())
            path.write_text(report.compact(found))

        study(name, found, save, CASES, SEEDS, SETTINGS)
        timing(name, found, save)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
