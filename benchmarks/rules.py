"""Rules under Adam: which weights end where, on seeds that chose none of them.

``python -m benchmarks.rules [PROBLEM …]`` writes ``rules.json`` and ``rules.md`` beside this file,
and goes on where it was interrupted.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine, report
from pinnlib import GradientBalancer
from pinnlib.derivatives import taylor
from pinnlib.networks import MLP
from pinnlib.problems import Helmholtz, KleinGordon
from pinnlib.recording import Recorded
from pinnlib.step import Weights
from pinnlib.training import train_many

SEEDS = [200, 201, 202, 203, 204, 205]
STEPS = {
    "Klein–Gordon": 5000,
    "Helmholtz": 10_000,
}  # longer than the book's, larger networks, smaller steps
RESULTS = Path(__file__).with_name("rules.json")
PROBLEMS = {"Klein–Gordon": KleinGordon, "Helmholtz": Helmholtz}
CONSTANTS = ["10", "100", "1000"]


def network(domain: list[tuple[float, float]], generator: torch.Generator) -> MLP:
    return MLP(domain, width=50, depth=3, generator=generator)


def journal() -> Weights:
    model = network([(0, 1), (0, 1)], torch.Generator().manual_seed(0))
    return GradientBalancer.journal(named_params=model.named_parameters())


SETTINGS: dict[str, Callable[[], Weights]] = {
    "1": lambda: {"data": 1.0, "pde": 1.0},
    **{w: lambda w=w: {"data": float(w), "pde": 1.0} for w in CONSTANTS},  # type: ignore[misc]
    "bounded": GradientBalancer.bounded,
    "simplified": GradientBalancer.simplified,
    "simplified, bounded": lambda: GradientBalancer.simplified(warm_start=True, bounds=(0.1, 10.0)),
    "journal": journal,
    "jaxpi": GradientBalancer.jaxpi,
}


def errors_of(title: str, setting: str) -> list[float]:
    """Relative L2 error of each seed at the end, by the book's training."""
    problem = PROBLEMS[title](derivatives=taylor)
    _, history = train_many(
        problem,
        SETTINGS[setting](),
        seeds=SEEDS,
        steps=STEPS[title],
        network=lambda g: network(problem.domain, g),
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-3, fused=True),
        record_every=1000,
        run=Recorded,
    )
    return [report.rounded(e) for e in history.errors[:, -1]]


def regret(errors: dict[str, dict[str, list[float]]], setting: str) -> float:
    """Geometric mean over problems of the median error over that of the best constant."""
    ratios = [
        np.median(e[setting]) / min(np.median(e[w]) for w in CONSTANTS) for e in errors.values()
    ]
    return float(np.exp(np.mean(np.log(ratios))))


def table(found: dict[str, Any]) -> str:
    errors = found["errors"]
    rows = []
    for setting in SETTINGS:
        cells = [f"{np.median(e[setting]):.3g} ({max(e[setting]):.2g})" for e in errors.values()]
        name = f"constant {setting}" if setting.isdigit() else setting
        rows.append([name, *cells, f"{regret(errors, setting):.2f}"])
    return (
        "# Rules under Adam\n\n"
        f"Relative L2 error at the end, median and worst of {len(SEEDS)} seeds; "
        "the last column is the geometric mean, over the problems, of the median over that of the "
        f"best constant. {found['machine']}, PyTorch {found['torch']}, {found['date']}.\n\n"
        f"{report.table(['weights', *errors, 'over the best constant'], rows)}\n"
    )


def results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"errors": {}}


def main(titles: list[str]) -> None:
    for title in titles or PROBLEMS:
        for setting in SETTINGS:
            found = results()
            if setting in found["errors"].get(title, {}):
                continue
            errors = errors_of(title, setting)
            found = results()  # again: another process may have written meanwhile
            found["errors"].setdefault(title, {})[setting] = errors
            found["date"] = datetime.date.today().isoformat()
            found["machine"], found["torch"] = machine.in_words(), torch.__version__
            RESULTS.write_text(report.compact(found))
            print(f"{title}, {setting}: {errors}", flush=True)
    if all(set(SETTINGS) <= set(found["errors"].get(title, {})) for title in PROBLEMS):
        RESULTS.with_suffix(".md").write_text(table(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
