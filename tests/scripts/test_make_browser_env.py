"""The browser is taken where there is one, installed where that is allowed, and else missed in one line."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup" / "make_browser_env.sh"
APT_GET = """#!/bin/bash
echo "$@" >>{folder}/asked
[[ $1 == install && ! -e {folder}/refuse ]] && printf "" >{folder}/chromium && /bin/chmod +x {folder}/chromium
exit 0
"""


@pytest.fixture
def commands(tmp_path):
    """A folder that is all of PATH, and a way to put programs into it."""
    (tmp_path / "bash").symlink_to(shutil.which("bash"))

    def put(**programs):
        for name, text in programs.items():
            file = tmp_path / name.replace("_", "-")
            file.write_text(text.replace("{folder}", str(tmp_path)))
            file.chmod(0o755)
        return tmp_path

    return put


def make(folder):
    return subprocess.run(
        [folder / "bash", SCRIPT], env=os.environ | {"PATH": str(folder)}, capture_output=True, text=True, check=False
    )


def test_a_browser_that_is_there_is_taken(commands):
    folder = commands(chromium="#!/bin/bash\n", apt_get=APT_GET, id="#!/bin/bash\necho 0\n")
    done = make(folder)
    assert done.returncode == 0 and f"found {folder}/chromium" in done.stdout
    assert not (folder / "asked").exists()


def test_root_installs_one(commands):
    folder = commands(apt_get=APT_GET, id="#!/bin/bash\necho 0\n")
    done = make(folder)
    assert done.returncode == 0 and f"installed {folder}/chromium" in done.stdout
    assert [line.split()[0] for line in (folder / "asked").read_text().splitlines()] == ["update", "install"]


def test_an_install_that_brings_no_browser_fails(commands):
    folder = commands(apt_get=APT_GET, id="#!/bin/bash\necho 0\n", refuse="")
    assert make(folder).returncode != 0


def test_who_may_not_install_is_told_in_one_line(commands):
    folder = commands(apt_get=APT_GET, id="#!/bin/bash\necho 1000\n")
    done = make(folder)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no chromium on PATH, expected one" in done.stderr
    assert not (folder / "asked").exists()
