"""A training is the loop that its docstring writes out; many at once are each one alone."""

import math
import resource

import numpy as np
import pytest
import torch
from helpers import Curve, assert_same_parameters, curve_network, default_dtype, seeded
from torch import nn

from pinnlib.evaluation import relative_l2_error
from pinnlib.networks import MLP, FourierFeatures, GatedMLP, Stacked
from pinnlib.problems import Helmholtz, Problem, uniform
from pinnlib.recording import Recorded
from pinnlib.step import eager
from pinnlib.training import train, train_many
from pinnlib.weighting import Balancer, Follow, GradientBalancer, KernelTrace

pytestmark = pytest.mark.usefixtures("nothing_hidden", "not_compiled")

CONSTANT = {"data": 2.0, "pde": 0.5}
TERMS = ["data", "pde"]
BALANCERS = {
    "constant": lambda: CONSTANT,
    "simplified": GradientBalancer.simplified,
    "jaxpi": lambda: GradientBalancer.jaxpi(every=3),
}


@pytest.fixture
def in_float64():
    with default_dtype(torch.float64):
        yield


def train_by_hand(model, weights, recorded, *, steps, generator, n=128):
    """What train documents, written out: losses, weights and error at some steps."""
    problem, params, records = Curve(), list(model.parameters()), []
    optimizer = torch.optim.Adam(params, lr=5e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * 0.9 ** (step // 1000)
        losses = problem.losses(model, problem.sample(n, generator))
        current = weights
        if isinstance(weights, GradientBalancer):
            rows = [
                torch.autograd.grad(loss, params, retain_graph=True) for loss in losses.values()
            ]
            G = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
            current = dict(zip(losses, weights.update(G).tolist(), strict=True))
        optimizer.zero_grad()
        sum(current[term] * loss for term, loss in losses.items()).backward()
        optimizer.step()
        if step + 1 in recorded:
            values = {term: loss.item() for term, loss in losses.items()}
            records.append((values, current, relative_l2_error(model, problem)))
    return records


def assert_history(history, records, steps):
    assert history.steps.tolist() == steps
    for term in TERMS:
        losses, weights = ([record[i][term] for record in records] for i in (0, 1))
        np.testing.assert_allclose(history.losses[term], losses, rtol=1e-7)
        np.testing.assert_allclose(history.weights[term], weights, rtol=1e-7)
    np.testing.assert_allclose(history.errors, [record[2] for record in records], rtol=1e-7)


def assert_same_history(found, expected, *index, rtol):
    assert found.steps.tolist() == expected.steps.tolist()
    np.testing.assert_allclose(found.errors[index], expected.errors, rtol=rtol)
    for term in TERMS:
        np.testing.assert_allclose(found.losses[term][index], expected.losses[term], rtol=rtol)
        np.testing.assert_allclose(found.weights[term][index], expected.weights[term], rtol=rtol)


# train


@pytest.mark.parametrize("make", BALANCERS.values(), ids=BALANCERS)
def test_train_equals_a_loop_by_hand(in_float64, make):
    models = curve_network(), curve_network()
    settings = {"steps": 12, "n": 16}
    history = train(Curve(), models[0], make(), generator=seeded(1), record_every=5, **settings)
    recorded = [5, 10, 12]
    records = train_by_hand(models[1], make(), recorded, generator=seeded(1), **settings)
    assert_history(history, records, recorded)
    assert_same_parameters(*models, rtol=1e-7, atol=1e-10)
    assert history.errors[-1] == relative_l2_error(models[0], Curve())


def test_train_by_default(in_float64):
    models = curve_network(), curve_network()
    history = train(Curve(), models[0], CONSTANT, steps=101, generator=seeded(1))
    recorded = [100, 101]
    records = train_by_hand(models[1], CONSTANT, recorded, steps=101, generator=seeded(1))
    assert_history(history, records, recorded)
    assert_same_parameters(*models, rtol=1e-7, atol=1e-10)
    assert history.errors[-1] < relative_l2_error(curve_network(), Curve())


def test_train_depends_on_its_generator_only():
    def run(seed):
        model = curve_network()
        balancer = GradientBalancer.simplified()
        history = train(Curve(), model, balancer, steps=5, generator=seeded(seed), record_every=1)
        return model, history

    (first, history), (second, again), (_, other) = run(0), run(0), run(1)
    assert_same_parameters(first, second, rtol=0, atol=0)
    for term in TERMS:
        assert history.losses[term].tolist() == again.losses[term].tolist()
    assert history.losses["pde"].tolist() != other.losses["pde"].tolist()


@pytest.mark.parametrize("run", [eager, Recorded])
def test_a_training_may_be_taken_up_again(run):
    """With balancer, generator and optimizer as they were left, bit for bit."""
    models, optimizers = [curve_network() for _ in range(2)], {}

    def optimizer(params):
        key = id(params[0])
        return optimizers.setdefault(key, torch.optim.Adam(params))

    def go(model, balancer, generator, steps):
        train(
            Curve(), model, balancer, steps=steps, generator=generator, n=16, run=run,
            optimizer=optimizer, schedule=lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
        )  # fmt: skip

    whole, parts = (GradientBalancer.simplified(warm_start=True) for _ in range(2))
    generator = seeded(3)
    go(models[0], whole, seeded(3), 9)
    go(models[1], parts, generator, 4)
    resumed = GradientBalancer.simplified(warm_start=True)
    resumed.load_state_dict(parts.state_dict())
    go(models[1], resumed, generator, 5)
    assert_same_parameters(*models, rtol=0, atol=0)
    assert torch.equal(whole.weights, resumed.weights)
    assert resumed.step == 9


def test_points_by_set_and_by_a_sampler_of_ones_own():
    problem, seen = Helmholtz(), []
    options = {"steps": 2, "record_every": 1}
    model = MLP(problem.domain, width=4, depth=1, generator=seeded())

    class Shapes(Helmholtz):
        def residuals(self, model, batch):
            seen.append({name: tuple(x.shape) for name, x in batch.items()})
            return super().residuals(model, batch)

    train(Shapes(), model, CONSTANT, generator=seeded(), n={"boundary": 8, "pde": 5}, **options)
    assert seen == [{"boundary": (8, 2), "pde": (5, 2)}] * 2
    seen.clear()
    fixed = problem.sample(4, seeded())
    history = train(
        Shapes(), model, CONSTANT, generator=seeded(), n=10**9, sample=lambda g: fixed, **options
    )
    assert seen == [{"boundary": (4, 2), "pde": (4, 2)}] * 2
    assert history.losses["pde"][1] < history.losses["pde"][0]


def test_points_take_the_precision_of_the_network():
    model = curve_network().double()
    history = train(Curve(), model, CONSTANT, steps=2, generator=seeded())
    assert model.layers[0].weight.grad.dtype == torch.float64
    assert history.errors[-1] == relative_l2_error(model, Curve())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0, record_every 100: use a whole number, 1 or more"),
        ({"steps": 2.5}, "steps is 2.5, record_every 100: use a whole number"),
        ({"record_every": 0}, "steps is 1, record_every 0: use a whole number, 1 or more"),
        ({"record_every": 2.5}, "record_every 2.5: use a whole number"),
        ({"record_every": math.nan}, "record_every nan: use a whole number"),
        ({"record_every": "10"}, "record_every '10': use a whole number"),
        ({"n": 0}, "n is 0: use a whole number of points, 1 or more"),
        ({"balancer": {"data": 1.0}}, r"terms \['pde'\] are missing and \[\] are unknown: pass ex"),
        ({"balancer": CONSTANT | {"x": 1.0}}, r"missing and \['x'\] are unknown: pass exactly"),
        ({"balancer": {"data": math.nan, "pde": 1.0}}, "weight of 'data' is nan: pass a finite"),
        ({"balancer": {"data": -1.0, "pde": 1.0}}, "weight of 'data' is -1.0: pass a finite"),
        (
            {"balancer": GradientBalancer.simplified(["edge", "data"])},
            r"terms \['pde'\] are missing and \['edge'\] are unknown",
        ),
    ],
)
def test_train_refuses_and_changes_nothing(refused, settings, message):
    model, generator = curve_network(), seeded()
    settings = {"balancer": CONSTANT, "steps": 1} | settings
    with refused(model, match=message):
        train(Curve(), model, generator=generator, **settings)
    assert torch.equal(generator.get_state(), seeded().get_state())
    with pytest.raises(ValueError, match=message):
        train_many(Curve(), seeds=[0, 1], **settings)


def test_train_refuses_a_frozen_model_and_another_kind_of_weights():
    with pytest.raises(ValueError, match="no trainable parameter"):
        train(Curve(), curve_network().requires_grad_(False), CONSTANT, steps=1, generator=seeded())
    for bad in (None, "simplified", [1.0, 1.0]):
        with pytest.raises(TypeError, match=r"balancer is .*: pass a GradientBalancer, or weights"):
            train(Curve(), curve_network(), bad, steps=1, generator=seeded())


# train_many

MANY = {
    "constant": (lambda: CONSTANT, [lambda: CONSTANT] * 3),
    "constants": (
        lambda: {"data": torch.tensor([1.0, 2.0, 3.0]), "pde": 0.5},
        [lambda w=w: {"data": w, "pde": 0.5} for w in (1.0, 2.0, 3.0)],
    ),
    "balancer": (GradientBalancer.simplified, [GradientBalancer.simplified] * 3),
    "sometimes": (BALANCERS["jaxpi"], [BALANCERS["jaxpi"]] * 3),
    "kernel": (
        lambda: Balancer(TERMS, Follow(KernelTrace())),
        [lambda: Balancer(TERMS, Follow(KernelTrace()))] * 3,
    ),
    "alphas": (
        lambda: GradientBalancer.simplified(alpha=torch.tensor([[0.1], [0.5], [0.9]])),
        [lambda a=a: GradientBalancer.simplified(alpha=a) for a in (0.1, 0.5, 0.9)],
    ),
}


@pytest.mark.parametrize("case", MANY)
def test_many_are_each_one_alone(in_float64, case):
    make, separate = MANY[case]
    seeds = [3, 4, 3]
    settings = {"steps": 7, "n": 16, "record_every": 3}
    stack, together = train_many(Curve(), make(), seeds=seeds, network=curve_network, **settings)
    assert isinstance(stack, Stacked)
    assert together.steps.tolist() == [3, 6, 7]
    assert together.seconds.shape == (3,)
    assert together.failures == {}
    for s, (seed, make_one) in enumerate(zip(seeds, separate, strict=True)):
        generator = seeded(seed)
        model = curve_network(generator)
        history = train(Curve(), model, make_one(), generator=generator, **settings)
        assert_same_history(together, history, s, rtol=1e-6)
        assert_same_parameters(stack.network(s), model, rtol=1e-5, atol=1e-9)


def test_networks_that_draw_the_same_draw_once(in_float64):
    """Two settings with seeds 3 and 4; then networks of one seed that take numbers of their own."""
    drawn = []

    def sample(generator):
        drawn.append(generator.initial_seed())
        return Curve().sample(8, generator)

    settings = {"steps": 2, "network": curve_network, "sample": sample}
    _, history = train_many(Curve(), CONSTANT, seeds=[3, 4, 3, 4], **settings)
    assert drawn == [3, 4] * 2
    assert (history.errors[:2] == history.errors[2:]).all()
    drawn.clear()
    sizes = iter([5, 6])

    def of_two_sizes(generator):
        torch.rand(next(sizes), generator=generator)
        return curve_network(generator)

    settings["network"] = of_two_sizes
    _, history = train_many(Curve(), CONSTANT, seeds=[3, 3], **settings)
    assert drawn == [3, 3] * 2
    assert (history.errors[0] != history.errors[1]).all()


NETWORKS = {
    "wide": lambda g: MLP(Curve.domain, width=9, depth=2, generator=g),
    "gated": lambda g: GatedMLP(Curve.domain, width=5, depth=2, generator=g),
    "features": lambda g: nn.Sequential(
        FourierFeatures(Curve.domain, 3, 1.0, generator=g),
        MLP([(-1.0, 1.0)] * 6, width=5, depth=1, generator=g),
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_many_networks_of_ones_own(in_float64, kind):
    settings = {"steps": 4, "n": 8, "record_every": 2}
    balancer = GradientBalancer.simplified
    stack, together = train_many(
        Curve(), balancer(), seeds=[1, 2], network=NETWORKS[kind], **settings
    )
    generator = seeded(2)
    model = NETWORKS[kind](generator)
    history = train(Curve(), model, balancer(), generator=generator, **settings)
    assert_same_history(together, history, 1, rtol=1e-6)
    assert_same_parameters(stack.network(1), model, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("case", ["constants", "alphas"])
def test_a_recorded_training_equals_the_other(in_float64, case, recorded_only):
    settings = {"seeds": [3, 4, 3], "steps": 12, "n": 16, "record_every": 4}
    (_, recorded), (_, expected) = (
        train_many(Curve(), MANY[case][0](), network=curve_network, run=run, **settings)
        for run in (Recorded, eager)
    )
    assert_same_history(recorded, expected, rtol=1e-6)


def test_many_by_default():
    stack, history = train_many(Curve(), CONSTANT, seeds=[0], steps=101)
    generator = seeded(0)
    model = MLP(Curve.domain, generator=generator)
    expected = train(Curve(), model, CONSTANT, steps=101, generator=generator)
    assert history.steps.tolist() == expected.steps.tolist() == [100, 101]
    np.testing.assert_allclose(history.losses["pde"], [expected.losses["pde"]], rtol=1e-3)
    np.testing.assert_allclose(history.errors, [expected.errors], rtol=1e-3)
    assert next(stack.parameters()).shape == (1, 32, 1)
    assert next(stack.parameters()).dtype == torch.float32


def linear(generator):
    layer = nn.utils.skip_init(nn.Linear, 1, 1, bias=False)
    nn.init.normal_(layer.weight, generator=generator)
    return layer


def test_many_in_another_precision():
    train_many(Curve(), CONSTANT, seeds=[0, 1], steps=1, dtype=torch.float64, network=linear)
    dtypes = []
    stack, history = train_many(
        Curve(), GradientBalancer.simplified(), seeds=[0, 1], steps=2, dtype=torch.float64,
        network=curve_network, observe=lambda seen: dtypes.append(seen.G.dtype),
    )  # fmt: skip
    assert {p.dtype for p in stack.parameters()} == {torch.float64} == set(dtypes)
    assert np.isfinite(history.errors).all()


@pytest.mark.parametrize(
    "seeds", [np.arange(2), torch.arange(2), range(2), (s for s in (0, 1)), [2**64 - 1, -(2**63)]]
)
def test_seeds_of_any_kind(seeds):
    _, history = train_many(Curve(), CONSTANT, seeds=seeds, steps=1, network=curve_network)
    assert history.errors.shape == (2, 1)


def test_bad_seeds_and_terms_are_refused():
    with pytest.raises(ValueError, match="seeds is empty: pass one seed or more"):
        train_many(Curve(), CONSTANT, seeds=[], steps=1)
    for large in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=rf"seeds \[{large}\] are too large: use 64"):
            train_many(Curve(), CONSTANT, seeds=[0, large], steps=1)
    bad = {"data": torch.tensor([1.0, 1.0]), "curve": 1.0}
    with pytest.raises(ValueError, match=r"\['pde'\] are missing and \['curve'\] are unknown"):
        train_many(Curve(), bad, seeds=[0, 1], steps=1)
    bad = {"data": torch.tensor([1.0, 1.0, 1.0]), "pde": 1.0}
    with pytest.raises(ValueError, match=r"weight of 'data' has shape \(3,\), for a stack \(2,\)"):
        train_many(Curve(), bad, seeds=[0, 1], steps=1)


class Own(Problem):
    """u' = -u with a residual that is written in some way."""

    variables = ("t",)
    domain = ((0.0, 1.0),)
    terms = {"data": ["initial"], "pde": ["pde"]}

    def __init__(self, pde):
        super().__init__()
        self.pde = pde

    def sample(self, n, generator):
        t = uniform(self.domain, n, generator)
        return {"initial": torch.zeros_like(t[:1]), "pde": t}

    def residuals(self, model, batch):
        u, (u_t,), _ = self.derivatives(model, batch["pde"], order=1)
        return {"initial": model(batch["initial"]) - 1, "pde": self.pde(u, u_t, batch["pde"])}


WRITTEN = {
    "axes from the front": (
        lambda u, u_t, x: u_t + u - 0.1 * x[:, :1],
        r"residual 'pde' of a network in a stack differs .*: index columns as x\[..., :1\]",
    ),
    "a column from the front": (
        lambda u, u_t, x: (u_t + u)[:, :1],
        "residual 'pde' of a network in a stack differs",
    ),
    "a mean over the batch": (
        lambda u, u_t, x: u_t + u - u.mean(),
        "residual 'pde' of a network in a stack differs .* reduce over none of the first axes",
    ),
    "a mean of small residuals": (
        lambda u, u_t, x: 1e-6 * (u_t + u - u.mean()),
        "residual 'pde' of a network in a stack differs .* reduce over none of the first axes",
    ),
    "a shape from the front": (
        lambda u, u_t, x: (u_t + u).reshape(len(x), 1),
        r"of a network alone can be computed, those of a stack cannot: index columns as x\[..., :1",
    ),
    "no column": (
        lambda u, u_t, x: u_t + u - x[..., 0],
        r"residual 'pde' has shape \(128, 128\): let it be \(N, 1\), a number a point",
    ),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_residuals_that_mix_the_networks_are_refused(case):
    pde, message = WRITTEN[case]
    with pytest.raises(ValueError, match=message):
        train_many(Own(pde), CONSTANT, seeds=[0, 1, 2], steps=1, network=curve_network)


def test_residuals_that_are_zero_pass():
    train_many(Own(lambda u, u_t, x: 0 * u), CONSTANT, seeds=[0, 1], steps=1, network=curve_network)


def test_residuals_that_are_random_pass():
    def noisy(u, u_t, x):
        return u_t + u + torch.randn(u.shape, generator=generator)

    generator = seeded(5)
    train_many(Own(noisy), CONSTANT, seeds=[0, 1], steps=1, network=curve_network)
    train_many(
        Own(lambda u, u_t, x: u_t + u), CONSTANT, seeds=[0, 1], steps=1, network=curve_network
    )


def test_many_networks_need_little_memory_for_their_errors():
    """On all points of the grid at once, this takes 300 · 10 000 · 20 numbers a layer."""

    def network(generator):
        return MLP(Helmholtz.domain, width=20, depth=1, generator=generator)

    train_many(Helmholtz(), CONSTANT, seeds=range(2), steps=1, n=4, network=network)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, history = train_many(Helmholtz(), CONSTANT, seeds=range(300), steps=1, n=4, network=network)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert history.errors.shape == (300, 1)
    assert more < 300  # MiB, in place of 2 · 230 or more
