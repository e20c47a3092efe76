"""A VAE of dense networks for an array or a table, put together from words."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from tfpvae import checks, likelihoods, models, networks, specs, words


def vae(
    x: np.ndarray,
    columns: Sequence[str] | None = None,
    *,
    latent_size: int = 2,
    hidden: Iterable[int] = (256, 256),
    likelihood: Sequence[str] = (),
    posterior: str = "DiagonalNormal",
    prior: str = "StandardNormal",
    scale: float | None = None,
    standardize: bool = False,
    seed: int | None = None,
) -> models.VAE:
    """A VAE of two dense networks, the decoder the mirror image of the encoder.

    Where x has NaN its likelihood is `Masked`, as it is with `Masked(component=Normal)` for data
    that will have some, and the encoder begins with `FillMissing`.

    Args:
      x: the data [N, D] or [N, ...]; NaN is missing.
      columns: the names of the D columns.
      latent_size: the number of latent variables.
      hidden: units of the hidden layers of the encoder.
      likelihood: as `specs.make` takes it, one for all, or with the name of a column before it,
        `visits=Poisson`. What nothing is said of follows from the data, see `guess`.
      posterior: as `specs.make` takes it.
      prior: as `specs.make` takes it.
      scale: divides the data, as the largest level of pixels; None for 1.
      standardize: whether to bring columns to mean 0 and standard deviation 1, those of which the
        likelihood takes all real numbers.
      seed: of the model's noise.

    Returns:
      The model, whose `preprocessing` does the scaling, so it takes data as they are.

    Raises:
      ValueError: for words that mean nothing, columns that are not there or constant, and both
        ways of scaling.

    Example:
      >>> x = np.array([[1.7, 3.0], [1.6, 0.0], [1.8, 1.0]])
      >>> model = vae(x, ["height", "visits"], hidden=(8,), standardize=True, seed=0)
      >>> [type(block).__name__ for block in model.decoder.layers[-1].columns.values()]
      ['Normal', 'NegativeBinomial']
    """
    columns = None if columns is None else tuple(columns)
    shape, missing = x.shape[1:], x.dtype.kind == "f" and bool(np.isnan(x).any())
    if scale is not None:
        checks.positive_number("scale", scale)
        if standardize:
            raise ValueError("standardize: got a scale, too, wanted one of the two")
        x = x / scale
    p = _likelihood(likelihood, x, columns, scale is not None)
    preprocessing = keras.layers.Rescaling(1 / scale) if scale is not None else None
    if standardize:
        preprocessing = _standardized(x, p, columns)
    missing = missing or isinstance(p, likelihoods.Masked)
    if missing and not isinstance(p, likelihoods.Masked):
        p = likelihoods.Masked(p)
    q = specs.make("posterior", "posteriors", posterior, (latent_size,), shape)
    input_shape = (*shape[:-1], 2 * shape[-1]) if missing else shape
    hidden = tuple(hidden)
    encoder = networks.mlp_encoder(input_shape, q.params_size, hidden)
    decoder = networks.mlp_decoder(latent_size, p.params_size, hidden[::-1])
    fill = [networks.FillMissing(mask=True)] if missing else []
    return models.VAE(
        specs.make("prior", "priors", prior, (latent_size,), shape),
        keras.Sequential([*fill, encoder, q]),
        keras.Sequential([decoder, p]),
        seed=seed,
        preprocessing=preprocessing,
    )


def guess(values: np.ndarray) -> str:
    """The likelihood that suits values best at first sight, NaN apart.

    Zeros and ones are `Bernoulli`, other whole numbers that are not negative are counts and
    `NegativeBinomial`, all else is `Normal`. Codes of classes look like counts.

    Example:
      >>> guess(np.array([0, 1, 1])), guess(np.array([0, 7])), guess(np.array([0.5, np.nan]))
      ('Bernoulli', 'NegativeBinomial', 'Normal')
    """
    values = values[np.isfinite(values)]
    if not values.size or (values < 0).any() or (values != np.floor(values)).any():
        return "Normal"
    return "Bernoulli" if values.max() <= 1 else "NegativeBinomial"


def original(vae: models.VAE, values: np.ndarray) -> np.ndarray:
    """Values as the likelihood has them, on the scale of the data that the model takes.

    Example:
      >>> x = np.array([[-100.0], [200.0]])
      >>> original(vae(x, hidden=(4,), standardize=True), np.array([[0.0], [1.0]]))
      array([[ 50.],
             [200.]])
    """
    layer = vae.preprocessing
    if isinstance(layer, keras.layers.Rescaling):
        return (values - np.asarray(layer.offset)) / np.asarray(layer.scale)
    if isinstance(layer, keras.layers.Normalization):
        if not layer.built:
            layer.build((None, *values.shape[1:]))
        mean, variance = (np.ravel(np.asarray(v, float)) for v in (layer.mean, layer.variance))
        return values * np.sqrt(variance) + mean
    return values


def _likelihood(
    texts: Sequence[str], x: np.ndarray, columns: tuple[str, ...] | None, scaled: bool
) -> Any:
    """The likelihood of x: one block, or `Columns` of blocks for each."""
    whole = [text for text in texts if _of_column(text) is None]
    own = dict(found for text in texts if (found := _of_column(text)) is not None)
    if len(whole) > 1:
        raise ValueError(
            f"likelihood: got {' and '.join(map(repr, whole))}, wanted one for all columns, and "
            "others with the name of a column before it: 'visits=Poisson'"
        )
    for name in own:
        if name not in (columns or ()):
            raise ValueError(
                f"likelihood: got one for {name!r}, wanted a name of a column"
                + words.nearest(name, columns or ())
            )
    if whole:
        default = dict.fromkeys(columns or (), whole[0])
    elif scaled:  # Grey levels, as `likelihoods.Bernoulli` takes them.
        default = dict.fromkeys(columns or (), "Bernoulli")
    else:
        default = {name: guess(x[:, i]) for i, name in enumerate(columns or ())}
    kinds = default | own
    if columns is None or len({*kinds.values()}) == 1:
        unnamed = whole[0] if whole else "Bernoulli" if scaled else guess(x)
        text = unnamed if columns is None else kinds[columns[0]]
        return specs.make("likelihood", "likelihoods", text, x.shape[1:])
    return likelihoods.Columns(
        {
            name: specs.make(f"likelihood of {name!r}", "likelihoods", kinds[name], ())
            for name in columns
        }
    )


def _of_column(text: str) -> tuple[str, str] | None:
    """The name of a column and its likelihood, None if the text names no column."""
    found = re.fullmatch(r"([^(=]+)=(.+)", text, re.DOTALL)
    return None if found is None else (found[1].strip(), found[2])


def _standardized(x: np.ndarray, block: Any, columns: tuple[str, ...] | None) -> Any:
    """A layer that brings to mean 0 and standard deviation 1 what may be any real number."""
    if x.ndim != 2:
        raise ValueError(
            f"standardize: got data of shape {list(x.shape)}, wanted columns [N, D]; images have a "
            "scale"
        )
    if isinstance(block, likelihoods.Columns):
        chosen = np.array([_takes(b, np.array([-1.5])) for b in block.columns.values()])
    else:
        chosen = np.full(x.shape[1], _takes(block, np.full((1, x.shape[1]), -1.5)))
    if not chosen.any():
        raise ValueError(
            f"standardize: got the likelihood {block.title()}, which wants the data as they are: "
            "leave it out"
        )
    x = np.asarray(x, np.float64)
    mean, variance = np.nanmean(x, axis=0), np.nanvar(x, axis=0)
    constant = np.flatnonzero(chosen & ~(np.nanmax(x, axis=0) > np.nanmin(x, axis=0)))
    if len(constant):
        name = columns[constant[0]] if columns else f"column {constant[0]}"
        raise ValueError(f"standardize: got {name!r}, which is constant, wanted it left out")
    mean, variance = np.where(chosen, mean, 0.0), np.where(chosen, variance, 1.0)
    return keras.layers.Normalization(mean=mean.tolist(), variance=variance.tolist())


def _takes(block: Any, values: np.ndarray) -> bool:
    """Whether values lie in the support of a likelihood."""
    try:
        block.check_values(values)
    except ValueError:
        return False
    return True
