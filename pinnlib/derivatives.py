"""Derivatives of a network's output with respect to its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pinnlib.jets import Jet

__all__ = ["Derivatives", "Model", "nested", "taylor"]

Model = Callable[[Tensor], Tensor]
"""Anything that maps points ``(N, d)`` to values ``(N, m)``, a module or a plain function."""

Derived = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]
"""u, its first derivatives, and its second ones; those of the highest order, or their one sum."""


class Derivatives(Protocol):
    """The signature that :func:`nested` and :func:`taylor` share.

    >>> from pinnlib.problems import KleinGordon
    >>> KleinGordon(derivatives=taylor).derivatives.__name__
    'taylor'
    """

    def __call__(
        self, model: Model, x: Tensor, order: int = 2, *, operator: Sequence[float] | None = None
    ) -> Derived:
        """Map points ``(N, d)`` to u ``(N, m)`` and its first and second derivatives by each input.

        Args:
            model: maps points to values.
            x: points, ``(N, d)``, or ``(M, N, d)`` for a stack of M networks.
            order: 2, or 1 to leave out the second derivatives.
            operator: a number for each input, or None.

        Returns:
            u, and two tuples with a tensor of its shape for each input, the second ``()`` for
            order 1. With an ``operator`` the last of them holds one weighted sum.
        """
        ...


def nested(
    model: Model, x: Tensor, order: int = 2, *, operator: Sequence[float] | None = None
) -> Derived:
    r"""Output, first and pure second derivatives by nested automatic differentiation.

    Returns :math:`u`, :math:`(\partial u/\partial x_1, …, \partial u/\partial x_d)` and
    :math:`(\partial^2 u/\partial x_1^2, …, \partial^2 u/\partial x_d^2)`, or the one sum

    .. math:: \sum_{j=1}^d a_j\, \frac{\partial^2 u}{\partial x_j^2}

    where ``operator`` is :math:`(a_1, …, a_d)`; for order 1 it sums the first derivatives alike.
    They stay connected to the parameters, so that a loss made of them can be differentiated again,
    under ``torch.no_grad()`` and ``torch.inference_mode()`` too. The points must be independent of
    one another: no layer may mix the rows of a batch, as batch normalisation does.

    Args:
        model: maps points to values.
        x: points, ``(N, d)``, or ``(M, N, d)`` for a stack of M networks; no gradient reaches them.
        order: 2, or 1 to leave out the second derivatives; the third result is then ``()``.
        operator: a number for each input; the derivatives of the order asked for then are one
            weighted sum.

    Returns:
        ``u`` of shape ``(N, m)``, ``(M, N, m)`` for a stack, and two tuples with ``d``, 1 or no
        tensors of that shape.

    Raises:
        TypeError: if ``x`` or the model's output is no tensor.
        ValueError: if ``order`` is not 1 or 2, ``operator`` has not a number for each input, ``x``
            is not a batch of points, or the model does not map each of them to m values, or lets no
            derivative through.

    >>> x = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    >>> def model(x):
    ...     return x[:, :1] ** 2 * x[:, 1:]
    >>> u, (u_x, u_t), (u_xx, u_tt) = nested(model, x)
    >>> u.item(), u_x.item(), u_t.item(), u_xx.item(), u_tt.item()
    (12.0, 12.0, 4.0, 6.0, 0.0)
    >>> nested(model, x, operator=(-1, 1))[2]  # u_tt - u_xx
    (tensor([[-6.]], dtype=torch.float64, grad_fn=<AddBackward0>),)
    """
    weights = _check(x, order, operator)
    if torch.is_inference_mode_enabled():  # all derivatives would silently be zero
        with torch.inference_mode(False):
            # A tensor made in inference mode can't be differentiated, its copy can.
            return nested(model, x.clone(), order, operator=operator)
    with torch.enable_grad():  # under no_grad, too
        x = x.detach().requires_grad_(True)
        u = model(x)
        _check_output(u)
        if u.shape[:-1] != x.shape[:-1]:
            raise _misshapen(x, u)
        columns = range(x.shape[-1])
        found = [_derivative(component, x) for component in u.unbind(-1)]
        if all(g is None for g in found):
            _check_constant(model)
        gradients = [torch.zeros_like(x) if g is None else g for g in found]
        first = tuple(torch.stack([g[..., j] for g in gradients], dim=-1) for j in columns)

        def second(j: int) -> Tensor:
            derived = [_derivative(g[..., j], x) for g in gradients]
            zero = torch.zeros_like(u[..., 0])
            return torch.stack([zero if g is None else g[..., j] for g in derived], dim=-1)

        def asked(derivative: Callable[[int], Tensor]) -> tuple[Tensor, ...]:
            if weights is None:
                return tuple(map(derivative, columns))
            summands = [
                derivative(j) if a == 1 else a * derivative(j) for j, a in enumerate(weights) if a
            ]
            return (sum(summands[1:], summands[0]) if summands else torch.zeros_like(u),)

        return (u, asked(first.__getitem__), ()) if order == 1 else (u, first, asked(second))


def _derivative(y: Tensor, x: Tensor) -> Tensor | None:
    """∂y_i/∂x_i for each point i, ``(N, d)``; None where y does not depend on x."""
    if not y.requires_grad:
        return None
    # y_i depends on point i only, so the gradient of the sum holds every point's own gradient.
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True)
    return cast("Tensor | None", gradient)


def taylor(
    model: Model, x: Tensor, order: int = 2, *, operator: Sequence[float] | None = None
) -> Derived:
    r"""The same numbers as :func:`nested`, carried forward through the network (Taylor mode).

    Beside each value :math:`z` of a layer travel its derivatives with respect to every input
    :math:`x_j`, as a :class:`~pinnlib.jets.Jet`. A linear layer maps each of them by its weights;
    :math:`h = \tanh z` maps them by

    .. math:: h_{x_j} &= (1 - h^2)\, z_{x_j}, \\
        h_{x_j x_j} &= (1 - h^2)\, z_{x_j x_j} - 2 h (1 - h^2)\, z_{x_j}^2 ,

    the chain rule and its derivative (:cite:t:`griewank2008`, chapter 13). No backward pass is
    needed before that of the loss, so there is less to compute and to remember; with an
    ``operator``, one derivative of the order asked for travels in place of d.

    Args:
        model: maps points to values by functions that a jet goes through; for any other, use
            :func:`nested`. It runs as it is, with its hooks, on a jet in place of the points.
        x: points, ``(N, d)``, or ``(M, N, d)`` for a stack of M networks; no gradient reaches them.
        order: 2, or 1 to leave out the second derivatives; the third result is then ``()``.
        operator: a number for each input; the derivatives of the order asked for then are one
            weighted sum.

    Returns:
        ``u`` of shape ``(N, m)``, ``(M, N, m)`` for a stack, and two tuples with ``d``, 1 or no
        tensors of that shape.

    Raises:
        TypeError: if ``x`` or the model's output is no tensor.
        ValueError: as :func:`nested`, and if a jet cannot go through the model.

    >>> from pinnlib.networks import MLP
    >>> generator = torch.Generator().manual_seed(0)
    >>> model = MLP([(0, 1), (0, 1)], generator=generator).double()
    >>> x = torch.tensor([[0.2, 0.3]], dtype=torch.float64)
    >>> (_, _, (u_xx, _)), (_, _, (v_xx, _)) = taylor(model, x), nested(model, x)
    >>> torch.allclose(u_xx, v_xx, rtol=1e-12)
    True
    """
    weights = _check(x, order, operator)
    points = Jet.seed(x.detach(), order, weights)
    output: Any = model(cast("Tensor", points))
    if not isinstance(output, Jet):
        _check_output(output)
        _check_constant(model)
        output = Jet(output, [None] * len(points.first), [None] * len(points.second))
    u = output.value
    if u.ndim < x.ndim or u.shape[-x.ndim : -1] != x.shape[:-1]:  # (N, d) serves a stack, too
        raise _misshapen(x, u)

    def full(streams: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(u) if s is None else s.expand(u.shape) for s in streams)

    return u, full(output.first), full(output.second)


def _check(x: Tensor, order: int, operator: Sequence[float] | None) -> tuple[float, ...] | None:
    """Refuse wrong arguments; the operator as floats."""
    if type(order) is not int or order not in (1, 2):
        raise ValueError(
            f"order is {order!r}: pass 1 or 2; take higher ones by torch.autograd.grad yourself"
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}: pass points as a tensor (N, d)")
    if x.ndim < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: pass points as (N, d)")
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}: pass floating-point numbers, such as x.float()")
    if operator is None:
        return None
    numbers = list(operator) if isinstance(operator, Iterable) else []
    # A tensor among them would lose its gradient in Taylor mode.
    if len(numbers) != x.shape[-1] or not all(isinstance(a, Real) for a in numbers):
        raise ValueError(
            f"operator is {operator!r}: pass a number for each of {x.shape[-1]} inputs"
        )
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"operator is {operator!r}: pass finite numbers")
    return tuple(map(float, numbers))


def _check_output(u: object) -> None:
    if not isinstance(u, Tensor):
        raise TypeError(f"model returns a {type(u).__name__}: let it return a tensor (N, m)")


def _misshapen(x: Tensor, u: Tensor) -> ValueError:
    return ValueError(
        f"model maps {tuple(x.shape)} to {tuple(u.shape)}: let it return (N, m) for (N, d)"
    )


def _check_constant(model: Model) -> None:
    """A function may be constant; where a network seems so, its forward has cut the graph."""
    if isinstance(model, nn.Module) and any(True for _ in model.parameters()):
        raise ValueError(
            f"model, a {type(model).__name__}, has parameters, but its output no derivative by the "
            "points: remove detach, no_grad or inference_mode from its forward"
        )
