"""Balancers side by side: each network gets the weights that its own balancer would give."""

import copy

import pytest
import torch
from helpers import network, seeded

from pinnlib import GradientBalancer, Step
from pinnlib.networks import Stacked
from pinnlib.recording import Recorded
from pinnlib.step import eager
from pinnlib.weighting import Balancer, KernelTrace, SideBySide, SoftAdapt

TERMS = ["data", "pde"]
KINDS = {
    "constant": lambda: Balancer(TERMS, {"data": 100.0, "pde": 1.0}),
    "simplified": lambda: GradientBalancer.simplified(alpha=0.3),
    "bounded": lambda: GradientBalancer.bounded(every=3),
    "soft": lambda: Balancer(TERMS, SoftAdapt(beta=1.0), every=2),
}


def shown(steps):
    generator = seeded(0)
    for step in range(steps):
        G = torch.randn(8, 2, 5, generator=generator, dtype=torch.float64)
        losses = torch.rand(8, 2, generator=generator, dtype=torch.float64)
        yield G * torch.tensor([[1.0], [10.0 ** (step % 4)]]), losses


@pytest.mark.parametrize("resumed", [False, True])
def test_each_network_has_the_weights_of_its_own_balancer(resumed):
    kinds = [make() for make in KINDS.values()]
    together = Balancer(TERMS, SideBySide(kinds, share=2))
    alone = [make() for make in KINDS.values()]
    before = copy.deepcopy([b.state_dict() for b in kinds])
    for step, (G, losses) in enumerate(shown(9)):
        if resumed and step == 4:
            state = together.state_dict()
            together = Balancer(TERMS, SideBySide(kinds, share=2))
            together.load_state_dict(state)
        found = together.update(G, losses=losses)
        for i, balancer in enumerate(alone):
            mine = slice(2 * i, 2 * i + 2)
            expected = balancer.update(G[mine], losses=losses[mine])
            torch.testing.assert_close(found[mine], expected.expand(2, 2), rtol=1e-12, atol=0)
    assert [str(b.state_dict()) for b in kinds] == [str(state) for state in before]
    step = together.state["step"]
    assert (step.item(), step.dtype) == (9, torch.int64)


@pytest.mark.parametrize(("count", "share"), [(0, 1), (2, 0), (1, -1)])
def test_nobody_is_refused(count, share):
    with pytest.raises(ValueError, match=f"{count} balancers with {share} networks each"):
        SideBySide([KINDS["simplified"]()] * count, share)


def test_another_stack_is_refused(refused):
    balancer = Balancer(TERMS, SideBySide([KINDS["simplified"]()], share=3))
    with refused(balancer, match=r"the stack is \(4,\), and the shares add up to 3"):
        balancer.place((4,), torch.device("cpu"))  # before any step
    with refused(balancer, match=r"the stack is \(\), and the shares add up to 3"):
        balancer.update(torch.ones(2, 5))


def test_the_state_lives_where_the_weights_do():
    rule = SideBySide([KINDS["bounded"]()], share=1)
    state = rule.start(TERMS, torch.ones(1, 2, device="meta"))
    assert [x.device.type for x in state.values()] == ["meta"] * 2


def test_other_terms_are_refused():
    rule = SideBySide([Balancer(["pde", "data"], KernelTrace())], share=1)
    with pytest.raises(ValueError, match=r"a balancer of .*: pass alike"):
        Balancer(TERMS, rule)


def test_a_rule_of_random_signs_comes_before_one_that_looks_at_the_gradient_matrix(refused):
    """G frees the graph that random signs need."""
    pair = [GradientBalancer.simplified(), Balancer(TERMS, KernelTrace())]
    stack = Stacked([network(seed=seed) for seed in range(2)])

    def terms_of(batch):
        u = stack(batch["x"])
        return {"data": [u - 1], "pde": [u**2]}

    batch = {"x": torch.rand(2, 4, 2, generator=seeded(), dtype=torch.float64)}
    balancer = Balancer(TERMS, SideBySide(pair, share=1))
    with refused(balancer, match=r"random signs .* after another has looked at G.*: name it first"):
        Step(terms_of, stack, balancer, stack=(2,))(batch)
    balancer = Balancer(TERMS, SideBySide(pair[::-1], share=1))
    _, weights = Step(terms_of, stack, balancer, stack=(2,))(batch)
    assert weights.isfinite().all()
    assert (weights != 1).any(dim=-1).all()


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("run", [eager, Recorded])
def test_who_is_not_due_looks_at_nothing_unless_it_is_recorded(run):
    """Two balancers, due at every third and every second step, and a constant that never looks."""
    pair = [GradientBalancer.bounded(every=3), GradientBalancer.simplified(every=2)]
    both = [*pair, Balancer(TERMS, {"data": 1.0, "pde": 1.0})]
    stack = Stacked([network(seed=seed) for seed in range(3)])

    def terms_of(batch):
        u = stack(batch["x"])
        return {"data": [u - 1], "pde": [u**2]}

    batch = {"x": torch.rand(3, 4, 2, generator=seeded(), dtype=torch.float64)}
    step = Step(terms_of, stack, Balancer(TERMS, SideBySide(both, share=1)), stack=(3,), run=run)
    looked = []
    for _ in range(7):
        measured = step.measure(batch)
        step.apply(measured)
        looked.append(measured.G is not None)
    at_first = [True, False, True, True, True, False, True]
    assert looked == ([True] * 7 if run is Recorded else at_first)


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("run", [eager, Recorded])
def test_one_may_stand_within_another(run):
    """Two pairs of which each has its own intervals, and the same four without pairs."""
    kinds = [GradientBalancer.bounded(every=3), GradientBalancer.simplified(every=2)]
    pair = Balancer(TERMS, SideBySide(kinds, share=1))
    found = []
    for rule in (SideBySide([pair, pair], share=2), SideBySide(kinds * 2, share=1)):
        stack = Stacked([network(seed=seed) for seed in range(4)])

        def terms_of(batch, stack=stack):
            u = stack(batch["x"])
            return {"data": [u - 1], "pde": [u**2]}

        step = Step(terms_of, stack, Balancer(TERMS, rule), stack=(4,), run=run)
        optimizer = torch.optim.SGD(step.params, lr=0.1)
        for number in range(5):
            optimizer.zero_grad()
            step({"x": torch.rand(4, 4, 2, generator=seeded(number), dtype=torch.float64)})
            optimizer.step()
        found.append(step.balancer.weights)
    torch.testing.assert_close(*found)
    assert len(set(found[0].flatten().tolist())) > 4
