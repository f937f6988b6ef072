"""From ``accuracy.json`` to ``accuracy.md`` and its figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.accuracy_problems import TARGETS

FOLDER = Path(__file__).parent
OURS = ("balanced Adam", "SSBroyden", "GaussNewton")
MOST = 40
"""Rows of a history that are kept."""
PUBLISHED = {"Klein–Gordon": 2.2e-3, "Helmholtz": 5.8e-6}
"""The best errors of PINNs that were found in print; where from, the README says."""


def first_times(
    history: Sequence[tuple[float, float]], targets: Sequence[float]
) -> list[float | None]:
    """The seconds at which each target was met first; ``None`` where it was not."""
    return [next((t for t, value in history if value <= target), None) for target in targets]


def thinned(history: Sequence[Sequence[float]], most: int = MOST) -> list[list[float]]:
    """At most so many rows, the first and the last among them, evenly spread, to three digits."""
    chosen = np.unique(
        np.linspace(0, len(history) - 1, min(most, len(history))).round().astype(int)
    )
    return [[report.rounded(x) for x in history[i]] for i in chosen]


def seconds(times: Sequence[float | None]) -> str:
    """The median over the seeds, a dash where most did not arrive."""
    median = float(np.median([np.inf if t is None else t for t in times]))
    return f"{median:.3g}" if np.isfinite(median) else "–"


def spread(values: Sequence[float]) -> str:
    about = f" ({min(values):.0e}–{max(values):.0e})" if len(values) > 1 else ""
    return f"{np.median(values):.1e}{about}"


def section(title: str, methods: dict[str, Any]) -> str:
    """The table of a problem."""
    inverse = title == "oscillator"
    heads = ["s to 1 % of the stiffness"] if inverse else [f"s to {t:.0e}" for t in TARGETS[title]]
    heads = ["method", "runs", *heads, "error at the end"] + ["of the stiffness"] * inverse
    rows = []
    for name, runs in methods.items():
        found = list(runs.values())
        if not found:
            continue
        times = [seconds(column) for column in zip(*(r["reached"] for r in found), strict=True)]
        ends = [
            spread(column) for column in zip(*(r["history"][-1][1:] for r in found), strict=True)
        ]
        compiling = float(np.median([r["compiling"] for r in found]))
        weights = sorted({r["weight"] for r in found if name not in OURS})
        rows.append(
            [
                name,
                str(len(found)),
                *times,
                *ends,
                f"{compiling:.3g}" if compiling else "–",
                ", ".join(f"{w:g}" for w in weights) or "balanced",
            ]
        )
    best = f" Best published: {PUBLISHED[title]:g}." if title in PUBLISHED else ""
    return (
        f"## {title}\n\n"
        + report.table([*heads, "s compiling", "data weight"], rows)
        + (f"\n\n{best.strip()}" if best else "")
    )


def markdown(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    text = [
        "# Error against seconds",
        f"Measured on {found['machine']}, one core and one thread, with {versions}, until "
        f"{found['date']}. Written by `python -m benchmarks.accuracy`; see the "
        "[README](README.md) for who takes part. Seconds are the median over the runs; –: most of "
        "them did not arrive. Errors are median (least–greatest).",
        *(
            section(title, methods)
            for title, methods in found["runs"].items()
            if any(methods.values())
        ),
    ]
    return "\n\n".join(text) + "\n"


def write(found: dict[str, Any]) -> None:
    (FOLDER / "accuracy.md").write_text(markdown(found))
    draw(found["runs"])


def draw(runs: dict[str, Any]) -> None:
    """The errors against the seconds, a line a run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.style.use("pinnlib.book")
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.4))
    names = list(dict.fromkeys(name for methods in runs.values() for name in methods))
    for ax in axes.flat:
        ax.axis("off")
    for ax, (title, methods) in zip(axes.flat, runs.items(), strict=False):
        ax.axis("on")
        for name, found in methods.items():
            i = names.index(name)
            for run in found.values():
                t, error = np.array(run["history"])[:, :2].T
                style = "-" if name in OURS else "--"
                ax.loglog(t, error, style, color=f"C{i}", linewidth=1.2, label=name)
        if title in PUBLISHED:
            ax.axhline(PUBLISHED[title], color="0.5", linestyle=":")
        ax.set(title=title, xlabel="seconds, one core", xlim=(0.5, 310))
        ax.set_ylabel("relative $L_2$ error")
    lines = {line.get_label(): line for ax in axes.flat for line in ax.get_lines()}
    kept = {name: lines[name] for name in names if name in lines}
    axes.flat[-1].legend(kept.values(), kept.keys(), loc="center")
    figure.savefig(FOLDER / "figures" / "accuracy.png", dpi=150)
    plt.close(figure)
