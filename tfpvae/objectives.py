"""Objectives: what training minimizes, as a function of the terms of each example."""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfpvae import regularizers


@keras.saving.register_keras_serializable("tfpvae")
class ELBO:
    r"""The negative evidence lower bound.

    $$ -\mathrm{ELBO}(x) = \mathbb E_{q(z \mid x)}[-\log p(x \mid z)]
       + w\, \mathrm{KL}\bigl(q(z \mid x)\ \|\ p(z)\bigr) \;\ge\; -\log p(x)
       \quad \text{for } w = 1 $$

    Args:
      kl_weight: the factor w, a number or a `tf.Variable(..., trainable=False)` that a callback
        changes. With w != 1 the loss is no bound on -log p(x); `nll + kl` still is.
      use_exact_kl: None for the closed form of the KL where TFP has one and Monte Carlo otherwise,
        True for the closed form or an error, False for Monte Carlo.

    Raises:
      TypeError, ValueError: for a weight that is no number, negative, or trainable.

    Example:
      >>> float(ELBO(kl_weight=0.5)(nll=100.0, kl=10.0))
      105.0

    Source: Jordan et al., "An Introduction to Variational Methods for Graphical Models", 1999;
    Kingma and Welling, "Auto-Encoding Variational Bayes", 2014.
    """

    def __init__(self, kl_weight: Any = 1.0, use_exact_kl: bool | None = None) -> None:
        regularizers.check_weight("kl_weight", kl_weight)
        self._kl_weight, self._use_exact_kl = kl_weight, use_exact_kl

    @property
    def kl_weight(self) -> Any:
        """The factor of the KL; assign to it if it is a variable."""
        return self._kl_weight

    @property
    def use_exact_kl(self) -> bool | None:
        """Whether the KL is taken in closed form."""
        return self._use_exact_kl

    def __call__(self, nll: Any, kl: Any) -> Any:
        """The loss of each example, `[B]`, from its negative log-likelihood and its KL."""
        return nll + tf.cast(self.kl_weight, tf.convert_to_tensor(kl).dtype) * kl

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        weight = regularizers.weight_config(self.kl_weight)
        return {"kl_weight": weight, "use_exact_kl": self.use_exact_kl}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ELBO":
        """The objective that a configuration describes."""
        weight = regularizers.weight_from_config(config["kl_weight"])
        return cls(weight, config["use_exact_kl"])
