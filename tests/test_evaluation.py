import numpy as np
import pytest
import torch
from helpers import module, network, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pinnlib import evaluation
from pinnlib.evaluation import (
    ErrorOnGrid,
    placement,
    predict,
    reference_values,
    relative_l2_error,
    relative_l2_errors,
)
from pinnlib.problems import Helmholtz, KleinGordon, Problem, Table, uniform

pytestmark = pytest.mark.usefixtures("nothing_hidden")


class Decay(Problem):
    variables, domain, terms = ("t",), ((0.0, 2.0),), {"pde": ["pde"]}
    size = 1.0

    def sample(self, n, generator):
        return {"pde": uniform(self.domain, n, generator)}

    def residuals(self, model, batch):
        return {"pde": model(batch["pde"])}

    def reference(self, x):
        return self.size * torch.exp(-x)


class Open(Decay):
    reference = None


def times(*factors):
    """A stack of M models, or one model, each a multiple of the solution."""
    scale = torch.tensor(factors).reshape(-1, 1, 1) if len(factors) > 1 else factors[0]
    return lambda x: scale * torch.exp(-x)


# The error


def test_error_in_closed_form():
    t = np.linspace(0, 2, 5, dtype=np.float32)
    expected = np.linalg.norm(t - np.exp(-t)) / np.linalg.norm(np.exp(-t))
    assert relative_l2_error(lambda x: x, Decay(), n=5) == pytest.approx(expected, rel=1e-6)
    assert relative_l2_error(Decay().reference, Decay()) == 0.0
    assert relative_l2_error(lambda x: 0 * x, Decay()) == 1.0
    assert type(relative_l2_error(lambda x: x, Decay())) is float


@given(exponent=st.integers(-12, 12), factor=st.floats(0, 10))
def test_error_over_scales(exponent, factor):
    problem = Decay()
    problem.size = 10.0**exponent
    error = relative_l2_error(lambda x: factor * problem.reference(x), problem)
    assert error == pytest.approx(abs(factor - 1), rel=1e-4, abs=1e-6)


@given(angle=st.floats(0, 6))
def test_error_of_two_outputs_does_not_change_when_they_are_turned(angle):
    c, s = np.cos(angle), np.sin(angle)
    turn = torch.tensor([[c, s], [-s, c]], dtype=torch.float32)

    def solution(x):
        return torch.cat([torch.cos(x[:, :1]), 3 * torch.sin(x[:, 1:])], dim=1)

    def model(x):
        return torch.cat([x[:, 1:], x[:, :1]], dim=1)

    plain = relative_l2_error(model, KleinGordon(reference=solution), n=9)
    turned = KleinGordon(reference=lambda x: solution(x) @ turn)
    assert relative_l2_error(lambda x: model(x) @ turn, turned, n=9) == pytest.approx(plain, 1e-5)


def test_error_of_two_outputs_in_closed_form():
    problem = KleinGordon(reference=lambda x: torch.ones(len(x), 2))
    offset = torch.tensor([3.0, 4.0])
    assert relative_l2_error(lambda x: 1 + offset.expand(len(x), 2), problem) == pytest.approx(
        np.sqrt((9 + 16) / 2)
    )


def test_outputs_that_have_no_reference_do_not_count():
    class Pair(KleinGordon):
        hidden = 2

    def solution(x):
        return torch.cat([x[..., :1], x[..., 1:] ** 2], dim=-1)

    def model(x):
        junk = torch.full((*x.shape[:-1], 2), torch.nan)
        return torch.cat([1.5 * solution(x), junk], dim=-1)

    problem = Pair(reference=solution)
    assert relative_l2_error(model, problem, n=9) == pytest.approx(0.5)
    assert relative_l2_error(solution, problem, n=9) == 0, "the reference alone"
    stack = relative_l2_errors(lambda x: torch.stack([model(x), 2 * model(x)]), problem, n=9)
    torch.testing.assert_close(stack, torch.tensor([0.5, 2.0]))
    message = "model has {} outputs, but the reference has 2, and 2 more may have none"
    for outputs in (1, 3, 5):
        with pytest.raises(ValueError, match=message.format(outputs)):
            relative_l2_error(lambda x, m=outputs: x[..., :1].expand(-1, m), problem)


def test_errors_of_a_stack():
    errors = relative_l2_errors(times(1.0, 1.5, 0.0), Decay())
    torch.testing.assert_close(errors, torch.tensor([0.0, 0.5, 1.0]))
    assert relative_l2_errors(times(1.5), Decay()).shape == ()
    with pytest.raises(ValueError, match=r"stack with errors \(2,\): use relative_l2_errors"):
        relative_l2_error(times(1.0, 2.0), Decay())


def test_a_network_that_diverged_does_not_hide_the_others():
    errors = relative_l2_errors(times(1.5, float("nan"), float("inf")), Decay())
    assert errors[0].item() == pytest.approx(0.5)
    assert errors[1].isnan()
    assert errors[2].isinf()
    assert np.isnan(relative_l2_error(times(float("nan")), Decay()))


@pytest.mark.parametrize("chunk", [1, 7, 100, 10**6])
def test_chunks_do_not_change_the_error(chunk, monkeypatch):
    model, problem = network(), KleinGordon()
    x = problem.grid(10, dtype=torch.float64)
    with torch.no_grad():
        expected = (model(x) - problem.exact(x)).norm() / problem.exact(x).norm()
    monkeypatch.setattr(evaluation, "CHUNK", chunk)
    assert relative_l2_error(model, problem, n=10) == pytest.approx(expected.item(), rel=1e-12)


def test_error_uses_100_points_an_input_in_chunks_and_no_graph():
    calls = []

    def model(x):
        calls.append((len(x), torch.is_grad_enabled()))
        return x[:, :1]

    relative_l2_error(model, KleinGordon())
    assert sum(n for n, _ in calls) == 100 * 100
    assert max(calls) == (500, False)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(network(Decay.domain), nn.Dropout()).eval()
    error = relative_l2_errors(model, Decay())
    assert not error.requires_grad
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    with torch.inference_mode():
        assert relative_l2_error(model, Decay()) == error.item()


# Where and in what precision


def test_placement_is_that_of_the_first_floating_parameter():
    assert placement(network()) == {"device": torch.device("cpu"), "dtype": torch.float64}
    model = nn.Linear(1, 1, device="meta")
    assert placement(model) == {"device": torch.device("meta"), "dtype": torch.float32}
    whole = nn.ParameterList([nn.Parameter(torch.tensor(1), requires_grad=False), model.weight])
    assert placement(whole) == placement(model)
    assert placement(nn.Tanh()) == placement(torch.exp) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_points_have_the_precision_of_the_model_and_the_reference_float32_or_more(dtype):
    seen = []

    def reference(x):
        seen.append(x.dtype)
        return torch.ones_like(x)

    def forward(x):
        seen.append(x.dtype)
        return torch.ones_like(x)

    error = relative_l2_error(module(forward, dtype), Decay(reference=reference))
    assert error == 0.0
    assert seen == [torch.promote_types(dtype, torch.float32), dtype]


def test_the_grid_is_made_where_the_model_lives():
    class Asked(Decay):
        def grid(self, n, *, device, dtype):
            where.append(device)
            return super().grid(n, dtype=dtype)

    where = []
    relative_l2_errors(module(torch.exp, torch.float64), Asked())
    ErrorOnGrid(Asked(), device="meta")
    assert where == [torch.device("cpu"), "meta"]


def test_error_in_float64_sees_what_float32_does_not():
    model = module(lambda x: (1 + 1e-10) * torch.exp(-x), torch.float64)
    error = relative_l2_error(model, Decay())
    assert error == pytest.approx(1e-10, rel=1e-4)


def test_error_on_a_grid_asks_for_the_reference_once():
    calls = []

    def reference(x):
        calls.append(len(x))
        return torch.exp(-x)

    error = ErrorOnGrid(Decay(reference=reference), n=30, dtype=torch.float64)
    assert error.points.dtype == error.reference.dtype == torch.float64
    assert error.points.shape == (30, 1)
    errors = [error(times(factor)).item() for factor in (1.0, 2.0, 3.0)]
    assert errors == pytest.approx([0.0, 1.0, 2.0])
    assert calls == [30]
    assert len(ErrorOnGrid(Decay()).points) == 100
    other = relative_l2_error(lambda x: 2 * x, Decay(), n=7)
    assert ErrorOnGrid(Decay(), 7, device="cpu")(lambda x: 2 * x).item() == other


# What is refused


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (lambda x: torch.exp(-x[:, 0]), r"reference maps \(9, 1\) to \(9,\): let it return \(N, m"),
        (lambda x: torch.exp(-x).sum(), r"reference maps \(9, 1\) to \(\)"),
        (lambda x: torch.exp(-x[1:]), r"reference maps \(9, 1\) to \(8, 1\)"),
        (lambda x: 0 * x, "the reference has the norm 0.0 on the grid: an error relative to it"),
        (lambda x: 1 / x, "reference of Decay has 1 values of 9 that are not finite, such as inf"),
        (
            Table([(0, 1)], [1.0, 2.0]),
            "has 4 values of 9 that are not finite, such as nan: it",
        ),
        (lambda x: 1e30 * x, "the reference has the norm inf"),
    ],
)
def test_a_reference_is_refused(reference, message):
    for measure in (relative_l2_error, relative_l2_errors):
        with pytest.raises(ValueError, match=message):
            measure(lambda x: x, Decay(reference=reference), n=9)


def test_a_reference_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="reference returns a ndarray: let it return a tensor"):
        relative_l2_error(lambda x: x, Decay(reference=lambda x: np.exp(-x.numpy())))


def test_a_problem_without_a_reference_has_no_error():
    message = r"Open has no reference solution: pass Open\(reference=…\), a function of points"
    for measure in (relative_l2_error, relative_l2_errors):
        with pytest.raises(ValueError, match=message):
            measure(lambda x: x, Open())
    assert relative_l2_error(lambda x: x, Open(reference=lambda x: x)) == 0.0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: torch.exp(-x[:, 0]), r"model maps \(9, 1\) to \(9,\): let it return \(N, m\)"),
        (lambda x: torch.exp(-x).mean(), r"model maps \(9, 1\) to \(\)"),
        (lambda x: torch.exp(-x)[:1], r"model maps \(9, 1\) to \(1, 1\)"),
        (lambda x: torch.exp(-x).expand(9, 2), "model has 2 outputs, but the reference has 1$"),
    ],
)
def test_a_model_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        relative_l2_error(model, Decay(), n=9)


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="model returns a tuple: let it return a tensor"):
        relative_l2_error(lambda x: (x, x), Decay())


# The parts


def test_reference_values_are_those_of_the_problem():
    x = Helmholtz().grid(5)
    assert torch.equal(reference_values(Helmholtz(), x), Helmholtz().exact(x))
    w = torch.ones(1, requires_grad=True)
    problem = Decay(reference=lambda x: w * x)
    assert not reference_values(problem, x[:, :1]).requires_grad


def test_predictions_are_those_of_the_model():
    x = uniform([(0, 1)], 4, seeded())
    assert torch.equal(predict(torch.sin, x, 1, hidden=0), torch.sin(x))
    assert predict(times(1.0, 2.0), x, 1, hidden=0).shape == (2, 4, 1)
    both = predict(lambda x: torch.cat([x, -x], dim=1), x, 1, hidden=1)
    assert torch.equal(both, x)
