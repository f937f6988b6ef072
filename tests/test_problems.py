import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pinnlib.derivatives import nested
from pinnlib.networks import MLP, StackedMLP
from pinnlib.problems import Helmholtz, KleinGordon, Problem

pytestmark = pytest.mark.usefixtures("nothing_hidden")

PROBLEMS = [KleinGordon, Helmholtz]
SPLIT = {name: [name] for name in ("boundary", "initial", "velocity", "pde")}
BOUNDARY = {  # the faces where each set of points must lie: (column, value)
    KleinGordon: {"boundary": [(0, 0.0), (0, 1.0)], "initial": [(1, 0.0)]},
    Helmholtz: {"boundary": [(0, -1.0), (0, 1.0), (1, -1.0), (1, 1.0)]},
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def in_float64(batch):
    return {name: x.double() for name, x in batch.items()}


def network(problem, seed=0):
    return MLP(problem.domain, width=6, depth=2, generator=seeded(seed)).double()


class Line(Problem):
    """A problem with one input whose residuals are given numbers."""

    variables = ("x",)
    domain = ((0.0, 2.0),)
    terms = {"both": ("a", "b"), "last": ("c",)}
    values = {"a": [1.0, 3.0], "b": [2.0, 2.0], "c": [5.0, 0.0]}
    size = 1.0

    def sample(self, n, generator):
        return {"all": self._interior(n, generator)}

    def residuals(self, model, batch):
        return {
            name: self.size * torch.tensor(values, dtype=torch.float64)[:, None]
            for name, values in self.values.items()
        }

    def exact(self, x):
        return x


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
    x = problem._interior(50, seeded()).double()
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


@pytest.mark.parametrize("problem_class", PROBLEMS)
def test_derivatives_are_exchangeable(problem_class):
    calls = []

    def counted(model, x, order=2):
        calls.append(order)
        return nested(model, x, order)

    problem, plain = problem_class(derivatives=counted), problem_class()
    batch = plain.sample(8, seeded())
    losses, expected = (p.losses(network(plain), batch) for p in (problem, plain))
    assert losses == expected
    assert 2 in calls


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
    for name, faces in BOUNDARY[problem_class].items():
        counts = [(batch[name][:, column] == value).sum().item() for column, value in faces]
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
    for name, faces in BOUNDARY[problem_class].items():
        scaled = (batch[name] - low) / (high - low)
        for column, value in faces:
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


def test_grid_is_regular():
    x = KleinGordon().grid(3)
    values = [0.0, 0.5, 1.0]
    assert x.tolist() == [[a, b] for a in values for b in values]
    assert Line().grid(3).tolist() == [[0.0], [1.0], [2.0]]
    assert KleinGordon().grid().shape == (100 * 100, 2)


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
    model = network(KleinGordon())
    two, four = (KleinGordon(terms).losses(model, batch) for terms in (None, SPLIT))
    assert list(two) == ["data", "pde"]
    assert list(four) == ["boundary", "initial", "velocity", "pde"]
    torch.testing.assert_close(two["data"], four["boundary"] + four["initial"] + four["velocity"])
    torch.testing.assert_close(two["pde"], four["pde"])


@pytest.mark.parametrize("problem_class", PROBLEMS)
def test_losses_of_a_stack_equal_its_networks(problem_class):
    problem = problem_class()
    models = [network(problem, seed) for seed in range(3)]
    batches = [in_float64(problem.sample(8, seeded(seed))) for seed in range(3)]
    stacked = {name: torch.stack([b[name] for b in batches]) for name in batches[0]}
    losses = problem.losses(StackedMLP(models), stacked)
    for s, (model, batch) in enumerate(zip(models, batches, strict=True)):
        for term, loss in problem.losses(model, batch).items():
            assert losses[term].shape == (3,)
            torch.testing.assert_close(losses[term][s], loss)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"data": []}, r"term 'data' has residuals \[\]: pass a list of names"),
        ({"data": "pde"}, "term 'data' has residuals 'pde': pass a list of names"),
        ({"data": ["a", "b"], "pde": ["a"]}, r"residuals \['a'\] stand more than once"),
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
        problem.losses(network(problem), problem.sample(8, seeded()))
