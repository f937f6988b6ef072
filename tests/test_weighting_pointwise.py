import copy
import io
import math

import pytest
import torch
from helpers import TERMS, network, points, seeded, three_terms
from torch import nn

from pinnlib import GradientBalancer, Step
from pinnlib.networks import Stacked
from pinnlib.recording import Recorded
from pinnlib.weighting import Balancer, Follow, KernelTrace, ResidualAttention

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def residuals(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]


def drawn(steps, n=5, stack=()):
    return torch.randn(steps, *stack, n, 1, generator=seeded(), dtype=torch.float64)


def oracle(steps, gamma, eta):
    """The published rule, one point at a time; the weights after each step."""
    weights, found = [0.0] * len(steps[0]), []
    for r in steps:
        largest = max(abs(x) for x in r)
        weights = [gamma * w + eta * abs(x) / largest for w, x in zip(weights, r, strict=True)]
        found.append(weights)
    return found


@pytest.mark.parametrize(("gamma", "eta"), [(0.999, 0.001), (0.5, 0.3), (0, 1)])
def test_weights_are_what_was_published(gamma, eta):
    steps = drawn(7)
    attention = ResidualAttention({"pde": [steps[0]]}, gamma=gamma, eta=eta)
    for r, weights in zip(steps, oracle(steps[..., 0].tolist(), gamma, eta), strict=True):
        found = attention({"pde": [r]})["pde"]
        assert isinstance(found, list)
        torch.testing.assert_close(found[0], residuals(*weights) * r, rtol=1e-12, atol=0)
        torch.testing.assert_close(attention.get_buffer("pde[0]"), residuals(*weights))
        assert attention.get_buffer("pde[0]").max() <= eta / (1 - gamma) + 1e-12


def test_the_settings_that_were_published_are_the_defaults():
    attention = ResidualAttention({"pde": [residuals(1.0)]})
    assert (attention.gamma, attention.eta) == (0.999, 0.001)


def test_each_residual_has_weights_of_its_own_and_other_terms_stay():
    a, b, c = residuals(1.0, 2.0), residuals(3.0, -1.0, 0.5), residuals(4.0)
    loss = torch.tensor(2.0)
    attention = ResidualAttention({"data": [a], "pde": [b, c]}, gamma=0.0, eta=1.0)
    terms = {"data": [a], "edge": loss, "pde": (b, c)}
    found = attention(terms)
    assert list(found) == ["data", "edge", "pde"]
    assert found["edge"] is loss
    assert found["data"][0].flatten().tolist() == [0.5, 2.0]
    torch.testing.assert_close(found["pde"][0], residuals(3.0, -1 / 3, 0.25 / 3))
    assert found["pde"][1].item() == 4.0
    assert terms["pde"] == (b, c)  # not changed
    assert sorted(attention.state_dict()) == ["data[0]", "pde[0]", "pde[1]"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-30, -12, 0, 12, 30])
def test_the_unit_of_residuals_makes_no_difference(dtype, exponent):
    r = residuals(1.0, -3.0, 2.0, dtype=dtype)
    attention = ResidualAttention({"pde": [r]}, gamma=0.5, eta=1.0)
    for _ in range(2):
        attention({"pde": [10.0**exponent * r]})
    weights = attention.get_buffer("pde[0]")
    assert weights.dtype == dtype
    torch.testing.assert_close(weights, residuals(0.5, 1.5, 1.0, dtype=dtype))


def test_residuals_that_are_all_zero_add_nothing():
    attention = ResidualAttention({"pde": [residuals(1.0, 2.0)]}, gamma=0.5, eta=1.0)
    attention({"pde": [residuals(1.0, 2.0)]})
    found = attention({"pde": [residuals(0.0, 0.0)]})["pde"][0]
    assert found.tolist() == [[0.0], [0.0]]
    assert attention.get_buffer("pde[0]").flatten().tolist() == [0.25, 0.5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_stay_where_a_residual_is_not_finite(bad):
    r = torch.ones(2, 3, 1)
    attention = ResidualAttention({"pde": [r]}, gamma=0.5, eta=1.0)
    attention({"pde": [r]})
    spoiled = r.clone()
    spoiled[1, 2] = bad
    attention({"pde": [spoiled]})
    assert attention.get_buffer("pde[0]")[..., 0].tolist() == [[1.5] * 3, [1.0] * 3]


def test_no_gradient_flows_through_the_weights():
    r = residuals(1.0, -2.0).requires_grad_()
    attention = ResidualAttention({"pde": [r]}, gamma=0.0, eta=1.0)
    first, second = (attention({"pde": [r]})["pde"][0] for _ in range(2))
    (first + second).sum().backward()  # the weights have changed in place since
    assert r.grad.flatten().tolist() == [1.0, 2.0]
    assert not list(attention.parameters())


def test_held_weights_are_read_only():
    r = residuals(1.0, -2.0)
    attention = ResidualAttention({"pde": [r]}, gamma=0.5, eta=1.0)
    attention({"pde": [r]})
    before = copy.deepcopy(attention.state_dict())
    attention.eval()
    assert attention({"pde": [3 * r]})["pde"][0].flatten().tolist() == [1.5, -6.0]
    assert torch.equal(attention.get_buffer("pde[0]"), before["pde[0]"])
    attention.train()
    attention({"pde": [r]})
    assert not torch.equal(attention.get_buffer("pde[0]"), before["pde[0]"])


def attentive(model, **settings):
    """Terms of a network, two of them with attention, and the attention."""
    terms, x = three_terms(model), points()
    start = {term: r for term, r in terms({"x": x}).items() if term != "initial"}
    attention = ResidualAttention(start, **settings)
    return lambda batch: attention(terms(batch)), attention


def train(model, step, steps, between=lambda: None, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1e-2)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        between()
        found.append(step({"x": points()})[1])
        optimizer.step()
    return torch.stack(found), optimizer


BALANCERS = {
    "bounded": lambda: GradientBalancer.bounded(TERMS, every=2),
    "kernel": lambda: Balancer(TERMS, Follow(KernelTrace(seed=3), 0.5)),
}
every_balancer = pytest.mark.parametrize("balancer", BALANCERS.values(), ids=BALANCERS)


@every_balancer
def test_a_step_balances_the_weighted_residuals(balancer):
    """As if the weights were numbers that the residuals carry."""
    model, other = network(), network()
    terms, attention = attentive(model, gamma=0.5, eta=0.5)
    plain = three_terms(other)

    def by_hand(batch):
        found = plain(batch)
        for term in ("data", "pde"):
            found[term] = [
                attention.get_buffer(f"{term}[{i}]") * r for i, r in enumerate(found[term])
            ]
        return found

    mine, hand = balancer(), balancer()
    step, reference = Step(terms, model, mine), Step(by_hand, other, hand)
    for _ in range(5):
        model.zero_grad()
        other.zero_grad()
        losses, weights = step({"x": points()})  # which updates the attention first
        expected = reference({"x": points()})
        torch.testing.assert_close((losses, weights), expected, rtol=1e-12, atol=0)
        with torch.no_grad():
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
                p -= 1e-3 * p.grad
                q.copy_(p)
    assert weights.tolist() != [1.0, 1.0, 1.0]


@every_balancer
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(balancer):
    whole = network()
    terms, _ = attentive(whole)
    expected, _ = train(whole, Step(terms, whole, balancer()), 7)

    model, first = network(), balancer()
    terms, attention = attentive(model)
    weights, optimizer = train(model, Step(terms, model, first), 3)
    file = io.BytesIO()
    torch.save([attention.state_dict(), first.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    terms, attention = attentive(model)
    attention.load_state_dict(saved[0])
    second = balancer()
    second.load_state_dict(saved[1])
    rest, _ = train(model, Step(terms, model, second), 4, optimizer=optimizer)
    assert torch.equal(torch.cat([weights, rest]), expected)
    assert all(map(torch.equal, model.parameters(), whole.parameters()))


def test_a_state_of_other_points_is_refused():
    attention = ResidualAttention({"pde": [residuals(1.0, 2.0)]})
    other = ResidualAttention({"pde": [residuals(1.0, 2.0, 3.0)]})
    with pytest.raises(RuntimeError, match=r"size mismatch for pde\[0\]"):
        attention.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*\"data\[0\]\""):
        ResidualAttention({"data": [residuals(1.0)]}).load_state_dict(other.state_dict())


@every_balancer
def test_a_stack_is_as_its_networks_one_by_one(balancer):
    def alone(seed):
        model = network(seed=seed)
        terms, _ = attentive(model, gamma=0.5, eta=0.5)
        return train(model, Step(terms, model, balancer()), 4)[0]

    stack = Stacked([network(seed=s) for s in range(3)])
    plain = three_terms(stack)
    x = points().expand(3, 8, 2)
    start = {k: r for k, r in plain({"x": x}).items() if k != "initial"}
    attention = ResidualAttention(start, gamma=0.5, eta=0.5)
    step = Step(lambda _: attention(plain({"x": x})), stack, balancer(), stack=(3,))
    together, _ = train(stack, step, 4)
    for s in range(3):
        torch.testing.assert_close(together[:, s], alone(s), rtol=1e-8, atol=0)


@pytest.mark.usefixtures("not_compiled")
def test_recorded_with_updates_between_the_steps_is_the_eager_training():
    model = network()
    terms, eager = attentive(model)
    expected, _ = train(model, Step(terms, model, BALANCERS["bounded"]()), 6)

    other = network()
    plain = three_terms(other)
    terms, attention = attentive(other)
    attention.eval()
    step = Step(terms, other, BALANCERS["bounded"](), run=Recorded)
    update = lambda: attention.update(plain({"x": points()}))  # noqa: E731
    found, _ = train(other, step, 6, update)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    for w, v in zip(attention.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(w, v, rtol=1e-9, atol=0)


@pytest.mark.usefixtures("not_compiled")
def test_recording_an_update_is_refused(refused):
    model, balancer = network(), BALANCERS["bounded"]()
    terms, attention = attentive(model)
    step = Step(terms, model, balancer, run=Recorded)
    with refused(balancer, model, attention, match="attention changes its weights .* Recorded"):
        step({"x": points()})
    attention.eval()
    step({"x": points()})


def test_it_goes_where_its_module_goes():
    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()
            _, self.attention = attentive(self.model)

    trained = Trained().to("meta", torch.float32)
    assert {(w.dtype, w.device.type) for w in trained.attention.buffers()} == {
        (torch.float32, "meta")
    }
    # No tensor has a value there that a branch could ask for: nothing waits for the host.
    r = torch.empty(8, 1, device="meta")
    trained.attention({"data": [r, r[:3]], "pde": [r]})


# Errors


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        ({}, ValueError, "term 'pde' is missing: pass its residuals, at every step"),
        ({"pde": torch.ones(())}, TypeError, r"term 'pde' is a tensor \(\): pass a list of resi"),
        ({"pde": []}, TypeError, r"term 'pde' is \[\]: pass a list of residuals"),
        (
            {"pde": [torch.ones(2, 1)]},
            ValueError,
            "term 'pde' has 1 residuals, and had 2: pass the same ones",
        ),
        (
            {"pde": [torch.ones(2, 1), torch.ones(4, 1)]},
            ValueError,
            r"residual 'pde\[1\]' has shape \(4, 1\), and its weights have \(3, 1\), one for each",
        ),
        (
            {"pde": [torch.ones(2, 1), torch.ones(3)]},
            ValueError,
            r"residual 'pde\[1\]' has shape \(3,\), and its weights have \(3, 1\).* new Residual",
        ),
    ],
)
@pytest.mark.parametrize("held", [False, True])
def test_other_residuals_than_before_are_refused(terms, error, message, held):
    attention = ResidualAttention(
        {"data": [torch.ones(5, 1)], "pde": [torch.ones(2, 1), torch.ones(3, 1)]}
    )
    attention.train(not held)
    with pytest.raises(error, match=message):
        attention({"data": [torch.ones(5, 1)]} | terms)
    assert all((w == 0).all() for w in attention.buffers())  # nothing has changed


@pytest.mark.parametrize(
    ("terms", "settings", "error", "message"),
    [
        ({}, {}, ValueError, "terms is empty: pass the residuals of each term that gets weights"),
        ({"pde": torch.ones(3, 1)}, {}, TypeError, "term 'pde' is a tensor .*: pass a list of re"),
        ({"pde": [torch.ones(3)]}, {}, ValueError, r"residual 'pde\[0\]' has shape \(3,\)"),
        ({"pde": [torch.ones(3, 2)]}, {}, ValueError, r"residual 'pde\[0\]' has shape \(3, 2\)"),
        ({"pde": [torch.ones(0, 1)]}, {}, ValueError, r"residual 'pde\[0\]' has no point: sample"),
        ({"pde": [1.0]}, {}, TypeError, r"residual 'pde\[0\]' is a float: return a tensor"),
        ({"p.e": [torch.ones(3, 1)]}, {}, ValueError, "term 'p.e' has a dot, which no buffer may"),
        (None, {"gamma": 1}, ValueError, "gamma is 1: pass a number from 0 to below 1"),
        (None, {"gamma": -0.1}, ValueError, "gamma is -0.1: pass a number from 0"),
        (None, {"gamma": "a"}, TypeError, "gamma is 'a': pass a number from 0"),
        (None, {"eta": 0}, ValueError, "eta is 0: pass a finite number above 0"),
        (None, {"eta": math.inf}, ValueError, "eta is inf: pass a finite number above 0"),
        (None, {"eta": True}, TypeError, "eta is True: pass a finite number above 0"),
    ],
)
def test_settings_are_checked(terms, settings, error, message):
    with pytest.raises(error, match=message):
        ResidualAttention({"pde": [torch.ones(3, 1)]} if terms is None else terms, **settings)
