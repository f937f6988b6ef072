import math

import pytest
import torch
from helpers import rows, seeded

from pinnlib import GradientBalancer
from pinnlib.gradients import mean_abs
from pinnlib.residuals import NotFiniteError
from pinnlib.weighting import (
    Balancer,
    Constant,
    Follow,
    Ratio,
    Rule,
    Seen,
)
from pinnlib.weighting.balancer import as_balancer

pytestmark = pytest.mark.usefixtures("nothing_hidden")

CPU = torch.device("cpu")


def balancer_of(*, every=1, **settings):
    return Balancer(["data", "pde"], Follow(Ratio(), **settings), every=every)


class Own(Rule):
    """A rule made of a function."""

    def __init__(self, function):
        self.function = function

    def __call__(self, seen, state):
        return self.function(seen), state


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"terms": "data"}, TypeError, "terms is 'data': pass a list of names, in the order of th"),
        ({"terms": {"data", "pde"}}, TypeError, "terms is {'.*'}: pass a list of names"),
        ({"terms": frozenset(["a"])}, TypeError, "terms is frozenset.*: pass a list of names"),
        ({"terms": ["data", 1]}, TypeError, r"terms is \['data', 1\]: pass a list of names"),
        ({"terms": []}, ValueError, "terms is empty: pass the names of the loss terms"),
        ({"terms": ["data", "pde", "data"]}, ValueError, r"terms names \['data'\] more than once"),
        ({"terms": ["a", "b"]}, ValueError, r"reference 'data' is not a term: choose one of \['a'"),
        ({"rule": mean_abs}, TypeError, r"rule is <function .*: pass a rule, such as Follow\("),
        ({"rule": Ratio}, TypeError, "rule is <class .*: pass a rule"),
        ({"rule": None}, TypeError, "rule is None: pass a rule"),
        ({"rule": [1.0, 1.0]}, TypeError, r"rule is \[1.0, 1.0\]: pass a rule, .* or a dict"),
        ({"every": 0}, ValueError, "every is 0: update the weights every 1 or more steps"),
        ({"every": -3}, ValueError, "every is -3: update"),
        ({"every": 2.5}, TypeError, "every is 2.5: pass a whole number of steps"),
        ({"every": math.nan}, TypeError, "every is nan: pass a whole number"),
        ({"every": math.inf}, TypeError, "every is inf: pass a whole number"),
        ({"every": "10"}, TypeError, "every is '10': pass a whole number"),
        ({"every": None}, TypeError, "every is None: pass a whole number"),
        ({"every": True}, TypeError, "every is True: pass a whole number"),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    arguments = {"terms": ["data", "pde"], "rule": Follow(Ratio())} | arguments
    for kind in (Balancer, GradientBalancer):
        with pytest.raises(error, match=message):
            kind(**arguments)


@pytest.mark.parametrize("name", ["terms", "rule", "every", "due"])
def test_settings_cannot_be_changed(name):
    balancer = balancer_of()
    with pytest.raises(AttributeError):
        setattr(balancer, name, getattr(balancer, name))


def test_settings_are_shown():
    terms = ["data", "pde"]
    balancer = GradientBalancer(terms, Constant({"data": 1.0, "pde": 2.0}), every=3)
    terms.append("edge")
    assert balancer.terms == ("data", "pde")
    assert repr(balancer) == (
        "GradientBalancer(['data', 'pde'], Constant(values={'data': 1.0, 'pde': 2.0}), every=3)"
    )
    assert repr(balancer_of(alpha=0.25)).startswith("Balancer(['data', 'pde'], Follow(rule=Ratio(")


def test_as_balancer():
    balancer = balancer_of()
    assert as_balancer(balancer) is balancer
    made = as_balancer({"pde": 2.0, "data": 1.0})
    assert (made.terms, made.every) == (("pde", "data"), 1)
    assert made.update(rows(1.0, 1.0)).tolist() == [2.0, 1.0]
    for wrong in (None, 1.0, Follow(Ratio()), ["data"]):
        with pytest.raises(TypeError, match=r"balancer is .*: pass a GradientBalancer, or weights"):
            as_balancer(wrong)
    with pytest.raises(ValueError, match="terms is empty"):
        as_balancer({})


def test_a_balancer_of_one_term():
    balancer = Balancer(["data"], Follow(Ratio()))
    assert balancer.update(rows(7.0)).tolist() == [1.0]


# One step


def test_all_weights_start_at_one():
    balancer = balancer_of()
    assert balancer.weights.tolist() == [1.0, 1.0]
    assert balancer.weights.dtype == torch.float64
    assert (balancer.step, balancer.due, balancer.failed.item()) == (0, True, -1)


def test_every():
    balancer = balancer_of(alpha=1.0, every=3)
    due = []
    weights = []
    for step in range(7):
        due.append(balancer.due)
        weights.append(balancer.update(rows(1.0, 2.0 ** (step + 1)))[1].item())
    assert weights == [1 / 2] * 3 + [1 / 16] * 3 + [1 / 128]
    assert due == [True, False, False] * 2 + [True]


def test_weights_are_detached_and_copied():
    balancer = balancer_of()
    weights = balancer.update(rows(1.0, 100.0).requires_grad_())
    assert not weights.requires_grad
    assert weights.dtype == torch.float64
    weights.zero_()
    assert balancer.weights.tolist() == pytest.approx([1.0, 0.109])


def test_target_changes_nothing():
    balancer = balancer_of(warm_start=True)
    before = repr(balancer.state_dict())
    assert balancer.target(rows(1.0, 100.0)).tolist() == pytest.approx([1.0, 0.01])
    assert repr(balancer.state_dict()) == before
    with pytest.raises(ValueError, match=r"shape \(3, 3\): it needs one row for each"):
        balancer.target(rows(1.0, 2.0, 3.0))


def test_a_rule_of_one_s_own_sees_everything():
    found = {}

    def look(seen: Seen):
        found.update(terms=seen.terms, weights=seen.weights, losses=seen.losses, G=seen.G)
        return seen.weights * seen.losses * seen.G.sum(dim=-1).requires_grad_()

    balancer = Balancer(["a", "b"], Own(look))
    G, losses = rows(1.0, 2.0).requires_grad_(), torch.tensor([2.0, 4.0])
    for _ in range(2):
        weights = balancer.update(G, losses)
        assert not found["G"].requires_grad
    assert weights.tolist() == [4.0, 64.0]
    assert (weights.dtype, weights.requires_grad) == (torch.float64, False)
    assert found["terms"] == ("a", "b")
    assert found["weights"].tolist() == [2.0, 8.0]
    assert torch.equal(found["losses"], losses)
    assert torch.equal(found["G"], G)
    assert balancer.target(G, losses).tolist() == [8.0, 512.0]
    assert not found["G"].requires_grad


# Errors


@pytest.mark.parametrize(
    ("G", "message"),
    [
        (rows(1.0, 2.0, 3.0), r"shape \(3, 3\): it needs one row for each of \['data', 'pde'\]"),
        (torch.ones(2), r"shape \(2,\): it needs one row for each"),
        (torch.ones(2, 0), r"shape \(2, 0\): it needs .* a column for each parameter"),
        (rows(1.0, math.nan), "gradient of loss 'pde' at step 1 has 3 of 3 .*nan: lower the lear"),
        (rows(math.inf, 1.0), "gradient of loss 'data' at step 1 has 3 of 3 .* as inf: lower the"),
        (rows(1.0, 1.0).expand(2, 2, 3), r"the weights of a stack \(\), not of \(2,\): make a new"),
    ],
)
@pytest.mark.parametrize("every", [1, 10])
def test_update_refuses_and_changes_nothing(refused, G, message, every):
    balancer = balancer_of(every=every, warm_start=True)
    balancer.update(rows(1.0, 2.0))
    with refused(balancer, match=message):
        balancer.update(G)
    assert balancer.update(rows(1.0, 2.0)).isfinite().all()


@pytest.mark.parametrize("G", [torch.ones(2, 3).long(), torch.ones(2, 3).numpy(), [[1.0], [2.0]]])
def test_what_is_no_matrix_of_real_numbers_is_refused(G):
    for method in (balancer_of().update, balancer_of().target):
        with pytest.raises(TypeError, match=r"G is a .*: pass a tensor of real"):
            method(G)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("k", [0, 1])
def test_a_rule_s_weights_are_finite(refused, value, k):
    weights = torch.ones(2).index_fill(0, torch.tensor(k), value)
    balancer = Balancer(["data", "pde"], Own(lambda seen: weights))
    message = f"weight of '{['data', 'pde'][k]}' at step 0 would be {value}: the rule met"
    with refused(balancer, match=message):
        balancer.update(rows(1.0, 2.0))
    with pytest.raises(NotFiniteError):
        balancer.update(rows(1.0, 2.0))


def test_of_a_stack_the_first_term_is_named():
    weights = torch.ones(3, 2)
    weights[2, 1] = math.inf
    with pytest.raises(NotFiniteError, match=r"weight of 'pde' .* would be \[1.0, 1.0, inf\]"):
        Balancer(["data", "pde"], Own(lambda seen: weights)).update(torch.ones(3, 2, 4))


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (torch.ones(3), r"\(3,\)"),
        (torch.tensor(1.0), r"\(\)"),
        (torch.ones(1, 2), r"\(1, 2\)"),
        (1.0, "1.0"),
        ([1.0, 2.0], r"\[1.0, 2.0\]"),
        (None, "None"),
    ],
)
def test_a_rule_returns_a_weight_for_each_term(refused, found, shown):
    balancer = Balancer(["data", "pde"], Own(lambda seen: found))
    with refused(balancer, match=rf"the rule returned {shown}: let it return weights \(2,\)"):
        balancer.update(rows(1.0, 2.0))


@pytest.mark.parametrize(
    "answer",
    [torch.ones(2), torch.ones(3), None, (torch.ones(2),), (torch.ones(2), None), (1.0, {}, {})],
)
def test_a_rule_returns_weights_and_state(answer):
    class Wrong(Rule):
        def __call__(self, seen, state):
            return answer

    balancer = Balancer(["data", "pde"], Wrong())
    with pytest.raises(TypeError, match=r"the rule returned .*: let it return \(weights, state\)"):
        balancer.update(rows(1.0, 2.0))
    assert balancer.step == 0


# Stacks and devices


@pytest.mark.parametrize("first", [(), (2,), (2, 3)])
@pytest.mark.parametrize("other", [(), (2,), (3,), (3, 2)])
def test_a_balancer_keeps_to_one_stack(refused, first, other):
    balancer = balancer_of(warm_start=True)
    G = torch.rand(2, 3, generator=seeded())
    balancer.update(G.expand(*first, 2, 3))
    assert balancer.weights.shape == balancer.state["first"].shape == (*first, 2)
    assert balancer.failed.shape == first
    if first == other:
        assert balancer.update(G.expand(*other, 2, 3)).shape == (*other, 2)
        return
    message = "holds the weights of a stack .*, not of .*: make a new one for each training"
    with refused(balancer, match=message):
        balancer.update(G.expand(*other, 2, 3))


def test_a_stack_starts_from_the_weights_that_are_there():
    balancer = balancer_of()
    balancer.weights = torch.tensor([1.0, 5.0], dtype=torch.float64)
    balancer.place((3,), CPU)
    assert balancer.weights.tolist() == [[1.0, 5.0]] * 3
    balancer.weights[0] = 7.0
    assert balancer.weights[1].tolist() == [1.0, 5.0]  # rows of their own


def test_a_stack_that_was_placed_keeps_its_size_before_the_first_step(refused):
    balancer = balancer_of()
    balancer.place((2,), CPU)
    with refused(balancer, match=r"a stack \(2,\), not of \(3,\)"):
        balancer.update(rows(1.0, 2.0).expand(3, 2, 3))


def test_place_moves_all_that_is_remembered():
    balancer = GradientBalancer.simplified(bounds=(0.1, 10))
    balancer.update(rows(1.0, 2.0))
    balancer.state["counter"] = torch.tensor(3)
    weights = balancer.weights
    balancer.place((), CPU)
    assert balancer.weights is weights  # nothing to do
    balancer.place((), torch.device("meta"))
    found = [balancer.weights, balancer.failed, *balancer.state.values()]
    assert {x.device.type for x in found} == {"meta"}
    assert [x.dtype for x in found] == [torch.float64, torch.int64, torch.float64, torch.int64]
    balancer = balancer_of()
    balancer.place((), torch.device("meta"))
    balancer.place((3,), torch.device("meta"))
    assert (balancer.failed.shape, balancer.failed.device.type) == ((3,), "meta")


def test_a_failed_step_is_told_when_somebody_asks():
    balancer = balancer_of()
    balancer.check()
    by_term = balancer.by_term()
    balancer.failed = torch.tensor(4)
    for ask in (balancer.check, balancer.state_dict, by_term.__repr__, lambda: by_term["data"]):
        with pytest.raises(NotFiniteError, match="a loss, gradient or weight at step 4 was not"):
            ask()
    balancer.failed = torch.tensor(0)
    with pytest.raises(NotFiniteError, match="at step 0 "):
        balancer.check()
    balancer.failed = torch.tensor([4, -1])  # of a stack: the others go on
    balancer.check()


def test_a_saved_state_is_a_copy():
    balancer = Balancer(["data", "pde"], Follow(Ratio(), warm_start=True))
    balancer.update(rows(1.0, 8.0))
    weights, first = balancer.weights.clone(), balancer.state["first"].clone()
    saved = balancer.state_dict()
    saved["weights"].zero_()
    saved["state"]["first"].zero_()
    assert torch.equal(balancer.weights, weights)
    assert torch.equal(balancer.state["first"], first)
