"""The rule to begin with, and those of one name that were published, as constructors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self, TypedDict, Unpack

from torch import Tensor

from pinnlib.gradients import l2_norm, max_abs
from pinnlib.weighting.balancer import Balancer
from pinnlib.weighting.follow import Average, Follow, logarithmic_average
from pinnlib.weighting.ratio import LayerMax, LayerMeans, Ratio, Reference, mean_of_terms


class Following(TypedDict, total=False):
    """Settings of :class:`pinnlib.weighting.Follow`, for those who follow a published rule."""

    alpha: float | Tensor
    """α, the weight of the new value."""
    average: Average
    """How old and new value are mixed."""
    warm_start: bool
    """Start at the first measured ratio instead of 1."""
    bounds: tuple[float, float] | None
    """Factors of the first ratio that the weights stay between."""


class GradientBalancer(Balancer):
    r"""Loss weights λ that follow the sizes of gradients: any rule, and the published ones.

    ``GradientBalancer(terms, rule, every=1)`` takes a rule of :mod:`pinnlib.weighting`, see
    :class:`pinnlib.weighting.balancer.Balancer`. The constructors below make the one to begin with,
    :meth:`bounded`, this book's simplest one, and the published ones. Each takes the settings of
    :class:`pinnlib.weighting.Follow` as keywords: ``alpha``, ``average``, ``warm_start`` and
    ``bounds``.

    >>> balancer = GradientBalancer.bounded(["data", "pde"])
    >>> balancer.terms, balancer.weights.tolist(), balancer.step
    (('data', 'pde'), [1.0, 1.0], 0)
    """

    @classmethod
    def bounded(
        cls,
        terms: Sequence[str] = ("data", "pde"),
        reference: Reference = "data",
        *,
        every: int = 10,
        **following: Unpack[Following],
    ) -> Self:
        r"""The rule to begin with: ratios of norms, followed slowly, near the first one measured.

        .. math:: \hat\lambda_k &= \frac{\lVert\nabla_\theta \mathcal L_\text{data}\rVert_2}
           {\lVert\nabla_\theta \mathcal L_k\rVert_2}, \\
           \lambda_k &\leftarrow \lambda_k^{1-\alpha}\, \hat\lambda_k^\alpha, \\
           \alpha &= 0.1, \text{ every 10 steps},

        from the first ratio on, and within a tenth and ten times that, so that no term falls silent
        when another is fitted.

        >>> import torch
        >>> balancer = GradientBalancer.bounded()
        >>> balancer.update(torch.tensor([[3.0, 4.0], [0.0, 50.0]]))
        tensor([1.0000, 0.1000], dtype=torch.float64)
        """
        settings: Following = {
            "alpha": 0.1,
            "average": logarithmic_average,
            "warm_start": True,
            "bounds": (0.1, 10.0),
        }
        rule = Ratio(l2_norm, reference)
        return cls(terms, Follow(rule, **(settings | following)), every=every)

    @classmethod
    def simplified(
        cls,
        terms: Sequence[str] = ("data", "pde"),
        reference: Reference = "data",
        *,
        every: int = 1,
        **following: Unpack[Following],
    ) -> Self:
        r"""This book's rule: mean absolute values, the data term is the reference, every step.

        .. math:: \hat\lambda_k = \frac{\overline{|\nabla_\theta \mathcal L_\text{data}|}}
           {\overline{|\nabla_\theta \mathcal L_k|}}, \qquad \alpha = 0.9 .

        A simplification of the learning-rate annealing of :cite:t:`wang2021`.

        >>> import torch
        >>> G = torch.tensor([[3.0, 5.0], [1.0, 7.0]])
        >>> GradientBalancer.simplified().target(G)
        tensor([1., 1.], dtype=torch.float64)
        """
        return cls(terms, Follow(Ratio(reference=reference), **following), every=every)

    @classmethod
    def preprint(
        cls,
        terms: Sequence[str] = ("data", "pde"),
        reference: str = "pde",
        *,
        every: int = 10,
        **following: Unpack[Following],
    ) -> Self:
        r"""Learning-rate annealing as printed in the preprint :cite:p:`wang2020`.

        .. math:: \hat\lambda_k &= \frac{\max|\nabla_\theta \mathcal L_\text{pde}|}
           {\overline{|\nabla_\theta \mathcal L_k|}}, \\ \alpha &= 0.9, \text{ every 10 steps}.

        >>> import torch
        >>> G = torch.tensor([[3.0, 5.0], [1.0, 7.0]])
        >>> GradientBalancer.preprint().target(G)
        tensor([1.7500, 1.0000], dtype=torch.float64)
        """
        rule = Ratio(reference=reference, reference_statistic=max_abs)
        return cls(terms, Follow(rule, **following), every=every)

    @classmethod
    def journal(
        cls,
        terms: Sequence[str] = ("data", "pde"),
        reference: str = "pde",
        *,
        named_params: Iterable[tuple[str, Tensor]],
        every: int = 10,
        weighted: bool = True,
        **following: Unpack[Following],
    ) -> Self:
        r"""Learning-rate annealing as in the journal, equation 2.30, and in the authors' code.

        .. math:: \hat\lambda_k &= \frac{\max|\nabla_\theta \mathcal L_\text{pde}|}
           {\overline{|\nabla_\theta\, \lambda_k \mathcal L_k|}}, \\
           \alpha &= 0.1, \text{ every 10 steps},

        with the gradients of the weight matrices only, without the biases, and a mean over layers
        of each layer's mean (:cite:t:`wang2021`; the details are those of the published code). The
        lower gradient is that of the *weighted* loss: the fixed point is the root of the ratio.

        Args:
            terms: names of the loss terms.
            reference: the term that sets the size, the residual of the equation.
            named_params: ``model.named_parameters()``, those that G will be computed for; those of
                one network, also where a stack of networks is trained.
            every: steps from one update to the next.
            weighted: False for the gradient of the unweighted loss, with the ratio as fixed point.
            following: settings of :class:`pinnlib.weighting.Follow`.

        Raises:
            ValueError: if there is no weight matrix among the parameters.

        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)  # the bias, the last column, does not count
        >>> balancer = GradientBalancer.journal(named_params=layer.named_parameters())
        >>> balancer.target(torch.tensor([[3.0, 5.0, 9.0], [1.0, 7.0, 9.0]]))
        tensor([1.7500, 1.0000], dtype=torch.float64)
        """
        named_params = list(named_params)
        rule = Ratio(LayerMeans(named_params), reference, LayerMax(named_params), weighted)
        return cls(terms, Follow(rule, **({"alpha": 0.1} | following)), every=every)

    @classmethod
    def jaxpi(
        cls,
        terms: Sequence[str] = ("data", "pde"),
        reference: Reference = mean_of_terms,
        *,
        every: int = 1000,
        **following: Unpack[Following],
    ) -> Self:
        r"""Gradient-norm weighting of the library jaxpi :cite:p:`wang2023`.

        .. math:: \hat\lambda_k &= \frac{\tfrac1K
           \sum_j \lVert\nabla_\theta \mathcal L_j\rVert_2}
           {\lVert\nabla_\theta \mathcal L_k\rVert_2}, \\
           \alpha &= 0.1, \text{ every 1000 steps}.

        >>> import torch
        >>> GradientBalancer.jaxpi().target(torch.tensor([[3.0, 4.0], [0.0, 15.0]]))
        tensor([2.0000, 0.6667], dtype=torch.float64)
        """
        rule = Ratio(l2_norm, reference)
        return cls(terms, Follow(rule, **({"alpha": 0.1} | following)), every=every)
