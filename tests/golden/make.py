"""Writes small model files of this version, and what they have to give in every later one.

    python tests/golden/make.py

It goes into tests/golden/<version>/ and never overwrites what is there: a release is made once.
`tests/test_saving.py` loads the files of all versions.
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras

import tfpvae
from tfpvae import (
    VAE,
    BayesianRegression,
    HierarchicalVAE,
    likelihoods,
    objectives,
    posteriors,
    priors,
    schedules,
)

FOLDER = Path(__file__).parent
X = np.eye(4, dtype="float32")[[0, 1, 2, 3, 1, 2, 3, 0, 2, 3, 1, 0]]
Z = np.linspace(-1.0, 1.0, 12).reshape(6, 2).astype("float32")
Y = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0], "float32")


def dense(*sizes):
    return [keras.layers.Dense(size, "tanh" if size == 3 else None) for size in sizes]


def vae():
    """Three steps of Adam, with a weight of the KL that rises over ten."""
    encoder = keras.Sequential([*dense(3, 4), posteriors.DiagonalNormal(2)])
    decoder = keras.Sequential([*dense(3, 4), likelihoods.Bernoulli(4)])
    model = VAE(priors.Normal(2), encoder, decoder, seed=1)
    objective = objectives.ELBO(kl_weight=schedules.Linear(10, start=0.1))
    model.compile(keras.optimizers.Adam(0.01), objective=objective)
    model.fit(X, batch_size=4, epochs=1, shuffle=False, verbose=0)
    return model


def hierarchical():
    """Two layers of z, three steps of RMSprop."""
    model = HierarchicalVAE(
        priors.StandardNormal(1),
        [
            keras.Sequential([*dense(4), posteriors.DiagonalNormal(2)]),
            keras.Sequential([*dense(2), posteriors.DiagonalNormal(1)]),
        ],
        [
            keras.Sequential([*dense(4), likelihoods.Bernoulli(4)]),
            keras.Sequential([*dense(4), likelihoods.Normal(2)]),
        ],
        seed=2,
    )
    model.compile("rmsprop")
    model.fit(X, batch_size=4, epochs=1, shuffle=False, verbose=0)
    return model


def regression():
    """Logistic regression, forty steps."""
    model = BayesianRegression(likelihoods.Bernoulli(), seed=3)
    model.fit(X[:, :2], Y, steps=40, verbose=0)
    return model


MODELS = {"vae": vae, "hierarchical": hierarchical, "regression": regression}


def numbers(name, model):
    """Densities at fixed points: nothing here is drawn."""
    if name == "regression":
        q = model.coefficients
        values = [q.mean(), q.stddev(), q.log_prob(tf.zeros_like(q.mean()))]
    elif name == "hierarchical":
        z = np.concatenate([Z, Z[:, :1]], axis=1)
        values = [model.likelihood(z).log_prob(X[:6]), model.prior().log_prob(z)]
        values += [model.posterior(X[:6]).log_prob(z)]
    else:
        values = [model.likelihood(Z).log_prob(X[:6]), model.posterior(X[:6]).log_prob(Z)]
        values += [model.prior().log_prob(Z)]
    return [np.asarray(value, "float64").tolist() for value in values]


def step(name, model):
    """One more step of training, which the loss that it returns shows."""
    if name == "regression":
        return model.fit(X[:, :2], Y, steps=1, verbose=0).history["loss"][-1]
    history = model.fit(X[:4], batch_size=4, epochs=1, shuffle=False, verbose=0).history
    return history["loss"][-1]


def main():
    keras.utils.set_random_seed(0)
    folder = FOLDER / tfpvae.__version__
    folder.mkdir()  # FileExistsError: it has been made.
    expected = {}
    for name, make in MODELS.items():
        model = make()
        model.save(folder / f"{name}.keras")
        expected[name] = {"log_prob": numbers(name, model)}
        if name != "regression":
            expected[name]["iterations"] = int(model.optimizer.iterations)
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
