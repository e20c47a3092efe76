"""Likelihood-free inference beside exact posteriors, of simulators whose likelihood is known."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import stats

from tfpvae import DensityRatio, DistributionLayer, SimulatorModel, flows, posteriors, priors

tfd = tfp.distributions

N, SCALE = 20, 0.8


@keras.saving.register_keras_serializable("tests")
def shifted(theta, seed):
    """x ~ N(theta, SCALE^2)."""
    return theta + SCALE * tf.random.stateless_normal(tf.shape(theta), seed)


def hierarchical(beta, seed):
    """z ~ N(beta, 1), x ~ N(z, 1)."""
    first, second = tf.unstack(tf.random.stateless_normal([2, tf.shape(beta)[0], 1], seed))
    return beta + first + second, beta + first


def network(*units):
    hidden = [keras.layers.Dense(size, "tanh") for size in units]
    return keras.Sequential([*hidden, keras.layers.Dense(1)])


def encoder(*units):
    hidden = [keras.layers.Dense(size, "tanh") for size in units]
    return keras.Sequential([*hidden, keras.layers.Dense(2), posteriors.DiagonalNormal(1)])


def model(simulator=shifted, prior=None, posterior=None, discriminator=None, **kwargs):
    return SimulatorModel(
        prior or priors.Prior("Normal", 1, loc=0.0, scale=2.0),
        simulator,
        posterior or posteriors.DiagonalNormal(1),
        discriminator or network(8),
        **{"seed": 0} | kwargs,
    )


def quick(built):
    """The model, compiled for steps that cost next to nothing."""
    built.compile(
        keras.optimizers.Adam(0.01),
        keras.optimizers.Adam(0.01),
        num_samples=4,
        num_simulations=16,
        jit_compile=False,
    )
    return built


@pytest.fixture
def x(rng):
    return rng.normal(1.5, SCALE, size=(N, 1)).astype("float32")


def assert_near(found, true):
    """Means within a tenth of a standard deviation, standard deviations within 15 %."""
    (loc, scale), (true_loc, true_scale) = found, true
    shift = (np.ravel(loc) - np.ravel(true_loc)) / np.ravel(true_scale)
    print("shift", shift.round(3), "ratio", (np.ravel(scale) / np.ravel(true_scale)).round(3))
    assert np.abs(shift).max() < 0.1
    np.testing.assert_allclose(np.ravel(scale), np.ravel(true_scale), rtol=0.15)


def moments(q, num=200_000):
    draws = q.sample(num, seed=1).numpy()
    return draws.mean(axis=0), draws.std(axis=0)


# Posteriors that are known.


@pytest.mark.long
def test_mean_of_a_normal(x):
    """The simulator is a NumPy function, which no gradient passes and XLA does not run."""

    def simulator(theta, seed):
        def draw(theta, seed):
            noise = np.random.default_rng(np.abs(seed)).normal(size=theta.shape)
            return (theta + SCALE * noise).astype("float32")

        return tf.numpy_function(draw, [theta, seed], tf.float32)

    made = model(simulator, discriminator=network(32, 32))
    history = made.fit(x, steps=5000, verbose=0).history
    precision = N / SCALE**2 + 1 / 4
    true = x.sum() / SCALE**2 / precision, precision**-0.5
    q = made.posterior()
    assert_near((q.mean(), q.stddev()), true)
    # The KL in the log is that of the closed form.
    exact = np.log(2.0 / true[1]) + (true[1] ** 2 + true[0] ** 2) / 8 - 0.5
    assert history["kl"][-1] * N == pytest.approx(exact, abs=0.1)
    # Nothing better was to be learned: the discriminator is calibrated, and not a guess.
    check = made.check_discriminator(seed=1)
    assert abs(check.slope - 1.0) < 4 * check.slope_error < 0.3
    assert abs(check.intercept) < 4 * check.intercept_error
    assert check.log_score < np.log(2.0) - 0.01
    predictive = made.predictive_check(x, lambda x: [x.mean(), x.std()], 300, seed=2)
    assert predictive.p_value.min() > 0.02
    assert predictive.p_value.max() < 0.98
    # Of data ten times as wide the model must say that it cannot make them.
    odd = made.predictive_check(10 * x, np.std, 300, seed=2)
    assert odd.p_value == 0.0


@pytest.mark.long
def test_rate_of_counts(rng):
    """A positive parameter: the posterior is mapped onto its support, and its own draws told."""
    x = rng.poisson(4.0, size=(N, 1))
    prior = priors.Prior("Gamma", 1, concentration=2.0, rate=0.5)

    def simulator(rate, seed):
        return tfd.Poisson(rate).sample(seed=seed)

    made = model(simulator, prior, discriminator=network(32, 32))
    made.fit(x, steps=6000, verbose=0)
    true = stats.gamma(2.0 + x.sum(), scale=1 / (0.5 + N))
    assert_near(moments(made.posterior()), (true.mean(), true.std()))


@pytest.mark.long
def test_mean_and_scale_of_a_normal(x):
    """Two parameters, and a posterior that is no Gaussian, by sums over a grid."""

    def simulator(beta, seed):
        return tfd.Normal(beta[:, :1], tf.exp(beta[:, 1:])).sample(seed=seed)

    prior = priors.Prior("Normal", 2, loc=0.0, scale=2.0)
    made = model(simulator, prior, posteriors.FullRankNormal(2), network(64, 64))
    made.fit(x, verbose=0)
    loc, log_scale = np.linspace(0.0, 3.0, 601), np.linspace(-1.5, 1.0, 501)
    grid = np.stack(np.meshgrid(loc, log_scale, indexing="ij"), -1)[..., None]
    log_p = stats.norm(0, 2).logpdf(grid[..., 0]).sum(-1)
    log_p += stats.norm(grid[:, :, 0], np.exp(grid[:, :, 1])).logpdf(x[:, 0]).sum(-1)
    weights = np.exp(log_p - log_p.max())[..., None] / np.exp(log_p - log_p.max()).sum()
    mean = np.sum(weights * grid[..., 0], axis=(0, 1))
    scale = np.sqrt(np.sum(weights * (grid[..., 0] - mean) ** 2, axis=(0, 1)))
    assert_near(moments(made.posterior()), (mean, scale))


@pytest.mark.long
def test_parameters_of_each_example(rng):
    """Amortized: q(beta | x) is N(x / 1.25, 0.2) for beta ~ N(0, 1), x ~ N(beta, 0.5^2)."""
    beta = rng.normal(size=(400, 1))
    x = (beta + 0.5 * rng.normal(size=beta.shape)).astype("float32")

    def simulator(beta, seed):
        return tfd.Normal(beta, 0.5).sample(seed=seed)

    made = model(simulator, priors.StandardNormal(1), encoder(16), network(32, 32))
    made.fit(x, steps=5000, verbose=0)
    q = made.posterior(x[:50])
    shift = (q.mean() - x[:50] / 1.25) / np.sqrt(0.2)
    assert np.abs(shift).mean() < 0.1
    np.testing.assert_allclose(q.stddev(), np.full((50, 1), np.sqrt(0.2)), rtol=0.15)


@pytest.mark.long
def test_hierarchy(rng):
    """The best q(beta) q(z|x) is the fixed point of coordinate ascent, in closed form."""
    x = rng.normal(1.0, np.sqrt(2.0), size=(N, 1)).astype("float32")
    made = model(hierarchical, encoder=encoder(), discriminator=network(32, 32))
    made.fit(x, steps=8000, verbose=0)
    precision, loc = N + 1 / 4, 0.0
    for _ in range(1000):
        loc = (x + loc).sum() / 2 / precision  # E[z_n] = (x_n + loc) / 2
    q = made.posterior()
    assert_near((q.mean(), q.stddev()), (loc, precision**-0.5))
    q = made.latent_posterior(x)
    shift = (q.mean() - (x + loc) / 2) / np.sqrt(0.5)
    assert np.abs(shift).mean() < 0.1
    np.testing.assert_allclose(q.stddev(), np.full((N, 1), np.sqrt(0.5)), rtol=0.15)


# What the loss is made of.


@pytest.mark.parametrize("support", ["real numbers", "positive numbers"])
def test_kl_is_that_of_the_parameters(support, x):
    """Against TFP's closed form, or an integral of the densities."""
    if support == "real numbers":
        made = quick(model(prior=priors.Prior("Normal", 1, loc=1.0, scale=3.0)))
    else:
        gamma = priors.Prior("Gamma", 1, concentration=2.0, rate=0.5)
        made = quick(model(prior=gamma))
    made.fit(x, steps=3, verbose=0)
    made.compile(num_samples=20_000, num_simulations=4)
    made.unconstrained.assign([0.7, -0.5])
    kl = made.evaluate(x, verbose=0, return_dict=True)["kl"] * N
    q, p = made.posterior(), made.prior()
    if support == "real numbers":
        exact = tfd.kl_divergence(q, tfd.MultivariateNormalDiag([1.0], [3.0])).numpy()
    else:
        grid = np.linspace(1e-4, 60.0, 200_001, dtype="float32")[:, None]
        log_q, log_p = q.log_prob(grid).numpy(), p.log_prob(grid).numpy()
        exact = np.sum(np.exp(log_q) * (log_q - log_p)) * (grid[1, 0] - grid[0, 0])
        assert np.exp(log_q).sum() * (grid[1, 0] - grid[0, 0]) == pytest.approx(1.0, abs=1e-3)
    assert kl == pytest.approx(exact, abs=0.02)


def test_loss_is_the_sum_of_its_terms(x):
    made = quick(model())
    made.fit(x, steps=3, verbose=0)
    logs = made.evaluate(x, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["kl"] - logs["log_ratio"], rel=1e-5)
    # Weights are of the examples, not of the prior.
    half = made.evaluate(x, sample_weight=np.full(N, 0.5), verbose=0, return_dict=True)
    assert half["kl"] == pytest.approx(logs["kl"], rel=1e-6)
    assert half["log_ratio"] == pytest.approx(0.5 * logs["log_ratio"], rel=1e-4)


@pytest.mark.long
def test_a_wrong_ratio_is_noticed(x):
    """Twice the log ratio exaggerates: the slope falls to one half."""
    made = model(discriminator=network(16))
    made.compile("adam", keras.optimizers.Adam(0.01), num_samples=2, jit_compile=False)
    made.fit(x, steps=400, verbose=0)
    before = made.check_discriminator(seed=0)
    last = made.discriminator.network.layers[-1]
    last.set_weights([2 * weight for weight in last.get_weights()])
    after = made.check_discriminator(seed=0)
    assert after.slope == pytest.approx(before.slope / 2, rel=1e-3)
    assert after.slope < 1.0 - 4 * after.slope_error
    assert after.log_score > before.log_score


def test_posterior_in_closed_form_is_the_mapped_one(x):
    made = quick(model(prior=priors.Prior("Normal", 1, loc=-3.0, scale=5.0)))
    made.fit(x, steps=2, verbose=0)
    made.unconstrained.assign([0.4, 0.1])
    block = made._block_distribution()
    mapped = flows.FlowDistribution(block, made._units())
    grid = np.linspace(-20.0, 20.0, 9, dtype="float32")[:, None]
    np.testing.assert_allclose(
        made.posterior().log_prob(grid), mapped.log_prob(grid), rtol=1e-4, atol=1e-4
    )
    assert float(made.prior_loc[0]) == pytest.approx(-3.0, abs=0.3)
    assert float(made.prior_scale[0]) == pytest.approx(5.0, rel=0.1)


# Keras habits.


CASES = {
    "global": lambda: model(),
    "flow": lambda: model(posterior=posteriors.Flow(1, flows.Planar(2))),
    "amortized": lambda: model(posterior=encoder()),
    "scoring rule": lambda: model(discriminator=DensityRatio(network(8), "brier")),
    "block": lambda: model(
        keras.Sequential([DistributionLayer("Normal", 1, scale=SCALE)]),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name != "amortized")) for name in CASES]
)
@pytest.mark.long
def test_saving_and_going_on(name, x, tmp_path):
    """A model that is loaded makes the steps of one that was not, bit for bit."""
    made = quick(CASES[name]())
    made.fit(x, steps=5, verbose=0)
    made.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == made.get_config()
    assert loaded._settings == made._settings
    assert loaded.discriminator.scoring_rule == made.discriminator.scoring_rule
    histories = [each.fit(x, steps=5, verbose=0).history for each in (made, loaded)]
    assert histories[0] == histories[1]
    for a, b in zip(made.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    pairs = zip(made.discriminator.weights, loaded.discriminator.weights, strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)


def test_both_optimizers_train_what_is_theirs(x):
    made = quick(model())
    made.build(x.shape)
    before = [w.numpy() for w in made.discriminator.trainable_variables]
    theirs = {id(w) for w in made.discriminator.trainable_variables}
    assert not theirs & {id(w) for w in made.trainable_variables}
    assert [w.name for w in made.trainable_variables] == ["unconstrained:0"]
    made.optimizer.learning_rate.assign(0.0)
    made.fit(x, steps=2, verbose=0)
    np.testing.assert_array_equal(made.unconstrained, np.zeros(2))
    for a, b in zip(before, made.discriminator.trainable_variables, strict=True):
        assert np.abs(a - b.numpy()).max() > 0
    made.discriminator.optimizer.learning_rate.assign(0.0)
    made.optimizer.learning_rate.assign(0.1)
    before = [w.numpy() for w in made.discriminator.trainable_variables]
    made.fit(x, steps=2, verbose=0)
    assert np.abs(made.unconstrained).min() > 0
    for a, b in zip(before, made.discriminator.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_same_seed_same_numbers(x):
    histories, samples = [], []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(0)
        made = quick(model(seed=seed))
        histories.append(made.fit(x, steps=4, verbose=0).history)
        samples.append(made.sample(3, seed=5))
    assert histories[0] == histories[1] != histories[2]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert made.sample(4, "prior", seed=0).shape == (4, 1)
    assert np.abs(made.sample(3) - made.sample(3)).max() > 0


@pytest.mark.parametrize(
    "way",
    [
        "data",
        *(
            pytest.param(way, marks=pytest.mark.long)
            for way in ("eager", "keras", "bfloat16", "stream", "xla")
        ),
    ],
)
def test_ways_of_training(way, x):
    if way == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    made = model(hierarchical, encoder=encoder()) if way == "xla" else model()
    settings = {
        "eager": {"run_eagerly": True},
        "keras": {"steps_per_execution": 1},
        "data": {"reference": "data", "num_updates": 2},
        "xla": {"jit_compile": True},
    }
    made.compile(**{"num_samples": 3, "num_simulations": 8} | settings.get(way, {}))
    if way == "stream":
        data = tf.data.Dataset.from_tensor_slices(x).batch(5)
        with pytest.raises(ValueError, match="num_data: got None"):
            made.fit(data)
        history = made.fit(data, epochs=2, num_data=N, verbose=0, validation_data=x).history
    else:
        history = made.fit(x, batch_size=10, epochs=2, verbose=0, validation_data=x).history
    assert float(made.num_data.numpy()) == N
    assert set(history) == {f"{v}{t}" for t in ("loss", *made.terms) for v in ("", "val_")}
    assert np.isfinite([*history.values()]).all()
    assert made.posterior().dtype == tf.float32
    if way == "data":
        with pytest.raises(ValueError, match="x: got None, wanted held-out data"):
            made.check_discriminator()
        assert made.check_discriminator(100, x, seed=0).log_score > 0


def test_images_and_preprocessing(rng):
    """Of simulations, too; and more numbers than correlations are taken out of."""
    x = rng.integers(0, 255, size=(6, 9, 9)).astype("uint8")

    def simulator(theta, seed):
        shape = [tf.shape(theta)[0], 9, 9]
        return 255.0 * tf.random.stateless_uniform(shape, seed) * tf.sigmoid(theta)[..., None]

    made = quick(model(simulator, preprocessing=keras.layers.Rescaling(1 / 255)))
    made.fit(x, steps=2, verbose=0)
    assert made.x_unit.shape == (81,)
    assert float(made.x_loc[0]) == pytest.approx(x[:, 0, 0].mean() / 255, rel=1e-5)
    assert made.sample(2, seed=0).shape == (2, 9, 9)
    assert made.predictive_check(x, np.mean, 3, seed=0).replicated.shape == (3,)


def test_whitening_takes_correlations_out(rng):
    x = (rng.normal(size=(4000, 2)) @ [[1.0, 0.9], [0.0, 0.5]] + 5.0).astype("float32")
    made = quick(model(lambda theta, seed: tf.concat([shifted(theta, seed)] * 2, 1)))
    made.fit(x, steps=1, verbose=0)
    seen = made._inputs(tf.constant(x), None, None)[0].numpy()
    np.testing.assert_allclose(np.cov(seen.T), np.eye(2), atol=0.05)
    np.testing.assert_allclose(seen.mean(axis=0), 0.0, atol=1e-3)


# Mistakes.


def nan(theta, seed):
    return tf.math.log(shifted(theta, seed))


class Implicit(keras.layers.Layer):
    def call(self, theta):
        return theta


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"simulator": 3}, TypeError, "simulator: got 3, wanted a function"),
        ({"simulator": nan}, ValueError, "simulator: got x that is NaN .* of 64 draws"),
        ({"simulator": lambda t, s: t[:, 0]}, ValueError, r"got x of shape \(64,\) .*\(64, 1\)"),
        ({"simulator": lambda t, s: t[:5]}, ValueError, r"got x of shape \(5, 1\)"),
        ({"simulator": lambda t, s: None}, ValueError, "simulator: got x of shape NoneType"),
        ({"simulator": hierarchical}, ValueError, "returns 2 values, wanted x, because"),
        ({"encoder": encoder()}, ValueError, r"wanted \(x, z\)"),
        (
            {"simulator": hierarchical, "encoder": keras.layers.Dense(2)},
            TypeError,
            "encoder: got one that returns .*, wanted a distribution",
        ),
        (
            {"posterior": encoder(), "encoder": encoder()},
            ValueError,
            "encoder: got one beside a posterior that is a network",
        ),
        ({"posterior": 3}, TypeError, "posterior: got 3"),
        (
            {"posterior": posteriors.DiagonalNormal(2)},
            ValueError,
            r"posterior: got event_shape \(2,\), wanted \(1,\)",
        ),
        (
            {"posterior": DistributionLayer("Gamma", 1)},
            ValueError,
            "posterior: got .*Gamma.*, wanted a density on all real numbers",
        ),
        ({"posterior": keras.layers.Dense(2)}, TypeError, "posterior: got one that returns"),
        ({"prior": Implicit()}, TypeError, "prior: got .*, wanted a block of tfpvae.priors"),
        (
            {"prior": priors.Prior("Poisson", 1, rate=2.0)},
            ValueError,
            r"prior: got Prior \(tfd.Poisson\), wanted one with a density",
        ),
        (
            {"prior": priors.Prior("Normal", (), loc=0.0, scale=1.0)},
            ValueError,
            r"prior: got event_shape \(\), wanted \(D,\)",
        ),
        ({"discriminator": 3}, TypeError, "discriminator: got 3"),
        (
            {"discriminator": keras.layers.Dense(2)},
            ValueError,
            r"discriminator: got .* shape \(N, 2\), wanted \(N, 1\): end it in",
        ),
    ],
)
def test_parts_that_do_not_fit(kwargs, error, message, x):
    with pytest.raises(error, match=message):
        quick(model(**kwargs)).fit(x, steps=1, verbose=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reference": "prior"}, "reference: got 'prior'"),
        ({"num_samples": 0}, "num_samples: got 0"),
        ({"num_references": 8, "num_simulations": 8}, "num_references: got 8, wanted fewer"),
        ({"spread": 0.0}, "spread: got 0.0"),
    ],
)
def test_settings_that_make_no_sense(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model().compile(**kwargs)


def test_data_that_do_not_fit(x):
    made = quick(model())
    with pytest.raises(ValueError, match="posterior: the model has seen no data"):
        made.posterior()
    made.fit(x, steps=1, verbose=0)
    with pytest.raises(ValueError, match=r"x: got shape \(20, 2\), wanted \(N, 1\)"):
        made.fit(np.zeros((20, 2)))
    with pytest.raises(ValueError, match="x: got NaN or infinite"):
        made.fit(np.full((20, 1), np.nan))
    with pytest.raises(ValueError, match="steps: got 3 and epochs=2"):
        made.fit(x, epochs=2, steps=3)
    with pytest.raises(ValueError, match="x: got data, wanted None"):
        made.posterior(x)
    with pytest.raises(ValueError, match="encoder: the model has none"):
        made.latent_posterior(x)
    with pytest.raises(ValueError, match=r"parameters: got shape \(3, 2\), wanted \(M, 1\)"):
        made.simulate(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="source: got 'data'"):
        made.sample(3, "data")
    amortized = quick(model(posterior=encoder()))
    amortized.fit(x, steps=1, verbose=0)
    with pytest.raises(ValueError, match="x: got None, wanted data"):
        amortized.posterior()


def test_a_simulator_that_fails_on_the_way(x):
    """Not at the draws that are tried first, but at those of the posterior."""

    def simulator(theta, seed):
        made = shifted(theta, seed)
        return made if tf.executing_eagerly() else made / 0.0 * 0.0

    with pytest.raises(FloatingPointError, match="loss: got NaN"):
        quick(model(simulator)).fit(x, steps=3, verbose=0)


def test_a_function_without_a_name_is_not_saved(x, tmp_path):
    made = quick(model(lambda theta, seed: shifted(theta, seed)))
    made.fit(x, steps=1, verbose=0)
    with pytest.raises(ValueError, match="which a file cannot hold"):
        made.save(tmp_path / "model.keras")
    assert not [*tmp_path.iterdir()]
