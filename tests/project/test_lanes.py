"""`make test-fast` leaves out what is marked, and keeps something of every folder of tests."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARKED = re.compile(r"^pytestmark = .*pytest\.mark\.", re.MULTILINE)


def test_the_fast_lane_leaves_out_every_marker_and_there_are_no_others():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    registered = {line.partition(":")[0] for line in options["markers"]}
    plan = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), "test-fast"]
    lane = subprocess.run(plan, capture_output=True, text=True, check=True).stdout
    [left_out] = re.findall(r"pytest .*-m 'not \((.*)\)'", lane)
    assert set(left_out.split(" or ")) == registered == {"slow", "gpu", "hosts", "browser"}
    with pytest.raises(pytest.fail.Exception, match="'slwo' not found"):
        pytest.mark.slwo  # noqa: B018


def test_every_folder_has_tests_in_the_fast_lane():
    found = {path: MARKED.search(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")}
    assert {path.parent for path in found} == {path.parent for path, marked in found.items() if not marked}
