"""Self-scaled Broyden: formulas, minimisers, failures, resuming."""

import math

import pytest
import torch
from helpers import (
    EXPONENTS,
    Curve,
    assert_keeps_the_last_step,
    assert_resumes,
    curve_network,
    points,
    seeded,
)
from hypothesis import example, given
from hypothesis import strategies as st

from pinnlib import GradientBalancer, Step
from pinnlib.optimizers import SSBroyden
from pinnlib.optimizers.ssbroyden import broyden, expected, scaling
from pinnlib.optimizers.wolfe import CURVATURE, DECREASE, search
from pinnlib.residuals import NotFiniteError

pytestmark = pytest.mark.usefixtures("nothing_hidden")
SIZES = EXPONENTS.map(lambda k: 10.0**k)


# The update


def pair(n, seed=0, size=1.0):
    """A step, and the change of the gradient of some strictly convex function along it."""
    generator = seeded(seed)
    A, s = (torch.randn(*shape, generator=generator).double() for shape in ((n, n), (n,)))
    return s * size, (A @ A.T + torch.eye(n).double()) @ s


def updated(H, s, y, phi=1.0, tau=1.0):
    H = H.clone()
    broyden(H, s, y, H @ y, phi, tau)
    return H


def test_without_scaling_the_inverse_hessian_is_the_one_of_scipy():
    from scipy.optimize import BFGS  # which takes a second

    n = 7
    ours, theirs = torch.eye(n).double(), BFGS(init_scale=1.0)
    theirs.initialize(n, "inv_hess")
    for seed in range(12):
        s, y = pair(n, seed)
        theirs.update(s.numpy(), y.numpy())
        ours = updated(ours, s, y)
        expected = torch.tensor(theirs.get_matrix())
        assert (ours - expected).norm() <= 1e-12 * expected.norm()


def test_phi_of_zero_is_davidon_fletcher_powell():
    s, y = pair(5)
    H = updated(torch.eye(5).double(), *pair(5, 1))
    Hy = H @ y
    expected = H - torch.outer(Hy, Hy) / (y @ Hy) + torch.outer(s, s) / (s @ y)
    torch.testing.assert_close(updated(H, s, y, phi=0.0), expected)
    expected = (H - torch.outer(Hy, Hy) / (y @ Hy)) / 4 + torch.outer(s, s) / (s @ y)
    torch.testing.assert_close(updated(H, s, y, phi=0.0, tau=4.0), expected)


@given(st.integers(1, 6), st.integers(0, 99), SIZES, SIZES)
def test_an_update_keeps_the_secant_equation_and_stays_positive(n, seed, size, scale):
    H = updated(torch.eye(n).double(), *pair(n, seed + 100))
    s, y = pair(n, seed)
    # H as the step finds it: far from the right size where the objective has been rescaled.
    s, H = s * size, H * scale
    h, b = float(y @ H @ y / (s @ y)), float(s @ torch.linalg.solve(H, s) / (s @ y))
    phi, tau = scaling(h, b, n)
    new = updated(H, s, y, phi, tau)
    miss = (new @ y - s).norm()
    assert miss <= 1e-12 * (new.norm() * y.norm() + (H @ y).norm() / tau)
    if 1e-2 < size / scale < 1e2:
        assert miss <= 1e-9 * s.norm()
    assert (new - new.T).norm() <= 1e-9 * new.norm()
    assert tau > 0
    if 1e-4 < size / scale < 1e4:
        assert torch.linalg.eigvalsh(new).min() > 0


@given(st.floats(1e-3, 1e3), st.floats(1.0, 1e3), st.integers(2, 900))
@example(0.5, 3.0, 2)
def test_scaling_is_the_published_formula(b, product, n):
    h = product / b
    a = h * b - 1
    rho_minus = min(1, h * (1 - math.sqrt(abs(a) / (1 + a))))
    theta_minus = (rho_minus - 1) / a if a > 0 else (0 if rho_minus == 1 else -math.inf)
    theta = max(theta_minus, min(1 / rho_minus, (1 - b) / b))
    sigma, rho = 1 + a * theta, min(1, 1 / b)
    power = abs(sigma) ** (1 / (1 - n))
    tau = min(rho * power, sigma) if theta <= 0 else rho * min(power, 1 / theta)
    phi = (1 - theta) / (1 + a * theta)
    if a > 1e-6:
        assert scaling(h, b, n) == pytest.approx((phi, tau), rel=1e-5)


def test_scaling_of_one_parameter_and_of_extremes():
    assert scaling(2.0, 0.5, 1) == (0.0, 1.0)
    assert scaling(2.0, 0.4, 9) == (0.0, 1.0)  # as for 0.5, below which b is by rounding only
    for h, b in [(1e20, 1.0), (1.0, 1e20), (1e-20, 1e20), (1e12, 1e12), (0.5, 1.0)]:
        phi, tau = scaling(h, b, 50)
        assert math.isfinite(phi)
        assert 0 < tau < math.inf


def test_a_length_is_a_hundredth_beyond_where_a_parabola_falls_as_far_and_at_most_1():
    for t in (1e-6, 0.3, 0.98):
        assert expected(t**2, -2 * t) == pytest.approx(1.01 * t)  # of the parabola (· - t)²
    assert expected(4.0, -4.0) == expected(0.0, -4.0) == 1


# The optimizer


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def quadratic(x):
    return (torch.logspace(-3, 3, len(x)).double() * (x - 1) ** 2).sum()


def quartic(x):
    return ((x - 1) ** 4).sum() + ((x - 1) ** 2).sum()


def run(function, start, max_iter=1000):
    """Minimise; the optimizer, the parameter and its closure."""
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = SSBroyden([x], max_iter=max_iter)
    return optimizer, x, closure_of(function, optimizer, x)


def gradient(function, at):
    at = at.clone().requires_grad_()
    return torch.autograd.grad(function(at), at)[0]


def closure_of(function, optimizer, x):
    def closure():
        optimizer.zero_grad()
        loss = function(x)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(
    ("function", "start"),
    [
        (rosenbrock, [-1.2, 1.0]),
        (rosenbrock, [0.0] * 12),
        (quadratic, [0.0] * 9),
        (quartic, [9.0]),
        (quartic, [-3.0, 5.0, 0.5]),
    ],
)
def test_the_minimiser_is_found_at_any_scale_of_the_loss(function, start, size):
    optimizer, x, closure = run(lambda x: size * function(x), start)
    first = optimizer.step(closure)
    assert first.item() == pytest.approx(size * function(torch.tensor(start).double()).item())
    assert first.dtype == torch.float64
    assert x.tolist() == pytest.approx([1.0] * len(start), abs=1e-6)


def test_each_accepted_step_meets_both_conditions_and_the_pairs_are_its_own(monkeypatch):
    accepted, pairs = [], []
    move = SSBroyden._move

    def watched(self, evaluate, x, *now):
        found = move(self, evaluate, x, *now)
        if found is not None:
            accepted.append((x.clone(), found[0].clone()))
        return found

    def kept(H, s, y, Hy, *numbers):
        pairs.append((s.clone(), y.clone()))
        broyden(H, s, y, Hy, *numbers)

    monkeypatch.setattr(SSBroyden, "_move", watched)
    monkeypatch.setattr("pinnlib.optimizers.ssbroyden.broyden", kept)
    optimizer, x, closure = run(rosenbrock, [-1.2, 1.0, 0.3], max_iter=12)
    optimizer.step(closure)
    assert len(accepted) == len(pairs) == 12

    for (before, after), (s, y) in zip(accepted, pairs, strict=True):
        step, g = after - before, gradient(rosenbrock, before)
        slope = g @ step
        assert rosenbrock(after) <= rosenbrock(before) + DECREASE * slope + 1e-12
        assert (gradient(rosenbrock, after) @ step).abs() <= CURVATURE * slope.abs() + 1e-12
        torch.testing.assert_close(s, step)
        torch.testing.assert_close(y, gradient(rosenbrock, after) - g)
    # Another objective: no pair mixes the two.
    pairs.clear()
    del accepted[:]
    optimizer.step(closure_of(quartic, optimizer, x))
    for (before, after), (_, y) in zip(accepted, pairs, strict=True):
        torch.testing.assert_close(y, gradient(quartic, after) - gradient(quartic, before))
    assert len(pairs) > 2


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_a_search_begins_where_the_last_decrease_would_come_again(size, monkeypatch):
    starts, lengths = [], []

    def watched(evaluate, start, t):
        starts.append(start)
        lengths.append(t)
        return search(evaluate, start, t)

    monkeypatch.setattr("pinnlib.optimizers.ssbroyden.search", watched)
    optimizer, _, closure = run(lambda x: size * rosenbrock(x), [0.0] * 6, max_iter=20)
    optimizer.step(closure)
    for t, before, now in zip(lengths[1:], starts, starts[1:], strict=False):
        assert t == pytest.approx(min(1, 2.02 * (now.value - before.value) / now.slope))
    assert min(lengths[1:]) < 0.9
    assert max(lengths[1:]) == 1
    optimizer.step(closure)
    assert lengths[20] == 1, "another objective: nothing is known of it"


def test_a_call_evaluates_first_and_keeps_what_it_learnt():
    optimizer, x, closure = run(quadratic, [0.0] * 9, max_iter=3)
    calls = []
    optimizer.step(lambda: calls.append(x.detach().clone()) or closure())
    end = x.detach().clone()
    H = optimizer.state[x]["H"].clone()
    assert not torch.equal(H, torch.eye(9).double())
    calls.clear()
    optimizer.step(lambda: calls.append(x.detach().clone()) or closure())
    assert torch.equal(calls[0], end)
    direction = calls[1] - calls[0]
    torch.testing.assert_close(direction, -(H @ gradient(quadratic, end)))  # of full length


def test_a_run_resumes_bit_for_bit():
    optimizer = assert_resumes(lambda start: run(rosenbrock, start, max_iter=7))
    assert not optimizer.stalled


def test_many_parameters_and_one_that_has_no_gradient():
    parts = [torch.full(shape, 3.0, dtype=torch.float64, requires_grad=True)
             for shape in ((2, 3), (), (4,))]  # fmt: skip
    optimizer = SSBroyden(parts)
    assert optimizer.defaults["max_iter"] == 100

    def closure():
        optimizer.zero_grad()
        loss = ((parts[0] - 1) ** 2).sum() + (parts[1] * parts[0].mean() - 2) ** 2
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    assert parts[0].mean().item() == pytest.approx(1, abs=1e-6)
    assert parts[1].item() == pytest.approx(2, abs=1e-6)
    assert parts[2].tolist() == [3.0] * 4


def test_a_failed_search_starts_again_and_then_stops_where_it_was():
    optimizer, x, closure = run(quartic, [3.0, -2.0], max_iter=2)
    optimizer.step(closure)
    before = x.detach().clone()

    def uphill():
        loss = closure()
        x.grad.neg_()
        return loss

    optimizer.step(uphill)
    assert torch.equal(x, before)
    assert optimizer.stalled
    assert torch.equal(optimizer.state[x]["H"], torch.eye(2).double())
    optimizer.step(closure)
    assert not optimizer.stalled
    assert quartic(x) < quartic(before)


def test_after_a_failed_search_the_first_step_is_short_again():
    optimizer, x, closure = run(quadratic, [0.0] * 9, max_iter=1)
    optimizer.step(closure)
    optimizer.state[x]["H"].neg_()  # along which everything rises
    before, calls = x.detach().clone(), []
    optimizer.step(lambda: calls.append(x.detach().clone()) or closure())
    g = gradient(quadratic, before)
    assert g.abs().sum() > 1
    torch.testing.assert_close(calls[1] - calls[0], -g / g.abs().sum())


def test_the_minimum_itself_is_left_alone():
    optimizer, x, closure = run(quadratic, [1.0, 1.0])
    optimizer.step(closure)
    assert x.tolist() == [1.0, 1.0]
    assert optimizer.stalled


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_region_that_is_not_finite_is_kept_out_of(bad):
    def barrier(x):
        return torch.where(x > 0, 100 * x - x.clamp(min=1e-300).log(), bad).sum()

    optimizer, x, closure = run(barrier, [5.0])
    optimizer.step(closure)
    assert x.item() == pytest.approx(0.01, rel=1e-6)
    x.data.fill_(-1)
    with pytest.raises(ValueError, match=r"loss at the start is (nan|inf), or its gradient"):
        optimizer.step(closure)
    assert x.item() == -1


def test_an_error_of_the_closure_leaves_the_last_accepted_step():
    optimizer, x, closure = run(rosenbrock, [-1.2, 1.0])
    seen = assert_keeps_the_last_step((optimizer, x, closure), calls=20)
    assert any(torch.equal(x, z) for z in seen[:-1])


def test_too_many_parameters_are_refused():
    SSBroyden([torch.zeros(20_000, dtype=torch.float64, requires_grad=True)])
    with pytest.raises(ValueError, match=r"30000 parameters.* 7 GB.*torch.optim.LBFGS"):
        SSBroyden([torch.zeros(30_000, dtype=torch.float64, requires_grad=True)])


@pytest.mark.parametrize("left", [None, [1.0, 2.0]])  # by another optimizer
def test_a_closure_without_a_backward_pass_is_refused(left):
    optimizer, x, _ = run(quadratic, [0.0, 0.0])
    x.grad = None if left is None else torch.tensor(left, dtype=x.dtype)
    with pytest.raises(ValueError, match=r"no gradient: call loss.backward\(\) in it"):
        optimizer.step(lambda: quadratic(x))
    assert not optimizer.stalled


def test_gradients_that_add_up_are_refused():
    optimizer, x, closure = run(quadratic, [0.0, 0.0])

    def adding_up():
        loss = quadratic(x)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"gradients.* call zero_grad in it"):
        optimizer.step(adding_up)
    assert (x == 0).all()
    optimizer.step(closure)
    assert (x != 0).all()


@pytest.mark.parametrize("total", [None, {"pde": 1.0}, [1.0], "1"])
def test_a_closure_that_returns_no_number_is_refused(total):
    optimizer, x, _ = run(quadratic, [0.0, 0.0])
    message = f"returns a {type(total).__name__}: let it return the total loss, a number"
    with pytest.raises(TypeError, match=message):
        optimizer.step(lambda: total)
    assert (x == 0).all()


def test_a_step_with_weights_held_is_the_closure():
    model = curve_network().double()
    batch = {"all": points(24, 1) * 2}

    def terms(batch):
        return Curve().term_residuals(model, batch)

    balancer = GradientBalancer.simplified(warm_start=True, bounds=(0.1, 10))
    step = Step(terms, model, balancer)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(20):
        adam.zero_grad()
        step(batch)
        adam.step()
    held = Step(terms, model, balancer.by_term())
    optimizer = SSBroyden(model.parameters(), max_iter=60)
    totals, failures = [], []

    def closure():
        optimizer.zero_grad()
        if len(totals) == 3:
            failures.append(totals.append(math.inf))
            raise NotFiniteError("loss 'pde' is inf")
        losses, weights = held(batch)
        totals.append((losses * weights).sum().item())
        return totals[-1]

    optimizer.step(closure)
    assert totals[-1] < 1e-3 * totals[0]
    assert failures
    assert held.balancer.by_term() == balancer.by_term()
