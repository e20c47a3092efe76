"""A variational autoencoder whose latent variables are two classes of ten, trained in every way.

The images are black and white, z are two one-hot vectors, and so there are a hundred codes: the
picture shows all that the model has to say, and log p(x) is a sum of a hundred terms, without an
error. The table compares the estimators of the gradient by what they come to on the test images.
On MNIST: python examples/categorical_vae.py --dataset mnist --data PATH
"""

import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import tf_keras as keras

from tfpvae import (
    VAE,
    datasets,
    likelihoods,
    networks,
    objectives,
    plotting,
    posteriors,
    priors,
    schedules,
)

CLASSES = 10
HIDDEN = 256
DRAWS = 8


def build(data_size: int, seed: int) -> VAE:
    """p(z) and q(z|x) categorical, p(x|z) Bernoulli."""
    posterior = posteriors.OneHotCategorical((2, CLASSES))
    likelihood = likelihoods.Bernoulli(data_size)
    encoder = networks.mlp_encoder(data_size, posterior.params_size, HIDDEN)
    decoder = networks.mlp_decoder(2 * CLASSES, likelihood.params_size, HIDDEN)
    return VAE(
        priors.OneHotCategorical((2, CLASSES), logits=0.0),
        keras.Sequential([encoder, posterior]),
        keras.Sequential([keras.layers.Flatten(), decoder, likelihood]),
        seed=seed,
    )


def ways_to_train(steps: int) -> dict[str, Callable[[], objectives.Objective]]:
    """The objectives by name; the temperature falls from 1 to 1/2 over half of the steps."""

    def relaxed(**kwargs: bool) -> objectives.ELBO:
        temperature = schedules.Exponential(1.0, 0.5, num_steps=max(1, steps // 2))
        return objectives.ELBO(estimator="relaxed", temperature=temperature, **kwargs)

    return {
        "relaxed": relaxed,
        "straight through": lambda: relaxed(straight_through=True),
        "relaxed, relaxed KL": lambda: objectives.ELBO(
            estimator="relaxed", temperature=0.67, prior_temperature=0.5
        ),
        f"score function, {DRAWS} draws": lambda: objectives.ELBO(
            estimator="score_function", num_samples=DRAWS
        ),
        f"VIMCO, {DRAWS} draws": lambda: objectives.IWAE(DRAWS, estimator="score_function"),
        "enumerated": lambda: objectives.ELBO(estimator="enumerated"),
    }


def codes() -> np.ndarray:
    """All values of z `[100, 2, 10]`, row by row of the picture."""
    one_hot = np.eye(CLASSES, dtype="float32")
    rows, columns = np.divmod(np.arange(CLASSES**2), CLASSES)
    return np.stack([one_hot[rows], one_hot[columns]], axis=1)


def main() -> None:
    options = common.arguments(__doc__, epochs=100, batch_size=64)
    data = datasets.load(options.dataset, options.data, scale=True, flatten=True)
    x_train, x_test = (np.round(x) for x in (data.x_train, data.x_test))
    steps = options.epochs * -(-len(x_train) // options.batch_size)
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"{'nats, mean over the test images':34s}{'ELBO':>9s}{'log p(x)':>10s}{'seconds':>9s}")
    for name, objective in ways_to_train(steps).items():
        keras.utils.set_random_seed(options.seed)
        vae = build(x_train.shape[1], options.seed)
        vae.compile("adam", objective=objective())
        start = time.perf_counter()
        vae.fit(x_train, epochs=options.epochs, batch_size=options.batch_size, verbose=0)
        seconds = time.perf_counter() - start
        if name == "relaxed":
            size = round(x_train.shape[1] ** 0.5)
            images = vae.likelihood(codes()).mean().numpy().reshape(-1, size, size)
            frame = [(0, 0), (0, 1), (0, 1)]
            ax = plotting.manifold(np.pad(images, frame, constant_values=0.4))
            ax.set_xlabel("second class")
            ax.set_ylabel("first class")
            figure: Any = ax.figure
            figure.savefig(options.output / "categorical_vae.png", dpi=100, bbox_inches="tight")
            vae.save(options.output / "model.keras")
        evidence = vae.log_marginal_likelihood(x_test, method="enumeration", verbose=0).mean
        vae.compile(objective=objectives.ELBO(estimator="enumerated"))  # The exact ELBO of each.
        elbo = -vae.evaluate(x_test, verbose=0)[0]
        print(f"{name:34s}{elbo:9.2f}{evidence:10.2f}{seconds:9.1f}", flush=True)
    print(f"the picture and the first model are in {options.output.resolve()}")


if __name__ == "__main__":
    main()
