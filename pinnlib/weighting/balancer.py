"""What keeps the weights of a training: names, a rule, its schedule and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pinnlib.gradients import check_finite
from pinnlib.parameters import check_matrix
from pinnlib.residuals import NotFiniteError, check_names
from pinnlib.weighting.by_term import ByTerm
from pinnlib.weighting.checkpoint import checked
from pinnlib.weighting.constant import Constant
from pinnlib.weighting.rule import Rule, Seen, State, answer


class Balancer:
    r"""Loss weights λ for named terms: a rule, when it is asked, and what it has to remember.

    At every ``every``-th step, beginning with the first, the rule turns what the step shows into
    new weights. All weights start at 1. The balancer never sees a network: it works on any
    gradient matrix, also on a stack ``(…, K, P)``, which it balances one by one.
    :class:`pinnlib.weighting.GradientBalancer` adds the published rules.

    Args:
        terms: names of the K loss terms, in the order of the rows of G.
        rule: turns what a step shows into weights; or a constant weight for each term, by name.
        every: steps from one update of the weights to the next, 1 or more.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if a name is missing, unknown or twice there, or ``every`` is below 1.

    >>> from pinnlib.weighting import Follow, Ratio
    >>> balancer = Balancer(["data", "pde"], Follow(Ratio(), alpha=0.5))
    >>> balancer.update(torch.tensor([[1.0, 1.0], [100.0, 100.0]]))
    tensor([1.0000, 0.5050], dtype=torch.float64)
    >>> balancer.by_term()
    {'data': 1.0, 'pde': 0.505}
    """

    weights: Tensor
    """The weights λ in force, ``(K,)`` in the order of ``terms``, or ``(M, K)``."""
    state: State
    """What the rule remembers."""
    step: int
    """Steps taken so far."""
    failed: Tensor
    """The step at which a gradient was not finite, ``()`` or ``(M,)``; -1 where none was."""

    def __init__(
        self, terms: Sequence[str], rule: Rule | Mapping[str, float | Tensor], *, every: int = 1
    ) -> None:
        check_names(terms)
        if isinstance(rule, Mapping):
            rule = Constant(rule)
        if not isinstance(rule, Rule):
            raise TypeError(f"rule is {rule!r}: pass a rule, such as Follow(Ratio()), or a dict")
        if isinstance(every, bool) or not isinstance(every, int):
            raise TypeError(f"every is {every!r}: pass a whole number of steps")
        if every < 1:
            raise ValueError(f"every is {every}: update the weights every 1 or more steps")
        self._terms, self._rule, self._every = tuple(terms), rule, every
        self.step = 0
        # On the CPU until a step shows where the gradients live.
        weights = torch.ones(len(terms), dtype=torch.float64, device="cpu")
        self.weights, self.state, self.failed = self._start(weights)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms."""
        return self._terms

    @property
    def rule(self) -> Rule:
        """What turns gradients or losses into weights."""
        return self._rule

    @property
    def every(self) -> int:
        """Steps from one update to the next."""
        return self._every

    @property
    def due(self) -> bool:
        """Whether the next step updates the weights."""
        return self.step % self.every == 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.terms)}, {self.rule}, every={self.every})"

    def _start(self, weights: Tensor) -> tuple[Tensor, State, Tensor]:
        state = self.rule.start(self.terms, weights)
        failed = torch.full(weights.shape[:-1], -1, dtype=torch.int64, device=weights.device)
        return weights, state, failed

    def placed(self, stack: tuple[int, ...], device: torch.device) -> tuple[Tensor, State, Tensor]:
        """Weights, state and failures where the gradients live, a row for each of a stack.

        Args:
            stack: ``()``, or ``(M,)`` for M networks.
            device: of the gradient matrix. The state is in double precision where there is one.

        Raises:
            ValueError: if the balancer was used for another number of networks before.
        """
        weights, state, failed = self.weights, self.state, self.failed
        if weights.shape[:-1] != stack:
            if self.step > 0 or weights.ndim > 1:
                raise ValueError(
                    f"this balancer holds the weights of a stack {tuple(weights.shape[:-1])}, "
                    f"not of {tuple(stack)}: make a new one for each training"
                )
            weights, state, failed = self._start(weights.expand(*stack, -1).clone())
        if weights.device != device:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            state = {
                name: x.to(device, dtype if x.is_floating_point() else x.dtype)
                for name, x in state.items()
            }
            weights, failed = weights.to(device, dtype), failed.to(device)
        return weights, state, failed

    def place(self, stack: tuple[int, ...], device: torch.device) -> None:
        """Move there what :meth:`placed` gives."""
        self.weights, self.state, self.failed = self.placed(stack, device)

    def update(self, G: Tensor, losses: Tensor | None = None) -> Tensor:
        """Take one step with a gradient matrix at hand, and return the weights λ, ``(…, K)``.

        Args:
            G: gradient matrix ``(…, K, P)`` of the unweighted terms, in the order of ``terms``.
            losses: the unweighted losses, ``(…, K)``, where the rule looks at them.

        Raises:
            ValueError: if G has another number of rows than there are terms, or no column, or if
                an entry or a new weight is not finite; the weights are then as they were.
        """
        check_matrix(self.terms, G)
        check_finite(self.terms, G, self.step)
        return self.advance(G.shape[:-2], G.device, losses=losses, rows=lambda: (G.detach(), None))

    def advance(self, stack: tuple[int, ...], device: torch.device, **shown: Any) -> Tensor:
        """Take one step with anything that a rule may look at, and return the weights.

        Args:
            stack: as for :meth:`placed`, like ``device``.
            shown: arguments of :class:`Seen`.
        """
        weights, state, failed = self.placed(stack, device)
        if self.due:
            weights, state = answer(self.rule, Seen(self.terms, weights, **shown), state)
            self.check_weights(weights)
        self.commit(weights, state, failed)
        return weights.clone()

    def target(self, G: Tensor, losses: Tensor | None = None) -> Tensor:
        r"""Target weights :math:`\hat\lambda` of a gradient matrix, without any average.

        Arguments are those of :meth:`update`; the state does not change.

        Returns:
            ``(…, K)``, in double precision.

        >>> from pinnlib.weighting import GradientBalancer
        >>> balancer = GradientBalancer.simplified(alpha=0.5)
        >>> balancer.target(torch.tensor([[1.0, 1.0], [100.0, 100.0]]))
        tensor([1.0000, 0.0100], dtype=torch.float64)
        """
        check_matrix(self.terms, G)
        weights, state, _ = self.placed(G.shape[:-2], G.device)
        seen = Seen(self.terms, weights, losses=losses, rows=lambda: (G.detach(), None))
        return self.rule.target(seen, state)

    def check_weights(self, weights: Tensor) -> None:
        """Raise a ValueError that names the first term whose weight is not finite."""
        if (infinite := ~weights.isfinite()).any():
            k = int(infinite.nonzero()[:, -1].min())
            raise NotFiniteError(
                f"weight of {self.terms[k]!r} at step {self.step} would be "
                f"{weights[..., k].tolist()}: the rule met a negative or infinite size, or its "
                f"average left the numbers; check {self.rule}"
            )

    def commit(self, weights: Tensor, state: State, failed: Tensor) -> None:
        """Take over what a step has found out, at once."""
        self.weights, self.state, self.failed, self.step = weights, state, failed, self.step + 1

    def check(self) -> None:
        """Raise a ValueError if a step has failed; elsewhere than on the CPU, only this tells."""
        if self.failed.ndim == 0 and (step := int(self.failed)) >= 0:
            raise NotFiniteError(
                f"a loss, gradient or weight at step {step} was not finite, and since then weights "
                "stay and gradients are zero: lower the learning rate or check the derivatives"
            )

    def by_term(self) -> ByTerm:
        """The weights as numbers, by term, read when they are looked at; lists for a stack."""
        return ByTerm(self.terms, self.weights, self.check)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, with the names of the terms.

        Load it with ``torch.load(…, weights_only=True)``: it holds tensors, numbers and names only.

        >>> from pinnlib.weighting import GradientBalancer
        >>> saved = GradientBalancer.simplified(warm_start=True).state_dict()
        >>> sorted(saved), sorted(saved["state"])
        (['state', 'step', 'terms', 'weights'], ['first'])
        """
        self.check()
        return {
            "terms": list(self.terms),
            "weights": self.weights.clone(),
            "state": {name: x.clone() for name, x in self.state.items()},
            "step": self.step,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a saved state, on any device.

        Args:
            saved: what :meth:`state_dict` returned.

        Raises:
            ValueError: if the state belongs to other terms or another rule, or holds a weight that
                is not finite; nothing has changed then.

        >>> from pinnlib.weighting import GradientBalancer
        >>> balancer, resumed = (GradientBalancer.simplified() for _ in range(2))
        >>> weights = balancer.update(torch.tensor([[1.0], [8.0]]))
        >>> resumed.load_state_dict(balancer.state_dict())
        >>> resumed.step, torch.equal(resumed.weights, weights)
        (1, True)
        """
        weights, state, step = checked(saved, self.terms, self.rule, self.weights)
        _, _, failed = self._start(weights)
        self.weights, self.state, self.failed, self.step = weights, state, failed, step


def as_balancer(balancer: Balancer | Mapping[str, float | Tensor]) -> Balancer:
    """The balancer itself, or one that holds the constant weights of a dictionary."""
    if isinstance(balancer, Mapping):
        return Balancer(tuple(balancer), balancer)
    if not isinstance(balancer, Balancer):
        raise TypeError(f"balancer is {balancer!r}: pass a GradientBalancer, or weights by term")
    return balancer
