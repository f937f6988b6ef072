"""Training with balanced gradients: one network, or one for each of many seeds at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pinnlib.history import History, Observation
from pinnlib.loop import adam, decay, default_network, run_loop
from pinnlib.networks import Stacked
from pinnlib.problems import Problem
from pinnlib.step import Batch, Weights, eager


def train(
    problem: Problem,
    model: nn.Module,
    balancer: Weights,
    *,
    steps: int,
    generator: torch.Generator,
    n: int | Mapping[str, int] = 128,
    sample: Callable[[torch.Generator], Batch] | None = None,
    optimizer: Callable[[Sequence[Tensor]], Optimizer] = adam,
    schedule: Callable[[Optimizer], LRScheduler] = decay,
    record_every: int = 100,
    observe: Callable[[Observation], None] | None = None,
    run: Callable[[Callable[..., Any]], Callable[..., Any]] = eager,
) -> History:
    """Train a network, with balanced or with constant weights, on the device where it is.

    Points are drawn anew at every step. A progress bar goes to a terminal; elsewhere nothing is
    printed. Where a loss, a gradient or a weight is not finite, training stops with a warning, and
    what was recorded is returned. Any other error carries the record as its attribute ``history``.

    Args:
        problem: gives points, residuals and, if it has one, the reference solution.
        model: maps points ``(N, d)`` to values ``(N, m)``; trained in place. Coefficients of a
            :class:`pinnlib.coefficients.WithCoefficients` are trained, and do not count in sizes.
        balancer: a balancer, or a constant weight for each term (all 1: a plain PINN).
        steps: number of optimizer steps.
        generator: source of the points, best on the model's device.
        n: points for each set of points, or a number for each, by name.
        sample: draws the points of a step from the generator; ``problem.sample`` by default.
        optimizer: makes the optimizer from the parameters. Its step must take no closure.
        schedule: makes the learning-rate schedule from the optimizer.
        record_every: steps between two entries of the history; the last step is always one.
        observe: called in every step, before the optimizer moves, with what the step has measured.
        run: :func:`pinnlib.step.eager`, or :class:`pinnlib.recording.Recorded` for machine code,
            which takes some seconds at first and pays for trainings of thousands of steps.

    Returns:
        The history of losses, weights and errors.

    Raises:
        TypeError: if the optimizer's step takes a closure.
        ValueError: if ``steps`` or ``record_every`` is not positive, if ``n`` is too small for the
            problem's boundary, if the balancer does not name exactly the problem's terms, or as
            :class:`pinnlib.step.Step` before anything was recorded.

    >>> from pinnlib.networks import MLP
    >>> from pinnlib.problems import Helmholtz
    >>> problem, generator = Helmholtz(), torch.Generator().manual_seed(0)
    >>> model = MLP(problem.domain, generator=generator)
    >>> history = train(
    ...     problem,
    ...     model,
    ...     {"data": 100.0, "pde": 1.0},
    ...     steps=30,
    ...     generator=generator,
    ...     record_every=10,
    ... )
    >>> history.steps.tolist(), history.errors.shape
    ([10, 20, 30], (3,))
    """
    draw = sample or (lambda g: problem.sample(n, g))
    return run_loop(
        problem,
        model,
        balancer,
        lambda: draw(generator),
        names=["the network"],
        stack=(),
        steps=steps,
        optimizer=optimizer,
        schedule=schedule,
        record_every=record_every,
        observe=observe,
        run=run,
    )


def train_many(
    problem: Problem,
    balancer: Weights,
    *,
    seeds: Iterable[int],
    steps: int,
    n: int | Mapping[str, int] = 128,
    network: Callable[[torch.Generator], nn.Module] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    sample: Callable[[torch.Generator], Batch] | None = None,
    optimizer: Callable[[Sequence[Tensor]], Optimizer] = adam,
    schedule: Callable[[Optimizer], LRScheduler] = decay,
    record_every: int = 100,
    observe: Callable[[Observation], None] | None = None,
    run: Callable[[Callable[..., Any]], Callable[..., Any]] = eager,
) -> tuple[Stacked, History]:
    """Train one network a seed, all at once: the same numbers as one :func:`train` each, sooner.

    Seed s draws the initial network and then the points from one generator, so its run equals

    ``generator = torch.Generator().manual_seed(s)`` and
    ``train(problem, MLP(problem.domain, generator=generator), balancer, generator=generator, …)``

    up to rounding. Numbers of the weights may differ from seed to seed, which trains many settings
    at once: a constant weight of shape ``(M,)``, or a rule's ``alpha`` of shape ``(M, 1)``. A
    network that fails gets no gradient any more, a warning names its seed, and the others go on.

    Args:
        problem: as for :func:`train`, like all that is not named here.
        balancer: as for :func:`train`.
        seeds: M seeds; one may stand there more than once, for several settings, whose points are
            then drawn once for all.
        steps: as for :func:`train`.
        n: as for :func:`train`.
        network: makes a network from a generator; by default an :class:`pinnlib.networks.MLP`,
            beside the problem's unknown coefficients if there are any.
        device: where networks and points are made.
        dtype: precision of networks and points, PyTorch's default if ``None``.
        sample: as for :func:`train`.
        optimizer: as for :func:`train`.
        schedule: as for :func:`train`.
        record_every: as for :func:`train`.
        observe: as for :func:`train`.
        run: as for :func:`train`.

    Returns:
        The trained networks as a stack, and their history.

    Raises:
        ValueError: if ``seeds`` is empty, if a residual of the stack differs from that of a single
            network, or as :func:`train`.

    >>> from pinnlib.problems import Helmholtz
    >>> weights = {"data": torch.tensor([1.0, 10.0, 100.0]), "pde": 1.0}
    >>> _, history = train_many(Helmholtz(), weights, seeds=[0, 0, 0], steps=2)
    >>> history.weights["data"][:, -1].tolist()
    [1.0, 10.0, 100.0]
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds:
        raise ValueError("seeds is empty: pass one seed or more")
    if too_large := [seed for seed in seeds if not -(2**63) <= seed < 2**64]:
        raise ValueError(f"seeds {too_large} are too large: use 64 bits at most")
    build = network or partial(default_network, problem)
    draw = sample or (lambda g: problem.sample(n, g))
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    model = Stacked([build(g) for g in generators]).to(device, dtype)

    states = [g.get_state().numpy().tobytes() for g in generators]
    sources = dict(zip(states, generators, strict=True))  # those that will draw the same are one

    def stacked() -> dict[str, Tensor]:
        drawn = {state: draw(g) for state, g in sources.items()}
        batches = [drawn[state] for state in states]
        return {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}

    first = stacked()
    _check_alike(problem, model, first, dtype)
    batches = iter([first])
    history = run_loop(
        problem,
        model,
        balancer,
        lambda: next(batches, None) or stacked(),
        names=[f"seed {seed}" for seed in seeds],
        stack=(len(seeds),),
        steps=steps,
        optimizer=optimizer,
        schedule=schedule,
        record_every=record_every,
        observe=observe,
        run=run,
    )
    return model, history


def _check_alike(problem: Problem, model: Stacked, batch: Batch, dtype: torch.dtype | None) -> None:
    """Refuse a problem whose residuals mix the networks of a stack, or their points."""

    def differ(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str | None:
        for name in a:
            if not (a[name] - b[name]).norm() <= 1e-2 * b[name].norm():
                return name
        return None

    remedy = "index columns as x[..., :1], and reduce over none of the first axes"
    batch = {name: x.to(dtype=dtype) for name, x in batch.items()}
    one, points = model.network(0), {name: x[0] for name, x in batch.items()}
    problem.term_residuals(one, points)  # which checks names and shapes
    alone, again = problem.residuals(one, points), problem.residuals(one, points)
    try:
        together = problem.residuals(model, batch)
    except Exception as error:
        raise ValueError(
            f"the residuals of a network alone can be computed, those of a stack cannot: {remedy}"
        ) from error
    first = {key: r[0] for key, r in together.items()}
    if (name := differ(first, alone)) and not differ(alone, again):  # else it is random
        raise ValueError(
            f"residual {name!r} of a network in a stack differs from that of the network alone: "
            f"{remedy}"
        )
