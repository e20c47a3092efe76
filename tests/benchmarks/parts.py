"""Where the time of an epoch goes: the dense VAE's training step, put together part by part.

Each line of the table adds a part to the line before. All are compiled by XLA, on a few batches
that are already in the program, and run in turns. The last line is `fit`: it adds the data, the
logs and Keras's loop.
"""

import argparse
import statistics
import sys
import time

import tensorflow as tf
import tf_keras as keras
from keras_contenders import networks_of, products_of
from workloads import WORKLOADS

from tfpvae import VAE, datasets, likelihoods, noise, posteriors, priors

WORKLOAD = WORKLOADS["mlp"]


class Step:
    """A training step on one batch; each method is one of so many parts."""

    def __init__(self, x):
        # Several, because XLA would do what is the same in each step but once.
        self.batches = tf.constant(x[: 8 * WORKLOAD.batch_size].reshape(8, WORKLOAD.batch_size, -1))
        self.networks = networks_of(WORKLOAD)
        self.without_biases = [products_of(network) for network in self.networks]
        encoder, decoder = self.networks
        self.vae = VAE(
            priors.StandardNormal(WORKLOAD.latent_size),
            keras.Sequential([encoder, posteriors.DiagonalNormal(WORKLOAD.latent_size)]),
            keras.Sequential([decoder, likelihoods.Bernoulli(WORKLOAD.shape)]),
        )
        self.vae.compile(WORKLOAD.optimizer)
        self.vae.build(x.shape)
        self.vae.optimizer.build(self.vae.trainable_variables)

    def products(self, i):
        return self._backward(i, *self.without_biases)

    def layers(self, i):
        return self._backward(i, *self.networks)

    def gradients(self, i):
        return self._loss_and_gradients(i)[1]

    def loss(self, i):
        loss, gradients = self._loss_and_gradients(i)
        return [loss, *gradients]

    def update(self, i):
        loss, gradients = self._loss_and_gradients(i)
        self.vae.optimizer.apply_gradients(
            zip(gradients, self.vae.trainable_variables, strict=True)
        )
        return [loss]

    def _backward(self, i, encoder, decoder):
        weights = encoder.trainable_variables + decoder.trainable_variables
        with tf.GradientTape() as tape:
            y = decoder(encoder(self.batches[i % 8])[:, : WORKLOAD.latent_size])
        return tape.gradient(y, weights, output_gradients=y)

    def _loss_and_gradients(self, i):
        x = self.batches[i % 8]
        with noise.fixed(self.vae.noise.next()), tf.GradientTape() as tape:
            losses, _, _ = self.vae.example_losses(x, x, training=True)
            loss = tf.reduce_mean(losses)
        return loss, tape.gradient(loss, self.vae.trainable_variables)


PARTS = {
    "products": "matrix products",
    "layers": "+ biases and activations",
    "gradients": "+ draws, gradient of the loss",
    "loss": "+ value of the loss",
    "update": "+ optimizer",
    "fit": "+ data, logs, Keras's loop: `fit`",
}


def epoch_of(part):
    """A function that runs an epoch's steps in one program."""
    # The results are carried on, or XLA would leave out what leads to them.
    start = [tf.zeros_like(result) for result in part(0)]

    def body(i, *_):
        return i + 1, *part(i)

    @tf.function(jit_compile=True, autograph=False)
    def epoch():
        return tf.while_loop(lambda i, *_: i < WORKLOAD.steps, body, [0, *start])

    return epoch


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", help="mnist.npz or its folder, else what TFPVAE_DATA names")
    options = parser.parse_args()
    x = datasets.load("mnist", options.data, scale=True, flatten=True).x_train
    step = Step(x)
    epochs = {name: epoch_of(getattr(step, name)) for name in list(PARTS)[:-1]}
    seconds = {name: [] for name in PARTS}

    def run_parts(*_):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            epoch()[0].numpy()
            seconds[name].append(time.perf_counter() - start)

    class Turns(keras.callbacks.Callback):
        """Runs the parts between the epochs of `fit`."""

        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            seconds["fit"].append(time.perf_counter() - self.start)
            run_parts()
            print(f"parts: round {epoch} of {options.rounds}", file=sys.stderr, flush=True)

    vae = Step(x).vae
    vae.fit(
        x, batch_size=WORKLOAD.batch_size, epochs=options.rounds + 1, verbose=0, callbacks=[Turns()]
    )
    print("| part of a step | s/epoch | more | x products |\n| --- | ---: | ---: | ---: |")
    before = 0.0
    for name, title in PARTS.items():
        median = statistics.median(seconds[name][1:])
        ratio = statistics.median(
            map(lambda a, b: a / b, seconds[name][1:], seconds["products"][1:])
        )
        print(f"| {title} | {median:.3f} | {median - before:+.3f} | {ratio:.2f} |")
        before = median


if __name__ == "__main__":
    main()
