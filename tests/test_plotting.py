import ast
import doctest
import io
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
