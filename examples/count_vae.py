"""One variational autoencoder of handwritten digits and five likelihoods: the swap is one line.

The pixels of scikit-learn's digits are whole numbers 0..16. A Bernoulli likelihood takes them as
numbers in [0, 1], a Normal as real numbers, a Binomial and a DiscretizedLogistic as what they are.
The table brings the evidence lower bounds to one scale, where that can be done.
"""

import argparse
import pathlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras
from matplotlib.figure import Figure
from scipy.special import log_ndtr

from tfpvae import VAE, datasets, likelihoods, plotting, posteriors, priors

SIZE, WHITE = 64, 16  # pixels of an image, and the highest grey level
LATENT_SIZE = 8
SHOWN = 8


class Choice(NamedTuple):
    """A likelihood block, the level of white that it wants, and what its log_prob is one of."""

    block: Any
    white: int
    scores: str


# The swap. White is 1 where pixels are taken as numbers in [0, 1], and 16 where they are counts.
LIKELIHOODS = {
    "Bernoulli": Choice(likelihoods.Bernoulli(SIZE), 1, "nothing"),
    "Normal, scale 0.15": Choice(likelihoods.Normal(SIZE, scale=0.15), 1, "density"),
    "Normal": Choice(likelihoods.Normal(SIZE), 1, "density"),
    "Binomial": Choice(likelihoods.Binomial(SIZE, total_count=WHITE), 16, "probability"),
    "DiscretizedLogistic": Choice(
        likelihoods.DiscretizedLogistic(SIZE, num_levels=WHITE + 1), 16, "probability"
    ),
}


def build(choice: Choice, seed: int) -> VAE:
    """All but the likelihood is the same; the encoder sees grey levels in [0, 1] in any case."""
    layers = keras.layers
    encoder = [
        layers.Rescaling(1 / choice.white),
        layers.Dense(256, "relu"),
        layers.Dense(posteriors.DiagonalNormal.params_size(LATENT_SIZE)),
        posteriors.DiagonalNormal(LATENT_SIZE),
    ]
    decoder = [
        layers.Dense(256, "relu"),
        layers.Dense(choice.block.params_size),
        choice.block,
    ]
    prior = priors.StandardNormal(LATENT_SIZE)
    return VAE(prior, keras.Sequential(encoder), keras.Sequential(decoder), seed=seed)


def by_width(elbo: float) -> float:
    """The ELBO of a density of x / 16 as one of the probability of grey levels x.

        P(x) = p(x / 16) / 16,   the density times the width of a level, for each pixel

    Good as long as the density hardly changes over that width.
    """
    return elbo - SIZE * np.log(WHITE)


def log_prob_of_levels(x: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The log of the normal density's integral over a level, from x - 1/2 to x + 1/2."""
    distance, half = np.abs(x - loc) / scale, 0.5 / scale
    # Both ends on the left side of the normal distribution, where the logarithms are exact.
    upper, lower = log_ndtr(half - distance), log_ndtr(-half - distance)
    return upper + np.log(-np.expm1(lower - upper))


def correction(vae: VAE, x: np.ndarray, num_samples: int, seed: int) -> float:
    """What `by_width` is short of: the mean of the true log P(x|z) less that of the rule."""
    z = vae.posterior(x / WHITE).sample(num_samples, seed=seed)
    p = vae.likelihood(tf.reshape(z, [-1, LATENT_SIZE]))
    normal = p.distribution
    loc, scale = (WHITE * np.asarray(a, np.float64) for a in (normal.loc, normal.scale))
    x = np.tile(x, [num_samples, 1])
    true = log_prob_of_levels(x, loc, scale).sum(axis=1).mean()
    return true - by_width(np.mean(p.log_prob(x / WHITE), dtype=np.float64))


def draw(means: dict[str, np.ndarray], draws: dict[str, np.ndarray]) -> Figure:
    """Reconstructions on the left, samples on the right, a row for each likelihood."""
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    plotting.image_rows(means, left).set_title("test images and the mean of p(x|z), z of the image")
    plotting.image_rows(draws, right).set_title("test images and draws of p(x|z), z of the prior")
    right.set_yticklabels([])
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--num-samples", type=int, default=100, help="draws of z for the ELBO")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, batches and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    try:
        data = datasets.load("digits", flatten=True)
    except ImportError as error:
        raise SystemExit(str(error)) from None
    train, test = data.x_train.astype("float32"), data.x_test.astype("float32")

    means, draws = {"data": test[:SHOWN] / WHITE}, {"data": test[-SHOWN:] / WHITE}
    print("ELBO of the test images, nats an image")
    print(f"{'':20} {'as scored':>10} {'by width':>10} {'of levels':>10} {'kl':>6}  log_prob of")
    for name, choice in LIKELIHOODS.items():
        keras.utils.set_random_seed(options.seed)
        scale = np.float32(choice.white / WHITE)
        vae = build(choice, options.seed)
        vae.compile(keras.optimizers.Adam(1e-3))
        vae.fit(train * scale, epochs=options.epochs, batch_size=options.batch_size, verbose=0)
        elbo = float(vae.elbo(test * scale, options.num_samples, seed=options.seed).mean())
        kl = vae.evaluate(test * scale, verbose=0, return_dict=True)["kl"]
        rule, true = "", f"{elbo:.1f}" if choice.scores == "probability" else "none"
        if choice.scores == "density":
            rule = f"{by_width(elbo):.1f}"
            short_of = correction(vae, test, options.num_samples, options.seed)
            true = f"{by_width(elbo) + short_of:.1f}"
        print(f"{name:20} {elbo:10.1f} {rule:>10} {true:>10} {kl:6.1f}  {choice.scores}")
        # A Normal knows no lowest and no highest level: what lies beyond is black or white.
        means[name] = np.clip(vae.reconstruct(test[:SHOWN] * scale, seed=0) / choice.white, 0, 1)
        draws[name] = np.clip(vae.sample(SHOWN, seed=0) / choice.white, 0, 1)

    options.output.mkdir(parents=True, exist_ok=True)
    draw(means, draws).savefig(options.output / "count_vae.png", dpi=100, bbox_inches="tight")
    print(f"count_vae.png is in {options.output.resolve()}")


if __name__ == "__main__":
    main()
