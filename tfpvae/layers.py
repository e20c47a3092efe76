"""DistributionLayer: any tfd distribution class as a Keras layer, the base of every block."""

import contextlib
import difflib
import inspect
import itertools
import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

tfb, tfd = tfp.bijectors, tfp.distributions

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
        `tfd.Distribution` works too, and can be saved once it is registered with
        `keras.saving.register_keras_serializable`.
      event_shape: shape of one event, a tuple or a size.
      convert_to_tensor_fn: what other layers see: `"sample"`, `"mean"`, `"mode"`, `"stddev"` or
        `"variance"`, or the `tfd.Distribution` method of that name.
      num_samples: with `"sample"`, how many draws: the value is `[num_samples, ..., *event_shape]`;
        None draws one and adds no axis.
      constraints: bijectors by parameter name, in place of TFP's own choice.
      num_classes: for distributions that TFP sizes by it (Categorical and its kin).
      sample_dtype: of the draws of a discrete distribution that leaves it open, the layer's own if
        None: with TFP's int32, NumPy data between 0 and 1 would be cut to 0 without a word.
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
        signature = _signature(distribution)
        fixed = {name: kwargs.pop(name) for name in list(kwargs) if name in _named(signature)}
        _refuse_unknown(distribution, signature, kwargs)
        if type(kwargs.get("activity_regularizer")) is tfp.layers.KLDivergenceRegularizer:
            raise ValueError(
                "activity_regularizer: got tfp.layers.KLDivergenceRegularizer, which Keras applies "
                "twice to a distribution layer, so the KL would count double; use "
                "tfpvae.KLDivergenceRegularizer"
            )
        kwargs["dtype"] = _full_precision(kwargs.get("dtype"))
        super().__init__(lambda inputs: self._distribution(inputs), conversion, **kwargs)
        self._distribution_class = distribution
        self._event_shape = event_shape
        self._conversion = conversion
        self._constraints = dict(constraints or {})
        self._num_classes = num_classes
        self._sample_dtype = sample_dtype
        self._fixed = {
            name: to_json(f"{self.name}: {name}", value) for name, value in fixed.items()
        }
        self._given = fixed
        self._free = self._free_parameters()
        # A prior with weights that sits inside the regularizer is found by Keras only as a layer's
        # attribute: without this its weights would be missing from a saved file.
        self._regularizer_prior = getattr(self.activity_regularizer, "distribution_b", None)
        with tf.init_scope():
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
        refuse_keras3(f"{self.name}: inputs", inputs)
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
        values = np.asarray(values)
        if values.shape[1:] != self.event_shape:
            raise ValueError(
                f"{argument}: got shape {values.shape}, wanted {_text(('N', *self.event_shape))}, "
                f"because {self._title()} has event_shape {self.event_shape}"
                + _reshape_hint(argument, values.shape, self.event_shape)
            )
        witnesses = _witnesses(values) if self._elementwise() else values
        if not np.isfinite(witnesses).all():
            raise ValueError(
                f"{argument}: got NaN or infinite values, wanted finite numbers for "
                f"{self._title()}: remove or fill them"
            )
        reason = self._support()._refusal(witnesses)
        if reason:
            low, high = witnesses.min(), witnesses.max()
            raise ValueError(
                f"{argument}: got values from {low:g} to {high:g}, outside the support of "
                f"{self._title()} ({reason})" + self._scale_hint(argument, witnesses)
            )

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON, with distributions and bijectors by name."""
        # Not Lambda's and DistributionLambda's, which pickle functions.
        config = keras.layers.Layer.get_config(self)
        config |= {
            "event_shape": list(self._event_shape),
            "convert_to_tensor_fn": self._conversion.name,
            **self._fixed,
        }
        if "distribution" in _signature(type(self)):
            config["distribution"] = _distribution_name(self._distribution_class)
        if self._conversion.num_samples is not None:
            config["num_samples"] = self._conversion.num_samples
        if self._constraints:
            config["constraints"] = to_json(f"{self.name}: constraints", self._constraints)
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
        return cls(**from_json(rest), activity_regularizer=regularizer)

    def _distribution(self, inputs: Any) -> Any:
        """The distribution, from the layer's input."""
        params = tf.convert_to_tensor(inputs, self.dtype)
        distribution = self._new(params)
        # For `rebatch`; past TFP's __setattr__, which would track the layer as a part of it.
        object.__setattr__(distribution, "_tfpvae_source", (self, params))
        return distribution

    def _new(self, params: Any, **kwargs: Any) -> Any:
        """The distribution, from unconstrained numbers; `kwargs` go to its constructor."""
        pieces = zip(self._free, self._split(params), strict=True)
        free = {parameter.name: parameter.constraint(piece) for parameter, piece in pieces}
        distribution = self._distribution_class(**free, **self._fixed_parameters(), **kwargs)
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
                f"{self.name}: got parameters of shape {_text(params.shape)}, wanted "
                f"(..., {self.params_size}) for {self._title()}: "
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
        return wanted is not None and tuple(shape[-len(wanted) :]) == wanted

    def _spatial_hint(self) -> str:
        shape = self._spatial_shape()
        return f", or a convolution that puts out (..., {_text(shape)[1:]}" if shape else ""

    def _free_parameters(self) -> tuple[_Parameter, ...]:
        """The parameters that the input provides, in TFP's order."""
        signature = _signature(self._distribution_class)
        named = {*self._given, *self._constraints}
        properties = self._properties()
        for name in self._constraints:
            if name not in properties or name in self._given:
                raise ValueError(
                    f"{self.name}: constraints: got {name!r}, wanted one of the free parameters "
                    f"{sorted(set(properties) - set(self._given))} of {self._title()}"
                )
        # `logits` or `probs`: naming the one that TFP does not prefer takes the other one's place.
        replaced = any(name in properties and not properties[name].is_preferred for name in named)
        free = []
        for name, property_ in properties.items():
            optional = signature[name].default is None
            wanted = name in self._constraints or (
                property_.is_preferred and not (replaced and optional)
            )
            if name in self._given or not wanted or not _is_tensor_parameter(property_):
                continue
            constraint = self._constraints.get(name) or self._default_constraint(name, property_)
            shape = self._parameter_shape(name, property_)
            free.append(_Parameter(name, constraint, _static(constraint, shape)))
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
                f"{self.name}: {self._title()} has no constraint for its parameter {name!r}: fix "
                f"it by name ({name}=...) or give constraints={{{name!r}: a tfb bijector}}"
            ) from None

    def _parameter_shape(self, name: str, property_: Any) -> tuple[int, ...]:
        """Shape of a parameter of one event, after the constraint."""
        try:
            return tuple(int(size) for size in property_.shape_fn(self.event_shape))
        except (NotImplementedError, TypeError, ValueError, IndexError) as error:
            hint = ", num_classes" if self._num_classes is None else ""
            raise ValueError(
                f"{self.name}: the shape of {name!r} does not follow from "
                f"event_shape={self.event_shape}{hint} for {self._title()}: fix it by name "
                f"({name}=...) or give what is missing ({error})"
            ) from None

    def _fixed_parameters(self) -> dict[str, Any]:
        properties = self._properties()
        values = {}
        if "dtype" in _signature(self._distribution_class):
            values["dtype"] = tf.as_dtype(self._sample_dtype or self.dtype)
        for name, value in self._given.items():
            property_ = properties.get(name)
            if property_ is None or value is None or not _is_tensor_parameter(property_):
                values[name] = value
                continue
            values[name] = value = tf.cast(value, self.dtype)
            with contextlib.suppress(NotImplementedError):
                shape = tuple(property_.shape_fn(self.event_shape))
                try:
                    values[name] = tf.broadcast_to(value, shape)
                except (tf.errors.InvalidArgumentError, ValueError):
                    raise ValueError(
                        f"{self.name}: {name}: got shape {_text(value.shape)}, wanted a value that "
                        f"broadcasts to {_text(shape)} for {self._title()}"
                    ) from None
        return values

    def _try(self) -> None:
        """Build the distribution once, so that a mistake shows where the layer is made."""
        try:
            distribution = self._new(tf.zeros([self.params_size], self.dtype))
        except (TypeError, ValueError, tf.errors.OpError) as error:
            if str(error).startswith(f"{self.name}: "):
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"{self.name}: {self._title()} cannot be built from "
                f"{[p.name for p in self._free]} and fixed {sorted(self._given)}: {error}"
            ) from error
        if (distribution.batch_shape, distribution.event_shape) != ((), self.event_shape):
            raise ValueError(
                f"{self.name}: event_shape: got {self.event_shape}, but {self._title()} with these "
                f"parameters has events of shape {_text(distribution.event_shape)} and a batch of "
                f"shape {_text(distribution.batch_shape)}"
            )

    def _elementwise(self) -> bool:
        """Whether every number of an event is scored by itself."""
        distribution = self._new(tf.zeros([self.params_size], self.dtype))
        while isinstance(distribution, tfd.Independent):
            distribution = distribution.distribution
        return distribution.event_shape.rank == 0

    def _support(self) -> "DistributionLayer":
        """The layer whose distribution says which values are allowed."""
        return self

    def _refusal(self, values: np.ndarray) -> str | None:
        """Why the distribution refuses the values, None if it accepts them.

        Where the support depends on the parameters (Uniform's `high`), training may still move
        them, so only what is refused at every one of several parameter values is refused.
        """
        spread = 1.0 + float(np.abs(values).max())
        reason = None
        for seed in range(8):
            params = tf.random.stateless_normal([self.params_size], [seed, 0], dtype=self.dtype)
            try:
                distribution = self._new(params * (spread if seed else 0.0), validate_args=True)
                distribution.log_prob(distribution.sample(seed=[seed, 1]))
            except (tf.errors.OpError, ValueError):
                continue  # These parameters are not possible ones: they say nothing.
            try:
                for rows in np.array_split(values, math.ceil(len(values) / 4096)):
                    distribution.log_prob(tf.cast(rows, self.dtype))
            except (tf.errors.OpError, ValueError) as error:
                reason = reason or _first_line(error)
            else:
                return None
        return reason

    def _scale_hint(self, argument: str, witnesses: np.ndarray) -> str:
        low, high = witnesses.min(), witnesses.max()
        level = 255 if 128 <= high <= 255 else high
        if low >= 0 and high > 1 and self._support()._refusal(witnesses / level) is None:
            return f"; scale the data to [0, 1]: {argument} / {level:g}"
        return ""

    def _title(self) -> str:
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
            check_num_samples(num_samples)
            if name != "sample":
                raise ValueError(
                    f"num_samples: got {num_samples} with convert_to_tensor_fn={name!r}, wanted "
                    "it with 'sample' only"
                )
            num_samples = int(num_samples)
        self.name, self.num_samples = name, num_samples

    def __call__(self, distribution: Any) -> Any:
        if self.name == "sample":
            shape = () if self.num_samples is None else self.num_samples
            return distribution.sample(shape, seed=next_seed())
        return getattr(distribution, self.name)()


# Noise: outside of `noise(seed)` blocks draw as TFP does; inside, from that seed alone.


class _Scope(threading.local):  # The replicas of tf.distribute are threads.
    seeds: Iterator[Any] | None = None


_scope = _Scope()


@contextlib.contextmanager
def noise(seed: Any) -> Iterator[None]:
    """Make the blocks that are called inside draw from `seed`: same seed, same draws.

    Args:
      seed: an integer, or an integer tensor of shape [2].

    Example:
      >>> layer = DistributionLayer("Normal", (2,))
      >>> with noise(1):
      ...     a = tf.convert_to_tensor(layer(tf.zeros([3, 4])))
      >>> with noise(1):
      ...     b = tf.convert_to_tensor(layer(tf.zeros([3, 4])))
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
    """The seed of the next draw, None outside of `noise`: TFP's own generator draws then."""
    return None if _scope.seeds is None else next(_scope.seeds)


def as_seed(seed: Any) -> Any:
    """An int32 tensor of shape [2] that TFP's and TensorFlow's stateless samplers take.

    Args:
      seed: an integer of at most 64 bits, or an integer tensor of shape [2].

    Raises:
      TypeError: if it is anything else.
    """
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        return tf.constant(np.array([int(seed) % 2**64], np.uint64).view(np.int32))
    if isinstance(seed, (tf.Tensor, tf.Variable, np.ndarray, list, tuple)):
        tensor = tf.convert_to_tensor(seed)
        if tensor.shape == (2,) and tensor.dtype.is_integer:
            return tf.cast(tensor, tf.int32)
    raise TypeError(f"seed: got {seed!r}, wanted an integer or an integer tensor of shape [2]")


# What a layer is made of, checked.


def _distribution_class(distribution: Any) -> Any:
    if isinstance(distribution, str):
        found = getattr(tfd, distribution, None) or keras.saving.get_registered_object(distribution)
        if not (inspect.isclass(found) and issubclass(found, tfd.Distribution)):
            near = difflib.get_close_matches(distribution, dir(tfd), 1)
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
    return keras.saving.get_registered_name(distribution)


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


def check_num_samples(num_samples: Any) -> None:
    """Raise TypeError or ValueError unless it is a positive integer."""
    if isinstance(num_samples, bool) or not isinstance(num_samples, (int, np.integer)):
        raise TypeError(f"num_samples: got {num_samples!r}, wanted a positive integer")
    if num_samples < 1:
        raise ValueError(f"num_samples: got {num_samples}, wanted a positive integer")


def _full_precision(dtype: Any) -> str:
    """The dtype of densities: half precision loses the nats that training is about."""
    if dtype is None:
        policy = keras.mixed_precision.global_policy()
    elif isinstance(dtype, keras.mixed_precision.Policy):
        policy = dtype
    elif isinstance(dtype, dict):
        policy = keras.saving.deserialize_keras_object(dtype)
    else:
        policy = keras.mixed_precision.Policy(tf.as_dtype(dtype).name)
    return "float64" if policy.variable_dtype == "float64" else "float32"


def _signature(made: type) -> dict[str, Any]:
    """The constructor's arguments; of the class itself TFP shows `*args, **kwargs` at times."""
    return dict(list(inspect.signature(made.__init__).parameters.items())[1:])  # type: ignore[misc]


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


def refuse_keras3(argument: str, value: Any) -> None:
    """Raise TypeError for layers, models and tensors of Keras 3, which tf_keras cannot use."""
    for item in tf.nest.flatten(value):
        if any(base.__module__.split(".")[0] == "keras" for base in type(item).__mro__):
            raise TypeError(
                f"{argument}: got {type(item).__name__} of Keras 3 (the package `keras`, which is "
                "also tf.keras), wanted tf_keras: `import tf_keras as keras`"
            )


def _is_tensor_parameter(property_: Any) -> bool:
    return (
        property_.is_tensor
        and not property_.specifies_shape
        and isinstance(property_.event_ndims, int)
    )


def _static(constraint: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(size) for size in constraint.inverse_event_shape(tf.TensorShape(shape)))


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


def _reshape_hint(argument: str, shape: tuple[int, ...], event_shape: tuple[int, ...]) -> str:
    if len(shape) and math.prod(shape[1:]) == math.prod(event_shape):
        return f"; reshape it: {argument}.reshape({_text((-1, *event_shape))[1:-1]})"
    return ""


def _first_line(error: Exception) -> str:
    text = getattr(error, "message", None) or str(error)
    lines = [line.strip(" .'\"") for line in text.replace("b'", "\n").split("\n")]
    return next((line for line in lines if line and "Expected 'tf.Tensor" not in line), text)


def _text(shape: Any) -> str:
    """A shape as Python writes it, None for an unknown size."""
    sizes = [str(size) for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


# JSON for what a layer is made of: numbers, arrays, and TFP's own distributions and bijectors by
# name. Nothing is pickled, and nothing outside TFP is looked up when a file is read.

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
            signature = _signature(type(value))
            parameters = {
                name: to_json(argument, item)
                for name, item in value.parameters.items()
                if name in signature and item is not signature[name].default
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
        return np.array(value["values"], value["dtype"])
    if kind == "dtype":
        return tf.as_dtype(value["name"])
    module, base = _TFP[kind]
    found = getattr(module, value["name"], None)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(f"config: got {value['name']!r}, wanted a {kind} of TFP")
    return found(**from_json(value["parameters"]))
