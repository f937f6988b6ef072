"""DeepXDE with its PyTorch backend, as its manual has it: ``compile`` and ``train``.

The points are fixed and given (``anchors``, ``PointSetBC``), so that the loss is that of the
others. DeepXDE evaluates the residual at all points and then drops those of the boundary.
"""

from time import perf_counter

import deepxde as dde
import numpy as np
import torch

from benchmarks.profiles import Profiled
from benchmarks.task import Array, Task

torch.set_num_threads(1)


class DeepXDE(Profiled):
    def __init__(self, task: Task) -> None:
        pde, conditions = {"Helmholtz": helmholtz, "KleinGordon": klein_gordon}[task.problem](task)
        low, high = np.array(task.domain, dtype=np.float32).T
        data = dde.data.PDE(
            dde.geometry.Rectangle(low, high), pde, conditions, anchors=task.points["pde"]
        )
        sizes = [2, *[len(bias) for _, bias in task.layers]]
        self.net = dde.nn.FNN(sizes, "tanh", "Glorot normal")
        if task.domain != ((-1.0, 1.0), (-1.0, 1.0)):
            low, scale = torch.tensor(low), torch.tensor(2 / (high - low))
            self.net.apply_feature_transform(lambda x: (x - low) * scale - 1)
        with torch.no_grad():
            for layer, (weight, bias) in zip(self.net.linears, task.layers, strict=True):
                layer.weight.copy_(torch.tensor(weight))
                layer.bias.copy_(torch.tensor(bias))
        self.model = dde.Model(data, self.net)
        weights = [task.weights["pde"]] + [task.weights["data"]] * len(conditions)
        self.model.compile(
            "adam", lr=task.learning_rate, loss_weights=None if set(weights) == {1.0} else weights
        )

    def steps(self, n: int) -> float:
        start = perf_counter()
        self.model.train(iterations=n, display_every=n)
        return perf_counter() - start

    def loss_and_gradient(self) -> tuple[float, Array]:
        x, y, auxiliary = self.model.data.train_next_batch()
        _, losses = self.model.outputs_losses_train(x, y, auxiliary)
        gradient = torch.autograd.grad(losses.sum(), list(self.net.parameters()))
        return losses.sum().item(), torch.cat([g.reshape(-1) for g in gradient]).numpy()

    def parameters(self) -> Array:
        return torch.cat([p.detach().reshape(-1) for p in self.net.parameters()]).numpy()

    def predict(self, x: Array) -> Array:
        return self.model.predict(x)


def helmholtz(task: Task):
    def pde(x, u):
        u_xx = dde.grad.hessian(u, x, i=0, j=0)
        u_yy = dde.grad.hessian(u, x, i=1, j=1)
        exact = torch.sin(np.pi * x[:, 0:1]) * torch.sin(4 * np.pi * x[:, 1:2])
        return u_xx + u_yy + u - (1 - 17 * np.pi**2) * exact

    return pde, [dde.icbc.PointSetBC(task.points["boundary"], 0)]


def klein_gordon(task: Task):
    def pde(x, u):
        u_xx = dde.grad.hessian(u, x, i=0, j=0)
        u_tt = dde.grad.hessian(u, x, i=1, j=1)
        x, t = x[:, 0:1], x[:, 1:2]
        wave = x * torch.cos(5 * np.pi * t)
        exact = wave + (x * t) ** 3
        return u_tt - u_xx + u**3 - (-25 * np.pi**2 * wave + 6 * x**3 * t - 6 * x * t**3 + exact**3)

    def velocity(x, u, _):
        return dde.grad.jacobian(u, x, j=1)

    x, t = np.split(task.points["boundary"], 2, axis=1)
    boundary = x * np.cos(5 * np.pi * t) + (x * t) ** 3
    initial = task.points["initial"]
    return pde, [
        dde.icbc.PointSetBC(task.points["boundary"], boundary),
        dde.icbc.PointSetBC(initial, initial[:, :1]),
        dde.icbc.PointSetOperatorBC(initial, 0, velocity),
    ]
