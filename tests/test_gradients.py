import math

import pytest
import torch
from helpers import EXPONENTS, network, points, seeded, theta
from hypothesis import given
from hypothesis import strategies as st

from pinnlib import gradient_matrix
from pinnlib.gradients import (
    alignment,
    check_finite,
    check_used,
    cosine,
    gradient_rows,
    is_finite,
    l2_norm,
    layer_view,
    max_abs,
    mean_abs,
)
from pinnlib.residuals import NotFiniteError
from pinnlib.stacked import Stacked

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def three_losses(model, x):
    u = model(x)
    return {"mean": u.mean(), "square": 3 * u.square().mean(), "fourth": (u - 1).pow(4).mean()}


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


def test_gradient_matrix_takes_a_module():
    model = network()
    G = gradient_matrix(three_losses(model, points()), model)
    expected = gradient_matrix(three_losses(model, points()), model.parameters())
    assert torch.equal(G, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_gradient_matrix_needs_no_grad_mode_of_its_own(mode):
    w = theta(2.0, -3.0)
    losses = {"sum": w.sum(), "square": w.square().sum()}
    with mode():
        G = gradient_matrix(losses, [w])
    assert G.tolist() == [[1.0, 1.0], [4.0, -6.0]]


def test_gradient_matrix_says_that_inference_mode_is_on():
    w = theta(1.0)
    losses = {"x": w.sum()}
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode is on"):
        gradient_matrix(losses, [w])


def test_gradient_matrix_has_no_column_for_a_parameter_without_entries():
    empty = torch.empty(0, 3, dtype=torch.float64, requires_grad=True)
    w = theta(1.0, 2.0)
    assert gradient_matrix({"x": w.prod() + empty.sum()}, [empty, w]).tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradient_matrix_flattens_by_index_whatever_the_layout(layout):
    w = torch.randn(2, 3, 2, 2, generator=seeded()).to(memory_format=layout).requires_grad_()
    factor = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert gradient_matrix({"x": (w * factor).sum()}, [w]).tolist() == [list(range(24))]


def test_gradient_matrix_says_what_a_sparse_gradient_is():
    table = torch.nn.Embedding.from_pretrained(torch.ones(4, 2), freeze=False, sparse=True)
    loss = table(torch.tensor([1, 2])).sum()
    with pytest.raises(ValueError, match=r"parameter \(4, 2\) has a sparse .*: .* sparse=False"):
        gradient_matrix({"x": loss}, table.parameters())


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


@pytest.mark.parametrize("bad", [1.0, None, {"a": torch.ones(())}])
def test_gradient_matrix_refuses_what_is_no_tensor(bad):
    w = theta(1.0)
    with pytest.raises(TypeError, match=r"(?s)loss 'pde' is .*: pass a scalar tensor with a graph"):
        gradient_matrix({"data": w.sum(), "pde": bad}, [w])


def test_what_is_not_finite_has_an_error_of_its_own():
    w = theta(1.0)
    for bad in (w.sum() * math.nan, (w - 1).sqrt().sum()):
        with pytest.raises(NotFiniteError):
            gradient_matrix({"x": bad}, [w])


def test_gradient_matrix_refuses_no_loss_and_no_parameter():
    w = theta(1.0)
    with pytest.raises(ValueError, match="losses is empty: pass one scalar loss for each term"):
        gradient_matrix({}, [w])
    for params in ([], [w.detach()]):
        with pytest.raises(ValueError, match=r"no trainable parameter: .* requires_grad=True"):
            gradient_matrix({"x": w.sum()}, params)


# The parts that gradient_matrix is made of


def row(loss):
    return [loss], None


def test_gradient_rows_tells_which_parameters_are_used():
    a, b, c = theta(1.0), theta(2.0), theta(3.0)
    losses = [(a * 0).sum(), (b * c).sum(), theta(1.0).sum()]
    G, used = gradient_rows(list(map(row, losses)), [a, b, c])
    assert used == [[True, False, False], [False, True, True], [False, False, False]]
    assert G.tolist() == [[0.0, 0.0, 0.0], [0.0, 3.0, 2.0], [0.0, 0.0, 0.0]]


def test_gradient_rows_adds_up_outputs_times_seeds():
    w = theta(2.0, -3.0)
    outputs = [w.square(), w.prod()]
    seeds = [theta(10.0, 100.0).detach(), torch.tensor(0.5, dtype=torch.float64)]
    G, used = gradient_rows([(outputs, None), (outputs, seeds)], [w])
    assert G.tolist() == [[4.0 - 3.0, -6.0 + 2.0], [40.0 - 1.5, -600.0 + 1.0]]
    assert used == [[True], [True]]


def test_gradient_rows_can_keep_the_graph():
    w = theta(1.0, 2.0)
    loss = w.prod().square()
    first, _ = gradient_rows([row(loss)], [w], retain_graph=True)
    second, _ = gradient_rows([row(loss)], [w])
    assert first.tolist() == second.tolist() == [[8.0, 4.0]]
    with pytest.raises(RuntimeError, match="second time"):
        gradient_rows([row(loss)], [w])


def test_gradient_rows_of_a_stack_equal_its_networks():
    models = [network(seed=seed) for seed in range(4)]
    stack = Stacked(models)
    u = stack(points())
    losses = [u.mean(dim=(-2, -1)), u.square().mean(dim=(-2, -1)), stack(points())[..., 0, 0]]
    params = list(stack.parameters())
    G, used = gradient_rows(list(map(row, losses)), params, stack=(4,))
    assert used == [[True] * len(params)] * 3
    for s, model in enumerate(models):
        u = model(points())
        losses = {"a": u.mean(), "b": u.square().mean(), "c": model(points())[0, 0]}
        torch.testing.assert_close(G[s], gradient_matrix(losses, model.parameters()))


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


@given(
    entries=st.lists(
        st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=5
    ),
    bad=st.sampled_from([None, math.nan, math.inf, -math.inf]),
    at=st.integers(0, 4),
)
def test_is_finite_as_pytorch_says(entries, bad, at):
    x = torch.tensor([entries, entries])
    if bad is not None:
        x[1, at % len(entries)] = bad
    assert is_finite(x).tolist() == x.isfinite().all(dim=-1).tolist()


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


@given(widths=st.lists(st.integers(1, 6), min_size=1, max_size=4), data=st.data())
def test_statistics_of_a_row_are_those_of_the_entries_that_it_uses(widths, data):
    uses = data.draw(st.lists(st.booleans(), min_size=len(widths), max_size=len(widths)))
    used = torch.cat([torch.full((n,), use) for n, use in zip(widths, uses, strict=True)])
    G = torch.randn(3, 1, len(used), dtype=torch.float64, generator=seeded()) * used
    for statistic in (mean_abs, max_abs, l2_norm):
        sizes = statistic(G, used=used[None])
        expected = statistic(G[..., used]) if used.any() else torch.zeros(3, 1)
        assert sizes.flatten().tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-14)


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 3e38), (torch.float16, 6e4), (torch.bfloat16, 3e38)]
)
def test_mean_abs_does_not_overflow(dtype, size):
    G = torch.full((1, 1000), size, dtype=dtype)
    assert torch.equal(mean_abs(G), G[:, 0])


def test_each_row_has_its_own_mean_over_the_entries_that_it_uses():
    used = torch.tensor([[True, False, False], [True, True, True]])
    G = torch.tensor([[3.0, 0.0, 0.0], [1.0, -2.0, 6.0]])
    assert mean_abs(G, used=used).tolist() == [3.0, 3.0]


def test_mean_abs_over_few_of_many_entries_does_not_vanish_in_half_precision():
    used = torch.arange(200_000) < 2
    G = torch.where(used, 1e-4, 0.0).half()
    torch.testing.assert_close(mean_abs(G, used=used), G[0])


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


# alignment


@given(exponents=st.lists(EXPONENTS, min_size=1, max_size=5))
def test_alignment_is_twice_the_square_of_the_mean_unit_row_less_one(exponents):
    scales = torch.tensor([10.0**e for e in exponents], dtype=torch.float64)
    G = torch.randn(len(scales), 7, dtype=torch.float64, generator=seeded()) * scales[:, None]
    unit = G / (G**2).sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(alignment(G), 2 * (unit.mean(dim=0) ** 2).sum() - 1)
    torch.testing.assert_close(alignment(G), 2 * cosine(G).mean() - 1)


def test_alignment_of_two_rows_is_their_cosine():
    G = torch.randn(4, 2, 30, dtype=torch.float64, generator=seeded())
    assert alignment(G).shape == (4,)
    torch.testing.assert_close(alignment(G), cosine(G)[:, 0, 1])


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_alignment_along_against_and_at_right_angles(terms):
    sizes = torch.arange(1.0, terms + 1)
    assert alignment(sizes[:, None] * torch.ones(terms, 3)).item() == pytest.approx(1)
    assert alignment(torch.diag(sizes)).item() == pytest.approx(2 / terms - 1)
    assert alignment(torch.zeros(terms, 3)).item() == pytest.approx(2 / terms - 1)
    if terms > 1:  # a closed polygon
        angles = 2 * math.pi * torch.arange(terms) / terms
        around = torch.stack([angles.cos(), angles.sin()], dim=1) * sizes[:, None]
        assert alignment(around).item() == pytest.approx(-1, abs=1e-6)


# layer_view


def test_layer_view_gives_each_layer_its_columns():
    model = network(outputs=2)
    G = torch.arange(2.0 * 74).reshape(2, 74)
    view = layer_view(G, model.named_parameters())
    assert {name: tuple(columns.shape) for name, columns in view.items()} == {
        "layers.0": (2, 18),
        "layers.1": (2, 42),
        "layers.2": (2, 14),
    }
    assert torch.equal(torch.cat([*view.values()], dim=1), G)
    view["layers.1"][0, 0] = -1.0
    assert G[0, 18] == -1.0  # a view, not a copy


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
        "layers.1": 36,
        "layers.2": 7,
    }


def test_layer_view_of_a_stack_of_matrices_and_of_names_without_a_dot():
    view = layer_view(torch.zeros(4, 2, 3), [("a", theta(1.0, 2.0)), ("b", theta(3.0))])
    assert {name: tuple(columns.shape) for name, columns in view.items()} == {"": (4, 2, 3)}


@pytest.mark.parametrize("columns", [66, 68])
@pytest.mark.parametrize("stack", [(), (4,)])
def test_layer_view_refuses_other_parameters(stack, columns):
    message = f"G has {columns} columns, but the parameters have 67 entries: pass those that G was"
    with pytest.raises(ValueError, match=message):
        layer_view(torch.zeros(*stack, 2, columns), network().named_parameters())


def test_layer_view_refuses_a_layer_whose_parameters_stand_apart():
    named = [("a.weight", theta(1.0, 2.0)), ("b.weight", theta(3.0)), ("a.bias", theta(4.0))]
    with pytest.raises(ValueError, match="parameters of layer 'a' stand apart: pass them in order"):
        layer_view(torch.zeros(2, 4), named)
    view = layer_view(torch.arange(4.0), [named[0], named[2], named[1]])
    assert {name: columns.tolist() for name, columns in view.items()} == {"a": [0, 1, 2], "b": [3]}
