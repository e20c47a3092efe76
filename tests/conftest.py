"""What all tests share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import tf_keras as keras


@pytest.fixture(autouse=True)
def _repeatable():
    """Every test starts from the same seed and leaves the precision policy as it was."""
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")
    keras.backend.set_floatx("float32")


@pytest.fixture
def rng():
    return np.random.default_rng(0)
