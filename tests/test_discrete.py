"""Discrete z: relaxed draws, all states, their gradients; against sums and quadratures in NumPy.

One model with one number as x is written down twice: in blocks, and in NumPy as functions of its
weights, whose derivatives are numerical.
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
    HierarchicalVAE,
    KLDivergenceRegularizer,
    discrete,
    distributions,
    likelihoods,
    marginal_likelihood,
    noise,
    objectives,
    posteriors,
    priors,
    schedules,
)

tfd = tfp.distributions
ELBO, IWAE = objectives.ELBO, objectives.IWAE
X, SCALE = 1.3, 0.7


def relaxed(temperature=0.5, **kwargs):
    return ELBO(estimator="relaxed", temperature=temperature, **kwargs)


class Model:
    """z of N classes each, or bits; logits of q are linear in x, the mean of x is linear in z."""

    def __init__(self, shape, bits=False):
        self.shape, self.bits, self.size = shape, bits, int(np.prod(shape))
        rng = np.random.default_rng(3)
        self.weights = np.round(rng.normal(size=3 * self.size), 2)
        states = [(0.0, 1.0)] * self.size if bits else [np.eye(shape[-1])] * int(shape[0])
        self.states = np.array([np.ravel(state) for state in itertools.product(*states)])

    def parts(self, weights):
        """Weights of the encoder, the decoder and the prior."""
        return np.split(np.asarray(weights), 3)

    def log_prob(self, logits, z):
        """Of the discrete distribution, for z `[..., size]`."""
        if self.bits:
            return (z * logits - np.logaddexp(0, logits)).sum(axis=-1)
        return (z * special.log_softmax(logits.reshape(self.shape), axis=-1).ravel()).sum(axis=-1)

    def log_likelihood(self, weights, z, x=X):
        return stats.norm.logpdf(x, z @ self.parts(weights)[1], SCALE)

    def densities(self, weights, x=X):
        """log q(z|x), log p(z), log p(x|z) at all states."""
        encoder, _, prior = self.parts(weights)
        return (
            self.log_prob(encoder * x, self.states),
            self.log_prob(prior, self.states),
            self.log_likelihood(weights, self.states, x),
        )

    def elbo(self, weights, kl_weight=1.0, x=X):
        log_q, log_p, log_likelihood = self.densities(weights, x)
        return np.exp(log_q) @ (log_likelihood + kl_weight * (log_p - log_q))

    def kl(self, weights):
        log_q, log_p, _ = self.densities(weights)
        return np.exp(log_q) @ (log_q - log_p)

    def log_evidence(self, weights, x=X):
        _, log_p, log_likelihood = self.densities(weights, x)
        return special.logsumexp(log_p + log_likelihood)

    def expected(self, weights, bound, num_samples):
        """The mean of a bound of the log weights of so many draws, over all their states."""
        log_q, log_p, log_likelihood = self.densities(weights)
        drawn = np.array([*itertools.product(range(len(self.states)), repeat=num_samples)]).T
        log_weights = (log_likelihood + log_p - log_q)[drawn]
        return np.exp(log_q[drawn].sum(axis=0)) @ bound(log_weights)

    def vae(self, objective, weights=None, **kwargs):
        posterior, prior = (
            (posteriors.Bernoulli(self.shape), priors.Bernoulli(self.shape))
            if self.bits
            else (posteriors.OneHotCategorical(self.shape), priors.OneHotCategorical(self.shape))
        )
        dense = keras.layers.Dense(self.size, use_bias=False)
        vae = VAE(
            prior,
            keras.Sequential([dense, posterior]),
            keras.Sequential(
                [
                    keras.layers.Flatten(),
                    keras.layers.Dense(1, use_bias=False),
                    likelihoods.Normal(1, scale=SCALE),
                ]
            ),
            seed=0,
        )
        vae.compile("sgd", objective=objective, **kwargs)
        vae.build((None, 1))
        encoder, decoder, prior = self.parts(self.weights if weights is None else weights)
        vae.encoder.set_weights([encoder[None]])
        vae.decoder.set_weights([decoder[:, None]])
        vae.prior.set_weights([prior])
        return vae


CLASSES, BITS = Model((2, 3)), Model((2,), bits=True)
MODELS = {"classes": CLASSES, "bits": BITS}
both = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def derivative(function, weights):
    steps = 1e-5 * np.eye(len(weights))
    return np.array([(function(weights + h) - function(weights - h)) / 2e-5 for h in steps])


def estimates(vae, num, size, parts=None):
    """Independent estimates `[num, P]` of the gradient of the negative loss by the weights."""
    batch = tf.fill([size, 1], np.float32(X))
    parts = parts or (vae.encoder, vae.decoder, vae.prior)
    weights = [part.trainable_weights[0] for part in parts]

    @tf.function(autograph=False)
    def gradient():
        with tf.GradientTape() as tape:
            loss, _, _ = vae.example_losses(batch, batch, training=True)
            loss = -tf.reduce_mean(loss)
        return tf.concat([tf.reshape(part, [-1]) for part in tape.gradient(loss, weights)], 0)

    return np.stack([gradient().numpy() for _ in range(num)])


def assert_unbiased(found, wanted, precision=0.03, bias=0.0):
    """Within 4.5 standard errors, which have to be small beside the gradient itself."""
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (error < precision * np.abs(wanted).max()).all(), error
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - wanted), 4.5 * error + 1e-4 + bias)


# All states.


@both
def test_states_are_all_there_and_each_once(model):
    q = model.vae(ELBO(estimator="enumerated")).posterior([[X]])
    num = discrete.num_states(q)
    states = discrete.states(q, tf.range(num), "float32").numpy()
    assert states.shape == (num, *model.shape)
    assert {tuple(row) for row in states.reshape(num, -1)} == {tuple(row) for row in model.states}
    assert num == len(model.states)


@both
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_enumerated_elbo_is_the_sum_written_out(model, kl_weight):
    """Its value, and its gradient, which has no noise."""
    vae = model.vae(ELBO(kl_weight, estimator="enumerated"))
    x = np.float32([[X], [-0.4], [0.2]])
    losses, terms, _ = vae.example_losses(tf.constant(x), tf.constant(x), training=True)
    wanted = [model.elbo(model.weights, kl_weight, value) for value in x[:, 0]]
    np.testing.assert_allclose(-losses, wanted, rtol=1e-5)
    exact = [model.elbo(model.weights, 1.0, value) for value in x[:, 0]]
    np.testing.assert_allclose(terms["elbo"], exact, rtol=1e-5)
    assert float(terms["kl"][0]) == pytest.approx(model.kl(model.weights), rel=1e-5)
    found = estimates(vae, 1, 2)[0]
    gradient = derivative(lambda weights: model.elbo(weights, kl_weight), model.weights)
    np.testing.assert_allclose(found, gradient, atol=1e-5, rtol=1e-4)
    if kl_weight == 1.0:  # Evaluation has no noise, either.
        logs = vae.evaluate(x, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(-np.mean(exact), rel=1e-5)


def test_enumerated_free_bits_are_those_of_each_variable():
    """No gradient from the KL of a variable that is below, of the others all."""
    model = BITS
    encoder, _, prior = model.parts(model.weights)
    pi, p = special.expit(encoder * X), special.expit(prior)
    kl = pi * np.log(pi / p) + (1 - pi) * np.log((1 - pi) / (1 - p))
    bits = kl.mean()
    vae = model.vae(ELBO(estimator="enumerated", free_bits=bits))
    found = estimates(vae, 1, 2)[0]
    largest = np.argmax(kl)

    def paid(weights):
        encoder, _, prior = model.parts(weights)
        pi, p = special.expit(encoder * X)[largest], special.expit(prior)[largest]
        nll = -np.exp(model.densities(weights)[0]) @ model.densities(weights)[2]
        return -nll - pi * np.log(pi / p) - (1 - pi) * np.log((1 - pi) / (1 - p))

    np.testing.assert_allclose(found, derivative(paid, model.weights), atol=1e-5, rtol=1e-4)


@both
def test_log_evidence_by_enumeration(model):
    vae = model.vae(ELBO(estimator="enumerated"))
    x = np.linspace(-2, 2, 7, dtype="float32")[:, None]
    result = vae.log_marginal_likelihood(x, method="enumeration")
    wanted = [model.log_evidence(model.weights, value) for value in x[:, 0].astype(float)]
    np.testing.assert_allclose(result.estimate, wanted, rtol=2e-6)
    assert result.num_samples == len(model.states)
    np.testing.assert_array_equal([*result.standard_error, *result.k_hat], 0.0)
    assert f"enumeration: 7 examples, all {len(model.states)} states" in str(result)
    assert (vae.elbo(x, 500, seed=0) < result.estimate).all()


def test_log_evidence_of_many_states_comes_in_pieces():
    """243 states are no multiple of those that are decoded at once."""
    model = Model((5, 3))
    assert len(model.states) % marginal_likelihood._STATES_AT_ONCE
    assert len(model.states) > marginal_likelihood._STATES_AT_ONCE
    vae = model.vae(ELBO(estimator="enumerated"))
    found = vae.log_marginal_likelihood([[X]], method="enumeration").estimate
    assert found == pytest.approx([model.log_evidence(model.weights)], rel=1e-6)
    importance = vae.log_marginal_likelihood([[X]], 5000, seed=0)
    assert abs(importance.estimate - found) < 4 * importance.standard_error


# Estimators without a bias.


def mean(log_weights):
    return log_weights.mean(axis=0)


def log_mean_exp(log_weights):
    return special.logsumexp(log_weights, axis=0) - np.log(len(log_weights))


UNBIASED = {
    "score function": (lambda: ELBO(num_samples=3, estimator="score_function"), mean, 1),
    "VIMCO": (lambda: IWAE(3, estimator="score_function"), log_mean_exp, 3),
}


@both
@pytest.mark.parametrize("name", UNBIASED)
def test_score_functions_agree_with_enumeration(name, model):
    make, bound, num_samples = UNBIASED[name]
    wanted = derivative(lambda weights: model.expected(weights, bound, num_samples), model.weights)
    found = estimates(model.vae(make()), num=30, size=3000)
    assert_unbiased(found, wanted)


class OwnDrawInBaseline(IWAE):
    """A baseline that knows its own draw: biased."""

    def coefficients(self, log_weights):
        slope = self.slope(log_weights)
        baseline = tf.reduce_mean(log_weights, axis=0)
        return objectives.Coefficients(slope, score=0.5 * (log_weights - baseline) * slope - slope)


class TwiceTheScore(ELBO):
    def coefficients(self, log_weights):
        slope, _, score = super().coefficients(log_weights)
        return objectives.Coefficients(slope, score=2 * score)


@pytest.mark.parametrize(
    ("objective", "bound", "num_samples"),
    [
        (OwnDrawInBaseline(3, estimator="score_function"), log_mean_exp, 3),
        (TwiceTheScore(num_samples=3, estimator="score_function"), mean, 1),
    ],
    ids=["baseline", "scale"],
)
def test_a_wrong_baseline_or_scale_is_seen(objective, bound, num_samples):
    wanted = derivative(lambda weights: BITS.expected(weights, bound, num_samples), BITS.weights)
    found = estimates(BITS.vae(objective), num=30, size=3000)
    with pytest.raises(AssertionError):
        assert_unbiased(found, wanted)


# Relaxed draws. The noise of two bits is integrated over a grid.


def logistic_noise(num_bits, num_nodes):
    """The noise of some bits on a grid, `[G, num_bits]`, and its probabilities `[G]`."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    u = (nodes + 1) / 2
    # Nodes crowd at both ends, where the noise is large.
    u, du = u**2 * (3 - 2 * u), 6 * u * (1 - u) * weights / 2
    noise_ = np.array([*itertools.product(special.logit(u), repeat=num_bits)])
    return noise_, np.prod([*itertools.product(du, repeat=num_bits)], axis=1)


def noisy(temperature, encoder):
    """The y of two bits on a grid of their noise."""
    noise_, probability = logistic_noise(2, 100)
    return (encoder * X + noise_) / temperature, probability


def log_logistic(y, logits, temperature):
    """Of the relaxed bits, in terms of y."""
    return stats.logistic.logpdf(y, logits / temperature, 1 / temperature).sum(axis=-1)


def relaxed_elbo(weights, temperature, prior_temperature=None, kl_weight=1.0):
    encoder, _, prior = BITS.parts(weights)
    y, probability = noisy(temperature, encoder)
    value = BITS.log_likelihood(weights, special.expit(y))
    if prior_temperature is None:
        return probability @ value - kl_weight * BITS.kl(weights)
    ratio = log_logistic(y, encoder * X, temperature) - log_logistic(y, prior, prior_temperature)
    return probability @ (value - kl_weight * ratio)


@pytest.mark.parametrize("prior_temperature", [None, 0.8])
def test_relaxed_gradient_is_that_of_the_relaxed_elbo(prior_temperature):
    objective = relaxed(0.6, prior_temperature=prior_temperature, kl_weight=0.7, num_samples=2)
    wanted = derivative(
        lambda weights: relaxed_elbo(weights, 0.6, prior_temperature, 0.7), BITS.weights
    )
    found = estimates(BITS.vae(objective), num=30, size=3000)
    assert_unbiased(found, wanted)


@pytest.mark.long
def test_bias_of_relaxed_gradients_goes_with_the_temperature():
    """Of both models; and the estimates at a low temperature are as good as exact ones."""
    exact = derivative(BITS.elbo, BITS.weights)
    biases = [
        np.abs(derivative(lambda w, t=t: relaxed_elbo(w, t), BITS.weights) - exact).max()
        for t in (1.0, 0.5, 0.25)
    ]
    assert biases[0] > 0.1
    assert biases[0] > 1.5 * biases[1] > 2.2 * biases[2]
    for model in MODELS.values():
        exact = derivative(model.elbo, model.weights)
        bias = 0.02 * np.abs(exact).max()
        far, near = (estimates(model.vae(relaxed(t)), num=30, size=20_000) for t in (1.0, 0.02))
        assert_unbiased(near, exact, bias=bias)
        with pytest.raises(AssertionError):
            assert_unbiased(far, exact, bias=bias)


@both
def test_straight_through_is_hard_forward_and_soft_backward(model):
    vae = model.vae(relaxed(0.7))
    params = tf.Variable(np.float32([model.parts(model.weights)[0] * X] * 50))

    def sample(straight_through):
        with tf.GradientTape(persistent=True) as tape, noise.fixed(5):
            q = vae.encoder.layers[-1](params)
            objective = relaxed(0.7, straight_through=straight_through, num_samples=4)
            z = objective.sample(q, vae.prior(), tf.zeros([50, *model.shape]), True).z
            total = tf.reduce_sum(z * tf.range(1.0, 1.0 + z.shape[-1]))
        return z.numpy(), tape.gradient(total, params).numpy()

    (hard, slope), (soft, wanted) = sample(True), sample(False)
    assert set(np.unique(hard)) == {0.0, 1.0}
    assert ((soft > 0) & (soft < 1)).all()
    if model.bits:
        np.testing.assert_array_equal(hard, soft > 0.5)
    else:
        np.testing.assert_array_equal(hard.argmax(-1), soft.argmax(-1))
        np.testing.assert_array_equal(hard.sum(-1), 1.0)
    np.testing.assert_allclose(slope, wanted, rtol=1e-6)
    assert np.abs(wanted).max() > 0.1
    # Hard relaxed draws are draws of q, at any temperature.
    probs = vae.encoder.layers[-1](params[:1]).mean().numpy()[0]
    error = np.sqrt(probs * (1 - probs) / 20_000)
    big = tf.repeat(params[:1], 20_000, axis=0)
    q = discrete.Relaxation(vae.encoder.layers[-1](big), 0.7, straight_through=True)
    found = q.sample(1, seed=[1, 2])[0].numpy()[0].mean(axis=0)
    np.testing.assert_array_less(np.abs(found - probs), 4.5 * error)


def training_elbo(model, objective, num=30):
    """The mean of `elbo` in training, and its error."""
    vae, batch = model.vae(objective), tf.fill([4000, 1], np.float32(X))
    step = tf.function(lambda: vae.example_losses(batch, batch, training=True)[1]["elbo"])
    values = np.array([step().numpy().mean() for _ in range(num)])
    return values.mean(), values.std() / np.sqrt(num)


@pytest.mark.long
@both
def test_what_training_reports(model):
    """Straight through the ELBO; relaxed draws report the ELBO of what the decoder saw."""
    exact = model.elbo(model.weights)
    found, error = training_elbo(model, relaxed(1.0, straight_through=True))
    assert abs(found - exact) < 4 * error < 0.1
    found, error = training_elbo(model, relaxed(1.0))
    assert abs(found - exact) > 20 * error
    if model.bits:
        assert abs(found - relaxed_elbo(model.weights, 1.0)) < 4 * error
        found, error = training_elbo(model, relaxed(0.6, prior_temperature=0.8))
        assert abs(found - relaxed_elbo(model.weights, 0.6, 0.8)) < 4 * error


@pytest.mark.long
@both
def test_evaluation_is_of_the_discrete_model(model):
    """Whatever the relaxation in training."""
    x = np.full((20_000, 1), X, "float32")
    exact = model.elbo(model.weights)
    log_q, log_p, log_likelihood = model.densities(model.weights)
    tolerance = 4.5 * np.sqrt(np.exp(log_q) @ (log_likelihood**2) / len(x))
    assert tolerance < 0.5 * abs(exact - training_elbo(model, relaxed(1.0))[0])
    for objective in (relaxed(1.0), relaxed(1.0, prior_temperature=0.5)):
        vae = model.vae(objective)
        logs = vae.evaluate(x, batch_size=20_000, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(-exact, abs=tolerance)
        assert logs["kl"] == pytest.approx(model.kl(model.weights), rel=1e-5)
        assert logs["elbo"] == -logs["loss"]
    assert vae.elbo(x, seed=0).mean() == pytest.approx(exact, abs=tolerance)
    log_weights = log_likelihood + log_p - log_q
    found = vae.log_weights(x[:200], seed=0)  # Only those of states.
    nearest = np.abs(found[0][:, None] - log_weights).min(axis=1)
    assert nearest.max() < 1e-4


@pytest.mark.long
def test_straight_through_with_a_relaxed_kl_is_a_looser_bound():
    """KL(q_tau || p_tau') is at least that of the discrete distributions, which it is made from."""
    encoder, _, prior = BITS.parts(BITS.weights)
    for temperature, prior_temperature in ((0.6, 0.8), (1.0, 1.0), (0.3, 0.5)):
        y, probability = noisy(temperature, encoder)
        kl = probability @ (
            log_logistic(y, encoder * X, temperature) - log_logistic(y, prior, prior_temperature)
        )
        assert kl > BITS.kl(BITS.weights) + 1e-3
        found, error = training_elbo(
            BITS,
            relaxed(temperature, straight_through=True, prior_temperature=prior_temperature),
        )
        wanted = BITS.elbo(BITS.weights) + BITS.kl(BITS.weights) - kl
        assert abs(found - wanted) < 4 * error
        assert found < BITS.log_evidence(BITS.weights)


# Relaxed distributions.


def test_relaxed_bits_agree_with_tfp_and_integrate_to_one():
    for temperature, logit in ((0.5, -0.7), (2.0, 1.5), (1.0, 0.0)):
        p = distributions.RelaxedBernoulli(np.float64(temperature), np.float64(logit))
        stock = tfd.RelaxedBernoulli(np.float64(temperature), np.float64(logit))
        z = np.linspace(0.001, 0.999, 999)
        np.testing.assert_allclose(p.log_prob(z), stock.log_prob(z), rtol=1e-9, atol=1e-12)
        y = np.linspace(-60, 60, 60_001)
        z = special.expit(y)
        inside = z < 1 - 1e-9
        density = np.where(inside, p.prob(np.where(inside, z, 0.5)), 0) * z * special.expit(-y)
        assert np.trapezoid(density, y) == pytest.approx(1.0, abs=1e-4)


def test_relaxed_classes_agree_with_tfp_and_integrate_to_one():
    logits = np.array([0.3, -0.5, 1.0])
    for temperature in (0.7, 1.5):
        p = distributions.RelaxedOneHotCategorical(temperature, logits)
        stock = tfd.RelaxedOneHotCategorical(temperature, logits)
        z = np.random.default_rng(0).dirichlet(np.ones(3), 100)
        np.testing.assert_allclose(p.log_prob(z), stock.log_prob(z), rtol=1e-9)
        a, b = np.meshgrid(*[np.linspace(-40, 40, 1201)] * 2, indexing="ij")
        y = np.stack([a, b, np.zeros_like(a)], axis=-1)
        z = special.softmax(y, axis=-1)
        # dz_1 dz_2 = z_1 z_2 z_3 da db
        density = np.exp(stock_log_density(z, logits, temperature) + np.log(z).sum(axis=-1))
        step = 80 / 1200
        assert density.sum() * step**2 == pytest.approx(1.0, abs=1e-5)
        inside = (z > 1e-12).all(axis=-1)
        found = p.log_prob(z[inside][::97])
        wanted = stock_log_density(z[inside][::97], logits, temperature)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def stock_log_density(z, logits, temperature):
    """Maddison et al. (2017), equation 10."""
    size = z.shape[-1]
    log_terms = logits - temperature * np.log(z)
    return (
        special.gammaln(size)
        + (size - 1) * np.log(temperature)
        + (log_terms - np.log(z)).sum(axis=-1)
        - size * special.logsumexp(log_terms, axis=-1)
    )


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_relaxed_kl_is_right_where_z_is_rounded_to_a_corner(temperature):
    """log q - log p of the posterior's own draws, against the same in float64 by way of y."""
    logits, draws = np.float32([6.0, -3.0]), 4000
    q = posteriors.RelaxedBernoulli(2, temperature)(logits[None])
    p = priors.RelaxedBernoulli(2, 0.5, logits=0.0)()
    z = q.sample(draws, seed=[0, 1])
    corners = np.mean((z.numpy() == 0) | (z.numpy() == 1))
    assert (corners > 0.3) == (temperature == 0.05)
    found = (q.log_prob(z) - p.log_prob(z)).numpy()
    assert np.isfinite(found).all()
    y = (
        np.linspace(-2000, 2000, 4_000_001)
        if temperature == 0.05
        else np.linspace(-200, 200, 400_001)
    )
    kl = 0.0
    for logit in logits.astype(float):
        log_q = stats.logistic.logpdf(y, logit / temperature, 1 / temperature)
        log_p = stats.logistic.logpdf(y, 0.0, 2.0)
        kl += np.trapezoid(np.exp(log_q) * (log_q - log_p), y)
    error = found.std() / np.sqrt(draws)
    assert abs(found.mean() - kl) < 4 * error


def test_relaxed_classes_are_scored_by_what_they_were_made_from():
    logits = np.float32([[8.0, 0.0, -8.0]])
    q = posteriors.RelaxedOneHotCategorical(3, 0.05)(logits)
    p = priors.RelaxedOneHotCategorical(3, 0.05, logits=0.0)()
    z = q.sample(500, seed=[0, 1])
    assert np.mean(z.numpy() == 0) > 0.3
    found = (q.log_prob(z) - p.log_prob(z)).numpy()[:, 0]
    # The same noise, in float64.
    y = q.tensor_distribution.distribution.sample(500, seed=[0, 1]).numpy().astype(float)[:, 0]
    np.testing.assert_allclose(np.exp(y), z[:, 0], rtol=1e-4, atol=1e-37)

    def unnormalized(t):
        log_terms = t - 0.05 * y
        return log_terms.sum(axis=-1) - 3 * special.logsumexp(log_terms, axis=-1)

    wanted = unnormalized(logits[0].astype(float)) - unnormalized(np.zeros(3))
    assert np.abs(wanted).max() > 3
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    # A tensor of its own, on a corner, is scored at the nearest number inside.
    assert np.isfinite(q.log_prob(np.float32([[1.0, 0.0, 0.0]]))).all()
    value, slope = tfp.math.value_and_gradient(q.log_prob, tf.constant([[1.0, 0.0, 0.0]]))
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()


def test_means_of_relaxed_distributions_are_those_of_fixed_draws():
    """Near the mean by quadrature, and the same each time: `predict` decodes it."""
    q = posteriors.RelaxedBernoulli(3, 0.6)(np.float32([[-1.0, 0.3, 2.0]]))
    noise_, probability = logistic_noise(1, 100)
    exact = probability @ special.expit((noise_ + np.array([-1.0, 0.3, 2.0])) / 0.6)
    np.testing.assert_allclose(q.mean()[0], exact, atol=4.5 / 32)
    np.testing.assert_array_equal(q.mean(), q.mean())
    vae = relaxed_vae(ELBO(), bits=False)
    x = np.zeros((5, 4), "float32")
    np.testing.assert_array_equal(vae.predict(x, verbose=0), vae.predict(x, verbose=0))


def relaxed_vae(objective, bits=False, temperature=0.6, **kwargs):
    shape = (3,) if bits else (2, 3)
    blocks = (
        (posteriors.RelaxedBernoulli, priors.RelaxedBernoulli)
        if bits
        else (posteriors.RelaxedOneHotCategorical, priors.RelaxedOneHotCategorical)
    )
    posterior, prior = (block(shape, temperature) for block in blocks)
    vae = VAE(
        prior,
        keras.Sequential([keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential(
            [keras.layers.Flatten(), keras.layers.Dense(4), likelihoods.Normal(4, scale=1.0)]
        ),
        seed=0,
    )
    vae.compile("adam", objective=objective, **kwargs)
    return vae


@pytest.mark.long
@pytest.mark.parametrize("bits", [False, True], ids=["classes", "bits"])
def test_relaxed_models_have_every_objective(bits, rng):
    x = rng.normal(size=(32, 4)).astype("float32")
    vae = relaxed_vae(ELBO(), bits)
    for objective in (
        ELBO(),
        ELBO(num_samples=2, estimator="sticking_the_landing"),
        IWAE(3, "doubly_reparameterized"),
        objectives.CUBO(2.0, 4),
    ):
        vae.compile("adam", objective=objective)
        history = vae.fit(x, epochs=2, verbose=0).history
        assert np.isfinite([*history.values()]).all()
    evidence = vae.log_marginal_likelihood(x, 3000, seed=0)
    assert evidence.mean > vae.elbo(x, 100, seed=0).mean()
    annealed = vae.log_marginal_likelihood(x[:4], 8, method="ais", num_steps=100, seed=0)
    np.testing.assert_allclose(annealed.estimate, evidence.estimate[:4], atol=0.3)


# Layers of bits: p(z_2) p(z_1|z_2) p(x|z_1), q(z_1|x) q(z_2|z_1), two bits each.

LAYERED = np.round(np.random.default_rng(5).normal(size=16), 2)
PAIRS = np.array([*itertools.product([0.0, 1.0], repeat=4)])


def layered_vae(objective):
    def network(size, block, kernel):
        dense = keras.layers.Dense(size, use_bias=False, weights=[np.float32(kernel)])
        return keras.Sequential([keras.layers.Input((len(kernel),)), dense, block])

    encoder, upper, lower, decoder, top = layered_parts(LAYERED)
    vae = HierarchicalVAE(
        priors.Bernoulli(2, initial={"logits": top}),
        [network(2, posteriors.Bernoulli(2), encoder), network(2, posteriors.Bernoulli(2), upper)],
        [
            network(1, likelihoods.Normal(1, scale=SCALE), decoder),
            network(2, likelihoods.Bernoulli(2, convert_to_tensor_fn="sample"), lower),
        ],
        seed=0,
    )
    vae.compile("sgd", objective=objective)
    vae.build((None, 1))
    return vae


def layered_parts(weights):
    encoder, upper, lower, decoder, top = np.split(weights, [2, 6, 10, 12])
    return encoder[None], upper.reshape(2, 2), lower.reshape(2, 2), decoder[:, None], top[:2]


def layered_densities(weights, x=X):
    """log q and log p of the layers, each `[2, 16]`, and log p(x|z_1), at all states."""
    encoder, upper, lower, decoder, top = layered_parts(weights)
    first, second = PAIRS[:, :2], PAIRS[:, 2:]

    def log_bernoulli(z, logits):
        return (z * logits - np.logaddexp(0, logits)).sum(axis=1)

    log_q = log_bernoulli(first, encoder[0] * x), log_bernoulli(second, first @ upper)
    log_p = log_bernoulli(first, second @ lower), log_bernoulli(second, top)
    return np.array(log_q), np.array(log_p), stats.norm.logpdf(x, first @ decoder[:, 0], SCALE)


def layered_elbo(weights):
    log_q, log_p, log_likelihood = layered_densities(weights)
    return np.exp(log_q.sum(axis=0)) @ (log_likelihood + (log_p - log_q).sum(axis=0))


def layered_estimates(vae, num, size):
    hierarchy = vae._hierarchy
    parts = (*hierarchy.encoders, *hierarchy.decoders[::-1], hierarchy.prior)
    return estimates(vae, num, size, parts)


def test_layers_of_bits_are_enumerated():
    """Value, KL of each layer, gradient and log p(x), against the sum over all states."""
    vae = layered_vae(ELBO(estimator="enumerated"))
    x = tf.constant([[np.float32(X)]])
    losses, terms, _ = vae.example_losses(x, x, training=True)
    assert -float(losses[0]) == pytest.approx(layered_elbo(LAYERED), rel=1e-5)
    log_q, log_p, log_likelihood = layered_densities(LAYERED)
    for i in range(2):
        wanted = np.exp(log_q.sum(axis=0)) @ (log_q - log_p)[i]
        assert float(terms[f"kl_{i + 1}"][0]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    wanted = derivative(layered_elbo, LAYERED)[:14]
    np.testing.assert_allclose(layered_estimates(vae, 1, 2)[0], wanted, atol=1e-5, rtol=1e-4)
    exact = special.logsumexp(log_p.sum(axis=0) + log_likelihood)
    found = vae.log_marginal_likelihood(x.numpy(), method="enumeration")
    assert found.estimate == pytest.approx([exact], rel=1e-6)
    assert found.num_samples == 16


@pytest.mark.long
def test_layers_of_bits_are_relaxed():
    """The gradient is that of a quadrature over the noise of all four bits."""
    for straight_through in (False, True):
        objective = relaxed(
            0.6, prior_temperature=0.8, straight_through=straight_through, num_samples=2
        )
        vae = layered_vae(objective)
        batch = tf.fill([4000, 1], np.float32(X))
        _, terms, _ = vae.example_losses(batch, batch, training=True)
        assert set(terms) == {"elbo", "nll", "kl", "kl_1", "kl_2"}
        np.testing.assert_allclose(terms["kl"], terms["kl_1"] + terms["kl_2"], atol=1e-5)
        log_q, log_p, log_likelihood = layered_densities(LAYERED)
        discrete_kl = np.exp(log_q.sum(axis=0)) @ (log_q - log_p).sum(axis=0)
        assert terms["kl"].numpy().mean() > discrete_kl
        if straight_through:  # What goes forward are draws of q.
            nll = -np.exp(log_q.sum(axis=0)) @ log_likelihood
            error = terms["nll"].numpy().std() / np.sqrt(4000)
            assert abs(terms["nll"].numpy().mean() - nll) < 4.5 * error
    noise_, probability = logistic_noise(4, 20)

    def relaxed_elbo_of_layers(weights):
        encoder, upper, lower, decoder, top = layered_parts(weights)
        logits = encoder[0] * X
        y1 = (logits + noise_[:, :2]) / 0.6
        z1 = special.expit(y1)
        y2 = (z1 @ upper + noise_[:, 2:]) / 0.6
        log_q = log_logistic(y1, logits, 0.6) + log_logistic(y2, z1 @ upper, 0.6)
        log_p = log_logistic(y1, special.expit(y2) @ lower, 0.8) + log_logistic(y2, top, 0.8)
        log_likelihood = stats.norm.logpdf(X, z1 @ decoder[:, 0], SCALE)
        return probability @ (log_likelihood + log_p - log_q)

    wanted = derivative(relaxed_elbo_of_layers, LAYERED)[:14]
    vae = layered_vae(relaxed(0.6, prior_temperature=0.8))
    assert_unbiased(layered_estimates(vae, num=30, size=10_000), wanted)
    with pytest.raises(ValueError, match="prior_temperature: got None, wanted a positive number"):
        layered_vae(relaxed(0.5))


# Training.


def data(num=256, size=12, kinds=8, seed=0):
    """Noisy copies of a few patterns of bits."""
    rng = np.random.default_rng(seed)
    patterns = rng.random((kinds, size)) < 0.5
    return (
        rng.random((num, size)) < np.where(patterns[rng.integers(0, kinds, num)], 0.9, 0.1)
    ).astype("float32")


def small_vae(objective, bits=False, seed=0, **kwargs):
    keras.utils.set_random_seed(seed)
    posterior, prior = (
        (posteriors.Bernoulli(4), priors.Bernoulli(4))
        if bits
        else (posteriors.OneHotCategorical((2, 4)), priors.OneHotCategorical((2, 4)))
    )
    vae = VAE(
        prior,
        keras.Sequential(
            [
                keras.layers.Dense(24, "relu"),
                keras.layers.Dense(posterior.params_size),
                posterior,
            ]
        ),
        keras.Sequential(
            [
                keras.layers.Flatten(),
                keras.layers.Dense(24, "relu"),
                keras.layers.Dense(12),
                likelihoods.Bernoulli(12),
            ]
        ),
        seed=seed,
    )
    vae.compile(keras.optimizers.Adam(0.01), objective=objective, **kwargs)
    return vae


TRAINED = {
    "relaxed": lambda: relaxed(0.5),
    "straight through": lambda: relaxed(0.5, straight_through=True),
    "relaxed KL": lambda: relaxed(0.66, prior_temperature=0.5),
    "enumerated": lambda: ELBO(estimator="enumerated"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", TRAINED)
def test_the_fast_path_is_keras_one_step_after_the_other(name):
    x, logs = data(64), []
    for kwargs in ({}, {"run_eagerly": True}):
        vae = small_vae(TRAINED[name](), bits=name != "relaxed", **kwargs)
        logs.append(vae.fit(x, batch_size=32, epochs=1, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(*logs, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [name if name == "relaxed" else pytest.param(name, marks=pytest.mark.long) for name in TRAINED],
)
def test_xla_trains(name):
    vae = small_vae(TRAINED[name](), bits=name != "relaxed", jit_compile=True)
    losses = vae.fit(data(128), batch_size=32, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.long
def test_temperature_is_annealed_logged_saved_and_resumed(tmp_path):
    x = data(96)
    vae = small_vae(relaxed(schedules.Exponential(1.0, 0.25, num_steps=6), straight_through=True))
    history = vae.fit(x, batch_size=32, epochs=1, verbose=0, validation_data=x).history
    steps = 0.25 ** (np.arange(3) / 6)
    np.testing.assert_allclose(history["temperature"], steps.mean(), rtol=1e-5)
    np.testing.assert_allclose(history["val_temperature"], 0.5, rtol=1e-5)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    assert float(loaded.objective.temperature.value()) == pytest.approx(0.5)
    assert loaded.objective.get_config() == vae.objective.get_config()
    np.testing.assert_array_equal(*(m.log_weights(x, 3, seed=0) for m in (vae, loaded)))
    one, other = (
        m.fit(x, batch_size=32, epochs=2, shuffle=False, verbose=0).history for m in (vae, loaded)
    )
    assert one == other
    assert one["temperature"][-1] == pytest.approx(0.25, rel=1e-5)


def test_configs_are_json():
    for make in (*TRAINED.values(), lambda: relaxed(schedules.Exponential(1.0, 0.5, 10))):
        objective = make()
        config = json.loads(json.dumps(objective.get_config()))
        assert ELBO.from_config(config).get_config() == objective.get_config()


@pytest.mark.long
def test_metrics_see_the_draw_that_the_block_passes_on():
    """Not the plain mean over all states."""
    x = data(64)
    vae = small_vae(ELBO(estimator="enumerated"), metrics=["mse"])
    vae.fit(x, epochs=60, verbose=0)
    mse = vae.evaluate(x, verbose=0, return_dict=True)["mse"]
    means = vae.likelihood(vae.posterior(x).sample(seed=1)).mean().numpy()
    assert mse == pytest.approx(np.mean((means - x) ** 2), abs=0.02)
    assert mse < np.var(x) - 0.05


def test_relaxed_draws_are_as_many_as_wanted():
    x = tf.constant(data(8))
    for posterior, objective, wanted in (
        (posteriors.Bernoulli(4), relaxed(), 1),
        (posteriors.Bernoulli(4), relaxed(num_samples=3), 3),
        (posteriors.Bernoulli(4, num_samples=5), relaxed(), 5),
    ):
        vae = VAE(
            priors.Bernoulli(4),
            keras.Sequential([keras.layers.Dense(4), posterior]),
            keras.Sequential([keras.layers.Dense(12), likelihoods.Bernoulli(12)]),
            seed=0,
        )
        vae.compile(objective=objective)
        q, z = vae._encode(x, True)
        assert objective.sample(q, vae.prior(), z, True).z.shape == (wanted, 8, 4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
@pytest.mark.parametrize("name", TRAINED)
def test_precision(name, policy):
    keras.mixed_precision.set_global_policy(policy)
    vae = small_vae(TRAINED[name](), bits=name == "relaxed KL", run_eagerly=True)
    vae.build((None, 12))
    logs = vae.train_on_batch(data(16).astype("float64"), return_dict=True)
    assert np.isfinite([*logs.values()]).all()
    dtype = "float64" if policy == "float64" else "float32"
    assert vae.posterior(data(4)).sample().dtype == vae.prior().dtype == dtype


@pytest.mark.long
@pytest.mark.parametrize("bits", [False, True], ids=["classes", "bits"])
def test_all_estimators_come_to_the_elbo_of_enumeration(bits):
    """After the same training, within a nat."""
    x, steps = data(512, kinds=6), 150 * 8
    make = {
        "enumerated": lambda: ELBO(estimator="enumerated"),
        "relaxed": lambda: relaxed(schedules.Exponential(1.0, 0.4, steps)),
        "straight through": lambda: relaxed(
            schedules.Exponential(1.0, 0.4, steps), straight_through=True
        ),
        "relaxed KL": lambda: relaxed(0.66, prior_temperature=0.5),
        "score function": lambda: ELBO(num_samples=8, estimator="score_function"),
        "VIMCO": lambda: IWAE(8, estimator="score_function"),
    }
    elbo, evidence = {}, {}
    for name, objective in make.items():
        vae = small_vae(objective(), bits)
        vae.fit(x, batch_size=64, epochs=150, verbose=0)
        vae.compile(objective=ELBO(estimator="enumerated"))
        elbo[name] = -vae.evaluate(x, verbose=0, return_dict=True)["loss"]
        evidence[name] = vae.log_marginal_likelihood(x, method="enumeration").mean
        print(f"{name:20s}{elbo[name]:10.3f}{evidence[name]:10.3f}")
    marginal = x.mean(axis=0)
    independent = (x * np.log(marginal) + (1 - x) * np.log(1 - marginal)).sum(axis=1).mean()
    assert elbo["enumerated"] > independent + 1.0
    for name in make:
        assert elbo[name] <= evidence[name] + 1e-4
    for name in ("relaxed", "straight through", "score function", "VIMCO"):
        assert elbo[name] > elbo["enumerated"] - 1.0, name


# Bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO(estimator="relaxed"), "temperature: got None, wanted a positive number"),
        (lambda: relaxed(0.0), "temperature: got 0.0, wanted a positive number"),
        (lambda: relaxed(-1.0), "temperature: got -1.0, wanted a positive number"),
        (lambda: relaxed(np.nan), "temperature: got nan, wanted a positive number"),
        (lambda: relaxed("cold"), "temperature: got 'cold', wanted a positive number"),
        (lambda: relaxed(schedules.Linear(10)), "got Linear, which starts at 0, wanted a sched"),
        (lambda: relaxed(0.5, prior_temperature=0.0), "prior_temperature: got 0.0, wanted a pos"),
        (lambda: relaxed(0.5, prior_temperature=0.5, free_bits=1.0), "got it with free_bits"),
        (lambda: relaxed(0.5, prior_temperature=0.5, use_exact_kl=True), "with use_exact_kl=True"),
        (lambda: relaxed(0.5, use_exact_kl=False), "use_exact_kl: got False with the estimator"),
        (lambda: ELBO(temperature=0.5), "temperature: got it with .* 'reparameterized', wanted"),
        (lambda: ELBO(straight_through=True, estimator="enumerated"), "straight_through: got it"),
        (lambda: ELBO(prior_temperature=0.5), "prior_temperature: got it with"),
        (lambda: ELBO(num_samples=3, estimator="enumerated"), "num_samples: got 3 .* all states"),
        (lambda: IWAE(3, "relaxed"), "estimator: got 'relaxed', wanted one of"),
        (lambda: schedules.Exponential(0.0, 1.0, 5), "start: got 0.0, wanted a positive number"),
        (lambda: schedules.Exponential(1.0, -1.0, 5), "stop: got -1.0"),
        (lambda: schedules.Exponential(1.0, 0.5, 0), "num_steps: got 0"),
        (lambda: posteriors.RelaxedBernoulli(2, 0.0), "temperature: got 0.0, wanted a positive"),
        (lambda: priors.RelaxedOneHotCategorical(2, -1.0), "temperature: got -1.0, wanted a pos"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def mixture(component):
    return tfd.MixtureSameFamily(tfd.Categorical(logits=[0.0, 1.0]), component)


KINDS = [
    (tfd.Bernoulli(logits=[0.0]), True),
    (tfd.Independent(tfd.Poisson([1.0]), 1), True),
    (tfd.QuantizedDistribution(tfd.Normal(0.0, 1.0)), True),
    (mixture(tfd.Bernoulli(logits=[0.0, 1.0])), True),
    (tfd.Independent(tfd.BatchBroadcast(mixture(tfd.Poisson([1.0, 2.0])), [3]), 1), True),
    (tfd.Normal(0.0, 1.0), False),
    (tfd.RelaxedOneHotCategorical(0.5, logits=[0.0, 1.0]), False),
    (mixture(tfd.Normal([0.0, 1.0], 1.0)), False),
    (tfd.Independent(tfd.BatchBroadcast(mixture(tfd.Gamma([1.0, 2.0], 1.0)), [3]), 1), False),
    (
        tfd.Mixture(
            tfd.Categorical(logits=[0.0, 1.0]), [tfd.Normal(0.0, 1.0), tfd.Cauchy(0.0, 1.0)]
        ),
        False,
    ),
]


@pytest.mark.parametrize(("distribution", "wanted"), KINDS, ids=lambda value: str(value)[:40])
def test_kinds(distribution, wanted):
    assert discrete.is_discrete(distribution) is wanted


def pair(prior, posterior):
    return VAE(
        prior,
        keras.Sequential([keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential(
            [keras.layers.Flatten(), keras.layers.Dense(2), likelihoods.Normal(2, scale=1.0)]
        ),
        seed=0,
    )


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        (lambda: priors.Bernoulli(3), lambda: posteriors.RelaxedBernoulli(3, 0.5)),
        (
            lambda: priors.OneHotCategorical((2, 3)),
            lambda: posteriors.RelaxedOneHotCategorical((2, 3), 0.5),
        ),
        (
            lambda: priors.OneHotCategorical(3, logits=0.0),
            lambda: DistributionLayer("RelaxedOneHotCategorical", 3, temperature=0.5),
        ),
        (lambda: priors.RelaxedBernoulli(3, 0.5), lambda: posteriors.Bernoulli(3)),
        (lambda: priors.StandardNormal(3), lambda: posteriors.Bernoulli(3)),
    ],
)
def test_a_discrete_distribution_never_scores_continuous_z(prior, posterior):
    """Nor the other way round: in models, and in the regularizer of plain Keras models."""
    message = "prior and posterior differ in kind: .*(continuous|discrete), the prior"
    vae = pair(prior(), posterior())
    with pytest.raises(ValueError, match=message):
        vae.build((None, 2))
    with pytest.raises(ValueError, match=message):
        vae.fit(np.zeros((4, 2), "float32"), verbose=0)
    q = posterior()(tf.zeros([1, posterior().params_size]))
    with pytest.raises(ValueError, match=message):
        KLDivergenceRegularizer(prior()).divergence(q)


def test_estimators_say_which_posteriors_they_take():
    bits = pair(priors.Bernoulli(11), posteriors.Bernoulli(11))
    with pytest.raises(ValueError, match="posterior of 2048 states, wanted at most 1024"):
        bits.compile(objective=ELBO(estimator="enumerated"))
    with pytest.raises(ValueError, match=r"'relaxed' or 'enumerated' of ELBO"):
        bits.compile(objective=ELBO())
    normal = pair(priors.StandardNormal(2), posteriors.DiagonalNormal(2))
    for objective in (relaxed(), ELBO(estimator="enumerated")):
        with pytest.raises(ValueError, match=r"the posterior got .*Normal.* 'reparameterized'"):
            normal.compile(objective=objective)
    counts = pair(priors.Prior("Poisson", 2), DistributionLayer("Poisson", 2))
    with pytest.raises(ValueError, match=r"the posterior got .*Poisson.* 'score_function'"):
        counts.compile(objective=relaxed())
    mean_only = pair(priors.Bernoulli(2), posteriors.Bernoulli(2, convert_to_tensor_fn="mean"))
    mean_only.compile(objective=ELBO(estimator="enumerated"))
    with pytest.raises(ValueError, match="passes its mean on"):
        mean_only.compile(objective=relaxed())


def test_a_kl_without_closed_form_is_never_taken_at_relaxed_draws():
    mixture = priors.Prior(
        "MixtureSameFamily",
        2,
        mixture_distribution=tfd.Categorical(logits=[0.0, 0.0]),
        components_distribution=tfd.Independent(
            tfd.Bernoulli(logits=[[1.0, 2.0], [-1.0, 0.5]], dtype=tf.float32), 1
        ),
    )
    vae = pair(mixture, posteriors.Bernoulli(2))
    vae.compile(objective=relaxed())
    x = np.zeros((4, 2), "float32")
    with pytest.raises(ValueError, match="TFP has no closed form of KL"):
        vae.fit(x, verbose=0)
    vae.compile(objective=relaxed(prior_temperature=0.5))
    with pytest.raises(TypeError, match="prior_temperature: the prior cannot be relaxed: got Mix"):
        vae.fit(x, verbose=0)
    vae.compile(objective=ELBO(estimator="enumerated"))
    vae.fit(x, verbose=0)


def test_bad_enumerations_of_the_evidence():
    x = np.zeros((4, 2), "float32")
    bits = pair(priors.Bernoulli(21), posteriors.Bernoulli(21))
    with pytest.raises(ValueError, match="z with 2097152 states, wanted at most 1048576"):
        bits.log_marginal_likelihood(x, method="enumeration")
    with pytest.raises(ValueError, match="num_samples: got 5 with method='enumeration'"):
        bits.log_marginal_likelihood(x, 5, method="enumeration")
    with pytest.raises(ValueError, match="num_steps: got 5 with method='enumeration'"):
        bits.log_marginal_likelihood(x, method="enumeration", num_steps=5)
    with pytest.raises(TypeError, match="'enumeration' if there are few states"):
        bits.log_marginal_likelihood(x, method="ais")
    with pytest.raises(ValueError, match="wanted one of 'importance', 'ais', 'enumeration'"):
        bits.log_marginal_likelihood(x, method="exact")
    normal = pair(priors.StandardNormal(2), posteriors.DiagonalNormal(2))
    with pytest.raises(TypeError, match=r"prior: got .*Normal.*; use method='importance'"):
        normal.log_marginal_likelihood(x, method="enumeration")
