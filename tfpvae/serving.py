"""Models for programs that have TensorFlow alone: SavedModels with named signatures, and TFLite."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tfpvae import (
    blocks,
    checks,
    distributions,
    execution,
    flows,
    layers,
    likelihoods,
    noise,
    saving,
)

#: What draws take: the same seed, the same numbers.
SEED = tf.TensorSpec([2], tf.int32)

_NUMBER = tf.TensorSpec([], tf.int32)
_LACKING_OPS = r"^[\w ]+ ops: (.+)$"  # In an error of TFLite's converter.

# Their parameters are those of other distributions, which they push through networks.
_OPAQUE = (flows.FlowDistribution, distributions.Implicit, distributions.Chain)


class Signature(NamedTuple):
    """What a program can call: a function from named tensors to named tensors.

    Attributes:
      function: takes the inputs by name and returns a dict of tensors.
      inputs: the `tf.TensorSpec` of each.
    """

    function: Callable[..., dict[str, Any]]
    inputs: dict[str, Any]

    def traced(self) -> Any:
        """The function as a TensorFlow graph, for inputs of any number of rows."""

        def traced(**inputs: Any) -> dict[str, Any]:
            with execution._EAGER_CONTEXT:  # As in `execution.Traced`.
                return self.function(**inputs)

        specs = {
            name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in self.inputs.items()
        }
        return tf.function(traced, autograph=False).get_concrete_function(**specs)


def rows(event_shape: Any, dtype: Any) -> Any:
    """The spec of a batch of any number of rows of this shape."""
    return tf.TensorSpec([None, *event_shape], dtype)


def numeric(argument: str, dtype: Any) -> Any:
    """A `tf.DType` of numbers; TypeError if it is none."""
    with contextlib.suppress(TypeError):
        found = tf.as_dtype(dtype)
        if found.is_floating or found.is_integer or found.is_bool:
            return found
    raise TypeError(f"{argument}: got {dtype!r}, wanted a type of numbers, as 'uint8' or 'float32'")


def of_vae(
    model: Any, data: Mapping[str, Any], given: Mapping[str, Any], num_samples: int
) -> dict[str, Signature]:
    """The signatures of a `VAE`.

    They call what its methods call, with the seed of the first batch of a method: so the numbers
    are those of the methods, for as many rows as a method takes in one batch.

    Args:
      model: a `VAE`, built.
      data: the specs of what its methods take as data, by name: x, and perhaps y.
      given: the specs of what z is accompanied by, by name: nothing, or y.
      num_samples: the draws of z that `elbo` is the mean over.
    """

    def encode(seed: Any, **data: Any) -> dict[str, Any]:
        with noise.fixed(_of_first_batch(seed)):
            # In the order of `reconstruct`: its z is this z.
            q, _ = model._encode(model._prepared(_together(data)), False)
            samples = model._codes(q.sample(seed=noise.next_seed()))
            return {"mean": model._codes(model._mean(q)), "samples": samples} | _parameters(q)

    def decode(z: Any, y: Any = None) -> dict[str, Any]:
        p = _decoded(model, z, y)
        with noise.fixed(0):
            return {"mean": tf.convert_to_tensor(p)} | _parameters(p)

    def sample(seed: Any, num: Any = None, y: Any = None) -> dict[str, Any]:
        seed = _of_first_batch(seed)
        if y is None:
            return {"samples": model._sample(tf.zeros([num, 0]), 1, seed)}
        return {"samples": model._sample_given(y, 1, seed)}

    def reconstruct(seed: Any, **data: Any) -> dict[str, Any]:
        return {"mean": model._reconstruct(_together(data), 1, _of_first_batch(seed))}

    def elbo(seed: Any, **data: Any) -> dict[str, Any]:
        total = model._elbo(_together(data), num_samples, _of_first_batch(seed))
        return {"elbo": total / num_samples}

    drawn = {"seed": SEED}
    signatures = {
        "encode": Signature(encode, {**data, **drawn}),
        "decode": Signature(decode, {"z": _codes_of(model), **given}),
        "sample": Signature(sample, {**(given or {"num": _NUMBER}), **drawn}),
        "reconstruct": Signature(reconstruct, {**data, **drawn}),
    }
    if blocks.has_density(model.encoder) and blocks.has_density(model.prior):
        signatures["elbo"] = Signature(elbo, {**data, **drawn})
    return signatures


def decoder_of(model: Any, given: Mapping[str, Any]) -> Signature:
    """The signature of the decoder of a `VAE`: from z to the mean of x alone."""

    def decode(z: Any, y: Any = None) -> dict[str, Any]:
        p = _decoded(model, z, y)
        with noise.fixed(0):
            return {"mean": tf.convert_to_tensor(p)}

    return Signature(decode, {"z": _codes_of(model), **given})


def save(filepath: Any, signatures: Mapping[str, Signature], overwrite: bool = False) -> None:
    """Write functions as a SavedModel, all of it or nothing.

    It holds graphs and the variables that they read: no Keras layers, and no code of ours or of
    TensorFlow Probability.

    Args:
      filepath: a folder that is made; with `overwrite` it may be a SavedModel that is there.
      signatures: what can be called, by name.
      overwrite: whether to replace a SavedModel.

    Raises:
      FileExistsError: if there is something else, or without `overwrite` anything.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     double = Signature(lambda x: {"twice": 2 * x}, {"x": rows((3,), "float32")})
      ...     save(f"{folder}/double", {"double": double})
      ...     loaded = tf.saved_model.load(f"{folder}/double")
      >>> loaded.signatures["double"](x=tf.ones((1, 3)))["twice"].numpy()
      array([[2., 2., 2.]], dtype=float32)
    """
    path = checks.path("filepath", filepath)
    _check_target(path, overwrite, tf.saved_model.contains_saved_model(path))
    traced = {name: signature.traced() for name, signature in signatures.items()}
    module = _module(traced.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    with saving.atomic(path) as whole:
        tf.saved_model.save(module, str(whole), signatures=traced)


def save_tflite(filepath: Any, signature: Signature, overwrite: bool = False) -> None:
    """Write a function as a TFLite file, of TFLite's own operations only.

    Args:
      filepath: of the file.
      signature: the function.
      overwrite: whether to replace a file that is there.

    Raises:
      FileExistsError: if it is there, and `overwrite` is not given, or it is a folder.
      ValueError: if TFLite lacks operations of the function: it names them.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     double = Signature(lambda x: {"twice": 2 * x}, {"x": rows((3,), "float32")})
      ...     save_tflite(f"{folder}/double.tflite", double)
      ...     pathlib.Path(folder, "double.tflite").read_bytes()[4:8]
      b'TFL3'
    """
    path = checks.path("filepath", filepath)
    _check_target(path, overwrite, path.is_file())
    traced = signature.traced()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], _module([traced]))
    try:
        content = converter.convert()
    except Exception as error:  # TensorFlow's class of it has no public name.
        lacking = ", ".join(re.findall(_LACKING_OPS, str(error), re.MULTILINE))
        if not lacking:
            raise
        raise ValueError(
            f"filepath: got {str(filepath)!r}, but TFLite has none of the operations {lacking} of "
            "the decoder's mean, wanted a likelihood or layers without them; a SavedModel takes "
            "all: give a name that does not end in .tflite. tf.lite.TFLiteConverter."
            "from_saved_model makes a file of it with tf.lite.OpsSet.SELECT_TF_OPS, for runtimes "
            "that have TensorFlow's operations, too"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with saving.atomic(path) as whole:
        whole.write_bytes(content)


def _of_first_batch(seed: Any) -> Any:
    """The seed that `execution.Batched` makes of a method's seed for its first batch."""
    return tf.random.fold_in(seed, 0)


def _together(data: Mapping[str, Any]) -> Any:
    """The data as the model's functions of batches take them."""
    return [data["x"], data["y"]] if "y" in data else data["x"]


def _codes_of(model: Any) -> Any:
    return rows(model.prior.event_shape, model.prior.dtype)


def _decoded(model: Any, z: Any, y: Any) -> Any:
    """The likelihood at z, as `likelihood` of the model has it."""
    with noise.fixed(0):
        return model._decode(z, False, None if y is None else model._condition(y))


def _parameters(distribution: Any) -> dict[str, Any]:
    """The parameters of a block's distribution `[B, ...]` under tfd's names, also fixed ones."""
    inner = getattr(distribution, "tensor_distribution", distribution)
    source = blocks.source(distribution)
    if source is None or isinstance(inner, _OPAQUE):
        return {}
    block, params = source
    batch = tf.shape(params)[:1]
    fixed = {
        name: tf.broadcast_to(value, tf.concat([batch, tf.shape(value)], 0))
        for name, value in _fixed(block).items()
    }
    return fixed | block.constrained(params)


def _fixed(block: Any) -> dict[str, Any]:
    """The fixed parameters of a block that are numbers, and those of the blocks it is made of."""
    if isinstance(block, likelihoods.Columns):
        return {
            f"{name}.{parameter}": value
            for name, column in block.columns.items()
            for parameter, value in _fixed(column).items()
        }
    if isinstance(block, layers.DistributionLayer):
        values = block._fixed_parameters()
        return {name: value for name, value in values.items() if tf.is_tensor(value)}
    component = getattr(block, "component", None)
    return {} if component is None else _fixed(component)


def _module(functions: Any) -> Any:
    """What a SavedModel is made from: the variables that the functions read, and no more."""
    module = tf.Module()
    found = {id(variable): variable for f in functions for variable in f.graph.variables}
    module.read = list(found.values())
    return module


def _check_target(path: pathlib.Path, overwrite: bool, replaceable: bool) -> None:
    """Raise FileExistsError if something is there, unless it may be replaced."""
    if path.exists() and not (overwrite and replaceable):
        raise FileExistsError(
            f"filepath: got {str(path)!r}, which is there, "
            + (
                "wanted a new name, or overwrite=True to replace it"
                if replaceable
                else "and is nothing that export writes there, wanted a new name"
            )
        )
