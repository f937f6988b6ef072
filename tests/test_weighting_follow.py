import math

import pytest
import torch
from helpers import EXPONENTS, rows
from hypothesis import given
from hypothesis import strategies as st

from pinnlib.gradients import max_abs
from pinnlib.residuals import NotFiniteError
from pinnlib.weighting import (
    Balancer,
    Follow,
    Ratio,
    Rule,
    Seen,
    arithmetic_average,
    logarithmic_average,
)
from pinnlib.weighting.rule import answer

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def balancer_of(rule=None, *, every=1, **settings):
    return Balancer(["data", "pde"], Follow(rule or Ratio(), **settings), every=every)


# The two averages


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


# Follow


def test_update_by_hand():
    balancer = balancer_of()
    assert balancer.weights.tolist() == [1.0, 1.0]
    assert balancer.update(rows(1.0, 100.0)).tolist() == pytest.approx([1.0, 0.1 + 0.9 * 0.01])
    assert balancer.update(rows(1.0, 1.0)).tolist() == pytest.approx([1.0, 0.0109 + 0.9])
    assert balancer.step == 2


def test_warm_start():
    cold, warm = balancer_of(alpha=0.1), balancer_of(alpha=0.1, warm_start=True)
    assert cold.update(rows(1.0, 100.0))[1].item() == pytest.approx(0.901)
    assert warm.update(rows(1.0, 100.0))[1].item() == pytest.approx(0.01)
    assert warm.update(rows(1.0, 1.0))[1].item() == pytest.approx(0.109)  # once only


def test_bounds_are_relative_to_the_first_target():
    balancer = balancer_of(alpha=1.0, bounds=(0.5, 3.0))
    sizes = [100.0, 1000.0, 1.0, 50.0]  # the first target is 0.01
    weights = [balancer.update(rows(1.0, size))[1].item() for size in sizes]
    assert weights == pytest.approx([0.01, 0.005, 0.03, 0.02])


def test_bounds_hold_at_the_first_step_too():
    balancer = balancer_of(alpha=0.5, bounds=(0.5, 3.0))
    assert balancer.update(rows(1.0, 100.0))[1].item() == pytest.approx(0.03)


@pytest.mark.parametrize("first", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("settings", [{"bounds": (0.5, 3.0)}, {"warm_start": True}])
def test_a_target_that_cannot_be_measured_is_not_the_first(first, settings):
    balancer = balancer_of(alpha=1.0, **settings)
    balancer.update(rows(*first))
    assert balancer.update(rows(1000.0, 1.0))[1].item() == 1000.0


@pytest.mark.parametrize(
    ("sizes", "target"),
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
def test_vanishing_gradients_and_overflow_in_float32(sizes, target, weighted):
    balancer = balancer_of(Ratio(weighted=weighted), alpha=0.5)
    G = rows(*sizes, dtype=torch.float32)
    assert balancer.target(G).tolist() == pytest.approx([1.0, target], abs=1e-30)
    assert balancer.update(G).tolist() == pytest.approx([1.0, 0.5 + 0.5 * target])


def test_state_is_there_only_where_it_is_needed():
    assert balancer_of().state == {}
    for settings in ({"warm_start": True}, {"bounds": (0.1, 10)}):
        first = balancer_of(**settings).state["first"]
        assert first.isnan().all()
        assert (first.dtype, first.shape) == (torch.float64, (2,))


def test_a_target_stands_without_average_start_and_bounds():
    balancer = balancer_of(alpha=0.5, warm_start=True, bounds=(0.5, 2))
    balancer.update(rows(1.0, 1.0))
    assert balancer.target(rows(100.0, 1.0)).tolist() == [1.0, 100.0]
    assert balancer.target(rows(1.0, 0.0)).tolist() == [1.0, 1.0]
    assert balancer.state["first"].tolist() == [1.0, 1.0]


def test_a_stack_can_have_an_alpha_each():
    alphas = [0.1, 0.5, 1.0]
    together = balancer_of(alpha=torch.tensor(alphas, dtype=torch.float64)[:, None])
    separate = [balancer_of(alpha=alpha) for alpha in alphas]
    for size in (100.0, 3.0):
        weights = together.update(rows(1.0, size).expand(3, 2, 3))
        for s in range(3):
            torch.testing.assert_close(weights[s], separate[s].update(rows(1.0, size)))


def test_alpha_goes_where_the_gradients_live():
    balancer, meta = balancer_of(alpha=torch.tensor([[0.5], [0.1]])), torch.device("meta")
    balancer.place((2,), meta)
    G = torch.empty(2, 2, 3, device=meta)
    seen = Seen(balancer.terms, balancer.weights, rows=lambda: (G, None))
    weights, _ = answer(balancer.rule, seen, balancer.state)
    assert (weights.device, weights.shape) == (meta, (2, 2))


@pytest.mark.parametrize("alpha", [0.5, torch.tensor(0.5), torch.tensor([0.5])])
def test_alpha_can_be_a_number_in_a_tensor(alpha):
    assert balancer_of(alpha=alpha).update(rows(1.0, 2.0)).tolist() == [1.0, 0.75]


@pytest.mark.parametrize("stack", [(), (3,), (2, 2)])
@pytest.mark.parametrize("shape", [(2, 1), (1, 1), (4, 1), (2, 2, 1, 1)])
def test_alpha_of_another_stack_is_refused(refused, stack, shape):
    balancer = balancer_of(alpha=torch.full(shape, 0.5))
    message = rf"alpha has shape \({shape[0]}, .*\), for weights .*: pass a number, or one α for"
    with refused(balancer, match=message):
        balancer.update(rows(1.0, 2.0).expand(*stack, 2, 3))


def test_settings_are_copies():
    alpha, bounds = torch.tensor([[0.5]]), [0.5, 2.0]
    balancer = balancer_of(alpha=alpha, bounds=bounds)
    alpha.fill_(7.0)
    bounds[1] = 1e9
    weights = [balancer.update(rows(1.0, size).expand(1, 2, 3)) for size in (1.0, 1e-6)]
    assert weights[1].tolist() == [[1.0, 2.0]]
    assert balancer.rule.alpha.item() == 0.5


def test_settings_at_the_ends_of_their_ranges():
    balancer = balancer_of(alpha=1, every=1, bounds=(1, 1))
    assert balancer.update(rows(1.0, 2.0)).tolist() == [1.0, 0.5]
    assert balancer_of(bounds=(0, math.inf)).update(rows(1.0, 1e9)).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rule": "data"}, TypeError, r"rule is 'data': pass a rule, such as Ratio\(\)"),
        ({"rule": Ratio}, TypeError, "rule is <class .*: pass a rule, such as"),
        ({"average": 0.5}, TypeError, "average is 0.5: pass a function such as arithmetic_average"),
        *(
            ({"alpha": alpha}, ValueError, rf"(?s)alpha is {shown}.*: .* lie in \(0, 1\]; a mom")
            for alpha, shown in [
                (0.0, "0.0"),
                (1.1, "1.1"),
                (-0.5, "-0.5"),
                (math.nan, "nan"),
                ("0.9", "'0.9'"),
                (None, "None"),
                (1 + 0j, r"\(1"),
                (torch.tensor([[0.5], [0.0]]), "tensor"),
                (torch.tensor([[0.5], [math.nan]]), "tensor"),
                (torch.tensor([[0.5 + 1j]]), "tensor"),
            ]
        ),
        ({"alpha": torch.ones(0)}, ValueError, r"alpha has shape \(0,\): one α a network is"),
        ({"alpha": torch.ones(2)}, ValueError, r"alpha has shape \(2,\): one α a network is \(M"),
        *(
            ({"bounds": b}, ValueError, r"bounds is .*: pass two factors with 0 <= low <= 1 <= h")
            for b in [
                (0.5, 0.9),
                (1.1, 2.0),
                (-0.1, 2.0),
                (math.nan, 2.0),
                (0.5, math.nan),
                0.5,
                (0.1,),
                (0.1, 1, 10),
                "ab",
                (None, 2),
            ]
        ),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        Follow(**({"rule": Ratio()} | settings))


# Functions of one's own


def test_an_average_and_a_statistic_of_one_s_own():
    balancer = balancer_of(
        Ratio(statistic=lambda G, used: G[..., 0].abs()),
        average=lambda old, new, alpha: torch.minimum(old, new),
    )
    assert balancer.update(torch.tensor([[2.0, 9.0], [4.0, 1.0]])).tolist() == [1.0, 0.5]
    assert balancer.update(torch.tensor([[9.0, 9.0], [4.0, 1.0]])).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_average_of_lower_precision_leaves_the_weights_in_double(dtype):
    balancer = balancer_of(average=lambda old, new, alpha: new.to(dtype))
    weights = balancer.update(rows(1.0, 4.0))
    assert weights.dtype == balancer.weights.dtype == torch.float64
    assert weights.tolist() == [1.0, 0.25]


BAD_AVERAGES = {
    "nan": lambda old, new, alpha: new * math.nan,
    "inf": lambda old, new, alpha: new * math.inf,
    "negative": lambda old, new, alpha: -1e-9 * new,
}
BAD_STATISTICS = {
    "nan": lambda G, used: max_abs(G) * math.nan,
    "inf": lambda G, used: max_abs(G) * math.inf,
    "negative": lambda G, used: -1e-9 * max_abs(G),
    "signed": lambda G, used: G[..., 1],
}
BAD_REFERENCES = {
    "nan": lambda sizes: sizes[..., 0] * math.nan,
    "inf": lambda sizes: sizes[..., 0] * math.inf,
    "negative": lambda sizes: -1e-9 * sizes[..., 0],
}
BAD_SETTINGS = [
    *(pytest.param({}, {"average": f}, id=f"average {n}") for n, f in BAD_AVERAGES.items()),
    *(pytest.param({"statistic": f}, {}, id=f"statistic {n}") for n, f in BAD_STATISTICS.items()),
    *(pytest.param({"reference": f}, {}, id=f"reference {n}") for n, f in BAD_REFERENCES.items()),
    *(
        pytest.param({"reference_statistic": f}, {}, id=f"reference statistic {n}")
        for n, f in BAD_STATISTICS.items()
        if n != "signed"
    ),
]


@pytest.mark.parametrize("more", [{}, {"bounds": (0.5, 2.0)}, {"warm_start": True}], ids=str)
@pytest.mark.parametrize("stack", [(), (2,)], ids=str)
@pytest.mark.parametrize(("ratio", "settings"), BAD_SETTINGS)
def test_functions_are_not_trusted(refused, ratio, settings, stack, more):
    """What is not finite or negative is an error, never a weight; nor do bounds hide it."""
    balancer = balancer_of(Ratio(**ratio), **settings, **more)
    message = r"weight of '(data|pde)' at step 0 would be .*nan|inf.*check Follow\(rule=Ratio"
    with refused(balancer, match=message):
        balancer.update(rows(1.0, 2.0).expand(*stack, 2, 3))


def test_an_infinite_target_is_an_error_that_bounds_do_not_hide():
    class Infinite(Rule):
        def __call__(self, seen: Seen, state):
            return torch.where(seen.losses > 1, math.inf, seen.losses), state

    balancer = balancer_of(Infinite(), bounds=(0.5, 2.0))
    balancer.update(rows(1.0, 1.0), torch.tensor([1.0, 0.5]))
    with pytest.raises(NotFiniteError, match="weight of 'pde' at step 1 would be nan"):
        balancer.update(rows(1.0, 1.0), torch.tensor([1.0, 2.0]))
    with pytest.raises(NotFiniteError, match="weight of 'data' at step 1"):
        balancer.update(rows(1.0, 1.0), torch.tensor([3.0, 1.0]))
    assert balancer.target(rows(1.0, 1.0), torch.tensor([1.0, 2.0])).tolist() == [1.0, math.inf]
