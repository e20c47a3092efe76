"""What the command line knows before TensorFlow is loaded: a few names, and the nearest of them."""

import difflib
from collections.abc import Iterable

#: those of `specs.KINDS`
KINDS = ("flows", "likelihoods", "objectives", "optimizers", "posteriors", "priors", "schedules")
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
