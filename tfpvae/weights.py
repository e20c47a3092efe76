"""Weights as latent variables: layers of plain Keras models whose parameters have a posterior."""

import math
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, noise, posteriors, priors, regularizers

tfd = tfp.distributions

# The square root has no derivative at zero, where an input of zeros without bias leads.
_TINY = 1e-30


@keras.saving.register_keras_serializable("tfpvae.weights")
class Parameters(keras.layers.Layer):
    r"""Trainable numbers in the place of a network: its output is the same whatever its input.

    $$ f(x) = \lambda $$

    A latent variable that is one for the whole data set, such as the coefficients of a regression,
    has a posterior q(z) that is no function of x. This layer is then its encoder, and a block makes
    the posterior of it. The KL belongs to the model and not to an example, so its weight is 1 over
    the number of training examples.

    Shapes: any input, output `[1, size]`.

    Args:
      size: how many numbers, the `params_size` of the block that follows.
      initializer: a Keras initializer of their first values.
      **kwargs: arguments of any Keras layer.

    Raises:
      TypeError, ValueError: if the size is no positive integer.

    Example:
      >>> from tfpvae import KLDivergenceRegularizer, posteriors, priors
      >>> kl = KLDivergenceRegularizer(priors.StandardNormal(3), weight=1 / 500)
      >>> posterior = posteriors.FullRankNormal(3, activity_regularizer=kl)
      >>> model = keras.Sequential([Parameters(posterior.params_size), posterior])
      >>> model(np.zeros([64, 10])).mean().shape
      TensorShape([1, 3])
    """

    def __init__(self, size: int, initializer: Any = "zeros", **kwargs: Any) -> None:
        # Parameters of a density are not rounded to half precision.
        kwargs["dtype"] = blocks.full_precision(kwargs.get("dtype"))
        super().__init__(**kwargs)
        self.size = checks.positive_integer("size", size)
        self.initializer = checks.made("initializer", keras.initializers.get, initializer)
        self.parameters = self.add_weight(
            name="parameters", shape=(1, self.size), initializer=self.initializer
        )

    def call(self, inputs: Any) -> Any:
        """The parameters `[1, size]`; the inputs are not used."""
        del inputs
        return tf.convert_to_tensor(self.parameters)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape `[1, size]`."""
        del input_shape
        return tf.TensorShape([1, self.size])

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {
            "size": self.size,
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable("tfpvae.weights")
class BayesianDense(keras.layers.Layer):
    r"""A dense layer whose kernel and bias are latent variables.

    $$ y = f(x W + b), \qquad W, b \sim q = \prod_{ij} \mathcal N(m_{ij}, s_{ij}^2) $$

    The weights are not drawn; what they are multiplied to is, anew for each example (local
    reparameterization), which is the same distribution and makes gradients far less noisy:

    $$ a_{bj} \sim \mathcal N\Bigl(\sum_i x_{bi} m_{ij},\ \sum_i x_{bi}^2 s_{ij}^2\Bigr) $$

    with the bias as the weight of an input that is always 1. The layer adds
    KL(q(W, b) || p(W, b)) / N to the loss of the model it is in. With the loss `negative_log_prob`,
    a mean over the examples, Keras then prints -ELBO / N in nats an example. The KL is a
    property of the weights, as that of a `kernel_regularizer` is: it does not depend on the batch,
    is counted once however often the layer is called, and takes no `sample_weight`.

    The layer draws in training and in prediction: each call of the model is a draw of the
    predictive distribution. `at_mean` and `at_draw` make a network with fixed weights of the model.

    Shapes: input `[B, D]`, output `[B, units]`; two numbers are learned for each of the
    `(D + 1) * units` weights.

    Args:
      units: size of the output.
      activation: a Keras activation, None for the identity.
      use_bias: whether there is a bias.
      num_data: the number N of training examples.
      prior: the prior of the weights, a block of `tfpvae.priors`: of event_shape `()` for
        independent weights with one prior, or of event_shape `(number of weights,)`, with the
        kernel row by row and then the bias. Its weights, if it has any, are trained with the model.
        None for the standard normal.
      posterior: a block of normal distributions with event_shape `()`, which every weight gets a
        copy of: for another constraint of the scale. None for `posteriors.DiagonalNormal(())`.
      kernel_initializer: a Keras initializer of the means m of the kernel; those of the bias start
        at 0.
      initial_scale: first value of all standard deviations s.
      **kwargs: arguments of any Keras layer.

    Raises:
      TypeError: without `num_data`, if prior or posterior is no such block, or when a model is
        saved in which two layers learn the same prior.
      ValueError: for a prior of another size, an initial scale that is not positive, or an input
        with more than two axes.

    Example:
      >>> from tfpvae import likelihoods, losses
      >>> model = keras.Sequential([
      ...     BayesianDense(20, "tanh", num_data=500),
      ...     BayesianDense(2, num_data=500),
      ...     likelihoods.Normal(1)])
      >>> model.compile("adam", loss=losses.negative_log_prob)
      >>> model(np.zeros([64, 3])).mean().shape
      TensorShape([64, 1])
      >>> len(model.losses)
      2

    Source: Kingma, Salimans and Welling, "Variational Dropout and the Local Reparameterization
    Trick", 2015; Blundell et al., "Weight Uncertainty in Neural Networks", 2015.
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        *,
        num_data: int | None = None,
        prior: Any = None,
        posterior: Any = None,
        kernel_initializer: Any = "glorot_uniform",
        initial_scale: float = 0.05,
        **kwargs: Any,
    ) -> None:
        # As blocks: the sum of squares and the KL are not computed in half precision.
        kwargs["dtype"] = blocks.full_precision(kwargs.get("dtype"))
        super().__init__(**kwargs)
        self.units = checks.positive_integer("units", units)
        self.activation = checks.made("activation", keras.activations.get, activation)
        self.use_bias = checks.flag("use_bias", use_bias)
        self.num_data = _num_data(num_data)
        self.prior = priors.StandardNormal((), dtype=self.dtype) if prior is None else prior
        _check_prior(self.prior)
        self.prior._first_user = getattr(self.prior, "_first_user", self.name)
        if posterior is None:
            posterior = posteriors.DiagonalNormal((), dtype=self.dtype)
        _check_posterior(posterior)
        self._posterior = posterior
        self.kernel_initializer = checks.made(
            "kernel_initializer", keras.initializers.get, kernel_initializer
        )
        self.initial_scale = _scale(initial_scale)
        self._regularizer = regularizers.KLDivergenceRegularizer(
            self.prior, weight=1 / self.num_data
        )

    def build(self, input_shape: Any) -> None:
        """Make the weights: the parameters of the posterior of each latent weight."""
        shape = tf.TensorShape(input_shape)
        if shape.rank != 2 or shape[-1] is None:
            raise ValueError(
                f"{self.name}: inputs: got shape {tuple(shape)}, wanted (B, D) with a known D, "
                "because the weights count as drawn anew in each row: flatten the inputs"
            )
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: shape[-1]})
        rows = shape[-1] + self.use_bias
        if self.prior.event_shape not in ((), (rows * self.units,)):
            raise ValueError(
                f"{self.name}: prior: got one of event_shape {self.prior.event_shape}, wanted () "
                f"or ({rows * self.units},), the number of weights of {rows} x {self.units}"
            )
        self.parameters = self.add_weight(
            name="parameters",
            shape=(rows, self.units, self._posterior.params_size),
            initializer=self._initial,
        )
        # Not as an activity regularizer of the posterior, which would add it at every call.
        self.add_loss(lambda: self._regularizer.weight * self.kl())
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """The activations of weights that are drawn for each example."""
        x = tf.cast(inputs, self.dtype)
        if self.use_bias:
            x = tf.concat([x, tf.ones_like(x[:, :1])], axis=1)
        q = self._each(self.parameters)
        loc, variance = x @ q.mean(), x**2 @ q.variance()
        a = tfd.Normal(loc, tf.sqrt(tf.maximum(variance, _TINY)))
        return self.activation(a.sample(seed=noise.next_seed()))

    def posterior(self) -> Any:
        """q(W, b), a distribution over `[D + 1, units]`: the kernel and below it the bias."""
        if not self.built:
            raise ValueError(f"{self.name}: it has no weights yet: call the model on data first")
        return tfd.Independent(self._each(self.parameters), 2)

    def kl(self) -> Any:
        """KL(q(W, b) || p(W, b)) in nats, of all weights together."""
        q = self._each(self.parameters)
        if self.prior.event_shape:
            flat = tf.reshape(self.parameters, [-1, self._posterior.params_size])
            q = tfd.Independent(self._each(flat), 1)
        return tf.reduce_sum(self._regularizer.divergence(q))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape `[B, units]`."""
        return tf.TensorShape([input_shape[0], self.units])

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        if self.prior.weights and self.prior._first_user != self.name:
            raise TypeError(
                f"prior: got one that the layers {self.prior._first_user} and {self.name} learn "
                "together, which a file cannot hold: give each a prior of its own, or use "
                "save_weights"
            )
        return super().get_config() | {
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "num_data": self.num_data,
            "prior": keras.saving.serialize_keras_object(self.prior),
            "posterior": keras.saving.serialize_keras_object(self._posterior),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "initial_scale": self.initial_scale,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BayesianDense":
        """The layer that a configuration describes."""
        parts = ("prior", "posterior")
        made = {name: keras.saving.deserialize_keras_object(config[name]) for name in parts}
        return cls(**config | made)

    @tf.autograph.experimental.do_not_convert  # Keras rewrites `call`, and all that it calls.
    def _each(self, parameters: Any) -> Any:
        """A normal distribution for each weight."""
        return self._posterior.new(parameters)

    def _initial(self, shape: Any, dtype: Any, **kwargs: Any) -> Any:
        """The parameters at which the means are a dense layer's and the scales `initial_scale`."""
        del kwargs  # Of sharded variables.
        rows, units, _ = shape
        kernel = self.kernel_initializer((rows - self.use_bias, units), dtype=dtype)
        bias = tf.zeros((int(self.use_bias), units), dtype)
        first = {
            "loc": tf.concat([kernel, bias], axis=0),
            "scale": tf.fill((rows, units), tf.cast(self.initial_scale, dtype)),
        }
        free = self._posterior.free
        return tf.stack([p.constraint.inverse(first[p.name]) for p in free], axis=-1)


def at_mean(model: Any) -> Any:
    r"""The model with every weight at its posterior mean: a network without noise.

    $$ y = f(x\, \mathbb E_q[W] + \mathbb E_q[b]) $$

    Its prediction is not the mean of the predictions unless the model is linear. Layers other than
    `BayesianDense`, which becomes a `keras.layers.Dense`, are shared with the model.

    Args:
      model: a Sequential or functional model, possibly of further ones.

    Returns:
      A Keras model.

    Raises:
      TypeError: if it is no model of tf_keras.
      ValueError: for a model of another kind or without weights yet.

    Example:
      >>> model = keras.Sequential([
      ...     keras.Input((2,)),
      ...     BayesianDense(3, "tanh", num_data=10),
      ...     BayesianDense(1, num_data=10)])
      >>> network = at_mean(model)
      >>> bool(tf.reduce_all(network(np.ones([5, 2])) == network(np.ones([5, 2]))))
      True
    """
    return _with_weights(model, tfd.Independent.mean)


def at_draw(model: Any) -> Any:
    r"""The model with one draw of all weights from their posterior: one function.

    $$ y = f(x W + b), \qquad W, b \sim q $$

    The weights are the same for all examples, where `BayesianDense` draws for each example anew.
    Everything else is as in `at_mean`.

    Args:
      model: a Sequential or functional model, possibly of further ones.

    Returns:
      A Keras model.

    Raises:
      TypeError: if it is no model of tf_keras.
      ValueError: for a model of another kind or without weights yet.

    Example:
      >>> model = keras.Sequential([keras.Input((2,)), BayesianDense(1, num_data=10)])
      >>> networks = [at_draw(model) for _ in range(3)]
      >>> len({network(np.ones([1, 2])).numpy().item() for network in networks})
      3
    """
    return _with_weights(model, lambda q: q.sample(seed=noise.next_seed()))


def _with_weights(model: Any, choose: Any) -> Any:
    """The model with weights that `choose` makes of their posterior."""

    def replaced(layer: Any) -> Any:
        if isinstance(layer, BayesianDense):
            return _dense(layer, choose(layer.posterior()).numpy())
        if isinstance(layer, keras.Model):
            return _with_weights(layer, choose)
        if any(isinstance(inner, BayesianDense) for inner in layer.submodules):
            raise ValueError(
                f"model: got BayesianDense inside of {layer.name}, wanted it in models"
            )
        return layer

    checks.refuse_keras3("model", model)
    if not isinstance(model, keras.Model):
        raise TypeError(f"model: got {model!r}, wanted a Sequential or functional tf_keras model")
    if not any(isinstance(layer, BayesianDense) for layer in model.submodules):
        return model
    return keras.models.clone_model(model, clone_function=replaced)


def _dense(layer: BayesianDense, w: np.ndarray) -> Any:
    """A dense layer with the weights `[D + 1, units]`."""
    return keras.layers.Dense(
        layer.units,
        layer.activation,
        layer.use_bias,
        weights=[w[:-1], w[-1]] if layer.use_bias else [w],
        dtype=layer.dtype,
        name=layer.name,
    )


def _num_data(num_data: Any) -> int:
    if num_data is None:
        raise TypeError(
            "num_data: got None, wanted the number of training examples, len(x_train), because "
            "the loss is a mean over the examples and the KL of the weights counts once for all "
            "of them"
        )
    return checks.positive_integer("num_data", num_data)


def _scale(value: Any) -> float:
    try:
        scale = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"initial_scale: got {value!r}, wanted a positive number") from None
    if isinstance(value, (str, bool)) or not 0.0 < scale < math.inf:
        raise ValueError(f"initial_scale: got {value!r}, wanted a positive number")
    return scale


def _check_prior(prior: Any) -> None:
    checks.refuse_keras3("prior", prior)
    if not isinstance(prior, priors.Prior):
        raise TypeError(
            f"prior: got {prior!r}, wanted a block of tfpvae.priors such as priors.Normal((), "
            "loc=0.0)"
        )


def _check_posterior(posterior: Any) -> None:
    checks.refuse_keras3("posterior", posterior)
    wanted = (
        "wanted a block of normal distributions with event_shape () such as "
        "posteriors.DiagonalNormal(()), because the sums of normal weights are drawn"
    )
    if not isinstance(posterior, blocks.Block):
        raise TypeError(f"posterior: got {posterior!r}, {wanted}")
    with tf.init_scope():
        q = posterior.new(tf.zeros([posterior.params_size], posterior.dtype))
    if not isinstance(q, tfd.Normal):
        raise TypeError(
            f"posterior: got {posterior.title()} with event_shape {posterior.event_shape}, {wanted}"
        )
