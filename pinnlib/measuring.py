"""What one batch shows: losses, gradient rows, probes; on one process, or as a share of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from pinnlib.distributed import Sum
from pinnlib.gradients import check_finite, check_used, gradient_rows
from pinnlib.parameters import used_columns
from pinnlib.residuals import (
    NotFiniteError,
    Term,
    check_differentiable,
    check_finite_losses,
    check_term,
    losses_of,
    mean_squares,
)
from pinnlib.weighting import Balancer, State
from pinnlib.weighting.kernel import factors

__all__: list[str] = []  # for Step


class Measurement:
    """The terms of one batch, and their gradients when somebody asks.

    Args:
        terms: by name, in the order of the rows.
        params: P entries.
        width: how many columns, the first ones, a rule may look at.
        stack: ``(M,)`` for a stack of M networks.
        reduce: adds a tensor over processes; each then holds its share of every loss.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        params: Sequence[Tensor],
        width: int,
        stack: tuple[int, ...],
        reduce: Sum | None,
    ) -> None:
        self.terms, self.params, self.width, self.stack = terms, params, width, stack
        self._is_shared = reduce is not None
        self._sum: Sum = reduce or (lambda x: x)
        self._parts = self._shares() if self._is_shared else losses_of(terms, stack)
        """What this process adds to each loss."""
        check_differentiable(self._parts, stack)
        vector = torch.stack([x.detach().reshape(stack) for x in self._parts.values()], dim=-1)
        self.losses = self._sum(vector)
        """``(…, K)``"""
        self.G: Tensor | None = None
        """``(…, K, P)``, once measured."""
        self.used: list[list[bool]]
        """Whether a term, or the weighted sum, uses a parameter, once measured."""

    def rows(self) -> tuple[Tensor, Tensor | None]:
        """The gradient matrix that a rule may look at, and the entries that each term uses."""
        outputs = self._parts.values()
        G, self.used = gradient_rows([([x], None) for x in outputs], self.params, stack=self.stack)
        check_used(self.terms, self.used)
        self.G = self._sum(G)
        mask = used_columns(self.used, self.params, self.stack)
        return self.G[..., : self.width], None if mask is None else mask[:, : self.width]

    def probes(self, key: Tensor) -> Tensor:
        """Rows of randomly signed sums of residuals, ``(…, K, P)``; the graph is kept."""
        if self._is_shared:
            raise ValueError(
                "the rule draws random signs, which differ from process to process, as KernelTrace "
                "does: take a rule of gradients or losses with reduce"
            )
        rows = []
        for k, (term, value) in enumerate(self.terms.items()):
            if isinstance(value, Tensor):
                raise ValueError(
                    f"the rule looks at residuals, and {term!r} is a loss: pass a list of "
                    "residuals (N, 1), such as a problem's term_residuals"
                )
            seeds = [
                factors(key, k, j, r.shape[-2])[:, None].expand_as(r) for j, r in enumerate(value)
            ]
            rows.append((value, seeds))
        G, _ = gradient_rows(rows, self.params, retain_graph=True, stack=self.stack)
        return G[..., : self.width]

    def direction(self, weights: Tensor) -> Tensor:
        r"""The balanced gradient :math:`\lambda G`, ``(…, K)`` to ``(…, P)``.

        From the rows if they were measured, else by one backward pass of the weighted sum.
        """
        if self.G is not None:
            return combine(weights, self.G)
        outputs = list(self._parts.values())
        seeds = []
        for w, x in zip(weights.unbind(-1), outputs, strict=True):
            seed = w.to(x.dtype)
            # A weight that vanishes in the precision of its loss would silence the term.
            seeds.append(torch.where((seed == 0) & (w > 0), torch.nan, seed).reshape(x.shape))
        row, self.used = gradient_rows([(outputs, seeds)], self.params, stack=self.stack)
        check_used(["the weighted sum"], self.used)
        return self._sum(row.squeeze(-2))

    def _shares(self) -> dict[str, Tensor]:
        """What this process adds to each loss: its own loss, times its share of all points.

        A loss without residuals counts alike on each process.
        """
        for term, value in self.terms.items():
            check_term(term, value, self.stack)
        blocks = {t: [v] if isinstance(v, Tensor) else list(v) for t, v in self.terms.items()}
        counts = torch.tensor(
            [
                1 if isinstance(self.terms[term], Tensor) else r.shape[-2]
                for term, parts in blocks.items()
                for r in parts
            ],
            dtype=torch.float64,
            device=self.params[0].device,
        )
        shares = iter((counts / self._sum(counts)).unbind())
        losses = {}
        for term, parts in blocks.items():
            own = []
            for r in parts:
                if not isinstance(self.terms[term], Tensor):
                    # Without points here: zero, with a graph.
                    r = mean_squares([r]) if r.shape[-2] else r.sum(dim=(-2, -1))
                own.append(r * next(shares).to(r.dtype))
            losses[term] = torch.stack(own).sum(dim=0)
        return losses


class Measured(NamedTuple):
    """What a step finds out, before anything changes."""

    losses: Tensor
    """(…, K)"""
    weights: Tensor
    """(…, K)"""
    state: State
    direction: Tensor
    """The balanced gradient, (…, P)."""
    ok: Tensor
    """Whether all of it is finite, (…)."""
    is_used: list[bool]
    """Whether any term uses a parameter."""
    G: Tensor | None
    """(…, K, P), if a rule looked at it."""

    def masked(self, balancer: Balancer) -> tuple[Tensor, State, Tensor, Tensor]:
        """State and gradient where all is finite and always was, and what was before elsewhere."""
        was_ok = balancer.failed < 0
        ok = self.ok & was_ok

        def pick(new: Tensor, old: Tensor) -> Tensor:
            where = ok.reshape(ok.shape + (1,) * (new.ndim - ok.ndim))
            return torch.where(where, new, old) if new.shape[: ok.ndim] == ok.shape else new

        weights = pick(self.weights, balancer.weights)
        state = {name: pick(x, balancer.state[name]) for name, x in self.state.items()}
        direction = pick(self.direction, torch.zeros_like(self.direction))
        return weights, state, direction, balancer.failed.masked_fill(was_ok & ~ok, balancer.step)

    def explain(self, balancer: Balancer) -> NoReturn:
        """Raise the error that says what is not finite."""
        terms, step = balancer.terms, balancer.step
        check_finite_losses(dict(zip(terms, self.losses.unbind(), strict=True)))
        if self.G is not None:
            check_finite(terms, self.G, step)
        balancer.check_weights(self.weights)
        weights = dict(zip(terms, self.weights.tolist(), strict=True))
        raise NotFiniteError(
            f"the balanced gradient at step {step} is not finite in {self.direction.dtype}, "
            f"with the weights {weights}: lower the learning rate, check the derivatives, or bound "
            "the weights"
        )


def combine(weights: Tensor, G: Tensor) -> Tensor:
    r"""The balanced gradient :math:`\lambda G`, ``(…, K)`` and ``(…, K, P)`` to ``(…, P)``."""
    # In double precision, where small weights do not vanish and autocast rounds nothing.
    if weights.dtype == torch.float64:
        return (weights[..., None, :] @ G.double()).squeeze(-2).to(G.dtype)
    return (weights[..., None] * G).sum(dim=-2).to(G.dtype)
