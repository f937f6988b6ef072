"""What a training shows on its way, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pinnlib.measuring import Measured

__all__ = ["History", "Observation"]  # the rest is for the loop


class Observation:
    """What a step has measured, shown to ``observe`` before the optimizer moves.

    All tensors stay on the device; K terms, and a leading M for a stack of M networks.

    >>> from pinnlib.problems import Helmholtz
    >>> from pinnlib.training import train_many
    >>> from pinnlib.gradients import mean_abs
    >>> sizes = []
    >>> def observe(seen):
    ...     sizes.append(mean_abs(seen.G))
    >>> plain = {"data": 1.0, "pde": 1.0}
    >>> _ = train_many(Helmholtz(), plain, seeds=[0, 1], steps=3, observe=observe)
    >>> torch.stack(sizes, dim=1).shape  # seeds, steps, terms
    torch.Size([2, 3, 2])
    """

    step: int
    """Number of the step, from 1."""
    model: nn.Module
    """The network or the stack that is trained, before this step moves it."""
    terms: tuple[str, ...]
    """Names of the K terms."""
    losses: Tensor
    """The unweighted losses, ``(…, K)``."""
    weights: Tensor
    """The weights used, ``(…, K)``."""

    def __init__(
        self,
        step: int,
        model: nn.Module,
        terms: tuple[str, ...],
        measured: Measured,
        rows: Callable[[], Tensor],
    ) -> None:
        self.step, self.model, self.terms = step, model, terms
        self.losses, self.weights = measured.losses, measured.weights
        self._G, self._rows = measured.G, rows

    @property
    def G(self) -> Tensor:
        """The gradient matrix, ``(…, K, P)``: K more backward passes where no rule measured it."""
        if self._G is None:
            self._G = self._rows()
        return self._G


@dataclass
class History:
    """What was recorded at T steps of a training, for each of M networks of a stack.

    Step s stands for the network after s updates; losses and weights are those of the s-th update.
    What a failed network did not reach is undefined (NaN).

    >>> from pinnlib.problems import Helmholtz
    >>> from pinnlib.training import train_many
    >>> weights = {"data": 10.0, "pde": 1.0}
    >>> _, history = train_many(Helmholtz(), weights, seeds=[0, 1], steps=3, record_every=1)
    >>> total = sum(history.weights[term] * history.losses[term] for term in history.losses)
    >>> history.steps.tolist(), total.shape, history.failures
    ([1, 2, 3], (2, 3), {})
    """

    steps: NDArray[np.int64]
    """Recorded steps, ``(T,)``."""
    losses: dict[str, NDArray[np.float64]]
    """*Unweighted* losses by term, ``(T,)`` or ``(M, T)``."""
    weights: dict[str, NDArray[np.float64]]
    """What the losses were multiplied with, by term, ``(T,)`` or ``(M, T)``."""
    errors: NDArray[np.float64]
    """Relative :math:`L_2` errors, ``(T,)`` or ``(M, T)``; NaN for a problem without reference."""
    seconds: NDArray[np.float64]
    """Training time up to each recorded step, recording left out, ``(T,)``."""
    failures: dict[int, int]
    """The step in which something was not finite, by the number of the network; mostly empty."""


@dataclass
class Recorder:
    """Collects what becomes a history; tensors stay on their device until the end."""

    terms: Sequence[str]
    stack: tuple[int, ...]
    entries: list[tuple[int, Tensor, Tensor, Tensor, float]] = field(default_factory=list)
    failed: Tensor = field(default_factory=lambda: torch.tensor(-1))

    def add(
        self, step: int, measured: Measured, error: Tensor | None, seconds: float, failed: Tensor
    ) -> None:
        """Keep what a step has shown, and the networks that have failed by then."""
        self.failed = failed.cpu()
        if error is None:
            error = torch.full(self.stack, torch.nan)
        alive = failed < 0
        losses = measured.losses.where(alive[..., None], torch.nan)
        weights = measured.weights.where(alive[..., None], torch.nan)
        error = error.where(alive.to(error.device), torch.nan)
        self.entries.append((step, losses, weights, error, seconds))

    @property
    def all_failed(self) -> bool:
        """Whether no network is left."""
        return bool((self.failed >= 0).all())

    def history(self) -> History:
        """What was collected."""
        steps, losses, weights, errors, seconds = zip(*self.entries, strict=True)
        failed = self.failed.reshape(-1).tolist()
        return History(
            steps=np.array(steps),
            losses=self._by_term(losses),
            weights=self._by_term(weights),
            errors=_array(errors),
            seconds=np.array(seconds),
            failures={i: step + 1 for i, step in enumerate(failed) if step >= 0},
        )

    def _by_term(self, rows: tuple[Tensor, ...]) -> dict[str, NDArray[np.float64]]:
        """From T tensors ``(*stack, K)`` to an array ``(*stack, T)`` for each term."""
        return dict(zip(self.terms, np.moveaxis(_array(rows), -2, 0), strict=True))


def _array(columns: tuple[Tensor, ...]) -> NDArray[np.float64]:
    array: NDArray[np.float64] = torch.stack(columns, dim=-1).cpu().double().numpy()
    return array
