"""Losses, gradients and balancing as machine code, by recording and compiling their operations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pinnlib.gradients import (
    check_differentiable,
    check_loss_value,
    check_used,
    gradient_rows,
    trainable,
)

Batch = Mapping[str, Tensor]
"""Points by set name, as :meth:`pinnlib.problems.base.Problem.sample` gives them."""


class Recorded:
    """A function whose operations are recorded at its first call and compiled.

    Later calls with tensors of the same shapes run the machine code and nothing else; other shapes
    are recorded at their first use. What the function reads beside its arguments, such as the
    parameters of a network, is read anew at every call. Unlike ``torch.compile`` alone, this takes
    a function that differentiates, even one that differentiates derivatives.

    Without a C++ compiler the recorded operations run one by one instead, and a warning says so.

    Args:
        function: takes a batch and tensors, returns tensors in tuples, lists and dictionaries. It
            must do the same operations at every call: no branch on a tensor's value, no random
            numbers, no layer that behaves differently while training.

    >>> squares = Recorded(lambda batch: {name: x**2 for name, x in batch.items()})
    >>> squares({"x": torch.tensor([3.0])})
    {'x': tensor([9.])}
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._compiled: dict[object, Callable[..., Any]] = {}

    def __call__(self, batch: Batch, *tensors: Tensor) -> Any:
        """What the function returns for these arguments, detached.

        Args:
            batch: tensors by name, of any shape.
            tensors: further ones.
        """
        everything = [*batch.items(), *enumerate(tensors)]
        shapes = tuple((name, x.shape, x.dtype, x.device) for name, x in everything)
        with torch.no_grad():
            if shapes not in self._compiled:
                self._compiled[shapes] = self._compile(batch, *tensors)
            return self._compiled[shapes](batch, *tensors)

    def _compile(self, batch: Batch, *tensors: Tensor) -> Callable[..., Any]:
        with torch.enable_grad():
            recorded = make_fx(lambda *args: self.function(*args))(batch, *tensors)
        recorded.graph.eliminate_dead_code()
        recorded.recompile()
        compiled = torch.compile(recorded, fullgraph=True, dynamic=False)
        try:
            compiled(batch, *tensors)
        except Exception as error:
            reason = " ".join(str(error).strip().splitlines()[:2])
            warnings.warn(
                f"the compiler failed ({reason}): training goes on without it, more slowly; "
                "if no C++ compiler was found, install one, such as g++",
                stacklevel=4,
            )
            return recorded
        return compiled


class CompiledGradients:
    r"""Losses and gradient matrix as one compiled function, for training loops of any kind.

    All weighting rules can share it: what becomes of the matrix is decided outside. See
    :class:`Recorded` for what is done, and what the losses may do. The first call takes seconds.

    Args:
        losses: turns a batch into the unweighted scalar loss of each term.
        params: the parameters θ; those that are frozen now are left out. Freeze none afterwards.
        stack: ``(M,)`` for the losses of a stack of M networks.

    Raises:
        ValueError: as :func:`pinnlib.gradients.gradient_matrix`, apart from gradients that are not
            finite, which :meth:`pinnlib.balancing.GradientBalancer.update` refuses.

    >>> theta = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> def losses(batch):
    ...     return {"data": (batch["x"] * theta).sum(), "pde": (theta**2).sum()}
    >>> gradients = CompiledGradients(losses, [theta])
    >>> values, G = gradients({"x": torch.ones(2)})
    >>> G
    tensor([[1., 1.],
            [2., 6.]])
    """

    def __init__(
        self,
        losses: Callable[[Batch], Mapping[str, Tensor]],
        params: Iterable[Tensor],
        stack: tuple[int, ...] = (),
    ) -> None:
        self.losses = losses
        self.params = trainable(params)
        self.stack = stack
        self._recorded = Recorded(self._losses_and_rows)

    def _losses_and_rows(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        losses = self.losses(batch)
        check_differentiable(losses, self.stack)
        G, used = gradient_rows(losses, self.params, stack=self.stack)
        check_used(losses, used)
        return {term: loss.detach() for term, loss in losses.items()}, G

    def __call__(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Differentiate the losses of a batch.

        Args:
            batch: points by set name.

        Returns:
            The losses by term, detached, ``()`` or ``(M,)`` each, and their gradient matrix,
            ``(K, P)`` or ``(M, K, P)``.

        Raises:
            ValueError: as the class says; a loss that is not finite is named at every call.
        """
        losses: dict[str, Tensor]
        losses, G = self._recorded(batch)
        for term, loss in losses.items():
            check_loss_value(term, loss)
        return losses, G
