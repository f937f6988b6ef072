"""Who takes part in the study: nine problems, two more that chose nothing, and every rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchjd.aggregation import UPGradWeighting

from benchmarks.unseen import BoundaryLayer, Convection
from pinnlib.derivatives import taylor
from pinnlib.networks import MLP
from pinnlib.problems import (
    AllenCahn,
    Burgers,
    Heat,
    Helmholtz,
    KleinGordon,
    Oscillator,
    Poisson,
    Problem,
    Wave,
)
from pinnlib.weighting import (
    Balancer,
    ConFIG,
    Follow,
    GradientBalancer,
    Gramian,
    KernelTrace,
    ReLoBRaLo,
    SoftAdapt,
    Uncertainty,
)

TERMS = ("data", "pde")
CONSTANTS = ["1", "10", "100", "1000", "10000"]
Make = Callable[[Problem], Balancer]
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "Klein–Gordon": lambda: KleinGordon(derivatives=taylor),
    "Helmholtz": lambda: Helmholtz(derivatives=taylor),
    "Poisson 1D": lambda: Poisson(dimension=1, derivatives=taylor),
    "Poisson 2D": lambda: Poisson(dimension=2, derivatives=taylor),
    "Burgers": lambda: Burgers(derivatives=taylor),
    "Allen–Cahn": lambda: AllenCahn(derivatives=taylor),
    "wave": lambda: Wave(derivatives=taylor),
    "inverse heat": lambda: Heat(derivatives=taylor),
    "oscillator": lambda: Oscillator(derivatives=taylor),
}
UNSEEN: dict[str, Callable[[], Problem]] = {
    "boundary layer": lambda: BoundaryLayer(derivatives=taylor),
    "convection": lambda: Convection(derivatives=taylor),
}
"""Problems that chose nothing, for the advice that follows from the others."""
WITH_TORCHJD = ["Klein–Gordon", "Helmholtz", "oscillator"]


def journal(problem: Problem) -> Balancer:
    model = MLP(problem.domain, generator=torch.Generator())
    return GradientBalancer.journal(named_params=model.named_parameters())


def constant(value: str) -> Make:
    return lambda _: Balancer(TERMS, {"data": float(value), "pde": 1.0})


def kernel(exponent: float) -> Make:
    rule = Follow(KernelTrace(exponent=exponent), alpha=0.1, warm_start=True)
    return lambda _: Balancer(TERMS, rule, every=10)


SIDE_BY_SIDE: dict[str, Make] = {
    **{value: constant(value) for value in CONSTANTS},
    "bounded": lambda _: GradientBalancer.bounded(),
    "bounded, ×/÷ 30": lambda _: GradientBalancer.bounded(bounds=(1 / 30, 30.0)),
    "simplified": lambda _: GradientBalancer.simplified(),
    "simplified, bounded": lambda _: GradientBalancer.simplified(
        warm_start=True, bounds=(0.1, 10.0)
    ),
    "preprint": lambda _: GradientBalancer.preprint(),
    "journal": journal,
    "jaxpi": lambda _: GradientBalancer.jaxpi(),
    "ConFIG": lambda _: Balancer(TERMS, ConFIG()),
    "SoftAdapt": lambda _: Balancer(TERMS, SoftAdapt(normalized=True, loss_weighted=True)),
    "ReLoBRaLo": lambda _: Balancer(TERMS, ReLoBRaLo()),
    "uncertainty": lambda _: Balancer(TERMS, Uncertainty()),
}
"""In one stack, with the gradient matrix measured at every step."""
KERNELS: dict[str, Make] = {"kernel": kernel(1.0), "kernel, γ = ½": kernel(0.5)}
"""In a stack of their own: no other rule looks at random signs of residuals."""
ATTENTION: dict[str, Make] = {
    "attention": constant("1"),
    "attention, 100": constant("100"),
    # Point weights start at 0, so the first ratios say nothing: no warm start, no bounds.
    "attention, ratios": lambda _: GradientBalancer.bounded(warm_start=False, bounds=None),
}
"""On fixed points, with a weight for each point of the equation."""
TORCHJD: dict[str, Make] = {"UPGrad": lambda _: Balancer(TERMS, Gramian(UPGradWeighting()))}
"""It solves on the host, for one network at a time."""
GROUPS = {"rules": SIDE_BY_SIDE, "kernels": KERNELS, "attention": ATTENTION, "torchjd": TORCHJD}
SETTINGS = [name for group in GROUPS.values() for name in group]
