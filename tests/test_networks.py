import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pinnlib.networks import MLP, StackedMLP

pytestmark = pytest.mark.usefixtures("nothing_hidden")

DOMAIN = [(-1.0, 3.0), (0.0, 0.5)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# MLP


def test_mlp_computes_affine_maps_and_tanh(generator):
    model = MLP(DOMAIN, width=5, depth=2, outputs=3, generator=generator).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, generator=generator)
    (W1, b1), (W2, b2), (W3, b3) = ((layer.weight, layer.bias) for layer in model.layers)
    x = torch.tensor([[-1.0, 0.5], [0.0, 0.125], [3.0, 0.25]], dtype=torch.float64)
    scaled = torch.tensor([[-1.0, 1.0], [-0.5, -0.5], [1.0, 0.0]], dtype=torch.float64)
    hidden = torch.tanh(torch.tanh(scaled @ W1.T + b1) @ W2.T + b2)
    torch.testing.assert_close(model(x), hidden @ W3.T + b3)
    torch.testing.assert_close(model.normalize(x), scaled)


def test_mlp_default_size(generator):
    model = MLP(DOMAIN, generator=generator)
    assert [tuple(layer.weight.shape) for layer in model.layers] == [
        (50, 2),
        (50, 50),
        (50, 50),
        (1, 50),
    ]


@pytest.mark.parametrize("batch", [(), (7,), (4, 7)])
def test_mlp_shape(generator, batch):
    model = MLP(DOMAIN, width=4, depth=1, outputs=3, generator=generator)
    assert model(torch.zeros(*batch, 2)).shape == (*batch, 3)


@given(
    low=st.floats(-1e12, 1e12),
    exponent=st.integers(-12, 12),
    z=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_mlp_is_the_same_function_on_every_domain(low, exponent, z):
    # An interval must be wide enough to be told apart from its offset in float64.
    high = low + 10.0**exponent + abs(low)
    z = torch.tensor(z, dtype=torch.float64)[:, None]
    model, unit = (
        MLP([interval], width=4, depth=2, generator=seeded()).double()
        for interval in [(low, high), (0.0, 1.0)]
    )
    model.low.fill_(low)  # in float64, not rounded through float32
    model.high.fill_(high)
    torch.testing.assert_close(model(low + (high - low) * z), unit(z), rtol=1e-6, atol=1e-6)


def test_mlp_initial_values_are_xavier_normal(generator):
    model = MLP([(0, 1)] * 300, width=200, depth=2, generator=generator)
    for layer in model.layers[:2]:
        std = math.sqrt(2 / sum(layer.weight.shape))
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(layer.weight.mean().item()) < 0.02 * std
        kurtosis = (layer.weight / std).pow(4).mean().item()
        assert kurtosis == pytest.approx(3, rel=0.05)  # a uniform distribution has 1.8
    assert all((layer.bias == 0).all() for layer in model.layers)


def test_mlp_depends_on_its_generator_only():
    first, second = MLP(DOMAIN, generator=seeded()), MLP(DOMAIN, generator=seeded())
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    generator = seeded()
    MLP(DOMAIN, generator=generator)
    following = MLP(DOMAIN, generator=generator)
    assert not torch.equal(first.layers[0].weight, following.layers[0].weight)


def test_mlp_domain_is_saved_but_not_trained(generator):
    model = MLP(DOMAIN, generator=generator)
    assert {"low", "high"} <= set(model.state_dict())
    assert model.low.tolist() == [-1.0, 0.0]
    assert model.high.tolist() == [3.0, 0.5]
    assert sum(p.numel() for p in model.parameters()) == 3 * 50 + 2 * 51 * 50 + 51
    assert all(p.requires_grad for p in model.parameters())


def test_mlp_has_the_default_dtype(generator):
    torch.set_default_dtype(torch.float64)
    try:
        model = MLP(DOMAIN, generator=generator)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float64}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": []}, r"domain is empty: pass one \(low, high\) pair"),
        ({"domain": [(0, 1), (2, 2)]}, r"empty interval \(2, 2\): low < high"),
        ({"domain": [(1, 0)]}, r"empty interval \(1, 0\)"),
        ({"domain": [(0, math.nan)]}, r"empty interval \(0, nan\)"),
        ({"width": 0}, "width is 0: use 1 or more"),
        ({"depth": 0}, "depth is 0: use 1 or more"),
        ({"outputs": -1}, "outputs is -1: use 1 or more"),
    ],
)
def test_mlp_refuses(generator, arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**{"domain": DOMAIN} | arguments, generator=generator)


# StackedMLP


def stack_of(count):
    models = [MLP(DOMAIN, width=4, depth=2, outputs=3, generator=seeded(s)) for s in range(count)]
    return [model.double() for model in models]


@pytest.mark.parametrize("count", [1, 3])
def test_stack_computes_what_its_networks_compute(generator, count):
    models = stack_of(count)
    for model in models:
        for p in model.parameters():
            torch.nn.init.normal_(p, generator=generator)
    stack = StackedMLP(models)
    x = torch.rand(count, 7, 2, dtype=torch.float64, generator=generator)
    separate = torch.stack([model(points) for model, points in zip(models, x, strict=True)])
    torch.testing.assert_close(stack(x), separate)
    torch.testing.assert_close(stack(x[0]), torch.stack([model(x[0]) for model in models]))


def test_stack_has_copies_of_the_parameters():
    models = stack_of(2)
    before = models[0].layers[0].weight.clone()
    stack = StackedMLP(models)
    assert {p.dtype for p in stack.parameters()} == {torch.float64}
    assert all(p.shape[0] == 2 for p in stack.parameters())
    with torch.no_grad():
        for value in [*stack.parameters(), *stack.buffers()]:
            value.zero_()
    assert torch.equal(models[0].layers[0].weight, before)
    assert models[0].high.tolist() == [3.0, 0.5]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 5}, "2 different sizes and 1 domains: stack one network or more"),
        ({"domain": [(-1, 3), (0, 1)]}, "1 different sizes and 2 domains"),
    ],
)
def test_stack_refuses_networks_that_differ(generator, other, message):
    same = {"domain": DOMAIN, "width": 4, "generator": generator}
    with pytest.raises(ValueError, match=message):
        StackedMLP([MLP(**same), MLP(**same | other)])


def test_stack_refuses_no_network():
    with pytest.raises(ValueError, match="0 different sizes and 0 domains: stack one network"):
        StackedMLP([])
