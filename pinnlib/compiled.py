"""The losses and their gradient matrix as one compiled function."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pinnlib.gradients import (
    check_loss_value,
    check_losses,
    check_used,
    gradient_rows,
    trainable,
)

Batch = Mapping[str, Tensor]
"""Points by set name, as :meth:`pinnlib.problems.base.Problem.sample` gives them."""


class CompiledGradients:
    r"""Losses and gradient matrix as one machine-code function, for training loops of any kind.

    The first call runs the losses and their backward passes once and records every operation, the
    derivatives with respect to the inputs among them. ``torch.compile`` turns the record, one graph
    without a break, into machine code. Later calls with batches of the same shapes run that code
    and nothing else; a batch of other shapes is compiled at its first use. The parameters are read
    anew at every call.

    Without a C++ compiler the recorded operations run one by one instead, and a warning says so.

    Args:
        losses: turns a batch into the unweighted scalar loss of each term. It is recorded, so it
            must do the same operations at every call: no branch on a tensor's value, no random
            numbers (draw the points outside), no layer that behaves differently while training.
        params: the parameters θ; those frozen at the first call are left out.
        stack: ``(S,)`` for the losses of a stack of S networks.

    Raises:
        ValueError: as :func:`pinnlib.gradients.gradient_matrix`, apart from gradients that are not
            finite, which :meth:`pinnlib.balancing.GradientBalancer.update` refuses.

    >>> from pinnlib.networks import MLP
    >>> from pinnlib.problems import Helmholtz
    >>> generator, problem = torch.Generator().manual_seed(0), Helmholtz()
    >>> model = MLP(problem.domain, generator=generator)
    >>> gradients = CompiledGradients(
    ...     lambda batch: problem.losses(model, batch), model.parameters()
    ... )
    >>> losses, G = gradients(problem.sample(128, generator))  # doctest: +SKIP
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
        self.used: list[list[bool]] = []
        """Which of the parameters each term uses; known after the first call."""
        self._compiled: dict[object, Callable[[Batch], tuple[dict[str, Tensor], Tensor]]] = {}

    def __call__(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Losses by term, detached, and their gradient matrix ``(K, P)``."""
        shapes = tuple((name, x.shape, x.dtype, x.device) for name, x in batch.items())
        if shapes not in self._compiled:
            self._compiled[shapes] = self._compile(batch)
        with torch.no_grad():
            losses, G = self._compiled[shapes](batch)
        for term, loss in losses.items():
            check_loss_value(term, loss)
        return losses, G

    def _compile(self, batch: Batch) -> Callable[[Batch], tuple[dict[str, Tensor], Tensor]]:
        losses = self.losses(batch)
        check_losses(losses, self.stack)
        _, self.used = gradient_rows(losses, self.params, stack=self.stack)
        check_used(losses, self.used)

        def function(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
            losses = self.losses(batch)
            G, _ = gradient_rows(losses, self.params, stack=self.stack)
            return {term: loss.detach() for term, loss in losses.items()}, G

        recorded = make_fx(function)(batch)
        recorded.graph.eliminate_dead_code()
        recorded.recompile()
        compiled = torch.compile(recorded, fullgraph=True, dynamic=False)
        try:
            with torch.no_grad():
                compiled(batch)
        except Exception as error:
            reason = " ".join(str(error).strip().splitlines()[:2])
            warnings.warn(
                f"the compiler failed ({reason}): training goes on without it, more slowly; "
                "a C++ compiler such as g++ is needed",
                stacklevel=3,
            )
            return recorded
        return compiled
