"""One seed is one run: the same history and the same weights, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

from tfpvae import VAE, likelihoods, posteriors, priors

RNG = np.random.default_rng(0)
ROWS = (RNG.random((200, 6)) < 0.3).astype("float32")
IMAGES = RNG.uniform(0.1, 0.9, (100, 8, 8, 1)).astype("float32")

WAYS = {
    "programs": {},
    "xla": {"jit_compile": True},
    "a batch a call": {"steps_per_execution": 1},
    "eager": {"run_eagerly": True},
}


def dense(rate=0.0):
    dropout = [keras.layers.Dropout(rate)] if rate else []
    encoder = [keras.layers.Dense(32, "relu"), *dropout, keras.layers.Dense(4)]
    return ROWS, encoder, [keras.layers.Dense(32, "relu"), keras.layers.Dense(6)], 6


def convolutional():
    encoder = [
        keras.layers.Conv2D(8, 3, 2, "same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(4),
    ]
    decoder = [
        keras.layers.Dense(128, "relu"),
        keras.layers.Reshape((4, 4, 8)),
        keras.layers.Conv2DTranspose(1, 3, 2, "same"),
    ]
    return IMAGES, encoder, decoder, (8, 8, 1)


MODELS = {"dense": dense, "dropout": lambda: dense(0.2), "convolutional": convolutional}


def run(kind, way):
    """History and weights of a training from nothing but seeds."""
    keras.utils.set_random_seed(1)
    x, encoder, decoder, event_shape = MODELS[kind]()
    likelihood = likelihoods.ContinuousBernoulli(event_shape)
    vae = VAE(
        priors.StandardNormal(2),
        keras.Sequential([*encoder, posteriors.DiagonalNormal(2)]),
        keras.Sequential([*decoder, likelihood]),
        seed=0,
    )
    vae.compile(keras.optimizers.Adam(1e-2), **WAYS[way])
    x = np.clip(x, 0.1, 0.9)
    history = vae.fit(x, batch_size=32, epochs=3, validation_split=0.2, verbose=0).history
    return history, vae.get_weights()


def same(a, b):
    return a[0] == b[0] and all(map(np.array_equal, a[1], b[1]))


QUICK = [("dense", "programs")]
SLOW = [(kind, way) for kind in MODELS for way in WAYS if (kind, way) not in QUICK]
SLOW.remove(("dropout", "xla"))  # Its generator does not follow a seed there.
SLOW.remove(("convolutional", "xla"))  # Which is slow, and never chosen.


@pytest.mark.parametrize(
    ("kind", "way"), [*QUICK, *(pytest.param(*p, marks=pytest.mark.long) for p in SLOW)]
)
def test_a_run_repeats(kind, way):
    assert same(run(kind, way), run(kind, way))


@pytest.mark.long
@pytest.mark.parametrize("kind", MODELS)
def test_on_and_off_the_fast_path(kind):
    fast = run(kind, "programs")
    assert same(run(kind, "a batch a call"), fast)
    if kind != "dropout":  # Its draws depend on the operations that are made.
        for eager, wanted in zip(run(kind, "eager")[1], fast[1], strict=True):
            np.testing.assert_allclose(eager, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_a_new_process_repeats_it_too():
    """Also where TensorFlow is told to be deterministic, which must not be an error."""
    code = """
import hashlib, sys
import tensorflow as tf
if sys.argv[1] == "1":
    tf.config.experimental.enable_op_determinism()
sys.path.insert(0, "tests")
import test_determinism
history, weights = test_determinism.run("convolutional", "programs")
print(history["loss"], hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest())
"""
    root = Path(__file__).parents[1]

    def printed(determinism):
        return subprocess.run(
            [sys.executable, "-c", code, determinism],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout

    assert printed("0") == printed("0")
    assert printed("1") == printed("1")
