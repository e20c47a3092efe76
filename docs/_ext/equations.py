"""Equations, drawn by a MathJax that is a part of the site; each is checked when the site is built.

docutils parses the LaTeX. What it cannot parse is a warning, and so fails the build.
"""

import importlib.util
import pathlib
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)

# What is right, and docutils does not know.
UNKNOWN = (
    (r"\\dots\b", r"\\ldots"),
    (r"\\[Bb]ig[lr]?(\\\||\|)", r"\\|"),
)


def check(app: Any, doctree: Any) -> None:
    """Warn of equations that do not parse."""
    for node in (*doctree.findall(nodes.math), *doctree.findall(nodes.math_block)):
        latex = node.astext()
        for pattern, known in UNKNOWN:
            latex = re.sub(pattern, known, latex)
        try:
            latex2mathml.tex2mathml(latex)
        except (SyntaxError, ValueError) as error:  # The first one before docutils 0.22.
            LOGGER.warning("equation %r: %s", node.astext(), error, location=node)


def setup(app: Any) -> dict[str, Any]:
    """Connect the check, and take MathJax from the package that has it."""
    script = "tex-svg.js"
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    assert package is not None
    assert package.origin is not None
    folder = pathlib.Path(package.origin).parent / "static" / "mathjax"
    app.config.html_static_path.append(str(folder / script))
    app.config.mathjax_path = script  # in _static
    app.connect("doctree-read", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
