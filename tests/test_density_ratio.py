"""Density ratios against those of known Gaussians."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import integrate, optimize, stats

from tfpvae import DensityRatio, density_ratio

RULES = [*density_ratio.SCORING_RULES]
P, Q = stats.norm(0.5, 0.8), stats.norm(0.0, 1.0)


class Quadratic(keras.layers.Layer):
    """x and its square, of which the log ratio of two Gaussians is a linear function."""

    def call(self, x):
        return tf.concat([x, x**2], axis=-1)


def network(*units):
    hidden = [keras.layers.Dense(size, "tanh") for size in units]
    return keras.Sequential([*hidden, keras.layers.Dense(1)])


def compiled(*args, rate=0.01, **kwargs):
    ratio = DensityRatio(*args, seed=0, **kwargs)
    ratio.compile(keras.optimizers.Adam(rate))
    return ratio


def truth(x):
    return P.logpdf(x) - Q.logpdf(x)


def relative_error(found, true):
    return np.abs(found - true).mean() / np.abs(true).mean()


# The numbers.


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_lowest_at_the_log_ratio(rule):
    """Of all families T = a x^2 + b x + c, by quadrature, with an optimizer of scipy."""
    ratio = DensityRatio(network(), rule)
    x, w = np.polynomial.legendre.leggauss(400)
    x = 8 * x
    p, q = 8 * w * P.pdf(x), 8 * w * Q.pdf(x)
    exact = np.polyfit(x, truth(x), 2)
    a, b = density_ratio.SCORING_RULES[rule]

    def risk(c):
        t = tf.constant(c[0] * x**2 + c[1] * x + c[2])
        return float(np.sum(p * a(t) + q * b(t)) / 2)

    # Least squares weighs by the ratio's square, which has to be integrable: near the minimum.
    found = optimize.minimize(risk, exact + 0.05, method="Nelder-Mead", options={"maxiter": 1000})
    np.testing.assert_allclose(found.x, exact, atol=2e-3)
    draws = P.rvs(4000, random_state=0), Q.rvs(8000, random_state=1)
    logits = [tf.constant(truth(part)) for part in draws]
    scores = a(logits[0]), b(logits[1])
    mean = float(np.mean(scores[0]) + np.mean(scores[1])) / 2
    assert float(ratio.loss(*logits)) == pytest.approx(mean)
    error = np.hypot(*(np.std(score) / np.sqrt(len(score)) for score in scores)) / 2
    assert abs(mean - risk(exact)) < 4 * error


def test_the_kl_rule_bounds_the_divergence():
    """At the log ratio it is E_p[-T] + E_q[e^T] = 1 - KL(p || q)."""
    ratio = DensityRatio(network(), "kl")
    x = np.linspace(-8, 8, 4001)
    kl = integrate.trapezoid(P.pdf(x) * truth(x), x)
    draws = P.rvs(200_000, random_state=0), Q.rvs(200_000, random_state=1)
    loss = float(ratio.loss(*(tf.constant(truth(part)) for part in draws)))
    assert 2 * loss == pytest.approx(1 - kl, abs=0.01)


@pytest.fixture(scope="module")
def gaussians():
    """Draws, more of one than of the other, and points held out."""
    numerator, denominator = P.rvs((20_000, 1), random_state=0), Q.rvs((10_000, 1), random_state=1)
    held_out = np.concatenate([P.rvs((1000, 1), random_state=2), Q.rvs((1000, 1), random_state=3)])
    return numerator, denominator, held_out


def fitted(rule, gaussians):
    keras.utils.set_random_seed(0)
    numerator, denominator, _ = gaussians
    model = keras.Sequential([Quadratic(), keras.layers.Dense(1)])
    rate = keras.optimizers.schedules.CosineDecay(0.02, 20 * 30)
    ratio = compiled(model, rule, rate=rate)
    ratio.fit(numerator, denominator, batch_size=1000, epochs=20, verbose=0)
    return ratio


@pytest.mark.parametrize("rule", RULES)
def test_the_log_ratio_of_gaussians(rule, gaussians):
    """Within 5 %, and a constant that is wrong by a twentieth of a nat would be seen."""
    found, true = fitted(rule, gaussians).log_ratio(gaussians[2]), truth(gaussians[2][:, 0])
    assert relative_error(found, true) < 0.05
    assert relative_error(found + 0.05, true) > 0.05
    # That of unequal numbers of draws, if nothing evened them out.
    assert relative_error(found + np.log(20_000 / 10_000), true) > 0.5


@pytest.mark.long
@pytest.mark.parametrize("rule", ["logistic", "exponential"])
def test_a_network_that_does_not_know_the_form(rule):
    """In two dimensions, correlated, with a network; within 5 %.

    The other rules say less where one of the distributions is rare, and such networks are less
    exact there.
    """
    cov = np.array([[1.0, 0.3], [0.3, 1.0]])
    p, q = stats.multivariate_normal([1.0, -0.5], cov), stats.multivariate_normal([0, 0], np.eye(2))
    numerator, denominator = (d.rvs(100_000, random_state=i) for i, d in enumerate((p, q)))
    held_out = np.concatenate([d.rvs(2000, random_state=2 + i) for i, d in enumerate((p, q))])
    epochs, size = 20, 1000
    rate = keras.optimizers.schedules.CosineDecay(0.01, epochs * 200)
    ratio = compiled(network(32, 32), rule, rate=rate)
    ratio.fit(numerator, denominator, batch_size=size, epochs=epochs, verbose=0)
    true = p.logpdf(held_out) - q.logpdf(held_out)
    assert relative_error(ratio.log_ratio(held_out), true) < 0.05
    assert relative_error(ratio.log_ratio(held_out) + 0.1, true) > 0.05


# Keras's manners.


def test_training_goes_on_after_a_file_to_the_same_numbers(tmp_path, gaussians):
    numerator, denominator, held_out = (part[:500] for part in gaussians)

    def step(ratio):
        return ratio.fit(numerator, denominator, epochs=2, verbose=0).history

    keras.utils.set_random_seed(1)
    ratio = compiled(network(8), "brier")
    step(ratio)
    ratio.save(tmp_path / "ratio.keras")
    loaded = keras.models.load_model(tmp_path / "ratio.keras")
    assert loaded.scoring_rule == "brier"
    np.testing.assert_array_equal(loaded.log_ratio(held_out), ratio.log_ratio(held_out))
    keras.utils.set_random_seed(2)
    wanted = step(ratio)
    keras.utils.set_random_seed(2)
    assert step(loaded) == wanted
    np.testing.assert_array_equal(loaded.log_ratio(held_out), ratio.log_ratio(held_out))


def test_history_and_held_out_draws(gaussians):
    numerator, denominator, held_out = (part[:500] for part in gaussians)
    ratio = compiled(keras.Sequential([Quadratic(), keras.layers.Dense(1)]))
    pair = (held_out[:100], held_out[100:400])
    history = ratio.fit(numerator, denominator, validation_data=pair, epochs=3, verbose=0).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    history = ratio.fit(numerator, denominator, validation_split=0.2, verbose=0).history
    assert "val_loss" in history
    logs = ratio.evaluate(*pair, verbose=0, return_dict=True)
    t = [ratio.log_ratio(part) for part in pair]
    assert logs["loss"] == pytest.approx(float(ratio.loss(*map(tf.constant, t))), rel=1e-5)
    accuracy = (np.mean(t[0] > 0) + np.mean(t[1] < 0)) / 2
    assert logs["accuracy"] == pytest.approx(accuracy, rel=1e-5)
    np.testing.assert_array_equal(ratio.predict(held_out, verbose=0), ratio.log_ratio(held_out))


# Inputs.


@pytest.mark.parametrize("z_shape", [(5, 2), (7, 5, 2), (7, 1, 2)])
def test_inputs_are_put_side_by_side_and_broadcast(z_shape, rng):
    x, z = rng.normal(size=(5, 3)).astype("float32"), rng.normal(size=z_shape).astype("float32")
    ratio = DensityRatio(network(4))
    found = ratio([tf.constant(x), tf.constant(z)])
    lead = np.broadcast_shapes((5,), z_shape[:-1])
    assert found.shape == lead
    rows = np.concatenate([np.broadcast_to(v, (*lead, v.shape[-1])) for v in (x, z)], axis=-1)
    wanted = ratio.network(rows.reshape(-1, 5)).numpy().reshape(lead)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(ratio.log_ratio([x, z]), wanted, rtol=1e-5, atol=1e-6)


def test_images_beside_codes(rng):
    images, z = rng.normal(size=(5, 4, 4, 1)), rng.normal(size=(3, 5, 2))
    ratio = DensityRatio(network(4), event_ndims=(3, 1))
    assert ratio.log_ratio([images, z]).shape == (3, 5)
    with pytest.raises(ValueError, match=r"whose axes before the examples' own.*event_ndims="):
        DensityRatio(network(4)).log_ratio([images, z[0]])
    with pytest.raises(ValueError, match=r"inputs: got 1, wanted 2, as event_ndims=\(3, 1\) says"):
        ratio.log_ratio(images)


def test_it_is_a_layer_of_a_functional_model(rng):
    x, z = keras.Input((3,)), keras.Input((2,))
    model = keras.Model([x, z], DensityRatio(network(4))([x, z]))
    assert len(model.trainable_weights) == 4
    assert model.predict([rng.normal(size=(6, 3)), rng.normal(size=(6, 2))], verbose=0).shape == (
        6,
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_log_ratios_are_in_full_precision(policy, rng):
    keras.mixed_precision.set_global_policy(policy)
    keras.backend.set_floatx("float64" if policy == "float64" else "float32")
    ratio = compiled(network(4))
    ratio.fit(rng.normal(size=(64, 2)), rng.normal(size=(64, 2)) + 1, verbose=0)
    wanted = "float64" if policy == "float64" else "float32"
    assert ratio(tf.zeros((3, 2))).dtype == wanted


# Errors.


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: DensityRatio("network"), TypeError, "network: got 'network', wanted a tf_keras"),
        (lambda: DensityRatio(network(), "loglik"), ValueError, "scoring_rule: got 'loglik'"),
        (lambda: DensityRatio(network(), event_ndims=-1), ValueError, "event_ndims: got -1"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    "wrong",
    [
        keras.layers.Dense(2),
        keras.layers.Flatten(),
        keras.layers.Lambda(lambda x: tf.reduce_sum(x, -1)),
        keras.layers.Reshape((1, 2, 1)),
    ],
)
def test_a_network_that_puts_out_more_than_one_number(wrong, rng):
    ratio = compiled(keras.Sequential([keras.layers.Dense(2), wrong]))
    match = r"network: got one that puts out .*wanted \(N, 1\): end it in keras.layers.Dense\(1\)"
    with pytest.raises(ValueError, match=match):
        ratio.fit(rng.normal(size=(9, 3)), rng.normal(size=(9, 3)), verbose=0)


@pytest.mark.parametrize(
    ("numerator", "denominator", "match"),
    [
        (np.ones((5, 2)), np.ones((5, 3)), "denominator: got examples of 3 numbers, wanted 2"),
        (np.ones((5, 2)), np.full((5, 2), np.nan), "denominator: got NaN or infinite values"),
        (np.ones(5), np.ones(5), r"numerator: got shape \(5,\), wanted examples of 1 axes"),
        (np.ones((5, 2)), None, "denominator: got None"),
        (np.ones((0, 2)), np.ones((5, 2)), "numerator: got an empty array"),
    ],
)
def test_bad_draws(numerator, denominator, match):
    ratio = compiled(network(4))
    with pytest.raises((TypeError, ValueError), match=match):
        ratio.fit(numerator, denominator, verbose=0)
    assert int(ratio.optimizer.iterations) == 0
