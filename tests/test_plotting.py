import ast
import doctest
import io
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats

from tfpvae import plotting

HISTORY = {
    "loss": [200.0, 170.0, 160.0],
    "nll": [198.0, 166.0, 154.5],
    "kl": [2.0, 4.0, 5.5],
    "val_loss": [205.0, 172.0, 163.0],
    "val_nll": [202.0, 168.0, 157.0],
    "val_kl": [3.0, 4.0, 6.0],
    "lr": [1e-3, 1e-3, 1e-4],
}
X = np.random.default_rng(0).uniform(size=(9, 4, 6))
FUNCTIONS = {
    "convergence": lambda ax=None: plotting.convergence(HISTORY, ax),
    "latent_plane": lambda ax=None: plotting.latent_plane(X[:, 0, :2], range(9), ax),
    "manifold": lambda ax=None: plotting.manifold(X, ax, z=plotting.prior_grid(3)),
    "reconstructions": lambda ax=None: plotting.reconstructions(X, X / 2, ax),
    "image_rows": lambda ax=None: plotting.image_rows({"first": X, "second": X / 2}, ax),
    "intervals": lambda ax=None: plotting.intervals({"a long name": X[0], "b": X[1]}, ax),
    "calibration": lambda ax=None: plotting.calibration(X[:, 0, 0] > 0.5, X[:, 0, 1], ax),
    "contours": lambda ax=None: plotting.contours(range(6), range(4), X[0], ax, label="a name"),
    "class_bars": lambda ax=None: plotting.class_bars(np.eye(3), [0, 1, 2], None, ax),
    "unit_bars": lambda ax=None: plotting.unit_bars(X[:, 0, 0], X[:, 0, 1] > 0.5, ax),
    "gap_bars": lambda ax=None: plotting.gap_bars({"a": (1.0, 0.1), "b": (0.5, 0.1)}, ax),
    "weight_histogram": lambda ax=None: plotting.weight_histogram(X[:, 0, 0], 0.7, ax),
    "aggregate_posterior": lambda ax=None: plotting.aggregate_posterior(
        X[:, 0, :2], X[:, 1, :2], None, ax
    ),
    "marginal": lambda ax=None: plotting.marginal(X[:, 0, 0], X[:, 0, 1], ax),
}


def picture(ax):
    return np.asarray(ax.images[0].get_array())


def texts(labels):
    return [label.get_text().replace("\N{MINUS SIGN}", "-") for label in labels]


def test_docstring_examples():
    failed, attempted = doctest.testmod(plotting)
    assert attempted
    assert not failed


def test_matplotlib_is_imported_when_drawing_and_pyplot_never():
    """Seen in the source: TensorFlow's own Keras 3 imports pyplot, and so hides what we do."""
    module = ast.parse(Path(plotting.__file__).read_text())
    imports = (ast.Import, ast.ImportFrom)
    anywhere = [ast.unparse(node) for node in ast.walk(module) if isinstance(node, imports)]
    at_import = [ast.unparse(node) for node in module.body if isinstance(node, imports)]
    assert "matplotlib" in " ".join(anywhere)
    assert "matplotlib" not in " ".join(at_import)
    assert "pyplot" not in " ".join(anywhere)


@pytest.mark.parametrize("draw", FUNCTIONS.values(), ids=FUNCTIONS)
class TestEvery:
    def test_draws_on_a_figure_of_its_own_with_nothing_cut_off(self, draw):
        figure = draw().figure
        figure.savefig(io.BytesIO(), format="png")
        extent, needed = figure.bbox_inches, figure.get_tightbbox()
        assert needed.x0 >= extent.x0
        assert needed.y0 >= extent.y0
        assert needed.x1 <= extent.x1
        assert needed.y1 <= extent.y1

    def test_draws_on_the_axes_given(self, draw):
        ax = Figure().subplots()
        assert draw(ax) is ax
        assert ax.has_data()

    def test_refuses_what_is_no_axes(self, draw):
        with pytest.raises(TypeError, match="ax must be one matplotlib Axes, got ndarray"):
            draw(Figure().subplots(1, 2))


class TestConvergence:
    def test_every_term_over_the_epochs(self):
        ax = plotting.convergence(HISTORY)
        right = ax.figure.axes[-1]
        lines = {line.get_label(): line for line in [*ax.lines, *right.lines]}
        assert set(lines) == set(HISTORY) - {"lr"}
        for name, line in lines.items():
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
            np.testing.assert_array_equal(line.get_ydata(), HISTORY[name])
            assert line.get_linestyle() == ("--" if name.startswith("val_") else "-")
            assert (line.axes is right) == name.endswith("kl")
            assert line.get_color() == lines[name.removeprefix("val_")].get_color()
        assert len({line.get_color() for line in lines.values()}) == 3

    def test_labels(self):
        ax = plotting.convergence(HISTORY)
        assert ax.get_xlabel() == "epoch"
        assert ax.get_ylabel() == "loss, nll (nats per example)"
        assert ax.figure.axes[-1].get_ylabel() == "kl (nats per example)"
        legend = ax.get_legend()
        assert texts(legend.texts) == ["loss", "nll", "kl (right)", "training", "validation"]
        styles = [line.get_linestyle() for line in legend.legend_handles]
        assert styles == ["-", "-", "-", "-", "--"]
        colours = [line.get_color() for line in legend.legend_handles]
        assert colours[:2] == [line.get_color() for line in (ax.lines[0], ax.lines[2])]

    def test_epochs_are_whole_numbers(self):
        for count in (1, 2, 7, 60):
            ax = plotting.convergence({"loss": np.arange(count, dtype=float)})
            assert all(tick == int(tick) for tick in ax.get_xticks())

    def test_history_of_keras(self):
        ax = plotting.convergence(SimpleNamespace(history={"loss": [3.0, 2.0]}))
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), [3, 2])
        assert texts(ax.get_legend().texts) == ["loss"]
        assert len(ax.figure.axes) == 1

    def test_a_single_epoch_is_visible(self):
        ax = plotting.convergence({"loss": [3.0]})
        assert ax.lines[0].get_marker() == "o"

    @pytest.mark.parametrize(
        ("history", "error", "message"),
        [
            ([1.0, 2.0], TypeError, "history must be .*got list"),
            ({}, ValueError, r"history must hold 'loss', got \[\]"),
            ({"nll": [1.0]}, ValueError, r"history must hold 'loss', got \['nll'\]"),
            ({"loss": []}, ValueError, r"history\['loss'\] must not be empty"),
            ({"loss": 3.0}, ValueError, r"history\['loss'\] must be a list .*got \[\]"),
            ({"loss": [[1.0]]}, ValueError, r"history\['loss'\] must be a list .*got \[1, 1\]"),
            ({"loss": ["1"]}, TypeError, r"history\['loss'\] must hold real numbers"),
            (
                {"loss": [1.0, 2.0], "val_kl": [1.0]},
                ValueError,
                r"history\['val_kl'\] must be a list of 2.*got \[1\]",
            ),
            (
                {"loss": [1.0, 2.0], "nll": [1.0, np.nan]},
                ValueError,
                r"history\['nll'\] must be finite, got nan at \[1\]",
            ),
        ],
    )
    def test_bad_input(self, history, error, message):
        with pytest.raises(error, match=message):
            plotting.convergence(history)


class TestLatentPlane:
    Z = np.array([[0.0, 1.0], [2.0, -3.0], [4.0, 5.0], [6.0, 0.0]])

    def colours(self, ax):
        ax.figure.draw_without_rendering()
        return [to_hex(colour) for colour in ax.collections[0].get_facecolors()]

    def test_points_and_axes(self):
        ax = plotting.latent_plane(self.Z)
        np.testing.assert_array_equal(ax.collections[0].get_offsets(), self.Z)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")
        assert ax.get_aspect() == 1
        assert len(ax.figure.axes) == 1

    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            ([7, 3, 7, 100], ["3", "7", "100"]),
            (np.array([1, 0, 1, 2], np.uint8), ["0", "1", "2"]),
            (["b", "a", "b", "c"], ["a", "b", "c"]),
        ],
    )
    def test_each_class_has_its_colour_and_its_name_on_the_bar(self, labels, names):
        ax = plotting.latent_plane(self.Z, labels)
        colours = self.colours(ax)
        assert colours[0] == colours[2]
        assert len(set(colours)) == 3
        bar = ax.figure.axes[-1]
        assert texts(bar.get_yticklabels()) == names
        # The tick of a name lies in the middle of the patch of its colour.
        assert (*bar.get_yticks(), *bar.get_ylim()) == (0, 1, 2, -0.5, 2.5)
        patches = bar.collections[-1]
        order = [list(names).index(str(label)) for label in labels]
        expected = [to_hex(patches.cmap(patches.norm(tick))) for tick in bar.get_yticks()]
        assert colours == [expected[i] for i in order]

    def test_float_labels_have_a_continuous_bar(self):
        ax = plotting.latent_plane(self.Z, [0.0, 0.1, 0.2, 1.0])
        assert len(set(self.colours(ax))) == 4
        assert ax.figure.axes[-1].get_ylim() == (0, 1)
        assert ax.collections[0].cmap.name == "viridis"

    def test_more_classes_than_room_for_names(self):
        ax = plotting.latent_plane(np.tile(self.Z, (10, 1)), range(40))
        assert len(set(self.colours(ax))) == 40
        assert texts(ax.figure.axes[-1].get_yticklabels()) == [str(i) for i in range(0, 40, 2)]

    @pytest.mark.parametrize(
        ("z", "labels", "error", "message"),
        [
            ([1.0, 2.0], None, ValueError, r"z must be \[N, 2\], got \[2\]"),
            (np.zeros((4, 3)), None, ValueError, r"z must be \[N, 2\], got \[4, 3\]"),
            (np.zeros((0, 2)), None, ValueError, r"z must not be empty, got \[0, 2\]"),
            ([[1.0, np.inf]], None, ValueError, r"z must be finite, got inf at \[0, 1\]"),
            ([[1.0], [1.0, 2.0]], None, ValueError, "z must be a rectangular array"),
            ([["1", "2"]], None, TypeError, "z must hold real numbers, got <U1"),
            (Z, [1, 2, 3], ValueError, r"labels must be \[N\] .* the 4 points of z, got \[3\]"),
            (Z, np.eye(4), ValueError, r"labels must be \[N\] .* got \[4, 4\]"),
            (Z, [0.0, 1.0, np.nan, 1.0], ValueError, r"labels must be finite, got nan at \[2\]"),
            (Z, [None, 1, 2, 3], TypeError, "labels must hold real numbers, got object"),
        ],
    )
    def test_bad_input(self, z, labels, error, message):
        with pytest.raises(error, match=message):
            plotting.latent_plane(z, labels)


class TestPriorGrid:
    def test_quantiles_in_the_order_of_the_picture(self):
        z = plotting.prior_grid(5, (0.1, 0.7))
        assert z.shape == (25, 2)
        assert z.dtype == np.float32
        values = stats.norm.ppf([0.1, 0.25, 0.4, 0.55, 0.7])
        rows = z.reshape(5, 5, 2)
        for i in range(5):
            np.testing.assert_allclose(rows[i, :, 0], values, rtol=1e-6)
            np.testing.assert_allclose(rows[:, i, 1], values[::-1], rtol=1e-6)

    def test_default_range(self):
        z = plotting.prior_grid(2)
        np.testing.assert_allclose(abs(z), stats.norm.ppf(0.99), rtol=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((1,), ValueError, "num must be at least 2, got 1"),
            ((2.0,), TypeError, "num must be an integer, got 2.0"),
            ((True,), TypeError, "num must be an integer, got True"),
            ((3, (0.0, 0.9)), ValueError, r"quantile_range must be 0 < low < high < 1, got \(0"),
            ((3, (0.1, 1.0)), ValueError, "quantile_range must be 0 < low"),
            ((3, (0.9, 0.1)), ValueError, "quantile_range must be 0 < low"),
            ((3, (0.1, np.nan)), ValueError, "quantile_range must be 0 < low"),
            ((3, 0.9), ValueError, "quantile_range must be two numbers .*got 0.9"),
            ((3, (0.1, 0.5, 0.9)), ValueError, "quantile_range must be two numbers"),
        ],
    )
    def test_bad_input(self, arguments, error, message):
        with pytest.raises(error, match=message):
            plotting.prior_grid(*arguments)


def decode(z, height=2, width=3):
    """Decode z to an image of which each pixel tells z1, z2 and its own place."""
    place = np.arange(height * width).reshape(height, width) / 100
    return 1000 * z[:, 0, None, None] + 10 * z[:, 1, None, None] + place


class TestManifold:
    def test_z1_grows_to_the_right_and_z2_upwards(self):
        z = plotting.prior_grid(4)
        ax = plotting.manifold(decode(z), z=z)
        shown = picture(ax)
        assert shown.shape == (4 * 2, 4 * 3)
        assert ax.yaxis_inverted()  # the first row of the array is the top of the picture
        values = stats.norm.ppf(np.linspace(0.01, 0.99, 4))
        for column in range(4):
            for up in range(4):
                row = 3 - up
                tile = shown[2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
                wanted = decode(np.array([[values[column], values[up]]]))[0]
                np.testing.assert_allclose(tile, wanted, rtol=1e-5)

    @pytest.mark.parametrize(("n", "marked"), [(3, 3), (4, 4), (5, 5), (6, 4), (15, 5), (20, 4)])
    def test_ticks_name_the_values_at_the_centres_of_the_images(self, n, marked):
        z = plotting.prior_grid(n)
        z[:, 1] *= 2
        ax = plotting.manifold(decode(z), z=z)
        grid = z.reshape(n, n, 2)
        assert len(ax.get_xticks()) == len(ax.get_yticks()) == marked
        for tick, text in zip(ax.get_xticks(), texts(ax.get_xticklabels()), strict=True):
            assert (tick - 1) % 3 == 0  # the middle of the three pixels of an image
            assert float(text) == pytest.approx(grid[0, int(tick) // 3, 0], abs=0.051)
        for tick, text in zip(ax.get_yticks(), texts(ax.get_yticklabels()), strict=True):
            assert (tick - 0.5) % 2 == 0  # between the two pixels of an image
            assert float(text) == pytest.approx(grid[int(tick) // 2, 0, 1], abs=0.051)
        np.testing.assert_array_equal(np.diff(ax.get_xticks()), np.diff(ax.get_xticks())[::-1])
        assert "-0.0" not in texts(ax.get_xticklabels())

    def test_without_z_no_values_are_claimed(self):
        ax = plotting.manifold(X)
        assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")

    def test_all_shapes_of_the_same_images_give_the_same_picture(self):
        x = X[:, :, :4]
        flat, image, channel = x.reshape(9, 16), x, x[..., None]
        expected = x.reshape(3, 3, 4, 4).swapaxes(1, 2).reshape(12, 12)
        for images in (flat, image, channel, flat.tolist()):
            np.testing.assert_array_equal(picture(plotting.manifold(images)), expected)

    def test_colours(self):
        x = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
        expected = x.reshape(2, 2, 2, 2, 3).swapaxes(1, 2).reshape(4, 4, 3) / 255
        for images in (x, x / 255):
            np.testing.assert_allclose(picture(plotting.manifold(images)), expected)

    def test_one_grey_scale_from_black_to_white(self):
        assert plotting.manifold(1 + X).images[0].get_clim() == (0, (1 + X).max())
        assert plotting.manifold(X - 1).images[0].get_clim() == ((X - 1).min(), (X - 1).max())

    @pytest.mark.parametrize(
        ("images", "z", "error", "message"),
        [
            (X[:8], None, ValueError, r"images must be n\*n .* got 8"),
            (X[:0], None, ValueError, r"images must not be empty, got \[0, 4, 6\]"),
            (X.reshape(9, 24), None, ValueError, r"images must be .* got \[9, 24\]"),
            (X[..., None, None], None, ValueError, r"images must be .* got \[9, 4, 6, 1, 1\]"),
            (np.stack([X, X], -1), None, ValueError, r"images must be .* got \[9, 4, 6, 2\]"),
            (np.stack([X] * 3, -1) * 9, None, ValueError, r"images in colour must be in \[0, 1\]"),
            (np.stack([X] * 3, -1) - 1, None, ValueError, r"images in colour must be in \[0, 1\]"),
            (X[0, 0], None, ValueError, r"images must be .* got \[6\]"),
            (np.where(X > 0.01, X, -np.inf), None, ValueError, "images must be finite, got -inf"),
            ("images", None, TypeError, "images must hold real numbers"),
            (X, np.zeros((8, 2)), ValueError, r"z must be \[9, 2\].* got \[8, 2\]"),
            (X, np.full((9, 2), np.nan), ValueError, "z must be finite"),
            (X, X[:, 0, :2], ValueError, "z must be a grid"),
            (X, plotting.prior_grid(3)[:, ::-1], ValueError, "z must be a grid"),
            (X, plotting.prior_grid(3)[:, [0, 0]], ValueError, "z must be a grid"),
            (X, plotting.prior_grid(3)[:, [1, 1]], ValueError, "z must be a grid"),
        ],
    )
    def test_bad_input(self, images, z, error, message):
        with pytest.raises(error, match=message):
            plotting.manifold(images, z=z)


class TestReconstructions:
    def test_each_beneath_its_original(self):
        ax = plotting.reconstructions(X, X + 7)
        shown = picture(ax)
        assert ax.yaxis_inverted()
        assert texts(ax.get_yticklabels()) == ["original", "reconstruction"]
        for tick, images in zip(ax.get_yticks(), (X, X + 7), strict=True):
            row = round(tick - 2.5)  # the first of the 6 lines of an image and its margin
            for i, image in enumerate(images):
                framed = shown[row : row + 6, 8 * i : 8 * i + 8]
                np.testing.assert_array_equal(framed[1:-1, 1:-1], image)
                assert np.isnan(framed[[0, -1]]).all()
                assert np.isnan(framed[:, [0, -1]]).all()
        assert ax.images[0].get_clim() == (0, (X + 7).max())

    def test_colours_are_framed_in_white(self):
        x = np.stack([X] * 3, -1)
        shown = picture(plotting.reconstructions(x, x))
        assert (shown[0] == 1).all()
        np.testing.assert_array_equal(shown[1:5, 1:7], x[0])

    def test_flat_and_square_images_may_be_mixed(self):
        x = X[:, :, :4]
        shown = picture(plotting.reconstructions(x.reshape(9, 16), x))
        np.testing.assert_array_equal(shown[:6], shown[6:])

    @pytest.mark.parametrize("shape", [(1, 8, 8), (40, 8, 8), (5, 24, 8), (3, 8, 30, 3)])
    def test_labels_are_not_cut_off(self, shape):
        x = np.zeros(shape)
        figure = plotting.reconstructions(x, x).figure
        figure.draw_without_rendering()
        assert figure.get_tightbbox().x0 >= 0

    @pytest.mark.parametrize(
        ("originals", "reconstructed", "error", "message"),
        [
            (X, X[:8], ValueError, r"originals and reconstructed .*\[9, 4, 6, 1\] and \[8, 4, 6, "),
            (X, X[:, :3], ValueError, "originals and reconstructed .*"),
            (X[:0], X[:0], ValueError, "originals must not be empty"),
            (X, X[0], ValueError, r"reconstructed must be .* got \[4, 6\]"),
            (X, X * np.nan, ValueError, r"reconstructed must be finite, got nan .* 215 more"),
            (X, X * 1j, TypeError, "reconstructed must hold real numbers"),
        ],
    )
    def test_bad_input(self, originals, reconstructed, error, message):
        with pytest.raises(error, match=message):
            plotting.reconstructions(originals, reconstructed)


class TestImageRows:
    def test_rows_in_their_order_on_one_grey_scale(self):
        rows = {"a": X, "b": X + 7, "c": X / 2}
        ax = plotting.image_rows(rows)
        shown = picture(ax)
        assert texts(ax.get_yticklabels()) == ["a", "b", "c"]
        for tick, images in zip(ax.get_yticks(), rows.values(), strict=True):
            row = round(tick - 2.5)
            for i, image in enumerate(images):
                np.testing.assert_array_equal(
                    shown[row + 1 : row + 5, 8 * i + 1 : 8 * i + 7], image
                )
        assert ax.images[0].get_clim() == (0, (X + 7).max())

    @pytest.mark.parametrize(
        ("rows", "error", "message"),
        [
            ({}, ValueError, "rows must not be empty"),
            (X, TypeError, "rows must be a mapping from names, got ndarray"),
            ({"a": X, "b": X[:8]}, ValueError, r"rows must be as many .*'b' \[8, 4, 6, 1\]"),
            ({"a": X * np.nan}, ValueError, r"rows\['a'\] must be finite"),
        ],
    )
    def test_bad_input(self, rows, error, message):
        with pytest.raises(error, match=message):
            plotting.image_rows(rows)


def segments(collection):
    """The ends of vertical or horizontal lines, [N, 2, 2]."""
    return np.array(collection.get_segments())


class TestIntervals:
    def test_quantiles_and_means_from_the_top(self):
        draws = np.random.default_rng(0).permutation(101.0 + np.arange(101))
        ax = plotting.intervals({"a": draws, "b": -draws})
        assert texts(ax.get_yticklabels()) == ["a", "b"]
        assert ax.yaxis_inverted()
        outer, inner = (segments(lines) for lines in ax.collections)
        for found, (low, high) in ((outer, (104, 198)), (inner, (126, 176))):
            np.testing.assert_allclose(found[..., 0], [[low, high], [-high, -low]])
            np.testing.assert_array_equal(found[:, 0, 1], ax.get_yticks())
        assert ax.collections[0].get_linewidth()[0] < ax.collections[1].get_linewidth()[0]
        np.testing.assert_allclose(ax.lines[-1].get_xdata(), [151, -151])
        assert texts(ax.get_legend().texts) == ["mean", "50%", "94%"]

    def test_several_columns_have_their_colours(self):
        draws = np.arange(200.0).reshape(100, 2)
        ax = plotting.intervals({"a": draws, "b": 0 * draws}, labels=["no", "yes"])
        assert texts(ax.get_legend().texts) == ["no", "yes", "mean", "50%", "94%"]
        keys = ax.get_legend().legend_handles[:2]
        means = ax.lines[1:]  # after the line at zero
        for line, key, mean in zip(means, keys, (99.0, 100.0), strict=True):
            assert line.get_color() == key.get_color()
            np.testing.assert_allclose(line.get_xdata(), [mean, 0.0])
        above, below = (line.get_ydata() for line in means)
        assert (above < below).all()  # the axis runs downwards
        assert (np.abs(np.stack([above, below]) - [0, 1]) < 0.5).all()

    @pytest.mark.parametrize(
        ("draws", "kwargs", "error", "message"),
        [
            (X[0], {}, TypeError, "draws must be a mapping from names"),
            ({}, {}, ValueError, "draws must not be empty"),
            ({"a": [1.0], "b": [1.0, 2.0]}, {}, ValueError, r"draws must be .* got \[2\] for 'b'"),
            ({"a": X}, {}, ValueError, r"draws must be .* got \[9, 4, 6\] for 'a'"),
            ({"a": [np.nan]}, {}, ValueError, r"draws\['a'\] must be finite"),
            ({"a": X[0]}, {"labels": ["b"]}, ValueError, "labels must be 6 names"),
            ({"a": [1.0]}, {"probabilities": (0.9, 0.5)}, ValueError, "increase, got 0.9, 0.5"),
            ({"a": [1.0]}, {"probabilities": (0.9, 1.0)}, ValueError, "between 0 and 1"),
        ],
    )
    def test_bad_input(self, draws, kwargs, error, message):
        with pytest.raises(error, match=message):
            plotting.intervals(draws, **kwargs)


class TestCalibration:
    def test_shares_counts_and_intervals(self):
        probs = np.array([0.0, 0.1, 0.14, 0.45, 0.5, 0.95, 0.97, 1.0])
        labels = np.array([0, 0, 1, 0, 1, 1, 1, 1])
        ax = plotting.calibration(labels, probs, num_bins=5, probability=0.9)
        line = ax.lines[-1]
        # The bins [0, 0.2), [0.4, 0.6) and [0.8, 1]; by hand.
        np.testing.assert_allclose(line.get_xdata(), [0.08, 0.475, 2.92 / 3])
        np.testing.assert_allclose(line.get_ydata(), [1 / 3, 1 / 2, 1.0])
        assert texts(ax.texts) == ["3", "2", "3"]
        bars = segments(ax.collections[0])
        np.testing.assert_allclose(bars[:, 0, 0], line.get_xdata())
        for bar, ones, count in zip(bars, (1, 1, 3), (3, 2, 3), strict=True):
            posterior = stats.beta(ones + 0.5, count - ones + 0.5)
            np.testing.assert_allclose(bar[:, 1], posterior.ppf([0.05, 0.95]))

    @pytest.mark.parametrize(
        ("labels", "probs", "kwargs", "message"),
        [
            ([0, 1], [0.5], {}, r"labels and probs must be \[N\].* got \[2\] and \[1\]"),
            ([0, 2], [0.5, 0.5], {}, "labels must be 0 or 1, got 2"),
            ([0, 1], [0.5, 1.5], {}, r"probs must be in \[0, 1\], got 0.5 to 1.5"),
            ([0, 1], [0.5, 0.5], {"num_bins": 0}, "num_bins must be a positive integer, got 0"),
            ([0, 1], [0.5, 0.5], {"probability": 94}, "between 0 and 1"),
        ],
    )
    def test_bad_input(self, labels, probs, kwargs, message):
        with pytest.raises(ValueError, match=message):
            plotting.calibration(labels, probs, **kwargs)


class TestContours:
    x1, x2 = np.linspace(0, 3, 31), np.linspace(-1, 1, 21)

    def test_a_row_of_values_for_each_of_x2(self):
        values = self.x1 + 10 * self.x2[:, np.newaxis]
        ax = plotting.contours(self.x1, self.x2, values, line=5.0, label="height")
        assert ax.figure.axes[-1].get_ylabel() == "height"
        line = ax.collections[-1].get_paths()[0].vertices
        np.testing.assert_allclose(line[:, 0] + 10 * line[:, 1], 5.0)
        assert (*ax.get_xlim(), *ax.get_ylim()) == (0, 3, -1, 1)

    def test_points_by_class(self):
        values = np.zeros((21, 31)) + self.x1
        points = np.array([[0.5, 0.0], [1.0, 0.5], [2.0, -0.5]])
        ax = plotting.contours(
            self.x1, self.x2, values, points=points, labels=["b", "a", "b"], levels=[0.0, 1.0, 3.0]
        )
        assert texts(ax.get_legend().texts) == ["a", "b"]
        found = {c.get_label(): c for c in ax.collections if c.get_label() in ("a", "b")}
        np.testing.assert_array_equal(found["a"].get_offsets(), points[1:2])
        np.testing.assert_array_equal(found["b"].get_offsets(), points[::2])
        colours = [to_hex(c.get_facecolor()[0]) for c in found.values()]
        assert colours[0] != colours[1]
        np.testing.assert_array_equal(ax.collections[0].levels, [0.0, 1.0, 3.0])

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"values": np.zeros((31, 21))}, r"values must be \[21, 31\], .* got \[31, 21\]"),
            ({"x1": x1[::-1]}, "x1 must be at least two increasing numbers"),
            ({"levels": [1.0, 0.0]}, "levels must be at least two increasing numbers"),
            ({"points": np.zeros((4, 3))}, r"points must be \[P, 2\], got \[4, 3\]"),
            ({"labels": [0, 1]}, "labels are of points, got no points"),
            ({"points": np.zeros((4, 2)), "labels": [0]}, "labels must be 4 integers or strings"),
            ({"points": np.zeros((1, 2)), "labels": [0.5]}, "labels must be 1 integers or strings"),
        ],
    )
    def test_bad_input(self, kwargs, message):
        default = {"x1": self.x1, "x2": self.x2, "values": np.zeros((21, 31))}
        with pytest.raises(ValueError, match=message):
            plotting.contours(**default | kwargs)


class TestClassBars:
    PROBS = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.9, 0.1, 0.0], [0.5, 0.2, 0.3]])

    def test_own_class_lowest_and_the_most_certain_first(self):
        ax = plotting.class_bars(self.PROBS, [0, 1, 0, 1], ["a", "b", "c"])
        bars = {}
        for bar in ax.patches:
            bars.setdefault(round(bar.get_x() + 0.5), []).append(bar)
        heights = [[bar.get_height() for bar in bars[x]] for x in sorted(bars)]
        # Of class a the third and the first, of class b the second and the fourth.
        expected = [[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.2, 0.5, 0.3]]
        np.testing.assert_allclose(heights, expected)
        for column in bars.values():
            tops = np.cumsum([bar.get_height() for bar in column])
            np.testing.assert_allclose([bar.get_y() for bar in column], [0, *tops[:-1]])
        assert texts(ax.get_xticklabels()) == ["a (2)", "b (2)"]
        keys = ax.get_legend().legend_handles[:3]
        order = [to_hex(key.get_facecolor()) for key in keys]
        last = [to_hex(bar.get_facecolor()) for bar in bars[max(bars)]]
        assert last == [order[1], order[0], order[2]]
        crosses = np.concatenate([line.get_xdata() for line in ax.lines])
        assert crosses.tolist() == [max(bars)]

    @pytest.mark.parametrize(
        ("probs", "labels", "names", "message"),
        [
            (PROBS, [0, 1], None, r"probs and labels must be .* got \[4, 3\] and \[2\]"),
            (PROBS, [0, 1, 2, 3], None, "labels must be classes 0 to 2"),
            (PROBS / 2, [0, 1, 2, 0], None, "probs must add up to one"),
            (PROBS - 0.5, [0, 1, 2, 0], None, r"probs must be in \[0, 1\]"),
            (PROBS, [0, 1, 2, 0], ["a"], "names must be 3, one for each class, got 1"),
        ],
    )
    def test_bad_input(self, probs, labels, names, message):
        with pytest.raises(ValueError, match=message):
            plotting.class_bars(probs, labels, names)


class TestUnitBars:
    def test_largest_first_and_collapsed_crossed_out(self):
        ax = plotting.unit_bars([0.5, 0.0, 2.0], [True, False, True], label="KL")
        assert [bar.get_height() for bar in ax.patches] == [2.0, 0.5, 0.0]
        assert texts(ax.get_xticklabels()) == ["2", "0", "1"]
        assert ax.lines[0].get_xdata().tolist() == [2]
        assert texts(ax.get_legend().get_texts()) == ["active", "collapsed"]
        colours = [to_hex(bar.get_facecolor()) for bar in ax.patches]
        assert colours[0] == colours[1] != colours[2]

    def test_labels_of_many_units_do_not_touch(self):
        ax = plotting.unit_bars(np.arange(100.0), np.ones(100, bool))
        ax.figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
        assert texts(ax.get_legend().get_texts()) == ["active"]

    @pytest.mark.parametrize("active", [[1, 0], [True], None])
    def test_bad_input(self, active):
        with pytest.raises(ValueError, match="values and active must be numbers and bools"):
            plotting.unit_bars([1.0, 2.0], active)


class TestGapBars:
    def test_each_part_begins_where_the_last_one_ends(self):
        ax = plotting.gap_bars({"family": (1.5, 0.1), "encoder": (0.5, 0.2)})
        spans = [sorted([bar.get_x(), bar.get_x() + bar.get_width()]) for bar in ax.patches]
        np.testing.assert_allclose(spans, [[-1.5, 0.0], [-2.0, -1.5]])
        assert texts(ax.get_yticklabels()) == ["family", "encoder"]
        assert [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1][
            -1
        ] == -2
        low, high = ax.get_xlim()
        assert low < -2.2 < 0 < high

    def test_a_part_within_its_error_of_zero(self):
        ax = plotting.gap_bars({"family": (-0.01, 0.02), "encoder": (0.0, 0.0)})
        assert texts(ax.texts) == ["-0.01 ± 0.02", "0.00 ± 0.00"]
        ax.figure.draw_without_rendering()

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ({"a": (1.0,)}, r"parts\['a'\] must be a size and its standard error, got \[1\]"),
            ({"a": (1.0, np.nan)}, r"parts\['a'\] must be finite"),
            ({}, "parts must not be empty"),
        ],
    )
    def test_bad_input(self, parts, message):
        with pytest.raises(ValueError, match=message):
            plotting.gap_bars(parts)


class TestWeightHistogram:
    @pytest.mark.parametrize("low", [False, True])
    def test_counts_on_either_side_of_the_threshold(self, low):
        values = np.random.default_rng(0).normal(0.5, 0.3, 500)
        ax = plotting.weight_histogram(values, 0.7, low=low)
        bars = [(to_hex(bar.get_facecolor()), bar.get_height()) for bar in ax.patches]
        counts = {colour: sum(h for c, h in bars if c == colour) for colour, _ in bars}
        above = (values >= 0.7).sum()
        red = to_hex(plotting._TERMS["nll"])
        assert counts.pop(red) == (500 - above if low else above)
        assert sum(counts.values()) == (above if low else 500 - above)

    @pytest.mark.parametrize("values", [[0.1], [0.7, 0.7], [5.0, 9.0]])
    def test_all_on_one_side(self, values):
        ax = plotting.weight_histogram(values, 0.7)
        assert sum(bar.get_height() for bar in ax.patches) == len(values)

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"values must be \[N\], got \[1, 2\]"):
            plotting.weight_histogram([[0.1, 0.2]], 0.7)


class TestTraversals:
    def test_rows_are_units_and_columns_values(self):
        images = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
        ax = plotting.traversals(images, [[-1.0, 0.0, 1.0], [-2.0, 0.5, 3.0]], units=[4, 0])
        picture = ax.images[0].get_array().data
        for row, column in np.ndindex(2, 3):
            tile = picture[row * 6 + 1 : row * 6 + 5, column * 7 + 1 : column * 7 + 6]
            np.testing.assert_array_equal(tile, images[row, column])
        assert texts(ax.get_yticklabels()) == ["z[4]: -1.0 to 1.0", "z[0]: -2.0 to 3.0"]
        assert not len(ax.get_xticks())
        ax.figure.draw_without_rendering()

    def test_values_that_all_rows_share_label_the_columns(self):
        ax = plotting.traversals(np.ones((2, 3, 16)), np.tile([0.0, 1.0, 2.0], (2, 1)))
        assert texts(ax.get_yticklabels()) == ["z[0]", "z[1]"]
        assert texts(ax.get_xticklabels()) == ["0.0", "1.0", "2.0"]
        np.testing.assert_allclose(ax.get_xticks(), [2.5, 8.5, 14.5])

    @pytest.mark.parametrize(
        ("images", "values", "units", "message"),
        [
            (np.ones((2, 3, 16)), np.ones(3), None, r"values must be \[L, num\], got \[3\]"),
            (np.ones((3, 2, 16)), np.ones((2, 3)), None, r"images must be \[2, 3\] as values"),
            (np.ones((2, 3)), np.ones((2, 3)), None, r"images must be \[2, 3\] as values"),
            (np.ones((2, 3, 15)), np.ones((2, 3)), None, "if square"),
            (np.ones((2, 3, 16)), np.ones((2, 3)), [1], "units must be 2 integers"),
            (np.ones((2, 3, 16)), np.ones((2, 3)), [1.0, 2.0], "units must be 2 integers"),
            (np.ones((2, 3, 16)), np.ones((2, 3)), [1, 1], "units must differ"),
            (np.full((2, 3, 16), np.nan), np.ones((2, 3)), None, "images must be finite"),
        ],
    )
    def test_bad_input(self, images, values, units, message):
        with pytest.raises(ValueError, match=message):
            plotting.traversals(images, values, units)


class TestAggregatePosterior:
    def test_points_by_class_on_the_prior(self):
        rng = np.random.default_rng(0)
        prior, z = rng.normal(size=(5000, 2)), rng.normal(3.0, 1.0, size=(90, 2))
        labels = np.arange(90) % 3
        ax = plotting.aggregate_posterior(z, prior, labels, names=("unit 3", "unit 1"))
        cells, *clouds = ax.collections
        assert np.sum(cells.get_array()) == 5000
        for label, cloud in enumerate(clouds):
            np.testing.assert_allclose(cloud.get_offsets(), z[labels == label])
        assert texts(ax.get_legend().get_texts()) == ["prior", "0", "1", "2"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("unit 3", "unit 1")
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert left < z[:, 0].min() < z[:, 0].max() < right
        assert bottom < z[:, 1].min() < z[:, 1].max() < top
        assert right - left == pytest.approx(top - bottom)

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"prior_z must be \[M, 2\], got \[3, 3\]"):
            plotting.aggregate_posterior(np.zeros((3, 2)), np.zeros((3, 3)))
        with pytest.raises(ValueError, match="labels must be 3 integers or strings"):
            plotting.aggregate_posterior(np.zeros((3, 2)), np.zeros((3, 2)), [0, 1])


class TestMarginal:
    def heights(self, ax):
        """Of the data's bars, and of the model's line, with their edges."""
        values, edges, _ = ax.patches[-1].get_data()
        return np.array([bar.get_height() for bar in ax.patches[:-1]]), values, edges

    def test_counts_get_a_bar_each(self):
        ax = plotting.marginal([0, 1, 1, 3], [1, 1, 2, 2, 3])
        data, model, edges = self.heights(ax)
        np.testing.assert_allclose(edges, [-0.5, 0.5, 1.5, 2.5, 3.5])
        np.testing.assert_allclose(data, [0.25, 0.5, 0, 0.25])
        np.testing.assert_allclose(model, [0, 0.4, 0.4, 0.2])
        assert ax.get_ylabel() == "probability"
        assert texts(ax.get_legend().get_texts()) == ["data", "model"]
        assert (ax.get_xticks() == ax.get_xticks().round()).all()

    def test_large_counts_and_numbers_are_densities(self, rng):
        counts = rng.poisson(1000, 5000)
        ax = plotting.marginal(counts, counts)
        data, model, edges = self.heights(ax)
        step = edges[1] - edges[0]
        assert step == 4  # From 912 to 1090 in at most 60 bars.
        np.testing.assert_allclose(np.diff(edges), step)
        np.testing.assert_allclose(data, model)
        np.testing.assert_allclose(data.sum() * step, 1.0, atol=0.005)
        at = int(np.argmin(abs(edges - 1000)))
        inside = (counts > edges[at]) & (counts < edges[at + 1])
        assert data[at] == pytest.approx(inside.mean() / step)
        ax = plotting.marginal(np.array([np.nan, *rng.normal(size=999)]), rng.normal(size=999))
        data, model, edges = self.heights(ax)
        assert data.sum() * (edges[1] - edges[0]) == pytest.approx(1.0, abs=0.01)
        assert ax.get_ylabel() == "density"

    def test_a_model_that_is_far_off_leaves_the_data_their_scale(self):
        _, _, edges = self.heights(plotting.marginal(np.linspace(0, 1, 99), [1e6, -1e6]))
        assert edges[0] >= 0
        assert edges[-1] <= 1

    def test_without_data_and_all_alike(self):
        ax = plotting.marginal(None, [0.5, 0.5])
        assert texts(ax.get_legend().get_texts()) == ["model"]
        assert np.diff(self.heights(ax)[2]).min() > 0

    @pytest.mark.parametrize(
        ("x", "samples", "message"),
        [
            (np.ones((2, 2)), [1.0], r"x must be \[N\], got \[2, 2\]"),
            ([1.0], [np.nan], "samples must be finite"),
            ([np.nan], [1.0], "x must not be empty"),
            ([1.0], [], "samples must not be empty"),
        ],
    )
    def test_bad_input(self, x, samples, message):
        with pytest.raises(ValueError, match=message):
            plotting.marginal(x, samples)
        with pytest.raises(TypeError, match="names must be two strings"):
            plotting.marginal([1.0], [1.0], names="data")
