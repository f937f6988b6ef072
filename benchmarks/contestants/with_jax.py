"""A step written by hand in JAX and compiled as a whole, optimizer included.

Second derivatives in the ways that are in use: ``hessian``, ``jax.hessian`` of the network at one
point under ``vmap``, as JAX's own manual teaches; ``grad_grad``, ``grad`` of ``grad`` for each
input, as in many PINN codes; ``jvp_jvp``, forward over forward mode, on the whole batch; ``jet``,
JAX's experimental Taylor mode.
"""

from functools import partial
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import jet

from benchmarks.task import Array, Task


class Jax:
    def __init__(self, task: Task, how: str = "hessian") -> None:
        low, high = np.array(task.domain, dtype=np.float32).T
        residuals = {"Helmholtz": helmholtz, "KleinGordon": klein_gordon}[task.problem]
        points = {name: jnp.asarray(x) for name, x in task.points.items()}
        self.params = [(jnp.asarray(w), jnp.asarray(b)) for w, b in task.layers]
        optimizer = optax.adam(task.learning_rate)
        self.state = optimizer.init(self.params)

        def network(params, x):
            """Points ``(..., 2)`` to values ``(...)``."""
            h = 2 * (x - low) / (high - low) - 1
            for weight, bias in params[:-1]:
                h = jnp.tanh(h @ weight.T + bias)
            weight, bias = params[-1]
            return (h @ weight.T + bias)[..., 0]

        def loss(params, points):
            terms = residuals(partial(network, params), DERIVATIVES[how], points)
            return sum(
                task.weights["pde" if name == "pde" else "data"] * jnp.mean(r**2)
                for name, r in terms.items()
            )

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, points):
            value, gradient = jax.value_and_grad(loss)(params, points)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        self.step, self.points, self.network = step, points, network
        self.value_and_grad = jax.jit(jax.value_and_grad(loss))

    def steps(self, n: int) -> float:
        start = perf_counter()
        for _ in range(n):
            self.params, self.state, _ = self.step(self.params, self.state, self.points)
        jax.block_until_ready(self.params)
        return perf_counter() - start

    def loss_and_gradient(self) -> tuple[float, Array]:
        value, gradient = self.value_and_grad(self.params, self.points)
        return float(value), flat(gradient)

    def parameters(self) -> Array:
        return flat(self.params)

    def predict(self, x: Array) -> Array:
        return np.asarray(self.network(self.params, x))[:, None]


def flat(layers) -> Array:
    return np.concatenate([np.asarray(a).ravel() for layer in layers for a in layer])


def by_hessian(u, x):
    H = jax.vmap(jax.hessian(u))(x)
    return u(x), (H[:, 0, 0], H[:, 1, 1])


def by_grad_grad(u, x):
    def at(a, b):
        return u(jnp.stack([a, b]))

    def second(i):
        return jax.vmap(jax.grad(jax.grad(at, argnums=i), argnums=i))(x[:, 0], x[:, 1])

    return u(x), (second(0), second(1))


def by_jvp_jvp(u, x):
    def second(direction):
        along = jnp.broadcast_to(jnp.asarray(direction, x.dtype), x.shape)

        def first(x):
            return jax.jvp(u, (x,), (along,))[1]

        return jax.jvp(first, (x,), (along,))[1]

    return u(x), (second([1, 0]), second([0, 1]))


def by_jet(u, x):
    def second(direction):
        along = jnp.broadcast_to(jnp.asarray(direction, x.dtype), x.shape)
        value, (_, second) = jet.jet(u, (x,), [[along, jnp.zeros_like(x)]])
        return value, second

    (value, first), (_, last) = second([1, 0]), second([0, 1])
    return value, (first, last)


DERIVATIVES = {
    "hessian": by_hessian,
    "grad_grad": by_grad_grad,
    "jvp_jvp": by_jvp_jvp,
    "jet": by_jet,
}


def helmholtz(u, derivatives, points):
    x, y = points["pde"].T
    value, (u_xx, u_yy) = derivatives(u, points["pde"])
    source = (1 - 17 * jnp.pi**2) * jnp.sin(jnp.pi * x) * jnp.sin(4 * jnp.pi * y)
    return {"boundary": u(points["boundary"]), "pde": u_xx + u_yy + value - source}


def klein_gordon(u, derivatives, points):
    def exact(x, t):
        return x * jnp.cos(5 * jnp.pi * t) + (x * t) ** 3

    value, (u_xx, u_tt) = derivatives(u, points["pde"])
    x, t = points["pde"].T
    source = -25 * jnp.pi**2 * x * jnp.cos(5 * jnp.pi * t) + 6 * x**3 * t - 6 * x * t**3
    initial, u_t = jax.jvp(
        u, (points["initial"],), (jnp.zeros_like(points["initial"]).at[:, 1].set(1),)
    )
    return {
        "boundary": u(points["boundary"]) - exact(*points["boundary"].T),
        "initial": initial - points["initial"][:, 0],
        "velocity": u_t,
        "pde": u_tt - u_xx + value**3 - (source + exact(x, t) ** 3),
    }
