"""What the command line has to know before TensorFlow is loaded: names, and the nearest of them."""

import difflib
from collections.abc import Iterable

#: the names of `specs.names`, by kind
NAMES = {
    "likelihoods": (
        *("Bernoulli", "ContinuousBernoulli", "Categorical", "Binomial", "Normal", "Poisson"),
        *("StudentT", "Laplace", "Beta", "Gamma", "LogNormal", "OneHotCategorical", "Ordinal"),
        *("Multinomial", "DirichletMultinomial", "NegativeBinomial", "DiscretizedLogistic"),
        *("MixtureOf", "ZeroInflated", "Masked"),
    ),
    "posteriors": (
        *("DiagonalNormal", "FullRankNormal", "OneHotCategorical", "Bernoulli"),
        *("RelaxedOneHotCategorical", "RelaxedBernoulli", "Flow"),
    ),
    "priors": (
        *("StandardNormal", "Normal", "Flow", "StudentT", "NormalMixture", "VampPrior"),
        *("OneHotCategorical", "Bernoulli", "RelaxedOneHotCategorical", "RelaxedBernoulli"),
    ),
    "objectives": ("ELBO", "Renyi", "IWAE", "CUBO", "FDivergence", "ReweightedWakeSleep"),
    "schedules": ("Linear", "Cyclical", "Exponential", "TargetRate", "PerLayer"),
    "flows": (
        *("Planar", "Sylvester", "Radial", "MaskedAutoregressive", "InverseAutoregressive"),
        *("RealNVP", "NeuralSpline"),
    ),
    "optimizers": (
        *("Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "Ftrl", "Lion", "Nadam"),
        *("RMSprop", "SGD"),
    ),
}
#: those of `datasets.MAX_LEVELS`
DATA_SETS = ("digits", "mnist")
#: the ends of the names of files of data, of `tables.SUFFIXES`
SUFFIXES = (".npy", ".npz", ".csv", ".parquet")


def nearest(name: str, known: Iterable[str]) -> str:
    """A question for the name that comes nearest, or nothing if none does.

    Example:
      >>> nearest("normall", ["Normal", "Poisson"])
      "; did you mean 'Normal'?"
    """
    by_lower = {other.lower(): other for other in reversed([*known])}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else "."
