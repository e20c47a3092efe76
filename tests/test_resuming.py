"""A run that was stopped goes on and ends as one that was not."""

import json
import shutil
import warnings

import kills
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfpvae import (
    VAE,
    BayesianRegression,
    ConditionalVAE,
    SemiSupervisedVAE,
    likelihoods,
    networks,
    objectives,
    posteriors,
    priors,
    schedules,
)
from tfpvae.resuming import Resume

RNG = np.random.default_rng(0)
X = (RNG.random((50, 6)) < 0.3).astype("float32")
LABELS = np.arange(50) % 2


class StoppedError(Exception):
    """In place of a kill."""


class Until(Resume):
    """Ends with an exception after an epoch, whose state has been saved or not."""

    def __init__(self, folder, last, min_seconds=0.0):
        super().__init__(folder, min_seconds)
        self.last = last

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if epoch == self.last:
            raise StoppedError


def network(*layers):
    *first, block = layers
    return keras.Sequential([*first, keras.layers.Dense(block.params_size), block])


def plain(optimizer=None, hidden=(), **kwargs):
    keras.utils.set_random_seed(1)
    encoder = network(*hidden, posteriors.DiagonalNormal(2))
    vae = VAE(priors.StandardNormal(2), encoder, network(likelihoods.Bernoulli(6)), seed=0)
    vae.compile(optimizer or keras.optimizers.Adam(1e-2), **kwargs)
    return vae


def with_schedules():
    rate = keras.optimizers.schedules.ExponentialDecay(1e-2, 5, 0.9)
    weight = schedules.Linear(20)
    return plain(keras.optimizers.Adam(rate), objective=objectives.ELBO(kl_weight=weight))


def adversarial():
    discriminator = keras.Sequential([keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
    return plain(objective=objectives.AdversarialELBO(discriminator, keras.optimizers.Adam(1e-2)))


def conditional():
    keras.utils.set_random_seed(1)
    encoder = network(networks.Join(), posteriors.DiagonalNormal(2))
    decoder = network(networks.Join(), likelihoods.Bernoulli(6))
    cvae = ConditionalVAE(priors.StandardNormal(2), encoder, decoder, 2, seed=0)
    cvae.compile("adam")
    return cvae


def semi_supervised():
    keras.utils.set_random_seed(1)
    model = SemiSupervisedVAE(
        priors.StandardNormal(2),
        network(posteriors.OneHotCategorical(2)),
        network(networks.Join(), posteriors.DiagonalNormal(2)),
        network(networks.Join(), likelihoods.Bernoulli(6)),
        2,
        seed=0,
    )
    model.compile("adam")
    return model


def loss_scaled():
    keras.mixed_precision.set_global_policy("mixed_float16")
    return plain(keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(1e-2)))


ARRAYS = {"x": X, "batch_size": 16, "epochs": 6, "verbose": 0}
FEW = {"y": np.where(LABELS + np.arange(50) < 12, LABELS, -1)}


def dataset():
    data = tf.data.Dataset.from_tensor_slices(X).shuffle(50, seed=2).batch(16)
    return {"x": data, "epochs": 6, "verbose": 0}


RUNS = {
    "plain": (plain, ARRAYS),
    "held out": (plain, ARRAYS | {"validation_data": X[:20]}),
    "a share held out": (plain, ARRAYS | {"validation_split": 0.3}),
    "weights": (plain, ARRAYS | {"sample_weight": np.linspace(0.1, 2.0, 50)}),
    "unshuffled": (plain, ARRAYS | {"shuffle": False}),
    "schedules": (with_schedules, ARRAYS),
    "eager": (lambda: plain(run_eagerly=True), ARRAYS | {"sample_weight": np.ones(50)}),
    "xla": (lambda: plain(jit_compile=True), ARRAYS),
    "dataset": (plain, dataset),
    "adversarial": (adversarial, ARRAYS),
    "conditional": (conditional, ARRAYS | {"y": LABELS}),
    "semi-supervised": (semi_supervised, ARRAYS | FEW),
    "loss scaling": (loss_scaled, ARRAYS),
}
QUICK = ("plain",)


def state(model):
    optimizers = [part.optimizer for part in (model, model.discriminator) if part is not None]
    beside = [] if model.discriminator is None else model.discriminator.get_weights()
    slots = [v.numpy() for optimizer in optimizers for v in optimizer.variables]
    scales = [float(getattr(optimizer, "loss_scale", 0.0)) for optimizer in optimizers]
    return [*model.get_weights(), *beside, *slots, *scales]


def same(a, b):
    return len(a) == len(b) and all(map(np.array_equal, a, b))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in RUNS]
)
def test_the_end_is_that_of_a_run_without_a_stop(name, tmp_path):
    make, settings = RUNS[name]
    settings = settings if callable(settings) else lambda: RUNS[name][1]
    wanted = make()
    history = wanted.fit(**settings(), resume=Resume(tmp_path / "a", 0.0))
    for last in (1, 3):
        with pytest.raises(StoppedError):
            make().fit(**settings(), resume=Until(tmp_path / "b", last))
    found = make()
    again = found.fit(**settings(), resume=tmp_path / "b")
    assert again.history == history.history
    assert again.epoch == history.epoch == [*range(6)]
    assert same(state(found), state(wanted))


def test_the_order_is_new_in_each_epoch_and_each_row_comes_once(tmp_path):
    """Seen by a layer that writes down the rows that it gets."""
    seen = []

    class Watch(keras.layers.Layer):
        def call(self, inputs):
            seen.append(inputs.numpy()[:, 0].tolist())
            return inputs

    x = np.arange(50.0, dtype="float32")[:, None]
    encoder = network(posteriors.DiagonalNormal(1))
    decoder = network(likelihoods.Normal(1))
    vae = VAE(priors.StandardNormal(1), encoder, decoder, seed=0, preprocessing=Watch())
    vae.compile("adam", run_eagerly=True)
    vae.build((None, 1))
    seen.clear()
    vae.save = lambda path: None  # The layer above is not to be saved.
    first = Resume(tmp_path, 1e9)
    vae.fit(x, batch_size=20, epochs=2, verbose=0, resume=first)
    batches = [rows for rows in seen if len(rows) in (20, 10)][-6:]
    epochs = [[row for rows in part for row in rows] for part in (batches[:3], batches[3:])]
    assert [len(rows) for rows in batches] == [20, 20, 10] * 2
    assert sorted(epochs[0]) == sorted(epochs[1]) == x[:, 0].tolist()
    assert epochs[0] != epochs[1] != x[:, 0].tolist()


@pytest.mark.long
def test_callbacks_go_on_with_what_they_knew(tmp_path):
    def callbacks():
        return [
            keras.callbacks.ReduceLROnPlateau("val_loss", patience=2, factor=0.5),
            keras.callbacks.EarlyStopping("val_loss", patience=6, restore_best_weights=True),
        ]

    settings = ARRAYS | {"epochs": 40, "validation_data": 1.0 - X}
    wanted = plain(keras.optimizers.Adam(0.1))
    history = wanted.fit(**settings, callbacks=callbacks(), resume=Resume(tmp_path / "a", 0.0))
    length = len(history.epoch)
    assert 4 < length < 40
    assert len(set(map(float, history.history["lr"]))) > 1
    for last in (2, length - 2):
        stopped = plain(keras.optimizers.Adam(0.1))
        with pytest.raises(StoppedError):
            stopped.fit(**settings, callbacks=callbacks(), resume=Until(tmp_path / "b", last))
    found = plain(keras.optimizers.Adam(0.1))
    again = found.fit(**settings, callbacks=callbacks(), resume=tmp_path / "b")
    assert again.history == history.history
    assert same(state(found), state(wanted))
    # A run that has ended is not begun anew.
    ended = plain(keras.optimizers.Adam(0.1))
    last = ended.fit(**settings, callbacks=callbacks(), resume=tmp_path / "b")
    assert last.history == history.history
    assert same(state(ended), state(wanted))


def test_a_longer_run_goes_on(tmp_path):
    plain().fit(**ARRAYS, resume=tmp_path / "a")
    longer = plain()
    history = longer.fit(**ARRAYS | {"epochs": 9}, resume=tmp_path / "a")
    wanted = plain()
    wanted.fit(**ARRAYS | {"epochs": 9}, resume=tmp_path / "b")
    assert history.epoch == [*range(9)]
    assert same(state(longer), state(wanted))
    done = plain().fit(**ARRAYS | {"epochs": 4}, resume=tmp_path / "a")
    assert done.epoch == [*range(9)]


@pytest.mark.long
def test_a_regression(tmp_path):
    def fit(resume):
        model = BayesianRegression(likelihoods.Bernoulli(), seed=0)
        return model, model.fit(X, LABELS, steps=60, batch_size=16, verbose=0, resume=resume)

    wanted, history = fit(Resume(tmp_path / "a", 0.0))
    with pytest.raises(StoppedError):
        fit(Until(tmp_path / "b", 4))
    found, again = fit(tmp_path / "b")
    assert again.history == history.history
    assert same(state(found), state(wanted))


def test_epochs_that_are_not_saved_are_run_again(tmp_path):
    wanted = plain()
    wanted.fit(**ARRAYS, resume=tmp_path / "a")
    with pytest.raises(StoppedError):
        plain().fit(**ARRAYS, resume=Until(tmp_path / "b", 3, min_seconds=1e6))
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["epoch-00000"]
    found = plain()
    found.fit(**ARRAYS, resume=tmp_path / "b")
    assert same(state(found), state(wanted))
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["epoch-00006"]


def test_the_saved_model_is_one(tmp_path):
    vae = plain()
    vae.fit(**ARRAYS, resume=tmp_path)
    loaded = keras.models.load_model(tmp_path / "epoch-00006" / "model.keras")
    np.testing.assert_array_equal(loaded.elbo(X, seed=1), vae.elbo(X, seed=1))


def test_what_a_kill_left_behind_does_not_count(tmp_path):
    with pytest.raises(StoppedError):
        plain().fit(**ARRAYS, resume=Until(tmp_path, 2))
    shutil.copytree(tmp_path / "epoch-00003", tmp_path / ".epoch-00004-123")
    (tmp_path / ".epoch-00004-123" / "state.json").unlink()
    history = plain().fit(**ARRAYS, resume=tmp_path)
    assert len(history.epoch) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00006"]


def test_a_save_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    with pytest.raises(StoppedError):
        plain().fit(**ARRAYS, resume=Until(tmp_path, 2))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    vae = plain()
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        vae.fit(**ARRAYS, resume=Resume(tmp_path, 0.0))
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00003"]


OTHERS = {
    "data": ({"x": 1.0 - X}, {}),
    "batch_size": ({"batch_size": 10}, {}),
    "shuffle": ({"shuffle": False}, {}),
    "callbacks": ({"callbacks": [keras.callbacks.EarlyStopping("loss")]}, {}),
    "compile arguments": ({}, {"optimizer": keras.optimizers.Adam(0.5)}),
    "weights": ({}, {"hidden": [keras.layers.Dense(3)]}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    keras.utils.set_random_seed(0)
    plain().fit(**ARRAYS | {"epochs": 1}, resume=folder)
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused(name, saved):
    changed, made = OTHERS[name]
    with pytest.raises(ValueError, match=f"resume: got .* a run with other .*{name}.*; wanted"):
        plain(**made).fit(**ARRAYS | changed, resume=saved)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epoch": 3}', "null"])
def test_a_state_that_cannot_be_read(saved, tmp_path, content):
    shutil.copytree(saved, tmp_path / "a")
    (tmp_path / "a" / "epoch-00001" / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"resume: .*epoch-00001 cannot be read .* remove it"):
        plain().fit(**ARRAYS, resume=tmp_path / "a")


def test_mistakes_are_named(tmp_path):
    def batches():
        while True:
            yield X[:10]

    unknown = tf.data.Dataset.from_tensor_slices(X).filter(lambda x: True).batch(10)
    mistakes = [
        ({"resume": 3}, TypeError, "resume: got 3, wanted the path of a folder"),
        ({"x": batches(), "steps_per_epoch": 3, "batch_size": None}, TypeError, "x: got generator"),
        ({"x": unknown, "batch_size": None}, ValueError, "x: got a dataset of unknown length"),
        ({"steps_per_epoch": 2}, ValueError, "steps_per_epoch: got it with arrays and resume"),
        ({"initial_epoch": 2}, ValueError, "initial_epoch: got it and resume"),
        ({"callbacks": keras.callbacks.CallbackList([])}, TypeError, "callbacks: got a CallbackL"),
    ]
    for i, (changed, error, message) in enumerate(mistakes):
        with pytest.raises(error, match=message):
            plain().fit(**ARRAYS | {"resume": tmp_path / str(i)} | changed)
    with pytest.raises(ValueError, match="min_seconds: got -1"):
        Resume(tmp_path, -1)


def test_dropout_is_warned_of(tmp_path):
    vae = plain(hidden=[keras.layers.Dropout(0.1, name="drops")])
    with pytest.warns(UserWarning, match="resume: the layers drops draw noise of their own"):
        vae.fit(**ARRAYS, resume=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain().fit(**ARRAYS, resume=tmp_path / "b")


def test_the_state_is_json_and_holds_no_pickle(saved):
    folder = saved / "epoch-00001"
    assert {path.name for path in folder.iterdir()} == {"model.keras", "state.json", "arrays.npz"}
    state = json.loads((folder / "state.json").read_text())
    assert state["format"] == 1
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        assert all(name.startswith("variable ") for name in file.files)


@pytest.mark.long
def test_kills_at_random_moments_lose_nothing():
    found = kills.run(20, seed=1, say=print)
    assert found["kills"] == 20
    assert found["same"] == found["runs"]
    assert len(set(found["epochs"])) > 5  # They came in the middle, too.
