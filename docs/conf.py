"""How Sphinx makes the site: `make docs`."""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import tfpvae  # noqa: E402, found by the line above

project = "tfpvae"
author = "the tfpvae authors"
project_copyright = "the tfpvae authors"
version = release = tfpvae.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "api",
    "equations",
    "gallery",
]
exclude_patterns = ["_build", "_ext", "_static"]

smartquotes = False  # Options start with two hyphens.

html_theme = "furo"
html_title = f"tfpvae {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

highlight_language = "none"  # Indented blocks show what a program printed.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

nitpicky = True
# The documentation of others is not at hand where the network is not: only our own names are held.
nitpick_ignore_regex = [(r"py:.*", r"(?!tfpvae\b).*")]

nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["gallery/*"]  # Those are run already.
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"  # TensorFlow logs there.
