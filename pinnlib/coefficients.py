"""Unknown coefficients of an equation, trained beside the network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pinnlib.stacked import Stacked

__all__ = ["WithCoefficients", "coefficient"]


class WithCoefficients(nn.Module):
    r"""A network, and positive coefficients of its equation that are found with it.

    A coefficient c is trained as the logarithm of its share in the value it starts at,

    .. math:: c = c_0\, e^{\theta_c}, \qquad \theta_c = 0 \text{ at first},

    so it stays positive, and one learning rate suits a stiffness of 400 and a diffusivity of 0.1
    alike: a step of Adam changes either by about that rate, as a share of itself.

    Args:
        model: the network.
        start: where each coefficient starts, :math:`c_0`, by name; best of the right order.

    Attributes:
        log_shares: the logarithms :math:`\theta_c`, ``(n,)``, ``(M, 1, n)`` in a stack.

    Shape:
        that of the network.

    Raises:
        ValueError: if there is no coefficient, or a start is not positive and finite.

    >>> from pinnlib.networks import MLP
    >>> network = MLP([(0, 1)], generator=torch.Generator().manual_seed(0))
    >>> model = WithCoefficients(network, stiffness=100.0)
    >>> coefficient(model, "stiffness").item()
    100.0
    """

    stacks = ("log_shares",)

    def __init__(self, model: nn.Module, **start: float) -> None:
        super().__init__()
        if not start:
            raise ValueError("there is no coefficient: pass each as name=start")
        for name, value in start.items():
            if not 0 < value < math.inf:
                raise ValueError(
                    f"coefficient {name!r} starts at {value}: pass a positive number; let the "
                    "equation take its negative where it is negative"
                )
        self.model = model
        self.start = {name: float(value) for name, value in start.items()}
        like = next(model.parameters(), torch.empty(0))
        self.log_shares = nn.Parameter(
            torch.zeros(len(start), dtype=like.dtype, device=like.device)
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output


def coefficient(model: object, name: str) -> Tensor:
    r"""The present value of a coefficient, with a graph.

    Args:
        model: a :class:`WithCoefficients`, or a stack of them.
        name: of the coefficient.

    Returns:
        ``(1,)``, or ``(M, 1, 1)`` for a stack of M networks: either multiplies ``(…, N, 1)``.

    Raises:
        ValueError: if the model has no such coefficient.

    >>> from pinnlib.networks import MLP
    >>> def network(seed):
    ...     return MLP([(0, 1)], generator=torch.Generator().manual_seed(seed))
    >>> stack = Stacked([WithCoefficients(network(seed), k=2.0) for seed in range(3)])
    >>> coefficient(stack, "k").shape
    torch.Size([3, 1, 1])
    """
    owner = owner_of(model)
    if owner is None or name not in owner.start:
        has = [] if owner is None else list(owner.start)
        raise ValueError(
            f"the model has the coefficients {has}, not {name!r}: wrap the network, such as "
            f"WithCoefficients(network, {name}=1.0), with a start of the right order"
        )
    i = list(owner.start).index(name)
    value: Tensor = owner.start[name] * owner.log_shares[..., i : i + 1].exp()
    return value


def owner_of(model: object) -> WithCoefficients | None:
    """The module that holds a model's coefficients, if there are any."""
    inner = model.networks if isinstance(model, Stacked) else model
    return inner if isinstance(inner, WithCoefficients) else None
