"""Posteriors q(z|x): distribution layers whose value is a draw of z."""

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, distributions, flows, layers

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


# Discrete z, and their continuous relaxations.


@keras.saving.register_keras_serializable("tfpvae.posteriors")
class OneHotCategorical(layers.DistributionLayer):
    r"""The posterior of classes, as vectors of zeros with a single one along the last axis.

    $$ q(z \mid x) = \prod_n \prod_k \pi_{nk}(x)^{z_{nk}},
       \qquad \pi_n = \operatorname{softmax}(t_n) $$

    Its draws are not reparameterized: the gradient is that of an objective for discrete z,
    `ELBO(estimator="relaxed")`, `"enumerated"` or `"score_function"`,
    `IWAE(estimator="score_function")`, or `ReweightedWakeSleep`.

    Shapes: input `[B, N * K]` logits, z `[B, N, K]`, or `[S, B, N, K]` with `num_samples=S`.

    Args:
      event_shape: shape of z: `(N, K)` for N variables of K classes each, `(K,)` for one.
      sample_dtype: of the draws, the layer's own if None.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> posterior = OneHotCategorical((2, 3))
      >>> posterior.params_size
      6
      >>> z = posterior(tf.zeros([1, 6])).sample(seed=[0, 0])
      >>> z.shape, tf.reduce_sum(z, axis=-1).numpy()
      (TensorShape([1, 2, 3]), array([[1., 1.]], dtype=float32))

    Source: Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017.
    """

    def __init__(self, event_shape: Any, *, sample_dtype: str | None = None, **kwargs: Any) -> None:
        sample_dtype = sample_dtype or blocks.full_precision(kwargs.get("dtype"))
        super().__init__(tfd.OneHotCategorical, event_shape, sample_dtype=sample_dtype, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.posteriors")
class Bernoulli(layers.DistributionLayer):
    r"""The posterior of independent bits.

    $$ q(z \mid x) = \prod_d \pi_d(x)^{z_d} (1 - \pi_d(x))^{1 - z_d},
       \qquad \pi_d = \operatorname{sigmoid}(t_d) $$

    Its draws are not reparameterized, see `OneHotCategorical` for the objectives that train it.

    Shapes: input `[B, D]` logits, z `[B, D]`, or `[S, B, D]` with `num_samples=S`.

    Args:
      event_shape: shape of z, a tuple or a size.
      sample_dtype: of the draws, the layer's own if None.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> Bernoulli(2)(tf.constant([[-30.0, 30.0]])).sample(seed=[0, 0]).numpy()
      array([[0., 1.]], dtype=float32)

    Source: Mnih and Gregor, "Neural Variational Inference and Learning in Belief Networks", 2014.
    """

    def __init__(self, event_shape: Any, *, sample_dtype: str | None = None, **kwargs: Any) -> None:
        sample_dtype = sample_dtype or blocks.full_precision(kwargs.get("dtype"))
        super().__init__(distributions.Bernoulli, event_shape, sample_dtype=sample_dtype, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.posteriors")
class RelaxedOneHotCategorical(layers.DistributionLayer):
    r"""The continuous relaxation of classes, a density on the simplex.

    $$ z_{nk} = \operatorname{softmax}_k\bigl((t_{nk}(x) + g_{nk}) / \tau\bigr), \qquad
       g_{nk} \sim \operatorname{Gumbel} $$

    Its draws are reparameterized, and every objective works. The model is a continuous one: it
    goes with `priors.RelaxedOneHotCategorical`, and its ELBO is a bound on log p(x) of that model.
    To train a discrete model through relaxed draws take `OneHotCategorical` and
    `ELBO(estimator="relaxed")`, where there is straight-through, too: a hard z has no density here.

    A draw is scored by what it was made from, so that it may lie on a corner to within rounding.
    The estimators `"sticking_the_landing"` and `"doubly_reparameterized"` score z itself: keep the
    temperature at 0.3 or more for them.

    Shapes: input `[B, N * K]` logits, z `[B, N, K]`, or `[S, B, N, K]` with `num_samples=S`.

    Args:
      event_shape: shape of z: `(N, K)` for N variables of K classes each, `(K,)` for one.
      temperature: the number tau > 0.
      **kwargs: what `DistributionLayer` takes.

    Raises:
      ValueError: for a temperature that is not positive.

    Example:
      >>> z = RelaxedOneHotCategorical((2, 3), temperature=0.5)(tf.zeros([1, 6])).sample()
      >>> tf.reduce_sum(z, axis=-1).numpy().round(5)
      array([[1., 1.]], dtype=float32)

    Source: Maddison, Mnih and Teh, "The Concrete Distribution", 2017; Jang, Gu and Poole,
    "Categorical Reparameterization with Gumbel-Softmax", 2017.
    """

    def __init__(self, event_shape: Any, temperature: float, **kwargs: Any) -> None:
        super().__init__(
            distributions.RelaxedOneHotCategorical,
            event_shape,
            temperature=checks.positive_number("temperature", temperature),
            **kwargs,
        )


@keras.saving.register_keras_serializable("tfpvae.posteriors")
class RelaxedBernoulli(layers.DistributionLayer):
    r"""The continuous relaxation of bits, a density on the unit cube.

    $$ z_d = \operatorname{sigmoid}\bigl((t_d(x) + l_d) / \tau\bigr), \qquad
       l_d \sim \operatorname{Logistic}(0, 1) $$

    Its draws are reparameterized, and every objective works; see `RelaxedOneHotCategorical`. It
    goes with `priors.RelaxedBernoulli`.

    Shapes: input `[B, D]` logits, z `[B, D]`, or `[S, B, D]` with `num_samples=S`.

    Args:
      event_shape: shape of z, a tuple or a size.
      temperature: the number tau > 0.
      **kwargs: what `DistributionLayer` takes.

    Raises:
      ValueError: for a temperature that is not positive.

    Example:
      >>> q = RelaxedBernoulli(2, temperature=0.5)(tf.zeros([1, 2]))
      >>> q.log_prob([[0.5, 0.5]]).numpy().round(3)  # log (tau^2)
      array([-1.386], dtype=float32)

    Source: Maddison, Mnih and Teh, "The Concrete Distribution", 2017.
    """

    def __init__(self, event_shape: Any, temperature: float, **kwargs: Any) -> None:
        super().__init__(
            distributions.RelaxedBernoulli,
            event_shape,
            temperature=checks.positive_number("temperature", temperature),
            **kwargs,
        )


# Posteriors that are no longer Gaussian: others, pushed through a normalizing flow.


@keras.saving.register_keras_serializable("tfpvae.posteriors")
class Flow(blocks.Block):
    r"""A simple posterior pushed through a normalizing flow.

    $$ z = f(z_0;\ x), \quad z_0 \sim q_0(z_0 \mid x), \qquad
       \log q(z \mid x) = \log q_0(z_0 \mid x)
       - \log \Bigl| \det \frac{\partial f}{\partial z_0} \Bigr| $$

    It is reparameterized if its base is. The KL to a prior has no closed form; it is estimated from
    the draws. Nor has the mean: `mean()`, and so `VAE.predict`, takes an estimate from 256 draws
    that are always the same, see `flows.FlowDistribution`.

    The log density of a draw comes with it. Estimators of the gradient other than
    "reparameterized" score z anew, which inverts the flow: D passes for each network of an
    `InverseAutoregressive` flow.

    Shapes: input `[B, base.params_size + size of the flow's parameters]` (those of the base come
    first), z `[B, D]`, or `[S, B, D]` with `num_samples=S`.

    Args:
      event_shape: the size D of z.
      flow: one of `tfpvae.flows`, as a description: the block makes a flow of its own from it.
      base: the block of q_0, as a description too; `DiagonalNormal` if None. Any continuous block
        of the same `event_shape`, also another `Flow`.
      convert_to_tensor_fn: what other layers see: "sample", or an estimate of the "mean", "stddev"
        or "variance".
      num_samples: with "sample", how many draws.
      **kwargs: of any Keras layer.

    Raises:
      TypeError: for a flow or a base that is none.
      ValueError: for z that is no vector or not of the flow's or the base's size, a discrete base.

    Example:
      >>> from tfpvae import flows
      >>> posterior = Flow(2, flows.Planar(8))
      >>> posterior.params_size, Flow.params_size(2, flows.Planar(8))
      (44, 44)
      >>> q = posterior(tf.zeros([5, 44]))
      >>> q.log_prob(q.sample(3)).shape
      TensorShape([3, 5])

    Source: Rezende and Mohamed, "Variational Inference with Normalizing Flows", 2015.
    """

    parts = ("flow", "base")

    def __init__(
        self,
        event_shape: Any,
        flow: Any,
        base: Any = None,
        *,
        convert_to_tensor_fn: Any = "sample",
        num_samples: int | None = None,
        **kwargs: Any,
    ) -> None:
        conversion = blocks.Conversion(convert_to_tensor_fn, num_samples)
        if conversion.name == "mode":
            raise ValueError(
                "convert_to_tensor_fn: got 'mode', which a flow has no formula for, wanted "
                "'sample' or 'mean'"
            )
        super().__init__(event_shape, conversion, **kwargs)
        with tf.init_scope():
            self.flow = flows.own_flow(flow, self.event_shape, self.dtype)
            self.base = self._own_base(base)
        self.complete()

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """Those of the base, and those of the flow."""
        mapped = (p._replace(name=f"flow_{p.name}") for p in self.flow.free_parameters())
        return (*self.base.free, *mapped)

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from its free parameters; `kwargs` go to its constructor."""
        base = {p.name: parameters[p.name] for p in self.base.free}
        flow = {p.name: parameters[f"flow_{p.name}"] for p in self.flow.free_parameters()}
        return flows.FlowDistribution(
            self.base.build_distribution(base, **kwargs), self.flow.bijector(flow), **kwargs
        )

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        made = {"flow": self.flow, "base": self.base}
        return super().get_config() | {
            name: keras.saving.serialize_keras_object(part) for name, part in made.items()
        }

    def title(self) -> str:
        """What errors call the layer: `Planar Flow`."""
        return f"{type(self.flow).__name__} Flow"

    def _own_base(self, base: Any) -> Any:
        """The block of q_0, one of its own."""
        if base is None:
            return DiagonalNormal(self.event_shape, dtype=self.dtype, name="base")
        checks.refuse_keras3("base", base)
        if not isinstance(base, blocks.Block):
            raise TypeError(f"base: got {base!r}, wanted a block, as posteriors.FullRankNormal(2)")
        if base.event_shape != self.event_shape:
            raise ValueError(
                f"base: got one of event_shape {base.event_shape}, wanted {self.event_shape}, that "
                "of z"
            )
        q = base.new(tf.zeros([base.params_size], base.dtype))
        support = q.experimental_default_event_space_bijector()
        if support is None:
            raise ValueError(
                f"base: got {base.title()}, a flow on a discrete base, wanted a continuous one: a "
                "flow stretches densities"
            )
        if support.inverse_event_shape(self.event_shape) != self.event_shape:
            raise ValueError(
                f"base: got {base.title()}, whose values lie on a surface, wanted one with a "
                f"density in all {self.event_shape[0]} dimensions"
            )
        return type(base).from_config(base.get_config() | {"dtype": self.dtype})


# Posteriors that have draws, and no density that is known.


@keras.saving.register_keras_serializable("tfpvae.posteriors")
class Implicit(blocks.Block):
    r"""What a network makes of the encoder's output and noise: a posterior of any shape.

    $$ z = f([h(x), \epsilon]), \qquad \epsilon \sim \mathcal N(0, I) $$

    The map need not be invertible, so q(z|x) can have several modes, holes and edges; but nobody
    knows its density. It is trained by `objectives.AdversarialELBO`, which takes the density ratio
    from a discriminator. There is no `elbo`, no `log_weights` and no importance sampling; log p(x)
    is `vae.log_marginal_likelihood(x, method="ais", proposal="prior")`.

    `mean()`, and so `VAE.predict`, is an estimate from 64 draws whose noise is always the same.

    Shapes: input `[B, context_size]`, h, which goes to the network as it is; z `[B, D]`, or
    `[S, B, D]` with `num_samples=S`.

    Args:
      event_shape: shape of z, a tuple or a size.
      network: a tf_keras model or layer, f: from vectors of `context_size + noise_size` numbers, h
        first, to those of z.
      context_size: the size of h.
      noise_size: the size of epsilon, as many as z has numbers if None.
      noise: "normal", or "uniform" from -1 to 1.
      convert_to_tensor_fn: what other layers see: "sample", or an estimate of the "mean", "stddev"
        or "variance".
      num_samples: with "sample", how many draws.
      **kwargs: of any Keras layer.

    Raises:
      TypeError: for a network that is no tf_keras layer, sizes that are no integers.
      ValueError: for sizes that are not positive, a network that puts out another size than z's,
        another noise.

    Example:
      >>> network = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
      >>> posterior = Implicit(2, network, context_size=16, noise_size=4)
      >>> posterior.params_size
      16
      >>> posterior(tf.zeros([5, 16])).sample(3).shape
      TensorShape([3, 5, 2])

    Source: Mescheder, Nowozin and Geiger, "Adversarial Variational Bayes", 2017.
    """

    parts = ("network",)
    has_density = False

    def __init__(
        self,
        event_shape: Any,
        network: Any,
        context_size: int,
        noise_size: int | None = None,
        noise: str = "normal",
        *,
        convert_to_tensor_fn: Any = "sample",
        num_samples: int | None = None,
        **kwargs: Any,
    ) -> None:
        conversion = blocks.Conversion(convert_to_tensor_fn, num_samples)
        if conversion.name == "mode":
            raise ValueError(
                "convert_to_tensor_fn: got 'mode', which an implicit distribution has no formula "
                "for, wanted 'sample' or 'mean'"
            )
        super().__init__(event_shape, conversion, **kwargs)
        self._context_size = checks.positive_integer("context_size", context_size)
        self._noise_size = blocks.build_generator(
            network, context_size, self.event_shape, noise_size, noise
        )
        self.network, self._noise = network, noise
        self.complete()

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """The context h."""
        return (blocks.Parameter("context", tfp.bijectors.Identity(), (self._context_size,)),)

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from its free parameters; `kwargs` go to its constructor."""
        return distributions.Implicit(
            parameters["context"],
            self.network,
            self.event_shape,
            self._noise_size,
            self._noise,
            **kwargs,
        )

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {
            "network": keras.saving.serialize_keras_object(self.network),
            "context_size": self._context_size,
            "noise_size": self._noise_size,
            "noise": self._noise,
        }
