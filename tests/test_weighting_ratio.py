import math
from statistics import fmean, geometric_mean

import pytest
import torch
from helpers import EXPONENTS, TERMS, network, points, rows, seeded
from hypothesis import given
from hypothesis import strategies as st

from pinnlib import GradientBalancer, gradient_matrix
from pinnlib.gradients import max_abs, mean_abs
from pinnlib.weighting import (
    Balancer,
    Follow,
    LayerMax,
    LayerMeans,
    Ratio,
    Seen,
    geometric_mean_of_terms,
    mean_of_terms,
)
from pinnlib.weighting.ratio import ratio

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def target(rule, G, *, weights=None, used=None):
    weights = torch.ones(G.shape[:-1], dtype=torch.float64) if weights is None else weights
    terms = TERMS[-G.shape[-2] :]
    return rule(Seen(terms, weights, rows=lambda: (G, used)), {})[0]


# The two means


@given(exponents=st.lists(EXPONENTS, min_size=2, max_size=5))
def test_means_of_terms_over_scales(exponents):
    sizes = [10.0**e for e in exponents]
    tensor = torch.tensor(sizes, dtype=torch.float64)
    assert mean_of_terms(tensor).item() == pytest.approx(fmean(sizes), rel=1e-12)
    assert geometric_mean_of_terms(tensor).item() == pytest.approx(geometric_mean(sizes), rel=1e-9)


def test_means_of_terms_work_along_the_last_dimension():
    sizes = torch.tensor([[1.0, 4.0], [0.0, 6.0]])
    assert mean_of_terms(sizes).tolist() == [2.5, 3.0]
    assert geometric_mean_of_terms(sizes).tolist() == [2.0, 0.0]


# Ratio


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_cannot_be_balanced_is_undefined_and_what_is_wrong_infinite(dtype):
    sizes = torch.tensor([1.0, 0.0, 1e-30, -1.0, math.nan, math.inf], dtype=torch.float64)
    largest = torch.finfo(dtype).max
    for R, expected in [
        (1e30, [1e30, math.nan, math.nan if dtype == torch.float32 else 1e60] + [math.inf] * 3),
        (largest, [largest, math.nan, math.nan] + [math.inf] * 3),
        (0.0, [0.0, math.nan, 0.0] + [math.inf] * 3),
        (-1.0, [math.inf] * 6),
        (math.nan, [math.inf] * 6),
        (math.inf, [math.inf] * 6),
    ]:
        found = ratio(sizes, torch.tensor(R, dtype=torch.float64), largest)
        assert found.tolist() == pytest.approx(expected, nan_ok=True)


def test_overflow_depends_on_the_precision_of_the_matrix():
    assert target(Ratio(reference="initial"), rows(1e30, 1e-30))[1].item() == pytest.approx(1e60)
    assert target(Ratio(reference="initial"), rows(1e300, 1e-300))[1].isnan()
    single = rows(1e30, 1e-30, dtype=torch.float32)
    assert target(Ratio(reference="initial"), single)[1].isnan()


def test_reference_statistic_measures_the_reference_only():
    rule = Ratio(reference="initial", reference_statistic=max_abs)
    assert target(rule, torch.tensor([[1.0, 5.0], [2.0, 6.0]])).tolist() == [1.0, 1.25]
    by_mean = Ratio(reference=mean_of_terms, reference_statistic=max_abs)  # measures no term
    assert target(by_mean, rows(1.0, 3.0)).tolist() == pytest.approx([2.0, 2 / 3])


@pytest.mark.parametrize("reference", TERMS)
@pytest.mark.parametrize("statistic", [None, mean_abs, max_abs])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_reference_keeps_the_weight_one(reference, statistic, weighted):
    G = torch.randn(4, 3, 7, generator=seeded(), dtype=torch.float64)
    weights = torch.rand(4, 3, generator=seeded(1), dtype=torch.float64)
    rule = Ratio(reference=reference, reference_statistic=statistic, weighted=weighted)
    found = target(rule, G, weights=weights)
    assert (found[:, TERMS.index(reference)] == 1).all()
    k = TERMS.index(reference)
    R = (statistic or mean_abs)(G)[:, k : k + 1]
    expected = R / (mean_abs(G) * (weights if weighted else 1))
    expected[:, k] = 1
    torch.testing.assert_close(found, expected)


def test_a_reference_function_leaves_no_term_out():
    found = target(Ratio(reference=mean_of_terms), rows(1.0, 2.0, 6.0))
    assert found.tolist() == pytest.approx([3.0, 1.5, 0.5])
    found = target(Ratio(reference=geometric_mean_of_terms), rows(1.0, 4.0))
    assert found.tolist() == pytest.approx([2.0, 0.5])


def test_a_weighted_ratio_to_a_function_divides_the_weighted_size():
    rule = Ratio(reference=mean_of_terms, weighted=True)
    found = target(rule, rows(1.0, 3.0), weights=torch.tensor([0.5, 4.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([2 / 0.5, 2 / 12])


def test_targets_are_detached_and_in_double_precision():
    found = target(Ratio(reference="initial"), rows(1.0, 3.0, dtype=torch.float32).requires_grad_())
    assert found.dtype == torch.float64
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"reference": "edge"},
            ValueError,
            r"reference 'edge' is not a term: choose one of \['dat",
        ),
        ({"reference": None}, TypeError, "reference is None: pass a term's name or a function"),
        ({"reference": 0}, TypeError, "reference is 0: pass a term's name"),
        ({"reference": ["data"]}, TypeError, r"reference is \['data'\]: pass a term's name"),
        ({"statistic": "mean"}, TypeError, "statistic is 'mean': pass a function such as mean_abs"),
        ({"reference_statistic": 2}, TypeError, "statistic is 2: pass a function such as mean_abs"),
    ],
)
def test_settings_are_checked_when_the_balancer_is_made(settings, error, message):
    for rule in (Ratio(**settings), Follow(Ratio(**settings))):
        with pytest.raises(error, match=message):
            Balancer(TERMS, rule)


@pytest.mark.parametrize(
    ("statistic", "found"),
    [
        (lambda G, used: G.abs().mean(), r"\(\)"),
        (lambda G, used: G.abs(), r"\(2, 3\)"),
        (lambda G, used: G.abs().mean(dim=-2), r"\(3,\)"),
        (lambda G, used: G.abs().mean(dim=-1, keepdim=True), r"\(2, 1\)"),
        (lambda G, used: mean_abs(G).numpy(), "ndarray"),
        (lambda G, used: mean_abs(G).tolist(), "list"),
        (lambda G, used: None, "NoneType"),
    ],
)
def test_a_statistic_gives_a_size_for_each_row(refused, statistic, found):
    balancer = Balancer(["data", "pde"], Follow(Ratio(statistic)))
    message = rf"the statistic maps \(2, 3\) to {found}: let it return a size for each row, \(2,\)"
    with refused(balancer, match=message):
        balancer.update(rows(1.0, 2.0))
    reference_only = Ratio(reference="pde", reference_statistic=lambda G, used: G)
    with pytest.raises(ValueError, match=r"maps \(1, 3\) to \(1, 3\): .* row, \(1,\)"):
        target(reference_only, rows(1.0, 2.0))


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        (lambda sizes: 1.0, "float"),
        (lambda sizes: sizes, r"\(2,\)"),
        (lambda sizes: sizes.mean(dim=-1, keepdim=True), r"\(1,\)"),
    ],
)
def test_a_reference_function_gives_one_size(refused, reference, found):
    balancer = Balancer(["data", "pde"], Follow(Ratio(reference=reference)))
    with refused(balancer, match=rf"the reference maps \(2,\) to {found}: .* together, \(\)"):
        balancer.update(rows(1.0, 2.0))


# Statistics by layer


def losses_of(model):
    u = model(points())
    return {"data": u.mean(), "initial": 10 * u.square().mean(), "pde": (u - 1).pow(4).mean()}


@pytest.mark.parametrize("frozen", [False, True])
def test_layers_are_weight_matrices_without_biases(frozen):
    model = network()
    model.layers[1].weight.requires_grad_(not frozen)
    G = gradient_matrix(losses_of(model), model.parameters())
    widths = [12, 6, *([] if frozen else [36]), 6, 6, 1]
    matrices = [part for part in G.split(widths, dim=1) if part.shape[1] in (12, 36)]
    matrices.append(G[:, -7:-1])
    assert len(matrices) == (2 if frozen else 3)
    named = list(model.named_parameters())
    means = torch.stack([m.abs().mean(dim=1) for m in matrices]).mean(dim=0)
    largest = torch.cat(matrices, dim=1).abs().amax(dim=1)
    for statistic, expected in [(LayerMeans(named), means), (LayerMax(named), largest)]:
        torch.testing.assert_close(statistic(G), expected)
        torch.testing.assert_close(statistic(G.expand(4, *G.shape)), expected.expand(4, 3))
        assert repr(statistic) == f"{type(statistic).__name__}({len(matrices)} weight matrices)"


def test_layer_means_leave_unused_matrices_out():
    a, b = torch.zeros(2, 2, requires_grad=True), torch.zeros(3, 1, requires_grad=True)
    statistic = LayerMeans([("a.weight", a), ("b.weight", b)])
    used = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1] * 7, [0] * 7]).bool()
    G = torch.arange(1.0, 8.0).expand(3, 7) * used
    assert statistic(G, used=used).tolist() == [2.5, (2.5 + 6) / 2, 0.0]
    assert LayerMax([("a.weight", a), ("b.weight", b)])(G, used=used).tolist() == [4.0, 7.0, 0.0]


@pytest.mark.parametrize("kind", [LayerMeans, LayerMax])
@pytest.mark.parametrize("columns", [1, 66, 68, 102])
def test_a_matrix_of_other_parameters_is_refused(kind, columns):
    """Such as a coefficient in front, or parameters frozen later: columns would be mixed up."""
    statistic = kind(network().named_parameters())
    message = f"G has {columns} columns, but the parameters have 67 entries: pass those that G was"
    with pytest.raises(ValueError, match=message):
        statistic(torch.ones(2, columns))


def test_journal_refuses_other_parameters(refused):
    model, coefficient = network(), torch.ones(1, dtype=torch.float64, requires_grad=True)
    balancer = GradientBalancer.journal(TERMS, named_params=model.named_parameters())
    losses = losses_of(model)
    losses["pde"] = losses["pde"] * coefficient.sum()
    G = gradient_matrix(losses, [coefficient, *model.parameters()])
    with refused(balancer, match="G has 68 columns, but the parameters have 67 entries"):
        balancer.update(G)
    model.layers[0].requires_grad_(False)
    G = gradient_matrix(losses_of(model), model.parameters())
    with refused(balancer, match="G has 49 columns, but the parameters have 67 entries"):
        balancer.update(G)


@pytest.mark.parametrize("kind", [LayerMeans, LayerMax])
@pytest.mark.parametrize(
    "named",
    [
        [],
        [("bias", torch.zeros(3, requires_grad=True))],
        [("weight", torch.zeros(3, 1))],
    ],
)
def test_there_must_be_a_weight_matrix(kind, named):
    with pytest.raises(ValueError, match=r"no weight matrix: pass model.named_parameters\(\)"):
        kind(named)
