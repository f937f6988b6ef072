"""The Burgers equation, whose sine wave steepens into a shock."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems.base import Problem
from pinnlib.problems.sampling import in_time

NODES = 100
"""Of the quadrature: 80 agree with 160 to 1e-13, and NumPy's rule is tested up to 100."""


class Burgers(Problem):
    r"""Burgers equation on :math:`x \in [-1, 1]`, :math:`t \in [0, 1]`, with a shock at x = 0.

    .. math::

        u_t + u\,u_x = \nu\,u_{xx}, \quad \nu = 0.01/\pi, \\
        u(x, 0) = -\sin \pi x, \quad u(\pm 1, t) = 0,

    as in :cite:t:`raissi2019`. Residuals: ``boundary``, ``initial`` and ``pde``. The reference is
    the formula of Cole and Hopf with a quadrature, as in :cite:t:`basdevant1986`.

    >>> problem = Burgers()
    >>> batch = problem.sample(128, torch.Generator().manual_seed(0))
    >>> batch = {name: x.double() for name, x in batch.items()}
    >>> losses = problem.losses(problem.reference, batch)
    >>> {name: round(loss.item(), 4) for name, loss in losses.items()}
    {'data': 0.0, 'pde': 0.0}
    """

    variables = ("x", "t")
    domain = ((-1.0, 1.0), (0.0, 1.0))
    terms = {"data": ("boundary", "initial"), "pde": ("pde",)}
    nu = 0.01 / math.pi

    def reference(self, x: Tensor) -> Tensor:
        """The solution u, ``(…, 2)`` to ``(…, 1)``, by the formula of Cole and Hopf.

        It is computed in float64 where the device has it, and has the dtype of ``x``. On an Apple
        GPU, which has float32 only, it is right to about 1e-5.
        """
        precise = torch.float32 if x.device.type == "mps" else torch.float64
        return cole_hopf(x.to(precise), self.nu).to(x.dtype)

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        return in_time(self.domain, n, generator)

    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        initial, interior = batch["initial"], batch["pde"]
        u, (u_x, u_t), (u_xx,) = self.derivatives(model, interior, operator=(1.0, 0.0))
        return {
            "boundary": model(batch["boundary"]),
            "initial": model(initial) + torch.sin(math.pi * initial[..., :1]),
            "pde": u_t + u * u_x - self.nu * u_xx,
        }


def cole_hopf(x: Tensor, nu: float, nodes: int = NODES) -> Tensor:
    r"""Solution of the Burgers equation that starts from the sine wave :math:`-\sin\pi x`.

    The transformation of Cole and Hopf turns it into the heat equation, which an integral solves
    (:cite:t:`basdevant1986`). Gauss–Hermite nodes :math:`z_i` with weights :math:`w_i` give

    .. math::

        u = -\frac{\sum_i p_i \sin \pi y_i}{\sum_i p_i}, \qquad y_i = x - \sqrt{4\nu t}\,z_i, \\
        p_i = w_i \exp\left(-\frac{\cos \pi y_i}{2\pi\nu}\right).

    The :math:`p_i` over their sum are a softmax, so that none of them overflows.

    Args:
        x: points ``(…, 2)`` with the columns x and t ≥ 0; the result has their dtype.
        nu: viscosity; one much smaller than 0.01/π needs more nodes.
        nodes: of the quadrature.

    Returns:
        ``(…, 1)``.

    >>> cole_hopf(torch.tensor([[0.5, 0.0], [0.5, 1.0]]).double(), nu=0.01 / math.pi)
    tensor([[-1.0000],
            [-0.3762]], dtype=torch.float64)
    """
    places, weights = np.polynomial.hermite.hermgauss(nodes)
    z, log_w = (x.new_tensor(numbers) for numbers in (places, np.log(weights)))
    angle = math.pi * (x[..., :1] - torch.sqrt(4 * nu * x[..., 1:]) * z)
    shares = torch.softmax(log_w - torch.cos(angle) / (2 * math.pi * nu), dim=-1)
    return -torch.sum(shares * torch.sin(angle), dim=-1, keepdim=True)
