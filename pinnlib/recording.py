"""A function's operations, recorded once and compiled to machine code."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pinnlib.trees import describe, differ, leaves, named, replace, unhashable
from pinnlib.watching import Watch

__all__ = ["Recorded"]

KEPT = 8
"""How many recordings are kept: a training needs one or two, a batch of changing size no end."""

COMPARED = (2, 100)
"""The calls at which a recording is compared with its function: at once, and after a while."""

WHOLE = {"options": {"cpp_wrapper": True}}
"""On the CPU: one C++ file for all operations, sooner compiled than many, and no Python between."""

# PyTorch records and compiles in one thread at a time only.
_one_at_a_time = threading.Lock()
_devices = {"cpu", getattr(torch.accelerator.current_accelerator(), "type", "cpu")}


class Recorded:
    """A function whose operations are recorded at its first call and compiled.

    Later calls run the machine code and nothing else. Other names, shapes, dtypes or devices,
    another value of an argument that is no tensor, and another state of autocast are recorded at
    their first use. Unlike ``torch.compile`` alone, this takes a function that differentiates, even
    one that differentiates derivatives.

    Tensors that the function reads beside its arguments, such as the parameters of a network, are
    read anew at every call, so change them in place. **All else is read once**, while recording:
    Python numbers, NumPy arrays, attributes, whether a module is training, which parameters are
    frozen, and which tensor a name stands for (``load_state_dict(assign=True)`` and
    ``model.weight = …`` put another in its place). Pass what changes as an argument, or keep it in
    a tensor and change that in place.

    The 2nd and the 100th call of each recording run the function itself, too, and compare. They do
    not see what changes between those calls or later, changes too little, or stands beside random
    numbers, where two runs differ anyway. What the function prints or counts happens only then and
    while recording.

    Where PyTorch's compiler fails, for want of a C++ compiler say, a warning tells the cause, and
    the recorded operations run one by one.

    Args:
        function: takes a batch and further arguments, and returns tensors in tuples, lists and
            dictionaries. It must do the same operations at every call, without a branch or a shape
            that depends on a tensor's value, and change nothing in place that it did not make.
        settings: further ones of ``torch.compile``. ``mode="reduce-overhead"`` replays CUDA graphs;
            without any, all operations on a CPU become one C++ function, with no Python between.

    >>> squares = Recorded(lambda batch: {name: x**2 for name, x in batch.items()})
    >>> squares({"x": torch.tensor([3.0])})
    {'x': tensor([9.])}
    """

    def __init__(self, function: Callable[..., Any], **settings: Any) -> None:
        self.function = function
        self.settings = settings
        self._recordings: dict[object, _Recording] = {}
        self._has_warned = False

    def __call__(self, batch: Any, *args: Any) -> Any:
        """What the function returns for these arguments, detached.

        Args:
            batch: tensors of any shape, in dictionaries, lists and tuples.
            args: the same, and hashable values such as True or None; each has its own recording.

        Raises:
            TypeError: if an argument is neither a tensor nor hashable.
            ValueError: by a first call, if the function asks for a tensor's value, makes a shape of
                it, or changes in place what it did not make. Nothing has changed then.
            RuntimeError: by the 2nd or 100th call, if the function now gives something else.
        """
        arguments = (batch, *args)
        tensors: list[Tensor] = []
        kinds: list[object] = []
        describe(arguments, tensors, kinds)
        around = _around()
        key = (*kinds, *around)
        try:
            recording = self._recordings.get(key)
        except TypeError:
            raise TypeError(unhashable(arguments)) from None
        if recording is None:
            with _one_at_a_time:
                recording = self._recordings.get(key)
                if recording is None:
                    recording = _Recording(self.function, arguments, tensors, self.settings)
                    self._make_room()
                    self._recordings[key] = recording
                return recording.run(tensors, around)  # which compiles
        recording.calls += 1
        if recording.calls in COMPARED and not recording.is_random:
            recording.compare(self.function, arguments, tensors, around)
        return recording.run(tensors, around)

    def _make_room(self) -> None:
        if len(self._recordings) < KEPT:
            return
        del self._recordings[next(iter(self._recordings))]
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"more than {KEPT} kinds of arguments: the oldest recording is dropped, and each "
                "new one takes seconds to compile; keep the shapes of batches the same, and pass a "
                "number that changes as a tensor",
                stacklevel=3,
            )


class _Recording:
    """The operations of a function for arguments of one kind."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        tensors: list[Tensor],
        settings: dict[str, Any],
    ) -> None:
        with _aside(tensors):
            clones = [_clone(x) for x in tensors]
            names = [name for name, x in named(arguments) if isinstance(x, Tensor)]
            watch = Watch(zip(names, clones, strict=True))

            def flat(*inputs: Tensor) -> list[Tensor]:
                with watch:
                    self.result = function(*replace(arguments, iter(inputs)))
                outputs = [x for _, x in leaves(self.result) if isinstance(x, Tensor)]
                self.is_on_cpu = all(x.is_cpu for x in (*inputs, *outputs))
                return [x.detach() if x.requires_grad else x for x in outputs]

            self.operations = make_fx(flat)(*clones)
        for generator, state in watch.generators.items():
            generator.set_state(state)
        # Of the result only the form is needed from here on, so its numbers are let go.
        self.result = replace(self.result, itertools.repeat(torch.empty(0)))
        self.operations.graph.eliminate_dead_code()
        self.operations.recompile()
        wanted = settings or (WHOLE if self.is_on_cpu else {})
        self.compiled: Callable[..., list[Tensor]] = torch.compile(
            self.operations.forward, fullgraph=True, dynamic=False, **wanted
        )
        self.is_set, self.is_random, self.calls = bool(settings), watch.is_random, 1

    def run(self, tensors: list[Tensor], around: tuple[object, ...]) -> Any:
        """The result for these tensors, within what is around."""
        with _shielded(around) if around else torch.no_grad():
            inputs = _inputs(tensors)
            try:
                outputs = self.compiled(*inputs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                outputs = self.operations.forward(*inputs)  # an error here is not the compiler's
                self._without_compiler(error)
            if self.is_set:  # a CUDA graph writes over its outputs at the next call
                outputs = [x.clone() if x.is_cuda else x for x in outputs]
        return replace(self.result, iter(outputs))

    def _without_compiler(self, error: Exception) -> None:
        if "FX to symbolically trace" in str(error):
            return  # another thread is recording, so nothing compiled may run for the moment
        self.compiled = self.operations.forward
        cause = getattr(error, "inner_exception", error)
        name = type(cause).__name__
        reason = " ".join(str(cause).strip().splitlines()[:2])
        hint = ": install a C++ compiler, such as g++" if name == "InvalidCxxCompiler" else ""
        warnings.warn(
            f"PyTorch's compiler failed ({name}: {reason}), and the operations run one by one, "
            f"more slowly{hint}",
            stacklevel=4,
        )

    def compare(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        tensors: list[Tensor],
        around: tuple[object, ...],
    ) -> None:
        """Refuse a function that no longer does what was recorded.

        Both do the same operations one by one here, so that rounding makes no difference.
        """
        with _aside(tensors):
            now = function(*replace(arguments, map(_clone, tensors)))
            with _shielded(around):
                recorded = replace(self.result, iter(self.operations.forward(*_inputs(tensors))))
        before, after = dict(leaves(recorded)), dict(leaves(now))
        for name in before | after:
            if name not in before or name not in after or differ(before[name], after[name]):
                raise RuntimeError(
                    f"call {self.calls}: result{name} of the function is not what its recording "
                    "gives. It reads something that is no tensor, or another tensor than before "
                    "(a number, NumPy points, an attribute, a replaced parameter), which was read "
                    "once, while recording: pass it as an argument, or keep it in a tensor and "
                    "change that in place; or else make a new Recorded"
                )


def _clone(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.contiguous_format).requires_grad_(x.requires_grad)


def _inputs(tensors: list[Tensor]) -> list[Tensor]:
    # One compilation does whatever the strides: PyTorch gives up at the ninth.
    return [(x.detach() if x.requires_grad else x).contiguous() for x in tensors]


def _around() -> tuple[object, ...]:
    """What is switched on around a call and changes it: autocast, inference mode."""
    casts = [(d, torch.get_autocast_dtype(d)) for d in _devices if torch.is_autocast_enabled(d)]
    return (*casts, "inference") if torch.is_inference_mode_enabled() else tuple(casts)


@contextmanager
def _shielded(around: tuple[object, ...]) -> Iterator[None]:
    """Without what is around: a recording holds its casts, and more would be wrong."""
    with ExitStack() as stack:
        for cast in around:
            if isinstance(cast, tuple):
                stack.enter_context(torch.autocast(cast[0], enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def _aside(tensors: list[Tensor]) -> Iterator[None]:
    """With gradients on, and random numbers drawn as if they had not been."""
    devices = {x.device.index for x in tensors if x.device.type == "cuda"}
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        yield
