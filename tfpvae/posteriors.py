"""Posteriors q(z|x): distribution layers whose value is a draw of z."""

from typing import Any

import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import layers

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tfpvae.posteriors")
class DiagonalNormal(layers.DistributionLayer):
    r"""The diagonal Gaussian posterior.

    $$ q(z \mid x) = \prod_d \mathcal N(z_d;\ \mu_d(x), \sigma_d(x)^2),
       \qquad \sigma_d = \operatorname{softplus}(t_d) $$

    Its draws are reparameterized: z = mu + sigma * epsilon.

    Shapes: input `[B, 2 * D]` (loc, then unconstrained scale), z `[B, D]`, or `[S, B, D]` with
    `num_samples=S`.

    Args:
      event_shape: shape of z, a tuple or a size.
      **kwargs: what `DistributionLayer` takes: `num_samples=10` passes 10 draws on,
        `convert_to_tensor_fn="mean"` passes the mean on.

    Example:
      >>> posterior = DiagonalNormal(2)
      >>> DiagonalNormal.params_size(2)
      4
      >>> posterior(tf.constant([[1.0, -1.0, 0.0, 0.0]])).mean().numpy()
      array([[ 1., -1.]], dtype=float32)

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes", 2014.
    """

    def __init__(self, event_shape: Any, **kwargs: Any) -> None:
        super().__init__(tfd.Normal, event_shape, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.posteriors")
class FullRankNormal(layers.DistributionLayer):
    r"""The Gaussian posterior with a full covariance matrix.

    $$ q(z \mid x) = \mathcal N\bigl(z;\ \mu(x),\ L(x) L(x)^\top\bigr) $$

    with a lower triangular L whose diagonal is positive. Its draws are reparameterized:
    z = mu + L epsilon.

    Shapes: input `[B, D + D (D + 1) / 2]` (loc, then the entries of L), z `[B, D]`, or
    `[S, B, D]` with `num_samples=S`.

    Args:
      event_shape: the size D of z.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> FullRankNormal.params_size(2)
      5
      >>> FullRankNormal(2)(tf.zeros([1, 5])).covariance().shape
      TensorShape([1, 2, 2])

    Source: Rezende, Mohamed and Wierstra, "Stochastic Backpropagation and Approximate Inference in
    Deep Generative Models", 2014.
    """

    def __init__(self, event_shape: Any, **kwargs: Any) -> None:
        super().__init__(tfd.MultivariateNormalTriL, event_shape, **kwargs)
