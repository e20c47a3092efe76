"""KLDivergenceRegularizer against closed forms, quadrature and large samples."""

import json

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import integrate, stats

from tfpvae import KLDivergenceRegularizer, noise, posteriors, priors

tfd, tfpl = tfp.distributions, tfp.layers


def gaussian_kl(mean, cov, prior_mean, prior_cov):
    """KL(N(mean, cov) || N(prior_mean, prior_cov)), by linear algebra."""
    inverse = np.linalg.inv(prior_cov)
    shift = prior_mean - mean
    trace = np.trace(inverse @ cov) + shift @ inverse @ shift - len(mean)
    return 0.5 * (trace + np.log(np.linalg.det(prior_cov) / np.linalg.det(cov)))


def params(rng, size, batch=6):
    return rng.normal(size=(batch, size)).astype("float32")


PRIORS = {
    "StandardNormal": lambda: priors.StandardNormal(3),
    "Normal": lambda: priors.Normal(3, initial={"loc": [1.0, 0.0, -1.0], "scale": 0.7}),
    "Independent": lambda: tfd.Independent(tfd.Normal(tf.ones(3), 2.0), 1),
    "MultivariateNormalTriL": lambda: tfd.MultivariateNormalTriL(
        tf.zeros(3), [[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.4, 0.5]]
    ),
}
POSTERIORS = {
    "DiagonalNormal": lambda: posteriors.DiagonalNormal(3),
    "FullRankNormal": lambda: posteriors.FullRankNormal(3),
    "stock IndependentNormal": lambda: tfpl.IndependentNormal(3),
    "stock MultivariateNormalTriL": lambda: tfpl.MultivariateNormalTriL(3),
}
SIZES = {name: 9 if "TriL" in name or "FullRank" in name else 6 for name in POSTERIORS}


def moments(distribution):
    mean = distribution.mean().numpy().astype(float)
    try:
        return mean, distribution.covariance().numpy().astype(float)
    except NotImplementedError:
        return mean, distribution.variance().numpy()[..., None] * np.eye(mean.shape[-1])


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_divergence_of_gaussians_is_the_closed_form(posterior, prior, rng):
    regularizer = KLDivergenceRegularizer(PRIORS[prior](), use_exact_kl=True)
    q = POSTERIORS[posterior]()(params(rng, SIZES[posterior]))
    prior_mean, prior_cov = moments(regularizer.prior())
    wanted = [gaussian_kl(m, c, prior_mean, prior_cov) for m, c in zip(*moments(q), strict=True)]
    np.testing.assert_allclose(regularizer.divergence(q), wanted, rtol=1e-4)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_monte_carlo_is_unbiased(posterior, rng):
    q = POSTERIORS[posterior]()(params(rng, SIZES[posterior], batch=4))
    exact = KLDivergenceRegularizer(priors.StandardNormal(3), True).divergence(q)
    num = 20_000
    estimate = KLDivergenceRegularizer(priors.StandardNormal(3), False, num_samples=num).divergence(
        q
    )
    z = q.sample(1000)
    log_ratio = q.log_prob(z) - stats.norm.logpdf(z).sum(-1)
    error = np.std(log_ratio, axis=0) / np.sqrt(num)
    assert np.all(np.abs(estimate - exact) < 4.5 * error)


def test_without_a_closed_form_monte_carlo_finds_the_integral(rng):
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(probs=[0.3, 0.7]), tfd.Normal([-1.0, 2.0], [0.5, 1.0])
    )
    prior = tfd.Independent(tfd.BatchBroadcast(mixture, [1]), 1)
    regularizer = KLDivergenceRegularizer(prior, num_samples=200_000)
    q = posteriors.DiagonalNormal(1)(np.array([[0.5, 0.2]], "float32"))
    scale = np.log1p(np.exp(0.2))

    def integrand(z):
        density = 0.3 * stats.norm.pdf(z, -1, 0.5) + 0.7 * stats.norm.pdf(z, 2, 1)
        return stats.norm.pdf(z, 0.5, scale) * (stats.norm.logpdf(z, 0.5, scale) - np.log(density))

    wanted, _ = integrate.quad(integrand, -8, 8)
    assert float(regularizer.divergence(q)[0]) == pytest.approx(wanted, abs=0.02)
    with pytest.raises(ValueError, match="use_exact_kl: TFP has no closed form"):
        KLDivergenceRegularizer(prior, use_exact_kl=True).divergence(q)


def test_monte_carlo_takes_the_draws_that_the_layer_passes_on(rng):
    posterior = posteriors.DiagonalNormal(2, num_samples=5)
    q = posterior(params(rng, 4))
    z = tf.convert_to_tensor(q).numpy()
    log_ratio = stats.norm.logpdf(z, q.mean(), q.stddev()) - stats.norm.logpdf(z)
    kl = KLDivergenceRegularizer(priors.StandardNormal(2), False).divergence(q)
    np.testing.assert_allclose(kl, log_ratio.sum(-1).mean(0), rtol=1e-4)


@pytest.mark.parametrize("stock", [False, True])
def test_the_mean_is_no_draw(stock, rng):
    """log q - log p at the mean is no estimate of the KL: Monte Carlo draws for itself."""
    if stock:
        posterior = tfpl.IndependentNormal(2, tfd.Distribution.mean)
    else:
        posterior = posteriors.DiagonalNormal(2, convert_to_tensor_fn="mean")
    q = posterior(np.zeros((2000, 4), "float32"))  # the same posterior 2,000 times
    draws = KLDivergenceRegularizer(priors.StandardNormal(2), False).divergence(q).numpy()
    scale = np.log(2)
    exact = 2 * 0.5 * (scale**2 - 1 - 2 * np.log(scale))
    assert draws.std() > 0.1
    assert abs(draws.mean() - exact) < 4.5 * draws.std() / np.sqrt(len(draws))


@pytest.mark.parametrize("num_samples", [None, 1, 10])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_keras_adds_the_mean_once(batch, num_samples, rng):
    regularizer = KLDivergenceRegularizer(priors.StandardNormal(2), weight=0.5)
    posterior = posteriors.DiagonalNormal(
        2, num_samples=num_samples, activity_regularizer=regularizer
    )
    q = posterior(params(rng, 4, batch))
    loc, scale = q.mean().numpy(), q.stddev().numpy()
    wanted = 0.5 * (scale**2 + loc**2 - 1 - 2 * np.log(scale)).sum(-1).mean()
    assert sum(float(loss) for loss in posterior.losses) == pytest.approx(0.5 * wanted, rel=1e-5)
    q = posterior(params(rng, 4, batch))  # and once again at the next call
    assert len([loss for loss in posterior.losses if float(loss) != 0.0]) == 1


def test_asking_twice_for_the_same_distribution_gives_the_same(rng):
    regularizer = KLDivergenceRegularizer(priors.StandardNormal(2))
    q = posteriors.DiagonalNormal(2)(params(rng, 4))
    assert float(regularizer(q)) == float(regularizer(q)) > 0.0


def test_a_variable_weight_can_change_during_training(rng):
    weight = tf.Variable(0.0, trainable=False)
    posterior = posteriors.DiagonalNormal(
        2, activity_regularizer=KLDivergenceRegularizer(priors.StandardNormal(2), weight=weight)
    )
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), posterior])
    model.compile("sgd", loss=lambda y, q: 0.0 * tf.reduce_sum(q.mean(), -1))
    x = params(rng, 3)
    callback = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: weight.assign(float(epoch))
    )
    model.optimizer.learning_rate.assign(0.0)
    loss = model.fit(x, x, epochs=3, verbose=0, callbacks=[callback]).history["loss"]
    assert loss[0] == 0.0
    assert loss[2] == pytest.approx(2 * loss[1], rel=1e-5)
    assert not any(variable is weight for variable in model.trainable_weights)


def test_a_learned_prior_is_trained_and_saved_with_the_model(rng, tmp_path):
    """Type-II maximum likelihood: the prior moves to the aggregate posterior."""
    prior = priors.Normal(2)
    posterior = posteriors.DiagonalNormal(2, activity_regularizer=KLDivergenceRegularizer(prior))
    model = keras.Sequential([keras.Input((4,)), posterior])
    model.compile(keras.optimizers.Adam(0.1), loss=lambda y, q: 0.0 * tf.reduce_sum(q.mean(), -1))
    x = params(rng, 4, 50) + np.array([3.0, -2.0, 0.0, 1.0], "float32")
    assert len(model.trainable_weights) == 1
    model.fit(x, x, epochs=400, verbose=0, batch_size=50)
    scale = np.log1p(np.exp(x[:, 2:]))
    np.testing.assert_allclose(prior().mean(), x[:, :2].mean(0), atol=0.02)
    second = (scale**2 + (x[:, :2] - x[:, :2].mean(0)) ** 2).mean(0)
    np.testing.assert_allclose(prior().variance(), second, rtol=0.02)
    model.compile("sgd")
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.get_weights()[0], prior.get_weights()[0])


PRIOR_CONFIGS = {
    **PRIORS,
    "Mixture": lambda: tfd.MixtureSameFamily(
        tfd.Categorical(logits=[0.0, 1.0]), tfd.MultivariateNormalDiag(tf.zeros([2, 3]))
    ),
}


@pytest.mark.parametrize("prior", PRIOR_CONFIGS)
def test_config_round_trip(prior, rng):
    made = KLDivergenceRegularizer(PRIOR_CONFIGS[prior](), False, num_samples=3, weight=0.25)
    config = json.loads(json.dumps(made.get_config()))
    again = KLDivergenceRegularizer.from_config(config)
    assert (again.use_exact_kl, again.num_samples, again.weight) == (False, 3, 0.25)
    z = params(rng, 3)
    np.testing.assert_allclose(again.prior().log_prob(z), made.prior().log_prob(z), rtol=1e-6)
    variable = KLDivergenceRegularizer(
        PRIOR_CONFIGS[prior](), weight=tf.Variable(0.5, trainable=False)
    )
    again = KLDivergenceRegularizer.from_config(variable.get_config())
    assert isinstance(again.weight, tf.Variable)
    assert float(again.weight) == 0.5
    assert not again.weight.trainable


def test_a_prior_made_of_variables_or_functions_cannot_be_saved():
    trainable = tfd.Normal(tf.Variable(0.0), 1.0)
    with pytest.raises(TypeError, match=r"distribution_b: got .*a file cannot hold"):
        KLDivergenceRegularizer(trainable).get_config()
    with pytest.raises(TypeError, match=r"distribution_b: got .*a file cannot hold"):
        KLDivergenceRegularizer(lambda: tfd.Normal(0.0, 1.0)).get_config()


def test_draws_can_be_fixed(rng):
    q = posteriors.DiagonalNormal(2)(params(rng, 4))
    regularizer = KLDivergenceRegularizer(priors.StandardNormal(2), False, num_samples=2)
    values = []
    for seed in (1, 1, 2):
        with noise.fixed(seed):
            values.append(regularizer.divergence(q).numpy())
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"distribution_b": 3}, TypeError, "distribution_b: got 3, wanted a block"),
        ({"distribution_b": keras3.layers.Dense(1)}, TypeError, "Dense of Keras 3"),
        ({"use_exact_kl": "yes"}, TypeError, "use_exact_kl: got 'yes'"),
        ({"num_samples": 0}, ValueError, "num_samples: got 0, wanted a positive"),
        ({"num_samples": 1.5}, TypeError, "num_samples: got 1.5"),
        ({"weight": -1.0}, ValueError, r"weight: got -1.0, wanted a finite number >= 0"),
        ({"weight": float("nan")}, ValueError, "weight: got nan"),
        ({"weight": "heavy"}, TypeError, "weight: got 'heavy', wanted a number"),
        ({"weight": tf.Variable(1.0)}, ValueError, "weight: got a trainable variable"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        KLDivergenceRegularizer(**{"distribution_b": priors.StandardNormal(2)} | kwargs)


def test_posterior_and_prior_of_different_sizes(rng):
    regularizer = KLDivergenceRegularizer(priors.StandardNormal(3))
    with pytest.raises(ValueError, match=r"prior has events of shape \(3,\), the posterior .*2"):
        posteriors.DiagonalNormal(2, activity_regularizer=regularizer)(params(rng, 4))


def test_on_a_layer_that_is_no_distribution(rng):
    layer = keras.layers.Dense(
        2, activity_regularizer=KLDivergenceRegularizer(priors.StandardNormal(2))
    )
    with pytest.raises(TypeError, match="wanted the output of a distribution layer"):
        layer(params(rng, 4))
