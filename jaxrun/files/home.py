"""Paths as people write them."""

from pathlib import Path

from jaxrun.process.errors import UserError


def from_home(path: str | Path) -> Path:
    """Returns a path with the home folder of a user in place of ``~`` or ``~user``.

    Raises:
        UserError: This host has no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no home folder is known for it, expected a path without '~'") from error
