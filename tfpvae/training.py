"""The base of our Keras models: one source of noise, checked data, losses of each example."""

import inspect
import itertools
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import checks, noise


class ProbabilisticModel(keras.Model):
    """A Keras model that is trained on losses of each example.

    `fit`, `evaluate` and `predict` are Keras's own; what is ours is one training step, one test
    step, and the check of the data before the first of them. A subclass defines `example_losses`,
    `check_data` and `build`.

    The logs hold the loss and its terms, each the weighted sum over the examples divided by their
    number, as Keras does: `loss = mean_b(weight_b * loss_b)` plus the networks' own regularizers.

    Args:
      seed: of the model's noise, see `noise.Noise`.
      **kwargs: of `keras.Model`.
    """

    #: names of the terms of the loss, in the order of the progress bar
    terms: tuple[str, ...] = ()

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noise = noise.Noise(seed)
        # Past Keras's tracking, which would count the running means among the model's weights.
        means = [keras.metrics.Mean(name=name) for name in ("loss", *self.terms)]
        object.__setattr__(self, "_means", means)
        self._has_metrics = False

    def example_losses(self, x: Any, y: Any, training: bool) -> tuple[Any, dict[str, Any], Any]:
        """The loss of each example `[B]`, its terms `[B]` by name, and the prediction."""
        raise NotImplementedError

    def check_data(self, x: np.ndarray, y: np.ndarray, arguments: tuple[str, str]) -> None:
        """Raise ValueError unless the model can be trained on inputs x and targets y."""
        raise NotImplementedError

    def compile(self, optimizer: Any = "rmsprop", *args: Any, **kwargs: Any) -> None:
        """Configure training: Keras's own arguments, but for the loss, which is the model's."""
        self._has_metrics = bool(kwargs.get("metrics") or kwargs.get("weighted_metrics"))
        # An empty list tells Keras that sample weights are meant for the loss alone.
        super().compile(optimizer, *args, **{"weighted_metrics": []} | kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved model was; Keras leaves that to models with their own `compile`."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """Write the model to a `.keras` file, all of it or nothing.

        Raises:
          ValueError: for another format.
        """
        path = pathlib.Path(filepath)
        if path.suffix != ".keras" or kwargs.get("save_format") not in (None, "keras"):
            raise ValueError(f"filepath: got {str(filepath)!r}, wanted a name that ends in .keras")
        if path.exists() and not overwrite:
            return super().save(filepath, overwrite, **kwargs)  # Keras asks the user.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
            whole = pathlib.Path(folder, path.name)
            super().save(whole, **kwargs)
            whole.replace(path)
        return None

    @property
    def metrics(self) -> list[Any]:
        """The loss, its terms, and the metrics given to `compile`."""
        compiled = self.compiled_metrics.metrics if self._has_metrics else []
        return [*self._means, *compiled]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of the optimizer on one batch."""
        x, y, weight = _unpack_batch(data)
        with noise.fixed(self.noise.next()), tf.GradientTape() as tape:
            losses, terms, prediction = self.example_losses(x, y, training=True)
            loss = _total(_mean(losses, weight), self.losses)
            # Keras adds up the gradients of the replicas.
            scaled = loss / self.distribute_strategy.num_replicas_in_sync
        self.optimizer.minimize(scaled, self.trainable_variables, tape=tape)
        return self._log(loss, terms, y, prediction, weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        """The losses of one batch."""
        x, y, weight = _unpack_batch(data)
        with noise.fixed(self.noise.next(evaluation=True)):
            losses, terms, prediction = self.example_losses(x, y, training=False)
        loss = _total(_mean(losses, weight), self.losses)
        return self._log(loss, terms, y, prediction, weight)

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
          y: what the likelihood scores, x if None.
          batch_size: examples a step, 32 if None.
          epochs: passes over the data.
          verbose: as in Keras.
          callbacks: as in Keras.
          validation_split: as in Keras.
          validation_data: `x`, `(x, y)`, `(x, y, weight)` or a dataset.
          shuffle: as in Keras.
          class_weight: not supported, there are no classes.
          sample_weight: weights `[N]` of the examples: of all terms of their losses.
          **kwargs: the other arguments of `keras.Model.fit`.

        Returns:
          Keras's `History`.

        Raises:
          TypeError: for data that are no numbers.
          ValueError: for data of the wrong shape, empty, not finite, or outside the support of
            the likelihood: naming the argument, what came, and what was wanted.
        """
        if class_weight is not None:
            raise ValueError("class_weight: the model has no classes; use sample_weight")
        x, y, sample_weight = self._checked(("x", "y", "sample_weight"), x, y, sample_weight)
        if validation_data is not None:
            validation_data = self._checked_validation(validation_data)
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            sample_weight=sample_weight,
            **kwargs,
        )

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
        if not kwargs.get("_use_cached_eval_dataset"):  # Keras's `fit` asks; it has checked.
            x, y, sample_weight = self._checked(("x", "y", "sample_weight"), x, y, sample_weight)
        return super().evaluate(
            x, y, batch_size=batch_size, verbose=verbose, sample_weight=sample_weight, **kwargs
        )

    def _checked_validation(self, data: Any) -> Any:
        names = ("validation_data", "validation_data[1]", "validation_data[2]")
        arrays = isinstance(data, list) and all(hasattr(item, "shape") for item in data)
        if not (isinstance(data, tuple) or arrays):
            data = (data,)
        x, y, weight = self._checked(names, *_unpack(tuple(data)))
        if _is_stream(x):
            return x
        return (x, x if y is None else y, weight) if weight is not None else (x, y)

    def _checked(self, names: tuple[str, str, str], x: Any, y: Any, weight: Any) -> Any:
        """The data as Keras takes them, checked before any step is taken."""
        if _is_stream(x):
            return self._checked_stream(names, x), y, weight
        x = checks.as_array(names[0], x)
        y = None if y is None else checks.as_array(names[1], y)
        _check_rows(names, x, y, weight)
        self._check_batch(names, x, y)
        if weight is None:
            return x, y, None
        weight = checks.as_array(names[2], weight)
        if weight.shape != x.shape[:1] or not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise ValueError(
                f"{names[2]}: got shape {weight.shape}, wanted {x.shape[:1]} finite numbers >= 0"
            )
        # Keras drops the weights of arrays without targets.
        return x, x if y is None else y, weight

    def _checked_stream(self, names: tuple[str, str, str], stream: Any) -> Any:
        """The stream, its first batch checked; of a dataset all batches are checked for NaN."""
        if isinstance(stream, tf.data.Dataset):
            first = next(iter(stream.take(1)), None)
            checked = stream.map(_assert_finite, num_parallel_calls=tf.data.AUTOTUNE)
        elif isinstance(stream, keras.utils.Sequence):
            first, checked = (stream[0] if len(stream) else None), stream
        else:
            first = next(stream, None)
            checked = itertools.chain([first], stream)
            checked = (batch for batch in checked)  # Keras knows generators by their type.
        if first is None:
            raise ValueError(f"{names[0]}: got an empty {type(stream).__name__}, wanted batches")
        x, y, _ = _unpack(first)
        x = checks.as_array(names[0], x)
        y = None if y is None else checks.as_array(names[1], y)
        self._check_batch(names, x, y)
        return checked

    def _check_batch(self, names: tuple[str, str, str], x: np.ndarray, y: Any) -> None:
        if not self.built:
            with self.distribute_strategy.scope():
                _build(self, names[0], x.shape)
        self.check_data(x, x if y is None else y, (names[0], names[0] if y is None else names[1]))

    def _log(self, loss: Any, terms: Any, y: Any, prediction: Any, weight: Any) -> dict[str, Any]:
        size = tf.shape(next(iter(terms.values())))[0]
        values = [loss, *(_mean(terms[name], weight) for name in self.terms)]
        for mean, value in zip(self._means, values, strict=True):
            mean.update_state(value, sample_weight=size)
        if self._has_metrics:
            value = tf.convert_to_tensor(prediction)
            value = tf.reduce_mean(value, axis=range(value.shape.rank - y.shape.rank))
            self.compiled_metrics.update_state(y, value, weight)
        return self.get_metrics_result()


def _check_rows(names: tuple[str, str, str], x: np.ndarray, y: Any, weight: Any) -> None:
    for name, values in ((names[1], y), (names[2], weight)):
        if values is not None and np.shape(values)[:1] != x.shape[:1]:
            raise ValueError(
                f"{name}: got shape {np.shape(values)}, wanted {len(x)} rows, as many as "
                f"{names[0]} has"
            )


def _build(model: Any, argument: str, shape: tuple[int, ...]) -> None:
    try:
        model.build((None, *shape[1:]))
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(
            f"{argument}: got shape {shape}, which the model's networks do not take: {error}"
        ) from error


def _is_stream(x: Any) -> bool:
    kinds = (tf.data.Dataset, keras.utils.Sequence, Iterator)
    return isinstance(x, kinds) or inspect.isgenerator(x)


def _unpack(data: Any) -> tuple[Any, Any, Any]:
    """`(x, y, weight)` of a batch `x`, `(x,)`, `(x, y)` or `(x, y, weight)`."""
    return keras.utils.unpack_x_y_sample_weight(data)


def _unpack_batch(data: Any) -> tuple[Any, Any, Any]:
    x, y, weight = _unpack(data)
    return x, x if y is None else y, weight


def _mean(values: Any, weight: Any) -> Any:
    """The weighted sum over the examples by their number, as Keras averages a loss."""
    if weight is not None:
        values = values * tf.cast(tf.reshape(weight, tf.shape(values)), values.dtype)
    return tf.reduce_mean(values)


def _total(loss: Any, regularizers: list[Any]) -> Any:
    return tf.add_n([loss, *(tf.cast(value, loss.dtype) for value in regularizers)])


def _assert_finite(*batch: Any) -> Any:
    for values in tf.nest.flatten(batch):
        if values is not None and values.dtype.is_floating:
            message = "x: got NaN or infinite values in a batch of the dataset"
            tf.debugging.assert_all_finite(values, message)
    return batch[0] if len(batch) == 1 else batch
