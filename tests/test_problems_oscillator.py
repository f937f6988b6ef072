"""The damped oscillator."""

import pytest
import torch
from helpers import in_float64, module, seeded

from pinnlib.coefficients import WithCoefficients
from pinnlib.derivatives import nested, taylor
from pinnlib.problems import Oscillator

pytestmark = pytest.mark.usefixtures("nothing_hidden")


@pytest.mark.parametrize("damping", [2.0, 5.0])
def test_it_swings_as_its_equation_says(damping, monkeypatch):
    monkeypatch.setattr(Oscillator, "damping", damping)
    t, h = torch.linspace(0.1, 0.9, 50, dtype=torch.float64)[:, None], 1e-5
    u = Oscillator().exact
    u_t, u_tt = (u(t + h) - u(t - h)) / (2 * h), (u(t + h) - 2 * u(t) + u(t - h)) / h**2
    assert (u_tt + 2 * damping * u_t + 400 * u(t)).abs().max() < 1e-2
    start = torch.zeros(1, 1, dtype=torch.float64)
    assert u(start).item() == 1.0
    assert ((u(start + h) - u(start - h)) / (2 * h)).abs().item() < 1e-6


@pytest.mark.parametrize("derivatives", [nested, taylor])
@pytest.mark.parametrize("unknown", [{}, {"stiffness": 300.0}])
def test_residuals(derivatives, unknown):
    """Of u = t³: 6t + 4·3t² + k t³, with the stiffness of the model if it is unknown."""
    problem = Oscillator(derivatives=derivatives, unknown=unknown)
    batch = in_float64(problem.sample(16, seeded()))
    model = WithCoefficients(module(lambda t: t**3, torch.float64), stiffness=300.0).double()
    residuals = problem.residuals(model, batch)
    t, seen = batch["pde"], batch["observed"]
    k = unknown.get("stiffness", 400.0)
    torch.testing.assert_close(residuals["pde"], 6 * t + 12 * t**2 + k * t**3)
    torch.testing.assert_close(residuals["observed"], seen**3 - batch["values"])


def test_what_is_observed_is_exact_unless_noise_is_asked_for():
    t = torch.linspace(0, 0.4, 10, dtype=torch.float64)[:, None]
    plain, noisy = Oscillator().measured, Oscillator(noise=0.1).measured
    assert torch.equal(plain.points, t)
    assert torch.equal(plain.values, Oscillator().reference(t))
    z = torch.randn(10, 1, generator=seeded(), dtype=torch.float64)
    assert torch.equal(noisy.values, plain.values + 0.1 * z)


def test_points_lie_where_they_should():
    assert Oscillator.domain == ((0.0, 1.0),)
    observed = Oscillator().sample(3, seeded())["observed"].flatten()
    torch.testing.assert_close(observed, torch.arange(10) * 0.4 / 9)
