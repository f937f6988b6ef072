"""Error against seconds: ``python -m benchmarks.accuracy [--hours H] [PROBLEM …] [METHOD …]``.

Each run has a process of its own, with one thread. Names that follow are those of problems and of
methods, and leave out all others. What stands in ``pinnlib/results/accuracy.json`` is not run
again, so it can be interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks import accuracy_report, machine, report
from benchmarks.accuracy_problems import PROBLEMS, TARGETS, FinishedError, Race, Watch
from benchmarks.accuracy_report import OURS
from benchmarks.contestants import Entry
from benchmarks.worker import Worker

RESULTS = report.SHIPPED / "accuracy.json"
WEIGHTS = dict.fromkeys(PROBLEMS, (1.0, 10.0, 100.0)) | {"oscillator": (1e2, 1e4, 1e6)}
"""Of the data term, for methods that do not balance; the oscillator is known to need large ones."""
SEEDS, TUNING_SEED, TUNING_LIMIT = (1, 2, 3), 100, 60.0
"""Ours were set up with seed 0, which does not count."""
LIMIT, OUR_LIMIT = 300.0, 180.0
METHODS = {
    "balanced Adam": "accuracy_ours.adam",
    "SSBroyden": "accuracy_ours.broyden",
    "GaussNewton": "accuracy_ours.gauss_newton",
    "random features": "accuracy_rivals.features",
    "DeepXDE, L-BFGS": "accuracy_deepxde.lbfgs",
    "DeepXDE, NNCG": "accuracy_deepxde.nncg",
    "PINA, L-BFGS": "accuracy_pina.lbfgs",
    "SOAP": "accuracy_rivals.soap",
}


class Racer:
    """A method in the process of a :class:`Worker`."""

    def __init__(self, race: Race) -> None:
        self.race = race

    def run(self) -> dict[str, Any]:
        import_module("torch._dynamo")  # which optimizers load: imports are not timed
        module, name = METHODS[self.race.method].split(".")
        method = getattr(import_module(f"benchmarks.{module}"), name)
        watch = Watch(self.race.problem, self.race.limit)
        with contextlib.suppress(FinishedError):
            method(self.race, watch)
        reached = accuracy_report.first_times(
            # One step may take minutes: what arrives that much too late does not count.
            [(row[0], watch.goal(row)) for row in watch.history if row[0] < 1.05 * watch.limit],
            TARGETS[self.race.problem],
        )
        return {
            "weight": self.race.weight,
            "compiling": report.rounded(watch.compiling),
            "reached": [None if t is None else report.rounded(t) for t in reached],
            "history": accuracy_report.thinned(watch.history),
        }


def run(race: Race) -> dict[str, Any]:
    """In a fresh process that has compiled nothing before."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        worker = Worker(Entry("benchmarks.accuracy.Racer", {}), race)
        try:
            found: dict[str, Any] = worker.ask("run")
        finally:
            worker.close()
    return found


def plan() -> list[tuple[str, str, int]]:
    """Ours first, then the others, then the other seeds."""
    groups = [OURS, [name for name in METHODS if name not in OURS]]
    first = [(p, m, SEEDS[0]) for group in groups for p in PROBLEMS for m in group]
    return first + [(p, m, seed) for seed in SEEDS[1:] for p in PROBLEMS for m in METHODS]


def tuned(found: dict[str, Any], save: Callable[[], None], problem: str, method: str) -> float:
    """The weight with the least error on another seed, after a minute."""
    if method in OURS:
        return 1.0
    ends: dict[str, float] = found["tuning"].setdefault(problem, {}).setdefault(method, {})
    for weight in WEIGHTS[problem]:
        if f"{weight:g}" not in ends:
            end = run(Race(problem, method, TUNING_SEED, weight, TUNING_LIMIT))["history"][-1]
            ends[f"{weight:g}"] = end[1]
            print(f"tuning, {problem}, {method}, {weight:g}: {end}", flush=True)
            save()
    return float(min(ends, key=lambda weight: ends[weight]))


def compete(
    found: dict[str, Any],
    save: Callable[[], None],
    names: list[str],
    hours: float = math.inf,
) -> None:
    """Run what is missing, until the time is over."""
    until = time.monotonic() + 3600 * hours
    problems = [name for name in names if name in PROBLEMS] or list(PROBLEMS)
    methods = [name for name in names if name in METHODS] or list(METHODS)
    for problem, method, seed in plan():
        runs = found["runs"].setdefault(problem, {}).setdefault(method, {})
        if problem not in problems or method not in methods or str(seed) in runs:
            continue
        if time.monotonic() > until:
            return
        limit = OUR_LIMIT if method in OURS else LIMIT
        try:
            weight = tuned(found, save, problem, method)
            runs[str(seed)] = run(Race(problem, method, seed, weight, limit))
        except RuntimeError as error:  # it is tried again next time
            print(f"{problem}, {method}, {seed} failed: {error}", flush=True)
            continue
        end = runs[str(seed)]["history"][-1]
        print(f"{problem}, {method}, {seed}: {runs[str(seed)]['reached']}, {end}", flush=True)
        save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.accuracy")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--hours", type=float, default=math.inf)
    options = parser.parse_args()
    if unknown := set(options.names) - set(PROBLEMS) - set(METHODS):
        parser.error(f"{sorted(unknown)}: choose from {[*PROBLEMS, *METHODS]}")
    found: dict[str, Any] = {"tuning": {}, "runs": {}} | report.read(RESULTS)

    def save() -> None:
        found.update(machine.stamp() | {"versions": machine.versions()})
        aside = RESULTS.with_suffix(".part")
        aside.write_text(report.compact(found))
        aside.replace(RESULTS)
        accuracy_report.write(found)

    compete(found, save, options.names, options.hours)


if __name__ == "__main__":
    main()
