"""From residuals to the losses of the terms: mean squares, added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["NotFiniteError", "Term", "losses_of", "mean_squares"]  # the rest is for other modules

Term = Tensor | Sequence[Tensor]
"""What a term may be, its scalar loss or its residuals ``(N, 1)``, whose mean squares add up."""


class NotFiniteError(ValueError):
    """A loss, a gradient or a weight is infinite or undefined.

    >>> issubclass(NotFiniteError, ValueError)
    True
    """


def mean_squares(residuals: Sequence[Tensor]) -> Tensor:
    r"""Loss of a term, :math:`\sum_r \frac1N \sum_{i=1}^N r_i^2`.

    Args:
        residuals: ``(N, 1)`` each, ``(M, N, 1)`` for a stack of M networks; N may differ.

    Returns:
        ``()``, or ``(M,)``.

    >>> mean_squares([torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0]])])
    tensor(9.)
    """
    return torch.stack([r.square().mean(dim=(-2, -1)) for r in residuals]).sum(dim=0)


def check_residual(name: str, r: Tensor, stack: tuple[int, ...] = ()) -> None:
    """Raise a ValueError that names the residual if it is not ``(*stack, N, 1)``."""
    if not isinstance(r, Tensor):
        raise TypeError(f"residual {name!r} is a {type(r).__name__}: return a tensor (N, 1)")
    if r.ndim != len(stack) + 2 or r.shape[:-2] != stack or r.shape[-1] != 1:
        wanted = "(" + "".join(f"{size}, " for size in stack) + "N, 1)"
        raise ValueError(
            f"residual {name!r} has shape {tuple(r.shape)}: let it be {wanted}, a number a point; "
            "(N,) against (N, 1) gives (N, N), so index columns as x[..., :1]"
        )


def check_term(term: str, value: Term, stack: tuple[int, ...] = ()) -> None:
    """Raise an error that names the term if it is neither a loss nor a list of residuals."""
    if isinstance(value, Tensor):
        return
    if not (isinstance(value, list | tuple) and value):
        raise TypeError(
            f"loss {term!r} is {value!r}: pass a scalar tensor with a graph, or a list of "
            "residuals (N, 1)"
        )
    for i, r in enumerate(value):
        check_residual(f"{term}[{i}]", r, stack)


def losses_of(terms: Mapping[str, Term], stack: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """The scalar loss of each term, ``()``, or ``(M,)`` where ``stack`` is ``(M,)``.

    Args:
        terms: by name, a scalar loss, or a list of residuals.
        stack: ``(M,)`` for a stack of M networks.

    Raises:
        TypeError: if a term is neither.
        ValueError: if a residual has another shape, or no point.

    >>> losses_of({"data": torch.tensor(2.0), "pde": [torch.tensor([[1.0], [3.0]])]})
    {'data': tensor(2.), 'pde': tensor(5.)}
    """
    losses = {}
    for term, value in terms.items():
        check_term(term, value, stack)
        if isinstance(value, Tensor):
            losses[term] = value
            continue
        for i, r in enumerate(value):
            if not r.numel():
                raise ValueError(
                    f"residual '{term}[{i}]' has no point: sample 1 or more, as a mean needs one"
                )
        losses[term] = mean_squares(value)
    return losses


def check_differentiable(losses: Mapping[str, Tensor], stack: tuple[int, ...] = ()) -> None:
    """Raise an error that names the term if a loss is no scalar with a graph; reads no value."""
    if not losses:
        raise ValueError("losses is empty: pass one scalar loss for each term")
    if torch.is_inference_mode_enabled():
        raise ValueError("inference_mode is on, which records no graph: leave it first")
    for term, loss in losses.items():
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss {term!r} is {loss!r}: pass a scalar tensor with a graph")
        if loss.shape != stack and (stack or loss.numel() != 1):
            wanted = f"one scalar for each network, {stack}" if stack else "a scalar"
            raise ValueError(f"loss {term!r} has shape {tuple(loss.shape)}: reduce it to {wanted}")
        if not loss.requires_grad:
            raise ValueError(
                f"loss {term!r} has no graph (requires_grad=False): "
                "compute it from the model's output, without detach() or no_grad()"
            )
        if loss.is_complex():
            raise ValueError(f"loss {term!r} is complex ({loss.dtype}): take a real number of it")


def check_finite_losses(losses: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that names the first term whose loss is infinite or undefined."""
    for term, loss in losses.items():
        if not loss.isfinite().all():
            raise NotFiniteError(
                f"loss {term!r} is {loss.tolist()}: lower the learning rate or check its inputs "
                "(losses that a GradScaler has scaled overflow: pass unscaled ones)"
            )


def check_names(terms: Sequence[str]) -> None:
    """Raise an error if the terms are no list of different names."""
    if isinstance(terms, str | set | frozenset) or not all(isinstance(t, str) for t in terms):
        raise TypeError(f"terms is {terms!r}: pass a list of names, in the order of the rows")
    if not terms:
        raise ValueError("terms is empty: pass the names of the loss terms")
    if twice := sorted({term for term in terms if terms.count(term) > 1}):
        raise ValueError(f"terms names {twice} more than once: give each term its own name")


def check_terms(names: Iterable[str], terms: Iterable[str]) -> None:
    """Raise a ValueError that says which names are missing or unknown."""
    names, terms = list(names), list(terms)
    missing, unknown = ([n for n in a if n not in b] for a, b in ((terms, names), (names, terms)))
    if missing or unknown:
        raise ValueError(
            f"terms {missing} are missing and {unknown} are unknown: pass exactly {terms}, "
            "at every step"
        )


def check_by_name(losses: object, terms: Sequence[str]) -> None:
    """Raise an error unless there is a loss for each of these terms, by name."""
    if not isinstance(losses, Mapping):
        names = list(terms)
        raise TypeError(f"losses have no names: pass a dictionary, with a loss for each of {names}")
    check_terms(losses, terms)
