from io import BytesIO
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from PIL import Image

from pinnlib.networks import MLP
from pinnlib.plotting import COLORS, Film, plot_gradient_histograms, plot_runs, plot_solution
from pinnlib.problems import Helmholtz, KleinGordon

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
    titles = ["exact $u$", "prediction $u_θ$", "error $|u_θ - u|$"]
    assert [ax.get_title() for ax in panels] == titles
    assert [ax.get_xlabel() for ax in panels] == ["$x$"] * 3
    assert [ax.get_ylabel() for ax in panels] == ["$t$", "", ""]
    assert panels[0].images[0].get_array().shape == (100, 100)


def test_plot_solution_takes_a_network():
    model = MLP(KleinGordon.domain, generator=torch.Generator().manual_seed(0))
    figure = plot_solution(KleinGordon(), model, n=3)
    expected = model(torch.tensor([[0.0, 1.0]])).item()
    assert figure.axes[1].images[0].get_array()[2, 0] == pytest.approx(expected, rel=1e-5)
    figure.canvas.draw()


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


def test_histograms_show_each_step_with_its_own_values():
    snapshots = {1: {"w": torch.tensor([[1.0], [10.0]])}, 2: {"w": torch.tensor([[100.0], [1.0]])}}
    figure = plot_gradient_histograms(snapshots, ["data", "edge"])
    places = [[list(histogram(patch)) for patch in ax.patches] for ax in figure.axes]
    assert places == [[[0.0], [1.0]], [[2.0], [0.0]]]


def test_histograms_of_nothing_but_zeros():
    figure = plot_gradient_histograms({0: {"w": torch.zeros(2, 3)}}, ["data", "pde"])
    assert [histogram(patch) for patch in figure.axes[0].patches] == [{}, {}]
    figure.canvas.draw()


# Film


def test_film_moves_and_its_still_is_the_last_frame():
    figure = plt.figure(figsize=(1, 0.5), dpi=100)
    grey = np.linspace(0.2, 1, 4)
    film = Film(figure, lambda i: figure.set_facecolor(str(grey[i])), 4, alt='<"grey">', fps=10)
    assert plt.get_fignums() == []
    with Image.open(BytesIO(film.moving)) as moving, Image.open(BytesIO(film.still)) as still:
        assert (moving.size, moving.n_frames, still.n_frames) == ((100, 50), 4, 1)
        for i in range(4):
            moving.seek(i)
            level = np.asarray(moving.convert("L"))
            assert level == pytest.approx(255 * grey[i], abs=4)
            assert moving.info["duration"] == 100
        assert np.asarray(still.convert("L")) == pytest.approx(255, abs=4)
    assert 'alt="&lt;&quot;grey&quot;&gt;"' in film._repr_html_()
    assert repr(film) == '<"grey">'
