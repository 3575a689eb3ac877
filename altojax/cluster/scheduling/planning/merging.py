"""Merging of waiting tasks that share a base: done where the plan then ends sooner.

Merged tasks pay the base's part of a step once for all their trials, and are set up once. In exchange they run as one
gang, at one time: where GPUs are idle anyway, tasks end sooner apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from altojax.cluster.scheduling.planning.energy_bound import energy_bound
from altojax.cluster.scheduling.planning.portfolio import best_list
from altojax.cluster.scheduling.planning.problem import Busy, problem_of
from altojax.cluster.scheduling.resources.job import Job, TaskFamily
from altojax.cluster.scheduling.resources.nodes import Cluster
from jaxrun.terminal.progress import duration

GAIN = 0.001
"""Share of the makespan, or at equal makespan of the mean, that merging must gain."""

_PLANS = 32
"""Groups that are tried at most; fewer where plans are large."""


@dataclass(frozen=True)
class Merging:
    """Tasks that are to become one.

    Attributes:
        jobs: Their names.
        into: What they become.
        why: What it gains, in one line.
    """

    jobs: tuple[str, ...]
    into: Job
    why: str


def merged(jobs: Sequence[Job], name: str) -> Job:
    """Returns the task that several tasks of one family become.

    Its steps hold trials of all of them, as many as there is room for. There are no fewer steps than the longest trial
    has, so a short task gains little beside a long one. What the family predicts is corrected as the tasks' own speeds
    are.

    Args:
        jobs: Tasks whose families have the same key, at least one.
        name: Of the new task.
    """
    families = [job.family for job in jobs if job.family is not None]
    samples = sum(job.samples for job in jobs)
    trial_steps = sum(job.samples / family.batch for job, family in zip(jobs, families, strict=True))
    widths = sorted(set.intersection(*(_widths(job) for job in jobs)))
    family = TaskFamily(
        key=families[0].key,
        trials=sum(one.trials for one in families),
        batch=samples / trial_steps if trial_steps else families[0].batch,
        slots={gpus: min(one.slots[gpus] for one in families) for gpus in widths},
        step_s={gpus: max(one.step_s[gpus] for one in families) for gpus in widths},
        sample_s={gpus: max(one.sample_s[gpus] for one in families) for gpus in widths},
        longest_steps=max(_longest_steps(one, job.samples) for job, one in zip(jobs, families, strict=True)),
    )
    speeds = {}
    for gpus in widths:
        own_s = sum(job.samples / job.speeds[gpus] for job in jobs)
        model_s = sum(_seconds(one, job.samples, gpus) for job, one in zip(jobs, families, strict=True))
        together_s = _seconds(family, samples, gpus) * (own_s / model_s if model_s else 1.0)
        speeds[gpus] = samples / together_s if together_s else jobs[0].speeds[gpus]
    return Job(name, jobs[0].tenant, speeds, samples, max(job.setup_s for job in jobs), family)


def worth_merging(
    jobs: Sequence[Job], cluster: Cluster, busy: Sequence[Busy] = (), now_s: float = 0.0, *, effort: int = 20_000
) -> list[Merging]:
    """Returns which tasks to merge.

    A merging counts if the plan of all then ends sooner or, where it ends no later, its tasks do on average. Pairs grow
    to groups, fewest trials first. All pairs are tried together, then half of them, and so on down to one: a long queue
    takes few plans.

    Args:
        jobs: Tasks that wait and have never started; those without a family stay apart.
        cluster: Where.
        busy: What runs, and until when.
        now_s: When the first can start.
        effort: Tasks that may be placed in plans, as in `portfolio.plan`; at least two plans are made.
    """
    fitting = [job for job in jobs if any(cluster.holds(width) for width in job.speeds)]
    each = max(1, effort // _PLANS)
    plans = min(_PLANS, max(2, effort // max(4 * len(fitting), each)))
    groups = [_Group((job,), job) for job in fitting]
    pairs = _pairs(groups, cluster)
    if not pairs:
        return []
    alone = best = _value(groups, cluster, busy, now_s, each)
    plans -= 1
    closed: set[str] = set()
    while pairs and plans > 0:
        tried = _joined(groups, pairs)
        value = _value(tried, cluster, busy, now_s, each)
        plans -= 1
        if _better(value, best):
            groups, best = tried, value
        elif len(pairs) > 1:
            pairs = pairs[: len(pairs) // 2]
            continue
        else:
            closed.add(pairs[0].both.key)
        pairs = [pair for pair in _pairs(groups, cluster) if pair.both.key not in closed]
    return [
        Merging(tuple(job.name for job in group.jobs), group.into, _why(group, alone, best))
        for group in groups
        if len(group.jobs) > 1
    ]


@dataclass(frozen=True)
class _Group:
    jobs: tuple[Job, ...]
    into: Job

    @property
    def key(self) -> str:
        return "" if self.into.family is None else self.into.family.key


class _Pair(NamedTuple):
    first: _Group
    second: _Group
    both: _Group


def _pairs(groups: Sequence[_Group], cluster: Cluster) -> list[_Pair]:
    """Pairs of a family that save GPU time, fewest trials first, where there is room for all trials of both at once."""
    families: dict[str, list[_Group]] = {}
    for group in groups:
        if group.into.family is not None:
            families.setdefault(group.key, []).append(group)
    found = []
    for members in families.values():
        members.sort(key=lambda group: (_trials(group), group.into.samples))
        for first, second in zip(members[::2], members[1::2], strict=False):
            if _trials(first) + _trials(second) > _room((first, second), cluster):
                continue
            jobs = first.jobs + second.jobs
            both = _Group(jobs, merged(jobs, f"{jobs[0].name}-and-{len(jobs) - 1}-more"))
            apart_s = _least_work_s(first.into, cluster) + _least_work_s(second.into, cluster)
            if _least_work_s(both.into, cluster) < apart_s * (1 - GAIN):
                found.append(_Pair(first, second, both))
    return sorted(found, key=lambda pair: _trials(pair.both))


def _least_work_s(job: Job, cluster: Cluster) -> float:
    return min(job.work_s(width) for width in job.speeds if cluster.holds(width))


def _trials(group: _Group) -> int:
    return group.into.family.trials if group.into.family is not None else 0


def _room(pair: Sequence[_Group], cluster: Cluster) -> int:
    """Trials for which there is room at once on the best width that both can use; none without one."""
    widths = filter(cluster.holds, set.intersection(*(_widths(group.into) for group in pair)))
    slots = [group.into.family.slots for group in pair if group.into.family is not None]
    return max((min(own[gpus] for own in slots) for gpus in widths), default=0)


def _widths(job: Job) -> set[int]:
    return set(job.speeds) & set(job.family.step_s) if job.family is not None else set()


def _joined(groups: Sequence[_Group], pairs: Sequence[_Pair]) -> list[_Group]:
    both = {id(pair.first): pair.both for pair in pairs}
    gone = {id(pair.second) for pair in pairs}
    return [both.get(id(group), group) for group in groups if id(group) not in gone]


def _value(
    groups: Sequence[_Group], cluster: Cluster, busy: Sequence[Busy], now_s: float, effort: int
) -> tuple[float, float]:
    """Seconds to the end of the last task, and to the end of a task on average."""
    problem = problem_of([group.into for group in groups], cluster, busy, now_s)
    listed = best_list(problem, energy_bound(problem), effort).listed
    total_s = sum(end_s * len(group.jobs) for end_s, group in zip(listed.ends_s, groups, strict=True))
    return listed.end_s, total_s / sum(len(group.jobs) for group in groups)


def _better(value: tuple[float, float], than: tuple[float, float]) -> bool:
    if value[0] < than[0] * (1 - GAIN):
        return True
    return value[0] <= than[0] and value[1] < than[1] * (1 - GAIN)


def _why(group: _Group, alone: tuple[float, float], best: tuple[float, float]) -> str:
    what = f"{len(group.jobs)} tasks with {_trials(group)} trials on one base"
    if best[0] < alone[0] * (1 - GAIN):
        return f"{what}: all tasks end in {duration(best[0])}, not {duration(alone[0])}"
    return f"{what}: tasks end after {duration(best[1])} on average, not {duration(alone[1])}"


def _longest_steps(family: TaskFamily, samples: float) -> float:
    return max(family.longest_steps, samples / (family.batch * family.trials))


def _seconds(family: TaskFamily, samples: float, gpus: int) -> float:
    together = family.batch * min(family.trials, family.slots[gpus])
    steps = max(samples / together, family.longest_steps)
    return samples * family.sample_s[gpus] + steps * family.step_s[gpus]
