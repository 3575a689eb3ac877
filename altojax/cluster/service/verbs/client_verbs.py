"""``altojax cancel``, ``pause`` and ``resume``: ask a queue's orchestrator for something about a task."""

import contextlib
from functools import partial

from altojax.cluster.scheduling.resources.task import OVER
from altojax.cluster.service.queue.client import Client, Wish, connect, queue_folder, unknown
from altojax.cluster.service.verbs.queue_table import QueueSettings
from jaxrun.config.settings import read_settings
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.process.errors import UserError


def run(wish: Wish, args: Args) -> int:
    """Runs ``altojax cancel TASK``, ``pause TASK`` or ``resume TASK``."""
    folder, name = queue_folder(read_settings(QueueSettings, args.overrides).queue), args["task"]
    with contextlib.closing(connect(folder)) as client:
        _check_goes_on(client, name)
        outcome = client.ask(name, wish)
    if outcome.error:
        raise UserError(outcome.error)
    later = "" if outcome.taken else "; nobody serves the queue now, whoever does next will do it"
    print(f"{name}: asked to {wish}{later}")
    return 0


def _check_goes_on(client: Client, name: str) -> None:
    """Says before anything is asked what would be answered, where the queue can be seen now."""
    seen = client.look()
    if seen is None:
        return
    job = seen.snapshot.job(name)
    if job is None:
        raise unknown(client.folder, name, [one.name for one in seen.snapshot.jobs])
    if name not in seen.mine:
        raise UserError(f"{name}: belongs to tenant '{job.tenant}', expected a task of yours")
    if job.status in OVER:
        raise UserError(f"{name}: {job.status} already, expected a task that waits, runs or rests")


def _verb(wish: Wish, help: str) -> Verb:
    return Verb(
        name=wish,
        help=help,
        run=partial(run, wish),
        positionals=(Positional("task", "a task that altojax queue lists"),),
        settings=QueueSettings,
        examples=(f"altojax {wish} support-7",),
    )


CANCEL = _verb("cancel", "Take a task out of the queue; one that runs saves and stops, and what it has done stays.")
PAUSE = _verb("pause", "Let a task rest until it is resumed; one that runs saves and stops.")
RESUME = _verb("resume", "Let a paused task wait for its turn again; it resumes from its last checkpoint.")
