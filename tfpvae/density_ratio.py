"""Density ratios, learned from draws of two distributions whose densities need not be known."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import blocks, checks, execution, noise, replicas, training


class ScoringRule(NamedTuple):
    r"""What a log ratio T costs at a draw of the numerator p, and at one of the denominator q.

    $$ \tfrac12 \bigl( \mathbb E_p[a(T)] + \mathbb E_q[b(T)] \bigr), \qquad
       e^T a'(T) + b'(T) = 0 $$

    The second equation makes it proper: the minimum over all functions T is at T = log p / q.

    Args:
      numerator: the function a.
      denominator: the function b.
    """

    numerator: Callable[[Any], Any]
    denominator: Callable[[Any], Any]


#: by name; the equations are in the docstring of `DensityRatio`
SCORING_RULES = {
    "logistic": ScoringRule(lambda t: tf.nn.softplus(-t), tf.nn.softplus),
    "brier": ScoringRule(lambda t: tf.sigmoid(-t) ** 2, lambda t: tf.sigmoid(t) ** 2),
    "exponential": ScoringRule(lambda t: tf.exp(-t / 2), lambda t: tf.exp(t / 2)),
    "least_squares": ScoringRule(lambda t: -tf.exp(t), lambda t: tf.exp(2 * t) / 2),
    "kl": ScoringRule(lambda t: -t, tf.exp),
}


@keras.saving.register_keras_serializable("tfpvae")
class DensityRatio(training.ProbabilisticModel):
    r"""The log ratio of two densities, a network that tells draws of one from draws of the other.

    $$ T(x) \approx \log \frac{p(x)}{q(x)}, \qquad
       T = \arg\min_T\ \tfrac12 \bigl( \mathbb E_{p}[a(T)] + \mathbb E_{q}[b(T)] \bigr) $$

    with a proper scoring rule (a, b), so that nothing but draws of the numerator p and the
    denominator q is needed:

    | name | a(T) | b(T) | |
    |---|---|---|---|
    | `"logistic"` | softplus(-T) | softplus(T) | the log score of a classifier |
    | `"brier"` | sigmoid(-T)^2 | sigmoid(T)^2 | its squared error |
    | `"exponential"` | exp(-T / 2) | exp(T / 2) | the loss of boosting |
    | `"least_squares"` | -exp(T) | exp(2 T) / 2 | LSIF, of the ratio itself |
    | `"kl"` | -T | exp(T) | KLIEP, NWJ: KL(p, q) >= 1 + E_p[T] - E_q[exp(T)] |

    All but the last two are bounded or grow slowly; those weigh draws by the ratio, and so want
    distributions that overlap.

    It is a Keras model that stands alone, with `fit(numerator, denominator)`, and a layer, with
    `loss` or `update` for a training loop of another model.

    Shapes: inputs `[..., D]`, or a list of them that are put side by side, where leading axes
    broadcast, as z `[S, B, D]` beside x `[B, E]`; T `[B]` or `[S, B]`, float32, in nats.

    Args:
      network: a tf_keras model or layer from vectors `[N, D]` to one number each, `[N, 1]`; those
        of a list of inputs are flattened and concatenated for it.
      scoring_rule: its name.
      event_ndims: how many axes an example has, 1 for vectors; for a list of inputs one number for
        all of them, or a list: `(3, 1)` for images `[B, H, W, C]` and z `[B, D]`.
      seed: of the model's noise, see `noise.Noise`.
      **kwargs: of `keras.Model`.

    Raises:
      TypeError: for a network that is no tf_keras layer.
      ValueError: for a scoring rule of another name; when it is built, for a network that puts out
        anything but one number for each example.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> p, q = rng.normal(1.0, 1.0, (200, 1)), rng.normal(0.0, 1.0, (300, 1))
      >>> ratio = DensityRatio(keras.layers.Dense(1), seed=0)  # the true log ratio is x - 1/2
      >>> ratio.compile(keras.optimizers.Adam(0.05))
      >>> _ = ratio.fit(p, q, epochs=20, verbose=0)
      >>> ratio.log_ratio([[0.0], [1.0]]).shape
      (2,)

    Source: Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007;
    Sugiyama, Suzuki and Kanamori, "Density Ratio Estimation in Machine Learning", 2012; Mohamed and
    Lakshminarayanan, "Learning in Implicit Generative Models", 2016; Nguyen, Wainwright and Jordan,
    "Estimating Divergence Functionals and the Likelihood Ratio by Convex Risk Minimization", 2010.
    """

    #: the share of draws, in equal parts of either distribution, that T is on the right side of
    terms = ("accuracy",)

    def __init__(
        self,
        network: Any,
        scoring_rule: str = "logistic",
        event_ndims: Any = 1,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed, **kwargs)
        blocks.check_network("network", network)
        if not checks.one_of(scoring_rule, SCORING_RULES):
            raise ValueError(
                f"scoring_rule: got {scoring_rule!r}, wanted one of {', '.join(SCORING_RULES)}"
            )
        for ndims in np.ravel(event_ndims).tolist():
            if not isinstance(ndims, int) or ndims < 0:
                raise ValueError(f"event_ndims: got {event_ndims!r}, wanted integers >= 0")
        self.network, self.scoring_rule = network, scoring_rule
        self._size: int | None = None
        # Past Keras's tracking, which makes lists its own.
        object.__setattr__(self, "_event_ndims", event_ndims)
        self._batched: Any = None

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The log ratio T of inputs `[..., D]`, or of a list of them that broadcast: `[...]`."""
        rows = self._join(inputs)
        size = rows.shape[-1]
        lead = tf.shape(rows)[:-1]
        log_ratio = tf.reshape(self._log_ratio(tf.reshape(rows, [-1, size]), training), lead)
        log_ratio.set_shape(rows.shape[:-1])
        return log_ratio

    def loss(self, numerator_logits: Any, denominator_logits: Any) -> Any:
        """The mean of the scoring rule, a scalar: of log ratios T at draws of p and at draws of q.

        Args:
          numerator_logits: T at draws of the numerator, of any shape.
          denominator_logits: T at draws of the denominator, of any shape, as many or not.
        """
        rule = SCORING_RULES[self.scoring_rule]
        numerator = tf.reduce_mean(rule.numerator(numerator_logits))
        return (numerator + tf.reduce_mean(rule.denominator(denominator_logits))) / 2

    def update(self, numerator: Any, denominator: Any) -> Any:
        """One step of its own optimizer, inside the training step of another model; its loss.

        Args:
          numerator: draws of the numerator, as `call` takes them. No gradient goes through them.
          denominator: those of the denominator.
        """
        with replicas.Tape() as tape:
            loss = self.loss(self(numerator, training=True), self(denominator, training=True))
            total = tf.add_n([loss, *(tf.cast(value, loss.dtype) for value in self.losses)])
        self.optimizer.minimize(total, self.trainable_variables, tape=tape)
        return loss

    def compile(self, optimizer: Any = "adam", **kwargs: Any) -> None:
        """Configure training, as `keras.Model.compile`; the scoring rule is the loss."""
        super().compile(optimizer, **kwargs)
        del self.loss  # That of Keras, which hides the method.

    def fit(  # type: ignore[override]
        self,
        numerator: Any = None,
        denominator: Any = None,
        *,
        validation_data: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Train the ratio on draws of both distributions.

        The draws of either count for one half, however many there are.

        Args:
          numerator: draws of p, an array `[N, D]`, or a list of arrays.
          denominator: draws of q, in the same form; M of them.
          validation_data: a pair of the same, held out.
          **kwargs: `batch_size`, `epochs`, `verbose`, `callbacks`, `validation_split` and others of
            `keras.Model.fit`.

        Returns:
          Keras's `History`.

        Raises:
          TypeError: for what is no numbers; weights, as those of the examples are given.
          ValueError: for draws of different shapes, or not finite.
        """
        x, y, weight = self._labelled(("numerator", "denominator"), numerator, denominator)
        held_out = validation_data
        if held_out is not None:
            if not isinstance(held_out, (tuple, list)) or len(held_out) != 2:
                raise TypeError(
                    "validation_data: got something else, wanted a pair (numerator, denominator)"
                )
            names = ("validation_data[0]", "validation_data[1]")
            held_out = self._labelled(names, *held_out)
        kwargs = {"validation_data": held_out} | kwargs
        return super().fit(x, y, sample_weight=weight, **kwargs)

    def evaluate(  # type: ignore[override]
        self, numerator: Any = None, denominator: Any = None, **kwargs: Any
    ) -> Any:
        """The loss and the accuracy, as `keras.Model.evaluate`; see `fit`."""
        if kwargs.get("_use_cached_eval_dataset"):  # Keras's `fit` asks; it has the data.
            return super().evaluate(**kwargs)
        x, y, weight = self._labelled(("numerator", "denominator"), numerator, denominator)
        return super().evaluate(x, y, sample_weight=weight, **kwargs)

    def log_ratio(self, inputs: Any, verbose: Any = "auto") -> np.ndarray:
        """The log ratio T of data, computed in batches.

        Args:
          inputs: an array `[N, D]`, or a list of arrays, as `call` takes them.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.

        Returns:
          An array `[N]`, or of the shape of the leading axes.
        """
        rows = self._rows("inputs", inputs)
        if self._batched is None:
            # Past Keras's tracking: compiled functions are no part of what is saved.
            batched = execution.Batched(lambda rows, *_: self._log_ratio(rows, False), tf.add)
            object.__setattr__(self, "_batched", batched)
        flat = tf.reshape(rows, [-1, rows.shape[-1]])
        values = self._batched(flat, noise.as_seed(0), verbose=verbose)
        return values.numpy().reshape(rows.shape[:-1])

    def predict(self, x: Any, verbose: Any = "auto", **kwargs: Any) -> np.ndarray:
        """The log ratio of data, see `log_ratio`."""
        del kwargs
        return self.log_ratio(x, verbose)

    def example_losses(self, x: Any, y: Any, training: bool) -> tuple[Any, dict[str, Any], Any]:
        """The score of each row, where y is 1 for draws of p and 0 for those of q."""
        log_ratio, is_numerator = self._log_ratio(x, training), y > 0
        rule = SCORING_RULES[self.scoring_rule]
        scores = tf.where(is_numerator, rule.numerator(log_ratio), rule.denominator(log_ratio))
        accuracy = tf.cast((log_ratio > 0) == is_numerator, scores.dtype)
        return scores, {"accuracy": accuracy}, log_ratio

    def prepare(self, x: Any) -> Any:
        """Rows that have been joined, in floating point."""
        return tf.ensure_shape(tf.cast(x, self.dtype), (None, self._size))

    def check_data(self, x: np.ndarray, y: np.ndarray | None, arguments: tuple[str, str]) -> None:
        """Nothing: `fit` has checked the draws."""

    def build(self, input_shape: Any) -> None:
        """Build the network for inputs of these shapes."""
        shapes = input_shape if _is_list(input_shape) else [input_shape]
        ndims = self._ndims(len(shapes))
        self.build_rows(
            sum(
                math.prod(tuple(shape)[len(shape) - n :])
                for shape, n in zip(shapes, ndims, strict=True)
            )
        )

    def build_rows(self, size: int) -> None:
        """Build the network for vectors of this size, those that inputs are joined to."""
        blocks.build_network("network", self.network, size, 1)
        self._size = size
        keras.layers.Layer.build(self, (None, size))

    def get_build_config(self) -> dict[str, Any] | None:
        """The size of the vectors that it is built for."""
        return {"size": self._size} if self.built else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Build as the saved model was."""
        self.build_rows(config["size"])

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            "scoring_rule": self.scoring_rule,
            "event_ndims": self._event_ndims,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "DensityRatio":
        """The model that a configuration describes."""
        del custom_objects  # Keras has put them into scope.
        network = keras.saving.deserialize_keras_object(config["network"])
        return cls(**config | {"network": network})

    def _log_ratio(self, rows: Any, training: bool | None) -> Any:
        """The log ratio of vectors `[N, D]`, in full precision."""
        log_ratio = self.network(rows, training=training)
        return tf.cast(tf.squeeze(log_ratio, axis=-1), self.dtype)

    def _join(self, inputs: Any) -> Any:
        """The inputs side by side, `[..., D]`."""
        several = [tf.cast(value, self.dtype) for value in _as_list(inputs)]
        parts, leads = [], []
        for value, ndims in zip(several, self._ndims(len(several)), strict=True):
            lead = value.shape.rank - ndims
            if lead < 1:
                raise ValueError(
                    f"inputs: got shape {tuple(value.shape)}, wanted examples of {ndims} axes with "
                    "an axis of the batch before them; event_ndims= says how many axes they have"
                )
            size = math.prod(value.shape[lead:])
            parts.append(tf.reshape(value, tf.concat([tf.shape(value)[:lead], [size]], 0)))
            parts[-1].set_shape([*value.shape[:lead], size])
            leads.append(value.shape[:lead])
        if len(parts) == 1:
            return parts[0]
        try:
            static = leads[0]
            for lead in leads[1:]:
                static = tf.broadcast_static_shape(static, lead)
        except ValueError:
            raise ValueError(
                f"inputs: got shapes {[tuple(value.shape) for value in several]}, wanted such "
                "whose axes before the examples' own broadcast; event_ndims=, for example "
                "(3, 1), says how many axes an example of each has"
            ) from None
        common = tf.shape(parts[0])[:-1]
        for part in parts[1:]:
            common = tf.broadcast_dynamic_shape(common, tf.shape(part)[:-1])
        wide = [tf.broadcast_to(part, tf.concat([common, part.shape[-1:]], 0)) for part in parts]
        rows = tf.concat(wide, axis=-1)
        rows.set_shape([*static, rows.shape[-1]])
        return rows

    def _rows(self, name: str, inputs: Any) -> Any:
        """Data as a user gives them, checked and joined."""
        several = [checks.as_array(name, value) for value in _as_list(inputs)]
        if not several:
            raise ValueError(f"{name}: got an empty list, wanted an array, or a list of arrays")
        for value in several:
            if not (np.abs(value) <= np.finfo(np.float32).max).all():
                raise ValueError(f"{name}: got NaN or infinite values, wanted finite numbers")
        try:
            rows = self._join([self._placed(value) for value in several])
        except ValueError as error:
            raise ValueError(str(error).replace("inputs:", f"{name}:", 1)) from None
        if self._size is None:
            with self.distribute_strategy.scope():
                self.build_rows(rows.shape[-1])
        if rows.shape[-1] != self._size:
            raise ValueError(
                f"{name}: got examples of {rows.shape[-1]} numbers, wanted {self._size}, as many "
                "as the ratio was built for"
            )
        return rows

    def _labelled(self, names: tuple[str, str], numerator: Any, denominator: Any) -> Any:
        """Rows of both, in an order of no meaning, with labels, and weights that even them out."""
        pair = zip(names, (numerator, denominator), strict=True)
        parts = [self._rows(name, draws).numpy() for name, draws in pair]
        parts = [part.reshape(-1, part.shape[-1]) for part in parts]
        x = np.concatenate(parts)
        y = np.repeat([1.0, 0.0], [len(part) for part in parts])
        weight = np.repeat([len(x) / (2 * len(part)) for part in parts], [*map(len, parts)])
        order = np.random.default_rng(0).permutation(len(x))
        return x[order], y[order], weight[order]

    def _ndims(self, num: int) -> list[int]:
        """The axes of an example of each of so many inputs."""
        ndims = np.ravel(self._event_ndims).tolist()
        if isinstance(self._event_ndims, int):
            return ndims * num
        if len(ndims) != num:
            raise ValueError(
                f"inputs: got {num}, wanted {len(ndims)}, as event_ndims={self._event_ndims} says"
            )
        return ndims


def _as_list(inputs: Any) -> list[Any]:
    """A list of tensors or arrays as it is, one of them as a list."""
    several = isinstance(inputs, (list, tuple)) and all(hasattr(item, "shape") for item in inputs)
    return [*inputs] if several else [inputs]


def _is_list(shape: Any) -> bool:
    """Whether this is a list of shapes."""
    return isinstance(shape, (list, tuple)) and any(
        isinstance(item, (list, tuple, tf.TensorShape)) for item in shape
    )
