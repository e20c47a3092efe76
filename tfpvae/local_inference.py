"""Local variational inference: free posterior parameters for each example, without an encoder."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import special

from tfpvae import blocks, checks, execution, inputs, models, noise, priors, replicas

tfd = tfp.distributions

# Draws of z for each example and step, and draws that tell whether a round was of use.
_STEP_DRAWS, _CHECK_DRAWS = 32, 256
_ROUND_STEPS = 250


@keras.saving.register_keras_serializable("tfpvae")
class LocalParameters(keras.layers.Layer):
    r"""A layer that looks up each example's own free parameters, in place of an encoder.

    $$ \text{params}(x_n) = \lambda_n, \qquad \lambda_n \in \mathbb R^{\text{params\_size}}
       \ \text{a weight for each training example} $$

    The examples are found by their values, so batches come in any order and any number, and equal
    examples share their parameters, as they do their exact posterior. What the layer has not been
    adapted to gets NaN.

    Shapes: x `[B, ...]` to parameters `[B, params_size]`.

    Args:
      num_data: the number N of training examples.
      params_size: how many unconstrained numbers the posterior block takes.
      **kwargs: arguments of any Keras layer.

    Example:
      >>> layer = LocalParameters(num_data=3, params_size=2)
      >>> layer.adapt([[0.0], [1.0], [2.0]])
      >>> layer.parameters.assign([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]).shape
      TensorShape([3, 2])
      >>> layer(tf.constant([[2.0], [0.0]])).numpy()
      array([[4., 5.],
             [0., 1.]], dtype=float32)
    """

    def __init__(self, num_data: int, params_size: int, **kwargs: Any) -> None:
        super().__init__(**{"dtype": blocks.full_precision(kwargs.pop("dtype", None))} | kwargs)
        self.num_data = checks.positive_integer("num_data", num_data)
        self.params_size = checks.positive_integer("params_size", params_size)
        self.parameters = self.add_weight(
            name="parameters", shape=(num_data, params_size), initializer="zeros"
        )
        state = {"shape": (num_data,), "initializer": "zeros", "trainable": False}
        # Keys in rising order, and the row of the parameters that belongs to each.
        self.keys = self.add_weight(name="keys", dtype="int64", **state)
        self.rows = self.add_weight(name="rows", dtype="int32", **state)
        self.adapted = self.add_weight(
            name="adapted", dtype="int32", shape=(), initializer="zeros", trainable=False
        )

    def adapt(self, x: Any) -> None:
        """Give each of these examples a row of the parameters, in their order.

        Raises:
          ValueError: unless there are `num_data` of them; if the layer has others already.
        """
        x = checks.as_array("x", x)
        if len(x) != self.num_data:
            raise ValueError(f"x: got {len(x)} examples, wanted num_data={self.num_data} of them")
        with np.errstate(over="ignore"):  # The model says what is out of its range.
            keys = _keys(tf.convert_to_tensor(x, self.dtype)).numpy()
        order = np.argsort(keys, kind="stable")
        if not int(self.adapted):
            self.keys.assign(keys[order])
            self.rows.assign(order)
            self.adapted.assign(1)
        elif not np.array_equal(self.keys.numpy(), keys[order]):
            raise ValueError(
                "x: got other examples than before, wanted the same: each has parameters of its own"
            )

    def knows(self, x: np.ndarray) -> np.ndarray:
        """Whether each of the examples has parameters, an array `[N]`."""
        return self._find(tf.convert_to_tensor(x, self.dtype))[1].numpy()

    def call(self, inputs: Any) -> Any:
        """The parameters of the examples, `[B, params_size]`."""
        row, known = self._find(inputs)
        params = _gather(tf.convert_to_tensor(self.parameters), row)
        return tf.where(known[:, None], params, tf.constant(math.nan, params.dtype))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of what `call` returns."""
        return tf.TensorShape([input_shape[0], self.params_size])

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        sizes = {"num_data": self.num_data, "params_size": self.params_size}
        return super().get_config() | sizes

    def _find(self, x: Any) -> tuple[Any, Any]:
        """The row of each example, and whether it has one."""
        keys = _keys(x)
        place = tf.minimum(tf.searchsorted(self.keys, keys), self.num_data - 1)
        known = (tf.gather(self.keys, place) == keys) & (self.adapted == 1)
        return tf.gather(self.rows, place), known


def _keys(x: Any) -> Any:
    """A number of 64 bits for each example that another one has by an unlikely chance only.

    The sum of the entries' bits, each times an odd number of its own, modulo 2^64 (Carter and
    Wegman's universal hashing). The shifts move differences of a float's high bits to its low ones.
    """
    x = tf.reshape(tf.cast(x, tf.float32), [tf.shape(x)[0], math.prod(x.shape[1:])])
    x = tf.where(x == 0.0, tf.zeros([], x.dtype), x)  # -0 is 0, and one NaN is as the other.
    x = tf.where(tf.math.is_nan(x), tf.constant(math.nan, x.dtype), x)
    bits = tf.cast(tf.bitcast(x, tf.int32), tf.int64)
    for shift in (11, 22):
        bits = tf.bitwise.bitwise_xor(
            bits, tf.bitwise.right_shift(bits, tf.constant(shift, bits.dtype))
        )
    factors = np.random.default_rng(0).integers(-(2**62), 2**62, x.shape[1]) * 2 + 1
    return tf.reduce_sum(bits * factors, axis=1)


@tf.custom_gradient
def _gather(table: Any, rows: Any) -> Any:
    """The rows of a table.

    The gradient is dense: Adam moves all rows in every step anyhow, and Keras merges the rows of a
    sparse one by an operation that XLA does not know.
    """

    def gradient(upstream: Any) -> Any:
        return tf.math.unsorted_segment_sum(upstream, rows, table.shape[0]), None

    return tf.gather(table, rows), gradient


@keras.saving.register_keras_serializable("tfpvae")
class LocalVAE(models.VAE):
    r"""The model of a `VAE`, with free posterior parameters for each example, and no encoder.

    $$ q(z \mid x_n) = q(z;\ \lambda_n), \qquad
       \max_{\theta,\, \lambda_1, \dots, \lambda_N} \sum_n
       \mathbb E_{q(z; \lambda_n)}[\log p_\theta(x_n \mid z)]
       - \mathrm{KL}\bigl(q(z; \lambda_n)\ \|\ p(z)\bigr) $$

    The lambda_n are the local variational parameters of the textbooks, hence the name; a `VAE`
    makes them by a network (it amortizes them). Without it there is no amortization gap, and few
    examples are enough; but a step of Adam moves all N rows, and other data have no posterior until
    `local_posterior` finds them one.

    All methods of `VAE` take the training data, or some of them, in any order.

    Args:
      prior: p(z), a block of `tfpvae.priors`.
      posterior: a block of `tfpvae.posteriors`.
      decoder: a tf_keras model or layer that maps z to p(x|z): it ends in a likelihood block.
      num_data: the number N of training examples.
      seed: of the model's noise, see `VAE`.
      **kwargs: of `keras.Model`.

    Raises:
      TypeError: if the posterior is no block.
      ValueError: if prior and posterior differ in size, or the prior is a `VampPrior`.

    Example:
      >>> from tfpvae import likelihoods, posteriors, priors
      >>> x = np.eye(4, dtype="float32")
      >>> decoder = keras.Sequential([keras.layers.Dense(4), likelihoods.Bernoulli(4)])
      >>> vae = LocalVAE(priors.StandardNormal(2), posteriors.DiagonalNormal(2), decoder, len(x))
      >>> vae.compile("adam")
      >>> len(vae.fit(x, epochs=2, verbose=0).history["loss"])
      2
      >>> vae.posterior(x[:3]).mean().shape
      TensorShape([3, 2])

    Source: Jordan, Ghahramani, Jaakkola and Saul, "An Introduction to Variational Methods for
    Graphical Models", 1999; Hoffman, Blei, Wang and Paisley, "Stochastic Variational Inference",
    2013.
    """

    def __init__(
        self,
        prior: Any,
        posterior: Any,
        decoder: Any,
        num_data: int,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        checks.refuse_keras3("posterior", posterior)
        if not isinstance(posterior, blocks.Block):
            raise TypeError(f"posterior: got {posterior!r}, wanted a block of tfpvae.posteriors")
        if isinstance(prior, priors.VampPrior):
            raise ValueError(
                "prior: got a VampPrior, a mixture of the posteriors that an encoder makes of "
                "pseudo-inputs, and there is no encoder; wanted another, as priors.NormalMixture"
            )
        local = LocalParameters(num_data, posterior.params_size, name="local_parameters")
        encoder = keras.Sequential([local, posterior], name="local_posterior")
        super().__init__(prior, encoder, decoder, seed, **kwargs)
        object.__setattr__(self, "_local", local)

    @property
    def num_data(self) -> int:
        """The number of training examples."""
        return self._local.num_data

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train the model on arrays, as `VAE.fit`.

        Raises:
          TypeError: for a stream of batches.
          ValueError: for validation data, which have no posterior; for other examples than those
            of the first call.
        """
        replicas.refuse(self.distribute_strategy, "LocalVAE")
        if inputs.is_stream(x):
            raise TypeError(f"x: got {type(x).__name__}, wanted an array of all the examples")
        if args or kwargs.get("validation_split") or kwargs.get("validation_data") is not None:
            _refuse_validation(args)
        self._local.adapt(checks.as_array("x", x))
        return super().fit(x, y, **kwargs)

    def check_data(self, x: np.ndarray, y: np.ndarray | None, arguments: tuple[str, str]) -> None:
        """Raise ValueError unless the examples have posteriors and the likelihood can score y."""
        self.check_scored(x, y, arguments)
        unknown = np.count_nonzero(~self._local.knows(x))
        if unknown:
            raise ValueError(
                f"{arguments[0]}: got {unknown} examples that the model was not fit on, wanted "
                "those that it was: tfpvae.local_posterior finds the posteriors of others"
            )

    def check_scored(self, x: np.ndarray, y: np.ndarray | None, arguments: tuple[str, str]) -> None:
        """Raise ValueError unless the likelihood can have made the data."""
        super().check_data(x, y, arguments)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        config = super().get_config()
        del config["encoder"]
        posterior = keras.saving.serialize_keras_object(self.encoder.layers[-1])
        return config | {"posterior": posterior, "num_data": self.num_data}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "LocalVAE":
        """The model that a configuration describes."""
        del custom_objects  # Keras has put them into scope.
        parts = ("prior", "posterior", "decoder")
        with blocks.floatx(config["prior"]):
            made = {name: keras.saving.deserialize_keras_object(config[name]) for name in parts}
            return cls(**config | made)


def _refuse_validation(args: Any) -> None:
    if args:
        raise TypeError("fit: got more than two arguments without a name, wanted names for them")
    raise ValueError(
        "validation_data: got some, wanted none: they have no posterior; after training "
        "tfpvae.local_posterior(vae, x).elbo scores data that were held out"
    )


class LocalPosterior(NamedTuple):
    """What `local_posterior` found.

    Attributes:
      posterior: q(z; lambda), a `tfd.Distribution` with batch shape `[N]`.
      log_weights: of fresh draws from it, which it was not optimized on, `[S, N]`, in nats.
      steps: how many steps were taken, the most of all batches.
      converged: whether the last round of steps gained less than the tolerance.
    """

    posterior: Any
    log_weights: np.ndarray
    steps: int
    converged: bool

    @property
    def elbo(self) -> np.ndarray:
        """The ELBO of each example `[N]`."""
        return self.log_weights.mean(axis=0)

    @property
    def standard_error(self) -> np.ndarray:
        """The standard error of `elbo`, from its draws, `[N]`."""
        return self.log_weights.std(axis=0, ddof=1) / math.sqrt(len(self.log_weights))

    @property
    def log_marginal_likelihood(self) -> np.ndarray:
        """The log p(x) of each example by importance sampling from the posterior, `[N]`."""
        return special.logsumexp(self.log_weights, axis=0) - math.log(len(self.log_weights))


def local_posterior(
    vae: Any,
    x: Any,
    posterior: Any = None,
    num_samples: int = 1000,
    *,
    tolerance: float = 0.002,
    max_steps: int = 5000,
    learning_rate: float = 0.1,
    batch_size: int = 100,
    seed: Any = None,
    verbose: Any = "auto",
) -> LocalPosterior:
    r"""The best posterior of a family for each example by itself; the decoder stays as it is.

    $$ \lambda_n = \arg\max_\lambda\ \mathbb E_{q(z; \lambda)}[
       \log p(x_n \mid z) + \log p(z) - \log q(z; \lambda)] $$

    What the encoder falls short of this ELBO is its amortization gap; what this falls short of
    log p(x) is the approximation gap of the family. It starts from the encoder's posterior, and
    keeps it for an example where nothing better is found.

    Adam climbs in rounds of 250 steps. Each step takes fresh draws, so no set of draws is fitted,
    and the gradient of Roeder et al., which has no noise where q is exact. In a round the learning
    rate falls to zero, and the next round begins with half of it. It ends with the first round that
    raises the mean ELBO, estimated on draws that are common to all rounds, by less than
    `tolerance`.

    Args:
      vae: a built `VAE` or `LocalVAE`. Examples that a `LocalVAE` does not know start at zero.
      x: data `[N, *event_shape]`, also such that the model was not fit on.
      posterior: a block of `tfpvae.posteriors`, the encoder's if None. Another family starts from
        the encoder's means and standard deviations.
      num_samples: the number S of fresh draws for each example that the result is scored on.
      tolerance: in nats an example.
      max_steps: where it ends in any case.
      learning_rate: of the first round.
      batch_size: examples at once.
      seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
      verbose: 1 shows progress, 0 does not, "auto" does when it takes long.

    Returns:
      The posterior, the log weights of fresh draws, and whether it converged.

    Raises:
      TypeError: if the posterior is no block; for a `SemiSupervisedVAE`, whose posterior is also of
        classes.
      ValueError: if it differs from the prior in size, or its draws are not reparameterized.

    Example:
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> x = np.eye(3, dtype="float32")
      >>> local = local_posterior(vae, x, seed=1)
      >>> bool(local.elbo.mean() > vae.elbo(x, 1000, seed=2).mean())
      True

    Source: Cremer, Li and Duvenaud, "Inference Suboptimality in Variational Autoencoders", 2018;
    Roeder, Wu and Duvenaud, "Sticking the Landing", 2017.
    """
    check_vae(vae)
    for name, value in (("max_steps", max_steps), ("batch_size", batch_size)):
        checks.positive_integer(name, value)
    num_samples = checks.positive_integer("num_samples", num_samples)
    for name, number in (("tolerance", tolerance), ("learning_rate", learning_rate)):
        checks.number(name, number, "a positive number", lambda value: 0.0 < value < math.inf)
    seed = vae.noise.next() if seed is None else noise.as_seed(seed)
    rows, block, start = _start(vae, x, posterior)
    climber = _Climber(vae, block, tolerance, max_steps, learning_rate)
    progress = execution.Progress(len(start), verbose)
    found = []
    for begin in range(0, len(start), batch_size):
        part = slice(begin, begin + batch_size)
        own = tf.random.fold_in(seed, begin)
        with noise.fixed(own):
            values = vae._prepared(execution.take(rows, part))
        found.append(climber.climb(values, start[part], num_samples, own))
        progress.update(min(begin + batch_size, len(start)))
    params, log_weights, steps, converged = zip(*found, strict=True)
    return LocalPosterior(
        block.new(tf.concat(params, 0)),
        np.concatenate(log_weights, axis=1),
        max(steps),
        all(converged),
    )


def source(distribution: Any) -> tuple[Any, Any]:
    """The block that made a posterior, and the unconstrained parameters it made it from.

    Raises:
      TypeError: if it was made by something else.
    """
    found = blocks.source(distribution)
    if found is None:
        raise TypeError(
            f"vae: got one whose encoder makes a {type(distribution).__name__}, wanted one that "
            "ends in a block of tfpvae.posteriors, whose parameters are known"
        )
    return found


def check_vae(vae: Any) -> None:
    """Raise TypeError unless it is a VAE all of whose posterior is one q(z|x)."""
    if not isinstance(vae, models.VAE):
        raise TypeError(f"vae: got {vae!r}, wanted a VAE")
    if not vae.has_one_posterior:
        raise TypeError(
            f"vae: got a {type(vae).__name__}, whose posterior is one of classes and of z, wanted "
            "a VAE with q(z|x); its bounds are elbo(x) and log_marginal_likelihood(x)"
        )


def _start(vae: Any, x: Any, posterior: Any) -> tuple[Any, Any, Any]:
    """The data as a tensor, the posterior block, and its first parameters `[N, params_size]`."""
    if isinstance(posterior, type) or not isinstance(posterior, blocks.Block | None):
        raise TypeError(f"posterior: got {posterior!r}, wanted a block of tfpvae.posteriors")
    if isinstance(vae, LocalVAE):
        array = checks.as_array("x", x)
        vae.check_scored(array, None, ("x", "x"))
        rows = vae._placed(array)
        own = vae.encoder.layers[-1]
        params = vae.encoder.layers[0](rows)
        params = tf.where(tf.math.is_nan(params), tf.zeros([], params.dtype), params)
        q = own.new(params)
    else:
        rows, q = vae._data(x), vae.posterior(x)
        own, params = source(q)
    block = own if posterior is None else posterior
    if block.event_shape != tuple(vae.prior.event_shape):
        raise ValueError(
            f"posterior: got one of events of shape {block.event_shape}, wanted those of the "
            f"prior, {tuple(vae.prior.event_shape)}"
        )
    if block is not own:
        params = _with_moments(block, q)
    if block.new(params[:1]).reparameterization_type != tfd.FULLY_REPARAMETERIZED:
        raise ValueError(
            f"posterior: got {block.title()}, whose draws are not reparameterized, wanted one "
            "whose parameters have a gradient through its draws"
        )
    return rows, block, params


def _with_moments(block: Any, q: Any) -> Any:
    """Parameters of a block such that its mean and standard deviation are those of q, if it can."""
    values: dict[str, Callable[[], Any]] = {
        "loc": q.mean,
        "scale": q.stddev,
        "scale_diag": q.stddev,
        "scale_tril": lambda: tf.linalg.diag(q.stddev()),
    }
    pieces = []
    for parameter in block.free:
        shape = (*q.batch_shape, *parameter.shape)
        if parameter.name in values:
            pieces.append(parameter.constraint.inverse(values[parameter.name]()))
        else:
            pieces.append(tf.zeros(shape, block.dtype))
    flat = [tf.reshape(piece, (q.batch_shape[0], -1)) for piece in pieces]
    return tf.concat(flat, axis=1)


def _call(function: Any, rows: tuple[Any, ...], settings: tuple[Any, ...]) -> Any:
    """The result of a traced function for any number of rows."""
    specs = tf.nest.map_structure(lambda array: execution.of_any_length(array, 1), rows)
    return function.of(*rows, *settings, specs=(*specs, *settings))


class _Climber:
    """Maximizes the ELBO of each example over its parameters; compiled once for all batches."""

    def __init__(
        self, vae: Any, block: Any, tolerance: float, max_steps: int, learning_rate: float
    ) -> None:
        self._vae, self._block = vae, block
        self._tolerance, self._max_steps = tolerance, max_steps
        self._learning_rate = learning_rate
        self._weigh = execution.Traced(self._log_weights)
        self._round = execution.Traced(self._run)

    def climb(self, x: Any, best: Any, num_samples: int, seed: Any) -> tuple[Any, Any, int, bool]:
        """The best parameters, the log weights of fresh draws, the steps taken, the success."""
        check, fresh, first = (tf.random.fold_in(seed, i) for i in range(3))
        elbo = self._draw(x, best, _CHECK_DRAWS, check).mean(axis=0)
        rate, steps, gain = self._learning_rate, 0, math.inf
        while steps < self._max_steps and gain >= self._tolerance:
            num = min(_ROUND_STEPS, self._max_steps - steps)
            settings = tf.constant(rate, best.dtype), tf.constant(num)
            seed = tf.random.fold_in(first, steps)
            params = _call(self._round, (x, best), (*settings, seed))
            new = self._draw(x, params, _CHECK_DRAWS, check).mean(axis=0)
            better = new > elbo  # False for NaN.
            gain = float(np.where(better, new - elbo, 0.0).mean())
            best = tf.where(better[:, None], params, best)
            elbo = np.where(better, new, elbo)
            rate, steps = rate / 2, steps + num
        return best, self._draw(x, best, num_samples, fresh), steps, gain < self._tolerance

    def _draw(self, x: Any, params: Any, num_samples: int, seed: Any) -> np.ndarray:
        """Log weights `[S, B]`, drawn in pieces that are small in memory."""
        sizes = [
            min(_STEP_DRAWS, num_samples - done) for done in range(0, num_samples, _STEP_DRAWS)
        ]
        pieces = [
            _call(
                self._weigh,
                (x, params, params),
                (tf.constant(size), tf.random.fold_in(seed, i)),
            )
            for i, size in enumerate(sizes)
        ]
        return tf.concat(pieces, 0).numpy()

    def _log_weights(self, x: Any, params: Any, scored: Any, num: Any, seed: Any) -> Any:
        """The log p(x, z) - log q(z; scored), for draws z of q(z; params), `[S, B]`."""
        z = self._block.new(params).sample(num, seed=seed)
        z = tf.ensure_shape(z, (None, None, *self._vae.prior.event_shape))
        x, condition = self._vae._split(x)
        with noise.fixed(0):  # For the value that its block passes on, which nobody asks for.
            p = self._vae._decode(z, False, condition)
        joint = p.log_prob(x) + self._vae.prior(condition).log_prob(z)
        return joint - self._block.new(scored).log_prob(z)

    def _run(self, x: Any, params: Any, rate: Any, num: Any, seed: Any) -> Any:
        """Steps of Adam, in which the learning rate falls to zero."""

        def step(i: Any, params: Any, first: Any, second: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(params)
                # The gradient through the draws alone: the rest of it has mean zero.
                log_weights = self._log_weights(
                    x,
                    params,
                    tf.stop_gradient(params),
                    tf.constant(_STEP_DRAWS),
                    tf.random.fold_in(seed, i),
                )
                total = tf.reduce_sum(tf.reduce_mean(log_weights, axis=0))
            gradient = tape.gradient(total, params)
            t = tf.cast(i + 1, params.dtype)
            first = 0.9 * first + 0.1 * gradient
            second = 0.99 * second + 0.01 * gradient**2
            mean, square = first / (1.0 - 0.9**t), second / (1.0 - 0.99**t)
            left = 1.0 - tf.cast(i, params.dtype) / tf.cast(num, params.dtype)
            params = params + rate * left * mean / (tf.sqrt(square) + 1e-8)
            return i + 1, params, first, second

        zeros = tf.zeros_like(params)
        state = (tf.constant(0), params, zeros, zeros)
        return tf.while_loop(lambda i, *_: i < num, step, state)[1]
