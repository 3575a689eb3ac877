"""Environment variables that a program sets before it imports the libraries that read them."""

import os
from pathlib import Path


def set_environment(program: str) -> None:
    """Keeps compiled programs in the user's cache, and transformers quiet, unless the user has said otherwise.

    Args:
        program: Names the folder in the cache.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(root) / program / "xla"))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
