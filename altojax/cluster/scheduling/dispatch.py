"""Dispatch of waiting tasks: event-driven, in the order of the plan or of a rule."""

from collections.abc import Iterator

from altojax.cluster.scheduling.baselines import BACKFILL_DEPTH
from altojax.cluster.scheduling.records import PlanMade, Start
from altojax.cluster.scheduling.resources.nodes import Gpus
from altojax.cluster.scheduling.resources.task import Task
from altojax.cluster.scheduling.state import SchedulerState
from altojax.cluster.scheduling.waiting_tasks import WaitingTask


def start(state: SchedulerState, name: str, gpus: Gpus, why: str) -> Start:
    """Returns the decision to start a task's next attempt now."""
    task = state.tasks[name]
    until_s = state.now_s + state.job_now(task).duration_s(sum(map(len, gpus.values())))
    return Start(state.now_s, name, task.attempt + 1, gpus, until_s, why)


def starts(state: SchedulerState) -> Iterator[Start]:
    """Yields what starts now; apply each before the next is asked for."""
    for name in list(state.occupancy.holds):
        held = state.occupancy.held(name)
        if held is not None and state.tasks[name].status == "waiting" and state.occupancy.ready(name):
            yield start(state, name, held, "on GPUs held for it")
    while len(state.waiting) and (found := _next(state)) is not None:
        yield found


def _next(state: SchedulerState) -> Start | None:
    if not state.occupancy.free.fits(1) or (state.rule.alone and state.occupancy.running):
        return None
    if state.rule.overtaking == "never":
        return _start_if_free(state, _first(state))
    if state.plan is not None and state.plan.gpus and _as_foreseen(state):
        return _where_planned(state, state.plan)
    if state.rule.overtaking == "backfill":
        return _backfill(state)
    return _start_if_free(state, _first_that_fits(state))


def _as_foreseen(state: SchedulerState) -> bool:
    """Tells whether the plan still holds to the letter: all has gone as it foresaw, and there are no shares to keep."""
    return not state.changes and len(state.waiting.tenants()) == 1


def _where_planned(state: SchedulerState, plan: PlanMade) -> Start | None:
    """A task whose very GPUs are free, and for none of which an earlier one of the plan waits."""
    awaited: set[tuple[str, int]] = set()
    for name, gpus in zip(plan.order, plan.gpus, strict=True):
        if name not in state.waiting:
            continue
        wanted = {(node, index) for node, indices in gpus.items() for index in indices}
        if (
            not wanted & awaited
            and state.occupancy.free.has(gpus)
            and len(wanted) <= state.shares.room(state.tasks[name].job.tenant)
        ):
            return start(state, name, gpus, f"as planned, {plan.rule}")
        awaited |= wanted
    return None


def _first(state: SchedulerState) -> WaitingTask | None:
    """The first of all that wait; a tenant whose first is beyond its quota is passed over."""
    firsts = [min(state.waiting.firsts(tenant)) for tenant in state.waiting.tenants()]
    return min((entry for entry in firsts if entry.width <= state.shares.room(entry.tenant)), default=None)


def _first_that_fits(state: SchedulerState) -> WaitingTask | None:
    """Of the tenant that is furthest behind its share and has one, the first task that fits."""
    best: tuple[float, WaitingTask] | None = None
    for tenant in state.waiting.tenants():
        virtual_s = state.shares.virtual_s(tenant) if state.rule.fair else 0.0
        if best is not None and best[0] < virtual_s:
            continue
        room = state.shares.room(tenant)
        for entry in state.waiting.firsts(tenant):
            if entry.width <= room and state.occupancy.free.fits(entry.width):
                best = (virtual_s, entry) if best is None else min(best, (virtual_s, entry))
    return best[1] if best is not None else None


def _start_if_free(state: SchedulerState, entry: WaitingTask | None) -> Start | None:
    gpus = state.occupancy.spot(entry.width) if entry is not None else None
    if entry is None or gpus is None:
        return None
    return start(state, entry.name, gpus, _why(state, state.tasks[entry.name], entry))


def _backfill(state: SchedulerState) -> Start | None:
    """The first of all, or one that does not delay it: that ends before its GPUs are free, or runs on others."""
    head = _first(state)
    if head is None or state.occupancy.free.fits(head.width):
        return _start_if_free(state, head)
    reserved = state.occupancy.earliest(head.width, state.now_s)
    for entry in state.waiting.in_order(BACKFILL_DEPTH + 1):
        if entry == head or entry.width > state.shares.room(entry.tenant) or not state.occupancy.free.fits(entry.width):
            continue
        ends_s = state.now_s + state.job_now(state.tasks[entry.name]).duration_s(entry.width)
        in_time = reserved is None or ends_s <= reserved[0]
        gpus = state.occupancy.spot(entry.width, beside=None if in_time or reserved is None else reserved[1])
        if gpus is not None:
            return start(state, entry.name, gpus, f"backfilled before {head.name}")
    return None


def _why(state: SchedulerState, task: Task, entry: WaitingTask) -> str:
    if entry.rank[0] == 0 and state.plan is not None:
        return f"as planned, {state.plan.rule}"
    return "next in order" if state.rule.fair else state.policy.plan
