import math
from statistics import fmean, geometric_mean

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pinnlib.balancing import (
    GradientBalancer,
    arithmetic_average,
    geometric_mean_of_terms,
    logarithmic_average,
    mean_of_terms,
)
from pinnlib.derivatives import nested
from pinnlib.gradients import gradient_matrix, l2_norm, max_abs, mean_abs
from pinnlib.networks import MLP
from pinnlib.training import balanced_backward

pytestmark = pytest.mark.usefixtures("nothing_hidden")

TERMS = ["data", "initial", "pde"]
EXPONENTS = st.integers(-12, 12)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(*sizes, dtype=torch.float64):
    """A gradient matrix whose rows have these mean and maximum absolute values."""
    return torch.tensor(sizes, dtype=dtype)[:, None] * torch.tensor([1.0, -1.0, 1.0], dtype=dtype)


def balancer_of(*, terms=("data", "pde"), reference="data", **settings):
    return GradientBalancer(terms, reference=reference, **settings)


# The two averages and the two means


def test_averages():
    old, new = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 25.0])
    assert arithmetic_average(old, new, 0.25).tolist() == [1.5, 9.25]
    assert logarithmic_average(old, new, 0.5).tolist() == pytest.approx([math.sqrt(3), 10.0])
    assert logarithmic_average(old, new, 0.25)[1].item() == pytest.approx(4**0.75 * 25**0.25)


@given(old=EXPONENTS, new=EXPONENTS, alpha=st.floats(0.01, 1))
def test_averages_over_scales(old, new, alpha):
    a, b = (torch.tensor(10.0**e, dtype=torch.float64) for e in (old, new))
    exponent = (1 - alpha) * old + alpha * new
    assert logarithmic_average(a, b, alpha).log10().item() == pytest.approx(exponent, abs=1e-9)
    assert arithmetic_average(a, b, alpha).item() == pytest.approx(
        (1 - alpha) * 10.0**old + alpha * 10.0**new
    )


def test_logarithmic_average_keeps_the_old_value_where_the_new_one_is_zero():
    old, new = torch.tensor([2.0, 2.0]), torch.tensor([0.0, 8.0])
    assert logarithmic_average(old, new, 0.5).tolist() == pytest.approx([2.0, 4.0])


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


# GradientBalancer: against an independent implementation with plain numbers


class Oracle:
    """The balancer's documentation, one number at a time."""

    def __init__(self, reference, size, alpha, every, weighted, geometric, warm_start, bounds):
        self.reference, self.size, self.alpha, self.every = reference, size, alpha, every
        self.weighted, self.geometric = weighted, geometric
        self.warm_start, self.bounds = warm_start, bounds
        self.weights, self.first, self.step = [1.0] * 3, [None] * 3, 0

    def update(self, G):
        if self.step % self.every == 0:
            sizes = [self.size(row) for row in G]
            is_term = isinstance(self.reference, int)
            R = sizes[self.reference] if is_term else self.reference(sizes)
            for k in range(3):
                if self.reference != k:
                    self.weights[k] = self.follow(k, R, sizes[k])
        self.step += 1
        return self.weights

    def follow(self, k, R, size):
        old = self.weights[k]
        if self.weighted:
            size *= old
        new = R / size if size > 0 else 1.0
        if self.first[k] is None and size > 0 and new > 0:
            self.first[k] = new
            if self.warm_start:
                old = new
        if not self.geometric:
            weight = (1 - self.alpha) * old + self.alpha * new
        elif new > 0:
            weight = math.exp((1 - self.alpha) * math.log(old) + self.alpha * math.log(new))
        else:
            weight = old
        if self.bounds and self.first[k] is not None:
            low, high = (factor * self.first[k] for factor in self.bounds)
            weight = min(max(weight, low), high)
        return weight


STATISTICS = [
    (mean_abs, lambda row: fmean(map(abs, row))),
    (max_abs, lambda row: max(map(abs, row))),
    (l2_norm, lambda row: math.hypot(*row)),
]
REFERENCES = [
    ("data", 0),
    ("pde", 2),
    (mean_of_terms, fmean),
    (geometric_mean_of_terms, lambda sizes: geometric_mean(sizes) if all(sizes) else 0.0),
]


@hypothesis.settings(max_examples=150)
@given(
    statistic=st.sampled_from(STATISTICS),
    reference=st.sampled_from(REFERENCES),
    alpha=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    every=st.integers(1, 4),
    weighted=st.booleans(),
    average=st.sampled_from([arithmetic_average, logarithmic_average]),
    warm_start=st.booleans(),
    bounds=st.sampled_from([None, (0.1, 3.0), (0.0, 10.0), (1.0, math.inf)]),
    zeros=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=4),
    seed=st.integers(0, 1000),
)
def test_balancer_equals_an_independent_implementation(
    statistic, reference, alpha, every, weighted, average, warm_start, bounds, zeros, seed
):
    balancer = GradientBalancer(
        TERMS,
        reference=reference[0],
        statistic=statistic[0],
        alpha=alpha,
        every=every,
        weighted=weighted,
        average=average,
        warm_start=warm_start,
        bounds=bounds,
    )
    geometric = average is logarithmic_average
    oracle = Oracle(
        reference[1], statistic[1], alpha, every, weighted, geometric, warm_start, bounds
    )
    generator = seeded(seed)
    for step in range(12):
        exponents = torch.randint(-3, 4, (3, 1), generator=generator)
        G = torch.randn(3, 4, dtype=torch.float64, generator=generator) * 10.0**exponents
        for at, term in zeros:
            if at == step:
                G[term] = 0.0
        weights = balancer.update(G)
        assert weights.tolist() == pytest.approx(oracle.update(G.tolist()), rel=1e-9)


# GradientBalancer: one property at a time


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=EXPONENTS, pde=EXPONENTS)
def test_ratio_over_scales(dtype, data, pde):
    ratio = balancer_of().ratio(rows(10.0**data, 10.0**pde, dtype=dtype))
    assert ratio.tolist() == pytest.approx([1.0, 10.0 ** (data - pde)], rel=1e-6)


@given(exponent=EXPONENTS)
def test_weights_do_not_depend_on_the_unit_of_all_losses(exponent):
    first, second = balancer_of(alpha=0.5), balancer_of(alpha=0.5)
    for size in (1.0, 7.0, 0.3):
        a = first.update(rows(1.0, size))
        b = second.update(10.0**exponent * rows(1.0, size))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_ratio_changes_nothing():
    balancer = balancer_of()
    balancer.ratio(rows(1.0, 100.0))
    assert balancer.weights.tolist() == [1.0, 1.0]
    assert balancer.step == 0
    assert balancer.first_ratio.isnan().all()


def test_update_by_hand():
    balancer = balancer_of(alpha=0.9)
    assert balancer.weights.tolist() == [1.0, 1.0]
    assert balancer.update(rows(1.0, 100.0)).tolist() == pytest.approx([1.0, 0.1 + 0.9 * 0.01])
    assert balancer.update(rows(1.0, 1.0)).tolist() == pytest.approx([1.0, 0.0109 + 0.9])
    assert balancer.step == 2


def test_reference_statistic_measures_the_reference_only():
    balancer = balancer_of(alpha=1.0, reference_statistic=max_abs)
    G = torch.tensor([[1.0, 5.0], [2.0, 6.0]])
    assert balancer.update(G).tolist() == [1.0, 1.25]


@pytest.mark.parametrize(
    ("weighted", "expected"), [(False, 1e4), (True, 1e2)], ids=["ratio", "root of the ratio"]
)
def test_fixed_point(weighted, expected):
    balancer = balancer_of(alpha=0.1, weighted=weighted)
    for _ in range(1000):
        weights = balancer.update(rows(1e4, 1.0))
    assert weights.tolist() == pytest.approx([1.0, expected], rel=1e-9)


@given(exponent=EXPONENTS)
def test_fixed_point_of_the_weighted_rule_over_scales(exponent):
    balancer = balancer_of(weighted=True, average=logarithmic_average, alpha=0.5)
    for _ in range(50):
        weights = balancer.update(rows(10.0**exponent, 1.0))
    assert weights[1].log10().item() == pytest.approx(exponent / 2, abs=1e-9)


def test_every():
    balancer = balancer_of(alpha=1.0, every=3)
    weights = [balancer.update(rows(1.0, 2.0 ** (step + 1)))[1].item() for step in range(7)]
    assert weights == [1 / 2] * 3 + [1 / 16] * 3 + [1 / 128]


def test_warm_start():
    cold, warm = balancer_of(alpha=0.1), balancer_of(alpha=0.1, warm_start=True)
    assert cold.update(rows(1.0, 100.0))[1].item() == pytest.approx(0.901)
    assert warm.update(rows(1.0, 100.0))[1].item() == pytest.approx(0.01)
    assert warm.update(rows(1.0, 1.0))[1].item() == pytest.approx(0.109)  # once only


def test_bounds_are_relative_to_the_first_ratio():
    balancer = balancer_of(alpha=1.0, bounds=(0.5, 3.0))
    sizes = [100.0, 1000.0, 1.0, 50.0]  # the first ratio is 0.01
    weights = [balancer.update(rows(1.0, size))[1].item() for size in sizes]
    assert weights == pytest.approx([0.01, 0.005, 0.03, 0.02])


def test_bounds_hold_at_the_first_step_too():
    balancer = balancer_of(alpha=0.5, bounds=(0.5, 3.0))
    assert balancer.update(rows(1.0, 100.0))[1].item() == pytest.approx(0.03)


@pytest.mark.parametrize("first", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("settings", [{"bounds": (0.5, 3.0)}, {"warm_start": True}])
def test_a_ratio_that_cannot_be_measured_is_not_the_first(first, settings):
    balancer = balancer_of(alpha=1.0, **settings)
    balancer.update(rows(*first))
    assert balancer.update(rows(1000.0, 1.0))[1].item() == 1000.0


@pytest.mark.parametrize(
    ("sizes", "ratio"),
    [
        ((1.0, 0.0), 1.0),
        ((0.0, 0.0), 1.0),
        ((0.0, 1.0), 0.0),
        ((1e30, 1e-30), 1.0),  # the ratio would overflow
        ((1e-30, 1e30), 0.0),
        ((1e-38, 1e-38), 1.0),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_vanishing_gradients_and_overflow_in_float32(sizes, ratio, weighted):
    balancer = balancer_of(alpha=0.5, weighted=weighted)
    G = rows(*sizes, dtype=torch.float32)
    assert balancer.ratio(G).tolist() == pytest.approx([1.0, ratio], abs=1e-30)
    assert balancer.update(G).tolist() == pytest.approx([1.0, 0.5 + 0.5 * ratio])


def test_overflow_depends_on_the_precision_of_the_matrix():
    assert balancer_of().ratio(rows(1e30, 1e-30))[1].item() == pytest.approx(1e60)
    assert balancer_of().ratio(rows(1e308, 1e-308))[1].item() == 1.0


@given(data=st.integers(-38, 38), pde=st.integers(-38, 38), zero=st.sampled_from([None, 0, 1]))
def test_weights_are_finite_whatever_the_gradients(data, pde, zero):
    G = rows(10.0**data, 10.0**pde, dtype=torch.float32)
    if zero is not None:
        G[zero] = 0.0
    for reference in ("data", mean_of_terms, geometric_mean_of_terms):
        for weighted in (False, True):
            balancer = balancer_of(reference=reference, weighted=weighted, statistic=l2_norm)
            for _ in range(3):
                weights = balancer.update(G)
                assert weights.isfinite().all()
                assert weights.float().isfinite().all()
                assert (weights >= 0).all()


def test_a_reference_function_leaves_no_term_out():
    ratio = GradientBalancer(TERMS, reference=mean_of_terms).ratio(rows(1.0, 2.0, 6.0))
    assert ratio.tolist() == pytest.approx([3.0, 1.5, 0.5])
    ratio = balancer_of(reference=geometric_mean_of_terms).ratio(rows(1.0, 4.0))
    assert ratio.tolist() == pytest.approx([2.0, 0.5])


def test_a_statistic_of_one_s_own():
    balancer = balancer_of(alpha=1.0, statistic=lambda G: G[..., 0].abs())
    assert balancer.update(torch.tensor([[2.0, 9.0], [4.0, 1.0]])).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("bounds", [None, (0.1, 10)])
def test_weights_stay_on_the_cpu_whatever_the_default_device(bounds):
    G = rows(1, 100)
    with torch.device("meta"):  # where libraries put new tensors on a GPU, and nothing has a value
        balancer = balancer_of(alpha=0.5, bounds=bounds)
        weights = balancer.update(G)
    assert weights.device.type == balancer.weights.device.type == "cpu"
    assert weights.tolist() == [1.0, 0.5 + 0.5 / 100 if bounds is None else 0.1]


def test_weights_are_detached_and_copied():
    balancer = balancer_of()
    G = rows(1.0, 100.0).requires_grad_()
    weights = balancer.update(G)
    assert not weights.requires_grad
    assert weights.dtype == torch.float64
    weights.zero_()
    assert balancer.weights.tolist() == pytest.approx([1.0, 0.109])


# GradientBalancer: stacks


@pytest.mark.parametrize("reference", ["data", mean_of_terms], ids=["term", "mean"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weighted": True, "every": 3, "reference_statistic": max_abs},
        {"warm_start": True, "bounds": (0.5, 2.0), "average": logarithmic_average},
    ],
    ids=["plain", "weighted", "bounded"],
)
def test_a_stack_is_balanced_as_separate_matrices(reference, settings):
    settings = {"terms": TERMS, "reference": reference, "alpha": 0.5} | settings
    together, separate = balancer_of(**settings), [balancer_of(**settings) for _ in range(4)]
    generator = seeded()
    for step in range(10):
        G = torch.randn(4, 3, 5, generator=generator) * 10.0 ** torch.arange(3)[:, None]
        if step == 0:
            G[1, 2] = 0.0  # this one has no first ratio yet
        weights = together.update(G)
        assert weights.shape == (4, 3)
        for s in range(4):
            assert torch.equal(weights[s], separate[s].update(G[s]))


def test_a_stack_can_have_an_alpha_each():
    alphas = [0.1, 0.5, 1.0]
    together = balancer_of(alpha=torch.tensor(alphas, dtype=torch.float64)[:, None])
    separate = [balancer_of(alpha=alpha) for alpha in alphas]
    for size in (100.0, 3.0):
        weights = together.update(rows(1.0, size).expand(3, 2, 3))
        for s in range(3):
            torch.testing.assert_close(weights[s], separate[s].update(rows(1.0, size)))


# GradientBalancer: errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"terms": "data"}, "terms is 'data': pass the names of two loss terms or more"),
        ({"terms": ["data"]}, r"terms is \['data'\]: pass the names of two"),
        ({"terms": ["data", "pde", "data"]}, r"terms names \['data'\] more than once: give each"),
        ({"reference": "boundary"}, r"'boundary' is not a term: choose one of \['data', 'pde'\]"),
        ({"alpha": 0.0}, r"alpha is 0.0: .* must lie in \(0, 1\]; a momentum β elsewhere is 1 - a"),
        ({"alpha": 1.1}, "alpha is 1.1"),
        ({"alpha": -0.5}, "alpha is -0.5"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": torch.tensor([[0.5], [0.0]])}, r"alpha is tensor.*must lie in \(0, 1\]"),
        ({"every": 0}, "every is 0: update the weights every 1 or more steps"),
        ({"bounds": (0.5, 0.9)}, r"bounds is \(0.5, 0.9\): use factors with 0 <= low <= 1 <= high"),
        ({"bounds": (1.1, 2.0)}, r"bounds is \(1.1, 2.0\)"),
        ({"bounds": (-0.1, 2.0)}, r"bounds is \(-0.1, 2.0\)"),
        ({"bounds": (math.nan, 2.0)}, r"bounds is \(nan, 2.0\)"),
    ],
)
def test_balancer_refuses(settings, message):
    settings = {"terms": ["data", "pde"], "reference": "data"} | settings
    with pytest.raises(ValueError, match=f"(?s){message}"):
        GradientBalancer(**settings)


def test_balancer_accepts_the_ends_of_the_ranges():
    balancer = balancer_of(alpha=1, every=1, bounds=(1, 1))
    assert balancer.update(rows(1.0, 2.0)).tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("G", "message"),
    [
        (rows(1.0, 2.0, 3.0), r"shape \(3, 3\): it needs one row for each of \['data', 'pde'\]"),
        (torch.ones(2), r"shape \(2,\): it needs one row for each"),
        (rows(1.0, math.nan), "gradient of loss 'pde' at step 1 has 3 of 3 .*nan: lower the lear"),
        (rows(math.inf, 1.0), "gradient of loss 'data' at step 1 has 3 of 3 .* as inf: lower the"),
    ],
)
@pytest.mark.parametrize("every", [1, 10])
def test_update_refuses_and_changes_nothing(refused, G, message, every):
    balancer = balancer_of(every=every)
    balancer.update(rows(1.0, 2.0))
    with refused(balancer, match=message):
        balancer.update(G)
    assert balancer.update(rows(1.0, 2.0)).isfinite().all()


# GradientBalancer: saving and resuming


@pytest.mark.parametrize("stack", [(), (3,)])
@pytest.mark.parametrize("through_file", [False, True])
def test_state_resumes_bit_exactly(tmp_path, stack, through_file):
    settings = {"alpha": 0.3, "every": 4, "warm_start": True, "bounds": (0.1, 10.0)}
    generator = seeded()
    matrices = [torch.randn(*stack, 2, 5, generator=generator) for _ in range(20)]
    whole, first, second = (balancer_of(**settings) for _ in range(3))
    expected = [whole.update(G) for G in matrices]
    actual = [first.update(G) for G in matrices[:10]]
    state = first.state_dict()
    if through_file:
        torch.save(state, tmp_path / "balancer.pt")
        state = torch.load(tmp_path / "balancer.pt", weights_only=True)
    second.load_state_dict(state)
    actual += [second.update(G) for G in matrices[10:]]
    assert all(map(torch.equal, actual, expected))


def test_state_is_a_copy_in_both_directions():
    balancer, other = (balancer_of(alpha=1.0, bounds=(0.1, 10.0)) for _ in range(2))
    balancer.update(rows(1.0, 2.0))
    state = balancer.state_dict()
    other.load_state_dict(state)
    for name in ("weights", "first_ratio"):
        state[name].zero_()
    for each in (balancer, other):
        assert each.weights.tolist() == [1.0, 0.5]
        assert each.first_ratio.tolist() == [1.0, 0.5]


def test_state_names_its_terms():
    assert set(balancer_of().state_dict()) == {"terms", "weights", "first_ratio", "step"}
    assert balancer_of().state_dict()["terms"] == ["data", "pde"]


@pytest.mark.parametrize("terms", [["pde", "data"], ["data", "boundary"], ["data", "pde", "x"]])
def test_state_of_other_terms_is_refused(refused, terms):
    balancer, other = balancer_of(), balancer_of(terms=terms)
    other.update(torch.rand(len(terms), 3, generator=seeded()))
    message = rf"saved terms are \['{terms[0]}'.* has \['data', 'pde'\]: load the state of the same"
    with refused(balancer, match=message):
        balancer.load_state_dict(other.state_dict())


# The published rules, each against its own few lines


def network():
    return MLP([(0, 1)] * 2, width=6, depth=2, generator=seeded()).double()


def losses_of(model):
    x = torch.rand(8, 2, dtype=torch.float64, generator=seeded(1))
    u, (u_x, u_t), _ = nested(model, x, order=1)
    return {
        "data": (u - x[:, :1]).square().mean(),
        "initial": 10 * (model(x * torch.tensor([1.0, 0.0])) - 1).square().mean(),
        "pde": 100 * (u_t - u_x + u**2).square().mean(),
    }


def simplified_ratios(losses, model, weights):
    def size(loss):
        gradients = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        return torch.cat([g.flatten() for g in gradients]).abs().mean()

    return {k: size(losses["data"]) / size(losses[k]) for k in ("initial", "pde")}


def preprint_ratios(losses, model, weights):
    def entries(loss):
        gradients = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        return torch.cat([g.flatten() for g in gradients]).abs()

    largest = entries(losses["pde"]).max()
    return {k: largest / entries(losses[k]).mean() for k in ("data", "initial")}


def journal_ratios(losses, model, weights):
    def by_layer(loss):
        matrices = [layer.weight for layer in model.layers]
        return [g.abs() for g in torch.autograd.grad(loss, matrices, retain_graph=True)]

    largest = max(g.max() for g in by_layer(losses["pde"]))

    def mean(loss):
        return sum(g.mean() for g in by_layer(loss)) / len(model.layers)

    return {k: largest / mean(weights[k] * losses[k]) for k in ("data", "initial")}


def jaxpi_ratios(losses, model, weights):
    def norm(loss):
        gradients = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        return sum(g.square().sum() for g in gradients).sqrt()

    norms = {k: norm(loss) for k, loss in losses.items()}
    return {k: sum(norms.values()) / 3 / norms[k] for k in losses}


RULES = {
    "simplified": (GradientBalancer.simplified, simplified_ratios, 0.9, 1),
    "preprint": (GradientBalancer.preprint, preprint_ratios, 0.9, 10),
    "journal": (GradientBalancer.journal, journal_ratios, 0.1, 10),
    "jaxpi": (GradientBalancer.jaxpi, jaxpi_ratios, 0.1, 20),
}


@pytest.mark.parametrize("rule", RULES)
def test_published_rule_equals_its_own_implementation(rule):
    constructor, ratios, alpha, every = RULES[rule]
    model = network()
    params = list(model.parameters())
    optimizer = torch.optim.Adam(params, lr=1e-2)
    arguments = [model.named_parameters()] if rule == "journal" else []
    settings = {"every": every} if rule == "jaxpi" else {}
    balancer = constructor(*arguments, terms=TERMS, **settings)
    weights = dict.fromkeys(TERMS, 1.0)
    for step in range(200):
        losses = losses_of(model)
        if step % every == 0:
            for term, ratio in ratios(losses, model, weights).items():
                weights[term] = (1 - alpha) * weights[term] + alpha * ratio.item()
        total = sum(weights[term] * losses[term] for term in TERMS)
        gradients = torch.autograd.grad(total, params, retain_graph=True)

        optimizer.zero_grad()
        used = balanced_backward(losses, params, balancer)
        optimizer.step()
        assert used == pytest.approx(weights, rel=1e-10)
        for p, gradient in zip(params, gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-10)
    assert max(weights.values()) / min(weights.values()) > 2  # they did move


def test_published_rules_have_their_published_settings():
    simplified, preprint = GradientBalancer.simplified(), GradientBalancer.preprint()
    journal, jaxpi = (
        GradientBalancer.journal(network().named_parameters()),
        GradientBalancer.jaxpi(),
    )
    rules = [simplified, preprint, journal, jaxpi]
    assert {rule.terms for rule in rules} == {("data", "pde")}
    assert [rule.reference for rule in rules] == ["data", "pde", "pde", mean_of_terms]
    assert [rule.alpha for rule in rules] == [0.9, 0.9, 0.1, 0.1]
    assert [rule.every for rule in rules] == [1, 10, 10, 1000]
    assert [rule.weighted for rule in rules] == [False, False, True, False]
    assert not any(rule.warm_start or rule.bounds for rule in rules)
    assert GradientBalancer.simplified(alpha=0.2).alpha == 0.2


def test_published_rules_take_another_reference():
    G = rows(1.0, 4.0)
    terms = ("pde", "edge")
    assert GradientBalancer.simplified(terms, "edge").ratio(G).tolist() == [4.0, 1.0]
    assert GradientBalancer.preprint(terms, "edge").ratio(G).tolist() == [4.0, 1.0]
    named = [("weight", torch.zeros(3, 1, requires_grad=True))]
    assert GradientBalancer.journal(named, terms, "edge").ratio(G).tolist() == [4.0, 1.0]


def test_journal_measures_weight_matrices_layer_by_layer():
    model = network()
    model.layers[1].weight.requires_grad_(False)
    balancer = GradientBalancer.journal(model.named_parameters(), TERMS)
    G = gradient_matrix(losses_of(model), model.parameters())
    first, last = G[:, :12], G[:, -7:-1]  # weights 12, biases 6, biases 6, weights 6, bias 1
    assert G.shape == (3, 31)
    means = (first.abs().mean(dim=1) + last.abs().mean(dim=1)) / 2
    largest = torch.cat([first, last], dim=1)[2].abs().max()
    expected = torch.stack([largest / means[0], largest / means[1], torch.ones_like(largest)])
    torch.testing.assert_close(balancer.ratio(G), expected)
    torch.testing.assert_close(balancer.ratio(G.expand(4, 3, 31)), expected.expand(4, 3))


def test_journal_refuses_parameters_without_a_weight_matrix():
    model = network()
    for layer in model.layers:
        layer.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no weight matrix: pass model.named_parameters\(\)"):
        GradientBalancer.journal(model.named_parameters())
