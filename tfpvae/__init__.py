"""Variational autoencoders and amortized variational inference from distribution layers and Keras.

A latent variable model is three distributions, each made by a Keras layer::

    prior p(z)   ->   posterior q(z|x)   ->   likelihood p(x|z)

Importing the package loads the blocks, so that a saved model finds them; models, plots and data
sets are loaded on first use.
"""

import importlib
from typing import Any

from tfpvae import (
    likelihoods,
    losses,
    networks,
    noise,
    objectives,
    posteriors,
    priors,
    regularizers,
    weights,
)
from tfpvae.layers import DistributionLayer
from tfpvae.losses import negative_log_prob
from tfpvae.regularizers import KLDivergenceRegularizer

__version__ = "0.1.0"

_MODULES = (
    "arviz_export",
    "datasets",
    "estimators",
    "evaluation",
    "models",
    "plotting",
    "regression",
    "training",
)
_NAMES = {"VAE": "models", "BayesianRegression": "regression", "check_elbo": "evaluation"}

__all__ = [
    "VAE",
    "BayesianRegression",
    "DistributionLayer",
    "KLDivergenceRegularizer",
    "check_elbo",
    "datasets",
    "evaluation",
    "likelihoods",
    "losses",
    "models",
    "negative_log_prob",
    "networks",
    "noise",
    "objectives",
    "plotting",
    "posteriors",
    "priors",
    "regression",
    "regularizers",
    "training",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
