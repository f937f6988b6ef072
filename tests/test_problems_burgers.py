import math

import numpy as np
import pytest
import torch
from helpers import asked_for, assert_stack_equals_networks, in_float64, network, seeded

from pinnlib.derivatives import nested, taylor
from pinnlib.evaluation import relative_l2_error
from pinnlib.problems.burgers import NODES, Burgers, cole_hopf

pytestmark = pytest.mark.usefixtures("nothing_hidden")

NU = 0.01 / math.pi
DERIVATIVES = pytest.mark.parametrize("derivatives", [nested, taylor])


def grid(n, *, n_t=None):
    axes = (torch.linspace(*ends, m).double() for ends, m in (((-1, 1), n), ((0, 1), n_t or n)))
    return torch.cartesian_prod(*axes)


def spectral(nu, cells, steps, times=5):
    """Fourier coefficients carried on in time by Runge–Kutta: points, and values at each time."""
    x, k = -1 + 2 * np.arange(cells) / cells, math.pi * np.arange(cells // 2 + 1)
    h, kept = 1 / steps, k < 2 / 3 * k[-1]  # the rest would be wrong in the square
    half = np.exp(-nu * k**2 * h / 2)

    def slope(v):
        return -0.5j * k * kept * np.fft.rfft(np.fft.irfft(v, cells) ** 2)

    v = np.fft.rfft(-np.sin(math.pi * x))
    found = [v]
    for _ in range(steps):
        a = slope(v)
        b = slope(half * (v + h / 2 * a))
        c = slope(half * v + h / 2 * b)
        d = slope(half**2 * v + h * half * c)
        v = half**2 * v + h / 6 * (half**2 * a + 2 * half * (b + c) + d)
        found.append(v)
    u = np.fft.irfft(np.array(found[:: steps // times]), cells)
    return torch.tensor(x), torch.tensor(u)


# The equation


@DERIVATIVES
def test_residuals_of_a_polynomial(derivatives):
    problem = Burgers(derivatives=derivatives)
    batch = in_float64(problem.sample(16, seeded()))
    residuals = problem.residuals(
        lambda p: p[..., :1] ** 2 * p[..., 1:] + 2 * p[..., 1:] ** 2 + 3 * p[..., :1], batch
    )
    (b, i, p) = (batch[name] for name in ("boundary", "initial", "pde"))
    x, t = p.split(1, dim=1)
    u = x**2 * t + 2 * t**2 + 3 * x
    expected = {
        "boundary": b[:, 1:] + 2 * b[:, 1:] ** 2 + 3 * b[:, :1],
        "initial": 3 * i[:, :1] + torch.sin(math.pi * i[:, :1]),
        "pde": x**2 + 4 * t + u * (2 * x * t + 3) - NU * 2 * t,
    }
    assert list(residuals) == list(expected)
    for name in expected:
        torch.testing.assert_close(residuals[name], expected[name])


@DERIVATIVES
def test_pde_residual_equals_finite_differences(derivatives):
    problem, h = Burgers(derivatives=derivatives), 1e-4
    batch = in_float64(problem.sample(16, seeded()))
    model, x = network(problem.domain), batch["pde"]
    (right, later) = h * torch.eye(2, dtype=torch.float64)
    u_t = (model(x + later) - model(x - later)) / (2 * h)
    u_x = (model(x + right) - model(x - right)) / (2 * h)
    u_xx = (model(x + right) - 2 * model(x) + model(x - right)) / h**2
    expected = u_t + model(x) * u_x - NU * u_xx
    torch.testing.assert_close(problem.residuals(model, batch)["pde"], expected, atol=1e-6, rtol=0)


def test_reference_has_no_residual():
    problem = Burgers()
    batch = in_float64(problem.sample(500, seeded()))
    for name, residual in problem.residuals(problem.reference, batch).items():
        assert residual.shape == (500, 1), name
        assert residual.abs().max() < 1e-9, name


def reversed_time(x):
    return Burgers().reference(torch.cat([x[..., :1], 1 - x[..., 1:]], dim=-1))


@pytest.mark.parametrize(
    "other",
    [
        lambda x: -Burgers().reference(x),
        lambda x: cole_hopf(x, 1.1 * NU),
        reversed_time,
    ],
)
def test_another_function_has_a_residual(other):
    problem = Burgers()
    batch = in_float64(problem.sample(500, seeded()))
    assert problem.losses(other, batch)["pde"] > 1e-3


def test_terms_and_domain():
    assert Burgers.domain == ((-1.0, 1.0), (0.0, 1.0))
    assert Burgers.variables == ("x", "t")
    problem = Burgers()
    assert problem.terms == {"data": ("boundary", "initial"), "pde": ("pde",)}
    assert problem.nu == NU


def test_derivatives_are_exchangeable():
    calls = []
    problem = Burgers(derivatives=asked_for(calls))
    problem.losses(network(problem.domain), problem.sample(8, seeded()))
    assert calls == [(2, (1.0, 0.0))]  # no second derivative in t


@DERIVATIVES
def test_a_stack_equals_its_networks(derivatives):
    assert_stack_equals_networks(Burgers(derivatives=derivatives))


# Points


@pytest.mark.parametrize("n", [2, 7, 128])
def test_sample_lies_where_it_should(n):
    batch = Burgers().sample(n, seeded())
    assert list(batch) == ["boundary", "initial", "pde"]
    assert all(x.shape == (n, 2) for x in batch.values())
    sides = batch["boundary"][:, 0]
    assert sides.abs().eq(1).all()
    assert sides.sum() == -(n % 2)  # shared out evenly, the left face first
    assert batch["initial"][:, 1].eq(0).all()
    x, t = batch["pde"].T
    assert ((x > -1) & (x < 1) & (t > 0) & (t < 1)).all()
    assert n < 7 or x.min() < 0 < x.max()


def test_sample_takes_a_size_for_each_set():
    n = {"boundary": 4, "initial": 5, "pde": 6}
    assert {name: len(x) for name, x in Burgers().sample(n, seeded()).items()} == n
    with pytest.raises(ValueError, match="n is 1: use 2 points or more, one for each face"):
        Burgers().sample(1, seeded())


# The reference


@pytest.mark.parametrize(
    ("nu", "cells", "steps", "tolerance"), [(NU, 2048, 2000, 1e-6), (0.1, 128, 1000, 1e-10)]
)
def test_reference_equals_a_spectral_solution(nu, cells, steps, tolerance):
    class Other(Burgers):
        pass

    Other.nu = nu
    x, u = spectral(nu, cells, steps)
    points = torch.cartesian_prod(torch.linspace(0, 1, len(u), dtype=torch.float64), x).flip(-1)
    found = Other().reference(points).reshape(u.shape)
    torch.testing.assert_close(found, u, rtol=0, atol=tolerance)


def test_steepest_slope_is_the_published_one():
    """Table 1 of Basdevant et al.: 152.00516 at t = 1.6037 / π."""
    t = torch.linspace(1.55, 1.65, 1001, dtype=torch.float64)[:, None] / math.pi
    _, (u_x, _), _ = nested(Burgers().reference, torch.cat([0 * t, t], dim=1), order=1)
    steepest = u_x.abs().argmax()
    assert u_x[steepest].item() == pytest.approx(-152.00516, abs=2e-5)
    assert math.pi * t[steepest].item() == pytest.approx(1.6037, abs=2e-4)


def test_twice_the_nodes_change_nothing():
    x = grid(201, n_t=101)
    once, twice = (cole_hopf(x, NU, n) for n in (NODES, 2 * NODES))
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-12)
    assert (cole_hopf(x, NU, NODES // 2) - twice).abs().max() > 1e-10  # not twice too many


def test_reference_at_the_start_and_on_the_boundary():
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    start = Burgers().reference(torch.cat([x, 0 * x], dim=1))
    torch.testing.assert_close(start, -torch.sin(math.pi * x))
    t = x.abs()
    for side in (-1.0, 0.0, 1.0):  # odd about the middle, so zero there too
        assert Burgers().reference(torch.cat([0 * t + side, t], dim=1)).abs().max() < 1e-13


def test_reference_in_float32_is_that_of_float64():
    x = grid(100)
    u, single = Burgers().reference(x), Burgers().reference(x.float())
    assert single.dtype == torch.float32
    # The slope of 152 turns a rounded x into 1e-5.
    torch.testing.assert_close(single.double(), u, rtol=0, atol=2e-5)
    assert torch.equal(single, Burgers().reference(x.float().double()).float())
    # Without float64, no exponential overflows.
    torch.testing.assert_close(cole_hopf(x.float(), NU).double(), u, rtol=0, atol=1e-4)


def test_reference_of_a_stack_and_on_another_device():
    x = grid(6).reshape(3, 12, 2)
    u = Burgers().reference(x)
    assert u.shape == (3, 12, 1)
    torch.testing.assert_close(u[1], Burgers().reference(x[1]))
    assert Burgers().reference(x.to("meta")).device.type == "meta"


def test_reference_serves_the_error_on_the_grid():
    problem = Burgers()
    assert relative_l2_error(problem.reference, problem) == 0
    assert relative_l2_error(lambda x: 1.5 * problem.reference(x), problem) == pytest.approx(0.5)
    assert Burgers(reference=torch.sin).reference is torch.sin
