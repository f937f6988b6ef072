"""Rivals that need no PINN library: SOAP under PyTorch, and random features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.accuracy_ours import LARGE, Run
from benchmarks.accuracy_problems import START, Race, Watch
from benchmarks.second_order import MEASURED, Case
from pinnlib.derivatives import Derived
from pinnlib.problems import Problem
from pinnlib.recording import Recorded

torch.set_num_threads(1)

POINTS, ON_EACH_SET = 1500, 250
"""Fixed points of the equation, and of each of its conditions, for all libraries."""
HIDDEN = {
    "Klein–Gordon": [40] * 2,
    "Helmholtz": [50] * 3,
    "Poisson": [50] * 3,
    "Burgers": [20] * 3,
    "oscillator": [30] * 2,
}
"""Layers of DeepXDE and PINA; Klein–Gordon's and Burgers' are from DeepXDE's demonstrations."""


def sizes(watch: Watch) -> dict[str, int]:
    names = set(watch.problem.sample(4, torch.Generator())) - MEASURED
    return {name: POINTS if name == "pde" else ON_EACH_SET for name in names}


def soap(race: Race, watch: Watch) -> None:
    """SOAP of pytorch-optimizer, in double precision, on pinnlib's compiled losses."""
    from pytorch_optimizer import SOAP

    run = Run(race, watch, Case(watch.problem, *LARGE, {}))
    step = run.step({"data": race.weight, "pde": 1.0}, Recorded)
    with watch.compilation():
        step(run.draw())
    run.to_the_end(step, SOAP(run.model.parameters(), lr=3e-3, weight_decay=0.0))


FEATURES = {
    "Klein–Gordon": (1200, 5.0),
    "Helmholtz": (1600, 6.0),
    "Poisson": (2400, 12.0),
    "Burgers": (1600, 20.0),
    "oscillator": (100, 10.0),
}
"""How many, and the largest slope along an input that is scaled to [-1, 1]."""


class Features:
    """A sum of tanh functions of random slopes at random places, whose factors are sought.

    Whatever is linear in the factors and an unknown coefficient is a leaf of the graph, and kept
    beside its matrix, so that the Jacobian of residuals follows from their gradients by the leaves.
    """

    def __init__(self, problem: Problem, count: int, slope: float, seed: int) -> None:
        g, d = torch.Generator().manual_seed(seed), len(problem.domain)
        low, high = torch.tensor(problem.domain, dtype=torch.float64).T
        a = slope * (2 * torch.rand(count, d, generator=g, dtype=torch.float64) - 1)
        places = torch.rand(count, d, generator=g, dtype=torch.float64)
        self.a = 2 * a / (high - low)
        self.b = -(self.a * (low + (high - low) * places)).sum(dim=1)
        self.theta = torch.zeros(count + len(problem.unknown), dtype=torch.float64)
        self.leaves: list[tuple[Tensor, Tensor]] = []

    def leaf(self, basis: Tensor) -> Tensor:
        """Values ``(N, 1)`` of a matrix ``(N, features)``, or of all columns."""
        rest = len(self.theta) - basis.shape[1]
        basis = torch.cat([basis, basis.new_zeros(len(basis), rest)], dim=1)
        value = (basis @ self.theta)[:, None].requires_grad_()
        self.leaves.append((value, basis))
        return value

    def __call__(self, x: Tensor) -> Tensor:
        return self.leaf(torch.tanh(x @ self.a.T + self.b))

    def derivatives(
        self,
        model: object,
        x: Tensor,
        order: int = 2,
        *,
        operator: Sequence[float] | None = None,
    ) -> Derived:
        """In the place of :func:`pinnlib.derivatives.taylor`."""
        h = torch.tanh(x @ self.a.T + self.b)
        slope, squares = 1 - h**2, self.a**2
        ways = squares.T if operator is None else [squares @ squares.new_tensor(operator)]
        first = [self.leaf(slope * a) for a in self.a.T]
        second = [self.leaf(-2 * h * slope * way) for way in ways]
        return self.leaf(h), tuple(first), tuple(second)

    def jacobian(self, r: Tensor) -> Tensor:
        J = r.new_zeros(len(r), len(self.theta))
        for value, basis in self.leaves:
            (g,) = torch.autograd.grad(r.sum(), value, retain_graph=True, allow_unused=True)
            J += 0 if g is None else g * basis
        return J


def features(race: Race, watch: Watch) -> None:
    """Least squares for the factors; a Newton iteration around it where it is not linear."""
    problem, generator = watch.problem, torch.Generator().manual_seed(race.seed)
    model = Features(problem, *FEATURES[race.problem], race.seed)
    size = {name: 2 * n for name, n in sizes(watch).items()}
    batch = {name: x.double() for name, x in problem.sample(size, generator).items()}
    weights = {"data": race.weight, "pde": 1.0}
    last = torch.zeros(len(batch["pde"]), len(model.theta), dtype=torch.float64)
    last[:, -1] = 1
    stiffness = (lambda: START * math.exp(model.theta[-1])) if problem.unknown else None
    problem.derivatives = model.derivatives  # type: ignore[method-assign]
    problem.coefficient = lambda *_: START * model.leaf(last).exp()  # type: ignore[method-assign]

    def blocks() -> list[tuple[float, Tensor]]:
        model.leaves = []
        terms = problem.term_residuals(model, batch)
        return [((weights[k] / len(r)) ** 0.5, r) for k, group in terms.items() for r in group]

    def total() -> float:
        return sum(float((factor * r).square().sum()) for factor, r in blocks())

    for left in reversed(range(60)):
        pairs = blocks()
        J = torch.cat([factor * model.jacobian(r) for factor, r in pairs])
        right = torch.cat([-factor * r.detach() for factor, r in pairs])
        step = torch.linalg.lstsq(J, right, rcond=1e-14).solution[:, 0]
        start, before, length = model.theta, float(right.square().sum()), 1.0
        model.theta = start + step
        while (after := total()) > before and length > 1e-3:
            length /= 2
            model.theta = start + length * step
        is_last = not left or after > (1 - 1e-6) * before
        watch.look(lambda x: model(x).detach(), stiffness, last=is_last)
