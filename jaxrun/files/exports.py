"""Folders that are handed out: each holds a manifest of what was written, and only that is ever replaced."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxrun.files.atomic import user_errors
from jaxrun.files.folders import put_back, replace_folder
from jaxrun.files.foreign_files import read_json
from jaxrun.process.errors import UserError

MANIFEST = "export.json"
"""Names every file of an export, with its size."""


def make_way(out: Path, *, overwrite: bool) -> None:
    """Refuses to export to where something else is, before anything is computed for it; makes its parent.

    Args:
        out: The folder that is to be written.
        overwrite: Whether an earlier export may be replaced.

    Raises:
        UserError: Something is there, the path does not end in a name, or the parent cannot be made.
    """
    if out.name in ("", ".."):
        raise UserError(f"{out}: does not end in the name of a folder, expected a new folder")
    with user_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        put_back(out)
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UserError(f"{out}: exists, expected a new folder or overwrite=true")
    _refuse_foreign(out)


@contextlib.contextmanager
def write_export(out: Path, program: str) -> Iterator[Path]:
    """Yields an empty folder to write an export into; at success it takes the place of `out`, with a manifest.

    Args:
        out: Where to; what is there now must be an export, see `make_way`.
        program: Who writes it, such as ``altojax export``.

    Raises:
        UserError: Something that no export wrote has come to `out`, or it cannot be written.
    """
    with replace_folder(out) as partial:
        yield partial
        sizes = {name: path.stat().st_size for name, path in _files(partial).items() if name != MANIFEST}
        (partial / MANIFEST).write_text(json.dumps({"written_by": program, "files": sizes}, indent=2) + "\n")
        if os.path.lexists(out):
            _refuse_foreign(out)


def _refuse_foreign(out: Path) -> None:
    """Refuses a folder that holds what no export wrote, or that has been changed since."""
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"{out}: is no folder but a {'link' if out.is_symlink() else 'file'}, expected another place")
    written = _written(out)
    for name, path in _files(out).items():
        if name == MANIFEST:
            continue
        if name not in written:
            raise UserError(f"{out}: holds {name}, which no export wrote, and is not replaced, expected another folder")
        if path.is_symlink() or path.stat().st_size != written[name]:
            raise UserError(f"{out}: {name} was changed since, so {out.name} is not replaced, expected another folder")


def _written(out: Path) -> Mapping[str, int]:
    """Returns the sizes of the files that the manifest names; nothing where there is none that can be read."""
    with contextlib.suppress(UserError):
        files = read_json(out / MANIFEST).get("files")
        if isinstance(files, dict):
            return files
    return {}


def _files(folder: Path) -> dict[str, Path]:
    """Returns what lies in a folder and those in it, by relative name; an empty folder counts, too."""
    found = {}
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        empty = [] if folders or names or place == str(folder) else [""]
        for name in (*names, *links, *empty):
            path = Path(place) / name
            found[path.relative_to(folder).as_posix()] = path
    return found
