"""Noise: blocks draw as TFP does, or, inside `fixed(seed)`, from that seed alone."""

import contextlib
import itertools
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras


class _Scope(threading.local):  # The replicas of tf.distribute are threads.
    seeds: Iterator[Any] | None = None


_scope = _Scope()


@contextlib.contextmanager
def fixed(seed: Any) -> Iterator[None]:
    """Make the blocks that are called inside draw from `seed`: same seed, same draws.

    Args:
      seed: an integer, or an integer tensor of shape [2].

    Example:
      >>> from tfpvae import posteriors
      >>> posterior = posteriors.DiagonalNormal(2)
      >>> with fixed(1):
      ...     a = tf.convert_to_tensor(posterior(tf.zeros([3, 4])))
      >>> with fixed(1):
      ...     b = tf.convert_to_tensor(posterior(tf.zeros([3, 4])))
      >>> bool(tf.reduce_all(a == b))
      True
    """
    outer, seed = _scope.seeds, as_seed(seed)
    _scope.seeds = (tf.random.fold_in(seed, count) for count in itertools.count())
    try:
        yield
    finally:
        _scope.seeds = outer


def next_seed() -> Any:
    """The seed of the next draw, None outside of `fixed`: TFP's own generator draws then."""
    return None if _scope.seeds is None else next(_scope.seeds)


def as_seed(seed: Any) -> Any:
    """An int32 tensor of shape [2] that TFP's and TensorFlow's stateless samplers take.

    Args:
      seed: an integer of at most 64 bits, or an integer tensor of shape [2].

    Raises:
      TypeError: if it is anything else.
      ValueError: for an integer of more than 64 bits.
    """
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed: got {seed}, wanted an integer of at most 64 bits")
        return tf.constant(np.array([int(seed) % 2**64], np.uint64).view(np.int32))
    if isinstance(seed, (tf.Tensor, tf.Variable, np.ndarray, list, tuple)):
        with contextlib.suppress(TypeError, ValueError):
            tensor = tf.convert_to_tensor(seed)
            if tensor.shape == (2,) and tensor.dtype.is_integer:
                return tf.cast(tensor, tf.int32)
    raise TypeError(f"seed: got {seed!r}, wanted an integer or an integer tensor of shape [2]")


@keras.saving.register_keras_serializable("tfpvae")
class Noise(keras.layers.Layer):
    """The one source of noise of a model: a seed and counters, all of them weights.

    So the state is saved with the model, training repeats bit for bit from the same seed, and a
    resumed run goes on with the noise of an uninterrupted one. Each replica of a
    `tf.distribute.Strategy` draws its own.

    Evaluation has a stream of its own that starts anew each time: `evaluate` gives the same number
    when called twice, and validation leaves the noise of training alone.

    Args:
      seed: an integer; None takes one from Python's `random`, and so from
        `keras.utils.set_random_seed`.

    Example:
      >>> a, b = Noise(seed=1), Noise(seed=1)
      >>> bool(tf.reduce_all(a.next() == b.next()))
      True
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        value = as_seed(random.randrange(2**63) if seed is None else seed)
        # As an initial value, which the first of several workers sends to the others.
        self.seed = self._integers("seed", (2,), lambda *_, **__: value)
        self.count = self._integers("count", ())
        self.evaluation_count = self._integers("evaluation_count", ())
        self.built = True

    def next(self, evaluation: bool = False) -> Any:
        """A seed that no earlier call has returned; int32 tensor of shape [2]."""
        count = self.evaluation_count if evaluation else self.count
        seed = tf.random.fold_in(tf.random.fold_in(self.seed, int(evaluation)), count)
        count.assign_add(1)
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            seed = tf.random.fold_in(seed, replica.replica_id_in_sync_group)
        return seed

    def rewind_evaluation(self) -> None:
        """Let evaluation start with the same noise again."""
        self.evaluation_count.assign(0)

    def _integers(self, name: str, shape: tuple[int, ...], initializer: Any = "zeros") -> Any:
        return self.add_weight(
            name=name,
            shape=shape,
            dtype="int32",
            initializer=initializer,
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
