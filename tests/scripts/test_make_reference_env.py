"""The reference environment is made once, again when its contents change, and never half."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands in for Python: makes an "environment" that holds itself, and notes what it is asked to install.
FAKE = """#!/bin/bash
case "$1" in
  --version) echo "Python 3.11.0" ;;
  -c) exit 0 ;;
  -m)
    if [[ $2 == venv ]]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit; fi
    [[ -e refuse ]] && exit 1
    echo "$@" >>installed
    ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "scripts" / "setup").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup" / "make_reference_env.sh", tmp_path / "scripts" / "setup")
    fake = tmp_path / "fake-python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    return tmp_path


def make(checkout, python=None):
    command = ["bash", "-c", f"PYTHON={python or checkout / 'fake-python'} scripts/setup/make_reference_env.sh"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


def installs(checkout):
    return (checkout / "installed").read_text().splitlines() if (checkout / "installed").exists() else []


def test_it_installs_once_and_again_only_after_a_change(checkout):
    first = make(checkout)
    assert first.returncode == 0, first.stderr
    assert len(installs(checkout)) == 1
    assert all(name in installs(checkout)[0] for name in ("torch==", "transformers==", "peft==", "gguf"))
    assert "up to date" in make(checkout).stdout
    assert len(installs(checkout)) == 1
    script = checkout / "scripts" / "setup" / "make_reference_env.sh"
    script.write_text(script.read_text().replace("peft==0.21.2", "peft==0.21.3"))
    make(checkout)
    assert "peft==0.21.3" in installs(checkout)[1]


def test_a_failed_install_is_tried_again(checkout):
    (checkout / "refuse").touch()
    assert make(checkout).returncode == 1
    (checkout / "refuse").unlink()
    assert make(checkout).returncode == 0
    assert len(installs(checkout)) == 1


def test_no_python_is_one_line(checkout):
    done = make(checkout, python="/nowhere/python")
    assert done.returncode == 2
    assert "no Python >= 3.10 with venv found (tried /nowhere/python" in done.stderr
