import math

import pytest
import torch
from helpers import EXPONENTS, TERMS, network, seeded, three_losses, three_terms
from hypothesis import given
from hypothesis import strategies as st
from test_weighting_kernel import splitmix64

from pinnlib import Step
from pinnlib.networks import Stacked
from pinnlib.recording import Recorded
from pinnlib.weighting import Balancer, Follow, ReLoBRaLo, Seen, SoftAdapt, Uncertainty

pytestmark = pytest.mark.usefixtures("nothing_hidden")

RULES = {
    "soft": SoftAdapt(beta=0.5),
    "normalized": SoftAdapt(beta=2.0, normalized=True),
    "loss weighted": SoftAdapt(loss_weighted=True),
    "both": SoftAdapt(beta=-1.0, normalized=True, loss_weighted=True),
    "relobralo": ReLoBRaLo(alpha=0.3, temperature=0.5, rho=0.6, seed=3),
    "uncertainty": Uncertainty(rate=0.1),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def weights_over(rule, steps, *, dtype=torch.float64, terms=None):
    """The weights of each update, for losses (…, K) of each step."""
    steps = torch.as_tensor(steps, dtype=dtype)
    terms = terms or [f"term {k}" for k in range(steps.shape[-1])]
    weights = torch.ones(steps.shape[1:], dtype=torch.float64)
    state, found = rule.start(terms, weights), []
    for losses in steps:
        weights, state = rule(Seen(terms, weights, losses=losses), state)
        found.append(weights)
    return torch.stack(found)


def quick_terms(model):
    """Residuals without derivatives, which are recorded in no time."""

    def terms(batch):
        u = model(batch["x"])
        return {"data": [u - 1], "initial": [3 * u[..., :2, :]], "pde": [10 * u**2 + u]}

    return terms


def drawn_losses(terms, steps=6, seed=0):
    return torch.rand(steps, terms, generator=seeded(seed), dtype=torch.float64) + 0.1


# Oracles of a few lines, one number at a time


def soft_adapt(steps, beta, normalized, loss_weighted):
    found = []
    for before, losses in zip([steps[0], *steps], steps, strict=False):
        s = [x - y for x, y in zip(losses, before, strict=True)]
        total = sum(map(abs, s))
        if normalized and total:
            s = [x / total for x in s]
        e = [
            math.exp(beta * x) * (w if loss_weighted else 1) for x, w in zip(s, losses, strict=True)
        ]
        found.append([x / sum(e) for x in e])
    return found


def relobralo(steps, alpha, temperature, rho, seed):
    def relative(losses, before):
        e = [math.exp(x / (temperature * y)) for x, y in zip(losses, before, strict=True)]
        return [len(losses) * x / sum(e) for x in e]

    found, old = [], [1.0] * len(steps[0])
    for t, (last, losses) in enumerate(zip([steps[0], *steps], steps, strict=False)):
        drawn = (
            splitmix64(((seed + t) << 32) * 0x9E3779B97F4A7C15) >> 11
        ) / 2**53  # uniform, from 0 to 1
        # Signed numbers: the upper half comes first.
        stays = (drawn + 0.5) % 1 < rho
        history = old if stays else relative(losses, steps[0])
        new = relative(losses, last)
        old = [alpha * n + (1 - alpha) * h for n, h in zip(new, history, strict=True)]
        found.append(old)
    return found


@pytest.mark.parametrize("terms", [1, 2, 4])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("loss_weighted", [False, True])
@pytest.mark.parametrize("beta", [0.1, 3, -2.0])
def test_soft_adapt_is_what_was_published(terms, normalized, loss_weighted, beta):
    steps = drawn_losses(terms)
    found = weights_over(SoftAdapt(beta, normalized, loss_weighted), steps)
    expected = soft_adapt(steps.tolist(), beta, normalized, loss_weighted)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found.sum(-1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("terms", [1, 2, 4])
@pytest.mark.parametrize("alpha", [0.001, 0.4, 1])
@pytest.mark.parametrize("rho", [0, 0.5, 1])
@pytest.mark.parametrize("seed", [0, 7])
def test_relobralo_is_what_was_published(terms, alpha, rho, seed):
    steps = drawn_losses(terms, 12)
    found = weights_over(ReLoBRaLo(alpha, 0.7, rho, seed), steps)
    expected = relobralo(steps.tolist(), alpha, 0.7, rho, seed)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_lookbacks_are_as_frequent_as_was_asked_for():
    rule, n = ReLoBRaLo(alpha=0.5, rho=0.8, seed=1), 2000
    steps = torch.tensor([[1.0, 1.0], [2.0, 1.0]]).repeat(1, 1)
    weights = torch.tensor([0.5, 1.5], dtype=torch.float64)
    state = rule.start(["a", "b"], weights)
    _, state = rule(Seen(["a", "b"], weights, losses=steps[0]), state)
    looked = 0
    for _ in range(n):
        state["last"] = steps[1].double()
        found, state = rule(Seen(["a", "b"], weights, losses=steps[1]), state)
        looked += (found - (0.5 * weights + 0.5)).abs().max().item() > 1e-6
    assert looked / n == pytest.approx(0.2, abs=4 * (0.8 * 0.2 / n) ** 0.5)


@pytest.mark.parametrize("rate", [1e-3, 0.05])
def test_uncertainty_is_trained_together_with_the_network_by_adam(rate):
    """The published method: one optimizer for the network and s, on the penalized sum."""
    x = {"x": torch.rand(8, 2, generator=seeded(), dtype=torch.float64)}
    together, alone = network(), network()
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    groups = [{"params": together.parameters(), "lr": 1e-3}, {"params": [s], "lr": rate}]
    joint, single = torch.optim.Adam(groups), torch.optim.Adam(alone.parameters(), lr=1e-3)
    step = Step(three_losses(alone), alone, Balancer(TERMS, Uncertainty(rate)))
    for _ in range(8):
        joint.zero_grad()
        losses = torch.stack([*three_losses(together)(x).values()])
        expected = torch.exp(-s.detach())
        (torch.exp(-s) * losses + s).sum().backward()
        joint.step()
        single.zero_grad()
        found_losses, weights = step(x)
        single.step()
        torch.testing.assert_close(weights, expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(found_losses, losses.detach(), rtol=1e-8, atol=0)
    assert (weights - 1).abs().min() > 5 * rate


def test_uncertainty_comes_to_the_inverse_of_the_loss():
    losses = torch.tensor([0.5, 1.0, 3.0])
    found = weights_over(Uncertainty(rate=0.02), losses.expand(600, 3))[-1]
    torch.testing.assert_close(found, 1 / losses.double(), rtol=1e-3, atol=0)


def test_the_documented_failure_of_uncertainty_and_its_remedy():
    losses = torch.tensor([0.0, 1.0]).expand(400, 2)
    free = weights_over(Uncertainty(rate=0.05), losses)[:, 0]
    assert free[-1] > 1e6
    total = free * 0 - free.log()  # the sum that is minimized, of the first term
    assert total[-1] < -10
    bounded = Follow(Uncertainty(rate=0.05), alpha=1.0, bounds=(0.01, 100.0))
    assert weights_over(bounded, losses)[:, 0].max().item() == pytest.approx(100, rel=1e-9)


# What all have in common


@every_rule
def test_no_gradient_is_asked_for(rule):
    model, backward = network(), []
    balancer = Balancer(TERMS, rule)
    step = Step(three_terms(model), model, balancer)
    model.layers[0].weight.register_hook(lambda g: backward.append(g))
    x = {"x": torch.rand(8, 2, generator=seeded(), dtype=torch.float64)}
    assert step.measure(x).G is None
    for _ in range(3):
        step(x)
    assert len(backward) == 4  # one pass of the weighted sum a step, and one of `measure`


@every_rule
def test_losses_are_needed(rule, refused):
    balancer = Balancer(["a", "b"], rule)
    with refused(balancer, match="this rule looks at the losses: pass them beside G"):
        balancer.update(torch.ones(2, 3))


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("step", [0, 2])
def test_a_loss_that_is_no_size_is_an_error_that_names_its_term(rule, bad, step, refused):
    balancer, G = Balancer(TERMS, rule), torch.ones(3, 2)
    for losses in drawn_losses(3, step):
        balancer.update(G, losses)
    losses = torch.tensor([1.0, bad, 2.0])
    with refused(balancer, match=f"weight of 'initial' at step {step} would be nan"):
        balancer.update(G, losses)
    balancer.update(G, losses.nan_to_num(nan=1.0, posinf=1.0, neginf=1.0).abs())


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(exponents=st.lists(EXPONENTS, min_size=3, max_size=3), zero=st.sampled_from([None, 0, 1, 2]))
def test_weights_are_finite_and_positive_over_scales(rule, dtype, exponents, zero):
    losses = torch.tensor([10.0**e for e in exponents])
    steps = torch.stack([losses, 2 * losses, losses.flip(0), losses])
    for t in range(4):
        spoiled = steps.clone()
        if zero is not None:
            spoiled[t, zero] = 0.0
        found = weights_over(rule, spoiled, dtype=dtype)
        assert found.dtype == torch.float64
        assert found.isfinite().all()
        assert (found >= 0).all()


@pytest.mark.parametrize("name", ["normalized", "both", "relobralo"])
@given(exponent=EXPONENTS)
def test_the_unit_of_the_losses_makes_no_difference(name, exponent):
    steps = drawn_losses(3)
    found = weights_over(RULES[name], steps * 10.0**exponent)
    torch.testing.assert_close(found, weights_over(RULES[name], steps), rtol=1e-9, atol=1e-12)


@given(exponents=st.lists(EXPONENTS, min_size=3, max_size=3))
def test_relobralo_does_not_see_the_unit_of_a_single_loss(exponents):
    units = torch.tensor([10.0**e for e in exponents], dtype=torch.float64)
    steps = drawn_losses(3)
    found = weights_over(RULES["relobralo"], steps * units)
    torch.testing.assert_close(
        found, weights_over(RULES["relobralo"], steps), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([[0, 0], [0, 0]], [[1, 1], [1, 1]]),
        ([[1, 1], [0, 0], [0, 0]], [[1, 1], [1, 1], [1, 1]]),
        ([[0, 1], [5, 1]], [[1, 1], [1, 1]]),  # 5 is the first loss that is not zero
        ([[1, 1], [0, 1], [5, 1]], [[1, 1], [2 / (1 + math.e), 2 * math.e / (1 + math.e)], [1, 1]]),
        ([[1e-300, 1], [1e300, 1]], [[1, 1], [2, 0]]),
    ],
)
def test_relobralo_where_a_loss_is_zero_or_its_ratio_beyond_all_numbers(steps, expected):
    found = weights_over(ReLoBRaLo(alpha=1.0, temperature=1.0), steps)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_relobralo_looks_back_to_the_first_loss_that_was_not_zero():
    steps = [[0, 1], [5, 1], [10, 1]]
    found = weights_over(ReLoBRaLo(alpha=1e-9, temperature=1.0, rho=0), steps)[-1]
    e = math.exp(2 - 1)
    assert found.tolist() == pytest.approx([2 * e / (e + 1), 2 / (e + 1)], rel=1e-6)


@pytest.mark.parametrize("loss_weighted", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_soft_adapt_where_all_losses_are_zero_or_stay(normalized, loss_weighted):
    rule = SoftAdapt(1.0, normalized, loss_weighted)
    assert weights_over(rule, [[0.0, 0.0], [0.0, 0.0]]).tolist() == [[0.5, 0.5]] * 2
    expected = [0.25, 0.75] if loss_weighted else [0.5, 0.5]
    for found in weights_over(rule, [[1.0, 3.0], [1.0, 3.0]]).tolist():
        assert found == pytest.approx(expected)


def test_one_loss_that_vanishes_keeps_no_loss_weight():
    found = weights_over(SoftAdapt(loss_weighted=True), [[1e4, 1e9], [0.0, 1.0]])
    assert found[-1].tolist() == [0.0, 1.0]


def test_a_loss_that_rises_beyond_all_numbers_has_all_the_weight():
    found = weights_over(ReLoBRaLo(alpha=1.0), [[1e-300, 1.0], [1e300, 1.0]])
    assert found[-1].tolist() == [2.0, 0.0]


@every_rule
def test_a_stack_is_weighed_as_its_networks_one_by_one(rule):
    steps = torch.rand(6, 4, 3, generator=seeded(), dtype=torch.float64)
    steps[0, 1, 2] = 0.0
    together = weights_over(rule, steps, terms=TERMS)
    for s in range(4):
        torch.testing.assert_close(
            together[:, s], weights_over(rule, steps[:, s]), rtol=1e-14, atol=0
        )


@every_rule
@pytest.mark.parametrize("stack", [(), (2,)])
@pytest.mark.usefixtures("not_compiled")
def test_recorded_steps_are_the_eager_ones(rule, stack):
    x = {"x": torch.rand(*stack, 8, 2, generator=seeded(), dtype=torch.float64)}
    found = []
    for run in [{}, {"run": Recorded}]:
        model = Stacked([network(seed=s) for s in range(2)]) if stack else network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        step = Step(quick_terms(model), model, Balancer(TERMS, rule, every=2), stack=stack, **run)
        weights = []
        for _ in range(7):
            optimizer.zero_grad()
            weights.append(step(x)[1])
            optimizer.step()
        found.append(torch.stack(weights))
    torch.testing.assert_close(*found, rtol=1e-9, atol=0)
    assert (found[0][-1] != found[0][0]).any()


@every_rule
def test_a_term_without_a_finite_loss_stops_its_own_network_only(rule):
    model = Stacked([network(seed=s) for s in range(2)])
    balancer = Balancer(TERMS, rule)
    scale = torch.ones(2, 1, 1, dtype=torch.float64)
    terms = three_terms(model)

    def spoiled(batch):
        found = terms(batch)
        return found | {"pde": [found["pde"][0] * scale]}

    x = {"x": torch.rand(2, 8, 2, generator=seeded(), dtype=torch.float64)}
    step = Step(spoiled, model, balancer, stack=(2,))
    step(x)
    before = {name: value[1].clone() for name, value in balancer.state.items() if value.ndim}
    scale[1] = math.nan
    weights = step(x)[1]
    assert weights.isfinite().all()
    assert balancer.failed.tolist() == [-1, 1]
    for name, value in before.items():
        assert torch.equal(balancer.state[name][1].nan_to_num(), value.nan_to_num())


@pytest.mark.parametrize(
    ("rule", "settings", "error", "message"),
    [
        (SoftAdapt, {"beta": "a"}, TypeError, "beta is 'a': pass a finite number"),
        (SoftAdapt, {"beta": True}, TypeError, "beta is True: pass a finite number"),
        (SoftAdapt, {"beta": math.inf}, ValueError, "beta is inf: pass a finite number"),
        (SoftAdapt, {"beta": math.nan}, ValueError, "beta is nan: pass a finite number"),
        (ReLoBRaLo, {"alpha": 0}, ValueError, r"alpha is 0: pass a weight in \(0, 1\]"),
        (ReLoBRaLo, {"alpha": 1.01}, ValueError, "alpha is 1.01: pass a weight"),
        (ReLoBRaLo, {"temperature": 0.0}, ValueError, "temperature is 0.0: pass one above 0"),
        (ReLoBRaLo, {"temperature": math.inf}, ValueError, "temperature is inf: pass one above"),
        (ReLoBRaLo, {"rho": -0.1}, ValueError, "rho is -0.1: pass a probability, from 0 to 1"),
        (ReLoBRaLo, {"rho": 1.1}, ValueError, "rho is 1.1: pass a probability"),
        (ReLoBRaLo, {"seed": 0.5}, TypeError, "seed is 0.5: pass a whole number"),
        (Uncertainty, {"rate": 0}, ValueError, "rate is 0: pass a finite number above 0"),
        (Uncertainty, {"rate": math.inf}, ValueError, "rate is inf: pass a finite number above 0"),
        (Uncertainty, {"rate": None}, TypeError, "rate is None: pass a finite number above 0"),
    ],
)
def test_settings_are_checked(rule, settings, error, message):
    with pytest.raises(error, match=message):
        rule(**settings)


@every_rule
def test_rules_show_their_settings_and_cannot_be_changed(rule):
    for name, value in vars(rule).items():
        assert f"{name}={value!r}" in repr(rule)
        with pytest.raises(AttributeError):
            setattr(rule, name, value)


def test_the_settings_that_were_published_are_the_defaults():
    assert SoftAdapt() == SoftAdapt(beta=0.1, normalized=False, loss_weighted=False)
    assert ReLoBRaLo() == ReLoBRaLo(alpha=0.001, temperature=0.1, rho=0.99, seed=0)
    assert Uncertainty() == Uncertainty(rate=0.001)
