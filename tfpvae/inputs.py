"""What `fit` and `evaluate` are given: arrays, or a stream of batches, checked before any step."""

import inspect
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import checks

_KERAS_BATCH_SIZE = 32


class Data(NamedTuple):
    """Arrays, or a stream of batches.

    Attributes:
      x: array `[N, ...]`, or a `tf.data.Dataset`, `keras.utils.Sequence` or generator.
      y: array of targets, None for those of x.
      weight: array `[N]` of the weights of the examples, None for ones.
      first: of a stream the first batch `(x, y, weight)`; None for arrays.
      passes: how often the rows of arrays come in an epoch.
      order: which rows of arrays a pass takes, some more than once; None for each row once.
    """

    x: Any
    y: Any = None
    weight: Any = None
    first: tuple[Any, Any, Any] | None = None
    passes: int = 1
    order: np.ndarray | None = None

    @property
    def sample(self) -> tuple[Any, Any, Any]:
        """All the arrays, or the first batch of a stream."""
        return self.first or self[:3]

    def steps(self, settings: Mapping[str, Any]) -> int | None:
        """Batches of an epoch under these arguments of `fit`, None where nobody can know."""
        steps = settings.get("steps_per_epoch") or settings.get("steps")
        if steps is not None:
            return None if steps == -1 else int(steps)
        if self.first is None:
            return math.ceil(self._rows(settings) / self.batch_size(settings))
        if isinstance(self.x, keras.utils.Sequence):
            return len(self.x)
        steps = int(self.x.cardinality()) if isinstance(self.x, tf.data.Dataset) else -1
        return steps if steps >= 0 else None

    def batch_bytes(self, settings: Mapping[str, Any]) -> float:
        """Size of a batch."""
        size = sum(np.asarray(values).nbytes for values in self.sample if values is not None)
        return size if self.first else size / len(self.x) * self.batch_size(settings)

    def indices(self) -> "Data":
        """Indices of the rows of arrays, in their place; a stream stays what it is."""
        if self.first:
            return self
        rows = np.arange(len(self.x), dtype=np.int32) if self.order is None else self.order
        return Data(np.tile(rows, self.passes))

    def in_keras(self) -> "Data":
        """As Keras's loop takes it, which drops weights without y: they stand beside x then."""
        if self.first or self.weight is None or self.y is not None:
            return self
        return self._replace(x=pack(self.x, None, self.weight), weight=None)

    def split(self, share: float) -> tuple["Data", "Data"]:
        """The first rows of arrays, and the last ones, which are that share of them."""
        checks.fit_settings({"validation_split": share})
        start = math.floor(len(self.x) * (1.0 - share))
        if not 0 < start < len(self.x):
            raise ValueError(
                f"validation_split: got {share}, wanted one that leaves some of the {len(self.x)} "
                "rows on either side"
            )

        def part(rows: slice) -> "Data":
            x, y, weight = (values if values is None else values[rows] for values in self[:3])
            return Data(x, y, weight)

        return part(slice(start)), part(slice(start, None))

    def _rows(self, settings: Mapping[str, Any]) -> int:
        size = len(self.x if self.order is None else self.order) * self.passes
        return math.floor(size * (1.0 - (settings.get("validation_split") or 0.0)))

    def batch_size(self, settings: Mapping[str, Any]) -> int:
        """Rows of arrays in a batch."""
        size, steps = settings.get("batch_size"), settings.get("steps_per_epoch")
        if size is None and steps is not None:
            return math.ceil(self._rows(settings) / steps)
        return _KERAS_BATCH_SIZE if size is None else checks.positive_integer("batch_size", size)


def read(names: tuple[str, str, str], x: Any, y: Any, weight: Any, missing: bool = False) -> Data:
    """The data as arrays of numbers with as many rows each, or as a stream that is not empty.

    Args:
      names: what errors call x, y and the weights.
      x: array, or a stream of batches `x`, `(x, y)` or `(x, y, weight)`.
      y: array or None.
      weight: array or None.
      missing: whether NaN is allowed in x and y, where it stands for what is missing.

    Raises:
      TypeError: for data that are no numbers.
      ValueError: for empty data, different numbers of rows, weights that are no weights.
    """
    if is_stream(x):
        stream, first = _peek(names[0], x, missing)
        first_x, first_y, first_weight = unpack(first)
        first_x = checks.as_array(names[0], first_x)
        first_y = None if first_y is None else checks.as_array(names[1], first_y)
        return Data(stream, y, weight, (first_x, first_y, first_weight))
    x = checks.as_array(names[0], x)
    y = None if y is None else checks.as_array(names[1], y)
    weight = None if weight is None else checks.as_array(names[2], weight)
    for name, values in ((names[1], y), (names[2], weight)):
        if values is not None and np.shape(values)[:1] != x.shape[:1]:
            raise ValueError(
                f"{name}: got shape {np.shape(values)}, wanted {len(x)} rows, as many as "
                f"{names[0]} has"
            )
    if weight is not None and not (
        weight.shape == x.shape[:1]
        and (weight >= 0).all()
        and (weight <= np.finfo(np.float32).max).all()
    ):
        raise ValueError(
            f"{names[2]}: got shape {weight.shape}, wanted {x.shape[:1]} finite numbers >= 0"
        )
    return Data(x, y, weight)


def is_stream(x: Any) -> bool:
    """Whether these are batches, and not an array."""
    kinds = (tf.data.Dataset, keras.utils.Sequence, Iterator)
    return isinstance(x, kinds) or inspect.isgenerator(x)


def pack(x: Any, y: Any, weight: Any) -> Any:
    """A batch `x`, `(x, y)` or `(x, y, weight)`; without y the weights come beside x, by name.

    Keras would drop them.
    """
    if y is None and weight is not None:
        return {"x": x, "sample_weight": weight}
    return keras.utils.pack_x_y_sample_weight(x, y, weight)


def unpack(data: Any) -> tuple[Any, Any, Any]:
    """`(x, y, weight)` of a batch `x`, `(x,)`, `(x, y)`, `(x, y, weight)`, or of a packed one."""
    only = data[0] if isinstance(data, tuple) and len(data) == 1 else data
    if isinstance(only, dict) and only.keys() == {"x", "sample_weight"}:
        return only["x"], None, only["sample_weight"]
    return keras.utils.unpack_x_y_sample_weight(data)


class _Packed(keras.utils.Sequence):
    """The batches of another sequence, packed."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, i: int) -> Any:
        return pack(*unpack(self._batches[i]))

    def on_epoch_end(self) -> None:
        self._batches.on_epoch_end()


def _peek(name: str, stream: Any, missing: bool) -> tuple[Any, Any]:
    """The stream and its first batch; all batches of a dataset will be checked for NaN."""
    if isinstance(stream, tf.data.Dataset):
        first = next(iter(stream.take(1)), None)
        check = _assert_no_infinity if missing else _assert_finite
        stream = stream.map(check, num_parallel_calls=tf.data.AUTOTUNE)
    elif isinstance(stream, keras.utils.Sequence):
        first = stream[0] if len(stream) else None
        stream = _Packed(stream)
    else:
        first = next(stream, None)
        batches = itertools.chain([first], stream)
        # Keras knows generators by their type.
        stream = (pack(*unpack(batch)) for batch in batches)
    if first is None:
        raise ValueError(f"{name}: got an empty {type(stream).__name__}, wanted batches")
    return stream, first


def _assert_finite(*batch: Any) -> Any:
    """The batch, packed, once its numbers have been found to be finite."""
    x, y, weight = unpack(batch)
    _check_finite((x, y, weight), "NaN or infinite")
    return pack(x, y, weight)


def _assert_no_infinity(*batch: Any) -> Any:
    """As `_assert_finite`, but for NaN in x and y, not in the weights."""
    x, y, weight = unpack(batch)
    _check_finite(weight, "NaN or infinite")
    known = tf.nest.map_structure(_without_nan, (x, y))
    _check_finite(known, "infinite")
    return pack(x, y, weight)


def _check_finite(parts: Any, kind: str) -> None:
    for values in tf.nest.flatten(parts):
        if values is not None and values.dtype.is_floating:
            message = f"x: got {kind} values in a batch of the dataset"
            tf.debugging.assert_all_finite(values, message)


def _without_nan(values: Any) -> Any:
    if values is None or not values.dtype.is_floating:
        return values
    return tf.where(tf.math.is_nan(values), tf.zeros([], values.dtype), values)
