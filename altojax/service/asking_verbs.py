"""``altojax cancel``, ``pause`` and ``resume``: ask a queue's orchestrator for something about a task."""

from functools import partial

from altojax.service.asking import Wish, ask, queue_folder, wait_for_answer
from altojax.service.queue_table import QueueSettings
from altojax.service.rights import Caller
from harness.cli import Args, Positional, Verb
from harness.errors import UserError
from harness.settings import read_settings, told

PATIENCE_S = 10.0
"""Seconds that are waited for an orchestrator's answer."""


def run(wish: Wish, args: Args) -> int:
    """Runs ``altojax cancel JOB``, ``pause JOB`` or ``resume JOB``."""
    folder = queue_folder(read_settings(QueueSettings, args.overrides).queue)
    request = ask(folder, args["job"], wish, Caller.me(folder))
    answer = wait_for_answer(folder, request.id, PATIENCE_S)
    if answer is not None and answer.error:
        raise UserError(answer.error)
    later = "" if answer is not None else "; nobody serves the queue now, whoever does next will do it"
    print(f"{args['job']}: asked to {wish}{later}")
    return 0


def _verb(wish: Wish, help: str) -> Verb:
    return Verb(
        name=wish,
        help=help,
        run=partial(run, wish),
        positionals=(Positional("job", "a task that altojax queue lists"),),
        overrides=True,
        settings=told(QueueSettings),
        examples=(f"altojax {wish} support-7",),
    )


VERBS = (
    _verb("cancel", "Take a task out of the queue; one that runs saves and stops, and what it has done stays."),
    _verb("pause", "Let a task rest until it is resumed; one that runs saves and stops."),
    _verb("resume", "Let a paused task wait for its turn again; it goes on from its last checkpoint."),
)
