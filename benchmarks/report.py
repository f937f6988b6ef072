"""From ``peers.json`` to ``results.md`` and the figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Results = dict[str, Any]

SHIPPED = Path(__file__).parent.parent / "pinnlib" / "results"
"""Results that a page shows: the package carries them."""


def compact(results: Results) -> str:
    """The results as JSON, each innermost list on a line of its own."""
    text = json.dumps(results, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), text) + "\n"


def read(path: Path) -> Results:
    """What a run before has left; nothing if there was none."""
    return json.loads(path.read_text()) if path.exists() else {}


def rounded(x: float) -> float:
    """Three digits are enough for a file of results."""
    return float(f"{x:.3g}")


def write(results: Results, folder: Path) -> None:
    """Write the tables and the figures of those parts that have been measured."""
    (folder / "results.md").write_text(markdown(results))
    draw(results["parts"], folder / "figures")


def markdown(results: Results) -> str:
    parts = results["parts"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    text = [
        "# Results",
        f"Measured on {results['machine']}, one core and one thread, float32, with {versions}. "
        "Written by `make benchmarks`; see the [README](README.md) for what is compared.",
    ]
    for name, section in SECTIONS.items():
        if name in parts:
            text.append(section(parts[name]) + f"\n\nMeasured on {parts[name]['date']}.")
    if missing := [name for name in SECTIONS if name not in parts]:
        text.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(text) + "\n"


def steps_table(part: Results) -> str:
    boundary, interior = part["points"].values()
    rows = [
        [
            name,
            number(row["ms"]),
            number(row["of_plain"]),
            number(row["of_ours"]),
            f"{max(row['errors'].values()):.0e}",
        ]
        for name, row in part["contestants"].items()
    ]
    head = ["step", "ms", "÷ plain, nested", "÷ balanced, compiled", "greatest check error"]
    return (
        f"## One Helmholtz step, {boundary} + {interior} points\n\n"
        f"Median of {part['rounds']} rounds, and the quartiles.\n\n{table(head, rows)}"
    )


def error_table(part: Results) -> str:
    rows = []
    for run in part["runs"]:
        weight = "balanced" if run["data_weight"] is None else f"{run['data_weight']:g}"
        columns = zip(*run["seconds"], strict=True)
        cells = [" / ".join(dashed(s, ".0f") for s in column) for column in columns]
        last = " / ".join(f"{e:.2g}" for e in run["last"])
        rows.append([run["contestant"], weight, *cells, last])
    targets = [f"s to error {target:g}" for target in part["targets"]]
    return (
        "## Seconds to a fixed error, Klein–Gordon\n\n"
        f"One number a seed; –: not within {part['budget']:g} s of training.\n\n"
        + table(["step", "data weight", *targets, "last error"], rows)
    )


def scaling_table(part: Results) -> str:
    rows = [
        [kind, *(number(ms) for ms in column), f"{part['slopes'][kind]:.2f}"]
        for kind, column in part["ms"].items()
    ]
    head = [f"ms a step, {part['label']} =", *map(str, part["x"]), "slope, last three"]
    return f"## Cost against {part['label']}\n\n{table(head, rows)}"


def memory_table(part: Results) -> str:
    rows = [
        [name, f"{row['mib']:.1f}", f"{row['of_plain']:.2f}"]
        for name, row in part["contestants"].items()
    ]
    boundary, interior = part["points"].values()
    return f"## Peak memory of one Helmholtz step, {boundary} + {interior} points\n\n" + table(
        ["step", "MiB", "÷ plain, nested"], rows
    )


def passes_table(part: Results) -> str:
    rows = [
        [
            str(run["terms"]),
            run["points"],
            run["derivatives"],
            number(run["passes_ms"]),
            number(run["batched_ms"]),
            number(run["batched_of_passes"]),
        ]
        for run in part["runs"]
    ]
    head = ["K", "terms", "derivatives", "K passes, ms", "one batched pass, ms", "batched ÷ passes"]
    return f"## The gradient matrix: K passes or one batched pass\n\n{table(head, rows)}"


def profile_table(part: Results) -> str:
    rows = [
        [
            name,
            *(f"{row[key]:.3g}" for key in ("operations", "products", "products_ms", "ms")),
            f"{row['products_ms'] / row['ms']:.0%}",
        ]
        for name, row in part["contestants"].items()
    ]
    boundary, interior = part["points"].values()
    head = ["step", "operations", "matrix products", "ms in these", "ms a step", "share"]
    return (
        f"## Where the time of a step goes, {boundary} + {interior} points\n\n"
        f"As PyTorch's profiler sees it, one contestant after another.\n\n{table(head, rows)}"
    )


def gpu(results: Results) -> str:
    """The tables of ``gpu.json``."""
    parity, rules = (
        [
            [kind, f"{found['weights']:.0e}", f"{found['parameters']:.0e}"]
            for kind, found in results[part].items()
        ]
        for part in ("parity", "rules")
    )
    columns = [name for name in results["ms"][0] if name not in ("networks", "points")]
    times = [
        [
            f"{row['networks']}",
            f"{row['points']:,}",
            *(dashed(row.get(name), ".3g") for name in columns),
        ]
        for row in results["ms"]
    ]
    return (
        "\n\n".join(
            [
                "# Results on a GPU",
                f"{results['device']}, PyTorch {results['torch']}, on {results['date']}. "
                "Written by `python -m benchmarks.gpu`; see the [README](README.md).",
                "## A hundred steps beside the CPU",
                "Greatest relative difference of the weights, and relative difference of the "
                "parameters. The first column says how the GPU ran; the CPU ran eagerly.",
                table(["step", "weights", "parameters"], parity),
                "The same for every rule, the worst of all ways to run a step, and for ten steps "
                "of each second-order optimizer, in double precision.",
                table(["rule or optimizer", "weights", "parameters"], rules),
                "## Milliseconds a step",
                "Networks of a stack, points a set of each, medians in single precision. The ratio "
                "is balanced ÷ plain, the median over rounds in turns.",
                table(["networks", "points", *columns], times),
            ]
        )
        + "\n"
    )


SECTIONS = {
    "small": steps_table,
    "large": steps_table,
    "fixed_error": error_table,
    "terms": scaling_table,
    "points": scaling_table,
    "parameters": scaling_table,
    "seeds": scaling_table,
    "memory": memory_table,
    "passes": passes_table,
    "profile": profile_table,
}


def dashed(value: float | None, form: str) -> str:
    """A number in a table, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def number(spread: list[float]) -> str:
    """Median (lower quartile – upper quartile)."""
    median, low, high = (f"{value:.3g}" for value in spread)
    return f"{median} ({low}–{high})"


def table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def draw(parts: Results, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.style.use("pinnlib.book")
    folder.mkdir(exist_ok=True)
    if "small" in parts and "large" in parts:
        draw_steps(plt, parts).savefig(folder / "steps.png", dpi=150)
    scaling = [parts[name] for name in ("terms", "points", "parameters", "seeds") if name in parts]
    if scaling:
        draw_scaling(plt, scaling).savefig(folder / "scaling.png", dpi=150)


def draw_steps(plt, parts: Results):
    from pinnlib.plotting import COLORS

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    for ax, size in zip(axes, ("small", "large"), strict=True):
        contestants = parts[size]["contestants"]
        for i, (name, row) in enumerate(contestants.items()):
            median, low, high = row["ms"]
            color = COLORS["balanced"] if name.startswith("balanced") else "#999999"
            ax.barh(i, median, xerr=[[median - low], [high - median]], color=color)
        ax.set_yticks(range(len(contestants)), contestants)
        boundary, interior = parts[size]["points"].values()
        ax.set(title=f"{boundary} + {interior} points", xlabel="milliseconds a step")
        ax.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    return figure


def draw_scaling(plt, scaling: list[Results]):
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    from pinnlib.plotting import COLORS

    figure, axes = plt.subplots(2, (len(scaling) + 1) // 2, figsize=(9, 7), squeeze=False)
    for ax, part in zip(axes.flat, scaling, strict=False):
        for kind, rows in part["ms"].items():
            ax.loglog(
                part["x"],
                [row[0] for row in rows],
                "s--" if kind.endswith(("compiled", "shared graph")) else "o-",
                color=COLORS["plain" if kind.startswith("plain") else "balanced"],
                label=f"{kind}: slope {part['slopes'][kind]:.2f}",
            )
        ax.set(xlabel=part["label"], ylabel="milliseconds a step")
        ax.set_xticks(part["x"], map(str, part["x"]))
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.minorticks_off()
        ax.legend(fontsize=8)
    return figure
