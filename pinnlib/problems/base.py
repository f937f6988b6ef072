"""What every problem has: a domain, points, residuals, losses, and often a reference solution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pinnlib.coefficients import coefficient
from pinnlib.derivatives import Derivatives, Model, nested
from pinnlib.residuals import check_residual, losses_of


class Problem(ABC):
    r"""A partial differential equation with its conditions, as residuals that should be zero.

    A loss term adds up the mean squares of one or more residuals,

    .. math::

        \mathcal L_k(\theta) = \sum_{r \in \text{terms}[k]} \frac1N \sum_{i=1}^N r(x_i; \theta)^2.

    Args:
        terms: which residuals make up which loss term. The default is the class attribute
            ``terms``, such as the split into ``data`` and ``pde``.
        derivatives: the function that differentiates the model, such as
            :func:`pinnlib.derivatives.nested`.
        reference: the solution that errors are measured against, points ``(N, d)`` to values
            ``(N, m)``: a formula, a :class:`~pinnlib.problems.Table`, a solver. The default is the
            class's own, which may be a method; None if there is none.
        unknown: coefficients of the equation that are to be found, and where each starts; the
            others are known. The model is then a
            :class:`~pinnlib.coefficients.WithCoefficients`.

    Raises:
        ValueError: if a term has no residual, a residual stands in two terms, or the equation has
            no coefficient that is called unknown.

    A problem of your own needs what follows here, such as u' = -u with u(0) = 1; without
    ``reference`` it can be trained, too:

    >>> from pinnlib.problems import uniform
    >>> class Decay(Problem):
    ...     variables = ("t",)
    ...     domain = ((0.0, 1.0),)
    ...     terms = {"data": ["initial"], "pde": ["pde"]}
    ...
    ...     def sample(self, n, generator):
    ...         t = uniform(self.domain, n, generator)
    ...         return {"initial": torch.zeros_like(t[:1]), "pde": t}
    ...
    ...     def residuals(self, model, batch):
    ...         u, (u_t,), _ = self.derivatives(model, batch["pde"], order=1)
    ...         return {"initial": model(batch["initial"]) - 1, "pde": u_t + u}
    ...
    ...     def reference(self, x):
    ...         return torch.exp(-x)
    >>> problem = Decay()
    >>> batch = problem.sample(128, torch.Generator().manual_seed(0))
    >>> losses = problem.losses(problem.reference, batch)
    >>> {term: loss.item() for term, loss in losses.items()}
    {'data': 0.0, 'pde': 0.0}
    """

    variables: tuple[str, ...]
    """Names of the inputs, in the order of the columns of x."""
    domain: tuple[tuple[float, float], ...]
    """One (low, high) pair for each input."""
    terms: Mapping[str, Sequence[str]]
    """The residuals that each loss term adds up."""
    reference: Callable[[Tensor], Tensor] | None = None
    """Maps points ``(N, d)`` to the values ``(N, m)`` that errors are measured against."""
    coefficients: Mapping[str, float] = {}
    """True values of the equation's coefficients that may be unknown."""
    unknown: Mapping[str, float] = {}
    """Where the unknown ones start."""
    outputs: int = 1
    """Outputs of a network for it, by default."""
    hidden: int = 0
    """How many of them, the last ones, have no reference."""

    def __init__(
        self,
        terms: Mapping[str, Sequence[str]] | None = None,
        derivatives: Derivatives = nested,
        reference: Callable[[Tensor], Tensor] | None = None,
        unknown: Mapping[str, float] | None = None,
    ) -> None:
        if terms is not None:
            self.terms = terms
        if reference is not None:
            self.reference = reference
        if unknown is not None:
            self.unknown = unknown
        if strange := sorted(set(self.unknown) - set(self.coefficients)):
            raise ValueError(
                f"unknown names {strange}: this equation has {sorted(self.coefficients)}"
            )
        self.derivatives = derivatives
        _check_terms(getattr(self, "terms", None))

    @abstractmethod
    def sample(
        self, n: int | Mapping[str, int], generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Draw random points for each set of points, on the device of the generator.

        Args:
            n: points in each set, or how many in which set, by name.
            generator: source of the points.

        Returns:
            ``(n, d)`` for each set, by name.

        Raises:
            ValueError: if ``n`` is below the number of a set's faces, or names other sets.
        """

    @abstractmethod
    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What should be zero at each point.

        Args:
            model: maps points ``(N, d)`` to values ``(N, m)``.
            batch: points from :meth:`sample`.

        Returns:
            ``(N, 1)`` for each residual, ``(M, N, 1)`` for a stack of M networks, by name.
        """

    def coefficient(self, model: Model, name: str) -> Tensor | float:
        """A coefficient as it stands in the equation: the model's if it is unknown, else the true.

        Args:
            model: a :class:`~pinnlib.coefficients.WithCoefficients`, where something is unknown.
            name: of the coefficient.

        Raises:
            ValueError: if the model lacks it.
        """
        return coefficient(model, name) if name in self.unknown else self.coefficients[name]

    def term_residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """The residuals of each term, for methods that need more than their mean squares.

        Args:
            model: maps points ``(N, d)`` to values ``(N, m)``.
            batch: points from :meth:`sample`.

        Returns:
            For each name in ``terms``, in that order, residuals ``(N, 1)``, or ``(M, N, 1)`` for a
            stack of M networks with batches ``(M, N, d)``.

        Raises:
            TypeError: if :meth:`residuals` does not return tensors by name.
            ValueError: if a residual has another shape, if ``terms`` names one that the problem
                does not have, or leaves one out.

        >>> from pinnlib.problems import Helmholtz
        >>> batch = Helmholtz().sample(128, torch.Generator().manual_seed(0))
        >>> residuals = Helmholtz().term_residuals(lambda x: x[:, :1] ** 3, batch)
        >>> {term: [tuple(r.shape) for r in group] for term, group in residuals.items()}
        {'data': [(128, 1)], 'pde': [(128, 1)]}
        """
        residuals = self.residuals(model, batch)
        if not isinstance(residuals, Mapping):
            raise TypeError(
                f"residuals() returns a {type(residuals).__name__}: return a dict of tensors (N, 1)"
            )
        stack = _stack_of(batch)
        for name, r in residuals.items():
            check_residual(name, r, stack)
        for term, group in self.terms.items():
            if unknown := set(group) - set(residuals):
                raise ValueError(
                    f"term {term!r} names unknown residuals {sorted(unknown)}: "
                    f"this problem has {sorted(residuals)}"
                )
        if unnamed := set(residuals).difference(*self.terms.values()):
            raise ValueError(
                f"residuals {sorted(unnamed)} stand in no term, so nothing would make them zero: "
                "name them in terms, or return them no longer"
            )
        return {term: [residuals[name] for name in group] for term, group in self.terms.items()}

    def losses(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Unweighted loss of each term: the mean squares of its residuals, added up.

        Args:
            model: maps points ``(N, d)`` to values ``(N, m)``.
            batch: points from :meth:`sample`.

        Returns:
            A scalar tensor for each name in ``terms``, in that order; ``(M,)`` for a stack of M
            networks with batches ``(M, N, d)``.

        Raises:
            TypeError: as :meth:`term_residuals`.
            ValueError: as :meth:`term_residuals`, or if a residual has no point.
        """
        return losses_of(self.term_residuals(model, batch), _stack_of(batch))

    def grid(
        self,
        n: int = 100,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Points of a regular grid, ``(n**d, d)``: ``n`` values an input, the last one fastest.

        Raises:
            ValueError: if ``n`` is smaller than 1.

        >>> from pinnlib.problems import KleinGordon
        >>> KleinGordon().grid(2).tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
        """
        if n < 1:
            raise ValueError(f"n is {n}: use 1 value or more along each input")
        axes = [
            torch.linspace(low, high, n, device=device, dtype=dtype) for low, high in self.domain
        ]
        return torch.cartesian_prod(*axes).reshape(-1, len(axes))


def _check_terms(terms: Mapping[str, Sequence[str]] | None) -> None:
    """Raise a ValueError unless each term has a list of residuals, and each residual one term."""
    if not isinstance(terms, Mapping) or not terms:
        raise ValueError(
            f"terms is {terms!r}: name the residuals of each term, in order, such as "
            "{'data': ['boundary'], 'pde': ['pde']}"
        )
    for term, group in terms.items():
        if not isinstance(group, list | tuple) or not group:
            raise ValueError(f"term {term!r} has residuals {group!r}: pass a list of names")
    names = [name for group in terms.values() for name in group]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"residuals {sorted(twice)} stand more than once in terms: name each once")


def _stack_of(batch: Mapping[str, Tensor]) -> tuple[int, ...]:
    """``(M,)`` if a set of points is ``(M, N, d)``, for a stack of M networks, else ``()``."""
    stacks = {tuple(x.shape[:-2]) for x in batch.values() if x.ndim > 2}
    if len(stacks) > 1:
        shapes = {name: tuple(x.shape) for name, x in batch.items()}
        raise ValueError(f"sets have shapes {shapes}: pass (M, N, d) with one M for all")
    return stacks.pop() if stacks else ()
