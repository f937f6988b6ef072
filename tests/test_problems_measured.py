"""Problems that were measured: the oscillator, the heat equation, and what was measured."""

import math

import pytest
import torch
from helpers import in_float64, seeded
from torch import nn

from pinnlib.coefficients import WithCoefficients
from pinnlib.derivatives import nested, taylor
from pinnlib.problems import Heat, Measurements, Oscillator

pytestmark = pytest.mark.usefixtures("nothing_hidden")

DERIVATIVES = pytest.mark.parametrize("derivatives", [nested, taylor])


class Function(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


def with_coefficient(f, **values):
    return WithCoefficients(Function(f), **values).double()


# The solutions, by themselves


def test_oscillator_swings_as_its_equation_says():
    t, h = torch.linspace(0.1, 0.9, 50, dtype=torch.float64)[:, None], 1e-5
    u = Oscillator().exact
    u_t, u_tt = (u(t + h) - u(t - h)) / (2 * h), (u(t + h) - 2 * u(t) + u(t - h)) / h**2
    assert (u_tt + 4 * u_t + 400 * u(t)).abs().max() < 1e-2
    start = torch.zeros(1, 1, dtype=torch.float64)
    assert u(start).item() == 1.0
    assert ((u(start + h) - u(start - h)) / (2 * h)).abs().item() < 1e-6


def test_heat_flows_as_its_equation_says():
    x, t = torch.rand(50, 2, generator=seeded(), dtype=torch.float64).split(1, dim=1)
    h = 1e-4

    def u(x, t):
        return Heat().exact(torch.cat([x, t], dim=1))

    u_t, u_xx = (
        (u(x, t + h) - u(x, t - h)) / (2 * h),
        (u(x + h, t) - 2 * u(x, t) + u(x - h, t)) / h**2,
    )
    assert (u_t - 0.1 * u_xx).abs().max() < 1e-5
    assert u(torch.tensor([[0.5]]), torch.zeros(1, 1)).item() == pytest.approx(1 - 0.5)


@DERIVATIVES
@pytest.mark.parametrize("unknown", [{}, {"stiffness": 300.0}])
def test_oscillator_residuals(derivatives, unknown):
    """Of u = t³: 6t + 4·3t² + k t³, with the stiffness of the model if it is unknown."""
    problem = Oscillator(derivatives=derivatives, unknown=unknown)
    batch = in_float64(problem.sample(16, seeded()))
    model = with_coefficient(lambda t: t**3, stiffness=300.0)
    residuals = problem.residuals(model, batch)
    t, seen = batch["pde"], batch["observed"]
    k = unknown.get("stiffness", 400.0)
    torch.testing.assert_close(residuals["pde"], 6 * t + 12 * t**2 + k * t**3)
    torch.testing.assert_close(residuals["observed"], seen**3 - batch["values"])


@DERIVATIVES
@pytest.mark.parametrize("unknown", [{}, {"diffusivity": 0.7}])
def test_heat_residuals(derivatives, unknown):
    """Of u = x² t: x² − 2 κ t."""
    problem = Heat(derivatives=derivatives, unknown=unknown)
    batch = in_float64(problem.sample(16, seeded()))
    model = with_coefficient(lambda p: p[..., :1] ** 2 * p[..., 1:], diffusivity=0.7)
    residuals = problem.residuals(model, batch)
    x, t = batch["pde"].split(1, dim=1)
    kappa = unknown.get("diffusivity", 0.1)
    torch.testing.assert_close(residuals["pde"], x**2 - 2 * kappa * t)
    (x, t), (left, start) = batch["observed"].split(1, dim=1), (batch["boundary"], batch["initial"])
    torch.testing.assert_close(residuals["observed"], x**2 * t - batch["values"])
    torch.testing.assert_close(residuals["boundary"], left[:, :1] ** 2 * left[:, 1:])
    torch.testing.assert_close(residuals["initial"], -problem.exact(start))


@DERIVATIVES
def test_the_solution_with_the_true_coefficient_has_no_residual(derivatives):
    for kind, name in [(Oscillator, "stiffness"), (Heat, "diffusivity")]:
        problem = kind(derivatives=derivatives, noise=0.0, unknown={name: 1.0})
        model = with_coefficient(problem.exact, **problem.coefficients)
        # What float32 keeps of the points that are sampled counts against the measured values.
        losses = problem.losses(model, in_float64(problem.sample(64, seeded())))
        assert losses["pde"].item() < 1e-20
        assert losses["data"].item() < 1e-10


def test_points_lie_where_they_should():
    batch = Heat().sample({"boundary": 4, "initial": 5, "pde": 6}, seeded())
    assert batch["boundary"][:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert batch["initial"][:, 1].tolist() == [0.0] * 5
    assert len(batch["pde"]) == 6
    observed = Oscillator().sample(3, seeded())["observed"].flatten()
    torch.testing.assert_close(observed, torch.arange(10) * 0.4 / 9)


# What was measured


def test_noise_has_its_standard_deviation_and_stays():
    for kind in (Oscillator, Heat):
        problem = kind(measurements=4000, noise=0.3, seed=1)
        noise = problem.measured.values - problem.exact(problem.measured.points)
        assert noise.std().item() == pytest.approx(0.3, rel=0.05)
        assert abs(noise.mean().item()) < 0.02
        first, second = (problem.sample(8, seeded(i)) for i in (0, 1))
        assert torch.equal(first["values"], second["values"])
        assert torch.equal(first["observed"], second["observed"])
        assert not torch.equal(first["pde"], second["pde"])
        again, other = kind(4000, 0.3, seed=1), kind(4000, 0.3, seed=2)
        assert torch.equal(again.measured.values, problem.measured.values)
        assert not torch.equal(other.measured.values, problem.measured.values)


def test_measurements_take_the_default_dtype_and_the_device():
    measured = Measurements(torch.zeros(3, 2), torch.ones(3, 1))
    found = measured.on("meta")
    assert {x.device.type for x in found.values()} == {"meta"}
    assert {x.dtype for x in found.values()} == {torch.float32}
    assert measured.values.tolist() == [[1.0]] * 3


@pytest.mark.parametrize(
    ("n", "m"), [((3,), (3, 1)), ((3, 1), (3,)), ((3, 1), (2, 1)), ((0, 1),) * 2]
)
def test_measurements_of_other_shapes_are_refused(n, m):
    with pytest.raises(ValueError, match=r"points are .*, values .*: pass \(n, d\) and \(n, m\)"):
        Measurements(torch.zeros(n), torch.zeros(m))


@pytest.mark.parametrize("noise", [-0.1, math.inf, math.nan])
def test_noise_that_is_no_deviation_is_refused(noise):
    with pytest.raises(ValueError, match=f"noise is {noise}: pass a standard deviation, 0 or more"):
        Oscillator(noise=noise)


def test_no_measurement_is_refused():
    with pytest.raises(ValueError, match=r"points are \(0, 1\), values \(0, 1\): pass"):
        Oscillator(measurements=0)
    with pytest.raises(ValueError, match=r"points are \(0, 2\), values \(0, 1\): pass"):
        Heat(measurements=0)
