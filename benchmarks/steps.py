"""Time of one training step: the same Helmholtz step for all contestants, checked, then timed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.contestants import ENTRIES, EXACT, EXACT_BALANCED, Entry
from benchmarks.task import Array, Task, make_task
from benchmarks.timing import interleave, spread
from benchmarks.worker import Worker, workers

SMALL = {"boundary": 128, "pde": 512}
LARGE = {"boundary": 400, "pde": 2000}
PLAIN, OURS = "plain, nested", "balanced, compiled"
"""The two contestants that all are compared with."""
CHECKED_STEPS = 10


def measure(points: dict[str, int], rounds: int = 15, seconds: float = 0.2) -> dict[str, Any]:
    """Milliseconds a step and ratios for each contestant: median and quartiles over the rounds."""
    task = make_task("Helmholtz", points)
    exact = {balanced: follow(entry, task) for balanced, entry in REFERENCES.items()}
    with workers(ENTRIES, task) as started:
        errors = {
            name: check(name, started[name], exact[entry.balanced], entry.balanced)
            for name, entry in ENTRIES.items()
        }
        runs = {name: partial(worker.ask, "steps") for name, worker in started.items()}
        times = interleave(runs, rounds, seconds)
    return {
        "points": points,
        "rounds": rounds,
        "contestants": {
            name: {
                "ms": spread(1e3 * times[name]),
                "of_plain": spread(times[name] / times[PLAIN]),
                "of_ours": spread(times[name] / times[OURS]),
                "errors": errors[name],
            }
            for name in ENTRIES
        },
    }


REFERENCES = {False: EXACT, True: EXACT_BALANCED}


def follow(entry: Entry, task: Task) -> tuple[float, Array, Array]:
    with workers({"reference": entry}, task) as started:
        return look(started["reference"])


def look(worker: Worker) -> tuple[float, Array, Array]:
    """Loss and gradient at the start, and how far some steps move the parameters."""
    start = worker.ask("parameters")
    loss, gradient = worker.ask("loss_and_gradient")
    worker.ask("steps", CHECKED_STEPS)
    return loss, gradient, worker.ask("parameters") - start


def check(
    name: str, worker: Worker, exact: tuple[float, Array, Array], balanced: bool
) -> dict[str, float]:
    """Relative errors against double precision; a RuntimeError if one is not small."""
    errors = {
        what: float(f"{np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b):.1e}")
        for what, a, b in zip(("loss", "gradient", "steps"), look(worker), exact, strict=True)
    }
    if balanced:  # its gradient depends on weights that move: the steps are checked instead
        del errors["gradient"]
    if not max(errors.values()) < 1e-3:
        raise RuntimeError(f"{name} does not do what the others do: {errors}")
    return errors
