"""The table of the paper that began it all: ``python -m benchmarks.paper [CASE …]``.

Four models on Helmholtz and Klein–Gordon by the protocol of Wang, Teng and Perdikaris (2021), as
their published code has it: M1 plain, M2 with annealed weights, M3 with gates, M4 with both. It
goes on where it was interrupted, and writes ``pinnlib/results/paper.json`` and ``paper.md``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from benchmarks import machine, report
from benchmarks.paper_sources import PUBLISHED
from pinnlib import GradientBalancer
from pinnlib.derivatives import Model, taylor
from pinnlib.history import Observation
from pinnlib.networks import MLP, GatedMLP
from pinnlib.problems import Helmholtz, KleinGordon, Problem
from pinnlib.recording import Recorded
from pinnlib.training import train_many
from pinnlib.weighting import Balancer

RESULTS = report.SHIPPED / "paper.json"
STEPS, EVERY, ON_EACH_FACE, INSIDE, WIDTH = 40_000, 1000, 128, 128, 50
GROUPS = [(0, 1, 2), (3, 4)]
"""Seeds that are trained as one stack; the first group of every case comes first."""
MODELS = ["M1", "M2", "M3", "M4"]


def by_face(residuals: Mapping[str, Tensor], faces: int) -> dict[str, Tensor]:
    """A residual for each face, so that their mean squares are added up, as the authors do."""
    boundary = {f"face {i}": residuals["boundary"][..., i::faces, :] for i in range(faces)}
    return boundary | {name: r for name, r in residuals.items() if name != "boundary"}


class HelmholtzByFace(Helmholtz):
    """A mean for each of four faces."""

    terms = {"boundary": tuple(f"face {i}" for i in range(4)), "pde": ("pde",)}
    points = {"boundary": 4 * ON_EACH_FACE, "pde": INSIDE}

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return by_face(super().residuals(model, batch), 4)


class KleinGordonByFace(KleinGordon):
    """A mean for each of two faces; a weight of its own for what is given at t = 0."""

    terms = {
        "boundary": ("face 0", "face 1"),
        "initial": ("initial", "velocity"),
        "pde": ("pde",),
    }
    points = {"boundary": 2 * ON_EACH_FACE, "initial": ON_EACH_FACE, "pde": INSIDE}

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return by_face(super().residuals(model, batch), 2)


class Case(NamedTuple):
    """A problem and the number of hidden layers."""

    problem: type[HelmholtzByFace] | type[KleinGordonByFace]
    depth: int


CASES = {
    "Helmholtz 3×50": Case(HelmholtzByFace, 3),
    "Klein–Gordon 5×50": Case(KleinGordonByFace, 5),
    "Klein–Gordon 3×50": Case(KleinGordonByFace, 3),
    "Helmholtz 5×50": Case(HelmholtzByFace, 5),
}
PLAN = ["Helmholtz 3×50", "Klein–Gordon 5×50"]


def standardised(problem: type[Problem]) -> list[tuple[float, float]]:
    """Intervals that a network maps to ±1, so that uniform points get mean 0 and deviation 1."""
    middles = [((a + b) / 2, (b - a) / math.sqrt(12)) for a, b in problem.domain]
    return [(mean - deviation, mean + deviation) for mean, deviation in middles]


def network(case: Case, model: str, generator: torch.Generator, width: int = WIDTH) -> MLP:
    """The authors' network; the biases of their encoders start at random."""
    kind = GatedMLP if model in ("M3", "M4") else MLP
    net = kind(standardised(case.problem), width, case.depth, generator=generator)
    if isinstance(net, GatedMLP):
        for encoder in net.encoders:
            assert isinstance(encoder, nn.Linear)
            nn.init.xavier_normal_(encoder.bias[None], generator=generator)
    return net


def weights_of(case: Case, model: str, width: int = WIDTH) -> Balancer:
    """No weights, or the authors' rule, which looks at layers but not at encoders and biases."""
    terms = list(case.problem.terms)
    if model in ("M1", "M3"):
        return Balancer(terms, dict.fromkeys(terms, 1.0))
    named = network(case, model, torch.Generator().manual_seed(0), width).named_parameters()
    looked_at = [(name, p if name.startswith("layers") else p.flatten()) for name, p in named]
    return GradientBalancer.journal(terms, named_params=looked_at)


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3, fused=True)


def decay(optimizer: torch.optim.Optimizer) -> ExponentialLR:
    """0.9 every 1000 steps, a little at each."""
    return ExponentialLR(optimizer, 0.9 ** (1 / 1000))


def run(case: Case, model: str, seeds: tuple[int, ...], steps: int = STEPS) -> dict[str, Any]:
    """Errors and weights of each seed, every 1000 steps, and CPU milliseconds a step."""
    marks: list[tuple[int, float]] = []

    def observe(seen: Observation) -> None:
        if seen.step % 100 == 0:
            marks.append((seen.step, time.process_time()))

    _, history = train_many(
        case.problem(derivatives=taylor),
        weights_of(case, model),
        seeds=seeds,
        steps=steps,
        n=case.problem.points,
        network=lambda g: network(case, model, g),
        optimizer=adam,
        schedule=decay,
        record_every=min(EVERY, steps),
        observe=observe,
        run=Recorded,
    )
    (first, began), (last, ended) = marks[0], marks[-1]
    found: dict[str, Any] = {"errors": by_seed(seeds, history.errors)}
    each = report.rounded(1e3 * (ended - began) / (last - first))
    found["milliseconds"] = {str(len(seeds)): each}
    if model in ("M2", "M4"):
        weights = {t: by_seed(seeds, w) for t, w in history.weights.items() if t != "pde"}
        found["weights"] = weights
    return found


def by_seed(seeds: tuple[int, ...], rows: Any) -> dict[str, list[float]]:
    return {str(s): [report.rounded(x) for x in row] for s, row in zip(seeds, rows, strict=True)}


def summary(errors: Mapping[str, list[float]]) -> dict[str, float]:
    """Mean, standard deviation, least and greatest of the errors at the end, over the seeds."""
    last = np.array([row[-1] for row in errors.values()])
    spread = last.std(ddof=1) if len(last) > 1 else math.nan
    found = {"mean": last.mean(), "sd": spread, "least": last.min(), "greatest": last.max()}
    return {name: float(x) for name, x in found.items()}


def merged(old: Any, new: Any) -> Any:
    """Nested dicts as one; a value of the new one wins."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {k: merged(old[k], v) if k in old else v for k, v in new.items()}


def markdown(found: Mapping[str, Any]) -> str:
    rows = []
    for case, models in found["runs"].items():
        for model, run in models.items():
            s = summary(run["errors"])
            milliseconds = ", ".join(f"{ms:g} ({n})" for n, ms in run["milliseconds"].items())
            cells = [f"{s['mean']:.2e} ± {s['sd']:.1e}", f"{s['least']:.1e} … {s['greatest']:.1e}"]
            rows.append([case, model, str(len(run["errors"])), *cells, milliseconds])
    head = ["problem", "model", "seeds", "mean ± sd", "range", "CPU ms a step (networks at once)"]
    return (
        "# The paper's table\n\nRelative L2 error after "
        f"{STEPS} steps of Adam; M1 plain, M2 annealed weights, M3 gates, M4 both; see the "
        f"[README](README.md). On {found['machine']}, PyTorch {found['torch']}, "
        f"{found['date']}.\n\n"
        f"{report.table(head, rows)}\n"
    )


def results() -> dict[str, Any]:
    found = report.read(RESULTS)
    return {"steps": list(range(EVERY, STEPS + 1, EVERY)), "runs": {}} | found


def save(new: Mapping[str, Any]) -> None:
    """Add to the file, and write the table in words."""
    found = merged(results(), new) | machine.stamp()
    found["runs"] = {case: dict(sorted(runs.items())) for case, runs in found["runs"].items()}
    RESULTS.write_text(report.compact(found))
    Path(__file__).with_suffix(".md").write_text(markdown(found))


def main(names: list[str]) -> None:
    save({"published": PUBLISHED})
    for seeds in GROUPS:
        for title in names or PLAN:
            for model in MODELS:
                done = results()["runs"].get(title, {}).get(model, {"errors": {}})["errors"]
                if not all(str(s) in done for s in seeds):
                    found = run(CASES[title], model, seeds)
                    save({"runs": {title: {model: found}}})
                    print(f"{title}, {model}, {seeds}: {summary(found['errors'])}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
