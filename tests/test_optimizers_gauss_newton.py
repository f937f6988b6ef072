"""Gauss-Newton: the linear model, its gain, the balancer within, minimisers, failures, resuming."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import (
    EXPONENTS,
    Branched,
    Curve,
    assert_keeps_the_last_step,
    assert_resumes,
    curve_network,
    network,
    points,
    seeded,
    theta,
)
from hypothesis import given
from hypothesis import strategies as st

from pinnlib.evaluation import relative_l2_error
from pinnlib.gradients import gradient_matrix, l2_norm
from pinnlib.networks import MLP
from pinnlib.optimizers import GaussNewton
from pinnlib.optimizers.gauss_newton import BENT, FIRST, TRIALS, Linear
from pinnlib.residuals import losses_of
from pinnlib.step import Step
from pinnlib.weighting import Balancer, GradientBalancer, KernelTrace, Ratio, Rule

pytestmark = pytest.mark.usefixtures("nothing_hidden")
SCALES = EXPONENTS.map(lambda k: 10.0**k)


# The linear model


def linear(m, n, seed=0, size=1.0):
    generator = seeded(seed)
    R, J = (torch.randn(*shape, generator=generator).double() for shape in ((m,), (m, n)))
    J = J * torch.logspace(-3, 3, n).double()
    return size * R, size * J, (size * J).norm(dim=0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), SCALES, st.floats(1e-6, 1e3))
def test_a_damped_step_solves_the_normal_equations_at_any_scale(m, n, seed, size, damping):
    R, J, scale = linear(m, n, seed, size)
    now = Linear(R, J, scale)
    z = now.solver(damping)(R)  # by either form
    A = now.J.T @ now.J + damping * torch.eye(n).double()
    torch.testing.assert_close(A @ z, now.J.T @ R, rtol=1e-8, atol=1e-9 * size)
    # In the parameters: D is the diagonal of the product.
    step = z / now.scale
    D = (J**2).sum(dim=0)
    expected = J.T @ (R - J @ step)
    torch.testing.assert_close(
        damping * D * step / D.sqrt(), expected / D.sqrt(), atol=1e-7 * size, rtol=1e-6
    )
    # What it promises is what the model says.
    promised = R @ R - (R - now.J @ z).square().sum()
    assert now.decrease(-z, damping) == pytest.approx(float(promised), rel=1e-6, abs=1e-9 * size**2)


def test_both_forms_agree_and_the_smaller_system_is_solved():
    for m, n in [(5, 3), (3, 5), (4, 4)]:
        R, J, scale = linear(m, n)
        now = Linear(R, J, scale)
        assert len(now._gram) == min(m, n)
        wide = now.J.T @ torch.linalg.solve(now.J @ now.J.T + 0.1 * torch.eye(m).double(), R)
        torch.testing.assert_close(now.solver(0.1)(R), wide)


def test_a_column_of_zeros_gets_no_step_and_rounding_is_told():
    R, J, _ = linear(4, 3)
    J[:, 1] = 0
    now = Linear(R, J, J.norm(dim=0))
    assert now.solver(0.1)(R)[1] == 0
    assert now.solver(0.0) is None
    now = Linear(R, J * math.nan, J.norm(dim=0))
    assert now.solver(0.1) is None


# The optimizer


def rosenbrock(x):
    return torch.cat([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])[:, None]


def run(function, start, weights=1.0, max_iter=100):
    """Minimise; the optimizer, the parameter and its closure."""
    x = theta(*start)
    optimizer = GaussNewton([x], {"all": weights}, max_iter=max_iter)
    return optimizer, x, lambda: {"all": [function(x)]}


@pytest.mark.parametrize(
    ("size", "weight"), [(1.0, 1.0), (1e-12, 1e-12), (1e12, 1e12), (1.0, 1e-12), (1e12, 1.0)]
)
@pytest.mark.parametrize(
    ("function", "start"),
    [
        (rosenbrock, [-1.2, 1.0]),
        (rosenbrock, [0.0] * 6),
        (lambda x: (x - 1).sinh()[:, None], [4.0]),
        (lambda x: ((x.sum() - 3).exp() - 1).reshape(1, 1), [5.0, -1.0, 2.0]),  # fewer residuals
    ],
)
def test_the_minimiser_is_found_at_any_scale(function, start, weight, size):
    optimizer, x, closure = run(lambda x: size * function(x), start, weight)
    before = (closure()["all"][0] ** 2).mean().item() * weight
    assert optimizer.step(closure).item() == pytest.approx(before)
    assert function(x).abs().max() <= 1e-6
    assert not x.grad


def test_the_minimiser_is_that_of_scipy_where_residuals_do_not_vanish():
    from scipy.optimize import least_squares  # which takes a second

    t = torch.linspace(0, 3, 20, dtype=torch.float64)
    y = (-0.7 * t).exp() + 0.1 * (9 * t).sin()
    optimizer, x, closure = run(lambda x: (x[0] * (-x[1] * t).exp() - y)[:, None], [3.0, 0.1])
    optimizer.step(closure)
    theirs = least_squares(
        lambda x: x[0] * np.exp(-x[1] * t.numpy()) - y.numpy(), [3.0, 0.1], xtol=1e-14, ftol=1e-14
    )
    assert x.tolist() == pytest.approx(theirs.x.tolist(), rel=1e-6)
    assert optimizer.stalled
    # No step leads lower, and none is taken.
    end, calls = x.detach().clone(), []
    optimizer.step(lambda: calls.append(1) or closure())
    assert torch.equal(x, end)
    assert len(calls) == 3 + 2 * 12  # for the Jacobian; for each damping, its step and the bend


def test_a_step_is_corrected_for_the_curvature_along_it():
    optimizer, x, closure = run(rosenbrock, [0.9, 0.7, 0.6], max_iter=1)
    start = x.detach().clone()
    weight = 1 / len(rosenbrock(x))
    J = torch.autograd.functional.jacobian(lambda x: rosenbrock(x)[:, 0], start)
    A = J.T @ J
    A += FIRST * A.diagonal().diag()  # weighted or not
    d = -torch.linalg.solve(A, J.T @ rosenbrock(start)[:, 0])
    # The residuals are quadratic, so that their second difference is their second derivative.
    curvature = rosenbrock(start + d) - 2 * rosenbrock(start) + rosenbrock(start - d)
    bend = -torch.linalg.solve(A, J.T @ curvature[:, 0])
    scale = J.norm(dim=0)
    assert (scale * bend).norm() < BENT / 2 * (scale * d).norm()
    optimizer.step(closure)
    torch.testing.assert_close(x.detach(), start + d + bend / 2)
    assert weight * rosenbrock(x).square().sum() < weight * rosenbrock(start).square().sum()


def test_the_curvature_is_measured_at_a_tenth_of_the_step():
    optimizer, x, closure = run(lambda x: x.exp()[:, None] - 2, [1.0], max_iter=1)
    optimizer.step(closure)
    J, r = math.e, math.e - 2
    d = -r / J / (1 + FIRST)
    curvature = 2 / 0.1 * ((math.exp(1 + 0.1 * d) - math.e) / 0.1 - J * d)
    assert x.item() == pytest.approx(1 + d - curvature / J / (1 + FIRST) / 2, rel=1e-12)


def test_a_jacobian_of_more_than_40000_numbers():
    A = torch.randn(201, 200, generator=seeded()).double() + 20 * torch.eye(201, 200).double()
    optimizer, x, closure = run(lambda x: (A @ x)[:, None], [1.0] * 200, max_iter=1)
    optimizer.step(closure)
    assert x.norm() < 0.1


def test_a_correction_that_is_too_long_is_left_out():
    optimizer, x, closure = run(lambda x: x[:, None] ** 2, [1.0], max_iter=1)
    optimizer.step(closure)  # it would be half as long as the step
    assert x.item() == pytest.approx(1 - 0.5 / (1 + FIRST))


def test_damping_falls_where_the_model_holds_and_grows_where_it_does_not():
    optimizer, x, closure = run(lambda x: 3 * x[:, None] - 6, [1.0], max_iter=1)
    for falls in (1, 2):
        optimizer.step(closure)
        assert optimizer.state[x]["damping"] == pytest.approx(FIRST / 3**falls)
    while not optimizer.stalled:
        optimizer.step(closure)
    assert x.item() == 2

    optimizer, x, closure = run(lambda x: x[:, None].atan(), [30.0], max_iter=1)
    evaluations = []

    def counted():
        evaluations.append(x.item())
        return closure()

    optimizer.step(counted)
    tried = (len(evaluations) - 3) // 2  # the first three for the Jacobian
    assert 1 < tried <= TRIALS
    # Twice as large, then four times, then eight; then what the gain says, a factor of 1/3 to 2.
    expected = FIRST * 2.0 ** (tried * (tried - 1) / 2)
    assert expected / 3 <= optimizer.state[x]["damping"] <= 2 * expected
    assert optimizer.state[x]["growth"] == 2
    assert abs(x.item()) < 30


def test_damping_follows_the_gain():
    optimizer, x, closure = run(lambda x: x[:, None].atan(), [1.3], max_iter=1)
    optimizer.step(closure)
    before, after = math.atan(1.3) ** 2, math.atan(x.item()) ** 2
    gain = (before - after) / (before * (1 + 2 * FIRST) / (1 + FIRST) ** 2)
    assert 0 < gain < 0.5
    expected = FIRST * (1 - (2 * gain - 1) ** 3)
    assert optimizer.state[x]["damping"] == pytest.approx(expected)


def test_each_step_lowers_the_loss_and_max_iter_counts_them():
    optimizer, x, closure = run(rosenbrock, [-1.2, 1.0, 0.4], max_iter=1)
    losses = [optimizer.step(closure).item() for _ in range(10)]
    assert all(b < a for a, b in pairwise(losses))
    ten, z, other = run(rosenbrock, [-1.2, 1.0, 0.4], max_iter=10)
    ten.step(other)
    assert torch.equal(x, z)
    assert GaussNewton([x], {"all": 1.0}).defaults["max_iter"] == 20


def test_a_run_resumes_bit_for_bit():
    assert_resumes(lambda start: run(rosenbrock, start, max_iter=3))


# Terms


def terms_of(model, x):
    def terms():
        u = model(x)
        return {"pde": [5 * u - x[:, 1:], u[:3] ** 2], "data": [u - x[:, :1]]}

    return terms


def test_the_balancer_is_asked_once_a_call_with_the_gradient_matrix_and_its_weights_are_held():
    seen = []

    class Watch(Rule):
        def __call__(self, shown, state):
            seen.append((shown.losses.clone(), shown.G.clone()))
            return torch.tensor([4.0, 9.0], dtype=torch.float64), state

    model, x = network(), points(9)
    terms = terms_of(model, x)
    balancer = Balancer(["data", "pde"], Watch(), every=2)
    losses = losses_of(terms())
    losses = {term: losses[term] for term in balancer.terms}
    optimizer = GaussNewton(model.parameters(), balancer, max_iter=3)
    G = gradient_matrix(losses, model)
    first = optimizer.step(terms)
    torch.testing.assert_close(seen[0][1], G)
    torch.testing.assert_close(seen[0][0], torch.stack(list(losses.values())).detach())
    assert first.item() == pytest.approx(4 * losses["data"].item() + 9 * losses["pde"].item())
    optimizer.step(terms)
    assert len(seen) == 1
    optimizer.step(terms)
    assert len(seen) == 2
    assert balancer.step == 3


@pytest.mark.parametrize("rule", [Ratio(l2_norm), Ratio(), KernelTrace(seed=3)])
def test_a_rule_sees_what_a_step_shows_it(rule):
    model, x = Branched(), points(9)
    shift = theta(0.3)

    def terms():
        u = model(x) * model.data_only.mean()
        return {"pde": [5 * u - model.pde_only, u[:3] ** 2 + shift], "data": [u - x[:, :1]]}

    params = [*model.parameters(), shift]
    ours, theirs = (Balancer(["data", "pde"], rule) for _ in range(2))
    Step(lambda _: terms(), params, theirs)({})
    GaussNewton(params, ours, max_iter=1).step(terms)
    torch.testing.assert_close(ours.weights, theirs.weights)
    assert ours.weights[0] != ours.weights[1]


def test_weights_decide_which_minimiser_is_found():
    def closure():
        return {"data": [x.reshape(1, 1)], "pde": [(x - 1).expand(2)[:, None]]}

    for data, pde in [(1.0, 1.0), (1.0, 3.0), (1e-9, 1.0), (1.0, 0.0)]:
        x = theta(5.0)
        GaussNewton([x], {"pde": pde, "data": data}).step(closure)
        assert x.item() == pytest.approx(pde / (data + pde), abs=1e-9)


def test_a_network_and_an_unknown_coefficient_are_found_together():
    model = MLP(Curve.domain, width=10, depth=1, generator=seeded(1)).double()
    rate = theta(0.0)
    t = torch.linspace(0, 2, 40, dtype=torch.float64)[:, None]
    problem = Curve()

    def terms():
        u, (u_t,), _ = problem.derivatives(model, t, order=1)
        return {"data": [u - (-1.7 * t).exp()], "pde": [u_t + rate * u]}

    balancer = GradientBalancer.simplified(warm_start=True, bounds=(0.1, 10))
    optimizer = GaussNewton([*model.parameters(), rate], balancer)
    for _ in range(6):
        optimizer.step(terms)
    assert rate.item() == pytest.approx(1.7, rel=1e-4)
    assert balancer.step == 6


def test_new_points_between_calls():
    problem, model, generator = Curve(), curve_network().double(), seeded(3)
    optimizer = GaussNewton(model.parameters(), {"data": 1.0, "pde": 1.0})
    for _ in range(6):
        batch = {"all": problem.sample(30, generator)["all"].double()}
        optimizer.step(lambda: problem.term_residuals(model, batch))  # noqa: B023
    assert relative_l2_error(model, problem) < 1e-4


# Failures


def test_a_region_that_is_not_finite_is_kept_out_of():
    optimizer, x, closure = run(lambda x: x.log()[:, None] - math.log(2.0), [9.0])
    optimizer.step(closure)  # whose first full step leads below zero
    assert x.item() == pytest.approx(2, rel=1e-6)
    with torch.no_grad():
        x.fill_(-1)
    damping = optimizer.state[x]["damping"]
    with pytest.raises(ValueError, match="loss 'all' is nan"):
        optimizer.step(closure)
    assert x.item() == -1
    assert optimizer.state[x]["damping"] == damping
    assert optimizer.balancer.step == 1


def test_a_gradient_that_is_not_finite_is_told():
    optimizer, _, closure = run(lambda x: (x - 1).abs().sqrt()[:, None], [1.0])
    with pytest.raises(ValueError, match="gradient of loss 'all'"):
        optimizer.step(closure)
    assert optimizer.balancer.step == 0


def test_an_error_of_the_closure_leaves_the_last_accepted_step():
    optimizer, x, closure = run(rosenbrock, [-1.2, 1.0])
    seen = assert_keeps_the_last_step((optimizer, x, closure), calls=12)
    assert any(torch.equal(x, z) for z in seen[1:-1])
    assert rosenbrock(x).norm() < rosenbrock(seen[0]).norm()


def test_after_a_stall_the_next_call_starts_anew():
    optimizer, x, closure = run(lambda x: x[:, None] - 2, [1.0])
    optimizer.step(closure)
    assert optimizer.stalled
    assert x.item() == 2
    assert optimizer.state[x]["damping"] == FIRST
    optimizer.step(lambda: {"all": [x[:, None] - 3]})
    assert x.item() == 3


def test_a_jacobian_may_be_as_large_as_the_largest(monkeypatch):
    monkeypatch.setattr("pinnlib.optimizers.gauss_newton.MOST", 2)
    optimizer, _, closure = run(rosenbrock, [-1.2, 1.0])
    optimizer.step(closure)
    optimizer, _, closure = run(rosenbrock, [-1.2, 1.0, 0.4])
    with pytest.raises(ValueError, match="4 residuals, 3 parameters: the Jacobian would take"):
        optimizer.step(closure)


def test_wrong_terms_and_weights_are_refused():
    x = theta(1.0)
    closure = lambda: {"data": [x[:, None]]}  # noqa: E731
    with pytest.raises(ValueError, match=r"missing.*'pde'|'pde'.*missing"):
        GaussNewton([x], {"data": 1.0, "pde": 1.0}).step(closure)

    class Wrong(Rule):
        def __call__(self, shown, state):
            return -torch.ones(1, dtype=torch.float64), state

    with pytest.raises(ValueError, match=r"weight of 'data' is -1.0: a sum of squares needs 0"):
        GaussNewton([x], Balancer(["data"], Wrong())).step(closure)
    with pytest.raises(TypeError, match="'data' is a tensor: pass a list of its residuals"):
        GaussNewton([x], {"data": 1.0}).step(lambda: {"data": x.sum()})
    with pytest.raises(ValueError, match=r"'data\[0\]' has no point"):
        GaussNewton([x], {"data": 1.0}).step(lambda: {"data": [x[:0, None]]})
    with pytest.raises(TypeError, match="balancer is 3"):
        GaussNewton([x], 3)
    wide = torch.ones(20_001, 1, dtype=torch.float64)
    many = torch.zeros(20_000, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"20001 residuals, 20000 parameters.* 3 GB.*SSBroyden"):
        GaussNewton([many], {"all": 1.0}).step(lambda: {"all": [wide * many[0]]})
    assert x.item() == 1
