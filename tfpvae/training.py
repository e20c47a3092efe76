"""The base of our Keras models: one source of noise, checked data, losses of each example."""

import contextlib
import functools
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import blocks, checks, execution, guards, inputs, noise, replicas, resuming, saving


class _Pace(keras.callbacks.Callback):
    """Has many batches run in a call once an epoch has shown how many there are."""

    def __init__(self, programs: Any, batch_bytes: float, epochs: int, unknown_held_out: bool):
        super().__init__()
        self._programs, self._batch_bytes, self._epochs = programs, batch_bytes, epochs
        self._unknown_held_out = unknown_held_out
        self._start = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remember the count of steps."""
        self._start = int(self.model._train_counter.numpy())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Choose, unless Keras has yet to count the batches of the validation data."""
        if self._unknown_held_out and getattr(self.model, "_eval_data_handler", None) is None:
            return
        steps = int(self.model._train_counter.numpy()) - self._start
        num = execution.batches_per_call(steps, self._batch_bytes)
        self.model._steps_per_execution.assign(num)
        for program in self._programs:
            program.chunk, program.steps = num, steps * self._epochs


class ProbabilisticModel(keras.Model):
    """A Keras model that is trained on losses of each example.

    `fit`, `evaluate` and `predict` are Keras's own; what is ours is one training step, one test
    step, the programs that run many of them in one call, and the check of the data before the first
    of them. A subclass defines `example_losses`, `check_data` and `build`.

    The logs hold the loss and its terms, each the weighted sum over the examples divided by their
    number, as Keras does: `loss = mean_b(weight_b * loss_b)` plus the networks' own regularizers.

    Args:
      seed: of the model's noise, see `noise.Noise`.
      preprocessing: a layer that x goes through before all else, None for none.
      **kwargs: of `keras.Model`.
    """

    train_function: Any
    test_function: Any

    #: names of the terms of the loss, in the order of the progress bar
    terms: tuple[str, ...] = ()

    #: what is trained beside the model by an optimizer of its own, a `DensityRatio`; None: nothing
    discriminator: Any = None

    #: what may help when the loss becomes NaN, in the words of this kind of model
    remedy = ""

    def __init__(self, seed: int | None = None, preprocessing: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.refuse_keras3("preprocessing", preprocessing)
        if not isinstance(preprocessing, keras.layers.Layer | None):
            raise TypeError(f"preprocessing: got {preprocessing!r}, wanted a tf_keras layer")
        self.noise = noise.Noise(seed)
        self.preprocessing = preprocessing
        self._chosen_pace = False  # Whether the user gave `steps_per_execution`,
        self._user_pace: int | None = None  # and what it is while a run has changed it.
        self._log_terms(self.terms)
        self._has_metrics = False
        object.__setattr__(self, "_guard", guards.Guard(self))  # Past Keras, which would track it.

    def _log_terms(self, terms: tuple[str, ...]) -> None:
        """Name the terms of the loss, of which the logs hold the means."""
        with self.distribute_strategy.scope():
            means = [keras.metrics.Mean(name=name) for name in ("loss", *terms)]
        # Past Keras's tracking, which would count the running means among the model's weights.
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "_means", means)

    def example_losses(self, x: Any, y: Any, training: bool) -> tuple[Any, dict[str, Any], Any]:
        """The loss of each example `[B]`, its terms by name, and the prediction.

        A term is `[B]`, or a scalar if it belongs to the model and not to the examples.
        """
        raise NotImplementedError

    def total_loss(self, losses: Any, terms: dict[str, Any], weight: Any) -> Any:
        """The loss of a batch: the mean of the examples', and the networks' own regularizers."""
        return _total(_mean(losses, weight), self.losses)

    def check_data(self, x: np.ndarray, y: np.ndarray | None, arguments: tuple[str, str]) -> None:
        """Raise ValueError unless the model can be trained on inputs x and targets y, or x's."""
        raise NotImplementedError

    @property
    def takes_missing(self) -> bool:
        """Whether NaN in the data stands for what is missing; otherwise it is refused."""
        return False

    @property
    def data_dtype(self) -> str:
        """The type in which data are scored, that of the densities: no policy makes it a half."""
        return blocks.full_precision(self.dtype_policy)

    def prepare(self, x: Any) -> Any:
        """The data as the networks take them: preprocessed, in the type of the densities."""
        x = tf.convert_to_tensor(x)
        if self.built:  # A generator's batches come without the sizes that saving has to know.
            x = tf.ensure_shape(x, (None, *self._build_input_shape[1:]))
        if self.preprocessing is not None:
            x = self.preprocessing(x)
            if x.dtype in (tf.float16, tf.bfloat16):
                raise ValueError(
                    f"preprocessing: got a layer that puts out {x.dtype.name}, wanted "
                    f"{self.data_dtype}, because the likelihood scores what it puts out: make it "
                    f"with dtype='{self.data_dtype}'"
                )
        return tf.cast(x, self.data_dtype)

    def prepare_batch(self, x: Any, y: Any) -> tuple[Any, Any]:
        """The data of a batch as the networks take them, and what is scored: x if y is None."""
        x = self.prepare(x)
        return x, x if y is None else y

    def losses_of(self, batch: Any) -> tuple[Any, dict[str, Any]]:
        """The losses of the examples of a batch in training, and their terms."""
        x, y, _ = inputs.unpack(batch)
        losses, terms, _ = self.example_losses(*self.prepare_batch(x, y), training=True)
        return losses, terms

    def before_step(self, x: Any, y: Any) -> None:
        """What is trained by another optimizer on a batch before the model's takes its step."""

    def build_optimizers(self) -> None:
        """Make the variables of the optimizers: not while a program is traced, which is slow."""
        if hasattr(self.optimizer, "build"):
            self.optimizer.build(self.trainable_variables)

    def compile(self, optimizer: Any = "rmsprop", **kwargs: Any) -> None:
        """Configure training: Keras's own arguments, but for the loss, which is the model's.

        `steps_per_execution` and `jit_compile` are chosen by `fit`, if you do not choose them.
        """
        if isinstance(optimizer, (list, tuple, dict, set)):  # Which Keras takes for several.
            raise TypeError(f"optimizer: got {optimizer!r}, wanted one of keras.optimizers")
        self._chosen_pace = kwargs.get("steps_per_execution") is not None
        self._has_metrics = bool(kwargs.get("metrics") or kwargs.get("weighted_metrics"))
        # An empty list tells Keras that sample weights are meant for the loss alone.
        super().compile(optimizer, **{"weighted_metrics": []} | kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved model was; Keras leaves that to models with their own `compile`."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.build_optimizers()

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """Write the model to a `.keras` file, all of it or nothing; `tfpvae.load_model` reads it.

        All workers of a strategy have to call it; the first one writes the file.

        Raises:
          ValueError: for another format.
          OSError: if the disk is full; a file that was there is as it was.
        """
        if not isinstance(filepath, (str, os.PathLike)):
            raise TypeError(f"filepath: got {filepath!r}, wanted a path that ends in .keras")
        path = pathlib.Path(filepath)
        if path.suffix != ".keras" or kwargs.get("save_format") not in (None, "keras"):
            raise ValueError(f"filepath: got {str(filepath)!r}, wanted a name that ends in .keras")
        if path.exists() and not overwrite:
            return super().save(filepath, overwrite, **kwargs)  # Keras asks the user.
        if replicas.is_chief(self.distribute_strategy):
            return saving.save(self, path, **kwargs)
        with tempfile.TemporaryDirectory() as folder:  # The others take part, for nothing.
            return super().save(pathlib.Path(folder, path.name), **kwargs)

    def export(self, filepath: Any, **kwargs: Any) -> None:
        """Write the model for programs that have TensorFlow alone, if it knows how.

        Raises:
          TypeError: if it does not.
        """
        raise TypeError(
            f"export: got a {type(self).__name__}, wanted a VAE, a model that is made like one, or "
            "a BayesianRegression; save(path) writes any model for Python"
        )

    @property
    def metrics(self) -> list[Any]:
        """The loss, its terms, and the metrics given to `compile`."""
        compiled = self.compiled_metrics.metrics if self._has_metrics else []
        return [*self._means, *compiled]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of the optimizer on one batch."""
        with replicas.batch(*inputs.unpack(data)) as (x, y, weight):
            with noise.fixed(self.noise.next()):
                self.before_step(x, y)
                with replicas.Tape() as tape:
                    x, y = self.prepare_batch(x, y)
                    losses, terms, prediction = self.example_losses(x, y, training=True)
                    loss = self.total_loss(losses, terms, weight)
            self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
            return self._log(loss, terms, y, prediction, weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        """The losses of one batch."""
        with replicas.batch(*inputs.unpack(data)) as (x, y, weight):
            with noise.fixed(self.noise.next(evaluation=True)):
                x, y = self.prepare_batch(x, y)
                losses, terms, prediction = self.example_losses(x, y, training=False)
            loss = self.total_loss(losses, terms, weight)
            return self._log(loss, terms, y, prediction, weight)

    def make_train_function(self, force: bool = False) -> Any:
        """What `fit` calls for the next batches: many of them run in one program."""
        is_ours = isinstance(self.train_function, execution.Program)
        if not self._runs_programs():
            # Keras gives back what it has; what it has is guarded already.
            is_new = force or is_ours or self.train_function is None
            function = super().make_train_function(force or is_ours)
            if is_new:
                self._guard.renew()
                self.train_function = functools.partial(self._guard.step, function)
        elif force or not is_ours:
            self.build_optimizers()
            self._guard.renew()
            self.train_function = self._program(
                self.train_step, self._train_counter, self._jit_compile, self._guard
            )
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        """What `evaluate` calls for the next batches: many of them run in one program."""
        is_ours = isinstance(self.test_function, execution.Program)
        if not self._runs_programs():
            return super().make_test_function(force or is_ours)
        if force or not is_ours:
            # Never XLA of our own choice: the numbers must not depend on who calls `evaluate`.
            self.test_function = self._program(
                self.test_step, self._test_counter, bool(self._jit_compile)
            )
        return self.test_function

    def _program(self, step: Any, counter: Any, jit_compile: bool | None, guard: Any = None) -> Any:
        results, num = self.get_metrics_result, self._steps_per_execution
        return execution.Program(step, results, counter, num, jit_compile, guard)

    def _runs_programs(self) -> bool:
        """Whether batches run in our programs, or one after the other in Keras's functions."""
        with self.distribute_strategy.scope():
            distributed = tf.distribute.has_strategy()
        steps = (type(self).train_step, type(self).test_step)
        ours = (ProbabilisticModel.train_step, ProbabilisticModel.test_step)
        return self._is_compiled and not (
            distributed or self.run_eagerly or self.autotune_steps_per_execution or steps != ours
        )

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Train the model, as `keras.Model.fit`, once the data have been checked.

        Args:
          x: data `[N, ...]`, or a `tf.data.Dataset`, `keras.utils.Sequence` or generator of
            batches `x`, `(x, y)` or `(x, y, weight)`.
          y: what the likelihood scores, x if None; of a `ConditionalVAE` what x is given.
          batch_size: examples a step, 32 if None.
          epochs: passes over the data.
          verbose: as in Keras.
          callbacks: as in Keras.
          validation_split: as in Keras.
          validation_data: `x`, `(x, y)`, `(x, y, weight)` or a dataset.
          shuffle: as in Keras.
          class_weight: not supported, there are no classes.
          sample_weight: weights `[N]` of the examples: of all terms of their losses.
          **kwargs: the other arguments of `keras.Model.fit`, and `resume`: a folder, or a
            `resuming.Resume`, from which a run that was stopped goes on.

        Returns:
          Keras's `History`.

        Raises:
          TypeError: for data that are no numbers.
          ValueError: for data of the wrong shape, empty, not finite, or outside the support of
            the likelihood: naming the argument, what came, and what was wanted.
          FloatingPointError: if the loss or the weights became NaN or infinite; the model has the
            weights from before that step then.
        """
        data = self._checked(("x", "y", "sample_weight"), x, y, sample_weight)
        held_out = None if validation_data is None else self._checked_validation(validation_data)
        return self._train(
            data,
            held_out,
            callbacks,
            class_weight,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            # Keras's order of precedence.
            validation_split=validation_split if held_out is None else 0.0,
            shuffle=shuffle,
            **kwargs,
        )

    def _train(
        self,
        data: inputs.Data,
        held_out: inputs.Data | None,
        callbacks: Any = None,
        class_weight: Any = None,
        resume: Any = None,
        **settings: Any,
    ) -> Any:
        """Keras's `fit` on data that have been checked; the settings are its arguments."""
        checks.fit_settings(settings)
        if class_weight is not None:
            raise ValueError("class_weight: the model has no classes; use sample_weight")
        self._eval_data_handler = None  # What a `fit` that failed left behind.
        if resume is not None:
            resume = resuming.as_resume(resume)
            if data.first is None and settings.get("validation_split"):
                data, held_out = data.split(settings.pop("validation_split"))
            callbacks = resume.begin(self, callbacks, data, settings)
        with (
            self._guard.watching(callbacks) as callbacks,
            self._fed(data, held_out, callbacks, settings) as (fed, held_out, callbacks),
        ):
            if resume is not None:
                fed, settings = resume.feed(data, settings, not self._runs_programs())
            history = super().fit(
                fed.x,
                fed.y,
                sample_weight=fed.weight,
                validation_data=held_out and (held_out.x if held_out.first else held_out[:3]),
                callbacks=callbacks,
                **settings,
            )
        if resume is not None:
            history = resume.finish()
        self.check_trained()
        return history

    def check_trained(self) -> None:
        """Warn of what a user should know when `fit` has ended."""

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The loss and its terms on data, as `keras.Model.evaluate`; see `fit` for the arguments.

        Called twice it gives the same numbers: its noise is fixed.
        """
        self.noise.rewind_evaluation()
        kwargs |= {"batch_size": batch_size}
        checks.fit_settings(kwargs | {"verbose": verbose})
        if kwargs.get("_use_cached_eval_dataset"):  # Keras's `fit` asks; it has the data.
            if isinstance(self.test_function, execution.Program):
                self.test_function.calls = 0
            return super().evaluate(x, y, verbose=verbose, sample_weight=sample_weight, **kwargs)
        data = self._checked(("x", "y", "sample_weight"), x, y, sample_weight)
        with self._fed(None, data, kwargs.get("callbacks"), kwargs) as (_, data, _):
            return super().evaluate(
                data.x, data.y, verbose=verbose, sample_weight=data.weight, **kwargs
            )

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """The predictions, as `keras.Model.predict`."""
        with self._paced(self._pace):  # Not that of a `fit` that is running.
            return super().predict(*args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """The predictions of one batch, as `keras.Model.predict_on_batch`."""
        with self._paced(1):
            return super().predict_on_batch(*args, **kwargs)

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any
    ) -> Any:
        """One step, as `keras.Model.train_on_batch`, on data that are checked as by `fit`."""
        data = self._checked_batch(x, y, sample_weight)
        with self._on_batch(self.make_train_function()):
            return super().train_on_batch(data.x, data.y, data.weight, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """The losses of a batch, as `keras.Model.test_on_batch`, of data checked as by `fit`."""
        data = self._checked_batch(x, y, sample_weight)
        with self._on_batch(self.make_test_function()):
            return super().test_on_batch(data.x, data.y, data.weight, **kwargs)

    def _checked_batch(self, x: Any, y: Any, weight: Any) -> inputs.Data:
        if inputs.is_stream(x):
            raise TypeError(f"x: got a {type(x).__name__}, wanted one batch: fit takes streams")
        return self._checked(("x", "y", "sample_weight"), x, y, weight).in_keras()

    @contextlib.contextmanager
    def _on_batch(self, function: Any) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._paced(1))
            if isinstance(function, execution.Program):  # Not the rows of a `fit` that is running.
                stack.enter_context(function.running(None, 1, 0))
            yield

    @contextlib.contextmanager
    def _fed(
        self,
        data: inputs.Data | None,
        held_out: inputs.Data | None,
        callbacks: Any,
        settings: dict[str, Any],
    ) -> Iterator[tuple[Any, Any, Any]]:
        """What to give to Keras's loop: indices for arrays, which our programs have at hand."""
        if not self._runs_programs():
            yield data and data.in_keras(), held_out and held_out.in_keras(), callbacks
            return
        train, test = self.make_train_function(), self.make_test_function()
        steps, batch_bytes = _lengths(data, held_out, settings)
        epochs = settings.get("epochs", 0)
        num = self._pace
        if num == 1 and not self._chosen_pace and not _wants_each_batch(callbacks):
            if None not in steps:
                num = execution.batches_per_call(steps[0] or 0, batch_bytes)
            elif not isinstance(callbacks, keras.callbacks.CallbackList):
                pace = _Pace((train, test), batch_bytes, epochs, steps[-1] is None)
                callbacks = [*tf.nest.flatten(callbacks or []), pace]
            if settings.get("steps_per_epoch") or settings.get("steps"):
                # Keras finds in a second call that there were fewer batches than it was told.
                num = min(num, math.ceil((steps[0] or 1) / 2))
        chunk = min(num, execution.max_batches(batch_bytes))
        rows = _rows(data, self.data_dtype)
        split = settings.get("validation_split")
        held_out_rows = rows if split else _rows(held_out, self.data_dtype)
        planned = epochs * (steps[0] or 0)
        with (
            train.running(rows, chunk, planned),
            test.running(held_out_rows, chunk, 0),
            self._paced(num),
        ):
            yield data and data.indices(), held_out and held_out.indices(), callbacks

    @property
    def _pace(self) -> int:
        """The `steps_per_execution` of the user."""
        if not self._is_compiled:
            return 1
        return (
            int(self._steps_per_execution.numpy()) if self._user_pace is None else self._user_pace
        )

    @contextlib.contextmanager
    def _paced(self, num: int) -> Iterator[None]:
        """Let Keras's loop count so many batches a call."""
        if not self._is_compiled:  # There is no loop then.
            yield
            return
        outer = self._user_pace, int(self._steps_per_execution.numpy())
        self._user_pace = self._pace
        self._steps_per_execution.assign(num)
        try:
            yield
        finally:
            self._user_pace = outer[0]
            self._steps_per_execution.assign(outer[1])

    def _placed(self, arrays: Any) -> Any:
        """An array, or a list of arrays, as tensors."""
        return execution.place(arrays, dtype=self.data_dtype)[0]

    def _checked_validation(self, data: Any) -> inputs.Data:
        names = ("validation_data", "validation_data[1]", "validation_data[2]")
        arrays = isinstance(data, list) and all(hasattr(item, "shape") for item in data)
        if not (isinstance(data, tuple) or arrays):
            data = (data,)
        return self._checked(names, *inputs.unpack(tuple(data)))

    def _checked(self, names: tuple[str, str, str], x: Any, y: Any, weight: Any) -> inputs.Data:
        """The data, checked before any step is taken."""
        data = inputs.read(names, x, y, weight, self.takes_missing)
        self._check_arrays(names, *data.sample[:2])
        return data

    def _check_arrays(self, names: tuple[str, ...], x: np.ndarray, y: np.ndarray | None) -> None:
        if not self.built:
            with self.distribute_strategy.scope():
                build(self, names[0], x.shape)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            replicas.check_scope(self.distribute_strategy, "model", self.variables)
        self.check_data(x, y, (names[0], names[0] if y is None else names[1]))

    def _log(self, loss: Any, terms: Any, y: Any, prediction: Any, weight: Any) -> dict[str, Any]:
        size = replicas.rows(next(iter(terms.values())))
        values = [loss, *(_mean(terms[name], weight) for name in self.terms)]
        for mean, value in zip(self._means, values, strict=True):
            mean.update_state(replicas.known(value), sample_weight=size)
        if self._has_metrics:
            value = tf.convert_to_tensor(prediction)
            value = tf.reduce_mean(value, axis=range(value.shape.rank - y.shape.rank))
            rows = [v if v is None else v[:size] for v in (y, value, weight)]
            self.compiled_metrics.update_state(*rows)
        return self.get_metrics_result()


def _wants_each_batch(callbacks: Any) -> bool:
    """Whether a callback would miss something if it were not called after each batch."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    return any(
        callback._implements_train_batch_hooks()
        or callback._implements_test_batch_hooks()
        or getattr(callback, "update_freq", "epoch") != "epoch"  # of TensorBoard
        for callback in tf.nest.flatten(callbacks or [])
        if type(callback) not in (keras.callbacks.ProgbarLogger, keras.callbacks.TerminateOnNaN)
    )


def _lengths(
    data: inputs.Data | None, held_out: inputs.Data | None, settings: dict[str, Any]
) -> tuple[list[int | None], float]:
    """Batches of an epoch and of a validation, and the size of the largest batch."""
    if data is None:
        parts = [(held_out, settings)]
    else:  # Arguments of `fit`, and what they mean to its `evaluate`.
        size = settings.get("validation_batch_size") or settings.get("batch_size")
        held_out_settings = {"steps": settings.get("validation_steps"), "batch_size": size}
        split = data if settings.get("validation_split") else None
        parts = [(data, settings), (held_out or split, held_out_settings)]
    present = [(part, own) for part, own in parts if part is not None]
    steps = [part.steps(own) for part, own in present]
    return steps, max(part.batch_bytes(own) for part, own in present)


def _rows(data: inputs.Data | None, dtype: str) -> Any:
    """The arrays as tensors, which programs take batches from; None for streams of batches."""
    return None if data is None or data.first else execution.place(*data[:3], dtype=dtype)


def build(model: Any, argument: str, shape: tuple[int, ...]) -> None:
    """Build a model for data of this shape; ValueError if its networks do not take them."""
    try:
        model.build((None, *shape[1:]))
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(
            f"{argument}: got shape {shape}, which the model's networks do not take: {error}"
        ) from error


def _mean(values: Any, weight: Any) -> Any:
    """The weighted sum over the examples by their number, as Keras averages a loss.

    A term without an axis belongs to the model and not to the examples: it has no weights.
    """
    if weight is not None and values.shape.rank:
        values = values * tf.cast(tf.reshape(weight, tf.shape(values)), values.dtype)
    return tf.reduce_mean(values)


def _total(loss: Any, regularizers: list[Any]) -> Any:
    return tf.add_n([loss, *(tf.cast(value, loss.dtype) for value in regularizers)])
