"""Paths that a run reads, by the keys that name them."""

from pathlib import Path

from altojax.config.tune_config import TuneConfig
from jaxrun.process.errors import UserError


def reads_of(config: TuneConfig) -> dict[str, str]:
    """Returns the paths that a run reads, by the keys that name them; what may be a hub id is not among them.

    Raises:
        UserError: A path lies in a folder that this user may not enter.
    """
    return {key: path for key, path in config.reads.items() if _is_there(key, path)}


def _is_there(key: str, path: str) -> bool:
    try:
        return Path(path).exists() or path.startswith(("~", "/"))
    except PermissionError as error:
        expected = "a path that may be read by the user as whom the task runs"
        raise UserError(f"{key}: {path} cannot be entered, expected {expected}") from error
