"""Gauss-Newton on balanced residuals: Levenberg-Marquardt with geodesic acceleration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pinnlib.gradients import check_finite
from pinnlib.optimizers.jacobian import Blocks, Residuals, Terms, evaluate, jacobian, separable
from pinnlib.optimizers.one_group import DRAW, MOST, OneGroup, check_repeats
from pinnlib.parameters import used_columns, widths
from pinnlib.residuals import check_finite_losses, check_terms, losses_of
from pinnlib.step import Weights
from pinnlib.weighting.balancer import as_balancer
from pinnlib.weighting.kernel import factors

__all__ = ["GaussNewton"]

TRIALS = 12
"""Dampings that are tried for one step."""
FIRST = 1e-3
"""The first damping, beside a diagonal of ones."""
REACH = 0.1
"""How far along a step its curvature is measured."""
BENT = 0.75
"""A correction that is longer than this part of half the step is left out."""


class Linear:
    r"""Residuals about a point, :math:`\mathbf r + J \delta`, each column in units of its scale.

    Args:
        r: ``(N,)``, of all sets together.
        J: ``(N, P)``.
        scale: ``(P,)``, such as the lengths of the columns; zero counts as one.
    """

    def __init__(self, r: Tensor, J: Tensor, scale: Tensor) -> None:
        self.r, self.scale = r, torch.where(scale > 0, scale, 1)
        self.J = J / self.scale
        self._is_tall = len(J) >= len(scale)
        self._gram = self.J.T @ self.J if self._is_tall else self.J @ self.J.T

    def solver(self, damping: float) -> Callable[[Tensor], Tensor] | None:
        r"""The map :math:`v \mapsto (J^\top J + \mu I)^{-1} J^\top v`; ``None`` if it overflows.

        With fewer rows than columns it is :math:`J^\top (J J^\top + \mu I)^{-1} v`.
        """
        matrix = self._gram.clone()
        matrix.diagonal().add_(damping)
        L, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            return None

        def solve(v: Tensor) -> Tensor:
            if self._is_tall:
                return torch.cholesky_solve((self.J.T @ v)[:, None], L).flatten()
            return self.J.T @ torch.cholesky_solve(v[:, None], L).flatten()

        return solve

    def decrease(self, d: Tensor, damping: float) -> float:
        """By how much a damped step lowers the sum of squares, if the residuals were linear."""
        return float(d @ (damping * d - self.J.T @ self.r))


class GaussNewton(OneGroup):
    r"""Gauss-Newton, damped (Levenberg-Marquardt), for small networks: it looks at each residual.

    .. math:: &\Big(J^\top J + \mu D\Big)\, \delta = -J^\top \mathbf r, \\
       &\mathbf r = \Big(\sqrt{\lambda_k / N_j}\; r_{kj}\Big)

    **r** holds all residuals j of all terms k, weighted, so that the sum of its squares is the
    weighted loss; J is its Jacobian and D the largest diagonal of :math:`J^\top J` so far. The
    damping μ follows the gain, the decrease beside the one that the linear model promises
    (:cite:t:`madsen2004`). Each step is corrected for the curvature along it, from one more
    evaluation (geodesic acceleration, :cite:t:`transtrum2012`). With fewer residuals than
    parameters, the smaller system of :math:`J J^\top` is solved. A step that does not lower the
    loss is not taken. Where none does, the call ends, and ``stalled`` is true.

    One call of ``step`` works on one objective: the balancer is asked at its start, for which the
    gradient matrix, :math:`G_k = \sum_j \frac{2}{N_j} J_j^\top r_j`, comes with the Jacobian, and
    its weights are held within the call. Points may be drawn anew between calls.

    All rows of J cost one backward pass for each residual where parameters stand in ``nn.Linear``
    and points do not mix, for any way to differentiate by the points; for other parameters, such as
    an unknown coefficient, each entry costs a pass. Which is which is found by a comparison with
    autograd in each call.

    Args:
        params: the parameters, in one group, of one precision and on one device. Best in float64.
            Frozen ones are left out.
        balancer: turns gradients into weights; or a constant weight for each term.
        max_iter: accepted steps in one call of ``step``.

    Raises:
        ValueError: if there is more than one group, several precisions or devices, a complex
            parameter, or ``max_iter`` is below 1.

    >>> theta = torch.tensor([[-1.2]], dtype=torch.float64, requires_grad=True)
    >>> optimizer = GaussNewton([theta], {"data": 1.0})
    >>> x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    >>> first = optimizer.step(lambda: {"data": [(x @ theta).exp() - x.exp()]})
    >>> theta.item()
    1.0
    """

    def __init__(self, params: Iterable[Any], balancer: Weights, max_iter: int = 20) -> None:
        super().__init__(params, max_iter)
        self.balancer = as_balancer(balancer)

    def step(self, closure: Residuals) -> Tensor:  # type: ignore[override]
        """Take up to ``max_iter`` steps on one objective.

        Args:
            closure: gives the residuals ``(N, 1)`` of each term by name, as
                :meth:`pinnlib.problems.Problem.term_residuals` does, the same at each call. No
                ``backward``.

        Returns:
            The weighted loss at the start.

        Raises:
            TypeError: if the closure gives something else, such as losses.
            ValueError: if the terms are not the balancer's, a residual has another shape, something
                is not finite at the start, in the first call a second evaluation gives
                others, a weight is negative, or the Jacobian would take more than 3.2 GB. No
                parameter has changed then.
        """
        params, memory = self._params, self._memory
        terms = evaluate(closure)
        check_terms(terms, self.balancer.terms)
        losses = losses_of(terms)
        check_finite_losses(losses)
        x = self._gather(params)
        rows = sum(len(r) for residuals in terms.values() for r in residuals)
        if rows * len(x) > MOST**2:
            raise ValueError(
                f"{rows} residuals, {len(x)} parameters: the Jacobian would take "
                f"{8 * rows * len(x) / 1e9:.0f} GB; take fewer points, or SSBroyden"
            )
        if "scale" not in memory:
            check_repeats("residuals", self._vector(terms), self._vector(evaluate(closure)), DRAW)
        separate = separable(closure, terms, params)
        blocks = jacobian(closure, params, separate)
        factor = self._weigh(blocks, losses)
        now = self._linear(blocks, factor)
        first = now.r @ now.r
        memory["stalled"] = False
        try:
            for i in range(self.param_groups[0]["max_iter"]):
                if i:
                    now = self._linear(jacobian(closure, params, separate), factor)
                step = self._move(closure, x, now, factor)
                if step is None:
                    memory["stalled"] = True
                    break
                x = x + step
        finally:
            self._place(x)
        return first

    def _weigh(self, blocks: Blocks, losses: Mapping[str, Tensor]) -> Tensor:
        """Ask the balancer; then the factor of each row, ``(N,)``."""
        terms, groups = self.balancer.terms, [blocks[term] for term in self.balancer.terms]

        def summed(parts: Iterable[Iterable[Tensor]]) -> Tensor:
            return torch.stack([torch.stack(list(term)).sum(dim=0) for term in parts])

        def probes(key: Tensor) -> Tensor:
            return summed(
                [factors(key, k, j, len(r)).to(r) @ J for j, (r, J) in enumerate(group)]
                for k, group in enumerate(groups)
            )

        G = summed([2 / len(r) * (r @ J) for r, J in group] for group in groups)
        check_finite(terms, G, self.balancer.step)
        touched = summed([J.abs().sum(dim=0) for _, J in group] for group in groups)
        parts = touched.split(widths(self._params), dim=1)
        used = used_columns(
            [[bool(part[k].any()) for part in parts] for k in range(len(terms))], self._params
        )
        weights = self.balancer.advance(
            (),
            G.device,
            losses=torch.stack([losses[term].detach() for term in terms]),
            rows=lambda: (G, used),
            probes=probes,
        )
        rows = []
        for term, weight, group in zip(terms, weights.tolist(), groups, strict=True):
            if weight < 0:
                raise ValueError(
                    f"weight of {term!r} is {weight}: a sum of squares needs 0 or more"
                )
            rows += [torch.full_like(r, (weight / len(r)) ** 0.5) for r, _ in group]
        return torch.cat(rows)

    def _linear(self, blocks: Blocks, factor: Tensor) -> Linear:
        pairs = [pair for term in self.balancer.terms for pair in blocks[term]]
        r, J = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        r, J = factor * r, factor[:, None] * J
        scale, memory = torch.linalg.vector_norm(J, dim=0), self._memory
        memory["scale"] = torch.maximum(memory.get("scale", scale), scale)
        return Linear(r, J, memory["scale"])

    def _vector(self, terms: Terms) -> Tensor:
        """All residuals in the order of the balancer's terms, ``(N,)``."""
        rows = [r.detach().flatten() for term in self.balancer.terms for r in terms[term]]
        return torch.cat(rows)

    def _move(self, closure: Residuals, x: Tensor, now: Linear, factor: Tensor) -> Tensor | None:
        """A step that lowers the loss; ``None`` if there is none."""
        memory = self._memory
        damping, growth = memory.get("damping", FIRST), memory.get("growth", 2.0)
        total = float(now.r @ now.r)

        def at(d: Tensor) -> Tensor:
            self._place(x + d)
            return factor * self._vector(evaluate(closure))

        for _ in range(TRIALS):
            if (solve := now.solver(damping)) is not None:
                d = -solve(now.r)
                step = d / now.scale
                curvature = 2 / REACH * ((at(REACH * step) - now.r) / REACH - now.J @ d)
                bend = -solve(curvature)
                if bend.norm() <= BENT / 2 * d.norm():
                    step = step + bend / 2 / now.scale
                r = at(step)
                lower = total - float(r @ r)
                if lower > 0:
                    gain = lower / now.decrease(d, damping)
                    damping *= max(1 / 3, 1 - (2 * gain - 1) ** 3)
                    least = torch.finfo(x.dtype).eps
                    memory |= {"damping": max(damping, least), "growth": 2.0}
                    return step
            damping, growth = damping * growth, 2 * growth
        memory |= {"damping": FIRST, "growth": 2.0}
        return None
