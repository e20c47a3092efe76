"""negative_log_prob: the Keras loss of a model whose output is a distribution."""

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tfpvae")
def negative_log_prob(y_true: Any, y_pred: Any) -> Any:
    r"""The negative log-likelihood of the data under the distribution that a model returns.

    $$ -\frac1S \sum_{s=1}^{S} \log p(y_b \mid z_{sb}) \quad \text{nats} $$

    Args:
      y_true: data `[B, *event_shape]`.
      y_pred: a `tfd.Distribution` with batch shape `[B]`, or `[S, B]` when the posterior passes S
        draws on; their mean is taken.

    Returns:
      A tensor `[B]`. Keras averages it over the examples, with their weights.

    Raises:
      TypeError: if the model does not end in a distribution layer.
      ValueError: if the data do not have the shape of the distribution's events.

    Example:
      >>> p = tfd.Independent(tfd.Bernoulli(logits=tf.zeros([2, 3])), 1)
      >>> negative_log_prob(tf.ones([2, 3]), p).numpy().round(3)  # 3 log 2
      array([2.079, 2.079], dtype=float32)
    """
    return -tf.reduce_mean(log_likelihood(y_true, y_pred), axis=0)


def log_likelihood(y_true: Any, y_pred: Any) -> Any:
    r"""The log-likelihood of the data for each draw of z.

    $$ \log p(y_b \mid z_{sb}) \quad \text{nats} $$

    Args:
      y_true: data `[B, *event_shape]`.
      y_pred: a `tfd.Distribution` with batch shape `[B]` or `[S, B]`.

    Returns:
      A tensor `[S, B]`, or `[1, B]`.

    Raises:
      TypeError: if the model does not end in a distribution layer.
      ValueError: if the data do not have the shape of the distribution's events.

    Example:
      >>> p = tfd.Independent(tfd.Bernoulli(logits=tf.zeros([2, 3])), 1)
      >>> log_likelihood(tf.ones([2, 3]), p).numpy().round(3)  # -3 log 2
      array([[-2.079, -2.079]], dtype=float32)
    """
    distribution = getattr(y_pred, "_tfp_distribution", y_pred)
    if not isinstance(distribution, tfd.Distribution):
        raise TypeError(
            f"negative_log_prob: got the model output {y_pred!r}, wanted a distribution: end the "
            "model in a block of tfpvae.likelihoods"
        )
    try:
        y_true = tf.convert_to_tensor(y_true)
    except (TypeError, ValueError) as error:
        raise TypeError(f"y_true: got {y_true!r:.60}, wanted an array or a tensor") from error
    if y_true.dtype == tf.string:
        raise TypeError("y_true: got strings, wanted numbers")
    if distribution.dtype.is_floating or y_true.dtype.is_integer:
        y_true = tf.cast(y_true, distribution.dtype)
    batch_ndims = _check_shape(y_true.shape, distribution)
    log_prob = distribution.log_prob(y_true)
    if log_prob.shape.rank - batch_ndims == 1:
        return log_prob
    return tf.reshape(log_prob, tf.concat([[-1], tf.shape(y_true)[:batch_ndims]], 0))


def _check_shape(shape: Any, distribution: Any) -> int:
    """The number of batch axes of data of this shape."""
    event_shape = distribution.event_shape
    batch_ndims = shape.rank - event_shape.rank
    batch_shape = distribution.batch_shape
    fits = (
        min(1, batch_shape.rank) <= batch_ndims <= batch_shape.rank
        and shape[batch_ndims:].is_compatible_with(event_shape)
        # Not merely broadcastable: [B, 1] against [B] would score every pair of examples.
        and shape[:batch_ndims].is_compatible_with(batch_shape[batch_shape.rank - batch_ndims :])
    )
    if not fits:
        raise ValueError(
            f"negative_log_prob: got data of shape {tuple(shape)}, wanted "
            f"{tuple(batch_shape[-1:] + event_shape)}, because the distribution "
            f"{distribution.name!r} has batch_shape {tuple(batch_shape)} and event_shape "
            f"{tuple(event_shape)}"
        )
    return batch_ndims
