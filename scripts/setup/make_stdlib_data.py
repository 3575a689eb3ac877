"""Makes the quick starts' data out of the docstrings of Python's standard library.

    python scripts/setup/make_stdlib_data.py [FOLDER]

- summary: a short function without its docstring -> the docstring's first line (prompt, completion)
- naming:  the docstring's first line -> the function's name (prompt, completion)
- style:   the same, with that name and the other style of writing it, which is rejected (prompt, chosen, rejected)
- prose:   paragraphs of documentation (text)
- text:    all plain paragraphs of a docstring (text), for training on running text

FOLDER (data/quickstart) gets <task>.train.jsonl and <task>.validation.jsonl. Modules are dealt to one side or the other
whole, so nothing of a validation module is in training. The same Python version gives the same bytes.
"""

from jaxrun.process.script import run_script

import ast
import copy
import hashlib
import json
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

from jaxrun.config.script_options import ScriptOptions
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError

ROWS = {"summary": (400, 32), "naming": (400, 32), "style": (300, 32), "prose": (400, 32), "text": (2000, 200)}
"""Of each task, for training and for validation."""
CODE_LINES = 10
CODE_CHARACTERS, PARAGRAPH_CHARACTERS = (30, 170), (60, 240)
SUMMARY = re.compile(r"[A-Z][^`>|]{12,70}\.")
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "_bundled"}

Row = dict[str, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module


def main() -> int:
    """Writes all files and says what is in them."""
    root = Path(__file__).resolve().parents[2]
    parser = ScriptOptions(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=root / "data" / "quickstart")
    folder = parser.read().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, (train, validation) in make_tasks(Path(sysconfig.get_paths()["stdlib"])).items():
        for split, rows in (("train", train), ("validation", validation)):
            path = folder / f"{name}.{split}.jsonl"
            write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            print(f"{path}: {len(rows)} rows")
    return 0


def make_tasks(library: Path) -> dict[str, tuple[list[Row], list[Row]]]:
    """Returns the training and validation rows of each task.

    Args:
        library: Folder of Python sources.

    Raises:
        UserError: The folder holds too little documentation, as when docstrings were stripped from it.
    """
    found: dict[str, tuple[list[Row], list[Row]]] = {name: ([], []) for name in ROWS}
    for path in _sources(library):
        module = path.relative_to(library).parts[0].removesuffix(".py")
        side = int(_digest(module)[0] in "012")  # 3 of 16 modules validate
        for node in _definitions(_parse(path)):
            if isinstance(node, Function):
                for task, row in _function_rows(node):
                    found[task][side].append(row)
            found["prose"][side].extend({"text": paragraph} for paragraph in _paragraphs(node))
            if document := _document(node):
                found["text"][side].append({"text": document})
    tasks = {name: _choose(found[name], rows) for name, rows in ROWS.items()}
    for name, (train, validation) in tasks.items():
        if (len(train), len(validation)) != ROWS[name]:
            raise UserError(
                f"{library}: {len(train)} and {len(validation)} rows for {name}, expected {ROWS[name][0]} and "
                f"{ROWS[name][1]}; is this a complete standard library?"
            )
    return tasks


def _sources(library: Path) -> Iterator[Path]:
    for path in sorted(library.rglob("*.py")):
        if _SKIPPED.isdisjoint(path.relative_to(library).parts):
            yield path


def _parse(path: Path) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library's own invalid escapes
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _definitions(node: Documented) -> Iterator[Documented]:
    """Yields the module, its classes and functions, and the classes' own."""
    yield node
    for inner in node.body:
        if isinstance(inner, Function):
            yield inner
        elif isinstance(inner, ast.ClassDef):
            yield from _definitions(inner)


def _function_rows(node: Function) -> Iterator[tuple[str, Row]]:
    summary = (ast.get_docstring(node) or "").partition("\n")[0].strip()
    if not SUMMARY.fullmatch(summary) or not summary.isascii():
        return
    if len(node.name) > 2 and not node.name.startswith(("_", "test")) and node.name.islower():
        prompt = f"Name a Python function. {summary}"
        yield "naming", {"prompt": prompt, "completion": node.name}
        if "_" in node.name:
            mixed = re.sub(r"_+(.)", lambda found: found[1].upper(), node.name)
            yield "style", {"prompt": prompt, "chosen": node.name, "rejected": mixed}
    bare = copy.copy(node)
    bare.body, bare.decorator_list = node.body[1:], []
    short = bare.body and (node.end_lineno or 0) - bare.body[0].lineno < CODE_LINES
    code = ast.unparse(bare) if short else ""
    if CODE_CHARACTERS[0] <= len(code) <= CODE_CHARACTERS[1] and code.isascii():
        yield "summary", {"prompt": f"Describe this function in one line.\n{code}", "completion": summary}


def _document(node: Documented) -> str:
    """Returns the plain sentences of a docstring, a paragraph each."""
    return "\n\n".join(text for text in _plain(node) if _reads_well(text))


def _paragraphs(node: Documented) -> Iterator[str]:
    """Yields paragraphs of plain sentences, long ones cut between sentences."""
    for text in _plain(node):
        paragraph = ""
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", text):
            if len(paragraph) + len(sentence) + 1 > PARAGRAPH_CHARACTERS[1]:
                break
            paragraph = f"{paragraph} {sentence}".lstrip()
        if _reads_well(paragraph):
            yield paragraph


def _plain(node: Documented) -> Iterator[str]:
    """Yields a docstring's paragraphs without code, tables and lists, each on one line."""
    for block in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
        text = " ".join(textwrap.dedent(block).split())
        if text.isascii() and not re.search(r">>>|::|[|=<>{}_*]{2}|\s- ", text):
            yield text


def _reads_well(paragraph: str) -> bool:
    return len(paragraph) >= PARAGRAPH_CHARACTERS[0] and paragraph[0].isupper() and paragraph[-1] in ".!?"


def _choose(found: tuple[list[Row], list[Row]], most: tuple[int, int]) -> tuple[list[Row], list[Row]]:
    """Mixes rows in an order of their own, drops doubles (a validation row that training has, too), keeps a few."""
    seen: set[str] = set()
    chosen: list[list[Row]] = []
    for rows, count in zip(found, most, strict=True):
        kept = []
        for row in sorted(rows, key=lambda row: _digest(json.dumps(row))):
            keys = {text.lower() for text in row.values() if " " in text}
            if seen.isdisjoint(keys):
                seen |= keys
                kept.append(row)
        chosen.append(kept[:count])
    return chosen[0], chosen[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


if __name__ == "__main__":
    sys.exit(run_script(main))
