"""M networks as one, so that M training runs take one step together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pinnlib.trees import differ

__all__ = ["Stacked"]


class Stacked(nn.Module):
    """M networks of one kind as one, so that M training runs take one step together.

    A stack computes with copies of the networks' linear layers, side by side, and runs all else
    as it is. Parameters and buffers that a module names in its class attribute ``stacks`` are put
    side by side, too, as ``(M, n, k)`` for a matrix, ``(M, 1, k)`` for k numbers and ``(M, 1, 1)``
    for one; its ``forward`` must work with them. Any other parameter is refused.

    Args:
        models: networks of one kind and size, which differ in their numbers only.

    Attributes:
        count: M.

    Shape:
        ``(M, N, d)``, a batch for each network, or ``(N, d)``, one for all, to ``(M, N, outputs)``.

    Raises:
        TypeError: if one of the models is not a module.
        ValueError: if there is no network, they differ in more than numbers, or a stack would not
            compute what they compute; the message names the layer.

    >>> from pinnlib.networks import MLP
    >>> generator = torch.Generator().manual_seed(0)
    >>> stack = Stacked([MLP([(0, 1)], generator=generator) for _ in range(4)])
    >>> stack(torch.zeros(128, 1)).shape, stack.network(3)(torch.zeros(128, 1)).shape
    (torch.Size([4, 128, 1]), torch.Size([128, 1]))
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        models = list(models)
        if not models:
            raise ValueError("models is empty: stack one network or more")
        for model in models:
            if not isinstance(model, nn.Module):
                raise TypeError(f"models has a {type(model).__name__}: stack modules")
            every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
            if len(every) > len(once := dict(model.named_parameters())):
                tied = sorted(set(every) - set(once))
                raise ValueError(f"models share {tied} with another layer: untie it to stack them")
        self.count = len(models)
        self.networks = _merge("model", models)
        # The structure of one network without its numbers, in a tuple: no part of the stack.
        self._one = (copy.deepcopy(models[0]).to("meta"),)
        _check_outputs(self, models)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.networks(x.unsqueeze(0) if x.ndim == 2 else x)
        return output

    def network(self, i: int) -> nn.Module:
        """Network i alone, ``(N, d)`` to ``(N, outputs)``, with copies of its numbers.

        Raises:
            IndexError: if there is no network i.
        """
        if not 0 <= i < self.count:
            raise IndexError(f"i is {i}: the stack has the networks 0 to {self.count - 1}")
        (one,) = self._one
        network = copy.deepcopy(one)
        for name, module in network.named_modules():
            together = self.networks.get_submodule(name)
            module.training = together.training
            for key in _names(module, "_parameters"):
                value = getattr(together, key)
                own = value.detach()[i].reshape(getattr(module, key).shape).clone()
                module._parameters[key] = nn.Parameter(own, value.requires_grad)
            for key in _names(module, "_buffers"):
                own = getattr(together, key)
                if key in _side_by_side(module):
                    own = own[i].reshape(getattr(module, key).shape)
                module._buffers[key] = own.clone()
        return network


_OF_EVERY_MODULE = set(vars(nn.Module())) - {"training"}
_HOOKS = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"]


def _merge(name: str, modules: Sequence[nn.Module]) -> nn.Module:
    """One module with the numbers of several, which must be alike in all else."""
    one = modules[0]
    where = f"{name} ({type(one).__name__})"
    if len({type(module) for module in modules}) > 1:
        kinds = sorted({type(module).__name__ for module in modules})
        raise ValueError(f"{name} is of several kinds, {kinds}: stack networks of one kind")
    if isinstance(one, Stacked):
        raise ValueError(f"{where} is a stack: stack the networks themselves")
    for module in modules:
        if "forward" in vars(module) or any(vars(module)[hooks] for hooks in _HOOKS):
            raise ValueError(
                f"{where} has a hook or a forward of its own: a stack would drop it, so remove it"
            )
        for key in set(vars(one)) | set(vars(module)):
            if key not in _OF_EVERY_MODULE and not _same(
                *(vars(m).get(key) for m in (one, module))
            ):
                raise ValueError(
                    f"{key} of {where} differs: stack networks that differ in numbers only"
                )
        for parts in ("_modules", "_parameters", "_buffers"):
            if _names(module, parts) != _names(one, parts):
                raise ValueError(f"{where} has other {parts[1:]} in another network: stack alike")
    if type(one) is nn.Linear:
        return _StackedLinear(where, modules)
    merged = copy.copy(one)
    for key in _OF_EVERY_MODULE:
        vars(merged)[key] = copy.copy(vars(one)[key])
    for key in _names(one, "_parameters"):
        if key not in _side_by_side(one):
            raise ValueError(
                f"{where} has the parameter {key!r} of its own: name it in the class attribute "
                f"stacks = ({key!r},), if its forward can work with a leading axis of M networks"
            )
        merged._parameters[key] = _stack(where, key, modules)
    for key in _names(one, "_buffers"):
        if key in _side_by_side(one):
            merged._buffers[key] = _stack(where, key, modules)
        elif all(_same(one._buffers[key], module._buffers[key]) for module in modules):
            merged._buffers[key] = getattr(one, key).clone()
        else:
            raise ValueError(f"{key} of {where} differs: stack networks of one domain")
    for key in _names(one, "_modules"):
        merged._modules[key] = _merge(f"{name}.{key}", [m.get_submodule(key) for m in modules])
    return merged


class _StackedLinear(nn.Module):
    """M linear layers of one size as one: weights ``(M, out, in)``, biases ``(M, 1, out)``."""

    def __init__(self, where: str, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.weight = _stack(where, "weight", layers)
        self.bias = None if layers[0].bias is None else _stack(where, "bias", layers)

    def forward(self, h: Tensor) -> Tensor:
        product: Tensor = h @ self.weight.mT
        return product if self.bias is None else product + self.bias


def _stack(where: str, key: str, modules: Sequence[nn.Module]) -> Any:
    """A parameter or buffer of each module, side by side, with two axes or more for each."""
    values: list[Tensor] = [getattr(module, key) for module in modules]
    if len({str((v.shape, v.dtype, v.device)) for v in values}) > 1:
        raise ValueError(f"{key} of {where} has different sizes: stack networks of one size")
    if len({v.requires_grad for v in values}) > 1:
        raise ValueError(f"{key} of {where} is frozen in some networks: freeze it in all or none")
    if any(v._backward_hooks for v in values):
        raise ValueError(f"{key} of {where} has a hook: a stack would drop it, so remove it")
    one, *_ = values
    together = torch.stack(values).reshape(len(values), *[1] * (2 - one.ndim), *one.shape)
    return nn.Parameter(together, one.requires_grad) if isinstance(one, nn.Parameter) else together


def _side_by_side(module: nn.Module) -> Sequence[str]:
    return getattr(type(module), "stacks", ())


def _names(module: nn.Module, parts: str) -> list[str]:
    return [name for name, part in vars(module)[parts].items() if part is not None]


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal; functions are, made of the same lines and values."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, FunctionType):
        cells = ([cell.cell_contents for cell in f.__closure__ or ()] for f in (a, b))
        defaults = ([f.__defaults__, *sorted((f.__kwdefaults__ or {}).items())] for f in (a, b))
        return a.__code__ == b.__code__ and _same(*cells) and _same(*defaults)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(np.array_equal(a, b))


def _check_outputs(stack: Stacked, models: Sequence[nn.Module]) -> None:
    """Try a few points: to index ``x[:, :1]``, for one, means another axis in a stack."""
    x = _points(models[0], stack.count)
    if x is None or x.is_meta:
        return
    devices = [x.device] if x.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        try:  # on copies, whose buffers may change
            alone = [copy.deepcopy(model)(x[i]) for i, model in enumerate(models)]
        except Exception:
            return  # the points were a guess; nothing to compare with
        try:
            is_unlike = differ(copy.deepcopy(stack)(x), torch.stack(alone))
        except Exception as error:
            raise ValueError(f"{_UNLIKE}, but fails: {error}") from error
        if is_unlike:
            raise ValueError(_UNLIKE)


_UNLIKE = (
    "models compute something else on (M, N, d) than on (N, d): use the last axis alone in their "
    "forward, such as x[..., :1] for x[:, :1] and dim=-1 for dim=1"
)


def _points(model: nn.Module, count: int) -> Tensor | None:
    """Three points for each network, where the first layer tells what they look like."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        low, high = getattr(module, "low", None), getattr(module, "high", None)
        if isinstance(low, Tensor) and isinstance(high, Tensor):
            return low + (high - low) * torch.rand(count, 3, len(low), generator=generator).to(low)
        if type(module) is nn.Linear:
            x = torch.rand(count, 3, module.in_features, generator=generator)
            return x.to(module.weight)
    return None
