"""``altojax cancel``, ``pause`` and ``resume``: ask a queue's orchestrator for something about a task."""

import contextlib
from functools import partial
from pathlib import Path

from altojax.placement.task import OVER
from altojax.service.asking import Wish, ask, check_known, queue_folder, wait_for_answer
from altojax.service.members import Caller
from altojax.service.queue_table import QueueSettings
from harness.cli import Args, Positional, Verb
from harness.errors import UserError
from harness.settings import read_settings

PATIENCE_S = 10.0
"""Seconds that are waited for an orchestrator's answer."""


def run(wish: Wish, args: Args) -> int:
    """Runs ``altojax cancel JOB``, ``pause JOB`` or ``resume JOB``."""
    folder = queue_folder(read_settings(QueueSettings, args.overrides).queue)
    caller = Caller.me(folder)
    _check_goes_on(folder, args["job"], caller)
    request = ask(folder, args["job"], wish, caller)
    answer = wait_for_answer(folder, request.id, PATIENCE_S)
    if answer is not None and answer.error:
        raise UserError(answer.error)
    later = "" if answer is not None else "; nobody serves the queue now, whoever does next will do it"
    print(f"{args['job']}: asked to {wish}{later}")
    return 0


def _check_goes_on(folder: Path, name: str, caller: Caller) -> None:
    from altojax.service.snapshot import Reader

    check_known(folder, name, caller)
    with contextlib.closing(Reader(folder)) as reader:
        job = reader.snapshot().job(name)
    if job is not None and job.status in OVER:
        raise UserError(f"{name}: {job.status} already, expected a task that waits, runs or rests")


def _verb(wish: Wish, help: str) -> Verb:
    return Verb(
        name=wish,
        help=help,
        run=partial(run, wish),
        positionals=(Positional("job", "a task that altojax queue lists"),),
        overrides=True,
        settings=QueueSettings,
        examples=(f"altojax {wish} support-7",),
    )


VERBS = (
    _verb("cancel", "Take a task out of the queue; one that runs saves and stops, and what it has done stays."),
    _verb("pause", "Let a task rest until it is resumed; one that runs saves and stops."),
    _verb("resume", "Let a paused task wait for its turn again; it goes on from its last checkpoint."),
)
