"""Adversarial variational Bayes: against closed forms, nearest neighbours and quadrature."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import spatial, special, stats

from tfpvae import VAE, likelihoods, objectives, posteriors, priors

tfd = tfp.distributions
X = np.eye(4, dtype="float32")


def network(size, *units, activation="relu"):
    hidden = [keras.layers.Dense(unit, activation) for unit in units]
    return keras.Sequential([*hidden, keras.layers.Dense(size)])


def implicit(**kwargs):
    return posteriors.Implicit(2, network(2, 8), context_size=6, noise_size=3, **kwargs)


def adversarial(**kwargs):
    return objectives.AdversarialELBO(network(1, 8), **kwargs)


def model(posterior=None, prior=None, cls=VAE, size=4):
    posterior = implicit() if posterior is None else posterior
    return cls(
        priors.StandardNormal(2) if prior is None else prior,
        keras.Sequential([keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential([keras.layers.Dense(size), likelihoods.Bernoulli(size)]),
        seed=0,
    )


def compiled(objective=None, optimizer="adam", jit_compile=None, run_eagerly=None, **kwargs):
    keras.utils.set_random_seed(3)
    vae = model(**kwargs)
    objective = adversarial() if objective is None else objective
    vae.compile(optimizer, objective=objective, jit_compile=jit_compile, run_eagerly=run_eagerly)
    return vae


def rows(num=48):
    return np.random.default_rng(1).integers(0, 2, (num, 4)).astype("float32")


def state(vae):
    ratio = vae.discriminator
    variables = [*vae.variables, *vae.optimizer.variables, *ratio.variables]
    return [v.numpy() for v in [*variables, *ratio.optimizer.variables]]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def entropy(z, k=5):
    """The entropy of draws `[N, D]` by the distances to their neighbours, Kozachenko-Leonenko."""
    num, size = z.shape
    distance = spatial.cKDTree(z).query(z, k + 1)[0][:, -1]
    ball = size / 2 * np.log(np.pi) - special.gammaln(size / 2 + 1)
    return special.digamma(num) - special.digamma(k) + ball + size * np.log(distance).mean()


def test_the_estimate_of_the_entropy(rng):
    """It is what the tests below judge by."""
    z = rng.multivariate_normal([0, 0], [[1.0, 0.7], [0.7, 2.0]], 20_000)
    exact = stats.multivariate_normal([0, 0], [[1.0, 0.7], [0.7, 2.0]]).entropy()
    assert entropy(z) == pytest.approx(exact, abs=0.02)


# The distributions without a density.


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_an_implicit_posterior_is_the_network_of_context_and_noise(noise, rng):
    """A linear network of normal or uniform noise has moments that are known."""
    linear = keras.layers.Dense(2)
    block = posteriors.Implicit(2, linear, context_size=3, noise_size=4, noise=noise)
    kernel = rng.normal(size=(7, 2)).astype("float32")
    linear.set_weights([kernel, np.array([0.5, -0.5])])
    context = rng.normal(size=(5, 3)).astype("float32")
    q = block(context)
    assert (q.batch_shape, q.event_shape) == ((5,), (2,))
    z = q.sample(40_000, seed=(0, 1)).numpy()
    assert z.shape == (40_000, 5, 2)
    mean = context @ kernel[:3] + [0.5, -0.5]
    variance = (kernel[3:] ** 2).sum(0) * (1 if noise == "normal" else 1 / 3)
    covariance = kernel[3:].T @ kernel[3:] * (1 if noise == "normal" else 1 / 3)
    np.testing.assert_allclose(z.mean(0), mean, atol=4 * np.sqrt(variance.max() / 40_000))
    np.testing.assert_allclose(np.cov(z[:, 2].T), covariance, rtol=0.05, atol=0.05)
    # Estimates from 64 draws, which are those of all examples.
    np.testing.assert_allclose(q.mean(), mean, atol=4 * np.sqrt(variance.max() / 64))
    np.testing.assert_allclose(q.mean() - mean, np.tile(q.mean()[:1] - mean[:1], (5, 1)), atol=1e-5)
    np.testing.assert_allclose(q.stddev(), np.tile(np.sqrt(variance), (5, 1)), rtol=0.5)
    np.testing.assert_array_equal(q.sample(seed=(0, 1)), q.sample(seed=(0, 1)))


def test_draws_are_reparameterized():
    block, context = implicit(), tf.ones([5, 6])
    with tf.GradientTape() as tape:
        tape.watch(context)
        total = tf.reduce_sum(block(context).sample(3, seed=(0, 1)))
    assert np.any(tape.gradient(total, context))
    assert len(block.trainable_weights) == 4
    assert block(context).reparameterization_type == tfd.FULLY_REPARAMETERIZED


@pytest.mark.parametrize(
    "make", [lambda: implicit(noise="uniform"), lambda: priors.Implicit((2, 2), network(4, 8), 3)]
)
def test_an_implicit_block_is_json(make):
    block = make()
    config = json.loads(json.dumps(block.get_config()))
    assert type(block).from_config(config).get_config() == block.get_config()


def test_an_implicit_prior(rng):
    linear = keras.layers.Dense(4)
    prior = priors.Implicit((2, 2), linear, 3, noise="uniform")
    kernel = rng.normal(size=(3, 4)).astype("float32")
    linear.set_weights([kernel, np.zeros(4)])
    z = prior().sample(20_000, seed=(0, 1)).numpy()
    assert z.shape == (20_000, 2, 2)
    covariance = kernel.T @ kernel / 3
    np.testing.assert_allclose(np.cov(z.reshape(-1, 4).T), covariance, rtol=0.05, atol=0.05)
    assert len(prior.trainable_weights) == 2
    with pytest.raises(ValueError, match="got an implicit prior, which has no density"):
        prior.repeated(3)


@pytest.mark.long
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_draws_are_in_full_precision(policy):
    keras.mixed_precision.set_global_policy(policy)
    keras.backend.set_floatx("float64" if policy == "float64" else "float32")
    vae = compiled()
    history = vae.fit(rows(), batch_size=16, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    wanted = "float64" if policy == "float64" else "float32"
    assert vae.posterior(rows(3)).sample().dtype == wanted
    assert vae.losses == []


# The gradient and the estimate, where T is known exactly.


class Exact(keras.layers.Layer):
    """The log ratio of N(a x, s^2) to N(0, 1), or of standardized z, in closed form."""

    def __init__(self, slope, scale, contrast):
        super().__init__()
        self.slope, self.scale, self.contrast = slope, scale, contrast

    def call(self, inputs):
        x, z = inputs[:, :1], inputs[:, 1:]
        normal = tfd.Normal(0.0, 1.0)
        if self.contrast:  # The moments are the posterior's own.
            return tf.zeros_like(z)
        return tfd.Normal(self.slope * x, self.scale).log_prob(z) - normal.log_prob(z)


@pytest.mark.parametrize("contrast", [True, False])
def test_the_gradient_is_that_of_the_elbo(contrast, monkeypatch):
    """With the exact T, and a Gaussian posterior, whose ELBO has a gradient without it."""
    slope, scale = 0.7, 0.5
    monkeypatch.setattr(objectives, "_CONTRAST_DRAWS", 4000)  # T is exact for exact moments.
    x = np.random.default_rng(0).normal(size=(200, 1)).astype("float32")

    def gradients(objective):
        keras.utils.set_random_seed(0)
        encoder = keras.Sequential([keras.layers.Dense(2), posteriors.DiagonalNormal(1)])
        decoder = keras.Sequential([keras.layers.Dense(1), likelihoods.Normal(1, scale=1.0)])
        vae = VAE(priors.Normal(1), encoder, decoder, seed=0)
        vae.compile("sgd", objective=objective)
        vae.build((None, 1))
        encoder.layers[0].set_weights(
            [np.array([[slope, 0.0]]), np.array([0.0, np.log(np.expm1(scale))])]
        )
        decoder.layers[0].set_weights([np.array([[1.5]]), np.array([0.3])])
        with tf.GradientTape() as tape:
            losses, terms, _ = vae.example_losses(tf.constant(x), tf.constant(x), training=True)
            loss = tf.reduce_mean(losses)
        return float(loss), tape.gradient(loss, vae.trainable_variables), terms

    exact = Exact(slope, scale, contrast)
    adversary = objectives.AdversarialELBO(exact, adaptive_contrast=contrast, num_samples=4000)
    found, found_gradients, terms = gradients(adversary)
    wanted, wanted_gradients, _ = gradients(objectives.ELBO(num_samples=4000))
    assert found == pytest.approx(wanted, abs=0.01)
    np.testing.assert_allclose(terms["adversarial_kl"], terms["kl"], atol=0.15)
    for one, other in zip(found_gradients, wanted_gradients, strict=True):
        assert np.any(other)
        np.testing.assert_allclose(one, other, atol=0.02)


# Training: in turns, on every path.


@pytest.mark.long
@pytest.mark.parametrize("contrast", [True, False])
def test_the_fast_path_is_keras_loop(contrast):
    class Loop(VAE):
        """A VAE with a step of its own, which Keras's loop runs."""

        def train_step(self, data):
            return super().train_step(data)

    def run(cls=VAE, **kwargs):
        objective = adversarial(adaptive_contrast=contrast, num_updates=2)
        vae = compiled(objective, cls=cls, **kwargs)
        return vae.fit(rows(), batch_size=16, epochs=3, validation_data=rows(), verbose=0).history

    wanted = run(Loop)
    assert set(wanted) == {
        prefix + name
        for prefix in ("", "val_")
        for name in ("loss", "nll", "adversarial_elbo", "adversarial_kl", "discriminator_loss")
    }
    for history in (run(), run(run_eagerly=True)):
        for name, values in wanted.items():
            np.testing.assert_allclose(history[name], values, rtol=2e-4, atol=1e-5, err_msg=name)


@pytest.mark.long
def test_by_xla():
    """XLA's draws are others; the numbers of many steps are alike."""
    logs = [
        compiled(adversarial(num_samples=8), jit_compile=jit)
        .fit(rows(), batch_size=16, epochs=60, verbose=0)
        .history
        for jit in (True, False)
    ]
    for name in logs[0]:
        one, other = (np.mean(log[name][-20:]) for log in logs)
        assert one == pytest.approx(other, abs=0.1), name


@pytest.mark.long
def test_each_optimizer_trains_its_own():
    """The rate of one is zero: nothing of its own moves, all of the other's does."""
    for rates in ((0.0, 0.1), (0.1, 0.0)):
        first, second = (keras.optimizers.SGD(rate) for rate in rates)
        vae = compiled(adversarial(optimizer=second, num_updates=3), first)
        vae.build((None, 4))
        vae.build_optimizers()
        ratio = vae.discriminator
        own = {v.ref() for v in vae.weights}
        assert not own & {v.ref() for v in ratio.weights}
        groups = [vae.trainable_variables, ratio.trainable_variables]
        before = [[v.numpy() for v in group] for group in groups]
        vae.fit(rows(16), batch_size=16, verbose=0)
        for group, old, rate in zip(groups, before, rates, strict=True):
            moved = [np.any(v.numpy() != a) for v, a in zip(group, old, strict=True)]
            assert all(moved) if rate else not any(moved)
        assert (int(first.iterations), int(second.iterations)) == (1, 3)


@pytest.mark.long
def test_training_goes_on_after_a_file_to_the_same_numbers(tmp_path):
    """Bit for bit: the discriminator and its optimizer are in the file."""

    def more(vae):
        return vae.fit(rows(), batch_size=16, epochs=2, shuffle=False, verbose=0).history

    vae = compiled(adversarial(optimizer=keras.optimizers.Adam(0.01), num_updates=2))
    more(vae)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    assert loaded.objective.num_updates == 2
    assert_same(state(loaded), state(vae))
    assert int(loaded.discriminator.optimizer.iterations) == 12
    assert more(loaded) == more(vae)
    assert_same(state(loaded), state(vae))


@pytest.mark.long
def test_the_same_seed_repeats_bit_for_bit():
    runs = []
    for _ in range(2):
        vae = compiled()
        runs.append((vae.fit(rows(), batch_size=16, verbose=0).history, state(vae)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


@pytest.mark.long
def test_where_densities_are_known_the_true_elbo_stands_beside():
    vae = compiled(posterior=posteriors.DiagonalNormal(2))
    history = vae.fit(rows(), batch_size=16, verbose=0).history
    terms = {"adversarial_elbo", "adversarial_kl", "discriminator_loss"}
    assert set(history) == {"loss", "elbo", "nll", "kl"} | terms
    logs = vae.evaluate(rows(), verbose=0, return_dict=True)
    assert logs["elbo"] == pytest.approx(vae.elbo(rows(), 500).mean(), abs=0.3)
    assert logs["loss"] == pytest.approx(-logs["adversarial_elbo"], rel=1e-5)


# What works without a density, and what does not.


@pytest.fixture(scope="module")
def trained():
    vae = compiled()
    vae.fit(rows(), batch_size=16, verbose=0)
    return vae


def test_what_needs_no_density_works(trained):
    x = rows(5)
    assert trained.posterior(x).sample(3).shape == (3, 5, 2)
    assert trained.reconstruct(x, seed=1).shape == x.shape
    assert trained.sample(7, seed=1).shape == (7, 4)
    assert trained.predict(x, verbose=0).shape == x.shape
    assert np.isfinite(trained.evaluate(x, verbose=0)).all()


@pytest.mark.long
def test_annealing_from_the_prior_finds_the_evidence(trained):
    """Against quadrature over the two dimensions of z."""
    x = rows(5)
    grid, w = np.polynomial.hermite_e.hermegauss(60)
    z = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2).astype("float32")
    log_w = np.log(np.outer(w, w).ravel() / (2 * np.pi))
    log_p = trained.likelihood(z[:, None]).log_prob(x).numpy()
    exact = special.logsumexp(log_p + log_w[:, None], axis=0)
    options = {"method": "ais", "proposal": "prior", "num_steps": 50, "num_leapfrog_steps": 3}
    found = trained.log_marginal_likelihood(x, 100, seed=0, verbose=0, **options)
    assert (np.abs(found.estimate - exact) < 4 * found.standard_error + 1e-3).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda vae, x: vae.elbo(x),
        lambda vae, x: vae.log_weights(x),
        lambda vae, x: vae.log_marginal_likelihood(x),
        lambda vae, x: vae.log_marginal_likelihood(x, method="ais"),
        lambda vae, x: vae.posterior(x).log_prob(np.zeros((5, 2), "float32")),
    ],
)
def test_what_needs_a_density_says_so(call, trained):
    match = r"density.*AdversarialELBO.*method='ais', proposal='prior'"
    with pytest.raises((ValueError, NotImplementedError), match=match):
        call(trained, rows(5))


@pytest.mark.parametrize(
    "objective", [objectives.ELBO(), objectives.IWAE(2), objectives.ReweightedWakeSleep(2)]
)
def test_objectives_that_need_a_density_are_refused(objective):
    match = "with an implicit posterior, whose density nobody knows, wanted objectives.Adversarial"
    with pytest.raises(ValueError, match=match):
        model().compile(objective=objective)
    prior = priors.Implicit(2, network(2))
    match = "with an implicit prior, .*adaptive_contrast=False"
    with pytest.raises(ValueError, match=match):
        model(posteriors.DiagonalNormal(2), prior).compile(objective=objective)


BAD = {
    "discriminator": (
        lambda: compiled(objectives.AdversarialELBO(network(2))).fit(X, verbose=0),
        r"discriminator: got one that puts out shape \(N, 2\), wanted \(N, 1\): end it in keras",
    ),
    "no network": (
        lambda: objectives.AdversarialELBO("logistic"),
        "discriminator: got 'logistic', wanted a tf_keras layer or model",
    ),
    "contrast": (
        lambda: compiled(prior=priors.Implicit(2, network(2))),
        "adaptive_contrast: got True with an implicit prior.*wanted adaptive_contrast=False",
    ),
    "updates": (lambda: adversarial(num_updates=0), "num_updates: got 0"),
    "discrete": (
        lambda: compiled(posterior=posteriors.Bernoulli(2), prior=priors.Bernoulli(2)),
        "draws of z have to be reparameterized",
    ),
    "size": (lambda: posteriors.Implicit(3, network(2), 4), r"wanted \(N, 3\): end it in"),
    "prior's size": (lambda: priors.Implicit(3, network(2)), r"wanted \(N, 3\): end it in"),
    "noise": (lambda: implicit(noise="cauchy"), "noise: got 'cauchy', wanted 'normal' or 'unif"),
    "mode": (lambda: implicit(convert_to_tensor_fn="mode"), "convert_to_tensor_fn: got 'mode'"),
    "VampPrior": (
        lambda: model(prior=priors.VampPrior(2, pseudo_inputs=X)),
        "prior: got a VampPrior with an implicit posterior",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, match = BAD[case]
    with pytest.raises((TypeError, ValueError), match=match):
        make()


# What it finds.


def linear_gaussian(rng):
    """p(z) = N(0, I), p(x|z) = N(W z, 0.6^2): log p(x) and the posterior in closed form."""
    kernel = np.array([[1.0, -0.5, 0.4], [0.3, 0.8, -0.9]])
    covariance = kernel.T @ kernel + 0.36 * np.eye(3)
    x = rng.multivariate_normal(np.zeros(3), covariance, 400).astype("float32")
    precision = np.eye(2) + kernel @ kernel.T / 0.36
    posterior = np.linalg.inv(precision)
    mean = x @ kernel.T @ posterior / 0.36
    log_evidence = stats.multivariate_normal(np.zeros(3), covariance).logpdf(x)
    return x, kernel, mean, posterior, log_evidence


@pytest.mark.long
@pytest.mark.parametrize("contrast", [True, False])
def test_a_linear_gaussian_model(contrast, rng):
    """The estimate reaches log p(x), and the draws those of the exact posterior."""
    x, kernel, mean, covariance, log_evidence = linear_gaussian(rng)
    decoder = keras.layers.Dense(3, use_bias=False, trainable=False)
    posterior = posteriors.Implicit(2, keras.layers.Dense(2), context_size=2, noise_size=2)
    vae = VAE(
        priors.StandardNormal(2),
        keras.Sequential([keras.layers.Dense(2), posterior]),
        keras.Sequential([decoder, likelihoods.Normal(3, scale=0.6)]),
        seed=0,
    )
    steps = 3500

    def adam(rate):
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
        return keras.optimizers.Adam(rate, beta_1=0.5)

    objective = objectives.AdversarialELBO(
        network(1, 64, 64), adam(0.005), adaptive_contrast=contrast, num_samples=4
    )
    vae.compile(adam(0.003), objective=objective)
    vae.build((None, 3))
    decoder.set_weights([kernel])
    vae.fit(x, batch_size=100, epochs=steps // 4, verbose=0)
    found = vae.evaluate(x, batch_size=400, verbose=0, return_dict=True)
    assert found["adversarial_elbo"] == pytest.approx(log_evidence.mean(), abs=0.2)
    # The draws of an affine posterior are Gaussian: their KL to the exact posterior by moments.
    z = vae.posterior(x).sample(2000, seed=(0, 1)).numpy()
    precision = np.linalg.inv(covariance)
    kls = []
    for i in range(len(x)):
        found_cov = np.cov(z[:, i].T)
        away = z[:, i].mean(0) - mean[i]
        log_det = np.log(np.linalg.det(covariance) / np.linalg.det(found_cov))
        kls.append((np.trace(precision @ found_cov) + away @ precision @ away - 2 + log_det) / 2)
    assert np.mean(kls) < 0.1
    # Without the divergence, or with the prior for posterior, it would be far off.
    assert abs(-found["nll"] - log_evidence.mean()) > 0.5


@pytest.mark.study
def test_four_points(monkeypatch, tmp_path):
    """The four regions of the toy data, and an ELBO above that of the diagonal Gaussian."""
    monkeypatch.setattr(sys, "argv", ["adversarial", "--output", str(tmp_path)])
    path = Path(__file__).parents[1] / "examples" / "adversarial.py"
    example = runpy.run_path(str(path))
    z = np.random.default_rng(0).normal(size=(20_000, 2))
    assert example["entropy"](z) == pytest.approx(stats.norm.entropy() * 2, abs=0.02)
    keras.utils.set_random_seed(0)
    steps, found = 4000, {}
    for kind in ("diagonal", "adversarial"):
        posterior = posteriors.DiagonalNormal(2)
        objective = objectives.ELBO(num_samples=16)
        if kind == "adversarial":
            posterior = posteriors.Implicit(2, network(2, 64, 64), 32, noise_size=4)
            objective = objectives.AdversarialELBO(
                network(1, 128, 128), example["adam"](1e-3, 16_000), num_updates=4, num_samples=16
            )
        vae = example["model"](posterior, 0)
        example["train"](vae, objective, steps)
        draws = vae.posterior(X).sample(20_000, seed=(0, 1)).numpy()
        found[kind] = example["elbo"](vae, draws)
        assert found[kind] < example["log_evidence"](vae)
    assert found["adversarial"] > found["diagonal"]
    # Regions: to whom a draw belongs is told by its neighbours.
    points, owner = draws[:2000].reshape(-1, 2), np.tile(np.arange(4), 2000)
    nearest = spatial.cKDTree(points).query(points, 2)[1][:, 1]
    assert np.mean(owner[nearest] == owner) > 0.95


@pytest.mark.long
def test_an_implicit_prior_is_learned():
    """x = z + noise: the best prior is the normal that makes x normal as the data."""
    rng = np.random.default_rng(0)
    x = rng.normal(1.5, np.hypot(0.6, 0.5), (1000, 1)).astype("float32")
    posterior = posteriors.DiagonalNormal(1)
    decoder = keras.layers.Dense(1, use_bias=False, trainable=False, kernel_initializer="ones")
    prior = priors.Implicit(1, keras.layers.Dense(1))
    vae = VAE(
        prior,
        keras.Sequential([keras.layers.Dense(2), posterior]),
        keras.Sequential([decoder, likelihoods.Normal(1, scale=0.5)]),
        seed=0,
    )
    objective = objectives.AdversarialELBO(
        network(1, 32, 32), keras.optimizers.Adam(0.003), adaptive_contrast=False, num_updates=2
    )
    vae.compile(keras.optimizers.Adam(0.003), objective=objective)
    history = vae.fit(x, batch_size=100, epochs=250, verbose=0).history
    assert set(history) == {
        "loss",
        "nll",
        "adversarial_elbo",
        "adversarial_kl",
        "discriminator_loss",
    }
    assert vae.sample(5, seed=0).shape == (5, 1)
    z = prior().sample(20_000, seed=(0, 1)).numpy()
    assert z.mean() == pytest.approx(x.mean(), abs=0.1)
    assert z.std() == pytest.approx(np.sqrt(x.var() - 0.25), abs=0.1)


def test_the_contrast_standardizes_what_its_density_is_of():
    """By a change of variables, r(z|x) is that of a standard normal at the standardized z."""
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(3, 2)), rng.uniform(0.3, 3.0, (3, 2))
    z = rng.normal(size=(4, 3, 2))
    contrast = objectives._Contrast(tf.constant(loc), tf.constant(scale))
    standard = stats.norm.logpdf(contrast.inverse(tf.constant(z)).numpy())
    expected = (standard - np.log(scale)).sum(axis=-1)
    np.testing.assert_allclose(contrast.log_prob(tf.constant(z)), expected, rtol=1e-6)
