"""Learning to read digits from a few labelled images and many without labels: M2 and M1+M2.

M2 is a variational autoencoder of the image and its class, and most classes are missing. M1+M2 is
M2 on the latent variable of another autoencoder, M1, trained on the images alone. The test error is
printed beside that of classifiers that have nothing but the labelled images: logistic regression on
the pixels, and the network of M2's classifier. One picture follows the test error over the epochs,
one writes test images anew as digits of the other classes.
On MNIST: python examples/semi_supervised.py --dataset mnist --data PATH --model m1m2
"""

import argparse
import math
import pathlib
import time
import warnings
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tf_keras as keras
from sklearn.linear_model import LogisticRegression

from tfpvae import (
    VAE,
    SemiSupervisedVAE,
    datasets,
    likelihoods,
    networks,
    objectives,
    plotting,
    posteriors,
    priors,
    schedules,
)
from tfpvae.semi_supervised import FrozenEncoder

CLASSES = 10


class Settings(NamedTuple):
    """Sizes of the networks, and how they are trained."""

    latent: int
    hidden: int  # of M2
    hidden_m1: tuple[int, ...]
    batch_size: int
    epochs: int  # of M2
    epochs_m1: int
    labelled: int
    rate: float = 1e-3  # of Adam for M2, which falls along a cosine
    weight: float = 1.0  # of the classification
    share: float = 0.1  # of the labelled rows in an epoch
    kl_weight_m1: float | None = None  # None: a warm-up to 1
    full: bool = False  # Whether M2 has a full covariance of each class.


SETTINGS = {
    ("digits", "m2"): Settings(10, 128, (), 50, 200, 0, 30, 3e-3, 5.0),
    ("digits", "m1m2"): Settings(10, 128, (128, 128), 50, 100, 100, 30, 3e-3, 5.0, 0.1, 0.05),
    ("mnist", "m2"): Settings(50, 500, (), 100, 60, 0, 100, 3e-3),
    ("mnist", "m1m2"): Settings(24, 500, (600, 600), 200, 20, 40, 100, 3e-3, 0.1, full=True),
}


def mlp(*layers: Any, sizes: tuple[int, ...]) -> keras.Sequential:
    """Layers, hidden ones of these sizes between the first and the block at the end."""
    *first, block = layers
    hidden = [keras.layers.Dense(size, "softplus") for size in sizes]
    return keras.Sequential([*first, *hidden, keras.layers.Dense(block.params_size), block])


def build_m1(data_size: int, settings: Settings, seed: int) -> VAE:
    """The autoencoder of the images."""
    return VAE(
        priors.StandardNormal(settings.latent),
        mlp(posteriors.DiagonalNormal(settings.latent), sizes=settings.hidden_m1),
        mlp(likelihoods.Bernoulli(data_size), sizes=settings.hidden_m1),
        seed=seed,
    )


def gaussians(size: int) -> keras.Sequential:
    """M2's decoder for draws of M1: a normal with a mean and a full covariance of each class.

    M1 is trained until its draws, taken together, are close to N(0, I). What tells classes apart is
    then how the coordinates go together. All classes begin alike, with weights near 0, and labels
    and data pull them apart; from a random start they would keep what chance gave them.
    """
    likelihood = likelihoods.Likelihood("MultivariateNormalTriL", size)
    near_zero = keras.initializers.RandomNormal(stddev=0.01)
    last = keras.layers.Dense(likelihood.params_size, kernel_initializer=near_zero)
    return keras.Sequential([networks.Join(), last, likelihood])


def build(data_size: int, settings: Settings, seed: int, m1: VAE | None = None) -> Any:
    """M2 of the images, or with M1 of its latent variable."""
    hidden = (settings.hidden,)
    likelihood = likelihoods.Normal(settings.latent) if m1 else likelihoods.Bernoulli(data_size)
    decoder = mlp(networks.Join(), likelihood, sizes=hidden)
    if settings.full:
        decoder = gaussians(settings.latent)
    return SemiSupervisedVAE(
        priors.StandardNormal(settings.latent),
        mlp(posteriors.OneHotCategorical(CLASSES), sizes=hidden),
        mlp(networks.Join(), posteriors.DiagonalNormal(settings.latent), sizes=hidden),
        decoder,
        CLASSES,
        classification_weight=settings.weight,
        preprocessing=FrozenEncoder(m1.encoder) if m1 else None,
        seed=seed,
    )


def few_labels(y: np.ndarray, num: int, seed: int) -> np.ndarray:
    """The labels of `num` examples, as many of each class, and -1 for the others."""
    rng = np.random.default_rng(seed)
    known = [rng.choice(np.flatnonzero(y == k), num // CLASSES, replace=False) for k in range(10)]
    labels = np.full(len(y), -1)
    labels[np.ravel(known)] = y[np.ravel(known)]
    return labels


def adam(rate: float, num_rows: float, settings: Settings, epochs: int) -> Any:
    """Adam, whose rate falls to nothing along a cosine."""
    steps = epochs * math.ceil(num_rows / settings.batch_size)
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))


def train(
    data: datasets.Dataset,
    labels: np.ndarray,
    settings: Settings,
    seed: int,
    stacked: bool,
    **fit: Any,
) -> tuple[Any, VAE | None, dict[str, Any]]:
    """M2 and its history, if stacked on M1."""
    size, num = data.x_train.shape[1], len(data.x_train)
    keras.utils.set_random_seed(seed)
    m1 = None
    if stacked:
        m1 = build_m1(size, settings, seed)
        warm_up = max(1, settings.epochs_m1 * (num // settings.batch_size) // 2)
        objective = objectives.ELBO(settings.kl_weight_m1 or schedules.Linear(warm_up))
        m1.compile(adam(1e-3, num, settings, settings.epochs_m1), objective=objective)
        with warnings.catch_warnings():  # The weight may be meant to stay below 1.
            warnings.filterwarnings("ignore", "fit ended with kl_weight")
            m1.fit(data.x_train, epochs=settings.epochs_m1, batch_size=settings.batch_size, **fit)
    model = build(size, settings, seed, m1)
    model.compile(adam(settings.rate, num / (1 - settings.share), settings, settings.epochs))
    history = model.fit(
        data.x_train,
        labels,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        labelled_share=settings.share,
        validation_data=(data.x_test, data.y_test),
        **fit,
    ).history
    return model, m1, history


def error(labels: Any, y: np.ndarray) -> float:
    """The share of labels that are wrong, in percent."""
    return 100 * float(np.mean(np.asarray(labels) != y))


def supervised(
    data: datasets.Dataset, labels: np.ndarray, settings: Settings, seed: int
) -> dict[str, float]:
    """The test errors of classifiers of the labelled images."""
    known = labels >= 0
    x, y = data.x_train[known], labels[known]
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [keras.layers.Dense(settings.hidden, "softplus"), keras.layers.Dense(CLASSES, "softmax")]
    )
    network.compile(keras.optimizers.Adam(settings.rate), "sparse_categorical_crossentropy")
    network.fit(x, y, epochs=300, batch_size=len(x), verbose=0)
    regression = LogisticRegression(max_iter=1000).fit(x, y)
    return {
        "logistic regression": error(regression.predict(data.x_test), data.y_test),
        "its network alone": error(network.predict(data.x_test, verbose=0).argmax(1), data.y_test),
    }


def analogies(model: Any, m1: VAE | None, data: datasets.Dataset) -> dict[str, list[np.ndarray]]:
    """Test images, and what the model makes of their z in each class."""
    first = [int(np.argmax(data.y_test == k)) for k in range(CLASSES)]
    x = data.x_test[first]
    z = model.posterior(x).mean()
    written = []
    for k in range(CLASSES):
        mean = model.likelihood(z, np.full(len(x), k)).mean()
        written.append((m1.likelihood(mean).mean() if m1 else mean).numpy())
    return {str(k): [x[k], *(row[k] for row in written)] for k in range(CLASSES)}


def curves(history: dict[str, Any], alone: dict[str, float]) -> Any:
    """The test error over the epochs, and those of the classifiers as lines."""
    figure, ax = plt.subplots(figsize=(5, 3.2))
    found = 100 * (1 - np.array(history["val_accuracy"]))
    ax.plot(1 + np.arange(len(found)), found, label="semi-supervised")
    for (name, value), style in zip(alone.items(), ("--", ":"), strict=False):
        ax.axhline(value, color="0.4", linestyle=style, label=name)
    ax.set(xlabel="epoch", ylabel="test error, %", ylim=(0, None))
    ax.legend(frameon=False)
    figure.tight_layout()
    return figure


def main() -> None:
    """Train, print the errors and draw the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--data", help="an mnist.npz file or the folder that holds it")
    parser.add_argument("--model", choices=("m2", "m1m2"), default="m2")
    parser.add_argument("--epochs", type=int, help="of M2")
    parser.add_argument("--epochs-m1", type=int, help="of M1")
    parser.add_argument("--labelled", type=int, help="how many labels, as many of each class")
    parser.add_argument("--seed", type=int, default=0, help="of the labels, weights and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    chosen = {name: value for name, value in vars(options).items() if name in Settings._fields}
    settings = SETTINGS[options.dataset, options.model]._replace(
        **{name: value for name, value in chosen.items() if value is not None}
    )
    data = datasets.load(options.dataset, options.data, scale=True, flatten=True)
    labels = few_labels(data.y_train, settings.labelled, options.seed)
    start = time.monotonic()
    model, m1, history = train(data, labels, settings, options.seed, options.model == "m1m2")
    minutes = (time.monotonic() - start) / 60
    print(
        f"\ntest error of {settings.labelled} labels of {len(labels)} images, seed {options.seed}"
    )
    errors = supervised(data, labels, settings, options.seed)
    name = {"m2": "M2", "m1m2": "M1+M2"}[options.model]
    errors[f"{name}, {settings.epochs} epochs"] = error(
        model.predict_label(data.x_test), data.y_test
    )
    for title, value in errors.items():
        print(f"{title:32}{value:8.2f} %")
    print(f"{minutes:.1f} minutes", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    figure: Any = curves(history, errors)
    figure.savefig(options.output / "semi_supervised_errors.png", dpi=130)
    figure = plotting.image_rows(analogies(model, m1, data)).figure
    figure.savefig(options.output / "semi_supervised_analogies.png", dpi=70, bbox_inches="tight")
    print(f"the pictures are in {options.output.resolve()}")


if __name__ == "__main__":
    main()
