"""Self-scaled Broyden on more problems: ``python -m benchmarks.second_order_more``.

They are those of the study that :mod:`benchmarks.second_order` leaves out. A run is as there, with
fewer seeds and stretches. What stands in ``pinnlib/results/second_order.json`` is not run again,
so it can be interrupted.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import machine, report
from benchmarks.rivals import PROBLEMS
from benchmarks.second_order import SETTINGS, Case, study

PATH = report.SHIPPED / "second_order.json"
OPTIMIZER = "broyden"
SEEDS = range(3)
TRIED = [setting for setting in SETTINGS if setting != "renewed"]
"""Five constants, and the rule with its weights held, as the recipe has it."""


def case(title: str, width: int, depth: int, gain: float, stretches: int) -> Case:
    """A problem of the study; sizes and gain from two or three trials with another seed."""
    return Case(PROBLEMS[title](), width, depth, gain, {OPTIMIZER: stretches})


CASES = {
    "Poisson 1D": case("Poisson 1D", 30, 2, 1.0, 6),
    "Burgers": case("Burgers", 20, 3, 1.0, 8),
    "Allen–Cahn": case("Allen–Cahn", 24, 3, 1.0, 6),
    "wave": case("wave", 30, 2, 5.0, 10),
    "inverse heat": case("inverse heat", 20, 2, 1.0, 6),
    "oscillator": case("oscillator", 30, 2, 1.0, 8),
}


def main() -> None:
    found: dict[str, Any] = {"errors": {}, "weights": {}} | report.read(PATH)

    def save() -> None:
        found.update(machine.stamp())
        PATH.write_text(report.compact(found))

    study(OPTIMIZER, found, save, CASES, SEEDS, TRIED)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
