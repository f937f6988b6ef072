"""Several processes, each with a share of the points: what ``Step`` takes as ``reduce``.

One process a device, started by ``torchrun``; gloo on CPUs, NCCL on GPUs, the same code.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["alone", "sum_over_processes"]  # the rest is for Step

Sum = Callable[[Tensor], Tensor]


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes of the default group, the same on each.

    Each process has to take part. One that stops ends the others with an error; one that goes on
    without taking part, after an error that it has caught, keeps them waiting for the time limit of
    the group (``timeout`` of ``init_process_group``).

    Args:
        x: of the same shape on each process.

    Raises:
        RuntimeError: if there is no process group, or another process has stopped.

    >>> sum_over_processes.__name__  # needs torchrun: see the chapter
    'sum_over_processes'
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "there is no process group: call torch.distributed.init_process_group first, in a "
            "program that torchrun has started"
        )
    total = x.contiguous().clone()
    try:
        dist.all_reduce(total)
    except RuntimeError as error:
        raise RuntimeError(
            f"process {dist.get_rank()} waits in vain for another one, which has stopped: see "
            f"that one's own message ({error})"
        ) from error
    return total


def alone(x: Tensor) -> Tensor:
    """The tensor itself: for processes that train a network of their own each.

    >>> import torch
    >>> alone(torch.tensor(2.0))
    tensor(2.)
    """
    return x


def check_processes(reduce: Sum | None) -> None:
    """Refuse a step of one among many processes that does not look at the others."""
    is_parallel = dist.is_available() and dist.is_initialized()
    if reduce is None and is_parallel and (size := dist.get_world_size()) > 1:
        raise ValueError(
            f"this is one of {size} processes, and gradients measured here stay here "
            "(DistributedDataParallel does not see them): use Step(…, "
            "reduce=pinnlib.distributed.sum_over_processes), or reduce=pinnlib.distributed.alone "
            "if each process trains a network of its own"
        )


def check_alike(things: Mapping[str, Iterable[object]], device: torch.device, reduce: Sum) -> None:
    """Raise a ValueError on every process where the processes do not hold the same things.

    Args:
        things: by the name that a message uses; tensors count bit by bit, the rest by its repr.
        device: where the numbers that are compared travel.
        reduce: adds a tensor over processes.
    """
    # The numbers h are all the same if and only if n Σh² = (Σh)², and that is so on every process.
    numbers = [_digest(parts) for parts in things.values()]
    sums = reduce(torch.tensor([1, *numbers, *(h * h for h in numbers)], device=device)).tolist()
    n, totals, squares = sums[0], sums[1 : len(things) + 1], sums[len(things) + 1 :]
    pairs = zip(things, totals, squares, strict=True)
    if differ := [name for name, total, square in pairs if n * square != total**2]:
        raise ValueError(
            f"the {n} processes differ in {' and '.join(differ)}, so they would train different "
            "networks: start each from the same seed or the same checkpoint, or broadcast the "
            "first one's"
        )


def _digest(parts: Iterable[object]) -> int:
    """A number of 24 bits, whose squares add up exactly over thousands of processes."""
    digest = 0
    for part in parts:
        if isinstance(part, Tensor):
            flat = part.detach().cpu().flatten()
            digest = zlib.crc32(flat.view(torch.uint8).numpy().tobytes(), digest)
            part = (part.shape, part.dtype)
        digest = zlib.crc32(repr(part).encode(), digest)
    return digest >> 8
