"""Layers whose weights are latent: closed forms, exact posteriors, and what Keras counts."""

import json
import re
import runpy
import sys
from pathlib import Path

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import integrate, stats

from tfpvae import (
    BayesianRegression,
    KLDivergenceRegularizer,
    likelihoods,
    losses,
    noise,
    posteriors,
    priors,
    weights,
)

tfb, tfd = tfp.bijectors, tfp.distributions


def moments(layer):
    """Means and standard deviations of the weights, `[D + 1, units]`, from the raw parameters."""
    unconstrained = layer.get_weights()[0].astype(float)
    return unconstrained[..., 0], np.log1p(np.exp(unconstrained[..., 1]))


def standard_normal_kl(layer):
    loc, scale = moments(layer)
    return 0.5 * (scale**2 + loc**2 - 1 - 2 * np.log(scale)).sum()


def scatter(layer, rng, spread=0.5):
    """Weights that are nowhere near their first values."""
    first = layer.get_weights()
    layer.set_weights([w + spread * rng.normal(size=w.shape) for w in first])


def bayesian(units, *args, num_data=100, **kwargs):
    return weights.BayesianDense(units, *args, num_data=num_data, **kwargs)


# Parameters


def test_parameters_do_not_depend_on_the_input():
    layer = weights.Parameters(3, initializer="ones")
    for inputs in (np.zeros((7, 2)), np.full((2, 4, 4, 1), np.nan), np.zeros((5, 2), "int32")):
        np.testing.assert_array_equal(layer(inputs), np.ones((1, 3)))
    assert layer.compute_output_shape((None, 8)) == (1, 3)
    assert [w.shape for w in layer.trainable_weights] == [(1, 3)]


def global_latent(num_data):
    """A regression with a coefficient z of its own for each output: y_d = x_d z_d + noise."""
    kl = KLDivergenceRegularizer(priors.StandardNormal(2), weight=1 / num_data)
    inputs = keras.Input((2,))
    z = weights.Parameters(4)(inputs)
    z = posteriors.DiagonalNormal(2, num_samples=20, activity_regularizer=kl)(z)  # [20, 1, 2]
    return keras.Model(inputs, likelihoods.Normal(2, scale=0.5)(inputs * z))


def test_parameters_in_place_of_an_encoder(rng, tmp_path):
    x = rng.normal(size=(40, 2)).astype("float32")
    y = (x * [1.0, -2.0] + 0.5 * rng.normal(size=(40, 2))).astype("float32")
    model = global_latent(40)
    steps = 1500
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, steps)),
        loss=losses.negative_log_prob,
        steps_per_execution=100,
    )
    model.fit(tf.data.Dataset.from_tensors((x, y)).repeat(), steps_per_epoch=steps, verbose=0)
    precision = 1 + (x**2).sum(0) / 0.5**2
    exact = (x * y).sum(0) / 0.5**2 / precision
    loc, unconstrained = np.split(model.get_weights()[0][0], 2)
    np.testing.assert_allclose((loc - exact) * precision**0.5, 0.0, atol=0.1)
    np.testing.assert_allclose(np.log1p(np.exp(unconstrained)), precision**-0.5, rtol=0.05)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
    assert loaded(x).mean().shape == (20, 40, 2)


def test_parameters_in_a_sequential_model(tmp_path):
    """The KL is weighted as it is said, whatever the batch."""
    kl = KLDivergenceRegularizer(priors.StandardNormal(2), weight=0.1)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            weights.Parameters(4, initializer="ones"),
            posteriors.DiagonalNormal(2, activity_regularizer=kl),
        ]
    )
    scale = np.log1p(np.exp(1.0))
    wanted = 0.1 * 2 * 0.5 * (scale**2 + 1 - 1 - 2 * np.log(scale))
    model.save(tmp_path / "m.keras")
    for each in (model, keras.models.load_model(tmp_path / "m.keras")):
        for batch in (1, 9):
            assert each(np.zeros((batch, 5))).mean().shape == (1, 2)
            assert sum(map(float, each.losses)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("size", "error", "match"),
    [(0, ValueError, "size: got 0, wanted a positive"), (2.0, TypeError, "size: got 2.0")],
)
def test_parameters_of_no_size(size, error, match):
    with pytest.raises(error, match=match):
        weights.Parameters(size)


# The draws


@pytest.mark.parametrize("use_bias", [True, False])
def test_pre_activations_have_the_moments_of_the_weights(use_bias, rng):
    layer = bayesian(2, use_bias=use_bias)
    x = rng.normal(size=(4, 3)).astype("float32")
    layer.build(x.shape)
    scatter(layer, rng)
    num = 40_000
    with noise.fixed(0):
        a = layer(np.repeat(x, num, axis=0)).numpy().reshape(4, num, 2).astype(float)
    loc, scale = moments(layer)
    inputs = np.hstack([x, np.ones((4, 1))]) if use_bias else x
    mean, variance = inputs @ loc, inputs**2 @ scale**2
    assert np.all(np.abs(a.mean(1) - mean) < 4.5 * np.sqrt(variance / num))
    assert np.all(np.abs(a.var(1) / variance - 1) < 4.5 * np.sqrt(2 / num))
    # Examples and units draw independently.
    columns = np.moveaxis(a, 1, 0).reshape(num, 8)
    correlation = np.corrcoef(columns, rowvar=False) - np.eye(8)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(num)
    standardized = (columns[:, 0] - mean[0, 0]) / np.sqrt(variance[0, 0])
    assert stats.kstest(standardized, "norm").pvalue > 1e-3


@pytest.mark.long
def test_one_draw_of_the_weights_is_one_function(rng):
    """Examples share the weights of `at_draw`: what they are multiplied to covaries."""
    layer = bayesian(1)
    x = np.array([[1.0, 2.0], [1.0, 1.0]], "float32")
    model = keras.Sequential([keras.Input((2,)), layer])
    scatter(layer, rng)
    num = 150
    with noise.fixed(0):
        a = np.stack([weights.at_draw(model)(x).numpy()[:, 0] for _ in range(num)])
    loc, scale = moments(layer)
    inputs = np.hstack([x, np.ones((2, 1))])
    covariance = inputs @ np.diag(scale[:, 0] ** 2) @ inputs.T
    error = np.sqrt(np.diag(covariance) / num)
    assert np.all(np.abs(a.mean(0) - (inputs @ loc)[:, 0]) < 4.5 * error)
    spread = np.sqrt(
        (np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / num
    )  # of a sample covariance (Wishart)
    assert np.all(np.abs(np.cov(a, rowvar=False) - covariance) < 4.5 * spread)
    assert abs(covariance[0, 1]) > 5 * spread[0, 1]


def test_the_network_at_the_posterior_mean(rng):
    model = keras.Sequential([bayesian(5, "tanh"), bayesian(2, use_bias=False)])
    x = rng.normal(size=(6, 3)).astype("float32")
    model(x)
    (first, _), (second, _) = map(moments, model.layers)
    wanted = np.tanh(x @ first[:-1] + first[-1]) @ second
    likelihood = likelihoods.Normal(1)
    inputs = keras.Input((3,))
    nested = keras.Model(inputs, likelihood(model(inputs)))
    network = weights.at_mean(nested)
    np.testing.assert_allclose(network(x).mean(), wanted[:, :1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights.at_mean(model)(x), wanted, rtol=1e-5, atol=1e-6)
    assert not network.losses
    assert network.layers[-1] is likelihood
    again = weights.at_mean(network)  # It has no noise left.
    np.testing.assert_array_equal(again(x).mean(), network(x).mean())


def test_models_whose_weights_cannot_be_fixed():
    with pytest.raises(ValueError, match="has no weights yet: call the model on data"):
        weights.at_mean(keras.Sequential([bayesian(1)]))
    wrapped = keras.layers.TimeDistributed(bayesian(1), name="wrapper")
    with pytest.raises(ValueError, match="model: got BayesianDense inside of wrapper"):
        weights.at_draw(keras.Sequential([keras.Input((3, 2)), wrapped]))
    with pytest.raises(TypeError, match=r"model: got <.*wanted a Sequential or functional"):
        weights.at_mean(bayesian(1))
    model = Subclassed()
    model(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="Sequential"):
        weights.at_mean(model)


@pytest.mark.parametrize("training", [True, False])
def test_draws_can_be_fixed_and_are_drawn_in_prediction(training, rng):
    model = keras.Sequential([keras.Input((3,)), bayesian(4, "relu"), bayesian(1)])
    x = rng.normal(size=(6, 3)).astype("float32")
    values = []
    for seed in (1, 1, 2):
        with noise.fixed(seed):
            values.append(model(x, training=training).numpy())
    np.testing.assert_array_equal(values[0], values[1])
    assert np.abs(values[0] - values[2]).min() > 0
    assert np.abs(model.predict(x, verbose=0) - model.predict(x, verbose=0)).min() > 0


# The KL


def flat(layer):
    """Kernel row by row, then the bias."""
    loc, scale = moments(layer)
    return loc.ravel(), scale.ravel()


def gaussian_kl(loc, scale, prior_loc, prior_cov):
    inverse = np.linalg.inv(prior_cov)
    shift = prior_loc - loc
    quadratic = np.trace(inverse @ np.diag(scale**2)) + shift @ inverse @ shift - len(loc)
    return 0.5 * (quadratic + np.linalg.slogdet(prior_cov)[1] - 2 * np.log(scale).sum())


FACTOR = np.tril(np.random.default_rng(1).normal(size=(8, 8)), -1) + np.diag(np.arange(1.0, 9.0))
PRIORS = {  # of 2 x 3 weights and 2 biases: a block, its mean, its covariance
    "standard": (None, np.zeros(8), np.eye(8)),
    "learned scale": (
        lambda: priors.Normal((), loc=0.5, initial={"scale": 0.3}),
        np.full(8, 0.5),
        0.09 * np.eye(8),
    ),
    "a scale for each": (
        lambda: priors.Normal(8, initial={"loc": np.arange(8.0), "scale": np.arange(1.0, 9.0)}),
        np.arange(8.0),
        np.diag(np.arange(1.0, 9.0) ** 2),
    ),
    "correlated": (
        lambda: priors.Prior("MultivariateNormalTriL", 8, loc=np.ones(8), scale_tril=FACTOR),
        np.ones(8),
        FACTOR @ FACTOR.T,
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_the_added_loss_is_the_closed_form(name, rng):
    make, loc, covariance = PRIORS[name]
    layer = bayesian(2, num_data=50, prior=make and make())
    model = keras.Sequential([keras.Input((3,)), layer])
    first = layer.get_weights()
    own = first[0] + 0.5 * rng.normal(size=first[0].shape)
    layer.set_weights([own, *first[1:]])
    wanted = gaussian_kl(*flat(layer), loc, covariance)
    assert float(layer.kl()) == pytest.approx(wanted, rel=1e-5)
    assert sum(map(float, model.losses)) == pytest.approx(wanted / 50, rel=1e-5)
    model(np.zeros((7, 3)))
    model(np.zeros((3, 3)))
    assert sum(map(float, model.losses)) == pytest.approx(wanted / 50, rel=1e-5)


def test_a_prior_without_closed_form(rng):
    """Monte Carlo, against the integral over each weight."""
    layer = bayesian(1, prior=priors.Prior("Laplace", loc=0.0, scale=0.5))
    layer.build((None, 2))
    scatter(layer, rng)

    def integrand(w, loc, scale):
        q = stats.norm(loc, scale)
        return q.pdf(w) * (q.logpdf(w) - stats.laplace(0, 0.5).logpdf(w))

    wanted = sum(
        integrate.quad(integrand, m - 10 * s, m + 10 * s, args=(m, s), points=[0.0])[0]
        for m, s in zip(*flat(layer), strict=True)
    )
    kl = tf.function(layer.kl)
    draws = np.array([float(kl()) for _ in range(2000)])
    assert abs(draws.mean() - wanted) < 4.5 * draws.std() / np.sqrt(len(draws))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = bayesian(4, "tanh"), bayesian(2)

    def call(self, x):
        return self.out(self.hidden(x))


def nested():
    inputs = keras.Input((4,))
    inner = keras.Sequential([bayesian(4, "tanh"), bayesian(2)])
    return keras.Model(inputs, keras.layers.Activation("tanh")(inner(inputs)))


def functional():
    inputs = keras.Input((4,))
    return keras.Model(inputs, bayesian(2)(bayesian(4, "tanh")(inputs)))


def shared():
    """One layer, called twice."""
    layer, inputs = bayesian(4, "tanh"), keras.Input((4,))
    return keras.Model(inputs, bayesian(2)(layer(layer(inputs))))


def without_input():
    return keras.Sequential([bayesian(4, "tanh"), bayesian(2)])


STYLES = {f.__name__: f for f in (without_input, functional, nested, shared, Subclassed)}


def layers_of(model):
    return [m for m in model.submodules if isinstance(m, weights.BayesianDense)]


@pytest.mark.long
@pytest.mark.parametrize("style", STYLES)
def test_keras_counts_the_kl_once(style, rng):
    """Whatever the batches, weights of examples, and validation; the nll here is always 1."""
    model, traced = STYLES[style](), style in ("without_input", "functional")
    model.compile(
        keras.optimizers.SGD(0.0),
        loss=lambda y, a: 1.0 + 0.0 * tf.reduce_sum(a, -1),
        run_eagerly=not traced,
    )
    x = rng.normal(size=(20, 4)).astype("float32")
    y, weight = np.zeros((20, 2)), np.linspace(0, 1, 20)
    model(x)
    kl = sum(standard_normal_kl(layer) for layer in layers_of(model)) / 100
    assert len(layers_of(model)) == 2
    assert kl > 0.3
    for batch_size in (1, 7, 20) if traced else (7, 20):
        history = model.fit(
            x, y, batch_size=batch_size, verbose=0, validation_data=(x[:5], y[:5])
        ).history
        assert history["loss"] == pytest.approx([1.0 + kl], rel=1e-5)
        assert history["val_loss"] == pytest.approx([1.0 + kl], rel=1e-5)
    logs = model.evaluate(x, y, sample_weight=weight, batch_size=20, verbose=0)
    assert logs == pytest.approx(weight.mean() + kl, rel=1e-5)


@pytest.mark.parametrize("batch_size", [5, 30])
def test_the_loss_is_the_negative_elbo_of_an_example(batch_size, rng):
    """nll by scipy from the draws that the model makes, KL by its closed form."""
    x = rng.normal(size=(30, 3)).astype("float32")
    y = rng.normal(size=(30, 2)).astype("float32")
    hidden, out = bayesian(6, "tanh", num_data=30), bayesian(4, num_data=30)
    model = keras.Sequential([keras.Input((3,)), hidden, out, likelihoods.Normal(2)])
    model.compile("sgd", loss=losses.negative_log_prob, run_eagerly=True)
    model(x)
    with noise.fixed(4):
        loss = model.evaluate(x, y, batch_size=batch_size, verbose=0)
    with noise.fixed(4):
        batches = [model(x[i : i + batch_size]) for i in range(0, 30, batch_size)]
    loc = np.concatenate([p.mean() for p in batches])
    scale = np.concatenate([p.stddev() for p in batches])
    elbo = stats.norm.logpdf(y, loc, scale).sum() - sum(
        standard_normal_kl(layer) for layer in layers_of(model)
    )
    assert loss == pytest.approx(-elbo / 30, rel=1e-5)


# Training


def orthogonal_data(rng):
    """A linear model whose columns, with the one of the bias, are orthogonal: its posterior
    factorizes, so a mean-field posterior is exact."""
    columns, _ = np.linalg.qr(np.hstack([np.ones((64, 1)), rng.normal(size=(64, 3))]))
    x = columns[:, 1:] * [3.0, 6.0, 1.0]
    y = x @ [[1.0], [-0.5], [2.0]] + 0.3 + 0.7 * rng.normal(size=(64, 1))
    return x, y


def exact_posterior(x, y, noise_scale):
    """Of Bayesian linear regression with the prior N(0, 1) for kernel and bias."""
    inputs = np.hstack([x, np.ones((len(x), 1))])
    precision = np.eye(inputs.shape[1]) + inputs.T @ inputs / noise_scale**2
    off_diagonal = precision - np.diag(np.diag(precision))
    assert np.abs(off_diagonal).max() < 1e-9
    return np.linalg.solve(precision, inputs.T @ y / noise_scale**2), np.diag(precision) ** -0.5


@pytest.mark.parametrize("jit_compile", [False, True])
def test_training_finds_the_exact_posterior(jit_compile, rng):
    x, y = orthogonal_data(rng)
    layer = bayesian(1, num_data=64)
    model = keras.Sequential([layer, likelihoods.Normal(1, scale=0.7)])
    steps = 1000
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, steps)),
        loss=losses.negative_log_prob,
        jit_compile=jit_compile,
        steps_per_execution=100,
    )
    many = [np.repeat(array, 50, axis=0).astype("float32") for array in (x, y)]  # 50 draws a step
    model.fit(tf.data.Dataset.from_tensors(tuple(many)).repeat(), steps_per_epoch=steps, verbose=0)
    mean, stddev = exact_posterior(x, y, 0.7)
    loc, scale = moments(layer)
    np.testing.assert_allclose((loc - mean)[:, 0] / stddev, 0.0, atol=0.05)
    np.testing.assert_allclose(scale[:, 0], stddev, rtol=0.03)


def test_a_learned_prior_moves_to_its_optimum(rng):
    """The scale that minimizes the KL of zero-mean weights: the root mean of loc^2 + scale^2."""
    layer = bayesian(20, num_data=10, prior=priors.Normal((), loc=0.0))
    model = keras.Sequential([keras.Input((10,)), layer])
    layer.trainable_weights[0].assign(layer.trainable_weights[0] * [3.0, 1.0])
    loc, scale = moments(layer)
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(layer.prior.trainable_weights)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = model.losses[0]
        gradient = tape.gradient(loss, layer.prior.trainable_weights)
        optimizer.apply_gradients(zip(gradient, layer.prior.trainable_weights, strict=True))

    for _ in range(400):
        step()
    wanted = np.sqrt(np.mean(loc**2 + scale**2))
    assert float(layer.prior().stddev()) == pytest.approx(wanted, rel=1e-3)


def test_every_weight_has_a_gradient(rng):
    model = keras.Sequential(
        [bayesian(4, "tanh", prior=priors.Normal(())), bayesian(2), likelihoods.Normal(1)]
    )
    x, y = rng.normal(size=(8, 3)).astype("float32"), np.ones((8, 1), "float32")
    with tf.GradientTape() as tape:
        nll = tf.reduce_mean(losses.negative_log_prob(y, model(x)))
        loss = nll + tf.add_n(model.losses)
    gradients = tape.gradient(loss, model.trainable_weights)
    assert len(gradients) == 3  # two layers and a prior
    for gradient in gradients:
        assert np.all(np.abs(gradient) > 0)
    assert sum(int(tf.size(layer.parameters)) for layer in layers_of(model)) == 2 * (4 * 4 + 5 * 2)


def test_inputs_of_zeros_leave_the_gradient_finite():
    layer = bayesian(2, use_bias=False)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.zeros([3, 4])) ** 2)
    np.testing.assert_array_equal(tape.gradient(loss, layer.parameters), np.zeros((4, 2, 2)))


def test_training_repeats_with_the_seed(rng):
    x, y = rng.normal(size=(20, 3)).astype("float32"), np.ones((20, 1))
    runs = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([bayesian(4, "relu"), bayesian(2), likelihoods.Normal(1)])
        model.compile("adam", loss=losses.negative_log_prob, run_eagerly=True)
        runs.append(model.fit(x, y, epochs=2, verbose=0).history["loss"])
    assert runs[0] == runs[1] != runs[2]


def test_first_weights_are_those_of_a_dense_layer():
    layer = bayesian(300, kernel_initializer="glorot_normal", initial_scale=0.02)
    layer.build((None, 200))
    loc, scale = moments(layer)
    np.testing.assert_allclose(scale, 0.02, rtol=1e-4)
    np.testing.assert_array_equal(loc[-1], 0.0)
    assert loc[:-1].std() == pytest.approx(np.sqrt(2 / (200 + 300)), rel=0.02)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_precision_policies(policy, rng):
    keras.mixed_precision.set_global_policy(policy)
    layer, parameters = bayesian(3, "tanh"), weights.Parameters(4)
    wanted = "float64" if policy == "float64" else "float32"
    inputs = tf.cast(rng.normal(size=(5, 2)), keras.layers.Dense(1).compute_dtype)
    assert layer(inputs).dtype == parameters(inputs).dtype == wanted
    assert float(layer.losses[0]) == pytest.approx(standard_normal_kl(layer) / 100, rel=1e-5)


def test_another_constraint_of_the_scale(rng):
    posterior = posteriors.DiagonalNormal((), constraints={"scale": tfb.Exp()})
    layer = bayesian(2, posterior=posterior, initial_scale=0.1)
    layer.build((None, 3))
    np.testing.assert_allclose(layer.get_weights()[0][..., 1], np.log(0.1), rtol=1e-5)
    fixed = bayesian(2, posterior=posteriors.DiagonalNormal((), scale=0.3))
    fixed.build((None, 3))
    assert fixed.get_weights()[0].shape == (4, 2, 1)
    np.testing.assert_allclose(fixed.posterior().stddev(), np.full((4, 2), 0.3), rtol=1e-6)


# Files


@pytest.mark.parametrize("style", ["functional", "nested", "shared", "without_input"])
def test_models_save_and_load_in_safe_mode(style, rng, tmp_path):
    model = STYLES[style]()
    x = rng.normal(size=(6, 4)).astype("float32")
    model(x)
    for layer in layers_of(model):
        scatter(layer, rng)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for wanted, found in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    outputs = []
    for each in (model, loaded):
        with noise.fixed(5):
            outputs.append(each(x).numpy())
    np.testing.assert_array_equal(*outputs)
    assert sum(map(float, loaded.losses)) == pytest.approx(sum(map(float, model.losses)), rel=1e-6)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_is_saved_with_the_layer(name, rng, tmp_path):
    make = PRIORS[name][0]
    layer = bayesian(2, prior=make and make())
    model = keras.Sequential([keras.Input((3,)), layer, likelihoods.Normal(1)])
    if layer.prior.trainable_weights:
        scatter(layer.prior, rng)
    model.compile("adam", loss=losses.negative_log_prob)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert float(loaded.losses[0]) == pytest.approx(float(model.losses[0]), rel=1e-6)
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
    if name == "learned scale":  # A file leaves the compiled loss and optimizer as they were.
        assert loaded.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0).history["loss"][0] < 1e4


def test_layers_may_learn_a_prior_together_but_not_in_a_file(tmp_path):
    def build():
        prior = priors.Normal((), loc=0.0)
        layers = [bayesian(3, prior=prior, name="first"), bayesian(2, prior=prior, name="second")]
        return keras.Sequential([keras.Input((4,)), *layers])

    model, again = build(), build()
    assert len(model.trainable_weights) == 3
    with pytest.raises(TypeError, match="prior: got one that the layers first and second learn"):
        model.save(tmp_path / "m.keras")
    scatter(model.layers[0].prior, np.random.default_rng(0))
    model.save_weights(tmp_path / "m.weights.h5")
    again.load_weights(tmp_path / "m.weights.h5")
    assert sum(map(float, again.losses)) == pytest.approx(sum(map(float, model.losses)), rel=1e-6)


def test_config_round_trip():
    made = bayesian(
        3,
        "relu",
        use_bias=False,
        num_data=7,
        prior=priors.Normal((), loc=0.0),
        posterior=posteriors.DiagonalNormal((), constraints={"scale": tfb.Exp()}),
        kernel_initializer=keras.initializers.HeNormal(seed=1),
        initial_scale=0.2,
        name="hidden",
    )
    config = json.loads(json.dumps(made.get_config()))
    again = weights.BayesianDense.from_config(config)
    assert json.dumps(again.get_config()) == json.dumps(config)
    for layer in (made, again):
        layer.build((None, 4))
    np.testing.assert_array_equal(again.get_weights()[0], made.get_weights()[0])
    parameters = weights.Parameters(3, keras.initializers.Constant(2.0), name="global")
    config = json.loads(json.dumps(parameters.get_config()))
    assert weights.Parameters.from_config(config).get_weights()[0].tolist() == [[2.0, 2.0, 2.0]]


# What is refused


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"num_data": None}, TypeError, r"num_data: got None, wanted .*, len\(x_train\), because"),
        ({"num_data": 0}, ValueError, "num_data: got 0, wanted a positive integer"),
        ({"num_data": 10.0}, TypeError, "num_data: got 10.0"),
        ({"units": -1}, ValueError, "units: got -1"),
        ({"initial_scale": 0.0}, ValueError, "initial_scale: got 0.0, wanted a positive number"),
        ({"initial_scale": "small"}, TypeError, "initial_scale: got 'small'"),
        ({"initial_scale": True}, ValueError, "initial_scale: got True"),
        ({"prior": tfd.Normal(0.0, 1.0)}, TypeError, "prior: got .*wanted a block of tfpvae.prior"),
        ({"prior": posteriors.DiagonalNormal(())}, TypeError, "prior: got <.*wanted a block of"),
        ({"prior": keras3.layers.Dense(1)}, TypeError, "prior: got Dense of Keras 3"),
        ({"posterior": "normal"}, TypeError, "posterior: got 'normal', wanted a block of normal"),
        (
            {"posterior": posteriors.DiagonalNormal(3)},
            TypeError,
            r"posterior: got DiagonalNormal .*event_shape \(3,\), wanted .*event_shape \(\)",
        ),
        ({"posterior": likelihoods.Bernoulli(())}, TypeError, "posterior: got Bernoulli"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        weights.BayesianDense(**{"units": 2, "num_data": 10} | kwargs)


@pytest.mark.parametrize("shape", [(5,), (5, 3, 2)])
def test_inputs_that_are_no_rows(shape):
    with pytest.raises(ValueError, match=r"inputs: got shape .*, wanted \(B, D\)"):
        bayesian(2)(np.zeros(shape, "float32"))


def test_a_prior_of_another_size():
    layer = bayesian(2, prior=priors.StandardNormal(7), name="hidden")
    match = r"hidden: prior: got one of event_shape \(7,\), wanted \(\) or \(8,\)"
    with pytest.raises(ValueError, match=match):
        layer(np.zeros((5, 3), "float32"))


# The examples

SMALL = json.loads((Path(__file__).parents[1] / "examples" / "small.json").read_text())


@pytest.fixture
def example(monkeypatch):
    """An example as a module; with words of a command line, as a script."""

    def run(name, *words):
        monkeypatch.setattr("sys.argv", [name, *map(str, words)])
        path = Path(__file__).parents[1] / "examples" / f"{name}.py"
        return runpy.run_path(str(path), run_name="__main__" if words else "module")

    return run


@pytest.mark.long
def test_the_predictive_widens_away_from_the_data(example, tmp_path, capsys):
    example("bayesian_network", *SMALL["bayesian_network"]["arguments"], "--output", tmp_path)
    printed = capsys.readouterr().out
    found = {name: float(sd) for name, sd in re.findall(r"predictive sd (.*): ([\d.]+)", printed)}
    inside, gap, outside = found.values()
    assert list(found) == ["at the data", "in the gap", "outside, 3 < |x| < 4"]
    assert outside >= 2 * inside
    assert min(inside, gap) > 0.2  # that of the noise
    used, units = map(int, re.search(r"hidden units in use: (\d+) of (\d+)", printed).groups())
    assert 2 <= used < units == 50  # A sine has more than one bend.
    assert {path.name for path in tmp_path.iterdir()} == {
        "bayesian_network.png",
        "bayesian_network.keras",
    }
    model = keras.models.load_model(tmp_path / "bayesian_network.keras")
    assert model(np.zeros((3, 1))).mean().shape == (3, 1)


def best_gaussian(x, y):
    """Mean and sd of the normal with the largest ELBO, for logistic regression with prior N(0, 1).

    It is where the gradient of E_q[log p(y, w)] is zero and the precision of q is the mean
    curvature; both are integrals over x w, which is normal.
    """
    nodes, weight = np.polynomial.hermite_e.hermegauss(40)
    weight = weight / weight.sum()
    mean, covariance = np.zeros(x.shape[1]), np.eye(x.shape[1])
    for _ in range(200):
        spread = np.sqrt(np.einsum("ni,ij,nj->n", x, covariance, x))
        probability = 1 / (1 + np.exp(-(x @ mean)[:, None] - spread[:, None] * nodes))
        curvature = (probability * (1 - probability)) @ weight
        covariance = np.linalg.inv(np.eye(x.shape[1]) + x.T @ (curvature[:, None] * x))
        gradient = x.T @ (y - probability @ weight) - mean
        mean = mean + 0.5 * covariance @ gradient
    assert np.abs(gradient).max() < 1e-9
    return mean, np.sqrt(np.diag(covariance))


@pytest.mark.long
def test_logistic_regression_finds_the_best_gaussian(example, rng, tmp_path):
    """From plain blocks; BayesianRegression has the same posterior."""
    x = np.hstack([rng.normal(size=(80, 2)) @ [[1.0, 0.8], [0.0, 0.6]], np.ones((80, 1))])
    y = (rng.random(80) < 1 / (1 + np.exp(-x @ [1.5, -1.0, 0.5]))).astype(int)
    module = example("logistic_from_blocks")
    mean, stddev = module["posterior"](x, y, steps=2000)
    wanted_mean, wanted_stddev = best_gaussian(x, y)
    np.testing.assert_allclose((mean - wanted_mean) / wanted_stddev, 0.0, atol=0.05)
    np.testing.assert_allclose(stddev, wanted_stddev, rtol=0.05)
    model = module["build"](80, 3)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded(x.astype("float32")).mean().shape == (16, 80, 1)

    regression = BayesianRegression(likelihoods.Bernoulli(), intercept_scale=1.0, seed=0)
    regression.fit(x[:, :2], y, verbose=0)
    coefficients = regression.coefficients
    np.testing.assert_allclose((mean - coefficients.mean()) / stddev, 0, atol=0.1)
    np.testing.assert_allclose(stddev / coefficients.stddev(), 1, atol=0.05)


def test_logistic_example_prints_each_coefficient(example, capsys, monkeypatch):
    example("logistic_from_blocks", *SMALL["logistic_from_blocks"]["arguments"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["coefficient", "mean", "sd"]
    assert len(lines) == 1 + 31
    assert re.match(r"worst fractal dimension +-?\d+\.\d\d +\d+\.\d\d$", lines[-1])
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="scikit-learn: pip install"):
        example("logistic_from_blocks", "--steps", 20)
