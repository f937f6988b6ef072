from contextlib import nullcontext

import pytest
import torch
from helpers import rows, seeded
from torch.fx.experimental.proxy_tensor import make_fx

from pinnlib.weighting import Balancer, Rule, Seen
from pinnlib.weighting.rule import answer, check_number, is_recording

pytestmark = pytest.mark.usefixtures("nothing_hidden")


class Losses(Rule):
    """The least rule: no state, and the losses as weights."""

    def __call__(self, seen, state):
        return seen.losses, state


def test_a_rule_needs_no_more_than_a_call():
    balancer = Balancer(["a", "b"], Losses())
    assert balancer.state == {}
    losses = torch.tensor([2.0, 3.0])
    assert balancer.target(rows(1.0, 1.0), losses).tolist() == [2.0, 3.0]
    assert balancer.update(rows(1.0, 1.0), losses).tolist() == [2.0, 3.0]


def test_what_is_not_there_is_named():
    losses = Balancer(["a", "b"], Losses())
    with pytest.raises(ValueError, match="this rule looks at the losses: pass them beside G"):
        losses.update(rows(1.0, 1.0))
    seen = Seen(["a"], torch.ones(1))
    with pytest.raises(ValueError, match="this rule looks at the gradient matrix: pass it"):
        _ = seen.G
    with pytest.raises(ValueError, match=r"this rule looks at residuals: pass each term as a list"):
        seen.probe(torch.tensor(0))
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


def test_a_probe_is_measured_for_its_key():
    seen = Seen(["a"], torch.ones(1), probes=lambda key: key * torch.ones(1, 2))
    assert seen.probe(torch.tensor(3)).tolist() == [[3.0, 3.0]]
    assert not seen.has_measured_rows


class Answers(Rule):
    """Answers the same whatever it sees."""

    def __init__(self, *found):
        self.found = found

    def __call__(self, seen, state):
        return self.found


def test_an_answer_is_detached_and_in_the_precision_of_the_weights():
    seen = Seen(["a", "b"], torch.ones(2, dtype=torch.float64))
    weights, memory = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    found, state = answer(Answers(2 * weights, {"memory": memory}), seen, {})
    assert found.tolist() == [2.0, 4.0]
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert not state["memory"].requires_grad


def test_an_answer_that_is_no_weights_is_refused():
    terms = ["a", "b"]
    seen = Seen(terms, torch.ones(2, dtype=torch.float64))
    terms.append("c")
    assert seen.terms == ("a", "b")
    for weights, shown in ((torch.ones(1), r"\(1,\)"), ([1.0, 2.0], r"\[1.0, 2.0\]")):
        with pytest.raises(ValueError, match=rf"returned {shown}: let it return weights \(2,\)"):
            answer(Answers(weights, {}), seen, {})
    for found in ((torch.ones(2),), (torch.ones(2), None), (torch.ones(2), {}, {})):
        with pytest.raises(TypeError, match=r"let it return \(weights, state\)"):
            answer(Answers(*found), seen, {})


def test_a_part_of_a_stack_is_what_each_of_its_networks_shows():
    G, losses = torch.rand(3, 2, 4, generator=seeded()), torch.rand(3, 2, generator=seeded(1))
    used = torch.rand(2, 4, generator=seeded(2)) > 0.5
    whole = Seen(
        ["a", "b"],
        torch.ones(3, 2),
        losses=losses,
        rows=lambda: (G, used),
        probes=lambda key: key * G,
    )
    part, mine = whole.part(slice(1, 3)), slice(1, 3)
    assert torch.equal(part.probe(torch.tensor(2)), 2 * G[mine])
    assert torch.equal(part.losses, losses[mine])
    assert torch.equal(part.G, G[mine])
    assert part.used is used
    assert (part.terms, part.weights.shape, part.is_recorded) == (("a", "b"), (2, 2), False)
    whole.is_recorded = True
    assert whole.part(mine).is_recorded
    with pytest.raises(ValueError, match="this rule looks at the losses"):
        _ = Seen(["a"], torch.ones(3, 1)).part(mine).losses


def test_is_recording_is_true_while_operations_are_recorded():
    found = []
    make_fx(lambda x: found.append(is_recording()) or x + 1)(torch.ones(1))
    assert found == [True]
    assert not is_recording()


@pytest.mark.parametrize(
    ("value", "error"),
    [(0.5, None), (1, None), (-1.0, ValueError), (True, TypeError), ("1", TypeError)],
)
def test_a_number_is_what_is_wanted_or_refused_by_name(value, error):
    with pytest.raises(error, match=rf"alpha is {value!r}: pass it") if error else nullcontext():
        check_number("alpha", value, lambda x: x > 0, "it")
