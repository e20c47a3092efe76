"""Latent variable models: prior, encoder and decoder, put together and trained by Keras."""

import contextlib
import functools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras
from scipy import special

from tfpvae import (
    blocks,
    checks,
    discrete,
    execution,
    inputs,
    likelihoods,
    losses,
    marginal_likelihood,
    noise,
    objectives,
    priors,
    regularizers,
    replicas,
    schedules,
    serving,
    training,
)

tfd = tfp.distributions

_PARTS = ("prior", "encoder", "decoder", "preprocessing")


def _without_keras(method: Any) -> Any:
    """The method, in which Keras leaves the divergences of the aggregate posterior to the model."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        regularizer = self._aggregate
        with regularizer.handled() if regularizer is not None else contextlib.nullcontext():
            return method(self, *args, **kwargs)

    return wrapped


@keras.saving.register_keras_serializable("tfpvae")
class VAE(training.ProbabilisticModel):
    r"""The variational autoencoder: a latent variable model and its amortized posterior.

    $$ p(x) = \int p(x \mid z)\, p(z)\, dz, \qquad
       \log p(x) \ge \mathbb E_{q(z \mid x)}[\log p(x \mid z)]
       - \mathrm{KL}\bigl(q(z \mid x)\ \|\ p(z)\bigr) = \mathrm{ELBO}(x) $$

    The loss that `fit` and `evaluate` print is the negative ELBO, a mean over the examples in nats,
    unless `compile` is given another objective. The history holds loss, elbo, nll and kl, whatever
    the objective, with elbo = -(nll + kl), and their val_ twins.

    A posterior block with an `activity_regularizer` of the aggregate posterior, as
    `regularizers.MaximumMeanDiscrepancy`, adds it to the loss, and its value to the history.

    The posterior block decides how z is passed on: one reparameterized draw, `num_samples` draws
    (nll is their mean), or the mean. All draws come from one seed, see `noise.Noise`.

    Shapes: x `[B, *event_shape]`, z `[B, D]` or `[S, B, D]`, losses `[B]` in nats.

    Args:
      prior: p(z), a block of `tfpvae.priors`.
      encoder: a tf_keras model or layer that maps x to q(z|x): it ends in a posterior block.
      decoder: a tf_keras model or layer that maps z to p(x|z): it ends in a likelihood block.
      seed: of the model's noise; None takes one from Python's `random`, and so from
        `keras.utils.set_random_seed`.
      preprocessing: a tf_keras layer that x goes through before all else, and so the targets, if
        they are those of x: `keras.layers.Rescaling(1 / 255)` takes images as bytes, which need a
        quarter of the memory.
      **kwargs: of `keras.Model`.

    Raises:
      TypeError: for parts that are no tf_keras layers, or of Keras 3.
      ValueError: if prior and posterior differ in size, or the posterior has a regularizer of the
        KL, which would count twice.

    Example:
      >>> from tfpvae import likelihoods, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> vae.compile("rmsprop")
      >>> x = np.eye(3, dtype="float32")
      >>> sorted(vae.fit(x, epochs=2, verbose=0).history)
      ['elbo', 'kl', 'loss', 'nll']
      >>> vae.sample(5, seed=1).shape
      (5, 3)

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes", 2014; Rezende, Mohamed and
    Wierstra, "Stochastic Backpropagation and Approximate Inference in Deep Generative Models",
    2014.
    """

    terms = ("elbo", "nll", "kl")

    #: whether q(z|x) is all of the posterior, with no classes beside z
    has_one_posterior = True

    # The type of the first data that the model was given, None before.
    _data_dtype: str | None = None

    # The columns of the first data frame that it was given.
    _feature_names: list[str] | None = None

    # Names of the KLs of the layers of z.
    _kl_terms: tuple[str, ...] = ()

    def __init__(
        self,
        prior: Any,
        encoder: Any,
        decoder: Any,
        seed: int | None = None,
        preprocessing: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed, preprocessing, **kwargs)
        for name, part in (("prior", prior), ("encoder", encoder), ("decoder", decoder)):
            blocks.check_network(name, part)
        if not isinstance(prior, priors.Prior):
            raise TypeError(f"prior: got {prior!r}, wanted a block of tfpvae.priors")
        self.prior, self.encoder, self.decoder = prior, encoder, decoder
        prior.attach(encoder)
        _refuse_kl(encoder)
        posterior = _last_layer(encoder)
        if isinstance(posterior, blocks.Block):
            _check_sizes(prior.event_shape, posterior.event_shape)
        self.objective: objectives.Objective = objectives.ELBO()
        self._use_exact_kl: bool | None = None
        self._has_densities = True
        # Past Keras's tracking: compiled functions are no part of what is saved.
        object.__setattr__(self, "_batched", {})

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, *, objective: Any = None, **kwargs: Any
    ) -> None:
        """Configure training, as `keras.Model.compile`.

        Args:
          optimizer: as in Keras.
          loss: None or `losses.negative_log_prob`: the likelihood makes the loss.
          objective: what is minimized, `objectives.ELBO()` if None.
          **kwargs: the other arguments of `keras.Model.compile`; `metrics` compare the data with
            the mean of the likelihood.

        Raises:
          TypeError: for an objective that is none.
          ValueError: for another loss.
        """
        if loss is not None and loss is not losses.negative_log_prob:
            raise ValueError(
                f"loss: got {loss!r}, wanted none: the loss follows from the likelihood block; "
                "pass objective= to change what is minimized"
            )
        objective = objectives.ELBO() if objective is None else objective
        if not isinstance(objective, objectives.Objective):
            raise TypeError(
                f"objective: got {objective!r}, wanted one of tfpvae.objectives, as "
                "objectives.IWAE(num_samples=5)"
            )
        _refuse_kl(self.encoder)  # Its layers may have changed.
        posterior = _last_layer(self.encoder)
        if isinstance(posterior, blocks.Block):
            objective.check(posterior)
        objective.check_layers(max(1, len(self._kl_terms)))
        known = [blocks.has_density(part) for part in (self.encoder, self.prior)]
        objective.check_densities(*known)
        self._has_densities = all(known)
        self.objective = objective
        self._set_aside(objective.discriminator)
        self.schedule = objective.schedule  # For Keras to save its state.
        self.temperature = objective.temperature  # The same, if it is a schedule.
        if objective.discriminator is not None:
            variables = objective.discriminator.noise.variables
            replicas.check_scope(self.distribute_strategy, "discriminator", variables)
        divergences = (regularizer.name for regularizer in self._aggregate_parts)
        terms = type(self).terms if self._has_densities else ("nll",)
        self._log_terms((*terms, *self._kl_terms, *divergences, *objective.terms))
        self._use_exact_kl = objective.needs_exact_kl or objective.use_exact_kl
        super().compile(optimizer, **kwargs)

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`: JSON; None before it."""
        objective = keras.saving.serialize_keras_object(self.objective)
        config = super().get_compile_config()
        return config and config | {"objective": objective}

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The likelihood p(x|z) at the z that the posterior block passes on."""
        data = self._prepared(inputs)
        _, z = self._encode(data, training)
        return self._decode(z, training, self._split(data)[1])

    def posterior(self, x: Any) -> Any:
        """The posterior q(z|x), a `tfd.Distribution` with batch shape `[N]`.

        Args:
          x: data `[N, *event_shape]`; the encoder sees them in batches.
        """
        return self._distribution(self._posterior, x)

    def likelihood(self, z: Any) -> Any:
        """The likelihood p(x|z), a `tfd.Distribution`, batch shape that of z `[..., D]`."""
        with noise.fixed(0):
            return self._decode(self._given_codes(z), False).tensor_distribution

    def sample(
        self, num: int, seed: Any = None, verbose: Any = "auto", prior: Any = None
    ) -> np.ndarray:
        """Draw data from the model: z from p(z), then x from p(x|z).

        Args:
          num: how many.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.
          prior: what z is drawn from in place of the model's prior, a block of `tfpvae.priors` or a
            `tfd.Distribution`: as `latent_space.fit_aggregate_posterior` finds it.

        Returns:
          An array `[num, *event_shape]`. For the means instead of draws,
          `vae.likelihood(vae.prior().sample(num)).mean()`.

        Raises:
          TypeError, ValueError: for a prior that is none, or of another size.
        """
        checks.positive_integer("num_samples", num)
        if prior is None:
            rows = tf.zeros((num, 0))
            return self._in_batches(self._sample, rows, seed, verbose=verbose).numpy()
        seed = self.noise.next() if seed is None else noise.as_seed(seed)
        first, second = tf.unstack(tf.random.split(seed))
        z = tf.cast(_prior_of(prior, self.prior).sample(num, seed=first), self.prior.dtype)
        return self._in_batches(self._sample_at, z, second, verbose=verbose).numpy()

    def reconstruct(self, x: Any, seed: Any = None, verbose: Any = "auto") -> np.ndarray:
        """The mean of p(x'|z) at a draw z of q(z|x), an array like x.

        Args:
          x: data `[N, *event_shape]`.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.
        """
        return self._in_batches(self._reconstruct, self._data(x), seed, verbose=verbose).numpy()

    def predict_distribution(self, x: Any) -> Any:
        """The likelihood p(x'|z) at the mean z of q(z|x), a `tfd.Distribution`."""
        return self._distribution(self._prediction, x)

    def log_weights(
        self, x: Any, num_samples: int = 1, seed: Any = None, verbose: Any = "auto"
    ) -> np.ndarray:
        r"""Log importance weights of draws of z from the posterior.

        $$ \log w_{sb} = \log p(x_b \mid z_{sb}) + \log p(z_{sb}) - \log q(z_{sb} \mid x_b),
           \qquad z_{sb} \sim q(z \mid x_b) $$

        Args:
          x: data `[N, *event_shape]`.
          num_samples: the number S of draws for each example.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.

        Returns:
          An array `[S, N]`, in nats. Its mean over S estimates the ELBO, its log-mean-exp
          estimates log p(x) from below.
        """
        self._refuse_implicit("log weights")
        num_samples = checks.positive_integer("num_samples", num_samples)
        x = self._data(x)
        weights = self._in_batches(self._log_weights, x, seed, num_samples, verbose, merge=None)
        return weights.numpy()

    def elbo(
        self, x: Any, num_samples: int = 1, seed: Any = None, verbose: Any = "auto"
    ) -> np.ndarray:
        r"""The evidence lower bound of each example, whatever the objective of training.

        $$ \mathrm{ELBO}(x_b) = \frac1S \sum_s \log p(x_b \mid z_{sb})
           - \mathrm{KL}\bigl(q(z \mid x_b)\ \|\ p(z)\bigr), \qquad z_{sb} \sim q(z \mid x_b) $$

        with the closed form of the KL where TFP has one, and the same draws otherwise.

        Args:
          x: data `[N, *event_shape]`.
          num_samples: the number S of draws for each example.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.

        Returns:
          An array `[N]`, in nats.
        """
        self._refuse_implicit("elbo")
        num_samples = checks.positive_integer("num_samples", num_samples)
        total = self._in_batches(self._elbo, self._data(x), seed, num_samples, verbose)
        return total.numpy() / num_samples

    def log_marginal_likelihood(
        self,
        x: Any,
        num_samples: int | None = None,
        method: str = "importance",
        seed: Any = None,
        verbose: Any = "auto",
        **options: Any,
    ) -> marginal_likelihood.MarginalLikelihood:
        r"""Estimates of log p(x), from below, with their standard errors and diagnostics.

        $$ \log p(x_b) \approx \log \frac1S \sum_s w_{sb}, \qquad \mathbb E[w_{sb}] = p(x_b) $$

        By importance sampling w are the weights of `log_weights`. By annealed importance sampling
        ("ais") they are those of Markov chains that go from q(z|x) to p(x, z) in many small steps:
        better where q(z|x) is far from p(z|x), and much slower. z must be continuous for it. By
        "enumeration" it is the exact sum over all states of z, which must be classes or bits,

        $$ \log p(x_b) = \log \sum_z p(z)\, p(x_b \mid z) $$

        Args:
          x: data `[N, *event_shape]`.
          num_samples: the number S of draws for each example, or of chains; None for 5000 draws or
            16 chains.
          method: "importance", "ais" or "enumeration".
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.
          **options: of "ais", see `marginal_likelihood.Annealing`: `num_steps=1000`,
            `num_leapfrog_steps=10`, `proposal="posterior"` or "prior".

        Returns:
          A `marginal_likelihood.MarginalLikelihood`: `estimate`, `standard_error`,
          `effective_sample_size` and `k_hat` of each example, `mean` and its errors; print it.

        Raises:
          TypeError, ValueError: for data or numbers that are none, an unknown method, z that are
            not continuous, or of too many states, a model whose densities are NaN.

        Source: Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", 2016; Neal,
        "Annealed importance sampling", 2001.
        """
        return marginal_likelihood.log_marginal_likelihood(
            self, x, num_samples, method, seed, verbose, **options
        )

    def impute(
        self,
        x: Any,
        num_samples: int = 1000,
        num_draws: int | None = None,
        seed: Any = None,
        verbose: Any = "auto",
    ) -> np.ndarray:
        r"""The data with what is missing filled in, from its distribution given what is observed.

        Importance weights make draws of the posterior into draws of p(z | x_obs), as good as
        `num_samples` is large, whatever the encoder got wrong:

        $$ z_s \sim q(z \mid x^{\text{obs}}), \qquad
           w_s \propto \frac{p(x^{\text{obs}} \mid z_s)\, p(z_s)}{q(z_s \mid x^{\text{obs}})},
           \qquad \sum_s w_s = 1 $$

        $$ \mathbb E[x^{\text{mis}} \mid x^{\text{obs}}] \approx
           \sum_s w_s\, \mathbb E[x^{\text{mis}} \mid z_s] $$

        With `num_draws` come draws in place of the mean: each picks a z_s with probability w_s and
        draws x from p(x | z_s), for multiple imputation. They are distinct in z as far as the
        weights are even and `num_samples` is much larger than `num_draws`.

        Args:
          x: data `[N, *event_shape]` in which NaN is missing.
          num_samples: the number S of draws of z for each example.
          num_draws: how many draws of x, None for the mean.
          seed: an integer or an int tensor `[2]`; None goes on in the model's own noise.
          verbose: 1 shows progress, 0 does not, "auto" does when it takes long.

        Returns:
          An array `[N, *event_shape]`, or with `num_draws` `[num_draws, N, *event_shape]`, of the
          type of x; what is observed is what it was. With `preprocessing` all of it is on the scale
          that the likelihood scores, as of `reconstruct`.

        Raises:
          TypeError: for numbers of draws that are no integers, x that are no numbers.
          ValueError: if the likelihood is not `likelihoods.Masked`, or is a mixture of whole
            vectors, whose entries are not independent given z; without `num_draws` if its value is
            not its mean, as that of classes, which have none.

        Source: Mattei and Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete
        Data Sets", 2019.
        """
        self._refuse_implicit("imputed values")
        num_samples = checks.positive_integer("num_samples", num_samples)
        if num_draws is not None:
            num_draws = checks.positive_integer("num_draws", num_draws)
        _check_imputable(_last_layer(self.decoder), num_draws)
        arrays = self._arrays(x)
        values = self._split(arrays)[0]
        if self.preprocessing is not None:
            with noise.fixed(0):
                values = self.prepare(self._placed(values)).numpy()
        gaps = np.isnan(values)
        complete = values.copy() if num_draws is None else np.stack([values] * num_draws)
        incomplete = np.flatnonzero(gaps.reshape(len(gaps), -1).any(axis=1))
        if not len(incomplete):
            return complete
        function = self._imputation if num_draws is None else self._imputations(num_draws)
        rows = self._placed(execution.take(arrays, incomplete))
        packed = self._in_batches(function, rows, seed, num_samples, verbose, merge=None).numpy()
        found = (
            _mean_of_pieces(packed) if num_draws is None else _draws_of_pieces(packed, num_draws)
        )
        found = found.reshape(*complete.shape[: -values.ndim], len(incomplete), *values.shape[1:])
        complete[..., gaps] = found[..., gaps[incomplete]]
        return complete

    def export(  # type: ignore[override]  # Keras's has the first argument only.
        self, filepath: Any, num_samples: int = 1, overwrite: bool = False, dtype: Any = None
    ) -> None:
        """Write the model for programs that have TensorFlow alone: a SavedModel, or TFLite.

        The SavedModel has the signatures `encode`, `decode`, `sample`, `reconstruct` and `elbo`,
        which take a batch of any size, and a seed where they draw; see docs/serving.md. They give
        the numbers of the methods with the same seed. A name that ends in `.tflite` makes a file
        with the decoder alone, from z to the mean of x.

        Args:
          filepath: a folder for the SavedModel, which is made, or the name of a `.tflite` file.
          num_samples: the number of draws for each example in the signature `elbo`.
          overwrite: whether to replace what an earlier export wrote there.
          dtype: of x in the signatures, as "uint8"; None for that of the first data that the model
            was given, of floating-point numbers Keras's `floatx()`.

        Raises:
          ValueError: for a model that has not been built; if TFLite lacks what the decoder needs.
          TypeError: for a dtype that is none of numbers.
          FileExistsError: if there is something at the path.

        Example:
          >>> import tempfile
          >>> from tfpvae import likelihoods, posteriors, priors
          >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
          >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
          >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
          >>> vae.build((None, 3))
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     vae.export(f"{folder}/vae")
          ...     served = tf.saved_model.load(f"{folder}/vae").signatures
          >>> sorted(served)
          ['decode', 'elbo', 'encode', 'reconstruct', 'sample']
          >>> served["sample"](num=tf.constant(5), seed=tf.constant([0, 1]))["samples"].shape
          TensorShape([5, 3])
        """
        if not self.built:
            raise ValueError(
                "export: got a model that has not seen data yet, wanted one that is built: call "
                "fit(x), or build((None, ...)) with the shape of x"
            )
        num_samples = checks.positive_integer("num_samples", num_samples)
        dtype = serving.numeric("dtype", dtype or self._data_dtype or keras.backend.floatx())
        if str(filepath).endswith(".tflite"):
            decoder = serving.decoder_of(self, self._served(dtype)[1])
            serving.save_tflite(filepath, decoder, overwrite)
        else:
            serving.save(filepath, self._signatures(num_samples, dtype), overwrite)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """The mean of `predict_distribution(x)`, in batches, as `keras.Model.predict`."""
        checks.fit_settings(kwargs)
        if not isinstance(x, (tf.data.Dataset, keras.utils.Sequence)):
            x = self._data(x)
        return super().predict(x, *args, **kwargs)

    def predict_step(self, data: Any) -> Any:
        """The mean of the likelihood at the mean of the posterior, for one batch."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with noise.fixed(0):
            return tf.convert_to_tensor(self._prediction(x))

    @_without_keras
    def example_losses(self, x: Any, y: Any, training: bool) -> tuple[Any, dict[str, Any], Any]:
        """The loss of each example, its nll and kl, and the likelihood."""
        objective, (_, condition) = self.objective, self._split(x)
        prior = self.prior(condition, training=training)
        q, passed_on = self._encode(x, training)
        objective.check_distribution(q)
        sample = objective.sample(q, prior, passed_on, training)
        z = self._codes(sample.z)
        gate = objectives.Gate(objective.uses_path)
        # Where nothing is to be weighted z stays the tensor that it is: the bijectors of flows know
        # the draws that they made, and need not invert themselves to score them.
        z = z if objective.differentiates else gate(z)
        p = self._decode(z, training, condition)
        if sample.weights is not None and condition is None:  # z were decoded once for all x.
            p = blocks.repeated(p, tf.shape(x)[0])
        log_likelihood = losses.log_likelihood(y, p)
        regularizer = regularizers.KLDivergenceRegularizer(prior, self._use_exact_kl)
        kl_by_layer: dict[str, Any] = {}
        if not self._has_densities:
            kl = None
        elif sample.kl_by_layer is None:
            own = None if objective.num_samples is None else z
            kl, kl_by_layer = self._divergence(q, own, regularizer)
        else:
            kl = tf.add_n(sample.kl_by_layer)
            kl_by_layer = dict(zip(self._kl_terms, sample.kl_by_layer, strict=False))
        draws = objectives.Draws(
            posterior=q,
            prior=prior,
            z=z,
            gate=gate,
            log_likelihood=log_likelihood,
            kl=kl,
            kl_by_layer=kl_by_layer,
            kl_by_dimension=lambda: regularizer.divergence_by_dimension(q),
            dream=(lambda: self._dream(x, y, training)) if training else None,
            weights=sample.weights,
            data=x,
        )
        loss, reported = objective(draws)
        if training:
            objective.advance(kl, kl_by_layer)
        nll = draws.nll
        if sample.weights is not None and self._has_metrics:  # They compare a plain mean.
            p = self._decode(passed_on, False, condition)
        known = {} if kl is None else {"elbo": -(nll + kl), "kl": kl}
        terms = {"nll": nll, **known, **kl_by_layer, **reported}
        terms |= {part.name: part.divergence(q) for part in self._aggregate_parts}
        return loss, terms, p

    def total_loss(self, losses: Any, terms: dict[str, Any], weight: Any) -> Any:
        """The loss of a batch, with the weighted divergences of the aggregate posterior."""
        total = super().total_loss(losses, terms, weight)
        for part in self._aggregate_parts:
            total += tf.cast(part.weight, total.dtype) * tf.cast(terms[part.name], total.dtype)
        return total

    def before_step(self, x: Any, y: Any) -> None:
        """Let the objective's discriminator, if it has one, take its steps."""
        if self.objective.discriminator is None:
            return
        data, _ = self.prepare_batch(x, y)
        q, _ = self._encode(data, True)
        self.objective.update(data, q, self.prior(self._split(data)[1], training=True))

    def build_optimizers(self) -> None:
        """Make the variables of the optimizers, and the discriminator."""
        super().build_optimizers()
        if self.objective.discriminator is not None and self.built:
            self.objective.build(self._data_size + math.prod(self.prior.event_shape))

    def _set_aside(self, discriminator: Any) -> None:
        """Keep the objective's discriminator, which is saved, but is no part of the model.

        Past Keras's tracking, or the model's optimizer would train it.
        """
        object.__setattr__(self, "discriminator", discriminator)
        if discriminator is not None:  # Also for `tf.train.Checkpoint`.
            self._track_trackable(discriminator, "discriminator", overwrite=True)

    def _refuse_implicit(self, wanted: str) -> None:
        """Raise ValueError if prior or posterior have no density."""
        for name, part in (("posterior", self.encoder), ("prior", self.prior)):
            if not blocks.has_density(part):
                raise ValueError(
                    f"{name}: got an implicit one, which has no known density, and so no {wanted}; "
                    "`adversarial_elbo` of objectives.AdversarialELBO estimates the ELBO"
                    + (
                        ", and log_marginal_likelihood(x, method='ais', proposal='prior') log p(x)"
                        if blocks.has_density(self.prior)
                        else ""
                    )
                )

    @property
    def _aggregate(self) -> Any:
        """The regularizer of the posterior, which is of the aggregate posterior; or None."""
        return _regularizer_of(self.encoder)

    @property
    def _aggregate_parts(self) -> list[Any]:
        regularizer = self._aggregate
        return [] if regularizer is None else regularizer.parts

    def _divergence(self, q: Any, z: Any, regularizer: Any) -> tuple[Any, dict[str, Any]]:
        """KL(q(z|x) || p(z)) of each example, and its parts by name, if z has layers."""
        return regularizer.divergence(q, z), {}

    def check_trained(self) -> None:
        """Warn if the weight of the KL has not come to 1."""
        weights = np.ravel(schedules.value_of(self.objective.kl_weight)).tolist()
        if set(weights) == {1.0}:
            return
        remaining = self.objective.schedule and self.objective.schedule.remaining()
        shown = ", ".join(f"{weight:.4g}" for weight in weights)
        for part in self._aggregate_parts:
            shown += f", {part.name} of weight {float(part.weight):.4g}"
        warnings.warn(
            f"fit ended with kl_weight = {shown}: the loss is not the negative ELBO, `elbo` in the "
            "history is the ELBO"
            + (f"; the weight takes {remaining} more steps to stay at 1" if remaining else ""),
            UserWarning,
            stacklevel=4,
        )

    def _dream(self, data: Any, y: Any, training: bool) -> Any:
        """The log q(z|x) `[B]` of as many (x, z), drawn from the model, as there are examples."""
        x, condition = self._split(data)
        if y is not x:
            raise ValueError(
                "y: got targets that are not x, wanted none: the sleep phase encodes what the "
                "model draws; use objectives.ReweightedWakeSleep(sleep=0)"
            )
        z = self._prior_draws(tf.shape(x)[0], condition)
        p = self._decode(z, training, condition)
        drawn = tf.stop_gradient(tf.cast(p.sample(seed=noise.next_seed()), x.dtype))
        q = self.encoder(_joined(drawn, condition), training=training)
        return q.log_prob(tf.stop_gradient(z))

    def check_data(self, x: np.ndarray, y: np.ndarray | None, arguments: tuple[str, str]) -> None:
        """Raise ValueError unless the encoder takes x and the likelihood can have made y."""
        block = _last_layer(self.decoder)
        scored = isinstance(block, blocks.Block)
        plain = y is None and self.preprocessing is None
        if self.takes_missing:
            self._check_encoder(x, arguments[0])
        elif not (plain and scored) and not np.isfinite(x).all():
            raise ValueError(f"{arguments[0]}: got NaN or infinite values, wanted finite numbers")
        if y is not None and not scored and not np.isfinite(y).all():
            raise ValueError(f"{arguments[1]}: got NaN or infinite values, wanted finite numbers")
        if not scored:
            return
        if y is not None or plain:
            block.check_values(x if y is None else y, arguments[1])
        else:
            with noise.fixed(0):
                for rows in np.array_split(x, math.ceil(len(x) / 4096)):
                    block.check_values(self.prepare(rows).numpy(), arguments[1])

    def _check_encoder(self, x: np.ndarray, argument: str) -> None:
        """Raise ValueError for infinite values, or for NaN that the encoder passes on."""
        if np.isinf(x).any():
            raise ValueError(f"{argument}: got infinite values, wanted finite numbers or NaN")
        missing = np.isnan(x).reshape(len(x), -1).any(axis=1)
        rows = x[missing][:64]
        if not len(rows) or not self._posterior_has_nan(rows):
            return
        filled = np.where(np.isnan(rows), 0, rows).astype(x.dtype)
        if not self._posterior_has_nan(filled):  # Or else it is the weights that are NaN.
            raise ValueError(
                f"{argument}: got NaN, for which the encoder puts out NaN, wanted an encoder that "
                "takes missing values: begin it with networks.FillMissing()"
            )

    def _posterior_has_nan(self, x: np.ndarray) -> bool:
        with noise.fixed(0):
            _, z = self._encode(self.prepare(self._placed(x)), False)
        return bool(tf.reduce_any(tf.math.is_nan(z)))

    @property
    def data_dtype(self) -> str:
        """The type in which data are scored: that of the prior, which a saved model remembers."""
        return self.prior.dtype

    @property
    def takes_missing(self) -> bool:
        """Whether NaN in the data stands for what is missing: if the likelihood is `Masked`."""
        return _takes_missing(_last_layer(self.decoder))

    def build(self, input_shape: Any) -> None:
        """Build both networks by passing one example of this shape `[B, ...]` through them."""
        with noise.fixed(0), blocks.floatx(self.data_dtype):
            self._build_networks(self.prepare(self._zeros(input_shape)))
        keras.layers.Layer.build(self, input_shape)

    def _zeros(self, input_shape: Any) -> Any:
        """One row of data of this shape `[B, ...]`."""
        return tf.zeros((1, *input_shape[1:]), self.prior.dtype)

    def _build_networks(self, data: Any) -> None:
        """Build both networks by passing one example, prepared, through them."""
        _, condition = self._split(data)
        self._data_size = sum(math.prod(v.shape[1:]) for v in tf.nest.flatten(data))
        z = self._zeros((1, *self.prior.event_shape))
        for network, given in ((self.encoder, data), (self.decoder, _joined(z, condition))):
            _build_for_any_batch(network, given)
        with noise.fixed(0):
            q, z = self._encode(data, False)
            prior = self.prior(condition)
            _check_sizes(prior.event_shape, q.event_shape)
            discrete.check_same_kind(q, prior)
            self._decode(z, False, condition)

    def get_build_config(self) -> dict[str, Any] | None:
        """What `build` was called with, and the type of the data."""
        config = super().get_build_config()
        return config and config | {
            "data_dtype": self._data_dtype,
            "feature_names": self.feature_names,
        }

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Build as the saved model was."""
        self._data_dtype = config.get("data_dtype")
        self._feature_names = config.get("feature_names")
        super().build_from_config(config)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        return {"name": self.name} | {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in _PARTS
            if getattr(self, name) is not None
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "VAE":
        """The model that a configuration describes."""
        del custom_objects  # Keras has put them into scope.
        with blocks.floatx(config["prior"]):
            return cls(
                **{
                    name: keras.saving.deserialize_keras_object(value) if name in _PARTS else value
                    for name, value in config.items()
                }
            )

    # What `export` writes.

    def _signatures(self, num_samples: int, dtype: Any) -> dict[str, serving.Signature]:
        return serving.of_vae(self, *self._served(dtype), num_samples)

    def _served(self, dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The specs by name of the data, and of what the decoder is given beside z."""
        return {"x": serving.rows(self._build_input_shape[1:], dtype)}, {}

    # Data are x, or of a conditional model a list [x, condition]; both are tensors of rows.

    def _split(self, data: Any) -> tuple[Any, Any]:
        """The x that the likelihood scores, and what it is conditioned on, None for nothing."""
        return data, None

    def _prepared(self, data: Any) -> Any:
        """The data as the networks take them."""
        return self.prepare(data)

    @_without_keras
    def _encode(self, data: Any, training: bool | None) -> tuple[Any, Any]:
        """The posterior, and the z that its block passes on."""
        q = self.encoder(data, training=training)
        if not isinstance(q, tfd.Distribution):
            raise TypeError(
                f"encoder: got one that returns {type(q).__name__}, wanted a distribution: end it "
                "in a block of tfpvae.posteriors"
            )
        return q, self._codes(tf.convert_to_tensor(q))

    def _codes(self, z: Any) -> Any:
        """Draws of z as the decoder takes them: in floating point, of known size."""
        lead = z.shape.rank - len(self.prior.event_shape)
        if not z.shape[lead:].is_fully_defined():
            z = tf.ensure_shape(z, [None] * lead + list(self.prior.event_shape))
        return z if z.dtype.is_floating else tf.cast(z, self.prior.dtype)

    def _given_codes(self, given: Any) -> Any:
        """The z that a user gives, checked; of a tensor the gradients go on."""
        checks.refuse_keras3("z", given)
        if tf.is_tensor(given):
            z = tf.cast(given, self.prior.dtype)
        else:
            with np.errstate(over="ignore"):  # What is too large for the type is found below.
                z = self._placed(checks.as_array("z", given))
        ndims = len(self.prior.event_shape)
        if not tf.is_tensor(given) and not np.isfinite(z).all():
            raise ValueError("z: got NaN or infinite values, wanted finite numbers")
        if z.shape.rank < ndims or tuple(z.shape[z.shape.rank - ndims :]) != self.prior.event_shape:
            wanted = ", ".join(map(str, ("...", *self.prior.event_shape)))
            raise ValueError(f"z: got shape {tuple(z.shape)}, wanted ({wanted})")
        return self._codes(z)

    def _decode(self, z: Any, training: bool | None, condition: Any = None) -> Any:
        """The likelihood at z `[..., D]`; the decoder itself sees one batch axis."""
        if condition is not None:
            z, condition = _aligned(z, condition, len(self.prior.event_shape))
        batch_ndims = z.shape.rank - len(self.prior.event_shape)
        several = batch_ndims != 1
        flat = tf.reshape(z, tf.concat([[-1], self.prior.event_shape], 0)) if several else z
        p = self.decoder(_joined(flat, condition), training=training)
        if not isinstance(p, tfd.Distribution):
            raise TypeError(
                f"decoder: got one that returns {type(p).__name__}, wanted a distribution: end it "
                "in a block of tfpvae.likelihoods"
            )
        return blocks.rebatch(p, tf.shape(z)[:batch_ndims], batch_ndims) if several else p

    def _prior_draws(self, num: Any, condition: Any = None) -> Any:
        """Draws of z `[num, ...]` from the prior, of one that has a condition one for each."""
        p = self.prior(condition)
        return self._codes(p.sample(() if p.batch_shape.rank else num, seed=noise.next_seed()))

    # What runs in batches, see `execution.Batched`.

    def _posterior(self, x: Any) -> Any:
        return self._encode(self._prepared(x), False)[0]

    def _prediction(self, x: Any) -> Any:
        data = self._prepared(x)
        return self._decode(self._mean(self._encode(data, False)[0]), False, self._split(data)[1])

    def _mean(self, q: Any) -> Any:
        """The mean of a posterior."""
        return q.mean()

    def _sample(self, rows: Any, num_samples: Any, seed: Any) -> Any:
        with noise.fixed(seed):
            z = self._prior_draws(tf.shape(rows)[0])
            return self._decode(z, False).sample(seed=noise.next_seed())

    def _sample_at(self, z: Any, num_samples: Any, seed: Any) -> Any:
        with noise.fixed(seed):
            return self._decode(self._codes(z), False).sample(seed=noise.next_seed())

    def _reconstruct(self, x: Any, num_samples: Any, seed: Any) -> Any:
        with noise.fixed(seed):
            data = self._prepared(x)
            z = self._codes(self._encode(data, False)[0].sample(seed=noise.next_seed()))
            return tf.convert_to_tensor(self._decode(z, False, self._split(data)[1]))

    def _log_weights(self, x: Any, num_samples: Any, seed: Any) -> Any:
        with noise.fixed(seed):
            q, z, p, x, condition = self._draw(x, num_samples)
            return self._weigh(q, z, p.log_prob(x), condition)

    def _elbo(self, x: Any, num_samples: Any, seed: Any) -> Any:
        with noise.fixed(seed):
            q, z, p, x, condition = self._draw(x, num_samples)
            log_likelihood, prior = p.log_prob(x), self.prior(condition)
        kl, _ = self._divergence(q, z, regularizers.KLDivergenceRegularizer(prior))
        return tf.reduce_sum(log_likelihood, axis=0) - tf.cast(num_samples, kl.dtype) * kl

    def _imputation(self, x: Any, num_samples: Any, seed: Any) -> Any:
        """The weighted mean of the E[x|z_s], and the log of the sum of their weights."""
        with noise.fixed(seed):
            q, z, p, x, condition = self._draw(x, num_samples)
            log_weights = self._weigh(q, z, p.log_prob(x), condition)
            mean = _flat(p.mean(), 2)
            weights = tf.nn.softmax(log_weights, axis=0)
            total = tf.reduce_logsumexp(log_weights, axis=0, keepdims=True)
            return _pack(total, tf.reduce_sum(weights[..., None] * mean, axis=0, keepdims=True))

    def _imputations(self, num_draws: int) -> Any:
        def impute(x: Any, num_samples: Any, seed: Any) -> Any:
            """Draws of x, each from one of the z_s, and what they were picked by.

            The maximum of log w_s + g_s, where g_s are Gumbel variables, is at s with probability
            w_s, and the maximum over several pieces of the z_s is that over all.
            """
            with noise.fixed(seed):
                q, z, p, x, condition = self._draw(x, num_samples)
                log_weights = self._weigh(q, z, p.log_prob(x), condition)
                gumbel = tfd.Gumbel(tf.zeros([], log_weights.dtype), 1.0)
                shape = tf.concat([[num_draws], tf.shape(log_weights)], 0)
                scores = log_weights + gumbel.sample(shape, seed=noise.next_seed())
                picked = tf.argmax(scores, axis=1, output_type=tf.int32)  # [K, B]
                columns = tf.broadcast_to(tf.range(tf.shape(z)[1]), tf.shape(picked))
                z = tf.gather_nd(z, tf.stack([picked, columns], axis=-1))
                draws = self._decode(z, False, condition).sample(seed=noise.next_seed())
                return _pack(tf.reduce_max(scores, axis=1), _flat(draws, 2))

        impute.__name__ = f"_imputations({num_draws})"
        return impute

    def _draw(self, data: Any, num_samples: Any) -> tuple[Any, Any, Any, Any, Any]:
        """The posterior, draws of z `[S, B, D]` from it, p(x|z), and x and condition, prepared."""
        data = self._prepared(data)
        x, condition = self._split(data)
        q, _ = self._encode(data, False)
        z = self._codes(q.sample(num_samples, seed=noise.next_seed()))
        return q, z, self._decode(z, False, condition), x, condition

    def _weigh(self, q: Any, z: Any, log_likelihood: Any, condition: Any) -> Any:
        """The log weights `[S, B]` of draws of z."""
        return log_likelihood + self.prior(condition).log_prob(z) - q.log_prob(z)

    def _in_batches(
        self,
        function: Any,
        rows: Any,
        seed: Any,
        num_samples: int = 1,
        verbose: Any = "auto",
        merge: Any = tf.add,
    ) -> Any:
        name = function.__name__
        if name not in self._batched:
            self._batched[name] = execution.Batched(function, merge)
        seed = self.noise.next() if seed is None else noise.as_seed(seed)
        return self._batched[name](rows, seed, num_samples, verbose)

    def _distribution(self, function: Any, x: Any) -> Any:
        """The distribution that a function makes of data, its parameters computed in batches."""

        def params(x: Any, num_samples: Any, seed: Any) -> Any:
            with noise.fixed(seed):  # TFP's global generator is left alone.
                return blocks.source(function(x))[1]

        params.__name__ = function.__name__
        x = self._data(x)
        with noise.fixed(0):
            source = blocks.source(function(execution.take(x, slice(1))))
            if source is None:  # Not one of our blocks: nobody knows its parameters.
                return function(x).tensor_distribution
        return source[0]._distribution(self._in_batches(params, x, seed=0))

    def _check_arrays(self, names: tuple[str, ...], x: np.ndarray, y: np.ndarray | None) -> None:
        super()._check_arrays(names, x, y)
        if self._data_dtype is None:
            whole = x.dtype.kind in "biu"
            self._data_dtype = x.dtype.name if whole else keras.backend.floatx()

    def _data(self, x: Any) -> Any:
        """The data as a tensor that the model can score, or a list of them."""
        return self._placed(self._arrays(x))

    def _arrays(self, x: Any) -> Any:
        """The data, checked, as an array or a list of arrays."""
        self._check_columns("x", x)
        array = checks.as_array("x", x)
        self._check_arrays(("x",), array, None)
        self._learn_columns(x)
        return array

    def _checked(self, names: tuple[str, str, str], x: Any, y: Any, weight: Any) -> inputs.Data:
        self._check_columns(names[0], x)
        data = super()._checked(names, x, y, weight)
        self._learn_columns(x)
        return data

    @property
    def feature_names(self) -> list[str] | None:
        """The columns of the first data frame that the model was given, None without one.

        They are saved with the model. A later data frame has to have the same, in this order.
        """
        return None if self._feature_names is None else [*self._feature_names]

    def _check_columns(self, argument: str, x: Any) -> None:
        """Raise ValueError if a data frame has others than the model knows, or the likelihood."""
        checks.check_columns(argument, x, self.feature_names or self._columns_of_likelihood())

    def _learn_columns(self, x: Any) -> None:
        if self._feature_names is None:
            self._feature_names = checks.column_names(x)

    def _columns_of_likelihood(self) -> list[str] | None:
        """The names of a table's columns, if each is a number of x, and they are no numbers."""
        block = _last_layer(self.decoder)
        block = getattr(block, "component", block)  # of Masked
        if not isinstance(block, likelihoods.Columns) or self.preprocessing is not None:
            return None
        scalar = all(column.event_shape == () for column in block.columns.values())
        names = list(block.columns)
        return names if scalar and not all(name.isdecimal() for name in names) else None


def _joined(values: Any, condition: Any) -> Any:
    """What a network is called with: the values, and the condition if there is one."""
    return values if condition is None else [values, condition]


def _aligned(z: Any, condition: Any, event_ndims: int) -> tuple[Any, Any]:
    """The z `[..., B, D]`, and conditions `[B, ...]` repeated to one for each of them, flat."""
    lead, event = z.shape.rank - event_ndims, z.shape[z.shape.rank - event_ndims :]
    batch = tf.broadcast_dynamic_shape(tf.shape(z)[:lead], tf.shape(condition)[:1])
    z = tf.broadcast_to(z, tf.concat([batch, event], 0))
    rows = tf.broadcast_to(condition, tf.concat([batch, tf.shape(condition)[1:]], 0))
    flat = tf.reshape(rows, tf.concat([[-1], condition.shape[1:]], 0))
    return tf.ensure_shape(z, [None] * max(lead, 1) + list(event)), flat


def _build_for_any_batch(network: Any, example: Any) -> None:
    """Build a Sequential model at once: else it is rebuilt, which takes draws, later."""
    if isinstance(network, keras.Sequential) and not network.built:
        network.build(tf.nest.map_structure(lambda v: (None, *v.shape[1:]), example))


def _last_layer(network: Any) -> Any:
    """The layer that makes a network's output: Sequential and functional models list it last."""
    while getattr(network, "layers", None):
        network = network.layers[-1]
    return network


def _takes_missing(block: Any) -> bool:
    """Whether a likelihood, or one that it is made of, is `Masked`."""
    return any(isinstance(inner, likelihoods.Masked) for inner in _all_blocks(block))


def _check_imputable(block: Any, num_draws: int | None) -> None:
    """Raise ValueError unless missing entries have p(x_mis | z), and a mean if that is wanted."""
    title = block.title() if isinstance(block, blocks.Block) else type(block).__name__
    if not _takes_missing(block):
        raise ValueError(
            f"decoder: got one that ends in {title}, wanted likelihoods.Masked(...), which scores "
            "what is observed of an example"
        )
    mixtures = [inner for inner in _all_blocks(block) if isinstance(inner, likelihoods.MixtureOf)]
    if any(mixture.component.event_shape for mixture in mixtures):
        raise ValueError(
            f"decoder: got one that ends in {title}, a mixture of whole vectors, wanted entries "
            "that are independent given z: what is observed of a vector tells its component, and "
            "so of the rest more than z does"
        )
    if num_draws is None and block.conversion.name != "mean":
        raise ValueError(
            f"num_draws: got None, wanted how many draws, because not all values of {title} have a "
            "mean; if they do, say so: Masked(..., convert_to_tensor_fn='mean')"
        )


def _all_blocks(block: Any) -> Iterator[Any]:
    """The block, and those that it is made of."""
    yield block
    parts = block.columns.values() if isinstance(block, likelihoods.Columns) else ()
    for part in (*parts, getattr(block, "component", None)):
        if isinstance(part, blocks.Block):
            yield from _all_blocks(part)


# Results for pieces of the draws: the log weight of the piece `[P, N]`, and values `[P, N, size]`,
# in one tensor `[P, N, 1 + size]`, as `execution.Batched` takes it.


def _flat(values: Any, ndims: int) -> Any:
    """The values with the axes after the first `ndims` as one."""
    size = math.prod(values.shape[ndims:])
    return tf.reshape(values, tf.concat([tf.shape(values)[:ndims], [size]], 0))


def _pack(log_weights: Any, values: Any) -> Any:
    return tf.concat([log_weights[..., None], tf.cast(values, log_weights.dtype)], axis=-1)


def _mean_of_pieces(packed: np.ndarray) -> np.ndarray:
    """The mean `[N, size]` over the pieces by their weights."""
    weights = special.softmax(packed[..., 0], axis=0)
    return np.sum(weights[..., None] * packed[..., 1:], axis=0)


def _draws_of_pieces(packed: np.ndarray, num_draws: int) -> np.ndarray:
    """The draws `[K, N, size]` of the pieces `[P * K, N, 1 + size]` that win."""
    pieces = packed.reshape(-1, num_draws, *packed.shape[1:])
    best = pieces[..., 0].argmax(axis=0)
    return np.take_along_axis(pieces, best[None, ..., None], axis=0)[0, ..., 1:]


def _refuse_kl(encoder: Any) -> None:
    """Raise ValueError if a layer adds the KL that the model's objective adds already."""
    for layer in (encoder, *encoder.submodules):
        regularizer = getattr(layer, "activity_regularizer", None)
        if isinstance(layer, tfp.layers.DistributionLambda) and regularizer is not None:
            if _is_aggregate(regularizer) and regularizer is _regularizer_of(encoder):
                continue
            raise ValueError(
                f"encoder: its posterior {layer.name!r} has an activity_regularizer, wanted none "
                "but those of the aggregate posterior, as regularizers.MaximumMeanDiscrepancy: VAE "
                "adds the KL to the loss itself, so it would count twice"
            )
        if isinstance(layer, tfp.layers.KLDivergenceAddLoss):
            raise ValueError(
                f"encoder: its layer {layer.name!r} adds a KL to the loss, wanted none: VAE adds "
                "it itself, so it would count twice"
            )


def _is_aggregate(regularizer: Any) -> bool:
    """Whether a regularizer is of the aggregate posterior, or a sum of such."""
    parts = getattr(regularizer, "parts", [regularizer])
    return all(isinstance(part, regularizers.AggregateRegularizer) for part in parts)


def _regularizer_of(encoder: Any) -> Any:
    """The regularizer of the posterior of an encoder that has passed `_refuse_kl`, or None."""
    for layer in (encoder, *encoder.submodules):
        regularizer = getattr(layer, "activity_regularizer", None)
        if isinstance(layer, tfp.layers.DistributionLambda) and regularizer is not None:
            return regularizer
    return None


def _prior_of(prior: Any, model: priors.Prior) -> Any:
    """The distribution that z is drawn from in place of the prior of the model."""
    checks.refuse_keras3("prior", prior)
    if not isinstance(prior, priors.Prior | tfd.Distribution):
        raise TypeError(
            f"prior: got {prior!r}, wanted a block of tfpvae.priors or a tfd.Distribution"
        )
    p = prior() if isinstance(prior, priors.Prior) else prior
    if p.batch_shape.rank or tuple(p.event_shape) != model.event_shape:
        raise ValueError(
            f"prior: got one with batch_shape {tuple(p.batch_shape)} and event_shape "
            f"{tuple(p.event_shape)}, wanted () and {model.event_shape}, that of the model's z"
        )
    return p


def _check_sizes(prior: Any, posterior: Any) -> None:
    if tuple(prior) != tuple(posterior):
        raise ValueError(
            f"prior and posterior differ in size: the prior has events of shape {tuple(prior)}, "
            f"the posterior of shape {tuple(posterior)}"
        )
