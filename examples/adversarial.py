"""Adversarial variational Bayes on four points: a posterior of any shape beside a Gaussian one.

    python examples/adversarial.py

The data are the four one-hot vectors of four pixels, z has two dimensions: the toy data of
Mescheder, Nowozin and Geiger, 2017. The best posterior cuts the prior into four regions, which no
Gaussian is. The density of the implicit posterior is not known, so its ELBO is taken apart from the
discriminator: from draws, whose entropy follows from the distances to their nearest neighbours, and
log p(x) from a sum over a grid of z.
"""

import argparse
import math
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tf_keras as keras
from scipy import spatial, special

from tfpvae import VAE, likelihoods, objectives, posteriors, priors

X = np.eye(4, dtype="float32")
AXIS = np.linspace(-6, 6, 301)
GRID = np.stack(np.meshgrid(AXIS, AXIS), axis=-1).reshape(-1, 2).astype("float32")
CELL = (AXIS[1] - AXIS[0]) ** 2
BATCH_SIZE, STEPS_PER_EPOCH = 16, 100


def network(size: int, *units: int) -> keras.Sequential:
    """A dense network that puts out so many numbers."""
    hidden = [keras.layers.Dense(unit, "relu") for unit in units]
    return keras.Sequential([*hidden, keras.layers.Dense(size)])


def adam(rate: float, steps: int) -> keras.optimizers.Optimizer:
    """Adam as for adversarial training: little momentum, and a rate that falls to zero."""
    rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    return keras.optimizers.Adam(rate, beta_1=0.5)


def model(posterior: Any, seed: int) -> VAE:
    """The model; the posterior decides what it is trained by."""
    encoder = keras.Sequential([keras.layers.Dense(posterior.params_size), posterior])
    decoder = keras.Sequential([*network(4, 64, 64).layers, likelihoods.Bernoulli(4)])
    return VAE(priors.StandardNormal(2), encoder, decoder, seed=seed)


def train(vae: VAE, objective: Any, steps: int) -> dict[str, float]:
    """Train the model; the terms of the loss at the end.

    A discriminator has to keep up with the model, which goes slower for it.
    """
    rate = 2e-3 if objective.discriminator is None else 5e-4
    vae.compile(adam(rate, steps), objective=objective)
    rows = np.tile(X, (BATCH_SIZE * STEPS_PER_EPOCH // len(X), 1))
    epochs = max(1, steps // STEPS_PER_EPOCH)
    vae.fit(rows, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    return vae.evaluate(np.tile(X, (1000, 1)), batch_size=1000, verbose=0, return_dict=True)


def entropy(z: np.ndarray, k: int = 5) -> float:
    """The entropy of draws `[N, 2]`, by Kozachenko and Leonenko: from distances to neighbours."""
    distance = spatial.cKDTree(z.astype(float)).query(z.astype(float), k + 1)[0][:, -1]
    volume = math.log(math.pi) + 2 * np.log(distance)
    return float(special.digamma(len(z)) - special.digamma(k) + volume.mean())


def elbo(vae: VAE, draws: np.ndarray) -> float:
    """The ELBO of draws `[N, 4, 2]` of q(z|x), a mean over the four x."""
    log_joint = vae.likelihood(draws).log_prob(X) + vae.prior().log_prob(draws)
    return float(np.mean(log_joint)) + float(np.mean([entropy(draws[:, i]) for i in range(4)]))


def log_evidence(vae: VAE) -> float:
    """The mean of log p(x), by a sum over the grid."""
    log_joint = vae.likelihood(GRID[:, None]).log_prob(X) + vae.prior().log_prob(GRID)[:, None]
    return float(np.mean(special.logsumexp(log_joint, axis=0) + math.log(CELL)))


def draw(ax: Any, draws: np.ndarray, title: str) -> None:
    """The draws of q(z|x), coloured by x."""
    for i, points in enumerate(np.moveaxis(draws[:3000], 1, 0)):
        ax.scatter(*points.T, s=2, alpha=0.4, linewidths=0, color=f"C{i}")
        ax.scatter([], [], s=20, color=f"C{i}", label=f"x = {X[i].astype(int)}")
    ax.set(title=title, xlabel="$z_1$", ylabel="$z_2$", xlim=(-4, 4), ylim=(-4, 4))
    ax.set_aspect("equal")


def main() -> None:
    """Train both, print their ELBOs, and draw the posteriors."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4000, help="of the model, for each posterior")
    parser.add_argument("--updates", type=int, default=4, help="of the discriminator, for each")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"{'nats':14}{'log p(x)':>10}{'ELBO':>10}{'own estimate':>14}")
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.4))
    for ax, kind in zip(axes, ("diagonal", "adversarial"), strict=True):
        keras.utils.set_random_seed(options.seed)
        posterior: Any = posteriors.DiagonalNormal(2)
        objective: Any = objectives.ELBO(num_samples=16)
        if kind == "adversarial":
            generator = network(2, 64, 64)
            posterior = posteriors.Implicit(2, generator, context_size=32, noise_size=4)
            objective = objectives.AdversarialELBO(
                network(1, 128, 128),
                adam(1e-3, options.updates * options.steps),
                num_updates=options.updates,
                num_samples=16,
            )
        vae = model(posterior, options.seed)
        logs = train(vae, objective, options.steps)
        draws = vae.posterior(X).sample(20_000, seed=(options.seed, 1)).numpy()
        own = logs["elbo" if kind == "diagonal" else "adversarial_elbo"]
        found, evidence = elbo(vae, draws), log_evidence(vae)
        print(f"{kind:14}{evidence:10.3f}{found:10.3f}{own:14.3f}", flush=True)
        draw(ax, draws, f"{kind}: ELBO {found:.2f} nats")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    path = options.output / "adversarial.png"
    figure.savefig(path, dpi=150)
    print(f"the posteriors are in {path}")


if __name__ == "__main__":
    main()
