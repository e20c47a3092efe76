"""Files: written whole or not at all, the same model again, and none of them runs code."""

import contextlib
import errno
import importlib.util
import inspect
import io
import itertools
import json
import os
import pkgutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import fuzz_files
import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

import tfpvae
from tfpvae import (
    VAE,
    BayesianRegression,
    ConditionalVAE,
    DensityRatio,
    HierarchicalVAE,
    KLDivergenceRegularizer,
    LocalVAE,
    MixedRegression,
    SemiSupervisedVAE,
    SimulatorModel,
    flows,
    likelihoods,
    networks,
    objectives,
    posteriors,
    priors,
    saving,
    schedules,
    training,
)
from tfpvae.saving import InvalidModelFile

GOLDEN = Path(__file__).parent / "golden"
X = np.eye(4, dtype="float32")[[0, 1, 2, 3, 1, 2, 3, 0, 2, 3, 1, 0]]
LABELS = np.arange(12) % 2
Y = LABELS.astype("float32")

spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


def net(*layers):
    return keras.Sequential(
        [keras.layers.Dense(size) if isinstance(size, int) else size for size in layers]
    )


def vae(objective=None, prior=None, encoder=None, decoder=None, optimizer="adam"):
    model = VAE(
        priors.StandardNormal(2) if prior is None else prior,
        net(4, posteriors.DiagonalNormal(2)) if encoder is None else encoder,
        net(4, likelihoods.Bernoulli(4)) if decoder is None else decoder,
        seed=1,
    )
    model.compile(optimizer, objective=objective)
    return model


def conditional():
    join = networks.Join
    model = ConditionalVAE(
        priors.StandardNormal(2),
        net(join(), 4, posteriors.DiagonalNormal(2)),
        net(join(), 4, likelihoods.Bernoulli(4)),
        num_classes=2,
        seed=1,
    )
    model.compile("rmsprop")
    return model


def semi_supervised():
    join = networks.Join
    model = SemiSupervisedVAE(
        priors.StandardNormal(1),
        net(2, posteriors.OneHotCategorical(2)),
        net(join(), 2, posteriors.DiagonalNormal(1)),
        net(join(), 4, likelihoods.Bernoulli(4)),
        num_classes=2,
        seed=1,
    )
    model.compile("adam")
    return model


def hierarchical():
    model = HierarchicalVAE(
        priors.StandardNormal(1),
        [net(4, posteriors.DiagonalNormal(2)), net(2, posteriors.DiagonalNormal(1))],
        [net(4, likelihoods.Bernoulli(4)), net(4, likelihoods.Normal(2))],
        seed=1,
    )
    model.compile(
        "adam",
        objective=objectives.ELBO(kl_weight=schedules.PerLayer([schedules.Linear(20), 0.5])),
    )
    return model


def local():
    model = LocalVAE(
        priors.StandardNormal(2), posteriors.DiagonalNormal(2), net(4, likelihoods.Bernoulli(4)), 12
    )
    model.compile("adam")
    return model


@keras.saving.register_keras_serializable("tests")
def simulator(theta, seed):
    return theta + tf.random.stateless_normal(tf.shape(theta), seed)


def blocks():
    """A Keras model of blocks, functional, with Keras's operators on tensors."""
    x = keras.Input((4,))
    h = keras.layers.Dense(5, "relu", kernel_regularizer=keras.regularizers.L2(0.01))(x * 2 + 1)
    h = tf.concat([h, tf.exp(-h), keras.layers.LeakyReLU()(h)[:, 1:3]], axis=-1)
    kl = KLDivergenceRegularizer(priors.Normal(2))
    h = keras.layers.BatchNormalization()(h)
    # Without noise: outside of our models TFP draws it, from a state that is no part of a file.
    q = posteriors.DiagonalNormal(2, activity_regularizer=kl, convert_to_tensor_fn="mean")
    z = q(keras.layers.Dense(4)(h))
    out = likelihoods.Bernoulli(4, convert_to_tensor_fn="mean")(keras.layers.Dense(4)(z))
    model = keras.Model(x, out)
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model.compile(
        keras.optimizers.Adam(rate, clipnorm=1.0),
        loss=tfpvae.negative_log_prob,
        metrics=["mse", keras.metrics.MeanAbsoluteError(), keras.metrics.mean_squared_error],
    )
    return model


def fit(model, *data):
    return model.fit(*(data or (X,)), batch_size=4, epochs=1, shuffle=False, verbose=0).history


def fit_with_labels(model):
    return fit(model, X, LABELS)


def fit_targets(model):
    return fit(model, X, X)


def fit_steps(model, *data):
    return model.fit(*(data or (X[:, :2], Y)), steps=12, verbose=0).history


def elbo(model):
    return model.elbo(X, seed=1)


# name: (model, some training, numbers that its weights decide)
MODELS = {
    "VAE": (lambda: vae(objectives.ELBO(kl_weight=schedules.Linear(20))), fit, elbo),
    "VAE, IWAE": (lambda: vae(objectives.IWAE(num_samples=3)), fit, elbo),
    "VAE, Cyclical": (
        lambda: vae(objectives.ELBO(kl_weight=schedules.Cyclical(8)), optimizer="rmsprop"),
        fit,
        elbo,
    ),
    "VAE, AdversarialELBO": (
        lambda: vae(
            objectives.AdversarialELBO(net(4, 1)),
            encoder=net(4, posteriors.Implicit(2, net(4, 2), context_size=4)),
        ),
        fit,
        lambda model: model.discriminator.get_weights()[0],
    ),
    "VAE, flow": (
        lambda: vae(encoder=net(9, posteriors.Flow(2, flows.Planar(1)))),
        fit,
        elbo,
    ),
    "VAE, VampPrior": (lambda: vae(prior=priors.VampPrior(2, pseudo_inputs=X[:3])), fit, elbo),
    "VAE, Masked": (
        lambda: vae(decoder=net(4, likelihoods.Masked(likelihoods.Bernoulli(4)))),
        fit,
        elbo,
    ),
    "HierarchicalVAE": (hierarchical, fit, elbo),
    "ConditionalVAE": (
        conditional,
        fit_with_labels,
        lambda model: model.elbo((X, LABELS), seed=1),
    ),
    "SemiSupervisedVAE": (semi_supervised, fit_with_labels, lambda model: model.predict_proba(X)),
    "LocalVAE": (local, fit, elbo),
    "BayesianRegression": (
        lambda: BayesianRegression(likelihoods.Bernoulli(), seed=1),
        fit_steps,
        lambda model: model.coefficients.mean().numpy(),
    ),
    "MixedRegression": (
        lambda: MixedRegression(likelihoods.Normal(), random=["intercept"], seed=1),
        lambda model: fit_steps(model, X[:, :1], X[:, 1], np.repeat(["a", "b", "c"], 4)),
        lambda model: model.random_effects.mean(),
    ),
    "SimulatorModel": (
        lambda: SimulatorModel(
            priors.StandardNormal(1), simulator, posteriors.DiagonalNormal(1), seed=1
        ),
        lambda model: fit_steps(model, X[:, :1]),
        lambda model: model.posterior().mean().numpy(),
    ),
    "DensityRatio": (
        lambda: compiled(DensityRatio(net(3, 1), seed=1)),
        lambda model: fit(model, X[:, :2], X[:7, 1:3]),
        lambda model: model.log_ratio(X[:, :2]),
    ),
    "keras.Model": (blocks, fit_targets, lambda model: model.predict(X, verbose=0)),
    "keras.Sequential": (
        lambda: compiled(net(keras.Input((4,)), 8, likelihoods.Normal(4))),
        fit_targets,
        lambda model: model(X).log_prob(X).numpy(),
    ),
}
CUSTOM = {"tests>simulator": simulator}


def compiled(model):
    is_ratio = isinstance(model, DensityRatio)
    model.compile("adam", **({} if is_ratio else {"loss": tfpvae.negative_log_prob}))
    return model


def model_classes():
    """The public classes of models, wherever they are."""
    for module in pkgutil.iter_modules(tfpvae.__path__):
        if module.name == "__main__":
            continue
        for name, value in vars(importlib.import_module(f"tfpvae.{module.name}")).items():
            is_class = inspect.isclass(value) and issubclass(value, keras.Model)
            if is_class and not name.startswith("_") and value.__module__.startswith("tfpvae"):
                yield name


def test_every_class_of_models_has_a_line():
    known = {name.split(",")[0] for name in MODELS} - {"keras.Model", "keras.Sequential"}
    assert set(model_classes()) - {"ProbabilisticModel"} == known


def variables(model):
    found = [*model.variables, *model.optimizer.variables]
    ratio = getattr(model, "discriminator", None)
    if ratio is not None and ratio.optimizer is not None:
        found += [*ratio.variables, *ratio.optimizer.variables]
    return [variable.numpy() for variable in found]


def assert_same(these, those):
    for one, other in zip(these, those, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore:fit ended with kl_weight")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "VAE" else pytest.mark.long) for n in MODELS]
)
def test_a_loaded_model_goes_on_bit_for_bit(name, tmp_path):
    build, train, numbers = MODELS[name]
    model = build()
    train(model)
    path = tmp_path / "model.keras"
    saving.save(model, path)
    loaded = tfpvae.load_model(path, CUSTOM)
    assert type(loaded) is type(model)
    assert_same(variables(loaded), variables(model))
    np.testing.assert_array_equal(numbers(loaded), numbers(model))
    histories = []
    for each in (model, loaded):
        keras.utils.set_random_seed(3)
        histories.append(train(each))
    assert histories[0] == histories[1]
    assert np.isfinite(list(itertools.chain(*histories[0].values()))).all()
    assert_same(variables(loaded), variables(model))
    np.testing.assert_array_equal(numbers(loaded), numbers(model))


# What is written.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file of a VAE, and the ELBO of X."""
    keras.utils.set_random_seed(0)
    model = vae()
    fit(model)
    path = tmp_path_factory.mktemp("saved") / "vae.keras"
    model.save(path)
    return path, model


def test_metadata_say_who_wrote_it_and_keras_still_reads_it(saved):
    path, model = saved
    with zipfile.ZipFile(path) as archive:
        metadata = json.loads(archive.read("metadata.json"))
    assert metadata["tfpvae_version"] == tfpvae.__version__
    assert metadata["tfpvae_format"] == saving.FORMAT
    assert set(metadata["sha256"]) == {"config.json", "model.weights.h5"}
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(elbo(loaded), elbo(model))


def test_notes_are_kept_in_the_file(saved, tmp_path):
    """And change neither what is loaded nor what Keras reads."""
    notes = {"columns": ["a", "\N{GREEK SMALL LETTER BETA}"], "history": {"loss": [1.5, None]}}
    (plain, model), path = saved, tmp_path / "noted.keras"
    saving.save(model, path, notes=notes)
    assert saving.read_notes(path) == notes
    assert saving.read_notes(plain) == {}
    for load in (tfpvae.load_model, keras.models.load_model):
        assert_same(variables(load(path)), variables(model))
    for odd in ({"x": np.ones(2)}, {"x": float("nan")}):
        with pytest.raises(TypeError, match="notes: got what is no JSON"):
            saving.save(model, tmp_path / "odd.keras", notes=odd)
    with pytest.raises(TypeError, match="notes: got 'text', wanted a dictionary"):
        saving.save(model, tmp_path / "odd.keras", notes="text")
    assert [file.name for file in tmp_path.iterdir()] == ["noted.keras"]


def test_notes_of_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        saving.read_notes(tmp_path / "x.keras")
    path = tmp_path / "y.keras"
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(saving.InvalidModelFile, match="no readable archive"):
        saving.read_notes(path)


def fails(whole):
    """Half of what should be written, and an error."""
    whole.write_text("half")
    raise KeyError


def test_what_is_written_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    with saving.atomic(path) as whole:
        whole.write_text("old")
        assert not path.exists()
    with pytest.raises(KeyError), saving.atomic(path) as whole:
        fails(whole)
    assert path.read_text() == "old"
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    with saving.atomic(link) as whole:
        whole.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(FileNotFoundError, match="no such folder"):
        saving.atomic(tmp_path / "no" / "a").__enter__()
    with pytest.raises(FileNotFoundError), saving.atomic(path):
        pass  # Nothing was written.
    assert sorted(tmp_path.iterdir()) == [path, link]


def test_folders_take_each_others_place(tmp_path):
    for text in ("old", "new"):
        with saving.atomic(tmp_path / "model") as whole:
            (whole / "variables").mkdir(parents=True)
            (whole / "variables" / "index").write_text(text)
    with pytest.raises(KeyError), saving.atomic(tmp_path / "model") as whole:
        fails(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "variables" / "index").read_text() == "new"


def test_only_one_kind_of_name(saved, tmp_path):
    with pytest.raises(ValueError, match=r"path: got .*m\.h5', wanted a name that ends in \.keras"):
        saving.save(saved[1], tmp_path / "m.h5")


def run(code, *words, **kwargs):
    """A program in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(tfpvae.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, words)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        **kwargs,
    )


FULL = """
import errno, pathlib, resource, signal, sys
import tfpvae
path = pathlib.Path(sys.argv[1])
model = tfpvae.load_model(path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    model.save(path)
except OSError as error:
    print(error.errno == errno.EFBIG, error)
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit of the size of files here")
def test_a_full_disk_leaves_the_old_file(saved, tmp_path):
    path = tmp_path / "vae.keras"
    path.write_bytes(saved[0].read_bytes())
    printed, _ = run(FULL, path).communicate(timeout=120)
    assert printed.splitlines()[-1].startswith("True [Errno 27] File too large: nothing was writ")
    assert str(path) in printed
    assert path.read_bytes() == saved[0].read_bytes()
    assert [*tmp_path.iterdir()] == [path]


SAVES = """
import itertools, sys
import tfpvae
model = tfpvae.load_model(sys.argv[1])
for i in itertools.count():
    model.noise.seed.assign([i, i])
    model.save(sys.argv[2])
    print(i, flush=True)
"""


@pytest.mark.long
def test_a_killed_process_leaves_a_file_that_loads(saved, tmp_path):
    """Killed at nine points of time within a save."""
    path = tmp_path / "vae.keras"
    seeds = set()
    for i in range(3):
        process = run(SAVES, saved[0], path)
        for _ in range(2):
            process.stdout.readline()
        for _ in range(3):
            time.sleep(0.01 * (1 + i))
            process.send_signal(signal.SIGSTOP)
            seeds.add(int(tfpvae.load_model(path).noise.seed[0]))
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()
        model = tfpvae.load_model(path)
        assert np.isfinite(elbo(model)).all()
        seeds.add(int(model.noise.seed[0]))
    assert len(seeds) > 1  # It was written meanwhile.


# Files of earlier versions.


@pytest.mark.filterwarnings("ignore:fit ended with kl_weight")
@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("*/*.keras")), ids=lambda path: "/".join(path.parts[-2:])
)
def test_files_of_every_version(path):
    expected = json.loads((path.parent / "expected.json").read_text())[path.stem]
    model = tfpvae.load_model(path)
    for found, wanted in zip(golden.numbers(path.stem, model), expected["log_prob"], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert int(model.optimizer.iterations) == expected.get("iterations", 40)
    if path.stem == "vae":  # Three of ten steps, from 0.1.
        assert float(model.objective.schedule.value()) == pytest.approx(0.1 + 0.9 * 0.3)
    assert np.isfinite(golden.step(path.stem, model))


def functional():
    """A model of Keras's own, of our layers, loss and regularizer."""
    regularizer = KLDivergenceRegularizer(priors.StandardNormal(2))
    x = keras.Input((4,))
    z = net(4, posteriors.DiagonalNormal(2, activity_regularizer=regularizer))(x)
    model = keras.Model(x, likelihoods.Bernoulli(4)(keras.layers.Dense(4)(z)))
    model.compile("adam", loss=tfpvae.negative_log_prob)
    model.fit(X, X, verbose=0)
    return model


FILES = {"model.keras": {}, "model": {"save_format": "tf"}}


@pytest.mark.parametrize(
    ("imports", "names"),
    [
        ("import tfpvae, tf_keras as keras", ["model.keras"]),
        pytest.param("import tfpvae, tf_keras as keras", FILES, marks=pytest.mark.long),
        pytest.param("import tf_keras as keras, tfpvae", FILES, marks=pytest.mark.long),
        pytest.param("import tf_keras as keras", [], marks=pytest.mark.long),
    ],
)
@pytest.mark.long
def test_keras_loads_them_in_a_process_that_only_imports(imports, names, tmp_path):
    """In what order it may be; for models of ours it suffices that the file names their module."""
    model = functional()
    for name in names:
        model.save(tmp_path / name, **FILES[name])
    golden_files = sorted(GOLDEN.glob("*/*.keras"))
    files = [str(path) for path in [*golden_files, *(tmp_path / name for name in names)]]
    code = f"{imports}; [print(type(keras.models.load_model(f)).__name__) for f in {files}]"
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(tfpvae.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    kinds = {"vae": "VAE", "hierarchical": "HierarchicalVAE", "regression": "BayesianRegression"}
    wanted = [kinds[path.stem] for path in golden_files]
    assert process.stdout.split() == [*wanted, *["Functional"] * len(names)]


def test_this_version_has_its_files():
    names = {path.name for path in (GOLDEN / tfpvae.__version__).iterdir()}
    assert names == {f"{name}.keras" for name in golden.MODELS} | {"expected.json"}
    with pytest.raises(FileExistsError):
        golden.main()


# Files from somebody else.


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def crafted(saved, folder, config=None, weights=None, extra=(), drop=(), **zip_options):
    """The file with another configuration or weights, its digests gone: a plain file of Keras."""
    content = members(saved[0])
    content["metadata.json"] = b'{"keras_version": "2.18.0"}'
    if config is not None:
        tree = json.loads(content["config.json"])
        made = config(tree)
        content["config.json"] = json.dumps(tree if made is None else made).encode()
    if weights is not None:
        file = io.BytesIO(content["model.weights.h5"])
        with h5py.File(file, "r+") as h5:
            weights(h5)
        content["model.weights.h5"] = file.getvalue()
    path = folder / "crafted.keras"
    with zipfile.ZipFile(path, "w", **zip_options) as archive:
        for name, value in content.items():
            if name not in drop:
                archive.writestr(name, value)
        for name, value in extra:
            archive.writestr(name, value)
    return path


def test_a_file_of_keras_without_our_metadata_loads(saved, tmp_path):
    path = crafted(saved, tmp_path)
    np.testing.assert_array_equal(elbo(tfpvae.load_model(path)), elbo(saved[1]))
    path = crafted(saved, tmp_path, compression=zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(elbo(tfpvae.load_model(path)), elbo(saved[1]))


def dense(config):
    """The first Dense layer of the encoder."""
    return config["config"]["encoder"]["config"]["layers"][1]


def replace(**changes):
    return lambda config: dense(config).update(changes)


def function(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def layer(class_name, config, module="keras.layers"):
    return {
        "module": module,
        "class_name": class_name,
        "config": config,
        "registered_name": None,
        "build_config": {"input_shape": [None, 4]},
    }


def op(name):
    return layer("TFOpLambda", {"function": name}, "tf_keras.src.layers.core.tf_op_layer")


def put(**changes):
    """Change the configuration of the first Dense layer."""
    return lambda config: dense(config)["config"].update(changes)


@keras.saving.register_keras_serializable("others")
class Theirs(keras.layers.Layer):
    made = 0

    def __init__(self, **kwargs):
        Theirs.made += 1
        super().__init__(**kwargs)


HOSTILE = {
    "class of a module": replace(module="evil", class_name="Evil", registered_name="Evil"),
    "module of the name of ours": replace(module="tfpvae.evil", class_name="Evil"),
    "function of a module": put(activation=function("evil", "f")),
    "function of os": put(activation=function("os", "system")),
    "function of builtins": put(activation=function("builtins", "exec")),
    "module of Keras": put(activation=function("keras.utils", "get_file")),
    "resolver by name": put(activation="deserialize"),
    "two names of a function": put(
        activation=function("keras.activations", "relu") | {"registered_name": "deserialize"}
    ),
    "layer by name alone": lambda config: config["config"]["encoder"]["config"].update(
        layers=["TextVectorization"]
    ),
    "Lambda": replace(**layer("Lambda", {"function": "AAAA", "function_type": "lambda"})),
    "Lambda of tfpvae": replace(module="tfpvae.layers", class_name="Lambda", registered_name=None),
    "Lambda, registered as ours": replace(
        class_name="Lambda", registered_name="tfpvae>DistributionLayer"
    ),
    "lambda": put(activation={"class_name": "__lambda__", "config": {"value": ["A", None, None]}}),
    "typespec": put(activation={"class_name": "__typespec__", "spec_name": "x", "module": "evil"}),
    "any function of TensorFlow": replace(**op("io.write_file")),
    "tf.py_function": replace(**op("py_function")),
    "tf.numpy_function": replace(**op("numpy_function")),
    "tf.keras.utils": replace(**op("keras.utils.get_file")),
    "deep in math": replace(**op("math.special.x.y")),
    "class method": replace(
        **layer("ClassMethod", {"cls_symbol": "io.TFRecordWriter", "method_name": "write"})
    ),
    "a file of words": replace(**layer("StringLookup", {"vocabulary": "/etc/passwd"})),
    "text": replace(**layer("TextVectorization", {"vocabulary": "/etc/passwd"})),
    "TFSMLayer": replace(**layer("TFSMLayer", {"filepath": "/tmp/x"})),
    "tfp.layers": replace(
        module="tensorflow_probability.python.layers.distribution_layer",
        class_name="DistributionLambda",
        registered_name="DistributionLambda",
    ),
    "registered by others": replace(
        module=__name__, class_name="Theirs", registered_name="others>Theirs"
    ),
    "registered by others, under a name of Keras": replace(registered_name="others>Theirs"),
    "string of a registered name": put(activation="others>Theirs"),
    "old format": lambda config: dense(config).pop("module"),
    "unknown key": replace(code="x"),
    "name that is no string": replace(class_name=["Dense"]),
    "name is an object": replace(module={"a": 1}),
    "configuration is a list": replace(config=[]),
    "metric": lambda config: config["compile_config"].update(metrics=[function("evil", "f")]),
    "optimizer": lambda config: config["compile_config"].update(
        optimizer=layer("Evil", {}, "evil")
    ),
    "named metric": lambda config: config["compile_config"].update(metrics={"out": ["evil"]}),
    "prior": lambda config: config["config"].update(prior=layer("Evil", {}, "evil")),
    "the whole": lambda config: layer("Evil", {}, "evil"),
    "an array of long strings": put(
        x={"tfpvae": "array", "dtype": "U500000000", "values": ["a", "b"]}
    ),
    "a numpy array of long strings": put(
        x={"class_name": "__numpy__", "config": {"dtype": "S2000000000", "value": ["a"]}}
    ),
    "bytes": put(x={"class_name": "__bytes__", "config": {"value": "a"}}),
    "too deep": put(x=json.loads("[" * 300 + "]" * 300)),
    "a number": put(units=10**30),
}


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a trace when it is imported; the path of the trace."""
    trace = tmp_path / "trace"
    (tmp_path / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n"
        "Evil = f = lambda *args, **kwargs: None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield trace
    sys.modules.pop("evil", None)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_run_code_is_refused(name, saved, tmp_path, evil, monkeypatch):
    path = crafted(saved, tmp_path, HOSTILE[name])
    made = Theirs.made

    loaded = []
    monkeypatch.setattr(keras.models, "load_model", lambda *args, **kwargs: loaded.append(args))
    modules = set(sys.modules)
    with pytest.raises(InvalidModelFile, match=r"crafted\.keras: got .*wanted "):
        tfpvae.load_model(path)
    assert not loaded  # Keras has not seen it.
    assert not evil.exists()
    assert Theirs.made == made
    assert set(sys.modules) == modules


@pytest.mark.parametrize("name", ["the whole", "prior", "optimizer", "metric"])
def test_keras_alone_runs_it(name, saved, tmp_path, evil):
    """Else the test above would show nothing."""
    with contextlib.suppress(TypeError, ValueError, AttributeError):  # Once it has been run.
        keras.models.load_model(crafted(saved, tmp_path, HOSTILE[name]))
    assert evil.exists()


def test_what_the_user_allows_is_loaded(tmp_path):
    model = keras.Sequential([keras.Input((2,)), Theirs()])
    saving.save(model, tmp_path / "m.keras")
    with pytest.raises(InvalidModelFile, match=r"custom_objects=\{'others>Theirs': \.\.\.\}"):
        tfpvae.load_model(tmp_path / "m.keras")
    loaded = tfpvae.load_model(tmp_path / "m.keras", {"others>Theirs": Theirs})
    assert isinstance(loaded.layers[-1], Theirs)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"extra": [("../evil.py", "")]}, r"got an archive of .*'\.\./evil\.py', wanted"),
        ({"extra": [("/etc/evil", "")]}, "got an archive of"),
        ({"extra": [("assets/vocabulary.txt", "a")]}, "as vocabularies"),
        ({"drop": ["config.json"]}, "got an archive of"),
        ({"drop": ["model.weights.h5"]}, "got an archive of"),
        ({"drop": ["model.weights.h5"], "extra": [("model.weights.h5", "")]}, "cannot be read"),
        (
            {
                "drop": ["model.weights.h5"],
                "extra": [("model.weights.h5", bytes(10**7))],
                "compression": zipfile.ZIP_DEFLATED,
            },
            "packed from 10000000 to",
        ),
        ({"drop": ["config.json"], "extra": [("config.json", "[]")]}, "got list in config"),
        ({"drop": ["config.json"], "extra": [("config.json", "{}")]}, "got a dict in config"),
        ({"drop": ["config.json"], "extra": [("config.json", "{")]}, "no JSON"),
        ({"drop": ["config.json"], "extra": [("config.json", "[" * 10**5)]}, "no JSON"),
    ],
)
def test_archives_that_are_none_of_keras(change, match, saved, tmp_path):
    with pytest.raises(InvalidModelFile, match=match):
        tfpvae.load_model(crafted(saved, tmp_path, **change))


def test_links_and_two_of_a_name_are_refused(saved, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = crafted(saved, tmp_path, extra=[("config.json", "{}")])
    with pytest.raises(InvalidModelFile, match="each once"):
        tfpvae.load_model(path)
    link = zipfile.ZipInfo("config.json")
    link.external_attr = 0o120777 << 16
    path = crafted(saved, tmp_path, drop=["config.json"], extra=[(link, "/etc/passwd")])
    with pytest.raises(InvalidModelFile, match="got a link"):
        tfpvae.load_model(path)


def first(h5):
    """The name of the largest array of the networks."""
    found = []
    h5.visititems(lambda name, item: found.append((name, item)))
    arrays = [(n, i) for n, i in found if isinstance(i, h5py.Dataset) and "optimizer" not in n]
    return max((item.size, name) for name, item in arrays)[1]


def put_array(make):
    """Put something else in the place of an array."""

    def change(h5):
        name = first(h5)
        shape = h5[name].shape
        del h5[name]
        make(h5, name, shape)

    return change


def virtual(h5, name, shape):
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", shape)
    h5.create_virtual_dataset(name, layout)


def declared(h5, name, shape):
    h5.create_dataset(name, (10**6, 10**6), "f4")


def loop(h5, name, shape):
    h5[name] = h5[name.rpartition("/")[0]]


def nan(h5):
    h5[first(h5)][0] = np.nan


def link_to(make):
    def put(h5, name, shape):
        h5[name] = make()

    return put


def external(h5, name, shape):
    h5.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


WEIGHTS = {
    "another file": (put_array(external), "in another file"),
    "virtual": (put_array(virtual), "in pieces, compressed or virtual"),
    "external link": (put_array(link_to(lambda: h5py.ExternalLink("/etc/passwd", "x"))), "a link"),
    "soft link": (put_array(link_to(lambda: h5py.SoftLink("/"))), "a link"),
    "a circle": (put_array(loop), "there already"),
    "declared": (put_array(declared), "shape .* without its numbers"),
    "compressed": (
        put_array(lambda h5, n, shape: h5.create_dataset(n, data=np.zeros(10**6), compression=9)),
        "compressed",
    ),
    "strings": (
        put_array(lambda h5, n, shape: h5.create_dataset(n, data=["a"], dtype=h5py.string_dtype())),
        "array of object",
    ),
    "references": (
        put_array(lambda h5, n, shape: h5.create_dataset(n, data=h5.ref, dtype=h5py.ref_dtype)),
        "array of object",
    ),
    "a type": (put_array(link_to(lambda: np.dtype("f4"))), "Datatype"),
    "NaN": (nan, "got NaN in the weights"),
    "missing": (put_array(lambda *_: None), "no model can be made"),
    "another shape": (
        put_array(lambda h5, n, shape: h5.create_dataset(n, data=np.zeros((7, 3)))),
        "no model can be made",
    ),
    "no optimizer": (lambda h5: h5["optimizer/vars"].pop("3"), "arrays of the optimizer, wanted"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_none(name, saved, tmp_path):
    change, match = WEIGHTS[name]
    with pytest.raises(InvalidModelFile, match=match):
        tfpvae.load_model(crafted(saved, tmp_path, weights=change))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put(units=10**8), "bytes of variables"),
        (put(units=2 * 10**9), "bytes of variables"),
        (lambda c: c["build_config"].update(input_shape=[None, 10**5, 10**5]), "at most 134217728"),
        (
            lambda c: c["config"]["prior"]["config"].update(event_shape=[10**9]),
            "event_shape=.* wanted at most",
        ),
        # TensorFlow waits ten seconds for memory.
        pytest.param(
            lambda c: dense(c).update(
                layer("RepeatVector", {"n": 2 * 10**9}) | {"build_config": None}
            ),
            "no model can be made",
            marks=pytest.mark.long,
        ),
        pytest.param(
            lambda c: c["config"]["encoder"]["config"]["layers"][-1]["config"].update(
                num_samples=2 * 10**9
            ),
            "no model can be made",
            marks=pytest.mark.long,
        ),
    ],
)
def test_gigantic_shapes_are_refused(change, match, saved, tmp_path):
    before = time.monotonic()
    with pytest.raises(InvalidModelFile, match=match):
        tfpvae.load_model(crafted(saved, tmp_path, change))
    assert time.monotonic() - before < 60


def test_damage_later_versions_and_other_files(saved, tmp_path):
    path = tmp_path / "a.keras"
    content = members(saved[0])

    def write(**changes):
        metadata = json.loads(content["metadata.json"]) | changes
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in (content | {"metadata.json": json.dumps(metadata)}).items():
                archive.writestr(name, value)

    write()
    tfpvae.load_model(path)
    write(tfpvae_format=2, tfpvae_version="9.1")
    with pytest.raises(InvalidModelFile, match=r"format 2, written by tfpvae 9\.1, wanted at most"):
        tfpvae.load_model(path)
    write(sha256={})
    with pytest.raises(InvalidModelFile, match="that is not what was saved"):
        tfpvae.load_model(path)
    whole = saved[0].read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(InvalidModelFile, match="no readable archive"):
        tfpvae.load_model(path)
    middle = whole.index(b"HDF") + 3000
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(InvalidModelFile, match=r"no readable archive.*CRC"):
        tfpvae.load_model(path)
    path.write_text("no archive")
    with pytest.raises(InvalidModelFile, match="no readable archive"):
        tfpvae.load_model(path)
    with pytest.raises(FileNotFoundError, match="no such model file"):
        tfpvae.load_model(tmp_path / "no.keras")
    for other in ("model.h5", "folder"):
        (tmp_path / other).mkdir() if other == "folder" else (tmp_path / other).write_text("")
        with pytest.raises(InvalidModelFile, match=r"wanted a file that ends in \.keras"):
            tfpvae.load_model(tmp_path / other)


def test_limits_are_taken_back(saved, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    tfpvae.load_model(saved[0])
    with pytest.raises(InvalidModelFile):
        tfpvae.load_model(crafted(saved, tmp_path, put(units=10**8)))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_distributions_and_bijectors_by_name_run_no_functions():
    """What `serialization.from_json` makes of a file takes functions from nowhere."""
    from tfpvae import serialization

    for name in ("AutoregressiveNetwork", "Bijector.__init__", "os", "__builtins__"):
        with pytest.raises(ValueError, match="wanted a bijector"):
            serialization.from_json({"tfpvae": "bijector", "name": name, "parameters": {}})
    with pytest.raises(ValueError, match="dtype"):
        serialization.from_json({"tfpvae": "array", "dtype": "U500000000", "values": ["a", "b"]})
    made = {"tfpvae": "bijector", "name": "Exp", "parameters": {}}
    assert isinstance(serialization.from_json(made), tfp.bijectors.Exp)


def test_every_full_disk_is_told(tmp_path):
    raised = pytest.raises(OSError, match="nothing was written")
    with raised as raised, saving.atomic(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.errno == errno.ENOSPC
    assert issubclass(InvalidModelFile, ValueError)
    assert training.ProbabilisticModel.save is not keras.Model.save


@pytest.mark.long
def test_forty_damaged_files():
    found = fuzz_files.run(40, seed=1)
    assert found["num"] == 40
    assert found["crashed"] == found["ran code"] == found["other error"] == found["differs"] == 0
    assert found["refused"] > 20
