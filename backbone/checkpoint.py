"""Trees of arrays on disk, through Orbax: a folder is there whole or not at all."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from harness.errors import UserError
from harness.files import replace_folder

logging.getLogger("absl").setLevel(logging.ERROR)


def save_tree(folder: str | Path, tree: Any) -> None:
    """Writes a tree of dicts and arrays into a new folder, fsynced and renamed into place.

    Args:
        folder: Where; what is there is replaced as a whole.
        tree: Nested dicts of numpy or JAX arrays.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    with replace_folder(folder) as temporary:
        try:
            ocp.save(temporary / "tree", tree)
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror or error}, expected room and permission to write") from error
        except ValueError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "No space" not in str(error):
                raise
            raise UserError(f"{folder}: no space left on the device, expected room for a checkpoint") from error


def load_tree(folder: str | Path, like: Any) -> Any:
    """Reads what `save_tree` wrote.

    Args:
        folder: Where.
        like: A tree of arrays of the same structure, shapes and dtypes.

    Returns:
        The tree, as numpy arrays.

    Raises:
        UserError: The folder holds no checkpoint, a damaged one, or one of another structure.
    """
    try:
        tree = ocp.load(Path(folder).absolute() / "tree", like)
    except Exception as error:  # Orbax and TensorStore raise a dozen unrelated types
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: not a readable checkpoint ({type(error).__name__}: {reason})") from error
    return jax.tree.map(np.asarray, tree)
