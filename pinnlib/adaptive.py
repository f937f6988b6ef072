"""The book's trainer: two terms, one weight, one training step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pinnlib.gradients import check_finite, gradient_rows, mean_abs
from pinnlib.parameters import check_optimizer, trainable, used_columns
from pinnlib.residuals import check_differentiable, check_finite_losses
from pinnlib.step import Step
from pinnlib.weighting import GradientBalancer


class AdaptivePINN:
    r"""A network with the weight of its PDE term, and the training step that balances both terms.

    The simplified learning-rate annealing: with :math:`S` the mean absolute value,

    .. math::

        \hat\lambda &= \frac{S(\nabla_\theta \mathcal L_\text{data})}
        {S(\nabla_\theta \mathcal L_\text{pde})}, \\
        \lambda_\text{pde} &\leftarrow (1-\alpha)\,\lambda_\text{pde} + \alpha\,\hat\lambda, \\
        \mathcal L &= \mathcal L_\text{data} + \lambda_\text{pde} \mathcal L_\text{pde}.

    If the PDE gradient is exactly zero, :math:`\hat\lambda = 1`. A simplification of
    :cite:t:`wang2021`; the weight is kept by ``GradientBalancer.simplified(alpha=alpha)``.

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
        trainable(model)
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
        check_differentiable({"loss": loss})
        check_finite_losses({"loss": loss})
        G, (used,) = gradient_rows([([loss], None)], params, retain_graph=True)
        check_finite(["loss"], G)
        return mean_abs(G, used_columns([used], params)).item() if any(used) else 0.0

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
            TypeError: if the optimizer's step takes a closure, as L-BFGS's does.
            ValueError: if a loss is not a finite scalar with a graph, a gradient is not finite, or
                the optimizer does not hold the model's parameters. The weight, the parameters and
                the optimizer are then as they were. The optimizer's own step comes last: if that
                fails, the weight has moved.
        """
        trained = (p for group in optimizer.param_groups for p in group["params"])
        losses = {"data": loss_data, "pde": loss_pde}
        step = Step(lambda _: losses, self.model, self.balancer, beside=trained)
        check_optimizer(optimizer, step.params)
        measured = step.measure({})
        optimizer.zero_grad()
        step.apply(measured)
        optimizer.step()
        weight = measured.weights[1].item()
        return loss_data.item() + weight * loss_pde.item(), weight
