"""``altojax submit``: puts a task into a queue."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from altojax.placement.task import OVER
from altojax.service import requests
from altojax.service.asking import members_of, queue_folder, submit, wait_for_answer
from altojax.service.members import Caller, Members
from altojax.service.queue_table import FINAL, expectation
from altojax.service.requests import job_name
from altojax.service.rights import check_reads, check_writes
from altojax.service.store import StoredJob, View
from altojax.service.submission import Submission
from harness.cli import Args, Positional, Verb
from harness.config import StrictModel, load_config
from harness.errors import UserError
from harness.run_folder import JOURNAL_NAME, clear_run, refuse_foreign, take_lock
from harness.settings import take_settings

if TYPE_CHECKING:
    from altojax.service.preparing import SubmitConfig
    from altojax.service.snapshot import JobView, Snapshot

PATIENCE_S = 10.0
"""Seconds that are waited for an orchestrator's answer."""
FORECAST_S = 3.0
"""Seconds that are waited for a forecast of a task that was just taken."""
_LOOK_S = 0.5
CODES = {"ended": 0, "paused": 130, "cancelled": 130}
"""Exit codes of ``wait=true`` by what became of the task; 1 for any other."""


class SubmitSettings(StrictModel):
    """What ``altojax submit`` takes beside the keys of the task.

    Attributes:
        queue: Folder of the queue; null is $ALTOJAX_QUEUE, else runs/queue.
        wait: Follow the task to its end; the exit code is 0 where it ended well, 1 where it failed, 130 where it was
            cancelled or paused.
        overwrite: Discard now what an earlier run left in output_dir.
    """

    queue: str | None = None
    wait: bool = False
    overwrite: bool = False


def run(args: Args) -> int:
    """Runs ``altojax submit TASK key=value ...``."""
    settings, rest = take_settings(SubmitSettings, args.overrides)
    folder = queue_folder(settings.queue)
    name = put(folder, args["task"], rest, overwrite=settings.overwrite)
    if not settings.wait:
        return 0
    return follow(folder, name)


def put(folder: Path, task: str, overrides: Sequence[str], *, overwrite: bool) -> str:
    """Checks a task, puts it into a queue and says what is to be expected; returns its name.

    Raises:
        UserError: Anything wrong with the task, or the queue does not take it.
    """
    from altojax.service.preparing import SubmitConfig

    config = load_config(SubmitConfig, task, overrides)
    caller = Caller.me(folder)
    submission = checked(folder, config, caller)
    if overwrite:
        discard(Path(submission.output_dir), submission.tasks)
    request = submit(folder, submission, caller, config.queue.tenant)
    answer = wait_for_answer(folder, request.id, PATIENCE_S)
    if answer is not None and answer.error:
        raise UserError(answer.error)
    name = job_name(request)
    print(name)
    if answer is None:
        print(f"waits in {folder}; whoever serves it starts it: altojax serve queue={folder}")
    else:
        print(expectation(*_look(folder, name)))
    return name


def checked(folder: Path, config: "SubmitConfig", caller: Caller) -> Submission:
    """Checks all of a task that can be known before the queue has it, and writes nothing.

    Raises:
        UserError: Anything wrong with the task, or the queue is not going to take it.
    """
    from altojax.search import TuneConfig
    from altojax.service.preparing import reads_of, submission_of

    members, jobs, live = _state(folder)
    others: list[StoredJob] = []
    if members is not None:
        tenant = members.tenant_of(caller.uid, config.queue.tenant)
        others = [job for job in jobs if members.apart(caller.uid, tenant, job.uid, job.tenant)]
    submission = submission_of(config)
    for key, path in reads_of(TuneConfig.model_validate_json(submission.config)).items():
        check_reads(key, path, others, folder)
    check_writes(submission.output_dir, others, live, folder)
    return submission


def follow(folder: Path, name: str) -> int:
    """Says what becomes of a task until it is over or rests; returns the exit code.

    Raises:
        UserError: The queue cannot be read.
    """
    from altojax.service.snapshot import Reader

    with contextlib.closing(Reader(folder)) as reader:
        said = ""
        while True:
            snapshot = reader.snapshot()
            job = snapshot.job(name)
            assert job is not None
            line = expectation(snapshot, job)
            if job.status != said:
                print(line)
                said = job.status
            if job.status in FINAL:
                return CODES.get(job.status, 1)
            time.sleep(_LOOK_S)


def _look(folder: Path, name: str) -> "tuple[Snapshot, JobView]":
    """Returns the queue and a task, if possible with what is expected of it."""
    from altojax.service.snapshot import Reader

    deadline = time.monotonic() + FORECAST_S
    with contextlib.closing(Reader(folder)) as reader:
        while True:
            snapshot = reader.snapshot()
            job = snapshot.job(name)
            assert job is not None
            if job.end_s is not None or time.monotonic() > deadline:
                return snapshot, job
            time.sleep(0.2)


def _state(folder: Path) -> tuple[Members | None, list[StoredJob], list[StoredJob]]:
    """Returns what the queue knows already: who belongs to tenants, tasks, and those of them that are not over."""
    from altojax.service.snapshot import Reader

    if not (folder / requests.NAME).is_file():
        return None, [], []
    view = View.read(folder)
    with contextlib.closing(Reader(folder)) as reader:
        listed = [job for job in reader.snapshot().jobs if not (job.members or job.status == "refused")]
    jobs = [StoredJob(job.name, 0, job.tenant, -1, job.user, job.output_dir, "") for job in listed]
    over = {job.name for job in listed if job.status in OVER}
    live = [job for job in jobs if job.name not in over]
    if view is None:
        return None, jobs, live
    with contextlib.closing(view):
        return members_of(view), jobs, live


def discard(run_dir: Path, tasks: Sequence[str]) -> None:
    """Removes what an earlier run left in a folder, and nothing else there.

    Raises:
        UserError: The folder holds files that no run made, or a run that is live.
    """
    from altojax.search import MAKES

    if not run_dir.is_dir():
        return
    makes = (*MAKES, *tasks)
    lock = take_lock(run_dir)
    try:
        refuse_foreign(run_dir, makes, overwrite=True)
        if (run_dir / JOURNAL_NAME).exists():
            clear_run(run_dir, makes)
    finally:
        os.close(lock)


def _config() -> type[StrictModel]:
    from altojax.service.preparing import SubmitConfig

    return SubmitConfig


VERB = Verb(
    name="submit",
    help="Put a task into a queue: whoever serves it trains it when its turn comes.",
    run=run,
    positionals=(Positional("task", "a YAML file as for tune, maybe with queue: {gpus: [1, 2], tenant: NAME}"),),
    overrides=True,
    config=_config,
    settings=SubmitSettings,
    examples=("altojax submit mine.yaml queue.gpus=[1,2,4]", "altojax submit mine.yaml wait=true"),
)
