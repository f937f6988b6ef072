"""The jet, and how torch's functions and Python's operators find its rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

Stream = Tensor | None
"""A derivative of a jet: it broadcasts to the jet's value; None is zero everywhere."""

RULES: dict[str, Callable[..., Any]] = {}
"""What a jet goes through, by the name that torch has for it; see :func:`rule`."""

# What depends on the value only.
READ = {"shape", "ndim", "dtype", "device", "layout", "is_cuda"}
READ |= {"dim", "size", "numel", "is_floating_point", "is_complex"}
READ |= {"new_tensor", "new_zeros", "new_ones", "new_full", "new_empty"}


class Jet:
    r"""A tensor z with its derivatives by each input, which torch's functions carry along.

    A jet goes through a model in place of the points. Each operation maps the value and, by the
    chain rule, the derivatives (:cite:t:`griewank2008`, chapter 13). For an elementwise f,

    .. math:: f(z)_{x_j} &= f'(z)\, z_{x_j}, \\
        f(z)_{x_j x_j} &= f'(z)\, z_{x_j x_j} + f''(z)\, z_{x_j}^2 .

    The second line is linear in the second derivatives, so that a weighted sum of them over the
    inputs can travel as one.

    Known are ``linear``, ``@`` with a tensor, ``+ - * /``, powers, ``square``, ``reciprocal``,
    ``tanh``, ``sin``, ``cos``, ``exp``, ``sigmoid``, ``silu``, and what only moves entries:
    indexing, ``cat``, ``stack``, ``split``, ``chunk``, ``unbind``, ``squeeze``, ``unsqueeze``.

    Args:
        value: z, ``(…, N, m)``.
        first: a derivative for each of the d inputs.
        second: a second derivative for each input, or their one weighted sum, or ``()``.
        weights: of that sum, a number for each input.

    Raises:
        ValueError: where a model applies any other function to a jet.

    >>> x = Jet.seed(torch.tensor([[2.0, 3.0]]))
    >>> u = x[..., :1] ** 2 * x[..., 1:]
    >>> u.value.item(), [s.item() for s in u.first], u.second[0].item()
    (12.0, [12.0, 4.0], 6.0)
    """

    __slots__ = ("first", "second", "value", "weights")
    __array_ufunc__ = None  # so that NumPy's arrays leave their operators to the jet
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        value: Tensor,
        first: Sequence[Stream],
        second: Sequence[Stream],
        weights: Sequence[float] | None = None,
    ) -> None:
        self.value, self.first, self.second = value, first, second
        self.weights = weights

    @classmethod
    def seed(cls, x: Tensor, order: int = 2, weights: Sequence[float] | None = None) -> Jet:
        """The points as a jet: their derivatives are unit vectors, the second ones zero.

        Args:
            x: points, ``(…, N, d)``.
            order: 2, or 1 to leave out the second derivatives.
            weights: a number for each input: the derivatives of this order travel as one weighted
                sum.
        """
        d = x.shape[-1]
        units = torch.eye(d, dtype=x.dtype, device=x.device).split(1)
        if order == 1:
            if weights is not None:
                units = (sum(a * unit for a, unit in zip(weights, units, strict=True)),)
            return cls(x, units, ())
        return cls(x, units, [None] * (d if weights is None else 1), weights)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", type(func).__name__)
        name = name.removeprefix("__").removesuffix("__")
        if name not in RULES:
            raise unknown(name)
        return RULES[name](*args, **kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name in READ:
            return getattr(self.value, name)
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"a jet has no attribute {name!r}")
        if name not in RULES:
            raise unknown(name)
        return partial(RULES[name], self)

    def __len__(self) -> int:
        return len(self.value)


def _operator(name: str, reflected: bool = False) -> Callable[..., Any]:
    def apply(*args: Any) -> Any:
        if name not in RULES:
            raise unknown(name)
        return RULES[name](*(reversed(args) if reflected else args))

    return apply


# Those without a rule are refused: Python would fall back to comparing identities, or to a new
# jet where a tensor changes in place.
_BINARY = ["add", "sub", "mul", "truediv", "pow", "matmul"]
for _name in [*_BINARY, "floordiv", "mod", "neg", "abs", "getitem", "setitem", "contains"]:
    setattr(Jet, f"__{_name}__", _operator(_name))
for _name in _BINARY:
    setattr(Jet, f"__r{_name}__", _operator(_name, reflected=True))
for _name in ["eq", "ne", "lt", "le", "gt", "ge", "bool", "float", "iter"]:
    setattr(Jet, f"__{_name}__", _operator(_name))
for _name in _BINARY:
    setattr(Jet, f"__i{_name}__", _operator(f"i{_name}"))


def unknown(name: str) -> ValueError:
    """The error for what has no rule."""
    return ValueError(
        f"taylor does not know how to differentiate {name!r} as this model uses it: use nested"
    )


Rule = TypeVar("Rule", bound=Callable[..., Any])


def rule(*names: str, pair: bool = False) -> Callable[[Rule], Rule]:
    """Enter a function of a jet as the rule for torch's functions of these names.

    Args:
        names: of functions of torch, the same for a method and an operator.
        pair: whether either of the first two arguments may be the jet, or else only the first.
    """

    def enter(function: Rule) -> Rule:
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                first, *rest = [*args, *kwargs.values()]
                # A jet as the weight, the exponent or an index is another function.
                if not pair and (isinstance(first, Tensor) or any(type(a) is Jet for a in rest)):
                    raise TypeError
                return function(*args, **kwargs)
            except TypeError as error:
                raise unknown(names[0]) from error

        RULES.update(dict.fromkeys(names, checked))
        return function

    return enter
