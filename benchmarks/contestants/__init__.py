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
PINNLIB = f"{HERE}.with_pinnlib"
ENTRIES = {
    "plain, nested": Entry(f"{PINNLIB}.Plain", {}),
    "plain, Taylor": Entry(f"{PINNLIB}.Plain", {"how": "taylor"}),
    "plain, compiled": Entry(f"{PINNLIB}.Compiled", {"options": {"cpp_wrapper": False}}),
    "balanced, naive": Entry(f"{PINNLIB}.Naive", {}, balanced=True),
    "balanced, nested": Entry(f"{PINNLIB}.Balanced", {}, balanced=True),
    "balanced, Taylor": Entry(f"{PINNLIB}.Balanced", {"how": "taylor"}, balanced=True),
    "balanced, compiled": Entry(
        f"{PINNLIB}.CompiledBalanced", {"options": {"cpp_wrapper": False}}, balanced=True
    ),
    "balanced, compiled, C++": Entry(f"{PINNLIB}.CompiledBalanced", {}, balanced=True),
    "DeepXDE": Entry(f"{HERE}.with_deepxde.DeepXDE", {}),
    "PINA": Entry(f"{HERE}.with_pina.Pina", {}),
    "JAX, hessian": Entry(f"{HERE}.with_jax.Jax", {"how": "hessian"}),
    "JAX, grad of grad": Entry(f"{HERE}.with_jax.Jax", {"how": "grad_grad"}),
    "JAX, jvp of jvp": Entry(f"{HERE}.with_jax.Jax", {"how": "jvp_jvp"}),
    "JAX, jet": Entry(f"{HERE}.with_jax.Jax", {"how": "jet"}),
}
EXACT = Entry(f"{PINNLIB}.Plain", {"dtype": "float64"})
EXACT_BALANCED = Entry(f"{PINNLIB}.Naive", {"dtype": "float64"}, balanced=True)
