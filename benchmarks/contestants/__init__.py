"""The contestants, one library a file."""

from typing import Any, NamedTuple, Protocol

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


class Entry(NamedTuple):
    """Where a contestant is found, and whether it balances or keeps constant weights."""

    path: str
    options: dict[str, Any]
    balanced: bool = False


HERE = "benchmarks.contestants"
ENTRIES = {
    "PyTorch, nested": Entry(f"{HERE}.with_pinnlib.Plain", {}),
    "balanced, naive": Entry(f"{HERE}.with_pinnlib.Naive", {}, balanced=True),
    "balanced, pinnlib": Entry(f"{HERE}.with_pinnlib.Balanced", {}, balanced=True),
    "DeepXDE": Entry(f"{HERE}.with_deepxde.DeepXDE", {}),
    "PINA": Entry(f"{HERE}.with_pina.Pina", {}),
    "JAX, hessian": Entry(f"{HERE}.with_jax.Jax", {"how": "hessian"}),
    "JAX, grad of grad": Entry(f"{HERE}.with_jax.Jax", {"how": "grad_grad"}),
    "JAX, jvp of jvp": Entry(f"{HERE}.with_jax.Jax", {"how": "jvp_jvp"}),
    "JAX, jet": Entry(f"{HERE}.with_jax.Jax", {"how": "jet"}),
}
EXACT = Entry(f"{HERE}.with_pinnlib.Plain", {"dtype": "float64"})
EXACT_BALANCED = Entry(f"{HERE}.with_pinnlib.Naive", {"dtype": "float64"}, balanced=True)
