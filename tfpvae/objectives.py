"""Objectives: what training minimizes, as functions of the log weights of draws of z.

The log weight of a draw z_s of q(z|x) is log w_s = log p(x, z_s) - log q(z_s|x). An objective has
an equation in the log weights, and a gradient estimator that is chosen by name.
"""

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, discrete, noise, regularizers, replicas, schedules

tfd = tfp.distributions

# Far below the resolution of float32 beside weights that add up to one, and a safe divisor.
_TINY = 1e-15

# Draws that the moments of a posterior are estimated from.
_CONTRAST_DRAWS = 64

# The least variance that draws are standardized by: those of a posterior that is a point have none.
_LEAST_VARIANCE = 1e-12

# Estimators for z of finitely many states, whose loss has a gradient by automatic differentiation.
_OF_DISCRETE = ("relaxed", "enumerated")

_MISLED = ": few draws give an estimate that is lowest for a posterior that misses all weights"


class Gate:
    r"""Passes z on, and its gradient times a factor that is known only once z has been scored.

    $$ \mathrm{gate}(z_s) = z_s, \qquad
       \frac{\partial\, \mathrm{gate}(z_s)}{\partial z_s} = c_s $$

    Estimators weight what reaches the posterior through z differently from what reaches the model.
    This way one backward pass does both.

    Args:
      is_open: False stops the gradient.

    Example:
      >>> z, gate = tf.Variable([[1.0], [2.0]]), Gate()
      >>> with tf.GradientTape() as tape:
      ...     loss = tf.reduce_sum(gate(z) ** 2)
      ...     gate.factor = tf.constant([0.0, 10.0])
      >>> tape.gradient(loss, z).numpy().ravel()
      array([ 0., 40.], dtype=float32)
    """

    def __init__(self, is_open: bool = True) -> None:
        self.is_open = is_open
        self.factor: Any = None

    def __call__(self, z: Any) -> Any:
        """The same z."""
        if not self.is_open:
            return tf.stop_gradient(z)
        return tf.custom_gradient(lambda z: (tf.identity(z), self._weighted))(z)

    def _weighted(self, gradient: Any) -> Any:
        if self.factor is None:
            return gradient
        factor = tf.cast(self.factor, gradient.dtype)
        ones = tf.ones(gradient.shape.rank - factor.shape.rank, tf.int32)
        return gradient * tf.reshape(factor, tf.concat([tf.shape(factor), ones], 0))


class Sample(NamedTuple):
    r"""Values of z, and how to take the mean over them.

    $$ \mathbb E_{q(z \mid x)}[f(z)] \approx \sum_s c_s f(z_s) $$

    Args:
      z: `[S, B, ...]`, or `[B, ...]` for one draw.
      weights: the c_s, `[S, B]`; None for 1 / S.
      kl_by_layer: KL(q(z|x) || p(z)) of the layers of z, each `[B]`, if it belongs to these
        values; None for that of the model.

    Example:
      >>> Sample(tf.zeros([5, 2, 1])).weights is None
      True
    """

    z: Any
    weights: Any = None
    kl_by_layer: list[Any] | None = None


class Coefficients(NamedTuple):
    r"""What each draw counts for in the estimate of a gradient; tensors `[S, B]`.

    The gradients to climb are, for the weights theta of the model (prior and decoder) and phi of
    the posterior (encoder),

    $$ \sum_s m_s\, \partial_\theta \log p(x, z_s), \qquad
       \sum_s \Bigl( a_s\, \frac{\partial \log w_s}{\partial z_s}
       \frac{\partial z_s}{\partial \phi}
       + b_s\, \partial_\phi \log q_\phi(z \mid x) \big|_{z = z_s} \Bigr) $$

    Example:
      >>> v = tf.nn.softmax([[0.0], [1.0]], axis=0)
      >>> Coefficients(v, path=v**2).score is None  # IWAE, doubly reparameterized
      True
    """

    model: Any  # m
    path: Any = None  # a: through z, None for 0
    score: Any = None  # b: through the density of q, None for 0


@dataclasses.dataclass(frozen=True)
class Draws:
    r"""Draws of z from the posteriors of a batch, and the densities that objectives are made of.

    $$ \log w_s = \log p(x \mid z_s) + w\, (\log p(z_s) - \log q(z_s \mid x)) $$

    Args:
      posterior: q(z|x), a distribution with batch shape `[B]`.
      prior: p(z).
      z: draws `[S, B, ...]`, as they came out of the gate.
      gate: what they went through.
      log_likelihood: log p(x|z), `[S, B]`.
      kl: KL(q(z|x) || p(z)), `[B]`: in closed form, or from these draws; None if there is no
        density to take it from.
      kl_by_layer: the parts of the KL by name, each `[B]`, where z has several layers.
      kl_by_dimension: a function that returns the KL of each latent dimension, `[B, D]`.
      dream: a function that draws (x, z) from the model and returns log q(z|x), `[B]`; None in
        evaluation.
      kl_weight: the factor w in the log weights.
      weights: what each z counts for in a mean over them, `[S, B]`; None for 1 / S.
      data: what the encoder saw, a tensor `[B, ...]` or a list of them.

    Example:
      >>> from tfpvae import posteriors
      >>> q, p = posteriors.DiagonalNormal(1)(tf.zeros([1, 2])), tfd.Normal([0.0], 1.0)
      >>> prior, gate = tfd.Independent(p, 1), Gate()
      >>> draws = Draws(q, prior, gate(q.sample(3)), gate, tf.zeros([3, 1]), tf.zeros([1]))
      >>> draws.log_weights.shape
      TensorShape([3, 1])
    """

    posterior: Any
    prior: Any
    z: Any
    gate: Gate
    log_likelihood: Any
    kl: Any
    kl_by_layer: dict[str, Any] = dataclasses.field(default_factory=dict)
    kl_by_dimension: Callable[[], Any] | None = None
    dream: Callable[[], Any] | None = None
    kl_weight: Any = 1.0
    weights: Any = None
    data: Any = None

    @property
    def nll(self) -> Any:
        """Minus the mean of log p(x|z) over the z, `[B]`."""
        if self.weights is None:
            return -tf.reduce_mean(self.log_likelihood, axis=0)
        return -tf.reduce_sum(self.weights * self.log_likelihood, axis=0)

    @property
    def log_weights(self) -> Any:
        """The log weights `[S, B]`, with the gradient of all that it depends on."""
        return self._log_joint - self.kl_weight * self.posterior.log_prob(self.z)

    def loss(self, value: Any, coefficients: Coefficients) -> Any:
        """A loss `[B]` of this value whose gradient is minus the estimate of the coefficients."""
        model, path, score = coefficients
        if path is not None and path is not model:
            model = tf.maximum(model, _TINY)
            self.gate.factor = tf.stop_gradient(path / model)
        joint = self._log_joint
        if path is not None:
            joint -= self.kl_weight * blocks.log_prob_through(self.posterior, self.z)
        total = tf.stop_gradient(model) * joint
        if score is not None:
            fixed = tf.stop_gradient(self.z)
            total += tf.stop_gradient(score) * self.posterior.log_prob(fixed)
        return _with_gradient_of(value, -tf.reduce_sum(total, axis=0))

    @property
    def _log_joint(self) -> Any:
        return self.log_likelihood + self.kl_weight * self.prior.log_prob(self.z)


class Objective:
    r"""A bound on log p(x), a function of the log weights of S draws; its negative is the loss.

    For a bound of your own derive from this class and define `bound`: it is trained by two
    estimators of its gradient,

    - `"reparameterized"`: automatic differentiation, through z = z(phi, epsilon);
    - `"score_function"`: for z that cannot be reparameterized, as discrete ones. With L the bound
      of all draws, and L_s the bound with log w_s replaced by the mean of the others, which is a
      baseline for draw s,

    $$ \partial_\phi L \approx \sum_s \bigl( (L - L_s)\, \partial_\phi \log q(z_s \mid x)
       + \frac{\partial L}{\partial \log w_s}\, \partial_\phi \log w_s \big|_{z_s} \bigr) $$

    Args:
      num_samples: the number S of draws for each example; None takes those that the posterior block
        passes on.
      estimator: the name of the estimator of the gradient.

    Raises:
      TypeError: for a number of draws that is no integer.
      ValueError: for fewer than one draw, two with a baseline, or an estimator that this objective
        does not have.

    Example:
      >>> class Median(Objective):
      ...     def bound(self, log_weights):
      ...         return tfp.stats.percentile(log_weights, 50.0, axis=0)
      >>> float(Median(num_samples=3).bound(tf.constant([[1.0], [5.0], [2.0]]))[0])
      2.0

    Source: Mnih and Rezende, "Variational Inference for Monte Carlo Objectives", 2016 (VIMCO, the
    baseline).
    """

    #: the estimators that there are, the default first
    estimators: tuple[str, ...] = ("reparameterized", "score_function")

    #: names of what it reports beside the loss
    terms: tuple[str, ...] = ()

    #: what changes the weight of the KL during training
    schedule: schedules.Schedule | None = None

    #: the temperature of relaxed draws, which a schedule may lower
    temperature: Any = None

    #: the fewest draws that make sense
    min_samples = 1

    #: what tells draws of the posterior from others, and is trained beside the model
    discriminator: Any = None

    def __init__(self, num_samples: int | None = None, estimator: str | None = None) -> None:
        if num_samples is not None:
            num_samples = checks.positive_integer("num_samples", num_samples)
        estimator = self.estimators[0] if estimator is None else estimator
        if not checks.one_of(estimator, self.estimators):
            raise ValueError(
                f"estimator: got {estimator!r}, wanted one of {', '.join(self.estimators)} for "
                f"{self.title()}{self._hint(str(estimator))}"
            )
        fewest = max(self.min_samples, 2 if estimator == "score_function" else 1)
        if num_samples is not None and num_samples < fewest:
            raise ValueError(
                f"num_samples: got {num_samples}, wanted at least {fewest} for {self.title()} with "
                f"the estimator {estimator!r}, which compares draws with one another"
            )
        self.num_samples, self.estimator, self._fewest = num_samples, estimator, fewest

    def bound(self, log_weights: Any) -> Any:
        """The bound on log p(x), `[...]`, from log weights `[S, ...]`."""
        raise NotImplementedError

    def sample(self, posterior: Any, prior: Any, z: Any, training: bool) -> Sample:
        """The values of z that the objective is taken at.

        Args:
          posterior: q(z|x), a distribution with batch shape `[B]`.
          prior: p(z).
          z: what the posterior block passes on, `[B, ...]` or `[S, B, ...]`.
          training: whether the gradient is wanted.
        """
        del prior, training
        if self.num_samples is not None:
            return Sample(posterior.sample(self.num_samples, seed=noise.next_seed()))
        one = z.shape.rank == 1 + posterior.event_shape.rank
        return Sample(z[tf.newaxis] if one and not self.is_plain else z)

    def __call__(self, draws: Draws) -> tuple[Any, dict[str, Any]]:
        """The loss of each example, `[B]`, and what to report beside it."""
        if self.estimator == "reparameterized":
            return -self.bound(draws.log_weights), {}
        log_weights = tf.stop_gradient(draws.log_weights)
        return draws.loss(-self.bound(log_weights), self.coefficients(log_weights)), {}

    def coefficients(self, log_weights: Any) -> Coefficients:
        """The estimator of the gradient, from log weights `[S, B]`."""
        slope = self.slope(log_weights)
        return Coefficients(slope, score=leave_one_out(self.bound, log_weights) - slope)

    def slope(self, log_weights: Any) -> Any:
        """The derivative of the bound by each log weight, `[S, B]`."""
        return _derivative(self.bound, log_weights)

    def advance(self, kl: Any, kl_by_layer: Mapping[str, Any] | None = None) -> None:
        """Go on with what changes during training, after a step on examples with this KL `[B]`."""

    def check_layers(self, num_layers: int) -> None:
        """Raise ValueError if it is made for another number of layers of latent variables."""

    def build(self, size: int) -> None:
        """Make the variables of the discriminator, if there is one, for data and z of this size."""

    def update(self, data: Any, posterior: Any, prior: Any) -> None:
        """Let the discriminator, if there is one, take its steps on one batch."""

    def check_densities(self, posterior: bool, prior: bool) -> None:
        """Raise ValueError if it needs a density that is not known.

        Args:
          posterior: whether that of q(z|x) is known.
          prior: whether that of p(z) is.
        """
        for name, is_known in (("posterior", posterior), ("prior", prior)):
            if not is_known:
                raise ValueError(
                    f"objective: got {self.title()} with an implicit {name}, whose density nobody "
                    "knows, wanted objectives.AdversarialELBO(discriminator"
                    + ("" if prior else ", adaptive_contrast=False")
                    + f"), or a {name} with a density, as {name}s.Flow"
                )

    def title(self) -> str:
        """What errors call it."""
        return type(self).__name__

    def check(self, posterior: Any) -> None:
        """Check that the estimator works with a posterior block.

        Raises:
          ValueError: if it does not, naming those that do.
        """
        q = posterior.new(tf.zeros([posterior.params_size], posterior.dtype))
        self.check_distribution(q)
        draws = posterior.num_samples or 1
        name = posterior.conversion.name
        if self.num_samples is None and (draws < self._fewest or self._needs_draws(name)):
            raise ValueError(
                f"num_samples: got None, wanted how many draws of z {self.title()} takes for each "
                f"example, at least {self._fewest}, because the posterior {posterior.name!r} "
                + ("passes one draw on" if name == "sample" else f"passes its {name} on")
            )

    def check_distribution(self, posterior: Any) -> None:
        """Raise ValueError if the gradient needs reparameterized draws, and there are none."""
        reparameterized = posterior.reparameterization_type == tfd.FULLY_REPARAMETERIZED
        if self.uses_path and not reparameterized:
            raise ValueError(
                f"objective: got {self.title()} with the estimator {self.estimator!r}, for which "
                f"draws of z have to be reparameterized, and those of the posterior "
                f"{posterior.name} are not; wanted the estimator 'score_function', which ELBO, "
                "IWAE, Renyi, CUBO and FDivergence have, 'relaxed' or 'enumerated' of ELBO, or "
                "ReweightedWakeSleep"
            )

    @property
    def kl_weight(self) -> Any:
        """The factor of the KL."""
        return 1.0

    @property
    def use_exact_kl(self) -> bool | None:
        """Whether the KL is taken in closed form, see `KLDivergenceRegularizer`."""
        return None

    @property
    def needs_exact_kl(self) -> bool:
        """Whether the KL has to have a closed form, as its gradient cannot come from draws."""
        return False

    @property
    def is_plain(self) -> bool:
        """Whether it is the ELBO by automatic differentiation, which takes z in any form."""
        return False

    @property
    def uses_path(self) -> bool:
        """Whether the gradient reaches the posterior through z."""
        return self.estimator not in ("score_function", "wake_sleep", *_OF_DISCRETE)

    @property
    def differentiates(self) -> bool:
        """Whether the gradient is that of the loss as it is written, with z as they are."""
        return self.estimator in ("reparameterized", *_OF_DISCRETE)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return {"num_samples": self.num_samples, "estimator": self.estimator}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The objective that a configuration describes."""
        return cls(**config)

    def _needs_draws(self, conversion: str) -> bool:
        return conversion != "sample"

    def _hint(self, estimator: str) -> str:
        return ""


@keras.saving.register_keras_serializable("tfpvae")
class ELBO(Objective):
    r"""The evidence lower bound.

    $$ \mathrm{ELBO}(x) = \frac1S \sum_s \log p(x \mid z_s)
       - w\, \mathrm{KL}\bigl(q(z \mid x)\ \|\ p(z)\bigr) \;\le\; \log p(x)
       \quad \text{on average, for } w = 1 $$

    The KL has the closed form that TFP knows, or else it is estimated from the same draws; then the
    bound is the mean of the log weights. With w != 1, or with free bits, the loss is no bound on
    log p(x): `elbo` in the history is, always (but for relaxed draws, see below).

    Estimators of the gradient: `"reparameterized"`; `"sticking_the_landing"`, which leaves out a
    term of mean zero, so that its noise vanishes where the posterior is exact; `"score_function"`
    for z that cannot be reparameterized; all three unbiased. For classes and bits, `"enumerated"`
    takes the exact mean over all states of z; and `"relaxed"` trains through continuous draws
    q_tau(z|x) at a temperature tau, which is biased and of little noise:

    $$ L_\tau(x) = \frac1S \sum_s \log p(x \mid z_s)
       - w\, \mathrm{KL}\bigl(q(z \mid x)\ \|\ p(z)\bigr), \qquad z_s \sim q_\tau(z \mid x) $$

    The KL is that of the discrete distributions, in closed form. L_tau tends to the ELBO as tau
    falls, but is no bound at tau > 0. With a `prior_temperature` the KL is of the relaxed
    distributions, log q_tau(z|x) - log p_tau'(z) at the draws, and L_tau is a bound on log p(x) of
    the relaxed model, or with `straight_through` of the discrete one. In evaluation z is hard and
    all numbers are of the discrete model, whatever was used in training.

    Args:
      kl_weight: the factor w: a number; a schedule of `tfpvae.schedules`, whose state is saved with
        the model; or a `tf.Variable(..., trainable=False)` that a callback changes. A list of them
        has one for each layer of a `HierarchicalVAE`, the one next to the data first.
      use_exact_kl: None for the closed form of the KL where TFP has one and Monte Carlo otherwise,
        True for the closed form or an error, False for Monte Carlo.
      num_samples: the number S of draws; None takes those that the posterior block passes on.
      estimator: of the gradient.
      free_bits: nats that the KL of each latent dimension, a mean over the batch, may have for
        nothing: the term is sum_d max(free_bits, KL_d). Where z has several layers it is the KL of
        each layer, in place of each dimension.
      temperature: of relaxed draws: a positive number, or a schedule, as `schedules.Exponential`,
        whose value is in the history as `temperature`.
      straight_through: whether relaxed draws go to the decoder as the states next to them, with the
        gradient of what they were.
      prior_temperature: the temperature of the prior for the KL of the relaxed distributions; None
        for the KL of the discrete ones.

    Raises:
      TypeError, ValueError: for a weight that is no number, negative, or trainable; free bits that
        are negative or come with another estimator than the first; a closed form with sticking the
        landing, which takes its gradient from draws.

    Example:
      >>> float(ELBO().bound(tf.constant([-1.0, -3.0])))
      -2.0

    Source: Jordan et al., "An Introduction to Variational Methods for Graphical Models", 1999;
    Kingma and Welling, "Auto-Encoding Variational Bayes", 2014; Roeder, Wu and Duvenaud, "Sticking
    the Landing", 2017; Higgins et al., "beta-VAE", 2017 (the weight); Kingma et al., "Improving
    Variational Inference with Inverse Autoregressive Flow", 2016 (free bits); Jang, Gu and Poole,
    "Categorical Reparameterization with Gumbel-Softmax", 2017, and Maddison, Mnih and Teh, "The
    Concrete Distribution", 2017 (relaxed, the latter with the prior's temperature).
    """

    estimators = ("reparameterized", "sticking_the_landing", "score_function", *_OF_DISCRETE)

    def __init__(
        self,
        kl_weight: Any = 1.0,
        use_exact_kl: bool | None = None,
        num_samples: int | None = None,
        estimator: str | None = None,
        free_bits: float = 0.0,
        temperature: Any = None,
        straight_through: bool = False,
        prior_temperature: float | None = None,
    ) -> None:
        super().__init__(num_samples, estimator)
        if isinstance(kl_weight, (list, tuple)):
            kl_weight = schedules.PerLayer(kl_weight)
        if not isinstance(kl_weight, schedules.Schedule):
            regularizers.check_weight("kl_weight", kl_weight)
        self.free_bits = checks.number(
            "free_bits", free_bits, "a number of nats >= 0", lambda bits: 0.0 <= bits < math.inf
        )
        for name, given in (("free_bits", free_bits), ("use_exact_kl", use_exact_kl)):
            if given and not self.differentiates:
                raise ValueError(
                    f"{name}: got {given} with the estimator {self.estimator!r}, wanted "
                    f"{self.estimators[0]!r}: the other takes the gradient of the KL from draws"
                )
        self._kl_weight, self._use_exact_kl = kl_weight, use_exact_kl
        self.schedule = kl_weight if isinstance(kl_weight, schedules.Schedule) else None
        self._num_weights: int | None = None
        self.terms = () if isinstance(kl_weight, numbers.Real) else ("kl_weight",)
        if isinstance(kl_weight, schedules.PerLayer):
            self._num_weights = len(kl_weight.parts)
            self.terms = tuple(f"kl_weight_{i + 1}" for i in range(self._num_weights))
            if not self.is_plain:
                raise ValueError(
                    f"kl_weight: got a list with the estimator {self.estimator!r}, wanted one "
                    f"weight, or {self.estimators[0]!r}: the other weights log p(z) - log q(z|x) "
                    "as a whole"
                )
        self._set_relaxation(temperature, straight_through, prior_temperature)

    @property
    def kl_weight(self) -> Any:
        """The factor of the KL; assign to it if it is a variable."""
        return self._kl_weight

    @property
    def use_exact_kl(self) -> bool | None:
        """Whether the KL is taken in closed form."""
        return self._use_exact_kl

    @property
    def needs_exact_kl(self) -> bool:
        """Whether the KL has to have a closed form."""
        return self.estimator == "relaxed" and self.prior_temperature is None

    @property
    def is_plain(self) -> bool:
        """Whether it is trained by automatic differentiation."""
        return self.estimator == self.estimators[0]

    def bound(self, log_weights: Any) -> Any:
        """The mean of the log weights."""
        return tf.reduce_mean(log_weights, axis=0)

    def __call__(self, draws: Draws) -> tuple[Any, dict[str, Any]]:
        """The loss of each example, `[B]`, and the weight of the KL."""
        nll = draws.nll
        weight = tf.cast(schedules.value_of(self.kl_weight), nll.dtype)
        loss = nll + self._weighted_kl(draws, weight)
        if not self.differentiates:
            draws = dataclasses.replace(draws, kl_weight=weight)
            loss = draws.loss(loss, self.coefficients(tf.stop_gradient(draws.log_weights)))
        weights = tf.unstack(weight) if self._num_weights else [weight]
        if "temperature" in self.terms:
            weights = [*weights[: len(self.terms) - 1], self.temperature.value()]
        return loss, dict(zip(self.terms, weights, strict=False))

    def coefficients(self, log_weights: Any) -> Coefficients:
        """The estimator of the gradient, from log weights `[S, B]`."""
        slope = self.slope(log_weights)
        if self.estimator == "sticking_the_landing":
            return Coefficients(slope, path=slope)
        # The slopes are the same for all draws: they would only add a score of mean zero.
        return Coefficients(slope, score=leave_one_out(self.bound, log_weights))

    def advance(self, kl: Any, kl_by_layer: Mapping[str, Any] | None = None) -> None:
        """Let a schedule go on."""
        if self.schedule is not None:
            layers = tf.stack([*(kl_by_layer or {}).values()] or [kl]) if self._num_weights else kl
            self.schedule.advance(replicas.mean(layers, axis=-1))
        if isinstance(self.temperature, schedules.Schedule):
            self.temperature.advance(replicas.mean(kl))

    def check_layers(self, num_layers: int) -> None:
        """Raise ValueError if there is a weight for each of another number of layers."""
        if self._num_weights not in (None, num_layers):
            raise ValueError(
                f"kl_weight: got a list of {self._num_weights} weights, wanted one number, or a "
                f"list of {num_layers}, one for each layer of latent variables"
            )

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        if self.schedule is not None:
            weight = keras.saving.serialize_keras_object(self.kl_weight)
        else:
            weight = regularizers.weight_config(self.kl_weight)
        own = {
            "kl_weight": weight,
            "use_exact_kl": self._use_exact_kl,
            "free_bits": self.free_bits,
            "temperature": self.temperature,
            "straight_through": self.straight_through,
            "prior_temperature": self.prior_temperature,
        }
        if isinstance(self.temperature, schedules.Schedule):
            own["temperature"] = keras.saving.serialize_keras_object(self.temperature)
        return own | super().get_config()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ELBO":
        """The objective that a configuration describes."""
        weight = config["kl_weight"]
        if isinstance(weight, dict) and "class_name" in weight:
            weight = keras.saving.deserialize_keras_object(weight)
        else:
            weight = regularizers.weight_from_config(weight)
        temperature = config.get("temperature")
        if isinstance(temperature, dict):
            temperature = keras.saving.deserialize_keras_object(temperature)
        return cls(**config | {"kl_weight": weight, "temperature": temperature})

    def sample(self, posterior: Any, prior: Any, z: Any, training: bool) -> Sample:
        """All states of z; or relaxed draws, in training; or as any objective."""
        if self.estimator == "enumerated":
            return _all_states(posterior, prior, z.dtype)
        if self.estimator == "relaxed" and training:
            return self._relaxed_sample(posterior, prior, z)
        return super().sample(posterior, prior, z, training)

    def check_distribution(self, posterior: Any) -> None:
        """Raise ValueError if the estimator is not one for such a posterior."""
        super().check_distribution(posterior)
        if self.estimator not in _OF_DISCRETE:
            return
        try:
            num = discrete.num_states(posterior)
        except TypeError as error:
            hint = (
                "; for densities, relaxed ones too, take 'reparameterized'"
                if posterior.reparameterization_type == tfd.FULLY_REPARAMETERIZED
                else "; wanted the estimator 'score_function'"
            )
            raise ValueError(
                f"objective: the estimator {self.estimator!r}: the posterior {error}{hint}"
            ) from None
        if self.needs_exact_kl and discrete.has_layers(posterior):
            raise ValueError(
                "prior_temperature: got None, wanted a positive number: the KL of several layers "
                "of discrete z has no closed form, and is taken from relaxed ones"
            )
        if self.estimator == "enumerated" and num > discrete.MAX_STATES_TRAINING:
            raise ValueError(
                f"objective: got the estimator 'enumerated' for a posterior of {num} states, "
                f"wanted at most {discrete.MAX_STATES_TRAINING}; take 'relaxed' or "
                "'score_function'"
            )

    def _set_relaxation(
        self, temperature: Any, straight_through: bool, prior_temperature: float | None
    ) -> None:
        """Check and keep what belongs to relaxed draws, and to no others."""
        is_relaxed = self.estimator == "relaxed"
        given = {
            "temperature": temperature is not None,
            "straight_through": straight_through,
            "prior_temperature": prior_temperature is not None,
        }
        for name, is_given in given.items():
            if is_given and not is_relaxed:
                raise ValueError(
                    f"{name}: got it with the estimator {self.estimator!r}, wanted it with "
                    "'relaxed', whose draws have a temperature"
                )
        if is_relaxed and isinstance(temperature, schedules.Schedule):
            if not float(temperature.value()) > 0.0:
                raise ValueError(
                    f"temperature: got {type(temperature).__name__}, which starts at "
                    f"{float(temperature.value()):g}, wanted a schedule of positive numbers, as "
                    "schedules.Exponential(1.0, 0.5, num_steps=1000)"
                )
            self.terms = (*self.terms, "temperature")
        elif is_relaxed:
            temperature = checks.positive_number("temperature", temperature)
        if prior_temperature is not None:
            prior_temperature = checks.positive_number("prior_temperature", prior_temperature)
            if self.free_bits or self._use_exact_kl:
                raise ValueError(
                    "prior_temperature: got it with "
                    + ("free_bits" if self.free_bits else "use_exact_kl=True")
                    + ", wanted None: the KL of relaxed distributions has no closed form"
                )
        if is_relaxed and prior_temperature is None and self._use_exact_kl is False:
            raise ValueError(
                "use_exact_kl: got False with the estimator 'relaxed', wanted None: the KL of "
                "discrete distributions has no gradient through draws; with prior_temperature= "
                "it is taken from relaxed ones"
            )
        if self.estimator == "enumerated" and self.num_samples is not None:
            raise ValueError(
                f"num_samples: got {self.num_samples} with the estimator 'enumerated', wanted "
                "None: it takes all states"
            )
        self.temperature = temperature
        self.straight_through = checks.flag("straight_through", straight_through)
        self.prior_temperature = prior_temperature

    def _relaxed_sample(self, posterior: Any, prior: Any, z: Any) -> Sample:
        """Relaxed draws, as many as the objective takes or the posterior block passes on."""
        temperature = schedules.value_of(self.temperature)
        q = discrete.Relaxation(posterior, temperature, self.straight_through)
        several = z.shape.rank > 1 + posterior.event_shape.rank
        num = self.num_samples or (tf.shape(z)[0] if several else 1)
        z, y = q.sample(num, seed=noise.next_seed())
        if self.prior_temperature is None:
            return Sample(z)
        p = discrete.Relaxation(prior, self.prior_temperature, self.straight_through)
        try:
            pairs = zip(q.log_probs(y), p.log_probs(y), strict=True)
        except TypeError as error:
            raise TypeError(f"prior_temperature: the prior cannot be relaxed: {error}") from None
        kl = [tf.reduce_mean(log_q - log_p, axis=0) for log_q, log_p in pairs]
        return Sample(z, kl_by_layer=kl)

    def _weighted_kl(self, draws: Draws, weight: Any) -> Any:
        """`[B]`: its mean over the batch is sum_d w_d max(free_bits, mean_b KL_bd)."""
        if not (self._num_weights or self.free_bits):
            return weight * draws.kl
        if self._num_weights or len(draws.kl_by_layer) > 1:
            kl = tf.stack([*draws.kl_by_layer.values()] or [draws.kl], axis=1)
        else:
            assert draws.kl_by_dimension is not None
            kl = draws.kl_by_dimension()
        if self.free_bits:
            paid = replicas.mean(kl) > self.free_bits
            kl = tf.where(paid, kl, tf.cast(self.free_bits, kl.dtype))
        return tf.reduce_sum(weight * kl, axis=1)

    def _needs_draws(self, conversion: str) -> bool:
        return conversion != "sample" and not self.is_plain and self.estimator != "enumerated"

    def _hint(self, estimator: str) -> str:
        if estimator == "doubly_reparameterized":
            return "; for the ELBO that is 'sticking_the_landing'"
        return ""


@keras.saving.register_keras_serializable("tfpvae")
class Renyi(Objective):
    r"""The variational Renyi bound of any order alpha.

    $$ L_\alpha(x) = \frac{1}{1 - \alpha} \log \frac1S \sum_s w_s^{1 - \alpha} $$

    alpha = 1 is the ELBO (the limit), alpha = 0 IWAE's bound; for alpha >= 0 it is a lower bound on
    log p(x) that falls as alpha rises. With the normalized weights v_s of w_s^(1 - alpha), the
    estimators of the gradient for alpha >= 0 are `"reparameterized"`;
    `"doubly_reparameterized"`, whose gradient for the posterior is

    $$ \sum_s \bigl(\alpha v_s + (1 - \alpha) v_s^2\bigr)
       \frac{\partial \log w_s}{\partial z_s} \frac{\partial z_s}{\partial \phi} $$

    and whose noise does not drown it as S grows; `"score_function"`; and for alpha = 1 alone
    `"sticking_the_landing"`, which elsewhere would be biased. All are unbiased for the bound of S
    draws.

    For alpha < 0 it is an upper bound in the limit of many draws: the posterior is trained to
    lower it, while the model (prior and decoder) is trained to raise IWAE's bound, from the same
    draws; the loss is that of the model, and `upper_bound` stands beside it in the history. The
    gradients for the posterior, of L_alpha to be lowered, are

    $$ \sum_s \alpha v_s \frac{\partial \log w_s}{\partial z_s} \frac{\partial z_s}{\partial \phi}
       \quad \text{(doubly reparameterized)}, \qquad
       \sum_s \frac{\alpha}{1 - \alpha} v_s\, \partial_\phi \log q(z_s \mid x)
       \quad \text{(score function)} $$

    both exact for S -> infinity. Plain reparameterization is refused there: few draws give an
    estimate that lies below the bound, and is lowest for a posterior that misses all weights.

    Args:
      alpha: the order, any finite number.
      num_samples: the number S of draws for each example.
      estimator: of the gradient.

    Raises:
      TypeError: if alpha is no number.
      ValueError: if alpha is not finite, or does not go with the estimator; for one draw with
        alpha < 0.

    Example:
      >>> log_weights = tf.math.log([1.0, 3.0])
      >>> [round(float(Renyi(alpha, 2).bound(log_weights)), 4) for alpha in (-1.0, 0.0, 1.0, 2.0)]
      [0.8047, 0.6931, 0.5493, 0.4055]

    Source: Li and Turner, "Renyi Divergence Variational Inference", 2016; Tucker, Lawson, Gu and
    Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", 2019.
    """

    def __init__(
        self, alpha: float, num_samples: int | None = None, estimator: str | None = None
    ) -> None:
        self.alpha = checks.number("alpha", alpha, "a finite number", math.isfinite)
        self.estimators = ("doubly_reparameterized", "score_function")
        if self.is_upper:
            self.terms = ("upper_bound",)
            self.min_samples = 2  # One draw estimates a lower bound.
        else:
            self.estimators = ("reparameterized", *self.estimators)
        if self.alpha == 1.0:
            self.estimators = (*self.estimators, "sticking_the_landing")
        super().__init__(num_samples, estimator)

    @property
    def is_upper(self) -> bool:
        """Whether it is an upper bound."""
        return self.alpha < 0.0

    def bound(self, log_weights: Any) -> Any:
        """The Renyi bound, `[...]`, from log weights `[S, ...]`."""
        return renyi_bound(log_weights, self.alpha)

    def __call__(self, draws: Draws) -> tuple[Any, dict[str, Any]]:
        """The loss of each example, `[B]`, and the upper bound, if it is one."""
        if not self.is_upper:
            return super().__call__(draws)
        log_weights = tf.stop_gradient(draws.log_weights)
        loss = draws.loss(-renyi_bound(log_weights, 0.0), self.coefficients(log_weights))
        return loss, {"upper_bound": self.bound(log_weights)}

    def coefficients(self, log_weights: Any) -> Coefficients:
        """The estimator of the gradient, from log weights `[S, B]`."""
        alpha, v = self.alpha, self.slope(log_weights)
        if self.is_upper:
            model = tf.nn.softmax(log_weights, axis=0)
            if self.estimator == "doubly_reparameterized":
                return Coefficients(model, path=-alpha * v)
            return Coefficients(model, score=-alpha / (1.0 - alpha) * v)
        if self.estimator == "doubly_reparameterized":
            return Coefficients(v, path=alpha * v + (1.0 - alpha) * v**2)
        if self.estimator == "sticking_the_landing":
            return Coefficients(v, path=v)
        return super().coefficients(log_weights)

    def slope(self, log_weights: Any) -> Any:
        """The normalized weights v."""
        return tf.nn.softmax((1.0 - self.alpha) * log_weights, axis=0)

    def title(self) -> str:
        """What errors call it."""
        return f"{type(self).__name__} with alpha = {self.alpha:g}"

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return {"alpha": self.alpha} | super().get_config()

    def _hint(self, estimator: str) -> str:
        if self.is_upper and estimator == "reparameterized":
            return _MISLED
        if estimator == "sticking_the_landing":
            return ", for which sticking the landing is biased"
        return ""


@keras.saving.register_keras_serializable("tfpvae")
class IWAE(Renyi):
    r"""The importance weighted bound.

    $$ L_S(x) = \log \frac1S \sum_s w_s \;\le\; \log p(x) \quad \text{on average} $$

    It rises with S towards log p(x). Estimators of the gradient, all unbiased:
    `"reparameterized"`; `"doubly_reparameterized"`, of lower variance above all for large S;
    `"score_function"` with VIMCO's baseline, for z that cannot be reparameterized.

    Args:
      num_samples: the number S of draws for each example; None takes those that the posterior block
        passes on.
      estimator: of the gradient.

    Example:
      >>> round(float(IWAE(num_samples=2).bound(tf.math.log([1.0, 3.0]))), 4)  # log 2
      0.6931

    Source: Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016; Tucker et
    al., "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", 2019; Mnih and
    Rezende, "Variational Inference for Monte Carlo Objectives", 2016.
    """

    def __init__(self, num_samples: int | None = None, estimator: str | None = None) -> None:
        super().__init__(0.0, num_samples, estimator)

    def title(self) -> str:
        """What errors call it."""
        return type(self).__name__

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return {"num_samples": self.num_samples, "estimator": self.estimator}


@keras.saving.register_keras_serializable("tfpvae")
class CUBO(Renyi):
    r"""The chi upper bound.

    $$ \mathrm{CUBO}_n(x) = \frac1n \log \frac1S \sum_s w_s^n \;\ge\; \log p(x)
       \quad \text{for } S \to \infty $$

    It is the Renyi bound of order alpha = 1 - n, and trained as `Renyi` says there: the posterior
    lowers it, so that it covers the true posterior, and the model raises IWAE's bound. `loss` is
    the negative of the latter, `upper_bound` the CUBO: together they bracket log p(x).

    Args:
      order: the order n > 1.
      num_samples: the number S of draws for each example.
      estimator: of the gradient, `"doubly_reparameterized"` or `"score_function"`.

    Raises:
      ValueError: for n <= 1, which is no upper bound.

    Example:
      >>> round(float(CUBO(2.0, num_samples=2).bound(tf.math.log([1.0, 3.0]))), 4)  # log sqrt 5
      0.8047

    Source: Dieng, Tran, Ranganath, Paisley and Blei, "Variational Inference via chi Upper Bound
    Minimization", 2017.
    """

    def __init__(
        self,
        order: float = 2.0,
        num_samples: int | None = None,
        estimator: str | None = None,
    ) -> None:
        self.order = checks.number(
            "order", order, "a finite number greater than 1", lambda n: 1.0 < n < math.inf
        )
        super().__init__(1.0 - self.order, num_samples, estimator)

    def title(self) -> str:
        """What errors call it."""
        return f"CUBO of order {self.order:g}"

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        own = {"order": self.order}
        return own | {"num_samples": self.num_samples, "estimator": self.estimator}


@keras.saving.register_keras_serializable("tfpvae")
class FDivergence(Objective):
    r"""Any f-divergence of `tfp.vi` between the true posterior and q(z|x).

    $$ D_f\bigl(p(z \mid x)\ \|\ q(z \mid x)\bigr) = \mathbb E_{q(z \mid x)}[f(u)]
       \approx \frac1S \sum_s f(u_s), \qquad
       u_s = \frac{w_s}{\frac1S \sum_t w_t} \approx \frac{p(z_s \mid x)}{q(z_s \mid x)} $$

    The posterior lowers the divergence, with the mean weight, which estimates p(x), held fixed; the
    model raises IWAE's bound, from the same draws. The loss is that of the model; `divergence`
    stands beside it in the history. Dividing by the mean weight is what makes it a divergence of
    distributions, as p(x, z) does not integrate to one; its estimate, and the gradient, are exact
    for S -> infinity.

    Estimators of the gradient: `"doubly_reparameterized"`, of a smooth f, and `"score_function"`.
    Plain reparameterization is refused, because few draws give an estimate that is lowest for a
    posterior that misses all weights.

    Args:
      discrepancy_fn: the name of a function of `tfp.vi` that takes log u: "kl_forward",
        "kl_reverse", "jensen_shannon", "pearson", "squared_hellinger", "amari_alpha" ...
      num_samples: the number S >= 2 of draws for each example.
      estimator: of the gradient.
      **kwargs: other arguments of the function, `alpha` of "amari_alpha".

    Raises:
      TypeError: for arguments that the function does not take.
      ValueError: for a name that `tfp.vi` does not have.

    Example:
      >>> objective = FDivergence("kl_forward", num_samples=2)
      >>> log_weights = tf.math.log([1.0, 3.0])  # u = 1/2, 3/2
      >>> round(float(objective.divergence(log_weights)), 4)  # (log(1/2) + 3 log(3/2)) / 4
      0.1308

    Source: Csiszar, "Eine informationstheoretische Ungleichung", 1963; Dillon et al., "TensorFlow
    Distributions", 2017.
    """

    estimators: tuple[str, ...] = ("doubly_reparameterized", "score_function")
    terms = ("divergence",)
    min_samples = 2

    def __init__(
        self,
        discrepancy_fn: str,
        num_samples: int | None = None,
        estimator: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(discrepancy_fn, str) or discrepancy_fn not in _DISCREPANCIES:
            raise ValueError(
                f"discrepancy_fn: got {discrepancy_fn!r}, wanted the name of a function of tfp.vi: "
                f"{', '.join(_DISCREPANCIES)}"
            )
        self.discrepancy_fn, self._kwargs = discrepancy_fn, kwargs
        try:
            self._function(tf.zeros([]))
        except TypeError as error:
            raise TypeError(f"discrepancy_fn: tfp.vi.{error}") from None
        if discrepancy_fn in _NOT_SMOOTH:
            self.estimators = ("score_function",)
        super().__init__(num_samples, estimator)

    def bound(self, log_weights: Any) -> Any:
        """IWAE's bound, which the model raises."""
        return renyi_bound(log_weights, 0.0)

    def divergence(self, log_weights: Any) -> Any:
        """The estimate of the divergence, `[...]`, from log weights `[S, ...]`."""
        log_u = log_weights - tf.stop_gradient(self.bound(log_weights))
        return tf.reduce_mean(self._function(log_u), axis=0)

    def __call__(self, draws: Draws) -> tuple[Any, dict[str, Any]]:
        """The loss of each example, `[B]`, and the divergence."""
        log_weights = tf.stop_gradient(draws.log_weights)
        loss = draws.loss(-self.bound(log_weights), self.coefficients(log_weights))
        return loss, {"divergence": self.divergence(log_weights)}

    def coefficients(self, log_weights: Any) -> Coefficients:
        """The estimator of the gradient, from log weights `[S, B]`."""
        evidence = self.bound(log_weights)

        def closeness(log_weights: Any) -> Any:
            return -tf.reduce_mean(self._function(log_weights - evidence), axis=0)

        slope = _derivative(closeness, log_weights)
        model = tf.nn.softmax(log_weights, axis=0)
        if self.estimator == "score_function":
            return Coefficients(model, score=leave_one_out(closeness, log_weights) - slope)
        # Each draw has a term of its own: the second derivative is that of the sum of slopes.
        curvature = _derivative(lambda values: _derivative(closeness, values), log_weights)
        return Coefficients(model, path=slope - curvature)

    def title(self) -> str:
        """What errors call it."""
        return f"FDivergence({self.discrepancy_fn!r})"

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return {"discrepancy_fn": self.discrepancy_fn} | super().get_config() | self._kwargs

    def _function(self, log_u: Any) -> Any:
        function = getattr(tfp.vi, self.discrepancy_fn)
        # The form of f that is 0 at u = 1, and smallest there.
        takes = "self_normalized" in inspect.signature(function).parameters
        return function(log_u, **({"self_normalized": True} if takes else {}) | self._kwargs)

    def _hint(self, estimator: str) -> str:
        if estimator == "doubly_reparameterized":
            return ", whose f has a kink"
        return _MISLED if estimator == "reparameterized" else ""


@keras.saving.register_keras_serializable("tfpvae")
class ReweightedWakeSleep(Objective):
    r"""Reweighted wake-sleep: the posterior learns by the forward KL from the true one.

    $$ \begin{aligned}
       \text{model:} \quad & \max_\theta\ \log \frac1S \sum_s w_s \\
       \text{posterior, awake:} \quad & \max_\phi\ \sum_s v_s \log q(z_s \mid x)
          \approx \mathbb E_{p(z \mid x)}[\log q(z \mid x)],
          \qquad v_s = w_s / {\textstyle\sum_t w_t} \\
       \text{posterior, asleep:} \quad & \max_\phi\ \log q(z' \mid x'), \qquad (x', z') \sim p(x, z)
       \end{aligned} $$

    The posterior climbs `(1 - sleep) * awake + sleep * asleep`. No gradient goes through z: it may
    be discrete. The loss is the negative of IWAE's bound, `forward_kl` beside it in the history is
    the estimate of KL(p(z|x) || q(z|x)) of the draws.

    With one draw and sleep = 1 it is the wake-sleep algorithm of the Helmholtz machine, whose loss
    is the negative ELBO.

    Args:
      num_samples: the number S of draws for each example; None takes those that the posterior block
        passes on.
      sleep: share of the sleep phase; None for 1 with one draw, whose wake phase has no gradient,
        and 0.5 with more.

    Raises:
      TypeError: if sleep is no number.
      ValueError: if it is not between 0 and 1.

    Example:
      >>> ReweightedWakeSleep(num_samples=1).sleep
      1.0

    Source: Hinton, Dayan, Frey and Neal, "The Wake-Sleep Algorithm for Unsupervised Neural
    Networks", 1995; Bornschein and Bengio, "Reweighted Wake-Sleep", 2015.
    """

    estimators = ("wake_sleep",)
    terms = ("forward_kl",)

    def __init__(self, num_samples: int | None = None, sleep: float | None = None) -> None:
        super().__init__(num_samples)
        if sleep is None:
            sleep = 1.0 if num_samples == 1 else 0.5
        self.sleep = checks.number(
            "sleep", sleep, "a number from 0 to 1", lambda share: 0.0 <= share <= 1.0
        )

    def bound(self, log_weights: Any) -> Any:
        """IWAE's bound, which the model raises."""
        return renyi_bound(log_weights, 0.0)

    def __call__(self, draws: Draws) -> tuple[Any, dict[str, Any]]:
        """The loss of each example, `[B]`, and the forward KL."""
        log_weights = tf.stop_gradient(draws.log_weights)
        bound, v = self.bound(log_weights), tf.nn.softmax(log_weights, axis=0)
        loss = draws.loss(-bound, Coefficients(v, score=(1.0 - self.sleep) * v))
        if self.sleep and draws.dream is not None:
            loss = _with_gradient_of(loss, -self.sleep * draws.dream(), keep=True)
        return loss, {"forward_kl": tf.reduce_sum(v * log_weights, axis=0) - bound}

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return {"num_samples": self.num_samples, "sleep": self.sleep}


@keras.saving.register_keras_serializable("tfpvae")
class AdversarialELBO(Objective):
    r"""The evidence lower bound by a discriminator: adversarial variational Bayes.

    $$ \mathrm{ELBO}(x) = \mathbb E_{q(z \mid x)}\bigl[\log p(x \mid z) - T^*(x, z)\bigr], \qquad
       T^*(x, z) = \log q(z \mid x) - \log p(z) $$

    Only draws of q(z|x) are needed, not its density: it may be `posteriors.Implicit`. Before each
    step of the model the discriminator T(x, z), a `DensityRatio`, takes steps of its own towards
    T*. At T = T* the gradient is that of the ELBO: what it owes to the weights of the posterior
    inside of T* is zero on average, so T is differentiated by z alone.

    With `adaptive_contrast` draws are compared not with the prior, which may be far away, but with
    a normal distribution r(z|x) of their own mean m(x) and standard deviation s(x),

    $$ \mathrm{KL}(q \,\|\, p) = \mathbb E_{q(z \mid x)}\bigl[ T_r(x, \tilde z)
       + \log r(z \mid x) - \log p(z) \bigr], \qquad
       \tilde z = \frac{z - m(x)}{s(x)}, \quad
       T_r^*(x, \tilde z) = \log \frac{q(z \mid x)}{r(z \mid x)} $$

    where T_r is trained on the standardized draws against a standard normal. The moments come from
    64 draws of their own, and are held fixed where gradients are taken: r cancels, whatever it is.

    Without it, a prior that is learned learns by the gradient of -log p(z) at the draws, or, if it
    is `priors.Implicit`, by that of the Donsker-Varadhan form of the divergence, through its draws,

    $$ \mathrm{KL}(q \,\|\, p) = \sup_T\ \mathbb E_q[T] - \log \mathbb E_p[e^T] $$

    The loss is -`adversarial_elbo` = `nll` + `adversarial_kl`. It is an estimate and no bound: a
    discriminator that lags behind takes too little for the KL, so it may lie above log p(x).
    `discriminator_loss` is in the history, and, where all densities are known, so are the true
    `elbo` and `kl`.

    Args:
      discriminator: a tf_keras model or layer from vectors, x and z flattened and side by side, to
        one number; or a `DensityRatio` of such a network.
      optimizer: of the discriminator, as in Keras.
      adaptive_contrast: whether draws are compared with a normal distribution of their own moments.
        It wants a prior with a density.
      num_updates: steps of the discriminator for each step of the model.
      num_samples: the number S of draws for each example; None takes those that the posterior block
        passes on.

    Raises:
      TypeError, ValueError: for a discriminator that is no network, numbers that are no positive
        integers.

    Example:
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> generator = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
      >>> posterior = posteriors.Implicit(2, generator, context_size=4)
      >>> vae = VAE(
      ...     priors.StandardNormal(2),
      ...     keras.Sequential([keras.layers.Dense(4, "relu"), posterior]),
      ...     keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)]), seed=0)
      >>> discriminator = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
      >>> vae.compile("adam", objective=AdversarialELBO(discriminator))
      >>> sorted(vae.fit(np.eye(3), verbose=0).history)
      ['adversarial_elbo', 'adversarial_kl', 'discriminator_loss', 'loss', 'nll']

    Source: Mescheder, Nowozin and Geiger, "Adversarial Variational Bayes: Unifying Variational
    Autoencoders and Generative Adversarial Networks", 2017; Donsker and Varadhan, "Asymptotic
    Evaluation of Certain Markov Process Expectations for Large Time", 1983.
    """

    estimators = ("reparameterized",)
    terms = ("adversarial_elbo", "adversarial_kl", "discriminator_loss")

    def __init__(
        self,
        discriminator: Any,
        optimizer: Any = "adam",
        adaptive_contrast: bool = True,
        num_updates: int = 1,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(num_samples)
        from tfpvae import density_ratio  # It is a model: users of the blocks do not load it.

        if not isinstance(discriminator, density_ratio.DensityRatio):
            blocks.check_network("discriminator", discriminator)
            discriminator = density_ratio.DensityRatio(discriminator, seed=0)
        self.adaptive_contrast = checks.flag("adaptive_contrast", adaptive_contrast)
        self.num_updates = checks.positive_integer("num_updates", num_updates)
        self.discriminator = discriminator
        self._prior_has_density = True
        discriminator.compile(optimizer)

    def build(self, size: int) -> None:
        """Make the variables of the discriminator, and of its optimizer, for data and z of a size.

        Args:
          size: how many numbers an example and its z are.

        Raises:
          ValueError: for a discriminator that puts out anything but one number.
        """
        try:
            self.discriminator.build_rows(size)
        except ValueError as error:
            raise ValueError(str(error).replace("network:", "discriminator:", 1)) from None
        self.discriminator.build_optimizers()

    def update(self, data: Any, posterior: Any, prior: Any) -> None:
        """Let the discriminator take its steps on one batch.

        Args:
          data: what the encoder saw.
          posterior: q(z|x), a distribution with batch shape `[B]`.
          prior: p(z).
        """
        contrast = self._contrast(posterior)
        for _ in range(self.num_updates):
            z = posterior.sample(self.num_samples or 1, seed=noise.next_seed())
            reference = self._reference(prior, z)
            self.discriminator.update(
                _side_by_side(data, contrast.inverse(z)), _side_by_side(data, reference)
            )

    def bound(self, log_weights: Any) -> Any:
        """The mean of the log weights."""
        return tf.reduce_mean(log_weights, axis=0)

    def __call__(self, draws: Draws) -> tuple[Any, dict[str, Any]]:
        """The loss of each example, `[B]`, the estimates, and the discriminator's loss."""
        z, prior, data = draws.z, draws.prior, draws.data
        contrast, reference = self._contrast(draws.posterior), self._reference(prior, z)
        log_ratio = self.discriminator(_side_by_side(data, contrast.inverse(z)))
        reference_log_ratio = self.discriminator(_side_by_side(data, reference))
        kl = tf.reduce_mean(log_ratio, axis=0)
        if self.adaptive_contrast:
            kl += tf.reduce_mean(contrast.log_prob(z) - prior.log_prob(z), axis=0)
        elif self._prior_has_density:
            log_prob = prior.log_prob(tf.stop_gradient(z))
            kl = _with_gradient_of(kl, -tf.reduce_mean(log_prob, axis=0), keep=True)
        else:
            log_mean = renyi_bound(tf.reshape(reference_log_ratio, [-1]), 0.0)
            kl = _with_gradient_of(kl, -log_mean, keep=True)
        loss = draws.nll + kl
        discriminator_loss = self.discriminator.loss(log_ratio, reference_log_ratio)
        return loss, dict(zip(self.terms, (-loss, kl, discriminator_loss), strict=True))

    def check_densities(self, posterior: bool, prior: bool) -> None:
        """Raise ValueError if the contrast needs the density of the prior, and there is none."""
        if self.adaptive_contrast and not prior:
            raise ValueError(
                "adaptive_contrast: got True with an implicit prior, whose log p(z) nobody knows, "
                "wanted adaptive_contrast=False, or a prior with a density, as priors.Flow"
            )
        self._prior_has_density = prior

    def check_layers(self, num_layers: int) -> None:
        """Raise ValueError if there are several layers of latent variables."""
        if num_layers > 1:
            raise ValueError(
                f"objective: got AdversarialELBO for {num_layers} layers of latent variables, "
                "wanted one: ELBO and the other objectives take several"
            )

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        made = {"discriminator": self.discriminator, "optimizer": self.discriminator.optimizer}
        return {name: keras.saving.serialize_keras_object(part) for name, part in made.items()} | {
            "adaptive_contrast": self.adaptive_contrast,
            "num_updates": self.num_updates,
            "num_samples": self.num_samples,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AdversarialELBO":
        """The objective that a configuration describes."""
        made = ("discriminator", "optimizer")
        parts = {name: keras.saving.deserialize_keras_object(config[name]) for name in made}
        return cls(**config | parts)

    def _contrast(self, posterior: Any) -> "_Contrast":
        if not self.adaptive_contrast:
            return _Contrast(None, None)
        # Other draws in each step: of draws that are always the same a posterior learns to make
        # exceptions, and the others go astray.
        z = posterior.sample(_CONTRAST_DRAWS, seed=noise.next_seed())
        loc, variance = tf.nn.moments(tf.stop_gradient(z), axes=0)
        return _Contrast(loc, tf.sqrt(tf.maximum(variance, _LEAST_VARIANCE)))

    def _reference(self, prior: Any, z: Any) -> Any:
        """As many draws as z of what the posterior's are compared with."""
        if self.adaptive_contrast:
            zero = tf.zeros([], z.dtype)
            return tfd.Normal(zero, zero + 1.0).sample(tf.shape(z), seed=noise.next_seed())
        return prior.sample(tf.shape(z)[: 2 - prior.batch_shape.rank], seed=noise.next_seed())


class _Contrast(NamedTuple):
    """The normal distribution r(z|x) of these moments `[B, ...]`; None for none."""

    loc: Any
    scale: Any

    def inverse(self, z: Any) -> Any:
        """Draws of z, standardized."""
        return z if self.loc is None else (z - self.loc) / self.scale

    def log_prob(self, z: Any) -> Any:
        """The log r(z|x) `[S, B]`."""
        normal = tfd.Normal(self.loc, self.scale)
        return tf.reduce_sum(normal.log_prob(z), axis=[*range(2, z.shape.rank)])


def _side_by_side(data: Any, z: Any) -> list[Any]:
    """Data `[B, E]` and z `[S, B, D]`, each example a vector; no gradient goes to the data."""
    parts = [tf.stop_gradient(part) for part in tf.nest.flatten(data)]
    shapes = [(part, 1) for part in parts] + [(z, 2)]
    return [
        tf.reshape(part, tf.concat([tf.shape(part)[:lead], [math.prod(part.shape[lead:])]], 0))
        for part, lead in shapes
    ]


def renyi_bound(log_weights: Any, alpha: float) -> Any:
    r"""The variational Renyi bound of order alpha.

    $$ L_\alpha = \frac{1}{1 - \alpha} \log \frac1S \sum_s w_s^{1 - \alpha}, \qquad
       L_1 = \frac1S \sum_s \log w_s $$

    Args:
      log_weights: `[S, ...]`.
      alpha: a finite number.

    Returns:
      A tensor `[...]`.

    Example:
      >>> round(float(renyi_bound(tf.math.log([1.0, 3.0]), 0.0)), 4)  # log 2
      0.6931

    Source: Li and Turner, "Renyi Divergence Variational Inference", 2016.
    """
    power = 1.0 - checks.number("alpha", alpha, "a finite number", math.isfinite)
    if not tf.is_tensor(log_weights):
        log_weights = tf.convert_to_tensor(checks.as_array("log_weights", log_weights))
    mean = tf.reduce_mean(log_weights, axis=0)
    if power == 0.0:
        return mean
    if abs(power) < 1e-3:  # The logarithm below would be lost to rounding.
        excess = tf.math.expm1(power * (log_weights - mean))
        return mean + tf.math.log1p(tf.reduce_mean(excess, axis=0)) / power
    log_size = tf.math.log(tf.cast(tf.shape(log_weights)[0], log_weights.dtype))
    return (tf.reduce_logsumexp(power * log_weights, axis=0) - log_size) / power


def leave_one_out(bound: Callable[[Any], Any], log_weights: Any) -> Any:
    r"""What each draw adds to a bound, beyond what the others let expect.

    $$ L(\log w_1, \dots, \log w_S)
       - L\Bigl(\log w_1, \dots, \frac{1}{S - 1} \sum_{t \ne s} \log w_t, \dots, \log w_S\Bigr) $$

    The second term does not depend on draw s, so it is a baseline for the score function.

    Args:
      bound: from `[S, ...]` to `[...]`.
      log_weights: `[S, B]`, S >= 2. It takes memory for `[S, S, B]` numbers.

    Returns:
      A tensor `[S, B]`.

    Example:
      >>> mean = lambda log_weights: tf.reduce_mean(log_weights, axis=0)
      >>> leave_one_out(mean, tf.constant([[1.0], [3.0]])).numpy().ravel()  # (1-3)/2, (3-1)/2
      array([-1.,  1.], dtype=float32)

    Source: Mnih and Rezende, "Variational Inference for Monte Carlo Objectives", 2016.
    """
    size = tf.shape(log_weights)[0]
    total = tf.reduce_sum(log_weights, axis=0)
    others = (total - log_weights) / tf.cast(size - 1, log_weights.dtype)
    is_own = tf.eye(size, dtype=tf.bool)[..., tf.newaxis]
    replaced = tf.where(is_own, others[tf.newaxis], log_weights[:, tf.newaxis])  # [S, S, B]
    return bound(log_weights) - bound(replaced)


def _all_states(posterior: Any, prior: Any, dtype: Any) -> Sample:
    """All states of z `[S, 1, ...]`, their probabilities q(z|x) `[S, B]`, and the exact KL."""
    z = discrete.states(posterior, tf.range(discrete.num_states(posterior)), dtype)[:, tf.newaxis]
    pairs = [*zip(discrete.log_probs(posterior, z), discrete.log_probs(prior, z), strict=True)]
    q = tf.exp(sum(log_q for log_q, _ in pairs))
    return Sample(z, q, [tf.reduce_sum(q * (log_q - log_p), axis=0) for log_q, log_p in pairs])


def _with_gradient_of(value: Any, source: Any, keep: bool = False) -> Any:
    """The value, with the gradient of another tensor, or with `keep` with the sum of both."""
    value = value if keep else tf.stop_gradient(value)
    return value + (source - tf.stop_gradient(source))


def _derivative(function: Callable[[Any], Any], argument: Any) -> Any:
    """The gradient of the sum of what a function returns."""
    with tf.GradientTape() as tape:
        tape.watch(argument)
        total = tf.reduce_sum(function(argument))
    return tape.gradient(total, argument)


_NOT_SMOOTH = ("log1p_abs", "total_variation")
_DISCREPANCIES = (
    "amari_alpha",
    "arithmetic_geometric",
    "chi_square",
    "jeffreys",
    "jensen_shannon",
    "kl_forward",
    "kl_reverse",
    *_NOT_SMOOTH,
    "modified_gan",
    "pearson",
    "squared_hellinger",
    "t_power",
    "triangular",
)
