"""What `fit` is given: how many batches that makes, how large they are, and their indices."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_keras.src.engine import data_adapter

from tfpvae import inputs

N, D = 50, 6
NAMES = ("x", "y", "sample_weight")
X = np.arange(N * D, dtype="float32").reshape(N, D)


class Batches(keras.utils.Sequence):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return X[10 * index : 10 * index + 10]


def dataset(batch_size=16):
    return tf.data.Dataset.from_tensor_slices(X).batch(batch_size)


def generator():
    return (X[i : i + 16] for i in range(0, N, 16))


def read(x, y=None, weight=None):
    return inputs.read(NAMES, x, y, weight)


STEPS = [
    (lambda: X, {}, 2),  # 32 in a batch, as in Keras
    (lambda: X, {"batch_size": None}, 2),
    (lambda: X, {"batch_size": 16}, 4),
    (lambda: X, {"batch_size": 25}, 2),
    (lambda: X, {"batch_size": 50}, 1),
    (lambda: X, {"batch_size": 64}, 1),
    (lambda: X, {"batch_size": 16, "validation_split": 0.2}, 3),
    (lambda: X, {"batch_size": 16, "validation_split": 0.0}, 4),
    (lambda: X, {"batch_size": 16, "steps_per_epoch": 3}, 3),
    (lambda: X, {"steps_per_epoch": 7}, 7),
    (lambda: X, {"steps": 3}, 3),
    (lambda: X, {"steps": None, "batch_size": 16}, 4),
    (dataset, {}, 4),
    (dataset, {"steps_per_epoch": 2}, 2),
    (lambda: dataset().repeat(), {}, None),
    (lambda: dataset().repeat(), {"steps_per_epoch": 9}, 9),
    (lambda: dataset().filter(lambda _: True), {}, None),
    (lambda: dataset().filter(lambda _: True), {"steps_per_epoch": 3}, 3),
    (dataset, {"steps_per_epoch": -1}, None),
    (Batches, {}, 5),
    (Batches, {"steps_per_epoch": 2}, 2),
    (generator, {}, None),
    (generator, {"steps_per_epoch": 4}, 4),
    (lambda: iter([X, X]), {}, None),
]


@pytest.mark.parametrize(("make", "arguments", "wanted"), STEPS)
def test_steps_of_an_epoch(make, arguments, wanted):
    assert read(make()).steps(arguments) == wanted


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(10, 300),
    batch_size=st.integers(1, 70) | st.none(),
    steps=st.integers(1, 20) | st.none(),
    split=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7]),
)
def test_steps_of_arrays_are_those_that_keras_takes(rows, batch_size, steps, split):
    x = np.zeros((rows, 1), "float32")
    part = data_adapter.train_validation_split((x,), split)[0][0] if split else x
    handler = data_adapter.DataHandler(part, batch_size=batch_size, steps_per_epoch=steps)
    arguments = {
        "batch_size": batch_size,
        "steps_per_epoch": steps,
        "validation_split": split,
    }
    data = read(x)
    assert data.steps(arguments) == handler.inferred_steps
    first = next(iter(handler._dataset))[0]
    wanted = 4 * (batch_size or (32 if steps is None else -(-len(part) // steps)))
    assert data.batch_bytes(arguments) == pytest.approx(wanted)
    assert first.shape[0] * 4 <= wanted


ROW = 4 * D
BYTES = [
    ((X,), {"batch_size": 16}, 16 * ROW),
    ((X,), {}, 32 * ROW),
    ((X,), {"steps_per_epoch": 5}, 10 * ROW),
    ((X,), {"steps_per_epoch": 5, "batch_size": 16}, 16 * ROW),
    ((X,), {"steps_per_epoch": 5, "validation_split": 0.5}, 5 * ROW),
    ((X, X), {"batch_size": 16}, 2 * 16 * ROW),
    ((X, X[:, :1]), {"batch_size": 16}, 16 * (ROW + 4)),
    ((X, None, np.ones(N, "float32")), {"batch_size": 16}, 16 * (ROW + 4)),
    ((X.astype("uint8"),), {"batch_size": 16}, 16 * D),
    ((dataset(10),), {}, 10 * ROW),
    ((dataset(10).map(lambda x: (x, x)),), {}, 20 * ROW),
    ((Batches(),), {"batch_size": 3}, 10 * ROW),
]


@pytest.mark.parametrize(("data", "arguments", "wanted"), BYTES)
def test_bytes_of_a_batch(data, arguments, wanted):
    assert read(*data).batch_bytes(arguments) == pytest.approx(wanted)


def test_indices_take_the_place_of_arrays():
    indices = read(X, X, np.ones(N)).indices()
    assert (indices.x.dtype, indices.y, indices.weight) == (np.int32, None, None)
    np.testing.assert_array_equal(indices.x, np.arange(N))


@pytest.mark.parametrize("make", [dataset, Batches, generator])
def test_streams_keep_their_batches(make):
    data = read(make())
    assert data.indices() is data


@pytest.mark.parametrize("make", [dataset, generator, lambda: iter(list(generator()))])
def test_a_look_at_the_first_batch_does_not_take_it(make):
    data = read(make())
    np.testing.assert_array_equal(data.first[0], X[:16])
    np.testing.assert_array_equal(np.concatenate(list(data.x)), X)


def test_the_sample_is_all_of_an_array_and_the_first_batch_of_a_stream():
    assert read(X, 2 * X).sample[0] is X
    pairs = tf.data.Dataset.from_tensor_slices((X, 2 * X, np.ones(N))).batch(16)
    x, y, weight = read(pairs).sample
    np.testing.assert_array_equal(x, X[:16])
    np.testing.assert_array_equal(y, 2 * X[:16])
    np.testing.assert_array_equal(weight, np.ones(16))
