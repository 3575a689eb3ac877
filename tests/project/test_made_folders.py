"""Folders that the programs make in this one change nothing for style, types and tests."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from altojax.config.tune_config import TuneConfig
from jaxrun.config.config import load_config
from twistjax.config import TwistConfig

ROOT = Path(__file__).parents[2]
FOLDERS = ("altojax", "jaxlm", "jaxrun", "pallas_kernels", "twistjax", "scripts", "tests")
HELPERS = sorted({path.stem for path in (ROOT / "tests").rglob("*.py") if not path.stem.startswith(("test_", "_"))})
MADE = [line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines() if re.fullmatch(r"/?\w+/", line)]
MADE.remove("__pycache__")


def ruff(folder: Path) -> tuple[str, str]:
    said = []
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
        said.append(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout)
    return said[0], said[1]


@pytest.fixture
def tree(tmp_path):
    """The project's own Python, without what was made beside it, and not in git."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_folders_that_are_made_and_folders_named_as_a_helper_of_tests_change_no_style(tree):
    assert {"runs", "models", "data", "build", "dist"} <= set(MADE) and {"runs", "tiny", "adapters"} <= set(HELPERS)
    before = ruff(tree)
    assert "All checks passed" in before[0] and "already formatted" in before[1]
    for name in MADE:
        (tree / name / "inner").mkdir(parents=True)
        for folder in (tree / name, tree / name / "inner"):  # such as a ticket's modelling file
            (folder / "modeling_ticket.py").write_text("import os,sys\n")
    for name in set(HELPERS) - set(MADE):
        (tree / name).mkdir(exist_ok=True)
        (tree / name / "config.yaml").write_text("seed: 1\n")
    assert ruff(tree) == before


def test_a_folder_of_the_project_that_has_the_name_of_one_that_is_made_is_still_checked(tree):
    (tree / "jaxlm" / "data" / "worse.py").write_text("import os,sys\n")
    checked, formatted = ruff(tree)
    assert checked.count("jaxlm/data/worse.py") and "jaxlm/data/worse.py" in formatted


def test_ci_makes_both_quick_starts_where_a_user_would_before_it_tests(tmp_path):
    """With a `make` that says what it was asked for."""
    (tmp_path / "make").write_text('#!/bin/bash\nprintf "%s\\n" "${*@Q}"\n')
    (tmp_path / "make").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, check=True)
    asked = {words[0]: words for words in map(shlex.split, done.stdout.splitlines())}
    assert {"tune", "twist", "check", "reference"} < set(asked) and list(asked)[-1] == "test"
    for words, program, kind, path in (
        (asked["tune"], "altojax tune", TuneConfig, "configs/quickstart.yaml"),
        (asked["twist"], "twistjax train", TwistConfig, "configs/twistjax/quickstart.yaml"),
    ):
        plan = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), *words]
        lines = subprocess.run(plan, capture_output=True, text=True, check=True).stdout.splitlines()
        [command] = [shlex.split(line) for line in lines if f"{program} " in line]
        assert command[2] == path
        short, real = load_config(kind, ROOT / path, command[3:]), load_config(kind, ROOT / path, [])
        assert short.output_dir == real.output_dir and short != real
