"""Every rule and both second-order optimizers beside the CPU, for :mod:`benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pinnlib.derivatives import taylor
from pinnlib.distributed import Sum
from pinnlib.networks import MLP, Stacked
from pinnlib.optimizers import GaussNewton, SSBroyden
from pinnlib.problems import Helmholtz
from pinnlib.step import Step, Weights
from pinnlib.weighting import (
    DCGD,
    Balancer,
    ConFIG,
    Follow,
    GradientBalancer,
    KernelTrace,
    ReLoBRaLo,
    SideBySide,
    SoftAdapt,
    Uncertainty,
)

TERMS = ("data", "pde")
RULES: dict[str, Callable[[], Balancer]] = {
    "kernel": lambda: Balancer(TERMS, Follow(KernelTrace(), alpha=0.1), every=10),
    "bounded": GradientBalancer.bounded,
    "simplified": GradientBalancer.simplified,
    "preprint": GradientBalancer.preprint,
    "jaxpi": GradientBalancer.jaxpi,
    "ConFIG": lambda: Balancer(TERMS, ConFIG()),
    "DCGD": lambda: Balancer(TERMS, DCGD()),
    "SoftAdapt": lambda: Balancer(TERMS, SoftAdapt()),
    "ReLoBRaLo": lambda: Balancer(TERMS, ReLoBRaLo()),
    "uncertainty": lambda: Balancer(TERMS, Uncertainty()),
}
Run = Callable[[Callable[..., Any]], Callable[..., Any]]
Numbers = dict[str, tuple[Tensor, Tensor]]
"""Weights and parameters, by the name of what was run."""


def points(n: int, device: torch.device) -> dict[str, Tensor]:
    drawn = Helmholtz().sample(n, torch.Generator().manual_seed(0))
    return {name: x.to(device, torch.float64) for name, x in drawn.items()}


def network(seed: int) -> MLP:
    generator = torch.Generator().manual_seed(seed)
    return MLP(Helmholtz.domain, 20, 2, generator=generator).double()


def training(
    networks: Sequence[MLP],
    batch: Mapping[str, Tensor],
    balancer: Weights,
    run: Run,
    reduce: Sum | None = None,
) -> tuple[Callable[[], None], Step]:
    """A training step of a stack of networks, on the device and the points of the batch."""
    problem = Helmholtz(derivatives=taylor)
    model = Stacked(networks).to(batch["pde"].device)
    step = Step(
        lambda b: problem.term_residuals(model, b),
        model,
        balancer,
        stack=(len(networks),),
        run=run,
        reduce=reduce,
    )
    optimizer = torch.optim.Adam(step.params, lr=1e-3, fused=True)

    def take() -> None:
        optimizer.zero_grad()
        step(batch)
        optimizer.step()

    return take, step


def differences(here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Greatest relative difference of the weights, and relative difference of the parameters."""
    (w_here, p_here), (w, p) = here, there
    return {
        "weights": float(f"{((w_here - w) / w).abs().max():.2g}"),
        "parameters": float(f"{(p_here - p).norm() / p.norm():.2g}"),
    }


def flat(params: Any) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in params])


def by_rule(steps: int, device: torch.device, run: Run) -> Numbers:
    """All rules in one stack, a network each."""
    networks = [network(seed) for seed in range(len(RULES))]
    batch = {
        name: x.expand(len(networks), *x.shape).contiguous()
        for name, x in points(64, device).items()
    }
    rule = SideBySide([make() for make in RULES.values()], share=1)
    take, step = training(networks, batch, Balancer(TERMS, rule), run)
    for _ in range(steps):
        take()
    weights = step.balancer.weights.cpu()
    parameters = torch.cat([p.detach().flatten(1).cpu() for p in step.params], dim=1)
    return {name: (weights[i], parameters[i]) for i, name in enumerate(RULES)}


def by_optimizer(steps: int, device: torch.device) -> Numbers:
    """Gauss–Newton with a balancer, and self-scaled Broyden with the weights that it found."""
    problem, batch = Helmholtz(derivatives=taylor), points(200, device)
    model, balancer = network(0).to(device), GradientBalancer.bounded()
    params = list(model.parameters())
    gauss_newton = GaussNewton(params, balancer, max_iter=steps)
    gauss_newton.step(lambda: problem.term_residuals(model, batch))
    found = {"Gauss–Newton": (balancer.weights.cpu(), flat(params))}
    step = Step(lambda b: problem.term_residuals(model, b), model, dict(balancer.by_term()))
    broyden = SSBroyden(params, max_iter=steps)

    def closure() -> Tensor:
        broyden.zero_grad()
        losses, weights = step(batch)
        return (losses * weights).sum()

    broyden.step(closure)
    return found | {"self-scaled Broyden": (balancer.weights.cpu(), flat(params))}


def parity(
    device: torch.device, ways: Mapping[str, Run], steps: int = 100
) -> dict[str, dict[str, float]]:
    """Greatest relative differences of weights and of parameters to the CPU's, over all ways."""
    cpu = torch.device("cpu")
    there = by_rule(steps, cpu, ways["eager"]) | by_optimizer(steps // 10, cpu)
    here = [by_rule(steps, device, run) for run in ways.values()]
    here.append(by_optimizer(steps // 10, device))
    found = {name: {"weights": 0.0, "parameters": 0.0} for name in there}
    for name, one in (pair for numbers in here for pair in numbers.items()):
        for kind, difference in differences(one, there[name]).items():
            found[name][kind] = max(found[name][kind], difference)
    return found
