"""Block: the base of every distribution layer, from unconstrained numbers to a distribution."""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import checks, noise, serialization

tfd = tfp.distributions

CONVERSIONS = ("sample", "mean", "mode", "stddev", "variance")


class _Record(threading.local):
    made: list[Any] | None = None


_record = _Record()


@contextlib.contextmanager
def recorded() -> Iterator[list[Any]]:
    """The distributions that blocks make inside: pairs of a block and its free parameters."""
    outer, _record.made = _record.made, []
    try:
        yield _record.made
    finally:
        _record.made = outer


class Parameter(NamedTuple):
    """A parameter of the distribution that the layer's input provides."""

    name: str
    constraint: Any  # tfb.Bijector: unconstrained numbers -> values the distribution allows
    shape: tuple[int, ...]  # of the unconstrained numbers of one event

    @property
    def size(self) -> int:
        """How many unconstrained numbers there are."""
        return math.prod(self.shape)


class _ParamsSize:
    """`Block.params_size(event_shape, ...)` on the class as in tfp.layers, a number on a layer."""

    def __get__(self, layer: Any, owner: type) -> Any:
        if layer is not None:
            return sum(parameter.size for parameter in layer._free)
        # A name keeps this throwaway layer from advancing Keras's automatic names.
        return lambda *args, **kwargs: owner(*args, name="params_size", **kwargs).params_size


class Block(tfp.layers.DistributionLambda):
    """A Keras layer that cuts its input into parameters and makes a distribution of them.

    A subclass says which parameters there are and what is made of them: it defines
    `free_parameters` and `build_distribution`, and calls `complete` at the end of its `__init__`.

    Args:
      event_shape: shape of one event, a tuple or a size.
      conversion: what other layers see.
      **kwargs: of any Keras layer.
    """

    params_size = _ParamsSize()

    #: the arguments that are blocks themselves
    parts: ClassVar[tuple[str, ...]] = ()

    #: whether `log_prob` is known
    has_density: ClassVar[bool] = True

    def __init__(
        self,
        event_shape: Any,
        conversion: "Conversion",
        **kwargs: Any,
    ) -> None:
        event_shape = as_shape("event_shape", event_shape)
        if type(kwargs.get("activity_regularizer")) is tfp.layers.KLDivergenceRegularizer:
            raise ValueError(
                "activity_regularizer: got tfp.layers.KLDivergenceRegularizer, which Keras applies "
                "twice to a distribution layer, so the KL would count double; use "
                "tfpvae.KLDivergenceRegularizer"
            )
        kwargs["dtype"] = full_precision(kwargs.get("dtype"))
        super().__init__(lambda inputs: self._distribution(inputs), conversion, **kwargs)
        self._event_shape = event_shape
        self._conversion = conversion
        # A prior with weights that sits inside the regularizer is found by Keras only as a layer's
        # attribute: without this its weights would be missing from a saved file.
        self._regularizer_prior = getattr(self.activity_regularizer, "distribution_b", None)

    def complete(self) -> None:
        """Find the free parameters and build the distribution once: mistakes show here."""
        with tf.init_scope():
            self._free = self.free_parameters()
            self._try()

    def free_parameters(self) -> tuple[Parameter, ...]:
        """The parameters that the input provides, in their order."""
        raise NotImplementedError

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from its free parameters; `kwargs` go to its constructor."""
        raise NotImplementedError

    def title(self) -> str:
        """What errors call the layer."""
        return type(self).__name__

    @property
    def fixed(self) -> dict[str, Any]:
        """The fixed parameters, by name."""
        return {}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self._event_shape

    @property
    def conversion(self) -> "Conversion":
        """How a value of the distribution comes about."""
        return self._conversion

    @property
    def num_samples(self) -> int | None:
        """Number of draws that other layers see, None for one draw without an axis of its own."""
        return self._conversion.num_samples

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The distribution whose parameters are `inputs`."""
        checks.refuse_keras3(f"{self.name}: inputs", inputs)
        return super().__call__(inputs, *args, **kwargs)

    def check_values(self, values: Any, argument: str = "x") -> None:
        """Check that a data set has the event's shape, is finite, and lies in the support.

        Whether the distribution accepts a value is asked of TFP itself (`validate_args=True`), for
        several parameter values: data are refused when every one of them refuses.

        Args:
          values: array `[N, *event_shape]`.
          argument: the name that an error gives to `values`.

        Raises:
          ValueError: naming the argument, what came, and what was wanted.

        Example:
          >>> from tfpvae import likelihoods
          >>> likelihoods.Poisson(3).check_values(np.array([[0.0, 2.0, 5.0]]))
        """
        checks.check_values(self, values, argument)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON, with distributions and bijectors by name."""
        # Not Lambda's and DistributionLambda's, which pickle functions.
        config = keras.layers.Layer.get_config(self)
        config |= {
            "event_shape": list(self._event_shape),
            "convert_to_tensor_fn": self._conversion.name,
        }
        if self._conversion.num_samples is not None:
            config["num_samples"] = self._conversion.num_samples
        if self.activity_regularizer is not None:
            config["activity_regularizer"] = keras.saving.serialize_keras_object(
                self.activity_regularizer
            )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The layer that a configuration describes."""
        del custom_objects  # Keras has put them into scope.
        made = {
            name: _deserialized(config[name])
            for name in ("activity_regularizer", *cls.parts)
            if name in config
        }
        rest = {name: value for name, value in config.items() if name not in made}
        return cls(**serialization.from_json(rest), **made)

    def _distribution(self, inputs: Any) -> Any:
        """The distribution, from the layer's input."""
        params = tf.convert_to_tensor(inputs, self.dtype)
        if _record.made is not None:
            _record.made.append((self, self.constrained(params)))
        distribution = self.new(params)
        # For `rebatch`; past TFP's __setattr__, which would track the layer as a part of it.
        object.__setattr__(distribution, "_tfpvae_source", (self, params))
        return distribution

    @property
    def free(self) -> tuple[Parameter, ...]:
        """The parameters that the input provides, in their order."""
        return self._free

    @property
    def sizes(self) -> list[int]:
        """How many unconstrained numbers each free parameter takes, in their order."""
        return [parameter.size for parameter in self._free]

    def new(self, params: Any, **kwargs: Any) -> Any:
        """The distribution, from unconstrained numbers; `kwargs` go to its constructor."""
        return self.build_distribution(self.constrained(params), **kwargs)

    def constrained(self, params: Any) -> dict[str, Any]:
        """The free parameters by name, from unconstrained numbers."""
        pieces = zip(self._free, self._split(params), strict=True)
        return {parameter.name: parameter.constraint(piece) for parameter, piece in pieces}

    def support(self) -> "Block":
        """The layer whose distribution says which values are allowed."""
        return self

    def _split(self, params: Any) -> list[Any]:
        """One tensor `[..., *shape]` for each free parameter."""
        if not self._free:
            return []
        if self._is_spatial(params.shape):
            # A convolution's output: the pixels' axes lead, the parameters share the last one.
            lead = len(self.event_shape) - 1
            sizes = [math.prod(parameter.shape[lead:]) for parameter in self._free]
        elif params.shape.rank and params.shape[-1] == self.params_size:
            lead, sizes = 0, [parameter.size for parameter in self._free]
        else:
            raise ValueError(
                f"{self.name}: got parameters of shape {tuple(params.shape)}, wanted "
                f"(..., {self.params_size}) for {self.title()}: "
                + (" + ".join(f"{p.name} {p.size}" for p in self._free) or "no parameters")
                + f"; put keras.layers.Dense({self.params_size}) in front of it"
                + self._spatial_hint()
            )
        batch = tf.shape(params)[: params.shape.rank - 1 - lead]
        static = params.shape[: params.shape.rank - 1 - lead]
        pieces = []
        for parameter, piece in zip(self._free, tf.split(params, sizes, axis=-1), strict=True):
            piece = tf.reshape(piece, tf.concat([batch, parameter.shape], 0))
            piece.set_shape(static + parameter.shape)
            pieces.append(piece)
        return pieces

    def _spatial_shape(self) -> tuple[int, ...] | None:
        """Shape of a convolution's output that holds the parameters of one event."""
        pixels = self.event_shape[:-1]
        if not pixels or any(p.shape[: len(pixels)] != pixels for p in self._free):
            return None
        return (*pixels, sum(math.prod(p.shape[len(pixels) :]) for p in self._free))

    def _is_spatial(self, shape: Any) -> bool:
        wanted = self._spatial_shape()
        if wanted is None or shape.rank <= len(wanted):  # A batch axis comes first.
            return False
        return tuple(shape[-len(wanted) :]) == wanted

    def _spatial_hint(self) -> str:
        shape = self._spatial_shape()
        if shape is None:
            return ""
        return f", or a convolution that puts out (..., {', '.join(map(str, shape))})"

    def _try(self) -> None:
        """Build the distribution once, so that a mistake shows where the layer is made."""
        try:
            distribution = self.new(tf.zeros([self.params_size], self.dtype))
        except (TypeError, ValueError, tf.errors.OpError) as error:
            if str(error).startswith(f"{self.name}: "):
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"{self.name}: {self.title()} cannot be built from "
                f"{[p.name for p in self._free]} and fixed {sorted(self.fixed)}: {error}"
            ) from error
        if self.fixed:
            checks.check_parameters(self)
        if (distribution.batch_shape, distribution.event_shape) != ((), self.event_shape):
            raise ValueError(
                f"{self.name}: event_shape: got {self.event_shape}, but {self.title()} with these "
                f"parameters has events of shape {tuple(distribution.event_shape)} and a batch of "
                f"shape {tuple(distribution.batch_shape)}"
            )


def _deserialized(config: Any) -> Any:
    """The object, or the list of objects, that a configuration describes."""
    if isinstance(config, (list, tuple)):  # Which a SavedModel does not resolve by itself.
        return [_deserialized(item) for item in config]
    return keras.saving.deserialize_keras_object(config)


def independent(distribution: Any, ndims: int, **kwargs: Any) -> Any:
    """The distribution with its last `ndims` batch axes as axes of the event."""
    if ndims <= 0:
        return distribution
    if hasattr(distribution, "independent"):  # A relaxation keeps what its draws were made from.
        return distribution.independent(ndims, **kwargs)
    return tfd.Independent(distribution, ndims, **kwargs)


def source(distribution: Any) -> Any:
    """The block that made a distribution, and the parameters it made it from; None if no block."""
    inner = getattr(distribution, "tensor_distribution", distribution)
    return getattr(inner, "_tfpvae_source", None)


def log_prob_through(distribution: Any, z: Any) -> Any:
    r"""The log_prob of z with the gradient through z alone, not through the parameters.

    $$ \log q_{\bar\phi}(z), \qquad \bar\phi \text{ held fixed} $$

    It holds all of them fixed, also the weights of networks inside the distribution.
    """
    fixed = tf.stop_gradient(z)
    with tf.GradientTape() as tape:
        tape.watch(fixed)
        log_prob = distribution.log_prob(fixed)
    slope = tf.stop_gradient(tape.gradient(log_prob, fixed))
    events = range(log_prob.shape.rank, z.shape.rank)
    return tf.stop_gradient(log_prob) + tf.reduce_sum(slope * (z - fixed), axis=[*events])


def rebatch(distribution: Any, batch_shape: Any, batch_ndims: int) -> Any:
    """A layer's distribution with its batch axis `[S * B]` cut into `batch_shape`, `[S, B]`.

    `tfd.BatchReshape` would neither broadcast data `[B, ...]` nor take a batch of unknown size.
    """
    made_by = source(distribution)
    if made_by is None:
        raise TypeError(
            f"decoder: got one that ends in a {type(distribution).__name__}, wanted a block of "
            "tfpvae.likelihoods, which several draws of z for each example need"
        )
    layer, params = made_by
    reshaped = tf.reshape(params, tf.concat([batch_shape, tf.shape(params)[1:]], 0))
    reshaped.set_shape([None] * batch_ndims + params.shape[1:])
    return layer(reshaped)


def repeated(distribution: Any, num: Any) -> Any:
    """A layer's distribution of batch shape `[S, 1]` as that of shape `[S, num]`."""
    layer, params = source(distribution)
    return layer(tf.repeat(params, num, axis=1))


class Conversion:
    """The value of a distribution that other layers see.

    Args:
      name: one of CONVERSIONS, or the method of `tfd.Distribution` of that name.
      num_samples: with `"sample"`, how many draws, None for one without an axis of its own.
    """

    def __init__(self, name: Any, num_samples: int | None) -> None:
        for known in CONVERSIONS:
            if name is getattr(tfd.Distribution, known):
                name = known
        if name not in CONVERSIONS:
            raise ValueError(
                f"convert_to_tensor_fn: got {name!r}, wanted one of {', '.join(CONVERSIONS)} "
                "(a function would have to be pickled)"
            )
        if num_samples is not None:
            num_samples = checks.positive_integer("num_samples", num_samples)
            if name != "sample":
                raise ValueError(
                    f"num_samples: got {num_samples} with convert_to_tensor_fn={name!r}, wanted "
                    "it with 'sample' only"
                )
        self.name, self.num_samples = name, num_samples

    def __call__(self, distribution: Any) -> Any:
        """The value."""
        if self.name == "sample":
            shape = () if self.num_samples is None else self.num_samples
            return distribution.sample(shape, seed=noise.next_seed())
        return getattr(distribution, self.name)()


def as_shape(argument: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple: `3` is `(3,)`."""
    sizes = (value,) if isinstance(value, (int, np.integer)) else value
    try:
        shape = tuple(int(size) for size in sizes)
        exact = all(size == given for size, given in zip(shape, sizes, strict=True))
    except (TypeError, ValueError):
        exact = False
    if not exact or isinstance(value, (bool, str)) or min(shape, default=1) < 1:
        raise ValueError(f"{argument}: got {value!r}, wanted a size or a tuple of sizes, all >= 1")
    if math.prod(shape) >= 2**31:
        raise ValueError(f"{argument}: got {value!r}, wanted fewer numbers than 2^31")
    return shape


def check_network(argument: str, network: Any) -> None:
    """Raise TypeError unless this is a layer or model of tf_keras."""
    checks.refuse_keras3(argument, network)
    if not isinstance(network, keras.layers.Layer):
        raise TypeError(f"{argument}: got {network!r}, wanted a tf_keras layer or model")


@contextlib.contextmanager
def floatx(dtype: Any) -> Iterator[None]:
    """Let networks that are built inside take data of this type: Keras would round them to floatx.

    Args:
      dtype: the type; or the configuration of a block, for that of its densities.
    """
    outer = keras.backend.floatx()
    if isinstance(dtype, dict):
        dtype = dtype.get("config", {}).get("dtype")
    keras.backend.set_floatx(full_precision(dtype))
    try:
        yield
    finally:
        keras.backend.set_floatx(outer)


def build_network(argument: str, network: Any, size: int, wanted: int) -> None:
    """Build a network for vectors of one size; ValueError unless it maps them to another."""
    with tf.init_scope(), floatx(None):
        try:
            if isinstance(network, keras.Sequential) and not network.built:
                network.build((None, size))  # For any batch size at once.
            value = tf.convert_to_tensor(network(tf.zeros((2, size), keras.backend.floatx())))
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(
                f"{argument}: got one that does not take vectors of {size} numbers: {error}"
            ) from error
    if tuple(value.shape) != (2, wanted):
        shape = ", ".join(map(str, ("N", *value.shape[1:])))
        raise ValueError(
            f"{argument}: got one that puts out shape ({shape}), wanted (N, {wanted}): end it in "
            f"keras.layers.Dense({wanted})"
        )


def build_generator(
    network: Any, context_size: int, event_shape: tuple[int, ...], noise_size: Any, noise: Any
) -> int:
    """Check and build the network of a block without a density; the size of its noise."""
    size = math.prod(event_shape)
    if noise_size is not None:
        noise_size = checks.positive_integer("noise_size", noise_size)
    if not checks.one_of(noise, ("normal", "uniform")):
        raise ValueError(f"noise: got {noise!r}, wanted 'normal' or 'uniform'")
    check_network("network", network)
    build_network("network", network, context_size + (noise_size or size), size)
    return noise_size or size


def has_density(network: Any) -> bool:
    """Whether no block in a network, or a block itself, is one without a density."""
    layers = (network, *network.submodules)
    return all(layer.has_density for layer in layers if isinstance(layer, Block))


def full_precision(dtype: Any) -> str:
    """The dtype of densities: half precision loses the nats that training is about."""
    if dtype is None:
        policy = keras.mixed_precision.global_policy()
    elif isinstance(dtype, keras.mixed_precision.Policy):
        policy = dtype
    elif isinstance(dtype, dict):
        policy = keras.saving.deserialize_keras_object(dtype)
    else:
        name = dtype if isinstance(dtype, str) else tf.as_dtype(dtype).name
        policy = keras.mixed_precision.Policy(name)
    return "float64" if policy.variable_dtype == "float64" else "float32"
