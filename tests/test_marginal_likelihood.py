"""log p(x): against linear-Gaussian models, sums and quadrature, where it is known exactly."""

import builtins
import sys

import arviz
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, special, stats

from tfpvae import (
    VAE,
    DistributionLayer,
    execution,
    family,
    likelihoods,
    networks,
    posteriors,
    priors,
)
from tfpvae import marginal_likelihood as ml

D, K, N = 4, 2, 100
RNG = np.random.default_rng(0)
WEIGHT, BIAS, SCALE = RNG.normal(size=(D, K)), RNG.normal(size=D), np.array([0.5, 0.7, 0.6, 0.9])
COV = WEIGHT @ WEIGHT.T + np.diag(SCALE**2)
POSTERIOR_COV = np.linalg.inv(np.eye(K) + WEIGHT.T / SCALE**2 @ WEIGHT)
X = RNG.multivariate_normal(BIAS, COV, size=N).astype("float32")
TRUTH = stats.multivariate_normal(BIAS, COV).logpdf(X)
AIS = {"num_steps": 200, "num_leapfrog_steps": 3}


def factor_analysis(width=1.0):
    """The model x = W z + b + s e; its encoder is the exact posterior, its scales times `width`."""
    vae = family.factor_analysis(D, K, seed=0)
    vae.encoder.set_weights(encoder_weights(width))
    vae.decoder.set_weights([WEIGHT.T, BIAS, np.log(np.expm1(SCALE))])
    return vae


def encoder_weights(width):
    gain = POSTERIOR_COV @ WEIGHT.T / SCALE**2
    cholesky = (width * np.linalg.cholesky(POSTERIOR_COV)).astype("float32")
    return [gain.T, -gain @ BIAS, tfp.bijectors.FillScaleTriL().inverse(cholesky)]


@pytest.fixture(scope="module")
def exact():
    return factor_analysis()


@pytest.fixture(scope="module")
def wide():
    return factor_analysis(width=1.4)


@pytest.fixture(scope="module")
def narrow():
    return factor_analysis(width=0.3)


# Importance sampling where the answer is known.


def test_the_exact_posterior_gives_log_p_exactly(exact):
    """All weights are p(x): log p(x, z) - log p(z|x) = log p(x), whatever z."""
    result = exact.log_marginal_likelihood(X, 500, seed=0)
    np.testing.assert_allclose(result.estimate, TRUTH, atol=2e-5)
    np.testing.assert_allclose(result.effective_sample_size, 500, rtol=1e-6)
    assert (result.standard_error < 1e-5).all()  # of what float32 rounds
    assert (result.k_hat < 0.5).all()
    assert result.mean == pytest.approx(TRUTH.mean(), abs=1e-6)
    assert result.mean_sampling_error == pytest.approx(stats.sem(TRUTH), rel=1e-4)


def test_standard_errors_hold(wide):
    """The estimates are off by what their errors say, and so is their mean."""
    result = wide.log_marginal_likelihood(X, 2000, seed=0)
    scores = (result.estimate - TRUTH) / result.standard_error
    assert np.sum(np.abs(scores) < 3) >= 99
    assert 0.8 < np.sqrt(np.mean(scores**2)) < 1.25  # chi: three standard errors at 100 degrees
    assert abs(result.mean - TRUTH.mean()) < 3 * result.mean_standard_error
    assert result.mean_standard_error == pytest.approx(
        np.sqrt(np.sum(result.standard_error**2)) / N, rel=1e-12
    )
    assert (result.k_hat < 0.5).all()  # the weights are bounded


def test_effective_sample_size_is_that_of_two_gaussians(wide):
    """(E w)^2 / E w^2 = (sqrt(2 c^2 - 1) / c^2)^K for scales that are c times too wide."""
    result = wide.log_marginal_likelihood(X, 2000, seed=1)
    share = (np.sqrt(2 * 1.4**2 - 1) / 1.4**2) ** K
    assert np.mean(result.effective_sample_size) / 2000 == pytest.approx(share, rel=0.01)


def test_a_spoilt_posterior_is_flagged(narrow):
    """Scales c times too narrow give weights with a Pareto tail of the shape 1 - c^2 = 0.91."""
    result = narrow.log_marginal_likelihood(X, 5000, seed=0)
    assert np.median(result.k_hat) == pytest.approx(0.91, abs=0.1)
    assert np.mean(result.k_hat > ml.K_HAT_LIMIT) > 0.85
    assert np.median(result.effective_sample_size) < 250
    assert (result.mean - TRUTH.mean()) < -5 * result.mean_standard_error  # as it is too small
    share = float(str(result).split("k-hat above 0.7")[1].split("%")[0])
    assert share == pytest.approx(100 * np.mean(result.k_hat > 0.7), abs=0.1)


def test_quadrature_of_a_nonlinear_decoder():
    """A latent number, a hidden layer and binary pixels."""
    vae = VAE(
        priors.StandardNormal(1),
        keras.Sequential([keras.layers.Dense(2), posteriors.DiagonalNormal(1)]),
        keras.Sequential(
            [keras.layers.Dense(4, "tanh"), keras.layers.Dense(3), likelihoods.Bernoulli(3)]
        ),
        seed=0,
    )
    vae.build((None, 3))
    vae.encoder.set_weights([np.zeros((3, 2)), np.array([0.0, 1.0])])  # a little wide
    parts = [2 * RNG.normal(size=w.shape) for w in vae.decoder.get_weights()]
    vae.decoder.set_weights(parts)
    x = np.array([[0, 0, 0], [1, 0, 1], [1, 1, 0]], "float32")

    def joint(z, x):
        logits = np.tanh(z * parts[0][0] + parts[1]) @ parts[2] + parts[3]
        return np.exp(np.sum(x * logits - np.logaddexp(0, logits))) * stats.norm.pdf(z)

    truth = [np.log(integrate.quad(joint, -12, 12, args=(row,), limit=200)[0]) for row in x]
    result = vae.log_marginal_likelihood(x, 50_000, seed=0)
    assert (result.standard_error < 0.02).all()
    assert (np.abs(result.estimate - truth) < 3.5 * result.standard_error).all()


def bits():
    """A model of two latent bits."""
    return VAE(
        priors.Prior("Bernoulli", K, probs=[0.3, 0.6], sample_dtype="float32"),
        keras.Sequential([keras.layers.Dense(K), likelihoods.Bernoulli(K)]),
        keras.Sequential([keras.layers.Dense(D), likelihoods.Normal(D, scale=SCALE)]),
        seed=0,
    )


def test_latent_bits_are_summed_over():
    vae = bits()
    vae.build((None, D))
    vae.decoder.layers[0].set_weights([WEIGHT.T, BIAS])
    z = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    prior = np.prod(np.where(z, [0.3, 0.6], [0.7, 0.4]), axis=1)
    each = stats.norm.logpdf(X[:9, None], z @ WEIGHT.T + BIAS, SCALE).sum(axis=-1)
    truth = special.logsumexp(each + np.log(prior), axis=1)
    result = vae.log_marginal_likelihood(X[:9], 20_000, seed=0)
    assert (np.abs(result.estimate - truth) < 3.5 * result.standard_error + 1e-5).all()
    with pytest.raises(TypeError, match=r"^prior: got .*Bernoulli.*method='importance'"):
        vae.log_marginal_likelihood(X[:9], method="ais")
    with pytest.raises(TypeError, match=r"^prior: got .*Bernoulli"):
        ml.bidirectional_monte_carlo(vae, 3)


def test_missing_values_are_integrated_out():
    """log p of what is observed: the marginal of the Gaussian."""
    vae = VAE(
        priors.StandardNormal(K),
        keras.Sequential(
            [networks.FillMissing(), keras.layers.Dense(5), posteriors.FullRankNormal(K)]
        ),
        keras.Sequential(
            [keras.layers.Dense(D), likelihoods.Masked(likelihoods.Normal(D, scale=SCALE))]
        ),
        seed=0,
    )
    vae.build((None, D))
    vae.encoder.set_weights([0 * weight for weight in vae.encoder.get_weights()])
    vae.decoder.layers[0].set_weights([WEIGHT.T, BIAS])
    x = X[:5].copy()
    x[:, 1] = np.nan
    seen = [0, 2, 3]
    truth = stats.multivariate_normal(BIAS[seen], COV[np.ix_(seen, seen)]).logpdf(x[:, seen])
    result = vae.log_marginal_likelihood(x, 20_000, seed=0)
    assert (np.abs(result.estimate - truth) < 3.5 * result.standard_error).all()


# One piece after another.


def test_the_reductions_are_those_of_the_log_weights(narrow):
    result = narrow.log_marginal_likelihood(X[:20], 600, seed=3)
    log_weights = narrow.log_weights(X[:20], 600, seed=3).astype(float)
    estimate = special.logsumexp(log_weights, axis=0) - np.log(600)
    np.testing.assert_allclose(result.estimate, estimate, rtol=1e-9)
    weights = np.exp(log_weights - log_weights.max(axis=0))
    size = weights.sum(axis=0) ** 2 / (weights**2).sum(axis=0)
    np.testing.assert_allclose(result.effective_sample_size, size, rtol=1e-9)
    error = weights.std(axis=0, ddof=1) / weights.mean(axis=0) / np.sqrt(600)
    np.testing.assert_allclose(result.standard_error, error, rtol=1e-9)
    np.testing.assert_allclose(result.k_hat, arviz.psislw(log_weights.T)[1], rtol=1e-9)


WEIGHTS = hnp.arrays(
    "float64",
    st.tuples(st.integers(1, 40), st.integers(1, 3)),
    elements=st.one_of(
        st.floats(-3, 3, allow_subnormal=False),
        st.floats(-1e4, 1e4, allow_subnormal=False),
        st.just(-np.inf),
    ),
)


@settings(max_examples=60, deadline=None)
@given(log_weights=WEIGHTS, cuts=st.lists(st.integers(1, 39)), tail=st.integers(-1, 12))
def test_pieces_are_as_good_as_the_whole(log_weights, cuts, tail):
    num = len(log_weights)
    pieces = [piece for piece in np.split(log_weights, sorted({*cuts})) if len(piece)]
    kept = ml.reduced(tf.constant(pieces[0]), tail)
    for piece in pieces[1:]:
        kept = ml.merged(kept, ml.reduced(tf.constant(piece), tail))
    result = ml._estimates(kept.numpy(), num, "importance")
    zero = np.isneginf(log_weights).all(axis=0)
    with np.errstate(divide="ignore"):
        total, squares = (special.logsumexp(c * log_weights, axis=0) for c in (1, 2))
    np.testing.assert_allclose(result.estimate, total - np.log(num), rtol=1e-9, atol=1e-9)
    size = np.where(zero, 0, np.exp(2 * np.where(zero, 0, total) - np.where(zero, 0, squares)))
    np.testing.assert_allclose(result.effective_sample_size, size, rtol=1e-6)
    assert np.isinf(result.standard_error).tolist() == (zero | (num == 1)).tolist()
    least = np.full((tail + 1, log_weights.shape[1]), -np.inf)
    largest = np.sort(np.concatenate([log_weights, least]), axis=0)[::-1][: tail + 1]
    np.testing.assert_array_equal(result.largest_log_weights, largest.T)


@pytest.mark.parametrize("method", ["importance", pytest.param("ais", marks=pytest.mark.long)])
def test_memory_is_bounded(method, wide, narrow, monkeypatch):
    """Where it holds but a part of the draws of an example, the answer is that of all of them."""
    sizes = []
    compiled = execution.Batched._compile

    def noted(self, rows):
        function, pair_bytes = compiled(self, rows)

        def run(part, num, seed):
            sizes.append((len(part), int(num)))
            return function(part, num, seed)

        monkeypatch.setattr(execution, "_MAX_BYTES_INFERENCE", most * pair_bytes)
        return run, pair_bytes

    monkeypatch.setattr(execution.Batched, "_compile", noted)
    num_data, num, most, vae, options = {
        "importance": (3, 3000, 450, wide, {}),
        "ais": (1, 16, 8, narrow, AIS),
    }[method]
    result = vae.log_marginal_likelihood(X[:num_data], num, method, seed=0, **options)
    assert len(sizes) == num_data * -(-num // most)
    assert max(rows * draws for rows, draws in sizes) <= most
    assert sum(rows * draws for rows, draws in sizes) == num_data * num
    assert (np.abs(result.estimate - TRUTH[:num_data]) < 4 * result.standard_error).all()
    assert result.largest_log_weights.shape == (num_data, 1 + ml.tail_length(num))


def test_examples_go_together_as_far_as_memory_allows(wide, monkeypatch):
    whole = wide.log_marginal_likelihood(X, 200, seed=0)
    batched = wide._batched[f"importance, False, {ml.tail_length(200)}"]
    ((_, pair_bytes),) = batched._compiled.values()
    monkeypatch.setattr(execution, "_MAX_BYTES_INFERENCE", 200 * 30 * pair_bytes)
    parts = wide.log_marginal_likelihood(X, 200, seed=0)
    assert (parts.estimate[30:] != whole.estimate[30:]).all()  # other draws
    scores = (parts.estimate - whole.estimate) / np.hypot(
        parts.standard_error, whole.standard_error
    )
    assert np.abs(scores).max() < 4.5
    first = wide.log_marginal_likelihood(X[:30], 200, seed=0)
    np.testing.assert_array_equal(parts.estimate[:30], first.estimate)  # the same batch


def test_the_likelihood_in_one_pass_is_the_same(narrow, monkeypatch):
    plain = narrow.log_marginal_likelihood(X[:5], 300, seed=0)
    monkeypatch.setattr(ml, "_WORTHWHILE_NUMBERS", 1)
    fused = narrow.log_marginal_likelihood(X[:5], 300, seed=0)
    assert "importance, True, 52" in narrow._batched
    np.testing.assert_allclose(fused.estimate, plain.estimate, rtol=1e-5)


def test_what_xla_cannot_compile_runs_without_it(narrow, monkeypatch, caplog):
    plain = narrow.log_marginal_likelihood(X[:5], 250, seed=0)

    def fails(p, x):
        raise tf.errors.UnimplementedError(None, None, "no such operation")

    monkeypatch.setattr(ml, "_WORTHWHILE_NUMBERS", 1)
    monkeypatch.setattr(ml, "_fused_log_prob", fails)
    with caplog.at_level("INFO", logger="tfpvae.marginal_likelihood"):
        again = narrow.log_marginal_likelihood(X[:5], 250, seed=0)
    assert "no such operation" in caplog.text
    np.testing.assert_array_equal(again.estimate, plain.estimate)


def test_bytes_are_scored_like_floats():
    x = np.array([[0, 255, 255], [255, 0, 0]], "uint8")

    def estimate(x, preprocessing):
        keras.utils.set_random_seed(0)
        vae = VAE(
            priors.StandardNormal(1),
            keras.Sequential([keras.layers.Dense(2), posteriors.DiagonalNormal(1)]),
            keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)]),
            seed=0,
            preprocessing=preprocessing,
        )
        return vae.log_marginal_likelihood(x, 50, seed=0).estimate

    rescaling = keras.layers.Rescaling(1 / 255)
    np.testing.assert_allclose(estimate(x, rescaling), estimate(x / 255, None), rtol=1e-6)


# Annealing.


@pytest.mark.long
def test_annealing_is_closer_than_importance_sampling(narrow):
    annealed = narrow.log_marginal_likelihood(X[:20], 16, "ais", seed=0, **AIS)
    plain = narrow.log_marginal_likelihood(X[:20], 1000, seed=0)
    error, plain_error = (r.estimate - TRUTH[:20] for r in (annealed, plain))
    assert np.abs(error).mean() < 0.5 * np.abs(plain_error).mean()
    assert -0.3 < error.mean() < 4 * annealed.mean_standard_error  # a lower bound on average
    assert "annealed" in str(annealed)
    assert "16 chains" in str(annealed)
    again = narrow.log_marginal_likelihood(X[:20], 16, "ais", seed=0, **AIS)
    np.testing.assert_array_equal(annealed.estimate, again.estimate)


@pytest.mark.long
def test_annealing_from_the_exact_posterior_stays_there(narrow):
    """Also: the weights that the model has now are what counts."""
    spoilt = narrow.encoder.get_weights()
    try:
        narrow.encoder.set_weights(encoder_weights(width=1.0))
        result = narrow.log_marginal_likelihood(X[:20], 16, "ais", seed=0, **AIS)
    finally:
        narrow.encoder.set_weights(spoilt)
    np.testing.assert_allclose(result.estimate, TRUTH[:20], atol=1e-4)


@pytest.mark.long
def test_annealing_of_latents_between_0_and_1_from_their_prior():
    """Against quadrature; the encoder, which is no good, has no part in it."""
    vae = VAE(
        priors.Prior("Beta", 1, concentration1=2.0, concentration0=1.0),
        keras.Sequential([keras.layers.Dense(2), DistributionLayer("Beta", 1)]),
        keras.Sequential([keras.layers.Dense(1), likelihoods.Normal(1, scale=0.1)]),
        seed=0,
    )
    vae.build((None, 1))
    vae.encoder.set_weights([np.zeros((1, 2)), np.array([3.0, 3.0])])
    vae.decoder.set_weights([np.array([[2.0]]), np.array([-1.0])])
    x = np.array([[-0.9], [0.3], [1.1]], "float32")

    def joint(z, x):
        return stats.norm.pdf(x, 2 * z - 1, 0.1) * stats.beta.pdf(z, 2, 1)

    truth = [np.log(integrate.quad(joint, 0, 1, args=(row[0],), limit=200)[0]) for row in x]
    result = vae.log_marginal_likelihood(x, 32, "ais", seed=0, proposal="prior", **AIS)
    assert (np.abs(result.estimate - truth) < 4 * result.standard_error).all()
    assert (result.standard_error < 0.2).all()


@pytest.fixture(scope="module")
def sandwiches(narrow):
    """Few steps, and many."""
    return [
        ml.bidirectional_monte_carlo(
            narrow, 40, 8, seed=0, num_steps=num_steps, num_leapfrog_steps=3, tolerance=0.5
        )
        for num_steps in (4, 200)
    ]


@pytest.mark.long
def test_the_sandwich_closes(sandwiches):
    few, many = sandwiches
    assert few.mean_gap > 4 * few.mean_gap_standard_error
    assert 0 < many.mean_gap < 0.3 * few.mean_gap
    assert (few.ok, many.ok) == (False, True)
    assert "is not shown to be below 0.5 nats" in str(few)
    assert "The gap is below 0.5 nats" in str(many)


def test_a_gap_must_be_small_beyond_its_error():
    lower = np.zeros(4)
    noisy = ml.BidirectionalMonteCarlo(lower, np.array([0.0, 0.0, 1.8, 1.8]), num_samples=1)
    even = ml.BidirectionalMonteCarlo(lower, np.array([0.9, 0.9, 0.9, 0.9]), num_samples=1)
    assert noisy.mean_gap == pytest.approx(0.9) == even.mean_gap
    assert (noisy.ok, even.ok) == (False, True)


def test_the_sandwich_contains_the_truth(sandwiches, narrow):
    """On the simulated x themselves, which come from the same seed whatever the steps."""
    seed = tf.random.fold_in(tf.constant(np.array([0, 0], np.int32)), 0)
    pairs = narrow._batched["simulated"](tf.zeros((40, 0)), seed).numpy()
    z, x = pairs[:, :K], pairs[:, K:]
    noise = (x - z @ WEIGHT.T - BIAS) / SCALE
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3  # they are draws of the model
    truth = stats.multivariate_normal(BIAS, COV).logpdf(x)
    for bounds in sandwiches:
        below, above = truth - bounds.lower, bounds.upper - truth
        assert below.mean() > -3 * stats.sem(below)
        assert above.mean() > -3 * stats.sem(above)
        assert bounds.mean_gap == pytest.approx(below.mean() + above.mean(), rel=1e-5)
        assert bounds.mean_gap_standard_error == pytest.approx(stats.sem(below + above), rel=1e-4)


# The result as an object.


def result_of(log_weights):
    tail = ml.tail_length(len(log_weights))
    return ml._estimates(
        ml.reduced(tf.constant(log_weights), tail).numpy(), len(log_weights), "ais"
    )


def test_a_single_draw_has_no_error():
    result = result_of(np.array([[-3.0]]))
    assert result.estimate == -3.0
    assert np.isinf([*result.standard_error, result.mean_standard_error]).all()
    assert np.isinf(result.mean_sampling_error)
    with pytest.raises(ValueError, match=r"^num_samples: got 1, wanted at least 21 for k_hat"):
        _ = result.k_hat
    assert "unknown: num_samples: got 1" in str(result)


def test_extreme_weights_have_a_k_hat(rng):
    log_weights = np.zeros((100, 4))
    log_weights[:, 0] += 1e-6 * rng.normal(size=100)  # equal to within rounding
    log_weights[0, 1] = 40.0  # one that outweighs the rest
    log_weights[:, 2] = -np.inf
    log_weights[3:, 3] = -np.inf
    result = result_of(log_weights)
    assert result.k_hat.tolist() == [0.0, np.inf, np.inf, np.inf]
    assert np.isneginf(result.estimate).tolist() == [False, False, True, False]
    assert np.isinf(result.mean_standard_error)
    assert "75.0%  the largest inf" in str(result)


def test_k_hat_waits_for_arviz(narrow, monkeypatch):
    result = narrow.log_marginal_likelihood(X[:5], 100, seed=0)
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install 'tfpvae\[arviz\]'"):
        _ = result.k_hat
    assert r"unknown: k_hat: needs ArviZ: pip install 'tfpvae[arviz]'" in str(result)
    monkeypatch.undo()
    assert np.isfinite(result.k_hat).all()


def test_newer_arviz_has_it_elsewhere(rng, monkeypatch):
    """ArviZ 1.x: arviz_stats, which takes log likelihoods and rounds the tail down."""
    log_weights = 2 * rng.normal(size=(400, 5))
    wanted = arviz.psislw(log_weights.T)[1]

    class Stats:
        @staticmethod
        def psislw(ary, r_eff):
            num = ary.shape[-1]
            assert num * r_eff < 225
            assert num // 5 == ml.tail_length(400)
            return arviz_psislw(-ary, r_eff)

    arviz_psislw = arviz.psislw
    monkeypatch.delattr(arviz, "psislw")
    module = type(sys)("arviz_stats.base")
    module.array_stats = Stats
    monkeypatch.setitem(sys.modules, "arviz_stats", type(sys)("arviz_stats"))
    monkeypatch.setitem(sys.modules, "arviz_stats.base", module)
    np.testing.assert_allclose(result_of(log_weights).k_hat, wanted, rtol=1e-9)


def test_importing_it_does_not_import_arviz(monkeypatch, wide):
    def refuse(name, *args, **kwargs):
        assert not name.startswith("arviz")
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert np.isfinite(wide.log_marginal_likelihood(X[:5], 200, seed=0).mean)


# Seeds.


def test_it_repeats_with_a_seed(wide):
    one, same, other = (wide.log_marginal_likelihood(X, 200, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.estimate, same.estimate)
    np.testing.assert_array_equal(one.largest_log_weights, same.largest_log_weights)
    assert (one.estimate != other.estimate).all()
    unseeded = [wide.log_marginal_likelihood(X, 200).estimate for _ in range(2)]
    assert (unseeded[0] != unseeded[1]).all()


# Bad input.

BAD = {
    "none": ({"num_samples": 0}, ValueError, "num_samples: got 0, wanted a positive integer"),
    "float": ({"num_samples": 5.0}, TypeError, "num_samples: got 5.0"),
    "bool": ({"num_samples": True}, TypeError, "num_samples: got True"),
    "method": ({"method": "iwae"}, ValueError, "method: got 'iwae', wanted .*importance', 'ais'"),
    "no name": ({"method": None}, ValueError, "method: got None"),
    "of ais": ({"num_steps": 5}, TypeError, "num_steps: got 5 with method='importance'"),
    "steps": ({"method": "ais", "num_steps": 0}, ValueError, "num_steps: got 0"),
    "leapfrog": (
        {"method": "ais", "num_leapfrog_steps": 1.5},
        TypeError,
        "num_leapfrog_steps: got 1.5",
    ),
    "proposal": ({"method": "ais", "proposal": "q"}, ValueError, "proposal: got 'q', wanted"),
    "unknown": ({"method": "ais", "step_size": 1}, TypeError, "step_size: got 1, wanted no other"),
    "seed": ({"seed": 0.5}, TypeError, "seed: got 0.5"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind, wide):
    arguments, error, message = BAD[kind]
    with pytest.raises(error, match=f"^{message}"):
        wide.log_marginal_likelihood(X, **arguments)


def test_bad_data(wide):
    with pytest.raises(ValueError, match=r"^x: got shape \(100, 3\)"):
        wide.log_marginal_likelihood(X[:, :3])
    with pytest.raises(ValueError, match=r"^x: got NaN or infinite"):
        wide.log_marginal_likelihood(np.full((3, D), np.nan))


def test_a_model_that_diverged_is_refused():
    vae = factor_analysis()
    vae.decoder.layers[0].set_weights([WEIGHT.T, BIAS * np.nan])
    with pytest.raises(ValueError, match=r"^x: the log weights of 3 examples, the first in row 0"):
        vae.log_marginal_likelihood(X[:3], 50)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_data": 1}, ValueError, "num_data: got 1, wanted at least 2"),
        ({"num_data": 2.0}, TypeError, "num_data: got 2.0"),
        ({"num_samples": 0}, ValueError, "num_samples: got 0"),
        ({"num_steps": -1}, ValueError, "num_steps: got -1"),
        ({"tolerance": 0}, ValueError, "tolerance: got 0, wanted a positive number"),
    ],
)
def test_bad_input_of_the_sandwich(arguments, error, message, wide):
    with pytest.raises(error, match=f"^{message}"):
        ml.bidirectional_monte_carlo(wide, **arguments)


def test_the_sandwich_needs_a_built_model():
    vae = bits()
    with pytest.raises(ValueError, match=r"^vae: got a model that is not built"):
        ml.bidirectional_monte_carlo(vae)
    with pytest.raises(TypeError, match=r"^vae: got 'vae', wanted a VAE"):
        ml.bidirectional_monte_carlo("vae")
