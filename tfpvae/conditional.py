"""ConditionalVAE: a variational autoencoder of x given y, class labels or other numbers."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import blocks, checks, guards, models, noise, priors, serving

_PAIR = "(x, y): the data and, row by row, what they are conditioned on"


@keras.saving.register_keras_serializable("tfpvae")
class ConditionalVAE(models.VAE):
    r"""A variational autoencoder of x given y: class labels, or vectors or images of numbers.

    $$ p(x \mid y) = \int p(x \mid z, y)\, p(z \mid y)\, dz, \qquad
       \log p(x \mid y) \ge \mathbb E_{q(z \mid x, y)}[\log p(x \mid z, y)]
       - \mathrm{KL}\bigl(q(z \mid x, y)\ \|\ p(z \mid y)\bigr) = \mathrm{ELBO}(x \mid y) $$

    y is given and has no distribution: z is left with what y does not tell of x. The prior may be
    p(z), the same for all y, or p(z|y).

    It is trained as any Keras model of two arrays, `fit(x, y)`, on streams of `(x, y)` or
    `(x, y, weight)`, with `validation_data=(x, y)`; the loss is the negative ELBO(x|y). All else is
    as in `VAE`, where each method that takes data x takes the pair instead: `elbo((x, y))`,
    `posterior((x, y))`, `log_weights((x, y))`, `log_marginal_likelihood((x, y))`,
    `reconstruct((x, y))`, `predict((x, y))`, `diagnose(cvae, (x, y))`. `sample(y)` draws an x for
    each row of y, `likelihood(z, y)` is p(x|z, y), and `prior(y)` is p(z|y).

    The networks are called with a list, `encoder([x, y])` and `decoder([z, y])`: functional models
    of two inputs, or Sequential ones that begin with `networks.Join()`. They see labels as rows of
    zeros and a one.

    Shapes: x `[B, *event_shape]`; y integers `[B]`, or `[B, ...]` of numbers; z and losses as in
    `VAE`, in nats.

    Args:
      prior: p(z), a block of `tfpvae.priors`; or p(z|y), a tf_keras model of y that ends in a
        posterior block.
      encoder: a tf_keras model or layer that maps [x, y] to q(z|x, y): it ends in a posterior
        block.
      decoder: a tf_keras model or layer that maps [z, y] to p(x|z, y): it ends in a likelihood
        block.
      num_classes: the number K of classes if y are labels 0, ..., K - 1, or rows `[B, K]` of their
        probabilities; None if they are other numbers.
      seed: of the model's noise, as in `VAE`.
      preprocessing: a tf_keras layer that x goes through before all else, as in `VAE`.
      **kwargs: of `keras.Model`.

    Raises:
      TypeError: for parts that are no tf_keras layers, or of Keras 3; x without y.
      ValueError: for sizes that do not fit, labels that are no classes, a `priors.VampPrior`.

    Example:
      >>> from tfpvae import likelihoods, networks, posteriors, priors
      >>> dense, join = keras.layers.Dense, networks.Join
      >>> encoder = keras.Sequential([join(), dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([join(), dense(3), likelihoods.Bernoulli(3)])
      >>> cvae = ConditionalVAE(
      ...     priors.StandardNormal(2), encoder, decoder, num_classes=2, seed=0)
      >>> cvae.compile("rmsprop")
      >>> x, y = np.eye(3, dtype="float32"), np.array([0, 1, 1])
      >>> sorted(cvae.fit(x, y, epochs=2, verbose=0).history)
      ['elbo', 'kl', 'loss', 'nll']
      >>> cvae.elbo((x, y), seed=1).shape
      (3,)
      >>> cvae.sample(np.repeat([0, 1], 5), seed=1).shape  # five of each class
      (10, 3)

    Source: Sohn, Lee and Yan, "Learning Structured Output Representation using Deep Conditional
    Generative Models", 2015; Kingma, Rezende, Mohamed and Welling, "Semi-supervised Learning with
    Deep Generative Models", 2014.
    """

    remedy = f"labels that are no class do this; otherwise {guards.REMEDY}"

    def __init__(
        self,
        prior: Any,
        encoder: Any,
        decoder: Any,
        num_classes: int | None = None,
        seed: int | None = None,
        preprocessing: Any = None,
        **kwargs: Any,
    ) -> None:
        if num_classes is not None and checks.positive_integer("num_classes", num_classes) < 2:
            raise ValueError("num_classes: got 1, wanted at least 2")
        if isinstance(prior, priors.VampPrior):
            raise ValueError(
                "prior: got a VampPrior, whose pseudo-inputs have no y, wanted another prior or a "
                "model of y that ends in a posterior block"
            )
        checks.refuse_keras3("prior", prior)
        if isinstance(prior, keras.layers.Layer) and not isinstance(prior, priors.Prior):
            prior = _ConditionalPrior(prior)
        super().__init__(prior, encoder, decoder, seed, preprocessing, **kwargs)
        if isinstance(prior, _ConditionalPrior):
            object.__setattr__(prior, "_condition", self._condition)
        self.num_classes = num_classes
        # Of y as the networks see it; past Keras's tracking.
        shape = None if num_classes is None else (int(num_classes),)
        object.__setattr__(self, "_condition_shape", shape)

    def likelihood(self, z: Any, y: Any = None) -> Any:
        """The likelihood p(x|z, y), a `tfd.Distribution`.

        Its batch shape is that of z `[..., B, D]`, where y has B rows; z of one row, or one row of
        y, goes with all of the other. With z `[S, 1, D]` it is `[S, B]`: each z with each y.

        Args:
          z: as above.
          y: labels `[B]`, or conditions `[B, ...]`.
        """
        z = self._given_codes(z)
        condition = self._condition(self._conditions(y))
        with noise.fixed(0):
            return self._decode(z, False, condition).tensor_distribution

    def sample(
        self, y: Any, seed: Any = None, verbose: Any = "auto", prior: Any = None
    ) -> np.ndarray:
        """Draw data from the model, an x for each row of y: z from p(z|y), then x from p(x|z, y).

        Args:
          y: labels `[N]`, or conditions `[N, ...]`; `np.repeat(y, 5, axis=0)` for five of each.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.
          prior: what z is drawn from in place of the model's prior, as in `VAE.sample`.

        Returns:
          An array `[N, *event_shape]`. For the means instead of draws,
          `cvae.likelihood(z, y).mean()`.

        Raises:
          TypeError, ValueError: for y that are no conditions; as of `VAE.sample`.
        """
        rows = self._placed(self._conditions(y))
        if prior is None:
            return self._in_batches(self._sample_given, rows, seed, verbose=verbose).numpy()
        seed = self.noise.next() if seed is None else noise.as_seed(seed)
        first, second = tf.unstack(tf.random.split(seed))
        p = models._prior_of(prior, self.prior)
        z = tf.cast(p.sample(len(rows), seed=first), self.prior.dtype)
        return self._in_batches(self._sample_at, [z, rows], second, verbose=verbose).numpy()

    def predict_step(self, data: Any) -> Any:
        """The mean of the likelihood at the mean of the posterior, for one batch."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with noise.fixed(0):
            return tf.convert_to_tensor(self._prediction(x if y is None else [x, y]))

    def prepare_batch(self, x: Any, y: Any) -> tuple[Any, Any]:
        """The pair [x, condition] as the networks take it, and x, which the likelihood scores."""
        data = self._prepared((x, y))
        return data, data[0]

    def build(self, input_shape: Any) -> None:
        """Build all networks by passing one example through them.

        Args:
          input_shape: of x `[B, ...]` with labels, otherwise a pair of those of x and y.
        """
        if isinstance(input_shape[-1], (tuple, list, tf.TensorShape)):
            input_shape, condition = input_shape
            if self.num_classes is None:
                object.__setattr__(self, "_condition_shape", tuple(condition[1:]))
        if self._condition_shape is None:
            raise ValueError(f"input_shape: got {input_shape}, wanted a pair, of x and of y")
        super().build(input_shape)

    def get_build_config(self) -> dict[str, Any] | None:
        """What `build` was called with."""
        config = super().get_build_config()
        shapes = [list(self._build_input_shape or ()), [None, *(self._condition_shape or ())]]
        return config and config | {"input_shape": shapes}

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return super().get_config() | {"num_classes": self.num_classes}

    def check_data(self, x: np.ndarray, y: np.ndarray | None, arguments: tuple[str, str]) -> None:
        """Raise ValueError unless the networks take x and y, and the likelihood can have made x."""
        super().check_data(x, None, (arguments[0], arguments[0]))

    def _check_arrays(self, names: tuple[str, ...], x: np.ndarray, y: np.ndarray | None) -> None:
        if y is None:
            raise TypeError(
                f"{names[1]}: got None with {names[0]}, wanted {_PAIR}; fit(x, y), and one "
                "argument (x, y) for what takes x in a VAE"
            )
        self._check_conditions(names[1], y)
        if self.num_classes is None and not self.built:
            object.__setattr__(self, "_condition_shape", y.shape[1:])
        super()._check_arrays(names, x, y)

    def _check_conditions(self, name: str, y: np.ndarray) -> None:
        """Raise ValueError unless y are labels, or conditions of the shape of those before."""
        num = self.num_classes
        shape = self._condition_shape if num is not None or self.built else None
        if not np.isfinite(y).all():
            raise ValueError(f"{name}: got NaN or infinite values, wanted finite numbers")
        if num is not None and y.ndim == 1:
            if (y != np.floor(y)).any() or y.min() < 0 or y.max() >= num:
                wrong = y[(y != np.floor(y)) | (y < 0) | (y >= num)][0]
                raise ValueError(
                    f"{name}: got the label {wrong:g}, wanted whole numbers from 0 to {num - 1}, "
                    f"because num_classes is {num}"
                )
            return
        if y.ndim == 1:
            raise ValueError(
                f"{name}: got shape {y.shape}, wanted (N, D), a vector for each row: "
                f"{name}.reshape(-1, 1); for labels give ConditionalVAE(..., num_classes=)"
            )
        if shape is not None and y.shape[1:] != shape:
            wanted = ", ".join(map(str, ("N", *shape)))
            labels = "" if num is None else f" or (N,), labels of {num} classes"
            raise ValueError(f"{name}: got shape {y.shape}, wanted ({wanted}){labels}")
        if num is not None and ((y < 0).any() or not np.allclose(y.sum(axis=1), 1.0, atol=1e-4)):
            raise ValueError(
                f"{name}: got rows that are no probabilities of {num} classes, wanted labels "
                "(N,), or rows of numbers >= 0 that add up to 1"
            )

    def _conditions(self, y: Any) -> np.ndarray:
        """The conditions, checked, as an array."""
        if y is None:
            raise TypeError("y: got None, wanted what x is conditioned on, a row for each x")
        y = checks.as_array("y", y)
        self._check_conditions("y", y)
        return y

    def _condition(self, y: Any) -> Any:
        """The condition as the networks take it: in floating point, labels as one-hot rows."""
        y = tf.cast(y, self.data_dtype)
        if self.num_classes is None or y.shape.rank != 1:
            shape = self._condition_shape
            return y if shape is None else tf.ensure_shape(y, (None, *shape))
        hot = y[:, tf.newaxis] == tf.range(self.num_classes, dtype=y.dtype)
        # What is no class, in the middle of a stream, must not train unseen.
        known = tf.reduce_any(hot, axis=1, keepdims=True)
        return tf.where(known, tf.cast(hot, y.dtype), tf.constant(np.nan, y.dtype))

    def _arrays(self, x: Any) -> Any:
        data = self._checked(("x", "y", "sample_weight"), *self._split(x), None)
        return [data.x, data.y]

    def _split(self, data: Any) -> tuple[Any, Any]:
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise TypeError(f"x: got {type(data).__name__}, wanted {_PAIR}")
        return data[0], data[1]

    def _prepared(self, data: Any) -> Any:
        x, y = self._split(data)
        return [self.prepare(x), self._condition(y)]

    def _served(self, dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, _ = super()._served(dtype)
        if self.num_classes is None:
            y = {"y": serving.rows(self._condition_shape, keras.backend.floatx())}
        else:
            y = {"y": serving.rows((), "int32")}
        return data | y, y

    def _build_networks(self, data: Any) -> None:
        if not isinstance(data, list):
            data = [data, self._zeros((1, *self._condition_shape))]
        if isinstance(self.prior, _ConditionalPrior):
            models._build_for_any_batch(self.prior.network, data[1])
        super()._build_networks(data)

    def _posterior_has_nan(self, x: np.ndarray) -> bool:
        with noise.fixed(0):
            rows = self.prepare(self._placed(x))
            condition = tf.zeros((len(x), *self._condition_shape), self.data_dtype)
            _, z = self._encode([rows, condition], False)
        return bool(tf.reduce_any(tf.math.is_nan(z)))

    def _sample_given(self, y: Any, num_samples: Any, seed: Any) -> Any:
        condition = self._condition(y)
        with noise.fixed(seed):
            z = self._prior_draws(tf.shape(condition)[0], condition)
            return self._decode(z, False, condition).sample(seed=noise.next_seed())

    def _sample_at(self, rows: Any, num_samples: Any, seed: Any) -> Any:
        z, y = rows
        with noise.fixed(seed):
            p = self._decode(self._codes(z), False, self._condition(y))
            return p.sample(seed=noise.next_seed())


@keras.saving.register_keras_serializable("tfpvae")
class _ConditionalPrior(priors.Prior):
    """p(z|y), of a network of y that ends in a posterior block."""

    def __init__(self, network: Any) -> None:
        block = models._last_layer(network)
        if not isinstance(block, blocks.Block):
            raise TypeError(
                f"prior: got a network that ends in a layer {type(block).__name__}, wanted one "
                "that ends in a block of tfpvae.posteriors, or a block of tfpvae.priors"
            )
        if block.activity_regularizer is not None:
            raise ValueError(
                f"prior: its block {block.name!r} has an activity_regularizer, wanted none"
            )
        blocks.Block.__init__(
            self,
            block.event_shape,
            blocks.Conversion("sample", None),
            dtype=block.dtype,
            name="conditional_prior",
        )
        self._free = ()
        self.network = network
        self.built = True

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The distribution p(z|y) of labels or conditions y."""
        if inputs is None:
            raise TypeError("prior: got no y, wanted labels or conditions for p(z|y): prior(y)")
        with noise.fixed(0):  # For the value that its block passes on, which nobody asks for.
            condition = self._condition(inputs)
            p = self.network(condition, training=kwargs.get("training", False))
        return p.tensor_distribution

    def title(self) -> str:
        """What errors call it."""
        return "p(z|y)"

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return {"network": keras.saving.serialize_keras_object(self.network)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The prior that a configuration describes."""
        del custom_objects  # Keras has put them into scope.
        return cls(keras.saving.deserialize_keras_object(config["network"]))

    def _condition(self, y: Any) -> Any:
        """The condition as the network takes it; the model puts its own in place of this."""
        return y
