"""DistributionLayer: any tfd distribution class as a Keras layer."""

import contextlib
import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, serialization

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tfpvae")
class DistributionLayer(blocks.Block):
    r"""A Keras layer that turns unconstrained numbers into a `tfd.Distribution`.

    The layer cuts its input into one piece for each parameter of the distribution, maps each piece
    into the values that the parameter may take by the bijector that TFP names for it
    (`parameter_properties()`), and builds the distribution; the axes of `event_shape` become event
    axes (`tfd.Independent`):

    $$ p(x \mid t) = \prod_i f\bigl(x_i;\ b_1(t_{1i}),\ b_2(t_{2i}),\ \dots\bigr) $$

    A class that does not describe its parameters works, too: those named in `constraints` come from
    the input, each of the event's shape.

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
      num_classes: for distributions that TFP sizes by it (Categorical and its kin, also
        OrderedLogistic and StoppingRatioLogistic, which have one cutpoint fewer).
      sample_dtype: of the draws of a discrete distribution that leaves it open, TFP's choice if
        None.
      fixed: fixed parameters whose names the layer's own arguments have taken:
        `fixed={"distribution": tfd.Normal(0.0, 1.0)}` of LambertWDistribution.
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
        fixed: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        distribution = _distribution_class(distribution)
        arguments = _arguments(distribution)
        named = {*arguments} - {"name", "dtype"}  # Those two are Keras's.
        hidden = checks.mapping("fixed", fixed)
        fixed = {name: kwargs.pop(name) for name in list(kwargs) if name in named}
        _refuse_unknown(distribution, named, (*kwargs, *({*hidden} - named)))
        conversion = blocks.Conversion(convert_to_tensor_fn, num_samples)
        super().__init__(event_shape, conversion, **kwargs)
        self._distribution_class = distribution
        self._constraints = checks.mapping("constraints", constraints)
        if sample_dtype is not None and "dtype" not in arguments:
            raise TypeError(
                f"sample_dtype: got {sample_dtype!r}, but the dtype of tfd.{distribution.__name__} "
                "is that of its parameters"
            )
        if num_classes is not None:
            num_classes = checks.positive_integer("num_classes", num_classes)
        self._num_classes = num_classes
        self._sample_dtype = sample_dtype
        self._fixed = fixed | hidden
        self._hidden = sorted(hidden)
        for name, value in (*self._fixed.items(), ("constraints", self._constraints)):
            serialization.to_json(f"{self.name}: {name}", value)  # What a file cannot hold.
        self.complete()

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON, with distributions and bijectors by name."""
        config = super().get_config()
        fixed = serialization.to_json(self.name, self._fixed)
        if self._hidden:
            config["fixed"] = {name: fixed.pop(name) for name in self._hidden}
        config |= fixed
        if "distribution" in serialization.signature(type(self)):
            config["distribution"] = _distribution_name(self._distribution_class)
        if self._constraints:
            config["constraints"] = serialization.to_json(
                f"{self.name}: constraints", self._constraints
            )
        if self._num_classes is not None:
            config["num_classes"] = self._num_classes
        if self._sample_dtype is not None:
            config["sample_dtype"] = self._sample_dtype
        return config

    @property
    def fixed(self) -> dict[str, Any]:
        """The fixed parameters, by name."""
        return dict(self._fixed)

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from its free parameters; `kwargs` go to its constructor."""
        arguments = parameters | self._fixed_parameters() | kwargs
        distribution = self._distribution_class(**arguments)
        ndims = len(self.event_shape) - distribution.event_shape.rank
        return blocks.independent(distribution, ndims, **kwargs)

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """The parameters that the input provides, in TFP's order."""
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
        replaced = {
            _quantity(name)
            for name in named
            if name in properties and not properties[name].is_preferred
        }
        free = []
        for name, property_ in properties.items():
            wanted = name in self._constraints or (
                property_.is_preferred and _quantity(name) not in replaced
            )
            if name in self._fixed or not wanted or not _is_tensor_parameter(property_):
                continue
            constraint = self._constraints.get(name) or self._default_constraint(name, property_)
            shape = self._shape(name, property_, constraint)
            free.append(blocks.Parameter(name, constraint, shape))
        return tuple(free)

    def _properties(self) -> Any:
        try:
            return self._distribution_class.parameter_properties(
                dtype=tf.as_dtype(self.dtype), num_classes=self._num_classes
            )
        except NotImplementedError:  # The class leaves its description to us.
            return {name: tfp.util.ParameterProperties() for name in self._constraints}

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
            shape = tf.TensorShape(self._value_shape(name, property_))
            return tuple(int(size) for size in constraint.inverse_event_shape(shape))
        except _NO_SHAPE as error:
            hint = ", num_classes" if self._num_classes is None else ""
            raise ValueError(
                f"{self.name}: the shape of {name!r} does not follow from "
                f"event_shape={self.event_shape}{hint} for {self.title()}: fix it by name "
                f"({name}=...) or give what is missing ({error})"
            ) from None

    def _value_shape(self, name: str, property_: Any) -> tuple[int, ...]:
        """Shape of the values of a parameter of one event."""
        shape, ndims = self._described_shape(name, property_), property_.event_ndims
        if len(shape) < ndims:
            raise ValueError(f"it has {ndims} axes, not {len(shape)}")
        return shape[: self._batch_ndims()] + shape[len(shape) - ndims :]

    def _batch_ndims(self) -> int:
        """How many batch axes the parameters of one event have.

        They share them, so the least counts: to some (Multinomial's `total_count`) TFP gives the
        axes of the event besides.
        """
        found = [len(self.event_shape)]
        for name, property_ in self._properties().items():
            if _is_tensor_parameter(property_):
                with contextlib.suppress(*_NO_SHAPE):
                    shape = self._described_shape(name, property_)
                    found.append(len(shape) - property_.event_ndims)
        return min(ndims for ndims in found if ndims >= 0)

    def _described_shape(self, name: str, property_: Any) -> tuple[int, ...]:
        if name == "cutpoints" and self._num_classes is not None:
            # They part the classes. TFP counts one too many for OrderedLogistic and does not count
            # those of StoppingRatioLogistic.
            return (*self.event_shape, self._num_classes - 1)
        return tuple(int(size) for size in property_.shape_fn(self.event_shape))

    def _fixed_parameters(self) -> dict[str, Any]:
        properties = self._properties()
        values = {}
        arguments = _arguments(self._distribution_class)
        choice = arguments.get("dtype")
        if self._sample_dtype is not None:
            values["dtype"] = tf.as_dtype(self._sample_dtype)
        elif isinstance(choice, tf.DType) and choice.is_floating:
            values["dtype"] = tf.as_dtype(self.dtype)
        if "dimension" in {*arguments} - {*properties} and self.event_shape:
            values["dimension"] = self.event_shape[-1]  # of LKJ and its like
        for name, value in self._fixed.items():
            property_ = properties.get(name)
            if property_ is None or value is None or not _is_tensor_parameter(property_):
                values[name] = value
                continue
            value = value if tf.is_tensor(value) else np.asarray(value)  # not through float32
            values[name] = value = tf.cast(value, self.dtype)
            try:
                shape = self._value_shape(name, property_)
            except _NO_SHAPE:
                continue  # TFP judges it.
            values[name] = self._broadcast(name, value, shape)
        return values

    def _broadcast(self, name: str, value: Any, shape: tuple[int, ...]) -> Any:
        try:
            return tf.broadcast_to(value, shape)
        except (tf.errors.InvalidArgumentError, ValueError):
            raise ValueError(
                f"{self.name}: {name}: got shape {tuple(value.shape)}, wanted a value that "
                f"broadcasts to {shape} for {self.title()}"
            ) from None

    def title(self) -> str:
        """What errors call the layer: `Bernoulli`, or `DiagonalNormal (tfd.Normal)`."""
        block, distribution = type(self).__name__, self._distribution_class.__name__
        return block if block == distribution else f"{block} (tfd.{distribution})"


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


def _arguments(distribution: Any) -> dict[str, Any]:
    """The constructor's arguments with their defaults, also those that go through `**kwargs`."""
    signature = serialization.signature(distribution)
    arguments = {
        name: argument.default
        for name, argument in signature.items()
        if argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
    }
    if len(arguments) == len(signature):
        return arguments
    with contextlib.suppress(NotImplementedError):
        required = dict.fromkeys(distribution.parameter_properties(), inspect.Parameter.empty)
        return required | {"validate_args": False} | arguments
    return arguments


def _quantity(name: str) -> str:
    """What a parameter gives, whichever way: `rate` and `log_rate`, `probs` and `logits`."""
    return re.sub("log_", "", re.sub("logits|probits", "probs", name))


# How TFP says that the shape of a parameter does not follow from the event's.
_NO_SHAPE = (NotImplementedError, TypeError, ValueError, IndexError)

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


def _refuse_unknown(distribution: Any, named: set[str], given: Iterable[str]) -> None:
    known = sorted(named - {"validate_args", "allow_nan_stats"})
    for name in given:
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
