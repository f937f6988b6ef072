import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pinnlib import gradient_matrix
from pinnlib.gradients import (
    check_finite,
    check_losses,
    check_used,
    cosine,
    gradient_rows,
    l2_norm,
    layer_view,
    max_abs,
    mean_abs,
    trainable,
)
from pinnlib.networks import MLP, StackedMLP

pytestmark = pytest.mark.usefixtures("nothing_hidden")

EXPONENTS = st.integers(-12, 12)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0, outputs=1):
    return MLP([(0, 1)] * 2, width=5, depth=2, outputs=outputs, generator=seeded(seed)).double()


def points(n=8, seed=0):
    return torch.rand(n, 2, dtype=torch.float64, generator=seeded(seed))


def three_losses(model, x):
    u = model(x)
    return {"mean": u.mean(), "square": 3 * u.square().mean(), "fourth": (u - 1).pow(4).mean()}


def theta(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


# gradient_matrix


@pytest.mark.parametrize("order", [("mean", "square", "fourth"), ("fourth", "mean", "square")])
def test_gradient_matrix_equals_separate_backward_calls(order):
    model, x = network(), points()
    losses = three_losses(model, x)
    G = gradient_matrix({term: losses[term] for term in order}, model.parameters())
    assert G.shape == (3, sum(p.numel() for p in model.parameters()))
    for term, row in zip(order, G, strict=True):
        model.zero_grad()
        three_losses(model, x)[term].backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(row, expected)


def test_gradient_matrix_equals_finite_differences():
    model, x, h = network(), points(), 1e-6
    G = gradient_matrix(three_losses(model, x), model.parameters())
    column = 0
    for p in model.parameters():
        for i in range(p.numel()):
            difference = torch.zeros(3, dtype=torch.float64)
            with torch.no_grad():
                for sign in (1, -1):
                    p.view(-1)[i] += sign * h
                    difference += sign * torch.stack([*three_losses(model, x).values()])
                    p.view(-1)[i] -= sign * h
            torch.testing.assert_close(G[:, column], difference / (2 * h), rtol=1e-6, atol=1e-8)
            column += 1
    assert column == G.shape[1]


@given(data=EXPONENTS, pde=EXPONENTS)
def test_gradient_matrix_over_scales(data, pde):
    a, b = 10.0**data, 10.0**pde
    w = theta(2.0, -3.0)
    G = gradient_matrix({"data": a * w.sum(), "pde": b * w.square().sum()}, [w])
    torch.testing.assert_close(
        G, torch.tensor([[a, a], [4 * b, -6 * b]], dtype=torch.float64), rtol=1e-15, atol=0
    )


def test_gradient_matrix_of_a_single_term():
    w = theta(2.0, -3.0)
    assert gradient_matrix({"only": w.prod()}, [w]).tolist() == [[-3.0, 2.0]]


def test_gradient_matrix_is_detached_and_writes_no_gradient():
    model = network()
    G = gradient_matrix(three_losses(model, points()), model.parameters())
    assert not G.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_gradient_matrix_keeps_gradients_that_are_there():
    w = theta(1.0, 2.0)
    w.grad = torch.tensor([5.0, 6.0], dtype=torch.float64)
    gradient_matrix({"a": w.sum(), "b": w.prod()}, [w])
    assert w.grad.tolist() == [5.0, 6.0]


def test_gradient_matrix_frees_the_graph_when_it_is_done():
    losses = three_losses(model := network(), points())
    gradient_matrix(losses, model.parameters())
    with pytest.raises(RuntimeError, match="second time"):
        losses["fourth"].backward()


def test_gradient_matrix_walks_the_graph_once_a_term():
    model, walks = network(), []
    u = model(points())
    u.register_hook(lambda gradient: walks.append(gradient.shape))
    gradient_matrix({"a": u.mean(), "b": u.square().mean()}, model.parameters())
    assert len(walks) == 2


def test_gradient_matrix_has_zeros_where_a_term_does_not_use_a_parameter():
    a, b, c = theta(1.0, 2.0), theta(3.0), theta(4.0, 5.0)
    G = gradient_matrix({"first": a.sum(), "second": b.prod() * a[0]}, [a, b, c])
    assert G.tolist() == [[1.0, 1.0, 0.0, 0.0, 0.0], [3.0, 0.0, 1.0, 0.0, 0.0]]


def test_gradient_matrix_leaves_frozen_parameters_out():
    a, frozen, b = theta(1.0), torch.tensor([2.0], dtype=torch.float64), theta(3.0)
    G = gradient_matrix({"x": (a * frozen * b).sum(), "y": b.sum()}, [a, frozen, b])
    assert G.tolist() == [[6.0, 2.0], [0.0, 1.0]]


def test_gradient_matrix_counts_a_shared_parameter_once():
    a, b = theta(1.0, 2.0), theta(3.0)
    G = gradient_matrix({"x": a.sum() * b.sum(), "y": a.sum()}, [a, b, a])
    assert G.tolist() == [[3.0, 3.0, 3.0], [1.0, 1.0, 0.0]]


def test_gradient_matrix_takes_an_iterator_and_a_parameter_without_dimension():
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    G = gradient_matrix({"x": a**2, "y": a**3}, iter([a]))
    assert G.tolist() == [[4.0], [12.0]]


def test_gradient_matrix_takes_a_loss_of_one_element():
    w = theta(1.0, 2.0)
    assert gradient_matrix({"x": w.sum()[None, None]}, [w]).tolist() == [[1.0, 1.0]]


def test_gradient_matrix_takes_gradients_that_are_not_contiguous():
    w = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).requires_grad_()
    factor = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    loss = (w.T * factor).sum()
    (gradient,) = torch.autograd.grad(loss, w, retain_graph=True)
    assert not gradient.is_contiguous()
    assert gradient_matrix({"x": loss}, [w]).tolist() == [factor.T.flatten().tolist()]


def test_gradient_matrix_of_mixed_dtypes_has_the_wider_one():
    single, double = theta(2.0, dtype=torch.float32), theta(3.0)
    G = gradient_matrix({"x": (single * double).sum(), "y": double.sum()}, [single, double])
    assert G.dtype == torch.float64
    assert G.tolist() == [[3.0, 2.0], [0.0, 1.0]]


def test_gradient_matrix_of_float32_stays_float32():
    w = theta(1.0, dtype=torch.float32)
    assert gradient_matrix({"x": w.sum(), "y": w.prod()}, [w]).dtype == torch.float32


BAD_LOSSES = [
    (lambda w: w * 1.0, r"'pde' has shape \(2,\): reduce it to a scalar"),
    (lambda w: w.sum() * math.nan, "'pde' is nan: lower the learning rate or check its inputs"),
    (lambda w: w.sum() * math.inf, "'pde' is inf: lower the learning rate or check its inputs"),
    (lambda w: w.detach().sum(), r"'pde' has no graph \(requires_grad=False\): .* without detach"),
    (lambda w: theta(4.0).sum(), "'pde' uses none of the parameters: compute it from the model"),
    (
        lambda w: (w - 1).sqrt().sum(),
        "gradient of loss 'pde' has 1 of 2 entries .* not finite, such as inf: lower the learning",
    ),
    (
        lambda w: (w * 0).abs().sqrt().sum(),
        "gradient of loss 'pde' has 2 of 2 entries .* not finite, such as nan: .* derivatives",
    ),
]


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(("bad", "message"), BAD_LOSSES)
def test_gradient_matrix_refuses_and_names_the_term(bad, message, position):
    w = theta(1.0, 2.0)
    losses = [("data", w.prod()), ("other", w.sum())]
    losses.insert(position, ("pde", bad(w)))
    with pytest.raises(ValueError, match=message):
        gradient_matrix(dict(losses), [w])
    assert w.grad is None


def test_gradient_matrix_refuses_no_loss_and_no_parameter():
    w = theta(1.0)
    with pytest.raises(ValueError, match="losses is empty: pass one scalar loss for each term"):
        gradient_matrix({}, [w])
    for params in ([], [w.detach()]):
        with pytest.raises(ValueError, match=r"no trainable parameter: .* requires_grad=True"):
            gradient_matrix({"x": w.sum()}, params)


# The parts that gradient_matrix is made of


def test_gradient_rows_tells_which_parameters_are_used():
    a, b, c = theta(1.0), theta(2.0), theta(3.0)
    losses = {"x": (a * 0).sum(), "y": (b * c).sum(), "z": theta(1.0).sum()}
    G, used = gradient_rows(losses, [a, b, c])
    assert used == [[True, False, False], [False, True, True], [False, False, False]]
    assert G.tolist() == [[0.0, 0.0, 0.0], [0.0, 3.0, 2.0], [0.0, 0.0, 0.0]]


def test_gradient_rows_can_keep_the_graph():
    w = theta(1.0, 2.0)
    loss = w.prod().square()
    first, _ = gradient_rows({"x": loss}, [w], retain_graph=True)
    second, _ = gradient_rows({"x": loss}, [w])
    assert first.tolist() == second.tolist() == [[8.0, 4.0]]
    with pytest.raises(RuntimeError, match="second time"):
        gradient_rows({"x": loss}, [w])


def test_gradient_rows_of_a_stack_equal_its_networks():
    models = [network(seed) for seed in range(4)]
    stack = StackedMLP(models)
    u = stack(points())
    losses = {"a": u.mean(dim=(-2, -1)), "b": u.square().mean(dim=(-2, -1))}
    G, used = gradient_rows(losses, list(stack.parameters()), stack=(4,))
    assert used == [[True] * len(list(stack.parameters()))] * 2
    for s, model in enumerate(models):
        u = model(points())
        expected = gradient_matrix({"a": u.mean(), "b": u.square().mean()}, model.parameters())
        torch.testing.assert_close(G[s], expected)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1)])
def test_check_losses_refuses_another_number_of_networks(shape):
    loss = torch.zeros(shape, requires_grad=True)
    with pytest.raises(ValueError, match=r"'pde' has shape .* one scalar for each network, \(2,\)"):
        check_losses({"pde": loss}, stack=(2,))


def test_check_losses_refuses_one_bad_network_of_a_stack():
    check_losses({"pde": torch.zeros(2, requires_grad=True)}, stack=(2,))
    with pytest.raises(ValueError, match=r"'pde' is \[0.0, nan\]"):
        check_losses({"pde": torch.tensor([0.0, math.nan], requires_grad=True)}, stack=(2,))


def test_check_used_and_check_finite():
    check_used(["a", "b"], [[True, False], [False, True]])
    with pytest.raises(ValueError, match="'b' uses none of the parameters"):
        check_used(["a", "b"], [[True, False], [False, False]])
    G = torch.tensor([[1.0, 2.0, 3.0], [1.0, -math.inf, 2.0]])
    check_finite(["a", "b"], G.clamp(-9, 9))
    with pytest.raises(ValueError, match=r"'b' at step 0 has 1 of 3 entries .* such as -inf"):
        check_finite(["a", "b"], G, step=0)
    with pytest.raises(ValueError, match=r"'b' has 2 of 6 entries"):
        check_finite(["a", "b"], torch.stack([G, G]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(3))
def test_check_finite_finds_every_bad_entry(bad, place):
    G = torch.zeros(2, 3).index_put((torch.tensor(1), torch.tensor(place)), torch.tensor(bad))
    with pytest.raises(ValueError, match=f"'pde' has 1 of 3 .* such as {bad}"):
        check_finite(["data", "pde"], G)


def test_trainable_keeps_order_and_leaves_out_frozen_and_double_ones():
    a, b, frozen = theta(1.0), theta(1.0), torch.ones(1)
    kept = trainable([b, frozen, a, b])
    assert [id(p) for p in kept] == [id(b), id(a)]


# Statistics


@pytest.mark.parametrize(
    ("statistic", "oracle"),
    [
        (mean_abs, lambda row: sum(abs(v) for v in row) / len(row)),
        (max_abs, lambda row: max(abs(v) for v in row)),
        (l2_norm, lambda row: math.hypot(*row)),
    ],
    ids=["mean_abs", "max_abs", "l2_norm"],
)
@given(
    rows=st.lists(
        st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=4, max_size=4),
        min_size=1,
        max_size=3,
    ),
    exponent=EXPONENTS,
)
def test_statistics_over_scales(statistic, oracle, rows, exponent):
    scaled = [[v * 10.0**exponent for v in row] for row in rows]
    sizes = statistic(torch.tensor(scaled, dtype=torch.float64))
    assert sizes.tolist() == pytest.approx([oracle(row) for row in scaled], rel=1e-12, abs=0)


@pytest.mark.parametrize("statistic", [mean_abs, max_abs, l2_norm])
def test_statistics_work_along_the_last_dimension(statistic):
    G = torch.randn(2, 3, 5, generator=seeded())
    sizes = statistic(G)
    assert sizes.shape == (2, 3)
    assert torch.equal(sizes, torch.stack([statistic(rows) for rows in G]))


@pytest.mark.parametrize("statistic", [mean_abs, max_abs, l2_norm])
def test_statistics_of_zero_are_zero(statistic):
    assert statistic(torch.zeros(2, 3)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 1e38])
def test_l2_norm_neither_overflows_nor_vanishes(size):
    G = size * torch.tensor([[0.6, -0.8]])
    assert l2_norm(G).item() == pytest.approx(size, rel=1e-5)


# cosine


def test_cosine_is_the_scalar_product_over_both_lengths():
    G = torch.randn(4, 50, dtype=torch.float64, generator=seeded())
    norm = (G**2).sum(dim=1).sqrt()
    torch.testing.assert_close(cosine(G), G @ G.T / (norm[:, None] * norm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(exponents=st.lists(EXPONENTS, min_size=3, max_size=3))
def test_cosine_does_not_depend_on_the_sizes_of_rows(dtype, exponents):
    G = torch.randn(3, 20, dtype=dtype, generator=seeded())
    scales = torch.tensor([10.0**e for e in exponents], dtype=dtype)
    torch.testing.assert_close(cosine(scales[:, None] * G), cosine(G))


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e38])
def test_cosine_where_squares_leave_the_precision(size):
    G = torch.tensor([[size, size], [1.0, -1.0], [1.0, 1.0]])
    expected = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    torch.testing.assert_close(cosine(G), expected)


def test_cosine_stays_between_minus_one_and_one():
    row = torch.randn(1, 5000, generator=seeded())
    C = cosine(torch.cat([row, -3 * row, 7 * row]))
    assert C.abs().max() <= 1
    torch.testing.assert_close(C[0], torch.tensor([1.0, -1.0, 1.0]))


def test_cosine_of_a_zero_row_is_zero_and_one_on_the_diagonal():
    G = torch.randn(3, 20, generator=seeded())
    G[1] = 0
    C = cosine(G)
    assert C[1].tolist() == [0, 1, 0]
    assert C[:, 1].tolist() == [0, 1, 0]
    torch.testing.assert_close(C[0, 2], cosine(G[[0, 2]])[0, 1])


def test_cosine_of_a_stack_equals_one_by_one():
    G = torch.randn(2, 5, 4, 20, generator=seeded())
    C = cosine(G)
    assert C.shape == (2, 5, 4, 4)
    torch.testing.assert_close(C[1, 3], cosine(G[1, 3]))


def test_cosine_is_symmetric_with_a_diagonal_of_exactly_one():
    C = cosine(torch.randn(6, 300, generator=seeded()))
    torch.testing.assert_close(C, C.T)
    assert (C.diagonal() == 1).all()


# layer_view


def test_layer_view_gives_each_layer_its_columns():
    model = network(outputs=2)
    G = torch.arange(2.0 * 57).reshape(2, 57)
    view = layer_view(G, model.named_parameters())
    assert {name: tuple(columns.shape) for name, columns in view.items()} == {
        "layers.0": (2, 15),
        "layers.1": (2, 30),
        "layers.2": (2, 12),
    }
    assert torch.equal(torch.cat([*view.values()], dim=1), G)
    view["layers.1"][0, 0] = -1.0
    assert G[0, 15] == -1.0  # a view, not a copy


def test_layer_view_agrees_with_the_gradient_of_a_layer():
    model = network()
    losses = three_losses(model, points())
    G = gradient_matrix(losses, model.parameters())
    view = layer_view(G, model.named_parameters())
    for k, layer in enumerate(model.layers):
        expected = gradient_matrix(three_losses(model, points()), layer.parameters())
        assert torch.equal(view[f"layers.{k}"], expected)


def test_layer_view_leaves_frozen_parameters_out():
    model = network()
    model.layers[0].requires_grad_(False)
    model.layers[1].bias.requires_grad_(False)
    G = gradient_matrix(three_losses(model, points()), model.parameters())
    view = layer_view(G, model.named_parameters())
    assert {name: columns.shape[1] for name, columns in view.items()} == {
        "layers.1": 25,
        "layers.2": 6,
    }


def test_layer_view_of_a_stack_of_matrices_and_of_names_without_a_dot():
    view = layer_view(torch.zeros(4, 2, 3), [("a", theta(1.0, 2.0)), ("b", theta(3.0))])
    assert {name: tuple(columns.shape) for name, columns in view.items()} == {"": (4, 2, 3)}


@pytest.mark.parametrize("columns", [50, 52])
@pytest.mark.parametrize("stack", [(), (4,)])
def test_layer_view_refuses_other_parameters(stack, columns):
    message = f"G has {columns} columns, but the parameters have 51 entries: pass those that G was"
    with pytest.raises(ValueError, match=message):
        layer_view(torch.zeros(*stack, 2, columns), network().named_parameters())
