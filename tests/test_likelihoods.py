"""The likelihoods: numbers against scipy, mixtures and tables of them, and data with gaps."""

import itertools
import json
import math
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from tfpvae import VAE, blocks, likelihoods, networks, posteriors, priors
from tfpvae.evaluation import check_elbo
from tfpvae.likelihoods import (
    Binomial,
    Categorical,
    Columns,
    DiscretizedLogistic,
    Masked,
    MixtureOf,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Ordinal,
    Poisson,
    StudentT,
    ZeroInflated,
)

NAN = math.nan


def softplus(t):
    return np.logaddexp(0, t)


def table():
    return Columns(
        {"height": Normal(), "visits": NegativeBinomial(), "colour": Categorical(num_classes=3)}
    )


def params_of(layer, rng, batch=4):
    return tf.constant(rng.normal(size=(batch, layer.params_size)), layer.dtype)


def log_prob_and_gradient(layer, params, x):
    with tf.GradientTape() as tape:
        tape.watch(params)
        log_prob = layer(params).log_prob(x)
    return log_prob, tape.gradient(log_prob, params)


# Probabilities of all values add up to one, densities integrate to one.

COUNTS = [[count] for count in range(400)]


def pairs(high):
    return list(itertools.product(range(high), repeat=2))


def compositions(total, size):
    return [c for c in itertools.product(range(total + 1), repeat=size) if sum(c) == total]


ALL_VALUES = {
    "NegativeBinomial": (lambda: NegativeBinomial(1), COUNTS),
    "Ordinal": (lambda: Ordinal(2, num_classes=5), pairs(5)),
    "Ordinal, two grades": (lambda: Ordinal(2, num_classes=2), pairs(2)),
    "OneHotCategorical": (lambda: OneHotCategorical(4), np.eye(4)),
    "Multinomial": (lambda: likelihoods.Multinomial(3, total_count=6), compositions(6, 3)),
    "DirichletMultinomial": (
        lambda: likelihoods.DirichletMultinomial(3, total_count=6),
        compositions(6, 3),
    ),
    "DiscretizedLogistic": (lambda: DiscretizedLogistic(1), [[level] for level in range(256)]),
    "DiscretizedLogistic of 5": (lambda: DiscretizedLogistic(2, num_levels=5), pairs(5)),
    "MixtureOf levels": (
        lambda: MixtureOf(DiscretizedLogistic(num_levels=7), 3, event_shape=2),
        pairs(7),
    ),
    "MixtureOf classes": (lambda: MixtureOf(Categorical(2, num_classes=4), 3), pairs(4)),
    "ZeroInflated Poisson": (lambda: ZeroInflated(Poisson(1)), COUNTS),
    "ZeroInflated NegativeBinomial": (lambda: ZeroInflated(NegativeBinomial(1)), COUNTS),
    "ZeroInflated Binomial": (lambda: ZeroInflated(Binomial(2, total_count=[4, 5])), pairs(6)),
    "Columns": (
        lambda: Columns([Categorical(num_classes=3), ZeroInflated(Binomial(total_count=4))]),
        list(itertools.product(range(3), range(5))),
    ),
}


@cache
def layer_with_values(name):
    make, values = ALL_VALUES[name]
    return make(), np.array(values, np.float32)


@pytest.mark.parametrize("name", ALL_VALUES)
@settings(max_examples=3, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10_000))
def test_probabilities_add_up_to_one(name, seed):
    layer, values = layer_with_values(name)
    params = np.random.default_rng(seed).uniform(-2, 2, size=(1, layer.params_size))
    if name == "ZeroInflated Binomial":
        values = values[values[:, 0] <= 4]
    probs = np.exp(layer(params).log_prob(values[:, None]).numpy().astype(float))
    assert probs.shape == (len(values), 1)
    np.testing.assert_allclose(probs.sum(), 1, rtol=1e-4)


@pytest.mark.parametrize("component", [Normal, StudentT, likelihoods.Laplace])
def test_a_mixture_of_densities_integrates_to_one(component, rng):
    layer = MixtureOf(component(), 4)
    x = np.sinh(np.linspace(-16, 16, 20_001))  # fine in the middle, far out at the ends
    density = np.exp(layer(params_of(layer, rng, 1)).log_prob(x.astype(np.float32)).numpy())
    # Student t with few degrees of freedom keeps some of its mass farther out still.
    np.testing.assert_allclose(np.trapezoid(density, x), 1, rtol=1e-3)


# Moments: those of the formulas, and those of draws.


def moments(values, probs):
    """Mean and variance of a distribution over the values of one entry."""
    mean = (values * probs).sum()
    return mean, ((values - mean) ** 2 * probs).sum()


def discretized_logistic(loc, scale, num_levels):
    """The probabilities of all levels, from scipy's logistic in grey levels."""
    half = (num_levels - 1) / 2
    borders = np.arange(num_levels - 1) + 0.5
    cdf = stats.logistic.cdf(borders, (loc + 1) * half, scale * half)
    return np.diff(np.concatenate([[0], cdf, [1]]))


LEVELS, MANY = np.arange(256), np.arange(2000)
MOMENTS = {
    "NegativeBinomial": (
        lambda: NegativeBinomial(),
        [1.5, 0.3],
        MANY,
        lambda m, d: stats.nbinom.pmf(MANY, 1 / softplus(d), 1 / (1 + softplus(d) * np.exp(m))),
    ),
    "DiscretizedLogistic": (
        lambda: DiscretizedLogistic(),
        [-0.6, -1.0],
        LEVELS,
        lambda loc, t: discretized_logistic(loc, softplus(t) + np.exp(-7), 256),
    ),
    "ZeroInflated": (
        lambda: ZeroInflated(Poisson()),
        [1.2, -0.5],
        MANY,
        lambda rate, zero: (
            special.expit(zero) * (MANY == 0)
            + special.expit(-zero) * stats.poisson.pmf(MANY, np.exp(rate))
        ),
    ),
    "MixtureOf": (
        lambda: MixtureOf(Poisson(), 2),
        [0.0, 1.0, 0.2, 2.5],
        MANY,
        lambda s, t, a, b: (
            special.expit(s - t) * stats.poisson.pmf(MANY, np.exp(a))
            + special.expit(t - s) * stats.poisson.pmf(MANY, np.exp(b))
        ),
    ),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_and_mode(name):
    make, params, values, pmf = MOMENTS[name]
    distribution, probs = make()(tf.constant([params])), pmf(*params)
    mean, variance = moments(values, probs)
    np.testing.assert_allclose(distribution.mean(), [mean], rtol=1e-4)
    np.testing.assert_allclose(distribution.variance(), [variance], rtol=1e-4)
    np.testing.assert_allclose(distribution.stddev(), [variance**0.5], rtol=1e-4)
    np.testing.assert_array_equal(distribution.mode(), [values[probs.argmax()]])
    draws = distribution.sample(40_000, seed=[1, 2]).numpy()
    assert draws.shape == (40_000, 1)
    assert abs(draws.mean() - mean) < 5 * (variance / 40_000) ** 0.5
    fourth = ((values - mean) ** 4 * probs).sum()
    assert abs(draws.var() - variance) < 5 * ((fourth - variance**2) / 40_000) ** 0.5


def test_moments_of_a_mixture_of_vectors(rng):
    logits, loc, scale = rng.normal(size=3), rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    params = np.concatenate([logits, loc.ravel(), scale.ravel()])
    p = MixtureOf(Normal(2), 3)(params[None])
    weights = special.softmax(logits)
    mean = weights @ loc
    variance = weights @ (softplus(scale) ** 2 + loc**2) - mean**2
    np.testing.assert_allclose(p.mean(), [mean], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(p.variance(), [variance], rtol=1e-4)
    draws = p.sample(40_000, seed=[1, 2]).numpy()[:, 0]
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * (variance / 40_000) ** 0.5).all()
    # Both entries of a draw come from the same component.
    covariance = (weights[:, None] * loc).T @ loc - np.outer(mean, mean)
    np.testing.assert_allclose(np.cov(draws.T)[0, 1], covariance[0, 1], atol=0.05)


def test_the_mode_of_a_mixture_is_the_best_of_its_components_modes():
    # Two narrow components of little weight each, a wide one of more: the density decides.
    logits, loc, scale = [0.0, 0.5, 1.0], [-2.0, 3.0, 8.0], [-3.0, -2.0, 4.0]
    p = MixtureOf(Normal(), 3)([[*logits, *loc, *scale]])
    weights = special.softmax(logits)
    density = [(weights * stats.norm.pdf(at, loc, softplus(np.array(scale)))).sum() for at in loc]
    np.testing.assert_allclose(p.mode(), [loc[int(np.argmax(density))]])


def test_the_value_of_a_mixture_of_classes_is_a_row_of_classes(rng):
    layer = MixtureOf(Categorical(3, num_classes=4), 2)
    value = tf.convert_to_tensor(layer(params_of(layer, rng))).numpy()
    assert value.shape == (4, 3)
    layer.check_values(value)
    assert layer.conversion.name == "mode"


def test_the_value_of_student_t_is_loc_where_there_is_no_mean():
    p = StudentT(1)([[-3.0, 0.7, 0.0]])
    assert np.isnan(p.mean()).all()
    np.testing.assert_allclose(tf.convert_to_tensor(p), [[0.7]])


# The negative binomial.


def test_the_variance_of_a_negative_binomial():
    p = NegativeBinomial(3, dispersion=[0.5, 1.0, 2.0])([[0.0, 1.0, 2.0]])
    mean = np.exp([0, 1, 2])
    np.testing.assert_allclose(p.mean(), [mean], rtol=1e-6)
    np.testing.assert_allclose(p.variance(), [mean + np.array([0.5, 1, 2]) * mean**2], rtol=1e-6)


def test_a_negative_binomial_of_fixed_mean():
    layer = NegativeBinomial(1, mean=3.0)
    assert [parameter.name for parameter in layer.free] == ["dispersion"]
    x, dispersion = np.arange(9.0)[:, None], softplus(0.4) + 1e-6
    expected = stats.nbinom.logpmf(x[:, 0], 1 / dispersion, 1 / (1 + 3 * dispersion))
    np.testing.assert_allclose(layer([[0.4]]).log_prob(x), expected, rtol=1e-5)


def test_a_negative_binomial_without_dispersion_is_a_poisson():
    x, rate = np.arange(12.0)[:, None], 2.5
    p = NegativeBinomial(1)([[np.log(rate), -30.0]])
    np.testing.assert_allclose(p.log_prob(x), stats.poisson.logpmf(x[:, 0], rate), rtol=1e-4)


# Grades.


@pytest.mark.parametrize("loc", [-1000.0, -100.0, 100.0, 1000.0])
def test_grades_far_from_the_location(loc):
    layer = Ordinal(num_classes=4, cutpoints=[-1.0, 0.0, 2.0])
    x = np.arange(4)
    log_prob, gradient = log_prob_and_gradient(layer, tf.fill([4, 1], loc), x)
    # log(sigmoid(b) - sigmoid(a)), where the logistic distribution is exponential.
    inside = np.log(-np.expm1([-1.0, -2.0]))
    expected = [-1 - loc, 0 - loc + inside[0], 2 - loc + inside[1], 0.0]
    if loc < 0:
        expected = [0.0, 1 + loc + inside[0], 0 + loc + inside[1], -2 + loc]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6, atol=1e-6)
    slope = np.sign(loc) * (x != (3 if loc > 0 else 0))
    np.testing.assert_allclose(gradient[:, 0], -slope, atol=1e-6)


# Grey levels.


def test_grey_levels_far_from_the_location():
    loc, scale = np.meshgrid([-1e4, -3.0, -1.0, 0.1, 1.0, 3.0, 1e4], [-50.0, -5.0, 0.0, 5.0, 1e4])
    loc, scale = loc.reshape(-1, 1), scale.reshape(-1, 1)
    layer = DiscretizedLogistic(256)
    params = tf.constant(np.repeat(np.hstack([loc, scale]), 256, axis=1), tf.float32)
    x = np.broadcast_to(np.arange(256, dtype=np.float32), (35, 256))
    log_prob, gradient = log_prob_and_gradient(layer, params, x)
    assert np.isfinite(log_prob).all()
    assert np.isfinite(gradient).all()
    # log(F(b) - F(a)) of a logistic, where both are in its upper or lower tail, is that of an
    # exponential: log(exp(b) - exp(a)).
    actual = distribution_of_entries(layer(params)).log_prob(x).numpy()[:, 1:255]
    half, s = 127.5, softplus(scale) + np.exp(-7)
    upper = (np.arange(1, 255) + 0.5 - half - loc * half) / (s * half)
    lower = (np.arange(1, 255) - 0.5 - half - loc * half) / (s * half)
    least = np.minimum(np.abs(upper), np.abs(lower))
    far, near = least > 30, np.maximum(np.abs(upper), np.abs(lower)) < 5
    assert far.sum() > 1000
    assert near.sum() > 1000
    tail = np.log(-np.expm1(lower - upper)) - least
    np.testing.assert_allclose(actual[far], tail[far], rtol=2e-4)
    exact = np.log(special.expit(upper[near]) - special.expit(lower[near]))
    np.testing.assert_allclose(actual[near], exact, rtol=1e-3)


def distribution_of_entries(distribution):
    return distribution.tensor_distribution.distribution


def test_the_ends_take_what_is_beyond_them():
    p = DiscretizedLogistic(2)([[-50.0, 50.0, 0.0, 0.0]])
    np.testing.assert_allclose(p.log_prob([[0, 255]]), [0], atol=1e-6)
    np.testing.assert_array_equal(p.sample(100), np.broadcast_to([0, 255], (100, 1, 2)))
    np.testing.assert_allclose(p.mean(), [[0, 255]], atol=1e-4)


def test_zeros_are_the_middle_grey_on_a_wide_scale():
    for num_levels in (2, 16, 256):
        p = DiscretizedLogistic(1, num_levels=num_levels)([[0.0, 0.0]])
        np.testing.assert_allclose(p.mean(), [[(num_levels - 1) / 2]], rtol=1e-5)
        assert p.stddev()[0, 0] > num_levels / 5
        assert np.exp(p.log_prob([[0.0]])) > 0.1


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32", "float64"])
def test_grey_levels_of_any_dtype(dtype):
    p = DiscretizedLogistic(3)([[0.1, -0.5, 0.9, 0.0, -1.0, 1.0]])
    expected = sum(
        np.log(discretized_logistic(loc, softplus(t) + np.exp(-7), 256)[level])
        for loc, t, level in zip([0.1, -0.5, 0.9], [0, -1, 1], [0, 77, 255], strict=True)
    )
    x = np.array([[0, 77, 255]], dtype)
    np.testing.assert_allclose(p.log_prob(x), [expected], rtol=1e-5)
    np.testing.assert_allclose(p.log_prob(tf.constant(x)), [expected], rtol=1e-5)


def test_moments_of_grey_levels():
    grid = list(itertools.product([-1.2, -0.3, 0.0, 0.95], [-8.0, -4.0, 0.0, 2.0]))
    p = DiscretizedLogistic()(np.array(grid))
    assert p.batch_shape == (16,)
    probs = [discretized_logistic(loc, softplus(t) + np.exp(-7), 256) for loc, t in grid]
    mean, variance = np.transpose([moments(LEVELS, each) for each in probs])
    np.testing.assert_allclose(p.mean(), mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(p.variance(), variance, rtol=1e-3, atol=1e-5)
    # In the middle two levels may be as probable as each other.
    at_mode = [each[int(level)] for each, level in zip(probs, p.mode(), strict=True)]
    np.testing.assert_allclose(at_mode, np.max(probs, axis=1), rtol=1e-6)


def test_the_mean_of_grey_levels_takes_no_memory_for_each_level():
    @tf.function
    def mean(params):
        return DiscretizedLogistic(1000)(params).tensor_distribution.mean()

    graph = mean.get_concrete_function(tf.TensorSpec([2, 2000])).graph
    graphs = [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]
    assert len(graphs) > 1  # The loop's own.
    outputs = [output for g in graphs for op in g.get_operations() for output in op.outputs]
    shapes = [tuple(output.shape) for output in outputs if output.shape.is_fully_defined()]
    assert (2, 1000) in shapes
    assert max(map(math.prod, shapes)) <= 4000


# Parameters: flat, or the channels of a convolution's output.

PIXELS = (2, 3, 2)
IMAGES = {
    "DiscretizedLogistic": (lambda: DiscretizedLogistic(PIXELS), [1, 1]),
    "Ordinal": (lambda: Ordinal(PIXELS, num_classes=3), [2, 1]),
    "MixtureOf": (lambda: MixtureOf(DiscretizedLogistic(), 3, event_shape=PIXELS), [3, 3, 3]),
    "MixtureOf vectors": (
        lambda: MixtureOf(OneHotCategorical(2), 3, event_shape=(2, 3)),
        [3 / 2, 3],
    ),
    "ZeroInflated": (lambda: ZeroInflated(NegativeBinomial(PIXELS)), [1, 1, 1]),
    "Masked": (lambda: Masked(Normal(PIXELS)), [1, 1]),
    "Masked MixtureOf": (lambda: Masked(MixtureOf(Normal(), 3, event_shape=PIXELS)), [3, 3, 3]),
}


@pytest.mark.parametrize("name", IMAGES)
def test_flat_parameters_and_those_of_a_convolution(name, rng):
    make, sizes = IMAGES[name]
    layer = make()
    # [B, H, W, channels of one parameter], for each of them
    pieces = [rng.normal(size=(4, 2, 3, int(2 * size))) for size in sizes]
    flat = np.concatenate([piece.reshape(4, -1) for piece in pieces], axis=-1)
    convolution = np.concatenate(pieces, axis=-1)
    assert layer.params_size == flat.shape[-1]
    x = tf.cast(layer(flat).sample(seed=[1, 2]), tf.float32).numpy()
    if name.startswith("Masked"):
        x[:, 0, 0, 0] = NAN
    expected = layer(flat).log_prob(x)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(layer(convolution).log_prob(x), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="convolution that puts out"):
        layer(convolution[..., 1:])


# Columns.


def test_columns_are_the_sum_of_their_blocks(rng):
    layer = Columns(
        {
            "a": Normal((2, 2)),
            "b": Poisson(),
            "c": OneHotCategorical(3),
            "d": Ordinal(num_classes=3),
        }
    )
    assert layer.event_shape == (9,)
    assert [parameter.name for parameter in layer.free] == [
        "a.loc",
        "a.scale",
        "b.log_rate",
        "c.logits",
        "d.cutpoints",
        "d.loc",
    ]
    t = rng.normal(size=(4, layer.params_size))
    one_hot = np.eye(3)[[0, 1, 2, 1]]
    x = np.column_stack([rng.normal(size=(4, 4)), [0, 1, 2, 3], one_hot, [0, 1, 2, 0]])
    grades = special.expit(np.cumsum([t[:, 12], np.exp(t[:, 13])], axis=0) - t[:, 14])
    grades = np.diff(np.concatenate([np.zeros((1, 4)), grades, np.ones((1, 4))]), axis=0)
    expected = (
        stats.norm.logpdf(x[:, :4], t[:, :4], softplus(t[:, 4:8])).sum(axis=1)
        + stats.poisson.logpmf(x[:, 4], np.exp(t[:, 8]))
        + (special.log_softmax(t[:, 9:12], axis=1) * one_hot).sum(axis=1)
        + np.log(grades[[0, 1, 2, 0], range(4)])
    )
    np.testing.assert_allclose(layer(t).log_prob(x), expected, rtol=1e-5)


def test_values_of_columns(rng):
    layer = table()
    t = rng.normal(size=(5, 7)).astype(np.float32)
    p = layer(t[:, : layer.params_size])
    mean, mode = np.exp(t[:, 2]), t[:, 4:7].argmax(axis=1)
    # Each column's own: the mean, and the mode of classes.
    np.testing.assert_allclose(
        tf.convert_to_tensor(p), np.column_stack([t[:, 0], mean, mode]), rtol=1e-5
    )
    np.testing.assert_allclose(p.mean()[:, :2], np.column_stack([t[:, 0], mean]), rtol=1e-5)
    np.testing.assert_allclose(p.mode()[:, 2], mode)
    variance = mean + (softplus(t[:, 3]) + 1e-6) * mean**2
    np.testing.assert_allclose(p.variance()[:, 1], variance, rtol=1e-4)
    np.testing.assert_allclose(p.stddev()[:, 1], variance**0.5, rtol=1e-4)
    draws = p.sample(20_000, seed=[1, 2]).numpy()
    assert draws.dtype == np.float32
    layer.check_values(draws.reshape(-1, 3))
    np.testing.assert_allclose(draws[..., 0].mean(axis=0), t[:, 0], atol=0.1)
    probs = special.softmax(t[:, 4:7], axis=1)
    np.testing.assert_allclose((draws[..., 2] == 1).mean(axis=0), probs[:, 1], atol=0.02)
    # Columns are independent, and so are examples.
    np.testing.assert_allclose(np.corrcoef(draws[:, 0].T)[0, 1:], 0, atol=0.05)
    np.testing.assert_allclose(np.corrcoef(draws[..., 0].T)[0, 1:], 0, atol=0.05)


def test_a_list_of_columns_is_numbered():
    layer = Columns([Normal(2), Poisson()])
    assert list(layer.columns) == ["0", "1"]
    with pytest.raises(ValueError, match="y, column '1': got values from -1 to -1"):
        layer.check_values(np.array([[0.0, 0.0, -1.0]]), "y")


def test_columns_keep_their_order_in_a_file_whose_names_are_sorted(rng):
    layer = Columns({"z": Normal(), "a": Poisson(), "class_name": Normal(2)}, name="columns")
    written = json.loads(json.dumps(layer.get_config(), sort_keys=True))
    rebuilt = Columns.from_config(written)
    assert list(rebuilt.columns) == ["z", "a", "class_name"]
    assert [p.name for p in rebuilt.free] == [p.name for p in layer.free]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1.7, 0.5, 2.0], "x, column 'visits': got values from 0.5 to 0.5, outside the support"),
        ([1.7, 1.0, 3.0], "x, column 'colour': got values from 3 to 3, outside the support"),
        ([NAN, 1.0, 2.0], "x, column 'height': got NaN or infinite"),
        ([1.7, 1.0], r"x: got shape \(1, 2\), wanted \(N, 3\), because Columns has event_shape"),
    ],
)
def test_columns_name_the_column_that_is_wrong(row, message):
    with pytest.raises(ValueError, match=message):
        table().check_values(np.array([row]))


# What is missing.

GAPS = {
    "Normal": (lambda: Normal(4), [0.3, -1.0, 2.0, 0.1]),
    "Poisson": (lambda: Poisson(4), [0, 3, 1, 7]),
    "Categorical": (lambda: Categorical(4, num_classes=3), [0, 2, 1, 1]),
    "Beta": (lambda: likelihoods.Beta(4), [0.1, 0.5, 0.99, 0.3]),
    "Gamma": (lambda: likelihoods.Gamma(4), [0.1, 0.5, 9.0, 0.3]),
    "StudentT": (lambda: StudentT(4), [0.3, -1.0, 2.0, 0.1]),
    "DiscretizedLogistic": (lambda: DiscretizedLogistic(4), [0, 255, 77, 1]),
    "ZeroInflated": (lambda: ZeroInflated(NegativeBinomial(4)), [0, 3, 0, 7]),
    "MixtureOf": (lambda: MixtureOf(Normal(), 3, event_shape=4), [0.3, -1.0, 2.0, 0.1]),
    "OneHotCategorical": (lambda: OneHotCategorical((4, 2)), np.eye(2)[[0, 1, 1, 0]]),
    "Columns": (
        lambda: Columns([Normal(), Poisson(), Categorical(num_classes=3), Ordinal(num_classes=4)]),
        [0.3, 2, 1, 3],
    ),
}


def entries_of(parameters, kept):
    """The unconstrained numbers of some of the entries, of parameters `[entries, ...]`."""
    return np.concatenate([piece[kept].ravel() for piece in parameters])


@pytest.mark.parametrize("name", [name for name in GAPS if name != "Columns"])
def test_masked_is_the_likelihood_of_the_observed_entries_alone(name, rng):
    make, values = GAPS[name]
    layer, x = Masked(make()), np.array([values], np.float32)
    pieces = [rng.normal(size=parameter.shape) for parameter in layer.free]
    params = tf.constant([entries_of(pieces, [0, 1, 2, 3])], tf.float32)
    x[0, [1, 3]] = NAN
    layer.check_values(x)
    log_prob, gradient = log_prob_and_gradient(layer, params, x)

    component = layer.component
    config = component.get_config()
    if name == "MixtureOf":
        alone = MixtureOf(Normal(), 3, event_shape=2)
    elif name == "ZeroInflated":
        alone = ZeroInflated(NegativeBinomial(2))
    else:
        shape = [2, *component.event_shape[1:]]
        alone = type(component).from_config(config | {"event_shape": shape})
    short = tf.constant([entries_of(pieces, [0, 2])], tf.float32)
    expected, expected_gradient = log_prob_and_gradient(alone, short, x[:, [0, 2]])
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)

    split = np.cumsum([piece.size for piece in pieces])[:-1]
    of_entries = [
        part.reshape(piece.shape)
        for part, piece in zip(np.split(gradient[0], split), pieces, strict=True)
    ]
    np.testing.assert_array_equal(entries_of(of_entries, [1, 3]), 0.0)
    np.testing.assert_allclose(
        entries_of(of_entries, [0, 2]), expected_gradient[0], rtol=1e-5, atol=1e-6
    )


def test_masked_columns_are_the_likelihood_of_the_columns_that_are_there(rng):
    layer = Masked(table())
    t = rng.normal(size=(1, 7)).astype(np.float32)
    params = tf.constant(t)
    full = np.array([[0.4, 3.0, 2.0]], np.float32)
    each = [
        stats.norm.logpdf(0.4, t[0, 0], softplus(t[0, 1])),
        stats.nbinom.logpmf(
            3, 1 / softplus(t[0, 3]), 1 / (1 + softplus(t[0, 3]) * np.exp(t[0, 2]))
        ),
        special.log_softmax(t[0, 4:])[2],
    ]
    columns = [[0, 1], [2, 3], [4, 5, 6]]
    for there in itertools.product([False, True], repeat=3):
        x = np.where(there, full, NAN).astype(np.float32)
        layer.check_values(x)
        log_prob, gradient = log_prob_and_gradient(layer, params, x)
        np.testing.assert_allclose(log_prob, [np.dot(there, each)], rtol=1e-4, atol=1e-7)
        for observed, numbers in zip(there, columns, strict=True):
            gradients = gradient.numpy()[0, numbers]
            assert gradients.all() if observed else not gradients.any()


def test_a_masked_mixture_of_vectors_is_the_mixture_of_their_margins(rng):
    layer = Masked(MixtureOf(Normal(3), 2))
    logits, loc, scale = rng.normal(size=2), rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    params = tf.constant([[*logits, *loc.ravel(), *scale.ravel()]], tf.float32)
    x = np.array([[0.5, NAN, -0.3]], np.float32)
    margin = stats.norm.logpdf(x[:, [0, 2]], loc[:, [0, 2]], softplus(scale[:, [0, 2]])).sum(1)
    expected = special.logsumexp(special.log_softmax(logits) + margin)
    layer.check_values(x)
    log_prob, gradient = log_prob_and_gradient(layer, params, x)
    np.testing.assert_allclose(log_prob, [expected], rtol=1e-5)
    of_loc, of_scale = gradient.numpy()[0, 2:].reshape(2, 2, 3)
    assert not of_loc[:, 1].any()
    assert not of_scale[:, 1].any()
    assert of_loc[:, [0, 2]].all()
    nothing = np.full((1, 3), NAN, np.float32)
    log_prob, gradient = log_prob_and_gradient(layer, params, nothing)
    np.testing.assert_allclose(log_prob, [0], atol=1e-6)
    np.testing.assert_allclose(gradient, np.zeros((1, 14)), atol=1e-6)


def test_masked_columns_of_classes_inside_a_mixture(rng):
    layer = Masked(MixtureOf(table(), 2))
    x = np.array([[NAN, 2.0, NAN], [0.5, NAN, 1.0]], np.float32)
    layer.check_values(x)
    log_prob, gradient = log_prob_and_gradient(layer, params_of(layer, rng, 2), x)
    assert np.isfinite(log_prob).all()
    assert np.isfinite(gradient).all()
    value = tf.convert_to_tensor(layer(params_of(layer, rng, 2)))
    layer.check_values(value.numpy())


@pytest.mark.parametrize("name", GAPS)
def test_masked_of_complete_data_is_the_component(name, rng):
    make, values = GAPS[name]
    layer = Masked(make())
    params, x = params_of(layer, rng, 2), np.array([values, values], np.float32)
    expected, expected_gradient = log_prob_and_gradient(layer.component, params, x)
    log_prob, gradient = log_prob_and_gradient(layer, params, x)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)
    np.testing.assert_array_equal(
        tf.convert_to_tensor(layer(params)),
        tf.cast(tf.convert_to_tensor(layer.component(params)), tf.float32),
    )


@pytest.mark.parametrize("name", GAPS)
def test_where_nothing_is_there_nothing_is_learned(name, rng):
    make, values = GAPS[name]
    layer = Masked(make())
    x = np.full((2, *np.shape(values)), NAN, np.float32)
    layer.check_values(x)
    # Parameters far out, where densities at a careless stand-in would be infinite.
    log_prob, gradient = log_prob_and_gradient(layer, 5 * params_of(layer, rng, 2), x)
    np.testing.assert_array_equal(log_prob, [0, 0])
    np.testing.assert_array_equal(gradient, tf.zeros_like(gradient))


@pytest.mark.parametrize(
    ("layer", "row", "message"),
    [
        (Masked(Normal(2)), [NAN, math.inf], "x: got NaN or infinite"),
        (Masked(Poisson(2)), [NAN, 0.5], "x: got values from .*outside the support of Poisson"),
        (Masked(Categorical(2, num_classes=3)), [3, NAN], "outside the support of Categorical"),
        (Masked(OneHotCategorical(2)), [0, NAN], "of which a part is NaN, wanted each whole or"),
        (
            Masked(likelihoods.Likelihood("MultivariateNormalTriL", 2)),
            [0, NAN],
            "got events of Likelihood .*of which a part is NaN",
        ),
        (Masked(Columns([Normal(), Poisson()])), [NAN, -1], "x, column '1': got values from"),
        (Masked(Columns([Normal(), Poisson()])), [math.inf, NAN], "x, column '0': got NaN or inf"),
        (Masked(Columns([OneHotCategorical(2)])), [0, NAN], "column '0': got events .* a part"),
        (Masked(MixtureOf(Poisson(2), 2)), [NAN, 0.5], "outside the support of Poisson"),
        (Masked(MixtureOf(Poisson(), 2, 2)), [NAN, 0.5], "outside the support of Poisson"),
        (Masked(ZeroInflated(Poisson(2))), [NAN, -1.0], "outside the support of Poisson"),
        (Masked(Normal(2)), [NAN], r"x: got shape \(2, 1\), wanted \(N, 2\)"),
    ],
)
def test_masked_refuses_what_is_there_and_wrong(layer, row, message):
    good = [NAN] * len(row)
    with pytest.raises(ValueError, match=message):
        layer.check_values(np.array([good, row]))


def test_masked_takes_whole_numbers():
    Masked(Poisson(2)).check_values(np.array([[0, 3]]))
    Masked(Categorical(2, num_classes=3)).check_values(np.array([[0, 2]], np.uint8))


def test_masked_components_of_a_mixture(rng):
    """The same as the mixture masked."""
    inside, outside = MixtureOf(Masked(Normal(3)), 2), Masked(MixtureOf(Normal(3), 2))
    params, x = params_of(inside, rng, 1), np.array([[0.5, NAN, 1.0]], np.float32)
    inside.check_values(x)
    np.testing.assert_allclose(inside(params).log_prob(x), outside(params).log_prob(x))


def test_several_draws_pass_through():
    layer = Masked(Normal(2), convert_to_tensor_fn="sample", num_samples=3)
    assert layer.num_samples == 3
    assert tf.convert_to_tensor(layer(tf.zeros([5, 4]))).shape == (3, 5, 2)
    layer = MixtureOf(Normal(2, convert_to_tensor_fn="sample", num_samples=3), 2)
    assert layer.num_samples == 3
    layer = Columns([Normal(2), Poisson()], num_samples=3)
    assert tf.convert_to_tensor(layer(tf.zeros([5, 5]))).shape == (3, 5, 3)


# In models.

COMPOSITES = {
    "MixtureOf": lambda: MixtureOf(DiscretizedLogistic(num_levels=8), 3, event_shape=3),
    "MixtureOf vectors": lambda: MixtureOf(Normal(3), 2),
    "ZeroInflated": lambda: ZeroInflated(NegativeBinomial(3)),
    "Columns": table,
    "Masked": lambda: Masked(Ordinal(3, num_classes=4)),
    "Masked Columns": lambda: Masked(table()),
    "Masked MixtureOf": lambda: Masked(MixtureOf(Poisson(3), 2)),
    "Masked ZeroInflated": lambda: Masked(ZeroInflated(Poisson(3))),
}


def data(name, layer, rng, size=32):
    x = layer(0.3 * params_of(layer, rng, size)).sample(seed=[1, 2])
    x = tf.cast(x, layer.dtype).numpy()
    if name.startswith("Masked"):
        x[rng.uniform(size=x.shape) < 0.3] = NAN
    return x


def vae_of(layer, num_samples=None, run_eagerly=False):
    encoder = keras.Sequential(
        [
            networks.FillMissing(),
            keras.layers.Dense(4),
            posteriors.DiagonalNormal(2, num_samples=num_samples),
        ]
    )
    decoder = keras.Sequential([keras.layers.Dense(layer.params_size), layer])
    vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
    vae.compile(keras.optimizers.Adam(0.01), run_eagerly=run_eagerly)
    return vae


COMPILED = ["MixtureOf", "Masked Columns"]  # For the files of the others see test_layers.py.


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in COMPOSITES if name not in COMPILED])
def test_a_vae_takes_steps_with_it(name, rng):
    layer = COMPOSITES[name]()
    x = data(name, layer, rng)
    vae = vae_of(layer, run_eagerly=True)
    vae.build((None, 3))
    before = [weight.numpy() for weight in vae.trainable_weights]
    assert np.isfinite(vae.fit(x, epochs=1, batch_size=16, verbose=0).history["loss"]).all()
    for old, new in zip(before, vae.trainable_weights, strict=True):
        assert np.isfinite(new).all()
        assert (old != new.numpy()).any()
    check = check_elbo(vae, x)
    assert check.differences == (), check
    prediction = vae.predict(x, verbose=0)
    assert prediction.shape == x.shape
    assert np.isfinite(prediction).all()


@pytest.mark.long
@pytest.mark.parametrize("name", COMPILED)
def test_a_vae_trains_with_it_and_survives_a_file(name, rng, tmp_path):
    layer = COMPOSITES[name]()
    x = data(name, layer, rng)
    vae = vae_of(layer)
    history = vae.fit(x, epochs=3, batch_size=16, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    check = check_elbo(vae, x)
    assert check.differences == (), check
    elbo = vae.elbo(x, num_samples=2, seed=1)
    assert np.isfinite(elbo).all()
    prediction = vae.predict(x, verbose=0)
    assert prediction.shape == x.shape
    assert np.isfinite(prediction).all()
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(loaded.elbo(x, num_samples=2, seed=1), elbo)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), prediction)


@pytest.mark.parametrize("name", ["Masked Columns"])
def test_several_draws_of_z(name, rng):
    layer = COMPOSITES[name]()
    x = data(name, layer, rng, 5)
    vae = vae_of(layer, num_samples=4, run_eagerly=True)
    assert np.isfinite(vae.fit(x, epochs=1, verbose=0).history["loss"]).all()
    assert vae.log_weights(x, num_samples=3, seed=1).shape == (3, 5)


@pytest.mark.parametrize("name", COMPOSITES)
def test_parameters_with_several_batch_axes(name, rng):
    layer = COMPOSITES[name]()
    params = params_of(layer, rng, 6)
    x = data(name, layer, rng, 2)
    rebatched = blocks.rebatch(layer(params), [3, 2], 2)
    assert rebatched.event_shape == layer.event_shape
    each = np.stack([layer(part).log_prob(x) for part in tf.split(params, 3)])
    np.testing.assert_allclose(rebatched.log_prob(x), each, rtol=1e-5)
    assert rebatched.sample().shape == (3, 2, 3)


@pytest.mark.long
@pytest.mark.parametrize("name", ["MixtureOf", "ZeroInflated", "Masked Columns"])
def test_gradients_compiled_by_xla(name, rng):
    layer = COMPOSITES[name]()
    params, x = params_of(layer, rng), data(name, layer, rng, 4)
    compiled = tf.function(log_prob_and_gradient, jit_compile=True)
    for actual, expected in zip(
        compiled(layer, params, x), log_prob_and_gradient(layer, params, x), strict=True
    ):
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COMPOSITES)
def test_double_precision(name, rng):
    keras.mixed_precision.set_global_policy("float64")
    layer = COMPOSITES[name]()
    x = data(name, layer, rng, 4)
    assert x.dtype == np.float64
    log_prob, gradient = log_prob_and_gradient(layer, params_of(layer, rng), x)
    assert log_prob.dtype == gradient.dtype == "float64"
    assert np.isfinite(gradient).all()
    params = params_of(layer, rng)
    low = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    np.testing.assert_array_equal(low(params).log_prob(x), layer(params).log_prob(x))
    assert tf.convert_to_tensor(layer(params)).dtype == "float64"


def test_a_saved_model(rng, tmp_path):
    layer = Masked(Columns([Normal(), MixtureOf(Poisson(), 2), Categorical(num_classes=3)]))
    inputs = keras.Input([4])
    model = keras.Model(inputs, layer(keras.layers.Dense(layer.params_size)(inputs)))
    features, x = rng.normal(size=(3, 4)).astype("float32"), [[0.5, NAN, 1.0]] * 3
    expected = model(features).log_prob(x)
    model.save(tmp_path / "model", save_format="tf")
    loaded = keras.models.load_model(tmp_path / "model")
    np.testing.assert_allclose(loaded(features).log_prob(x), expected, rtol=1e-6)


def test_one_precision_for_all():
    assert Masked(Normal(2, dtype="float64")).dtype == "float64"
    assert Columns([Normal(dtype="float64")]).dtype == "float64"
    with pytest.raises(ValueError, match=r"dtype: got .*wanted one precision for all"):
        Masked(Normal(2), dtype="float64")
    with pytest.raises(ValueError, match=r"dtype: got .*wanted one precision for all"):
        Columns([Normal(2), Poisson(dtype="float64")])


# Errors.

ERRORS = {
    "MixtureOf, no block": (
        lambda: MixtureOf(tfp.distributions.Normal(0.0, 1.0), 3),
        TypeError,
        "component: got .*wanted a block such as likelihoods.Normal",
    ),
    "MixtureOf, a class": (lambda: MixtureOf(Normal, 3), TypeError, "component: got <class"),
    "Masked, a prior": (
        lambda: Masked(priors.Normal(2)),
        TypeError,
        "component: got .*a prior, wanted a block without weights",
    ),
    "MixtureOf, no components": (
        lambda: MixtureOf(Normal(), 0),
        ValueError,
        "num_components: got 0, wanted a positive integer",
    ),
    "MixtureOf, half a component": (
        lambda: MixtureOf(Normal(), 2.5),
        TypeError,
        "num_components: got 2.5",
    ),
    "MixtureOf, nothing free": (
        lambda: MixtureOf(Normal(loc=0.0, scale=1.0), 3),
        ValueError,
        "component: got Normal with all of its parameters fixed",
    ),
    "MixtureOf, bad event_shape": (
        lambda: MixtureOf(Normal(), 3, event_shape=0),
        ValueError,
        "event_shape: got 0",
    ),
    "MixtureOf, wrong size": (
        lambda: MixtureOf(Normal(2), 3)(tf.zeros([1, 5])),
        ValueError,
        r"wanted \(\.\.\., 15\) for MixtureOf Normal: mixture_logits 3 \+ loc 6 \+ scale 6",
    ),
    "ZeroInflated, a density": (
        lambda: ZeroInflated(Normal(3)),
        ValueError,
        "component: got Normal, whose values are no counts.*a density is none",
    ),
    "ZeroInflated, a mixture of densities": (
        lambda: ZeroInflated(MixtureOf(likelihoods.Gamma(), 2, 3)),
        ValueError,
        "component: got MixtureOf Gamma, whose values are no counts",
    ),
    "ZeroInflated, vectors": (
        lambda: ZeroInflated(likelihoods.Multinomial(3, total_count=4)),
        ValueError,
        "component: got Multinomial, wanted independent entries",
    ),
    "ZeroInflated, masked": (
        lambda: ZeroInflated(Masked(Poisson(3))),
        ValueError,
        r"component: got Masked Poisson, wanted Masked outermost: Masked\(ZeroInflated",
    ),
    "ZeroInflated, masked inside": (
        lambda: ZeroInflated(MixtureOf(Masked(Poisson()), 2, 3)),
        ValueError,
        "component: got MixtureOf Masked Poisson, wanted Masked outermost",
    ),
    "Columns, none": (lambda: Columns({}), ValueError, "columns: got none"),
    "Columns, no block": (
        lambda: Columns({"a": Normal(), "b": "Poisson"}),
        TypeError,
        "columns: 'b': got 'Poisson', wanted a block",
    ),
    "Columns, one block": (lambda: Columns(Normal()), TypeError, "columns: got .*wanted a dict"),
    "Columns, names of named columns": (
        lambda: Columns({"a": Normal()}, names=["b"]),
        ValueError,
        "names: got .* beside named columns",
    ),
    "Columns, too few names": (
        lambda: Columns([Normal(), Normal()], names=["a"]),
        ValueError,
        r"names: got \['a'\], wanted 2 different strings",
    ),
    "Columns, a name twice": (
        lambda: Columns([Normal(), Normal()], names=["a", "a"]),
        ValueError,
        "names: got .*wanted 2 different strings",
    ),
    "Columns, a number as name": (
        lambda: Columns({1: Normal()}),
        ValueError,
        r"names: got \[1\], wanted 1 different strings",
    ),
    "Columns, several draws of one": (
        lambda: Columns([Normal(convert_to_tensor_fn="sample", num_samples=2)]),
        ValueError,
        "columns: '0': got a block with num_samples=2",
    ),
    "Ordinal of one grade": (
        lambda: Ordinal(2, num_classes=1),
        ValueError,
        "num_classes: got 1, wanted at least 2",
    ),
    "one grey level": (
        lambda: DiscretizedLogistic(2, num_levels=1),
        ValueError,
        "num_levels: got 1, wanted at least 2",
    ),
    "no whole number of grey levels": (
        lambda: DiscretizedLogistic(2, num_levels=2.5),
        TypeError,
        "num_levels: got 2.5",
    ),
    "negative dispersion": (
        lambda: NegativeBinomial(2, dispersion=-1.0),
        ValueError,
        "dispersion has to be positive",
    ),
    "negative mean": (lambda: NegativeBinomial(2, mean=-1.0), ValueError, "mean has to be positiv"),
    "negative scale of grey levels": (
        lambda: DiscretizedLogistic(2, scale=-1.0),
        ValueError,
        "scale has to be positive",
    ),
    "unknown parameter": (
        lambda: NegativeBinomial(2, total_count=3.0),
        TypeError,
        r"total_count: not a parameter of .*NegativeBinomial \(dispersion, mean\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    action, error, message = ERRORS[name]
    with pytest.raises(error, match="(?s)" + message):
        action()


@pytest.mark.parametrize("block", ["Multinomial", "DirichletMultinomial"])
def test_counts_that_do_not_add_up(block):
    layer = getattr(likelihoods, block)(3, total_count=4)
    layer.check_values(np.array([[2.0, 1.0, 1.0]]))
    for bad in ([2.0, 3.0, 4.0], [1.0, 1.0, 1.0], [1.5, 1.5, 1.0]):
        with pytest.raises(ValueError, match=r"x: got values from .*outside the support"):
            layer.check_values(np.array([bad]))


def test_the_density_of_beta(rng):
    t, x = rng.normal(size=(4, 4)), rng.uniform(0.05, 0.95, size=(4, 2))
    expected = stats.beta.logpdf(x, softplus(t[:, :2]), softplus(t[:, 2:])).sum(axis=1)
    np.testing.assert_allclose(likelihoods.Beta(2)(t).log_prob(x), expected, rtol=1e-4)


def test_beta_refuses_the_ends():
    layer = likelihoods.Beta(2)
    for end in (0.0, 1.0, -0.5, 1.5):
        with pytest.raises(ValueError, match="outside the support of Beta"):
            layer.check_values(np.array([[0.5, end]]))
