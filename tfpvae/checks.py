"""Checks of what users pass in: numbers, counts, layers of the right Keras, data in the support."""

import itertools
import math
import numbers
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


def refuse_keras3(argument: str, value: Any) -> None:
    """Raise TypeError for layers, models and tensors of Keras 3, which tf_keras cannot use."""
    for item in tf.nest.flatten(value):
        if any(base.__module__.split(".")[0] == "keras" for base in type(item).__mro__):
            raise TypeError(
                f"{argument}: got {type(item).__name__} of Keras 3 (the package `keras`, which is "
                "also tf.keras), wanted tf_keras: `import tf_keras as keras`"
            )


def positive_integer(argument: str, value: Any) -> int:
    """The value as an int; TypeError or ValueError unless it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{argument}: got {value!r}, wanted a positive integer")
    if value < 1:
        raise ValueError(f"{argument}: got {value}, wanted a positive integer")
    if value >= 2**31:
        raise ValueError(f"{argument}: got {value}, wanted an integer of 32 bits")
    return int(value)


def flag(argument: str, value: Any) -> bool:
    """The value as a bool; TypeError unless it is one: "no" would count as True."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument}: got {value!r}, wanted True or False")
    return bool(value)


def path(argument: str, value: Any) -> pathlib.Path:
    """The value as a path; TypeError or ValueError if it is none."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{argument}: got {value!r}, wanted a path")
    if "\0" in os.fspath(value):
        raise ValueError(f"{argument}: got {value!r}, wanted a path without null bytes")
    return pathlib.Path(value)


def one_of(value: Any, choices: Iterable[str]) -> bool:
    """Whether the value is a string, and one of the choices."""
    return isinstance(value, str) and value in choices


def labels(argument: str, values: Any) -> np.ndarray:
    """Labels, numbers or names, as an array; TypeError or ValueError if they are none."""
    try:
        array = np.asarray(values)
        _ = {*array.ravel().tolist()}
    except ValueError as error:
        raise ValueError(f"{argument}: got rows of different lengths ({error})") from None
    except TypeError as error:
        raise TypeError(f"{argument}: got {values!r:.60}, wanted labels ({error})") from None
    return array


def mapping(argument: str, value: Any) -> dict[str, Any]:
    """The value as a dictionary by names, empty for None; TypeError unless it is a mapping."""
    if not isinstance(value, Mapping | None):
        raise TypeError(f"{argument}: got {value!r}, wanted a dictionary")
    return dict(value or {})


def sequence(argument: str, value: Any, wanted: str) -> list[Any]:
    """The items of the value as a list; TypeError if it is a string, or has none."""
    items = isinstance(value, Iterable) and not isinstance(value, (str, bytes, tf.Tensor, type))
    if not items or np.ndim(value if isinstance(value, np.ndarray) else [0]) < 1:
        raise TypeError(f"{argument}: got {value!r}, wanted {wanted}")
    try:
        return list(value)
    except TypeError:  # Distributions say that they have items.
        raise TypeError(f"{argument}: got {value!r}, wanted {wanted}") from None


def made(argument: str, make: Callable[[Any], Any], value: Any) -> Any:
    """What Keras makes of a name or a configuration; an error names the argument."""
    try:
        return make(value)
    except (AttributeError, TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{argument}: got {value!r}, wanted what Keras knows by that: {error}") from None


def fit_settings(settings: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for arguments of Keras's `fit` that it does not check."""
    epochs, share = settings.get("epochs", 1), settings.get("validation_split")
    verbose = settings.get("verbose", "auto")
    if not isinstance(verbose, (int, str, np.integer)):
        raise TypeError(f"verbose: got {verbose!r}, wanted 'auto', 0, 1 or 2")
    if isinstance(epochs, bool) or not isinstance(epochs, (int, np.integer)):
        raise TypeError(f"epochs: got {epochs!r}, wanted an integer")
    if not 0 <= epochs < 2**31:
        raise ValueError(f"epochs: got {epochs}, wanted an integer >= 0 of 32 bits")
    if share is not None:
        number("validation_split", share, "a number >= 0 and < 1", lambda part: 0 <= part < 1)
    for name in ("batch_size", "validation_batch_size"):
        if settings.get(name) is not None:
            positive_integer(name, settings[name])


def number(argument: str, value: Any, wanted: str, allowed: Callable[[float], bool]) -> float:
    """The value as a float; TypeError if it is no number, ValueError if it is not allowed."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument}: got {value!r}, wanted {wanted}")
    if not allowed(float(value)):
        raise ValueError(f"{argument}: got {value!r}, wanted {wanted}")
    return float(value)


def positive_number(argument: str, value: Any) -> float:
    """The value as a float; TypeError or ValueError unless it is finite and positive."""
    return number(argument, value, "a positive number", lambda given: 0.0 < given < math.inf)


def as_array(argument: str, values: Any) -> np.ndarray:
    """Numbers as an array, with at least one row.

    Raises:
      TypeError: if they are no real numbers.
      ValueError: if there are none, or the rows differ in length.
    """
    refuse_keras3(argument, values)
    if values is None:
        raise TypeError(f"{argument}: got None, wanted an array or a tf.data.Dataset")
    if _is_frame(values):
        values = _numbers_of_frame(argument, values)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{argument}: got rows of different lengths ({error})") from None
    except (TypeError, tf.errors.OpError) as error:
        raise TypeError(
            f"{argument}: got {type(values).__name__}, wanted an array ({error})"
        ) from None
    if array.dtype == object and hasattr(values, "dtypes") and _numeric(array):
        array = array.astype("float64")  # A pandas.Series.
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(
            f"{argument}: got {_kind(values, array)}, wanted real numbers: an array, or a "
            "tf.data.Dataset, keras.utils.Sequence or generator of batches"
        )
    if array.ndim == 0:
        raise ValueError(f"{argument}: got a single number, wanted an array [N, ...]")
    if 0 in array.shape:
        raise ValueError(f"{argument}: got an empty array of shape {array.shape}, wanted examples")
    return array


def column_names(values: Any) -> list[str] | None:
    """The names of the columns of a data frame; None for what is none, or has numbers for names."""
    names = list(values.columns) if _is_frame(values) else []
    return names if names and all(isinstance(name, str) for name in names) else None


def check_columns(argument: str, values: Any, known: list[str] | None) -> None:
    """Raise ValueError if a data frame has other columns than those known, or in another order."""
    given = column_names(values)
    if given is None or not known or given == known:
        return
    if sorted(given) == sorted(known):
        raise ValueError(
            f"{argument}: got columns {_some(given)}, wanted them in the order {_some(known)}: "
            f"take {argument}[names] with the model's names of columns"
        )
    missing, more = (
        [name for name in a if name not in b] for a, b in ((known, given), (given, known))
    )
    found = [f"no columns {_some(missing)}"] * bool(missing) + [f"columns {_some(more)}"] * bool(
        more
    )
    raise ValueError(
        f"{argument}: got {' and '.join(found) or f'columns {_some(given)}'}, wanted "
        f"{_some(known)}, those that the model knows; an array of numbers has no names"
    )


def _some(names: list[str]) -> str:
    """The list, or the first of a long one."""
    return str(names) if len(names) <= 12 else f"[{str(names[:12])[1:-1]}, ... {len(names)} in all]"


def _is_frame(values: Any) -> bool:
    """Whether this is a data frame of pandas, which is not imported for that."""
    return all(hasattr(values, name) for name in ("columns", "dtypes", "items"))


def _numbers_of_frame(argument: str, frame: Any) -> np.ndarray:
    """A data frame as an array, with NaN for what is missing."""
    kinds = {dtype.kind if isinstance(dtype, np.dtype) else "O" for dtype in frame.dtypes}
    if kinds <= {*"iuf"} or kinds == {"b"}:
        return np.asarray(frame)
    columns, others = [], []
    for name, column in frame.items():
        if column.dtype.kind in "biuf" or (column.dtype == object and _numeric(np.asarray(column))):
            columns.append(column.to_numpy("float64", na_value=np.nan))
        else:
            others.append(f"{name!r} of type {column.dtype}")
    if others:
        raise TypeError(
            f"{argument}: got columns that are no numbers, {', '.join(others[:5])}, wanted numbers "
            "in all: make classes numbers, as pandas.get_dummies does, or leave the columns out"
        )
    return np.column_stack(columns) if columns else np.zeros(frame.shape)


def check_values(layer: Any, values: Any, argument: str) -> None:
    """Check that data have the shape of a layer's events, are finite, and lie in the support.

    Args:
      layer: a `DistributionLayer`.
      values: array `[N, *event_shape]`.
      argument: the name that an error gives to `values`.

    Raises:
      TypeError, ValueError: naming the argument, what came, and what was wanted.
    """
    values = as_array(argument, values)
    check_shape(layer, values, argument)
    witnesses = _witnesses(values) if _elementwise(layer) else values
    if not np.isfinite(witnesses).all():
        raise ValueError(
            f"{argument}: got NaN or infinite values, wanted finite numbers for {layer.title()}: "
            "remove or fill them"
        )
    reason = _refusal(layer.support(), witnesses)
    if reason is not None:
        low, high = witnesses.min(), witnesses.max()
        raise ValueError(
            f"{argument}: got values from {low:g} to {high:g}, outside the support of "
            f"{layer.title()}{reason}" + _scale_hint(layer, argument, witnesses)
        )


def check_shape(layer: Any, values: np.ndarray, argument: str) -> None:
    """Raise ValueError unless the rows of the values have the shape of a layer's events."""
    if values.shape[1:] != layer.event_shape:
        wanted = ", ".join(map(str, ("N", *layer.event_shape))) + ("," * (not layer.event_shape))
        raise ValueError(
            f"{argument}: got shape {values.shape}, wanted ({wanted}), "
            f"because {layer.title()} has event_shape {layer.event_shape}"
            + _reshape_hint(argument, values.shape, layer.event_shape)
        )


def check_parameters(layer: Any) -> None:
    """Raise ValueError if no value of the free parameters goes with the layer's fixed ones."""
    reasons: list[str] = []
    if next(_possible(layer, 1.0, reasons), None) is None:
        raise ValueError(
            f"{layer.name}: {layer.title()} cannot be built with the fixed parameters "
            f"{layer.fixed}" + (reasons[0] if reasons else "")
        )


def _possible(layer: Any, spread: float, reasons: list[str]) -> Iterator[Any]:
    """Distributions of a layer whose parameters TFP accepts, from the middle to the extremes.

    Each free parameter takes every value of a grid, also rounded (NegativeBinomial wants whole
    trials); of more than three parameters one is moved at a time. A distribution that refuses its
    own draw does not count.
    """
    for steps in ((0.0, spread, -spread), (0.0, math.log1p(spread), -math.log1p(spread))):
        for grid in _grid(steps, len(layer.sizes)):
            params = tf.repeat(tf.constant(grid, layer.dtype), layer.sizes)
            for rounded in (False, True):
                try:
                    parameters = layer.constrained(params)
                    if rounded:
                        parameters = {
                            k: tf.maximum(tf.round(v), 1.0) for k, v in parameters.items()
                        }
                    distribution = layer.build_distribution(parameters, validate_args=True)
                    distribution.log_prob(distribution.sample(seed=[0, 0]))
                except (tf.errors.OpError, ValueError) as error:
                    reasons.append(_reason(error))
                else:
                    yield distribution
                    break


def _grid(steps: tuple[float, float, float], size: int) -> Iterator[tuple[float, ...]]:
    """The points whose coordinates are steps, beginning with the first step for all."""
    if size <= 3:
        yield from itertools.product(steps, repeat=size)
        return
    first, *others = steps
    yield (first,) * size
    for i, step in itertools.product(range(size), others):
        yield (first,) * i + (step,) + (first,) * (size - i - 1)


def _refusal(layer: Any, values: np.ndarray) -> str | None:
    """Why the distribution refuses the values, None if it accepts them.

    Where the support depends on the parameters (Uniform's `high`), training may still move them,
    so only what is refused at every one of several parameter values is refused.
    """
    reason = None
    for distribution in _possible(layer, 1.0 + float(np.abs(values).max()), []):
        try:
            for rows in np.array_split(values, math.ceil(len(values) / 4096)):
                if not np.isfinite(distribution.log_prob(tf.cast(rows, layer.dtype))).all():
                    raise ValueError("the density there is zero or infinite")
        except (tf.errors.OpError, ValueError) as error:
            reason = reason or _reason(error)
        else:
            return None
    return reason


def _elementwise(layer: Any) -> bool:
    """Whether every number of an event is scored by itself."""
    distribution = layer.new(tf.zeros([layer.params_size], layer.dtype))
    while hasattr(distribution, "reinterpreted_batch_ndims"):  # tfd.Independent
        distribution = distribution.distribution
    return distribution.event_shape.rank == 0 and not isinstance(distribution, tfd.FiniteDiscrete)


def _witnesses(values: np.ndarray) -> np.ndarray:
    """At most three rows that a density with independent entries refuses if it refuses any row.

    The support of a number is an interval, or the integers in it: the least and the largest value
    of each entry, and one with a fraction, stand for all.
    """
    rows = [values.min(axis=0), values.max(axis=0)]
    if values.dtype.kind == "f":
        for part in np.array_split(values, math.ceil(len(values) / 4096)):
            fraction = part != np.floor(part)
            if fraction.any():
                first = fraction.argmax(axis=0)
                rows.append(np.take_along_axis(part, first[None], axis=0)[0])
                break
    return np.stack(rows).astype(np.float64)


def _scale_hint(layer: Any, argument: str, witnesses: np.ndarray) -> str:
    low, high = witnesses.min(), witnesses.max()
    level = 255 if 128 <= high <= 255 else high
    support = layer.support()
    if low < 0 or high <= 1 or _refusal(support, witnesses / level) is not None:
        return ""
    if _refusal(support, np.full_like(witnesses, 0.5)) is not None:
        return ""  # Labels and counts are not scaled.
    return f"; scale the data to [0, 1]: {argument} / {level:g}"


def _reshape_hint(argument: str, shape: tuple[int, ...], event_shape: tuple[int, ...]) -> str:
    if len(shape) and math.prod(shape[1:]) == math.prod(event_shape):
        return f"; reshape it: {argument}.reshape({', '.join(map(str, (-1, *event_shape)))})"
    return ""


def _reason(error: Exception) -> str:
    """TFP's own words in parentheses, where they are words."""
    text = getattr(error, "message", None) or str(error)
    text = re.sub(r"`[^`]*`", "values", text.replace("b'", "\n"), flags=re.DOTALL)
    lines = [line.strip(" .'\"") for line in text.split("\n")]
    words = [line for line in lines if line and not re.search(r"Expected '|\{\{|\[", line)]
    return f" ({words[0]})" if words else ""


def _numeric(array: np.ndarray) -> bool:
    return all(isinstance(item, (int, float, np.number)) for item in array.flat)


def _kind(values: Any, array: np.ndarray) -> str:
    kinds = {"U": "strings", "S": "strings", "c": "complex numbers", "M": "dates"}
    name = kinds.get(array.dtype.kind, f"objects of dtype {array.dtype}")
    return name if array.ndim else f"{type(values).__name__} {values!r:.60}"
