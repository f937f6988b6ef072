import math

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
        GradientBalancer.bounded(),
        GradientBalancer.simplified(),
        GradientBalancer.preprint(),
        GradientBalancer.journal(named_params=named),
        GradientBalancer.jaxpi(),
    ]
    assert {type(b) for b in rules} == {GradientBalancer}
    assert {b.terms for b in rules} == {("data", "pde")}
    assert [b.every for b in rules] == [10, 1, 10, 10, 1000]
    assert [b.rule.alpha for b in rules] == [0.1, 0.9, 0.9, 0.1, 0.1]
    assert [b.rule.warm_start for b in rules] == [True, False, False, False, False]
    assert [b.rule.bounds for b in rules] == [(0.1, 10), None, None, None, None]
    ratios = [b.rule.rule for b in rules]
    assert [r.reference for r in ratios] == ["data", "data", "pde", "pde", mean_of_terms]
    assert [r.weighted for r in ratios] == [False, False, False, True, False]
    statistics = [(r.statistic, r.reference_statistic) for r in ratios]
    assert statistics[:3] == [(l2_norm, None), (mean_abs, None), (mean_abs, max_abs)]
    assert list(map(type, statistics[3])) == [LayerMeans, LayerMax]
    assert statistics[4] == (l2_norm, None)


@pytest.mark.parametrize("name", ["bounded", "simplified", "preprint", "journal", "jaxpi"])
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


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_bounded_follows_the_logarithm_near_the_first_ratio(scale):
    balancer = GradientBalancer.bounded(every=1)
    log, first = None, None
    for pde in [100.0, 20.0, 1e6, 1e6, *[1e9] * 60, *[1e-3] * 60]:
        G = scale * torch.tensor([[3.0, 4.0], [0.0, pde]], dtype=torch.float64)
        target = math.log(5 / pde)
        first = target if first is None else first
        log = target if log is None else 0.9 * log + 0.1 * target
        log = min(max(log, first - math.log(10)), first + math.log(10))
        weights = balancer.update(G)
        assert weights.tolist() == pytest.approx([1.0, math.exp(log)], rel=1e-9)


def test_journal_can_follow_the_unweighted_ratio():
    named = [("weight", torch.zeros(3, 1, requires_grad=True))]
    for weighted, second in [(False, 0.01), (True, 1.0)]:
        balancer = GradientBalancer.journal(
            named_params=named, reference="data", weighted=weighted, alpha=1.0, every=1
        )
        balancer.update(rows(1.0, 100.0))
        assert balancer.target(rows(1.0, 100.0))[1].item() == pytest.approx(second)
