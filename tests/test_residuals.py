import re

import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st

from pinnlib.residuals import (
    check_by_name,
    check_differentiable,
    check_finite_losses,
    check_names,
    check_residual,
    check_terms,
    losses_of,
    mean_squares,
)

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def residuals(*sizes, stack=()):
    return [torch.randn(*stack, n, 1, generator=seeded(n), dtype=torch.float64) for n in sizes]


@given(exponent=st.integers(-12, 12))
def test_mean_squares_over_scales(exponent):
    size, group = 10.0**exponent, residuals(5, 9)
    expected = sum((r.numpy() ** 2).mean() for r in group)
    got = mean_squares([size * r for r in group])
    assert got.shape == ()
    assert got.item() == pytest.approx(size**2 * expected, rel=1e-12)


def test_mean_squares_of_a_stack():
    group = residuals(5, 9, stack=(3,))
    expected = torch.stack([mean_squares([r[m] for r in group]) for m in range(3)])
    torch.testing.assert_close(mean_squares(group), expected)


def test_losses_are_mean_squares_of_residuals_or_as_they_come():
    group, loss = residuals(5, 9), torch.tensor(2.0)
    losses = losses_of({"pde": group, "data": loss, "edge": tuple(group[:1])})
    assert list(losses) == ["pde", "data", "edge"]
    assert losses["data"] is loss
    assert torch.equal(losses["pde"], mean_squares(group))
    assert torch.equal(losses["edge"], mean_squares(group[:1]))
    stacked = losses_of({"pde": residuals(5, stack=(3,)), "data": torch.ones(3)}, (3,))
    assert [tuple(loss.shape) for loss in stacked.values()] == [(3,), (3,)]


@pytest.mark.parametrize("shape", [(), (8,), (8, 8), (8, 2), (2, 8, 1), (8, 0)])
def test_a_residual_of_another_shape_is_refused(shape):
    message = (
        rf"residual 'pde\[1\]' has shape {re.escape(str(shape))}: let it be \(N, 1\), a number"
    )
    with pytest.raises(ValueError, match=message):
        losses_of({"pde": [torch.ones(8, 1), torch.ones(shape)]})


@pytest.mark.parametrize("shape", [(8, 1), (3, 8), (2, 8, 1), (3, 8, 3), (3, 1, 8, 1)])
def test_a_residual_of_another_stack_is_refused(shape):
    check_residual("r", torch.ones(3, 8, 1), (3,))
    with pytest.raises(ValueError, match=r"residual 'r' has shape .*: let it be \(3, N, 1\)"):
        check_residual("r", torch.ones(shape), (3,))


def test_a_residual_without_points_is_refused():
    with pytest.raises(ValueError, match=r"residual 'pde\[0\]' has no point: sample 1 or more"):
        losses_of({"pde": [torch.ones(0, 1)]})


@pytest.mark.parametrize("value", [None, 1.0, [], (), {"r": torch.ones(8, 1)}, "pde"])
def test_a_term_that_is_neither_is_refused(value):
    with pytest.raises(TypeError, match=r"(?s)loss 'pde' is .*: pass a scalar tensor with"):
        losses_of({"pde": value})
    with pytest.raises(TypeError, match=r"residual 'pde\[0\]' is a float: return a tensor"):
        losses_of({"pde": [1.0]})


# Checks of losses


def graph(value):
    return torch.tensor(value, requires_grad=True) * 1


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ({}, ValueError, "losses is empty: pass one scalar loss for each term"),
        ({"pde": 1.0}, TypeError, "loss 'pde' is 1.0: pass a scalar tensor with a graph"),
        ({"pde": torch.tensor(1.0)}, ValueError, r"loss 'pde' has no graph \(requires_grad=False"),
        ({"pde": graph([1.0, 2.0])}, ValueError, r"loss 'pde' has shape \(2,\): reduce it to a sc"),
        ({"pde": graph(1j)}, ValueError, r"loss 'pde' is complex \(torch.complex64\)"),
    ],
)
def test_losses_without_a_graph_or_a_scalar_are_refused(losses, error, message):
    check_differentiable({"data": graph(1.0), "edge": graph([1.0])})
    with pytest.raises(error, match=message):
        check_differentiable(losses and {"data": graph(1.0), **losses})


@pytest.mark.parametrize("value", [1.0, [1.0], [[1.0, 2.0, 3.0]]])
def test_losses_of_a_stack_have_one_value_for_each_network(value):
    check_differentiable({"pde": graph([1.0, 2.0, 3.0])}, (3,))
    with pytest.raises(ValueError, match=r"reduce it to one scalar for each network, \(3,\)"):
        check_differentiable({"pde": graph(value)}, (3,))


def test_inference_mode_is_named():
    losses = {"pde": graph(1.0)}
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode is on"):
        check_differentiable(losses)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_losses_that_are_not_finite_are_refused(value):
    check_finite_losses({"data": torch.tensor(1e30)})
    with pytest.raises(ValueError, match=f"loss 'pde' is {value}: lower the learning rate"):
        check_finite_losses({"data": torch.tensor(1.0), "pde": torch.tensor(value)})
    with pytest.raises(ValueError, match=rf"loss 'pde' is \[1.0, {value}\]"):
        check_finite_losses({"pde": torch.tensor([1.0, value])})


# Checks of names


def test_names_are_a_list_of_different_strings():
    check_names(["data", "pde"])
    for terms in ("data", {"data"}, frozenset({"data"}), [1, 2]):
        with pytest.raises(TypeError, match=r"terms is .*: pass a list of names"):
            check_names(terms)
    with pytest.raises(ValueError, match="terms is empty"):
        check_names([])
    with pytest.raises(ValueError, match=r"terms names \['a'\] more than once"):
        check_names(["a", "b", "a"])


def test_terms_have_the_names_that_they_should():
    check_terms(["pde", "data"], ["data", "pde"])
    message = r"terms \['pde'\] are missing and \['PDE', 'x'\] are unknown: .*\['data', 'pde'\]"
    with pytest.raises(ValueError, match=message):
        check_terms(iter(["PDE", "data", "x"]), iter(["data", "pde"]))
    with pytest.raises(ValueError, match=r"and \[0, 1\] are unknown: .*\['data', 'pde'\]"):
        check_terms([0, 1], ["data", "pde"])


def test_losses_come_by_name():
    check_by_name({"pde": 1.0, "data": 2.0}, ("data", "pde"))
    for losses in (torch.ones(2), [1.0, 2.0], ["data", "pde"]):
        with pytest.raises(TypeError, match=r"no names: .* a loss for each of \['data', 'pde'\]"):
            check_by_name(losses, ("data", "pde"))
    with pytest.raises(ValueError, match=r"terms \['pde'\] are missing and \[\] are unknown"):
        check_by_name({"data": 1.0}, ("data", "pde"))
