"""The API, one page for each module, from the names and docstrings that the package has."""

import importlib
import inspect
import pathlib
import pkgutil
import re
from typing import Any

import tfpvae

# Modules that a user has no use for. All others are documented.
INTERNAL = {
    "__main__",
    "actions",
    "checks",
    "cli",
    "execution",
    "guards",
    "inputs",
    "quiet",
    "replicas",
    "serialization",
    "words",
}


def modules() -> list[str]:
    """The names of the documented modules."""
    names = {module.name for module in pkgutil.iter_modules(tfpvae.__path__)}
    return sorted(names - INTERNAL)


def public(module: Any) -> dict[str, Any]:
    """The public classes and functions that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isclass(value) or inspect.isfunction(value))
    }


def names() -> dict[str, Any]:
    """All public classes and functions, by their full names."""
    found = {}
    for name in modules():
        module = importlib.import_module(f"tfpvae.{name}")
        found |= {f"tfpvae.{name}.{title}": value for title, value in public(module).items()}
    return found


def shortcuts() -> dict[str, str]:
    """The names of the package itself, and where what they name is documented."""
    found = {}
    for name in tfpvae.__all__:
        value = getattr(tfpvae, name)
        if not inspect.ismodule(value):
            found[name] = f"{value.__module__}.{value.__qualname__}"
    return found


def sentence(value: Any) -> str:
    """The first sentence of a docstring."""
    return re.sub(r"\s+", " ", inspect.getdoc(value).split("\n\n")[0])


def write(folder: pathlib.Path) -> None:
    """Write the pages."""
    pages = {"index": _index()}
    for name in modules():
        title = f"tfpvae.{name}"
        pages[title] = f"{title}\n{'=' * len(title)}\n\n.. automodule:: {title}\n   :members:\n"
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text() != text:  # What is as it was is not built anew.
            path.write_text(text)


def _index() -> str:
    lines = [
        "API",
        "===",
        "",
        "What ``import tfpvae`` has at hand, and all modules. Every example on these pages runs in",
        "the tests.",
        "",
        ".. list-table::",
        "   :widths: 30 70",
        "",
    ]
    for name, target in shortcuts().items():
        text = markup(sentence(getattr(tfpvae, name)))
        lines += [f"   * - :py:obj:`tfpvae.{name} <{target}>`", f"     - {text}"]
    lines += ["", ".. list-table:: Modules", "   :widths: 30 70", ""]
    for name in modules():
        text = markup(sentence(importlib.import_module(f"tfpvae.{name}")))
        lines += [f"   * - :py:mod:`tfpvae.{name}`", f"     - {text}"]
    lines += ["", ".. toctree::", "   :hidden:", ""]
    return "\n".join([*lines, *(f"   tfpvae.{name}" for name in modules()), ""])


def markup(text: str, module: str = "") -> str:
    """A line of a docstring, whose backticks mean code, as reStructuredText.

    Code that is the name of something public links to it.
    """

    def code(found: Any) -> str:
        words = re.sub(r"\s+", " ", found[1])
        bare = words.removesuffix("()")
        for name in (bare, f"tfpvae.{bare}", f"{module}.{bare}"):
            if name in KNOWN:
                return f":py:obj:`{words} <{KNOWN[name]}>`"
        return f"``{words}``"

    # Code in double backticks stays, other code becomes links, and in text nothing is markup.
    parts = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.DOTALL)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            parts[index] = re.sub(r"(\*|\||_\b)", r"\\\1", part)
        elif not part.startswith("``"):
            parts[index] = re.sub(r"`([^`]+)`", code, part)
    return "".join(parts)


def docstring(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring, in place, from our way of writing into what napoleon reads."""
    module = ".".join(name.split(".")[:2])
    made: list[str] = []
    for part in re.split(r"^( *\$\$.*?\$\$\S*)", "\n".join(lines), flags=re.DOTALL | re.MULTILINE):
        equation = re.fullmatch(r"( *)\$\$(.*?)\$\$(\S*)", part, re.DOTALL)
        if equation:
            space, latex, rest = equation.groups()
            latex = re.sub(r"\s+", " ", latex).strip() + (rf"\text{{{rest}}}" if rest else "")
            made += ["", f"{space}.. math:: {latex}", ""]
        else:
            made += _text(part, module)
    lines[:] = made


def _text(text: str, module: str) -> list[str]:
    # Examples are code as they are.
    parts = re.split(r"^( *>>>.*?)(?=\n\s*\n|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    for index in range(0, len(parts), 2):
        part = markup(parts[index], module)
        part = re.sub(r"(^\\\|.*\n?)+", _table, part, flags=re.MULTILINE)
        part = re.sub(r"^( *)(Shapes?|Sources?|Units?): ", r"\1**\2:** ", part, flags=re.MULTILINE)
        parts[index] = part
    return "".join(parts).split("\n")


def _table(found: Any) -> str:
    """A table of Markdown as one of reStructuredText."""
    head, _, *rows = (line.split(r"\|")[1:-1] for line in found[0].strip().split("\n"))
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        for index, cell in enumerate(row):
            lines.append(f"   {' ' if index else '*'} - {cell.strip()}")
    return "\n".join([*lines, "", ""])


def bases(app: Any, name: str, value: Any, options: Any, found: list[Any]) -> None:
    """Name the bases as a user does, and none that are private."""
    for index, base in enumerate(found):
        if base.__module__.startswith("tf_keras"):
            kinds = [kind for kind in ("Model", "Layer", "Callback") if kind in _kinds(base)]
            found[index] = f"``keras.{kinds[0]}``" if kinds else object
        elif base.__module__.startswith("tensorflow_probability"):
            found[index] = f"``tfp.{base.__module__.split('.')[2]}.{base.__name__}``"
        elif base.__name__.startswith("_"):
            found[index] = next(kind for kind in base.__mro__ if not kind.__name__.startswith("_"))


def _kinds(base: Any) -> list[str]:
    return [kind.__name__ for kind in base.__mro__]


def skip(app: Any, what: str, name: str, value: Any, is_skipped: bool, options: Any) -> bool | None:
    """Leave out what others define, as the methods that scikit-learn and TFP put into a class."""
    function = inspect.unwrap(value) if inspect.isfunction(value) else value
    module = getattr(function, "__module__", None)
    of_others = inspect.isroutine(function) and not (module or "").startswith("tfpvae")
    of_tuple = (inspect.getdoc(value) or "").startswith("Alias for field number")
    return True if of_others or of_tuple else None


def check(app: Any, env: Any) -> None:
    """Warn, and so fail, if something public has no place in the pages."""
    from sphinx.util import logging  # Here, so that tests need no Sphinx.

    documented = env.domaindata["py"]["objects"]
    for name in (*names(), *(f"tfpvae.{name}" for name in modules()), *shortcuts().values()):
        if name not in documented:
            logging.getLogger(__name__).warning("%s is public, and on no page of the API", name)


KNOWN: dict[str, str] = {}


def begin(app: Any) -> None:
    """Write the pages before Sphinx looks for pages."""
    KNOWN.update({name: name for name in (*names(), *(f"tfpvae.{name}" for name in modules()))})
    KNOWN.update({f"tfpvae.{name}": target for name, target in shortcuts().items()})
    for name, value in names().items():
        for key, member in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(member) and not key.startswith("_") and member.__doc__:
                KNOWN[f"{name}.{key}"] = f"{name}.{key}"
    write(pathlib.Path(app.srcdir) / "api")


def setup(app: Any) -> dict[str, Any]:
    """Connect it."""
    app.connect("builder-inited", begin)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-bases", bases)
    app.connect("autodoc-skip-member", skip)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
