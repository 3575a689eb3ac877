"""Permissions: which folders a task of a queue may touch."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from altojax.cluster.service.queue.store import StoredJob
from jaxrun.files.home import from_home
from jaxrun.process.errors import UserError


def check_reads(what: str, path: str, others: Iterable[StoredJob], queue: Path) -> None:
    """Refuses to read what a task of others wrote, or what the queue keeps.

    Links are followed. A folder that holds such an output is refused, too.

    Args:
        what: Names the path, for the message.
        path: What a task would read.
        others: Tasks whose files are not for this one.
        queue: The queue's folder.

    Raises:
        UserError: It is.
    """
    real = os.path.realpath(from_home(path))
    if _lies_in(real, os.path.realpath(queue)):
        raise UserError(f"{what}: {path} lies in the queue's folder {queue}, expected a file of yours")
    for job in others:
        if job.request is not None and _overlap(real, job.output_dir):
            raise UserError(f"{what}: {path} is output of tenant '{job.tenant}', expected a file of yours")


def check_writes(path: str, others: Iterable[StoredJob], queue: Path) -> None:
    """Refuses an output folder that is another tenant's, or the queue's.

    Args:
        path: The folder, without links.
        others: Tasks whose files are not for this one.
        queue: The queue's folder.

    Raises:
        UserError: It is, or it lies in such a folder or around it.
    """
    if _overlap(path, os.path.realpath(queue)):
        raise UserError(f"output_dir: {path} and the queue's folder {queue} overlap, expected another folder")
    for job in others:
        if job.request is not None and _overlap(path, job.output_dir):
            raise UserError(f"output_dir: {path} belongs to tenant '{job.tenant}', expected a folder of your own")


def check_live(path: str, live: Mapping[str, str]) -> None:
    """Refuses an output folder that a task which has not ended writes.

    Args:
        path: The folder, without links.
        live: Names of tasks that have not ended -> their folders.

    Raises:
        UserError: It is, or it lies in such a folder or around it.
    """
    for name, folder in live.items():
        if _overlap(path, folder):
            raise UserError(
                f"output_dir: {path} is where {name} writes, expected another folder, or {name} to end first"
            )


def _overlap(one: str, other: str) -> bool:
    return _lies_in(one, other) or _lies_in(other, one)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
