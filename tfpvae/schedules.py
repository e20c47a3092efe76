"""Schedules: weights of the KL that change during training; their state is saved with the model."""

import math
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfpvae import checks


class Schedule(keras.layers.Layer):
    """A weight of the KL that changes from step to step.

    It is a Keras layer for one reason: its state is then saved with the model that is compiled with
    it, and a resumed run goes on where it was. A subclass defines `value`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.step = self._state("step", "int32", 0)
        self.built = True

    def value(self) -> Any:
        """The weight now, a scalar tensor."""
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
        return max(0, self.num_steps - int(self.step))

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
        return max(0, self.num_cycles * self.num_steps - int(self.step))

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        own = {"num_steps": self.num_steps, "num_cycles": self.num_cycles, "ramp": self.ramp}
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
        self.rate = _positive("rate", rate)
        self.initial = _positive("initial", initial)
        self.learning_rate = _positive("learning_rate", learning_rate)
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


def value_of(kl_weight: Any) -> Any:
    """A weight of the KL as it is now: of a schedule, a variable or a number."""
    return kl_weight.value() if isinstance(kl_weight, Schedule) else kl_weight


def _share(argument: str, value: Any) -> float:
    return checks.number(argument, value, "a number from 0 to 1", lambda v: 0.0 <= v <= 1.0)


def _positive(argument: str, value: Any) -> float:
    return checks.number(argument, value, "a positive number", lambda v: 0.0 < v < math.inf)
