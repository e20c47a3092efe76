"""Distributions that TFP lacks, in TFP's own form."""

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


class Missing(tfp.distributions.Distribution):
    r"""Another distribution, of values that may be missing: a NaN has log density 0.

    $$ \log p(x) = \begin{cases} 0 & \text{if a number of } x \text{ is NaN} \\
       \log f(x) & \text{otherwise} \end{cases} $$

    So the log density of many independent values is that of the ones that were observed, their
    marginal likelihood. Draws and moments are those of the other distribution, which is that of
    missing values given the parameters.

    Args:
      distribution: the other distribution f. An event of several numbers is missing as a whole.
      placeholder: values `[*batch, *event]` of f's support, which stand where NaN stood while f is
        evaluated: a NaN that is merely masked afterwards would come back in the gradient.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.

    Source: Mattei and Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete
    Data Sets", 2019.
    """

    def __init__(
        self,
        distribution: Any,
        placeholder: Any,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "Missing",
    ) -> None:
        parameters = dict(locals())
        self._distribution, self._placeholder = distribution, placeholder
        dtype = distribution.dtype
        super().__init__(
            dtype=dtype if dtype.is_floating else tf.float32,  # NaN is a floating-point number.
            reparameterization_type=distribution.reparameterization_type,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    @property
    def distribution(self) -> Any:
        """The distribution of the values that are there."""
        return self._distribution

    def _batch_shape(self) -> Any:
        return self.distribution.batch_shape

    def _batch_shape_tensor(self) -> Any:
        return self.distribution.batch_shape_tensor()

    def _event_shape(self) -> Any:
        return self.distribution.event_shape

    def _event_shape_tensor(self) -> Any:
        return self.distribution.event_shape_tensor()

    def _log_prob(self, x: Any) -> Any:
        event_axes = range(-self.event_shape.rank, 0)
        observed = tf.reduce_all(~tf.math.is_nan(x), axis=event_axes)
        there = tf.reduce_all(~tf.math.is_nan(x), axis=event_axes, keepdims=True)
        filled = tf.where(there, x, tf.cast(self._placeholder, x.dtype))
        log_prob = self.distribution.log_prob(tf.cast(filled, self.distribution.dtype))
        return tf.where(observed, log_prob, tf.zeros([], log_prob.dtype))

    def _sample_n(self, n: Any, seed: Any = None) -> Any:
        return tf.cast(self.distribution.sample(n, seed=seed), self.dtype)

    def _mean(self) -> Any:
        return tf.cast(self.distribution.mean(), self.dtype)

    def _mode(self) -> Any:
        return tf.cast(self.distribution.mode(), self.dtype)

    def _stddev(self) -> Any:
        return tf.cast(self.distribution.stddev(), self.dtype)

    def _variance(self) -> Any:
        return tf.cast(self.distribution.variance(), self.dtype)

    def _entropy(self) -> Any:
        return self.distribution.entropy()


def leaves(distribution: Any) -> list[Any]:
    """The distributions that a distribution of independent parts is made of."""
    found: list[Any] = []

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    replace_leaves(distribution, note)
    return found


def replace_leaves(distribution: Any, function: Any) -> Any:
    """The distribution with each of its independent parts replaced by a function of it."""
    if isinstance(distribution, tfd.Independent):
        inner = replace_leaves(distribution.distribution, function)
        return tfd.Independent(inner, distribution.reinterpreted_batch_ndims)
    return function(distribution)
