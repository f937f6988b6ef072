import pytest
import torch
from helpers import network, rows

from pinnlib import GradientBalancer
from pinnlib.gradients import l2_norm, max_abs, mean_abs
from pinnlib.weighting import LayerMax, LayerMeans, logarithmic_average, mean_of_terms

pytestmark = pytest.mark.usefixtures("nothing_hidden")


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
