"""A stack computes what its networks compute, and refuses what differs in more than numbers."""

import copy
import math
import pickle

import pytest
import torch
from helpers import drawn, seeded
from torch import nn

from pinnlib.networks import MLP, FourierFeatures, GatedMLP, OutputTransform
from pinnlib.stacked import Stacked, _points

pytestmark = pytest.mark.usefixtures("nothing_hidden")

DOMAIN = [(-1.0, 3.0), (0.0, 0.5)]
X = torch.tensor([[-1.0, 0.5], [0.0, 0.125], [3.0, 0.25]], dtype=torch.float64)


def mlp(seed=0, kind=MLP, domain=DOMAIN, width=4):
    return drawn(kind(domain, width, depth=2, outputs=3, generator=seeded(seed)), seed)


def hard(x, u):
    return x[..., :1] * u


class Sine(nn.Module):
    """A layer with a parameter of its own, which can be stacked."""

    stacks = ("omega", "shift")

    def __init__(self, omega, width=4):
        super().__init__()
        self.omega = nn.Parameter(torch.tensor(omega))
        self.register_buffer("shift", omega * torch.ones(width))
        self.register_buffer("none", None)

    def forward(self, x):
        return torch.sin(self.omega * x + self.shift)


class Hard(MLP):
    def forward(self, x):
        return x[..., :1] * super().forward(x)


def sequence(seed):
    layers = nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), Sine(1.0 + seed)
    return drawn(nn.Sequential(*layers, nn.Linear(4, 3)), seed)


def fourier(seed):
    features = FourierFeatures(DOMAIN, 4, 1.5, generator=seeded(seed))
    return nn.Sequential(features, mlp(seed, domain=[(-1, 1)] * 8)).double()


def transformed(seed):
    factor = 2.0
    return OutputTransform(mlp(seed), lambda x, u, power=2: factor * x[..., :1] ** power * u)


KINDS = {
    "MLP": mlp,
    "GatedMLP": lambda seed: mlp(seed, GatedMLP),
    "subclass": lambda seed: mlp(seed, Hard),
    "FourierFeatures": fourier,
    "OutputTransform": transformed,
    "Sequential": sequence,
}


@pytest.fixture
def build():
    """Networks of a kind; torch's own layers draw from the global state, which is put back."""

    def make(kind, count):
        with torch.random.fork_rng():
            return [KINDS[kind](seed) for seed in range(count)]

    return make


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_stack_computes_what_its_networks_compute(build, generator, kind, count):
    models = build(kind, count)
    stack = Stacked(models)
    x = torch.rand(count, 7, 2, dtype=torch.float64, generator=generator)
    separate = torch.stack([model(points) for model, points in zip(models, x, strict=True)])
    torch.testing.assert_close(stack(x), separate)
    torch.testing.assert_close(stack(x[0]), torch.stack([model(x[0]) for model in models]))
    names = [name for name, _ in models[0].named_parameters()]
    assert [name.removeprefix("networks.") for name, _ in stack.named_parameters()] == names
    assert all(p.shape[0] == count for p in stack.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_stack_has_the_gradients_of_its_networks(build, generator, kind):
    models = build(kind, 2)
    stack = Stacked(models)
    x = torch.rand(2, 7, 2, dtype=torch.float64, generator=generator)
    stack(x).square().sum().backward()
    for i, model in enumerate(models):
        model(x[i]).square().sum().backward()
        for p, together in zip(model.parameters(), stack.parameters(), strict=True):
            torch.testing.assert_close(together.grad[i].reshape(p.shape), p.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_the_stack_alone(build, generator, kind):
    models = build(kind, 3)
    stack = Stacked(models)
    x = torch.rand(7, 2, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(0.1)
    for i in range(3):
        alone = stack.network(i)
        assert type(alone) is type(models[0])
        torch.testing.assert_close(alone(x), stack(x)[i])
        assert {k: v.shape for k, v in alone.state_dict().items()} == {
            k: v.shape for k, v in models[0].state_dict().items()
        }
    before = stack(x)
    with torch.no_grad():
        for value in [*alone.parameters(), *alone.buffers()]:
            value.zero_()
    assert torch.equal(stack(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_stack_has_copies(build, kind):
    models = build(kind, 2)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    stack = Stacked(models)
    assert {p.dtype for p in stack.parameters()} == {torch.float64}
    with torch.no_grad():
        for value in [*stack.parameters(), *stack.buffers()]:
            value.zero_()
    stack.eval()
    stack.register_forward_hook(lambda *_: None)
    for module in stack.modules():
        module.register_forward_hook(lambda *_: None)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())


def test_stack_follows_its_dtype_and_mode(build):
    stack = Stacked(build("FourierFeatures", 2)).float().eval()
    stack.networks.get_parameter("1.layers.0.weight").requires_grad_(False)
    alone = stack.network(1)
    assert {value.dtype for value in alone.state_dict().values()} == {torch.float32}
    assert not alone.training
    assert [p.requires_grad for p in alone.parameters()] == [False, True, True, True, True, True]


def test_stack_keeps_frozen_parameters():
    models = [mlp(seed) for seed in range(2)]
    for model in models:
        model.layers[0].requires_grad_(False)
    stack = Stacked(models)
    assert [p.requires_grad for p in stack.parameters()] == [False, False, True, True, True, True]
    models[1].layers[0].requires_grad_(True)
    with pytest.raises(ValueError, match=r"weight of model.layers.0 \(Linear\) is frozen in some"):
        Stacked(models)


def test_stack_can_be_copied_and_pickled():
    stack = Stacked([mlp(seed) for seed in range(2)])
    for same in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert torch.equal(same(X), stack(X))
        assert torch.equal(same.network(1)(X), stack.network(1)(X))


def two(change, kind="MLP"):
    """Two networks, the second one changed."""
    with torch.random.fork_rng():
        models = [KINDS[kind](seed) for seed in range(2)]
    with torch.random.fork_rng():
        replaced = change(models[1])
    return [models[0], replaced if isinstance(replaced, nn.Module) else models[1]]


class OwnParameter(MLP):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.factor = nn.Parameter(torch.ones(()))


class Attribute(MLP):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.points = torch.arange(3), [2.0, {"a": 1}]


def forward_of_its_own(model):
    model.forward = lambda x: x


def tied(model):
    model.layers[1].weight = model.layers[2].weight
    return model


def both(model_of):
    with torch.random.fork_rng():
        return [model_of(0), model_of(1)]


def square_layers(seed):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    return model


def mixing(transform):
    return lambda: both(lambda seed: OutputTransform(mlp(seed), transform))


REFUSED = {
    "no network": (list, "models is empty: stack one network or more"),
    "width": (lambda: [mlp(), mlp(width=5)], "out_features of model.layers.0 .* in numbers only"),
    "domain": (
        lambda: [mlp(), mlp(domain=[(-1, 3), (0, 1)])],
        r"high of model \(MLP\) differs: stack networks of one domain",
    ),
    "dtype": (lambda: two(nn.Module.float), "low of model .* differs"),
    "dtype of a layer": (
        lambda: two(lambda m: m.layers[2].float() and None),
        r"weight of model.layers.2 \(Linear\) has different sizes",
    ),
    "kinds": (
        lambda: [mlp(), mlp(kind=GatedMLP)],
        r"model is of several kinds, \['GatedMLP', 'MLP'\]",
    ),
    "depth": (
        lambda: [mlp(), MLP(DOMAIN, 4, 3, 3, generator=seeded()).double()],
        r"model.layers \(ModuleList\) has other modules",
    ),
    "activation": (
        lambda: two(lambda m: m.__setitem__(1, nn.Sigmoid()), "Sequential"),
        r"model.1 is of several kinds, \['Sigmoid', 'Tanh'\]",
    ),
    "bias": (
        lambda: two(lambda m: setattr(m[0], "bias", None), "Sequential"),
        r"model.0 \(Linear\) has other parameters in another network",
    ),
    "bias of the second": (
        lambda: two(lambda m: setattr(m[0], "bias", None), "Sequential")[::-1],
        r"model.0 \(Linear\) has other parameters in another network",
    ),
    "buffer": (
        lambda: two(lambda m: m.register_buffer("mean", torch.ones(2))),
        r"model \(MLP\) has other buffers in another network",
    ),
    "mode": (lambda: two(nn.Module.eval), r"training of model \(MLP\) differs"),
    "attribute": (
        lambda: two(lambda m: setattr(m, "omega", 3.0)),
        r"omega of model \(MLP\) differs",
    ),
    "transform": (
        lambda: [OutputTransform(mlp(), hard), OutputTransform(mlp(1), lambda x, u: u)],
        r"transform of model \(OutputTransform\) differs",
    ),
    "transform with another value": (
        lambda: both(lambda seed: OutputTransform(mlp(seed), lambda x, u: u + seed)),
        r"transform of model \(OutputTransform\) differs",
    ),
    "transform with another default": (
        lambda: both(lambda seed: OutputTransform(mlp(seed), lambda x, u, *, a=seed: u + a)),
        r"transform of model \(OutputTransform\) differs",
    ),
    "forward": (lambda: two(forward_of_its_own), r"model \(MLP\) has a hook or a forward"),
    "hook": (
        lambda: two(lambda m: m.layers[0].register_forward_hook(lambda *_: None) and None),
        r"model.layers.0 \(Linear\) has a hook",
    ),
    "pre-hook": (
        lambda: two(lambda m: m.register_forward_pre_hook(lambda *_: None) and None),
        r"model \(MLP\) has a hook",
    ),
    "backward hook": (
        lambda: two(lambda m: m.register_full_backward_hook(lambda *_: None) and None),
        r"model \(MLP\) has a hook",
    ),
    "hook of a parameter": (
        lambda: two(lambda m: m.layers[0].weight.register_hook(lambda g: g) and None),
        r"weight of model.layers.0 \(Linear\) has a hook",
    ),
    "own parameter": (
        lambda: both(lambda seed: mlp(seed, OwnParameter)),
        r"model \(OwnParameter\) has the parameter 'factor' .* stacks = \('factor',\)",
    ),
    "layer of another kind": (
        lambda: both(lambda seed: nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))),
        r"model.1 \(LayerNorm\) has the parameter 'weight'",
    ),
    "weight norm": (
        lambda: both(lambda s: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
        "of several kinds, .*ParametrizedLinear",
    ),
    "tied layers": (lambda: both(square_layers), r"models share \['2.weight'\] with another"),
    "stack of stacks": (
        lambda: both(lambda seed: Stacked([mlp(seed)])),
        r"model \(Stacked\) is a stack: stack the networks",
    ),
    "first column of x[:, :1]": (
        mixing(lambda x, u: x[:, :1] * u),
        r"something else on \(M, N, d\) than on \(N, d\): .* x\[..., :1\]",
    ),
    "column without its axis": (
        mixing(lambda x, u: torch.cat([x[:, 0:1], u], dim=1)),
        r"something else on \(M, N, d\).* but fails",
    ),
    "mean over the points": (mixing(lambda x, u: u - u.mean(0)), "something else on"),
    "dropout": (
        lambda: both(lambda s: nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))),
        "something else on",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_stack_refuses(case):
    models, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        Stacked(models())


class Cut(nn.Module):
    """With one end of a domain only."""

    def __init__(self):
        super().__init__()
        self.register_buffer("low", torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        return x - self.low


def test_points_to_try_lie_in_the_domain_or_the_unit_cube():
    x, plain = _points(mlp(), 2), _points(both(lambda _: nn.Linear(2, 1))[0], 2)
    assert x.shape == plain.shape == (2, 3, 2)
    for points, domain in ((x, DOMAIN), (plain, [(0, 1)] * 2)):
        for column, (low, high) in zip(points.unbind(-1), domain, strict=True):
            assert low <= column.min() < column.max() <= high
    assert (x.dtype, plain.dtype) == (torch.float64, torch.float32)


def test_what_is_stacked_whatever_its_points():
    stack = Stacked(mlp(seed) for seed in range(2))
    assert stack.count == 2
    assert all(p.is_meta for p in stack._one[0].parameters())
    stack = Stacked(both(lambda _: nn.Sequential(Cut(), nn.Linear(2, 1).double())))
    assert stack(X).shape == (2, 3, 1)


def test_outputs_that_are_undefined_at_some_points_are_compared_at_the_others():
    def half(x, u):
        return torch.where(x[..., :1] > 1, u, math.nan)

    assert Stacked([OutputTransform(mlp(seed), half) for seed in range(3)])(X).isnan().any()
    with pytest.raises(ValueError, match="something else"):
        Stacked([OutputTransform(mlp(s), lambda x, u: half(x, u) - u.mean(0)) for s in range(3)])


def test_stack_refuses_a_function():
    with pytest.raises(TypeError, match="models has a function: stack modules"):
        Stacked([hard])


@pytest.mark.parametrize("i", [-1, 2])
def test_stack_has_no_other_network(i):
    with pytest.raises(IndexError, match=f"i is {i}: the stack has the networks 0 to 1"):
        Stacked([mlp(), mlp(1)]).network(i)


def test_equal_attributes_are_no_difference():
    models = both(lambda seed: mlp(seed, Attribute))
    assert Stacked(models).networks.points[1] == [2.0, {"a": 1}]


def test_modules_whose_points_are_unknown_are_stacked_unchecked():
    with torch.random.fork_rng():
        models = [nn.Sequential(nn.Flatten(-2), nn.Linear(6, 1)) for _ in range(2)]
    x = torch.rand(2, 4, 3, 2, generator=seeded())
    torch.testing.assert_close(Stacked(models)(x)[1], models[1](x[1]))
