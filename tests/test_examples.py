"""Every example runs, small, and the table of stock faults is what the README says."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
PICTURES = {"convergence.png", "latent_plane.png", "manifold.png", "reconstructions.png"}


@pytest.fixture
def run(monkeypatch):
    """Run an example with these words on its command line."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name, *words):
        monkeypatch.delitem(sys.modules, "common", raising=False)
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return run


def test_every_example_has_a_test():
    assert set(SCRIPTS) == {"common", "conv_vae", "mlp_vae", "stock_tfp_faults"}


@pytest.mark.parametrize("name", ["mlp_vae", "conv_vae"])
def test_vae_examples(name, run, tmp_path, capsys):
    run(name, "--epochs", 2, "--output", tmp_path / "made", "--batch-size", 200)
    files = {path.name for path in (tmp_path / "made").iterdir()}
    assert files == PICTURES | {"history.json", "model.keras"}
    printed = capsys.readouterr().out
    assert re.search(r"loss: .* - nll: .* - kl: .* - val_loss: ", printed)  # the progress bar
    assert f"are in {tmp_path / 'made'}" in printed
    history = json.loads((tmp_path / "made" / "history.json").read_text())
    assert set(history) == {"loss", "nll", "kl", "val_loss", "val_nll", "val_kl"}
    test_loss = float(re.search(r"test loss ([\d.]+)", printed)[1])
    assert test_loss == pytest.approx(history["val_loss"][-1], abs=0.01)
    vae = keras.models.load_model(tmp_path / "made" / "model.keras")
    assert vae.sample(3, seed=0).shape[0] == 3


@pytest.mark.parametrize("name", ["mlp_vae", "conv_vae"])
def test_help(name, run, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(name, "--help")
    text = capsys.readouterr().out
    for option in ("--dataset", "--epochs", "--seed", "--output", "--batch-size"):
        assert option in text


def test_convolutional_example_has_the_tutorials_networks(run, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "common", raising=False)
    module = runpy.run_path(str(EXAMPLES / "conv_vae.py"))
    vae = module["build"]((28, 28, 1), seed=0)
    vae.build((None, 28, 28, 1))
    assert (vae.encoder.count_params(), vae.decoder.count_params()) == (69_076, 65_089)
    assert sum(np.prod(weight.shape) for weight in vae.trainable_weights) == 134_165


@pytest.mark.filterwarnings("default")  # A warning of stock code would hide its error.
def test_ours_reads_one_where_stock_layers_are_wrong():
    """Also: stock layers are still wrong. If that changes, the README has to."""
    faults = runpy.run_path(str(EXAMPLES / "stock_tfp_faults.py"))
    rows = faults["table"]()
    ratios = [row for row in rows if row[0].startswith(("sequential", "functional", "KL", "10 dr"))]
    assert len(ratios) == 7
    for title, stock, ours in rows:
        if re.match(r"[\d.]+$", ours):
            assert ours == "1.000", title
            assert float(stock) > 1.9, title
        elif title != "prediction":
            assert ours == "works", title
            assert stock.endswith("Error"), title
    assert rows[-1] == ("prediction", "a draw, ndarray", "a tfd.Distribution")
    readme = (ROOT / "README.md").read_text()
    for row in rows:
        assert f"| {' | '.join(row)} |" in readme


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_on_the_page_runs(page, tmp_path, monkeypatch):
    """The blocks of one page run in their order, in one namespace."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    code = "\n".join(blocks).replace("epochs=50", "epochs=2")
    exec(compile(code, page.name, "exec"), {"__name__": page.stem})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_the_page_names_are_there(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    for link in links:
        assert link.startswith("http") or (page.parent / link).exists(), link
