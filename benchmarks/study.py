"""Every rule on nine problems under Adam: ``python -m benchmarks.study [PROBLEM …]``.

All rules train side by side, in stacks of networks that start alike and see the same points. What
stands in ``pinnlib/results/study.json`` is not run again, so it can be interrupted; the tables are
in ``study.md`` beside this file.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import machine, report
from pinnlib.coefficients import WithCoefficients
from pinnlib.derivatives import Model, taylor
from pinnlib.history import History
from pinnlib.networks import MLP
from pinnlib.problems import (
    AllenCahn,
    Burgers,
    Heat,
    Helmholtz,
    KleinGordon,
    Oscillator,
    Poisson,
    Problem,
    Wave,
)
from pinnlib.recording import Recorded
from pinnlib.step import eager
from pinnlib.training import train_many
from pinnlib.weighting import (
    Balancer,
    ConFIG,
    Follow,
    GradientBalancer,
    KernelTrace,
    ReLoBRaLo,
    ResidualAttention,
    SideBySide,
    SoftAdapt,
    Uncertainty,
)

RESULTS = Path(__file__).parent.parent / "pinnlib" / "results" / "study.json"
"""In the package, so that a copy of the chapter has it."""
TERMS = ("data", "pde")
SEEDS = range(500, 505)
STEPS, RECORD_EVERY = 10_000, 500
POINTS = 128
CONSTANTS = ["1", "10", "100", "1000", "10000"]
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "Klein–Gordon": lambda: KleinGordon(derivatives=taylor),
    "Helmholtz": lambda: Helmholtz(derivatives=taylor),
    "Poisson 1D": lambda: Poisson(dimension=1, derivatives=taylor),
    "Poisson 2D": lambda: Poisson(dimension=2, derivatives=taylor),
    "Burgers": lambda: Burgers(derivatives=taylor),
    "Allen–Cahn": lambda: AllenCahn(derivatives=taylor),
    "wave": lambda: Wave(derivatives=taylor),
    "inverse heat": lambda: Heat(derivatives=taylor),
    "oscillator": lambda: Oscillator(derivatives=taylor),
}


def network(problem: Problem, generator: torch.Generator) -> nn.Module:
    model = MLP(problem.domain, generator=generator)
    return WithCoefficients(model, **problem.unknown) if problem.unknown else model


def journal(problem: Problem) -> Balancer:
    model = MLP(problem.domain, generator=torch.Generator())
    return GradientBalancer.journal(named_params=model.named_parameters())


def constant(value: str) -> Callable[[Problem], Balancer]:
    return lambda _: Balancer(TERMS, {"data": float(value), "pde": 1.0})


def kernel(exponent: float) -> Callable[[Problem], Balancer]:
    rule = Follow(KernelTrace(exponent=exponent), alpha=0.1, warm_start=True)
    return lambda _: Balancer(TERMS, rule, every=10)


SIDE_BY_SIDE: dict[str, Callable[[Problem], Balancer]] = {
    **{value: constant(value) for value in CONSTANTS},
    "bounded": lambda _: GradientBalancer.bounded(),
    "bounded, ×/÷ 30": lambda _: GradientBalancer.bounded(bounds=(1 / 30, 30.0)),
    "simplified": lambda _: GradientBalancer.simplified(),
    "simplified, bounded": lambda _: GradientBalancer.simplified(
        warm_start=True, bounds=(0.1, 10.0)
    ),
    "preprint": lambda _: GradientBalancer.preprint(),
    "journal": journal,
    "jaxpi": lambda _: GradientBalancer.jaxpi(),
    "ConFIG": lambda _: Balancer(TERMS, ConFIG()),
    "SoftAdapt": lambda _: Balancer(TERMS, SoftAdapt(normalized=True, loss_weighted=True)),
    "ReLoBRaLo": lambda _: Balancer(TERMS, ReLoBRaLo()),
    "uncertainty": lambda _: Balancer(TERMS, Uncertainty()),
}
"""In one stack, with the gradient matrix measured at every step."""
KERNELS = {"kernel": kernel(1.0), "kernel, γ = ½": kernel(0.5)}
"""In a stack of their own: no other rule looks at random signs of residuals."""
ATTENTION = {"attention": constant("1"), "attention, bounded": SIDE_BY_SIDE["bounded"]}
"""On fixed points, with a weight for each point of the equation."""
GROUPS = {"rules": SIDE_BY_SIDE, "kernels": KERNELS, "attention": ATTENTION}
SETTINGS = [name for group in GROUPS.values() for name in group]


class Attentive(Problem):
    """A problem whose residuals of the equation are weighted point by point, on fixed points."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.variables, self.domain, self.terms = problem.variables, problem.domain, problem.terms
        self.unknown, self.reference = problem.unknown, problem.reference
        self.attention: dict[tuple[int, ...], ResidualAttention] = {}
        self.fixed: dict[torch.Generator, dict[str, Tensor]] = {}

    def sample(
        self, n: int | Mapping[str, int], generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        if generator not in self.fixed:
            self.fixed[generator] = dict(self.problem.sample(n, generator))
        return self.fixed[generator]

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = dict(self.problem.residuals(model, batch))
        names = list(self.terms["pde"])
        terms = {"pde": [found[name] for name in names]}
        shape = tuple(terms["pde"][0].shape)
        attention = self.attention.setdefault(shape, ResidualAttention(terms))
        weighted = attention(terms)["pde"]
        return found | dict(zip(names, weighted, strict=True))


class Shared:
    """Draws the points of a seed once a step, for all settings that train on them."""

    def __init__(self, problem: Problem, users: int) -> None:
        self.problem, self.users = problem, users
        self.drawn: dict[int, Mapping[str, Tensor]] = {}
        self.left: dict[int, int] = {}

    def __call__(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        seed = generator.initial_seed()
        if not self.left.get(seed):
            self.drawn[seed] = self.problem.sample(POINTS, generator)
            self.left[seed] = self.users
        self.left[seed] -= 1
        return self.drawn[seed]


def run(title: str, group: str) -> History:
    """Train all settings of a group at once, ``len(SEEDS)`` networks each."""
    problem = PROBLEMS[title]()
    balancers = [make(problem) for make in GROUPS[group].values()]
    together = Balancer(TERMS, SideBySide(balancers, share=len(SEEDS)))
    is_fixed = group == "attention"
    if group == "kernels":  # random signs are measured only where both rules are due
        rules = [Balancer(TERMS, b.rule) for b in balancers]
        together = Balancer(TERMS, SideBySide(rules, share=len(SEEDS)), every=balancers[0].every)
    problem = Attentive(problem) if is_fixed else problem
    _, history = train_many(
        problem,
        together,
        seeds=[*SEEDS] * len(balancers),
        steps=STEPS,
        sample=Shared(problem, len(balancers)),
        network=lambda g: network(problem, g),
        record_every=RECORD_EVERY,
        run=eager if is_fixed else Recorded,
    )
    return history


def results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"problems": {}}


def main(titles: list[str]) -> None:
    for group in GROUPS:
        for title in titles or PROBLEMS:
            if set(GROUPS[group]) <= set(results()["problems"].get(title, {})):
                continue
            history = run(title, group)
            errors = history.errors.reshape(len(GROUPS[group]), len(SEEDS), -1)
            ratios = history.weights["data"][:, -1] / history.weights["pde"][:, -1]
            found = results()  # again: another process may have written meanwhile
            for setting, e, w in zip(
                GROUPS[group], errors, ratios.reshape(len(GROUPS[group]), -1), strict=True
            ):
                found["problems"].setdefault(title, {})[setting] = {
                    "errors": [[report.rounded(x) for x in row] for row in e.tolist()],
                    "data_over_pde": [report.rounded(x) for x in w.tolist()],
                }
            found |= {
                "date": datetime.date.today().isoformat(),
                "machine": machine.in_words(),
                "torch": torch.__version__,
                "steps": np.arange(RECORD_EVERY, STEPS + 1, RECORD_EVERY).tolist(),
                "seeds": [*SEEDS],
            }
            RESULTS.write_text(report.compact(found))
            seconds = history.seconds[-1]
            print(f"{title}, {group}: {seconds:.0f} s of steps", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
