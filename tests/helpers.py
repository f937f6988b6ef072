"""What several test files build: generators, small networks, points."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from pinnlib.adaptive import AdaptivePINN
from pinnlib.derivatives import Derivatives, nested
from pinnlib.networks import MLP, Stacked
from pinnlib.problems import Problem, uniform
from pinnlib.recording import Recorded
from pinnlib.step import Step, balanced_backward
from pinnlib.weighting import Balancer, Rule, Seen
from pinnlib.weighting.rule import State


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Another default precision inside, and afterwards that of before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def network(domain: object = ((0.0, 1.0), (0.0, 1.0)), seed: int = 0, *, outputs: int = 1) -> MLP:
    """A small network in float64."""
    return MLP(domain, width=6, depth=2, outputs=outputs, generator=seeded(seed)).double()


def drawn(model: Any, seed: int = 0) -> Any:
    """The model in float64, with all parameters drawn, biases too."""
    generator = seeded(seed)
    for p in model.double().parameters():
        nn.init.normal_(p, generator=generator)
    return model


def points(n: int = 8, d: int = 2, seed: int = 0) -> Tensor:
    """Points of the unit cube, ``(n, d)``, in float64."""
    return torch.rand(n, d, generator=seeded(seed), dtype=torch.float64)


def module(forward: Callable[[Tensor], Tensor], dtype: torch.dtype) -> nn.Module:
    """A plain function with a parameter, so that it has a device and a dtype."""

    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    return Function()


def theta(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter with these entries."""
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def rows(*sizes: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A gradient matrix whose rows have these mean and largest absolute values."""
    return torch.tensor(sizes, dtype=dtype)[:, None] * torch.tensor([1.0, -1.0, 1.0], dtype=dtype)


# Problems


def in_float64(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() for name, x in batch.items()}


def asked_for(calls: list[Any]) -> Derivatives:
    """Derivatives that also write down which order and which operator they were asked for."""

    def counted(
        model: Any, x: Tensor, order: int = 2, *, operator: Sequence[float] | None = None
    ) -> Any:
        calls.append((order, operator))
        return nested(model, x, order, operator=operator)

    return counted


def assert_stack_equals_networks(problem: Problem, **sizes: int) -> None:
    """Residuals and losses of three networks are the same alone, stacked, and stacked by hand.

    A residual has 8 points, or as many as are named.
    """
    models = [network(problem.domain, seed, outputs=problem.outputs) for seed in range(3)]
    batches = [in_float64(problem.sample(8, seeded(seed))) for seed in range(3)]
    stacked = {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}

    def by_hand(x: Tensor) -> Tensor:
        return torch.stack([model(x_m) for model, x_m in zip(models, x.unbind(0), strict=True)])

    for stack in (Stacked(models), by_hand):
        residuals, losses = problem.residuals(stack, stacked), problem.losses(stack, stacked)
        for s, (model, batch) in enumerate(zip(models, batches, strict=True)):
            for name, r in problem.residuals(model, batch).items():
                assert residuals[name].shape == (3, sizes.get(name, 8), 1)
                torch.testing.assert_close(residuals[name][s], r)
            for term, loss in problem.losses(model, batch).items():
                assert losses[term].shape == (3,)
                torch.testing.assert_close(losses[term][s], loss)


# Losses


class Inverse(Rule):
    """Each weight is one over its loss: a rule that never looks at gradients."""

    def __call__(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        return 1 / seen.losses, state


class Branched(nn.Module):
    """A network with parameters that one term, no term, or nobody may use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.data_only = nn.Parameter(torch.tensor([0.5, 1.5], dtype=torch.float64))
        self.pde_only = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(7, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        u: Tensor = self.body(x)
        return u


Batch = Mapping[str, Tensor]
LossesOf = Callable[[Batch], dict[str, Tensor]]


def two_losses(model: nn.Module, coefficient: Tensor | float = 1.0) -> LossesOf:
    """Losses ``data`` and ``pde`` at the points ``x``, of a network or a branched one."""

    def losses(batch: Batch) -> dict[str, Tensor]:
        x = batch["x"]
        u, (u_x, u_t), _ = nested(model, x, order=1)
        scale, shift = getattr(model, "data_only", (1.0, 0.0)), getattr(model, "pde_only", 0.0)
        data = (scale[0] * u + scale[1] - x[:, :1]).square().mean()
        pde = 10 * (u_t - coefficient * u_x + u**2 + shift).square().mean()
        return {"data": data, "pde": pde * getattr(model, "frozen", torch.ones(1)).sum()}

    return losses


TERMS = ["data", "initial", "pde"]
EXPONENTS = st.integers(-12, 12)
"""Of ten, for what should hold over many scales."""


def three_terms(model: nn.Module) -> Callable[[Batch], dict[str, list[Tensor]]]:
    """Residuals of three terms whose gradients differ in size."""

    def terms(batch: Batch) -> dict[str, list[Tensor]]:
        x = batch["x"]
        u, (u_x, u_t), _ = nested(model, x, order=1)
        return {
            "data": [u - x[..., :1], u[..., :3, :]],
            "initial": [3 * (model(x.flip(-1)) - 1)],
            "pde": [10 * (u_t - u_x + u**2)],
        }

    return terms


def three_losses(model: nn.Module) -> LossesOf:
    """The mean squares of these residuals, by hand."""

    def losses(batch: Batch) -> dict[str, Tensor]:
        terms = three_terms(model)(batch).items()
        return {term: sum((r**2).mean(dim=(-2, -1)) for r in group) for term, group in terms}  # type: ignore[misc]

    return losses


BAD_LOSSES: dict[str, tuple[Callable[[Tensor, Sequence[Tensor]], Tensor], str]] = {
    # How to spoil a good loss of some parameters, and what the error says.
    "nan": (lambda loss, params: loss * math.nan, "loss {} is nan: lower the learning rate or che"),
    "inf": (lambda loss, params: loss * math.inf, "loss {} is inf: lower the learning rate or che"),
    "vector": (
        lambda loss, params: loss * torch.ones(2, device=loss.device),
        r"loss {} has shape \(2,\): reduce it to a scalar",
    ),
    "detached": (
        lambda loss, params: loss.detach(),
        r"loss {} has no graph \(requires_grad=False\): compute it fro",
    ),
    "nan gradient": (
        lambda loss, params: loss + (params[0] * 0).abs().sqrt().sum(),
        "gradient of loss {} at step 3 has 12 of .* not finite, such as nan: lower the learning",
    ),
    "infinite gradient": (
        lambda loss, params: loss + (params[1] - params[1].detach()).pow(0.5).sum(),
        "gradient of loss {} at step 3 has 6 of .* not finite, such as inf: lower the learning",
    ),
}


# The entrances: all take one step with a batch, add to .grad, and return the weights


Take = Callable[[Batch], dict[str, float]]


def by_balanced_backward(
    losses_of: LossesOf, model: nn.Module, balancer: Balancer, beside: Iterable[Tensor] = ()
) -> Take:
    return lambda batch: dict(balanced_backward(losses_of(batch), model, balancer, beside=beside))


def by_step(
    losses_of: LossesOf, model: nn.Module, balancer: Balancer, beside: Iterable[Tensor] = ()
) -> Take:
    step = Step(losses_of, model, balancer, beside=beside)
    return lambda batch: dict(zip(balancer.terms, step(batch)[1].tolist(), strict=True))


def by_recorded_step(
    losses_of: LossesOf, model: nn.Module, balancer: Balancer, beside: Iterable[Tensor] = ()
) -> Take:
    step = Step(losses_of, model, balancer, beside=beside, run=Recorded)
    return lambda batch: dict(zip(balancer.terms, step(batch)[1].tolist(), strict=True))


def by_adaptive_pinn(
    losses_of: LossesOf, model: nn.Module, balancer: Balancer, beside: Iterable[Tensor] = ()
) -> Take:
    pinn = AdaptivePINN(model)
    pinn.balancer = balancer  # type: ignore[assignment]
    standing = torch.optim.SGD([*model.parameters(), *beside], lr=0.0)

    def take(batch: Batch) -> dict[str, float]:
        losses = losses_of(batch)
        _, weight = pinn.train_step_with_balance(standing, losses["data"], losses["pde"])
        return {"data": 1.0, "pde": weight}

    return take


ENTRANCES = {
    "balanced_backward": by_balanced_backward,
    "eager": by_step,
    "recorded": by_recorded_step,
    "AdaptivePINN": by_adaptive_pinn,
}


def gradients(model: nn.Module) -> list[Tensor | None]:
    """Copies of what stands in ``.grad``."""
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_same_parameters(first: nn.Module, second: nn.Module, **tolerance: float) -> None:
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)


# Trainings


class Curve(Problem):
    """The curve exp(-t), cheap enough for a thousand steps."""

    variables = ("t",)
    domain = ((0.0, 2.0),)
    terms = {"data": ("start",), "pde": ("curve",)}

    def sample(self, n: int | Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        assert isinstance(n, int)
        return {"all": uniform(self.domain, n, generator)}

    def residuals(self, model: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        x = batch["all"]
        zero = torch.zeros_like(x[..., :1, :])
        return {"curve": 5 * (model(x) - torch.exp(-x)), "start": model(zero) - 1}

    def reference(self, x: Tensor) -> Tensor:
        return torch.exp(-x)


def curve_network(generator: torch.Generator | None = None) -> MLP:
    return MLP(Curve.domain, width=4, depth=1, generator=generator or seeded())


# Optimizers with a closure


Run = tuple[torch.optim.Optimizer, Tensor, Callable[[], Any]]
"""An optimizer, its only parameter and its closure."""


def assert_resumes(make: Callable[[list[float]], Run]) -> torch.optim.Optimizer:
    """A run that was saved goes on bit for bit; give the one that was not interrupted."""
    optimizer, x, closure = make([-1.2, 1.0, 0.3])
    optimizer.step(closure)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    resumed, z, other = make(x.tolist())
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    for _ in range(2):
        optimizer.step(closure)
        resumed.step(other)
        assert torch.equal(x, z)
    return optimizer


def assert_keeps_the_last_step(run: Run, calls: int) -> list[Tensor]:
    """An error of the closure leaves the last accepted step; give all that the closure saw."""
    optimizer, x, closure = run
    seen = []

    def failing() -> Any:
        seen.append(x.detach().clone())
        if len(seen) == calls:
            raise KeyError("a bug")
        return closure()

    with pytest.raises(KeyError):
        optimizer.step(failing)
    assert not torch.equal(x, seen[-1])
    return seen
