"""What was measured, of the oscillator and of the heat equation."""

import math

import pytest
import torch
from helpers import in_float64, module, seeded

from pinnlib.coefficients import WithCoefficients
from pinnlib.derivatives import nested, taylor
from pinnlib.problems import Heat, Measurements, Oscillator

pytestmark = pytest.mark.usefixtures("nothing_hidden")


@pytest.mark.parametrize("derivatives", [nested, taylor])
def test_the_solution_with_the_true_coefficient_has_no_residual(derivatives):
    for kind, name in [(Oscillator, "stiffness"), (Heat, "diffusivity")]:
        problem = kind(derivatives=derivatives, noise=0.0, unknown={name: 1.0})
        model = WithCoefficients(
            module(problem.exact, torch.float64), **problem.coefficients
        ).double()
        # What float32 keeps of the points that are sampled counts against the measured values.
        losses = problem.losses(model, in_float64(problem.sample(64, seeded())))
        assert losses["pde"].item() < 1e-20
        assert losses["data"].item() < 1e-10


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


def test_measurements_are_kept_in_double_precision_and_without_a_graph():
    points, values = (torch.ones(3, n, requires_grad=True) for n in (2, 1))
    measured = Measurements(points, values, noise=0.5)
    assert measured.points.dtype == torch.float64
    z = torch.randn(3, 1, generator=seeded(), dtype=torch.float64)
    assert torch.equal(measured.values, 1 + 0.5 * z)
    assert not measured.points.requires_grad
    assert not measured.values.requires_grad


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
