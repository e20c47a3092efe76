"""Many batches in one program: the same numbers as Keras's own loop, and the same manners."""

import contextlib
import functools
import inspect
import itertools
import logging
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.python.eager.polymorphic_function import polymorphic_function

from tfpvae import VAE, execution, likelihoods, noise, objectives, posteriors, priors
from tfpvae.layers import DistributionLayer

D, K, N = 6, 2, 50
SOURCE = np.random.default_rng(0)
X, Y, OTHER = (SOURCE.random((size, D)).astype("float32") for size in (N, N, 30))
WEIGHT = SOURCE.integers(0, 3, N).astype("float32")


class OwnLoop(VAE):
    """Steps that are overridden, if only to call ours, run in Keras's own loop."""

    def train_step(self, data):
        return super().train_step(data)

    def test_step(self, data):
        return super().test_step(data)


def mean_posterior():
    return posteriors.DiagonalNormal(K, convert_to_tensor_fn="mean")


def build(
    cls=VAE,
    *,
    posterior=None,
    prior=None,
    first=(),
    event_shape=D,
    preprocessing=None,
    optimizer=None,
    **kwargs,
):
    posterior = posterior or mean_posterior()
    likelihood = likelihoods.Bernoulli(event_shape)
    vae = cls(
        prior or priors.StandardNormal(K),
        keras.Sequential([*first, keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential([keras.layers.Dense(likelihood.params_size), likelihood]),
        preprocessing=preprocessing,
    )
    vae.compile(optimizer or keras.optimizers.SGD(0.1), **kwargs)
    return vae


def with_draws(**kwargs):
    return build(posterior=posteriors.DiagonalNormal(K), **kwargs)


MODELS = {
    "keras": lambda: build(OwnLoop),
    "eager": lambda: build(run_eagerly=True),
    "plain": build,
    "plain, with draws": with_draws,
    "xla": lambda: build(jit_compile=True),
    "xla, with draws": lambda: with_draws(jit_compile=True),
    "auto": build,
}


@functools.cache
def shared(way):
    keras.utils.set_random_seed(0)
    vae = MODELS[way]()
    vae.build((None, D))
    return vae, vae.get_weights()


def model(way):
    """A compiled model in its first state: to build one anew would trace its programs anew."""
    vae, _ = shared(way)
    vae.set_weights(shared("keras")[1])
    for variable in vae.optimizer.variables:
        variable.assign(tf.zeros_like(variable))
    vae.optimizer.learning_rate.assign(0.1)
    vae._eval_data_handler = None  # What Keras keeps of a fit that failed.
    keras.utils.set_random_seed(3)
    return vae


def assert_same(history, wanted, rel=1e-5):
    assert list(history) == list(wanted)
    for name in wanted:
        assert history[name] == pytest.approx(wanted[name], rel=rel), name


def assert_same_arrays(arrays, wanted):
    for one, other in zip(arrays, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def slices(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0])


def of_unknown_size(dataset):
    return dataset.filter(lambda *_: True)


class Sequence(keras.utils.Sequence):
    def __init__(self, *arrays):
        self.arrays = arrays

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return tuple(array[16 * index : 16 * index + 16] for array in self.arrays)


class Calls(list):
    """What the programs were called for: the program and its number of steps, call by call."""

    def of(self, program):
        return [num for called, num in self if called is program]


@pytest.fixture
def calls(monkeypatch):
    calls, call = Calls(), execution.Program.__call__

    def spy(program, iterator):
        calls.append((program, int(program._num_batches)))
        return call(program, iterator)

    monkeypatch.setattr(execution.Program, "__call__", spy)
    return calls


@pytest.fixture
def chunks(monkeypatch):
    """What the programs ran: the program, a chunk, and whether XLA ran it."""
    chunks, run, uses_xla = [], execution.Program._run_chunk, execution.Program.uses_xla

    def spy(program, chunk, num, batch_size):
        chunks.append(types.SimpleNamespace(program=program, chunk=chunk, num=num, xla=False))
        return run(program, chunk, num, batch_size)

    def spy_uses_xla(program, chunk, batch_size):
        chunks[-1].xla = uses_xla(program, chunk, batch_size)
        return chunks[-1].xla

    monkeypatch.setattr(execution.Program, "_run_chunk", spy)
    monkeypatch.setattr(execution.Program, "uses_xla", spy_uses_xla)
    return chunks


@pytest.fixture
def xla_pays(monkeypatch):
    monkeypatch.setattr(execution, "WORTHWHILE_STEPS", 1)


@pytest.fixture
def warnings_of_tensorflow(caplog):
    return lambda: [r.getMessage() for r in caplog.records if r.name == "tensorflow"]


# The same numbers as Keras's own loop.

DATA = {
    "arrays": lambda: {"x": X, "batch_size": 16},
    "arrays in order": lambda: {"x": X, "batch_size": 16, "shuffle": False},
    "arrays shuffled by batches": lambda: {"x": X, "batch_size": 10, "shuffle": "batch"},
    "full batches": lambda: {"x": X[:48], "batch_size": 16, "validation_data": OTHER},
    "weights": lambda: {"x": X, "sample_weight": WEIGHT, "batch_size": 16},
    "targets, weights, validation data": lambda: {
        "x": X,
        "y": Y,
        "sample_weight": WEIGHT,
        "batch_size": 16,
        "validation_data": (X, Y, WEIGHT),
    },
    "validation data of other parts": lambda: {
        "x": X,
        "batch_size": 16,
        "validation_data": (OTHER, None, WEIGHT[:30]),
        "validation_batch_size": 7,
        "validation_steps": 3,
        "validation_freq": 2,
    },
    "validation split": lambda: {
        "x": X,
        "sample_weight": WEIGHT,
        "batch_size": 16,
        "validation_split": 0.3,
    },
    "epochs to go on with": lambda: {"x": X, "batch_size": 16, "initial_epoch": 1},
    "some of the steps": lambda: {"x": X, "batch_size": 16, "steps_per_epoch": 2},
    "steps without a batch size": lambda: {"x": X, "steps_per_epoch": 3},
    "dataset": lambda: {
        "x": slices(X, Y, WEIGHT).shuffle(N, seed=1).batch(16),
        "validation_data": slices(OTHER).batch(8),
    },
    "repeated dataset": lambda: {"x": slices(X).batch(16).repeat(), "steps_per_epoch": 3},
    "dataset of unknown size": lambda: {
        "x": of_unknown_size(slices(X).batch(16)),
        "validation_data": of_unknown_size(slices(OTHER).batch(8)),
    },
    "validation data of unknown size": lambda: {
        "x": X,
        "batch_size": 16,
        "validation_data": of_unknown_size(slices(OTHER).batch(8)),
    },
    "sequence": lambda: {
        "x": Sequence(X, Y, WEIGHT),
        "validation_data": Sequence(Y, Y, WEIGHT),
    },
    "generator": lambda: {
        "x": (X[i : i + 5] for i in itertools.cycle(range(0, N, 5))),
        "steps_per_epoch": 7,
    },
    "batches of many sizes": lambda: {
        "x": (X[i:j] for i, j in itertools.pairwise([0, 3, 6, 20, 34, 35, 40, 43, 46, N])),
        "steps_per_epoch": 3,
    },
}


@functools.cache
def keras_history(data):
    return model("keras").fit(**DATA[data](), epochs=3, verbose=0).history


@pytest.mark.parametrize("data", DATA)
def test_losses_are_those_of_keras(data, chunks):
    history = model("plain").fit(**DATA[data](), epochs=3, verbose=0).history
    assert_same(history, keras_history(data))
    assert chunks
    assert not any(chunk.xla for chunk in chunks)


@pytest.mark.parametrize("data", ["targets, weights, validation data"])
def test_losses_by_xla_are_those_of_keras(data, chunks):
    history = model("xla").fit(**DATA[data](), epochs=3, verbose=0).history
    assert_same(history, keras_history(data))
    assert all(chunk.xla for chunk in chunks)


@pytest.mark.long
@pytest.mark.parametrize("data", ["validation split", "dataset of unknown size"])
def test_losses_where_xla_pays_are_those_of_keras(data, chunks, xla_pays):
    vae = model("auto")
    history = vae.fit(**DATA[data](), epochs=3, verbose=0).history
    assert_same(history, keras_history(data))
    assert not any(chunk.xla for chunk in chunks if chunk.program is vae.test_function)
    training = [chunk.xla for chunk in chunks if chunk.program is vae.train_function]
    if data == "validation split":  # Two batches of 16, and one of 3.
        assert training == 3 * [True, False]
    else:  # Nobody knows before the end of the first epoch.
        assert training == 4 * [False] + 2 * [True, False]


def test_losses_step_by_step_are_those_of_keras(calls):
    data = "targets, weights, validation data"
    history = model("eager").fit(**DATA[data](), epochs=1, verbose=0).history
    assert_same(history, {name: values[:1] for name, values in keras_history(data).items()})
    assert not calls


#: how to make them, and whether their loss draws, even if the posterior passes its mean on
OBJECTIVES = {
    "ELBO": (lambda: objectives.ELBO(tf.Variable(2.0, trainable=False)), False),
    "ELBO by Monte Carlo": (lambda: objectives.ELBO(use_exact_kl=False), True),
    "IWAE": (lambda: objectives.IWAE(3, "doubly_reparameterized"), True),
    "Renyi": (lambda: objectives.Renyi(0.5, 2), True),
    "CUBO": (lambda: objectives.CUBO(2.0, 2), True),
    "FDivergence": (lambda: objectives.FDivergence("kl_forward", 2), True),
    "ReweightedWakeSleep": (lambda: objectives.ReweightedWakeSleep(2), True),
    "AdversarialELBO": (
        lambda: objectives.AdversarialELBO(keras.layers.Dense(1), num_samples=2),
        True,
    ),
}


def test_every_objective_has_a_case():
    classes = {
        value
        for name, value in inspect.getmembers(objectives, inspect.isclass)
        if issubclass(value, objectives.Objective) and value is not objectives.Objective
    }
    assert classes
    assert classes == {type(make()) for make, _ in OBJECTIVES.values()}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:fit ended with kl_weight")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_of_objectives_are_those_of_keras(objective):
    make, draws = OBJECTIVES[objective]

    def history(cls=VAE, **kwargs):
        keras.utils.set_random_seed(2)
        vae = build(cls, optimizer="adam", objective=make(), **kwargs)
        return vae.fit(X[:48], batch_size=16, epochs=3, verbose=0).history

    wanted = history(OwnLoop)
    assert_same(history(), wanted)
    if not draws:
        assert_same(history(jit_compile=True), wanted)


@pytest.mark.long
def test_metrics_and_moving_statistics_are_those_of_keras():
    def run(cls=VAE, **kwargs):
        keras.utils.set_random_seed(2)
        layer = keras.layers.BatchNormalization(momentum=0.5)
        rate = keras.optimizers.schedules.PiecewiseConstantDecay([2, 4], [0.1, 0.2, 0.01])
        kwargs |= {"optimizer": keras.optimizers.SGD(rate)}
        vae = build(cls, first=[layer], metrics=["mse"], weighted_metrics=["mae"], **kwargs)
        data = {"x": X[:48], "sample_weight": WEIGHT[:48], "batch_size": 16}
        history = vae.fit(**data, validation_data=X[:16], epochs=2, verbose=0).history
        return history, layer

    wanted, wanted_layer = run(OwnLoop)
    assert {"mse", "mae", "val_mse", "val_mae"} < set(wanted)
    for history, layer in (run(), run(jit_compile=True)):
        assert_same(history, wanted)
        for name in ("moving_mean", "moving_variance"):
            wanted_values = getattr(wanted_layer, name)
            np.testing.assert_allclose(getattr(layer, name), wanted_values, rtol=1e-5)
            assert np.ptp(wanted_values) > 0


class Branch(keras.layers.Layer):
    def call(self, x):
        if tf.reduce_mean(x) > 0.5:
            x = 1 - x
        return x


class BranchingMetric(keras.metrics.Mean):
    def update_state(self, y, prediction, sample_weight=None):
        if tf.reduce_mean(y) > 0.5:
            return super().update_state(prediction)
        return super().update_state(y)


def test_layers_and_metrics_can_branch_on_tensors():
    def history(cls=VAE):
        keras.utils.set_random_seed(2)
        vae = build(cls, first=[Branch()], metrics=[BranchingMetric()])
        return vae.fit(X, batch_size=5, validation_data=OTHER, verbose=0).history

    assert_same(history(), history(OwnLoop))


@pytest.fixture(scope="module")
def branching():
    return build(first=[Branch()])


@pytest.mark.parametrize("method", ["elbo", "log_weights", "posterior", "predict", "reconstruct"])
def test_methods_take_layers_that_branch_on_tensors(method, branching):
    getattr(branching, method)(X)


# With draws.


@pytest.mark.parametrize("way", ["plain, with draws", "xla, with draws"])
def test_one_seed_is_one_run(way):
    def run():
        vae = model(way)
        history = vae.fit(X[:48], batch_size=16, epochs=2, verbose=0).history
        assert int(vae.noise.count) == int(vae.optimizer.iterations) == 6
        return history, vae.get_weights()

    (history, weights), (again, weights_again) = run(), run()
    assert history == again
    assert_same_arrays(weights, weights_again)


def logs_of_seeds(num=40, **kwargs):
    """The logs of short runs, one for each seed, all in one call of `fit`."""

    def begin(seed, logs):
        vae.set_weights(start)
        vae.noise.seed.assign(noise.as_seed(seed))

    vae = with_draws(**kwargs)
    vae.build((None, D))
    start = [3 * weight for weight in shared("keras")[1]]
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_begin=begin)]
    data = {"x": X[:48], "batch_size": 16, "shuffle": False}
    history = vae.fit(**data, epochs=num, callbacks=callbacks, verbose=0).history
    return np.array([history[name] for name in ("loss", "nll", "kl")])


@pytest.mark.long
@pytest.mark.parametrize("objective", ["ELBO by Monte Carlo", "IWAE"])
def test_draws_by_xla_have_the_same_distribution(objective):
    make, _ = OBJECTIVES[objective]
    plain = logs_of_seeds(objective=make())
    xla = logs_of_seeds(objective=make(), jit_compile=True)
    error = np.sqrt((plain.var(axis=1) + xla.var(axis=1)) / plain.shape[1])
    difference = np.abs(plain.mean(axis=1) - xla.mean(axis=1))
    assert (error > 0).all()
    assert 4 * error[0] < plain[2].mean() / 2  # Twice the KL would be seen.
    assert (difference < 4 * error).all(), (difference, error)


# Keras's manners.


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.events = []

    def on_train_batch_begin(self, batch, logs=None):
        self.events.append(("begin", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.events.append(("end", batch, {k: pytest.approx(v, rel=1e-5) for k, v in logs.items()}))

    def on_test_batch_end(self, batch, logs=None):
        self.events.append(("test", batch))


@pytest.mark.parametrize("steps_per_execution", [None, 4])
def test_callbacks_are_called_as_by_keras(steps_per_execution, calls):
    def events(way, cls):
        if steps_per_execution is None:
            vae = model(way)
        else:  # Chosen in `compile`.
            keras.utils.set_random_seed(3)
            vae = build(cls, steps_per_execution=steps_per_execution)
        recorder = Recorder()
        kwargs = {"validation_data": OTHER, "callbacks": [recorder], "verbose": 0}
        vae.fit(X, batch_size=5, epochs=2, **kwargs)
        assert int(vae.steps_per_execution) == (steps_per_execution or 1)
        return recorder.events

    wanted = events("keras", OwnLoop)
    assert not calls
    num = min(steps_per_execution or 1, 10)
    assert [event[1] for event in wanted if event[0] == "begin"] == 2 * list(range(0, 10, num))
    assert events("plain", VAE) == wanted
    assert calls[0][1] == num


def test_steps_that_the_user_chose_are_kept(calls):
    vae = build(steps_per_execution=4)
    for _ in range(2):
        vae.fit(X, batch_size=5, verbose=0)
        assert calls.of(vae.train_function) == [4, 4, 2]
        assert int(vae.steps_per_execution) == 4
        calls.clear()
    vae.compile("sgd")
    vae.steps_per_execution = 3
    vae.fit(X, batch_size=5, verbose=0)
    assert calls.of(vae.train_function) == [3, 3, 3, 1]
    vae.compile("sgd", steps_per_execution=1)
    vae.fit(X, batch_size=5, verbose=0)
    assert calls.of(vae.train_function) == 10 * [1]


def hook(name, base=keras.callbacks.Callback):
    return type("Hook", (base,), {name: lambda self, *args, **kwargs: None})()


CALLBACKS = {
    "none": (lambda path: None, 1),
    "of epochs": (lambda path: [hook("on_epoch_end")], 1),
    "not in a list": (lambda path: hook("on_epoch_begin"), 1),
    "of epochs, a function": (
        lambda path: [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None)],
        1,
    ),
    "of Keras": (
        lambda path: [
            keras.callbacks.EarlyStopping("loss"),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.ModelCheckpoint(str(path / "last.weights.h5"), save_weights_only=True),
        ],
        1,
    ),
    "a user's own of epochs": (
        lambda path: [hook("on_epoch_end", keras.callbacks.EarlyStopping)],
        1,
    ),
    "of batches": (lambda path: [hook("on_train_batch_end")], 10),
    "of batches, by the old name": (lambda path: [hook("on_batch_end")], 10),
    "of batches, not in a list": (lambda path: hook("on_batch_begin"), 10),
    "of batches, and of Keras": (
        lambda path: [hook("on_train_batch_end", keras.callbacks.TerminateOnNaN)],
        10,
    ),
    "of test batches": (lambda path: [hook("on_test_batch_end")], 10),
    "of batches, a function": (
        lambda path: [keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: None)],
        10,
    ),
    "of batches, among others": (
        lambda path: [keras.callbacks.TerminateOnNaN(), hook("on_train_batch_end")],
        10,
    ),
    "a list of Keras": (lambda path: keras.callbacks.CallbackList([hook("on_epoch_end")]), 1),
    "a list of Keras, of batches": (
        lambda path: keras.callbacks.CallbackList([hook("on_train_batch_end")]),
        10,
    ),
}


@pytest.mark.parametrize("callbacks", CALLBACKS)
def test_callbacks_of_batches_are_called_after_each(callbacks, calls, tmp_path):
    make, wanted = CALLBACKS[callbacks]
    vae = model("plain")
    vae.fit(X, batch_size=5, callbacks=make(tmp_path), verbose=0)
    assert len(calls.of(vae.train_function)) == wanted
    assert int(vae.optimizer.iterations) == 10


def test_a_list_of_keras_goes_with_data_of_unknown_size():
    vae = model("plain")
    callbacks = keras.callbacks.CallbackList([], add_history=True, model=vae)
    data = of_unknown_size(slices(X).batch(16))
    history = vae.fit(data, epochs=3, callbacks=callbacks, verbose=0).history
    wanted = model("keras").fit(data, epochs=3, verbose=0).history
    assert_same(history, wanted)


@pytest.mark.parametrize("way", ["keras", "plain"])
def test_training_can_be_stopped_after_any_batch(way):
    def stop(batch, logs):
        vae.stop_training = batch == 3

    vae = model(way)
    callbacks = [keras.callbacks.LambdaCallback(on_batch_end=stop)]
    history = vae.fit(X, batch_size=5, epochs=3, callbacks=callbacks, verbose=0).history
    assert int(vae.optimizer.iterations) == 4
    assert len(history["loss"]) == 1
    assert int(vae.steps_per_execution) == 1


def test_callbacks_of_epochs_do_what_they_do_in_keras(tmp_path):
    def history(way):
        return (
            model(way)
            .fit(
                X,
                batch_size=16,
                epochs=9,
                validation_data=OTHER,
                callbacks=[
                    keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 if epoch < 3 else 4.0),
                    keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True),
                    keras.callbacks.CSVLogger(str(tmp_path / way)),
                ],
                verbose=0,
            )
            .history
        )

    wanted = history("keras")
    assert 3 < len(wanted["loss"]) < 9
    assert_same(history("plain"), wanted)
    rows = [
        np.genfromtxt(tmp_path / way, delimiter=",", skip_header=1) for way in ("keras", "plain")
    ]
    np.testing.assert_allclose(*rows, rtol=1e-5)


def test_checkpoints_are_as_many_as_in_keras(tmp_path):
    def names(way):
        folder = tmp_path / way
        folder.mkdir()
        path = str(folder / "{epoch}-{batch}.weights.h5")
        checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True, save_freq=4)
        model(way).fit(X, batch_size=5, epochs=2, callbacks=[checkpoint], verbose=0)
        return sorted(path.name for path in folder.iterdir())

    wanted = names("keras")
    assert len(wanted) == 5
    assert names("plain") == wanted


@pytest.mark.long
@pytest.mark.parametrize("update_freq", ["epoch", "batch", 4])
def test_tensorboard_gets_as_many_points_as_in_keras(update_freq, tmp_path, monkeypatch, capsys):
    def points(way):
        points = []

        def scalar(name, value, step):
            if tf.summary.should_record_summaries():
                points.append((name, int(step), pytest.approx(float(value), rel=1e-4)))

        monkeypatch.setattr(
            tf.compat.v2.summary, "scalar", scalar
        )  # The package itself may be missing.
        board = keras.callbacks.TensorBoard(str(tmp_path / way), update_freq=update_freq)
        data = {"x": X, "batch_size": 5, "validation_data": OTHER}
        model(way).fit(**data, epochs=2, callbacks=[board], verbose=1)  # At 0 Keras shows no batch.
        return points

    wanted = points("keras")
    batches = {"epoch": 0, "batch": 20, 4: 5}[update_freq]
    assert sum(name == "batch_loss" for name, *_ in wanted) == batches
    assert sum(name == "epoch_loss" for name, *_ in wanted) == 4
    assert points("plain") == wanted


def test_training_ends_on_nan(capsys):
    vae = model("plain")
    vae.set_weights([np.nan * w if w.dtype == np.float32 else w for w in vae.get_weights()])
    callbacks = [keras.callbacks.TerminateOnNaN()]
    history = vae.fit(X, batch_size=5, epochs=3, callbacks=callbacks, verbose=0).history
    assert np.isnan(history["loss"]).all()
    assert len(history["loss"]) == 1
    assert "Invalid loss, terminating training" in capsys.readouterr().out


def test_the_progress_bar_counts_all_batches(capsys):
    model("plain").fit(X, batch_size=5, verbose=1)
    assert "10/10 [====" in capsys.readouterr().out


def fails(*args, **kwargs):
    raise RuntimeError("a callback's own")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("on_train_begin", "arrays"),
        ("on_batch_end", "arrays"),
        ("on_epoch_end", "arrays"),
        ("on_epoch_end", "dataset of unknown size"),
    ],
)
def test_a_callback_that_fails_leaves_no_traces(name, data):
    vae = model("plain")
    callback = keras.callbacks.Callback()
    setattr(callback, name, fails)
    with pytest.raises(RuntimeError, match="a callback's own"):
        vae.fit(**DATA[data](), epochs=3, callbacks=[callback], verbose=0)
    assert int(vae.steps_per_execution) == 1
    history = model("plain").fit(**DATA[data](), epochs=3, verbose=0).history
    assert_same(history, keras_history(data))


def test_a_fit_that_failed_leaves_no_validation_data_behind():
    vae = model("plain")
    callbacks = [hook("on_epoch_end")]
    callbacks[0].on_epoch_end = fails
    with pytest.raises(RuntimeError, match="a callback's own"):
        vae.fit(X, validation_data=X[:10], callbacks=callbacks, verbose=0)
    val_loss = vae.fit(X, validation_data=Y, verbose=0).history["val_loss"]
    assert val_loss == pytest.approx(vae.evaluate(Y, verbose=0)[:1], rel=1e-5)


def of_the_model(method, *args, **kwargs):
    return lambda vae: getattr(vae, method)(*args, **kwargs)


USES = {
    "evaluate": [
        of_the_model("evaluate", OTHER, batch_size=8, verbose=0),
        of_the_model("evaluate", X, Y, sample_weight=WEIGHT, batch_size=8, verbose=0),
        of_the_model("evaluate", slices(OTHER).batch(8), steps=2, verbose=0),
    ],
    "evaluate data of unknown size": [
        of_the_model("evaluate", of_unknown_size(slices(OTHER).batch(8)), verbose=0)
    ],
    "predict": [
        of_the_model("predict", OTHER, batch_size=4, verbose=0),
        of_the_model("predict", slices(OTHER).batch(4), verbose=0),
    ],
    "methods": [
        of_the_model("elbo", OTHER, seed=1),
        of_the_model("reconstruct", OTHER, seed=1),
        of_the_model("sample", 3, seed=1),
    ],
    "test_on_batch": [
        of_the_model("test_on_batch", OTHER),
        of_the_model("test_on_batch", OTHER, OTHER, WEIGHT[:30]),
    ],
    "train_on_batch": [
        of_the_model("train_on_batch", OTHER),
        of_the_model("train_on_batch", OTHER, OTHER, WEIGHT[:30]),
    ],
}


def assert_same_results(results, wanted):
    for result, other in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result, other, rtol=1e-5)


@pytest.mark.long
def test_the_model_can_be_used_before_and_after_training():
    def results(way):
        vae, results = model(way), []
        for _ in range(2):
            for use in ("predict", "test_on_batch", "train_on_batch"):
                results.extend(call(vae) for call in USES[use])
            vae.fit(**DATA["arrays"](), verbose=0)
        return results

    assert_same_results(results("plain"), results("keras"))


@pytest.mark.long
@pytest.mark.parametrize("use", USES)
def test_callbacks_can_use_the_model(use):
    def run(way):
        def keep(epoch, logs):
            results.extend(call(vae) for call in USES[use])

        vae, results = model(way), []
        keep(None, None)
        callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=keep)]
        vae.fit(**DATA["full batches"](), callbacks=callbacks, verbose=0)
        return vae.history.history, results

    history, results = run("plain")
    wanted_history, wanted_results = run("keras")
    assert_same_results(results, wanted_results)
    assert_same(history, wanted_history)


def test_evaluation_in_a_callback_disturbs_nothing(calls):
    def evaluate(epoch, logs):
        vae.evaluate(OTHER, batch_size=4, verbose=0)

    vae = model("plain")
    data = {"x": X, "batch_size": 5, "epochs": 3, "validation_data": Y, "verbose": 0}
    wanted = vae.fit(**data).history
    vae = model("plain")
    calls.clear()
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=evaluate)]
    assert vae.fit(**data, callbacks=callbacks).history == wanted
    assert calls.of(vae.train_function) == [10, 10, 10]


def test_models_that_are_not_compiled_predict():
    vae = model("plain")
    again = VAE(vae.prior, vae.encoder, vae.decoder)
    np.testing.assert_array_equal(again.predict(X, verbose=0), vae.predict(X, verbose=0))
    np.testing.assert_array_equal(again.predict_on_batch(X), vae.predict_on_batch(X))


@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
def test_models_that_are_not_compiled_say_so(method):
    vae = VAE(*(getattr(shared("plain")[0], part) for part in ("prior", "encoder", "decoder")))
    with pytest.raises(RuntimeError, match="You must compile your model"):
        getattr(vae, method)(X)


@pytest.mark.long
def test_fits_follow_each_other():
    def logs(way):
        vae = model(way)
        histories = [
            vae.fit(X, batch_size=16, verbose=0).history["loss"],
            vae.fit(X, batch_size=16, verbose=0).history["loss"],
            vae.fit(X, Y, batch_size=7, epochs=2, verbose=0).history["loss"],
            vae.fit(slices(X).batch(9), verbose=0).history["loss"],
            vae.evaluate(X, batch_size=16, verbose=0),
            vae.evaluate(OTHER, batch_size=3, verbose=0),
        ]
        return np.concatenate(histories)

    np.testing.assert_allclose(logs("plain"), logs("keras"), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:fit ended with kl_weight")
def test_compile_takes_effect():
    vae = build()
    vae.fit(X, batch_size=16, verbose=0)
    vae.compile("sgd", objective=objectives.ELBO(5.0))
    logs = vae.fit(X, batch_size=16, verbose=0).history
    assert logs["loss"][0] == pytest.approx(logs["nll"][0] + 5 * logs["kl"][0], rel=1e-5)
    vae.compile(keras.optimizers.SGD(0.0))
    weights = vae.trainable_variables[0].numpy()
    vae.fit(X, batch_size=16, verbose=0)
    np.testing.assert_array_equal(vae.trainable_variables[0], weights)
    vae.optimizer.learning_rate = 0.1
    vae.fit(X, batch_size=16, verbose=0)
    assert not np.array_equal(vae.trainable_variables[0], weights)


@pytest.mark.long
def test_overridden_steps_and_the_like_run_in_keras_own_loop(calls):
    def history(cls=VAE, **kwargs):
        vae = build(cls, **kwargs)
        vae.build((None, D))
        vae.set_weights(shared("keras")[1])
        keras.utils.set_random_seed(3)
        return vae.fit(**DATA["arrays"](), epochs=3, verbose=0).history

    class OtherTest(VAE):
        def test_step(self, data):
            return super().test_step(data)

    wanted = keras_history("arrays")
    assert_same(history(OtherTest), wanted)
    assert_same(history(steps_per_execution="auto"), wanted)
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        assert_same(history(), wanted)
    assert not calls


def test_the_way_to_run_can_be_changed(calls):
    data = {"x": X, "batch_size": 25, "verbose": 0}
    wanted = model("keras").fit(**data).history
    vae = build()
    vae.build((None, D))
    for eagerly in (False, True, False):
        vae.set_weights(shared("keras")[1])
        keras.utils.set_random_seed(3)
        vae.run_eagerly = eagerly
        calls.clear()
        assert_same(vae.fit(**data).history, wanted)
        assert bool(calls) != eagerly


# Where XLA is used, and where not.


def test_xla_is_for_long_runs_of_training(chunks, monkeypatch):
    monkeypatch.setattr(execution, "WORTHWHILE_STEPS", 12)
    vae = model("auto")
    data = {"x": X[:48], "sample_weight": WEIGHT[:48], "batch_size": 16, "verbose": 0}
    data["validation_data"] = OTHER
    vae.fit(**data, epochs=3)
    assert not any(chunk.xla for chunk in chunks)
    chunks.clear()
    vae.fit(**data, epochs=4)
    assert [chunk.xla for chunk in chunks] == [
        chunk.program is vae.train_function for chunk in chunks
    ]
    chunks.clear()
    vae.evaluate(X, verbose=0)
    assert not any(chunk.xla for chunk in chunks)


def counts_posterior(cls=VAE, **kwargs):
    """A model whose draws XLA cannot compile."""
    return build(
        cls,
        posterior=DistributionLayer("NegativeBinomial", K),
        prior=priors.Prior("NegativeBinomial", K, total_count=1.0, logits=0.0),
        optimizer=keras.optimizers.SGD(0.01),
        objective=objectives.ELBO(num_samples=2, estimator="score_function"),
        **kwargs,
    )


@pytest.mark.long
def test_what_xla_cannot_compile_runs_without(xla_pays, monkeypatch, caplog, chunks):
    def histories():
        keras.utils.set_random_seed(4)
        vae = counts_posterior()
        return [vae.fit(X, batch_size=size, verbose=0).history["loss"] for size in (16, 16, 10)]

    fallen_back = histories()
    records = [record for record in caplog.records if record.name == "tfpvae.execution"]
    assert [record.levelname for record in records] == ["WARNING"]
    assert "training without XLA, which cannot compile the model: " in records[0].getMessage()
    assert not any(chunk.xla for chunk in chunks)
    monkeypatch.setattr(execution, "WORTHWHILE_STEPS", 1000)
    assert fallen_back == histories()
    assert fallen_back[0] != fallen_back[1]


def test_xla_that_the_user_wants_and_cannot_have_is_an_error(caplog):
    vae = counts_posterior(jit_compile=True)
    with pytest.raises(tf.errors.OpError, match="unsupported operations"):
        vae.fit(X, batch_size=16, verbose=0)
    assert int(vae.optimizer.iterations) == 0
    assert int(vae.steps_per_execution) == 1
    assert not [record for record in caplog.records if record.name == "tfpvae.execution"]


UNFIT = {
    "convolutions": (lambda: [keras.layers.Conv2D(2, 2), keras.layers.Flatten()], "Conv2D"),
    "recurrence": (
        lambda: [keras.layers.Reshape((2, 3)), keras.layers.SimpleRNN(2)],
        "TensorList",
    ),
    "dropout": (lambda: [keras.layers.Flatten(), keras.layers.Dropout(0.5)], "RandomUniform"),
}


@pytest.mark.long
@pytest.mark.parametrize("network", UNFIT)
def test_some_networks_stay_without_xla(network, xla_pays, caplog, chunks):
    make, reason = UNFIT[network]
    caplog.set_level(logging.INFO, "tfpvae.execution")

    def run():
        keras.utils.set_random_seed(4)
        vae = build(first=make(), event_shape=(2, 3, 1), posterior=posteriors.DiagonalNormal(K))
        for _ in range(2):  # The second time what was found is known.
            vae.fit(X.reshape(N, 2, 3, 1), batch_size=16, verbose=0)
        return vae

    vae = run()
    assert not any(chunk.xla for chunk in chunks)
    records = [record for record in caplog.records if record.name == "tfpvae.execution"]
    assert [record.levelname for record in records] == ["INFO"]
    assert f"training without XLA, because of {reason}" in records[0].getMessage()
    if network == "dropout":
        assert_same_arrays(vae.get_weights(), run().get_weights())


@pytest.mark.parametrize("jit_compile", [False, True])
def test_many_models_are_no_reason_for_tensorflow_to_warn(
    jit_compile, warnings_of_tensorflow, monkeypatch
):
    """It warns of functions that are traced again and again, by their code."""
    monkeypatch.setattr(
        polymorphic_function,
        "_frequent_tracing_detector_manager",
        polymorphic_function._FrequentTracingDetectorManager(),
    )
    for _ in range(6):
        run = program(lambda batch: None, jit_compile=jit_compile)
        assert int(run(iter(slices(X).batch(10)))["steps"]) == 5
    assert warnings_of_tensorflow() == []


# Bytes.


def rescaling():
    return keras.layers.Rescaling(1 / 255)


BYTES, OTHER_BYTES = (np.round(255 * values).astype("uint8") for values in (X, OTHER))


@pytest.fixture(scope="module")
def byte_models():
    """A model of floats and one of bytes, trained on the same data."""

    def run(scale, preprocessing):
        keras.utils.set_random_seed(5)
        vae = with_draws(preprocessing=preprocessing)
        x, other = (scale(data) for data in (BYTES, OTHER_BYTES))
        data = {"batch_size": 16, "validation_data": other, "sample_weight": WEIGHT}
        vae.fit(x, epochs=2, **data, verbose=0)
        return vae

    return (
        run(lambda data: (data / 255).astype("float32"), None),
        run(lambda data: data, rescaling()),
    )


def test_bytes_train_like_floats(byte_models):
    wanted, history = (vae.history.history for vae in byte_models)
    assert set(wanted) > {"loss", "val_loss"}
    assert_same(history, wanted)


BYTE_USES = {
    "evaluate": lambda vae, x: vae.evaluate(x, verbose=0),
    "elbo": lambda vae, x: vae.elbo(x, 3, seed=0),
    "log_weights": lambda vae, x: vae.log_weights(x, 3, seed=0),
    "posterior": lambda vae, x: vae.posterior(x).mean(),
    "predict": lambda vae, x: vae.predict(x, verbose=0),
    "predict_distribution": lambda vae, x: vae.predict_distribution(x).mean(),
    "reconstruct": lambda vae, x: vae.reconstruct(x, seed=0),
}


@pytest.mark.parametrize("use", BYTE_USES)
def test_bytes_are_scored_like_floats(use, byte_models, tmp_path):
    floats, bytes_ = byte_models
    wanted = BYTE_USES[use](floats, OTHER_BYTES / 255)
    np.testing.assert_allclose(BYTE_USES[use](bytes_, OTHER_BYTES), wanted, rtol=1e-5)


def test_the_scale_of_bytes_is_saved(byte_models, tmp_path):
    vae = byte_models[1]
    vae.save(tmp_path / "vae.keras")
    loaded = keras.models.load_model(tmp_path / "vae.keras")
    assert loaded.preprocessing.scale == pytest.approx(1 / 255)
    np.testing.assert_array_equal(loaded.elbo(BYTES, seed=0), vae.elbo(BYTES, seed=0))
    assert loaded.evaluate(BYTES, verbose=0) == vae.evaluate(BYTES, verbose=0)


def test_bytes_stay_bytes(byte_models, chunks, monkeypatch):
    placed, place = [], execution.place

    def spy(*arrays, **kwargs):
        placed.extend(place(*arrays, **kwargs))
        return tuple(placed[-len(arrays) :])

    monkeypatch.setattr(execution, "place", spy)
    data = {"batch_size": 16, "validation_data": OTHER_BYTES, "sample_weight": WEIGHT}
    byte_models[1].fit(BYTES, **data, verbose=0)
    assert [getattr(tensor, "dtype", None) for tensor in placed] == [
        *(tf.uint8, None, tf.float32),
        *(tf.uint8, None, None),
    ]
    assert {run.chunk[0].dtype for run in chunks} == {tf.uint8}


@pytest.fixture(scope="module")
def models_of_other_scales():
    return {scale: build(preprocessing=scale and keras.layers.Rescaling(scale)) for scale in SCALES}


SCALES = (None, 1 / 100)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", ["fit", "evaluate", "elbo", "predict"])
def test_bytes_on_another_scale_are_refused(method, scale, models_of_other_scales):
    with pytest.raises(ValueError, match=r"^x: got values from 0 to \d.* outside the support of"):
        getattr(models_of_other_scales[scale], method)(BYTES)


# Pieces.

SIZES = st.floats(0, 1e12)


@given(steps=st.integers(1, 10**7), batch_bytes=SIZES)
def test_batches_per_call_are_a_power_of_two_that_fits_into_memory(steps, batch_bytes):
    num = execution.batches_per_call(steps, batch_bytes)
    assert num in {2**power for power in range(11)}
    assert num == 1 or num * batch_bytes <= execution._MAX_BYTES
    assert 1 <= num <= execution.max_batches(batch_bytes)


@given(steps=st.integers(1, 10**7), more=st.integers(0, 10**7), batch_bytes=SIZES)
def test_batches_per_call_grow_with_the_steps(steps, more, batch_bytes):
    num = execution.batches_per_call(steps, batch_bytes)
    assert num <= execution.batches_per_call(steps + more, batch_bytes)
    assert num >= execution.batches_per_call(steps, batch_bytes * 2)


@pytest.mark.parametrize(
    ("steps", "batch_bytes", "wanted"),
    [(1, 1, 32), (255, 1, 32), (600, 1, 64), (10**6, 1, 1024), (600, 2**22, 4), (600, 2**30, 1)],
)
def test_some_batches_per_call(steps, batch_bytes, wanted):
    assert execution.batches_per_call(steps, batch_bytes) == wanted


@pytest.mark.parametrize(
    ("dtype", "floatx", "wanted"),
    [
        ("uint8", "float32", "uint8"),
        ("int64", "float32", "int64"),
        ("bool", "float32", "bool"),
        ("float16", "float32", "float32"),
        ("float64", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("uint8", "float64", "uint8"),
    ],
)
def test_placed_types(dtype, floatx, wanted):
    keras.backend.set_floatx(floatx)
    values = np.array([[0, 1]], dtype)
    tensor, nothing = execution.place(values, None)
    assert (tensor.dtype.name, nothing) == (wanted, None)
    np.testing.assert_array_equal(tensor, values)


def program(step, num_batches=32, chunk=32, jit_compile=False):
    """A program whose logs are the number of its steps."""
    steps, counter, num_batches = (tf.Variable(number) for number in (0, 0, num_batches))

    def counted(batch):
        step(batch)
        steps.assign_add(1)

    run = execution.Program(
        counted, lambda: {"steps": steps + 0}, counter, num_batches, jit_compile
    )
    run.chunk = chunk
    return run


def test_a_program_takes_as_many_batches_as_there_are():
    seen = tf.Variable(tf.zeros([0]), shape=[None])

    def step(batch):
        seen.assign(tf.concat([seen, batch], 0))

    run = program(step, num_batches=5, chunk=2)
    batches = iter(slices(np.arange(23, dtype="float32")).batch(3))
    assert int(run(batches)["steps"]) == 5
    np.testing.assert_array_equal(seen, np.arange(15))
    for _ in range(2):  # Three are left, and then none.
        with pytest.raises(tf.errors.OutOfRangeError):
            run(batches)
        np.testing.assert_array_equal(seen, np.arange(23))
        assert int(run._counter) == 8


def test_the_first_call_of_a_program_takes_what_there_is():
    run = program(lambda batch: None, num_batches=9)
    assert int(run(iter(slices(X).batch(16)))["steps"]) == 4
    with pytest.raises(tf.errors.OutOfRangeError):
        program(lambda batch: None)(iter(slices(X).take(0).batch(16)))


def test_data_of_other_lengths_are_not_traced_anew(monkeypatch):
    def spy(*args):
        traces.append(args)
        return take(*args)

    traces, take = [], execution._take
    monkeypatch.setattr(execution, "_take", spy)
    run = program(lambda batch: None)
    for num in range(10, 30):
        with run.running(execution.place(X[:num], None, None), 32, 0):
            run(iter(slices(np.arange(num)).batch(4)))
    assert len(traces) < 5


def test_a_program_returns_to_the_run_that_another_interrupts():
    run = program(lambda batch: None)
    with run.running("rows", 4, 100):
        with contextlib.suppress(RuntimeError), run.running(None, 2, 0):
            fails()
        assert (run._rows, run.chunk, run.steps) == ("rows", 4, 100)
    assert (run._rows, run.chunk, run.steps) == (None, 32, 0)


# Memory.


def bytes_of(run):
    leaves = [leaf for leaf in tf.nest.flatten(run.chunk) if leaf is not None]
    return sum(leaf.shape.num_elements() * leaf.dtype.size for leaf in leaves)


@pytest.mark.parametrize(
    ("data", "steps_per_execution", "bound"),
    [
        ("arrays", None, 900),
        ("arrays", 8, 900),
        ("targets, weights, validation data", None, 2000),
        ("dataset", None, 2000),
        ("generator", 8, 500),
    ],
)
def test_chunks_are_bounded(data, steps_per_execution, bound, chunks, monkeypatch):
    monkeypatch.setattr(execution, "_MAX_BYTES", bound)
    vae = model("plain")
    if steps_per_execution:
        vae.steps_per_execution = steps_per_execution
    try:
        history = vae.fit(**DATA[data](), epochs=3, verbose=0).history
    finally:
        vae.steps_per_execution = 1
    assert_same(history, keras_history(data))
    assert max(bytes_of(run) for run in chunks) <= bound
    assert max(run.num for run in chunks) > 1


def test_chunks_of_validation_are_bounded_by_their_own_size(chunks, monkeypatch):
    monkeypatch.setattr(execution, "_MAX_BYTES", 500)
    data = {"x": X, "batch_size": 4, "validation_split": 0.5, "validation_batch_size": 12}
    model("plain").fit(**data, verbose=0)
    assert max(bytes_of(run) for run in chunks) <= 500


def test_a_batch_that_is_larger_than_the_bound_runs_alone(chunks, monkeypatch):
    monkeypatch.setattr(execution, "_MAX_BYTES", 10)
    history = model("plain").fit(**DATA["arrays"](), epochs=3, verbose=0).history
    assert_same(history, keras_history("arrays"))
    assert {run.num for run in chunks} == {1}


# Streams that end too soon.


@pytest.mark.long
@pytest.mark.parametrize(
    ("available", "steps", "epochs"), [(9, 4, 3), (8, 4, 3), (5, 8, 1), (5, 8, 2), (50, 40, 2)]
)
def test_all_batches_of_a_short_stream_are_used(available, steps, epochs, warnings_of_tensorflow):
    def run(way):
        stream = (X[i % 40 : i % 40 + 5] for i in range(available))
        vae = model(way)
        vae.fit(stream, steps_per_epoch=steps, epochs=epochs, verbose=0)
        return vae

    wanted = run("keras").history.history
    (warning,) = warnings_of_tensorflow()
    assert "Your input ran out of data" in warning
    vae = run("plain")
    assert int(vae.optimizer.iterations) == available
    assert_same(vae.history.history, wanted)
    assert warnings_of_tensorflow() == [warning, warning]


def test_arrays_with_fewer_batches_than_steps(warnings_of_tensorflow):
    data = {"x": X, "batch_size": 10, "steps_per_epoch": 12, "epochs": 2, "verbose": 0}
    wanted = model("keras").fit(**data).history
    assert_same(model("plain").fit(**data).history, wanted)
    assert len(warnings_of_tensorflow()) == 2


# What runs over rows and draws.


def ranks(rows, num_samples, seed):
    """For each row how many draws it had, and the most rows and draws that were in memory."""
    num = tf.cast(num_samples, rows.dtype)
    most = num * tf.cast(tf.shape(rows)[0], rows.dtype)
    return tf.stack([rows * num, tf.fill(tf.shape(rows), num), tf.fill(tf.shape(rows), most)], 1)


def joined(one, other):
    return tf.concat([one[:, :2] + other[:, :2], tf.maximum(one, other)[:, 2:]], axis=1)


@given(num=st.integers(1, 30), num_samples=st.integers(1, 50), pairs=st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_pieces_of_the_draws_are_merged_as_they_come(num, num_samples, pairs):
    batched = execution.Batched(ranks, joined)
    _, pair_bytes = batched._compile(tf.zeros([num]))
    rows = tf.range(float(num))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "_MAX_BYTES_INFERENCE", pairs * pair_bytes)
        total, draws, most = batched(rows, tf.constant([0, 0]), num_samples).numpy().T
    np.testing.assert_array_equal(draws, num_samples)
    np.testing.assert_array_equal(total, rows * num_samples)
    assert most.max() <= pairs


@pytest.mark.parametrize("repeats", [1, 7])
def test_memory_of_a_loop_is_that_of_its_body(repeats):
    """Of 1000 numbers for each row, whether they are computed once or in a loop."""

    def wide(rows):
        return tf.reduce_sum(tf.exp(rows[:, None] + tf.zeros([1000])), axis=1)

    def loop(rows, num_samples, seed):
        return tf.while_loop(lambda i, _: i < repeats, lambda i, r: (i + 1, wide(r)), (0, rows))[1]

    def bytes_of_a_row(function):
        return execution.Batched(function, None)._compile(tf.zeros([3]))[1]

    once = bytes_of_a_row(lambda rows, num_samples, seed: wide(rows))
    assert once > 8000
    assert once <= bytes_of_a_row(loop) < 1.1 * once
