"""The record of a task's attempts in its folder: plain files that outlive engines, orchestrators and workers.

``fence.json`` names the newest attempt. It only ever rises, so whoever sees a higher number than its own knows that it
was replaced, gives way and says nothing more. What attempt N ended with lies in ``attempt-N.json``, its output in
``attempt-N.log``.
"""

import hashlib
import json
import os
from pathlib import Path

from altojax.cluster.engines.engine import Blame, Order, Outcome, Report
from jaxrun.config.config import StrictModel, check_config
from jaxrun.files.atomic import write_atomic
from jaxrun.files.foreign_files import open_plain, parse_json
from jaxrun.process.errors import UserError

_TAIL_BYTES = 8192
_WORD_BYTES = 2**16
"""Most bytes of what an engine or a worker says in a file."""
_READABLE = 0o644
"""Rights of the fence, which a worker reads that may be another user's; the folder keeps all others out."""
_LONGEST = 400
"""Characters of a reason."""


class End(StrictModel):
    """A worker's own report of its end, in ``attempt-N.json``.

    Attributes:
        code: Its exit code.
        outcome: As in `Report`.
        reason: One line, where it failed.
        blame: As in `Report`.
    """

    code: int
    outcome: Outcome
    reason: str = ""
    blame: Blame = "task"


class _Fence(StrictModel):
    attempt: int


def log_of(folder: Path, attempt: int, process: int = 0) -> Path:
    """The log of one process of an attempt; process 0 leads."""
    return folder / (f"attempt-{attempt}.log" if process == 0 else f"attempt-{attempt}.{process}.log")


def unique_name(order: Order) -> str:
    """Returns a name that no other attempt has, of whatever queue."""
    where = hashlib.sha256(os.fsencode(order.folder.resolve())).hexdigest()[:8]
    return f"{order.job}.{order.attempt}.{where}"


def newest_attempt(folder: Path) -> int:
    """Returns the attempt that may write; 0 before the first.

    Raises:
        UserError: ``fence.json`` is not what an engine writes.
    """
    fence = _read(folder / "fence.json", _Fence)
    return 0 if fence is None else fence.attempt


def raise_fence(folder: Path, attempt: int) -> bool:
    """Makes `attempt` the newest one, so that older ones give way. Returns False where a newer one is there already."""
    newest = newest_attempt(folder)
    if newest < attempt:
        write_atomic(folder / "fence.json", json.dumps({"attempt": attempt}), mode=_READABLE)
    return newest <= attempt


def write_end(folder: Path, attempt: int, end: End) -> bool:
    """Says what became of an attempt. Returns False, and says nothing, where a newer one has taken its place."""
    if newest_attempt(folder) > attempt:
        return False
    write_atomic(folder / f"attempt-{attempt}.json", end.model_dump_json())
    return True


def read_end(folder: Path, attempt: int) -> End | None:
    """Returns what a worker said as it ended, or None while it has said nothing."""
    try:
        return _read(folder / f"attempt-{attempt}.json", End)
    except UserError as error:
        return End(code=1, outcome="failed", reason=one_line(str(error)))


def judge(order: Order, *, told: bool, gone: End, forced: bool = False) -> Report:
    """Says what became of an attempt of which nothing runs any more.

    Args:
        order: The attempt.
        told: Whether the engine was asked to stop it.
        gone: What to say where the worker has said nothing.
        forced: Whether it was killed because it did not stop in time.
    """
    end = read_end(order.folder, order.attempt)
    if end is None and told:
        late = "did not save in time and was killed" if forced else gone.reason
        return Report(order.job, order.attempt, "halted", f"{late}; it resumes from its last checkpoint")
    end = end or gone
    reason = one_line(end.reason)
    if end.outcome == "halted" and not told:
        return Report(order.job, order.attempt, "failed", f"preempted: {reason or 'saved and stopped'}", "node")
    return Report(order.job, order.attempt, end.outcome, reason, end.blame)


def last_line(log: Path) -> str:
    """Returns the last line of a log that is not empty, shortened; an empty string where there is none."""
    try:
        with os.fdopen(open_plain(log), "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except (OSError, UserError):
        return ""
    return one_line(next((line for line in reversed(lines) if line.strip()), ""))


def one_line(text: str) -> str:
    """Returns a text as one line of bounded length."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"


def read_mark[Model: StrictModel](path: Path, model: type[Model]) -> Model | None:
    """Returns what an engine has noted of an attempt; None where it has not, or somebody else wrote the file.

    A task's folder may be its submitter's: what that user puts in a mark's place names no process of ours.

    Raises:
        UserError: It is not what an engine writes.
    """
    return _read(path, model, only_mine=True)


def _read[Model: StrictModel](path: Path, model: type[Model], *, only_mine: bool = False) -> Model | None:
    """Reads what may be another user's: a plain file, within bounds, and through no link."""
    try:
        descriptor = open_plain(path)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if only_mine and os.fstat(descriptor).st_uid != os.geteuid():
            return None
        content = file.read(_WORD_BYTES + 1)
    if len(content) > _WORD_BYTES:
        raise UserError(f"{path}: has more than {_WORD_BYTES:,} bytes, expected less")
    return check_config(model, parse_json(content, str(path)), str(path))
