import math

import pytest
import torch
from helpers import rows, seeded

from pinnlib.weighting import Balancer, Constant, Follow, KernelTrace, Ratio

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def balancer_of(terms=("data", "pde"), *, every=1, **settings):
    return Balancer(terms, Follow(Ratio(), **settings), every=every)


def used(**settings):
    """A balancer with weights that no fresh one has."""
    balancer = balancer_of(**settings)
    balancer.update(rows(1.0, 8.0))
    return balancer


@pytest.mark.parametrize("stack", [(), (3,)])
def test_state_resumes_bit_exactly(stack):
    settings = {"alpha": 0.3, "every": 4, "warm_start": True, "bounds": (0.1, 10.0)}
    generator = seeded()
    matrices = [torch.randn(*stack, 2, 5, generator=generator) for _ in range(20)]
    whole, first, second = (balancer_of(**settings) for _ in range(3))
    expected = [whole.update(G) for G in matrices]
    actual = [first.update(G) for G in matrices[:10]]
    second.load_state_dict(first.state_dict())
    actual += [second.update(G) for G in matrices[10:]]
    assert all(map(torch.equal, actual, expected))


def test_state_holds_names_numbers_and_tensors_only():
    state = used(bounds=(0.1, 10.0)).state_dict()
    assert set(state) == {"terms", "weights", "state", "step"}
    assert (state["terms"], state["step"]) == (["data", "pde"], 1)
    assert list(state["state"]) == ["first"]


def test_state_is_a_copy_in_both_directions():
    balancer, other = used(alpha=1.0, bounds=(0.1, 10.0)), balancer_of(bounds=(0.1, 10.0))
    state = balancer.state_dict()
    other.load_state_dict(state)
    state["weights"].zero_()
    state["state"]["first"].zero_()
    for each in (balancer, other):
        assert each.weights.tolist() == each.state["first"].tolist() == [1.0, 0.125]


def test_a_loaded_state_replaces_another_stack_and_a_failure():
    balancer = balancer_of(warm_start=True)
    balancer.update(rows(1.0, 2.0).expand(4, 2, 3))
    balancer.failed = torch.full((4,), 2)
    balancer.load_state_dict(used(warm_start=True).state_dict())
    assert balancer.weights.shape == balancer.state["first"].shape == (2,)
    assert (balancer.failed.item(), balancer.step) == (-1, 1)
    balancer.update(rows(1.0, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_is_loaded_in_the_precision_of_this_device(dtype):
    saved = used(bounds=(0.1, 10.0)).state_dict()
    saved["weights"] = saved["weights"].to(dtype)
    saved["state"]["first"] = saved["state"]["first"].to(dtype)
    balancer = balancer_of(bounds=(0.1, 10.0))
    balancer.load_state_dict(saved)
    assert balancer.weights.dtype == balancer.state["first"].dtype == torch.float64
    assert balancer.state["first"].tolist() == [1.0, 0.125]
    balancer.weights.zero_()
    assert saved["weights"].tolist() != [0.0, 0.0]


def test_a_state_is_loaded_without_a_graph():
    saved = used(warm_start=True).state_dict()
    saved["weights"].requires_grad_()
    saved["state"]["first"].requires_grad_()
    balancer = balancer_of(warm_start=True)
    balancer.load_state_dict(saved)
    assert not balancer.weights.requires_grad
    assert not balancer.state["first"].requires_grad


@pytest.mark.parametrize("terms", [["pde", "data"], ["data", "boundary"], ["data", "pde", "x"]])
def test_state_of_other_terms_is_refused(refused, terms):
    balancer, other = used(), balancer_of(terms)
    other.update(torch.rand(len(terms), 3, generator=seeded()))
    message = rf"saved terms are \['{terms[0]}'.* has \['data', 'pde'\]: load the state of the same"
    with refused(balancer, match=message):
        balancer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("part", ["terms", "weights", "state", "step"])
def test_a_part_that_is_missing_is_named(refused, part):
    balancer, saved = used(warm_start=True), balancer_of(warm_start=True).state_dict()
    del saved[part]
    with refused(balancer, match=rf"the saved state lacks \['{part}'\]: pass a whole state_dict"):
        balancer.load_state_dict(saved)


@pytest.mark.parametrize("saved", [None, [], "weights", {}])
def test_what_is_no_state_at_all_is_refused(refused, saved):
    message = r"lacks \['state', 'step', 'terms', 'weights'\]"
    balancer = used()
    with refused(balancer, match=message):
        balancer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("terms", None, "saved terms are None, but"),
        ("terms", "data", "saved terms are data, but"),
        *(
            (
                "weights",
                value,
                r"(?s)saved weights are .*: a finite one is needed for each of \['dat",
            )
            for value in [
                torch.tensor([1.0, math.nan]),
                torch.tensor([1.0, math.inf]),
                torch.tensor(1.0),
                torch.ones(3),
                torch.ones(2, 1),
                torch.ones(2, dtype=torch.int64),
                torch.ones(2, dtype=torch.complex64),
                [1.0, 1.0],
                None,
            ]
        ),
        *(
            ("step", value, f"saved step is {value}: it must be a whole number, 0 or more")
            for value in [-1, 2.5, math.nan, None, True]
        ),
        *(
            (
                "state",
                value,
                r"(?s)saved state of the rule is .*, but Follow.* needs .*: load the st",
            )
            for value in [
                None,
                {},
                [],
                {"first": [1.0, 1.0]},
                {"first": torch.ones(3)},
                {"first": torch.ones(2, dtype=torch.int64)},
                {"first": torch.ones(2), "more": torch.ones(2)},
                {"key": torch.tensor(0)},
            ]
        ),
    ],
)
def test_every_part_is_checked_before_anything_changes(refused, part, value, message):
    balancer, saved = used(warm_start=True), balancer_of(warm_start=True).state_dict()
    saved[part] = value
    with refused(balancer, match=message):
        balancer.load_state_dict(saved)


def test_state_of_another_rule_or_stack_is_refused(refused):
    rules = {
        "plain": Follow(Ratio()),
        "bounded": Follow(Ratio(), bounds=(0.1, 10)),
        "kernel": KernelTrace(),
    }
    for name, rule in rules.items():
        balancer = Balancer(["data", "pde"], rule)
        for other, saved in rules.items():
            if other == name:
                continue
            with refused(
                balancer, match=r"saved state of the rule is .* load the state of the sam"
            ):
                balancer.load_state_dict(Balancer(["data", "pde"], saved).state_dict())
    stacked = Balancer(["data", "pde"], Constant({"data": 1.0, "pde": 1.0}))
    stacked.update(rows(1.0, 1.0).expand(2, 2, 3))
    fresh = Balancer(["data", "pde"], rules["plain"])
    fresh.load_state_dict(stacked.state_dict())  # nothing tells them apart, and all of it fits
    assert fresh.weights.shape == (2, 2)
    with refused(fresh, match=r"holds the weights of a stack \(2,\), not of \(\)"):
        fresh.update(rows(1.0, 1.0))
