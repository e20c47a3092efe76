"""Training on shards that are larger than what is in memory at a time.

    python examples/big_data.py

writes the digits, moved about and with grey levels of noise, to a folder in shards, trains a VAE on
them through streams.read, binarized afresh in each step, and prints how much data there were and
what memory it took.
"""

import argparse
import pathlib
import resource
import tempfile
from collections.abc import Iterator

import numpy as np
import tf_keras as keras

from tfpvae import VAE, datasets, likelihoods, networks, posteriors, priors, streams

LATENT_SIZE = 8
SIDE = 28  # of an image, into which the 8x8 pixels are put, twice as large


def images(digits: np.ndarray, num_pieces: int, seed: int) -> Iterator[np.ndarray]:
    """Pieces of images `[N, 28 * 28]` in bytes, which are made as they are asked for."""
    rng = np.random.default_rng(seed)
    large = digits.repeat(2, axis=1).repeat(2, axis=2)
    for _ in range(num_pieces):
        canvas = np.zeros((len(large), SIDE, SIDE), "uint8")
        top, left = rng.integers(0, SIDE - large.shape[1], 2)
        levels = rng.uniform(0.8, 1.0, large.shape) * large * (255 / 16)
        canvas[:, top : top + large.shape[1], left : left + large.shape[2]] = levels
        yield canvas.reshape(len(large), -1)


def build(seed: int) -> VAE:
    """A VAE of bits, of which the bytes are the probabilities."""
    size = SIDE * SIDE
    posterior = posteriors.DiagonalNormal(LATENT_SIZE)
    return VAE(
        priors.StandardNormal(LATENT_SIZE),
        keras.Sequential([networks.mlp_encoder(size, posterior.params_size), posterior]),
        keras.Sequential([networks.mlp_decoder(LATENT_SIZE, size), likelihoods.Bernoulli(size)]),
        seed=seed,
        preprocessing=networks.Binarize(255),
    )


def peak_megabytes() -> float:
    """The most memory that the process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Write, train, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--copies", type=int, default=50, help="of the 1,437 digits")
    parser.add_argument("--format", choices=("npy", "tfrecord"), default="npy")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the weights, images and draws")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    data = datasets.load("digits")
    with tempfile.TemporaryDirectory() as folder:
        pieces = images(data.x_train, options.copies, options.seed)
        found = streams.write(folder, pieces, file_format=options.format)
        size = sum(file.stat().st_size for file in pathlib.Path(folder).iterdir()) / 2**20
        print(f"{found.num_rows:,} images in {len(found.shards)} shards, {size:.0f} MB")
        vae = build(options.seed)
        vae.compile("adam")
        before = peak_megabytes()
        dataset = streams.read(folder, options.batch_size)
        loss = vae.fit(dataset, epochs=options.epochs, verbose=2).history["loss"][-1]
        print(
            f"loss {loss:.2f} nats; memory {before:.0f} MB, at its peak {peak_megabytes():.0f} MB"
        )


if __name__ == "__main__":
    main()
