"""Divergences as activity regularizers of posterior blocks, each counted once.

KLDivergenceRegularizer is that of each example's posterior from the prior, a mean over the
examples; the others are of the aggregate posterior, and take a batch as a whole.
"""

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, discrete, noise, serialization

tfd = tfp.distributions


class _Handled(threading.local):  # The replicas of tf.distribute are threads.
    regularizers: tuple[Any, ...] = ()


_handled = _Handled()


class _OfPosterior:
    """An activity regularizer of a posterior block, which Keras adds to the loss once."""

    num_samples: int | None

    @property
    def parts(self) -> list[Any]:
        """The regularizers that it is made of."""
        return [self]

    def addends(self, distribution_a: Any) -> dict[str, Any]:
        """What is added to the loss of a batch, by name: scalars."""
        raise NotImplementedError

    def __call__(self, output: Any) -> Any:
        """What Keras divides by the leading axis of `output` and adds to the loss."""
        distribution = getattr(output, "_tfp_distribution", output)
        if not hasattr(distribution, "tensor_distribution"):
            if tf.is_tensor(output) and output.shape.rank is None:
                # Only the export of a SavedModel asks so: it traces a function that whoever loads
                # the layer with its class, and so with this regularizer, does not use.
                return tf.zeros([])
            raise TypeError(
                f"{type(self).__name__}: got {output!r}, wanted the output of a distribution "
                "layer: give it to a posterior block as activity_regularizer="
            )
        value = tf.convert_to_tensor(distribution)
        # Keras asks once with the distribution and once more with its value.
        counted, _ = getattr(value, "_tfpvae_counted", (None, {}))
        if (output is value and counted is self) or self._is_handled():
            return tf.zeros([], value.dtype)
        addends = self.addends(distribution)
        value._tfpvae_counted = self, addends
        total = tf.add_n([*addends.values()])
        return total * tf.cast(tf.shape(value)[0], total.dtype)

    def added(self, distribution_a: Any) -> dict[str, Any]:
        """What it has added to the loss for this output of a posterior layer, by name."""
        counted, addends = getattr(
            tf.convert_to_tensor(distribution_a), "_tfpvae_counted", (None, {})
        )
        return addends if counted is self else {}

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Add nothing to the loss inside, because somebody else counts it."""
        outer, _handled.regularizers = _handled.regularizers, (*_handled.regularizers, self)
        try:
            yield
        finally:
            _handled.regularizers = outer

    def _is_handled(self) -> bool:
        own = (self, *self.parts)
        return any(known is mine for known in _handled.regularizers for mine in own)

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


class _WithPrior:
    """What has a prior as `distribution_b`."""

    distribution_b: Any

    def prior(self) -> Any:
        """The prior p(z) as a distribution."""
        if isinstance(self.distribution_b, tfd.Distribution):
            return self.distribution_b
        if isinstance(self.distribution_b, keras.Model):
            return self.distribution_b(0.0)  # As TFP: a model has to be called with something.
        return self.distribution_b()


@keras.saving.register_keras_serializable("tfpvae")
class KLDivergenceRegularizer(_OfPosterior, _WithPrior, tfp.layers.KLDivergenceRegularizer):
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
        _check_prior(distribution_b)
        if use_exact_kl not in (None, True, False):
            raise TypeError(f"use_exact_kl: got {use_exact_kl!r}, wanted None, True or False")
        if num_samples is not None:
            checks.positive_integer("num_samples", num_samples)
        check_weight("weight", weight)
        super().__init__(distribution_b, use_exact_kl=use_exact_kl, weight=weight)
        self.num_samples = num_samples

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
        _check_sizes(q, p)
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

    def addends(self, distribution_a: Any) -> dict[str, Any]:
        """What is added to the loss of a batch: the weighted mean of the KL."""
        kl = tf.reduce_mean(self.divergence(distribution_a))
        return {"kl": tf.cast(self.weight, kl.dtype) * kl}

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return {
            "distribution_b": _prior_config(self.distribution_b),
            "use_exact_kl": self.use_exact_kl,
            "num_samples": self.num_samples,
            "weight": weight_config(self.weight),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "KLDivergenceRegularizer":
        """The regularizer that a configuration describes."""
        prior = _prior_from_config(config["distribution_b"])
        weight = weight_from_config(config["weight"])
        return cls(**config | {"distribution_b": prior, "weight": weight})


class AggregateRegularizer(_OfPosterior, keras.regularizers.Regularizer):
    r"""A divergence of the aggregate posterior, estimated from a batch, as activity regularizer.

    $$ q(z) = \mathbb E_{p(x)}\, q(z \mid x), \qquad
       \text{loss} = \frac1B \sum_{b=1}^{B} \text{loss}_b + w\, \hat D $$

    In a plain Keras model, give it to the posterior block and Keras adds w D to the loss, whatever
    the batch size and the number of draws. In a `VAE` it stands beside the objective, and D is in
    the history by the regularizer's `name`.

    D belongs to the batch and not to its examples: it has no sample weights, each example counts
    alike in q(z). A batch of one example tells nothing of q(z): its D is 0.

    For a divergence of your own derive from this class and define `name` and `estimate`.

    Args:
      weight: the factor w, a number or a `tf.Variable(..., trainable=False)` that a callback
        changes. A plain number is compiled into the training step.
      num_samples: how many draws of its own it takes of each q(z|x); None takes the ones that the
        layer passes on (one of its own if the layer passes its mean on).

    Raises:
      TypeError, ValueError: for a weight that is no number, negative, or trainable; a number of
        draws that is no positive integer.

    Example:
      >>> from tfpvae import posteriors
      >>> class Moment(AggregateRegularizer):
      ...     name = "moment"
      ...     def estimate(self, q, z):
      ...         return tf.reduce_sum(tf.reduce_mean(z, axis=[0, 1]) ** 2)
      >>> posterior = posteriors.DiagonalNormal(2, activity_regularizer=Moment(weight=10.0))
      >>> q = posterior(tf.ones([64, 4]))
      >>> len([loss for loss in posterior.losses if loss > 0])
      1

    Source: Zhao, Song and Ermon, "InfoVAE: Balancing Learning and Inference in Variational
    Autoencoders", 2019; Makhzani et al., "Adversarial Autoencoders", 2016 (the aggregate
    posterior).
    """

    #: what the history calls it
    name: str = "divergence"

    def __init__(self, weight: Any = 1.0, *, num_samples: int | None = None) -> None:
        check_weight("weight", weight)
        if num_samples is not None:
            num_samples = checks.positive_integer("num_samples", num_samples)
        self.weight, self.num_samples = weight, num_samples

    def estimate(self, q: Any, z: Any) -> Any:
        """The divergence, a scalar.

        Args:
          q: the posteriors q(z|x) of a batch of two examples or more, with batch shape `[B]`.
          z: draws of them, `[S, B, ...]`.
        """
        raise NotImplementedError

    def divergence(self, distribution_a: Any, draws: Any = None) -> Any:
        """The divergence of the aggregate posterior of these examples, without the weight.

        Args:
          distribution_a: the posteriors q(z|x), what a posterior layer or `VAE.posterior` returned.
          draws: draws of z from them, `[S, B, ...]`, in place of those it takes.

        Returns:
          A scalar tensor.

        Raises:
          ValueError: for draws that are not reparameterized, which would have no gradient.
        """
        q = getattr(distribution_a, "tensor_distribution", distribution_a)
        if q.reparameterization_type != tfd.FULLY_REPARAMETERIZED:
            raise ValueError(
                f"{type(self).__name__}: got the posterior {q.name}, whose draws are not "
                "reparameterized and so would give no gradient, wanted a continuous one"
            )
        z = self.draws(distribution_a) if draws is None else tf.convert_to_tensor(draws)
        if z.shape.rank == 1 + q.event_shape.rank:
            z = z[tf.newaxis]
        with self.handled():  # A prior may be made by the encoder that this regularizes.
            value = self.estimate(q, z)
        return tf.where(tf.shape(z)[1] > 1, value, tf.zeros_like(value))

    def addends(self, distribution_a: Any) -> dict[str, Any]:
        """What is added to the loss of a batch: the weighted divergence."""
        value = self.divergence(distribution_a)
        return {self.name: tf.cast(self.weight, value.dtype) * value}

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return {"weight": weight_config(self.weight), "num_samples": self.num_samples}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The regularizer that a configuration describes."""
        if "distribution_b" in config:
            config = config | {"distribution_b": _prior_from_config(config["distribution_b"])}
        return cls(**config | {"weight": weight_from_config(config["weight"])})


#: kernels as functions of r = |z - z'|^2 / (2 l^2)
KERNELS = {"rbf": lambda r: tf.exp(-r), "imq": lambda r: 1.0 / (1.0 + r)}


@keras.saving.register_keras_serializable("tfpvae")
class MaximumMeanDiscrepancy(_WithPrior, AggregateRegularizer):
    r"""The squared maximum mean discrepancy of the aggregate posterior from the prior.

    $$ \mathrm{MMD}^2 = \mathbb E\, k(z, z') - 2\, \mathbb E\, k(z, \zeta)
       + \mathbb E\, k(\zeta, \zeta'), \qquad z, z' \sim q(z), \quad \zeta, \zeta' \sim p(z) $$

    It is zero if and only if q(z) = p(z). It takes draws alone: posterior and prior may be of any
    kind that can be drawn from. The kernels are

    $$ k_{\text{rbf}}(z, z') = e^{-r}, \qquad k_{\text{imq}}(z, z') = \frac{1}{1 + r}, \qquad
       r = \frac{\lVert z - z' \rVert^2}{2\, l^2} $$

    The means are over all pairs of draws from different examples, and as many draws from the prior
    as there are of the posterior: the estimate is unbiased, for a batch of any size, and so it is
    below zero at times. It takes (S B)^2 kernels for S draws of each of B examples.

    With the weight w and `kl_weight` of `objectives.ELBO`, InfoVAE's alpha and lambda are
    kl_weight = 1 - alpha and w = alpha + lambda - 1; a Wasserstein autoencoder has kl_weight = 0
    and w = lambda.

    Args:
      distribution_b: the prior p(z): a block of `tfpvae.priors`, a `tfd.Distribution`, or a
        function without arguments that returns one.
      weight: the factor w, a number or a non-trainable variable. MMD^2 is below 2, not in nats: w
        is the price of a discrepancy, in nats an example, and has to be large.
      kernel: "rbf", the Gaussian one, or "imq", the inverse multiquadratic one, whose gradient
        reaches draws far away from the prior.
      length_scale: the l, or a list of them, for the mean of their kernels. None for the square
        root of the number of dimensions: 2 l^2 is then the mean squared distance of two draws from
        a standard normal prior.
      unbiased: False takes all pairs, those of a draw with itself too: never below zero, and too
        large by a term of order 1 / B.
      num_samples: how many draws of its own it takes of each q(z|x); None takes the ones that the
        layer passes on.

    Raises:
      TypeError, ValueError: for a prior that is none, an unknown kernel, length scales that are not
        positive, and as `AggregateRegularizer`; if prior and posterior differ in size.

    Example:
      >>> from tfpvae import posteriors, priors
      >>> mmd = MaximumMeanDiscrepancy(priors.StandardNormal(2), weight=100.0)
      >>> posterior = posteriors.DiagonalNormal(2, activity_regularizer=mmd)
      >>> far_away = posterior(tf.fill([64, 4], 5.0))
      >>> bool(mmd.divergence(far_away) > 0.3)
      True

    Source: Gretton et al., "A Kernel Two-Sample Test", 2012, lemma 6; Zhao, Song and Ermon,
    "InfoVAE", 2019; Tolstikhin et al., "Wasserstein Auto-Encoders", 2018 (the kernel "imq", whose
    C is 2 l^2).
    """

    name = "mmd"

    def __init__(
        self,
        distribution_b: Any,
        weight: Any = 1.0,
        kernel: str = "rbf",
        length_scale: Any = None,
        *,
        unbiased: bool = True,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(weight, num_samples=num_samples)
        _check_prior(distribution_b)
        if not checks.one_of(kernel, KERNELS):
            raise ValueError(f"kernel: got {kernel!r}, wanted one of {', '.join(KERNELS)}")
        if isinstance(length_scale, (list, tuple)):
            if not length_scale:
                raise ValueError("length_scale: got an empty list, wanted positive numbers")
            length_scale = [checks.positive_number("length_scale", each) for each in length_scale]
        elif length_scale is not None:
            length_scale = checks.positive_number("length_scale", length_scale)
        self.distribution_b, self.kernel, self.length_scale = distribution_b, kernel, length_scale
        self.unbiased = checks.flag("unbiased", unbiased)

    def estimate(self, q: Any, z: Any) -> Any:
        """The squared maximum mean discrepancy, a scalar."""
        p = self.prior()
        _check_sizes(q, p)
        prior_z = tf.cast(p.sample(tf.shape(z)[:2], seed=noise.next_seed()), z.dtype)
        own, cross, priors = (
            self._mean_kernel(z, z, same=True),
            self._mean_kernel(z, prior_z),
            self._mean_kernel(_as_rows(prior_z), _as_rows(prior_z), same=True),
        )
        return own - 2.0 * cross + priors

    def _mean_kernel(self, a: Any, b: Any, same: bool = False) -> Any:
        """The mean of k over draws `[S, B, ...]`; of the same ones, over different examples."""
        batch = tf.shape(a)[1]
        draws = tf.shape(a)[0]
        kernels = self._kernel(_as_rows(a)[0], _as_rows(b)[0])
        if not (same and self.unbiased):
            return tf.reduce_mean(kernels)
        kernels = tf.reshape(kernels, [draws, batch, draws, batch])
        of_examples = tf.reduce_mean(kernels, axis=[0, 2])
        of_others = tf.linalg.set_diag(of_examples, tf.zeros([batch], kernels.dtype))
        pairs = tf.cast(batch, kernels.dtype) * tf.cast(tf.maximum(batch - 1, 1), kernels.dtype)
        return tf.reduce_sum(of_others) / pairs

    def _kernel(self, a: Any, b: Any) -> Any:
        """The kernel of each of the vectors `[N, D]` with each of `[M, D]`: `[N, M]`."""
        scales = math.sqrt(a.shape[-1]) if self.length_scale is None else self.length_scale
        scales = scales if isinstance(scales, list) else [scales]
        norms = tf.reduce_sum(a**2, axis=-1)[:, None] + tf.reduce_sum(b**2, axis=-1)[None]
        squares = tf.maximum(norms - 2.0 * tf.matmul(a, b, transpose_b=True), 0.0)
        kernel = KERNELS[self.kernel]
        return tf.add_n([kernel(squares / (2.0 * length**2)) for length in scales]) / len(scales)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {
            "distribution_b": _prior_config(self.distribution_b),
            "kernel": self.kernel,
            "length_scale": self.length_scale,
            "unbiased": self.unbiased,
        }


@keras.saving.register_keras_serializable("tfpvae")
class TotalCorrelation(AggregateRegularizer):
    r"""The total correlation of the aggregate posterior: how far the z_d are from independent.

    $$ \mathrm{TC} = \mathrm{KL}\Bigl(q(z)\ \Big\|\ \prod_d q(z_d)\Bigr)
       = \mathbb E_{q(z)} \Bigl[\log q(z) - \sum_d \log q(z_d)\Bigr] $$

    Without `num_data` it is that of the batch as if there were no other examples, minibatch
    weighting,

    $$ q(z_i) \approx \frac1B \sum_j q(z_i \mid x_j) $$

    This is between 0 and (D - 1) log B on average, and mostly too large while few posteriors of a
    batch overlap: then it holds the posteriors wide, too. (Chen et al. have 1 / (N B) in place of
    1 / B, which adds the constant (D - 1) log N to the value and nothing to its gradient.) With
    `num_data`, the number N of examples that batches are taken from, it is minibatch stratified
    sampling,

    $$ q(z_i) \approx \frac1N\, q(z_i \mid x_i)
       + \frac{N - 1}{N}\, \frac{1}{B - 1} \sum_{j \ne i} q(z_i \mid x_j) $$

    which is unbiased for the density, but not for its logarithm: where posteriors are narrow the
    value may be far off, below zero too, and training finds that. Both are exact if the batch is
    all data, which is how to get a value: `TotalCorrelation().divergence(vae.posterior(x))`.

    A weight w in a `VAE` makes its loss that of the beta-TCVAE with beta = 1 + w. It takes S B^2 D
    densities for S draws of each of B examples.

    Args:
      weight: the factor w, a number or a non-trainable variable.
      num_data: the number N of examples that the batches are taken from, for stratified sampling;
        None for minibatch weighting.
      num_samples: how many draws of its own it takes of each q(z|x); None takes the ones that the
        layer passes on.

    Raises:
      TypeError, ValueError: for a number of data that is no integer of at least 2, and as
        `AggregateRegularizer`; for posteriors whose dimensions are not independent given x.

    Example:
      >>> tc = TotalCorrelation()
      >>> loc = tf.constant([[-9.0, -9.0], [0.0, 0.0], [9.0, 9.0]])
      >>> q = tfd.Independent(tfd.Normal(loc, 1.0), 1)
      >>> round(float(tc.divergence(q)), 4)  # z_1 tells z_2: log 3
      1.0986

    Source: Chen, Li, Grosse and Duvenaud, "Isolating Sources of Disentanglement in Variational
    Autoencoders", 2018, appendix C (the stratified estimate is a mean over the choices of the
    example that they treat apart); Watanabe, "Information Theoretical Analysis of Multivariate
    Correlation", 1960.
    """

    name = "total_correlation"

    def __init__(
        self, weight: Any = 1.0, num_data: int | None = None, *, num_samples: int | None = None
    ) -> None:
        super().__init__(weight, num_samples=num_samples)
        if num_data is not None:
            num_data = checks.positive_integer("num_data", num_data)
            if num_data < 2:
                raise ValueError("num_data: got 1, wanted the number of examples in the data, >= 2")
        self.num_data = num_data

    def estimate(self, q: Any, z: Any) -> Any:
        """The total correlation, a scalar, in nats."""
        marginals: Any = getattr(q, "distribution", None)
        if not isinstance(q, tfd.Independent) or marginals.event_shape.rank:
            raise ValueError(
                f"TotalCorrelation: got the posterior {q.name}, wanted one whose dimensions are "
                "independent given x, as posteriors.DiagonalNormal: it takes the density of each"
            )
        batch = tf.shape(z)[1]
        each = marginals.log_prob(z[:, :, tf.newaxis])  # [S, i, j, ...]: z_i under q(.|x_j)
        each = tf.reshape(each, [-1, batch, batch, math.prod(q.event_shape)])
        log_weights = self._log_weights(batch, each.dtype)[..., None]
        # The last column is of z as a whole.
        log_probs = tf.concat([each, tf.reduce_sum(each, axis=-1, keepdims=True)], axis=-1)
        log_densities = tf.reduce_logsumexp(log_weights + log_probs, axis=2)
        return tf.reduce_mean(
            log_densities[..., -1] - tf.reduce_sum(log_densities[..., :-1], axis=-1)
        )

    def _log_weights(self, batch: Any, dtype: Any) -> Any:
        """The logarithm of what q(.|x_j) counts for at z_i, `[B, B]`."""
        size, num = tf.cast(batch, dtype), self.num_data
        if num is None:
            return tf.fill([batch, batch], -tf.math.log(size))
        others = math.log1p(-1.0 / num) - tf.math.log(tf.maximum(size - 1.0, 1.0))
        own = tf.fill([batch], tf.constant(-math.log(num), dtype))
        return tf.linalg.set_diag(tf.fill([batch, batch], others), own)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"num_data": self.num_data}


@keras.saving.register_keras_serializable("tfpvae")
class Sum(_OfPosterior, keras.regularizers.Regularizer):
    r"""Several regularizers of one posterior block.

    $$ \text{added to the loss} = \sum_i w_i D_i $$

    Args:
      parts: a list of `KLDivergenceRegularizer`, `MaximumMeanDiscrepancy`, `TotalCorrelation` and
        others of their kind, each with its weight. In a `VAE`, which adds the KL itself, without
        the first.

    Raises:
      TypeError: for something else.
      ValueError: for none, or several of one name.

    Example:
      >>> from tfpvae import posteriors, priors
      >>> prior = priors.StandardNormal(2)
      >>> both = Sum([KLDivergenceRegularizer(prior), TotalCorrelation(weight=5.0)])
      >>> posterior = posteriors.DiagonalNormal(2, activity_regularizer=both)
      >>> sorted(both.addends(posterior(tf.ones([64, 4]))))
      ['kl', 'total_correlation']
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        if not isinstance(parts, (list, tuple)) or not all(
            isinstance(part, (AggregateRegularizer, KLDivergenceRegularizer)) for part in parts
        ):
            raise TypeError(f"parts: got {parts!r}, wanted a list of regularizers of tfpvae")
        names = [getattr(part, "name", "kl") for part in parts]
        if not parts or len(set(names)) < len(names):
            raise ValueError(f"parts: got {names}, wanted one regularizer or more, each once")
        self._parts = list(parts)

    @property
    def parts(self) -> list[Any]:
        """The regularizers that it is made of."""
        return self._parts

    @property
    def distribution_b(self) -> list[Any]:
        """The priors of the parts: for the block, whose attributes Keras saves."""
        return [part.distribution_b for part in self.parts if hasattr(part, "distribution_b")]

    def addends(self, distribution_a: Any) -> dict[str, Any]:
        """What is added to the loss of a batch, by name."""
        pairs = (pair for part in self.parts for pair in part.addends(distribution_a).items())
        return dict(pairs)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        priors = [getattr(part, "distribution_b", None) for part in self.parts]
        first = [next(i for i, p in enumerate(priors) if p is prior) for prior in priors]
        parts = [keras.saving.serialize_keras_object(part) for part in self.parts]
        return {"parts": parts, "prior_of": first}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Sum":
        """The regularizer that a configuration describes."""
        parts = [keras.saving.deserialize_keras_object(part) for part in config["parts"]]
        for part, first in zip(parts, config["prior_of"], strict=True):
            if hasattr(part, "distribution_b"):  # One prior, if it was one: with its weights.
                part.distribution_b = parts[first].distribution_b
        return cls(parts)


def _as_rows(draws: Any) -> Any:
    """Draws `[S, B, ...]` as one of each of S B examples: `[1, S B, D]`."""
    return tf.reshape(draws, [1, -1, math.prod(draws.shape[2:])])


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


def _check_prior(distribution_b: Any) -> None:
    checks.refuse_keras3("distribution_b", distribution_b)
    if not isinstance(distribution_b, tfd.Distribution) and not callable(distribution_b):
        raise TypeError(
            f"distribution_b: got {distribution_b!r}, wanted a block of tfpvae.priors, a "
            "tfd.Distribution, or a function that returns one"
        )


def _check_sizes(q: Any, p: Any) -> None:
    if not q.event_shape.is_compatible_with(p.event_shape):
        raise ValueError(
            f"prior and posterior differ in size: the prior has events of shape "
            f"{tuple(p.event_shape)}, the posterior of shape {tuple(q.event_shape)}"
        )


def _prior_config(distribution_b: Any) -> Any:
    """A prior as JSON."""
    if isinstance(distribution_b, tfd.Distribution):
        return serialization.to_json("distribution_b", distribution_b)
    if isinstance(distribution_b, keras.layers.Layer):
        return keras.saving.serialize_keras_object(distribution_b)
    raise TypeError(
        f"distribution_b: got {distribution_b!r}, which a file cannot hold: use a block of "
        "tfpvae.priors"
    )


def _prior_from_config(config: Any) -> Any:
    """The prior that `_prior_config` wrote."""
    prior = serialization.from_json(config)
    return keras.saving.deserialize_keras_object(config) if isinstance(prior, dict) else prior
