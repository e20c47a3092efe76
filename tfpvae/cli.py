"""The command line: arguments in, one call of the library, an exit code out."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from tfpvae import reproduce

_EXAMPLE = """\
example: one percent of the published budget, three seeds
  python -m tfpvae reproduce burda-iwae-k5 --share 0.01 --seeds 0 1 2 --data mnist.npz
The same command again goes on where it was stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      arguments: without the name of the program; None takes those of the process.

    Returns:
      The exit code: 0, 2 for what cannot be run, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except reproduce.ReproductionError as error:
        print(f"tfpvae {options.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tfpvae", description="Variational autoencoders.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "reproduce",
        help="run a published experiment",
        description="Train and evaluate a published set-up; without NAME, list them.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_reproduce)
    command.add_argument("name", nargs="?", metavar="NAME", help="a set-up")
    command.add_argument("--list", action="store_true", help="list the set-ups")
    command.add_argument(
        "--share", type=float, default=1.0, help="share of the published training budget (1.0)"
    )
    command.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one run for each (0)"
    )
    command.add_argument(
        "--dataset", default="mnist", help="mnist, or digits for a quick try (mnist)"
    )
    command.add_argument("--data", metavar="PATH", help="mnist.npz or the folder that holds it")
    command.add_argument(
        "--num-samples", type=int, default=5000, metavar="S", help="draws for an image (5000)"
    )
    command.add_argument(
        "--num-test", type=int, metavar="N", help="score the first N test images (all)"
    )
    command.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("reproduce-output"),
        metavar="FOLDER",
        help="of checkpoints and results.json (reproduce-output)",
    )
    command.add_argument(
        "--checkpoint-steps", type=int, default=6000, metavar="N", help="between two (6000)"
    )
    command.add_argument("--restart", action="store_true", help="begin anew")
    return parser


def _reproduce(options: argparse.Namespace) -> None:
    if options.list or options.name is None:
        print(reproduce.listing())
        return
    report = reproduce.reproduce(
        options.name,
        share=options.share,
        seeds=options.seeds,
        dataset=options.dataset,
        data=options.data,
        num_samples=options.num_samples,
        num_test=options.num_test,
        output=options.output,
        restart=options.restart,
        checkpoint_steps=options.checkpoint_steps,
    )
    print(report)
