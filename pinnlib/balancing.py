"""From a gradient matrix to loss weights: one balancer, and the published rules as its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pinnlib.gradients import check_finite, l2_norm, max_abs, mean_abs

Statistic = Callable[[Tensor], Tensor]
"""Turns rows ``(…, P)`` into numbers ``(…)``, such as :func:`pinnlib.gradients.mean_abs`."""
Average = Callable[[Tensor, Tensor, float | Tensor], Tensor]
"""Mixes an old and a new weight, given the weight α of the new one."""


def arithmetic_average(old: Tensor, new: Tensor, alpha: float | Tensor) -> Tensor:
    r"""Exponential moving average, :math:`(1-\alpha)\,\lambda + \alpha\,\hat\lambda`.

    Args:
        old: the weights λ so far, ``(…, K)``.
        new: the target weights, ``(…, K)``.
        alpha: α, a number, or ``(M, 1)`` for M rows of weights.

    >>> arithmetic_average(torch.tensor(1.0), torch.tensor(100.0), 0.5)
    tensor(50.5000)
    """
    return (1 - alpha) * old + alpha * new


def logarithmic_average(old: Tensor, new: Tensor, alpha: float | Tensor) -> Tensor:
    r"""The same average of logarithms, :math:`\lambda^{1-\alpha}\,\hat\lambda^{\alpha}`.

    A new value of zero has no logarithm; the old value is then kept. Arguments are those of
    :func:`arithmetic_average`.

    >>> logarithmic_average(torch.tensor(1.0), torch.tensor(100.0), 0.5)
    tensor(10.)
    """
    return torch.where(new > 0, old ** (1 - alpha) * new**alpha, old)


class GradientBalancer:
    r"""Loss weights that follow the ratios of gradient sizes, for any number of named terms.

    At every ``every``-th step, with the statistic S of each row of the gradient matrix G and the
    reference R,

    .. math::

        \hat\lambda_k &= \frac{R}{S(G_k)}, \\
        \lambda_k &\leftarrow (1-\alpha)\,\lambda_k + \alpha\,\hat\lambda_k.

    All weights start at 1. Where :math:`S(G_k)` is zero, or so small that the ratio would overflow
    the precision of G, there is nothing to balance and :math:`\hat\lambda_k = 1`. Where R is zero,
    :math:`\hat\lambda_k = 0`.

    The balancer never sees a network: it works on any matrix, also on a stack of matrices
    ``(…, K, P)``, which it balances independently of one another.

    Args:
        terms: names of the K loss terms, in the order of the rows of G.
        reference: the term whose weight stays 1 and whose gradient sets R; or a function that
            turns the K statistics ``(…, K)`` into R ``(…)``, such as :func:`mean_of_terms`.
        statistic: S, the size of a row.
        reference_statistic: the size of the reference term's row, where it differs from S.
        alpha: α, the weight of the *new* value, in (0, 1]; ``(M, 1)`` for M matrices.
        every: steps from one update of the weights to the next, 1 or more; the first step is one.
        weighted: divide by the size of the gradient of the weighted loss,
            :math:`\lambda_k S(G_k)`, which makes :math:`\sqrt{R/S(G_k)}` the fixed point.
        average: how old and new value are mixed.
        warm_start: let the weights start at the first measured ratio instead of 1.
        bounds: factors with 0 ≤ low ≤ 1 ≤ high: each weight stays between low and high times the
            first ratio measured for it. A ratio of zero, or one that cannot be measured, is not a
            first one.

    Raises:
        ValueError: if a name is missing, unknown or twice there, or a number is out of its range.

    >>> balancer = GradientBalancer(["data", "pde"], reference="data", alpha=0.5)
    >>> balancer.update(torch.tensor([[1.0, 1.0], [100.0, 100.0]]))
    tensor([1.0000, 0.5050], dtype=torch.float64)
    """

    def __init__(
        self,
        terms: Sequence[str],
        *,
        reference: str | Callable[[Tensor], Tensor],
        statistic: Statistic = mean_abs,
        reference_statistic: Statistic | None = None,
        alpha: float | Tensor = 0.9,
        every: int = 1,
        weighted: bool = False,
        average: Average = arithmetic_average,
        warm_start: bool = False,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        if isinstance(terms, str) or len(terms) < 2:
            raise ValueError(f"terms is {terms!r}: pass the names of two loss terms or more")
        if twice := sorted({term for term in terms if list(terms).count(term) > 1}):
            raise ValueError(f"terms names {twice} more than once: give each term its own name")
        if isinstance(reference, str) and reference not in terms:
            raise ValueError(f"reference {reference!r} is not a term: choose one of {list(terms)}")
        if not all(0 < a <= 1 for a in torch.as_tensor(alpha, device="cpu").flatten().tolist()):
            raise ValueError(
                f"alpha is {alpha}: the weight of the new value must lie in (0, 1]; "
                "a momentum β elsewhere is 1 - alpha here"
            )
        if every < 1:
            raise ValueError(f"every is {every}: update the weights every 1 or more steps")
        if bounds is not None and not 0 <= bounds[0] <= 1 <= bounds[1]:
            raise ValueError(f"bounds is {bounds}: use factors with 0 <= low <= 1 <= high")
        self.terms = tuple(terms)
        self.reference = reference
        self.statistic = statistic
        self.reference_statistic = statistic if reference_statistic is None else reference_statistic
        self.alpha = alpha
        self.every = every
        self.weighted = weighted
        self.average = average
        self.warm_start = warm_start
        self.bounds = bounds
        # In double precision, for a ratio may exceed float32. On the CPU: not all devices have it.
        self.weights = torch.ones(len(terms), dtype=torch.float64, device="cpu")
        self.first_ratio = torch.full_like(self.weights, torch.nan)
        self.step = 0

    def ratio(self, G: Tensor) -> Tensor:
        r"""Target weights :math:`\hat\lambda` of a gradient matrix, without any average.

        The matrix is not checked, unlike by :meth:`update`, and the state does not change.

        Args:
            G: gradient matrix ``(…, K, P)``.

        Returns:
            ``(…, K)`` in double precision; with ``weighted`` they depend on the present weights.

        >>> balancer = GradientBalancer(["data", "pde"], reference="data", alpha=0.5)
        >>> balancer.ratio(torch.tensor([[1.0, 1.0], [100.0, 100.0]]))
        tensor([1.0000, 0.0100], dtype=torch.float64)
        """
        return self._measure(G, self.weights).nan_to_num(nan=1.0)

    def _measure(self, G: Tensor, weights: Tensor) -> Tensor:
        """The target weights, undefined (NaN) where there is nothing to balance."""
        sizes = self.statistic(G).cpu().double()
        if not isinstance(self.reference, str):
            R = self.reference(sizes)
        elif self.reference_statistic is self.statistic:
            R = sizes[..., self.terms.index(self.reference)]
        else:
            row = G[..., self.terms.index(self.reference), :]
            R = self.reference_statistic(row).cpu().double()
        if self.weighted:
            sizes = weights * sizes
        R = R[..., None]
        ratio = torch.where(sizes > R / torch.finfo(G.dtype).max, R / sizes, torch.nan)
        if isinstance(self.reference, str):
            ratio[..., self.terms.index(self.reference)] = 1.0
        return ratio

    def follow(self, G: Tensor, weights: Tensor, first_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """One update as a pure function: what :meth:`update` does to the state where it is due.

        Args:
            G: gradient matrix ``(…, K, P)``.
            weights: the weights before, ``(…, K)`` in double precision.
            first_ratio: the first ratios measured, ``(…, K)``; NaN where none was yet.

        Returns:
            The weights and first ratios after, ``(…, K)`` each.

        >>> balancer = GradientBalancer(["data", "pde"], reference="data", alpha=0.5)
        >>> G = torch.tensor([[1.0, 1.0], [100.0, 100.0]])
        >>> weights, _ = balancer.follow(G, balancer.weights, balancer.first_ratio)
        >>> weights.tolist(), balancer.weights.tolist()
        ([1.0, 0.505], [1.0, 1.0])
        """
        measured = self._measure(G, weights)
        if self.warm_start or self.bounds is not None:
            is_first = first_ratio.isnan() & (measured > 0)
            first_ratio = torch.where(is_first, measured, first_ratio)
            if self.warm_start:
                weights = torch.where(is_first, measured, weights)
        weights = self.average(weights, measured.nan_to_num(nan=1.0), self.alpha)
        if self.bounds is not None:
            low, high = self.bounds
            bounded = weights.clamp(low * first_ratio, high * first_ratio)
            weights = torch.where(first_ratio.isnan(), weights, bounded)
        return weights, first_ratio

    def update(self, G: Tensor) -> Tensor:
        """Take one step: measure the gradient matrix where it is due, and return the weights.

        Args:
            G: gradient matrix ``(…, K, P)`` of the unweighted terms, in the order of ``terms``.

        Returns:
            The weights λ, ``(…, K)``, detached, in double precision.

        Raises:
            ValueError: if G has another number of rows than there are terms, or an entry that is
                not finite; the weights are then as they were.
        """
        if G.ndim < 2 or G.shape[-2] != len(self.terms):
            raise ValueError(
                f"G has shape {tuple(G.shape)}: it needs one row for each of {list(self.terms)}"
            )
        G = G.detach()
        check_finite(self.terms, G, self.step)
        if self.due:
            self.weights, self.first_ratio = self.follow(G, self.weights, self.first_ratio)
        self.step += 1
        return self.weights.clone()

    @property
    def due(self) -> bool:
        """Whether the next step updates the weights."""
        return self.step % self.every == 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, with the names of the terms.

        >>> saved = GradientBalancer.simplified().state_dict()
        >>> sorted(saved)
        ['first_ratio', 'step', 'terms', 'weights']
        """
        return {
            "terms": list(self.terms),
            "weights": self.weights.clone(),
            "first_ratio": self.first_ratio.clone(),
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ValueError: if the state belongs to other terms; nothing has changed then.

        >>> balancer, resumed = (GradientBalancer.simplified() for _ in range(2))
        >>> weights = balancer.update(torch.tensor([[1.0], [8.0]]))
        >>> resumed.load_state_dict(balancer.state_dict())
        >>> resumed.step, torch.equal(resumed.weights, weights)
        (1, True)
        """
        if tuple(state["terms"]) != self.terms:
            raise ValueError(
                f"the saved terms are {list(state['terms'])}, but this balancer has "
                f"{list(self.terms)}: load the state of the same problem"
            )
        self.weights = state["weights"].to("cpu", copy=True)
        self.first_ratio = state["first_ratio"].to("cpu", copy=True)
        self.step = state["step"]

    @classmethod
    def simplified(
        cls,
        terms: Sequence[str] = ("data", "pde"),
        reference: str = "data",
        alpha: float | Tensor = 0.9,
    ) -> Self:
        r"""This book's rule: mean absolute values, the data term is the reference, every step.

        .. math:: \hat\lambda_k = \frac{\overline{|\nabla_\theta \mathcal L_\text{data}|}}
           {\overline{|\nabla_\theta \mathcal L_k|}}, \qquad \alpha = 0.9 .

        A simplification of the learning-rate annealing of :cite:t:`wang2021`.

        >>> G = torch.tensor([[3.0, 5.0], [1.0, 7.0]])
        >>> GradientBalancer.simplified().ratio(G)
        tensor([1., 1.], dtype=torch.float64)
        """
        return cls(terms, reference=reference, alpha=alpha)

    @classmethod
    def preprint(cls, terms: Sequence[str] = ("data", "pde"), reference: str = "pde") -> Self:
        r"""Learning-rate annealing as printed in the preprint :cite:p:`wang2020`.

        .. math:: \hat\lambda_k &= \frac{\max|\nabla_\theta \mathcal L_\text{pde}|}
           {\overline{|\nabla_\theta \mathcal L_k|}}, \\ \alpha &= 0.9, \text{ every 10 steps}.

        >>> G = torch.tensor([[3.0, 5.0], [1.0, 7.0]])
        >>> GradientBalancer.preprint().ratio(G)
        tensor([1.7500, 1.0000], dtype=torch.float64)
        """
        return cls(terms, reference=reference, reference_statistic=max_abs, every=10)

    @classmethod
    def journal(
        cls,
        named_params: Iterable[tuple[str, Tensor]],
        terms: Sequence[str] = ("data", "pde"),
        reference: str = "pde",
    ) -> Self:
        r"""Learning-rate annealing as in the journal, equation 2.30, and in the authors' code.

        .. math:: \hat\lambda_k &= \frac{\max|\nabla_\theta \mathcal L_\text{pde}|}
           {\overline{|\nabla_\theta\, \lambda_k \mathcal L_k|}}, \\
           \alpha &= 0.1, \text{ every 10 steps},

        with the gradients of the weight matrices only, without the biases, and a mean over layers
        of each layer's mean (:cite:t:`wang2021`; the details are those of the published code). The
        lower gradient is that of the *weighted* loss: the fixed point is the root of the ratio.

        Args:
            named_params: ``model.named_parameters()``, those that G will be computed for; those of
                one network, also where a stack of networks is trained.
            terms: names of the loss terms.
            reference: the term that sets the size, the residual of the equation.

        Raises:
            ValueError: if there is no weight matrix among the parameters.

        >>> layer = torch.nn.Linear(2, 1)  # the bias, the last column, does not count
        >>> balancer = GradientBalancer.journal(layer.named_parameters())
        >>> balancer.ratio(torch.tensor([[3.0, 5.0, 9.0], [1.0, 7.0, 9.0]]))
        tensor([1.7500, 1.0000], dtype=torch.float64)
        """
        weights, start = [], 0
        for _, p in named_params:
            if p.requires_grad:
                if p.ndim > 1:
                    weights.append(slice(start, start + p.numel()))
                start += p.numel()
        if not weights:
            raise ValueError("named_params has no weight matrix: pass model.named_parameters()")

        def mean_of_layer_means(G: Tensor) -> Tensor:
            return torch.stack([mean_abs(G[..., columns]) for columns in weights]).mean(dim=0)

        def max_of_layers(G: Tensor) -> Tensor:
            return torch.stack([max_abs(G[..., columns]) for columns in weights]).amax(dim=0)

        return cls(
            terms,
            reference=reference,
            statistic=mean_of_layer_means,
            reference_statistic=max_of_layers,
            alpha=0.1,
            every=10,
            weighted=True,
        )

    @classmethod
    def jaxpi(cls, terms: Sequence[str] = ("data", "pde"), every: int = 1000) -> Self:
        r"""Gradient-norm weighting of the library jaxpi :cite:p:`wang2023`.

        .. math:: \hat\lambda_k &= \frac{\tfrac1K \sum_j \lVert\nabla_\theta \mathcal L_j\rVert_2}
           {\lVert\nabla_\theta \mathcal L_k\rVert_2}, \\
           \alpha &= 0.1, \text{ every 1000 steps}.

        >>> GradientBalancer.jaxpi().ratio(torch.tensor([[3.0, 4.0], [0.0, 15.0]]))
        tensor([2.0000, 0.6667], dtype=torch.float64)
        """
        return cls(terms, reference=mean_of_terms, statistic=l2_norm, alpha=0.1, every=every)


def mean_of_terms(sizes: Tensor) -> Tensor:
    r"""Reference :math:`R = \frac1K \sum_k S(G_k)`, the mean of all sizes; ``(…, K)`` to ``(…)``.

    >>> mean_of_terms(torch.tensor([1.0, 3.0]))
    tensor(2.)
    """
    return sizes.mean(dim=-1)


def geometric_mean_of_terms(sizes: Tensor) -> Tensor:
    r"""Reference :math:`R = \big(\prod_k S(G_k)\big)^{1/K}`; ``(…, K)`` to ``(…)``, 0 if one is 0.

    >>> geometric_mean_of_terms(torch.tensor([1.0, 4.0]))
    tensor(2.)
    """
    return sizes.log().mean(dim=-1).exp()
