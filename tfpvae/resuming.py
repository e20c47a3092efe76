"""Stop and resume: training that was killed goes on and ends as if nothing had happened."""

import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import checks, guards, inputs, replicas, saving

_KEPT = (bool, int, float, str, type(None), np.generic, np.ndarray)


class Resume(keras.callbacks.Callback):
    r"""Saves the state of training at the ends of epochs; the same `fit` later goes on from it.

    The state is that of the model, its optimizers, its noise, the schedules, the other callbacks
    and the history. The order of the data in epoch e is a permutation made from the seed of the
    model's noise and e, so it needs no state. A run that was killed, however often, ends with the
    weights and the history, bit for bit, of one that was not.

    `fit(resume=folder)` is short for `fit(resume=Resume(folder))`. The folder holds one
    `epoch-00012` at a time, with `model.keras`, which can be loaded by itself, and `state.json`. It
    is written under another name, then renamed: whatever happens, the last one counts.

    Args:
      folder: of this run; made if it is not there.
      min_seconds: an epoch that ends earlier than so many seconds after the last save is not saved;
        the first state and the last one always are.

    Raises:
      TypeError, ValueError: for a folder that is no path, seconds that are no number >= 0.

    Example:
      >>> import tempfile
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> def run(folder, epochs):
      ...     encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      ...     decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      ...     vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      ...     vae.compile("adam")
      ...     return vae.fit(np.eye(3), epochs=epochs, resume=folder, verbose=0)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     first = run(folder, epochs=2)
      ...     second = run(folder, epochs=3)
      >>> second.history["loss"][:2] == first.history["loss"], second.epoch
      (True, [0, 1, 2])
    """

    def __init__(self, folder: Any, min_seconds: float = 10.0) -> None:
        super().__init__()
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"resume: got {folder!r}, wanted the path of a folder, or a Resume")
        self.folder = pathlib.Path(folder)
        self.min_seconds = checks.number(
            "min_seconds", min_seconds, "a number of seconds >= 0", lambda value: value >= 0.0
        )
        #: the epochs that are behind, and whether a callback ended the run
        self.epoch, self.stopped = 0, False
        self._history = keras.callbacks.History()
        self._others: list[Any] = []
        self._states: list[dict[str, Any]] = []
        self._run: dict[str, Any] = {}
        self._saved, self._time = -1, 0.0  # The last epoch that was saved, and when.

    def begin(
        self, model: Any, callbacks: Any, data: inputs.Data, settings: dict[str, Any]
    ) -> list[Any]:
        """Take up the run that the folder holds, if there is one; the callbacks for `fit`.

        Args:
          model: built and compiled.
          callbacks: of the user.
          data: what the model is trained on.
          settings: the other arguments of `fit`.

        Raises:
          TypeError: for callbacks in a `CallbackList`.
          ValueError: for a folder with another run, or one that cannot be read.
        """
        if isinstance(callbacks, keras.callbacks.CallbackList):
            raise TypeError("callbacks: got a CallbackList and resume, wanted a list of callbacks")
        if settings.get("initial_epoch"):
            raise ValueError("initial_epoch: got it and resume, wanted none: the folder tells it")
        self.set_model(model)
        self._others = tf.nest.flatten(callbacks or [])
        self._run = _fingerprint(model, data, settings)
        self._history = keras.callbacks.History()
        self.epoch, self.stopped = 0, False
        with model.distribute_strategy.scope():  # Or the replicas would share one set of slots.
            model.build_optimizers()
        _warn_of_own_noise(model)
        found = _last(self.folder)
        if found is None:
            self._save()
        else:
            self._load(found)
        self._saved, self._time = self.epoch, time.monotonic()
        return [*self._others, self._history, self]

    def feed(
        self, data: inputs.Data, settings: dict[str, Any], in_rows: bool
    ) -> tuple[inputs.Data, dict[str, Any]]:
        """One stream of the batches that are left, and the arguments of Keras's `fit` for it.

        Args:
          data: arrays, or a `tf.data.Dataset`.
          settings: the arguments of `fit`.
          in_rows: whether batches of arrays hold rows; else they hold the rows' indices.

        Raises:
          TypeError: for a generator or a `keras.utils.Sequence`, which cannot begin in the middle.
          ValueError: for a dataset of unknown length; `steps_per_epoch` of arrays.
        """
        start = settings["epochs"] if self.stopped else min(self.epoch, settings["epochs"])
        if data.first is None and settings.get("steps_per_epoch") is not None:
            raise ValueError("steps_per_epoch: got it with arrays and resume, wanted none")
        if data.first is not None and not isinstance(data.x, tf.data.Dataset):
            raise TypeError(
                f"x: got {type(data.x).__name__} and resume, wanted arrays or a tf.data.Dataset, "
                "which can begin in the middle"
            )
        steps = data.steps(settings)
        if steps is None:
            raise ValueError(
                "x: got a dataset of unknown length and resume, wanted steps_per_epoch, or its "
                "length by tf.data.experimental.assert_cardinality"
            )
        changed = {"steps_per_epoch": steps, "initial_epoch": start}
        if data.first is not None:
            return inputs.Data(data.x.repeat().skip(start * steps)), settings | changed
        size = data.batch_size(settings)
        changed["validation_batch_size"] = settings.get("validation_batch_size") or size
        stream = _batches(data, size, settings, self.model.noise.seed.numpy(), start, in_rows)
        return inputs.Data(stream), settings | changed | {"batch_size": None}

    def finish(self) -> Any:
        """Keras's `History` of all the epochs."""
        self._history.epoch = [*range(len(next(iter(self._history.history.values()), [])))]
        return self._history

    def on_train_begin(self, logs: Any = None) -> None:
        """Give the other callbacks the state that they had; Keras has made them begin anew."""
        if self.epoch:
            for callback, state in zip(self._others, self._states, strict=True):
                vars(callback).update(state)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save, unless it is too early."""
        self.epoch, self.stopped = epoch + 1, bool(self.model.stop_training)
        ends = self.stopped or self.epoch == self.params["epochs"]
        late = time.monotonic() - self._time >= self.min_seconds
        # Several workers save together, and their clocks differ.
        if not ends and (late or self.model.distribute_strategy.cluster_resolver is not None):
            self._save()

    def on_train_end(self, logs: Any = None) -> None:
        """Save the end, which other callbacks may have changed, as EarlyStopping does."""
        if self._saved != self.epoch:
            self._save()

    def _save(self) -> None:
        self._saved, self._time = self.epoch, time.monotonic()
        self._states = [_state(callback) for callback in self._others]
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"epoch-{self.epoch:05d}"
        arrays = {
            f"variable {i}": variable.numpy()
            for i, variable in enumerate(guards.variables(self.model))
        }
        if not replicas.is_chief(self.model.distribute_strategy):
            with tempfile.TemporaryDirectory() as folder:  # The others take part, for nothing.
                self.model.save(pathlib.Path(folder, "model.keras"))
            return
        with saving.atomic(self.folder / name) as part:
            part.mkdir()
            self.model.save(part / "model.keras")
            state = {
                "format": 1,
                "epoch": self.epoch,
                "stopped": self.stopped,
                "run": self._run,
                "history": self._history.history,
                "callbacks": [
                    [type(callback).__name__, _packed(state, arrays)]
                    for callback, state in zip(self._others, self._states, strict=True)
                ],
            }
            (part / "state.json").write_text(json.dumps(state, default=_number))
            np.savez(part / "arrays.npz", **arrays)
        for path in self.folder.glob("*epoch-*"):
            if path.name != name:
                shutil.rmtree(path, ignore_errors=True)

    def _load(self, path: pathlib.Path) -> None:
        try:
            state = json.loads((path / "state.json").read_text())
            with np.load(path / "arrays.npz", allow_pickle=False) as file:
                arrays = dict(file)
            saved, own = state["run"], self._run
            others = [name for name in own if saved.get(name) != own[name]]
            known = [kind for kind, _ in state["callbacks"]]
            self._states = [_unpacked(values, arrays) for _, values in state["callbacks"]]
            self.epoch, self.stopped = state["epoch"], state["stopped"]
            self._history.history = state["history"]
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise ValueError(
                f"resume: {path} cannot be read ({error}); wanted a folder that fit wrote: remove "
                "it to begin anew"
            ) from error
        if known != [type(callback).__name__ for callback in self._others]:
            others.append("callbacks")
        if others:
            raise ValueError(
                f"resume: got {self.folder}, which holds a run with other {', '.join(others)}; "
                "wanted the same run, or another folder"
            )
        for i, variable in enumerate(guards.variables(self.model)):
            variable.assign(arrays[f"variable {i}"])


def as_resume(value: Any) -> Resume:
    """The `Resume` that the argument of `fit` means."""
    return value if isinstance(value, Resume) else Resume(value)


def _batches(
    data: inputs.Data, size: int, settings: dict[str, Any], seed: Any, start: int, in_rows: bool
) -> tf.data.Dataset:
    """Batches of arrays from an epoch on, in an order that the seed and the epoch make."""
    rows, seed = data.indices().x, tf.constant(seed)
    shuffle = settings.get("shuffle", True)

    def epoch(number: Any) -> tf.data.Dataset:
        own = tf.random.fold_in(seed, tf.cast(number, tf.int32))
        order = tf.random.experimental.stateless_shuffle(rows, own) if shuffle else rows
        return tf.data.Dataset.from_tensor_slices(order).batch(size)

    stream = tf.data.Dataset.range(start, settings["epochs"]).flat_map(epoch)
    if in_rows:
        arrays = [None if values is None else tf.constant(values) for values in data[:3]]

        def gather(index: Any) -> Any:
            taken = [None if values is None else tf.gather(values, index) for values in arrays]
            return inputs.pack(*taken)

        stream = stream.map(gather, num_parallel_calls=tf.data.AUTOTUNE)
    return stream.prefetch(tf.data.AUTOTUNE)


def _fingerprint(model: Any, data: inputs.Data, settings: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same when a run is resumed, by the name that an error gives to it."""
    digest = hashlib.blake2b(digest_size=16)
    for values in data.sample if data.first else (*data[:3], data.order):
        if values is not None:
            array = np.ascontiguousarray(values)
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    names = ("batch_size", "shuffle", "steps_per_epoch")
    return {
        "data": digest.hexdigest(),
        "weights": [[*v.shape, v.dtype.name] for v in model.variables],
        "compile arguments": _nameless(json.loads(json.dumps(model.get_compile_config()))),
        **{name: settings.get(name) for name in names},
    }


def _last(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of the last epoch that was saved whole."""
    return max(folder.glob("epoch-[0-9]*"), default=None, key=lambda path: int(path.name[6:]))


def _state(callback: Any) -> dict[str, Any]:
    """The numbers, texts, and lists of arrays that a callback holds, by the attribute's name."""
    kept = {}
    for name, value in vars(callback).items():
        items = value if isinstance(value, (list, tuple)) else [value]
        if name not in ("model", "params") and all(isinstance(item, _KEPT) for item in items):
            kept[name] = value
    return kept


def _packed(state: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """A callback's state as JSON; its arrays go to `arrays`."""

    def pack(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [pack(item) for item in value]
        if isinstance(value, (np.generic, np.ndarray)):
            arrays[str(len(arrays))] = np.asarray(value)
            return {"array": str(len(arrays) - 1)}
        return value

    return {name: pack(value) for name, value in state.items()}


def _unpacked(state: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    def unpack(value: Any) -> Any:
        if isinstance(value, list):
            return [unpack(item) for item in value]
        return arrays[value["array"]] if isinstance(value, dict) else value

    return {name: unpack(value) for name, value in state.items()}


def _number(value: Any) -> Any:
    """What JSON does not know of the numbers that Keras logs."""
    return value.numpy().item() if tf.is_tensor(value) else np.asarray(value).item()


def _nameless(config: Any) -> Any:
    """A configuration without the names of layers, which Keras counts up in a process."""
    if isinstance(config, dict):
        return {key: _nameless(value) for key, value in config.items() if key != "name"}
    return [_nameless(item) for item in config] if isinstance(config, list) else config


def _warn_of_own_noise(model: Any) -> None:
    """Warn of layers whose noise no file holds."""
    drawing = [
        layer.name
        for layer in itertools.chain([model], model.submodules)
        if isinstance(layer, keras.layers.Layer) and getattr(layer, "_random_generator", None)
    ]
    if drawing:
        warnings.warn(
            f"resume: the layers {', '.join(drawing[:3])} draw noise of their own, as dropout "
            "does, which no file holds: a resumed run goes on, with other noise",
            UserWarning,
            stacklevel=5,
        )
