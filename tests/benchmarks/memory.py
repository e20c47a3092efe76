"""Peak memory of training on shards, by the size of the data: flat, however much there is.

Each size and format is trained on in a process of its own, for one epoch, without XLA, which is
chosen by the length of the run and takes memory of its own.
"""

import argparse
import subprocess
import sys
import tempfile

import numpy as np

SIZE, BATCH_SIZE, PIECE = 784, 500, 10_000


def train(folder):
    """Print the rows trained on and the peak memory of this process in MB."""
    import tf_keras as keras
    from worker import memory

    from tfpvae import VAE, likelihoods, networks, posteriors, priors, streams

    posterior = posteriors.DiagonalNormal(2)
    hidden = keras.layers.Dense(32, "relu"), keras.layers.Dense(posterior.params_size)
    vae = VAE(
        priors.StandardNormal(2),
        keras.Sequential([*hidden, posterior]),
        keras.Sequential([keras.layers.Dense(SIZE), likelihoods.Bernoulli(SIZE)]),
        seed=0,
        preprocessing=networks.Binarize(255),
    )
    vae.compile("adam", jit_compile=False)
    vae.fit(streams.read(folder, BATCH_SIZE), verbose=0)
    print(streams.manifest(folder).num_rows, memory()["peak"])


def measure(megabytes, file_format):
    """The rows and the peak memory of a training on so much data."""
    from tfpvae import streams

    rng = np.random.default_rng(0)
    num = round(megabytes * 2**20 / SIZE / PIECE)
    with tempfile.TemporaryDirectory() as folder:
        pieces = (rng.integers(0, 256, (PIECE, SIZE), dtype="uint8") for _ in range(num))
        streams.write(folder, pieces, file_format=file_format, rows_per_file=PIECE, verbose=0)
        command = [sys.executable, __file__, "--train", folder]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    rows, peak = output.split()[-2:]
    return int(rows), float(peak)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="is not used: memory has no noise")
    parser.add_argument("--megabytes", type=float, default=64, help="of the smaller data")
    parser.add_argument("--factor", type=int, default=16, help="how much larger the others are")
    parser.add_argument("--formats", nargs="+", default=["npy", "tfrecord"])
    parser.add_argument("--train", help="a folder to train on, in a process for that")
    options = parser.parse_args()
    if options.train:
        train(options.train)
        return
    print("| shards | rows | MB on disk | peak MB | of the first |\n|---|---:|---:|---:|---:|")
    for file_format in options.formats:
        first = None
        for size in (options.megabytes, options.factor * options.megabytes):
            print(f"{file_format}, {size:.0f} MB", file=sys.stderr)
            rows, peak = measure(size, file_format)
            first = first or peak
            size = rows * SIZE / 2**20
            print(f"| {file_format} | {rows:,} | {size:.0f} | {peak:.0f} | {peak / first:.2f} |")


if __name__ == "__main__":
    main()
