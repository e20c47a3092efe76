"""Incomplete data: what a VAE learns from it, and what it fills in."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import stats

from tfpvae import VAE, execution, likelihoods, networks, plotting, posteriors, priors

D, K, N = 5, 2, 60
SCALE = 0.6


@pytest.fixture
def x(rng):
    """Numbers in [0, 1], of which some are missing: half of the rows lack some, one row all."""
    x = rng.random((N, D)).astype("float32")
    x[:30][rng.random((30, D)) < 0.4] = np.nan
    x[0] = np.nan
    return x


def build(likelihood=None, *, fill=True, seed=1, preprocessing=None, **kwargs):
    likelihood = likelihoods.Masked(likelihood or likelihoods.Normal(D, scale=SCALE))
    first = [networks.FillMissing(mask=True)] if fill else []
    vae = VAE(
        priors.StandardNormal(K),
        keras.Sequential([*first, keras.layers.Dense(2 * K), posteriors.DiagonalNormal(K)]),
        keras.Sequential([keras.layers.Dense(likelihood.params_size), likelihood]),
        seed=seed,
        preprocessing=preprocessing,
    )
    vae.compile("adam", **kwargs)
    return vae


@pytest.fixture(scope="module")
def restart(snapshot):
    """One model for tests that need no other."""
    keras.utils.set_random_seed(3)
    vae = build()
    vae.build((None, D))
    return snapshot(vae)


@pytest.fixture
def vae(restart):
    return restart()


# A linear-Gaussian model: what is missing has an exact distribution, given what is observed.


class FactorAnalysis:
    """x = W z + b + s e, so x ~ N(b, W W' + s^2 I), and so are all parts of x given the others.

    All rows lack the same entries, so the posterior of z is linear in the observed ones.
    """

    missing = np.array([False, True, False, True, False])

    def __init__(self, rng):
        self.weight, self.bias = rng.normal(size=(D, K)), rng.normal(size=D)
        cov = self.weight @ self.weight.T + SCALE**2 * np.eye(D)
        seen, gone = ~self.missing, self.missing
        self.seen_cov = cov[np.ix_(seen, seen)]
        self.slope = cov[np.ix_(gone, seen)] @ np.linalg.inv(self.seen_cov)
        self.rest_cov = cov[np.ix_(gone, gone)] - self.slope @ cov[np.ix_(seen, gone)]
        self.x = rng.multivariate_normal(self.bias, cov, size=8).astype("float32")
        self.x[:, gone] = np.nan

    def log_prob(self):
        """Exact log p(x_obs) [N]."""
        seen = ~self.missing
        return stats.multivariate_normal(self.bias[seen], self.seen_cov).logpdf(self.x[:, seen])

    def mean(self):
        """Exact E[x_mis | x_obs] [N, 2]."""
        seen, gone = ~self.missing, self.missing
        return self.bias[gone] + (self.x[:, seen] - self.bias[seen]) @ self.slope.T

    @functools.cache  # noqa: B019  # Models that are only read, with what they have traced.
    def vae(self, shift=0.0, widened=1.0):
        """The model with the exact posterior given what is observed, or one with a wrong mean."""
        seen = self.weight[~self.missing]
        cov = np.linalg.inv(np.eye(K) + seen.T @ seen / SCALE**2)
        gain = np.zeros((K, D))
        gain[:, ~self.missing] = cov @ seen.T / SCALE**2
        vae = VAE(
            priors.StandardNormal(K),
            keras.Sequential(
                [networks.FillMissing(), keras.layers.Dense(5), posteriors.FullRankNormal(K)]
            ),
            keras.Sequential(
                [
                    keras.layers.Dense(D),
                    likelihoods.Masked(likelihoods.Normal(D, scale=SCALE)),
                ]
            ),
            seed=0,
        )
        vae.compile("sgd")
        vae.build((None, D))
        cholesky = np.linalg.cholesky(widened**2 * cov).astype("float32")
        tril = tfp.bijectors.FillScaleTriL().inverse(cholesky)
        kernel = np.concatenate([gain.T, np.zeros((D, 3))], axis=1)
        bias = np.concatenate([shift - gain @ self.bias, tril])
        vae.encoder.layers[1].set_weights([kernel, bias])
        vae.decoder.layers[0].set_weights([self.weight.T, self.bias])
        return vae


@pytest.fixture(scope="module")
def factors():
    return FactorAnalysis(np.random.default_rng(0))


def test_log_weights_of_the_exact_posterior_are_the_evidence_of_what_is_observed(factors):
    log_weights = factors.vae().log_weights(factors.x, num_samples=20, seed=0)
    wanted = np.broadcast_to(factors.log_prob(), (20, 8))
    np.testing.assert_allclose(log_weights, wanted, rtol=1e-4, atol=1e-4)


def test_elbo_bounds_the_evidence_of_what_is_observed(factors):
    exact = factors.vae().elbo(factors.x, num_samples=20_000, seed=0)
    np.testing.assert_allclose(exact, factors.log_prob(), atol=0.05)
    # A shift d of the mean costs d' C^-1 d / 2, where C is the covariance of p(z | x_obs).
    seen = factors.weight[~factors.missing]
    gap = 0.5 * np.sum(0.4 * (np.eye(K) + seen.T @ seen / SCALE**2) * 0.4)
    wrong = factors.vae(shift=0.4).elbo(factors.x, num_samples=20_000, seed=0)
    assert (wrong < factors.log_prob()).all()
    np.testing.assert_allclose(wrong, factors.log_prob() - gap, atol=0.1)


POSTERIORS = {"exact": {}, "wrong": {"shift": 0.3, "widened": 1.6}}


@pytest.mark.parametrize("kind", POSTERIORS)
def test_imputed_mean_is_the_conditional_mean(kind, factors):
    """Within five standard errors of the weighted mean, of which there are sixteen."""
    filled = factors.vae(**POSTERIORS[kind]).impute(factors.x, num_samples=40_000, seed=0)
    sd = np.sqrt(np.diag(factors.rest_cov))  # No less than that of E[x | z].
    effective = 40_000 if kind == "exact" else 10_000
    error = (filled[:, factors.missing] - factors.mean()) / (sd / np.sqrt(effective))
    assert np.abs(error).max() < 5
    np.testing.assert_array_equal(filled[:, ~factors.missing], factors.x[:, ~factors.missing])


def test_weights_correct_a_wrong_posterior(factors):
    """What the encoder believes by itself, W m + b at its mean m, is far from the truth."""
    vae = factors.vae(shift=0.3, widened=1.6)
    error = vae.predict(factors.x, verbose=0)[:, factors.missing] - factors.mean()
    assert np.abs(error / np.sqrt(np.diag(factors.rest_cov))).max() > 0.2


@pytest.mark.long
@pytest.mark.parametrize("kind", POSTERIORS)
def test_imputed_draws_follow_the_conditional_distribution(kind, factors):
    num = 4000
    vae = factors.vae(**POSTERIORS[kind])
    one_row = factors.x[:2]
    draws = vae.impute(one_row, num_samples=40_000, num_draws=num, seed=0)
    assert draws.shape == (num, 2, D)
    seen = ~factors.missing
    np.testing.assert_array_equal(
        draws[:, :, seen], np.broadcast_to(one_row[:, seen], (num, 2, seen.sum()))
    )
    for row in range(2):
        gaps = draws[:, row, factors.missing]
        sd = np.sqrt(np.diag(factors.rest_cov))
        np.testing.assert_allclose(
            gaps.mean(axis=0), factors.mean()[row], atol=5 * sd.max() / np.sqrt(num)
        )
        # The entries of a draw belong together: its covariance is right as a whole.
        np.testing.assert_allclose(
            np.cov(gaps.T), factors.rest_cov, atol=5 * sd.max() ** 2 * np.sqrt(2 / num)
        )


@pytest.mark.long
@pytest.mark.parametrize("num_draws", [None, 3000])
def test_pieces_of_the_draws_are_put_together(num_draws, factors, monkeypatch):
    """Where memory holds but a tenth of the draws of z, the answer is that of all of them."""
    x, vae = factors.x[:2], factors.vae(shift=0.3, widened=1.6)
    sizes = []
    compiled = execution.Batched._compile

    def few_pairs(self, rows):
        function, _ = compiled(self, rows)

        def noted(part, num, seed):
            sizes.append((len(part), int(num)))
            return function(part, num, seed)

        return noted, execution._MAX_BYTES_INFERENCE // 4000

    monkeypatch.setattr(execution.Batched, "_compile", few_pairs)
    filled = vae.impute(x, num_samples=40_000, num_draws=num_draws, seed=0)
    assert sizes == [(1, 4000)] * 20
    sd = np.sqrt(np.diag(factors.rest_cov))
    gaps, num = filled[..., factors.missing], 10_000
    if num_draws:
        gaps, num = gaps.mean(axis=0), num_draws
    assert np.abs((gaps - factors.mean()[:2]) / (sd / np.sqrt(num))).max() < 5


def test_training_on_what_is_observed_finds_the_model(rng):
    """Half of the numbers gone, a decoder trained on the rest has the covariance of all of them."""
    weight = np.array([[1.0, 0.8, -0.9, 0.7, 0.0]]).T
    full = rng.normal(size=(3000, 1)) @ weight.T + 0.5 * rng.normal(size=(3000, D))
    x = np.where(rng.random(full.shape) < 0.5, np.nan, full).astype("float32")
    likelihood = likelihoods.Masked(likelihoods.Normal(D, scale=0.5))
    encoder = [networks.FillMissing(mask=True), keras.layers.Dense(32, "relu")]
    vae = VAE(
        priors.StandardNormal(1),
        keras.Sequential([*encoder, keras.layers.Dense(2), posteriors.DiagonalNormal(1)]),
        keras.Sequential([keras.layers.Dense(D), likelihood]),
        seed=0,
    )
    vae.compile(keras.optimizers.Adam(0.01))
    vae.fit(x, epochs=15, batch_size=100, verbose=0)
    found = vae.decoder.layers[0].get_weights()[0].T
    np.testing.assert_allclose(found @ found.T, weight @ weight.T, atol=0.15)
    gone = np.isnan(x)
    error = (vae.impute(x, num_samples=50, seed=0) - full)[gone]
    # The exact conditional mean knows W: its error is the conditional standard deviation.
    cov = weight @ weight.T + 0.25 * np.eye(D)
    best = 0.0
    for row in range(200):
        g, o = gone[row], ~gone[row]
        slope = cov[np.ix_(g, o)] @ np.linalg.inv(cov[np.ix_(o, o)])
        best += np.sum(np.diag(cov[np.ix_(g, g)] - slope @ cov[np.ix_(o, g)]))
    best = np.sqrt(best / gone[:200].sum())
    assert np.sqrt(np.mean(error**2)) == pytest.approx(best, rel=0.06)


# As a Keras model.

LIKELIHOODS = {
    "Normal": lambda: likelihoods.Normal(D),
    "Bernoulli": lambda: likelihoods.Bernoulli(D),
    "ContinuousBernoulli": lambda: likelihoods.ContinuousBernoulli(D),
}


@pytest.mark.long
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_losses_are_finite(name, x):
    vae = build(LIKELIHOODS[name]())
    history = vae.fit(x, epochs=2, validation_data=x, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert all(np.isfinite(weight).all() for weight in vae.get_weights())


@pytest.mark.long
def test_the_fast_path_takes_xla_of_its_own_choice(x, monkeypatch):
    monkeypatch.setattr(execution, "WORTHWHILE_STEPS", 1)
    verdicts = []
    can_use_xla = execution.Program._can_use_xla

    def noted(self, chunk):
        verdicts.append(can_use_xla(self, chunk))
        return verdicts[-1]

    monkeypatch.setattr(execution.Program, "_can_use_xla", noted)
    history = build().fit(x, epochs=2, batch_size=10, verbose=0).history
    assert verdicts == [True]
    assert np.isfinite(history["loss"]).all()


@pytest.mark.long
def test_all_methods_take_missing_values(vae, x):
    vae.fit(x, epochs=1, verbose=0)
    for result, shape in [
        (vae.elbo(x, 2, seed=0), (N,)),
        (vae.log_weights(x, 3, seed=0), (3, N)),
        (vae.posterior(x).mean().numpy(), (N, K)),
        (vae.reconstruct(x, seed=0), (N, D)),
        (vae.predict(x, verbose=0), (N, D)),
        (vae.predict_distribution(x).log_prob(x).numpy(), (N,)),
        (np.array(vae.evaluate(x, verbose=0)), (4,)),
        (vae.impute(x, 10, seed=0), (N, D)),
        (vae.impute(x, 10, num_draws=2, seed=0), (2, N, D)),
    ]:
        assert result.shape == shape
        assert np.isfinite(result).all()


def test_loss_is_the_elbo_of_what_is_observed(vae, x):
    """nll by scipy, from the observed numbers alone; the encoder puts out a known q."""
    vae.encoder.layers[1].set_weights([np.zeros((2 * D, 2 * K)), np.full(2 * K, -40.0)])
    vae.decoder.layers[0].set_weights([np.zeros((K, D)), np.arange(D) / D])
    logs = vae.evaluate(x, verbose=0, return_dict=True)
    log_prob = np.nansum(stats.norm(np.arange(D) / D, SCALE).logpdf(x), axis=1)
    assert logs["nll"] == pytest.approx(-log_prob.mean(), rel=1e-4)
    assert logs["loss"] == pytest.approx(logs["nll"] + logs["kl"], rel=1e-6)


STREAMS = {
    "dataset": lambda x: {"x": tf.data.Dataset.from_tensor_slices(x).batch(10)},
    "dataset of pairs": lambda x: {"x": tf.data.Dataset.from_tensor_slices((x, x)).batch(10)},
    "dataset with weights": lambda x: {
        "x": tf.data.Dataset.from_tensor_slices((x, x, np.ones(N))).batch(10)
    },
    "generator": lambda x: {"x": (x[i : i + 10] for i in range(0, N, 10))},
    "list": lambda x: {"x": x.tolist(), "batch_size": 10, "shuffle": False},
    "float64": lambda x: {"x": x.astype("float64"), "batch_size": 10, "shuffle": False},
}


#: a model takes the size of its input from the first batch of a stream
FIRST_SEEN = ("dataset with weights", "generator")


@pytest.mark.long
@pytest.mark.parametrize("kind", STREAMS)
def test_the_same_data_in_any_form_give_the_same_loss(kind, x, restart):
    wanted = restart().fit(x=x, batch_size=10, shuffle=False, verbose=0).history
    keras.utils.set_random_seed(3)
    vae = build() if kind in FIRST_SEEN else restart()
    history = vae.fit(**STREAMS[kind](x), verbose=0).history
    for name in ("loss", "nll", "kl"):
        assert history[name] == pytest.approx(wanted[name], rel=1e-5)


@pytest.mark.parametrize("eager", [False, True])
def test_sample_weights(eager, x):
    vae = build(run_eagerly=eager)
    vae.build((None, D))
    vae.encoder.layers[1].set_weights([np.zeros((2 * D, 2 * K)), np.full(2 * K, -40.0)])
    weight = np.linspace(0, 2, N)
    logs = vae.evaluate(x, sample_weight=weight, verbose=0, return_dict=True, batch_size=N)
    z = np.full((1, K), -40.0)  # The encoder puts out almost a point.
    loc = z @ vae.decoder.layers[0].get_weights()[0]
    log_prob = np.nansum(stats.norm(loc, SCALE).logpdf(x), axis=1)
    assert logs["nll"] == pytest.approx(-(weight * log_prob).mean(), rel=1e-4)


def test_targets_may_be_incomplete_too(vae, x):
    """fit(x, y): the encoder sees x, the likelihood scores what is observed of y."""
    y = np.where(np.isnan(x), 0.5, x)
    assert np.isfinite(vae.evaluate(x, y, verbose=0)).all()
    assert np.isfinite(vae.evaluate(y, x, verbose=0)).all()
    with pytest.raises(ValueError, match="y: got NaN or infinite values"):
        vae.evaluate(x, np.where(np.isnan(x), np.inf, x), verbose=0)


def test_preprocessing_passes_missing_values_through(restart, x):
    """On the scale that the likelihood scores: 100 levels as [0, 1]."""
    vae = build(preprocessing=keras.layers.Rescaling(1 / 100))
    levels = 100 * x
    assert np.isfinite(vae.fit(levels, epochs=1, verbose=0).history["loss"]).all()
    plain = restart()
    plain.set_weights(vae.get_weights())
    np.testing.assert_allclose(
        vae.elbo(levels, 2, seed=0), plain.elbo(x, 2, seed=0), rtol=1e-4, atol=1e-4
    )
    filled = vae.impute(levels, 20, seed=0)
    np.testing.assert_allclose(filled, plain.impute(x, 20, seed=0), rtol=1e-4, atol=1e-4)


def test_images(rng):
    shape = (8, 8, 1)
    images = rng.random((12, *shape)).astype("float32")
    x = np.where(rng.random(images.shape) < 0.5, np.nan, images).astype("float32")
    block = posteriors.DiagonalNormal(K)
    likelihood = likelihoods.Masked(likelihoods.Bernoulli(shape))
    encoder = [networks.FillMissing(mask=True), networks.conv_encoder((8, 8, 2), 2 * K), block]
    vae = VAE(
        priors.StandardNormal(K),
        keras.Sequential(encoder),
        keras.Sequential([networks.conv_decoder(K, shape), likelihood]),
    )
    vae.compile("adam")
    assert np.isfinite(vae.fit(x, verbose=0).history["loss"]).all()
    filled, draws = vae.impute(x, 5), vae.impute(x, 5, num_draws=3)
    assert (filled.shape, draws.shape) == (x.shape, (3, *x.shape))
    assert set(np.unique(draws[:, np.isnan(x)])) == {0.0, 1.0}
    assert ((filled >= 0) & (filled <= 1)).all()


# impute: seeds, results, mistakes.


def test_imputation_repeats_with_a_seed(vae, x):
    for num_draws in (None, 3):
        first = vae.impute(x, 20, num_draws, seed=7)
        np.testing.assert_array_equal(first, vae.impute(x, 20, num_draws, seed=7))
        assert not np.array_equal(first, vae.impute(x, 20, num_draws, seed=8))
        vae.noise.count.assign(0)
        a, b = vae.impute(x, 20, num_draws), vae.impute(x, 20, num_draws)
        assert not np.array_equal(a, b)
        vae.noise.count.assign(0)
        np.testing.assert_array_equal(a, vae.impute(x, 20, num_draws))


def test_what_is_observed_comes_back_as_it_was(vae, x):
    exact = x.astype("float64") + 1e-12  # More digits than the model computes with.
    for given in (x, exact, exact.tolist()):
        filled = vae.impute(given, 5, seed=0)
        assert filled.dtype == np.asarray(given).dtype
        there = ~np.isnan(x)
        np.testing.assert_array_equal(filled[there], np.asarray(given)[there])
        assert np.isfinite(filled).all()
    assert np.isnan(x).any()  # Not in place.


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_complete_data_come_back_as_they_are(dtype, vae):
    x = np.arange(3 * D).reshape(3, D).astype(dtype)
    filled = vae.impute(x)
    np.testing.assert_array_equal(filled, x)
    assert filled is not x
    assert filled.dtype == dtype
    np.testing.assert_array_equal(vae.impute(x, num_draws=2), [x, x])


def test_draws_of_classes(rng):
    """Classes that are numbered have no mean; their draws are classes."""
    x = rng.integers(0, 3, size=(10, D)).astype("float32")
    x[0, :2] = np.nan
    vae = build(likelihoods.Categorical(D, num_classes=3))
    with pytest.raises(ValueError, match=r"num_draws: got None, .* Categorical have a mean"):
        vae.impute(x)
    draws = vae.impute(x, 50, num_draws=200, seed=0)
    p = vae.likelihood(np.zeros((1, K))).mode().numpy()
    assert p.shape == (1, D)
    assert set(np.unique(draws[:, 0, :2])) == {0.0, 1.0, 2.0}
    np.testing.assert_array_equal(draws[:, 1:], np.broadcast_to(x[1:], (200, 9, D)))


@pytest.mark.long
def test_tables_of_several_kinds(rng):
    """A Masked table, and one of which a single column may have gaps."""
    table = np.stack([rng.normal(size=20), rng.integers(0, 3, 20)], axis=1).astype("float32")
    gaps = table.copy()
    gaps[:5, 0] = np.nan
    kinds = {"height": likelihoods.Normal(), "colour": likelihoods.Categorical(num_classes=3)}
    some = kinds | {"height": likelihoods.Masked(likelihoods.Normal())}
    for likelihood in (likelihoods.Masked(likelihoods.Columns(kinds)), likelihoods.Columns(some)):
        encoder = [networks.FillMissing(), keras.layers.Dense(2 * K), posteriors.DiagonalNormal(K)]
        vae = VAE(
            priors.StandardNormal(K),
            keras.Sequential(encoder),
            keras.Sequential([keras.layers.Dense(likelihood.params_size), likelihood]),
        )
        vae.compile()
        assert np.isfinite(vae.fit(gaps, verbose=0).history["loss"]).all()
        draws = vae.impute(gaps, 20, num_draws=4, seed=0)
        assert len(np.unique(draws[:, 0, 0])) > 1
        np.testing.assert_array_equal(draws[:, 5:], np.broadcast_to(table[5:], (4, 15, 2)))
    gaps[0, 1] = np.nan
    with pytest.raises(ValueError, match="x, column 'colour': got NaN"):
        vae.fit(gaps, verbose=0)


def test_mixtures_of_whole_vectors_are_not_imputed(x):
    """p(x_mis | x_obs, z) is then not p(x_mis | z); a mixture for each entry is fine."""
    whole = likelihoods.MixtureOf(likelihoods.Normal(D), 2)
    vae = build(whole)
    assert np.isfinite(vae.fit(x, verbose=0).history["loss"]).all()
    with pytest.raises(ValueError, match=r"decoder: got .* a mixture of whole vectors"):
        vae.impute(x, 5)
    each = likelihoods.MixtureOf(likelihoods.Normal(), 2, event_shape=D)
    assert np.isfinite(build(each).impute(x, 5)).all()


def test_encoders_that_do_not_take_missing_values(x):
    vae = build(fill=False)
    vae.build((None, D))
    before = vae.get_weights()
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(10)
    for call in (vae.fit, vae.evaluate, vae.elbo, vae.impute, vae.posterior):
        with pytest.raises(ValueError, match=r"x: got NaN, .* begin it with networks\.FillMissing"):
            call(x)
    with pytest.raises(ValueError, match=r"x: got NaN, .* begin it with networks\.FillMissing"):
        vae.fit(dataset)
    with pytest.raises(ValueError, match=r"validation_data: got NaN, .* networks\.FillMissing"):
        vae.fit(np.nan_to_num(x), validation_data=x)
    for one, other in zip(before, vae.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite(vae.fit(np.nan_to_num(x), verbose=0).history["loss"]).all()


def test_weights_that_are_nan_are_not_the_encoders_fault(vae, x):
    vae.encoder.layers[1].set_weights([np.full((2 * D, 2 * K), np.nan), np.zeros(2 * K)])
    assert np.isnan(vae.elbo(x)).all()


def test_infinity_is_refused(vae, x):
    bad = x.copy()
    bad[50, 2] = np.inf
    for call in (vae.fit, vae.evaluate, vae.elbo, vae.impute):
        with pytest.raises(ValueError, match="x: got infinite values, wanted finite numbers or Na"):
            call(bad)
    with pytest.raises(tf.errors.InvalidArgumentError, match="got infinite values in a batch"):
        vae.fit(tf.data.Dataset.from_tensor_slices(bad).batch(10), verbose=0)
    weight = np.where(np.arange(N) == 50, np.nan, 1.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="got NaN or infinite values"):
        vae.fit(tf.data.Dataset.from_tensor_slices((x, x, weight)).batch(10), verbose=0)
    weighted = tf.data.Dataset.from_tensor_slices((x, weight)).batch(10)
    with pytest.raises(tf.errors.InvalidArgumentError, match="got NaN or infinite values"):
        vae.fit(weighted.map(lambda x, weight: (x, None, weight)), verbose=0)


def test_other_likelihoods_refuse_missing_values(x):
    encoder = [networks.FillMissing(), keras.layers.Dense(2 * K), posteriors.DiagonalNormal(K)]
    vae = VAE(
        priors.StandardNormal(K),
        keras.Sequential(encoder),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)]),
    )
    vae.compile()
    for call in (vae.fit, vae.elbo):
        with pytest.raises(ValueError, match="x: got NaN or infinite values, wanted finite"):
            call(x)
    late = tf.data.Dataset.from_tensor_slices(x[::-1].copy()).batch(10)
    with pytest.raises(tf.errors.InvalidArgumentError, match="got NaN or infinite values"):
        vae.fit(late, verbose=0)
    with pytest.raises(
        ValueError, match=r"decoder: got one that ends in Bernoulli.*, wanted .*Mas"
    ):
        vae.impute(x)


@pytest.mark.parametrize("name", ["num_samples", "num_draws"])
@pytest.mark.parametrize(("num", "error"), [(0, ValueError), (1.5, TypeError)])
def test_numbers_of_draws(name, num, error, vae, x):
    with pytest.raises(error, match=f"{name}: got {num}, wanted a positive integer"):
        vae.impute(x, **{name: num})


# Saving.


def test_saved_models_impute_alike(vae, x, tmp_path):
    vae.fit(x, verbose=0)
    json.dumps(vae.get_config())
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(loaded.impute(x, 20, seed=0), vae.impute(x, 20, seed=0))


LOAD = """
import sys
import tf_keras as keras
import tfpvae
print(keras.models.load_model(sys.argv[1]).predict([[1.0, float("nan")]], verbose=0).tolist())
"""


@pytest.mark.long
def test_importing_the_package_is_enough_to_load_an_encoder(tmp_path):
    model = keras.Sequential([keras.Input((2,)), networks.FillMissing(0.5, mask=True)])
    model.save(tmp_path / "model.keras")
    command = [sys.executable, "-c", LOAD, tmp_path / "model.keras"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(found.splitlines()[-1]) == [[1.0, 0.5, 1.0, 0.0]]


# The picture.


def test_picture_of_imputations():
    images = np.linspace(0, 2, 2 * 16).reshape(2, 4, 4)
    gaps = images.copy()
    gaps[0, 1, 2] = np.nan
    ax = plotting.imputations(images, gaps, {"filled": images, "too bright": 2 * images})
    assert [t.get_text() for t in ax.get_yticklabels()][2:] == ["filled", "too bright"]
    picture = np.asarray(ax.images[0].get_array())
    assert picture.shape == (4 * 6, 2 * 6, 4)  # A margin of a pixel around each.
    tiles = picture.reshape(4, 6, 2, 6, 4).swapaxes(1, 2)
    assert (tiles[:, :, 0, :, 3] == 0).all()  # The margins are transparent.
    inside = tiles[:, :, 1:-1, 1:-1, :3]
    np.testing.assert_allclose(inside[0], np.stack([images / 2] * 3, axis=-1))
    np.testing.assert_allclose(inside[3], np.clip(np.stack([images] * 3, axis=-1), 0, 1))
    coloured = np.ptp(inside, axis=-1) > 0
    assert np.argwhere(coloured).tolist() == [[1, 0, 1, 2]]
    with pytest.raises(ValueError, match="all rows must be as many images of the same size"):
        plotting.imputations(images, gaps, {"filled": images[:1]})
    with pytest.raises(ValueError, match=r"imputed\['filled'\] must be finite"):
        plotting.imputations(images, gaps, {"filled": gaps})
