"""Semi-supervised learning: a model of x and its class y, where most of the y are missing."""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, conditional, inputs, noise, objectives, priors, replicas, serving

tfd = tfp.distributions

#: How a missing label is marked in integers; in floats it is NaN.
MISSING = -1

_FROZEN_DRAWS = 16  # of z_1, over which a prediction of M1+M2 is the mean

_OWN_PARTS = ("classifier", "class_prior")


@keras.saving.register_keras_serializable("tfpvae")
class SemiSupervisedVAE(conditional.ConditionalVAE):
    r"""A variational autoencoder of data x and classes y, where only some y are known: M2.

    $$ p(x, y) = p(y) \int p(x \mid y, z)\, p(z)\, dz, \qquad
       q(y, z \mid x) = q(y \mid x)\, q(z \mid x, y) $$

    With the bound of an example whose class is known,

    $$ \log p(x, y) \ge \mathbb E_{q(z \mid x, y)}[\log p(x \mid y, z)] + \log p(y)
       - \mathrm{KL}\bigl(q(z \mid x, y)\ \|\ p(z)\bigr) = -L(x, y), $$

    and of one whose class is not, in which the mean over y is an exact sum over the classes,

    $$ \log p(x) \ge \sum_y q(y \mid x)\, (-L(x, y)) + \mathrm H\bigl(q(y \mid x)\bigr) = -U(x), $$

    the loss of N examples, of which those in S are labelled, is

    $$ \frac1N \Bigl( \sum_{n \in S} L(x_n, y_n) + \sum_{n \notin S} U(x_n) \Bigr)
       + \frac{\alpha}{|S|} \sum_{n \in S} -\log q(y_n \mid x_n) $$

    in nats an example. The last term is there because q(y|x) would not learn from labels else.

    Labels are integers from 0; a missing one is -1, as in scikit-learn, or NaN. The networks get y
    as a one-hot vector `[B, K]`: `encoder([x, y])`, `decoder([z, y])`, `classifier(x)`.

    The history holds elbo = -(nll + kl), the bound on log p(x, y) where y is known and on log p(x)
    where it is not; kl, which is that of z and of y together, and kl_y, its part
    KL(q(y|x) || p(y)), or -log p(y) where y is known; classification, the last term of the loss;
    and accuracy, the share of the labelled examples whose most probable class is theirs (NaN if
    there are none).

    Methods that take data take x or the pair (x, y). Bounds and densities (`elbo`, `log_weights`,
    `log_marginal_likelihood`) are those of log p(x, y) of a pair and of log p(x) of x alone, summed
    over the classes. Where there has to be a class (`posterior`, `reconstruct`, `predict`,
    `predict_distribution`), x alone has the most probable one, `predict_label(x)`.

    Args:
      prior: p(z), a block of `tfpvae.priors`.
      classifier: a tf_keras model that maps x to q(y|x): it ends in
        `posteriors.OneHotCategorical(num_classes)`.
      encoder: a tf_keras model that maps [x, y] to q(z|x, y): it ends in a posterior block.
      decoder: a tf_keras model that maps [z, y] to p(x|y, z): it ends in a likelihood block.
      num_classes: the number K of classes.
      class_prior: p(y), a `priors.OneHotCategorical(num_classes)`: with `probs=` of given shares,
        and without them of shares that are learned; None for all classes alike.
      classification_weight: the number alpha >= 0.
      seed: as in `VAE`.
      preprocessing: as in `VAE`. For M1+M2 it is `FrozenEncoder(vae.encoder)`.
      **kwargs: of `keras.Model`.

    Raises:
      TypeError: for parts that are none.
      ValueError: for parts of other sizes than `num_classes`, a negative weight.

    Example:
      >>> from tfpvae import likelihoods, networks, posteriors
      >>> classifier = keras.Sequential([keras.layers.Dense(2), posteriors.OneHotCategorical(2)])
      >>> encoder = keras.Sequential([
      ...     networks.Join(), keras.layers.Dense(2), posteriors.DiagonalNormal(1)])
      >>> decoder = keras.Sequential([
      ...     networks.Join(), keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> model = SemiSupervisedVAE(
      ...     priors.StandardNormal(1), classifier, encoder, decoder, num_classes=2, seed=0)
      >>> model.compile("adam")
      >>> x, y = np.eye(3, dtype="float32"), np.array([0, 1, -1])
      >>> history = model.fit(x, y, epochs=2, verbose=0).history
      >>> model.predict_proba(x).shape
      (3, 2)

    Source: Kingma, Rezende, Mohamed and Welling, "Semi-supervised Learning with Deep Generative
    Models", 2014.
    """

    terms = ("elbo", "nll", "kl", "kl_y", "classification")  # type: ignore[assignment]

    has_one_posterior = False
    num_classes: int

    def __init__(
        self,
        prior: Any,
        classifier: Any,
        encoder: Any,
        decoder: Any,
        num_classes: int,
        class_prior: Any = None,
        classification_weight: float = 0.1,
        seed: int | None = None,
        preprocessing: Any = None,
        **kwargs: Any,
    ) -> None:
        checks.positive_integer("num_classes", num_classes)
        super().__init__(prior, encoder, decoder, num_classes, seed, preprocessing, **kwargs)
        blocks.check_network("classifier", classifier)
        if class_prior is None:
            class_prior = priors.OneHotCategorical(num_classes, logits=0.0)
        if not isinstance(class_prior, priors.Prior):
            raise TypeError(f"class_prior: got {class_prior!r}, wanted a priors.OneHotCategorical")
        self._check_classes("class_prior", class_prior())
        self.classifier, self.class_prior = classifier, class_prior
        self.classification_weight = checks.number(
            "classification_weight",
            classification_weight,
            "a number >= 0",
            lambda weight: 0.0 <= weight < math.inf,
        )
        # Past Keras's tracking, as the means of the terms.
        object.__setattr__(self, "_accuracy", _Share(name="accuracy"))

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, *, objective: Any = None, **kwargs: Any
    ) -> None:
        """Configure training, as `VAE.compile`.

        Args:
          optimizer: as in Keras.
          loss: None.
          objective: the bound on log p(x|y) in L, `objectives.ELBO` or `IWAE`; `ELBO()` if None.
          **kwargs: the other arguments of `keras.Model.compile`, but for metrics.

        Raises:
          TypeError: for another objective.
          ValueError: for metrics: accuracy is in the history.
        """
        if not isinstance(objective, objectives.ELBO | objectives.IWAE | None):
            raise TypeError(
                f"objective: got {objective!r}, wanted a lower bound: objectives.ELBO or IWAE"
            )
        if kwargs.get("metrics") or kwargs.get("weighted_metrics"):
            raise ValueError(
                "metrics: got some, wanted none: not all examples have a label to compare with; "
                "the accuracy on those that have one is in the history"
            )
        super().compile(optimizer, loss, objective=objective, **kwargs)

    @property
    def metrics(self) -> list[Any]:
        """The loss, its terms, and the accuracy."""
        return [*super().metrics, self._accuracy]

    def fit(  # type: ignore[override]
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        validation_split: float = 0.0,
        validation_data: Any = None,
        sample_weight: Any = None,
        labelled_share: float = 0.1,
        **kwargs: Any,
    ) -> Any:
        r"""Train the model, as `keras.Model.fit`.

        Few of many examples are labelled, and a batch would hold none of them. So labelled examples
        are repeated until they are a share of all, and count for less by as much in the bounds: a
        row that comes r_n times in an epoch of M rows has the weight M / (N r_n), and the mean of
        the loss over an epoch is still that of the N examples. The classification term is a mean
        over the labelled rows of each batch.

        Args:
          x: data `[N, ...]`, or a stream of batches `(x, y)` or `(x, y, weight)`, which comes as it
            is: see to it that there are labelled examples in its batches.
          y: labels `[N]`: integers from 0, and -1 or NaN where they are missing.
          batch_size: examples a step, 32 if None.
          epochs: passes over the data.
          validation_split: as in Keras.
          validation_data: `x`, `(x, y)`, `(x, y, weight)` or a dataset.
          sample_weight: weights `[N]` of the examples, of all terms.
          labelled_share: the least share of labelled rows in an epoch; 0 repeats none.
          **kwargs: the other arguments of `VAE.fit`.

        Returns:
          Keras's `History`.

        Raises:
          TypeError: for data that are no numbers.
          ValueError: for data as in `VAE.fit`; labels that are no classes; no label at all.
        """
        labelled_share = checks.number(
            "labelled_share", labelled_share, "a share in [0, 1)", lambda share: 0.0 <= share < 1.0
        )
        data = self._checked(("x", "y", "sample_weight"), x, y, sample_weight)
        held_out = None if validation_data is None else self._checked_validation(validation_data)
        if data.first is None:
            if validation_split and held_out is None:
                data, held_out = data.split(validation_split)
            self._check_labelled(data.y)
            data = _balanced(data, labelled_share)
            if data.order is not None and not self._runs_programs():  # Keras knows no order.
                data = inputs.Data(*(values[data.order] for values in data[:3]))
        elif data.first[1] is None:
            raise ValueError("y: got batches x, wanted batches (x, y) with some labels")
        return self._train(data, held_out, batch_size=batch_size, epochs=epochs, **kwargs)

    def predict_proba(
        self, x: Any, num_samples: int | None = None, seed: Any = None, verbose: Any = "auto"
    ) -> np.ndarray:
        r"""The probabilities of the classes: those of the classifier, or those of the model.

        Without `num_samples` they are q(y|x), of M1+M2 its mean over 16 draws of q(z_1|x). With it
        they are the model's own, by importance sampling, which owe nothing to the classifier:

        $$ p(y \mid x) \propto p(y)\, \frac1S \sum_s
           \frac{p(x \mid y, z_s)\, p(z_s)}{q(z_s \mid x, y)}, \qquad z_s \sim q(z \mid x, y) $$

        Args:
          x: data `[N, *event_shape]`.
          num_samples: None, or the number S of draws for each class.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.

        Returns:
          An array `[N, K]` whose rows add up to 1.
        """
        x = self._data(x)
        if num_samples is None:
            draws = self._classifier_draws
            total = self._in_batches(self._class_probs, x, 0, draws, verbose)
            return total.numpy() / draws
        num_samples = checks.positive_integer("num_samples", num_samples)
        log_evidence = self._in_batches(
            self._class_evidence, x, seed, num_samples, verbose, merge=tfp.math.log_add_exp
        )
        return tf.nn.softmax(log_evidence).numpy()

    def predict_label(self, x: Any, verbose: Any = "auto") -> np.ndarray:
        """The most probable class of each example under the classifier, integers `[N]`.

        Args:
          x: data `[N, *event_shape]`.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.
        """
        return self.predict_proba(x, verbose=verbose).argmax(axis=1)

    def sample(
        self, y: Any, seed: Any = None, verbose: Any = "auto", prior: Any = None
    ) -> np.ndarray:
        """Draw data from the model: y from p(y), z from p(z), then x from p(x|y, z).

        Args:
          y: how many, or their labels `[N]`, which are not drawn then.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.
          prior: what z is drawn from in place of the model's prior, as in `VAE.sample`.

        Returns:
          An array `[N, *event_shape]`.
        """
        if isinstance(y, (int, np.integer)):
            num = checks.positive_integer("y", y)
            seed = self.noise.next() if seed is None else noise.as_seed(seed)
            seed, first = tf.unstack(tf.random.split(seed))
            y = self.class_prior().sample(num, seed=first).numpy().argmax(axis=1)
        return super().sample(y, seed, verbose, prior)

    def log_marginal_likelihood(  # type: ignore[override]
        self, x: Any, num_samples: int | None = None, method: str = "importance", **kwargs: Any
    ) -> Any:
        """Estimates of log p(x), or of log p(x, y) of a pair, as `VAE.log_marginal_likelihood`.

        Args:
          x: data `[N, *event_shape]`, or a pair (x, y).
          num_samples: the number S of draws for each example and class, 5000 if None.
          method: "importance".
          **kwargs: as in `VAE.log_marginal_likelihood`.

        Raises:
          ValueError: for another method.
        """
        if method != "importance":
            raise ValueError(f"method: got {method!r}, wanted 'importance'")
        return super().log_marginal_likelihood(x, num_samples, method, **kwargs)

    def impute(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """The data with what is missing filled in, given the class, as `VAE.impute`."""
        if not isinstance(x, tuple):
            raise TypeError(f"x: got {type(x).__name__}, wanted (x, y)")
        return super().impute(x, *args, **kwargs)

    # Terms of the loss.

    def prepare_batch(self, x: Any, y: Any) -> tuple[Any, Any]:
        """The pair [x, labels], -1 where they are missing, and x, which the likelihood scores."""
        x = self.prepare(x)
        labels = tf.fill(tf.shape(x)[:1], MISSING) if y is None else _as_labels(y)
        return [x, labels], x

    def example_losses(self, x: Any, y: Any, training: bool) -> tuple[Any, dict[str, Any], Any]:
        """The bound of each example, its parts, and what tells its class."""
        x, labels = x
        known = labels != MISSING
        hot = tf.transpose(self._condition(tf.where(known, labels, 0)))
        log_q, log_p = self._log_class_probs(x, training), self._log_class_prior()
        share = tf.where(known, hot, tf.exp(log_q))  # [K, B]: q(y|x), or the class itself.
        rows = self._with_each_class(x)
        losses, terms, _ = super().example_losses(rows, rows[0], training)

        def mean(values: Any) -> Any:  # Of values of all pairs, over the classes.
            return tf.reduce_sum(share * tf.reshape(values, tf.shape(share)), axis=0)

        terms = {name: mean(term) if term.shape.rank else term for name, term in terms.items()}
        log_ratio = tf.where(known, tf.zeros_like(log_q), log_q) - log_p
        kl_y = tf.reduce_sum(tf.math.multiply_no_nan(log_ratio, share), axis=0)
        terms |= {
            "elbo": terms["elbo"] - kl_y,
            "kl": terms["kl"] + kl_y,
            "kl_y": kl_y,
            "labelled": tf.cast(known, log_q.dtype),
            "classification": -tf.reduce_sum(tf.math.multiply_no_nan(log_q, hot), axis=0),
        }
        return mean(losses) + kl_y, terms, (tf.argmax(log_q, output_type=tf.int32), labels)

    def total_loss(self, losses: Any, terms: dict[str, Any], weight: Any) -> Any:
        """The loss of a batch: with the classification term, a mean over its labelled examples."""
        counted = terms.pop("labelled")
        if weight is not None:
            counted *= tf.cast(tf.reshape(weight, tf.shape(counted)), counted.dtype)
        own = tf.reduce_mean(tf.math.multiply_no_nan(terms["classification"], counted))
        mean = tf.math.divide_no_nan(own, replicas.mean(counted))
        terms["classification"] = self.classification_weight * mean
        return super().total_loss(losses, terms, weight) + terms["classification"]

    def _log(self, loss: Any, terms: Any, y: Any, prediction: Any, weight: Any) -> dict[str, Any]:
        predicted, labels = prediction
        known = tf.cast(labels != MISSING, loss.dtype)
        if weight is not None:
            known *= tf.cast(tf.reshape(weight, tf.shape(known)), known.dtype)
        self._accuracy.update_state(tf.cast(predicted == labels, loss.dtype), known)
        return super()._log(loss, terms, y, prediction, weight)

    def _log_class_probs(self, x: Any, training: bool | None) -> Any:
        """The log q(y|x) of all classes, `[K, B]`."""
        q = self.classifier(x, training=training)
        if not isinstance(q, tfd.Distribution):
            raise TypeError(
                f"classifier: got one that returns {type(q).__name__}, wanted a distribution: end "
                f"it in posteriors.OneHotCategorical({self.num_classes})"
            )
        self._check_classes("classifier", q)
        return q.log_prob(tf.eye(self.num_classes, dtype=q.dtype)[:, tf.newaxis])

    def _log_class_prior(self) -> Any:
        """The log p(y) of all classes, `[K, 1]`."""
        p = self.class_prior()
        return p.log_prob(tf.eye(self.num_classes, dtype=p.dtype))[:, tf.newaxis]

    def _with_each_class(self, x: Any) -> "_Pairs":
        """The pairs [x, y] `[K * B, ...]` of each x with each class, one class after the other."""
        num = self.num_classes
        classes = tf.eye(num, dtype=self.data_dtype)
        repeated = tf.tile(x, [num] + [1] * (x.shape.rank - 1))
        return _Pairs([repeated, tf.repeat(classes, tf.shape(x)[0], axis=0)])

    @property
    def _classifier_draws(self) -> int:
        """How many passes through the preprocessing `predict_proba` is the mean over."""
        return _FROZEN_DRAWS if isinstance(self.preprocessing, FrozenEncoder) else 1

    # Data of methods: x, or a pair.

    def _build_networks(self, data: Any) -> None:
        if isinstance(self.classifier, keras.Sequential) and not self.classifier.built:
            self.classifier.build((None, *data.shape[1:]))
        with noise.fixed(0):
            self._log_class_probs(data, False)
        super()._build_networks(data)

    def _check_classes(self, name: str, distribution: Any) -> None:
        """Raise ValueError unless these are distributions of the classes, as one-hot vectors."""
        shape = tuple(distribution.event_shape)
        if shape != (self.num_classes,):
            raise ValueError(
                f"{name}: got events of shape {shape}, wanted ({self.num_classes},), because "
                f"num_classes is {self.num_classes}: OneHotCategorical({self.num_classes})"
            )

    def _checked(self, names: tuple[str, str, str], x: Any, y: Any, weight: Any) -> inputs.Data:
        if isinstance(x, tf.data.Dataset):
            x = x.map(_without_nan, num_parallel_calls=tf.data.AUTOTUNE)
        data = super()._checked(names, x, y, weight)
        if data.first is not None:
            return data
        missing = np.full(len(data.x), MISSING)
        return data._replace(y=(missing if y is None else _integers(data.y)).astype("int32"))

    def _check_arrays(self, names: tuple[str, ...], x: np.ndarray, y: np.ndarray | None) -> None:
        if y is not None:
            if y.ndim != 1:
                raise ValueError(f"{names[1]}: got shape {y.shape}, wanted (N,), labels")
            given = _integers(y)
            given = given[given != MISSING]
            if len(given):
                self._check_conditions(names[1], given)
        super(conditional.ConditionalVAE, self)._check_arrays(names, x, y)

    def _check_labelled(self, labels: np.ndarray) -> None:
        """Raise ValueError if there is no label, and warn if a class has none."""
        counts = np.bincount(labels[labels != MISSING], minlength=self.num_classes)
        if not counts.any():
            raise ValueError(
                "y: got no label, all are missing, wanted some: classes cannot be told apart; "
                "without labels train a VAE with a prior of clusters, as priors.NormalMixture"
            )
        if not counts.all():
            warnings.warn(
                f"y: got no labelled example of the classes {np.flatnonzero(counts == 0)}: what "
                "they stand for is left open",
                UserWarning,
                stacklevel=3,
            )

    def _arrays(self, x: Any) -> Any:
        pair = x if isinstance(x, tuple) else (x, None)
        if len(pair) != 2:
            raise ValueError(f"x: got a tuple of {len(pair)}, wanted x or a pair (x, y)")
        if pair[1] is not None:
            rows = super()._arrays(pair)
            self._check_conditions("y", rows[1])
            return rows
        return self._checked(("x", "y", "sample_weight"), *pair, None).x

    def _split(self, data: Any) -> tuple[Any, Any]:
        return (data[0], data[1]) if isinstance(data, (tuple, list)) else (data, None)

    def _prepared(self, data: Any) -> Any:
        if isinstance(data, _Pairs):
            return data
        x, y = self._split(data)
        x = self.prepare(x)
        if y is None:
            y = tf.argmax(self._log_class_probs(x, False), output_type=tf.int32)
        return _Pairs([x, self._condition(y)])

    def _signatures(self, num_samples: int, dtype: Any) -> dict[str, serving.Signature]:
        def classify(x: Any) -> dict[str, Any]:
            return {"probs": self._class_probs(x, draws, tf.random.fold_in(seed, 0)) / draws}

        draws, seed = self._classifier_draws, noise.as_seed(0)  # Those of `predict_proba`.
        data, _ = self._served(dtype)
        served = super()._signatures(num_samples, dtype)
        return served | {"classify": serving.Signature(classify, data)}

    def _served(self, dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, given = super()._served(dtype)
        return {"x": data["x"]}, given

    # What runs in batches, see `execution.Batched`.

    def _class_probs(self, x: Any, num_samples: Any, seed: Any) -> Any:
        """The sum of q(y|x) over passes of the data through the preprocessing, `[B, K]`."""
        with noise.fixed(seed):
            rows = tf.repeat(x, num_samples, axis=0)
            probs = tf.exp(self._log_class_probs(self.prepare(rows), False))
            by_row = tf.reshape(probs, [self.num_classes, -1, num_samples])
            return tf.transpose(tf.reduce_sum(by_row, axis=-1))

    def _class_evidence(self, x: Any, num_samples: Any, seed: Any) -> Any:
        """The log of the sum over the draws of the weights of each class, `[B, K]`."""
        with noise.fixed(seed):
            pairs = self._with_each_class(self.prepare(x))
            q, z, p, x, condition = super()._draw(pairs, num_samples)
            log_weights = self._pair_weights(q, z, p.log_prob(x), condition)
            log_evidence = tf.reduce_logsumexp(log_weights, axis=0)
            return tf.transpose(tf.reshape(log_evidence, [self.num_classes, -1]))

    def _elbo(self, x: Any, num_samples: Any, seed: Any) -> Any:
        if isinstance(x, list):
            log_p = self.class_prior().log_prob(self._condition(x[1]))
            return super()._elbo(x, num_samples, seed) + tf.cast(num_samples, log_p.dtype) * log_p
        with noise.fixed(seed):
            x = self.prepare(x)
            log_q, log_p = self._log_class_probs(x, False), self._log_class_prior()
        pairs = self._with_each_class(x)
        bounds = super()._elbo(pairs, num_samples, tf.random.fold_in(seed, 1))
        log_ratio = tf.cast(num_samples, log_q.dtype) * (log_q - log_p)
        bounds = tf.reshape(bounds, tf.shape(log_q)) - log_ratio
        return tf.reduce_sum(tf.math.multiply_no_nan(bounds, tf.exp(log_q)), axis=0)

    def _draw(self, data: Any, num_samples: Any) -> tuple[Any, Any, Any, Any, Any]:
        if isinstance(data, list):
            return super()._draw(data, num_samples)
        pairs = self._with_each_class(self.prepare(data))
        *drawn, condition = super()._draw(pairs, num_samples)
        return (*drawn, _EachClass(condition))

    def _weigh(self, q: Any, z: Any, log_likelihood: Any, condition: Any) -> Any:
        if not isinstance(condition, _EachClass):
            return self._pair_weights(q, z, log_likelihood, condition)
        log_weights = self._pair_weights(q, z, log_likelihood, condition.rows)
        by_class = [tf.shape(log_weights)[0], self.num_classes, -1]
        return tf.reduce_logsumexp(tf.reshape(log_weights, by_class), axis=1)

    def _pair_weights(self, q: Any, z: Any, log_likelihood: Any, condition: Any) -> Any:
        """The log weights of draws of z for pairs, those of log p(x, y)."""
        log_p = self.class_prior().log_prob(condition)
        return super()._weigh(q, z, log_likelihood, condition) + log_p

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        own = {
            name: keras.saving.serialize_keras_object(getattr(self, name)) for name in _OWN_PARTS
        }
        return super().get_config() | own | {"classification_weight": self.classification_weight}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "SemiSupervisedVAE":
        """The model that a configuration describes."""
        with blocks.floatx(config["prior"]):
            own = {name: keras.saving.deserialize_keras_object(config[name]) for name in _OWN_PARTS}
        return super().from_config(config | own, custom_objects)


@keras.saving.register_keras_serializable("tfpvae")
class FrozenEncoder(keras.layers.Layer):
    r"""Draws of z from the encoder of a trained model, whose weights stay as they are.

    $$ z_1 \sim q(z_1 \mid x) $$

    As the `preprocessing` of a second model it makes its data: a new draw in each step. With a
    `SemiSupervisedVAE` this is M1+M2.

    Args:
      encoder: a tf_keras model or layer that ends in a posterior block, as `vae.encoder`.
      **kwargs: of any Keras layer.

    Raises:
      TypeError: for an encoder that is none.

    Example:
      >>> from tfpvae import posteriors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> frozen = FrozenEncoder(encoder)
      >>> frozen(tf.zeros([3, 5])).shape, len(frozen.trainable_weights), len(encoder.weights)
      (TensorShape([3, 2]), 0, 2)

    Source: Kingma, Rezende, Mohamed and Welling, "Semi-supervised Learning with Deep Generative
    Models", 2014.
    """

    def __init__(self, encoder: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        blocks.check_network("encoder", encoder)
        self.encoder = encoder

    def call(self, inputs: Any) -> Any:
        """A draw of z."""
        return tf.stop_gradient(tf.convert_to_tensor(self.encoder(inputs, training=False)))

    @property
    def trainable_weights(self) -> list[Any]:
        """None, though the encoder may be trained by itself."""
        return []

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All of the encoder's."""
        return self.encoder.weights

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        encoder = keras.saving.serialize_keras_object(self.encoder)
        return super().get_config() | {"encoder": encoder}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FrozenEncoder":
        """The layer that a configuration describes."""
        return cls(**config | {"encoder": keras.saving.deserialize_keras_object(config["encoder"])})


class _Pairs(list):
    """Pairs [x, y] as the networks take them: prepared."""


class _EachClass(NamedTuple):
    """The classes of pairs of each x with each class, `[K * B, K]`, one class after the other."""

    rows: Any


class _Share(keras.metrics.Mean):
    """A mean that is NaN of nothing, where Keras's is 0."""

    def result(self) -> Any:
        """The mean."""
        return self.total / self.count


def _balanced(data: inputs.Data, labelled_share: float) -> inputs.Data:
    """The data with labelled rows repeated to this share at least, and weights to make up for it.

    Of M rows those that come r times have the weight M / (N r): the mean over all is that of N.
    """
    labelled = np.flatnonzero(data.y != MISSING)
    missing = np.flatnonzero(data.y == MISSING)
    wanted = math.ceil(len(missing) * labelled_share / (1.0 - labelled_share))
    if wanted <= len(labelled):
        return data
    rows = np.concatenate([missing, np.resize(labelled, wanted)])
    weight = len(rows) / len(data.x) / np.bincount(rows)
    weight *= 1.0 if data.weight is None else data.weight
    return data._replace(weight=weight.astype("float32"), order=rows.astype("int32"))


def _integers(labels: np.ndarray) -> np.ndarray:
    """The labels with -1 for those that are missing."""
    return np.where(np.isnan(labels), MISSING, labels) if labels.dtype.kind == "f" else labels


def _as_labels(y: Any) -> Any:
    """The labels of a batch as integers, -1 for those that are missing, -2 for what is none."""
    y = tf.convert_to_tensor(y)
    if y.dtype.is_floating:
        y = tf.where(tf.math.is_nan(y), tf.cast(MISSING, y.dtype), y)
        y = tf.where(y == tf.floor(y), y, tf.cast(MISSING - 1, y.dtype))
    return tf.cast(y, tf.int32)


def _without_nan(*batch: Any) -> Any:
    """A batch of a dataset, whose missing labels are -1."""
    if len(batch) > 1:
        return (batch[0], _as_labels(batch[1]), *batch[2:])
    return batch[0]
