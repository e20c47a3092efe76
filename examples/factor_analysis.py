"""Factor analysis and probabilistic PCA of handwritten digits, beside scikit-learn's.

    z ~ N(0, I),   x = W z + b + noise

The noise is one for each pixel in factor analysis and one for all in probabilistic PCA. Both are
variational autoencoders whose encoder is exact, so training them is maximum likelihood. Prints
log p(x) of training and test images, and draws the loadings, the columns of W, as images. A random
number within each of the 17 grey levels makes pixels real numbers.
"""

import argparse
import pathlib
from typing import Any

import numpy as np
import tf_keras as keras
from scipy import linalg

from tfpvae import VAE, datasets, family, objectives, plotting


def load(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images `[N, 64]`, between 0 and 1."""
    try:
        data = datasets.load("digits", flatten=True)
    except ImportError as error:
        raise SystemExit(str(error)) from None
    rng = np.random.default_rng(seed)
    train, test = ((x + rng.random(x.shape)) / 17 for x in (data.x_train, data.x_test))
    return train, test


def fit(vae: VAE, x: np.ndarray, epochs: int, batch_size: int) -> None:
    """Maximum likelihood: the gradient has no noise of draws where the posterior is exact."""
    steps = epochs * -(-len(x) // batch_size)
    rate = keras.optimizers.schedules.CosineDecay(0.03, steps)
    objective = objectives.ELBO(estimator="sticking_the_landing")
    vae.compile(keras.optimizers.Adam(rate), objective=objective)
    vae.fit(x, epochs=epochs, batch_size=batch_size, verbose=0)


def loadings(vae: VAE, size: int) -> np.ndarray:
    """The columns of W, as rows."""
    images = vae.likelihood(np.eye(size)).mean() - vae.likelihood(np.zeros((1, size))).mean()
    return np.asarray(images)


def theirs(model: Any) -> np.ndarray:
    """The same of scikit-learn's models."""
    if hasattr(model, "explained_variance_"):  # PCA: W = U (Lambda - sigma^2 I)^(1/2).
        scale = np.sqrt(model.explained_variance_ - model.noise_variance_)
        return scale[:, None] * model.components_
    return model.components_


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--latent-size", type=int, default=10, help="number of factors")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the weights, batches and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    train, test = load(options.seed)
    from sklearn.decomposition import PCA, FactorAnalysis

    size = options.latent_size
    pairs = {
        "factor_analysis": (family.factor_analysis, FactorAnalysis(size, svd_method="lapack")),
        "probabilistic_pca": (family.probabilistic_pca, PCA(size)),
    }
    rows: dict[str, np.ndarray] = {}
    print("log p(x), nats an image, mean            train     test")
    for name, (make, reference) in pairs.items():
        keras.utils.set_random_seed(options.seed)
        vae = make(train.shape[1], size, seed=options.seed)
        fit(vae, train, options.epochs, options.batch_size)
        reference.fit(train)
        title = f"{type(reference).__name__} of scikit-learn"
        ours = [vae.log_marginal_likelihood(x, 100, seed=0, verbose=0).mean for x in (train, test)]
        elbo = [vae.elbo(x, 100, seed=0, verbose=0).mean() for x in (train, test)]
        for row, values in (
            (f"{name}, ELBO", elbo),
            (name, ours),
            (title, [reference.score(x) for x in (train, test)]),
        ):
            print(f"{row:36s} {values[0]:9.3f} {values[1]:8.3f}", flush=True)
        wanted, found = theirs(reference), loadings(vae, size)
        rotation, _ = linalg.orthogonal_procrustes(found.T, wanted.T)  # z is known up to one.
        rows |= {name: rotation.T @ found, title: wanted}
        difference = np.linalg.norm(rows[name] - wanted) / np.linalg.norm(wanted)
        print(f"  the loadings differ by {difference:.1%}, once rotated")

    axes = plotting.image_rows(rows)
    axes.set_title("loadings")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "factor_analysis.png"
    figure: Any = axes.figure
    figure.savefig(path, dpi=100, bbox_inches="tight")
    print(f"the figure is {path.resolve()}")


if __name__ == "__main__":
    main()
