"""Files, modules and links that docs, docstrings and scripts name exist: a move leaves no old name behind."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = frozenset(
    subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
)
FOLDERS = frozenset(str(folder) for file in FILES for folder in Path(file).parents)
PACKAGES = "altojax|jaxlm|jaxrun|pallas_kernels|twistjax"
PATHS = re.compile(rf"(?<![\w./-])(?:{PACKAGES}|configs|docs|scripts|tests)/[\w./-]+\w")
MODULES = re.compile(rf"(?<![\w./-])(?:{PACKAGES})(?!\.md\b)(?:\.[a-z_][a-z0-9_]*)+")
PROSE = (".md", ".py", ".sbatch", ".sh", ".toml", ".yaml", "Dockerfile", "Makefile")


def written() -> list[tuple[str, str]]:
    """Returns (file, text) of what names places: all but tests, which also name what they make."""
    chosen = sorted(file for file in FILES if file.endswith(PROSE) and not file.startswith("tests/"))
    return [(file, (ROOT / file).read_text(encoding="utf-8")) for file in chosen if (ROOT / file).is_file()]


def is_module(name: str) -> bool:
    """Whether a dotted name is a module, or a word of one: ``altojax.run.tuner``, ``altojax.run.tuner.run``."""
    path = name.replace(".", "/")
    if path in FOLDERS or f"{path}.py" in FILES:
        return True
    parent, _, word = path.rpartition("/")
    sources = [file for file in (f"{parent}.py", f"{parent}/__init__.py") if file in FILES]
    known = word.startswith("__") or any(re.search(rf"\b{word}\b", (ROOT / file).read_text()) for file in sources)
    return bool(sources) and known


def missing_of(text: str) -> list[str]:
    """Returns the paths and modules of this project that a text names and that do not exist."""
    paths = [path for path in PATHS.findall(text) if not {path, f"{path}.py"} & FILES and path not in FOLDERS]
    return paths + [name for name in MODULES.findall(text) if not is_module(name)]


def test_every_path_and_module_that_is_named_exists():
    assert not [(file, name) for file, text in written() for name in missing_of(text)]


@pytest.mark.parametrize(
    "name", ["altojax/tuner.py", "jaxlm.tokenizer", "altojax.run.tuner.no_such_word", "tests/none"]
)
def test_a_name_of_before_a_move_is_found(name):
    assert missing_of(f"See {name}; altojax/run/tuner.py, altojax.run.tuner and jaxrun.plots.__file__.") == [name]


def test_links_between_documents_lead_somewhere():
    lost = []
    for file, text in written():
        for link in re.findall(r"\]\(([^)\s]+)\)", text) if file.endswith(".md") else ():
            path, _, heading = link.partition("#")
            goal = (ROOT / file).parent / path if path else ROOT / file
            if "://" in link or (goal.exists() and not heading):
                continue
            titles = re.findall(r"^#+ (.*)$", goal.read_text(encoding="utf-8"), re.MULTILINE) if goal.exists() else []
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            lost += [] if heading in anchors else [(file, link)]
    assert not lost
