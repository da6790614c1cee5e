"""Pictures hold the data they are given."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from daskgmm import GaussianMixture, Info, load
from daskgmm.plotting import plot_convergence, plot_eigenvectors, plot_segmentation


def drawn(figure: Figure) -> None:
    """It can be drawn, and everything finds its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def series(axes):
    """The lines that are data: those with a marker."""
    return [line for line in axes.get_lines() if line.get_marker() == "o"]


def infos(stage, bounds, n):
    return [Info(stage, i + 1, 10, bound, 0.1, n, 0.5, 1) for i, bound in enumerate(bounds)]


def test_convergence_of_a_history_shows_each_stage_one_after_the_other():
    sample, data = [-4.0, -3.0, -2.9, -2.85], [-3.1, -2.95, -2.94]
    figure = plot_convergence(infos("sample", sample, 500) + infos("data", data, 12_000), tol=0.02)
    above, below = figure.axes
    first, second = series(above)
    np.testing.assert_array_equal(first.get_ydata(), sample)
    np.testing.assert_array_equal(first.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(second.get_ydata(), data)
    np.testing.assert_array_equal(second.get_xdata(), [5, 6, 7])
    assert [text.get_text() for text in above.get_legend().get_texts()] == [
        "on a sample of 500 rows",
        "on all 12,000 rows",
    ]
    assert first.get_color() != second.get_color()
    np.testing.assert_allclose(series(below)[0].get_ydata(), np.diff(sample))
    np.testing.assert_allclose(series(below)[1].get_ydata(), np.diff(data))
    assert below.get_yscale() == "log"
    assert "tol = 0.02" in texts(below)
    assert 0.02 in [line.get_ydata()[0] for line in below.get_lines()]
    assert "−2.94" in texts(above)
    drawn(figure)


def test_convergence_of_a_model_is_that_of_its_history(blobs, tmp_path):
    gm = GaussianMixture(3, random_state=0, tol=1e-4).fit(blobs)
    figure = plot_convergence(gm)
    bounds = np.concatenate([line.get_ydata() for line in series(figure.axes[0])])
    np.testing.assert_array_equal(bounds, [info.lower_bound for info in gm.history_])
    assert "tol = 0.0001" in texts(figure.axes[1])
    drawn(figure)
    gm.save(tmp_path / "m.zarr")
    read = plot_convergence(load(tmp_path / "m.zarr"))
    np.testing.assert_array_equal(series(read.axes[0])[0].get_ydata(), gm.lower_bounds_)


def test_convergence_of_numbers_with_a_pass_that_changed_nothing():
    figure = plot_convergence([-3.0, -2.5, -2.5, -2.4], title="My fit")
    assert figure.get_suptitle() == "My fit"
    np.testing.assert_allclose(series(figure.axes[1])[0].get_ydata(), [0.5, np.nan, 0.1])
    assert figure.axes[1].get_xlabel() == "pass (a gap: it changed nothing)"
    assert all("log-likelihood" in axes.get_ylabel() or "change" in axes.get_ylabel() for axes in figure.axes)
    assert all("nats per sample" in axes.get_ylabel() for axes in figure.axes)
    drawn(figure)


def test_a_first_pass_that_would_flatten_the_rest_is_told_in_words():
    bounds = [-212.0, -3.0, -2.5, -2.4]
    above, _ = plot_convergence(bounds).axes
    low, high = above.get_ylim()
    assert -3.2 < low < -3.0
    assert high > -2.4
    assert "from −212" in texts(above)
    np.testing.assert_array_equal(series(above)[0].get_ydata(), bounds)


def test_what_rounding_does_below_the_tolerance_does_not_look_like_a_fall():
    above, _ = plot_convergence([-9.0, -2.5 - 2e-6, -2.5, -2.5 - 1e-6], tol=1e-5).axes
    low, high = above.get_ylim()
    assert high - low >= 10 * 1e-5
    assert low < -2.5 - 2e-6
    assert high > -2.5
    assert "from −9" in texts(above)


@pytest.mark.parametrize("bounds", [[], [-1.0], [-1.0, -1.0]])
def test_convergence_of_a_short_fit_can_be_drawn(bounds):
    drawn(plot_convergence(bounds, tol=1e-3))


def test_segmentation_puts_each_pixel_in_its_components_colour():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (6, 9, 3), dtype=np.uint8) for _ in range(2)]
    labels = [rng.integers(0, 3, (6, 9)) for _ in range(2)]
    labels[0][0, 0] = -1
    colours, weights = np.array([[10.4, 20, 30], [200, 99.6, 0], [255, 255, 260]]), [0.2, 0.5, 0.3]
    figure = plot_segmentation(images, labels, colours, weights, names=["a", "b"])
    *pictures, strip = figure.axes
    shown = [axes.get_images()[0].get_array() for axes in pictures]
    np.testing.assert_array_equal(shown[0], images[0])
    np.testing.assert_array_equal(shown[2], images[1])
    palette = np.array([[10, 20, 30], [200, 100, 0], [255, 255, 255]])
    np.testing.assert_array_equal(shown[3], palette[labels[1]])
    assert shown[1][0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(shown[1].reshape(-1, 3)[1:], palette[labels[0]].reshape(-1, 3)[1:])
    titles = [axes.get_title(loc="left") for axes in pictures]
    assert titles == ["a: photograph", "a: 3 components", "b: photograph", "b: 3 components"]
    np.testing.assert_allclose([bar.get_width() for bar in strip.patches], [0.5, 0.3, 0.2])
    np.testing.assert_allclose([bar.get_facecolor()[:3] for bar in strip.patches], palette[[1, 2, 0]] / 255)
    assert texts(strip) == ["50%", "30%", "20%"]
    drawn(figure)


def test_eigenvectors_are_drawn_from_the_largest_eigenvalue_a_row_a_component():
    rng = np.random.default_rng(1)
    bases = [np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2)]
    values = np.array([9.0, 5, 3, 1, 0.5, 0.1])
    covariances = np.array(
        [basis @ np.diag(values * scale) @ basis.T for basis, scale in zip(bases, (1, 4), strict=True)]
    )
    figure = plot_eigenvectors([0.25, 0.75], covariances, (2, 3), n=4, unit="m")
    (axes,) = figure.axes
    image = axes.get_images()[0].get_array().filled(np.nan)
    assert image.shape == (2 * 2 + 1, 4 * 3 + 3)
    for row, basis in enumerate([bases[1], bases[0]]):  # the heavier component is on top
        for column in range(4):
            tile = image[3 * row : 3 * row + 2, 4 * column : 4 * column + 3].ravel()
            assert abs(tile @ basis[:, column]) == pytest.approx(1)
            assert tile.sum() >= 0
    assert np.isnan(image[2]).all()
    assert np.isnan(image[:, 3::4]).all()
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["75.0%", "25.0%"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "3", "4"]
    (right,) = axes.child_axes
    spread = np.sqrt(values.mean())
    assert [tick.get_text() for tick in right.get_yticklabels()] == [f"{2 * spread:#.3g}", f"{spread:#.3g}"]
    assert "(m)" in right.get_ylabel()
    low, high = axes.get_images()[0].get_clim()
    assert low == -high
    drawn(figure)


def test_more_eigenvectors_than_there_are():
    figure = plot_eigenvectors([1.0], [np.diag([2.0, 1.0, 3.0, 4.0])], (2, 2), n=12)
    assert len(figure.axes[0].get_xticks()) == 4


def test_no_state_of_pyplot_is_touched():
    code = (
        "import sys, daskgmm.plotting as p; assert 'matplotlib' not in sys.modules;"
        "p.plot_convergence([1.0, 2.0]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
