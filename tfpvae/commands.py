"""The commands of the command line, by click: what they take, and what needs no TensorFlow."""

import contextlib
import functools
import importlib
import json
import os
import pathlib
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from tfpvae import quiet, words

_PATH = click.Path(path_type=pathlib.Path)
_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0.0, min_open=True)
# The same for all: then `evaluate` says what the last validation of `train` said.
_BATCH_SIZE = 100

_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"

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
def _mistakes() -> Iterator[None]:
    """What is refused becomes a mistake of the user."""
    context = click.get_current_context()
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


def _load(name: str) -> Any:
    """A module of the library that needs TensorFlow, which is loaded without its own lines."""
    module = f"tfpvae.{name}"
    if "tensorflow" in sys.modules:
        return importlib.import_module(module)
    # The level is for what it writes later, as of a graphics card that is not there; errors that
    # matter are raised, and the text of a crash has a higher level.
    shows_all = os.environ.setdefault(_LOG_LEVEL, "3") == "0"
    with contextlib.nullcontext() if shows_all else quiet.held_back():
        return importlib.import_module(module)


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """What the commands do. What it prints goes to stderr; what it refuses is a mistake."""
    actions = _load("actions")
    path = click.get_current_context().command_path

    def show(message: Any, category: Any, *args: Any, **kwargs: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"{path}: warning: {_line(message)}", file=sys.stderr)

    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), _mistakes():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield actions


def _say(text: str) -> None:
    print(f"{click.get_current_context().command_path}: {text}", file=sys.stderr)


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
    go to stderr.
    """


# What is checked before TensorFlow is loaded.


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


def _check_model(path: pathlib.Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"no such model file: {path}")
    if path.suffix != ".keras":
        raise ValueError(f"MODEL: got {str(path)!r}, wanted a file that ends in .keras")


def _check_data(data: str | None) -> None:
    """Raise if it is neither a file nor a data set, before a model is loaded."""
    if data is None or pathlib.Path(data).exists():
        return
    if pathlib.Path(data).suffix:
        raise FileNotFoundError(f"{data}: there is no such file")
    if data not in words.DATA_SETS:
        raise FileNotFoundError(
            f"DATA: got {data!r}, wanted a file ({', '.join(words.SUFFIXES)}) or one of "
            f"{', '.join(words.DATA_SETS)}{words.nearest(data, words.DATA_SETS)}"
        )


# Training.


def _list(context: click.Context, parameter: Any, value: str | None) -> None:
    if value is not None:
        click.echo(_load("specs").listing(value))
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
    type=click.Choice(words.KINDS),
    callback=_list,
    is_eager=True,
    expose_value=False,
    help="List the names of one kind, and end.",
)
def train(data: str, output: pathlib.Path, overwrite: bool, **options: Any) -> dict[str, Any]:
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
    with _mistakes():
        _check_output(output, overwrite, [".keras"])
        _check_data(data)
    with _library() as actions:
        return actions.train(data, output, say=_say, **options)


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
def demo(output: pathlib.Path, overwrite: bool, **options: Any) -> dict[str, Any]:
    """Train on handwritten digits; needs no files.

    \b
    tfpvae demo
    tfpvae explore demo-output/model.keras digits
    """
    with _mistakes():
        _check_output(output, overwrite)
    with _library() as actions:
        return actions.demo(output, batch_size=_BATCH_SIZE, say=_say, **options)


# What a trained model says.


@tfpvae.command()
@click.argument("model", type=_PATH)
@click.argument("data")
@click.option("--num-samples", type=_COUNT, metavar="S", help="Draws for log p(x) of each example.")
@_of_data
@_seed
@_quiet
def evaluate(model: pathlib.Path, data: str, **options: Any) -> dict[str, Any]:
    """The ELBO and log p(x) of DATA.

    Means over the examples in nats; log p(x) is by importance sampling. They are of data on the
    scale that the likelihood scores: divided by --scale, or standardized, if the model was trained
    so.

    \b
    tfpvae evaluate model.keras counts.csv
    tfpvae evaluate model.keras counts.csv --num-samples 1000
    """
    with _mistakes():
        _check_model(model)
        _check_data(data)
    with _library() as actions:
        return actions.evaluate(model, data, batch_size=_BATCH_SIZE, **options)


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
    model: pathlib.Path, data: str, figure: pathlib.Path | None, overwrite: bool, **options: Any
) -> dict[str, Any]:
    """How good the model is, where it loses, and what to try.

    \b
    tfpvae diagnose model.keras counts.csv --figure diagnosis.png
    """
    with _mistakes():
        if figure is not None:
            _check_output(figure, overwrite, [".png", ".pdf", ".svg"])
        _check_model(model)
        _check_data(data)
    with _library() as actions:
        text, result = actions.diagnose(model, data, figure=figure, **options)
    click.echo(text)
    return result


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
    model: pathlib.Path, num: int, output: pathlib.Path, overwrite: bool, **options: Any
) -> dict[str, Any]:
    """Draw NUM examples from the model.

    They are on the scale of the data that it was trained on.

    \b
    tfpvae sample model.keras 1000 --output samples.csv
    tfpvae sample model.keras 64 --output samples.png
    """
    with _mistakes():
        _check_output(output, overwrite, [*words.SUFFIXES, ".png"])
        _check_model(model)
    with _library() as actions:
        return actions.sample(model, num, output, **options)


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
    model: pathlib.Path, data: str, output: pathlib.Path, overwrite: bool, **options: Any
) -> dict[str, Any]:
    """Draw training, codes and samples.

    The codes are the means of q(z|x). Of images there are reconstructions, samples and, of two
    latent variables, what the decoder makes of a grid; of tables the distribution of each column.

    \b
    tfpvae plot model.keras counts.csv --output figures --label kind
    """
    with _mistakes():
        _check_output(output, overwrite)
        _check_model(model)
        _check_data(data)
    with _library() as actions:
        return actions.plot(model, data, output, **options)


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
    with _mistakes():
        if tflite != (path.suffix == ".tflite"):
            raise ValueError(
                f"PATH: got {str(path)!r} {'with' if tflite else 'without'} --tflite, wanted a "
                "name in .tflite and --tflite for TFLite, or a folder without it"
            )
        _check_output(path, overwrite)
        _check_model(model)
    with _library() as actions:
        return actions.export(model, path, num_samples=num_samples, overwrite=overwrite)


@tfpvae.command()
@click.argument("model", type=_PATH)
@click.argument("data", required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=5006, help="Of the page (5006).")
@click.option("--no-browser", is_flag=True, help="Do not open the page.")
@_of_data
def explore(model: pathlib.Path, data: str | None, port: int, **options: Any) -> None:
    """Explore the model on a page in the browser.

    The page is served on this machine, for this machine; Ctrl-C ends it.

    \b
    tfpvae explore model.keras counts.csv
    tfpvae explore model.keras digits --port 8080 --no-browser
    """
    with _mistakes():
        _check_port(port)
        _check_model(model)
        _check_data(data)
    with _library() as actions:
        actions.explore(model, data, port=port, **options)


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
    reproduce = _load("reproduce")
    if listed or name is None:
        click.echo(reproduce.listing())
        return
    try:
        report = reproduce.reproduce(name, seeds=list(seeds), **options)
    except reproduce.ReproductionError as error:
        raise click.UsageError(str(error)) from error
    click.echo(str(report))


# Completion: a script that knows all words, as it is slow to ask the program at each press of Tab.

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
    specs = _load("specs")
    values = {f"--{kind}": specs.names(f"{kind}s") for kind in kinds}
    values["--list"] = words.KINDS
    options = {
        name: [o for p in command.params if isinstance(p, click.Option) for o in p.opts]
        for name, command in tfpvae.commands.items()
    }
    for name in ("train", "evaluate", "diagnose", "plot", "explore"):
        options[name] += words.DATA_SETS

    def cases(known: Mapping[str, Iterable[str]], indent: int) -> str:
        space = " " * indent
        return "\n".join(f'{space}{name}) words="{" ".join(ws)}" ;;' for name, ws in known.items())

    if shell == "zsh":
        click.echo("autoload -U +X bashcompinit && bashcompinit")
    click.echo(
        _COMPLETION.format(
            values=cases(values, 4), options=cases(options, 8), commands=" ".join(tfpvae.commands)
        )
    )
