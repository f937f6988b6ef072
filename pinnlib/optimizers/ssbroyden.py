"""Self-scaled Broyden: a quasi-Newton optimizer with a dense inverse Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pinnlib.optimizers.one_group import DRAW, MOST, OneGroup, check_repeats
from pinnlib.optimizers.wolfe import Trial, search
from pinnlib.residuals import NotFiniteError

__all__ = ["SSBroyden"]


def scaling(h: float, b: float, n: int) -> tuple[float, float]:
    r"""The numbers φ and τ of self-scaled Broyden (:cite:t:`urban2025`).

    Args:
        h: :math:`y^\top H y / s^\top y`.
        b: :math:`s^\top H^{-1} s / s^\top y`.
        n: number of parameters.

    >>> scaling(1.0, 1.0, 2)  # a step that H foresaw
    (1.0, 1.0)
    """
    a = max(h * b - 1, 0.0)  # which Cauchy and Schwarz say, and rounding does not
    lower = min(1.0, h / ((1 + a) * (1 + math.sqrt(a / (1 + a)))))
    least = (lower - 1) / a if a > 0 else 0.0
    theta = max(least, min(1 / lower, (1 - b) / b))
    sigma = max(1 + a * theta, lower)  # never less, but for rounding
    phi = (1 - theta) / sigma
    rho = min(1.0, 1 / b)
    power = sigma ** (1 / (1 - n)) if n > 1 else 1.0
    return phi, min(rho * power, sigma)  # a positive θ is at most 1, and the power then, too


def broyden(H: Tensor, s: Tensor, y: Tensor, Hy: Tensor, phi: float, tau: float) -> None:
    """Update an inverse Hessian ``(P, P)`` in place, in one pass over it.

    Args:
        H: symmetric and positive definite.
        s: the step, ``(P,)``.
        y: the change of the gradient along it, ``(P,)``, with a positive product with s.
        Hy: their product, ``(P,)``.
        phi: 1 gives BFGS, 0 gives DFP.
        tau: divides what was known before the step.
    """
    sy, yHy = s @ y, y @ Hy
    v = s / sy - Hy / yHy
    vectors = torch.stack([Hy, v, s])
    factors = torch.stack([-1 / (yHy * tau), phi * yHy / tau, 1 / sy])
    H.addmm_(vectors.T * factors, vectors, beta=1 / tau)


def expected(decrease: float, slope: float) -> float:
    """The step length that brings the decrease of the step before once more, at most 1.

    The scaling makes H larger than the inverse Hessian, so that a length of 1 is mostly too long.
    A parabola with this slope falls that far at twice decrease over slope; a hundredth is added, so
    that lengths come back to 1 (Nocedal and Wright, *Numerical Optimization*, equation 3.60).

    >>> expected(1.0, -4.0)
    0.505
    >>> expected(0.0, -4.0)  # nothing is known
    1.0
    """
    return min(1.0, 1.01 * 2 * decrease / -slope) or 1.0


class SSBroyden(OneGroup):
    r"""Self-scaled Broyden, for the last digits: it takes the place of ``torch.optim.LBFGS``.

    .. math:: H &\leftarrow \frac1\tau \Big[ H - \frac{H y y^\top H}{y^\top H y} \\
       &\qquad + \varphi\, (y^\top H y)\, v v^\top \Big] + \frac{s s^\top}{s^\top y}, \\
       v &= \frac{s}{s^\top y} - \frac{H y}{y^\top H y}

    H is the inverse Hessian, s an accepted step and y the change of the gradient along it; BFGS has
    :math:`\varphi = \tau = 1`. Here both follow from the step, as :cite:t:`urban2025` show. Each
    accepted step meets the strong Wolfe conditions (:cite:t:`nocedal2006`). The search for it
    begins at the length that would bring the decrease of the step before once more.

    One call of ``step`` works on one objective. It evaluates first, and no pair (s, y) reaches from
    one call into the next, so points may be drawn anew and weights renewed between calls; H is
    kept. Within a call the closure has to give the same function each time.

    Where no step length is found, H starts again from a multiple of the identity. Where none is
    found along the gradient either, the call ends, ``stalled`` is true, and the parameters are
    where the last accepted step left them.

    Args:
        params: the parameters, in one group, of one precision and on one device. Best in float64,
            in which a search can tell smaller decreases apart. Frozen ones are left out.
        max_iter: accepted steps in one call of ``step``.

    Raises:
        ValueError: if there is more than one group, more than 20,000 entries (H holds their
            square), several precisions or devices, a complex parameter, or ``max_iter`` is below 1.

    >>> theta = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = SSBroyden([theta], max_iter=50)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 100 * (theta[1] - theta[0] ** 2) ** 2 + (1 - theta[0]) ** 2
    ...     loss.backward()
    ...     return loss
    >>> first = optimizer.step(closure)
    >>> theta.detach().round(decimals=6)
    tensor([1., 1.], dtype=torch.float64)
    """

    def __init__(self, params: Iterable[Any], max_iter: int = 100) -> None:
        super().__init__(params, max_iter)
        size = sum(p.numel() for p in self._params)
        if size > MOST:
            raise ValueError(
                f"{size} parameters: their inverse Hessian would take {8 * size**2 / 1e9:.0f} GB; "
                "take a smaller network, or torch.optim.LBFGS"
            )

    def step(self, closure: Callable[[], Any]) -> Tensor:  # type: ignore[override]
        """Take up to ``max_iter`` steps on one objective.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the
                loss. Within a search, a loss that is not finite is taken as too high.

        Returns:
            The loss at the start, as ``torch.optim.LBFGS`` gives it.

        Raises:
            TypeError: if the closure does not return a number.
            ValueError: if loss or gradient at the start is not finite, there is no gradient, or, in
                the first call, a second evaluation gives others; only ``.grad`` has changed then.
        """
        evaluate = torch.enable_grad()(closure)
        x = self._gather(self._params)
        self.zero_grad()  # what another optimizer has left would hide that the closure writes none
        loss, g = self._evaluate(evaluate, x)
        first = torch.as_tensor(loss, dtype=x.dtype)
        if all(p.grad is None for p in self._params):
            raise ValueError("the closure wrote no gradient: call loss.backward() in it")
        if not (math.isfinite(loss) and bool(g.isfinite().all())):
            raise ValueError(
                f"loss at the start is {loss}, or its gradient is not finite: start from another "
                "network, or check its inputs"
            )
        state = self._memory
        if "H" not in state:
            again, gradient = self._evaluate(evaluate, x)
            check_repeats("losses", first, torch.as_tensor(again, dtype=x.dtype), DRAW)
            remedy = f"call zero_grad in it, before backward; {DRAW}"
            check_repeats("gradients", g, gradient, remedy)
            state |= {"H": torch.eye(len(x), dtype=x.dtype, device=x.device), "is_fresh": True}
        state["stalled"] = False
        try:
            decrease = 0.0  # of the step before, on this objective
            for _ in range(self.param_groups[0]["max_iter"]):
                found = self._move(evaluate, x, loss, g, decrease)
                if found is None and not state["is_fresh"]:
                    state["H"].zero_().fill_diagonal_(1)
                    state["is_fresh"] = True
                    found = self._move(evaluate, x, loss, g, decrease)
                if found is None:
                    state["stalled"] = True
                    break
                decrease = loss - found[1]
                x, loss, g = found
        finally:
            self._place(x)
        return first

    def _move(
        self, evaluate: Callable[[], Any], x: Tensor, loss: float, g: Tensor, decrease: float
    ) -> tuple[Tensor, float, Tensor] | None:
        """One accepted step, by which H is updated; ``None`` if there is none."""
        state = self._memory
        H = state["H"]
        d = -(H @ g)
        slope = float(g @ d)
        if not slope < 0:
            return None
        gradients: dict[float, Tensor] = {}

        def at(t: float) -> Trial:
            try:
                value, gradients[t] = self._evaluate(evaluate, x + t * d)
            except NotFiniteError:  # by Step, which names the term
                return Trial(t, math.inf, math.inf)
            return Trial(t, value, float(gradients[t] @ d))

        if state["is_fresh"]:
            length = min(1.0, 1 / float(g.abs().sum()))
        else:
            length = expected(decrease, slope)
        found = search(at, Trial(0.0, loss, slope), length)
        if found is None:
            return None
        s, y = found.t * d, gradients[found.t] - g
        sy, yy = float(s @ y), float(y @ y)
        if not (sy > 0 and math.isfinite(yy)):
            return None
        sBs = -(found.t**2) * slope  # as B = H⁻¹ maps s = -tHg to -tg
        if state["is_fresh"]:
            H.mul_(sy / yy)
            sBs *= yy / sy
            state["is_fresh"] = False
        Hy = H @ y
        broyden(H, s, y, Hy, *scaling(float(y @ Hy) / sy, sBs / sy, len(x)))
        return x + s, found.value, gradients[found.t]

    def _evaluate(self, closure: Callable[[], Any], x: Tensor) -> tuple[float, Tensor]:
        self._place(x)
        loss = closure()
        if not isinstance(loss, Tensor | Real):
            found = type(loss).__name__
            raise TypeError(
                f"the closure returns a {found}: let it return the total loss, a number"
            )
        return float(torch.as_tensor(loss).detach()), self._gather([p.grad for p in self._params])
