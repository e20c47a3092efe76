"""The estimators in scikit-learn's own checks and beside its own estimators."""

import importlib
import pickle
import sys

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("sklearn", minversion="1.6")

from scipy import integrate, stats
from sklearn.base import clone
from sklearn.decomposition import FactorAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from tfpvae import regression
from tfpvae.estimators import BayesianClassifier, BayesianRegressor, VariationalAutoencoder

QUICK = {"posterior": "DiagonalNormal", "steps": 1}


@pytest.fixture
def untraced(monkeypatch):
    """A hundred fits without TensorFlow's tracing, which is most of the time of so short ones."""
    monkeypatch.setattr(regression, "_MAX_CURVATURE", 0)  # Second derivatives are always traced.
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# What TensorFlow says of that.
quiet = pytest.mark.filterwarnings("ignore:Even though the `tf.config.*eagerly:UserWarning")

SMALL = {"hidden": (4,), "steps": 1, "batch_size": 1000}
checks = parametrize_with_checks(
    [BayesianClassifier(**QUICK), BayesianRegressor(**QUICK), VariationalAutoencoder(**SMALL)]
)


# The checks have data with a single row, with constant columns and with dependent ones.
@pytest.mark.filterwarnings("ignore:x. got:UserWarning")
@quiet
@pytest.mark.usefixtures("untraced")
# A list, for the generator of older versions is none of pytest's collections.
@pytest.mark.long
@pytest.mark.parametrize(checks.args[0], [*checks.args[1]], ids=checks.kwargs["ids"])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def binary(size=2000):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 3)) * [1.0, 50.0, 0.1] + [0.0, 30.0, 2.0]
    logits = x[:, 0] - 0.02 * x[:, 1] + 1.0
    return x, np.where(rng.random(size) < 1 / (1 + np.exp(-logits)), "yes", "no")


def three_classes(size=2000):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(size, 2))
    logits = x @ [[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]]
    return x, np.array(["b", "a", "c"])[np.argmax(logits + rng.gumbel(size=(size, 3)), axis=1)]


@pytest.mark.parametrize("data", [binary, pytest.param(three_classes, marks=pytest.mark.long)])
def test_probabilities_are_those_of_penalized_logistic_regression(data):
    """With much data the posterior is narrow around its mode, which penalized likelihood finds."""
    x, y = data()
    classifier = BayesianClassifier(prior_scale=0.5, random_state=0).fit(x, y)
    standardized = (x - x.mean(axis=0)) / x.std(axis=0)
    peer = LogisticRegression(C=0.25, tol=1e-8).fit(standardized, y)
    assert np.array_equal(classifier.classes_, peer.classes_)
    probs, expected = classifier.predict_proba(x), peer.predict_proba(standardized)
    # A logit has a posterior sd of about sqrt(P / (N p (1 - p))) < 0.15, by which averaging moves
    # a probability at most by |p''| / 2 * 0.15**2 < 0.0011, and 500 draws by 0.25 * 0.15 / 22.
    np.testing.assert_allclose(probs, expected, atol=0.01)
    assert np.mean(classifier.predict(x) == peer.predict(standardized)) > 0.99
    assert classifier.score(x, y) == np.mean(classifier.predict(x) == y)
    np.testing.assert_allclose(classifier.predict_log_proba(x), np.log(probs))


def test_a_posterior_is_less_sure_than_its_mode():
    """With little data, far from it, the average over the posterior is nearer to one half."""
    x, y = binary(20)
    far = np.array([[4.0, 30.0, 2.0]])
    classifier = BayesianClassifier(random_state=0).fit(x, y)
    peer = LogisticRegression(C=1.0).fit((x - x.mean(axis=0)) / x.std(axis=0), y)
    certain = peer.predict_proba((far - x.mean(axis=0)) / x.std(axis=0))[0, 1]
    assert 0.5 < classifier.predict_proba(far)[0, 1] < certain - 0.01
    with pytest.raises(ValueError, match="num_samples: got 0, wanted a positive integer"):
        classifier.set_params(num_samples=0).predict(far)


def linear(size=100):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(size, 2)) * [1.0, 20.0]
    return x, 500.0 + 30.0 * x[:, 0] - x[:, 1] + 5.0 * rng.normal(size=size)


def test_regression_is_ridge_regression_with_its_noise():
    x, y = linear()
    regressor = BayesianRegressor(random_state=0).fit(x, y)
    mean, std = regressor.predict(x, return_std=True)
    standardized = (x - x.mean(axis=0)) / x.std(axis=0)
    noise = np.std(y - Ridge(alpha=0.0).fit(x, y).predict(x), ddof=3)
    # N(0, 1) for standardized columns and y is a penalty of (noise / sd(y))**2.
    peer = Ridge(alpha=(noise / y.std()) ** 2).fit(standardized, y)
    design = np.column_stack([np.ones(100), standardized])
    leverage = np.einsum("ni,ij,nj->n", design, np.linalg.inv(design.T @ design), design)
    np.testing.assert_allclose((mean - peer.predict(standardized)) / noise, 0, atol=0.05)
    np.testing.assert_allclose(std / (noise * np.sqrt(1 + leverage)), 1, atol=0.05)
    assert np.array_equal(mean, regressor.predict(x))
    residuals = 1 - np.mean((y - mean) ** 2) / np.var(y)
    assert regressor.score(x, y) == pytest.approx(residuals)


@pytest.mark.long
def test_a_known_scale_is_in_units_of_y():
    x, y = linear()
    known = {"likelihood_arguments": {"scale": 50.0}, "random_state": 0}
    means, stds = zip(
        *(
            BayesianRegressor(standardize=flag, prior_scale=scale, intercept_scale=1e3, **known)
            .fit(x, y)
            .predict(x, return_std=True)
            for flag, scale in ((True, 100.0), (False, 1000.0))  # Both hardly matter.
        ),
        strict=True,
    )
    np.testing.assert_allclose(stds[0], 50.0, rtol=0.06)  # sqrt(1 + leverage) < 1.06
    np.testing.assert_allclose(means[0], means[1], atol=1.0)
    np.testing.assert_allclose(stds[0], stds[1], rtol=0.01)


@pytest.mark.long
def test_student_t_does_not_follow_outliers():
    x, y = linear()
    wrong = np.where(np.arange(100) % 10 == 0, y + 2000.0, y)
    robust = BayesianRegressor("StudentT", random_state=0).fit(x, wrong)
    truth = 500.0 + 30.0 * x[:, 0] - x[:, 1]
    assert np.abs(robust.predict(x) - truth).max() < 10.0
    assert np.abs(Ridge(alpha=0.0).fit(x, wrong).predict(x) - truth).max() > 100.0


def test_counts():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 1))
    y = rng.poisson(np.exp(0.5 * x[:, 0] + 1.0))
    regressor = BayesianRegressor("Poisson", random_state=0).fit(x, y)
    mean, std = regressor.predict(x, return_std=True)
    # Fisher's information: sum(rate * x**2) = 960 and sum(rate) = 920.
    np.testing.assert_allclose(np.log(mean), 0.5 * x[:, 0] + 1.0, atol=0.25)
    np.testing.assert_allclose(std, np.sqrt(mean), rtol=0.1)
    assert (regressor.y_center_, regressor.y_scale_) == (0.0, 1.0)
    with pytest.raises(ValueError, match="outside the support of Poisson"):
        BayesianRegressor("Poisson").fit(x, y + 0.5)


@quiet
@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("estimator", [BayesianClassifier(), BayesianRegressor()])
def test_weights_are_repetitions(estimator):
    """Also for columns with few values, whose mean and scale they change."""
    rng = np.random.default_rng(4)
    x = np.column_stack([rng.integers(0, 2, 40), rng.normal(size=40)]).astype(float)
    y = rng.integers(0, 2, 40)
    weight = rng.integers(0, 4, 40) + 3 * (x[:, 0] > 0)
    estimator = clone(estimator).set_params(steps=2, random_state=0)
    weighted = clone(estimator).fit(x, y, sample_weight=weight)
    repeated_x = np.repeat(x, weight, axis=0)
    repeated = clone(estimator).fit(repeated_x, np.repeat(y, weight))
    assert np.array_equal(weighted.predict(x), repeated.predict(x))
    means = [e.model_.coefficients.mean().numpy() for e in (weighted, repeated)]
    assert np.array_equal(*means)
    scaler = StandardScaler().fit(repeated_x)
    np.testing.assert_allclose(weighted.model_.center, scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(weighted.model_.scale, scaler.scale_, rtol=1e-6)


@quiet
@pytest.mark.usefixtures("untraced")
def test_a_random_state_repeats_exactly():
    x, y = binary(100)
    probs = [
        BayesianClassifier(steps=2, random_state=seed).fit(x, y).predict_proba(x)
        for seed in (1, np.random.RandomState(1), 2)
    ]
    assert np.array_equal(probs[0], probs[1])
    assert not np.array_equal(probs[0], probs[2])


def test_pickled_and_back_is_the_same_and_knows_its_names():
    pandas = pytest.importorskip("pandas")
    x, y = binary(100)
    table = pandas.DataFrame(x, columns=["a", "b", "c"])
    classifier = BayesianClassifier(steps=20, random_state=0).fit(table, y)
    again = pickle.loads(pickle.dumps(classifier))
    assert again.feature_names_in_.tolist() == ["a", "b", "c"]
    assert again.model_.coefficient_names == ["a", "b", "c", "intercept"]
    assert np.array_equal(again.predict_proba(table), classifier.predict_proba(table))
    assert pickle.loads(pickle.dumps(BayesianClassifier(steps=7))).steps == 7


@pytest.mark.long
def test_in_a_pipeline_with_cross_validation():
    x, y = binary(200)
    pipeline = make_pipeline(StandardScaler(), BayesianClassifier(steps=50, random_state=0))
    scores = cross_val_score(pipeline, x, y, cv=2, scoring="neg_log_loss")
    peer = make_pipeline(StandardScaler(), LogisticRegression())
    expected = cross_val_score(peer, x, y, cv=2, scoring="neg_log_loss")
    np.testing.assert_allclose(scores, expected, atol=0.02)  # In nats, of about 0.5.


@pytest.mark.long
@quiet
@pytest.mark.usefixtures("untraced")
def test_a_grid_of_prior_scales():
    """A prior of scale 0.001 on the standardized scale leaves nothing to predict with."""
    x, y = linear(60)
    search = GridSearchCV(
        BayesianRegressor(steps=1, random_state=0), {"prior_scale": [0.001, 1.0]}, cv=2
    )
    search.fit(x, y)
    assert search.best_params_ == {"prior_scale": 1.0}
    low, high = search.cv_results_["mean_test_score"]
    assert low < 0.1
    assert high > 0.9


@pytest.mark.long
def test_a_learned_prior_scale():
    """The evidence, a closed form, is largest there."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(100, 10))
    y = x @ (0.3 * rng.normal(size=10)) + rng.normal(size=100)
    arguments = {"likelihood_arguments": {"scale": 1.0}, "fit_intercept": False}
    regressor = BayesianRegressor(
        prior_scale="learned", standardize=False, random_state=0, **arguments
    ).fit(x, y)
    grid = np.linspace(0.15, 0.6, 46)
    evidence = [
        stats.multivariate_normal.logpdf(y, np.zeros(100), np.eye(100) + s**2 * x @ x.T)
        for s in grid
    ]
    found = float(regressor.model_.prior().stddev())
    assert found == pytest.approx(grid[np.argmax(evidence)], rel=0.05)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (BayesianClassifier(prior_scale=0.0), "prior_scale: got 0.0, wanted a number > 0"),
        (BayesianClassifier(prior_scale="best"), "prior_scale: got 'best', wanted one of"),
        (BayesianClassifier(posterior="Normal"), "posterior: got 'Normal', wanted one of"),
        (BayesianClassifier(intercept_scale=-1), "intercept_scale: got -1, wanted a number"),
        (BayesianClassifier(steps=0), "steps: got 0, wanted a positive integer"),
        (BayesianRegressor("Gauss"), "likelihood: got 'Gauss', wanted one of"),
    ],
)
def test_mistakes_are_named(estimator, message):
    with pytest.raises(ValueError, match=message):
        estimator.fit(np.eye(4), [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1, 1, 1, -1], "sample_weight: got shape"),
        ([1, 0, 1, 0], "y: got one class only, .*0.*, in rows of positive weight"),
        ([0, 0, 0, 0], "sample_weight: got a weight of zero for all rows"),
    ],
)
def test_weights_that_leave_nothing_to_learn(weight, message):
    with pytest.raises(ValueError, match=message):
        BayesianClassifier().fit(np.eye(4), [0, 1, 0, 1], sample_weight=weight)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "tfpvae.estimators")
    with pytest.raises(ImportError, match=r"pip install 'tfpvae\[sklearn\]'"):
        importlib.import_module("tfpvae.estimators")


def spread(size=200):
    """Rows near a plane in three dimensions, in units of their own."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(size, 2)) @ [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    return 5.0 + 40.0 * (x + 0.3 * rng.normal(size=(size, 3)))


@pytest.fixture(scope="module")
def autoencoder():
    return VariationalAutoencoder(hidden=(8,), steps=600, random_state=0).fit(spread())


@pytest.mark.long
def test_scores_are_log_densities_in_units_of_x():
    """Their exponentials add up to one, and they are what quadrature over z says."""
    x = 100.0 + 20.0 * np.random.default_rng(0).gamma(2.0, size=(300, 1))
    vae = VariationalAutoencoder(1, hidden=(8,), steps=200, num_samples=2000, random_state=0)
    vae.fit(x)
    grid = np.linspace(-150.0, 500.0, 2001)[:, None]
    total = integrate.trapezoid(np.exp(vae.score_samples(grid)), grid[:, 0])
    assert total == pytest.approx(1, abs=0.01)
    z = np.linspace(-8.0, 8.0, 4001)
    kernel, bias = vae.model_.decoder.layers[0].get_weights()
    h = np.maximum(z[:, None] @ kernel + bias, 0.0)
    kernel, bias = vae.model_.decoder.layers[1].get_weights()
    loc, raw = (h @ kernel + bias).T
    scale = np.logaddexp(0.0, raw) * x.std()
    likelihood = stats.norm(x.mean() + x.std() * loc, scale).pdf(x[:20])
    density = integrate.trapezoid(likelihood * stats.norm.pdf(z), z, axis=1)
    np.testing.assert_allclose(vae.score_samples(x[:20]), np.log(density), atol=0.02)
    assert vae.score(x[:20]) == pytest.approx(np.log(density).mean(), abs=0.02)


@pytest.mark.long
def test_a_linear_autoencoder_is_factor_analysis():
    """On new rows of a linear-Gaussian model it comes as close to the truth."""
    rng = np.random.default_rng(4)
    weights, noise = rng.normal(size=(2, 6)), np.linspace(0.3, 1.0, 6)
    x = rng.normal(size=(4000, 2)) @ weights + noise * rng.normal(size=(4000, 6))
    truth = stats.multivariate_normal(np.zeros(6), weights.T @ weights + np.diag(noise**2))
    vae = VariationalAutoencoder(2, hidden=(), learning_rate=0.03, random_state=0)
    vae.fit(x[:3000])
    peer = FactorAnalysis(2).fit(x[:3000])
    best = truth.logpdf(x[3000:]).mean()
    assert abs(peer.score(x[3000:]) - best) < 0.02
    assert abs(vae.score(x[3000:]) - best) < 0.05


def test_units_make_no_difference(autoencoder):
    x = spread()
    other = clone(autoencoder).fit(1000.0 * x - 3.0)
    codes = autoencoder.transform(x)
    np.testing.assert_allclose(other.transform(1000.0 * x - 3.0), codes, atol=1e-6)
    decoded = autoencoder.inverse_transform(codes)
    np.testing.assert_allclose(other.inverse_transform(codes), 1000.0 * decoded - 3.0, rtol=1e-6)
    shift = 3 * np.log(1000.0)
    assert other.score(1000.0 * x - 3.0) == pytest.approx(autoencoder.score(x) - shift, abs=1e-5)
    assert np.mean((decoded - x) ** 2) < 0.5 * x.var()


def test_seeds_draws_and_pickles(autoencoder):
    x = spread()
    draws = autoencoder.sample(4000, seed=1)
    np.testing.assert_allclose(draws.mean(axis=0), x.mean(axis=0), atol=0.3 * x.std())
    np.testing.assert_allclose(draws.std(axis=0), x.std(axis=0), rtol=0.3)
    again = clone(autoencoder).fit(x)
    np.testing.assert_array_equal(again.transform(x), autoencoder.transform(x))
    loaded = pickle.loads(pickle.dumps(autoencoder))
    np.testing.assert_array_equal(loaded.score_samples(x), autoencoder.score_samples(x))


@pytest.mark.long
def test_pipelines_searches_and_frames():
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame(spread(), columns=["a", "b", "c"])
    y = np.where(x["a"] > 5.0, "far", "near")
    vae = VariationalAutoencoder(hidden=(8,), steps=600, random_state=0)
    pipeline = make_pipeline(StandardScaler(), vae, LogisticRegression())
    assert cross_val_score(pipeline, x, y, cv=2).mean() > 0.7
    search = GridSearchCV(vae, {"latent_size": [1, 2]}, cv=2).fit(x)
    assert search.best_params_ == {"latent_size": 2}
    table = vae.set_output(transform="pandas").fit(x).transform(x)
    assert list(table.columns) == ["variationalautoencoder0", "variationalautoencoder1"]
    with pytest.raises(ValueError, match="feature names"):
        vae.transform(x[["b", "a", "c"]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latent_size": 0}, "latent_size: got 0"),
        ({"likelihood": "Gauss"}, "likelihood: got 'Gauss', wanted one of"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0"),
        ({"likelihood": "Bernoulli"}, "X: got values from .* outside the support of Bernoulli"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"steps": -1}, "steps: got -1"),
    ],
)
def test_bad_arguments_of_the_autoencoder(wrong, message):
    with pytest.raises(ValueError, match=message):
        VariationalAutoencoder(**wrong).fit(spread())


def test_codes_of_another_size_are_refused(autoencoder):
    with pytest.raises(ValueError, match=r"got shape \(4, 3\), wanted \(..., 2\)"):
        autoencoder.inverse_transform(np.zeros((4, 3)))
