"""What the pages on migration say of the losses of other libraries, at the same weights."""

import importlib.util
import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[1]
MODULE = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "migration.py"))
D, K = MODULE["D"], MODULE["K"]
ROW = r"^\| (.*?) \| ([\d.,]+) \| ([\d.]+) \| ([\d.,]+) \| ([\d.]+) \| ([\d.]+) \|$"
PAGES = [
    ROOT / "docs" / f"migration_{name}.md" for name in ("tfp_layers", "keras", "pythae", "pyro")
]


@pytest.fixture(scope="module")
def x():
    return MODULE["datasets"].load("digits", scale=True, flatten=True).x_train


def at_the_same_weights(name, x):
    """What the library prints, and -ELBO, nll and kl of the model that it means."""
    library = MODULE[name]
    for needed in library.needs:
        pytest.importorskip(needed)
    weights = MODULE["initial_weights"]()
    weights[2] = 3.0 * weights[2]  # Or the KL would be too small to see.
    theirs = library(weights)
    ours = theirs.as_ours(weights)
    kl = np.mean(ours.vae.posterior(x).kl_divergence(ours.vae.prior()))
    return theirs.printed(x), ours.elbo(x), kl


# The other libraries' own warnings are not ours to mend.
@pytest.mark.filterwarnings("default")
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "loss_of"),
    {
        "Ours": lambda elbo, kl, num: -elbo,
        "Stock": lambda elbo, kl, num: -elbo + kl,
        "KerasSum": lambda elbo, kl, num: -elbo,
        # The likelihood's constant is left out, then all is divided, and the KL by less.
        "KerasMean": lambda elbo, kl, num: (-elbo - kl - D / 2 * math.log(math.pi)) / D + kl / K,
        "Pythae": lambda elbo, kl, num: -elbo,
        "PythaeSquared": lambda elbo, kl, num: -elbo - D / 2 * math.log(2 * math.pi),
        "Pyro": lambda elbo, kl, num: num * -elbo,
    }.items(),
)
def test_what_the_losses_are(name, loss_of, x):
    printed, nelbo, kl = at_the_same_weights(name, x)
    assert kl > 0.3
    assert printed == pytest.approx(loss_of(-nelbo, kl, len(x)), rel=5e-4)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tables_are_those_that_the_script_prints(page):
    """Their rows are those of the libraries, and agree with each other."""
    titles = {library.title for library in MODULE["LIBRARIES"]}
    rows = re.findall(ROW, page.read_text(), re.MULTILINE)
    assert len(rows) >= 2
    assert {title for title, *_ in rows} <= titles
    shown = {}
    for path in PAGES:
        for title, *numbers in re.findall(ROW, path.read_text(), re.MULTILINE):
            assert shown.setdefault(title, numbers) == numbers
    assert set(shown) == titles


def test_what_is_not_installed_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["migration", "--only", "Py"])
    MODULE["main"]()
    printed = capsys.readouterr()
    assert printed.err.count("not installed, pip install 'tfpvae[bench]'") == 3
    assert "Pyro" not in printed.out
