"""What docs/python.md and docs/first-sweep.ipynb show from Python works as it stands there."""

import ast
import asyncio
import importlib
import re
import shutil
import socket
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as pyplot
import nbformat
import pytest
from IPython.core.formatters import DisplayFormatter
from nbclient import NotebookClient

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
NOTEBOOK = ROOT / "docs" / "first-sweep.ipynb"
LIBRARIES = ("altojax", "pallas_kernels", "twistjax")


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder that has what the examples read; their runs draw no pictures, as other tests' do."""
    shutil.copytree(ROOT / "configs" / "tiny", tmp_path / "configs" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("few_shapes")
def test_every_snippet_of_the_page_runs_after_those_before_it(checkout, capsys):
    names: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks):
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="warning: .* is far worse than the full model", category=UserWarning
            )
            exec(compile(block, f"docs/python.md, snippet {number}", "exec"), names)
    said = capsys.readouterr().out
    assert len(blocks) == 8 and "overrides: sead: unknown key, given 1, expected one of" in said
    assert "(did you mean 'seed'?)" in said
    assert set(names["trials"]["status"]) <= {"completed", "stopped"}
    assert "gap" in names["altojax"].open_run("runs/watched").curves()
    assert (checkout / "models" / "half" / "config.json").is_file()
    assert names["y"].tolist() == [[16 + 0.5 * 48] * 4] * 4 + [[16 + 2.0 * 48] * 4] * 4


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_page_names_all_that_a_library_exports_and_nothing_else(library):
    module = importlib.import_module(library)
    [row] = re.findall(rf"^\| `{library}` \| (.*) \|$", PAGE, re.MULTILINE)
    assert sorted([*re.findall(r"`(\w+)`", row), "__version__"]) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__) and module.__version__.count(".") == 2
    with pytest.raises(AttributeError, match=f"module '{library}' has no attribute 'tuen'"):
        module.tuen  # noqa: B018


@pytest.mark.slow
@pytest.mark.usefixtures("few_shapes")
def test_the_notebook_runs_from_its_folder_and_shows_what_it_is_shown_with(checkout, monkeypatch, capsys):
    """In this process, with an event loop that runs already, as a notebook has."""
    (checkout / "docs").mkdir()
    monkeypatch.chdir(checkout / "docs")
    names: dict = {}

    async def run() -> list[set[str]]:
        return [shown_by(cell.source, names) | ({"stream"} if capsys.readouterr().out else set()) for cell in code()]

    assert asyncio.run(run()) == [kinds_of(cell) for cell in code()]


def code() -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def shown_by(source: str, names: dict) -> set[str]:
    """Runs a cell; returns the kinds of what a notebook shows: its last value, and a picture that was drawn."""
    module = ast.parse(source)
    last = module.body.pop() if isinstance(module.body[-1], ast.Expr) else None
    exec(compile(module, "docs/first-sweep.ipynb", "exec"), names)
    value = None if last is None else eval(compile(ast.Expression(last.value), "docs/first-sweep.ipynb", "eval"), names)
    kinds = set() if value is None or source.endswith(";") else set(DisplayFormatter().format(value)[0])
    if pyplot.get_fignums():
        pyplot.close("all")
        kinds |= {"image/png", "text/plain"}
    return kinds


@pytest.mark.slow
def test_in_a_kernel_a_run_shows_itself_in_plain_lines(checkout, monkeypatch):
    (checkout / "docs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    console = "from jaxrun.terminal.progress import console_of\nconsole_of(quiet=False).print('a line')"
    notebook.cells = [code()[0], nbformat.v4.new_code_cell(console)]
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(checkout / "docs")}}).execute()
    assert [cell.outputs for cell in notebook.cells] == [
        [],
        [{"output_type": "stream", "name": "stdout", "text": "a line\n"}],
    ]


def kinds_of(cell: nbformat.NotebookNode) -> set[str]:
    """What a cell's outputs are: text, a table, a picture."""
    return {kind for output in cell.get("outputs", ()) for kind in output.get("data", {output["output_type"]: ""})}


def test_the_notebook_is_shown_with_its_outputs_and_names_no_machine():
    assert [cell.execution_count for cell in code()] == list(range(1, len(code()) + 1))
    kinds = set.union(*map(kinds_of, code()))
    assert {"image/png", "text/html", "stream"} <= kinds and "error" not in kinds
    text = re.sub(r'"image/png": ".*"', "", NOTEBOOK.read_text(encoding="utf-8"))
    names = (str(ROOT), str(Path.home()), str(Path(sys.prefix)), socket.gethostname(), "/tmp/", "/home/", "/root/")
    assert not [name for name in names if len(name) > 3 and name in text]
