"""JSON for what a layer is made of: numbers, arrays, distributions and bijectors of TFP by name.

Nothing is pickled, and nothing outside TFP is looked up when a file is read.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfb, tfd = tfp.bijectors, tfp.distributions

#: of the arrays that a file holds
DTYPES = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
DTYPES |= {"bool", "bfloat16", "float16", "float32", "float64", "complex64", "complex128"}

_TFP = {"distribution": (tfd, tfd.Distribution), "bijector": (tfb, tfb.Bijector)}


def to_json(argument: str, value: Any) -> Any:
    """A value as JSON.

    Raises:
      TypeError: if it is not made of numbers, arrays, and distributions and bijectors of TFP.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tf.DType):
        return {"tfpvae": "dtype", "name": value.name}
    if isinstance(value, (list, tuple)):
        return [to_json(argument, item) for item in value]
    if isinstance(value, Mapping):
        return {name: to_json(argument, item) for name, item in value.items()}
    if isinstance(value, (np.ndarray, tf.Tensor)) and not isinstance(value, tf.Variable):
        array = np.asarray(value)
        return {"tfpvae": "array", "dtype": array.dtype.name, "values": array.tolist()}
    for kind, (module, base) in _TFP.items():
        if isinstance(value, base) and getattr(module, type(value).__name__, 0) is type(value):
            arguments = signature(type(value))
            parameters = {
                name: to_json(argument, item)
                for name, item in value.parameters.items()
                if name in arguments and item is not arguments[name].default
            }
            return {"tfpvae": kind, "name": type(value).__name__, "parameters": parameters}
    raise TypeError(
        f"{argument}: got {value!r}, which a file cannot hold: wanted numbers, arrays, or "
        "distributions and bijectors of TFP made of them (variables belong into a prior block)"
    )


def from_json(value: Any) -> Any:
    """The value that `to_json` wrote."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get("tfpvae")
    if kind is None:
        return {name: from_json(item) for name, item in value.items()}
    if kind == "array":
        if value["dtype"] not in DTYPES:  # "U1000000000" takes gigabytes a string.
            raise ValueError(f"config: got an array of dtype {value['dtype']!r}, wanted numbers")
        return np.array(value["values"], value["dtype"])
    if kind == "dtype":
        return tf.as_dtype(value["name"])
    if kind not in _TFP:
        raise ValueError(f"config: got {kind!r}, wanted one of {sorted(_TFP)}")
    module, base = _TFP[kind]
    found = getattr(module, value["name"], None)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(f"config: got {value['name']!r}, wanted a {kind} of TFP")
    return found(**from_json(value["parameters"]))


def signature(made: type) -> dict[str, Any]:
    """The constructor's arguments; of the class itself TFP shows `*args, **kwargs` at times."""
    return dict(list(inspect.signature(made.__init__).parameters.items())[1:])  # type: ignore[misc]
