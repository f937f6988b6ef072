"""Weights that never move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinnlib.residuals import check_terms
from pinnlib.weighting.rule import Rule, Seen, State


@dataclass(frozen=True)
class Constant(Rule):
    """The weights that are given, at every step; all 1 for a plain PINN.

    Args:
        values: a weight for each term, by name: a number, or ``(M,)`` for a stack of M networks.

    Raises:
        ValueError: if a weight is negative, infinite or undefined, or has another shape.

    >>> Constant({"data": 100.0, "pde": 1.0})(Seen(["pde", "data"], torch.ones(2)), {})[0]
    tensor([  1., 100.])
    """

    values: Mapping[str, float | Tensor]

    def __post_init__(self) -> None:
        copies: dict[str, float | Tensor] = {}
        for term, value in self.values.items():
            try:
                device = value.device if isinstance(value, Tensor) else "cpu"
                tensor = torch.as_tensor(value, dtype=torch.float64, device=device).detach()
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(f"weight of {term!r} is {value!r}: pass a number") from None
            if tensor.ndim > 1 or not tensor.numel():
                raise ValueError(
                    f"weight of {term!r} has shape {tuple(tensor.shape)}: pass a number, or (M,) "
                    "for a stack of M networks"
                )
            if not all(0 <= number < torch.inf for number in tensor.flatten().tolist()):
                raise ValueError(
                    f"weight of {term!r} is {value}: pass a finite number that is not negative"
                )
            copies[term] = tensor.clone() if tensor.ndim else tensor.item()
        object.__setattr__(self, "values", copies)

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        check_terms(self.values, terms)
        return {}

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        weights = seen.weights
        stack = weights.shape[:-1]
        columns = []
        for term in seen.terms:
            value = self.values[term]
            if not isinstance(value, Tensor):
                columns.append(weights.new_full(stack, value))
            elif value.shape == stack:
                columns.append(value.to(weights))
            else:
                raise ValueError(
                    f"weight of {term!r} has shape {tuple(value.shape)}, for a stack "
                    f"{tuple(stack)} of networks: pass a number, or one for each network"
                )
        return torch.stack(columns, dim=-1), state
