"""The gallery: each example is run once, as a notebook, which is both a page and a download.

A notebook that is there is kept until its example, its arguments or the library change.
"""

import asyncio
import hashlib
import html
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from importlib.metadata import version
from typing import Any

import nbclient
import nbformat
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TABLE: dict[str, dict[str, list[str]]] = json.loads((EXAMPLES / "small.json").read_text())

SHOW = """
import pathlib
from IPython.display import Image, display

for path in sorted(pathlib.Path("output").rglob("*.png")):
    display(Image(path))
"""


def docstring(name: str) -> str:
    """What an example says of itself."""
    found = re.match(r'r?"""(.*?)"""', (EXAMPLES / f"{name}.py").read_text(), re.DOTALL)
    assert found is not None, f"examples/{name}.py has no docstring"
    return found[1].strip()


def sentence(name: str) -> str:
    """The first sentence of its docstring."""
    first = docstring(name).split("\n\n")[0]
    return re.sub(r"\s+", " ", re.split(r"\.\s", first + " ")[0])


def title(name: str) -> str:
    """The first clause of its docstring."""
    return re.split(r"[:,] ", sentence(name))[0]


def notebook(name: str) -> Any:
    """The notebook of an example, not yet run."""
    source = (EXAMPLES / f"{name}.py").read_text()
    arguments, figures = TABLE[name]["arguments"], TABLE[name]["figures"]
    wanted = [*arguments, "--output", "output"] if '"--output"' in source else arguments
    files = [name]
    if re.search(r"^import common$", source, re.MULTILINE):
        wanted = [*arguments, "--output", "output"]
        files = ["common", name]
    v4 = nbformat.v4
    text = re.sub(rf"\n\n *python examples/{name}.py\n", "\n", docstring(name))
    parts = [f"# {title(name)}", text, *(f"![{figure}](../figures/{figure})" for figure in figures)]
    if figures:
        parts.append("The figures are of full runs. What follows is a small one.")
    cells = [v4.new_markdown_cell("\n\n".join([*parts, links(name)]))]
    for file in files:
        code = (EXAMPLES / f"{file}.py").read_text()
        cell = v4.new_code_cell(f"%%writefile {file}.py\n{code}")
        cell.metadata["tags"] = ["remove-output", *["hide-input"] * (file == "common")]
        cells.append(cell)
    cells.append(v4.new_code_cell(f"%run {name}.py {shlex.join(wanted)}".strip()))
    show = v4.new_code_cell(SHOW.strip())
    show.metadata["tags"] = ["remove-input"]
    cells.append(show)
    made = v4.new_notebook(cells=cells)
    for index, cell in enumerate(made.cells):
        cell["id"] = str(index)
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    made.metadata["language_info"] = {"name": "python"}
    return made


def links(name: str) -> str:
    """Where the pages speak of an example, and how to run it in full."""
    found = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text()
        if f"examples/{name}.py" in text:
            heading = re.search(r"^# (.*)", text, re.MULTILINE)
            found.append(f"[{heading[1] if heading else path.stem}](../{path.name})")
    read = f" More: {', '.join(found)}." if found else ""
    return f"To run it in full: `python examples/{name}.py`; `--help` names its options.{read}"


def settled(text: str) -> str:
    """Printed text as a terminal shows it in the end: of a progress bar its last state."""
    lines = []
    for line in text.replace("\x08", "").split("\n"):
        states = [state for state in line.split("\r") if state.strip()]
        lines.append(states[-1].rstrip() if states else "")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


LOGGED = re.compile(r"^(INFO|WARNING):tensorflow:.*\n+", re.MULTILINE)


async def run(name: str, made: Any) -> Any:
    """Run a notebook in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        client = nbclient.NotebookClient(
            made, timeout=900, resources={"metadata": {"path": folder}}, kernel_name="python3"
        )
        await client.async_execute(env=environment, cwd=folder, stderr=subprocess.DEVNULL)
    for output in (output for cell in code_cells(made) for output in cell.outputs):
        if output.output_type == "error":  # of %run, which shows what a script raises and goes on
            raise RuntimeError(f"{output.ename}: {output.evalue}")
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = _tidy(cell.outputs)
            cell.metadata.pop("execution", None)
    return made


def _tidy(outputs: list[Any]) -> list[Any]:
    """What a cell printed, as one text, before what it drew; without the logs of TensorFlow."""
    rest = [output for output in outputs if output.output_type != "stream"]
    streams = [output for output in outputs if output.get("name") == "stdout"]
    text = LOGGED.sub("", settled("".join(output.text for output in streams)))
    return [nbformat.v4.new_output("stream", text=text), *rest] if text.strip() else rest


def code_cells(made: Any) -> list[Any]:
    """The cells that are run."""
    return [cell for cell in made.cells if cell.cell_type == "code"]


def library() -> str:
    """A hash of the library and of what it rests on."""
    parts = [path.read_text() for path in sorted((ROOT / "tfpvae").glob("*.py"))]
    parts += [version(package) for package in ("tensorflow", "tensorflow-probability")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def content(made: Any) -> str:
    """A hash of what the outputs of a notebook depend on."""
    parts = [*(cell.source for cell in code_cells(made)), library()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def reuse(made: Any, path: pathlib.Path) -> bool:
    """Take the outputs from the notebook that is there, if it ran the same."""
    if not path.exists():
        return False
    old = nbformat.read(path, as_version=4)
    if old.metadata.get("hash") != made.metadata["hash"]:
        return False
    for cell, known in zip(code_cells(made), code_cells(old), strict=True):
        cell.outputs, cell.execution_count = known.outputs, known.execution_count
    if made != old:
        nbformat.write(made, path)
    return True


async def run_all(folder: pathlib.Path, workers: int) -> list[str]:
    """Run what has no notebook that is up to date; returns the names of what failed."""
    slots, failed, left = asyncio.Semaphore(workers), [], []

    async def one(name: str, made: Any) -> None:
        async with slots:
            try:
                await run(name, made)
                nbformat.write(made, folder / f"{name}.ipynb")
            except (nbclient.exceptions.CellExecutionError, RuntimeError) as error:
                failed.append(name)
                LOGGER.warning("examples/%s.py failed: %s", name, error)
            left.remove(name)
            LOGGER.info("example %s is done, %d left", name, len(left))

    tasks = []
    for name in sorted(TABLE):
        made = notebook(name)
        made.metadata["hash"] = content(made)
        if not reuse(made, folder / f"{name}.ipynb"):
            left.append(name)
            tasks.append(one(name, made))
    await asyncio.gather(*tasks)
    return failed


def grid(folder: pathlib.Path) -> str:
    """The cards of all examples."""
    cards = []
    for name in sorted(TABLE):
        made = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        cards.append(
            f'<a class="card" href="gallery/{name}.html">{_face(name, made)}'
            f"<span>{html.escape(sentence(name))}</span></a>"
        )
    return '<div class="gallery">\n' + "\n".join(cards) + "\n</div>"


def _face(name: str, made: Any) -> str:
    """A picture of an example, or what it printed."""
    if figures := TABLE[name]["figures"]:
        return f'<img src="_images/{figures[0]}" alt="">'
    *_, ran, shown = code_cells(made)
    if pictures := [output.data["image/png"] for output in shown.outputs]:
        return f'<img src="data:image/png;base64,{pictures[-1]}" alt="">'
    text = "".join(output.get("text", "") for output in ran.outputs)
    return f"<pre>{html.escape(text[:1200].strip())}</pre>"


def begin(app: Any) -> None:
    """Run the examples before Sphinx looks for pages."""
    folder = pathlib.Path(app.srcdir) / "gallery"
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.ipynb"):
        if path.stem not in TABLE:
            path.unlink()
    asyncio.run(run_all(folder, min(2, os.cpu_count() or 1)))


def replace_grid(app: Any, docname: str, source: list[str]) -> None:
    """Put the cards into the page of the gallery, and lead links to the examples there."""
    if docname == "gallery":
        folder = pathlib.Path(app.srcdir) / "gallery"
        source[0] = source[0].replace("<!-- cards -->", grid(folder))
    source[0] = re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](gallery/\1.ipynb)", source[0])
    source[0] = re.sub(r"\]\(\.\./tfpvae/(\w+)\.py\)", r"](api/tfpvae.\1.rst)", source[0])


def download(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """A link to the notebook on each page that is one."""
    name = page.split("/")[-1]
    if notebook_of(app, page).exists():
        link = f'<p class="download"><a href="{name}.ipynb" download>Download as a notebook</a></p>'
        context["body"] = context["body"].replace("</h1>", f"</h1>{link}", 1)


def notebook_of(app: Any, page: str) -> pathlib.Path:
    """Where MyST-NB leaves the notebook of a page."""
    return pathlib.Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"


def finish(app: Any, error: Any) -> None:
    """Put the notebooks beside their pages, without what TensorFlow logged."""
    for page in app.env.found_docs if error is None else ():
        if (path := notebook_of(app, page)).exists():
            made = nbformat.read(path, as_version=4)
            for cell in code_cells(made):
                cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            nbformat.write(made, pathlib.Path(app.outdir) / f"{page}.ipynb")


def setup(app: Any) -> dict[str, Any]:
    """Connect it, and keep what MyST-NB runs as long as the library stays the same."""
    cache = pathlib.Path(app.outdir).parent / ".jupyter_cache" / library()
    app.config.nb_execution_cache_path = str(cache)
    app.connect("builder-inited", begin)
    app.connect("source-read", replace_grid)
    app.connect("html-page-context", download)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    folder = ROOT / "docs" / "gallery"
    folder.mkdir(exist_ok=True)
    sys.exit(bool(asyncio.run(run_all(folder, 2))))
