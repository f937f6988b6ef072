"""The chain rule for each function that a jet goes through."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pinnlib.jets.jet import Jet, Stream, rule


def _times(factor: Any, s: Stream) -> Stream:
    return None if s is None else factor * s


def _plus(s: Stream, t: Stream) -> Stream:
    return t if s is None else s if t is None else s + t


def _minus(s: Stream, t: Stream) -> Stream:
    return _times(-1, t) if s is None else s if t is None else s - t


def _pair(a: Any, b: Any) -> tuple[Jet, Jet]:
    """Both operands as jets; a tensor or a number is a constant."""
    if isinstance(a, Jet) and isinstance(b, Jet):
        return a, b
    jet, other = (a, b) if isinstance(a, Jet) else (b, a)
    if not isinstance(jet, Jet) or not isinstance(other, Tensor | float | int):
        raise TypeError
    value: Any = other
    constant = Jet(value, [None] * len(jet.first), [None] * len(jet.second), jet.weights)
    return (jet, constant) if jet is a else (constant, jet)


def _each(linear: Callable[..., Stream], value: Tensor, jet: Jet, *others: Jet) -> Jet:
    """A jet whose derivatives follow from those of others by one rule for both orders."""
    first = tuple(map(linear, jet.first, *(other.first for other in others)))
    second = tuple(map(linear, jet.second, *(other.second for other in others)))
    return Jet(value, first, second, jet.weights)


def _curve(jet: Jet, factor: Any, a: Jet, b: Jet) -> Jet:
    """Add to a jet's second derivatives the factor times a_j b_j, or times their weighted sum."""
    pairs = zip(a.first, b.first, strict=True)
    added: list[Stream]
    if a.weights is None:
        added = [None if x is None or y is None else factor * x * y for x, y in pairs]
    else:  # summed before the factor, the larger tensor: after one layer x and y are still one row
        total: Stream = None
        for weight, (x, y) in zip(a.weights, pairs, strict=True):
            if weight and x is not None and y is not None:
                if total is None:
                    total = (x if weight == 1 else weight * x) * y
                else:
                    total = torch.add(total, x * y, alpha=weight)
        added = [_times(factor, total)]
    return Jet(jet.value, jet.first, tuple(map(_plus, jet.second, added)), jet.weights)


@rule("add", pair=True)
def _add(a: Any, b: Any) -> Jet:
    a, b = _pair(a, b)
    return _each(_plus, a.value + b.value, a, b)


@rule("sub", pair=True)
def _sub(a: Any, b: Any) -> Jet:
    a, b = _pair(a, b)
    return _each(_minus, a.value - b.value, a, b)


@rule("mul", pair=True)
def _mul(a: Any, b: Any) -> Jet:
    a, b = _pair(a, b)
    u, v = a.value, b.value
    product = _each(lambda s, t: _plus(_times(v, s), _times(u, t)), u * v, a, b)
    return _curve(product, 2, a, b) if product.second else product


@rule("div", "true_divide", "truediv", pair=True)
def _div(a: Any, b: Any) -> Jet:
    x, y = _pair(a, b)
    q = x.value / y.value
    if y is not b:  # a tensor or a number
        return _each(lambda s: None if s is None else s / y.value, q, x)
    inverse = 1 / y.value  # the product rule of q y = x, solved for the derivatives of q
    quotient = _each(lambda s, t: _times(inverse, _minus(s, _times(q, t))), q, x, y)
    return _curve(quotient, -2 * inverse, quotient, y) if quotient.second else quotient


@rule("reciprocal")
def _reciprocal(z: Jet) -> Jet:
    return _div(1, z)


@rule("neg", "negative")
def _neg(z: Jet) -> Jet:
    return _mul(z, -1)


def _chain(z: Jet, value: Tensor, slope: Any, bend: Callable[[], Any]) -> Jet:
    """f(z) from the values of f, of f' and, where they are needed, of f''."""
    jet = _each(partial(_times, slope), value, z)
    return _curve(jet, bend(), z, z) if z.second else jet


def _chain_by_slope(z: Jet, value: Tensor, slope: Tensor, ratio: Callable[[], Any]) -> Jet:
    """f(z) where f'' is a ratio times f': the slope comes last, which saves products."""
    bent = _curve(z, ratio(), z, z) if z.second else z
    return _each(partial(_times, slope), value, bent)


@rule("tanh")
def _tanh(z: Jet) -> Jet:
    h = torch.tanh(z.value)
    return _chain_by_slope(z, h, 1 - h * h, lambda: -2 * h)


@rule("sigmoid")
def _sigmoid(z: Jet) -> Jet:
    h = torch.sigmoid(z.value)
    return _chain_by_slope(z, h, h * (1 - h), lambda: 1 - 2 * h)


@rule("silu")
def _silu(z: Jet, inplace: bool = False) -> Jet:
    if inplace:
        raise TypeError
    return _mul(z, _sigmoid(z))


@rule("sin")
def _sin(z: Jet) -> Jet:
    h = torch.sin(z.value)
    return _chain(z, h, torch.cos(z.value), lambda: -h)


@rule("cos")
def _cos(z: Jet) -> Jet:
    h = torch.cos(z.value)
    return _chain(z, h, -torch.sin(z.value), lambda: -h)


@rule("exp")
def _exp(z: Jet) -> Jet:
    h = torch.exp(z.value)
    return _chain(z, h, h, lambda: h)


@rule("pow")
def _pow(z: Jet, exponent: float) -> Jet:
    p, x = exponent, z.value
    if not isinstance(p, float | int):
        raise TypeError
    if p in (0, 1):  # zero times the pole of x ** -1 would be NaN at x = 0
        return z if p else _pair(z, x**0)[1]
    slope = 2 * x if p == 2 else p * x ** (p - 1)
    return _chain(z, x**p, slope, lambda: 2 if p == 2 else p * (p - 1) * x ** (p - 2))


@rule("square")
def _square(z: Jet) -> Jet:
    return _pow(z, 2)


@rule("linear")
def _linear(z: Jet, weight: Tensor, bias: Tensor | None = None) -> Jet:
    value = F.linear(z.value, weight, bias)
    return _each(lambda s: None if s is None else F.linear(s, weight), value, z)


@rule("matmul")
def _matmul(z: Jet, weight: Tensor) -> Jet:
    return _each(lambda s: None if s is None else s @ weight, z.value @ weight, z)


@rule("zeros_like")
def _zeros_like(z: Jet) -> Tensor:
    return torch.zeros_like(z.value)


@rule("ones_like")
def _ones_like(z: Jet) -> Tensor:
    return torch.ones_like(z.value)


def _moves(move: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for a function that only moves entries: derivatives move as the values do."""

    def moved(jets: Any, *args: Any, **kwargs: Any) -> Any:
        one = isinstance(jets, Jet)
        like = jets if one else next(jet for jet in jets if isinstance(jet, Jet))
        members = [jets] if one else [_pair(like, jet)[1] for jet in jets]

        def move_streams(*streams: Stream) -> Any:
            if all(s is None for s in streams):
                return None
            full = [
                torch.zeros_like(jet.value) if s is None else s.expand(jet.value.shape)
                for jet, s in zip(members, streams, strict=True)
            ]
            return move(full[0] if one else full, *args, **kwargs)

        def jet(value: Any, *streams: Any) -> Jet:
            return Jet(value, streams[: len(like.first)], streams[len(like.first) :], like.weights)

        parts = list(map(move_streams, *([z.value, *z.first, *z.second] for z in members)))
        if isinstance(parts[0], Tensor):
            return jet(*parts)
        pieces = range(len(parts[0]))  # of split, chunk, unbind
        return tuple(jet(*(None if p is None else p[i] for p in parts)) for i in pieces)

    return moved


rule("getitem")(_moves(operator.getitem))
for _name in ["cat", "stack", "split", "chunk", "unbind", "squeeze", "unsqueeze"]:
    rule(_name)(_moves(getattr(torch, _name)))
