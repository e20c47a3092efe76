"""Encoder and decoder networks of the examples, and layers that prepare data for them.

The networks are deterministic Keras models. Each ends in a layer without activation, whose outputs
are the unconstrained parameters of the distribution block that follows. The architectures are those
of F. Chollet's tutorials on variational autoencoders with Keras, after Kingma and Welling,
"Auto-Encoding Variational Bayes" (2014).
"""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, noise

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tfpvae.networks")
class Binarize(keras.layers.Layer):
    r"""Stochastic binarization: grey levels are probabilities, and each pass draws other bits.

    $$ b_i \sim \operatorname{Bernoulli}(x_i / m), \qquad 0 \le x_i \le m $$

    `VAE(..., preprocessing=Binarize())` trains on bits that are drawn afresh for each batch, so
    that every epoch sees others, and encodes the same bits that it scores. They come from the
    model's own noise and repeat with its seed; outside of a model and of `noise.fixed` TFP's
    generator draws them. Data that are binary already, 0 or m, pass unchanged. NaN, which stands
    for what is missing, stays NaN.

    For evaluation, binarize the data once and pass the bits: `log_weights` and all that is made
    of it may take the draws of z in pieces, and each piece would see other bits of grey levels.
    `m * np.random.default_rng(0).binomial(1, x / m)` makes them.

    Shapes: `[B, ...]` to `[B, ...]`.

    Args:
      max_value: the level m that always becomes 1: 1 for data in [0, 1], 255 for bytes.
      **kwargs: arguments of any Keras layer.

    Raises:
      TypeError: if max_value is no number.
      ValueError: if max_value is not positive and finite, or for data outside [0, m]. Models check
        arrays before the first step; within a compiled function such values become NaN.

    Example:
      >>> with noise.fixed(0):
      ...     bits = Binarize(255)(np.array([[0, 51, 255]] * 1000, "uint8")).numpy()
      >>> np.unique(bits).tolist(), [round(float(mean), 1) for mean in bits.mean(axis=0)]
      ([0.0, 1.0], [0.0, 0.2, 1.0])

    Source: Salakhutdinov and Murray, "On the Quantitative Analysis of Deep Belief Networks", 2008.
    """

    max_value: float

    def __init__(self, max_value: float = 1.0, **kwargs: Any) -> None:
        wanted = "a positive number"
        value = checks.number("max_value", max_value, wanted, lambda m: 0 < m < math.inf)
        super().__init__(autocast=False, **kwargs)  # Half precision would round probabilities.
        self.max_value = value

    def call(self, inputs: Any) -> Any:
        """The bits, as 0.0 and 1.0."""
        x = tf.convert_to_tensor(inputs)
        x = x if x.dtype.is_floating else tf.cast(x, keras.backend.floatx())
        probs = x / tf.cast(self.max_value, x.dtype)
        outside = (probs < 0) | (probs > 1)
        if tf.executing_eagerly() and bool(tf.reduce_any(outside)):
            low, high = (
                float(extreme(tf.boolean_mask(x, ~tf.math.is_nan(x))))
                for extreme in (tf.reduce_min, tf.reduce_max)
            )
            hint = "; for bytes: Binarize(255)" if 1 == self.max_value < high <= 255 else ""
            raise ValueError(
                f"{self.name}: got values from {low:g} to {high:g}, wanted values in "
                f"[0, {self.max_value:g}]{hint}"
            )
        bits = tfd.Bernoulli(probs=probs, dtype=x.dtype).sample(seed=noise.next_seed())
        return tf.where(outside | tf.math.is_nan(probs), tf.cast(math.nan, x.dtype), bits)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"max_value": self.max_value}


@keras.saving.register_keras_serializable("tfpvae.networks")
class FillMissing(keras.layers.Layer):
    r"""The beginning of an encoder of incomplete data: a value stands where NaN stood.

    $$ y_i = \begin{cases} x_i & \text{if } x_i \text{ is observed} \\
       v & \text{if } x_i \text{ is NaN} \end{cases} $$

    The encoder tells a gap from a value v that was observed if the mask is appended: 1 where x is
    observed, 0 where it is missing, on the last axis after the values.

    Shapes: `[B, ..., C]` to `[B, ..., C]`, or with the mask to `[B, ..., 2 * C]`.

    Args:
      value: the number v.
      mask: whether to append the mask.
      **kwargs: arguments of any Keras layer.

    Raises:
      TypeError: if value is no number, or mask no bool.
      ValueError: if value is not finite.

    Example:
      >>> FillMissing(mask=True)(tf.constant([[0.5, float("nan")]])).numpy()
      array([[0.5, 0. , 1. , 0. ]], dtype=float32)

    Source: Mattei and Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete
    Data Sets", 2019 (zeros); Collier, Nazabal and Williams, "VAEs in the Presence of Missing Data",
    2020 (the mask as input).
    """

    value: float
    mask: bool

    def __init__(self, value: float = 0.0, mask: bool = False, **kwargs: Any) -> None:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise TypeError(f"value: got {value!r}, wanted a number")
        if not math.isfinite(value):
            raise ValueError(f"value: got {value}, wanted a finite number")
        if not isinstance(mask, bool):
            raise TypeError(f"mask: got {mask!r}, wanted True or False")
        super().__init__(**kwargs)
        self.value = float(value)
        self.mask = mask
        self.input_spec = keras.layers.InputSpec(min_ndim=2)  # The last axis is not the batch.

    def call(self, inputs: Any) -> Any:
        """The values, with numbers alone, and the mask if it is wanted."""
        x = tf.convert_to_tensor(inputs)
        x = x if x.dtype.is_floating else tf.cast(x, self.compute_dtype)
        missing = tf.math.is_nan(x)
        filled = tf.where(missing, tf.cast(self.value, x.dtype), x)
        return tf.concat([filled, tf.cast(~missing, x.dtype)], -1) if self.mask else filled

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape `[B, ..., C]` or `[B, ..., 2 * C]`."""
        *lead, size = tf.TensorShape(input_shape)
        return tf.TensorShape([*lead, size * 2 if self.mask and size is not None else size])

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"value": self.value, "mask": self.mask}


@keras.saving.register_keras_serializable("tfpvae.networks")
class AppendParameters(keras.layers.Layer):
    r"""Trainable numbers behind a network's outputs: parameters that are the same for every input.

    $$ y = [\,h,\ \lambda\,], \qquad \lambda \text{ a weight} $$

    Between a network and a block it makes the network give the first parameters of the distribution
    and a weight of its own each of the others: in front of `likelihoods.Normal` a mean that depends
    on z and noise that does not, as in factor analysis; in front of `posteriors.FullRankNormal` a
    covariance that does not depend on x.

    Shapes: `[B, ..., C]` to `[B, ..., C + size]`; after a convolution the numbers are the same for
    all pixels.

    Args:
      size: how many numbers.
      shared: whether they are all the same number, as the noise in probabilistic PCA.
      initializer: a Keras initializer of their first values.
      **kwargs: arguments of any Keras layer.

    Raises:
      TypeError: if size is no integer, or shared no bool.
      ValueError: if size is not positive.

    Example:
      >>> layer = AppendParameters(2, initializer="ones")
      >>> layer(tf.constant([[5.0], [7.0]])).numpy()
      array([[5., 1., 1.],
             [7., 1., 1.]], dtype=float32)
    """

    def __init__(
        self, size: int, shared: bool = False, initializer: Any = "zeros", **kwargs: Any
    ) -> None:
        # Parameters of a density are not rounded to half precision.
        kwargs["dtype"] = blocks.full_precision(kwargs.get("dtype"))
        super().__init__(**kwargs)
        self.size = checks.positive_integer("size", size)
        if not isinstance(shared, bool):
            raise TypeError(f"shared: got {shared!r}, wanted True or False")
        self.shared = shared
        self.initializer = checks.made("initializer", keras.initializers.get, initializer)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.parameters = self.add_weight(
            name="parameters", shape=(1 if shared else self.size,), initializer=self.initializer
        )

    def call(self, inputs: Any) -> Any:
        """The inputs, and behind them the numbers."""
        h = tf.cast(inputs, self.dtype)
        zeros = tf.zeros_like(tf.repeat(h[..., :1], self.size, axis=-1))
        return tf.concat([h, zeros + self.parameters], axis=-1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape `[B, ..., C + size]`."""
        *lead, size = tf.TensorShape(input_shape)
        return tf.TensorShape([*lead, None if size is None else size + self.size])

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {
            "size": self.size,
            "shared": self.shared,
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable("tfpvae.networks")
class Join(keras.layers.Layer):
    r"""The beginning of a network of two inputs, [x, y] or [z, y], that goes on with one.

    $$ [h,\ y] \to (h_1, \dots, h_C,\ y_1, \dots, y_D) $$

    Vectors are concatenated. To the pixels of an image, or the steps of a sequence, a vector y is
    appended as D channels, the same everywhere; an image y of as many pixels as its own channels.

    Shapes: `[B, C]` and `[B, ...]` of D numbers to `[B, C + D]`; `[B, *pixels, C]` and `[B, D]`, or
    `[B, *pixels, D]`, to `[B, *pixels, C + D]`.

    Args:
      flatten: whether to make vectors of both inputs, whatever their shapes.
      **kwargs: arguments of any Keras layer.

    Raises:
      TypeError: if flatten is no bool, or for anything but two inputs.
      ValueError: for an image y with other pixels.

    Example:
      >>> Join()([tf.zeros([5, 3]), tf.zeros([5, 2])]).shape
      TensorShape([5, 5])
      >>> Join()([tf.zeros([5, 28, 28, 1]), tf.zeros([5, 10])]).shape
      TensorShape([5, 28, 28, 11])
    """

    flatten: bool

    def __init__(self, flatten: bool = False, **kwargs: Any) -> None:
        if not isinstance(flatten, bool):
            raise TypeError(f"flatten: got {flatten!r}, wanted True or False")
        super().__init__(**kwargs)
        self.flatten = flatten

    def call(self, inputs: Any) -> Any:
        """Both inputs in one tensor."""
        if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
            raise TypeError(f"{self.name}: got {inputs!r}, wanted two inputs, [x, y] or [z, y]")
        h, y = (tf.cast(values, self.compute_dtype) for values in inputs)
        if self.flatten or h.shape.rank == 2:
            return tf.concat([_as_vectors(h), _as_vectors(y)], axis=-1)
        pixels = h.shape[1:-1]
        if y.shape.rank == 2:
            y = tf.reshape(y, (-1, *[1] * len(pixels), y.shape[-1]))
            y = tf.broadcast_to(y, tf.concat([tf.shape(h)[:-1], y.shape[-1:]], 0))
        elif y.shape[1:-1] != pixels:
            raise ValueError(
                f"{self.name}: got y of shape {tuple(y.shape)} beside {tuple(h.shape)}, wanted "
                f"(B, D) or (B, {', '.join(map(str, pixels))}, D); or take Join(flatten=True)"
            )
        return tf.concat([h, y], axis=-1)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"flatten": self.flatten}


def mlp_encoder(
    input_shape: int | Iterable[int],
    params_size: int,
    hidden: int | Iterable[int] = (256,),
    activation: Any = "relu",
) -> keras.Sequential:
    """Make a fully connected encoder: Flatten if needed, hidden Dense layers, a linear Dense.

    Args:
      input_shape: shape of one example, (784,) or (28, 28, 1); a number D means (D,).
      params_size: number of outputs, the `params_size` of the posterior.
      hidden: number of units of each hidden layer; () for none.
      activation: of the hidden layers, as in Keras.

    Returns:
      A built model, [B, *input_shape] -> [B, params_size].

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is not positive, or the shape is empty.

    Example:
      >>> mlp_encoder((28, 28, 1), params_size=4).output_shape
      (None, 4)
    """
    shape = _sizes("input_shape", input_shape)
    if not shape:
        raise ValueError("input_shape must have at least one axis, got ()")
    flatten = [keras.layers.Flatten()] if len(shape) > 1 else []
    layers = _dense_layers(hidden, activation, _size("params_size", params_size))
    return keras.Sequential(
        [keras.Input(shape, dtype=blocks.full_precision(None)), *flatten, *layers]
    )


def mlp_decoder(
    latent_size: int,
    params_size: int,
    hidden: int | Iterable[int] = (256,),
    activation: Any = "relu",
) -> keras.Sequential:
    """Make a fully connected decoder: hidden Dense layers, a linear Dense.

    Args:
      latent_size: number of latent variables.
      params_size: number of outputs, the `params_size` of the likelihood.
      hidden: number of units of each hidden layer; () for none.
      activation: of the hidden layers, as in Keras.

    Returns:
      A built model, [B, latent_size] -> [B, params_size].

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is not positive.

    Example:
      >>> mlp_decoder(latent_size=2, params_size=784).output_shape
      (None, 784)
    """
    layers = _dense_layers(hidden, activation, _size("params_size", params_size))
    return keras.Sequential(
        [
            keras.Input((_size("latent_size", latent_size),), dtype=blocks.full_precision(None)),
            *layers,
        ]
    )


def conv_encoder(input_shape: Iterable[int], params_size: int) -> keras.Sequential:
    """Make a convolutional encoder of images.

    3x3 convolutions of 32 and 64 filters with stride 2 and ReLU, Dense of 16 units with ReLU,
    linear Dense; 69,076 weights for (28, 28, 1) and 4 parameters.

    Args:
      input_shape: (height, width, channels) of an image.
      params_size: number of outputs, the `params_size` of the posterior.

    Returns:
      A built model, [B, height, width, channels] -> [B, params_size].

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is not positive, or the shape has not three axes.

    Example:
      >>> conv_encoder((28, 28, 1), params_size=4).count_params()
      69076
    """
    return keras.Sequential(
        [
            keras.Input(
                _image_shape("input_shape", input_shape), dtype=blocks.full_precision(None)
            ),
            keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            *_dense_layers((16,), "relu", _size("params_size", params_size)),
        ]
    )


def conv_decoder(
    latent_size: int, output_shape: Iterable[int], params_per_channel: int = 1
) -> keras.Sequential:
    """Make a convolutional decoder of images.

    Dense to height/4 x width/4 x 64 with ReLU, 3x3 transposed convolutions of 64 and 32 filters
    with stride 2 and ReLU, a linear one with stride 1; 65,089 weights for 2 latent variables and
    (28, 28, 1).

    Args:
      latent_size: number of latent variables.
      output_shape: (height, width, channels) of an image; height and width are multiples of 4.
      params_per_channel: how many parameters the likelihood has for each channel of each pixel.

    Returns:
      A built model, [B, latent_size] -> [B, height, width, channels * params_per_channel].

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is not positive, the shape has not three axes, or height or width is not
        divisible by 4.

    Example:
      >>> conv_decoder(latent_size=2, output_shape=(28, 28, 1)).count_params()
      65089
    """
    height, width, channels = _image_shape("output_shape", output_shape)
    if height % 4 or width % 4:
        raise ValueError(
            "the height and width of output_shape must be divisible by 4, because two layers "
            f"double them; got {height} x {width}"
        )
    params = channels * _size("params_per_channel", params_per_channel)
    return keras.Sequential(
        [
            keras.Input((_size("latent_size", latent_size),), dtype=blocks.full_precision(None)),
            keras.layers.Dense(height // 4 * (width // 4) * 64, activation="relu"),
            keras.layers.Reshape((height // 4, width // 4, 64)),
            keras.layers.Conv2DTranspose(64, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2DTranspose(params, 3, padding="same"),
        ]
    )


def _dense_layers(
    hidden: int | Iterable[int], activation: Any, params_size: int
) -> list[keras.layers.Layer]:
    if isinstance(activation, type):
        raise TypeError(f"activation: got the class {activation.__name__}, wanted an instance")
    function = checks.made("activation", keras.activations.get, activation)
    return [
        *(keras.layers.Dense(units, function) for units in _sizes("hidden", hidden)),
        keras.layers.Dense(params_size),
    ]


def _as_vectors(values: Any) -> Any:
    return tf.reshape(values, (-1, math.prod(values.shape[1:])))


def _size(name: str, value: Any) -> int:
    # A bool is an integer to Python, but True is no size.
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, numbers.Integral):
        return (_size(name, value),)
    scalar = getattr(value, "shape", None) == ()
    if isinstance(value, str) or not isinstance(value, Iterable) or scalar:
        raise TypeError(f"{name} must be an integer or a sequence of integers, got {value!r}")
    sizes = checks.sequence(name, value, "an integer or a sequence of integers")
    return tuple(_size(f"{name}[{i}]", size) for i, size in enumerate(sizes))


def _image_shape(name: str, value: Any) -> tuple[int, ...]:
    shape = _sizes(name, value)
    if len(shape) != 3:
        raise ValueError(f"{name} must be (height, width, channels), got {value!r}")
    return shape
