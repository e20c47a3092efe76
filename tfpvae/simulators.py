"""Models of which there is a simulator only: likelihood-free variational inference."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import optimize, special

from tfpvae import (
    blocks,
    checks,
    density_ratio,
    flows,
    noise,
    priors,
    replicas,
    training,
)

tfb, tfd = tfp.bijectors, tfp.distributions

_REFERENCES = ("simulator", "data")
_SOURCES = ("posterior", "prior")

# Of `fit`, where the user has not called `compile`.
_POSTERIOR_RATE, _DISCRIMINATOR_RATE = 0.01, 0.003
_STEPS, _REPORTS, _BATCH_SIZE = 8000, 10, 128

# Draws that the scale of the prior and of the posterior is learned from, and that `build` tries.
_PRIOR_DRAWS, _POSTERIOR_DRAWS, _TRIALS = 4096, 256, 64

# Numbers in x of which the correlations are taken out before the discriminator sees them.
_MAX_WHITENED = 64


class DiscriminatorCheck(NamedTuple):
    r"""How well a discriminator tells fresh simulations from one another.

    With labels y of numerator and denominator, a logistic regression of y on the log ratio r,

    $$ P(y = 1) = \operatorname{sigmoid}(\text{intercept} + \text{slope} \cdot r) $$

    has intercept 0 and slope 1 if r is right: a slope below 1 tells of a ratio that exaggerates, as
    one does that knows its training data by heart.

    Attributes:
      log_score: the mean log score, in nats; `log(2)` is that of a guess.
      accuracy: the share of draws that r is on the right side of zero for.
      slope: 1 if the ratio is calibrated.
      slope_error: its standard error.
      intercept: 0 if the ratio is calibrated.
      intercept_error: its standard error.
    """

    log_score: float
    accuracy: float
    slope: float
    slope_error: float
    intercept: float
    intercept_error: float


class PredictiveCheck(NamedTuple):
    """A statistic of the data beside that of data sets simulated from the posterior.

    Attributes:
      observed: the statistic of the data.
      replicated: those of the simulated data sets, `[R, ...]`.
      p_value: the share of the replicated that is at least as large as the observed one; ties count
        for one half. Near 0 or 1 the model cannot make such data.
    """

    observed: np.ndarray
    replicated: np.ndarray
    p_value: np.ndarray


@keras.saving.register_keras_serializable("tfpvae")
class SimulatorModel(training.ProbabilisticModel):
    r"""Bayesian inference for a simulator, whose likelihood nobody can write down.

    Parameters come from a prior with a density, data from a program that draws noise,

    $$ \beta \sim p(\beta), \qquad x_n = g(\beta, \epsilon_n), \quad n = 1, \dots, N $$

    The posterior q maximizes the evidence lower bound, less a constant, in which the log likelihood
    is replaced by a log ratio that a discriminator learns from simulations:

    $$ \mathbb E_{q(\beta)}\Bigl[\log p(\beta) - \log q(\beta) + \sum_n r(x_n, \beta)\Bigr], \qquad
       r(x, \beta) \approx \log \frac{p(x \mid \beta)}{d(x)} $$

    The gradient goes through the draws of beta and the discriminator, never through the simulator,
    which may be any program. Three models, by what is given:

    - a **posterior block**: q(beta), one for all of the data, as above;
    - a **posterior network**, x to q(beta | x), that ends in a block: each x_n has parameters of
      its own, beta_n ~ p(beta), and q is amortized;
    - a posterior block and an **encoder**, x to q(z | x): the hierarchical implicit model. The
      simulator draws z_n, too, and returns (x, z); no density of z need be known, and

    $$ r(x, z, \beta) \approx \log \frac{p(x, z \mid \beta)}{d(x)\, q(z \mid x)} $$

    The posterior block describes a vector of real numbers in units of the prior; it is mapped onto
    the support of the prior by TFP's bijector for it, as Softplus for rates.

    The logs hold the loss, minus the bound divided by N and less the constant, the mean
    `log_ratio`, the `kl` KL(q(beta) || p(beta)) divided by N, from draws, and the
    `discriminator_loss` on simulations that it has not seen before; log(2) is that of a guess.

    Shapes: x `[B, *event_shape]`, beta `[S, D]`, or `[S, B, D]` if amortized, losses `[B]` in nats.

    Args:
      prior: p(beta), a block of `tfpvae.priors` over vectors `(D,)`.
      simulator: a function `(parameters [M, D], seed [2]) -> x [M, *event_shape]`, a draw for each
        row, or with an encoder to `(x, z)`. All its noise comes from the seed, an int32 tensor for
        `tf.random.stateless_normal` or `tfd.Normal(...).sample(seed=seed)`. What it returns may
        also be a `tfd.Distribution`, which is drawn from. Or a tf_keras layer or model whose `call`
        takes the parameters, and the seed if it has an argument of that name.
      posterior: a block of `tfpvae.posteriors`, or a network that ends in one.
      discriminator: a tf_keras model or layer from vectors to one number, or a `DensityRatio` that
        says the scoring rule, too; None for two hidden layers of 64 units. It sees x, z and beta
        side by side; x in units of the data, beta in units of the posterior.
      encoder: x to q(z | x), a network that ends in a block; None where there is no z.
      seed: of the model's noise, see `noise.Noise`.
      preprocessing: a tf_keras layer that x goes through before all else: summary statistics.
      **kwargs: of `keras.Model`.

    Raises:
      TypeError: for parts that are none.
      ValueError: for a prior without a density on vectors, parts that differ in size; when it is
        built, for a simulator that does not make such data, or NaN, and for a discriminator that
        puts out anything but one number.

    Example:
      >>> from tfpvae import posteriors
      >>> def simulator(theta, seed):
      ...     return theta + tf.random.stateless_normal(tf.shape(theta), seed)
      >>> prior, posterior = priors.StandardNormal(1), posteriors.DiagonalNormal(1)
      >>> model = SimulatorModel(prior, simulator, posterior, seed=0)
      >>> x = np.random.default_rng(0).normal(1.0, 1.0, size=(20, 1))
      >>> sorted(model.fit(x, steps=20, verbose=0).history)
      ['discriminator_loss', 'kl', 'log_ratio', 'loss']
      >>> model.posterior().mean().shape, model.sample(5, seed=1).shape
      (TensorShape([1]), (5, 1))

    Source: Tran, Ranganath and Blei, "Hierarchical Implicit Models and Likelihood-Free Variational
    Inference", 2017; Hermans, Begy and Louppe, "Likelihood-free MCMC with Amortized Approximate
    Ratio Estimators", 2020 (the reference of simulations); Kucukelbir et al., "Automatic
    Differentiation Variational Inference", 2017 (the maps onto the support).
    """

    terms = ("log_ratio", "kl", "discriminator_loss")

    remedy = "does the simulator make some for parameters that the prior allows?"

    def __init__(
        self,
        prior: Any,
        simulator: Any,
        posterior: Any,
        discriminator: Any = None,
        encoder: Any = None,
        seed: int | None = None,
        preprocessing: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed, preprocessing, **kwargs)
        if not isinstance(prior, priors.Prior):
            raise TypeError(f"prior: got {prior!r}, wanted a block of tfpvae.priors")
        checks.refuse_keras3("simulator", simulator)
        if not callable(simulator):
            raise TypeError(
                f"simulator: got {simulator!r}, wanted a function (parameters, seed) -> x, or a "
                "tf_keras layer"
            )
        blocks.check_network("posterior", posterior)
        if encoder is not None:
            blocks.check_network("encoder", encoder)
        self.prior, self._posterior, self.encoder = prior, posterior, encoder
        self._check_prior()
        self.is_amortized = not isinstance(posterior, blocks.Block)
        if self.is_amortized and encoder is not None:
            raise ValueError(
                "encoder: got one beside a posterior that is a network, wanted a posterior block: "
                "the encoder makes q(z|x), the block q(beta)"
            )
        if not self.is_amortized:
            self._check_posterior(posterior.new(tf.zeros([posterior.params_size], posterior.dtype)))
        self.simulator = simulator
        if discriminator is None:
            hidden = [keras.layers.Dense(64, "tanh") for _ in range(2)]
            discriminator = keras.Sequential([*hidden, keras.layers.Dense(1)])
        blocks.check_network("discriminator", discriminator)
        if not isinstance(discriminator, density_ratio.DensityRatio):
            discriminator = density_ratio.DensityRatio(discriminator, seed=0)
        # Past Keras's tracking, or the posterior's optimizer would train it.
        object.__setattr__(self, "discriminator", discriminator)
        self._track_trackable(discriminator, "discriminator")
        self._settings: dict[str, Any] = {}
        self._discriminator_loss: Any = None
        self._x_rank, self._z_rank, self._whitens = 0, 0, False
        self._compiled_by_fit = False

    def _check_prior(self) -> None:
        """Raise ValueError unless the prior has a density on vectors of free numbers."""
        title, shape = self.prior.title(), self.prior.event_shape
        if len(shape) != 1:
            raise ValueError(
                f"prior: got event_shape {shape}, wanted (D,), a vector: priors.StandardNormal(1)"
            )
        try:
            support = self._support()
            is_open = support is not None and support.inverse_event_shape(shape) == shape
        except (NotImplementedError, TypeError):
            is_open = False
        if not is_open:
            raise ValueError(
                f"prior: got {title}, wanted one with a density on vectors of {shape[0]} numbers "
                "that are free of one another: not discrete, implicit, or on a simplex"
            )

    def _check_posterior(self, q: Any) -> None:
        """Raise ValueError unless these are distributions of real numbers such as the prior's."""
        if tuple(q.event_shape) != self.prior.event_shape:
            raise ValueError(
                f"posterior: got event_shape {tuple(q.event_shape)}, wanted "
                f"{self.prior.event_shape}, that of the prior"
            )
        try:
            support = q.experimental_default_event_space_bijector()
            steps = tf.cast(tf.linspace(-3.0, 3.0, 7), q.dtype)
            grid = steps[:, tf.newaxis] * tf.ones([q.event_shape[0]], q.dtype)
            is_real = support is not None and np.allclose(support.forward(grid), grid, atol=1e-6)
        except (NotImplementedError, TypeError, ValueError):
            is_real = False
        if not is_real or q.reparameterization_type != tfd.FULLY_REPARAMETERIZED:
            raise ValueError(
                f"posterior: got {q.name}, wanted a density on all real numbers whose draws are "
                "reparameterized, as posteriors.DiagonalNormal(D), FullRankNormal(D) or Flow: it "
                "is mapped onto the support of the prior, and it is scored"
            )

    def build(self, input_shape: Any) -> None:
        """Build the networks for data of this shape `[B, ...]`, and try the simulator."""
        dtype = self.prior.dtype
        shape, event = self.prior.event_shape, tuple(input_shape[1:])
        state = {"trainable": False, "dtype": dtype}
        if not self.is_amortized:
            self.unconstrained = self.add_weight(
                "unconstrained", (self._posterior.params_size,), initializer="zeros", dtype=dtype
            )
        self.prior_loc = self.add_weight("prior_loc", shape, initializer="zeros", **state)
        self.prior_scale = self.add_weight("prior_scale", shape, initializer="ones", **state)
        size = math.prod(event)
        self.x_loc = self.add_weight("x_loc", (size,), initializer="zeros", **state)
        self._whitens = size <= _MAX_WHITENED
        self.x_unit = self.add_weight(
            "x_unit",
            (size, size) if self._whitens else (size,),
            initializer="identity" if self._whitens else "ones",
            **state,
        )
        self.num_data = self.add_weight("num_data", (), initializer="ones", **state)
        self.has_units = self.add_weight(
            "has_units", (), "int32", initializer="zeros", trainable=False
        )
        self._learn_prior_scale()
        with noise.fixed(0), blocks.floatx(dtype):
            _build_for_any_batch(self.simulator, shape)
            x, z = self._try_simulator(event)
            for network in (self._posterior, self.encoder):
                _build_for_any_batch(network, x.shape[1:])
            if self.encoder is not None:
                q = self._encode("encoder", self.encoder, x)
                if tuple(q.event_shape) != tuple(z.shape[1:]):
                    raise ValueError(
                        f"encoder: got a posterior of event_shape {tuple(q.event_shape)}, wanted "
                        f"{tuple(z.shape[1:])}, that of the simulator's z"
                    )
            if self.is_amortized:
                self._check_posterior(self._encode("posterior", self._posterior, x))
            b = tf.zeros((len(x), *shape), dtype)
            self._x_rank, self._z_rank = len(x.shape) - 1, 0 if z is None else len(z.shape) - 1
            size = sum(math.prod(part.shape[1:]) for part in self._inputs(x, z, b))
            try:
                self.discriminator.build_rows(size)
            except ValueError as error:
                raise ValueError(str(error).replace("network:", "discriminator:", 1)) from None
        keras.layers.Layer.build(self, input_shape)

    def _learn_prior_scale(self) -> None:
        """Take the median and the quartiles of the prior, which even the heaviest tails have."""
        draws = self._support().inverse(self.prior().sample(_PRIOR_DRAWS, seed=[0, 0]))
        low, middle, high = np.percentile(draws, [25, 50, 75], axis=0)
        self.prior_loc.assign(middle)
        self.prior_scale.assign((high - low) / (2 * special.ndtri(0.75)))

    def _try_simulator(self, event: tuple[int, ...]) -> tuple[Any, Any]:
        """Simulations at draws of the prior, that are checked."""
        made = self._call_simulator(self.prior().sample(_TRIALS, seed=noise.next_seed()))
        wanted = "(x, z)" if self.encoder is not None else "x, because there is no encoder"
        is_pair = isinstance(made, (tuple, list))
        if is_pair != (self.encoder is not None) or (is_pair and len(made) != 2):
            got = f"{len(made)} values" if is_pair else type(made).__name__
            raise ValueError(f"simulator: got one that returns {got}, wanted {wanted}")
        x, z = made if is_pair else (made, None)
        values: Any
        for name, values in {"x": x, "z": z}.items() if is_pair else [("x", x)]:
            shape = (_TRIALS, *(event if name == "x" else values.shape[1:]))
            if not tf.is_tensor(values) or tuple(values.shape) != shape:
                got = str(getattr(values, "shape", type(values).__name__))
                raise ValueError(
                    f"simulator: got {name} of shape {got} for {_TRIALS} rows of parameters, "
                    f"wanted {shape}: a draw for each row, of the shape of the data"
                )
            if values.dtype.is_floating and not np.isfinite(values).all():
                rows = ~np.isfinite(np.reshape(values, (_TRIALS, -1))).all(axis=1)
                raise ValueError(
                    f"simulator: got {name} that is NaN or infinite for "
                    f"{np.count_nonzero(rows)} of {_TRIALS} draws of the prior, wanted finite "
                    "numbers: narrow the prior, or bound what the simulator computes"
                )
        return self.prepare(x), z if z is None else tf.cast(z, self.prior.dtype)

    # The model.

    @property
    def data_dtype(self) -> str:
        """The type in which data are scored: that of the prior, which a saved model remembers."""
        return self.prior.dtype

    def _support(self) -> Any:
        """The map of real numbers onto the support of the prior."""
        return self.prior().experimental_default_event_space_bijector()

    def _units(self) -> Any:
        """The map of the posterior block's numbers, in units of the prior, to parameters."""
        scale = tfb.Scale(tf.convert_to_tensor(self.prior_scale))
        shift = tfb.Shift(tf.convert_to_tensor(self.prior_loc))
        return tfb.Chain([self._support(), shift, scale])

    def _block_distribution(self, x: Any = None, training: bool = False) -> Any:
        """The posterior of what the units map to the parameters."""
        if self.is_amortized:
            return self._encode("posterior", self._posterior, x, training)
        return self._posterior.new(tf.convert_to_tensor(self.unconstrained))

    def _encode(self, name: str, network: Any, x: Any, training: bool = False) -> Any:
        """The distribution that a network makes of x."""
        q = network(x, training=training)
        if not isinstance(q, tfd.Distribution):
            raise TypeError(
                f"{name}: got one that returns {type(q).__name__}, wanted a distribution: end it "
                "in a block of tfpvae.posteriors"
            )
        return q

    def _mapped(self, q: Any) -> Any:
        """The distribution of the parameters, in closed form where it is a normal one."""
        q = getattr(q, "tensor_distribution", q)
        if isinstance(self._support(), tfb.Identity):
            if isinstance(q, tfd.Independent) and isinstance(q.distribution, tfd.Normal):
                loc = self.prior_loc + self.prior_scale * q.mean()
                return tfd.MultivariateNormalDiag(loc, self.prior_scale * q.stddev())
            if isinstance(q, tfd.MultivariateNormalTriL):
                loc = self.prior_loc + self.prior_scale * q.mean()
                tril = self.prior_scale[:, tf.newaxis] * q.scale_tril
                return tfd.MultivariateNormalTriL(loc, tril)
        return flows.FlowDistribution(q, self._units())

    def _call_simulator(self, parameters: Any) -> Any:
        """What the simulator returns, drawn from if it is a distribution."""
        seed = noise.next_seed()
        if not isinstance(self.simulator, keras.layers.Layer):
            made = self.simulator(parameters, seed)
        elif "seed" in inspect.signature(self.simulator.call).parameters:
            made = self.simulator(parameters, seed=seed)
        else:
            made = self.simulator(parameters)
        if isinstance(made, (tuple, list)):
            return [_drawn(value) for value in made]
        return _drawn(made)

    def _simulate(self, parameters: Any) -> tuple[Any, Any]:
        """Prepared x and z, None without an encoder, for each row of parameters."""
        made = self._call_simulator(parameters)
        x, z = (made, None) if self.encoder is None else made
        return self.prepare(x), z if z is None else tf.cast(z, self.prior.dtype)

    def _inputs(self, x: Any, z: Any, b: Any) -> list[Any]:
        """What the discriminator sees: vectors, x in units of the data."""
        away = _flat(x, x.shape.rank - self._x_rank) - self.x_loc
        unit = tf.convert_to_tensor(self.x_unit)
        x = tf.linalg.matvec(unit, away) if self._whitens else unit * away
        return [x, b] if z is None else [x, _flat(z, z.shape.rank - self._z_rank), b]

    def _standardized(self, q: Any, v: Any) -> Any:
        """The block's numbers in units of the posterior, which discriminators can tell apart.

        They hold all the way from the prior to a posterior a thousand times narrower, so that the
        discriminator need not learn anew as q closes in. Those of an amortized posterior, of which
        there are many, are in units of the prior.
        """
        if self.is_amortized:
            return v
        loc, tril = _moments(q)
        away = tf.reshape(v - loc, [-1, v.shape[-1]])
        b = tf.linalg.triangular_solve(tril, tf.transpose(away))
        return tf.reshape(tf.transpose(b), tf.shape(v))

    def _proposal(self, q: Any, num: int) -> Any:
        """The block's numbers that simulations are made at, `[num, D]`.

        They are wider than the posterior by `spread`: what the discriminator has to tell apart
        grows, and so its slope is known better; the ratio is the same.
        """
        if self.is_amortized:
            return self._units().inverse(self.prior().sample(num, seed=noise.next_seed()))
        loc, _ = _moments(q)
        v = q.sample(num, seed=noise.next_seed())
        return tf.stop_gradient(loc + self._setting("spread") * (v - loc))

    def _pairs(self, x: Any, num: int | None = None) -> tuple[list[Any], list[Any]]:
        """Inputs of the discriminator: those of the numerator, and those of the denominator.

        The numerator is p(x, z | b). In the denominator x is independent of b: the simulation of
        another b, or one of the data; and z comes from q(z | x).
        """
        num_references = self._setting("num_references") if num is None else 1
        num = self._setting("num_simulations") if num is None else num
        q = None if self.is_amortized else self._block_distribution()
        v = self._proposal(q, num)
        b = self._standardized(q, v)
        made, z = self._simulate(self._units().forward(v))
        other = made
        if self._setting("reference") == "data":
            shape, seed = [num_references, num], noise.as_seed(noise.next_seed())
            rows = tf.random.stateless_uniform(shape, seed, 0, tf.shape(x)[0], tf.int32)
            other = tf.gather(x, rows)
        encoded = None if z is None else self._latent(other)
        if self._setting("reference") == "simulator":
            other = _rolled(other, num_references)
            encoded = None if encoded is None else _rolled(encoded, num_references)
        numerator = self._inputs(made, z, b)
        denominator = self._inputs(other, encoded, tf.broadcast_to(b, [num_references, *b.shape]))
        return [tf.stop_gradient(t) for t in numerator], [tf.stop_gradient(t) for t in denominator]

    def _latent(self, x: Any) -> Any:
        """A draw of z from q(z|x) for each x."""
        q = self._encode("encoder", self.encoder, x)
        return q.sample(seed=noise.next_seed())

    def example_losses(self, x: Any, y: Any, training: bool) -> tuple[Any, dict[str, Any], Any]:
        """Minus the log ratio of each example, and with an amortized posterior its KL."""
        del y
        discriminator_loss = self._discriminator_loss if training else self._held_out_loss(x)
        num = self._setting("num_samples")
        q = self._block_distribution(x, training)
        v = q.sample(num, seed=noise.next_seed())
        z = None
        if self.encoder is not None:
            latent = self._encode("encoder", self.encoder, x, training)
            z = latent.sample(num, seed=noise.next_seed())
        b = self._standardized(q, v)
        inputs = self._inputs(x, z, b if self.is_amortized else b[:, tf.newaxis])
        log_ratio = tf.reduce_mean(self.discriminator(inputs), axis=0)
        kl = self._kl(q, v)
        losses = kl - log_ratio if self.is_amortized else -log_ratio
        terms = {"log_ratio": log_ratio, "kl": kl, "discriminator_loss": discriminator_loss}
        return losses, terms, log_ratio

    def _kl(self, q: Any, v: Any) -> Any:
        """KL(q || p) from draws, of each example, or its share of that of all the data.

        The gradient is that of "sticking the landing", whose noise vanishes where q is exact.
        """
        units = self._units()
        log_q = blocks.log_prob_through(q, v) - units.forward_log_det_jacobian(v, 1)
        kl = tf.reduce_mean(log_q - self.prior().log_prob(units.forward(v)), axis=0)
        return kl if self.is_amortized else kl / self.num_data

    def before_step(self, x: Any, y: Any) -> None:
        """Let the discriminator learn from fresh simulations, and keep its loss before that."""
        x, _ = self.prepare_batch(x, y)
        losses = [
            self.discriminator.update(*self._pairs(x)) for _ in range(self._setting("num_updates"))
        ]
        object.__setattr__(self, "_discriminator_loss", losses[0])

    def _held_out_loss(self, x: Any) -> Any:
        """The loss of the discriminator on fresh simulations."""
        numerator, denominator = map(self.discriminator, self._pairs(x))
        return self.discriminator.loss(numerator, denominator)

    def build_optimizers(self) -> None:
        """Make the variables of both optimizers."""
        super().build_optimizers()
        if self.built:
            self.discriminator.build_optimizers()

    def total_loss(self, losses: Any, terms: dict[str, Any], weight: Any) -> Any:
        """The mean loss of the batch, and its share of the KL."""
        loss = super().total_loss(losses, terms, weight)
        return loss if self.is_amortized else loss + terms["kl"]

    def _check_arrays(self, names: tuple[str, ...], x: np.ndarray, y: np.ndarray | None) -> None:
        if not self.built:  # Here, where mistakes are those of the simulator more often than of x.
            with self.distribute_strategy.scope():
                self.build((None, *x.shape[1:]))
        super()._check_arrays(names, x, y)

    def check_data(self, x: np.ndarray, y: np.ndarray | None, arguments: tuple[str, str]) -> None:
        """Raise ValueError unless x are finite and of the shape that the model was built for."""
        shape = tuple(self._build_input_shape[1:])
        if x.shape[1:] != shape:
            wanted = ", ".join(map(str, ("N", *shape)))
            raise ValueError(f"{arguments[0]}: got shape {x.shape}, wanted ({wanted})")
        if not np.isfinite(x).all():
            raise ValueError(
                f"{arguments[0]}: got NaN or infinite values, wanted finite numbers: remove them"
            )
        if y is not None:
            raise ValueError(f"{arguments[1]}: got one, wanted none: what is explained is x")

    # Training.

    def compile(
        self,
        optimizer: Any = "adam",
        discriminator_optimizer: Any = "adam",
        *,
        reference: str = "simulator",
        num_samples: int = 16,
        num_simulations: int = 512,
        num_references: int = 2,
        num_updates: int = 1,
        spread: float = 2.0,
        **kwargs: Any,
    ) -> None:
        """Configure training, as `keras.Model.compile`; `fit` does it if you do not.

        Args:
          optimizer: of the posterior.
          discriminator_optimizer: of the discriminator.
          reference: d(x), what simulations are compared with: "simulator" for simulations at other
            parameters, which never run out; "data" for the data, as in the paper, which the
            discriminator comes to know by heart unless there are many of them.
          num_samples: the number S of draws of the posterior in a step.
          num_simulations: the number M of simulations in an update of the discriminator.
          num_references: how many draws of d(x) each of them is compared with.
          num_updates: updates of the discriminator in a step.
          spread: how many times wider than the posterior the parameters of the simulations are.
          **kwargs: the other arguments of `keras.Model.compile`.

        Raises:
          ValueError: for another reference, numbers that are not positive.
        """
        if not checks.one_of(reference, _REFERENCES):
            raise ValueError(f"reference: got {reference!r}, wanted one of {_REFERENCES}")
        counts = {
            "num_samples": num_samples,
            "num_simulations": num_simulations,
            "num_references": num_references,
            "num_updates": num_updates,
        }
        for name, value in counts.items():
            counts[name] = checks.positive_integer(name, value)
        if reference == "simulator" and num_references >= num_simulations:
            raise ValueError(
                f"num_references: got {num_references}, wanted fewer than num_simulations="
                f"{num_simulations}: they are the other simulations"
            )
        spread = checks.positive_number("spread", spread)
        self._settings = {"reference": reference, "spread": spread, **counts}
        self._compiled_by_fit = False
        self.discriminator.compile(discriminator_optimizer)
        super().compile(optimizer, **kwargs)

    def _setting(self, name: str) -> Any:
        """What `compile` was told, or its default."""
        default = inspect.signature(type(self).compile).parameters[name].default
        return self._settings.get(name, default)

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`, and who called it; None before it."""
        config = super().get_compile_config()
        optimizer = self.discriminator.optimizer
        return config and config | self._settings | {
            "discriminator_optimizer": keras.saving.serialize_keras_object(optimizer),
            "by_fit": self._compiled_by_fit,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved model was; the next `fit` takes new optimizers if the last did."""
        super().compile_from_config({k: v for k, v in config.items() if k != "by_fit"})
        self._compiled_by_fit = config["by_fit"]

    def fit(  # type: ignore[override]  # with arguments of its own
        self,
        x: Any = None,
        batch_size: int | None = None,
        epochs: int | None = None,
        *,
        steps: int | None = None,
        sample_weight: Any = None,
        num_data: int | None = None,
        validation_data: Any = None,
        **settings: Any,
    ) -> Any:
        """Approximate the posterior.

        Without `compile` before, both optimizers are Adam, with learning rates that fall to zero
        over the steps: their noise is averaged out.

        Args:
          x: data `[N, *event_shape]`, or a stream of batches of them.
          batch_size: rows a step; all of them if None, or 128 if there are more.
          epochs: passes over the data, as in Keras, in place of `steps`.
          steps: steps of the optimizers, 8000 if None; the history has ten entries then.
          sample_weight: weights `[N]` of the rows, such as how often they came.
          num_data: rows of a stream; a posterior of all the data has to know.
          validation_data: more data, arrays or a stream.
          **settings: the other arguments of `keras.Model.fit`.

        Returns:
          Keras's `History`.

        Raises:
          TypeError: for data that are no numbers.
          ValueError: for data of another shape, not finite, that the simulator does not make.
          FloatingPointError: if the loss became NaN or infinite.
        """
        if epochs is not None and steps is not None:
            raise ValueError(f"steps: got {steps} and epochs={epochs}, wanted one of them")
        given = {"batch_size": batch_size, "epochs": 1 if epochs is None else epochs}
        checks.fit_settings(settings | given)
        replicas.refuse(self.distribute_strategy, "SimulatorModel")
        data = self._checked(("x", "y", "sample_weight"), x, None, sample_weight)
        held_out = None if validation_data is None else self._checked_validation(validation_data)
        if data.first:
            if num_data is None and not self.is_amortized:
                raise ValueError("num_data: got None, wanted the number of rows of the stream")
            size, epochs, passes = num_data or 1, epochs or 1, 1
            total = (data.steps({}) or _STEPS) * epochs
            batch_size = None
        else:
            size = len(data.x)
            batch_size = min(batch_size or _BATCH_SIZE, size)
            per_pass = math.ceil(size / batch_size)
            passes = 1
            if epochs is None:
                steps = checks.positive_integer("steps", _STEPS if steps is None else steps)
                epochs = min(_REPORTS, math.ceil(steps / per_pass))
                passes = math.ceil(steps / per_pass / epochs)
            total = per_pass * passes * epochs
        if not self._is_compiled or self._compiled_by_fit:
            schedule = keras.optimizers.schedules.CosineDecay
            self.compile(
                keras.optimizers.Adam(schedule(_POSTERIOR_RATE, total)),
                keras.optimizers.Adam(schedule(_DISCRIMINATOR_RATE, total)),
            )
            self._compiled_by_fit = True
        if not self._runs_programs():  # Keras's own loop knows no passes.
            epochs, passes = epochs * passes, 1
        self.num_data.assign(float(size))
        self._learn_scale(data.sample[0])
        return self._train(
            data._replace(passes=passes),
            held_out,
            batch_size=batch_size,
            epochs=epochs,
            **settings,
        )

    def _learn_scale(self, x: np.ndarray) -> None:
        """Take note of the units of the data, once: the discriminator gets used to them.

        Of a few numbers also of their correlations: a simulator may leave next to no noise across.
        """
        if int(self.has_units):
            return
        parts = np.array_split(x, math.ceil(len(x) / 4096))
        rows = np.concatenate([_flat(self.prepare(part), 1).numpy() for part in parts])
        rows = rows.astype(np.float64)
        loc, spread = rows.mean(axis=0), rows.std(axis=0)
        spread = np.where(spread > 1e-12 * np.abs(rows).max(axis=0), spread, 1.0)
        away = (rows - loc) / spread
        unit = 1.0 / spread
        if self._whitens:
            share = min(1.0, len(spread) / len(rows))  # Of few rows the correlations are chance.
            correlation = (1.0 - share) * away.T @ away / len(rows) + share * np.eye(len(spread))
            unit = np.linalg.inv(np.linalg.cholesky(correlation)) * unit
        self.x_loc.assign(loc)
        self.x_unit.assign(unit)
        self.has_units.assign(1)

    # What the model knows.

    def posterior(self, x: Any = None) -> Any:
        """The posterior of the parameters, a `tfd.Distribution`.

        Args:
          x: data `[N, *event_shape]` of an amortized posterior, q(beta | x_n), batch shape `[N]`;
            None for the one of all the data.
        """
        if self.is_amortized == (x is None):
            wanted = "data, because the posterior is amortized" if x is None else "None: it has one"
            raise ValueError(f"x: got {'None' if x is None else 'data'}, wanted {wanted}")
        if not self.built:
            raise ValueError("posterior: the model has seen no data, call fit first")
        with noise.fixed(0):
            return self._mapped(self._block_distribution(None if x is None else self._data(x)))

    def latent_posterior(self, x: Any) -> Any:
        """The posterior q(z | x_n) of the encoder, a `tfd.Distribution` with batch shape `[N]`."""
        if self.encoder is None:
            raise ValueError("encoder: the model has none, so there is no z")
        with noise.fixed(0):
            return self._encode("encoder", self.encoder, self._data(x)).tensor_distribution

    def simulate(self, parameters: Any, seed: Any = None) -> np.ndarray:
        """A draw of x for each row of parameters `[M, D]`, an array `[M, *event_shape]`.

        Args:
          parameters: values of beta.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
        """
        if not tf.is_tensor(parameters):
            parameters = checks.as_array("parameters", parameters)
        parameters = tf.cast(parameters, self.prior.dtype)
        if tuple(parameters.shape[1:]) != self.prior.event_shape:
            raise ValueError(
                f"parameters: got shape {tuple(parameters.shape)}, wanted "
                f"(M, {self.prior.event_shape[0]})"
            )
        with noise.fixed(self.noise.next() if seed is None else seed):
            made = self._call_simulator(parameters)
        return np.asarray(made if self.encoder is None else made[0])

    def sample(self, num: int, source: str | None = None, seed: Any = None) -> np.ndarray:
        """Draw data: beta from the posterior or the prior, then x from the simulator.

        Args:
          num: how many, each with a beta of its own.
          source: "posterior" (the default) or "prior" (that of an amortized model).
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.

        Returns:
          An array `[num, *event_shape]`.
        """
        checks.positive_integer("num", num)
        source = _SOURCES[self.is_amortized] if source is None else source
        if not checks.one_of(source, _SOURCES) or (source == "posterior" and self.is_amortized):
            wanted = "'prior'" if self.is_amortized else "'posterior' or 'prior'"
            raise ValueError(f"source: got {source!r}, wanted {wanted}")
        seed = self.noise.next() if seed is None else noise.as_seed(seed)
        first, second = tf.unstack(tf.random.split(seed))
        p = self.prior() if source == "prior" else self.posterior()
        return self.simulate(p.sample(num, seed=first), second)

    def predictive_check(
        self,
        x: Any,
        statistic: Callable[[np.ndarray], Any],
        num_replications: int = 500,
        seed: Any = None,
    ) -> PredictiveCheck:
        """Compare a statistic of the data with that of data sets simulated from the posterior.

        Args:
          x: the data `[N, *event_shape]`.
          statistic: of a data set `[N, *event_shape]`, a number or an array of them.
          num_replications: the number R of data sets, each with a draw of the posterior.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.

        Raises:
          TypeError: for a statistic that is no function.

        Source: Gelman, Meng and Stern, "Posterior Predictive Assessment of Model Fitness via
        Realized Discrepancies", 1996.
        """
        if not callable(statistic):
            raise TypeError(f"statistic: got {statistic!r}, wanted a function of a data set")
        num = checks.positive_integer("num_replications", num_replications)
        x = self._data(x).numpy()
        seed = self.noise.next() if seed is None else noise.as_seed(seed)
        first, second = tf.unstack(tf.random.split(seed))
        draws = self.posterior(x if self.is_amortized else None).sample(num, seed=first)
        replicated = []
        for i, parameters in enumerate(draws):
            rows = tf.broadcast_to(parameters, (len(x), *self.prior.event_shape))
            replicated.append(statistic(self.simulate(rows, tf.random.fold_in(second, i))))
        observed, values = np.asarray(statistic(x)), np.asarray(replicated)
        p_value = np.mean(values > observed, axis=0) + np.mean(values == observed, axis=0) / 2
        return PredictiveCheck(observed, values, p_value)

    def check_discriminator(
        self, num_simulations: int = 20_000, x: Any = None, seed: Any = None
    ) -> DiscriminatorCheck:
        """Score the discriminator on fresh simulations, and tell whether it is calibrated.

        Args:
          num_simulations: of the numerator, and as many of the denominator.
          x: with the reference "data", data that were held out.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
        """
        num = checks.positive_integer("num_simulations", num_simulations)
        if self._setting("reference") == "data" and x is None:
            raise ValueError("x: got None, wanted held-out data, the reference of this model")
        x = None if x is None else self._data(x)
        with noise.fixed(self.noise.next() if seed is None else seed):
            # Two sets of simulations: the draws of either side are independent of the other's.
            numerator, _ = self._pairs(x, num)
            _, denominator = self._pairs(x, num)
            logits = [self.discriminator(inputs) for inputs in (numerator, denominator)]
        r = np.concatenate([np.ravel(values) for values in logits]).astype(np.float64)
        y = np.repeat([1.0, 0.0], num)
        log_score = float(np.mean(np.logaddexp(0.0, np.where(y == 1.0, -r, r))))
        accuracy = float(np.mean((r > 0) == (y == 1.0)))
        return DiscriminatorCheck(log_score, accuracy, *_calibration(r, y))

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON.

        Raises:
          ValueError: if the simulator is a function that is not registered.
        """
        parts = {"discriminator": self.discriminator, "posterior": self._posterior}
        parts |= {name: getattr(self, name) for name in ("prior", "encoder", "preprocessing")}
        _check_registered(self.simulator)
        parts["simulator"] = self.simulator
        return {"name": self.name} | {
            name: keras.saving.serialize_keras_object(part)
            for name, part in parts.items()
            if part is not None
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "SimulatorModel":
        """The model that a configuration describes."""
        del custom_objects  # Keras has put them into scope.
        with blocks.floatx(config["prior"]):
            return cls(
                **{
                    name: value if name == "name" else keras.saving.deserialize_keras_object(value)
                    for name, value in config.items()
                }
            )

    def _data(self, x: Any) -> Any:
        """Data as the networks take them, checked."""
        array = checks.as_array("x", x)
        self._check_arrays(("x",), array, None)
        return self.prepare(self._placed(array))


def _build_for_any_batch(network: Any, shape: Any) -> None:
    """Build a Sequential model at once: else it is rebuilt, which takes draws, later."""
    if isinstance(network, keras.Sequential) and not network.built:
        network.build((None, *shape))


def _drawn(value: Any) -> Any:
    """A value, or a draw of a distribution."""
    if isinstance(value, tfd.Distribution):
        value = getattr(value, "tensor_distribution", value)
        return value.sample(seed=noise.next_seed())
    return value


def _flat(values: Any, lead: int) -> Any:
    """The values with the axes after the first `lead` as one."""
    size = math.prod(values.shape[lead:])
    return tf.reshape(values, tf.concat([tf.shape(values)[:lead], [size]], 0))


def _rolled(rows: Any, num: int) -> Any:
    """The rows in other orders `[num, M, ...]`, none of which leaves a row in its place."""
    return tf.stack([tf.roll(rows, 1 + i, axis=0) for i in range(num)])


def _moments(q: Any) -> tuple[Any, Any]:
    """Mean and triangular scale of a posterior, from draws that are always the same."""
    draws = tf.stop_gradient(q.sample(_POSTERIOR_DRAWS, seed=tf.constant([0, 0])))
    loc = tf.reduce_mean(draws, axis=0)
    away = draws - loc
    cov = tf.linalg.matmul(away, away, transpose_a=True) / (_POSTERIOR_DRAWS - 1)
    # Against rounding, and for more dimensions than draws.
    cov += 1e-5 * tf.linalg.diag(tf.linalg.diag_part(cov))
    return loc, tf.linalg.cholesky(cov)


def _calibration(r: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """Slope and intercept of a logistic regression of y on r, each with its standard error."""
    design = np.stack([r, np.ones_like(r)], axis=1)

    def score(w: np.ndarray) -> tuple[float, np.ndarray]:
        eta = design @ w
        loss = np.mean(np.logaddexp(0.0, eta) - y * eta)
        return loss, design.T @ (special.expit(eta) - y) / len(y)

    best = optimize.minimize(score, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    p = special.expit(design @ best)
    errors = np.sqrt(np.diag(np.linalg.pinv((design * (p * (1 - p))[:, None]).T @ design)))
    return float(best[0]), float(errors[0]), float(best[1]), float(errors[1])


def _check_registered(simulator: Any) -> None:
    """Raise ValueError for a function that a file cannot name."""
    if isinstance(simulator, keras.layers.Layer):
        return
    name = keras.saving.get_registered_name(simulator) if hasattr(simulator, "__name__") else ""
    if keras.saving.get_registered_object(name) is not simulator:
        raise ValueError(
            f"simulator: got {simulator!r}, which a file cannot hold, wanted a function that is "
            "registered by @keras.saving.register_keras_serializable(), or a tf_keras layer"
        )
