import math

import pytest
import torch
from helpers import network, rows, seeded

from pinnlib import GradientBalancer
from pinnlib.gradients import l2_norm, max_abs, mean_abs
from pinnlib.residuals import NotFiniteError
from pinnlib.weighting import (
    Balancer,
    ByTerm,
    Constant,
    Follow,
    LayerMax,
    LayerMeans,
    Ratio,
    Rule,
    Seen,
    as_balancer,
    logarithmic_average,
    mean_of_terms,
)

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
    G, losses = rows(1.0, 2.0), torch.tensor([2.0, 4.0])
    for _ in range(2):
        weights = balancer.update(G, losses)
    assert weights.tolist() == [4.0, 64.0]
    assert (weights.dtype, weights.requires_grad) == (torch.float64, False)
    assert found["terms"] == ("a", "b")
    assert found["weights"].tolist() == [2.0, 8.0]
    assert torch.equal(found["losses"], losses)
    assert torch.equal(found["G"], G)
    assert balancer.target(G, losses).tolist() == [8.0, 512.0]


def test_what_is_not_there_is_named():
    losses = Balancer(["a", "b"], Own(lambda seen: seen.losses))
    with pytest.raises(ValueError, match="this rule looks at the losses: pass them beside G"):
        losses.update(rows(1.0, 1.0))
    seen = Seen(["a"], torch.ones(1))
    with pytest.raises(ValueError, match="this rule looks at the gradient matrix: pass it"):
        _ = seen.G
    with pytest.raises(NotImplementedError):
        Rule()(seen, {})


def test_rows_are_measured_at_the_first_look_and_once():
    looks = []
    used = torch.ones(1, 2, dtype=torch.bool)

    def measure():
        looks.append(1)
        return torch.ones(1, 2), used

    seen = Seen(["a"], torch.ones(1), rows=measure)
    assert not seen.has_measured_rows
    assert not looks
    assert (seen.G.shape, seen.used) == ((1, 2), used)
    assert seen.has_measured_rows
    assert len(looks) == 1


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


# Weights by term


def test_by_term_is_a_dictionary_of_the_weights_at_that_time():
    balancer = balancer_of(alpha=1.0)
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


# The published rules


def test_published_rules_have_their_published_settings():
    named = list(network().named_parameters())
    rules = [
        GradientBalancer.simplified(),
        GradientBalancer.preprint(),
        GradientBalancer.journal(named_params=named),
        GradientBalancer.jaxpi(),
    ]
    assert {type(b) for b in rules} == {GradientBalancer}
    assert {b.terms for b in rules} == {("data", "pde")}
    assert [b.every for b in rules] == [1, 10, 10, 1000]
    assert [b.rule.alpha for b in rules] == [0.9, 0.9, 0.1, 0.1]
    assert not any(b.rule.warm_start or b.rule.bounds for b in rules)
    ratios = [b.rule.rule for b in rules]
    assert [r.reference for r in ratios] == ["data", "pde", "pde", mean_of_terms]
    assert [r.weighted for r in ratios] == [False, False, True, False]
    statistics = [(r.statistic, r.reference_statistic) for r in ratios]
    assert statistics[:2] == [(mean_abs, None), (mean_abs, max_abs)]
    assert list(map(type, statistics[2])) == [LayerMeans, LayerMax]
    assert statistics[3] == (l2_norm, None)


@pytest.mark.parametrize("name", ["simplified", "preprint", "journal", "jaxpi"])
def test_published_rules_take_settings_and_another_reference(name):
    named = [("weight", torch.zeros(3, 1, requires_grad=True))]
    more = {"named_params": named} if name == "journal" else {}
    balancer = getattr(GradientBalancer, name)(
        ("pde", "edge"),
        "edge",
        every=7,
        alpha=0.2,
        average=logarithmic_average,
        warm_start=True,
        bounds=(0.5, 2),
        **more,
    )
    rule = balancer.rule
    assert (balancer.every, rule.alpha, rule.average) == (7, 0.2, logarithmic_average)
    assert (rule.warm_start, rule.bounds) == (True, (0.5, 2))
    assert balancer.target(rows(1.0, 4.0)).tolist() == [4.0, 1.0]
    with pytest.raises(TypeError, match="momentum"):
        getattr(GradientBalancer, name)(momentum=0.9, **more)


def test_journal_can_follow_the_unweighted_ratio():
    named = [("weight", torch.zeros(3, 1, requires_grad=True))]
    for weighted, second in [(False, 0.01), (True, 1.0)]:
        balancer = GradientBalancer.journal(
            named_params=named, reference="data", weighted=weighted, alpha=1.0, every=1
        )
        balancer.update(rows(1.0, 100.0))
        assert balancer.target(rows(1.0, 100.0))[1].item() == pytest.approx(second)
