"""Divergences of the aggregate posterior, against closed forms, quadrature and numpy."""

import itertools
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
    HierarchicalVAE,
    KLDivergenceRegularizer,
    check_elbo,
    diagnostics,
    flows,
    layers,
    likelihoods,
    losses,
    noise,
    objectives,
    posteriors,
    priors,
)
from tfpvae.regularizers import (
    AggregateRegularizer,
    MaximumMeanDiscrepancy,
    Sum,
    TotalCorrelation,
)

tfd = tfp.distributions
D, K = 6, 2


def normals(loc, scale=1.0):
    """Diagonal normal posteriors of a batch, without a layer."""
    return tfd.Independent(tfd.Normal(loc, scale), 1)


# The maximum mean discrepancy.


def mean_kernel(kernel, length, shift, cov):
    """E k(z, z') where z - z' is normal with this mean and covariance, a sum over a grid."""
    axis = np.linspace(-14.0, 14.0, 561)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    r = (grid**2).sum(-1) / (2 * length**2)
    values = np.exp(-r) if kernel == "rbf" else 1 / (1 + r)
    density = stats.multivariate_normal(shift, cov).pdf(grid)
    return float((values * density).sum() * (axis[1] - axis[0]) ** 2)


MEAN, SPREAD, SCALE = np.array([0.8, -0.3]), np.array([1.2, 0.4]), np.array([0.5, 0.9])


def squared_mmd(kernel, length):
    """That of a normal aggregate posterior N(MEAN, SPREAD^2 + SCALE^2) from N(0, 1)."""
    variance = SPREAD**2 + SCALE**2
    own = mean_kernel(kernel, length, [0, 0], np.diag(2 * variance))
    cross = mean_kernel(kernel, length, MEAN, np.diag(variance + 1))
    return own - 2 * cross + mean_kernel(kernel, length, [0, 0], np.diag([2.0, 2.0]))


def test_the_reference_is_the_closed_form_of_the_gaussian_kernel():
    """E k of normal differences is l^D |S + l^2|^(-1/2) exp(-m' (S + l^2)^-1 m / 2)."""
    variance, length = SPREAD**2 + SCALE**2 + 1, 0.7
    total = variance + length**2
    wanted = length**2 / np.sqrt(total.prod()) * np.exp(-0.5 * (MEAN**2 / total).sum())
    found = mean_kernel("rbf", length, MEAN, np.diag(variance))
    assert found == pytest.approx(wanted, rel=1e-9)


def estimates(regularizer, batch, draws, num):
    """Many estimates, each of a batch of new examples, whose posteriors have normal means."""

    def one(seed):
        with noise.fixed(seed):
            loc = MEAN + SPREAD * tf.random.stateless_normal([batch, 2], noise.next_seed())
            q = normals(tf.cast(loc, tf.float32), SCALE.astype("float32"))
            z = q.sample(draws, seed=noise.next_seed()) if draws else None
            return regularizer.divergence(q, z)

    seeds = tf.random.stateless_uniform([num, 2], [1, 2], None, None, tf.int32)
    return tf.function(lambda: tf.map_fn(one, seeds, fn_output_signature=tf.float32))().numpy()


@pytest.mark.parametrize(("batch", "draws"), [(2, None), (6, None), (3, 4)])
@pytest.mark.parametrize(
    ("kernel", "length"),
    [
        ("rbf", None),
        pytest.param("rbf", 0.5, marks=pytest.mark.long),
        pytest.param("imq", None, marks=pytest.mark.long),
        ("imq", [0.3, 2.0]),
    ],
)
def test_mmd_is_unbiased_for_batches_of_any_size(kernel, length, batch, draws):
    mmd = MaximumMeanDiscrepancy(priors.StandardNormal(2), kernel=kernel, length_scale=length)
    found = estimates(mmd, batch, draws, 4000)
    scales = np.ravel(np.sqrt(2) if length is None else length)
    wanted = np.mean([squared_mmd(kernel, scale) for scale in scales])
    error = found.std() / np.sqrt(len(found))
    assert error < 0.02
    assert abs(found.mean() - wanted) < 4.5 * error
    assert found.min() < 0  # Unbiased, and so below zero at times.


def test_all_pairs_make_mmd_too_large_by_what_is_known():
    batch, kwargs = 4, {"length_scale": 1.0}
    mmd = MaximumMeanDiscrepancy(priors.StandardNormal(2), unbiased=False, **kwargs)
    found = estimates(mmd, batch, None, 4000)
    assert found.min() >= 0
    own = mean_kernel("rbf", 1.0, [0, 0], np.diag(2 * (SPREAD**2 + SCALE**2)))
    prior = mean_kernel("rbf", 1.0, [0, 0], np.diag([2.0, 2.0]))
    wanted = squared_mmd("rbf", 1.0) + (2 - own - prior) / batch
    assert abs(found.mean() - wanted) < 4.5 * found.std() / np.sqrt(len(found))


def test_mmd_is_the_sum_over_pairs(rng):
    """Kernels of draws of one example with one another do not count; a prior of one point."""
    z, point = rng.normal(size=(3, 4, 2)), np.array([1.0, -2.0])
    prior = tfd.Independent(tfd.Deterministic(tf.constant(point, tf.float32)), 1)
    mmd = MaximumMeanDiscrepancy(prior, kernel="imq", length_scale=0.8)
    found = mmd.divergence(normals(tf.zeros([4, 2])), z.astype("float32"))

    def kernel(a, b):
        return 1 / (1 + ((a - b) ** 2).sum() / (2 * 0.8**2))

    pairs = itertools.product(itertools.product(range(3), range(4)), repeat=2)
    own = np.mean([kernel(z[a], z[b]) for a, b in pairs if a[1] != b[1]])
    cross = np.mean([kernel(row, point) for row in z.reshape(-1, 2)])
    assert float(found) == pytest.approx(own - 2 * cross + 1.0, rel=1e-5)


def test_mmd_of_events_that_are_no_vectors(rng):
    z = rng.normal(size=(5, 2, 3)).astype("float32")
    q = tfd.Independent(tfd.Normal(z, 1.0), 2)
    flat = MaximumMeanDiscrepancy(tfd.Independent(tfd.Deterministic(tf.zeros(6)), 1))
    shaped = MaximumMeanDiscrepancy(tfd.Independent(tfd.Deterministic(tf.zeros([2, 3])), 2))
    wanted = flat.divergence(normals(z.reshape(5, 6)), z.reshape(5, 6))
    assert float(shaped.divergence(q, z)) == pytest.approx(float(wanted), rel=1e-6)


# The total correlation.


def correlation_of_a_mixture(loc, scale):
    """KL(q || q_1 q_2) of a mixture of normals in the plane, a sum over a grid."""
    axis = np.linspace(-9.0, 9.0, 721)
    cell = axis[1] - axis[0]
    each = stats.norm.pdf(axis[:, None, None], loc, scale)  # [grid, N, 2]
    joint = np.einsum("in,jn->ij", each[..., 0], each[..., 1]) / len(loc)
    first, second = each.mean(axis=1).T
    return float((special.rel_entr(joint, np.outer(first, second))).sum() * cell**2)


LOC = np.array([[-2.0, -1.5], [-0.5, 0.4], [1.0, 0.2], [2.5, 3.0], [0.3, -0.8]])
SCALES = np.array([[0.6, 0.9], [0.5, 0.5], [1.2, 0.4], [0.7, 1.0], [0.3, 0.8]])


def test_total_correlation_of_all_data_is_the_integral():
    q = normals(tf.constant(LOC, tf.float32), tf.constant(SCALES, tf.float32))
    tc = TotalCorrelation(num_samples=500)
    found = np.array([float(tc.divergence(q)) for _ in range(40)])
    wanted = correlation_of_a_mixture(LOC, SCALES)
    error = found.std() / np.sqrt(len(found))
    assert error < 0.01 * wanted
    assert abs(found.mean() - wanted) < 4.5 * error


def test_total_correlation_of_a_normal_aggregate_posterior(rng):
    """-log(1 - rho^2) / 2, of many examples whose posteriors overlap with many others."""
    spread, scale, num = np.array([[1.0, 0.9], [0.9, 1.0]]), 0.5, 1500
    loc = rng.multivariate_normal([0, 0], spread, num)
    tc = TotalCorrelation().divergence(normals(tf.constant(loc, tf.float32), scale))
    sample = np.cov(loc.T) + scale**2 * np.eye(2)
    rho = sample[0, 1] / np.sqrt(sample[0, 0] * sample[1, 1])
    log_ratio_spread = rho  # The standard deviation of log q(z) - log q(z_1) q(z_2).
    error = 4.5 * log_ratio_spread / np.sqrt(num)
    assert abs(float(tc) + 0.5 * np.log(1 - rho**2)) < error < 0.1


def test_total_correlation_is_the_sum_over_the_batch(rng):
    """Both estimators, against scipy, at the same draws."""
    z = rng.normal(size=(2, 5, 2)) + LOC
    log_probs = stats.norm.logpdf(z[:, :, None], LOC, SCALES)  # [S, i, j, D]
    num, batch = 50, len(LOC)
    same = np.eye(batch, dtype=bool)
    weights = {
        num: np.where(same, 1 / num, (num - 1) / num / (batch - 1)),
        None: np.full((batch, batch), 1 / batch),
    }
    q = normals(tf.constant(LOC, tf.float32), tf.constant(SCALES, tf.float32))
    for num_data, weight in weights.items():
        joint = special.logsumexp(log_probs.sum(-1), axis=2, b=weight)
        each = special.logsumexp(log_probs, axis=2, b=weight[..., None])
        found = TotalCorrelation(num_data=num_data).divergence(q, z.astype("float32"))
        assert float(found) == pytest.approx((joint - each.sum(-1)).mean(), rel=1e-5)


def test_stratified_densities_are_unbiased_and_those_of_the_batch_alone_are_not():
    """The weight of q(.|x_j) at z_i, a mean over all batches with x_i, is that in q(z)."""
    num, batch = 6, 3
    batches = [(0, *others) for others in itertools.combinations(range(1, num), batch - 1)]
    for num_data in (num, None):
        weights = np.exp(TotalCorrelation(num_data=num_data)._log_weights(batch, "float64"))
        total = np.zeros(num)
        for members in batches:
            total[list(members)] += weights[0] / len(batches)
        assert total.sum() == pytest.approx(1.0)
        assert total[0] == pytest.approx(1 / (num_data or batch))
        if num_data:
            np.testing.assert_allclose(total, 1 / num)


def test_both_estimates_are_the_same_if_the_batch_is_all_data(rng):
    q = normals(tf.constant(LOC, tf.float32), tf.constant(SCALES, tf.float32))
    z = q.sample(3)
    wanted = TotalCorrelation().divergence(q, z)
    found = TotalCorrelation(num_data=len(LOC)).divergence(q, z)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.long
def test_bias_of_estimates_from_batches(rng):
    """Here that of the batch alone is too large, the stratified one too low."""
    num = 600
    loc = rng.normal(size=(num, 2)).astype("float32")
    q = normals(loc, 0.2)
    exact = float(TotalCorrelation(num_samples=4).divergence(q))
    bias = {}
    for batch in (10, 100):
        rows = [rng.choice(num, batch, replace=False) for _ in range(1000 // batch)]
        for num_data in (None, num):
            tc = TotalCorrelation(num_data=num_data)
            found = np.array([float(tc.divergence(normals(loc[row], 0.2))) for row in rows])
            bias[batch, num_data] = found.mean() - exact
            assert abs(bias[batch, num_data]) > 5 * found.std() / np.sqrt(len(rows))
    assert bias[10, None] > bias[100, None] > 0
    assert bias[10, num] < bias[100, num] < 0


def test_total_correlation_of_independent_dimensions_is_zero(rng):
    loc = np.array([[a, b] for a in (-1.0, 0.5, 2.0) for b in (-2.0, 0.0)], "float32")
    q = normals(loc, 0.4)
    tc = TotalCorrelation()
    assert abs(float(tc.divergence(q, q.sample(3)))) < 1e-5


def test_latents_add_up_to_the_kl(x):
    """KL = mutual information + total correlation + KLs of the dimensions."""
    vae = build(None)
    vae.compile()
    vae.fit(x, verbose=0)
    found = diagnostics.latents(vae, x, seed=0)
    by_unit = found.aggregate_kl_by_unit.sum()
    total = found.mutual_information + found.total_correlation + by_unit
    assert total == pytest.approx(found.kl, rel=1e-5)
    q = vae.posterior(x)
    tc = TotalCorrelation(num_samples=200).divergence(q)
    assert found.total_correlation == pytest.approx(float(tc), abs=0.02)
    block = posteriors.FullRankNormal(K)
    encoder = keras.Sequential([keras.layers.Dense(block.params_size), block])
    prior = priors.NormalMixture(K, 3)
    decoder = keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)])
    other = diagnostics.latents(VAE(prior, encoder, decoder, seed=0), x[:20], seed=0)
    assert other.total_correlation is None


# Both: gradients, and what Keras adds.


MADE = {
    "mmd": lambda **kwargs: MaximumMeanDiscrepancy(normals(tf.zeros([2], tf.float64)), **kwargs),
    "imq": lambda **kwargs: MaximumMeanDiscrepancy(
        normals(tf.zeros([2], tf.float64)), kernel="imq", **kwargs
    ),
    "total correlation": lambda **kwargs: TotalCorrelation(**kwargs),
    "total correlation, stratified": lambda **kwargs: TotalCorrelation(num_data=30, **kwargs),
}


@pytest.mark.parametrize("name", MADE)
def test_gradients_are_the_numerical_ones(name, rng):
    regularizer, eps = MADE[name](), rng.normal(size=(2, 5, 2))

    def value(loc, scale):
        with noise.fixed(1):
            return regularizer.divergence(normals(loc, scale), loc + scale * eps)

    analytic, numerical = tf.test.compute_gradient(
        value, [tf.constant(LOC), tf.constant(SCALES)], delta=1e-5
    )
    for ours, wanted in zip(analytic, numerical, strict=True):
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(ours, wanted, atol=1e-8)


def test_gradient_reaches_a_learned_prior(rng):
    prior = priors.Normal(2, initial={"loc": 1.0})
    mmd = MaximumMeanDiscrepancy(prior)
    with tf.GradientTape() as tape:
        value = mmd.divergence(normals(tf.zeros([50, 2])))
    (gradient,) = tape.gradient(value, prior.trainable_weights)
    assert np.all(gradient[:2] > 0)  # The loc comes down.


@pytest.mark.parametrize("num_samples", [None, 1, 10])
@pytest.mark.parametrize("batch", [2, 7, 64])
def test_keras_adds_it_once(batch, num_samples, rng):
    point = tfd.Independent(tfd.Deterministic(tf.zeros(2)), 1)
    mmd = MaximumMeanDiscrepancy(point, weight=0.5)
    tc = TotalCorrelation(2.0, 100)
    for regularizer in (mmd, tc, Sum([mmd, tc])):
        layer = posteriors.DiagonalNormal(
            2, num_samples=num_samples, activity_regularizer=regularizer
        )
        for _ in range(2):  # and once again at the next call
            q = layer(rng.normal(size=(batch, 4)).astype("float32"))
            z = tf.convert_to_tensor(q)
            parts = regularizer.parts
            wanted = sum(part.weight * float(part.divergence(q, z)) for part in parts)
            found = [float(loss) for loss in layer.losses]
            assert len([loss for loss in found if loss != 0.0]) == 1
            assert sum(found) == pytest.approx(wanted, rel=1e-4)


def test_a_batch_of_one_adds_nothing_and_has_no_gradient():
    for regularizer in (
        MaximumMeanDiscrepancy(priors.StandardNormal(2)),
        MaximumMeanDiscrepancy(priors.StandardNormal(2), unbiased=False),
        TotalCorrelation(),
    ):
        loc = tf.Variable([[3.0, 1.0]])
        with tf.GradientTape() as tape:
            value = regularizer.divergence(normals(tf.convert_to_tensor(loc)))
        assert float(value) == 0.0
        assert not np.any(tape.gradient(value, loc))


def test_the_mean_is_no_draw(rng):
    """Where the layer passes its mean on, the draws are of the posterior all the same."""
    scale = np.full((400, 2), 3.0, "float32")
    params = np.concatenate([np.zeros_like(scale), scale], axis=1)
    point = tfd.Independent(tfd.Deterministic(tf.zeros(2)), 1)
    mmd = MaximumMeanDiscrepancy(point)
    layer = posteriors.DiagonalNormal(2, convert_to_tensor_fn="mean", activity_regularizer=mmd)
    layer(params)
    assert sum(map(float, layer.losses)) > 0.2


def test_implicit_and_other_posteriors_need_draws_alone(rng):
    mmd = MaximumMeanDiscrepancy(priors.Flow(2, flows.RealNVP(2, hidden_units=(4,))), weight=10.0)
    for layer, size in (
        (posteriors.FullRankNormal(2, activity_regularizer=mmd), 5),
        (posteriors.Flow(2, flows.Planar(2), activity_regularizer=mmd), 14),
        (layers.DistributionLayer(tfd.Deterministic, 2, activity_regularizer=mmd), 2),
    ):
        params = tf.Variable(rng.normal(size=(20, size)).astype("float32"))
        with tf.GradientTape() as tape:
            layer(tf.convert_to_tensor(params))
            loss = sum(layer.losses)
        assert np.isfinite(loss)
        assert np.abs(tape.gradient(loss, params)).max() > 0


# In models.


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).integers(0, 2, size=(100, D)).astype("float32")


def build(regularizer, prior=None, num_samples=None, **kwargs):
    encoder = keras.Sequential(
        [
            keras.layers.Dense(8, "tanh"),
            keras.layers.Dense(2 * K),
            posteriors.DiagonalNormal(K, num_samples=num_samples, activity_regularizer=regularizer),
        ]
    )
    decoder = keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)])
    return VAE(prior or priors.StandardNormal(K), encoder, decoder, seed=0, **kwargs)


def both(prior=None):
    mmd = MaximumMeanDiscrepancy(prior or priors.StandardNormal(K), weight=50.0)
    return Sum([mmd, TotalCorrelation(3.0)])


def check_history(history, kl_weight=1.0):
    for start in ("", "val_"):
        terms = {
            name: np.array(history[start + name])
            for name in ("loss", "elbo", "nll", "kl", "mmd", "total_correlation")
        }
        np.testing.assert_allclose(terms["elbo"], -(terms["nll"] + terms["kl"]), rtol=1e-5)
        wanted = terms["nll"] + kl_weight * terms["kl"]
        wanted = wanted + 50 * terms["mmd"] + 3 * terms["total_correlation"]
        np.testing.assert_allclose(terms["loss"], wanted, rtol=1e-5)
        assert np.all(terms["total_correlation"] != 0)


OBJECTIVES = {
    "ELBO": objectives.ELBO,
    "score function": lambda: objectives.ELBO(num_samples=3, estimator="score_function"),
    "several draws": lambda: objectives.ELBO(num_samples=4),
}


@pytest.mark.parametrize(
    ("objective", "num_samples"),
    [
        ("ELBO", None),
        pytest.param("ELBO", 3, marks=pytest.mark.long),
        pytest.param("score function", 3, marks=pytest.mark.long),
        pytest.param("several draws", None, marks=pytest.mark.long),
    ],
)
@pytest.mark.long
def test_loss_in_a_vae_is_that_of_the_objective_and_the_weighted_divergences(
    objective, num_samples, x
):
    vae = build(both(), num_samples=num_samples)
    vae.compile("adam", objective=OBJECTIVES[objective]())
    history = vae.fit(x, batch_size=40, epochs=2, verbose=0, validation_data=x).history
    check_history(history)


@pytest.mark.long
def test_all_ways_to_run_a_step_agree(x):
    histories = {}
    for way in ("program", "eager", "keras"):
        keras.utils.set_random_seed(0)
        vae = build(both())
        vae.compile("adam", run_eagerly=way == "eager")
        rows = tf.data.Dataset.from_tensor_slices(x).batch(25) if way == "keras" else x
        histories[way] = vae.fit(
            rows, batch_size=25, epochs=2, verbose=0, shuffle=False, validation_data=x
        ).history
        check_history(histories[way])
    for name, values in histories["program"].items():
        for other in ("eager", "keras"):
            np.testing.assert_allclose(values, histories[other][name], rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_xla_and_half_precision(x):
    for policy, jit_compile in (("float32", True), ("mixed_bfloat16", None)):
        keras.mixed_precision.set_global_policy(policy)
        vae = build(both())
        vae.compile("adam", jit_compile=jit_compile)
        history = vae.fit(x, batch_size=25, epochs=3, verbose=0, validation_data=x).history
        check_history(history)
        assert vae.encoder.layers[-1].dtype == "float32"


@pytest.mark.long
def test_the_same_seed_repeats_bit_for_bit(x):
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        vae = build(both())
        vae.compile("adam")
        found.append(vae.fit(x, batch_size=25, epochs=2, verbose=0).history["loss"])
        assert vae.evaluate(x, verbose=0) == vae.evaluate(x, verbose=0)
    assert found[0] == found[1]


def test_sample_weights_are_of_the_examples_and_not_of_the_aggregate_posterior(x):
    vae = build(both())
    vae.compile(keras.optimizers.SGD(0.0))
    plain, halved = (
        vae.evaluate(x, sample_weight=w, batch_size=100, verbose=0, return_dict=True)
        for w in (None, np.full(100, 0.5))
    )
    for name in ("mmd", "total_correlation"):
        assert halved[name] == plain[name]
    assert halved["nll"] == pytest.approx(plain["nll"] / 2, rel=1e-5)
    wanted = halved["nll"] + halved["kl"] + 50 * plain["mmd"] + 3 * plain["total_correlation"]
    assert halved["loss"] == pytest.approx(wanted, rel=1e-5)


def test_wake_sleep_counts_the_data_and_not_the_dreams(x):
    """In the sleep phase the encoder sees what the model draws."""
    vae = build(both())
    vae.compile("adam", objective=objectives.ReweightedWakeSleep(num_samples=3))
    rows = tf.constant(x)
    with noise.fixed(5):
        _, terms, _ = vae.example_losses(rows, rows, training=True)
    assert sum(map(float, vae.losses)) == 0.0
    tc = TotalCorrelation(num_samples=50).divergence(vae.posterior(x))
    assert float(terms["total_correlation"]) == pytest.approx(float(tc), abs=0.05)


@pytest.mark.long
def test_a_prior_made_by_the_encoder(x):
    prior = priors.VampPrior(K, pseudo_inputs=x[:7])
    vae = build(both(prior), prior=prior)
    vae.compile("adam")
    check_history(vae.fit(x, batch_size=50, verbose=0, validation_data=x).history)
    assert np.isfinite(vae.log_marginal_likelihood(x[:5], 10, verbose=0).mean)


@pytest.mark.long
def test_the_model_is_saved_and_resumed_with_one_prior(x, tmp_path):
    prior = priors.Normal(K)
    vae = build(both(prior), prior=prior)
    vae.compile("adam")
    vae.fit(x, verbose=0)
    vae.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    mmd, tc = loaded.encoder.layers[-1].activity_regularizer.parts
    assert mmd.distribution_b is loaded.prior
    assert (tc.weight, mmd.weight) == (3.0, 50.0)
    assert len(loaded.trainable_weights) == len(vae.trainable_weights)
    assert loaded.evaluate(x, verbose=0) == vae.evaluate(x, verbose=0)
    assert loaded.fit(x, verbose=0).history == vae.fit(x, verbose=0).history


@pytest.mark.long
def test_a_plain_model_with_a_learned_prior_is_saved(x, tmp_path):
    prior = priors.Normal(K)
    kl = KLDivergenceRegularizer(prior)
    model = plain(Sum([kl, MaximumMeanDiscrepancy(prior, weight=2.0), TotalCorrelation()]))
    model.fit(x, x, verbose=0)
    assert any(weight is prior.trainable_weights[0] for weight in model.trainable_weights)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    first, second, _ = loaded.layers[1].activity_regularizer.parts
    assert first.distribution_b is second.distribution_b
    np.testing.assert_array_equal(first.distribution_b.get_weights()[0], prior.get_weights()[0])


def plain(regularizer, functional=False):
    head = keras.layers.Dense(2 * K)
    z = posteriors.DiagonalNormal(K, activity_regularizer=regularizer)
    tail = [keras.layers.Dense(D), likelihoods.Bernoulli(D)]
    if functional:
        inputs = keras.Input((D,))
        model = keras.Model(inputs, tail[1](tail[0](z(head(inputs)))))
    else:
        model = keras.Sequential([head, z, *tail])
    model.compile("adam", loss=losses.negative_log_prob)
    return model


@pytest.mark.parametrize("functional", [False, pytest.param(True, marks=pytest.mark.long)])
def test_in_plain_keras_models_it_works_and_check_elbo_takes_it_apart(functional, x):
    kl = KLDivergenceRegularizer(priors.StandardNormal(K))
    mmd = MaximumMeanDiscrepancy(priors.StandardNormal(K), weight=500.0)
    model = plain(Sum([kl, mmd, TotalCorrelation(weight=2.0)]), functional)
    history = model.fit(x, x, batch_size=20, epochs=15, verbose=0).history["loss"]
    assert history[-1] < history[0]
    report = check_elbo(model, x)
    assert report.terms[0].ratio == pytest.approx(1.0, rel=1e-4)
    assert report.terms[1].ratio == pytest.approx(1.0, rel=1e-4)
    assert len(report.differences) == 1
    assert "other regularizers, which are no part of the ELBO" in report.differences[0]


def test_check_elbo_of_other_models(x):
    vae = build(both())
    vae.compile()
    report = check_elbo(vae, x)
    assert report.terms[1].ratio == pytest.approx(1.0, rel=1e-4)
    assert ["other regularizers" in sentence for sentence in report.differences] == [True]
    without = check_elbo(plain(MaximumMeanDiscrepancy(priors.StandardNormal(K))), x)
    assert "Nothing adds a KL" in without.differences[0]
    silent = check_elbo(build_silent(x), x)
    assert silent.ok, str(silent)


def build_silent(x):
    """With a weight of zero, so that the loss is the negative ELBO."""
    vae = build(TotalCorrelation(weight=0.0))
    vae.compile()
    return vae


def test_a_variable_weight_can_change_during_training(x):
    weight = tf.Variable(0.0, trainable=False)
    vae = build(TotalCorrelation(weight=weight))
    vae.compile(keras.optimizers.SGD(0.0))
    callback = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: weight.assign(float(epoch))
    )
    history = vae.fit(x, batch_size=50, epochs=3, verbose=0, callbacks=[callback]).history
    extra = np.array(history["loss"]) + np.array(history["elbo"])
    wanted = np.arange(3) * np.array(history["total_correlation"])
    np.testing.assert_allclose(extra, wanted, atol=1e-4)


def test_a_divergence_of_ones_own(x):
    class Moment(AggregateRegularizer):
        name = "moment"

        def estimate(self, q, z):
            return tf.reduce_sum(tf.reduce_mean(z, axis=[0, 1]) ** 2)

    vae = build(Moment(weight=2.0))
    vae.compile("adam")
    history = vae.fit(x, verbose=0).history
    extra = history["loss"][0] + history["elbo"][0]
    assert extra == pytest.approx(2 * history["moment"][0], rel=1e-3)


@pytest.mark.long
def test_the_warning_of_a_wasserstein_autoencoder_says_what_is_minimized(x):
    vae = build(MaximumMeanDiscrepancy(priors.StandardNormal(K), weight=20.0))
    vae.compile("adam", objective=objectives.ELBO(kl_weight=0.0))
    with pytest.warns(UserWarning, match="kl_weight = 0, mmd of weight 20: the loss is not the"):
        vae.fit(x, verbose=0)


# What training does.


def ring(rng, num=600):
    """Points on a ring in space, standardized."""
    angle = rng.uniform(0, 2 * np.pi, num)
    x = np.stack([np.cos(angle), np.sin(angle), 0.3 * np.sin(2 * angle)], axis=1)
    return (x + 0.05 * rng.normal(size=x.shape)).astype("float32")


def autoencoder(regularizer, size=3):
    encoder = keras.Sequential(
        [
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(2 * K),
            posteriors.DiagonalNormal(K, activity_regularizer=regularizer),
        ]
    )
    decoder = keras.Sequential(
        [
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(likelihoods.Normal.params_size(size)),
            likelihoods.Normal(size),
        ]
    )
    return VAE(priors.StandardNormal(K), encoder, decoder, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_mmd_brings_the_aggregate_posterior_to_the_prior(kernel, rng):
    """Where the KL has no weight; judged by the covariance and by Kolmogorov and Smirnov."""
    x, distances = ring(rng), {}
    for weight in (0.0, 300.0):
        keras.utils.set_random_seed(1)
        mmd = MaximumMeanDiscrepancy(priors.StandardNormal(K), weight=weight, kernel=kernel)
        vae = autoencoder(mmd)
        vae.compile(keras.optimizers.Adam(3e-3), objective=objectives.ELBO(kl_weight=0.0))
        with pytest.warns(UserWarning, match="kl_weight = 0"):
            history = vae.fit(x, batch_size=100, epochs=150, verbose=0).history
        z = vae.posterior(x).sample(seed=[1, 2]).numpy()
        largest = max(stats.kstest(z @ [np.cos(a), np.sin(a)], "norm").statistic for a in range(8))
        distances[weight] = largest, history["mmd"][-1]
    assert distances[0.0][0] > 0.2
    assert distances[300.0][0] < 0.1
    assert distances[300.0][1] < 0.1 * distances[0.0][1]


@pytest.mark.long
def test_total_correlation_falls_where_it_has_a_weight(rng):
    """A ring in the latent plane, whose coordinates depend on each other."""
    x = ring(rng)
    found = {}
    for weight in (0.0, 10.0):
        keras.utils.set_random_seed(1)
        vae = autoencoder(TotalCorrelation(weight))
        vae.compile(keras.optimizers.Adam(3e-3))
        vae.fit(x, batch_size=100, epochs=100, verbose=0)
        q = vae.posterior(x)
        found[weight] = float(TotalCorrelation(num_samples=5).divergence(q))
    assert found[0.0] > 0.1
    assert found[10.0] < 0.5 * found[0.0]


# Errors and configurations.


PRIOR = tfd.Independent(tfd.Normal(tf.zeros(2), 1.0), 1)
CONFIGS = {
    "mmd": lambda: MaximumMeanDiscrepancy(priors.StandardNormal(2), 2.0, "imq", [0.5, 1.0]),
    "mmd of a tfd.Distribution": lambda: MaximumMeanDiscrepancy(
        PRIOR, tf.Variable(0.5, trainable=False), unbiased=False, num_samples=3
    ),
    "tc": lambda: TotalCorrelation(3.0, 500, num_samples=2),
    "sum": lambda: Sum(
        [
            KLDivergenceRegularizer(PRIOR, weight=0.3),
            TotalCorrelation(num_data=500),
            CONFIGS["mmd"](),
        ]
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_round_trip(name, rng):
    made = CONFIGS[name]()
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(made)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(made)
    assert json.dumps(again.get_config()) == json.dumps(made.get_config())
    q = posteriors.DiagonalNormal(2)(rng.normal(size=(8, 4)).astype("float32"))
    values = []
    for regularizer in (made, again):
        with noise.fixed(1):
            values.append({k: float(v) for k, v in regularizer.addends(q).items()})
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: MaximumMeanDiscrepancy(3), TypeError, "distribution_b: got 3, wanted a block"),
        (
            lambda: MaximumMeanDiscrepancy(keras3.layers.Dense(1)),
            TypeError,
            "distribution_b: .*Keras 3",
        ),
        (
            lambda: MaximumMeanDiscrepancy(PRIOR, kernel="cubic"),
            ValueError,
            "kernel: got 'cubic', wanted one of rbf, imq",
        ),
        (lambda: MaximumMeanDiscrepancy(PRIOR, length_scale=0.0), ValueError, "length_scale: got"),
        (lambda: MaximumMeanDiscrepancy(PRIOR, length_scale=[]), ValueError, "length_scale: got"),
        (lambda: MaximumMeanDiscrepancy(PRIOR, length_scale="x"), TypeError, "length_scale: got"),
        (lambda: MaximumMeanDiscrepancy(PRIOR, weight=-1.0), ValueError, "weight: got -1.0"),
        (lambda: MaximumMeanDiscrepancy(PRIOR, num_samples=0), ValueError, "num_samples: got 0"),
        (lambda: TotalCorrelation(num_data=1), ValueError, "num_data: got 1, wanted the number"),
        (lambda: TotalCorrelation(num_data=2.5), TypeError, "num_data: got 2.5"),
        (
            lambda: TotalCorrelation(weight=tf.Variable(1.0)),
            ValueError,
            "weight: got a trainable variable",
        ),
        (lambda: Sum([]), ValueError, "parts: got"),
        (lambda: Sum([3]), TypeError, "parts: got"),
        (lambda: Sum([TotalCorrelation()] * 2), ValueError, "parts: got .* each once"),
        (lambda: Sum(TotalCorrelation()), TypeError, "parts: got"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_posteriors_that_do_not_fit(rng):
    mmd, tc = MaximumMeanDiscrepancy(PRIOR), TotalCorrelation()
    with pytest.raises(ValueError, match=r"prior has events of shape \(2,\), the posterior .*3"):
        mmd.divergence(normals(tf.zeros([4, 3])))
    with pytest.raises(ValueError, match=r"TotalCorrelation: .*independent given x, as posteriors"):
        posteriors.FullRankNormal(2, activity_regularizer=tc)(tf.zeros([4, 5]))
    bits = tfd.Independent(tfd.Bernoulli(tf.zeros([4, 2])), 1)
    for regularizer in (mmd, tc):
        with pytest.raises(ValueError, match="are not reparameterized and so would give no grad"):
            regularizer.divergence(bits)
    layer = keras.layers.Dense(2, activity_regularizer=tc)
    with pytest.raises(TypeError, match="wanted the output of a distribution layer"):
        layer(tf.zeros([3, 2]))


def test_models_refuse_what_would_count_twice():
    kl = KLDivergenceRegularizer(priors.StandardNormal(K))
    for refused in (Sum([kl, TotalCorrelation()]), kl, keras.regularizers.L2(1.0)):
        with pytest.raises(ValueError, match=r"encoder: .* has an activity_reg"):
            build(refused)
    block = posteriors.DiagonalNormal(2, activity_regularizer=TotalCorrelation())
    with pytest.raises(ValueError, match="activity_regularizer"):
        HierarchicalVAE(
            priors.StandardNormal(1),
            [
                keras.Sequential([keras.layers.Dense(4), block]),
                keras.Sequential([keras.layers.Dense(2), posteriors.DiagonalNormal(1)]),
            ],
            [
                keras.Sequential([keras.layers.Dense(D), likelihoods.Bernoulli(D)]),
                keras.Sequential([keras.layers.Dense(4), likelihoods.Normal(2)]),
            ],
        )
