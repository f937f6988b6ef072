"""The Poisson equation with two scales: its solution, its points, its residuals."""

import math

import pytest
import torch
from helpers import asked_for, assert_stack_equals_networks, points, seeded

from pinnlib.derivatives import nested, taylor
from pinnlib.problems import faces, uniform
from pinnlib.problems.poisson import Poisson

pytestmark = pytest.mark.usefixtures("nothing_hidden")

PI = math.pi
DIMENSIONS = pytest.mark.parametrize("d", [1, 2, 3])
DERIVATIVES = pytest.mark.parametrize("derivatives", [nested, taylor])


def drawn(problem, n=64, seed=0):
    return {name: x.double() for name, x in problem.sample(n, seeded(seed)).items()}


def stretched(x):
    """A function that solves nothing: 1 + x_1² + 2 x_2² + 3 x_3², whose Laplacian is 2 + 4 + 6."""
    columns = x.split(1, dim=-1)
    u = columns[0] ** 2 + 1
    for i, column in enumerate(columns[1:], start=2):
        u = u + i * column**2
    return u


@DIMENSIONS
@DERIVATIVES
def test_exact_solution_has_no_residual(d, derivatives):
    problem = Poisson(derivatives=derivatives, dimension=d)
    batch = drawn(problem)
    residuals = problem.residuals(problem.exact, batch)
    assert list(residuals) == ["boundary", "pde"]
    for name, r in residuals.items():
        assert r.shape == (64, 1), name
        assert r.dtype == torch.float64, name
        assert r.abs().max() < 1e-10, name
    assert list(problem.losses(problem.exact, batch)) == ["data", "pde"]


@DERIVATIVES
@pytest.mark.parametrize(("d", "laplacian"), [(1, 2.0), (2, 6.0), (3, 12.0)])
def test_residuals_of_another_function(d, derivatives, laplacian):
    problem = Poisson(derivatives=derivatives, dimension=d)
    batch = drawn(problem)
    residuals = problem.residuals(stretched, batch)
    torch.testing.assert_close(residuals["boundary"], stretched(batch["boundary"]))
    torch.testing.assert_close(residuals["pde"], -laplacian - problem.source(batch["pde"]))


@DERIVATIVES
def test_residual_of_a_wrong_amplitude(derivatives):
    """Twice the solution has the source once as its residual: a sign or a factor would show."""
    problem = Poisson(derivatives=derivatives)
    batch = drawn(problem)
    residual = problem.residuals(lambda x: 2 * problem.exact(x), batch)["pde"]
    torch.testing.assert_close(residual, problem.source(batch["pde"]))


def test_solution_in_numbers():
    x = torch.tensor([[0.5], [0.25], [0.05]], dtype=torch.float64)
    u = [1.0, math.sqrt(0.5) + 0.1, math.sin(PI / 20) + 0.1]
    f = [PI**2, PI**2 * (math.sqrt(0.5) + 10), PI**2 * (math.sin(PI / 20) + 10)]
    line = Poisson(dimension=1)
    torch.testing.assert_close(line.exact(x)[:, 0], torch.tensor(u, dtype=torch.float64))
    torch.testing.assert_close(line.source(x)[:, 0], torch.tensor(f, dtype=torch.float64))
    x = torch.tensor([[0.5, 0.25], [0.25, 0.75]], dtype=torch.float64)
    u = [math.sqrt(0.5), 0.5 - 0.1]
    f = [2 * PI**2 * math.sqrt(0.5), 2 * PI**2 * (0.5 - 10)]
    square = Poisson()
    torch.testing.assert_close(square.exact(x)[:, 0], torch.tensor(u, dtype=torch.float64))
    torch.testing.assert_close(square.source(x)[:, 0], torch.tensor(f, dtype=torch.float64))


@DIMENSIONS
def test_source_equals_finite_differences(d):
    problem, x, h = Poisson(dimension=d), points(50, d), 1e-4

    def u(x):  # on its own, and with no branch: all factors at once
        return torch.sin(PI * x).prod(-1) + 0.1 * torch.sin(10 * PI * x).prod(-1)

    steps = h * torch.eye(d, dtype=torch.float64)
    laplacian = sum((u(x + step) - 2 * u(x) + u(x - step)) / h**2 for step in steps)
    torch.testing.assert_close(problem.exact(x)[:, 0], u(x))
    torch.testing.assert_close(problem.source(x)[:, 0], -laplacian, rtol=1e-5, atol=1e-3)
    assert torch.equal(problem.reference(x), problem.exact(x))


class Other(Poisson):
    modes = ((2.0, 3), (-0.5, 2), (1.5, 1))


@DIMENSIONS
@DERIVATIVES
def test_other_modes(d, derivatives):
    problem, x = Other(derivatives=derivatives, dimension=d), points(20, d)
    modes = [(2.0, 3), (-0.5, 2), (1.5, 1)]
    expected = sum(a * torch.sin(k * PI * x).prod(-1) for a, k in modes)
    torch.testing.assert_close(problem.exact(x)[:, 0], expected)
    for wave, (a, k) in zip(problem.waves(x), modes, strict=True):
        torch.testing.assert_close(wave[:, 0], a * torch.sin(k * PI * x).prod(-1))
    residuals = problem.residuals(problem.exact, {"boundary": x, "pde": x})
    assert residuals["pde"].abs().max() < 1e-10


# Points


@DIMENSIONS
@pytest.mark.parametrize("n", [6, 25])
def test_points_lie_where_they_should(d, n):
    problem = Poisson(dimension=d)
    batch = problem.sample(n, seeded())
    assert list(batch) == ["boundary", "pde"]
    for x in batch.values():
        assert x.shape == (n, d)
        assert ((x >= 0) & (x <= 1)).all()
    assert ((batch["pde"] > 0) & (batch["pde"] < 1)).all()
    counts = [(batch["boundary"] == value).sum(dim=0) for value in (0, 1)]
    assert torch.stack(counts).sum() == n
    assert torch.stack(counts).max() - torch.stack(counts).min() <= 1


def test_points_are_drawn_in_this_order():
    """Recorded results hang on it: the boundary first, its faces in turn, then the interior."""
    problem, generator = Poisson(), seeded(3)
    batch = problem.sample({"pde": 9, "boundary": 7}, seeded(3))
    square = ((0.0, 1.0), (0.0, 1.0))
    turn = [(0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0)]
    assert torch.equal(batch["boundary"], faces(square, 7, generator, turn))
    assert torch.equal(batch["pde"], uniform(square, 9, generator))


@DIMENSIONS
def test_dimension_sets_variables_and_domain(d):
    problem = Poisson(dimension=d)
    assert problem.variables == ("x", "y", "z")[:d]
    assert problem.domain == ((0.0, 1.0),) * d
    assert problem.grid(3).shape == (3**d, d)
    assert len(problem.sample(2 * d, seeded())["boundary"]) == 2 * d
    with pytest.raises(ValueError, match=f"n is {2 * d - 1}: use {2 * d} points or more"):
        problem.sample(2 * d - 1, seeded())


def test_dimension_is_two_unless_named():
    assert Poisson().domain == ((0.0, 1.0), (0.0, 1.0))


@pytest.mark.parametrize("d", [0, 4, -1, 2.0, "2", None])
def test_dimension_refuses(d):
    with pytest.raises(ValueError, match=f"dimension is {d!r}: use 1, 2 or 3"):
        Poisson(dimension=d)


def test_sample_refuses_other_sets():
    with pytest.raises(ValueError, match=r"\['pde'\]: pass exactly \['boundary', 'pde'\]"):
        Poisson().sample({"pde": 8}, seeded())


# What it hands to its base class


def test_options_of_every_problem():
    def zero(x):
        return 0 * x[:, :1]

    terms = {"equation": ["pde"], "edge": ["boundary"]}
    problem = Poisson(terms, taylor, zero, dimension=1)
    assert (problem.terms, problem.derivatives, problem.reference) == (terms, taylor, zero)
    batch = drawn(problem)
    assert list(problem.losses(problem.exact, batch)) == ["equation", "edge"]
    default = Poisson()
    assert default.derivatives is nested
    assert {k: list(v) for k, v in default.terms.items()} == {"data": ["boundary"], "pde": ["pde"]}


@DIMENSIONS
def test_one_second_derivative_is_asked_for(d):
    calls = []
    problem = Poisson(derivatives=asked_for(calls), dimension=d)
    problem.residuals(problem.exact, drawn(problem))
    assert calls == [(2, (1.0,) * d)]


@DIMENSIONS
@DERIVATIVES
def test_a_stack_equals_its_networks(d, derivatives):
    assert_stack_equals_networks(Poisson(derivatives=derivatives, dimension=d))
