"""PINA as its tutorials have it: Adam, then L-BFGS of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from pina import Condition, LabelTensor
from pina.domain import CartesianDomain
from pina.equation import Equation
from pina.operator import grad, laplacian
from pina.optim import TorchOptimizer
from pina.problem import TimeDependentProblem
from pina.solver import PINN
from pina.weighting import ScalarWeighting

from benchmarks.accuracy_problems import START, Race, Watch
from benchmarks.accuracy_rivals import HIDDEN, sizes
from benchmarks.contestants.with_pina import (
    Plane,
    ScaledNetwork,
    SpaceTime,
    helmholtz,
    klein_gordon,
    quiet_trainer,
)


class Square(Plane):
    """The domain of the Poisson equation."""

    spatial_domain = CartesianDomain({"x": [0, 1], "y": [0, 1]})


class Shock(SpaceTime):
    """The domain of the Burgers equation."""

    spatial_domain = CartesianDomain({"x": [-1, 1]})


class Time(TimeDependentProblem):
    """The domain of the oscillator."""

    output_variables = ["u"]
    labels = ["t"]
    temporal_domain = CartesianDomain({"t": [0, 1]})


def poisson(_: Any) -> dict[str, Any]:
    def pde(x, u):
        large, small = (
            torch.sin(k * torch.pi * x["x"]) * torch.sin(k * torch.pi * x["y"]) for k in (1, 10)
        )
        return -laplacian(u, x) - 2 * torch.pi**2 * (large + 10 * small)

    return {"boundary": ("boundary", Equation(lambda x, u: u)), "pde": ("pde", Equation(pde))}


def burgers(_: Any) -> dict[str, Any]:
    def pde(x, u):
        u_x, u_t = grad(u, x, d=["x"]), grad(u, x, d=["t"])
        return u_t + u * u_x - 0.01 / torch.pi * laplacian(u, x, d=["x"])

    return {
        "boundary": ("boundary", Equation(lambda x, u: u)),
        "initial": ("initial", Equation(lambda x, u: u + torch.sin(torch.pi * x["x"]))),
        "pde": ("pde", Equation(pde)),
    }


def oscillator(network: Any) -> dict[str, Any]:
    def pde(t, u):
        k = START * network.log_share.exp()
        return laplacian(u, t, d=["t"]) + 4 * grad(u, t, d=["t"]) + k * u

    return {"observed": ("observed", None), "pde": ("pde", Equation(pde))}


PROBLEMS = {
    "Klein–Gordon": (SpaceTime, lambda _: klein_gordon()),
    "Helmholtz": (Plane, lambda _: helmholtz()),
    "Poisson": (Square, poisson),
    "Burgers": (Shock, burgers),
    "oscillator": (Time, oscillator),
}


class Look(Callback):
    """Looks at the error, and ends a stage when its share of the time is over."""

    def __init__(self, watch: Watch, until: float, look: Any) -> None:
        self.watch, self.until, self.see = watch, until, look

    def on_train_batch_end(self, trainer, *_) -> None:
        self.see()
        trainer.should_stop = self.watch.share >= self.until


def lbfgs(race: Race, watch: Watch) -> None:
    """Adam for a quarter of the time, then L-BFGS with its line search."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(race.seed)
    generator = torch.Generator().manual_seed(race.seed)
    base, equations = PROBLEMS[race.problem]
    points = watch.problem.sample(sizes(watch), generator)
    values = points.pop("values", None)
    network = ScaledNetwork(watch.problem.domain, HIDDEN[race.problem])
    if is_inverse := bool(watch.problem.unknown):  # PINA gives its own to a second group, which
        network.log_share = torch.nn.Parameter(torch.zeros(1))  # PyTorch's L-BFGS passes over

    def condition(name: str, equation: Any) -> Condition:
        x = LabelTensor(points[name], labels=base.labels)
        if equation is None:
            return Condition(input=x, target=LabelTensor(values, labels=["u"]))
        return Condition(input=x, equation=equation)

    found = equations(network)

    class Problem(base):
        conditions = {name: condition(*given) for name, given in found.items()}

    weights = {name: 1.0 if name == "pde" else race.weight for name in found}

    def look(last: bool = False) -> None:
        stiffness = (lambda: START * network.log_share.exp().item()) if is_inverse else None
        watch.look(network, stiffness, last)

    adam = TorchOptimizer(torch.optim.Adam, lr=1e-3)
    settings = {"line_search_fn": "strong_wolfe", "tolerance_grad": 0, "tolerance_change": 0}
    second = TorchOptimizer(torch.optim.LBFGS, lr=1.0, max_iter=20, history_size=100, **settings)
    for optimizer, until in ((adam, 0.25), (second, 1.0)):
        solver = PINN(Problem(), network, optimizer=optimizer, weighting=ScalarWeighting(weights))
        quiet_trainer(solver, 10**6, Look(watch, until, look)).train()
    look(last=True)
