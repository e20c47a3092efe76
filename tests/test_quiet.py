"""What is held back of stderr, and what never is: each in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tfpvae

ROOT = Path(tfpvae.__file__).parents[1]
# The command line loads no blocks, which would take seconds.
START = """
import logging, os, sys
sys.argv[0] = "tfpvae"
from tfpvae import quiet
"""


def run(code, end=""):
    command = f'exec "{sys.executable}" -c "$CODE" {end}'
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CODE": START + code}
    return subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)


def test_native_lines_are_held_back_and_those_of_python_are_not():
    found = run("""
with quiet.held_back():
    os.write(2, b"native\\n")
    print("of Python", file=sys.stderr)
    import warnings; warnings.warn("a warning")
    log = logging.StreamHandler()
os.write(2, b"after\\n")
log.emit(logging.makeLogRecord({"msg": "a logger of then"}))
print("the end", file=sys.stderr)
""")
    lines = found.stderr.splitlines()
    assert lines[0] == "of Python"
    assert lines[1].endswith("UserWarning: a warning")
    assert lines[-3:] == ["after", "a logger of then", "the end"]
    assert "native" not in found.stderr
    assert found.returncode == 0


def test_an_error_shows_them():
    found = run("""
with quiet.held_back():
    os.write(2, b"native\\n")
    raise ImportError("no library")
""")
    assert found.stderr.startswith("native\nTraceback")
    assert found.stderr.endswith("ImportError: no library\n")


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGKILL"])
def test_a_crash_shows_them(name):
    found = run(f"""
import signal
with quiet.held_back():
    os.write(2, b"why it crashed\\n")
    os.kill(os.getpid(), signal.{name})
""")
    assert found.returncode == -getattr(signal, name)
    assert found.stderr == "why it crashed\n"


def test_ctrl_c_does_not_show_them():
    found = run("""
try:
    with quiet.held_back():
        os.write(2, b"native\\n")
        raise KeyboardInterrupt
except KeyboardInterrupt:
    os.write(2, b"the end\\n")
""")
    assert found.stderr == "the end\n"


def test_nothing_is_held_back_where_stderr_is_something_else():
    found = run("""
import io
sys.stderr = io.StringIO()
with quiet.held_back():
    os.write(2, b"native\\n")
    print("of Python", file=sys.stderr)
print(sys.stderr.getvalue(), end="")
""")
    assert found.stderr == "native\n"
    assert found.stdout == "of Python\n"


def test_a_closed_stderr_is_left_alone(tmp_path):
    """Another file may have its number."""
    path = tmp_path / "a"
    found = run(
        f"""
file = open({str(path)!r}, "w")
with quiet.held_back():
    file.write("text")
    file.flush()
print(file.fileno(), "done")
""",
        end="2>&-",
    )
    assert found.stdout == "2 done\n"
    assert path.read_text() == "text"
