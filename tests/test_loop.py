"""The loop around a step: optimizer, schedule, records, observers, and what stops it."""

import math
import warnings

import numpy as np
import pytest
import torch
from helpers import Curve, assert_same_parameters, curve_network, seeded

from pinnlib import loop
from pinnlib.coefficients import WithCoefficients
from pinnlib.gradients import gradient_matrix
from pinnlib.loop import adam, decay
from pinnlib.recording import Recorded
from pinnlib.step import eager
from pinnlib.training import train, train_many
from pinnlib.weighting import Follow, GradientBalancer, KernelTrace

pytestmark = pytest.mark.usefixtures("nothing_hidden", "not_compiled")

CONSTANT = {"data": 2.0, "pde": 0.5}
TERMS = ["data", "pde"]


def test_adam_is_fused_where_it_can_be():
    w = torch.ones(2, requires_grad=True)
    optimizer = adam(p for p in [w])
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 5e-3
    assert optimizer.defaults["fused"] is True
    elsewhere = torch.ones(2, requires_grad=True, device="meta")
    assert adam([elsewhere]).defaults["fused"] is False


def test_decay_multiplies_by_0_9_every_1000_steps():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
    schedule = decay(optimizer)
    rates = []
    for _ in range(2001):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[999:1001] == [1.0, 0.9]
    assert rates[1999:] == pytest.approx([0.9, 0.81])


# Records


@pytest.mark.parametrize(
    ("record_every", "recorded"),
    [(1, [*range(1, 13)]), (4, [4, 8, 12]), (5, [5, 10, 12]), (50, [12]), (np.int64(12), [12])],
)
def test_recorded_steps(record_every, recorded):
    history = train(
        Curve(), curve_network(), CONSTANT, steps=12, generator=seeded(), record_every=record_every
    )
    assert history.steps.tolist() == recorded
    assert history.failures == {}
    assert all(len(x) == len(recorded) for x in (*history.losses.values(), history.errors))


def test_seconds_count_training_but_not_recording(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(loop, "perf_counter", lambda: clock[0])

    class Slow(Curve):
        def sample(self, n, generator):
            clock[0] += 1
            return super().sample(n, generator)

    class SlowError(loop.ErrorOnGrid):
        def __call__(self, model):
            clock[0] += 50
            return super().__call__(model)

    monkeypatch.setattr(loop, "ErrorOnGrid", SlowError)
    history = train(Slow(), curve_network(), CONSTANT, steps=7, generator=seeded(), record_every=3)
    assert history.seconds.tolist() == [3.0, 6.0, 7.0]


def test_the_reference_is_computed_once():
    calls = []

    class Counted(Curve):
        def reference(self, x):
            calls.append(x.shape)
            return super().reference(x)

    train(Counted(), curve_network(), CONSTANT, steps=4, generator=seeded(), record_every=1)
    assert len(calls) == 1


def test_a_single_parameter_is_trained():
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.ones(1, 1))
    model.forward = lambda x: x @ model.w
    train(Curve(), model, CONSTANT, steps=1, generator=seeded())
    assert model.w.item() != 1


def test_a_problem_without_reference_is_trained():
    class Unknown(Curve):
        reference = None

    models = curve_network(), curve_network()
    history = train(Unknown(), models[0], CONSTANT, steps=4, generator=seeded(), record_every=2)
    expected = train(Curve(), models[1], CONSTANT, steps=4, generator=seeded(), record_every=2)
    assert np.isnan(history.errors).all()
    assert history.errors.shape == (2,)
    assert history.losses["pde"].tolist() == expected.losses["pde"].tolist()
    assert_same_parameters(*models, rtol=0, atol=0)
    _, history = train_many(Unknown(), CONSTANT, seeds=[0, 1], steps=4, record_every=2)
    assert np.isnan(history.errors).all()
    assert history.errors.shape == (2, 2)


def test_points_come_on_the_device_and_in_the_precision_of_the_network():
    """Not those of the default device, or of coefficients beside the network."""
    model, generator, seen = WithCoefficients(curve_network(), rate=1.0), seeded(), []
    model.log_shares = torch.nn.Parameter(model.log_shares.double())
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.device("meta"):
        history = train(Curve(), model, CONSTANT, steps=1, generator=generator)
    assert set(seen) == {torch.float32}
    assert np.isfinite(history.errors).all()


# Optimizer and schedule


def test_optimizer_and_schedule_are_ones_own():
    models = curve_network(), curve_network()
    train(
        Curve(),
        models[0],
        CONSTANT,
        steps=6,
        n=16,
        generator=seeded(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
        schedule=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    )
    optimizer = torch.optim.SGD(models[1].parameters(), lr=0.01, momentum=0.9)
    generator = seeded()
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5**step
        losses = Curve().losses(models[1], Curve().sample(16, generator))
        optimizer.zero_grad()
        sum(CONSTANT[term] * loss for term, loss in losses.items()).backward()
        optimizer.step()
    assert_same_parameters(*models, rtol=1e-5, atol=1e-6)


def test_optimizers_that_do_not_fit_are_refused(refused):
    model, other, generator = curve_network(), curve_network(), seeded()
    options = {"steps": 1, "generator": generator}
    elsewhere = torch.optim.SGD(other.parameters(), lr=0.1)
    with refused(model, other, match="optimizer lacks parameters of the model"):
        train(Curve(), model, CONSTANT, **options, optimizer=lambda params: elsewhere)
    with pytest.raises(TypeError, match="LBFGS evaluates the losses several times a step"):
        train(Curve(), model, CONSTANT, **options, optimizer=torch.optim.LBFGS)
    with pytest.raises(TypeError, match="LBFGS evaluates the losses several times a step"):
        train_many(Curve(), CONSTANT, seeds=[0], steps=1, optimizer=torch.optim.LBFGS)
    assert torch.equal(generator.get_state(), seeded().get_state())


# Observers


@pytest.mark.parametrize(
    ("make", "run"),
    [
        (lambda: CONSTANT, eager),
        (lambda: GradientBalancer.simplified(every=3), eager),
        (lambda: GradientBalancer(TERMS, Follow(KernelTrace()), every=2), eager),
        (lambda: GradientBalancer(TERMS, Follow(KernelTrace()), every=2), Recorded),
    ],
    ids=["constant", "simplified", "kernel", "recorded"],
)
def test_an_observer_sees_each_step_before_the_optimizer_moves(make, run):
    model, problem, seen = curve_network().double(), Curve(), []
    batches = []

    def sample(generator):
        batches.append(problem.sample(8, generator))
        return batches[-1]

    def observe(observation):
        batch = {name: x.double() for name, x in batches[-1].items()}
        assert observation.model is model
        losses = problem.losses(model, batch)
        torch.testing.assert_close(observation.losses, torch.stack([*losses.values()]).detach())
        torch.testing.assert_close(observation.G, gradient_matrix(losses, model))
        assert not observation.G.requires_grad
        seen.append((observation.step, observation.terms, observation.weights.tolist()))

    history = train(
        problem, model, make(), steps=5, generator=seeded(), sample=sample, observe=observe,
        run=run, record_every=1,
    )  # fmt: skip
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5]
    assert seen[0][1] == ("data", "pde")
    recorded = np.stack([history.weights[term] for term in TERMS], axis=-1)
    np.testing.assert_allclose([weights for _, _, weights in seen], recorded, rtol=1e-12)


def test_to_observe_changes_nothing():
    runs = []
    for observe in (None, lambda seen: None, lambda seen: seen.G):
        model = curve_network()
        balancer = GradientBalancer.simplified(every=2)
        train(Curve(), model, balancer, steps=5, generator=seeded(), observe=observe)
        runs.append(model)
    assert_same_parameters(*runs[:2], rtol=0, atol=0)
    assert_same_parameters(*runs[::2], rtol=0, atol=0)


def test_an_observer_of_a_stack():
    shapes, models = [], set()

    def observe(seen):
        models.add(seen.model)
        shapes.append((seen.losses.shape, seen.weights.shape, seen.G.shape))

    balancer = GradientBalancer.simplified(every=2)
    stack, _ = train_many(
        Curve(), balancer, seeds=[0, 1, 2], steps=2, network=curve_network, observe=observe
    )
    assert shapes == [((3, 2), (3, 2), (3, 2, 13))] * 2
    assert models == {stack}


# What stops it


class Broken(Curve):
    """The residual of the curve goes wrong from the third batch on."""

    def __init__(self, spoil, after=2):
        super().__init__()
        self.spoil, self.after, self.samples = spoil, after, 0

    def sample(self, n, generator):
        self.samples += 1
        return super().sample(n, generator)

    def residuals(self, model, batch):
        residuals = super().residuals(model, batch)
        return residuals | (
            {"curve": self.spoil(residuals["curve"])} if self.samples > self.after else {}
        )


def fail(_):
    raise OSError("no disk")


SPOILED = {
    "loss": (lambda r: r * math.nan, "loss 'pde' is nan: lower the learning rate"),
    "gradient": (lambda r: r + (r - r.detach()).sqrt(), "gradient.* not finite"),
}


@pytest.mark.parametrize("bad", SPOILED)
@pytest.mark.parametrize("make", [lambda: CONSTANT, GradientBalancer.simplified])
def test_a_failed_training_returns_what_it_has_recorded(make, bad):
    spoil, message = SPOILED[bad]
    model, healthy = curve_network(), curve_network()
    with pytest.warns(UserWarning, match=f"training stopped at step 3: .*{message}") as caught:
        history = train(Broken(spoil), model, make(), steps=10, generator=seeded(), record_every=1)
    assert caught[0].filename == __file__  # it points to the call, not into the package
    assert history.failures == {0: 3}
    expected = train(Curve(), healthy, make(), steps=2, generator=seeded(), record_every=1)
    assert history.steps.tolist() == [1, 2]
    assert history.losses["pde"].tolist() == expected.losses["pde"].tolist()
    assert history.errors.tolist() == expected.errors.tolist()
    assert_same_parameters(model, healthy, rtol=0, atol=0)


@pytest.mark.parametrize("bad", SPOILED)
def test_a_training_that_fails_before_its_first_record_raises(bad):
    spoil, message = SPOILED[bad]
    model, healthy = curve_network(), curve_network()
    with pytest.raises(ValueError, match=message):
        train(Broken(spoil), model, CONSTANT, steps=10, generator=seeded())
    train(Curve(), healthy, CONSTANT, steps=2, generator=seeded())
    assert_same_parameters(model, healthy, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["sample", "residuals", "reference", "observe"])
def test_other_errors_carry_the_record(kind, place):
    calls = [0]

    def spoiled(step):
        if step > 2:
            raise kind("no disk")

    class Failing(Curve):
        def sample(self, n, generator):
            calls[0] += 1
            if place == "sample":
                spoiled(calls[0])
            return super().sample(n, generator)

        def residuals(self, model, batch):
            if place == "residuals":
                spoiled(calls[0])
            return super().residuals(model, batch)

    class Rate(torch.optim.lr_scheduler.StepLR):
        def step(self, *args):
            super().step(*args)
            if place == "reference":
                spoiled(calls[0])

    with pytest.raises(kind) as caught:
        train(
            Failing(), curve_network(), CONSTANT, steps=9, generator=seeded(), record_every=1,
            observe=(lambda seen: spoiled(seen.step)) if place == "observe" else None,
            schedule=lambda o: Rate(o, 1000),
        )  # fmt: skip
    assert caught.value.history.steps.tolist() == [1, 2]
    assert "attribute history" in caught.value.__notes__[0]


def test_an_error_before_the_first_record_is_left_alone():
    with pytest.raises(OSError, match="no disk") as caught:
        train(Broken(fail, 0), curve_network(), CONSTANT, steps=9, generator=seeded())
    assert not hasattr(caught.value, "history")
    assert not hasattr(caught.value, "__notes__")


def one_seed_fails(at, seeds=(5, 7, 9), **options):
    """Train a network for each seed, where the second one's points are undefined from a step on."""
    calls = dict.fromkeys(seeds, 0)

    def sample(generator):
        batch = Curve().sample(8, generator)
        seed = generator.initial_seed()
        calls[seed] += 1
        if seed == seeds[1] and calls[seed] >= at:
            batch["all"] = batch["all"] * math.nan
        return batch

    return train_many(
        Curve(), GradientBalancer.simplified(every=2), seeds=seeds, steps=7, network=curve_network,
        sample=sample, **({"record_every": 2} | options),
    )  # fmt: skip


def test_one_seed_that_fails_is_named_and_takes_no_other_with_it():
    with pytest.warns(UserWarning, match=r"^seed 7 failed at step 4: something was not") as caught:
        stack, history = one_seed_fails(4)
    assert [str(w.message).split()[1] for w in caught] == ["7"]
    assert history.failures == {1: 4}
    assert history.steps.tolist() == [2, 4, 6, 7]
    expected, whole = one_seed_fails(100)
    others = [0, 2]
    for term in TERMS:
        for name in ("losses", "weights"):
            found, healthy = (getattr(h, name)[term] for h in (history, whole))
            np.testing.assert_array_equal(found[others], healthy[others])
            assert np.isfinite(found[1, :1]).all()
            assert np.isnan(found[1, 1:]).all()
    np.testing.assert_array_equal(history.errors[others], whole.errors[others])
    for p, q in zip(stack.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p[others], q[others])
        assert p.isfinite().all()


def test_a_training_of_many_ends_when_all_have_failed():
    def sample(generator):
        return {"all": Curve().sample(8, generator)["all"] * math.nan}

    with pytest.warns(UserWarning, match=r"seed [03] failed at step 1") as caught:
        _, history = train_many(
            Curve(), CONSTANT, seeds=[0, 3], steps=50, sample=sample, record_every=10
        )
    assert [w.filename for w in caught] == [__file__] * 2
    assert history.steps.tolist() == [10]
    assert history.failures == {0: 1, 1: 1}


def test_a_balancer_that_goes_on_counts_failures_from_this_training():
    balancer = GradientBalancer.simplified()
    options = {"seeds": [0, 1], "network": curve_network, "record_every": 1}
    train_many(Curve(), balancer, steps=5, **options)
    draws = iter(range(100))

    def sample(generator):
        factor = math.nan if next(draws) == 3 else 1.0  # the second network's second batch
        return {"all": Curve().sample(8, generator)["all"] * factor}

    with pytest.warns(UserWarning, match="seed 1 failed at step 2"):
        _, history = train_many(Curve(), balancer, steps=4, sample=sample, **options)
    assert history.failures == {1: 2}
    assert np.isnan(history.errors).tolist() == [[False] * 4, [False, True, True, True]]


@pytest.mark.parametrize("run", [eager, Recorded])
def test_run_is_handed_to_the_step(run):
    calls = []
    history = train(
        Curve(), curve_network(), CONSTANT, steps=3, generator=seeded(), record_every=1,
        run=lambda kernel: calls.append(kernel) or run(kernel),
    )  # fmt: skip
    assert len(calls) == 1
    expected = train(
        Curve(), curve_network(), CONSTANT, steps=3, generator=seeded(), record_every=1
    )
    np.testing.assert_allclose(history.losses["pde"], expected.losses["pde"], rtol=1e-5)


def test_no_warning_where_nothing_fails():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_many(Curve(), CONSTANT, seeds=[0, 1], steps=2, network=curve_network)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, None])
def test_numbers_of_steps_are_checked(wrong):
    for settings in ({"steps": wrong}, {"steps": 1, "record_every": wrong}):
        with pytest.raises(ValueError, match=rf"steps is .*{wrong}.*: use a whole number, 1 or mo"):
            train(Curve(), curve_network(), CONSTANT, generator=seeded(), **settings)


def test_failures_count_from_where_a_training_began():
    found = loop._since(5, torch.tensor([-1, 3, 5, 9]))
    assert found.tolist() == [-1, 0, 0, 4]
