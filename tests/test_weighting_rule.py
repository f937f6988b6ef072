import pytest
import torch
from helpers import rows

from pinnlib.weighting import Balancer, Rule, Seen

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
