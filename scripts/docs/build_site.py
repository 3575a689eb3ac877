"""Builds the site of docs/ with Sphinx, in which every warning is an error. Needs no network, nor does the site.

    python scripts/docs/build_site.py [FOLDER]

FOLDER (build/site) gets the site: the pages of docs/, the README and its neighbours, linked among themselves, and one
of what the packages export.
"""

from jaxrun.process.script import run_script

import importlib
import inspect
import posixpath
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from sphinx.cmd.build import build_main

from jaxrun.config.script_options import ScriptOptions
from jaxrun.files.atomic import write_atomic
from jaxrun.process.environment import set_environment
from jaxrun.process.errors import UserError

ROOT = Path(__file__).parents[2]
BESIDE = {"README.md": "quick-start.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that lie beside docs/ -> their names in the site."""
LIBRARIES = ("altojax", "twistjax", "pallas_kernels")
NAVIGATION = {
    "Begin": ("Quick start <quick-start>", "first-sweep", "python", "coming-from"),
    "altojax": (
        "how-to/tune",
        "how-to/data",
        "how-to/preference",
        "how-to/start-from-an-adapter",
        "how-to/metrics",
        "how-to/early-exit",
        "how-to/evaluate-and-export",
        "how-to/many-devices",
        "how-to/quantized-base",
        "how-to/judge-results",
        "how-to/queue",
        "how-to/security",
    ),
    "twistjax": ("Make a model smaller <twistjax>",),
    "Look up": ("reference/models", "reference/altojax-keys", "reference/twistjax-keys", "reference/api"),
    "Measured": (
        "measured/alto",
        "measured/averages",
        "measured/curves-data",
        "measured/seeds",
        "figures/alto-pieces",
        "measured/capacity",
        "figures/capacity-tables",
        "measured/log",
    ),
    "Extend": ("extend/*",),
    "Develop": ("architecture", "contributing", "changelog"),
}
"""Headings of the sidebar -> pages; one that is in docs/ and not here is an error of Sphinx."""
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def build(folder: Path) -> int:
    """Builds the site; returns Sphinx's exit code.

    Args:
        folder: Where the site comes to lie; an earlier one is replaced.

    Raises:
        UserError: The folder holds something else.
    """
    if folder.exists() and not (folder / ".buildinfo").is_file():
        raise UserError(f"{folder}: is no site, expected a new folder, or an earlier site to replace")
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as pages:
        write_pages(Path(pages))
        return build_main(["-q", "-W", "--keep-going", "-c", str(Path(__file__).parent), pages, str(folder)])


def write_pages(pages: Path) -> None:
    """Writes what Sphinx reads into an empty folder."""
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns("*.gz"), dirs_exist_ok=True)
    for path in sorted((ROOT / "docs").rglob("*.md")):
        name = str(path.relative_to(ROOT / "docs"))
        write_atomic(pages / name, relinked(path.read_text(encoding="utf-8"), f"docs/{name}", name))
    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        name = str(path.relative_to(ROOT / "docs"))
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = relinked(cell.source, f"docs/{name}", name)
        write_atomic(pages / name, nbformat.writes(notebook))
    for source, name in BESIDE.items():
        write_atomic(pages / name, relinked((ROOT / source).read_text(encoding="utf-8"), source, name))
    write_atomic(pages / "reference" / "api.rst", "\n".join(exports()))
    with (pages / "index.md").open("a", encoding="utf-8") as index:
        index.write("\n".join(sidebar(pages)))


def relinked(text: str, source: str, name: str) -> str:
    """Returns a page with the links that it has in the site; what is not in the site is named, and not linked.

    Args:
        text: The page, in Markdown.
        source: Where it lies in the repository.
        name: Where it lies in the site.
    """

    def in_site(link: re.Match[str]) -> str:
        if "://" in link["path"]:
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        target = BESIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if target and not target.endswith(".gz"):
            return f"[{link['text']}]({posixpath.relpath(target, posixpath.dirname(name))}{link['anchor'] or ''})"
        return link["text"] if path in link["text"] else f"{link['text']} (`{path}`)"

    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(in_site, part) for part in parts)


def exports() -> Iterator[str]:
    """Yields the lines of a page of what the packages export, in reStructuredText."""
    title, shown = "Python API", dict[int, str]()
    yield from (title, "=" * len(title), "")
    for library in map(importlib.import_module, LIBRARIES):
        module = library.__name__
        yield from (
            module,
            "-" * len(module),
            "",
            inspect.getdoc(library) or "",
            "",
            f".. py:currentmodule:: {module}",
            "",
        )
        exported = {name: getattr(library, name) for name in library.__all__ if not name.startswith("__")}
        for name, kind in sorted(exported.items(), key=lambda one: inspect.isclass(one[1])):
            yield from _described(name, kind, shown.setdefault(id(kind), f"{module}.{name}"), module)


def _described(name: str, kind: Any, first: str, module: str) -> Iterator[str]:
    """Yields the lines about a class with its members, a function, a value, or what was described before as `first`."""
    if first != f"{module}.{name}":
        yield from (f".. py:data:: {name}", "", f"   The same as `{first}`.")
    elif inspect.isclass(kind):
        fields = getattr(kind, "_fields", ())  # of a named tuple, which documents them as numbers
        yield from (f".. autoclass:: {name}", "   :members:", f"   :exclude-members: {', '.join(fields)}")
    elif callable(kind):
        yield f".. autofunction:: {name}"
    else:
        yield from (f".. py:data:: {name}", f"   :value: {kind!r}")
    yield ""


def sidebar(pages: Path) -> Iterator[str]:
    """Yields the lines that put all pages into the sidebar."""
    for caption, names in NAVIGATION.items():
        yield from ("", "```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "")
        for name in names:
            path = re.sub(r".*<|>", "", name)
            if any(pages.glob(f"{path}.*")) or any(pages.glob(path)):
                yield name
        yield "```"


def main() -> int:
    """Builds the site where the command line says."""
    set_environment("altojax")
    parser = ScriptOptions(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "site")
    return build(parser.read().folder)


if __name__ == "__main__":
    sys.exit(run_script(main))
