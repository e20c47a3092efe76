"""Exported models give the numbers of the Python methods, also where there is TensorFlow alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
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
    flows,
    likelihoods,
    networks,
    noise,
    posteriors,
    priors,
    serving,
)
from tfpvae.semi_supervised import FrozenEncoder

tfd = tfp.distributions
dense, join = keras.layers.Dense, networks.Join

ROWS = 17
SIZES = (1, 3, ROWS)
BITS = np.random.default_rng(0).integers(0, 2, (ROWS, 6)).astype("float32")
LABELS = np.arange(ROWS, dtype="int32") % 3
WITHOUT_DENSITY = {"encode", "decode", "sample", "reconstruct"}

# What TensorFlow alone is: nothing else can be imported.
ALONE = """
import importlib.machinery, sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tfpvae", "tensorflow_probability", "tf_keras", "keras"):
            spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
            spec.submodule_search_locations = ["/nowhere"]  # TensorFlow looks for Keras's.
            return spec
    def create_module(self, spec):
        raise ImportError(f"refused: {spec.name}")
    def exec_module(self, module):
        raise ImportError("refused")

sys.meta_path.insert(0, Refusal())
import numpy as np
import tensorflow as tf

for folder in sys.argv[1:]:
    signatures = tf.saved_model.load(f"{folder}/model").signatures
    given, found = np.load(f"{folder}/given.npz"), {}
    for call in sorted({key.rsplit("/", 1)[0] for key in given}):
        inputs = {key.rsplit("/", 1)[1]: given[key] for key in given if key.startswith(call + "/")}
        inputs = {name: tf.constant(value) for name, value in inputs.items()}
        outputs = signatures[call.split("/")[1]](**inputs)
        found |= {f"{call}/{name}": value.numpy() for name, value in outputs.items()}
    np.savez(f"{folder}/found.npz", **found)
assert not {"tfpvae", "tensorflow_probability", "tf_keras", "keras"} & {*sys.modules}
"""


# Models. Distributions are built anew from the parameters that come out of a signature.


class Case(NamedTuple):
    """A model, its data, and the distributions whose parameters its signatures name."""

    model: Any
    x: np.ndarray
    q: Callable | None = None  # Of the outputs of `encode`; None where there are moments only.
    p: Callable | None = None  # Of the outputs of `decode`.
    y: np.ndarray | None = None
    mean: Callable = lambda p: p.mean()  # As `predict` has it: of classes the mode.
    signatures: Any = frozenset(WITHOUT_DENSITY | {"elbo"})

    def data(self, size):
        """What methods take as data."""
        labelled = self.y is not None and not isinstance(self.model, SemiSupervisedVAE)
        return (self.x[:size], self.y[:size]) if labelled else self.x[:size]

    def inputs(self, size):
        """The same for signatures."""
        data = self.data(size)
        return {"x": data[0], "y": data[1]} if isinstance(data, tuple) else {"x": data}

    def given(self, size):
        return {} if self.y is None else {"y": self.y[:size]}


def normals(o):
    return tfd.Independent(tfd.Normal(o["loc"], o["scale"]), 1)


def bits(o, ndims=1):
    return tfd.Independent(tfd.Bernoulli(logits=o["logits"]), ndims)


def network(block, *first):
    return keras.Sequential([*first, dense(8, "relu"), dense(block.params_size), block])


def mlp(prior=None, posterior=None, likelihood=None, x=BITS, q=normals, p=bits, **case):
    """A VAE of dense networks: of bits with two normal z, unless told otherwise."""
    model = VAE(
        prior or priors.Normal(2, initial={"loc": 0.5}),
        network(posterior or posteriors.DiagonalNormal(2)),
        network(likelihood or likelihoods.Bernoulli(6), keras.layers.Flatten()),
        seed=0,
    )
    return Case(model, x, q, p, **case)


def conv():
    layers = keras.layers
    down = layers.Conv2D(4, 3, strides=2, activation="relu")
    up = layers.Conv2DTranspose(1, 4, strides=2, padding="same")
    maps = (dense(32, "relu"), layers.Reshape((4, 4, 2)))
    model = VAE(
        priors.StandardNormal(2),
        keras.Sequential([down, layers.Flatten(), dense(4), posteriors.DiagonalNormal(2)]),
        keras.Sequential([*maps, up, likelihoods.Bernoulli((8, 8, 1))]),
        seed=0,
        preprocessing=layers.Rescaling(1 / 255),
    )
    x = np.random.default_rng(1).integers(0, 256, (ROWS, 8, 8, 1)).astype("uint8")
    return Case(model, x, normals, lambda o: bits(o, 3))


def counts():
    def p(o):
        m, d = o["mean"], o["dispersion"]
        logits = tf.math.log(m) + tf.math.log(d)  # log m / r; probabilities would round.
        one = tfd.NegativeBinomial(1 / d, logits, require_integer_total_count=False)
        return tfd.Independent(one, 1)

    return mlp(
        likelihood=likelihoods.NegativeBinomial(6),
        x=np.random.default_rng(1).poisson(3, (ROWS, 6)),
        p=p,
    )


class Table(NamedTuple):
    """Distributions of columns."""

    columns: list

    def log_prob(self, x):
        return sum(p.log_prob(x[..., i]) for i, p in enumerate(self.columns))


def table():
    kinds = {
        "height in m": likelihoods.Normal(scale=0.5),
        "visits": likelihoods.Poisson(),
        "colour": likelihoods.Categorical(num_classes=3),
    }
    x = np.column_stack(
        [
            np.random.default_rng(1).normal(size=ROWS),
            np.random.default_rng(1).poisson(2, ROWS),
            LABELS,
        ]
    ).astype("float32")
    x[::4, 1] = np.nan
    model = VAE(
        priors.StandardNormal(2),
        network(posteriors.DiagonalNormal(2), networks.FillMissing()),
        network(likelihoods.Masked(likelihoods.Columns(kinds))),
        seed=0,
    )

    def p(o):
        height = tfd.Normal(o["height in m.loc"], o["height in m.scale"])
        visits = tfd.Poisson(log_rate=o["visits.log_rate"])
        return Table([height, visits, tfd.Categorical(logits=o["colour.logits"])])

    def mean(p):
        height, visits, colour = p.distributions
        return p.join([height.mean(), visits.mean(), colour.mode()])

    return Case(model, x, normals, p, mean=mean)


def mixture():
    def p(o):
        parts = tfd.Normal(o["loc"], o["scale"])
        weights = tfd.Categorical(o["mixture_logits"])
        return tfd.Independent(tfd.MixtureSameFamily(weights, parts), 1)

    return mlp(likelihood=likelihoods.MixtureOf(likelihoods.Normal(), 2, event_shape=6), p=p)


def flow():
    kind = flows.InverseAutoregressive(2, hidden_units=(8,), context_size=3)
    return mlp(posterior=posteriors.Flow(2, kind), q=None)


def full_rank():
    def q(o):
        return tfd.MultivariateNormalTriL(o["loc"], o["scale_tril"])

    return mlp(posterior=posteriors.FullRankNormal(2), q=q)


def classes():
    def q(o):
        return tfd.Independent(tfd.OneHotCategorical(o["logits"]), 1)

    return mlp(priors.OneHotCategorical((2, 3)), posteriors.OneHotCategorical((2, 3)), q=q)


def implicit():
    f = keras.Sequential([dense(8, "relu"), dense(2)])
    block = posteriors.Implicit(2, f, context_size=4, noise_size=3)
    return mlp(posterior=block, q=None, signatures=WITHOUT_DENSITY)


def hierarchical(inference):
    heads = [posteriors.DiagonalNormal(3), posteriors.DiagonalNormal(2)]
    if inference == "bottom_up":
        encoders = [network(head) for head in heads]
    else:
        encoders = [(dense(8, "relu"), network(head)) for head in heads]
    decoders = [network(likelihoods.Bernoulli(6)), network(likelihoods.Normal(3))]
    model = HierarchicalVAE(priors.StandardNormal(2), encoders, decoders, inference, seed=0)
    return Case(model, BITS, p=bits)


def conditional(prior, y, num_classes=None):
    model = ConditionalVAE(
        prior,
        network(posteriors.DiagonalNormal(2), join()),
        network(likelihoods.Bernoulli(6), join()),
        num_classes=num_classes,
        seed=0,
    )
    return Case(model, BITS, normals, bits, y)


def of_vectors():
    y = np.random.default_rng(1).normal(size=(ROWS, 4)).astype("float32")
    return conditional(network(posteriors.DiagonalNormal(2)), y)


def semi_supervised():
    model = SemiSupervisedVAE(
        priors.StandardNormal(2),
        network(posteriors.OneHotCategorical(3)),
        network(posteriors.DiagonalNormal(2), join()),
        network(likelihoods.Bernoulli(6), join()),
        num_classes=3,
        seed=0,
    )
    signatures = WITHOUT_DENSITY | {"elbo", "classify"}
    return Case(model, BITS, normals, bits, LABELS, signatures=signatures)


def local():
    x = np.random.default_rng(1).integers(0, 9, (ROWS, 6)).astype("float32")
    decoder = network(likelihoods.Poisson(6))
    block = posteriors.DiagonalNormal(2)
    model = LocalVAE(priors.StandardNormal(2), block, decoder, ROWS, seed=0)
    model.compile("adam")
    model.fit(x, verbose=0)
    return Case(
        model, x, normals, lambda o: tfd.Independent(tfd.Poisson(log_rate=o["log_rate"]), 1)
    )


CASES = {
    "mlp": mlp,
    "conv": conv,
    "normal": lambda: mlp(likelihood=likelihoods.Normal(6, scale=0.3), p=normals),
    "counts": counts,
    "table": table,
    "mixture": mixture,
    "flow": flow,
    "full_rank": full_rank,
    "classes": classes,
    "implicit": implicit,
    "bottom_up": lambda: hierarchical("bottom_up"),
    "top_down": lambda: hierarchical("top_down"),
    "of_labels": lambda: conditional(priors.StandardNormal(2), LABELS, 3),
    "of_vectors": of_vectors,
    "semi_supervised": semi_supervised,
    "local": local,
    "vamp": lambda: mlp(priors.VampPrior(2, input_shape=6, num_components=3)),
    "mixture_prior": lambda: mlp(priors.NormalMixture(2, num_components=3)),
}
ELSEWHERE = ["conv", "table", "flow", "implicit", "top_down", "semi_supervised", "vamp"]


def long(value):
    return pytest.param(value, marks=pytest.mark.long)


def made(name):
    """A case whose model is built, with weights that are not where they start."""
    case = CASES[name]()
    if not case.model.built:
        case.model.reconstruct(case.data(ROWS))
    rng = np.random.default_rng(0)  # Of its own: tests run in any order.
    for variable in case.model.trainable_variables:
        variable.assign_add(0.1 * rng.normal(size=variable.shape))
    return case


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def calls(case):
    """The calls `(signature, inputs)`, and checks that what comes out is what methods make."""
    model, seed = case.model, 7
    key = {"seed": noise.as_seed(seed).numpy()}
    for size in SIZES:
        data, inputs, given = case.data(size), case.inputs(size), case.given(size)
        z = np.float32(model.posterior(data).sample(seed=[1, size]))
        yield "encode", inputs | key, lambda o, at=(data, given): check_encoded(case, o, *at, seed)
        yield "decode", {"z": z, **given}, lambda o, at=(z, given): check_decoded(case, o, *at)
        num = given or {"num": np.int32(size)}
        (of,) = num.values()
        wanted = {
            "sample": (num | key, "samples", model.sample(of, seed=seed)),
            "reconstruct": (inputs | key, "mean", model.reconstruct(data, seed=seed)),
        }
        if "elbo" in case.signatures:
            wanted["elbo"] = inputs | key, "elbo", model.elbo(data, 2, seed=seed)
        if "classify" in case.signatures:
            wanted["classify"] = inputs, "probs", model.predict_proba(data)
        for name, (given_to, output, value) in wanted.items():
            yield name, given_to, lambda o, at=(output, value): check_only(o, *at)


def check_only(outputs, name, wanted):
    assert {*outputs} == {name}
    close(outputs[name], wanted)


def check_encoded(case, outputs, data, given, seed):
    """The mean and the draws are those whose likelihoods `predict` and `reconstruct` take."""
    model = case.model
    if isinstance(model, SemiSupervisedVAE):
        given = {"y": model.predict_label(data)}
    close(case.mean(model.likelihood(outputs["mean"], **given)), model.predict(batch(data)))
    drawn = model.likelihood(outputs["samples"], **given)
    close(case.mean(drawn), model.reconstruct(data, seed=seed))
    if case.q is None:
        assert {*outputs} == {"mean", "samples"}
        return
    found, wanted = case.q(outputs), model.posterior(data)
    close(found.log_prob(outputs["samples"]), wanted.log_prob(outputs["samples"]))


def check_decoded(case, outputs, z, given):
    wanted = case.model.likelihood(z, **given)
    x = wanted.sample(seed=[3, 4])
    close(outputs["mean"], case.mean(wanted))
    close(case.p(outputs).log_prob(x), wanted.log_prob(x))


def batch(data):
    """What `predict` takes as data."""
    return tf.data.Dataset.from_tensors((data,)) if isinstance(data, tuple) else data


def export(case, path):
    case.model.export(path, num_samples=2)
    return tf.saved_model.load(str(path)).signatures


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_signatures_are_the_methods(name, tmp_path):
    case = made(name)
    signatures = export(case, tmp_path / "model")
    assert {*signatures} == {*case.signatures}
    called = set()
    for name, inputs, check in calls(case):
        check({key: value.numpy() for key, value in signatures[name](**inputs).items()})
        called.add(name)
    assert called == {*case.signatures}


@pytest.mark.parametrize("names", [["mlp"], long(ELSEWHERE)], ids=["mlp", "others"])
def test_tensorflow_alone_is_enough(names, tmp_path):
    """A process that can import nothing of ours, of TFP or of Keras makes the same numbers."""
    checks = {}
    for name in names:
        case = made(name)
        export(case, tmp_path / name / "model")
        given = {}
        for i, (signature, inputs, check) in enumerate(calls(case)):
            checks[name, f"{i:03}/{signature}"] = check
            given |= {f"{i:03}/{signature}/{key}": value for key, value in inputs.items()}
        np.savez(tmp_path / name / "given.npz", **given)
    folders = [str(tmp_path / name) for name in names]
    subprocess.run([sys.executable, "-c", ALONE, *folders], check=True, cwd=tmp_path)
    for (name, call), check in checks.items():
        found = np.load(tmp_path / name / "found.npz")
        check({key.rsplit("/")[-1]: found[key] for key in found if key.startswith(f"{call}/")})


def test_nothing_but_tensorflow_can_be_imported_there():
    """The process of the test above would have failed otherwise."""
    for name in ("tfpvae", "tensorflow_probability", "tf_keras", "keras"):
        code = f"{ALONE.split('import numpy')[0]}\nimport {name}"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == 1
        assert f"refused: {name}" in run.stderr


@pytest.mark.long
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_precision(policy, tmp_path):
    keras.mixed_precision.set_global_policy(policy)
    case = made("mlp")
    signatures = export(case, tmp_path / "model")
    dtype = tf.float64 if policy == "float64" else tf.float32
    for name, signature in signatures.items():
        assert {o.dtype for o in signature.structured_outputs.values()} == {dtype}, name
    key = noise.as_seed(7)
    elbo = signatures["elbo"](x=BITS, seed=key)["elbo"]
    close(elbo, case.model.elbo(BITS, 2, seed=7))
    mean = signatures["reconstruct"](x=BITS, seed=key)["mean"]
    close(mean, case.model.reconstruct(BITS, seed=7))


def test_a_signature_holds_variables_and_no_layers(tmp_path):
    case = made("mlp")
    case.model.export(tmp_path / "model")
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    assert not (tmp_path / "model" / "keras_metadata.pb").exists()
    weights = sum(np.prod(v.shape) for v in case.model.trainable_variables)
    assert sum(np.prod(v.shape) for v in loaded.read) == weights  # No state of the noise.


@pytest.mark.long
def test_x_has_the_type_of_the_first_data(tmp_path):
    def dtype(model, **options):
        model.export(tmp_path / "model", overwrite=True, **options)
        signatures = tf.saved_model.load(str(tmp_path / "model")).signatures
        return signatures["encode"].structured_input_signature[1]["x"].dtype

    images = made("conv").model
    assert dtype(images) == tf.uint8
    assert dtype(images, dtype="float32") == tf.float32
    images.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.predict(np.float32(np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1))), verbose=0)
    assert dtype(loaded) == tf.uint8
    with pytest.raises(TypeError, match="dtype: got 'string', wanted a type of numbers"):
        images.export(tmp_path / "model", dtype="string", overwrite=True)


@pytest.mark.long
def test_other_data_of_a_local_model_are_nan(tmp_path):
    case = made("local")
    x = np.concatenate([case.x[:1], case.x[:1] + 0.5])
    outputs = export(case, tmp_path / "model")["encode"](x=x, seed=noise.as_seed(0))
    for value in outputs.values():
        known, unknown = value.numpy()
        assert np.isfinite(known).all()
        assert np.isnan(unknown).all()


@pytest.mark.long
def test_a_frozen_encoder_draws_by_the_seed(tmp_path):
    """Of M1+M2: its first draw comes from the seed of the signature, as in the methods."""
    first = made("mlp").model
    model = SemiSupervisedVAE(
        priors.StandardNormal(2),
        network(posteriors.OneHotCategorical(3)),
        network(posteriors.DiagonalNormal(2), join()),
        network(likelihoods.Normal(2), join()),
        num_classes=3,
        seed=0,
        preprocessing=FrozenEncoder(first.encoder),
    )
    model.reconstruct(BITS)
    model.export(tmp_path / "model", num_samples=2)
    served = tf.saved_model.load(str(tmp_path / "model")).signatures
    key = noise.as_seed(7)
    close(served["classify"](x=BITS)["probs"], model.predict_proba(BITS))
    close(served["reconstruct"](x=BITS, seed=key)["mean"], model.reconstruct(BITS, seed=7))
    close(served["elbo"](x=BITS, seed=key)["elbo"], model.elbo(BITS, 2, seed=7))


def test_a_seed_repeats_and_another_does_not(tmp_path):
    sample = export(made("mlp"), tmp_path / "model")["sample"]
    first, again, other = (
        sample(num=tf.constant(100), seed=tf.constant([3, seed]))["samples"].numpy()
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


# Files.


def test_what_is_there_is_left_alone(tmp_path, monkeypatch):
    model = made("mlp").model
    path = tmp_path / "new" / "model"  # The folder around it is made.
    model.export(path)
    before = (path / "saved_model.pb").read_bytes()
    with pytest.raises(FileExistsError, match="wanted a new name, or overwrite=True"):
        model.export(path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    (tmp_path / "file").write_text("dear file")
    for name in ("mine", "file"):
        with pytest.raises(FileExistsError, match="nothing that export writes there"):
            model.export(tmp_path / name, overwrite=True)
    (tmp_path / "z.tflite").write_text("another")
    with pytest.raises(FileExistsError, match="wanted a new name, or overwrite=True"):
        model.export(tmp_path / "z.tflite")
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"

    def fail(module, folder, **options):
        Path(folder).mkdir()
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(tf.saved_model, "save", fail)
        with pytest.raises(OSError, match="the disk is full"):
            model.export(path, overwrite=True)
        with pytest.raises(OSError, match="the disk is full"):
            model.export(tmp_path / "new" / "another")
    assert [item.name for item in path.parent.iterdir()] == ["model"]
    assert (path / "saved_model.pb").read_bytes() == before
    model.encoder.layers[0].kernel.assign_add(tf.ones_like(model.encoder.layers[0].kernel))
    model.export(path, overwrite=True)
    assert [item.name for item in path.parent.iterdir()] == ["model"]
    served = tf.saved_model.load(str(path)).signatures["reconstruct"]
    close(served(x=BITS, seed=noise.as_seed(1))["mean"], model.reconstruct(BITS, seed=1))


def test_models_that_are_not_served(tmp_path):
    def parts():
        encoder = network(posteriors.DiagonalNormal(2))
        return priors.StandardNormal(2), encoder, network(likelihoods.Bernoulli(6))

    with pytest.raises(ValueError, match="got a model that has not seen data yet"):
        VAE(*parts()).export(tmp_path / "model")
    with pytest.raises(ValueError, match="has not seen data yet"):
        BayesianRegression(likelihoods.Bernoulli()).export(tmp_path / "model")
    with pytest.raises(TypeError, match="export: got a DensityRatio, wanted a VAE"):
        DensityRatio(dense(1)).export(tmp_path / "model")
    with pytest.raises(TypeError, match="export: got a MixedRegression"):
        MixedRegression(likelihoods.Bernoulli()).export(tmp_path / "model")
    with pytest.raises(ValueError, match="num_samples: got 0"):
        made("mlp").model.export(tmp_path / "model", num_samples=0)
    assert not [*tmp_path.iterdir()]


# TFLite.


def interpreter(path):
    return tf.lite.Interpreter(model_path=str(path)).get_signature_runner()


ignore_deprecation = pytest.mark.filterwarnings(
    r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning"
)


@ignore_deprecation
@pytest.mark.parametrize(
    "name", ["mlp", *map(long, ["conv", "normal", "counts", "table", "of_labels", "classes"])]
)
def test_tflite_decoder(name, tmp_path):
    case = made(name)
    case.model.export(tmp_path / "decoder.tflite")
    run = interpreter(tmp_path / "decoder.tflite")
    for size in SIZES:
        shape, given = (size, *case.model.prior.event_shape), case.given(size)
        z = np.float32(np.random.default_rng(1).normal(size=shape))
        found = run(z=z, **given)
        assert {*found} == {"mean"}
        close(found["mean"], case.mean(case.model.likelihood(z, **given)))


def test_tflite_without_an_operation(tmp_path):
    decoder = keras.Sequential([dense(6, tf.math.atanh), likelihoods.Bernoulli(6)])
    vae = VAE(priors.StandardNormal(2), network(posteriors.DiagonalNormal(2)), decoder)
    vae.build((None, 6))
    with pytest.raises(ValueError, match=r"TFLite has none of the operations Atanh of.*SELECT_TF"):
        vae.export(tmp_path / "decoder.tflite")
    assert not [*tmp_path.iterdir()]
    vae.export(tmp_path / "model")  # A SavedModel has them all.


# Regressions.


@pytest.mark.parametrize(
    ("likelihood", "parameter"),
    [
        (likelihoods.Bernoulli(), "logits"),
        pytest.param(likelihoods.Categorical(num_classes=3), "logits", marks=pytest.mark.long),
        pytest.param(likelihoods.Normal(), "loc", marks=pytest.mark.long),
        pytest.param(likelihoods.Poisson(), "log_rate", marks=pytest.mark.long),
        pytest.param(likelihoods.NegativeBinomial(), "dispersion", marks=pytest.mark.long),
    ],
)
def test_regression(likelihood, parameter, tmp_path, rng):
    x, y = rng.normal(size=(30, 2)).astype("float32"), np.float32(np.arange(30) % 2)
    model = BayesianRegression(likelihood)
    model.fit(x, y, steps=20, verbose=0)
    model.export(tmp_path / "model", num_samples=40)
    predict = tf.saved_model.load(str(tmp_path / "model")).signatures["predict"]
    for size in (1, 3, 30):
        found = predict(x=x[:size], seed=noise.as_seed(5))
        close(found["mean"], model.predict(x[:size], num_samples=40, seed=5))
        p = model.predict_distribution(x[:size], num_samples=40, seed=5)
        components = model.conditional_distribution(x[:size], num_samples=40, seed=5)
        if parameter == "logits":
            close(found["probs"], p.probs_parameter())
        if parameter == "dispersion":
            close(found["conditional_mean"], components.mean())
        else:
            close(found[f"conditional_{parameter}"], getattr(components, parameter))


# The functions themselves.


def test_dtypes_of_numbers():
    assert serving.numeric("dtype", "uint8") == tf.uint8
    for wrong in ("string", "number", object()):
        with pytest.raises(TypeError, match="dtype: got"):
            serving.numeric("dtype", wrong)
