"""The bounded wait: GPUs are held for the task that has waited too long.

A task is overdue once it has waited for ``patience_s``. While tasks are overdue, GPUs are held for one of them at a time: the one
that waits longest among those whose tenant's quota has room. It gets the width and the GPUs that are expected to be free
first; nothing else starts on these until it has. The rest of the cluster goes on as before, so tenants keep their shares.

Bound: let D be the longest that an attempt runs on. From when a task is overdue, its quota has room, and the cluster has
the nodes for it, it starts within (k + 1) · D, where k is the number of overdue tasks that wait longer, or have GPUs held
already: each of these starts, and so does the task, once what runs on the GPUs held for it has ended. So nobody waits for
more than ``patience_s`` + (k + 1) · D. Time in which a task's quota has no room is its tenant's own, and a node that goes while it
is held begins a hold anew.
"""

from collections.abc import Iterator

from altojax.placement.dispatch import start
from altojax.placement.records import Hold, Start
from altojax.placement.rivals import fastest
from altojax.placement.state import State
from altojax.placement.waiting import Entry


def holds(state: State) -> Iterator[Hold | Start]:
    """Yields starts of overdue tasks that fit now, and a hold for the first that does not; each must be applied first."""
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
        spots = [
            (width, spot) for width in widths if (spot := state.occupancy.earliest(width, state.now_s)) is not None
        ]
        if not spots:
            return
        _, (free_s, gpus) = min(spots, key=lambda one: (one[1][0], one[1][0] + job.duration_s(one[0]), one[0]))
        yield Hold(state.now_s, entry.name, gpus, free_s, f"{waited}, the longest of all")


def _oldest(state: State) -> Entry | None:
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
