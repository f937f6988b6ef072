"""Run the benchmarks: ``python -m benchmarks``, or some parts only, ``… memory passes``."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine, report

FOLDER = Path(__file__).parent
RESULTS = report.SHIPPED / "peers.json"


def parts() -> dict[str, Callable[[], dict[str, Any]]]:
    from benchmarks import fixed_error, memory, passes, profiles, scaling, steps

    return {
        "small": lambda: steps.measure(steps.SMALL),
        "large": lambda: steps.measure(steps.LARGE),
        "terms": scaling.terms,
        "points": scaling.points,
        "parameters": scaling.parameters,
        "seeds": scaling.seeds,
        "memory": lambda: memory.measure(steps.LARGE),
        "passes": passes.measure,
        "profile": lambda: profiles.measure(steps.SMALL),
        "fixed_error": fixed_error.measure,
    }


def main(names: list[str]) -> None:
    available = parts()
    where = {"machine": machine.in_words(), "versions": machine.versions()}
    print(where, flush=True)
    for name in names or available:
        print(f"{name} …", flush=True)
        part = {"date": datetime.date.today().isoformat(), **available[name]()}
        results = {"parts": {}} | report.read(RESULTS)
        results |= where
        results["parts"][name] = part
        RESULTS.write_text(report.compact(results))
    report.write(results, FOLDER)
    print(f"Done: {RESULTS}, and results.md and figures/ in {FOLDER}")


if __name__ == "__main__":
    main(sys.argv[1:])
