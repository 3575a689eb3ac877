"""Log-probabilities of preference pairs under the reference: one pass for all trials, kept in the run's folder.

The reference is the base without adapters, or with the adapter that trials start from. What was computed is kept by the
base's weights as they were loaded, its config and dtype, by that adapter, and by the digest of the rows, which are the
answers as the template wrote and the length cut them; a run that resumes reads the same bits, and one whose base was
changed where it lies computes them anew.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from altojax.device.executor import Executor
from altojax.run.prepare import PreparedBase
from altojax.run.tasks.rows import TaskData
from jaxlm.devices.hosts import Hosts
from jaxlm.models.computation import compute_dtype
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import StopAsked
from jaxrun.store.run_folder import folder_in

FOLDER = "reference"
"""In the run's folder; a file for each task."""
AdapterInSlot = tuple[Mapping[str, Mapping[str, np.ndarray]], float]
"""Arrays of an adapter, as `altojax.device.slots.Snapshot` has them, and the scale of B·A."""
_LOGPS, _KEY, _SHA256 = "logps", "key", "sha256"


def fill_references(
    run_dir: Path,
    base: PreparedBase,
    task: str,
    data: TaskData,
    executor: Executor,
    rows_at_once: int,
    hosts: Hosts,
    asked: StopAsked | None,
    start: AdapterInSlot | None = None,
) -> bool:
    """Fills in the references of a task's rows: reads them, or computes and keeps them.

    Args:
        run_dir: The run's folder.
        base: The task's base.
        task: Its name.
        data: Its rows.
        executor: With the base, and nothing in its slots yet.
        rows_at_once: Rows of an evaluation batch of a device.
        hosts: The processes of the run; all of them must call it.
        asked: Asks it to stop.
        start: The adapter that the task's trials start from, and its scale; None is the base alone.

    Returns:
        Whether they were computed; False where they were read, or no trial reads any.

    Raises:
        UserError: The file is damaged, or cannot be written.
        Stopped: It was asked to.
    """
    if data.references is None:
        return False
    key, known = _key_of(base, executor.base_digest(), data, start), None
    path = run_dir / FOLDER / f"{task}.safetensors"
    with hosts.together():
        if hosts.leads:
            known = _read(path, key, len(data.references.values))
    found = hosts.decide(known is not None)
    if found:
        data.references.values[:] = hosts.broadcast(known, data.references.values)
    else:
        data.references.values[:] = _computed(data, executor, rows_at_once, asked, start)
    with hosts.together():
        if hosts.leads and not found:
            folder_in(run_dir, FOLDER)
            values = data.references.values
            write_atomic(path, save({_LOGPS: values}, {_KEY: key, _SHA256: _sha256(values)}))
    return not found


def _computed(
    data: TaskData, executor: Executor, rows_at_once: int, asked: StopAsked | None, start: AdapterInSlot | None
) -> Float32[np.ndarray, " rows"]:
    """Evaluates all rows under the reference, each device group a part of them."""
    rows, group, groups = data.rows, executor.plan.objective.group, executor.sharding.groups
    pairs = len(rows) // group
    firsts = [group * (pairs * one // groups) for one in range(groups + 1)]
    parts = [(one * executor.sharding.own_slots, rows[firsts[one] : firsts[one + 1]]) for one in range(groups)]
    due = [(slot, own) for slot, own in parts if own]
    adapter, scale = start or ({}, 0.0)
    for slot, _ in due:
        executor.put(slot, {"adapters": adapter, "steps": 0}, {"scale": scale})
    losses = executor.row_losses(due, rows_at_once, asked=asked)
    for slot, _ in due:
        executor.clear(slot)
    return -np.concatenate([losses[slot] for slot, _ in due]).astype(np.float32)


def _key_of(base: PreparedBase, weights: str, data: TaskData, start: AdapterInSlot | None) -> str:
    said = [weights, jnp.dtype(compute_dtype(base.spec)).name, repr(base.config), data.digest]
    found = hashlib.sha256(json.dumps(said).encode())
    if start is not None:
        adapter, scale = start
        found.update(repr(scale).encode())
        for module in sorted(adapter):
            for half, array in sorted(adapter[module].items()):
                found.update(f"{module}.{half}".encode() + array.tobytes())
    return found.hexdigest()


def _read(path: Path, key: str, rows: int) -> Float32[np.ndarray, " rows"] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            said = file.metadata() or {}
            if said.get(_KEY) != key or _SHA256 not in said:
                return None
            values = np.asarray(file.get_tensor(_LOGPS))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: damaged ({error}), expected it as it was written; without it it is made anew"
        ) from error
    if values.shape != (rows,) or values.dtype != np.float32:
        raise UserError(f"{path}: {values.dtype} {values.shape}, expected float32 of {rows} rows")
    if _sha256(values) != said[_SHA256]:
        raise UserError(f"{path}: damaged (other numbers than were written); without it it is made anew")
    return values


def _sha256(values: Float32[np.ndarray, " rows"]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()
