"""One training step's gradient: measure, weigh, combine; eager, compiled, stacked, distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pinnlib.distributed import Sum, alone, check_alike, check_processes
from pinnlib.gradients import is_finite
from pinnlib.measuring import Measured, Measurement
from pinnlib.parameters import accumulate, gradients_of, trainable, widths
from pinnlib.residuals import Term, check_by_name
from pinnlib.weighting import Balancer, ByTerm, Seen, State
from pinnlib.weighting.balancer import as_balancer
from pinnlib.weighting.rule import answer

Batch = Mapping[str, Tensor]
"""Points by set name, as :meth:`pinnlib.problems.Problem.sample` gives them."""
Weights = Balancer | Mapping[str, float | Tensor]
"""A balancer, or a constant weight for each term (all 1 gives a plain PINN)."""


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run the operations of a step one by one; the other way is ``Recorded``.

    >>> eager(abs)(-2)
    2
    """
    return function


class Step:
    r"""From a batch to ``.grad``: the balanced gradient, in place of ``loss.backward()``.

    .. math:: \nabla_\theta \sum_k \lambda_k \mathcal L_k = \sum_k \lambda_k G_k = \lambda G

    Where the rule looks at the rows of G they are reused, so there is one backward pass a term and
    no more. Where it does not, between two updates and for weights that never move, there is one
    pass of the weighted sum. Gradients add up until ``optimizer.zero_grad()``.

    After an error, balancer and ``.grad`` are as they were. Elsewhere than on the CPU, a step does
    not wait for the device: where something is not finite nothing changes, and the error comes
    when a value is asked for (``balancer.by_term``, ``state_dict``, ``check``). The same holds for
    single networks of a stack, on any device; ``balancer.failed`` tells which.

    Args:
        terms_of: turns a batch into the terms, by name: each its unweighted scalar loss, or the
            list of its residuals ``(N, 1)``. With ``run=Recorded`` it is called at the first batch
            of a kind only; see :class:`pinnlib.recording.Recorded` for what it may do.
        params: the parameters θ, or their module; frozen ones are left out, for good.
        balancer: turns what the step shows into weights; or a constant weight for each term.
        beside: what is trained beside the network, such as an unknown coefficient. It gets its
            gradient, but does not count in the sizes; pass it in ``params`` if it should.
        stack: ``(M,)`` for the terms of a stack of M networks.
        run: :func:`eager`, or :class:`pinnlib.recording.Recorded` for machine code.
        reduce: adds a tensor over processes, such as
            :func:`pinnlib.distributed.sum_over_processes`. Losses and gradients are those of all
            points together, if terms are residuals; losses alone count alike on each process.
            Processes that start with other parameters or weights are refused at the first step.

    Raises:
        TypeError: if a term, a parameter or the balancer is of another kind.
        ValueError: by a call: if the names differ from the balancer's, a loss is no scalar, has no
            graph or uses none of the parameters, something is not finite, or there are other
            processes and no ``reduce``.

    >>> theta = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> def terms(batch):
    ...     return {"data": (batch["x"] * theta).sum(), "pde": (theta**2).sum()}
    >>> from pinnlib.weighting import GradientBalancer
    >>> step = Step(terms, [theta], GradientBalancer.simplified(alpha=0.5))
    >>> losses, weights = step({"x": torch.ones(2)})
    >>> weights
    tensor([1.0000, 0.6250], dtype=torch.float64)
    >>> theta.grad
    tensor([2.2500, 4.7500])
    """

    def __init__(
        self,
        terms_of: Callable[[Batch], Mapping[str, Term]],
        params: nn.Module | Iterable[Tensor],
        balancer: Weights,
        *,
        beside: Iterable[Tensor] = (),
        stack: tuple[int, ...] = (),
        run: Callable[[Callable[..., Any]], Callable[..., Any]] = eager,
        reduce: Sum | None = None,
    ) -> None:
        self.terms_of = terms_of
        self.module = params if isinstance(params, nn.Module) else None
        measured = trainable(params)
        self._own = len(measured)
        others = [p for p in beside if p.requires_grad and p not in set(measured)]
        self.params = [*measured, *(trainable(others) if others else [])]
        self.width = sum(widths(measured, stack))
        self.balancer = as_balancer(balancer)
        self.stack, self.reduce = stack, reduce
        self.device = self.params[0].device
        self._sum = None if reduce is alone else reduce
        if self._sum is not None and run is not eager:
            raise ValueError(
                f"reduce talks to other processes, which {run!r} cannot record: leave run out"
            )
        self._is_alike, self._is_recorded = False, run is not eager
        self._kernel = run(self._measure)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add the balanced gradient of a batch to every ``.grad``.

        Args:
            batch: points by set name.

        Returns:
            The unweighted losses and the weights used, ``(…, K)`` each in the order of the
            balancer's terms, detached, on the device.
        """
        measured = self.measure(batch)
        self.apply(measured)
        return measured.losses, self.balancer.weights.clone()

    def measure(self, batch: Batch) -> Measured:
        """The first half of a step, which changes nothing.

        Args:
            batch: points by set name.
        """
        balancer = self.balancer
        self._check()
        weights, state, _ = balancer.placed(self.stack, self.device)
        measured = Measured(*self._kernel(batch, weights, state, balancer.due))
        if self.device.type == "cpu" and not self.stack and not measured.ok:
            measured.explain(balancer)
        return measured

    def apply(self, measured: Measured) -> None:
        """The second half: the balancer takes over its new state, and ``.grad`` is written.

        Args:
            measured: what :meth:`measure` has just returned.
        """
        balancer = self.balancer
        balancer.place(self.stack, self.device)
        weights, state, failed = measured.weights, measured.state, balancer.failed
        direction = measured.direction
        if self.device.type != "cpu" or self.stack:
            weights, state, direction, failed = measured.masked(balancer)
        gradients = gradients_of(self.params, direction, measured.is_used)
        balancer.commit(weights, state, failed)
        accumulate(gradients)

    def rows(self, batch: Batch) -> Tensor:
        """The gradient matrix of a batch, ``(…, K, P)``; with ``reduce``, called on each process.

        Args:
            batch: points by set name.
        """
        self._check()
        found = self._look(batch)
        found.rows()
        assert found.G is not None
        return found.G

    def _look(self, batch: Batch) -> Measurement:
        balancer, values = self.balancer, self.terms_of(batch)
        check_by_name(values, balancer.terms)
        terms = {term: values[term] for term in balancer.terms}
        if self._sum is not None and not self._is_alike:  # at the start; then they stay alike
            kinds = [(name, isinstance(x, Tensor) or len(x)) for name, x in terms.items()]
            weighing = [balancer.every, balancer.step, balancer.weights, *balancer.state.values()]
            things: dict[str, list[Any]] = {"their terms": kinds, "their balancers": weighing}
            check_alike(things | {"their parameters": self.params}, self.device, self._sum)
        return Measurement(terms, self.params, self.width, self.stack, self._sum)

    def _measure(self, batch: Batch, weights: Tensor, state: State, due: bool) -> tuple[Any, ...]:
        """All that a step computes, as a pure function: what ``run`` records."""
        found = self._look(batch)
        if due:
            names = self.balancer.terms
            seen = Seen(names, weights, losses=found.losses, rows=found.rows, probes=found.probes)
            seen.is_recorded = self._is_recorded
            weights, state = answer(self.balancer.rule, seen, state)
        direction = found.direction(weights)
        numbers = torch.cat([found.losses.to(weights), weights], dim=-1)
        ok = is_finite(numbers) & is_finite(direction)
        parts = direction.split(widths(self.params, self.stack), dim=-1)
        for p, part in zip(self.params, parts, strict=True):
            if p.dtype != direction.dtype:  # of several precisions, this is a narrower one
                ok = ok & is_finite(part.to(p.dtype))
        is_used = [any(column) for column in zip(*found.used, strict=True)]
        if self._sum is not None and not self._is_alike:
            check_alike({"the parameters that a term uses": found.used}, self.device, self._sum)
            self._is_alike = True
        return found.losses, weights, state, direction, ok, is_used, found.G

    def _check(self) -> None:
        """Refuse what would be silently wrong."""
        if self.module is not None:
            now = [p for p in self.module.parameters() if p.requires_grad]
            if list(map(id, now)) != list(map(id, self.params[: self._own])):
                raise ValueError(
                    "the module's parameters are not those that this Step was made for (replaced, "
                    "frozen or unfrozen): make a new Step"
                )
        if not all(p.requires_grad for p in self.params):
            raise ValueError("a parameter was frozen after this Step was made: make a new one")
        check_processes(self.reduce)


def balanced_backward(
    losses: Mapping[str, Term],
    params: nn.Module | Iterable[Tensor],
    balancer: Weights,
    *,
    beside: Iterable[Tensor] = (),
) -> ByTerm:
    r"""Take the place of ``loss.backward()``: add the balanced gradient to every ``.grad``.

    .. math:: \nabla_\theta \sum_k \lambda_k \mathcal L_k = \lambda G

    A :class:`Step` for a loop that has its losses at hand. As with ``backward``, gradients add up
    until ``optimizer.zero_grad()``.

    Args:
        losses: unweighted scalar loss of each term, or its residuals, by name.
        params: the parameters to differentiate by, or their module; frozen ones are left out. A
            parameter that is not among them gets no gradient.
        balancer: turns gradients into weights; or a constant weight for each term.
        beside: what is trained beside the network; it does not count in the sizes.

    Returns:
        The weights used, by term, read when they are looked at.

    Raises:
        ValueError: as :class:`Step`. Nothing has changed then.

    >>> from pinnlib.weighting import GradientBalancer
    >>> theta = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> losses = {"data": theta.sum(), "pde": (theta**2).sum()}
    >>> balanced_backward(losses, [theta], GradientBalancer.simplified(alpha=0.5))
    {'data': 1.0, 'pde': 0.625}
    >>> theta.grad
    tensor([2.2500, 4.7500])
    """
    step = Step(lambda _: losses, params, balancer, beside=beside)
    step({})
    return step.balancer.by_term()
