import json
import math

import numpy as np
import pytest
import torch
from helpers import asked_for, assert_stack_equals_networks, in_float64, network, seeded
from scipy.interpolate import CubicSpline, RectBivariateSpline

from benchmarks import cavity_reference as solver
from pinnlib.derivatives import nested, taylor
from pinnlib.evaluation import relative_l2_error
from pinnlib.problems import Cavity, Table
from pinnlib.problems.cavity import TABLE
from pinnlib.step import eager
from pinnlib.training import train, train_many

pytestmark = pytest.mark.usefixtures("nothing_hidden")

DERIVATIVES = pytest.mark.parametrize("derivatives", [nested, taylor])
EQUATIONS = ["momentum_x", "momentum_y", "continuity"]
NAMES = [*EQUATIONS, "lid_u", "lid_v", "walls_u", "walls_v", "pressure"]
MARCHI = json.loads(solver.PUBLISHED.read_text())["marchi2009"]


def polynomial(points):
    x, y = points[..., :1], points[..., 1:]
    return torch.cat([x**2 * y + 2, 3 * x * y**2 + x, x**3 * y + y**2 + 5], dim=-1)


# The equations


@DERIVATIVES
@pytest.mark.parametrize("reynolds", [100, 2.5])
def test_residuals_of_a_polynomial(derivatives, reynolds):
    problem = Cavity(reynolds, derivatives=derivatives)
    batch = in_float64(problem.sample(16, seeded()))
    before = {name: x.clone() for name, x in batch.items()}
    residuals = problem.residuals(polynomial, batch)
    x, y = batch["pde"].split(1, dim=1)
    u, v = x**2 * y + 2, 3 * x * y**2 + x
    on_lid, on_walls = polynomial(batch["lid"]), polynomial(batch["walls"])
    expected = {
        "momentum_x": u * 2 * x * y + v * x**2 + 3 * x**2 * y - 2 * y / reynolds,
        "momentum_y": u * (3 * y**2 + 1) + v * 6 * x * y + x**3 + 2 * y - 6 * x / reynolds,
        "continuity": 8 * x * y,
        "lid_u": on_lid[:, :1] - 1,
        "lid_v": on_lid[:, 1:2],
        "walls_u": on_walls[:, :1],
        "walls_v": on_walls[:, 1:2],
        "pressure": torch.full((1, 1), 5.0, dtype=torch.float64),
    }
    assert list(residuals) == list(expected) == NAMES
    for name in expected:
        torch.testing.assert_close(residuals[name], expected[name])
    assert all(torch.equal(batch[name], x) for name, x in before.items())


@DERIVATIVES
def test_residuals_equal_finite_differences(derivatives):
    problem, h = Cavity(derivatives=derivatives), 1e-4
    batch = in_float64(problem.sample(16, seeded()))
    model, points = network(problem.domain, outputs=3), batch["pde"]
    steps = h * torch.eye(2, dtype=torch.float64)
    by_x, by_y = ((model(points + step) - model(points - step)) / (2 * h) for step in steps)
    beside = sum(model(points + step) + model(points - step) for step in steps)
    laplacian = (beside - 4 * model(points)) / h**2
    u, v, _ = model(points).split(1, dim=1)
    balance = u * by_x + v * by_y - laplacian / 100
    expected = {
        "momentum_x": balance[:, :1] + by_x[:, 2:],
        "momentum_y": balance[:, 1:2] + by_y[:, 2:],
        "continuity": by_x[:, :1] + by_y[:, 1:2],
    }
    residuals = problem.residuals(model, batch)
    for name in expected:
        torch.testing.assert_close(residuals[name], expected[name], atol=1e-6, rtol=0)


def test_terms_and_domain():
    problem = Cavity()
    assert Cavity.domain == ((0.0, 1.0), (0.0, 1.0))
    assert Cavity.variables == ("x", "y")
    assert list(problem.terms) == [*EQUATIONS, "lid", "walls", "pressure"]
    batch = problem.sample(9, seeded())
    values = torch.tensor([3.0, 5.0, 7.0])
    losses = problem.losses(lambda x: 0 * x[..., :1] + values, batch)
    expected = dict.fromkeys(EQUATIONS, 0.0) | {"lid": 29.0, "walls": 34.0, "pressure": 49.0}
    assert {name: loss.item() for name, loss in losses.items()} == expected


def test_one_pass_serves_all_three_equations():
    calls = []
    problem = Cavity(derivatives=asked_for(calls))
    problem.losses(network(problem.domain, outputs=3), in_float64(problem.sample(8, seeded())))
    assert calls == [(2, (1.0, 1.0))]


@DERIVATIVES
def test_a_stack_equals_its_networks(derivatives):
    assert_stack_equals_networks(Cavity(derivatives=derivatives), pressure=1)


@DERIVATIVES
def test_residuals_have_the_dtype_of_the_network(derivatives):
    problem = Cavity(derivatives=derivatives)
    model, batch = network(problem.domain, outputs=3), problem.sample(8, seeded())
    exact = problem.residuals(model, in_float64(batch))
    for name, r in problem.residuals(model.float(), batch).items():
        assert r.dtype == torch.float32, name
        torch.testing.assert_close(r.double(), exact[name], rtol=1e-4, atol=1e-4)


def test_it_trains():
    problem = Cavity(derivatives=taylor)
    model = network(problem.domain, outputs=3).float()
    weights = dict.fromkeys(problem.terms, 1.0)
    history = train(
        problem, model, weights, steps=20, record_every=10, generator=seeded(), run=eager
    )
    first, last = (sum(history.losses[term][i] for term in problem.terms) for i in (0, -1))
    assert last < first
    x, u = problem.grid(), problem.reference(problem.grid())
    with torch.no_grad():
        velocity = model(x)[:, :2]  # without the pressure
    assert history.errors[-1].item() == pytest.approx(((velocity - u).norm() / u.norm()).item())


def test_the_default_network_has_three_outputs():
    problem = Cavity(derivatives=taylor)
    model, history = train_many(problem, dict.fromkeys(problem.terms, 1.0), seeds=[0, 1], steps=2)
    assert model(problem.grid(3).expand(2, 9, 2)).shape == (2, 9, 3)
    assert history.errors.shape == (2, 1)


# Points


@pytest.mark.parametrize("gap", [0.0, 0.2])
def test_sample_lies_where_it_should(gap):
    batch = Cavity(gap=gap).sample({"lid": 2000, "walls": 301, "pde": 7}, seeded())
    lid, walls = batch["lid"], batch["walls"]
    assert lid[:, 1].eq(1).all()
    ends = lid[:, 0].aminmax()
    assert gap <= ends.min < gap + 0.01
    assert 0.99 - gap < ends.max <= 1 - gap
    left, right, below = walls[:, 0] == 0, walls[:, 0] == 1, walls[:, 1] == 0
    assert [left.sum(), right.sum(), below.sum()] == [101, 100, 100]
    assert walls[left, 1].max() > 0.95
    assert walls[below, 0].max() > 0.95
    assert batch["pressure"].tolist() == [[0.0, 0.0]]
    assert batch["pde"].shape == (7, 2)
    assert ((batch["pde"] > 0) & (batch["pde"] < 1)).all()


def test_sample_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="n is 2: use 3 points or more, one for each face"):
        Cavity().sample(2, seeded())
    with pytest.raises(ValueError, match=r"pass exactly \['lid', 'pde', 'walls'\]"):
        Cavity().sample({"lid": 8}, seeded())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reynolds": 0}, "reynolds is 0: pass a number above 0, such as 100"),
        ({"reynolds": -1.0}, "reynolds is -1.0"),
        ({"reynolds": math.inf}, "reynolds is inf"),
        ({"reynolds": math.nan}, "reynolds is nan"),
        ({"gap": -0.1}, "gap is -0.1: pass a distance from 0 to below 0.5"),
        ({"gap": 0.5}, "gap is 0.5"),
        ({"gap": math.nan}, "gap is nan"),
    ],
)
def test_numbers_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Cavity(**options)


@DERIVATIVES
def test_a_network_with_other_outputs_is_refused(derivatives):
    problem = Cavity(derivatives=derivatives)
    for outputs in (1, 2, 4):
        model = network(problem.domain, outputs=outputs).float()
        with pytest.raises(ValueError, match=f"model has {outputs} outputs: a cavity needs u, v"):
            problem.losses(model, problem.sample(8, seeded()))


# The reference


def fields():
    """The table as splines of u and v, and its places."""
    values = np.load(TABLE).astype(float)
    places = np.linspace(0, 1, 100)
    return places, [RectBivariateSpline(places, places, values[..., i]) for i in (0, 1)]


def test_centre_lines_are_those_that_were_published():
    assert TABLE.stat().st_size < 100_000
    u, v = solver.centre_lines(np.load(TABLE).astype(float))
    np.testing.assert_allclose(u(MARCHI["100"]["y"]), MARCHI["100"]["u"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(v(MARCHI["100"]["x"]), MARCHI["100"]["v"], rtol=0, atol=1e-6)
    assert solver.distances(100, np.load(TABLE).astype(float))["ghia1982"][1] > 5e-3


def test_reference_solves_the_equations():
    """Away from the ends of the lid, with the pressure that the momentum along y asks for."""
    places, (u, v) = fields()
    inner = places[15:85]

    def force(of):
        diffusion = of(inner, inner, dx=2) + of(inner, inner, dy=2)
        transport = u(inner, inner) * of(inner, inner, dx=1) + v(inner, inner) * of(
            inner, inner, dy=1
        )
        return diffusion / 100 - transport

    below = CubicSpline(inner, force(u)[:, 0]).antiderivative()(inner)
    above = CubicSpline(inner, force(v), axis=1).antiderivative()(inner)
    p = RectBivariateSpline(inner, inner, below[:, None] + above)

    def evaluate(points, **order):
        x, y = points.numpy().T
        columns = [of.ev(x, y, **order) for of in (u, v, p)]
        return torch.tensor(np.stack(columns, axis=-1))

    def of_splines(model, points, order=2, *, operator=None):
        second = evaluate(points, dx=2) + evaluate(points, dy=2)
        return evaluate(points), (evaluate(points, dx=1), evaluate(points, dy=1)), (second,)

    batch = in_float64(Cavity().sample(500, seeded()))
    batch["pde"] = 0.25 + batch["pde"] / 2
    residuals = Cavity(derivatives=of_splines).residuals(evaluate, batch)
    assert max(residuals[name].abs().max() for name in EQUATIONS) < 2e-3
    slower = Cavity(120, derivatives=of_splines).residuals(evaluate, batch)
    assert slower["momentum_x"].abs().max() > 1e-2


def test_reference_is_what_the_solver_finds():
    """But next to the ends of the lid, where no grid is fine enough."""
    cells = (33, 66, 99)
    found = [solver.velocity(solver.solve(n, 100.0))[:: n // 33, :: n // 33] for n in cells]
    points = Cavity().grid(34, dtype=torch.float64)
    off = Cavity().reference(points).numpy() - solver.extrapolate(cells, found).reshape(-1, 2)
    ends = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    away = torch.cdist(points, ends).amin(dim=1).numpy()
    assert abs(off).max() < 1e-2
    assert abs(off[away > 0.1]).max() < 1e-3
    assert abs(off[away > 0.3]).max() < 1e-4


def test_reference_on_the_boundary():
    reference, t = Cavity().reference, torch.linspace(0.05, 0.95, 7)[:, None]
    lid, below = (reference(torch.cat([t, torch.full_like(t, y)], dim=1)) for y in (1.0, 0.0))
    left, right = (reference(torch.cat([torch.full_like(t, x), t], dim=1)) for x in (0.0, 1.0))
    torch.testing.assert_close(lid, torch.tensor([[1.0, 0.0]]).expand(7, 2))
    assert not torch.cat([left, right, below]).any()
    assert reference(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))[:, 0].tolist() == [0.5, 0.5]


def test_reference_belongs_to_its_reynolds_number():
    assert isinstance(Cavity().reference, Table)
    assert Cavity(100).reference is Cavity().reference
    assert Cavity(400).reference is None
    assert Cavity(400, reference=torch.sin).reference is torch.sin
    assert Cavity(reference=torch.sin).reference is torch.sin


def test_reference_of_a_stack_a_dtype_and_a_device():
    x = torch.rand(3, 8, 2, generator=seeded())
    with torch.inference_mode():
        u = Cavity().reference(x)
    assert (u.shape, u.dtype) == ((3, 8, 2), torch.float32)
    torch.testing.assert_close(Cavity().reference(x.double()), u.double(), rtol=0, atol=1e-5)
    assert Cavity().reference(x.to("meta")).device.type == "meta"
    assert Cavity().reference(torch.tensor([[0.5, 1.1]])).isnan().all()


def test_reference_serves_the_error_on_the_grid():
    problem = Cavity()
    assert relative_l2_error(problem.reference, problem) == 0
    error = relative_l2_error(lambda x: 1.5 * problem.reference(x), problem)
    assert error == pytest.approx(0.5)


# The solver


def test_differences_are_of_second_order():
    errors = []
    for n in (20, 40):
        x = np.linspace(0, 1, n + 1)[1:-1]
        angle, pi = 2 * math.pi * x, math.pi  # sin² πx is its own mirror image at both walls
        expected = [
            pi * np.sin(angle),
            2 * pi**2 * np.cos(angle),
            -4 * pi**3 * np.sin(angle),
            -8 * pi**4 * np.cos(angle),
        ]
        found = [d @ np.sin(pi * x) ** 2 for d in solver.differences(n)]
        errors.append([abs(f - e).max() for f, e in zip(found, expected, strict=True)])
    np.testing.assert_allclose(np.divide(*errors), 4, rtol=0.03)


@pytest.mark.parametrize(
    ("reynolds", "cells", "tolerance"), [(100, (64, 96, 128), 1e-5), (400, (48, 64, 96), 5e-4)]
)
def test_centre_lines_at_two_reynolds_numbers(reynolds, cells, tolerance):
    flows = [solver.velocity(solver.solve(n, reynolds)) for n in cells]
    found = [flow[:: n // 16, :: n // 16] for n, flow in zip(cells, flows, strict=True)]

    def distance(table):
        u, v = table[8, 1:-1, 0], table[1:-1, 8, 1]
        lines = MARCHI[str(reynolds)]
        return max(abs(u - lines["u"]).max(), abs(v - lines["v"]).max())

    assert distance(solver.extrapolate(cells, found)) < tolerance
    assert distance(found[-1]) > 10 * tolerance, "without the extrapolation"
    by_name = solver.distances(reynolds, flows[-1])
    assert max(by_name["marchi2009"]) == pytest.approx(distance(found[-1]), rel=0.01)


def test_velocity_keeps_the_volume_and_the_walls():
    n = 24
    flow = solver.velocity(solver.solve(n, 50.0))
    u, v = flow[..., 0], flow[..., 1]
    divergence = (u[2:, 1:-1] - u[:-2, 1:-1] + v[1:-1, 2:] - v[1:-1, :-2]) * n / 2
    assert abs(divergence[1:-1, 1:-1]).max() < 1e-12
    assert not flow[[0, -1], :-1].any()
    assert not flow[:, 0].any()
    assert (u[1:-1, -1] == 1).all()
    assert not v[:, -1].any()
    # One way through each section, as much as the other.
    assert abs(np.trapezoid(u[n // 2], dx=1 / n)) < 0.01


def test_a_creeping_flow_is_symmetric():
    flow = solver.velocity(solver.solve(16, 1e-9))
    np.testing.assert_allclose(flow[::-1, :, 0], flow[..., 0], atol=1e-8)
    np.testing.assert_allclose(flow[::-1, :, 1], -flow[..., 1], atol=1e-8)
    faster = solver.velocity(solver.solve(16, 100.0))
    assert abs(faster[::-1, :, 0] - faster[..., 0]).max() > 0.05


def test_extrapolation_is_exact_for_even_powers():
    def value(n):
        return np.array([1 + 2 / n**2 + 3 / n**4, -1 + 5 / n**2])

    np.testing.assert_allclose(solver.extrapolate([4, 6, 9], list(map(value, [4, 6, 9]))), [1, -1])


def test_a_flow_that_is_not_found_is_an_error():
    with pytest.raises(RuntimeError, match=r"no flow found at Re = 10.0 on 8 cells: start from"):
        solver.solve(8, 10.0, tolerance=0.0)


def test_the_command_writes_the_table(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(solver, "TABLE", tmp_path / "cavity.npy")
    monkeypatch.setattr(solver, "CELLS", (9, 18))
    solver.main()
    table = np.load(tmp_path / "cavity.npy")
    assert (table.shape, table.dtype) == ((10, 10, 2), np.float32)
    found = [solver.velocity(solver.solve(9 * k, 100.0))[::k, ::k] for k in (1, 2)]
    np.testing.assert_allclose(table, (4 * found[1] - found[0]) / 3, atol=1e-6)
    lines = capfd.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"Re {re}, {what}" for re in (100, 400) for what in ("9 cells", "18 cells", "extrapolated")
    ]
