"""Tensors and other values, nested in tuples, lists and dictionaries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__: list[str] = []  # for Recorded


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What stands in nested values, each with its place after ``name``.

    >>> list(leaves([{"x": 1.0}, None], "batch"))
    [("batch[0]['x']", 1.0), ('batch[1]', None)]
    """
    if isinstance(tree, dict):
        for key, branch in tree.items():
            yield from leaves(branch, f"{name}[{key!r}]")
    elif isinstance(tree, (tuple, list)):
        for i, branch in enumerate(tree):
            yield from leaves(branch, f"{name}[{i}]")
    else:
        yield name, tree


def describe(tree: Any, tensors: list[Tensor], kinds: list[object]) -> None:
    """Collect the tensors of nested arguments, and all else that a recording depends on."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        kinds += (tree.shape, tree.dtype, tree.device, tree.requires_grad)
    elif isinstance(tree, dict):
        kinds.append(tuple(tree))
        for branch in tree.values():
            describe(branch, tensors, kinds)
    elif isinstance(tree, (tuple, list)):
        kinds += (type(tree), len(tree))
        for branch in tree:
            describe(branch, tensors, kinds)
    else:
        kinds += (type(tree), tree)


def replace(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nested values with these tensors in place of theirs, one after the other.

    >>> import torch
    >>> replace({"x": torch.ones(2), "due": True}, iter([torch.zeros(1)]))
    {'x': tensor([0.]), 'due': True}
    """
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, dict):
        return {key: replace(branch, tensors) for key, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        branches = [replace(branch, tensors) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    return tree


def named(arguments: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """What stands in the arguments, by name."""
    for i, argument in enumerate(arguments):
        yield from leaves(argument, f"argument {i}" if i else "batch")


def unhashable(arguments: tuple[Any, ...]) -> str:
    """What is wrong with arguments that make no key."""
    for name, x in named(arguments):
        try:
            hash(x)
        except TypeError:
            return f"{name} is a {type(x).__name__}: pass a tensor, or a hashable value"
    raise AssertionError


def differ(a: Any, b: Any) -> bool:
    """Whether two results are more than a rounding apart; what is not finite is left out."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is not type(b) or bool(a != b)
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return True
    if not a.is_floating_point():
        return not torch.equal(a, b)
    is_finite = a.isfinite() & b.isfinite()
    a, b = a[is_finite], b[is_finite]
    largest = a.norm(torch.inf) if len(a) else 0  # or that of b, unless the two differ
    return bool(((a - b).abs() > torch.finfo(a.dtype).eps ** 0.5 * largest).any())
