"""Low and double precision: every block trains under every policy, and none rounds a density."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import stats
from test_layers import TABLE, fractions, integers, one_hot, reals, simplex

from tfpvae import (
    VAE,
    BayesianRegression,
    ConditionalVAE,
    DensityRatio,
    HierarchicalVAE,
    LocalVAE,
    MixedRegression,
    SemiSupervisedVAE,
    SimulatorModel,
    likelihoods,
    networks,
    objectives,
    posteriors,
    priors,
)

Dense = keras.layers.Dense
N = 48
POLICIES = ("mixed_bfloat16", "mixed_float16", "float64")
FULL = {"float64": "float64"}  # the type of densities under a policy, float32 under all others

# What a block of z goes with, by the values that it takes: the prior, the posterior, and how the
# gradient gets through the draws.
PARTNERS = {
    reals: (priors.StandardNormal, posteriors.DiagonalNormal, {}),
    one_hot: (
        priors.OneHotCategorical,
        posteriors.OneHotCategorical,
        {"estimator": "score_function"},
    ),
    simplex: (
        lambda shape: priors.RelaxedOneHotCategorical(shape, 0.7),
        lambda shape: posteriors.RelaxedOneHotCategorical(shape, 0.7),
        {},
    ),
    fractions: (
        lambda shape: priors.RelaxedBernoulli(shape, 0.7),
        lambda shape: posteriors.RelaxedBernoulli(shape, 0.7),
        {},
    ),
}


def hidden():
    return Dense(8, "relu")


def ending(block, *first):
    """A network that ends in a block."""
    return keras.Sequential([*first, hidden(), Dense(block.params_size), block])


def role(block):
    if block.is_prior:
        return "prior"
    return "posterior" if block.cls.__module__ == posteriors.__name__ else "likelihood"


def build(block):
    """A VAE with this block in its place, and data `[N, ...]` for it."""
    rng = np.random.default_rng(0)
    values = block.values(rng, (N, *block.event_shape)) if role(block) == "likelihood" else None
    if values is not None and len(values) != N:  # That of a table has a size of its own.
        values = np.concatenate([values] * (N // len(values)))
    x = rng.integers(2, size=(N, 3)) if values is None else values
    parts = {"prior": priors.StandardNormal(2), "posterior": posteriors.DiagonalNormal(2)}
    parts["likelihood"] = likelihoods.Bernoulli(3)
    settings = {}
    if role(block) != "likelihood":
        bits = block.values.__qualname__.startswith(integers.__qualname__)
        prior, posterior, settings = (
            (priors.Bernoulli, posteriors.Bernoulli, {"estimator": "score_function"})
            if bits
            else PARTNERS[block.values]
        )
        parts["prior"], parts["posterior"] = prior(block.event_shape), posterior(block.event_shape)
    parts[role(block)] = block.make()
    flatten, scaling = keras.layers.Flatten, keras.layers.Rescaling(0.02)
    encoder = ending(parts["posterior"], flatten(), networks.FillMissing(), scaling)
    decoder = ending(parts["likelihood"], flatten())
    vae = VAE(parts["prior"], encoder, decoder, seed=0)
    if settings:
        settings["num_samples"] = 2
    return vae, x.astype("float32"), settings


def under(policy, make):
    """What is made under a policy, from the same seed."""
    keras.mixed_precision.set_global_policy(policy)
    keras.utils.set_random_seed(0)
    return make()


def densities(vae, x, z):
    """The log densities of x and z under the parts of a model: no draw is in them."""
    found = {
        "prior": vae.prior().log_prob(tf.cast(z, vae.prior.dtype)),
        "posterior": vae.posterior(x).log_prob(tf.cast(z, vae.prior.dtype)),
        "likelihood": vae.likelihood(z).log_prob(tf.cast(x, vae.prior.dtype)),
    }
    return {name: value.numpy() for name, value in found.items()}


QUICK = [
    ("mixed_bfloat16", "Normal"),
    ("mixed_float16", "DiscretizedLogistic"),
    ("float64", "StudentT, learned"),
]


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.long)
        for case in itertools.product(POLICIES, TABLE)
    ],
)
def test_a_model_with_the_block_trains(policy, name):
    block, full = TABLE[name], FULL.get(policy, "float32")
    single, x, _ = under("float32", lambda: build(block))
    single.build((None, *x.shape[1:]))
    z = single.prior().sample(N, seed=[0, 0]).numpy()
    wanted = densities(single, x, z)

    vae, x, settings = under(policy, lambda: build(block))
    if name == "Dirichlet":  # In double precision single one does not add up to 1.
        x = x.astype("float64")
        x /= x.sum(axis=-1, keepdims=True)
    vae.build((None, *x.shape[1:]))
    for theirs, ours in zip(single.trainable_weights, vae.trainable_weights, strict=True):
        assert ours.dtype == full  # also the kernels of layers that compute in half precision
        ours.assign(tf.cast(theirs, ours.dtype))
    found = densities(vae, x, z)
    # Of 8 or 11 bits that the networks work in; in double precision what single one rounded.
    tolerance = {"mixed_bfloat16": 0.05, "mixed_float16": 0.01}.get(policy, 1e-4)
    for part, value in found.items():
        assert value.dtype == full
        # Means: what a layer rounds, a single example far out makes much of.
        mean, close = np.mean(wanted[part], dtype="float64"), {"rtol": tolerance, "atol": tolerance}
        np.testing.assert_allclose(np.mean(value, dtype="float64"), mean, **close)

    compute = keras.mixed_precision.global_policy().compute_dtype
    for network in (vae.encoder, vae.decoder):
        layer = next(part for part in network.layers if isinstance(part, Dense))
        assert layer(tf.zeros((1, layer.kernel.shape[0]))).dtype == compute
    vae.compile(keras.optimizers.SGD(1e-3), objective=objectives.ELBO(**settings))
    loss, terms, _ = vae.example_losses(*vae.prepare_batch(x, None), training=True)
    assert {value.dtype.name for value in (loss, *terms.values())} == {full}
    before = [weight.numpy() for weight in vae.trainable_weights]
    # Steps enough that the scale of the loss, which float16 needs, finds its size.
    history = vae.fit(x, batch_size=8, epochs=5, verbose=0).history
    assert np.isfinite([*history.values()]).all()
    for old, weight in zip(before, vae.trainable_weights, strict=True):
        assert np.isfinite(weight).all()
        assert (weight.numpy() != old).any(), weight.name


# In double precision: the policy alone is enough.

A, C, S = np.array([[0.7, -0.4], [0.1, 0.9], [0.5, 0.3]]), np.array([0.1, -0.2, 1e4 + 1 / 3]), 0.5


def exact_model():
    """p(x|z) = N(A z + c, s^2), with its exact posterior, and numbers that float32 rounds."""
    precision = np.eye(2) + A.T @ A / S**2
    decoder = keras.Sequential([Dense(3), likelihoods.Normal(3, scale=S)])
    encoder = keras.Sequential([Dense(5), posteriors.FullRankNormal(2)])
    vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
    vae.build((None, 3))
    decoder.layers[0].set_weights([A.T, C])
    scale = np.linalg.cholesky(np.linalg.inv(precision))
    gain = np.linalg.solve(precision, A.T) / S**2
    inverse = np.log(np.expm1(np.diag(scale)))  # of softplus, which makes the diagonal
    tril = [inverse[1], scale[1, 0], inverse[0]]
    kernel = np.concatenate([gain.T, np.zeros((3, 3))], axis=1)
    encoder.layers[0].set_weights([kernel, np.concatenate([-gain @ C, tril])])
    return vae


def exact_data():
    """Data beside c, and their log p(x) in double precision."""
    x = C + np.random.default_rng(0).normal(size=(20, 3))
    covariance = A @ A.T + S**2 * np.eye(3)
    return x, stats.multivariate_normal.logpdf(x, C, covariance)


def test_the_policy_float64_alone_makes_all_numbers_exact(tmp_path):
    vae = under("float64", exact_model)
    assert keras.backend.floatx() == "float32"
    x, wanted = exact_data()
    exact = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(vae.log_weights(x, 3, seed=0), np.tile(wanted, (3, 1)), **exact)
    np.testing.assert_allclose(vae.log_marginal_likelihood(x, 30).estimate, wanted, **exact)
    vae.compile("sgd", objective=objectives.IWAE(3))  # whose weights are all p(x)
    assert vae.evaluate(x, verbose=0, return_dict=True)["loss"] == pytest.approx(
        -wanted.mean(), rel=1e-6
    )  # of float32 means
    vae.save(tmp_path / "vae.keras")
    keras.mixed_precision.set_global_policy("float32")  # The file remembers.
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    np.testing.assert_allclose(loaded.log_weights(x, 1, seed=0)[0], wanted, **exact)


def test_results_and_gradients_in_double_precision():
    vae = under("float64", exact_model)
    x, _ = exact_data()
    z = tf.constant([[0.1, 0.2]])  # float32
    with tf.GradientTape() as tape:
        tape.watch(z)
        mean = vae.likelihood(z).mean()
    assert mean.dtype == "float64"
    np.testing.assert_allclose(tape.gradient(mean, z), [A.sum(axis=0)], rtol=1e-6)
    results = [vae.elbo(x), vae.sample(2), vae.reconstruct(x), vae.predict(x, verbose=0)]
    results += [vae.posterior(x).mean(), vae.predict_distribution(x).mean()]
    assert {np.asarray(values).dtype.name for values in results} == {"float64"}
    with tf.GradientTape() as tape:
        loss, _, _ = vae.example_losses(*vae.prepare_batch(x, None), training=True)
        loss = tf.reduce_mean(loss)
    assert {g.dtype.name for g in tape.gradient(loss, vae.trainable_weights)} == {"float64"}


# Every model under every policy.

X = np.random.default_rng(0).normal(size=(N, 3))
LABELS = np.arange(N) % 3


def simulator(theta, seed):
    return theta + tf.random.stateless_normal(tf.shape(theta), seed, dtype=theta.dtype)


def hierarchical(inference):
    encoders = [ending(posteriors.DiagonalNormal(k)) for k in (3, 2)]
    if inference == "top_down":
        encoders = [(hidden(), encoder) for encoder in encoders]
    decoders = [ending(likelihoods.Normal(3)), ending(likelihoods.Normal(3))]
    return HierarchicalVAE(priors.StandardNormal(2), encoders, decoders, inference, seed=0)


def given(*rest):
    return [
        ending(posteriors.DiagonalNormal(2), networks.Join()),
        ending(likelihoods.Normal(3), networks.Join()),
        *rest,
    ]


def vae_of(**kwargs):
    encoder, decoder = ending(posteriors.DiagonalNormal(2)), ending(likelihoods.Normal(3))
    return VAE(priors.StandardNormal(2), encoder, decoder, seed=0, **kwargs)


def adversarial():
    return objectives.AdversarialELBO(keras.Sequential([hidden(), Dense(1)]))


# The model, the arguments of `compile` (None: `fit` compiles) and of `fit`, and results.
GROUPS = np.repeat(["a", "b", "c"], N // 3)
MODELS = {
    "VAE": (vae_of, {}, (X,), lambda m: m.elbo(X)),
    "VAE, IWAE": (vae_of, {"objective": lambda: objectives.IWAE(3)}, (X,), lambda m: m.elbo(X)),
    "VAE, adversarial": (vae_of, {"objective": adversarial}, (X,), lambda m: m.elbo(X)),
    "HierarchicalVAE, bottom up": (
        lambda: hierarchical("bottom_up"),
        {},
        (X,),
        lambda m: m.elbo(X),
    ),
    "HierarchicalVAE, top down": (lambda: hierarchical("top_down"), {}, (X,), lambda m: m.elbo(X)),
    "ConditionalVAE": (
        lambda: ConditionalVAE(priors.StandardNormal(2), *given(), num_classes=3, seed=0),
        {},
        (X, LABELS),
        lambda m: m.elbo((X, LABELS)),
    ),
    "ConditionalVAE of numbers": (
        lambda: ConditionalVAE(priors.StandardNormal(2), *given(), seed=0),
        {},
        (X, X[:, :2]),
        lambda m: m.elbo((X, X[:, :2])),
    ),
    "SemiSupervisedVAE": (
        lambda: SemiSupervisedVAE(
            priors.StandardNormal(2), ending(posteriors.OneHotCategorical(3)), *given(3), seed=0
        ),
        {},
        (X, np.where(np.arange(N) % 2, LABELS, -1)),
        lambda m: m.elbo(X),
    ),
    "LocalVAE": (
        lambda: LocalVAE(
            priors.StandardNormal(2),
            posteriors.DiagonalNormal(2),
            ending(likelihoods.Normal(3)),
            N,
            seed=0,
        ),
        {},
        (X,),
        lambda m: m.elbo(X),
    ),
    "BayesianRegression": (
        lambda: BayesianRegression(likelihoods.Normal(), seed=0),
        None,
        (X, X @ [1.0, 0.0, -1.0] + LABELS),
        lambda m: m.predict(X, verbose=0),
    ),
    "MixedRegression": (
        lambda: MixedRegression(likelihoods.Normal(), random=["intercept"], seed=0),
        None,
        (X, X @ [1.0, 0.0, -1.0] + LABELS, GROUPS),
        lambda m: m.predict(X, GROUPS, verbose=0),
    ),
    "SimulatorModel": (
        lambda: SimulatorModel(
            priors.StandardNormal(1),
            simulator,
            posteriors.DiagonalNormal(1),
            keras.Sequential([hidden(), Dense(1)]),
            seed=0,
        ),
        None,
        (X[:, :1],),
        lambda m: m.posterior().mean().numpy(),
    ),
    "DensityRatio": (
        lambda: DensityRatio(keras.Sequential([hidden(), Dense(1)]), seed=0),
        {},
        (X, X + 1.0),
        lambda m: m.log_ratio(X),
    ),
}


@pytest.mark.parametrize(
    ("policy", "name"),
    [pytest.param(*case, marks=pytest.mark.long) for case in itertools.product(POLICIES, MODELS)],
)
def test_models_train_and_answer_under_every_policy(policy, name, tmp_path):
    make, settings, data, results = MODELS[name]
    full = FULL.get(policy, "float32")
    for jit_compile in (None, True):
        model = under(policy, make)
        plan = {"epochs": 2} if settings is not None else {"steps": 20}
        if settings is not None:
            model.compile("adam", jit_compile=jit_compile, **{k: v() for k, v in settings.items()})
        history = model.fit(*data, verbose=0, **plan).history
        assert np.isfinite([*history.values()]).all()
        found = np.asarray(results(model))
        assert found.dtype == full
        assert np.isfinite(found).all()
        assert {weight.dtype.name for weight in model.trainable_weights} == {full}
    if name != "SimulatorModel":  # Its function is registered in a test of its own.
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert np.asarray(results(loaded)).dtype == full
        loaded.fit(*data, verbose=0, **plan)


# The scale of the loss in float16.


def tiny(policy, **kwargs):
    """A model whose gradients are beneath what float16 holds, unless the loss is scaled."""

    def make():
        vae = VAE(
            priors.StandardNormal(1),
            keras.Sequential([hidden(), Dense(2), posteriors.DiagonalNormal(1)]),
            keras.Sequential([hidden(), Dense(3), likelihoods.Normal(3, scale=3e4)]),
            seed=0,
        )
        vae.build((None, 3))
        vae.compile(keras.optimizers.SGD(1e6), objective=objectives.ELBO(kl_weight=1e-9), **kwargs)
        return vae

    return under(policy, make)


LOOPS = [
    {},
    pytest.param({"jit_compile": True}, marks=pytest.mark.long),
    pytest.param({"run_eagerly": True}, marks=pytest.mark.long),
]


@pytest.mark.filterwarnings("ignore:fit ended with kl_weight")
@pytest.mark.parametrize("loop", LOOPS, ids=["compiled", "xla", "eager"])
def test_small_gradients_are_scaled_in_float16(loop):
    """Without the scale the kernels of the decoder would not move: 1e-9 is zero in float16."""
    moves = {}
    for policy in ("float32", "mixed_float16"):
        vae = tiny(policy, **loop)
        kernel = vae.decoder.layers[0].kernel
        before = kernel.numpy()
        vae.fit(X, batch_size=N, verbose=0)
        moves[policy] = kernel.numpy() - before
    assert isinstance(vae.optimizer, keras.mixed_precision.LossScaleOptimizer)
    assert np.abs(moves["float32"]).max() > 0
    error = np.abs(moves["mixed_float16"] - moves["float32"]).max()
    assert error < 0.02 * np.abs(moves["float32"]).max()


@pytest.mark.parametrize("loop", LOOPS, ids=["compiled", "xla", "eager"])
def test_a_step_whose_gradients_overflow_is_left_out(loop, tmp_path):
    vae = under("mixed_float16", vae_of)
    vae.compile("adam", **loop)
    vae.build((None, 3))
    before = [weight.numpy() for weight in vae.weights]
    vae.fit(np.full((N, 3), 100.0), batch_size=N, verbose=0)  # The scaled gradient is infinite.
    for old, weight in zip(before, vae.weights, strict=True):
        if weight.dtype != "int32":  # those of the noise
            np.testing.assert_array_equal(weight, old)
    assert float(vae.optimizer.loss_scale) == 2**14  # half of what Keras begins with
    vae.save(tmp_path / "vae.keras")
    vae = keras.models.load_model(tmp_path / "vae.keras")
    assert isinstance(vae.optimizer, keras.mixed_precision.LossScaleOptimizer)
    vae.fit(X, batch_size=N, epochs=10, verbose=0)  # The scale may have to sink further.
    moved = [
        (old != weight.numpy()).any()
        for old, weight in zip(before, vae.weights, strict=True)
        if weight.trainable
    ]
    assert all(moved)


@pytest.mark.long
def test_a_schedule_and_a_second_optimizer_in_float16():
    vae = under("mixed_float16", vae_of)
    objective = adversarial()
    rate = keras.optimizers.schedules.ExponentialDecay(1e-2, 1, 0.5)
    vae.compile(keras.optimizers.Adam(rate), objective=objective)
    vae.fit(X, batch_size=N // 4, epochs=1, verbose=0)
    scaled = keras.mixed_precision.LossScaleOptimizer
    assert isinstance(objective.discriminator.optimizer, scaled)
    steps = int(vae.optimizer.iterations)  # The first ones may be left out, until the scale fits.
    assert steps >= 2
    assert float(vae.optimizer.learning_rate) == pytest.approx(1e-2 / 2 ** (steps - 1))


def test_preprocessing_that_rounds_the_data_is_refused():
    """The likelihood scores what it puts out: bytes as numbers of 8 bits are other data."""
    images = np.random.default_rng(0).integers(256, size=(N, 3)).astype("uint8")
    vae = under("mixed_bfloat16", lambda: vae_of(preprocessing=keras.layers.Rescaling(1 / 255)))
    vae.compile("adam")
    with pytest.raises(ValueError, match="preprocessing: got a layer that puts out bfloat16"):
        vae.fit(images, verbose=0)
    whole = keras.layers.Rescaling(1 / 255, dtype="float32")
    vae = under("mixed_bfloat16", lambda: vae_of(preprocessing=whole))
    np.testing.assert_allclose(vae.prepare(images), images / 255, rtol=1e-6)


@pytest.mark.study
def test_half_precision_reaches_the_elbo_of_single(monkeypatch):
    """MLP VAE on MNIST: the test ELBO is within 0.5 nats of float32's, seed by seed."""
    import sys
    import time
    from pathlib import Path

    from tfpvae import datasets

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    monkeypatch.delitem(sys.modules, "mlp_vae", raising=False)
    import mlp_vae

    data = datasets.load("mnist", scale=True, flatten=True)
    for seed in range(2):
        elbo = {}
        for policy in ("float32", "mixed_bfloat16"):
            keras.mixed_precision.set_global_policy(policy)
            keras.utils.set_random_seed(seed)
            vae = mlp_vae.build(784, seed)
            vae.compile("rmsprop")
            start = time.monotonic()
            vae.fit(data.x_train, epochs=50, batch_size=100, verbose=0)
            elapsed = time.monotonic() - start
            elbo[policy] = vae.elbo(data.x_test, num_samples=10, seed=0, verbose=0).mean()
            print(f"{policy} seed {seed}: ELBO {elbo[policy]:.2f} nats, {elapsed:.0f} s")
        assert abs(elbo["mixed_bfloat16"] - elbo["float32"]) < 0.5
