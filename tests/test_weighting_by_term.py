import pytest
import torch
from helpers import rows

from pinnlib.weighting import Balancer, ByTerm, Follow, Ratio

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def test_by_term_is_a_dictionary_of_the_weights_at_that_time():
    balancer = Balancer(["data", "pde"], Follow(Ratio(), alpha=1.0))
    balancer.update(rows(1.0, 2.0))
    by_term = balancer.by_term()
    balancer.update(rows(1.0, 8.0))
    assert by_term == {"data": 1.0, "pde": 0.5}
    assert balancer.by_term() == {"data": 1.0, "pde": 0.125}
    assert (list(by_term), len(by_term), by_term["pde"]) == (["data", "pde"], 2, 0.5)
    assert repr(by_term) == "{'data': 1.0, 'pde': 0.5}"
    with pytest.raises(KeyError):
        by_term["edge"]


def test_by_term_of_a_stack_has_lists():
    by_term = ByTerm(["a", "b"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]), check=lambda: None)
    assert dict(by_term) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_by_term_waits_until_somebody_looks_and_not_again():
    weights, checks = torch.tensor([1.0, 2.0]), []
    by_term = ByTerm(["a", "b"], weights, check=lambda: checks.append(1))
    weights.zero_()
    assert (list(by_term), len(by_term), len(checks)) == (["a", "b"], 2, 0)
    assert by_term["b"] == 2.0
    assert by_term == {"a": 1.0, "b": 2.0}
    assert len(checks) == 1
