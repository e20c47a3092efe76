"""Pictures of a model: arrays in, matplotlib Axes out.

Every function draws on `ax`, or on the Axes of a new figure that belongs to no window and to no
global state: save it with ``ax.figure.savefig("picture.png")``.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import betaincinv, ndtri

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

# Okabe and Ito's blue, vermilion and green: distinct for colour-blind readers, too.
_TERMS = {"loss": "#0072B2", "nll": "#D55E00", "kl": "#009E73"}

# Ten colours chosen for all kinds of colour vision: M. A. Petroff, arXiv 2107.02270.
_CLASSES = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"]
_CLASSES += ["#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]

_CROSSES: dict[str, Any] = {
    "color": "0.35",
    "linestyle": "",
    "marker": "x",
    "markersize": 6,
    "zorder": 3,
}

# Missing pixels: no grey, and as bright as a medium one.
_MISSING = (0.35, 0.6, 0.85, 1.0)


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
    return _draw_rows({"original": top, "reconstruction": bottom}, ax)


def image_rows(rows: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Draw rows of images, one beneath the other, such as what several models make of the same.

    Args:
      rows: images by the name of their row: [N, H, W], [N, H, W, 1] or [N, H, W, 3], or [N, H*W]
        for square images; as many of the same size in each row and on the same scale, because one
        grey scale serves all.
      ax: the Axes to draw on.

    Returns:
      The Axes.

    Raises:
      TypeError: `rows` is no mapping, or a row does not hold numbers.
      ValueError: no rows, wrong or different shapes, no images, NaN, infinity, or colours out of
        range.

    Example:
      >>> x = np.eye(8).reshape(2, 4, 8)
      >>> ax = image_rows({"data": x, "model A": 0.5 * x, "model B": 0.2 * x})
      >>> [tick.get_text() for tick in ax.get_yticklabels()]
      ['data', 'model A', 'model B']
    """
    images = {name: _images(f"rows[{name!r}]", row) for name, row in _mapping("rows", rows).items()}
    shapes = {row.shape for row in images.values()}
    if len(shapes) > 1:
        raise ValueError(
            "rows must be as many images of the same size, got "
            f"{', '.join(f'{name!r} {list(row.shape)}' for name, row in images.items())}"
        )
    return _draw_rows(images, ax)


def traversals(
    images: ArrayLike,
    values: ArrayLike,
    units: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw decoded images in which one latent unit after the other is moved, a row for each.

    Args:
      images: what was decoded, [L, num, H, W], [L, num, H, W, 1] or [L, num, H, W, 3], or
        [L, num, H*W] for square images: for each of L units as many images as it took values.
      values: those values, [L, num]; each row's name tells the first and the last. If they are the
        same in all rows, the columns are labelled instead.
      units: the numbers of the units, 0 to L - 1 if None.
      ax: the Axes to draw on.

    Returns:
      The Axes.

    Raises:
      TypeError: an argument does not hold numbers.
      ValueError: wrong shapes, no images, NaN, infinity, or colours out of range.

    Example:
      >>> images = np.random.default_rng(0).random((2, 3, 8, 8))
      >>> ax = traversals(images, [[-1, 0, 1], [-2, 0, 2]], units=[4, 1])
      >>> [tick.get_text() for tick in ax.get_yticklabels()]
      ['z[4]: −1.0 to 1.0', 'z[1]: −2.0 to 2.0']
    """
    values = _numbers("values", values)
    if values.ndim != 2:
        raise ValueError(f"values must be [L, num], got {list(values.shape)}")
    shape = np.shape(images)
    if shape[:2] != values.shape or len(shape) < 3:
        raise ValueError(
            f"images must be {list(values.shape)} as values, and the axes of an image, got "
            f"{list(shape)}"
        )
    numbers_ = np.arange(len(values)) if units is None else np.asarray(units)
    if numbers_.shape != (len(values),) or numbers_.dtype.kind not in "iu":
        raise ValueError(f"units must be {len(values)} integers, one for each row, got {units!r}")
    pictures = _images("images", np.reshape(images, (-1, *shape[2:])))
    pictures = pictures.reshape(*values.shape, *pictures.shape[1:])
    alike = not np.ptp(values, axis=0).any()
    ends = [_tick_labels(row[[0, -1]]) for row in values]
    names = [
        f"z[{unit}]" + ("" if alike else f": {low} to {high}")
        for unit, (low, high) in zip(numbers_, ends, strict=True)
    ]
    if len(set(names)) < len(names):
        raise ValueError(f"units must differ, got {numbers_.tolist()}")
    ax = _draw_rows(dict(zip(names, pictures, strict=True)), ax)
    if alike:
        width = pictures.shape[3] + 2  # With the margin.
        ax.set_xticks(
            (np.arange(values.shape[1]) + 0.5) * width - 0.5, labels=_tick_labels(values[0])
        )
    return ax


def imputations(
    originals: ArrayLike,
    observed: ArrayLike,
    imputed: Mapping[str, ArrayLike],
    ax: Axes | None = None,
) -> Axes:
    """Draw originals in a row, what was observed of them, and rows of images that were filled in.

    Args:
      originals: [N, H, W], [N, H, W, 1] or [N, H, W, 3], or [N, H*W] for square images.
      observed: the same with NaN for pixels that are missing; they are drawn in blue.
      imputed: images of the same shape by the name of their row. The grey scale is that of the
        originals; what lies beyond it is black or white.
      ax: the Axes to draw on.

    Returns:
      The Axes.

    Raises:
      TypeError: an argument does not hold numbers.
      ValueError: wrong or different shapes, no images, infinity, NaN elsewhere than in `observed`,
        or colours out of range.

    Example:
      >>> x = np.eye(8).reshape(2, 4, 8)
      >>> gaps = np.where(np.arange(8) < 4, x, np.nan)
      >>> ax = imputations(x, gaps, {"zeros": np.nan_to_num(gaps)})
      >>> [tick.get_text() for tick in ax.get_yticklabels()]
      ['original', 'observed', 'zeros']
    """
    try:
        seen = np.asarray(observed)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"observed must be a rectangular array: {error}") from error
    if seen.dtype.kind not in "biuf":
        raise TypeError(f"observed must hold real numbers, got {seen.dtype}")
    gaps = np.isnan(seen) if seen.dtype.kind == "f" else np.zeros(seen.shape, bool)
    if not isinstance(imputed, Mapping):
        raise TypeError(f"imputed must be a dictionary of images, got {type(imputed).__name__}")
    given = {"original": originals, "observed": np.where(gaps, seen.dtype.type(0), seen), **imputed}
    arguments = {"original": "originals", "observed": "observed"}
    rows = {
        name: _images(arguments.get(name, f"imputed[{name!r}]"), images)
        for name, images in given.items()
    }
    for name, images in rows.items():
        if images.shape != rows["original"].shape:
            raise ValueError(
                f"all rows must be as many images of the same size, got {name!r} of shape "
                f"{list(images.shape)} and originals of shape {list(rows['original'].shape)}"
            )
    count, height, width, channels = rows["original"].shape
    black, white = (0.0, 1.0) if channels == 3 else _grey_range(rows["original"])
    levels = np.clip((np.stack(list(rows.values())) - black) / (white - black), 0.0, 1.0)
    tiles = np.ones((*levels.shape[:-1], 4))
    tiles[..., :3] = levels
    tiles[1][_images("observed", gaps.astype(float)).any(axis=-1)] = _MISSING
    # A margin of one pixel around every image, transparent.
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    inches = min(0.9, 14.0 / count)  # for the width of an image
    ax = _axes(ax, (inches * count + 1.4, len(rows) * inches * height / width + 0.2))
    _draw(ax, tiles, "W")
    ax.set_xticks([])
    ax.set_yticks((np.arange(len(rows)) + 0.5) * (height + 2) - 0.5, labels=list(rows))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def intervals(
    draws: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    probabilities: tuple[float, float] = (0.5, 0.94),
) -> Axes:
    """Draw mean and two intervals of several quantities, one beneath the other: a forest plot.

    The intervals have equal tails: that of probability p runs from the quantile (1 - p) / 2 to the
    quantile (1 + p) / 2.

    Args:
      draws: draws of each quantity by its name, from the top: [S], or [S, K] for K of them side by
        side in the row of that name, each with its colour.
      ax: the Axes to draw on.
      labels: the names of the K; their numbers if None.
      probabilities: of the inner interval, which is drawn thick, and of the outer one.

    Returns:
      The Axes. Its x axis has no name yet.

    Raises:
      TypeError: `draws` is no mapping, or does not hold numbers.
      ValueError: no quantities, wrong or different shapes, NaN, infinity, a number of labels that
        is not K, or `probabilities` out of range.

    Example:
      >>> ax = intervals({"slope": np.linspace(0.0, 2.0, 101), "intercept": np.zeros(101)})
      >>> [tick.get_text() for tick in ax.get_yticklabels()]
      ['slope', 'intercept']
    """
    from matplotlib.lines import Line2D

    rows = {
        name: _numbers(f"draws[{name!r}]", values)
        for name, values in _mapping("draws", draws).items()
    }
    shape = next(iter(rows.values())).shape
    for name, row in rows.items():
        if row.ndim not in (1, 2) or row.shape != shape:
            raise ValueError(
                f"draws must be [S] or [S, K], the same for all names, got {list(row.shape)} for "
                f"{name!r}"
            )
    inner, outer = _probabilities("probabilities", probabilities, 2)
    values = np.stack(list(rows.values())).reshape(len(rows), shape[0], -1)
    count = values.shape[2]
    if not isinstance(labels, Iterable | None):
        raise TypeError(f"labels must be a list of strings, got {labels!r}")
    names = [str(k) for k in range(count)] if labels is None else [*map(str, labels)]
    if len(names) != count:
        raise ValueError(f"labels must be {count} names, one for each column, got {len(names)}")
    colours = _class_colours(count) if count > 1 else [_TERMS["loss"]]
    ax = _axes(ax, (6.4 if count == 1 else 7.6, 1.1 + 0.13 * len(rows) * (1 + count)))
    ax.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
    for k, colour in enumerate(colours):
        y = np.arange(len(rows)) + 0.7 * ((k + 0.5) / count - 0.5)
        for probability, width in ((outer, 1.2), (inner, 4.0 if count == 1 else 3.0)):
            tails = (0.5 * (1 - probability), 0.5 * (1 + probability))
            low, high = np.quantile(values[..., k], tails, axis=1)
            ax.hlines(y, low, high, color=colour, linewidth=width)
        ax.plot(
            values[..., k].mean(axis=1),
            y,
            linestyle="",
            marker="o",
            markersize=4.5 if count == 1 else 3.5,
            color=colour,
            markerfacecolor="white",
        )
    ax.set_yticks(range(len(rows)), labels=list(rows))
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.4, -0.6)  # the first name is the top
    ax.grid(axis="x", alpha=0.3)
    grey = _TERMS["loss"] if count == 1 else "0.4"
    keys = []
    if count > 1:
        pairs = zip(colours, names, strict=True)
        keys += [Line2D([], [], color=c, linewidth=3.0, label=name) for c, name in pairs]
    keys += [
        Line2D([], [], color=grey, linestyle="", marker="o", mfc="white", label="mean"),
        Line2D([], [], color=grey, linewidth=4.0, label=f"{inner:.0%}"),
        Line2D([], [], color=grey, linewidth=1.2, label=f"{outer:.0%}"),
    ]
    ax.legend(
        handles=keys, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(keys), frameon=False
    )
    return ax


def calibration(
    labels: ArrayLike,
    probs: ArrayLike,
    ax: Axes | None = None,
    *,
    num_bins: int = 10,
    probability: float = 0.94,
) -> Axes:
    """Draw how often what was predicted with some probability came true.

    The predictions go into bins of the same width. The point of a bin is at the mean of its
    predictions and the share of ones among its labels; beside it stands how many there are. The
    bar is the interval of Jeffreys for the true share, from its quantiles

        q(u) = Beta^-1(u; k + 1/2, n - k + 1/2),   k ones among n labels

    with equal tails. Where it meets the diagonal, the predictions may be right.

    Args:
      labels: what came, 0 or 1, [N].
      probs: the probabilities of 1 that were predicted, [N].
      ax: the Axes to draw on.
      num_bins: number of bins from 0 to 1; those without a prediction are left out.
      probability: of the interval.

    Returns:
      The Axes.

    Raises:
      TypeError: the arguments do not hold numbers.
      ValueError: wrong shapes, labels other than 0 and 1, or probabilities out of range.

    Example:
      >>> ax = calibration([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], num_bins=2)
      >>> [text.get_text() for text in ax.texts]
      ['2', '2']

    Source: Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion", 2001.
    """
    found, predicted = _numbers("labels", labels), _numbers("probs", probs)
    if found.ndim != 1 or found.shape != predicted.shape:
        raise ValueError(
            "labels and probs must be [N], one probability for each label, got "
            f"{list(found.shape)} and {list(predicted.shape)}"
        )
    if not np.isin(found, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {found[~np.isin(found, (0, 1))][0]}")
    _check_between_0_and_1("probs", predicted)
    if not isinstance(num_bins, numbers.Integral) or num_bins < 1:
        raise ValueError(f"num_bins must be a positive integer, got {num_bins!r}")
    (probability,) = _probabilities("probability", (probability,), 1)
    bins = np.minimum((predicted * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    kept = counts > 0
    counts = counts[kept]
    ones = np.bincount(bins, found, minlength=num_bins)[kept]
    means = np.bincount(bins, predicted, minlength=num_bins)[kept] / counts
    shares = ones / counts
    low, high = (
        betaincinv(ones + 0.5, counts - ones + 0.5, u)
        for u in (0.5 * (1 - probability), 0.5 * (1 + probability))
    )
    ax = _axes(ax, (5.0, 5.0))
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1.0, linestyle="--", zorder=0)
    ax.vlines(means, low, high, color=_TERMS["loss"], linewidth=1.5)
    ax.plot(means, shares, linestyle="", marker="o", color=_TERMS["loss"])
    for mean, share, count in zip(means, shares, counts, strict=True):
        # Towards the middle of the picture, where there is room, and off the bar.
        side, up = (1 if mean < 0.5 else -1), (1 if share < 0.5 else -1)
        ax.annotate(
            str(count),
            (mean, share),
            xytext=(4 * side, 8 * up),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize="small",
        )
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_aspect("equal")
    ax.grid(alpha=0.3)
    ax.set_xlabel("predicted probability, mean of the bin")
    ax.set_ylabel(f"share of ones, with {probability:.0%} interval")
    return ax


def contours(
    x1: ArrayLike,
    x2: ArrayLike,
    values: ArrayLike,
    ax: Axes | None = None,
    *,
    levels: ArrayLike | None = None,
    label: str = "",
    cmap: Any = "viridis",
    line: float | None = None,
    points: ArrayLike | None = None,
    labels: ArrayLike | None = None,
) -> Axes:
    """Draw a quantity over a plane as filled contours with a colour bar, and data points on top.

    Args:
      x1: the horizontal coordinates of the grid, increasing, [M].
      x2: the vertical ones, [N].
      values: the quantity on the grid, [N, M]: a row for each of x2.
      ax: the Axes to draw on.
      levels: where the colours change, increasing; ten round numbers if None.
      label: the name of the quantity, beside the colour bar.
      cmap: a colour map of matplotlib or its name.
      line: a value at which a black line is drawn, such as 0.5 for the boundary of a decision.
      points: data [P, 2].
      labels: the class of each point [P], integers or strings; each has its colour, its marker and
        its entry in a legend.

    Returns:
      The Axes.

    Raises:
      TypeError: an argument does not hold numbers.
      ValueError: wrong shapes, NaN, infinity, coordinates or levels that do not increase, or labels
        without points.

    Example:
      >>> x = np.linspace(-1, 1, 11)
      >>> ax = contours(x, x, np.hypot(x, x[:, np.newaxis]), label="distance")
      >>> ax.figure.axes[-1].get_ylabel()
      'distance'
    """
    x1, x2 = _increasing("x1", x1), _increasing("x2", x2)
    values = _numbers("values", values)
    if values.shape != (len(x2), len(x1)):
        raise ValueError(
            f"values must be [{len(x2)}, {len(x1)}], a row for each of x2 and a column for each of "
            f"x1, got {list(values.shape)}"
        )
    classes = _classes_of_points("points", points, labels)
    ax = _axes(ax, (6.4, 5.0))
    steps: Any = 10 if levels is None else _increasing("levels", levels)
    filled = ax.contourf(x1, x2, values, levels=steps, cmap=cmap)
    ax.figure.colorbar(filled, ax=ax, label=label)
    if line is not None:
        ax.contour(x1, x2, values, levels=[line], colors="black", linewidths=1.5)
    markers = "o^sDvP*X<>"
    for k, (name, found) in enumerate(classes.items()):
        ax.scatter(
            found[:, 0],
            found[:, 1],
            s=float(np.clip(6e3 / len(found), 8, 28)),
            marker=markers[k % len(markers)],
            color=_class_colours(len(classes))[k],
            edgecolors="black",
            linewidths=0.5,
            alpha=0.9,
            label=name,
        )
    if labels is not None:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(classes), frameon=False)
    ax.set_xlim(x1[0], x1[-1])
    ax.set_ylim(x2[0], x2[-1])
    return ax


def class_bars(
    probs: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the predicted class probabilities of each example as a bar of as many colours.

    The examples stand side by side, those of a class together, the most certain ones on the left.
    The lowest part of a bar is the probability of the class that the example is of. A cross above
    the bar marks an example of which another class was the most probable.

    Args:
      probs: the probabilities, [N, K].
      labels: the classes that came, numbered from 0, [N].
      names: the names of the K classes; their numbers if None.
      ax: the Axes to draw on.

    Returns:
      The Axes.

    Raises:
      TypeError: the arguments do not hold numbers.
      ValueError: wrong shapes, labels that are no class, probabilities that are out of range or
        do not add up to one, or a number of names that is not K.

    Example:
      >>> ax = class_bars([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], [0, 1, 1], ["no", "yes"])
      >>> [tick.get_text() for tick in ax.get_xticklabels()]
      ['no (1)', 'yes (2)']
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    probs, found = _numbers("probs", probs), _numbers("labels", labels)
    if probs.ndim != 2 or found.shape != probs.shape[:1]:
        raise ValueError(
            "probs and labels must be [N, K] and [N], got "
            f"{list(probs.shape)} and {list(found.shape)}"
        )
    _check_between_0_and_1("probs", probs)
    if (np.abs(probs.sum(axis=1) - 1) > 1e-3).any():
        raise ValueError("probs must add up to one in every row")
    size = probs.shape[1]
    if not np.isin(found, range(size)).all():
        raise ValueError(f"labels must be classes 0 to {size - 1}")
    if not isinstance(names, Sequence | None):
        raise TypeError(f"names must be a list of strings, got {names!r}")
    titles = [str(k) for k in range(size)] if names is None else [*map(str, names)]
    if len(titles) != size:
        raise ValueError(f"names must be {size}, one for each class, got {len(titles)}")
    colours = _class_colours(size)
    ax = _axes(ax, (9.0, 3.4))
    start, ticks = 0, {}
    for k in (k for k in range(size) if (found == k).any()):
        own = probs[found == k]
        own = own[np.argsort(-own[:, k], kind="stable")]
        x = start + np.arange(len(own))
        bottom = np.zeros(len(own))
        for j in (k, *(j for j in range(size) if j != k)):
            ax.bar(x, own[:, j], width=1.0, bottom=bottom, color=colours[j], linewidth=0)
            bottom += own[:, j]
        wrong = x[own.argmax(axis=1) != k]
        ax.plot(wrong, np.full(len(wrong), 1.04), "x", color="black", markersize=5)
        ticks[f"{titles[k]} ({len(own)})"] = x.mean()
        start += len(own) + max(1, len(found) // 60)  # a gap between the classes
    ax.set_xticks(list(ticks.values()), labels=list(ticks))
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-1.0, start)
    ax.set_ylim(0.0, 1.09)
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.set_xlabel("class (number of examples)")
    ax.set_ylabel("predicted probability")
    keys: list[Any] = [Patch(color=c, label=t) for c, t in zip(colours, titles, strict=True)]
    keys.append(Line2D([], [], color="black", linestyle="", marker="x", label="wrong"))
    ax.legend(
        handles=keys, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(keys), frameon=False
    )
    return ax


def unit_bars(
    values: ArrayLike, active: ArrayLike, ax: Axes | None = None, *, label: str = "KL (nats)"
) -> Axes:
    """Draw a number for each latent unit as a bar, the largest first, collapsed units crossed out.

    Args:
      values: one number for each unit, [D].
      active: which units are active, bool [D].
      ax: the Axes to draw on.
      label: of the vertical axis.

    Returns:
      The Axes.

    Raises:
      TypeError: values that are no numbers.
      ValueError: wrong shapes, no units, NaN or infinity.

    Example:
      >>> ax = unit_bars([0.5, 2.0, 0.0], [True, True, False])
      >>> [tick.get_text() for tick in ax.get_xticklabels()]
      ['1', '0', '2']
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    numbers_, used = _numbers("values", values), np.asarray(active)
    if numbers_.ndim != 1 or used.shape != numbers_.shape or used.dtype != bool:
        raise ValueError(
            "values and active must be numbers and bools [D], got "
            f"{list(numbers_.shape)} and {used.dtype} {list(used.shape)}"
        )
    ax = _axes(ax, (7.0, 3.6))
    order = np.argsort(-numbers_, kind="stable")
    colours = np.where(used[order], _TERMS["loss"], "0.6")
    ax.bar(range(len(order)), numbers_[order], color=colours, width=0.8)
    step = math.ceil(len(order) / 24)  # More labels than that would touch.
    places = range(0, len(order), step)
    ax.set_xticks(list(places), labels=[str(order[i]) for i in places])
    ax.set_xlabel("latent unit")
    ax.set_ylabel(label)
    # Their bars are too low to be seen.
    height = 0.03 * max(ax.get_ylim()[1], 0.0)
    ax.plot(np.flatnonzero(~used[order]), np.full((~used).sum(), height), **_CROSSES)
    keys: list[Any] = [Patch(color=_TERMS["loss"], label="active")] if used.any() else []
    keys += [Line2D([], [], label="collapsed", **_CROSSES)] if not used.all() else []
    ax.legend(handles=keys, loc="upper right", frameon=False)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    return ax


def gap_bars(parts: Mapping[str, tuple[float, float]], ax: Axes | None = None) -> Axes:
    """Draw the parts of the gap between log p(x) and the ELBO, one after the other.

    Args:
      parts: the size of each part and its standard error, in nats, by name.
      ax: the Axes to draw on.

    Returns:
      The Axes: log p(x) is at zero on the right, the ELBO dashed on the left.

    Raises:
      TypeError: `parts` is no mapping.
      ValueError: no parts, something else than two finite numbers of one, NaN or infinity.

    Example:
      >>> ax = gap_bars({"approximation": (1.5, 0.1), "amortization": (0.5, 0.1)})
      >>> [text.get_text() for text in ax.texts]
      ['1.50 ± 0.10', '0.50 ± 0.10']
    """
    found = {
        name: _numbers(f"parts[{name!r}]", item) for name, item in _mapping("parts", parts).items()
    }
    for name, pair in found.items():
        if pair.shape != (2,):
            raise ValueError(
                f"parts[{name!r}] must be a size and its standard error, got {list(pair.shape)}"
            )
    ax = _axes(ax, (7.0, 0.9 * len(found) + 1.4))
    end, low, colours = 0.0, 0.0, itertools.cycle([_TERMS["nll"], _TERMS["kl"], _CLASSES[4]])
    for row, ((size, error), colour) in enumerate(zip(found.values(), colours, strict=False)):
        ax.barh(row, -size, left=end, height=0.55, color=colour)
        ax.errorbar(end - size, row, xerr=error, color="black", capsize=3, linewidth=1.2)
        ax.text(
            max(end, end - size), row - 0.3, f"{size:.2f} ± {error:.2f}", ha="right", va="bottom"
        )
        end -= size
        low = min(low, end - error)
    ax.axvline(0.0, color="black", linewidth=1.2)
    ax.axvline(end, color="black", linewidth=1.2, linestyle="--")
    ax.set_yticks(range(len(found)), labels=list(found))
    ax.set_ylim(len(found) - 0.4, -0.8)
    width = max(-low, 1e-3)
    ax.set_xlim(low - 0.12 * width, 0.06 * width)
    ax.set_xlabel("nats from log p(x); dashed: the ELBO")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    return ax


def weight_histogram(
    values: ArrayLike,
    threshold: float,
    ax: Axes | None = None,
    *,
    label: str = "Pareto k-hat",
    low: bool = False,
) -> Axes:
    """Draw how a number that says how good weights are is spread over the examples.

    Args:
      values: one number for each example, [N].
      threshold: what is above it is bad, and drawn in red.
      ax: the Axes to draw on.
      label: of the horizontal axis.
      low: whether what is below the threshold is bad instead.

    Returns:
      The Axes.

    Raises:
      TypeError: values that are no numbers.
      ValueError: wrong shapes, no examples, NaN or infinity.

    Example:
      >>> ax = weight_histogram([0.1, 0.2, 0.9], threshold=0.7)
      >>> int(sum(bar.get_height() for bar in ax.patches))
      3
    """
    found = _numbers("values", values)
    if found.ndim != 1:
        raise ValueError(f"values must be [N], got {list(found.shape)}")
    ax = _axes(ax, (7.0, 3.6))
    if not isinstance(threshold, (float, int, np.number)) or not math.isfinite(threshold):
        raise TypeError(f"threshold must be a finite number, got {threshold!r}")
    left, right = min(found.min(), threshold), max(found.max(), threshold)
    width = max(right - left, 1e-3) / 40
    # The threshold is an edge, so that no bar is half good.
    below, above = (
        math.ceil((threshold - left) / width),
        math.floor((right - threshold) / width) + 1,
    )
    edges = threshold + width * np.arange(-max(below, 1), above + 1)
    counts, _ = np.histogram(found, edges)
    bad = (edges[:-1] < threshold - width / 2) == low
    ax.bar(
        edges[:-1], counts, width, align="edge", color=np.where(bad, _TERMS["nll"], _TERMS["loss"])
    )
    ax.axvline(threshold, color="black", linewidth=1.2, linestyle="--")
    ax.set_xlabel(label)
    ax.set_ylabel("examples")
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    return ax


def aggregate_posterior(
    z: ArrayLike,
    prior_z: ArrayLike,
    labels: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    names: tuple[str, str] = ("z[0]", "z[1]"),
) -> Axes:
    """Draw points from the posteriors of all examples on top of the prior, in shades of grey.

    Where only grey shows, the prior has mass and the data have no codes: what the decoder makes
    there was not trained.

    Args:
      z: a draw of the posterior of each example, two units of it, [N, 2].
      prior_z: draws from the prior, [M, 2].
      labels: classes [N], integers or strings, by which z is coloured.
      ax: the Axes to draw on.
      names: of the two units.

    Returns:
      The Axes, with the same scale on both axes.

    Raises:
      TypeError: values that are no numbers.
      ValueError: wrong shapes, no points, NaN or infinity.

    Example:
      >>> ax = aggregate_posterior([[0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]])
      >>> [key.get_text() for key in ax.get_legend().get_texts()]
      ['prior', 'posteriors']
    """
    from matplotlib.lines import Line2D

    prior = _numbers("prior_z", prior_z)
    if prior.ndim != 2 or prior.shape[1] != 2:
        raise ValueError(f"prior_z must be [M, 2], got {list(prior.shape)}")
    if not isinstance(names, (list, tuple)) or len(names) != 2:
        raise TypeError(f"names must be two strings, got {names!r}")
    groups = _classes_of_points("z", z, labels)
    ax = _axes(ax, (5.0, 4.6))
    cells = ax.hexbin(prior[:, 0], prior[:, 1], gridsize=40, cmap="Greys", mincnt=1, linewidths=0)
    most = float(np.max(np.asarray(cells.get_array())))
    cells.set_clim(0, 3.0 * most)  # Light: the points lie on it.
    colours = _class_colours(len(groups)) if labels is not None else [_TERMS["loss"]]
    for (name, points), colour in zip(groups.items(), colours, strict=True):
        ax.scatter(points[:, 0], points[:, 1], s=14, color=colour, linewidths=0, label=name)
    shown = {"prior": "0.7"} | {
        name or "posteriors": colour for name, colour in zip(groups, colours, strict=True)
    }
    keys = [Line2D([], [], color=c, marker="o", linestyle="", label=n) for n, c in shown.items()]
    ax.legend(handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    # A square that holds all points, and all but the outermost of the prior.
    shown_prior = np.quantile(prior, [0.002, 0.998], axis=0)
    everything = np.concatenate([*groups.values(), shown_prior])
    low, high = everything.min(axis=0), everything.max(axis=0)
    half = 0.53 * max(float((high - low).max()), 1e-3)
    ax.set_xlim((low + high)[0] / 2 - half, (low + high)[0] / 2 + half)
    ax.set_ylim((low + high)[1] / 2 - half, (low + high)[1] / 2 + half)
    ax.set_aspect("equal")
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    return ax


def marginal(
    x: ArrayLike | None,
    samples: ArrayLike,
    ax: Axes | None = None,
    *,
    names: tuple[str, str] = ("data", "model"),
) -> Axes:
    """Draw how one variable is distributed, in the data and in samples of a model.

    Few whole numbers get a bar each; all else is a histogram of what lies between the outermost
    two thousandths of the data.

    Args:
      x: the data [N]; NaN is missing. None if there are none.
      samples: of the model, [M].
      ax: the Axes to draw on.
      names: of the two in the legend.

    Returns:
      The Axes; the heights are densities, or probabilities of whole numbers.

    Raises:
      TypeError: values that are no numbers.
      ValueError: wrong shapes, no numbers, infinity, NaN in the samples.

    Example:
      >>> ax = marginal([0, 1, 1, 3], [0, 1, 2, 2])
      >>> [key.get_text() for key in ax.get_legend().get_texts()]
      ['data', 'model']
    """
    model = _numbers("samples", samples)
    data = None
    if x is not None:
        try:
            data = np.asarray(x)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"x must be [N]: {error}") from error
        gaps = data.ndim == 1 and data.dtype.kind == "f"
        data = _numbers("x", data[~np.isnan(data)] if gaps else data)
    for argument, values in (("x", data), ("samples", model)):
        if values is not None and values.ndim != 1:
            raise ValueError(f"{argument} must be [N], got {list(values.shape)}")
    if not isinstance(names, (list, tuple)) or len(names) != 2:
        raise TypeError(f"names must be two strings, got {names!r}")
    from matplotlib.ticker import MaxNLocator

    ax = _axes(ax, (6.0, 3.6))
    shown = model if data is None else np.concatenate([data, model])
    # Of each by itself: a model that is far off must not squeeze the data into one bar.
    low, high = np.quantile(model if data is None else data, [0.002, 0.998])
    step = math.ceil((high - low) / 60) or 1
    if whole := bool((shown == np.round(shown)).all()):  # As many of them in each bar.
        edges = np.arange(math.floor(low), math.ceil(high) + 1 + step, step) - 0.5
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        edges = np.linspace(low, high if high > low else low + 1.0, 41)
    width = np.diff(edges)
    keys: list[Any] = []
    if data is not None:
        heights = np.histogram(data, edges)[0] / len(data) / width
        keys += [ax.bar(edges[:-1], heights, width, align="edge", color="0.75", label=names[0])]
    heights = np.histogram(model, edges)[0] / len(model) / width
    keys += [ax.stairs(heights, edges, color=_TERMS["nll"], linewidth=1.6, label=names[1])]
    ax.set_ylabel("probability" if whole and step == 1 else "density")
    ax.set_ylim(bottom=0.0)
    ax.legend(handles=keys, frameon=False)
    return ax


def _grey_range(images: np.ndarray) -> tuple[float, float]:
    """The grey levels of black and white."""
    black, white = min(0.0, float(images.min())), float(images.max())
    return (black, white) if white > black else (black, black + 1.0)


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


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping from names, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    return {str(key): item for key, item in value.items()}


def _probabilities(argument: str, values: tuple[float, ...], num: int) -> list[float]:
    """Make floats of increasing probabilities of intervals."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{argument} must be numbers between 0 and 1, got {values!r}") from error
    rises = all(low < high for low, high in itertools.pairwise([0.0, *found, 1.0]))
    if not rises or len(found) != num:
        raise ValueError(
            f"{argument} must be between 0 and 1 and increase, got {', '.join(map(str, found))}"
        )
    return found


def _check_between_0_and_1(name: str, values: np.ndarray) -> None:
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"{name} must be in [0, 1], got {values.min():.3g} to {values.max():.3g}")


def _increasing(name: str, value: Any) -> np.ndarray:
    array = _numbers(name, value)
    if array.ndim != 1 or len(array) < 2 or (np.diff(array) <= 0).any():
        raise ValueError(f"{name} must be at least two increasing numbers")
    return array


def _classes_of_points(argument: str, points: Any, labels: Any) -> dict[str, np.ndarray]:
    """Split points [P, 2] by their label."""
    if points is None:
        if labels is not None:
            raise ValueError("labels are of points, got no points")
        return {}
    array = _numbers(argument, points)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{argument} must be [P, 2], got {list(array.shape)}")
    if labels is None:
        return {"": array}
    found = np.asarray(labels)
    if found.shape != (len(array),) or found.dtype.kind not in "biuU":
        raise ValueError(
            f"labels must be {len(array)} integers or strings, one for each point, got "
            f"{found.dtype} {list(found.shape)}"
        )
    return {str(name): array[found == name] for name in np.unique(found)}


def _draw_rows(rows: dict[str, np.ndarray], ax: Axes | None) -> Axes:
    """Draw named rows of images [N, H, W, C], all of the same shape."""
    images = np.stack(list(rows.values()))
    # A margin of one pixel around every image: without colour in grey pictures, white in others.
    margin = np.nan if images.shape[-1] == 1 else 1.0
    tiles = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=margin)
    count, height, width = tiles.shape[1:4]
    inches = min(0.9, 14.0 / count)  # for the width of an image
    ax = _axes(ax, (inches * count + 1.4, len(rows) * inches * height / width + 0.2))
    _draw(ax, tiles, "W")
    ax.set_xticks([])
    ax.set_yticks((np.arange(len(rows)) + 0.5) * height - 0.5, labels=list(rows))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


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
