"""A conditional variational autoencoder of handwritten digits: the class is given, z is the rest.

It is trained beside a VAE of the same networks, which has to find the class out for itself, and the
held-out ELBOs of both are printed. One picture shows draws: the same z in each column, another
class in each row. A second one writes test images anew as digits of the other classes.
On MNIST: python examples/conditional_vae.py --dataset mnist --data PATH --epochs 5
"""

from typing import Any

import common
import numpy as np
import tf_keras as keras

from tfpvae import (
    VAE,
    ConditionalVAE,
    datasets,
    likelihoods,
    networks,
    plotting,
    posteriors,
    priors,
)

LATENT_SIZE = 16
CLASSES = np.arange(10)
NUM_TEST = 1000


def build(data_size: int, num_classes: int, seed: int) -> VAE:
    """p(x|z, y), q(z|x, y) and p(z); with num_classes = 0 p(x|z), q(z|x) and p(z)."""
    posterior = posteriors.DiagonalNormal(LATENT_SIZE)
    likelihood = likelihoods.Bernoulli(data_size)
    encoder = networks.mlp_encoder(data_size + num_classes, posterior.params_size)
    decoder = networks.mlp_decoder(LATENT_SIZE + num_classes, likelihood.params_size)
    prior, bits = priors.StandardNormal(LATENT_SIZE), networks.Binarize()
    ends = [encoder, posterior], [decoder, likelihood]
    if not num_classes:
        q, p = (keras.Sequential(end) for end in ends)
        return VAE(prior, q, p, seed=seed, preprocessing=bits)
    q, p = (keras.Sequential([networks.Join(), *end]) for end in ends)
    return ConditionalVAE(prior, q, p, num_classes, seed=seed, preprocessing=bits)


def score(title: str, vae: VAE, x: Any) -> None:
    """Print the ELBO and the log-likelihood of data."""
    elbo = vae.elbo(x, 100, seed=0, verbose=0).mean()
    evidence = vae.log_marginal_likelihood(x, 1000, seed=0, verbose=0)
    print(f"{title:44s}{elbo:10.2f}{evidence.mean:10.2f}", flush=True)


def accuracy(cvae: VAE, x: np.ndarray, y: np.ndarray) -> float:
    """The share of images whose class has the largest ELBO(x|y): Bayes' rule for even classes."""
    bounds = [cvae.elbo((x, np.full(len(x), k)), 10, seed=0, verbose=0) for k in CLASSES]
    return float(np.mean(np.argmax(bounds, axis=0) == y))


def pictures(cvae: Any, x: np.ndarray, y: np.ndarray, folder: Any) -> None:
    """Draws of all classes from the same z, and test images as digits of all classes."""
    z = cvae.prior().sample(12, seed=[0, 1])[:, None]  # [12, 1, D]: each with every class.
    drawn = cvae.likelihood(z, CLASSES).mean().numpy()
    first = [int(np.argmax(y == k)) for k in CLASSES]
    codes = cvae.posterior((x[first], y[first])).mean()[:, None]
    written = cvae.likelihood(codes, CLASSES).mean().numpy()
    found = {
        "conditional": {f"y = {k}": drawn[:, k] for k in CLASSES},
        "conditional_analogies": {str(k): [x[first[k]], *written[k]] for k in CLASSES},
    }
    for name, rows in found.items():
        figure: Any = plotting.image_rows(rows).figure
        figure.savefig(folder / f"{name}.png", dpi=100, bbox_inches="tight")
    print(f"the pictures are in {folder.resolve()}")


def main() -> None:
    """Train both models, print their scores and draw the pictures."""
    options = common.arguments(__doc__, epochs=100, batch_size=100)
    data = datasets.load(options.dataset, options.data, scale=True, flatten=True)
    rng = np.random.default_rng(options.seed)
    y_test = data.y_test[:NUM_TEST]
    bits = rng.binomial(1, data.x_test[:NUM_TEST]).astype("float32")
    models = []
    for num_classes in (0, len(CLASSES)):
        keras.utils.set_random_seed(options.seed)
        vae = build(data.x_train.shape[1], num_classes, options.seed)
        vae.compile(keras.optimizers.Adam(1e-3))
        y = data.y_train if num_classes else None
        vae.fit(data.x_train, y, epochs=options.epochs, batch_size=options.batch_size)
        models.append(vae)
    vae, cvae = models
    title = f"nats, mean over {len(bits)} test images"
    print(f"\n{title:44s}{'ELBO':>10s}{'log p':>10s}")
    score("VAE, log p(x)", vae, bits)
    score("ConditionalVAE, log p(x|y)", cvae, (bits, y_test))
    score("  of labels that are shuffled", cvae, (bits, rng.permutation(y_test)))
    print(f"\nclass with the largest ELBO(x|y) is right: {accuracy(cvae, bits, y_test):.1%}")
    options.output.mkdir(parents=True, exist_ok=True)
    pictures(cvae, bits, y_test, options.output)
    cvae.save(options.output / "model.keras")


if __name__ == "__main__":
    main()
