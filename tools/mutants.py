"""One small change at a time: all mutants of a module's source, as tools/mutate.py runs them.

Changed are comparisons, arithmetic, conditions, numbers, keyword arguments, slices, returned
values, statements that act on something else, and calls that copy or convert. Left alone are
docstrings, error messages, annotations, type aliases, __all__, and zip's strict.
"""

import ast
import copy
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Located: TypeAlias = ast.expr | ast.stmt

COMPARED = {
    "Lt": ast.LtE, "LtE": ast.Lt, "Gt": ast.GtE, "GtE": ast.Gt, "Eq": ast.NotEq, "NotEq": ast.Eq,
    "Is": ast.IsNot, "IsNot": ast.Is, "In": ast.NotIn, "NotIn": ast.In,
}  # fmt: skip
COMPUTED = {
    "Add": ast.Sub, "Sub": ast.Add, "Mult": ast.Div, "Div": ast.Mult, "FloorDiv": ast.Div,
    "Mod": ast.Mult, "Pow": ast.Mult, "MatMult": ast.Mult, "BitOr": ast.BitAnd, "BitAnd": ast.BitOr,
}  # fmt: skip
PAIRS = [
    "min max",
    "amin amax",
    "argmin argmax",
    "minimum maximum",
    "any all",
    "sum mean",
    "sin cos",
]
PAIRS += ["zeros ones", "zeros_like ones_like", "floor ceil", "rand randn"]
TYPE = re.compile(r"_?[A-Z]+[a-z]\w*")
SWAPPED = {a: b for pair in map(str.split, PAIRS) for a, b in (pair, pair[::-1])}
DROPPED_METHODS = [
    "abs", "clamp", "clone", "contiguous", "copy", "cpu", "detach", "double", "exp", "expand",
    "flatten", "float", "log", "masked_fill", "reshape", "sqrt", "square", "squeeze", "strip", "to",
    "unsqueeze",
]  # fmt: skip
DROPPED_FUNCTIONS = ["copy", "deepcopy", "dict", "list", "sorted", "tuple"]


@dataclass(frozen=True)
class Mutant:
    """A module with one change."""

    line: int
    before: str
    after: str
    source: bytes


def reachable(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that may change."""
    match node:
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.keyword(arg="strict"):
            return
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Assign(targets=[ast.Name(id=name)]) if TYPE.fullmatch(name) or name == "__all__":
            return
    yield node
    negative_number = isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
    if negative_number or isinstance(node, ast.Raise):
        return
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "type_params"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from reachable(child)


def other(node: ast.AST, **fields: object) -> str:
    """The node's text with some fields changed, in parentheses where its place may need them."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    text = ast.unparse(changed)
    return text if isinstance(node, ast.stmt | ast.Call | ast.Name | ast.Attribute) else f"({text})"


def without(items: Sequence[object], i: int, *new: object) -> list[object]:
    """The items with the i-th left out, or replaced."""
    return [*items[:i], *new, *items[i + 1 :]]


def numbers(value: float) -> list[str]:
    """What a number is replaced by."""
    others = (value + 1, value - 1) if isinstance(value, int) else (2 * value or 1.0,)
    return [str(number) for number in others]


def changes(node: ast.AST) -> Iterator[tuple[Located, str]]:
    """What may be replaced at a node: a part of it, and the new text."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield node, other(node, ops=without(ops, i, COMPARED[type(op).__name__]()))
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op).__name__ in COMPUTED:
            yield node, other(node, op=COMPUTED[type(op).__name__]())
        case ast.BoolOp(op=op):
            yield node, other(node, op=ast.And() if isinstance(op, ast.Or) else ast.Or())
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            yield from ((node, number) for number in numbers(-value))
        case ast.UnaryOp(operand=operand):
            yield node, other(operand)
        case ast.Constant(value=bool() as value):
            yield node, str(not value)
        case ast.Constant(value=int() | float() as value):
            yield from ((node, number) for number in numbers(value))
        case ast.Slice(lower=lower, upper=upper):
            yield from ((bound, "") for bound in (lower, upper) if bound is not None)
        case ast.Call(func=func, args=args, keywords=keywords):
            for i, keyword in enumerate(keywords):
                if keyword.arg not in (None, "strict"):
                    yield node, other(node, keywords=without(keywords, i))
            match func:
                case ast.Name(id=name) | ast.Attribute(attr=name) if name in SWAPPED:
                    field = "id" if isinstance(func, ast.Name) else "attr"
                    yield func, other(func, **{field: SWAPPED[name]})
                case ast.Attribute(value=value, attr=name) if name in DROPPED_METHODS:
                    yield node, other(value)
                case ast.Name(id=name) if name in DROPPED_FUNCTIONS and len(args) == 1:
                    yield node, other(args[0])
        case ast.Return(value=ast.AST() as value) if ast.unparse(value) != "None":
            yield node, "return None"
        case ast.Expr(value=ast.Constant()):
            return  # a docstring, or an ellipsis
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield node, "pass"
        case ast.AnnAssign(target=ast.Attribute(), value=ast.AST()):
            yield node, "pass"
    if isinstance(node, ast.Expr | ast.AugAssign | ast.Raise | ast.Assert | ast.Delete):
        yield node, "pass"
    tests = node.ifs if isinstance(node, ast.comprehension) else [getattr(node, "test", None)]
    for test in tests:
        match test:
            case None | ast.UnaryOp() | ast.Compare(ops=[ast.Eq() | ast.NotEq() | ast.Is()]):
                continue  # nothing there, or the same as another change
            case ast.Compare(ops=[ast.IsNot() | ast.In() | ast.NotIn()]):
                continue
        yield test, f"(not ({ast.unparse(test)}))"


def mutants(source: bytes) -> list[Mutant]:
    """All mutants of a module, by line."""
    starts = [0, *(match.end() for match in re.finditer(rb"\n", source)), len(source)]
    found = set()
    for node in reachable(ast.parse(source)):
        for part, text in changes(node):
            end_line, end_column = part.end_lineno or 0, part.end_col_offset or 0
            start = starts[part.lineno - 1] + part.col_offset
            stop = starts[end_line - 1] + end_column
            mutated = source[:start] + text.encode() + source[stop:]
            first, last = starts[part.lineno - 1], starts[end_line]
            lines = source[first:last], mutated[first : last + len(mutated) - len(source)]
            before, after = (" ".join(line.decode().split()) for line in lines)
            found.add(Mutant(part.lineno, before, after, mutated))
    return sorted(found, key=lambda m: (m.line, m.before, m.after, m.source))


def draw(found: Sequence[Mutant], number: int, seed: str) -> list[Mutant]:
    """Some of the mutants at random, in their order."""
    indices = random.Random(seed).sample(range(len(found)), min(number, len(found)))
    return [found[i] for i in sorted(indices)]
