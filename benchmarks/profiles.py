"""Where a step's time goes: the operations called, and the matrix products among them.

A step that computes the same derivatives needs about the same matrix products, whoever calls them:
the time they take is a floor that neither compiling nor balancing can go below.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import ENTRIES
from benchmarks.task import make_task
from benchmarks.worker import Worker, workers

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
ROUNDS = 15


def measure(points: dict[str, int]) -> dict[str, Any]:
    """Operations, matrix products and milliseconds in these, a step of each PyTorch contestant."""
    task = make_task("Helmholtz", points)
    results = {}
    for name, entry in ENTRIES.items():
        if not name.startswith(("JAX", "balanced, compiled, C++")):  # one call, not operations
            with workers({name: entry}, task) as started:
                results[name] = look(started[name])
    return {"points": points, "contestants": results}


def look(worker: Worker) -> dict[str, Any]:
    worker.ask("steps", 20)
    ms = median(1e3 * worker.ask("steps", 20) / 20 for _ in range(ROUNDS))
    counts = [worker.ask("profile") for _ in range(ROUNDS)]
    operations, products, _ = counts[-1]
    return {
        "operations": operations,
        "products": products,
        "products_ms": float(f"{median(1e3 * seconds for *_, seconds in counts):.3g}"),
        "ms": float(f"{ms:.3g}"),
    }


class Profiled:
    """A contestant of PyTorch, which its profiler can take apart."""

    steps: Callable[[int], float]

    def profile(self) -> tuple[int, int, float]:
        """Operations, matrix products among them, and the seconds in these, of a single step.

        As the difference of three steps and two: what happens once a call cancels.
        """
        from torch.profiler import ProfilerActivity, profile

        looks = []
        for n in (2, 3):
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                self.steps(n)
            events = profiler.events()
            products = [event for event in events if event.name in PRODUCTS]
            seconds = 1e-6 * sum(event.cpu_time_total for event in products)
            looks.append((sum(map(outermost, events)), len(products), seconds))
        return tuple(three - two for two, three in zip(*looks, strict=True))


def outermost(event: FunctionEvent) -> bool:
    """Whether this is an operation that no other operation called."""
    if not event.name.startswith("aten::"):
        return False
    parent = event.cpu_parent
    while parent is not None and not parent.name.startswith("aten::"):
        parent = parent.cpu_parent
    return parent is None
