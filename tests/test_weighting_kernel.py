from itertools import product

import pytest
import torch
from helpers import network, points
from hypothesis import given
from hypothesis import strategies as st

from pinnlib import Step
from pinnlib.measuring import Measurement
from pinnlib.networks import Stacked
from pinnlib.weighting import Balancer, Follow, KernelTrace, Seen, mean_of_terms
from pinnlib.weighting.kernel import factors, signs

pytestmark = pytest.mark.usefixtures("nothing_hidden")

# signs


def splitmix64(state):
    """The published generator, in integers of any size: its output for one state."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_oracle_is_the_published_generator():
    """Its first outputs for the seed 0, from the reference implementation."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [splitmix64(0x9E3779B97F4A7C15 * i) for i in range(1, 5)] == published


@given(key=st.integers(-(2**63), 2**63 - 1), n=st.integers(0, 40))
def test_signs_are_the_highest_bits_of_a_published_generator(key, n):
    found = signs(torch.tensor(key), n)
    states = ((i + (key << 32)) * 0x9E3779B97F4A7C15 for i in range(n))
    assert found.tolist() == [1 - 2 * (splitmix64(state) >> 63) for state in states]


def test_signs_are_balanced_and_uncorrelated():
    n = 2**14
    Z = torch.stack([signs(torch.tensor(key), n) for key in range(40)]).double()
    bound = 4.5 / n**0.5  # standard deviations of a mean of n signs
    assert Z.mean(dim=1).abs().max() < bound  # balanced
    between = Z @ Z.T / n - torch.eye(40)
    assert between.abs().max() < bound  # from key to key
    for lag in (1, 2, 3, 64, 1009):
        assert (Z[:, lag:] * Z[:, :-lag]).mean(dim=1).abs().max() < bound  # from point to point
    by_point = Z.mean(dim=0) * 40**0.5  # standard normal for each point
    assert by_point.square().mean().item() == pytest.approx(1, abs=0.05)


# KernelTrace


def terms_of(model):
    """Two terms; the second has two groups of residuals of different sizes."""
    u = model(points(6, seed=1)) - 1
    v = model(points(4, seed=2))
    return {"data": [u], "pde": [10 * v, u[..., :3, :] * v[..., :3, :]]}


def jacobians(model):
    """Gradients of single residuals, one point at a time."""
    params = list(model.parameters())

    def gradient(y):
        gradients = torch.autograd.grad(y, params, retain_graph=True)
        return torch.cat([g.flatten() for g in gradients])

    terms = terms_of(model)
    return {k: [torch.stack([gradient(y) for y in r[:, 0]]) for r in v] for k, v in terms.items()}


def diagonals(model):
    """Of each term's kernel, the mean diagonal, added up over groups of residuals."""
    found = [sum(J.square().sum() / len(J) for J in Js) for Js in jacobians(model).values()]
    return torch.stack(found)


def test_the_probe_has_the_mean_diagonal_of_the_kernel_as_its_mean_square():
    model = network()
    params = list(model.parameters())
    found = Measurement(terms_of(model), params, 67, (), None)
    expected = diagonals(model)
    traces = torch.stack([found.probes(torch.tensor(k)).square().sum(-1) for k in range(400)])
    # The spread of a quadratic form of signs is at most the root of two times its mean.
    error = (traces.mean(dim=0) - expected).abs() / expected
    assert (error < 4 * (2 / 400) ** 0.5).all()


def test_the_probe_is_a_signed_sum_over_points():
    model = network()
    found = Measurement(terms_of(model), list(model.parameters()), 67, (), None)
    rows = found.probes(torch.tensor(5))
    for row, Js in zip(rows, jacobians(model).values(), strict=True):
        # The signs are what fits: as many unknowns as points, fewer than parameters.
        J = torch.cat([J / len(J) ** 0.5 for J in Js])
        z = torch.linalg.lstsq(J.T, row[:, None]).solution
        torch.testing.assert_close(z.abs(), torch.ones_like(z), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(J.T @ z.sign(), row[:, None])
    losses, _ = Step(lambda _: terms_of(model), model, {"data": 1.0, "pde": 1.0})({})
    torch.testing.assert_close(found.losses, losses)  # the graph was kept


def test_a_stack_has_the_signs_of_its_networks():
    models = [network(seed=seed) for seed in range(3)]
    stack = Stacked(models)
    together = Measurement(terms_of(stack), list(stack.parameters()), 67, (3,), None)
    rows = together.probes(torch.tensor(2))
    for s, model in enumerate(models):
        alone = Measurement(terms_of(model), list(model.parameters()), 67, (), None)
        torch.testing.assert_close(rows[s], alone.probes(torch.tensor(2)))


@pytest.mark.parametrize("reference", ["data", "pde", mean_of_terms])
@given(data=st.integers(-12, 12), pde=st.integers(-12, 12))
def test_targets_are_ratios_of_traces_over_scales(reference, data, pde):
    a, b = 10.0**data, 10.0**pde
    rows = torch.tensor([[a, -a], [3 * b, 4 * b]], dtype=torch.float64)
    seen = Seen(["data", "pde"], torch.ones(2, dtype=torch.float64), probes=lambda key: rows)
    rule = KernelTrace(reference)
    target, _ = rule(seen, rule.start(seen.terms, seen.weights))
    traces = {"data": 2 * a**2, "pde": 25 * b**2}
    R = traces[reference] if isinstance(reference, str) else sum(traces.values()) / 2
    assert target.tolist() == pytest.approx([R / trace for trace in traces.values()], rel=1e-12)


@pytest.mark.parametrize(("size", "undefined"), [(0.0, True), (1e-15, True), (1e-8, False)])
def test_a_trace_of_zero_or_a_ratio_beyond_the_precision_has_no_target(size, undefined):
    rows = torch.tensor([[1e10, 0.0], [size, 0.0]])
    seen = Seen(["data", "pde"], torch.ones(2, dtype=torch.float64), probes=lambda key: rows)
    target, _ = KernelTrace("data")(seen, {"key": torch.tensor(0)})
    assert target.dtype == torch.float64
    assert target.isnan().tolist() == [False, undefined]


def test_a_vanishing_residual_does_not_count_as_a_vanishing_kernel():
    model = network()

    def terms(batch):
        return {"data": [(u := model(points())) - u.detach()], "pde": [u]}

    balancer = Balancer(["data", "pde"], Follow(KernelTrace("data"), alpha=1.0))
    losses, weights = Step(terms, model, balancer)({})
    assert losses[0] == 0
    assert weights.tolist() != [1.0, 1.0]
    assert 0.1 < weights[1] < 10


def test_the_key_starts_at_the_seed_and_advances_at_every_update():
    model, keys = network(), []

    class Watched(KernelTrace):
        def __call__(self, seen, state):
            keys.append(state["key"].item())
            return super().__call__(seen, state)

    balancer = Balancer(["data", "pde"], Follow(Watched(seed=7), alpha=0.5), every=2)
    assert balancer.state["key"].dtype == torch.int64
    step = Step(lambda _: terms_of(model), model, balancer)
    for _ in range(5):
        step({})
    assert keys == [7, 8, 9]
    assert balancer.state["key"].item() == 10


def test_seeds_make_different_weights_and_the_same_ones_equal():
    assert KernelTrace().seed == 0

    def weights(seed):
        model = network()
        balancer = Balancer(["data", "pde"], Follow(KernelTrace(seed=seed), alpha=1.0))
        return Step(lambda _: terms_of(model), model, balancer)({})[1].tolist()

    assert weights(1) == weights(1) != weights(2)


def test_losses_instead_of_residuals_are_refused(refused):
    model = network()
    balancer = Balancer(["data", "pde"], Follow(KernelTrace()))
    terms = terms_of(model) | {"pde": model(points()).mean()}
    with refused(balancer, match="looks at residuals, and 'pde' is a loss: pass a list of resid"):
        Step(lambda _: terms, model, balancer)({})
    with refused(balancer, match=r"looks at residuals: pass each term as a list of residuals"):
        balancer.update(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"reference": "edge"}, ValueError, r"reference 'edge' is not a term: choose one of"),
        ({"reference": 1}, TypeError, "reference is 1: pass a term's name or a function"),
        ({"seed": "a"}, TypeError, "seed is 'a': pass a whole number"),
        ({"seed": 1.5}, TypeError, "seed is 1.5: pass a whole number"),
        ({"seed": True}, TypeError, "seed is True: pass a whole number"),
        ({"seed": -1}, ValueError, r"seed is -1: pass a number from 0 to 2\*\*31 - 1"),
        ({"seed": 2**31}, ValueError, "seed is 2147483648: pass a number from 0"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        Balancer(["data", "pde"], KernelTrace(**settings))


def test_the_largest_seed_is_taken():
    assert KernelTrace(seed=2**31 - 1).start(["a"], torch.ones(1))["key"].item() == 2**31 - 1


def test_a_reference_function_gives_one_size():
    seen = Seen(["data", "pde"], torch.ones(2), probes=lambda key: torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"the reference maps \(2,\) to float: .* together, \(\)"):
        KernelTrace(lambda traces: 1.0)(seen, {"key": torch.tensor(0)})


def test_rows_have_factors_of_their_own():
    key = torch.tensor(5)
    found = [factors(key + a, k, j, 64) for a, k, j in product((0, 1), (0, 1), (0, 1))]
    for i, row in enumerate(found):
        torch.testing.assert_close(row.abs(), torch.full((64,), 1 / 8))
        for other in found[:i]:
            assert (row != other).any()
    assert torch.equal(factors(key, 2, 3, 9) > 0, signs(key * 1009 + 65, 9) > 0)


def test_the_seed_is_0_unless_it_is_given():
    assert KernelTrace() == KernelTrace(seed=0)


@pytest.mark.parametrize("exponent", [0.5, 0.25, 1.0])
def test_an_exponent_is_one_of_the_ratio(exponent):
    seen = Seen(
        ["data", "pde"],
        torch.ones(2, dtype=torch.float64),
        probes=lambda key: torch.tensor([[3.0, 4.0], [0.0, 1e-3]], dtype=torch.float64),
    )
    target, _ = KernelTrace("data", exponent)(seen, {"key": torch.tensor(0)})
    assert target.tolist() == pytest.approx([1.0, 25e6**exponent], rel=1e-12)


@pytest.mark.parametrize("exponent", [0, -1.0, 1.5, float("nan")])
def test_an_exponent_out_of_its_range_is_refused(exponent):
    with pytest.raises(ValueError, match=f"exponent is {exponent!r}: pass a number in"):
        KernelTrace(exponent=exponent)
