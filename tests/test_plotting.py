from base64 import b64encode
from io import BytesIO
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import module, seeded
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from PIL import Image

from pinnlib.film import Film
from pinnlib.networks import MLP
from pinnlib.plotting import (
    COLORS,
    plot_dots,
    plot_gradient_histograms,
    plot_runs,
    plot_solution,
)
from pinnlib.problems import Helmholtz, KleinGordon, Table

pytestmark = pytest.mark.usefixtures("nothing_hidden", "no_figure_left")


@pytest.fixture
def no_figure_left():
    yield
    plt.close("all")


# plot_solution


@pytest.mark.parametrize("problem", [KleinGordon(), Helmholtz()])
def test_plot_solution_shows_exact_solution_prediction_and_error(problem):
    def model(x):
        return 2 * x[:, :1] - 3 * x[:, 1:]

    n = 6
    figure = plot_solution(problem, model, n=n)
    panels, bars = figure.axes[:3], figure.axes[3:]
    assert len(bars) == 3
    (x_low, x_high), (y_low, y_high) = problem.domain
    # Row i of a picture is the i-th value of the second input, from the bottom upwards.
    y, x = np.meshgrid(np.linspace(y_low, y_high, n), np.linspace(x_low, x_high, n), indexing="ij")
    points = torch.tensor(np.stack([x, y], axis=-1).reshape(-1, 2))
    exact = problem.exact(points).numpy().reshape(n, n)
    prediction = 2 * x - 3 * y
    images = [ax.images[0] for ax in panels]
    for image, values in zip(images, [exact, prediction, abs(prediction - exact)], strict=True):
        np.testing.assert_allclose(image.get_array(), values, atol=1e-5)
        assert image.get_extent() == [x_low, x_high, y_low, y_high]
        assert image.origin == "lower"
    limit = abs(exact).max()
    assert images[0].get_clim() == images[1].get_clim() == pytest.approx((-limit, limit), rel=1e-5)
    assert images[2].get_clim() == pytest.approx((0, abs(prediction - exact).max()), rel=1e-5)


def test_plot_solution_labels():
    figure = plot_solution(KleinGordon(), KleinGordon().exact)
    panels = figure.axes[:3]
    titles = ["reference $u$", "prediction $u_θ$", "error $|u_θ - u|$"]
    assert [ax.get_title() for ax in panels] == titles
    assert [ax.get_xlabel() for ax in panels] == ["$x$"] * 3
    assert [ax.get_ylabel() for ax in panels] == ["$t$", "", ""]
    assert panels[0].images[0].get_array().shape == (100, 100)


def test_plot_solution_takes_a_network():
    model = MLP(KleinGordon.domain, generator=seeded())
    figure = plot_solution(KleinGordon(), model, n=3)
    expected = model(torch.tensor([[0.0, 1.0]])).item()
    assert figure.axes[1].images[0].get_array()[2, 0] == pytest.approx(expected, rel=1e-5)
    figure.canvas.draw()


def test_plot_solution_has_a_colour_bar_beside_each_map_and_no_grid():
    figure = plot_solution(KleinGordon(), KleinGordon().exact, n=3)
    panels, bars = figure.axes[:3], figure.axes[3:]
    assert [ax.images[0].colorbar.ax for ax in panels] == bars
    assert figure.get_size_inches().tolist() == [7, 2.5]
    figure.canvas.draw()
    for ax, bar in zip(panels, bars, strict=True):
        assert not any(line.get_visible() for line in ax.get_xgridlines() + ax.get_ygridlines())
        # Each bar took its room from its own map, so it stands between this one and the next.
        assert ax.get_position().x1 < bar.get_position().x0
    for bar, ax in zip(bars, panels[1:], strict=False):
        assert bar.get_position().x1 < ax.get_position().x0


def test_plot_solution_of_a_table_and_of_the_model_in_its_own_precision():
    table = Table([(0, 1), (0, 1)], [[1.0, 1.0], [3.0, 3.0]])
    model = module(lambda x: table(x) + 1e-10, torch.float64)
    figure = plot_solution(KleinGordon(reference=table), model, n=3)
    reference, _, error = (ax.images[0].get_array() for ax in figure.axes[:3])
    np.testing.assert_allclose(reference, [[1.0, 2.0, 3.0]] * 3)
    np.testing.assert_allclose(error, np.full((3, 3), 1e-10), rtol=1e-4)


def test_plot_solution_takes_a_network_of_half_precision():
    figure = plot_solution(KleinGordon(), module(lambda x: x[:, :1], torch.bfloat16), n=3)
    prediction = figure.axes[1].images[0].get_array()
    np.testing.assert_array_equal(prediction, [[0.0, 0.5, 1.0]] * 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_plot_solution_leaves_gaps(bad):
    figure = plot_solution(KleinGordon(), lambda x: torch.where(x[:, :1] < 1, 0.5, bad), n=3)
    _, prediction, error = (ax.images[0] for ax in figure.axes[:3])
    for image in (prediction, error):
        assert image.get_array().mask.tolist() == [[False, False, True]] * 3
    assert np.isfinite(error.get_clim()).all()
    figure.canvas.draw()


def test_plot_solution_draws_a_reference_of_zeros():
    figure = plot_solution(KleinGordon(reference=lambda x: 0 * x[:, :1]), lambda x: x[:, :1], n=3)
    assert not figure.axes[0].images[0].get_array().any()
    figure.canvas.draw()


class Segment(KleinGordon):
    variables, domain = ("x",), ((0.0, 1.0),)


class Open(KleinGordon):
    reference = None


def one(x):
    return torch.ones_like(x[:, :1])


@pytest.mark.parametrize(
    ("problem", "model", "message"),
    [
        (Segment(), one, "the problem has 1 inputs: maps are drawn for 2"),
        (Open(), one, "Open has no reference solution"),
        (KleinGordon(reference=torch.sin), one, r"reference has shape \(9, 2\): .* of one output"),
        (KleinGordon(reference=lambda x: x[:, 0]), one, r"reference maps \(9, 2\) to \(9,\)"),
        (KleinGordon(), lambda x: x[:, 0], r"model maps \(9, 2\) to \(9,\): let it return"),
        (KleinGordon(), lambda x: x, "model has 2 outputs, but the reference has 1"),
        (KleinGordon(), lambda x: torch.ones(5, 9, 1), r"shape \(5, 9, 1\): pass one network, not"),
        (KleinGordon(), lambda x: one(x) * float("nan"), "no value .* is finite, such as nan"),
    ],
)
def test_plot_solution_refuses(problem, model, message):
    with pytest.raises(ValueError, match=message):
        plot_solution(problem, model, n=3)
    assert plt.get_fignums() == []


# plot_runs


@given(exponent=st.integers(-12, 12))
def test_plot_runs_draws_median_and_band_over_scales(exponent):
    size = 10.0**exponent
    runs = size * np.array([[1.0, 5.0], [3.0, 4.0], [100.0, 2.0]])
    _, ax = plt.subplots()
    plot_runs(ax, [10, 20], runs, label="ours")
    (line,), (band,) = ax.lines, ax.collections
    np.testing.assert_allclose(line.get_xydata(), [[10, 3 * size], [20, 4 * size]])
    corners = {(x, y / size) for x, y in band.get_paths()[0].vertices}
    assert {x for x, _ in corners} == {10.0, 20.0}
    for x, low, high in ((10, 1, 100), (20, 2, 5)):
        heights = [y for at, y in corners if at == x]
        assert (min(heights), max(heights)) == pytest.approx((low, high))
    assert ax.get_yscale() == "log"
    assert ax.get_legend_handles_labels()[1] == ["ours"]
    plt.close()


def test_plot_runs_colours():
    _, ax = plt.subplots()
    plot_runs(ax, [1, 2], [[1.0, 2.0]], label="a", color=COLORS["plain"])
    plot_runs(ax, [1, 2], [[1.0, 2.0]], label="b")
    plot_runs(ax, [1, 2], [[1.0, 2.0]], label="c")
    colors = [line.get_color() for line in ax.lines]
    assert colors[0] == COLORS["plain"]
    assert len(set(colors)) == 3
    for color, band in zip(colors, ax.collections, strict=True):
        assert tuple(band.get_facecolor()[0]) == to_rgba(color, 0.2)


def test_plot_runs_draws_one_run():
    _, ax = plt.subplots()
    plot_runs(ax, [1, 2, 3], [3.0, 2.0, 1.0], label="one")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 3], [2, 2], [3, 1]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_plot_runs_leaves_out_what_is_not_finite(bad):
    figure, ax = plt.subplots()
    runs = [[1.0, 4.0, bad, 2.0], [3.0, bad, bad, 2.0], [5.0, 6.0, bad, 8.0]]
    plot_runs(ax, [0, 1, 2, 3], runs, label="ours")
    drawn = ax.lines[0].get_ydata()
    assert np.ma.filled(drawn, -1.0).tolist() == [3.0, 5.0, -1.0, 2.0]
    corners = {tuple(v) for path in ax.collections[0].get_paths() for v in path.vertices}
    assert {(0.0, 1.0), (0.0, 5.0), (1.0, 4.0), (1.0, 6.0), (3.0, 2.0), (3.0, 8.0)} == corners
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("runs", "shape"),
    [
        ([[1.0, 2.0, 3.0]], r"\(1, 3\)"),
        ([[1.0], [2.0]], r"\(2, 1\)"),
        ([[[1.0, 2.0]]], r"\(1, 1, 2\)"),
        (1.0, r"\(\)"),
    ],
)
def test_plot_runs_refuses_another_number_of_steps(runs, shape):
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match=f"runs has shape {shape} for 2 steps: pass"):
        plot_runs(ax, [0, 1], runs, label="ours")
    assert not ax.lines


def test_colours_are_those_of_the_chapters():
    rules = ["bounded", "simplified", "preprint", "journal", "jaxpi"]
    assert list(COLORS) == ["plain", "balanced", "constant", *rules, "data", "pde"]
    assert COLORS["simplified"] == COLORS["balanced"]  # one rule, called so in Part I
    assert len(set(COLORS.values())) == len(COLORS) - 1


# plot_gradient_histograms


def snapshot(sizes):
    return {"layers.0": torch.tensor(sizes), "layers.1": torch.tensor([[1.0, 1e-3], [0.0, 0.0]])}


def histogram(patch):
    """Bins' left edges, heights and width of a filled step histogram, empty bins left out."""
    (x, y), edges = patch.get_xy().T, np.unique(patch.get_xy()[:, 0])
    heights = {
        round(left, 6): y[:-1][np.isclose(x[:-1], left) & np.isclose(x[1:], right)].max()
        for left, right in pairwise(edges)
    }
    return {left: height for left, height in heights.items() if height > 0}


def test_histograms_show_the_logarithms_of_sizes():
    first = snapshot([[1.0, -1.0, 0.0, 150.0], [1e-3, 1e-3, -1e-3, 1e-3]])
    figure = plot_gradient_histograms({0: first, 500: first}, ["data", "pde"])
    axes = np.array(figure.axes).reshape(2, 2)
    assert [ax.get_title() for ax in axes[0]] == ["layers.0", "layers.1"]
    assert [row[0].get_ylabel() for row in axes] == ["step 0", "step 500"]
    assert figure.get_supxlabel() == r"$\log_{10}|\partial \mathcal{L}_k/\partial \theta_i|$"
    assert [text.get_text() for text in figure.legends[0].texts] == ["data", "pde"]
    for row in axes:
        data, pde = row[0].patches
        assert histogram(data) == pytest.approx(
            {0.0: 10 / 3, 2.0: 5 / 3}, rel=1e-4
        )  # zeros left out
        assert histogram(pde) == pytest.approx({-3.0: 5.0}, rel=1e-4)
        data, pde = row[1].patches
        assert histogram(data) == pytest.approx({-3.0: 2.5, 0.0: 2.5}, rel=1e-4)
        assert histogram(pde) == {}  # a term that does not use this layer
        for patch, term in ((data, "data"), (pde, "pde")):
            assert patch.get_facecolor() == to_rgba(COLORS[term], 0.6)
    figure.canvas.draw()
    data, pde = (text.get_window_extent() for text in figure.legends[0].texts)
    assert data.x1 < pde.x0  # side by side


def test_histograms_show_each_step_with_its_own_values():
    snapshots = {1: {"w": torch.tensor([[1.0], [10.0]])}, 2: {"w": torch.tensor([[100.0], [1.0]])}}
    figure = plot_gradient_histograms(snapshots, ["data", "edge"])
    places = [[list(histogram(patch)) for patch in ax.patches] for ax in figure.axes]
    assert places == [[[0.0], [1.0]], [[2.0], [0.0]]]


def test_histograms_of_nothing_but_zeros():
    figure = plot_gradient_histograms({0: {"w": torch.zeros(2, 3)}}, ["data", "pde"])
    assert [histogram(patch) for patch in figure.axes[0].patches] == [{}, {}]
    figure.canvas.draw()


def test_histograms_of_one_entry_have_an_area():
    figure = plot_gradient_histograms({0: {"w": torch.tensor([[10.0, 0.0]])}}, ["data"])
    (patch,) = figure.axes[0].patches
    assert histogram(patch) == pytest.approx({1.0: 5.0})


def test_histograms_have_room_for_each_layer_and_step_and_no_heights():
    view = {name: torch.ones(1, 2) for name in ("a", "b", "c")}
    figure = plot_gradient_histograms({0: view, 1: view}, ["data"])
    assert figure.get_size_inches() == pytest.approx([3 * 1.75, 2 * 1.4])
    assert not any(ax.get_yticks().size for ax in figure.axes)
    figure.axes[0].set_xlim(-7, 7)
    assert {ax.get_xlim() for ax in figure.axes} == {(-7, 7)}  # so that layers can be compared


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("snapshots", "message"),
    [
        ({}, "snapshots is empty: pass the layers' columns of one step or more"),
        ({0: {"w": ONES}, 5: {"v": ONES}}, r"step 5 has layers \['v'\]: pass \['w'\] at"),
        (
            {0: {"w": torch.ones(3, 3)}},
            r"'w' at step 0 has shape \(3, 3\) for 2 terms: pass \(K, p",
        ),
        ({0: {"w": torch.ones(2)}}, r"layer 'w' at step 0 has shape \(2,\) for 2 terms"),
        ({0: {"w": ONES}, 5: {"w": ONES / 0}}, "layer 'w' at step 5 has entries that are not fin"),
        ({0: {"w": ONES * float("nan")}}, "layer 'w' at step 0 has entries that are not finite"),
    ],
)
def test_histograms_refuse(snapshots, message):
    with pytest.raises(ValueError, match=message):
        plot_gradient_histograms(snapshots, ["data", "pde"])
    assert plt.get_fignums() == []


# Film


def test_film_moves_and_its_still_is_the_last_frame():
    figure = plt.figure(figsize=(1, 0.5), dpi=100)
    grey = np.linspace(0.2, 1, 4)
    film = Film(figure, lambda i: figure.set_facecolor(str(grey[i])), 4, alt='<"grey">', fps=7)
    assert plt.get_fignums() == []
    with Image.open(BytesIO(film.moving)) as moving, Image.open(BytesIO(film.still)) as still:
        assert (moving.size, moving.n_frames, still.n_frames) == ((100, 50), 4, 1)
        for i in range(4):
            moving.seek(i)
            level = np.asarray(moving.convert("L"))
            assert level == pytest.approx(255 * grey[i], abs=4)
            assert (moving.info["duration"], moving.info["loop"]) == (142, 0)  # without end
        assert np.asarray(still.convert("L")) == pytest.approx(255, abs=4)
    moving, still = (b64encode(picture).decode() for picture in (film.moving, film.still))
    assert film._repr_html_() == (
        "<details open><summary>Film (fold to stop it)</summary>"
        '<picture><source media="(prefers-reduced-motion: reduce)" '
        f'srcset="data:image/webp;base64,{still}">'
        f'<img src="data:image/webp;base64,{moving}" alt="&lt;&quot;grey&quot;&gt;">'
        "</picture></details>"
    )
    assert repr(film) == '<"grey">'


@pytest.mark.parametrize(("frames", "fps"), [(0, 5), (-1, 5), (3, 0)])
def test_film_refuses_nothing_to_show(frames, fps):
    name, count = ("fps", fps) if frames > 0 else ("frames", frames)
    with pytest.raises(ValueError, match=f"{name} is {count}: use 1 or more"):
        Film(plt.figure(), print, frames, alt="nothing", fps=fps)


def test_film_closes_its_figure_when_drawing_fails():
    def draw(frame):
        raise OSError(f"no frame {frame}")

    with pytest.raises(OSError, match="no frame 0"):
        Film(plt.figure(figsize=(1, 1)), draw, 3, alt="nothing")
    assert plt.get_fignums() == []


def test_film_draws_each_frame_once_and_shows_five_a_second_by_default():
    frames = []

    def draw(frame):
        frames.append(frame)
        figure.set_facecolor(str(frame))

    figure = plt.figure(figsize=(1, 1))
    film = Film(figure, draw, 2, alt="from black to white")
    assert frames == [0, 1]
    with Image.open(BytesIO(film.moving)) as moving:
        moving.load()
        assert moving.info["duration"] == 200


def test_film_has_frames_of_one_size_whatever_the_style():
    figure, ax = plt.subplots(figsize=(1, 1))
    with plt.rc_context({"savefig.bbox": "tight"}):
        film = Film(figure, lambda i: ax.set_title("A long title" * i), 2, alt="A title grows.")
    with Image.open(BytesIO(film.moving)) as moving:
        assert moving.size == (100, 100)


def test_film_lays_its_figure_out_once_so_that_nothing_jumps():
    figure, ax = plt.subplots(figsize=(2, 2), layout="constrained")
    places = []

    def draw(frame):
        places.append(ax.get_position().bounds)
        ax.set_title("\n" * frame)

    Film(figure, draw, 3, alt="A title grows.")
    assert places[0] != places[1] == places[2]


def test_film_may_have_one_frame_a_second_and_no_more():
    film = Film(plt.figure(figsize=(1, 1)), str, 1, alt="a still", fps=1)
    with Image.open(BytesIO(film.moving)) as moving:
        assert moving.n_frames == 1


# Dots


def test_dots_have_a_row_a_method_and_a_stroke_at_the_median():
    _, ax = plt.subplots()
    plot_dots(ax, {"bounded": [0.1, 0.4, 0.2], "other": 3.0})
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines]
    assert drawn == [([0.1, 0.4, 0.2], [0] * 3), ([0.2], [0]), ([3.0], [1]), ([3.0], [1])]
    assert [line.get_color() for line in ax.lines] == [COLORS["bounded"]] * 2 + ["#555555"] * 2
    assert [line.get_marker() for line in ax.lines] == ["o", "|"] * 2
    assert [label.get_text() for label in ax.get_yticklabels()] == ["bounded", "other"]
    assert {tick.get_markersize() for tick in ax.get_yticklines()} == {0}
    assert ax.get_xscale() == "log"
    assert ax.get_ylim() == (1.5, -0.5)  # the first on top
