"""Nested values: their leaves, what a recording depends on, and when two results differ."""

import math
from collections import namedtuple

import pytest
import torch
from helpers import EXPONENTS, theta
from hypothesis import given

from pinnlib.trees import describe, differ, leaves, named, replace, unhashable

pytestmark = pytest.mark.usefixtures("nothing_hidden")

Pair = namedtuple("Pair", "a b")
X = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def kinds_of(tree):
    tensors, kinds = [], []
    describe(tree, tensors, kinds)
    return tensors, kinds


def test_leaves_have_their_places():
    tree = {"a": [X, (1, None)], 2: Pair("x", {})}
    assert list(leaves(tree, "it")) == [
        ("it['a'][0]", X), ("it['a'][1][0]", 1), ("it['a'][1][1]", None), ("it[2][0]", "x"),
    ]  # fmt: skip
    assert list(leaves(3)) == [("", 3)]
    assert list(named(([1], {"b": 2}, 3))) == [
        ("batch[0]", 1),
        ("argument 1['b']", 2),
        ("argument 2", 3),
    ]


ALIKE = [{"x": X, "n": 1}, [X], X]
OTHERS = [
    ({"x": X}, {"y": X}),
    ({"x": X, "y": X}, {"y": X, "x": X}),
    ([X], (X,)),
    ([[X], X], [[X, X]]),
    ([X, [X]], [X, X]),
    (X, X[:2]),
    (X, X.float()),
    (X, X.to("meta")),
    (X, X.clone().requires_grad_()),
    (1, True),
    (1, 1.0),
    (1, 2),
]


@pytest.mark.parametrize("tree", ALIKE)
def test_other_numbers_are_of_the_same_kind(tree):
    other = replace(tree, iter([-X]))
    (x,), kinds = kinds_of(other)
    assert torch.equal(x, -X)
    assert kinds == kinds_of(tree)[1]
    assert type(other) is type(tree)


@pytest.mark.parametrize(("a", "b"), OTHERS)
def test_another_form_is_another_kind(a, b):
    assert kinds_of(a)[1] != kinds_of(b)[1]
    hash(tuple(kinds_of(a)[1]))
    assert len(kinds_of([a, a])[0]) == 2 * len(kinds_of(a)[0])


def test_tensors_are_replaced_in_their_order():
    tree = {"a": [X, (2 * X, "name")], "b": Pair(3 * X, None)}
    numbers = iter(torch.arange(3.0))
    found = replace(tree, numbers)
    assert found == {"a": [0.0, (1.0, "name")], "b": (2.0, None)}
    assert type(found["b"]) is Pair
    assert kinds_of(tree)[0][1] is tree["a"][1][0]


def test_what_makes_no_key_is_named():
    assert unhashable((X, {"a": {1}})) == (
        "argument 1['a'] is a set: pass a tensor, or a hashable value"
    )
    with pytest.raises(AssertionError):
        unhashable((X, 3))


# Two results


@given(EXPONENTS)
def test_more_than_a_rounding_apart_at_any_scale(exponent):
    for dtype, rounding in [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 3e-2)]:
        x = (10.0**exponent * X).to(dtype)
        near, far = x.clone(), x.clone()
        near[0] *= 1 + rounding
        far[0] *= 1 + 10 * rounding**0.9
        assert differ(x, near) is False
        assert differ(near, x) is False
        for y in (far, -x, torch.zeros_like(x)):
            assert differ(x, y) is True
            assert differ(y, x) is True


def test_what_is_small_beside_the_largest_entry_is_rounding():
    x, y = torch.tensor([1e12, 1.0]), torch.tensor([1e12, -1.0])
    assert differ(x, y) is False
    assert differ(-x, -y) is False
    assert differ(x, y[[1, 0]]) is True


def test_what_is_not_finite_is_left_out():
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.tensor([bad, 1.0, 2.0])
        assert differ(x, torch.tensor([5.0, 1.0, 2.0])) is False
        assert differ(torch.tensor([5.0, 1.0, 2.0]), x) is False
        assert differ(x, torch.tensor([5.0, 1.0, 2.1])) is True
    assert differ(torch.tensor([math.nan]), torch.tensor([1.0])) is False


def test_other_forms_differ_and_equal_values_do_not():
    empty, whole = torch.empty(0), X.long()
    for a, b in [
        (X, X[:2]), (X, X.float()), (X, 1.0), (1.0, X), (X, None), (1, True), (1, 2), ("a", "b"),
        (whole, whole + 1), (X > 0, X < 0), (empty, empty[:, None]),
    ]:  # fmt: skip
        assert differ(a, b) is True
    for a in (X, 1, None, "a", X.long(), X > 0, empty, torch.zeros(2), theta(1.0)):
        assert differ(a, a) is False
