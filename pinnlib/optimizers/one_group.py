"""What the optimizers share: one group of parameters, seen as one vector."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pinnlib.parameters import trainable, widths

__all__: list[str] = []  # for the optimizers

MOST = 20_000
"""A matrix of so many rows and columns is accepted; it takes 3.2 GB."""

DRAW = "draw points before the call of step, and nothing in the closure"


def check_repeats(what: str, first: Tensor, again: Tensor, remedy: str) -> None:
    """Refuse a closure that gives something else when nothing has changed.

    Raises:
        ValueError: if the two differ by more than rounding does.
    """
    tolerance = torch.finfo(first.dtype).eps ** 0.5
    norm = torch.linalg.vector_norm
    if first.shape != again.shape or norm(again - first) > tolerance * norm(first):
        raise ValueError(
            f"the closure gives two different {what} at the same parameters, of norms "
            f"{float(norm(first)):.6g} and {float(norm(again)):.6g}: {remedy}"
        )


class OneGroup(Optimizer):
    """An optimizer whose step takes a closure, and up to ``max_iter`` steps on one objective.

    Args:
        params: the parameters, in one group, of one precision and on one device; frozen ones are
            left out.
        max_iter: accepted steps in one call of ``step``.

    Raises:
        ValueError: if there is more than one group, a parameter is complex, sharded or no leaf, if
            there are several precisions or devices, or ``max_iter`` is below 1.
    """

    def __init__(self, params: Iterable[Any], max_iter: int) -> None:
        if isinstance(max_iter, bool) or not isinstance(max_iter, int) or max_iter < 1:
            raise ValueError(f"max_iter is {max_iter!r}: pass a whole number of steps, 1 or more")
        super().__init__(params, {"max_iter": max_iter})
        dtypes = sorted({str(p.dtype) for p in self._params})
        if len(dtypes) > 1:
            raise ValueError(f"parameters are of {dtypes}: keep them in one precision")
        if dtypes != ["torch.float64"]:
            warnings.warn(
                f"parameters are in {dtypes[0]}, in which searches fail early: model.double() "
                f"gives the digits that {type(self).__name__} is for",
                stacklevel=3,
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the one group of parameters.

        Args:
            param_group: as for any optimizer.

        Raises:
            ValueError: if it is the second.
        """
        if self.param_groups:
            name = type(self).__name__
            raise ValueError(f"{name} takes one group of parameters: pass them in one list")
        params = param_group["params"]
        params = trainable([params] if isinstance(params, Tensor) else params)
        super().add_param_group(param_group | {"params": params})

    @property
    def stalled(self) -> bool:
        """Whether the last call of ``step`` ended because no lower loss could be found."""
        return bool(self._memory.get("stalled", False))

    @property
    def _params(self) -> list[Tensor]:
        (group,) = self.param_groups
        params: list[Tensor] = group["params"]
        return params

    @property
    def _memory(self) -> dict[str, Any]:
        """What is kept from one call to the next, and saved with the state."""
        memory: dict[str, Any] = self.state[self._params[0]]
        return memory

    @torch.no_grad()
    def _gather(self, tensors: Sequence[Tensor | None]) -> Tensor:
        pairs = zip(self._params, tensors, strict=True)
        return torch.cat([(torch.zeros_like(p) if t is None else t).reshape(-1) for p, t in pairs])

    def _place(self, x: Tensor) -> None:
        parts = x.split(widths(self._params))
        with torch.no_grad():
            for p, part in zip(self._params, parts, strict=True):
                p.copy_(part.view_as(p))
