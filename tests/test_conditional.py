"""ConditionalVAE: against linear-Gaussian models with a known log p(x|y), and as a Keras model."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import special, stats

from tfpvae import (
    VAE,
    ConditionalVAE,
    diagnose,
    diagnostics,
    latent_space,
    likelihoods,
    local_posterior,
    marginal_likelihood,
    networks,
    objectives,
    posteriors,
    priors,
)

D, K, C, N = 4, 2, 3, 60
SOURCE = np.random.default_rng(0)
LABELS = SOURCE.integers(0, C, N)
VECTORS = SOURCE.normal(size=(N, C))
ONE_HOT = np.eye(C)[LABELS]


class LinearGaussian:
    """x = W z + V y + b + s e, z ~ N(M y, S): p(x|y) is a Gaussian, and so is p(z|x, y)."""

    def __init__(self, conditional_prior):
        rng = np.random.default_rng(1)
        self.conditional_prior = conditional_prior
        self.weight, self.shift = rng.normal(size=(D, K)), rng.normal(size=(D, C))
        self.bias, self.scale = rng.normal(size=D), 0.7
        self.prior_gain, self.prior_scale = np.zeros((K, C)), np.ones(K)
        if conditional_prior:
            self.prior_gain, self.prior_scale = rng.normal(size=(K, C)), np.array([0.5, 1.3])
        self.prior_cov = np.diag(self.prior_scale**2)
        self.cov = self.weight @ self.prior_cov @ self.weight.T + self.scale**2 * np.eye(D)
        precision = np.linalg.inv(self.prior_cov) + self.weight.T @ self.weight / self.scale**2
        self.posterior_cov = np.linalg.inv(precision)
        self.gain = self.posterior_cov @ self.weight.T / self.scale**2

    def mean(self, y):
        return self.bias + y @ (self.shift + self.weight @ self.prior_gain).T

    def log_prob(self, x, y):
        return stats.multivariate_normal(np.zeros(D), self.cov).logpdf(x - self.mean(y))

    def posterior_mean(self, x, y):
        return y @ self.prior_gain.T + (x - self.mean(y)) @ self.gain.T

    def draw(self, y, rng):
        return rng.multivariate_normal(np.zeros(D), self.cov, len(y)) + self.mean(y)

    def cvae(self, num_classes=None, spoilt=0.0, likelihood=None, first=(), **posterior):
        """The model with its exact posterior as encoder, or with a mean that is off by `spoilt`."""
        prior = priors.StandardNormal(K)
        if self.conditional_prior:
            dense = keras.layers.Dense(2 * K)
            prior = keras.Sequential([dense, posteriors.DiagonalNormal(K)])
        block = posteriors.FullRankNormal(K, **posterior)
        likelihood = likelihood or likelihoods.Normal(D, scale=self.scale)
        encoder = keras.Sequential(
            [*first, networks.Join(), keras.layers.Dense(block.params_size), block]
        )
        decoder = keras.Sequential([networks.Join(), keras.layers.Dense(D), likelihood])
        cvae = ConditionalVAE(prior, encoder, decoder, num_classes, seed=0)
        cvae.compile(keras.optimizers.SGD(0.0))
        cvae.build([(None, D), (None, C)])
        tril = np.linalg.cholesky(self.posterior_cov).astype("float32")
        tril = tfp.bijectors.FillScaleTriL().inverse(tril)
        of_y = self.prior_gain.T - (self.gain @ (self.shift + self.weight @ self.prior_gain)).T
        kernel = np.zeros((D + C, 5))
        kernel[:, :K] = np.concatenate([self.gain.T, of_y])
        bias = np.concatenate([spoilt - self.gain @ self.bias, tril])
        encoder.layers[-2].set_weights([kernel, bias])
        decoder.layers[1].set_weights([np.concatenate([self.weight.T, self.shift.T]), self.bias])
        if self.conditional_prior:
            kernel = np.concatenate([self.prior_gain.T, np.zeros((C, K))], axis=1)
            dense.set_weights([kernel, np.r_[np.zeros(K), np.log(np.expm1(self.prior_scale))]])
        return cvae


class Case:
    """Data of a model whose encoder is exact, and of one whose posterior means are off."""

    def __init__(self, conditions, conditional_prior):
        self.exact = LinearGaussian(conditional_prior)
        self.y, num_classes = (LABELS, C) if conditions == "labels" else (VECTORS, None)
        self.numbers = ONE_HOT if conditions == "labels" else VECTORS
        self.x = self.exact.draw(self.numbers, np.random.default_rng(2)).astype("float32")
        self.data = self.x, self.y
        self.log_prob = self.exact.log_prob(self.x, self.numbers)
        self.cvae = self.exact.cvae(num_classes)
        self.off = np.array([0.4, -0.3])
        self.spoilt = self.exact.cvae(num_classes, spoilt=self.off)
        # KL(q(z|x, y) || p(z|x, y)) of Gaussians with one covariance.
        self.kl = 0.5 * self.off @ np.linalg.solve(self.exact.posterior_cov, self.off)


CASES = [
    (conditions, conditional_prior)
    for conditions in ("labels", "vectors")
    for conditional_prior in (False, True)
]


def name_of(case):
    conditions, conditional_prior = case
    return f"{conditions}, {'p(z|y)' if conditional_prior else 'p(z)'}"


SOME = [
    pytest.param(case, id=name_of(case), marks=[pytest.mark.long] * (case in CASES[1:3]))
    for case in CASES
]


@pytest.fixture(scope="module", params=SOME)
def case(request):
    return Case(*request.param)


@pytest.fixture(scope="module")
def labels():
    return Case("labels", conditional_prior=False)


@pytest.fixture(scope="module")
def hardest():
    return Case("vectors", conditional_prior=True)


# Numbers that are known exactly.


def test_the_exact_posterior_gives_log_p_exactly(case):
    """All weights are p(x|y), whatever z."""
    log_weights = case.cvae.log_weights(case.data, 5, seed=0)
    np.testing.assert_allclose(log_weights, np.tile(case.log_prob, (5, 1)), rtol=1e-4)
    found = case.cvae.log_marginal_likelihood(case.data, 50, seed=0)
    np.testing.assert_allclose(found.estimate, case.log_prob, rtol=1e-4)


def test_prior_posterior_and_likelihood(case):
    q, p = case.cvae.posterior(case.data), case.exact
    wanted = p.posterior_mean(case.x, case.numbers)
    np.testing.assert_allclose(q.mean(), wanted, atol=1e-5)
    np.testing.assert_allclose(q.covariance()[7], p.posterior_cov, rtol=1e-4)
    prior = case.cvae.prior(case.y)
    means = np.broadcast_to(prior.mean(), (N, K))
    np.testing.assert_allclose(means, case.numbers @ p.prior_gain.T, atol=1e-5)
    np.testing.assert_allclose(
        np.broadcast_to(prior.stddev(), (N, K)), np.tile(p.prior_scale, (N, 1)), rtol=1e-5
    )
    z = SOURCE.normal(size=(N, K))
    mean = z @ p.weight.T + case.numbers @ p.shift.T + p.bias
    np.testing.assert_allclose(case.cvae.likelihood(z, case.y).mean(), mean, atol=1e-5)
    mean = wanted @ p.weight.T + case.numbers @ p.shift.T + p.bias
    np.testing.assert_allclose(case.cvae.predict(case.data, verbose=0), mean, atol=1e-5)


def test_each_z_goes_with_each_y(case):
    z, p = SOURCE.normal(size=(5, K)), case.exact
    mean = (z @ p.weight.T)[:, None] + case.numbers[:7] @ p.shift.T + p.bias
    found = case.cvae.likelihood(z[:, None], case.y[:7])
    assert found.batch_shape == (5, 7)
    np.testing.assert_allclose(found.mean(), mean, atol=1e-5)
    np.testing.assert_allclose(case.cvae.likelihood(z, case.y[3:4]).mean(), mean[:, 3], atol=1e-5)
    np.testing.assert_allclose(case.cvae.likelihood(z[:1], case.y[:7]).mean(), mean[0], atol=1e-5)
    np.testing.assert_allclose(case.cvae.likelihood(z[0], case.y[:7]).mean(), mean[0], atol=1e-5)


def test_the_elbo_falls_short_by_the_kl_to_the_true_posterior(case):
    draws = 2000
    weights = case.spoilt.log_weights(case.data, draws, seed=1)
    wanted = case.log_prob - case.kl
    error = weights.std(axis=0) / np.sqrt(draws)
    assert (np.abs(weights.mean(axis=0) - wanted) < 4.5 * error).all()
    elbo = case.spoilt.elbo(case.data, draws, seed=2)
    spread = np.sqrt(np.trace(case.exact.weight @ case.exact.posterior_cov @ case.exact.weight.T))
    assert elbo.mean() == pytest.approx(wanted.mean(), abs=0.02 * (1 + spread))
    assert case.kl > 0.2


@pytest.mark.long
def test_importance_sampling_and_annealing_find_log_p(case):
    found = case.spoilt.log_marginal_likelihood(case.data, 4000, seed=0)
    assert found.mean == pytest.approx(case.log_prob.mean(), abs=4 * found.mean_standard_error)
    assert found.mean_standard_error < 0.01
    proposal = "prior" if isinstance(case.y[0], np.ndarray) else "posterior"
    found = case.spoilt.log_marginal_likelihood(
        case.data, 8, "ais", seed=0, num_steps=100, num_leapfrog_steps=3, proposal=proposal
    )
    assert found.mean == pytest.approx(case.log_prob.mean(), abs=4 * found.mean_standard_error)
    assert found.mean_standard_error < 0.05


def test_the_local_posterior_is_the_true_one(hardest):
    x, y = hardest.x[:20], hardest.y[:20]
    found = local_posterior(hardest.spoilt, (x, y), num_samples=100, seed=0, verbose=0)
    np.testing.assert_allclose(found.elbo, hardest.log_prob[:20], atol=0.02)
    wanted = hardest.exact.posterior_mean(x, y)
    np.testing.assert_allclose(found.posterior.mean(), wanted, atol=0.05)


def test_draws_have_the_moments_of_the_model(case):
    rows = np.repeat(case.y[:2], 20_000, axis=0)
    x = case.cvae.sample(rows, seed=3).reshape(2, -1, D)
    means = case.exact.mean(case.numbers[:2])
    error = np.sqrt(np.diag(case.exact.cov) / 20_000)
    assert (np.abs(x.mean(axis=1) - means) < 4.5 * error).all()
    for draws in x:
        np.testing.assert_allclose(np.cov(draws.T), case.exact.cov, atol=0.12)
    np.testing.assert_array_equal(x, case.cvae.sample(rows, seed=3).reshape(2, -1, D))


def nll_and_kl(case, mean):
    """The -log p(x|z, y) at z = mean, and the KL to the prior in closed form."""
    p = case.exact
    x = mean @ p.weight.T + case.numbers @ p.shift.T + p.bias
    nll = -stats.norm(x, p.scale).logpdf(case.x).sum(axis=1)
    away = mean - case.numbers @ p.prior_gain.T
    ratio = np.linalg.solve(p.prior_cov, p.posterior_cov)
    distance = np.sum(away @ np.linalg.inv(p.prior_cov) * away, axis=1)
    return nll, 0.5 * (np.trace(ratio) + distance - K - np.linalg.slogdet(ratio)[1])


def test_the_loss_is_the_negative_elbo(case):
    """With weights, each example's loss counts as often as they say."""
    cvae = case.exact.cvae(case.cvae.num_classes, convert_to_tensor_fn="mean")
    mean = case.exact.posterior_mean(case.x, case.numbers)
    nll, kl = nll_and_kl(case, mean)
    weight = SOURCE.random(N)
    for weights in (None, weight):
        times = np.ones(N) if weights is None else weight
        logs = cvae.evaluate(*case.data, sample_weight=weights, verbose=0, return_dict=True)
        wanted = {"nll": nll, "kl": kl, "loss": nll + kl, "elbo": -nll - kl}
        for name, values in wanted.items():
            assert logs[name] == pytest.approx(np.mean(times * values), rel=1e-4), name
        history = cvae.fit(*case.data, sample_weight=weights, verbose=0).history
        # Batches of 32 and 28 rows count by their rows.
        assert history["loss"][0] == pytest.approx(np.mean(times * (nll + kl)), rel=1e-4)


EXACT = {
    "ELBO": lambda: objectives.ELBO(use_exact_kl=False),
    "ELBO, sticking the landing": lambda: objectives.ELBO(
        use_exact_kl=False, estimator="sticking_the_landing"
    ),
    "ELBO, score function": lambda: objectives.ELBO(
        use_exact_kl=False, num_samples=3, estimator="score_function"
    ),
    "IWAE": lambda: objectives.IWAE(3),
    "IWAE, doubly reparameterized": lambda: objectives.IWAE(3, "doubly_reparameterized"),
    "Renyi": lambda: objectives.Renyi(0.5, 3),
    "CUBO": lambda: objectives.CUBO(2.0, 3),
    "FDivergence": lambda: objectives.FDivergence("kl_forward", 3),
    "wake-sleep": lambda: objectives.ReweightedWakeSleep(3),
}


QUICK = ("ELBO", "IWAE, doubly reparameterized")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK)) for name in EXACT]
)
def test_objectives_are_exact_where_the_posterior_is(name, hardest):
    """All bounds are log p(x|y) then, in training and in evaluation."""
    hardest.cvae.compile(keras.optimizers.SGD(0.0), objective=EXACT[name]())
    loss = hardest.cvae.fit(*hardest.data, verbose=0).history["loss"][0]
    assert loss == pytest.approx(-hardest.log_prob.mean(), rel=1e-4)
    loss = hardest.cvae.evaluate(*hardest.data, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(-hardest.log_prob.mean(), rel=1e-4)


def test_free_bits_see_the_prior_of_each_y(hardest):
    """KL_d of independent units: at the loc and scale that the networks give."""
    block = posteriors.DiagonalNormal(K, convert_to_tensor_fn="mean")
    cvae = ConditionalVAE(
        keras.Sequential([keras.layers.Dense(2 * K), posteriors.DiagonalNormal(K)]),
        keras.Sequential([networks.Join(), keras.layers.Dense(2 * K), block]),
        keras.Sequential(
            [networks.Join(), keras.layers.Dense(D), likelihoods.Normal(D, scale=1.0)]
        ),
    )
    cvae.compile("sgd", objective=objectives.ELBO(free_bits=0.9))
    logs = cvae.evaluate(*hardest.data, batch_size=N, verbose=0, return_dict=True)
    q, p = cvae.posterior(hardest.data), cvae.prior(hardest.y)
    (m, s), (n, t) = ((d.mean().numpy(), d.stddev().numpy()) for d in (q, p))
    kl = np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5
    assert logs["kl"] == pytest.approx(kl.sum(axis=1).mean(), rel=1e-4)
    wanted = np.maximum(kl.mean(axis=0), 0.9).sum()
    assert logs["loss"] - logs["nll"] == pytest.approx(wanted, rel=1e-4)


def test_the_model_uses_y(case):
    """With the y of others the same x are less likely, by what the closed form says."""
    order = np.random.default_rng(5).permutation(N)
    x, y = case.data
    found = case.cvae.elbo((x, y[order]), 200, seed=0)
    assert found.mean() < case.cvae.elbo((x, y), 200, seed=0).mean() - 0.3
    wanted = case.exact.log_prob(x, case.numbers[order])
    np.testing.assert_allclose(
        case.cvae.log_weights((x, y[order]), 3, seed=0), [wanted] * 3, rtol=1e-4
    )


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_training_finds_the_model(case):
    """From random weights to the log p(x|y) of new data; with shuffled y to log p(x) at best."""
    conditions, conditional_prior = case
    exact, rng = LinearGaussian(conditional_prior), np.random.default_rng(6)
    num_classes = C if conditions == "labels" else None
    y = rng.integers(0, C, 6000) if num_classes else rng.normal(size=(6000, C))
    numbers = np.eye(C)[y] if num_classes else y
    x = exact.draw(numbers, rng).astype("float32")
    # With seed 1 one unit of "vectors, p(z|y)" stays collapsed, a local optimum 0.09 nats lower.
    keras.utils.set_random_seed(2)
    prior = priors.StandardNormal(K)
    if conditional_prior:
        dense = keras.layers.Dense(2 * K)
        prior = keras.Sequential([dense, posteriors.DiagonalNormal(K)])
    block = posteriors.FullRankNormal(K)
    likelihood = likelihoods.Normal(D, scale=exact.scale)
    encoder = keras.Sequential([networks.Join(), keras.layers.Dense(block.params_size), block])
    decoder = keras.Sequential([networks.Join(), keras.layers.Dense(D), likelihood])

    def elbo(y_train):
        cvae = ConditionalVAE(prior, encoder, decoder, num_classes, seed=1)
        cvae.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, 2000)))
        cvae.fit(x[:4000], y_train, epochs=50, batch_size=100, verbose=0)
        return cvae.elbo((x[4000:], y[4000:]), 100, seed=0).mean()

    truth = exact.log_prob(x[4000:], numbers[4000:]).mean()
    found = elbo(y[:4000])
    assert truth - 0.05 < found < truth + 0.005
    each = np.eye(C) if num_classes else rng.normal(size=(2000, C))
    of_each = [exact.log_prob(x[4000:], np.broadcast_to(row, (2000, C))) for row in each]
    marginal = (special.logsumexp(of_each, axis=0) - np.log(len(each))).mean()
    assert marginal < truth - 0.2
    assert elbo(rng.permutation(y[:4000])) < marginal + 0.01


# z of finitely many states.


@pytest.mark.long
@pytest.mark.parametrize("conditional_prior", [False, True])
def test_classes_as_codes_are_summed_over(conditional_prior):
    """log p(x|y) = log sum_z p(z|y) p(x|z, y), by enumeration, and the exact ELBO."""
    states, rng = 5, np.random.default_rng(7)
    prior = priors.OneHotCategorical(states)
    if conditional_prior:
        block = posteriors.OneHotCategorical(states)
        prior = keras.Sequential([keras.layers.Dense(block.params_size), block])
    block = posteriors.OneHotCategorical(states)
    cvae = ConditionalVAE(
        prior,
        keras.Sequential([networks.Join(), keras.layers.Dense(block.params_size), block]),
        keras.Sequential([networks.Join(), keras.layers.Dense(D), likelihoods.Bernoulli(D)]),
        num_classes=C,
        seed=0,
    )
    cvae.compile("sgd", objective=objectives.ELBO(estimator="enumerated"))
    x = rng.integers(0, 2, (N, D)).astype("float32")
    cvae.build((None, D))
    for variable in cvae.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    weight, bias = cvae.decoder.layers[1].get_weights()
    logits = weight[:states][:, None] + weight[states:][LABELS] + bias  # [states, N, D]
    log_likelihood = -np.logaddexp(0, np.where(x == 1, -logits, logits)).sum(axis=-1)
    if conditional_prior:
        weight, bias = prior.layers[0].get_weights()
        log_prior = special.log_softmax(weight[LABELS] + bias, axis=1).T
    else:
        log_prior = special.log_softmax(prior.get_weights()[0])[:, None]
    wanted = special.logsumexp(log_prior + log_likelihood, axis=0)
    found = cvae.log_marginal_likelihood((x, LABELS), method="enumeration")
    np.testing.assert_allclose(found.estimate, wanted, rtol=1e-5)
    weight, bias = cvae.encoder.layers[1].get_weights()
    log_q = special.log_softmax(np.concatenate([x, ONE_HOT], axis=1) @ weight + bias, axis=1).T
    elbo = np.sum(np.exp(log_q) * (log_prior + log_likelihood - log_q), axis=0)
    for logs in (
        cvae.evaluate(x, LABELS, verbose=0, return_dict=True),
        {"loss": cvae.fit(x, LABELS, batch_size=N, verbose=0).history["loss"][0]},
    ):
        assert logs["loss"] == pytest.approx(-elbo.mean(), rel=1e-5)


# What is made of models.


def test_diagnosis_with_a_prior_of_each_y(hardest):
    """KL to p(z|y) in closed form; the codes of all against the mean of p(z|y), by brute force."""
    use = diagnostics.latents(hardest.cvae, hardest.data, seed=0, verbose=0)
    p, x, y = hardest.exact, hardest.x, hardest.numbers
    means = p.posterior_mean(x, y)
    kl = nll_and_kl(hardest, means)[1]
    assert use.kl == pytest.approx(kl.mean(), rel=1e-4)
    np.testing.assert_allclose(use.activity, means.var(axis=0), rtol=1e-4)
    rng, draws = np.random.default_rng(8), 400
    noise = rng.multivariate_normal(np.zeros(K), p.posterior_cov, (draws, N))
    z = means + noise  # [S, N, K]
    own = stats.multivariate_normal(np.zeros(K), p.posterior_cov).logpdf(noise)

    def mixture(centres, cov):
        log_probs = [stats.multivariate_normal(centre, cov).logpdf(z) for centre in centres]
        return special.logsumexp(log_probs, axis=0) - np.log(N)

    codes, prior = mixture(means, p.posterior_cov), mixture(y @ p.prior_gain.T, p.prior_cov)
    assert use.mutual_information == pytest.approx((own - codes).mean(), abs=0.06)
    assert use.aggregate_kl == pytest.approx((codes - prior).mean(), abs=0.06)
    assert use.aggregate_kl_lower <= use.aggregate_kl
    assert use.mutual_information_upper >= use.mutual_information


@pytest.mark.long
def test_diagnosis(case):
    x, y = case.data
    found = diagnose(case.spoilt, (x, y), 200, num_local=5, seed=0, verbose=0)
    assert found.elbo.mean() == pytest.approx((case.log_prob - case.kl).mean(), abs=0.1)
    assert found.gaps.amortization.mean() == pytest.approx(case.kl, abs=0.15)
    assert found.gaps.approximation.mean() == pytest.approx(0.0, abs=0.02)
    assert found.marginal_likelihood.mean == pytest.approx(case.log_prob.mean(), abs=0.05)
    assert found.prior_z.shape[1] == K
    wanted = (case.numbers @ case.exact.prior_gain.T).mean(axis=0)
    np.testing.assert_allclose(found.prior_z.mean(axis=0), wanted, atol=0.05)


@pytest.mark.long
def test_the_use_of_the_units_is_logged(labels):
    monitor = diagnostics.LatentMonitor(labels.data)
    history = labels.cvae.fit(*labels.data, epochs=1, verbose=0, callbacks=[monitor]).history
    assert history["active_units"] == [K]


def test_a_density_of_the_codes_takes_the_place_of_the_prior(labels):
    found = latent_space.fit_aggregate_posterior(labels.cvae, labels.data, num_components=1)
    x = labels.cvae.sample(np.zeros(20_000, int), seed=0, prior=found)
    p = labels.exact
    z = found().mean().numpy()
    wanted = p.weight @ z + p.shift[:, 0] + p.bias
    np.testing.assert_allclose(x.mean(axis=0), wanted, atol=0.06)


def test_what_is_missing_is_filled_in_given_y(hardest):
    """The conditional mean of a Gaussian, in closed form."""
    p, rng = hardest.exact, np.random.default_rng(9)
    scored = likelihoods.Masked(likelihoods.Normal(D, scale=p.scale))
    cvae = p.cvae(likelihood=scored)
    # An encoder that does not look at x draws from p(z|y).
    kernel = np.zeros((D + C, 5))
    kernel[D:, :K] = p.prior_gain.T
    tril = tfp.bijectors.FillScaleTriL().inverse(np.diag(p.prior_scale).astype("float32"))
    cvae.encoder.layers[-2].set_weights([kernel, np.r_[np.zeros(K), tril]])
    cvae.encoder = keras.Sequential([_FillBoth(), *cvae.encoder.layers])
    x = np.where(rng.random((N, D)) < 0.3, np.nan, hardest.x).astype("float32")
    x[:, 0] = hardest.x[:, 0]
    found = cvae.impute((x, hardest.y), 20_000, seed=0)
    mean = p.mean(hardest.numbers)
    errors = []
    for row, centre, filled in zip(x, mean, found, strict=True):
        gap = np.isnan(row)
        np.testing.assert_array_equal(filled[~gap], row[~gap])
        if gap.any():
            gain = p.cov[np.ix_(gap, ~gap)] @ np.linalg.inv(p.cov[np.ix_(~gap, ~gap)])
            errors.append(filled[gap] - centre[gap] - gain @ (row - centre)[~gap])
    assert len(errors) > 20
    assert np.abs(np.concatenate(errors)).max() < 0.1
    draws = cvae.impute((x, hardest.y), 100, num_draws=2, seed=0)
    assert draws.shape == (2, N, D)


@keras.saving.register_keras_serializable("tests.conditional")
class _FillBoth(keras.layers.Layer):
    """Zeros for what is missing of x, with y as it is."""

    def call(self, inputs):
        x, y = inputs
        return [networks.FillMissing()(x), y]


# Training.


class OwnLoop(ConditionalVAE):
    """Runs in Keras's own loop."""

    def train_step(self, data):
        return super().train_step(data)

    def test_step(self, data):
        return super().test_step(data)


def build(cls=ConditionalVAE, *, num_classes=C, prior=None, draws=False, optimizer=None, **kwargs):
    posterior = posteriors.DiagonalNormal(K, convert_to_tensor_fn="sample" if draws else "mean")
    cvae = cls(
        prior or priors.Normal(K),
        keras.Sequential([networks.Join(), keras.layers.Dense(2 * K), posterior]),
        keras.Sequential([networks.Join(), keras.layers.Dense(D), likelihoods.Bernoulli(D)]),
        num_classes=num_classes,
        seed=0,
    )
    cvae.compile(optimizer or keras.optimizers.SGD(0.05, clipnorm=1.0), **kwargs)
    return cvae


def prior_network():
    return keras.Sequential([keras.layers.Dense(2 * K), posteriors.DiagonalNormal(K)])


X = SOURCE.integers(0, 2, (N, D)).astype("float32")
WEIGHT = SOURCE.random(N).astype("float32")
DATA = {
    "arrays": lambda y: {"x": X, "y": y, "validation_data": (X[:20], y[:20])},
    "weights": lambda y: {"x": X, "y": y, "sample_weight": WEIGHT},
    "dataset": lambda y: {"x": tf.data.Dataset.from_tensor_slices((X, y)).batch(16)},
    "weighted dataset": lambda y: {
        "x": tf.data.Dataset.from_tensor_slices((X, y, WEIGHT)).batch(16)
    },
}
WAYS = {
    "keras": lambda **kwargs: build(OwnLoop, **kwargs),
    "program": build,
    "xla": lambda **kwargs: build(jit_compile=True, **kwargs),
    "eager": lambda **kwargs: build(run_eagerly=True, **kwargs),
}


@functools.cache
def shared(way, num_classes):
    """A model with a prior p(z|y), and its first weights: to trace one anew takes a second."""
    keras.utils.set_random_seed(0)
    cvae = WAYS[way](num_classes=num_classes, prior=prior_network())
    cvae.build([(None, D), (None, C)])
    return cvae, cvae.get_weights()


@pytest.mark.long
@pytest.mark.parametrize(
    ("data", "y"),
    [
        pytest.param("arrays", LABELS, id="arrays"),
        pytest.param("weights", LABELS, id="weights"),
        pytest.param("dataset", VECTORS, id="dataset"),
        pytest.param("weighted dataset", LABELS, id="weighted dataset"),
    ],
)
def test_losses_are_those_of_keras(data, y):
    """In our programs, by XLA, in Keras's loop and eagerly."""
    histories = {}
    for way in WAYS:
        cvae, weights = shared(way, C if y.ndim == 1 else None)
        cvae.set_weights(weights)
        histories[way] = cvae.fit(**DATA[data](y), epochs=2, shuffle=False, verbose=0).history
    wanted = histories["keras"]
    assert wanted["loss"][1] < wanted["loss"][0]
    for way, history in histories.items():
        assert set(history) == set(wanted)
        for name, values in wanted.items():
            assert history[name] == pytest.approx(values, rel=1e-5), (way, name)


def test_one_seed_is_one_run():
    histories = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        cvae = build(draws=True)
        histories.append(cvae.fit(X, LABELS, epochs=2, verbose=0).history)
    assert histories[0] == histories[1]


def test_streams_of_other_kinds():
    def batches():
        yield from ((X[i : i + 20], LABELS[i : i + 20]) for i in range(0, N, 20))

    cvae = build()
    history = cvae.fit(batches(), validation_data=batches(), verbose=0).history
    assert np.isfinite(history["val_loss"]).all()
    predicted = cvae.predict(tf.data.Dataset.from_tensor_slices((X, LABELS)).batch(7), verbose=0)
    np.testing.assert_allclose(predicted, cvae.predict((X, LABELS), verbose=0), rtol=1e-5)


def test_labels_come_in_several_forms():
    cvae = build()
    wanted = cvae.elbo((X, LABELS), seed=0)
    for y in (LABELS.astype("uint8"), LABELS.astype("float32"), ONE_HOT, list(LABELS)):
        np.testing.assert_array_equal(cvae.elbo((X, y), seed=0), wanted)
        np.testing.assert_array_equal(cvae.sample(y, seed=0), cvae.sample(LABELS, seed=0))
    np.testing.assert_array_equal(cvae.elbo([X, LABELS], seed=0), wanted)
    np.testing.assert_array_equal(
        cvae((X, LABELS)).mean(), cvae([tf.constant(X), tf.constant(LABELS)]).mean()
    )


def test_bytes_are_preprocessed():
    x = (255 * X).astype("uint8")
    posterior = posteriors.DiagonalNormal(K, convert_to_tensor_fn="mean")
    cvae = ConditionalVAE(
        priors.StandardNormal(K),
        keras.Sequential([networks.Join(), keras.layers.Dense(2 * K), posterior]),
        keras.Sequential([networks.Join(), keras.layers.Dense(D), likelihoods.Bernoulli(D)]),
        num_classes=C,
        seed=0,
        preprocessing=keras.layers.Rescaling(1 / 255),
    )
    cvae.compile("sgd")
    loss = cvae.evaluate(x, LABELS, verbose=0)
    plain = ConditionalVAE(cvae.prior, cvae.encoder, cvae.decoder, C, seed=0)
    plain.compile("sgd")
    assert loss == pytest.approx(plain.evaluate(X, LABELS, verbose=0), rel=1e-5)


def test_half_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    cvae = build(prior=prior_network(), draws=True)
    history = cvae.fit(X, LABELS, verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert cvae.elbo((X, LABELS), seed=0).dtype == np.float32
    assert cvae.prior(LABELS).dtype == tf.float32


def test_images_with_convolutions_and_functional_networks():
    x = SOURCE.integers(0, 2, (8, 8, 8, 1)).astype("float32")
    q, p = posteriors.DiagonalNormal(K), likelihoods.Bernoulli((8, 8, 1))
    image, y = keras.Input((8, 8, 1)), keras.Input((C,))
    h = networks.conv_encoder((8, 8, 1 + C), q.params_size)(networks.Join()([image, y]))
    decoder = keras.Sequential([networks.Join(), networks.conv_decoder(K + C, (8, 8, 1)), p])
    cvae = ConditionalVAE(
        priors.StandardNormal(K), keras.Model([image, y], q(h)), decoder, num_classes=C, seed=0
    )
    cvae.compile("adam")
    assert np.isfinite(cvae.fit(x, LABELS[:8], verbose=0).history["loss"][0])
    assert cvae.sample([0, 1, 2], seed=0).shape == (3, 8, 8, 1)
    assert cvae.likelihood(np.zeros((4, 1, K)), [0, 1]).mean().shape == (4, 2, 8, 8, 1)


def test_images_as_conditions():
    """The upper half of an image given the lower one, as pixels of their own channel."""
    x, y = SOURCE.integers(0, 2, (2, 10, 4, 4, 1)).astype("float32")
    q, p = posteriors.DiagonalNormal(K), likelihoods.Bernoulli((4, 4, 1))
    flat = [keras.layers.Flatten(), keras.layers.Dense(q.params_size), q]
    cvae = ConditionalVAE(
        priors.StandardNormal(K),
        keras.Sequential([networks.Join(), *flat]),
        keras.Sequential([networks.Join(flatten=True), keras.layers.Dense(p.params_size), p]),
        seed=0,
    )
    cvae.compile("adam")
    assert np.isfinite(cvae.fit(x, y, verbose=0).history["loss"][0])
    assert cvae.log_weights((x, y), 3, seed=0).shape == (3, 10)


# Files.


@pytest.mark.parametrize(
    ("num_classes", "network"),
    [
        (C, True),
        pytest.param(None, False, marks=pytest.mark.long),
        pytest.param(C, False, marks=pytest.mark.long),
        pytest.param(None, True, marks=pytest.mark.long),
    ],
)
def test_saved_and_loaded(num_classes, network, tmp_path):
    y = VECTORS if num_classes is None else LABELS
    prior = prior_network() if network else None
    cvae = build(num_classes=num_classes, prior=prior, draws=True, optimizer="adam")
    cvae.fit(X, y, verbose=0)
    cvae.save(tmp_path / "model.keras")
    json.dumps(cvae.get_config())
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is ConditionalVAE
    assert len(loaded.trainable_variables) == (6 if network else 5)
    np.testing.assert_array_equal(loaded.elbo((X, y), 3, seed=0), cvae.elbo((X, y), 3, seed=0))
    np.testing.assert_array_equal(loaded.sample(y, seed=0), cvae.sample(y, seed=0))
    np.testing.assert_array_equal(loaded.prior(y).mean(), cvae.prior(y).mean())
    histories = [
        model.fit(X, y, epochs=2, verbose=0, shuffle=False).history for model in (loaded, cvae)
    ]
    assert histories[0] == histories[1]


# What is refused.

BAD = {
    "no y": (lambda x: (x, None), TypeError, r"y: got None with x, wanted \(x, y\)"),
    "too few": (lambda x: (x, LABELS[:-1]), ValueError, r"y: got shape \(59,\), wanted 60 rows"),
    "negative": (lambda x: (x, LABELS - 1), ValueError, "y: got the label -1, wanted .* 0 to 2"),
    "from 1": (lambda x: (x, LABELS + 1), ValueError, "y: got the label 3, wanted whole"),
    "half": (lambda x: (x, LABELS + 0.5), ValueError, r"y: got the label \d.5, wanted whole"),
    "NaN": (lambda x: (x, np.where(LABELS, LABELS, np.nan)), ValueError, "y: got NaN"),
    "words": (lambda x: (x, np.array(["a"] * N)), TypeError, "y: got strings"),
    "columns": (lambda x: (x, VECTORS[:, :2]), ValueError, r"wanted \(N, 3\) or \(N,\), labels"),
    "one column": (
        lambda x: (x, LABELS[:, None]),
        ValueError,
        r"wanted \(N, 3\) or \(N,\), labels",
    ),
    "no probabilities": (lambda x: (x, VECTORS), ValueError, "y: got rows that are no probab"),
    "NaN in x": (lambda x: (np.where(x, x, np.nan), LABELS), ValueError, "x: got NaN"),
    "support": (lambda x: (x - 1, LABELS), ValueError, "x: got values from -1 to 0"),
}


@pytest.fixture(scope="module")
def small():
    return build()


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_refused(name, small):
    make, error, message = BAD[name]
    x, y = make(X)
    with pytest.raises(error, match=message):
        small.fit(x, y, verbose=0)
    with pytest.raises(error, match=message):
        small.evaluate(x, y, verbose=0)
    with pytest.raises(error, match=message):
        small.elbo((x, y))
    if y is not None and name not in ("too few", "NaN in x", "support"):
        with pytest.raises(error, match=message):
            small.sample(y)
        with pytest.raises(error, match=message):
            small.likelihood(np.zeros((N, K)), y)


@pytest.mark.parametrize("method", ["elbo", "log_weights", "posterior", "predict", "reconstruct"])
def test_x_alone_is_refused(method, small):
    with pytest.raises(TypeError, match=r"x: got ndarray, wanted \(x, y\)"):
        getattr(small, method)(X)
    with pytest.raises(TypeError, match=r"y: got None with x"):
        small.fit(X, verbose=0)
    with pytest.raises(TypeError, match=r"validation_data\[1\]: got None"):
        small.fit(X, LABELS, validation_data=X, verbose=0)
    with pytest.raises(TypeError, match="y: got None"):
        small.likelihood(np.zeros((3, K)))


@pytest.mark.long
@pytest.mark.parametrize("wrong", [C, -1, 0.5])
def test_labels_that_are_none_in_the_middle_of_a_stream_do_not_train_unseen(wrong):
    y = LABELS.astype("float32")
    y[-1] = wrong
    data = tf.data.Dataset.from_tensor_slices((X, y)).batch(16)
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 4; .*; labels that are no class"):
        build().fit(data, verbose=0)


def test_vectors_are_checked():
    cvae = build(num_classes=None)
    with pytest.raises(ValueError, match=r"y: got shape \(60,\), wanted \(N, D\).*num_classes"):
        cvae.fit(X, LABELS, verbose=0)
    cvae.fit(X, VECTORS, verbose=0)
    with pytest.raises(ValueError, match=r"y: got shape \(60, 2\), wanted \(N, 3\)"):
        cvae.elbo((X, VECTORS[:, :2]))
    with pytest.raises(ValueError, match="y: got NaN"):
        cvae.elbo((X, np.where(VECTORS > 0, VECTORS, np.nan)))


def test_parts_that_do_not_fit_are_refused():
    cvae = build(num_classes=4)
    with pytest.raises(ValueError, match="prior and posterior differ in size"):
        build(prior=keras.Sequential([keras.layers.Dense(6), posteriors.DiagonalNormal(3)]))
    with pytest.raises(TypeError, match="prior: got a network that ends in a layer Dense"):
        build(prior=keras.Sequential([keras.layers.Dense(6)]))
    with pytest.raises(TypeError, match=r"prior: got .*, wanted a tf_keras layer or model"):
        build(prior="normal")
    with pytest.raises(ValueError, match="prior: got a VampPrior"):
        build(prior=priors.VampPrior(K, pseudo_inputs=X[:3]))
    for wrong, error in ((1, ValueError), (0, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="num_classes: got"):
            build(num_classes=wrong)
    with pytest.raises(ValueError, match=r"input_shape: got \(None, 4\), wanted a pair"):
        build(num_classes=None).build((None, D))
    with pytest.raises(TypeError, match="y: got None"):
        marginal_likelihood.bidirectional_monte_carlo(_built(cvae), 2)
    with pytest.raises(TypeError, match="prior: got no y"):
        build(prior=prior_network()).prior()


def _built(cvae):
    cvae.build((None, D))
    return cvae


def test_a_vae_has_no_condition():
    """The base has not become conditional by the way."""
    vae = VAE(
        priors.StandardNormal(K),
        keras.Sequential([keras.layers.Dense(2 * K), posteriors.DiagonalNormal(K)]),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)]),
        seed=0,
    )
    with pytest.raises((TypeError, ValueError), match="x: got"):
        vae.elbo((X, LABELS))
