"""Training with balanced gradients, and measuring the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from pinnlib.balancing import GradientBalancer
from pinnlib.compiled import Batch, CompiledGradients, Recorded
from pinnlib.derivatives import Model
from pinnlib.gradients import (
    check_differentiable,
    check_finite,
    check_loss_value,
    check_losses,
    check_used,
    gradient_rows,
    mean_abs,
    trainable,
)
from pinnlib.networks import MLP, StackedMLP
from pinnlib.problems import Problem


def balanced_backward(
    losses: Mapping[str, Tensor], params: Iterable[Tensor], balancer: GradientBalancer
) -> dict[str, float]:
    r"""Take the place of ``loss.backward()``: add the balanced gradient to every ``.grad``.

    .. math:: \nabla_\theta \sum_k \lambda_k \mathcal L_k = \sum_k \lambda_k G_k = \lambda G.

    The rows of G that the balancer measured are reused, so there is one backward pass a term and
    no more. As with ``backward``, gradients add up until ``optimizer.zero_grad()``.

    Args:
        losses: unweighted scalar loss of each of the balancer's terms, by name.
        params: the parameters to differentiate by; frozen ones are left out. A parameter that is
            not among them gets no gradient.
        balancer: turns the gradient matrix into weights.

    Returns:
        The weights used, by term.

    Raises:
        ValueError: if the names differ from the balancer's, or for the reasons given for
            :func:`pinnlib.gradients.gradient_matrix`. Nothing has changed then.

    >>> theta = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> losses = {"data": theta.sum(), "pde": (theta**2).sum()}
    >>> balanced_backward(losses, [theta], GradientBalancer.simplified(alpha=0.5))
    {'data': 1.0, 'pde': 0.625}
    >>> theta.grad
    tensor([2.2500, 4.7500])
    """
    _check_terms(losses, balancer.terms)
    losses = {term: losses[term] for term in balancer.terms}
    params = trainable(params)
    check_losses(losses)
    G, used = gradient_rows(losses, params)
    check_used(losses, used)
    weights = balancer.update(G)
    _accumulate(params, weights.to(G) @ G, used)
    return dict(zip(balancer.terms, weights.tolist(), strict=True))


def compiled_backward(
    losses: Callable[[Batch], Mapping[str, Tensor]],
    params: Iterable[Tensor],
    balancer: GradientBalancer,
) -> Callable[[Batch], tuple[dict[str, Tensor], dict[str, float]]]:
    r"""Compile losses and their gradients, to be called in place of :func:`balanced_backward`.

    .. math:: \nabla_\theta \sum_k \lambda_k \mathcal L_k = \lambda G.

    Args:
        losses: turns a batch into the unweighted scalar loss of each of the balancer's terms; see
            :class:`pinnlib.compiled.CompiledGradients` for what it may do.
        params: the parameters to differentiate by; those that are frozen now are left out. Freeze
            none afterwards.
        balancer: turns the gradient matrix into weights.

    Returns:
        A function that takes a batch, adds the balanced gradient to every ``.grad``, and returns
        the losses (detached) and the weights used, by term. Its first call compiles.

    Raises:
        ValueError: as :func:`balanced_backward`, by the returned function.

    >>> theta = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> def losses(batch):
    ...     return {"data": (batch["x"] * theta).sum(), "pde": (theta**2).sum()}
    >>> balancer = GradientBalancer.simplified(alpha=0.5)
    >>> backward = compiled_backward(losses, [theta], balancer)
    >>> values, weights = backward({"x": torch.ones(2)})
    >>> weights
    {'data': 1.0, 'pde': 0.625}
    >>> theta.grad
    tensor([2.2500, 4.7500])
    """
    ordered, params = _in_order(losses, balancer.terms), trainable(params)
    used: list[list[bool]] = []

    def step(batch: Batch, weights: Tensor, first_ratio: Tensor, due: Tensor) -> tuple[Any, ...]:
        values = ordered(batch)
        check_differentiable(values)
        G, used[:] = gradient_rows(values, params)
        check_used(values, used)
        followed = balancer.follow(G, weights, first_ratio)
        weights = torch.where(due, followed[0], weights)
        first_ratio = torch.where(due, followed[1], first_ratio)
        details = {term: value.detach() for term, value in values.items()}
        return details, G, weights, first_ratio, weights.to(G) @ G

    recorded = Recorded(step)

    def backward(batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        state = balancer.weights, balancer.first_ratio, torch.tensor(balancer.due, device="cpu")
        values, G, weights, first_ratio, direction = recorded(batch, *state)
        for term, value in values.items():
            check_loss_value(term, value)
        check_finite(values, G, balancer.step)
        balancer.weights, balancer.first_ratio = weights, first_ratio
        balancer.step += 1
        _accumulate(params, direction, used)
        return values, dict(zip(values, weights.tolist(), strict=True))

    return backward


def _in_order(
    losses: Callable[[Batch], Mapping[str, Tensor]], terms: Sequence[str]
) -> Callable[[Batch], dict[str, Tensor]]:
    """The same losses in the order of the terms, refused if their names differ."""

    def ordered(batch: Batch) -> dict[str, Tensor]:
        values = losses(batch)
        _check_terms(values, terms)
        return {term: values[term] for term in terms}

    return ordered


def _accumulate(
    params: Sequence[Tensor], direction: Tensor, used: Sequence[Sequence[bool]]
) -> None:
    """Add a flat gradient ``(…, P)`` to the ``.grad`` of those parameters that some term uses."""
    stack = direction.shape[:-1].numel()
    flats = direction.split([p.numel() // stack for p in params], dim=-1)
    for p, flat, *is_used in zip(params, flats, *used, strict=True):
        if any(is_used):
            gradient = flat.reshape(p.shape).to(p.dtype)
            if gradient.stride() != p.stride():  # a fused optimizer reads both in one order
                gradient = torch.empty_like(p).copy_(gradient)
            p.grad = gradient if p.grad is None else p.grad + gradient


def _shares_used(used: Sequence[Sequence[bool]], params: Sequence[Tensor]) -> list[float]:
    """Share of the entries of the parameters that each term uses."""
    sizes = [p.numel() for p in params]
    return [sum(compress(sizes, row)) / sum(sizes) for row in used]


class AdaptivePINN:
    r"""A network with the weight of its PDE term, and the training step that balances both terms.

    The simplified learning-rate annealing: with :math:`S` the mean absolute value,

    .. math::

        \hat\lambda &= \frac{S(\nabla_\theta \mathcal L_\text{data})}
        {S(\nabla_\theta \mathcal L_\text{pde})}, \\
        \lambda_\text{pde} &\leftarrow (1-\alpha)\,\lambda_\text{pde} + \alpha\,\hat\lambda, \\
        \mathcal L &= \mathcal L_\text{data} + \lambda_\text{pde} \mathcal L_\text{pde}.

    If the PDE gradient is exactly zero, :math:`\hat\lambda = 1`. A simplification of
    :cite:t:`wang2021`.

    Args:
        model: any module; its trainable parameters are measured.
        alpha: α, the weight of the *new* value, in (0, 1].

    Raises:
        ValueError: if ``alpha`` is out of range or the model has no trainable parameter.

    >>> model = torch.nn.Linear(1, 1)
    >>> pinn = AdaptivePINN(model)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> u = model(torch.ones(1, 1))
    >>> loss = (u - 1).square().mean()
    >>> _, lambda_pde = pinn.train_step_with_balance(optimizer, loss, 100 * loss)
    >>> print(f"{lambda_pde:.3f}")
    0.109
    """

    def __init__(self, model: nn.Module, alpha: float = 0.9) -> None:
        trainable(model.parameters())
        self.model = model
        self.balancer = GradientBalancer.simplified(alpha=alpha)

    @property
    def lambda_pde(self) -> float:
        """Current weight of the PDE term; 1.0 at the start."""
        return self.balancer.weights[1].item()

    def get_grad_norm(self, loss: Tensor, params: Iterable[Tensor]) -> float:
        r"""Mean absolute value of the gradient of a loss; the graph is kept for the next call.

        .. math:: \frac1P \sum_{i=1}^P \left|\frac{\partial\mathcal L}{\partial\theta_i}\right|

        Args:
            loss: a scalar.
            params: parameters to differentiate by. Those that the loss does not use are skipped.

        Returns:
            The mean over the P entries of the parameters used; 0.0 if none is used.

        Raises:
            ValueError: if the loss is not a finite scalar with a graph, a gradient is not finite,
                or ``params`` has no trainable parameter.

        >>> model = torch.nn.Linear(1, 1)
        >>> loss = 3 * model.weight.sum() + model.bias.sum()
        >>> AdaptivePINN(model).get_grad_norm(loss, model.parameters())
        2.0
        """
        params = trainable(params)
        check_losses({"loss": loss})
        G, used = gradient_rows({"loss": loss}, params, retain_graph=True)
        check_finite(["loss"], G)
        (share,) = _shares_used(used, params)
        return mean_abs(G).item() / share if share > 0 else 0.0

    def train_step_with_balance(
        self, optimizer: torch.optim.Optimizer, loss_data: Tensor, loss_pde: Tensor
    ) -> tuple[float, float]:
        """Measure both gradients, update the weight, and step along the balanced gradient.

        The total loss is never differentiated: its gradient is made of the two that were measured,
        so the graph is walked twice, not three times. What else the optimizer trains, such as an
        unknown coefficient of the equation, gets the gradient of the total loss, but does not count
        in the norms.

        Args:
            optimizer: holds the parameters of the model; its gradients are set anew. Its step must
                take no closure, so L-BFGS does not fit.
            loss_data: unweighted data loss, a scalar.
            loss_pde: unweighted PDE loss, a scalar.

        Returns:
            The total loss with the updated weight, and that weight.

        Raises:
            ValueError: if a loss is not a finite scalar with a graph, or a gradient is not finite.
                The weight, the parameters and the optimizer are then as they were.
        """
        params = trainable(self.model.parameters())
        own = {id(p) for p in params}
        trained = (p for group in optimizer.param_groups for p in group["params"])
        others = [p for p in trained if p.requires_grad and id(p) not in own]
        losses = {"data": loss_data, "pde": loss_pde}
        check_losses(losses)
        G, used = gradient_rows(losses, [*params, *others])
        check_finite(losses, G, self.balancer.step)
        own_columns = G[:, : sum(p.numel() for p in params)]
        shares = _shares_used([row[: len(params)] for row in used], params)
        if min(shares) < 1:  # a mean over all entries becomes the mean over the entries used
            own_columns = own_columns / G.new_tensor([share or 1 for share in shares])[:, None]
        weights = self.balancer.update(own_columns)
        optimizer.zero_grad()
        _accumulate([*params, *others], weights.to(G) @ G, used)
        optimizer.step()
        lambda_pde = weights[1].item()
        return loss_data.item() + lambda_pde * loss_pde.item(), lambda_pde


Weights = GradientBalancer | Mapping[str, float | Tensor]
"""A balancer, or a constant weight for each term (all 1 gives a plain PINN)."""


@dataclass
class History:
    """What :func:`train` recorded at T steps, or :func:`train_many` for each of M seeds.

    Step s stands for the network after s updates; losses and weights are those of the s-th update.

    >>> from pinnlib.problems import Helmholtz
    >>> balancer = GradientBalancer.simplified()
    >>> _, history = train_many(
    ...     Helmholtz(), balancer, seeds=[0, 1], steps=3, record_every=1
    ... )
    >>> weights, losses = history.weights, history.losses
    >>> total = sum(weights[term] * losses[term] for term in losses)
    >>> history.steps.tolist(), total.shape
    ([1, 2, 3], (2, 3))
    """

    steps: NDArray[np.int64]
    """Recorded steps, ``(T,)``."""
    losses: dict[str, NDArray[np.float64]]
    """*Unweighted* losses by term, ``(T,)`` or ``(M, T)``."""
    weights: dict[str, NDArray[np.float64]]
    """What the losses were multiplied with, by term, ``(T,)`` or ``(M, T)``."""
    errors: NDArray[np.float64]
    """Relative :math:`L_2` errors, ``(T,)`` or ``(M, T)``."""
    seconds: NDArray[np.float64]
    """Training time up to each recorded step, recording left out, ``(T,)``."""


def train(
    problem: Problem,
    model: nn.Module,
    weights: Weights,
    *,
    steps: int,
    generator: torch.Generator,
    n: int = 128,
    learning_rate: float = 1e-3,
    record_every: int = 100,
    compiled: bool = False,
) -> History:
    """Train a network with Adam, either with balanced or with constant weights.

    The learning rate is multiplied by 0.9 every 1000 steps; points are drawn anew at every step. A
    progress bar goes to a terminal; elsewhere nothing is printed.

    Args:
        problem: gives points, losses and the exact solution.
        model: maps points ``(N, d)`` to values ``(N, 1)``; trained in place.
        weights: a balancer, or a constant weight for each term (all 1: a plain PINN).
        steps: number of optimizer steps.
        generator: source of the points.
        n: points for each set of points.
        learning_rate: Adam's, at the start.
        record_every: steps between two entries of the history; the last step is always one.
        compiled: compile the losses and gradients first, see
            :class:`pinnlib.compiled.CompiledGradients`. It takes some seconds, and pays for
            trainings of thousands of steps.

    Returns:
        The history of losses, weights and errors.

    Raises:
        ValueError: if ``steps`` or ``record_every`` is not positive, if ``n`` is too small for the
            problem's boundary, if ``weights`` does not name exactly the problem's terms, or for the
            reasons given for :func:`balanced_backward`.

    >>> from pinnlib.problems import Helmholtz
    >>> problem, generator = Helmholtz(), torch.Generator().manual_seed(0)
    >>> model = MLP(problem.domain, generator=generator)
    >>> weights = {"data": 100.0, "pde": 1.0}
    >>> history = train(
    ...     problem, model, weights, steps=30, generator=generator, record_every=10
    ... )
    >>> history.steps.tolist(), history.errors.shape
    ([10, 20, 30], (3,))
    """

    def sample() -> dict[str, Tensor]:
        return problem.sample(n, generator)

    return _train(problem, model, weights, sample, (), steps, learning_rate, record_every, compiled)


def train_many(
    problem: Problem,
    weights: Weights,
    *,
    seeds: Sequence[int],
    steps: int,
    n: int = 128,
    learning_rate: float = 1e-3,
    record_every: int = 100,
    compiled: bool = False,
) -> tuple[StackedMLP, History]:
    """Train one network a seed, all at once: the same numbers as one :func:`train` each, sooner.

    Seed s draws the initial network and then the points from one generator, so its run equals

    ``generator = torch.Generator().manual_seed(s)`` and
    ``train(problem, MLP(problem.domain, generator=generator), weights, generator=generator, …)``

    up to rounding. Numbers of the weights may differ from seed to seed, which trains many settings
    at once: a constant weight of shape ``(M,)``, or a balancer's ``alpha`` of shape ``(M, 1)``.

    Args:
        problem: gives points, losses and the exact solution.
        weights: as for :func:`train`.
        seeds: M seeds; one may stand there more than once, for several settings.
        steps: as for :func:`train`, like the rest.
        n: as for :func:`train`.
        learning_rate: as for :func:`train`.
        record_every: as for :func:`train`.
        compiled: as for :func:`train`.

    Returns:
        The trained networks as a stack, and their history.

    Raises:
        ValueError: if ``seeds`` is empty, or as :func:`train`.

    >>> from pinnlib.problems import Helmholtz
    >>> boundary_weight = torch.tensor([1.0, 10.0, 100.0])
    >>> weights = {"data": boundary_weight, "pde": 1.0}
    >>> _, history = train_many(Helmholtz(), weights, seeds=[0, 0, 0], steps=2)
    >>> history.weights["data"][:, -1].tolist()
    [1.0, 10.0, 100.0]
    """
    if not seeds:
        raise ValueError("seeds is empty: pass one seed or more")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    model = StackedMLP([MLP(problem.domain, generator=g) for g in generators])

    def sample() -> dict[str, Tensor]:
        batches = [problem.sample(n, g) for g in generators]
        return {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}

    stack = (len(seeds),)
    return model, _train(
        problem, model, weights, sample, stack, steps, learning_rate, record_every, compiled
    )


def _train(
    problem: Problem,
    model: nn.Module,
    weights: Weights,
    sample: Callable[[], dict[str, Tensor]],
    stack: tuple[int, ...],
    steps: int,
    learning_rate: float,
    record_every: int,
    compiled: bool,
) -> History:
    if steps < 1 or record_every < 1:
        raise ValueError(f"steps is {steps}, record_every {record_every}: use 1 or more of each")
    names = weights.terms if isinstance(weights, GradientBalancer) else tuple(weights)
    _check_terms(names, problem.terms)
    params = trainable(model.parameters())

    losses_of = _in_order(lambda batch: problem.losses(model, batch), names)

    def eager_gradients(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        losses = losses_of(batch)
        check_losses(losses, stack)
        G, used = gradient_rows(losses, params, stack=stack)
        check_used(losses, used)
        return losses, G

    gradients = CompiledGradients(losses_of, params, stack) if compiled else eager_gradients
    update = weights.update if isinstance(weights, GradientBalancer) else _constant(weights, stack)
    optimizer = torch.optim.Adam(params, lr=learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1000, gamma=0.9)
    records = []
    seconds, start = 0.0, perf_counter()
    # disable=None: silent where there is no terminal, such as in an executed notebook.
    for step in tqdm(range(1, steps + 1), disable=None):
        losses, G = gradients(sample())
        current = update(G)
        optimizer.zero_grad()
        direction = (current.to(G)[..., None, :] @ G).squeeze(-2)
        _accumulate(params, direction, used=[[True] * len(params)])
        optimizer.step()
        scheduler.step()
        if step % record_every == 0 or step == steps:
            seconds += perf_counter() - start
            values = torch.stack([losses[name].detach() for name in names], dim=-1)
            records.append((step, values, current, _relative_l2_errors(model, problem), seconds))
            start = perf_counter()
    step_list, loss_list, weight_list, error_list, second_list = zip(*records, strict=True)
    return History(
        steps=np.array(step_list),
        losses=_by_term(names, loss_list),
        weights=_by_term(names, weight_list),
        errors=torch.stack(error_list, dim=-1).double().numpy(),
        seconds=np.array(second_list),
    )


def _by_term(names: Sequence[str], rows: Sequence[Tensor]) -> dict[str, NDArray[np.float64]]:
    """From T tensors ``(*stack, K)`` to an array ``(*stack, T)`` for each term."""
    columns = torch.stack(list(rows), dim=-1).double().unbind(-2)
    return {name: column.numpy() for name, column in zip(names, columns, strict=True)}


def _constant(
    weights: Mapping[str, float | Tensor], stack: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    """What :meth:`GradientBalancer.update` does, for weights that never move."""
    columns = [torch.as_tensor(w, dtype=torch.float64, device="cpu") for w in weights.values()]
    constant = torch.stack([column.expand(stack) for column in columns], dim=-1)

    def update(G: Tensor) -> Tensor:
        check_finite(weights, G)
        return constant

    return update


def _check_terms(names: Iterable[str], terms: Iterable[str]) -> None:
    """Raise a ValueError that says which names are missing or unknown."""
    missing, unknown = sorted(set(terms) - set(names)), sorted(set(names) - set(terms))
    if missing or unknown:
        raise ValueError(
            f"terms {missing} are missing and {unknown} are unknown: "
            f"pass exactly {list(terms)}, at every step"
        )


def relative_l2_error(model: Model, problem: Problem, n: int = 100) -> float:
    r"""Relative :math:`L_2` error on a regular grid; predicting zero everywhere has the error 1.

    .. math:: \frac{\lVert u_\theta - u \rVert_2}{\lVert u \rVert_2}

    Args:
        model: maps points ``(N, d)`` to values ``(N, 1)``.
        problem: gives the grid and the exact solution.
        n: grid points along each input.

    Returns:
        The error, without a unit.

    >>> from pinnlib.problems import KleinGordon
    >>> relative_l2_error(lambda x: torch.zeros(len(x), 1), KleinGordon())
    1.0
    """
    return _relative_l2_errors(model, problem, n).item()


def _relative_l2_errors(model: Model, problem: Problem, n: int = 100) -> Tensor:
    """The relative L₂ error of a network, ``()``, or of each network of a stack, ``(M,)``."""
    x = problem.grid(n)
    with torch.no_grad():
        u, exact = model(x), problem.exact(x)
    error: Tensor = torch.linalg.vector_norm(u - exact, dim=(-2, -1)) / exact.norm()
    return error
