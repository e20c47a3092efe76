"""diagnose: how good a trained VAE is, where it loses, and what to try."""

import contextlib
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import (
    checks,
    execution,
    layers,
    local_inference,
    marginal_likelihood,
    noise,
    plotting,
    regularizers,
)

tfd = tfp.distributions

#: Var_x(E_q[z_d|x]) above which Burda et al. call a unit active.
ACTIVITY = 0.01

#: Effective draws below which weights are unreliable, where ArviZ is missing and so their k-hat.
EFFECTIVE_DRAWS = 10.0

# What is worth a sentence: nats an example of a gap or of a divergence, and the share of examples
# with unreliable weights. A gap has a single cause if that makes two thirds of it.
_NATS, _SHARE, _MOST = 0.5, 0.05, 2 / 3

_USE_MORE = "warm-up of kl_weight (schedules.Linear) or with free bits (objectives.ELBO)"

_MIXTURE_DRAWS, _MEAN_DRAWS, _PRIOR_DRAWS = 2000, 64, 20_000
_PAIR_NUMBERS = 2**21


class Latents(NamedTuple):
    r"""How the latent units are used, over a data set.

    $$ \frac1N \sum_n \mathrm{KL}\bigl(q(z \mid x_n)\ \|\ p(z)\bigr)
       = I_q(n; z) + \mathrm{KL}\bigl(q(z)\ \|\ p(z)\bigr), \qquad
       q(z) = \frac1N \sum_n q(z \mid x_n) $$

    Attributes:
      activity: Var_x(E_q[z_d|x]) of each unit `[D]`.
      kl_by_unit: KL(q(z_d|x) || p(z_d)), a mean over x, `[D]`: of the marginals, which add up to
        `kl` if posterior and prior are factorized. None if TFP does not know the marginals.
      aggregate_kl_by_unit: KL(q(z_d) || p(z_d)) `[D]`, or None.
      kl: the mean KL(q(z|x) || p(z)).
      mutual_information: I_q(n; z) of the N examples, at most log N: on average a lower bound on
        that of all data.
      aggregate_kl: KL(q(z) || p(z)) of the N examples: on average an upper bound on that of all
        data.
      aggregate_kl_lower: on average a lower bound on it.
      num_data: the number N.
    """

    activity: np.ndarray
    kl_by_unit: np.ndarray | None
    aggregate_kl_by_unit: np.ndarray | None
    kl: float
    mutual_information: float
    aggregate_kl: float
    aggregate_kl_lower: float
    num_data: int

    @property
    def active(self) -> np.ndarray:
        """Which units are active, bool `[D]`."""
        return self.activity > ACTIVITY

    @property
    def total_correlation(self) -> float | None:
        """KL(q(z) || prod_d q(z_d)): `aggregate_kl` less that of the units; None as they are."""
        if self.aggregate_kl_by_unit is None:
            return None
        return self.aggregate_kl - float(np.sum(self.aggregate_kl_by_unit))

    @property
    def mutual_information_upper(self) -> float:
        """On average an upper bound on the mutual information of all data."""
        return self.mutual_information + self.aggregate_kl - self.aggregate_kl_lower


def latents(vae: Any, x: Any, seed: Any = None, verbose: Any = "auto") -> Latents:
    r"""How the latent units are used: activity, KL, and mutual information with the data.

    $$ A_d = \mathrm{Var}_x\bigl(\mathbb E_{q(z \mid x)}[z_d]\bigr) > 0.01, \qquad
       I_q(n; z) = \frac1N \sum_n \mathbb E_{q(z \mid x_n)}\Bigl[
       \log \frac{q(z \mid x_n)}{\frac1N \sum_m q(z \mid x_m)}\Bigr] $$

    This is of the N examples; all data of their kind are in between two bounds: that of a mixture
    which knows the example that z is from, and that of one which leaves it out. They are close if N
    is far larger than the exponential of the mutual information.

    It takes N^2 densities. Everything else is in closed form where TFP has one, and by Monte Carlo
    otherwise.

    Args:
      vae: a `VAE` whose encoder ends in a block.
      x: data `[N, *event_shape]`.
      seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
      verbose: 1 shows progress, 0 does not, "auto" does when it takes long.

    Returns:
      The numbers, in nats.

    Raises:
      TypeError: if the encoder does not end in a block.
      ValueError: for a single example; for one that is so far out that its KL is infinite.

    Example:
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> found = latents(vae, np.eye(3, dtype="float32"), seed=0)
      >>> found.activity.shape, bool(found.mutual_information < np.log(3))
      ((2,), True)

    Source: Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2015; Hoffman and
    Johnson, "ELBO Surgery", 2016; Poole et al., "On Variational Bounds of Mutual Information", 2019
    (the bounds); Chen et al., "Isolating Sources of Disentanglement", 2018 (the units).
    """
    local_inference.check_vae(vae)
    x = vae._arrays(x)
    num = execution.length(x)
    if num < 2:
        raise ValueError("x: got one example, wanted several, to compare their posteriors")
    seed = vae.noise.next() if seed is None else noise.as_seed(seed)
    q, prior = vae.posterior(x), _prior(vae, x)
    block, params = local_inference.source(q)
    z = q.sample(math.ceil(_MIXTURE_DRAWS / num), seed=tf.random.fold_in(seed, 0))
    divergence = regularizers.KLDivergenceRegularizer(prior).divergence(q, z).numpy()
    kl = float(divergence.mean())
    # Columns: of z as a whole, then of each unit.
    of_q, of_prior = _marginals(q), _marginals(prior) if _is_factorized(prior) else None
    log_prior = np.asarray(prior.log_prob(z)).reshape(-1, 1)
    if not (np.isfinite(log_prior).all() and math.isfinite(kl)):
        raise ValueError(
            "x: got examples whose codes have an infinite KL, wanted some like those of training"
        )
    kl_by_unit = by_unit = None
    if of_q is not None and of_prior is not None:
        kl_by_unit = np.mean(_flat(_divergence(of_q, of_prior, z), 1), axis=0)
        log_prior = np.concatenate([log_prior, _flat(of_prior.log_prob(z), 2)], axis=1)
    columns = slice(log_prior.shape[1])
    if prior.batch_shape.rank:  # p(z|y): the codes of all are held against its mean over y.
        source = local_inference.source(prior)
        log_prior = _mixtures(*source, _flat(z, 2), verbose)[0][..., columns]
        total = float(np.mean(np.ravel(q.log_prob(z)) - log_prior[:, 0]))
    else:
        total = kl
    ratios = _mixtures(block, params, _flat(z, 2), verbose)[..., columns] - log_prior
    ratios = ratios.astype(np.float64)
    ratios[..., 0] = _controlled(
        ratios[..., 0], np.ravel(q.log_prob(z) - prior.log_prob(z) - divergence)
    )
    upper, lower = ratios.mean(axis=1)
    if kl_by_unit is not None:
        by_unit = upper[1:]
    most = float(np.clip(upper[0], max(total - math.log(num), 0.0), total))
    # Where units are independent a priori, their KLs add up to no more than that of all.
    by_units = -math.inf if prior.batch_shape.rank else lower[1:].sum()
    least = float(np.clip(max(lower[0], by_units), 0.0, most))
    unit_activity = activity(q, tf.random.fold_in(seed, 1))
    return Latents(unit_activity, kl_by_unit, by_unit, kl, total - most, most, least, num)


def _prior(vae: Any, x: Any) -> Any:
    """The prior p(z), or with batch shape `[N]` the p(z|y) of the data of a conditional model."""
    return vae.prior(vae._split(x)[1])


def _controlled(values: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Values `[2, S]` less what a control of mean zero explains of them, which lowers the noise."""
    control = control.astype(np.float64)  # Squares of what is far out are no float32.
    spread = control - control.mean()
    slope = np.mean(values * spread, axis=1) / max(float(np.mean(spread**2)), 1e-12)
    return values - slope[:, None] * control


def activity(q: Any, seed: Any = 0) -> np.ndarray:
    r"""The variance over the examples of the posterior mean of each unit.

    $$ A_d = \mathrm{Var}_x\bigl(\mathbb E_{q(z \mid x)}[z_d]\bigr) $$

    Args:
      q: the posteriors q(z|x) of the examples, with batch shape `[N]`.
      seed: of 64 draws for each, where TFP does not know the mean; an integer or an int tensor.

    Returns:
      An array `[D]`. What the noise of the draws adds is taken off, on average.

    Example:
      >>> q = tfd.Independent(tfd.Normal([[0.0], [2.0]], 1.0), 1)
      >>> activity(q)
      array([1.], dtype=float32)

    Source: Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2015.
    """
    if not isinstance(getattr(q, "tensor_distribution", q), tfd.Distribution):
        raise TypeError(f"q: got {q!r}, wanted a distribution, as vae.posterior(x)")
    seed = noise.as_seed(seed)
    with contextlib.suppress(NotImplementedError):
        return _flat(q.mean(), 1).var(axis=0)
    z = _flat(q.sample(_MEAN_DRAWS, seed=seed), 1).reshape(_MEAN_DRAWS, q.batch_shape[0], -1)
    # A mean of S draws varies more than the mean itself, by 1/S of the draws' variance.
    return z.mean(axis=0).var(axis=0) - z.var(axis=0, ddof=1).mean(axis=0) / _MEAN_DRAWS


def _marginals(distribution: Any) -> Any:
    """The distributions of the units one by one, `[..., D]`; None if TFP does not know them."""
    distribution = getattr(distribution, "tensor_distribution", distribution)
    if isinstance(distribution, tfd.Independent) and not distribution.distribution.event_shape.rank:
        return distribution.distribution
    if isinstance(distribution, tfd.MultivariateNormalLinearOperator):
        return tfd.Normal(distribution.mean(), distribution.stddev())
    return None


def _is_factorized(distribution: Any) -> bool:
    """Whether the units are independent, as far as TFP's classes tell."""
    distribution = getattr(distribution, "tensor_distribution", distribution)
    return isinstance(distribution, (tfd.Independent, tfd.MultivariateNormalDiag))


def _divergence(q: Any, p: Any, z: Any) -> Any:
    """KL(q || p) of each unit, `[N, ...]`."""
    try:
        return tfd.kl_divergence(q, p)
    except NotImplementedError:
        return tf.reduce_mean(q.log_prob(z) - p.log_prob(z), axis=0)


def _mixtures(block: Any, params: Any, z: np.ndarray, verbose: Any) -> np.ndarray:
    """The log densities of mixtures of the posteriors of all N rows, `[2, S * N, 1 + D or 1]`.

    The first mixture is of all rows, the second of all but the one that z is from. The columns are
    of z as a whole and of each unit.
    """
    num, shape = params.shape[0], (-1, *block.event_shape)
    size = max(1, _PAIR_NUMBERS // (num * z.shape[1]))
    function, progress, parts = _compiled(block), execution.Progress(len(z), verbose), []
    for start in range(0, len(z), size):
        part = tf.reshape(tf.constant(z[start : start + size], block.dtype), shape)
        rows = tf.range(start, start + part.shape[0]) % num
        arrays = params, part, rows
        specs = tuple(execution.of_any_length(array, 1) for array in arrays)
        parts.append(function.of(*arrays, specs=specs).numpy())
        progress.update(min(start + size, len(z)))
    return np.concatenate(parts, axis=1)


@functools.lru_cache(maxsize=8)
def _compiled(block: Any) -> Any:
    """What `_mixtures` does for some z: `(params, z, their rows) -> [2, S, 1 + D or 1]`."""

    def log_prob(params: Any, z: Any, rows: Any) -> Any:
        q, z, num = block.new(params), z[:, None], tf.shape(params)[0]
        marginals = _marginals(q)
        if marginals is None:
            log_probs = q.log_prob(z)[..., None]
        else:
            each = marginals.log_prob(z)
            each = tf.reshape(each, tf.concat([tf.shape(each)[:2], [-1]], 0))
            joint = tf.reduce_sum(each, -1) if _is_factorized(q) else q.log_prob(z)
            log_probs = tf.concat([joint[..., None], each], axis=-1)
        is_own = tf.one_hot(rows, num, on_value=True, off_value=False)[..., None]
        lowest = tf.constant(-math.inf, log_probs.dtype)
        others = tf.reduce_logsumexp(tf.where(is_own, lowest, log_probs), axis=1)
        both = tf.stack([others, tf.gather(log_probs, rows, axis=1, batch_dims=1)])
        sizes = tf.cast(tf.stack([num, num - 1]), log_probs.dtype)
        return tf.stack([tf.reduce_logsumexp(both, 0), others]) - tf.math.log(sizes)[:, None, None]

    return execution.Traced(log_prob)


def _flat(values: Any, ndims: int) -> np.ndarray:
    """The values as `[N, D]`: the first `ndims` axes as one, the others as one."""
    array = np.asarray(values)
    return array.reshape(math.prod(array.shape[:ndims]), -1)


class Gaps(NamedTuple):
    """What is lost between log p(x) and the ELBO, for some examples.

    Attributes:
      indices: which examples, `[M]`.
      log_marginal_likelihood: log p(x) `[M]`, importance sampled from the local posteriors.
      best: the ELBO `[M]` of the best posterior of the encoder's family.
      elbo: the ELBO `[M]` of the encoder's posterior.
      family: the name of the encoder's posterior block.
      other: the ELBO `[M]` of the best posterior of another family, or None.
      other_family: its name.
      converged: whether the local posteriors are at their best.
    """

    indices: np.ndarray
    log_marginal_likelihood: np.ndarray
    best: np.ndarray
    elbo: np.ndarray
    family: str
    other: np.ndarray | None = None
    other_family: str = ""
    converged: bool = True

    @property
    def approximation(self) -> np.ndarray:
        """What the family of posteriors costs, `[M]`."""
        return self.log_marginal_likelihood - self.best

    @property
    def amortization(self) -> np.ndarray:
        """What the encoder costs, `[M]`."""
        return self.best - self.elbo

    @property
    def other_approximation(self) -> np.ndarray | None:
        """What the other family would cost, `[M]`."""
        return None if self.other is None else self.log_marginal_likelihood - self.other


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; printed, it is a table and a sentence for each finding.

    Attributes:
      latents: how the latent units are used.
      gaps: the approximation and the amortization gap of some examples.
      elbo: of each example `[N]`.
      marginal_likelihood: log p(x) of each example, importance sampled from the encoder's
        posterior, what `vae.log_marginal_likelihood` returns.
      z: a draw of each example's posterior, `[N, D]`.
      prior_z: draws from the prior, `[M, D]`.
    """

    latents: Latents
    gaps: Gaps
    elbo: np.ndarray
    marginal_likelihood: marginal_likelihood.MarginalLikelihood
    z: np.ndarray = dataclasses.field(repr=False)
    prior_z: np.ndarray = dataclasses.field(repr=False)

    @property
    def k_hat(self) -> np.ndarray | None:
        """The Pareto k-hat of the weights `[N]`, None without ArviZ."""
        try:
            return self.marginal_likelihood.k_hat
        except ImportError:
            return None

    @property
    def unreliable(self) -> float:
        """The share of examples whose importance weights are unreliable."""
        k_hat, weights = self.k_hat, self.marginal_likelihood
        if k_hat is None:
            return float(np.mean(weights.effective_sample_size < EFFECTIVE_DRAWS))
        return float(np.mean(k_hat > marginal_likelihood.K_HAT_LIMIT))

    @property
    def findings(self) -> tuple[str, ...]:
        """A sentence or two for each thing that stands out; none if all is well."""
        found = (_collapse(self), _gap(self), _holes(self), _weights(self), _optimum(self))
        return tuple(sentence for sentence in found if sentence)

    @property
    def ok(self) -> bool:
        """Whether nothing stands out."""
        return not self.findings

    def __str__(self) -> str:
        lines = [*_table(self), "", *_units(self.latents), ""]
        verdict = self.findings or ("Nothing stands out.",)
        return "\n".join([*lines, *(f"- {sentence}" for sentence in verdict)])

    def figure(self, labels: Any = None) -> Any:
        """The diagnosis as a `matplotlib.figure.Figure` of four panels.

        Args:
          labels: classes `[N]` of the examples, by which the draws of z are coloured.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.0, 8.0), layout="constrained")
        (units, gaps), (weights, plane) = figure.subplots(2, 2)
        use = self.latents
        if use.kl_by_unit is None:
            plotting.unit_bars(use.activity, use.active, units, label="variance of E[z|x] over x")
        else:
            plotting.unit_bars(use.kl_by_unit, use.active, units)
        units.set_title(f"{use.active.sum()} of {len(use.active)} units are active")
        plotting.gap_bars(_gap_parts(self.gaps), gaps)
        gaps.set_title(f"from log p(x) to the ELBO, {len(self.gaps.indices)} examples")
        num, k_hat = self.marginal_likelihood.num_samples, self.k_hat
        if k_hat is None:
            plotting.weight_histogram(
                np.log10(np.maximum(self.marginal_likelihood.effective_sample_size, 1.0)),
                math.log10(EFFECTIVE_DRAWS),
                weights,
                label=f"log10 of the effective number of {num} draws",
                low=True,
            )
        else:
            plotting.weight_histogram(
                np.minimum(k_hat, 2.0),  # It may be infinite.
                marginal_likelihood.K_HAT_LIMIT,
                weights,
                label=f"Pareto k-hat of {num} weights",
            )
        weights.set_title(f"weights are unreliable for {self.unreliable:.1%} of the examples")
        first, second = _largest(use)
        plotting.aggregate_posterior(
            self.z[:, [first, second]],
            self.prior_z[:, [first, second]],
            labels,
            plane,
            names=(f"unit {first}", f"unit {second}"),
        )
        plane.set_title("aggregate posterior on the prior")
        return figure


def diagnose(
    vae: Any,
    x: Any,
    num_samples: int = 1000,
    *,
    num_local: int = 100,
    posterior: Any = None,
    seed: Any = None,
    verbose: Any = "auto",
) -> Diagnosis:
    r"""How good a trained VAE is, where it loses, and what to try, in one table and one figure.

    $$ \log p(x) - \mathrm{ELBO}(x)
       = \underbrace{\log p(x) - \max_\lambda \mathrm{ELBO}(x; \lambda)}_{\text{approximation}}
       + \underbrace{\max_\lambda \mathrm{ELBO}(x; \lambda)
       - \mathrm{ELBO}(x)}_{\text{amortization}} $$

    It puts together `latents` (active units, KL of each unit, mutual information), `vae.elbo`,
    `vae.log_marginal_likelihood` with the k-hat of its weights, and `local_posterior` for a few
    examples, which splits the gap. All of it is independent of the objective of training.

    Args:
      vae: a `VAE` whose encoder ends in a block, such that its draws are reparameterized.
      x: data `[N, *event_shape]`, best of a test set.
      num_samples: draws of z for each example, at least 21.
      num_local: for how many examples, chosen by the seed, the gap is split.
      posterior: another posterior block, the gap of which to show beside that of the encoder's:
        `posteriors.FullRankNormal(D)`.
      seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
      verbose: 1 shows progress, 0 does not, "auto" does when it takes long.

    Returns:
      All numbers, and `findings` in plain words; print it, and draw its `figure()`.

    Raises:
      TypeError: if the encoder does not end in a block; for numbers that are no integers.
      ValueError: as of `local_posterior`.

    Example:
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> found = diagnose(vae, np.eye(3, dtype="float32"), num_samples=100, seed=0)
      >>> found.latents.active.shape
      (2,)

    Source: Cremer, Li and Duvenaud, "Inference Suboptimality in Variational Autoencoders", 2018,
    and those of `latents`.
    """
    local_inference.check_vae(vae)
    num_samples = checks.positive_integer("num_samples", num_samples)
    num_local = checks.positive_integer("num_local", num_local)
    marginal_likelihood.check_tail(num_samples)  # Now, and not when the report is printed.
    seed = vae.noise.next() if seed is None else noise.as_seed(seed)
    x = vae._arrays(x)
    seeds = [tf.random.fold_in(seed, i) for i in range(6)]
    use, prior = latents(vae, x, seeds[0], verbose), _prior(vae, x)
    draws = math.ceil(_PRIOR_DRAWS / math.prod(prior.batch_shape))
    return Diagnosis(
        latents=use,
        gaps=_gaps(vae, x, num_samples, num_local, posterior, seeds[2], verbose),
        elbo=vae.elbo(x, num_samples, seed=seeds[3], verbose=verbose),
        marginal_likelihood=vae.log_marginal_likelihood(
            x, num_samples, seed=seeds[1], verbose=verbose
        ),
        z=_flat(vae.posterior(x).sample(seed=seeds[4]), 1),
        prior_z=_flat(prior.sample(draws, seed=seeds[5]), 1 + prior.batch_shape.rank),
    )


def _gaps(
    vae: Any, x: Any, num_samples: int, num: int, other: Any, seed: Any, verbose: Any
) -> Gaps:
    """The gaps of examples that the seed chooses."""
    rows = tf.range(execution.length(x))
    order = tf.random.experimental.stateless_shuffle(rows, seed=seed).numpy()
    indices = np.sort(order[:num])
    chosen = execution.take(x, indices)
    best = local_inference.local_posterior(
        vae, chosen, None, num_samples, seed=tf.random.fold_in(seed, 0), verbose=verbose
    )
    weights = vae.log_weights(chosen, num_samples, tf.random.fold_in(seed, 1), verbose)
    q = vae.posterior(execution.take(chosen, slice(1)))
    family = _family(local_inference.source(q)[0])
    elbo = weights.mean(axis=0)
    evidence = best.log_marginal_likelihood
    if other is None:
        return Gaps(indices, evidence, best.elbo, elbo, family, converged=best.converged)
    wider = local_inference.local_posterior(
        vae, chosen, other, num_samples, seed=tf.random.fold_in(seed, 2), verbose=verbose
    )
    if wider.elbo.mean() > best.elbo.mean():  # The closer to p(z|x), the more even the weights.
        evidence = wider.log_marginal_likelihood
    converged = best.converged and wider.converged
    return Gaps(indices, evidence, best.elbo, elbo, family, wider.elbo, _family(other), converged)


def _family(block: Any) -> str:
    """The name of a posterior block."""
    own = type(block).__module__ != layers.__name__
    return type(block).__name__.lstrip("_") if own else block.title()


class LatentMonitor(keras.callbacks.Callback):
    r"""A callback that logs how the latent units are used, so that it shows in the history.

    The logs get `active_units`, `mutual_information`, `aggregate_kl` and, for each unit,
    `kl_unit_0`, `kl_unit_1`, ..., see `Latents`; NaN in epochs without a measurement. It has its
    own seed and leaves the noise of training alone: the run is the same with it and without.

    Args:
      x: data `[N, *event_shape]`, a fixed sample of some hundred examples: the cost is N^2.
      every: measure after the first epoch and then after every so many.
      by_unit: whether to log the KL of each unit.
      seed: of the draws.

    Example:
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> vae.compile("adam")
      >>> x = np.eye(3, dtype="float32")
      >>> history = vae.fit(x, epochs=2, verbose=0, callbacks=[LatentMonitor(x)]).history
      >>> [name for name in sorted(history) if name.startswith(("active", "kl_"))]
      ['active_units', 'kl_unit_0', 'kl_unit_1']
    """

    def __init__(self, x: Any, every: int = 1, by_unit: bool = True, seed: int = 0) -> None:
        super().__init__()
        self._x = x if isinstance(x, tuple) else checks.as_array("x", x)
        self._every = checks.positive_integer("every", every)
        self._by_unit, self._seed = by_unit, noise.as_seed(seed)
        self._names: list[str] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Put the numbers into the logs."""
        found = dict.fromkeys(self._names, math.nan)
        if not found or epoch % self._every == 0:
            found = self._measure()
            self._names = list(found)
        if logs is not None:
            logs.update(found)

    def _measure(self) -> dict[str, float]:
        use = latents(self.model, self._x, self._seed, verbose=0)
        found = {
            "active_units": float(use.active.sum()),
            "mutual_information": use.mutual_information,
            "aggregate_kl": use.aggregate_kl,
        }
        if self._by_unit and use.kl_by_unit is not None:
            found |= {f"kl_unit_{d}": float(value) for d, value in enumerate(use.kl_by_unit)}
        return found


# The findings: a sentence or two each, or nothing.


def _collapse(found: Diagnosis) -> str:
    use = found.latents
    collapsed = np.flatnonzero(~use.active)
    if not len(collapsed):
        return ""
    kl = "" if use.kl_by_unit is None else f"; KL {_kl_of(use, collapsed):.2g} nats in all"
    head = (
        f"{len(collapsed)} of {len(use.active)} units have collapsed: {_listed(collapsed)}. The "
        f"means of q(z|x) vary over the examples with a variance of at most {ACTIVITY}{kl}."
    )
    if len(collapsed) == len(use.active):
        return (
            f"{head} So z says nothing about x, and the decoder does without it. Train with a "
            f"{_USE_MORE}, or take a less powerful decoder."
        )
    return (
        f"{head} The decoder does without them. If a model with a smaller latent_size scores as "
        f"well, they were not needed; if more of them should be used, train with a {_USE_MORE}."
    )


def _gap(found: Diagnosis) -> str:
    gaps = found.gaps
    total, error = _mean(gaps.approximation + gaps.amortization)
    if total < _NATS or total < 3 * error:
        return ""
    family, encoder = _mean(gaps.approximation)[0], _mean(gaps.amortization)[0]
    head = f"The ELBO is {total:.2f} nats below log p(x)"
    if encoder > _MOST * total:
        return (
            f"{head}, and the encoder is to blame: with the best {gaps.family} for each example it "
            f"would be {family:.2f}. Try a larger encoder, longer training, or local_posterior "
            "where few examples matter."
        )
    if family > _MOST * total:
        return (
            f"{head}, and the family of posteriors is to blame: the best {gaps.family} for each "
            f"example is still {family:.2f} below. {_richer(gaps)}"
        )
    return (
        f"{head}: {family:.2f} for the family {gaps.family}, {encoder:.2f} for the encoder. Try a "
        f"larger encoder. {_richer(gaps)}"
    )


def _richer(gaps: Gaps) -> str:
    """What another family would do."""
    if gaps.other is None or gaps.other_approximation is None:
        return (
            "Try a richer posterior, such as posteriors.FullRankNormal; diagnose(..., posterior=) "
            "measures what it would gain."
        )
    left = max(_mean(gaps.other_approximation)[0], 0.0)
    return f"The best {gaps.other_family} would be {left:.2f} below."


def _holes(found: Diagnosis) -> str:
    use = found.latents
    if use.aggregate_kl_lower < _NATS:
        return ""
    by_unit = np.zeros(0) if use.aggregate_kl_by_unit is None else use.aggregate_kl_by_unit
    units = np.argsort(-by_unit, kind="stable")[:3]
    units = units[by_unit[units] > _NATS / 5]
    worst = f", most in units {_listed(units)}" if len(units) else ""
    return (
        f"The codes do not fill the prior: KL(aggregate posterior || prior) is "
        f"{use.aggregate_kl_lower:.2f} to {use.aggregate_kl:.2f} nats{worst}. "
        "Draws from the prior fall where the decoder was not trained, and look worse than "
        "reconstructions. Try a learned prior, or longer training."
    )


def _weights(found: Diagnosis) -> str:
    if found.unreliable <= _SHARE:
        return ""
    sign = f"k-hat above {marginal_likelihood.K_HAT_LIMIT}"
    if found.k_hat is None:
        sign = f"fewer than {EFFECTIVE_DRAWS:g} effective draws"
    return (
        f"The importance weights of {found.unreliable:.0%} of the examples are unreliable ({sign} "
        f"of {found.marginal_likelihood.num_samples} draws): their log p(x) is probably too low, "
        "and so the gap too small. Take more draws, or the log_marginal_likelihood of "
        "local_posterior, whose weights are better."
    )


def _optimum(found: Diagnosis) -> str:
    if found.gaps.converged:
        return ""
    return (
        "The local posteriors were still improving when their steps ran out: the approximation gap "
        "is smaller than it says, the amortization gap larger."
    )


# The table.


def _table(found: Diagnosis) -> list[str]:
    use, gaps, evidence = found.latents, found.gaps, found.marginal_likelihood
    few = f"{len(gaps.indices)} examples"
    rows = [
        (f"log p(x), {evidence.num_samples} draws", evidence.estimate),
        ("ELBO", found.elbo),
        ("gap", evidence.estimate - found.elbo),
        (f"gap, {few}", gaps.approximation + gaps.amortization),
        (f"  approximation ({gaps.family})", gaps.approximation),
        ("  amortization (encoder)", gaps.amortization),
    ]
    if gaps.other_approximation is not None:
        rows.append((f"  approximation, if {gaps.other_family}", gaps.other_approximation))
    lines = [f"{f'nats, mean over {use.num_data} examples':44s}{'mean':>10s}{'+-':>9s}"]
    lines += [f"{name:44s}{_mean(v)[0]:10.3f}{_mean(v)[1]:9.3f}" for name, v in rows]
    lines += [
        f"{'KL(q(z|x) || p(z))':44s}{use.kl:10.3f}",
        f"{'  mutual information of x and z, at least':44s}{use.mutual_information:10.3f}",
        f"{'    at most':44s}{use.mutual_information_upper:10.3f}",
        f"{'  KL(aggregate posterior || prior), at most':44s}{use.aggregate_kl:10.3f}",
        f"{'    at least':44s}{use.aggregate_kl_lower:10.3f}",
    ]
    lines.append(f"{'active units':44s}{use.active.sum():>4d} of {len(use.active)}")
    ess = np.median(evidence.effective_sample_size)
    lines.append(f"{'effective draws, median':44s}{ess:10.1f}")
    if found.k_hat is None:
        lines.append(f"{'k-hat':44s}  needs ArviZ: pip install 'tfpvae[arviz]'")
    else:
        limit = f"examples with k-hat > {marginal_likelihood.K_HAT_LIMIT}"
        lines.append(f"{limit:44s}{found.unreliable:10.1%}")
    return lines


def _units(use: Latents) -> list[str]:
    """The units, those with the largest KL first."""
    lines = [f"{'unit':>6s}{'KL':>9s}{'KL of aggregate':>18s}{'variance of mean':>19s}"]
    for d in _order(use):
        kl, aggregate = (
            "-" if values is None else f"{round(float(values[d]), 3) + 0.0:.3f}"  # No -0.000.
            for values in (use.kl_by_unit, use.aggregate_kl_by_unit)
        )
        mark = "" if use.active[d] else "  collapsed"
        lines.append(f"{d:6d}{kl:>9s}{aggregate:>18s}{use.activity[d]:19.4f}{mark}")
    return lines


def _order(use: Latents) -> np.ndarray:
    """The units, those that matter most first."""
    return np.argsort(-(use.activity if use.kl_by_unit is None else use.kl_by_unit), kind="stable")


def _largest(use: Latents) -> tuple[int, int]:
    """The two units that matter most; twice the same if there is one."""
    order = _order(use)
    return int(order[0]), int(order[min(1, len(order) - 1)])


def _gap_parts(gaps: Gaps) -> dict[str, tuple[float, float]]:
    """The parts of the gap, each with its standard error."""
    best, parts = gaps.log_marginal_likelihood, {}
    if gaps.other is not None:
        parts[f"best\n{gaps.other_family}"] = best - gaps.other
        best = gaps.other
    parts[f"best\n{gaps.family}"] = best - gaps.best
    parts[f"encoder's\n{gaps.family}"] = gaps.amortization
    return {name: _mean(values) for name, values in parts.items()}


def _mean(values: Any) -> tuple[float, float]:
    """The mean over the examples, and its standard error."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def _kl_of(use: Latents, units: np.ndarray) -> float:
    return 0.0 if use.kl_by_unit is None else float(use.kl_by_unit[units].sum())


def _listed(units: np.ndarray) -> str:
    return ", ".join(map(str, units))
