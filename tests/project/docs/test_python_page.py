"""What docs/python.md and docs/first-sweep.ipynb show from Python works as it stands there."""

import importlib
import re
import shutil
import socket
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
NOTEBOOK = ROOT / "docs" / "first-sweep.ipynb"
LIBRARIES = ("altojax", "pallas_kernels", "twistjax")


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder that has what the examples read."""
    shutil.copytree(ROOT / "configs" / "tiny", tmp_path / "configs" / "tiny")
    monkeypatch.chdir(tmp_path)
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
def test_the_notebook_runs_from_its_folder(checkout, monkeypatch):
    (checkout / "docs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(checkout / "docs")}}).execute()
    shown = nbformat.read(NOTEBOOK, as_version=4)
    assert [kinds_of(cell) for cell in notebook.cells] == [kinds_of(cell) for cell in shown.cells], "as it is shown"


def kinds_of(cell: nbformat.NotebookNode) -> set[str]:
    """What a cell's outputs are: text, a table, a picture."""
    return {kind for output in cell.get("outputs", ()) for kind in output.get("data", {output["output_type"]: ""})}


def test_the_notebook_is_shown_with_its_outputs_and_names_no_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = set.union(*map(kinds_of, code))
    assert {"image/png", "text/html", "stream"} <= kinds and "error" not in kinds
    text = re.sub(r'"image/png": ".*"', "", NOTEBOOK.read_text(encoding="utf-8"))
    names = (str(ROOT), str(Path.home()), str(Path(sys.prefix)), socket.gethostname(), "/tmp/", "/home/", "/root/")
    assert not [name for name in names if len(name) > 3 and name in text]
