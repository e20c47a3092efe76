"""Objectives: their equations, and their gradients against exact derivatives.

The references are NumPy: Gauss-Hermite quadrature over the noise of all draws of a model with one
latent dimension, or the sum over all states of a discrete one, differentiated numerically.
"""

import itertools
import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import special, stats

from tfpvae import (
    VAE,
    DistributionLayer,
    family,
    likelihoods,
    noise,
    objectives,
    posteriors,
    priors,
    schedules,
)

tfd = tfp.distributions
ELBO, IWAE, Renyi, CUBO = objectives.ELBO, objectives.IWAE, objectives.Renyi, objectives.CUBO
FDivergence, ReweightedWakeSleep = objectives.FDivergence, objectives.ReweightedWakeSleep


# The equations.


@pytest.fixture
def log_weights(rng):
    return rng.normal(-90.0, 3.0, (7, 5)).astype("float32")


def power_mean(log_weights, alpha):
    """The Renyi bound in double precision, around the largest weight."""
    top = log_weights.max(axis=0)
    ratios = np.exp(log_weights.astype(float) - top)
    return top + np.log(np.mean(ratios ** (1 - alpha), axis=0)) / (1 - alpha)


@pytest.mark.parametrize("alpha", [-3.0, -1.0, 0.0, 0.3, 0.999, 2.0, 5.0])
def test_renyi_bound(log_weights, alpha):
    found = Renyi(alpha, 7).bound(log_weights)
    np.testing.assert_allclose(found, power_mean(log_weights, alpha), rtol=1e-5)


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-7, -1e-7])
def test_renyi_bound_tends_to_the_elbo(log_weights, distance):
    """Up to half the variance of the log weights times the distance of alpha from 1."""
    bound = Renyi(1.0 - distance, 7).bound(log_weights)
    variance = log_weights.var(axis=0)
    wanted = ELBO().bound(log_weights) + distance * variance / 2
    np.testing.assert_allclose(bound, wanted, atol=3e-5 + 20 * distance**2)
    np.testing.assert_array_equal(Renyi(1.0, 7).bound(log_weights), ELBO().bound(log_weights))


def test_bounds_are_in_their_order(log_weights):
    alphas = [3.0, 1.0, 0.5, 0.0, -1.0, -5.0]
    bounds = np.stack([Renyi(alpha, 7).bound(log_weights) for alpha in alphas])
    assert (np.diff(bounds, axis=0) > 0).all()
    assert (bounds <= log_weights.max(axis=0) + 1e-4).all()
    np.testing.assert_array_equal(IWAE(7).bound(log_weights), bounds[3])
    np.testing.assert_array_equal(CUBO(2.0, 7).bound(log_weights), bounds[4])


def test_leave_one_out_by_leaving_each_out(log_weights):
    bound = IWAE(7).bound
    found = objectives.leave_one_out(bound, tf.constant(log_weights)).numpy()
    for s in range(7):
        replaced = log_weights.copy()
        replaced[s] = np.delete(log_weights, s, axis=0).mean(axis=0)
        np.testing.assert_allclose(found[s], bound(log_weights) - bound(replaced), atol=2e-5)


F = {
    "kl_forward": lambda u: u * np.log(u),
    "kl_reverse": lambda u: -np.log(u),
    "pearson": lambda u: (u - 1) ** 2,
    "squared_hellinger": lambda u: (np.sqrt(u) - 1) ** 2,
    "total_variation": lambda u: 0.5 * np.abs(u - 1),
    "jensen_shannon": lambda u: u * np.log(u) - (1 + u) * np.log((1 + u) / 2),
    "triangular": lambda u: (u - 1) ** 2 / (1 + u),
}


@pytest.mark.parametrize("name", F)
def test_divergence_is_that_of_normalized_weights(name, log_weights):
    u = special.softmax(log_weights.astype(float), axis=0) * 7
    found = FDivergence(name, 7).divergence(log_weights)
    np.testing.assert_allclose(found, F[name](u).mean(axis=0), rtol=1e-4)
    assert float(FDivergence(name, 3).divergence(np.full(3, -90.0, "float32"))) == 0.0


@pytest.mark.parametrize("name", sorted(set(objectives._DISCREPANCIES)))
def test_every_function_of_tfp_works(name, log_weights):
    objective = FDivergence(name, 7, **({"t": 0.5} if name == "t_power" else {}))
    assert np.isfinite(objective.divergence(log_weights)).all()
    again = FDivergence.from_config(json.loads(json.dumps(objective.get_config())))
    np.testing.assert_array_equal(again.divergence(log_weights), objective.divergence(log_weights))


def test_arguments_of_the_function_are_kept():
    half = FDivergence("amari_alpha", 7, alpha=0.5)
    again = FDivergence.from_config(json.loads(json.dumps(half.get_config())))
    u = np.float32([0.5, 1.5])
    wanted = np.mean(4 * (1 - np.sqrt(u)) + 2 * (u - 1))
    assert float(again.divergence(np.log(u))) == pytest.approx(wanted, rel=1e-4)


# Gradients. One latent dimension: every expectation over the noise of the draws is a quadrature.

X, LIKELIHOOD_SCALE = 1.3, 0.7
WEIGHTS = np.array([0.9, -0.4, 1.2])  # of loc, of the unconstrained scale, of the decoder


def scalar_vae(objective, weights=WEIGHTS):
    """loc = a x, scale = softplus(b x), p(x|z) = N(c z, 0.7^2)."""
    vae = VAE(
        priors.StandardNormal(1),
        keras.Sequential([keras.layers.Dense(2, use_bias=False), posteriors.DiagonalNormal(1)]),
        keras.Sequential(
            [
                keras.layers.Dense(1, use_bias=False),
                likelihoods.Normal(1, scale=LIKELIHOOD_SCALE),
            ]
        ),
        seed=0,
    )
    vae.compile("sgd", objective=objective)
    vae.build((None, 1))
    vae.encoder.layers[0].set_weights([weights[None, :2]])
    vae.decoder.layers[0].set_weights([weights[None, 2:]])
    return vae


def densities(epsilon, weights):
    """z, log p(x, z) and log q(z|x) at loc + scale * epsilon."""
    loc, scale = weights[0] * X, np.log1p(np.exp(weights[1] * X))
    z = loc + scale * epsilon
    log_joint = stats.norm.logpdf(X, weights[2] * z, LIKELIHOOD_SCALE) + stats.norm.logpdf(z)
    return z, log_joint, stats.norm.logpdf(z, loc, scale)


def quadrature(num_samples, size):
    """Noise `[S, M]` of all draws, and the probability `[M]` of each."""
    nodes, probability = np.polynomial.hermite_e.hermegauss(size)
    grid = np.array(list(itertools.product(nodes, repeat=num_samples))).T
    parts = itertools.product(probability / probability.sum(), repeat=num_samples)
    return grid, np.prod(list(parts), axis=1)


def derivative(function, weights=WEIGHTS):
    steps = 1e-5 * np.eye(len(weights))
    return np.array([(function(weights + h) - function(weights - h)) / 2e-5 for h in steps])


def expected_bound(bound, num_samples, size=48):
    epsilon, probability = quadrature(num_samples, size)

    def expected(weights):
        _, log_joint, log_q = densities(epsilon, weights)
        return probability @ bound(log_joint - log_q)

    return expected


def estimates(vae, num, size, x=X):
    """Independent estimates `[num, P]` of the gradient of the negative loss by the weights."""
    batch = tf.fill([size, 1], np.float32(x))

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            loss, _, _ = vae.example_losses(batch, batch, training=True)
            loss = -tf.reduce_mean(loss)
        gradients = tape.gradient(loss, vae.trainable_weights)
        return tf.concat([tf.reshape(part, [-1]) for part in gradients], 0)

    return np.stack([gradient().numpy() for _ in range(num)])


def assert_unbiased(found, wanted, precision):
    """Within 4.5 standard errors, which have to be small beside the gradient itself."""
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (error < precision * np.abs(wanted).max()).all(), error
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - wanted), 4.5 * error + 1e-4)


def mean(log_weights):
    return log_weights.mean(axis=0)


def renyi(alpha):
    return lambda log_weights: power_mean(log_weights, alpha)


class Smallest(objectives.Objective):
    """A bound of a user's own: a soft minimum."""

    def bound(self, log_weights):
        return -tf.reduce_logsumexp(-log_weights, axis=0)


# The others are for z of finitely many states, see tests/test_discrete.py.
OF_DENSITIES = ELBO.estimators[:3]

LOWER = {
    "ELBO": (lambda e: ELBO(num_samples=3, estimator=e), mean, OF_DENSITIES),
    "ELBO by Monte Carlo": (
        lambda e: ELBO(num_samples=3, use_exact_kl=False, estimator=e),
        mean,
        ("reparameterized",),
    ),
    "IWAE": (lambda e: IWAE(3, e), renyi(0.0), IWAE(3).estimators),
    "Renyi 0.5": (lambda e: Renyi(0.5, 3, e), renyi(0.5), Renyi(0.5).estimators),
    "Renyi 2": (lambda e: Renyi(2.0, 3, e), renyi(2.0), ("doubly_reparameterized",)),
    "Renyi 1": (lambda e: Renyi(1.0, 3, e), mean, ("sticking_the_landing",)),
    "a user's": (
        lambda e: Smallest(3, e),
        lambda log_weights: -special.logsumexp(-log_weights, axis=0),
        Smallest.estimators,
    ),
}
CASES = [(name, estimator) for name, case in LOWER.items() for estimator in case[2]]


QUICK = {"ELBO"}


@pytest.mark.parametrize(
    ("name", "estimator"),
    [pytest.param(*case, marks=[pytest.mark.long] * (case[0] not in QUICK)) for case in CASES],
)
def test_estimators_are_unbiased_for_the_bound_of_their_draws(name, estimator):
    make, bound, _ = LOWER[name]
    wanted = derivative(expected_bound(bound, 3))
    found = estimates(scalar_vae(make(estimator)), num=30, size=4000)
    assert_unbiased(found, wanted, precision=0.03)


@pytest.mark.parametrize("estimator", OF_DENSITIES)
def test_every_estimator_weights_the_kl(estimator):
    epsilon, probability = quadrature(1, 64)

    def weighted(weights):
        z, log_joint, log_q = densities(epsilon[0], weights)
        log_prior = stats.norm.logpdf(z)
        return probability @ (log_joint - log_prior + 0.3 * (log_prior - log_q))

    vae = scalar_vae(ELBO(0.3, num_samples=3, estimator=estimator))
    assert_unbiased(estimates(vae, 30, 4000), derivative(weighted), precision=0.03)


def test_one_draw_of_any_order_is_the_elbo():
    wanted = derivative(expected_bound(mean, 1))
    for objective in (IWAE(1), Renyi(0.5, 1, "doubly_reparameterized")):
        assert_unbiased(estimates(scalar_vae(objective), 20, 4000), wanted, precision=0.05)


def log_evidence_gradient():
    """By c of log N(x; 0, c^2 + 0.7^2): what the model's weights should climb."""

    def log_evidence(weights):
        return stats.norm.logpdf(X, 0, np.hypot(weights[2], LIKELIHOOD_SCALE))

    return derivative(log_evidence)[2]


def cubo(order):
    epsilon, probability = quadrature(1, 64)

    def bound(weights):
        _, log_joint, log_q = densities(epsilon[0], weights)
        return special.logsumexp(order * (log_joint - log_q), b=probability) / order

    return bound


def f_divergence(f):
    """Of the normalized p(z|x) from q, over a fine grid of z; the true posterior is held."""
    z = np.linspace(-12, 12, 20_001)
    log_p = densities_of_truth(z)

    def divergence(weights):
        log_q = stats.norm.logpdf(z, weights[0] * X, np.log1p(np.exp(weights[1] * X)))
        near = log_q > -60
        q = np.exp(log_q[near])
        return np.trapezoid(q * f(np.exp(log_p - log_q)[near]), z[near])

    return divergence


def densities_of_truth(z):
    """log p(z|x) at the weights of the decoder."""
    precision = 1 + WEIGHTS[2] ** 2 / LIKELIHOOD_SCALE**2
    loc = WEIGHTS[2] * X / LIKELIHOOD_SCALE**2 / precision
    return stats.norm.logpdf(z, loc, precision**-0.5)


MANY = 400
WIDE = np.array([0.9, 0.4, 1.2])  # A narrow q has weights with hardly a second moment.
CONSISTENT = {
    "CUBO": (lambda e: CUBO(2.0, MANY, e), cubo(2.0), CUBO(2.0, 2).estimators),
    "Renyi -0.5": (lambda e: Renyi(-0.5, MANY, e), cubo(1.5), Renyi(-0.5, 2).estimators),
    "kl_forward": (
        lambda e: FDivergence("kl_forward", MANY, e),
        f_divergence(F["kl_forward"]),
        FDivergence.estimators,
    ),
    "jensen_shannon": (
        lambda e: FDivergence("jensen_shannon", MANY, e),
        f_divergence(F["jensen_shannon"]),
        FDivergence.estimators,
    ),
    "kl_reverse": (
        lambda e: FDivergence("kl_reverse", MANY, e),
        f_divergence(F["kl_reverse"]),
        ("doubly_reparameterized",),
    ),
    "total_variation": (
        lambda e: FDivergence("total_variation", MANY, e),
        f_divergence(F["total_variation"]),
        ("score_function",),
    ),
    "wake": (
        lambda e: ReweightedWakeSleep(MANY, sleep=0),
        f_divergence(F["kl_forward"]),
        ReweightedWakeSleep.estimators,
    ),
}
CASES = [(name, estimator) for name, case in CONSISTENT.items() for estimator in case[2]]


@pytest.mark.long
@pytest.mark.parametrize(("name", "estimator"), CASES)
def test_with_many_draws_the_posterior_lowers_its_divergence(name, estimator):
    """And the model climbs log p(x). Normalized weights leave a bias of order 1 / S."""
    make, divergence, _ = CONSISTENT[name]
    found = estimates(scalar_vae(make(estimator), WIDE), num=12, size=200)
    wanted = -derivative(divergence, WIDE)
    wanted[2] = log_evidence_gradient()
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    bias = 10 / MANY * np.abs(wanted).max()
    np.testing.assert_array_less(error, 0.02)
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - wanted), 4.5 * error + bias)


def test_sleep_learns_the_posterior_of_dreams():
    """The asleep posterior climbs E_{p(x, z)}[log q(z|x)], whatever the data."""
    epsilon, probability = quadrature(2, 48)
    z, x = epsilon[0], WEIGHTS[2] * epsilon[0] + LIKELIHOOD_SCALE * epsilon[1]

    def dreamed(weights):
        scale = np.log1p(np.exp(weights[1] * x))
        return probability @ stats.norm.logpdf(z, weights[0] * x, scale)

    weights = np.array([0.5, 0.1])  # where no scale is so small that the quadrature misses it
    wanted = derivative(dreamed, weights)
    for objective in (ReweightedWakeSleep(1), ReweightedWakeSleep(5, sleep=1)):
        vae = scalar_vae(objective, np.array([*weights, WEIGHTS[2]]))
        found = estimates(vae, num=30, size=4000)
        assert_unbiased(found[:, :2], wanted, precision=0.05)


def test_the_share_of_sleep():
    """The gradient for the posterior is `(1 - sleep) * awake + sleep * asleep`."""

    def gradient(sleep):
        with noise.fixed(0):  # The same draws for all.
            vae = scalar_vae(ReweightedWakeSleep(20, sleep), WIDE)
            return estimates(vae, num=1, size=50)[0, :2]

    awake, mixed, asleep = map(gradient, (0.0, 0.25, 1.0))
    np.testing.assert_allclose(mixed, 0.75 * awake + 0.25 * asleep, rtol=1e-4)
    assert not np.allclose(awake, asleep, rtol=0.1)


class InParts(IWAE):
    """The plain gradient of IWAE's bound, as its path and its score."""

    def __call__(self, draws):
        log_weights = tf.stop_gradient(draws.log_weights)
        v = self.slope(log_weights)
        parts = objectives.Coefficients(v, path=v * 1.0, score=-v)
        return draws.loss(-self.bound(log_weights), parts), {}


def test_path_and_score_make_the_whole_gradient():
    """On the same draws, what the coefficients put together is automatic differentiation."""

    def gradient(objective):
        with noise.fixed(0):
            return estimates(scalar_vae(objective), num=1, size=50)

    np.testing.assert_allclose(gradient(InParts(4)), gradient(IWAE(4)), rtol=1e-4)


# Discrete z: every expectation is a sum over states.

BITS = 2
BIT_WEIGHTS = np.array([0.3, -0.8, 1.1, 0.4, -0.6, 0.9])  # encoder [1, 2], decoder kernel, prior


def bits_vae(objective):
    vae = VAE(
        priors.Prior("Bernoulli", BITS),
        keras.Sequential(
            [keras.layers.Dense(BITS, use_bias=False), DistributionLayer("Bernoulli", BITS)]
        ),
        keras.Sequential(
            [keras.layers.Dense(1, use_bias=False), likelihoods.Normal(1, scale=LIKELIHOOD_SCALE)]
        ),
        seed=0,
    )
    vae.compile("sgd", objective=objective)
    vae.build((None, 1))
    vae.encoder.layers[0].set_weights([BIT_WEIGHTS[None, :2]])
    vae.decoder.layers[0].set_weights([BIT_WEIGHTS[2:4, None]])
    vae.prior.set_weights([BIT_WEIGHTS[4:]])
    return vae


def expected_over_states(bound, num_samples):
    states = np.array(list(itertools.product([0, 1], repeat=BITS)))
    draws = list(itertools.product(range(len(states)), repeat=num_samples))

    def expected(weights):
        def log_bernoulli(logits):
            return (states * logits - np.logaddexp(0, logits)).sum(axis=1)

        log_q = log_bernoulli(weights[:2] * X)
        log_likelihood = stats.norm.logpdf(X, states @ weights[2:4], LIKELIHOOD_SCALE)
        log_weights = log_likelihood + log_bernoulli(weights[4:]) - log_q
        chosen = np.array(draws).T
        return np.exp(log_q[chosen].sum(axis=0)) @ bound(log_weights[chosen])

    return expected


def by_name(vae, found):
    """The columns of the estimates in the order of BIT_WEIGHTS."""
    order = {"enc": slice(0, 2), "dec": slice(2, 4), "pri": slice(4, 6)}
    sorted_columns, start = np.zeros_like(found), 0
    owners = {
        id(vae.encoder.trainable_weights[0]): "enc",
        id(vae.decoder.trainable_weights[0]): "dec",
        id(vae.prior.trainable_weights[0]): "pri",
    }
    for weight in vae.trainable_weights:
        sorted_columns[:, order[owners[id(weight)]]] = found[:, start : start + 2]
        start += 2
    return sorted_columns


@pytest.mark.parametrize(
    ("objective", "bound"),
    [
        (IWAE(3, "score_function"), renyi(0.0)),
        (ELBO(num_samples=3, estimator="score_function"), mean),
        (Renyi(0.5, 2, "score_function"), renyi(0.5)),
    ],
    ids=["VIMCO", "ELBO", "Renyi"],
)
def test_score_function_is_unbiased_for_discrete_latents(objective, bound):
    vae = bits_vae(objective)
    wanted = derivative(expected_over_states(bound, objective.num_samples), BIT_WEIGHTS)
    found = by_name(vae, estimates(vae, num=30, size=4000))
    assert_unbiased(found, wanted, precision=0.03)


# Noise.


def spread(objective, weights, size=500):
    found = estimates(scalar_vae(objective, weights), num=20, size=size)
    return found[:, :2].std(axis=0).mean()


def exact_weights():
    """The weights at which q(z|x) is p(z|x)."""
    precision = 1 + WEIGHTS[2] ** 2 / LIKELIHOOD_SCALE**2
    scale = precision**-0.5
    loc = WEIGHTS[2] / LIKELIHOOD_SCALE**2 / precision
    return np.array([loc, np.log(np.expm1(scale)) / X, WEIGHTS[2]])


def test_sticking_the_landing_has_no_noise_at_the_exact_posterior():
    exact = exact_weights()
    for objective in (
        ELBO(num_samples=1, estimator="sticking_the_landing"),
        IWAE(5, "doubly_reparameterized"),
    ):
        assert spread(objective, exact) < 1e-6
    assert spread(ELBO(num_samples=1), exact) > 1e-2
    assert spread(IWAE(5), exact) > 1e-3


def test_doubly_reparameterized_noise_stays_below_the_signal():
    """Its ratio to the plain estimator's falls as S grows, as Tucker et al. (2019) show."""
    ratios = [
        spread(IWAE(num, "doubly_reparameterized"), WEIGHTS) / spread(IWAE(num), WEIGHTS)
        for num in (4, 64)
    ]
    assert ratios[0] < 1.0
    assert ratios[1] < 0.5 * ratios[0]


@pytest.mark.long
def test_the_baseline_lowers_the_noise_of_the_score_function():
    class WithoutBaseline(IWAE):
        def coefficients(self, log_weights):
            slope = self.slope(log_weights)
            bound = tf.broadcast_to(self.bound(log_weights), tf.shape(log_weights))
            return objectives.Coefficients(slope, score=bound - slope)

    spreads = [
        by_name(vae, estimates(vae, num=20, size=500))[:, :2].std(axis=0).mean()
        for vae in (
            bits_vae(IWAE(5, "score_function")),
            bits_vae(WithoutBaseline(5, "score_function")),
        )
    ]
    assert spreads[0] < 0.5 * spreads[1]


# Models whose evidence is known.

FACTOR_SCALES = [0.5, 0.7, 0.9, 1.1, 1.3]


def test_bounds_bracket_the_evidence_and_close_in():
    """Averages over many sets of draws, in the order of theory; log p(x) in closed form."""
    evidence = stats.norm.logpdf(X, 0, np.hypot(WIDE[2], LIKELIHOOD_SCALE))
    rows = np.full((4000, 1), X, "float32")
    log_weights = scalar_vae(ELBO(), WIDE).log_weights(rows, 1000, seed=0)

    def average(objective, num):
        """The mean of the bounds of `num` draws, and its standard error."""
        sets = log_weights[: 1000 // num * num].reshape(num, -1)
        bounds = objective.bound(sets).numpy()
        return bounds.mean(), bounds.std() / np.sqrt(len(bounds))

    elbo, elbo_error = average(ELBO(), 1)
    loc, scale = WIDE[0] * X, np.log1p(np.exp(WIDE[1] * X))
    truth = np.linspace(-12, 12, 20_001)
    kl = np.trapezoid(
        stats.norm.pdf(truth, loc, scale)
        * (stats.norm.logpdf(truth, loc, scale) - densities_of_truth(truth)),
        truth,
    )
    assert elbo == pytest.approx(evidence - kl, abs=4 * elbo_error)
    lower = [elbo] + [average(IWAE(num), num)[0] for num in (2, 10, 100, 1000)]
    assert (np.diff([*lower, evidence + 0.001]) > 0).all()
    assert evidence - lower[-1] < 0.01 * (evidence - lower[0])
    upper = [average(CUBO(order, 1000), 1000)[0] for order in (2.0, 3.0)]
    assert evidence < upper[0] < upper[1]
    for order, found in zip((2.0, 3.0), upper, strict=True):
        assert found == pytest.approx(cubo(order)(WIDE), abs=0.01)


@pytest.mark.long
@pytest.mark.parametrize(
    ("objective", "posterior", "scales"),
    [
        (ELBO(), posteriors.FullRankNormal, 0.8),
        (ELBO(estimator="sticking_the_landing"), posteriors.DiagonalNormal, FACTOR_SCALES),
        (IWAE(5, "doubly_reparameterized"), posteriors.DiagonalNormal, FACTOR_SCALES),
    ],
    ids=["ELBO, PCA", "ELBO, factor analysis", "IWAE, factor analysis"],
)
def test_training_reaches_the_maximum_of_the_evidence(objective, posterior, scales, rng):
    """Probabilistic PCA: the maximum over W is a sum over the eigenvalues of the covariance.

    Factor analysis with given scales is the same for x / scales. A diagonal posterior is exact
    there for one rotation of W (Lucas et al., "Don't Blame the ELBO!", 2019).
    """
    size, latent_size, scales = 5, 2, np.broadcast_to(scales, 5)
    x = rng.normal(size=(1000, latent_size)) @ rng.normal(size=(latent_size, size))
    x = (x + scales * rng.normal(size=(1000, size))).astype("float32")
    x -= x.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(np.cov((x / scales).T, bias=True))[::-1]
    kept, rest = np.split(eigenvalues, [latent_size])
    constant = size * np.log(2 * np.pi) + latent_size + 2 * np.log(scales).sum()
    maximum = -0.5 * (constant + np.log(kept).sum() + rest.sum())
    vae = family.factor_analysis(size, latent_size, posterior=posterior, seed=0)
    linear, learned = vae.decoder.layers[:2]
    learned.set_weights([np.log(np.expm1(scales))])
    learned.trainable = False
    rate = keras.optimizers.schedules.CosineDecay(0.05, 1000)
    vae.compile(keras.optimizers.Adam(rate), objective=objective)
    vae.fit(x, batch_size=100, epochs=100, verbose=0)
    weight, bias = linear.get_weights()
    evidence = stats.multivariate_normal(bias, weight.T @ weight + np.diag(scales**2)).logpdf(x)
    assert maximum - 0.05 < evidence.mean() < maximum + 1e-4
    if isinstance(objective, ELBO):
        assert maximum - 0.05 < vae.elbo(x, 50, seed=0).mean() < maximum + 0.01


# In a VAE.


@pytest.fixture
def x(rng):
    return (rng.random((64, 6)) < 0.4).astype("float32")


def small_vae(posterior=None, prior=None):
    posterior = posterior or posteriors.DiagonalNormal(2)
    return VAE(
        prior or priors.StandardNormal(2),
        keras.Sequential([keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential([keras.layers.Dense(6), likelihoods.Bernoulli(6)]),
        seed=0,
    )


ALL = {
    "ELBO": lambda: ELBO(num_samples=2, estimator="sticking_the_landing", use_exact_kl=False),
    "free bits": lambda: ELBO(free_bits=0.3),
    "IWAE": lambda: IWAE(4, "doubly_reparameterized"),
    "Renyi": lambda: Renyi(0.5, 4),
    "CUBO": lambda: CUBO(3.0, 4, "score_function"),
    "FDivergence": lambda: FDivergence("amari_alpha", 4, alpha=0.3),
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(4, sleep=0.25),
}


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_history_reports_the_elbo_and_the_file_keeps_the_objective(name, x, tmp_path):
    objective = ALL[name]()
    vae = small_vae()
    vae.compile("adam", objective=objective, run_eagerly=True)
    history = vae.fit(x, epochs=2, validation_data=x, verbose=0).history
    terms = ("loss", "elbo", "nll", "kl", *objective.terms)
    assert list(history) == [*terms, *(f"val_{term}" for term in terms)]
    np.testing.assert_allclose(history["elbo"], -np.add(history["nll"], history["kl"]), rtol=1e-5)
    logs = vae.evaluate(x, verbose=0, return_dict=True)
    assert logs["elbo"] == pytest.approx(vae.elbo(x, 500, seed=0).mean(), abs=0.3)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    assert type(loaded.objective) is type(objective)
    assert loaded.objective.get_config() == objective.get_config()
    assert loaded.evaluate(x, verbose=0, return_dict=True) == logs


def test_the_loss_of_each_objective_is_its_bound(x):
    """That of one set of draws lies among those of many."""
    for name in ("IWAE", "Renyi", "CUBO", "FDivergence", "ReweightedWakeSleep"):
        vae, objective = small_vae(), ALL[name]()
        vae.compile("adam", objective=objective)
        vae.build((None, 6))
        bound = IWAE(4) if objective.terms else objective
        loss = vae.evaluate(x, verbose=0, batch_size=64, return_dict=True)["loss"]
        log_weights = vae.log_weights(x, 4000, seed=1).reshape(1000, 4, 64).swapaxes(0, 1)
        values = bound.bound(log_weights).numpy().mean(axis=1)  # a batch, one set of draws
        assert abs(loss + values.mean()) < 5 * values.std(), name


def test_upper_and_lower_bound_bracket_the_evidence(x):
    vae = small_vae()
    vae.compile(keras.optimizers.Adam(0.01), objective=CUBO(2.0, 200))
    history = vae.fit(np.tile(x, (10, 1)), epochs=5, verbose=0).history
    log_weights = vae.log_weights(x, 20_000, seed=0)
    evidence = special.logsumexp(log_weights, axis=0).mean() - np.log(20_000)
    assert vae.elbo(x, 500, seed=0).mean() < evidence
    logs = vae.evaluate(x, verbose=0, return_dict=True)
    assert -logs["loss"] < evidence + 0.01 < logs["upper_bound"] + 0.02
    assert history["upper_bound"][-1] > -history["loss"][-1]


def free_bits_loss(vae, x, bits):
    """By NumPy: nll + sum_d max(bits, mean_b KL_bd)."""
    vae.compile("sgd", objective=ELBO(free_bits=bits))
    logs = vae.evaluate(x, batch_size=len(x), verbose=0, return_dict=True)
    q = vae.posterior(x)
    loc, scale = q.mean().numpy().astype(float), q.stddev().numpy().astype(float)
    kl = 0.5 * (scale**2 + loc**2 - 1 - 2 * np.log(scale))
    return logs, kl.mean(axis=0), kl


def test_free_bits_are_free(x):
    vae = small_vae()
    vae.build((None, 6))
    kernel = vae.encoder.layers[0].get_weights()[0]
    vae.encoder.layers[0].set_weights([kernel, np.float32([3.0, 0.0, 0.5, 0.5])])
    logs, kl, each = free_bits_loss(vae, x, 0.0)
    above = int(np.argmax(kl))
    bits = 0.9 * kl[above]  # one dimension has more, the other less
    assert kl.min() < bits
    assert each[:, above].min() < bits < each[:, above].max()  # of the mean, not of each example
    logs, kl, _ = free_bits_loss(vae, x, bits)
    assert logs["kl"] == pytest.approx(kl.sum(), rel=1e-5)
    wanted = logs["nll"] + np.maximum(kl, bits).sum()
    assert logs["loss"] == pytest.approx(wanted, rel=1e-5)
    # The dimension below the bits has no gradient of its KL: the decoder does not see it, either.
    vae.decoder.layers[0].set_weights([np.zeros((2, 6)), np.zeros(6)])
    below = int(np.argmin(kl))
    vae.compile(keras.optimizers.SGD(1.0), objective=ELBO(free_bits=bits))
    before = vae.encoder.layers[0].get_weights()[1]
    vae.fit(x, batch_size=len(x), verbose=0)
    moved = np.abs(vae.encoder.layers[0].get_weights()[1] - before) > 1e-6
    assert not moved[below]
    assert not moved[2 + below]
    assert moved[1 - below]
    assert moved[2 + 1 - below]


def test_all_methods_work_with_bits_as_codes(x, tmp_path):
    vae = small_vae(DistributionLayer("Bernoulli", 2), priors.Prior("Bernoulli", 2, probs=0.3))
    vae.compile("adam", objective=IWAE(3, "score_function"), run_eagerly=True)
    vae.fit(x, verbose=0)
    assert vae.sample(5, seed=0).shape == vae.reconstruct(x[:5], seed=0).shape == (5, 6)
    assert vae.predict(x[:5], verbose=0).shape == (5, 6)
    states = np.array(list(itertools.product([0.0, 1.0], repeat=2)), "float32")
    log_q = vae.posterior(x).log_prob(states[:, None]).numpy()
    log_prior = stats.bernoulli.logpmf(states, 0.3).sum(axis=1)[:, None]
    log_likelihood = vae.likelihood(states[:, None]).log_prob(x[None]).numpy()
    wanted = (np.exp(log_q) * (log_likelihood + log_prior - log_q)).sum(axis=0)
    np.testing.assert_allclose(vae.elbo(x, 4000, seed=0), wanted, atol=0.1)
    assert vae.elbo(x, 4000, seed=0).mean() == pytest.approx(wanted.mean(), abs=0.01)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(loaded.elbo(x, 3, seed=0), vae.elbo(x, 3, seed=0))


def test_check_data_and_metrics_work_with_several_draws(x):
    vae = small_vae()
    vae.compile("adam", objective=IWAE(3), metrics=["mse"])
    history = vae.fit(x, sample_weight=np.linspace(0, 2, 64), verbose=0).history
    assert np.isfinite(history["mse"]).all()


# What does not go together is refused when the model is compiled.


@pytest.mark.parametrize("num_samples", [0, -1, 2.0, True, "3"])
def test_numbers_of_draws(num_samples):
    for make in (IWAE, lambda n: ELBO(num_samples=n), lambda n: Renyi(0.5, n), ReweightedWakeSleep):
        with pytest.raises((TypeError, ValueError), match="num_samples: got"):
            make(num_samples)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Renyi("1", 2), "alpha: got '1', wanted a finite number"),
        (lambda: Renyi(np.inf, 2), "alpha: got inf"),
        (lambda: Renyi(np.nan, 2), "alpha: got nan"),
        (lambda: Renyi(-1.0, 5, "reparameterized"), "misses all weights"),
        (lambda: Renyi(-1.0, 1), "num_samples: got 1, wanted at least 2"),
        (lambda: Renyi(0.5, 5, "sticking_the_landing"), "sticking the landing is biased"),
        (lambda: IWAE(5, "sticking_the_landing"), "wanted one of reparameterized, doubly"),
        (lambda: IWAE(1, "score_function"), "num_samples: got 1, wanted at least 2"),
        (lambda: IWAE(5, "vimco"), "estimator: got 'vimco', wanted one of"),
        (lambda: ELBO(estimator="doubly_reparameterized"), "that is 'sticking_the_landing'"),
        (lambda: ELBO(use_exact_kl=True, estimator="score_function"), "use_exact_kl: got True"),
        (lambda: ELBO(free_bits=1.0, estimator="score_function"), "free_bits: got 1.0"),
        (lambda: ELBO(free_bits=-1.0), "free_bits: got -1.0, wanted a number of nats >= 0"),
        (lambda: CUBO(1.0, 5), "order: got 1.0, wanted a finite number greater than 1"),
        (lambda: FDivergence("kl", 5), "discrepancy_fn: got 'kl', wanted the name"),
        (lambda: FDivergence("kl_forward", 5, alpha=1.0), "discrepancy_fn: tfp.vi.kl_forward"),
        (lambda: FDivergence("kl_forward", 5, "reparameterized"), "misses all weights"),
        (lambda: FDivergence("total_variation", 5, "doubly_reparameterized"), "has a kink"),
        (lambda: ReweightedWakeSleep(5, sleep=1.5), "sleep: got 1.5, wanted a number from 0 to 1"),
        (lambda: ELBO(-0.1), "kl_weight: got"),
        (lambda: ELBO(None), "kl_weight: got None"),
        (lambda: ELBO(tf.Variable(1.0)), "kl_weight: got a trainable"),
    ],
)
def test_bad_objectives(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_bad_pairs_of_objective_and_posterior():
    bits = small_vae(DistributionLayer("Bernoulli", 2), priors.Prior("Bernoulli", 2, probs=0.5))
    for objective in (ELBO(), IWAE(5), CUBO(2.0, 5), FDivergence("kl_forward", 5)):
        with pytest.raises(ValueError, match=r"reparameterized, and those .* 'score_function'"):
            bits.compile(objective=objective)
    vae = small_vae()
    with pytest.raises(ValueError, match="num_samples: got None, wanted how many"):
        vae.compile(objective=CUBO(2.0))
    mean_only = small_vae(posteriors.DiagonalNormal(2, convert_to_tensor_fn="mean"))
    with pytest.raises(ValueError, match="passes its mean on"):
        mean_only.compile(objective=IWAE())
    mean_only.compile(objective=IWAE(2))
    mean_only.compile(objective=ELBO())
    with pytest.raises(TypeError, match=r"objective: got 'IWAE', wanted .* objectives.IWAE"):
        vae.compile(objective="IWAE")
    full = small_vae(posteriors.FullRankNormal(2))
    full.compile(objective=ELBO(free_bits=1.0))
    with pytest.raises(ValueError, match="wanted two with independent dimensions"):
        full.fit(np.zeros((8, 6), "float32"), verbose=0)


def test_the_kl_is_not_counted_twice():
    from tfpvae import KLDivergenceRegularizer

    vae = small_vae()
    inner = posteriors.DiagonalNormal(2)
    vae.encoder = keras.Sequential([keras.layers.Dense(4), inner])
    inner.activity_regularizer = KLDivergenceRegularizer(priors.StandardNormal(2))
    with pytest.raises(ValueError, match="it would count twice"):
        vae.compile(objective=IWAE(5))
    add = tfp.layers.KLDivergenceAddLoss(tfd.Normal(0.0, 1.0))
    vae.encoder = keras.Sequential([keras.layers.Dense(4), add, posteriors.DiagonalNormal(2)])
    with pytest.raises(ValueError, match="it would count twice"):
        vae.compile()


def test_targets_cannot_be_dreamt(x):
    vae = small_vae()
    vae.compile(objective=ReweightedWakeSleep(2))
    with pytest.raises(ValueError, match=r"y: got targets .*ReweightedWakeSleep\(sleep=0\)"):
        vae.fit(x, 1 - x, verbose=0)
    vae.compile(objective=ReweightedWakeSleep(2, sleep=0))
    vae.fit(x, 1 - x, verbose=0)


# The weight of the KL.


def test_a_number_cannot_be_changed_in_vain():
    with pytest.raises(AttributeError):
        ELBO().kl_weight = 0.5  # It is compiled into the training step.


@pytest.mark.parametrize("weight", [0.5, tf.Variable(0.5, trainable=False)])
def test_config_round_trip(weight):
    config = json.loads(json.dumps(ELBO(weight, use_exact_kl=False).get_config()))
    again = ELBO.from_config(config)
    assert float(again.kl_weight) == 0.5
    assert isinstance(again.kl_weight, tf.Variable) == isinstance(weight, tf.Variable)
    assert again.use_exact_kl is False


def test_fit_warns_of_a_weight_that_is_not_one(x):
    vae = small_vae()
    for objective, message in (
        (ELBO(0.5), r"kl_weight = 0.5: the loss is not the negative ELBO, `elbo` in the history"),
        (ELBO(schedules.Linear(10)), "the weight takes 8 more steps to stay at 1"),
    ):
        vae.compile(objective=objective)
        with pytest.warns(UserWarning, match=message) as caught:
            vae.fit(x, batch_size=32, verbose=0)
        assert caught[0].filename == __file__
    vae.compile(objective=ELBO(schedules.Linear(2)))
    vae.fit(x, batch_size=32, verbose=0)  # no warning
