"""The number that Keras prints is the negative ELBO, however the model is written.

The reference is NumPy and scipy on the weights of the networks; only the draws of z are taken from
the model, so that both sides see the same.
"""

import contextlib

import numpy as np
import pytest
import tf_keras as keras
from scipy import stats

from tfpvae import VAE, KLDivergenceRegularizer, likelihoods, losses, objectives, posteriors, priors

DATA_SIZE, LATENT_SIZE, NUM_DATA = 5, 2, 19  # 19 = 16 + 3 = 2 * 7 + 5: the last batch holds less
STYLES = ("sequential", "functional", "subclassed", "vae")


class Subclassed(keras.Model):
    def __init__(self, layers):
        super().__init__()
        self.parts = layers

    def call(self, inputs):
        for layer in self.parts:
            inputs = layer(inputs)
        return inputs


def build(style, num_samples=None, use_exact_kl=None, learning_rate=0.0):
    """A linear encoder and decoder, whose loss NumPy can repeat."""
    prior = priors.StandardNormal(LATENT_SIZE)
    regularizer = None if style == "vae" else KLDivergenceRegularizer(prior, use_exact_kl)
    posterior = posteriors.DiagonalNormal(
        LATENT_SIZE, num_samples=num_samples, activity_regularizer=regularizer
    )
    likelihood = likelihoods.Bernoulli(DATA_SIZE)
    to_params = keras.layers.Dense(posterior.params_size, bias_initializer="normal")
    to_logits = keras.layers.Dense(likelihood.params_size, bias_initializer="normal")
    parts = [to_params, posterior, to_logits, likelihood]
    if style == "vae":
        encoder, decoder = keras.Sequential(parts[:2]), keras.Sequential(parts[2:])
        model = VAE(prior, encoder, decoder)
        kwargs = {"objective": objectives.ELBO(use_exact_kl=use_exact_kl)}
    else:
        kwargs = {"loss": losses.negative_log_prob}
        if style == "sequential":
            model = keras.Sequential([keras.Input((DATA_SIZE,)), *parts])
        elif style == "functional":
            inputs = outputs = keras.Input((DATA_SIZE,))
            for part in parts:
                outputs = part(outputs)
            model = keras.Model(inputs, outputs)
        else:
            model = Subclassed(parts)
    optimizer = keras.optimizers.SGD(learning_rate)
    model.compile(optimizer, run_eagerly=True, **kwargs)
    return model, posterior, to_params, to_logits


@contextlib.contextmanager
def recorded(posterior):
    """The values of z that a layer passes on."""
    function, values = posterior.function, []

    def recording(*args, **kwargs):
        distribution, value = function(*args, **kwargs)
        values.append(value.numpy())
        return distribution, value

    posterior.function = recording
    yield values
    posterior.function = function


def negative_elbo(x, z, to_params, to_logits, exact):
    """nll and kl of each example, by NumPy and scipy."""
    kernel, bias = (weight.astype(float) for weight in to_params.get_weights())
    loc, raw = np.split(x @ kernel + bias, 2, axis=-1)
    scale = np.log1p(np.exp(raw))
    z = z.reshape(-1, *loc.shape)  # [S, B, D]
    kernel, bias = (weight.astype(float) for weight in to_logits.get_weights())
    logits = z @ kernel + bias
    nll = (np.logaddexp(0, logits) - x * logits).sum(-1).mean(0)
    if exact:
        kl = 0.5 * (scale**2 + loc**2 - 1 - 2 * np.log(scale)).sum(-1)
    else:
        log_ratio = stats.norm.logpdf(z, loc, scale) - stats.norm.logpdf(z)
        kl = log_ratio.sum(-1).mean(0)
    return nll, kl


def reference(x, zs, batch_size, exact, layers):
    starts = range(0, len(x), batch_size)
    terms = [
        negative_elbo(x[start : start + batch_size], z, *layers, exact)
        for start, z in zip(starts, zs, strict=True)
    ]
    return [np.concatenate(term) for term in zip(*terms, strict=True)]


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "monte-carlo"])
@pytest.mark.parametrize("num_samples", [None, 1, 10])
@pytest.mark.parametrize("style", STYLES)
def test_loss_is_the_negative_elbo(style, num_samples, exact, rng):
    batch_size = 7
    x = rng.random((NUM_DATA, DATA_SIZE)).astype("float32")
    model, posterior, *layers = build(style, num_samples, exact)
    model(x[:1])
    with recorded(posterior) as zs:
        loss = model.evaluate(x, x, batch_size=batch_size, verbose=0, return_dict=True)
    nll, kl = reference(x, zs, batch_size, exact, layers)
    assert loss["loss"] == pytest.approx(np.mean(nll + kl), rel=1e-5)
    if style == "vae":
        assert loss["nll"] == pytest.approx(np.mean(nll), rel=1e-5)
        assert loss["kl"] == pytest.approx(np.mean(kl), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("style", STYLES)
def test_fit_prints_the_negative_elbo(style, rng):
    x = rng.random((NUM_DATA, DATA_SIZE)).astype("float32")
    model, posterior, *layers = build(style, num_samples=3)
    model(x[:1])
    with recorded(posterior) as zs:
        history = model.fit(x, x, batch_size=16, shuffle=False, verbose=0).history
    nll, kl = reference(x, zs, 16, True, layers)
    assert history["loss"][0] == pytest.approx(np.mean(nll + kl), rel=1e-5)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
@pytest.mark.parametrize("weights", ["none", "random", "zero"])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "monte-carlo"])
@pytest.mark.parametrize("num_samples", [None, 10])
def test_vae_weights_every_term(num_samples, exact, weights, method, rng):
    batch_size = 7
    x = rng.random((NUM_DATA, DATA_SIZE)).astype("float32")
    weight = {
        "none": None,
        "random": rng.random(NUM_DATA) * 3,
        "zero": np.zeros(NUM_DATA),
    }[weights]
    model, posterior, *layers = build("vae", num_samples, exact)
    model(x[:1])
    with recorded(posterior) as zs:
        if method == "fit":
            loss = model.fit(
                x, batch_size=batch_size, sample_weight=weight, shuffle=False, verbose=0
            ).history
            loss = {name: value[0] for name, value in loss.items()}
        else:
            loss = model.evaluate(
                x, batch_size=batch_size, sample_weight=weight, verbose=0, return_dict=True
            )
    nll, kl = reference(x, zs, batch_size, exact, layers)
    weight = np.ones(NUM_DATA) if weight is None else weight
    wanted = {"nll": weight * nll, "kl": weight * kl, "loss": weight * (nll + kl)}
    for name, values in wanted.items():
        assert loss[name] == pytest.approx(np.mean(values), rel=1e-5, abs=1e-6), name


def test_zero_weights_leave_the_model_unchanged(rng):
    x = rng.random((NUM_DATA, DATA_SIZE)).astype("float32")
    model, *_ = build("vae", learning_rate=1.0)
    model(x[:1])
    before = [weight.numpy() for weight in model.trainable_weights]
    model.fit(x, sample_weight=np.zeros(NUM_DATA), verbose=0)
    for old, new in zip(before, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("style", STYLES)
def test_gradient_is_that_of_the_negative_elbo(style, rng):
    """One step of SGD moves the weights by what finite differences of the reference say."""
    x = rng.random((16, DATA_SIZE)).astype("float32")
    model, posterior, to_params, to_logits = build(style, learning_rate=1.0)
    model(x[:1])
    before = [layer.get_weights() for layer in (to_params, to_logits)]
    with recorded(posterior) as zs:
        model.fit(x, x, batch_size=16, shuffle=False, verbose=0)
    loc, raw = np.split(x @ before[0][0] + before[0][1], 2, axis=-1)
    epsilon = (zs[0] - loc) / np.log1p(np.exp(raw))

    def loss(encoder_bias, decoder_bias):
        mean, scale = np.split(x @ before[0][0].astype(float) + encoder_bias, 2, axis=-1)
        scale = np.log1p(np.exp(scale))
        logits = (mean + scale * epsilon) @ before[1][0].astype(float) + decoder_bias
        nll = (np.logaddexp(0, logits) - x * logits).sum(-1)
        kl = 0.5 * (scale**2 + mean**2 - 1 - 2 * np.log(scale)).sum(-1)
        return np.mean(nll + kl)

    biases = [before[0][1].astype(float), before[1][1].astype(float)]
    for which, layer in enumerate((to_params, to_logits)):
        moved = biases[which] - layer.get_weights()[1]
        for i in range(len(moved)):
            up, down = ([bias.copy() for bias in biases] for _ in range(2))
            up[which][i] += 1e-5
            down[which][i] -= 1e-5
            slope = (loss(*up) - loss(*down)) / 2e-5
            assert moved[i] == pytest.approx(slope, rel=1e-3, abs=1e-4)
