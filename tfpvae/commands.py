"""The commands of the command line, by click."""

import contextlib
import functools
import importlib
import json
import math
import os
import pathlib
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
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
    reproduce,
    saving,
    specs,
    tables,
)

_PATH = click.Path(path_type=pathlib.Path)
_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0.0, min_open=True)
_MOST_COLUMNS = 24  # in a picture
# The same for all: then `evaluate` says what the last validation of `train` said.
_BATCH_SIZE = 100

# For a session of debugging: mistakes keep their traceback.
_TRACEBACK = "TFPVAE_TRACEBACK"


class _Failure(click.ClickException):
    """Something went wrong that is no mistake of the user's."""

    exit_code = 1


def run(arguments: Sequence[str]) -> int:
    """Run the command line, and say in one line what was wrong.

    Args:
      arguments: without the name of the program.

    Returns:
      The exit code: 0, 1 if training failed, 2 for mistakes of the user, 130 after Ctrl-C.
    """
    if not arguments:
        known = ", ".join(tfpvae.commands)
        print(
            f"tfpvae: error: got no command, wanted one of {known}: tfpvae --help", file=sys.stderr
        )
        return 2
    try:
        result = tfpvae.main(list(arguments), prog_name="tfpvae", standalone_mode=False)
    except click.Abort:
        return 130
    except click.ClickException as error:
        if os.environ.get(_TRACEBACK):
            traceback.print_exc()
        context = getattr(error, "ctx", None)
        name = context.command_path if context else "tfpvae"
        print(f"{name}: error: {_line(error.format_message())}", file=sys.stderr)
        return error.exit_code
    if isinstance(result, dict):
        print(json.dumps(result), flush=True)
    return result if isinstance(result, int) else 0


def _line(text: Any) -> str:
    """A text in one line, without what a terminal would obey: it may be from somebody's file."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "?" for c in line)


@contextlib.contextmanager
def _library() -> Iterator[None]:
    """What the library prints goes to stderr, and what it refuses becomes a mistake of the user."""
    context = click.get_current_context()

    def show(message: Any, category: Any, *args: Any, **kwargs: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"{context.command_path}: warning: {_line(message)}", file=sys.stderr)

    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        try:
            yield
        except FloatingPointError as error:
            failure = _Failure(str(error))
            failure.ctx = context  # type: ignore[attr-defined]
            raise failure from error
        except OSError as error:
            named = error.strerror and f"{error.strerror}: {error.filename}"
            raise click.UsageError(named or str(error), context) from error
        except (TypeError, ValueError, ImportError) as error:
            raise click.UsageError(str(error), context) from error


def _say(text: str) -> None:
    print(f"{click.get_current_context().command_path}: {text}", file=sys.stderr)


def _finite(value: Any) -> float | None:
    """A number as JSON has it: NaN and infinity have no place there."""
    return float(value) if math.isfinite(value) else None


# Options that several commands share.


def _names(context: Any, parameter: Any, value: str | None) -> tuple[str, ...] | None:
    """Names with commas between them."""
    return None if value is None else tuple(name.strip() for name in value.split(","))


def _options(*options: Any) -> Callable[[Any], Any]:
    return lambda function: functools.reduce(
        lambda f, option: option(f), reversed(options), function
    )


_of_data = _options(
    click.option("--columns", callback=_names, metavar="A,B,..", help="Take these columns alone."),
    click.option("--drop", callback=_names, metavar="A,B,..", help="Leave these columns out."),
    click.option(
        "--label", metavar="NAME", help="A column (or array of an .npz file) of labels, not of x."
    ),
    click.option("--key", metavar="NAME", help="The array of an .npz file that is x."),
    click.option(
        "--scale", type=float, metavar="LEVEL", help="Divide by the largest level, 255 of bytes."
    ),
)
_seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Of all draws; 0 if it is not given."
)
_quiet = click.option("--quiet", is_flag=True, help="No progress bar and no notes.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace what is there.")


class _Spread(click.Command):
    """A command whose options take several values at once, as `--seeds 0 1 2`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the name of the option before each of its values."""
        several = {o for p in self.params if getattr(p, "multiple", False) for o in p.opts}
        spread: list[str] = []
        option = None
        for word in args:
            if word.startswith("--"):
                option = word if word in several else None
            elif option is not None and spread[-1] != option:
                spread.append(option)
            spread.append(word)
        return super().parse_args(ctx, spread)


class _Ordered(click.Group):
    """A group whose commands stand in the order of a first session."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, as they were defined."""
        return list(self.commands)


@click.group(
    cls=_Ordered, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(importlib.import_module("tfpvae").__version__, message="%(prog)s %(version)s")
def tfpvae() -> None:
    """Variational autoencoders: train, evaluate, diagnose, sample, plot, export, explore.

    DATA is a file (.npy, .npz, .csv with the names of its columns in the first line, .parquet) of
    numbers, in which NaN or an empty cell is missing; or the name of a data set, digits or mnist.

    \b
    tfpvae train counts.csv --output model.keras --epochs 50
    tfpvae evaluate model.keras counts.csv --num-samples 100
    tfpvae sample model.keras 1000 --output samples.csv

    The last line on stdout is the result as JSON, in nats an example; progress, notes and errors
    go to stderr, with lines of TensorFlow's own among them.
    """


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
    if data not in datasets.MAX_LEVELS:
        raise FileNotFoundError(
            f"DATA: got {data!r}, wanted a file ({', '.join(tables.SUFFIXES)}) or one of "
            f"{', '.join(datasets.MAX_LEVELS)}{specs.nearest(data, datasets.MAX_LEVELS)}"
        )
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


def _check_output(path: pathlib.Path, overwrite: bool, suffixes: Sequence[str] = ()) -> None:
    """Raise before the work is done and not after."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"output: got {str(path)!r}, wanted a name in {', '.join(suffixes)}")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"output: got {str(path)!r}, but there is no folder {folder}: make it"
        )
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"output: got {str(path)!r}, which is there: give another name, or --overwrite"
        )


def _shows(quiet: bool) -> bool:
    return sys.stderr.isatty() and not quiet


def _verbose(quiet: bool) -> Any:
    """Of the methods that show their progress once they take long."""
    return "auto" if _shows(quiet) else 0


# Training.


def _list(context: click.Context, parameter: Any, value: str | None) -> None:
    if value is not None:
        click.echo(specs.listing(value))
        context.exit()


@tfpvae.command()
@click.argument("data")
@click.option("--output", type=_PATH, required=True, help="The model's file, of a name in .keras.")
@click.option("--latent", type=_COUNT, default=2, help="Number of latent variables (2).")
@click.option(
    "--hidden", default="256,256", metavar="N,N,..", help="Hidden layers, or none (256,256)."
)
@click.option(
    "--likelihood",
    multiple=True,
    metavar="NAME",
    help="As Poisson or 'StudentT(df=4)'; for one column, COLUMN=Poisson, as often as you like. "
    "If it is not given it is chosen by the values.",
)
@click.option("--posterior", default="DiagonalNormal", metavar="NAME", help="(DiagonalNormal)")
@click.option("--prior", default="StandardNormal", metavar="NAME", help="(StandardNormal)")
@click.option(
    "--objective", default="ELBO", metavar="NAME", help="As 'IWAE(num_samples=5)' (ELBO)."
)
@click.option("--epochs", type=_COUNT, default=100, help="Passes over the data (100).")
@click.option("--batch-size", type=_COUNT, default=_BATCH_SIZE, help="Examples a step (100).")
@click.option("--optimizer", default="Adam", metavar="NAME", help="(Adam)")
@click.option("--learning-rate", type=_POSITIVE, default=0.001, help="Of the optimizer (0.001).")
@click.option(
    "--validation-split", type=float, default=0.0, help="Share to hold out: the last rows (0)."
)
@click.option("--standardize", is_flag=True, help="Bring real columns to mean 0 and sd 1.")
@click.option(
    "--resume", type=_PATH, metavar="FOLDER", help="Save the state there, and go on from it."
)
@_of_data
@_seed
@_overwrite
@_quiet
@click.option(
    "--list",
    type=click.Choice(sorted(specs.KINDS)),
    callback=_list,
    is_eager=True,
    expose_value=False,
    help="List the names of one kind, and end.",
)
def train(
    data: str,
    output: pathlib.Path,
    latent: int,
    hidden: str,
    objective: str,
    validation_split: float,
    resume: pathlib.Path | None,
    scale: float | None,
    seed: int,
    overwrite: bool,
    quiet: bool,
    epochs: int,
    batch_size: int,
    optimizer: str,
    learning_rate: float,
    likelihood: tuple[str, ...],
    posterior: str,
    prior: str,
    standardize: bool,
    **options: Any,
) -> dict[str, Any]:
    """Train a VAE of dense networks on DATA.

    The model's file knows the columns and the scale, so later commands need not be told. Ctrl-C
    ends the training and keeps what is trained.

    \b
    tfpvae train counts.csv --output model.keras --likelihood NegativeBinomial --latent 5
    tfpvae train people.csv --output model.keras --label country --standardize \\
        --likelihood "StudentT(df=4)" --likelihood visits=Poisson
    tfpvae train digits --output model.keras --objective "IWAE(num_samples=5)"
    tfpvae train pixels.npz --key images --label y --scale 255 --output model.keras
    tfpvae train --list likelihoods
    """
    with _library():
        _check_output(output, overwrite, [".keras"])
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
            _say(f"the likelihood is {_title(vae)}; --likelihood chooses another")
        if np.isnan(found.x).any() and not quiet:
            _say(f"{np.isnan(found.x).mean():.1%} of the numbers are missing")
        notes = {"columns": found.columns and list(found.columns)}
        notes |= {name: options[name] for name in ("label", "key")}
        split: dict[str, Any] = {"validation_split": validation_split}
        if held_out is not None and not validation_split:
            split = {"validation_data": held_out.x}
        settings = {"epochs": epochs, "batch_size": batch_size, "resume": resume, **split}
        return _fit(vae, found.x, output, notes, _shows(quiet), settings)


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
) -> dict[str, Any]:
    """Train a model and write it, also if Ctrl-C ends it; the result."""
    stopped = False
    try:
        history = vae.fit(x, verbose=int(shows), **settings).history
    except KeyboardInterrupt:
        if not vae.built or not int(vae.optimizer.iterations):
            _say("stopped before the first step; nothing is written")
            raise
        stopped, history = True, getattr(vae.history, "history", {})
    curves = {name: [_finite(v) for v in values] for name, values in history.items()}
    saving.save(vae, output, notes=notes | {"history": curves})
    if stopped:
        done = len(curves.get("loss", ()))
        _say(f"stopped in epoch {done + 1}; what is trained is in {output}")
        raise KeyboardInterrupt
    last = {name: values[-1] for name, values in curves.items()}
    return {"model": str(output), "num_data": len(x), "epochs": len(curves["loss"]), **last}


@tfpvae.command()
@click.option(
    "--output",
    type=_PATH,
    default=pathlib.Path("demo-output"),
    metavar="FOLDER",
    help="Of the model and the pictures (demo-output).",
)
@click.option("--epochs", type=_COUNT, default=150, help="Passes over the data (150).")
@_seed
@_overwrite
@_quiet
def demo(
    output: pathlib.Path, epochs: int, seed: int, overwrite: bool, quiet: bool
) -> dict[str, Any]:
    """Train on handwritten digits; needs no files.

    \b
    tfpvae demo
    tfpvae explore demo-output/model.keras digits
    """
    with _library():
        _check_output(output, overwrite)
        x, _, x_test, y_test = datasets.load("digits")
        output.mkdir(exist_ok=True)
        keras.utils.set_random_seed(seed)
        vae = dense.vae(x, hidden=(256,), scale=16.0, seed=seed)
        vae.compile("rmsprop")
        settings = {"epochs": epochs, "batch_size": _BATCH_SIZE, "validation_data": x_test}
        path = output / "model.keras"
        result = _fit(vae, x, path, {}, _shows(quiet), settings)
        history = saving.read_notes(path)["history"]
        test = tables.Table(x_test, None, y_test)
        return result | {"figures": _draw(vae, test, output, history, seed, quiet)}


# What a trained model says.


@tfpvae.command()
@click.argument("model", type=_PATH)
@click.argument("data")
@click.option("--num-samples", type=_COUNT, metavar="S", help="Draws for log p(x) of each example.")
@_of_data
@_seed
@_quiet
def evaluate(
    model: pathlib.Path,
    data: str,
    num_samples: int | None,
    seed: int,
    quiet: bool,
    scale: float | None,
    **options: Any,
) -> dict[str, Any]:
    """The ELBO and log p(x) of DATA.

    Means over the examples in nats; log p(x) is by importance sampling. They are of data on the
    scale that the likelihood scores: divided by --scale, or standardized, if the model was trained
    so.

    \b
    tfpvae evaluate model.keras counts.csv
    tfpvae evaluate model.keras counts.csv --num-samples 1000
    """
    with _library():
        vae, notes = _load(model)
        x = _data_for(vae, notes, data, scale, **options).x
        if not vae._is_compiled:
            vae.compile()
        terms = vae.evaluate(
            x, batch_size=_BATCH_SIZE, verbose=int(_shows(quiet)), return_dict=True
        )
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


@tfpvae.command()
@click.argument("model", type=_PATH)
@click.argument("data")
@click.option("--figure", type=_PATH, metavar="FILE", help="Draw it, to a .png, .pdf or .svg file.")
@click.option(
    "--num-samples", type=click.IntRange(min=21), default=1000, help="Draws an example (1000)."
)
@click.option(
    "--num-local", type=_COUNT, default=100, help="Examples for which the gap is split (100)."
)
@_of_data
@_seed
@_overwrite
@_quiet
def diagnose(
    model: pathlib.Path,
    data: str,
    figure: pathlib.Path | None,
    num_samples: int,
    num_local: int,
    seed: int,
    overwrite: bool,
    quiet: bool,
    scale: float | None,
    **options: Any,
) -> dict[str, Any]:
    """How good the model is, where it loses, and what to try.

    \b
    tfpvae diagnose model.keras counts.csv --figure diagnosis.png
    """
    with _library():
        if figure is not None:
            _check_output(figure, overwrite, [".png", ".pdf", ".svg"])
        vae, notes = _load(model)
        table = _data_for(vae, notes, data, scale, **options)
        found = diagnostics.diagnose(
            vae, table.x, num_samples, num_local=num_local, seed=seed, verbose=_verbose(quiet)
        )
        if figure is not None:
            labels = None if table.labels is None else table.labels.astype(str)
            _write_figure(found.figure(labels), figure)
    click.echo(str(found))
    gaps, use = found.gaps, found.latents
    return {
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


@tfpvae.command()
@click.argument("model", type=_PATH)
@click.argument("num", type=_COUNT)
@click.option(
    "--output", type=_PATH, required=True, help="A .csv, .parquet, .npy, .npz or .png file."
)
@_seed
@_overwrite
@_quiet
def sample(
    model: pathlib.Path, num: int, output: pathlib.Path, seed: int, overwrite: bool, quiet: bool
) -> dict[str, Any]:
    """Draw NUM examples from the model.

    They are on the scale of the data that it was trained on.

    \b
    tfpvae sample model.keras 1000 --output samples.csv
    tfpvae sample model.keras 64 --output samples.png
    """
    with _library():
        _check_output(output, overwrite, [*tables.SUFFIXES, ".png"])
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


@tfpvae.command()
@click.argument("model", type=_PATH)
@click.argument("data")
@click.option(
    "--output",
    type=_PATH,
    required=True,
    metavar="FOLDER",
    help="Where the pictures go; it is made.",
)
@_of_data
@_seed
@_overwrite
@_quiet
def plot(
    model: pathlib.Path,
    data: str,
    output: pathlib.Path,
    seed: int,
    overwrite: bool,
    quiet: bool,
    scale: float | None,
    **options: Any,
) -> dict[str, Any]:
    """Draw training, codes and samples.

    The codes are the means of q(z|x). Of images there are reconstructions, samples and, of two
    latent variables, what the decoder makes of a grid; of tables the distribution of each column.

    \b
    tfpvae plot model.keras counts.csv --output figures --label kind
    """
    with _library():
        _check_output(output, overwrite)
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


@tfpvae.command()
@click.argument("model", type=_PATH)
@click.argument("path", type=_PATH)
@click.option("--tflite", is_flag=True, help="The decoder alone, to a file of a name in .tflite.")
@click.option(
    "--num-samples", type=_COUNT, default=1, help="Draws an example in the signature elbo (1)."
)
@_overwrite
def export(
    model: pathlib.Path, path: pathlib.Path, tflite: bool, num_samples: int, overwrite: bool
) -> dict[str, Any]:
    """Write the model for TensorFlow alone.

    PATH is a folder for a SavedModel, which is made.

    \b
    tfpvae export model.keras served
    tfpvae export model.keras decoder.tflite --tflite
    """
    with _library():
        if tflite != (path.suffix == ".tflite"):
            raise ValueError(
                f"PATH: got {str(path)!r} {'with' if tflite else 'without'} --tflite, wanted a "
                "name in .tflite and --tflite for TFLite, or a folder without it"
            )
        _check_output(path, overwrite)
        vae, _ = _load(model)
        vae.export(path, num_samples=num_samples, overwrite=overwrite)
        return {"model": str(model), "output": str(path)}


@tfpvae.command()
@click.argument("model", type=_PATH)
@click.argument("data", required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=5006, help="Of the page (5006).")
@click.option("--no-browser", is_flag=True, help="Do not open the page.")
@_of_data
def explore(
    model: pathlib.Path,
    data: str | None,
    port: int,
    no_browser: bool,
    scale: float | None,
    **options: Any,
) -> None:
    """Explore the model on a page in the browser.

    The page is served on this machine, for this machine; Ctrl-C ends it.

    \b
    tfpvae explore model.keras counts.csv
    tfpvae explore model.keras digits --port 8080 --no-browser
    """
    with _library():
        _check_port(port)
        page = importlib.import_module("tfpvae.explore")
        vae, notes = _load(model)
        table = tables.Table(np.zeros((0, 0)))
        if data is not None:
            table = _data_for(vae, notes, data, scale, **options)
        x = None if data is None else table.x
        page.serve(vae, x, table.labels, port=port, open_browser=not no_browser)


def _check_port(port: int) -> None:
    """Raise OSError if somebody listens there, before a model is loaded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(
                f"port: got {port}, which is in use, wanted a free one: --port"
            ) from error


@tfpvae.command("reproduce", cls=_Spread)
@click.argument("name", required=False)
@click.option("--list", "listed", is_flag=True, help="List the set-ups.")
@click.option(
    "--share", type=float, default=1.0, help="Share of the published training budget (1.0)."
)
@click.option(
    "--seeds", type=int, multiple=True, default=[0], metavar="SEED ..", help="One run for each (0)."
)
@click.option("--dataset", default="mnist", help="mnist, or digits for a quick try (mnist).")
@click.option("--data", metavar="PATH", help="mnist.npz or the folder that holds it.")
@click.option(
    "--num-samples", type=int, default=5000, metavar="S", help="Draws for an image (5000)."
)
@click.option("--num-test", type=int, metavar="N", help="Score the first N test images (all).")
@click.option(
    "--output",
    type=_PATH,
    default=pathlib.Path("reproduce-output"),
    metavar="FOLDER",
    help="Of checkpoints and results.json (reproduce-output).",
)
@click.option("--checkpoint-steps", type=int, default=6000, metavar="N", help="Between two (6000).")
@click.option("--restart", is_flag=True, help="Begin anew.")
def reproduce_command(name: str | None, listed: bool, seeds: Any, **options: Any) -> None:
    """Run a published experiment.

    Without NAME they are listed. One percent of the published budget, three seeds; the same command
    again goes on where it was stopped:

    \b
    tfpvae reproduce burda-iwae-k5 --share 0.01 --seeds 0 1 2 --data mnist.npz
    """
    if listed or name is None:
        click.echo(reproduce.listing())
        return
    try:
        report = reproduce.reproduce(name, seeds=list(seeds), **options)
    except reproduce.ReproductionError as error:
        raise click.UsageError(str(error)) from error
    click.echo(str(report))


# Completion: a script that knows all words, as it would take seconds to ask the program for them.

_COMPLETION = """\
_tfpvae() {{
    local words
    case "${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
    *)  case "$([ "$COMP_CWORD" -gt 1 ] && echo "${{COMP_WORDS[1]}}")" in
{options}
        *) words="{commands}" ;;
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -o bashdefault -F _tfpvae tfpvae"""


@tfpvae.command()
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
def completion(shell: str) -> None:
    """Print a script for completion by the shell.

    It knows commands, options and the names of blocks.

    \b
    tfpvae completion bash > ~/.local/share/bash-completion/completions/tfpvae
    tfpvae completion zsh >> ~/.zshrc
    """
    kinds = ("likelihood", "posterior", "prior", "objective", "optimizer")
    values = {f"--{kind}": list(specs.names(f"{kind}s")) for kind in kinds}
    values["--list"] = sorted(specs.KINDS)
    options = {
        name: [o for p in command.params if isinstance(p, click.Option) for o in p.opts]
        for name, command in tfpvae.commands.items()
    }
    for name in ("train", "evaluate", "diagnose", "plot", "explore"):
        options[name] += list(datasets.MAX_LEVELS)

    def cases(words: dict[str, list[str]], indent: int) -> str:
        space = " " * indent
        return "\n".join(f'{space}{name}) words="{" ".join(ws)}" ;;' for name, ws in words.items())

    if shell == "zsh":
        click.echo("autoload -U +X bashcompinit && bashcompinit")
    click.echo(
        _COMPLETION.format(
            values=cases(values, 4), options=cases(options, 8), commands=" ".join(tfpvae.commands)
        )
    )
