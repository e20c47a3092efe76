"""What ArviZ makes of a regression's posterior, beside closed forms."""

import sys
import warnings

import numpy as np
import pytest
import tf_keras as keras
from scipy import special, stats

from tfpvae import VAE, BayesianRegression, likelihoods, posteriors, priors
from tfpvae.arviz_export import latents_to_arviz, to_arviz

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
    az = pytest.importorskip("arviz")

FEATURES = ["dose", "age"]


def with_ones(x):
    return np.column_stack([x, np.ones(len(x))])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2))
    return x, with_ones(x) @ [1.0, -2.0, 0.5] + 0.5 * rng.normal(size=80)


@pytest.fixture(scope="module")
def model(data):
    """Linear regression with known noise and N(0, 1) coefficients: all has a closed form."""
    model = BayesianRegression(
        likelihoods.Normal(scale=0.5), feature_names=FEATURES, intercept_scale=1.0, seed=0
    )
    model.fit(*data, verbose=0)
    return model


@pytest.fixture(scope="module")
def exact(data):
    x, y = data
    design = with_ones(x)
    covariance = np.linalg.inv(design.T @ design / 0.25 + np.eye(3))
    return covariance @ design.T @ y / 0.25, covariance


@pytest.fixture(scope="module")
def exported(model, data):
    return to_arviz(model, 4000, x=data[0], y=data[1])


def test_summary_has_the_exact_means_and_sds(exported, exact):
    table = az.summary(exported, kind="stats", round_to=6)
    names = ["weights[dose]", "weights[age]", "intercept"]
    assert {*table.index} == {*names}
    mean, covariance = exact
    rows = table.loc[names].astype(float)
    sds = np.sqrt(np.diag(covariance))
    # 4000 draws: the standard error of a mean is sd / 63, that of an sd sd / 89.
    np.testing.assert_allclose((rows["mean"] - mean) / sds, 0, atol=0.07)
    np.testing.assert_allclose(rows["sd"] / sds, 1, atol=0.05)


def test_dimensions_and_coordinates(exported):
    posterior = exported.posterior
    assert posterior["weights"].dims == ("chain", "draw", "feature")
    assert posterior["weights"].shape == (1, 4000, 2)
    assert posterior["intercept"].dims == ("chain", "draw")
    assert posterior["feature"].values.tolist() == FEATURES
    assert exported.log_likelihood["y"].dims == ("chain", "draw", "row")
    assert exported.observed_data["y"].dims == ("row",)


def test_the_draws_are_the_models_own(model):
    posterior = to_arviz(model, 50, seed=3).posterior
    draws = model.draws(50, seed=3)
    for i, name in enumerate(FEATURES):
        np.testing.assert_allclose(posterior["weights"][0, :, i], draws[name], rtol=1e-4)
    np.testing.assert_allclose(posterior["intercept"][0], draws["intercept"], rtol=1e-4)


def test_log_likelihood_of_each_draw_and_row(exported, data):
    x, y = data
    weights, intercept = (exported.posterior[name].values[0] for name in ("weights", "intercept"))
    expected = stats.norm.logpdf(y, weights @ x.T + intercept[:, None], 0.5)
    np.testing.assert_allclose(exported.log_likelihood["y"].values[0], expected, atol=1e-4)


def test_posterior_predictive_has_the_exact_moments(exported, data, exact):
    mean, covariance = exact
    design = with_ones(data[0])
    sd = np.sqrt(np.einsum("ni,ij,nj->n", design, covariance, design) + 0.25)
    draws = exported.posterior_predictive["y"].values[0]
    # The largest of 80 errors of about sd / 63 and sd / 89.
    np.testing.assert_allclose((draws.mean(axis=0) - design @ mean) / sd, 0, atol=0.08)
    np.testing.assert_allclose(draws.std(axis=0) / sd, 1, atol=0.06)


def test_loo_is_the_exact_leave_one_out_density(exported, data):
    x, y = data
    total = 0.0
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        design, new = with_ones(x[rest]), with_ones(x)[i]
        covariance = np.linalg.inv(design.T @ design / 0.25 + np.eye(3))
        mean = covariance @ design.T @ y[rest] / 0.25
        total += stats.norm.logpdf(y[i], new @ mean, np.sqrt(new @ covariance @ new + 0.25))
    loo = az.loo(exported)
    found = loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo  # ArviZ 1.x and 0.x
    assert float(found) == pytest.approx(total, abs=0.3)


def test_classes_have_a_dimension_and_names():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(90, 2))
    names = np.array(["ash", "elm", "oak"])
    y = names[np.argmax(x @ [[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]] + rng.gumbel(size=(90, 3)), axis=1)]
    model = BayesianRegression(likelihoods.Categorical(num_classes=3), seed=0)
    model.fit(x, y, steps=100, verbose=0)
    found = to_arviz(model, 200, x=x, y=y)
    weights, intercept = (found.posterior[name] for name in ("weights", "intercept"))
    assert weights.dims == ("chain", "draw", "feature", "class")
    assert intercept.dims == ("chain", "draw", "class")
    assert found.posterior["class"].values.tolist() == names.tolist()
    draws = model.draws(200)
    np.testing.assert_allclose(
        weights.sel(feature="x1", **{"class": "oak"})[0], draws["x1[oak]"], rtol=1e-4, atol=1e-5
    )
    codes = np.searchsorted(names, y)
    assert np.array_equal(found.observed_data["y"].values, codes)
    logits = np.einsum("np,spk->snk", x, weights.values[0]) + intercept.values[0][:, None]
    expected = special.log_softmax(logits, axis=-1)[:, np.arange(90), codes]
    np.testing.assert_allclose(found.log_likelihood["y"].values[0], expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"y: got unknown labels \['fir'\], wanted some of"):
        to_arviz(model, 10, x=x[:1], y=["fir"])


@pytest.mark.long
def test_other_parameters_are_as_the_likelihood_takes_them():
    rng = np.random.default_rng(2)
    x, exposure = rng.normal(size=(100, 1)), rng.uniform(1.0, 5.0, size=100)
    y = rng.poisson(exposure * np.exp(0.5 * x[:, 0]) * rng.gamma(2.0, 0.5, size=100))
    model = BayesianRegression(likelihoods.NegativeBinomial(), standardize=True, seed=0)
    model.fit(x, y, steps=100, exposure=exposure, verbose=0)
    found = to_arviz(model, 100, x=x, y=y, exposure=exposure)
    draws = model.draws(100)
    (name,) = set(draws) - {"x0", "intercept"}
    assert set(found.posterior.data_vars) == {"weights", "intercept", name}
    np.testing.assert_allclose(found.posterior[name].values[0], draws[name], rtol=1e-4)
    mean = exposure * np.exp(np.outer(draws["x0"], x[:, 0]) + draws["intercept"][:, None])
    count = 1 / draws[name][:, None]
    expected = stats.nbinom.logpmf(y, count, count / (count + mean))
    np.testing.assert_allclose(found.log_likelihood["y"].values[0], expected, atol=1e-3)


def test_several_parameters_that_depend_on_x():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(100, 2))
    y = x[:, 0] + np.exp(0.5 * x[:, 1]) * rng.normal(size=100)
    model = BayesianRegression(
        likelihoods.Normal(), depends=["loc", "scale"], fit_intercept=False, seed=0
    )
    model.fit(x, y, steps=50, verbose=0)
    found = to_arviz(model, 20, x=x, y=y)
    assert set(found.posterior.data_vars) == {"loc_weights", "scale_weights"}
    loc, scale = (found.posterior[f"{name}_weights"].values[0] @ x.T for name in ("loc", "scale"))
    expected = stats.norm.logpdf(y, loc, np.log1p(np.exp(scale)))
    np.testing.assert_allclose(found.log_likelihood["y"].values[0], expected, atol=1e-3)


@pytest.mark.long
def test_cutpoints_and_no_data():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(100, 1))
    model = BayesianRegression(likelihoods.Ordinal(num_classes=3), seed=0)
    model.fit(x, np.digitize(x[:, 0] + rng.logistic(size=100), [-1.0, 1.0]), steps=50, verbose=0)
    found = to_arviz(model, 20)
    draws = model.draws(20)
    assert set(found.posterior.data_vars) == {"weights", "cutpoints"}
    for i in range(2):
        np.testing.assert_allclose(
            found.posterior["cutpoints"][0, :, i], draws[f"cutpoints[{i}]"], rtol=1e-4, atol=1e-5
        )
    assert not hasattr(found, "log_likelihood")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"x": np.zeros((2, 2))}, "y: got x or y alone, wanted both or none"),
        ({"x": np.zeros((2, 3)), "y": [0.0, 1.0]}, r"x: got shape \(2, 3\), wanted \(N, 2\)"),
        ({"x": np.zeros((2, 2)), "y": [0.0]}, r"y: got shape \(1,\), wanted 2 rows"),
        ({"x": np.zeros((2, 2)), "y": [0.0, np.nan]}, "y: got NaN or infinite values"),
        ({"x": np.zeros((2, 2)), "y": [0.0, 1.0], "offset": [1.0]}, "offset: got shape"),
        ({"num_samples": 0}, "num_samples: got 0"),
    ],
)
def test_mistakes_are_named(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(model, **kwargs)


def test_without_arviz(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install 'tfpvae\[arviz\]'"):
        to_arviz(model)


def test_codes_of_a_linear_gaussian_model():
    """With the exact posterior each weight is p(x), and the draws have its mean and sd."""
    slope, scale = 1.5, 0.5
    precision = 1 + slope**2 / scale**2
    raw = np.log(np.expm1(precision**-0.5))
    posterior, likelihood = posteriors.DiagonalNormal(1), likelihoods.Normal(1, scale=scale)
    encoder = keras.Sequential([keras.layers.Dense(2), posterior])
    decoder = keras.Sequential([keras.layers.Dense(1), likelihood])
    vae = VAE(priors.StandardNormal(1), encoder, decoder, seed=0)
    vae.build((None, 1))
    vae.encoder.layers[0].set_weights(
        [np.array([[slope / scale**2 / precision, 0.0]]), np.array([0.0, raw])]
    )
    vae.decoder.layers[0].set_weights([np.array([[slope]]), np.zeros(1)])
    x = np.array([[-1.0], [0.0], [2.5]], "float32")
    found = latents_to_arviz(vae, x, num_samples=4000, seed=1)
    evidence = stats.norm(0, np.hypot(slope, scale)).logpdf(x[:, 0])
    weights = found.sample_stats["log_weight"].values
    np.testing.assert_allclose(weights, np.broadcast_to(evidence, (1, 4000, 3)), atol=1e-4)
    z = found.posterior["z"].values[0, :, :, 0]
    error = precision**-0.5 / np.sqrt(4000)
    np.testing.assert_allclose(
        z.mean(axis=0), slope / scale**2 / precision * x[:, 0], atol=4 * error
    )
    np.testing.assert_allclose(z.std(axis=0), precision**-0.5, rtol=0.05)
    log_likelihood = found.log_likelihood["x"].values[0]
    np.testing.assert_allclose(
        log_likelihood, stats.norm(slope * z, scale).logpdf(x[:, 0]), atol=1e-3
    )
    draws = found.posterior_predictive["x"].values[0, :, :, 0]
    np.testing.assert_allclose(np.std(draws - slope * z, axis=0), scale, rtol=0.05)
    np.testing.assert_array_equal(found.observed_data["x"].values, x)
    again = latents_to_arviz(vae, x, num_samples=4000, seed=1)
    np.testing.assert_array_equal(again.posterior["z"].values[0, :, :, 0], z)
    assert {"mean", "sd"} <= {*az.summary(found, var_names=["z"], kind="stats").columns}


def test_codes_are_of_a_vae_with_a_density(model):
    with pytest.raises(TypeError, match=r"vae: got .*, wanted a VAE with one q"):
        latents_to_arviz(model, np.zeros((3, 2)))
