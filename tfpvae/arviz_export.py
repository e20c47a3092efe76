"""Posteriors of regressions and of codes as ArviZ's groups of arrays: for its tables and plots."""

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfpvae import checks, likelihoods, noise

_OF_CLASSES = (likelihoods.Categorical, likelihoods.OneHotCategorical)


def to_arviz(
    model: Any,
    num_samples: int = 1000,
    seed: int = 0,
    x: Any = None,
    y: Any = None,
    *,
    offset: Any = None,
    exposure: Any = None,
) -> Any:
    r"""Draws from the posterior of a regression, and of the data if given, as ArviZ takes them.

    $$ w_s \sim q(w), \qquad \ell_{sn} = \log p(y_n \mid x_n, w_s), \qquad
       \tilde y_{sn} \sim p(y \mid x_n, w_s) $$

    The group `posterior` has `weights`, with a dimension `feature`, and `intercept`; with several
    classes both have a dimension `class`, with several other outputs `output`. What does not depend
    on x has its own name and is there as the likelihood takes it. If more than one parameter of the
    likelihood depends on x, the names begin with the parameter's: `loc_weights`, `scale_weights`.
    With x and y there are the groups `log_likelihood`, `posterior_predictive` and `observed_data`
    with the variable `y`.

    Shapes: variables `[1, S, ...]`: one chain, S draws.

    Args:
      model: a `BayesianRegression` that has been fitted.
      num_samples: the number S of draws.
      seed: of the draws.
      x: features `[N, P]`.
      y: what the likelihood explains, `[N, *event_shape]`.
      offset: as in `fit`.
      exposure: as in `fit`.

    Returns:
      What `arviz.from_dict` makes: an `InferenceData`, or from ArviZ 1.0 on a `DataTree`.

    Raises:
      ImportError: without ArviZ.
      ValueError: for x without y, or data that the model cannot have made.

    Example:
      >>> from tfpvae import BayesianRegression, likelihoods
      >>> rng = np.random.default_rng(0)
      >>> x = rng.normal(size=(50, 2))
      >>> model = BayesianRegression(likelihoods.Bernoulli(), seed=0)
      >>> history = model.fit(x, x[:, 0] > 0, steps=50, verbose=0)
      >>> data = to_arviz(model, num_samples=100)
      >>> data.posterior["weights"].dims
      ('chain', 'draw', 'feature')
    """
    arviz = _arviz()
    if (x is None) != (y is None):
        raise ValueError("y: got x or y alone, wanted both or none")
    pieces = [*_pieces(model, num_samples, seed)]
    posterior, coords, dims = _posterior(model, pieces)
    groups: dict[str, Any] = {"posterior": posterior}
    if x is not None:
        options = {"offset": offset, "exposure": exposure}
        log_likelihood = model.log_likelihood(x, y, num_samples, seed, **options)
        p = model.conditional_distribution(x, num_samples, seed, **options)
        draws = p.sample(seed=tf.random.fold_in(noise.as_seed(seed), 1)).numpy()
        groups["log_likelihood"] = {"y": log_likelihood[np.newaxis]}
        groups["posterior_predictive"] = {"y": np.swapaxes(draws, 0, 1)[np.newaxis]}
        groups["observed_data"] = {"y": np.asarray(model.codes(y))}
        dims["y"] = ["row"]
    return _made(arviz, groups, coords, dims)


def latents_to_arviz(vae: Any, x: Any, num_samples: int = 500, seed: int = 0) -> Any:
    r"""Draws of the codes from q(z|x), and what the model says of them, as ArviZ takes them.

    $$ z_{sn} \sim q(z \mid x_n), \qquad \ell_{sn} = \log p(x_n \mid z_{sn}), \qquad
       \log w_{sn} = \ell_{sn} + \log p(z_{sn}) - \log q(z_{sn} \mid x_n) $$

    The groups: `posterior` with `z`, `log_likelihood`, `posterior_predictive` and `observed_data`
    with `x`, and `sample_stats` with `log_weight`, the importance weights that make the draws those
    of p(z|x). The dimensions are `row` and, of z, `unit`.

    Shapes: `z` `[1, S, N, D]`, `log_weight` and `log_likelihood` `[1, S, N]`: one chain, S draws.

    Args:
      vae: a `VAE`, or a model that is made like one, with a posterior q(z|x) that has a density.
      x: data `[N, *event_shape]`, of a `ConditionalVAE` a pair (x, y); all draws are in memory.
      num_samples: the number S of draws.
      seed: of the draws.

    Returns:
      What `arviz.from_dict` makes: an `InferenceData`, or from ArviZ 1.0 on a `DataTree`.

    Raises:
      ImportError: without ArviZ.
      TypeError, ValueError: for a model without one q(z|x) or its density, or wrong data.

    Example:
      >>> import tf_keras as keras
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> data = latents_to_arviz(vae, np.eye(3, dtype="float32"), num_samples=10)
      >>> data.posterior["z"].dims
      ('chain', 'draw', 'row', 'unit')
    """
    arviz = _arviz()
    num_samples = checks.positive_integer("num_samples", num_samples)
    if not getattr(vae, "has_one_posterior", False):
        raise TypeError(f"vae: got {vae!r}, wanted a VAE with one q(z|x); of a regression to_arviz")
    vae._refuse_implicit("log weights")
    arrays = vae._arrays(x)
    q = vae.posterior(x)
    with noise.fixed(seed):
        data, condition = vae._split(vae._prepared(vae._placed(arrays)))
        prior = vae.prior(condition)
        z = q.sample(num_samples, seed=noise.next_seed())
        codes = vae._codes(z)
        p = vae._decode(codes, False, condition)
        log_likelihood = p.log_prob(data)
        log_weight = log_likelihood + prior.log_prob(codes) - q.log_prob(z)
        draws = p.sample(seed=noise.next_seed())
    units = ["unit"] if z.shape.rank == 3 else [f"z_dim_{i}" for i in range(z.shape.rank - 2)]
    groups = {
        "posterior": {"z": z.numpy()[np.newaxis]},
        "sample_stats": {"log_weight": log_weight.numpy()[np.newaxis]},
        "log_likelihood": {"x": log_likelihood.numpy()[np.newaxis]},
        "posterior_predictive": {"x": draws.numpy()[np.newaxis]},
        "observed_data": {"x": data.numpy()},
    }
    return _made(arviz, groups, {}, {"z": ["row", *units], "x": ["row"], "log_weight": ["row"]})


def _arviz() -> Any:
    try:
        import arviz
    except ImportError as error:
        raise ImportError("to_arviz: needs ArviZ: pip install 'tfpvae[arviz]'") from error
    return arviz


def _made(arviz: Any, groups: Any, coords: Any, dims: Any) -> Any:
    """What `arviz.from_dict` makes, of any version."""
    if "posterior" in inspect.signature(arviz.from_dict).parameters:  # ArviZ 0.x
        return arviz.from_dict(**groups, coords=coords, dims=dims)
    return arviz.from_dict(groups, coords=coords, dims=dims)


class _Piece(NamedTuple):
    """Draws of what makes one parameter of the likelihood, which has K unconstrained numbers."""

    parameter: Any
    weights: np.ndarray | None  # [S, K, P], None for a parameter that does not depend on x
    intercept: Any  # [S, K] or None; of one that does not, its unconstrained numbers


def _pieces(model: Any, num_samples: int, seed: int) -> Iterator[_Piece]:
    """The draws of the coefficients on the scale of x, cut up."""
    num_samples = checks.positive_integer("num_samples", num_samples)
    draws = model.coefficients.sample(num_samples, noise.as_seed(seed)).numpy().astype(np.float64)
    config = model.get_config()
    size, start = len(config["feature_names"]), 0
    for parameter in model.likelihood.free:
        depends = parameter.name in config["depends"]
        width = size + config["fit_intercept"] if depends else 1
        stop = start + parameter.size * width
        values = draws[:, start:stop].reshape(num_samples, parameter.size, width)
        weights = values[:, :, :size] if depends else None
        with_intercept = not depends or config["fit_intercept"]
        yield _Piece(parameter, weights, values[:, :, -1] if with_intercept else None)
        start = stop


def _posterior(
    model: Any, pieces: list[_Piece]
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, list[str]]]:
    """The variables, their coordinates and their dimensions."""
    config = model.get_config()
    several = len(config["depends"]) > 1
    variables: dict[str, np.ndarray] = {}
    coords: dict[str, Any] = {"feature": config["feature_names"]}
    dims: dict[str, list[str]] = {}
    for parameter, weights, intercept in pieces:
        if weights is None:
            shape = (len(intercept), *parameter.shape)
            values = parameter.constraint(tf.reshape(tf.cast(intercept, model.prior.dtype), shape))
            variables[parameter.name] = values.numpy()[np.newaxis]
            continue
        prefix = f"{parameter.name}_" if several else ""
        outputs = []
        if parameter.size > 1:
            outputs = ["class" if isinstance(model.likelihood, _OF_CLASSES) else f"{prefix}output"]
            names = config["class_names"] or []
            known = len(names) == parameter.size
            coords[outputs[0]] = [*names] if known else [*range(parameter.size)]
        found = {"weights": np.swapaxes(weights, 1, 2), "intercept": intercept}
        for name, values in found.items():
            if values is not None:
                own = values if outputs else values[..., 0]
                variables[prefix + name] = own[np.newaxis]
                dims[prefix + name] = ["feature"] * (name == "weights") + outputs
    return variables, coords, dims
