"""``altojax queue``: who waits, runs and has ended in a queue, and when it is to be expected; or one task in full."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from altojax.cluster.service.console_log import gap_words, where
from altojax.cluster.service.queue.client import connect, queue_folder, unknown
from altojax.cluster.tenancy.members import user_name
from jaxrun.config.config import StrictModel
from jaxrun.config.settings import read_settings
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.process.errors import UserError
from jaxrun.terminal.printable import printable
from jaxrun.terminal.progress import duration
from jaxrun.terminal.tables import print_table

if TYPE_CHECKING:
    from altojax.cluster.service.queue.queue_view import JobView, QueueView

FINAL = ("ended", "failed", "cancelled", "refused", "paused")
"""States that a task keeps until somebody asks for another."""
_ON_GPUS = ("running", "stopping")


class QueueSettings(StrictModel):
    """Settings of every verb that asks a queue.

    Attributes:
        queue: Folder of the queue; null is $ALTOJAX_QUEUE, else runs/queue.
    """

    queue: str | None = None


class TableSettings(QueueSettings):
    """Settings of ``altojax queue``.

    Attributes:
        as_json: Print JSON.
    """

    as_json: bool = pydantic.Field(False, alias="json")


def run(args: Args) -> int:
    """Runs ``altojax queue [TASK] key=value ...``."""
    settings = read_settings(TableSettings, args.overrides)
    folder = queue_folder(settings.queue)
    with contextlib.closing(connect(folder)) as client:
        seen = client.look()
    if seen is None:
        owner = user_name(folder.stat().st_uid)
        raise UserError(
            f"{folder}: nobody serves this queue now, expected {owner} to, whose program shows it to others"
        )
    snapshot = seen.snapshot
    if args["task"] is None:
        if settings.as_json:
            print(json.dumps(asdict(snapshot)))
        else:
            _print_all(snapshot, folder)
        return 0
    job = snapshot.job(args["task"])
    if job is None:
        raise unknown(folder, args["task"], [job.name for job in snapshot.jobs])
    if job.name not in seen.mine:
        owner = f"tenant '{job.tenant}'" if job.tenant else "another user"
        raise UserError(f"{job.name}: belongs to {owner}, expected a task of yours")
    spans = [span for span in snapshot.spans if span.job in (job.name, job.merged_into)]
    if settings.as_json:
        print(json.dumps({**asdict(job), "attempts": [asdict(span) for span in spans]}))
        return 0
    for line in _in_full(snapshot, job, folder):
        print(printable(line))
    return 0


def expectation(snapshot: "QueueView", job: "JobView") -> str:
    """Returns what a task does, and what is expected of it, in one line."""
    start, end = _when(snapshot, job.start_s), _when(snapshot, job.end_s)
    gpus = f" on {job.width} GPU{'s' if job.width != 1 else ''}" if job.width else ""
    match job.status:
        case "submitted":
            return "waits for somebody to serve the queue"
        case "waiting" | "merged" if job.end_s is None:
            return f"waits{_because(job)}; no GPUs for it are there now"
        case "waiting":
            return f"waits; expected to start about {start}{gpus} and to end about {end}{_because(job)}"
        case "merged":
            return f"shares a run with others ({job.merged_into}); expected to end about {end}"
        case "running" | "stopping":
            return f"{job.status} since {start}{gpus}; expected to end about {end}"
        case _:
            return f"{job.status}{' at ' + end if job.ended_s is not None else ''}{_because(job)}"


def _because(job: "JobView") -> str:
    return f": {job.reason}" if job.reason else ""


def _print_all(snapshot: "QueueView", folder: Path) -> None:
    columns = ("task", "tenant", "status", "GPUs", "submitted", "start", "end", "trials", "why")
    print_table(columns, [_row(snapshot, job) for job in snapshot.jobs], right=(3,))
    print()
    counts: dict[str, int] = {}
    for job in snapshot.jobs:
        counts[job.status] = counts.get(job.status, 0) + 1
    print(", ".join(f"{count} {status}" for status, count in counts.items()) or "no tasks yet")
    if snapshot.makespan_s:
        print(f"all ends in {gap_words(snapshot.makespan_s, snapshot.bound_s or 0.0)} ({snapshot.rule})")
    print(f"served by {snapshot.holder}" if snapshot.alive else f"served by nobody: altojax serve queue={folder}")


def _row(snapshot: "QueueView", job: "JobView") -> tuple[str, ...]:
    """One line of the table; what is only expected has a ~."""
    from altojax.cluster.service.progress_monitor import trials_done

    expected_start = "~" if job.started_s is None and job.start_s is not None else ""
    expected_end = "~" if job.ended_s is None and job.end_s is not None else ""
    done = trials_done(job.journal_dir, job.tasks) if job.status in _ON_GPUS and job.journal_dir else None
    return (
        job.name,
        job.tenant or "-",
        job.status,
        str(job.width) if job.width else "/".join(map(str, job.widths)),
        _when(snapshot, job.submitted_s),
        expected_start + _when(snapshot, job.start_s),
        expected_end + _when(snapshot, job.end_s),
        f"{done}/{job.trials}" if done is not None else str(job.trials),
        (job.merged_into and f"in {job.merged_into}") or job.reason,
    )


def _in_full(snapshot: "QueueView", job: "JobView", folder: Path) -> Iterator[str]:
    from altojax.cluster.service.progress_monitor import trials_done

    yield f"{job.name}: {expectation(snapshot, job)}"
    yield f"tenant     {job.tenant or '-'}, submitted by {job.user} at {_when(snapshot, job.submitted_s)}"
    yield f"GPUs       {', '.join(map(str, job.widths))}"
    yield f"output     {job.output_dir}"
    done = trials_done(job.journal_dir, job.tasks)
    yield f"trials     {job.trials}" + (f", {done} done" if done is not None else "")
    if job.members:
        yield f"members    {', '.join(job.members)}"
    for span in snapshot.spans:
        if span.job in (job.name, job.merged_into):
            took = duration((snapshot.now_s if span.end_s is None else span.end_s) - span.start_s)
            why = f": {span.reason}" if span.reason else ""
            since = f"{where(span.gpus)} from {_when(snapshot, span.start_s)}"
            yield f"attempt {span.attempt}  {since}, {took}, {span.outcome}{why}"
            if os.access(log := folder / "jobs" / span.job / f"attempt-{span.attempt}.log", os.R_OK):
                yield f"           {log}"


def _when(snapshot: "QueueView", at_s: float | None) -> str:
    if at_s is None:
        return "-"
    moment, now = (datetime.fromtimestamp(snapshot.made_s + s) for s in (at_s, snapshot.now_s))
    return moment.strftime("%H:%M:%S" if moment.date() == now.date() else "%b %d %H:%M")


VERB = Verb(
    name="queue",
    help="Show who waits, runs and has ended in a queue, and when; or one task with all of its attempts.",
    run=run,
    positionals=(Positional("task", "a task of the queue", required=False),),
    settings=TableSettings,
    examples=("altojax queue", "altojax queue support-7"),
)
