"""Predicted length of a task: from schedules and rules, corrected by its journal."""

import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from altojax.cluster.scheduling.records import Progressed, Started
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.task import Task
from altojax.cluster.service.progress_monitor import ProgressMonitor, read_standing
from altojax.cluster.task_estimates.remaining_samples import TrialStanding, expected_samples
from altojax.early_exit.milestones import schedule
from altojax.early_exit.rules import Rules
from jaxrun.store.journal import Journal
from jaxrun.store.records import Event

PRESETS = ("default", "cautious", "eager", "paper", "halving", "median", "topk", "none")
RULES = {name: Rules.model_validate({"preset": name}) for name in PRESETS}


def fresh(count: int, total: int = 1000) -> list[TrialStanding]:
    return [TrialStanding(total, schedule(total // 10, total / 200, 0.03)) for _ in range(count)]


def test_without_rules_all_schedules_are_trained():
    assert expected_samples({"a": fresh(3), "b": fresh(2, 500)}, RULES["none"]) == pytest.approx(4000)


@pytest.mark.parametrize(
    ("preset", "trials", "kept"),
    [
        ("paper", 16, 0.05 + 0.95 * 0.25),
        ("topk", 16, 0.2 + 0.8 * 0.5),
        ("topk", 4, 1.0),
        ("median", 16, 0.1 + 0.9 * 0.5),
    ],
)
def test_what_rules_keep_is_counted(preset, trials, kept):
    found = expected_samples({"a": fresh(trials)}, RULES[preset]) / (1000 * trials)
    assert found == pytest.approx(kept)


@pytest.mark.parametrize(
    ("preset", "trials", "kept"),
    [
        *(("default", trials, kept) for trials, kept in ((4, 1.0), (16, 0.472), (60, 0.345))),
        *(("cautious", trials, kept) for trials, kept in ((4, 0.78), (8, 0.72), (16, 0.72), (30, 0.65), (60, 0.64))),
        *(("eager", trials, kept) for trials, kept in ((4, 0.58), (8, 0.40), (16, 0.30), (30, 0.27))),
    ],
)
def test_rules_are_expected_to_keep_nearly_what_was_measured(preset, trials, kept):
    found = expected_samples({"a": fresh(trials)}, RULES[preset]) / (1000 * trials)
    assert 0.7 * kept <= found <= kept


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(RULES)),
    st.lists(st.tuples(st.integers(1, 2000), st.floats(0, 1), st.booleans()), min_size=1, max_size=12),
)
def test_never_more_than_what_is_left_and_nothing_of_trials_that_ended(preset, drawn):
    trials = [
        TrialStanding(total, schedule(max(1, total // 8), total / 160, 0.03), int(share * total), ended)
        for total, share, ended in drawn
    ]
    left = sum(one.total - one.done for one in trials if not one.ended)
    found = expected_samples({"a": trials}, RULES[preset])
    assert 0.0 <= found <= left + 1e-6
    alone = [one for one in trials if not one.ended][:1]
    assert expected_samples({"a": alone}, RULES["none"]) == pytest.approx(sum(one.total - one.done for one in alone))


def write_checkpoint(run: Path, steps: list[int], *, ended: int = 0, elapsed_s: float = 10.0, tick: int = 1) -> None:
    with Journal.open(run, config_text="a: 1\n", identity="x") as journal:
        if not journal.events():
            journal.append(0, [Event("run_start")])
            one = {"batch_size": 2, "gradient_accumulation_steps": 1, "warmup_ratio": 0.0}
            when = {"total_steps": 50, "twice": 0.1, "warmup": 0.0}
            facts = {"task": "sums", "config": one, "total_steps": 50, "total_samples": 100, "schedule": when}
            journal.set("trials", [{**facts, "trial": f"trial-{n}"} for n in range(len(steps))])
        progress = {
            f"sums/trial-{n}": {"step": step, "phase": "done" if n < ended else "running"}
            for n, step in enumerate(steps)
        }
        manifest = {"progress": progress, "clock": {"before_s": elapsed_s}, "finished": False}
        journal.commit_checkpoint(tick, manifest, {})


def test_a_checkpoint_tells_what_would_be_left_if_the_run_died_now(tmp_path):
    assert read_standing(tmp_path / "run", RULES["none"]) is None
    write_checkpoint(tmp_path / "run", [50, 10, 20], ended=1)
    found = read_standing(tmp_path / "run", RULES["none"])
    assert found is not None
    assert (found.left, found.samples, found.trials, found.done) == (140.0, 160, 3, 1)


def test_the_scheduler_learns_of_the_start_the_samples_left_and_the_speed(tmp_path):
    now = [0.0]
    made_s = time.time()
    monitor = ProgressMonitor(made_s, look_s=5.0, clock=lambda: now[0])
    task = Task(Job("sums-1", "ann", {2: 1.0, 4: 1.5}, 300.0), 0, 0.0, 0.0)
    task.status, task.attempt, task.gpus, task.width, task.until_s = "running", 1, {"a": (0, 1)}, 2, 300.0

    def look(at_s: float) -> list:
        found = monitor.look(task, tmp_path / "run", RULES["none"], at_s)
        for event in found:
            if isinstance(event, Started):
                task.set_up = True
            else:
                task.correct(event.at_s, event.samples, event.speeds)
        return found

    assert look(1.0) == []
    assert not monitor.is_due("sums-1")
    now[0] = 6.0
    assert monitor.is_due("sums-1")
    write_checkpoint(tmp_path / "run", [5, 5, 5], elapsed_s=30.0)
    started, left = look(6.0)
    assert started == Started(6.0, "sums-1", 1)
    assert left == Progressed(6.0, "sums-1", 270.0, {})
    assert look(8.0) == [], "no checkpoint since"
    write_checkpoint(tmp_path / "run", [20, 20, 20], elapsed_s=60.0, tick=2)
    (faster,) = look(36.0)
    assert faster == Progressed(36.0, "sums-1", 180.0, {2: pytest.approx(3.0)})
    monitor.forget("sums-1")
    assert monitor.is_due("sums-1")


def test_what_an_earlier_attempt_wrote_does_not_count_as_a_start(tmp_path):
    write_checkpoint(tmp_path / "run", [5, 5, 5])
    monitor = ProgressMonitor(time.time() - 100.0)
    task = Task(Job("sums-1", "ann", {1: 1.0}, 300.0), 0, 0.0, 0.0)
    task.status, task.attempt, task.gpus, task.began_s = "running", 2, {"a": (0,)}, 110.0
    task.width = 1
    assert monitor.look(task, tmp_path / "run", RULES["none"], 111.0) == []
