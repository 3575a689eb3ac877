"""``altojax submit``: puts a task into a queue."""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from altojax.cluster.scheduling.resources.task import OVER
from altojax.cluster.service.queue.client import PATIENCE_S, Client, Receipt, connect, queue_folder
from altojax.cluster.service.queue.permissions import check_live
from altojax.cluster.service.queue.submission import Submission
from altojax.cluster.service.verbs.queue_table import FINAL, expectation
from jaxrun.config.config import StrictModel, load_config
from jaxrun.config.settings import take_settings
from jaxrun.config.verbs import Args, Positional, Verb, later
from jaxrun.process.errors import UserError
from jaxrun.store.run_folder import JOURNAL_NAME, clear_run, refuse_foreign, refuse_read, take_lock

if TYPE_CHECKING:
    from altojax.cluster.service.queue.queue_view import JobView
    from altojax.cluster.service.queue.visibility import Seen
    from altojax.cluster.service.submission_builder import SubmitConfig

FORECAST_S = 3.0
"""Seconds that are waited for a forecast of a task that was just taken."""
CODES = {"ended": 0, "paused": 130, "cancelled": 130}
"""Exit codes of ``wait=true`` by what became of the task; 1 for any other."""


class SubmitSettings(StrictModel):
    """Settings of ``altojax submit`` beside the keys of the task.

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
    with contextlib.closing(connect(folder)) as client:
        name = put(client, args["task"], rest, overwrite=settings.overwrite, wait=settings.wait)
        return follow(client, name) if settings.wait else 0


def put(client: Client, task: str, overrides: Sequence[str], *, overwrite: bool, wait: bool = False) -> str:
    """Checks a task, puts it into a queue and says what is to be expected.

    Args:
        client: The queue.
        task: A YAML file.
        overrides: Keys of the command line.
        overwrite: Discard what an earlier run left in its output_dir.
        wait: Wait for its name as long as that takes.

    Returns:
        Its name; empty where nobody serves the queue who could give it one.

    Raises:
        UserError: Anything wrong with the task, or the queue does not take it.
    """
    from altojax.cluster.service.submission_builder import SubmitConfig

    config = load_config(SubmitConfig, task, overrides)
    submission = checked(client, config)
    if overwrite:
        discard(Path(submission.output_dir), submission.tasks, config.reads)
    outcome = client.submit(submission, config.queue.tenant, float("inf") if wait else PATIENCE_S)
    if outcome.error:
        raise UserError(outcome.error)
    _say(client, outcome)
    return outcome.job


def checked(client: Client, config: "SubmitConfig") -> Submission:
    """Checks all of a task that can be known before the queue has it.

    Raises:
        UserError: Anything wrong with the task, or the queue is known not to take it.
    """
    from altojax.cluster.service.submission_builder import submission_of

    client.check_tenant(config.queue.tenant)
    submission = submission_of(config)
    seen = client.look() if client.exists else None
    if seen is not None:
        mine = [job for job in seen.snapshot.jobs if job.name in seen.mine and job.status not in (*OVER, "refused")]
        check_live(submission.output_dir, {job.name: job.output_dir for job in mine if not job.members})
    return submission


def follow(client: Client, name: str) -> int:
    """Says what becomes of a task until it is over or rests; returns the exit code.

    Raises:
        UserError: The queue cannot be read.
    """
    said = ""
    while True:
        seen = client.look()
        if seen is not None:
            job = _job(seen, name)
            line = expectation(seen.snapshot, job)
            if job.status != said:
                print(line)
                said = job.status
            if job.status in FINAL:
                return CODES.get(job.status, 1)
        time.sleep(client.look_s)


def _say(client: Client, outcome: Receipt) -> None:
    folder = client.folder
    if not outcome.job:
        print(f"waits in {folder} until somebody serves it, which gives it a name")
        return
    print(outcome.job)
    if not outcome.taken:
        print(f"waits in {folder}; whoever serves it starts it: altojax serve queue={folder}")
        return
    deadline = time.monotonic() + FORECAST_S
    while (seen := client.look()) is not None:
        job = _job(seen, outcome.job)
        if job.end_s is not None or time.monotonic() > deadline:
            print(expectation(seen.snapshot, job))
            return
        time.sleep(client.look_s)


def _job(seen: "Seen", name: str) -> "JobView":
    job = seen.snapshot.job(name)
    assert job is not None
    return job


def discard(run_dir: Path, tasks: Sequence[str], reads: Mapping[str, str]) -> None:
    """Removes what an earlier run left in a folder, and nothing else there.

    Args:
        run_dir: The folder.
        tasks: Of the run that will be there.
        reads: What that reads, by key.

    Raises:
        UserError: The folder holds files that no run made, a run that is live, or something that the next one reads.
    """
    from altojax.config.tune_config import MAKES

    if not run_dir.is_dir():
        return
    makes = (*MAKES, *tasks)
    lock = take_lock(run_dir)
    try:
        refuse_foreign(run_dir, makes, overwrite=True)
        refuse_read(run_dir, makes, reads)
        if (run_dir / JOURNAL_NAME).exists():
            clear_run(run_dir, makes)
    finally:
        os.close(lock)


VERB = Verb(
    name="submit",
    help="Put a task into a queue: whoever serves it trains it when its turn comes.",
    run=run,
    positionals=(Positional("task", "a YAML file as for tune, maybe with queue: {gpus: [1, 2], tenant: NAME}"),),
    config=later("altojax.cluster.service.submission_builder:SubmitConfig"),
    settings=SubmitSettings,
    examples=("altojax submit mine.yaml queue.gpus=[1,2,4]", "altojax submit mine.yaml wait=true"),
)
