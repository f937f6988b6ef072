"""The wave equation: its solution, its points, its residuals."""

import math

import pytest
import torch
from helpers import asked_for, assert_stack_equals_networks, points, seeded

from pinnlib.derivatives import nested, taylor
from pinnlib.problems import faces, uniform
from pinnlib.problems.wave import Wave

pytestmark = pytest.mark.usefixtures("nothing_hidden")

PI = math.pi
NAMES = ["boundary", "initial", "velocity", "pde"]
DERIVATIVES = pytest.mark.parametrize("derivatives", [nested, taylor])


def drawn(problem, n=64, seed=0):
    return {name: x.double() for name, x in problem.sample(n, seeded(seed)).items()}


def solution(x, t):
    """As the paper has it, with the numbers written out."""
    slow, fast = torch.sin(PI * x) * torch.cos(2 * PI * t), torch.sin(4 * PI * x)
    return slow + 0.5 * fast * torch.cos(8 * PI * t)


def polynomial(p):
    """A function that solves nothing: x² + t x + 3 t²."""
    x, t = p.split(1, dim=-1)
    return x**2 + t * x + 3 * t**2


@DERIVATIVES
def test_exact_solution_has_no_residual(derivatives):
    problem = Wave(derivatives=derivatives)
    batch = drawn(problem)
    residuals = problem.residuals(problem.exact, batch)
    assert list(residuals) == NAMES
    for name, r in residuals.items():
        assert r.shape == (64, 1), name
        assert r.dtype == torch.float64, name
        assert r.abs().max() < 1e-10, name


def test_exact_is_the_solution_of_the_paper():
    x = points(50)
    expected = solution(x[:, :1], x[:, 1:])
    torch.testing.assert_close(Wave().exact(x), expected)
    torch.testing.assert_close(Wave().reference(x), expected)
    some = torch.tensor([[0.5, 0.0], [0.125, 0.125], [0.625, 0.5]], dtype=torch.float64)
    u = [1.0, math.sin(PI / 8) * math.sqrt(0.5) - 0.5, 0.5 - math.sin(5 * PI / 8)]
    torch.testing.assert_close(Wave().exact(some)[:, 0], torch.tensor(u, dtype=torch.float64))


def test_solution_satisfies_the_equation_by_finite_differences():
    (x, t), h = points(50).split(1, dim=1), 1e-4
    u_xx = (solution(x + h, t) - 2 * solution(x, t) + solution(x - h, t)) / h**2
    u_tt = (solution(x, t + h) - 2 * solution(x, t) + solution(x, t - h)) / h**2
    assert u_tt.abs().max() > 100
    torch.testing.assert_close(u_tt, 4 * u_xx, rtol=1e-5, atol=1e-3)


@DERIVATIVES
def test_equation_equals_finite_differences(derivatives):
    """The operator on a function that is no solution, by differences of its values."""

    def u(p):
        x, t = p.split(1, dim=-1)
        return torch.sin(3 * x + 1) * torch.exp(2 * t) + x * torch.cos(5 * t)

    problem, h = Wave(derivatives=derivatives), 1e-4
    batch = drawn(problem)
    p, i = batch["pde"], batch["initial"]
    step_x, step_t = h * torch.eye(2, dtype=torch.float64)
    u_xx, u_tt = ((u(p + s) - 2 * u(p) + u(p - s)) / h**2 for s in (step_x, step_t))
    residuals = problem.residuals(u, batch)
    torch.testing.assert_close(residuals["pde"], u_tt - 4 * u_xx, rtol=1e-5, atol=1e-4)
    u_t = (u(i + step_t) - u(i - step_t)) / (2 * h)
    torch.testing.assert_close(residuals["velocity"], u_t, rtol=1e-5, atol=1e-5)


@DERIVATIVES
def test_residuals_of_a_polynomial(derivatives):
    problem = Wave(derivatives=derivatives)
    batch = drawn(problem)
    residuals = problem.residuals(polynomial, batch)
    (b, b_t), x = batch["boundary"].split(1, dim=1), batch["initial"][:, :1]
    expected = {
        "boundary": b**2 + b * b_t + 3 * b_t**2,
        "initial": x**2 - torch.sin(PI * x) - 0.5 * torch.sin(4 * PI * x),
        "velocity": x,
        "pde": torch.full((64, 1), 6.0 - 4 * 2.0, dtype=torch.float64),
    }
    for name in NAMES:
        torch.testing.assert_close(residuals[name], expected[name])
    losses = problem.losses(polynomial, batch)
    means = {name: r.square().mean() for name, r in expected.items()}
    assert list(losses) == ["data", "pde"]
    torch.testing.assert_close(
        losses["data"], means["boundary"] + means["initial"] + means["velocity"]
    )
    torch.testing.assert_close(losses["pde"], means["pde"])


@DERIVATIVES
def test_residual_of_another_speed(derivatives):
    """A solution for c = 3 leaves (9 - 4) u_xx."""
    problem = Wave(derivatives=derivatives)
    batch = drawn(problem)
    x, t = batch["pde"].split(1, dim=1)

    def faster(p):
        x, t = p.split(1, dim=-1)
        return torch.sin(PI * x) * torch.cos(3 * PI * t)

    expected = -5 * PI**2 * torch.sin(PI * x) * torch.cos(3 * PI * t)
    torch.testing.assert_close(problem.residuals(faster, batch)["pde"], expected)


class Other(Wave):
    c = 0.5
    modes = ((2.0, 3), (-1.0, 2), (0.25, 1))


@DERIVATIVES
def test_other_numbers(derivatives):
    problem, p = Other(derivatives=derivatives), points(20)
    x, t = p.split(1, dim=1)
    expected = sum(
        a * torch.sin(k * PI * x) * torch.cos(k * PI * t / 2)
        for a, k in [(2.0, 3), (-1.0, 2), (0.25, 1)]
    )
    torch.testing.assert_close(problem.exact(p), expected)
    residuals = problem.residuals(problem.exact, drawn(problem))
    assert all(r.abs().max() < 1e-10 for r in residuals.values())


# Points


@pytest.mark.parametrize("n", [2, 7, 128])
def test_points_lie_where_they_should(n):
    batch = Wave().sample(n, seeded())
    assert list(batch) == ["boundary", "initial", "pde"]
    for x in batch.values():
        assert x.shape == (n, 2)
        assert ((x >= 0) & (x <= 1)).all()
    assert ((batch["pde"] > 0) & (batch["pde"] < 1)).all()
    ends = [(batch["boundary"][:, 0] == value).sum().item() for value in (0, 1)]
    assert sum(ends) == n
    assert abs(ends[0] - ends[1]) <= 1
    assert not batch["initial"][:, 1].any()
    assert batch["initial"][:, 0].all()


def test_points_are_drawn_in_this_order():
    n, generator, square = {"pde": 9, "initial": 5, "boundary": 7}, seeded(3), ((0.0, 1.0),) * 2
    batch = Wave().sample(n, seeded(3))
    assert torch.equal(batch["boundary"], faces(square, 7, generator, [(0, 0.0), (0, 1.0)]))
    assert torch.equal(batch["initial"], faces(square, 5, generator, [(1, 0.0)]))
    assert torch.equal(batch["pde"], uniform(square, 9, generator))


def test_sample_refuses():
    with pytest.raises(ValueError, match="n is 1: use 2 points or more, one for each face"):
        Wave().sample(1, seeded())
    message = r"\['pde'\]: pass exactly \['boundary', 'initial', 'pde'\]"
    with pytest.raises(ValueError, match=message):
        Wave().sample({"pde": 8}, seeded())


def test_attributes():
    assert (Wave.variables, Wave.domain) == (("x", "t"), ((0.0, 1.0), (0.0, 1.0)))
    assert {k: list(v) for k, v in Wave.terms.items()} == {"data": NAMES[:3], "pde": NAMES[3:]}


# What it asks of its derivatives, and stacks


def test_one_second_derivative_is_asked_for():
    calls = []
    problem = Wave(derivatives=asked_for(calls))
    problem.residuals(problem.exact, drawn(problem))
    assert calls == [(1, (0.0, 1.0)), (2, (-4.0, 1.0))]


@DERIVATIVES
def test_a_stack_equals_its_networks(derivatives):
    assert_stack_equals_networks(Wave(derivatives=derivatives))
