r"""Normalizing flows: invertible maps that make a rich distribution of a simple one.

$$ z = f_L \circ \dots \circ f_1(z_0), \qquad
   \log q(z) = \log q_0(z_0) - \sum_l \log \bigl| \det \partial f_l / \partial z_{l-1} \bigr| $$

A flow is a layer that is given to `posteriors.Flow` or `priors.Flow`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks

tfb, tfd = tfp.bijectors, tfp.distributions

# The least slope of a layer along a direction: without it a map may be flat to rounding, and has no
# inverse. And what makes `_near_one(0)` one.
_LEAST = 1e-2
_SHIFT = math.log(math.expm1(1.0 - _LEAST))

# What an encoder puts out is of size one at first; times this, the flow starts near the identity.
_GAIN = 0.2

# Scales of autoregressive and coupling layers stay within exp(+-5), so that no draw overflows.
_MAX_LOG_SCALE = 5.0

_TINY = 1e-12

# Of an interval no longer than 2 |k|; Newton's method takes over from there.
_BISECTIONS = 22

# Fixed draws that the moments are estimated from, and how many of them are in memory at once.
_CHUNKS, _CHUNK = 16, 16


class Flow(keras.layers.Layer):
    """The base of all flows: how many layers, which numbers they want, and the map they make.

    A subclass defines `free_parameters` and `layer`, and `build` if it has weights. A block that is
    given a flow makes one of its own from the configuration, so one description serves several.

    Args:
      num_layers: the number L of layers.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: unless the number of layers is a positive integer.
    """

    def __init__(self, num_layers: int, **kwargs: Any) -> None:
        kwargs["dtype"] = blocks.full_precision(kwargs.get("dtype"))
        super().__init__(**kwargs)
        self.num_layers = checks.positive_integer("num_layers", num_layers)

    @property
    def size(self) -> int:
        """The size D of the vectors that it maps, once it is built."""
        return self._size

    def build(self, input_shape: Any) -> None:
        """Make the weights for vectors of the last axis' size."""
        self._size = int(input_shape[-1])
        self.check_size(self._size)
        super().build(input_shape)

    def check_size(self, size: int) -> None:
        """Raise ValueError for vectors that the flow cannot map."""

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """The numbers that it wants for each event, from the encoder."""
        raise NotImplementedError

    def layer(self, index: int, parameters: dict[str, Any]) -> Any:
        """The layer of this number, counted from 0, as a `tfb.Bijector`."""
        raise NotImplementedError

    def bijector(self, parameters: dict[str, Any]) -> Any:
        """The map from z_0 to z as a `tfb.Bijector`.

        Args:
          parameters: what `free_parameters` names, `[*batch, *shape]`.
        """
        return tfb.Chain([self.layer(i, parameters) for i in reversed(range(self.num_layers))])

    def call(self, inputs: Any) -> Any:
        """The map of z_0, with all free parameters zero."""
        zeros = {p.name: tf.zeros(p.shape, self.dtype) for p in self.free_parameters()}
        return self.bijector(zeros).forward(tf.cast(inputs, self.dtype))

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"num_layers": self.num_layers}

    def get_build_config(self) -> None:
        """Nothing: the block that has the flow builds it."""


# Flows of few numbers, which an encoder can put out.


class _Residual(Flow):
    """A flow that is made of a list of numbers: from the encoder, or weights of its own."""

    def __init__(self, num_layers: int, *, amortized: bool = True, **kwargs: Any) -> None:
        super().__init__(num_layers, **kwargs)
        self.amortized = checks.flag("amortized", amortized)

    def build(self, input_shape: Any) -> None:
        """Make the weights for vectors of the last axis' size."""
        super().build(input_shape)
        if not self.amortized:
            self._own = {
                p.name: self.add_weight(p.name, p.shape, initializer="zeros")
                for p in self._numbers()
            }

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """The numbers that it wants for each event, from the encoder."""
        return self._numbers() if self.amortized else ()

    def layer(self, index: int, parameters: dict[str, Any]) -> Any:
        """The layer of this number, counted from 0, as a `tfb.Bijector`."""
        numbers = parameters if self.amortized else self._own
        own = {
            p.name: _GAIN * tf.gather(numbers[p.name], index, axis=-len(p.shape))
            for p in self._numbers()
        }
        return self._layer(index, **own)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"amortized": self.amortized}

    def _numbers(self) -> tuple[blocks.Parameter, ...]:
        """The numbers `[L, ...]` that the layers are made of; all zero give the identity."""
        raise NotImplementedError

    def _layer(self, index: int, **numbers: Any) -> Any:
        """A layer from its numbers."""
        raise NotImplementedError

    def _each(self, name: str, *shape: int) -> blocks.Parameter:
        return blocks.Parameter(name, tfb.Identity(), (self.num_layers, *shape))

    def _offset(self, index: int, *shape: int) -> np.ndarray:
        """Numbers of size one, others for each layer.

        With all numbers zero the layers would otherwise be the same, get the same gradients, and
        stay the same.
        """
        return np.random.default_rng(index).normal(size=shape).astype(self.dtype)


@keras.saving.register_keras_serializable("tfpvae.flows")
class Planar(_Residual):
    r"""The planar flow: each layer squeezes or stretches z along one direction.

    $$ f(z) = z + u \tanh(w^\top z + b), \qquad
       \det \frac{\partial f}{\partial z} = 1 + w^\top u\, (1 - \tanh^2(w^\top z + b)) $$

    with u such that w^T u > -1, which makes f invertible. It takes 2 D + 1 numbers a layer.

    Args:
      num_layers: the number of layers.
      amortized: whether u, w and b are functions of x, which the encoder puts out; or the flow's
        own weights.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: unless the number of layers is a positive integer.

    Example:
      >>> from tfpvae import posteriors
      >>> posteriors.Flow.params_size(2, Planar(8))  # 4 of the base, 5 a layer
      44

    Source: Rezende and Mohamed, "Variational Inference with Normalizing Flows", 2015.
    """

    def _numbers(self) -> tuple[blocks.Parameter, ...]:
        return self._each("u", self.size), self._each("w", self.size), self._each("b")

    def _layer(self, index: int, **numbers: Any) -> Any:
        offset = self._offset(index, self.size + 1)
        direction = offset[1:] / np.linalg.norm(offset[1:])
        u, w, b = numbers["u"], numbers["w"] + direction, numbers["b"] + offset[0]
        # Of all u that have this part across w, the one with w.u > -1.
        along, square = _dot(w, u), _dot(w, w) + _TINY
        slope = _near_one(along) - 1.0
        u += ((slope - along) / square)[..., None] * w
        return _Perceptron(u[..., None], w[..., None, :], b[..., None], slope[..., None, None])


@keras.saving.register_keras_serializable("tfpvae.flows")
class Sylvester(_Residual):
    r"""The orthogonal Sylvester flow: each layer bends z within a subspace of M dimensions.

    $$ f(z) = z + Q R \tanh(\tilde R Q^\top z + b), \qquad
       \det \frac{\partial f}{\partial z} = \prod_m 1 + R_{mm} \tilde R_{mm} (1 - \tanh^2(a_m)) $$

    with a = R~ Q^T z + b, upper triangular R and R~, R_mm R~_mm > -1, which makes f invertible, and
    M orthonormal columns Q, a product of M Householder reflections. It takes M D + M (M + 2)
    numbers a layer.

    Args:
      num_layers: the number of layers.
      num_ortho: the number M of columns of Q, at most D; None for the lesser of D and 8.
      amortized: whether Q, R, R~ and b are functions of x, which the encoder puts out; or the
        flow's own weights.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: for numbers that are no positive integers, M > D.

    Example:
      >>> from tfpvae import posteriors
      >>> posteriors.Flow.params_size(4, Sylvester(3, num_ortho=2))  # 8 of the base, 16 a layer
      56

    Source: van den Berg, Hasenclever, Tomczak and Welling, "Sylvester Normalizing Flows for
    Variational Inference", 2018.
    """

    def __init__(
        self,
        num_layers: int,
        num_ortho: int | None = None,
        *,
        amortized: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_layers, amortized=amortized, **kwargs)
        if num_ortho is not None:
            num_ortho = checks.positive_integer("num_ortho", num_ortho)
        self.num_ortho = num_ortho

    def check_size(self, size: int) -> None:
        """Raise ValueError if there are more columns than dimensions."""
        if self.num_ortho is not None and self.num_ortho > size:
            raise ValueError(
                f"num_ortho: got {self.num_ortho}, wanted at most {size}, the size of z: so many "
                "vectors cannot be orthogonal to one another"
            )

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"num_ortho": self.num_ortho}

    @property
    def _rank(self) -> int:
        return self.num_ortho or min(self.size, 8)

    def _numbers(self) -> tuple[blocks.Parameter, ...]:
        rank = self._rank
        return (
            self._each("reflections", rank, self.size),
            self._each("triangles", rank, rank),  # R above the diagonal, R~ below it, both on it
            self._each("diagonal", rank),
            self._each("b", rank),
        )

    def _layer(self, index: int, **numbers: Any) -> Any:
        rank, triangles = self._rank, numbers["triangles"]
        offset = self._offset(index, rank, self.size + 1)
        directions = offset[:, 1:] / np.linalg.norm(offset[:, 1:], axis=1, keepdims=True)
        axes, bias = numbers["reflections"] + directions, numbers["b"] + offset[:, 0]
        rows = np.eye(rank, self.size, dtype=self.dtype)  # of Q^T
        for i in range(rank):
            rows = tfb.Householder(axes[..., i, None, :]).forward(rows)
        inner = _near_one(numbers["diagonal"])
        outer = (_near_one(tf.linalg.diag_part(triangles)) - 1.0) / inner
        above = np.triu(np.ones((rank, rank), self.dtype), 1)
        outer = tf.linalg.diag(outer) + above * triangles  # R
        inner = tf.linalg.diag(inner) + above * tf.linalg.matrix_transpose(triangles)  # R~
        left = tf.linalg.matmul(rows, outer, transpose_a=True)
        return _Perceptron(left, inner @ rows, bias, inner @ outer)


class _Perceptron(tfp.bijectors.Bijector):
    r"""The map z + A tanh(B z + b) for matrices of which K = B A is upper triangular, K_mm > -1.

    By the matrix determinant lemma its Jacobian has the determinant of I + K diag(1 - tanh^2), a
    triangle. The inverse is that of s + K tanh(s), an equation in one unknown for each row of K
    from the last to the first.

    Shapes: A `[*batch, D, M]`, B `[*batch, M, D]`, b `[*batch, M]`, K `[*batch, M, M]`.
    """

    def __init__(self, a: Any, b: Any, bias: Any, k: Any) -> None:
        self._a, self._b, self._bias, self._k = a, b, bias, k
        super().__init__(forward_min_event_ndims=1, dtype=a.dtype, name="perceptron")

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {}

    def _forward(self, z: Any) -> Any:
        return z + tf.linalg.matvec(self._a, self._units(z))

    def _forward_log_det_jacobian(self, z: Any) -> Any:
        slopes = 1.0 - self._units(z) ** 2
        return tf.reduce_sum(tf.math.log1p(tf.linalg.diag_part(self._k) * slopes), axis=-1)

    def _inverse(self, y: Any) -> Any:
        s = _solve(self._k, tf.linalg.matvec(self._b, y) + self._bias)
        return y - tf.linalg.matvec(self._a, tf.tanh(s))

    def _units(self, z: Any) -> Any:
        return tf.tanh(tf.linalg.matvec(self._b, z) + self._bias)


def _solve(k: Any, target: Any) -> Any:
    """The s with s + K tanh(s) = target; K `[..., M, M]` is upper triangular with K_mm > -1."""
    diagonal = tf.linalg.diag_part(k)
    above = k - tf.linalg.diag(diagonal)
    # The root is found by numbers alone, and one step of Newton's method, which does not move it
    # beyond rounding, has its derivatives.
    s = tf.stop_gradient(_root(*map(tf.stop_gradient, (diagonal, above, target))))
    units = tf.tanh(s)
    slope = tf.eye(k.shape[-1], dtype=k.dtype) + k * (1.0 - units[..., None, :] ** 2)
    rest = target - s - tf.linalg.matvec(k, units)
    step = tf.linalg.triangular_solve(tf.stop_gradient(slope), rest[..., None], lower=False)
    return s + step[..., 0]


def _root(diagonal: Any, above: Any, target: Any) -> Any:
    """The root, row by row: each of the rounds makes one more row right, from the last."""

    def rows(s: Any) -> Any:
        """The roots of the rows, given those of the rows below."""
        return _monotone_root(diagonal, target - tf.linalg.matvec(above, tf.tanh(s)))

    num, first = diagonal.shape[-1], tf.zeros_like(target + diagonal)
    if num == 1:
        return rows(first)
    return tf.while_loop(
        lambda i, s: i < num, lambda i, s: (i + 1, rows(s)), (0, first), maximum_iterations=num
    )[1]


def _monotone_root(k: Any, target: Any) -> Any:
    """The s with s + k tanh(s) = target, for k > -1: by bisection, and by Newton's method."""
    # Not TFP's find_root_chandrupatla, whose divided differences led to NaN in a long run.

    def halve(i: Any, s: Any, reach: Any) -> tuple[Any, Any, Any]:
        return i + 1, s - reach * tf.sign(s + k * tf.tanh(s) - target), reach / 2

    reach = tf.abs(k) + tf.zeros_like(target)
    _, s, reach = tf.while_loop(
        lambda i, *_: i < _BISECTIONS,
        halve,
        (0, target + tf.zeros_like(k), reach / 2),
        maximum_iterations=_BISECTIONS,
    )
    for _ in range(3):
        units = tf.tanh(s)
        step = (target - s - k * units) / (1.0 + k * (1.0 - units**2))
        s += tf.clip_by_value(step, -2 * reach, 2 * reach)
    return s


@keras.saving.register_keras_serializable("tfpvae.flows")
class Radial(_Residual):
    r"""The radial flow: each layer draws z towards a point, or pushes it away.

    $$ f(z) = z + \frac{\beta}{\alpha + r} (z - c), \quad r = \| z - c \|, \qquad
       \det \frac{\partial f}{\partial z} = \Bigl(1 + \frac{\beta}{\alpha + r}\Bigr)^{D - 1}
       \Bigl(1 + \frac{\alpha \beta}{(\alpha + r)^2}\Bigr) $$

    with alpha > 0 and beta > -alpha, which makes f invertible. It takes D + 2 numbers a layer.

    Args:
      num_layers: the number of layers.
      amortized: whether c, alpha and beta are functions of x, which the encoder puts out; or the
        flow's own weights.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: unless the number of layers is a positive integer.

    Example:
      >>> from tfpvae import posteriors
      >>> posteriors.Flow.params_size(2, Radial(8))  # 4 of the base, 4 a layer
      36

    Source: Rezende and Mohamed, "Variational Inference with Normalizing Flows", 2015.
    """

    def _numbers(self) -> tuple[blocks.Parameter, ...]:
        return self._each("center", self.size), self._each("alpha"), self._each("beta")

    def _layer(self, index: int, **numbers: Any) -> Any:
        alpha = _near_one(numbers["alpha"])[..., None]
        beta = alpha * (_near_one(numbers["beta"])[..., None] - 1.0)
        return _Radius(numbers["center"] + self._offset(index, self.size), alpha, beta)


class _Radius(tfp.bijectors.Bijector):
    """A layer of the radial flow; center `[*batch, D]`, alpha and beta `[*batch, 1]`."""

    def __init__(self, center: Any, alpha: Any, beta: Any) -> None:
        self._center, self._alpha, self._beta = center, alpha, beta
        super().__init__(forward_min_event_ndims=1, dtype=center.dtype, name="radius")

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {}

    def _forward(self, z: Any) -> Any:
        away = z - self._center
        return z + self._beta / (self._alpha + _norm(away)) * away

    def _forward_log_det_jacobian(self, z: Any) -> Any:
        reach = self._alpha + _norm(z - self._center)
        across = (z.shape[-1] - 1) * tf.math.log1p(self._beta / reach)
        return (across + tf.math.log1p(self._alpha * self._beta / reach**2))[..., 0]

    def _inverse(self, y: Any) -> Any:
        away = y - self._center
        # The radius solves r^2 + (alpha + beta - s) r - alpha s = 0 for the radius s of y. Of the
        # two forms of the root each is free of cancellation on its side.
        s = _norm(away)
        half = (s - self._alpha - self._beta) / 2
        root = tf.sqrt(half**2 + self._alpha * s)
        below = self._alpha * s / tf.where(half < 0, root - half, 1.0)
        r = tf.where(half < 0, below, half + root)
        return self._center + away / (1.0 + self._beta / (self._alpha + r))


# Flows of networks.


class _Networks(Flow):
    """A flow each of whose layers has a network, which may read a context from the encoder."""

    def __init__(
        self,
        num_layers: int,
        hidden_units: Sequence[int],
        activation: Any,
        context_size: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_layers, **kwargs)
        if isinstance(hidden_units, (str, int)) or not isinstance(hidden_units, Sequence):
            raise TypeError(
                f"hidden_units: got {hidden_units!r}, wanted the sizes of the hidden layers, as "
                "(64, 64)"
            )
        if not hidden_units:
            raise ValueError("hidden_units: got none, wanted at least one hidden layer")
        self.hidden_units = tuple(checks.positive_integer("hidden_units", n) for n in hidden_units)
        self.activation = checks.made("activation", keras.activations.get, activation)
        if not isinstance(context_size, (int, np.integer)) or context_size != 0:
            context_size = checks.positive_integer("context_size", context_size)
        self.context_size = int(context_size)

    def build(self, input_shape: Any) -> None:
        """Make the networks for vectors of the last axis' size."""
        super().build(input_shape)
        self.networks = [self._network(i) for i in range(self.num_layers)]

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """The context that the networks read beside z, if there is one."""
        if not self.context_size:
            return ()
        return (blocks.Parameter("context", tfb.Identity(), (self.context_size,)),)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {
            "hidden_units": list(self.hidden_units),
            "activation": keras.activations.serialize(self.activation),
            "context_size": self.context_size,
        }

    def _network(self, index: int) -> Any:
        """The network of a layer, with its weights."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("tfpvae.flows")
class MaskedAutoregressive(_Networks):
    r"""The masked autoregressive flow: each dimension is shifted and scaled by the ones before it.

    $$ z_d = \mu_d(z_{<d}) + \exp(\sigma_d(z_{<d}))\, z_{0,d}, \qquad
       \log \Bigl| \det \frac{\partial f}{\partial z_0} \Bigr| = \sum_d \sigma_d $$

    The functions of one layer are a masked network of z, so a density takes one pass of it, but a
    draw takes D: a flow for priors. The order of the dimensions is reversed from layer to layer.

    Args:
      num_layers: the number of layers, each with a network.
      hidden_units: sizes of the networks' hidden layers.
      activation: a Keras activation of the hidden layers.
      context_size: how many numbers of the encoder the networks read, so that they depend on x.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: for sizes that are no positive integers, an unknown activation.

    Example:
      >>> from tfpvae import priors
      >>> prior = priors.Flow(2, MaskedAutoregressive(2, hidden_units=(16,)))
      >>> prior().log_prob(tf.zeros([5, 2])).shape
      TensorShape([5])

    Source: Papamakarios, Pavlakou and Murray, "Masked Autoregressive Flow for Density Estimation",
    2017; Germain et al., "MADE", 2015 (the network).
    """

    def __init__(
        self,
        num_layers: int = 2,
        hidden_units: Sequence[int] = (64, 64),
        activation: Any = "elu",
        context_size: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_layers, hidden_units, activation, context_size, **kwargs)

    def layer(self, index: int, parameters: dict[str, Any]) -> Any:
        """The layer of this number, counted from 0, as a `tfb.Bijector`."""
        network = self.networks[index].function(parameters.get("context"))

        def shift_and_log_scale(z: Any) -> tuple[Any, Any]:
            shift, log_scale = tf.split(network(z), 2, axis=-1)
            return shift, _bounded(log_scale)

        return tfb.MaskedAutoregressiveFlow(shift_and_log_scale)

    def _network(self, index: int) -> Any:
        # Not tfb.AutoregressiveNetwork: Keras's layers in it add z [S, B, D] and a context [B, C]
        # along the wrong axes, take no z of size one, and round under a policy of mixed precision.
        order = np.arange(1, self.size + 1)
        order = order[::-1] if index % 2 else order
        # Each unit may depend on the dimensions up to its degree; on none of them, if it is there
        # for the context.
        least = 0 if self.context_size else min(1, self.size - 1)
        degrees = [np.concatenate([order, np.zeros(self.context_size)])]
        for units in self.hidden_units:
            degrees.append(np.round(np.linspace(least, self.size - 1, units)))
        masks = [i[:, None] <= o for i, o in itertools.pairwise(degrees)]
        masks.append(degrees[-1][:, None] < np.tile(order, 2))
        return _Network(masks, self.activation, self.dtype)


@keras.saving.register_keras_serializable("tfpvae.flows")
class InverseAutoregressive(MaskedAutoregressive):
    r"""The inverse autoregressive flow: a draw takes one pass of each network.

    $$ z_d = \bigl(z_{0,d} - \mu_d(z_{0,<d})\bigr) \exp(-\sigma_d(z_{0,<d})), \qquad
       \log \Bigl| \det \frac{\partial f}{\partial z_0} \Bigr| = -\sum_d \sigma_d $$

    The log density of its own draws comes with them; that of other values takes D passes: a flow
    for posteriors. The order of the dimensions is reversed from layer to layer.

    Args:
      num_layers: the number of layers, each with a network.
      hidden_units: sizes of the networks' hidden layers.
      activation: a Keras activation of the hidden layers.
      context_size: how many numbers of the encoder the networks read, so that they depend on x;
        without it only the base distribution does.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: for sizes that are no positive integers, an unknown activation.

    Example:
      >>> from tfpvae import posteriors
      >>> flow = InverseAutoregressive(2, hidden_units=(16,), context_size=8)
      >>> posteriors.Flow.params_size(2, flow)  # 4 of the base, 8 of the context
      12

    Source: Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow", 2016.
    """

    def layer(self, index: int, parameters: dict[str, Any]) -> Any:
        """The layer of this number, counted from 0, as a `tfb.Bijector`."""
        return tfb.Invert(super().layer(index, parameters))


class _Coupling(_Networks):
    """A flow whose layers change one part of z by an elementwise map that depends on the rest."""

    def check_size(self, size: int) -> None:
        """Raise ValueError for a single number, which has no rest."""
        if size < 2:
            raise ValueError(
                f"flow: got {type(self).__name__} for events of size {size}, wanted at least 2, "
                "because one part of z changes as a function of the other"
            )

    def layer(self, index: int, parameters: dict[str, Any]) -> Any:
        """The layer of this number, counted from 0, as a `tfb.Bijector`."""
        network = self.networks[index].function(parameters.get("context"))
        return tfb.RealNVP(
            num_masked=self._num_masked(index),
            bijector_fn=lambda z, size, **_: self._map(network(z), size),
        )

    def _num_masked(self, index: int) -> int:
        """How many dimensions stay: the first half, or, as a negative number, the second."""
        half = self.size // 2
        return half - self.size if index % 2 else half

    def _network(self, index: int) -> Any:
        stay = abs(self._num_masked(index))
        changed = (self.size - stay) * self._numbers
        sizes = [stay + self.context_size, *self.hidden_units, changed]
        masks = [np.ones(shape) for shape in itertools.pairwise(sizes)]
        return _Network(masks, self.activation, self.dtype)

    @property
    def _numbers(self) -> int:
        """How many numbers the map of one dimension takes."""
        raise NotImplementedError

    def _map(self, numbers: Any, size: int) -> Any:
        """The map of `size` dimensions from the network's output, a `tfb.Bijector`."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("tfpvae.flows")
class RealNVP(_Coupling):
    r"""The affine coupling flow: one half of z is shifted and scaled by functions of the other.

    $$ z_A = z_{0,A}, \qquad z_B = \mu(z_{0,A}) + \exp(\sigma(z_{0,A})) \odot z_{0,B}, \qquad
       \log \Bigl| \det \frac{\partial f}{\partial z_0} \Bigr| = \sum \sigma $$

    Draws and densities take one pass of the networks each: a flow for posteriors and for priors.
    A is the first half of the dimensions in layers 0, 2, ..., and the second in layers 1, 3, ...

    Args:
      num_layers: the number of layers, each with a network; with one, half of z never changes.
      hidden_units: sizes of the networks' hidden layers.
      activation: a Keras activation of the hidden layers.
      context_size: how many numbers of the encoder the networks read, so that they depend on x.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: for sizes that are no positive integers, an unknown activation, z of
        one dimension.

    Example:
      >>> from tfpvae import priors
      >>> prior = priors.Flow(4, RealNVP(4, hidden_units=(16,)))
      >>> prior().sample(3).shape
      TensorShape([3, 4])

    Source: Dinh, Sohl-Dickstein and Bengio, "Density Estimation using Real NVP", 2017.
    """

    def __init__(
        self,
        num_layers: int = 4,
        hidden_units: Sequence[int] = (64, 64),
        activation: Any = "elu",
        context_size: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_layers, hidden_units, activation, context_size, **kwargs)

    @property
    def _numbers(self) -> int:
        return 2

    def _map(self, numbers: Any, size: int) -> Any:
        shift, log_scale = tf.split(numbers, 2, axis=-1)
        return tfb.Shift(shift)(tfb.Scale(log_scale=_bounded(log_scale)))


@keras.saving.register_keras_serializable("tfpvae.flows")
class NeuralSpline(_Coupling):
    r"""The neural spline flow: one half of z goes through splines that depend on the other.

    $$ z_A = z_{0,A}, \qquad z_B = g(z_{0,B};\ z_{0,A}) $$

    where g is, for each dimension, an increasing rational quadratic spline with K bins on the
    interval [-bound, bound] and the identity outside of it. It makes several modes and sharp edges
    that affine layers need many for. A is as in `RealNVP`.

    Args:
      num_layers: the number of layers, each with a network; with one, half of z never changes.
      hidden_units: sizes of the networks' hidden layers.
      activation: a Keras activation of the hidden layers.
      context_size: how many numbers of the encoder the networks read, so that they depend on x.
      num_bins: the number K of bins.
      bound: where the splines end.
      **kwargs: of any Keras layer.

    Raises:
      TypeError, ValueError: for sizes that are no positive integers, an unknown activation, fewer
        than two bins, a bound that is not positive, z of one dimension.

    Example:
      >>> from tfpvae import priors
      >>> prior = priors.Flow(2, NeuralSpline(2, hidden_units=(16,)))
      >>> round(float(prior().log_prob([9.0, 9.0])), 2)  # the tails are those of the base
      -82.84

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural Spline Flows", 2019.
    """

    def __init__(
        self,
        num_layers: int = 2,
        hidden_units: Sequence[int] = (64, 64),
        activation: Any = "elu",
        context_size: int = 0,
        num_bins: int = 8,
        bound: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_layers, hidden_units, activation, context_size, **kwargs)
        self.num_bins = checks.positive_integer("num_bins", num_bins)
        if self.num_bins < 2:
            raise ValueError(f"num_bins: got {num_bins}, wanted at least 2")
        self.bound = checks.number("bound", bound, "a positive number", lambda v: 0 < v < math.inf)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"num_bins": self.num_bins, "bound": self.bound}

    @property
    def _numbers(self) -> int:
        return 3 * self.num_bins - 1

    def _map(self, numbers: Any, size: int) -> Any:
        shape = tf.concat([tf.shape(numbers)[:-1], [size, self._numbers]], 0)
        numbers = tf.reshape(numbers, shape)
        bins = self.num_bins
        widths, heights, slopes = tf.split(numbers, [bins, bins, bins - 1], axis=-1)
        return _Spline(self._widths(widths), self._widths(heights), _near_one(slopes), -self.bound)

    def _widths(self, numbers: Any) -> Any:
        """Widths that add up to the interval's, none of them too small to be inverted."""
        even = 1.0 / self.num_bins
        shares = _LEAST * even + (1.0 - _LEAST) * tf.nn.softmax(numbers)
        return 2.0 * self.bound * shares


class _Spline(tfp.bijectors.RationalQuadraticSpline):
    """TFP's spline, which forgets what shape its values have where the batch is of any size."""

    def _forward(self, x: Any) -> Any:
        return self._shaped(super()._forward(x), x)

    def _inverse(self, y: Any) -> Any:
        return self._shaped(super()._inverse(y), y)

    def _shaped(self, value: Any, argument: Any) -> Any:
        shape = tf.broadcast_static_shape(argument.shape, self.bin_widths.shape[:-1])
        return tf.ensure_shape(value, shape)


class _Network(keras.layers.Layer):
    """A dense network whose kernels have these masks; its output is zero at first."""

    def __init__(self, masks: Sequence[np.ndarray], activation: Any, dtype: str) -> None:
        super().__init__(dtype=dtype)
        self._masks, self._activation = [mask.astype(dtype) for mask in masks], activation
        first = ["glorot_uniform"] * (len(masks) - 1) + ["zeros"]
        self.kernels = [
            self.add_weight(f"kernel_{i}", mask.shape, initializer=first[i])
            for i, mask in enumerate(masks)
        ]
        self.biases = [
            self.add_weight(f"bias_{i}", mask.shape[1:], initializer="zeros")
            for i, mask in enumerate(masks)
        ]
        self.built = True

    def function(self, context: Any) -> Callable[[Any], Any]:
        """The network as a function of z `[..., d]`, with a context `[*batch, C]` beside it.

        The weights are read once: so what TFP asks for twice, for the value of the flow and for its
        log-determinant, is the same operation on the same tensors, which TensorFlow does once.
        """
        kernels = [
            tf.convert_to_tensor(kernel) if mask.all() else kernel * mask
            for kernel, mask in zip(self.kernels, self._masks, strict=True)
        ]
        biases = [tf.convert_to_tensor(bias) for bias in self.biases]

        def function(z: Any) -> Any:
            size = z.shape[-1]
            hidden = tf.tensordot(z, kernels[0][:size], 1) + biases[0]
            if context is not None:
                hidden += tf.tensordot(context, kernels[0][size:], 1)
            for kernel, bias in zip(kernels[1:], biases[1:], strict=True):
                hidden = tf.tensordot(self._activation(hidden), kernel, 1) + bias
            return hidden

        return function


def _bounded(log_scale: Any) -> Any:
    return _MAX_LOG_SCALE * tf.tanh(log_scale / _MAX_LOG_SCALE)


def _near_one(t: Any) -> Any:
    """Positive numbers, bounded away from zero, that are 1 where t is 0."""
    return _LEAST + tf.math.softplus(t + _SHIFT)


def _dot(a: Any, b: Any) -> Any:
    return tf.reduce_sum(a * b, axis=-1)


def _norm(z: Any) -> Any:
    """The length `[..., 1]`, with a derivative also at zero."""
    return tf.sqrt(tf.maximum(tf.reduce_sum(z * z, axis=-1, keepdims=True), _TINY))


# What blocks make of flows.


class FlowDistribution(tfp.distributions.TransformedDistribution):
    r"""A base distribution pushed through a flow.

    $$ \log q(z) = \log q_0(f^{-1}(z)) - \log | \det \partial f / \partial z_0 | $$

    The moments have no closed form: `mean`, `variance` and `stddev` are estimates from 256 draws
    that are always the same, so that the error of the mean is a sixteenth of the standard
    deviation. There is no mode.

    Args:
      distribution: the base q_0, over vectors.
      bijector: the flow f, whose batch of parameters is that of the base or none.
      validate_args: as in TFP.
      name: as in TFP.
    """

    def __init__(
        self,
        distribution: Any,
        bijector: Any,
        validate_args: bool = False,
        name: str = "Flow",
    ) -> None:
        parameters = dict(locals())
        super().__init__(
            distribution, bijector, validate_args=validate_args, parameters=parameters, name=name
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> Any:
        return super()._parameter_properties(dtype, num_classes)

    # The base has the whole batch. TFP would work it out from the bijectors and, where the size is
    # unknown, broadcast each draw.

    def _batch_shape(self) -> Any:
        return self.distribution.batch_shape

    def _batch_shape_tensor(self) -> Any:
        return self.distribution.batch_shape_tensor()

    def _call_sample_n(self, sample_shape: Any, seed: Any, **kwargs: Any) -> Any:
        draw = self.distribution.sample(sample_shape, seed=seed)
        # Of a batch of unknown size TFP forgets the size of z, too.
        draw.set_shape([None] * (draw.shape.rank - 1) + list(self.distribution.event_shape))
        return self.bijector.forward(draw)

    def _log_prob(self, y: Any, **kwargs: Any) -> Any:
        # Values for all of the batch at once are laid out for each of it, as coupling layers put
        # what depends on the batch beside what does not. Draws stay the tensors that they are.
        batch = self.batch_shape
        sizes = [1] * (batch.rank + 1 - y.shape.rank) + y.shape.as_list()
        if any(size == 1 != known for size, known in zip(sizes[-2::-1], batch[::-1], strict=False)):
            lead = tf.broadcast_dynamic_shape(tf.shape(y)[:-1], self.batch_shape_tensor())
            y = tf.broadcast_to(y, tf.concat([lead, tf.shape(y)[-1:]], 0))
        return super()._log_prob(y, **kwargs)

    def __getitem__(self, slices: Any) -> Any:
        """The distributions of some of the batch, made anew by the block that made this one."""
        source = blocks.source(self)
        if source is None:
            return super().__getitem__(slices)
        layer, params = source
        slices = slices if isinstance(slices, tuple) else (slices,)
        return layer.new(params[(*slices, slice(None))])

    def _mean(self, **kwargs: Any) -> Any:
        return self._moments()[0]

    def _variance(self, **kwargs: Any) -> Any:
        return self._moments()[1]

    def _stddev(self, **kwargs: Any) -> Any:
        return tf.sqrt(self._variance())

    def _moments(self) -> tuple[Any, Any]:
        """Mean and variance of the fixed draws, few of which are in memory at a time."""

        def draws(i: Any) -> Any:
            return self.sample(_CHUNK, seed=tf.stack([i, 0]))

        center = tf.stop_gradient(tf.reduce_mean(draws(0), axis=0))  # Against cancellation.

        def add(i: Any, first: Any, second: Any) -> Any:
            away = draws(i) - center
            first += tf.reduce_mean(away, axis=0) / _CHUNKS
            return i + 1, first, second + tf.reduce_mean(away**2, axis=0) / _CHUNKS

        zeros = tf.zeros_like(center)
        _, first, second = tf.while_loop(
            lambda i, *_: i < _CHUNKS,
            add,
            (tf.constant(0), zeros, zeros),
            maximum_iterations=_CHUNKS,
        )
        return center + first, second - first**2


def own_flow(flow: Any, event_shape: tuple[int, ...], dtype: str) -> Flow:
    """A flow like this one, with weights of its own for events of this shape.

    Args:
      flow: its description.
      event_shape: `(D,)`.
      dtype: that it computes in.

    Raises:
      TypeError: if it is no flow.
      ValueError: if the events are no vectors, or not such as the flow can map.
    """
    checks.refuse_keras3("flow", flow)
    if not isinstance(flow, Flow):
        raise TypeError(f"flow: got {flow!r}, wanted one of tfpvae.flows, as flows.Planar(8)")
    if len(event_shape) != 1:
        raise ValueError(
            f"event_shape: got {event_shape}, wanted (D,), because a flow maps vectors"
        )
    made = type(flow).from_config(flow.get_config() | {"dtype": dtype})
    made.build((None, *event_shape))
    return made
