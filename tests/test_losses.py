import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import special, stats

from tfpvae import likelihoods
from tfpvae.losses import negative_log_prob

tfd = tfp.distributions


def normal(batch_shape=(4,), event_shape=(3,)):
    """A distribution over events, without the help of our layers."""
    loc = np.arange(np.prod(batch_shape + event_shape), dtype=np.float32) / 10
    loc = loc.reshape(batch_shape + event_shape)
    return tfd.Independent(tfd.Normal(loc, 2.0), len(event_shape)), loc


def model_of(*layers):
    return keras.Sequential([keras.Input([5]), *layers])


def test_value_of_each_example(rng):
    distribution, loc = normal()
    y = rng.normal(size=(4, 3)).astype(np.float32)
    expected = -stats.norm.logpdf(y, loc, 2).sum(axis=-1)
    np.testing.assert_allclose(negative_log_prob(y, distribution), expected, rtol=1e-5)


def test_several_draws_are_averaged(rng):
    distribution, loc = normal((6, 4))
    y = rng.normal(size=(4, 3)).astype(np.float32)
    expected = -stats.norm.logpdf(y, loc, 2).sum(axis=-1).mean(axis=0)
    loss = negative_log_prob(y, distribution)
    assert loss.shape == (4,)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_as_many_draws_as_examples(rng):
    distribution, loc = normal((4, 4))
    y = rng.normal(size=(4, 3)).astype(np.float32)
    expected = -stats.norm.logpdf(y[None], loc, 2).sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(negative_log_prob(y, distribution), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_data_of_any_dtype_for_pixels(dtype, rng):
    logits = rng.normal(size=(4, 3)).astype(np.float32)
    y = rng.integers(0, 2, size=(4, 3))
    expected = -stats.bernoulli.logpmf(y, special.expit(logits)).sum(axis=-1)
    loss = negative_log_prob(y.astype(dtype), likelihoods.Bernoulli(3)(logits))
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32", "float64"])
def test_data_of_any_dtype_for_labels(dtype, rng):
    logits = rng.normal(size=(4, 3)).astype(np.float32)
    y = np.array([0, 2, 1, 2])
    expected = -special.log_softmax(logits, axis=-1)[range(4), y]
    loss = negative_log_prob(y.astype(dtype), likelihoods.Categorical(num_classes=3)(logits))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float64"])
def test_data_of_any_dtype_for_reals(dtype):
    distribution, loc = normal()
    y = np.arange(12).reshape(4, 3).astype(dtype)
    expected = -stats.norm.logpdf(y.astype(float), loc, 2).sum(axis=-1)
    np.testing.assert_allclose(negative_log_prob(y, distribution), expected, rtol=1e-5)


def test_grey_levels_are_not_cut_to_integers():
    loss = negative_log_prob(np.array([[0.25, 0.75]]), likelihoods.Bernoulli(2)([[1.0, -1.0]]))
    p = special.expit(1.0)
    expected = -(0.25 * np.log(p) + 0.75 * np.log(1 - p)) - 0.75 * np.log(1 - p) - 0.25 * np.log(p)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "batch_shape", "event_shape", "wanted"),
    [
        ((4, 1), (4,), (), "(4,)"),  # would broadcast to every pair of examples
        ((1, 4), (4,), (), "(4,)"),
        ((1,), (4,), (), "(4,)"),
        ((4,), (1,), (), "(1,)"),
        ((4,), (), (), "()"),
        ((), (4,), (), "(4,)"),  # one event for all examples: the batch axis was forgotten
        ((3,), (4,), (3,), "(4, 3)"),
        ((4, 1), (4,), (3,), "(4, 3)"),
        ((4, 2), (4,), (3,), "(4, 3)"),
        ((1, 3), (4,), (3,), "(4, 3)"),
        ((5, 3), (4,), (3,), "(4, 3)"),
        ((4, 3, 1), (4,), (3,), "(4, 3)"),
        ((4, 1, 3), (4,), (3,), "(4, 3)"),
        ((6, 3), (6, 4), (3,), "(4, 3)"),  # as many rows as draws
        ((1, 4, 3), (6, 4), (3,), "(4, 3)"),
        ((2, 6, 4, 3), (6, 4), (3,), "(4, 3)"),
        ((4, 9), (4,), (3, 3), "(4, 3, 3)"),
    ],
    ids=str,
)
def test_data_of_the_wrong_shape(shape, batch_shape, event_shape, wanted):
    distribution, _ = normal(batch_shape, event_shape)
    message = (
        f"negative_log_prob: got data of shape {shape}, wanted {wanted}, because the distribution "
        f"{distribution.name!r} has batch_shape {batch_shape} and event_shape {event_shape}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        negative_log_prob(np.zeros(shape, np.float32), distribution)


@pytest.mark.parametrize("output", [tf.zeros([4]), np.zeros(4), None], ids=type)
def test_a_model_output_that_is_no_distribution(output):
    with pytest.raises(TypeError, match=r"got the model output .*, wanted a distribution"):
        negative_log_prob(np.zeros(4), output)


def test_a_model_that_does_not_end_in_a_distribution(rng):
    model = model_of(keras.layers.Dense(3))
    model.compile(loss=negative_log_prob)
    with pytest.raises(TypeError, match=r"end the model in a block of tfpvae\.likelihoods"):
        model.fit(rng.normal(size=(4, 5)), np.zeros((4, 3)), verbose=0)


def test_a_column_of_targets_for_single_numbers_is_refused_in_fit(rng):
    model = model_of(keras.layers.Dense(1), likelihoods.Bernoulli())
    model.compile(loss=negative_log_prob)
    with pytest.raises(ValueError, match=r"got data of shape \(None, 1\), wanted \(None,\)"):
        model.fit(rng.normal(size=(4, 5)), np.zeros((4, 1)), verbose=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch_size", [7, 3])
def test_fit_reports_the_mean_over_the_examples(batch_size, weighted, rng):
    features = rng.normal(size=(7, 5)).astype(np.float32)
    y = rng.integers(0, 2, size=(7, 2))
    weights = rng.uniform(size=7) if weighted else np.ones(7)
    model = model_of(keras.layers.Dense(2), likelihoods.Bernoulli(2))
    kernel, bias = model.get_weights()
    nll = -stats.bernoulli.logpmf(y, special.expit(features @ kernel + bias)).sum(axis=-1)

    model.compile(keras.optimizers.SGD(0.0), loss=negative_log_prob)
    history = model.fit(
        features,
        y,
        sample_weight=weights if weighted else None,
        batch_size=batch_size,
        validation_data=(features, y),
        verbose=0,
    ).history
    np.testing.assert_allclose(history["loss"], [np.mean(weights * nll)], rtol=1e-5)
    np.testing.assert_allclose(history["val_loss"], [np.mean(nll)], rtol=1e-5)
    np.testing.assert_allclose(model.evaluate(features, y, verbose=0), np.mean(nll), rtol=1e-5)


def test_fit_averages_over_draws(rng):
    features = rng.normal(size=(7, 5)).astype(np.float32)
    y = rng.integers(0, 2, size=(7, 5))

    def draws(t):  # stands for a posterior that passes three draws on
        return tf.stack([t, 2 * t, -t])

    model = model_of(keras.layers.Lambda(draws), likelihoods.Bernoulli(5))
    model.compile(keras.optimizers.SGD(0.0), loss=negative_log_prob)
    logits = np.stack([features, 2 * features, -features])
    nll = -stats.bernoulli.logpmf(y, special.expit(logits)).sum(axis=-1).mean(axis=0)
    history = model.fit(features, y, batch_size=3, verbose=0).history
    np.testing.assert_allclose(history["loss"], [nll.mean()], rtol=1e-5)


def test_fit_lowers_it_to_the_optimum(rng):
    """A single Bernoulli: the least nll is the entropy of the data's mean."""
    y = (rng.uniform(size=(64, 1)) < 0.3).astype(np.float32)
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1), likelihoods.Bernoulli(1)])
    model.compile(keras.optimizers.SGD(4.0), loss=negative_log_prob)
    history = model.fit(np.zeros((64, 1)), y, batch_size=64, epochs=40, verbose=0).history
    np.testing.assert_allclose(history["loss"][-1], stats.bernoulli.entropy(y.mean()), rtol=1e-4)
