"""Bayesian logistic regression as a plain Keras model of blocks, on breast cancer data.

    p(w) = N(0, 1),   q(w) = N(m, L L'),   p(y | w) = Bernoulli(sigmoid(x w))

The coefficients are one latent variable for all examples, so weights that depend on no input take
the place of an encoder. The columns are standardized, and the first one is the intercept.
"""

import argparse
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import KLDivergenceRegularizer, likelihoods, losses, posteriors, priors, weights

NUM_SAMPLES = 16  # draws of the coefficients in each step


def build(num_data: int, size: int) -> keras.Model:
    """The loss of this model is -ELBO / N, in nats an example."""
    kl = KLDivergenceRegularizer(priors.StandardNormal(size), weight=1 / num_data)
    q = posteriors.FullRankNormal(
        size, num_samples=NUM_SAMPLES, activity_regularizer=kl, name="coefficients"
    )
    x = keras.Input((size,))
    w = q(weights.Parameters(q.params_size, name="parameters")(x))  # draws [S, 1, size]
    logits = tf.matmul(x, w, transpose_b=True)  # [S, B, 1]
    return keras.Model(x, likelihoods.Bernoulli(1)(logits))


def fit(x: np.ndarray, y: np.ndarray, steps: int, verbose: Any = 0) -> keras.Model:
    """Take so many steps on all data at once."""
    model = build(*x.shape)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, steps)),
        loss=losses.negative_log_prob,
        steps_per_execution=min(steps, 100),
    )
    batch = (x.astype("float32"), y.reshape(-1, 1).astype("float32"))
    data = tf.data.Dataset.from_tensors(batch).repeat()
    model.fit(data, steps_per_epoch=steps, verbose=verbose)
    return model


def posterior(x: np.ndarray, y: np.ndarray, steps: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation of each coefficient.

    Args:
      x: columns `[N, D]`, taken as they are: an intercept is a column of ones.
      y: labels 0 or 1, `[N]`.
      steps: of the optimizer.

    Returns:
      Two arrays `[D]`.
    """
    model = fit(x, y, steps)
    q = model.get_layer("coefficients")(model.get_layer("parameters")(x))
    return q.mean().numpy()[0], q.stddev().numpy()[0]


def load() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """An intercept and the 30 standardized columns, the labels (1 is benign), the names."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise SystemExit(
            "this example needs the data that come with scikit-learn: pip install 'tfpvae[data]'"
        ) from None
    data = load_breast_cancer()
    x = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    names = ["intercept", *map(str, data.feature_names)]
    return np.hstack([np.ones((len(x), 1)), x]), data.target, names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000, help="of the optimizer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    x, y, names = load()
    mean, stddev = posterior(x, y, options.steps)
    print(f"{'coefficient':25s} {'mean':>7s} {'sd':>7s}")
    for row in zip(names, mean, stddev, strict=True):
        print("{:25s} {:7.2f} {:7.2f}".format(*row))


if __name__ == "__main__":
    main()
