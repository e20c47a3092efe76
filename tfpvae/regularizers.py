"""KLDivergenceRegularizer: KL(q(z|x) || p(z)) counted once, a mean over the examples."""

import math
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, discrete, noise, serialization

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tfpvae")
class KLDivergenceRegularizer(tfp.layers.KLDivergenceRegularizer):
    r"""The KL divergence from a posterior block to a prior, as an activity regularizer.

    What Keras adds to the loss is

    $$ \frac{w}{B} \sum_{b=1}^{B} \mathrm{KL}\bigl(q(z \mid x_b)\ \|\ p(z)\bigr)
       \quad \text{nats an example} $$

    whatever the batch size and the number of draws. The class of the same name in TFP is counted
    twice, because Keras regularizes both things that a distribution layer returns, the
    distribution and its value; and it is divided by the number of draws instead of the batch size
    when there are several. It works on the blocks of `tfpvae.posteriors` and on the stock layers
    of `tfp.layers`.

    Keras gives a regularizer no sample weights: in a plain Keras model every example's KL counts
    fully, whatever its weight. `VAE` weights each example's KL like its nll.

    Args:
      distribution_b: the prior p(z): a block of `tfpvae.priors`, whose weights are then trained
        with the model, or a `tfd.Distribution`, or a function without arguments that returns one.
      use_exact_kl: None for the closed form where TFP has one and Monte Carlo otherwise; True for
        the closed form or an error; False for Monte Carlo, log q(z|x) - log p(z) averaged over the
        draws of z.
      num_samples: how many draws of its own Monte Carlo takes; None takes the ones that the layer
        passes on (one of its own if the layer passes its mean on).
      weight: the factor w, a number or a `tf.Variable(..., trainable=False)` that a callback
        changes. A plain number is compiled into the training step.

    Raises:
      TypeError: if the prior is none of the above or it is used on something that is no
        distribution layer.
      ValueError: for a negative or trainable weight, if prior and posterior differ in size, or if
        `use_exact_kl=True` and TFP has no closed form.

    Example:
      >>> from tfpvae import posteriors, priors
      >>> kl = KLDivergenceRegularizer(priors.StandardNormal(2))
      >>> posterior = posteriors.DiagonalNormal(2, activity_regularizer=kl)
      >>> q = posterior(tf.zeros([64, 4]))
      >>> kl.divergence(q).shape
      TensorShape([64])

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, appendix B.
    """

    def __init__(
        self,
        distribution_b: Any,
        use_exact_kl: bool | None = None,
        *,
        num_samples: int | None = None,
        weight: Any = 1.0,
    ) -> None:
        checks.refuse_keras3("distribution_b", distribution_b)
        if not isinstance(distribution_b, tfd.Distribution) and not callable(distribution_b):
            raise TypeError(
                f"distribution_b: got {distribution_b!r}, wanted a block of tfpvae.priors, a "
                "tfd.Distribution, or a function that returns one"
            )
        if use_exact_kl not in (None, True, False):
            raise TypeError(f"use_exact_kl: got {use_exact_kl!r}, wanted None, True or False")
        if num_samples is not None:
            checks.positive_integer("num_samples", num_samples)
        check_weight("weight", weight)
        super().__init__(distribution_b, use_exact_kl=use_exact_kl, weight=weight)
        self.num_samples = num_samples

    def prior(self) -> Any:
        """The prior p(z) as a distribution."""
        if isinstance(self.distribution_b, tfd.Distribution):
            return self.distribution_b
        if isinstance(self.distribution_b, keras.Model):
            return self.distribution_b(0.0)  # As TFP: a model has to be called with something.
        return self.distribution_b()

    def divergence(self, distribution_a: Any, draws: Any = None) -> Any:
        """KL(q(z|x) || p(z)) of each example, without the weight.

        Args:
          distribution_a: the posterior q(z|x), what a posterior layer returned.
          draws: draws of z from it, `[S, B, ...]`, for Monte Carlo in place of the ones it makes.

        Returns:
          A tensor `[B]`, in nats.
        """
        q = getattr(distribution_a, "tensor_distribution", distribution_a)
        p = self.prior()
        if not q.event_shape.is_compatible_with(p.event_shape):
            raise ValueError(
                f"prior and posterior differ in size: the prior has events of shape "
                f"{tuple(p.event_shape)}, the posterior of shape {tuple(q.event_shape)}"
            )
        discrete.check_same_kind(q, p)
        if self.use_exact_kl is not False:
            try:
                return tfd.kl_divergence(*_comparable(q, p))
            except NotImplementedError:
                if self.use_exact_kl:
                    raise ValueError(
                        f"use_exact_kl: TFP has no closed form of KL({q.name} || {p.name}); "
                        "use_exact_kl=None falls back to Monte Carlo, but not for relaxed draws"
                    ) from None
        z = self.draws(distribution_a) if draws is None else draws
        log_ratio = q.log_prob(z) - p.log_prob(z)
        sample_ndims = log_ratio.shape.rank - q.batch_shape.rank
        return tf.reduce_mean(log_ratio, axis=range(sample_ndims))

    def divergence_by_dimension(self, distribution_a: Any) -> Any:
        """KL(q(z_d|x) || p(z_d)) of each dimension of z: tensor `[B, D]`, in nats.

        Args:
          distribution_a: the posterior q(z|x), what a posterior layer returned.

        Raises:
          ValueError: unless the dimensions of both are independent, of classes between which TFP
            has the closed form.
        """
        q = getattr(distribution_a, "tensor_distribution", distribution_a)
        p = self.prior()
        p = getattr(p, "tensor_distribution", p)
        if isinstance(q, tfd.Independent) and isinstance(p, tfd.Independent):
            try:
                kl = tfd.kl_divergence(q.distribution, p.distribution)
                return tf.reshape(kl, tf.concat([q.batch_shape_tensor(), [-1]], 0))
            except NotImplementedError:
                pass
        raise ValueError(
            f"the KL of each dimension: got the posterior {q.name} and the prior {p.name}, wanted "
            "two with independent dimensions and a closed form, as DiagonalNormal and "
            "StandardNormal"
        )

    def __call__(self, output: Any) -> Any:
        """What Keras divides by the leading axis of `output` and adds to the loss."""
        distribution = getattr(output, "_tfp_distribution", output)
        if not hasattr(distribution, "tensor_distribution"):
            if tf.is_tensor(output) and output.shape.rank is None:
                # Only the export of a SavedModel asks so: it traces a function that whoever loads
                # the layer with its class, and so with this regularizer, does not use.
                return tf.zeros([])
            raise TypeError(
                f"KLDivergenceRegularizer: got {output!r}, wanted the output of a distribution "
                "layer: give it to a posterior block as activity_regularizer="
            )
        value = tf.convert_to_tensor(distribution)
        # Keras asks once with the distribution and once more with its value.
        if output is value and getattr(value, "_tfpvae_counted", None) is self:
            return tf.zeros([], value.dtype)
        value._tfpvae_counted = self
        kl = tf.reduce_mean(self.divergence(distribution))
        return tf.cast(self.weight, kl.dtype) * kl * tf.cast(tf.shape(value)[0], kl.dtype)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        if isinstance(self.distribution_b, tfd.Distribution):
            prior = serialization.to_json("distribution_b", self.distribution_b)
        elif isinstance(self.distribution_b, keras.layers.Layer):
            prior = keras.saving.serialize_keras_object(self.distribution_b)
        else:
            raise TypeError(
                f"distribution_b: got {self.distribution_b!r}, which a file cannot hold: use a "
                "block of tfpvae.priors"
            )
        return {
            "distribution_b": prior,
            "use_exact_kl": self.use_exact_kl,
            "num_samples": self.num_samples,
            "weight": weight_config(self.weight),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "KLDivergenceRegularizer":
        """The regularizer that a configuration describes."""
        prior = serialization.from_json(config["distribution_b"])
        if isinstance(prior, dict):
            prior = keras.saving.deserialize_keras_object(config["distribution_b"])
        weight = weight_from_config(config["weight"])
        return cls(**config | {"distribution_b": prior, "weight": weight})

    def draws(self, distribution_a: Any) -> Any:
        """Draws of z, `[S, B, ...]` or `[B, ...]`: those that the layer passes on, or its own.

        Args:
          distribution_a: the posterior q(z|x), what a posterior layer returned.
        """
        q = getattr(distribution_a, "tensor_distribution", distribution_a)
        if self.num_samples is not None:
            return q.sample(self.num_samples, seed=noise.next_seed())
        conversion = getattr(distribution_a, "_convert_to_tensor_fn", None)
        name = getattr(conversion, "name", getattr(conversion, "__name__", "sample"))
        if conversion is None or name in set(blocks.CONVERSIONS) - {"sample"}:
            return q.sample(seed=noise.next_seed())  # The mean is no draw.
        return tf.convert_to_tensor(distribution_a)


def check_weight(argument: str, weight: Any) -> None:
    """Check the factor of a KL term.

    Raises:
      TypeError: if it is neither a number nor a variable.
      ValueError: if it is negative or not finite, or a trainable variable.
    """
    if isinstance(weight, tf.Variable):
        if weight.trainable:
            raise ValueError(
                f"{argument}: got a trainable variable, wanted tf.Variable(..., trainable=False): "
                "the optimizer would lower the loss by lowering the weight"
            )
        return
    try:
        number = float(weight)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: got {weight!r}, wanted a number or a tf.Variable") from None
    if isinstance(weight, str) or not 0.0 <= number < math.inf:
        raise ValueError(f"{argument}: got {weight!r}, wanted a finite number >= 0")


def weight_config(weight: Any) -> Any:
    """A weight as JSON: its value, and whether it is a variable."""
    if isinstance(weight, tf.Variable):
        return {"variable": float(weight)}
    return float(weight)


def weight_from_config(config: Any) -> Any:
    """The weight that `weight_config` wrote."""
    if isinstance(config, dict):
        return tf.Variable(config["variable"], trainable=False, dtype="float32")
    return config


def _comparable(q: Any, p: Any) -> tuple[Any, Any]:
    """The pair such that TFP finds the closed form for any two Gaussians over vectors."""
    if isinstance(q, tfd.Independent) == isinstance(p, tfd.Independent):
        return q, p
    return _as_multivariate(q), _as_multivariate(p)


def _as_multivariate(distribution: Any) -> Any:
    if isinstance(distribution, tfd.Independent) and distribution.event_shape.rank == 1:
        normal = distribution.distribution
        if isinstance(normal, tfd.Normal):
            return tfd.MultivariateNormalDiag(normal.mean(), normal.stddev())
    return distribution
