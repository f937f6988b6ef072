"""Time of one training step: the same Helmholtz step for all contestants, checked, then timed."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.contestants import ENTRIES, EXACT, EXACT_BALANCED, Entry
from benchmarks.task import Array, Task, make_task
from benchmarks.worker import Worker, workers

SIZES = {
    "small": {"boundary": 128, "pde": 512},
    "large": {"boundary": 400, "pde": 2000},
}


def measure(rounds: int = 9, seconds: float = 0.5) -> dict[str, Any]:
    """Milliseconds a step for each size and contestant, with the spread over the rounds."""
    return {
        size: {"points": counts, "steps": measure_size(counts, rounds, seconds)}
        for size, counts in SIZES.items()
    }


def measure_size(counts: dict[str, int], rounds: int, seconds: float) -> dict[str, Any]:
    task = make_task("Helmholtz", counts)
    exact = follow(EXACT, task)
    exact_balanced = follow(EXACT_BALANCED, task)
    with workers(ENTRIES, task) as started:
        checks = {}
        for name, entry in ENTRIES.items():
            checks[name] = check(
                name, started[name], exact_balanced if entry.balanced else exact, entry.balanced
            )
        times = interleave(started, rounds, seconds)
    return {
        name: {
            "balanced": ENTRIES[name].balanced,
            "ms": spread(1e3 * times[name]),
            "of_plain": spread(times[name] / times["PyTorch, nested"]),
            "of_best": spread(times[name] / times[BEST]),
            **checks[name],
        }
        for name in ENTRIES
    }


BEST = "balanced, pinnlib"
"""The contestant that the others are compared with."""
CHECKED_STEPS = 10


def follow(entry: Entry, task: Task) -> tuple[float, Array, Array]:
    """Loss and gradient at the start, and how far the parameters have moved some steps later."""
    with workers({"": entry}, task) as started:
        return look(started[""])


def look(worker: Worker) -> tuple[float, Array, Array]:
    start = worker.ask("parameters")
    loss, gradient = worker.ask("loss_and_gradient")
    worker.ask("steps", CHECKED_STEPS)
    return loss, gradient, worker.ask("parameters") - start


def check(
    name: str, worker: Worker, exact: tuple[float, Array, Array], balanced: bool
) -> dict[str, float]:
    """Relative errors of loss, gradient and first steps against double precision; all are small."""
    errors = {
        what: float(np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b))
        for what, a, b in zip(("loss_error", "gradient_error", "steps_error"), look(worker), exact)
    }
    if balanced:  # its gradient is that of changing weights, seen in its first steps
        del errors["gradient_error"]
    if max(errors.values()) > 1e-3:
        raise RuntimeError(f"{name} does not do the same as the others: {errors}")
    return errors


def interleave(started: dict[str, Worker], rounds: int, seconds: float) -> dict[str, Array]:
    """Seconds a step, one value a round: in each round every contestant has its turn."""
    blocks = {}
    for name, worker in started.items():  # warm up, and find out how many steps fill a turn
        worker.ask("steps", 20)
        blocks[name] = max(5, int(seconds * 20 / worker.ask("steps", 20)))
    times: dict[str, list[float]] = {name: [] for name in started}
    for _ in range(rounds):
        for name, worker in started.items():
            times[name].append(worker.ask("steps", blocks[name]) / blocks[name])
    return {name: np.array(values) for name, values in times.items()}


def spread(values: Array) -> list[float]:
    """Median, least and greatest, to four digits."""
    return [float(f"{v:.4g}") for v in (np.median(values), np.min(values), np.max(values))]
