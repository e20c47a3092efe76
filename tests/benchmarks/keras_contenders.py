"""The contenders that run on TensorFlow."""

import math

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import VAE, flows, likelihoods, networks, objectives, posteriors, priors

tfd, tfpl = tfp.distributions, tfp.layers


def train_tfpvae(workload, x, epochs, report):
    """The library as its examples use it, with nothing set for speed."""
    if workload.repeat > 1:
        x = np.concatenate([x] * workload.repeat)
    _fit_tfpvae(workload, x, epochs, report, batch_size=workload.batch_size)


def train_flow(workload, x, epochs, report):
    """The library with a flow of two networks as the posterior, which the encoder conditions."""
    keras.utils.set_random_seed(0)
    flow = flows.InverseAutoregressive(2, (32,), context_size=16)
    posterior = posteriors.Flow(workload.latent_size, flow)
    encoder = networks.mlp_encoder(
        workload.shape, posterior.params_size, workload.hidden, workload.activation
    )
    decoder = networks_of(workload)[1]
    _fit_vae(workload, encoder, posterior, decoder, x, epochs, report, workload.batch_size)


def train_stream(workload, x, epochs, report):
    """The library on a stream that repeats the images: as many rows, but never in memory."""
    stream = tf.data.Dataset.from_tensor_slices(np.rint(x * 255).astype(np.uint8))
    stream = stream.repeat(workload.repeat).map(lambda image: tf.cast(image, tf.float32) / 255.0)
    stream = stream.shuffle(1000).batch(workload.batch_size).prefetch(tf.data.AUTOTUNE)
    _fit_tfpvae(workload, stream, epochs, report)


def train_stock(workload, x, epochs, report, **compile_options):
    """The tutorial of TensorFlow Probability, with Keras's defaults.

    The posterior is its IndependentNormal, so that the networks are the same. Stock layers count
    the KL twice: the loss is nll + 2 kl, and higher than the others'.
    """
    keras.utils.set_random_seed(0)
    encoder, decoder = networks_of(workload)
    size = workload.latent_size
    prior = tfd.Independent(tfd.Normal(tf.zeros(size), 1.0), reinterpreted_batch_ndims=1)
    kl = tfpl.KLDivergenceRegularizer(prior)
    posterior = tfpl.IndependentNormal(size, activity_regularizer=kl)
    likelihood = tfpl.IndependentBernoulli(workload.shape, tfd.Bernoulli.logits)
    model = keras.Sequential([encoder, posterior, decoder, keras.layers.Flatten(), likelihood])
    model.compile(workload.optimizer, lambda x, p: -p.log_prob(x), **compile_options)
    _fit(model, (x, x), epochs, report, batch_size=workload.batch_size)


def train_stock_tuned(workload, x, epochs, report):
    """The same with the two switches that Keras has for speed."""
    train_stock(workload, x, epochs, report, steps_per_execution=50, jit_compile=True)


def multiply(workload, x, epochs, report):
    """The limit: an epoch's matrix products or convolutions, forward and backward, and no more.

    The networks without biases and activations are products; so are their gradients for given
    output gradients.
    """
    encoder, decoder = (products_of(network) for network in networks_of(workload))
    weights = encoder.trainable_variables + decoder.trainable_variables
    batch = tf.constant(x[: workload.batch_size])

    def step(i, *_):
        with tf.GradientTape() as tape:
            z = encoder(batch)[:, : workload.latent_size]
            y = decoder(tf.repeat(z, workload.num_samples or 1, axis=0))
        return i + 1, *tape.gradient(y, weights, output_gradients=y)

    @tf.function
    def epoch():
        # The gradients are passed on, or else TensorFlow would leave the products out; one step at
        # a time, as in training.
        start = [0, *(tf.zeros_like(weight) for weight in weights)]
        return tf.while_loop(lambda i, *_: i < workload.steps, step, start, parallel_iterations=1)

    for _ in range(epochs):
        epoch()
        report(math.nan)


def _fit_tfpvae(workload, data, epochs, report, batch_size=None):
    keras.utils.set_random_seed(0)
    encoder, decoder = networks_of(workload)
    posterior = posteriors.DiagonalNormal(workload.latent_size)
    _fit_vae(workload, encoder, posterior, decoder, data, epochs, report, batch_size)


def _fit_vae(workload, encoder, posterior, decoder, data, epochs, report, batch_size):
    vae = VAE(
        priors.StandardNormal(workload.latent_size),
        keras.Sequential([encoder, posterior]),
        keras.Sequential([decoder, likelihoods.Bernoulli(workload.shape)]),
    )
    num = workload.num_samples
    vae.compile(workload.optimizer, objective=objectives.IWAE(num) if num else None)
    _fit(vae, (data,), epochs, report, batch_size=batch_size)


def _fit(model, data, epochs, report, **options):
    # One call, so that what `fit` does before the first epoch is in the first epoch's time alone.
    hook = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: report(logs["loss"]))
    model.fit(*data, epochs=epochs, callbacks=[hook], **options)


def networks_of(workload):
    size = workload.latent_size
    if len(workload.shape) == 1:
        layers = {"hidden": workload.hidden, "activation": workload.activation}
        encoder = networks.mlp_encoder(workload.shape, 2 * size, **layers)
        decoder = networks.mlp_decoder(size, *workload.shape, **layers)
    else:
        encoder = networks.conv_encoder(workload.shape, 2 * size)
        decoder = networks.conv_decoder(size, workload.shape)
    assert (encoder.count_params(), decoder.count_params()) == workload.weights
    return encoder, decoder


def products_of(network):
    """The network without biases and activations."""
    layers = [keras.Input(network.input_shape[1:])]
    for layer in network.layers:
        config = layer.get_config()
        plain = {"use_bias": False, "activation": None} if "use_bias" in config else {}
        layers.append(type(layer).from_config(config | plain))
    return keras.Sequential(layers)
