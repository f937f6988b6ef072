"""Weights by the names of their terms, read when somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor


class ByTerm(Mapping[str, Any]):
    """A mapping from terms to weights, which waits for the device only when a value is asked for.

    Args:
        terms: names of the K terms.
        weights: ``(…, K)``; as numbers, or lists of them for a stack.
        check: raises an error if the weights cannot be trusted.

    >>> import torch
    >>> ByTerm(["data", "pde"], torch.tensor([1.0, 0.5]), check=lambda: None)
    {'data': 1.0, 'pde': 0.5}
    """

    def __init__(self, terms: Sequence[str], weights: Tensor, check: Callable[[], None]) -> None:
        self._terms, self._weights, self._check = terms, weights.clone(), check

    @cached_property
    def _values(self) -> dict[str, Any]:
        self._check()
        return dict(zip(self._terms, self._weights.movedim(-1, 0).tolist(), strict=True))

    def __getitem__(self, term: str) -> Any:
        return self._values[term]

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)

    def __repr__(self) -> str:
        return repr(self._values)
