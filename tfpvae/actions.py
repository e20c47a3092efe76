"""What the commands of the command line do, once TensorFlow is loaded."""

import contextlib
import importlib
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras

from tfpvae import (
    checks,
    conditional,
    datasets,
    dense,
    diagnostics,
    likelihoods,
    local_inference,
    models,
    plotting,
    priors,
    saving,
    specs,
    tables,
)

_MOST_COLUMNS = 24  # in a picture

_Say = Callable[[str], None]


def _finite(value: Any) -> float | None:
    """A number as JSON has it: NaN and infinity have no place there."""
    return float(value) if math.isfinite(value) else None


# Data, and models with what is known of their data.


def _read(
    data: str,
    columns: Any = None,
    drop: Any = None,
    label: str | None = None,
    key: str | None = None,
    test: bool = False,
    known: Any = None,
) -> tuple[tables.Table, tables.Table | None]:
    """The data of a file, or of a data set by its name and its test part.

    Args:
      data: a file or a name.
      columns: to take, or None.
      drop: columns to leave out, or None.
      label: of the rows, or None.
      key: of an array, or None.
      test: whether to take the test part of a data set by name.
      known: what the model's file says of its data.
    """
    known = known or {}
    if pathlib.Path(data).suffix or pathlib.Path(data).exists():
        is_table = pathlib.Path(data).suffix.lower() in (".csv", ".parquet")
        taken = columns or (known.get("columns") if is_table and not drop else None)
        if key is None and pathlib.Path(data).suffix.lower() == ".npz":
            key = known.get("key")
        found = tables.read(
            data,
            columns=taken,
            drop=drop or (),
            label=label or known.get("label"),
            key=key,
            needs_label=label is not None,
        )
        return found, None
    for name, value in (("columns", columns), ("drop", drop), ("label", label), ("key", key)):
        if value is not None:
            raise ValueError(f"{name}: got {value!r}, wanted none: {data!r} is no file")
    x_train, y_train, x_test, y_test = datasets.load(data)
    parts = tables.Table(x_train, None, y_train), tables.Table(x_test, None, y_test)
    return (parts[1], None) if test else parts


def _load(path: pathlib.Path) -> tuple[models.VAE, dict[str, Any]]:
    """A model, and what its file says of its data and its training."""
    model = saving.load_model(path)
    others = (conditional.ConditionalVAE, local_inference.LocalVAE)
    if not isinstance(model, models.VAE) or isinstance(model, others):
        raise TypeError(
            f"{path}: got a {type(model).__name__}, wanted a VAE or a HierarchicalVAE: the others "
            "have methods of their own, in Python"
        )
    return model, saving.read_notes(path)


def _data_for(vae: models.VAE, notes: Any, data: str, scale: float | None, **options: Any) -> Any:
    """The data as the model takes them, their columns and labels."""
    found, _ = _read(data, test=True, known=_known(notes), **options)
    x, shape = found.x, tuple(vae._build_input_shape[1:])
    if x.shape[1:] != shape:
        if math.prod(x.shape[1:]) != math.prod(shape) or found.columns is not None:
            names = f" ({', '.join(found.columns)})" if found.columns else ""
            wanted = _known(notes).get("columns")
            raise ValueError(
                f"{data}: got rows of shape {list(x.shape[1:])}{names:.200}, wanted {list(shape)}, "
                "those of the model"
                + (f" ({', '.join(wanted)})" if wanted else "")
                + (": choose them by --columns" if found.columns else "")
            )
        x = x.reshape(len(x), *shape)
    return found._replace(x=x if scale is None else x / scale)


def _known(notes: Any) -> dict[str, Any]:
    """What the notes in a file say of the data, as far as it is what `train` writes."""
    found: dict[str, Any] = {}
    columns = notes.get("columns")
    if isinstance(columns, list) and all(isinstance(name, str) for name in columns):
        found["columns"] = columns
    return found | {k: notes[k] for k in ("label", "key") if isinstance(notes.get(k), str)}


def _shows(quiet: bool) -> bool:
    return sys.stderr.isatty() and not quiet


def _verbose(quiet: bool) -> Any:
    """Of the methods that show their progress once they take long."""
    return "auto" if _shows(quiet) else 0


# Training.


def train(
    data: str,
    output: pathlib.Path,
    *,
    latent: int,
    hidden: str,
    likelihood: tuple[str, ...],
    posterior: str,
    prior: str,
    objective: str,
    epochs: int,
    batch_size: int,
    optimizer: str,
    learning_rate: float,
    validation_split: float,
    standardize: bool,
    resume: pathlib.Path | None,
    scale: float | None,
    seed: int,
    quiet: bool,
    say: _Say,
    **options: Any,
) -> dict[str, Any]:
    """Train a VAE of dense networks and write it; the result."""
    found, held_out = _read(data, **options)
    if held_out is not None and scale is None:
        scale = float(datasets.MAX_LEVELS[data])
    keras.utils.set_random_seed(seed)
    vae = dense.vae(
        found.x,
        found.columns,
        latent_size=latent,
        hidden=_sizes(hidden),
        likelihood=likelihood,
        posterior=posterior,
        prior=prior,
        scale=scale,
        standardize=standardize,
        seed=seed,
    )
    made = specs.make("optimizer", "optimizers", optimizer, learning_rate=learning_rate)
    vae.compile(made, objective=specs.make("objective", "objectives", objective))
    if not (quiet or likelihood):
        say(f"the likelihood is {_title(vae)}; --likelihood chooses another")
    if np.isnan(found.x).any() and not quiet:
        say(f"{np.isnan(found.x).mean():.1%} of the numbers are missing")
    notes = {"columns": found.columns and list(found.columns)}
    notes |= {name: options[name] for name in ("label", "key")}
    split: dict[str, Any] = {"validation_split": validation_split}
    if held_out is not None and not validation_split:
        split = {"validation_data": held_out.x}
    settings = {"epochs": epochs, "batch_size": batch_size, "resume": resume, **split}
    return _fit(vae, found.x, output, notes, _shows(quiet), settings, say)


def _title(vae: models.VAE) -> str:
    """The likelihood by name, of a table that of each column."""
    block = vae.decoder.layers[-1]
    block = block.component if isinstance(block, likelihoods.Masked) else block
    parts = getattr(block, "columns", None)
    if parts is None:
        return type(block).__name__
    return ", ".join(f"{name}={type(part).__name__}" for name, part in parts.items())


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = () if text == "none" else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"hidden: got {text!r}, wanted numbers, as 256,256, or none") from None
    return tuple(checks.positive_integer("hidden", size) for size in sizes)


def _fit(
    vae: models.VAE,
    x: np.ndarray,
    output: pathlib.Path,
    notes: dict[str, Any],
    shows: bool,
    settings: dict[str, Any],
    say: _Say,
) -> dict[str, Any]:
    """Train a model and write it, also if Ctrl-C ends it; the result."""
    stopped = False
    try:
        history = vae.fit(x, verbose=int(shows), **settings).history
    except KeyboardInterrupt:
        if not vae.built or not int(vae.optimizer.iterations):
            say("stopped before the first step; nothing is written")
            raise
        stopped, history = True, getattr(vae.history, "history", {})
    curves = {name: [_finite(v) for v in values] for name, values in history.items()}
    saving.save(vae, output, notes=notes | {"history": curves})
    if stopped:
        done = len(curves.get("loss", ()))
        say(f"stopped in epoch {done + 1}; what is trained is in {output}")
        raise KeyboardInterrupt
    last = {name: values[-1] for name, values in curves.items()}
    return {"model": str(output), "num_data": len(x), "epochs": len(curves["loss"]), **last}


def demo(
    output: pathlib.Path, *, epochs: int, batch_size: int, seed: int, quiet: bool, say: _Say
) -> dict[str, Any]:
    """Train on digits, and write the model and pictures; the result."""
    x, _, x_test, y_test = datasets.load("digits")
    output.mkdir(exist_ok=True)
    keras.utils.set_random_seed(seed)
    vae = dense.vae(x, hidden=(256,), scale=16.0, seed=seed)
    vae.compile("rmsprop")
    settings = {"epochs": epochs, "batch_size": batch_size, "validation_data": x_test}
    path = output / "model.keras"
    result = _fit(vae, x, path, {}, _shows(quiet), settings, say)
    history = saving.read_notes(path)["history"]
    test = tables.Table(x_test, None, y_test)
    return result | {"figures": _draw(vae, test, output, history, seed, quiet)}


# What a trained model says.


def evaluate(
    model: pathlib.Path,
    data: str,
    *,
    num_samples: int | None,
    batch_size: int,
    seed: int,
    quiet: bool,
    scale: float | None,
    **options: Any,
) -> dict[str, Any]:
    """The ELBO of data and, by draws, log p(x)."""
    vae, notes = _load(model)
    x = _data_for(vae, notes, data, scale, **options).x
    if not vae._is_compiled:
        vae.compile()
    terms = vae.evaluate(x, batch_size=batch_size, verbose=int(_shows(quiet)), return_dict=True)
    result = {"model": str(model), "num_data": len(x)}
    result |= {name: _finite(terms[name]) for name in ("elbo", "nll", "kl")}
    if num_samples is None:
        return result
    found = vae.log_marginal_likelihood(x, num_samples, seed=seed, verbose=_verbose(quiet))
    return result | {
        "log_marginal_likelihood": _finite(found.mean),
        "standard_error": _finite(found.mean_standard_error),
        "sampling_error": _finite(found.mean_sampling_error),
        "effective_sample_size": _finite(np.median(found.effective_sample_size)),
        "num_samples": num_samples,
    }


def diagnose(
    model: pathlib.Path,
    data: str,
    *,
    figure: pathlib.Path | None,
    num_samples: int,
    num_local: int,
    seed: int,
    quiet: bool,
    scale: float | None,
    **options: Any,
) -> tuple[str, dict[str, Any]]:
    """A diagnosis as text, and the result; drawn to a file if there is to be one."""
    vae, notes = _load(model)
    table = _data_for(vae, notes, data, scale, **options)
    found = diagnostics.diagnose(
        vae, table.x, num_samples, num_local=num_local, seed=seed, verbose=_verbose(quiet)
    )
    if figure is not None:
        labels = None if table.labels is None else table.labels.astype(str)
        _write_figure(found.figure(labels), figure)
    gaps, use = found.gaps, found.latents
    return str(found), {
        "model": str(model),
        "num_data": len(table.x),
        "elbo": _finite(found.elbo.mean()),
        "log_marginal_likelihood": _finite(found.marginal_likelihood.mean),
        "kl": _finite(use.kl),
        "mutual_information": _finite(use.mutual_information),
        "aggregate_kl": _finite(use.aggregate_kl),
        "active_units": int(use.active.sum()),
        "approximation_gap": _finite(gaps.approximation.mean()),
        "amortization_gap": _finite(gaps.amortization.mean()),
        "unreliable": _finite(found.unreliable),
        "findings": list(found.findings),
    }


def sample(
    model: pathlib.Path, num: int, output: pathlib.Path, *, seed: int, quiet: bool
) -> dict[str, Any]:
    """Draw from a model and write a table, an array or a picture; the result."""
    vae, notes = _load(model)
    x = vae.sample(num, seed=seed, verbose=_verbose(quiet))
    if output.suffix.lower() == ".png":
        columns = _columns(notes, x)
        figure = _image_grid(x) if _is_image(x, columns) else _marginals(vae, None, x, columns)
        _write_figure(figure, output)
    else:
        values = dense.original(vae, x)
        if (values == np.round(values)).all() and np.abs(values).max() < 2**31:
            values = values.astype(np.int64)  # Counts without a decimal point.
        tables.write(output, values, _columns(notes, x))
    return {"model": str(model), "output": str(output), "num": num}


def _columns(notes: Any, x: np.ndarray) -> list[str] | None:
    """The names of the columns, if there are as many as x has."""
    columns = _known(notes).get("columns")
    return columns if columns is not None and x.shape[1:] == (len(columns),) else None


# Pictures.


def plot(
    model: pathlib.Path,
    data: str,
    output: pathlib.Path,
    *,
    seed: int,
    quiet: bool,
    scale: float | None,
    **options: Any,
) -> dict[str, Any]:
    """Draw a model and data into a folder; the result."""
    vae, notes = _load(model)
    table = _data_for(vae, notes, data, scale, **options)
    if table.columns is None:
        table = table._replace(columns=_columns(notes, table.x))
    output.mkdir(exist_ok=True)
    figures = _draw(vae, table, output, notes.get("history"), seed, quiet)
    return {"model": str(model), "num_data": len(table.x), "figures": figures}


def _draw(
    vae: models.VAE,
    table: tables.Table,
    folder: pathlib.Path,
    history: Any,
    seed: int,
    quiet: bool,
) -> list[str]:
    """Draw what there is to be drawn of a model; the names of the files."""
    x, verbose = table.x, _verbose(quiet)
    figures: dict[str, Any] = {}
    if isinstance(history, dict) and history.get("loss"):
        with contextlib.suppress(TypeError, ValueError):  # Not what `train` wrote.
            figures["convergence"] = plotting.convergence(history).figure
    figures["latent"] = _latent(vae, x, table.labels, seed)
    samples = vae.sample(max(len(x), 1000), seed=seed, verbose=verbose)
    if _is_image(x, table.columns) and not np.isnan(x.astype(float)).any():
        shown = x[:10]
        seen = shown if vae.preprocessing is None else vae.prepare(shown).numpy()
        made = vae.reconstruct(shown, seed=seed, verbose=verbose)
        figures["reconstructions"] = plotting.reconstructions(seen, made).figure
        figures["samples"] = _image_grid(samples[:100])
        if vae.prior.event_shape == (2,) and isinstance(vae.prior, priors.StandardNormal):
            z = plotting.prior_grid(20)
            means = vae.likelihood(z).mean().numpy()
            figures["manifold"] = plotting.manifold(means, z=z).figure
    elif x.ndim == 2:
        figures["marginals"] = _marginals(vae, x, samples, table.columns)
    for name, figure in figures.items():
        _write_figure(figure, folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in figures]


def _latent(vae: models.VAE, x: np.ndarray, labels: Any, seed: int) -> Any:
    """The means of q(z|x) in the plane of the two units that vary most."""
    q = vae.posterior(x)
    try:
        z = np.asarray(q.mean())
    except NotImplementedError:  # Of a flow.
        z = np.mean(q.sample(64, seed=[seed, 0]), axis=0)
    z = z.reshape(len(z), -1)
    if z.shape[1] == 1:
        prior = vae.prior().sample(max(len(z), 1000), seed=[seed, 0])
        ax = plotting.marginal(z[:, 0], np.ravel(prior), names=("E[z|x]", "prior"))
        ax.set_xlabel("$z$")
        return ax.figure
    if labels is not None and labels.dtype.kind == "f" and not np.isfinite(labels).all():
        labels = labels.astype(str)
    units = np.sort(np.argsort(-z.var(axis=0), kind="stable")[:2])
    ax = plotting.latent_plane(z[:, units], labels)
    first, second = (f"mean of $z_{{{unit + 1}}}$" for unit in units)
    ax.set_xlabel(first)
    ax.set_ylabel(second)
    return ax.figure


def _is_image(x: np.ndarray, columns: Any) -> bool:
    """Whether rows are images: [H, W], [H, W, 1 or 3], or squares without names of columns."""
    side = math.isqrt(x.shape[1])
    is_square = x.ndim == 2 and columns is None and side > 3 and side**2 == x.shape[1]
    return is_square or x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3))


def _image_grid(images: np.ndarray) -> Any:
    """Images in rows of ten."""
    width = min(10, len(images))
    num = len(images) // width
    rows = {" " * i: images[i * width : (i + 1) * width] for i in range(num)}
    return plotting.image_rows(rows).figure


def _marginals(vae: models.VAE, x: Any, samples: np.ndarray, columns: Any) -> Any:
    """The distribution of each column, in the data and in samples of the model."""
    from matplotlib.figure import Figure

    samples = dense.original(vae, samples.reshape(len(samples), -1))
    num = min(samples.shape[1], _MOST_COLUMNS)
    width = math.ceil(math.sqrt(num))
    height = math.ceil(num / width)
    figure = Figure(figsize=(3.4 * width, 2.6 * height), layout="constrained")
    panels = np.ravel(figure.subplots(height, width, squeeze=False))
    for i, ax in enumerate(panels):
        if i >= num:
            ax.set_axis_off()
            continue
        plotting.marginal(None if x is None else x[:, i], samples[:, i], ax)
        ax.set_xlabel(columns[i] if columns else f"$x_{{{i + 1}}}$")
        if i:
            ax.get_legend().remove()
    return figure


def _write_figure(figure: Any, path: pathlib.Path) -> None:
    with saving.atomic(path) as whole:
        figure.savefig(whole, dpi=150, bbox_inches="tight")


# For other programs, and for the browser.


def export(
    model: pathlib.Path, path: pathlib.Path, *, num_samples: int, overwrite: bool
) -> dict[str, Any]:
    """Write a model for TensorFlow alone; the result."""
    vae, _ = _load(model)
    vae.export(path, num_samples=num_samples, overwrite=overwrite)
    return {"model": str(model), "output": str(path)}


def explore(
    model: pathlib.Path,
    data: str | None,
    *,
    port: int,
    no_browser: bool,
    scale: float | None,
    **options: Any,
) -> None:
    """Serve the page of a model until Ctrl-C."""
    page = importlib.import_module("tfpvae.explore")
    vae, notes = _load(model)
    table = tables.Table(np.zeros((0, 0)))
    if data is not None:
        table = _data_for(vae, notes, data, scale, **options)
    x = None if data is None else table.x
    page.serve(vae, x, table.labels, port=port, open_browser=not no_browser)
