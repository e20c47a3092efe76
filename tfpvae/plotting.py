"""Pictures of a model: arrays in, matplotlib Axes out.

Every function draws on `ax`, or on the Axes of a new figure that belongs to no window and to no
global state: save it with ``ax.figure.savefig("picture.png")``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

# Okabe and Ito's blue, vermilion and green: distinct for colour-blind readers, too.
_TERMS = {"loss": "#0072B2", "nll": "#D55E00", "kl": "#009E73"}

# Ten colours chosen for all kinds of colour vision: M. A. Petroff, arXiv 2107.02270.
_CLASSES = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"]
_CLASSES += ["#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]


def convergence(history: Any, ax: Axes | None = None) -> Axes:
    """Draw loss, nll and kl over the epochs: training solid, validation dashed, nats per example.

    The kl is far smaller than the other two, so it has an axis of its own on the right, in the
    colour of its curves. That axis is the last of ``ax.figure.axes``.

    Args:
      history: what `fit` returns, or its `history`: lists of one number per epoch under "loss",
        "nll", "kl", "val_loss", "val_nll" and "val_kl". What is missing is not drawn, what else
        there is neither; "loss" is required.
      ax: the Axes to draw on.

    Returns:
      The Axes of loss and nll.

    Raises:
      TypeError: `history` is no mapping.
      ValueError: no loss, no epochs, lists of different lengths, NaN or infinity.

    Example:
      >>> ax = convergence({"loss": [5.0, 4.0], "nll": [4.0, 2.0], "kl": [1.0, 2.0]})
      >>> ax.get_ylabel()
      'loss, nll (nats per example)'
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    curves = _curves(getattr(history, "history", history))
    epochs = range(1, len(curves["loss"]) + 1)
    ax = _axes(ax, (7.0, 4.2))
    terms = [term for term in _TERMS if term in curves or f"val_{term}" in curves]
    panels = dict.fromkeys(terms, ax)
    if "kl" in terms:
        panels["kl"] = ax.twinx()
        panels["kl"].set_ylabel("kl (nats per example)", color=_TERMS["kl"])
        panels["kl"].tick_params(axis="y", colors=_TERMS["kl"])
        panels["kl"].margins(y=0.1)
    for name, values in curves.items():
        term = name.removeprefix("val_")
        panels[term].plot(
            epochs,
            values,
            color=_TERMS[term],
            linestyle="--" if name.startswith("val_") else "-",
            marker="o" if len(values) == 1 else "",  # a line needs two points to be seen
            fillstyle="none" if name.startswith("val_") else "full",
            label=name,
        )
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{', '.join(term for term in terms if term != 'kl')} (nats per example)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    ax.grid(alpha=0.3)
    sides = {"kl": "kl (right)"}
    keys = [Line2D([], [], color=_TERMS[term], label=sides.get(term, term)) for term in terms]
    if any(name.startswith("val_") for name in curves):
        keys.append(Line2D([], [], color="0.4", linestyle="-", label="training"))
        keys.append(Line2D([], [], color="0.4", linestyle="--", label="validation"))
    # Above the panel: inside there is no corner that neither falling nor rising curves cross.
    ax.legend(
        handles=keys, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(keys), frameon=False
    )
    return ax


def latent_plane(z: ArrayLike, labels: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """Draw points of a two-dimensional latent space, coloured by label with a colour bar.

    Args:
      z: the points, [N, 2].
      labels: integers or strings [N] are classes, each with its colour and its name on the colour
        bar; floating-point numbers [N] are a quantity with a continuous colour scale.
      ax: the Axes to draw on.

    Returns:
      The Axes, with the same scale on both axes.

    Raises:
      TypeError: `z` or `labels` hold something else.
      ValueError: wrong shapes, no points, NaN or infinity.

    Example:
      >>> ax = latent_plane([[0.0, 1.0], [2.0, 3.0], [1.0, 1.0]], labels=[3, 7, 3])
      >>> [tick.get_text() for tick in ax.figure.axes[-1].get_yticklabels()]
      ['3', '7']
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    z = _numbers("z", z)
    if z.ndim != 2 or z.shape[1] != 2:
        raise ValueError(f"z must be [N, 2], got {list(z.shape)}")
    colours: dict[str, Any] = {"color": _TERMS["loss"]}
    names = None
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (len(z),):
            raise ValueError(
                f"labels must be [N] with one label for each of the {len(z)} points of z, "
                f"got {list(labels.shape)}"
            )
        if labels.dtype.kind in "biuU":
            names, classes = np.unique(labels, return_inverse=True)
            colours = {
                "c": classes,
                "cmap": ListedColormap(_class_colours(len(names))),
                "norm": BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names)),
            }
        else:
            colours = {"c": _numbers("labels", labels), "cmap": "viridis"}
    ax = _axes(ax, (6.4, 5.4))
    points = ax.scatter(
        z[:, 0],
        z[:, 1],
        s=float(np.clip(2e4 / len(z), 2, 24)),
        alpha=0.8,
        linewidths=0,
        rasterized=True,  # tens of thousands of points make a vector graphic unusable
        **colours,
    )
    if labels is not None:
        # Its own mappable, because the bar would inherit the transparency of the points.
        bar = ax.figure.colorbar(ScalarMappable(points.norm, points.cmap), ax=ax)
        if names is not None:
            shown = range(0, len(names), math.ceil(len(names) / 20))
            bar.set_ticks(list(shown), labels=[str(names[i]) for i in shown])
            bar.ax.tick_params(length=0)
            bar.ax.minorticks_off()
    # By the limits, not the box: a latent variable that the model ignores would leave a mere slit.
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("$z_1$")
    ax.set_ylabel("$z_2$")
    return ax


def prior_grid(num: int, quantile_range: tuple[float, float] = (0.01, 0.99)) -> np.ndarray:
    """Make the grid of latent values that lies evenly under a standard normal prior.

    Both axes run through the same values, the normal quantiles of evenly spaced probabilities:

        z(u) = Phi^-1(u),   u = low, ..., high   (num steps)

    The order is that of `manifold`, as one reads a page: the first row is the top of the picture,
    with the largest z2; z1 grows to the right along a row.

    Args:
      num: number of values along each axis, at least 2.
      quantile_range: the lowest and the highest probability, 0 < low < high < 1.

    Returns:
      The points z1, z2, float32 [num * num, 2].

    Raises:
      TypeError: `num` is not an integer.
      ValueError: `num` or `quantile_range` is out of range.

    Example:
      >>> print(prior_grid(2, (0.16, 0.84)).round(1))
      [[-1.  1.]
       [ 1.  1.]
       [-1. -1.]
       [ 1. -1.]]
    """
    if not isinstance(num, numbers.Integral) or isinstance(num, bool):
        raise TypeError(f"num must be an integer, got {num!r}")
    if num < 2:
        raise ValueError(f"num must be at least 2, got {num}")
    try:
        low, high = map(float, quantile_range)
    except (TypeError, ValueError):
        raise ValueError(
            f"quantile_range must be two numbers (low, high), got {quantile_range!r}"
        ) from None
    if not 0 < low < high < 1:
        raise ValueError(f"quantile_range must be 0 < low < high < 1, got {quantile_range!r}")
    values = ndtri(np.linspace(low, high, num))
    z1, z2 = np.meshgrid(values, values[::-1])
    return np.stack([z1.ravel(), z2.ravel()], axis=-1).astype(np.float32)


def manifold(images: ArrayLike, ax: Axes | None = None, *, z: ArrayLike | None = None) -> Axes:
    """Draw decoded images as one mosaic in which z1 grows to the right and z2 upwards.

    Args:
      images: images decoded from `prior_grid`, in its order (rows from the top, each from the
        left): [n*n, H, W], [n*n, H, W, 1] or [n*n, H, W, 3], or [n*n, H*W] if they are square.
        Grey levels are drawn from black, the smaller of 0 and the least, to white, the
        greatest; colours are in [0, 1], or uint8.
      ax: the Axes to draw on.
      z: the grid [n*n, 2] that was decoded; its values label the axes.

    Returns:
      The Axes.

    Raises:
      TypeError: `images` or `z` are not numbers.
      ValueError: a number of images that is no square, wrong shapes, no images, NaN, infinity,
        colours out of range, or `z` that is no grid.

    Example:
      >>> z = prior_grid(4)
      >>> images = np.tanh(z @ np.ones((2, 64)))  # a decoder stands here
      >>> ax = manifold(images, z=z)
      >>> ax.images[0].get_array().shape
      (32, 32)
    """
    pictures = _images("images", images)
    n = math.isqrt(len(pictures))
    if n * n != len(pictures):
        raise ValueError(
            f"images must be n*n for a mosaic of n rows and n columns, got {len(pictures)}"
        )
    if z is not None:
        grid = _numbers("z", z)
        if grid.shape != (n * n, 2):
            raise ValueError(
                f"z must be [{n * n}, 2], a row for each image, got {list(grid.shape)}"
            )
        grid = grid.reshape(n, n, 2)
        if np.ptp(grid[..., 0], axis=0).any() or np.ptp(grid[..., 1], axis=1).any():
            raise ValueError(
                "z must be a grid with one z1 for each column and one z2 for each row of images, "
                "as prior_grid makes it; got other values"
            )
    height, width = pictures.shape[1:3]
    scale = 6.0 / max(height, width)
    ax = _axes(ax, (width * scale + 0.6, height * scale + 0.6))
    _draw(ax, pictures.reshape(n, n, *pictures.shape[1:]), "SW")
    ax.set_xlabel("$z_1$")
    ax.set_ylabel("$z_2$")
    ax.set_xticks([])
    ax.set_yticks([])
    if z is not None:
        # Both ends, and as many of the others as leave the labels apart and lie symmetrically.
        some = np.unique(np.linspace(0, n - 1, 4 + n % 2).round().astype(int))
        ax.set_xticks((some + 0.5) * width - 0.5, labels=_tick_labels(grid[0, some, 0]))
        ax.set_yticks((some + 0.5) * height - 0.5, labels=_tick_labels(grid[some, 0, 1]))
    return ax


def reconstructions(originals: ArrayLike, reconstructed: ArrayLike, ax: Axes | None = None) -> Axes:
    """Draw originals in a row and their reconstructions in a second row beneath.

    Args:
      originals: [N, H, W], [N, H, W, 1] or [N, H, W, 3], or [N, H*W] for square images.
      reconstructed: as many images of the same size and on the same scale, because one grey
        scale serves both rows.
      ax: the Axes to draw on.

    Returns:
      The Axes.

    Raises:
      TypeError: an argument does not hold numbers.
      ValueError: wrong or different shapes, no images, NaN, infinity, or colours out of range.

    Example:
      >>> x = np.eye(8).reshape(2, 4, 8)
      >>> ax = reconstructions(x, 0.5 * x)
      >>> [tick.get_text() for tick in ax.get_yticklabels()]
      ['original', 'reconstruction']
    """
    top, bottom = _images("originals", originals), _images("reconstructed", reconstructed)
    if top.shape != bottom.shape:
        raise ValueError(
            "originals and reconstructed must be as many images of the same size, "
            f"got {list(top.shape)} and {list(bottom.shape)}"
        )
    # A margin of one pixel around every image: without colour in grey pictures, white in others.
    margin = np.nan if top.shape[-1] == 1 else 1.0
    rows = np.pad(
        np.stack([top, bottom]),
        ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)),
        constant_values=margin,
    )
    count, height, width = rows.shape[1:4]
    inches = min(0.9, 14.0 / count)  # for the width of an image
    ax = _axes(ax, (inches * count + 1.4, 2 * inches * height / width + 0.2))
    _draw(ax, rows, "W")
    ax.set_xticks([])
    ax.set_yticks([height / 2 - 0.5, 1.5 * height - 0.5], labels=["original", "reconstruction"])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if ax is None:
        return Figure(figsize=figsize, layout="constrained").subplots()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be one matplotlib Axes, got {type(ax).__name__}")
    return ax


def _class_colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    if count <= len(_CLASSES):
        return _CLASSES[:count]
    return list(colormaps["viridis"](np.linspace(0, 1, count)))


def _tick_labels(values: np.ndarray) -> list[str]:
    # Adding zero makes 0.0 of a rounded -0.0.
    return [f"{value + 0.0:.1f}".replace("-", "\N{MINUS SIGN}") for value in values.round(1)]


def _curves(history: Any) -> dict[str, np.ndarray]:
    """Pick the curves to draw out of a Keras history, and check them."""
    if not isinstance(history, Mapping):
        raise TypeError(
            f"history must be a Keras History or its dict of lists, got {type(history).__name__}"
        )
    if "loss" not in history:
        raise ValueError(f"history must hold 'loss', got {sorted(history)}")
    names = [prefix + term for term in _TERMS for prefix in ("", "val_")]
    curves: dict[str, np.ndarray] = {}
    for name in (name for name in names if name in history):
        values = _numbers(f"history[{name!r}]", history[name])
        wanted = curves.get("loss", values).size
        if values.shape != (wanted,):
            raise ValueError(
                f"history[{name!r}] must be a list of {wanted}, one number for each epoch that "
                f"history['loss'] has, got {list(values.shape)}"
            )
        curves[name] = values
    return curves


def _numbers(name: str, value: Any) -> np.ndarray:
    """Make a float64 array of a non-empty argument that has only finite numbers."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} must be a rectangular array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got {list(array.shape)}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"{name} must be finite, got {array[tuple(bad[0])]} at {bad[0].tolist()} "
            f"and {len(bad) - 1} more"
        )
    return array.astype(np.float64)


def _images(name: str, value: Any) -> np.ndarray:
    """Make [N, H, W, C] of images in any of the accepted shapes."""
    array = _numbers(name, value)
    side = math.isqrt(array.shape[-1]) if array.ndim == 2 else 0
    if array.ndim == 2 and side * side == array.shape[1]:
        return array.reshape(-1, side, side, 1)
    if array.ndim == 3:
        return array[..., np.newaxis]
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name} must be [N, H, W], [N, H, W, 1 or 3] or, if square, [N, H*W], "
            f"got {list(array.shape)}"
        )
    if array.shape[-1] == 3:
        array = array / 255 if np.asarray(value).dtype == np.uint8 else array
        if array.min() < 0 or array.max() > 1:
            raise ValueError(
                f"{name} in colour must be in [0, 1], or uint8, "
                f"got {array.min():.3g} to {array.max():.3g}"
            )
    return array


def _draw(ax: Axes, tiles: np.ndarray, anchor: str) -> None:
    """Draw [rows, columns, H, W, C] as one picture, flush to the side of the labels.

    Where a picture floats in its Axes, the layout engine leaves its labels too little room.
    """
    ax.set_anchor(anchor)
    rows, columns, height, width, channels = tiles.shape
    picture = tiles.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
    if channels == 1:
        black, white = min(0.0, np.nanmin(picture)), np.nanmax(picture)
        ax.imshow(picture[..., 0], cmap="gray", vmin=black, vmax=white, interpolation="nearest")
    else:
        ax.imshow(picture, interpolation="nearest")
