"""Likelihoods p(x|z): distribution layers whose value is the mean of x."""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, distributions, layers, serialization

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
        super().__init__(tfd.Bernoulli, event_shape, sample_dtype=sample_dtype, **kwargs)

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


class _Wrapper(blocks.Block):
    """A likelihood that is made of another one, its component.

    Its free parameters are those of the component, and possibly more.
    """

    parts = ("component",)

    def __init__(self, component: Any, event_shape: Any, conversion: Any, **kwargs: Any) -> None:
        if not isinstance(component, blocks.Block):
            raise TypeError(
                f"component: got {component!r}, wanted a block such as likelihoods.Normal(3)"
            )
        super().__init__(event_shape, conversion, **kwargs)
        self.component = component

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """Those of the component."""
        return self.component.free

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        own = {"event_shape", "convert_to_tensor_fn"} - {*serialization.signature(type(self))}
        config = {name: value for name, value in super().get_config().items() if name not in own}
        return config | {"component": keras.saving.serialize_keras_object(self.component)}

    def title(self) -> str:
        """What errors call the layer: `Masked Normal`."""
        return f"{type(self).__name__} {self.component.title()}"


@keras.saving.register_keras_serializable("tfpvae.likelihoods")
class Masked(_Wrapper):
    r"""Another likelihood, of data in which entries are missing: what is NaN counts for nothing.

    $$ \log p(x^{\text{obs}} \mid z) = \sum_{i\ \text{observed}} \log p(x_i \mid z) $$

    This is the marginal likelihood of what was observed, whichever entries those are, so a VAE
    trains on incomplete data if the gaps say nothing about the values (missing at random). Its
    encoder begins with `networks.FillMissing`; `VAE.impute` fills the gaps.

    Shapes: those of the component. An event of several numbers that belong together, such as a
    one-hot vector, is there or missing as a whole.

    Args:
      component: the likelihood of complete data.
      **kwargs: arguments of any Keras layer.

    Raises:
      TypeError: if the component is no block.

    Example:
      >>> p = Masked(Normal(2, scale=1.0))(tf.zeros([1, 2]))
      >>> p.log_prob([[0.0, float("nan")]]).numpy().round(3)  # -log(2 pi) / 2
      array([-0.919], dtype=float32)

    Source: Mattei and Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete
    Data Sets", 2019.
    """

    def __init__(self, component: Any, **kwargs: Any) -> None:
        shape, conversion = (
            getattr(component, "event_shape", ()),
            getattr(component, "conversion", None),
        )
        super().__init__(component, shape, conversion, **kwargs)
        with tf.init_scope():  # Draws are values of the support.
            zeros = component.new(tf.zeros([component.params_size], self.dtype))
            self._placeholders = [
                leaf.sample(seed=[0, 0]).numpy() for leaf in distributions.leaves(zeros)
            ]
        self.complete()

    def build_distribution(self, parameters: dict[str, Any], **kwargs: Any) -> Any:
        """The distribution, from the component's parameters."""
        placeholders = iter(self._placeholders)
        return distributions.replace_leaves(
            self.component.build_distribution(parameters, **kwargs),
            lambda leaf: distributions.Missing(leaf, next(placeholders), **kwargs),
        )

    def check_values(self, values: Any, argument: str = "x") -> None:
        """Check what is there; NaN stands for what is not."""
        array = checks.as_array(argument, values)
        checks.check_shape(self, array, argument)
        if array.dtype.kind != "f":
            return self.component.check_values(array, argument)
        missing = np.isnan(array)
        ndims = distributions.leaves(self.component.new(self._zeros()))[0].event_shape.rank
        whole = missing.all(axis=tuple(range(-ndims, 0)), keepdims=True) if ndims else missing
        if (missing & ~whole).any():
            raise ValueError(
                f"{argument}: got events of {self.component.title()} of which a part is NaN, "
                "wanted each whole or missing as a whole: set all of its numbers to NaN"
            )
        placeholder = np.broadcast_to(self._placeholders[0], array.shape[1:])
        return self.component.check_values(np.where(missing, placeholder, array), argument)

    def _zeros(self) -> Any:
        return tf.zeros([self.component.params_size], self.dtype)
