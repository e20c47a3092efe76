"""A trained VAE in another process, which has TensorFlow alone.

    python examples/serve.py

It trains on the handwritten digits, exports the model, and starts a Python process that can import
neither tfpvae nor TensorFlow Probability nor tf_keras. That process reconstructs the test images;
the example prints the largest difference from its own reconstructions, and draws the other's.
"""

import argparse
import pathlib
import subprocess
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import VAE, datasets, networks, plotting
from tfpvae.likelihoods import Bernoulli
from tfpvae.posteriors import DiagonalNormal
from tfpvae.priors import StandardNormal

LATENT_SIZE = 8
SEED = 1

# All that a service needs. The first two lines refuse the import of anything else.
SERVICE = """
import sys
sys.modules.update(dict.fromkeys(["tfpvae", "tensorflow_probability", "tf_keras"]))

import numpy as np
import tensorflow as tf

model, given, found = sys.argv[1:]
signatures = tf.saved_model.load(model).signatures
print("the process has the signatures", *sorted(signatures))
data = np.load(given)
outputs = signatures["reconstruct"](x=tf.constant(data["x"]), seed=tf.constant(data["seed"]))
np.savez(found, **{name: value.numpy() for name, value in outputs.items()})
"""


def build(data_size: int, highest: int, seed: int) -> VAE:
    """A dense VAE of images as bytes."""
    posterior, likelihood = DiagonalNormal(LATENT_SIZE), Bernoulli(data_size)
    encoder = networks.mlp_encoder(data_size, posterior.params_size)
    decoder = networks.mlp_decoder(LATENT_SIZE, likelihood.params_size)
    return VAE(
        StandardNormal(LATENT_SIZE),
        keras.Sequential([encoder, posterior]),
        keras.Sequential([decoder, likelihood]),
        seed=seed,
        preprocessing=keras.layers.Rescaling(1 / highest),
    )


def reconstructed_elsewhere(folder: pathlib.Path, x: np.ndarray) -> Any:
    """What another process makes of x by the model in the folder."""
    given, found = folder / "given.npz", folder / "found.npz"
    np.savez(given, x=x, seed=np.array([SEED, 0], "int32"))
    words = [sys.executable, "-c", SERVICE, folder / "vae", given, found]
    subprocess.run(list(map(str, words)), check=True)
    return np.load(found)["mean"]


def main() -> None:
    """Train, export, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the weights, batches and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    data = datasets.load("digits", flatten=True)
    vae = build(data.x_train.shape[1], int(data.x_train.max()), options.seed)
    vae.compile("adam")
    vae.fit(data.x_train, epochs=options.epochs, batch_size=50, validation_data=data.x_test)
    options.output.mkdir(parents=True, exist_ok=True)
    vae.export(options.output / "vae", overwrite=True)
    vae.export(options.output / "decoder.tflite", overwrite=True)
    found = reconstructed_elsewhere(options.output, data.x_test)
    own = vae.reconstruct(data.x_test, seed=tf.constant([SEED, 0]))
    print(f"{len(found)} images, largest difference {np.abs(found - own).max():.1e}")
    shown = data.x_test[:10] / data.x_train.max()
    figure: Any = plotting.reconstructions(shown, found[:10]).figure
    figure.savefig(options.output / "served.png", dpi=150, bbox_inches="tight")
    print(f"vae, decoder.tflite and served.png are in {options.output}")


if __name__ == "__main__":
    main()
