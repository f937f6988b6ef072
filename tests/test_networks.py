"""Networks compute their equations, on every domain, from the numbers of a generator."""

import math

import pytest
import torch
from helpers import default_dtype, drawn, seeded
from hypothesis import given
from hypothesis import strategies as st

from pinnlib import networks
from pinnlib.networks import MLP, FourierFeatures, GatedMLP, OutputTransform

pytestmark = pytest.mark.usefixtures("nothing_hidden")

DOMAIN = [(-1.0, 3.0), (0.0, 0.5)]
X = torch.tensor([[-1.0, 0.5], [0.0, 0.125], [3.0, 0.25]], dtype=torch.float64)
SCALED = torch.tensor([[-1.0, 1.0], [-0.5, -0.5], [1.0, 0.0]], dtype=torch.float64)


def mlp(seed=0, kind=MLP, domain=DOMAIN, width=4):
    return drawn(kind(domain, width, depth=2, outputs=3, generator=seeded(seed)), seed)


# MLP


def test_mlp_computes_affine_maps_and_tanh():
    model = mlp()
    (W1, b1), (W2, b2), (W3, b3) = ((layer.weight, layer.bias) for layer in model.layers)
    hidden = torch.tanh(torch.tanh(SCALED @ W1.T + b1) @ W2.T + b2)
    torch.testing.assert_close(model(X), hidden @ W3.T + b3)
    torch.testing.assert_close(model.normalize(X), SCALED)


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_default_size(generator, kind):
    model = kind(DOMAIN, generator=generator)
    assert [tuple(layer.weight.shape) for layer in model.layers] == [(32, 2), (32, 32), (1, 32)]


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
@pytest.mark.parametrize("batch", [(), (7,), (4, 7)])
def test_shape(generator, kind, batch):
    model = kind(DOMAIN, width=4, depth=1, outputs=3, generator=generator)
    assert model(torch.zeros(*batch, 2)).shape == (*batch, 3)


@given(
    low=st.floats(-1e12, 1e12),
    exponent=st.integers(-12, 12),
    z=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_mlp_is_the_same_function_on_every_domain(low, exponent, z):
    # An interval must be wide enough to be told apart from its offset.
    high = low + 10.0**exponent + abs(low)
    z = torch.tensor(z, dtype=torch.float64)[:, None]
    model, unit = (
        MLP([interval], width=4, depth=2, generator=seeded()).double()
        for interval in [(low, high), (0.0, 1.0)]
    )
    model.low.fill_(low)  # in float64, not rounded through float32
    model.high.fill_(high)
    torch.testing.assert_close(model(low + (high - low) * z), unit(z), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_initial_values_are_xavier_normal(generator, kind):
    model = kind([(0, 1)] * 300, width=200, depth=2, generator=generator)
    layers = [*model.layers[:2], *getattr(model, "encoders", [])]
    for layer in layers:
        std = math.sqrt(2 / sum(layer.weight.shape))
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(layer.weight.mean().item()) < 0.02 * std
        kurtosis = (layer.weight / std).pow(4).mean().item()
        assert kurtosis == pytest.approx(3, rel=0.05)  # a uniform distribution has 1.8
    assert all((layer.bias == 0).all() for layer in model.layers)
    different = {layer.weight[0, 0].item() for layer in layers}
    assert len(different) == len(layers)


BUILDERS = {
    "MLP": lambda generator, domain=DOMAIN: MLP(domain, generator=generator),
    "GatedMLP": lambda generator, domain=DOMAIN: GatedMLP(domain, generator=generator),
    "FourierFeatures": lambda generator, domain=DOMAIN: FourierFeatures(
        domain, 8, 2.0, generator=generator
    ),
}
OF_EACH = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


@OF_EACH
def test_numbers_depend_on_the_generator_only(build):
    first, second = build(seeded()).state_dict(), build(seeded()).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    generator = seeded()
    build(generator)
    following = build(generator).state_dict()
    name = next(name for name in first if "weight" in name or "frequencies" in name)
    assert not torch.equal(first[name], following[name])


@OF_EACH
def test_domain_is_saved_but_not_trained(generator, build):
    model = build(generator)
    assert {"low", "high"} <= set(model.state_dict())
    assert all(x.is_contiguous() for x in model.state_dict().values())  # or some formats refuse
    assert model.low.tolist() == [-1.0, 0.0]
    assert model.high.tolist() == [3.0, 0.5]
    assert not {"low", "high", "frequencies"} & {name for name, _ in model.named_parameters()}
    assert all(p.requires_grad for p in model.parameters())


@OF_EACH
@pytest.mark.parametrize("domain", [DOMAIN, [(0, 1), (-1, 1)]])  # of whole numbers, too
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_dtype(generator, build, domain, dtype):
    with default_dtype(dtype):
        model = build(generator, domain)
    assert {value.dtype for value in model.state_dict().values()} == {dtype}


@OF_EACH
def test_device_is_that_of_the_generator(generator, build):
    with torch.device("meta"):  # a default device must not split the module
        model = build(generator)
    assert {value.device.type for value in model.state_dict().values()} == {"cpu"}
    assert networks._OnDomain(DOMAIN, torch.device("meta")).low.is_meta


@OF_EACH
@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ([], r"domain is empty: pass one \(low, high\) pair"),
        ([(0, 1), (2, 2)], r"interval \(2, 2\), as torch.float32 \(2.0, 2.0\): finite low < high"),
        ([(1, 0)], r"interval \(1, 0\)"),
        ([(0, math.nan)], r"interval \(0, nan\)"),
        ([(0, math.inf)], r"interval \(0, inf\)"),
        ([(-math.inf, 1)], r"interval \(-inf, 1\)"),
        ([(1.7e9, 1.7e9 + 60)], "shift or scale the variable, or set the default dtype"),
        ([(1, 1 + 1e-9)], r"as torch.float32 \(1.0, 1.0\)"),
        ([(0, 1e39)], r"as torch.float32 \(0.0, inf\)"),
        ([(-3e38, 3e38)], "finite low < high is needed"),
        ([(-1e38, 1e38)], "finite low < high is needed"),  # twice the width is too large
        ([(0, 1, 2)], r"pass one \(low, high\) pair of numbers"),
        ((0, 1), r"domain is \(0, 1\): pass one \(low, high\) pair of numbers"),
        ([("a", "b")], "pair of numbers"),
        (3, "pair of numbers"),
    ],
)
def test_a_domain_is_refused(generator, build, domain, message):
    with pytest.raises(ValueError, match=message):
        build(generator, domain)


@OF_EACH
def test_a_domain_may_be_nearly_as_wide_as_numbers_go(generator, build):
    build(generator, [(0, 1.6e38)])
    build(generator, [(0, 1e-37)])


def test_a_domain_that_float32_cannot_tell_apart_is_fine_in_float64(generator):
    with default_dtype(torch.float64):
        model = MLP([(1.7e9, 1.7e9 + 60)], generator=generator)
    assert model(torch.tensor([[1.7e9 + 30]], dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
@pytest.mark.parametrize("name", ["width", "depth", "outputs"])
@pytest.mark.parametrize("size", [0, -1, 2.0, "5", None])
def test_a_size_is_refused(generator, kind, name, size):
    with pytest.raises(ValueError, match=f"{name} is {size!r}: use a whole number, 1 or more"):
        kind(DOMAIN, generator=generator, **{name: size})


# The others


def test_gated_network_chooses_between_its_encodings():
    model = mlp(kind=GatedMLP)
    (W1, b1), (W2, b2), (W3, b3), (Wu, bu), (Wv, bv) = (
        (layer.weight, layer.bias) for layer in [*model.layers, *model.encoders]
    )
    U, V = torch.tanh(SCALED @ Wu.T + bu), torch.tanh(SCALED @ Wv.T + bv)
    Z = torch.tanh(SCALED @ W1.T + b1)
    H = (1 - Z) * U + Z * V
    Z = torch.tanh(H @ W2.T + b2)
    H = (1 - Z) * U + Z * V
    torch.testing.assert_close(model(X), H @ W3.T + b3)


def test_fourier_features_are_cosines_and_sines():
    features = FourierFeatures(DOMAIN, 5, 2.0, generator=seeded()).double()
    phases = SCALED @ features.frequencies
    expected = torch.cat([torch.cos(phases), torch.sin(phases)], dim=1)
    torch.testing.assert_close(features(X), expected)
    torch.testing.assert_close(features(X).square().sum(1), torch.full((3,), 5.0).double())


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_fourier_frequencies_are_normal(scale):
    B = FourierFeatures(DOMAIN, 20_000, scale, generator=seeded()).frequencies
    assert B.shape == (2, 20_000)
    assert B.std().item() == pytest.approx(scale, rel=0.02)
    assert (B / scale).pow(4).mean().item() == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(
    ("features", "scale", "message"),
    [
        (0, 1.0, "features is 0: use a whole number"),
        (2.5, 1.0, "features is 2.5: use a whole number"),
        (4, 0.0, "scale is 0.0: use a positive number"),
        (4, math.nan, "scale is nan: use a positive number"),
        (4, math.inf, "scale is inf: use a positive number"),
    ],
)
def test_fourier_features_refuse(generator, features, scale, message):
    with pytest.raises(ValueError, match=message):
        FourierFeatures(DOMAIN, features, scale, generator=generator)


def hard(x, u):
    return x[..., :1] * u


def test_output_transform_sees_points_and_output():
    network = mlp()
    torch.testing.assert_close(OutputTransform(network, hard)(X), X[:, :1] * network(X))
