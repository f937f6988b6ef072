"""Every rule on nine problems under Adam: ``python -m benchmarks.study [PROBLEM …]``.

All rules train side by side, in stacks of networks that start alike and see the same points. What
stands in ``pinnlib/results/study.json`` is not run again, so it can be interrupted; the tables are
in ``study.md`` beside this file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine, report
from benchmarks.rivals import GROUPS, PROBLEMS, SETTINGS, TERMS, UNSEEN, WITH_TORCHJD
from pinnlib.derivatives import Model
from pinnlib.history import History
from pinnlib.loop import default_network
from pinnlib.problems import Problem
from pinnlib.recording import Recorded
from pinnlib.step import eager
from pinnlib.training import train, train_many
from pinnlib.weighting import Balancer, ResidualAttention, SideBySide

RESULTS = report.SHIPPED / "study.json"
"""In the package, so that a copy of the chapter has it."""
RESULTS_MD = Path(__file__).with_name("study.md")
SEEDS = range(500, 505)
STEPS, RECORD_EVERY = 10_000, 500
POINTS = 128


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


def run(title: str, group: str) -> list[History]:
    """Train all settings of a group at once, ``len(SEEDS)`` networks each; one by one TorchJD's."""
    problem = (PROBLEMS | UNSEEN)[title]()
    balancers = [make(problem) for make in GROUPS[group].values()]
    together = Balancer(TERMS, SideBySide(balancers, share=len(SEEDS)))
    if group == "kernels":  # random signs are measured only where both rules are due
        rules = [Balancer(TERMS, b.rule) for b in balancers]
        together = Balancer(TERMS, SideBySide(rules, share=len(SEEDS)), every=balancers[0].every)
    if group == "attention":
        problem = Attentive(problem)
    seeds = [*SEEDS] * len(balancers)
    options: dict[str, Any] = {"steps": STEPS, "n": POINTS, "record_every": RECORD_EVERY}
    if group == "torchjd":
        return [
            train(
                problem,
                default_network(problem, generator := torch.Generator().manual_seed(seed)),
                Balancer(TERMS, balancers[0].rule),
                generator=generator,
                **options,
            )
            for seed in seeds
        ]
    _, history = train_many(
        problem,
        together,
        seeds=seeds,
        run=eager if group == "attention" else Recorded,
        **options,
    )
    return [history]


def work(titles: list[str]) -> Iterator[tuple[str, str]]:
    """What has not been run: the problems of the study, then the rules on the unseen ones."""
    pairs = [(title, group) for group in GROUPS for title in PROBLEMS]
    pairs += [(title, "rules") for title in UNSEEN]
    for title, group in pairs:
        if (titles and title not in titles) or (group == "torchjd" and title not in WITH_TORCHJD):
            continue
        if not set(GROUPS[group]) <= set(results()["problems"].get(title, {})):
            yield title, group


def results() -> dict[str, Any]:
    return {"problems": {}} | report.read(RESULTS)


def main(titles: list[str]) -> None:
    for title, group in work(titles):
        histories = run(title, group)
        shape = (len(GROUPS[group]), len(SEEDS), -1)
        errors = np.stack([h.errors for h in histories]).reshape(shape)
        weights = {term: np.stack([h.weights[term] for h in histories]) for term in TERMS}
        with np.errstate(divide="ignore"):  # a rule may drop the equation altogether
            ratios = (weights["data"] / weights["pde"])[..., -1].reshape(shape[:2])
        found = results()  # again: another process may have written meanwhile
        for setting, e, w in zip(GROUPS[group], errors, ratios, strict=True):
            found["problems"].setdefault(title, {})[setting] = {
                "errors": [[report.rounded(x) for x in row] for row in e.tolist()],
                "data_over_pde": [report.rounded(x) for x in w.tolist()],
            }
        found |= machine.stamp() | {
            "steps": np.arange(RECORD_EVERY, STEPS + 1, RECORD_EVERY).tolist(),
            "seeds": [*SEEDS],
        }
        RESULTS.write_text(report.compact(found))
        print(f"{title}, {group}: {sum(h.seconds[-1] for h in histories):.0f} s", flush=True)
    RESULTS_MD.write_text(tables(results()))


def tables(found: dict[str, Any]) -> str:
    """Errors at the last step, a table for each problem."""
    text = [
        "# The study: every rule on nine problems\n\n"
        f"Relative L2 error after {STEPS} steps of Adam, least · median · worst of {len(SEEDS)} "
        "seeds, and the median weight of the data term over that of the equation at the end. "
        f"{found['machine']}, PyTorch {found['torch']}, {found['date']}."
    ]
    for title, settings in found["problems"].items():
        rows = []
        for setting in [s for s in SETTINGS if s in settings]:
            last = [row[-1] for row in settings[setting]["errors"]]
            cell = f"{min(last):.2g} · {np.median(last):.2g} · {max(last):.2g}"
            name = f"constant {setting}" if setting.isdigit() else setting
            rows.append([name, cell, f"{np.median(settings[setting]['data_over_pde']):.2g}"])
        text.append(f"## {title}\n\n{report.table(['weights', 'error', 'λ ratio'], rows)}")
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
