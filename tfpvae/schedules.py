"""Schedules: numbers that change during training; their state is saved with the model."""

import math
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfpvae import checks, regularizers


class Schedule(keras.layers.Layer):
    """A number that changes from step to step: the weight of the KL, or a temperature.

    It is a Keras layer for one reason: its state is then saved with the model that is compiled with
    it, and a resumed run goes on where it was. A subclass defines `value`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.step = self._state("step", "int32", 0)
        self.built = True

    def value(self) -> Any:
        """The number now, a scalar tensor."""
        raise NotImplementedError

    def advance(self, kl: Any) -> None:
        """Go on by a step of training, on a batch whose mean KL is `kl`."""
        self.step.assign_add(1)

    def remaining(self) -> int | None:
        """How many steps it takes until the weight stays at 1, None if it never does."""
        return None

    def _state(self, name: str, dtype: str, initial: float) -> Any:
        return self.add_weight(
            name=name,
            shape=(),
            dtype=dtype,
            initializer=keras.initializers.Constant(initial),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )


@keras.saving.register_keras_serializable("tfpvae.schedules")
class Linear(Schedule):
    r"""A warm-up: the weight rises in a straight line and stays at 1.

    $$ w_t = \min\bigl(1,\ w_0 + (1 - w_0)\, t / T\bigr) $$

    Args:
      num_steps: the number T of steps of the optimizer until the weight is 1; an epoch has as many
        as it has batches.
      start: the first weight w_0, from 0 to 1.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: for a number of steps that is no positive integer, or a start that is
        no number from 0 to 1.

    Example:
      >>> warm_up = Linear(num_steps=4)
      >>> weights = []
      >>> for _ in range(6):
      ...     weights.append(float(warm_up.value()))
      ...     warm_up.advance(kl=3.0)
      >>> weights
      [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]

    Source: Bowman et al., "Generating Sentences from a Continuous Space", 2016; Sonderby et al.,
    "Ladder Variational Autoencoders", 2016.
    """

    def __init__(self, num_steps: int, start: float = 0.0, **kwargs: Any) -> None:
        self.num_steps = checks.positive_integer("num_steps", num_steps)
        self.start = _share("start", start)
        super().__init__(**kwargs)

    def value(self) -> Any:
        """The weight now."""
        share = tf.cast(self.step, tf.float32) / self.num_steps
        return tf.minimum(1.0, self.start + (1.0 - self.start) * share)

    def remaining(self) -> int:
        """How many steps it takes until the weight stays at 1."""
        return max(0, self.num_steps - int(self.step.numpy()))

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"num_steps": self.num_steps, "start": self.start}


@keras.saving.register_keras_serializable("tfpvae.schedules")
class Cyclical(Schedule):
    r"""A warm-up that is repeated: the weight rises from 0 to 1, rests there, and starts again.

    $$ w_t = \min\Bigl(1,\ \frac{t \bmod T}{r\, T}\Bigr) \quad \text{for } t < C T, \qquad
       w_t = 1 \quad \text{after} $$

    Args:
      num_steps: the number T of steps of a cycle.
      num_cycles: the number C of cycles.
      ramp: the share r of a cycle in which the weight rises.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: for numbers of steps or cycles that are no positive integers, or a ramp
        that is no number from 0 to 1.

    Example:
      >>> schedule = Cyclical(num_steps=4, num_cycles=2)
      >>> weights = []
      >>> for _ in range(9):
      ...     weights.append(float(schedule.value()))
      ...     schedule.advance(kl=3.0)
      >>> weights
      [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]

    Source: Fu et al., "Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing",
    2019.
    """

    def __init__(
        self, num_steps: int, num_cycles: int = 4, ramp: float = 0.5, **kwargs: Any
    ) -> None:
        self.num_steps = checks.positive_integer("num_steps", num_steps)
        self.num_cycles = checks.positive_integer("num_cycles", num_cycles)
        self.ramp = _share("ramp", ramp)
        super().__init__(**kwargs)

    def value(self) -> Any:
        """The weight now."""
        within = tf.cast(self.step % self.num_steps, tf.float32)
        rising = tf.minimum(1.0, within / max(self.ramp * self.num_steps, 1e-6))
        return tf.where(self.step < self.num_cycles * self.num_steps, rising, 1.0)

    def remaining(self) -> int:
        """How many steps it takes until the weight stays at 1."""
        return max(0, self.num_cycles * self.num_steps - int(self.step.numpy()))

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        own = {"num_steps": self.num_steps, "num_cycles": self.num_cycles, "ramp": self.ramp}
        return super().get_config() | own


@keras.saving.register_keras_serializable("tfpvae.schedules")
class Exponential(Schedule):
    r"""A number that falls, or rises, by the same factor at each step, and then stays.

    $$ v_t = v_0\, (v_T / v_0)^{\min(t, T) / T} $$

    It is how the temperature of relaxed draws is lowered. It can weight the KL, too, which stays a
    bound's if it stops at 1.

    Args:
      start: the first number v_0 > 0.
      stop: the last one v_T > 0.
      num_steps: the number T of steps of the optimizer until then; an epoch has as many as it has
        batches.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: for a start or stop that is no positive number, or a number of steps
        that is no positive integer.

    Example:
      >>> temperature = Exponential(1.0, 0.25, num_steps=2)
      >>> values = []
      >>> for _ in range(4):
      ...     values.append(float(temperature.value()))
      ...     temperature.advance(kl=3.0)
      >>> values
      [1.0, 0.5, 0.25, 0.25]

    Source: Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017.
    """

    def __init__(self, start: float, stop: float, num_steps: int, **kwargs: Any) -> None:
        self.start, self.stop = (
            checks.positive_number("start", start),
            checks.positive_number("stop", stop),
        )
        self.num_steps = checks.positive_integer("num_steps", num_steps)
        super().__init__(**kwargs)

    def value(self) -> Any:
        """The number now."""
        share = tf.minimum(1.0, tf.cast(self.step, tf.float32) / self.num_steps)
        return self.start * (self.stop / self.start) ** share

    def remaining(self) -> int | None:
        """How many steps it takes until a weight stays at 1, None if it never does."""
        return max(0, self.num_steps - int(self.step.numpy())) if self.stop == 1.0 else None

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        own = {"start": self.start, "stop": self.stop, "num_steps": self.num_steps}
        return super().get_config() | own


@keras.saving.register_keras_serializable("tfpvae.schedules")
class TargetRate(Schedule):
    r"""A weight that steers the KL to a rate, in nats an example.

    $$ \log w_{t+1} = \log w_t + \eta \Bigl(\frac{\overline{\mathrm{KL}}_t}{R} - 1\Bigr) $$

    for the mean KL of the batch. Where it comes to rest, the model has the lowest nll among those
    that spend R nats on z, and w is the price: the slope of the nll against the rate there. w != 1
    at the end, so the loss is no bound on -log p(x); `elbo` in the history is.

    Args:
      rate: the target R > 0.
      initial: the first weight.
      learning_rate: the step size eta.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: for arguments that are no positive numbers.

    Example:
      >>> schedule = TargetRate(10.0, learning_rate=0.1)
      >>> schedule.advance(kl=tf.constant(20.0))  # too much: its price rises
      >>> round(float(schedule.value()), 4)  # exp(0.1)
      1.1052

    Source: Alemi et al., "Fixing a Broken ELBO", 2018 (the rate); Rezende and Viola, "Taming VAEs",
    2018 (a weight that holds a constraint).
    """

    def __init__(
        self, rate: float, initial: float = 1.0, learning_rate: float = 0.01, **kwargs: Any
    ) -> None:
        self.rate = checks.positive_number("rate", rate)
        self.initial = checks.positive_number("initial", initial)
        self.learning_rate = checks.positive_number("learning_rate", learning_rate)
        super().__init__(**kwargs)
        self.log_weight = self._state("log_weight", "float32", math.log(self.initial))

    def value(self) -> Any:
        """The weight now."""
        return tf.exp(self.log_weight)

    def advance(self, kl: Any) -> None:
        """Raise the weight if the KL is above the target, lower it if it is below."""
        super().advance(kl)
        # At most a factor of e a step, however far away the target is.
        excess = tf.clip_by_value(tf.cast(kl, tf.float32) / self.rate - 1.0, -1.0, 1.0)
        self.log_weight.assign_add(self.learning_rate * excess)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        own = {"rate": self.rate, "initial": self.initial, "learning_rate": self.learning_rate}
        return super().get_config() | own


@keras.saving.register_keras_serializable("tfpvae.schedules")
class PerLayer(Schedule):
    r"""A weight of the KL for each layer of a hierarchy.

    $$ w = (w_1, \dots, w_L) $$

    It is what `objectives.ELBO` makes of a list.

    Args:
      weights: from the layer next to the data upwards: numbers, schedules, or non-trainable
        variables.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: for none, or for what is no weight.

    Example:
      >>> weights = PerLayer([1.0, Linear(num_steps=2)])
      >>> weights.advance(kl=tf.constant([3.0, 0.1]))
      >>> weights.value().numpy()
      array([1. , 0.5], dtype=float32)

    Source: Sonderby et al., "Ladder Variational Autoencoders", 2016 (a warm-up of all layers).
    """

    def __init__(self, weights: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = checks.sequence("weights", weights, "a list, a weight for each layer")
        if not self.parts:
            raise ValueError("kl_weight: got an empty list, wanted a weight for each layer")
        for i, weight in enumerate(self.parts):
            if not isinstance(weight, Schedule):
                regularizers.check_weight(f"kl_weight[{i}]", weight)

    def value(self) -> Any:
        """The weights now, a tensor `[L]`."""
        return tf.stack([tf.cast(value_of(part), tf.float32) for part in self.parts])

    def advance(self, kl: Any) -> None:
        """Go on by a step, on a batch in which the layers have the mean KL `[L]`."""
        super().advance(kl)
        for i, part in enumerate(self.parts):
            if isinstance(part, Schedule):
                part.advance(kl[i])

    def remaining(self) -> int | None:
        """How many steps it takes until all weights stay at 1, None if they never do."""
        steps = [
            part.remaining() if isinstance(part, Schedule) else None
            for part in self.parts
            if isinstance(part, Schedule) or float(part) != 1.0
        ]
        return None if None in steps else max((step for step in steps if step), default=0)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        weights = [
            keras.saving.serialize_keras_object(part)
            if isinstance(part, Schedule)
            else regularizers.weight_config(part)
            for part in self.parts
        ]
        return super().get_config() | {"weights": weights}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PerLayer":
        """The weights that a configuration describes."""
        weights = [
            keras.saving.deserialize_keras_object(weight)
            if isinstance(weight, dict) and "class_name" in weight
            else regularizers.weight_from_config(weight)
            for weight in config["weights"]
        ]
        return cls(**config | {"weights": weights})


def value_of(number: Any) -> Any:
    """A number as it is now: of a schedule, a variable or a number."""
    return number.value() if isinstance(number, Schedule) else number


def _share(argument: str, value: Any) -> float:
    return checks.number(argument, value, "a number from 0 to 1", lambda v: 0.0 <= v <= 1.0)
