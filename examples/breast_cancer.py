"""Bayesian logistic regression on scikit-learn's breast cancer data.

    p(w) = N(0, 1),   p(y | x, w) = Bernoulli(sigmoid(x w)),   x standardized

Prints the posterior of the coefficients, and accuracy and log score of predictions for patients
that were held out, beside those of scikit-learn's LogisticRegression. Its penalty is the same prior
(but for the intercept, which it leaves free), of which it takes the mode alone.
"""

import argparse
import pathlib
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from scipy.special import expit

from tfpvae import BayesianRegression, likelihoods, plotting

CLASSES = ["benign", "malignant"]
PLANE = ["mean texture", "worst radius"]


def load() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The 30 features, the names of the classes, the names of the features."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise SystemExit(
            "this example needs scikit-learn and its data: pip install 'tfpvae[data]'"
        ) from None
    data = load_breast_cancer()
    return data.data, data.target_names[data.target], [*map(str, data.feature_names)]


def fit(x: np.ndarray, y: np.ndarray, names: list[str], steps: int) -> BayesianRegression:
    model = BayesianRegression(
        likelihoods.Bernoulli(),
        standardize=True,
        class_names=CLASSES,
        feature_names=names,
        seed=0,
    )
    model.fit(x, y, steps=steps, verbose=0)
    return model


def held_out(
    x: np.ndarray, y: np.ndarray, names: list[str], folds: int, steps: int
) -> dict[str, np.ndarray]:
    """The probability of "malignant" that each model gives to a fold when trained on the others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probs = {"BayesianRegression": np.empty(len(x)), "LogisticRegression": np.empty(len(x))}
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y):
        ours = fit(x[train], y[train], names, steps)
        probs["BayesianRegression"][test] = ours.predict(x[test])
        theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        theirs.fit(x[train], y[train])
        probs["LogisticRegression"][test] = theirs.predict_proba(x[test])[:, 1]
    return probs


def print_scores(malignant: np.ndarray, probs: dict[str, np.ndarray], folds: int) -> None:
    """Share of right predictions, and mean log probability of what came."""
    print(f"\nheld out, {folds} folds     accuracy   log score (nats, 0 is best)")
    for name, p in probs.items():
        accuracy = np.mean((p > 0.5) == malignant)
        log_score = np.mean(np.log(np.where(malignant, p, 1 - p)))
        print(f"{name:22s} {accuracy:9.3f} {log_score:9.3f}")


def draw_coefficients(model: BayesianRegression, x: np.ndarray, names: list[str]) -> Any:
    """What a standard deviation of each feature adds to the log odds, the largest on top."""
    draws = model.draws(4000)
    effects = {name: draws[name] * x[:, i].std() for i, name in enumerate(names)}
    effects = dict(sorted(effects.items(), key=lambda item: -item[1].mean()))
    ax = plotting.intervals(effects)
    ax.set_xlabel("change of the log odds of a malignant tumour\nper standard deviation")
    return ax.figure


def draw_calibration(malignant: np.ndarray, probs: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(9.0, 4.8), layout="constrained")
    for ax, (name, p) in zip(figure.subplots(1, 2), probs.items(), strict=True):
        plotting.calibration(malignant, p, ax)
        ax.set_title(name)
        ax.set_xlabel("held-out probability of a malignant tumour")
        ax.set_ylabel("share of malignant tumours, 94% interval")
    return figure


def draw_plane(x: np.ndarray, y: np.ndarray, names: list[str], steps: int) -> Figure:
    """The predictive probability of a model on two features, and how unsure it is of it."""
    columns = [names.index(name) for name in PLANE]
    draws = fit(x[:, columns], y, PLANE, steps).draws(2000)
    margin = np.array([0.25, 0.1]) * np.ptp(x[:, columns], axis=0)
    low, high = x[:, columns].min(axis=0) - margin, x[:, columns].max(axis=0) + margin
    texture, radius = (np.linspace(low[i], high[i], 80) for i in range(2))
    a, b = np.meshgrid(texture, radius)
    # The probability at each point of the grid for each draw of the coefficients, [80, 80, S].
    logits = a[..., None] * draws[PLANE[0]] + b[..., None] * draws[PLANE[1]] + draws["intercept"]
    probs = expit(logits)

    figure = Figure(figsize=(11.0, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    shared: dict[str, Any] = {"line": None, "points": x[:, columns], "labels": y}
    plotting.contours(
        texture,
        radius,
        probs.mean(axis=-1),
        left,
        **shared | {"line": 0.5},
        levels=np.linspace(0, 1, 11),
        cmap=LinearSegmentedColormap.from_list("classes", ["#9cc8ef", "white", "#ffd683"]),
        label="predictive probability of a malignant tumour",
    )
    plotting.contours(
        texture,
        radius,
        probs.std(axis=-1),
        right,
        **shared,
        cmap="viridis",
        label="its standard deviation over the posterior",
    )
    for ax in (left, right):
        ax.set_xlabel("mean texture (standard deviation of grey levels)")
        ax.set_ylabel("worst radius (mean distance, center to perimeter)")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=500, help="of the optimizer")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    x, y, names = load()
    malignant = y == "malignant"

    model = fit(x, y, names, options.steps)
    model.summary()
    probs = held_out(x, y, names, options.folds, options.steps)
    print_scores(malignant, probs, options.folds)

    options.output.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("coefficients", draw_coefficients(model, x, names)),
        ("calibration", draw_calibration(malignant, probs)),
        ("plane", draw_plane(x, y, names, options.steps)),
    ):
        figure.savefig(options.output / f"breast_cancer_{name}.png", dpi=100, bbox_inches="tight")
    print(f"figures are in {options.output.resolve()}")


if __name__ == "__main__":
    main()
