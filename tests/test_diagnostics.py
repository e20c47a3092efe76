"""diagnose against linear-Gaussian models, where every number of the report is known."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import integrate, special, stats

from tfpvae import (
    VAE,
    DistributionLayer,
    diagnose,
    diagnostics,
    likelihoods,
    posteriors,
    priors,
)

tfd = tfp.distributions
D, K, N, SCALE = 4, 3, 200, 0.6
WEIGHT = np.array([[1.0, 0.6, 0.0], [0.5, -0.3, 0.0], [-0.4, -0.7, 0.0], [0.8, 0.6, 0.0]])
PRECISION = np.eye(K) + WEIGHT.T @ WEIGHT / SCALE**2  # of p(z|x); unit 2 is not used
COV = np.linalg.inv(PRECISION)
GAIN = COV @ WEIGHT.T / SCALE**2
MARGINAL = stats.multivariate_normal(np.zeros(D), WEIGHT @ WEIGHT.T + SCALE**2 * np.eye(D))
INFORMATION = 0.5 * np.linalg.slogdet(np.eye(K) + WEIGHT.T @ WEIGHT / SCALE**2)[1]
FAMILY_GAP = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
BEST_SCALE = np.diag(PRECISION) ** -0.5


def model(posterior, spread, shift=0.0):
    """The linear-Gaussian model; the encoder's means are off by `shift`, its spread is given."""
    vae = VAE(
        priors.StandardNormal(K),
        keras.Sequential([keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=SCALE)]),
        seed=0,
    )
    vae.compile("adam")
    vae.build((None, D))
    kernel = np.concatenate([GAIN.T, np.zeros((D, len(spread)))], axis=1)
    vae.encoder.layers[0].set_weights([kernel, np.concatenate([np.full(K, shift), spread])])
    vae.decoder.layers[0].set_weights([WEIGHT.T, np.zeros(D)])
    return vae


def exact():
    tril = tfp.bijectors.FillScaleTriL().inverse(np.linalg.cholesky(COV).astype("float32"))
    return model(posteriors.FullRankNormal(K), tril)


def diagonal(shift=0.0, scale=BEST_SCALE):
    return model(posteriors.DiagonalNormal(K), np.log(np.expm1(scale)), shift)


@pytest.fixture(scope="module")
def x():
    """Data from the model itself, so that the aggregate of the exact posteriors is the prior."""
    return MARGINAL.rvs(N, random_state=0).astype("float32")


@pytest.fixture(scope="module")
def good(x):
    return diagnose(exact(), x, 100, num_local=20, seed=0, verbose=0)


@pytest.fixture(scope="module")
def spoilt(x):
    other = posteriors.FullRankNormal(K)
    vae = diagonal(shift=0.6)
    return diagnose(vae, x, 1000, num_local=50, posterior=other, seed=0, verbose=0)


def within(values, expected, errors=4.0, slack=0.0):
    """The mean of values that vary by their Monte Carlo error alone."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values) - expected) < errors * error + slack, (np.mean(values), error)


def test_gaps_are_the_closed_forms(spoilt, x):
    """That of the best diagonal Gaussian, and KL of the means' shift: shift' P shift / 2."""
    assert FAMILY_GAP > 0.1
    amortization = 0.5 * 0.6**2 * PRECISION.sum()
    assert spoilt.gaps.converged
    within(spoilt.gaps.approximation, FAMILY_GAP, slack=0.003)
    within(spoilt.gaps.amortization, amortization, slack=0.003)
    evidence = MARGINAL.logpdf(x)[spoilt.gaps.indices]
    np.testing.assert_allclose(spoilt.gaps.log_marginal_likelihood, evidence, atol=1e-3)
    np.testing.assert_allclose(spoilt.gaps.other_approximation, 0.0, atol=0.01)
    np.testing.assert_allclose(
        spoilt.gaps.other, MARGINAL.logpdf(x)[spoilt.gaps.indices], atol=0.01
    )
    within(MARGINAL.logpdf(x) - spoilt.elbo, FAMILY_GAP + amortization)


def test_gap_of_the_exact_posterior_is_zero(good, x):
    for gap in (good.gaps.approximation, good.gaps.amortization):
        np.testing.assert_allclose(gap, 0.0, atol=0.01)
    np.testing.assert_allclose(good.marginal_likelihood.estimate, MARGINAL.logpdf(x), atol=1e-3)
    assert good.unreliable < 0.03  # Not zero: equal weights differ by rounding.


@pytest.fixture(scope="module")
def many():
    """Of 2000 examples: exp(information) is far less, so the bounds are close."""
    x = MARGINAL.rvs(2000, random_state=1).astype("float32")
    return x, diagnostics.latents(exact(), x, seed=0, verbose=0)


def test_mutual_information_of_a_gaussian_channel(many):
    _, found = many
    assert INFORMATION > 1.4
    bounds = found.mutual_information, found.mutual_information_upper
    assert bounds[0] - 0.02 < INFORMATION < bounds[1] + 0.02
    assert bounds[1] - bounds[0] < 0.1
    assert found.mutual_information == pytest.approx(INFORMATION, abs=0.06)
    assert found.aggregate_kl == pytest.approx(0.0, abs=0.06)  # q(z) is p(z) here.
    assert found.kl == pytest.approx(found.mutual_information + found.aggregate_kl)


def test_kl_of_units_is_that_of_the_marginals(many):
    x, found = many
    means, variances = x @ GAIN.T, np.diag(COV)
    kl = 0.5 * (variances + np.mean(means**2, axis=0) - 1 - np.log(variances))
    np.testing.assert_allclose(found.kl_by_unit, kl, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.activity, means.var(axis=0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.aggregate_kl_by_unit, 0.0, atol=0.02)
    assert found.active.tolist() == [True, True, False]


def test_aggregate_of_a_factorized_posterior_by_quadrature(x):
    """KL of each unit's aggregate to the prior, by numerical integration of the mixture."""
    vae = diagonal(shift=1.5, scale=np.array([0.3, 0.5, 0.8]))
    found = diagnostics.latents(vae, x, seed=0, verbose=0)
    loc, scale = x @ GAIN.T + 1.5, [0.3, 0.5, 0.8]
    for d in range(K):

        def ratio(z, d=d):
            q = stats.norm.pdf(z, loc[:, d], scale[d]).mean()
            return q * (np.log(q) - stats.norm.logpdf(z)) if q > 0 else 0.0

        divergence = integrate.quad(ratio, -5, 8, limit=200)[0]
        assert found.aggregate_kl_by_unit[d] == pytest.approx(divergence, abs=0.1)
        kl = 0.5 * (scale[d] ** 2 + np.mean(loc[:, d] ** 2) - 1) - np.log(scale[d])
        assert found.kl_by_unit[d] == pytest.approx(kl, rel=1e-4)
    assert found.kl_by_unit.sum() == pytest.approx(found.kl, rel=1e-4)
    assert found.aggregate_kl_lower <= found.aggregate_kl <= found.kl


def test_mixtures_with_and_without_the_own_row(rng):
    """Against scipy, for a block of either kind."""
    params = tf.constant(rng.normal(size=(5, 9)), tf.float32)
    block = posteriors.FullRankNormal(K)
    z = rng.normal(size=(10, K)).astype("float32")
    found = diagnostics._mixtures(block, params, z, verbose=0)
    q = block.new(params)
    means, covs = q.mean().numpy(), q.covariance().numpy()
    joint = np.array(
        [[stats.multivariate_normal(means[m], covs[m]).logpdf(row) for m in range(5)] for row in z]
    )
    units = stats.norm.logpdf(z[:, None], means, np.sqrt(np.diagonal(covs, axis1=1, axis2=2)))
    logs = np.concatenate([joint[..., None], units], axis=-1)
    for i in range(10):
        others = np.delete(logs[i], i % 5, axis=0)
        np.testing.assert_allclose(
            found[0, i], special.logsumexp(logs[i], 0) - np.log(5), rtol=2e-4
        )
        np.testing.assert_allclose(found[1, i], special.logsumexp(others, 0) - np.log(4), rtol=2e-4)


def test_in_chunks_of_any_size(x, monkeypatch):
    whole = diagnostics.latents(diagonal(), x, seed=0, verbose=0)
    monkeypatch.setattr(diagnostics, "_PAIR_NUMBERS", N * K * 33)
    parts = diagnostics.latents(diagonal(), x, seed=0, verbose=0)
    np.testing.assert_allclose(parts.mutual_information, whole.mutual_information, rtol=1e-5)
    np.testing.assert_allclose(
        parts.aggregate_kl_by_unit, whole.aggregate_kl_by_unit, rtol=1e-3, atol=1e-5
    )


def test_information_is_at_most_log_n(x):
    """Posteriors that do not overlap: an example is known from its code."""
    found = diagnostics.latents(diagonal(scale=np.full(K, 1e-4)), x[:20], seed=0, verbose=0)
    assert found.mutual_information == pytest.approx(np.log(20), abs=5e-3)
    assert found.mutual_information_upper > 2 * np.log(20)
    with pytest.raises(ValueError, match="x: got one example, wanted several"):
        diagnostics.latents(diagonal(), x[:1])
    with pytest.raises(ValueError, match="x: got examples whose codes have an infinite KL"):
        diagnostics.latents(diagonal(shift=1e20), x[:20])


def test_laplace_posteriors_are_factorized_and_relaxed_ones_are_not(x):
    block = DistributionLayer("Laplace", K)
    laplace = model(block, np.log(np.expm1(np.full(K, 0.5))))
    found = diagnostics.latents(laplace, x, seed=0, verbose=0)
    assert found.kl_by_unit.sum() == pytest.approx(found.kl, abs=1e-3)  # By the same draws.
    relaxed = DistributionLayer("RelaxedOneHotCategorical", K, temperature=0.5)
    vae = VAE(
        priors.Prior("RelaxedOneHotCategorical", K, temperature=0.5),
        keras.Sequential([keras.layers.Dense(K), relaxed]),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=SCALE)]),
        seed=0,
    )
    found = diagnostics.latents(vae, x, seed=0, verbose=0)
    assert (found.kl_by_unit, found.aggregate_kl_by_unit) == (None, None)
    # The means have no closed form: of many draws they are the same.
    z = vae.posterior(x).sample(4000, seed=3).numpy()
    np.testing.assert_allclose(found.activity, z.mean(axis=0).var(axis=0), rtol=0.3, atol=1e-3)


def test_all_is_well(good):
    """The exact posterior: but for the unit that the decoder does not use."""
    (finding,) = good.findings
    assert finding.startswith("1 of 3 units have collapsed: 2.")
    assert not good.ok
    text = str(good)
    assert text.endswith(f"- {finding}")
    assert " collapsed\n" in text
    use = good.latents._replace(activity=np.ones(K))
    well = dataclasses.replace(good, latents=use)
    assert well.ok
    assert str(well).endswith("- Nothing stands out.")


def test_who_is_to_blame(spoilt):
    sentences = "\n".join(spoilt.findings)
    assert "units have collapsed: 2." in sentences
    assert "and the encoder is to blame: with the best DiagonalNormal for each example" in sentences
    gaps = spoilt.gaps
    swapped = gaps._replace(best=gaps.elbo + FAMILY_GAP)
    blamed = dataclasses.replace(spoilt, gaps=swapped)
    assert "the family of posteriors is to blame" in "\n".join(blamed.findings)
    assert "The best FullRankNormal would be 0.00 below" in "\n".join(blamed.findings)
    half = gaps._replace(best=(gaps.log_marginal_likelihood + gaps.elbo) / 2, other=None)
    both = "\n".join(dataclasses.replace(spoilt, gaps=half).findings)
    assert "for the family DiagonalNormal" in both
    assert "Try a richer posterior, such as posteriors.FullRankNormal" in both
    late = gaps._replace(converged=False)
    assert "still improving" in "\n".join(dataclasses.replace(spoilt, gaps=late).findings)


def test_holes_and_unreliable_weights(x):
    """Codes far from the prior, and a posterior that is far too narrow."""
    vae = diagonal(shift=2.0, scale=np.full(K, 0.05))
    found = diagnose(vae, x[:60], 200, num_local=5, seed=0, verbose=0)
    sentences = "\n".join(found.findings)
    assert "The codes do not fill the prior" in sentences
    assert found.latents.aggregate_kl_lower > 3.0  # Each unit's mean alone gives 2.
    assert found.unreliable == np.mean(found.k_hat > 0.7) > 0.5
    share = f"{found.unreliable:.0%} of the examples are unreliable (k-hat above 0.7 of 200 draws)"
    assert f"The importance weights of {share}" in sentences
    assert "units have collapsed: 2." in sentences
    all_of_them = found.latents._replace(activity=np.zeros(K))
    text = "\n".join(dataclasses.replace(found, latents=all_of_them).findings)
    assert "3 of 3 units have collapsed: 0, 1, 2." in text
    assert "So z says nothing about x" in text


def test_table_holds_the_numbers(spoilt):
    lines = str(spoilt).splitlines()
    shown = {line[:44].strip(): line[44:].split() for line in lines[1:]}
    assert float(shown["ELBO"][0]) == pytest.approx(spoilt.elbo.mean(), abs=1e-3)
    for name, values in (
        ("approximation (DiagonalNormal)", spoilt.gaps.approximation),
        ("amortization (encoder)", spoilt.gaps.amortization),
    ):
        mean, error = map(float, shown[name])
        assert mean == pytest.approx(values.mean(), abs=1e-3)
        assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50), abs=1e-3)
    assert shown["active units"] == ["2", "of", "3"]


@pytest.mark.long
def test_without_arviz(spoilt, monkeypatch, x):
    for name in [name for name in sys.modules if name.split(".")[0].startswith("arviz")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "arviz", None)
    evidence = diagonal().log_marginal_likelihood(x, 50, seed=0)
    found = dataclasses.replace(spoilt, marginal_likelihood=evidence)
    assert found.k_hat is None
    assert "pip install 'tfpvae[arviz]'" in str(found)
    low = evidence.effective_sample_size < diagnostics.EFFECTIVE_DRAWS
    assert found.unreliable == np.mean(low)
    found.figure()


def test_same_seed_same_report_and_the_models_noise_is_left_alone(x):
    vae = diagonal()
    count = int(vae.noise.count)
    texts = [str(diagnose(vae, x[:20], 50, num_local=3, seed=4, verbose=0)) for _ in range(2)]
    assert texts[0] == texts[1]
    assert int(vae.noise.count) == count


def test_figure(spoilt, x):
    figure = spoilt.figure(labels=np.arange(N) % 3)
    assert len(figure.axes) == 4
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "2 of 3 units are active"
    assert "50 examples" in titles[1]
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels == ["best\nFullRankNormal", "best\nDiagonalNormal", "encoder's\nDiagonalNormal"]
    bare = spoilt.latents._replace(kl_by_unit=None, aggregate_kl_by_unit=None)
    infinite = dataclasses.replace(spoilt, latents=bare)
    assert infinite.figure().axes[0].get_ylabel() == "variance of E[z|x] over x"
    assert " - " in str(infinite)


class TestLatentMonitor:
    def fit(self, x, callbacks=(), epochs=5):
        keras.utils.set_random_seed(0)
        vae = VAE(
            priors.StandardNormal(K),
            keras.Sequential([keras.layers.Dense(2 * K), posteriors.DiagonalNormal(K)]),
            keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=SCALE)]),
            seed=0,
        )
        vae.compile(keras.optimizers.Adam(0.01))
        history = vae.fit(x, epochs=epochs, verbose=0, callbacks=list(callbacks)).history
        return vae, history

    def test_numbers_are_in_the_history_and_training_is_the_same(self, x, monkeypatch):
        monitor = diagnostics.LatentMonitor(x[:50], every=2)
        vae, history = self.fit(x, [monitor])
        names = {
            "active_units",
            "mutual_information",
            "aggregate_kl",
            "kl_unit_0",
            "kl_unit_1",
            "kl_unit_2",
        }
        for name in names:
            assert np.isfinite(history[name]).tolist() == [True, False, True, False, True]
        found = diagnostics.latents(vae, x[:50], seed=0, verbose=0)
        assert history["mutual_information"][-1] == pytest.approx(found.mutual_information)
        assert [history[f"kl_unit_{d}"][-1] for d in range(K)] == pytest.approx(found.kl_by_unit)
        _, without = self.fit(x)
        assert set(history) == set(without) | names
        assert without["loss"] == history["loss"]

    def test_keeps_the_fast_path(self, x):
        from tfpvae import training

        assert not training._wants_each_batch([diagnostics.LatentMonitor(x)])

    def test_without_the_units(self, x):
        monitor = diagnostics.LatentMonitor(x[:20], by_unit=False)
        _, history = self.fit(x, [monitor], epochs=1)
        assert "active_units" in history
        assert not [name for name in history if name.startswith("kl_")]

    @pytest.mark.parametrize("kwargs", [{"every": 0}, {"x": None}, {"seed": 0.5}])
    def test_bad_arguments(self, x, kwargs):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(kwargs))}: got"):
            diagnostics.LatentMonitor(**{"x": x} | kwargs)


def test_bad_arguments(x):
    vae = diagonal()
    for name, value in itertools.product(("num_samples", "num_local"), (0, 1.5)):
        with pytest.raises((TypeError, ValueError), match=f"{name}: got {value}"):
            diagnose(vae, x, **{name: value})
    with pytest.raises(ValueError, match=r"x: got shape \(200, 3\)"):
        diagnose(vae, x[:, :3])
    with pytest.raises(ValueError, match="num_samples: got 20, wanted at least 21 for k_hat"):
        _ = diagnose(vae, x[:5], 20, num_local=2, verbose=0).unreliable
    stock = VAE(
        priors.StandardNormal(K),
        keras.Sequential([keras.layers.Dense(2 * K), tfp.layers.IndependentNormal(K)]),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=SCALE)]),
    )
    with pytest.raises(TypeError, match=r"vae: got one whose encoder makes a Independent"):
        diagnose(stock, x)
