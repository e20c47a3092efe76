"""HierarchicalVAE: against closed forms, quadrature and the sum over all states of small models."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import special, stats

from tfpvae import (
    VAE,
    HierarchicalVAE,
    KLDivergenceRegularizer,
    check_elbo,
    diagnostics,
    distributions,
    flows,
    likelihoods,
    noise,
    objectives,
    posteriors,
    priors,
    schedules,
)

tfd = tfp.distributions
Dense, Sequential = keras.layers.Dense, keras.Sequential
ELBO, IWAE = objectives.ELBO, objectives.IWAE
INFERENCE = ("bottom_up", "top_down")
QUICK_OF_BOTH = [pytest.param("bottom_up", marks=pytest.mark.long), "top_down"]
D, K1, K2, N = 5, 3, 2, 40


@pytest.fixture
def x(rng):
    return rng.random((N, D)).astype("float32")


def network(*layers):
    return Sequential([*layers])


def identity():
    return keras.layers.Activation("linear")


def build(inference="bottom_up", likelihood=None, prior=None, seed=1, sizes=(K1, K2), **kwargs):
    """A small model: dense layers between diagonal normals."""
    likelihood = likelihood or likelihoods.Bernoulli(D)
    encoders = [network(Dense(2 * k), posteriors.DiagonalNormal(k)) for k in sizes]
    if inference == "top_down":
        encoders = [(Dense(6, "tanh"), head) for head in encoders]
    vae = HierarchicalVAE(
        prior or priors.StandardNormal(sizes[-1]),
        encoders,
        [
            network(Dense(likelihood.params_size), likelihood),
            *(network(Dense(2 * k), likelihoods.Normal(k)) for k in sizes[:-1]),
        ],
        inference,
        seed=seed,
    )
    vae.compile("adam", **kwargs)
    return vae


# A linear-Gaussian model: log p(x), the posterior and all expectations are known exactly.


class LinearGaussian:
    """z_2 ~ N(0, I), z_1 = A z_2 + a + s_1 e, x = W z_1 + b + s e.

    The columns of W are orthogonal, so that p(x|z_1) is a product over the entries of z_1, as the
    ladder has it.
    """

    def __init__(self, rng):
        self.a_matrix, self.a_bias, self.s1 = rng.normal(size=(K1, K2)), rng.normal(size=K1), 0.8
        orthogonal = np.linalg.qr(rng.normal(size=(D, K1)))[0]
        self.lengths = np.array([0.7, 1.1, 1.6])
        self.weight, self.bias, self.s = orthogonal * self.lengths, rng.normal(size=D), 0.6
        self.z1_cov = self.a_matrix @ self.a_matrix.T + self.s1**2 * np.eye(K1)
        self.cov = self.weight @ self.z1_cov @ self.weight.T + self.s**2 * np.eye(D)
        self.mean = self.weight @ self.a_bias + self.bias

    def log_prob(self, x):
        return stats.multivariate_normal(self.mean, self.cov).logpdf(x)

    def given(self, prior_mean, prior_cov, matrix, noise_cov, offset):
        """The posterior of z ~ N(prior) given y = matrix z + offset + noise: gain, bias, cov."""
        gain = prior_cov @ matrix.T @ np.linalg.inv(matrix @ prior_cov @ matrix.T + noise_cov)
        cov = prior_cov - gain @ matrix @ prior_cov
        return gain, prior_mean - gain @ (matrix @ prior_mean + offset), cov

    def z1_given_x(self):
        return self.given(self.a_bias, self.z1_cov, self.weight, self.s**2 * np.eye(D), self.bias)

    def z2_given_z1(self):
        return self.given(
            np.zeros(K2), np.eye(K2), self.a_matrix, self.s1**2 * np.eye(K1), self.a_bias
        )

    def z2_given_x(self):
        matrix = self.weight @ self.a_matrix
        noise_cov = self.weight @ self.weight.T * self.s1**2 + self.s**2 * np.eye(D)
        return self.given(np.zeros(K2), np.eye(K2), matrix, noise_cov, self.mean)

    def x_on_z1(self):
        """p(x|z_1) as a normal density of z_1: gain, bias, scale of independent entries."""
        gain = self.weight.T / self.lengths[:, None] ** 2
        return gain, -gain @ self.bias, self.s / self.lengths

    def vae(self, inference, spoilt=0.0, **kwargs):
        """The model with its exact posterior, or with one mean of it off by `spoilt`."""
        full = posteriors.FullRankNormal
        if inference == "bottom_up":
            encoders = [
                network(Dense(full.params_size(K1)), full(K1)),
                network(Dense(full.params_size(K2)), full(K2)),
            ]
        else:
            diagonal = posteriors.DiagonalNormal(K1)
            encoders = [
                (identity(), network(Dense(2 * K1), diagonal)),
                (identity(), network(Dense(full.params_size(K2)), full(K2))),
            ]
        vae = HierarchicalVAE(
            priors.StandardNormal(K2),
            encoders,
            [
                network(Dense(D), likelihoods.Normal(D, scale=self.s)),
                network(Dense(K1), likelihoods.Normal(K1, scale=self.s1)),
            ],
            inference,
            seed=0,
        )
        vae.compile(**{"optimizer": "sgd"} | kwargs)
        vae.build((None, D))
        decoders = vae._hierarchy.decoders
        decoders[0].layers[0].set_weights([self.weight.T, self.bias])
        decoders[1].layers[0].set_weights([self.a_matrix.T, self.a_bias])
        if inference == "bottom_up":
            set_normal(encoders[0], *self.z1_given_x(), spoilt)
            set_normal(encoders[1], *self.z2_given_z1())
        else:
            gain, bias, scale = self.x_on_z1()
            loc = np.concatenate([gain.T, np.zeros((D, K1))], axis=1)
            scale = diagonal.free[1].constraint.inverse(scale.astype("float32"))
            encoders[0][1].layers[0].set_weights([loc, np.concatenate([bias, scale])])
            set_normal(encoders[1][1], *self.z2_given_x(), spoilt)
        return vae

    def gap(self, inference, spoilt):
        """KL(q(z|x) || p(z|x)) for a mean that is off by `spoilt`."""
        cov = self.z1_given_x()[2] if inference == "bottom_up" else self.z2_given_x()[2]
        return 0.5 * spoilt**2 * np.linalg.inv(cov).sum()


def set_normal(encoder, gain, bias, cov, spoilt=0.0):
    """Let a dense layer and a FullRankNormal make N(gain x + bias + spoilt, cov)."""
    tril = tfp.bijectors.FillScaleTriL().inverse(np.linalg.cholesky(cov).astype("float32"))
    kernel = np.concatenate([gain.T, np.zeros((gain.shape[1], len(tril)))], axis=1)
    encoder.layers[0].set_weights([kernel, np.concatenate([bias + spoilt, tril])])


@pytest.fixture
def linear(rng):
    return LinearGaussian(rng)


@pytest.mark.parametrize("inference", INFERENCE)
def test_log_weights_of_the_exact_posterior_are_the_log_evidence(inference, linear, x):
    """log p(x, z) - log p(z|x) = log p(x), whatever z; so the ELBO is, and every other bound."""
    vae = linear.vae(inference)
    wanted = linear.log_prob(x)
    log_weights = vae.log_weights(x, num_samples=20, seed=0)
    np.testing.assert_allclose(log_weights, np.broadcast_to(wanted, (20, N)), rtol=2e-4, atol=2e-4)
    draws = vae.posterior(x).sample(2000, seed=1)
    z1, z2 = vae.split(draws)
    for z, (gain, bias, cov) in ((z1, linear.z1_given_x()), (z2, linear.z2_given_x())):
        error = 5 * np.sqrt(np.diag(cov) / 2000)
        assert (abs(z.numpy().mean(axis=0) - (x @ gain.T + bias)) < error).all()
        within = z.numpy() - z.numpy().mean(axis=0)
        found = np.einsum("sni,snj->ij", within, within) / (1999 * N)
        np.testing.assert_allclose(found, cov, atol=0.02 * np.abs(cov).max())


@pytest.mark.parametrize("inference", QUICK_OF_BOTH)
@pytest.mark.long
def test_bounds_are_in_their_order_and_converge(inference, linear, x):
    vae = linear.vae(inference, spoilt=0.4)
    wanted, gap = linear.log_prob(x), linear.gap(inference, 0.4)
    log_weights = vae.log_weights(x, num_samples=3000, seed=0)
    error = 5 * log_weights.std() / np.sqrt(3000 * N)
    assert log_weights.mean() == pytest.approx(wanted.mean() - gap, abs=error)
    assert vae.elbo(x, 500, seed=1).mean() == pytest.approx(wanted.mean() - gap, abs=3 * error)
    bounds = [
        (special.logsumexp(log_weights.reshape(-1, k, N), axis=1) - np.log(k)).mean()
        for k in (1, 5, 50)
    ]
    assert bounds[0] < bounds[1] < bounds[2] < wanted.mean()
    found = vae.log_marginal_likelihood(x, num_samples=5000, seed=2)
    np.testing.assert_array_less(abs(found.estimate - wanted), 5 * found.standard_error + 1e-3)
    assert found.standard_error.max() < 0.1


@pytest.mark.long
def test_annealing_moves_all_layers(linear, x):
    vae = linear.vae("bottom_up", spoilt=0.5)
    options = {"num_steps": 100, "num_leapfrog_steps": 3}
    found = vae.log_marginal_likelihood(x[:8], 16, method="ais", seed=0, **options)
    error = abs(found.estimate - linear.log_prob(x[:8]))
    np.testing.assert_array_less(error, 4 * found.standard_error)
    assert found.standard_error.max() < 0.2


def test_sample_follows_the_marginal(linear):
    draws = linear.vae("top_down").sample(20_000, seed=0)
    np.testing.assert_allclose(draws.mean(axis=0), linear.mean, atol=0.1)
    np.testing.assert_allclose(np.cov(draws.T), linear.cov, atol=0.1 * np.abs(linear.cov).max())


@pytest.mark.parametrize("inference", QUICK_OF_BOTH)
def test_prediction_passes_the_means_on(inference, linear, x):
    """In a linear model that is the mean of p(x'|x)."""
    gain, bias, _ = linear.z1_given_x()
    wanted = (x @ gain.T + bias) @ linear.weight.T + linear.bias
    found = linear.vae(inference).predict(x, verbose=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def kl_of_normals(mean, cov, prior_cov):
    """Of N(mean, cov) from N(0, prior_cov), with the mean `[N, K]`."""
    inverse = np.linalg.inv(prior_cov)
    quadratic = np.einsum("ni,ij,nj->n", mean, inverse, mean)
    logdet = np.linalg.slogdet(prior_cov)[1] - np.linalg.slogdet(cov)[1]
    return 0.5 * (np.trace(inverse @ cov) + quadratic - len(cov) + logdet)


@pytest.mark.long
@pytest.mark.parametrize("inference", INFERENCE)
def test_kl_of_each_layer_is_what_it_is_said_to_be(inference, linear, x):
    spoilt = 0.4
    gain, bias, cov = linear.z1_given_x()
    if inference == "bottom_up":
        mean = x @ gain.T + bias + spoilt
        up, up_bias, up_cov = linear.z2_given_z1()
        # E_q(z_1|x) KL(q(z_2|z_1) || p(z_2))
        second = kl_of_normals(mean @ up.T + up_bias, up_cov, np.eye(K2))
        second += 0.5 * np.trace(up @ cov @ up.T)
        # E_q[log q(z_1|x) - log p(z_1|z_2)], where z_1 - A z_2 - a is normal
        rest = np.eye(K1) - linear.a_matrix @ up
        off = mean @ rest.T - linear.a_matrix @ up_bias - linear.a_bias
        spread = rest @ cov @ rest.T + linear.a_matrix @ up_cov @ linear.a_matrix.T
        square = (off**2).sum(axis=1) + np.trace(spread)
        first = 0.5 * (square / linear.s1**2 + K1 * np.log(linear.s1**2) - K1)
        first -= 0.5 * np.linalg.slogdet(cov)[1]
    else:
        gain, bias, cov = linear.z2_given_x()
        mean = x @ gain.T + bias + spoilt
        second = kl_of_normals(mean, cov, np.eye(K2))
        # E_q(z_2|x) KL(q(z_1|z_2, x) || p(z_1|z_2)), of which the variances are s_q^2, s_1^2
        gain, bias, scale = linear.x_on_z1()
        variance = 1 / (1 / scale**2 + 1 / linear.s1**2)
        off = (x @ gain.T + bias) - (mean @ linear.a_matrix.T + linear.a_bias)
        spread = np.diag(linear.a_matrix @ cov @ linear.a_matrix.T)
        square = (off**2 + spread) * (variance / scale**2) ** 2 / linear.s1**2
        ratio = variance / linear.s1**2
        first = 0.5 * (ratio + square - 1 - np.log(ratio)).sum(axis=1)
    vae = linear.vae(inference, spoilt, objective=ELBO(num_samples=1000))
    logs = vae.evaluate(x, verbose=0, return_dict=True)
    assert logs["kl_1"] == pytest.approx(first.mean(), abs=0.03)
    # In closed form: top down without noise, bottom up with that of z_1.
    exact = inference == "top_down"
    assert logs["kl_2"] == pytest.approx(second.mean(), abs=1e-4 if exact else 0.02)
    assert logs["kl"] == pytest.approx(logs["kl_1"] + logs["kl_2"], rel=1e-6)
    wanted = linear.log_prob(x).mean() - linear.gap(inference, spoilt)
    assert logs["elbo"] == pytest.approx(wanted, abs=0.05)
    by_draws = linear.vae(inference, spoilt, objective=ELBO(use_exact_kl=False, num_samples=1000))
    found = by_draws.evaluate(x, verbose=0, return_dict=True)
    assert found["kl_2"] == pytest.approx(second.mean(), abs=0.03)
    assert found["kl_2"] != pytest.approx(logs["kl_2"], abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("inference", INFERENCE)
def test_training_finds_the_exact_evidence(inference, linear, rng):
    """With the decoders fixed, linear encoders' ELBO reaches log p(x) within 0.05 nats."""
    z1 = rng.normal(size=(2000, K2)) @ linear.a_matrix.T + linear.a_bias
    z1 += linear.s1 * rng.normal(size=z1.shape)
    x = z1 @ linear.weight.T + linear.bias + linear.s * rng.normal(size=(2000, D))
    x = x.astype("float32")
    vae = linear.vae(inference)
    for weight in vae.encoder.weights:
        weight.assign(tf.zeros_like(weight))
    for decoder in vae._hierarchy.decoders:
        decoder.trainable = False
    assert linear.log_prob(x).mean() - vae.elbo(x, 10, seed=0).mean() > 0.5
    vae.compile(keras.optimizers.Adam(0.02))
    vae.fit(x, epochs=20, batch_size=100, verbose=0)
    vae.optimizer.learning_rate = 0.003
    vae.fit(x, epochs=10, batch_size=100, verbose=0)
    found = vae.elbo(x, num_samples=100, seed=0).mean()
    assert found == pytest.approx(linear.log_prob(x).mean(), abs=0.05)


# Gradients. One dimension a layer: expectations over the noise are quadratures.

X, SCALE = 1.3, 0.7
#: of p(z_1|z_2), of both encoders (loc, unconstrained scale), of p(x|z_1)
WEIGHTS = np.array([0.6, 0.3, 0.9, 0.2, 0.5, -0.3, 1.2])


def softplus(value):
    return np.log1p(np.exp(value))


def scalar_vae(inference, objective):
    """All networks are one weight for each parameter, without bias."""

    def dense(units):
        return Dense(units, use_bias=False)

    encoders = [network(dense(2), posteriors.DiagonalNormal(1)) for _ in range(2)]
    if inference == "top_down":
        encoders = [(identity(), head) for head in encoders]
    vae = HierarchicalVAE(
        priors.StandardNormal(1),
        encoders,
        [
            network(dense(1), likelihoods.Normal(1, scale=SCALE)),
            network(dense(2), likelihoods.Normal(1)),
        ],
        inference,
        seed=0,
    )
    vae.compile("sgd", objective=objective)
    vae.build((None, 1))
    for weight, value in zip(vae.trainable_weights, np.split(WEIGHTS, [2, 4, 6]), strict=True):
        weight.assign(value[None])
    return vae


def log_weights_of_noise(inference, weights, noise_1, noise_2):
    """The log weight log p(x, z) - log q(z|x) of z made of standard normal noise."""
    below_loc, below_scale, loc_1, scale_1, loc_2, scale_2, of_x = weights
    if inference == "bottom_up":
        m1, s1 = loc_1 * X, softplus(scale_1 * X)
        z1 = m1 + s1 * noise_1
        m2, s2 = loc_2 * z1, softplus(scale_2 * z1)
        z2 = m2 + s2 * noise_2
    else:
        m2, s2 = loc_2 * X, softplus(scale_2 * X)
        z2 = m2 + s2 * noise_2
        of_data, of_prior = softplus(scale_1 * X) ** -2, softplus(below_scale * z2) ** -2
        m1 = (of_data * loc_1 * X + of_prior * below_loc * z2) / (of_data + of_prior)
        s1 = (of_data + of_prior) ** -0.5
        z1 = m1 + s1 * noise_1
    log_joint = stats.norm.logpdf(z2) + stats.norm.logpdf(X, of_x * z1, SCALE)
    log_joint += stats.norm.logpdf(z1, below_loc * z2, softplus(below_scale * z2))
    return log_joint - stats.norm.logpdf(z1, m1, s1) - stats.norm.logpdf(z2, m2, s2)


def expected(inference, num_samples, weights, size):
    """The expected IWAE bound of so many draws, by quadrature; the ELBO for one."""
    nodes, probability = np.polynomial.hermite_e.hermegauss(size)
    grid = np.array([*itertools.product(nodes, repeat=2 * num_samples)]).T
    parts = itertools.product(probability / probability.sum(), repeat=2 * num_samples)
    noise_1, noise_2 = grid[:num_samples], grid[num_samples:]
    log_weights = log_weights_of_noise(inference, weights, noise_1, noise_2)
    bound = special.logsumexp(log_weights, axis=0) - np.log(num_samples)
    return np.prod([*parts], axis=1) @ bound


def derivative(function, weights):
    steps = 1e-5 * np.eye(len(weights))
    return np.array([(function(weights + h) - function(weights - h)) / 2e-5 for h in steps])


def assert_unbiased(vae, x, wanted, num=20, size=4000, precision=0.03):
    """Estimates of the gradient have this mean, within 4.5 of their small standard errors."""
    batch = tf.repeat(tf.constant(x, tf.float32)[None], size, axis=0)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            loss, _, _ = vae.example_losses(batch, batch, training=True)
            loss = -tf.reduce_mean(loss)
        gradients = tape.gradient(loss, vae.trainable_weights)
        return tf.concat([tf.reshape(part, [-1]) for part in gradients], 0)

    found = np.stack([gradient().numpy() for _ in range(num)])
    error = found.std(axis=0, ddof=1) / np.sqrt(num)
    assert (error < precision * np.abs(wanted).max()).all(), error
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - wanted), 4.5 * error + 1e-4)


CASES = {
    "reparameterized": lambda: ELBO(num_samples=2),
    "Monte Carlo KL": lambda: ELBO(num_samples=2, use_exact_kl=False),
    "sticking the landing": lambda: ELBO(num_samples=2, estimator="sticking_the_landing"),
    "score function": lambda: ELBO(num_samples=3, estimator="score_function"),
    "IWAE": lambda: IWAE(2),
    "IWAE, doubly reparameterized": lambda: IWAE(2, "doubly_reparameterized"),
    "IWAE, score function": lambda: IWAE(2, "score_function"),
}
QUICK = {
    ("bottom_up", "reparameterized"),
    ("bottom_up", "IWAE, doubly reparameterized"),
    ("top_down", "sticking the landing"),
}


@pytest.mark.parametrize(
    ("inference", "case"),
    [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.long)
        for pair in itertools.product(INFERENCE, CASES)
    ],
)
@pytest.mark.long
def test_estimators_are_unbiased(inference, case):
    objective = CASES[case]()
    draws, size = (2, 16) if case.startswith("IWAE") else (1, 48)
    wanted = derivative(lambda weights: expected(inference, draws, weights, size), WEIGHTS)
    assert_unbiased(scalar_vae(inference, objective), [X], wanted)


# One layer is a VAE.


@pytest.mark.long
@pytest.mark.parametrize("inference", QUICK_OF_BOTH)
def test_one_layer_is_a_vae(inference, x):
    """The same losses of the same weights and draws, bit by bit, and the same training."""

    def make(kind):
        keras.utils.set_random_seed(2)
        features = Dense(6, "tanh")
        head = network(Dense(2 * K1), posteriors.DiagonalNormal(K1))
        decoder = network(Dense(D), likelihoods.Bernoulli(D))
        prior = priors.Normal(K1)
        if kind == "VAE":
            vae = VAE(prior, network(features, *head.layers), decoder, seed=4)
        else:
            own = (features, head) if inference == "top_down" else network(features, *head.layers)
            vae = HierarchicalVAE(prior, [own], [decoder], inference, seed=4)
        vae.compile("adam", objective=ELBO(free_bits=0.1))
        vae.build((None, D))
        return vae

    plain, hierarchical = make("VAE"), make(inference)
    for one, other in zip(plain.weights, hierarchical.weights, strict=True):
        assert one.shape == other.shape
        other.assign(one)
    for method in ("log_weights", "elbo"):
        found = [getattr(vae, method)(x, 3, seed=5) for vae in (plain, hierarchical)]
        np.testing.assert_array_equal(*found)
    found = [vae.fit(x, epochs=2, verbose=0).history for vae in (plain, hierarchical)]
    assert found[1].pop("kl_1") == found[1]["kl"]
    assert found[0] == found[1]


# Layers of bits: a deep sigmoid belief network, whose states can be counted.

BITS = (3, 2)


def bits(objective=None):
    seeds = itertools.count()

    def dense(units):
        kernel, bias = (keras.initializers.RandomNormal(0.0, 1.0, next(seeds)) for _ in range(2))
        return Dense(units, kernel_initializer=kernel, bias_initializer=bias)

    def layer(units):
        return network(dense(units), likelihoods.Bernoulli(units, convert_to_tensor_fn="sample"))

    vae = HierarchicalVAE(
        priors.Prior("Bernoulli", BITS[1], initial={"logits": [0.5, -1.0]}),
        [layer(BITS[0]), layer(BITS[1])],
        [layer(4), layer(BITS[0])],
        seed=0,
    )
    vae.compile("sgd", objective=objective or IWAE(3, "score_function"))
    vae.build((None, 4))
    return vae


PIXELS = np.array([1.0, 0.0, 1.0, 1.0])
STATES = np.array([*itertools.product([0, 1], repeat=sum(BITS))], float)


def log_bernoulli(values, logits):
    return (values * logits - np.logaddexp(0, logits)).sum(axis=-1)


def counted(weights):
    """Log p(x, z) and log q(z|x) of all states z."""
    top, (a, a_bias), (u1, u1_bias), (u2, u2_bias), (w, w_bias) = weights
    z1, z2 = STATES[:, : BITS[0]], STATES[:, BITS[0] :]
    log_p = log_bernoulli(z2, top) + log_bernoulli(z1, z2 @ a + a_bias)
    log_p += log_bernoulli(PIXELS, z1 @ w + w_bias)
    log_q = log_bernoulli(z1, PIXELS @ u1 + u1_bias) + log_bernoulli(z2, z1 @ u2 + u2_bias)
    return log_p, log_q


def unflattened(vae, flat):
    """The weights of the prior, p(z_1|z_2), q(z_1|x), q(z_2|z_1), p(x|z_1) from one vector."""
    values, start = [], 0
    for weight in vae.trainable_weights:
        size = int(np.prod(weight.shape))
        values.append(flat[start : start + size].reshape(weight.shape))
        start += size
    return values[0], *zip(values[1::2], values[2::2], strict=True)


def flattened(vae):
    return np.concatenate([np.ravel(weight) for weight in vae.trainable_weights]).astype(float)


def test_bits_against_all_states():
    vae = bits()
    log_p, log_q = counted(unflattened(vae, flattened(vae)))
    states, batch = STATES.astype("float32"), PIXELS[None].astype("float32")
    assert special.logsumexp(log_q) == pytest.approx(0.0, abs=1e-9)
    found_q = vae.posterior(batch).log_prob(states[:, None])[:, 0]
    np.testing.assert_allclose(found_q, log_q, atol=1e-5)
    found = vae.likelihood(states).log_prob(batch) + vae.prior().log_prob(states)
    np.testing.assert_allclose(found, log_p, atol=1e-5)
    draws = vae.posterior(batch).sample(20_000, seed=0).numpy()[:, 0]
    shares = (draws[:, None] == states).all(axis=-1).mean(axis=0)
    np.testing.assert_allclose(shares, np.exp(log_q), atol=5 * np.sqrt(0.25 / 20_000))
    evidence = vae.log_marginal_likelihood(batch, 20_000, seed=1)
    wanted = special.logsumexp(log_p)
    assert evidence.estimate[0] == pytest.approx(wanted, abs=5 * evidence.standard_error[0])
    with pytest.raises(TypeError, match="not continuous"):
        vae.log_marginal_likelihood(batch, 2, method="ais")


@pytest.mark.parametrize(
    "name",
    ["ELBO", pytest.param("VIMCO", marks=pytest.mark.long)],
)
def test_gradients_of_bits_against_all_states(name):
    vae = bits(ELBO(num_samples=3, estimator="score_function") if name == "ELBO" else None)

    def bound(flat):
        log_p, log_q = counted(unflattened(vae, flat))
        ratio = log_p - log_q
        if name == "ELBO":
            return np.exp(log_q) @ ratio
        pairs = special.logsumexp([*np.meshgrid(ratio, ratio, ratio)], axis=0) - np.log(3)
        return np.exp(np.add.outer(np.add.outer(log_q, log_q), log_q)).ravel() @ pairs.ravel()

    wanted = derivative(bound, flattened(vae))
    assert_unbiased(vae, PIXELS, wanted, size=8000, precision=0.05)


# Chains of distributions, which priors and posteriors are.


def chain(reverse=False):
    """x_1 a gamma variable, x_2 ~ N(x_1, 0.5) twice, x_3 bits of log-odds 3 (x_2 - 1), `(2, 1)`."""
    gamma = tfd.Independent(tfd.Gamma([3.0], 2.0), 1)

    def normal(x):
        loc = tf.repeat(x, 2, axis=-1)
        return tfd.Independent(tfd.Normal(loc, 0.5), 1)

    def bits(x):
        return tfd.Independent(tfd.Bernoulli(logits=3.0 * (x - 1.0)[..., None]), 2)

    shapes = [(1,), (2,), (2, 1)]
    return distributions.Chain(gamma, [normal, bits], shapes, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_chain_against_its_factors(reverse, rng):
    p = chain(reverse)
    x1, x2 = rng.gamma(3.0, 0.5, (4, 6, 1)), rng.normal(size=(4, 6, 2))
    x3 = rng.integers(0, 2, (4, 6, 2)).astype(float)
    wanted = stats.gamma(3.0, scale=0.5).logpdf(x1[..., 0])
    wanted += stats.norm(x1, 0.5).logpdf(x2).sum(axis=-1)
    wanted += stats.bernoulli.logpmf(x3, special.expit(3.0 * (x2 - 1.0))).sum(axis=-1)
    order = [x1, x2, x3][:: -1 if reverse else 1]
    found = p.log_prob(np.concatenate(order, axis=-1).astype("float32"))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert (p.event_shape, p.batch_shape) == ((5,), ())
    assert p.sample([3, 2], seed=0).shape == (3, 2, 5)
    assert p.experimental_default_event_space_bijector() is None  # The bits.
    with pytest.raises(NotImplementedError, match="mean: a chain"):
        p.mean()


def test_draws_of_a_chain_and_their_scores(rng):
    p = chain()
    x = p.sample(20_000, seed=3).numpy()
    x1, x2, x3 = x[:, :1], x[:, 1:3], x[:, 3:]
    assert stats.kstest(x1[:, 0], stats.gamma(3.0, scale=0.5).cdf).pvalue > 1e-3
    residual = (x2 - x1) / 0.5
    assert stats.kstest(residual.ravel(), stats.norm.cdf).pvalue > 1e-3
    expected = special.expit(3.0 * (x2 - 1.0))
    assert abs((x3 - expected).mean()) < 4.5 * np.sqrt(0.25 / 40_000)

    @tf.function
    def scored():
        x = p.sample(50, seed=tf.constant([1, 2]))
        return x, p.log_prob(x)  # By the distributions that made them.

    x, log_prob = scored()
    np.testing.assert_allclose(log_prob, p.log_prob(x.numpy()), rtol=1e-4)


def test_layers_of_a_chain_have_noise_of_their_own():
    first = tfd.Independent(tfd.Normal([0.0, 0.0], 1.0), 1)
    shapes = [(2,), (2,), (2,)]

    def others(x):
        return tfd.Independent(tfd.Normal(tf.zeros_like(x), 1.0), 1)

    p = distributions.Chain(first, [others, others], shapes)
    correlation = np.corrcoef(p.sample(10_000, seed=[1, 5]).numpy().T)
    np.testing.assert_allclose(correlation, np.eye(6), atol=5 / np.sqrt(10_000))


def test_chain_knows_its_support():
    gamma = tfd.Independent(tfd.Gamma([3.0, 2.0], 2.0), 1)

    def normal(x):
        return tfd.Independent(tfd.Normal(x[..., :1], 1.0), 1)

    p = distributions.Chain(gamma, [normal], [(2,), (1,)], reverse=True)
    bijector = p.experimental_default_event_space_bijector()
    x = bijector.forward([-3.0, -3.0, -3.0]).numpy()
    assert x[0] == -3.0
    assert (x[1:] > 0).all()
    assert np.isfinite(p.log_prob(x))


# As a Keras model.


@pytest.mark.long
@pytest.mark.parametrize("inference", INFERENCE)
def test_a_saved_model_is_the_same_and_goes_on_alike(inference, x, tmp_path):
    weights = [1.0, schedules.Linear(num_steps=8)]
    vae = build(inference, prior=priors.Normal(K2), objective=ELBO(kl_weight=weights))
    with pytest.warns(UserWarning, match=r"kl_weight = 1, 0\.5: .* takes 4 more steps"):
        history = vae.fit(x, epochs=2, batch_size=20, shuffle=False, verbose=0).history
    assert list(history) == [
        *("loss", "elbo", "nll", "kl", "kl_1", "kl_2"),
        *("kl_weight_1", "kl_weight_2"),
    ]
    assert history["kl_weight_2"] == [pytest.approx(1 / 16), pytest.approx(5 / 16)]
    last = {name: values[-1] for name, values in history.items()}
    assert last["kl"] == pytest.approx(last["kl_1"] + last["kl_2"], rel=1e-6)
    assert last["kl_weight_1"] == 1.0
    vae.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is HierarchicalVAE
    assert loaded.inference == inference
    assert loaded.event_shapes == [(K1,), (K2,)]
    z = vae.posterior(x).sample(4, seed=0)
    for method in (lambda model: model.posterior(x), lambda model: model.prior()):
        np.testing.assert_array_equal(method(vae).log_prob(z), method(loaded).log_prob(z))
    np.testing.assert_array_equal(vae.log_weights(x, 3, seed=1), loaded.log_weights(x, 3, seed=1))
    settings = {"epochs": 2, "batch_size": 20, "shuffle": False, "verbose": 0}
    goes_on, again = vae.fit(x, **settings).history, loaded.fit(x, **settings).history
    assert goes_on == again
    assert again["kl_weight_2"][-1] == pytest.approx(13 / 16)


def test_weights_and_free_bits_are_of_layers(x):
    vae = build(objective=ELBO(kl_weight=[0.5, 0.25], num_samples=2))
    vae.build((None, D))
    batch = tf.constant(x)

    def losses(objective):
        vae.compile("sgd", objective=objective)
        vae.noise.count.assign(0)
        with noise.fixed(vae.noise.next()):
            loss, terms, _ = vae.example_losses(batch, batch, training=False)
        return np.mean(loss), {name: np.mean(value) for name, value in terms.items()}

    loss, terms = losses(ELBO(kl_weight=[0.5, 0.25], num_samples=2))
    weighted = terms["nll"] + 0.5 * terms["kl_1"] + 0.25 * terms["kl_2"]
    assert loss == pytest.approx(weighted, rel=1e-5)
    free = 0.5 * (terms["kl_1"] + terms["kl_2"])  # between the two
    loss, terms = losses(ELBO(free_bits=free, num_samples=2))
    paid = max(free, terms["kl_1"]) + max(free, terms["kl_2"])
    assert loss == pytest.approx(terms["nll"] + paid, rel=1e-5)
    assert paid > terms["kl"] + 0.01


@pytest.mark.long
@pytest.mark.parametrize("inference", QUICK_OF_BOTH)
def test_the_programs_of_fit_do_what_one_step_after_the_other_does(inference, x):
    """In the former draws know what they were made from, in the latter they are scored anew."""
    found = []
    for run_eagerly in (False, True):
        keras.utils.set_random_seed(3)
        vae = build(inference, objective=IWAE(4), run_eagerly=run_eagerly)
        found.append(vae.fit(x, epochs=2, batch_size=20, shuffle=False, verbose=0).history)
    assert list(found[0]) == list(found[1])
    for name, values in found[0].items():
        assert values == pytest.approx(found[1][name], rel=1e-3), name


@pytest.mark.long
def test_layers_of_flows(x):
    """Scored as they were drawn, or inverted: the same losses; and kl is of what is sampled."""
    found = []
    for run_eagerly in (False, True):
        keras.utils.set_random_seed(3)
        first = posteriors.Flow(K1, flows.InverseAutoregressive(2, hidden_units=(8,)))
        second = posteriors.Flow(K2, flows.Planar(2))
        vae = HierarchicalVAE(
            priors.StandardNormal(K2),
            [network(Dense(b.params_size), b) for b in (first, second)],
            [
                network(Dense(D), likelihoods.Bernoulli(D)),
                network(Dense(2 * K1), likelihoods.Normal(K1)),
            ],
            seed=1,
        )
        vae.compile("adam", objective=IWAE(4), run_eagerly=run_eagerly)
        found.append(vae.fit(x, epochs=1, batch_size=20, shuffle=False, verbose=0).history)
    for name, values in found[0].items():
        assert values == pytest.approx(found[1][name], rel=1e-3), name
    networks = vae.encoder.heads[0].layers[-1].weights
    assert len(networks) > 3
    assert {id(weight) for weight in networks} <= {id(weight) for weight in vae.trainable_weights}


@pytest.mark.long
@pytest.mark.parametrize("inference", INFERENCE)
def test_xla(inference, linear, x):
    """The loss of the exact posterior has no noise, so it is -log p(x) whoever draws."""
    wanted = -linear.log_prob(x).mean()
    still = keras.optimizers.SGD(1e-7)
    vae = linear.vae(inference, optimizer=still, objective=IWAE(3), jit_compile=True)
    logs = vae.evaluate(x, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(wanted, rel=1e-4)
    history = vae.fit(x, batch_size=20, epochs=1, verbose=0).history
    assert history["loss"][0] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("policy", "dtype"), [("mixed_bfloat16", "float32"), ("float64",) * 2])
def test_densities_are_in_full_precision(policy, dtype, x):
    keras.mixed_precision.set_global_policy(policy)
    for inference in INFERENCE:
        vae = build(inference)
        vae.build((None, D))
        q, z = vae.posterior(x), vae.prior().sample(N, seed=0)
        found = q.log_prob(z), vae.prior().log_prob(z), vae.likelihood(z).log_prob(x), z
        assert {value.dtype.name for value in found} == {dtype}
        assert np.isfinite(vae.elbo(x, 2, seed=0)).all()


@pytest.mark.long
def test_three_layers_with_a_prior_that_reads_the_encoder(x):
    """Pseudo-inputs are values of z_{L-1} bottom up, and of x top down."""
    for inference, pseudo_inputs in zip(INFERENCE, (np.eye(2), x[:4]), strict=True):
        prior = priors.VampPrior(3, pseudo_inputs=pseudo_inputs)
        vae = build(inference, prior=prior, sizes=(4, 2, 3))
        assert vae.num_layers == 3
        history = vae.fit(x, verbose=0).history
        parts = sum(history[f"kl_{layer}"][0] for layer in (1, 2, 3))
        assert history["kl"][0] == pytest.approx(parts, rel=1e-5)
        assert len(vae.trainable_weights) == len({id(weight) for weight in vae.trainable_weights})
        z1, z2, z3 = vae.split(vae.posterior(x).sample(6, seed=0))
        assert (z1.shape, z2.shape, z3.shape) == ((6, N, 4), (6, N, 2), (6, N, 3))


@pytest.mark.long
def test_dropout_and_batch_normalization_are_welcome_in_the_pass_upwards(x):
    vae = HierarchicalVAE(
        priors.StandardNormal(K2),
        [
            (
                network(Dense(8), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)),
                network(Dense(2 * K1), posteriors.DiagonalNormal(K1)),
            ),
            (Dense(6, "relu"), network(Dense(2 * K2), posteriors.DiagonalNormal(K2))),
        ],
        [
            network(Dense(D), likelihoods.Bernoulli(D)),
            network(Dense(2 * K1), likelihoods.Normal(K1)),
        ],
        "top_down",
        seed=0,
    )
    vae.compile("adam")
    vae.fit(x, epochs=2, verbose=0)
    (moving_mean,) = [w for w in vae.weights if "moving_mean" in w.name]
    assert np.abs(moving_mean.numpy()).max() > 0
    np.testing.assert_array_equal(vae.elbo(x, 3, seed=0), vae.elbo(x, 3, seed=0))


def test_units_of_all_layers_are_diagnosed(linear, x):
    """Their activity is the variance of the posterior mean over the examples."""
    use = diagnostics.latents(linear.vae("bottom_up"), x, seed=0)
    exact = linear.z1_given_x(), linear.z2_given_x()
    wanted = np.concatenate([np.var(x @ gain.T, axis=0) for gain, _, _ in exact])
    # The means are of 64 draws.
    error_of_mean = np.concatenate([np.diag(cov) / 64 for _, _, cov in exact])
    error = np.sqrt((2 * error_of_mean**2 + 4 * wanted * error_of_mean) / N)
    np.testing.assert_array_less(abs(use.activity - wanted), 4 * error)
    assert (error < wanted.max() / 10).all()
    assert use.kl_by_unit is None


@pytest.mark.long
@pytest.mark.parametrize("inference", INFERENCE)
def test_a_diagnosis_blames_the_encoder_that_is_off(inference, linear, x):
    """The rest of the posterior is exact, so the gap is the encoder's alone."""
    vae = linear.vae(inference, spoilt=0.7)
    found = diagnostics.diagnose(vae, x, 500, num_local=10, seed=0)
    gap = linear.gap(inference, 0.7)
    assert found.gaps.amortization.mean() == pytest.approx(gap, abs=0.15)
    assert found.gaps.approximation.mean() == pytest.approx(0.0, abs=0.05)
    evidence = linear.log_prob(x[found.gaps.indices])
    np.testing.assert_allclose(found.gaps.log_marginal_likelihood, evidence, atol=0.1)
    name = "BottomUp" if inference == "bottom_up" else "TopDown"
    assert f"approximation ({name})" in str(found)


# What cannot be.


def parts(inference="bottom_up"):
    """The arguments of a small model."""
    encoders = [network(Dense(2 * k), posteriors.DiagonalNormal(k)) for k in (K1, K2)]
    if inference == "top_down":
        encoders = [(Dense(6), head) for head in encoders]
    return {
        "prior": priors.StandardNormal(K2),
        "encoders": encoders,
        "decoders": [
            network(Dense(D), likelihoods.Bernoulli(D)),
            network(Dense(2 * K1), likelihoods.Normal(K1)),
        ],
        "inference": inference,
    }


def normal(size, **kwargs):
    return network(Dense(2 * size), posteriors.DiagonalNormal(size, **kwargs))


BAD = {
    "prior of another size": (
        lambda given: {"prior": priors.StandardNormal(3)},
        r"prior: got one of events of shape \(3,\), wanted \(2,\), those of z_2",
    ),
    "decoder of another size": (
        lambda given: {"decoders": [given["decoders"][0], normal(4)]},
        r"decoders\[1\]: got one that makes events of shape \(4,\), wanted \(3,\), those of z_1",
    ),
    "encoder for another layer": (
        lambda given: {
            "encoders": [given["encoders"][0], network(keras.Input((7,)), *normal(2).layers)]
        },
        r"encoders\[1\]: got a network that does not take z_1, values of shape \(3,\)",
    ),
    "first decoder for another layer": (
        lambda given: {
            "decoders": [
                network(keras.Input((7,)), Dense(D), likelihoods.Bernoulli(D)),
                given["decoders"][1],
            ]
        },
        r"decoders\[0\]: got a network that does not take z_1",
    ),
    "fewer encoders": (
        lambda given: {"encoders": given["encoders"][:1]},
        "encoders: got 1 with 2 decoders",
    ),
    "no list": (lambda given: {"encoders": given["encoders"][0]}, "encoders: got .* wanted a list"),
    "empty": (lambda given: {"encoders": [], "decoders": []}, "wanted a list"),
    "no block": (
        lambda given: {"decoders": [given["decoders"][0], Dense(4)]},
        r"decoders\[1\]: got a network that ends in a layer Dense",
    ),
    "no prior": (lambda given: {"prior": tfp.distributions.Normal(0, 1)}, "prior: got"),
    "another inference": (lambda given: {"inference": "sideways"}, "inference: got 'sideways'"),
    "pairs bottom up": (
        lambda given: {"encoders": parts("top_down")["encoders"]},
        r"encoders\[0\]: got .* wanted a tf_keras layer",
    ),
    "no pairs top down": (
        lambda given: {"inference": "top_down"},
        r"encoders\[0\]: got .* wanted a pair",
    ),
    "dropout": (
        lambda given: {
            "encoders": [
                given["encoders"][0],
                network(keras.layers.Dropout(0.5), *normal(2).layers),
            ]
        },
        r"encoders\[1\]: got a layer Dropout",
    ),
    "mean passed on": (
        lambda given: {"encoders": [given["encoders"][0], normal(2, convert_to_tensor_fn="mean")]},
        r"encoders\[1\]: got a block .* that passes its mean on",
    ),
    "draws passed on": (
        lambda given: {"encoders": [given["encoders"][0], normal(2, num_samples=3)]},
        r"encoders\[1\]: .* several draws on, wanted one draw: the block of encoders\[0\]",
    ),
    "bits with normal": (
        lambda given: {
            "decoders": [given["decoders"][0], network(Dense(K1), likelihoods.Bernoulli(K1))]
        },
        "z_1: prior and posterior differ in kind",
    ),
    "bits in a ladder": (
        lambda given: (
            parts("top_down")
            | {"decoders": [given["decoders"][0], network(Dense(K1), likelihoods.Bernoulli(K1))]}
        ),
        r"decoders\[1\]: got a network that makes a .*Bernoulli.* wanted independent normal",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parts(name):
    change, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message):
        HierarchicalVAE(**parts() | change(parts()))


def test_bad_objectives(x):
    vae = HierarchicalVAE(**parts())
    for objective, message in (
        (ELBO(kl_weight=[1.0, 1.0, 1.0]), "kl_weight: got a list of 3 weights, .* list of 2"),
        (ELBO(use_exact_kl=True), "use_exact_kl: got True, but bottom up only the last layer"),
        (ELBO(estimator="enumerated"), "enumerated"),
        (ELBO(estimator="relaxed", temperature=0.5), "relaxed"),
    ):
        with pytest.raises(ValueError, match=message):
            vae.compile("adam", objective=objective)
    for weights in ([], [1.0, -1.0], ["a"], [tf.Variable(1.0)]):
        with pytest.raises((TypeError, ValueError), match=r"kl_weight"):
            ELBO(kl_weight=weights)
    with pytest.raises(ValueError, match="kl_weight: got a list with the estimator"):
        ELBO(kl_weight=[1.0, 1.0], num_samples=2, estimator="sticking_the_landing")
    plain = VAE(priors.StandardNormal(2), normal(2), network(Dense(D), likelihoods.Bernoulli(D)))
    with pytest.raises(ValueError, match=r"kl_weight: got a list of 2 weights, .* list of 1"):
        plain.compile("adam", objective=ELBO(kl_weight=[1.0, 1.0]))
    vae.compile("adam")
    with pytest.raises(ValueError, match="2 layers of latent variables"):
        check_elbo(vae, x)
    with pytest.raises(ValueError, match="reparameterized"):
        bits(ELBO())


@pytest.mark.parametrize(("part", "size"), [("encoders", K2), ("decoders", K1)])
def test_regularizers_of_blocks_are_refused(part, size):
    given = parts()
    regularizer = KLDivergenceRegularizer(priors.StandardNormal(size))
    given[part][1] = normal(size, activity_regularizer=regularizer)
    with pytest.raises(ValueError, match="activity_regularizer"):
        HierarchicalVAE(**given)
