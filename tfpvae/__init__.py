"""Variational autoencoders and amortized variational inference from distribution layers and Keras.

A latent variable model is three distributions, each made by a Keras layer::

    prior p(z)   ->   posterior q(z|x)   ->   likelihood p(x|z)

The names below are loaded on first use, so whoever needs the blocks alone loads no model code.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    "datasets",
    "evaluation",
    "layers",
    "likelihoods",
    "losses",
    "models",
    "networks",
    "objectives",
    "plotting",
    "posteriors",
    "priors",
    "regularizers",
    "training",
)
_NAMES = {
    "DistributionLayer": "layers",
    "KLDivergenceRegularizer": "regularizers",
    "VAE": "models",
    "check_elbo": "evaluation",
    "negative_log_prob": "losses",
}

__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
