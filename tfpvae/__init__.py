"""Variational autoencoders and amortized variational inference from distribution layers and Keras.

A latent variable model is three distributions, each made by a Keras layer::

    prior p(z)   ->   posterior q(z|x)   ->   likelihood p(x|z)

Importing the package loads the blocks, so that a saved model finds them; models, plots and data
sets are loaded on first use. The command line alone loads the blocks, too, on first use.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfpvae import (
        flows,
        likelihoods,
        losses,
        networks,
        noise,
        objectives,
        posteriors,
        priors,
        regularizers,
        schedules,
        weights,
    )
    from tfpvae.layers import DistributionLayer
    from tfpvae.losses import negative_log_prob
    from tfpvae.regularizers import KLDivergenceRegularizer

__version__ = "0.1.0"

_BLOCKS = (
    "flows",
    "layers",
    "likelihoods",
    "losses",
    "networks",
    "noise",
    "objectives",
    "posteriors",
    "priors",
    "regularizers",
    "schedules",
    "weights",
)
_MODULES = (
    *_BLOCKS,
    "arviz_export",
    "conditional",
    "datasets",
    "density_ratio",
    "diagnostics",
    "estimators",
    "evaluation",
    "explore",
    "family",
    "hierarchical",
    "latent_space",
    "local_inference",
    "marginal_likelihood",
    "mixed_effects",
    "models",
    "plotting",
    "regression",
    "reproduce",
    "resuming",
    "saving",
    "semi_supervised",
    "serving",
    "simulators",
    "streams",
    "summaries",
    "training",
)
_NAMES = {
    "DistributionLayer": "layers",
    "KLDivergenceRegularizer": "regularizers",
    "negative_log_prob": "losses",
    "ConditionalVAE": "conditional",
    "HierarchicalVAE": "hierarchical",
    "VAE": "models",
    "BayesianRegression": "regression",
    "DensityRatio": "density_ratio",
    "LocalVAE": "local_inference",
    "MixedRegression": "mixed_effects",
    "SemiSupervisedVAE": "semi_supervised",
    "SimulatorModel": "simulators",
    "check_elbo": "evaluation",
    "diagnose": "diagnostics",
    "load_model": "saving",
    "local_posterior": "local_inference",
}

__all__ = [
    "VAE",
    "BayesianRegression",
    "ConditionalVAE",
    "DensityRatio",
    "DistributionLayer",
    "HierarchicalVAE",
    "KLDivergenceRegularizer",
    "LocalVAE",
    "MixedRegression",
    "SemiSupervisedVAE",
    "SimulatorModel",
    "check_elbo",
    "conditional",
    "datasets",
    "density_ratio",
    "diagnose",
    "diagnostics",
    "evaluation",
    "explore",
    "family",
    "flows",
    "hierarchical",
    "latent_space",
    "likelihoods",
    "load_model",
    "local_inference",
    "local_posterior",
    "losses",
    "marginal_likelihood",
    "mixed_effects",
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
    "reproduce",
    "resuming",
    "saving",
    "schedules",
    "semi_supervised",
    "serving",
    "simulators",
    "streams",
    "summaries",
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


def _is_command_line() -> bool:
    """Whether this process is `tfpvae` or `python -m tfpvae`, which need not load TensorFlow.

    All others need the blocks: Keras finds a layer in a Sequential or functional model only if it
    has been registered, also where the file names its module.
    """
    program = os.path.basename((sys.argv or [""])[0])
    if program == "-m":  # As it is called until Python has found the module.
        words = sys.orig_argv
        return "tfpvae" in words and words[words.index("tfpvae") - 1].endswith("m")
    return program in ("tfpvae", "tfpvae.exe", "tfpvae-script.py")


if not _is_command_line():
    for _name in _BLOCKS:
        importlib.import_module(f"{__name__}.{_name}")
