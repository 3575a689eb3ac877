"""The bounded wait: GPUs are held for the task that has waited too long.

A task is overdue once it has waited for ``patience_s``. While tasks are overdue, GPUs are held for one of them at a
time: the one that waits longest among those whose tenant's quota has room. It gets the width and the GPUs that are
expected to be free first; nothing else starts on these until it has. The rest of the cluster schedules as before, so
tenants keep their shares.

The bound: a task starts no later than ``patience_s`` + (k + 1) · D after it began to wait, where D is the longest that
an attempt runs on once a hold waits for its GPUs, and k is the number of overdue tasks that wait longer. Each of these
starts, and so does the task, once what ran on the GPUs held for it has ended. Beside that: time in which its tenant's
quota has no room for it is its tenant's own; a hold that is there when that time ends goes first; a move that is under
way runs on; and a node that leaves while it is held begins a hold anew.
"""

from collections.abc import Iterator

from altojax.cluster.scheduling.baselines import fastest
from altojax.cluster.scheduling.dispatch import start
from altojax.cluster.scheduling.records import Hold, Start
from altojax.cluster.scheduling.state import SchedulerState
from altojax.cluster.scheduling.waiting_tasks import WaitingTask


def holds(state: SchedulerState) -> Iterator[Hold | Start]:
    """Yields starts of overdue tasks that fit, and a hold for the first that does not; apply each before the next."""
    while state.overdue is None and (entry := _oldest(state)) is not None:
        job = state.job_now(state.tasks[entry.name])
        widths = [width for width in job.speeds if width <= state.shares.room(entry.tenant)]
        waited = f"has waited for {state.now_s - entry.since_s:.0f} s"
        fitting = [width for width in widths if state.occupancy.free.fits(width)]
        if fitting:
            gpus = state.occupancy.spot(fastest(job, fitting))
            assert gpus is not None
            yield start(state, entry.name, gpus, waited)
            continue
        found = ((width, state.occupancy.earliest(width, state.now_s)) for width in widths)
        spots = [(width, spot) for width, spot in found if spot is not None]
        if not spots:
            return
        _, (free_s, gpus) = min(spots, key=lambda one: (one[1][0], one[1][0] + job.duration_s(one[0]), one[0]))
        yield Hold(state.now_s, entry.name, gpus, free_s, f"{waited}, the longest of all")


def _oldest(state: SchedulerState) -> WaitingTask | None:
    """Of the overdue tasks whose quota has room, the one that waits longest."""
    patience_s = state.policy.patience_s
    if patience_s is None:
        return None
    found = []
    for tenant in state.waiting.tenants():
        room = state.shares.room(tenant)
        for entry in state.waiting.by_age(tenant):
            if state.now_s - entry.since_s < patience_s:
                break
            if room >= min(state.widths(state.tasks[entry.name])) and state.occupancy.held(entry.name) is None:
                found.append(entry)
                break
    return min(found, key=lambda entry: (entry.since_s, entry.rank), default=None)
