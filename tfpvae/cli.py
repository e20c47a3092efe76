"""The command line: words in, calls of the library, an exit code out."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
      arguments: without the name of the program; None takes those of the process.

    Returns:
      The exit code: 0; 1 if training failed; 2 for what cannot be run, or without click; 130 after
      Ctrl-C.
    """
    try:
        from tfpvae import commands
    except ImportError as error:
        if (error.name or "").split(".")[0] != "click":
            raise
        print("tfpvae: error: no click, wanted it: pip install 'tfpvae[cli]'", file=sys.stderr)
        return 2
    return commands.run(sys.argv[1:] if arguments is None else list(arguments))
