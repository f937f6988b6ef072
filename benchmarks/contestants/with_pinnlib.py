"""pinnlib, and the plain and the naive step written with it."""

from functools import partial
from itertools import accumulate
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

import pinnlib.problems
from benchmarks.profiles import Profiled
from benchmarks.task import Array, Task
from pinnlib import AdaptivePINN, GradientBalancer, Step, derivatives
from pinnlib.networks import MLP
from pinnlib.recording import Recorded
from pinnlib.step import Batch, Weights

torch.set_num_threads(1)


class Plain(Profiled):
    """One backward pass through the weighted sum; second derivatives as ``how`` says."""

    def __init__(self, task: Task, how: str = "nested", dtype: str = "float32") -> None:
        kind = getattr(torch, dtype)
        torch.set_default_dtype(kind)
        self.task = task
        self.problem = getattr(pinnlib.problems, task.problem)(
            derivatives=getattr(derivatives, how)
        )
        self.batch = {name: torch.tensor(x, dtype=kind) for name, x in task.points.items()}
        width, depth = len(task.layers[0][0]), len(task.layers) - 1
        self.model = MLP(task.domain, width, depth, generator=torch.Generator())
        with torch.no_grad():
            for layer, (weight, bias) in zip(self.model.layers, task.layers, strict=True):
                layer.weight.copy_(torch.tensor(weight))
                layer.bias.copy_(torch.tensor(bias))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.learning_rate)

    def losses(self, batch: Batch | None = None) -> dict[str, torch.Tensor]:
        return self.problem.losses(self.model, batch or self.batch)

    def total(self) -> torch.Tensor:
        losses = self.losses()
        return sum(self.task.weights[term] * loss for term, loss in losses.items())

    def step(self) -> None:
        total = self.total()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    def steps(self, n: int) -> float:
        start = perf_counter()
        for _ in range(n):
            self.step()
        return perf_counter() - start

    def peak_bytes(self) -> int:
        """The most memory that a step holds at once, beyond what is held before it."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        return max(accumulate(event.nbytes() for event in events))  # releases are negative

    def loss_and_gradient(self) -> tuple[float, Array]:
        total = self.total()
        gradient = torch.autograd.grad(total, list(self.model.parameters()))
        return total.item(), torch.cat([g.reshape(-1) for g in gradient]).numpy()

    def parameters(self) -> Array:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()]).numpy()

    def predict(self, x: Array) -> Array:
        with torch.no_grad():
            points = torch.tensor(x, dtype=torch.get_default_dtype())
            return np.asarray(self.model(points))


class Naive(Plain):
    """The balanced step as it is often written: two passes for the norms, a third for the total."""

    lambda_pde = 1.0
    alpha = 0.9

    def step(self) -> None:
        losses = self.losses()
        data, pde = (self.mean_abs(loss) for loss in losses.values())
        ratio = data / pde if pde > 0 else 1.0
        self.lambda_pde = (1 - self.alpha) * self.lambda_pde + self.alpha * ratio
        self.optimizer.zero_grad()
        (losses["data"] + self.lambda_pde * losses["pde"]).backward()
        self.optimizer.step()

    def mean_abs(self, loss: torch.Tensor) -> float:
        gradient = torch.autograd.grad(loss, list(self.model.parameters()), retain_graph=True)
        return torch.cat([g.reshape(-1) for g in gradient]).abs().mean().item()


class Balanced(Plain):
    """pinnlib's eager balanced step: the rows of the gradient matrix, and no third pass."""

    def __init__(self, task: Task, how: str = "nested", dtype: str = "float32") -> None:
        super().__init__(task, how, dtype)
        self.pinn = AdaptivePINN(self.model)

    def step(self) -> None:
        losses = self.losses()
        self.pinn.train_step_with_balance(self.optimizer, losses["data"], losses["pde"])


class Compiled(Plain):
    """Losses, derivatives and gradient as machine code; Adam in one piece, as in ``train``."""

    def __init__(self, task: Task, how: str = "taylor", **settings: Any) -> None:
        super().__init__(task, how)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=task.learning_rate, fused=True
        )
        run = partial(Recorded, **settings)
        self.backward = Step(self.losses, self.model, self.weights(), run=run)

    def weights(self) -> Weights:
        return self.task.weights

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.backward(self.batch)
        self.optimizer.step()


class CompiledBalanced(Compiled):
    """pinnlib's compiled balanced step."""

    def weights(self) -> Weights:
        return GradientBalancer.simplified()
