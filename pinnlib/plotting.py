"""The figures that several chapters share. The style is ``plt.style.use("pinnlib.book")``."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pinnlib.derivatives import Model
from pinnlib.problems import Problem

COLORS = {
    "plain": "#D55E00",
    "balanced": "#0072B2",
    "constant": "#009E73",
    "data": "#E69F00",
    "pde": "#56B4E9",
}
"""Colour of each method and of each loss term, the same in every chapter."""


def plot_solution(problem: Problem, model: Model, n: int = 100) -> Figure:
    """Draw exact solution, prediction and absolute error side by side, for two inputs.

    Exact solution and prediction share one colour scale, so that they can be compared; values of
    the prediction outside it are drawn in the end colours.

    Args:
        problem: gives the domain and the exact solution.
        model: maps points ``(N, 2)`` to values ``(N, 1)``.
        n: grid points along each input.

    >>> from pinnlib.problems import KleinGordon
    >>> figure = plot_solution(KleinGordon(), lambda x: 0 * x[:, :1], n=20)
    >>> [ax.get_title() for ax in figure.axes[:3]]
    ['exact $u$', 'prediction $u_θ$', 'error $|u_θ - u|$']
    """
    x = problem.grid(n)
    with torch.no_grad():
        exact, prediction = (f(x).reshape(n, n).T.cpu().numpy() for f in (problem.exact, model))
    error = np.abs(prediction - exact)
    limit = np.abs(exact).max()
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.5), sharey=True)
    extent = [bound for interval in problem.domain for bound in interval]
    panels: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        "exact $u$": (exact, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}),
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
        runs: a value for each seed and recorded step, ``(M, T)``; the band goes from the least to
            the greatest.
        label: the method's name in the legend.
        color: its colour, such as one of ``COLORS``; the next of the cycle by default.

    >>> _, ax = plt.subplots()
    >>> runs = [[6.0, 0.5], [7.0, 0.2], [5.0, 0.4]]
    >>> plot_runs(ax, [0, 100], runs, label="balanced", color=COLORS["balanced"])
    >>> ax.lines[0].get_ydata().tolist()
    [6.0, 0.4]
    """
    values = np.asarray(runs)
    (line,) = ax.plot(np.asarray(steps), np.median(values, axis=0), label=label, color=color)
    ax.fill_between(
        np.asarray(steps), values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2
    )
    ax.set_yscale("log")


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

    >>> generator = torch.Generator().manual_seed(0)
    >>> first, last = torch.randn(2, 2, 50, generator=generator)
    >>> snapshots = {0: {"first": first, "last": last}}
    >>> figure = plot_gradient_histograms(snapshots, ["data", "pde"])
    >>> [ax.get_title() for ax in figure.axes]
    ['first', 'last']
    """
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


class Film:
    """A moving picture that a notebook shows without a script.

    Who asks for reduced motion sees the last frame instead; everybody can fold the film to stop it.

    Args:
        figure: what moves; it is closed afterwards, so that it is not shown once more.
        draw: changes the figure, given the number of the frame.
        frames: number of frames.
        alt: what the film shows, for those who cannot see it.
        fps: frames per second.

    >>> figure, ax = plt.subplots(figsize=(2, 1))
    >>> (line,) = ax.plot([0, 1], [0, 1])
    >>> def draw(frame):
    ...     line.set_ydata([0, frame])
    >>> Film(figure, draw, frames=3, alt="A line that turns.")
    A line that turns.
    """

    def __init__(
        self, figure: Figure, draw: Callable[[int], None], frames: int, *, alt: str, fps: int = 5
    ) -> None:
        self.alt = alt
        with TemporaryDirectory() as folder:
            moving, still = Path(folder, "moving.webp"), Path(folder, "still.webp")
            FuncAnimation(figure, draw, frames).save(moving, PillowWriter(fps))
            figure.savefig(still)
            self.moving, self.still = moving.read_bytes(), still.read_bytes()
        plt.close(figure)

    def __repr__(self) -> str:
        return self.alt

    def _repr_html_(self) -> str:
        moving, still = (
            f"data:image/webp;base64,{b64encode(picture).decode()}"
            for picture in (self.moving, self.still)
        )
        return (
            "<details open><summary>Film (fold to stop it)</summary><picture>"
            f'<source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
            f'<img src="{moving}" alt="{html.escape(self.alt)}"></picture></details>'
        )
