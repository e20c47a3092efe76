"""True posteriors that are no Gaussians, a banana and two moons, and what approximates them.

    python examples/flows.py

Each is the posterior p(z|x) of a small model for one x, whose log p(x) a sum over a grid knows. For
each family of q(z|x) it prints the gap log p(x) - ELBO, which is KL(q(z|x) || p(z|x)), and draws
the densities side by side.
"""

import argparse
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import VAE, flows, likelihoods, posteriors, priors

AXIS = np.linspace(-4.5, 4.5, 226)
GRID = np.stack(np.meshgrid(AXIS, AXIS), axis=-1).reshape(-1, 2).astype("float32")
CELL = (AXIS[1] - AXIS[0]) ** 2

FAMILIES = {
    "DiagonalNormal": lambda: posteriors.DiagonalNormal(2),
    "FullRankNormal": lambda: posteriors.FullRankNormal(2),
    "Planar(16)": lambda: posteriors.Flow(2, flows.Planar(16)),
    "Sylvester(8)": lambda: posteriors.Flow(2, flows.Sylvester(8)),
    "InverseAutoregressive(4)": lambda: posteriors.Flow(2, flows.InverseAutoregressive(4)),
    "RealNVP(6)": lambda: posteriors.Flow(2, flows.RealNVP(6)),
    "NeuralSpline(4)": lambda: posteriors.Flow(2, flows.NeuralSpline(4)),
}


class Banana(keras.layers.Layer):
    """x is z_2 - z_1^2, with noise."""

    data, noise = (-1.0,), (0.3,)

    def call(self, z: Any) -> Any:
        """The mean of x given z."""
        return z[:, 1:] - z[:, :1] ** 2


class Moons(keras.layers.Layer):
    """x is the radius of z and |z_1|, with noise."""

    data, noise = (2.0, 2.0), (0.25, 0.8)

    def call(self, z: Any) -> Any:
        """The mean of x given z."""
        return tf.stack([tf.norm(z, axis=1), tf.abs(z[:, 0])], axis=1)


TARGETS: dict[str, Any] = {"banana": Banana, "two moons": Moons}


def model(target: Any, posterior: Any, seed: int) -> VAE:
    """The model, whose encoder is one layer because there is one x only."""
    size = len(target.data)
    likelihood = likelihoods.Normal(size, scale=np.array(target.noise, "float32"))
    first = keras.layers.Dense(posterior.params_size, kernel_initializer="zeros")
    encoder = keras.Sequential([first, posterior])
    prior = priors.Normal(2, loc=0.0, scale=1.5)
    return VAE(prior, encoder, keras.Sequential([target(), likelihood]), seed=seed)


def log_joint(vae: VAE, x: np.ndarray) -> np.ndarray:
    """The log p(x, z) on the grid."""
    return (vae.likelihood(GRID).log_prob(x) + vae.prior().log_prob(GRID)).numpy()


def main() -> None:
    """Print the gaps and draw the densities."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000, help="of Adam, for each family")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and draws")
    parser.add_argument("--families", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    size = (len(TARGETS), 1 + len(options.families))
    figure, axes = plt.subplots(*size, figsize=(2.2 * size[1], 2.4 * size[0]), squeeze=False)
    print(f"{'':12}{'':26}{'ELBO':>9}{'gap':>9}{'of the diagonal one':>22}   nats")
    for row, (name, target) in zip(axes, TARGETS.items(), strict=True):
        x = np.array([target.data], "float32")
        first = None
        for ax, family in zip(row[1:], options.families, strict=True):
            keras.utils.set_random_seed(options.seed)
            vae = model(target, FAMILIES[family](), options.seed)
            rate = keras.optimizers.schedules.CosineDecay(0.01, options.steps)
            vae.compile(keras.optimizers.Adam(rate))
            epochs = 10
            rows = np.repeat(x, 256 * max(1, options.steps // epochs), axis=0)
            vae.fit(rows, batch_size=256, epochs=epochs, verbose=0)
            joint = log_joint(vae, x)
            evidence = float(np.log(np.sum(np.exp(joint - joint.max())) * CELL) + joint.max())
            elbo = float(vae.log_weights(x, 50_000, seed=1, verbose=0).mean())
            gap = evidence - elbo
            first = gap if first is None else first
            print(f"{name:12}{family:26}{elbo:9.3f}{gap:9.3f}{gap / first:22.0%}", flush=True)
            draw(ax, vae.posterior(x).prob(GRID).numpy(), family)
        print(f"{name:12}{'log p(x)':26}{evidence:9.3f}")
        draw(row[0], np.exp(joint - evidence), f"{name}, true")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "flows.png"
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"the densities are in {path}")


def draw(ax: Any, density: np.ndarray, title: str) -> None:
    """A density on the grid."""
    ax.contourf(AXIS, AXIS, density.reshape(len(AXIS), -1), levels=20, cmap="Blues")
    ax.set(title=title, xlabel="$z_1$", ylabel="$z_2$", xlim=(-4, 4), ylim=(-4, 4))
    ax.title.set_fontsize(8)
    ax.set_aspect("equal")


if __name__ == "__main__":
    main()
