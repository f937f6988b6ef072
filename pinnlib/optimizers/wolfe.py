"""A line search that ends where both Wolfe conditions hold, or says that it found no such place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

__all__: list[str] = []  # for the optimizers

DECREASE, CURVATURE = 1e-4, 0.9
"""The constants of the two conditions, as for any quasi-Newton method (:cite:t:`nocedal2006`)."""
TRIALS = 25
"""Evaluations until a search gives up."""


class Trial(NamedTuple):
    """A step length, with value and slope of the function there."""

    t: float
    value: float
    slope: float


def search(evaluate: Callable[[float], Trial], start: Trial, t: float) -> Trial | None:
    r"""Find a step length t that meets the strong Wolfe conditions.

    .. math:: \varphi(t) \le \varphi(0) + c_1 t \varphi'(0), \qquad
       |\varphi'(t)| \le c_2 |\varphi'(0)|

    The interval that holds such a point grows until its far end is too high or rises, then shrinks
    by cubic interpolation (Nocedal and Wright, *Numerical Optimization*, algorithms 3.5 and 3.6).
    There is no limit to how small a decrease counts. What is not finite counts as too high.

    Args:
        evaluate: value and slope at a step length.
        start: at 0, with a negative slope.
        t: the first length to try.

    Returns:
        The point, or ``None`` if there was none within 25 trials, or none that rounding can tell
        from the others.
    """
    low, high, previous = start, None, start
    for _ in range(TRIALS):
        trial = evaluate(t)
        is_finite = math.isfinite(trial.value) and math.isfinite(trial.slope)
        too_high = trial.value > start.value + DECREASE * t * start.slope
        if not is_finite or too_high or (low.t > 0 and trial.value >= low.value):
            high = trial
        elif abs(trial.slope) <= -CURVATURE * start.slope:
            return trial
        else:
            if trial.slope * ((high.t if high else math.inf) - low.t) >= 0:
                high = low
            low = trial
        following = between(low, high) if high else beyond(low, previous)
        previous = trial
        if following in (low.t, t) or not math.isfinite(following):
            return None
        t = following
    return None


def between(low: Trial, high: Trial) -> float:
    """A point within an interval, a tenth of it away from both ends."""
    width = high.t - low.t
    share = (minimum(low, high) - low.t) / width if math.isfinite(high.value) else 0.1
    return low.t + min(max(share, 0.1), 0.9) * width if math.isfinite(share) else low.t + width / 2


def beyond(last: Trial, previous: Trial) -> float:
    """A point beyond the last one, at most ten times as far away."""
    t = minimum(previous, last)
    nearest = last.t + 0.01 * (last.t - previous.t)
    return min(max(t, nearest), 10 * last.t) if math.isfinite(t) else 10 * last.t


def minimum(a: Trial, b: Trial) -> float:
    """Where the cubic through two points, with their slopes, is least; nan if nowhere."""
    if a.t > b.t:
        a, b = b, a
    d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if not square > 0:
        return math.nan
    d2 = math.sqrt(square)
    divisor = b.slope - a.slope + 2 * d2
    return b.t - (b.t - a.t) * (b.slope + d2 - d1) / divisor if divisor else math.nan
