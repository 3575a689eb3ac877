"""Replanning: when a plan is made anew, and which tasks are merged first.

A plan is worth its time again once what it did not foresee matters: with few tasks waiting after every change, with
thousands after hundreds of changes. In between, tasks start in its order as GPUs come free.
"""

from collections.abc import Iterator
from dataclasses import replace

from altojax.cluster.scheduling.planning.merging import worth_merging
from altojax.cluster.scheduling.planning.portfolio import plan
from altojax.cluster.scheduling.planning.problem import Busy
from altojax.cluster.scheduling.records import Merge, PlanMade
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.state import SchedulerState

_FEW = 32
"""So many waiting tasks are planned anew after every change."""
_SHARE = 4
"""Of more, a change for every so many makes a plan stale: a change then costs the same time however many wait."""
_MOST_EFFORT = 20_000


def replan(state: SchedulerState) -> Iterator[Merge | PlanMade]:
    """Yields merges and a plan where the last one is stale; apply each before the next is asked for."""
    if not state.rule.fair or not _stale(state) or not _could_start(state):
        return
    if state.policy.merge and _has_kin(state):
        jobs = [job if _can_merge(state, job) else replace(job, family=None) for job in to_plan(state)]
        for group in worth_merging(jobs, state.cluster, busy(state), state.now_s, effort=_effort(state)):
            if group.into.name not in state.tasks:
                yield Merge(state.now_s, group.jobs, group.into, group.why)
    jobs = to_plan(state)
    if not jobs:
        return
    made = plan(jobs, state.cluster, busy(state), state.now_s, effort=_effort(state), exact_s=state.policy.cp_sat_s)
    yield PlanMade(
        at_s=state.now_s,
        rule=made.rule,
        order=tuple(one.job.name for one in made.placed),
        widths=tuple(one.width for one in made.placed),
        makespan_s=made.makespan_s,
        bound_s=made.bound_s,
        gpus=tuple(one.gpus for one in made.placed) if made.fixed else (),
    )


def to_plan(state: SchedulerState) -> list[Job]:
    """The tasks that wait and have no GPUs held for them, as they would start now."""
    holds = state.occupancy.holds
    return [
        state.job_now(task)
        for name, task in state.tasks.items()
        if task.status == "waiting" and name in state.waiting and name not in holds
    ]


def busy(state: SchedulerState) -> list[Busy]:
    """Tasks on GPUs, or on those held for them, and their predicted ends."""
    taken = []
    for gpus, until_s in state.occupancy.running.values():
        if unheld := state.occupancy.unheld(gpus) if state.occupancy.holds else gpus:
            taken.append(Busy(unheld, until_s))
    for name, (gpus, free_s) in state.occupancy.holds.items():
        duration_s = state.job_now(state.tasks[name]).duration_s(sum(map(len, gpus.values())))
        taken.append(Busy(gpus, max(free_s, state.now_s) + duration_s))
    return taken


def _can_merge(state: SchedulerState, job: Job) -> bool:
    """Tells whether a task has never started nor was merged: a merged task keeps the members it began with."""
    task = state.tasks[job.name]
    return not (task.attempt or task.alone or task.members)


def _has_kin(state: SchedulerState) -> bool:
    """Tells whether two tasks that wait could be merged."""
    keys = [job.family.key for job in to_plan(state) if job.family is not None and _can_merge(state, job)]
    return len(set(keys)) < len(keys)


def _effort(state: SchedulerState) -> int:
    return min(_MOST_EFFORT, state.policy.effort * state.changes)


def _stale(state: SchedulerState) -> bool:
    return state.changes > 0 and _SHARE * state.changes >= len(state.waiting) - _FEW


def _could_start(state: SchedulerState) -> bool:
    """Tells whether any width of any task is free: without one, a plan would change nothing now."""
    return len(state.waiting) > 0 and state.occupancy.free.fits(1)
