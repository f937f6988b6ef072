import math

import numpy as np
import pytest
import torch
from helpers import asked_for, assert_stack_equals_networks, in_float64, network, seeded
from scipy.integrate import solve_ivp

from pinnlib.derivatives import nested, taylor
from pinnlib.evaluation import relative_l2_error
from pinnlib.networks import MLP
from pinnlib.problems.allen_cahn import CELLS, EVERY, STEPS, AllenCahn, solve

pytestmark = pytest.mark.usefixtures("nothing_hidden")

DERIVATIVES = pytest.mark.parametrize("derivatives", [nested, taylor])


def solution(cells, steps, diffusion=1e-4, reaction=5.0):
    x = np.linspace(-1, 1, cells + 1)[:-1]
    return solve(x**2 * np.cos(math.pi * x), diffusion, reaction, 0.5, steps)


def at(x, t):
    """Points (len(x), len(t), 2)."""
    return torch.stack(torch.meshgrid(x, t, indexing="ij"), dim=-1)


def relative(u, v):
    return np.linalg.norm(u - v) / np.linalg.norm(v)


# The equation


@DERIVATIVES
def test_residuals_of_a_polynomial(derivatives):
    problem = AllenCahn(derivatives=derivatives)
    batch = in_float64(problem.sample(16, seeded()))
    before = {name: x.clone() for name, x in batch.items()}
    residuals = problem.residuals(
        lambda p: p[..., :1] ** 3 * p[..., 1:] + p[..., :1] ** 2 + 2 * p[..., 1:] ** 2, batch
    )
    (b, i, p) = (batch[name] for name in ("boundary", "initial", "pde"))
    x, t = p.split(1, dim=1)
    u = x**3 * t + x**2 + 2 * t**2
    expected = {
        "boundary": -2 * b[:, 1:],
        "slope": torch.full((16, 1), -4.0, dtype=torch.float64),
        "initial": i[:, :1] ** 2 * (1 - torch.cos(math.pi * i[:, :1])),
        "pde": x**3 + 4 * t - 1e-4 * (6 * x * t + 2) - 5 * u + 5 * u**3,
    }
    assert list(residuals) == list(expected)
    for name in expected:
        torch.testing.assert_close(residuals[name], expected[name])
    assert all(torch.equal(batch[name], x) for name, x in before.items())


@DERIVATIVES
def test_residuals_equal_finite_differences(derivatives):
    problem, h = AllenCahn(derivatives=derivatives), 1e-4
    batch = in_float64(problem.sample(16, seeded()))
    model, x, left = network(problem.domain), batch["pde"], batch["boundary"]
    (along, later) = h * torch.eye(2, dtype=torch.float64)
    right = left * torch.tensor([-1.0, 1.0])
    u_t = (model(x + later) - model(x - later)) / (2 * h)
    u_xx = (model(x + along) - 2 * model(x) + model(x - along)) / h**2
    u_x_left, u_x_right = ((model(y + along) - model(y - along)) / (2 * h) for y in (left, right))
    expected = {
        "boundary": model(left) - model(right),
        "slope": u_x_left - u_x_right,
        "pde": u_t - 1e-4 * u_xx - 5 * model(x) + 5 * model(x) ** 3,
    }
    residuals = problem.residuals(model, batch)
    for name in expected:
        torch.testing.assert_close(residuals[name], expected[name], atol=1e-6, rtol=0)


def test_conditions_of_periodic_functions():
    problem = AllenCahn()
    batch = in_float64(problem.sample(16, seeded()))
    wave = problem.residuals(lambda p: torch.sin(math.pi * p[..., :1]) + p[..., 1:], batch)
    assert max(wave[name].abs().max() for name in ("boundary", "slope")) < 1e-14
    # The start has equal values at both ends, but a kink.
    start = problem.residuals(lambda p: p[..., :1] ** 2 * torch.cos(math.pi * p[..., :1]), batch)
    assert not start["boundary"].any()
    assert not start["initial"].any()
    torch.testing.assert_close(start["slope"], torch.full((16, 1), 4.0, dtype=torch.float64))


class Faster(AllenCahn):
    reaction = 5.5


class Wider(AllenCahn):
    diffusion = 2e-4


def residual_on_the_table(problem):
    """That of the reference, by differences from value to value, but for the layer."""
    x = torch.linspace(-1, 1, CELLS // EVERY + 1, dtype=torch.float64)
    t = torch.linspace(0, 0.5, STEPS + 1, dtype=torch.float64)
    u, h, k = AllenCahn().reference(at(x, t))[..., 0], x[1] - x[0], t[1] - t[0]
    u_t = (u[1:-1, 2:] - u[1:-1, :-2]) / (2 * k)
    u_xx = ((u[2:] - 2 * u[1:-1] + u[:-2]) / h**2)[:, 1:-1]
    u = u[1:-1, 1:-1]
    r = u_t - problem.diffusion * u_xx - problem.reaction * (u - u**3)
    return r[x[1:-1].abs() < 0.9].abs().max()


def test_reference_has_a_small_residual():
    assert residual_on_the_table(AllenCahn()) < 1e-3
    assert residual_on_the_table(Faster()) > 0.1
    assert residual_on_the_table(Wider()) > 5e-3


def test_terms_and_domain():
    assert AllenCahn.domain == ((-1.0, 1.0), (0.0, 0.5))
    assert AllenCahn.variables == ("x", "t")
    assert AllenCahn().terms == {"data": ("boundary", "slope", "initial"), "pde": ("pde",)}
    losses = AllenCahn().losses(lambda x: 0 * x[..., :1] + 2, AllenCahn().sample(8, seeded()))
    assert losses["pde"] == 30**2


def test_derivatives_are_exchangeable():
    calls = []
    problem = AllenCahn(derivatives=asked_for(calls))
    problem.losses(network(problem.domain), problem.sample(8, seeded()))
    assert calls == [(1, (1.0, 0.0)), (1, (1.0, 0.0)), (2, (1.0, 0.0))]


@DERIVATIVES
def test_a_stack_equals_its_networks(derivatives):
    assert_stack_equals_networks(AllenCahn(derivatives=derivatives))


def test_losses_on_another_device():
    problem = AllenCahn()
    batch = {name: x.to("meta") for name, x in problem.sample(8, seeded()).items()}
    losses = problem.losses(MLP(problem.domain, generator=seeded()).to("meta"), batch)
    assert {loss.device.type for loss in losses.values()} == {"meta"}


# Points


@pytest.mark.parametrize("n", [1, 7, 128])
def test_sample_lies_where_it_should(n):
    batch = AllenCahn().sample(n, seeded())
    assert list(batch) == ["boundary", "initial", "pde"]
    assert all(x.shape == (n, 2) for x in batch.values())
    assert batch["boundary"][:, 0].eq(-1).all()  # its partners are made in the residuals
    assert batch["initial"][:, 1].eq(0).all()
    x, t = batch["pde"].T
    assert ((x > -1) & (x < 1) & (t > 0) & (t < 0.5)).all()


def test_sample_takes_a_size_for_each_set():
    n = {"boundary": 4, "initial": 5, "pde": 6}
    assert {name: len(x) for name, x in AllenCahn().sample(n, seeded()).items()} == n


# The solver


def test_solution_without_diffusion_is_that_of_the_reaction():
    u = solve(np.array([0.1, -0.5, 1.0, 0.0]), 0.0, 5.0, 0.5, 7)
    for start, found in zip([0.1, -0.5, 1.0, 0.0], u[:, -1], strict=True):
        ode = solve_ivp(lambda t, u: 5 * u - 5 * u**3, (0, 0.5), [start], rtol=1e-10, atol=1e-12)
        assert found == pytest.approx(ode.y[0, -1], abs=1e-8)


def test_solution_without_reaction_is_that_of_the_heat_equation():
    x = np.linspace(-1, 1, 17)[:-1]
    u = solve(np.sin(2 * math.pi * x), 0.1, 0.0, 0.5, 3)
    factors = np.exp(-0.1 * (2 * math.pi) ** 2 * np.linspace(0, 0.5, 4))
    np.testing.assert_allclose(u, np.outer(np.sin(2 * math.pi * x), factors), atol=1e-14)


def test_solution_equals_finite_differences():
    cells = 20 * 99
    h, x = 2 / cells, np.linspace(-1, 1, cells + 1)[:-1]

    def slope(t, u):
        return 1e-4 * (np.roll(u, 1) - 2 * u + np.roll(u, -1)) / h**2 + 5 * u - 5 * u**3

    times = np.linspace(0, 0.5, 12)
    start = x**2 * np.cos(math.pi * x)
    found = solve_ivp(slope, (0, 0.5), start, t_eval=times, rtol=1e-7, atol=1e-9)
    x, t = torch.tensor(x[::20]), torch.tensor(times)
    u = AllenCahn().reference(at(x, t))[..., 0].numpy()
    assert relative(u, found.y[::20]) < 2e-5
    assert relative(solution(99, STEPS, diffusion=2e-4)[:, ::18], found.y[::20]) > 1e-3


def test_half_the_step_and_twice_the_points_change_little():
    kept = slice(None, None, CELLS // 99)
    u = solution(CELLS, STEPS)[kept, ::2]
    assert relative(u, solution(CELLS, 2 * STEPS)[kept, ::4]) < 1e-8
    assert relative(u, solution(2 * CELLS, STEPS)[:: 2 * CELLS // 99, ::2]) < 1e-6


# The reference


def test_reference_is_the_solution_on_the_grid_of_the_error():
    u = AllenCahn().reference(AllenCahn().grid(100, dtype=torch.float64)).reshape(100, 100)
    expected = solution(CELLS, STEPS)[:: CELLS // 99, :: STEPS // 99]
    np.testing.assert_allclose(u[:-1], expected, atol=1e-11)
    torch.testing.assert_close(u[0], u[-1])


def test_reference_between_the_values():
    """Cells of a table with twice the values an input, and their middles."""
    fine = solution(2 * CELLS, 2 * STEPS)
    x = torch.linspace(-1, 1, 2 * CELLS + 1, dtype=torch.float64)[:-1:EVERY]
    u = AllenCahn().reference(at(x, torch.linspace(0, 0.5, 2 * STEPS + 1, dtype=torch.float64)))
    assert relative(u[..., 0].numpy(), fine[::EVERY]) < 3e-5
    assert np.abs(u[..., 0].numpy() - fine[::EVERY]).max() < 7e-4


def test_reference_is_even_and_starts_where_it_should():
    x, t = torch.rand(2, 200, 1, generator=seeded(), dtype=torch.float64)
    points = torch.cat([2 * x - 1, t / 2], dim=1)
    reference = AllenCahn().reference
    mirrored = points * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(reference(points), reference(mirrored), rtol=0, atol=1e-10)
    x = torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None]
    start = reference(torch.cat([x, 0 * x], dim=1))
    torch.testing.assert_close(start, x**2 * torch.cos(math.pi * x), rtol=0, atol=1e-10)


def test_reference_follows_the_numbers_of_the_problem():
    class Longer(AllenCahn):
        domain = ((-1.0, 1.0), (0.0, 1.0))

    x = at(torch.tensor([-1.0, 0.5, 0.0, 0.3]), torch.tensor([0.1, 0.5])).reshape(-1, 2).double()
    plain, faster, longer = (p().reference(x) for p in (AllenCahn, Faster, Longer))
    assert (plain - faster).abs().max() > 1e-2
    torch.testing.assert_close(plain, longer, rtol=0, atol=1e-4)
    late = torch.tensor([[-1.0, 1.0]])
    assert AllenCahn().reference(late).isnan().all()
    assert -1 < Longer().reference(late) < -0.99


def test_reference_is_computed_once(monkeypatch):
    problem = AllenCahn()
    problem.reference(torch.zeros(1, 2))
    monkeypatch.setattr("pinnlib.problems.allen_cahn.solve", None)
    AllenCahn().reference(torch.zeros(1, 2))


def test_reference_of_a_stack_a_dtype_a_device_and_a_mode():
    class Fresh(AllenCahn):
        diffusion = 3e-4

    x = torch.rand(3, 8, 2, generator=seeded()) / 2
    with torch.inference_mode():  # a table that is made here serves training too
        u = Fresh().reference(x)
    assert u.shape == (3, 8, 1)
    assert u.dtype == torch.float32
    torch.testing.assert_close(u[1], Fresh().reference(x[1]))
    assert Fresh().reference(x.double()).dtype == torch.float64
    assert Fresh().reference(x.to("meta")).device.type == "meta"
    x = x[0].double().requires_grad_()
    Fresh().reference(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_reference_serves_the_error_on_the_grid():
    problem = AllenCahn()
    assert relative_l2_error(problem.reference, problem) == 0
    assert relative_l2_error(lambda x: 1.5 * problem.reference(x), problem) == pytest.approx(0.5)
    assert AllenCahn(reference=torch.sin).reference is torch.sin
