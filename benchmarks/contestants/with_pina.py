"""PINA, as its tutorials have it: a problem with conditions, the ``PINN`` solver, a ``Trainer``.

The points are fixed and given, as the ``input`` of each condition. Progress bar, logger and
checkpoints are off and the start of each ``train`` is not timed, which is to PINA's advantage.
"""

from time import perf_counter

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from pina import Condition, LabelTensor, Trainer
from pina.domain import CartesianDomain
from pina.equation import Equation, FixedValue
from pina.equation.zoo import HelmholtzEquation
from pina.model import FeedForward
from pina.operator import grad, laplacian
from pina.optim import TorchOptimizer
from pina.problem import SpatialProblem, TimeDependentProblem
from pina.solver import PINN
from pina.weighting import ScalarWeighting

from benchmarks.profiles import Profiled
from benchmarks.task import Array, Task

torch.set_num_threads(1)


class KeptAdam(TorchOptimizer):
    """Adam that goes on where it was when training is resumed."""

    def hook(self, parameters) -> None:
        if self.instance is None:
            super().hook(parameters)


class Stopwatch(Callback):
    """Times the training itself, without what the trainer sets up before."""

    def on_train_start(self, *_) -> None:
        self.start = perf_counter()

    def on_train_end(self, *_) -> None:
        self.seconds = perf_counter() - self.start


class ScaledNetwork(FeedForward):
    """PINA's tanh network with inputs scaled from the domain to [-1, 1]."""

    def __init__(self, domain, layers: list[int]) -> None:
        super().__init__(len(domain), 1, layers=layers, func=torch.nn.Tanh)
        self.low, high = torch.tensor(domain).T
        self.scale = 2 / (high - self.low)

    def forward(self, x):
        return super().forward((x - self.low) * self.scale - 1)


class Plane(SpatialProblem):
    """The domain of the Helmholtz equation."""

    output_variables = ["u"]
    labels = ["x", "y"]
    spatial_domain = CartesianDomain({"x": [-1, 1], "y": [-1, 1]})


class SpaceTime(TimeDependentProblem, SpatialProblem):
    """The domain of the Klein–Gordon equation."""

    output_variables = ["u"]
    labels = ["x", "t"]
    spatial_domain = CartesianDomain({"x": [0, 1]})
    temporal_domain = CartesianDomain({"t": [0, 1]})


def quiet_trainer(solver: PINN, epochs: int, *callbacks: Callback) -> Trainer:
    return Trainer(
        solver=solver,
        max_epochs=epochs,
        accelerator="cpu",
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=list(callbacks),
    )


class Pina(Profiled):
    def __init__(self, task: Task) -> None:
        base, equations = {
            "Helmholtz": (Plane, helmholtz()),
            "KleinGordon": (SpaceTime, klein_gordon()),
        }[task.problem]
        points = {
            name: LabelTensor(torch.tensor(x), labels=base.labels)
            for name, x in task.points.items()
        }

        given = {
            name: Condition(input=points[where], equation=equation)
            for name, (where, equation) in equations.items()
        }

        class Problem(base):
            conditions = given

        hidden = [len(bias) for _, bias in task.layers[:-1]]
        if task.domain == ((-1.0, 1.0), (-1.0, 1.0)):
            self.network = FeedForward(2, 1, layers=hidden, func=torch.nn.Tanh)
        else:
            self.network = ScaledNetwork(task.domain, hidden)
        linears = [m for m in self.network.modules() if isinstance(m, torch.nn.Linear)]
        with torch.no_grad():
            for layer, (weight, bias) in zip(linears, task.layers, strict=True):
                layer.weight.copy_(torch.tensor(weight))
                layer.bias.copy_(torch.tensor(bias))
        weights = {name: task.weights["pde" if name == "pde" else "data"] for name in equations}
        self.solver = PINN(
            problem=Problem(),
            model=self.network,
            optimizer=KeptAdam(torch.optim.Adam, lr=task.learning_rate),
            weighting=None if set(weights.values()) == {1.0} else ScalarWeighting(weights),
        )

    def steps(self, n: int) -> float:
        self.stopwatch = Stopwatch()
        quiet_trainer(self.solver, n, self.stopwatch).train()
        return self.stopwatch.seconds

    def loss_and_gradient(self) -> tuple[float, Array]:
        """What one training step without any movement leaves behind."""
        before = [p.detach().clone() for p in self.network.parameters()]
        spy = Spy()
        optimizer, self.solver._pina_optimizers = (
            self.solver._pina_optimizers,
            [TorchOptimizer(torch.optim.SGD, lr=0.0)],
        )
        quiet_trainer(self.solver, 1, spy).train()
        self.solver._pina_optimizers = optimizer
        assert all(
            torch.equal(p, b) for p, b in zip(self.network.parameters(), before, strict=True)
        )
        return spy.loss, spy.gradient

    def parameters(self) -> Array:
        return torch.cat([p.detach().reshape(-1) for p in self.network.parameters()]).numpy()

    def predict(self, x: Array) -> Array:
        with torch.no_grad():
            return np.asarray(self.network(torch.tensor(x)))


class Spy(Callback):
    """Keeps the loss and the gradient of a training step."""

    def on_before_optimizer_step(self, trainer, solver, optimizer) -> None:
        gradients = [p.grad.reshape(-1) for p in solver.model.parameters()]
        self.gradient = torch.cat(gradients).clone().numpy()

    def on_train_batch_end(self, trainer, solver, outputs, batch, batch_idx) -> None:
        self.loss = float(outputs["loss"])


def helmholtz():
    def source(x):
        return (
            (1 - 17 * torch.pi**2) * torch.sin(torch.pi * x["x"]) * torch.sin(4 * torch.pi * x["y"])
        )

    return {
        "boundary": ("boundary", FixedValue(0.0)),
        "pde": ("pde", HelmholtzEquation(1.0, source)),
    }


def klein_gordon():
    def wave(x):
        return x["x"] * torch.cos(5 * torch.pi * x["t"])

    def exact(x):
        return wave(x) + (x["x"] * x["t"]) ** 3

    def pde(x, u):
        u_xx = laplacian(u, x, components=["u"], d=["x"])
        u_tt = laplacian(u, x, components=["u"], d=["t"])
        source = -25 * torch.pi**2 * wave(x) + 6 * x["x"] ** 3 * x["t"] - 6 * x["x"] * x["t"] ** 3
        return u_tt - u_xx + u**3 - (source + exact(x) ** 3)

    return {
        "boundary": ("boundary", Equation(lambda x, u: u - exact(x))),
        "initial": ("initial", Equation(lambda x, u: u - x["x"])),
        "velocity": ("initial", Equation(lambda x, u: grad(u, x, components=["u"], d=["t"]))),
        "pde": ("pde", Equation(pde)),
    }
