"""The command line: what it passes on, and how it ends."""

import re
import runpy
import sys
from pathlib import Path

import pytest

import tfpvae
from tfpvae import cli, reproduce

DEFAULTS = reproduce.reproduce.__kwdefaults__


@pytest.fixture
def calls(monkeypatch):
    """What the library is called with, in place of the library."""
    found = []

    def call(*args, **kwargs):
        found.append((args, kwargs))
        return "the report"

    monkeypatch.setattr(reproduce, "reproduce", call)
    return found


def test_defaults_are_those_of_the_library(calls, capsys):
    assert cli.main(["reproduce", "burda-vae-k1"]) == 0
    ((args, kwargs),) = calls
    assert args == ("burda-vae-k1",)
    kwargs |= {"seeds": tuple(kwargs["seeds"]), "output": str(kwargs["output"])}
    assert kwargs | {"verbose": True} == DEFAULTS
    assert capsys.readouterr().out == "the report\n"


def test_options_are_passed_on(calls):
    line = (
        "reproduce burda-iwae-k5 --share 0.5 --seeds 3 4 --dataset digits --data here "
        "--num-samples 7 --num-test 8 --output there --restart --checkpoint-steps 9"
    )
    assert cli.main(line.split()) == 0
    ((args, kwargs),) = calls
    assert args == ("burda-iwae-k5",)
    assert kwargs == {
        "share": 0.5,
        "seeds": [3, 4],
        "dataset": "digits",
        "data": "here",
        "num_samples": 7,
        "num_test": 8,
        "output": Path("there"),
        "restart": True,
        "checkpoint_steps": 9,
    }


@pytest.mark.parametrize("line", ["reproduce", "reproduce --list", "reproduce burda-vae-k1 --list"])
def test_the_set_ups_are_listed(line, calls, capsys):
    assert cli.main(line.split()) == 0
    assert not calls
    printed = capsys.readouterr().out
    assert re.search(r"^burda-iwae-k50 +IWAE +50 +84\.78 +25 ", printed, re.MULTILINE)
    assert re.search(r"^burda-iwae-2-k50 +IWAE +50 +82\.90 +- ", printed, re.MULTILINE)
    assert len(printed.splitlines()) == 11


def test_help_shows_an_example_that_parses(calls, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["reproduce", "--help"])
    example = re.search(r"python -m tfpvae (reproduce .*)", capsys.readouterr().out)[1]
    assert cli.main(example.split()) == 0
    assert calls[0][0] == ("burda-iwae-k5",)


@pytest.mark.parametrize(
    "line", ["", "learn", "reproduce --share much", "reproduce burda-vae-k1 --seeds"]
)
def test_lines_that_do_not_parse(line, calls, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(line.split())
    assert "error: " in capsys.readouterr().err
    assert not calls


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("reproduce burda-iwae-k500", "wanted one of .*; did you mean 'burda-iwae-k50'?"),
        ("reproduce burda-vae-k1 --share 2", "share: got 2.0, wanted a number with 0 < share"),
        ("reproduce burda-vae-k1 --data nowhere", "there is no file nowhere"),
        ("reproduce burda-vae-k1 --dataset cifar", "dataset: got 'cifar', wanted one of mnist"),
    ],
)
def test_mistakes_of_users_end_in_one_line(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(rf"tfpvae reproduce: error: .*{message}.*\n", captured.err)
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_in_130(monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "reproduce", stop)
    assert cli.main(["reproduce", "burda-vae-k1"]) == 130


def test_mistakes_of_ours_keep_their_traceback(monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("of ours")

    monkeypatch.setattr(reproduce, "reproduce", fail)
    with pytest.raises(ValueError, match="of ours"):
        cli.main(["reproduce", "burda-vae-k1"])


def test_the_package_runs_as_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tfpvae", "reproduce", "burda-vae-k1", "--seeds", "-1"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("tfpvae", run_name="__main__")
    assert capsys.readouterr().err.startswith("tfpvae reproduce: error: seeds: got -1")


def test_the_script_that_is_installed_is_there():
    text = (Path(tfpvae.__file__).parents[1] / "pyproject.toml").read_text()
    module, function = re.search(r'^tfpvae = "(.+):(.+)"$', text, re.MULTILINE).groups()
    assert getattr(sys.modules[module], function) is cli.main
