"""Bayesian regression as estimators of scikit-learn: for pipelines and cross-validation."""

# ruff: noqa: N803, N806  # X is scikit-learn's name for the features.

import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tf_keras as keras

from tfpvae import checks, likelihoods, posteriors, priors, regression

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
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


class _Estimator(BaseEstimator):
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
