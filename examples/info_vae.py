"""The aggregate posterior of handwritten digits under the KL, the MMD and the total correlation.

    python examples/info_vae.py

Five models with the same networks and two latent variables; what differs is what keeps q(z) close
to the prior. It prints the ELBO of the test images and, of the training images, the KL in its three
parts and the MMD; then how far estimates from batches are from that of all data; and draws the
codes on the prior.
"""

import argparse
import pathlib
import warnings
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tf_keras as keras

from tfpvae import (
    VAE,
    datasets,
    diagnostics,
    likelihoods,
    objectives,
    plotting,
    posteriors,
    priors,
)
from tfpvae.regularizers import MaximumMeanDiscrepancy, TotalCorrelation

PRIOR = priors.StandardNormal(2)

#: the weight of the KL, and the divergence of the aggregate posterior
MODELS: dict[str, Any] = {
    "autoencoder": (0.0, None),
    "VAE": (1.0, None),
    "WAE, MMD": (0.0, MaximumMeanDiscrepancy(PRIOR, weight=50.0)),
    "InfoVAE": (0.1, MaximumMeanDiscrepancy(PRIOR, weight=100.0)),
    "beta-TCVAE": (1.0, TotalCorrelation(weight=5.0)),
}


def model(regularizer: Any, seed: int) -> VAE:
    """A dense VAE whose posterior has this regularizer."""
    encoder = keras.Sequential(
        [
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(posteriors.DiagonalNormal.params_size(2)),
            posteriors.DiagonalNormal(2, activity_regularizer=regularizer),
        ]
    )
    decoder = keras.Sequential(
        [
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(likelihoods.Bernoulli.params_size(64)),
            likelihoods.Bernoulli(64),
        ]
    )
    return VAE(priors.StandardNormal(2), encoder, decoder, seed=seed)


def main() -> None:
    """Print the tables and draw the codes."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the weights, batches and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    data = datasets.load("digits", scale=True, flatten=True)
    warnings.filterwarnings("ignore", "fit ended with kl_weight")  # It is meant so.
    prior_z = PRIOR().sample(20_000, seed=[0, 1]).numpy()
    figure, axes = plt.subplots(1, len(MODELS), figsize=(3.4 * len(MODELS), 3.4))
    names = ("ELBO", "KL", "= mutual", "+ total", "+ units", "MMD^2")
    print(f"{'':16}" + "".join(f"{name:>12}" for name in names))
    batches: dict[str, list[float]] = {}
    for ax, (name, (kl_weight, regularizer)) in zip(axes, MODELS.items(), strict=True):
        keras.utils.set_random_seed(options.seed)
        vae = model(regularizer, options.seed)
        vae.compile(keras.optimizers.Adam(1e-3), objective=objectives.ELBO(kl_weight=kl_weight))
        vae.fit(data.x_train, epochs=options.epochs, batch_size=options.batch_size, verbose=0)
        q = vae.posterior(data.x_train)
        use = diagnostics.latents(vae, data.x_train, seed=1, verbose=0)
        numbers = (
            float(vae.elbo(data.x_test, 100, seed=1, verbose=0).mean()),
            use.kl,
            use.mutual_information,
            use.total_correlation,
            use.aggregate_kl - (use.total_correlation or 0.0),
            float(MaximumMeanDiscrepancy(PRIOR).divergence(q)),
        )
        print(f"{name:16}" + "".join(f"{number:12.3f}" for number in numbers), flush=True)
        batches[name] = estimates(vae, data.x_train, options)
        z = q.sample(seed=[options.seed, 2]).numpy()[:600]  # More would hide the prior.
        plotting.aggregate_posterior(z, prior_z, data.y_train[:600], ax=ax)
        if ax is not axes[-1]:
            ax.get_legend().remove()
        ax.set_title(name)
    print()
    titles = ("all data", "weighted", "stratified")
    print(f"{'total correlation':18}" + "".join(f"{title:>12}" for title in titles))
    for name, values in batches.items():
        print(f"{name:18}" + "".join(f"{value:12.3f}" for value in values))
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "info_vae.png"
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"the codes are in {path}")


def estimates(vae: VAE, x: np.ndarray, options: argparse.Namespace) -> list[float]:
    """The total correlation of all data, and means of both estimates from 20 batches."""
    rng, num = np.random.default_rng(options.seed), len(x)
    found = [float(TotalCorrelation(num_samples=2).divergence(vae.posterior(x)))]
    rows = [rng.choice(num, options.batch_size, replace=False) for _ in range(20)]
    q = [vae.posterior(x[row]) for row in rows]
    for num_data in (None, num):
        divergence = TotalCorrelation(num_data=num_data, num_samples=5).divergence
        found.append(float(np.mean([divergence(each) for each in q])))
    return found


if __name__ == "__main__":
    main()
