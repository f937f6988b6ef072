"""Every rule and both second-order optimizers beside the CPU, for :mod:`benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pinnlib.derivatives import taylor
from pinnlib.networks import MLP, Stacked
from pinnlib.optimizers import GaussNewton, SSBroyden
from pinnlib.problems import Helmholtz
from pinnlib.step import Step
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
Numbers = dict[str, tuple[Tensor, Tensor]]
"""Weights and parameters, by the name of what was run."""


def points(n: int, device: torch.device) -> dict[str, Tensor]:
    drawn = Helmholtz().sample(n, torch.Generator().manual_seed(0))
    return {name: x.to(device, torch.float64) for name, x in drawn.items()}


def network(seed: int) -> MLP:
    generator = torch.Generator().manual_seed(seed)
    return MLP(Helmholtz.domain, 20, 2, generator=generator).double()


def flat(params: Any) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in params])


def by_rule(steps: int, device: torch.device, run: Callable[..., Any]) -> Numbers:
    """All rules in one stack, a network each."""
    problem, batch = Helmholtz(derivatives=taylor), points(64, device)
    model = Stacked([network(seed) for seed in range(len(RULES))]).to(device)
    stack = (len(RULES),)
    batch = {name: x.expand(*stack, *x.shape).contiguous() for name, x in batch.items()}
    rule = SideBySide([make() for make in RULES.values()], share=1)
    step = Step(
        lambda b: problem.term_residuals(model, b),
        model,
        Balancer(TERMS, rule),
        stack=stack,
        run=run,
    )
    optimizer = torch.optim.Adam(step.params, lr=1e-3, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        step(batch)
        optimizer.step()
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
    device: torch.device, ways: Mapping[str, Callable[..., Any]], steps: int = 100
) -> dict[str, dict[str, float]]:
    """Greatest relative differences of weights and of parameters to the CPU's, over all ways."""
    cpu = torch.device("cpu")
    there = by_rule(steps, cpu, ways["eager"]) | by_optimizer(steps // 10, cpu)
    here = [by_rule(steps, device, run) for run in ways.values()]
    here.append(by_optimizer(steps // 10, device))
    found = {name: {"weights": 0.0, "parameters": 0.0} for name in there}
    for name, (w, p) in (pair for numbers in here for pair in numbers.items()):
        w_cpu, p_cpu = there[name]
        differences = {
            "weights": ((w - w_cpu) / w_cpu).abs().max().item(),
            "parameters": ((p - p_cpu).norm() / p_cpu.norm()).item(),
        }
        for kind, difference in differences.items():
            found[name][kind] = max(found[name][kind], float(f"{difference:.2g}"))
    return found
