"""Every script opens with its command, and takes its options in the one way."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [path for path in sorted((ROOT / "scripts").rglob("*.py")) if "\nif __name__ ==" in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_opens_with_its_command(path):
    about = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert re.search(rf"^ +.*python {path.relative_to(ROOT)}\b", about, re.MULTILINE)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_reads_no_options_of_its_own(path):
    named = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert "ArgumentParser" not in named


@pytest.mark.parametrize("where", ["as it begins", "as it runs"])
def test_a_library_that_is_missing_is_one_line(tmp_path, where):
    path, missing = tmp_path / "mine.py", "import a_library_that_is_missing.part"
    begin, run = (missing, "pass") if where == "as it begins" else ("", missing)
    path.write_text(
        f"""from jaxrun.process.script import run_script
{begin}
def main():
    {run}
if __name__ == "__main__":
    raise SystemExit(run_script(main))
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("mine: error: a_library_that_is_missing is not installed, expected it")


def test_the_folder_of_scripts_reads_like_a_table_of_contents():
    for folder in {ROOT / "scripts", *(path.parent for path in SCRIPTS)}:
        entries = {path.name for path in folder.iterdir()} - {"__pycache__"}
        assert len(entries) <= 15, f"{folder}: {sorted(entries)}"
