"""Unknown coefficients: their value, their scale, and how they are trained."""

import math

import pytest
import torch
from helpers import network, seeded
from torch import nn

from pinnlib.coefficients import WithCoefficients, coefficient
from pinnlib.derivatives import nested, taylor
from pinnlib.gradients import mean_abs
from pinnlib.networks import Stacked
from pinnlib.problems import Oscillator
from pinnlib.training import train, train_many
from pinnlib.weighting import GradientBalancer

pytestmark = pytest.mark.usefixtures("nothing_hidden")

SCALES = [1e-12, 1e-3, 1.0, 400.0, 1e12]


def wrapped(seed=0, **start):
    return WithCoefficients(network(((0.0, 1.0),), seed), **start)


@pytest.mark.parametrize("start", SCALES)
def test_a_coefficient_is_its_start_times_an_exponential(start):
    model = wrapped(a=2.0, b=start)
    assert coefficient(model, "b").item() == start
    with torch.no_grad():
        model.log_shares += torch.tensor([0.0, -1.5])
    assert coefficient(model, "b").item() == pytest.approx(start * math.exp(-1.5), rel=1e-14)
    assert coefficient(model, "a").item() == 2.0


@pytest.mark.parametrize("start", SCALES)
def test_a_step_of_adam_is_a_share_of_the_coefficient(start):
    model = wrapped(c=start)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=0)
    (coefficient(model, "c") ** 2).sum().backward()
    optimizer.step()
    assert coefficient(model, "c").item() == pytest.approx(start * math.exp(-0.01), rel=1e-9)


def test_the_network_computes_what_it_did():
    inner, x = network(((0.0, 1.0),)), torch.rand(5, 1, generator=seeded(), dtype=torch.float64)
    model = WithCoefficients(inner, k=3.0)
    assert torch.equal(model(x), inner(x))
    for a, b in zip(taylor(model, x)[2], nested(inner, x)[2], strict=True):
        torch.testing.assert_close(a, b)


def test_coefficients_have_the_dtype_and_device_of_the_network():
    assert wrapped(k=1.0).log_shares.dtype == torch.float64
    assert WithCoefficients(nn.Identity(), k=1.0).log_shares.dtype == torch.float32
    assert WithCoefficients(network().to("meta"), k=1.0).log_shares.is_meta


def test_a_stack_has_a_coefficient_for_each_network():
    models = [wrapped(seed, k=5.0, m=7.0) for seed in range(3)]
    for i, model in enumerate(models):
        with torch.no_grad():
            model.log_shares += torch.tensor([i, -i])
    stack = Stacked(models)
    assert coefficient(stack, "m").shape == (3, 1, 1)
    expected = [7.0 * math.exp(-i) for i in range(3)]
    assert coefficient(stack, "m").flatten().tolist() == pytest.approx(expected)
    assert coefficient(stack.network(2), "k").item() == pytest.approx(5 * math.exp(2))


def test_networks_with_other_starts_are_not_stacked():
    with pytest.raises(ValueError, match=r"start of model .* differs"):
        Stacked([wrapped(k=5.0), wrapped(k=6.0)])


@pytest.mark.parametrize("start", [0.0, -1.0, math.inf, math.nan])
def test_a_start_that_is_not_positive_is_refused(start):
    with pytest.raises(ValueError, match=f"coefficient 'k' starts at {start}: pass a positive"):
        wrapped(k=start)


def test_a_model_without_the_coefficient_is_refused():
    with pytest.raises(ValueError, match=r"has the coefficients \[\], not 'k': wrap the network"):
        coefficient(network(), "k")
    with pytest.raises(ValueError, match=r"has the coefficients \['m'\], not 'k'"):
        coefficient(wrapped(m=1.0), "k")
    with pytest.raises(ValueError, match="there is no coefficient: pass each as name=start"):
        wrapped()


# Training


def oscillator(**options):
    return Oscillator(derivatives=taylor, **options)


def test_a_coefficient_is_trained_and_does_not_count_in_the_sizes():
    problem = oscillator(unknown={"stiffness": 100.0})
    model = WithCoefficients(network(problem.domain), **problem.unknown)
    sizes = []
    history = train(
        problem,
        model,
        GradientBalancer.simplified(alpha=1.0),
        steps=1,
        generator=seeded(),
        observe=lambda seen: sizes.append((mean_abs(seen.G[:, :-1]), seen.G[:, -1])),
    )
    (network_sizes, of_coefficient), *_ = sizes
    ratio = network_sizes[0] / network_sizes[1]
    assert history.weights["pde"][-1] == pytest.approx(ratio.item(), rel=1e-9)
    assert of_coefficient[1].abs() > network_sizes[1]  # which would have told
    assert abs(model.log_shares.item()) == pytest.approx(5e-3, rel=1e-4)


def test_many_trainings_give_the_coefficients_of_single_ones():
    problem = oscillator(noise=0.02, unknown={"stiffness": 100.0})

    def build(generator):
        return wrapped(generator.initial_seed(), **problem.unknown)

    options = {"steps": 20, "record_every": 10}
    stack, history = train_many(
        problem,
        GradientBalancer.simplified(),
        seeds=[3, 4],
        network=build,
        dtype=torch.float64,
        **options,
    )
    for i, seed in enumerate([3, 4]):
        model, generator = build(seeded(seed)), seeded(seed)
        alone = train(problem, model, GradientBalancer.simplified(), generator=generator, **options)
        assert coefficient(stack, "stiffness")[i].item() == pytest.approx(
            coefficient(model, "stiffness").item(), rel=1e-9
        )
        assert history.errors[i].tolist() == pytest.approx(alone.errors.tolist(), rel=1e-9)
    assert 90 < coefficient(stack, "stiffness").min() < coefficient(stack, "stiffness").max() < 120


def test_the_default_network_has_the_unknown_coefficients_only_where_there_are_any():
    balancer = {"data": 1.0, "pde": 1.0}
    stack, _ = train_many(oscillator(), balancer, seeds=[0], steps=1)
    assert not isinstance(stack.network(0), WithCoefficients)
    problem = oscillator(unknown={"stiffness": 50.0})
    stack, _ = train_many(problem, balancer, seeds=[0], steps=1)
    assert stack.network(0).start == {"stiffness": 50.0}


def test_a_network_without_the_unknown_coefficient_is_refused():
    problem = oscillator(unknown={"stiffness": 50.0})
    with pytest.raises(ValueError, match=r"has the coefficients .*, not 'stiffness': wrap the net"):
        problem.losses(network(problem.domain), problem.sample(8, seeded()))


def test_an_unknown_that_the_equation_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"unknown names \['mass'\]: .* \['stiffness'\]"):
        oscillator(unknown={"mass": 1.0})
