"""A regression network of two layers whose weights are latent, trained as a plain Keras model.

It learns a sine from data with a gap, and draws the predictive distribution: the mean, bands that
hold 50 % and 90 % of it, and single functions of the posterior.
"""

import argparse
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import likelihoods, losses, weights

tfd = tfp.distributions

NOISE = 0.2
EDGE, GAP = 2.0, 0.5  # data are where GAP < |x| < EDGE


def load(num_data: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy values of sin(2 x), left and right of a gap."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1, 1], num_data) * rng.uniform(GAP, EDGE, num_data)
    y = np.sin(2 * x) + NOISE * rng.normal(size=num_data)
    return x[:, None].astype("float32"), y[:, None].astype("float32")


def build(num_data: int, hidden: int = 50) -> keras.Model:
    """The prior of every weight is N(0, 1); the loss is -ELBO / N, in nats an example."""
    return keras.Sequential(
        [
            keras.Input((1,)),
            weights.BayesianDense(hidden, "relu", num_data=num_data),
            weights.BayesianDense(1, num_data=num_data),
            likelihoods.Normal(1, scale=NOISE),
        ]
    )


def fit(x: np.ndarray, y: np.ndarray, steps: int, draws: int = 10) -> keras.Model:
    """Take so many steps on all data at once, each example with several draws of the weights."""
    model = build(len(x))
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, steps)),
        loss=losses.negative_log_prob,
        steps_per_execution=min(steps, 100),
    )
    batch = (np.repeat(x, draws, axis=0), np.repeat(y, draws, axis=0))
    data = tf.data.Dataset.from_tensors(batch).repeat()
    model.fit(data, steps_per_epoch=steps, verbose=0)
    return model


def predict(model: keras.Model, x: np.ndarray, draws: int = 2000) -> np.ndarray:
    """Draws of y `[len(x), draws]` from the predictive distribution at each x."""
    y = model(np.repeat(x, draws, axis=0)).sample()
    return np.reshape(y, (len(x), draws))


def functions(model: keras.Model, x: np.ndarray, draws: int) -> np.ndarray:
    """The mean of y `[draws, len(x)]` for networks with weights drawn from the posterior."""
    networks = (weights.at_draw(model) for _ in range(draws))
    return np.stack([network(x).mean().numpy()[:, 0] for network in networks])


def units_in_use(model: keras.Model) -> np.ndarray:
    """Which hidden units have an outgoing weight that is more than a nat away from its prior."""
    outgoing = model.layers[1].posterior().distribution
    kl = tfd.kl_divergence(outgoing, tfd.Normal(0.0, 1.0)).numpy()
    return kl[:-1, 0] > 1.0  # The last row is the bias.


def picture(x: Any, y: Any, grid: Any, predictive: np.ndarray, drawn: np.ndarray) -> Any:
    """Data, bands and functions as a figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    ax = figure.add_subplot(xlabel="x", ylabel="y")
    for low, high, shade in ((5, 95, 0.18), (25, 75, 0.35)):
        edges = np.percentile(predictive, [low, high], axis=1)
        label = f"{high - low} % of the predictive"
        ax.fill_between(grid[:, 0], *edges, color="#0072B2", alpha=shade, linewidth=0, label=label)
    ax.plot(grid[:, 0], drawn.T, color="0.25", linewidth=0.6, alpha=0.7)
    ax.lines[0].set_label("functions drawn from q")
    ax.plot(grid[:, 0], predictive.mean(axis=1), color="#0072B2", linewidth=2, label="mean")
    ax.plot(x, y, "o", color="#D55E00", markersize=4, markeredgewidth=0, label="data")
    ax.set(xlim=(grid.min(), grid.max()), ylim=(-5, 5))
    ax.grid(alpha=0.3)
    ax.legend(loc="upper right", framealpha=0.9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4000, help="of the optimizer")
    parser.add_argument("--num-data", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the data, weights and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    x, y = load(options.num_data, options.seed)
    model = fit(x, y, options.steps)
    grid = np.linspace(-4, 4, 161, dtype="float32")[:, None]
    predictive = predict(model, grid)
    stddev, distance = predictive.std(axis=1), np.abs(grid[:, 0])
    where = {
        "at the data": (distance > GAP) & (distance < EDGE),
        "in the gap": distance < GAP,
        "outside, 3 < |x| < 4": distance > 3,
    }
    for name, chosen in where.items():
        print(f"predictive sd {name}: {stddev[chosen].mean():.3f}")
    used = units_in_use(model)
    print(f"hidden units in use: {used.sum()} of {len(used)}")
    options.output.mkdir(parents=True, exist_ok=True)
    figure = picture(x, y, grid, predictive, functions(model, grid, draws=12))
    figure.savefig(options.output / "bayesian_network.png", dpi=100)
    model.save(options.output / "bayesian_network.keras")
    print(f"bayesian_network.png and bayesian_network.keras are in {options.output.resolve()}")


if __name__ == "__main__":
    main()
