"""Priors p(z): distribution layers that take no input, with or without weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import layers, serialization

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tfpvae.priors")
class Prior(layers.DistributionLayer):
    r"""A prior of any tfd class: what is not fixed is a weight and is learned.

    $$ p(z) = f(z;\ b_1(w_1),\ b_2(w_2),\ \dots) $$

    with a weight w for each free parameter and the bijector b that TFP names for it. Calling it
    needs no input and returns the distribution. Learning the prior's parameters with the rest of
    the model is type-II maximum likelihood (empirical Bayes).

    Args:
      distribution: a class of `tfp.distributions` or its name.
      event_shape: shape of z, a tuple or a size.
      initial: first values of free parameters, by name; the others start where the unconstrained
        weights are zero.
      **kwargs: fixed parameters by name, and what `DistributionLayer` takes.

    Raises:
      ValueError: for an unknown name in `initial` or a value outside the parameter's range.

    Example:
      >>> prior = Prior("Laplace", 2, loc=0.0, initial={"scale": 1.0})
      >>> round(float(prior().log_prob([0.0, 0.0])), 3)  # 2 log(1/2)
      -1.386
    """

    def __init__(
        self,
        distribution: Any,
        event_shape: Any = (),
        *,
        initial: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(distribution, event_shape, **kwargs)
        self._initial = dict(initial or {})
        serialization.to_json(f"{self.name}: initial", self._initial)  # What a file cannot hold.
        weights = self._unconstrained(self._initial)
        if self.params_size:
            self.unconstrained = self.add_weight(
                name="unconstrained", shape=(self.params_size,), initializer="zeros"
            )
            self.unconstrained.assign(weights)
        self.built = True

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The distribution p(z); `inputs` are not used."""
        return self._distribution(inputs)

    def attach(self, encoder: Any) -> None:
        """Take note of the encoder of the model whose prior this is."""

    def repeated(self, num: int) -> Any:
        """The distribution of `num` independent numbers of which this is the prior of each.

        Args:
          num: how many.

        Raises:
          ValueError: unless `event_shape` is `()`.
        """
        if self.event_shape:
            raise ValueError(
                f"{self.name}: event_shape: got {self.event_shape}, wanted (): the prior of one "
                "number, to be repeated"
            )
        # Not tfd.Sample, for which TFP knows no closed form of the KL.
        one = self()
        names = {*self.fixed, *(parameter.name for parameter in self.free)}
        repeated = {
            name: tf.broadcast_to(value, (num, *value.shape))
            for name, value in one.parameters.items()
            if name in names and tf.is_tensor(value)
        }
        return tfd.Independent(one.copy(**repeated), 1)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        config = super().get_config()
        initial = serialization.to_json("initial", self._initial)
        return config | {"initial": initial} if initial else config

    def _distribution(self, inputs: Any) -> Any:
        return self.new(self.unconstrained if self.params_size else tf.zeros([0], self.dtype))

    def _unconstrained(self, initial: Mapping[str, Any]) -> np.ndarray:
        """The weights at which the free parameters have the values of `initial`."""
        names = [parameter.name for parameter in self._free]
        for name in initial:
            if name not in names:
                raise ValueError(f"{self.name}: initial: got {name!r}, wanted one of {names}")
        pieces = []
        for parameter in self._free:
            piece = tf.zeros(parameter.shape, self.dtype)
            if parameter.name in initial:
                shape = parameter.constraint.forward_event_shape(tf.TensorShape(parameter.shape))
                value = np.asarray(initial[parameter.name])
                try:
                    value = tf.broadcast_to(tf.cast(value, self.dtype), shape)
                except (tf.errors.OpError, TypeError, ValueError):
                    raise ValueError(
                        f"{self.name}: initial: {parameter.name}: got {value!r} of shape "
                        f"{value.shape}, wanted numbers that broadcast to {tuple(shape)}"
                    ) from None
                piece = parameter.constraint.inverse(value)
            pieces.append(np.ravel(piece))
        weights = np.concatenate([*pieces, np.zeros(0)])
        if not np.isfinite(weights).all():
            raise ValueError(
                f"{self.name}: initial: got {dict(initial)}, wanted values that {self.title()} "
                "allows"
            )
        return weights


@keras.saving.register_keras_serializable("tfpvae.priors")
class StandardNormal(Prior):
    r"""The standard normal prior of the variational autoencoder.

    $$ p(z) = \prod_d \mathcal N(z_d;\ 0, 1) $$

    Args:
      event_shape: shape of z, a tuple or a size.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> round(float(StandardNormal(2)().log_prob([0.0, 0.0])), 3)  # -log(2 pi)
      -1.838

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes", 2014.
    """

    def __init__(self, event_shape: Any, **kwargs: Any) -> None:
        super().__init__(tfd.Normal, event_shape, **{"loc": 0.0, "scale": 1.0} | kwargs)


@keras.saving.register_keras_serializable("tfpvae.priors")
class Normal(Prior):
    r"""A normal prior with independent entries whose mean and standard deviation are learned.

    $$ p(z) = \prod_d \mathcal N(z_d;\ \mu_d, \sigma_d^2) $$

    It starts as the standard normal.

    Args:
      event_shape: shape of z, a tuple or a size.
      initial: first values of `loc` and `scale`.
      **kwargs: `loc` or `scale` to fix one of them, and what `DistributionLayer` takes.

    Example:
      >>> prior = Normal(2)
      >>> prior().stddev().numpy().round(3)
      array([1., 1.], dtype=float32)
      >>> len(prior.trainable_weights)
      1
    """

    def __init__(
        self, event_shape: Any, *, initial: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        start = {} if "scale" in kwargs else {"scale": 1.0}
        super().__init__(tfd.Normal, event_shape, initial=start | dict(initial or {}), **kwargs)
