"""Bayesian softmax regression on scikit-learn's wine data: three cultivars, thirteen features.

    p(w) = N(0, 1),   p(y | x, w) = Categorical(softmax(x W + b)),   x standardized

Prints the posterior of the coefficients, and accuracy and log score of predictions for wines that
were held out, beside those of scikit-learn's LogisticRegression.
"""

import argparse
import pathlib
from typing import Any

import numpy as np

from tfpvae import BayesianRegression, likelihoods, plotting


def load() -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """The features, the class of each wine, the names of the features and of the classes."""
    try:
        from sklearn.datasets import load_wine
    except ImportError:
        raise SystemExit(
            "this example needs scikit-learn and its data: pip install 'tfpvae[data]'"
        ) from None
    data = load_wine()
    features, classes = [*map(str, data.feature_names)], [*map(str, data.target_names)]
    return data.data, data.target_names[data.target], features, classes


def fit(
    x: np.ndarray, y: np.ndarray, features: list[str], classes: list[str], steps: int
) -> BayesianRegression:
    model = BayesianRegression(
        likelihoods.Categorical(num_classes=len(classes)),
        standardize=True,
        class_names=classes,
        feature_names=features,
        seed=0,
    )
    model.fit(x, y, steps=steps, verbose=0)
    return model


def held_out(
    x: np.ndarray, y: np.ndarray, features: list[str], classes: list[str], folds: int, steps: int
) -> dict[str, np.ndarray]:
    """The class probabilities `[N, K]` of each fold from models trained on the others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    shape = (len(x), len(classes))
    probs = {"BayesianRegression": np.empty(shape), "LogisticRegression": np.empty(shape)}
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y):
        ours = fit(x[train], y[train], features, classes, steps)
        probs["BayesianRegression"][test] = ours.predict_distribution(x[test]).probs_parameter()
        theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probs["LogisticRegression"][test] = theirs.fit(x[train], y[train]).predict_proba(x[test])
    return probs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=500, help="of the optimizer")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation")
    parser.add_argument("--output", type=pathlib.Path, default="output", help="a folder")
    options = parser.parse_args()
    x, y, features, classes = load()
    labels = np.array([classes.index(name) for name in y])

    model = fit(x, y, features, classes, options.steps)
    model.summary()
    probs = held_out(x, y, features, classes, options.folds, options.steps)
    print(f"\nheld out, {options.folds} folds     accuracy   log score (nats, 0 is best)")
    for name, p in probs.items():
        accuracy = np.mean(p.argmax(axis=1) == labels)
        log_score = np.mean(np.log(p[np.arange(len(p)), labels]))
        print(f"{name:22s} {accuracy:9.3f} {log_score:9.3f}")

    draws = model.draws(4000)
    effects = {
        feature: x[:, i].std() * np.stack([draws[f"{feature}[{k}]"] for k in classes], axis=-1)
        for i, feature in enumerate(features)
    }
    # The feature that tells the classes best apart on top.
    effects = dict(sorted(effects.items(), key=lambda item: -np.ptp(item[1].mean(axis=0))))
    forest = plotting.intervals(effects, labels=classes)
    forest.set_xlabel("coefficient per standard deviation of the feature")
    bars = plotting.class_bars(probs["BayesianRegression"], labels, classes)
    bars.set_xlabel("cultivar (number of wines), the most certain predictions on the left")
    bars.set_ylabel("held-out probability")
    options.output.mkdir(parents=True, exist_ok=True)
    for name, ax in (("coefficients", forest), ("probabilities", bars)):
        figure: Any = ax.figure
        figure.savefig(options.output / f"wine_{name}.png", dpi=100, bbox_inches="tight")
    print(f"figures are in {options.output.resolve()}")


if __name__ == "__main__":
    main()
