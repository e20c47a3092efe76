"""Distributions that TFP lacks, in TFP's own form."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfb, tfd = tfp.bijectors, tfp.distributions

# Fixed draws that the moments of what has no density are estimated from.
_MOMENT_DRAWS = 64


class _Derived(tfp.distributions.Distribution):
    """A distribution that is another one but for what a subclass overrides."""

    def __init__(self, distribution: Any, dtype: Any, parameters: dict[str, Any]) -> None:
        self._distribution = distribution
        super().__init__(
            dtype=dtype,
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=parameters["validate_args"],
            allow_nan_stats=parameters["allow_nan_stats"],
            parameters=parameters,
            name=parameters["name"],
        )

    @property
    def distribution(self) -> Any:
        """The other distribution."""
        return self._distribution

    def _batch_shape(self) -> Any:
        return self.distribution.batch_shape

    def _batch_shape_tensor(self) -> Any:
        return self.distribution.batch_shape_tensor()

    def _event_shape(self) -> Any:
        return self.distribution.event_shape

    def _event_shape_tensor(self) -> Any:
        return self.distribution.event_shape_tensor()

    def _log_prob(self, x: Any) -> Any:
        return self.distribution.log_prob(tf.cast(x, self.distribution.dtype))

    def _sample_n(self, n: Any, seed: Any = None) -> Any:
        return tf.cast(self.distribution.sample(n, seed=seed), self.dtype)

    def _mean(self) -> Any:
        return self.distribution.mean()

    def _mode(self) -> Any:
        return tf.cast(self.distribution.mode(), self.dtype)

    def _variance(self) -> Any:
        return self.distribution.variance()


class Bernoulli(tfp.distributions.Bernoulli):
    r"""TFP's Bernoulli distribution, whose log_prob takes one softplus of the logits, not two.

    $$ \log p(x) = t\, x - \operatorname{softplus}(t) $$

    It is right to float32's rounding of t; the logits have to be finite.

    Example:
      >>> Bernoulli(logits=[0.0, 100.0]).log_prob([1, 1]).numpy().round(3)  # log(1/2), log(1)
      array([-0.693,  0.   ], dtype=float32)
    """

    def _log_prob(self, event: Any) -> Any:
        if self.logits is None:
            return super()._log_prob(event)
        return self.logits * tf.cast(event, self.logits.dtype) - tf.math.softplus(self.logits)


class Missing(_Derived):
    r"""Another distribution, of values that may be missing: a NaN has log density 0.

    $$ \log p(x) = \begin{cases} 0 & \text{if } x \text{ is NaN} \\
       \log f(x) & \text{otherwise} \end{cases} $$

    So the log density of many independent values is that of the ones that were observed, their
    marginal likelihood. Draws and moments are those of the other distribution, which is that of
    missing values given the parameters. An event of several numbers is missing as a whole.

    Args:
      distribution: the other distribution f.
      placeholder: values `[*batch, *event]` of f's support, which stand where NaN stood while f is
        evaluated: a NaN that is merely masked afterwards would come back in the gradient.
      dtype: of x, whatever that of f: NaN is a floating-point number.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.

    Source: Mattei and Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete
    Data Sets", 2019.
    """

    def __init__(
        self,
        distribution: Any,
        placeholder: Any,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "Missing",
    ) -> None:
        parameters = dict(locals())
        self._placeholder = placeholder
        super().__init__(distribution, dtype, parameters)

    def _log_prob(self, x: Any) -> Any:
        x = tf.cast(x, self.dtype)
        axes = list(range(-self.event_shape.rank, 0))
        whole = tf.reduce_any(tf.math.is_nan(x), axes, keepdims=True)
        log_prob = super()._log_prob(tf.where(whole, tf.cast(self._placeholder, self.dtype), x))
        missing = tf.reduce_any(tf.math.is_nan(x), axes)
        return tf.where(missing, tf.zeros([], log_prob.dtype), log_prob)


class NegativeBinomial(_Derived):
    r"""The negative binomial distribution by its mean m and its dispersion d.

    $$ p(x) = \frac{\Gamma(x + r)}{x!\ \Gamma(r)} \Bigl(\frac{r}{r + m}\Bigr)^r
       \Bigl(\frac{m}{r + m}\Bigr)^x, \qquad r = 1 / d, \qquad \mathrm{Var}\,x = m + d m^2 $$

    Args:
      mean: the mean, positive.
      dispersion: what the variance has beyond that of a Poisson, positive.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.
    """

    def __init__(
        self,
        mean: Any,
        dispersion: Any,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "NegativeBinomial",
    ) -> None:
        parameters = dict(locals())
        mean, dispersion = _tensors(mean, dispersion)
        if validate_args:
            tf.debugging.assert_positive(mean, "the mean has to be positive")
            tf.debugging.assert_positive(dispersion, "the dispersion has to be positive")
        self._location, self._dispersion = mean, dispersion
        distribution = tfd.NegativeBinomial(
            total_count=1 / dispersion,
            logits=tf.math.log(mean) + tf.math.log(dispersion),
            require_integer_total_count=False,
            validate_args=validate_args,
        )
        super().__init__(distribution, distribution.dtype, parameters)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> Any:
        low = tf.as_dtype(dtype).as_numpy_dtype(1e-6)  # Where it is next to a Poisson.
        return {
            "mean": _positive(tfb.Exp),
            "dispersion": _positive(lambda: tfb.Softplus(low=low)),
        }

    def _mean(self) -> Any:
        return tf.broadcast_to(self._location, self.batch_shape_tensor())

    def _variance(self) -> Any:
        return self._location + self._dispersion * self._location**2


class OrderedLogistic(tfp.distributions.OrderedLogistic):
    r"""`tfd.OrderedLogistic` with finite log probabilities far from the location, too.

    $$ p(k) = \operatorname{sigmoid}(c_k - \mu) - \operatorname{sigmoid}(c_{k-1} - \mu) $$
    """

    def categorical_log_probs(self) -> Any:
        """Log probabilities of the grades, `[..., K]`."""
        cutpoints = self.cutpoints - self.loc[..., None]
        # Cutpoints that rounding makes equal leave next to no probability, but not none.
        steps = tf.maximum(cutpoints[..., 1:] - cutpoints[..., :-1], 1e-30)
        inner = tfp.math.log1mexp(steps)
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): nothing cancels.
        end = tf.zeros_like(cutpoints[..., :1])
        below = tf.concat([tf.math.log_sigmoid(cutpoints), end], -1)
        above = tf.concat([end, tf.math.log_sigmoid(-cutpoints)], -1)
        return below + above + tf.concat([end, inner, end], -1)


class DiscretizedLogistic(tfp.distributions.Distribution):
    r"""A logistic variable on the scale [-1, 1], rounded to the nearest of L grey levels.

    $$ p(x) = F(v_x + h) - F(v_x - h), \qquad F(v) = \operatorname{sigmoid}\frac{v - \mu}{s},
       \qquad v_x = \frac{2x}{L - 1} - 1, \qquad h = \frac{1}{L - 1} $$

    and the level 0 has all that is below it, the level L - 1 all that is above.

    Args:
      loc: location μ of the logistic variable.
      scale: its scale s.
      num_levels: the number L of grey levels, numbered from 0.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.

    Source: Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the PixelCNN with
    Discretized Logistic Mixture Likelihood and Other Modifications", 2017.
    """

    def __init__(
        self,
        loc: Any,
        scale: Any,
        num_levels: int = 256,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "DiscretizedLogistic",
    ) -> None:
        parameters = dict(locals())
        self._loc, self._scale = _tensors(loc, scale)
        if validate_args:
            tf.debugging.assert_positive(self._scale, "the scale has to be positive")
        self._num_levels = num_levels
        super().__init__(
            dtype=self._loc.dtype,
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> Any:
        low = tf.as_dtype(dtype).as_numpy_dtype(math.exp(-7))  # As in the paper's code.
        return {
            "loc": tfp.util.ParameterProperties(),
            "scale": _positive(lambda: tfb.Softplus(low=low)),
        }

    def _batch_shape(self) -> Any:
        return tf.broadcast_static_shape(self._loc.shape, self._scale.shape)

    def _batch_shape_tensor(self) -> Any:
        return tf.broadcast_dynamic_shape(tf.shape(self._loc), tf.shape(self._scale))

    def _event_shape(self) -> Any:
        return tf.TensorShape([])

    def _event_shape_tensor(self) -> Any:
        return tf.zeros([0], tf.int32)

    def _borders(self, x: Any) -> tuple[Any, Any]:
        """Where the interval of level x begins and ends, in scales from the location."""
        half = 1 / (self._num_levels - 1)
        distance = 2 * half * x - 1 - self._loc
        return (distance - half) / self._scale, (distance + half) / self._scale

    def _log_prob(self, x: Any) -> Any:
        x = tf.cast(x, self.dtype)
        lower, upper = self._borders(x)
        below, above = tf.math.log_sigmoid(upper), tf.math.log_sigmoid(-lower)
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): nothing cancels.
        width = 2 / ((self._num_levels - 1) * self._scale)
        inside = below + above + tfp.math.log1mexp(width)
        return tf.where(x <= 0, below, tf.where(x >= self._num_levels - 1, above, inside))

    def _sample_n(self, n: Any, seed: Any = None) -> Any:
        return self._nearest(tfd.Logistic(self._loc, self._scale).sample(n, seed=seed))

    def _nearest(self, value: Any) -> Any:
        """The grey level nearest to a number on the scale [-1, 1]."""
        last = self._num_levels - 1
        return tf.clip_by_value(tf.round((value + 1) * (last / 2)), 0, last)

    def _mean(self) -> Any:
        return self._sum_over_levels(1, lambda level: tf.sigmoid(-self._borders(level)[0]))

    def _variance(self) -> Any:
        mean = self._mean()
        return self._sum_over_levels(
            0, lambda level: (level - mean) ** 2 * tf.exp(self._log_prob(level))
        )

    def _mode(self) -> Any:
        """The level nearest to the location, or one of the two ends."""
        mode = self._nearest(self._loc + tf.zeros_like(self._scale))
        for end in (0, self._num_levels - 1):
            end = tf.fill(tf.shape(mode), tf.cast(end, self.dtype))
            mode = tf.where(self._log_prob(end) > self._log_prob(mode), end, mode)
        return mode

    def _sum_over_levels(self, first: int, function: Callable[[Any], Any]) -> Any:
        """The sum of a function over the levels, one at a time: all at once fill the memory."""
        _, total = tf.while_loop(
            lambda level, total: level < self._num_levels,
            lambda level, total: (level + 1, total + function(tf.cast(level, self.dtype))),
            (first, tf.zeros_like(self._loc + self._scale)),
            maximum_iterations=self._num_levels - first,
        )
        return total

    def _sample_control_dependencies(self, x: Any) -> Any:
        if not self.validate_args:
            return []
        x, last = tf.cast(x, self.dtype), self._num_levels - 1
        message = f"wanted whole grey levels 0..{last}"
        return [tf.debugging.assert_equal(x, tf.clip_by_value(tf.round(x), 0, last), message)]


class Mixture(_Derived):
    r"""A mixture of distributions of one family, `tfd.MixtureSameFamily` with a mode.

    $$ p(x) = \sum_k \operatorname{softmax}(t)_k\ f_k(x) $$

    The mode is sought among those of the components: it is the one that the mixture finds the most
    probable.

    Args:
      logits: the numbers t `[*batch, K]`.
      components: the distributions f, batch `[*batch, K]`.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.
    """

    def __init__(
        self,
        logits: Any,
        components: Any,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "Mixture",
    ) -> None:
        parameters = dict(locals())
        self._logits, self._components = logits, components
        distribution = tfd.MixtureSameFamily(
            tfd.Categorical(logits=logits), components, validate_args=validate_args
        )
        super().__init__(distribution, distribution.dtype, parameters)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> Any:
        return {
            "logits": tfp.util.ParameterProperties(event_ndims=1),
            "components": tfp.util.BatchedComponentProperties(event_ndims=1),
        }

    def _average(self, values: Any) -> Any:
        """The mean over the components of `[*batch, K, *event]`."""
        # TensorFlow's own softmax refuses six axes on some machines.
        weights = tf.exp(tf.math.log_softmax(self._logits))
        for _ in self.event_shape:
            weights = weights[..., None]
        return tf.reduce_sum(weights * values, axis=-1 - self.event_shape.rank)

    def _mean(self) -> Any:
        return self._average(self._components.mean())

    def _variance(self) -> Any:
        mean = tf.expand_dims(self._mean(), -1 - self.event_shape.rank)
        spread = (self._components.mean() - mean) ** 2
        return self._average(self._components.variance() + spread)

    def _default_event_space_bijector(self) -> Any:
        """Of components over all real numbers the identity; TFP has none for mixtures."""
        bijector = self._components.experimental_default_event_space_bijector()
        if bijector is not None and not isinstance(bijector, tfb.Identity):
            raise NotImplementedError("the bijectors of the components may differ")
        return bijector

    def _mode(self) -> Any:
        modes = self._components.mode()  # [*batch, K, *event]
        axis = modes.shape.rank - self.event_shape.rank - 1
        order = [axis, *(i for i in range(modes.shape.rank) if i != axis)]
        log_prob = self.log_prob(tf.transpose(modes, order))  # [K, *batch]
        return tf.gather(modes, tf.argmax(log_prob, axis=0), axis=axis, batch_dims=axis)


class NormalMixture(Mixture):
    r"""A mixture of normal distributions with independent entries, by its parameters.

    $$ p(x) = \sum_k \operatorname{softmax}(t)_k
       \prod_d \mathcal N(x_d;\ \mu_{kd}, \sigma_{kd}^2) $$

    Args:
      logits: the numbers t `[*batch, K]`.
      loc: the means μ `[*batch, K, *event]`.
      scale: the standard deviations σ, of the same shape.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.
    """

    def __init__(
        self,
        logits: Any,
        loc: Any,
        scale: Any,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "NormalMixture",
    ) -> None:
        parameters = dict(locals())
        logits, loc, scale = _tensors(logits, loc, scale)
        normal = tfd.Normal(loc, scale, validate_args=validate_args)
        components = tfd.Independent(normal, loc.shape.rank - logits.shape.rank)
        super().__init__(logits, components, validate_args, allow_nan_stats, name)
        self._parameters = parameters

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> Any:
        # Of a mixture of numbers: TFP has no way to leave the rank of the event open.
        number = tfp.util.ParameterProperties(event_ndims=1)
        return {"logits": number, "loc": number, "scale": _like(tfd.Normal, "scale", dtype, 1)}


class MultivariateNormalMixture(Mixture):
    r"""A mixture of multivariate normal distributions, by its parameters.

    $$ p(x) = \sum_k \operatorname{softmax}(t)_k\ \mathcal N(x;\ \mu_k, L_k L_k^\top) $$

    Args:
      logits: the numbers t `[*batch, K]`.
      loc: the means μ `[*batch, K, D]`.
      scale_tril: the lower triangular L `[*batch, K, D, D]` with a positive diagonal.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.
    """

    def __init__(
        self,
        logits: Any,
        loc: Any,
        scale_tril: Any,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "MultivariateNormalMixture",
    ) -> None:
        parameters = dict(locals())
        logits, loc, scale_tril = _tensors(logits, loc, scale_tril)
        components = tfd.MultivariateNormalTriL(loc, scale_tril, validate_args=validate_args)
        super().__init__(logits, components, validate_args, allow_nan_stats, name)
        self._parameters = parameters

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> Any:
        return {
            "logits": tfp.util.ParameterProperties(event_ndims=1),
            "loc": tfp.util.ParameterProperties(event_ndims=2),
            "scale_tril": _like(tfd.MultivariateNormalTriL, "scale_tril", dtype, 3),
        }


class MultivariateStudentT(tfp.distributions.MultivariateStudentTLinearOperator):
    r"""Student's t distribution of vectors whose entries have one degree of outlying in common.

    $$ x_d = \mu_d + \sigma_d\, \epsilon_d / \sqrt\lambda, \qquad \epsilon_d \sim \mathcal N(0, 1),
       \qquad \lambda \sim \operatorname{Gamma}(\nu/2, \nu/2) $$

    `tfd.MultivariateStudentTLinearOperator` by numbers in place of an operator.

    Args:
      df: the degrees of freedom ν, `[*batch]`.
      loc: the location μ, `[*batch, D]`.
      scale: the scale σ, `[*batch, D]`.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.
    """

    def __init__(
        self,
        df: Any,
        loc: Any,
        scale: Any,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "MultivariateStudentT",
    ) -> None:
        parameters = dict(locals())
        df, loc, scale = _tensors(df, loc, scale)
        operator = tf.linalg.LinearOperatorDiag(scale, is_non_singular=True)
        super().__init__(df, loc, operator, validate_args, allow_nan_stats, name)
        self._parameters = parameters

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> Any:
        ndims = {"df": 0, "loc": 1, "scale": 1}
        return {name: _like(tfd.StudentT, name, dtype, ndims[name]) for name in ndims}


class ZeroInflated(_Derived):
    r"""Another distribution of counts, with an extra probability π of zero.

    $$ p(x) = \pi\,[x = 0] + (1 - \pi)\, f(x), \qquad \pi = \operatorname{sigmoid}(t) $$

    (The logits of `tfd.Inflated` count twice: there π is the sigmoid of 2t.)

    Args:
      distribution: the other distribution f, of single numbers.
      logits: the numbers t, of the shape of f's batch.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.

    Source: Lambert, "Zero-Inflated Poisson Regression, with an Application to Defects in
    Manufacturing", 1992.
    """

    def __init__(
        self,
        distribution: Any,
        logits: Any,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "ZeroInflated",
    ) -> None:
        parameters = dict(locals())
        self._logits = logits
        super().__init__(distribution, distribution.dtype, parameters)

    def _log_prob(self, x: Any) -> Any:
        counted = tf.math.log_sigmoid(-self._logits) + super()._log_prob(x)
        zero = tfp.math.log_add_exp(tf.math.log_sigmoid(self._logits), counted)
        return tf.where(x == 0, zero, counted)

    def _sample_n(self, n: Any, seed: Any = None) -> Any:
        first, second = tfp.random.split_seed(seed, salt="ZeroInflated")
        empty = tfd.Bernoulli(logits=self._logits, dtype=tf.bool).sample(n, seed=first)
        counts = self.distribution.sample(n, seed=second)
        return tf.where(empty, tf.zeros([], self.dtype), counts)

    def _mean(self) -> Any:
        return tf.sigmoid(-self._logits) * self.distribution.mean()

    def _variance(self) -> Any:
        mean, variance = self.distribution.mean(), self.distribution.variance()
        inflation = tf.sigmoid(self._logits)
        return (1 - inflation) * (variance + inflation * mean**2)

    def _mode(self) -> Any:
        mode = self.distribution.mode()
        zero = tf.zeros_like(mode)
        return tf.where(self._log_prob(zero) >= self._log_prob(mode), zero, mode)


class Concatenated(tfp.distributions.Distribution):
    r"""Independent variables of any kind, one after the other in one vector.

    $$ p(x) = \prod_j f_j(x_j), \qquad x = (x_1, x_2, \dots) $$

    Args:
      distributions: the distributions f of the parts, all of one batch shape.
      dtype: of x. Parts of integers take theirs as floating-point numbers, too.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.
    """

    def __init__(
        self,
        distributions: Any,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "Concatenated",
    ) -> None:
        parameters = dict(locals())
        self._distributions = list(distributions)
        super().__init__(
            dtype=dtype,
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    @property
    def distributions(self) -> list[Any]:
        """The distributions of the parts."""
        return list(self._distributions)

    def join(self, values: Any) -> Any:
        """One vector `[..., *batch, D]` of a value `[..., *batch, *event]` of each part."""
        joined = []
        for part, value in zip(self._distributions, values, strict=True):
            lead = value.shape.rank - part.event_shape.rank
            value = tf.reshape(value, tf.concat([tf.shape(value)[:lead], [_size(part)]], 0))
            joined.append(tf.cast(value, self.dtype))
        return tf.concat(joined, -1)

    def _batch_shape(self) -> Any:
        return self._distributions[0].batch_shape

    def _batch_shape_tensor(self) -> Any:
        return self._distributions[0].batch_shape_tensor()

    def _event_shape(self) -> Any:
        return tf.TensorShape([sum(map(_size, self._distributions))])

    def _event_shape_tensor(self) -> Any:
        return tf.constant(self._event_shape(), tf.int32)

    def _log_prob(self, x: Any) -> Any:
        pieces = tf.split(tf.cast(x, self.dtype), list(map(_size, self._distributions)), axis=-1)
        log_prob = tf.zeros([], self.dtype)
        for part, piece in zip(self._distributions, pieces, strict=True):
            value = tf.reshape(piece, tf.concat([tf.shape(piece)[:-1], part.event_shape], 0))
            value.set_shape(piece.shape[:-1] + part.event_shape)
            log_prob += part.log_prob(tf.cast(value, part.dtype))
        return log_prob

    def _sample_n(self, n: Any, seed: Any = None) -> Any:
        seeds = tfp.random.split_seed(seed, len(self._distributions), salt="Concatenated")
        parts = zip(self._distributions, seeds, strict=True)
        return self.join([part.sample(n, seed=seed) for part, seed in parts])

    def _mean(self) -> Any:
        return self.join([part.mean() for part in self._distributions])

    def _mode(self) -> Any:
        return self.join([part.mode() for part in self._distributions])

    def _variance(self) -> Any:
        return self.join([part.variance() for part in self._distributions])


def leaf(distribution: Any) -> Any:
    """The distribution of one of the independent entries that a distribution is made of."""
    return leaf(distribution.distribution) if _is_independent(distribution) else distribution


def replace_leaf(distribution: Any, function: Callable[[Any], Any]) -> Any:
    """The distribution with that of its independent entries replaced by a function of it."""
    if not _is_independent(distribution):
        return function(distribution)
    inner = replace_leaf(distribution.distribution, function)
    return tfd.Independent(inner, distribution.reinterpreted_batch_ndims)


def _is_independent(distribution: Any) -> bool:
    # tfd.Independent makes objects of another class where its argument is no CompositeTensor.
    return hasattr(distribution, "reinterpreted_batch_ndims")


def _size(distribution: Any) -> int:
    return math.prod(distribution.event_shape)


def _positive(bijector: Callable[[], Any]) -> Any:
    return tfp.util.ParameterProperties(default_constraining_bijector_fn=bijector)


def _like(made: Any, name: str, dtype: Any, event_ndims: int) -> Any:
    """The properties of a parameter that takes the values of one that TFP describes."""
    bijector = made.parameter_properties(dtype)[name].default_constraining_bijector_fn
    return tfp.util.ParameterProperties(
        event_ndims=event_ndims, default_constraining_bijector_fn=bijector
    )


def _tensors(*values: Any) -> list[Any]:
    """Tensors of one floating-point dtype."""
    given = [value.dtype for value in values if hasattr(value, "dtype")]
    dtype = next((tf.as_dtype(d) for d in given if tf.as_dtype(d).is_floating), tf.float32)
    return [tf.convert_to_tensor(value, dtype) for value in values]


# Relaxed z lies in the interior of its range, but is rounded to the border at a low temperature.
# TFP keeps what its draws were made from, see `tfb.Bijector`: that is exact, and is scored. For
# other tensors the nearest number inside stands in.


class _InnerSigmoid(tfp.bijectors.Sigmoid):
    def _inverse(self, y: Any) -> Any:
        info = np.finfo(y.dtype.as_numpy_dtype)
        return super()._inverse(tf.clip_by_value(y, info.tiny, 1.0 - info.epsneg))


class _InnerExp(tfp.bijectors.Exp):
    def _inverse(self, y: Any) -> Any:
        return super()._inverse(tf.maximum(y, np.finfo(y.dtype.as_numpy_dtype).tiny))


class _Relaxed(tfp.distributions.TransformedDistribution):
    """A distribution of z made from y, which is kept where entries are put together, too.

    The mean has no closed form: it is that of 256 draws, always the same, with an error of at most
    1/32 (a standard deviation of z, at most 1/2, by the root of their number).
    """

    def independent(self, ndims: int, **kwargs: Any) -> Any:
        """The distribution with its last `ndims` batch axes as axes of the event.

        `tfd.Independent` would make other tensors of the draws.
        """
        return _Relaxed(
            tfd.Independent(self.distribution, ndims, **kwargs), self.bijector, **kwargs
        )

    def _mean(self, **kwargs: Any) -> Any:
        return tf.reduce_mean(self.sample(256, seed=tf.constant([0, 0])), axis=0)

    def _default_event_space_bijector(self) -> Any:
        if isinstance(self.bijector, _InnerExp):
            return tfb.IteratedSigmoidCentered()
        return self.bijector


class RelaxedBernoulli(_Relaxed):
    r"""TFP's relaxed Bernoulli distribution, whose log_prob of its own draws is finite.

    $$ z = \operatorname{sigmoid}(y), \qquad y \sim \operatorname{Logistic}(t / \tau, 1 / \tau) $$

    A draw is scored through y, also by another distribution of this class, so that the ratio of two
    densities is right where z is rounded to 0 or 1.

    Example:
      >>> q = RelaxedBernoulli(temperature=0.05, logits=20.0)
      >>> z = q.sample(seed=[0, 0])
      >>> float(z), bool(tf.math.is_finite(q.log_prob(z)))
      (1.0, True)
    """

    def __init__(
        self,
        temperature: Any,
        logits: Any = None,
        probs: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "RelaxedBernoulli",
    ) -> None:
        parameters = dict(locals())
        stock = tfd.RelaxedBernoulli(temperature, logits, probs, validate_args)
        scale = 1.0 / stock.temperature
        super().__init__(
            tfd.Logistic(stock.logits_parameter() * scale, scale, validate_args, allow_nan_stats),
            _InnerSigmoid(),
            validate_args=validate_args,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> Any:
        return tfd.RelaxedBernoulli.parameter_properties(dtype, num_classes)


class RelaxedOneHotCategorical(_Relaxed):
    r"""TFP's relaxed one-hot distribution, whose log_prob is finite at the corners of the simplex.

    $$ z = \exp(y), \qquad y = \operatorname{log\,softmax}\bigl((t + g) / \tau\bigr) $$

    with Gumbel variables g. A draw is scored through y, also by another distribution of this class.

    Example:
      >>> q = RelaxedOneHotCategorical(temperature=0.05, logits=[20.0, 0.0])
      >>> bool(tf.math.is_finite(q.log_prob([1.0, 0.0])))
      True
    """

    def __init__(
        self,
        temperature: Any,
        logits: Any = None,
        probs: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "RelaxedOneHotCategorical",
    ) -> None:
        parameters = dict(locals())
        super().__init__(
            tfd.ExpRelaxedOneHotCategorical(
                temperature, logits, probs, validate_args, allow_nan_stats
            ),
            _InnerExp(),
            validate_args=validate_args,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> Any:
        return tfd.RelaxedOneHotCategorical.parameter_properties(dtype, num_classes)


class Chain(tfp.distributions.Distribution):
    r"""Variables of which each depends on the one before, in one vector.

    $$ p(x) = f_1(x_1) \prod_{j > 1} f_j(x_j \mid x_{j-1}), \qquad x = (x_1, x_2, \dots) $$

    Args:
      first: the distribution f_1.
      conditionals: for each other variable the function that makes f_j of values
        `[..., *batch, *event]` of the one before.
      event_shapes: of all variables, from the first on.
      reverse: whether the vector ends with x_1, and not begins.
      reparameterization_type: of all f together.
      dtype: of x. Variables of integers take theirs as floating-point numbers, too.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.
    """

    def __init__(
        self,
        first: Any,
        conditionals: Any,
        event_shapes: Any,
        reverse: bool = False,
        reparameterization_type: Any = tfd.NOT_REPARAMETERIZED,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "Chain",
    ) -> None:
        parameters = dict(locals())
        self._first, self._conditionals = first, tuple(conditionals)
        self._event_shapes = tuple(tuple(shape) for shape in event_shapes)
        self._reverse = reverse
        super().__init__(
            dtype=dtype,
            reparameterization_type=reparameterization_type,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    def factors(self, x: Any) -> list[tuple[Any, Any]]:
        """The distribution f_j at the values x before it, and its value, in the order of x."""
        drawn_by, pairs = getattr(x, "_tfpvae_factors", (None, None))
        if pairs is not None and drawn_by is self._first:
            return pairs
        shapes = self._in_order(self._event_shapes)
        values = self._in_order(split(tf.convert_to_tensor(x, self.dtype), shapes))
        made = [self._first]
        made += [f(value) for f, value in zip(self._conditionals, values, strict=False)]
        pairs = zip(made, values, strict=True)
        return self._in_order([(f, tf.cast(value, f.dtype)) for f, value in pairs])

    def means(self) -> Any:
        """Each variable at its mean given that the one before is at its own: `[*batch, D]`.

        It is the mean only where the means of all f are linear in what they depend on.
        """
        return self._pass_on([lambda f: f.mean()] * len(self._event_shapes))[0]

    def _pass_on(self, choices: Any) -> tuple[Any, list[tuple[Any, Any]]]:
        """The vector of values that are chosen one after the other, each from its f; and both."""
        pairs: list[tuple[Any, Any]] = []
        for conditional, choose in zip((None, *self._conditionals), choices, strict=True):
            if conditional is None:
                f = self._first
            else:
                f = conditional(tf.cast(pairs[-1][1], self.dtype))
            pairs.append((f, choose(f)))
        pairs = self._in_order(pairs)
        flat = map(_flat, (value for _, value in pairs), self._in_order(self._event_shapes))
        return tf.concat([tf.cast(value, self.dtype) for value in flat], axis=-1), pairs

    def _in_order(self, values: Any) -> list[Any]:
        """From the order of the chain to that of x, or back."""
        return list(reversed(values)) if self._reverse else list(values)

    def _batch_shape(self) -> Any:
        return self._first.batch_shape

    def _batch_shape_tensor(self) -> Any:
        return self._first.batch_shape_tensor()

    def _event_shape(self) -> Any:
        return tf.TensorShape([sum(map(math.prod, self._event_shapes))])

    def _event_shape_tensor(self) -> Any:
        return tf.constant(self._event_shape(), tf.int32)

    def _log_prob(self, x: Any) -> Any:
        return sum(tf.cast(f.log_prob(value), self.dtype) for f, value in self.factors(x))

    def _call_sample_n(self, sample_shape: Any, seed: Any) -> Any:
        # Not `_sample_n`, the result of which TFP reshapes. As a bijector of TFP does, the draws
        # know what they were made from: to score them takes no second pass through networks, nor
        # the inverse of a flow. Only inside of functions, as a gradient by x would not see it.
        num = len(self._event_shapes)
        seeds = [seed] if num == 1 else tfp.random.split_seed(seed, num, salt="Chain")
        later = [lambda f, seed=seed: f.sample(seed=seed) for seed in seeds[1:]]
        x, pairs = self._pass_on([lambda f: f.sample(sample_shape, seed=seeds[0]), *later])
        if not tf.executing_eagerly():
            x._tfpvae_factors = self._first, pairs
        return x

    def _mean(self) -> Any:
        raise NotImplementedError(
            "mean: a chain of variables has none in closed form; take the mean of draws, or `means`"
        )

    def _default_event_space_bijector(self) -> Any:
        shape = tf.concat([self.batch_shape_tensor(), self.event_shape], 0)
        found = [
            f.experimental_default_event_space_bijector()
            for f, _ in self.factors(tf.zeros(shape, self.dtype))
        ]
        if None in found or all(isinstance(bijector, tfb.Identity) for bijector in found):
            return None if None in found else tfb.Identity()
        shapes = self._in_order(self._event_shapes)
        if any(len(shape) != 1 for shape in shapes):
            raise NotImplementedError("a chain of bounded variables that are no vectors")
        return tfb.Blockwise(found, block_sizes=[shape[0] for shape in shapes])


def split(vector: Any, event_shapes: Any) -> list[Any]:
    """The values `[..., *event]`, one after the other, that a vector `[..., D]` is made of."""
    pieces = tf.split(vector, [math.prod(shape) for shape in event_shapes], axis=-1)
    return list(map(_unflat, pieces, event_shapes))


def _flat(value: Any, event_shape: tuple[int, ...]) -> Any:
    """Values `[..., *event]` as vectors `[..., D]`."""
    lead = value.shape.rank - len(event_shape)
    flat = tf.reshape(value, tf.concat([tf.shape(value)[:lead], [math.prod(event_shape)]], 0))
    flat.set_shape([*value.shape[:lead], math.prod(event_shape)])
    return flat


def _unflat(vector: Any, event_shape: tuple[int, ...]) -> Any:
    """Vectors `[..., D]` as values `[..., *event]`."""
    value = tf.reshape(vector, tf.concat([tf.shape(vector)[:-1], event_shape], 0))
    value.set_shape(vector.shape[:-1] + event_shape)
    return value


class Implicit(tfp.distributions.Distribution):
    r"""What a network makes of noise: it can be drawn from, and has no density that is known.

    $$ z = f([h, \epsilon]), \qquad \epsilon \sim p(\epsilon) $$

    Draws are reparameterized. `mean`, `variance` and `stddev` are estimates from 64 draws, whose
    noise is always the same and shared by the batch: so they are functions of h, and the error of
    the mean is an eighth of the standard deviation.

    Args:
      context: what is known, h, `[*batch, C]`.
      function: from `[N, C + noise_size]` to `[N, D]`.
      event_shape: of z, of D numbers in all.
      noise_size: how many numbers of noise a draw is made of.
      noise: "normal" for the standard normal, "uniform" for the interval from -1 to 1.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.
    """

    def __init__(
        self,
        context: Any,
        function: Callable[[Any], Any],
        event_shape: Any,
        noise_size: int,
        noise: str = "normal",
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "Implicit",
    ) -> None:
        parameters = dict(locals())
        self._context, self._function = tf.convert_to_tensor(context), function
        self._shape, self._noise_size, self._noise = tuple(event_shape), noise_size, noise
        super().__init__(
            dtype=self._context.dtype,
            reparameterization_type=tfd.FULLY_REPARAMETERIZED,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> Any:
        return {"context": tfp.util.ParameterProperties(event_ndims=1)}

    def _event_shape(self) -> Any:
        return tf.TensorShape(self._shape)

    def _event_shape_tensor(self) -> Any:
        return tf.constant(self._shape, tf.int32)

    def _sample_n(self, n: Any, seed: Any = None) -> Any:
        lead = tf.concat([[n], tf.shape(self._context)[:-1]], 0)
        return self._made_of(self._draw_noise(lead, seed))

    def _draw_noise(self, lead: Any, seed: Any) -> Any:
        """Noise `[*lead, noise_size]`."""
        one, shape = tf.ones([], self.dtype), tf.concat([lead, [self._noise_size]], 0)
        noise = tfd.Normal(0 * one, one) if self._noise == "normal" else tfd.Uniform(-one, one)
        return noise.sample(shape, seed=seed)

    def _made_of(self, noise: Any) -> Any:
        """The z `[n, *batch, *event]` of noise `[n, *batch, noise_size]`, or such as broadcasts."""
        size, context = self._context.shape[-1], self._context
        lead = tf.concat([tf.shape(noise)[:1], tf.shape(context)[:-1]], 0)
        parts = [(context, size), (noise, self._noise_size)]
        both = [tf.broadcast_to(part, tf.concat([lead, [size]], 0)) for part, size in parts]
        inputs = tf.reshape(tf.concat(both, axis=-1), [-1, size + self._noise_size])
        z = tf.cast(self._function(inputs), self.dtype)
        z = tf.reshape(z, tf.concat([lead, self._shape], 0))
        z.set_shape([None, *context.shape[:-1], *self._shape])
        return z

    def moments(self) -> tuple[Any, Any]:
        """The estimates of the mean and of the variance, from one set of draws."""
        lead = [_MOMENT_DRAWS] + [1] * (self._context.shape.rank - 1)
        return tf.nn.moments(self._made_of(self._draw_noise(lead, tf.zeros([2], tf.int32))), axes=0)

    def _mean(self) -> Any:
        return self.moments()[0]

    def _variance(self) -> Any:
        return self.moments()[1]

    def _stddev(self) -> Any:
        return tf.sqrt(self._variance())

    def _log_prob(self, z: Any) -> Any:
        raise NotImplementedError(
            f"log_prob: got {self.name}, which has draws but no known density, wanted another "
            "distribution, as posteriors.Flow or priors.Flow; objectives.AdversarialELBO trains "
            "without it, and for an implicit posterior log p(x) is "
            "log_marginal_likelihood(x, method='ais', proposal='prior')"
        )

    def _default_event_space_bijector(self) -> Any:
        return tfb.Identity()
