"""Environment variables that a program sets before it imports the libraries that read them."""

import os
import stat
from pathlib import Path

CACHE, CACHE_SIZE = "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"
CACHE_LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
KEPT_BYTES = 2 * 2**30
"""Most bytes of compiled programs that are kept; those that were not used for longest go first."""
KEPT_S = 0.1
"""Seconds of compiling from which a program is kept: a start has two dozen small ones beside its steps."""


def set_environment(program: str) -> None:
    """Keeps compiled programs in the user's cache, and transformers quiet, unless the user has said otherwise.

    Args:
        program: Names the folder in the cache.
    """
    if CACHE not in os.environ and (folder := own_cache(program)) is not None:
        os.environ[CACHE] = str(folder)
        os.environ.setdefault(CACHE_SIZE, str(KEPT_BYTES))
        os.environ.setdefault(CACHE_LEAST, str(KEPT_S))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def own_cache(program: str) -> Path | None:
    """Returns a folder for compiled programs that is the user's own; it is made, and closed to others.

    Programs are run as they lie there, so a folder that somebody else owns, or may exchange, is not taken.

    Args:
        program: Names it.

    Returns:
        The folder, or None where there can be none.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME", ""))
        root = root if root.is_absolute() else Path.home() / ".cache"
        folder = root / program / "xla"
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not all(is_own(one) for one in (folder.parent, folder)):
            return None
        folder.chmod(0o700)
    except (OSError, RuntimeError):  # a home that is read-only, or not known
        return None
    return folder


def is_own(folder: Path) -> bool:
    """Whether nobody but this process's user writes a folder."""
    status = folder.lstat()
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not others
