"""Local inference against closed forms: linear-Gaussian posteriors and probabilistic PCA."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import stats

from tfpvae import VAE, LocalVAE, likelihoods, local_inference, local_posterior, posteriors, priors

D, K, N = 4, 2, 30
SCALE = 0.7


class Linear:
    """x = W z + b + s e: p(z|x) is a Gaussian whose precision and gain do not depend on x."""

    def __init__(self, rng):
        mixed = np.array([[1.0, 0.8], [0.0, 0.6]])  # Or else the posterior is all but diagonal.
        self.weight, self.bias = rng.normal(size=(D, K)) @ mixed, rng.normal(size=D)
        self.precision = np.eye(K) + self.weight.T @ self.weight / SCALE**2
        self.cov = np.linalg.inv(self.precision)
        self.gain = self.cov @ self.weight.T / SCALE**2

    def log_prob(self, x):
        cov = self.weight @ self.weight.T + SCALE**2 * np.eye(D)
        return stats.multivariate_normal(self.bias, cov).logpdf(x)

    def mean(self, x):
        return (x - self.bias) @ self.gain.T

    def divergence(self, x, loc, scale):
        """KL(N(loc, diag(scale^2)) || p(z|x)) of each example."""
        shift = loc - self.mean(x)
        distance = np.einsum("ni,ij,nj->n", shift, self.precision, shift)
        trace = np.sum(scale**2 * np.diag(self.precision), axis=-1)
        log_det = np.linalg.slogdet(self.cov)[1] - 2 * np.log(scale).sum(axis=-1)
        return 0.5 * (distance + trace - K + log_det)

    @property
    def family_gap(self):
        """KL of the best diagonal Gaussian, whose precisions are those of the diagonal."""
        return 0.5 * (np.log(np.diag(self.precision)).sum() - np.linalg.slogdet(self.precision)[1])

    def vae(self, shift=0.5, scale=0.4):
        """The model, with a diagonal encoder whose means are off by `shift`."""
        vae = VAE(
            priors.StandardNormal(K),
            keras.Sequential([keras.layers.Dense(2 * K), posteriors.DiagonalNormal(K)]),
            keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=SCALE)]),
            seed=0,
        )
        vae.build((None, D))
        raw = np.log(np.expm1(np.full(K, scale)))
        kernel = np.concatenate([self.gain.T, np.zeros((D, K))], axis=1)
        bias = np.concatenate([shift - self.gain @ self.bias, raw])
        vae.encoder.layers[0].set_weights([kernel, bias])
        vae.decoder.layers[0].set_weights([self.weight.T, self.bias])
        return vae


@pytest.fixture(scope="module")
def linear():
    return Linear(np.random.default_rng(1))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(2).normal(size=(N, D)).astype("float32")


@pytest.fixture(scope="module")
def diagonal(linear, x):
    return local_posterior(linear.vae(), x, seed=1, batch_size=20, verbose=0)


def test_best_of_a_family_is_the_closed_form(linear, x, diagonal):
    assert linear.family_gap > 0.1
    assert diagonal.converged
    q = diagonal.posterior
    excess = linear.divergence(x, q.mean().numpy(), q.stddev().numpy()) - linear.family_gap
    assert excess.min() > -1e-4  # None is better than the best.
    assert excess.max() < 0.01
    np.testing.assert_allclose(
        q.stddev(), np.broadcast_to(np.diag(linear.precision) ** -0.5, (N, K)), rtol=0.15
    )


def test_its_elbo_is_of_fresh_draws_and_its_error_is_right(linear, x, diagonal):
    exact = linear.log_prob(x) - linear.divergence(
        x, diagonal.posterior.mean().numpy(), diagonal.posterior.stddev().numpy()
    )
    z_scores = (diagonal.elbo - exact) / diagonal.standard_error
    assert stats.chi2(N).sf(np.sum(z_scores**2)) > 1e-4
    assert stats.chi2(N).cdf(np.sum(z_scores**2)) > 1e-4
    np.testing.assert_allclose(diagonal.log_marginal_likelihood, linear.log_prob(x), atol=0.15)


def test_a_family_with_the_exact_posterior_reaches_log_p(linear, x):
    block = posteriors.FullRankNormal(K)
    local = local_posterior(linear.vae(), x, block, seed=1, verbose=0)
    np.testing.assert_allclose(local.elbo, linear.log_prob(x), atol=0.01)
    np.testing.assert_allclose(
        local.posterior.covariance(), np.broadcast_to(linear.cov, (N, K, K)), atol=0.02
    )
    np.testing.assert_allclose(local.log_marginal_likelihood, linear.log_prob(x), atol=2e-3)


def test_what_cannot_be_improved_stays_the_encoders(linear, x):
    vae = linear.vae(shift=0.0)
    scale = np.diag(linear.precision) ** -0.5
    weights = vae.encoder.layers[0].get_weights()
    weights[1][K:] = np.log(np.expm1(scale))
    vae.encoder.layers[0].set_weights(weights)
    local = local_posterior(vae, x, seed=0, verbose=0)
    q = local.posterior
    excess = linear.divergence(x, q.mean().numpy(), q.stddev().numpy()) - linear.family_gap
    assert excess.max() < 0.003
    unchanged = np.isclose(q.mean(), vae.posterior(x).mean()).all(axis=1)
    assert unchanged.any()


def test_same_seed_same_numbers_and_steps_that_run_out(linear, x, diagonal):
    vae = linear.vae()
    again = local_posterior(vae, x, seed=1, batch_size=20, verbose=0)
    np.testing.assert_array_equal(again.log_weights, diagonal.log_weights)
    short = local_posterior(vae, x, num_samples=33, max_steps=3, seed=1, verbose=0)
    assert (short.converged, short.steps, short.log_weights.shape) == (False, 3, (33, N))
    assert diagonal.elbo.mean() > short.elbo.mean()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"posterior": posteriors.FullRankNormal}, TypeError, "posterior: got <class"),
        ({"posterior": posteriors.DiagonalNormal(3)}, ValueError, r"posterior: got .* \(3,\)"),
        ({"num_samples": 0}, ValueError, "num_samples: got 0"),
        ({"max_steps": 1.5}, TypeError, "max_steps: got 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"tolerance": 0.0}, ValueError, "tolerance: got 0.0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate: got nan"),
    ],
)
def test_bad_arguments(linear, x, kwargs, error, message):
    with pytest.raises(error, match=message):
        local_posterior(linear.vae(), x, **kwargs)


def test_bad_models(linear, x):
    with pytest.raises(TypeError, match="vae: got 3, wanted a VAE"):
        local_posterior(3, x)
    with pytest.raises(ValueError, match=r"x: got shape \(30, 3\)"):
        local_posterior(linear.vae(), x[:, :3])
    from tfpvae import DistributionLayer

    discrete = DistributionLayer("OneHotCategorical", K, dtype="float32", sample_dtype="float32")
    with pytest.raises(ValueError, match=r"OneHotCategorical\), whose draws are not reparam"):
        local_posterior(linear.vae(), x, discrete)


def ppca(x, size):
    """The greatest log-likelihood of probabilistic PCA, and its noise variance."""
    values = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1]
    noise = values[size:].mean()
    log_det = np.log(values[:size]).sum() + (len(values) - size) * np.log(noise)
    return -0.5 * (len(values) * (np.log(2 * np.pi) + 1) + log_det), noise


def local_vae(variance, num_data=N, num_samples=8):
    decoder = [keras.layers.Dense(D), likelihoods.Normal(D, scale=float(np.sqrt(variance)))]
    return LocalVAE(
        priors.StandardNormal(K),
        posteriors.DiagonalNormal(K, num_samples=num_samples),
        keras.Sequential(decoder),
        num_data,
        seed=0,
    )


@pytest.fixture(scope="module")
def trained(x):
    """Probabilistic PCA by local inference: at the optimum the exact posterior is diagonal."""
    _, variance = ppca(x, K)
    keras.utils.set_random_seed(3)
    vae = local_vae(variance)
    rate = keras.optimizers.schedules.PolynomialDecay(0.1, 800, 0.0)
    vae.compile(keras.optimizers.Adam(rate))
    vae.fit(x, epochs=400, batch_size=15, verbose=0)
    return vae


@pytest.mark.long
def test_training_reaches_the_maximum_likelihood_of_ppca(trained, x):
    best, _ = ppca(x, K)
    elbo = trained.elbo(x, num_samples=1000, seed=0).mean()
    assert best - 0.05 < elbo < best + 0.01
    loss = trained.evaluate(x, verbose=0, return_dict=True)["loss"]
    assert -loss == pytest.approx(elbo, abs=0.5)


def test_examples_are_found_in_any_order(trained, x):
    order = np.random.default_rng(0).permutation(N)[:17]
    np.testing.assert_array_equal(
        trained.posterior(x[order]).mean(), trained.posterior(x).mean().numpy()[order]
    )
    assert trained.posterior(x).mean().numpy().std(axis=0).min() > 0.3


def test_new_examples_get_posteriors_by_optimization_only(trained, x):
    new = x[:3] + np.float32(0.25)
    with pytest.raises(ValueError, match="x: got 3 examples that the model was not fit on"):
        trained.elbo(new)
    local = local_posterior(trained, new, seed=0, verbose=0)
    weight, bias = (v.astype(float) for v in trained.decoder.layers[0].get_weights())
    _, variance = ppca(x, K)
    exact = stats.multivariate_normal(bias, weight.T @ weight + variance * np.eye(D)).logpdf(new)
    assert (local.elbo < exact + 0.02).all()
    assert (local.elbo > exact - 0.1).all()  # The trained weights are all but orthogonal.


def test_saves_in_safe_mode_and_goes_on_training(trained, x, tmp_path):
    path = tmp_path / "local.keras"
    trained.save(path)
    again = keras.models.load_model(path)  # Safe mode is Keras's default.
    assert isinstance(again, LocalVAE)
    np.testing.assert_array_equal(again.elbo(x, seed=1), trained.elbo(x, seed=1))
    histories = [vae.fit(x, epochs=1, shuffle=False, verbose=0).history for vae in (again, trained)]
    assert histories[0] == histories[1]
    with pytest.raises(ValueError, match="x: got other examples than before"):
        again.fit(x + 1.0, verbose=0)


@pytest.mark.long
def test_a_step_moves_the_batchs_own_parameters_only(x):
    """Equal examples share theirs; as XLA compiles it, the other tests run without."""
    twice = np.concatenate([x[:4], x[:2]])
    vae = local_vae(0.5, num_data=6)
    vae.compile(keras.optimizers.SGD(0.1), jit_compile=True)
    vae.fit(twice, epochs=1, batch_size=6, verbose=0)
    before = vae.posterior(twice).mean().numpy()
    np.testing.assert_array_equal(before[4:], before[:2])
    vae.train_on_batch(twice[1:3])
    moved = np.any(vae.posterior(twice).mean().numpy() != before, axis=1)
    assert moved.tolist() == [False, True, True, False, False, True]


def test_steps_are_those_of_a_sparse_embedding():
    """The gradient of a row is the sum over its places in the batch."""
    layer = local_inference.LocalParameters(3, 2)
    layer.adapt(np.array([[1.0], [2.0], [3.0]]))
    batch, upstream = tf.constant([[3.0], [1.0], [3.0]]), tf.constant([[1.0, 2], [3, 4], [5, 6]])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(batch) * upstream)
    expected = [[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]
    np.testing.assert_array_equal(tape.gradient(total, layer.parameters), expected)


def test_keys_tell_examples_apart(rng):
    """Binary images, counts and floats: as many keys as there are different rows."""
    binary = rng.integers(0, 2, (3000, 12))  # of 4096 that there are
    counts = rng.integers(0, 17, (3000, 3))
    for rows in (binary, counts, rng.normal(size=(3000, 2)), np.eye(3000)):
        keys = local_inference._keys(tf.constant(rows, tf.float32)).numpy()
        assert len(np.unique(keys)) == len(np.unique(rows.astype("float32"), axis=0))
    one, other = tf.constant([[0.0, np.nan]]), tf.constant([[-0.0, -np.nan]])
    assert local_inference._keys(one) == local_inference._keys(other)
    assert local_inference._keys(one) != local_inference._keys(tf.zeros([1, 2]))


def test_what_local_vae_refuses(x):
    vae = local_vae(0.5)
    vae.compile("adam")
    assert vae.num_data == N
    with pytest.raises(ValueError, match="x: got 29 examples, wanted num_data=30"):
        vae.fit(x[1:])
    with pytest.raises(ValueError, match="examples that the model was not fit on"):
        vae.evaluate(x, verbose=0)
    for kwargs in ({"validation_data": x}, {"validation_split": 0.1}):
        with pytest.raises(ValueError, match="validation_data: got some, wanted none"):
            vae.fit(x, **kwargs)
    with pytest.raises(TypeError, match=r"x: got .*Dataset, wanted an array"):
        vae.fit(tf.data.Dataset.from_tensor_slices(x).batch(5))
    with pytest.raises(TypeError, match="posterior: got 'DiagonalNormal', wanted a block"):
        LocalVAE(priors.StandardNormal(K), "DiagonalNormal", vae.decoder, N)
    with pytest.raises(ValueError, match="prior and posterior differ in size"):
        LocalVAE(priors.StandardNormal(K), posteriors.DiagonalNormal(3), vae.decoder, N)
    with pytest.raises(ValueError, match="num_data: got 0"):
        LocalVAE(priors.StandardNormal(K), posteriors.DiagonalNormal(K), vae.decoder, 0)
