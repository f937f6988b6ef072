"""A step gives the gradient of the weighted sum, by whichever entrance, or changes nothing."""

import math
import sys
import threading
from itertools import count

import pytest
import torch
from helpers import (
    BAD_LOSSES,
    ENTRANCES,
    EXPONENTS,
    TERMS,
    Branched,
    Inverse,
    assert_same_parameters,
    gradients,
    network,
    points,
    seeded,
    theta,
    three_losses,
    three_terms,
    two_losses,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pinnlib import weighting
from pinnlib.gradients import gradient_matrix
from pinnlib.recording import Recorded
from pinnlib.step import Step, balanced_backward, eager
from pinnlib.weighting import Balancer, Constant, Follow, GradientBalancer, KernelTrace, Ratio

pytestmark = pytest.mark.usefixtures("nothing_hidden", "not_compiled")

OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-3),
    "momentum": lambda params: torch.optim.SGD(params, lr=1e-4, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-3, fused=True),
}
THREE = {name: make for name, make in ENTRANCES.items() if name != "AdaptivePINN"}
"""Those that take any number of terms."""
AT_ONCE = {name: make for name, make in ENTRANCES.items() if name != "recorded"}
"""Those that need no second to record."""
BOTH = {name: THREE[name] for name in ("balanced_backward", "eager")}
BALANCERS = {
    "simplified": lambda: GradientBalancer.simplified(TERMS, alpha=0.5),
    "mean": lambda: GradientBalancer.jaxpi(TERMS, every=1),
    "preprint": lambda: GradientBalancer.preprint(TERMS, every=2),
    "journal": lambda: GradientBalancer.journal(
        TERMS, named_params=network().named_parameters(), every=1
    ),
    "bounds": lambda: GradientBalancer.simplified(
        TERMS, warm_start=True, bounds=(0.95, 1.05), every=3
    ),
    "constant": lambda: Balancer(TERMS, {"data": 3.0, "initial": 0.0, "pde": 0.5}),
}


def batch(n=8, seed=0):
    return {"x": points(n, seed=seed)}


def quick_losses(model):
    """Two losses that take little time to record."""

    def losses(batch):
        u = model(batch["x"])
        return {"data": (u - 1).square().mean(), "pde": 10 * (u * u - 0.5).square().mean()}

    return losses


def weighted_sum(weights, losses):
    return sum(weights[term] * losses[term] for term in losses)


# What it computes


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        *((make, rule) for make in BOTH for rule in BALANCERS),
        ("recorded", "journal"),
    ],
)
def test_it_is_backward_of_the_weighted_sum(make, rule):
    make, make_balancer = THREE[make], BALANCERS[rule]
    model, balancer, other = network(), make_balancer(), make_balancer()
    losses_of = three_losses(model)
    take = make(losses_of, model, balancer)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for seed in range(4):
        optimizer.zero_grad()
        weights = take(batch(seed=seed))
        actual = gradients(model)
        expected = other.update(gradient_matrix(losses_of(batch(seed=seed)), model))
        assert list(weights) == TERMS
        assert list(weights.values()) == pytest.approx(expected.tolist(), rel=1e-12)
        assert all(type(weight) is float for weight in weights.values())
        optimizer.zero_grad()
        weighted_sum(weights, losses_of(batch(seed=seed))).backward()
        torch.testing.assert_close(actual, gradients(model))
        optimizer.step()
    assert balancer.step == 4
    if balancer.state:
        torch.testing.assert_close(balancer.state["first"], other.state["first"])


def naive_sizes(model, losses):
    """Mean absolute gradient over the entries that each loss uses."""
    params = [p for p in model.parameters() if p.requires_grad]
    for loss in losses.values():
        grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        yield torch.cat([g.flatten() for g in grads if g is not None]).abs().mean().item()


@pytest.mark.parametrize(
    ("make", "make_model"),
    [*((make, network) for make in AT_ONCE.values()), *((m, Branched) for m in ENTRANCES.values())],
)
def test_one_meaning_of_size_through_every_entrance(make, make_model):
    model, coefficient = make_model(), theta(2.0)
    losses_of = two_losses(model, coefficient)
    balancer = GradientBalancer.simplified(alpha=0.25)
    take = make(losses_of, model, balancer, [coefficient])
    everything = [*model.parameters(), coefficient]
    optimizer = torch.optim.SGD([p for p in everything if p.requires_grad], lr=1e-2)
    expected = 1.0
    for seed in range(4):
        optimizer.zero_grad()
        losses = losses_of(batch(seed=seed))
        size_data, size_pde = naive_sizes(model, losses)
        expected = 0.75 * expected + 0.25 * size_data / size_pde
        assert take(batch(seed=seed)) == {"data": 1.0, "pde": pytest.approx(expected, rel=1e-12)}
        actual = [*gradients(model), coefficient.grad.clone()]
        optimizer.zero_grad()
        losses = losses_of(batch(seed=seed))
        (losses["data"] + expected * losses["pde"]).backward()
        torch.testing.assert_close(actual, [*gradients(model), coefficient.grad])
        optimizer.step()
    assert abs(coefficient.item() - 2) > 1e-4


def test_a_coefficient_counts_where_it_is_asked_for():
    model, coefficient = network(), theta(2.0)
    losses = two_losses(model, coefficient)(batch())
    weights = balanced_backward(
        losses, [*model.parameters(), coefficient], GradientBalancer.simplified(alpha=1.0)
    )
    losses = two_losses(model, coefficient)(batch())
    G = gradient_matrix(losses, [*model.parameters(), coefficient])
    sizes = G[0, :-1].abs().mean(), G[1].abs().mean()  # the data term does not use it
    assert weights["pde"] == pytest.approx((sizes[0] / sizes[1]).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(make, torch.float64) for make in BOTH.values()] + [(THREE["recorded"], torch.float32)],
)
def test_over_scales(make, dtype):
    """Mean absolute gradients are 1, 17/6 and 11/3, whatever they are scaled with."""
    model = nn.ParameterList([theta(2.0, -3.0, 0.5, dtype=dtype)])
    w = model[0]

    def losses_of(batch):
        losses = {"data": w.sum(), "initial": w.prod(), "pde": w.square().sum()}
        return {term: batch[term] * loss for term, loss in losses.items()}

    balancer = GradientBalancer.simplified(TERMS, alpha=1.0)
    take = make(losses_of, model, balancer)

    @given(exponents=st.tuples(EXPONENTS, EXPONENTS, EXPONENTS))
    def check(exponents):
        w.grad = None
        scales = dict(zip(TERMS, (10.0**e for e in exponents), strict=True))
        weights = take({term: torch.tensor(s, dtype=dtype) for term, s in scales.items()})
        ratios = {"data": 1.0, "initial": 6 / 17, "pde": 3 / 11}
        for term in TERMS:
            expected = ratios[term] * scales["data"] / scales[term]
            assert weights[term] == pytest.approx(expected, rel=1e-5)
        direction = [1 - 9 / 17 + 12 / 11, 1 + 6 / 17 - 18 / 11, 1 - 36 / 17 + 3 / 11]
        assert (w.grad.double() / scales["data"]).tolist() == pytest.approx(direction, rel=1e-5)

    check()


@pytest.mark.parametrize("run", [eager, Recorded])
def test_terms_may_be_residuals(run):
    """Their mean squares, added up, are the losses."""
    model, other = network(), network()
    step = Step(three_terms(model), model, GradientBalancer.simplified(TERMS), run=run)
    expected = Step(three_losses(other), other, GradientBalancer.simplified(TERMS))
    for seed in range(3):
        torch.testing.assert_close(step(batch(seed=seed)), expected(batch(seed=seed)))
    torch.testing.assert_close(gradients(model), gradients(other))


@pytest.mark.parametrize("run", [eager, Recorded])
def test_what_it_returns(run):
    model, balancer = network(), GradientBalancer.simplified()
    losses, weights = Step(quick_losses(model), model, balancer, run=run)(batch())
    torch.testing.assert_close(
        losses, torch.stack([*quick_losses(model)(batch()).values()]).detach()
    )
    assert weights.dtype == torch.float64
    assert torch.equal(weights, balancer.weights)
    assert not losses.requires_grad
    assert not weights.requires_grad
    weights.zero_()
    assert balancer.weights[0] == 1


def test_a_rule_may_look_at_losses_and_a_network_of_a_stack_may_fail():
    w, factors = theta(1.0, 2.0), torch.tensor([1.0, math.nan], dtype=torch.float64)
    balancer = Balancer(["a", "b", "c"], Inverse())
    step = Step(lambda _: {t: w**2 * k for t, k in zip("abc", (1, 3, factors), strict=True)},
                [w], balancer, stack=(2,))  # fmt: skip
    losses, weights = step({})
    assert losses[0].tolist() == [1.0, 3.0, 1.0]
    assert weights.tolist() == [[1.0, pytest.approx(1 / 3), 1.0], [1.0] * 3]
    assert w.grad.tolist() == [pytest.approx(6.0), 0.0]
    assert balancer.failed.tolist() == [-1, 0]


def test_losses_come_in_any_order():
    first, second = theta(1.0, 2.0), theta(1.0, 2.0)
    for w, names in ((first, ["data", "pde"]), (second, ["pde", "data"])):
        losses = {"data": w.sum(), "pde": w.prod()}
        weights = balanced_backward(
            {name: losses[name] for name in names}, [w], GradientBalancer.simplified()
        )
        assert list(weights) == ["data", "pde"]
    assert torch.equal(first.grad, second.grad)


def test_weights_may_be_a_dictionary():
    w = theta(1.0, 2.0)
    losses = {"pde": w.prod(), "data": w.sum()}
    assert balanced_backward(losses, [w], {"data": 10.0, "pde": 0.5}) == {"data": 10.0, "pde": 0.5}
    assert w.grad.tolist() == [11.0, 10.5]


def test_the_weights_returned_stay_those_of_their_step():
    w, balancer = theta(1.0, 2.0), GradientBalancer.simplified()
    read, unread = (
        balanced_backward({"data": f * w.sum(), "pde": w.prod()}, [w], balancer)
        for f in (1.0, 100.0)
    )
    assert read == {"data": 1.0, "pde": pytest.approx(0.1 + 0.9 / 1.5)}
    balanced_backward({"data": w.sum(), "pde": w.prod()}, [w], balancer)
    assert unread["pde"] == pytest.approx(0.1 * read["pde"] + 0.9 * 100 / 1.5)


@pytest.mark.parametrize("make", THREE.values(), ids=THREE)
def test_gradients_add_up_in_place(make):
    """A flat buffer of gradients, as data-parallel optimizers have, keeps its views."""
    model = network()
    flat = torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    parts = flat.split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        p.grad = part.view_as(p)
    balancer = GradientBalancer.simplified(every=2)
    take, expected = make(quick_losses(model), model, balancer), torch.ones_like(flat)
    for seed in range(3):
        weights = take(batch(seed=seed))
        total = weighted_sum(weights, quick_losses(model)(batch(seed=seed)))
        row = torch.autograd.grad(total, [*model.parameters()])
        expected += torch.cat([g.flatten() for g in row])
        torch.testing.assert_close(flat, expected)


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_clipping_and_schedulers_go_on_as_before(make_optimizer):
    models = network(), network()
    balancers = [GradientBalancer.simplified(TERMS) for _ in models]
    for model, balancer in zip(models, balancers, strict=True):
        optimizer = make_optimizer(model.parameters())
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for _ in range(8):
            optimizer.zero_grad()
            losses = three_losses(model)(batch())
            if model is models[0]:
                balanced_backward(losses, model, balancer)
            else:
                weights = balancer.update(gradient_matrix(three_losses(model)(batch()), model))
                torch.dot(weights, torch.stack([*losses.values()])).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
    assert_same_parameters(*models, rtol=1e-8, atol=1e-10)


def test_lbfgs_with_a_closure_goes_on_as_before():
    models = network(), network()
    values = {model: [] for model in models}
    for model in models:
        balancer = GradientBalancer.simplified(TERMS, alpha=0.1)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, lr=0.1)

        def closure(model=model, balancer=balancer, optimizer=optimizer):
            optimizer.zero_grad()
            losses = three_losses(model)(batch())
            if model is models[0]:
                total = weighted_sum(balanced_backward(losses, model, balancer), losses)
            else:
                weights = balancer.update(gradient_matrix(three_losses(model)(batch()), model))
                total = torch.dot(weights, torch.stack([*losses.values()]))
                total.backward()
            values[model].append(total.item())
            return total

        for _ in range(3):
            optimizer.step(closure)
    assert values[models[0]] == pytest.approx(values[models[1]], rel=1e-6)
    assert len(values[models[0]]) > 10
    assert_same_parameters(*models, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "make_optimizer"),
    [*((BOTH["eager"], m) for m in OPTIMIZERS.values()), (THREE["recorded"], OPTIMIZERS["Adam"])],
)
def test_a_training_resumes_bit_exactly_from_a_file(tmp_path, make, make_optimizer):
    every = 1 if make is THREE["recorded"] else 4  # each kind of step takes time to record

    def parts():
        model = network()
        optimizer = make_optimizer(model.parameters())
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        balancer = GradientBalancer.simplified(
            alpha=0.3, every=every, warm_start=True, bounds=(0.1, 10.0)
        )
        return model, optimizer, scheduler, balancer, seeded(1)

    def advance(steps, model, optimizer, scheduler, balancer, generator):
        take = make(quick_losses(model), model, balancer)
        for _ in range(steps):
            x = torch.rand(8, 2, dtype=torch.float64, generator=generator)
            optimizer.zero_grad()
            take({"x": x})
            optimizer.step()
            scheduler.step()

    whole, first, second = parts(), parts(), parts()
    advance(14, *whole)
    advance(7, *first)
    *objects, generator = first
    states = [thing.state_dict() for thing in objects]
    torch.save([*states, generator.get_state()], tmp_path / "run.pt")
    *states, random_state = torch.load(tmp_path / "run.pt", weights_only=True)
    *objects, generator = second
    for thing, state in zip(objects, states, strict=True):
        thing.load_state_dict(state)
    generator.set_state(random_state)
    advance(7, *second)
    assert_same_parameters(whole[0], second[0], rtol=0, atol=0)
    assert torch.equal(whole[3].weights, second[3].weights)


def test_compiled_like_eager_while_the_parameters_move(recorded_only):
    """With PyTorch's own tracing of the recording, of steps that are due and of others."""
    runs = []
    for run in (Recorded, eager):
        model = network()
        balancer = GradientBalancer.simplified(warm_start=True, bounds=(0.95, 1.05), every=3)
        step = Step(quick_losses(model), model, balancer, run=run)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        found = []
        for seed in range(8):
            optimizer.zero_grad()
            found.append(step(batch(seed=seed)))
            optimizer.step()
        runs.append((found, gradients(model)))
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("run", [eager, Recorded])
def test_a_rule_is_told_whether_it_is_recorded(run):
    found = []

    class Asking(Constant):
        def __call__(self, seen, state):
            found.append(seen.is_recorded)
            return super().__call__(seen, state)

    model = network()
    Step(
        quick_losses(model),
        model,
        Balancer(["data", "pde"], Asking({"data": 1.0, "pde": 1.0})),
        run=run,
    )(batch())
    assert set(found) == {run is Recorded}


def test_threads_do_not_meet():
    """Eight trainings at once give what one after the other gives."""

    def training(seed, results, run):
        model = network(seed=seed)
        step = Step(quick_losses(model), model, GradientBalancer.simplified(), run=run)
        results[seed] = [step(batch(seed=s)) for s in range(5)]

    alone, together = {}, {}
    for seed in range(4):
        training(seed, alone, eager)
    threads = [
        threading.Thread(target=training, args=(seed, together, run))
        for seed, run in zip(range(4), (eager, Recorded, eager, eager), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close([together[s] for s in range(4)], [alone[s] for s in range(4)])


# Parameters


@pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)
def test_unused_and_frozen_parameters_are_left_alone(make):
    model = Branched()
    make(two_losses(model), model, GradientBalancer.simplified())(batch())
    assert model.unused.grad is None
    assert model.frozen.grad is None
    assert model.data_only.grad is not None
    weights = make(two_losses(model), model, Balancer(["data", "pde"], {"data": 0.0, "pde": 1.0}))
    model.zero_grad()
    weights(batch())
    assert model.data_only.grad.tolist() == [0.0, 0.0]  # used, with the weight 0
    assert model.unused.grad is None


def test_a_shared_parameter_counts_once():
    model = network()
    model.layers.append(model.layers[1])
    model.layers[2], model.layers[3] = model.layers[3], model.layers[2]
    twice = [p for layer in model.layers for p in layer.parameters()]
    assert len(twice) == len(list(model.parameters())) + 2
    weights = balanced_backward(two_losses(model)(batch()), twice, GradientBalancer.simplified())
    actual = gradients(model)
    model.zero_grad()
    weighted_sum(weights, two_losses(model)(batch())).backward()
    torch.testing.assert_close(actual, gradients(model))


@pytest.mark.parametrize("beside", [lambda c: [c, c], lambda c: [c], lambda c: iter([c, c])])
def test_a_coefficient_listed_twice_gets_its_gradient_once(beside):
    w, c = theta(1.0, 2.0), theta(3.0)
    losses = {"data": w.sum() * c.squeeze(), "pde": w.prod()}
    balanced_backward(losses, [w], {"data": 1.0, "pde": 1.0}, beside=beside(c))
    assert c.grad.tolist() == [3.0]
    balanced_backward({"a": (w.sum() * c).sum()}, [w], {"a": 1.0}, beside=[w, c])
    assert c.grad.tolist() == [6.0]


def test_mixed_dtypes():
    single, double = theta(2.0, 1.0, dtype=torch.float32), theta(3.0, 4.0)
    for _ in range(2):
        losses = {"data": (single * double).sum(), "pde": 10 * double.sum() + single.sum()}
        balanced_backward(losses, [single, double], GradientBalancer.simplified(alpha=1.0))
    assert single.grad.dtype == torch.float32
    assert double.grad.dtype == torch.float64
    weight = (2 + 1 + 3 + 4) / 22
    torch.testing.assert_close(single.grad, 2 * torch.tensor([3 + weight, 4 + weight]))
    torch.testing.assert_close(double.grad, 2 * (theta(2.0, 1.0).detach() + 10 * weight))


def test_a_parameter_that_is_not_contiguous():
    w = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T.requires_grad_()
    factor = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    losses = {"data": (w * factor).sum(), "pde": (w * factor).sum()}
    balanced_backward(losses, [w], GradientBalancer.simplified())
    torch.testing.assert_close(w.grad, 2 * factor)
    assert w.grad.stride() == w.stride()  # a fused optimizer relies on it


def test_parameters_frozen_or_replaced_later_are_refused(refused):
    message = "parameters? .* this Step was made.*: make a new"
    changes = [
        lambda m: m.layers[0].weight.requires_grad_(False),
        lambda m: setattr(m.layers[1], "bias", nn.Parameter(torch.ones(6, dtype=torch.float64))),
        lambda m: m.load_state_dict(network(seed=1).state_dict(), assign=True),
        lambda m: m.register_parameter("more", nn.Parameter(torch.ones(1, dtype=torch.float64))),
        lambda m: m.requires_grad_(False),
        lambda m: setattr(m, "layers", m.layers[:1]),
    ]
    for change in changes:
        model, balancer = network(), GradientBalancer.simplified()
        step = Step(two_losses(model), model, balancer)
        step(batch())
        change(model)
        with refused(model, balancer, match=message):
            step(batch())
    model, balancer = network(), GradientBalancer.simplified()
    step = Step(two_losses(model), model.parameters(), balancer)
    model.layers[0].weight.requires_grad_(False)
    with refused(model, balancer, match="was frozen after this Step was made: make a new one"):
        step(batch())
    unknown = theta(1.0)
    step = Step(two_losses(model), model, balancer, beside=[unknown])
    unknown.requires_grad_(False)
    with refused(model, balancer, match="was frozen after"):
        step(batch())


def test_numbers_put_into_the_parameters_are_seen():
    """Loading a state in place is no other model."""
    models = network(), network(seed=1)
    step = Step(quick_losses(models[0]), models[0], GradientBalancer.simplified(), run=Recorded)
    step(batch())
    models[0].load_state_dict(models[1].state_dict())
    expected = Step(quick_losses(models[1]), models[1], {"data": 1.0, "pde": 1.0})(batch())
    torch.testing.assert_close(step(batch())[0], expected[0])


def test_bad_parameters_are_refused():
    w = theta(1.0)
    losses = {"data": w.sum(), "pde": w.sum()}
    hooked = theta(1.0)
    hooked.register_post_accumulate_grad_hook(lambda p: None)
    for params, message in (
        ([], "no trainable parameter: pass some with requires_grad"),
        ([hooked], r"\(1,\) has a hook after accumulation, which never runs here: remove it"),
        ([w * 2], r"\(1,\) was computed from others"),
        ([w + 0j], "complex"),
    ):
        with pytest.raises(ValueError, match=message):
            balanced_backward(losses, params, GradientBalancer.simplified())
        with pytest.raises(ValueError, match=message):
            Step(lambda _: losses, params, GradientBalancer.simplified())
    with pytest.raises(TypeError, match="params is one tensor: pass a list"):
        balanced_backward(losses, w, GradientBalancer.simplified())
    with pytest.raises(ValueError, match="has a hook after accumulation"):
        balanced_backward(losses, [w], GradientBalancer.simplified(), beside=[hooked])
    with pytest.raises(TypeError, match="balancer is None: pass a GradientBalancer, or weights"):
        balanced_backward(losses, [w], None)


# What leaves everything as it was


@pytest.mark.parametrize("term", ["data", "pde"])
@pytest.mark.parametrize("bad", BAD_LOSSES)
@pytest.mark.parametrize("make", AT_ONCE.values(), ids=AT_ONCE)
def test_bad_losses_are_refused_and_nothing_changes(refused, make, bad, term):
    model = network()
    balancer = GradientBalancer.simplified(warm_start=True, bounds=(0.1, 10.0))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        ENTRANCES["eager"](two_losses(model), model, balancer)(batch())
        optimizer.step()
    spoil, message = BAD_LOSSES[bad]

    def losses_of(batch):
        losses = two_losses(model)(batch)
        return losses | {term: spoil(losses[term], list(model.parameters()))}

    take = make(losses_of, model, balancer)
    with refused(model, optimizer, balancer, match=message.format(repr(term))):
        take(batch())


@pytest.mark.parametrize("make", THREE.values(), ids=THREE)
def test_what_becomes_bad_later_is_refused(refused, make):
    """Also by machine code, which sees values only."""
    model, balancer = network(), GradientBalancer.simplified()

    def losses_of(batch):
        # The root has an infinite slope at zero, where its value is fine.
        losses = quick_losses(model)(batch)
        return losses | {"pde": (losses["pde"] * batch["factor"]).sqrt()}

    take = make(losses_of, model, balancer)
    good, zero, bad = (
        batch() | {"factor": torch.tensor(f, dtype=torch.float64)} for f in (1.0, 0.0, math.nan)
    )
    take(good)
    with refused(model, balancer, match="gradient of loss 'pde' at step 1 has .* not finite"):
        take(zero)
    with refused(model, balancer, match="loss 'pde' is nan"):
        take(bad)
    take(good)
    assert balancer.step == 2


@pytest.mark.parametrize("make", THREE.values(), ids=THREE)
def test_between_updates_bad_gradients_are_refused_too(refused, make):
    model, balancer = network(), GradientBalancer.simplified(every=10)

    def losses_of(batch):
        losses = quick_losses(model)(batch)
        return losses | {"pde": (losses["pde"] * batch["factor"]).sqrt()}

    take = make(losses_of, model, balancer)
    good, zero = (batch() | {"factor": torch.tensor(f, dtype=torch.float64)} for f in (1.0, 0.0))
    take(good)
    message = "balanced gradient at step 1 is not finite .* weights {'data': 1.0, 'pde': .*bound"
    with refused(model, balancer, match=message):
        take(zero)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["data", "pde"], r"terms \['initial'\] are missing and \[\] are unknown: pass exactly"),
        ([*TERMS, "edge"], r"terms \[\] are missing and \['edge'\] are unknown: pass exactly"),
        (["data", "inital", "pde"], r"\['initial'\] .* \['inital'\] are unknown: .* every step"),
        (["z", "y", "x"], r"\['data', 'initial', 'pde'\] are missing and \['z', 'y', 'x'\] are"),
        ([], r"terms \['data', 'initial', 'pde'\] are missing"),
    ],
)
@pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)
def test_other_terms_are_refused(refused, make, names, message):
    model, balancer = network(), GradientBalancer.simplified(TERMS)
    make(three_losses(model), model, balancer)(batch())
    take = make(lambda b: {n: model(b["x"]).mean() for n in names}, model, balancer)
    with refused(model, balancer, match=message):
        take(batch())
    make(three_losses(model), model, balancer)(batch())  # and goes on


@pytest.mark.parametrize("form", [list, iter, sum], ids=["list", "generator", "total"])
@pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)
def test_losses_without_names_are_refused(refused, make, form):
    model, balancer = network(), GradientBalancer.simplified(TERMS)
    take = make(lambda b: form([model(b["x"]).mean()] * 3), model, balancer)
    message = r"no names: pass a dictionary, with a loss for each of \['data', 'initial', 'pde'\]"
    with refused(model, balancer, raises=TypeError, match=message):
        take(batch())


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)
def test_a_term_without_gradient_is_refused(refused, make, every):
    model, other = network(), theta(1.0)
    balancer = GradientBalancer.simplified(every=every)
    make(two_losses(model), model, balancer)(batch())
    take = make(lambda _: {"data": other.sum(), "pde": other.sum()}, model, balancer)
    name = "loss 'data'" if every == 1 else "loss 'the weighted sum'"
    with refused(model, balancer, match=f"{name} uses none of the parameters: compute it from"):
        take(batch())


BAD_KINDS = [
    ({"data": 1.0}, TypeError, "loss 'data' is 1.0: pass a scalar tensor with a graph, or a list"),
    ({"data": None}, TypeError, "loss 'data' is None: pass a scalar tensor with a graph, or a li"),
    ({"data": []}, TypeError, r"loss 'data' is \[\]: pass a scalar tensor with a graph, or a list"),
    ({"data": [theta(1.0)]}, ValueError, r"residual 'data\[0\]' has shape \(1,\): let it be \(N"),
    ({"data": [theta(1.0).reshape(1, 1)]}, TypeError, "loss 'pde' is 2"),
    ({"data": theta(1.0).sum() + 0j}, ValueError, "loss 'data' is complex"),
]


@pytest.mark.parametrize(("bad", "kind", "message"), BAD_KINDS)
def test_losses_of_another_kind_are_refused(bad, kind, message):
    losses = {"data": theta(1.0).sum(), "pde": theta(1.0).sum()} | bad
    if kind is TypeError and "pde" in message:
        losses["pde"] = 2
    with pytest.raises(kind, match=message):
        balanced_backward(losses, [theta(1.0)], GradientBalancer.simplified())


def failing(*args, **kwargs):
    raise ValueError("of a user's own")


def not_finite(value):
    return lambda G, used=None: torch.full_like(G[..., 0], value)


RULES = {
    "statistic": (Follow(Ratio(statistic=failing)), "of a user's own"),
    "reference": (Follow(Ratio(reference=failing)), "of a user's own"),
    "average": (Follow(Ratio(), average=failing), "of a user's own"),
    "a statistic of another shape": (
        Follow(Ratio(statistic=lambda G, used: G.sum())),
        r"the statistic maps \(2, 67\) to \(\): let it return a size for each",
    ),
    "a negative statistic": (Follow(Ratio(statistic=not_finite(-1.0))), "weight of 'data' at step"),
    "an infinite statistic": (Follow(Ratio(statistic=not_finite(math.inf))), "weight of 'data'"),
    "an undefined statistic": (Follow(Ratio(statistic=not_finite(math.nan))), "weight of 'data'"),
    "an undefined average": (
        Follow(Ratio(), average=lambda old, new, alpha: old * math.nan),
        "weight of 'data' at step 1 would be nan: the rule met a negative or infinite size",
    ),
}


class Wrong(weighting.Rule):
    def __call__(self, seen, state):
        return seen.weights[..., :1], state


RULES["a rule of another shape"] = (Wrong(), r"the rule returned \(1,\): let it return weights")


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("make", AT_ONCE.values(), ids=AT_ONCE)
def test_what_a_user_wrote_may_fail(refused, make, name):
    rule, error = RULES[name]
    model, balancer = network(), Balancer(["data", "pde"], rule)
    balancer.step = 1
    balanced_backward(two_losses(model)(batch()), model, {"data": 1.0, "pde": 1.0})
    take = make(two_losses(model), model, balancer)
    with refused(model, balancer, match=error):
        take(batch())


@pytest.mark.parametrize("stack", [(), (2,)])
def test_losses_that_fail_change_nothing_of_a_new_balancer(stack):
    model, balancer = network(), GradientBalancer.simplified()
    step = Step(failing, model.layers[:1], balancer, stack=stack)
    with pytest.raises(ValueError, match="of a user's own"):
        step(batch())
    assert balancer.weights.tolist() == [1.0, 1.0]
    assert balancer.step == 0


def interrupted(action, at):
    """Run an action with a KeyboardInterrupt before its line number ``at`` in this package."""
    lines = count()

    def trace(frame, event, arg):
        if "pinnlib" not in frame.f_code.co_filename:
            return None
        if event == "line" and next(lines) == at:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt as interrupt:
        tail = interrupt.__traceback__
        names = []
        while tail is not None:
            names.append(tail.tb_frame.f_code.co_name)
            tail = tail.tb_next
        return names[-2]  # the last is trace itself
    finally:
        sys.settrace(before)
        torch.set_grad_enabled(True)  # Python may interrupt a with block at its end
    return None


def test_an_interrupt_leaves_all_or_nothing_but_where_gradients_are_written():
    """At each line of a step: no state without its gradients, but between the two writes."""

    def parts():
        w = theta(1.0, 2.0), theta(3.0)
        losses = {"data": (w[0] * w[1]).sum(), "pde": w[0].prod() + w[1].sum()}
        balancer = GradientBalancer.simplified(warm_start=True)
        for p in w:
            p.grad = torch.ones_like(p)
        return w, balancer, lambda: balanced_backward(losses, w, balancer)

    def state(w, balancer):
        return [balancer.step, balancer.weights.tolist(), *(p.grad.tolist() for p in w)]

    w, balancer, take = parts()
    before = state(w, balancer)
    take()
    after = state(w, balancer)
    window = []
    for at in count():
        w, balancer, take = parts()
        where = interrupted(take, at)
        if where is None:
            break
        if (found := state(w, balancer)) not in (before, after):
            assert found[:2] == after[:2]  # the balancer itself is never half-done
            window.append(where)
    assert at > 100  # lines seen
    assert set(window) <= {"accumulate", "commit", "apply"}
    assert len(window) <= 10


# Modes of PyTorch


def test_no_grad_around_losses_made_outside():
    w, balancer = theta(1.0, 3.0), GradientBalancer.simplified(alpha=0.5)
    losses = {"data": w.sum(), "pde": w.square().sum()}
    with torch.no_grad():
        assert balanced_backward(losses, [w], balancer) == {"data": 1.0, "pde": 0.625}
    assert w.grad.tolist() == [2.25, 4.75]


@pytest.mark.parametrize("make", AT_ONCE.values(), ids=AT_ONCE)
def test_inference_mode_is_refused_by_name(refused, make):
    model, balancer = network(), GradientBalancer.simplified()
    losses = two_losses(model)(batch())
    message = "inference_mode is on, which records no graph: leave it first"
    take = make(lambda _: losses, model, balancer)
    with refused(model, balancer, match=message), torch.inference_mode():
        take(batch())


def test_an_overflowing_grad_scaler_is_named(refused):
    w, balancer = nn.Parameter(torch.ones(1)), GradientBalancer.simplified()
    losses = {"data": w.sum() * 2.0**127 * 4, "pde": w.sum()}
    message = "loss 'data' is inf: .*losses that a GradScaler has scaled overflow: pass unscaled"
    with refused(nn.ParameterList([w]), balancer, match=message):
        balanced_backward(losses, [w], balancer)


@pytest.mark.parametrize("run", [eager, Recorded])
@pytest.mark.parametrize("every", [1, 2])
def test_autocast_does_not_round_the_balanced_gradient(run, every):
    w = theta(*torch.randn(500, generator=seeded()).tolist(), dtype=torch.float32)
    other = w.detach().clone().requires_grad_()
    terms = [lambda _, w=w: {"data": (w * 1.001).sum(), "pde": (w**3).sum()} for w in (w, other)]
    inside, outside = (
        Step(t, [p], GradientBalancer.simplified(every=every), run=run)
        for t, p in zip(terms, (w, other), strict=True)
    )
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            inside({})
        outside({})
    assert w.grad.dtype == torch.float32
    torch.testing.assert_close(w.grad, other.grad, rtol=1e-6, atol=1e-6)


def test_autocast_of_a_network():
    """In bfloat16 within, in float32 without; the rule sees what autocast makes of it."""
    model, balancer = network().float(), GradientBalancer.simplified(alpha=1.0)
    x = points().float()

    def losses():
        with torch.autocast("cpu", torch.bfloat16):
            u = model(x)
            return {"data": (u - 1).square().mean(), "pde": 100 * (u - x[:, :1]).square().mean()}

    with torch.autocast("cpu", torch.bfloat16):
        weights = balanced_backward(losses(), model, balancer)
    G = gradient_matrix(losses(), model)
    assert weights["pde"] == pytest.approx((G[0].abs().mean() / G[1].abs().mean()).item(), rel=1e-6)
    expected = torch.tensor([1.0, weights["pde"]], dtype=torch.float64) @ G.double()
    actual = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_keeps_the_dtype(dtype):
    model = network().to(dtype)
    u = model(points().to(dtype))
    losses = {"data": (u - 1).square().mean(), "pde": 10 * u.square().mean()}
    balanced_backward(losses, model, GradientBalancer.simplified())
    assert {p.grad.dtype for p in model.parameters()} == {dtype}
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_balanced_gradient_that_overflows_is_named(refused):
    w = nn.Parameter(torch.ones(5000, dtype=torch.float16))
    c = torch.full((5000,), 1e-3)
    c[0] = 10
    losses = {"data": (20 * w.float()).sum(), "pde": (c * w.float()).sum()}
    balancer = GradientBalancer.simplified(alpha=1.0)
    message = r"the balanced gradient at step 0 is not finite in torch.float16, with the weights"
    with refused(nn.ParameterList([w]), balancer, match=message):
        balanced_backward(losses, [w], balancer)


def test_an_overflow_in_one_of_several_precisions_is_named(refused):
    narrow, wide = (nn.Parameter(torch.ones(2, dtype=t)) for t in (torch.float16, torch.float32))
    losses = {"data": 1e6 * wide.sum(), "pde": (narrow.float() + 1e-6 * wide).sum()}
    params, balancer = nn.ParameterList([narrow, wide]), GradientBalancer.simplified()
    with refused(params, balancer, match="balanced gradient at step 0 is not finite"):
        balanced_backward(losses, params, balancer)


@pytest.mark.parametrize(("dtype", "small"), [(torch.float16, 1e-4), (torch.float32, 1e-30)])
def test_a_weight_below_the_smallest_number_drops_no_term(dtype, small):
    """λ = small² vanishes in the precision of G, and λG does not."""
    w = torch.ones(2, dtype=dtype, requires_grad=True)
    losses = {"data": (small * w).sum(), "pde": (w / small).sum()}
    weights = balanced_backward(losses, [w], GradientBalancer.simplified(alpha=1.0))
    assert weights["pde"] == pytest.approx(small**2, rel=1e-2)
    assert (w.grad / small).tolist() == pytest.approx([2.0, 2.0], rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_constant_below_the_smallest_number_is_refused(refused, dtype):
    w = nn.Parameter(torch.ones(2, dtype=dtype))
    for losses in (
        {"data": w.sum(), "pde": w.sum()},
        {"data": w.double().sum(), "pde": w.sum()},  # which are stacked as the wider of the two
    ):
        with refused(nn.ParameterList([w]), match="balanced gradient at step 0 is not finite"):
            balanced_backward(losses, [w], {"data": 1.0, "pde": 1e-60})


def test_probes_need_residuals():
    w = theta(1.0, 2.0)
    balancer = Balancer(["data", "pde"], Follow(KernelTrace()))
    losses = {"data": w.sum(), "pde": w.prod()}
    message = r"rule looks at residuals, and 'data' is a loss: pass a list of residuals \(N, 1\)"
    with pytest.raises(ValueError, match=message):
        balanced_backward(losses, [w], balancer)
    assert balancer.step == 0
    residuals = {"data": [w[:, None]], "pde": [w[:, None] * 3]}
    balanced_backward(residuals, [w], balancer)
    assert balancer.state["key"] == 1


# One of many processes


def test_a_group_that_was_formed_after_the_step_is_noticed(refused, monkeypatch):
    model, balancer = network(), GradientBalancer.simplified()
    step = Step(quick_losses(model), model, balancer)
    step(batch())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with refused(model, balancer, match="this is one of 2 processes"):
        step(batch())


def test_processes_are_compared_at_the_first_step_only():
    model, numbers = network(), []
    step = Step(
        three_terms(model),
        model,
        GradientBalancer.simplified(TERMS),
        reduce=lambda x: numbers.append(x.dtype) or 2 * x,  # another one that is alike
    )
    for _ in range(2):
        step({"x": points()})
        numbers.append(None)
    end = numbers.index(None)
    assert numbers[:end].count(torch.int64) == 2
    assert numbers[end:].count(torch.int64) == 0


@pytest.mark.parametrize(
    ("which", "name"),
    [
        (0, "their terms"),
        (1, "their balancers"),
        (2, "their parameters"),
    ],
)
def test_processes_that_differ_are_refused(refused, which, name):
    model, balancer = network(), GradientBalancer.simplified(TERMS)

    def reduce(x):
        other = x.clone()
        if x.dtype == torch.int64:
            other[1 + which] += 1
        return x + other

    step = Step(three_terms(model), model, balancer, reduce=reduce)
    with refused(model, balancer, match=f"the 2 processes differ in {name}, so they would"):
        step({"x": points()})


def test_processes_whose_terms_use_other_parameters_are_refused(refused):
    model, balancer, asked = network(), GradientBalancer.simplified(TERMS), []

    def reduce(x):
        if x.dtype != torch.int64:
            return 2 * x
        asked.append(x)
        twice = 2 * x
        twice[1] += len(asked) == 2  # at the second comparison
        return twice

    step = Step(three_terms(model), model, balancer, reduce=reduce)
    with refused(model, balancer, match="differ in the parameters that a term uses"):
        step({"x": points()})


def test_processes_may_have_losses_without_residuals():
    model = network()
    step = Step(quick_losses(model), model, GradientBalancer.simplified(), reduce=lambda x: 2 * x)
    expected = quick_losses(model)(batch())
    torch.testing.assert_close(step(batch())[0], torch.stack([*expected.values()]).detach())


def test_rows_are_the_gradient_matrix():
    model, batch = network(), {"x": points()}
    step = Step(three_terms(model), model, GradientBalancer.simplified(TERMS, every=3))
    expected = gradient_matrix(three_losses(model)(batch), model)
    for _ in range(2):  # where it is due, and where it is not
        torch.testing.assert_close(step.rows(batch), expected)
        step(batch)
    assert step.balancer.step == 2
