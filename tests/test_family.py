"""The family against scikit-learn, quadrature, and sums over all states."""

import itertools

import numpy as np
import pytest
import tf_keras as keras
from scipy import special, stats
from sklearn import decomposition

from tfpvae import family, objectives, posteriors

ELBO, IWAE = objectives.ELBO, objectives.IWAE


def softplus(t):
    return np.logaddexp(0.0, t)


def softplus_inverse(y):
    return np.log(np.expm1(y))


# The linear ones, trained, are scikit-learn's.

D, K, N = 8, 2, 1000
RNG = np.random.default_rng(0)
NOISE = np.array([0.5, 0.6, 0.7, 0.9, 0.8, 0.6, 0.7, 1.0])
X = RNG.normal(size=(N, K)) @ RNG.normal(size=(K, D)) + NOISE * RNG.normal(size=(N, D))
X = (X + RNG.normal(size=D)).astype("float32")

LINEAR = {
    "factor_analysis": lambda: decomposition.FactorAnalysis(K, tol=1e-5, svd_method="lapack"),
    "probabilistic_pca": lambda: decomposition.PCA(K),
}


# On two busy processors factor analysis, whose maximum is flatter, takes ten seconds.
PARAMS = ["probabilistic_pca", pytest.param("factor_analysis", marks=pytest.mark.long)]


@pytest.fixture(scope="module", params=PARAMS)
def trained(request):
    """A model at the maximum of the likelihood, and scikit-learn's."""
    keras.utils.set_random_seed(0)
    vae = getattr(family, request.param)(D, K, seed=0)
    rate = keras.optimizers.schedules.CosineDecay(0.05, 1200)
    vae.compile(keras.optimizers.Adam(rate), objective=ELBO(estimator="sticking_the_landing"))
    # Every step sees all examples, so that the gradient has hardly any noise in the end.
    vae.fit(np.tile(X, (40, 1)), batch_size=N, epochs=30, shuffle=False, verbose=0)
    return vae, LINEAR[request.param]().fit(X)


def parameters(vae):
    """W, b, and the variances of the noise."""
    at_zero = vae.likelihood(np.zeros((1, K)))
    b = at_zero.mean().numpy()[0]
    w = (vae.likelihood(np.eye(K)).mean().numpy() - b).T
    return w.astype(float), b.astype(float), at_zero.variance().numpy()[0].astype(float)


def evidence(vae, x):
    w, b, noise = parameters(vae)
    return stats.multivariate_normal(b, w @ w.T + np.diag(noise)).logpdf(x)


def test_linear_models_reach_scikit_learns_likelihood(trained):
    """Which is the maximum: a little below, as training ends, and never above."""
    vae, theirs = trained
    best = theirs.score(X)
    assert best - 0.005 < evidence(vae, X).mean() < best + 1e-5
    assert vae.elbo(X, 100, seed=0).mean() == pytest.approx(best, abs=0.01)


def test_the_posterior_is_exact(trained):
    """The log weights of all draws are log p(x): q(z|x) = p(x, z) / p(x)."""
    vae, _ = trained
    log_weights = vae.log_weights(X, 20, seed=0)
    np.testing.assert_allclose(log_weights, np.tile(evidence(vae, X), (20, 1)), atol=0.1)
    assert np.abs(log_weights - evidence(vae, X)).mean() < 0.01


def test_the_model_covariance_is_scikit_learns(trained):
    """Far closer than another sample of the same size would bring it: its standard error."""
    vae, theirs = trained
    w, b, noise = parameters(vae)
    wanted = theirs.get_covariance()
    error = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / N)
    np.testing.assert_array_less(np.abs(w @ w.T + np.diag(noise) - wanted), 0.25 * error)
    np.testing.assert_array_less(np.abs(b - X.mean(axis=0)), 0.25 * np.sqrt(np.diag(wanted) / N))


def test_the_noise_is_scikit_learns(trained):
    vae, theirs = trained
    noise = parameters(vae)[2]
    if isinstance(theirs, decomposition.PCA):
        assert np.ptp(noise) == 0.0  # It is one number.
    # The standard error of a variance from N values is sqrt(2 / N) of it.
    np.testing.assert_allclose(noise, theirs.noise_variance_ * np.ones(D), rtol=np.sqrt(2 / N))


def test_posterior_means_are_scikit_learns(trained):
    """Up to the rotation of z, so what they make of x is compared: W E[z|x] + b."""
    vae, theirs = trained
    cov = theirs.get_covariance()
    signal = cov - theirs.noise_variance_ * np.eye(D)
    wanted = X.mean(axis=0) + (X - X.mean(axis=0)) @ np.linalg.solve(cov, signal)
    if isinstance(theirs, decomposition.FactorAnalysis):
        np.testing.assert_allclose(
            wanted, theirs.transform(X) @ theirs.components_ + theirs.mean_, atol=1e-6
        )
    found = vae.predict(X, verbose=0)
    assert np.abs(found - wanted).max() < 0.1 * X.std()
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.02 * X.std()


@pytest.mark.long
def test_the_posterior_of_given_parameters_is_exact_in_double_precision():
    """Every draw's log weight is log p(x), to the last digits."""
    keras.mixed_precision.set_global_policy("float64")
    keras.backend.set_floatx("float64")
    rng = np.random.default_rng(1)
    w, b, noise = rng.normal(size=(D, K)), rng.normal(size=D), NOISE**2
    cov = np.linalg.inv(np.eye(K) + w.T / noise @ w)
    gain = cov @ w.T / noise
    vae = family.factor_analysis(D, K, seed=0)
    (low, _), (mixed, high) = np.linalg.cholesky(cov)
    tril = [softplus_inverse(high), mixed, softplus_inverse(low)]  # TFP's order.
    vae.encoder.set_weights([gain.T, -gain @ b, np.array(tril)])
    vae.decoder.set_weights([w.T, b, softplus_inverse(np.sqrt(noise))])
    x = X[:20].astype(float)
    truth = stats.multivariate_normal(b, w @ w.T + np.diag(noise)).logpdf(x)
    log_weights = vae.log_weights(x, 5, seed=0)
    assert log_weights.dtype == np.float64
    np.testing.assert_allclose(log_weights, np.tile(truth, (5, 1)), atol=1e-9)


# With parameters that are given, against integrals.


def nodes(num, size):
    """Points `[num**size, size]` of a standard normal and the logs of their weights."""
    points, weights = np.polynomial.hermite_e.hermegauss(num)
    grid = np.array(list(itertools.product(points, repeat=size)))
    parts = np.array(list(itertools.product(np.log(weights / weights.sum()), repeat=size)))
    return grid, parts.sum(axis=1)


def randomize(layer, scale=0.8, seed=0):
    """Set all weights to draws of a normal distribution, and return them."""
    rng = np.random.default_rng(seed)
    layer.set_weights([scale * rng.normal(size=w.shape) for w in layer.get_weights()])
    return [w.astype(float) for w in layer.get_weights()]


def fix_posterior(vae, loc, scale):
    """Let the posterior of each layer, all of size 1, be the same for all x.

    As wide as the prior, the importance weights are bounded.
    """
    weights = [0 * w for w in vae.encoder.get_weights()]
    for w in weights:
        if w.shape == (2,):
            w[:] = loc, softplus_inverse(scale)
    vae.encoder.set_weights(weights)


def assert_evidence(vae, x, wanted):
    """Importance sampling finds it, within its own standard errors."""
    found = vae.log_marginal_likelihood(x, 50_000, seed=0)
    assert (found.standard_error < 0.03).all()
    scores = (found.estimate - wanted) / found.standard_error
    assert np.abs(scores).max() < 4.5
    elbo = vae.elbo(x, 2000, seed=0)
    assert (elbo < wanted).all()


BITS = np.array(list(itertools.product([0.0, 1.0], repeat=4)), "float32")


def test_logistic_factor_analysis_by_quadrature():
    vae = family.logistic_factor_analysis(
        4, 2, hidden_units=(), posterior=posteriors.DiagonalNormal, seed=0
    )
    w, b = randomize(vae.decoder)
    kernel, bias = randomize(vae.encoder, scale=0.2, seed=1)
    bias[2:] += softplus_inverse(1.2)  # Wide, so that the importance weights are even.
    vae.encoder.set_weights([kernel, bias])

    def log_likelihood(z):
        logits = z @ w + b
        return -softplus(-logits) @ BITS.T - softplus(logits) @ (1 - BITS).T  # [M, 16]

    z, log_weight = nodes(60, 2)
    wanted = special.logsumexp(log_weight[:, None] + log_likelihood(z), axis=0)
    assert special.logsumexp(wanted) == pytest.approx(0.0, abs=1e-8)  # They are all there are.
    assert_evidence(vae, BITS, wanted)

    params = BITS @ kernel + bias
    loc, scale = params[:, :2], softplus(params[:, 2:])
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * np.log(scale)).sum(axis=1)
    elbo = [
        np.exp(log_weight) @ log_likelihood(loc[i] + scale[i] * z)[:, i] - kl[i] for i in range(16)
    ]
    np.testing.assert_allclose(vae.elbo(BITS, 20_000, seed=0), elbo, atol=0.05)


def test_nonlinear_factor_analysis_by_quadrature():
    vae = family.nonlinear_factor_analysis(3, 1, hidden_units=(5, 4), activation="tanh", seed=0)
    assert [layer.units for layer in vae.encoder.layers[0].layers[:-1]] == [4, 5]
    fix_posterior(vae, 0.0, 1.0)
    w1, b1, w2, b2, w3, b3, noise = randomize(vae.decoder)
    z, log_weight = nodes(150, 1)
    loc = np.tanh(np.tanh(z @ w1 + b1) @ w2 + b2) @ w3 + b3
    x = loc[::15] + 0.3
    log_likelihood = stats.norm.logpdf(x[:, None], loc, softplus(noise)).sum(axis=-1)
    assert_evidence(vae, x, special.logsumexp(log_weight + log_likelihood, axis=1))


def network_log_likelihood(weights, z, x):
    """log N(x; W f(z) + b, diag psi) of one layer of a Gaussian belief network, `[..., M]`."""
    w, b, noise = weights
    return stats.norm.logpdf(x[..., None, :], np.tanh(z) @ w + b, softplus(noise)).sum(axis=-1)


def top(prior):
    """The weights of the prior of a Gaussian belief network, at values of its own."""
    unconstrained = np.array([0.4, softplus_inverse(0.8)])
    prior.set_weights([unconstrained])
    return unconstrained[0], softplus(unconstrained[1])


def test_nonlinear_gaussian_belief_network_by_quadrature():
    vae = family.nonlinear_gaussian_belief_network(3, 1, activation="tanh", seed=0)
    loc, scale = top(vae.prior)
    weights = randomize(vae.decoder)
    fix_posterior(vae, 0.0, 1.0)
    z, log_weight = nodes(150, 1)
    x = np.tanh(loc + scale * z[50:100:5]) @ weights[0] + weights[1] + 0.3
    log_likelihood = network_log_likelihood(weights, loc + scale * z, x)
    assert_evidence(vae, x, special.logsumexp(log_weight + log_likelihood, axis=1))


@pytest.mark.long
def test_two_layers_of_a_nonlinear_gaussian_belief_network_by_quadrature():
    vae = family.nonlinear_gaussian_belief_network(3, (1, 1), hidden_units=4, seed=0)
    lower = randomize(vae.decoder, scale=0.6)
    _, w, b, noise = randomize(vae.prior, scale=0.6, seed=1)  # p(z_2), then p(z_1 | z_2).
    vae.prior.set_weights([np.array([0.4, softplus_inverse(0.8)]), w, b, noise])
    fix_posterior(vae, 0.2, 2.0)
    points, log_weight = nodes(80, 1)
    z1 = np.tanh(0.4 + 0.8 * points) @ w + b + softplus(noise) * points.T  # [M of z_2, M of z_1]
    log_weights = (log_weight[:, None] + log_weight).ravel()
    z1 = z1.reshape(-1, 1)
    x = np.tanh(z1[2000:4000:500]) @ lower[0] + lower[1] + 0.3
    wanted = special.logsumexp(log_weights + network_log_likelihood(lower, z1, x), axis=1)
    assert_evidence(vae, x, wanted)


def states(size):
    return np.array(list(itertools.product([0.0, 1.0], repeat=size)))


def bernoulli(logits, x):
    """log p(x) `[..., all x]` of bits with these logits `[..., D]`."""
    return -softplus(-logits) @ x.T - softplus(logits) @ (1 - x).T


@pytest.mark.long
@pytest.mark.parametrize("sizes", [3, (3,), (3, 2), (2, 3, 2)], ids=str)
def test_sigmoid_belief_network_by_summing_over_all_states(sizes):
    vae = family.sigmoid_belief_network(4, sizes, seed=0)
    sizes = np.atleast_1d(sizes)
    below = [4, *sizes[:-1]]
    logits, *rest = randomize(vae.prior, scale=1.5, seed=1)  # p(z_L), p(z_1 | z_2), ...
    rest = [*randomize(vae.decoder, scale=1.5), *rest]
    log_prob = bernoulli(logits, states(sizes[-1]))
    for i in reversed(range(len(sizes))):
        w, b = rest[2 * i : 2 * i + 2]
        given = bernoulli(states(sizes[i]) @ w + b, states(below[i]))
        log_prob = special.logsumexp(log_prob[:, None] + given, axis=0)
    assert special.logsumexp(log_prob) == pytest.approx(0.0, abs=1e-8)
    assert_evidence(vae, BITS, log_prob)
    exact = vae.log_marginal_likelihood(BITS, method="enumeration").estimate
    np.testing.assert_allclose(exact, log_prob, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "objective",
    [
        IWAE(20, "score_function"),
        ELBO(num_samples=20, estimator="score_function"),
        ELBO(estimator="enumerated"),
        objectives.ReweightedWakeSleep(20),
    ],
    ids=lambda objective: f"{type(objective).__name__}, {objective.estimator}",
)
def test_a_sigmoid_belief_network_finds_the_causes_of_its_data(objective, rng):
    """Two bits, of each three copies that are wrong with probability 0.05: a network of that kind.

    The likelihood of the network that drew them is the best, up to what its weights overfit.
    """
    x = np.repeat(rng.random((2000, 2)) < 0.5, 3, axis=1)
    x = np.where(rng.random(x.shape) < 0.05, ~x, x).astype("float32")
    ones = x.reshape(-1, 2, 3).sum(axis=-1)
    best = np.log(0.5 * 0.05**ones * 0.95 ** (3 - ones) + 0.5 * 0.95**ones * 0.05 ** (3 - ones))
    vae = family.sigmoid_belief_network(6, 2, hidden_units=16, seed=0)
    rate = keras.optimizers.schedules.CosineDecay(0.03, 600)
    vae.compile(keras.optimizers.Adam(rate), objective=objective)
    vae.fit(x, batch_size=200, epochs=60, verbose=0)
    found = vae.log_marginal_likelihood(x, 500, seed=0).mean
    assert found == pytest.approx(best.sum(axis=1).mean(), abs=0.02)
    assert found > -6 * np.log(2) + 1.5  # As if the bits were independent.


# All of them.

MEMBERS = {
    "factor_analysis": lambda **kwargs: family.factor_analysis(4, 2, **kwargs),
    "probabilistic_pca": lambda **kwargs: family.probabilistic_pca(4, 2, **kwargs),
    "logistic_factor_analysis": lambda **kwargs: family.logistic_factor_analysis(4, 2, **kwargs),
    "nonlinear_factor_analysis": lambda **kwargs: family.nonlinear_factor_analysis(4, 2, **kwargs),
    "nonlinear_gaussian_belief_network": lambda **kwargs: family.nonlinear_gaussian_belief_network(
        4, 2, **kwargs
    ),
    "nonlinear_gaussian_belief_network, deep": lambda **kwargs: (
        family.nonlinear_gaussian_belief_network(4, (3, 2), **kwargs)
    ),
    "sigmoid_belief_network": lambda **kwargs: family.sigmoid_belief_network(4, 2, **kwargs),
    "sigmoid_belief_network, deep": lambda **kwargs: family.sigmoid_belief_network(
        4, (3, 2), **kwargs
    ),
}


def VIMCO():  # noqa: N802
    return IWAE(3, "score_function")


REPARAMETERIZED = {
    "ELBO": lambda: ELBO(),
    "sticking the landing": lambda: ELBO(num_samples=2, estimator="sticking_the_landing"),
    "IWAE": lambda: IWAE(3),
    "doubly reparameterized": lambda: IWAE(3, "doubly_reparameterized"),
    "Renyi": lambda: objectives.Renyi(0.5, 3),
    "CUBO": lambda: objectives.CUBO(2.0, 3),
}
SCORE_FUNCTION = {
    "ELBO by score function": lambda: ELBO(num_samples=3, estimator="score_function"),
    "VIMCO": VIMCO,
    "Renyi by score function": lambda: objectives.Renyi(0.5, 3, "score_function"),
    "CUBO by score function": lambda: objectives.CUBO(2.0, 3, "score_function"),
    "reweighted wake-sleep": lambda: objectives.ReweightedWakeSleep(3),
}


def data(name):
    return np.tile(BITS, (2, 1)) if "sigmoid" in name or "logistic" in name else X[:32, :4]


@pytest.mark.long
@pytest.mark.parametrize("name", MEMBERS)
def test_members_train_and_are_saved(name, tmp_path):
    vae, x = MEMBERS[name](seed=0), data(name)
    vae.compile("adam", objective=VIMCO() if "sigmoid" in name else None, run_eagerly=True)
    before = vae.evaluate(x, verbose=0)
    vae.fit(x, verbose=0)
    vae.save(tmp_path / "vae.keras")
    again = keras.models.load_model(tmp_path / "vae.keras")  # Safe mode is Keras's default.
    assert type(again) is type(vae)
    histories = [model.fit(x, shuffle=False, verbose=0).history for model in (again, vae)]
    assert histories[0] == histories[1]  # It goes on as it would have.
    found = [model.evaluate(x, verbose=0) for model in (again, vae)]
    assert found[0] == found[1] != before


@pytest.mark.long
@pytest.mark.parametrize("name", ["factor_analysis", "sigmoid_belief_network, deep"])
def test_untrained_models_are_saved(name, tmp_path):
    vae, x = MEMBERS[name](seed=0), data(name)
    vae.save(tmp_path / "vae.keras")
    again = keras.models.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(again.log_weights(x, 3, seed=1), vae.log_weights(x, 3, seed=1))


@pytest.mark.long
def test_a_member_trains_under_xla():
    """Its draws are others; the KL, which before the first step needs none, is the same."""
    histories = []
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        vae = family.probabilistic_pca(4, 2, seed=0)
        vae.compile("adam", jit_compile=jit_compile)
        histories.append(vae.fit(data(""), batch_size=32, verbose=0).history)
    assert histories[0]["kl"] == pytest.approx(histories[1]["kl"], rel=1e-5)
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("name", MEMBERS)
def test_members_train_under_every_objective(name):
    vae, x = MEMBERS[name](seed=0), data(name)
    first = vae.get_weights()
    for make in (
        SCORE_FUNCTION if "sigmoid" in name else REPARAMETERIZED | SCORE_FUNCTION
    ).values():
        vae.set_weights(first)
        vae.compile(keras.optimizers.Adam(0.01), objective=make(), run_eagerly=True)
        logs = vae.fit(x, epochs=1, batch_size=32, verbose=0).history
        assert np.isfinite([logs["loss"], logs["elbo"]]).all()
        for before, after in zip(first, vae.get_weights(), strict=True):
            assert before.dtype.kind != "f" or not np.array_equal(before, after)


BAD = {
    "no size": (lambda: family.factor_analysis(0, 1), ValueError, r"event_shape: got 0, wanted"),
    "a number": (lambda: family.probabilistic_pca((), 1), ValueError, r"event_shape: got \(\), "),
    "a fraction": (lambda: family.factor_analysis(4, 1.5), TypeError, "latent_size: got 1.5"),
    "no factor": (lambda: family.logistic_factor_analysis(4, 0), ValueError, "latent_size: got 0"),
    "no noise": (
        lambda: family.factor_analysis(4, 4),
        ValueError,
        "latent_size: got 4, wanted less than the 4 entries of x",
    ),
    "all components": (
        lambda: family.probabilistic_pca((2, 2), 5),
        ValueError,
        "latent_size: got 5, wanted less than the 4 entries of x",
    ),
    "no loc": (
        lambda: family.factor_analysis(4, 2, posterior=posteriors.Bernoulli),
        ValueError,
        r"posterior: got Bernoulli, whose parameters are \['logits'\], wanted a loc",
    ),
    "no block": (
        lambda: family.logistic_factor_analysis(4, 2, posterior=keras.layers.Dense),
        TypeError,
        "posterior: got <.*Dense.*, wanted a class of tfpvae.posteriors",
    ),
    "an instance": (
        lambda: family.factor_analysis(4, 2, posterior=posteriors.DiagonalNormal(2)),
        TypeError,
        "posterior: got <.*DiagonalNormal.*, wanted a class of tfpvae.posteriors",
    ),
    "the size": (
        lambda: family.nonlinear_factor_analysis(4, 2, posterior=3),
        TypeError,
        "posterior: got 3, wanted a class of tfpvae.posteriors",
    ),
    "no layer": (
        lambda: family.sigmoid_belief_network(4, ()),
        ValueError,
        r"latent_sizes: got \(\), wanted",
    ),
    "an empty layer": (
        lambda: family.nonlinear_gaussian_belief_network(4, (3, 0)),
        ValueError,
        r"latent_sizes: got \(3, 0\), wanted",
    ),
    "hidden": (
        lambda: family.nonlinear_factor_analysis(4, 2, hidden_units=(8, -1)),
        ValueError,
        r"hidden_units: got \(8, -1\), wanted",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind):
    make, error, message = BAD[kind]
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_bits_need_an_estimator_for_them():
    vae = family.sigmoid_belief_network(4, 2)
    with pytest.raises(ValueError, match="wanted the estimator 'score_function'"):
        vae.compile("adam")


def test_images_are_taken_as_they_are():
    vae = family.probabilistic_pca((2, 3, 1), 2, seed=0)
    assert vae.sample(5, seed=0).shape == (5, 2, 3, 1)
    assert vae.posterior(np.zeros((7, 2, 3, 1))).mean().shape == (7, 2)
    assert np.ptp(vae.likelihood(np.ones((1, 2))).stddev()) == 0.0
