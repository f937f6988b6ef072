"""What every contestant is given: the same points and first weights, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass
class Task:
    """A training run in the making: fixed points, a network, a constant weight for each term."""

    problem: str
    """``"Helmholtz"`` or ``"KleinGordon"``, a class of ``pinnlib.problems``."""
    points: dict[str, Array]
    """Points of each set, ``(N, 2)``, by set name."""
    layers: list[tuple[Array, Array]]
    """Weight ``(n_out, n_in)`` and bias ``(n_out,)`` of each layer."""
    domain: tuple[tuple[float, float], ...]
    """One (low, high) pair for each input; the network maps it to [-1, 1]."""
    weights: dict[str, float]
    """Constant weight of each term; those that balance do not use it."""
    learning_rate: float = 1e-3


def make_task(
    problem_name: str,
    counts: dict[str, int],
    *,
    data_weight: float = 1.0,
    width: int = 50,
    depth: int = 3,
    seed: int = 0,
) -> Task:
    """Draw the points and the network with pinnlib, from one seed."""
    # Here, not above: a contestant that does not use torch should not load it.
    import torch

    import pinnlib.problems
    from pinnlib.networks import MLP

    problem = getattr(pinnlib.problems, problem_name)()
    generator = torch.Generator().manual_seed(seed)
    model = MLP(problem.domain, width, depth, generator=generator)
    points = {name: problem.sample(n, generator)[name].numpy() for name, n in counts.items()}
    return Task(
        problem=problem_name,
        points=points,
        layers=[
            (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in model.layers
        ],
        domain=problem.domain,
        weights={"data": data_weight, "pde": 1.0},
    )
