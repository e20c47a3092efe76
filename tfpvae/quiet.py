"""Holds back what TensorFlow's C++ library writes to stderr while it is imported."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TextIO

# Takes what is written and shows it, unless the last byte says that all went well. It is a process
# of its own, because nothing of this one runs after a crash.
_WATCH = """
import sys
written = sys.stdin.buffer.read()
if not written.endswith(b"\\0"):
    sys.stderr.buffer.write(written)
"""

# Loggers that were made in the meantime write to these; so they stay open.
_kept: list[TextIO] = []


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold back what is written to file descriptor 2, but not what Python writes to `sys.stderr`.

    It is shown after all if the block raises, and if the process crashes in it; not after Ctrl-C.
    Nothing is held back where `sys.stderr` is not the file descriptor 2, as in a notebook.
    """
    stderr = sys.stderr
    try:
        if stderr.fileno() != 2:
            raise OSError
        stderr.flush()
        own = open(os.dup(2), "w", 1, stderr.encoding, stderr.errors)  # noqa: SIM115
    except (AttributeError, OSError, ValueError):  # There is none, or it is closed, or no file.
        yield
        return
    try:
        # Ctrl-C is for this process alone.
        watch = subprocess.Popen(
            [sys.executable, "-ISc", _WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        own.close()
        yield
        return
    assert watch.stdin is not None
    _kept.append(own)
    os.dup2(watch.stdin.fileno(), 2)
    sys.stderr = own
    show = True
    try:
        yield
        show = False
    except KeyboardInterrupt:
        show = False
        raise
    finally:
        own.flush()
        sys.stderr = stderr
        os.dup2(own.fileno(), 2)
        # It may have been ended, or another process may have inherited what it reads from.
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            with watch.stdin:
                watch.stdin.write(b"" if show else b"\0")
            watch.wait(timeout=10)
