"""Semi-supervised learning: against a mixture whose densities are known, and as a Keras model."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import special, stats

from tfpvae import (
    ConditionalVAE,
    SemiSupervisedVAE,
    datasets,
    diagnose,
    diagnostics,
    inputs,
    likelihoods,
    local_posterior,
    networks,
    objectives,
    posteriors,
    priors,
    semi_supervised,
)
from tfpvae.noise import fixed

K, D, L, N = 3, 4, 2, 60
SHARES = np.array([0.5, 0.3, 0.2])
TERMS = ["loss", "elbo", "nll", "kl", "kl_y", "classification", "accuracy"]


class Mixture:
    """p(y), x = A z + b_y + noise: p(x|y), p(y|x) and p(z|x, y) in closed form."""

    noise = 0.6

    def __init__(self, rng):
        self.loading = rng.normal(size=(D, L))
        self.centre = rng.normal(size=(K, D), scale=0.7)
        self.cov = self.loading @ self.loading.T + self.noise**2 * np.eye(D)
        self.z_cov = np.linalg.inv(np.eye(L) + self.loading.T @ self.loading / self.noise**2)
        self.gain = self.z_cov @ self.loading.T / self.noise**2
        self.y = rng.choice(K, size=N, p=SHARES)
        z = rng.normal(size=(N, L))
        x = z @ self.loading.T + self.centre[self.y] + self.noise * rng.normal(size=(N, D))
        self.x = x.astype("float32")
        self.labels = np.where(np.arange(N) < 9, self.y, -1)
        self.labels[:3] = [0, 1, 2]

    @property
    def log_joint(self):
        """log p(x, y) of each class, [N, K]."""
        density = [stats.multivariate_normal(mean, self.cov).logpdf(self.x) for mean in self.centre]
        return np.transpose(density) + np.log(SHARES)

    @property
    def log_prob(self):
        return special.logsumexp(self.log_joint, axis=1)

    @property
    def class_probs(self):
        """p(y|x), [N, K]."""
        return special.softmax(self.log_joint, axis=1)

    def bound(self, log_q, labels, gap=0.0):
        """The bound of each example, and KL(q(y|x) || p(y))."""
        q = np.where(labels[:, None] < 0, np.exp(log_q), np.eye(K)[labels])
        kl_y = special.xlogy(q, q).sum(axis=1) - q @ np.log(SHARES)
        return (q * (self.log_joint - np.log(SHARES))).sum(axis=1) - gap - kl_y, kl_y

    def model(self, *, off=0.0, loc=0.0, compiled=True, **kwargs):
        """Networks that are exact, but for logits and means of z that are off."""
        precision = np.linalg.inv(self.cov)
        bias = np.log(SHARES) - 0.5 * np.einsum("kd,de,ke->k", self.centre, precision, self.centre)
        classify = keras.layers.Dense(K)
        encode = keras.layers.Dense(posteriors.FullRankNormal.params_size(L))
        decode = keras.layers.Dense(D)
        arguments = {"class_prior": priors.OneHotCategorical(K, probs=SHARES), "seed": 0}
        model = SemiSupervisedVAE(
            priors.StandardNormal(L),
            keras.Sequential([classify, posteriors.OneHotCategorical(K)]),
            keras.Sequential([networks.Join(), encode, posteriors.FullRankNormal(L)]),
            keras.Sequential([networks.Join(), decode, likelihoods.Normal(D, scale=self.noise)]),
            K,
            **arguments | kwargs,
        )
        model.build((None, D))
        classify.set_weights([precision @ self.centre.T, bias + off * np.arange(K)])
        scale = tf.linalg.cholesky(tf.constant(self.z_cov, tf.float32))
        tril = posteriors.FullRankNormal(L).free[1].constraint.inverse(scale).numpy()
        kernel = np.concatenate([self.gain.T, -self.centre @ self.gain.T])
        kernel = np.concatenate([kernel, np.zeros((D + K, tril.size))], axis=1)
        encode.set_weights([kernel, np.concatenate([np.full(L, loc), tril.ravel()])])
        decode.set_weights([np.concatenate([self.loading.T, self.centre]), np.zeros(D)])
        if compiled:
            model.compile(keras.optimizers.SGD(0.0))
        return model

    def gap(self, loc):
        """KL(q(z|x, y) || p(z|x, y)) of a mean that is off by `loc`."""
        return 0.5 * loc**2 * np.linalg.inv(self.z_cov).sum()


@pytest.fixture(scope="module")
def mixture():
    return Mixture(np.random.default_rng(3))


@pytest.fixture(scope="module")
def exact(mixture):
    return mixture.model()


@pytest.fixture(scope="module")
def spoilt(mixture):
    return mixture.model(off=0.7, loc=0.3)


@pytest.fixture(scope="module")
def log_q(mixture):
    """That of the spoilt model."""
    return special.log_softmax(np.log(mixture.class_probs) + 0.7 * np.arange(K), axis=1)


def build(**kwargs):
    """A small model of bits."""
    dense = keras.layers.Dense
    return SemiSupervisedVAE(
        priors.StandardNormal(L),
        keras.Sequential([dense(8, "tanh"), dense(K), posteriors.OneHotCategorical(K)]),
        keras.Sequential(
            [networks.Join(), dense(8, "tanh"), dense(4), posteriors.DiagonalNormal(L)]
        ),
        keras.Sequential([networks.Join(), dense(8, "tanh"), dense(6), likelihoods.Bernoulli(6)]),
        K,
        **{"seed": 0} | kwargs,
    )


@pytest.fixture(scope="module")
def restart(snapshot):
    model = build()
    model.build((None, 6))
    model.compile("adam")
    return snapshot(model)


@pytest.fixture
def small(restart):
    """A model for tests that need no other, in its first state."""
    return restart()


@pytest.fixture
def bits(rng):
    return rng.integers(0, 2, size=(40, 6)).astype("float32")


@pytest.fixture
def labels(rng):
    return np.where(np.arange(40) < 12, np.arange(40) % K, -1)


@pytest.mark.long
def test_exact_networks_reach_the_log_densities(mixture, exact):
    x, y = mixture.x, mixture.y
    joint = mixture.log_joint[np.arange(N), y]
    np.testing.assert_allclose(exact.predict_proba(x), mixture.class_probs, atol=1e-4)
    np.testing.assert_array_equal(exact.predict_label(x), mixture.class_probs.argmax(axis=1))
    for data, wanted in ((x, mixture.log_prob), ((x, y), joint)):
        np.testing.assert_allclose(exact.elbo(data, 4000, seed=0), wanted, atol=0.15)
        # Whatever z is drawn.
        log_weights = exact.log_weights(data, 3, seed=0)
        np.testing.assert_allclose(log_weights, np.stack([wanted] * 3), rtol=1e-4, atol=1e-4)
        found = exact.log_marginal_likelihood(data, 50, seed=0)
        np.testing.assert_allclose(found.estimate, wanted, rtol=1e-4, atol=1e-4)


def test_bounds_lie_below_by_the_divergences(mixture, spoilt, log_q):
    """By KL(q(y|x) || p(y|x)) and KL(q(z|x, y) || p(z|x, y))."""
    x, y, num = mixture.x, mixture.y, 4000
    np.testing.assert_allclose(spoilt.predict_proba(x), np.exp(log_q), atol=1e-4)
    kl = np.sum(np.exp(log_q) * (log_q - np.log(mixture.class_probs)), axis=1)
    gap = mixture.gap(0.3)
    wanted = mixture.log_prob - kl - gap
    found = spoilt.elbo(x, num, seed=0)
    # A draw of log p(x|y, z) has a standard deviation of about 1.5 nats.
    np.testing.assert_allclose(found, wanted, atol=5 * 1.5 / np.sqrt(num))
    assert (wanted < mixture.log_prob - 0.05).all()
    joint = mixture.log_joint[np.arange(N), y]
    found = spoilt.elbo((x, y), num, seed=0)
    np.testing.assert_allclose(found, joint - gap, atol=5 * 1.5 / np.sqrt(num))
    for data, wanted in ((x, mixture.log_prob), ((x, y), joint)):
        estimate = spoilt.log_marginal_likelihood(data, num, seed=0)
        np.testing.assert_array_less(
            abs(estimate.estimate - wanted), 5 * estimate.standard_error + 1e-3
        )
        assert estimate.standard_error.max() < 0.05
        log_weights = spoilt.log_weights(data, 200, seed=0)
        assert log_weights.mean() < wanted.mean() - 0.01  # Jensen's inequality


@pytest.mark.long
def test_class_probabilities_of_the_model_owe_nothing_to_the_classifier(mixture, spoilt):
    found = spoilt.predict_proba(mixture.x, num_samples=4000, seed=0)
    np.testing.assert_allclose(found, mixture.class_probs, atol=0.04)
    assert abs(spoilt.predict_proba(mixture.x) - mixture.class_probs).max() > 0.1
    pieces = spoilt.predict_proba(mixture.x[:2], num_samples=2_000_000, seed=0, verbose=0)
    np.testing.assert_allclose(pieces, mixture.class_probs[:2], atol=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("weighted", [False, True])
def test_logs_are_the_stated_objective(weighted, mixture, log_q, rng):
    x, labels, loc = mixture.x, mixture.labels, 0.3
    weight = rng.random(N) * 2 if weighted else np.ones(N)
    model = mixture.model(off=0.7, loc=loc, classification_weight=0.4)
    # The mean over many rows: the draws of z average out.
    repeated = [np.repeat(values, 300, axis=0) for values in (x, labels, weight)]
    logs = model.evaluate(
        *repeated[:2],
        sample_weight=repeated[2] if weighted else None,
        batch_size=300 * N,
        verbose=0,
        return_dict=True,
    )
    assert list(logs) == TERMS
    bound, kl_y = mixture.bound(log_q, labels, mixture.gap(loc))
    known = labels >= 0
    log_q_of_label = log_q[np.arange(N), labels][known]
    wanted = {
        "elbo": np.mean(weight * bound),
        "kl_y": np.mean(weight * kl_y),
        "classification": -0.4 * np.average(log_q_of_label, weights=weight[known]),
    }
    for name, value in wanted.items():
        assert logs[name] == pytest.approx(value, abs=0.03), name
    assert logs["kl_y"] == pytest.approx(wanted["kl_y"], rel=1e-4)
    assert logs["classification"] == pytest.approx(wanted["classification"], rel=1e-4)
    assert logs["elbo"] == pytest.approx(-(logs["nll"] + logs["kl"]), rel=1e-5)
    assert logs["loss"] == pytest.approx(-logs["elbo"] + logs["classification"], rel=1e-5)
    right = log_q.argmax(axis=1)[known] == labels[known]
    assert logs["accuracy"] == pytest.approx(np.average(right, weights=weight[known]), rel=1e-5)


def test_without_labels_evaluation_is_the_bound_on_the_evidence(mixture, exact):
    logs = exact.evaluate(mixture.x, verbose=0, return_dict=True)
    assert np.isnan(logs["accuracy"])
    assert logs["classification"] == 0.0
    assert logs["loss"] == -logs["elbo"]
    nothing = exact.evaluate(mixture.x, np.full(N, -1), verbose=0, return_dict=True)
    np.testing.assert_equal(nothing, logs)


def test_gradients_are_those_of_the_objective(mixture, log_q):
    """By the classifier's logits t: q_k (log q_k - log p_k - KL), and q - y for the labelled."""
    model = mixture.model(off=0.7, classification_weight=0.4)
    x, labels = mixture.x, mixture.labels
    num = 400
    data = [tf.constant(np.repeat(values, num, axis=0)) for values in (x, labels.astype("int32"))]
    bias = model.classifier.layers[0].bias
    with fixed(0), tf.GradientTape() as tape:
        batch, scored = model.prepare_batch(*data)
        losses, terms, _ = model.example_losses(batch, scored, training=True)
        loss = model.total_loss(losses, terms, None)
    found = tape.gradient(loss, bias).numpy()
    q, known = np.exp(log_q), labels >= 0
    ratio = log_q - np.log(mixture.class_probs)
    unlabelled = q * (ratio - np.sum(q * ratio, axis=1, keepdims=True))
    wanted = np.sum(unlabelled[~known], axis=0) / N
    wanted += 0.4 * np.mean((q - np.eye(K)[labels])[known], axis=0)
    np.testing.assert_allclose(found, wanted, atol=0.01)
    assert abs(wanted).max() > 0.05


@pytest.mark.long
def test_all_labels_give_the_supervised_bound(mixture):
    """That of a ConditionalVAE of the same networks, and the log p(y)."""
    model = mixture.model(classification_weight=0.0, class_prior=None, loc=0.3)
    parts = (model.prior, model.encoder, model.decoder)
    conditional = ConditionalVAE(*parts, num_classes=K, seed=0)
    conditional.compile("sgd")
    data = (mixture.x, mixture.y)
    wanted = conditional.elbo(data, 50, seed=0) - np.log(K)
    np.testing.assert_allclose(model.elbo(data, 50, seed=0), wanted, rtol=1e-5)
    repeated = [np.repeat(values, 300, axis=0) for values in data]
    logs = model.evaluate(*repeated, batch_size=300 * N, verbose=0, return_dict=True)
    supervised = conditional.evaluate(*repeated, batch_size=300 * N, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(supervised["loss"] + np.log(K), abs=0.05)
    assert logs["kl"] == pytest.approx(supervised["kl"] + np.log(K), rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("way", ["programs", "keras"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_repeating_labelled_rows_leaves_the_loss_what_it_is(share, way, mixture):
    """A model that does not move: the mean over an epoch is that of the examples."""
    model = mixture.model(off=0.7)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=way == "keras")
    seen = []
    prepare = model.prepare_batch
    if way == "keras":
        model.prepare_batch = lambda x, y: (seen.extend(y.numpy()), prepare(x, y))[1]
    weight = np.linspace(0.5, 1.5, N)
    history = model.fit(
        mixture.x,
        mixture.labels,
        sample_weight=weight,
        batch_size=20,
        labelled_share=share,
        verbose=0,
    ).history
    log_q = np.log(model.predict_proba(mixture.x))
    _, kl_y = mixture.bound(log_q, mixture.labels)  # Nothing in it is drawn.
    assert history["kl_y"][0] == pytest.approx(np.mean(weight * kl_y), rel=1e-4)
    if way == "keras":
        known = np.array(seen) >= 0
        num = (mixture.labels >= 0).sum()
        assert known.mean() >= max(share, num / N)
        assert (~known).sum() == N - num


def test_labelled_rows_are_repeated_alike(mixture):
    data = inputs.Data(mixture.x, mixture.labels)
    balanced = semi_supervised._balanced(data, 0.5)
    counts = np.bincount(balanced.order)
    known = mixture.labels >= 0
    assert (counts[~known] == 1).all()
    assert np.ptp(counts[known]) <= 1
    assert counts[known].sum() == counts[~known].sum()
    # Each example counts as much as any other.
    np.testing.assert_allclose(counts * balanced.weight, len(balanced.order) / N, rtol=1e-6)
    assert len(balanced.indices().x) == balanced.steps({"batch_size": 1}) == 2 * (~known).sum()
    assert semi_supervised._balanced(data, known.mean()) is data


@pytest.mark.long
def test_class_prior_is_learned(rng):
    """Of labelled examples its best shares are theirs."""
    model = build(class_prior=priors.OneHotCategorical(K))
    model.compile(keras.optimizers.Adam(0.1))
    y = np.repeat([0, 1, 2], [5, 10, 25])
    model.fit(np.zeros((40, 6), "float32"), y, epochs=150, batch_size=40, verbose=0)
    shares = model.class_prior().prob(tf.eye(K))
    np.testing.assert_allclose(shares, [0.125, 0.25, 0.625], atol=0.01)


def test_samples_follow_the_model(mixture, exact):
    draws = exact.sample(20_000, seed=0)
    mean = SHARES @ mixture.centre
    between = (SHARES * (mixture.centre - mean).T) @ (mixture.centre - mean)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.08)
    np.testing.assert_allclose(np.cov(draws.T), mixture.cov + between, atol=0.25)
    np.testing.assert_array_equal(draws[:5], exact.sample(20_000, seed=0)[:5])
    of_one = exact.sample(np.full(5000, 1), seed=0)
    np.testing.assert_allclose(of_one.mean(axis=0), mixture.centre[1], atol=0.15)
    np.testing.assert_allclose(np.cov(of_one.T), mixture.cov, atol=0.3)


def test_x_alone_takes_its_most_probable_class(mixture, exact):
    x, z = mixture.x, np.ones((N, L), "float32")
    y = exact.predict_label(x)
    other = (y + 1) % K
    found = exact.predict(x, verbose=0)
    np.testing.assert_array_equal(found, exact.predict((x, y), verbose=0))
    assert abs(found - exact.predict((x, other), verbose=0)).max() > 0.1
    many = exact.reconstruct(np.repeat(x[:3], 4000, axis=0), seed=0).reshape(3, 4000, D)
    np.testing.assert_allclose(many.mean(axis=1), found[:3], atol=0.1)
    wanted = (x - mixture.centre[y]) @ mixture.gain.T
    np.testing.assert_allclose(exact.posterior(x).mean(), wanted, atol=1e-4)
    wanted = z @ mixture.loading.T + mixture.centre[y]
    np.testing.assert_allclose(exact.likelihood(z, y).mean(), wanted, rtol=1e-4, atol=1e-4)


WAYS = {
    "programs": {},
    "keras": {"steps_per_execution": 1},
    "eager": {"run_eagerly": True},
    "xla": {"jit_compile": True},
}


def trained(bits, labels, model=None, **kwargs):
    keras.utils.set_random_seed(0)
    model = model or build()
    model.build((None, 6))
    # No draw of z, whose numbers XLA makes differently.
    model.encoder.layers[-2].set_weights([np.zeros((8, 4)), np.array([0.0, 0.0, -30.0, -30.0])])
    model.encoder.trainable = False
    model.compile(keras.optimizers.SGD(0.1), **kwargs)
    settings = {"epochs": 2, "batch_size": 16, "validation_data": (bits, labels), "verbose": 0}
    return model.fit(bits, labels, **settings).history


@pytest.mark.parametrize("way", ["eager", pytest.param("xla", marks=pytest.mark.long)])
@pytest.mark.long
def test_every_loop_gives_the_same_numbers(way, bits, labels):
    wanted = trained(bits, labels)
    found = trained(bits, labels, **WAYS[way])
    assert list(found) == list(wanted) == [*TERMS, *(f"val_{name}" for name in TERMS)]
    for name in wanted:
        assert found[name] == pytest.approx(wanted[name], rel=1e-4), name


@pytest.mark.long
def test_the_same_seed_repeats_and_a_saved_model_goes_on(bits, labels, tmp_path):
    def run():
        keras.utils.set_random_seed(0)
        model = build(class_prior=priors.OneHotCategorical(K), classification_weight=0.3)
        model.compile("adam", objective=objectives.ELBO(kl_weight=0.5))
        with pytest.warns(UserWarning, match="kl_weight"):
            history = model.fit(bits, labels, epochs=2, batch_size=16, verbose=0).history
        return model, history

    model, history = run()
    assert run()[1] == history
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    json.dumps(model.get_config())
    assert loaded.classification_weight == 0.3
    assert loaded.num_classes == K
    np.testing.assert_array_equal(loaded.predict_proba(bits), model.predict_proba(bits))
    np.testing.assert_array_equal(loaded.elbo(bits, seed=1), model.elbo(bits, seed=1))
    keras.utils.set_random_seed(1)
    with pytest.warns(UserWarning, match="kl_weight"):
        wanted = model.fit(bits, labels, verbose=0).history
    keras.utils.set_random_seed(1)
    with pytest.warns(UserWarning, match="kl_weight"):
        assert loaded.fit(bits, labels, verbose=0).history == wanted


@pytest.mark.long
def test_marks_of_missing_labels_are_alike(restart, small, bits, labels):
    """-1, NaN, and streams of either."""
    floats = np.where(labels < 0, np.nan, labels).astype("float32")
    wanted = small.fit(bits, labels, verbose=0).history
    keras.utils.set_random_seed(0)
    assert_same(restart().fit(bits, floats, verbose=0).history, wanted)
    logs = small.evaluate(bits, labels, batch_size=10, verbose=0, return_dict=True)
    for marked in (labels, floats):
        stream = tf.data.Dataset.from_tensor_slices((bits, marked)).batch(10)
        assert_same(small.evaluate(stream, verbose=0, return_dict=True), logs)

    class Sequence(keras.utils.Sequence):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return bits[10 * i : 10 * i + 10], floats[10 * i : 10 * i + 10]

    assert_same(small.evaluate(Sequence(), verbose=0, return_dict=True), logs)
    small.fit(Sequence(), verbose=0)


def assert_same(found, wanted):
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, err_msg=name)


def test_labels_that_are_none_in_the_middle_of_a_stream_do_not_train_unseen(small, bits, labels):
    for wrong in (K, -2, 0.5):
        later = labels.astype("float32")
        later[30] = wrong
        stream = tf.data.Dataset.from_tensor_slices((bits, later)).batch(10)
        assert np.isnan(small.evaluate(stream, verbose=0)[0])


@pytest.mark.long
def test_validation_split_comes_first(small, bits, labels):
    history = small.fit(
        bits, labels, batch_size=8, validation_split=0.25, labelled_share=0.6, verbose=0
    ).history
    # The last rows have no labels.
    assert np.isnan(history["val_accuracy"][0])
    assert history["val_classification"] == [0.0]


def test_half_precision_keeps_the_loss_whole(bits, labels):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = build()
    model.compile("adam")
    assert np.isfinite(model.fit(bits, labels, verbose=0).history["loss"]).all()
    batch, scored = model.prepare_batch(bits, labels)
    losses, terms, _ = model.example_losses(batch, scored, training=True)
    assert {losses.dtype, *(term.dtype for term in terms.values())} == {tf.float32}
    assert model.predict_proba(bits).sum(axis=1) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("objective", [objectives.IWAE(num_samples=3), objectives.ELBO(0.5)])
def test_bounds_of_each_class_may_be_others(objective, bits, labels):
    model = build()
    model.compile("adam", objective=objective)
    logs = model.evaluate(bits, labels, verbose=0, return_dict=True)
    # Tighter, or with less of the KL: the loss is below the negative ELBO.
    assert logs["loss"] - logs["classification"] < -logs["elbo"]


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (None, ValueError, "y: got no label"),
        (np.full(40, -1), ValueError, "y: got no label"),
        (np.full(40, np.nan), ValueError, "y: got no label"),
        (np.arange(40) % 4, ValueError, "got the label 3, wanted whole numbers from 0 to 2"),
        (np.arange(40) % 3 - 2, ValueError, "got the label -2"),
        (np.full(40, 0.5), ValueError, "got the label 0.5"),
        (np.zeros((40, K)), ValueError, r"y: got shape \(40, 3\)"),
        (np.zeros(39, int), ValueError, "y: got shape"),
        (np.array(["a"] * 40), TypeError, "y: got strings"),
    ],
)
def test_refuses_labels_that_are_none(y, error, message, small, bits):
    with pytest.raises(error, match=message):
        small.fit(bits, y, verbose=0)


def test_refuses_what_does_not_fit(bits, labels):
    model = build()
    for objective in (objectives.CUBO(num_samples=2), "elbo"):
        with pytest.raises(TypeError, match="objective: got"):
            model.compile("adam", objective=objective)
    with pytest.raises(ValueError, match="metrics: got some"):
        model.compile("adam", metrics=["accuracy"])
    model.compile("adam")
    with pytest.raises(ValueError, match="labelled_share"):
        model.fit(bits, labels, labelled_share=1.0)
    with pytest.raises(ValueError, match="method: got 'ais'"):
        model.log_marginal_likelihood(bits, method="ais")
    with pytest.raises(TypeError, match=r"wanted \(x, y\)"):
        model.impute(bits)
    with pytest.raises(ValueError, match="got the label -1"):
        model.elbo((bits, labels))
    with pytest.raises(ValueError, match="y: got batches x"):
        model.fit(tf.data.Dataset.from_tensor_slices(bits).batch(4), verbose=0)
    with pytest.raises(ValueError, match="classification_weight"):
        build(classification_weight=-1.0)
    with pytest.raises(TypeError, match="class_prior: got"):
        build(class_prior=[0.5, 0.3, 0.2])
    with pytest.raises(ValueError, match=r"class_prior: got events of shape \(2,\)"):
        build(class_prior=priors.OneHotCategorical(2))


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (posteriors.OneHotCategorical(4), ValueError, r"classifier: got events of shape \(4,\)"),
        (posteriors.DiagonalNormal(2), ValueError, r"classifier: got events of shape \(2,\)"),
        (keras.layers.Softmax(), TypeError, "classifier: got one that returns"),
    ],
)
def test_refuses_classifiers_of_another_size(end, error, message, bits, labels):
    model = build()
    classifier = keras.Sequential([keras.layers.Dense(4), end])
    model = SemiSupervisedVAE(model.prior, classifier, model.encoder, model.decoder, K)
    model.compile("adam")
    with pytest.raises(error, match=message):
        model.fit(bits, labels, verbose=0)
    with pytest.raises(TypeError, match="classifier: got 'mlp'"):
        SemiSupervisedVAE(model.prior, "mlp", model.encoder, model.decoder, K)


def test_warns_of_a_class_without_labels(small, bits):
    with pytest.warns(UserWarning, match=r"no labelled example of the classes \[2\]"):
        small.fit(bits, np.arange(40) % 2, verbose=0)


@pytest.mark.long
def test_a_frozen_encoder_draws_anew_and_stays(bits, labels, tmp_path):
    """M1+M2: the second model sees draws of the first one's posterior."""
    layers = [keras.layers.Dense(8), posteriors.DiagonalNormal(4)]
    encoder = keras.Sequential(layers)
    encoder.build((None, 6))
    before = encoder.get_weights()
    dense = keras.layers.Dense
    model = SemiSupervisedVAE(
        priors.StandardNormal(L),
        keras.Sequential([dense(K), posteriors.OneHotCategorical(K)]),
        keras.Sequential([networks.Join(), dense(4), posteriors.DiagonalNormal(L)]),
        keras.Sequential([networks.Join(), dense(8), likelihoods.Normal(4)]),
        K,
        preprocessing=semi_supervised.FrozenEncoder(encoder),
        seed=0,
    )
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(bits, labels, epochs=3, batch_size=10, verbose=0)
    for one, other in zip(encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(encoder.trainable_weights) == 2  # The first model may go on.
    assert len(model.weights) == len(model.trainable_weights) + 2 + 3  # And the noise's.
    q = encoder(bits[:1])
    rows = np.repeat(bits[:1], 20_000, axis=0)
    with fixed(0):
        z = model.prepare(rows).numpy()
    np.testing.assert_allclose(z.mean(axis=0), q.mean()[0], atol=5 * q.stddev().numpy().max() / 141)
    np.testing.assert_allclose(z.std(axis=0), q.stddev()[0], rtol=0.03)
    # Predictions are means over 16 draws of z_1: their error is a quarter of that of one draw.
    probs = model.classifier(z).probs_parameter().numpy()
    error = model.predict_proba(rows[:1000]) - probs.mean(axis=0)
    np.testing.assert_allclose(error.std(axis=0), probs.std(axis=0) / 4, rtol=0.2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict_proba(bits), model.predict_proba(bits))
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
    with pytest.raises(TypeError, match="encoder: got 3"):
        semi_supervised.FrozenEncoder(3)


@pytest.mark.parametrize("function", [diagnose, local_posterior, diagnostics.latents])
def test_diagnoses_of_one_posterior_are_refused(exact, mixture, function):
    with pytest.raises(TypeError, match="vae: got a SemiSupervisedVAE, whose posterior is one of"):
        function(exact, mixture.x)


@pytest.mark.long
def test_images_without_labels_help():
    """On digits, 30 of them labelled: the error is below that of a classifier of these alone."""
    data = datasets.load("digits", scale=True, flatten=True)
    rng = np.random.default_rng(0)
    known = np.ravel([rng.choice(np.flatnonzero(data.y_train == k), 3, False) for k in range(10)])
    labels = np.full(len(data.y_train), -1)
    labels[known] = data.y_train[known]
    dense = keras.layers.Dense

    def hidden():
        return dense(128, "softplus")

    classifier = [hidden(), dense(10)]
    model = SemiSupervisedVAE(
        priors.StandardNormal(10),
        keras.Sequential([*classifier, posteriors.OneHotCategorical(10)]),
        keras.Sequential([networks.Join(), hidden(), dense(20), posteriors.DiagonalNormal(10)]),
        keras.Sequential([networks.Join(), hidden(), dense(64), likelihoods.Bernoulli(64)]),
        10,
        classification_weight=5.0,
        seed=0,
    )
    steps = 60 * 32
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)))
    model.fit(data.x_train, labels, epochs=60, batch_size=50, verbose=0)
    found = np.mean(model.predict_label(data.x_test) != data.y_test)
    of_model = model.predict_proba(data.x_test, num_samples=20, seed=0).argmax(axis=1)
    alone = keras.Sequential([hidden(), dense(10, "softmax")])
    alone.compile("adam", "sparse_categorical_crossentropy")
    alone.fit(data.x_train[known], labels[known], epochs=300, batch_size=30, verbose=0)
    wanted = np.mean(alone.predict(data.x_test, verbose=0).argmax(axis=1) != data.y_test)
    print(
        f"digits, 30 labels: {found:.1%}, by p(y|x) {np.mean(of_model != data.y_test):.1%}, "
        f"alone {wanted:.1%}"
    )
    assert found < wanted - 0.04
