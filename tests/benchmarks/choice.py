"""Where XLA pays: each family of networks trained with and without it, in turns."""

import argparse
import statistics
import sys
import time

import numpy as np
import tf_keras as keras

from tfpvae import VAE, likelihoods, networks, posteriors, priors

LATENT_SIZE, BATCH_SIZE, BATCHES = 2, 100, 32
IMAGE = (28, 28, 1)


def _dense(*first):
    layers = keras.layers
    return [*first, layers.Flatten(), layers.Dense(256, "relu"), layers.Dense(256, "relu")]


def _recurrent(cell):
    return [keras.layers.Reshape(IMAGE[:2]), cell(64)]


def _attention():
    inputs = keras.Input(IMAGE)
    rows = keras.layers.Dense(32)(keras.layers.Reshape(IMAGE[:2])(inputs))
    attended = keras.layers.MultiHeadAttention(2, 16)(rows, rows)
    return [keras.Model(inputs, keras.layers.Flatten()(rows + attended))]


#: The encoder's hidden layers; the decoder is dense.
FAMILIES = {
    "dense": _dense,
    "dense, batch normalization": lambda: [*_dense(), keras.layers.BatchNormalization()],
    "LSTM over rows": lambda: _recurrent(keras.layers.LSTM),
    "GRU over rows": lambda: _recurrent(keras.layers.GRU),
    "attention over rows": _attention,
    "average pooling": lambda: _dense(keras.layers.AveragePooling2D(2)),
    "maximum pooling": lambda: _dense(keras.layers.MaxPooling2D(2)),
    "convolutional encoder": lambda: [networks.conv_encoder(IMAGE, 16)],
}


def build(family, jit_compile):
    posterior = posteriors.DiagonalNormal(LATENT_SIZE)
    encoder = [*FAMILIES[family](), keras.layers.Dense(posterior.params_size), posterior]
    decoder = [
        keras.layers.Dense(256, "relu"),
        keras.layers.Dense(784),
        likelihoods.Bernoulli(IMAGE),
    ]
    vae = VAE(
        priors.StandardNormal(2), keras.Sequential(encoder), keras.Sequential(decoder), seed=0
    )
    vae.compile("adam", jit_compile=jit_compile)
    return vae


class Clock(keras.callbacks.Callback):
    """Seconds of each epoch but the first."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        if epoch:
            self.seconds.append(time.perf_counter() - self._start)


def measure(family, rounds):
    """Median seconds of a batch without and with XLA, and what the first epoch costs more."""
    x = np.random.default_rng(0).random((BATCHES * BATCH_SIZE, *IMAGE)).astype("float32")
    models = {jit: build(family, jit) for jit in (False, True)}
    seconds = {jit: [] for jit in models}
    first = {}
    for jit, model in models.items():
        start = time.perf_counter()
        model.fit(x, batch_size=BATCH_SIZE, verbose=0)
        first[jit] = time.perf_counter() - start
    for _ in range(rounds):
        for jit, model in models.items():
            clock = Clock()
            model.fit(x, batch_size=BATCH_SIZE, epochs=2, verbose=0, callbacks=[clock])
            seconds[jit] += clock.seconds
    plain, xla = (statistics.median(seconds[jit]) / BATCHES for jit in (False, True))
    return plain, xla, first[True] - first[False]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    names = "networks", "ms/batch without XLA", "with XLA", "times faster", "more s to start"
    print("| " + " | ".join(names) + " |\n| --- " + "| ---: " * (len(names) - 1) + "|")
    for family in FAMILIES:
        print(f"{family}: in turns without and with XLA", file=sys.stderr)
        plain, xla, more = measure(family, rounds)
        print(
            f"| {family} | {1e3 * plain:.2f} | {1e3 * xla:.2f} | {plain / xla:.2f} | {more:.1f} |"
        )


if __name__ == "__main__":
    main()
