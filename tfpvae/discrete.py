"""Discrete z: their relaxations, which have gradients, and the list of all their states."""

import math
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfpvae import distributions

tfd = tfp.distributions

#: The most states over which training takes the expectation, and log p(x) the sum.
MAX_STATES_TRAINING = 1024
MAX_STATES_EVIDENCE = 2**20


class Relaxation:
    r"""Continuous draws that become those of a discrete distribution as the temperature falls.

    With Gumbel variables g_k, or a logistic variable l in the place of the difference of two,

    $$ z_k = \operatorname{softmax}_k\Bigl(\frac{t_k + g_k}{\tau}\Bigr), \qquad
       z = \operatorname{sigmoid}\Bigl(\frac{t + l}{\tau}\Bigr) $$

    for the logits t of classes and of bits. Where the largest z_k is, and whether z > 1/2, are
    draws of the discrete distribution, at every temperature. Densities are those of y = log z, for
    bits log z / (1 - z), because z itself is rounded to 0 and 1 at a low temperature.

    In a chain of layers each is relaxed given the relaxed z of the one that it depends on.

    Args:
      distribution: `tfd.OneHotCategorical` or `tfd.Bernoulli`, independent ones, or a chain of
        layers of these.
      temperature: the number tau > 0, a scalar.
      straight_through: whether z is the state next to it, h(z), with the gradient of z:
        dh / dz = 1.

    Example:
      >>> bits = Relaxation(tfd.Bernoulli(logits=[0.0, 9.0]), temperature=0.5)
      >>> z, y = bits.sample(3, seed=[0, 0])
      >>> z.shape, [log_prob.shape for log_prob in bits.log_probs(y)]
      (TensorShape([3, 2]), [TensorShape([3, 2])])

    Source: Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax", 2017;
    Maddison, Mnih and Teh, "The Concrete Distribution", 2017; Bengio, Leonard and Courville,
    "Estimating or Propagating Gradients Through Stochastic Neurons", 2013 (straight-through).
    """

    def __init__(self, distribution: Any, temperature: Any, straight_through: bool = False) -> None:
        self._distribution, self._temperature = _plain(distribution), temperature
        self._straight_through = straight_through

    def sample(self, num_samples: Any, seed: Any = None) -> tuple[Any, list[Any]]:
        """Draws of z `[S, B, ...]`, and the y of each layer that they were made from.

        Args:
          num_samples: the number S.
          seed: an int tensor `[2]`.

        Raises:
          TypeError: for a distribution of another class.
        """
        shapes, y = iter([num_samples]), []
        seeds = iter(tfp.random.split_seed(seed, _num_layers(self._distribution), salt="relaxed"))

        def choose(f: Any) -> Any:
            noisy = self._noisy(f)
            y.append(noisy.sample(next(shapes, ()), seed=next(seeds)))
            return self._value(f, y[-1])

        return self._pass_on(choose), self._in_order(y)

    def log_probs(self, y: list[Any]) -> list[Any]:
        """The log densities `[S, B]` of the y of each layer, given those that it depends on."""
        values, found = iter(self._in_order(y)), []

        def choose(f: Any) -> Any:
            value = next(values)
            found.append(self._noisy(f).log_prob(value))
            return self._value(f, value)

        self._pass_on(choose)
        return self._in_order(found)

    def _noisy(self, f: Any) -> Any:
        """The distribution of y."""
        kind = _Kind.of(f)
        return distributions.replace_leaf(
            _plain(f), lambda leaf: kind.relaxed(leaf, self._temperature)
        )

    def _value(self, f: Any, y: Any) -> Any:
        """The z of y."""
        kind = _Kind.of(f)
        soft = kind.soft(y)
        return kind.hard(y) + (soft - tf.stop_gradient(soft)) if self._straight_through else soft

    def _pass_on(self, choose: Any) -> Any:
        """The vector of values that are chosen one layer after the other."""
        if not has_layers(self._distribution):
            return choose(self._distribution)
        return self._distribution._pass_on([choose] * _num_layers(self._distribution))[0]

    def _in_order(self, values: list[Any]) -> list[Any]:
        if has_layers(self._distribution):
            return self._distribution._in_order(values)
        return values


def log_probs(distribution: Any, z: Any) -> list[Any]:
    """The log probabilities of the layers of z, each given what it depends on; of z, if one.

    Example:
      >>> [round(float(value), 2) for value in log_probs(tfd.Bernoulli(0.0), 1)]
      [-0.69]
    """
    distribution = _plain(distribution)
    if has_layers(distribution):
        return [f.log_prob(value) for f, value in distribution.factors(z)]
    return [distribution.log_prob(z)]


def num_states(distribution: Any) -> int:
    """How many values z may have.

    Args:
      distribution: as for `Relaxation`.

    Raises:
      TypeError: for any other distribution.

    Example:
      >>> num_states(tfd.Independent(tfd.OneHotCategorical(tf.zeros([3, 10])), 1))
      1000
    """
    return math.prod(_num_states(layer) for layer in _layers(distribution))


def states(distribution: Any, indices: Any, dtype: Any) -> Any:
    """The values of z with these numbers.

    Args:
      distribution: as for `Relaxation`.
      indices: integers `[M]`, at least 0 and less than `num_states(distribution)`.
      dtype: of the values.

    Returns:
      A tensor `[M, *event_shape]`.

    Example:
      >>> states(tfd.Independent(tfd.Bernoulli([0.0, 0.0]), 1), tf.range(4), tf.int32).numpy()
      array([[0, 0],
             [0, 1],
             [1, 0],
             [1, 1]], dtype=int32)
    """
    found = []
    for layer in reversed(_layers(distribution)):
        num, shape = _num_states(layer), tuple(layer.event_shape)
        found.append(_Kind.of(layer).states(shape, indices % num, dtype))
        indices = indices // num
    if len(found) == 1:
        return found[0]
    flat = [tf.reshape(value, [-1, math.prod(value.shape[1:])]) for value in reversed(found)]
    return tf.concat(flat, axis=1)


def has_layers(distribution: Any) -> bool:
    """Whether z is a chain of layers.

    Example:
      >>> has_layers(tfd.Bernoulli(0.0))
      False
    """
    return isinstance(_plain(distribution), distributions.Chain)


def is_discrete(distribution: Any) -> bool | None:
    """Whether z is discrete; None if TFP does not know.

    Example:
      >>> is_discrete(tfd.Poisson(1.0)), is_discrete(tfd.Gamma(1.0, 1.0))
      (True, False)
    """
    distribution = _plain(distribution)
    if distribution.reparameterization_type == tfd.FULLY_REPARAMETERIZED:
        return False
    # TFP says of all mixtures what it says of discrete distributions: it has no bijector for them.
    components = getattr(distribution, "components_distribution", None)
    inner = getattr(distribution, "distribution", components)
    if isinstance(inner, tfp.distributions.Distribution):
        is_rounded = isinstance(distribution, tfp.distributions.QuantizedDistribution)
        return is_rounded or is_discrete(inner)
    if isinstance(distribution, tfp.distributions.Mixture):
        return is_discrete(distribution.components[0])
    try:
        return distribution.experimental_default_event_space_bijector() is None
    except (NotImplementedError, TypeError, ValueError):
        return None


def check_same_kind(posterior: Any, prior: Any) -> None:
    """Raise ValueError if one of two distributions is discrete and the other is continuous.

    TFP scores relaxed z by a discrete distribution without a word, and gets no density.
    """
    kinds = {False: "continuous", True: "discrete"}
    found = [is_discrete(distribution) for distribution in (posterior, prior)]
    if set(found) == {False, True}:
        q, p = (kinds[bool(kind)] for kind in found)
        raise ValueError(
            f"prior and posterior differ in kind: the posterior {posterior.name} is {q}, the "
            f"prior {prior.name} is {p}; to train discrete z by relaxed draws take a discrete "
            "posterior and objectives.ELBO(estimator='relaxed', temperature=...), for a relaxed "
            "model a prior that is relaxed, too"
        )


class _Kind:
    """What is done with z that are classes, or bits."""

    @staticmethod
    def of(distribution: Any) -> Any:
        leaf = distributions.leaf(_plain(distribution))
        for known, kind in ((tfd.OneHotCategorical, _Classes), (tfd.Bernoulli, _Bits)):
            if isinstance(leaf, known):
                return kind
        raise TypeError(
            f"got {distribution.name}, wanted independent tfd.OneHotCategorical or tfd.Bernoulli, "
            "as of posteriors.OneHotCategorical and posteriors.Bernoulli"
        )


class _Classes(_Kind):
    @staticmethod
    def relaxed(leaf: Any, temperature: Any) -> Any:
        logits = leaf.logits_parameter()
        return tfd.ExpRelaxedOneHotCategorical(tf.cast(temperature, logits.dtype), logits)

    soft = staticmethod(tf.exp)

    @staticmethod
    def hard(y: Any) -> Any:
        return tf.one_hot(tf.argmax(y, axis=-1), tf.shape(y)[-1], dtype=y.dtype)

    @staticmethod
    def num_states(event_shape: tuple[int, ...]) -> int:
        return event_shape[-1] ** math.prod(event_shape[:-1])

    @staticmethod
    def states(event_shape: tuple[int, ...], indices: Any, dtype: Any) -> Any:
        digits = _digits(indices, event_shape[-1], event_shape[:-1])
        return tf.one_hot(digits, event_shape[-1], dtype=dtype)


class _Bits(_Kind):
    @staticmethod
    def relaxed(leaf: Any, temperature: Any) -> Any:
        logits = leaf.logits_parameter()
        temperature = tf.cast(temperature, logits.dtype)
        return tfd.Logistic(logits / temperature, 1.0 / temperature)

    soft = staticmethod(tf.sigmoid)

    @staticmethod
    def hard(y: Any) -> Any:
        return tf.cast(y > 0.0, y.dtype)

    @staticmethod
    def num_states(event_shape: tuple[int, ...]) -> int:
        return 2 ** math.prod(event_shape)

    @staticmethod
    def states(event_shape: tuple[int, ...], indices: Any, dtype: Any) -> Any:
        return tf.cast(_digits(indices, 2, event_shape), dtype)


def _digits(indices: Any, base: int, shape: tuple[int, ...]) -> Any:
    """The digits of integers `[M]`, `[M, *shape]`, the last one changing fastest."""
    size = math.prod(shape)
    powers = [base**place for place in reversed(range(size))]
    digits = tf.convert_to_tensor(indices, tf.int32)[:, tf.newaxis] // powers % base
    return tf.reshape(digits, [-1, *shape])


def _layers(distribution: Any) -> list[Any]:
    """The distributions of the layers of z, given others that are all zero."""
    distribution = _plain(distribution)
    if not has_layers(distribution):
        return [distribution]
    zero = tf.zeros([1, *distribution.event_shape], distribution.dtype)
    return [f for f, _ in distribution.factors(zero)]


def _num_layers(distribution: Any) -> int:
    return len(distribution._event_shapes) if has_layers(distribution) else 1


def _num_states(layer: Any) -> int:
    return _Kind.of(layer).num_states(tuple(layer.event_shape))


def _plain(distribution: Any) -> Any:
    return getattr(distribution, "tensor_distribution", distribution)
