import math

import pytest
import torch
from helpers import EXPONENTS, TERMS, network, points, rows, seeded, three_terms
from hypothesis import given
from hypothesis import strategies as st
from torchjd.aggregation import (
    IMTLG,
    MGDA,
    DualProj,
    DualProjWeighting,
    IMTLGWeighting,
    MGDAWeighting,
    UPGrad,
    UPGradWeighting,
)
from torchjd.aggregation import ConFIG as TorchJDConFIG

from pinnlib import Step
from pinnlib.gradients import cosine, l2_norm
from pinnlib.networks import Stacked
from pinnlib.recording import Recorded
from pinnlib.weighting import DCGD, Balancer, ConFIG, Gramian, Ratio, Seen, mean_of_terms

pytestmark = pytest.mark.usefixtures("nothing_hidden")

RULES = {"config": ConFIG(), "dcgd": DCGD()}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def names(G):
    return [f"term {k}" for k in range(G.shape[-2] - 1)] + ["pde"]


def weights_of(rule, G):
    """Its weights for one matrix, or a stack."""
    weights = torch.ones(G.shape[:-1], dtype=torch.float64)
    return rule(Seen(names(G), weights, rows=lambda: (G, None)), rule.start(names(G), weights))[0]


def direction_of(rule, G):
    return (weights_of(rule, G)[..., None, :] @ G.double()).squeeze(-2)


def drawn(terms, P=9, *, seed=0, spread=0):
    """Rows of different sizes, by `spread` powers of ten."""
    G = torch.randn(terms, P, generator=seeded(seed), dtype=torch.float64)
    return G * 10.0 ** torch.linspace(-spread, spread, terms)[:, None]


# Oracles, from the formulas of the papers


def config(G):
    """ConFIG, equations 2 and 3: by the pseudoinverse of the matrix of unit rows."""
    units = G / G.norm(dim=1, keepdim=True)
    x = torch.linalg.pinv(units).sum(dim=1)
    u = x / x.norm()
    return (G @ u).sum() * u


def dcgd(G):
    """DCGD, the variant center, of the last row and the sum of the others."""
    g_b, g_r = G[:-1].sum(dim=0), G[-1]
    c = g_b / g_b.norm() + g_r / g_r.norm()
    return (c @ (g_b + g_r)) / (c @ c) * c


@pytest.mark.parametrize("terms", [2, 3, 5])
@given(seed=st.integers(0, 10_000), spread=st.integers(0, 6))
def test_directions_are_those_of_the_papers(terms, seed, spread):
    G = drawn(terms, seed=seed, spread=spread)
    smallest = torch.linalg.eigvalsh(cosine(G))[0].item()
    for rule, oracle in [(ConFIG(), config), (DCGD(), dcgd)]:
        expected = oracle(G)
        error = (direction_of(rule, G) - expected).norm() / expected.norm()
        assert error < 1e-12 / smallest**2  # how near the rows are to depending on one another


@pytest.mark.parametrize("terms", [2, 3, 4])
def test_config_is_that_of_torchjd(terms):
    G = drawn(terms, spread=1)
    torch.testing.assert_close(direction_of(ConFIG(), G), TorchJDConFIG()(G))


@given(
    seed=st.integers(0, 10_000),
    spread=st.integers(0, 12),
    angle=st.floats(0.01, math.pi - 0.01),
)
def test_for_two_terms_both_are_the_direction_of_equal_norms(seed, spread, angle):
    a = drawn(2, seed=seed)
    x, y = torch.linalg.qr(a.T)[0].T
    G = torch.stack([x, math.cos(angle) * x + math.sin(angle) * y])
    G = G * 10.0 ** torch.tensor([[-float(spread)], [float(spread)]], dtype=torch.float64)
    expected = weights_of(Ratio(l2_norm, mean_of_terms), G)
    for rule in (ConFIG(), DCGD(), DCGD("term 0")):
        torch.testing.assert_close(weights_of(rule, G), expected, rtol=1e-10, atol=0)


def test_for_three_terms_they_differ():
    G = drawn(3)
    found = [direction_of(rule, G) for rule in (ConFIG(), DCGD(), Ratio(l2_norm, mean_of_terms))]
    cosines = cosine(torch.stack(found))
    assert cosines[cosines < 1].max() < 0.999


@pytest.mark.parametrize("terms", [2, 3, 5])
@given(seed=st.integers(0, 10_000), spread=st.integers(0, 6))
def test_config_has_the_same_angle_with_every_row(terms, seed, spread):
    G = drawn(terms, seed=seed, spread=spread)
    cosines = cosine(torch.cat([G, direction_of(ConFIG(), G)[None]]))[-1, :-1]
    assert (cosines > 0).all()
    torch.testing.assert_close(cosines, cosines[0].expand(terms), rtol=1e-8, atol=1e-12)


@given(seed=st.integers(0, 10_000), spread=st.integers(0, 6))
def test_dcgd_is_in_the_dual_cone_of_both_groups(seed, spread):
    G = drawn(4, seed=seed, spread=spread)
    g = direction_of(DCGD(), G)
    assert g @ G[-1] > 0
    assert g @ G[:-1].sum(dim=0) > 0
    assert weights_of(DCGD(), G)[:-1].unique().numel() == 1


# Scales, zeros, rows that depend on one another


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(exponents=st.lists(EXPONENTS, min_size=3, max_size=3), unit=EXPONENTS)
def test_over_scales(rule, dtype, exponents, unit):
    scales = torch.tensor([10.0**e for e in exponents], dtype=dtype)
    G = drawn(3).to(dtype)
    found = weights_of(rule, scales[:, None] * G)
    assert found.dtype == torch.float64
    assert found.isfinite().all()
    # A unit for all losses changes no weight.
    other = weights_of(rule, 10.0**unit * (scales[:, None] * G))
    torch.testing.assert_close(found, other, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=0)


@given(exponents=st.lists(EXPONENTS, min_size=4, max_size=4))
def test_config_does_not_turn_with_the_sizes_of_rows(exponents):
    scales = torch.tensor([10.0**e for e in exponents], dtype=torch.float64)
    G = drawn(4)
    a, b = direction_of(ConFIG(), G), direction_of(ConFIG(), scales[:, None] * G)
    torch.testing.assert_close(a / a.norm(), b / b.norm(), rtol=1e-9, atol=1e-12)


@every_rule
def test_one_term_keeps_its_gradient(rule):
    G = torch.tensor([[3.0, -4.0]])
    assert weights_of(rule, G).item() == pytest.approx(1)


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_term_without_gradient_has_no_say(zero):
    G = drawn(3)
    G[zero] = 0
    kept = [k for k in range(3) if k != zero]
    found = weights_of(ConFIG(), G)
    assert found[zero] == 1.0
    torch.testing.assert_close(found[kept], weights_of(ConFIG(), G[kept]))
    assert weights_of(DCGD(), G * (torch.arange(3) == zero)[:, None]).tolist() == [1.0] * 3


@every_rule
def test_no_gradient_at_all(rule):
    assert weights_of(rule, torch.zeros(3, 4)).tolist() == [1.0, 1.0, 1.0]


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_beyond_the_precision_is_undefined(rule, dtype):
    tiny = 1e-42 if dtype == torch.float32 else 1e-310
    G = torch.tensor([[tiny, 0.0], [0.0, 1e3]], dtype=dtype)
    assert weights_of(rule, G).tolist() == [1.0, pytest.approx(0.5)]


def test_config_shares_the_weight_of_rows_that_are_alike():
    G = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(direction_of(ConFIG(), G), config(G), rtol=1e-6, atol=0)
    assert weights_of(ConFIG(), G).tolist() == pytest.approx([0.75, 0.75, 1.5], rel=1e-6)


@every_rule
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e6])
def test_opposite_rows_leave_no_direction(rule, size):
    G = drawn(1)
    G = torch.cat([size * G, -G])
    assert direction_of(rule, G).norm() < 1e-12 * G.abs().max()
    assert weights_of(rule, G).isfinite().all()
    assert (weights_of(rule, G) > 0).all()


def test_config_goes_to_zero_where_the_cone_closes():
    """Three rows in a plane, all around: no direction has a right angle or less with each."""
    angles = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64)
    flat = torch.stack([angles.cos(), angles.sin(), torch.zeros(3, dtype=torch.float64)], dim=1)
    lengths = []
    for lift in (1e-1, 1e-2, 0.0):
        g = direction_of(ConFIG(), flat + torch.tensor([0.0, 0.0, lift]))
        assert (weights_of(ConFIG(), flat) > 0).all()
        lengths.append(g.norm().item())
    assert lengths[0] > 5 * lengths[1] > 5 * lengths[2]
    assert lengths[2] < 1e-3


def test_config_may_have_negative_weights():
    G = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.1]])
    assert weights_of(ConFIG(), G).sign().tolist() == [1, 1, -1]


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_gives_no_weights(rule, bad):
    G = drawn(3)
    G[1, 2] = bad
    assert not weights_of(rule, G).isfinite().all()


@every_rule
def test_a_stack_is_weighed_as_its_networks_one_by_one(rule):
    G = torch.randn(2, 4, 3, 6, generator=seeded(), dtype=torch.float64)
    G[1, 2, 0] = 0
    found = weights_of(rule, G)
    assert found.shape == (2, 4, 3)
    for i in range(2):
        for j in range(4):
            torch.testing.assert_close(found[i, j], weights_of(rule, G[i, j]), rtol=1e-12, atol=0)


@every_rule
def test_a_step_goes_along_the_direction(rule):
    model, x = network(), {"x": points()}
    step = Step(three_terms(model), model, Balancer(TERMS, rule))
    G = step.rows(x)
    step(x)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(
        found, config(G) if rule == ConFIG() else dcgd(G), rtol=1e-5, atol=1e-9
    )


@every_rule
@pytest.mark.parametrize("stack", [(), (2,)])
@pytest.mark.usefixtures("not_compiled")
def test_recorded_steps_are_the_eager_ones(rule, stack):
    x = {"x": points().expand(*stack, 8, 2)}
    found = []
    for run in [{}, {"run": Recorded}]:
        model = Stacked([network(seed=s) for s in range(2)]) if stack else network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        step = Step(three_terms(model), model, Balancer(TERMS, rule), stack=stack, **run)
        for _ in range(3):
            optimizer.zero_grad()
            weights = step(x)[1]
            optimizer.step()
        found.append(weights)
    torch.testing.assert_close(*found, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("equation", "error", "message"),
    [
        ("edge", ValueError, "reference 'edge' is not a term: choose one of"),
        (0, TypeError, "equation is 0: pass the name of a term"),
        (max, TypeError, "equation is <built-in function max>: pass the name of a term"),
    ],
)
def test_the_equation_is_a_term(equation, error, message):
    with pytest.raises(error, match=message):
        Balancer(TERMS, DCGD(equation))


def test_rules_show_their_settings_and_cannot_be_changed():
    for rule in (ConFIG(), DCGD("edge"), Gramian(max)):
        with pytest.raises(AttributeError):
            rule.setting = 1
    assert repr(DCGD("edge")) == "DCGD(equation='edge')"


# Gramian, with the weightings of TorchJD


TORCHJD = {
    "UPGrad": (UPGradWeighting(), UPGrad()),
    "MGDA": (MGDAWeighting(), MGDA()),
    "DualProj": (DualProjWeighting(), DualProj()),
    "IMTLG": (IMTLGWeighting(), IMTLG()),
}


@pytest.mark.parametrize("name", TORCHJD)
@pytest.mark.parametrize("terms", [2, 4])
def test_a_weighting_of_torchjd_gives_its_direction(name, terms):
    weighting, aggregator = TORCHJD[name]
    G = drawn(terms, seed=4)
    assert cosine(G).min() < -0.1  # a conflict
    torch.testing.assert_close(direction_of(Gramian(weighting), G), aggregator(G))


@pytest.mark.parametrize("name", TORCHJD)
@pytest.mark.parametrize("exponent", [-12, -3, 12])
def test_its_tolerances_do_not_see_the_unit_of_the_losses(name, exponent):
    rule, G = Gramian(TORCHJD[name][0]), drawn(3)
    found = weights_of(rule, 10.0**exponent * G)
    torch.testing.assert_close(found, weights_of(rule, G), rtol=1e-9, atol=1e-12)


def test_torchjd_alone_takes_small_gradients_for_zero():
    """Why the matrix is divided: without conflict resolved, all weights of UPGrad are 1/K."""
    G = drawn(3)
    alone = UPGradWeighting()(1e-6 * G @ G.T)
    assert alone.tolist() == pytest.approx([1 / 3] * 3)
    assert weights_of(Gramian(UPGradWeighting()), 1e-3 * G).tolist() != pytest.approx([1 / 3] * 3)


def test_the_weighting_sees_the_products_of_rows_over_the_largest():
    seen = []
    G = torch.tensor([[1.0, 1.0], [3.0, 4.0]], dtype=torch.float32)
    rule = Gramian(lambda A: seen.append(A) or torch.tensor([0.25, 4.0]))
    found = weights_of(rule, G)
    torch.testing.assert_close(seen[0], G.double() @ G.double().T / 25)
    assert seen[0].dtype == torch.float64
    assert found.tolist() == [0.25, 4.0]
    weights_of(rule, torch.zeros(2, 2))
    assert seen[1].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_training_by_upgrad_lets_no_loss_grow():
    """To first order: the direction has no negative product with a row."""
    model, x = network(), {"x": points()}
    step = Step(three_terms(model), model, Balancer(TERMS, Gramian(UPGradWeighting())))
    G = step.rows(x)
    step(x)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (G @ found > -1e-3 * G.norm(dim=1) * found.norm()).all()
    assert (G @ G.sum(dim=0) < 0).any() or cosine(G).min() < 0


def test_a_stack_is_refused(refused):
    balancer = Balancer(TERMS, Gramian(UPGradWeighting()))
    with refused(balancer, match="UPGradWeighting.* solves on the host, for one network at a time"):
        balancer.update(torch.ones(2, 3, 4))
    model = Stacked([network(), network(seed=1)])
    step = Step(three_terms(model), model, balancer, stack=(2,))
    with refused(balancer, model, match="train each network of a stack alone"):
        step({"x": points().expand(2, 8, 2)})


def test_recording_is_refused(refused):
    model, balancer = network(), Balancer(TERMS, Gramian(UPGradWeighting()))
    step = Step(three_terms(model), model, balancer, run=Recorded)
    with refused(balancer, model, match="solves on the host, .* and leave run=Recorded out"):
        step({"x": points()})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_never_comes_to_the_solver(bad, refused):
    model = network()
    terms = three_terms(model)

    def spoiled(batch):
        found = terms(batch)
        return found | {"initial": [found["initial"][0] * bad]}

    balancer = Balancer(TERMS, Gramian(lambda A: pytest.fail("the solver was asked")))
    with refused(balancer, model, match="loss 'initial' is (nan|inf)"):
        Step(spoiled, model, balancer)({"x": points()})


@pytest.mark.parametrize(
    ("weighting", "error", "message"),
    [
        ("UPGrad", TypeError, r"weighting is 'UPGrad': pass a function of G Gᵀ, such as torchjd"),
        (lambda A: A, ValueError, r"the rule returned \(2, 2\): let it return weights \(2,\)"),
        (lambda A: None, ValueError, r"the rule returned None: let it return weights \(2,\)"),
    ],
)
def test_a_weighting_gives_a_weight_for_each_term(weighting, error, message):
    with pytest.raises(error, match=message):
        Balancer(["a", "b"], Gramian(weighting)).update(rows(1.0, 2.0))
