"""The Jacobian of residuals, a row a point, with one backward pass for all rows of a residual."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pinnlib.residuals import check_term

__all__: list[str] = []  # for Gauss-Newton

Terms = Mapping[str, Sequence[Tensor]]
"""Residuals ``(N, 1)`` of each term, by name."""
Residuals = Callable[[], Terms]
"""A closure that gives them."""
Blocks = dict[str, list[tuple[Tensor, Tensor]]]
"""By term, each residual ``(N,)`` with its Jacobian ``(N, P)``."""


class PerPoint(TorchFunctionMode):
    """Linear layers take another copy of their parameters for each point, all of the same values.

    The gradient of a sum of residuals by such copies holds the gradient of each residual by the
    parameters themselves. The copies share their memory.

    Args:
        params: those that are copied.
    """

    def __init__(self, params: Collection[Tensor]) -> None:
        super().__init__()
        self.params = set(params)
        self.copies: dict[tuple[Tensor, int], Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        function = self._linear if func is F.linear else func
        return function(*args, **kwargs or {})

    def _linear(self, input: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
        if weight in self.params:
            copies = self.of(weight, input.shape[-2])
            output = (input.unsqueeze(-2) @ copies.mT).squeeze(-2)
        else:
            output = F.linear(input, weight)
        return output if bias is None else output + self.of(bias, input.shape[-2])

    def of(self, p: Tensor, n: int) -> Tensor:
        """The n copies of a parameter; the parameter itself if it is none of those."""
        if p not in self.params:
            return p
        if (p, n) not in self.copies:
            self.copies[p, n] = p.detach().expand(n, *p.shape).requires_grad_()
        return self.copies[p, n]


def evaluate(residuals_of: Residuals) -> Terms:
    """The residuals by term, with a graph; an error that names what is none."""
    with torch.enable_grad():
        terms = residuals_of()
    if not isinstance(terms, Mapping):
        raise TypeError(
            f"the closure returns a {type(terms).__name__}: let it return the residuals of each "
            "term by name, such as problem.term_residuals(model, batch)"
        )
    for term, value in terms.items():
        if isinstance(value, Tensor):
            raise TypeError(
                f"term {term!r} is a tensor: pass a list of its residuals (N, 1), before they are "
                "squared"
            )
        check_term(term, value)
    return terms


def separable(residuals_of: Residuals, terms: Terms, params: Sequence[Tensor]) -> list[Tensor]:
    """Which parameters enter the residuals through linear layers only, one point at a time.

    Each is judged by a sum of all residuals with different factors: its gradient as autograd gives
    it has to be the one that the rows of the Jacobian give.

    Args:
        residuals_of: gives the residuals.
        terms: what it has just given.
        params: those in question.
    """
    blocks = _flat(terms)
    try:
        with PerPoint(params) as copied:
            again = _flat(evaluate(residuals_of))
    except Exception:  # whatever the closure does with copies; without them it has just worked
        return []
    tolerance = torch.finfo(params[0].dtype).eps ** 0.5
    if [r.shape for r in again] != [r.shape for r in blocks]:
        return []
    found = dict.fromkeys(params, True)
    for r, rows in zip(blocks, again, strict=True):
        factors = torch.arange(1.0, len(r) + 1, device=r.device).cos()[:, None]
        expected = _gradient((factors * r).sum(), params)
        J = _rows(rows, copied, params)
        for p, g in zip(params, expected, strict=True):
            parts = J[p] * factors
            miss = parts.sum(dim=0) - g.flatten()
            found[p] &= bool(miss.norm() <= tolerance * parts.norm())
    return [p for p in params if found[p]]


def jacobian(
    residuals_of: Residuals, params: Sequence[Tensor], separate: Collection[Tensor]
) -> Blocks:
    """Residuals and their derivatives by all parameters, in one order.

    Args:
        residuals_of: gives the residuals.
        params: P entries.
        separate: those for which one backward pass gives all rows of a residual, as
            :func:`separable` finds them. Each entry of the others, such as an unknown coefficient,
            takes a pass for its column.
    """
    with PerPoint(separate) as copied:
        terms = evaluate(residuals_of)
    blocks: Blocks = {}
    for term, residuals in terms.items():
        blocks[term] = []
        for r in residuals:
            rows = _rows(r, copied, [p for p in params if p in copied.params])
            parts = [rows[p] if p in rows else _columns(r, p) for p in params]
            blocks[term].append((r.detach().flatten(), torch.cat(parts, dim=1)))
    return blocks


def _rows(r: Tensor, copied: PerPoint, params: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """By parameter, ``(N, entries)``."""
    n = len(r)
    gradients = _gradient(r.sum(), [copied.of(p, n) for p in params])
    return {p: g.reshape(n, -1) for p, g in zip(params, gradients, strict=True)}


def _columns(r: Tensor, p: Tensor) -> Tensor:
    """``(N, entries)``, a backward pass each through the graph of a backward pass."""
    factors = torch.zeros_like(r, requires_grad=True)
    (gradient,) = _gradient((factors * r).sum(), [p], create_graph=True)
    columns = [_gradient(g, [factors])[0] for g in gradient.reshape(-1)]
    return torch.cat(columns, dim=1)


def _gradient(
    y: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False
) -> Sequence[Tensor]:
    if not (y.requires_grad and inputs):
        return [torch.zeros_like(x) for x in inputs]
    return torch.autograd.grad(
        y, inputs, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )


def _flat(terms: Terms) -> list[Tensor]:
    return [r for residuals in terms.values() for r in residuals]
