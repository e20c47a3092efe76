"""Patients in hospitals: a logistic regression in which each hospital has an intercept of its own.

    y ~ Bernoulli(logits = x w + b + u_g),   u_g ~ N(0, tau^2),   tau ~ half-normal

The data are simulated, so that the truth is known. Hospitals have from 3 to about 200 patients.
Without pooling (no b, tau fixed at 5) small hospitals look extreme; with complete pooling they are
all the same; with tau learned each is pulled to the mean as far as its number of patients says.
Prints the errors of the three in b + u_g, the logit of the average patient, and draws the hospitals
in order, with intervals.
"""

import argparse
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from scipy import special

from tfpvae import BayesianRegression, MixedRegression, likelihoods


def simulate(num_groups: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, outcomes, labels of the hospitals, and their true effects."""
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(3, 200, num_groups).astype(int)
    effects = 0.8 * rng.normal(size=num_groups)
    codes = np.repeat(np.arange(num_groups), sizes)
    x = rng.normal(size=(len(codes), 2))
    logits = x @ [0.8, -0.5] - 0.5 + effects[codes]
    labels = np.array([f"hospital {code:02d}" for code in range(num_groups)])[codes]
    return x, rng.random(len(codes)) < special.expit(logits), labels, effects


def caterpillar(
    axes: Any, order: np.ndarray, mean: np.ndarray, sd: np.ndarray, **style: Any
) -> None:
    """Means in this order, with intervals of 94 %."""
    shift = style.pop("shift")
    places = np.arange(len(order)) + shift
    axes.errorbar(mean[order], places, xerr=1.88 * sd[order], fmt="o", ms=4, lw=1.2, **style)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--groups", type=int, default=24, help="number of hospitals")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the data and of the draws")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    x, y, labels, effects = simulate(options.groups, options.seed)
    names = ["severity", "age"]

    def fitted(**settings: Any) -> MixedRegression:
        model = MixedRegression(
            likelihoods.Bernoulli(), feature_names=names, seed=options.seed, **settings
        )
        model.fit(x, y, labels, steps=options.steps, verbose=0)
        return model

    partial, none = fitted(), fitted(group_scale=5.0, fit_intercept=False)
    complete = BayesianRegression(likelihoods.Bernoulli(), feature_names=names, seed=options.seed)
    complete.fit(x, y, steps=options.steps, verbose=0)
    partial.summary()
    groups, sizes = np.unique(labels, return_counts=True)
    found = {}
    for name, model in (("no pooling", none), ("random effects", partial)):
        p = model.conditional_distribution(np.zeros((len(groups), 2)), groups, num_samples=4000)
        logits = p.logits_parameter().numpy()
        found[name] = logits.mean(axis=1), logits.std(axis=1)
    common = float(complete.coefficients.mean()[-1])
    truth, small = effects - 0.5, sizes < 20
    print("root mean squared error of b + u_g       all hospitals    those of < 20 patients")
    for name, mean in [*((k, v[0]) for k, v in found.items()), ("complete pooling", common)]:
        errors = [np.sqrt(np.mean((mean - truth)[rows] ** 2)) for rows in (small | True, small)]
        print(f"  {name:34s} {errors[0]:15.3f} {errors[1]:20.3f}")
    patient = np.array([[0.0, 0.0]])
    for label in (labels[-1], "a hospital never seen"):
        draws = partial.conditional_distribution(patient, [label]).probs_parameter().numpy()
        low, high = np.quantile(draws, (0.03, 0.97))
        print(f"the average patient in {label}: {draws.mean():.2f}, from {low:.2f} to {high:.2f}")

    order = np.argsort(found["random effects"][0])
    figure, axes = plt.subplots(figsize=(7, 0.26 * len(order) + 1.4), layout="constrained")
    axes.axvline(common, color="0.6", lw=1, label="complete pooling")
    for (name, (mean, sd)), color, shift in zip(
        found.items(), ("tab:orange", "tab:blue"), (-0.17, 0.17), strict=True
    ):
        caterpillar(axes, order, mean, sd, color=color, label=name, shift=shift)
    axes.plot(truth[order], np.arange(len(order)), "kx", ms=5, label="truth")
    axes.set_yticks(range(len(order)), [f"{i:02d}  (n = {sizes[i]})" for i in order], fontsize=8)
    axes.set_xlim(-5, 4)
    axes.set_ylim(-1, len(order))
    axes.set_xlabel("logit of the average patient, with 94 % intervals")
    axes.set_ylabel("hospital")
    axes.legend(loc="lower right", fontsize=8)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "random_effects.png"
    figure.savefig(path, dpi=110)
    print(f"the figure is {path.resolve()}")


if __name__ == "__main__":
    main()
