"""The latent space after training: densities of the codes, paths, traversals."""

import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import stats

from tfpvae import VAE, LocalVAE, flows, latent_space, likelihoods, plotting, posteriors, priors

tfd = tfp.distributions
D, K = 3, 2


def build(posterior=None, prior=None, size=K):
    posterior = posterior or posteriors.DiagonalNormal(size)
    vae = VAE(
        prior or priors.StandardNormal(size),
        keras.Sequential([keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=0.1)]),
        seed=0,
    )
    vae.build((None, D))
    return vae


@pytest.fixture
def x(rng):
    return rng.normal(size=(300, D)).astype("float32")


@pytest.fixture
def clustered(rng):
    """A model whose codes, draws of q(z|x), are a mixture of two Gaussians; its data; theirs."""
    vae = build()
    scale = np.array([0.5, 0.8])
    kernel, bias = np.zeros((D, 2 * K)), np.zeros(2 * K)
    kernel[:K, :K] = np.eye(K)
    bias[K:] = np.log(np.expm1(scale))
    vae.encoder.layers[0].set_weights([kernel, bias])
    places, which = np.array([[2.0, 2.0], [-2.0, 1.0]]), rng.random(2000) < 0.3
    means = places[which.astype(int)] + 0.3 * rng.normal(size=(2000, K))
    x = np.concatenate([means, rng.normal(size=(2000, 1))], axis=1).astype("float32")
    sd = np.sqrt(0.3**2 + scale**2)

    def density(z):
        each = [stats.norm.pdf(z, place, sd).prod(axis=-1) for place in places]
        return 0.7 * each[0] + 0.3 * each[1]

    return vae, x, density


def grid(num=201, end=7.0):
    steps = np.linspace(-end, end, num)
    z = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, K)
    return z, (steps[1] - steps[0]) ** 2


def kl_from(density, p):
    """KL(density || p) by quadrature in two dimensions."""
    z, area = grid()
    f = density(z)
    return np.sum(f * (np.log(f + 1e-300) - p.log_prob(z.astype("float32")).numpy())) * area


def test_the_mixture_is_the_density_of_the_draws(clustered):
    """Not of the means, whose density is far narrower."""
    vae, x, density = clustered
    found = latent_space.fit_aggregate_posterior(vae, x, num_components=2, seed=1)
    assert isinstance(found, priors.NormalMixture)
    z, area = grid()
    assert np.sum(np.exp(found().log_prob(z.astype("float32")))) * area == pytest.approx(
        1, abs=1e-3
    )
    assert -1e-4 < kl_from(density, found()) < 0.01
    assert kl_from(density, vae.prior()) > 1
    again = latent_space.fit_aggregate_posterior(vae, x, num_components=2, seed=1)
    np.testing.assert_array_equal(found.weights[0], again.weights[0])
    other = latent_space.fit_aggregate_posterior(vae, x, num_components=2, seed=2)
    assert not np.array_equal(found.weights[0], other.weights[0])


def test_the_mixture_is_that_of_scikit_learn(clustered):
    mixture = pytest.importorskip("sklearn.mixture")
    vae, x, _ = clustered
    found = latent_space.fit_aggregate_posterior(vae, x, num_components=3, num_draws=2, seed=1)
    z = vae.posterior(x).sample(2, seed=np.array([1, 0], "int32")).numpy().reshape(-1, K)
    theirs = mixture.GaussianMixture(3, random_state=1, max_iter=1000).fit(z)
    at = np.random.default_rng(0).normal(size=(50, K))
    np.testing.assert_allclose(
        found().log_prob(at.astype("float32")), theirs.score_samples(at), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("density", "limit"),
    [pytest.param("flow", 0.06, marks=pytest.mark.long), pytest.param(None, 0.02, id="block")],
)
def test_a_density_is_trained_by_maximum_likelihood(clustered, density, limit):
    """KL(q(z) || p(z)) falls from 3.2 nats to a percent or two of that."""
    vae, x, true = clustered
    assert kl_from(true, vae.prior()) > 3
    kwargs = {}
    if density is None:
        density = priors.NormalMixture(K, 2, initial={"loc": [[1.0, 0.0], [-1.0, 0.0]]})
        kwargs = {"epochs": 30, "learning_rate": 0.03, "batch_size": 100}
    found = latent_space.fit_aggregate_posterior(vae, x, density, num_draws=2, seed=1, **kwargs)
    assert -1e-3 < kl_from(true, found()) < limit
    if isinstance(density, priors.Prior):
        assert found is density
    else:
        assert isinstance(found.flow, flows.RealNVP)


def test_samples_of_a_fitted_density(clustered, tmp_path):
    """They are decoded draws of it; it is a prior of a model that can be saved."""
    vae, x, _ = clustered
    found = latent_space.fit_aggregate_posterior(vae, x, num_components=2)
    kernel, bias = vae.decoder.layers[0].get_weights()
    drawn = vae.sample(20_000, seed=3, prior=found)
    covariance = np.cov(np.asarray(found().sample(200_000, seed=[0, 1])).T)
    np.testing.assert_allclose(
        drawn.mean(axis=0), found().mean().numpy() @ kernel + bias, atol=0.06
    )
    np.testing.assert_allclose(
        np.cov(drawn.T), kernel.T @ covariance @ kernel + 0.1**2 * np.eye(D), rtol=0.05, atol=0.05
    )
    np.testing.assert_array_equal(drawn, vae.sample(20_000, seed=3, prior=found))
    assert not np.array_equal(drawn[:5], vae.sample(5, seed=4, prior=found))
    by_distribution = vae.sample(20_000, seed=3, prior=found())
    np.testing.assert_array_equal(drawn, by_distribution)
    point = tfd.MultivariateNormalDiag(np.float32([1.0, 2.0]), np.float32([1e-6, 1e-6]))
    np.testing.assert_allclose(
        vae.sample(4000, seed=1, prior=point).mean(axis=0), [1.0, 2.0] @ kernel + bias, atol=0.01
    )
    model = VAE(found, vae.encoder, vae.decoder, seed=0)
    model.build(x.shape)
    assert model.elbo(x, 20, seed=0).mean() > vae.elbo(x, 20, seed=0).mean() + 0.5
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.sample(5, seed=1), model.sample(5, seed=1))


def test_a_local_model_has_codes_too(x):
    decoder = keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=0.1)])
    vae = LocalVAE(priors.StandardNormal(K), posteriors.DiagonalNormal(K), decoder, len(x))
    vae.compile("sgd")
    vae.fit(x, epochs=1, verbose=0)
    found = latent_space.fit_aggregate_posterior(vae, x, num_components=1, num_draws=20)
    q = vae.posterior(x)
    mean = q.mean().numpy().mean(axis=0)
    np.testing.assert_allclose(found().mean(), mean, atol=0.1)


def test_without_scikit_learn(clustered, monkeypatch):
    vae, x, _ = clustered
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(ImportError, match=r"pip install 'tfpvae\[sklearn\]'"):
        latent_space.fit_aggregate_posterior(vae, x)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"vae": 3}, TypeError, "vae: got 3, wanted a VAE"),
        ({"density": "kde"}, ValueError, "density: got 'kde', wanted 'mixture', 'flow', or"),
        ({"density": 3}, TypeError, "density: got 3"),
        (
            {"density": priors.VampPrior(K, num_components=2, input_shape=D)},
            TypeError,
            "needs no encoder",
        ),
        (
            {"density": priors.NormalMixture(K + 1, 2)},
            ValueError,
            r"density: got one with event_shape \(3,\), wanted \(2,\)",
        ),
        ({"density": priors.StandardNormal(K)}, ValueError, "has no weights to learn"),
        ({"num_components": 0}, ValueError, "num_components: got 0"),
        ({"num_draws": 1.5}, TypeError, "num_draws: got 1.5"),
        ({"density": "flow", "epochs": 0}, ValueError, "epochs: got 0"),
        ({"density": "flow", "batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"density": "flow", "learning_rate": 0.0}, ValueError, "learning_rate: got 0.0"),
        ({"num_components": 400}, ValueError, "x: got 300 codes, wanted more than 400"),
        ({"x": np.full((3, D), np.nan)}, ValueError, "x: got NaN"),
        ({"seed": 0.5}, TypeError, "seed: got 0.5"),
    ],
)
def test_bad_input_of_fit_aggregate_posterior(kwargs, error, message, x):
    arguments = {"vae": build(), "x": x} | kwargs
    with pytest.raises(error, match=message):
        latent_space.fit_aggregate_posterior(**arguments)


def test_codes_that_are_no_vectors_of_real_numbers(x):
    square = build(posteriors.DiagonalNormal((2, 2)), priors.StandardNormal((2, 2)))
    with pytest.raises(ValueError, match=r"vae: got one whose z have shape \(2, 2\), wanted vect"):
        latent_space.fit_aggregate_posterior(square, x)
    classes = build(
        posteriors.OneHotCategorical((K,)), priors.Prior("OneHotCategorical", (K,), logits=0.0)
    )
    with pytest.raises(ValueError, match="wanted one of real numbers z"):
        latent_space.fit_aggregate_posterior(classes, x)


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        ("mixture", TypeError, "prior: got 'mixture', wanted a block of tfpvae.priors or a tfd"),
        (priors.StandardNormal(K + 1), ValueError, r"event_shape \(3,\), wanted \(\) and \(2,\)"),
        (tfd.Normal([0.0, 0.0], 1.0), ValueError, r"batch_shape \(2,\) and event_shape \(\)"),
    ],
)
def test_a_prior_that_cannot_be_sampled_from(prior, error, message):
    with pytest.raises(error, match=message):
        build().sample(3, prior=prior)


# Paths.


def test_a_line_is_straight_and_even(rng):
    z0, z1 = rng.normal(size=(2, 4, 5))
    path = latent_space.interpolate(z0, z1, 7)
    assert path.shape == (4, 7, 5)
    np.testing.assert_allclose(path[:, 0], z0)
    np.testing.assert_allclose(path[:, -1], z1)
    np.testing.assert_allclose(np.diff(path, axis=1), np.stack([(z1 - z0) / 6] * 6, axis=1))


@pytest.mark.parametrize("size", [2, 3, 50])
def test_a_sphere_is_a_great_arc_at_even_speed_with_even_norms(size, rng):
    z0, z1 = rng.normal(size=(2, 6, size))
    path = latent_space.interpolate(z0, z1, 9, "sphere")
    np.testing.assert_allclose(path[:, 0], z0, rtol=1e-12)
    np.testing.assert_allclose(path[:, -1], z1, rtol=1e-12)
    norms = np.linalg.norm(path, axis=-1)
    wanted = np.linspace(np.linalg.norm(z0, axis=-1), np.linalg.norm(z1, axis=-1), 9, axis=-1)
    np.testing.assert_allclose(norms, wanted)
    u = path / norms[..., None]
    whole = np.arccos(np.sum(u[:, 0] * u[:, -1], axis=-1))
    for t in range(9):  # Angles from both ends: it is on the shorter great arc, at even speed.
        for end, share in ((0, t / 8), (-1, 1 - t / 8)):
            cosine = np.clip(np.sum(u[:, end] * u[:, t], axis=-1), -1, 1)
            np.testing.assert_allclose(np.arccos(cosine), share * whole, atol=1e-6)


def test_a_sphere_between_codes_of_nearly_one_direction():
    z0 = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1e-9]])
    z1 = np.array([[1.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
    path = latent_space.interpolate(z0, z1, 5, "sphere")
    np.testing.assert_allclose(path, latent_space.interpolate(z0, z1, 5), atol=1e-12)
    one_for_all = latent_space.interpolate(z0[0], z1, 5, "sphere")
    assert one_for_all.shape == (3, 5, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0, 1.0], [1.0, 0.0], 1), ValueError, "num: got 1, wanted at least 2"),
        (([0.0, 1.0], [1.0, 0.0], 2.5), TypeError, "num: got 2.5"),
        (([0.0, 1.0], [1.0, 0.0], 3, "arc"), ValueError, "path: got 'arc', wanted one of line, s"),
        (([0.0, 1.0], [1.0, 0.0, 2.0]), ValueError, r"z1: got shape \(3,\), wanted \(2,\)"),
        (([0.0, np.nan], [1.0, 0.0]), ValueError, "z0: got NaN"),
        ((["a"], [1.0]), TypeError, "z0: got strings"),
        ((3.0, [1.0]), ValueError, "z0: got a single number"),
        (([0.0, 0.0], [1.0, 0.0], 3, "sphere"), ValueError, "got a code at 0"),
        (([2.0, 0.0], [-1.0, 0.0], 3, "sphere"), ValueError, "got two codes opposite"),
    ],
)
def test_bad_input_of_interpolate(arguments, error, message):
    with pytest.raises(error, match=message):
        latent_space.interpolate(*arguments)


# Traversals.


def test_traversal_moves_one_unit_and_holds_the_others():
    vae = build(prior=priors.Normal(K, initial={"loc": [1.0, -2.0], "scale": [0.5, 3.0]}))
    kernel, bias = vae.decoder.layers[0].get_weights()
    code = np.array([0.3, -0.7])
    found = latent_space.traverse(vae, code, num=5, quantiles=(0.1, 0.9))
    levels = np.linspace(0.1, 0.9, 5)
    wanted = [stats.norm.ppf(levels, 1.0, 0.5), stats.norm.ppf(levels, -2.0, 3.0)]
    np.testing.assert_allclose(found.values, wanted, rtol=1e-4)
    assert found.means.shape == (2, 5, D)
    for row, unit in enumerate(found.units):
        for column in range(5):
            z = code.copy()
            z[unit] = found.values[row, column]
            np.testing.assert_allclose(
                found.means[row, column], z @ kernel + bias, rtol=1e-3, atol=1e-4
            )
    found = latent_space.traverse(vae, code, units=[1], values=[-1.0, 1.0])
    np.testing.assert_array_equal(found.values, [[-1.0, 1.0]])
    np.testing.assert_allclose(
        found.means[0], np.array([[0.3, -1.0], [0.3, 1.0]]) @ kernel + bias, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("prior", "cdf"),
    [
        (
            priors.NormalMixture(
                K, 2, initial={"loc": [[-2.0, 0.0], [2.0, 1.0]], "scale": [[1.0, 1.0], [0.5, 0.1]]}
            ),
            lambda v: 0.5 * stats.norm.cdf(v, -2, 1) + 0.5 * stats.norm.cdf(v, 2, 0.5),
        ),
        (priors.StudentT(K, df=3.0), stats.t(3).cdf),
    ],
)
def test_quantiles_of_priors_that_have_none(prior, cdf):
    found = latent_space.traverse(build(prior=prior), np.zeros(K), num=7)
    np.testing.assert_allclose(cdf(found.values[0]), np.linspace(0.02, 0.98, 7), atol=0.01)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"vae": 1}, TypeError, "vae: got 1"),
        ({"z": np.zeros(3)}, ValueError, r"z: got shape \(3,\), wanted \(2,\), one vector"),
        ({"z": np.zeros((1, 2))}, ValueError, r"z: got shape \(1, 2\)"),
        ({"units": [2]}, ValueError, r"units: got \[2\], wanted numbers of units from 0 to 1"),
        ({"units": []}, ValueError, "units: got"),
        ({"units": [0.5]}, ValueError, "units: got"),
        ({"num": 0}, ValueError, "num: got 0"),
        ({"quantiles": (0.5, 0.1)}, ValueError, r"quantiles: got \(0.5, 0.1\), wanted \(low"),
        ({"quantiles": 0.5}, ValueError, "quantiles: got 0.5"),
        ({"values": np.zeros((2, 2))}, ValueError, r"values: got shape \(2, 2\), wanted \(num,\)"),
    ],
)
def test_bad_input_of_traverse(kwargs, error, message):
    with pytest.raises(error, match=message):
        latent_space.traverse(**{"vae": build(), "z": np.zeros(K)} | kwargs)


def test_a_traversal_can_be_drawn():
    posterior = posteriors.DiagonalNormal(K)
    vae = VAE(
        priors.StandardNormal(K),
        keras.Sequential([keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential([keras.layers.Dense(16), likelihoods.Bernoulli(16)]),
    )
    found = latent_space.traverse(vae, tf.zeros(K), num=5)
    ax = plotting.traversals(found.means, found.values, found.units)
    assert ax.images[0].get_array().shape == (2 * 6, 5 * 6)
