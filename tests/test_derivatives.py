import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pinnlib.derivatives import nested, taylor
from pinnlib.networks import MLP, StackedMLP

pytestmark = pytest.mark.usefixtures("nothing_hidden")

EXPONENTS = st.integers(-12, 12)


def points(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, d, dtype=torch.float64, generator=generator) - 0.5


def network(d=2, outputs=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = MLP([(-1, 1)] * d, width=6, depth=2, outputs=outputs, generator=generator).double()
    for layer in model.layers:
        nn.init.normal_(layer.bias, generator=generator)
    return model


def test_nested_equals_closed_forms_for_several_inputs_and_outputs():
    def model(p):
        x, y, z = p.split(1, dim=1)
        return torch.cat([torch.sin(x) * y**2 * z, torch.exp(x * y) + z**3], dim=1)

    p = points(9, 3)
    x, y, z = p.split(1, dim=1)
    e = torch.exp(x * y)
    u, first, second = nested(model, p)
    assert torch.equal(u, model(p))
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


def test_nested_equals_finite_differences_of_a_network():
    model, x, h = network(outputs=2), points(5, 2), 1e-4
    u, first, second = nested(model, x)
    for j in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[j]
        ahead, behind = model(x + step), model(x - step)
        torch.testing.assert_close(first[j], (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(second[j], (ahead - 2 * u + behind) / h**2, rtol=1e-6, atol=1e-6)


@given(size=EXPONENTS, frequency=EXPONENTS)
def test_nested_over_scales(size, frequency):
    a, b = 10.0**size, 10.0**frequency
    z = points(4, 1)
    u, (u_x,), (u_xx,) = nested(lambda x: a * torch.sin(b * x), z / b)
    torch.testing.assert_close(u / a, torch.sin(z))
    torch.testing.assert_close(u_x / (a * b), torch.cos(z))
    torch.testing.assert_close(u_xx / (a * b**2), -torch.sin(z))


@pytest.mark.parametrize(
    ("model", "slopes"),
    [
        (lambda x: 3 * x[:, :1] - 2 * x[:, 1:], (3, -2)),
        (lambda x: 3 * x[:, :1], (3, 0)),
        (lambda x: torch.ones(len(x), 1, dtype=x.dtype), (0, 0)),
    ],
    ids=["linear", "one input unused", "constant"],
)
def test_nested_of_linear_functions(model, slopes):
    x = points(4, 2)
    u, first, second = nested(model, x)
    assert torch.equal(u, model(x))
    for derivative, slope in zip(first, slopes, strict=True):
        assert torch.equal(derivative, torch.full_like(u, slope))
    for derivative in second:
        assert torch.equal(derivative, torch.zeros_like(u))


@pytest.mark.parametrize(("d", "outputs"), [(1, 1), (3, 2)])
def test_nested_shapes_and_order(d, outputs):
    model, x = network(d, outputs), points(7, d)
    u, first, second = nested(model, x)
    assert len(first) == len(second) == d
    assert {t.shape for t in (u, *first, *second)} == {(7, outputs)}
    u_1, first_1, none = nested(model, x, order=1)
    assert none == ()
    for a, b in zip((u, *first), (u_1, *first_1), strict=True):
        assert torch.equal(a, b)


def test_nested_stays_connected_to_the_parameters():
    model, x = network(), points(5, 2)
    weight = model.layers[0].weight

    def loss():
        u, (_, u_t), (u_xx, _) = nested(model, x)
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


def test_nested_works_under_no_grad():
    model, x = network(), points(5, 2)
    u, first, second = nested(model, x)
    with torch.no_grad():
        u_2, first_2, second_2 = nested(model, x)
    for a, b in zip((u, *first, *second), (u_2, *first_2, *second_2), strict=True):
        assert torch.equal(a, b)


def test_nested_leaves_points_and_gradients_alone():
    model, x = network(), points(5, 2)
    tracked = x.clone().requires_grad_()
    _, (u_x, _), _ = nested(model, x)
    _, _, (_, u_tt) = nested(model, tracked)
    (u_x + u_tt).sum().backward()
    assert not x.requires_grad
    assert tracked.grad is None


def test_nested_writes_no_gradient_and_keeps_the_dtype():
    model, x = network().float(), points(5, 2).float()
    u, first, second = nested(model, x)
    assert {t.dtype for t in (u, *first, *second)} == {torch.float32}
    assert all(p.grad is None for p in model.parameters())


def test_nested_of_a_stack_equals_its_networks():
    models, x = (
        [network(seed=s) for s in range(3)],
        torch.stack([points(5, 2, s) for s in range(3)]),
    )
    u, first, second = nested(StackedMLP(models), x)
    for s, model in enumerate(models):
        u_s, first_s, second_s = nested(model, x[s])
        for a, b in zip((u, *first, *second), (u_s, *first_s, *second_s), strict=True):
            torch.testing.assert_close(a[s], b)


def assert_equal_derivatives(actual, expected):
    for a, b in zip(
        [actual[0], *actual[1], *actual[2]], [expected[0], *expected[1], *expected[2]], strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("order", [1, 2])
def test_taylor_equals_nested(d, outputs, depth, order):
    generator = torch.Generator().manual_seed(d)
    domain = [(-3.0, 1.0), (0.0, 0.1), (5.0, 9.0)][:d]
    model = MLP(domain, width=7, depth=depth, outputs=outputs, generator=generator).double()
    for layer in model.layers:
        nn.init.normal_(layer.bias, generator=generator)
    x = points(5, d) + torch.tensor([low for low, _ in domain])
    actual = taylor(model, x, order)
    assert isinstance(actual[1], tuple)
    assert isinstance(actual[2], tuple)
    assert_equal_derivatives(actual, nested(model, x, order))


def test_taylor_of_a_stack_equals_its_networks():
    models = [network(seed=s) for s in range(3)]
    x = torch.stack([points(5, 2, s) for s in range(3)])
    together = taylor(StackedMLP(models), x)
    for s, model in enumerate(models):
        alone = taylor(model, x[s])
        assert_equal_derivatives(
            (together[0][s], *[tuple(t[s] for t in order) for order in together[1:]]), alone
        )
    shared = taylor(StackedMLP(models), x[0])  # one batch for all
    assert_equal_derivatives(
        (shared[0][0], *[tuple(t[0] for t in order) for order in shared[1:]]),
        taylor(models[0], x[0]),
    )


def test_taylor_has_the_gradients_of_nested():
    model, x = network(outputs=2), points(5, 2)
    rows = []
    for derivatives in (taylor, nested):
        u, (u_x, _), (_, u_yy) = derivatives(model, x)
        loss = (u_yy + u * u_x).square().mean()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())]))
    torch.testing.assert_close(*rows, rtol=1e-11, atol=1e-13)
    assert rows[0].abs().min() > 0


def test_taylor_is_exact_for_inputs_over_many_scales():
    for exponent in range(-12, 13, 4):
        size = 10.0**exponent
        model = MLP([(0, size)], width=5, generator=torch.Generator().manual_seed(0)).double()
        x = size * (points(4, 1) + 0.5)
        for a, b in zip(taylor(model, x)[1:], nested(model, x)[1:], strict=True):
            torch.testing.assert_close(a[0], b[0], rtol=1e-10, atol=0)
            assert a[0].abs().min() > 0


class Ansatz(MLP):
    def forward(self, x):
        return x[:, :1] * super().forward(x)


class OtherScale(MLP):
    def normalize(self, x):
        return x


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 1),
        lambda x: x[:, :1],
        *(kind([(0, 2)] * 2, generator=torch.Generator()) for kind in (Ansatz, OtherScale)),
    ],
)
def test_taylor_refuses_another_model(model):
    with pytest.raises(ValueError, match=r"model is a \w+: .* use nested for any other"):
        taylor(model, points(3, 2))


@pytest.mark.parametrize("derivatives", [nested, taylor])
@pytest.mark.parametrize("order", [0, 3, -1])
def test_another_order_is_refused(derivatives, order):
    with pytest.raises(ValueError, match=f"order is {order}: .* order 1 and 2"):
        derivatives(network(), points(3, 2), order=order)


@pytest.mark.parametrize("derivatives", [nested, taylor])
def test_a_single_point_is_refused(derivatives):
    with pytest.raises(ValueError, match=r"x has shape \(2,\): pass points as \(N, d\)"):
        derivatives(network(), points(3, 2)[0])


def test_nested_refuses_a_model_without_a_column_of_values():
    with pytest.raises(ValueError, match=r"maps \(3, 2\) to \(3,\): let it return \(N, m\)"):
        nested(lambda x: x[:, 0] ** 2, points(3, 2))


def test_nested_refuses_one_batch_for_a_stack():
    stack = StackedMLP([network(seed=s) for s in range(2)])
    with pytest.raises(ValueError, match=r"maps \(3, 2\) to \(2, 3, 1\)"):
        nested(stack, points(3, 2))
