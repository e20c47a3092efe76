"""The latent space of a variational autoencoder of handwritten digits, and priors that fit it.

A VAE with a standard normal prior is trained. Then densities are fit to its codes, which need not
fill the prior, and the codes are explored: draws from the prior and from the fitted densities,
paths between two digits, and one latent unit after the other. Models with learned priors stand
beside it. Three pictures go to the output folder.
"""

import argparse
import pathlib
from typing import Any

import numpy as np
import tf_keras as keras

from tfpvae import VAE, datasets, latent_space, likelihoods, networks, plotting, posteriors, priors

LATENT_SIZE = 8
SIZE = 64
SCALE = 0.2
NUM_COMPONENTS = 20


def build(prior: Any, seed: int) -> VAE:
    """p(z) as given, q(z|x) diagonal normal, p(x|z) normal."""
    posterior = posteriors.DiagonalNormal(LATENT_SIZE)
    likelihood = likelihoods.Normal(SIZE, scale=SCALE)
    encoder = networks.mlp_encoder(SIZE, posterior.params_size, 256)
    decoder = networks.mlp_decoder(LATENT_SIZE, likelihood.params_size, 256)
    return VAE(
        prior,
        keras.Sequential([encoder, posterior]),
        keras.Sequential([decoder, likelihood]),
        seed=seed,
    )


def train(prior: Any, x: Any, options: argparse.Namespace) -> VAE:
    """The model with this prior, trained."""
    keras.utils.set_random_seed(options.seed)
    vae = build(prior, options.seed)
    vae.compile(keras.optimizers.Adam(1e-3))
    vae.fit(x, epochs=options.epochs, batch_size=64, verbose=0)
    return vae


def score(title: str, vae: VAE, x: Any, options: argparse.Namespace) -> None:
    """Print what the model makes of images that it was not trained on."""
    elbo = vae.elbo(x, options.num_samples, seed=0, verbose=0).mean()
    evidence = vae.log_marginal_likelihood(x, options.num_samples, seed=0, verbose=0)
    print(f"{title:44s}{elbo:10.2f}{evidence.mean:10.2f}", flush=True)


def pictures(vae: VAE, fitted: dict[str, Any], data: Any, folder: pathlib.Path) -> None:
    """Draws, paths and traversals."""

    def decoded(z: Any) -> np.ndarray:
        return np.clip(vae.likelihood(z).mean(), 0.0, 1.0)  # A normal mean may be below black.

    def draws(prior: Any) -> np.ndarray:
        return decoded(prior().sample(12, seed=[0, 1]))

    rows = {"test images": data.x_test[:12], "prior": draws(vae.prior)}
    rows |= {title: draws(prior) for title, prior in fitted.items()}

    pairs = [(0, 1), (2, 3), (4, 5)]
    codes = vae.posterior(data.x_test[:6]).mean().numpy()
    first, last = ([codes[pair[end]] for pair in pairs] for end in (0, 1))
    between = {
        f"{data.y_test[pair[0]]} to {data.y_test[pair[1]]}, {path}": decoded(z)
        for path in ("line", "sphere")
        for pair, z in zip(
            pairs, latent_space.interpolate(first, last, 12, path).astype("float32"), strict=True
        )
    }
    moved = latent_space.traverse(vae, codes[0], num=12)
    axes = {
        "samples": plotting.image_rows(rows),
        "interpolations": plotting.image_rows(dict(sorted(between.items()))),
        "traversals": plotting.traversals(
            np.clip(moved.means, 0.0, 1.0), moved.values, moved.units
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, ax in axes.items():
        figure: Any = ax.figure
        figure.savefig(folder / f"latent_space_{name}.png", dpi=100, bbox_inches="tight")
    print(f"\nthe pictures are in {folder.resolve()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--num-samples", type=int, default=1000, help="draws of z for each image")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, batches and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    try:
        data = datasets.load("digits", scale=True, flatten=True)
    except ImportError as error:
        raise SystemExit(str(error)) from None
    x = data.x_train

    print(f"{'nats, mean over the test images':44s}{'ELBO':>10s}{'log p(x)':>10s}")
    vae = train(priors.StandardNormal(LATENT_SIZE), x, options)
    score("standard normal prior", vae, data.x_test, options)
    fitted = {}
    for density in ("mixture", "flow"):
        found = latent_space.fit_aggregate_posterior(
            vae,
            x,
            density,
            num_components=10,
            num_draws=10,
            epochs=max(1, options.epochs // 5),
            seed=options.seed,
        )
        fitted[f"fitted {density}"] = found
        model = VAE(found, vae.encoder, vae.decoder, seed=options.seed)
        score(f"  replaced by a {density} fitted to its codes", model, data.x_test, options)
    learned = {
        "mixture of normals": priors.NormalMixture(LATENT_SIZE, NUM_COMPONENTS, seed=options.seed),
        "VampPrior": priors.VampPrior(LATENT_SIZE, pseudo_inputs=x[:NUM_COMPONENTS]),
    }
    for title, prior in learned.items():
        score(f"learned {title}", train(prior, x, options), data.x_test, options)
    pictures(vae, fitted, data, options.output)


if __name__ == "__main__":
    main()
