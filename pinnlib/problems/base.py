"""What every problem has: a domain, points, residuals, losses and an exact solution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pinnlib.derivatives import Derivatives, Model, nested


class Problem(ABC):
    r"""A partial differential equation with its conditions, as residuals that should be zero.

    A loss term adds up the mean squares of one or more residuals,

    .. math::

        \mathcal L_k(\theta) = \sum_{r \in \text{terms}[k]} \frac1N \sum_{i=1}^N r(x_i; \theta)^2.

    Args:
        terms: which residuals make up which loss term. The default, in the class attribute
            ``terms``, is the two-term split into ``data`` and ``pde``.
        derivatives: the function that differentiates the model, such as
            :func:`pinnlib.derivatives.nested`.

    Raises:
        ValueError: if a term has no residual, or a residual stands in two terms.

    A problem of your own needs what follows here, such as u' = -u with u(0) = 1:

    >>> class Decay(Problem):
    ...     variables = ("t",)
    ...     domain = ((0.0, 1.0),)
    ...     terms = {"data": ["initial"], "pde": ["pde"]}
    ...
    ...     def sample(self, n, generator):
    ...         t = torch.rand(n, 1, generator=generator)
    ...         return {"initial": torch.zeros(1, 1), "pde": t}
    ...
    ...     def residuals(self, model, batch):
    ...         u, (u_t,), _ = self.derivatives(model, batch["pde"], order=1)
    ...         return {"initial": model(batch["initial"]) - 1, "pde": u_t + u}
    ...
    ...     def exact(self, x):
    ...         return torch.exp(-x)
    >>> problem = Decay()
    >>> batch = problem.sample(128, torch.Generator().manual_seed(0))
    >>> losses = problem.losses(problem.exact, batch)
    >>> {term: loss.item() for term, loss in losses.items()}
    {'data': 0.0, 'pde': 0.0}
    """

    variables: tuple[str, ...]
    """Names of the inputs, in the order of the columns of x."""
    domain: tuple[tuple[float, float], ...]
    """One (low, high) pair for each input."""
    terms: Mapping[str, Sequence[str]]
    """The residuals that each loss term adds up."""

    def __init__(
        self,
        terms: Mapping[str, Sequence[str]] | None = None,
        derivatives: Derivatives = nested,
    ) -> None:
        if terms is not None:
            self.terms = terms
        self.derivatives = derivatives
        names = [name for group in self.terms.values() for name in group]
        for term, group in self.terms.items():
            if isinstance(group, str) or not group:
                raise ValueError(f"term {term!r} has residuals {group!r}: pass a list of names")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"residuals {sorted(twice)} stand more than once in terms: name each once"
            )

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw random points for each set of points.

        Args:
            n: points in each set.
            generator: source of the points.

        Returns:
            ``(n, d)`` for each set, by name.

        Raises:
            ValueError: if ``n`` is smaller than the number of faces that a set is shared out over.
        """

    @abstractmethod
    def residuals(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What should be zero at each point.

        Args:
            model: maps points ``(N, d)`` to values ``(N, 1)``.
            batch: points from :meth:`sample`.

        Returns:
            ``(N, 1)`` for each residual, ``(M, N, 1)`` for a stack of M networks, by name.
        """

    @abstractmethod
    def exact(self, x: Tensor) -> Tensor:
        """Exact solution at points ``x`` of shape ``(N, d)``, as ``(N, 1)``."""

    def losses(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Unweighted loss of each term: the mean squares of its residuals, added up.

        Args:
            model: maps points ``(N, d)`` to values ``(N, 1)``.
            batch: points from :meth:`sample`.

        Returns:
            A scalar tensor for each name in ``terms``, in that order; ``(M,)`` for a stack of M
            networks with batches ``(M, N, d)``.

        Raises:
            ValueError: if ``terms`` names a residual that the problem does not have.
        """
        residuals = self.residuals(model, batch)
        for term, group in self.terms.items():
            if unknown := set(group) - set(residuals):
                raise ValueError(
                    f"term {term!r} names unknown residuals {sorted(unknown)}: "
                    f"this problem has {sorted(residuals)}"
                )
        squares = {name: r.square().mean(dim=(-2, -1)) for name, r in residuals.items()}
        return {
            term: torch.stack([squares[name] for name in group]).sum(dim=0)
            for term, group in self.terms.items()
        }

    def grid(self, n: int = 100) -> Tensor:
        """Points of a regular grid, ``(n**d, d)``: ``n`` values an input, the last one fastest.

        >>> from pinnlib.problems import KleinGordon
        >>> KleinGordon().grid(2).tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
        """
        axes = [torch.linspace(low, high, n) for low, high in self.domain]
        return torch.cartesian_prod(*axes).reshape(-1, len(axes))

    def _interior(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` points drawn uniformly from the domain."""
        low, high = torch.tensor(self.domain).T
        points: Tensor = low + (high - low) * torch.rand(n, len(low), generator=generator)
        return points

    def _faces(
        self, n: int, generator: torch.Generator, faces: Sequence[tuple[int, float]]
    ) -> Tensor:
        """``n`` points shared out evenly over faces, each given as (column, its value there)."""
        if n < len(faces):
            raise ValueError(f"n is {n}: use {len(faces)} points or more, one for each face")
        x = self._interior(n, generator)
        for i, (column, value) in enumerate(faces):
            x[i :: len(faces), column] = value
        return x
