"""Bayesian regression beside closed forms, NUTS and scikit-learn."""

import functools
import warnings

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import special, stats

from tfpvae import BayesianRegression, DistributionLayer, likelihoods, posteriors, priors

tfd = tfp.distributions

UNIT = {"intercept_scale": 1.0, "seed": 0}  # N(0, 1) for intercepts, too


def step_by_step(model):
    """For a single step there is nothing to trace, which takes a second."""
    model.compile(run_eagerly=True)
    return model


def with_ones(x):
    return np.column_stack([x, np.ones(len(x))])


# Linear regression with known noise: everything has a closed form.


class Linear:
    """The exact posterior, evidence and predictions for N(0, 1) coefficients."""

    def __init__(self, x, y, scale, prior_scale=1.0):
        design = with_ones(x)
        size = design.shape[1]
        precision = design.T @ design / scale**2 + np.eye(size) / prior_scale**2
        self.covariance = np.linalg.inv(precision)
        self.mean = self.covariance @ design.T @ y / scale**2
        marginal = scale**2 * np.eye(len(x)) + prior_scale**2 * design @ design.T
        self.log_evidence = stats.multivariate_normal.logpdf(y, np.zeros(len(y)), marginal)
        self.scale = scale

    def predictive(self, x):
        design = with_ones(x)
        variance = np.einsum("ni,ij,nj->n", design, self.covariance, design) + self.scale**2
        return design @ self.mean, np.sqrt(variance)


@pytest.fixture(scope="module")
def linear_data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 3)) @ np.array([[1.0, 0.6, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 1.0]])
    return x, with_ones(x) @ [1.0, -2.0, 0.5, 0.7] + 0.5 * rng.normal(size=60)


@pytest.fixture(scope="module")
def linear(linear_data):
    model = BayesianRegression(likelihoods.Normal(scale=0.5), **UNIT)
    model.fit(*linear_data, verbose=0)
    return model


def test_linear_regression_has_the_exact_posterior(linear, linear_data):
    exact = Linear(*linear_data, 0.5)
    q = linear.coefficients
    sds = np.sqrt(np.diag(exact.covariance))
    np.testing.assert_allclose(q.mean(), exact.mean, atol=0.01 * sds.max())
    np.testing.assert_allclose(
        q.covariance() / np.outer(sds, sds), exact.covariance / np.outer(sds, sds), atol=0.01
    )


def test_linear_regression_has_the_exact_evidence(linear, linear_data):
    exact = Linear(*linear_data, 0.5)
    assert linear.elbo(*linear_data) == pytest.approx(exact.log_evidence, abs=0.01)
    loss = linear.evaluate(*linear_data, verbose=0)[0]
    assert -60 * loss == pytest.approx(exact.log_evidence, abs=1.0)  # with few draws


def test_linear_regression_predicts_with_the_exact_spread(linear, linear_data, rng):
    exact = Linear(*linear_data, 0.5)
    new = 3 * rng.normal(size=(50, 3))
    mean, sd = exact.predictive(new)
    p = linear.predict_distribution(new, num_samples=4000)
    assert p.batch_shape == (50,)
    np.testing.assert_allclose(p.mean(), mean, atol=0.05)
    np.testing.assert_allclose(p.stddev(), sd, rtol=0.03)
    np.testing.assert_allclose(linear.predict(new, num_samples=4000), p.mean(), rtol=1e-5)
    np.testing.assert_allclose(p.log_prob(mean + sd), stats.norm.logpdf(1) - np.log(sd), atol=0.1)


def test_the_likelihood_at_each_draw(linear, linear_data, rng):
    new = rng.normal(size=(7, 3))
    p = linear.conditional_distribution(new, num_samples=4000)
    assert p.batch_shape == (7, 4000)
    mean, sd = Linear(*linear_data, 0.5).predictive(new)
    np.testing.assert_allclose(p.mean().numpy().mean(axis=1), mean, atol=0.02)
    np.testing.assert_allclose(p.mean().numpy().std(axis=1) ** 2, sd**2 - 0.25, rtol=0.1)


def test_mean_field_has_the_means_and_known_too_small_sds(linear_data):
    exact = Linear(*linear_data, 0.5)
    model = BayesianRegression(
        likelihoods.Normal(scale=0.5), None, posteriors.DiagonalNormal, **UNIT
    )
    model.fit(*linear_data, verbose=0)
    # The optimum of a mean-field normal for a normal posterior (Bishop 2006, section 10.1.2).
    sds = 1 / np.sqrt(np.diag(np.linalg.inv(exact.covariance)))
    np.testing.assert_allclose(model.coefficients.stddev(), sds, rtol=0.02)
    np.testing.assert_allclose(model.coefficients.mean(), exact.mean, atol=0.1 * sds.min())


def test_a_learned_prior_scale_is_that_of_largest_evidence(linear_data):
    def negative_log_evidence(log_scale):
        return -Linear(*linear_data, 0.5, np.exp(log_scale)).log_evidence

    best = np.exp(
        scipy.optimize.minimize_scalar(negative_log_evidence, bounds=(-3, 3), method="bounded").x
    )
    prior = priors.Normal((), loc=0.0)
    model = BayesianRegression(likelihoods.Normal(scale=0.5), prior, **UNIT)
    model.fit(*linear_data, verbose=0)
    assert prior().stddev().numpy() == pytest.approx(best, rel=0.02)
    assert len(model.trainable_weights) == 2


def test_a_prior_of_each_coefficient(linear_data):
    x, y = linear_data
    tight = priors.Prior("Normal", 4, loc=0.0, scale=[10.0, 1e-3, 10.0, 10.0])
    model = BayesianRegression(likelihoods.Normal(scale=0.5), tight, **UNIT)
    model.fit(x, y, verbose=0)
    assert abs(model.coefficients.mean()[1]) < 0.01
    rest = np.linalg.lstsq(with_ones(x[:, [0, 2]]), y, rcond=None)[0]
    np.testing.assert_allclose(model.coefficients.mean().numpy()[[0, 2, 3]], rest, atol=0.03)


@pytest.mark.long
def test_standardized_coefficients_are_reported_on_the_scale_of_x(linear_data):
    x, y = linear_data
    raw = x * [1.0, 200.0, 0.01] + [5.0, 3000.0, 0.2]
    model = BayesianRegression(
        likelihoods.Normal(scale=0.5),
        priors.Prior("Normal", loc=0.0, scale=100.0),
        standardize=True,
        seed=0,
    )
    model.fit(raw, y, verbose=0)
    design = with_ones(raw)
    expected = np.linalg.lstsq(design, y, rcond=None)[0]
    sds = 0.5 * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    q = model.coefficients
    np.testing.assert_allclose((q.mean() - expected) / sds, 0, atol=0.05)
    np.testing.assert_allclose(q.stddev() / sds, 1, atol=0.05)
    np.testing.assert_allclose(model.predict(raw), design @ expected, atol=0.05)


def test_weights_count_in_the_scale_of_columns_too(linear_data):
    x, y = linear_data
    weight = np.random.default_rng(0).integers(1, 4, size=60)
    models = [
        step_by_step(BayesianRegression(likelihoods.Normal(scale=0.5), standardize=True))
        for _ in "ab"
    ]
    models[0].fit(x, y, sample_weight=weight, steps=1, verbose=0)
    models[1].fit(np.repeat(x, weight, 0), np.repeat(y, weight), steps=1, verbose=0)
    np.testing.assert_allclose(models[0].center, models[1].center, rtol=1e-6)
    np.testing.assert_allclose(models[0].scale, models[1].scale, rtol=1e-6)


# NUTS, with the densities written down apart.


def nuts(log_prob, size, num=1000, step_size=0.1):
    """Draws `[num, 4, size]` from a density."""

    @tf.function(jit_compile=True)
    def run():
        kernel = tfp.mcmc.NoUTurnSampler(log_prob, step_size)
        kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(kernel, 400)
        return tfp.mcmc.sample_chain(
            num,
            tf.zeros([4, size]),
            kernel=kernel,
            num_burnin_steps=500,
            trace_fn=None,
            seed=[0, 1],
        )

    draws = run().numpy()
    assert tfp.mcmc.potential_scale_reduction(draws).numpy().max() < 1.02
    return draws.reshape(-1, size)


def standard_normal(w):
    return -0.5 * tf.reduce_sum(w**2, axis=-1)


def dot(w, x):
    return tf.linalg.matmul(w, tf.constant(x, tf.float32), transpose_b=True)


def breast_cancer():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    x, y = sklearn_datasets.load_breast_cancer(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), y


def correlated():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(400, 1))
    x = 0.95 * common + np.sqrt(1 - 0.95**2) * rng.normal(size=(400, 5))
    logits = with_ones(x) @ [1.0, -1.0, 0.5, 0.0, 2.0, 0.3]
    return x, (rng.random(400) < special.expit(logits)).astype(int)


@pytest.mark.long
@pytest.mark.parametrize("data", [breast_cancer, correlated])
def test_logistic_regression_has_the_posterior_of_nuts(data):
    x, y = data()
    design = with_ones(x)

    def log_prob(w):
        eta = dot(w, design)
        return standard_normal(w) + tf.reduce_sum(y * eta - tf.nn.softplus(eta), axis=-1)

    draws = nuts(log_prob, design.shape[1], num=2000)
    mean, sd = draws.mean(axis=0), draws.std(axis=0)
    for posterior, limit in ((posteriors.FullRankNormal, 0.1), (posteriors.DiagonalNormal, 0.25)):
        model = BayesianRegression(likelihoods.Bernoulli(), None, posterior, **UNIT)
        model.fit(x, y, verbose=0)
        q = model.coefficients
        assert np.abs((q.mean() - mean) / sd).max() < limit
        ratio = q.stddev().numpy() / sd
        if posterior is posteriors.FullRankNormal:
            assert np.abs(ratio - 1).max() < 0.1
        else:
            assert ratio.max() < 1.1
            assert ratio.min() < 0.6  # as docs/regression.md says


@pytest.fixture(scope="module")
def wine():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    x, y = sklearn_datasets.load_wine(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order, :4], y[order]


def softmax_model(x, y):
    model = BayesianRegression(likelihoods.Categorical(num_classes=3), **UNIT)
    model.fit(x[:120], y[:120], verbose=0)
    return model


@pytest.fixture(scope="module")
def softmax(wine):
    return softmax_model(*wine)


@pytest.mark.long
def test_softmax_regression_predicts_as_nuts(wine, softmax):
    x, y = wine
    design = with_ones(x)

    def log_prob(w):
        logits = tf.stack([dot(part, design[:120]) for part in tf.split(w, 3, axis=-1)], axis=-1)
        chosen = tf.reduce_sum(tf.one_hot(y[:120], 3) * tf.nn.log_softmax(logits), axis=(-2, -1))
        return standard_normal(w) + chosen

    draws = nuts(log_prob, 15, num=2000)
    logits = np.einsum("skc,nc->snk", draws.reshape(-1, 3, 5), design[120:])
    expected = special.softmax(logits, axis=-1).mean(axis=0)
    p = softmax.predict_distribution(x[120:], num_samples=4000)
    np.testing.assert_allclose(p.probs_parameter(), expected, atol=0.01)


@pytest.mark.long
def test_softmax_regression_does_not_know_the_order_of_classes(wine, softmax):
    x, y = wine
    new = np.array([2, 0, 1])
    before, after = softmax, softmax_model(x, new[y])
    probs = [
        model.predict_distribution(x, num_samples=20_000).probs_parameter().numpy()
        for model in (before, after)
    ]
    np.testing.assert_allclose(probs[1][:, new], probs[0], atol=0.01)
    sd = np.reshape(before.coefficients.stddev(), (3, 5))
    means = [np.reshape(model.coefficients.mean(), (3, 5)) for model in (before, after)]
    np.testing.assert_allclose((means[1][new] - means[0]) / sd, 0, atol=0.05)


def poisson(w, x, y):
    eta = dot(w, with_ones(x))
    return tf.reduce_sum(y * eta - tf.exp(eta), axis=-1)


def negative_binomial(w, x, y):
    mean, dispersion = tf.exp(dot(w[..., :3], with_ones(x))), tf.nn.softplus(w[..., 3:])
    count = 1 / dispersion
    terms = (
        tf.math.lgamma(y + count)
        - tf.math.lgamma(count)
        + count * tf.math.log(count / (count + mean))
    )
    return tf.reduce_sum(terms + y * tf.math.log(mean / (count + mean)), axis=-1)


def student_t(w, x, y):
    scale = tf.nn.softplus(w[..., 3:])
    z = (y - dot(w[..., :3], with_ones(x))) / scale
    return tf.reduce_sum(-2.5 * tf.math.log1p(z**2 / 4) - tf.math.log(scale), axis=-1)


def ordinal(w, x, y):
    """Cutpoints c1 < c2: the first is free, the second an exponential above it."""
    first = w[..., :1]
    second = first + tf.exp(w[..., 1:2])
    loc = dot(w[..., 2:], x)
    low, high = tf.sigmoid(first - loc), tf.sigmoid(second - loc)
    probs = tf.where(y == 0, low, tf.where(y == 1, high - low, 1 - high))
    return tf.reduce_sum(tf.math.log(probs), axis=-1)


def simulated(name):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 2))
    eta = with_ones(x) @ [0.8, -0.5, 0.3]
    y = {
        "poisson": lambda: rng.poisson(np.exp(eta)),
        "negative_binomial": lambda: rng.poisson(np.exp(eta) * rng.gamma(2.0, 0.5, 200)),
        "student_t": lambda: eta + 0.5 * rng.standard_t(4, size=200),
        "ordinal": lambda: np.digitize(eta - 0.3 + rng.logistic(size=200), [-0.5, 1.0]),
    }[name]()
    return x, y.astype("float32")


OTHERS = {
    "poisson": (poisson, lambda: likelihoods.Poisson(), 3),
    "negative_binomial": (negative_binomial, lambda: likelihoods.NegativeBinomial(), 4),
    "student_t": (student_t, lambda: likelihoods.StudentT(df=4.0), 4),
    "ordinal": (ordinal, lambda: likelihoods.Ordinal(num_classes=3), 4),
}


def moments(log_prob, size, num=200_000):
    """Mean and standard deviation by importance sampling from a wide t around the mode."""

    of_one = tf.function(log_prob, autograph=False)

    def energy(w):
        return -float(of_one(tf.constant(w[np.newaxis], tf.float32))[0])

    found = scipy.optimize.minimize(energy, np.zeros(size), method="Nelder-Mead", tol=1e-3)
    mode, step = found.x, 0.02
    steps = step * np.eye(size)
    curvature = [
        [sum(a * b * energy(mode + a * p + b * q) for a in (-1, 1) for b in (-1, 1)) for p in steps]
        for q in steps
    ]
    covariance = np.linalg.inv(np.array(curvature) / (4 * step**2))
    proposal = stats.multivariate_t(mode, 1.5 * covariance, df=5, seed=0)
    w = proposal.rvs(num)
    parts = [log_prob(tf.constant(part, tf.float32)) for part in np.array_split(w, 20)]
    weights = special.softmax(np.concatenate(parts) - proposal.logpdf(w))
    assert 1 / (weights**2).sum() > num / 10  # effective number of draws
    mean = weights @ w
    return mean, np.sqrt(weights @ (w - mean) ** 2)


@functools.cache
def model_of(name):
    model = BayesianRegression(OTHERS[name][1](), **UNIT)
    model.fit(*simulated(name), verbose=0)
    return model


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_other_likelihoods_have_the_exact_posterior_moments(name):
    log_likelihood, _, size = OTHERS[name]
    x, y = simulated(name)
    mean, sd = moments(lambda w: standard_normal(w) + log_likelihood(w, x, y), size)
    model = model_of(name)
    q = model.coefficients
    assert len(model.coefficient_names) == size
    np.testing.assert_allclose((q.mean() - mean) / sd, 0, atol=0.15)
    np.testing.assert_allclose(q.stddev() / sd, 1, atol=0.1)


@pytest.mark.long
def test_what_does_not_depend_on_x_is_reported_as_the_likelihood_takes_it():
    model = model_of("student_t")
    assert model.coefficient_names == ["x0", "x1", "intercept", "scale (unconstrained)"]
    draws = model.draws()
    assert [*draws] == ["x0", "x1", "intercept", "scale"]
    assert draws["scale"].mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(
        np.log1p(np.exp(model.coefficients.sample(1000, seed=1)[:, 3])).mean(),
        draws["scale"].mean(),
        atol=0.01,
    )


PREDICTIONS = {
    "Bernoulli": (lambda: likelihoods.Bernoulli(), [0.0, 1.0], [0.5, 0.8]),
    "Categorical": (lambda: likelihoods.Categorical(num_classes=3), [2.0, 2.0], [2, 2]),
    "Ordinal": (lambda: likelihoods.Ordinal(num_classes=3), [0.0, 2.0], [0, 2]),
    "Ordinal of one grade": (lambda: likelihoods.Ordinal(num_classes=3), [2.0, 2.0], [2, 2]),
    "OneHotCategorical": (lambda: likelihoods.OneHotCategorical(2), np.eye(2), np.eye(2)),
    "StudentT": (lambda: likelihoods.StudentT(df=4.0, scale=0.1), [1.0, 3.0], [1.0, 3.0]),
    "Poisson": (lambda: likelihoods.Poisson(), [1.0, 6.0], [1.0, 6.0]),
}


@pytest.mark.long
@pytest.mark.parametrize("name", PREDICTIONS)
def test_what_predict_returns(name):
    """The mean of each of two groups, or the class."""
    make, values, expected = PREDICTIONS[name]
    x = np.repeat([[0.0], [1.0]], 200, axis=0)
    y = np.repeat(np.array(values), 200, axis=0)
    if name == "Bernoulli":
        y = np.tile([0, 1], 200)
        y[200:] = np.tile([0, 1, 1, 1, 1], 40)
    prior = None if "Ordinal" in name else priors.Prior("Normal", loc=0.0, scale=10.0)
    model = BayesianRegression(make(), prior, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of one class only
        model.fit(x, y, steps=100, verbose=0)
    np.testing.assert_allclose(model.predict([[0.0], [1.0]]), expected, rtol=0.05, atol=0.05)


@pytest.mark.long
def test_two_parameters_that_depend_on_x(rng):
    """Noise that grows with x: a second predictor for the scale."""
    x = rng.normal(size=(2000, 1))
    y = 2 * x[:, 0] + np.log1p(np.exp(x[:, 0])) * rng.normal(size=2000)
    model = BayesianRegression(likelihoods.Normal(), depends=["loc", "scale"], seed=0)
    model.fit(x, y, verbose=0)
    assert model.coefficient_names == [
        "loc: x0",
        "loc: intercept",
        "scale: x0",
        "scale: intercept",
    ]
    np.testing.assert_allclose(model.coefficients.mean(), [2, 0, 1, 0], atol=0.15)


def test_several_targets(rng):
    x = rng.normal(size=(300, 2))
    weights = np.array([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0]])
    y = x @ weights + [0.0, 1.0, 2.0] + 0.1 * rng.normal(size=(300, 3))
    model = BayesianRegression(likelihoods.Normal(3, scale=0.1), seed=0)
    model.fit(x, y, verbose=0)
    expected = np.vstack([weights, [0.0, 1.0, 2.0]]).T.ravel()
    np.testing.assert_allclose(model.coefficients.mean(), expected, atol=0.03)
    assert model.coefficient_names[:4] == ["x0[0]", "x1[0]", "intercept[0]", "x0[1]"]
    assert model.predict(x).shape == (300, 3)


# Counts, weights, batches.


@pytest.mark.long
def test_exposure_is_a_factor_of_the_rate_and_offset_its_logarithm():
    x, _ = simulated("poisson")
    rng = np.random.default_rng(5)
    exposure = rng.uniform(0.5, 20.0, size=200)
    y = rng.poisson(exposure * np.exp(with_ones(x) @ [0.8, -0.5, 0.3]))
    model = BayesianRegression(likelihoods.Poisson(), seed=0)
    model.fit(x, y, exposure=exposure, verbose=0)
    np.testing.assert_allclose(model.coefficients.mean(), [0.8, -0.5, 0.3], atol=0.1)
    other = BayesianRegression(likelihoods.Poisson(), seed=0)
    other.fit(x, y, offset=np.log(exposure), verbose=0)
    assert np.array_equal(other.coefficients.mean(), model.coefficients.mean())
    without = model.predict(x)
    np.testing.assert_allclose(model.predict(x, exposure=exposure), exposure * without, rtol=1e-4)
    loss = model.evaluate(x, y, exposure=exposure, verbose=0)[0]
    assert loss < model.evaluate(x, y, verbose=0)[0]


def test_a_weight_of_two_is_a_row_that_comes_twice(linear_data):
    x, y = linear_data
    weight = np.random.default_rng(0).integers(1, 4, size=60).astype(float)
    exact = Linear(np.repeat(x, weight.astype(int), 0), np.repeat(y, weight.astype(int)), 0.5)
    model = BayesianRegression(likelihoods.Normal(scale=0.5), **UNIT)
    model.fit(x, y, sample_weight=weight, verbose=0)
    sds = np.sqrt(np.diag(exact.covariance))
    np.testing.assert_allclose((model.coefficients.mean() - exact.mean) / sds, 0, atol=0.02)
    np.testing.assert_allclose(model.coefficients.stddev() / sds, 1, atol=0.02)


@pytest.mark.long
def test_mini_batches_have_the_posterior_of_all_rows(linear_data):
    exact = Linear(*linear_data, 0.5)
    model = BayesianRegression(likelihoods.Normal(scale=0.5), **UNIT)
    history = model.fit(*linear_data, batch_size=16, steps=6000, verbose=0)
    sds = np.sqrt(np.diag(exact.covariance))
    np.testing.assert_allclose((model.coefficients.mean() - exact.mean) / sds, 0, atol=0.1)
    np.testing.assert_allclose(model.coefficients.stddev() / sds, 1, atol=0.1)
    assert len(history.history["loss"]) == 10


@pytest.mark.long
def test_a_stream_of_batches(linear_data):
    x, y = linear_data
    exact = Linear(x, y, 0.5)
    stream = tf.data.Dataset.from_tensors((x.astype("float32"), y.astype("float32"))).repeat(2000)
    model = BayesianRegression(likelihoods.Normal(scale=0.5), **UNIT)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, 2000)))
    model.fit(stream, num_data=60, verbose=0)
    np.testing.assert_allclose(model.coefficients.mean(), exact.mean, atol=0.01)


def test_the_learning_rate_falls_to_zero_over_a_stream(linear_data):
    x, y = (part.astype("float32") for part in linear_data)
    stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(25)
    model = BayesianRegression(likelihoods.Normal(scale=0.5), seed=0)
    model.fit(stream, num_data=60, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 6
    schedule = model.optimizer.get_config()["learning_rate"]["config"]
    assert schedule["decay_steps"] == 6


@pytest.mark.long
def test_rows_that_are_held_out_are_not_trained_on(linear_data):
    """A wild y in the last rows shows in the validation alone."""
    x, y = linear_data
    wild = np.append(y, np.full(20, 1000.0))
    model = BayesianRegression(likelihoods.Normal(scale=0.5), **UNIT)
    history = model.fit(np.vstack([x, x[:20]]), wild, validation_split=0.25, verbose=0).history
    exact = Linear(x, y, 0.5)
    np.testing.assert_allclose(model.coefficients.mean(), exact.mean, atol=0.01)
    assert float(model.num_data) == 60
    assert history["val_nll"][-1] > 1000 * history["nll"][-1]


# The manners of Keras.


def test_history_and_evaluation(linear_data):
    x, y = linear_data
    model = BayesianRegression(likelihoods.Normal(scale=0.5), seed=0)
    history = model.fit(x, y, steps=50, validation_data=(x, y), verbose=0).history
    assert {*history} == {"loss", "nll", "kl", "val_loss", "val_nll", "val_kl"}
    np.testing.assert_allclose(np.add(history["nll"], history["kl"]), history["loss"], rtol=1e-5)
    logs = model.evaluate(x, y, verbose=0, return_dict=True, batch_size=60)
    assert logs["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-5)
    q, p = model.coefficients, tfd.MultivariateNormalDiag(tf.zeros(4), [1.0, 1.0, 1.0, 10.0])
    assert 60 * logs["kl"] == pytest.approx(tfd.kl_divergence(q, p).numpy(), rel=1e-3)


def test_epochs_are_passes_and_a_compiled_model_keeps_its_optimizer(linear_data):
    model = BayesianRegression(likelihoods.Normal(scale=0.5), seed=0)
    optimizer = keras.optimizers.SGD(0.01)
    model.compile(optimizer)
    history = model.fit(*linear_data, epochs=3, batch_size=20, verbose=0)
    assert len(history.history["loss"]) == 3
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 9


@pytest.mark.long
@pytest.mark.parametrize("steps", [1, 25])
def test_at_least_so_many_steps(steps, linear_data):
    model = BayesianRegression(likelihoods.Normal(scale=0.5), seed=0)
    model.fit(*linear_data, steps=steps, verbose=0)
    assert steps <= int(model.optimizer.iterations) < steps + 10


@pytest.mark.long
def test_keras_own_loop_takes_as_many_steps(linear_data):
    model = BayesianRegression(likelihoods.Normal(scale=0.5), seed=0)
    model.compile(keras.optimizers.Adam(), run_eagerly=True)
    model.fit(*linear_data, steps=12, verbose=0)  # Ten epochs, of two passes each.
    assert 12 <= int(model.optimizer.iterations) < 22


@pytest.mark.long
def test_a_seed_repeats_bit_for_bit(linear_data):
    runs = []
    for seed in (1, 1, 2):
        model = BayesianRegression(likelihoods.Normal(), seed=seed)
        model.fit(*linear_data, steps=100, verbose=0)
        runs.append(np.array(model.coefficients.mean()))
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.long
def test_a_second_fit_goes_on(linear_data):
    model = BayesianRegression(likelihoods.Normal(scale=0.5), seed=0)
    first = model.fit(*linear_data, steps=300, verbose=0).history["loss"]
    second = model.fit(*linear_data, steps=100, verbose=0).history["loss"]
    assert second[0] < first[0]


def test_a_model_that_is_not_compiled_is_saved(tmp_path):
    model = BayesianRegression(likelihoods.Normal(scale=1.0), seed=0)
    model.build((None, 2))
    model.unconstrained.assign_add(tf.ones_like(model.unconstrained))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert set(loaded.unconstrained.numpy()) == {1.0}


def test_saved_and_loaded_in_safe_mode(tmp_path, linear_data):
    x, y = linear_data
    model = BayesianRegression(
        likelihoods.Categorical(num_classes=2),
        priors.Normal((), loc=0.0),
        standardize=True,
        feature_names=["a", "b", "c"],
        class_names=["no", "yes"],
        seed=0,
    )
    model.fit(x, np.where(y > 0, "yes", "no"), steps=100, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.coefficient_names == model.coefficient_names
    assert loaded.coefficient_names[0] == "a[no]"
    assert np.array_equal(loaded.coefficients.mean(), model.coefficients.mean())
    assert np.array_equal(loaded.predict(x), model.predict(x))
    before = np.array(loaded.coefficients.mean())
    loaded.fit(x, np.where(y > 0, "no", "yes"), steps=10, verbose=0)
    assert np.abs(loaded.coefficients.mean() - before).max() > 0.1  # The old rate is at zero.


def test_any_posterior_block(linear_data):
    """One that is no Gaussian has draws all the same."""
    model = BayesianRegression(
        likelihoods.Normal(scale=0.5), posterior=DistributionLayer("Laplace", 4), **UNIT
    )
    model.fit(*linear_data, steps=300, verbose=0)
    assert model.coefficients.sample(10, seed=0).shape == (10, 4)
    assert np.isfinite(model.coefficients.log_prob(model.coefficients.sample(seed=0)))
    assert model.draws(20)["x0"].shape == (20,)


def test_summary(linear, linear_data, capsys):
    linear.summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["mean", "sd", "3%", "97%"]
    exact = Linear(*linear_data, 0.5)
    for i, line in enumerate(lines[1:]):
        name, *numbers = line.split()
        assert name == ["x0", "x1", "x2", "intercept"][i]
        sd = np.sqrt(exact.covariance[i, i])
        expected = exact.mean[i] + sd * np.array([0, 1, *stats.norm.ppf([0.03, 0.97])])
        expected[1] = sd
        np.testing.assert_allclose([float(n) for n in numbers], expected, atol=0.1 * sd)


def test_names(linear):
    assert linear.coefficient_names == ["x0", "x1", "x2", "intercept"]
    assert linear.coefficients.names == ("x0", "x1", "x2", "intercept")


def test_labels_that_are_names(rng):
    x = rng.normal(size=(100, 1))
    y = np.where(x[:, 0] > 0, "up", "down")
    named, plain = (
        step_by_step(BayesianRegression(likelihoods.Bernoulli(), seed=0)) for _ in range(2)
    )
    named.fit(x, y, steps=1, verbose=0)
    plain.fit(x, (x[:, 0] > 0).astype(int), steps=1, verbose=0)
    assert np.array_equal(named.coefficients.mean(), plain.coefficients.mean())
    with pytest.raises(
        ValueError, match=r"y: got unknown labels \['left'\], wanted some of \['down"
    ):
        named.evaluate(x[:2], ["up", "left"])


# What is hard, and what is wrong.


def quiet_fit(model, *data, **kwargs):
    """Without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model.fit(*data, verbose=0, **kwargs)


def test_separable_classes_have_a_proper_posterior():
    x = np.linspace(-1, 1, 40)[:, None]
    model = BayesianRegression(likelihoods.Bernoulli(), **UNIT)
    quiet_fit(model, x, (x[:, 0] > 0).astype(int))

    grid = np.linspace(-8, 8, 161)
    w, b = grid[:, None, None], grid[:, None]  # [161, 161, 40] with the rows of x
    eta = np.where(x[:, 0] > 0, 1, -1) * (w * x[:, 0] + b)
    log_prior = stats.norm.logpdf(grid)[:, None] + stats.norm.logpdf(grid)
    log_probs = log_prior - np.logaddexp(0, -eta).sum(axis=-1)
    probs = np.exp(log_probs - log_probs.max())
    marginal = probs.sum(axis=1) / probs.sum()
    mean = (grid * marginal).sum()
    sd = np.sqrt(((grid - mean) ** 2 * marginal).sum())
    assert float(model.coefficients.mean()[0]) == pytest.approx(mean, abs=0.1 * sd)
    assert float(model.coefficients.stddev()[0]) == pytest.approx(sd, rel=0.1)


def test_more_columns_than_rows_leave_the_rest_to_the_prior(rng):
    x, y = rng.normal(size=(5, 20)), rng.normal(size=5)
    model = BayesianRegression(likelihoods.Normal(scale=0.5), **UNIT)
    quiet_fit(model, x, y)
    exact = Linear(x, y, 0.5)
    np.testing.assert_allclose(model.coefficients.mean(), exact.mean, atol=0.05)
    np.testing.assert_allclose(
        model.coefficients.stddev(), np.sqrt(np.diag(exact.covariance)), rtol=0.05
    )


def test_one_row(rng):
    model = BayesianRegression(likelihoods.Normal(scale=0.5), **UNIT)
    with pytest.warns(UserWarning, match="x: got one row: the posterior will hardly differ"):
        model.fit([[1.0, 2.0]], [3.0], verbose=0)
    exact = Linear(np.array([[1.0, 2.0]]), np.array([3.0]), 0.5)
    np.testing.assert_allclose(model.coefficients.mean(), exact.mean, atol=0.05)


@pytest.mark.long
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only(label, rng):
    model = BayesianRegression(likelihoods.Bernoulli(), **UNIT)
    with pytest.warns(UserWarning, match=f"y: got one class only, {label}"):
        model.fit(rng.normal(size=(30, 1)), np.full(30, label), verbose=0)
    assert (model.predict(np.zeros((1, 1)))[0] > 0.5) == bool(label)
    assert model.coefficients.stddev()[1] > 0.3


def test_constant_columns_are_named(rng):
    x = rng.normal(size=(30, 3))
    x[:, 1] = 4.0
    for standardize in (False, True):
        model = BayesianRegression(
            likelihoods.Normal(scale=1.0), feature_names=["a", "b", "c"], standardize=standardize
        )
        with pytest.warns(UserWarning, match="constant columns, b: only the prior"):
            step_by_step(model).fit(x, x[:, 0], steps=1, verbose=0)
        assert np.isfinite(model.coefficients.mean()).all()


def test_dependent_columns_are_named(rng):
    x = rng.normal(size=(50, 4))
    x[:, 3] = x[:, 0] - 2 * x[:, 1]
    model = BayesianRegression(likelihoods.Normal(scale=1.0))
    with pytest.warns(UserWarning, match=r"linear combinations of the others, such as x[013]:"):
        step_by_step(model).fit(x, x[:, 0], steps=1, verbose=0)


def test_independent_columns_raise_no_warning(rng):
    x = rng.normal(size=(50, 4)) + 3.0
    model = step_by_step(BayesianRegression(likelihoods.Normal(scale=1.0)))
    quiet_fit(model, x, x[:, 0], steps=1)


def test_columns_of_very_different_scale(rng):
    x = rng.normal(size=(50, 2)) * [1.0, 1000.0]
    plain, standardized = (
        step_by_step(BayesianRegression(likelihoods.Normal(scale=1.0), standardize=flag))
        for flag in (False, True)
    )
    with pytest.warns(UserWarning, match="differ by a factor of .* pass standardize=True"):
        plain.fit(x, x[:, 0], steps=1, verbose=0)
    quiet_fit(standardized, x, x[:, 0], steps=1)


X = np.random.default_rng(0).normal(size=(6, 2))
NAN = np.where(np.arange(12).reshape(6, 2) == 3, np.nan, X)


def regression(likelihood, **kwargs):
    return BayesianRegression(likelihood, **kwargs)


MISTAKES = {
    "NaN in x": (
        lambda: regression(likelihoods.Bernoulli(), feature_names=["a", "b"]).fit(NAN, [0, 1] * 3),
        r"x: got NaN or infinite values in b, wanted finite numbers",
    ),
    "infinite x": (
        lambda: regression(likelihoods.Bernoulli()).fit(np.where(X > 1, np.inf, X), [0, 1] * 3),
        r"x: got NaN or infinite values in x",
    ),
    "NaN in new x": (
        lambda: fitted().predict_distribution(NAN),
        r"x: got NaN or infinite values in x1",
    ),
    "NaN in y": (
        lambda: regression(likelihoods.Normal()).fit(X, [0, 1, 2, np.nan, 4, 5]),
        "y: got NaN or infinite values",
    ),
    "unknown number of a class": (
        lambda: regression(likelihoods.Categorical(num_classes=3)).fit(X, [0, 1, 2, 3, 0, 1]),
        r"y: got values from 0 to 3, outside the support of Categorical",
    ),
    "two is no binary label": (
        lambda: regression(likelihoods.Bernoulli()).fit(X, [1, 2, 1, 2, 1, 2]),
        r"y: got values from 1 to 2, outside the support of Bernoulli",
    ),
    "unknown name of a class": (
        lambda: regression(likelihoods.Bernoulli(), class_names=["no", "yes"]).fit(
            X, ["no", "yes", "maybe"] * 2
        ),
        r"y: got unknown labels \['maybe'\], wanted some of \['no', 'yes'\]",
    ),
    "names for a likelihood of numbers": (
        lambda: regression(likelihoods.Normal()).fit(X, ["a", "b"] * 3),
        r"y: got strings, wanted real numbers",
    ),
    "too many names": (
        lambda: regression(likelihoods.Bernoulli()).fit(X, ["a", "b", "c"] * 2),
        r"y: got values from 0 to 2, outside the support of Bernoulli",
    ),
    "names of ordered classes": (
        lambda: regression(likelihoods.Ordinal(num_classes=2)).fit(X, ["low", "high"] * 3),
        "y: got names of ordered classes, wanted class_names= in order",
    ),
    "negative counts": (
        lambda: regression(likelihoods.Poisson()).fit(X, [0, 1, 2, -1, 0, 1]),
        r"y: got values from -1 to 2, outside the support of Poisson",
    ),
    "counts that are not whole": (
        lambda: regression(likelihoods.Poisson()).fit(X, [0, 1, 2.5, 1, 0, 1]),
        r"y: got values from 0 to 2.5, outside the support of Poisson",
    ),
    "y of another length": (
        lambda: regression(likelihoods.Normal()).fit(X, [0.0, 1.0]),
        r"y: got shape \(2,\), wanted 6 rows",
    ),
    "y with an axis too many": (
        lambda: regression(likelihoods.Normal()).fit(X, np.zeros((6, 1))),
        r"y: got shape \(6, 1\), wanted \(N,\).*reshape it: y.reshape\(-1\)",
    ),
    "no y": (lambda: regression(likelihoods.Normal()).fit(X), "y: got None, wanted what the model"),
    "x with one axis": (
        lambda: regression(likelihoods.Normal()).fit(X[:, 0], X[:, 1]),
        r"x: got shape \(6,\), wanted \(N, number of features\)",
    ),
    "x with other columns": (
        lambda: fitted().predict_distribution(np.zeros((6, 5))),
        r"x: got shape \(6, 5\), wanted \(N, 2\)",
    ),
    "x with one column more, which is no offset": (
        lambda: fitted().evaluate(np.zeros((6, 3)), np.zeros(6)),
        r"x: got shape \(6, 3\), wanted \(N, 2\)",
    ),
    "strings in x": (
        lambda: regression(likelihoods.Normal()).fit([["a"]] * 6, X[:, 0]),
        "x: got strings, wanted real numbers",
    ),
    "columns of a data frame in another order": (
        lambda: regression(likelihoods.Normal(), feature_names=["a", "b"]).fit(
            pytest.importorskip("pandas").DataFrame(X, columns=["b", "a"]), X[:, 0]
        ),
        r"x: got columns \['b', 'a'\], wanted them in the order \['a', 'b'\]",
    ),
    "weights that add up to zero": (
        lambda: regression(likelihoods.Normal()).fit(X, X[:, 0], sample_weight=[-1, 1, 0, 0, 0, 0]),
        "sample_weight: got shape",
    ),
    "all rows held out": (
        lambda: regression(likelihoods.Normal()).fit(X, X[:, 0], validation_split=1.0),
        "validation_split: got 1.0, wanted a number >= 0 and < 1",
    ),
    "no rows": (
        lambda: regression(likelihoods.Normal()).fit(np.zeros((0, 2)), []),
        "x: got an empty array",
    ),
    "steps and epochs": (
        lambda: regression(likelihoods.Normal()).fit(X, X[:, 0], steps=3, epochs=3),
        "steps: got 3 and epochs=3, wanted one of them",
    ),
    "exposure without a log link": (
        lambda: regression(likelihoods.Normal()).fit(X, X[:, 0], exposure=np.ones(6)),
        "exposure: got one for 'loc' of Normal, which has no log link: pass offset=",
    ),
    "exposure of zero": (
        lambda: regression(likelihoods.Poisson()).fit(X, [1] * 6, exposure=np.zeros(6)),
        "exposure: got values that are not all finite and > 0",
    ),
    "offset of another shape": (
        lambda: regression(likelihoods.Poisson()).fit(X, [1] * 6, offset=np.zeros(5)),
        r"offset: got shape \(5,\), wanted \(6,\)",
    ),
    "a stream of unknown size": (
        lambda: regression(likelihoods.Normal()).fit(tf.data.Dataset.from_tensors((X, X[:, 0]))),
        "num_data: got None, wanted the number of rows of the stream",
    ),
    "negative weights": (
        lambda: regression(likelihoods.Normal()).fit(X, X[:, 0], sample_weight=-np.ones(6)),
        "sample_weight: got shape",
    ),
    "a posterior of another size": (
        lambda: regression(
            likelihoods.Normal(scale=1.0), posterior=posteriors.DiagonalNormal(2)
        ).fit(X, X[:, 0]),
        r"posterior: got event_shape \(2,\), wanted \(3,\), because the coefficients are \['x0'",
    ),
    "a prior of another size": (
        lambda: regression(likelihoods.Normal(scale=1.0), prior=priors.StandardNormal(2)).fit(
            X, X[:, 0]
        ),
        r"prior: got event_shape \(2,\), wanted \(\) or \(3,\)",
    ),
    "feature names of another size": (
        lambda: regression(likelihoods.Normal(), feature_names=["a"]).fit(X, X[:, 0]),
        "feature_names: got 1 names, wanted 2",
    ),
    "a feature with the name of a parameter": (
        lambda: regression(likelihoods.Normal(), feature_names=["a", "scale"]).fit(X, X[:, 0]),
        "feature_names: got 'scale', which is also the name of another column, or of the intercept",
    ),
    "unknown parameter": (
        lambda: regression(likelihoods.Normal(), depends=["rate"]),
        r"depends: got \['rate'\], wanted some of \['loc', 'scale'\]",
    ),
    "prediction before training": (
        lambda: regression(likelihoods.Normal()).coefficients,
        r"call fit\(x, y\)",
    ),
}


@functools.cache
def fitted():
    model = step_by_step(BayesianRegression(likelihoods.Normal(scale=1.0), seed=0))
    model.fit(X, X[:, 0], steps=1, verbose=0)
    return model


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    make, message = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_loss_that_becomes_nan_is_an_error(linear_data):
    model = BayesianRegression(likelihoods.Poisson(), seed=0)
    model.compile(keras.optimizers.SGD(1e9))
    with pytest.raises(FloatingPointError, match="loss: got NaN or infinite values in epoch 1"):
        model.fit(linear_data[0], [1.0, 2.0, 3.0] * 20, steps=20, verbose=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"likelihood": tfd.Normal}, "likelihood: got .* wanted a block of tfpvae.likelihoods"),
        ({"prior": tfd.Normal(0.0, 1.0)}, "prior: got .* wanted a block of tfpvae.priors"),
        ({"posterior": 3}, "posterior: got 3, wanted a block, or a function"),
        ({"intercept_scale": 0.0}, "intercept_scale: got 0.0, wanted a positive number"),
        ({"num_samples": 0}, "num_samples: got 0, wanted a positive integer"),
    ],
)
def test_wrong_parts(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        BayesianRegression(**{"likelihood": likelihoods.Normal()} | kwargs)
