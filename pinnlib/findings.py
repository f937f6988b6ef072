"""How a diagnosis is told: findings in words, and tables as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import combinations
from textwrap import fill
from typing import NamedTuple

import torch
from torch import Tensor

__all__: list[str] = []  # for diagnosis

LOUD = 10.0
"""Beyond this ratio of two gradients, balance is worth a try."""
OFTEN = 0.25
"""In more than this share of batches, being outvoted is no accident."""
OPPOSED = -0.5
"""Below this cosine, weights alone settle nothing."""


class Table(NamedTuple):
    """What a table shows, already in words; the first column names the rows."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def middle(values: Tensor) -> Tensor:
    """Median over the batches, ``(B, …)`` to ``(…)``; nan where there is nothing."""
    median: Tensor = torch.nanquantile(values, 0.5, dim=0)
    return median


def number(x: float, form: str = ".3g") -> str:
    """A number of few digits, and a dash where there is none."""
    return "–" if x != x else format(x, form)


def in_words(
    terms: Sequence[str],
    weights: Tensor,
    losses: Tensor,
    norms: Tensor,
    cosines: Tensor,
    outvoted: Tensor,
) -> Iterator[str]:
    """What the measurements of a :class:`pinnlib.diagnosis.Diagnosis` say."""
    sizes = dict(zip(terms, (weights * middle(norms)).tolist(), strict=True))
    heard = {term: size for term, size in sizes.items() if size > 0}
    for term, norm in zip(terms, middle(norms).tolist(), strict=True):
        if norm == 0:
            yield (
                f"the gradient of {term!r} is zero: the term is met exactly, or nothing of it "
                "reaches the parameters, as from second derivatives of a ReLU"
            )
    by = " times its weight" if (weights != 1).any() else ""
    ratio = max(heard.values()) / min(heard.values()) if heard else 1.0
    if ratio > LOUD:
        loud, quiet = max(heard, key=heard.__getitem__), min(heard, key=heard.__getitem__)
        yield (
            f"the gradient of {loud!r}{by} is {ratio:.3g} times that of {quiet!r}, which has "
            "little say: balance them, as GradientBalancer.bounded does, or try constant weights"
        )
    often = [(t, share) for t, share in zip(terms, outvoted.tolist(), strict=True) if share > OFTEN]
    for term, share in often:
        yield (
            f"{term!r} is outvoted in {share:.0%} of the batches: a small step along the sum makes "
            "it worse"
        )
    angles = middle(cosines).tolist()
    opposed = [(j, k) for j, k in combinations(range(len(terms)), 2) if angles[j][k] < OPPOSED]
    for j, k in opposed:
        yield (
            f"{terms[j]!r} and {terms[k]!r} pull in opposite directions, with a cosine of "
            f"{angles[j][k]:.2f}, which no weight changes: see whether both can hold at once"
        )
    if len(heard) > 1 and ratio <= LOUD and not often and not opposed:
        yield (
            f"the gradients differ by a factor of {ratio:.3g} at most, and no term is often "
            "outvoted: here balance is not the problem, so look for another cause"
        )
    if len(losses) > 1 and (losses == losses[0]).all():
        yield "all batches gave the same losses: draw fresh points, or call this at other steps"


def as_text(tables: Iterable[Table], findings: Iterable[str]) -> str:
    """Aligned columns, and a line for each finding."""
    lines = []
    for title, heads, rows in tables:
        columns = list(zip(heads, *rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        lines.append(title)
        for first, *cells in (heads, *rows):
            padded = (cell.rjust(n) for cell, n in zip(cells, widths[1:], strict=True))
            lines.append("  ".join(["", first.ljust(widths[0]), *padded]))
    items = [fill(f, 80, initial_indent="  - ", subsequent_indent="    ") for f in findings]
    return "\n".join([*lines, "Findings", *items])


def as_html(tables: Iterable[Table], findings: Iterable[str]) -> str:
    """Tables with a caption and heads of rows and columns, and a list."""
    parts = []
    for title, heads, rows in tables:
        top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
        body = "".join(
            f'<tr><th scope="row">{escape(first)}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + "</tr>"
            for first, *cells in rows
        )
        parts.append(
            f"<table><caption>{escape(title)}</caption><thead><tr>{top}</tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )
    items = "".join(f"<li>{escape(finding)}</li>" for finding in findings)
    return "".join([*parts, f"<p>Findings</p><ul>{items}</ul>"])
