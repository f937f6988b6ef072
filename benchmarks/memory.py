"""Peak memory of a training step: the most that PyTorch holds at once, beyond what it held before.

Each contestant runs in a process of its own, and the profiler reports every allocation.
"""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import ENTRIES
from benchmarks.task import make_task
from benchmarks.worker import workers

CONTESTANTS = [name for name in ENTRIES if name.startswith(("plain", "balanced"))]


def measure(points: dict[str, int]) -> dict[str, Any]:
    """Peak MiB of a step after two others, and its ratio to that of the plain step."""
    task = make_task("Helmholtz", points)
    peaks = {}
    for name in CONTESTANTS:
        with workers({name: ENTRIES[name]}, task) as started:
            started[name].ask("steps", 2)
            peaks[name] = started[name].ask("peak_bytes")
    return {
        "points": points,
        "contestants": {
            name: {
                "mib": float(f"{peak / 2**20:.3g}"),
                "of_plain": float(f"{peak / peaks['plain, nested']:.3g}"),
            }
            for name, peak in peaks.items()
        },
    }
