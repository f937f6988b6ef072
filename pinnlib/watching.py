"""Sees each operation of a function that is recorded, and refuses those that cannot be repeated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tag, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pinnlib.trees import leaves

__all__: list[str] = []  # for Recorded

# torch.tensor(0.0) makes its tensor out of sight, and lets this operation show it.
_lift = torch.ops.aten.lift_fresh.default


class Watch(TorchDispatchMode):
    """Refuse what a recording would repeat wrongly, before anything has changed.

    These are values of tensors asked for, since the answer may differ at the next call; results
    whose shape depends on values; and tensors changed in place that were not made under watch:
    recording and comparing would change them, too, so not once a call.

    Args:
        arguments: the tensors that the function is given, by name.

    Attributes:
        is_random: whether a random number was drawn.
        generators: those that were drawn from, each with its state before.

    Raises:
        ValueError: names the operation, the tensor and the remedy.
    """

    supports_higher_order_operators = True

    def __init__(self, arguments: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_random = False
        self.generators: dict[torch.Generator, Tensor] = {}
        # Views share their storage, which tells whose they are. Each is kept, so no id is reused.
        self._outside = {_storage(x): (name, x) for name, x in arguments}
        self._made = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tags = getattr(func, "tags", ())
        self.is_random |= Tag.nondeterministic_seeded in tags
        for _, x in leaves((args, kwargs)):
            if isinstance(x, torch.Generator):
                self.generators.setdefault(x, x.get_state())
            elif isinstance(x, Tensor) and x not in self._made and func is not _lift:
                self._outside.setdefault(_storage(x), (f"a tensor {tuple(x.shape)}", x))
        for x in _written(func, args, kwargs):
            if _storage(x) in self._outside:
                raise ValueError(
                    f"{func} changes {self._outside[_storage(x)][0]} in place, which the function "
                    "did not make: work on a clone, or return the new value; put batch "
                    "normalisation into evaluation mode"
                )
        if Tag.dynamic_output_shape in tags and not _is_indexed_by_numbers(func, args):
            raise ValueError(
                f"{func} makes a shape of a tensor's values, which may be another one at the next "
                "call: use torch.where, or numbers as indices"
            )
        try:
            result = func(*args, **kwargs)
        except RuntimeError as error:
            if Tag.data_dependent_output not in tags:
                raise
            raise ValueError(
                f"{func} asks for a tensor's value, which may be another one at the next call: no "
                "branch, print, float() or .item() on a tensor; use torch.where, or run eagerly"
            ) from error
        for _, x in leaves(result):
            if isinstance(x, Tensor):
                self._made[x] = True
        return result


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation changes."""
    if not isinstance(func, torch._ops.OpOverload):
        return
    parameters = func._schema.arguments
    given = dict(zip((a.name for a in parameters), args, strict=False)) | dict(kwargs)
    for a in parameters:
        # Batch normalisation does not say that it writes.
        is_average = a.name in ("running_mean", "running_var") and given.get("training")
        if is_average or (a.alias_info is not None and a.alias_info.is_write):
            for _, x in leaves(given.get(a.name)):
                if isinstance(x, Tensor):
                    yield x


def _is_indexed_by_numbers(func: Any, args: tuple[Any, ...]) -> bool:
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(i is None or i.dtype not in (torch.bool, torch.uint8) for i in args[1])
