"""Likelihoods p(x|z): distribution layers whose value is the mean of x."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, distributions, layers

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Likelihood(layers.DistributionLayer):
    """A likelihood of any tfd class: a `DistributionLayer` whose value is the mean.

    So `predict` of a Keras model that ends in it returns the mean, and no draw is wasted.

    Args:
      distribution: a class of `tfp.distributions` or its name.
      event_shape: shape of x, a tuple or a size.
      convert_to_tensor_fn: what `predict` returns.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> Likelihood("NegativeBinomial", 3).params_size
      6
    """

    def __init__(
        self,
        distribution: Any,
        event_shape: Any = (),
        *,
        convert_to_tensor_fn: Any = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            distribution, event_shape, convert_to_tensor_fn=convert_to_tensor_fn, **kwargs
        )


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Bernoulli(Likelihood):
    r"""Binary entries.

    $$ \log p(x \mid z) = \sum_i x_i \log \pi_i + (1 - x_i) \log (1 - \pi_i),
       \qquad \pi_i = \operatorname{sigmoid}(t_i) $$

    Grey levels in [0, 1] are scored by the same equation, as is usual for images. That is no
    density on [0, 1] (it does not integrate to one); `ContinuousBernoulli` is.

    Shapes: input `[B, prod(event_shape)]` logits, or `[B, H, W, C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      sample_dtype: of the draws, the layer's own if None. With TFP's int32, `log_prob` of a NumPy
        array would cut grey levels to 0 without a word.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> p = Bernoulli(2)(tf.constant([[0.0, 0.0]]))
      >>> p.log_prob([[1.0, 0.0]]).numpy().round(3)  # 2 log(1/2)
      array([-1.386], dtype=float32)
    """

    def __init__(
        self, event_shape: Any = (), *, sample_dtype: str | None = None, **kwargs: Any
    ) -> None:
        sample_dtype = sample_dtype or blocks.full_precision(kwargs.get("dtype"))
        super().__init__(distributions.Bernoulli, event_shape, sample_dtype=sample_dtype, **kwargs)

    def support(self) -> blocks.Block:
        """Grey levels are welcome: the support of the continuous Bernoulli."""
        return ContinuousBernoulli(self.event_shape, name="support")


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class ContinuousBernoulli(Likelihood):
    r"""Entries in [0, 1], such as grey levels.

    $$ p(x \mid z) = \prod_i C(\lambda_i)\, \lambda_i^{x_i} (1 - \lambda_i)^{1 - x_i},
       \qquad \lambda_i = \operatorname{sigmoid}(t_i) $$

    with the C that makes it integrate to one.

    Shapes: input `[B, prod(event_shape)]` logits, or `[B, H, W, C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> p = ContinuousBernoulli(1)(tf.constant([[0.0]]))  # uniform on [0, 1]
      >>> bool(abs(p.log_prob([[0.3]])[0]) < 1e-6)
      True

    Source: Loaiza-Ganem and Cunningham, "The continuous Bernoulli: fixing a pervasive error in
    variational autoencoders", 2019.
    """

    def __init__(self, event_shape: Any = (), **kwargs: Any) -> None:
        super().__init__(tfd.ContinuousBernoulli, event_shape, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Categorical(Likelihood):
    r"""Entries that are one of K classes, numbered from 0.

    $$ \log p(x \mid z) = \sum_i \log \operatorname{softmax}(t_i)_{x_i} $$

    Its value, and so what `predict` returns, is the mode: classes have no mean.

    Shapes: input `[B, prod(event_shape) * K]` logits, or `[B, H, W, C * K]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size; `()` for one label an example.
      num_classes: the number K of classes.
      convert_to_tensor_fn: what `predict` returns.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> p = Categorical(num_classes=3)(tf.zeros([1, 3]))
      >>> p.log_prob([2]).numpy().round(3)  # log(1/3)
      array([-1.099], dtype=float32)
    """

    def __init__(
        self,
        event_shape: Any = (),
        *,
        num_classes: int,
        convert_to_tensor_fn: Any = "mode",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            tfd.Categorical,
            event_shape,
            num_classes=num_classes,
            convert_to_tensor_fn=convert_to_tensor_fn,
            **kwargs,
        )


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Binomial(Likelihood):
    r"""Counts of successes in a known number n of trials, such as grey levels 0..n.

    $$ p(x \mid z) = \prod_i \binom{n}{x_i} \pi_i^{x_i} (1 - \pi_i)^{n - x_i},
       \qquad \pi_i = \operatorname{sigmoid}(t_i) $$

    Shapes: input `[B, prod(event_shape)]` logits, or `[B, H, W, C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      total_count: the number n of trials, one for all entries or one for each.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> p = Binomial(1, total_count=2)(tf.zeros([1, 1]))
      >>> p.log_prob([[1.0]]).numpy().round(3)  # log(1/2)
      array([-0.693], dtype=float32)
    """

    def __init__(self, event_shape: Any = (), *, total_count: Any, **kwargs: Any) -> None:
        super().__init__(tfd.Binomial, event_shape, total_count=total_count, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Normal(Likelihood):
    r"""Real entries, with a mean and a standard deviation for each.

    $$ p(x \mid z) = \prod_i \mathcal N(x_i;\ \mu_i, \sigma_i^2),
       \qquad \sigma_i = \operatorname{softplus}(t_i) $$

    With `scale=0.1` the standard deviation is fixed and the input holds the means alone.

    Shapes: input `[B, 2 * prod(event_shape)]` (loc, then unconstrained scale), or
    `[B, H, W, 2 * C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      **kwargs: `loc` or `scale` to fix one of them, and what `DistributionLayer` takes.

    Example:
      >>> Normal.params_size(784), Normal.params_size(784, scale=0.1)
      (1568, 784)
    """

    def __init__(self, event_shape: Any = (), **kwargs: Any) -> None:
        super().__init__(tfd.Normal, event_shape, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Poisson(Likelihood):
    r"""Counts 0, 1, 2, ...

    $$ p(x \mid z) = \prod_i \frac{\lambda_i^{x_i} e^{-\lambda_i}}{x_i!},
       \qquad \lambda_i = e^{t_i} $$

    Shapes: input `[B, prod(event_shape)]` log rates, or `[B, H, W, C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> p = Poisson(1)(tf.zeros([1, 1]))  # rate 1
      >>> p.log_prob([[0.0]]).numpy()
      array([-1.], dtype=float32)
    """

    def __init__(self, event_shape: Any = (), **kwargs: Any) -> None:
        super().__init__(tfd.Poisson, event_shape, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class StudentT(Likelihood):
    r"""Real entries with outliers: location, scale and degrees of freedom for each.

    $$ p(x \mid z) = \prod_i \frac{1}{\sigma_i}\, t_{\nu_i}\Bigl(\frac{x_i - \mu_i}{\sigma_i}\Bigr),
       \qquad t_\nu(y) \propto \Bigl(1 + \frac{y^2}{\nu}\Bigr)^{-(\nu + 1) / 2} $$

    With `df=4.0` the degrees of freedom ν are fixed. Its value, and so what `predict` returns, is
    the mode, which is loc: below one degree of freedom there is no mean.

    Shapes: input `[B, 3 * prod(event_shape)]` (unconstrained df, loc, unconstrained scale), or
    `[B, H, W, 3 * C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      convert_to_tensor_fn: what `predict` returns.
      **kwargs: `df`, `loc` or `scale` to fix it, and what `DistributionLayer` takes.

    Example:
      >>> StudentT.params_size(10), StudentT.params_size(10, df=4.0)
      (30, 20)
    """

    def __init__(
        self, event_shape: Any = (), *, convert_to_tensor_fn: Any = "mode", **kwargs: Any
    ) -> None:
        super().__init__(
            tfd.StudentT, event_shape, convert_to_tensor_fn=convert_to_tensor_fn, **kwargs
        )


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Laplace(Likelihood):
    r"""Real entries with some outliers: the absolute instead of the squared error.

    $$ p(x \mid z) = \prod_i \frac{1}{2 b_i} e^{-|x_i - \mu_i| / b_i},
       \qquad b_i = \operatorname{softplus}(t_i) $$

    Shapes: input `[B, 2 * prod(event_shape)]` (loc, then unconstrained scale), or
    `[B, H, W, 2 * C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      **kwargs: `loc` or `scale` to fix one of them, and what `DistributionLayer` takes.

    Example:
      >>> p = Laplace(1, scale=0.5)(tf.constant([[3.0]]))
      >>> p.log_prob([[4.0]]).numpy()  # log(1) - 1 / 0.5
      array([-2.], dtype=float32)
    """

    def __init__(self, event_shape: Any = (), **kwargs: Any) -> None:
        super().__init__(tfd.Laplace, event_shape, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Beta(Likelihood):
    r"""Entries strictly between 0 and 1, such as proportions.

    $$ p(x \mid z) = \prod_i \frac{x_i^{a_i - 1} (1 - x_i)^{b_i - 1}}{B(a_i, b_i)},
       \qquad a_i, b_i = \operatorname{softplus}(t_i) $$

    Shapes: input `[B, 2 * prod(event_shape)]` (unconstrained a, concentration1 in TFP, then b,
    concentration0), or `[B, H, W, 2 * C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      **kwargs: `concentration1` or `concentration0` to fix it, and what `DistributionLayer` takes.

    Example:
      >>> p = Beta(1, concentration1=2.0)(tf.constant([[np.log(np.e - 1)]]))  # b = 1
      >>> p.log_prob([[0.5]]).numpy().round(3)  # log(2 x) = 0
      array([0.], dtype=float32)
    """

    def __init__(self, event_shape: Any = (), **kwargs: Any) -> None:
        super().__init__(tfd.Beta, event_shape, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Gamma(Likelihood):
    r"""Positive entries, such as waiting times and amounts.

    $$ p(x \mid z) = \prod_i \frac{\beta_i^{\alpha_i}}{\Gamma(\alpha_i)}\,
       x_i^{\alpha_i - 1} e^{-\beta_i x_i},
       \qquad \alpha_i = \operatorname{softplus}(t_i), \quad \beta_i = e^{u_i} $$

    Shapes: input `[B, 2 * prod(event_shape)]` (unconstrained concentration α, then log_rate u), or
    `[B, H, W, 2 * C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      **kwargs: `concentration`, `log_rate` or `rate` to fix it, and what `DistributionLayer` takes.

    Example:
      >>> p = Gamma(1, concentration=1.0)(tf.zeros([1, 1]))  # the exponential distribution
      >>> p.log_prob([[2.0]]).numpy()
      array([-2.], dtype=float32)
    """

    def __init__(self, event_shape: Any = (), **kwargs: Any) -> None:
        super().__init__(tfd.Gamma, event_shape, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class LogNormal(Likelihood):
    r"""Positive entries whose logarithm is normal.

    $$ p(x \mid z) = \prod_i \frac{1}{x_i}\, \mathcal N(\log x_i;\ \mu_i, \sigma_i^2),
       \qquad \sigma_i = \operatorname{softplus}(t_i) $$

    Shapes: input `[B, 2 * prod(event_shape)]` (loc μ, then unconstrained scale), or
    `[B, H, W, 2 * C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      **kwargs: `loc` or `scale` to fix one of them, and what `DistributionLayer` takes.

    Example:
      >>> p = LogNormal(1, scale=1.0)(tf.zeros([1, 1]))
      >>> p.log_prob([[1.0]]).numpy().round(3)  # -log(2 pi) / 2
      array([-0.919], dtype=float32)
    """

    def __init__(self, event_shape: Any = (), **kwargs: Any) -> None:
        super().__init__(tfd.LogNormal, event_shape, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class OneHotCategorical(Likelihood):
    r"""Classes as vectors of zeros with a single one, along the last axis.

    $$ \log p(x \mid z) = \sum_i \sum_k x_{ik} \log \operatorname{softmax}(t_i)_k $$

    Its value, and so what `predict` returns, are the probabilities of the classes.

    Shapes: input `[B, prod(event_shape)]` logits, or `[B, H, W, C]` from a convolution.

    Args:
      event_shape: shape of x; its last axis is the number of classes.
      sample_dtype: of the draws, the layer's own if None.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> p = OneHotCategorical(3)(tf.zeros([1, 3]))
      >>> p.log_prob([[0.0, 1.0, 0.0]]).numpy().round(3)  # log(1/3)
      array([-1.099], dtype=float32)
    """

    def __init__(self, event_shape: Any, *, sample_dtype: str | None = None, **kwargs: Any) -> None:
        sample_dtype = sample_dtype or blocks.full_precision(kwargs.get("dtype"))
        super().__init__(tfd.OneHotCategorical, event_shape, sample_dtype=sample_dtype, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Ordinal(Likelihood):
    r"""Entries that are one of K ordered grades, numbered from 0.

    $$ P(x_i \le k \mid z) = \operatorname{sigmoid}(c_{ik} - \mu_i),
       \qquad c_{i0} < c_{i1} < \dots < c_{i, K-2} $$

    A logistic variable with location μ is cut at c. Its value, and so what `predict` returns, is
    the mode: grades have no mean.

    Shapes: input `[B, prod(event_shape) * K]`: for each entry its first cutpoint and the logarithms
    of the K - 2 steps to the others, then the locations of all entries; or `[B, H, W, C * K]` from
    a convolution.

    Args:
      event_shape: shape of x, a tuple or a size; `()` for one grade an example.
      num_classes: the number K of grades, at least 2.
      convert_to_tensor_fn: what `predict` returns.
      **kwargs: `cutpoints` or `loc` to fix one of them, and what `DistributionLayer` takes.

    Raises:
      ValueError: for fewer than two grades.

    Example:
      >>> p = Ordinal(num_classes=3, cutpoints=[-1.0, 1.0])(tf.constant([[1.0]]))
      >>> p.log_prob([2]).numpy().round(3)  # log(1/2): the last cutpoint is at the location
      array([-0.693], dtype=float32)

    Source: McCullagh, "Regression Models for Ordinal Data", 1980.
    """

    def __init__(
        self,
        event_shape: Any = (),
        *,
        num_classes: int,
        convert_to_tensor_fn: Any = "mode",
        **kwargs: Any,
    ) -> None:
        if checks.positive_integer("num_classes", num_classes) < 2:
            raise ValueError(f"num_classes: got {num_classes}, wanted at least 2 grades")
        super().__init__(
            distributions.OrderedLogistic,
            event_shape,
            num_classes=num_classes,
            convert_to_tensor_fn=convert_to_tensor_fn,
            **kwargs,
        )


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Multinomial(Likelihood):
    r"""Vectors of K counts with a known sum n, such as the words of a document.

    $$ p(x \mid z) = \prod_i \frac{n_i!}{\prod_k x_{ik}!} \prod_k \pi_{ik}^{x_{ik}},
       \qquad \pi_i = \operatorname{softmax}(t_i) $$

    Shapes: input `[B, prod(event_shape)]` logits, or `[B, H, W, C]` from a convolution.

    Args:
      event_shape: shape of x; the counts along its last axis add up to n.
      total_count: the sum n, one for all vectors or one for each.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> p = Multinomial(2, total_count=2)(tf.zeros([1, 2]))
      >>> p.log_prob([[1.0, 1.0]]).numpy().round(3)  # log(1/2)
      array([-0.693], dtype=float32)
    """

    def __init__(self, event_shape: Any, *, total_count: Any, **kwargs: Any) -> None:
        super().__init__(tfd.Multinomial, event_shape, total_count=total_count, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class DirichletMultinomial(Likelihood):
    r"""Vectors of K counts with a known sum n that vary more than those of a multinomial.

    $$ p(x \mid z) = \prod_i \frac{n_i!}{\prod_k x_{ik}!}
       \frac{B(\alpha_i + x_i)}{B(\alpha_i)},
       \qquad \alpha_i = \operatorname{softplus}(t_i) $$

    with the multivariate beta function B: a multinomial whose probabilities are a draw of a
    Dirichlet distribution.

    Shapes: input `[B, prod(event_shape)]`, or `[B, H, W, C]` from a convolution.

    Args:
      event_shape: shape of x; the counts along its last axis add up to n.
      total_count: the sum n, one for all vectors or one for each.
      **kwargs: what `DistributionLayer` takes.

    Example:
      >>> one = tf.fill([1, 2], np.float32(np.log(np.e - 1)))  # softplus(t) = 1
      >>> p = DirichletMultinomial(2, total_count=2)(one)
      >>> p.log_prob([[1.0, 1.0]]).numpy().round(3)  # all of 0, 1, 2 are alike: log(1/3)
      array([-1.099], dtype=float32)
    """

    def __init__(self, event_shape: Any, *, total_count: Any, **kwargs: Any) -> None:
        super().__init__(tfd.DirichletMultinomial, event_shape, total_count=total_count, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class NegativeBinomial(Likelihood):
    r"""Counts 0, 1, 2, ... that vary more than those of a Poisson distribution.

    $$ \mathbb E[x_i] = m_i, \qquad \mathrm{Var}[x_i] = m_i + d_i m_i^2,
       \qquad m_i = e^{t_i}, \quad d_i = \operatorname{softplus}(u_i) $$

    with the density of `distributions.NegativeBinomial`. As the dispersion d goes to 0 it becomes
    a Poisson distribution.

    Shapes: input `[B, 2 * prod(event_shape)]` (log mean t, then unconstrained dispersion u), or
    `[B, H, W, 2 * C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      **kwargs: `mean` or `dispersion` to fix one of them, and what `DistributionLayer` takes.

    Example:
      >>> p = NegativeBinomial(1, dispersion=0.5)(tf.constant([[np.log(2.0)]]))
      >>> p.mean().numpy(), p.variance().numpy()  # 2 and 2 + 0.5 * 2**2
      (array([[2.]], dtype=float32), array([[4.]], dtype=float32))

    Source: Hilbe, "Negative Binomial Regression", 2011.
    """

    def __init__(self, event_shape: Any = (), **kwargs: Any) -> None:
        super().__init__(distributions.NegativeBinomial, event_shape, **kwargs)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class DiscretizedLogistic(Likelihood):
    r"""Grey levels 0..L-1 of images: a logistic variable on [-1, 1], rounded to the nearest level.

    $$ p(x \mid z) = \prod_i \operatorname{sigmoid}\frac{v_i + h - \mu_i}{s_i}
       - \operatorname{sigmoid}\frac{v_i - h - \mu_i}{s_i},
       \qquad v_i = \frac{2 x_i}{L - 1} - 1, \quad h = \frac{1}{L - 1} $$

    where the level 0 has all that is below it, the level L - 1 all that is above. Numbers 0 in the
    input mean the middle grey and a wide scale; the scale is softplus(t) + exp(-7). This is a
    probability of the bytes of an image: `-log_prob / log(2) / prod(event_shape)` are its bits per
    dimension.

    Shapes: x `[B, *event_shape]`, whole numbers of any dtype; input `[B, 2 * prod(event_shape)]`
    (loc μ, then unconstrained scale s), or `[B, H, W, 2 * C]` from a convolution.

    Args:
      event_shape: shape of x, a tuple or a size.
      num_levels: the number L of grey levels, at least 2.
      **kwargs: `loc` or `scale` on the scale [-1, 1] to fix one of them, and what
        `DistributionLayer` takes.

    Raises:
      TypeError, ValueError: for fewer than two levels.

    Example:
      >>> p = DiscretizedLogistic(1, scale=0.5)(tf.zeros([1, 1]))
      >>> p.mean().numpy().round(1)
      array([[127.5]], dtype=float32)
      >>> DiscretizedLogistic(2).check_values(np.array([[0.0, 0.5]]))
      Traceback (most recent call last):
      ...
      ValueError: x: got values from 0 to 0.5, outside the support of DiscretizedLogistic (wanted
      whole grey levels 0..255)

    Source: Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the PixelCNN with
    Discretized Logistic Mixture Likelihood and Other Modifications", 2017.
    """

    def __init__(self, event_shape: Any = (), *, num_levels: int = 256, **kwargs: Any) -> None:
        if checks.positive_integer("num_levels", num_levels) < 2:
            raise ValueError(f"num_levels: got {num_levels}, wanted at least 2 grey levels")
        super().__init__(
            distributions.DiscretizedLogistic, event_shape, num_levels=num_levels, **kwargs
        )


# Likelihoods that are made of others.


class _Wrapper(blocks.Block):
    """A likelihood that is made of another one, its component.

    Its free parameters are those of the component, and possibly more.
    """

    parts = ("component",)

    def __init__(
        self,
        component: Any,
        event_shape: Any,
        *,
        convert_to_tensor_fn: Any = None,
        num_samples: int | None = None,
        **kwargs: Any,
    ) -> None:
        dtype = _dtype_of({"component": component}, kwargs.pop("dtype", None))
        conversion = component.conversion
        if convert_to_tensor_fn is not None or num_samples is not None:
            name = convert_to_tensor_fn or conversion.name
            conversion = blocks.Conversion(name, num_samples)
        super().__init__(event_shape, conversion, dtype=dtype, **kwargs)
        # Past Keras's tracking: the component is never called, and has no weights.
        object.__setattr__(self, "_component", component)

    @property
    def component(self) -> Any:
        """The other likelihood."""
        return self._component

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """Those of the component."""
        return self.component.free

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        config = super().get_config()
        del config["event_shape"]  # It follows from the component's.
        return config | {"component": keras.saving.serialize_keras_object(self.component)}

    def title(self) -> str:
        """What errors call the layer: `Masked Normal`."""
        return f"{type(self).__name__} {self.component.title()}"


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class MixtureOf(_Wrapper):
    r"""A mixture of K likelihoods of one kind.

    $$ p(x \mid z) = \prod_i \sum_{k=1}^K \operatorname{softmax}(t_i)_k\, f(x_i;\ \theta_{ik}) $$

    Each entry i of `event_shape` is a mixture of its own, of the component's events: `MixtureOf(
    DiscretizedLogistic(), 10, event_shape=(28, 28, 1))` is the likelihood of PixelCNN++, in which
    every pixel chooses among ten. `MixtureOf(Normal(784), 5)` mixes whole vectors.

    Its value, and so what `predict` returns, is what that of the component is: the mean, for most.
    Where that is the mode, as for `Categorical`, it is the one of the components' modes that the
    mixture finds the most probable; so it is for `Columns`.

    Shapes: x `[B, *event_shape, *component.event_shape]`; the parameters are `mixture_logits`
    `[*event_shape, K]` and those of the component, `[*event_shape, K, *shape]`, flat one after the
    other, or as channels of a convolution's output if `event_shape` holds the pixels.

    Args:
      component: the likelihood block f of the components.
      num_components: the number K of components.
      event_shape: shape of the entries that are mixed independently, a tuple or a size.
      **kwargs: `convert_to_tensor_fn`, `num_samples`, and arguments of any Keras layer.

    Raises:
      TypeError: if the component is no block.
      ValueError: if it has no free parameters.

    Example:
      >>> pixels = MixtureOf(DiscretizedLogistic(), 10, event_shape=(28, 28, 1))
      >>> pixels(tf.zeros([2, 28, 28, 30])).log_prob(tf.zeros([2, 28, 28, 1])).shape
      TensorShape([2])
      >>> MixtureOf(Normal(784), 5).params_size  # 5 logits, and loc and scale for each
      7845

    Source: Bishop, "Mixture Density Networks", 1994.
    """

    def __init__(
        self, component: Any, num_components: int, event_shape: Any = (), **kwargs: Any
    ) -> None:
        _check_block("component", component)
        if component.conversion.name is None:
            kwargs.setdefault("convert_to_tensor_fn", "mode")
        self._num_components = checks.positive_integer("num_components", num_components)
        self._mixed_shape = blocks.as_shape("event_shape", event_shape)
        super().__init__(component, self._mixed_shape + component.event_shape, **kwargs)
        self.complete()

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """The logits of the mixture, and what the component needs for each of the K."""
        shape = (*self._mixed_shape, self._num_components)
        self._logits = _new_name("mixture_logits", self.component.free)
        return (
            blocks.Parameter(self._logits, tfp.bijectors.Identity(), shape),
            *(p._replace(shape=shape + p.shape) for p in self.component.free),
        )

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from its free parameters; `kwargs` go to its constructor."""
        rest = {name: value for name, value in parameters.items() if name != self._logits}
        components = self.component.build_distribution(rest, **kwargs)
        mixture = distributions.Mixture(parameters[self._logits], components, **kwargs)
        return blocks.independent(mixture, len(self._mixed_shape), **kwargs)

    def check_values(self, values: Any, argument: str = "x") -> None:
        """Check that a data set has the event's shape and lies in the component's support."""
        array = checks.as_array(argument, values)
        checks.check_shape(self, array, argument)
        self.component.check_values(array.reshape(-1, *self.component.event_shape), argument)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        shape = {"num_components": self._num_components, "event_shape": list(self._mixed_shape)}
        return super().get_config() | shape

    def masked(self) -> "MixtureOf | None":
        """The same with the component masked, None where entries are masked one by one."""
        if not self.component.event_shape:
            return None
        component = Masked(self.component, name="component")
        return MixtureOf(component, self._num_components, self._mixed_shape, name="masked")


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class ZeroInflated(_Wrapper):
    r"""Counts that are zero more often than another likelihood says.

    $$ p(x \mid z) = \prod_i \pi_i\,[x_i = 0] + (1 - \pi_i)\, f(x_i),
       \qquad \pi_i = \operatorname{sigmoid}(t_i) $$

    Shapes: those of the component, and one more parameter `zero_logits` t of the event's shape,
    which comes last: input `[B, component.params_size + prod(event_shape)]`, or one more channel
    for each of x from a convolution.

    Args:
      component: the likelihood f of counts, with independent entries: `Poisson`,
        `NegativeBinomial`, `Binomial`.
      **kwargs: `convert_to_tensor_fn`, `num_samples`, and arguments of any Keras layer.

    Raises:
      TypeError: if the component is no block.
      ValueError: if it has no free parameters, or its values are no counts: with an extra
        probability of zero, a density is none.

    Example:
      >>> p = ZeroInflated(Poisson(1))(tf.zeros([1, 2]))  # rate 1, probability 1/2
      >>> np.exp(p.log_prob([[0.0]])).round(3)  # 1/2 + exp(-1) / 2
      array([0.684], dtype=float32)

    Source: Lambert, "Zero-Inflated Poisson Regression, with an Application to Defects in
    Manufacturing", 1992.
    """

    def __init__(self, component: Any, **kwargs: Any) -> None:
        _check_block("component", component)
        super().__init__(component, component.event_shape, **kwargs)
        with tf.init_scope():
            _check_counts(component)
        self.complete()

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """Those of the component, then the logits of the extra probability."""
        self._logits = _new_name("zero_logits", self.component.free)
        own = blocks.Parameter(self._logits, tfp.bijectors.Identity(), self.event_shape)
        return (*self.component.free, own)

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from its free parameters; `kwargs` go to its constructor."""
        rest = {name: value for name, value in parameters.items() if name != self._logits}
        return distributions.replace_leaf(
            self.component.build_distribution(rest, **kwargs),
            lambda leaf: distributions.ZeroInflated(leaf, parameters[self._logits], **kwargs),
        )

    def check_values(self, values: Any, argument: str = "x") -> None:
        """Check that a data set has the event's shape and lies in the component's support."""
        self.component.check_values(values, argument)


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Columns(blocks.Block):
    r"""Columns of several kinds, as in a table: a likelihood for each.

    $$ p(x \mid z) = \prod_j f_j(x_j), \qquad x = (x_1, x_2, \dots) $$

    Each block takes as many numbers of the vector x as its event has; one with the event shape
    `()` takes one. Its value, and so what `predict` returns, is each block's own: the mean, or the
    mode of classes.

    Shapes: x `[B, D]` with `D = sum(prod(block.event_shape))`, floating-point numbers whatever the
    column; input `[B, sum(block.params_size)]`, the parameters of one column after those of the
    other, named `column.parameter`.

    Args:
      columns: the likelihood blocks by the names of their columns, or a list of them.
      names: of a list's columns, their numbers if None.
      convert_to_tensor_fn: what `predict` returns, each block's own value if None.
      num_samples: with `"sample"`, how many draws.
      **kwargs: arguments of any Keras layer.

    Raises:
      TypeError: if they are no dict or list, or one of the columns is no block.
      ValueError: if there are none, names do not fit, or a block has no free parameters or passes
        several draws on.

    Example:
      >>> table = Columns({
      ...     "height": Normal(), "visits": Poisson(), "colour": Categorical(num_classes=3)
      ... })
      >>> table.params_size  # 2 + 1 + 3
      6
      >>> table.check_values(np.array([[1.7, 0.5, 2.0]]))
      Traceback (most recent call last):
      ...
      ValueError: x, column 'visits': got values from 0.5 to 0.5, outside the support of Poisson...
    """

    parts = ("columns",)

    def __init__(
        self,
        columns: Any,
        names: Any = None,
        *,
        convert_to_tensor_fn: Any = None,
        num_samples: int | None = None,
        **kwargs: Any,
    ) -> None:
        found = _named_columns(columns, names)
        dtype = _dtype_of(found, kwargs.pop("dtype", None))
        conversion: blocks.Conversion = _OwnValues([b.conversion for b in found.values()])
        if convert_to_tensor_fn is not None or num_samples is not None:
            conversion = blocks.Conversion(convert_to_tensor_fn or "sample", num_samples)
        size = sum(math.prod(block.event_shape) for block in found.values())
        super().__init__(size, conversion, dtype=dtype, **kwargs)
        # Past Keras's tracking: the blocks are never called, and have no weights.
        object.__setattr__(self, "_columns", found)
        self.complete()

    @property
    def columns(self) -> dict[str, Any]:
        """The likelihood blocks by the names of their columns."""
        return dict(self._columns)

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """Those of all blocks, each with the name of its column in front."""
        return tuple(
            parameter._replace(name=f"{name}.{parameter.name}")
            for name, block in self._columns.items()
            for parameter in block.free
        )

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from its free parameters; `kwargs` go to its constructor."""
        parts = []
        for name, block in self._columns.items():
            own = {p.name: parameters[f"{name}.{p.name}"] for p in block.free}
            parts.append(block.build_distribution(own, **kwargs))
        return distributions.Concatenated(parts, tf.as_dtype(self.dtype), **kwargs)

    def check_values(self, values: Any, argument: str = "x") -> None:
        """Check each column by its own block; an error names the column."""
        array = checks.as_array(argument, values)
        checks.check_shape(self, array, argument)
        sizes = [math.prod(block.event_shape) for block in self._columns.values()]
        pieces = np.split(array, np.cumsum(sizes)[:-1], axis=1)
        for (name, block), piece in zip(self._columns.items(), pieces, strict=True):
            piece = piece.reshape(-1, *block.event_shape)
            block.check_values(piece, f"{argument}, column {name!r}")

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        config = super().get_config()
        del config["event_shape"]  # It follows from the columns'.
        # Not by name: JSON may be written with its names sorted.
        serialized = [keras.saving.serialize_keras_object(b) for b in self._columns.values()]
        return config | {"columns": serialized, "names": list(self._columns)}

    def masked(self) -> "Columns":
        """The same with each of the columns masked."""
        columns = [Masked(block, name="column") for block in self._columns.values()]
        return Columns(columns, list(self._columns), name="masked")


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Masked(_Wrapper):
    r"""Another likelihood, of data in which entries are missing: what is NaN counts for nothing.

    $$ \log p(x^{\text{obs}} \mid z) = \sum_{i\ \text{observed}} \log p(x_i \mid z) $$

    This is the marginal likelihood of what was observed, whichever entries those are, so a VAE
    trains on incomplete data if the gaps say nothing about the values (missing at random). Its
    encoder begins with `networks.FillMissing`; `VAE.impute` fills the gaps. In a mixture of whole
    vectors each component is masked, which is the marginal likelihood of the mixture, too.

    Shapes: those of the component; x are floating-point numbers, classes and counts too. An event
    of several numbers that belong together, such as a one-hot vector, is there or missing as a
    whole.

    Args:
      component: the likelihood of complete data.
      **kwargs: `convert_to_tensor_fn`, `num_samples`, and arguments of any Keras layer.

    Raises:
      TypeError: if the component is no block.
      ValueError: if it has no free parameters.

    Example:
      >>> p = Masked(Normal(2, scale=1.0))(tf.zeros([1, 2]))
      >>> p.log_prob([[0.0, float("nan")]]).numpy().round(3)  # -log(2 pi) / 2
      array([-0.919], dtype=float32)

    Source: Mattei and Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete
    Data Sets", 2019.
    """

    def __init__(self, component: Any, **kwargs: Any) -> None:
        _check_block("component", component)
        super().__init__(component, component.event_shape, **kwargs)
        inner = component.masked() if isinstance(component, (Columns, MixtureOf)) else None
        object.__setattr__(self, "_inner", inner)  # Past Keras's tracking.
        if inner is None:
            with tf.init_scope():
                self._placeholder = _typical(distributions.leaf(_at_zero(component)))
        self.complete()

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from the component's parameters."""
        if self._inner is not None:
            return self._inner.build_distribution(parameters, **kwargs)
        dtype = tf.as_dtype(self.dtype)
        return distributions.replace_leaf(
            self.component.build_distribution(parameters, **kwargs),
            lambda leaf: distributions.Missing(leaf, self._placeholder, dtype, **kwargs),
        )

    def check_values(self, values: Any, argument: str = "x") -> None:
        """Check what is there; NaN stands for what is not."""
        if self._inner is not None:
            return self._inner.check_values(values, argument)
        array = checks.as_array(argument, values)
        checks.check_shape(self, array, argument)
        missing = np.isnan(array)
        ndims = distributions.leaf(_at_zero(self.component)).event_shape.rank
        whole = missing.all(axis=tuple(range(-ndims, 0)), keepdims=True) if ndims else missing
        if (missing & ~whole).any():
            raise ValueError(
                f"{argument}: got events of {self.component.title()} of which a part is NaN, "
                "wanted each whole or missing as a whole: set all of its numbers to NaN"
            )
        return self.component.check_values(np.where(missing, self._placeholder, array), argument)


class _OwnValues(blocks.Conversion):
    """Each column's own value."""

    def __init__(self, conversions: list[blocks.Conversion]) -> None:
        super().__init__("sample", None)
        self.name, self._conversions = None, conversions

    def __call__(self, distribution: Any) -> Any:
        """The value."""
        parts = zip(self._conversions, distribution.distributions, strict=True)
        return distribution.join([conversion(part) for conversion, part in parts])


def _check_block(argument: str, block: Any) -> None:
    if not isinstance(block, blocks.Block):
        raise TypeError(f"{argument}: got {block!r}, wanted a block such as likelihoods.Normal(3)")
    if block.weights:
        raise TypeError(f"{argument}: got {block!r}, a prior, wanted a block without weights")
    if not block.free:
        raise ValueError(
            f"{argument}: got {block.title()} with all of its parameters fixed, wanted a free one: "
            "there is nothing to learn"
        )


def _dtype_of(found: dict[str, Any], wanted: Any) -> str:
    """The one precision of all blocks."""
    dtypes = {name: block.dtype for name, block in found.items()}
    if wanted is not None:
        dtypes["dtype"] = blocks.full_precision(wanted)
    if len(set(dtypes.values())) > 1:
        raise ValueError(f"dtype: got {dtypes}, wanted one precision for all")
    return next(iter(dtypes.values()))


def _new_name(name: str, parameters: tuple[blocks.Parameter, ...]) -> str:
    """The name, with `outer_` in front where a mixture of mixtures has it already."""
    while name in {parameter.name for parameter in parameters}:
        name = f"outer_{name}"
    return name


def _named_columns(columns: Any, names: Any) -> dict[str, Any]:
    if isinstance(columns, Mapping):
        if names is not None:
            raise ValueError(f"names: got {names!r} beside named columns, wanted None")
        columns, names = list(columns.values()), list(columns)
    if not isinstance(columns, (list, tuple)):
        raise TypeError(f"columns: got {columns!r}, wanted a dict or a list of blocks")
    names = (
        [str(i) for i in range(len(columns))]
        if names is None
        else checks.sequence("names", names, "a list of strings")
    )
    if not columns:
        raise ValueError("columns: got none, wanted at least one block")
    if len(set(names)) != len(columns) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"names: got {names!r}, wanted {len(columns)} different strings, one for each column"
        )
    found = dict(zip(names, columns, strict=True))
    for name, block in found.items():
        _check_block(f"columns: {name!r}", block)
        if block.num_samples is not None:
            raise ValueError(
                f"columns: {name!r}: got a block with num_samples={block.num_samples}, wanted one "
                "without: give num_samples to Columns"
            )
    return found


def _check_counts(component: Any) -> None:
    """Raise ValueError unless the entries are independent and whole numbers."""
    inner = component
    while isinstance(inner, _Wrapper):
        if isinstance(inner, Masked):
            raise ValueError(
                f"component: got {component.title()}, wanted Masked outermost: "
                "Masked(ZeroInflated(...))"
            )
        inner = inner.component
    leaf = distributions.leaf(_at_zero(component))
    if leaf.event_shape.rank:
        raise ValueError(
            f"component: got {component.title()}, wanted independent entries, such as "
            "likelihoods.Poisson"
        )
    draws = leaf.sample(100, seed=[0, 0]).numpy()
    if (draws != np.floor(draws)).any():
        raise ValueError(
            f"component: got {component.title()}, whose values are no counts, wanted counts, such "
            "as likelihoods.Poisson: with an extra probability of zero, a density is none"
        )


def _at_zero(block: Any) -> Any:
    """The distribution of a block whose unconstrained numbers are zero."""
    return block.new(tf.zeros([block.params_size], block.dtype))


def _typical(leaf: Any) -> np.ndarray:
    """Values in the support, away from its borders, where a density may be infinite."""
    draws = leaf.sample(15, seed=[0, 0]).numpy()
    # The median of an odd number of draws is one of them.
    return draws[0] if leaf.event_shape.rank else np.median(draws, axis=0)
