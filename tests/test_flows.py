"""Flows: maps and their inverses, densities, and what is trained with them."""

import json
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import stats

from tfpvae import (
    VAE,
    BayesianRegression,
    LocalVAE,
    diagnose,
    flows,
    likelihoods,
    local_posterior,
    objectives,
    posteriors,
    priors,
    regularizers,
)
from tfpvae.noise import fixed

tfd = tfp.distributions

FLOWS = {
    "Planar": lambda: flows.Planar(3),
    "Planar, own": lambda: flows.Planar(2, amortized=False),
    "Radial": lambda: flows.Radial(3),
    "Sylvester": lambda: flows.Sylvester(2),
    "Sylvester, one column": lambda: flows.Sylvester(3, num_ortho=1, amortized=False),
    "InverseAutoregressive": lambda: flows.InverseAutoregressive(2, (12,), context_size=2),
    "MaskedAutoregressive": lambda: flows.MaskedAutoregressive(2, (12, 12), "tanh"),
    "RealNVP": lambda: flows.RealNVP(3, (12,), context_size=2),
    "NeuralSpline": lambda: flows.NeuralSpline(2, (12,), num_bins=4),
}
KINDS = {name.split(",")[0] for name in FLOWS}


def moved(layer):
    """The layer with other weights than the first, which make a flow the identity."""
    for i, weight in enumerate(layer.trainable_weights):
        scale = 0.2 if "kernel" in weight.name or "bias" in weight.name else 2.0
        normal = tf.random.stateless_normal(weight.shape, [i, 7], dtype=weight.dtype)
        weight.assign_add(scale * normal)
    return layer


@cache
def layer_of(name, size=2, dtype="float32"):
    return moved(posteriors.Flow(size, FLOWS[name](), dtype=dtype))


def params_of(layer, rows=None, seed=0):
    """Unconstrained numbers: small ones for the base, larger ones for the flow."""
    lead = () if rows is None else (rows,)
    rng = np.random.default_rng(seed)
    base = layer.base.params_size
    numbers = np.concatenate(
        [
            rng.normal(size=(*lead, base), scale=0.3),
            2 * rng.normal(size=(*lead, layer.params_size - base)),
        ],
        axis=-1,
    )
    return tf.constant(numbers, layer.dtype)


@pytest.fixture(params=FLOWS)
def name(request):
    return request.param


def test_every_flow_is_here():
    made = {
        title
        for title, value in vars(flows).items()
        if isinstance(value, type) and issubclass(value, flows.Flow) and title[0] != "_"
    }
    assert made - {"Flow"} == KINDS


# The maps.


@pytest.mark.parametrize("size", [2, 5])
def test_inverse(name, size, rng):
    layer = layer_of(name, size)
    params = params_of(layer, rows=6)
    x = rng.normal(size=(4, 6, size)).astype("float32")
    y = layer.new(params).bijector.forward(x)
    assert np.abs(y - x).max() > 0.05
    np.testing.assert_allclose(layer.new(params).bijector.inverse(y.numpy()), x, atol=1e-5)
    # And the other way round, from values that may be no draws.
    back = layer.new(params).bijector.inverse(x)
    np.testing.assert_allclose(layer.new(params).bijector.forward(back.numpy()), x, atol=1e-5)


@pytest.mark.parametrize("size", [2, 5])
def test_log_determinant_is_that_of_the_jacobian(name, size, rng):
    layer = layer_of(name, size, "float64")
    params = params_of(layer, rows=6)
    x = tf.constant(rng.normal(size=(6, size)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer.new(params).bijector.forward(x)
    expected = np.linalg.slogdet(tape.batch_jacobian(y, x))[1]
    forward = layer.new(params).bijector.forward_log_det_jacobian(x, 1)
    np.testing.assert_allclose(forward, expected, rtol=1e-9, atol=1e-9)
    inverse = layer.new(params).bijector.inverse_log_det_jacobian(y.numpy(), 1)
    np.testing.assert_allclose(inverse, -expected, rtol=1e-8, atol=1e-8)


@pytest.mark.long
def test_gradient_of_the_inverse(name, rng):
    """By the inverse function theorem, by the point and by what the map is made of."""
    layer = layer_of(name, 2, "float64")
    params = params_of(layer, rows=3)
    y = tf.constant(rng.normal(size=(3, 2)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([params, y])
        x = layer.new(params).bijector.inverse(y)
        again = layer.new(params).bijector.forward(x)  # is y, whatever the parameters
        mixed = again[:, 0] + 2 * again[:, 1]
    np.testing.assert_allclose(tape.batch_jacobian(again, y), [np.eye(2)] * 3, atol=1e-8)
    sources = [params, *layer.trainable_weights]
    for gradient in tape.gradient(mixed, sources, unconnected_gradients="zero"):
        np.testing.assert_allclose(gradient, np.zeros(gradient.shape), atol=1e-7)
    assert any(np.abs(g).max() > 1e-3 for g in tape.gradient(x, sources) if g is not None)


def test_it_starts_as_the_identity(name, rng):
    layer = posteriors.Flow(3, FLOWS[name]())
    x = rng.normal(size=(5, 3)).astype("float32")
    np.testing.assert_allclose(layer.flow(x), x, atol=1e-5)


def test_layers_that_start_alike_become_different():
    """Their first gradients differ, though all their numbers are zero."""
    for flow in (flows.Planar(2), flows.Radial(2), flows.Sylvester(2)):
        layer = posteriors.Flow(2, flow)
        params = tf.zeros([layer.params_size])
        with tf.GradientTape() as tape:
            tape.watch(params)
            log_prob = layer.new(params).log_prob([[1.0, 0.5], [-0.3, 2.0]])
        gradient = tape.gradient(log_prob, params)
        for part, piece in zip(layer.free, layer._split(gradient), strict=True):
            if part.name in ("flow_u", "flow_beta", "flow_triangles"):
                assert np.abs(piece[0] - piece[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["MaskedAutoregressive", "InverseAutoregressive"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_autoregressive_layers_are_triangular(name, size, rng):
    layer = layer_of(name, size, "float64")
    context = tf.constant(rng.normal(size=(6, 2)))
    parameters = {"context": context} if layer.flow.context_size else {}
    x = tf.constant(rng.normal(size=(6, size)))
    for index in range(2):
        with tf.GradientTape() as tape:
            tape.watch([x, context])
            y = layer.flow.layer(index, parameters).forward(x)
        jacobian = tape.batch_jacobian(y, x).numpy()
        if index == 1:
            jacobian = jacobian[:, ::-1, ::-1]
        np.testing.assert_array_equal(np.triu(jacobian, 1), np.zeros_like(jacobian))
        rows, columns = np.tril_indices(size, -1)
        below = jacobian[:, rows, columns]
        assert (np.abs(below) > 1e-6).all()
    if name == "InverseAutoregressive":  # Every dimension reads the context.
        with tf.GradientTape() as tape:
            tape.watch(context)
            y = layer.flow.layer(0, parameters).forward(x)
        assert (np.abs(tape.batch_jacobian(y, context)) > 1e-6).all()


def test_coupling_layers_change_one_half_after_the_other(rng):
    layer = layer_of("RealNVP", 5)
    x = rng.normal(size=(6, 5)).astype("float32")
    parameters = {"context": tf.zeros([6, 2])}
    changed = [np.any(layer.flow.layer(i, parameters).forward(x) != x, axis=0) for i in range(3)]
    np.testing.assert_array_equal(changed[0], [False, False, True, True, True])
    np.testing.assert_array_equal(changed[1], [True, True, False, False, False])
    np.testing.assert_array_equal(changed[2], changed[0])


def test_splines_are_the_identity_outside(rng):
    layer = moved(posteriors.Flow(2, flows.NeuralSpline(2, (8,), bound=1.5)))
    x = np.float32([[1.6, -9.0], [-1.6, 30.0]])
    np.testing.assert_array_equal(layer.flow(x), x)
    inside = np.float32([[0.3, -0.8]])
    assert np.abs(layer.flow(inside) - inside).max() > 0.01


def test_root_of_the_residual_layers():
    """Where s + k tanh(s) is as flat as it may be, steep, and far out."""
    rng = np.random.default_rng(0)
    k = np.concatenate([np.full(500, -0.99), rng.uniform(-0.99, 1, 500), np.full(500, 100.0)])
    for scale in (0.01, 1.0, 50.0):
        s = scale * rng.normal(size=1500)
        found = flows._monotone_root(tf.constant(k), tf.constant(s + k * np.tanh(s)))
        np.testing.assert_allclose(found, s, rtol=1e-9, atol=1e-9)


# The densities.


def test_density_integrates_to_one(name):
    layer = layer_of(name)
    q = layer.new(params_of(layer))
    axis = np.linspace(-12, 12, 401)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).astype("float32")
    total = np.sum(q.prob(grid), dtype=np.float64) * (axis[1] - axis[0]) ** 2
    assert total == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("kind", ["MaskedAutoregressive", "NeuralSpline", "Planar"])
def test_density_of_a_prior_integrates_to_one(kind):
    flow = FLOWS[kind]()
    prior = moved(priors.Flow(2, flow))
    axis = np.linspace(-12, 12, 401)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).astype("float32")
    p = prior().prob(grid)
    assert np.sum(p, dtype=np.float64) * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=2e-3)
    normal = stats.multivariate_normal(np.zeros(2)).pdf(grid)
    assert np.abs(p - normal).max() > 0.01


def test_draws_have_the_density(name):
    """Their share of a half plane is the integral over it."""
    layer = layer_of(name)
    q = layer.new(params_of(layer))
    axis = np.linspace(-12, 12, 401)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).astype("float32")
    p = q.prob(grid).numpy().astype(np.float64)
    p /= p.sum()
    draws = q.sample(40_000, seed=[0, 1]).numpy()
    direction = np.array([0.6, -0.8])
    share, expected = np.mean(draws @ direction > 0.2), p[grid @ direction > 0.2].sum()
    assert share == pytest.approx(expected, abs=4 * 0.5 / 200 + 0.003)
    # The moments that it tells are estimates from 256 draws.
    mean = np.sum(p[..., None] * grid, axis=(0, 1))
    deviation = np.sqrt(np.sum(p[..., None] * (grid - mean) ** 2, axis=(0, 1)))
    assert (np.abs(q.mean() - mean) < 4.5 * deviation / 16).all()
    np.testing.assert_allclose(q.stddev(), deviation, rtol=0.35)
    np.testing.assert_array_equal(q.mean(), q.mean())


def test_numbers_of_a_planar_layer(rng):
    """Against the paper's formulas in numpy."""
    layer = layer_of("Planar")
    z = rng.normal(size=(4, 2))
    bijector = layer.flow.layer(1, layer_parameters(layer, rows=4))
    u, w, b = (
        np.asarray(v, np.float64)
        for v in (bijector._a[..., 0], bijector._b[..., 0, :], bijector._bias[..., 0])
    )
    assert (np.sum(u * w, -1) > -1).all()
    a = np.tanh(np.sum(w * z, -1) + b)
    np.testing.assert_allclose(bijector.forward(np.float32(z)), z + u * a[:, None], rtol=1e-5)
    log_det = np.log(np.abs(1 + (1 - a**2) * np.sum(u * w, -1)))
    found = bijector.forward_log_det_jacobian(np.float32(z), 1)
    np.testing.assert_allclose(found, log_det, rtol=1e-4, atol=1e-5)


def test_sylvester_columns_are_orthonormal():
    layer = layer_of("Sylvester", 5)
    bijector = layer.flow.layer(0, layer_parameters(layer))
    # A = Q R and B = R~ Q^T span the same space, and K = B A.
    a, b, k = (np.asarray(v, np.float64) for v in (bijector._a, bijector._b, bijector._k))
    np.testing.assert_allclose(b @ a, k, atol=1e-5)
    np.testing.assert_allclose(np.tril(k, -1), 0, atol=1e-6)
    gram = b @ b.T  # R~ R~^T
    inner = np.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1]
    q = np.linalg.solve(inner, b)
    np.testing.assert_allclose(q @ q.T, np.eye(len(q)), atol=1e-5)


def layer_parameters(layer, rows=None):
    params = params_of(layer, rows)
    pieces = zip(layer.free, layer._split(params), strict=True)
    return {p.name.removeprefix("flow_"): v for p, v in pieces if p.name.startswith("flow_")}


# What the blocks promise.


@pytest.mark.parametrize("name", sorted(KINDS))
def test_gradient_for_every_weight(name):
    model = keras.Sequential([keras.layers.Dense(layer_of(name).params_size), layer_of(name)])
    x = np.random.default_rng(1).normal(size=(8, 3)).astype("float32")
    for score in (lambda q, z: q.log_prob(z), lambda q, _: tf.convert_to_tensor(q) ** 2):
        with tf.GradientTape() as tape:
            q = model(x)
            loss = tf.reduce_sum(tf.reduce_sum(score(q, np.float32([0.3, -1.0])), -1))
        for weight, gradient in zip(
            model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True
        ):
            assert gradient is not None, weight.name
            assert np.isfinite(gradient).all()
            assert np.abs(gradient).max() > 0, weight.name


def test_config_is_json_and_makes_the_same_flow(name):
    layer = posteriors.Flow(2, FLOWS[name](), posteriors.FullRankNormal(2), name="q")
    config = json.loads(json.dumps(layer.get_config()))
    rebuilt = posteriors.Flow.from_config(config)
    assert rebuilt.get_config() == layer.get_config()
    assert rebuilt.params_size == layer.params_size
    for ours, theirs in zip(layer.weights, rebuilt.weights, strict=True):
        theirs.assign(ours)
    params = params_of(layer, rows=3)
    z = np.float32([0.3, -1.0])
    np.testing.assert_array_equal(rebuilt(params).log_prob(z), layer(params).log_prob(z))


def test_saving(name, tmp_path):
    layer = moved(posteriors.Flow(2, FLOWS[name]()))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(layer.params_size), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    x, z = np.random.default_rng(0).normal(size=(4, 3)), np.float32([0.3, -1.0])
    np.testing.assert_array_equal(loaded(x).log_prob(z), model(x).log_prob(z))
    assert len(loaded.weights) == len(model.weights)


QUICK = ("Planar", "InverseAutoregressive")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in FLOWS],
)
@pytest.mark.long
def test_xla(name):
    """Values of the map, their densities and those of others, with all gradients."""
    layer = layer_of(name)
    params, z = params_of(layer, rows=5), np.float32([0.3, -1.0])
    noise = tf.random.stateless_normal([3, 5, 2], [3, 4])

    def run(params):
        with tf.GradientTape() as tape:
            tape.watch(params)
            q = layer.new(params)
            draw = q.bijector.forward(noise)
            value = tf.reduce_mean(q.log_prob(draw)) + tf.reduce_mean(q.log_prob(z))
        return draw, value, *tape.gradient(value, [params, *layer.trainable_weights])

    compiled = tf.function(run, autograph=False, jit_compile=True)
    for one, other in zip(run(params), compiled(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


def test_mixed_precision(name):
    layer = layer_of(name)
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        other = posteriors.Flow(2, FLOWS[name]())
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for ours, theirs in zip(layer.weights, other.weights, strict=True):
        theirs.assign(ours)
    params, z = params_of(layer, rows=5), np.float32([0.3, -1.0])
    rounded = tf.cast(params, tf.bfloat16)
    log_prob = other(rounded).log_prob(z)
    assert log_prob.dtype == tf.float32
    exact = layer(tf.cast(rounded, tf.float32)).log_prob(z)
    np.testing.assert_array_equal(log_prob, exact)


def test_double_precision(name):
    double, single = layer_of(name, 2, "float64"), layer_of(name)
    for ours, theirs in zip(single.weights, double.weights, strict=True):
        theirs.assign(tf.cast(ours, tf.float64))
    params, z = params_of(double, rows=5), np.float64([0.3, -1.0])
    log_prob = double(params).log_prob(z)
    assert log_prob.dtype == tf.float64
    other = single(tf.cast(params, tf.float32)).log_prob(z.astype("float32"))
    np.testing.assert_allclose(log_prob, other, rtol=1e-4, atol=1e-4)
    # It is not single precision in disguise.
    back = double.new(params).bijector
    np.testing.assert_allclose(
        back.forward(back.inverse(z + np.zeros((5, 2))).numpy()), [z] * 5, atol=1e-12
    )


def test_a_flow_of_a_flow():
    layer = posteriors.Flow(2, flows.Planar(2), posteriors.Flow(2, FLOWS["RealNVP"]()))
    assert layer.params_size == 4 + 2 + 2 * 5
    moved(layer)
    assert len(layer.trainable_weights) == 3 * 4
    params = params_of(layer, rows=3)
    z = layer.new(params).sample(seed=[0, 1])
    with tf.GradientTape() as tape:
        tape.watch(params)
        q = layer.new(params)
        log_prob = q.log_prob(q.sample(seed=[0, 1]))
    np.testing.assert_allclose(log_prob, layer.new(params).log_prob(z.numpy()), rtol=1e-4)
    assert np.isfinite(tape.gradient(log_prob, params)).all()


def test_one_description_serves_several_blocks():
    flow = flows.RealNVP(2, (4,))
    first, second = posteriors.Flow(2, flow), posteriors.Flow(3, flow)
    assert not flow.weights
    assert not {id(w) for w in first.weights} & {id(w) for w in second.weights}
    assert first.flow.size == 2
    assert second.flow.size == 3


def test_slices_of_a_batch():
    layer = layer_of("RealNVP")
    params, z = params_of(layer, rows=5), np.float32([0.3, -1.0])
    q = layer(params).tensor_distribution
    np.testing.assert_allclose(q[1:3].log_prob(z), q.log_prob(z)[1:3], rtol=1e-5)
    assert q[1:3].batch_shape == (2,)


def test_values_for_the_whole_batch(name):
    """Are the same as values for each of it."""
    layer = layer_of(name)
    params, z = params_of(layer, rows=3), np.float32([[0.3, -1.0], [2.0, 0.1]])
    expected = layer(params).log_prob(np.stack([z] * 3, axis=1))
    np.testing.assert_allclose(layer(params).log_prob(z[:, None]), expected, rtol=1e-5)
    np.testing.assert_allclose(layer(params).log_prob(z[0]), expected[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: flows.Planar(0), ValueError, "num_layers: got 0"),
        (lambda: flows.Radial(1.5), TypeError, "num_layers: got 1.5"),
        (lambda: flows.RealNVP(2, ()), ValueError, "hidden_units: got none"),
        (lambda: flows.RealNVP(2, (8, 0)), ValueError, "hidden_units: got 0"),
        (lambda: flows.RealNVP(2, 8), TypeError, "hidden_units: got 8"),
        (lambda: flows.RealNVP(2, (8,), "rulu"), ValueError, "rulu"),
        (lambda: flows.RealNVP(2, context_size=-1), ValueError, "context_size: got -1"),
        (lambda: flows.NeuralSpline(num_bins=1), ValueError, "num_bins: got 1"),
        (lambda: flows.NeuralSpline(bound=0.0), ValueError, "bound: got 0.0"),
        (lambda: flows.Sylvester(2, num_ortho=0), ValueError, "num_ortho: got 0"),
        (lambda: posteriors.Flow(2, flows.Sylvester(2, 3)), ValueError, "wanted at most 2"),
        (lambda: posteriors.Flow(1, flows.RealNVP()), ValueError, "size 1, wanted at least 2"),
        (lambda: posteriors.Flow((2, 2), flows.Planar(2)), ValueError, r"\(2, 2\), wanted \(D,\)"),
        (lambda: posteriors.Flow(2, "planar"), TypeError, "wanted one of tfpvae.flows"),
        (lambda: posteriors.Flow(2, flows.Planar), TypeError, "wanted one of tfpvae.flows"),
        (
            lambda: posteriors.Flow(2, flows.Planar(2), posteriors.DiagonalNormal(3)),
            ValueError,
            r"base: got one of event_shape \(3,\), wanted \(2,\)",
        ),
        (
            lambda: posteriors.Flow(2, flows.Planar(2), likelihoods.Bernoulli(2)),
            ValueError,
            "a flow on a discrete base",
        ),
        (
            lambda: posteriors.Flow(3, flows.Planar(2), likelihoods.OneHotCategorical(3)),
            ValueError,
            "a flow on a discrete base",
        ),
        (
            lambda: posteriors.Flow(
                3, flows.Planar(2), posteriors.RelaxedOneHotCategorical(3, temperature=0.5)
            ),
            ValueError,
            "lie on a surface",
        ),
        (lambda: posteriors.Flow(2, flows.Planar(2), 3), TypeError, "base: got 3"),
        (
            lambda: posteriors.Flow(2, flows.Planar(2), convert_to_tensor_fn="mode"),
            ValueError,
            "got 'mode'",
        ),
        (lambda: priors.Flow(2, 3), TypeError, "wanted one of tfpvae.flows"),
        (
            lambda: priors.Flow(2, flows.RealNVP(context_size=3)),
            ValueError,
            "context_size=3, wanted 0",
        ),
        (lambda: flows.RealNVP(hidden_units="ab"), TypeError, "hidden_units: got 'ab'"),
    ],
)
def test_errors(make, error, match):
    with pytest.raises(error, match=match):
        make()


# In models.


def small_vae(posterior, prior=None, seed=0):
    encoder = keras.Sequential([keras.layers.Dense(posterior.params_size), posterior])
    decoder = keras.Sequential([keras.layers.Dense(4), likelihoods.Bernoulli(4)])
    return VAE(prior or priors.StandardNormal(2), encoder, decoder, seed=seed)


X = np.float32(np.random.default_rng(0).integers(0, 2, size=(64, 4)))


@pytest.mark.long
def test_vae_with_flows_as_posterior_and_prior(tmp_path):
    keras.utils.set_random_seed(0)
    posterior = posteriors.Flow(2, flows.InverseAutoregressive(2, (8,), context_size=3))
    vae = small_vae(posterior, priors.Flow(2, flows.MaskedAutoregressive(2, (8,))))
    vae.compile("adam")
    vae.build(X.shape)
    before = [weight.numpy() for weight in vae.trainable_weights]
    assert len(before) == 2 + 2 + 2 * 2 * 4  # two dense layers, four networks
    history = vae.fit(X, epochs=5, batch_size=16, verbose=0).history
    assert vae._runs_programs()
    np.testing.assert_allclose(history["loss"], np.add(history["nll"], history["kl"]), rtol=1e-5)
    for old, new in zip(before, vae.trainable_weights, strict=True):
        assert not np.array_equal(old, new), new.name
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(loaded.log_weights(X, 3, seed=1), vae.log_weights(X, 3, seed=1))
    z = np.float32([[0.1, -0.5]])
    np.testing.assert_array_equal(loaded.prior().log_prob(z), vae.prior().log_prob(z))
    assert vae.predict(X[:3], verbose=0).shape == (3, 4)
    assert vae.reconstruct(X[:3], seed=0).shape == (3, 4)
    assert vae.sample(3, seed=0).shape == (3, 4)
    estimate = vae.log_marginal_likelihood(X[:3], 200, seed=0, verbose=0)
    elbo = vae.elbo(X[:3], 200, seed=1)
    assert np.isfinite(elbo).all()
    assert (estimate.estimate > elbo - 0.2).all()
    # What predict returns is the likelihood's mean at the posterior's mean.
    expected = vae.likelihood(vae.posterior(X[:3]).mean()).mean()
    np.testing.assert_allclose(vae.predict(X[:3], verbose=0), expected, rtol=1e-5)


def operations(vae, objective):
    """The operations of the loss and all its gradients."""
    vae.compile("sgd", objective=objective)

    def losses(x):
        with tf.GradientTape() as tape, fixed(0):
            loss = tf.reduce_mean(vae.example_losses(x, x, True)[0])
        return tape.gradient(loss, vae.trainable_weights)

    traced = tf.function(losses, autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec([None, 4])).graph
    return [operation.type for operation in graph.get_operations()]


@pytest.mark.long
def test_training_does_not_invert_the_flow():
    """The density of a draw comes with it: no loop over the dimensions, and no root."""
    for flow in (flows.InverseAutoregressive(2, (8,)), flows.Planar(2)):
        vae = small_vae(posteriors.Flow(2, flow))
        vae.build(X.shape)
        for plain in (objectives.ELBO(), objectives.IWAE(num_samples=3)):
            assert not [kind for kind in operations(vae, plain) if "While" in kind]
        # The others score z anew.
        landing = objectives.ELBO(estimator="sticking_the_landing", num_samples=2)
        assert [kind for kind in operations(vae, landing) if "While" in kind]


def test_networks_are_run_once_for_a_step():
    """TensorFlow's optimizer finds what TFP asks for twice."""
    vae = small_vae(posteriors.Flow(2, flows.InverseAutoregressive(2, (8,))))
    vae.build(X.shape)
    x = tf.constant(X)

    def log_prob(x):
        q = vae.encoder(x)
        return q.log_prob(tf.convert_to_tensor(q))

    traced = tf.function(log_prob, autograph=False)
    kinds = optimized(traced.get_concrete_function(x))
    assert kinds.count("MatMul") + kinds.count("_FusedMatMul") == 1 + 2 * 2


def optimized(concrete):
    """The operations of a function after TensorFlow's optimizer."""
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
    from tensorflow.python.grappler import tf_optimizer
    from tensorflow.python.training import saver

    meta = saver.export_meta_graph(graph_def=concrete.graph.as_graph_def(), graph=concrete.graph)
    fetch = meta_graph_pb2.CollectionDef()
    for output in concrete.outputs:
        fetch.node_list.value.append(output.name)
    meta.collection_def["train_op"].CopyFrom(fetch)
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    return [node.op for node in tf_optimizer.OptimizeGraph(config, meta).node]


@pytest.mark.long
def test_same_seed_same_training():
    losses = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        vae = small_vae(posteriors.Flow(2, flows.Planar(2)), seed=1)
        vae.compile("adam")
        losses.append(vae.fit(X, epochs=2, batch_size=16, verbose=0).history["loss"])
    assert losses[0] == losses[1]


@pytest.mark.long
def test_diagnosis_and_annealing():
    keras.utils.set_random_seed(0)
    vae = small_vae(posteriors.Flow(2, flows.Planar(2)))
    vae.compile("adam")
    vae.fit(X, epochs=2, batch_size=16, verbose=0)
    found = vae.log_marginal_likelihood(
        X[:2], 8, "ais", seed=0, verbose=0, num_steps=50, num_leapfrog_steps=3
    )
    exact = vae.log_marginal_likelihood(X[:2], 5000, seed=0, verbose=0)
    error = 4 * np.hypot(found.standard_error, exact.standard_error)
    assert (np.abs(found.estimate - exact.estimate) < error).all()
    assert (error < 1.0).all()
    diagnosis = diagnose(vae, X, num_samples=50, num_local=2, seed=0, verbose=0)
    assert "Flow" in str(diagnosis)


@pytest.mark.long
def test_local_posterior_of_a_flow():
    """Of a family that holds the encoder's it can only be better."""
    keras.utils.set_random_seed(0)
    vae = small_vae(posteriors.DiagonalNormal(2))
    vae.build(X.shape)
    options = {"max_steps": 500, "seed": 0, "verbose": 0}
    plain = local_posterior(vae, X[:4], **options)
    wider = local_posterior(vae, X[:4], posteriors.Flow(2, flows.Planar(4)), **options)
    error = 4 * np.hypot(plain.standard_error, wider.standard_error)
    assert (wider.elbo > plain.elbo - error).all()
    assert (wider.elbo < plain.log_marginal_likelihood + 0.05).all()


@pytest.mark.long
def test_local_vae():
    decoder = keras.Sequential([keras.layers.Dense(4), likelihoods.Bernoulli(4)])
    posterior = posteriors.Flow(2, flows.Planar(2))
    vae = LocalVAE(priors.StandardNormal(2), posterior, decoder, len(X), seed=0)
    vae.compile(keras.optimizers.Adam(0.05))
    history = vae.fit(X, epochs=20, batch_size=32, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


# Numbers against quadrature.


class Bend(keras.layers.Layer):
    """The mean of x is z_2 - z_1^2 / 2."""

    def call(self, z):
        return z[:, 1:] - z[:, :1] ** 2 / 2


def bent_model(flow, dtype="float32"):
    """A model with one x, so that the encoder is a row of numbers."""
    posterior = posteriors.Flow(2, flow, dtype=dtype)
    encoder = keras.Sequential(
        [keras.layers.Dense(posterior.params_size, use_bias=False, dtype=dtype), posterior]
    )
    decoder = keras.Sequential([Bend(dtype=dtype), likelihoods.Normal(1, scale=0.7, dtype=dtype)])
    vae = VAE(priors.StandardNormal(2, dtype=dtype), encoder, decoder, seed=0)
    vae.build((None, 1))
    vae.encoder.layers[0].set_weights([params_of(posterior).numpy()[None]])
    moved(posterior)
    return vae


def grid_of(num, dtype):
    axis = np.linspace(-9, 9, num)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(dtype), axis[1] - axis[0]


def weights_on_grid(vae, num, dtype="float64"):
    """The probabilities of the cells, and the log weights there."""
    grid, step = grid_of(num, dtype)
    q = vae.encoder(np.ones((1, 1), dtype))
    log_prob = q.log_prob(grid).numpy()
    joint = stats.norm.logpdf(1.0, grid[:, 1] - grid[:, 0] ** 2 / 2, 0.7)
    joint = joint + stats.norm.logpdf(grid).sum(axis=1)
    return np.exp(log_prob) * step**2, joint - log_prob


@pytest.mark.parametrize("kind", ["Planar", "InverseAutoregressive", "NeuralSpline"])
def test_elbo_against_quadrature(kind):
    vae = bent_model(FLOWS[kind]())
    probs, log_weights = weights_on_grid(vae, 301, "float32")
    expected = np.sum(probs * log_weights, dtype=np.float64)
    draws = vae.log_weights(np.ones((1, 1), "float32"), 20_000, seed=0)
    error = draws.std() / np.sqrt(draws.size)
    assert error < 0.05 * abs(expected)
    assert draws.mean() == pytest.approx(expected, abs=4 * error)


OBJECTIVES = {
    "reparameterized": lambda: objectives.ELBO(),
    "sticking_the_landing": lambda: objectives.ELBO(
        estimator="sticking_the_landing", num_samples=1
    ),
    "score_function": lambda: objectives.ELBO(estimator="score_function", num_samples=8),
    "iwae": lambda: objectives.IWAE(num_samples=2),
    "doubly_reparameterized": lambda: objectives.IWAE(
        num_samples=2, estimator="doubly_reparameterized"
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["Planar", "InverseAutoregressive"])
def test_gradient_estimators_are_unbiased(kind):
    """Against the difference quotient of a quadrature, along two directions of all weights."""
    vae = bent_model(FLOWS[kind](), "float64")
    posterior = vae.encoder.layers[-1]
    variables = vae.encoder.trainable_weights
    rng = np.random.default_rng(2)
    directions = [[rng.normal(size=v.shape) / 4 for v in variables] for _ in range(2)]

    def elbo():
        probs, log_weights = weights_on_grid(vae, 121)
        return np.sum(probs * log_weights)

    def iwae():  # The bound of two draws, over pairs of cells.
        probs, log_weights = weights_on_grid(vae, 73)
        keep = probs > 1e-9
        probs, log_weights = probs[keep], log_weights[keep]
        pairs = np.logaddexp(log_weights[:, None], log_weights) - np.log(2)
        return probs @ pairs @ probs

    def slope(function, direction, step=1e-3):
        values = []
        for sign in (1, -1):
            for variable, part in zip(variables, direction, strict=True):
                variable.assign_add(sign * step * part)
            values.append(function())
            for variable, part in zip(variables, direction, strict=True):
                variable.assign_sub(sign * step * part)
        return (values[0] - values[1]) / (2 * step)

    x = tf.ones([500, 1], tf.float64)
    assert posterior.dtype == "float64"
    slopes = {f: [slope(f, direction) for direction in directions] for f in (elbo, iwae)}
    for name, make in OBJECTIVES.items():
        vae.compile("sgd", objective=make())
        expected = slopes[iwae if name in ("iwae", "doubly_reparameterized") else elbo]

        @tf.function(autograph=False)
        def gradient(seed):
            with tf.GradientTape() as tape, fixed(seed):
                loss = tf.reduce_mean(vae.example_losses(x, x, True)[0])
            return tape.gradient(loss, variables)

        draws = np.array(
            [
                [
                    -sum(np.sum(g * part) for g, part in zip(gradients, direction, strict=True))
                    for direction in directions
                ]
                for gradients in (gradient(tf.constant([i, 5])) for i in range(60))
            ]
        )
        error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
        assert (np.abs(draws.mean(axis=0) - expected) < 4 * error + 1e-4).all(), name
        assert (error < 0.2 * np.abs(expected)).all(), (name, error, expected)


def test_kl_of_two_flows():
    """A closed form exists only where both are the same flow: Monte Carlo for the others."""
    posterior, prior = layer_of("RealNVP"), moved(priors.Flow(2, flows.RealNVP(3, (12,))))
    q = posterior.new(params_of(posterior, rows=1))
    kl = regularizers.KLDivergenceRegularizer(prior).divergence(q, q.sample(20_000, seed=[1, 2]))
    grid, step = grid_of(401, "float32")
    log_q, log_p = q.log_prob(grid).numpy(), prior().log_prob(grid).numpy()
    expected = np.sum(np.exp(log_q) * (log_q - log_p), dtype=np.float64) * step**2
    assert expected > 0.05
    assert float(kl[0]) == pytest.approx(expected, abs=0.03)


@pytest.mark.long
def test_a_prior_learns(rng):
    """Two clusters, which no normal prior fits: nats of log-likelihood won over the best normal."""
    z = np.float32(0.3 * rng.normal(size=(500, 2)) + 2.0 * rng.choice([-1, 1], (500, 1)))
    keras.utils.set_random_seed(0)
    prior = priors.Flow(2, flows.NeuralSpline(2, (16,)))
    optimizer = keras.optimizers.Adam(0.02)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(prior().log_prob(z))
        optimizer.minimize(loss, prior.trainable_weights, tape=tape)
        return loss

    for _ in range(200):
        loss = step()
    normal = stats.multivariate_normal(z.mean(0), np.cov(z.T)).logpdf(z).mean()
    truth = stats.norm.logpdf(np.stack([z - 2, z + 2]), scale=0.3).sum(-1)
    truth = np.mean(np.logaddexp(*truth) - np.log(2))
    assert -float(loss) > normal + 0.8 * (truth - normal)


# In regressions.


@pytest.mark.long
@pytest.mark.parametrize("flow", [flows.RealNVP(2, (8,)), flows.Planar(2)], ids=["nvp", "planar"])
def test_regression(flow, rng, tmp_path):
    x = rng.normal(size=(12, 1)).astype("float32")
    y = np.float32(2 * x[:, 0] + rng.normal(size=12) > 0)
    keras.utils.set_random_seed(0)
    model = BayesianRegression(
        likelihoods.Bernoulli(),
        posterior=lambda size: posteriors.Flow(size, flow, posteriors.FullRankNormal(size)),
        intercept_scale=1.0,
        seed=0,
    )
    model.fit(x, y, steps=300, verbose=0)
    assert model.spread.shape == (2, 2)
    log_weights = model.log_weights(x, y, 4000, seed=1)
    # The evidence, on a grid.
    grid, step = grid_of(301, "float64")
    eta = grid @ np.stack([x[:, 0], np.ones(12)])
    joint = -np.logaddexp(0, -np.where(y == 1, eta, -eta)).sum(axis=1)
    joint += stats.norm.logpdf(grid).sum(axis=1)
    evidence = np.log(np.sum(np.exp(joint)) * step**2)
    bound = np.log(np.mean(np.exp(log_weights.astype(np.float64))))
    assert bound == pytest.approx(evidence, abs=0.02)
    assert evidence - 0.06 < log_weights.mean() < evidence + 0.01
    mean = np.sum(np.exp(joint - evidence)[:, None] * grid, axis=0) * step**2
    deviation = model.coefficients.stddev().numpy()
    np.testing.assert_allclose(model.coefficients.mean(), mean, atol=5 * deviation.max() / 16)
    network = 0 if isinstance(flow, flows.Planar) else 2 * 4
    assert len(model.trainable_weights) == 1 + network
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.log_weights(x, y, 50, seed=1), model.log_weights(x, y, 50, seed=1)
    )
