"""Kills whoever replaces a file and folders at every change that it makes, and checks what the next call finds.

Usage: folder_killer.py FOLDER. Runs apart from pytest because it forks. Prints what it did as JSON.
"""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts" / "stress"))
sys.path.insert(0, str(Path(__file__).parents[3]))

from kill_points import run_forked

from jaxrun.files import folders
from jaxrun.files.atomic import write_atomic
from jaxrun.files.exports import make_way, write_export


def export(out: Path, word: str) -> None:
    make_way(out, overwrite=True)
    with write_export(out, "test") as partial:
        (partial / "deep").mkdir()
        for name in ("a", "deep/b"):
            (partial / name).write_text(word)


def replace(out: Path, word: str) -> None:
    with folders.replace_folder(out) as partial:
        (partial / "a").write_text(word)


def write(out: Path, word: str) -> None:
    write_atomic(out, word)


def content(out: Path) -> set[str]:
    """What its files say."""
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return {path.read_text() for path in files if path.name != "export.json"}


def kill_at_every_change(folder: Path, make, *, whole: bool) -> int:
    """Returns how many kills there were.

    Args:
        folder: Where to.
        make: What is killed.
        whole: Whether `out` must be there at any moment.
    """
    out = folder / "out"
    for number in range(1, 1000):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(out, "old")
        ending = run_forked(lambda: make(out, "new"), folder, at=number)
        if not ending.killed:
            assert ending.code == 0 and content(out) == {"new"} and names(folder) == ["out"]
            return number - 1
        if whole:
            assert content(out) in ({"old"}, {"new"}), f"{make.__name__} at change {number}: {content(out)}"
        make(out, "newer")
        assert content(out) == {"newer"}, f"{make.__name__} at change {number}: {content(out)}"
        assert names(folder) == ["out"], f"{make.__name__} at change {number} left {names(folder)}"
    raise AssertionError("it never came to its end")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def main(folder: Path) -> None:
    kills = {make.__name__: kill_at_every_change(folder, make, whole=True) for make in (export, replace, write)}
    folders.exchange = lambda one, other: False
    for make in (export, replace):
        kills[f"{make.__name__} by two moves"] = kill_at_every_change(folder, make, whole=False)
    print(json.dumps(kills))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
