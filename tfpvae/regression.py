"""Bayesian regression: the blocks of a VAE with the coefficients as the latent variable."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import (
    blocks,
    checks,
    flows,
    inputs,
    likelihoods,
    losses,
    noise,
    posteriors,
    priors,
    regularizers,
    serving,
    training,
)

tfb, tfd = tfp.bijectors, tfp.distributions

#: what a regression explains, by tfd's names: the first of them that the likelihood leaves free
LOCATIONS = ("loc", "logits", "log_rate", "rate", "mean", "probs")

_OF_CLASSES = (likelihoods.Bernoulli, likelihoods.Categorical, likelihoods.Ordinal)

_STEPS, _REPORTS, _FULL_BATCH, _MINI_BATCH = 500, 10, 4096, 1024
_LEARNING_RATE = 0.05
_MAX_CURVATURE = 1000  # coefficients, for whose square the second derivatives are computed
_LEAST_CURVATURE = 1e-2  # where the density is flat
_MAX_NUMBERS = 2**22  # in one piece of a prediction


@keras.saving.register_keras_serializable("tfpvae")
class BayesianRegression(training.ProbabilisticModel):
    r"""Regression with a prior on the coefficients and any likelihood.

    $$ p(y, w \mid X) = p(w) \prod_n p(y_n \mid \eta_n), \qquad \eta_n = x_n^\top W + b $$

    The coefficients are the latent variable; the posterior block approximates their posterior by
    maximizing the evidence lower bound, of which `loss` is the negative share of a row, in nats:

    $$ \log p(y \mid X) \ge \mathbb E_{q(w)}\Bigl[\sum_n \log p(y_n \mid \eta_n)\Bigr]
       - \mathrm{KL}\bigl(q(w)\ \|\ p(w)\bigr) = -N \cdot \mathrm{loss} $$

    The likelihood block says which regression it is: `Normal(scale=1.0)` linear, `Bernoulli()`
    logistic, `Categorical(num_classes=3)` softmax, `Poisson()`, `NegativeBinomial()`,
    `StudentT(df=4.0)`, `Ordinal(num_classes=5)` and so on. Its location (`loc`, `logits`,
    `log_rate`, ...) depends on x; what else it leaves free, such as the scale of `Normal()`, is one
    unknown number for all rows, with a posterior like the coefficients'. `depends` chooses others.

    Shapes: x `[N, P]`, y `[N, *event_shape]`, coefficients `[D]`.

    Args:
      likelihood: p(y|eta), a block of `tfpvae.likelihoods`; its `event_shape` is that of one y.
      prior: p(w), a block of `tfpvae.priors`: of `event_shape` `()`, the same for every
        coefficient, or of the number D of them, in the order of `coefficient_names`; standard
        normal if None. What the prior leaves free is learned (type-II maximum likelihood):
        `priors.Normal(loc=0.0)` learns its scale.
      posterior: q(w), a block, or a function from D to a block, such as a class of
        `tfpvae.posteriors`; `posteriors.FullRankNormal` if None. Of flows take one whose inverse
        is quick: `lambda size: posteriors.Flow(size, flows.RealNVP())`.
      depends: names of the parameters of the likelihood that depend on x; its location if None.
      fit_intercept: whether what depends on x has an intercept. Not with ordinal likelihoods, whose
        cutpoints are intercepts.
      intercept_scale: how many times as wide as the prior of the weights is that of intercepts and
        of parameters that do not depend on x.
      standardize: whether the columns of x are brought to mean 0 and standard deviation 1; the
        prior is then one on the standardized scale, and `coefficients` are on the scale of x.
      num_samples: draws of the coefficients in a step of training.
      class_names: names of the classes of y, in their order. Labels in y that are names have to be
        among them. None takes the sorted names in y.
      feature_names: names of the columns of x; None takes those of a data frame.
      seed: of the model's noise, see `noise.Noise`.
      **kwargs: of `keras.Model`.

    Raises:
      TypeError: for parts that are no blocks.
      ValueError: for unknown names.

    Example:
      >>> from tfpvae import likelihoods
      >>> rng = np.random.default_rng(0)
      >>> x = rng.normal(size=(100, 2)).astype("float32")
      >>> y = (x[:, 0] > 0).astype("float32")
      >>> model = BayesianRegression(likelihoods.Bernoulli(), seed=0)
      >>> history = model.fit(x, y, steps=300, verbose=0)
      >>> model.coefficient_names
      ['x0', 'x1', 'intercept']
      >>> bool(model.coefficients.mean()[0] > 1.0)
      True
      >>> model.predict_distribution(x).mean().shape
      TensorShape([100])

    Source: Jaakkola and Jordan, "Bayesian parameter estimation via variational methods", 2000;
    Kucukelbir et al., "Automatic Differentiation Variational Inference", 2017.
    """

    terms = ("nll", "kl")

    remedy = "a narrower prior, standardize=True or a smaller learning rate may help"

    def __init__(
        self,
        likelihood: Any,
        prior: Any = None,
        posterior: Any = None,
        *,
        depends: Sequence[str] | None = None,
        fit_intercept: bool | None = None,
        intercept_scale: float = 10.0,
        standardize: bool = False,
        num_samples: int = 16,
        class_names: Sequence[Any] | None = None,
        feature_names: Sequence[str] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed, **kwargs)
        if not isinstance(likelihood, blocks.Block) or not likelihood.free:
            raise TypeError(
                f"likelihood: got {likelihood!r}, wanted a block of tfpvae.likelihoods with a free "
                "parameter, such as likelihoods.Bernoulli()"
            )
        if not isinstance(prior, priors.Prior | None):
            raise TypeError(f"prior: got {prior!r}, wanted a block of tfpvae.priors or None")
        if not (posterior is None or isinstance(posterior, blocks.Block) or callable(posterior)):
            raise TypeError(
                f"posterior: got {posterior!r}, wanted a block, or a function that makes one for D "
                "coefficients, such as posteriors.DiagonalNormal"
            )
        intercept_scale = checks.positive_number("intercept_scale", intercept_scale)
        if depends is not None:
            depends = checks.sequence("depends", depends, "a list of names of parameters")
        if class_names is not None:
            class_names = checks.sequence("class_names", class_names, "a list of names")
        names = [parameter.name for parameter in likelihood.free]
        unknown = [name for name in depends or () if name not in names]
        if unknown or depends == []:
            raise ValueError(f"depends: got {list(depends or ())}, wanted some of {names}")
        self.likelihood = likelihood
        self.prior = priors.StandardNormal(()) if prior is None else prior
        # A block, or what makes one when the number of coefficients is known.
        self._posterior: Any = posterior or posteriors.FullRankNormal
        self._depends = tuple(depends) if depends else _location(names)
        self._fit_intercept = (
            "cutpoints" not in names if fit_intercept is None else bool(fit_intercept)
        )
        self._intercept_scale = intercept_scale
        self._standardize = checks.flag("standardize", standardize)
        self._num_draws = checks.positive_integer("num_samples", num_samples)
        self._class_names: Any = None if class_names is None else [*class_names]
        if feature_names is not None:
            wanted = "a list of names"
            feature_names = [*map(str, checks.sequence("feature_names", feature_names, wanted))]
        self._feature_names: Any = feature_names
        self._compiled_by_fit = False
        self._regularizer = regularizers.KLDivergenceRegularizer(self._prior_distribution)

    # What is where in the vector of coefficients.

    def build(self, input_shape: Any) -> None:
        """Make the weights for inputs `[N, P]`."""
        if len(input_shape) != 2 or not input_shape[1]:
            raise ValueError(f"x: got shape {tuple(input_shape)}, wanted (N, number of features)")
        self._num_features = int(input_shape[1])
        if self._feature_names is None:
            self._feature_names = [f"x{i}" for i in range(self._num_features)]
        if len(self._feature_names) != self._num_features:
            raise ValueError(
                f"feature_names: got {len(self._feature_names)} names, wanted "
                f"{self._num_features}, one for each column of x"
            )
        taken = ["intercept", *(parameter.name for parameter in self.likelihood.free)]
        twice = [
            name for name in self._feature_names if [*self._feature_names, *taken].count(name) > 1
        ]
        if twice:
            raise ValueError(
                f"feature_names: got {twice[0]!r}, which is also the name of another column, or of "
                "the intercept or a parameter of the likelihood: rename it"
            )
        names = self.coefficient_names
        size = len(names)
        if not isinstance(self._posterior, blocks.Block):
            self._posterior = self._posterior(size)
        for argument, shape, wanted in (
            ("posterior", self._posterior.event_shape, [(size,)]),
            ("prior", self.prior.event_shape, [(), (self._num_coefficients,)]),
        ):
            if shape not in wanted:
                raise ValueError(
                    f"{argument}: got event_shape {shape}, wanted "
                    f"{' or '.join(map(str, wanted))}, because the coefficients are {names}"
                )
        self.unconstrained = self.add_weight(
            name="unconstrained", shape=(self._posterior.params_size,), initializer="zeros"
        )
        state = {"trainable": False, "dtype": self.prior.dtype}
        shape = (self._num_features,)
        self.center = self.add_weight("center", shape, initializer="zeros", **state)
        self.scale = self.add_weight("scale", shape, initializer="ones", **state)
        whole = _has_covariance(self._posterior)
        self.start = self.add_weight("start", (size,), initializer="zeros", **state)
        self.spread = self.add_weight(
            "spread",
            (size, size) if whole else (size,),
            initializer="identity" if whole else "ones",
            **state,
        )
        self.num_data = self.add_weight("num_data", (), initializer="ones", **state)
        keras.layers.Layer.build(self, input_shape)

    def _columns(self, parameter: blocks.Parameter) -> slice:
        """The columns of the design matrix, features and then ones, that a parameter depends on."""
        size = self._num_features
        if parameter.name not in self._depends:
            return slice(size, size + 1)
        return slice(0, size + self._fit_intercept)

    def _pieces(self) -> list[tuple[blocks.Parameter, slice, slice]]:
        """For each parameter of the likelihood its columns and its share of the coefficients."""
        pieces, start = [], 0
        for parameter in self.likelihood.free:
            columns = self._columns(parameter)
            stop = start + parameter.size * (columns.stop - columns.start)
            pieces.append((parameter, columns, slice(start, stop)))
            start = stop
        return pieces

    @property
    def _num_coefficients(self) -> int:
        """How many coefficients there are for the parameters of the likelihood."""
        return self._pieces()[-1][-1].stop

    @property
    def coefficient_names(self) -> list[str]:
        """The names of the coefficients, in their order."""
        terms = [*self._feature_names, "intercept"]
        names = []
        for parameter, columns, _ in self._pieces():
            outputs = [""] if parameter.size == 1 else [f"[{k}]" for k in self._outputs(parameter)]
            if parameter.name not in self._depends:
                names += [f"{parameter.name}{output} (unconstrained)" for output in outputs]
                continue
            several = len(self._depends) > 1
            prefix = f"{parameter.name}: " if several else ""
            names += [f"{prefix}{t}{output}" for output in outputs for t in terms[columns]]
        return names

    def _outputs(self, parameter: blocks.Parameter) -> list[Any]:
        if self._class_names is not None and len(self._class_names) == parameter.size:
            return [*self._class_names]
        return [*range(parameter.size)]

    # The model.

    def _posterior_distribution(self) -> Any:
        """The posterior q(w) of the coefficients on the prior's scale.

        The posterior block describes their distance from `start`, in units of `spread`: so one
        learning rate suits all data.
        """
        return affine(self._posterior.new(self.unconstrained), self.spread, self.start)

    def _prior_distribution(self) -> Any:
        """The prior p(w) of the same."""
        if self.prior.event_shape == ():
            return self.prior.repeated(self._num_coefficients)
        return self.prior()

    def _predictors(self, x: Any, w: Any) -> Any:
        """What the likelihood takes, `[B, S, params_size]`, from x `[B, P]` and w `[S, D]`."""
        features, offset = x[:, : self._num_features], x[:, self._num_features :]
        ones = tf.fill([tf.shape(x)[0], 1], tf.cast(self._intercept_scale, x.dtype))
        design = tf.concat([(features - self.center) / self.scale, ones], axis=1)
        predictors = []
        for parameter, columns, share in self._pieces():
            shape = (-1, parameter.size, columns.stop - columns.start)
            weights = tf.reshape(w[:, share], shape)
            eta = tf.einsum("bc,skc->bsk", design[:, columns], weights)
            located = parameter.name == self._depends[0] and offset.shape[1]
            predictors.append(eta + offset[:, tf.newaxis] if located else eta)
        return tf.concat(predictors, axis=-1)

    @property
    def data_dtype(self) -> str:
        """The type in which data are scored: that of the prior, which a saved model remembers."""
        return self.prior.dtype

    def prepare(self, x: Any) -> Any:
        """The features, and an offset if there is one, in floating point."""
        return tf.cast(x, self.prior.dtype)

    def example_losses(self, x: Any, y: Any, training: bool) -> tuple[Any, dict[str, Any], Any]:
        """The nll of each row, and the share of a row in the KL, which no sample weight changes."""
        q = self._posterior_distribution()
        w = self._training_draws(q)
        p = self.likelihood(tf.transpose(self._predictors(x, w), (1, 0, 2)))
        nll = losses.negative_log_prob(y, p)
        kl = self._kl(q, w) / self.num_data
        return nll, {"nll": nll, "kl": kl}, p

    def _training_draws(self, q: Any) -> Any:
        """The draws `[S, D]` of a step of training."""
        return paired_draws(q, self._num_draws)

    def _kl(self, q: Any, w: Any) -> Any:
        """The KL of the coefficients, with the gradient of "sticking the landing".

        Its noise vanishes where the posterior is exact (Roeder, Wu and Duvenaud, "Sticking the
        Landing", 2017); that of the closed form does not, because the likelihood's noise stays.
        """
        kl = self._regularizer.divergence(q, w)
        log_q = blocks.log_prob_through(q, w)
        path = tf.reduce_mean(log_q - self._prior_distribution().log_prob(w))
        return tf.stop_gradient(kl - path) + path

    def total_loss(self, losses: Any, terms: Any, weight: Any) -> Any:
        """The mean loss of the batch, and its share of the KL."""
        return super().total_loss(losses, terms, weight) + terms["kl"]

    def check_data(self, x: np.ndarray, y: np.ndarray | None, arguments: tuple[str, str]) -> None:
        """Raise ValueError unless x are finite features and the likelihood can have made y."""
        self._check_features(x, arguments[0])
        if y is None:
            raise ValueError("y: got None, wanted what the model explains, one row for each of x")
        self.likelihood.check_values(y, arguments[1])

    def _check_features(self, x: np.ndarray, argument: str) -> None:
        if x.ndim != 2 or x.shape[1] - self._num_features not in (0, 1):
            raise ValueError(f"{argument}: got shape {x.shape}, wanted (N, {self._num_features})")
        with np.errstate(over="ignore"):  # What is too large becomes infinite.
            bad = np.flatnonzero(~np.isfinite(x.astype(self.data_dtype)).all(axis=0))
        if len(bad):
            names = [*self._feature_names, "offset"]
            raise ValueError(
                f"{argument}: got NaN or infinite values in "
                f"{_shortened([names[i] for i in bad])}, wanted finite numbers: remove or fill them"
            )

    # Training.

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`, and who called it; None before it."""
        config = super().get_compile_config()
        return config and config | {"by_fit": self._compiled_by_fit}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved model was; the next `fit` takes a new optimizer if the last did."""
        super().compile_from_config({k: v for k, v in config.items() if k != "by_fit"})
        self._compiled_by_fit = config["by_fit"]

    def compile(self, optimizer: Any = "adam", **kwargs: Any) -> None:
        """Configure training, as `keras.Model.compile`; `fit` does it if you do not."""
        self._compiled_by_fit = False
        super().compile(optimizer, **kwargs)

    def fit(  # type: ignore[override]  # with arguments of its own
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int | None = None,
        *,
        steps: int | None = None,
        offset: Any = None,
        exposure: Any = None,
        sample_weight: Any = None,
        num_data: int | None = None,
        validation_data: Any = None,
        validation_split: float = 0.0,
        **settings: Any,
    ) -> Any:
        """Approximate the posterior of the coefficients.

        Without `compile` before, the optimizer is Adam with a learning rate that falls to zero over
        the steps.

        Args:
          x: features `[N, P]`, or a data frame, or a stream of batches `(x, y)`.
          y: what the likelihood explains, `[N, *event_shape]`; of classes also their names.
          batch_size: rows a step; all of them if None, or 1024 if there are more than 4096.
          epochs: passes over the data, as in Keras, in place of `steps`.
          steps: steps of the optimizer, 500 if None; the history has ten entries then.
          offset: `[N]`, added to the location's linear predictor with no coefficient.
          exposure: `[N]` > 0, for counts with a log link: the rate is proportional to it.
          sample_weight: weights `[N]` of the rows in the likelihood, such as how often they came.
          num_data: rows of a stream, which the KL is divided among.
          validation_data: `(x, y)` or `(x, y, weight)`.
          validation_split: share of the last rows that are held out, as in Keras.
          **settings: the other arguments of `keras.Model.fit`.

        Returns:
          Keras's `History`.

        Raises:
          TypeError: for data that are no numbers.
          ValueError: for data that the model cannot have made: naming the argument, what came, and
            what was wanted.
          FloatingPointError: if the loss became NaN or infinite.

        Warns:
          UserWarning: for constant or linearly dependent columns, for a single row or class: the
            posterior is proper, but much of it is the prior.
        """
        if epochs is not None and steps is not None:
            raise ValueError(f"steps: got {steps} and epochs={epochs}, wanted one of them")
        names = ("x", "y", "sample_weight")
        held_out = None
        if inputs.is_stream(x):
            rest = {"steps": steps, "y": y, "offset": offset, "exposure": exposure}
            size = self._size_of_stream(num_data, rest | {"sample_weight": sample_weight})
            data = self._checked(names, x, None, None)
            plan = _Plan(batch_size, epochs or 1, 1)
        else:
            x, y = self._arrays("x", x, y, offset, exposure, learn=True)
            data = self._checked(names, x, y, sample_weight)
            if validation_split and validation_data is None:
                data, held_out = data.split(validation_split)
            self._learn_scale(data.x[:, : self._num_features], data.weight)
            size = len(data.x)
            plan = _plan(size, batch_size, epochs, steps)
            if plan.batch_size == size:
                settings.setdefault("shuffle", False)  # Each batch holds all rows.
        if validation_data is not None:
            if isinstance(validation_data, (tuple, list)):
                held_x, held_y, *weight = validation_data
                validation_data = (*self._arrays("validation_data", held_x, held_y), *weight)
            held_out = self._checked_validation(validation_data)
        if not self._is_compiled or self._compiled_by_fit:
            self.compile(self._optimizer(_schedule(plan, size, data), size))
            self._compiled_by_fit = True
        if not self._runs_programs():  # Keras's own loop knows no passes.
            plan = _Plan(plan.batch_size, plan.epochs * plan.passes, 1)
        self.num_data.assign(float(size))
        if not np.any(self.unconstrained):
            self._start_at_mode(*data.sample)
        return self._train(
            data._replace(passes=plan.passes),
            held_out,
            batch_size=plan.batch_size,
            epochs=plan.epochs,
            **settings,
        )

    def _optimizer(self, learning_rate: Any, size: int) -> Any:
        """The optimizer of a `fit` without `compile` before, for so many rows."""
        del size  # Which matters to a subclass.
        return keras.optimizers.Adam(learning_rate)

    def evaluate(  # type: ignore[override]
        self,
        x: Any = None,
        y: Any = None,
        *,
        offset: Any = None,
        exposure: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The loss and its terms, as `keras.Model.evaluate`; see `fit` for the arguments."""
        # Keras's `fit` asks with data that have been through here.
        if not (inputs.is_stream(x) or kwargs.get("_use_cached_eval_dataset")):
            x, y = self._arrays("x", x, y, offset, exposure)
        return super().evaluate(x, y, **kwargs)

    def _arrays(
        self,
        name: str,
        x: Any,
        y: Any,
        offset: Any = None,
        exposure: Any = None,
        learn: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Features and offset side by side, and y with labels as numbers."""
        frame, columns = x, getattr(x, "columns", None)
        x = checks.as_array(name, x)
        if x.ndim != 2:
            raise ValueError(f"{name}: got shape {x.shape}, wanted (N, number of features)")
        if learn and not self.built and columns is not None and self._feature_names is None:
            self._feature_names = [*map(str, columns)]
        if not self.built:
            training.build(self, name, x.shape)
        known = [*self._feature_names]
        unnamed = known == [f"x{i}" for i in range(self._num_features)]
        if not unnamed or {*known} == {*(checks.column_names(frame) or ())}:
            checks.check_columns(name, frame, known)
        if x.shape[1] != self._num_features:  # One more would be taken for the offset later on.
            raise ValueError(f"{name}: got shape {x.shape}, wanted (N, {self._num_features})")
        offset = self._offset(len(x), offset, exposure)
        if offset is not None:
            x = np.concatenate([x, offset[:, np.newaxis]], axis=1)
        return x, None if y is None else self.codes(y, learn)

    def _learn_scale(self, x: np.ndarray, weight: np.ndarray | None) -> None:
        """Take note of the columns' scale, and warn of what the data cannot tell."""
        if weight is not None and not weight.any():
            weight = None  # The posterior will be the prior.
        x = x.astype(np.float64)
        mean = np.average(x, axis=0, weights=weight)
        spread = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
        constant = spread <= 1e-12 * np.abs(x).max(axis=0)
        if self._standardize:
            self.center.assign(mean)
            self.scale.assign(np.where(constant, 1.0, spread))
        if len(x) == 1:
            warn("x: got one row: the posterior will hardly differ from the prior")
        elif constant.any():
            warn(
                f"x: got constant columns, {_shortened(self._names_where(constant))}: only the "
                "prior tells their coefficients from the intercept"
            )
        elif len(x) > x.shape[1]:
            dependent = _dependent(np.column_stack([np.ones(len(x)), x / spread]))[1:]
            if dependent.any():
                warn(
                    f"x: got columns that are linear combinations of the others, such as "
                    f"{_shortened(self._names_where(dependent))}: only the prior tells their "
                    "coefficients apart"
                )
        if not self._standardize and not constant.all():
            ratio = spread[~constant].max() / spread[~constant].min()
            if ratio > 100:
                warn(
                    f"x: got columns whose standard deviations differ by a factor of {ratio:.0f}, "
                    "which hardly suits one prior for all: pass standardize=True"
                )

    def _names_where(self, mask: np.ndarray) -> list[str]:
        return [self._feature_names[i] for i in np.flatnonzero(mask)]

    def _offset(self, size: int, offset: Any, exposure: Any) -> np.ndarray | None:
        for name, values in (("offset", offset), ("exposure", exposure)):
            if values is not None and np.shape(values) != (size,):
                raise ValueError(f"{name}: got shape {np.shape(values)}, wanted ({size},)")
        if exposure is None:
            return None if offset is None else checks.as_array("offset", offset)
        location = next(p for p in self.likelihood.free if p.name == self._depends[0])
        if not (location.name.startswith("log_") or isinstance(location.constraint, tfb.Exp)):
            raise ValueError(
                f"exposure: got one for {location.name!r} of {self.likelihood.title()}, which has "
                "no log link: pass offset="
            )
        exposure = checks.as_array("exposure", exposure)
        if not (np.isfinite(exposure).all() and (exposure > 0).all()):
            raise ValueError("exposure: got values that are not all finite and > 0")
        return np.log(exposure) + (0.0 if offset is None else checks.as_array("offset", offset))

    def codes(self, y: Any, learn: bool = False) -> Any:
        """The labels of classes as numbers; other data as they are.

        Args:
          y: what the model explains.
          learn: whether names that are not known yet are those of the classes.

        Raises:
          ValueError: for unknown labels.
        """
        learn = checks.flag("learn", learn)
        if not isinstance(self.likelihood, _OF_CLASSES):
            return y
        labels = checks.labels("y", y)
        if learn and len({*labels.ravel().tolist()}) == 1:
            warn(f"y: got one class only, {labels.flat[0]}: what sets it apart is unknown")
        named = labels.dtype.kind in "USO"
        if named and self._class_names is None and learn:
            if isinstance(self.likelihood, likelihoods.Ordinal):
                raise ValueError("y: got names of ordered classes, wanted class_names= in order")
            self._class_names = sorted({*labels.ravel().tolist()})
        names = None if self._class_names is None else [*self._class_names]
        if names is None or (isinstance(names[0], str) and not named):
            return y
        codes = {name: code for code, name in enumerate(names)}
        unknown = sorted({*labels.ravel().tolist()} - {*codes}, key=str)
        if unknown:
            raise ValueError(f"y: got unknown labels {unknown[:5]}, wanted some of {names}")
        return np.vectorize(codes.__getitem__, otypes=[np.float32])(labels)

    def _size_of_stream(self, num_data: int | None, rest: dict[str, Any]) -> int:
        for name, value in rest.items():
            if value is not None:
                raise ValueError(f"{name}: got one beside a stream, wanted batches (x, y)")
        if self._standardize:
            raise ValueError("x: got a stream with standardize=True, wanted arrays")
        if num_data is None:
            raise ValueError("num_data: got None, wanted the number of rows of the stream")
        return checks.positive_integer("num_data", num_data)

    def _start_at_mode(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> None:
        """Let training begin at the mode of the posterior, with the curvature there as the unit.

        That is Laplace's approximation, on some of the rows if there are many. It changes neither
        what is optimized nor the family of the posterior, but how far there is to go.
        """
        size = self._posterior.event_shape[0]
        rows = np.random.default_rng(0).permutation(len(x))[: max(_MAX_NUMBERS // size, 1000)]
        features, y = self.prepare(x[rows]), tf.constant(y[rows])
        repeats = self.num_data / tf.cast(len(rows), self.num_data.dtype)
        weight = repeats if weight is None else repeats * weight[rows].astype(features.dtype.name)
        # In units of the columns: those of x may differ by orders of magnitude.
        unit = tf.constant(1.0 / self._sizes_of_columns(features.numpy()), features.dtype)

        def gradient(v: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(v)
                value = -self._log_density(unit * v, features, y, weight)
            return value, tape.gradient(value, v)

        def hessian(v: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(v)
                slope = gradient(v)[1]
            return tape.jacobian(slope, v)

        def compiled(function: Any) -> Any:
            # By hand: TensorFlow warns of functions that are traced again, as by the next model.
            spec = tf.TensorSpec((size,), features.dtype)
            return tf.function(function, autograph=False).get_concrete_function(spec)

        slope = compiled(gradient)

        def numbers(v: np.ndarray) -> tuple[Any, ...]:
            return tuple(np.float64(part) for part in slope(tf.constant(v, features.dtype)))

        mode = scipy.optimize.minimize(numbers, np.zeros(size), jac=True, method="L-BFGS-B").x
        if not np.isfinite(mode).all():
            return
        units = np.float64(unit)
        if size <= _MAX_CURVATURE:
            at_mode = compiled(hessian)(tf.constant(mode, features.dtype))
            curvature = np.float64(at_mode) / np.outer(units, units)
        else:
            curvature = np.diag(1.0 / units**2) * float(self.num_data)
        self.start.assign(units * mode)
        self.spread.assign(_spread(curvature, whole=len(self.spread.shape) == 2))

    def _log_density(self, w: Any, x: Any, y: Any, weight: Any) -> Any:
        """The log p(y, w | x) of coefficients `[D]`, with weights of the rows."""
        p = self.likelihood.new(self._predictors(x, w[tf.newaxis])[:, 0])
        log_likelihood = weight * p.log_prob(tf.cast(y, p.dtype))
        return tf.reduce_sum(log_likelihood) + self._prior_distribution().log_prob(w)

    def _sizes_of_columns(self, x: np.ndarray) -> np.ndarray:
        """The root mean square of the column of the design matrix that each coefficient is for."""
        features = (x[:, : self._num_features] - self.center.numpy()) / self.scale.numpy()
        sizes = np.sqrt(np.mean(np.square(features, dtype=np.float64), axis=0))
        sizes = np.append(np.where(sizes > 0, sizes, 1.0), self._intercept_scale)
        return np.concatenate([np.tile(sizes[c], p.size) for p, c, _ in self._pieces()])

    # After training.

    @property
    def coefficients(self) -> Any:
        """The posterior q(w) of the coefficients on the scale of x, a `tfd.Distribution`.

        Its `names` are `coefficient_names`. What does not depend on x is there in the unconstrained
        form in which it was learned; `summary` shows its value.
        """
        self._require_built()
        q = self._posterior_distribution()
        found = affine(q, self._unscaling(), tf.zeros_like(self.start))
        # Past TFP's __setattr__, which would track the names as a part of the distribution.
        object.__setattr__(found, "names", tuple(self.coefficient_names))
        return found

    def _unscaling(self) -> Any:
        """The lower triangular matrix from the optimizer's coefficients to those on x's scale."""
        size, num = self._posterior.event_shape[0], self._num_features
        matrix = np.zeros((size, size))
        center, scale = self.center.numpy(), self.scale.numpy()
        for parameter, columns, share in self._pieces():
            width = columns.stop - columns.start
            block = np.eye(width)
            if columns.stop > num:
                block[-1, -1] = self._intercept_scale
            if columns.start == 0:
                block[:num, :num] = np.diag(1.0 / scale)
                block[num:, :num] = -center / scale
            for i in range(parameter.size):
                at = slice(share.start + i * width, share.start + (i + 1) * width)
                matrix[at, at] = block
        return tf.constant(matrix, self.prior.dtype)

    def predict_distribution(
        self,
        x: Any,
        num_samples: int = 500,
        seed: int = 0,
        *,
        offset: Any = None,
        exposure: Any = None,
    ) -> Any:
        r"""The posterior predictive distribution of y.

        $$ p(y_n \mid x_n) \approx \frac1S \sum_s p(y_n \mid x_n, w_s), \qquad w_s \sim q(w) $$

        Args:
          x: features `[N, P]`.
          num_samples: the number S of draws of the coefficients.
          seed: of the draws: the same for all rows, and in each call.
          offset: as in `fit`.
          exposure: as in `fit`.

        Returns:
          A `tfd.Distribution` with batch shape `[N]`: of classes a Bernoulli or Categorical, else a
          mixture of S components.
        """
        components = self.conditional_distribution(
            x, num_samples=num_samples, seed=seed, offset=offset, exposure=exposure
        )
        return _mixture(components)

    def conditional_distribution(
        self,
        x: Any,
        num_samples: int = 500,
        seed: int = 0,
        *,
        offset: Any = None,
        exposure: Any = None,
    ) -> Any:
        r"""The likelihood at draws of the coefficients, one by one.

        $$ p(y_n \mid x_n, w_s), \qquad w_s \sim q(w) $$

        What differs from draw to draw is not known of y's distribution, such as the probability of
        a class: `conditional_distribution(x).probs_parameter()` is `[N, S]` for a Bernoulli, and
        its quantiles over S are credible intervals.

        Args:
          x: features `[N, P]`.
          num_samples: the number S of draws of the coefficients.
          seed: of the draws: the same for all rows, and in each call.
          offset: as in `fit`.
          exposure: as in `fit`.

        Returns:
          A `tfd.Distribution` with batch shape `[N, S]`.
        """
        self._require_built()
        x, _ = self._arrays("x", x, None, offset, exposure)
        self._check_features(x, "x")
        w = self._draws(num_samples, seed, x)
        return self.likelihood.new(self._predictors(self.prepare(x), w))

    def predict(
        self,
        x: Any,
        num_samples: int = 500,
        seed: int = 0,
        *,
        offset: Any = None,
        exposure: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """What y is expected to be: the mean of the predictive distribution, of classes the mode.

        Args:
          x: features `[N, P]`.
          num_samples: draws of the coefficients.
          seed: of the draws.
          offset: as in `fit`.
          exposure: as in `fit`.
          **kwargs: of `keras.Model.predict`, which have no effect here.

        Returns:
          An array `[N, *event_shape]`; of several classes their numbers.
        """
        del kwargs
        self._require_built()
        x, _ = self._arrays("x", x, None, offset, exposure)
        self._check_features(x, "x")
        w = self._draws(num_samples, seed, x)
        pieces = self._likelihoods(x, w)
        return np.concatenate([_expected(_mixture(p)).numpy() for _, p in pieces])

    def export(  # type: ignore[override]  # Keras's has the first argument only.
        self, filepath: Any, num_samples: int = 500, overwrite: bool = False
    ) -> None:
        """Write the model as a SavedModel, for programs that have TensorFlow alone.

        Its signature `predict` takes x `[N, P]` and a seed, and gives the `mean` of `predict`; of
        classes their probabilities, `probs`; and the parameters of `conditional_distribution` at
        the S draws of the coefficients, `[N, S, ...]`, as `conditional_loc`.

        Args:
          filepath: a folder, which is made.
          num_samples: the number S of draws of the coefficients.
          overwrite: whether to replace a SavedModel that is there.

        Raises:
          ValueError: for a model that has not seen data yet.
          FileExistsError: if there is something at the path.
        """
        self._require_built()
        num_samples = checks.positive_integer("num_samples", num_samples)

        def predict(x: Any, seed: Any) -> dict[str, Any]:
            with noise.fixed(seed):
                x = self.prepare(x)
                w = self._draws(num_samples, seed)
                predictors = self._predictors(x, w)
                p = _mixture(self.likelihood.new(predictors))
                parameters = self.likelihood.constrained(predictors).items()
                found = {f"conditional_{name}": value for name, value in parameters}
                if isinstance(p, (tfd.Bernoulli, tfd.Categorical, tfd.OneHotCategorical)):
                    found |= {"probs": p.probs_parameter()}
                return found | {"mean": _expected(p)}

        x = serving.rows((self._num_features,), keras.backend.floatx())
        signature = serving.Signature(predict, {"x": x, "seed": serving.SEED})
        serving.save(filepath, {"predict": signature}, overwrite)

    def _likelihoods(self, x: np.ndarray, w: Any) -> Iterator[tuple[slice, Any]]:
        """The likelihood of some rows at a time at draws w, batch shape `[B, S]`."""
        for rows in pieces_of(len(x), len(w) * self.likelihood.params_size):
            yield rows, self.likelihood.new(self._predictors(self.prepare(x[rows]), w))

    def log_weights(
        self,
        x: Any,
        y: Any,
        num_samples: int = 1,
        seed: Any = 0,
        *,
        offset: Any = None,
        exposure: Any = None,
    ) -> np.ndarray:
        r"""Log importance weights of draws of the coefficients from their posterior.

        $$ \log w_s = \sum_n \log p(y_n \mid x_n, w_s) + \log p(w_s) - \log q(w_s) $$

        Their mean estimates the ELBO of the whole data set, their log-mean-exp the log evidence
        log p(y|X) from below.

        Args:
          x: features `[N, P]`.
          y: `[N, *event_shape]`.
          num_samples: the number S of draws.
          seed: an integer or an int tensor `[2]`.
          offset: as in `fit`.
          exposure: as in `fit`.

        Returns:
          An array `[S]`, in nats.
        """
        log_likelihood = self.log_likelihood(
            x, y, num_samples=num_samples, seed=seed, offset=offset, exposure=exposure
        )
        w, q = self._draws(num_samples, seed), self._posterior_distribution()
        log_ratio = self._prior_distribution().log_prob(w) - q.log_prob(w)
        return log_ratio.numpy() + log_likelihood.sum(axis=1)

    def log_likelihood(
        self,
        x: Any,
        y: Any,
        num_samples: int = 1,
        seed: Any = 0,
        *,
        offset: Any = None,
        exposure: Any = None,
    ) -> np.ndarray:
        r"""The log-likelihood of each row at draws of the coefficients.

        $$ \log p(y_n \mid x_n, w_s), \qquad w_s \sim q(w) $$

        Args:
          x: features `[N, P]`.
          y: `[N, *event_shape]`.
          num_samples: the number S of draws.
          seed: an integer or an int tensor `[2]`.
          offset: as in `fit`.
          exposure: as in `fit`.

        Returns:
          An array `[S, N]`, in nats.
        """
        self._require_built()
        x, y = self._arrays("x", x, y, offset, exposure)
        data = inputs.read(("x", "y", "sample_weight"), x, y, None)
        self.check_data(data.x, data.y, ("x", "y"))
        found = []
        for rows, p in self._likelihoods(data.x, self._draws(num_samples, seed, x)):
            targets = tf.cast(data.y[rows], p.dtype)[:, tf.newaxis]
            found.append(tf.transpose(p.log_prob(targets)))
        return np.concatenate(found, axis=1)

    def elbo(self, x: Any, y: Any, num_samples: int = 1000, seed: Any = 0, **kwargs: Any) -> float:
        """The evidence lower bound of the whole data set, in nats: the mean of `log_weights`."""
        return float(self.log_weights(x, y, num_samples, seed, **kwargs).mean())

    def summary(self, *args: Any, num_samples: int = 10_000, seed: int = 0, **kwargs: Any) -> None:
        """Print mean, standard deviation, and 3 % and 97 % quantiles of each coefficient.

        What does not depend on x is shown as the likelihood takes it.

        Args:
          *args: of `keras.Model.summary`, which is what a model that is not built prints.
          num_samples: draws from the posterior.
          seed: of the draws.
          **kwargs: of `keras.Model.summary`; `print_fn` is heeded.
        """
        if not self.built:
            super().summary(*args, **kwargs)
            return
        draws = self.draws(num_samples, seed)
        width = max(map(len, draws))
        show = kwargs.get("print_fn") or print
        show(f"{'':{width}}  {'mean':>10} {'sd':>10} {'3%':>10} {'97%':>10}")
        for name, values in draws.items():
            numbers = (values.mean(), values.std(), *np.quantile(values, (0.03, 0.97)))
            show(f"{name:{width}}  " + " ".join(f"{number:10.4g}" for number in numbers))

    def draws(self, num_samples: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
        """Draws from the posterior of each coefficient, on the scale of x, by name.

        What does not depend on x is there as the likelihood takes it: the scale as a scale.
        """
        self._require_built()
        num_samples = checks.positive_integer("num_samples", num_samples)
        reported = self.coefficients.sample(num_samples, noise.as_seed(seed)).numpy()
        found: dict[str, np.ndarray] = {}
        for parameter, _, share in self._pieces():
            names, values = self.coefficient_names[share], reported[:, share]
            if parameter.name not in self._depends:
                values = parameter.constraint(tf.reshape(values, (-1, *parameter.shape))).numpy()
                values = values.reshape(len(values), -1)
                one = values.shape[1] == 1
                names = [
                    f"{parameter.name}{'' if one else f'[{i}]'}" for i in range(values.shape[1])
                ]
            found |= dict(zip(names, values.T, strict=True))
        return found

    def to_arviz(self, num_samples: int = 1000, seed: int = 0, **data: Any) -> Any:
        """The posterior as ArviZ takes it, see `arviz_export.to_arviz`.

        Args:
          num_samples: draws from the posterior.
          seed: of the draws.
          **data: `x` and `y`, `offset` or `exposure`, for the log-likelihood and the posterior
            predictive distribution.
        """
        from tfpvae import arviz_export  # With the extra `arviz` only.

        return arviz_export.to_arviz(self, num_samples, seed, **data)

    def _draws(self, num_samples: int, seed: Any, x: Any = None) -> Any:
        """Draws `[S, D]` of the optimizer's coefficients, as predictions at x take them."""
        del x  # Which matters to a subclass.
        num_samples = checks.positive_integer("num_samples", num_samples)
        return self._posterior_distribution().sample(num_samples, noise.as_seed(seed))

    def _require_built(self) -> None:
        if not self.built:
            raise ValueError("the model has not seen data yet: call fit(x, y)")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The predictive distribution, from as many draws as a step of training takes."""
        w = self._posterior_distribution().sample(self._num_draws, noise.next_seed())
        return _mixture(self.likelihood.new(self._predictors(self.prepare(inputs), w)))

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        posterior = self._posterior
        if not isinstance(posterior, blocks.Block):
            raise TypeError(
                "posterior: got a function, which a file cannot hold; the model can be saved once "
                "it has seen data"
            )
        return {
            "likelihood": keras.saving.serialize_keras_object(self.likelihood),
            "prior": keras.saving.serialize_keras_object(self.prior),
            "posterior": keras.saving.serialize_keras_object(posterior),
            "depends": [*self._depends],
            "fit_intercept": self._fit_intercept,
            "intercept_scale": self._intercept_scale,
            "standardize": self._standardize,
            "num_samples": self._num_draws,
            "class_names": self._class_names,
            "feature_names": self._feature_names,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The model that a configuration describes."""
        del custom_objects  # Keras has put them into scope.
        parts = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("likelihood", "prior", "posterior")
        }
        return cls(**config | parts)


def pieces_of(num: int, numbers: int) -> Iterator[slice]:
    """Slices of `num` rows such that a piece, with so many numbers a row, fits into memory."""
    rows = max(1, _MAX_NUMBERS // numbers)
    return (slice(start, start + rows) for start in range(0, num, rows))


class _Plan(NamedTuple):
    """How `fit` goes about: Keras's epochs have so many passes over the data."""

    batch_size: int | None
    epochs: int
    passes: int


def _plan(size: int, batch_size: int | None, epochs: int | None, steps: int | None) -> _Plan:
    if batch_size is None:
        batch_size = size if size <= _FULL_BATCH else _MINI_BATCH
    batch_size = min(checks.positive_integer("batch_size", batch_size), size)
    if epochs is not None:
        return _Plan(batch_size, checks.positive_integer("epochs", epochs), 1)
    steps = checks.positive_integer("steps", _STEPS if steps is None else steps)
    passes = math.ceil(steps * batch_size / size)
    epochs = min(passes, _REPORTS)
    return _Plan(batch_size, epochs, math.ceil(passes / epochs))


def _schedule(plan: _Plan, size: int, data: inputs.Data) -> Any:
    """A learning rate that falls to zero over the steps of a run."""
    batch_size = len(data.sample[0]) if data.first else (plan.batch_size or size)
    steps = data.steps({}) if data.first else None
    steps = steps or math.ceil(size * plan.passes / batch_size)
    return keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps * plan.epochs)


def _location(names: list[str]) -> tuple[str, ...]:
    """The parameter of a likelihood that depends on x, or all if none is a location."""
    found = [name for name in LOCATIONS if name in names]
    return tuple(found[:1] or names)


def affine(q: Any, matrix: Any, shift: Any) -> Any:
    """The distribution of `matrix @ w + shift`; the matrix is lower triangular, or its diagonal."""
    if isinstance(q, tfd.Independent) and isinstance(q.distribution, tfd.Normal):
        q = tfd.MultivariateNormalDiag(q.mean(), q.stddev())
    whole = len(matrix.shape) == 2
    if isinstance(q, tfd.MultivariateNormalDiag) and not whole:
        return tfd.MultivariateNormalDiag(matrix * q.loc + shift, matrix * q.stddev())
    if isinstance(q, tfd.MultivariateNormalLinearOperator):
        matrix = matrix if whole else tf.linalg.diag(matrix)
        loc = tf.linalg.matvec(matrix, q.loc) + shift
        return tfd.MultivariateNormalTriL(loc, tf.linalg.matmul(matrix, q.scale.to_dense()))
    scale = tfb.ScaleMatvecTriL(matrix) if whole else tfb.ScaleMatvecDiag(matrix)
    if isinstance(q, flows.FlowDistribution):  # Which can tell its moments.
        chain = tfb.Chain([tfb.Shift(shift), scale, q.bijector])
        return flows.FlowDistribution(q.distribution, chain)
    return tfd.TransformedDistribution(q, tfb.Chain([tfb.Shift(shift), scale]))


def _has_covariance(posterior: Any) -> bool:
    """Whether the coefficients are correlated normals, or a flow of such."""
    if isinstance(posterior, posteriors.Flow):
        return _has_covariance(posterior.base)
    return isinstance(posterior, posteriors.FullRankNormal)


def paired_draws(q: Any, num: int) -> Any:
    """Draws `[S, D]` that a gradient goes through; of normals in pairs around the mean.

    The noise of a pair cancels in what is linear in the coefficients.
    """
    if num == 1 or not isinstance(q, tfd.MultivariateNormalLinearOperator):
        return q.sample(num, seed=noise.next_seed())
    half = q.sample(-(-num // 2), seed=noise.next_seed())
    return tf.concat([half, 2 * q.loc - half], axis=0)[:num]


def _mixture(components: Any) -> Any:
    """The mixture of components `[B, S]` in equal parts; that of classes is one of classes."""
    if isinstance(components, tfd.Bernoulli):
        return tfd.Bernoulli(probs=tf.reduce_mean(components.probs_parameter(), axis=-1))
    if isinstance(components, tfd.OrderedLogistic):
        return tfd.Categorical(probs=tf.reduce_mean(components.categorical_probs(), axis=-2))
    if isinstance(components, (tfd.Categorical, tfd.OneHotCategorical)):
        family = type(components)
        return family(probs=tf.reduce_mean(components.probs_parameter(), axis=-2))
    weights = tfd.Categorical(logits=tf.zeros(components.batch_shape[-1:], components.dtype))
    return tfd.MixtureSameFamily(weights, components)


def _expected(distribution: Any) -> Any:
    """The mean, of classes the mode."""
    if isinstance(distribution, (tfd.Categorical, tfd.OneHotCategorical)):
        return distribution.mode()
    return distribution.mean()


def _spread(curvature: np.ndarray, whole: bool) -> np.ndarray:
    """The scale of a normal with this precision: a triangle, or the best mean-field diagonal."""
    if not whole:
        return 1.0 / np.sqrt(np.maximum(np.diag(curvature), _LEAST_CURVATURE))
    unit = np.sqrt(np.maximum(np.diag(curvature), _LEAST_CURVATURE))
    values, vectors = np.linalg.eigh(curvature / np.outer(unit, unit))
    covariance = (vectors / np.maximum(values, 1e-5)) @ vectors.T / np.outer(unit, unit)
    return np.linalg.cholesky(covariance)


def _dependent(matrix: np.ndarray) -> np.ndarray:
    """Which columns are linear combinations of those before them."""
    triangle = np.linalg.qr(matrix, mode="r")
    _, found, order = scipy.linalg.qr(triangle, mode="economic", pivoting=True)
    sizes = np.abs(np.diag(found))
    mask = np.zeros(matrix.shape[1], bool)
    mask[order[: len(sizes)]] = sizes < 1e-6 * sizes[0]
    return mask


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def warn(message: str) -> None:
    """Warn the caller of `fit`."""
    warnings.warn(message, stacklevel=4)
