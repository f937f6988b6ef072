"""Rules under Adam: which weights end where, on seeds that chose none of them.

``python -m benchmarks.rules [PROTOCOL …]`` writes ``rules.json`` and ``rules.md`` beside this file,
and goes on where it was interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks import machine, report
from pinnlib import GradientBalancer
from pinnlib.derivatives import taylor
from pinnlib.networks import MLP
from pinnlib.problems import Helmholtz, KleinGordon, Problem
from pinnlib.recording import Recorded
from pinnlib.step import Weights
from pinnlib.training import train_many

RESULTS = Path(__file__).with_name("rules.json")
PROBLEMS: dict[str, type[Problem]] = {"Klein–Gordon": KleinGordon, "Helmholtz": Helmholtz}
CONSTANTS = ["10", "100", "1000"]


class Protocol(NamedTuple):
    """How long, how large, how fast; and how often jaxpi's rule looks."""

    seeds: range
    steps: Mapping[str, int]
    width: int
    depth: int
    rate: float
    every: int

    def network(self, problem: type[Problem], generator: torch.Generator) -> nn.Module:
        return MLP(problem.domain, self.width, self.depth, generator=generator)


PROTOCOLS = {
    "book": Protocol(
        range(400, 424), {"Klein–Gordon": 2000, "Helmholtz": 3000}, 32, 2, 5e-3, every=100
    ),
    "long": Protocol(
        range(200, 206), {"Klein–Gordon": 5000, "Helmholtz": 10_000}, 50, 3, 1e-3, every=1000
    ),
}


def journal(protocol: Protocol) -> Weights:
    model = protocol.network(KleinGordon, torch.Generator().manual_seed(0))
    return GradientBalancer.journal(named_params=model.named_parameters())


SETTINGS: dict[str, Callable[[Protocol], Weights]] = {
    "1": lambda p: {"data": 1.0, "pde": 1.0},
    **{w: lambda p, w=w: {"data": float(w), "pde": 1.0} for w in CONSTANTS},  # type: ignore[misc]
    "bounded": lambda p: GradientBalancer.bounded(),
    "simplified": lambda p: GradientBalancer.simplified(),
    "simplified, bounded": lambda p: GradientBalancer.simplified(
        warm_start=True, bounds=(0.1, 10.0)
    ),
    "journal": journal,
    "jaxpi": lambda p: GradientBalancer.jaxpi(every=p.every),
}


def errors_of(protocol: Protocol, title: str, setting: str) -> list[float]:
    """Relative L2 error of each seed at the end."""
    kind = PROBLEMS[title]
    _, history = train_many(
        kind(derivatives=taylor),
        SETTINGS[setting](protocol),
        seeds=protocol.seeds,
        steps=protocol.steps[title],
        network=lambda g: protocol.network(kind, g),
        optimizer=lambda params: torch.optim.Adam(params, lr=protocol.rate, fused=True),
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


def section(name: str, found: dict[str, Any]) -> str:
    errors, protocol = found["errors"], PROTOCOLS[name]
    rows = []
    for setting in SETTINGS:
        cells = [
            f"{min(e[setting]):.2g} · {np.median(e[setting]):.3g} · {max(e[setting]):.2g}"
            for e in errors.values()
        ]
        title = f"constant {setting}" if setting.isdigit() else setting
        rows.append([title, *cells, f"{regret(errors, setting):.2f}"])
    steps = ", ".join(f"{n} steps of {title}" for title, n in protocol.steps.items())
    return (
        f"## The {name} protocol\n\n"
        f"{steps}; {protocol.depth} layers of {protocol.width}, a rate of {protocol.rate:g}. "
        f"Relative L2 error at the end, least · median · worst of {len(protocol.seeds)} seeds from "
        f"{protocol.seeds[0]} on; jaxpi's rule looks every {protocol.every} steps. The last column "
        "is the geometric mean, over the problems, of the median over that of the best constant. "
        f"{found['machine']}, PyTorch {found['torch']}, {found['date']}.\n\n"
        f"{report.table(['weights', *errors, 'over the best constant'], rows)}\n"
    )


def results() -> dict[str, Any]:
    return report.read(RESULTS)


def main(names: list[str]) -> None:
    for name in names or PROTOCOLS:
        for title in PROBLEMS:
            for setting in SETTINGS:
                found = results().get(name, {"errors": {}})
                if setting in found["errors"].get(title, {}):
                    continue
                errors = errors_of(PROTOCOLS[name], title, setting)
                everything = results()  # again: another process may have written meanwhile
                found = everything.setdefault(name, {"errors": {}})
                found["errors"].setdefault(title, {})[setting] = errors
                found |= machine.stamp()
                RESULTS.write_text(report.compact(everything))
                print(f"{name}, {title}, {setting}: {errors}", flush=True)
    complete = [
        section(name, found)
        for name, found in results().items()
        if all(set(SETTINGS) <= set(found["errors"].get(title, {})) for title in PROBLEMS)
    ]
    RESULTS.with_suffix(".md").write_text("# Rules under Adam\n\n" + "\n".join(complete))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
