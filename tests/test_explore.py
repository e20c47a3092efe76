"""The page of a trained model: what it computes, what it does with events, and a real browser."""

import ast
import contextlib
import http.client
import itertools
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import browser
import numpy as np
import pytest
import tf_keras as keras
from bokeh.document import Document
from hypothesis import given, settings
from hypothesis import strategies as st
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

import tfpvae
from tfpvae import (
    VAE,
    BayesianRegression,
    ConditionalVAE,
    HierarchicalVAE,
    LocalVAE,
    explore,
    explore_page,
    flows,
    likelihoods,
    networks,
    posteriors,
    priors,
)

dense = keras.layers.Dense
needs_browser = pytest.mark.skipif(browser.MISSING is not None, reason=str(browser.MISSING))


def vae(latent_size=2, size=64, posterior=None, likelihood=None, hidden=16, **kwargs):
    """An untrained model whose codes and images are spread out nevertheless."""
    keras.utils.set_random_seed(1)
    posterior = posterior or posteriors.DiagonalNormal(latent_size)
    likelihood = likelihood or likelihoods.Bernoulli(size)
    spread = keras.initializers.RandomNormal(stddev=0.5, seed=3)
    model = VAE(
        priors.StandardNormal(posterior.event_shape),
        keras.Sequential([dense(posterior.params_size, kernel_initializer=spread), posterior]),
        keras.Sequential(
            [
                dense(hidden, "tanh", kernel_initializer=spread),
                dense(likelihood.params_size, kernel_initializer=spread),
                likelihood,
            ]
        ),
        seed=0,
        **kwargs,
    )
    model.build((None, *likelihood.event_shape))
    return model


def conditional_vae(num_classes=3):
    join = networks.Join
    size = None if num_classes else (2,)
    model = ConditionalVAE(
        priors.StandardNormal(2),
        keras.Sequential([join(), dense(4), posteriors.DiagonalNormal(2)]),
        keras.Sequential([join(), dense(64), likelihoods.Bernoulli(64)]),
        num_classes=num_classes,
        seed=0,
    )
    model.build((None, 64) if num_classes else [(None, 64), (None, *size)])
    return model


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).uniform(size=(40, 64)).astype("float32")


@pytest.fixture(scope="module")
def explorer(x):
    return explore.Explorer(vae(), x, labels=np.arange(40) % 3)


# What is computed.


def test_decoding_is_the_likelihood(explorer):
    z = np.array([0.3, -1.2])
    found = explorer.decode(z, seed=1)
    p = explorer.model.likelihood(z[None])
    np.testing.assert_allclose(found.mean, p.mean()[0], rtol=1e-6)
    np.testing.assert_allclose(found.sd, np.sqrt(found.mean * (1 - found.mean)), rtol=1e-5)
    draws = np.stack([explorer.decode(z, seed=seed).draw for seed in range(400)])
    error = np.abs(draws.mean(axis=0) - found.mean) / (found.sd / np.sqrt(400))
    assert error.max() < 4.5  # of 64 pixels
    np.testing.assert_array_equal(found.draw, explorer.decode(z, seed=1).draw)
    assert (found.draw != explorer.decode(z, seed=2).draw).any()


def test_encoding_is_the_posterior_and_its_kl(explorer, x):
    found = explorer.encode(x[3])
    q = explorer.model.posterior(x[3:4])
    np.testing.assert_allclose(found.loc, q.mean()[0], rtol=1e-5)
    np.testing.assert_allclose(found.sd, q.stddev()[0], rtol=1e-5)
    kl = (found.sd**2 + found.loc**2 - 1) / 2 - np.log(found.sd)
    np.testing.assert_allclose(found.kl_by_unit, kl, rtol=1e-4)
    np.testing.assert_allclose(found.kl, kl.sum(), rtol=1e-4)
    np.testing.assert_allclose(found.x, x[3])
    mean = explorer.model.likelihood(found.loc[None]).mean()[0]
    np.testing.assert_allclose(found.reconstruction.mean, mean, rtol=1e-4)


def test_elbo_is_that_of_a_closed_form():
    """Of a linear decoder: E_q log p(x|z) is quadratic in the mean and the variance of z."""
    sd, rows = 0.7, np.random.default_rng(1).normal(size=(30, 5))
    model = VAE(
        priors.StandardNormal(2),
        keras.Sequential([dense(4), posteriors.DiagonalNormal(2)]),
        keras.Sequential([dense(5), likelihoods.Normal(5, scale=sd)]),
        seed=0,
    )
    model.build((None, 5))
    explorer = explore.Explorer(model, rows)
    weights, bias = model.decoder.layers[0].get_weights()
    for row in rows[:5]:
        found = explorer.encode(row)
        rest = row - bias - found.loc @ weights
        nll = 2.5 * np.log(2 * np.pi * sd**2)
        nll += (rest @ rest + np.sum(found.sd**2 * np.sum(weights**2, axis=1))) / (2 * sd**2)
        kl = np.sum((found.sd**2 + found.loc**2 - 1) / 2 - np.log(found.sd))
        z = found.loc + found.sd * np.random.default_rng(0).normal(size=(5000, 2))
        log_probs = -0.5 * np.sum((row - bias - z @ weights) ** 2, axis=1) / sd**2
        error = log_probs.std() / np.sqrt(explore.ELBO_DRAWS)
        assert abs(found.elbo + nll + kl) < 5 * error
    assert explorer.elbo.shape == (30,)


def test_codes_are_means_and_units_are_sorted_by_kl(explorer, x):
    q = explorer.model.posterior(x)
    np.testing.assert_allclose(explorer.codes, q.mean(), rtol=1e-5)
    loc, sd = q.mean().numpy(), q.stddev().numpy()
    kl = np.mean((sd**2 + loc**2 - 1) / 2 - np.log(sd), axis=0)
    np.testing.assert_allclose(explorer.kl_by_unit, kl, rtol=1e-4)
    assert list(explorer.order) == list(np.argsort(-kl))
    inside = (explorer.limits[:, 0] < explorer.codes) & (explorer.codes < explorer.limits[:, 1])
    assert inside.all()
    assert explorer.num_classes is None
    assert explorer.description == (
        "VAE, prior StandardNormal, posterior DiagonalNormal, likelihood Bernoulli, 2 latent units"
    )


@pytest.mark.long
def test_full_covariance_and_flows(x):
    block = posteriors.FullRankNormal(3)
    explorer = explore.Explorer(vae(posterior=block), x)
    found = explorer.encode(x[0])
    tril = explorer.model.posterior(x[:1]).scale.to_dense()[0].numpy()
    np.testing.assert_allclose(found.covariance, tril @ tril.T, rtol=1e-4, atol=1e-6)
    marginal = (np.diag(found.covariance) + found.loc**2 - 1) / 2 - np.log(found.sd)
    np.testing.assert_allclose(found.kl_by_unit, marginal, rtol=1e-4)
    flow = posteriors.Flow(2, flows.InverseAutoregressive(2, (4,)))
    explorer = explore.Explorer(vae(posterior=flow), x)
    found = explorer.encode(x[0])
    assert found.kl_by_unit is None
    draws = explorer.model.posterior(x[:1]).sample(20_000, seed=(0, 1)).numpy()[:, 0]
    error = draws.std(axis=0) / np.sqrt(explore._MOMENT_DRAWS)
    assert (np.abs(found.loc - draws.mean(axis=0)) < 5 * error).all()
    assert np.allclose(found.covariance, np.cov(draws.T), rtol=0.35, atol=0.1 * draws.var())
    assert (explorer.activity > 0).all()


def test_state_of_the_model_is_left_alone(x):
    model = vae()
    before = [v.numpy() for v in model.variables]
    explorer = explore.Explorer(model, x)
    explorer.encode(x[0])
    explorer.decode(np.zeros(2))
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_conditional_model(x):
    labels = np.arange(40) % 3
    model = conditional_vae()
    explorer = explore.Explorer(model, x, labels)
    assert explorer.num_classes == 3
    np.testing.assert_array_equal(explorer.labels, labels)
    z = np.array([0.5, -0.5])
    for label in range(3):
        found = explorer.decode(z, explorer.condition(label=label))
        mean = model.likelihood(z[None], [label]).mean()[0]
        np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    found = explorer.encode(x[4], explorer.condition(4))
    q = model.posterior((x[4:5], labels[4:5]))
    np.testing.assert_allclose(found.loc, q.mean()[0], rtol=1e-5)
    assert explore.Explorer(model).decode(z, explorer.condition(label=2)).mean.shape == (64,)
    y = np.random.default_rng(0).normal(size=(40, 2))
    model = conditional_vae(num_classes=None)
    explorer = explore.Explorer(model, (x, y))
    assert explorer.labels is None
    found = explorer.decode(z, explorer.condition(7))
    np.testing.assert_allclose(found.mean, model.likelihood(z[None], y[7:8]).mean()[0], rtol=1e-5)


def test_at_most_so_many_codes_are_kept(monkeypatch, x):
    monkeypatch.setattr(explore, "MAX_CODES", 10)
    explorer = explore.Explorer(vae(), x, np.arange(40))
    assert explorer.codes.shape == (10, 2)
    np.testing.assert_array_equal(explorer.labels, explorer.indices)
    np.testing.assert_array_equal(explorer.x, x[explorer.indices])


def test_tables_have_named_columns():
    table = likelihoods.Columns(
        {"a": likelihoods.Normal(), "b": likelihoods.Poisson(), "c": likelihoods.Normal(2)}
    )
    explorer = explore.Explorer(vae(likelihood=table))
    assert explorer.names == ("a", "b", "c[0]", "c[1]")
    assert explorer.image_shape is None
    assert explore._image_shape("auto", (64,), is_table=True) is None


@pytest.mark.parametrize(
    ("event_shape", "given", "wanted"),
    [
        ((64,), "auto", (8, 8, 1)),
        ((49,), "auto", None),
        ((49,), (7, 7), (7, 7, 1)),
        ((65,), "auto", None),
        ((48,), (4, 4, 3), (4, 4, 3)),
        ((64,), None, None),
        ((5, 6), "auto", (5, 6, 1)),
        ((5, 6, 3), "auto", (5, 6, 3)),
        ((5, 6, 4), "auto", None),
    ],
)
def test_image_shapes(event_shape, given, wanted):
    assert explore._image_shape(given, event_shape, False) == wanted


# Drawing.


def test_dot_holds_as_much_ink_as_its_cone():
    r"""The volume of a frustum: $\pi/3 (a^2 + ab + b^2)$ with radii w/2 - 1/2 and w/2 + 1/2."""
    for width in (4.0, 7.5, 12.0):
        a, b = width / 2 - 0.5, width / 2 + 0.5
        ink = explore.stroke(np.zeros((40, 50)), (24.3, 19.1), (24.3, 19.1), width).sum()
        assert ink == pytest.approx(np.pi / 3 * (a * a + a * b + b * b), rel=0.01)


def test_stroke_covers_its_rectangle():
    """Straight lines: length times width, and the two half dots at the ends."""
    empty = np.zeros((60, 60))
    dot = explore.stroke(empty, (30, 30), (30, 30), 5.0).sum()
    for angle in np.linspace(0, np.pi, 7):
        along = 18 * np.array([np.cos(angle), np.sin(angle)])
        ink = explore.stroke(empty, 30 - along, 30 + along, 5.0).sum()
        assert ink == pytest.approx(36 * 5 + dot, rel=0.01)


points = st.tuples(st.floats(-5, 25), st.floats(-5, 15))


@settings(max_examples=50, deadline=None)
@given(points, points, st.floats(1, 6))
def test_strokes_have_no_preferred_side(start, end, width):
    empty = np.zeros((10, 20))
    canvas = explore.stroke(empty, start, end, width)
    assert canvas.min() >= 0
    assert canvas.max() <= 1
    (x0, y0), (x1, y1) = start, end
    mirrored = explore.stroke(empty, (20 - x0, y0), (20 - x1, y1), width)
    np.testing.assert_allclose(mirrored[:, ::-1], canvas, atol=1e-6)
    turned = explore.stroke(empty.T, (y0, x0), (y1, x1), width)
    np.testing.assert_allclose(turned.T, canvas, atol=1e-6)
    np.testing.assert_allclose(explore.stroke(empty, end, start, width), canvas, atol=1e-6)


def test_drawing_is_in_the_range_of_the_data(x):
    canvas = np.linspace(0, 1, 64).reshape(8, 8)
    drawn = explore.Explorer(vae(), 0.2 + 0.5 * (x - x.min()) / np.ptp(x)).drawing(canvas)
    assert drawn.shape == (64,)
    np.testing.assert_allclose([drawn.min(), drawn.max()], [0.2, 0.7], rtol=1e-5)
    raw = np.random.default_rng(0).integers(0, 256, (20, 8, 8)).astype("uint8")
    shape, rescale = likelihoods.Bernoulli((8, 8)), keras.layers.Rescaling(1 / 255)
    model = VAE(
        priors.StandardNormal(2),
        keras.Sequential([keras.layers.Flatten(), dense(4), posteriors.DiagonalNormal(2)]),
        keras.Sequential([dense(64), shape]),
        preprocessing=rescale,
        seed=0,
    )
    model.build((None, 8, 8))
    explorer = explore.Explorer(model, raw)
    drawn = explorer.drawing(canvas)
    assert drawn.shape == (8, 8)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, np.round(raw.min() + canvas * np.ptp(raw)))
    assert explorer.scale == (raw.min() / np.float32(255), raw.max() / np.float32(255))
    assert explorer.encode(drawn).elbo < 0
    counts = explore.Explorer(vae(likelihood=likelihoods.Binomial(64, total_count=16.0)))
    assert counts.is_whole
    assert set(np.unique(counts.drawing(canvas))) <= set(range(17))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.floats(0.5, 3))
def test_ellipse_is_at_one_distance(entries, num_sd):
    root = np.reshape(entries, (2, 2))
    covariance = root @ root.T + 0.1 * np.eye(2)
    points = explore.ellipse([1.0, -2.0], covariance, num_sd) - [1.0, -2.0]
    distance = np.einsum("ni,ij,nj->n", points, np.linalg.inv(covariance), points)
    np.testing.assert_allclose(distance, num_sd**2, rtol=1e-5)
    np.testing.assert_allclose(points[0], points[-1], atol=1e-9)


# The page, without a browser.


class Counted:
    """An explorer that counts what it is asked."""

    def __init__(self, explorer):
        self.explorer, self.codes_decoded = explorer, []

    def __getattr__(self, name):
        return getattr(self.explorer, name)

    def decode(self, z, *args):
        self.codes_decoded.append(np.array(z))
        return self.explorer.decode(z, *args)


def moved(x, y):
    return SimpleNamespace(x=x, y=y)


def test_latest_movement_wins(explorer, monkeypatch):
    counted = Counted(explorer)
    page = explore_page.Page(counted, Document(), "model")
    across, up = page.axes
    for k in range(10):
        page._on_drag(moved(0.1 * k, -0.1 * k))
    shown = [z[[across, up]].tolist() for z in counted.codes_decoded[-2:]]
    assert shown == [explorer.start.tolist(), [0.0, 0.0]] or shown[-1] == [0.0, 0.0]
    count = len(counted.codes_decoded)
    page.shown.data = {"serial": [page._serial]}  # The browser has painted the first.
    assert len(counted.codes_decoded) == count + 1
    np.testing.assert_allclose(counted.codes_decoded[-1][[across, up]], [0.9, -0.9])
    page.shown.data = {"serial": [page._serial]}
    assert len(counted.codes_decoded) == count + 1  # Nothing was asked since.
    page._on_drag(moved(1.0, 1.0))
    page._on_drag(moved(2.0, 2.0))
    monkeypatch.setattr(explore_page, "_PATIENCE", 0.0)
    page._on_drag(moved(3.0, 3.0))  # A browser that does not answer does not block it for good.
    np.testing.assert_allclose(counted.codes_decoded[-1][[across, up]], [3.0, 3.0])


def painted(page):
    page.shown.data = {"serial": [page._serial]}


def test_click_shows_the_example_and_its_posterior(explorer, x):
    page = explore_page.Page(explorer, Document(), "model")
    at = explorer.codes[7, list(page.axes)]
    page._on_tap(moved(*at))
    assert page.example == page.chosen.value == 7
    np.testing.assert_allclose(page.z, explorer.codes[7], rtol=1e-5)
    found = explorer.encode(x[7])
    assert f"ELBO {found.elbo:.1f} nats" in page.example_text.text
    assert page.marks["example"].visible
    assert page.marks["example"].location == found.elbo
    assert len(page.ellipses.data["xs"]) == 2
    for d in range(2):
        assert f"<td>{found.loc[d]:.2f}</td><td>{found.sd[d]:.2f}</td>" in page.table.text
        assert page.sliders[d].value == pytest.approx(found.loc[d], abs=0.006)
    painted(page)
    empty = page.plane.x_range.end, page.plane.y_range.end
    page._on_tap(moved(*empty))
    assert page.example == 7
    np.testing.assert_allclose(page.z[list(page.axes)], empty)


def test_sliders_keys_and_buttons(explorer):
    page = explore_page.Page(explorer, Document(), "model")
    page.sliders[1].value = 1.5
    assert page.z[1] == 1.5
    painted(page)
    page.keys.data = {"x": [1], "y": [-2], "count": [0]}
    across, up = (abs(r.end - r.start) / 40 for r in (page.plane.x_range, page.plane.y_range))
    expected = np.array([0.0, 1.5])
    expected[page.axes[0]] += across
    expected[page.axes[1]] -= 2 * up
    np.testing.assert_allclose(page.z, expected)
    painted(page)
    draw = page.code_view.source.data["image"][2].copy()
    page._on_new_draw()
    assert (page.code_view.source.data["image"][2] != draw).any()
    painted(page)
    page.selects[0].value, page.selects[1].value = "1", "0"
    assert page.axes == (1, 0)
    page._move(explorer.start)
    np.testing.assert_allclose(page.z, 0, atol=1e-6)


def test_drawing_on_the_page(explorer):
    page = explore_page.Page(explorer, Document(), "model")
    width, height = page.drawing_view.widths[0], page.drawing_view.heights[0]
    page._on_pen_down(moved(width / 4, height))
    page._on_pen(moved(width / 2, height / 2))
    page._on_pen_up(moved(width / 2, height / 2))
    painted(page)
    expected = explore.stroke(np.zeros((8, 8)), (2, 0), (4, 4), 1.0)
    np.testing.assert_allclose(page.canvas, expected)
    found = explorer.encode(explorer.drawing(expected))
    np.testing.assert_allclose(page.means.data["x"], [found.loc[page.axes[0]]], rtol=1e-5)
    assert f"ELBO {found.elbo:.1f}" in page.drawing_text.text
    painted(page)
    page._on_clear()
    assert not page.canvas.any()
    assert page.means.data["x"] == []


def test_pixels_are_upright_and_in_the_scale():
    image = np.array([[0.0, 0.5], [1.0, 2.0]])[..., None]
    pixels = explore_page._pixels(image, (0.0, 1.0), explore_page.palettes.Greys256)
    grey = pixels.view(np.uint8).reshape(2, 2, 4)
    assert grey[..., 3].min() == 255
    np.testing.assert_array_equal(grey[1, :, 0], [0, 128])  # The top row comes last.
    np.testing.assert_array_equal(grey[0, :, 0], [255, 255])
    colour = np.array([[[0.2, 0.4, 0.6]]])
    pixels = explore_page._pixels(colour, (0.0, 1.0), None).view(np.uint8)
    np.testing.assert_array_equal(pixels.ravel(), [51, 102, 153, 255])


@pytest.mark.long
@pytest.mark.parametrize(
    ("latent_size", "labels"),
    [(1, None), (1, "names"), (2, "numbers"), (2, "many"), (5, "names")],
)
def test_pages_of_all_kinds(latent_size, labels, x):
    given = {
        None: None,
        "numbers": np.random.default_rng(0).normal(size=40),
        "names": np.array(["one", "another"] * 20, dtype=object),
        "many": np.arange(40),
    }[labels]
    page = explore_page.Page(explore.Explorer(vae(latent_size), x, given), Document(), "model")
    page._on_drag(moved(0.5, 0.25))
    page._choose(3)
    assert len(page.sliders) == latent_size


@pytest.mark.parametrize("shown", [(64,), (4, 4, 3), (5,)])
def test_pages_without_data(shown):
    document = Document()
    model = vae(likelihood=likelihoods.Normal(shown)) if len(shown) == 1 else vae(size=48)
    shape = shown if len(shown) == 3 else "auto"
    page = explore_page.Page(explore.Explorer(model, image_shape=shape), document, "t")
    page._on_drag(moved(0.5, 0.25))
    assert document.title == "t - tfpvae"
    assert hasattr(page, "canvas") == (shown != (5,))
    assert page.histogram is None


# What is refused.


def test_other_models_are_refused():
    hierarchy = HierarchicalVAE.__new__(HierarchicalVAE)
    local = LocalVAE.__new__(LocalVAE)
    regression = BayesianRegression(likelihoods.Normal(), seed=0)
    for model, name in [(hierarchy, "HierarchicalVAE"), (local, "LocalVAE")]:
        with pytest.raises(TypeError, match=rf"^model: got a {name}, wanted a VAE or a Cond"):
            explore._checked(model)
    with pytest.raises(TypeError, match=r"^model: got a BayesianRegression, wanted a VAE"):
        explore.serve(regression)
    for model in (keras.Sequential([dense(2)]), 3, None, "no such file.keras"):
        with pytest.raises((TypeError, ValueError, OSError), match=r"^model|filepath|no such"):
            explore.serve(model, port=0, open_browser=False, block=False)
    discrete = VAE(
        priors.Bernoulli(3),
        keras.Sequential([dense(3), posteriors.Bernoulli(3)]),
        keras.Sequential([dense(4), likelihoods.Bernoulli(4)]),
        seed=0,
    )
    with pytest.raises(ValueError, match=r"^model: got one that has not seen data yet"):
        explore.Explorer(discrete)
    discrete.build((None, 4))
    with pytest.raises(ValueError, match=r"^model: got one with the posterior .*real numbers"):
        explore.Explorer(discrete)


def test_arguments_are_checked(x):
    model = vae()
    for arguments, error in [
        ({"x": x[:, :5]}, r"^x: got shape \(40, 5\)"),
        ({"x": x, "labels": np.arange(3)}, r"^labels: got shape \(3,\), wanted \(40,\)"),
        ({"labels": np.arange(3)}, r"^labels: got some without x"),
        ({"x": x, "image_shape": (3, 3)}, r"^image_shape: got \(3, 3\).*64 numbers"),
        ({"x": x, "image_shape": "no"}, r"^image_shape: got 'no'"),
        ({"port": 70_000}, r"^port: got 70000, wanted one of 1 to 65535"),
    ]:
        with pytest.raises(ValueError, match=error):
            explore.serve(model, **{"port": 0, "open_browser": False, "block": False, **arguments})
    with pytest.raises(TypeError, match=r"^port: got '5006', wanted an integer"):
        explore.serve(model, port="5006")
    with pytest.raises(TypeError, match=r"^open_browser: got 'no'"):
        explore.serve(model, open_browser="no")
    with pytest.raises(TypeError, match=r"^labels: got None with x, wanted the y"):
        explore.Explorer(conditional_vae(), x)
    with pytest.raises(ValueError, match=r"^x: got None, wanted \(x, y\)"):
        explore.Explorer(conditional_vae(num_classes=None))


def test_missing_bokeh_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(ImportError, match=r"pip install 'tfpvae\[explore\]'"):
        explore.serve(vae(), port=0)


def test_only_the_page_imports_bokeh():
    """So that the command line, and whoever imports the package, do without it."""
    folder = Path(tfpvae.__file__).parent
    for path in folder.glob("*.py"):
        body = [n for n in ast.parse(path.read_text()).body if path.name != "explore_page.py"]
        imports = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not any("bokeh" in ast.unparse(n) for n in imports), path.name


# The server.


def get(server, path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_server_is_for_this_machine_and_this_page_alone(x):
    opened = []
    with (
        pytest.MonkeyPatch.context() as patch,
        explore.serve(vae(), x, port=0, open_browser=False, block=False) as server,
    ):
        patch.setattr("webbrowser.open", opened.append)
        status, text = get(server)
        assert status == 200
        assert "cdn.bokeh.org" not in text
        assert "://" not in text.replace("http://www.w3.org", "")
        key = {"Sec-WebSocket-Key": "x" * 22 + "==", "Sec-WebSocket-Version": "13"}
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", **key}
        status, _ = get(server, "/ws", Origin="http://elsewhere.example", **upgrade)
        assert status == 403
        with contextlib.closing(explore._bound(0)) as bound:
            assert bound.getsockname()[0] == "127.0.0.1"
        if sys.platform == "linux":  # Where all of 127.0.0.0/8 is this machine.
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", server.port), 2)
        with pytest.raises(OSError, match=rf"port: got {server.port}, which is in use.*--port"):
            explore.serve(vae(), port=server.port, open_browser=False, block=False)
        port = server.port
    assert opened == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("webbrowser.open", opened.append)
        with explore.serve(vae(), port=port, block=False) as server:
            assert opened == [f"http://127.0.0.1:{port}/"]
            server.stop()
            server.stop()


def test_ctrl_c_ends_it(monkeypatch, capsys, tmp_path):
    path = tmp_path / "small.keras"
    vae().save(path)

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(explore.Server, "_join", interrupted)
    server = explore.serve(path, port=0, open_browser=False)
    assert not server._thread.is_alive()
    assert capsys.readouterr().out == (
        f"small.keras is shown at http://127.0.0.1:{server.port}/ (Ctrl-C ends it)\n"
    )


# A browser.


@pytest.fixture
def opened(x):
    """A page of a model in a browser; the console has to be silent at the end."""

    @contextlib.contextmanager
    def opened(model, *data, **kwargs):
        with (
            explore.serve(
                model, *data, port=0, open_browser=False, block=False, **kwargs
            ) as server,
            browser.opened(server.url) as page,
        ):
            page.server = server
            yield page
            assert page.complaints() == []
            resources = page.run(
                "return performance.getEntriesByType('resource').map((entry) => entry.name)"
            )
            assert resources
            assert all(name.startswith(server.url) for name in resources)

    return opened


def settled(page):
    """Wait until the page has shown all that was asked."""
    page.wait(lambda: page.run("return Bokeh.documents[0].is_idle"))
    serial = None
    while serial != (serial := page.data("sent")["serial"]):
        page.run("return null")
        page.driver.execute_async_script("setTimeout(arguments[0], 150)")


def cursor(page):
    data = page.data("cursor")
    return np.array([data["x"][0], data["y"][0]])


@needs_browser
def test_dragging_changes_the_picture(opened, x, tmp_path):
    with opened(vae(), x, np.arange(40) % 3, title="small.keras") as page:
        assert page.driver.title == "small.keras - tfpvae"
        before = page.data("code images")["image"][0]
        page.drag("plane", (0, 0), (1.0, 0.5), (1.5, -1.0))
        page.wait(lambda: np.allclose(cursor(page), [1.5, -1.0], atol=0.02))
        settled(page)
        model = vae()
        z = cursor(page)[np.argsort([int(page.value("across")), int(page.value("up"))])]
        mean = model.likelihood(z[None]).mean()[0].numpy().reshape(8, 8)
        image = np.array(page.data("code images")["image"][0], np.uint32)
        assert (image != np.array(before)).any()
        shown = image.view(np.uint8).reshape(8, 8, 4)[::-1, :, 0]
        np.testing.assert_allclose(shown, 255 * (mean - x.min()) / np.ptp(x), atol=1.5)
        assert page.driver.save_screenshot(str(tmp_path / "page.png"))


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize("latent_size", [1, 2, 50])
def test_clicks_drawings_and_keys(latent_size, opened, x, tmp_path):
    model = vae(latent_size)
    explorer = explore.Explorer(model, x)
    with opened(model, x, np.arange(40) % 3) as page:
        points = page.data("points")
        places = np.stack([points["x"], points["y"]], axis=-1)
        gaps = np.linalg.norm(places[:, None] - places, axis=-1) + 9 * np.eye(len(places))
        chosen = int(gaps.min(axis=1).argmax())  # The one that is farthest from others.
        page.click("plane", *places[chosen])
        page.wait(lambda: page.value("chosen") == chosen)
        settled(page)
        expected = explorer.codes[chosen]
        for d in range(latent_size):
            assert page.value(f"z{d}") == pytest.approx(expected[d], abs=0.011)
        if latent_size > 1:
            np.testing.assert_allclose(cursor(page), places[chosen], atol=1e-4)
        assert len(page.data("example images")["image"]) == 2
        # Arrow keys move the focused plane.
        before = cursor(page)
        view = "Bokeh.index.find_one(Bokeh.documents[0].get_model_by_name('plane'))"
        page.run(f"{view}.canvas_view.events_el.focus()")
        for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP):
            ActionChains(page.driver).send_keys(key).perform()
            settled(page)
        low, high = explorer.limits[explorer.order[0]]
        assert cursor(page)[0] - before[0] == pytest.approx(2 * (high - low) / 40, rel=1e-3)
        assert (cursor(page)[1] > before[1]) == (latent_size > 1)
        # A drawing lands in the plane.
        path = (30, 130), (110, 130), (60, 10)
        page.drag("drawing", *path)
        page.wait(lambda: len(page.data("means")["x"]) == 2)
        settled(page)
        drawn = np.array(page.data("drawing images")["image"][0], np.uint32).view(np.uint8)
        side = page.data("drawing images")["width"][0] / 8  # of a pixel of the canvas
        corners = [(px / side, 8 - py / side) for px, py in path]
        expected = explore.stroke(np.zeros((8, 8)), *corners[:2], 1.0)
        expected = explore.stroke(expected, *corners[1:], 1.0)
        np.testing.assert_allclose(drawn.reshape(8, 8, 4)[::-1, :, 0], 255 * expected, atol=16)
        assert page.driver.save_screenshot(str(tmp_path / "page.png"))
        # The pointer is followed when it is told to be.
        page.move("plane", 0.5, 0.5)
        settled(page)
        assert abs(cursor(page)[0] - 0.5) > 0.01
        page.press("hover")
        page.move("plane", 0.4, 0.5)
        page.wait(lambda: abs(cursor(page)[0] - 0.4) < 0.02)
        page.press("reset")
        page.wait(lambda: np.allclose(cursor(page), 0, atol=1e-3))


@needs_browser
@pytest.mark.long
def test_everything_is_reached_by_keyboard(opened, x):
    explorer = explore.Explorer(conditional_vae(), x, np.arange(40) % 3)
    with opened(explorer.model, x, np.arange(40) % 3) as page:
        reached = []
        for _ in range(40):
            ActionChains(page.driver).send_keys(Keys.TAB).perform()
            reached.append(page.focused())
        wanted = ["across", "up", "y", "hover", "plane", "reset", "new draw"]
        wanted += [*(f"z{d}" for d in explorer.order), "chosen", "clear"]
        order = [name for name, _ in itertools.groupby(reached) if name in wanted]
        assert order[: len(wanted)] == wanted
        # A focused slider moves by arrow keys.
        page.run("document.activeElement?.blur()")
        for _ in range(40):
            ActionChains(page.driver).send_keys(Keys.TAB).perform()
            if page.focused() == "z0":
                break
        before = page.value("z0")
        ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT * 5).perform()
        settled(page)
        assert page.value("z0") > before


@needs_browser
@pytest.mark.long
def test_each_tab_has_its_own_state_and_survives_a_reload(opened, x):
    with opened(vae(), x) as page:
        page.drag("plane", (0, 0), (1.0, 1.0))
        page.wait(lambda: np.allclose(cursor(page), [1.0, 1.0], atol=0.02))
        first = page.driver.current_window_handle
        page.driver.switch_to.new_window("tab")
        browser.load(page, page.server.url)
        np.testing.assert_allclose(cursor(page), 0, atol=1e-6)
        page.drag("plane", (0, 0), (-1.0, 0.5))
        page.wait(lambda: np.allclose(cursor(page), [-1.0, 0.5], atol=0.02))
        page.driver.switch_to.window(first)
        np.testing.assert_allclose(cursor(page), [1.0, 1.0], atol=0.02)
        page.driver.refresh()
        browser.ready(page)
        np.testing.assert_allclose(cursor(page), 0, atol=1e-6)
        page.drag("plane", (0, 0), (-0.5, 0.5))
        page.wait(lambda: np.allclose(cursor(page), [-0.5, 0.5], atol=0.02))


@needs_browser
@pytest.mark.long
def test_tables_and_conditions(opened, x):
    table = np.random.default_rng(0).normal(size=(30, 5))
    with opened(vae(likelihood=likelihoods.Normal(5)), table, np.linspace(0, 1, 30)) as page:
        before = page.data("code images")["mean"]
        page.drag("plane", (0, 0), (1.0, 1.0))
        page.wait(lambda: page.data("code images")["mean"] != before)
        page.click("plane", *(page.data("points")[key][3] for key in ("x", "y")))
        page.wait(lambda: page.data("example images")["y"])
    with opened(conditional_vae(), x, np.arange(40) % 3) as page:
        before = page.data("code images")["image"][0]
        page.select("y", "2")
        page.wait(lambda: page.data("code images")["image"][0] != before)
