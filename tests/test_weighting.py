"""Rules as a whole: against plain numbers, over scales, published, resumed, copied, stacked."""

import copy
import io
import math
import pickle
from statistics import fmean, geometric_mean

import hypothesis
import pytest
import torch
from helpers import EXPONENTS, TERMS, network, points, rows, seeded
from hypothesis import given
from hypothesis import strategies as st

from pinnlib import GradientBalancer, Step, balanced_backward
from pinnlib.derivatives import nested
from pinnlib.gradients import l2_norm, max_abs, mean_abs
from pinnlib.networks import Stacked
from pinnlib.residuals import losses_of
from pinnlib.weighting import (
    DCGD,
    Balancer,
    ConFIG,
    Constant,
    Follow,
    KernelTrace,
    Ratio,
    ReLoBRaLo,
    Rule,
    Seen,
    SoftAdapt,
    Uncertainty,
    arithmetic_average,
    geometric_mean_of_terms,
    logarithmic_average,
    mean_of_terms,
)
from pinnlib.weighting.rule import answer

pytestmark = pytest.mark.usefixtures("nothing_hidden")


# Against an independent implementation with plain numbers


class Oracle:
    """The documentation of Follow and Ratio, one number at a time."""

    def __init__(self, reference, size, alpha, every, weighted, geometric, warm_start, bounds):
        self.reference, self.size, self.alpha, self.every = reference, size, alpha, every
        self.weighted, self.geometric = weighted, geometric
        self.warm_start, self.bounds = warm_start, bounds
        self.weights, self.first, self.step = [1.0] * 3, [None] * 3, 0

    def update(self, G):
        if self.step % self.every == 0:
            sizes = [self.size(row) for row in G]
            is_term = isinstance(self.reference, int)
            R = sizes[self.reference] if is_term else self.reference(sizes)
            for k in range(3):
                if self.reference != k:
                    self.weights[k] = self.follow(k, R, sizes[k])
        self.step += 1
        return self.weights

    def follow(self, k, R, size):
        old = self.weights[k]
        if self.weighted:
            size *= old
        new = R / size if size > 0 else 1.0
        if self.first[k] is None and size > 0 and new > 0:
            self.first[k] = new
            if self.warm_start:
                old = new
        if not self.geometric:
            weight = (1 - self.alpha) * old + self.alpha * new
        elif new > 0:
            weight = math.exp((1 - self.alpha) * math.log(old) + self.alpha * math.log(new))
        else:
            weight = old
        if self.bounds and self.first[k] is not None:
            low, high = (factor * self.first[k] for factor in self.bounds)
            weight = min(max(weight, low), high)
        return weight


STATISTICS = [
    (mean_abs, lambda row: fmean(map(abs, row))),
    (max_abs, lambda row: max(map(abs, row))),
    (l2_norm, lambda row: math.hypot(*row)),
]
REFERENCES = [
    ("data", 0),
    ("pde", 2),
    (mean_of_terms, fmean),
    (geometric_mean_of_terms, lambda sizes: geometric_mean(sizes) if all(sizes) else 0.0),
]


@hypothesis.settings(max_examples=75)
@given(
    statistic=st.sampled_from(STATISTICS),
    reference=st.sampled_from(REFERENCES),
    alpha=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    every=st.integers(1, 4),
    weighted=st.booleans(),
    average=st.sampled_from([arithmetic_average, logarithmic_average]),
    warm_start=st.booleans(),
    bounds=st.sampled_from([None, (0.1, 3.0), (0.0, 10.0), (1.0, math.inf)]),
    zeros=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=4),
    seed=st.integers(0, 1000),
)
def test_balancer_equals_an_independent_implementation(
    statistic, reference, alpha, every, weighted, average, warm_start, bounds, zeros, seed
):
    ratio = Ratio(statistic[0], reference[0], weighted=weighted)
    balancer = Balancer(TERMS, Follow(ratio, alpha, average, warm_start, bounds), every=every)
    geometric = average is logarithmic_average
    oracle = Oracle(
        reference[1], statistic[1], alpha, every, weighted, geometric, warm_start, bounds
    )
    generator = seeded(seed)
    for step in range(12):
        exponents = torch.randint(-3, 4, (3, 1), generator=generator)
        G = torch.randn(3, 4, dtype=torch.float64, generator=generator) * 10.0**exponents
        for at, term in zeros:
            if at == step:
                G[term] = 0.0
        weights = balancer.update(G)
        assert weights.tolist() == pytest.approx(oracle.update(G.tolist()), rel=1e-9)


# Over scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=EXPONENTS, pde=EXPONENTS)
def test_target_over_scales(dtype, data, pde):
    target = GradientBalancer.simplified().target(rows(10.0**data, 10.0**pde, dtype=dtype))
    assert target.tolist() == pytest.approx([1.0, 10.0 ** (data - pde)], rel=1e-6)


@given(exponent=EXPONENTS)
def test_weights_do_not_depend_on_the_unit_of_all_losses(exponent):
    first, second = (GradientBalancer.simplified(alpha=0.5) for _ in range(2))
    for size in (1.0, 7.0, 0.3):
        a = first.update(rows(1.0, size))
        b = second.update(10.0**exponent * rows(1.0, size))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@given(exponent=EXPONENTS)
def test_fixed_point_of_the_weighted_rule_over_scales(exponent):
    rule = Follow(Ratio(weighted=True), alpha=0.5, average=logarithmic_average)
    balancer = Balancer(["data", "pde"], rule)
    for _ in range(3):
        weights = balancer.update(rows(10.0**exponent, 1.0))
    assert weights[1].log10().item() == pytest.approx(exponent / 2, abs=1e-9)


@pytest.mark.parametrize(
    ("weighted", "expected"), [(False, 1e4), (True, 1e2)], ids=["ratio", "root of the ratio"]
)
def test_fixed_point(weighted, expected):
    balancer = Balancer(["data", "pde"], Follow(Ratio(weighted=weighted), alpha=0.1))
    for _ in range(300):
        weights = balancer.update(rows(1e4, 1.0))
    assert weights.tolist() == pytest.approx([1.0, expected], rel=1e-9)


@given(data=st.integers(-38, 38), pde=st.integers(-38, 38), zero=st.sampled_from([None, 0, 1]))
def test_weights_are_finite_whatever_the_gradients(data, pde, zero):
    G = rows(10.0**data, 10.0**pde, dtype=torch.float32)
    if zero is not None:
        G[zero] = 0.0
    for reference in ("data", mean_of_terms, geometric_mean_of_terms):
        for weighted in (False, True):
            rule = Follow(Ratio(l2_norm, reference, weighted=weighted))
            balancer = Balancer(["data", "pde"], rule)
            for _ in range(3):
                weights = balancer.update(G)
                assert weights.isfinite().all()
                assert weights.float().isfinite().all()
                assert (weights >= 0).all()


# The published rules, each against its own few lines


def residuals_of(model):
    x = points(seed=1)
    u, (u_x, u_t), _ = nested(model, x, order=1)
    initial = model(x * torch.tensor([1.0, 0.0])) - 1
    return {
        "data": [u - x[:, :1]],
        "initial": [10**0.5 * initial],
        "pde": [10 * (u_t - u_x + u**2), initial[:3]],
    }


def simplified_ratios(losses, model, weights):
    def size(loss):
        gradients = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        return torch.cat([g.flatten() for g in gradients]).abs().mean()

    return {k: size(losses["data"]) / size(losses[k]) for k in ("initial", "pde")}


def preprint_ratios(losses, model, weights):
    def entries(loss):
        gradients = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        return torch.cat([g.flatten() for g in gradients]).abs()

    largest = entries(losses["pde"]).max()
    return {k: largest / entries(losses[k]).mean() for k in ("data", "initial")}


def journal_ratios(losses, model, weights):
    def by_layer(loss):
        matrices = [layer.weight for layer in model.layers]
        return [g.abs() for g in torch.autograd.grad(loss, matrices, retain_graph=True)]

    largest = max(g.max() for g in by_layer(losses["pde"]))

    def mean(loss):
        return sum(g.mean() for g in by_layer(loss)) / len(model.layers)

    return {k: largest / mean(weights[k] * losses[k]) for k in ("data", "initial")}


def jaxpi_ratios(losses, model, weights):
    def norm(loss):
        gradients = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        return sum(g.square().sum() for g in gradients).sqrt()

    norms = {k: norm(loss) for k, loss in losses.items()}
    return {k: sum(norms.values()) / 3 / norms[k] for k in losses}


def published(name, **settings):
    """A published rule for the network of these tests."""
    if name == "journal":
        settings["named_params"] = network().named_parameters()
    return getattr(GradientBalancer, name)(TERMS, **settings)


RULES = {
    "simplified": (simplified_ratios, 0.9, 1),
    "preprint": (preprint_ratios, 0.9, 10),
    "journal": (journal_ratios, 0.1, 10),
    "jaxpi": (jaxpi_ratios, 0.1, 20),
}


@pytest.mark.parametrize("name", RULES)
def test_published_rule_equals_its_own_implementation(name):
    ratios, alpha, every = RULES[name]
    model = network()
    params = list(model.parameters())
    optimizer = torch.optim.Adam(params, lr=1e-2)
    balancer = published(name, **({"every": every} if name == "jaxpi" else {}))
    weights = dict.fromkeys(TERMS, 1.0)
    for step in range(2 * every + 9):
        losses = losses_of(residuals_of(model))
        if step % every == 0:
            for term, ratio in ratios(losses, model, weights).items():
                weights[term] = (1 - alpha) * weights[term] + alpha * ratio.item()
        total = sum(weights[term] * losses[term] for term in TERMS)
        gradients = torch.autograd.grad(total, params, retain_graph=True)

        optimizer.zero_grad()
        used = balanced_backward(losses, params, balancer)
        optimizer.step()
        assert dict(used) == pytest.approx(weights, rel=1e-10)
        for p, gradient in zip(params, gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-10)
    assert max(weights.values()) / min(weights.values()) > 2  # they did move


# Every rule, one property at a time


class InverseLoss(Rule):
    """A rule of one's own, with a state: each weight is one over the mean of its losses so far."""

    def start(self, terms, weights):
        return {"total": torch.zeros_like(weights)}

    def __call__(self, seen, state):
        total = state["total"] + seen.losses
        return 1 / total, {"total": total}


BALANCERS = {
    "simplified": lambda: published("simplified", every=3, warm_start=True),
    "preprint": lambda: published("preprint", every=2, bounds=(0.1, 10)),
    "journal": lambda: published("journal", every=2, average=logarithmic_average),
    "jaxpi": lambda: published("jaxpi", every=2),
    "kernel": lambda: Balancer(TERMS, Follow(KernelTrace(seed=3), 0.5, bounds=(0.5, 2)), every=2),
    "soft": lambda: Balancer(TERMS, SoftAdapt(loss_weighted=True), every=2),
    "relobralo": lambda: Balancer(TERMS, ReLoBRaLo(0.1, rho=0.5, seed=3)),
    "uncertainty": lambda: Balancer(TERMS, Uncertainty(rate=0.01)),
    "config": lambda: Balancer(TERMS, ConFIG()),
    "dcgd": lambda: Balancer(TERMS, DCGD(), every=2),
    "constant": lambda: Balancer(TERMS, {"pde": 0.1, "data": 10.0, "initial": 1.0}),
    "own": lambda: Balancer(TERMS, InverseLoss()),
}


def train(balancer, steps, model=None, optimizer=None):
    """A short training, and all that it leaves."""
    model = model or network()
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1e-2)
    step = Step(lambda batch: residuals_of(model), model, balancer)
    weights = []
    for _ in range(steps):
        optimizer.zero_grad()
        weights.append(step({})[1])
        optimizer.step()
    return model, optimizer, torch.stack(weights)


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", BALANCERS)
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(name):
    whole, _, expected = train(BALANCERS[name](), 9)
    first = BALANCERS[name]()
    model, optimizer, weights = train(first, 4)
    second = BALANCERS[name]()
    second.load_state_dict(through_file(first.state_dict()))
    _, _, rest = train(second, 5, model, optimizer)
    assert torch.equal(torch.cat([weights, rest]), expected)
    assert all(map(torch.equal, model.parameters(), whole.parameters()))
    assert second.step == 9


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("name", BALANCERS)
def test_copies_of_a_balancer_go_on_alike_and_share_nothing(name, copied):
    balancer = BALANCERS[name]()
    model, _, _ = train(balancer, 3)
    other = copied(balancer)
    kept = copied(other.state_dict())
    continued = train(balancer, 3, copy.deepcopy(model))[2]
    assert repr(other.state_dict()) == repr(kept)
    assert torch.equal(train(other, 3, model)[2], continued)
    assert (other.terms, other.every, type(other)) == (
        balancer.terms,
        balancer.every,
        type(balancer),
    )


@pytest.mark.parametrize("name", BALANCERS)
def test_a_rule_is_pure_and_does_not_wait_for_the_device(name):
    """On the device meta, where no tensor has a value that a branch or a print could ask for."""
    balancer, meta = BALANCERS[name](), torch.device("meta")
    balancer.place((2,), meta)
    G = torch.empty(2, 3, 67, device=meta)
    seen = Seen(
        TERMS,
        balancer.weights,
        losses=torch.empty(2, 3, device=meta),
        rows=lambda: (G, torch.ones(3, 67, device=meta, dtype=torch.bool)),
        probes=lambda key: G * key,
    )
    weights, state = answer(balancer.rule, seen, balancer.state)
    for x, like in [(weights, balancer.weights), *((state[n], balancer.state[n]) for n in state)]:
        assert (x.shape, x.dtype, x.device) == (like.shape, like.dtype, meta)
    assert list(state) == list(balancer.state)
    assert balancer.step == 0


@pytest.mark.parametrize("bounds", [None, (0.1, 10)])
def test_weights_stay_on_the_cpu_whatever_the_default_device(bounds):
    G, losses = rows(1, 10, 100), torch.ones(3, dtype=torch.float64)
    with torch.device("meta"):  # where libraries put new tensors on a GPU, and nothing has a value
        balancers = {name: make() for name, make in BALANCERS.items()}
        del balancers["kernel"], balancers["journal"]
        found = {name: b.update(G, losses) for name, b in balancers.items()}
        balancer = published("simplified", alpha=0.5, bounds=bounds)
        weights = balancer.update(G)
    assert weights.device.type == balancer.weights.device.type == "cpu"
    assert weights.tolist() == [1.0, 0.55, 0.5 + 0.5 / 100 if bounds is None else 0.1]
    assert all(w.isfinite().all() for w in found.values())


def test_rules_show_their_settings_and_cannot_be_changed():
    for rule, shown in [
        (Constant({"data": 1.0}), "'data': 1.0"),
        (Follow(Ratio(), alpha=0.25), "alpha=0.25"),
        (Ratio(), "reference='data'"),
        (KernelTrace(seed=7), "seed=7"),
    ]:
        assert shown in repr(rule)
        for name in vars(rule):
            with pytest.raises(AttributeError):
                setattr(rule, name, None)


# Stacks


@pytest.mark.parametrize("reference", ["data", mean_of_terms], ids=["term", "mean"])
@pytest.mark.parametrize(
    ("ratio", "following", "every"),
    [
        ({}, {}, 1),
        ({"weighted": True, "reference_statistic": max_abs}, {}, 3),
        ({}, {"warm_start": True, "bounds": (0.5, 2.0), "average": logarithmic_average}, 1),
    ],
    ids=["plain", "weighted", "bounded"],
)
def test_a_stack_is_balanced_as_separate_matrices(reference, ratio, following, every):
    rule = Follow(Ratio(reference=reference, **ratio), alpha=0.5, **following)
    together, *separate = (Balancer(TERMS, rule, every=every) for _ in range(5))
    generator = seeded()
    for step in range(10):
        G = torch.randn(4, 3, 5, generator=generator) * 10.0 ** torch.arange(3)[:, None]
        if step == 0:
            G[1, 2] = 0.0  # this one has no first ratio yet
        weights = together.update(G)
        assert weights.shape == (4, 3)
        for s in range(4):
            assert torch.equal(weights[s], separate[s].update(G[s]))


@given(widths=st.lists(st.integers(1, 4), min_size=2, max_size=4), data=st.data())
def test_a_term_counts_only_the_parameters_that_it_uses(widths, data):
    """A branched network: each term is measured as if the others' branches were not there."""
    flags = st.lists(st.booleans(), min_size=len(widths), max_size=len(widths)).filter(any)
    used = torch.stack(
        [
            torch.cat([torch.full((n,), u) for n, u in zip(widths, data.draw(flags), strict=True)])
            for _ in range(2)
        ]
    )
    G = torch.randn(2, sum(widths), generator=seeded(), dtype=torch.float64) * used
    seen = Seen(["data", "pde"], torch.ones(2, dtype=torch.float64), rows=lambda: (G, used))
    sizes = [row[mask].abs().mean().item() for row, mask in zip(G, used, strict=True)]
    target, _ = Ratio(reference_statistic=mean_abs)(seen, {})
    assert target.tolist() == pytest.approx([1.0, sizes[0] / sizes[1]], rel=1e-12)
    target, _ = Ratio(reference=mean_of_terms)(seen, {})
    assert target.tolist() == pytest.approx([fmean(sizes) / size for size in sizes], rel=1e-12)


@pytest.mark.parametrize("stack", [(), (2,)])
def test_a_derivative_does_not_use_the_last_bias(stack):
    """Its zero in the row of the equation is no size: a wider last layer would change λ."""
    models = [network(seed=seed) for seed in range(2)]
    model = Stacked(models) if stack else models[0]

    def terms(model):
        x = points().expand(2, 8, 2) if isinstance(model, Stacked) else points()
        u, (u_x, u_t), _ = nested(model, x, order=1)
        return {"data": [u - 1], "pde": [u_t + 2 * u_x]}

    balancer = GradientBalancer.simplified(alpha=1.0)
    weights = Step(lambda _: terms(model), model, balancer, stack=stack)({})[1]
    for s, single in enumerate(models[: len(weights) if stack else 1]):
        losses, params = losses_of(terms(single)), list(single.parameters())
        data, pde = (
            torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
            for loss in losses.values()
        )
        assert pde[-1] is None or (pde[-1] == 0).all()
        flat = torch.cat([g.flatten() for g in pde if g is not None])
        expected = torch.cat([g.flatten() for g in data]).abs().mean() / flat.abs().mean()
        torch.testing.assert_close(weights[s][1] if stack else weights[1], expected)
