"""VAE: against closed forms, and as a Keras model."""

import json

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import special, stats

from tfpvae import (
    VAE,
    KLDivergenceRegularizer,
    likelihoods,
    losses,
    networks,
    noise,
    objectives,
    posteriors,
    priors,
    schedules,
)

tfd, tfpl = tfp.distributions, tfp.layers
D, K, N = 6, 2, 70


@pytest.fixture
def x(rng):
    return rng.random((N, D)).astype("float32")


def build(
    *, posterior=None, likelihood=None, prior=None, hidden=8, seed=1, compiled=True, **kwargs
):
    posterior = posterior or posteriors.DiagonalNormal(K)
    likelihood = likelihood or likelihoods.Bernoulli(D)
    vae = VAE(
        prior or priors.StandardNormal(K),
        keras.Sequential(
            [
                keras.layers.Dense(hidden, "relu"),
                keras.layers.Dense(posterior.params_size),
                posterior,
            ]
        ),
        keras.Sequential(
            [
                keras.layers.Dense(hidden, "relu"),
                keras.layers.Dense(likelihood.params_size),
                likelihood,
            ]
        ),
        seed=seed,
    )
    if compiled:
        vae.compile("adam", **kwargs)
    return vae


@pytest.fixture(scope="module")
def restart(snapshot):
    """One model for tests that need no other, in its first state, and so its noise."""
    keras.utils.set_random_seed(3)
    vae = build()
    vae.build((None, D))
    return snapshot(vae)


@pytest.fixture
def vae(restart):
    return restart()


@pytest.fixture(scope="module")
def mean_vae():
    """A model that draws nothing."""
    block = posteriors.DiagonalNormal(K, convert_to_tensor_fn="mean")
    return build(posterior=block, metrics=["mse"])


# A linear-Gaussian model: log p(x) and the posterior are known exactly.


class LinearGaussian:
    """x = W z + b + s e: p(x) = N(b, W W' + s^2 I), and p(z|x) is a Gaussian, linear in x."""

    def __init__(self, rng):
        self.weight, self.bias, self.scale = rng.normal(size=(D, K)), rng.normal(size=D), 0.7
        precision = np.eye(K) + self.weight.T @ self.weight / self.scale**2
        self.posterior_cov = np.linalg.inv(precision)
        self.gain = self.posterior_cov @ self.weight.T / self.scale**2

    def log_prob(self, x):
        cov = self.weight @ self.weight.T + self.scale**2 * np.eye(D)
        return stats.multivariate_normal(self.bias, cov).logpdf(x)

    def vae(self, spoilt=0.0, num_samples=None):
        """The model with its exact posterior as encoder, or with a mean that is off by `spoilt`."""
        vae = VAE(
            priors.StandardNormal(K),
            keras.Sequential(
                [keras.layers.Dense(5), posteriors.FullRankNormal(K, num_samples=num_samples)]
            ),
            keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=self.scale)]),
            seed=0,
        )
        vae.compile("sgd")
        vae.build((None, D))
        tril = tfp.bijectors.FillScaleTriL().inverse(
            np.linalg.cholesky(self.posterior_cov).astype("float32")
        )
        kernel = np.concatenate([self.gain.T, np.zeros((D, 3))], axis=1)
        bias = np.concatenate([spoilt - self.gain @ self.bias, tril])
        vae.encoder.layers[0].set_weights([kernel, bias])
        vae.decoder.layers[0].set_weights([self.weight.T, self.bias])
        return vae


@pytest.fixture
def linear(rng):
    return LinearGaussian(rng)


def test_log_weights_of_the_exact_posterior_are_the_log_evidence(linear, x):
    """log p(x, z) - log p(z|x) = log p(x), whatever z."""
    log_weights = linear.vae().log_weights(x, num_samples=20, seed=0)
    assert log_weights.shape == (20, N)
    np.testing.assert_allclose(
        log_weights, np.broadcast_to(linear.log_prob(x), (20, N)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("spoilt", [0.0, 0.3])
def test_elbo_is_the_log_evidence_less_the_divergence_of_the_posteriors(linear, x, spoilt):
    """ELBO = log p(x) - KL(q(z|x) || p(z|x)), which for a shift d is d' C^-1 d / 2."""
    vae = linear.vae(spoilt)
    shift = np.full(K, spoilt)
    gap = 0.5 * shift @ np.linalg.inv(linear.posterior_cov) @ shift
    draws = np.stack([vae.elbo(x, num_samples=500, seed=seed) for seed in range(4)])
    assert draws.shape == (4, N)
    error = 5 * draws.std(axis=0).mean() / np.sqrt(4)
    np.testing.assert_allclose(draws.mean(axis=0), linear.log_prob(x) - gap, atol=error)
    assert np.mean(draws) == pytest.approx(np.mean(linear.log_prob(x)) - gap, abs=error / 5)
    if spoilt == 0.0:
        loss = vae.evaluate(x, batch_size=16, verbose=0, return_dict=True)["loss"]
        assert loss == pytest.approx(-np.mean(linear.log_prob(x)), abs=0.4)


def test_importance_weights_are_unbiased_for_the_evidence(linear, x):
    log_weights = linear.vae(spoilt=0.2).log_weights(x, num_samples=5000, seed=0)
    estimate = special.logsumexp(log_weights, axis=0) - np.log(5000)
    np.testing.assert_allclose(estimate, linear.log_prob(x), atol=0.1)
    assert (log_weights.mean(axis=0) < linear.log_prob(x)).all()  # ELBO <= log p(x)


def test_sample_follows_the_marginal(linear):
    draws = linear.vae().sample(20_000, seed=0)
    cov = linear.weight @ linear.weight.T + linear.scale**2 * np.eye(D)
    np.testing.assert_allclose(draws.mean(axis=0), linear.bias, atol=0.1)
    np.testing.assert_allclose(np.cov(draws.T), cov, atol=0.15 * np.abs(cov).max())


def test_training_finds_the_exact_evidence(linear, rng):
    """With the decoder fixed, a linear encoder's ELBO reaches log p(x)."""
    z = rng.normal(size=(2000, K))
    x = z @ linear.weight.T + linear.bias + linear.scale * rng.normal(size=(2000, D))
    x = x.astype("float32")
    vae = linear.vae()
    kernel, bias = vae.encoder.layers[0].get_weights()
    vae.encoder.layers[0].set_weights([0 * kernel, 0 * bias])
    vae.decoder.trainable = False
    vae.compile(keras.optimizers.Adam(0.02))
    vae.fit(x, epochs=15, batch_size=100, verbose=0)
    loss = -np.mean(vae.elbo(x, num_samples=50, seed=0))
    assert loss == pytest.approx(-np.mean(linear.log_prob(x)), abs=0.05)


# As a Keras model.


def test_history_holds_the_terms(vae, x):
    history = vae.fit(x, epochs=3, validation_data=x, verbose=0).history
    terms = ["loss", "elbo", "nll", "kl"]
    assert list(history) == [*terms, *(f"val_{term}" for term in terms)]
    for prefix in ("", "val_"):
        loss, elbo, nll, kl = (np.array(history[prefix + name]) for name in terms)
        np.testing.assert_allclose(loss, nll + kl, rtol=1e-6)
        np.testing.assert_allclose(elbo, -loss, rtol=1e-6)
        assert loss.shape == (3,)


@pytest.mark.filterwarnings("ignore:fit ended with kl_weight")
def test_loss_weights_the_kl(x):
    weight = tf.Variable(0.25, trainable=False)
    vae = build(objective=objectives.ELBO(weight))
    history = vae.fit(x, epochs=1, verbose=0).history
    weight.assign(2.0)  # a schedule would do so from a callback
    again = vae.fit(x, epochs=1, verbose=0).history
    for logs, factor in ((history, 0.25), (again, 2.0)):
        assert logs["loss"][0] == pytest.approx(logs["nll"][0] + factor * logs["kl"][0], rel=1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float64"])
def test_regularizers_of_the_networks_are_part_of_the_loss(policy, x):
    keras.mixed_precision.set_global_policy(policy)
    vae = VAE(
        priors.StandardNormal(K),
        keras.Sequential(
            [keras.layers.Dense(4, kernel_regularizer="l2"), posteriors.DiagonalNormal(K)]
        ),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)]),
    )
    vae.compile()
    vae.fit(x, verbose=0)
    logs = vae.evaluate(x, verbose=0, return_dict=True)
    kernel = vae.encoder.layers[0].get_weights()[0]
    rest = logs["loss"] - logs["nll"] - logs["kl"]
    precision = 1e-2 if policy == "mixed_bfloat16" else 1e-4  # the regularizer computes in bfloat16
    assert rest == pytest.approx(0.01 * np.sum(kernel**2), rel=precision)


class Batches(keras.utils.Sequence):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return 7

    def __getitem__(self, index):
        batch = self.x[10 * index : 10 * index + 10]
        return batch, batch


DATA = {
    "array": lambda x: {"x": x, "batch_size": 10, "shuffle": False},
    "array twice": lambda x: {"x": x, "y": x, "batch_size": 10, "shuffle": False},
    "tensor": lambda x: {"x": tf.constant(x), "batch_size": 10, "shuffle": False},
    "float64": lambda x: {"x": x.astype("float64"), "batch_size": 10, "shuffle": False},
    "list": lambda x: {"x": x.tolist(), "batch_size": 10, "shuffle": False},
    "weights of one": lambda x: {
        "x": x,
        "sample_weight": np.ones(N),
        "batch_size": 10,
        "shuffle": False,
    },
    "dataset": lambda x: {"x": tf.data.Dataset.from_tensor_slices(x).batch(10)},
    "dataset of pairs": lambda x: {"x": tf.data.Dataset.from_tensor_slices((x, x)).batch(10)},
    "dataset with weights": lambda x: {
        "x": tf.data.Dataset.from_tensor_slices((x, x, np.ones(N))).batch(10)
    },
    "generator": lambda x: {"x": (x[i : i + 10] for i in range(0, N, 10))},
    "generator of pairs": lambda x: {"x": ((x[i : i + 10],) * 2 for i in range(0, N, 10))},
    "sequence": lambda x: {"x": Batches(x), "shuffle": False},
}


@pytest.fixture(scope="module")
def losses_of_array(restart):
    x = np.random.default_rng(0).random((N, D)).astype("float32")
    return restart().fit(**DATA["array"](x), verbose=0).history


#: a model takes the size of its input from the first batch of a stream
FIRST_SEEN = ("array", "dataset with weights", "generator of pairs", "sequence")


@pytest.mark.long
@pytest.mark.parametrize("kind", DATA)
def test_the_same_data_in_any_form_give_the_same_loss(kind, x, restart, losses_of_array):
    if kind in FIRST_SEEN:
        keras.utils.set_random_seed(3)
        vae = build()
    else:
        vae = restart()
    history, wanted = vae.fit(**DATA[kind](x), verbose=0).history, losses_of_array
    for name in ("loss", "nll", "kl"):
        assert history[name] == pytest.approx(wanted[name], rel=1e-5)


VALIDATION = {
    "array": lambda x: x,
    "tuple of one": lambda x: (x,),
    "list of rows": lambda x: x.tolist(),
    "pair": lambda x: (x, x),
    "pair in a list": lambda x: [x, x],
    "pair with None": lambda x: (x, None),
    "with weights": lambda x: (x, x, np.ones(len(x))),
    "dataset": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(32),
    "dataset of pairs": lambda x: tf.data.Dataset.from_tensor_slices((x, x)).batch(32),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", VALIDATION)
def test_validation_data_in_any_form(kind, vae, x):
    val_loss = vae.fit(x, validation_data=VALIDATION[kind](x), verbose=0).history["val_loss"][0]
    assert val_loss == pytest.approx(vae.evaluate(x, verbose=0)[0], rel=1e-5)


def test_validation_split(vae, x):
    history = vae.fit(x, validation_split=0.2, verbose=0).history
    assert "val_kl" in history


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_integers_are_scored_like_floats(dtype, vae, x):
    bits = x > 0.5
    losses = vae.evaluate(bits.astype(dtype), verbose=0)
    assert losses == pytest.approx(vae.evaluate(bits.astype("float32"), verbose=0))


def test_target_is_what_the_likelihood_scores(mean_vae, x):
    """fit(noisy, clean): the encoder sees the one, the likelihood scores the other."""
    target = np.round(x)
    logs = mean_vae.evaluate(x, target, verbose=0, return_dict=True)
    assert logs["nll"] == pytest.approx(
        -np.mean(mean_vae.predict_distribution(x).log_prob(target)), rel=1e-5
    )


def test_metrics_compare_with_the_mean_of_the_likelihood(mean_vae, x):
    logs = mean_vae.evaluate(x, verbose=0, return_dict=True)
    predicted = mean_vae.predict(x, verbose=0)
    assert logs["mse"] == pytest.approx(np.mean((predicted - x) ** 2), rel=1e-4)
    several = build(posterior=posteriors.DiagonalNormal(K, num_samples=3), metrics=["mse"])
    assert 0 < several.evaluate(x, verbose=0, return_dict=True)["mse"] < 1


def test_step_by_step_the_draws_are_the_same(vae, x):
    keras.utils.set_random_seed(3)
    eager = build(run_eagerly=True)
    one, other = (
        model.fit(x, epochs=2, validation_data=x, shuffle=False, verbose=0).history
        for model in (vae, eager)
    )
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=1e-4), name


def test_keras_callbacks_work(x, tmp_path):
    vae = build()
    callbacks = [
        keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), save_best_only=True),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 if epoch else rate),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
    ]
    history = vae.fit(x, epochs=50, validation_data=x, callbacks=callbacks, verbose=0).history
    best = np.argmin(history["val_loss"])
    assert len(history["loss"]) == best + 2 < 50
    logs = vae.evaluate(x, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(history["val_loss"][best], rel=1e-5)
    saved = keras.models.load_model(tmp_path / "best.keras")
    assert saved.evaluate(x, verbose=0) == pytest.approx(vae.evaluate(x, verbose=0), rel=1e-6)
    assert (tmp_path / "log.csv").read_text().startswith("epoch,elbo,kl,loss")


def test_count_params_are_those_of_the_networks_and_the_noise(vae):
    networks_params = vae.encoder.count_params() + vae.decoder.count_params()
    assert vae.count_params() == networks_params + 4
    assert sum(np.prod(weight.shape) for weight in vae.trainable_weights) == networks_params


# Noise and seeds.


def test_training_repeats_bit_for_bit(restart, x):
    def run(seed):
        keras.utils.set_random_seed(5)
        vae = restart()
        vae.noise.seed.assign(build(seed=seed).noise.seed)
        history = vae.fit(x, epochs=2, batch_size=16, verbose=0).history
        return history, vae.get_weights()

    (history, weights), (again, weights_again) = run(1), run(1)
    assert history == again
    for one, other in zip(weights, weights_again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert run(2)[0] != history


def test_global_seed_fixes_everything(x):
    def run():
        keras.utils.set_random_seed(5)
        vae = build(seed=None)
        history = vae.fit(x, epochs=2, batch_size=16, verbose=0).history
        return history, [vae.sample(3), *vae.get_weights()]

    (history, arrays), (again, arrays_again) = run(), run()
    assert history == again
    for one, other in zip(arrays, arrays_again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_validation_leaves_training_alone(restart, x):
    def run(**kwargs):
        keras.utils.set_random_seed(5)
        return restart().fit(x, epochs=3, verbose=0, **kwargs).history["loss"]

    assert run() == run(validation_data=x)


def test_evaluate_repeats(vae, x):
    assert vae.evaluate(x, verbose=0) == vae.evaluate(x, verbose=0)
    vae.fit(x, verbose=0)
    assert vae.evaluate(x, verbose=0) == vae.evaluate(x, verbose=0)


@pytest.mark.filterwarnings("ignore:fit ended with kl_weight")
def test_training_goes_on_from_a_file_as_if_it_had_not_stopped(x, tmp_path):
    def run(stop):
        keras.utils.set_random_seed(5)
        warm_up = schedules.Linear(num_steps=9)  # of the three steps of each epoch
        vae = build(objective=objectives.ELBO(warm_up), metrics=["mae"])
        vae.fit(x, epochs=1, shuffle=False, verbose=0)
        if stop:
            vae.save(tmp_path / "vae.keras")
            vae = keras.models.load_model(tmp_path / "vae.keras")
        history = vae.fit(x, epochs=2, shuffle=False, verbose=0).history
        return history, vae.get_weights()

    (history, weights), (resumed, resumed_weights) = run(stop=False), run(stop=True)
    assert history == resumed
    for one, other in zip(weights, resumed_weights, strict=True):
        np.testing.assert_array_equal(one, other)


STOCHASTIC = {
    "sample": lambda vae, x, **kwargs: vae.sample(4, **kwargs),
    "reconstruct": lambda vae, x, **kwargs: vae.reconstruct(x, **kwargs),
    "log_weights": lambda vae, x, **kwargs: vae.log_weights(x, 3, **kwargs),
    "elbo": lambda vae, x, **kwargs: vae.elbo(x, 3, **kwargs),
}


@pytest.mark.parametrize("method", STOCHASTIC)
def test_stochastic_methods_repeat_with_a_seed(method, vae, x):
    draw = STOCHASTIC[method]
    first = draw(vae, x, seed=7)
    assert isinstance(first, np.ndarray)
    np.testing.assert_array_equal(first, draw(vae, x, seed=7))
    np.testing.assert_array_equal(first, draw(vae, x, seed=noise.as_seed(7)))
    assert not np.array_equal(first, draw(vae, x, seed=8))
    # Without one the model's own noise goes on, and repeats with the model's seed.
    a, b = draw(vae, x), draw(vae, x)
    assert not np.array_equal(a, b)
    vae.noise.count.assign(0)
    np.testing.assert_array_equal(a, draw(vae, x))
    with pytest.raises(TypeError, match="seed: got 'one'"):
        draw(vae, x, seed="one")


def test_deterministic_methods_leave_all_noise_alone(vae, x):
    count = int(vae.noise.count)
    tf.random.set_seed(0)
    wanted = tf.random.normal([3])
    tf.random.set_seed(0)
    vae.posterior(x), vae.likelihood(np.zeros((2, K))), vae.predict_distribution(x), vae.prior()
    np.testing.assert_array_equal(tf.random.normal([3]), wanted)
    assert int(vae.noise.count) == count


# The probabilistic methods.


def test_methods_return_distributions(vae, x):
    assert vae.prior().event_shape == (K,)
    assert (vae.posterior(x).batch_shape, vae.posterior(x).event_shape) == ((N,), (K,))
    for z in (np.zeros((3, K)), np.zeros((4, 3, K)), np.zeros(K)):
        p = vae.likelihood(z)
        assert (p.batch_shape, p.event_shape) == (z.shape[:-1], (D,))
    assert isinstance(vae(x), tfd.Distribution)
    p = vae.predict_distribution(x)
    np.testing.assert_allclose(p.mean(), vae.predict(x, verbose=0), rtol=1e-5)
    np.testing.assert_allclose(p.mean(), vae.likelihood(vae.posterior(x).mean()).mean(), rtol=1e-5)


def test_likelihood_of_several_draws_is_that_of_each(x):
    vae = build(likelihood=likelihoods.Normal(D))
    z = np.random.default_rng(1).normal(size=(3, N, K)).astype("float32")
    together = vae.likelihood(z).log_prob(x)
    for s in range(3):
        np.testing.assert_allclose(together[s], vae.likelihood(z[s]).log_prob(x), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("num_samples", [None, 10])
def test_convolutional_networks_with_several_draws(num_samples):
    shape, images = (8, 8, 1), np.random.default_rng(0).random((20, 8, 8, 1)).astype("float32")
    posterior = posteriors.DiagonalNormal(K, num_samples=num_samples)
    vae = VAE(
        priors.StandardNormal(K),
        keras.Sequential([networks.conv_encoder(shape, posterior.params_size), posterior]),
        keras.Sequential([networks.conv_decoder(K, shape), likelihoods.Bernoulli(shape)]),
    )
    vae.compile("adam")
    history = vae.fit(images, epochs=2, batch_size=8, validation_data=images, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    assert vae.sample(3).shape == (3, *shape)
    assert vae.reconstruct(images).shape == images.shape
    assert vae.predict(images, verbose=0).shape == images.shape
    assert vae.log_weights(images, 5).shape == (5, 20)


@pytest.mark.long
def test_more_draws_only_lessen_the_noise(vae, x):
    """The mean over many single draws is the loss with many draws."""
    many = build(posterior=posteriors.DiagonalNormal(K, num_samples=400))
    many.build((None, D))
    many.set_weights(vae.get_weights())
    singles = []
    for seed in range(40):
        vae.noise.seed.assign([seed, 0])
        singles.append(vae.evaluate(x, batch_size=N, verbose=0)[0])
    error = np.std(singles) / np.sqrt(40)
    assert many.evaluate(x, batch_size=N, verbose=0)[0] == pytest.approx(
        np.mean(singles), abs=4.5 * error
    )


def test_the_mean_can_be_passed_on(mean_vae, x):
    logs = mean_vae.evaluate(x, verbose=0, return_dict=True)
    nll = -np.mean(mean_vae.predict_distribution(x).log_prob(x))
    assert logs["nll"] == pytest.approx(nll, rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_precision_policies(policy, x):
    keras.mixed_precision.set_global_policy(policy)
    vae = build()
    history = vae.fit(x, epochs=2, validation_data=x, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    dtype = tf.float64 if policy == "float64" else tf.float32
    assert vae.posterior(x).log_prob(np.zeros(K)).dtype == dtype
    assert vae(x).log_prob(x).dtype == dtype


# Saving.


@pytest.mark.filterwarnings("ignore:fit ended with kl_weight")
def test_config_is_json_and_loads_in_safe_mode(x, tmp_path):
    vae = build(prior=priors.Normal(K), objective=objectives.ELBO(0.5, use_exact_kl=False))
    vae.fit(x, verbose=0)
    json.dumps(vae.get_config())
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    assert (loaded.objective.kl_weight, loaded.objective.use_exact_kl) == (0.5, False)
    assert type(loaded.optimizer) is type(vae.optimizer)
    assert loaded.evaluate(x, verbose=0) == vae.evaluate(x, verbose=0)
    np.testing.assert_array_equal(loaded.prior().mean(), vae.prior().mean())
    np.testing.assert_array_equal(loaded.elbo(x, 3, seed=0), vae.elbo(x, 3, seed=0))


def test_saving_is_all_or_nothing(vae, tmp_path, monkeypatch):
    path = tmp_path / "vae.keras"
    vae.save(path)
    before = path.read_bytes()

    def fails(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(keras.Model, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        vae.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["vae", "vae.h5", "vae.tf"])
def test_other_formats_are_refused(name, x, tmp_path):
    with pytest.raises(ValueError, match=r"filepath: got .* wanted a name that ends in \.keras"):
        build().save(tmp_path / name)


# Mistakes.


def test_parts_that_do_not_fit():
    def vae(prior=None, encoder=None, decoder=None):
        return VAE(
            prior or priors.StandardNormal(K),
            encoder or keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(K)]),
            decoder or keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)]),
        )

    with pytest.raises(ValueError, match=r"differ in size: the prior .*\(3,\), the posterior .*2"):
        vae(prior=priors.StandardNormal(3))
    with pytest.raises(TypeError, match=r"prior: got .*Normal.*, wanted a"):
        vae(prior=tfd.Normal(0.0, 1.0))
    with pytest.raises(TypeError, match=r"prior: got .*Dense.*, wanted a block of tfpvae\.priors"):
        vae(prior=keras.layers.Dense(2))
    with pytest.raises(TypeError, match="encoder: got Sequential of Keras 3"):
        vae(encoder=keras3.Sequential([keras3.layers.Dense(4)]))
    with pytest.raises(TypeError, match="decoder: got Dense of Keras 3"):
        vae(decoder=keras3.layers.Dense(4))
    with pytest.raises(TypeError, match=r"decoder: got <function .*, wanted a tf_keras layer"):
        vae(decoder=lambda z: z)
    kl = KLDivergenceRegularizer(priors.StandardNormal(K))
    block = posteriors.DiagonalNormal(K, activity_regularizer=kl)
    with pytest.raises(ValueError, match=r"encoder: its posterior .* has an activity_regularizer"):
        vae(encoder=keras.Sequential([keras.layers.Dense(4), block]))


def test_networks_without_blocks(x):
    encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(K)])
    decoder = keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)])
    bare = VAE(priors.StandardNormal(K), keras.Sequential([keras.layers.Dense(4)]), decoder)
    bare.compile()
    with pytest.raises(TypeError, match=r"encoder: got one that returns .*Tensor, wanted a dist"):
        bare.fit(x, verbose=0)
    bare = VAE(priors.StandardNormal(K), encoder, keras.Sequential([keras.layers.Dense(D)]))
    bare.compile()
    with pytest.raises(TypeError, match=r"decoder: got one that returns .*Tensor, wanted a dist"):
        bare.fit(x, verbose=0)


def test_a_posterior_of_another_size_in_a_subclassed_encoder(x):
    class Encoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.block = posteriors.DiagonalNormal(3)
            self.dense = keras.layers.Dense(6)

        def call(self, x):
            return self.block(self.dense(x))

    decoder = keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)])
    vae = VAE(priors.StandardNormal(K), Encoder(), decoder)
    vae.compile()
    with pytest.raises(ValueError, match=r"differ in size: the prior has events of shape \(2,\)"):
        vae.fit(x, verbose=0)


def test_stock_layers_work_but_for_several_draws(x):
    def vae(draws):
        stock = tfpl.IndependentNormal(K, draws)
        model = VAE(
            priors.StandardNormal(K),
            keras.Sequential([keras.layers.Dense(4), stock]),
            keras.Sequential([keras.layers.Dense(D), tfpl.IndependentBernoulli(D)]),
        )
        model.compile()
        return model

    assert np.isfinite(vae(tfd.Distribution.sample).fit(x, verbose=0).history["loss"]).all()
    with pytest.raises(TypeError, match=r"decoder: got one that ends in .* several draws"):
        vae(lambda d: d.sample(3)).fit(x, verbose=0)


def test_bad_arguments_of_compile():
    vae = build(compiled=False)
    vae.compile("adam", losses.negative_log_prob)
    with pytest.raises(ValueError, match="loss: got 'mse', wanted none: the loss follows"):
        vae.compile("adam", "mse")
    with pytest.raises(TypeError, match="objective: got 'elbo', wanted one of tfpvae"):
        vae.compile(objective="elbo")


@pytest.mark.parametrize("method", ["sample", "elbo", "log_weights"])
@pytest.mark.parametrize(("num", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_numbers_of_draws(method, num, error, vae, x):
    with pytest.raises(error, match=f"num_samples: got {num}, wanted a positive integer"):
        vae.sample(num) if method == "sample" else getattr(vae, method)(x, num)
