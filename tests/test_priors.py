"""Priors that are learned: against explicit sums, quadrature, and closed forms of log p(x)."""

import itertools
import json
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import integrate, special, stats

from tfpvae import (
    VAE,
    BayesianRegression,
    KLDivergenceRegularizer,
    LocalVAE,
    flows,
    likelihoods,
    objectives,
    posteriors,
    priors,
)

tfd = tfp.distributions
D, K = 3, 2  # of x and of z


@pytest.fixture
def x(rng):
    return rng.normal(size=(40, D)).astype("float32")


def build(prior, *, encoder=None, posterior=None, seed=0):
    posterior = posterior or posteriors.DiagonalNormal(prior.event_shape)
    encoder = encoder or [keras.layers.Dense(5, "tanh")]
    return VAE(
        prior,
        keras.Sequential([*encoder, keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=0.5)]),
        seed=seed,
    )


def vamp(x, num=4, **kwargs):
    vae = build(priors.VampPrior(K, pseudo_inputs=x[:num], **kwargs))
    vae.build(x.shape)
    return vae


def softplus(t):
    return np.logaddexp(0, t)


# The densities, computed apart.


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (1.5, 4.0), (6.0, 0.3)])
def test_student_t_is_the_normal_with_its_precision_integrated_out(a, b):
    loc, z = np.array([0.5, -1.0]), np.array([[0.7, 2.0], [-3.0, -1.0]])
    kwargs = {"df": 2 * a, "loc": loc, "scale": np.sqrt(b / a)}
    hyperprior = stats.gamma(a, scale=1 / b)

    def integral(squares, count):
        """The integral of prod_d N(z_d; loc_d, 1 / precision) Gamma(precision; a, b)."""

        def joint(precision):
            return (
                (precision / (2 * np.pi)) ** (count / 2)
                * np.exp(-0.5 * precision * squares)
                * hyperprior.pdf(precision)
            )

        pieces = np.concatenate([[0], np.geomspace(1e-4, 1e3, 15)])
        return sum(
            integrate.quad(joint, low, high, epsabs=1e-13, epsrel=1e-11)[0]
            for low, high in itertools.pairwise(pieces)
        )

    squares = (z - loc) ** 2
    each = np.log(np.vectorize(integral)(squares, 1)).sum(axis=1)
    together = np.log(np.vectorize(integral)(squares.sum(axis=1), 2))
    prior = priors.StudentT(2, dtype="float64", **kwargs)
    np.testing.assert_allclose(prior().log_prob(z), each, rtol=1e-7)
    prior = priors.StudentT(2, shared=True, dtype="float64", **kwargs)
    np.testing.assert_allclose(prior().log_prob(z), together, rtol=1e-7)


def test_draws_of_a_shared_precision_lie_far_out_together():
    """|z_1| and |z_2| are correlated as those of the ratio of normals and one chi variable."""
    rng = np.random.default_rng(1)
    made = rng.normal(size=(40_000, 2)) / np.sqrt(rng.gamma(2.5, 1 / 2.5, size=(40_000, 1)))
    kwargs = {"df": 5.0, "loc": 0.0, "scale": 1.0}
    for shared, wanted in ((True, stats.spearmanr(*np.abs(made).T)[0]), (False, 0.0)):
        drawn = priors.StudentT(2, shared=shared, **kwargs)().sample(40_000, seed=[0, 1]).numpy()
        assert stats.spearmanr(*np.abs(drawn).T)[0] == pytest.approx(wanted, abs=0.025)
        assert stats.kstest(drawn[:, 0], stats.t(5.0).cdf).pvalue > 1e-3
    assert wanted == 0.0


def numpy_encoder(vae, x):
    """The mean and the standard deviation of q(z|x), from the weights of the encoder."""
    kernel, bias, kernel2, bias2 = (np.float64(w) for w in vae.encoder.get_weights())
    loc, scale = np.split(np.tanh(x @ kernel + bias) @ kernel2 + bias2, 2, axis=-1)
    return loc, softplus(scale)


def log_mixture(weights, loc, scale, z):
    """The log of sum_k weights_k prod_d N(z_d; loc_kd, scale_kd^2)."""
    each = stats.norm.logpdf(z[:, None], loc, scale).sum(axis=-1)
    return special.logsumexp(each, axis=1, b=weights)


@pytest.mark.parametrize("learn_weights", [False, True])
def test_vamp_prior_is_the_mixture_of_the_encoders_posteriors(x, rng, learn_weights):
    vae, weights = vamp(x, learn_weights=learn_weights), np.full(4, 0.25)
    if learn_weights:
        np.testing.assert_allclose(tf.nn.softmax(vae.prior.unconstrained), weights)
        logits = rng.normal(size=4)
        vae.prior.unconstrained.assign(logits)
        weights = special.softmax(logits)
    u, z = rng.normal(size=(4, D)), rng.normal(size=(50, K)).astype("float32")
    vae.prior.pseudo_inputs.assign(u)
    p = vae.prior()
    loc, scale = numpy_encoder(vae, u)
    np.testing.assert_allclose(p.log_prob(z), log_mixture(weights, loc, scale, z), rtol=1e-4)
    np.testing.assert_allclose(p.mean(), weights @ loc, rtol=1e-4, atol=1e-6)
    second = weights @ (scale**2 + loc**2)
    np.testing.assert_allclose(p.variance(), second - (weights @ loc) ** 2, rtol=1e-4)
    drawn = p.sample(20_000, seed=[0, 1]).numpy()
    error = np.sqrt(p.variance() / 20_000)
    assert (np.abs(drawn.mean(axis=0) - weights @ loc) < 4.5 * error).all()


def test_gradients_reach_the_encoder_through_the_prior(x, rng):
    """Against differences of the density that numpy computes."""
    vae = vamp(x, learn_weights=True)
    z = rng.normal(size=(6, K)).astype("float32")
    sources = [vae.prior.unconstrained, vae.prior.pseudo_inputs, *vae.encoder.trainable_weights]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(vae.prior().log_prob(z))
    gradients = tape.gradient(total, sources)

    def by_numpy(logits, u, kernel, bias, kernel2, bias2):
        loc, scale = np.split(np.tanh(u @ kernel + bias) @ kernel2 + bias2, 2, axis=-1)
        return log_mixture(special.softmax(logits), loc, softplus(scale), z).sum()

    values = [np.float64(source) for source in sources]
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=values[i].shape)
        moved = [[*values[:i], values[i] + h * direction, *values[i + 1 :]] for h in (1e-5, -1e-5)]
        slope = (by_numpy(*moved[0]) - by_numpy(*moved[1])) / 2e-5
        assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_kl_by_monte_carlo_is_that_of_quadrature(x):
    vae = vamp(x)
    loc, scale = numpy_encoder(vae, np.float64(x[:4]))
    mixture = priors.NormalMixture(K, 3, seed=1)
    places = np.random.default_rng(1).normal(size=(3, K))  # As documented: standard normal draws.
    assert mixture().log_prob(np.zeros(K)).numpy() > -10
    found = {
        "vamp": (vae.prior, lambda z: log_mixture(np.full(4, 0.25), loc, scale, z)),
        "mixture": (mixture, lambda z: log_mixture(np.full(3, 1 / 3), places, 1.0, z)),
        "t": (priors.StudentT(K), lambda z: stats.t.logpdf(z, 4).sum(axis=1)),
        "shared t": (
            priors.StudentT(K, shared=True),
            lambda z: stats.multivariate_t.logpdf(z, df=4, shape=np.eye(K)),
        ),
    }
    mean, sd = np.array([0.4, -1.2]), np.array([0.5, 0.9])
    steps = np.linspace(-8, 8, 801)
    grid = np.stack(np.meshgrid(*(m + s * steps for m, s in zip(mean, sd, strict=True))), -1)
    grid = grid.reshape(-1, K)
    log_q = stats.norm.logpdf(grid, mean, sd).sum(axis=1)
    area = np.prod(sd) * (steps[1] - steps[0]) ** 2
    q = tfd.Independent(tfd.Normal(np.float32(mean)[None], np.float32(sd)[None]), 1)
    z = q.sample(40_000, seed=[1, 2])
    for name, (prior, log_p) in found.items():
        exact = np.sum(np.exp(log_q) * (log_q - log_p(grid))) * area
        ratios = (q.log_prob(z) - prior().log_prob(z)).numpy()
        error = ratios.std() / np.sqrt(ratios.size)
        kl = float(KLDivergenceRegularizer(prior).divergence(q, z)[0])
        assert kl == pytest.approx(exact, abs=4 * error), name
        assert error < 0.01, name
        with pytest.raises(ValueError, match="use_exact_kl: TFP has no closed form"):
            KLDivergenceRegularizer(prior, use_exact_kl=True).divergence(q)


def test_a_mixture_starts_at_different_places_with_unit_scales():
    first, second = (priors.NormalMixture(2, 50, seed=seed)() for seed in (1, 2))
    np.testing.assert_allclose(first._components.stddev(), np.ones((50, 2)), rtol=1e-6)
    places = first._components.mean().numpy()
    assert stats.kstest(places.ravel(), stats.norm.cdf).pvalue > 1e-3
    assert len(np.unique(places)) == 100
    assert (places != second._components.mean().numpy()).all()
    keras.utils.set_random_seed(5)
    one = priors.NormalMixture(2, 3)
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(one.weights[0], priors.NormalMixture(2, 3).weights[0])
    start = {"logits": [0.0, 1.0], "loc": [[1.0, 2.0], [3.0, 4.0]], "scale": 0.5}
    mixture = priors.NormalMixture(2, 2, initial=start)()
    mean = special.softmax(start["logits"]) @ np.array(start["loc"])
    np.testing.assert_allclose(mixture.mean(), mean, rtol=1e-5)
    tril = np.array([[[2.0, 0.0], [1.0, 0.5]], [[1.0, 0.0], [-0.3, 1.0]]])
    full = priors.NormalMixture(2, 2, full_rank=True, initial={"scale_tril": tril, "loc": 0.0})
    covariance = np.mean(tril @ tril.swapaxes(1, 2), axis=0)
    np.testing.assert_allclose(full().variance(), np.diag(covariance), rtol=1e-5)


# A linear Gaussian model with a mixture prior: log p(x) is that of a mixture of Gaussians.


class LinearMixture:
    """z of three clusters, x = W z + b + s e."""

    def __init__(self, rng):
        self.weight, self.bias, self.scale = rng.normal(size=(K, D)), rng.normal(size=D), 0.3
        self.locs = 2.5 * np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])
        self.scales, self.probs = np.full((3, K), 0.4), np.array([0.5, 0.3, 0.2])

    def sample(self, rng, num):
        which = rng.choice(3, size=num, p=self.probs)
        z = self.locs[which] + self.scales[which] * rng.normal(size=(num, K))
        x = z @ self.weight + self.bias + self.scale * rng.normal(size=(num, D))
        return x.astype("float32")

    def log_prob(self, x):
        return linear_log_prob(
            x, self.weight, self.bias, self.scale, self.probs, self.locs, self.scales
        )


def linear_log_prob(x, weight, bias, scale, probs, locs, scales):
    """The log of sum_k probs_k N(x; W mu_k + b, W diag(sigma_k^2) W' + s^2 I)."""
    noise = scale**2 * np.eye(x.shape[1])
    each = [
        stats.multivariate_normal(m @ weight + bias, weight.T @ np.diag(s**2) @ weight + noise)
        for m, s in zip(locs, scales, strict=True)
    ]
    return special.logsumexp([p.logpdf(x) for p in each], axis=0, b=np.array(probs)[:, None])


@pytest.fixture
def linear(rng):
    return LinearMixture(rng)


def linear_vae(linear, posterior=None):
    """The true model, with an encoder that is none."""
    start = {"logits": np.log(linear.probs), "loc": linear.locs, "scale": linear.scales}
    prior = priors.NormalMixture(K, 3, initial=start)
    posterior = posterior or posteriors.FullRankNormal(K)
    encoder = [keras.layers.Dense(32, "tanh")]
    vae = VAE(
        prior,
        keras.Sequential([*encoder, keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=linear.scale)]),
        seed=0,
    )
    vae.build((None, D))
    vae.decoder.layers[0].set_weights([linear.weight, linear.bias])
    return vae


@pytest.mark.long
def test_log_marginal_likelihood_is_that_of_a_mixture_of_gaussians(linear, rng):
    vae, x = linear_vae(linear), linear.sample(rng, 10)
    exact = linear.log_prob(x)
    precision = np.eye(K) / 4 + linear.weight @ linear.weight.T / linear.scale**2
    gain = np.linalg.solve(precision, linear.weight) / linear.scale**2
    # A wide posterior around what least squares makes of x.
    tril = (
        tfp.bijectors.FillScaleTriL()
        .inverse(np.float32(2 * np.linalg.cholesky(np.linalg.inv(precision))))
        .numpy()
    )
    encoder = keras.Sequential([keras.layers.Dense(5), posteriors.FullRankNormal(K)])
    vae = VAE(vae.prior, encoder, vae.decoder, seed=0)
    vae.build((None, D))
    kernel = np.concatenate([gain.T, np.zeros((D, 3))], axis=1)
    encoder.layers[0].set_weights([kernel, np.concatenate([-gain @ linear.bias, tril])])
    found = vae.log_marginal_likelihood(x, 20_000, seed=1)
    assert (np.abs(found.estimate - exact) < 4.5 * found.standard_error).all()
    assert found.standard_error.max() < 0.1
    annealed = vae.log_marginal_likelihood(x, 64, "ais", seed=1, num_steps=200)
    assert (np.abs(annealed.estimate - exact) < 4.5 * annealed.standard_error + 0.01).all()


@pytest.mark.long
def test_a_learned_mixture_finds_the_clusters(linear, rng):
    """Exact log p(x): nearly that of the truth, and above any linear model of a normal prior."""
    x, held_out = linear.sample(rng, 2000), linear.sample(rng, 2000)
    posterior = posteriors.FullRankNormal(K)
    prior = priors.NormalMixture(K, 3, seed=3)
    vae = VAE(
        prior,
        keras.Sequential(
            [
                keras.layers.Dense(64, "tanh"),
                keras.layers.Dense(64, "tanh"),
                keras.layers.Dense(posterior.params_size),
                posterior,
            ]
        ),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=linear.scale)]),
        seed=0,
    )
    vae.compile(keras.optimizers.Adam(2e-3))
    vae.fit(x, epochs=300, batch_size=100, verbose=0)
    logits, loc, scale = (w.numpy() for w in _mixture_parameters(prior))
    weight, bias = vae.decoder.get_weights()
    found = linear_log_prob(
        held_out, weight, bias, linear.scale, special.softmax(logits), loc, scale
    ).mean()
    truth = linear.log_prob(held_out).mean()
    mean, covariance = x.mean(axis=0), np.cov(x.T)  # The best of all Gaussians of x.
    gaussian = stats.multivariate_normal(mean, covariance).logpdf(held_out).mean()
    mixture = pytest.importorskip("sklearn.mixture")
    best = mixture.GaussianMixture(3, n_init=5, random_state=0).fit(x).score(held_out)
    print(f"truth {truth:.3f} found {found:.3f} sklearn {best:.3f} one Gaussian {gaussian:.3f}")
    assert gaussian < truth - 0.9
    assert found > truth - 0.05
    assert found > best - 0.05


def _mixture_parameters(prior):
    p = prior()
    return p.parameters["logits"], p.parameters["loc"], p.parameters["scale"]


# In a model.


def test_vamp_prior_is_trained_with_the_encoder_and_counted_once(x):
    vae = vamp(x, learn_weights=True)
    names = [weight.name for weight in vae.trainable_weights]
    assert names.count("pseudo_inputs:0") == 1
    own = [vae.prior.unconstrained, vae.prior.pseudo_inputs]
    wanted = {id(w) for w in (*own, *vae.encoder.weights, *vae.decoder.weights)}
    assert [id(w) for w in vae.trainable_weights].__len__() == len(wanted)
    assert {id(w) for w in vae.trainable_weights} == wanted
    assert {id(w) for w in vae.prior.weights} == {id(w) for w in own}
    assert vae.encoder not in vae.prior.submodules


def test_vamp_prior_is_saved_once_and_belongs_to_the_model_that_is_loaded(x, tmp_path):
    vae = vamp(x, learn_weights=True)
    vae.compile("adam")
    vae.fit(x, epochs=2, verbose=0)
    assert np.ptp(vae.prior.pseudo_inputs - x[:4]) > 0
    assert np.ptp(vae.prior.unconstrained) > 0
    path = tmp_path / "vae.keras"
    vae.save(path)
    with zipfile.ZipFile(path) as file:
        assert len(json.dumps(json.loads(file.read("config.json")))) < 10_000
        file.extract("model.weights.h5", tmp_path)
    sizes = []
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: (
                sizes.append((name, item.size))
                if isinstance(item, h5py.Dataset)
                and not name.startswith(("optimizer", "metrics", "noise"))
                else None
            )
        )
    assert sum(size for _, size in sizes) == sum(np.prod(w.shape) for w in vae.trainable_weights)
    loaded = keras.models.load_model(path)
    z = x[:, :K]
    np.testing.assert_array_equal(loaded.prior().log_prob(z), vae.prior().log_prob(z))
    np.testing.assert_array_equal(loaded.elbo(x, seed=1), vae.elbo(x, seed=1))
    before = vae.prior().log_prob(z)
    loaded.encoder.layers[0].kernel.assign_add(np.ones((D, 5)))
    assert not np.allclose(loaded.prior().log_prob(z), before)
    np.testing.assert_array_equal(vae.prior().log_prob(z), before)


PRIORS = {
    "NormalMixture": lambda x: priors.NormalMixture(K, 3, seed=1),
    "StudentT": lambda x: priors.StudentT(K, shared=True),
    "VampPrior": lambda x: priors.VampPrior(K, pseudo_inputs=x[:4], learn_weights=True),
}


@pytest.mark.parametrize(
    ("name", "by_xla"),
    [("VampPrior", False), *(pytest.param(name, True, marks=pytest.mark.long) for name in PRIORS)],
)
def test_training_repeats_bit_for_bit(name, by_xla, x):
    def train():
        keras.utils.set_random_seed(4)
        vae = build(PRIORS[name](x))
        vae.compile("adam", jit_compile=by_xla)
        return vae, vae.fit(x, epochs=2, batch_size=20, verbose=0).history

    (vae, first), (again, second) = train(), train()
    assert first == second
    for one, other in zip(vae.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(vae.sample(5, seed=1), again.sample(5, seed=1))
    assert np.isfinite(first["loss"]).all()
    log_weights = vae.log_weights(x, 3, seed=2)
    np.testing.assert_allclose(vae.elbo(x, 3, seed=2), log_weights.mean(axis=0), atol=1e-4)


OBJECTIVES = {
    "ELBO": lambda: objectives.ELBO(),
    "sticking the landing": lambda: objectives.ELBO(
        num_samples=3, estimator="sticking_the_landing"
    ),
    "score function": lambda: objectives.ELBO(num_samples=3, estimator="score_function"),
    "IWAE": lambda: objectives.IWAE(num_samples=3),
    "IWAE, reparameterized": lambda: objectives.IWAE(num_samples=3, estimator="reparameterized"),
    "Renyi": lambda: objectives.Renyi(0.5, num_samples=3),
    "CUBO": lambda: objectives.CUBO(num_samples=3),
    "reweighted wake-sleep": lambda: objectives.ReweightedWakeSleep(num_samples=3),
}


@pytest.mark.long
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_every_prior(objective, x):
    data = tf.constant(x)
    for name, make in PRIORS.items():
        vae = build(make(x))
        vae.compile("sgd", objective=OBJECTIVES[objective]())
        vae.build(x.shape)
        with tf.GradientTape() as tape:
            losses, _, _ = vae.example_losses(data, data, training=True)
            loss = tf.reduce_mean(losses)
        for weight, gradient in zip(
            vae.trainable_weights, tape.gradient(loss, vae.trainable_weights), strict=True
        ):
            assert gradient is not None, (name, weight.name)
            assert np.isfinite(gradient).all(), (name, weight.name)
            assert np.any(gradient), (name, weight.name)


def line(x):
    """One latent number, and an encoder of two weights that VampPrior's density goes through."""
    prior = priors.VampPrior(1, pseudo_inputs=[[-1.0], [0.3]])
    encoder = keras.Sequential([keras.layers.Dense(2), posteriors.DiagonalNormal(1)])
    decoder = keras.Sequential([keras.layers.Dense(1), likelihoods.Normal(1, scale=0.7)])
    vae = VAE(prior, encoder, decoder, seed=0)
    vae.build((None, 1))
    vae.encoder.layers[0].set_weights([np.array([[0.8, 0.3]]), np.array([0.2, -0.4])])
    vae.decoder.layers[0].set_weights([np.array([[1.2]]), np.array([-0.1])])
    return vae


def elbo_of_line(x, kernel, bias, u):
    """By quadrature, for one number x."""
    loc, scale = x * kernel[0] + bias[0], softplus(x * kernel[1] + bias[1])
    z = loc + scale * np.linspace(-9, 9, 4001)
    log_q = stats.norm.logpdf(z, loc, scale)
    each = stats.norm.logpdf(z[:, None], u * kernel[0] + bias[0], softplus(u * kernel[1] + bias[1]))
    log_p = special.logsumexp(each, axis=1) - np.log(len(u))
    log_likelihood = stats.norm.logpdf(x, 1.2 * z - 0.1, 0.7)
    return integrate.trapezoid(np.exp(log_q) * (log_likelihood + log_p - log_q), z)


@pytest.mark.long
@pytest.mark.parametrize("estimator", ["reparameterized", "sticking_the_landing", "score_function"])
def test_the_gradient_through_vamp_prior_is_unbiased(estimator):
    """Of encoder and pseudo-inputs, against differences of the ELBO by quadrature."""
    x, rows, rounds = 0.9, 4000, 24
    vae = line(x)
    vae.compile("sgd", objective=objectives.ELBO(num_samples=2, estimator=estimator))
    data = tf.fill([rows, 1], x)
    sources = [*vae.encoder.trainable_weights, vae.prior.pseudo_inputs]

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            losses, _, _ = vae.example_losses(data, data, training=True)
            loss = -tf.reduce_mean(losses)
        return [tf.reshape(g, [-1]) for g in tape.gradient(loss, sources)]

    found = np.stack([np.concatenate(gradient()) for _ in range(rounds)])
    at = np.array([0.8, 0.3, 0.2, -0.4, -1.0, 0.3])
    expected = [
        np.subtract(*(elbo_of_line(x, *np.split(at + h * step, 3)) for h in (1e-4, -1e-4))) / 2e-4
        for step in np.eye(6)
    ]
    error = found.std(axis=0, ddof=1) / np.sqrt(rounds)
    assert (np.abs(found.mean(axis=0) - expected) < 4.5 * error + 1e-5).all()
    assert error.max() < 0.02


def test_estimators_of_iwae_agree_under_vamp_prior():
    means, errors = [], []
    for estimator in ("doubly_reparameterized", "reparameterized"):
        vae = line(0.9)
        vae.compile("sgd", objective=objectives.IWAE(num_samples=4, estimator=estimator))
        data = tf.fill([4000, 1], 0.9)
        sources = [*vae.encoder.trainable_weights, vae.prior.pseudo_inputs]

        @tf.function
        def gradient(vae=vae, data=data, sources=sources):
            with tf.GradientTape() as tape:
                losses, _, _ = vae.example_losses(data, data, training=True)
                loss = -tf.reduce_mean(losses)
            return [tf.reshape(g, [-1]) for g in tape.gradient(loss, sources)]

        found = np.stack([np.concatenate(gradient()) for _ in range(24)])
        means.append(found.mean(axis=0))
        errors.append(found.std(axis=0, ddof=1) / np.sqrt(24))
    assert (np.abs(means[0] - means[1]) < 4.5 * np.hypot(*errors)).all()
    assert np.max(errors) < 0.02


@pytest.mark.long
def test_vamp_prior_takes_no_noise_and_runs_the_encoder_in_inference_mode(x):
    layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(5)]
    vae = build(priors.VampPrior(K, pseudo_inputs=x[:4]), encoder=layers)
    vae.build(x.shape)
    z = x[:, :K]
    tf.random.set_seed(7)
    wanted = tf.random.normal([3])
    tf.random.set_seed(7)
    log_prob = vae.prior().log_prob(z)
    np.testing.assert_array_equal(tf.random.normal([3]), wanted)
    np.testing.assert_array_equal(vae.prior().log_prob(z), log_prob)
    np.testing.assert_array_equal(layers[0].moving_mean, np.zeros(D))
    q = vae.posterior(x[:4])
    mixture = special.logsumexp(q.log_prob(z[:, None]), axis=1) - np.log(4)
    np.testing.assert_allclose(log_prob, mixture, rtol=1e-5)
    # In training, too: the model's statistics move by the data alone.
    vae.compile("sgd")
    vae.example_losses(tf.constant(x), tf.constant(x), training=True)
    np.testing.assert_allclose(layers[0].moving_mean, 0.01 * x.mean(axis=0), rtol=1e-4, atol=1e-7)


def test_pseudo_inputs_live_after_preprocessing(x):
    layer = keras.layers.Rescaling(0.1)
    posterior = posteriors.DiagonalNormal(K)
    vae = VAE(
        priors.VampPrior(K, pseudo_inputs=0.1 * x[:4]),
        keras.Sequential([keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=0.5)]),
        preprocessing=layer,
    )
    vae.build(x.shape)
    q = vae.posterior(x[:4])
    z = x[:, :K]
    mixture = special.logsumexp(q.log_prob(z[:, None]), axis=1) - np.log(4)
    np.testing.assert_allclose(vae.prior().log_prob(z), mixture, rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_precision_of_vamp_prior(policy, x):
    keras.mixed_precision.set_global_policy(policy)
    dtype = "float64" if policy == "float64" else "float32"
    vae = vamp(x.astype(dtype))
    q = vae.encoder(vae.prior.pseudo_inputs)
    z = x[:, :K].astype(dtype)
    log_prob = vae.prior().log_prob(z)
    assert log_prob.dtype == dtype
    mixture = special.logsumexp(q.log_prob(z[:, None]), axis=1) - np.log(4)
    np.testing.assert_allclose(log_prob, mixture, rtol=1e-5 if dtype == "float32" else 1e-12)


def test_vamp_prior_of_a_full_rank_posterior_and_drawn_pseudo_inputs(x):
    prior = priors.VampPrior(K, num_components=5, input_shape=D, initializer="ones")
    np.testing.assert_array_equal(prior.pseudo_inputs, np.ones((5, D)))
    vae = build(prior, posterior=posteriors.FullRankNormal(K, num_samples=3))
    vae.build(x.shape)
    q = vae.posterior(np.ones((1, D)))
    np.testing.assert_allclose(
        prior().log_prob(x[:, :K]), q.log_prob(x[:, :K]), rtol=1e-4, atol=1e-5
    )
    prior = priors.VampPrior(K, num_components=500, input_shape=D)
    assert stats.kstest(np.ravel(prior.pseudo_inputs), stats.norm.cdf).pvalue > 1e-3
    config = json.loads(json.dumps(prior.get_config()))
    assert priors.VampPrior.from_config(config).get_config() == prior.get_config()


def test_vamp_prior_of_a_flow_posterior(x):
    """The mixture of its densities, one by one."""
    posterior = posteriors.Flow(K, flows.MaskedAutoregressive(2, hidden_units=(8,)))
    vae = build(priors.VampPrior(K, pseudo_inputs=x[:3]), posterior=posterior)
    vae.build(x.shape)
    for weight in posterior.trainable_weights:
        weight.assign_add(0.3 * tf.ones_like(weight))
    z = x[:, :K]
    each = [vae.posterior(x[k : k + 1]).log_prob(z) for k in range(3)]
    mixture = special.logsumexp(each, axis=0) - np.log(3)
    np.testing.assert_allclose(vae.prior().log_prob(z), mixture, rtol=1e-4, atol=1e-4)
    assert np.isfinite(vae.sample(3, seed=0)).all()
    vae.compile("sgd")
    data = tf.constant(x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(vae.example_losses(data, data, training=True)[0])
    gradients = tape.gradient(loss, vae.trainable_weights)
    assert all(np.any(g) and np.isfinite(g).all() for g in gradients)
    with pytest.raises(TypeError, match="of unknown support"):
        vae.log_marginal_likelihood(x, 2, "ais", num_steps=2)


def test_unequal_weights_can_be_fixed(x):
    prior = priors.VampPrior(K, pseudo_inputs=x[:2], logits=[0.0, 50.0])
    rebuilt = priors.VampPrior.from_config(json.loads(json.dumps(prior.get_config())))
    for p in (prior, rebuilt):
        vae = build(p)
        vae.build(x.shape)
        p.pseudo_inputs.assign(x[:2])
        last = vae.posterior(x[1:2]).log_prob(x[:, :K])
        np.testing.assert_allclose(p().log_prob(x[:, :K]), last, rtol=1e-4)


# Priors of the coefficients of a regression.


def test_priors_of_numbers_are_repeated(rng):
    w = rng.normal(size=(6, 4)).astype("float32")
    for prior in (priors.NormalMixture((), 2, seed=0), priors.StudentT((), df=3.0)):
        together = prior.repeated(4).log_prob(w)
        np.testing.assert_allclose(
            together, prior().log_prob(w).numpy().sum(axis=1), rtol=1e-5, atol=1e-5
        )


def test_regression_with_a_spike_and_a_slab(rng):
    features = rng.normal(size=(200, 6))
    y = features @ [3.0, -3.0, 0.0, 0.0, 0.0, 0.0] + 0.5 * rng.normal(size=200)
    slab = {"loc": 0.0, "scale": [0.05, 3.0], "logits": 0.0}
    model = BayesianRegression(
        likelihoods.Normal(scale=0.5), prior=priors.NormalMixture((), 2, **slab)
    )
    model.fit(features, y, steps=300, verbose=0)
    mean = model.coefficients.mean().numpy()
    assert np.abs(mean[:2] - [3.0, -3.0]).max() < 0.2
    assert np.abs(mean[2:6]).max() < 0.1
    with pytest.raises(ValueError, match="got no encoder, wanted to be the prior of a VAE"):
        BayesianRegression(
            likelihoods.Normal(scale=0.5),
            prior=priors.VampPrior((), num_components=2, input_shape=6),
        ).fit(features, y, steps=2, verbose=0)


# Bad input.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: priors.NormalMixture(2, 0), ValueError, "num_components: got 0, wanted a pos"),
        (lambda: priors.NormalMixture(2, 2.5), TypeError, "num_components: got 2.5"),
        (
            lambda: priors.NormalMixture((2, 2), 3, full_rank=True),
            ValueError,
            r"full_rank: got True with event_shape=\(2, 2\), wanted a vector",
        ),
        (lambda: priors.NormalMixture(2, 3, seed=-1), TypeError, "seed: got -1"),
        (
            lambda: priors.NormalMixture(2, 3, initial={"loc": np.zeros((2, 2))}),
            ValueError,
            r"of shape \(2, 2\), wanted numbers that broadcast to \(3, 2\)",
        ),
        (
            lambda: priors.NormalMixture(2, 3, initial={"scale": -1.0}),
            ValueError,
            "wanted values that NormalMixture allows",
        ),
        (
            lambda: priors.StudentT((2, 2), shared=True),
            ValueError,
            r"shared: got True with event_shape=\(2, 2\), wanted that of a vector",
        ),
        (lambda: priors.VampPrior(2), ValueError, "pseudo_inputs: got None with .* wanted either"),
        (
            lambda: priors.VampPrior(2, np.zeros((3, 4)), num_components=3),
            ValueError,
            "pseudo_inputs: got an array with .*'num_components': 3",
        ),
        (
            lambda: priors.VampPrior(2, num_components=0, input_shape=3),
            ValueError,
            "num_components: got 0",
        ),
        (lambda: priors.VampPrior(2, np.zeros((0, 4))), ValueError, "got an empty array"),
        (lambda: priors.VampPrior(2, ["a"]), TypeError, "pseudo_inputs: got strings"),
        (lambda: priors.VampPrior(2, [[np.nan]]), ValueError, "pseudo_inputs: got NaN"),
        (
            lambda: priors.VampPrior(2, [[0.0]], learn_weights=True, logits=0.0),
            ValueError,
            "logits: got them fixed and learn_weights=True",
        ),
        (
            lambda: priors.VampPrior(2, [[0.0]])(),
            ValueError,
            "got no encoder, wanted to be the prior of a VAE",
        ),
        (
            lambda: priors.VampPrior((), [[0.0]]).repeated(3),
            ValueError,
            "got no encoder, wanted to be the prior of a VAE",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_pseudo_inputs_that_the_encoder_cannot_read(x):
    vae = build(priors.VampPrior(K, pseudo_inputs=x[:4, :2]))
    vae.compile("sgd")
    wanted = r"pseudo_inputs: got shape \(4, 2\), wanted \(K, 3\): examples as the encoder reads"
    with pytest.raises(ValueError, match=wanted):
        vae.fit(x, verbose=0)

    class Encoder(keras.Model):  # Of which nobody knows what it reads.
        def __init__(self):
            super().__init__()
            self.block = posteriors.DiagonalNormal(K)
            self.dense = keras.layers.Dense(self.block.params_size)

        def call(self, inputs):
            return self.block(self.dense(inputs))

    vae = VAE(priors.VampPrior(K, pseudo_inputs=x[:4, :2]), Encoder(), vae.decoder)
    with pytest.raises(ValueError, match=r"pseudo_inputs: got shape \(4, 2\), "):
        vae.build(x.shape)
    vae = VAE(priors.VampPrior(K + 1, pseudo_inputs=x[:4]), Encoder(), vae.decoder)
    with pytest.raises(ValueError, match=r"event_shape: got \(3,\), wanted \(2,\)"):
        vae.build(x.shape)
    with pytest.raises(ValueError, match="prior and posterior differ in size"):
        build(priors.VampPrior(K + 1, pseudo_inputs=x[:4]), posterior=posteriors.DiagonalNormal(K))


def test_a_vamp_prior_belongs_to_one_model_with_an_encoder(x):
    vae = vamp(x)
    VAE(vae.prior, vae.encoder, vae.decoder)  # With the same encoder there is nothing to mix up.
    with pytest.raises(ValueError, match="belongs to a model with another encoder"):
        build(vae.prior)
    with pytest.raises(ValueError, match=r"prior: got a VampPrior, .* there is no encoder"):
        LocalVAE(
            priors.VampPrior(K, pseudo_inputs=x[:4]),
            posteriors.DiagonalNormal(K),
            vae.decoder,
            num_data=40,
        )
