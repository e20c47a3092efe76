"""DistributionLayer: any tfd distribution class as a Keras layer, the base of every block."""

import contextlib
import difflib
import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import checks, noise, serialization

tfd = tfp.distributions

CONVERSIONS = ("sample", "mean", "mode", "stddev", "variance")


class _Parameter(NamedTuple):
    """A distribution parameter that the layer's input provides."""

    name: str
    constraint: Any  # tfb.Bijector: unconstrained numbers -> values the distribution allows
    shape: tuple[int, ...]  # of the unconstrained numbers of one event

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class _ParamsSize:
    """`Block.params_size(event_shape, ...)` on the class as in tfp.layers, a number on a layer."""

    def __get__(self, layer: Any, owner: type) -> Any:
        if layer is not None:
            return sum(parameter.size for parameter in layer._free)
        # A name keeps this throwaway layer from advancing Keras's automatic names.
        return lambda *args, **kwargs: owner(*args, name="params_size", **kwargs).params_size


@keras.saving.register_keras_serializable("tfpvae")
class DistributionLayer(tfp.layers.DistributionLambda):
    r"""A Keras layer that turns unconstrained numbers into a `tfd.Distribution`.

    The layer cuts its input into one piece for each parameter of the distribution, maps each piece
    into the values that the parameter may take by the bijector that TFP names for it
    (`parameter_properties()`), and builds the distribution; the axes of `event_shape` become event
    axes (`tfd.Independent`):

    $$ p(x \mid t) = \prod_i f\bigl(x_i;\ b_1(t_{1i}),\ b_2(t_{2i}),\ \dots\bigr) $$

    Calling it returns the distribution. Other layers and `tf.convert_to_tensor` see a value of it,
    see `convert_to_tensor_fn`. The configuration is JSON, so a model of such layers loads in
    Keras's safe mode. Whatever the precision policy, the distribution computes in float32
    (in float64 under the policy float64).

    Shapes: input `[..., params_size]`, the parameters one after the other, or, for images, the
    output of a convolution `[..., H, W, k * C]`, the channels of one parameter after those of the
    other; `log_prob` is `[...]`, in nats.

    Args:
      distribution: a class of `tfp.distributions` or its name. Another subclass of
        `tfd.Distribution` works too, and can be saved once it is registered:
        `keras.saving.get_custom_objects()["Name"] = Name`.
      event_shape: shape of one event, a tuple or a size.
      convert_to_tensor_fn: what other layers see: `"sample"`, `"mean"`, `"mode"`, `"stddev"` or
        `"variance"`, or the `tfd.Distribution` method of that name.
      num_samples: with `"sample"`, how many draws: the value is `[num_samples, ..., *event_shape]`;
        None draws one and adds no axis.
      constraints: bijectors by parameter name, in place of TFP's own choice.
      num_classes: for distributions that TFP sizes by it (Categorical and its kin).
      sample_dtype: of the draws of a discrete distribution that leaves it open, TFP's choice if
        None.
      **kwargs: fixed parameters of the distribution by name (`total_count=16.`), and the arguments
        of any Keras layer (`name`, `dtype`, `activity_regularizer`, ...).

    Raises:
      TypeError: for an unknown argument, a parameter that cannot be saved, Keras 3 inputs.
      ValueError: for an unknown distribution, parameters of the wrong size, shapes that do not fit.

    Example:
      >>> layer = DistributionLayer("NegativeBinomial", event_shape=(784,))
      >>> layer.params_size
      1568
      >>> layer(tf.zeros([2, 1568])).log_prob(tf.ones([2, 784])).shape
      TensorShape([2])
    """

    params_size = _ParamsSize()

    def __init__(
        self,
        distribution: Any,
        event_shape: Any = (),
        *,
        convert_to_tensor_fn: Any = "sample",
        num_samples: int | None = None,
        constraints: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        sample_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        distribution = _distribution_class(distribution)
        event_shape = _shape("event_shape", event_shape)
        conversion = _Conversion(convert_to_tensor_fn, num_samples)
        signature = serialization.signature(distribution)
        fixed = {name: kwargs.pop(name) for name in list(kwargs) if name in _named(signature)}
        _refuse_unknown(distribution, signature, kwargs)
        if type(kwargs.get("activity_regularizer")) is tfp.layers.KLDivergenceRegularizer:
            raise ValueError(
                "activity_regularizer: got tfp.layers.KLDivergenceRegularizer, which Keras applies "
                "twice to a distribution layer, so the KL would count double; use "
                "tfpvae.KLDivergenceRegularizer"
            )
        kwargs["dtype"] = full_precision(kwargs.get("dtype"))
        super().__init__(lambda inputs: self._distribution(inputs), conversion, **kwargs)
        self._distribution_class = distribution
        self._event_shape = event_shape
        self._conversion = conversion
        self._constraints = dict(constraints or {})
        if sample_dtype is not None and "dtype" not in signature:
            raise TypeError(
                f"sample_dtype: got {sample_dtype!r}, but the dtype of tfd.{distribution.__name__} "
                "is that of its parameters"
            )
        if num_classes is not None:
            num_classes = checks.positive_integer("num_classes", num_classes)
        self._num_classes = num_classes
        self._sample_dtype = sample_dtype
        self._fixed = fixed
        for name, value in (*fixed.items(), ("constraints", self._constraints)):
            serialization.to_json(f"{self.name}: {name}", value)  # What a file cannot hold.
        # A prior with weights that sits inside the regularizer is found by Keras only as a layer's
        # attribute: without this its weights would be missing from a saved file.
        self._regularizer_prior = getattr(self.activity_regularizer, "distribution_b", None)
        with tf.init_scope():
            self._free = self._free_parameters()
            self._try()

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self._event_shape

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
          >>> DistributionLayer("Poisson", (3,)).check_values(np.array([[0.0, 2.0, 5.0]]))
        """
        checks.check_values(self, values, argument)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON, with distributions and bijectors by name."""
        # Not Lambda's and DistributionLambda's, which pickle functions.
        config = keras.layers.Layer.get_config(self)
        config |= {
            "event_shape": list(self._event_shape),
            "convert_to_tensor_fn": self._conversion.name,
            **serialization.to_json(self.name, self._fixed),
        }
        if "distribution" in serialization.signature(type(self)):
            config["distribution"] = _distribution_name(self._distribution_class)
        if self._conversion.num_samples is not None:
            config["num_samples"] = self._conversion.num_samples
        if self._constraints:
            config["constraints"] = serialization.to_json(
                f"{self.name}: constraints", self._constraints
            )
        if self._num_classes is not None:
            config["num_classes"] = self._num_classes
        if self._sample_dtype is not None:
            config["sample_dtype"] = self._sample_dtype
        if self.activity_regularizer is not None:
            config["activity_regularizer"] = keras.saving.serialize_keras_object(
                self.activity_regularizer
            )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The layer that a configuration describes."""
        del custom_objects  # Keras has put them into scope.
        regularizer = keras.saving.deserialize_keras_object(config.get("activity_regularizer"))
        rest = {name: value for name, value in config.items() if name != "activity_regularizer"}
        return cls(**serialization.from_json(rest), activity_regularizer=regularizer)

    def _distribution(self, inputs: Any) -> Any:
        """The distribution, from the layer's input."""
        params = tf.convert_to_tensor(inputs, self.dtype)
        distribution = self.new(params)
        # For `rebatch`; past TFP's __setattr__, which would track the layer as a part of it.
        object.__setattr__(distribution, "_tfpvae_source", (self, params))
        return distribution

    @property
    def fixed(self) -> dict[str, Any]:
        """The fixed parameters, by name."""
        return dict(self._fixed)

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

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from its free parameters; `kwargs` go to its constructor."""
        arguments = parameters | self._fixed_parameters() | kwargs
        distribution = self._distribution_class(**arguments)
        independent_ndims = len(self.event_shape) - distribution.event_shape.rank
        if independent_ndims <= 0:
            return distribution
        return tfd.Independent(distribution, independent_ndims, **kwargs)

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

    def _free_parameters(self) -> tuple[_Parameter, ...]:
        """The parameters that the input provides, in TFP's order."""
        signature = serialization.signature(self._distribution_class)
        named = {*self._fixed, *self._constraints}
        properties = self._properties()
        for name, constraint in self._constraints.items():
            if not isinstance(constraint, tfp.bijectors.Bijector):
                raise TypeError(
                    f"{self.name}: constraints: got {constraint!r} for {name!r}, wanted a bijector "
                    "of tfp.bijectors"
                )
            if name not in properties or name in self._fixed:
                raise ValueError(
                    f"{self.name}: constraints: got {name!r}, wanted one of the free parameters "
                    f"{sorted(set(properties) - set(self._fixed))} of {self.title()}"
                )
        # `logits` or `probs`: naming the one that TFP does not prefer takes the other one's place.
        replaced = any(name in properties and not properties[name].is_preferred for name in named)
        free = []
        for name, property_ in properties.items():
            optional = signature[name].default is None
            wanted = name in self._constraints or (
                property_.is_preferred and not (replaced and optional)
            )
            if name in self._fixed or not wanted or not _is_tensor_parameter(property_):
                continue
            constraint = self._constraints.get(name) or self._default_constraint(name, property_)
            free.append(_Parameter(name, constraint, self._shape(name, property_, constraint)))
        return tuple(free)

    def _properties(self) -> Any:
        return self._distribution_class.parameter_properties(
            dtype=tf.as_dtype(self.dtype), num_classes=self._num_classes
        )

    def _default_constraint(self, name: str, property_: Any) -> Any:
        try:
            return property_.default_constraining_bijector_fn()
        except NotImplementedError:
            raise ValueError(
                f"{self.name}: {self.title()} has no constraint for its parameter {name!r}: fix "
                f"it by name ({name}=...) or give constraints={{{name!r}: a tfb bijector}}"
            ) from None

    def _shape(self, name: str, property_: Any, constraint: Any) -> tuple[int, ...]:
        """Shape of the unconstrained numbers of a parameter of one event."""
        try:
            shape = tf.TensorShape([int(size) for size in property_.shape_fn(self.event_shape)])
            return tuple(int(size) for size in constraint.inverse_event_shape(shape))
        except (NotImplementedError, TypeError, ValueError, IndexError) as error:
            hint = ", num_classes" if self._num_classes is None else ""
            raise ValueError(
                f"{self.name}: the shape of {name!r} does not follow from "
                f"event_shape={self.event_shape}{hint} for {self.title()}: fix it by name "
                f"({name}=...) or give what is missing ({error})"
            ) from None

    def _fixed_parameters(self) -> dict[str, Any]:
        properties = self._properties()
        values = {}
        choice = serialization.signature(self._distribution_class).get("dtype")
        if self._sample_dtype is not None:
            values["dtype"] = tf.as_dtype(self._sample_dtype)
        elif choice is not None and tf.as_dtype(choice.default or "int32").is_floating:
            values["dtype"] = tf.as_dtype(self.dtype)
        for name, value in self._fixed.items():
            property_ = properties.get(name)
            if property_ is None or value is None or not _is_tensor_parameter(property_):
                values[name] = value
                continue
            value = value if tf.is_tensor(value) else np.asarray(value)  # not through float32
            values[name] = value = tf.cast(value, self.dtype)
            with contextlib.suppress(NotImplementedError):
                shape = tuple(property_.shape_fn(self.event_shape))
                try:
                    values[name] = tf.broadcast_to(value, shape)
                except (tf.errors.InvalidArgumentError, ValueError):
                    raise ValueError(
                        f"{self.name}: {name}: got shape {tuple(value.shape)}, wanted a value that "
                        f"broadcasts to {tuple(shape)} for {self.title()}"
                    ) from None
        return values

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
                f"{[p.name for p in self._free]} and fixed {sorted(self._fixed)}: {error}"
            ) from error
        if self._fixed:
            checks.check_parameters(self)
        if (distribution.batch_shape, distribution.event_shape) != ((), self.event_shape):
            raise ValueError(
                f"{self.name}: event_shape: got {self.event_shape}, but {self.title()} with these "
                f"parameters has events of shape {tuple(distribution.event_shape)} and a batch of "
                f"shape {tuple(distribution.batch_shape)}"
            )

    def support(self) -> "DistributionLayer":
        """The layer whose distribution says which values are allowed."""
        return self

    def title(self) -> str:
        """What errors call the layer: `Bernoulli`, or `DiagonalNormal (tfd.Normal)`."""
        block, distribution = type(self).__name__, self._distribution_class.__name__
        return block if block == distribution else f"{block} (tfd.{distribution})"


def rebatch(distribution: Any, batch_shape: Any, batch_ndims: int) -> Any:
    """A layer's distribution with its batch axis `[S * B]` cut into `batch_shape`, `[S, B]`.

    `tfd.BatchReshape` would neither broadcast data `[B, ...]` nor take a batch of unknown size.
    """
    try:
        layer, params = distribution.tensor_distribution._tfpvae_source
    except AttributeError:
        raise TypeError(
            f"decoder: got one that ends in a {type(distribution).__name__}, wanted a block of "
            "tfpvae.likelihoods, which several draws of z for each example need"
        ) from None
    reshaped = tf.reshape(params, tf.concat([batch_shape, tf.shape(params)[1:]], 0))
    reshaped.set_shape([None] * batch_ndims + params.shape[1:])
    return layer(reshaped)


class _Conversion:
    """The value of a distribution that other layers see."""

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
        if self.name == "sample":
            shape = () if self.num_samples is None else self.num_samples
            return distribution.sample(shape, seed=noise.next_seed())
        return getattr(distribution, self.name)()


# What a layer is made of, checked.


def _distribution_class(distribution: Any) -> Any:
    if isinstance(distribution, str):
        found = getattr(tfd, distribution, None) or keras.saving.get_registered_object(distribution)
        if not (inspect.isclass(found) and issubclass(found, tfd.Distribution)):
            classes = [name for name in dir(tfd) if inspect.isclass(getattr(tfd, name))]
            near = difflib.get_close_matches(distribution, classes, 1)
            raise ValueError(
                f"distribution: got {distribution!r}, wanted the name of a class of "
                "tfp.distributions" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return found
    if not (inspect.isclass(distribution) and issubclass(distribution, tfd.Distribution)):
        raise TypeError(
            f"distribution: got {distribution!r}, wanted a class of tfp.distributions or its name"
        )
    return distribution


def _distribution_name(distribution: Any) -> str:
    name = distribution.__name__
    if getattr(tfd, name, None) is distribution:
        return name
    registered = keras.saving.get_registered_name(distribution)
    if keras.saving.get_registered_object(registered) is not distribution:
        raise TypeError(
            f"distribution: got {name}, which is no class of tfp.distributions: register it to "
            f'save the layer, keras.saving.get_custom_objects()["{name}"] = {name}'
        )
    return registered


def _shape(argument: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple: `3` is `(3,)`."""
    sizes = (value,) if isinstance(value, (int, np.integer)) else value
    try:
        shape = tuple(int(size) for size in sizes)
        exact = all(size == given for size, given in zip(shape, sizes, strict=True))
    except (TypeError, ValueError):
        exact = False
    if not exact or isinstance(value, (bool, str)) or min(shape, default=1) < 1:
        raise ValueError(f"{argument}: got {value!r}, wanted a size or a tuple of sizes, all >= 1")
    return shape


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


def _named(signature: Mapping[str, Any]) -> set[str]:
    """The arguments of a distribution that a layer takes by name; the other two are Keras's."""
    return {*signature} - {"name", "dtype"}


_KERAS_ARGUMENTS = {
    "activity_regularizer",
    "autocast",
    "batch_input_shape",
    "batch_size",
    "dtype",
    "input_dim",
    "input_shape",
    "name",
    "trainable",
    "weights",
}


def _refuse_unknown(distribution: Any, signature: Any, kwargs: Mapping[str, Any]) -> None:
    known = sorted(_named(signature) - {"validate_args", "allow_nan_stats"})
    for name in kwargs:
        if name not in _KERAS_ARGUMENTS:
            near = difflib.get_close_matches(name, [*known, *_KERAS_ARGUMENTS], 1)
            raise TypeError(
                f"{name}: not a parameter of tfd.{distribution.__name__} ({', '.join(known)}) and "
                "not an argument of a Keras layer" + (f"; did you mean {near[0]}?" if near else "")
            )


def _is_tensor_parameter(property_: Any) -> bool:
    return (
        property_.is_tensor
        and not property_.specifies_shape
        and isinstance(property_.event_ndims, int)
    )
