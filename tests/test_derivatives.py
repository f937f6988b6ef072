import math

import numpy as np
import pytest
import torch
from helpers import EXPONENTS, points, seeded
from hypothesis import given
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pinnlib.derivatives import nested, taylor
from pinnlib.jets import Jet
from pinnlib.networks import MLP, FourierFeatures, GatedMLP, OutputTransform, Stacked

pytestmark = pytest.mark.usefixtures("nothing_hidden")

BOTH = pytest.mark.parametrize("derivatives", [nested, taylor])


def drawn(model, seed=0):
    """The model in float64, with all parameters drawn, biases too."""
    generator = seeded(seed)
    for p in model.double().parameters():
        nn.init.normal_(p, std=0.6, generator=generator)
    return model


def mlp(d=2, outputs=1, seed=0, kind=MLP):
    domain = [(-3.0, 1.0), (0.0, 2.0), (5.0, 9.0)][:d]
    return drawn(kind(domain, 6, 2, outputs, generator=seeded(seed)), seed)


def fourier(d, outputs, seed):
    domain = [(-3.0, 1.0), (0.0, 2.0), (5.0, 9.0)][:d]
    features = FourierFeatures(domain, 4, 1.5, generator=seeded(seed))
    return drawn(nn.Sequential(features, MLP([(-1, 1)] * 8, 6, 1, outputs, generator=seeded())))


def vanishing(x, u):
    return 1 + x[..., :1] * (1 - x[..., -1:]) * u


class OfManyFunctions(nn.Module):
    """Every function that a jet goes through, in a module of a user's own."""

    def __init__(self, d, outputs):
        super().__init__()
        self.first, self.last = nn.Linear(d, 6), nn.Linear(6, outputs, bias=False)

    def forward(self, x):
        a, b = torch.sigmoid(self.first(x)).split(3, dim=-1)
        c, d = torch.stack([torch.sin(a), torch.cos(b)]).unbind(0)
        e, f = torch.cat([a / (2 + b**2), torch.exp(-c) * d], dim=-1).chunk(2, dim=-1)
        e = (e.unsqueeze(0) - 3).squeeze(0) / 2 + (1 / (2 + f)) - torch.reciprocal(2 + a)
        return self.last(
            torch.cat([nn.functional.silu(e), -f.square() @ torch.eye(3, dtype=x.dtype)], -1)
        )


class Residual(nn.Linear):
    def forward(self, h):
        return h + super().forward(h)


def with_other_layer(d, outputs, seed):
    model = mlp(d, outputs, seed)
    model.layers[1] = Residual(6, 6)
    return drawn(model)


def with_hooks(d, outputs, seed):
    model = mlp(d, outputs, seed)
    model.register_forward_hook(lambda module, x, u: 2 * u)
    model.layers[0].register_forward_pre_hook(lambda module, h: (h[0] * h[0],))
    return model


def with_forward_replaced(d, outputs, seed):
    model = mlp(d, outputs, seed)
    forward = model.forward
    model.forward = lambda x: x[..., :1] * forward(x)
    return model


def weight_normed(d, outputs, seed):
    model = mlp(d, outputs, seed)
    nn.utils.parametrizations.weight_norm(model.layers[1])
    return model


def sequential(d, outputs, seed):
    layers = nn.Linear(d, 6), nn.Tanh(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, outputs)
    return drawn(nn.Sequential(*layers), seed)


def transformed(d, outputs, seed):
    return OutputTransform(mlp(d, outputs, seed), vanishing)


STACKABLE = {
    "MLP": mlp,
    "GatedMLP": lambda d, outputs, seed: mlp(d, outputs, seed, GatedMLP),
    "FourierFeatures": fourier,
    "OutputTransform": transformed,
    "Sequential": sequential,
    "many functions": lambda d, outputs, seed: drawn(OfManyFunctions(d, outputs), seed),
}
KINDS = STACKABLE | {
    "another layer": with_other_layer,
    "hooks": with_hooks,
    "forward replaced": with_forward_replaced,
    "weight norm": weight_normed,
}
OF_EACH_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def build():
    """Networks of a kind; torch's own layers draw from the global state, which is put back."""

    def make(kind, d=2, outputs=1, seed=0):
        with torch.random.fork_rng():
            return KINDS[kind](d, outputs, seed)

    return make


def flat(result):
    u, first, second = result
    return [u, *first, *second]


def assert_same(actual, expected, rtol=1e-11, atol=1e-12):
    assert [len(t) for t in actual[1:]] == [len(t) for t in expected[1:]]
    for a, b in zip(flat(actual), flat(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def gradients(result, model):
    loss = sum((i + 1) * t.square().mean() for i, t in enumerate(flat(result)))
    return torch.autograd.grad(loss, list(model.parameters()))


# Against closed forms and finite differences


def of_three_inputs(p):
    x, y, z = p.split(1, dim=1)
    return torch.cat([torch.sin(x) * y**2 * z, torch.exp(x * y) + z**3], dim=1)


@BOTH
def test_closed_forms_for_several_inputs_and_outputs(derivatives):
    p = points(9, 3)
    x, y, z = p.split(1, dim=1)
    e = torch.exp(x * y)
    u, first, second = derivatives(of_three_inputs, p)
    assert torch.equal(u, of_three_inputs(p))
    expected_first = [
        (torch.cos(x) * y**2 * z, y * e),
        (2 * torch.sin(x) * y * z, x * e),
        (torch.sin(x) * y**2, 3 * z**2),
    ]
    expected_second = [
        (-torch.sin(x) * y**2 * z, y**2 * e),
        (2 * torch.sin(x) * z, x**2 * e),
        (torch.zeros_like(z), 6 * z),
    ]
    for actual, columns in zip([*first, *second], expected_first + expected_second, strict=True):
        torch.testing.assert_close(actual, torch.cat(columns, dim=1), rtol=1e-12, atol=1e-14)
    _, _, (weighted,) = derivatives(of_three_inputs, p, operator=(2, -3.0, 0.5))
    summed = sum(a * torch.cat(s, 1) for a, s in zip((2, -3, 0.5), expected_second, strict=True))
    torch.testing.assert_close(weighted, summed, rtol=1e-12, atol=1e-14)


CLOSED = {
    "tanh": (torch.tanh, lambda x: 1 - torch.tanh(x) ** 2),
    "sin": (torch.sin, torch.cos),
    "cos": (torch.cos, lambda x: -torch.sin(x)),
    "exp": (torch.exp, torch.exp),
    "sigmoid": (torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x)),
    "silu": (torch.ops.aten.silu, lambda x: torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))),
    "x ** 3": (lambda x: x**3, lambda x: 3 * x**2),
    "x ** -2": (lambda x: x**-2, lambda x: -2 * x**-3),
    "x ** 2.5": (lambda x: x**2.5, lambda x: 2.5 * x**1.5),
    "pow 1": (lambda x: torch.pow(x, 1), lambda x: 1 + 0 * x),
    "1 / x": (lambda x: 1 / x, lambda x: -(x**-2)),
    "reciprocal": (lambda x: x.reciprocal(), lambda x: -(x**-2)),
    "square": (torch.square, lambda x: 2 * x),
    "x * x": (lambda x: x * x, lambda x: 2 * x),
    "3 - x": (lambda x: 3 - x, lambda x: -1 + 0 * x),
    "tensor - x": (lambda x: torch.ones_like(x) - x, lambda x: -1 + 0 * x),
    "-x": (lambda x: torch.neg(x).neg() * -1, lambda x: -1 + 0 * x),
    "quotient": (
        lambda x: x.sin() / (1 + x * x),
        lambda x: (x.cos() * (1 + x * x) - 2 * x * x.sin()) / (1 + x * x) ** 2,
    ),
    "tensor / (x + 1)": (lambda x: torch.ones_like(x) / (x + 1), lambda x: -((x + 1) ** -2)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_each_function_of_a_jet(name):
    f, slope = CLOSED[name]
    x = points(7, 1) + 0.1
    u, (u_x,), (u_xx,) = taylor(f, x)
    torch.testing.assert_close(u, f(x), rtol=1e-15, atol=0)
    torch.testing.assert_close(u_x, slope(x), rtol=1e-12, atol=1e-14)
    h = 1e-5
    expected = (slope(x + h) - slope(x - h)) / (2 * h)
    torch.testing.assert_close(u_xx, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("p", [0, 1, 2, 3])
def test_powers_at_zero(p):
    x = torch.zeros(2, 1, dtype=torch.float64)
    u, (u_x,), (u_xx,) = taylor(lambda x: x**p, x)
    assert u.flatten().tolist() == [0.0**p] * 2
    assert u_x.flatten().tolist() == [float(p == 1)] * 2
    assert u_xx.flatten().tolist() == [2.0 * (p == 2)] * 2


@BOTH
@OF_EACH_KIND
def test_finite_differences_of_networks(build, derivatives, kind):
    model, x, h = build(kind, outputs=2), points(5, 2), 1e-4
    u, first, second = derivatives(model, x)
    torch.testing.assert_close(u, model(x), rtol=1e-14, atol=1e-15)
    for j in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[j]
        ahead, behind = model(x + step), model(x - step)
        torch.testing.assert_close(first[j], (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(second[j], (ahead - 2 * u + behind) / h**2, rtol=1e-5, atol=1e-5)


@BOTH
@given(size=EXPONENTS, frequency=EXPONENTS)
def test_over_scales(derivatives, size, frequency):
    a, b = 10.0**size, 10.0**frequency
    z = points(4, 1)
    u, (u_x,), (u_xx,) = derivatives(lambda x: a * torch.sin(b * x), z / b)
    torch.testing.assert_close(u / a, torch.sin(z))
    torch.testing.assert_close(u_x / (a * b), torch.cos(z))
    torch.testing.assert_close(u_xx / (a * b**2), -torch.sin(z))


@pytest.mark.parametrize("exponent", range(-12, 13, 4))
def test_taylor_is_exact_for_inputs_over_many_scales(exponent):
    size = 10.0**exponent
    model = MLP([(0, size)], width=5, generator=seeded()).double()
    x = size * points(4, 1)
    for a, b in zip(taylor(model, x)[1:], nested(model, x)[1:], strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-10, atol=0)
        assert a[0].abs().min() > 0


@BOTH
@pytest.mark.parametrize(
    ("model", "slopes"),
    [
        (lambda x: 3 * x[:, :1] - 2 * x[:, 1:], (3, -2)),
        (lambda x: 3 * x[:, :1], (3, 0)),
        (lambda x: torch.stack([x[:, 1] - x[:, 0]], dim=1), (-1, 1)),
        (lambda x: torch.ones(len(x), 1, dtype=x.dtype), (0, 0)),
        (lambda x: torch.zeros_like(x[:, :1]), (0, 0)),
        (lambda x: x.new_ones(x.shape[0], 2), (0, 0)),
    ],
    ids=["linear", "one input unused", "column", "constant", "zeros_like", "new_ones"],
)
def test_linear_functions(derivatives, model, slopes):
    x = points(4, 2)
    u, first, second = derivatives(model, x)
    assert torch.equal(u, model(x))
    for derivative, slope in zip(first, slopes, strict=True):
        assert torch.equal(derivative, torch.full_like(u, slope))
    for derivative in [*second, *derivatives(model, x, operator=(1, 1))[2]]:
        assert torch.equal(derivative, torch.zeros_like(u))


# Taylor mode against nested


@pytest.mark.parametrize(("d", "outputs"), [(1, 2), (3, 1)])
@pytest.mark.parametrize("order", [1, 2])
@OF_EACH_KIND
def test_taylor_equals_nested(build, kind, d, outputs, order):
    model, x = build(kind, d, outputs), points(5, d) + 0.1
    actual, expected = taylor(model, x, order), nested(model, x, order)
    assert isinstance(actual[1], tuple)
    assert isinstance(actual[2], tuple)
    assert len(actual[2]) == (d if order == 2 else 0)
    assert_same(actual, expected)
    assert all(t.shape == (5, outputs) for t in flat(actual) + flat(expected))


@pytest.mark.parametrize("a", [(1.0, 1.0), (-1, 1), (0, 2.5), (0.0, 0.0)])
@OF_EACH_KIND
def test_operator_is_the_weighted_sum(build, kind, a):
    model, x = build(kind, outputs=2), points(5, 2) + 0.1
    u, first, second = nested(model, x)
    of_first, of_second = (a[0] * part[0] + a[1] * part[1] for part in (first, second))
    for derivatives in (nested, taylor):
        assert_same(derivatives(model, x, operator=a), (u, first, (of_second,)))
        assert_same(derivatives(model, x, 1, operator=a), (u, (of_first,), ()))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("weights", [None, (-1.0, 2.0)])
@OF_EACH_KIND
def test_gradients_of_taylor_and_nested(build, kind, weights, order):
    model, x = build(kind, outputs=2), points(5, 2) + 0.1
    rows = [gradients(f(model, x, order, operator=weights), model) for f in (taylor, nested)]
    for a, b in zip(*rows, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        assert a.abs().max() > 0


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("weights", [None, (-1.0, 2.0)])
@pytest.mark.parametrize("kind", STACKABLE)
@BOTH
def test_stack_equals_its_networks(build, derivatives, kind, weights, order):
    models = [build(kind, outputs=2, seed=s) for s in range(3)]
    x = torch.stack([points(5, 2, s) + 0.1 for s in range(3)])
    stack = Stacked(models)
    together = derivatives(stack, x, order, operator=weights)
    alone = [flat(derivatives(m, x[s], order, operator=weights)) for s, m in enumerate(models)]
    for t, separate in zip(flat(together), zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(t, torch.stack(separate), rtol=1e-10, atol=1e-12)
    shared = taylor(stack, x[0], order, operator=weights)  # one batch for all
    for t, single in zip(flat(shared), alone[0], strict=True):
        torch.testing.assert_close(t[0], single, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weights", [None, (-1.0, 2.0)])
@BOTH
def test_recorded_by_make_fx(build, derivatives, weights):
    model, x = build("FourierFeatures"), points(5, 2) + 0.1

    def residual(x):
        return flat(derivatives(model, x, operator=weights))

    traced = make_fx(residual)(points(5, 2, seed=1))
    for a, b in zip(traced(x), residual(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_an_operator_carries_one_derivative_of_the_order():
    seen = []

    def model(x):
        seen.append((len(x.first), len(x.second)))
        return x

    for order in (2, 1):
        for weights in (None, (1, 1, 1)):
            taylor(model, points(4, 3), order, operator=weights)
    assert seen == [(3, 3), (3, 1), (3, 0), (1, 0)]


# What holds for both


@BOTH
def test_stays_connected_to_the_parameters(derivatives):
    model, x = mlp(), points(5, 2)
    weight = model.layers[0].weight

    def loss():
        u, (_, u_t), (u_xx, _) = derivatives(model, x)
        return (u * u_t - u_xx).square().mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    h = 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[2, 1] += sign * h
        values.append(loss().item())
        with torch.no_grad():
            weight[2, 1] -= sign * h
    assert gradient[2, 1].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


@BOTH
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("weights", [None, (1.0, -1.0)])
def test_without_gradients(derivatives, mode, weights):
    model, x = mlp(), points(5, 2)
    expected = flat(derivatives(model, x, operator=weights))
    with mode():
        actual = flat(derivatives(model, x, operator=weights))
        of_points_made_here = flat(derivatives(model, x.clone(), operator=weights))
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    for a, b, c in zip(actual, of_points_made_here, expected, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    if derivatives is nested:
        assert gradients((actual[0], actual[1:], ()), model)  # connected all the same


def test_a_network_made_in_inference_mode_gives_an_error_not_zeros():
    with torch.inference_mode():
        model = mlp()
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
            nested(model, points(3, 2))


class Cut(nn.Module):
    def __init__(self, how, trainable=True):
        super().__init__()
        self.inner, self.how = mlp().requires_grad_(trainable), how

    def forward(self, x):
        if self.how == "points detached":
            return self.inner(x.detach())
        with torch.no_grad():
            return self.inner(x)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("how", ["points detached", "no_grad"])
def test_a_network_that_cuts_its_graph_is_refused(how, trainable):
    with pytest.raises(ValueError, match=r"a Cut, has parameters, .* remove detach, no_grad"):
        nested(Cut(how, trainable), points(3, 2))
    if how == "points detached":
        with pytest.raises(ValueError, match="differentiate 'detach'"):
            taylor(Cut(how, trainable), points(3, 2))


def test_a_network_that_ignores_the_points_is_refused_by_taylor():
    model = OutputTransform(mlp(), lambda x, u: torch.ones(3, 1))
    with pytest.raises(ValueError, match="a OutputTransform, has parameters"):
        taylor(model, points(3, 2))


@BOTH
def test_leaves_points_and_gradients_alone(derivatives):
    model, x = mlp(), points(5, 2)
    tracked = x.clone().requires_grad_()
    _, (u_x, _), _ = derivatives(model, x)
    u, _, (_, u_tt) = derivatives(model, tracked)
    assert all(p.grad is None for p in model.parameters())
    (u_x + u_tt + u).sum().backward()
    assert not x.requires_grad
    assert tracked.grad is None


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype(derivatives, dtype):
    for options in ({}, {"operator": (np.float64(-1), np.int64(2))}):
        result = derivatives(mlp().to(dtype), points(5, 2).to(dtype), **options)
        assert {t.dtype for t in flat(result)} == {dtype}


# Errors


@BOTH
@pytest.mark.parametrize("order", [0, 3, -1, True, 2.0, "2", None])
def test_another_order_is_refused(derivatives, order):
    with pytest.raises(ValueError, match=f"order is {order!r}: pass 1 or 2"):
        derivatives(mlp(), points(3, 2), order=order)


@BOTH
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), r"operator is \(1.0,\): pass a number for each of 2 inputs"),
        ((1, 2, 3), "for each of 2 inputs"),
        ((), "for each of 2 inputs"),
        (2.0, "operator is 2.0: pass a number for each"),
        ("ab", "operator is 'ab': pass a number for each"),
        ((1, math.nan), r"operator is \(1, nan\): pass finite numbers"),
        ((math.inf, 1), "pass finite numbers"),
        (torch.ones(2, requires_grad=True), "pass a number for each"),
    ],
)
def test_another_operator_is_refused(derivatives, weights, message):
    with pytest.raises(ValueError, match=message):
        derivatives(mlp(), points(3, 2), operator=weights)


@BOTH
@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (points(3, 2)[0], ValueError, r"x has shape \(2,\): pass points as \(N, d\)"),
        (torch.zeros(3, 2, dtype=torch.int64), ValueError, r"dtype torch.int64: .* x.float\(\)"),
        (np.zeros((3, 2)), TypeError, "x is a ndarray: pass points as a tensor"),
    ],
)
def test_other_points_are_refused(derivatives, x, kind, message):
    with pytest.raises(kind, match=message):
        derivatives(mlp(), x)


@BOTH
def test_a_model_without_a_column_of_values_is_refused(derivatives):
    with pytest.raises(ValueError, match=r"maps \(3, 2\) to \(3,\): let it return \(N, m\)"):
        derivatives(lambda x: x[:, 0] ** 2, points(3, 2))
    with pytest.raises(ValueError, match=r"maps \(3, 2\) to \(2, 2\)"):
        derivatives(lambda x: x[:2], points(3, 2))
    with pytest.raises(TypeError, match=r"model returns a tuple: let it return a tensor"):
        derivatives(lambda x: (x, x), points(3, 2))


def test_nested_refuses_one_batch_for_a_stack():
    stack = Stacked([mlp(seed=s) for s in range(2)])
    with pytest.raises(ValueError, match=r"maps \(3, 2\) to \(2, 3, 1\)"):
        nested(stack, points(3, 2))


def changed_in_place(x):
    x += 1
    return x


UNKNOWN = {
    "relu": torch.relu,
    "abs": lambda x: abs(x),
    "detach": lambda x: x.detach(),
    "requires_grad_": lambda x: x.requires_grad_(),
    "tanh_": torch.tanh_,
    "iadd": changed_in_place,
    "add_": lambda x: torch.ones(3, 1).add_(x),
    "sum": lambda x: x.sum(dim=-1, keepdim=True),
    "T": lambda x: x.T,
    "gt": lambda x: torch.where(x > 0, x, -x),
    "eq": lambda x: x == 0,
    "bool": lambda x: 2 * x if x else x,
    "float": lambda x: float(x),
    "iter": lambda x: next(iter(x)),
    "layer_norm": nn.LayerNorm(2),
    "batch_norm": nn.BatchNorm1d(2),
    "dropout": nn.Dropout(),
    # Known functions, in a use that has no rule.
    "add": lambda x: torch.add(x, x, alpha=2),
    "sub": lambda x: x - "a",
    "mul": lambda x: np.ones((3, 2)) * x,
    "pow": lambda x: 2**x,
    "matmul": lambda x: torch.ones(3, 3, dtype=x.dtype) @ x,
    "linear": lambda x: nn.functional.linear(torch.ones(3, 2, dtype=x.dtype), x),
    "getitem": lambda x: x[x],
    "sin": lambda x: torch.sin(x, out=torch.ones(1)),
    "silu": nn.SiLU(inplace=True),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_taylor_refuses_functions_without_a_rule(name):
    with pytest.raises(ValueError, match=rf"how to differentiate '{name}' .*: use nested"):
        taylor(UNKNOWN[name], points(3, 2))


def test_a_jet_has_the_shape_of_its_value():
    x = Jet.seed(points(3, 2))
    assert (x.shape, x.ndim, len(x), x.dtype) == ((3, 2), 2, 3, torch.float64)
    with pytest.raises(AttributeError, match="a jet has no attribute 'other'"):
        _ = x.other
    with pytest.raises(AttributeError):
        x.other = 1


@BOTH
def test_one_of_several_outputs_may_be_constant(derivatives):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            return torch.cat([self.w * x[:, :1], self.w.expand(len(x), 1)], dim=1)

    _, (u_x,), (u_xx,) = derivatives(Half(), points(3, 1))
    assert u_x.tolist() == [[1.0, 0.0]] * 3
    assert u_xx.tolist() == [[0.0, 0.0]] * 3


def test_a_module_without_parameters_may_be_constant():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 1)

    assert nested(Constant(), points(3, 1))[1][0].tolist() == [[0.0]] * 3
