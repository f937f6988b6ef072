"""Time to a fixed error on Klein–Gordon: the same network, start and fixed points for all."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from benchmarks.contestants import ENTRIES
from benchmarks.task import Array, Task, make_task
from benchmarks.worker import Worker, workers

POINTS = {"boundary": 128, "initial": 128, "pde": 512}
TARGETS = [0.1, 0.05]
RUNS = [
    ("balanced, nested", None),
    ("balanced, compiled", None),
    ("plain, compiled", 1.0),
    ("plain, compiled", 100.0),
    ("plain, nested", 100.0),
    ("DeepXDE", 1.0),
    ("DeepXDE", 100.0),
    ("PINA", 1.0),
    ("PINA", 100.0),
    ("JAX, jvp of jvp", 1.0),
    ("JAX, jvp of jvp", 100.0),
]
"""Contestant, and its constant weight of the data term (DeepXDE's Helmholtz demo uses 100)."""


def measure(
    seeds: tuple[int, ...] = (0, 1, 2), budget: float = 40.0, every: int = 50
) -> dict[str, Any]:
    """Training seconds until the relative L2 error is first below each target, by seed.

    ``None``: not within the budget. Evaluation, start and compilation are not in the seconds.
    """
    results = []
    for name, data_weight in RUNS:
        seconds, errors = [], []
        for seed in seeds:
            task = make_task("KleinGordon", POINTS, data_weight=data_weight or 1.0, seed=seed)
            with workers({name: ENTRIES[name]}, task) as started:
                reached, error = race(started[name], task, budget, every)
            seconds.append(reached)
            errors.append(error)
        row = {"contestant": name, "data_weight": data_weight, "seconds": seconds, "last": errors}
        print(json.dumps(row), flush=True)
        results.append(row)
    return {
        "points": POINTS,
        "targets": TARGETS,
        "budget": budget,
        "seeds": list(seeds),
        "runs": results,
    }


def race(worker: Worker, task: Task, budget: float, every: int) -> tuple[list[float | None], float]:
    """Seconds at which each target was reached, and the last error."""
    worker.ask("steps", 1)  # compiles, where there is something to compile
    grid, exact = reference(task.problem)
    reached: list[float | None] = [None] * len(TARGETS)
    seconds, error = 0.0, np.inf
    while seconds < budget and None in reached:
        seconds += worker.ask("steps", every)
        error = np.linalg.norm(worker.ask("predict", grid) - exact) / np.linalg.norm(exact)
        for i, target in enumerate(TARGETS):
            if reached[i] is None and error < target:
                reached[i] = round(seconds, 2)
    return reached, float(f"{error:.3g}")


def reference(problem_name: str) -> tuple[Array, Array]:
    import pinnlib.problems

    problem = getattr(pinnlib.problems, problem_name)()
    grid = problem.grid(100)
    return grid.numpy(), problem.exact(grid).numpy()
