"""Merging: a merged task does its members' work in fewer steps, and is made only where the plan ends sooner."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moldable import quick

from altojax.cluster.scheduling.planning.merging import merged, worth_merging
from altojax.cluster.scheduling.planning.portfolio import plan
from altojax.cluster.scheduling.resources.job import Job, TaskFamily
from altojax.cluster.scheduling.resources.nodes import Cluster

families = st.builds(
    lambda trials, batch, slots, step_s, sample_s: TaskFamily(
        "k", trials, batch, {1: slots, 2: 2 * slots}, {1: step_s, 2: 1.2 * step_s}, {1: sample_s, 2: 0.5 * sample_s}
    ),
    st.integers(1, 8),
    st.sampled_from([1.0, 2.0, 8.0]),
    st.sampled_from([2, 4, 16]),
    st.floats(0.01, 1.0),
    st.floats(0.001, 0.1),
)


def speeds_of(family):
    """Samples a second of a task alone: every step pays the base once for the trials in slots."""
    together = {gpus: family.batch * min(family.trials, slots) for gpus, slots in family.slots.items()}
    return {gpus: many / (family.step_s[gpus] + family.sample_s[gpus] * many) for gpus, many in together.items()}


def task(name, family, samples=1000.0, setup_s=10.0, faster=1.0, tenant="us"):
    speeds = {gpus: speed * faster for gpus, speed in speeds_of(family).items()}
    return Job(name, tenant, speeds, samples, setup_s, family)


def family(trials=1, slots=8, step_s=0.9, sample_s=0.1, key="k"):
    return TaskFamily(key, trials, 1.0, {1: slots}, {1: step_s}, {1: sample_s})


@quick
@given(st.lists(st.tuples(families, st.floats(10.0, 1e5), st.floats(0.5, 2.0)), min_size=2, max_size=4))
def test_together_is_no_slower_than_one_after_the_other_and_no_faster_than_the_longest(drawn):
    same = drawn[0][0]
    jobs = [
        task(f"t{number}", TaskFamily(same.key, one.trials, one.batch, same.slots, same.step_s, same.sample_s), samples)
        for number, (one, samples, _) in enumerate(drawn)
    ]
    whole = merged(jobs, "all")
    for gpus in (1, 2):
        apart_s = [job.samples / job.speeds[gpus] for job in jobs]
        together_s = whole.samples / whole.speeds[gpus]
        steps = [job.samples / (job.family.batch * job.family.trials) for job in jobs]
        assert together_s <= sum(apart_s) * (1 + 1e-9)
        assert together_s >= max(steps) * same.step_s[gpus] + whole.samples * same.sample_s[gpus] - 1e-6
    assert whole.samples == pytest.approx(sum(job.samples for job in jobs))
    assert whole.family.trials == sum(job.family.trials for job in jobs)


def test_four_tasks_of_one_trial_share_every_step():
    jobs = [task(name, family()) for name in "abcd"]
    whole = merged(jobs, "all")
    assert jobs[0].duration_s(1) == pytest.approx(10 + 1000 * (0.9 + 0.1))
    assert whole.duration_s(1) == pytest.approx(10 + 1000 * (0.9 + 4 * 0.1))


def test_a_short_task_saves_only_its_own_steps():
    whole = merged([task("long", family(), 1000.0), task("short", family(), 10.0)], "both")
    assert whole.samples / whole.speeds[1] == pytest.approx(1000 * 0.9 + 1010 * 0.1)
    later = merged([whole, task("third", family(), 10.0)], "all")
    assert later.samples / later.speeds[1] == pytest.approx(1000 * 0.9 + 1020 * 0.1)


def test_measured_speeds_correct_what_the_family_says():
    plain, fast = (merged([task(name, family(), faster=factor) for name in "ab"], "x") for factor in (1.0, 2.0))
    assert fast.speeds[1] == pytest.approx(2 * plain.speeds[1])


def test_a_full_cluster_merges_and_the_plan_ends_sooner():
    jobs, cluster = [task(f"t{number}", family()) for number in range(8)], Cluster({"a": 2})
    made = worth_merging(jobs, cluster)
    assert sorted(name for one in made for name in one.jobs) == [job.name for job in jobs]
    after = plan([one.into for one in made], cluster)
    assert after.makespan_s < 0.5 * plan(jobs, cluster).makespan_s
    assert "all tasks end in 21 min 50 s, not 1 h 07 min" in made[0].why
    assert made[0].into.name == f"{made[0].jobs[0]}-and-3-more"


def test_where_gpus_are_idle_tasks_stay_apart():
    assert worth_merging([task(f"t{number}", family()) for number in range(8)], Cluster({"a": 8})) == []


def test_tasks_are_not_merged_beyond_the_room_for_their_trials():
    jobs = [task(f"t{number}", family(trials=3, slots=8)) for number in range(6)]
    made = worth_merging(jobs, Cluster({"a": 1}))
    assert [len(one.jobs) for one in made] == [2, 2, 2]


def test_only_tasks_of_one_family_are_merged():
    jobs = [task("a", family()), task("b", family(key="other")), Job("c", "us", {1: 1.0}, 100.0)]
    assert worth_merging(jobs, Cluster({"a": 1})) == []


def test_while_a_long_task_decides_the_end_merging_must_help_the_mean():
    jobs = [Job("long", "us", {1: 1.0}, 1e6), *(task(f"t{number}", family()) for number in range(4))]
    made = worth_merging(jobs, Cluster({"a": 2}))
    assert made and all("on average" in one.why for one in made)


def test_a_family_that_gains_nothing_does_not_keep_another_from_merging():
    nothing = [task(f"n{number}", family(step_s=0.0, key="nothing"), setup_s=0.0) for number in range(3)]
    gains = [task(f"g{number}", family(trials=2)) for number in range(4)]
    made = worth_merging(nothing + gains, Cluster({"a": 1}))
    assert made and all(name.startswith("g") for one in made for name in one.jobs)


def test_a_long_queue_takes_few_plans():
    jobs = [task(f"t{number}", family()) for number in range(1000)]
    cluster = Cluster({"a": 8, "b": 8})
    made = worth_merging(jobs, cluster, effort=8000)
    assert sum(len(one.jobs) for one in made) == 1000
