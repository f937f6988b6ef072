"""The training loop: draw points, measure, observe, step, record."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR
from tqdm import tqdm

from pinnlib.coefficients import WithCoefficients, owner_of
from pinnlib.evaluation import ErrorOnGrid
from pinnlib.history import History, Observation, Recorder
from pinnlib.networks import MLP
from pinnlib.parameters import check_optimizer
from pinnlib.problems import Problem
from pinnlib.residuals import NotFiniteError, check_terms
from pinnlib.step import Batch, Step, Weights
from pinnlib.weighting.balancer import as_balancer

__all__ = ["adam", "decay"]  # the rest is for training


def adam(params: Iterable[Tensor]) -> Optimizer:
    """Adam with the learning rate 5e-3, the optimizer of the book.

    >>> adam([torch.zeros(1, requires_grad=True)]).defaults["lr"]
    0.005
    """
    params = list(params)
    fused = params[0].device.type in ("cpu", "cuda")
    return torch.optim.Adam(params, lr=5e-3, fused=fused)


def decay(optimizer: Optimizer) -> LRScheduler:
    """A learning rate that is multiplied by 0.9 every 1000 steps, the schedule of the book.

    >>> decay(adam([torch.zeros(1, requires_grad=True)])).get_last_lr()
    [0.005]
    """
    return StepLR(optimizer, step_size=1000, gamma=0.9)


def default_network(problem: Problem, generator: torch.Generator) -> nn.Module:
    """The book's network on the problem's domain, beside its unknown coefficients if any."""
    model = MLP(problem.domain, outputs=problem.outputs, generator=generator)
    return WithCoefficients(model, **problem.unknown) if problem.unknown else model


def run_loop(
    problem: Problem,
    model: nn.Module,
    balancer: Weights,
    sample: Callable[[], Batch],
    *,
    names: Sequence[str],
    stack: tuple[int, ...],
    steps: int,
    optimizer: Callable[[Sequence[Tensor]], Optimizer],
    schedule: Callable[[Optimizer], LRScheduler],
    record_every: int,
    observe: Callable[[Observation], None] | None,
    run: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> History:
    """Train until the steps are done, or nothing is left that could be trained.

    Arguments are those of :func:`pinnlib.training.train`, but for ``sample``, which takes nothing,
    ``names`` of the networks for messages, and ``stack``, ``(M,)`` for a stack of M.
    """
    if not all(isinstance(count, Integral) and count >= 1 for count in (steps, record_every)):
        raise ValueError(
            f"steps is {steps!r}, record_every {record_every!r}: use a whole number, 1 or more"
        )
    balancer = as_balancer(balancer)
    check_terms(balancer.terms, problem.terms)

    def terms_of(batch: Batch) -> Mapping[str, Sequence[Tensor]]:
        return problem.term_residuals(model, batch)

    owner = owner_of(model)
    beside = [] if owner is None else [owner.log_shares]
    network = model if owner is None else owner.model
    step = Step(terms_of, network, balancer, beside=beside, stack=stack, run=run)
    device, dtype = step.device, step.params[0].dtype
    moving = optimizer(step.params)
    check_optimizer(moving, step.params)
    slowing = schedule(moving)
    error = None if problem.reference is None else ErrorOnGrid(problem, device=device, dtype=dtype)
    recorder = Recorder(balancer.terms, stack)
    began = balancer.step  # not 0 where a training goes on
    seconds, start = 0.0, perf_counter()
    try:
        # disable=None: silent where there is no terminal, such as in an executed notebook.
        for s in tqdm(range(1, steps + 1), disable=None):
            batch = {name: x.to(device, dtype) for name, x in sample().items()}
            measured = step.measure(batch)
            if observe is not None:
                rows = partial(step.rows, batch)
                observe(Observation(s, model, balancer.terms, measured, rows))
            moving.zero_grad()
            step.apply(measured)
            moving.step()
            slowing.step()
            if s % record_every == 0 or s == steps:
                seconds += perf_counter() - start
                wrong = None if error is None else error(model)
                recorder.add(s, measured, wrong, seconds, _since(began, balancer.failed))
                if recorder.all_failed:
                    break
                start = perf_counter()
    except NotFiniteError as failure:
        if not recorder.entries:
            raise
        recorder.failed = torch.tensor(s - 1)
        warnings.warn(f"training stopped at step {s}: {failure}", stacklevel=3)
    except BaseException as failure:
        if recorder.entries:
            failure.history = recorder.history()  # type: ignore[attr-defined]
            failure.add_note("What was recorded before is the attribute history of this error.")
        raise
    history = recorder.history()
    if stack or step.device.type != "cpu":
        for i, s in history.failures.items():
            warnings.warn(f"{names[i]} failed at step {s}: something was not finite", stacklevel=3)
    return history


def _since(began: int, failed: Tensor) -> Tensor:
    """The balancer's steps of failure, counted from the step at which a training began."""
    return torch.where(failed < 0, -1, (failed - began).clamp(min=0))
