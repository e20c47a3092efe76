"""Search the size of z, the networks and the learning rate of a VAE with KerasTuner.

KerasTuner builds on the package `keras`, which is Keras 3 wherever TensorFlow is; it refuses models
of tf_keras in `HyperModel.build`. Its `run_trial` takes any program that returns a number, and so
this one: choices, trials, results on disk and resuming are KerasTuner's own.
"""

import argparse
import pathlib
from typing import Any

import keras_tuner
import numpy as np
import tf_keras as keras

from tfpvae import VAE, datasets, likelihoods, objectives, posteriors, priors, schedules


def build(choice: Any, data_size: int, steps: int) -> VAE:
    """The model of a trial: `choice` is KerasTuner's `HyperParameters`."""
    latent_size = choice.Choice("latent_size", [2, 4, 8, 16])
    hidden = choice.Choice("hidden", [64, 128, 256])
    posterior, likelihood = posteriors.DiagonalNormal(latent_size), likelihoods.Bernoulli(data_size)
    networks = [
        keras.Sequential(
            [keras.layers.Dense(hidden, "relu"), keras.layers.Dense(block.params_size), block]
        )
        for block in (posterior, likelihood)
    ]
    vae = VAE(priors.StandardNormal(latent_size), *networks, seed=0)
    rate = choice.Float("learning_rate", 3e-4, 1e-2, sampling="log")
    warm_up = schedules.Linear(max(1, steps // 4))
    vae.compile(keras.optimizers.Adam(rate), objective=objectives.ELBO(kl_weight=warm_up))
    return vae


class Search(keras_tuner.RandomSearch):
    """Random search for the model with the largest ELBO of held-out data."""

    def run_trial(
        self, trial: Any, x: np.ndarray, held_out: np.ndarray, epochs: int, verbose: Any
    ) -> Any:
        """Train the model of a trial; KerasTuner keeps what this returns."""
        keras.utils.set_random_seed(0)
        vae = build(trial.hyperparameters, x.shape[1], epochs * -(-len(x) // 100))
        vae.fit(x, epochs=epochs, batch_size=100, verbose=verbose)
        return {"val_elbo": float(vae.elbo(held_out, num_samples=20, seed=0, verbose=0).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    data = datasets.load("digits", scale=True, flatten=True)
    # The test images stay aside, or the best trial would look better than it is.
    x, held_out = data.x_train[:-300], data.x_train[-300:]
    search = Search(
        objective=keras_tuner.Objective("val_elbo", "max"),
        max_trials=options.trials,
        seed=0,
        directory=options.output,
        project_name="tuner",
    )
    search.search(x, held_out, options.epochs, verbose=0)
    print("latent_size  hidden  learning_rate  held-out ELBO, nats")
    for trial in search.oracle.get_best_trials(options.trials):
        found = trial.hyperparameters.values
        print(
            f"{found['latent_size']:11d}  {found['hidden']:6d}  {found['learning_rate']:13.5f}"
            f"  {trial.score:19.2f}"
        )
    best = search.get_best_hyperparameters()[0]
    keras.utils.set_random_seed(0)
    vae = build(best, x.shape[1], options.epochs * -(-len(data.x_train) // 100))
    vae.fit(data.x_train, epochs=options.epochs, batch_size=100, verbose=0)
    elbo = vae.elbo(data.x_test, num_samples=20, seed=0, verbose=0).mean()
    vae.save(options.output / "best.keras")
    print(f"the best one, trained on all training images: ELBO of the test images {elbo:.2f} nats")


if __name__ == "__main__":
    main()
