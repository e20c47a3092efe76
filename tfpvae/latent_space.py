r"""The latent space after training: the density of the codes, paths, and one unit at a time.

The codes of the data have the density q(z) = 1/N sum_n q(z|x_n), the aggregate posterior. Where it
is not the prior, draws from the prior are decoded to what the decoder was not trained on.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import checks, flows, noise, priors

tfd = tfp.distributions

_PATHS = ("line", "sphere")
_PRIOR_DRAWS = 50_000


def fit_aggregate_posterior(
    vae: Any,
    x: Any,
    density: Any = "mixture",
    *,
    num_components: int = 10,
    num_draws: int = 1,
    epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    verbose: Any = 0,
) -> priors.Prior:
    r"""A density for the codes of the data, to draw z from in place of the prior.

    $$ \max_{\hat p} \sum_n \mathbb E_{q(z \mid x_n)}[\log \hat p(z)] $$

    which is the KL divergence from the aggregate posterior to the density, but for a constant
    (ex-post density estimation). It is fit to draws of q(z|x), not to their means: what the decoder
    was trained on are draws, and they are spread more widely than the means.

    What comes back is a prior block: `vae.sample(n, prior=found)` draws data from it, `found()` is
    the `tfd.Distribution`, and `VAE(found, vae.encoder, vae.decoder)` is the model with it in place
    of the prior, for log p(x), for a file, or to train on.

    Args:
      vae: a `VAE` that has been trained.
      x: data `[N, *event_shape]`, those of training.
      density: `"mixture"`, of Gaussians with full covariances, by scikit-learn's EM algorithm;
        `"flow"`, a `priors.Flow` of `flows.RealNVP`; or a block of `tfpvae.priors`, whose weights
        are then learned, from where they are.
      num_components: of the mixture.
      num_draws: draws of z for each example.
      epochs: of the training of a flow or a block by Adam. It ends with the weights of the epoch
        that was the best for a tenth of the codes, held out.
      batch_size: of the same.
      learning_rate: of the same, at the beginning: it falls to 0 like a cosine.
      seed: of the draws, the mixture's start and the order of the codes. A flow's networks start as
        Keras draws them, see `keras.utils.set_random_seed`.
      verbose: as in `keras.Model.fit`.

    Returns:
      A block of `tfpvae.priors`.

    Raises:
      ImportError: for the mixture without scikit-learn.
      TypeError, ValueError: for a model that is none, or whose z are no vectors of real numbers; an
        unknown density, one of another size, without weights, or of pseudo-inputs; numbers out of
        range; fewer codes than components.

    Example:
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> x = np.eye(4, dtype="float32")[np.arange(100) % 4]
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(4), likelihoods.Bernoulli(4)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> found = fit_aggregate_posterior(vae, x, num_components=2)
      >>> vae.sample(5, seed=1, prior=found).shape
      (5, 4)

    Source: Ghosh, Sajjadi, Vergari, Black and Schölkopf, "From Variational to Deterministic
    Autoencoders", 2020.
    """
    shape = _event_shape(vae)
    if len(shape) != 1:
        raise ValueError(f"vae: got one whose z have shape {shape}, wanted vectors, (D,)")
    block = _density(density, shape, vae.prior.dtype)
    num_components = checks.positive_integer("num_components", num_components)
    z = _codes(vae, x, checks.positive_integer("num_draws", num_draws), seed)
    if block is None:
        return _mixture(z, num_components, seed, vae.prior.dtype)
    epochs = checks.positive_integer("epochs", epochs)
    batch_size = checks.positive_integer("batch_size", batch_size)
    rate = checks.number("learning_rate", learning_rate, "a positive number", lambda r: r > 0)
    _maximize_likelihood(block, z, epochs, batch_size, rate, seed, verbose)
    return block


def interpolate(z0: Any, z1: Any, num: int = 10, path: str = "line") -> np.ndarray:
    r"""Points on a path from one code to another.

    $$ z(t) = (1 - t)\, z_0 + t\, z_1 \quad \text{("line")} $$

    $$ z(t) = \bigl((1 - t) |z_0| + t |z_1|\bigr)
       \frac{\sin((1 - t)\,\omega)\, u_0 + \sin(t\,\omega)\, u_1}{\sin \omega},
       \qquad u_i = \frac{z_i}{|z_i|}, \quad \cos \omega = u_0^\top u_1 \quad \text{("sphere")} $$

    Draws of a normal prior in many dimensions lie near a sphere around 0, and so does the great
    arc between two of them; the middle of their line is nearer to 0 than almost any draw.

    Args:
      z0: where paths begin, `[..., D]`.
      z1: where they end, `[..., D]`, as many or one for all.
      num: how many points, with both ends, at least 2.
      path: "line" or "sphere".

    Returns:
      An array `[..., num, D]`. `vae.likelihood(path).mean()` decodes it.

    Raises:
      TypeError, ValueError: for codes that are no finite vectors or differ in size, a number below
        2, an unknown path, or a sphere with a code at 0 or two codes opposite one another, between
        which all arcs are great.

    Example:
      >>> interpolate([2.0, 0.0], [0.0, 4.0], 3).round(2).tolist()
      [[2.0, 0.0], [1.0, 2.0], [0.0, 4.0]]
      >>> interpolate([2.0, 0.0], [0.0, 4.0], 3, "sphere").round(2).tolist()
      [[2.0, 0.0], [2.12, 2.12], [0.0, 4.0]]

    Source: White, "Sampling Generative Networks", 2016.
    """
    z0, z1 = _vectors("z0", z0), _vectors("z1", z1)
    try:
        z0, z1 = np.broadcast_arrays(z0, z1)
    except ValueError:
        raise ValueError(f"z1: got shape {z1.shape}, wanted {z0.shape}, that of z0") from None
    if checks.positive_integer("num", num) < 2:
        raise ValueError(f"num: got {num}, wanted at least 2, for both ends")
    if not checks.one_of(path, _PATHS):
        raise ValueError(f"path: got {path!r}, wanted one of {', '.join(_PATHS)}")
    t = np.linspace(0.0, 1.0, num)[:, None]
    z0, z1 = z0[..., None, :], z1[..., None, :]
    if path == "line":
        return (1 - t) * z0 + t * z1
    norm0, norm1 = (np.linalg.norm(z, axis=-1, keepdims=True) for z in (z0, z1))
    if not norm0.all() or not norm1.all():
        raise ValueError("z0, z1: got a code at 0, which has no direction, wanted path='line'")
    u0, u1 = z0 / norm0, z1 / norm1
    difference, total = (np.linalg.norm(u, axis=-1, keepdims=True) for u in (u0 - u1, u0 + u1))
    if (total < 1e-6).any():
        raise ValueError("z0, z1: got two codes opposite one another, wanted path='line'")
    # In turns of pi, as NumPy's sinc takes it, by the way that is exact for small angles.
    angle = 2 / np.pi * np.arctan2(difference, total)
    shares = [s * np.sinc(s * angle) / np.sinc(angle) for s in (1 - t, t)]
    return ((1 - t) * norm0 + t * norm1) * (shares[0] * u0 + shares[1] * u1)


class Traversal(NamedTuple):
    """What `traverse` found.

    Attributes:
      units: the latent units that were moved, `[L]`.
      values: the values that each of them took, `[L, num]`.
      means: what the decoder makes of them, the mean of p(x|z), `[L, num, *event_shape]`.
    """

    units: np.ndarray
    values: np.ndarray
    means: np.ndarray


def traverse(
    vae: Any,
    z: Any,
    units: Sequence[int] | None = None,
    num: int = 9,
    quantiles: tuple[float, float] = (0.02, 0.98),
    values: Any = None,
) -> Traversal:
    r"""What the decoder makes of a code when one latent unit after the other is moved.

    $$ \mathbb E[x \mid z'], \qquad z'_d = v, \quad z'_e = z_e \ \text{for } e \ne d $$

    The values v of each unit are the quantiles of its prior at `num` evenly spaced probabilities,
    exact where TFP knows them and otherwise those of 50,000 draws.

    Args:
      vae: a `VAE`.
      z: the code `[D]` that the others are held at, as `vae.posterior(x[:1]).mean()[0]`.
      units: the numbers of the units to move, all if None.
      num: how many values.
      quantiles: the lowest and the highest probability, 0 < low < high < 1.
      values: the values `[num]` that each unit takes, in place of quantiles.

    Returns:
      A `Traversal`; `plotting.traversals` draws it.

    Raises:
      TypeError, ValueError: for a model that is none or whose z are no vectors, a code of another
        size, units that are not there, numbers out of range.

    Example:
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(4), likelihoods.Bernoulli(4)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> found = traverse(vae, np.zeros(2), units=[1], num=3, quantiles=(0.16, 0.84))
      >>> found.values.round(1).tolist(), found.means.shape
      ([[-1.0, 0.0, 1.0]], (1, 3, 4))
    """
    shape = _event_shape(vae)
    code = _vectors("z", z)
    if len(shape) != 1 or code.shape != shape:
        raise ValueError(f"z: got shape {code.shape}, wanted {shape}, one vector of the model's z")
    moved = np.arange(shape[0]) if units is None else np.asarray(units)
    known = moved.ndim == 1 and moved.size and moved.dtype.kind in "iu"
    if not known or moved.min() < 0 or moved.max() >= shape[0]:
        raise ValueError(f"units: got {units!r}, wanted numbers of units from 0 to {shape[0] - 1}")
    if values is None:
        levels = _levels(checks.positive_integer("num", num), quantiles)
        found = _prior_quantiles(vae.prior(), levels)[:, moved].T
    else:
        row = _vectors("values", values)
        if row.ndim != 1:
            raise ValueError(f"values: got shape {row.shape}, wanted (num,)")
        found = np.tile(row, (len(moved), 1))
    codes = np.tile(code, (*found.shape, 1))
    for i, unit in enumerate(moved):
        codes[i, :, unit] = found[i]
    flat = tf.cast(codes.reshape(-1, *shape), vae.prior.dtype)
    means = vae.likelihood(flat).mean().numpy()
    return Traversal(moved, found, means.reshape(*found.shape, *means.shape[1:]))


class _LogDensity(keras.Model):
    """The log density of a prior as a Keras model of z, to be trained."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior = prior

    def call(self, inputs: Any) -> Any:
        """The log densities `[B]`."""
        return self._log_prob(inputs)

    @tf.autograph.experimental.do_not_convert  # Keras rewrites `call`, and all that it calls.
    def _log_prob(self, z: Any) -> Any:
        return self.prior().log_prob(z)


def _negative(z: Any, log_prob: Any) -> Any:
    del z
    return -log_prob


def _maximize_likelihood(
    prior: Any, z: np.ndarray, epochs: int, size: int, rate: float, seed: int, verbose: Any
) -> None:
    """Train a prior on the codes, and keep what is best for a tenth of them that is held out."""
    z = np.random.default_rng(seed).permutation(z)
    num = max(1, len(z) // 10)
    train, held_out = (tf.constant(part, prior.dtype) for part in (z[num:], z[:num]))
    rows = tf.data.Dataset.from_tensor_slices((train, train))
    model = _LogDensity(prior)
    steps = epochs * -(-len(train) // size)
    decay = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(decay), loss=_negative)
    # It never stops early: while the rate is high a flow may stay on a plateau for long.
    best = keras.callbacks.EarlyStopping("val_loss", patience=epochs, restore_best_weights=True)
    model.fit(
        rows.shuffle(len(train), seed=seed).batch(size),
        epochs=epochs,
        validation_data=tf.data.Dataset.from_tensors((held_out, held_out)),
        callbacks=[best],
        verbose=verbose,
    )


def _mixture(z: np.ndarray, num_components: int, seed: int, dtype: str) -> priors.NormalMixture:
    """The mixture of Gaussians that scikit-learn fits to the codes."""
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise ImportError(
            "density: got 'mixture', which needs scikit-learn: pip install 'tfpvae[sklearn]', or "
            "give density='flow'"
        ) from error
    if len(z) < max(num_components, 2):
        raise ValueError(f"x: got {len(z)} codes, wanted more than {num_components} components")
    found = GaussianMixture(num_components, max_iter=1000, random_state=seed).fit(z)
    start = {
        "logits": np.log(found.weights_),
        "loc": found.means_,
        "scale_tril": np.linalg.cholesky(found.covariances_),
    }
    return priors.NormalMixture(
        z.shape[1:], num_components, full_rank=True, seed=0, initial=start, dtype=dtype
    )


def _codes(vae: Any, x: Any, num_draws: int, seed: int) -> np.ndarray:
    """Draws of z from the posteriors of the data, `[num_draws * N, D]`."""
    q = vae.posterior(x)
    if q.reparameterization_type != tfd.FULLY_REPARAMETERIZED:
        raise ValueError(f"vae: got one with the posterior {q.name}, wanted one of real numbers z")
    z = q.sample(num_draws, seed=noise.as_seed(seed)).numpy().astype(np.float64)
    return z.reshape(-1, *z.shape[2:])


def _density(density: Any, shape: tuple[int, ...], dtype: str) -> priors.Prior | None:
    """The block to train, None for a mixture by EM."""
    if isinstance(density, str):
        if density == "mixture":
            return None
        if density == "flow":
            return priors.Flow(shape, flows.RealNVP(6, hidden_units=(64, 64)), dtype=dtype)
        raise ValueError(f"density: got {density!r}, wanted 'mixture', 'flow', or a prior block")
    if not isinstance(density, priors.Prior) or isinstance(density, priors.VampPrior):
        raise TypeError(
            f"density: got {density!r}, wanted 'mixture', 'flow', or a block of tfpvae.priors that "
            "needs no encoder"
        )
    if density.event_shape != shape:
        raise ValueError(
            f"density: got one with event_shape {density.event_shape}, wanted {shape}, that of z"
        )
    if not density.trainable_weights:
        raise ValueError(f"density: got {density.title()}, which has no weights to learn")
    return density


def _event_shape(vae: Any) -> tuple[int, ...]:
    """The shape of the model's z."""
    checks.refuse_keras3("vae", vae)
    if not isinstance(getattr(vae, "prior", None), priors.Prior) or not hasattr(vae, "likelihood"):
        raise TypeError(f"vae: got {vae!r}, wanted a VAE")
    return tuple(vae.prior.event_shape)


def _vectors(argument: str, value: Any) -> np.ndarray:
    """Finite float64 vectors `[..., D]`."""
    array = checks.as_array(argument, value)
    if not np.isfinite(array).all():
        raise ValueError(f"{argument}: got NaN or infinite values, wanted finite numbers")
    return array.astype(np.float64)


def _levels(num: int, quantiles: Any) -> np.ndarray:
    try:
        low, high = map(float, quantiles)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not 0 < low < high < 1:
        raise ValueError(f"quantiles: got {quantiles!r}, wanted (low, high), 0 < low < high < 1")
    return np.linspace(low, high, num)


def _prior_quantiles(prior: Any, levels: np.ndarray) -> np.ndarray:
    """The quantiles of each unit of z, `[num, D]`."""
    if isinstance(prior, tfd.Independent) and not prior.distribution.event_shape.rank:
        with contextlib.suppress(NotImplementedError):
            return prior.distribution.quantile(tf.cast(levels[:, None], prior.dtype)).numpy()
    draws = prior.sample(_PRIOR_DRAWS, seed=noise.as_seed(0)).numpy()
    return np.quantile(draws, levels, axis=0)
