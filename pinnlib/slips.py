"""Spots two slips that raise no error while losses are computed: cut derivatives, broadcasts."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from pinnlib.residuals import Term
from pinnlib.trees import leaves

__all__: list[str] = []  # for inspecting

CUT = (
    "holds a derivative that was taken without create_graph=True, which is a constant to the "
    "optimizer: pass the flag to each torch.autograd.grad"
)
# Those that make a residual, or a loss of two tensors.
_DIFFERENCES = {
    *("add", "add_", "sub", "sub_", "rsub", "subtract", "__add__", "__radd__", "__iadd__"),
    *("__sub__", "__rsub__", "__isub__", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
}


class Slips(TorchFunctionMode):
    """Marks each tensor that a slip went into, and all that is computed from it.

    What is computed without a graph, or leaves it by ``detach``, has no mark: where nothing should
    reach the optimizer, nothing is cut. What is written into parts of a tensor is not followed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._marks: MutableMapping[Tensor, dict[str, None]] = WeakTensorKeyDictionary()

    def of(self, term: Term) -> Iterable[str]:
        """What went wrong in a term, its loss or its residuals."""
        return self._merged([x for _, x in leaves(term) if isinstance(x, Tensor)])

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not torch.is_grad_enabled() or func in (Tensor.detach, torch.detach):
            return result
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            return result
        given = [x for _, x in leaves((args, kwargs)) if isinstance(x, Tensor)]
        marks = self._merged(given)
        if func is torch.autograd.grad and not kwargs.get("create_graph"):
            marks[CUT] = None
        if getattr(func, "__name__", "") in _DIFFERENCES and len(given) > 1:
            marks |= _pairs(given[0], given[1])
        if marks:
            for _, x in leaves(result):
                if isinstance(x, Tensor) and x.is_floating_point():
                    self._marks[x] = marks
        return result

    def _merged(self, tensors: list[Tensor]) -> dict[str, None]:
        return {mark: None for x in tensors for mark in self._marks.get(x, ())}


def _pairs(a: Tensor, b: Tensor) -> dict[str, None]:
    """The mark of N numbers and N numbers whose difference has a number for each pair."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    if a.numel() != b.numel() or shape.numel() == a.numel():
        return {}
    mark = (
        f"adds or subtracts {tuple(a.shape)} and {tuple(b.shape)}, which gives {tuple(shape)}, a "
        "number for each pair of points: index columns as x[..., :1], or reshape one of the two"
    )
    return {mark: None}
