"""Bayesian regression and VAEs as estimators of scikit-learn: for pipelines and searches."""

# ruff: noqa: N803, N806  # X is scikit-learn's name for the features.

import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from scipy import special

from tfpvae import (
    checks,
    likelihoods,
    models,
    objectives,
    posteriors,
    priors,
    regression,
    schedules,
)

try:
    from sklearn.base import (
        BaseEstimator,
        ClassifierMixin,
        ClassNamePrefixFeaturesOutMixin,
        RegressorMixin,
        TransformerMixin,
    )
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "tfpvae.estimators: needs scikit-learn 1.6 or newer: pip install 'tfpvae[sklearn]'"
    ) from error

_POSTERIORS = ("FullRankNormal", "DiagonalNormal")
_LOCATED = ("Normal", "StudentT", "Laplace")  # whose y may be shifted and scaled
_OTHERS = (
    "Poisson",
    "NegativeBinomial",
    "Binomial",
    "Gamma",
    "LogNormal",
    "Beta",
    "ContinuousBernoulli",
)


class _WithModel(BaseEstimator):
    """An estimator with a Keras model in `model_`, which can be pickled."""

    def __getstate__(self) -> dict[str, Any]:
        """The state with the model as the bytes of its `.keras` file."""
        state = dict(super().__getstate__())
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "model.keras")
                state["model_"].save(path)
                state["model_"] = path.read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the model from those bytes."""
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "model.keras")
                path.write_bytes(state["model_"])
                state = state | {"model_": keras.models.load_model(path)}
        super().__setstate__(state)


class _Estimator(_WithModel):
    """What the two have in common: a `BayesianRegression` in `model_`."""

    def __init__(
        self,
        *,
        prior_scale: Any = 1.0,
        posterior: str = "FullRankNormal",
        fit_intercept: bool = True,
        intercept_scale: float = 10.0,
        standardize: bool = True,
        steps: int = 300,
        batch_size: int | None = None,
        num_samples: int = 500,
        random_state: Any = None,
    ) -> None:
        self.prior_scale = prior_scale
        self.posterior = posterior
        self.fit_intercept = fit_intercept
        self.intercept_scale = intercept_scale
        self.standardize = standardize
        self.steps = steps
        self.batch_size = batch_size
        self.num_samples = num_samples
        self.random_state = random_state

    def _train(
        self,
        likelihood: Any,
        X: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray,
        class_names: list[str] | None = None,
    ) -> None:
        """Make the model and fit it."""
        X, y, weight = _distinct(X, y, weight)
        names = getattr(self, "feature_names_in_", None)
        model = regression.BayesianRegression(
            likelihood,
            self._prior(),
            getattr(posteriors, _one_of("posterior", self.posterior, _POSTERIORS)),
            fit_intercept=self.fit_intercept,
            standardize=bool(self.standardize),
            intercept_scale=self._relative_intercept_scale(),
            class_names=class_names,
            feature_names=None if names is None else names.tolist(),
            seed=int(check_random_state(self.random_state).randint(2**31)),
        )
        model.fit(X, y, self.batch_size, steps=self.steps, sample_weight=weight, verbose=0)
        self.model_ = model

    def _prior(self) -> Any:
        if isinstance(self.prior_scale, str):
            _one_of("prior_scale", self.prior_scale, ("learned",))
            return priors.Normal((), loc=0.0)
        return priors.Prior("Normal", loc=0.0, scale=_positive("prior_scale", self.prior_scale))

    def _relative_intercept_scale(self) -> float:
        """The scale of the intercept's prior in units of that of the weights."""
        scale = _positive("intercept_scale", self.intercept_scale)
        return scale if isinstance(self.prior_scale, str) else scale / float(self.prior_scale)

    def _predictive(self, X: Any) -> Iterator[Any]:
        """The posterior predictive distributions of the rows, some at a time."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        num_samples = checks.positive_integer("num_samples", self.num_samples)
        for rows in regression.pieces_of(len(X), num_samples * self.model_.likelihood.params_size):
            yield self.model_.predict_distribution(X[rows], num_samples)


class BayesianClassifier(ClassifierMixin, _Estimator):
    r"""Bayesian logistic or softmax regression as a classifier of scikit-learn.

    $$ P(y = k \mid x) = \mathbb E_{q(W, b)}\bigl[\operatorname{softmax}(W x + b)_k\bigr],
       \qquad W_{kp} \sim \mathcal N(0, s^2) $$

    Two classes have a Bernoulli likelihood with one logit, more a categorical one with a logit for
    each. q approximates the posterior: the probabilities are averages over it. With much data they
    are those of `LogisticRegression(C=prior_scale**2)` on standardized columns.

    A row of integer weight w is the same, to the last bit, as w equal rows; the order of the rows
    does not matter.

    Shapes: X `[N, P]`, y `[N]`, probabilities `[N, K]`.

    Args:
      prior_scale: the standard deviation s of the prior of the weights, or "learned" to maximize
        the evidence lower bound (type-II maximum likelihood).
      posterior: the family of q, "FullRankNormal" or "DiagonalNormal".
      fit_intercept: whether there is an intercept b.
      intercept_scale: the standard deviation of its prior; if that of the weights is learned, a
        multiple of it.
      standardize: whether the prior is one for columns of mean 0 and standard deviation 1.
      steps: steps of the optimizer, at least. It starts at the mode of the posterior.
      batch_size: rows a step; all of them if None, or 1024 if there are more than 4096.
      num_samples: draws of the coefficients in a prediction; they are the same in each.
      random_state: an integer, a `numpy.random.RandomState`, or None for noise of its own.

    Attributes:
      classes_: the classes, sorted.
      model_: the `BayesianRegression`; its `coefficients` are on the scale of X.
      n_features_in_: the number P.
      feature_names_in_: the columns of a data frame.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> X = rng.normal(size=(100, 2))
      >>> y = np.where(X[:, 0] > 0, "up", "down")
      >>> classifier = BayesianClassifier(random_state=0).fit(X, y)
      >>> classifier.predict([[2.0, 0.0], [-2.0, 0.0]])
      array(['up', 'down'], dtype='<U4')
      >>> classifier.predict_proba([[0.0, 0.0]]).shape
      (1, 2)
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BayesianClassifier":
        """Approximate the posterior of the coefficients.

        Args:
          X: features `[N, P]`.
          y: labels `[N]`: numbers or strings.
          sample_weight: weights `[N]` of the rows in the likelihood, such as how often they came.

        Returns:
          The classifier.

        Raises:
          ValueError: for data that are not finite, for a single class, for unknown parameters.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        X, y, weight = _weighted(X, y, sample_weight)
        self.classes_, codes = np.unique(y, return_inverse=True)
        size = len(self.classes_)
        if size < 2:
            raise ValueError(
                f"y: got one class only, {self.classes_[0]!r}, in rows of positive weight, wanted "
                "at least two classes"
            )
        likelihood = (
            likelihoods.Bernoulli() if size == 2 else likelihoods.Categorical(num_classes=size)
        )
        self._train(likelihood, X, codes, weight, [str(label) for label in self.classes_])
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities `[N, K]` of the classes, in the order of `classes_`."""
        probs = np.concatenate([p.probs_parameter() for p in self._predictive(X)])
        probs = probs.astype(np.float64)
        if probs.ndim == 1:
            return np.column_stack([1.0 - probs, probs])
        return probs / probs.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable classes `[N]`."""
        probs = self.predict_proba(X)
        return self.classes_[np.argmax(probs, axis=1)]


class BayesianRegressor(RegressorMixin, _Estimator):
    r"""Bayesian regression with any likelihood of one number as a regressor of scikit-learn.

    $$ p(y \mid x) = \mathbb E_{q(w, b, \theta)}\bigl[p(y \mid \eta, \theta)\bigr], \qquad
       \eta = w^\top x + b, \qquad w_p \sim \mathcal N(0, s^2) $$

    η is the likelihood's location (`loc`, `log_rate`, ...); what else it leaves free, θ, such as
    the scale of the noise, is unknown, too, and has a posterior.

    A row of integer weight w is the same, to the last bit, as w equal rows; the order of the rows
    does not matter.

    Shapes: X `[N, P]`, y `[N]`.

    Args:
      likelihood: the name of a class of `tfpvae.likelihoods`: "Normal", "StudentT", "Laplace",
        "Poisson", "NegativeBinomial", "Binomial", "Gamma", "LogNormal", "Beta" or
        "ContinuousBernoulli".
      likelihood_arguments: its arguments, such as `{"df": 4.0}` for "StudentT"; None for none. They
        are in units of y.
      prior_scale: the standard deviation s of the prior of the weights, or "learned" to maximize
        the evidence lower bound (type-II maximum likelihood).
      posterior: the family of q, "FullRankNormal" or "DiagonalNormal".
      fit_intercept: whether there is an intercept b.
      intercept_scale: the standard deviation of its prior, and of that of the unconstrained θ; if
        that of the weights is learned, a multiple of it.
      standardize: whether the prior is one for columns of mean 0 and standard deviation 1, and with
        "Normal", "StudentT" and "Laplace" for such a y: whatever the units, `prior_scale=1.0` is
        then a weak prior. `model_` explains `(y - y_center_) / y_scale_`; predictions are in
        units of y.
      steps: steps of the optimizer, at least. It starts at the mode of the posterior.
      batch_size: rows a step; all of them if None, or 1024 if there are more than 4096.
      num_samples: draws of the coefficients in a prediction; they are the same in each.
      random_state: an integer, a `numpy.random.RandomState`, or None for noise of its own.

    Attributes:
      model_: the `BayesianRegression`; its `coefficients` are on the scale of X.
      y_center_, y_scale_: what y was standardized by, 0 and 1 if it was not.
      n_features_in_: the number P.
      feature_names_in_: the columns of a data frame.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> X = rng.normal(size=(100, 2))
      >>> y = 1000.0 + 20.0 * X[:, 0] + rng.normal(size=100)
      >>> regressor = BayesianRegressor(random_state=0).fit(X, y)
      >>> mean, std = regressor.predict([[1.0, 0.0]], return_std=True)
      >>> bool(abs(mean[0] - 1020.0) < 1.0), bool(0.8 < std[0] < 1.3)
      (True, True)
    """

    def __init__(
        self,
        likelihood: str = "Normal",
        likelihood_arguments: dict[str, Any] | None = None,
        *,
        prior_scale: Any = 1.0,
        posterior: str = "FullRankNormal",
        fit_intercept: bool = True,
        intercept_scale: float = 10.0,
        standardize: bool = True,
        steps: int = 300,
        batch_size: int | None = None,
        num_samples: int = 500,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            prior_scale=prior_scale,
            posterior=posterior,
            fit_intercept=fit_intercept,
            intercept_scale=intercept_scale,
            standardize=standardize,
            steps=steps,
            batch_size=batch_size,
            num_samples=num_samples,
            random_state=random_state,
        )
        self.likelihood = likelihood
        self.likelihood_arguments = likelihood_arguments

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BayesianRegressor":
        """Approximate the posterior of the coefficients.

        Args:
          X: features `[N, P]`.
          y: numbers `[N]`.
          sample_weight: weights `[N]` of the rows in the likelihood, such as how often they came.

        Returns:
          The regressor.

        Raises:
          ValueError: for data that are not finite or that the likelihood cannot have made, for
            unknown parameters.
        """
        name = _one_of("likelihood", self.likelihood, _LOCATED + _OTHERS)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        X, y, weight = _weighted(X, y.astype(np.float64), sample_weight)
        arguments = dict(self.likelihood_arguments or {})
        self.y_center_, self.y_scale_ = 0.0, 1.0
        if self.standardize and name in _LOCATED:
            self.y_center_, self.y_scale_ = map(float, _moments(*_distinct(X, y, weight)[1:]))
            if "loc" in arguments:
                arguments["loc"] = (arguments["loc"] - self.y_center_) / self.y_scale_
            if "scale" in arguments:
                arguments["scale"] = arguments["scale"] / self.y_scale_
        likelihood = getattr(likelihoods, name)(**arguments)
        self._train(likelihood, X, (y - self.y_center_) / self.y_scale_, weight)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """What y is expected to be.

        Args:
          X: features `[N, P]`.
          return_std: whether to return the standard deviations of the predictive distributions,
            too, which the noise is a part of.

        Returns:
          The means `[N]` of the predictive distributions; of "StudentT" the posterior means of its
          location, for below one degree of freedom it has no mean. Or those and the standard
          deviations.
        """
        means, stds = [], []
        for p in self._predictive(X):
            draws = p.components_distribution
            values = getattr(draws, self.model_.likelihood.conversion.name)()
            means.append(np.mean(values, axis=1, dtype=np.float64))
            if return_std:
                stds.append(p.stddev())
        mean = self.y_center_ + self.y_scale_ * np.concatenate(means)
        return (mean, self.y_scale_ * np.concatenate(stds)) if return_std else mean


class VariationalAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _WithModel):
    r"""A variational autoencoder of dense networks as a transformer of scikit-learn.

    $$ p(x) = \int p(x \mid z)\, \mathcal N(z; 0, I)\, dz, \qquad
       x \mapsto \mathbb E_{q(z \mid x)}[z] $$

    It takes the place of `PCA` or `FactorAnalysis`: `transform` gives the means of q(z|x),
    `inverse_transform` those of p(x|z), and `score` the log-likelihood, by which searches choose.
    For networks of your own, and for images, use `VAE`.

    All is computed in double precision, and the draws of `score_samples` are the same for each row:
    a row has the same numbers whatever other rows there are.

    Shapes: X `[N, P]`, codes `[N, latent_size]`.

    Args:
      latent_size: the size of z.
      likelihood: the name of a class of `tfpvae.likelihoods`: "Normal", "StudentT", "Laplace",
        "Bernoulli", "ContinuousBernoulli", "Poisson", "NegativeBinomial", "Binomial", "Gamma",
        "LogNormal" or "Beta".
      likelihood_arguments: its arguments, such as `{"total_count": 16}` for "Binomial"; None for
        none. With `standardize` a `scale` is in units of the standardized columns.
      hidden: units of the hidden layers of the encoder; the decoder has them in reverse.
      activation: of the hidden layers.
      steps: steps of the optimizer, Adam; in the first half the weight of the KL rises to 1.
      batch_size: rows a step.
      learning_rate: the first of Adam; it falls to zero over the steps.
      standardize: whether columns are brought to mean 0 and standard deviation 1 first, with
        "Normal", "StudentT" and "Laplace". Codes, scores and what is decoded are in units of X all
        the same.
      num_samples: draws of z for each row in `score_samples`.
      random_state: an integer, a `numpy.random.RandomState`, or None for noise of its own.

    Attributes:
      model_: the `VAE`, of the standardized columns.
      center_, scale_: what they were standardized by, zeros and ones if they were not.
      n_features_in_: the number P.
      feature_names_in_: the columns of a data frame.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> X = rng.normal(size=(60, 1)) @ [[1.0, 2.0, -1.0]] + 0.1 * rng.normal(size=(60, 3))
      >>> vae = VariationalAutoencoder(latent_size=1, steps=5, random_state=0).fit(X)
      >>> vae.transform(X).shape, vae.inverse_transform(vae.transform(X)).shape
      ((60, 1), (60, 3))

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes", 2014.
    """

    def __init__(
        self,
        latent_size: int = 2,
        likelihood: str = "Normal",
        likelihood_arguments: dict[str, Any] | None = None,
        *,
        hidden: Any = (64,),
        activation: Any = "relu",
        steps: int = 2000,
        batch_size: int = 100,
        learning_rate: float = 1e-2,
        standardize: bool = True,
        num_samples: int = 100,
        random_state: Any = None,
    ) -> None:
        self.latent_size = latent_size
        self.likelihood = likelihood
        self.likelihood_arguments = likelihood_arguments
        self.hidden = hidden
        self.activation = activation
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.standardize = standardize
        self.num_samples = num_samples
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "VariationalAutoencoder":
        """Train encoder and decoder.

        Args:
          X: data `[N, P]`.
          y: not used, as of all transformers.

        Returns:
          The transformer.

        Raises:
          ValueError: for data that are not finite or that the likelihood cannot have made, for
            unknown parameters.
        """
        name = _one_of("likelihood", self.likelihood, (*_LOCATED, *_OTHERS, "Bernoulli"))
        size = checks.positive_integer("latent_size", self.latent_size)
        batch_size = checks.positive_integer("batch_size", self.batch_size)
        steps = checks.positive_integer("steps", self.steps)
        rate = _positive("learning_rate", self.learning_rate)
        X = validate_data(self, X, dtype=np.float64)
        self.center_, self.scale_ = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if self.standardize and name in _LOCATED:
            self.center_, self.scale_ = _moments(X, np.ones(len(X)))
        X = (X - self.center_) / self.scale_
        random = check_random_state(self.random_state)
        arguments = {"dtype": "float64", **(self.likelihood_arguments or {})}
        seeds = iter(random.randint(2**31, size=2 * len(self.hidden) + 3).tolist())
        model = models.VAE(
            priors.StandardNormal(size, dtype="float64"),
            self._network(posteriors.DiagonalNormal(size, dtype="float64"), self.hidden, seeds),
            self._network(
                getattr(likelihoods, name)(X.shape[1], **arguments), [*self.hidden][::-1], seeds
            ),
            seed=next(seeds),
        )
        falling = keras.optimizers.schedules.CosineDecay(rate, steps)
        # Or units that are of use may collapse before they are found to be.
        warm_up = schedules.Linear(max(1, steps // 2))
        model.compile(keras.optimizers.Adam(falling), objective=objectives.ELBO(kl_weight=warm_up))
        model.check_data(X, None, ("X", "X"))
        # Keras's own order of arrays depends on global seeds.
        passes = -(-steps * batch_size // len(X))
        order = np.concatenate([random.permutation(len(X)) for _ in range(passes)])
        rows = tf.data.Dataset.from_tensor_slices(order[: steps * batch_size]).batch(batch_size)
        model.fit(rows.map(lambda index: tf.gather(X, index)), verbose=0)
        self.model_, self._n_features_out = model, size
        return self

    def _network(self, block: Any, hidden: Any, seeds: Iterator[int]) -> Any:
        """Dense layers, the last of which ends in the block."""

        def dense(units: int, activation: Any = None) -> Any:
            kernel = keras.initializers.GlorotUniform(seed=next(seeds))
            return keras.layers.Dense(units, activation, kernel_initializer=kernel, dtype="float64")

        layers = [dense(units, self.activation) for units in hidden]
        return keras.Sequential([*layers, dense(block.params_size), block])

    def _standardized(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return (X - self.center_) / self.scale_

    def transform(self, X: Any) -> np.ndarray:
        """The means `[N, latent_size]` of q(z|x)."""
        return np.array(self.model_.posterior(self._standardized(X)).mean())

    def inverse_transform(self, X: Any) -> np.ndarray:
        """The means `[N, P]` of p(x|z) at codes z `[N, latent_size]`."""
        check_is_fitted(self)
        z = checks.as_array("X", X)
        mean = self.model_.likelihood(z.astype(np.float64)).mean()
        return self.center_ + self.scale_ * np.array(mean)

    def score_samples(self, X: Any) -> np.ndarray:
        r"""Estimates of log p(x) `[N]` in nats, from below on average, in units of X.

        $$ \log p(x) \approx \log \frac1S \sum_s \frac{p(x \mid z_s)\, p(z_s)}{q(z_s \mid x)},
           \qquad z_s = \mathrm{loc}(x) + \mathrm{scale}(x)\, \epsilon_s $$
        """
        X = self._standardized(X)
        num = checks.positive_integer("num_samples", self.num_samples)
        size, vae = self._n_features_out, self.model_
        epsilon = np.random.default_rng(0).normal(size=(num, 1, size))
        found = []
        for rows in regression.pieces_of(len(X), num * max(X.shape[1], size)):
            q = vae.posterior(X[rows])
            z = q.mean() + q.stddev() * epsilon
            log_likelihood = vae.likelihood(z).log_prob(X[rows])
            weights = log_likelihood + vae.prior().log_prob(z) - q.log_prob(z)
            found.append(special.logsumexp(weights, axis=0) - np.log(num))
        return np.concatenate(found) - np.log(self.scale_).sum()

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples(X)`: higher is better, on held-out rows."""
        return float(np.mean(self.score_samples(X)))

    def sample(self, num: int = 1, seed: Any = 0) -> np.ndarray:
        """Draws `[num, P]` from p(x), in units of X."""
        check_is_fitted(self)
        return self.center_ + self.scale_ * self.model_.sample(num, seed=seed, verbose=0)


def _one_of(argument: str, value: Any, names: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{argument}: got {value!r}, wanted one of {names}")
    return value


def _positive(argument: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not 0.0 < number < np.inf:
        raise ValueError(f"{argument}: got {value!r}, wanted a number > 0")
    return number


def _weighted(
    X: np.ndarray, y: np.ndarray, weight: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of positive weight, and their weights."""
    if weight is None:
        return X, y, np.ones(len(X))
    weight = checks.as_array("sample_weight", weight).astype(np.float64)
    if weight.shape != (len(X),) or not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError(
            f"sample_weight: got shape {weight.shape}, wanted ({len(X)},) finite numbers >= 0"
        )
    rows = weight > 0
    if not rows.any():
        raise ValueError("sample_weight: got a weight of zero for all rows, wanted one that is not")
    return X[rows], y[rows], weight[rows]


def _distinct(
    X: np.ndarray, y: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equal rows as one with the sum of their weights, sorted.

    So that repetitions and weights, and any order of the rows, are the same data to the last bit.
    """
    rows, index = np.unique(np.column_stack([X, y]), axis=0, return_inverse=True)
    return rows[:, :-1], rows[:, -1], np.bincount(index.ravel(), weight)


def _moments(values: np.ndarray, weight: np.ndarray) -> tuple[Any, Any]:
    """Mean and standard deviation of the columns, of constant ones 1."""
    mean = np.average(values, axis=0, weights=weight)
    std = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
    constant = std <= 1e-12 * np.abs(values).max(axis=0)
    return mean, np.where(constant, 1.0, std)
