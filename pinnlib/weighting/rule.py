"""What a weighting rule is: a pure function from what a step shows to the weights of its terms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from torch import Tensor

State = dict[str, Tensor]
"""What a rule remembers from one update to the next."""


class Seen:
    r"""What one step shows to a rule. What no rule looks at is never computed.

    Args:
        terms: names of the K terms.
        weights: the weights in force, ``(…, K)``.
        losses: the unweighted losses, ``(…, K)``, detached.
        rows: measures the gradient matrix ``(…, K, P)``, and which of its entries each term uses,
            ``(K, P)``, or ``None`` for all.
        probes: measures :attr:`probe`.

    >>> import torch
    >>> G = torch.tensor([[1.0, 1.0], [4.0, 4.0]])
    >>> seen = Seen(["data", "pde"], torch.ones(2), rows=lambda: (G, None))
    >>> seen.G.shape
    torch.Size([2, 2])
    """

    is_recorded = False
    """Whether operations are being recorded, so that a rule has to do the same at every step."""

    def __init__(
        self,
        terms: Sequence[str],
        weights: Tensor,
        *,
        losses: Tensor | None = None,
        rows: Callable[[], tuple[Tensor, Tensor | None]] | None = None,
        probes: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.terms = tuple(terms)
        self.weights = weights
        self._losses, self._measure_rows, self._measure_probes = losses, rows, probes
        self._found: tuple[Tensor, Tensor | None] | None = None

    @property
    def losses(self) -> Tensor:
        """The unweighted losses, ``(…, K)``."""
        if self._losses is None:
            raise ValueError("this rule looks at the losses: pass them beside G")
        return self._losses

    @property
    def _rows(self) -> tuple[Tensor, Tensor | None]:
        # No cached_property: its lock, in Python 3.11, would let one thread at a time measure.
        if self._found is None:
            if self._measure_rows is None:
                raise ValueError("this rule looks at the gradient matrix: pass it")
            self._found = self._measure_rows()
        return self._found

    @property
    def G(self) -> Tensor:
        """The gradient matrix, ``(…, K, P)``; one backward pass a term, at the first look."""
        return self._rows[0]

    @property
    def used(self) -> Tensor | None:
        """Which entries of G each term uses, ``(K, P)``; ``None`` where every term uses all."""
        return self._rows[1]

    @property
    def has_measured_rows(self) -> bool:
        """Whether a rule has looked at G."""
        return self._found is not None

    def probe(self, key: Tensor) -> Tensor:
        r"""Gradients of randomly signed sums of residuals, ``(…, K, P)``: a pass more a term.

        .. math:: \sum_r \frac1{\sqrt N} \sum_{i=1}^N z_i \nabla_\theta r_i,

        with signs :math:`z_i = \pm 1` at random.

        To be looked at before :attr:`G`, which frees the graph.

        Args:
            key: an integer tensor; the same key gives the same signs.
        """
        if self.has_measured_rows:
            raise ValueError(
                "this rule looks at random signs of residuals after another has looked at G, which "
                "frees their graph: name it first, such as in SideBySide"
            )
        if self._measure_probes is None:
            raise ValueError(
                "this rule looks at residuals: pass each term as a list of residuals (N, 1), not "
                "as a loss (for a Problem, its term_residuals)"
            )
        return self._measure_probes(key)

    def part(self, mine: slice) -> Seen:
        """What the step shows of some networks of a stack.

        Args:
            mine: which of the M networks.
        """
        part = Seen(
            self.terms,
            self.weights[mine],
            losses=None if self._losses is None else self._losses[mine],
            rows=lambda: (self.G[mine], self.used),
            probes=lambda key: self.probe(key)[mine],
        )
        part.is_recorded = self.is_recorded
        return part


class Rule:
    """Turns what a step shows into weights, without a memory of its own: state in, state out.

    A rule of your own overrides :meth:`__call__`, and :meth:`start` if it remembers something.

    >>> import torch
    >>> class Inverse(Rule):
    ...     '''Each weight is one over its loss.'''
    ...
    ...     def __call__(self, seen, state):
    ...         return 1 / seen.losses, state
    >>> Inverse()(Seen(["a", "b"], torch.ones(2), losses=torch.tensor([2.0, 4.0])), {})[0]
    tensor([0.5000, 0.2500])
    """

    def start(self, terms: Sequence[str], weights: Tensor) -> State:
        """The state before the first update.

        Args:
            terms: names of the K terms.
            weights: the weights at the start, ``(…, K)``; a state has their device.

        Raises:
            ValueError: if the rule names a term that is not there.
        """
        return {}

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        """One update.

        Args:
            seen: what the step shows.
            state: what :meth:`start` or the update before returned.

        Returns:
            The weights ``(…, K)``, and the state for the next update.
        """
        raise NotImplementedError

    def target(self, seen: Seen, state: State) -> Tensor:
        """What the rule aims at, without any moving average, ``(…, K)``."""
        return self(seen, state)[0]


def answer(rule: Rule, seen: Seen, state: State) -> tuple[Tensor, State]:
    """What a rule returns, detached; an error if it is no weights and state."""
    found: object = rule(seen, state)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise TypeError(f"the rule returned {found!r}: let it return (weights, state)")
    weights, state = found
    if not isinstance(weights, Tensor) or weights.shape != seen.weights.shape:
        shape = tuple(weights.shape) if isinstance(weights, Tensor) else repr(weights)
        raise ValueError(
            f"the rule returned {shape}: let it return weights {tuple(seen.weights.shape)}"
        )
    kept = {name: value.detach() for name, value in state.items()}
    return weights.detach().to(seen.weights.dtype), kept


def is_recording() -> bool:
    """Whether what runs now is being recorded, for later calls that run the operations alone."""
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # slow to import for nothing
    return tracer is not None and tracer.get_proxy_mode() is not None


def check_number(name: str, value: float, is_valid: Callable[[float], bool], wanted: str) -> None:
    """Raise an error that names a setting if it is not what is wanted."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}: pass {wanted}")
    if not is_valid(value):
        raise ValueError(f"{name} is {value!r}: pass {wanted}")
