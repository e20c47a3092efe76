"""Regression with random effects beside closed forms, quadrature and NUTS."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import special, stats

from tfpvae import MixedRegression, likelihoods, posteriors, priors

UNIT = {"intercept_scale": 1.0, "seed": 0}  # N(0, 1) for intercepts, too


def network():
    return keras.Sequential([keras.layers.Dense(16, "relu"), keras.layers.Dense(16, "relu")])


# Linear with known variances: everything has a closed form.


class Linear:
    """Exact posterior and evidence: coefficients `[3]`, then intercept and slope of each group."""

    def __init__(self, num_groups=10, seed=1):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 12, num_groups)
        sizes[0] = 1
        self.groups = np.repeat(np.arange(num_groups), sizes)
        self.num, self.num_groups = len(self.groups), num_groups
        self.x = rng.normal(size=(self.num, 2))
        effects = rng.normal(size=(num_groups, 2)) * [1.0, 0.5]
        loc = self.x @ [1.0, -1.0] + 0.5 + self.of_rows(effects)
        self.y = loc + 0.5 * rng.normal(size=self.num)
        design = self.design(self.x, self.groups)
        prior = np.diag([1.0] * 3 + [1.0, 0.25] * num_groups)
        self.covariance = np.linalg.inv(design.T @ design / 0.25 + np.linalg.inv(prior))
        self.mean = self.covariance @ design.T @ self.y / 0.25
        self.sd = np.sqrt(np.diag(self.covariance))
        marginal = design @ prior @ design.T + 0.25 * np.eye(self.num)
        self.log_evidence = stats.multivariate_normal.logpdf(self.y, np.zeros(self.num), marginal)

    def of_rows(self, effects):
        own = effects[self.groups]
        return own[:, 0] + own[:, 1] * self.x[:, 0]

    def design(self, x, groups):
        columns = np.zeros((len(x), self.num_groups, 2))
        columns[np.arange(len(x)), groups] = np.column_stack([np.ones(len(x)), x[:, 0]])
        return np.column_stack([x, np.ones(len(x)), columns.reshape(len(x), -1)])

    def predictive(self, x, groups):
        design = self.design(x, groups)
        variance = np.einsum("ni,ij,nj->n", design, self.covariance, design)
        return design @ self.mean, np.sqrt(variance + 0.25)


def of_known_variances(group_scale=(1.0, 0.5), **options):
    return MixedRegression(
        likelihoods.Normal(scale=0.5),
        ["intercept", "x0"],
        group_scale=group_scale,
        **UNIT | options,
    )


@pytest.fixture(scope="module")
def exact():
    return Linear()


@pytest.fixture(scope="module")
def linear(exact):
    model = of_known_variances()
    model.fit(exact.x, exact.y, exact.groups, steps=100, verbose=0)
    return model


def assert_exact(model, exact, tolerance):
    q, effects = model.coefficients, model.random_effects
    means = np.concatenate([q.mean(), np.ravel(effects.mean())])
    sds = np.concatenate([q.stddev(), np.ravel(effects.stddev())])
    np.testing.assert_allclose((means - exact.mean) / exact.sd, 0, atol=tolerance)
    np.testing.assert_allclose(sds / exact.sd, 1, atol=max(tolerance, 0.02))


def test_known_variances_have_the_exact_posterior_and_evidence(linear, exact):
    assert_exact(linear, exact, 0.01)
    elbo = linear.elbo(exact.x, exact.y, exact.groups)
    assert elbo == pytest.approx(exact.log_evidence, abs=0.01)
    loss = linear.evaluate(exact.x, exact.y, exact.groups, batch_size=exact.num, verbose=0)[0]
    assert -exact.num * loss == pytest.approx(exact.log_evidence, abs=0.05)


def test_predictions_for_known_and_unknown_groups(linear, exact, rng):
    x = rng.normal(size=(20, 2))
    mean, sd = exact.predictive(x, np.arange(20) % 10)
    p = linear.predict_distribution(x, np.arange(20) % 10, num_samples=4000)
    np.testing.assert_allclose(p.mean(), mean, atol=0.05)
    np.testing.assert_allclose(p.stddev(), sd, rtol=0.05)
    fixed = np.column_stack([x, np.ones(20)])
    variance = np.einsum("ni,ij,nj->n", fixed, exact.covariance[:3, :3], fixed)
    variance += 1.0 + 0.25 * x[:, 0] ** 2 + 0.25
    p = linear.predict_distribution(x, [f"new {i}" for i in range(20)], num_samples=4000)
    np.testing.assert_allclose(p.mean(), fixed @ exact.mean[:3], atol=0.1)
    np.testing.assert_allclose(p.stddev(), np.sqrt(variance), rtol=0.07)


def test_rows_of_one_unknown_group_share_their_effects(linear):
    p = linear.conditional_distribution(np.zeros((3, 2)), ["new", "new", "other"], num_samples=400)
    means = p.mean().numpy()
    np.testing.assert_array_equal(means[0], means[1])
    assert abs(np.corrcoef(means[0], means[2])[0, 1]) < 0.3


@pytest.mark.long
def test_groups_of_few_rows_are_pulled_to_the_mean():
    """u = n tau^2 / (n tau^2 + sigma^2) (the group's mean residual), given the coefficients."""
    rng = np.random.default_rng(0)
    sizes = np.array([1, 1, 2, 5, 30])
    groups = np.repeat([*"abcde"], sizes)
    x, level = rng.normal(size=(39, 1)), np.repeat([2.0, -2.0, 1.0, -1.0, 2.0], sizes)
    y = x[:, 0] + level + rng.normal(size=39)
    model = MixedRegression(likelihoods.Normal(scale=1.0), group_scale=0.5, **UNIT)
    model.fit(x, y, groups, steps=50, verbose=0)
    slope, intercept = model.coefficients.mean().numpy()
    residual = y - slope * x[:, 0] - intercept
    means = np.array([residual[groups == name].mean() for name in "abcde"])
    shrinkage = sizes * 0.25 / (sizes * 0.25 + 1.0)
    np.testing.assert_allclose(model.random_effects.mean()[:, 0], shrinkage * means, atol=0.005)
    assert model.random_effects.groups == (*"abcde",)


@pytest.mark.long
def test_new_groups_from_their_rows(linear, exact, tmp_path):
    """The coefficients stay; the effects are exact given these, and so is what is predicted."""
    rng = np.random.default_rng(7)
    x, y, labels = rng.normal(size=(9, 2)), rng.normal(size=9), np.repeat(["a", "b", "c"], 3)
    more = linear.with_groups(x, y, labels)
    assert more.groups == (*range(10), "a", "b", "c")
    assert np.array_equal(more.coefficients.mean(), linear.coefficients.mean())
    q, found = linear.coefficients, more.random_effects
    for i, name in enumerate("abc"):
        rows = labels == name
        v = np.column_stack([np.ones(3), x[rows, 0]])
        covariance = np.linalg.inv(v.T @ v / 0.25 + np.diag([1.0, 4.0]))
        weights = covariance @ v.T / 0.25
        design = np.column_stack([x[rows], np.ones(3)])
        mean = weights @ (y[rows] - design @ q.mean().numpy())
        total = covariance + weights @ design @ q.covariance().numpy() @ design.T @ weights.T
        sd = np.sqrt(np.diag(total))
        np.testing.assert_allclose((found.mean()[10 + i] - mean) / sd, 0, atol=0.01)
        np.testing.assert_allclose(found.stddev()[10 + i] / sd, 1, atol=0.03)
    np.testing.assert_allclose(found.mean()[:10], linear.random_effects.mean(), atol=1e-3)
    with pytest.raises(ValueError, match=r"groups: got \[3\], which the model knows"):
        linear.with_groups(x[:1], y[:1], [3])
    # Labels that sort before those that are known do not come before them.
    first = linear.with_groups(x, y, np.repeat([-3, -2, -1], 3))
    assert first.groups == (*range(10), -3, -2, -1)
    assert np.array_equal(first.random_effects.mean(), found.mean())
    first.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.groups == first.groups
    assert np.array_equal(loaded.random_effects.mean(), found.mean())


def test_saved_and_loaded_in_safe_mode(linear, exact, tmp_path):
    linear.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    arguments = exact.x, exact.groups
    assert np.array_equal(loaded.predict(*arguments), linear.predict(*arguments))
    assert loaded.groups == linear.groups
    assert np.array_equal(loaded.random_effects.mean(), linear.random_effects.mean())


@pytest.mark.long
def test_mini_batches_and_free_posteriors(exact):
    model = of_known_variances()
    model.fit(exact.x, exact.y, exact.groups, batch_size=16, steps=3000, verbose=0)
    assert_exact(model, exact, 0.1)
    for block in (posteriors.FullRankNormal, posteriors.DiagonalNormal):
        model = of_known_variances(group_posterior=block)
        model.fit(exact.x, exact.y, exact.groups, verbose=0)
        q, sd = model.coefficients, exact.sd
        np.testing.assert_allclose((q.mean() - exact.mean[:3]) / sd[:3], 0, atol=0.1)
        # The optimum of independent normals: the inverse of the blocks of the precision.
        precision = np.linalg.inv(exact.covariance)
        wanted = np.sqrt(np.diag(np.linalg.inv(precision[:3, :3])))
        np.testing.assert_allclose(q.stddev() / wanted, 1, atol=0.03)
        assert model.elbo(exact.x, exact.y, exact.groups) < exact.log_evidence - 1.0


# Unknown scales.


@pytest.fixture(scope="module")
def one_way():
    """Groups of unequal size, of known noise: the scale is the one number without closed form."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(2, 9, 12)
    groups = np.repeat(np.arange(12), sizes)
    y = 0.8 * rng.normal(size=12)[groups] + 0.7 * rng.normal(size=len(groups))
    return np.linspace(-1, 1, len(groups))[:, None], y, groups


PRIORS = {
    "default": (None, stats.halfnorm(scale=1.0)),
    "half-t": (priors.Prior("HalfStudentT", df=4.0, loc=0.0, scale=0.5), stats.t(4, scale=0.5)),
    "log-normal": (
        priors.Prior("LogNormal", loc=-1.0, scale=0.5),
        stats.lognorm(0.5, scale=0.3679),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", ["default", "half-t", "log-normal"])
def test_the_scale_and_the_evidence_beside_quadrature(name, one_way):
    x, y, groups = one_way
    prior, density = PRIORS[name]
    model = MixedRegression(likelihoods.Normal(scale=0.7), group_scale=prior, **UNIT)
    model.fit(x, y, groups, verbose=0)
    fixed = np.column_stack([x, np.ones(len(x))])
    same = groups[:, None] == groups
    grid = np.linspace(1e-3, 4.0, 800)
    log_joint = (
        [
            stats.multivariate_normal.logpdf(
                y, np.zeros(len(y)), fixed @ fixed.T + tau**2 * same + 0.49 * np.eye(len(y))
            )
            for tau in grid
        ]
        + density.logpdf(grid)
        + (np.log(2.0) if name == "half-t" else 0.0)
    )
    weights = special.softmax(log_joint)
    mean = weights @ grid
    sd = np.sqrt(weights @ (grid - mean) ** 2)
    log_evidence = special.logsumexp(log_joint) + np.log(grid[1] - grid[0])
    scale = model.group_scale
    assert float(scale.mean()[0]) == pytest.approx(mean, abs=0.1 * sd)
    assert float(scale.stddev()[0]) == pytest.approx(sd, rel=0.1)
    assert log_evidence - 0.1 < model.elbo(x, y, groups, num_samples=4000) < log_evidence + 0.01
    draws = model.draws(4000)["group scale of intercept"]
    assert draws.mean() == pytest.approx(float(scale.mean()[0]), abs=0.1 * sd)


def nuts(log_prob, size):
    """Draws `[8000, size]` from a density."""

    @tf.function(jit_compile=True)
    def run():
        kernel = tfp.mcmc.NoUTurnSampler(log_prob, 0.1)
        kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(kernel, 400)
        return tfp.mcmc.sample_chain(
            2000,
            tf.zeros([4, size]),
            kernel=kernel,
            num_burnin_steps=500,
            trace_fn=None,
            seed=[0, 1],
        )

    draws = run().numpy()
    assert tfp.mcmc.potential_scale_reduction(draws).numpy().max() < 1.02
    return draws.reshape(-1, size)


def simulated(kind, slopes):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, 20)
    groups = np.repeat(np.arange(20), sizes)
    x = rng.normal(size=(len(groups), 2))
    effects = rng.normal(size=(20, 2)) * [1.0, 0.6 * slopes]
    eta = x @ [1.0, -0.5] + 0.3 + effects[groups, 0] + effects[groups, 1] * x[:, 0]
    y = {
        "linear": lambda: eta + 0.5 * rng.normal(size=len(eta)),
        "logistic": lambda: rng.random(len(eta)) < special.expit(eta),
        "poisson": lambda: rng.poisson(np.exp(eta)),
    }[kind]()
    return x, np.asarray(y, "float32"), groups


@functools.cache
def moments(kind, slopes):
    """Means and sds by NUTS: of coefficients and log scales, of scales, of effects `[20, R]`."""
    x, y, groups = simulated(kind, slopes)
    size, num = 1 + slopes, 3 + (kind == "linear")
    design = np.column_stack([x, np.ones(len(x))]).astype("float32")
    columns = np.column_stack([np.ones(len(x)), x[:, 0]])[:, :size].astype("float32")

    def log_prob(p):  # Not centred: effects z of standard deviation 1.
        log_scale, z = p[:, num : num + size], tf.reshape(p[:, num + size :], [-1, 20, size])
        u = z * tf.exp(log_scale)[:, None]
        eta = tf.linalg.matmul(p[:, :3], design, transpose_b=True)
        eta += tf.reduce_sum(tf.gather(u, groups, axis=1) * columns, axis=-1)
        prior = -0.5 * tf.reduce_sum(p[:, :num] ** 2, 1) - 0.5 * tf.reduce_sum(z**2, [1, 2])
        prior += tf.reduce_sum(log_scale - 0.5 * tf.exp(2 * log_scale), axis=1)
        if kind == "linear":
            noise = tf.nn.softplus(p[:, 3:4])
            terms = -0.5 * ((y - eta) / noise) ** 2 - tf.math.log(noise)
        elif kind == "logistic":
            terms = y * eta - tf.nn.softplus(eta)
        else:
            terms = y * eta - tf.exp(eta)
        return prior + tf.reduce_sum(terms, axis=1)

    draws = nuts(log_prob, num + 21 * size)
    scale = np.exp(draws[:, num : num + size])
    effects = draws[:, num + size :].reshape(-1, 20, size) * scale[:, None]
    parts = draws[:, : num + size], scale, effects
    return [(part.mean(axis=0), part.std(axis=0)) for part in parts]


FAMILIES = {
    "linear": likelihoods.Normal,
    "logistic": likelihoods.Bernoulli,
    "poisson": likelihoods.Poisson,
}


def distances(model, wanted):
    """How far means are off, in standard deviations, and the ratios of standard deviations."""
    found = model.coefficients, model.group_scale, model.random_effects
    pairs = [*zip(found, wanted, strict=True)]
    means = [np.abs((q.mean() - mean) / sd).max() for q, (mean, sd) in pairs]
    ratios = [np.ravel(q.stddev() / sd) for q, (_, sd) in pairs]
    # That of log tau is for itself: near zero its posterior has a longer tail than a normal.
    ratios[0] = ratios[0][: -len(ratios[1])]
    return means, ratios


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "slopes"),
    [("linear", 0), ("linear", 1), ("logistic", 0), ("logistic", 1), ("poisson", 1)],
)
def test_the_posterior_is_that_of_nuts(kind, slopes, capsys):
    x, y, groups = simulated(kind, slopes)
    model = MixedRegression(FAMILIES[kind](), ["intercept", "x0"][: 1 + slopes], **UNIT)
    model.fit(x, y, groups, verbose=0)
    means, ratios = distances(model, moments(kind, slopes))
    with capsys.disabled():
        print(f"\n{kind}, {1 + slopes} effects: means off by {np.round(means, 3)} sd, ", end="")
        print("ratios of sds from", *(f"{r.min():.2f} to {r.max():.2f}" for r in ratios))
    assert max(means) < 0.1
    assert np.abs(np.concatenate(ratios) - 1).max() < 0.15


@pytest.mark.long
def test_free_posteriors_are_too_narrow():
    x, y, groups = simulated("logistic", 0)
    model = MixedRegression(
        likelihoods.Bernoulli(), group_posterior=posteriors.FullRankNormal, **UNIT
    )
    model.fit(x, y, groups, verbose=0)
    _, ratios = distances(model, moments("logistic", 0))
    assert ratios[1].max() < 0.75  # of the scale


@pytest.mark.long
def test_an_encoder_makes_up_for_most_of_what_laplace_lacks():
    """Many small groups: beside parameters of their own, and beside none at all."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), rng.integers(1, 6, 300))
    x = rng.normal(size=(len(groups), 2))
    eta = x @ [1.0, -0.5] + 0.3 + 2.0 * rng.normal(size=300)[groups]
    y = rng.random(len(groups)) < special.expit(eta)
    own, shared = (
        MixedRegression(likelihoods.Bernoulli(), encoder=e, seed=0) for e in (None, network())
    )
    elbos = []
    for model in (own, shared):
        model.fit(x, y, groups, verbose=0)
        elbos.append(model.elbo(x, y, groups))
    own.local.assign(np.zeros(own.local.shape))
    laplace = own.elbo(x, y, groups)
    print(f"own {elbos[0]:.2f}, encoder {elbos[1]:.2f}, Laplace {laplace:.2f}")
    assert laplace + 0.5 * (elbos[0] - laplace) < elbos[1] < elbos[0]
    # Groups that were not in training: as good as if they had been.
    half = groups < 150
    small = MixedRegression(likelihoods.Bernoulli(), encoder=network(), seed=0)
    small.fit(x[half], y[half], groups[half], verbose=0)
    more = small.with_groups(x[~half], y[~half], groups[~half])
    gap = np.abs((more.random_effects.mean() - shared.random_effects.mean())[150:])
    assert (gap / shared.random_effects.stddev()[150:]).numpy().max() < 0.5


# The manners of Keras and of BayesianRegression.

X = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]])
Y = np.array([0.0, 1.0, 0.5, 2.0, 1.5, 2.5])


def stepped(*arguments, **options):
    model = MixedRegression(likelihoods.Normal(scale=1.0), seed=0, **options)
    model.compile(run_eagerly=True)
    model.fit(*arguments, steps=1, verbose=0)
    return model


@functools.cache
def small():
    return stepped(X, Y, [*"aabbcc"])


@pytest.mark.long
def test_names_and_summary(capsys):
    model = small()
    assert model.coefficient_names == ["x0", "intercept", "group scale of intercept (log)"]
    assert model.coefficients.names == tuple(model.coefficient_names)
    assert (model.random_effects.names, model.groups) == (("intercept",), (*"abc",))
    model.summary()
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == ["x0", "intercept", "group scale of intercept"]


@pytest.mark.long
def test_labels_of_any_kind_are_the_same_groups():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"dose": X[:, 0]})
    model = stepped(frame, Y, pd.Series(pd.Categorical([*"aabbcc"])), random=["dose"])
    numbers = stepped(X, Y, [2, 2, 3, 3, 5, 5], random=["x0"])
    assert model.effect_names == ["dose"]
    assert numbers.groups == (2, 3, 5)
    assert np.array_equal(model.random_effects.mean(), numbers.random_effects.mean())


@pytest.mark.long
def test_a_seed_repeats_bit_for_bit_and_unknown_groups_are_scored():
    first, second = stepped(X, Y, [*"aabbcc"]), small()
    assert np.array_equal(first.local, second.local)
    losses = [second.evaluate(X, Y, [*labels], verbose=0)[0] for labels in ("aabbcc", "xxyyzz")]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]


@pytest.mark.long
def test_several_outputs_and_correlations():
    y = np.array([0, 1, 2, 0, 1, 2])
    model = MixedRegression(likelihoods.Categorical(num_classes=3), correlated=True, seed=0)
    model.compile(run_eagerly=True)
    model.fit(X, y, [*"aabbcc"], steps=1, verbose=0)
    assert model.effect_names == ["intercept[0]", "intercept[1]", "intercept[2]"]
    assert model.random_effects.mean().shape == (3, 3)
    draws = model.draws(10)["correlation of intercept[0] and intercept[2]"]
    assert (np.abs(draws) <= 1.0).all()
    p = model.predict_distribution(X, [*"aabbcc"], num_samples=10)
    np.testing.assert_allclose(tf.reduce_sum(p.probs_parameter(), axis=-1), 1.0, rtol=1e-5)


@pytest.mark.long
def test_effects_are_reported_on_the_scale_of_x(exact):
    """Standardized or not: the same model but for the prior, which hardly matters here."""
    x = exact.x * [10.0, 1.0]
    found = []
    for standardize in (False, True):
        scale = [1.0, 0.5 if standardize else 0.5 / x[:, 0].std()]
        model = of_known_variances(group_scale=scale, standardize=standardize)
        model.fit(x - x.mean(axis=0), exact.y, exact.groups, verbose=0)
        found.append(model)
    plain, standardized = found
    assert float(standardized.group_scale.mean()[1]) == pytest.approx(0.5 / np.std(x[:, 0]))
    sd = plain.random_effects.stddev()
    gap = (standardized.random_effects.mean() - plain.random_effects.mean()) / sd
    assert np.abs(gap).max() < 0.5


MISTAKES = {
    "no groups": (lambda: stepped(X, Y), "groups: got None, wanted the label of the group"),
    "too few": (lambda: stepped(X, Y, [*"aab"]), "groups: got 3 labels, wanted 6"),
    "a table": (lambda: stepped(X, Y, X), r"groups: got shape \(6, 1\), wanted one label for each"),
    "missing": (
        lambda: stepped(X, Y, [1.0, np.nan, 1.0, 2.0, 2.0, np.nan]),
        "groups: got 2 labels that are NaN or None",
    ),
    "dates": (
        lambda: stepped(X, Y, np.array(["2020-01-01"] * 6, "datetime64[D]")),
        "groups: got .* wanted strings or numbers",
    ),
    "unknown names": (
        lambda: stepped(X, Y, [*"aabbcc"], random=["dose"]),
        r"random: got \['dose'\], wanted some of \['x0', 'intercept'\]",
    ),
    "no effects": (lambda: stepped(X, Y, [*"aabbcc"], random=[]), "random: got .*at least one"),
    "other groups": (
        lambda: small().fit(X, Y, [*"xxbbcc"]),
        r"groups: got labels that the model does not know, such as \['x'\]",
    ),
    "predicting without": (lambda: small().predict(X), "groups: got None"),
    "validation without": (
        lambda: small().fit(X, Y, [*"aabbcc"], validation_data=(X, Y)),
        r"validation_data: wanted \(x, y, groups\)",
    ),
    "a stream": (
        lambda: small().fit(tf.data.Dataset.from_tensors((X, Y))),
        "x: got .*Dataset, wanted arrays",
    ),
    "a scale of zero": (lambda: stepped(X, Y, [*"ab"], group_scale=0.0), "group_scale: got 0.0"),
    "scales of other number": (
        lambda: stepped(X, Y, [*"aabbcc"], group_scale=[1.0, 1.0]),
        "group_scale: got 2 numbers, wanted 1",
    ),
    "a prior of real numbers": (
        lambda: stepped(X, Y, [*"aabbcc"], group_scale=priors.StandardNormal(())),
        "group_scale: got .*, wanted a prior over positive numbers",
    ),
    "another posterior": (
        lambda: stepped(X, Y, [*"aabbcc"], group_posterior=posteriors.DiagonalNormal(2)),
        r"group_posterior: got DiagonalNormal .* of event_shape \(2,\)",
    ),
    "no network": (lambda: stepped(X, Y, [*"aabbcc"], encoder=3), "encoder: got 3, wanted"),
    "before training": (
        lambda: MixedRegression(likelihoods.Bernoulli()).predict(X, [*"aabbcc"]),
        "the model has not seen data yet",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    make, message = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.long
def test_one_group():
    with pytest.warns(UserWarning, match="groups: got one group"):
        stepped(X, Y, ["a"] * 6)
