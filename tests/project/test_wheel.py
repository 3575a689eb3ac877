"""`pip install` puts the whole of both programs on a machine, which work from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("altojax", "jaxlm", "jaxrun", "pallas_kernels", "twistjax")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the files that git has."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if name.startswith(tuple(f"{package}/" for package in PACKAGES)) or name in (
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder / "dist"), "."]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if "setuptools" in made.stderr and "No matching distribution" in made.stderr:
        pytest.skip("setuptools, which builds wheels, cannot be fetched")
    assert made.returncode == 0, made.stderr
    [path] = (folder / "dist").glob("*.whl")
    return path


def test_it_holds_every_file_of_the_packages(wheel):
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in tracked.stdout.splitlines() if name not in names and (ROOT / name).is_file()]
    assert any(name.endswith(".css") for name in names) and any(name.endswith(".jinja") for name in names)


def test_its_programs_work_from_another_folder(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    version = wheel.name.split("-")[1]
    entries = (next(site.glob("*.dist-info")) / "entry_points.txt").read_text()
    for program in ("altojax", "twistjax"):
        assert f"{program} = {program}.__main__:main" in entries
        for words, said in ((["--version"], f"{program} {version}\n"), (["--help"], f"usage: {program} VERB")):
            script = (
                f"import sys; from {program}.__main__ import main; assert {str(site)!r} in main.__code__.co_filename; "
            )
            command = [sys.executable, "-c", script + "sys.exit(main())", *words]
            environment = {**os.environ, "PYTHONPATH": str(site)}
            made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert made.stdout.startswith(said), made.stderr


def test_its_pages_find_their_templates(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    templates = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".html.j2")]
    assert {name.partition("/")[0] for name in templates} == {"altojax", "jaxrun", "twistjax"}
    script = (
        "import sys; from pathlib import PurePath; from jaxrun.plots import pages\n"
        "assert sys.argv[1] in str(pages.STYLE)\n"
        "for path in map(PurePath, sys.argv[2:]):\n"
        "    pages.environment('.'.join(path.parts[:-2])).get_template(path.name)\n"
    )
    command = [sys.executable, "-c", script, str(site), *templates]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, check=True)
