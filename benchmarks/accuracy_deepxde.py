"""DeepXDE as its documentation recommends: Adam, then L-BFGS; and NNCG after both."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import deepxde as dde
import numpy as np
import torch

from benchmarks.accuracy_problems import START, Race, Watch
from benchmarks.accuracy_rivals import HIDDEN, sizes
from benchmarks.contestants.with_deepxde import helmholtz, klein_gordon


def poisson(points: dict[str, Any], _: Any) -> Any:
    def pde(x, u):
        laplacian = dde.grad.hessian(u, x, i=0, j=0) + dde.grad.hessian(u, x, i=1, j=1)
        pi = np.pi
        large, small = (
            torch.sin(k * pi * x[:, :1]) * torch.sin(k * pi * x[:, 1:]) for k in (1, 10)
        )
        return -laplacian - 2 * pi**2 * (large + 10 * small)

    return pde, [dde.icbc.PointSetBC(points["boundary"], 0)]


def burgers(points: dict[str, Any], _: Any) -> Any:
    def pde(x, u):
        u_x, u_t = dde.grad.jacobian(u, x, j=0), dde.grad.jacobian(u, x, j=1)
        return u_t + u * u_x - 0.01 / np.pi * dde.grad.hessian(u, x, i=0, j=0)

    start = points["initial"]
    return pde, [
        dde.icbc.PointSetBC(points["boundary"], 0),
        dde.icbc.PointSetBC(start, -np.sin(np.pi * start[:, :1])),
    ]


def oscillator(points: dict[str, Any], log_share: Any) -> Any:
    def pde(t, u):
        u_t, u_tt = dde.grad.jacobian(u, t), dde.grad.hessian(u, t)
        return u_tt + 4 * u_t + START * torch.exp(log_share) * u

    return pde, [dde.icbc.PointSetBC(points["observed"], points["values"])]


EQUATIONS = {
    "Klein–Gordon": lambda points, _: klein_gordon(SimpleNamespace(points=points)),
    "Helmholtz": lambda points, _: helmholtz(SimpleNamespace(points=points)),
    "Poisson": poisson,
    "Burgers": burgers,
    "oscillator": oscillator,
}


class Look(dde.callbacks.Callback):
    """Looks at the error, and ends a stage when its share of the time is over."""

    def __init__(self, watch: Watch, until: float, look: Any) -> None:
        super().__init__()
        self.watch, self.until, self.see = watch, until, look

    def on_epoch_end(self) -> None:
        self.see()
        self.model.stop_training = self.watch.share >= self.until


def train(race: Race, watch: Watch, stages: dict[str, float]) -> None:
    """One optimizer after another, each until its share of the time is over."""
    dde.config.set_default_float("float64")
    dde.config.set_random_seed(race.seed)
    generator = torch.Generator().manual_seed(race.seed)
    drawn = watch.problem.sample(sizes(watch), generator)
    points = {name: x.double().numpy() for name, x in drawn.items()}
    log_share = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    pde, conditions = EQUATIONS[race.problem](points, log_share)
    low, high = np.array(watch.problem.domain).T
    geometry = dde.geometry.Interval if len(low) == 1 else dde.geometry.Rectangle
    ends = (low[0], high[0]) if len(low) == 1 else (low, high)
    data = dde.data.PDE(geometry(*ends), pde, conditions, anchors=points["pde"])
    net = dde.nn.FNN([len(low), *HIDDEN[race.problem], 1], "tanh", "Glorot normal")
    lows, scale = torch.tensor(low), torch.tensor(2 / (high - low))
    net.apply_feature_transform(lambda x: (x - lows) * scale - 1)
    model = dde.Model(data, net)
    if is_inverse := bool(watch.problem.unknown):  # one group of parameters: NNCG takes no other
        net.log_share = log_share
    # The state between calls of L-BFGS is kept: this only lets the clock be seen more often.
    dde.optimizers.LBFGS_options.update(maxiter=10**6, iter_per_step=50, fun_per_step=63)

    def look(last: bool = False) -> None:
        stiffness = (lambda: START * log_share.exp().item()) if is_inverse else None
        watch.look(net, stiffness, last)

    for name, until in stages.items():
        model.compile(
            name,
            lr=1e-3 if name == "adam" else None,
            loss_weights=[1.0] + [race.weight] * len(conditions),
        )
        stage = Look(watch, until, look)
        with contextlib.suppress(torch.linalg.LinAlgError):  # NNCG's factorization may fail
            model.train(iterations=10**6, display_every=10**6, verbose=0, callbacks=[stage])
    look(last=True)


def lbfgs(race: Race, watch: Watch) -> None:
    train(race, watch, {"adam": 0.25, "L-BFGS": 1.0})


def nncg(race: Race, watch: Watch) -> None:
    train(race, watch, {"adam": 0.2, "L-BFGS": 0.5, "NNCG": 1.0})
