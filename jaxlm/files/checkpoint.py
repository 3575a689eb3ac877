"""Trees of arrays on disk, through orbax."""

import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax import checkpoint as orbax
from orbax.checkpoint import v1 as ocp

from jaxrun.files.atomic import fsync_folder, fsync_tree, user_errors
from jaxrun.process.errors import UserError


def save_tree(folder: str | Path, tree: Any) -> None:
    """Writes a tree; when this returns it survives a power cut, and before that `folder` is absent or as it was.

    In a process group the caller alone writes, and its arrays must be on its own devices.

    Args:
        folder: Where to; a folder of an earlier attempt is replaced. Its parents are made.
        tree: Nested dicts and lists of JAX or NumPy arrays, none of them empty.

    Raises:
        UserError: Full disk, no permission.
        ValueError: An array has no elements.
    """
    folder = Path(folder).absolute()
    arrays = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), tree)
    empty = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(arrays) if not leaf.size]
    if empty:
        raise ValueError(f"{empty[0]} has no elements, which cannot be stored")
    with user_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _ask_for_room(folder.parent, sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
        if jax.process_count() == 1:
            with _uncompressed():
                ocp.save(folder, arrays, overwrite=True)
        else:
            _save_alone(folder, arrays)
        fsync_tree(folder)
        fsync_folder(folder.parent)


def load_tree(folder: str | Path, like: Any) -> Any:
    """Reads a tree that `save_tree` wrote.

    Args:
        folder: Where from.
        like: A tree of the same structure, shapes and dtypes. NumPy leaves come back as NumPy; JAX arrays and
            `jax.ShapeDtypeStruct` come back as JAX arrays with that leaf's sharding, else on the default device.

    Raises:
        UserError: Nothing complete is stored there, or it has another structure or other shapes.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a checkpoint")
    abstract = jax.tree.map(_abstract, like)
    try:
        loaded = ocp.load(folder, abstract) if jax.process_count() == 1 else _load_alone(folder, abstract)
    except Exception as error:  # orbax and its storage raise whatever the damage makes of them
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{folder}: cannot be restored ({reason}), expected an undamaged checkpoint") from error
    for (path, want), got in zip(jax.tree.leaves_with_path(abstract), jax.tree.leaves(loaded), strict=True):
        if (want.shape, want.dtype) != (got.shape, got.dtype):
            name = jax.tree_util.keystr(path)
            raise UserError(f"{folder}: {name} is {got.dtype}{got.shape}, expected {want.dtype}{want.shape}")
    return loaded


def _uncompressed() -> ocp.Context:
    """Weights and moments have few bits to spare: compressing them takes most of the time and saves a twelfth."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    return context


def _save_alone(folder: Path, arrays: Any) -> None:
    """Writes a tree without the other processes of the group, which `ocp.save` would wait for."""
    process = jax.process_index()
    alone = orbax.options.MultiprocessingOptions(primary_host=process, active_processes={process})
    handler = orbax.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    with orbax.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(folder, jax.tree.map(np.asarray, arrays), force=True)


def _load_alone(folder: Path, abstract: Any) -> Any:
    """Reads a tree without the other processes of the group; storage knows no arrays of one process among several."""
    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    with context:
        loaded = ocp.load(folder, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract))
    return jax.tree.map(
        lambda got, want: got if isinstance(want, np.ndarray) else jax.device_put(got, want.sharding), loaded, abstract
    )


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return np.empty(np.shape(leaf), np.asarray(leaf).dtype)


def _ask_for_room(folder: Path, content: int) -> None:
    """Reserves the space of a tree of `content` bytes, and more, for a moment.

    Where storage itself runs out of room, each of its threads prints a traceback of its own.

    Raises:
        OSError: There is no such room.
    """
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, content + content // 8 + 2**16)
