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


@pytest.fixture(scope="session")
def snapshot():
    """Take note of the state of a model; the function that is returned puts it back into that.

    A test that needs no model of its own takes one from here: to trace a new one takes a second.
    """

    def snapshot(model):
        model.optimizer.build(model.trainable_variables)
        variables = [*model.variables, *model.optimizer.variables]
        values = [variable.numpy() for variable in variables]

        def restart():
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            return model

        return restart

    return snapshot


@pytest.fixture
def rng():
    return np.random.default_rng(0)
