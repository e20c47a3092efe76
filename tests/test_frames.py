"""Data frames: columns are checked by name, kept, and saved; history as a frame."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

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
    checks,
    diagnostics,
    likelihoods,
    load_model,
    networks,
    posteriors,
    priors,
)

pd = pytest.importorskip("pandas")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype("float32")
FRAME = pd.DataFrame(X, columns=["age", "dose", "weight"])
LABELS = np.arange(40) % 2


def ending(block, *first):
    return keras.Sequential([*first, keras.layers.Dense(block.params_size), block])


def make(likelihood=None):
    keras.utils.set_random_seed(0)
    decoder = ending(likelihoods.Normal(3) if likelihood is None else likelihood)
    vae = VAE(priors.StandardNormal(2), ending(posteriors.DiagonalNormal(2)), decoder, seed=0)
    vae.compile("adam")
    return vae


@pytest.fixture(scope="module")
def fitted():
    vae = make()
    vae.fit(FRAME, epochs=2, verbose=0, validation_data=FRAME[:10])
    return vae


def test_a_frame_is_its_array(fitted):
    vae = make()
    vae.fit(X, epochs=2, verbose=0, validation_data=X[:10])
    for a, b in zip(vae.get_weights(), fitted.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(vae.elbo(X, seed=0), fitted.elbo(FRAME, seed=0))
    assert vae.evaluate(X, verbose=0) == fitted.evaluate(FRAME, verbose=0)
    assert (vae.feature_names, fitted.feature_names) == (None, ["age", "dose", "weight"])


METHODS = {
    "fit": lambda vae, x: vae.fit(x, verbose=0),
    "evaluate": lambda vae, x: vae.evaluate(x, verbose=0),
    "predict": lambda vae, x: vae.predict(x, verbose=0),
    "elbo": lambda vae, x: vae.elbo(x),
    "posterior": lambda vae, x: vae.posterior(x),
    "reconstruct": lambda vae, x: vae.reconstruct(x),
    "log_weights": lambda vae, x: vae.log_weights(x),
    "log_marginal_likelihood": lambda vae, x: vae.log_marginal_likelihood(x, 10, verbose=0),
    "validation_data": lambda vae, x: vae.fit(X, validation_data=x, verbose=0),
    "latents": lambda vae, x: diagnostics.latents(vae, x),
}


@pytest.mark.parametrize("method", METHODS)
def test_other_columns_are_refused(method, fitted):
    name = method if method == "validation_data" else "x"
    for frame, message in (
        (FRAME[["dose", "age", "weight"]], r"got columns .* wanted them in the order \['age', 'd"),
        (FRAME.rename(columns={"age": "years"}), r"no columns \['age'\] and columns \['years'\]"),
        (FRAME.assign(sex=1.0), r"got columns \['sex'\], wanted"),
        (FRAME[["age", "dose"]], r"got no columns \['weight'\], wanted"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
            METHODS[method](fitted, frame)
    with pytest.raises(TypeError, match=f"^{name}: got columns that are no numbers, 'dose' of typ"):
        METHODS[method](fitted, FRAME.assign(dose="much"))


def test_names_are_saved_with_the_model(fitted, tmp_path):
    fitted.save(tmp_path / "vae.keras")
    loaded = load_model(tmp_path / "vae.keras")
    assert loaded.feature_names == ["age", "dose", "weight"]
    with pytest.raises(ValueError, match="wanted them in the order"):
        loaded.elbo(FRAME[["dose", "age", "weight"]])


def test_what_failed_is_not_learned():
    vae = make()
    with pytest.raises(ValueError, match="x: got NaN"):
        vae.fit(FRAME.rename(columns={"age": "years"}).replace(FRAME.iloc[0, 0], np.nan))
    assert vae.feature_names is None


@pytest.mark.long
def test_columns_of_the_likelihood_are_those_of_the_frame():
    columns = {"dose": likelihoods.Normal(), "age": likelihoods.StudentT(df=4.0)}
    for likelihood in (
        likelihoods.Columns(columns),
        likelihoods.Masked(likelihoods.Columns(columns)),
    ):
        vae = make(likelihood)
        with pytest.raises(ValueError, match=r"wanted them in the order \['dose', 'age'\]"):
            vae.fit(FRAME[["age", "dose"]], verbose=0)
        vae.fit(FRAME[["dose", "age"]], verbose=0)
    unnamed = make(likelihoods.Columns([likelihoods.Normal(), likelihoods.Normal()]))
    unnamed.fit(FRAME[["age", "dose"]], verbose=0)


MIXED = {
    "integers and floats": {"a": [1, 2], "b": [0.5, 1.0]},
    "truth": {"a": [True, False], "b": [0.5, 1.0]},
    "nullable": {"a": pd.array([1, 2], dtype="Int64"), "b": pd.array([1.5, 2.0], dtype="Float64")},
    "missing": {"a": pd.array([1, None], dtype="Int64"), "b": [0.5, 1.0]},
    "objects": {"a": np.array([1, 2.5], object), "b": [0.5, 1.0]},
}


@pytest.mark.parametrize("kind", MIXED)
def test_columns_of_several_types_are_numbers(kind):
    array = checks.as_array("x", pd.DataFrame(MIXED[kind]))
    assert array.dtype == np.float64
    wanted = [[None if v is pd.NA else float(v) for v in column] for column in MIXED[kind].values()]
    np.testing.assert_array_equal(array, np.array(wanted, "float64").T)


@pytest.mark.parametrize(
    "column", [["3", "4"], pd.Categorical(["a", "b"]), pd.to_datetime(["2020", "2021"]), [1j, 2j]]
)
def test_columns_of_other_types_are_refused_by_name(column):
    with pytest.raises(TypeError, match=r"x: got columns that are no numbers, 'city' of type"):
        checks.as_array("x", pd.DataFrame({"age": [1.0, 2.0], "city": column}))


@pytest.mark.long
def test_conditional_and_local_models_know_their_columns():
    cvae = ConditionalVAE(
        priors.StandardNormal(2),
        ending(posteriors.DiagonalNormal(2), networks.Join()),
        ending(likelihoods.Normal(3), networks.Join()),
        num_classes=2,
        seed=0,
    )
    cvae.compile("adam")
    cvae.fit(FRAME, pd.Series(LABELS), verbose=0)
    wrong = FRAME[["dose", "age", "weight"]]
    with pytest.raises(ValueError, match="wanted them in the order"):
        cvae.elbo((wrong, LABELS))
    local = LocalVAE(
        priors.StandardNormal(2), posteriors.DiagonalNormal(2), ending(likelihoods.Normal(3)), 40
    )
    local.compile("adam")
    local.fit(FRAME, verbose=0)
    assert local.feature_names == ["age", "dose", "weight"]


@pytest.mark.long
def test_regressions_know_their_columns(tmp_path):
    y = pd.Series(X[:, 0] + 0.1 * RNG.normal(size=40))
    model = BayesianRegression(likelihoods.Normal(), seed=0)
    model.fit(FRAME, y, steps=5, verbose=0)
    assert model.coefficient_names[:3] == ["age", "dose", "weight"]
    model.save(tmp_path / "model.keras")
    for regression in (model, load_model(tmp_path / "model.keras")):
        with pytest.raises(ValueError, match=r"no columns \['age'\] and columns \['years'\]"):
            regression.predict(FRAME.rename(columns={"age": "years"}))
        with pytest.raises(ValueError, match="wanted them in the order"):
            regression.evaluate(FRAME[["dose", "age", "weight"]], y, verbose=0)
    np.testing.assert_array_equal(model.predict(FRAME), model.predict(X))
    with pytest.raises(TypeError, match=r"x: got columns that are no numbers, 'sex' of type"):
        BayesianRegression(likelihoods.Normal()).fit(FRAME.assign(sex="m"), y)
    unnamed = BayesianRegression(likelihoods.Normal(), seed=0)
    unnamed.fit(X, y, steps=5, verbose=0)
    np.testing.assert_array_equal(unnamed.predict(FRAME), unnamed.predict(X))


@pytest.mark.long
def test_mixed_regressions_know_their_columns():
    y, groups = X[:, 0], pd.Series(["a", "b"] * 20, dtype="category")
    mixed = MixedRegression(likelihoods.Normal(), random=["intercept", "dose"], seed=0)
    mixed.fit(FRAME, y, groups, steps=5, verbose=0)
    with pytest.raises(ValueError, match="wanted them in the order"):
        mixed.predict(FRAME[["dose", "age", "weight"]], groups)


def simulator(theta, seed):
    return theta + tf.random.stateless_normal(tf.shape(theta), seed)


def histories():
    """Models of all kinds and what they are fitted to."""
    join = networks.Join
    posterior, decoder = posteriors.DiagonalNormal, likelihoods.Normal
    prior = priors.StandardNormal(2)
    yield "VAE", make(), (X,)
    yield (
        "ConditionalVAE",
        ConditionalVAE(prior, ending(posterior(2), join()), ending(decoder(3), join()), 2),
        (X, LABELS),
    )
    yield (
        "SemiSupervisedVAE",
        SemiSupervisedVAE(
            prior,
            ending(posteriors.OneHotCategorical(2)),
            ending(posterior(2), join()),
            ending(decoder(3), join()),
            2,
        ),
        (X, LABELS),
    )
    encoders, decoders = [ending(posterior(2))], [ending(decoder(3))]
    encoders, decoders = [*encoders, ending(posterior(2))], [*decoders, ending(decoder(2))]
    yield "HierarchicalVAE", HierarchicalVAE(prior, encoders, decoders), (X,)
    yield "LocalVAE", LocalVAE(prior, posterior(2), ending(decoder(3)), 40), (X,)
    yield "BayesianRegression", BayesianRegression(likelihoods.Normal()), (X, X[:, 0])
    mixed = MixedRegression(likelihoods.Normal())
    yield "MixedRegression", mixed, (X, X[:, 0], LABELS)
    simulating = SimulatorModel(priors.StandardNormal(3), simulator, posteriors.DiagonalNormal(3))
    yield "SimulatorModel", simulating, (X,)
    ratio = DensityRatio(keras.Sequential([keras.layers.Dense(1)]))
    yield "DensityRatio", ratio, (X, X + 1.0)


KINDS = {name: (model, data) for name, model, data in histories()}


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("VAE", "BayesianRegression")
        else pytest.param(name, marks=pytest.mark.long)
        for name in KINDS
    ],
)
def test_a_history_is_a_table(name):
    """Columns of one length, of numbers: one row for each epoch."""
    model, data = KINDS[name]
    options = {"num_simulations": 16} if name == "SimulatorModel" else {}
    if "Regression" not in name:
        model.compile("adam", **options)
    callbacks = [diagnostics.LatentMonitor(X[:20], every=2)] if name == "VAE" else []
    history = model.fit(*data, epochs=3, verbose=0, callbacks=callbacks).history
    table = pd.DataFrame(history)
    assert len(table) == 3
    assert "loss" in table
    assert all(dtype.kind == "f" for dtype in table.dtypes)
    assert np.isfinite(table["loss"]).all()
    assert all(np.ndim(value) == 0 for values in history.values() for value in values)
