"""Which parameters are trained, and which column of the gradient matrix belongs to which."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

__all__: list[str] = []  # for the modules below this one

Used = Sequence[Sequence[bool]]
"""Whether a term, the row, uses a parameter, the column."""


def trainable(params: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    """The parameters that are not frozen, shared ones once; an error that says what is wrong."""
    if isinstance(params, Tensor):
        raise TypeError("params is one tensor: pass a list, such as model.parameters()")
    kept: dict[Tensor, None] = {}
    for p in params.parameters() if isinstance(params, nn.Module) else params:
        if not isinstance(p, Tensor):
            raise TypeError(
                f"params holds a {type(p).__name__}: pass tensors, as model.parameters() does"
            )
        shape = tuple(p.shape)
        if hasattr(p, "device_mesh") or hasattr(p, "_is_flat_param"):
            raise ValueError(
                f"a parameter {shape} is sharded (FSDP, DTensor): no process sees all its columns "
                "of the gradient matrix, so keep the parameters whole on each"
            )
        if not p.requires_grad:
            continue
        if p.is_complex():
            raise ValueError(
                f"a parameter {shape} is complex ({p.dtype}): keep real and imaginary part apart"
            )
        if not p.is_leaf:
            raise ValueError(
                f"a parameter {shape} was computed from others: pass those, as .grad stays there"
            )
        if getattr(p, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"a parameter {shape} has a hook after accumulation, which never runs here: "
                "remove it, and call the optimizer after the backward pass"
            )
        kept[p] = None
    if not sum(p.numel() for p in kept):
        raise ValueError(
            "there is no trainable parameter: pass some with requires_grad=True, and in a list if "
            "they are passed more than once, as a generator is spent by its first use"
        )
    if len(devices := {str(p.device) for p in kept}) > 1:
        raise ValueError(f"parameters lie on {sorted(devices)}: keep them on one device")
    _check_whole(kept)
    return list(kept)


def _check_whole(params: Container[Tensor]) -> None:
    """Refuse parameters that FSDP has gathered for a while: their ``.grad`` would be lost."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    state = sys.modules["torch.distributed._composable_state"]
    for module in state._module_state_mapping:
        if isinstance(module, fsdp.FSDPModule) and any(p in params for p in module.parameters()):
            raise ValueError(
                f"{type(module).__name__} is sharded (FSDP), and its gradients would come a step "
                "late: keep the parameters whole on each process"
            )


def widths(params: Sequence[Tensor], stack: tuple[int, ...] = ()) -> list[int]:
    """How many columns of the gradient matrix belong to each parameter."""
    networks = torch.Size(stack).numel()
    return [p.numel() // networks for p in params]


def used_columns(
    used: Used, params: Sequence[Tensor], stack: tuple[int, ...] = ()
) -> Tensor | None:
    """Which entries each term uses, ``(K, P)``; ``None`` where every term uses all."""
    if all(map(all, used)):
        return None
    device = params[0].device
    sizes = widths(params, stack)
    return torch.stack(
        [
            torch.cat([torch.full((n,), u, device=device) for n, u in zip(sizes, row, strict=True)])
            for row in used
        ]
    )


def layers(named_params: Iterable[tuple[str, Tensor]]) -> dict[str, list[tuple[int, int, Tensor]]]:
    """First column, last column and tensor of each trainable parameter, by layer name."""
    found: dict[str, list[tuple[int, int, Tensor]]] = {}
    start = 0
    for pair in named_params:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            kind = type(pair).__name__
            raise TypeError(f"named_params holds a {kind}: pass model.named_parameters()")
        name, p = pair
        if p.requires_grad:
            stop = start + p.numel()
            found.setdefault(name.rpartition(".")[0], []).append((start, stop, p))
            start = stop
    return found


def check_matrix(terms: Sequence[str], G: Tensor) -> None:
    """Raise an error if G is no matrix of real numbers with a row for each term."""
    if not isinstance(G, Tensor) or not G.is_floating_point():
        kind = G.dtype if isinstance(G, Tensor) else type(G).__name__
        raise TypeError(f"G is a {kind}: pass a tensor of real floating-point numbers")
    if G.ndim < 2 or G.shape[-2] != len(terms) or not G.shape[-1]:
        raise ValueError(
            f"G has shape {tuple(G.shape)}: it needs one row for each of {list(terms)}, and a "
            "column for each parameter"
        )


def check_width(G: Tensor, wanted: int) -> None:
    """Raise a ValueError if G was computed for other parameters."""
    if G.shape[-1] != wanted:
        raise ValueError(
            f"G has {G.shape[-1]} columns, but the parameters have {wanted} entries: "
            "pass those that G was computed for"
        )


def gradients_of(
    params: Sequence[Tensor], direction: Tensor, is_used: Sequence[bool]
) -> dict[Tensor, Tensor]:
    """A flat gradient ``(…, P)`` as one tensor for each parameter that some term uses."""
    flats = direction.split(widths(params, direction.shape[:-1]), dim=-1)
    gradients = {}
    for p, flat, wanted in zip(params, flats, is_used, strict=True):
        if wanted:
            gradient = flat.reshape(p.shape).to(p.dtype)
            if gradient.stride() != p.stride():  # a fused optimizer reads both in one order
                gradient = torch.empty_like(p).copy_(gradient)
            gradients[p] = gradient
    return gradients


def accumulate(gradients: Mapping[Tensor, Tensor]) -> None:
    """Add to every ``.grad``, in place where there is one, as ``backward`` does."""
    with torch.no_grad():
        for p, gradient in gradients.items():
            if p.grad is None:
                p.grad = gradient
            else:
                p.grad += gradient


def check_optimizer(optimizer: torch.optim.Optimizer, params: Iterable[Tensor]) -> None:
    """Raise an error if an optimizer needs a closure, or does not hold all parameters."""
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    if not set(params) <= trained:
        raise ValueError(
            "the optimizer lacks parameters of the model: give it model.parameters(), and freeze "
            "those that should stay"
        )
    if _needs_closure(type(optimizer).step):
        raise TypeError(
            f"{type(optimizer).__name__} evaluates the losses several times a step, through a "
            "closure: hold the weights constant there"
        )


@cache
def _needs_closure(step: Callable[..., object]) -> bool:
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
