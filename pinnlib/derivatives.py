"""Derivatives of a network's output with respect to its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from pinnlib.networks import MLP

Model = Callable[[Tensor], Tensor]
"""Anything that maps points ``(N, d)`` to values ``(N, m)``, a module or a plain function."""


class Derivatives(Protocol):
    """The signature that :func:`nested` and :func:`taylor` share.

    >>> from pinnlib.problems import KleinGordon
    >>> KleinGordon(derivatives=taylor).derivatives.__name__
    'taylor'
    """

    def __call__(
        self, model: Model, x: Tensor, order: int = 2
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Map points ``(N, d)`` to u ``(N, m)`` and its first and second derivatives by each input.

        Args:
            model: maps points to values.
            x: points, ``(N, d)``, or ``(M, N, d)`` for a stack of M networks.
            order: 2, or 1 to leave out the second derivatives.

        Returns:
            u, and two tuples with a tensor of its shape for each input, the second ``()`` for
            order 1.
        """
        ...


@torch.enable_grad()  # under no_grad, all derivatives would silently be zero
def nested(
    model: Model, x: Tensor, order: int = 2
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    r"""Output, first and pure second derivatives by nested automatic differentiation.

    Returns :math:`u`, :math:`(\partial u/\partial x_1, …, \partial u/\partial x_d)` and
    :math:`(\partial^2 u/\partial x_1^2, …, \partial^2 u/\partial x_d^2)`. They stay connected to
    the parameters, so that a loss made of them can be differentiated again, under
    ``torch.no_grad()`` too. The points must be independent of one another: no layer may mix the
    rows of a batch, as batch normalisation does.

    Args:
        model: maps points to values.
        x: points, ``(N, d)``, or ``(M, N, d)`` for a stack of M networks.
        order: 2, or 1 to leave out the second derivatives; the third result is then ``()``.

    Returns:
        ``u`` of shape ``(N, m)``, ``(M, N, m)`` for a stack, and two tuples with ``d`` tensors of
        that shape each.

    Raises:
        ValueError: if ``order`` is not 1 or 2, if ``x`` is not a batch of points, or the model
            does not map each of them to m values.

    >>> x = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    >>> u, (u_x, u_t), (u_xx, u_tt) = nested(lambda x: x[:, :1] ** 2 * x[:, 1:], x)
    >>> u.item(), u_x.item(), u_t.item(), u_xx.item(), u_tt.item()
    (12.0, 12.0, 4.0, 6.0, 0.0)
    """
    _check(x, order)
    x = x.detach().requires_grad_(True)
    u = model(x)
    if u.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"model maps {tuple(x.shape)} to {tuple(u.shape)}: let it return (N, m) for (N, d)"
        )
    columns = range(x.shape[-1])
    gradients = [_derivative(component, x) for component in u.unbind(-1)]
    first = tuple(torch.stack([g[..., j] for g in gradients], dim=-1) for j in columns)
    if order == 1:
        return u, first, ()
    second = tuple(
        torch.stack([_derivative(g[..., j], x)[..., j] for g in gradients], dim=-1) for j in columns
    )
    return u, first, second


def _derivative(y: Tensor, x: Tensor) -> Tensor:
    """∂y_i/∂x_i for each point i, ``(N, d)``; zero where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    # y_i depends on point i only, so the gradient of the sum holds every point's own gradient.
    (gradient,) = torch.autograd.grad(
        y.sum(), x, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient


def taylor(
    model: Model, x: Tensor, order: int = 2
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    r"""The same numbers as :func:`nested`, carried forward through the network (Taylor mode).

    Beside each value :math:`z` of a layer travel its derivatives with respect to every input
    :math:`x_j`. A linear layer maps each of them by its weights; :math:`h = \tanh z` maps them by

    .. math:: h_{x_j} &= (1 - h^2)\, z_{x_j}, \\
        h_{x_j x_j} &= (1 - h^2)\, z_{x_j x_j} - 2 h (1 - h^2)\, z_{x_j}^2 ,

    the chain rule and its derivative (:cite:t:`griewank2008`, chapter 13). No backward pass is
    needed before that of the loss, so there is less to compute and to remember.

    Args:
        model: a network of :mod:`pinnlib.networks`; for any other, use :func:`nested`.
        x: points, ``(N, d)``, or ``(M, N, d)`` for a stack of M networks.
        order: 2, or 1 to leave out the second derivatives; the third result is then ``()``.

    Returns:
        ``u`` of shape ``(N, m)``, ``(M, N, m)`` for a stack, and two tuples with ``d`` tensors of
        that shape each.

    Raises:
        ValueError: if ``order`` is not 1 or 2, if ``x`` is not a batch of points, or the model is
            of another kind, or has a ``forward`` or ``normalize`` of its own.

    >>> generator = torch.Generator().manual_seed(0)
    >>> model = MLP([(0, 1), (0, 1)], generator=generator).double()
    >>> x = torch.tensor([[0.2, 0.3]], dtype=torch.float64)
    >>> (_, _, (u_xx, _)), (_, _, (v_xx, _)) = taylor(model, x), nested(model, x)
    >>> torch.allclose(u_xx, v_xx, rtol=1e-12)
    True
    """
    _check(x, order)
    if not isinstance(model, MLP) or any(
        getattr(type(model), name) is not getattr(MLP, name) for name in ("forward", "normalize")
    ):
        raise ValueError(
            f"model is a {type(model).__name__}: taylor knows the layers of MLP and StackedMLP "
            "only, use nested for any other"
        )
    start, *rest = cast("list[nn.Linear]", list(model.layers))
    z = start(model.normalize(x))
    # z is linear in x here: its first derivatives are columns of the weights, the second are zero.
    slopes = start.weight * (2 / (model.high - model.low))
    first = [column[..., None, :] for column in slopes.unbind(-1)]
    second = [torch.zeros_like(z_x) for z_x in first[: len(first) * (order - 1)]]
    for layer in rest:
        h = torch.tanh(z)
        slope = 1 - h * h
        bend = -2 * h * slope
        W = layer.weight.mT
        z = layer(h)
        second = [
            (slope * z_xx + bend * z_x * z_x) @ W for z_x, z_xx in zip(first, second, strict=False)
        ]
        first = [(slope * z_x) @ W for z_x in first]
    return z, tuple(first), tuple(second)


def _check(x: Tensor, order: int) -> None:
    if order not in (1, 2):
        raise ValueError(f"order is {order}: derivatives of order 1 and 2 are computed")
    if x.ndim < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: pass points as (N, d)")
