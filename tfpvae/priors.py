"""Priors p(z): distribution layers that take no input, with or without weights."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, distributions, flows, layers, noise, serialization

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
        self._initial = checks.mapping("initial", initial)
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
        super().__init__(
            tfd.Normal, event_shape, initial=start | checks.mapping("initial", initial), **kwargs
        )


@keras.saving.register_keras_serializable("tfpvae.priors")
class Flow(Prior):
    r"""A standard normal pushed through a normalizing flow that is learned.

    $$ z = f(z_0), \quad z_0 \sim \mathcal N(0, I), \qquad
       \log p(z) = \log \mathcal N(f^{-1}(z);\ 0, I)
       + \log \Bigl| \det \frac{\partial f^{-1}}{\partial z} \Bigr| $$

    Training asks a prior for densities, and so for the inverse of f: `flows.MaskedAutoregressive`,
    `flows.RealNVP`, `flows.NeuralSpline` and `flows.Radial` have it in one pass;
    `flows.InverseAutoregressive` takes D passes, `flows.Planar` and `flows.Sylvester` find a root.

    Args:
      event_shape: the size D of z.
      flow: one of `tfpvae.flows`, as a description: the prior makes a flow of its own from it.
        Whatever an encoder would put out is a weight of the prior.
      **kwargs: what `DistributionLayer` takes.

    Raises:
      TypeError: for a flow that is none.
      ValueError: for z that is no vector or not of the flow's size, a flow with a context.

    Example:
      >>> from tfpvae import flows
      >>> prior = Flow(2, flows.RealNVP(4, hidden_units=(32,)))
      >>> round(float(prior().log_prob([0.0, 0.0])), 3)  # it starts as the standard normal
      -1.838

    Source: Rezende and Mohamed, "Variational Inference with Normalizing Flows", 2015; Papamakarios,
    Pavlakou and Murray, "Masked Autoregressive Flow for Density Estimation", 2017.
    """

    parts = ("flow",)

    def __init__(self, event_shape: Any, flow: Any, **kwargs: Any) -> None:
        # Past Keras's tracking, which the layer begins when it is made.
        object.__setattr__(self, "_description", flow)
        super().__init__(tfd.Normal, event_shape, **{"loc": 0.0, "scale": 1.0} | kwargs)

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """The numbers that the flow would have of an encoder."""
        self.flow = flows.own_flow(self._description, self.event_shape, self.dtype)
        if getattr(self.flow, "context_size", 0):
            raise ValueError(
                f"flow: got one with context_size={self.flow.context_size}, wanted 0: a prior has "
                "no encoder"
            )
        return self.flow.free_parameters()

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from its free parameters; `kwargs` go to its constructor."""
        base = super().build_distribution({}, **kwargs)
        return flows.FlowDistribution(base, self.flow.bijector(parameters), **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"flow": keras.saving.serialize_keras_object(self.flow)}

    def title(self) -> str:
        """What errors call the layer: `Planar Flow`."""
        return f"{type(self.flow).__name__} Flow"


@keras.saving.register_keras_serializable("tfpvae.priors")
class Implicit(Prior):
    r"""What a network makes of noise: a prior of any shape, whose density nobody knows.

    $$ z = g(\epsilon), \qquad \epsilon \sim \mathcal N(0, I) $$

    It is trained by `objectives.AdversarialELBO(..., adaptive_contrast=False)`; `VAE.sample` draws
    from it. Whatever needs log p(z) does not go with it: the ELBO, importance sampling, annealing.

    Args:
      event_shape: shape of z, a tuple or a size.
      network: a tf_keras model or layer, g: from vectors of `noise_size` numbers to those of z.
      noise_size: the size of epsilon, as many as z has numbers if None.
      noise: "normal", or "uniform" from -1 to 1.
      **kwargs: of any Keras layer.

    Raises:
      TypeError: for a network that is no tf_keras layer.
      ValueError: for sizes that are not positive, a network that puts out another size than z's,
        another noise.

    Example:
      >>> prior = Implicit(2, keras.Sequential([keras.layers.Dense(2)]), noise_size=4)
      >>> prior().sample(3, seed=[0, 0]).shape
      TensorShape([3, 2])

    Source: Mescheder, Nowozin and Geiger, "Adversarial Variational Bayes", 2017.
    """

    parts = ("network",)
    has_density = False

    def __init__(
        self,
        event_shape: Any,
        network: Any,
        noise_size: int | None = None,
        noise: str = "normal",
        **kwargs: Any,
    ) -> None:
        # Past Keras's tracking, which the layer begins when it is made.
        object.__setattr__(self, "_description", (network, noise_size, noise))
        super().__init__(tfd.Normal, event_shape, **{"loc": 0.0, "scale": 1.0} | kwargs)

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """None: all that is learned is in the network."""
        network, noise_size, noise = self._description
        self._noise_size = blocks.build_generator(network, 0, self.event_shape, noise_size, noise)
        self.network, self._noise = network, noise
        return ()

    @property
    def fixed(self) -> dict[str, Any]:
        """None: those of the base class are not used."""
        return {}

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, which has no parameters; `kwargs` go to its constructor."""
        context = tf.zeros([0], self.dtype)
        return distributions.Implicit(
            context, self.network, self.event_shape, self._noise_size, self._noise, **kwargs
        )

    def repeated(self, num: int) -> Any:
        """Refused: a regression needs the density of its prior.

        Args:
          num: how many.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            f"{self.name}: got an implicit prior, which has no density, wanted one that has, as "
            "priors.Normal(())"
        )

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {
            "network": keras.saving.serialize_keras_object(self.network),
            "noise_size": self._noise_size,
            "noise": self._noise,
        }

    def title(self) -> str:
        """What errors call the layer."""
        return type(self).__name__


@keras.saving.register_keras_serializable("tfpvae.priors")
class StudentT(Prior):
    r"""A normal prior whose precisions have a prior themselves: Student's t distribution.

    $$ z_d \mid \lambda_d \sim \mathcal N(\mu_d,\ \sigma_d^2 / \lambda_d), \qquad
       \lambda_d \sim \operatorname{Gamma}(\nu_d / 2,\ \nu_d / 2) $$

    with the precisions integrated out exactly,

    $$ p(z) = \prod_d \frac{1}{\sigma_d}\, t_{\nu_d}\Bigl(\frac{z_d - \mu_d}{\sigma_d}\Bigr) $$

    A hyperprior Gamma(a, b) of the precision 1 / variance is the one with df = 2 a and
    scale = sqrt(b / a), so to learn df and scale is to learn the hyperprior. It starts at loc 0,
    scale 1 and df 4.

    Args:
      event_shape: shape of z, a tuple or a size.
      shared: whether all entries have one precision, and one df, in common: far out in one of them
        then goes with far out in the others (the multivariate t distribution of a vector z).
      initial: first values of `df`, `loc` and `scale`.
      **kwargs: `df`, `loc` or `scale` to fix it, and what `DistributionLayer` takes.

    Raises:
      ValueError: if `shared` goes with another shape than that of a vector.

    Example:
      >>> prior = StudentT(2, df=1.0, loc=0.0)  # a Cauchy distribution whose scale is learned
      >>> round(float(prior().prob([0.0, 0.0])), 3)  # 1 / pi^2
      0.101
      >>> StudentT(2).params_size, StudentT(2, shared=True).params_size
      (6, 5)

    Source: Tipping, "Sparse Bayesian Learning and the Relevance Vector Machine", 2001 (the
    hyperprior and its integral).
    """

    def __init__(
        self,
        event_shape: Any = (),
        *,
        shared: bool = False,
        initial: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._shared = checks.flag("shared", shared)
        if shared and len(blocks.as_shape("event_shape", event_shape)) != 1:
            raise ValueError(
                f"shared: got True with event_shape={event_shape!r}, wanted that of a vector, "
                "whose entries share the precision"
            )
        distribution = distributions.MultivariateStudentT if shared else tfd.StudentT
        first = {"df": 4.0, "scale": 1.0}
        start = {name: value for name, value in first.items() if name not in kwargs}
        super().__init__(
            distribution, event_shape, initial=start | checks.mapping("initial", initial), **kwargs
        )

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"shared": self._shared}


@keras.saving.register_keras_serializable("tfpvae.priors")
class NormalMixture(Prior):
    r"""A mixture of normal distributions that is learned.

    $$ p(z) = \sum_{k=1}^K \operatorname{softmax}(t)_k
       \prod_d \mathcal N(z_d;\ \mu_{kd}, \sigma_{kd}^2) $$

    or, with `full_rank`, of ones with a full covariance matrix, N(z; mu_k, L_k L_k^T). The
    components start with equal weights and unit scales at random places, draws of the standard
    normal distribution: from one place they would all learn the same.

    Args:
      event_shape: shape of z, a tuple or a size.
      num_components: the number K of components.
      full_rank: whether the components of a vector z have full covariance matrices.
      seed: of the places where the components start; None takes one from Python's `random`, and so
        from `keras.utils.set_random_seed`.
      initial: first values of `logits` `[K]`, `loc` `[K, *event_shape]` and `scale`
        `[K, *event_shape]`, or `scale_tril` `[K, D, D]`; each broadcasts.
      **kwargs: `logits`, `loc`, `scale` or `scale_tril` to fix it (`logits=0.0` for equal weights),
        and what `DistributionLayer` takes.

    Raises:
      TypeError, ValueError: for a number of components that is no positive integer, `full_rank`
        with z that are no vectors.

    Example:
      >>> prior = NormalMixture(1, 2, initial={"loc": [[-3.0], [3.0]]}, logits=0.0)
      >>> round(float(prior().log_prob([3.0])), 3)  # log(1/2) - log(2 pi) / 2
      -1.612
      >>> [weight.shape for weight in prior.trainable_weights]  # loc and scale
      [TensorShape([4])]

    Source: Dilokthanakul et al., "Deep Unsupervised Clustering with Gaussian Mixture Variational
    Autoencoders", 2016; Jiang et al., "Variational Deep Embedding", 2017.
    """

    def __init__(
        self,
        event_shape: Any,
        num_components: int,
        *,
        full_rank: bool = False,
        seed: int | None = None,
        initial: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        shape = blocks.as_shape("event_shape", event_shape)
        self._num_components = checks.positive_integer("num_components", num_components)
        self._full_rank = checks.flag("full_rank", full_rank)
        self._seed = random.randrange(2**32) if seed is None else _seed(seed)
        if full_rank and len(shape) != 1:
            raise ValueError(f"full_rank: got True with event_shape={shape}, wanted a vector")
        distribution: Any = distributions.NormalMixture
        scale, unit = "scale", np.asarray(1.0)
        if full_rank:
            distribution = distributions.MultivariateNormalMixture
            scale, unit = "scale_tril", np.asarray(np.eye(shape[0]))
        spread = np.random.default_rng(self._seed).normal(size=(self._num_components, *shape))
        start = {
            name: value for name, value in (("loc", spread), (scale, unit)) if name not in kwargs
        }
        self._given = checks.mapping("initial", initial)
        super().__init__(distribution, shape, initial=start | self._given, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        config = super().get_config() | {
            "num_components": self._num_components,
            "full_rank": self._full_rank,
            "seed": self._seed,
        }
        return config | {"initial": serialization.to_json("initial", self._given)}

    def _value_shape(self, name: str, property_: Any) -> tuple[int, ...]:
        shape = {"logits": (), "scale_tril": self.event_shape * 2}.get(name, self.event_shape)
        return (self._num_components, *shape)


@keras.saving.register_keras_serializable("tfpvae.priors")
class VampPrior(Prior):
    r"""The mixture of the posteriors of pseudo-inputs, which are learned.

    $$ p(z) = \sum_{k=1}^K \pi_k\, q(z \mid u_k), \qquad \pi_k = \frac1K $$

    The encoder q is that of the `VAE` whose prior this is. The prior that maximizes the mean ELBO
    is the aggregate posterior, the mean of q(z|x) over all data; this one is made of the same
    posteriors, at K points u_k instead of the N examples. They are weights, and start at data
    (`pseudo_inputs=x_train[:500]`, of several classes or regions) or at random.

    The u_k are read by the encoder: after the model's `preprocessing`, and in inference mode
    (`training=False`), so layers of dropout do nothing and batch normalization has the statistics
    of the data. What the encoder's layers draw is the same each time. Its weights are learned
    through the prior, too, and are saved once, as the encoder's.

    Args:
      event_shape: shape of z, a tuple or a size.
      pseudo_inputs: first values `[K, *x shape]` of the u_k, None to draw them.
      num_components: the number K, where they are drawn.
      input_shape: shape of one of them, where they are drawn.
      initializer: a Keras initializer that draws them, None for the standard normal distribution.
      learn_weights: whether the weights pi_k are learned; they start equal.
      **kwargs: `logits` `[K]` to fix other weights, and arguments of any Keras layer.

    Raises:
      TypeError, ValueError: for pseudo-inputs that are no finite numbers; for neither them nor
        `num_components` and `input_shape`, or for both; for a number of components that is no
        positive integer. When the model is built: for pseudo-inputs that the encoder cannot read,
        an encoder whose z is of another shape. When it is used: if it is not the prior of a model.

    Example:
      >>> from tfpvae import VAE, likelihoods, posteriors
      >>> x = np.eye(4, dtype="float32")
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(4), likelihoods.Bernoulli(4)])
      >>> vae = VAE(VampPrior(2, pseudo_inputs=x[:3]), encoder, decoder, seed=0)
      >>> vae.build(x.shape)
      >>> q = vae.posterior(x[:3])  # The pseudo-inputs are where they started.
      >>> z = np.zeros([1, 2], "float32")
      >>> bool(np.allclose(vae.prior().prob(z), np.mean(q.prob(z))))
      True

    Source: Tomczak and Welling, "VAE with a VampPrior", 2018.
    """

    def __init__(
        self,
        event_shape: Any,
        pseudo_inputs: Any = None,
        *,
        num_components: int | None = None,
        input_shape: Any = None,
        initializer: Any = None,
        learn_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        drawn = num_components is not None, input_shape is not None
        if (pseudo_inputs is not None, *drawn) not in ((True, False, False), (False, True, True)):
            given = {"num_components": num_components, "input_shape": input_shape}
            raise ValueError(
                "pseudo_inputs: got "
                f"{'None' if pseudo_inputs is None else 'an array'} with {given}, wanted either "
                "pseudo_inputs, an array [K, *x shape], or both num_components and input_shape"
            )
        if pseudo_inputs is not None:
            array = _finite("pseudo_inputs", pseudo_inputs)
            num_components, input_shape = array.shape[0], array.shape[1:]
        self._num_components = checks.positive_integer("num_components", num_components)
        self._input = blocks.as_shape("input_shape", input_shape)
        self._learn_weights = checks.flag("learn_weights", learn_weights)
        if initializer is None:
            initializer = keras.initializers.RandomNormal(stddev=1.0)
        self._initializer = checks.made("initializer", keras.initializers.get, initializer)
        if learn_weights and "logits" in kwargs:
            raise ValueError("logits: got them fixed and learn_weights=True, wanted one of the two")
        weights = {} if learn_weights else {"logits": 0.0}
        super().__init__(distributions.Mixture, event_shape, **weights | kwargs)
        self.pseudo_inputs = self.add_weight(
            name="pseudo_inputs",
            shape=(self._num_components, *self._input),
            initializer=self._initializer,
        )
        if pseudo_inputs is not None:
            self.pseudo_inputs.assign(array)

    def attach(self, encoder: Any) -> None:
        """Take the encoder of the model whose prior this is.

        Raises:
          ValueError: if it has been given that of another model, or one without a density.
        """
        if not blocks.has_density(encoder):
            raise ValueError(
                f"{self.name}: prior: got a VampPrior with an implicit posterior, wanted another "
                "prior, as priors.NormalMixture: a VampPrior is a mixture of the posteriors' "
                "densities"
            )
        known = self._encoder()
        if known not in (None, encoder):
            raise ValueError(
                f"{self.name}: prior: got one that belongs to a model with another encoder, wanted "
                "a VampPrior of its own for each model"
            )
        # Past Keras's tracking: the encoder and its weights are the model's.
        object.__setattr__(self, "_encoder", lambda: encoder)

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The mixture, from the logits of its weights if they are learned."""
        components = {"components": self._components()}
        return super().build_distribution(parameters | components, **kwargs)

    def repeated(self, num: int) -> Any:
        """Refused: there is no encoder where one number is repeated.

        Args:
          num: how many.

        Raises:
          ValueError: always.
        """
        raise ValueError(self._unattached())

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON; the pseudo-inputs are weights."""
        return super().get_config() | {
            "num_components": self._num_components,
            "input_shape": list(self._input),
            "initializer": keras.initializers.serialize(self._initializer),
            "learn_weights": self._learn_weights,
        }

    def _encoder(self) -> Any:
        """The encoder, None before `attach`, which replaces this method."""
        return None

    def _unattached(self) -> str:
        return (
            f"{self.name}: got no encoder, wanted to be the prior of a VAE: a VampPrior is a "
            "mixture of the posteriors that the model's encoder makes; "
            "VAE(VampPrior(...), encoder, decoder)"
        )

    def _components(self) -> Any:
        """The posteriors q(z|u_k), a distribution with batch shape `[K]`."""
        encoder = self._encoder()
        if encoder is None:
            raise ValueError(self._unattached())
        self._check_input_of(encoder)
        try:
            with noise.fixed(0):  # The value that the posterior passes on is not used.
                q = encoder(tf.convert_to_tensor(self.pseudo_inputs), training=False)
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(
                f"{self._misfit()}, wanted examples as the encoder reads them, after "
                f"`preprocessing`: it refuses them ({error})"
            ) from error
        q = getattr(q, "tensor_distribution", q)
        if tuple(q.event_shape) != self.event_shape:
            raise ValueError(
                f"{self.name}: event_shape: got {self.event_shape}, wanted {tuple(q.event_shape)}, "
                "that of the encoder's posterior"
            )
        if tuple(q.batch_shape) != (self._num_components,):
            raise ValueError(
                f"{self._misfit()}, of which the encoder makes posteriors with batch shape "
                f"{tuple(q.batch_shape)}, wanted ({self._num_components},): one for each of them"
            )
        return q

    def _check_input_of(self, encoder: Any) -> None:
        """Raise ValueError if the encoder is known to read examples of another shape."""
        if isinstance(encoder, keras.Sequential) and not encoder.built:
            # For any batch size at once: else it is rebuilt for that of the data.
            encoder.build((None, *self._input))
        known = getattr(encoder, "_build_input_shape", None)
        if known is None or not isinstance(encoder, keras.Model):
            return
        if not tf.TensorShape(known)[1:].is_compatible_with(self._input):
            raise ValueError(
                f"{self._misfit()}, wanted (K, {', '.join(map(str, known[1:]))}): examples as the "
                "encoder reads them, after `preprocessing`"
            )

    def _misfit(self) -> str:
        shape = (self._num_components, *self._input)
        return f"{self.name}: pseudo_inputs: got shape {shape}"

    def _value_shape(self, name: str, property_: Any) -> tuple[int, ...]:
        return (self._num_components,)

    def _try(self) -> None:
        """Nothing: there is no distribution before there is an encoder."""


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise TypeError(f"seed: got {value!r}, wanted an integer that is not negative, or None")
    return int(value)


def _finite(argument: str, values: Any) -> np.ndarray:
    array = checks.as_array(argument, values)
    if not (np.abs(array) <= np.finfo(np.float32).max).all():
        raise ValueError(f"{argument}: got NaN or infinite values, wanted finite numbers")
    return array


# Discrete z, and their continuous relaxations.


@keras.saving.register_keras_serializable("tfpvae.priors")
class OneHotCategorical(Prior):
    r"""The prior of classes, as vectors of zeros with a single one along the last axis.

    $$ p(z) = \prod_n \prod_k \pi_{nk}^{z_{nk}} $$

    The shares pi of the classes are learned; they start as all alike.

    Args:
      event_shape: shape of z: `(N, K)` for N variables of K classes each, `(K,)` for one.
      sample_dtype: of the draws, the layer's own if None.
      **kwargs: `logits=0.0` fixes all classes alike, `probs` other shares; and what
        `DistributionLayer` takes.

    Example:
      >>> uniform = OneHotCategorical((2, 10), logits=0.0)
      >>> round(float(uniform().prob(tf.one_hot([3, 7], 10))), 4)  # 1 / 10^2
      0.01
      >>> len(uniform.weights), len(OneHotCategorical((2, 10)).weights)
      (0, 1)

    Source: Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017.
    """

    def __init__(self, event_shape: Any, *, sample_dtype: str | None = None, **kwargs: Any) -> None:
        sample_dtype = sample_dtype or blocks.full_precision(kwargs.get("dtype"))
        super().__init__(tfd.OneHotCategorical, event_shape, sample_dtype=sample_dtype, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.priors")
class Bernoulli(Prior):
    r"""The prior of independent bits.

    $$ p(z) = \prod_d \pi_d^{z_d} (1 - \pi_d)^{1 - z_d} $$

    The probabilities pi are learned; they start at 1/2.

    Args:
      event_shape: shape of z, a tuple or a size.
      sample_dtype: of the draws, the layer's own if None.
      **kwargs: `probs=0.5` or `logits` to fix them, and what `DistributionLayer` takes.

    Example:
      >>> round(float(Bernoulli(3, probs=0.5)().prob([0.0, 1.0, 1.0])), 4)  # 1 / 2^3
      0.125

    Source: Mnih and Gregor, "Neural Variational Inference and Learning in Belief Networks", 2014.
    """

    def __init__(
        self, event_shape: Any = (), *, sample_dtype: str | None = None, **kwargs: Any
    ) -> None:
        sample_dtype = sample_dtype or blocks.full_precision(kwargs.get("dtype"))
        # That of ours takes logits that are finite.
        distribution = tfd.Bernoulli if "probs" in kwargs else distributions.Bernoulli
        super().__init__(distribution, event_shape, sample_dtype=sample_dtype, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.priors")
class RelaxedOneHotCategorical(Prior):
    r"""The prior of relaxed classes, a density on the simplex.

    $$ z_{nk} = \operatorname{softmax}_k\bigl((t_{nk} + g_{nk}) / \tau\bigr), \qquad
       g_{nk} \sim \operatorname{Gumbel} $$

    It goes with `posteriors.RelaxedOneHotCategorical`. The logits t are learned and start at 0.

    Args:
      event_shape: shape of z: `(N, K)` for N variables of K classes each, `(K,)` for one.
      temperature: the number tau > 0.
      **kwargs: `logits` to fix them, and what `DistributionLayer` takes.

    Raises:
      ValueError: for a temperature that is not positive.

    Example:
      >>> prior = RelaxedOneHotCategorical(3, temperature=1.0, logits=0.0)
      >>> round(float(prior().prob([1 / 3, 1 / 3, 1 / 3])), 3)  # 2! tau^2
      2.0

    Source: Maddison, Mnih and Teh, "The Concrete Distribution", 2017.
    """

    def __init__(self, event_shape: Any, temperature: float, **kwargs: Any) -> None:
        super().__init__(
            distributions.RelaxedOneHotCategorical,
            event_shape,
            temperature=checks.positive_number("temperature", temperature),
            **kwargs,
        )


@keras.saving.register_keras_serializable("tfpvae.priors")
class RelaxedBernoulli(Prior):
    r"""The prior of relaxed bits, a density on the unit cube.

    $$ z_d = \operatorname{sigmoid}\bigl((t_d + l_d) / \tau\bigr), \qquad
       l_d \sim \operatorname{Logistic}(0, 1) $$

    It goes with `posteriors.RelaxedBernoulli`. The logits t are learned and start at 0.

    Args:
      event_shape: shape of z, a tuple or a size.
      temperature: the number tau > 0.
      **kwargs: `logits` to fix them, and what `DistributionLayer` takes.

    Raises:
      ValueError: for a temperature that is not positive.

    Example:
      >>> prior = RelaxedBernoulli(2, temperature=1.0, logits=0.0)
      >>> round(float(prior().prob([0.2, 0.9])), 3)  # uniform on the unit square
      1.0

    Source: Maddison, Mnih and Teh, "The Concrete Distribution", 2017.
    """

    def __init__(self, event_shape: Any, temperature: float, **kwargs: Any) -> None:
        super().__init__(
            distributions.RelaxedBernoulli,
            event_shape,
            temperature=checks.positive_number("temperature", temperature),
            **kwargs,
        )
