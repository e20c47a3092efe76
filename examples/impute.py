"""A variational autoencoder that fills in missing pixels of handwritten digits.

Half of the pixels of the training and of the test images are missing, each by the toss of a coin.
The VAE trains on what is left, and then fills in the test images. The table compares its error on
the missing pixels of the test images with that of other ways to fill them in.
"""

import argparse
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tf_keras as keras
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from tfpvae import VAE, datasets, likelihoods, networks, plotting, posteriors, priors

EPOCHS = 400
SIZE = 64
LATENT_SIZE = 16
HIDDEN = 512
SCALE = 0.2


def build(seed: int) -> VAE:
    """p(z) standard normal, q(z|x) diagonal normal, p(x|z) normal where x is observed."""
    posterior = posteriors.DiagonalNormal(LATENT_SIZE)
    likelihood = likelihoods.Masked(likelihoods.Normal(SIZE, scale=SCALE))
    encoder = [
        networks.FillMissing(mask=True),
        networks.mlp_encoder(2 * SIZE, posterior.params_size, HIDDEN),
        posterior,
    ]
    decoder = [networks.mlp_decoder(LATENT_SIZE, likelihood.params_size, HIDDEN), likelihood]
    prior = priors.StandardNormal(LATENT_SIZE)
    return VAE(prior, keras.Sequential(encoder), keras.Sequential(decoder), seed=seed)


def hide(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images with half of their pixels missing completely at random."""
    return np.where(rng.random(x.shape) < 0.5, np.float32(np.nan), x)


def by_scikit_learn(
    train: np.ndarray, test: np.ndarray, max_iter: int
) -> Iterator[tuple[str, np.ndarray]]:
    """The test images filled in by what scikit-learn has for incomplete tables."""
    for rounds in sorted({1, max_iter}):  # The first is its best here, ten are its default.
        imputer = IterativeImputer(max_iter=rounds, min_value=0.0, max_value=1.0, random_state=0)
        with warnings.catch_warnings():  # Its rounds do not come to rest.
            warnings.simplefilter("ignore", ConvergenceWarning)
            yield f"IterativeImputer(max_iter={rounds})", imputer.fit(train).transform(test)
    knn = KNNImputer(n_neighbors=20, weights="distance")
    yield "KNNImputer(n_neighbors=20)", knn.fit(train).transform(test)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-samples", type=int, default=10_000, help="draws of z for each image")
    parser.add_argument("--max-iter", type=int, default=10, help="rounds of IterativeImputer")
    parser.add_argument("--seed", type=int, default=0, help="of the gaps, weights and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    data = datasets.load("digits", scale=True, flatten=True)
    original, train, test = data.x_test, hide(data.x_train, rng), hide(data.x_test, rng)

    vae = build(options.seed)
    vae.compile(keras.optimizers.Adam(1e-3))
    vae.fit(train, epochs=options.epochs, batch_size=options.batch_size, verbose=0)
    imputed = vae.impute(test, options.num_samples, seed=options.seed)

    gaps = np.isnan(test)
    print("error on the missing pixels of the test images, root mean square, grey levels 0 to 1")
    mean = np.broadcast_to(np.nanmean(train, axis=0), test.shape)
    for name, filled in (
        ("VAE", imputed),
        ("column mean of the training images", mean),
        *by_scikit_learn(train, test, options.max_iter),
    ):
        error = np.sqrt(np.mean((filled - original)[gaps] ** 2))
        print(f"  {name:<36}{error:.3f}")

    shown = slice(0, 12)
    draws = vae.impute(test[shown], options.num_samples, num_draws=2, seed=options.seed)
    rows = {"imputed: mean": imputed[shown], "a draw": draws[0], "another draw": draws[1]}
    ax = plotting.imputations(original[shown], test[shown], rows)
    options.output.mkdir(parents=True, exist_ok=True)
    figure: Any = ax.figure
    figure.savefig(options.output / "imputed.png", dpi=100, bbox_inches="tight")
    vae.save(options.output / "model.keras")
    print(f"imputed.png and model.keras are in {options.output.resolve()}")


if __name__ == "__main__":
    main()
