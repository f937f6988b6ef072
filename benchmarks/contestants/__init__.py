"""The contestants, one library a file; each offers the four methods of :class:`Contestant`."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import Array


class Contestant(Protocol):
    """What the driver asks of a contestant, which is made from a task."""

    def loss_and_gradient(self) -> tuple[float, Array]:
        """Weighted loss, and its gradient as one vector, layer by layer, weights before bias."""

    def steps(self, n: int) -> float:
        """Train on for ``n`` steps; the seconds they took."""

    def parameters(self) -> Array:
        """All parameters as one vector, in the order of the gradient."""

    def predict(self, x: Array) -> NDArray[np.floating]:
        """Values ``(N, 1)`` of the network at points ``(N, 2)``."""
