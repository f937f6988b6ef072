"""The gradient matrix of K terms: K backward passes, or all rows in one batched pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.scaling import Own, Shared
from benchmarks.timing import interleave, spread, stepper
from pinnlib.derivatives import nested, taylor
from pinnlib.gradients import gradient_rows
from pinnlib.networks import MLP


def measure(
    counts: tuple[int, ...] = (2, 4, 8), rounds: int = 7, seconds: float = 0.15
) -> dict[str, Any]:
    """Milliseconds of both, losses computed before, for terms with and without a shared graph."""
    results = []
    for problem_type in (Own, Shared):
        for derivatives in (nested, taylor):
            for k in counts:
                passes = both_ways(problem_type(k), derivatives)
                times = interleave(
                    {way: stepper(run) for way, run in passes.items()}, rounds, seconds
                )
                results.append(
                    {
                        "terms": k,
                        "points": problem_type.kind,
                        "derivatives": derivatives.__name__,
                        "passes_ms": spread(1e3 * times["passes"]),
                        "batched_ms": spread(1e3 * times["batched"]),
                        "batched_of_passes": spread(times["batched"] / times["passes"]),
                    }
                )
    return {"runs": results}


def both_ways(problem: Own, derivatives) -> dict[str, Callable[[], Tensor]]:
    """Two functions that give the same gradient matrix."""
    problem.derivatives = derivatives
    generator = torch.Generator().manual_seed(0)
    model = MLP(problem.domain, 50, 3, generator=generator)
    params = list(model.parameters())
    losses = problem.losses(model, problem.sample(128, generator))
    rows = [([loss], None) for loss in losses.values()]
    stacked, unit = torch.stack(list(losses.values())), torch.eye(len(losses))

    def passes() -> Tensor:
        return gradient_rows(rows, params, retain_graph=True)[0]

    def batched() -> Tensor:
        gradients = torch.autograd.grad(
            stacked, params, unit, is_grads_batched=True, retain_graph=True
        )
        return torch.cat([g.flatten(1) for g in gradients], dim=1)

    torch.testing.assert_close(passes(), batched(), rtol=1e-3, atol=1e-3)
    return {"passes": passes, "batched": batched}
