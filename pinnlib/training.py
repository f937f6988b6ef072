"""Training with balanced gradients, and measuring the result."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pinnlib.balancing import GradientBalancer
from pinnlib.derivatives import Model
from pinnlib.gradients import (
    check_finite,
    check_loss,
    check_used,
    gradient_rows,
    mean_abs,
    trainable,
)
from pinnlib.problems import Problem


def balanced_backward(
    losses: Mapping[str, Tensor], params: Iterable[Tensor], balancer: GradientBalancer
) -> dict[str, float]:
    r"""Take the place of ``loss.backward()``: add the balanced gradient to every ``.grad``.

    .. math:: \nabla_\theta \sum_k \lambda_k \mathcal L_k = \lambda^\mathsf T G.

    The rows of G that the balancer measured are reused, so there is one backward pass a term and
    no more. As with ``backward``, gradients add up until ``optimizer.zero_grad()``.

    Args:
        losses: unweighted scalar loss of each of the balancer's terms, by name.
        params: the parameters to differentiate by; frozen ones are left out.
        balancer: turns the gradient matrix into weights.

    Returns:
        The weights used, by term.

    Raises:
        ValueError: if the names differ from the balancer's, or for the reasons given for
            :func:`pinnlib.gradients.gradient_matrix`. Nothing has changed then.
    """
    if set(losses) != set(balancer.terms):
        missing, unknown = set(balancer.terms) - set(losses), set(losses) - set(balancer.terms)
        raise ValueError(
            f"losses lacks {sorted(missing)} and has unknown {sorted(unknown)}: "
            f"pass exactly the balancer's terms {list(balancer.terms)} at every step"
        )
    params = trainable(params)
    G, used = gradient_rows({term: losses[term] for term in balancer.terms}, params)
    check_used(balancer.terms, used)
    weights = balancer.update(G)
    _accumulate(params, weights.to(G) @ G, used)
    return dict(zip(balancer.terms, weights.tolist(), strict=True))


def _accumulate(params: Sequence[Tensor], direction: Tensor, used: Tensor) -> None:
    """Add a flat gradient ``(P,)`` to the ``.grad`` of those parameters that some term uses."""
    slices = direction.split([p.numel() for p in params])
    for p, flat, is_used in zip(params, slices, used.any(dim=0).tolist(), strict=True):
        if is_used:
            gradient = flat.view_as(p).to(p.dtype)
            p.grad = gradient if p.grad is None else p.grad + gradient


def _share_used(used: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Share of the entries of the parameters that each term uses, ``(K,)``."""
    sizes = torch.tensor([p.numel() for p in params], dtype=torch.float64)
    return used.double() @ sizes / sizes.sum()


class AdaptivePINN:
    r"""A network with the weight of its PDE term, and the training step that balances both terms.

    The simplified learning-rate annealing: with :math:`S` the mean absolute value,

    .. math::

        \hat\lambda = \frac{S(\nabla_\theta \mathcal L_\text{data})}
        {S(\nabla_\theta \mathcal L_\text{pde})}, \qquad
        \lambda_\text{pde} \leftarrow (1-\alpha)\,\lambda_\text{pde} + \alpha\,\hat\lambda, \qquad
        \mathcal L = \mathcal L_\text{data} + \lambda_\text{pde} \mathcal L_\text{pde}.

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
    >>> total, lambda_pde = pinn.train_step_with_balance(
    ...     optimizer, loss_data=(u - 1).square().mean(), loss_pde=100 * (u - 1).square().mean()
    ... )
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
        """Mean absolute value of the gradient of a loss; the graph is kept for the next call.

        Args:
            loss: a scalar.
            params: parameters to differentiate by. Those that the loss does not use are skipped.

        Returns:
            The mean over all entries of the parameters used; 0.0 if none is used.

        Raises:
            ValueError: if the loss is not a finite scalar with a graph, or ``params`` has no
                trainable parameter.
        """
        params = trainable(params)
        G, used = gradient_rows({"loss": loss}, params, retain_graph=True)
        check_finite("loss", G)
        share = _share_used(used, params).item()
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
            optimizer: holds the parameters of the model; its gradients are set anew.
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
        G, used = gradient_rows({"data": loss_data, "pde": loss_pde}, [*params, *others])
        for term, row in zip(self.balancer.terms, G, strict=True):
            check_finite(term, row, self.balancer.step)
        # The share turns a mean over all entries into the mean over the entries used.
        share = _share_used(used[:, : len(params)], params)
        own_columns = G[:, : sum(p.numel() for p in params)]
        weights = self.balancer.update(own_columns / share.where(share > 0, 1).to(G)[:, None])
        optimizer.zero_grad()
        _accumulate([*params, *others], weights.to(G) @ G, used)
        optimizer.step()
        lambda_pde = weights[1].item()
        return loss_data.item() + lambda_pde * loss_pde.item(), lambda_pde


@dataclass
class History:
    """What :func:`train` recorded, one entry a recorded step.

    ``losses`` holds the *unweighted* terms and ``weights`` what they were multiplied with, by term;
    ``errors`` the relative L2 error, ``seconds`` the training time up to then, recording left out.
    """

    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def train(
    problem: Problem,
    model: nn.Module,
    weights: GradientBalancer | Mapping[str, float],
    *,
    steps: int,
    generator: torch.Generator,
    n: int = 128,
    learning_rate: float = 1e-3,
    record_every: int = 100,
) -> History:
    """Train a network with Adam, either with balanced or with constant weights.

    The learning rate is multiplied by 0.9 every 1000 steps; points are drawn anew at every step. A
    progress bar goes to a terminal; elsewhere nothing is printed.

    Args:
        problem: gives points, losses and the exact solution.
        model: maps points ``(n, d)`` to values ``(n, 1)``; trained in place.
        weights: a balancer, or a constant weight for each term (all 1: a plain PINN).
        steps: number of optimizer steps.
        generator: source of the points.
        n: points for each set of points.
        learning_rate: Adam's, at the start.
        record_every: steps between two entries of the history; the last step is always one.

    Returns:
        The history of losses, weights and errors. Step s stands for the state after s updates; its
        losses and weights are those of the s-th update.

    Raises:
        ValueError: if ``steps`` or ``record_every`` is not positive, if constant weights do not
            name exactly the problem's terms, or for the reasons given for
            :func:`balanced_backward`.
    """
    if steps < 1 or record_every < 1:
        raise ValueError(f"steps is {steps}, record_every {record_every}: use 1 or more of each")
    if isinstance(weights, Mapping) and set(weights) != set(problem.terms):
        raise ValueError(f"weights names {sorted(weights)}: name exactly {sorted(problem.terms)}")
    params = trainable(model.parameters())
    optimizer = torch.optim.Adam(params, lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1000, gamma=0.9)
    history = History(losses={k: [] for k in problem.terms}, weights={k: [] for k in problem.terms})
    seconds, start = 0.0, perf_counter()
    # disable=None: silent where there is no terminal, such as in an executed notebook.
    for step in tqdm(range(1, steps + 1), disable=None):
        losses = problem.losses(model, problem.sample(n, generator))
        optimizer.zero_grad()
        if isinstance(weights, GradientBalancer):
            current: Mapping[str, float] = balanced_backward(losses, params, weights)
        else:
            current = weights
            for term, loss in losses.items():
                check_loss(term, loss)
            torch.stack([weights[term] * loss for term, loss in losses.items()]).sum().backward()
        optimizer.step()
        scheduler.step()
        if step % record_every == 0 or step == steps:
            seconds += perf_counter() - start
            history.steps.append(step)
            for term, loss in losses.items():
                history.losses[term].append(loss.item())
                history.weights[term].append(current[term])
            history.errors.append(relative_l2_error(model, problem))
            history.seconds.append(seconds)
            start = perf_counter()
    return history


def relative_l2_error(model: Model, problem: Problem, n: int = 100) -> float:
    r"""Relative L2 error on a regular grid, 1 being as bad as predicting zero.

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
    x = problem.grid(n)
    with torch.no_grad():
        u, exact = model(x), problem.exact(x)
    return float((u - exact).norm() / exact.norm())
