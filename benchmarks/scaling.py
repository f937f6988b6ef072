"""Cost against the number of terms K, of points N, of parameters P, and of seeds M."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contestants.with_pinnlib import Balanced, CompiledBalanced, Plain
from benchmarks.task import Array, make_task
from benchmarks.timing import interleave, slope, spread, stepper
from pinnlib import GradientBalancer, balanced_backward
from pinnlib.derivatives import Model, taylor
from pinnlib.networks import MLP
from pinnlib.problems import Helmholtz, KleinGordon, uniform
from pinnlib.recording import Recorded
from pinnlib.step import eager
from pinnlib.training import train_many

torch.set_num_threads(1)
ROUNDS, SECONDS = 7, 0.15
KINDS = {"plain": Plain, "balanced": Balanced, "balanced, compiled": CompiledBalanced}


def points(counts: tuple[int, ...] = (128, 512, 2048, 8192)) -> dict[str, Any]:
    """Milliseconds a Helmholtz step against N, boundary points a quarter of the interior ones."""
    runs = {}
    for n in counts:
        task = make_task("Helmholtz", {"boundary": n // 4, "pde": n})
        runs |= {(kind, n): make(task).steps for kind, make in KINDS.items()}
    return table("interior points N", interleave(runs, ROUNDS, SECONDS), list(counts))


def parameters(widths: tuple[int, ...] = (25, 50, 100, 200, 400)) -> dict[str, Any]:
    """Milliseconds a Helmholtz step against P, by width, three hidden layers, N = 512."""
    runs, sizes = {}, []
    for width in widths:
        task = make_task("Helmholtz", {"boundary": 128, "pde": 512}, width=width)
        sizes.append(sum(w.size + b.size for w, b in task.layers))
        runs |= {(kind, sizes[-1]): make(task).steps for kind, make in KINDS.items()}
    return table("parameters P", interleave(runs, ROUNDS, SECONDS), sizes)


def terms(counts: tuple[int, ...] = (2, 4, 8, 16)) -> dict[str, Any]:
    """Milliseconds a step against K: terms with points of their own, and terms that share them."""
    runs = {}
    for k in counts:
        for problem_type in (Own, Shared):
            for balanced in (False, True):
                kind = f"{'balanced' if balanced else 'plain'}, {problem_type.kind}"
                runs[kind, k] = stepper(term_step(problem_type(k), balanced))
    return table("terms K", interleave(runs, ROUNDS, SECONDS), list(counts))


def seeds(
    counts: tuple[int, ...] = (1, 2, 4, 8, 16), steps: int = 100, rounds: int = 5
) -> dict[str, Any]:
    """Milliseconds a step of ``train_many`` on Klein–Gordon against M, 128 points a set."""
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for m in counts:
            for kind, run in {"eager": eager, "compiled": Recorded}.items():
                times.setdefault((kind, m), []).append(many(m, steps, run))
    return table("seeds M", {key: np.array(values) for key, values in times.items()}, list(counts))


def many(m: int, steps: int, run: Callable[..., Any]) -> float:
    """Seconds a step, without the first steps, which may compile."""
    _, history = train_many(
        KleinGordon(derivatives=taylor),
        GradientBalancer.simplified(),
        seeds=range(m),
        network=lambda g: MLP(KleinGordon.domain, 50, 3, generator=g),
        steps=2 * steps,
        record_every=steps,
        run=run,
    )
    return float(history.seconds[1] - history.seconds[0]) / steps


class Own(Helmholtz):
    """K residuals of the equation, each at 128 points of its own: no term uses another's graph."""

    kind = "own points"

    def __init__(self, k: int) -> None:
        self.names = [f"pde {i}" for i in range(k)]
        super().__init__({name: [name] for name in self.names})

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: uniform(self.domain, n, generator) for name in self.names}

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.residual(model, batch[name]) for name in self.names}

    def residual(self, model: Model, x: Tensor) -> Tensor:
        u, _, (laplacian,) = self.derivatives(model, x, operator=(1.0, 1.0))
        return laplacian + Helmholtz.k**2 * u - self.source(x)


class Shared(Own):
    """K residuals from one evaluation of the network at 512 points, as in a system of equations."""

    kind = "shared graph"

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"all": uniform(self.domain, 4 * n, generator)}

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        residual = self.residual(model, batch["all"])
        return {name: (i + 1) * residual for i, name in enumerate(self.names)}


def term_step(problem: Own, balanced: bool) -> Callable[[], None]:
    """A step with K terms, of a plain or a balanced network."""
    generator = torch.Generator().manual_seed(0)
    model = MLP(problem.domain, 50, 3, generator=generator)
    batch = problem.sample(128, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    balancer = GradientBalancer.simplified(problem.names, reference=problem.names[0])

    def step() -> None:
        losses = problem.losses(model, batch)
        optimizer.zero_grad()
        if balanced:
            balanced_backward(losses, model.parameters(), balancer)
        else:
            sum(losses.values()).backward()
        optimizer.step()

    return step


def table(label: str, times: Mapping[tuple[str, int], Array], x: list[int]) -> dict[str, Any]:
    """Median and quartiles for each x, by kind, and the slope of the three last medians."""
    ms: dict[str, list[list[float]]] = {}
    for (kind, _), values in times.items():
        ms.setdefault(kind, []).append(spread(1e3 * values))
    slopes = {kind: slope(x[-3:], [row[0] for row in rows[-3:]]) for kind, rows in ms.items()}
    return {"label": label, "x": x, "ms": ms, "slopes": slopes}
