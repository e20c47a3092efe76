"""The marginal likelihood log p(x): estimates by importance sampling and annealing, and bounds."""

import dataclasses
import functools
import importlib
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special

from tfpvae import blocks, checks, discrete, execution, noise

logger = logging.getLogger(__name__)

#: What estimates log p(x), and how many draws or chains each example has if nobody says.
METHODS = {"importance": 5000, "ais": 16}

#: The k-hat from which neither the estimate nor its standard error can be trusted.
K_HAT_LIMIT = 0.7

# The fewest weights that ArviZ fits a tail to.
_MIN_TAIL = 5

_INSTALL_ARVIZ = "k_hat: needs ArviZ: pip install 'tfpvae[arviz]'"
_PROPOSALS = ("posterior", "prior")

# Numbers that the likelihood scores, from which XLA saves more than the tenths of a second that it
# compiles: it passes over them once, TensorFlow once for each operation.
_WORTHWHILE_NUMBERS = 10**8

# States of z that are decoded at once, each for all of x.
_STATES_AT_ONCE = 128

# The weights of a tail that differ by less than this are equal to within the rounding of float32.
_ROUNDING = 2.0**-17

# Annealing: the temperatures lie densest at both ends, the path is cut into segments with a step
# size of their own for each example, and a pilot run of a few chains finds these.
_MAX_SEGMENTS = 20
_SIGMOID_RANGE = 4.0
_PILOT_CHAINS = 8
_PILOT_STEPS = 20
_PILOT_FIRST_SEGMENT = 4  # times as many steps there, where nothing is known of the scale
_PILOT_RATE = 0.15
_PILOT_START = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class MarginalLikelihood:
    r"""Estimates of log p(x), and how sure they are; printed, it is a short table.

    $$ \widehat{\log p}(x_b) = \log \frac1S \sum_s w_{sb}, \qquad
       \mathrm{se}_b = \frac{\operatorname{sd}_s(w_{sb})}{\bar w_b \sqrt S}, \qquad
       \mathrm{ESS}_b = \frac{(\sum_s w_{sb})^2}{\sum_s w_{sb}^2} $$

    The mean of the weights is unbiased for p(x), so the estimate of log p(x) is below it on
    average, by about half the square of its standard error where that is small. The standard error
    is of the Monte Carlo draws, to first order (the delta method). It is itself estimated from the
    weights: where these have a heavy tail (`k_hat` above 0.7), it is too small.

    Attributes:
      estimate: of log p(x_b), an array `[N]` in nats.
      standard_error: of each estimate, `[N]` in nats; infinite for a single draw.
      effective_sample_size: between 1 and S, `[N]`; 0 if all weights are zero.
      num_samples: the number S of draws, or of annealed chains, for each example; of states.
      largest_log_weights: `[N, 1 + M]` in falling order, with the M of the tail that `k_hat` fits.
      method: "importance", "ais" or "enumeration", which has no error.

    Example:
      >>> result = MarginalLikelihood(
      ...     np.array([-3.0, -2.0]), np.array([0.03, 0.04]), np.array([90.0, 80.0]), 100,
      ...     largest_log_weights=np.zeros((2, 21)))
      >>> result.mean, result.mean_standard_error
      (-2.5, 0.025)

    Source: Rubinstein and Kroese, "Simulation and the Monte Carlo Method", 2016 (the delta method);
    Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto Smoothed Importance Sampling", 2024 (k-hat).
    """

    estimate: np.ndarray
    standard_error: np.ndarray
    effective_sample_size: np.ndarray
    num_samples: int
    largest_log_weights: np.ndarray = dataclasses.field(repr=False)
    method: str = "importance"

    @functools.cached_property
    def k_hat(self) -> np.ndarray:
        """The Pareto k-hat of each example, `[N]`, by ArviZ when it is first asked for.

        The shape of the generalized Pareto distribution that fits the M largest weights,
        M = min(S / 5, 3 sqrt(S)). Below 0.5 their variance is finite and the estimate good; from
        0.7 on it needs more draws than anybody has. Infinite if no weight, or only a few, are
        positive; 0 if the M are equal to within rounding, so that there is no tail to fit.

        Raises:
          ImportError: without ArviZ.
          ValueError: for fewer draws than the fit needs, 21.
        """
        if self.method == "enumeration":
            return np.zeros(len(self.estimate))
        check_tail(self.num_samples)
        return _pareto_shapes(self.largest_log_weights)

    @property
    def mean(self) -> float:
        """The mean of the estimates over the examples, in nats an example."""
        return float(np.mean(self.estimate))

    @property
    def mean_standard_error(self) -> float:
        """The Monte Carlo error of `mean` at these x: what more draws would make smaller."""
        return float(np.linalg.norm(self.standard_error) / len(self.standard_error))

    @property
    def mean_sampling_error(self) -> float:
        """The error of `mean` as that of all x such as these: what more examples make smaller.

        The standard deviation of the estimates over the examples, by the root of their number;
        infinite for a single example.
        """
        return _error_of_mean(self.estimate)

    def __str__(self) -> str:
        kind, drawn = ("annealed", "chains") if self.method == "ais" else ("importance", "draws")
        num, size = len(self.estimate), self.effective_sample_size
        if self.method == "enumeration":
            return "\n".join(
                [
                    f"log p(x) by enumeration: {num} examples, all {self.num_samples} states of z",
                    f"{'mean, nats an example':28s}{self.mean:12.4f}",
                    f"{'  its sampling error over x':28s}{self.mean_sampling_error:12.4f}",
                ]
            )
        return "\n".join(
            [
                f"log p(x) by {kind} sampling: {num} examples, {self.num_samples} {drawn} each",
                f"{'mean, nats an example':28s}{self.mean:12.4f}",
                f"{'  its Monte Carlo error':28s}{self.mean_standard_error:12.4f}",
                f"{'  its sampling error over x':28s}{self.mean_sampling_error:12.4f}",
                f"{'effective sample size':28s}{np.median(size):12.1f}  the least {size.min():.1f}",
                f"{'k-hat above ' + str(K_HAT_LIMIT):28s}{self._k_hat_line()}",
            ]
        )

    def _k_hat_line(self) -> str:
        try:
            k_hat = self.k_hat
        except (ImportError, ValueError) as error:
            return f"  unknown: {error}"
        return f"{np.mean(k_hat > K_HAT_LIMIT):12.1%}  the largest {k_hat.max():.2f}"


@dataclasses.dataclass(frozen=True, eq=False)
class BidirectionalMonteCarlo:
    r"""Lower and upper bounds of log p(x) on simulated data; printed, it is a short table.

    $$ \mathbb E[\ell_b] \le \log p(x_b), \qquad \mathbb E[u_b] \ge \log p(x_b) $$

    The error of either bound is at most the gap between them, on average.

    Attributes:
      lower: the bounds of the forward chains, `[N]` in nats.
      upper: those of the reverse chains, `[N]` in nats.
      num_samples: the number of chains in either direction for each example.
      tolerance: the gap in nats that counts as small.

    Example:
      >>> bounds = BidirectionalMonteCarlo(np.array([-3.0, -2.5]), np.array([-2.5, -2.25]), 16)
      >>> bounds.mean_gap, bounds.ok
      (0.375, True)
    """

    lower: np.ndarray
    upper: np.ndarray
    num_samples: int
    tolerance: float = 1.0

    @property
    def gap(self) -> np.ndarray:
        """`upper - lower` of each example, which single chains can leave negative."""
        return self.upper - self.lower

    @property
    def mean_gap(self) -> float:
        """The mean gap over the examples, in nats."""
        return float(np.mean(self.gap))

    @property
    def mean_gap_standard_error(self) -> float:
        """The error of `mean_gap`, from its spread over the examples."""
        return _error_of_mean(self.gap)

    @property
    def ok(self) -> bool:
        """Whether the mean gap is below the tolerance, by two of its standard errors."""
        return self.mean_gap + 2 * self.mean_gap_standard_error < self.tolerance

    def __str__(self) -> str:
        rows = (("lower bound", self.lower), ("upper bound", self.upper), ("gap", self.gap))
        verdict = "is" if self.ok else "is not shown to be"
        return "\n".join(
            [
                f"log p(x) of {len(self.gap)} simulated examples, {self.num_samples} chains each",
                f"{'nats an example':20s}{'mean':>12s}{'standard error':>18s}",
                *(f"{name:20s}{v.mean():12.4f}{_error_of_mean(v):18.4f}" for name, v in rows),
                f"The gap {verdict} below {self.tolerance:g} nats.",
            ]
        )


def log_marginal_likelihood(
    vae: Any,
    x: Any,
    num_samples: int | None,
    method: str,
    seed: Any,
    verbose: Any,
    **options: Any,
) -> MarginalLikelihood:
    """What `VAE.log_marginal_likelihood` returns; see there.

    Args:
      vae: a `VAE`.
      x: data `[N, *event_shape]`.
      num_samples: draws or chains for each example, None for the default of the method.
      method: one of `METHODS`, or "enumeration".
      seed: as in `VAE.log_weights`.
      verbose: as in `VAE.log_weights`.
      **options: of `Annealing`, with the method "ais".
    """
    known = (*METHODS, "enumeration")
    if not isinstance(method, str) or method not in known:
        raise ValueError(f"method: got {method!r}, wanted one of {', '.join(map(repr, known))}")
    if method == "enumeration":
        return _enumerated(vae, x, num_samples, verbose, options)
    num_samples = METHODS[method] if num_samples is None else num_samples
    num_samples = checks.positive_integer("num_samples", num_samples)
    annealing = _annealing(options) if method == "ais" else None
    if annealing is None or annealing.proposal != "prior":
        vae._refuse_implicit("importance weights")
    if annealing is None and options:
        name, value = next(iter(options.items()))
        raise TypeError(f"{name}: got {value!r} with method={method!r}, wanted it with 'ais'")
    rows = vae._data(x)
    if annealing is not None:
        _unconstraining(vae, _first_prior(vae, rows))
    seed = vae.noise.next() if seed is None else noise.as_seed(seed)
    tail = tail_length(num_samples)

    def estimates(weigh: Callable[[Any, Any], Any]) -> MarginalLikelihood:
        def evidence(rows: Any, num_samples: Any, seed: Any) -> Any:
            with noise.fixed(seed):
                return reduced(weigh(rows, num_samples), tail)

        evidence.__name__ = f"{weigh.__name__}, {tail}"
        pieces = vae._in_batches(evidence, rows, seed, num_samples, verbose, merge=merged)
        return _estimates(pieces.numpy(), num_samples, method)

    if annealing is not None:
        return estimates(_annealed_weights(vae, annealing))
    # By the size of the task, not by a clock, as runs have to repeat.
    if math.prod(vae._split(rows)[0].shape) * num_samples >= _WORTHWHILE_NUMBERS:
        try:
            return estimates(_importance_weights(vae, fused=True))
        except tf.errors.OpError as error:
            logger.info("no XLA for the likelihood, which it cannot compile: %s", error)
    return estimates(_importance_weights(vae, fused=False))


def _enumerated(
    vae: Any, x: Any, num_samples: int | None, verbose: Any, options: dict[str, Any]
) -> MarginalLikelihood:
    """The exact log p(x), the sum over all states of z."""
    for name, value in {"num_samples": num_samples, **options}.items():
        if value is not None:
            raise ValueError(
                f"{name}: got {value!r} with method='enumeration', wanted none: it takes all states"
            )
    rows = vae._data(x)
    try:
        num = discrete.num_states(_first_prior(vae, rows))
    except TypeError as error:
        raise TypeError(f"prior: {error}; use method='importance'") from None
    if num > discrete.MAX_STATES_EVIDENCE:
        raise ValueError(
            f"method: got 'enumeration' for z with {num} states, wanted at most "
            f"{discrete.MAX_STATES_EVIDENCE}; use method='importance'"
        )
    log_evidence = vae._in_batches(_sum_over_states(vae, num), rows, seed=0, verbose=verbose)
    exact = np.zeros(len(log_evidence))
    size = np.full(len(log_evidence), float(num))
    return MarginalLikelihood(
        log_evidence.numpy(), exact, size, num, np.zeros((len(exact), 0)), "enumeration"
    )


def _sum_over_states(vae: Any, num: int) -> Callable[[Any, Any, Any], Any]:
    """The log of sum_z p(z) p(x|z) `[B]`, as a function of x; each z is decoded once for all."""
    size = min(num, _STATES_AT_ONCE)

    def enumeration(rows: Any, num_samples: Any, seed: Any) -> Any:
        with noise.fixed(seed):
            x, condition = vae._split(vae._prepared(rows))
            prior = vae.prior(condition)

            def body(start: Any, total: Any) -> Any:
                index = start + tf.range(size)
                z = discrete.states(prior, tf.minimum(index, num - 1), vae.prior.dtype)
                z = z[:, tf.newaxis]
                p = vae._decode(z, False, condition)
                log_joint = p.log_prob(x) + prior.log_prob(z)  # [size, B]
                log_joint = tf.cast(log_joint, tf.float64)
                log_joint = tf.where(index[:, tf.newaxis] < num, log_joint, -math.inf)
                part = tf.reduce_logsumexp(log_joint, axis=0)
                return start + size, tfp.math.log_add_exp(total, part)

            total = tf.fill(tf.shape(x)[:1], tf.constant(-math.inf, tf.float64))
            return tf.while_loop(lambda start, _: start < num, body, (0, total))[1]

    return enumeration


def bidirectional_monte_carlo(
    vae: Any,
    num_data: int = 100,
    num_samples: int = METHODS["ais"],
    seed: Any = None,
    verbose: Any = "auto",
    tolerance: float = 1.0,
    **options: Any,
) -> BidirectionalMonteCarlo:
    r"""Lower and upper bounds of log p(x) by annealing both ways, on data simulated from the model.

    $$ (z_b, x_b) \sim p(z)\, p(x \mid z), \qquad
       \ell_b = \log \frac1S \sum_s \overrightarrow{w}_{sb}, \qquad
       u_b = -\log \frac1S \sum_s \overleftarrow{w}_{sb} $$

    Forward chains go from the proposal to p(x_b, z), and their weights are unbiased for p(x_b).
    Reverse chains go from p(x_b, z) to the proposal, and their weights are unbiased for 1 / p(x_b)
    because they start at z_b, which is an exact draw of p(z | x_b). With `num_steps` the bounds
    close in on log p(x_b).

    The gap says how far off annealing with these options is at most, on average, for data such as
    the model makes. For real data there is no exact draw, so no upper bound; if they are unlike the
    simulated, neither does the gap hold for them.

    Args:
      vae: a `VAE` that is trained or built; its z must be continuous.
      num_data: the number N of examples, at least 2.
      num_samples: the number S of chains in either direction for each example.
      seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
      verbose: 1 shows progress, 0 does not, "auto" does when it takes long.
      tolerance: the gap in nats that counts as small.
      **options: of `Annealing`: `num_steps`, `num_leapfrog_steps`, `proposal`.

    Returns:
      A `BidirectionalMonteCarlo`: the bounds, their gap and `ok`; print it.

    Raises:
      TypeError, ValueError: for what is no VAE, numbers that are none, a model that is not built,
        z that is not continuous.

    Example:
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> vae = VAE(
      ...     priors.StandardNormal(1),
      ...     keras.Sequential([keras.layers.Dense(2), posteriors.DiagonalNormal(1)]),
      ...     keras.Sequential([keras.layers.Dense(2), likelihoods.Normal(2, scale=1.0)]), seed=0)
      >>> vae.build((None, 2))
      >>> bounds = bidirectional_monte_carlo(
      ...     vae, num_data=5, num_samples=2, num_steps=20, num_leapfrog_steps=2, seed=0)
      >>> bounds.lower.shape
      (5,)

    Source: Grosse, Ghahramani and Adams, "Sandwiching the marginal likelihood using bidirectional
    Monte Carlo", 2015; Wu, Burda, Salakhutdinov and Grosse, "On the Quantitative Analysis of
    Decoder-Based Generative Models", 2017.
    """
    if not hasattr(vae, "log_weights"):
        raise TypeError(f"vae: got {vae!r}, wanted a VAE")
    if not vae.built:
        raise ValueError("vae: got a model that is not built, wanted one that has seen data")
    num_data = checks.positive_integer("num_data", num_data)
    if num_data < 2:
        raise ValueError("num_data: got 1, wanted at least 2: the errors are of their spread")
    num_samples = checks.positive_integer("num_samples", num_samples)
    tolerance = checks.number("tolerance", tolerance, "a positive number of nats", _is_positive)
    annealing = _annealing(options)
    _unconstraining(vae, vae.prior())
    z_shape = vae.prior.event_shape
    z_size = math.prod(z_shape)
    x_shape = tuple(vae.likelihood(vae.prior().sample(1, seed=noise.as_seed(0))).event_shape)

    def simulated(rows: Any, num_samples: Any, seed: Any) -> Any:
        """Pairs of z and x in one array, as `execution.Batched` takes them."""
        with noise.fixed(seed):
            z = vae.prior().sample(tf.shape(rows)[0], seed=noise.next_seed())
            z = tf.ensure_shape(z, (None, *z_shape))
            x = vae._decode(z, False).sample(seed=noise.next_seed())
        flat = [tf.reshape(v, [-1, math.prod(shape)]) for v, shape in ((z, z_shape), (x, x_shape))]
        return tf.concat([tf.cast(part, z.dtype) for part in flat], axis=1)

    def both_ways(rows: Any, num_samples: Any, seed: Any) -> Any:
        """What is left of the weights of either direction, `[B, 2, 3]`."""
        z, x = rows[:, :z_size], rows[:, z_size:]
        z, x = tf.reshape(z, [-1, *z_shape]), tf.reshape(x, [-1, *x_shape])
        with noise.fixed(seed):
            chains = _Chains(vae, x, annealing)
            forward = chains.forward(num_samples)
            reverse = chains.reverse(tf.repeat(z[tf.newaxis], num_samples, axis=0))
        return tf.stack([reduced(weights, tail=-1) for weights in (forward, reverse)], axis=1)

    both_ways.__name__ = f"both_ways, {annealing}"
    seed = vae.noise.next() if seed is None else noise.as_seed(seed)
    seeds = [tf.random.fold_in(seed, count) for count in range(2)]
    rows = vae._in_batches(simulated, tf.zeros((num_data, 0)), seeds[0], verbose=verbose)
    pieces = vae._in_batches(both_ways, rows, seeds[1], num_samples, verbose, merge=merged).numpy()
    forward, reverse = (_estimates(pieces[:, way], num_samples, "ais") for way in range(2))
    return BidirectionalMonteCarlo(forward.estimate, -reverse.estimate, num_samples, tolerance)


# The log weights, and what is kept of them.


def tail_length(num_samples: int) -> int:
    """How many of the largest weights the Pareto distribution is fitted to.

    Example:
      >>> tail_length(5000)
      213
    """
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def check_tail(num_samples: int) -> None:
    """Raise ValueError if there are too few draws for a k-hat."""
    if tail_length(num_samples) < _MIN_TAIL:
        raise ValueError(
            f"num_samples: got {num_samples}, wanted at least {5 * _MIN_TAIL - 4} for k_hat, which "
            "fits the fifth of the weights that are largest"
        )


def _is_positive(number: float) -> bool:
    return 0.0 < number < math.inf


def reduced(log_weights: Any, tail: int) -> Any:
    r"""What is kept of a piece of the draws: three sums and the largest weights, in float64.

    $$ m = \max_s \log w_s, \qquad \sum_s e^{\log w_s - m}, \qquad \sum_s e^{2 (\log w_s - m)} $$

    Shapes: log_weights `[S, B]`, result `[B, 3 + 1 + tail]`.

    Args:
      log_weights: of a piece of the draws.
      tail: how many of the largest weights to keep, and one more below which they lie; -1 none.
    """
    log_weights = tf.transpose(tf.cast(log_weights, tf.float64))
    highest = tf.reduce_max(log_weights, axis=1, keepdims=True)
    weights = tf.exp(log_weights - _finite(highest))
    sums = [tf.reduce_sum(power, axis=1, keepdims=True) for power in (weights, weights**2)]
    return tf.concat([highest, *sums, _largest(log_weights, 1 + tail)], axis=1)


def merged(one: Any, other: Any) -> Any:
    """What is kept of two pieces of the draws as that of one, `[..., 3 + 1 + tail]`."""
    highest = tf.maximum(one[..., :1], other[..., :1])
    first, second = (tf.exp(piece[..., :1] - _finite(highest)) for piece in (one, other))
    sums = first * one[..., 1:2] + second * other[..., 1:2]
    squares = first**2 * one[..., 2:3] + second**2 * other[..., 2:3]
    kept = tf.concat([one[..., 3:], other[..., 3:]], axis=-1)
    return tf.concat([highest, sums, squares, _largest(kept, one.shape[-1] - 3)], axis=-1)


def _finite(highest: Any) -> Any:
    """The number to subtract: weights that are all zero leave none."""
    return tf.where(tf.math.is_inf(highest), tf.zeros_like(highest), highest)


def _largest(log_weights: Any, num: int) -> Any:
    """The largest along the last axis, in falling order; if fewer are there, weights of zero."""
    if num == 0:
        return log_weights[..., :0]
    there = tf.shape(log_weights)[-1]
    rest = tf.fill(
        tf.concat([tf.shape(log_weights)[:-1], [tf.maximum(num - there, 0)]], 0),
        tf.constant(-math.inf, log_weights.dtype),
    )
    largest = tf.math.top_k(tf.concat([log_weights, rest], axis=-1), num).values
    return tf.ensure_shape(largest, [*log_weights.shape[:-1], num])


def _estimates(pieces: np.ndarray, num_samples: int, method: str) -> MarginalLikelihood:
    """The estimates from what was kept of the weights, `[N, 3 + 1 + tail]`."""
    highest, total, squares = pieces[:, :3].T
    wrong = np.flatnonzero(~(np.isfinite(total) & (highest < math.inf)))
    if len(wrong):
        raise ValueError(
            f"x: the log weights of {len(wrong)} examples, the first in row {wrong[0]}, are NaN or "
            "infinite, wanted a model whose densities there are finite: has its training diverged?"
        )
    some = total > 0
    size = np.divide(total**2, squares, out=np.zeros_like(total), where=some)
    error = np.full_like(total, math.inf)
    if num_samples > 1:  # sd(w) / (mean(w) sqrt(S)), with S - 1 in the variance
        spread = np.maximum(num_samples / np.where(some, size, 1.0) - 1, 0)
        error[some] = np.sqrt(spread / (num_samples - 1))[some]
    log_total = np.log(total, out=np.full_like(total, -math.inf), where=some)
    estimate = highest + log_total - math.log(num_samples)
    return MarginalLikelihood(estimate, error, size, num_samples, pieces[:, 3:], method)


def _error_of_mean(values: np.ndarray) -> float:
    if len(values) == 1 or not np.isfinite(values).all():
        return math.inf
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _pareto_shapes(largest: np.ndarray) -> np.ndarray:
    """ArviZ's k-hat from the largest log weights `[N, 1 + M]` alone.

    ArviZ fits the M largest of all S, and takes M from S. So it gets 5 M weights, of which by its
    rule M are the tail if the relative efficiency is tiny; the others only have to be no larger.
    """
    fit = _pareto_fit()
    length = largest.shape[1] - 1
    shapes = np.full(len(largest), math.inf)
    spread = largest[:, 0] - np.maximum(largest[:, -1], np.finfo(float).min)
    even = spread <= _ROUNDING * np.maximum(np.abs(largest[:, 0]), 1)
    shapes[even & np.isfinite(largest[:, 0])] = 0.0
    left = np.flatnonzero(~even & np.isfinite(largest[:, 0]))
    for rows in np.array_split(left, math.ceil(len(left) / 1000)) if len(left) else ():
        shapes[rows] = fit(np.pad(largest[rows], [(0, 0), (0, 4 * length - 1)], mode="edge"), 1e-9)
    shapes[np.isnan(shapes)] = math.inf  # What newer versions say of a tail they cannot fit.
    return shapes


def _pareto_fit() -> Callable[[np.ndarray, float], np.ndarray]:
    """ArviZ's `psislw`, of log weights and their relative efficiency: the shapes."""
    try:
        import arviz

        if hasattr(arviz, "psislw"):  # ArviZ 0.x
            return lambda log_weights, reff: arviz.psislw(log_weights, reff)[1]
        array_stats = importlib.import_module("arviz_stats.base").array_stats
    except ImportError as error:
        raise ImportError(_INSTALL_ARVIZ) from error
    # It takes log likelihoods, of which the weights are the inverse.
    return lambda log_weights, reff: array_stats.psislw(-log_weights, r_eff=reff)[1]


def _importance_weights(vae: Any, fused: bool) -> Callable[[Any, Any], Any]:
    """The log weights `[S, B]` of draws from q(z|x), as a function of x and S."""

    def weigh(x: Any, num_samples: Any) -> Any:
        q, z, p, x, condition = vae._draw(x, num_samples)
        log_likelihood = _fused_log_prob(p, x) if fused else p.log_prob(x)
        return vae._weigh(q, z, log_likelihood, condition)

    weigh.__name__ = f"importance, {fused}"
    return weigh


def _fused_log_prob(p: Any, x: Any) -> Any:
    """The log_prob by XLA: all that is elementwise in one pass; the matrix products stay outside.

    XLA would run these, and the draws, slower than TensorFlow does.
    """
    block, params = blocks.source(p)
    log_prob = tf.function(
        lambda params, x: block(params).log_prob(x), jit_compile=True, autograph=False
    )
    return log_prob(params, x)


# Annealed importance sampling.


@dataclasses.dataclass(frozen=True)
class Annealing:
    r"""How to anneal: the options of `method="ais"` and of `bidirectional_monte_carlo`.

    $$ \log f_\beta(z) = (1 - \beta) \log f_0(z) + \beta \log p(x, z), \qquad
       0 = \beta_0 < \dots < \beta_T = 1 $$

    Args:
      num_steps: the number T of transitions, each of Hamiltonian Monte Carlo: the more, the closer
        the estimate is to log p(x).
      num_leapfrog_steps: gradients for each transition.
      proposal: the f_0 that the chains start from, "posterior" for q(z|x) or "prior" for p(z).

    Raises:
      TypeError, ValueError: for numbers that are no positive integers, another proposal.

    Example:
      >>> Annealing(num_steps=100).proposal
      'posterior'
    """

    num_steps: int = 1000
    num_leapfrog_steps: int = 10
    proposal: str = "posterior"

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_leapfrog_steps"):
            checks.positive_integer(name, getattr(self, name))
        if not checks.one_of(self.proposal, _PROPOSALS):
            raise ValueError(
                f"proposal: got {self.proposal!r}, wanted one of {', '.join(map(repr, _PROPOSALS))}"
            )

    def segments(self) -> tuple[np.ndarray, np.ndarray]:
        """The betas at the ends of the segments, `[1 + K]`, and the steps in each, `[K]`."""
        num = min(self.num_steps, _MAX_SEGMENTS)
        ends = special.expit(np.linspace(-_SIGMOID_RANGE, _SIGMOID_RANGE, 1 + num))
        steps = np.diff(np.linspace(0, self.num_steps, 1 + num).astype(np.int32))
        return (ends - ends[0]) / (ends[-1] - ends[0]), steps


def _annealing(options: dict[str, Any]) -> Annealing:
    known = [field.name for field in dataclasses.fields(Annealing)]
    for name, value in options.items():
        if name not in known:
            raise TypeError(f"{name}: got {value!r}, wanted no other options than {known}")
    return Annealing(**options)


def _first_prior(vae: Any, rows: Any) -> Any:
    """The prior of z, of a conditional model that of its first row."""
    return vae.prior(vae._split(execution.take(rows, slice(1)))[1])


def _unconstraining(vae: Any, prior: Any) -> Any:
    """The bijector to the support of z from the real numbers, among which HMC moves."""
    try:
        bijector = prior.experimental_default_event_space_bijector()
    except NotImplementedError:
        bijector = None
    if bijector is None:
        raise TypeError(
            f"prior: got {vae.prior.title()}, whose z are not continuous or of unknown support, "
            "wanted a density with a gradient for Hamiltonian Monte Carlo; use "
            "method='importance', or 'enumeration' if there are few states"
        )
    return bijector


def _annealed_weights(vae: Any, annealing: Annealing) -> Callable[[Any, Any], Any]:
    """The log weights `[S, B]` of annealed chains, as a function of x and S."""

    def weigh(x: Any, num_samples: Any) -> Any:
        return _Chains(vae, vae._prepared(x), annealing).forward(num_samples)

    weigh.__name__ = f"ais, {annealing}"
    return weigh


class _Path:
    """The unnormalized densities between two, f_beta = f_0^(1 - beta) f_1^beta, by their logs.

    TFP's sampler asks for two of them at the same z: each of the ends is then computed once.
    """

    def __init__(self, log_start: Callable[[Any], Any], log_end: Callable[[Any], Any]) -> None:
        self._ends = log_start, log_end
        self._last: Any = (None, None)

    def at(self, beta: Any) -> Callable[[Any], Any]:
        """The log density at beta."""

        def log_prob(z: Any) -> Any:
            if self._last[0] is not z:
                self._last = z, [end(z) for end in self._ends]
            start, end = self._last[1]
            return (1 - beta) * start + beta * end

        return log_prob


class _Chains:
    """Annealed chains between the proposal and p(x, z), for a batch of x.

    The step sizes come from a pilot run that the chains have no part in: were they adapted to the
    chains' own past, the weights would be biased.
    """

    def __init__(self, vae: Any, data: Any, annealing: Annealing) -> None:
        x, condition = vae._split(data)
        prior = vae.prior(condition)
        self._num_leapfrog_steps = annealing.num_leapfrog_steps
        self._bijector = _unconstraining(vae, prior)
        betas, steps = annealing.segments()
        self._betas, self._steps = tf.constant(betas, prior.dtype), tf.constant(steps)
        if annealing.proposal == "posterior":
            self._proposal, self._shape = vae._encode(data, False)[0], []
        else:
            self._proposal, self._shape = prior, [] if prior.batch_shape.rank else [tf.shape(x)[0]]
        self._event_shape = vae.prior.event_shape
        self._path = _Path(
            self._proposal.log_prob,
            lambda z: vae._decode(z, False, condition).log_prob(x) + prior.log_prob(z),
        )
        self._step_sizes = self._pilot(tf.shape(x)[0])

    def forward(self, num_samples: Any) -> Any:
        """Log weights `[S, B]`, unbiased for p(x) when exponentiated."""
        return self._anneal(self._draw(num_samples), axis=[])

    def reverse(self, z: Any) -> Any:
        """Log weights `[S, B]`, unbiased for 1 / p(x) if z `[S, B, ...]` are draws of p(z|x)."""
        return self._anneal(z, axis=[0])

    def _draw(self, num_samples: Any) -> Any:
        z = self._proposal.sample([num_samples, *self._shape], seed=noise.next_seed())
        return tf.ensure_shape(z, (None, None, *self._event_shape))

    def _kernel(self, log_prob: Callable[[Any], Any], step_size: Any) -> Any:
        hmc = tfp.mcmc.HamiltonianMonteCarlo(log_prob, step_size, self._num_leapfrog_steps)
        if isinstance(self._bijector, tfp.bijectors.Identity):
            return hmc
        return tfp.mcmc.TransformedTransitionKernel(hmc, self._bijector)

    def _anneal(self, z: Any, axis: list[int]) -> Any:
        """Log weights of chains along the segments, or the other way round with the axis 0."""
        path = (self._betas, self._steps, self._step_sizes)
        betas, steps, sizes = (tf.reverse(values, axis) for values in path)

        def body(k: Any, z: Any, log_weights: Any, seed: Any) -> Any:
            own, following = tf.unstack(tf.random.split(seed))
            z, gained, _ = tfp.mcmc.sample_annealed_importance_chain(
                steps[k],
                self._path.at(betas[k]),
                self._path.at(betas[k + 1]),
                z,
                lambda log_prob: self._kernel(log_prob, sizes[k]),
                seed=own,
            )
            return k + 1, z, log_weights + gained, following

        start = (0, z, tf.zeros(tf.shape(z)[:2], z.dtype), noise.next_seed())
        return tf.while_loop(lambda k, *_: k < tf.size(steps), body, start)[2]

    def _pilot(self, batch_size: Any) -> Any:
        """Step sizes of each segment and example, `[K, B, 1...]`, for the segment's middle."""
        segments = np.concatenate(
            [[0] * (_PILOT_FIRST_SEGMENT - 1), np.arange(self._steps.shape[0])]
        )
        segments = tf.constant(segments, tf.int32)
        shape = (batch_size, *[1] * len(self._event_shape))
        size = tf.fill(shape, tf.constant(_PILOT_START, self._betas.dtype))
        found = tf.TensorArray(size.dtype, self._steps.shape[0], clear_after_read=False)

        def body(i: Any, z: Any, size: Any, found: Any, seed: Any) -> Any:
            own, following = tf.unstack(tf.random.split(seed))
            k = segments[i]
            log_prob = self._path.at((self._betas[k] + self._betas[k + 1]) / 2)
            kernel = tfp.mcmc.SimpleStepSizeAdaptation(
                self._kernel(log_prob, size), _PILOT_STEPS, adaptation_rate=_PILOT_RATE
            )
            z, sizes = tfp.mcmc.sample_chain(
                1,
                z,
                kernel=kernel,
                num_burnin_steps=_PILOT_STEPS - 1,
                trace_fn=lambda _, results: results.new_step_size,
                seed=own,
            )
            return i + 1, z[0], sizes[0], found.write(k, sizes[0]), following

        # A tensor, so that the chains count as draws where memory is estimated.
        chains = tf.identity(tf.constant(_PILOT_CHAINS))
        start = (0, self._draw(chains), size, found, noise.next_seed())
        return tf.while_loop(lambda i, *_: i < tf.size(segments), body, start)[3].stack()
