"""The site before it is built: every page has its place, and every public name."""

import asyncio
import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import tfpvae

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = {"_build", "api", "gallery"}  # by the build


@pytest.fixture
def extension(monkeypatch):
    """A module of docs/_ext."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))

    def extension(name):
        spec = importlib.util.spec_from_file_location(name, DOCS / "_ext" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return extension


def pages():
    """All pages that are written by hand, by their names in toctrees."""
    paths = [path.relative_to(DOCS) for path in DOCS.rglob("*.md")]
    return {str(path.with_suffix("")) for path in paths if path.parts[0] not in MADE}


def entries(page):
    """What the toctrees of a page lead to."""
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    lines = [line.strip() for tree in trees for line in tree.splitlines()]
    return [re.sub(r".*<(.+)>", r"\1", line) for line in lines if line and line[0] != ":"]


def test_configuration(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    settings = runpy.run_path(str(DOCS / "conf.py"))
    assert settings["release"] == tfpvae.__version__
    assert settings["nitpicky"]
    for extension in {"api", "equations", "gallery"} & {*settings["extensions"]}:
        assert (DOCS / "_ext" / f"{extension}.py").exists()


def test_every_page_is_in_one_toctree():
    found = entries("index")
    assert len(found) == len({*found})
    assert pages() - {"index"} == {*found} - {"api/index"}
    assert entries("gallery") == ["gallery/*"]


def test_entries_of_the_start_page_are_questions():
    text = (DOCS / "index.md").read_text()
    titles = re.findall(r"^(.+) <[\w/-]+>$", text, re.MULTILINE)
    assert len(titles) > 40
    others = [title for title in titles if not title.endswith("?")]
    assert others == ["What does it maximize? The ELBO", "All figures of speed"]


def test_every_public_name_is_in_the_api(extension, tmp_path):
    api = extension("api")
    api.write(tmp_path)
    index = (tmp_path / "index.rst").read_text()
    for name in tfpvae.__all__:
        if name in api.modules():
            assert f":py:mod:`tfpvae.{name}`" in index
            page = (tmp_path / f"tfpvae.{name}.rst").read_text()
            assert f"automodule:: tfpvae.{name}\n   :members:" in page
        else:
            assert f":py:obj:`tfpvae.{name} <" in index
    assert not api.INTERNAL & {*tfpvae.__all__}
    assert {"tfpvae.objectives.ELBO", "tfpvae.blocks.Block"} <= {*api.names()}
    for target in api.shortcuts().values():
        assert target in api.names()


def test_docstrings_become_restructured_text(extension):
    api = extension("api")
    api.KNOWN["tfpvae.models.VAE"] = "tfpvae.models.VAE"
    lines = ["Makes `x * y` of `models.VAE` *s.", "", "$$ a_1", "   + b $$", "", ">>> 2 ** 3", "8"]
    api.docstring(None, "function", "tfpvae.blocks.f", None, None, lines)
    text = "\n".join(lines)
    assert text.startswith(r"Makes ``x * y`` of :py:obj:`models.VAE <tfpvae.models.VAE>` \*s.")
    assert ".. math:: a_1 + b\n" in text
    assert text.endswith(">>> 2 ** 3\n8")


def test_progress_bars_settle(extension):
    pytest.importorskip("nbclient", reason="pip install '.[docs]'")
    gallery = extension("gallery")
    printed = "a\n1/2 [=>]\r1/2\x08\x08\r2/2 [==] \nb\n\n\n\nc"
    assert gallery.settled(printed) == "a\n2/2 [==]\nb\n\nc"


def test_every_example_has_its_small_arguments_and_its_figures():
    table = json.loads((ROOT / "examples" / "small.json").read_text())
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert {*table} == scripts - {"common"}
    figures = [figure for row in table.values() for figure in row["figures"]]
    there = {path.name for path in (DOCS / "figures").glob("*.png")}
    assert {*figures} <= there
    assert {name for name in there if name.startswith((*table,))} <= {*figures}


def test_dead_links_are_found(extension, tmp_path):
    links = extension("links")
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a> <a href="https://x.org">x</a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="#there">b</a><img src="c.png"></p>')
    assert links.dead(tmp_path) == ["b.html: c.png"]
    (tmp_path / "c.png").touch()
    (tmp_path / "a.html").write_text('<a href="b.html#nowhere">b</a>')
    assert links.dead(tmp_path) == ["a.html: b.html#nowhere"]


@pytest.mark.long
@pytest.mark.parametrize("ending", ["1 / 0", "raise SystemExit('a hint')"])
def test_an_example_that_fails_is_found(extension, ending):
    """Although %run, which runs it, only shows what went wrong."""
    pytest.importorskip("nbclient", reason="pip install '.[docs]'")
    gallery = extension("gallery")

    def run(code):
        cell = gallery.nbformat.v4.new_code_cell
        cells = [cell(f"%%writefile script.py\n{code}"), cell("%run script.py")]
        return asyncio.run(gallery.run("script", gallery.nbformat.v4.new_notebook(cells=cells)))

    assert run("print(2)").cells[1].outputs[0].text == "2\n"
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError|a hint"):
        run(f"print(2)\n{ending}")
