import math
import re

import numpy as np
import pytest
import torch
from helpers import (
    asked_for,
    assert_stack_equals_networks,
    default_dtype,
    in_float64,
    network,
    points,
    seeded,
)
from hypothesis import given
from hypothesis import strategies as st

from pinnlib.coefficients import WithCoefficients
from pinnlib.derivatives import nested
from pinnlib.problems import Helmholtz, KleinGordon, Problem, Table, faces, sizes, uniform

pytestmark = pytest.mark.usefixtures("nothing_hidden")

PROBLEMS = [KleinGordon, Helmholtz]
SPLIT = {name: [name] for name in ("boundary", "initial", "velocity", "pde")}
BOUNDARY = {  # the faces where each set of points must lie: (column, value)
    KleinGordon: {"boundary": [(0, 0.0), (0, 1.0)], "initial": [(1, 0.0)]},
    Helmholtz: {"boundary": [(0, -1.0), (0, 1.0), (1, -1.0), (1, 1.0)]},
}


class Line(Problem):
    """A problem with one input whose residuals are given numbers."""

    variables = ("x",)
    domain = ((0.0, 2.0),)
    terms = {"both": ("a", "b"), "last": ("c",)}
    values = {"a": [1.0, 3.0], "b": [2.0, 2.0], "c": [5.0, 0.0]}
    size = 1.0

    def sample(self, n, generator):
        return {"all": uniform(self.domain, n, generator)}

    def residuals(self, model, batch):
        return {
            name: self.size * torch.tensor(values, dtype=torch.float64)[:, None]
            for name, values in self.values.items()
        }


class Given(Problem):
    """A problem whose residuals are given tensors."""

    variables = ("x",)
    domain = ((0.0, 1.0),)
    terms = {"data": ["r"]}

    def __init__(self, residuals, **options):
        super().__init__(**options)
        self.given = residuals

    def sample(self, n, generator):
        return {"all": uniform(self.domain, n, generator)}

    def residuals(self, model, batch):
        return self.given


# The exact solutions and the equations


@pytest.mark.parametrize("problem", [KleinGordon(), KleinGordon(SPLIT), Helmholtz()])
def test_exact_solution_has_no_residual(problem):
    batch = in_float64(problem.sample(64, seeded()))
    for name, residual in problem.residuals(problem.exact, batch).items():
        assert residual.shape == (64, 1), name
        assert residual.dtype == torch.float64, name
        assert residual.abs().max() < 1e-10, name
    assert all(loss < 1e-20 for loss in problem.losses(problem.exact, batch).values())


def test_klein_gordon_exact_solution():
    x = torch.tensor([[0.5, 0.2], [1.0, 1.0], [0.25, 0.0]], dtype=torch.float64)
    u = [0.5 * math.cos(math.pi) + 0.001, -1.0 + 1.0, 0.25]
    torch.testing.assert_close(KleinGordon().exact(x)[:, 0], torch.tensor(u, dtype=torch.float64))


def test_helmholtz_exact_solution():
    x = torch.tensor([[0.5, 0.125], [-0.5, 0.125], [0.25, 0.0]], dtype=torch.float64)
    u = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(Helmholtz().exact(x)[:, 0], u)


@pytest.mark.parametrize("problem_class", PROBLEMS)
def test_source_equals_finite_differences(problem_class):
    problem, h = problem_class(), 1e-4
    x = uniform(problem.domain, 50, seeded()).double()
    u = problem.exact(x)
    second = [
        (problem.exact(x + step) - 2 * u + problem.exact(x - step)) / h**2
        for step in h * torch.eye(2, dtype=torch.float64)
    ]
    expected = {
        KleinGordon: second[1] - second[0] + u**3,
        Helmholtz: second[0] + second[1] + u,
    }
    torch.testing.assert_close(problem.source(x), expected[problem_class], rtol=1e-5, atol=1e-3)


def test_klein_gordon_conditions():
    problem, zero = KleinGordon(), torch.zeros(20, 1, dtype=torch.float64)
    x = torch.cat([torch.linspace(0, 1, 20, dtype=torch.float64)[:, None], zero], dim=1)
    u, (_, u_t), _ = nested(problem.exact, x, order=1)
    torch.testing.assert_close(u, x[:, :1])
    torch.testing.assert_close(u_t, zero)


def test_klein_gordon_residuals_of_a_polynomial():
    problem = KleinGordon()
    batch = in_float64(problem.sample(16, seeded()))
    residuals = problem.residuals(lambda p: p[:, :1] ** 2 * p[:, 1:] + 2 * p[:, 1:] ** 2, batch)
    (b, i, p) = (batch[name] for name in ("boundary", "initial", "pde"))
    x, t = p.split(1, dim=1)
    u = x**2 * t + 2 * t**2
    on_boundary = b[:, :1] ** 2 * b[:, 1:] + 2 * b[:, 1:] ** 2
    expected = {
        "boundary": on_boundary - problem.exact(b),
        "initial": -i[:, :1],
        "velocity": i[:, :1] ** 2,
        "pde": 4 - 2 * t + u**3 - problem.source(p),
    }
    assert list(residuals) == list(expected)
    for name in expected:
        torch.testing.assert_close(residuals[name], expected[name])


def test_helmholtz_residuals_of_a_polynomial():
    problem = Helmholtz()
    batch = in_float64(problem.sample(16, seeded()))
    residuals = problem.residuals(lambda p: p[:, :1] ** 2 * p[:, 1:] + 2 * p[:, 1:] ** 2, batch)
    b, (x, y) = batch["boundary"], batch["pde"].split(1, dim=1)
    expected = {
        "boundary": b[:, :1] ** 2 * b[:, 1:] + 2 * b[:, 1:] ** 2,
        "pde": 2 * y + 4 + x**2 * y + 2 * y**2 - problem.source(batch["pde"]),
    }
    assert list(residuals) == list(expected)
    for name in expected:
        torch.testing.assert_close(residuals[name], expected[name])


class Stronger(Helmholtz):
    a = (2.0, 3.0)
    k = 2.0


def test_helmholtz_with_other_numbers():
    problem, x = Stronger(), points(20)
    u, _, (u_xx, u_yy) = nested(problem.exact, x)
    torch.testing.assert_close(problem.source(x), u_xx + u_yy + 4 * u)
    expected = torch.sin(2 * math.pi * x[:, :1]) * torch.sin(3 * math.pi * x[:, 1:])
    torch.testing.assert_close(u, expected)
    residuals = problem.residuals(problem.exact, {"boundary": x, "pde": x})
    assert residuals["pde"].abs().max() < 1e-10
    assert not residuals["boundary"].any()


def test_domains():
    assert KleinGordon.domain == ((0.0, 1.0), (0.0, 1.0))
    assert Helmholtz.domain == ((-1.0, 1.0), (-1.0, 1.0))


@pytest.mark.parametrize("problem_class", PROBLEMS)
def test_derivatives_are_exchangeable(problem_class):
    calls = []
    problem, plain = problem_class(derivatives=asked_for(calls)), problem_class()
    batch = plain.sample(8, seeded())
    losses, expected = (p.losses(network(plain.domain), batch) for p in (problem, plain))
    assert losses == expected
    operator = {KleinGordon: (-1.0, 1.0), Helmholtz: (1.0, 1.0)}[problem_class]
    # One second-order stream in taylor in place of two, and only u_t for the initial velocity.
    velocity = {KleinGordon: [(1, (0.0, 1.0))], Helmholtz: []}[problem_class]
    assert calls == [*velocity, (2, operator)]


# Points


@pytest.mark.parametrize("problem_class", PROBLEMS)
@pytest.mark.parametrize("n", [4, 7, 128])
def test_sample_lies_where_it_should(problem_class, n):
    problem = problem_class()
    batch = problem.sample(n, seeded())
    assert set(batch) == {*BOUNDARY[problem_class], "pde"}
    low, high = torch.tensor(problem.domain).T
    for name, x in batch.items():
        assert x.shape == (n, 2)
        assert not x.requires_grad
        assert ((low <= x) & (x <= high)).all(), name
    interior = batch["pde"]
    assert ((low < interior) & (interior < high)).all()
    for name, places in BOUNDARY[problem_class].items():
        counts = [(batch[name][:, column] == value).sum().item() for column, value in places]
        assert sum(counts) == n
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("problem_class", PROBLEMS)
def test_sample_is_uniform(problem_class):
    problem, n = problem_class(), 8000
    batch = problem.sample(n, seeded())
    low, high = torch.tensor(problem.domain).T

    def is_uniform(column):  # ten bins; a count deviates by 5 standard deviations at most
        counts = torch.histc(column, bins=10, min=0, max=1)
        expected = len(column) / 10
        return (counts - expected).abs().max() < 5 * math.sqrt(expected)

    interior = (batch["pde"] - low) / (high - low)
    assert all(is_uniform(column) for column in interior.T)
    assert abs(torch.corrcoef(interior.T)[0, 1]) < 0.05
    for name, places in BOUNDARY[problem_class].items():
        scaled = (batch[name] - low) / (high - low)
        for column, value in places:
            assert is_uniform(scaled[batch[name][:, column] == value, 1 - column])


@pytest.mark.parametrize("problem_class", PROBLEMS)
def test_sample_depends_on_its_generator_only(problem_class):
    problem, generator = problem_class(), seeded()
    first, second, again = (problem.sample(8, g) for g in (generator, generator, seeded()))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], second[name])


@pytest.mark.parametrize(("problem_class", "least"), [(KleinGordon, 2), (Helmholtz, 4)])
def test_sample_refuses_fewer_points_than_faces(problem_class, least):
    problem = problem_class()
    assert len(problem.sample(least, seeded())["boundary"]) == least
    with pytest.raises(ValueError, match=f"n is {least - 1}: use {least} points or more"):
        problem.sample(least - 1, seeded())


@pytest.mark.parametrize("problem_class", PROBLEMS)
def test_sample_takes_a_size_for_each_set(problem_class):
    problem = problem_class()
    names = [*BOUNDARY[problem_class], "pde"]
    n = {name: 8 + i for i, name in enumerate(reversed(names))}
    assert {name: len(x) for name, x in problem.sample(n, seeded()).items()} == n
    equal, same = problem.sample(dict.fromkeys(names, 8), seeded()), problem.sample(8, seeded())
    assert all(torch.equal(equal[name], same[name]) for name in names)
    with pytest.raises(
        ValueError, match=r"n names the sets \['pde'\]: pass exactly \['boundary', "
    ):
        problem.sample({"pde": 8}, seeded())


def test_sizes_are_in_the_order_of_the_sets():
    assert list(sizes({"b": 2, "a": 1}, ["a", "b"]).items()) == [("a", 1), ("b", 2)]
    with pytest.raises(ValueError, match=r"sets \['a', 'c'\]: pass exactly \['a', 'b'\]"):
        sizes({"a": 1, "c": 1}, ["a", "b"])


@given(exponent=st.integers(-12, 12))
def test_uniform_over_scales(exponent):
    size = 10.0**exponent
    x = uniform([(-size, 3 * size), (0, 1)], 64, seeded())
    unit = torch.rand(64, 2, generator=seeded())
    torch.testing.assert_close(x[:, 0] / size, 4 * unit[:, 0] - 1)
    assert torch.equal(x[:, 1], unit[:, 1])


def test_uniform_has_the_default_dtype_and_the_device_of_the_generator():
    assert uniform([(0, 2)], 3, seeded()).dtype == torch.float32
    with default_dtype(torch.float64):
        assert uniform([(0, 2)], 3, seeded()).dtype == torch.float64
    with torch.device("meta"):
        assert uniform([(0, 2)], 3, seeded()).device.type == "cpu"


@pytest.mark.parametrize("n", [0, -1, 2.5, "8", None])
def test_uniform_refuses_a_number_of_points(n):
    with pytest.raises(ValueError, match=f"n is {n!r}: use a whole number of points, 1 or more"):
        uniform([(0, 1)], n, seeded())


def test_sampling_never_falls_back_on_the_global_random_state():
    for draw in (
        lambda: uniform([(0, 1)], 8, None),
        lambda: faces([(0, 1)], 8, None, [(0, 0.0)]),
        lambda: KleinGordon().sample(8, None),
    ):
        with pytest.raises(TypeError, match=r"generator is None: pass torch.Generator\(\)"):
            draw()


def test_faces_are_taken_in_turn():
    x = faces([(0, 1), (2, 4)], 5, seeded(), [(0, 0.5), (1, 2), (1, 4)])
    assert x[[0, 3], 0].tolist() == [0.5, 0.5]
    assert x[[1, 4, 2], 1].tolist() == [2.0, 2.0, 4.0]
    rest = uniform([(0, 1), (2, 4)], 5, seeded())
    assert torch.equal(x[[0, 3], 1], rest[[0, 3], 1])
    assert torch.equal(x[[1, 2, 4], 0], rest[[1, 2, 4], 0])


@pytest.mark.parametrize("face", [(0, -0.1), (0, 1.1), (2, 0.0), (-1, 0.0), (0, math.nan)])
def test_faces_refuse_what_lies_outside(face):
    with pytest.raises(ValueError, match=r"face \(.*\) does not touch the domain \[\(0, 1\), "):
        faces([(0, 1), (0, 1)], 8, seeded(), [(0, 0.0), face])


def test_faces_refuse_none():
    with pytest.raises(ValueError, match=r"faces is empty: pass \(column, value\) pairs"):
        faces([(0, 1)], 8, seeded(), [])


def test_grid_is_regular():
    x = KleinGordon().grid(3)
    values = [0.0, 0.5, 1.0]
    assert x.tolist() == [[a, b] for a in values for b in values]
    assert Line().grid(3).tolist() == [[0.0], [1.0], [2.0]]
    assert Line().grid(1).tolist() == [[0.0]]
    assert KleinGordon().grid().shape == (100 * 100, 2)
    with pytest.raises(ValueError, match="n is 0: use 1 value or more along each input"):
        Line().grid(0)


def test_grid_lies_on_a_device_in_a_dtype():
    x = Line().grid(4, device="cpu", dtype=torch.float64)
    assert x[1].item() == 2 / 3
    assert Line().grid(4).dtype == torch.float32
    assert Line().grid(4, device="meta").device.type == "meta"


# The reference


def test_a_reference_may_be_a_method_a_function_a_table_or_absent():
    assert Line().reference is None
    x = points(4, 1)
    assert Line(reference=torch.exp).reference is torch.exp
    table = Table(Line.domain, [0.0, 2.0])
    torch.testing.assert_close(Line(reference=table).reference(x), x)

    class OfTheClass(Line):
        reference = table

    assert OfTheClass().reference is table
    assert OfTheClass(reference=torch.sin).reference is torch.sin
    assert Line().reference is None


@pytest.mark.parametrize("problem_class", PROBLEMS)
def test_the_reference_is_the_exact_solution(problem_class):
    class Flat(problem_class):
        def exact(self, x):
            return 0 * x[:, :1] + 7

    x = points()
    assert torch.equal(problem_class().reference(x), problem_class().exact(x))
    assert Flat().reference(x).eq(7).all()
    assert problem_class(reference=torch.sin).reference is torch.sin


# Coefficients, outputs


def test_a_coefficient_is_that_of_the_model_if_it_is_unknown():
    class Sliding(Line):
        coefficients = {"speed": 3.0, "drag": 0.5}

    model = WithCoefficients(network(Line.domain), speed=2.0)
    problem = Sliding(unknown={"speed": 2.0})
    assert problem.coefficient(model, "speed").item() == 2.0
    assert problem.coefficient(model, "drag") == 0.5
    assert Sliding().coefficient(model, "speed") == 3.0


def test_a_problem_has_one_output_by_default_which_has_a_reference():
    assert (Line.outputs, Line.hidden) == (1, 0)


# Tables


def test_table_of_one_input_equals_numpy():
    values = [3.0, -1.0, 4.0, 1.0]
    x = torch.linspace(-1, 2, 50, dtype=torch.float64)[:, None]
    expected = np.interp(x[:, 0], np.linspace(-1, 2, 4), values)
    np.testing.assert_allclose(Table([(-1, 2)], values)(x)[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("sizes_of_inputs", [(5, 3), (4, 2, 6)])
def test_table_equals_grid_sample(sizes_of_inputs):
    d = len(sizes_of_inputs)
    values = torch.randn(*sizes_of_inputs, 2, generator=seeded(), dtype=torch.float64)
    unit = points(40, d)
    # grid_sample takes channels first and the last input first, in [-1, 1].
    grid = (2 * unit - 1).flip(-1).reshape(1, *[1] * (d - 1), 40, d)
    expected = torch.nn.functional.grid_sample(
        values.movedim(-1, 0)[None], grid, align_corners=True
    )
    low, high = torch.arange(d) - 1.5, torch.arange(d) * 2 + 1.0
    table = Table(list(zip(low.tolist(), high.tolist(), strict=True)), values)
    torch.testing.assert_close(table(low + (high - low) * unit), expected.reshape(2, 40).T)


@given(exponent=st.integers(-12, 12))
def test_table_is_exact_for_what_is_linear_in_each_input(exponent):
    size = 10.0**exponent

    def function(x):
        return size * (2 + x[..., :1] / size) * (1 - 3 * x[..., 1:])

    x = torch.cartesian_prod(torch.linspace(0, size, 4), torch.linspace(-1, 1, 3)).double()
    table = Table([(0, size), (-1, 1)], function(x).reshape(4, 3))
    torch.testing.assert_close(table(x), function(x), rtol=1e-6, atol=1e-6 * size)
    inside = points(30) * torch.tensor([size, 2.0]) - torch.tensor([0.0, 1.0])
    torch.testing.assert_close(table(inside), function(inside), rtol=1e-6, atol=1e-6 * size)


def test_table_of_the_grid_is_a_reference():
    problem = Helmholtz()
    table = Table(problem.domain, problem.exact(problem.grid(50)).reshape(50, 50))
    x = problem.grid(50)
    torch.testing.assert_close(table(x), problem.exact(x), rtol=0, atol=1e-4)


def test_table_has_shapes_types_and_slopes_of_the_points():
    table = Table([(0, 2)], np.array([[0, 1], [4, 5]]))
    for dtype in (torch.float32, torch.float64):
        u = table(torch.full((3, 2, 1), 0.5, dtype=dtype))
        assert (u.shape, u.dtype) == ((3, 2, 2), dtype)
        assert u[0, 0].tolist() == [1.0, 2.0]
    _, (slope,), _ = nested(table, points(5, 1), order=1)
    torch.testing.assert_close(slope, torch.full((5, 2), 2.0, dtype=torch.float64))


def test_table_keeps_a_copy():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    table = Table([(0, 1)], values)
    values.data[:] = 7
    u = table(torch.tensor([[0.5]]))
    assert u.item() == 1.5
    assert not u.requires_grad


def test_table_knows_nothing_outside():
    table = Table([(0, 1), (0, 1)], [[1.0, 1.0], [1.0, 1.0]])
    outside = [[-0.01, 0.5], [0.5, 1.01], [9.0, 9.0], [math.nan, 0.5], [0.5, -math.inf]]
    assert table(torch.tensor(outside)).isnan().all()
    edge = [[-1e-7, 1.0], [1 + 1e-7, 0.0], [0.0, 0.0], [1.0, 1.0]]
    torch.testing.assert_close(table(torch.tensor(edge)), torch.ones(4, 1))


@pytest.mark.parametrize(
    ("domain", "values", "message"),
    [
        ([(0, 1)], [[[1.0]]], r"values has shape \(1, 1, 1\) for 1 inputs: pass \(n_1, …, n_d\)"),
        ([(0, 1), (0, 1)], [1.0, 2.0], r"values has shape \(2,\) for 2 inputs"),
        ([(0, 1)], [1.0], r"values has shape \(1,\) .* 2 values or more along each input"),
        ([(0, 1)], [[], []], r"values has shape \(2, 0\) for 1 inputs"),
        ([], 1.0, r"values has shape \(\) for 0 inputs"),
        ([(1, 0)], [1.0, 2.0], r"domain has the interval \(1, 0\): low < high is needed"),
        ([(0, math.inf)], [1.0, 2.0], r"domain has the interval \(0, inf\)"),
        ([(0, 1)], [1.0, math.nan], "values has 1 entries that are not finite, such as nan"),
    ],
)
def test_table_refuses(domain, values, message):
    with pytest.raises(ValueError, match=message):
        Table(domain, values)


@pytest.mark.parametrize("x", [torch.zeros(4, 2), torch.zeros(()), torch.zeros(4, 1).long()])
def test_table_refuses_points(x):
    with pytest.raises(ValueError, match=r"x is \(.*\), torch.*: pass floats \(…, 1\)"):
        Table([(0, 1)], [1.0, 2.0])(x)


# Losses


def test_losses_add_up_mean_squares():
    losses = Line().losses(None, {})
    assert {term: loss.item() for term, loss in losses.items()} == {"both": 9.0, "last": 12.5}
    assert all(loss.shape == () for loss in losses.values())


@given(exponent=st.integers(-12, 12))
def test_losses_over_scales(exponent):
    problem = Line()
    problem.size = 10.0**exponent
    losses = problem.losses(None, {})
    assert losses["both"].item() == pytest.approx(9 * problem.size**2, rel=1e-12)


def test_losses_follow_the_order_of_terms():
    problem = Line({"z": ["c"], "y": ["b"], "x": ["a"]})
    losses = problem.losses(None, {})
    assert {term: loss.item() for term, loss in losses.items()} == {"z": 12.5, "y": 4.0, "x": 5.0}
    assert list(losses) == ["z", "y", "x"]
    assert Line.terms == {"both": ("a", "b"), "last": ("c",)}


def test_default_split():
    assert {k: set(v) for k, v in KleinGordon().terms.items()} == {
        "data": {"boundary", "initial", "velocity"},
        "pde": {"pde"},
    }
    assert {k: set(v) for k, v in Helmholtz().terms.items()} == {
        "data": {"boundary"},
        "pde": {"pde"},
    }


def test_losses_of_the_split_add_up_to_the_two_terms():
    batch = KleinGordon().sample(16, seeded())
    model = network()
    two, four = (KleinGordon(terms).losses(model, batch) for terms in (None, SPLIT))
    assert list(two) == ["data", "pde"]
    assert list(four) == ["boundary", "initial", "velocity", "pde"]
    torch.testing.assert_close(two["data"], four["boundary"] + four["initial"] + four["velocity"])
    torch.testing.assert_close(two["pde"], four["pde"])


@pytest.mark.parametrize("problem_class", PROBLEMS)
def test_a_stack_equals_its_networks(problem_class):
    assert_stack_equals_networks(problem_class())


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"data": []}, r"term 'data' has residuals \[\]: pass a list of names"),
        ({"data": "pde"}, "term 'data' has residuals 'pde': pass a list of names"),
        ({"data": ["a", "b"], "pde": ["a"]}, r"residuals \['a'\] stand more than once"),
        ({"data": {"pde"}}, r"term 'data' has residuals \{'pde'\}: pass a list of names"),
        ({"data", "pde"}, "terms is {'.*: name the residuals of each term, in order, such as"),
        ({}, "terms is {}: name the residuals of each term"),
        (("data", "pde"), r"terms is \('data', 'pde'\): name the residuals"),
        ({"data": ["a", "a"]}, r"residuals \['a'\] stand more than once in terms: name each once"),
    ],
)
def test_problem_refuses_terms(terms, message):
    with pytest.raises(ValueError, match=message):
        KleinGordon(terms)


def test_losses_refuse_an_unknown_residual():
    problem = KleinGordon({"data": ["boundary", "edge"], "pde": ["pde"]})
    message = r"term 'data' names unknown residuals \['edge'\]: .* \['boundary', .*'velocity'\]"
    with pytest.raises(ValueError, match=message):
        problem.losses(network(problem.domain), problem.sample(8, seeded()))


def test_problem_needs_terms():
    class Without(Given):
        terms = None

    with pytest.raises(ValueError, match="terms is None: name the residuals of each term"):
        Without({})


def test_losses_refuse_a_residual_that_no_term_names():
    problem = KleinGordon({"data": ["boundary", "initial"], "pde": ["pde"]})
    message = r"residuals \['velocity'\] stand in no term, so nothing would make them zero"
    for compute in (problem.losses, problem.term_residuals):
        with pytest.raises(ValueError, match=message):
            compute(network(problem.domain), in_float64(problem.sample(8, seeded())))


def test_term_residuals_are_those_of_the_problem():
    problem = KleinGordon({"pde": ["pde"], "data": ["velocity", "boundary", "initial"]})
    model, batch = network(), in_float64(problem.sample(8, seeded()))
    by_term, by_name = problem.term_residuals(model, batch), problem.residuals(model, batch)
    assert list(by_term) == ["pde", "data"]
    for term, group in problem.terms.items():
        for r, name in zip(by_term[term], group, strict=True):
            assert torch.equal(r, by_name[name])


SHAPES = [(8,), (8, 8), (), (8, 2), (1, 8, 1), (8, 0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_refuse_a_residual_of_another_shape(shape):
    problem = Given({"r": torch.ones(shape)})
    message = rf"residual 'r' has shape {re.escape(str(shape))}: let it be \(N, 1\)"
    for compute in (problem.losses, problem.term_residuals):
        with pytest.raises(ValueError, match=message):
            compute(None, problem.sample(8, seeded()))


@pytest.mark.parametrize("shape", [(8, 1), (3, 8), (2, 8, 1), (3, 8, 8), (3, 8, 2), (3,), ()])
def test_losses_refuse_a_residual_of_another_stack(shape):
    problem = Given({"r": torch.ones(shape)})
    batch = {"all": torch.ones(3, 8, 1), "shared": torch.ones(5, 1), "factor": torch.ones(3)}
    message = rf"residual 'r' has shape {re.escape(str(shape))}: let it be \(3, N, 1\)"
    with pytest.raises(ValueError, match=message):
        problem.losses(None, batch)
    problem.given = {"r": torch.ones(3, 4, 1)}
    assert problem.losses(None, batch)["data"].tolist() == [1.0, 1.0, 1.0]


def test_losses_refuse_sets_of_two_stacks():
    problem = Given({"r": torch.ones(8, 1)})
    with pytest.raises(ValueError, match=r"sets have shapes .*'b': \(2, 8, 1\).*one M for all"):
        problem.losses(None, {"a": torch.ones(3, 8, 1), "b": torch.ones(2, 8, 1)})


def test_losses_refuse_what_is_no_tensor_by_name():
    with pytest.raises(TypeError, match=r"residuals\(\) returns a NoneType: return a dict"):
        Given(None).losses(None, {})
    with pytest.raises(TypeError, match="residual 'r' is a float: return a tensor"):
        Given({"r": 1.0}).losses(None, {})


def test_a_problem_may_have_two_outputs():
    class Pair(Problem):
        variables, domain = ("x", "y"), ((0.0, 1.0), (0.0, 1.0))
        terms = {"pde": ["divergence", "difference"]}

        def sample(self, n, generator):
            return {"pde": uniform(self.domain, n, generator)}

        def residuals(self, model, batch):
            uv, (uv_x, uv_y), _ = self.derivatives(model, batch["pde"], order=1)
            return {
                "divergence": uv_x[..., :1] + uv_y[..., 1:],
                "difference": uv[..., :1] - uv[..., 1:],
            }

    problem = Pair()
    batch = in_float64(problem.sample(8, seeded()))
    losses = problem.losses(lambda x: torch.cat([2 * x[:, :1], x[:, 1:]], dim=1), batch)
    difference = 2 * batch["pde"][:, 0] - batch["pde"][:, 1]
    torch.testing.assert_close(losses["pde"], 9 + difference.square().mean())


def test_table_forgives_rounding_and_no_more():
    """A thousandth of a cell."""
    table = Table([(0, 3)], torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    x = torch.tensor([-0.0015, -0.0005, 3.0005, 3.0015], dtype=torch.float64)[:, None]
    assert table(x).isnan().flatten().tolist() == [True, False, False, True]
