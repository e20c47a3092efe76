"""The posterior of a simulator whose likelihood is not used, beside the true one.

    python examples/simulator.py

The simulator draws x from a normal distribution, and the model may only run it. Because its
likelihood is known after all, sums over a grid tell the true posterior of the mean and of the log
of the scale. It prints the moments of both, checks the discriminator and the fit, and draws the
posteriors, and the data beside draws of the posterior predictive distribution.
"""

import argparse
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tf_keras as keras
from scipy import stats

from tfpvae import SimulatorModel, posteriors, priors

NAMES = ("mean", "log scale")
PRIOR_SCALE = 2.0


@keras.saving.register_keras_serializable("examples")
def simulator(parameters: Any, seed: Any) -> Any:
    """One x for each row of parameters."""
    loc, log_scale = tf.split(parameters, 2, axis=1)
    return loc + tf.exp(log_scale) * tf.random.stateless_normal(tf.shape(loc), seed)


def exact(x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The axes of a grid, and the probabilities of its points under the true posterior."""
    axes = [np.linspace(0.0, 3.0, 301), np.linspace(-1.5, 1.0, 251)]
    loc, log_scale = np.meshgrid(*axes, indexing="ij")
    log_p = stats.norm(0.0, PRIOR_SCALE).logpdf([loc, log_scale]).sum(axis=0)
    log_p += stats.norm(loc[..., None], np.exp(log_scale)[..., None]).logpdf(x[:, 0]).sum(axis=-1)
    p = np.exp(log_p - log_p.max())
    return axes, p / p.sum()


def draw(model: SimulatorModel, x: np.ndarray, axes: Any, p: np.ndarray) -> Any:
    """The posteriors, and the data beside what the model makes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype("float32")
    q = model.posterior().prob(grid).numpy()
    left.contourf(*axes, p.T, levels=p.max() * np.linspace(0.02, 1.0, 12), cmap="Blues")
    left.contour(*axes, q.T, levels=6, colors="C1", linewidths=1.2)
    left.plot([], [], color="C1", label="found, without the likelihood")
    left.plot([], [], color="C0", linewidth=6, alpha=0.6, label="true")
    seen = [axis[p.sum(axis=1 - i) > 1e-4] for i, axis in enumerate(axes)]
    left.set(xlabel=NAMES[0], ylabel=NAMES[1], title="posterior")
    low, high = seen[1][0], seen[1][-1]
    left.set(xlim=(seen[0][0], seen[0][-1]), ylim=(low, high + 0.3 * (high - low)))
    left.legend(frameon=False, fontsize=8, loc="upper left")
    made = model.sample(20_000, seed=1)[:, 0]
    first, last = np.quantile(made, [0.001, 0.999])
    edges = np.linspace(first, last, 16)
    right.hist(x[:, 0], edges, density=True, alpha=0.5, label=f"{len(x)} data")
    right.hist(made, edges, density=True, histtype="step", linewidth=1.5, label="simulations")
    right.set(xlabel="x", ylabel="density", title="posterior predictive")
    right.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def main() -> None:
    """Fit, compare, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--num-data", type=int, default=30)
    parser.add_argument("--steps", type=int, default=8000, help="of both optimizers")
    parser.add_argument("--seed", type=int, default=0, help="of the data, weights and draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    x = rng.normal(1.5, 0.7, size=(options.num_data, 1)).astype("float32")
    prior = priors.Prior("Normal", 2, loc=0.0, scale=PRIOR_SCALE)
    model = SimulatorModel(prior, simulator, posteriors.FullRankNormal(2), seed=options.seed)
    model.fit(x, steps=options.steps, verbose=2)
    axes, p = exact(x)
    q = model.posterior()
    print(f"{'':12}{'true':>18}{'found':>18}{'off, in sd':>12}")
    for i, (name, axis) in enumerate(zip(NAMES, axes, strict=True)):
        marginal = p.sum(axis=1 - i)
        mean = np.sum(marginal * axis)
        sd = np.sqrt(np.sum(marginal * (axis - mean) ** 2))
        found, spread = float(q.mean()[i]), float(q.stddev()[i])
        true = f"{mean:9.3f} +- {sd:.3f}"
        print(
            f"{name:12}{true:>18}{f'{found:9.3f} +- {spread:.3f}':>18}{(found - mean) / sd:12.3f}"
        )
    check = model.check_discriminator(seed=1)
    print(f"discriminator: slope {check.slope:.2f} +- {check.slope_error:.2f}, wanted 1")
    predictive = model.predictive_check(x, np.std, seed=2)
    print(f"standard deviation of the data: p-value {predictive.p_value:.2f}")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "simulator.png"
    draw(model, x, axes, p).savefig(path, dpi=150)
    model.save(options.output / "simulator.keras")
    print(f"the posteriors are in {path}")


if __name__ == "__main__":
    main()
