"""Scoring images by importance sampling, beside the matrix products that it takes.

The one-layer model of Burda et al., 5,000 draws for each image. Both run in turns; the products are
those of the decoder alone, by TensorFlow, in batches as large. Peak memory is of the whole process.
"""

import argparse
import resource
import statistics
import sys
import time

import numpy as np
import tensorflow as tf
import tf_keras as keras
from keras_contenders import networks_of, products_of
from workloads import WORKLOADS

from tfpvae import VAE, datasets, likelihoods, posteriors, priors

WORKLOAD = WORKLOADS["iwae-50"]
NUM_SAMPLES = 5000
BATCH_ROWS = 20_000


def model():
    encoder, decoder = networks_of(WORKLOAD)
    size = WORKLOAD.latent_size
    vae = VAE(
        priors.StandardNormal(size),
        keras.Sequential([encoder, posteriors.DiagonalNormal(size)]),
        keras.Sequential([decoder, likelihoods.Bernoulli(WORKLOAD.shape)]),
        seed=0,
    )
    return vae, products_of(decoder)


def products(network, rows):
    """A function that multiplies so many rows through the network."""
    z = tf.random.normal((BATCH_ROWS, WORKLOAD.latent_size))

    @tf.function
    def run(num):
        def body(i, total):
            return i + 1, total + network(z + total[:1, :1])[:, :1]

        start = (0, tf.zeros((BATCH_ROWS, 1)))
        return tf.while_loop(lambda i, _: i < num, body, start, parallel_iterations=1)[1]

    return lambda: run(tf.constant(-(-rows // BATCH_ROWS)))


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=500, help="how many of the test images")
    parser.add_argument("--data", help="mnist.npz or its folder, else what TFPVAE_DATA names")
    options = parser.parse_args()
    test = datasets.load("mnist", options.data, scale=True, flatten=True).x_test[: options.images]
    x = (np.random.default_rng(0).random(test.shape) < test).astype("float32")
    vae, network = model()
    runs = {
        "log_marginal_likelihood": lambda: vae.log_marginal_likelihood(
            x, NUM_SAMPLES, seed=0, verbose=0
        ),
        "its products alone": products(network, len(x) * NUM_SAMPLES),
    }
    times = {name: [] for name in runs}
    for name, run in runs.items():
        print(f"first {name}: {seconds(run):.1f} s", file=sys.stderr)
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    limit = np.array(times["its products alone"])
    print(f"{len(x):,} images, {NUM_SAMPLES:,} draws each\n")
    print("| | s | x products |\n|---|---:|---:|")
    for name, found in times.items():
        ratio = statistics.median(np.array(found) / limit)
        print(f"| {name} | {statistics.median(found):.2f} | {ratio:.2f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak memory of the process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
