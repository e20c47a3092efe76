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
import shutil
import subprocess
import sys
import tempfile
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


def title(name: str) -> str:
    """The first sentence of its docstring."""
    first = docstring(name).split("\n\n")[0]
    return re.sub(r"\s+", " ", re.split(r"\.\s", first + " ")[0])


def notebook(name: str) -> Any:
    """The notebook of an example, not yet run."""
    source = (EXAMPLES / f"{name}.py").read_text()
    arguments = TABLE[name]["arguments"]
    wanted = [*arguments, "--output", "output"] if '"--output"' in source else arguments
    files = [name]
    if re.search(r"^import common$", source, re.MULTILINE):
        wanted = [*arguments, "--output", "output"]
        files = ["common", name]
    v4 = nbformat.v4
    _, _, rest = docstring(name).partition("\n\n")
    rest = rest.strip().removeprefix(f"python examples/{name}.py").strip()
    cells = [v4.new_markdown_cell(f"# {title(name)}\n\n{rest}\n\n{links(name)}")]
    for file in files:
        code = (EXAMPLES / f"{file}.py").read_text()
        cell = v4.new_code_cell(f"%%writefile {file}.py\n{code}")
        cell.metadata["tags"] = ["remove-output", *["hide-input"] * (file == "common")]
        cells.append(cell)
    cells.append(v4.new_code_cell(f"%run {name}.py {shlex.join(wanted)}".strip()))
    show = v4.new_code_cell(SHOW.strip())
    show.metadata["tags"] = ["remove-input"]
    cells.append(show)
    if figures := TABLE[name]["figures"]:
        pictures = "\n".join(f"![{figure}](../figures/{figure})" for figure in figures)
        cells.append(v4.new_markdown_cell(f"## Of a full run\n\n{pictures}"))
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
    return (
        f"Here it is small, to take seconds. In full: `python examples/{name}.py`, with `--help` "
        f"for its options.{read}"
    )


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


def content(made: Any) -> str:
    """A hash of what the outputs of a notebook depend on."""
    parts = [nbformat.writes(made).encode(), pathlib.Path(__file__).read_bytes()]
    parts += [path.read_bytes() for path in sorted((ROOT / "tfpvae").glob("*.py"))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


async def run_all(folder: pathlib.Path, workers: int) -> list[str]:
    """Run what has no notebook that is up to date; returns the names of what failed."""
    slots, failed, left = asyncio.Semaphore(workers), [], []

    async def one(name: str, made: Any, of: str) -> None:
        async with slots:
            try:
                await run(name, made)
            except nbclient.exceptions.CellExecutionError as error:
                failed.append(name)
                LOGGER.warning("examples/%s.py failed: %s", name, error)
            made.metadata["hash"] = of
            if name not in failed:
                nbformat.write(made, folder / f"{name}.ipynb")
            left.remove(name)
            LOGGER.info("example %s is done, %d left", name, len(left))

    tasks = []
    for name in sorted(TABLE):
        made, path = notebook(name), folder / f"{name}.ipynb"
        of = content(made)
        if path.exists() and json.loads(path.read_text())["metadata"].get("hash") == of:
            continue
        left.append(name)
        tasks.append(one(name, made, of))
    await asyncio.gather(*tasks)
    return failed


def grid(folder: pathlib.Path) -> str:
    """The cards of all examples."""
    cards = []
    for name in sorted(TABLE):
        made = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        cards.append(
            f'<a class="card" href="gallery/{name}.html">{_face(name, made)}'
            f"<span>{html.escape(title(name))}</span></a>"
        )
    return '<div class="gallery">\n' + "\n".join(cards) + "\n</div>"


def _face(name: str, made: Any) -> str:
    """A picture of an example, or what it printed."""
    if figures := TABLE[name]["figures"]:
        return f'<img src="_images/{figures[0]}" alt="">'
    text = ""
    for cell in made.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                return f'<img src="data:image/png;base64,{output.data["image/png"]}" alt="">'
            text += output.get("text", "")
    return f"<pre>{html.escape(text[-1200:].strip())}</pre>"


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
    """Put the notebooks beside their pages."""
    if error is None:
        for page in app.env.found_docs:
            if (path := notebook_of(app, page)).exists():
                shutil.copy(path, pathlib.Path(app.outdir) / f"{page}.ipynb")


def setup(app: Any) -> dict[str, Any]:
    """Connect it."""
    app.connect("builder-inited", begin)
    app.connect("source-read", replace_grid)
    app.connect("html-page-context", download)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    folder = ROOT / "docs" / "gallery"
    folder.mkdir(exist_ok=True)
    sys.exit(bool(asyncio.run(run_all(folder, 2))))
