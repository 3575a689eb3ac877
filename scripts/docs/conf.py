"""Configuration of Sphinx; build_site.py makes the pages that it reads."""

import importlib.metadata
from typing import Any

from sphinx.application import Sphinx

project = "altojax and twistjax"
author = "the authors of altojax"
release = importlib.metadata.version("altojax")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = project
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["wide_tables.css"]

# Headings are linked as GitHub does; a notebook is shown with the outputs that it has.
myst_heading_anchors = 4
nb_execution_mode = "off"

# Docstrings are Google's style, with names between single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
python_maximum_signature_line_length = 80


def setup(app: Sphinx) -> None:
    """Writes the default of a dataclass's field that a function makes so that it can be parsed."""
    app.connect("autodoc-process-signature", _parsable)


def _parsable(
    app: Sphinx, what: str, name: str, kind: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    return None if signature is None else (signature.replace("<factory>", "..."), returns)
