"""check_elbo: is the number that Keras minimizes the negative ELBO?"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import checks, noise, objectives, schedules, training

tfd, tfpl = tfp.distributions, tfp.layers


class Term(NamedTuple):
    """One term of the loss, in nats an example."""

    name: str
    keras: float  # as Keras adds it up
    apart: float  # computed apart from Keras

    @property
    def ratio(self) -> float:
        """`keras / apart`: 1 where they agree."""
        return self.keras / self.apart if self.apart else math.nan


class ELBOCheck(NamedTuple):
    """What `check_elbo` found; printed, it is a table and a sentence for each difference."""

    terms: tuple[Term, ...]
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the loss is the negative ELBO."""
        return not self.differences

    def __str__(self) -> str:
        head = f"{'nats an example':24s}{'Keras':>14s}{'apart':>14s}{'ratio':>9s}"
        rows = [f"{t.name:24s}{t.keras:14.4f}{t.apart:14.4f}{t.ratio:9.4f}" for t in self.terms]
        verdict = self.differences or ("The loss is the negative ELBO.",)
        return "\n".join([head, *rows, *(f"- {sentence}" for sentence in verdict)])


def check_elbo(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    prior: Any = None,
    tolerance: float = 1e-4,
) -> ELBOCheck:
    r"""Compare what Keras minimizes with the negative ELBO computed apart from it, term by term.

    $$ -\mathrm{ELBO} = \frac1B \sum_b w_b \Bigl( \mathbb E_{q(z \mid x_b)}[-\log p(y_b \mid z)]
       + \mathrm{KL}\bigl(q(z \mid x_b)\ \|\ p(z)\bigr) \Bigr) $$

    It takes any compiled tf_keras model whose output is a distribution: a `VAE`, or a Sequential,
    functional or subclassed model of our layers or of stock `tfp.layers`. The model takes one
    test step on the data as one batch; the distributions that its layers make are caught on the
    way, so both sides see the same draws of z.

    Args:
      model: a compiled model with one posterior layer.
      x: a batch of data `[B, ...]`.
      y: what the likelihood scores, x if None.
      sample_weight: weights `[B]` of the examples.
      prior: p(z), a prior block or `tfd.Distribution`, where the model does not say.
      tolerance: relative difference that still counts as equal.

    Returns:
      The terms, the differences in plain words, and `ok`; print it.

    Raises:
      TypeError: if the model's output is no distribution.
      ValueError: for a model that is not compiled, or whose posterior layer is not unique.

    Example:
      >>> from tfpvae import KLDivergenceRegularizer, likelihoods, losses, posteriors, priors
      >>> kl = KLDivergenceRegularizer(priors.StandardNormal(2))
      >>> model = keras.Sequential([
      ...     keras.layers.Dense(4), posteriors.DiagonalNormal(2, activity_regularizer=kl),
      ...     keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> model.compile("sgd", loss=losses.negative_log_prob)
      >>> check_elbo(model, np.eye(3, dtype="float32")).ok
      True
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"model: got {model!r}, wanted a compiled tf_keras model")
    if not isinstance(prior, keras.layers.Layer | tfd.Distribution | None):
        raise TypeError(f"prior: got {prior!r}, wanted a block of tfpvae.priors or a distribution")
    if getattr(model, "num_layers", 1) > 1:
        raise ValueError(
            f"model: got one with {model.num_layers} layers of latent variables, wanted one: the "
            "KL of several is checked layer by layer, as kl_1, kl_2, ... in the history"
        )
    if getattr(getattr(model, "objective", None), "estimator", None) == "enumerated":
        raise ValueError(
            "model: got the estimator 'enumerated', whose loss is a sum over all states, wanted "
            "one that takes draws of z: compile it with another"
        )
    tolerance = checks.positive_number("tolerance", tolerance)
    x = checks.as_array("x", x).astype(keras.backend.floatx())
    y = x if y is None else checks.as_array("y", y)
    if len(y) != len(x):
        raise ValueError(f"y: got shape {y.shape}, wanted {len(x)} rows, as many as x has")
    weight = np.ones(len(x)) if sample_weight is None else np.asarray(sample_weight, float)
    if weight.shape != (len(x),):
        raise ValueError(f"sample_weight: got shape {weight.shape}, wanted ({len(x)},)")
    model(x)  # What is built lazily is built here, not while distributions are caught.
    with _caught(model) as caught:
        loss = _test_step(model, x, y, None if sample_weight is None else weight)
    if not caught:
        raise TypeError("model: got one without a distribution layer, wanted one that ends in one")
    likelihood = caught[-1][1]
    source = _kl_source(model, [pair for pair in caught if pair[1] is not likelihood])
    parts = _keras_parts(model, loss, source)

    differences: list[str] = []
    nll = _apart_nll(likelihood, y, source)
    _explain_nll(differences, parts["nll"], float(np.mean(weight * nll)), likelihood, tolerance)
    kl, noise_of_kl = _apart_kl(source, prior, differences)
    _explain_kl(differences, parts["kl"], kl, weight, source, tolerance, noise_of_kl)
    if not _is_elbo(model):
        differences.append(
            f"The objective is {model.objective.title()}: the loss is another bound or has free "
            "bits. nll + kl of the history is the negative ELBO."
        )
    if abs(parts["rest"]) > tolerance * abs(loss["loss"]):
        differences.append(
            f"The loss holds {parts['rest']:.4g} nats of other regularizers, which are no part "
            "of the ELBO."
        )
    apart_nll, apart_kl = float(np.mean(weight * nll)), float(np.mean(weight * kl))
    terms = (
        Term("nll", parts["nll"], apart_nll),
        Term("kl", parts["kl"], apart_kl),
        Term("loss, -ELBO", loss["loss"], apart_nll + apart_kl),
    )
    return ELBOCheck(terms, tuple(differences))


def _is_elbo(model: Any) -> bool:
    """Whether the loss is meant to be the ELBO, but for the weight of the KL."""
    objective = getattr(model, "objective", None)
    if objective is None:
        return True
    return isinstance(objective, objectives.ELBO) and not objective.free_bits


class _KLSource(NamedTuple):
    """Where a model's KL comes from."""

    layer: Any  # whose losses hold it
    posterior: Any  # q(z|x), as caught; None if the model has no posterior layer
    prior: Any
    exact: bool
    weight: float
    own_draws: bool
    num_samples: int | None = None  # how many of its own
    has_sample_axis: bool = False  # of log p(x|z)


@contextlib.contextmanager
def _caught(model: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Catch `(layer, distribution)` of every call of a distribution layer inside, in order."""
    calls: list[tuple[Any, Any]] = []
    found = [layer for layer in model.submodules if isinstance(layer, tfpl.DistributionLambda)]
    functions = [layer.function for layer in found]

    def catching(layer: Any, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            distribution, value = function(*args, **kwargs)
            calls.append((layer, distribution))
            return distribution, value

        return call

    try:
        for layer, function in zip(found, functions, strict=True):
            layer.function = catching(layer, function)
        yield calls
    finally:
        for layer, function in zip(found, functions, strict=True):
            layer.function = function


def _test_step(model: Any, x: Any, y: Any, weight: Any) -> dict[str, float]:
    try:
        model._assert_compile_was_called()
    except RuntimeError:
        raise ValueError("model: got one that is not compiled, call model.compile first") from None
    weight = None if weight is None else tf.constant(weight, tf.float32)
    model.reset_metrics()
    logs = model.test_step((tf.constant(x), tf.constant(y), weight))
    logs = {name: float(value) for name, value in logs.items() if not isinstance(value, dict)}
    model.reset_metrics()
    return logs


def _kl_source(model: Any, caught: list[tuple[Any, Any]]) -> _KLSource:
    if isinstance(model, training.ProbabilisticModel):
        exact = model.objective.use_exact_kl is not False
        posterior = caught[0][1]
        weight = float(schedules.value_of(model.objective.kl_weight))
        num = model.objective.num_samples
        own_draws = num is not None
        return _KLSource(model, posterior, model.prior, exact, weight, own_draws, num, own_draws)
    sources = [
        _from_regularizer(layer, posterior, part)
        for layer, posterior in caught
        for part in getattr(layer.activity_regularizer, "parts", [layer.activity_regularizer])
        if isinstance(part, tfpl.KLDivergenceRegularizer)
    ]
    for layer in model.submodules:
        if isinstance(layer, tfpl.KLDivergenceAddLoss) and caught:
            sources.append(_from_regularizer(layer, caught[-1][1], layer._regularizer))
    if len(sources) > 1:
        raise ValueError("model: got several layers that add a KL, wanted one posterior layer")
    if sources:
        return sources[0]
    return _KLSource(None, caught[0][1] if caught else None, None, True, 1.0, False)


def _from_regularizer(layer: Any, posterior: Any, regularizer: Any) -> _KLSource:
    # `use_exact_kl` is None in ours where it takes the closed form if there is one.
    exact = regularizer.use_exact_kl in (True, None)
    weight = 1.0 if regularizer.weight is None else float(regularizer.weight)
    num = getattr(regularizer, "num_samples", None)
    prior = regularizer.distribution_b
    return _KLSource(layer, posterior, prior, exact, weight, num is not None, num)


def _keras_parts(model: Any, logs: dict[str, float], source: _KLSource) -> dict[str, float]:
    """The loss that Keras printed, taken apart."""
    added = sum(float(loss) for loss in model.losses)
    if isinstance(model, training.ProbabilisticModel):
        parts = getattr(model, "_aggregate_parts", [])
        added += sum(float(part.weight) * logs[part.name] for part in parts)
        kl = logs["loss"] - logs["nll"] - added if _is_elbo(model) else logs["kl"]
        return {"nll": logs["nll"], "kl": kl, "rest": added}
    kl = sum(float(loss) for loss in source.layer.losses) if source.layer else 0.0
    regularizer: Any = getattr(source.layer, "activity_regularizer", None)
    if hasattr(regularizer, "added"):  # There may be divergences beside the KL.
        others = regularizer.added(source.posterior)
        kl -= sum(float(value) for name, value in others.items() if name != "kl")
    return {"nll": logs["loss"] - added, "kl": kl, "rest": added - kl}


def _apart_nll(likelihood: Any, y: Any, source: _KLSource) -> np.ndarray:
    """-log p(y|z) of each example, the mean over the draws of z; all entries of an example."""
    distribution = likelihood.tensor_distribution
    if distribution.dtype.is_floating:
        y = y.astype(distribution.dtype.as_numpy_dtype)
    log_prob = distribution.log_prob(y).numpy()
    if source.has_sample_axis or _sample_ndims(source.posterior):
        log_prob = log_prob.mean(axis=0)
    return -log_prob.reshape(len(y), -1).sum(axis=1)


def _apart_kl(source: _KLSource, prior: Any, differences: list[str]) -> tuple[np.ndarray, float]:
    """KL(q(z|x) || p(z)) of each example, and the error of one of them as Keras drew it apart."""
    if source.posterior is None:
        differences.append("The model has no posterior layer: there is no KL, and no ELBO.")
        return np.zeros(1), 0.0
    if source.prior is None:
        differences.append(
            "Nothing adds a KL to the loss: the ELBO needs one. Give the posterior layer "
            "activity_regularizer=tfpvae.KLDivergenceRegularizer(prior)."
        )
    prior = _prior(source.prior if prior is None else prior)
    if prior is None:
        return np.full(1, math.nan), 0.0
    q = source.posterior.tensor_distribution
    closed_form = _closed_form(q, prior)
    if source.exact and closed_form is not None:
        return closed_form, 0.0
    draws = tf.convert_to_tensor(source.posterior)
    if source.own_draws:
        draws = q.sample(1000, seed=noise.as_seed(0))
    log_ratio = (q.log_prob(draws) - prior.log_prob(draws)).numpy()
    log_ratio = log_ratio.reshape(-1, log_ratio.shape[-1])
    kl = log_ratio.mean(axis=0)
    if not source.own_draws:
        return kl, 0.0
    error = float(np.sqrt(log_ratio.var(axis=0).mean() / (source.num_samples or 1)))
    return (kl if closed_form is None else closed_form), error


def _prior(prior: Any) -> Any:
    """The prior as a distribution of TFP's own, None if there is none."""
    if prior is not None and not isinstance(prior, tfd.Distribution):
        prior = prior(0.0) if isinstance(prior, keras.Model) else prior()
    return getattr(prior, "tensor_distribution", prior)


def _closed_form(q: Any, prior: Any) -> np.ndarray | None:
    """KL(q || p) of each example, None if neither we nor TFP have a closed form."""
    q_moments, p_moments = _gaussian_moments(q), _gaussian_moments(prior)
    if q_moments and p_moments:
        with np.errstate(over="ignore", invalid="ignore"):  # The report says that it is NaN.
            return _gaussian_kl(q_moments, p_moments)
    with contextlib.suppress(NotImplementedError):
        return tfd.kl_divergence(q, prior).numpy()
    return None


def _gaussian_moments(distribution: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean `[..., D]` and covariance `[..., D, D]`, None if it is no Gaussian over vectors."""
    if distribution.event_shape.rank != 1:
        return None
    if isinstance(distribution, tfd.MultivariateNormalLinearOperator):
        return distribution.mean().numpy(), distribution.covariance().numpy()
    if isinstance(getattr(distribution, "distribution", None), tfd.Normal):
        variance = distribution.variance().numpy()
        covariance = np.where(np.eye(variance.shape[-1]), variance[..., None], 0.0)
        return distribution.mean().numpy(), covariance
    return None


def _gaussian_kl(q: tuple[np.ndarray, np.ndarray], p: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """KL(N(m, S) || N(n, T)) = (tr(T^-1 S) + (n-m)' T^-1 (n-m) - D + log|T| - log|S|) / 2."""
    (m, s), (n, t) = ((mean.astype(float), cov.astype(float)) for mean, cov in (q, p))
    precision, shift = np.linalg.inv(t), n - m
    trace = np.einsum("...ij,...ji->...", precision, s)
    distance = np.einsum("...i,...ij,...j->...", shift, precision, shift)
    log_ratio = np.linalg.slogdet(t)[1] - np.linalg.slogdet(s)[1]
    return 0.5 * (trace + distance - m.shape[-1] + log_ratio)


def _sample_ndims(posterior: Any) -> int:
    if posterior is None:
        return 0
    value = tf.convert_to_tensor(posterior)
    return value.shape.rank - posterior.batch_shape.rank - posterior.event_shape.rank


def _explain_nll(
    differences: list[str], keras_nll: float, nll: float, likelihood: Any, tolerance: float
) -> None:
    if math.isclose(keras_nll, nll, rel_tol=tolerance, abs_tol=1e-6):
        return
    size = math.prod(likelihood.batch_shape[1:])
    if size > 1 and math.isclose(keras_nll * size, nll, rel_tol=tolerance):
        differences.append(
            f"The nll is averaged over the {size} entries of an example instead of summed: the "
            f"likelihood has batch_shape {tuple(likelihood.batch_shape)}. Make the entries its "
            "event (event_shape=, or tfd.Independent)."
        )
    else:
        differences.append(
            "The loss that the model was compiled with is not the negative log_prob of its output: "
            "compile with loss=tfpvae.losses.negative_log_prob."
        )


def _explain_kl(
    differences: list[str],
    keras_kl: float,
    kl: np.ndarray,
    weight: np.ndarray,
    source: _KLSource,
    tolerance: float,
    noise_of_kl: float,
) -> None:
    """Find the factor by which the KL is off among those that are known to happen."""
    if source.posterior is None or source.layer is None:
        return
    num_data = len(weight)
    draws = tf.convert_to_tensor(source.posterior).shape[0]  # or num_data, without a sample axis
    twice = "Keras applies tfp.layers.KLDivergenceRegularizer to both things that a layer returns"
    factors = {
        float(num_data): f"The KL is summed over the {num_data} examples, the nll is their mean.",
        2.0 * num_data / draws: f"The KL is counted twice and divided by the {draws} draws instead "
        f"of the {num_data} examples, {2 * num_data / draws:.4g} times in all: {twice}.",
        2.0: f"The KL is counted twice: {twice}.",
        1.0: "",  # Last, as a batch of one example has several equal factors.
    }
    use = " Use tfpvae.KLDivergenceRegularizer."
    error = max(1e-6, 5 * noise_of_kl * float(np.sqrt(np.mean(weight**2) / num_data)))
    weighted, plain = float(np.mean(weight * kl)), float(kl.mean())
    for mean, factor in itertools.product((weighted, plain), factors):
        wanted = source.weight * factor * mean
        if math.isclose(keras_kl, wanted, rel_tol=tolerance, abs_tol=source.weight * error):
            if factors[factor]:
                differences.append(factors[factor] + use)
            if mean != weighted:
                differences.append(
                    "The KL ignores sample_weight, which Keras does not give to a regularizer: "
                    "train with VAE, which weights it."
                )
            break
    else:
        differences.append(f"Keras adds {keras_kl / (weighted or math.nan):.4g} times the KL.")
    if source.weight != 1.0:
        differences.append(
            f"The KL has the weight {source.weight:g}: the loss is not the negative ELBO, "
            "nll + kl is."
        )
