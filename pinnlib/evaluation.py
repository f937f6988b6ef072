"""How wrong a network is: its relative error on a regular grid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pinnlib.derivatives import Model
from pinnlib.problems import Problem

__all__ = ["ErrorOnGrid", "relative_l2_error", "relative_l2_errors"]

CHUNK = 500
"""Points that a model sees at a time, so that a thousand networks need little memory."""


def relative_l2_error(model: Model, problem: Problem, n: int = 100) -> float:
    r"""Relative :math:`L_2` error on a regular grid; predicting zero everywhere has the error 1.

    .. math:: \frac{\lVert u_\theta - u \rVert_2}{\lVert u \rVert_2}

    over all outputs together, on the device and in the precision of the model's parameters. Outputs
    that the problem calls ``hidden``, which have no reference, do not count.

    Args:
        model: maps points ``(N, d)`` to values ``(N, m)``; left in its mode, training or not.
        problem: gives the grid and the reference solution u.
        n: grid points along each input.

    Returns:
        The error, without a unit; nan if a prediction is nan.

    Raises:
        ValueError: if the problem has no reference, if that is zero everywhere or not finite, if
            it or the prediction is not ``(N, m)``, or the model is a stack.

    >>> from pinnlib.problems import KleinGordon
    >>> relative_l2_error(lambda x: torch.zeros(len(x), 1), KleinGordon())
    1.0
    """
    errors = relative_l2_errors(model, problem, n)
    if errors.ndim:
        raise ValueError(
            f"model is a stack with errors {tuple(errors.shape)}: use relative_l2_errors"
        )
    return errors.item()


def relative_l2_errors(model: Model, problem: Problem, n: int = 100) -> Tensor:
    """:func:`relative_l2_error` of a network, ``()``, or of each of a stack of M, ``(M,)``.

    Args:
        model: maps points ``(N, d)`` to values ``(N, m)``, or ``(M, N, m)``.
        problem: gives the grid and the reference solution.
        n: grid points along each input.

    Raises:
        ValueError: as :func:`relative_l2_error`.

    >>> from pinnlib.problems import KleinGordon
    >>> factors, u = torch.tensor([1.0, 1.5, 3.0])[:, None, None], KleinGordon().exact
    >>> relative_l2_errors(lambda x: factors * u(x), KleinGordon())
    tensor([0.0000, 0.5000, 2.0000])
    """
    return ErrorOnGrid(problem, n, **placement(model))(model)


class ErrorOnGrid:
    """:func:`relative_l2_errors` of many models on one grid, for which u is computed once only.

    Args:
        problem: gives the grid and the reference solution.
        n: grid points along each input.
        device: where the models live.
        dtype: their precision.

    Raises:
        ValueError: as :func:`relative_l2_error`.

    >>> from pinnlib.problems import KleinGordon
    >>> error = ErrorOnGrid(KleinGordon(), n=20)
    >>> error(lambda x: 0 * x[:, :1]), error(KleinGordon().exact)
    (tensor(1.), tensor(0.))
    """

    def __init__(
        self,
        problem: Problem,
        n: int = 100,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.points = problem.grid(n, device=device, dtype=dtype)
        self.reference = reference_values(problem, self.points)
        self.hidden = problem.hidden
        self.norm = _norm(self.reference.split(CHUNK))
        if not 0 < self.norm < torch.inf:
            raise ValueError(
                f"the reference has the norm {self.norm.item()} on the grid: an error relative to "
                "it does not exist, measure the absolute one"
            )

    @torch.no_grad()
    def __call__(self, model: Model) -> Tensor:
        """The error of a network, ``()``, or of each network of a stack, ``(M,)``."""
        chunks = zip(self.points.split(CHUNK), self.reference.split(CHUNK), strict=True)
        return _norm(predict(model, x, u.shape[-1], self.hidden) - u for x, u in chunks) / self.norm


def _norm(chunks: Iterable[Tensor]) -> Tensor:
    """L₂ norm of values ``(…, N, m)`` that come in chunks of points, ``(…)``."""
    norms = [torch.linalg.vector_norm(values, dim=(-2, -1)) for values in chunks]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms, dim=-1), dim=-1)
    return norm


def placement(model: Model) -> dict[str, Any]:
    """Where a model lives: the ``device`` and ``dtype`` of its first parameter, if it has one."""
    for p in model.parameters() if isinstance(model, nn.Module) else ():
        if p.is_floating_point():
            return {"device": p.device, "dtype": p.dtype}
    return {}


@torch.no_grad()
def reference_values(problem: Problem, x: Tensor) -> Tensor:
    """The reference at points ``(N, d)``, as ``(N, m)`` on their device, in float32 or better.

    Raises:
        TypeError: if the reference does not return a tensor.
        ValueError: if there is none, its shape is another, or a value is not finite.
    """
    name = type(problem).__name__
    if problem.reference is None:
        raise ValueError(
            f"{name} has no reference solution: pass {name}(reference=…), a function of points, "
            "or look at its losses on fresh points"
        )
    u = problem.reference(x.to(torch.promote_types(x.dtype, torch.float32)))
    _check_values("reference", u, x)
    if not u.isfinite().all():
        bad = u[~u.isfinite()]
        raise ValueError(
            f"the reference of {name} has {len(bad)} values of {u.numel()} that are not finite, "
            f"such as {bad[0].item()}: it must cover the domain"
        )
    return u.to(x.device)


def predict(model: Model, x: Tensor, m: int, hidden: int) -> Tensor:
    """What a model says at points ``(N, d)``: ``(N, m)``, or ``(M, N, m)`` for a stack.

    It may have ``hidden`` more outputs, the last ones, which are left out.

    Raises:
        TypeError: if it does not return a tensor.
        ValueError: if the shape is another.
    """
    u = model(x)
    _check_values("model", u, x)
    if u.shape[-1] not in (m, m + hidden):
        more = f", and {hidden} more may have none" if hidden else ""
        raise ValueError(f"model has {u.shape[-1]} outputs, but the reference has {m}{more}")
    return u[..., :m]


def _check_values(name: str, u: Any, x: Tensor) -> None:
    if not isinstance(u, Tensor):
        raise TypeError(f"{name} returns a {type(u).__name__}: let it return a tensor (N, m)")
    if u.ndim < 2 or u.shape[-2] != len(x):
        raise ValueError(
            f"{name} maps {tuple(x.shape)} to {tuple(u.shape)}: let it return (N, m) for (N, d), "
            "so index columns as x[..., :1]"
        )
