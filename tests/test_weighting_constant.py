import math
import re

import pytest
import torch
from helpers import rows

from pinnlib.weighting import Balancer, Constant, Seen
from pinnlib.weighting.balancer import as_balancer

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def constant(values, G):
    return Balancer(["data", "pde"], values).update(G)


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ({"data": 2.0, "pde": 3}, [2.0, 3.0]),
        ({"pde": 1e12, "data": 1e-12}, [1e-12, 1e12]),
        ({"data": 0.0, "pde": torch.tensor(5.0)}, [0.0, 5.0]),
        ({"data": torch.tensor(2.0, requires_grad=True), "pde": True}, [2.0, 1.0]),
    ],
)
@pytest.mark.parametrize("stack", [(), (3,)])
def test_weights_are_those_given_at_every_step(values, weights, stack):
    balancer = Balancer(["data", "pde"], values)
    for step in range(3):
        found = balancer.update(rows(1.0, 10.0**step).expand(*stack, 2, 3))
        assert found.dtype == torch.float64
        assert not found.requires_grad
        assert torch.equal(found, torch.tensor(weights, dtype=torch.float64).expand(*stack, 2))


def test_a_stack_can_have_weights_of_its_own():
    values = {"data": 1.0, "pde": torch.tensor([1.0, 10.0, 0.0])}
    found = constant(values, rows(1.0, 1.0).expand(3, 2, 3))
    assert found.tolist() == [[1.0, 1.0], [1.0, 10.0], [1.0, 0.0]]


@pytest.mark.parametrize("stack", [(), (2,), (3, 1)])
def test_a_weight_for_another_number_of_networks_is_refused(stack):
    values = {"data": 1.0, "pde": torch.ones(3)}
    message = r"weight of 'pde' has shape \(3,\), for a stack .* of networks: pass a number, or one"
    with pytest.raises(ValueError, match=message):
        constant(values, rows(1.0, 1.0).expand(*stack, 2, 3))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (math.nan, ValueError, "weight of 'pde' is nan: pass a finite number that is not negative"),
        (math.inf, ValueError, "weight of 'pde' is inf: pass a finite number"),
        (-1e-9, ValueError, "weight of 'pde' is -1e-09: pass a finite number that is not negative"),
        (torch.tensor([1.0, math.nan]), ValueError, r"weight of 'pde' is tensor\(\[1., nan\]\)"),
        (torch.tensor([1.0, -1.0]), ValueError, r"weight of 'pde' is tensor\(\[ 1., -1.\]\)"),
        (
            torch.ones(2, 1),
            ValueError,
            r"weight of 'pde' has shape \(2, 1\): pass a number, or \(M",
        ),
        (torch.ones(0), ValueError, r"weight of 'pde' has shape \(0,\): pass a number"),
        ("1.0", TypeError, "weight of 'pde' is '1.0': pass a number"),
        (None, TypeError, "weight of 'pde' is None: pass a number"),
        (1j, TypeError, "weight of 'pde' is 1j: pass a number"),
        ({"x": 1.0}, TypeError, "weight of 'pde' is {'x': 1.0}: pass a number"),
    ],
)
def test_weights_are_checked(value, error, message):
    for make in (Constant, as_balancer):
        with pytest.raises(error, match=message):
            make({"data": 1.0, "pde": value})


@pytest.mark.parametrize("kind", [dict, Constant])
@pytest.mark.parametrize(
    ("names", "missing", "unknown"),
    [
        (["data"], ["pde"], []),
        (["data", "pde", "x"], [], ["x"]),
        (["PDE", "data"], ["pde"], ["PDE"]),
    ],
)
def test_there_is_a_weight_for_each_term(kind, names, missing, unknown):
    message = f"terms {missing} are missing and {unknown} are unknown: pass exactly ['data', 'pde']"
    with pytest.raises(ValueError, match=re.escape(message)):
        Balancer(["data", "pde"], kind(dict.fromkeys(names, 1.0)))


def test_values_are_copies():
    values = {"data": 1.0, "pde": torch.tensor([2.0])}
    rule = Constant(values)
    values["data"] = math.nan
    values["pde"].zero_()
    seen = Seen(["data", "pde"], torch.ones(1, 2))
    assert rule(seen, {})[0].tolist() == [[1.0, 2.0]]


def test_numbers_stay_on_the_cpu_whatever_the_default_device():
    G = rows(1.0, 1.0)
    with torch.device("meta"):  # where no tensor has a value
        found = constant({"data": 2.0, "pde": 3.0}, G)
    assert found.tolist() == [2.0, 3.0]


def test_weights_of_a_stack_go_where_the_gradients_live():
    seen = Seen(["data", "pde"], torch.ones(1, 2, device="meta"))
    weights, _ = Constant({"data": 1.0, "pde": torch.tensor([2.0])})(seen, {})
    assert (weights.device, weights.dtype) == (seen.weights.device, torch.float32)


def test_weights_are_cut_from_the_graph_they_came_with():
    pde = torch.tensor([2.0], requires_grad=True)
    rule = Constant({"data": torch.tensor(1.0, requires_grad=True), "pde": 3 * pde})
    weights, _ = rule(Seen(["data", "pde"], torch.ones(1, 2)), {})
    assert not weights.requires_grad
    assert weights.tolist() == [[1.0, 6.0]]


def test_what_a_rule_holds_is_its_own():
    pde = torch.tensor([2.0], dtype=torch.float64)  # taken over without a conversion
    rule = Constant({"data": 1.0, "pde": pde})
    pde.zero_()
    assert rule(Seen(["data", "pde"], torch.ones(1, 2)), {})[0].tolist() == [[1.0, 2.0]]
