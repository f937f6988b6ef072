"""Hares and lynxes: the counts, their equations, and the solution with published coefficients."""

import math

import pytest
import torch
from helpers import asked_for, in_float64, points, seeded
from scipy.integrate import solve_ivp
from torch import nn

from pinnlib.coefficients import WithCoefficients
from pinnlib.derivatives import nested, taylor
from pinnlib.networks import MLP, Stacked
from pinnlib.problems import LotkaVolterra
from pinnlib.problems.lotka_volterra import START, solve
from pinnlib.training import train

pytestmark = pytest.mark.usefixtures("nothing_hidden")

# As they are printed species by species; the package has them year by year.
HARES = (
    "30 47.2 70.2 77.4 36.3 20.6 18.1 21.4 22 25.4 27.1 40.3 57 76.6 52.3 19.5 11.2 7.6 14.6 16.2 "
    "24.7"
)
LYNXES = "4 6.1 9.8 35.2 59.4 41.7 19 13 8.3 9.1 7.4 8 12.3 19.5 45.7 51.1 29.7 15.8 9.7 10.1 8.6"
PUBLISHED = 0.545, 0.028, 0.803, 0.024


class Waves(nn.Module):
    """x = sin t and y = cos 2t, whose derivatives anybody knows."""

    def forward(self, t):
        return torch.cat([torch.sin(t), torch.cos(2 * t)], dim=-1)


def test_the_counts_are_those_of_a_second_copy():
    measured = LotkaVolterra().measured
    rows = [[*map(float, s.split())] for s in (HARES, LYNXES)]
    expected = torch.tensor(rows, dtype=torch.float64).T
    torch.testing.assert_close(measured.values.exp(), expected, rtol=1e-12, atol=0)
    assert measured.points.flatten().tolist() == [*range(21)]


@pytest.mark.parametrize("known", [True, False])
def test_residuals_are_those_of_the_equations(known):
    start = {"growth": 0.7, "predation": 0.3, "death": 0.2, "reproduction": 0.9}
    problem = LotkaVolterra(5, unknown={} if known else start)
    a, b, c, d = PUBLISHED if known else start.values()
    batch = in_float64(problem.sample(30, seeded()))
    model = Waves() if known else WithCoefficients(Waves(), **start).double()
    found, t = problem.residuals(model, batch), batch["pde"]
    years = torch.arange(5.0, dtype=torch.float64)[:, None]
    hares, lynxes = problem.measured.values.split(1, dim=1)
    expected = {
        "hares": torch.sin(years) - hares,
        "lynxes": torch.cos(2 * years) - lynxes,
        "prey": torch.cos(t) - a + b * torch.exp(torch.cos(2 * t)),
        "predators": -2 * torch.sin(2 * t) + c - d * torch.exp(torch.sin(t)),
    }
    assert list(found) == list(expected)
    for name, r in expected.items():
        torch.testing.assert_close(found[name], r, rtol=1e-6, atol=1e-6, msg=name)


def test_coefficients_start_above_the_published_ones_by_a_factor_of_two_or_so():
    starts = LotkaVolterra.unknown
    assert list(starts) == list(LotkaVolterra.coefficients)
    assert all(1 < starts[name] / c < 2.1 for name, c in LotkaVolterra.coefficients.items())


def test_one_derivative_is_asked_for():
    calls = []
    problem = LotkaVolterra(derivatives=asked_for(calls), unknown={})
    problem.residuals(Waves(), problem.sample(8, seeded()))
    assert calls == [(1, None)]


def test_taylor_and_nested_derivatives_agree():
    batch = in_float64(LotkaVolterra().sample(20, seeded()))
    network = MLP(LotkaVolterra.domain, 6, 2, outputs=2, generator=seeded()).double()
    model = WithCoefficients(network, **LotkaVolterra.unknown)
    a, b = (LotkaVolterra(derivatives=f).residuals(model, batch) for f in (nested, taylor))
    for name in a:
        torch.testing.assert_close(a[name], b[name])


def test_stack_equals_networks():
    problem = LotkaVolterra()
    models = [
        WithCoefficients(
            MLP(problem.domain, 6, 2, outputs=2, generator=seeded(seed)), **problem.unknown
        )
        for seed in range(3)
    ]
    batches = [problem.sample(8, seeded(seed)) for seed in range(3)]
    stacked = {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}
    together = problem.residuals(Stacked(models), stacked)
    for m, (model, batch) in enumerate(zip(models, batches, strict=True)):
        for name, r in problem.residuals(model, batch).items():
            torch.testing.assert_close(together[name][m], r)


def test_reference_is_the_solution_with_the_published_coefficients():
    a, b, c, d = PUBLISHED
    t = torch.linspace(0, 20, 100, dtype=torch.float64)[:, None]
    found = LotkaVolterra().reference(t)
    exact = solve_ivp(
        lambda _, z: [(a - b * z[1]) * z[0], (-c + d * z[0]) * z[1]],  # not in logarithms
        (0, 20),
        START,
        t_eval=t[:, 0].numpy(),
        rtol=1e-11,
        atol=1e-11,
    )
    torch.testing.assert_close(found.exp(), torch.as_tensor(exact.y.T), rtol=1e-7, atol=0)
    hares, lynxes = found.exp().unbind(1)
    conserved = d * hares - c * found[:, 0] + b * lynxes - a * found[:, 1]
    assert conserved.max() - conserved.min() < 1e-7


def test_solver_is_of_fourth_order():
    exact = solve(PUBLISHED, START, 10.0, 4000)[-1]
    off = [abs(solve(PUBLISHED, START, 10.0, n)[-1] - exact).max() for n in (100, 200)]
    assert 14 < off[0] / off[1] < 18


@pytest.mark.parametrize("years", [1, 21])
def test_years_are_taken_from_the_first(years):
    batch = LotkaVolterra(years).sample(7, seeded())
    assert batch["observed"].shape == (years, 1)
    assert batch["pde"].shape == (7, 1)
    assert 0 <= batch["pde"].min() <= batch["pde"].max() <= 20
    assert math.isclose(batch["values"][0, 1].exp().item(), 4.0, rel_tol=1e-6)


@pytest.mark.parametrize("years", [0, 22])
def test_other_numbers_of_years_are_refused(years):
    with pytest.raises(ValueError, match=f"measurements is {years}: there are years 1 to 21"):
        LotkaVolterra(years)


def test_a_network_is_trained_with_both_outputs_and_four_coefficients():
    problem = LotkaVolterra()
    model = WithCoefficients(
        MLP(problem.domain, 6, 1, outputs=problem.outputs, generator=seeded()), **problem.unknown
    )
    weights = {"data": 1.0, "pde": 1.0}
    history = train(problem, model, weights, generator=seeded(), steps=3, record_every=1)
    assert history.errors.shape == (3,)
    assert (history.errors > 0).all()
    assert (model.log_shares != 0).all()
    assert model(points(4, 1).float()).shape == (4, 2)
