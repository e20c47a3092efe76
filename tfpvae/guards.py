"""What stops training when the loss becomes NaN or infinite: at the last good weights, and why."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import blocks, execution, noise

#: what may help, if a model knows nothing better
REMEDY = (
    "a smaller learning rate, `clipnorm=` of the optimizer, data on a scale near 1, or other "
    "`constraints=` of the block may help"
)


class Guard(keras.callbacks.Callback):
    """Lets no step pass whose loss or weights are NaN or infinite.

    It takes note of the weights before each call of a program, which costs one copy of them. If the
    call went wrong, its steps are taken again one by one up to the bad one, whose batch tells where
    the fault began. As a callback it knows the epoch; Keras calls it twice in one.

    Args:
      model: a `training.ProbabilisticModel`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.set_model(model)
        self._epoch, self._start = 0, 0
        #: False lets everything pass: the user's own callback sees to it.
        self.active = True
        self.renew()

    @contextlib.contextmanager
    def watching(self, callbacks: Any) -> Iterator[Any]:
        """The callbacks of a `fit`, with the guard among them.

        `TerminateOnNaN` keeps its meaning: a run with it ends without an error.
        """
        given = callbacks
        if isinstance(callbacks, keras.callbacks.CallbackList):
            given = callbacks.callbacks
        else:
            callbacks = [*tf.nest.flatten(callbacks or []), self]
        ends = keras.callbacks.TerminateOnNaN
        outer, self.active = (
            self.active,
            not any(isinstance(callback, ends) for callback in tf.nest.flatten(given or [])),
        )
        try:
            yield callbacks
        finally:
            self.active, self._epoch = outer, 0

    def renew(self) -> None:
        """Begin anew, as the model may have other weights."""
        self._weights_are_finite = tf.function(self._finite, autograph=False)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Take note of the epoch and of the count of steps."""
        self._epoch, self._start = epoch + 1, int(self.model._train_counter.numpy())

    def chunk(self, run: Callable[[Any, int], Any], chunk: Any, num: int) -> Any:
        """The logs of `run(chunk, num)`, the steps on so many batches.

        Raises:
          FloatingPointError: if one of them made the loss or the weights NaN or infinite.
        """
        if not self.active:
            return run(chunk, num)
        # The steps are taken again, and count in the running means again.
        means = [v for metric in self.model.metrics for v in metric.variables]
        kept = self._keep(*means)
        logs = run(chunk, num)
        if self._is_good(logs):
            return logs
        self._restore(kept)
        for i in range(num):
            kept = self._keep(*means)
            logs = run(execution.take(chunk, slice(i, i + 1)), 1)
            if not self._is_good(logs):
                raise self._error(logs, kept, i + 1, execution.take(chunk, i))
        return logs

    def step(self, function: Callable[[Any], Any], iterator: Any) -> Any:
        """The logs of Keras's own function of the next batch; raises as `chunk`."""
        if not self.active:
            return function(iterator)
        kept = self._keep()
        logs = function(iterator)
        if not self._is_good(logs):
            raise self._error(logs, kept, 0, None)
        return logs

    def _keep(self, *others: Any) -> list[tuple[Any, Any]]:
        kept = [*variables(self.model), *others]
        return [(variable, variable.read_value()) for variable in kept]

    def _restore(self, kept: list[tuple[Any, Any]]) -> None:
        for variable, value in kept:
            variable.assign(value)

    def _finite(self) -> Any:
        parts = (self.model, self.model.discriminator)
        built = [part for part in parts if part is not None and part.built]
        weights = [weight for part in built for weight in part.trainable_variables]
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(weight)) for weight in weights])

    def _is_good(self, logs: Any) -> bool:
        return bool(np.isfinite(logs["loss"])) and bool(self._weights_are_finite())

    def _error(self, logs: Any, kept: Any, number: int, data: Any) -> FloatingPointError:
        bad = [name for name, value in logs.items() if not np.isfinite(value)]
        self._restore(kept)
        step = int(self.model._train_counter.numpy()) - self._start + number
        where = f" in epoch {self._epoch}, step {step}" if self._epoch else ""
        # What a batch shows, or else the names of the terms.
        origin = []
        with contextlib.suppress(Exception):  # The search must not hide what it is for.
            origin = self._origin(data) if data is not None else []
        origin = origin or ([f"{', '.join(bad)} came out so"] if bad else [])
        self._restore(kept)  # To look for the origin has taken some of the noise.
        said = [
            f"loss: got NaN or infinite values{where}",
            *origin,
            "the model has the weights from before this step",
            self.model.remedy or REMEDY,
        ]
        return FloatingPointError("; ".join(said))

    def _origin(self, data: Any) -> list[str]:
        """Sentences on where in a step on a batch the first value is not finite."""
        model = self.model
        bad = [v.name for v in model.trainable_variables if not _is_finite(v)]
        if bad:
            return [f"before the step the weights {_listed(bad)} were not finite"]
        with (
            noise.fixed(model.noise.next()),
            tf.GradientTape(persistent=True) as tape,
            blocks.recorded() as made,
        ):
            losses, terms = model.losses_of(data)
            sums = {name: tf.reduce_sum(term) for name, term in terms.items()}
            total = tf.reduce_sum(losses)
        wrong = {
            name: f"{name} in {np.count_nonzero(~np.isfinite(term))} of {np.size(term)} examples"
            for name, term in {**terms, "loss": losses}.items()
            if not _is_finite(term)
        }
        blamed = [values for values in made if not all(map(_is_finite, values[1].values()))]
        if wrong or blamed:
            if "kl" not in wrong:  # The likelihood is what is made last.
                made = made[-1:]
            for name in ("elbo", "loss"):  # What the others add up to.
                if len(wrong) > 1:
                    wrong.pop(name, None)
            return [
                *([", ".join(wrong.values())] if wrong else []),
                *dict.fromkeys(_described(*values) for values in blamed or made),
            ]
        for name, value in {**sums, "loss": total}.items():
            gradients = tape.gradient(value, model.trainable_variables)
            bad = [
                variable.name
                for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
                if gradient is not None and not _is_finite(gradient)
            ]
            if bad:
                return [f"the gradient of {name} is not finite at the weights {_listed(bad)}"]
        return []


def variables(model: Any) -> list[Any]:
    """All that a step of training changes, each variable once, in an order that repeats.

    Those of the model and its optimizer, with the learning rate and the loss scale, and of a
    discriminator that is trained beside it; not the running means, which each epoch begins anew.
    """
    parts = [part for part in (model, model.discriminator) if part is not None and part.built]
    found = [variable for part in parts for variable in part.variables]
    for optimizer in (part.optimizer for part in parts):
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        own = inner.variables
        found += own() if callable(own) else own
        if hasattr(inner.learning_rate, "assign"):
            found.append(inner.learning_rate)
        if inner is not optimizer:  # Keras counts neither among the variables of either.
            found += optimizer._loss_scale._weights.values() if optimizer.dynamic else []
    return list({id(variable): variable for variable in found}.values())


def _is_finite(values: Any) -> bool:
    values = tf.convert_to_tensor(values)
    return not values.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(values)))


def _described(block: Any, parameters: dict[str, Any]) -> str:
    """A block's distribution by its parameters and their ranges."""
    ranges = [
        f"{name} from {np.min(value):.3g} to {np.max(value):.3g}"
        for name, value in parameters.items()
    ]
    return f"{block.title()}, the layer {block.name}, has " + (", ".join(ranges) or "no parameters")


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
