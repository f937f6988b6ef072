"""The figures that several chapters share. The style is ``plt.style.use("pinnlib.book")``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.evaluation import placement, predict, reference_values
from pinnlib.problems import Problem

COLORS = {
    "plain": "#D55E00",
    "balanced": "#0072B2",
    "constant": "#009E73",
    "bounded": "#007A5A",
    "simplified": "#0072B2",
    "preprint": "#AA3377",
    "journal": "#000000",
    "jaxpi": "#777777",
    "data": "#E69F00",
    "pde": "#56B4E9",
}
"""Colour of each method, rule and loss term, the same in every chapter."""


def plot_solution(problem: Problem, model: Model, n: int = 100) -> Figure:
    """Draw reference solution, prediction and absolute error side by side, for two inputs.

    Reference and prediction share one colour scale, so that they can be compared; values of the
    prediction outside it are drawn in the end colours, and where it is not finite there are gaps.

    Args:
        problem: gives the domain and the reference solution.
        model: maps points ``(N, 2)`` to values ``(N, 1)``.
        n: grid points along each input.

    Raises:
        ValueError: if the problem has no reference, other than 2 inputs or 1 output, or no value
            of the prediction is finite.

    >>> from pinnlib.problems import KleinGordon
    >>> figure = plot_solution(KleinGordon(), lambda x: 0 * x[:, :1], n=20)
    >>> [ax.get_title() for ax in figure.axes[:3]]
    ['reference $u$', 'prediction $u_θ$', 'error $|u_θ - u|$']
    """
    if len(problem.domain) != 2:
        raise ValueError(f"the problem has {len(problem.domain)} inputs: maps are drawn for 2")
    x = problem.grid(n, **placement(model))
    u = reference_values(problem, x)
    if u.shape != (len(x), 1):
        raise ValueError(f"the reference has shape {tuple(u.shape)}: maps are drawn of one output")
    with torch.no_grad():
        u_model = predict(model, x, 1, hidden=0)
    if u_model.ndim != 2:
        raise ValueError(
            f"the prediction has shape {tuple(u_model.shape)}: pass one network, not a stack"
        )
    exact, prediction = (v.cpu().to(u.dtype).reshape(n, n).T.numpy() for v in (u, u_model))
    if not np.isfinite(prediction).any():
        raise ValueError(f"no value of the prediction is finite, such as {prediction[0, 0]}")
    error = np.abs(prediction - exact)
    limit = np.abs(exact).max()
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.5), sharey=True)
    extent = [bound for interval in problem.domain for bound in interval]
    panels: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        "reference $u$": (exact, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}),
        "prediction $u_θ$": (prediction, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}),
        "error $|u_θ - u|$": (error, {"cmap": "viridis", "vmin": 0}),
    }
    for ax, (title, (values, style)) in zip(axes, panels.items(), strict=True):
        image = ax.imshow(values, extent=extent, origin="lower", aspect="auto", **style)
        ax.set(title=title, xlabel=f"${problem.variables[0]}$")
        ax.grid(False)
        figure.colorbar(image, ax=ax)
    axes[0].set_ylabel(f"${problem.variables[1]}$")
    return figure


def plot_runs(
    ax: Axes, steps: ArrayLike, runs: ArrayLike, *, label: str, color: str | None = None
) -> None:
    """Draw several runs of one method on a logarithmic axis: their median, their spread as a band.

    Args:
        ax: where to draw.
        steps: recorded steps, ``(T,)``.
        runs: a value for each seed and recorded step, ``(M, T)``, or ``(T,)`` for one run; the
            band goes from the least to the greatest. What is not finite is left out, so where a
            run diverged, the rest is drawn.
        label: the method's name in the legend.
        color: its colour, such as one of ``COLORS``; the next of the cycle by default.

    Raises:
        ValueError: if ``runs`` does not have a value for each step.

    >>> _, ax = plt.subplots()
    >>> runs = [[6.0, 0.5], [7.0, 0.2], [5.0, 0.4]]
    >>> plot_runs(ax, [0, 100], runs, label="balanced", color=COLORS["balanced"])
    >>> ax.lines[0].get_ydata().tolist()
    [6.0, 0.4]
    """
    steps, values = np.asarray(steps), np.ma.masked_invalid(np.atleast_2d(runs))
    if values.ndim != 2 or values.shape[1:] != steps.shape:
        raise ValueError(
            f"runs has shape {np.shape(runs)} for {steps.size} steps: pass (M, T), a row a run"
        )
    median = np.ma.median(values, axis=0)  # type: ignore[no-untyped-call]
    (line,) = ax.plot(steps, median, label=label, color=color)
    band = values.min(axis=0), values.max(axis=0)
    ax.fill_between(steps, *band, color=line.get_color(), alpha=0.2)
    ax.set_yscale("log")


def plot_dots(ax: Axes, values: Mapping[str, ArrayLike]) -> None:
    """Draw a row for each method, the first on top: a dot a value, a stroke at their median.

    Args:
        ax: where to draw; its horizontal axis becomes logarithmic.
        values: for each method, one value or more, such as the errors of its seeds. A name in
            ``COLORS`` has its colour, any other is grey.

    >>> _, ax = plt.subplots()
    >>> plot_dots(ax, {"plain": [6.0, 7.0, 5.0], "bounded": [0.1, 0.2, 0.1]})
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['plain', 'bounded']
    """
    for y, (name, dots) in enumerate(values.items()):
        dots, color = np.atleast_1d(dots), COLORS.get(name, "#555555")
        ax.plot(dots, [y] * len(dots), "o", color=color, alpha=0.7)
        ax.plot([np.median(dots)], [y], "|", color=color, markersize=18, markeredgewidth=3)
    ax.set_yticks(range(len(values)), list(values))
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(len(values) - 0.5, -0.5), xscale="log")


def plot_gradient_histograms(
    snapshots: Mapping[int, Mapping[str, Tensor]], terms: Sequence[str]
) -> Figure:
    """Draw the sizes of gradient entries: one row a step, one column a layer, one shape a term.

    Shapes have the same area and share their bins, a fifth of a decade wide; heights can be
    compared within a panel only.

    Args:
        snapshots: for each training step, the layers' columns of the gradient matrix, ``(K, p)``,
            as :func:`pinnlib.gradients.layer_view` gives them. Entries that are exactly zero have
            no logarithm and are left out.
        terms: names of the K rows.

    Raises:
        ValueError: if there is no snapshot, their layers differ, a layer does not have a row for
            each term, or an entry is not finite.

    >>> generator = torch.Generator().manual_seed(0)
    >>> first, last = torch.randn(2, 2, 50, generator=generator)
    >>> snapshots = {0: {"first": first, "last": last}}
    >>> figure = plot_gradient_histograms(snapshots, ["data", "pde"])
    >>> [ax.get_title() for ax in figure.axes]
    ['first', 'last']
    """
    _check_snapshots(snapshots, terms)
    layers = list(next(iter(snapshots.values())))
    figure, axes = plt.subplots(
        len(snapshots),
        len(layers),
        figsize=(1.75 * len(layers), 1.4 * len(snapshots)),
        sharex=True,
        squeeze=False,
    )
    logs = {
        (step, layer, term): sizes[sizes > 0].log10().cpu().numpy()
        for step, view in snapshots.items()
        for layer, columns in view.items()
        for term, sizes in zip(terms, columns.abs(), strict=True)
    }
    every = np.concatenate([*logs.values()])
    low, high = (every.min(), every.max()) if len(every) else (0.0, 0.0)
    decades = round(np.floor(high) + 1 - np.floor(low))
    bins = np.linspace(np.floor(low), np.floor(high) + 1, 5 * decades + 1)
    for row, step in zip(axes, snapshots, strict=True):
        for ax, layer in zip(row, layers, strict=True):
            for term in terms:
                values = logs[step, layer, term]
                ax.hist(
                    values,
                    bins=bins,
                    density=len(values) > 0,  # a term that does not use this layer has no density
                    histtype="stepfilled",
                    alpha=0.6,
                    label=term,
                    color=COLORS.get(term),
                )
            ax.set_yticks([])
        row[0].set_ylabel(f"step {step}")
    for ax, layer in zip(axes[0], layers, strict=True):
        ax.set_title(layer)
    figure.supxlabel(r"$\log_{10}|\partial \mathcal{L}_k/\partial \theta_i|$", fontsize="medium")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _check_snapshots(snapshots: Mapping[int, Mapping[str, Tensor]], terms: Sequence[str]) -> None:
    if not snapshots:
        raise ValueError("snapshots is empty: pass the layers' columns of one step or more")
    layers = list(next(iter(snapshots.values())))
    for step, view in snapshots.items():
        if list(view) != layers:
            raise ValueError(f"step {step} has layers {list(view)}: pass {layers} at each step")
        for layer, columns in view.items():
            if columns.ndim != 2 or len(columns) != len(terms):
                raise ValueError(
                    f"layer {layer!r} at step {step} has shape {tuple(columns.shape)} for "
                    f"{len(terms)} terms: pass (K, p), a row a term"
                )
            if not columns.isfinite().all():
                raise ValueError(
                    f"layer {layer!r} at step {step} has entries that are not finite: "
                    "leave the step out"
                )
