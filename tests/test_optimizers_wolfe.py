"""The line search: both conditions at every scale, failures, the minimum of a cubic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinnlib.optimizers.wolfe import (
    CURVATURE,
    DECREASE,
    TRIALS,
    Trial,
    between,
    beyond,
    minimum,
    search,
)


def on(function, slope):
    """A function of one variable as a search sees it, with all lengths that were tried."""
    tried = []

    def evaluate(t):
        tried.append(t)
        return Trial(t, function(t), slope(t))

    return evaluate, Trial(0.0, function(0.0), slope(0.0)), tried


CURVES = {
    "parabola": (lambda t: (t - 3) ** 2, lambda t: 2 * (t - 3)),
    "quartic": (lambda t: (t - 0.01) ** 4, lambda t: 4 * (t - 0.01) ** 3),
    "far": (lambda t: (t / 5000 - 1) ** 2, lambda t: 2 * (t / 5000 - 1) / 5000),
    "near": (lambda t: (t * 1e4 - 1) ** 2, lambda t: 2e4 * (t * 1e4 - 1)),
    "waves": (
        lambda t: math.cos(20 * t) + t * t / 9 - t,
        lambda t: -20 * math.sin(20 * t) + 2 * t / 9 - 1,
    ),
    "barrier": (
        lambda t: -t - math.log(1 - t) * 0.1 if t < 1 else math.nan,
        lambda t: -1 + 0.1 / (1 - t) if t < 1 else math.nan,
    ),
}  # fmt: skip


@pytest.mark.parametrize("first", [1e-6, 0.1, 1.0, 50.0])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("name", CURVES)
def test_a_search_ends_where_both_conditions_hold(name, size, first):
    function, slope = CURVES[name]
    evaluate, start, tried = on(lambda t: size * function(t), lambda t: size * slope(t))
    found = search(evaluate, start, first)
    assert found is not None
    assert len(tried) <= TRIALS
    assert found.t > 0
    assert size * function(found.t) <= start.value + DECREASE * found.t * start.slope
    assert abs(size * slope(found.t)) <= CURVATURE * abs(start.slope)
    assert tried[0] == first


def test_a_first_length_that_fits_is_taken():
    evaluate, start, tried = on(*CURVES["parabola"])
    assert search(evaluate, start, 2.0).t == 2.0
    assert tried == [2.0]


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (lambda t: -t, lambda t: -1.0),  # falls for ever
        (lambda t: 0.0 if t == 0 else 1.0, lambda t: -1.0),  # higher everywhere else
        (lambda t: 0.0 if t == 0 else math.nan, lambda t: -1.0),
        (lambda t: 0.0, lambda t: -1.0),  # flat to rounding
    ],
)
def test_a_search_without_a_result_says_so(function, slope):
    evaluate, start, tried = on(function, slope)
    assert search(evaluate, start, 1.0) is None
    assert 1 < len(tried) <= TRIALS


@given(st.floats(-9, 9), st.floats(-9, 9), st.sampled_from([-3.0, 0.1, 7.0]), st.floats(0.1, 9))
def test_minimum_of_a_cubic(b, c, d, a):
    p = np.polynomial.Polynomial([0.0, b, c, d])
    q = p.deriv()
    ends = [Trial(t, p(t), q(t)) for t in (a, a + 2)]
    least = [t.real for t in q.roots() if t.imag == 0 and q.deriv()(t.real) > 1e-2]
    if least:
        assert minimum(*ends) == pytest.approx(least[0], rel=1e-6, abs=1e-6)
        assert minimum(*ends[::-1]) == minimum(*ends)
    elif c * c < 3 * d * b - 0.1:
        assert math.isnan(minimum(*ends))


def test_an_inflection_is_no_minimum():
    assert math.isnan(minimum(Trial(-1, -1, 3), Trial(2, 8, 12)))  # of the cube
    assert math.isnan(minimum(Trial(0, 0, 0), Trial(1, 0, 0)))
    assert math.isnan(minimum(Trial(0, 0, 1), Trial(2, 0, -1)))  # a parabola with a maximum


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (Trial(1, 1, -2), Trial(3, 1, 2), 2.0),  # the minimum of a parabola
        (Trial(3, 1, 2), Trial(1, 1, -2), 2.0),
        (Trial(1, 0, -1), Trial(3, math.inf, math.inf), 1.2),  # near the end that is finite
        (Trial(1, 0, -1), Trial(3, math.nan, 1), 1.2),
        (Trial(0, 0, -1), Trial(1, -2 / 3, -1), 0.5),  # nowhere: the middle
        (Trial(2, 0, -1), Trial(3, -2 / 3, -1), 2.5),
        (Trial(0, 1e-6, -2e-3), Trial(1, 0.998001, 1.998), 0.1),  # at 0.001
        (Trial(0, 0.998001, -1.998), Trial(1, 1e-6, 2e-3), 0.9),
    ],
)
def test_a_point_between(low, high, expected):
    assert between(low, high) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("last", "previous", "expected"),
    [
        (Trial(1, 4, -4), Trial(0, 9, -6), 3.0),  # the minimum of a parabola
        (Trial(2, 0, -1), Trial(1, 1, -1), 20.0),  # nowhere
        (Trial(2, (2 - 99) ** 2, -2 * 97), Trial(0, 99**2, -2 * 99), 20.0),
        (Trial(2, 1, 2), Trial(0, 1, -2), 2.02),  # not behind the last one
    ],
)
def test_a_point_beyond(last, previous, expected):
    assert beyond(last, previous) == pytest.approx(expected, rel=1e-12)


def by_table(*trials):
    """A function whose values and slopes are written down, in the order of the search."""
    tried, rest = [], iter(trials)

    def evaluate(t):
        tried.append(t)
        return Trial(t, *next(rest))

    return evaluate, tried


def test_what_just_meets_the_conditions_is_taken_and_a_tie_is_too_high():
    evaluate, tried = by_table((-1e-4, 0.9))
    assert search(evaluate, Trial(0, 0, -1), 1.0) == Trial(1.0, -1e-4, 0.9)
    # As low as before, so the minimum lies between.
    evaluate, tried = by_table((-1.0, -2.0), (-1.0, -2.0), (-2.0, 0.0))
    assert search(evaluate, Trial(0, 0, -2), 1.0).value == -2
    assert tried[0] < tried[2] < tried[1]


def test_a_slope_that_is_not_finite_is_too_high():
    evaluate, tried = by_table((-1.0, math.nan), (-0.5, 0.0))
    assert search(evaluate, Trial(0, 0, -1), 1.0) == Trial(0.5, -0.5, 0.0)
    assert tried == [1.0, 0.5]


def test_a_search_ends_where_rounding_tells_no_two_lengths_apart():
    evaluate, start, tried = on(lambda t: -t if t <= 1 else math.inf, lambda t: -1.0)
    assert search(evaluate, start, 1.0) is None
    assert tried[-1] == pytest.approx(1, rel=1e-14)
    assert len(tried) < TRIALS
