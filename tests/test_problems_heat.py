"""The heat equation."""

import pytest
import torch
from helpers import in_float64, module, seeded

from pinnlib.coefficients import WithCoefficients
from pinnlib.derivatives import nested, taylor
from pinnlib.problems import Heat

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def test_it_flows_as_its_equation_says():
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


@pytest.mark.parametrize("derivatives", [nested, taylor])
@pytest.mark.parametrize("unknown", [{}, {"diffusivity": 0.7}])
def test_residuals(derivatives, unknown):
    """Of u = x² t: x² − 2 κ t."""
    problem = Heat(derivatives=derivatives, unknown=unknown)
    batch = in_float64(problem.sample(16, seeded()))
    u = module(lambda p: p[..., :1] ** 2 * p[..., 1:], torch.float64)
    model = WithCoefficients(u, diffusivity=0.7).double()
    residuals = problem.residuals(model, batch)
    x, t = batch["pde"].split(1, dim=1)
    kappa = unknown.get("diffusivity", 0.1)
    torch.testing.assert_close(residuals["pde"], x**2 - 2 * kappa * t)
    (x, t), (left, start) = batch["observed"].split(1, dim=1), (batch["boundary"], batch["initial"])
    torch.testing.assert_close(residuals["observed"], x**2 * t - batch["values"])
    torch.testing.assert_close(residuals["boundary"], left[:, :1] ** 2 * left[:, 1:])
    torch.testing.assert_close(residuals["initial"], -problem.exact(start))


def test_what_is_measured_depends_on_the_seed_only():
    x = torch.rand(100, 2, generator=seeded(), dtype=torch.float64)
    noise = 0.01 * torch.randn(100, 1, generator=seeded(), dtype=torch.float64)
    measured = Heat().measured
    assert torch.equal(measured.points, x)
    assert torch.equal(measured.values, Heat().reference(x) + noise)


def test_points_lie_where_they_should():
    assert Heat.domain == ((0.0, 1.0), (0.0, 1.0))
    batch = Heat().sample({"boundary": 4, "initial": 5, "pde": 6}, seeded())
    assert batch["boundary"][:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert batch["initial"][:, 1].tolist() == [0.0] * 5
    assert len(batch["pde"]) == 6
