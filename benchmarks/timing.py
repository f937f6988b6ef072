"""Timing in turns: whatever slows the machine for a while then slows all contestants alike."""

from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

Run = Callable[[int], float]
"""Takes a number of steps, returns the seconds they took."""


def interleave(
    runs: Mapping[str, Run], rounds: int, seconds: float
) -> dict[str, NDArray[np.float64]]:
    """Seconds a step, one value a round; in each round all take a turn of about ``seconds``."""
    blocks = {}
    for name, run in runs.items():
        run(5)  # warm up: the first step may compile
        blocks[name] = max(2, round(seconds * 5 / run(5)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(run(blocks[name]) / blocks[name])
    return {name: np.array(values) for name, values in times.items()}


def spread(values: NDArray[np.float64]) -> list[float]:
    """Median, lower and upper quartile, to three digits."""
    return [float(f"{v:.3g}") for v in np.quantile(values, [0.5, 0.25, 0.75])]


def stepper(step: Callable[[], object]) -> Run:
    """A function that takes one step, as one that takes and times several."""

    def steps(n: int) -> float:
        start = perf_counter()
        for _ in range(n):
            step()
        return perf_counter() - start

    return steps


def slope(x: list[float], y: list[float]) -> float:
    """Exponent p of the power law y ∝ x^p that fits best."""
    return float(f"{np.polyfit(np.log(x), np.log(y), 1)[0]:.2f}")
