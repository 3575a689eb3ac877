"""Decisions at evaluations and rungs."""

import math

import numpy as np
import pytest

from altojax.config.search.space import TrialConfig
from altojax.device.batch import Stream
from altojax.early_exit.rules import Rules
from altojax.run.decisions import BAD_STEPS, judge, record_evaluation, settle_rungs
from altojax.run.trial import Trial, TrialProgress

STEPS, RUNGS = 20, (5, 10)
HALVE = Rules(preset="none", halving={"first": 0.25, "eta": 2.0})
NO_RULES = Rules(preset="none")
GUARD = Rules(preset="none", not_finite={"patience": 2})


def trial(index: int = 0, *, steps: int = STEPS, rungs: tuple[int, ...] = RUNGS) -> Trial:
    stream = Stream([], 0, steps * 4, 4, 1)
    return Trial(index, "task", f"trial-{index}", TrialConfig(), {}, stream, 0, 32, (*rungs, steps), rungs)


def at_rung(loss: float, *, rung: int = 0, step: int = 5, slot: int | None = None) -> TrialProgress:
    """A trial parked at a rung after one evaluation there."""
    share = [step / STEPS]
    return TrialProgress("rung", slot, step, rung=rung, fraction=share, train_loss=[loss], val_loss=[loss])


def phases(progress: list[TrialProgress]) -> list[str]:
    return [one.phase for one in progress]


def kinds(events: list) -> list[tuple]:
    return [(event.kind, event.trial) for event in events]


def test_an_evaluation_joins_the_curve_with_the_mean_training_loss_since_the_last():
    one, progress = trial(), TrialProgress("running", 0, step=5, loss_sum=9.0, loss_steps=3)
    assert record_evaluation(one, progress, 2.5)
    assert (progress.fraction, progress.train_loss, progress.val_loss) == ([0.25], [3.0], [2.5])
    assert (progress.loss_sum, progress.loss_steps) == (0.0, 0)
    assert (progress.best_loss, progress.best_step) == (2.5, 5)


def test_only_a_lower_loss_is_a_new_best():
    one, progress = trial(), TrialProgress("running", 0)
    better = []
    for step, loss in enumerate([2.0, 2.0, 3.0, math.nan, math.inf, 1.5], start=1):
        progress.step = step
        better.append(record_evaluation(one, progress, loss))
    assert better == [True, False, False, False, False, True]
    assert (progress.best_loss, progress.best_step) == (1.5, 6)
    assert all(math.isnan(loss) for loss in progress.train_loss)
    assert progress.fraction == [step / STEPS for step in range(1, 7)]


def test_a_trial_goes_on_between_rungs_and_parks_at_one():
    one, progress = trial(), TrialProgress("running", 0, step=4)
    record_evaluation(one, progress, 1.0)
    assert judge(one, progress, NO_RULES) == [] and progress.phase == "running"
    progress.step = 5
    assert judge(one, progress, NO_RULES) == [] and progress.phase == "rung"
    passed = TrialProgress("running", 0, step=7, rung=1)
    assert judge(one, passed, NO_RULES) == [] and passed.phase == "running"
    beyond = TrialProgress("running", 0, step=19, rung=2)
    assert judge(one, beyond, NO_RULES) == [] and beyond.phase == "running"


def test_a_trial_completes_at_the_end_of_its_schedule_even_where_a_rule_would_end_it():
    one, progress = trial(), TrialProgress("running", 3, step=STEPS, val_loss=[math.nan] * 2)
    progress.train_loss, progress.fraction = [1.0] * 2, [0.5, 1.0]
    assert GUARD.after_evaluation(progress.curve()) is not None
    (event,) = judge(one, progress, GUARD)
    assert (event.kind, event.task, event.trial) == ("end", "task", "trial-0")
    assert event.payload == {
        "slot": 3, "step": STEPS, "samples": STEPS * 4,
        "status": "completed", "reason": "schedule done", "detail": "", "slot_s": 0.0,
    }  # fmt: skip
    assert (progress.phase, progress.status) == ("done", "completed")


def test_a_rule_ends_a_trial_before_its_schedule_does():
    one, progress = trial(), TrialProgress("running", 0, step=4)
    for _ in range(2):
        assert progress.phase == "running"
        record_evaluation(one, progress, math.nan)
        events = judge(one, progress, GUARD)
    assert kinds(events) == [("end", "trial-0")]
    assert (progress.phase, progress.status, progress.reason) == ("done", "stopped", "not finite")
    assert events[0].payload["samples"] == 16


@pytest.mark.parametrize(("bad_steps", "rules", "ends"), [
    (BAD_STEPS, GUARD, True),
    (BAD_STEPS - 1, GUARD, False),
    (BAD_STEPS, NO_RULES, False),
])  # fmt: skip
def test_updates_skipped_in_a_row_end_a_trial_where_the_guard_is_on(bad_steps, rules, ends):
    one, progress = trial(), TrialProgress("running", 0, step=3, bad_steps=bad_steps)
    record_evaluation(one, progress, 1.0)
    assert bool(judge(one, progress, rules)) is ends
    assert (progress.reason == "not finite") is ends
    assert (f"{BAD_STEPS} updates in a row" in progress.detail) is ends


@pytest.mark.parametrize("late", ["running", "waiting"])
def test_a_rung_waits_for_every_living_peer(late):
    trials = [trial(i) for i in range(3)]
    progress = [at_rung(1.0), at_rung(2.0), TrialProgress(late, step=4)]
    assert settle_rungs(trials, progress, HALVE) == []
    assert phases(progress) == ["rung", "rung", late]
    progress[2] = at_rung(3.0)
    events = settle_rungs(trials, progress, HALVE)
    assert kinds(events) == [("end", "trial-2"), ("rung", None)]
    assert events[-1].payload == {"index": 0, "kept": ["trial-0", "trial-1"], "ended": ["trial-2"]}
    assert phases(progress) == ["waiting", "waiting", "done"]
    assert [one.rung for one in progress[:2]] == [1, 1]
    assert progress[2].reason == "underperforming" and "ranked 3 of 3" in progress[2].detail


def test_trials_that_ended_do_not_hold_up_a_rung_and_are_not_counted_in_it():
    trials = [trial(i) for i in range(4)]
    gone = TrialProgress("done", step=2, status="stopped", reason="not finite", val_loss=[0.1], fraction=[0.1])
    gone.train_loss = [0.1]
    progress = [at_rung(1.0), gone, at_rung(2.0), TrialProgress("done", status="completed")]
    settle_rungs(trials, progress, HALVE)
    assert phases(progress) == ["waiting", "done", "done", "done"]
    assert (gone.reason, progress[2].reason) == ("not finite", "underperforming")


def test_the_last_to_reach_a_rung_may_settle_it_by_ending():
    trials = [trial(i) for i in range(3)]
    progress = [at_rung(1.0), at_rung(2.0), TrialProgress("running", 0, step=4, bad_steps=BAD_STEPS)]
    record_evaluation(trials[2], progress[2], 1.0)
    assert settle_rungs(trials, progress, HALVE) == []
    judge(trials[2], progress[2], GUARD)
    settle_rungs(trials, progress, HALVE)
    assert phases(progress) == ["waiting", "done", "done"]


def test_equal_losses_go_by_name_whatever_the_order_of_arrival():
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        trials, progress = [trial(i) for i in order], [at_rung(1.0) for _ in order]
        events = settle_rungs(trials, progress, HALVE)
        assert sorted(events[-1].payload["kept"]) == ["trial-0", "trial-1"]
        assert events[-1].payload["ended"] == ["trial-2", "trial-3"]


def test_a_trial_that_holds_its_slot_runs_on_and_a_parked_one_waits():
    trials, progress = [trial(0), trial(1)], [at_rung(1.0, slot=2), at_rung(1.1)]
    settle_rungs(trials, progress, NO_RULES)
    assert phases(progress) == ["running", "waiting"]
    assert [one.rung for one in progress] == [1, 1]


def test_a_rung_is_judged_by_what_was_known_there_and_not_later():
    """Trial 1 has run past the rung and got better since; trial 0 was better at the rung."""
    trials, progress = [trial(0), trial(1)], [at_rung(1.0), at_rung(2.0)]
    progress[1].step, progress[1].fraction = 8, [0.25, 0.4]
    progress[1].train_loss, progress[1].val_loss = [2.0, 0.5], [2.0, 0.5]
    settle_rungs(trials, progress, HALVE)
    assert phases(progress) == ["waiting", "done"]


def test_a_loss_that_is_not_finite_at_a_rung_ends_its_trial():
    trials, progress = [trial(0), trial(1)], [at_rung(math.nan), at_rung(9.0)]
    settle_rungs(trials, progress, HALVE)
    assert phases(progress) == ["done", "waiting"] and progress[0].reason == "not finite"


def test_a_trial_whose_rungs_fall_on_one_step_passes_them_one_after_the_other():
    trials = [trial(i, steps=2, rungs=(1, 1)) for i in range(4)]
    progress = [at_rung(float(i), step=1) for i in range(4)]
    for one in progress:
        one.fraction = [0.5]
    events = settle_rungs(trials, progress, HALVE)
    assert [event.payload["index"] for event in events if event.kind == "rung"] == [0, 1]
    assert phases(progress) == ["waiting", "done", "done", "done"] and progress[0].rung == 2


def test_the_next_rung_compares_the_survivors_alone():
    trials = [trial(i) for i in range(4)]
    progress = [at_rung(float(i)) for i in (3, 1, 2, 0)]
    settle_rungs(trials, progress, HALVE)
    assert phases(progress) == ["done", "waiting", "done", "waiting"]
    for i, loss in ((1, 0.1), (3, 0.2)):
        progress[i].step = 10
        record_evaluation(trials[i], progress[i], loss)
        judge(trials[i], progress[i], HALVE)
    events = settle_rungs(trials, progress, HALVE)
    assert phases(progress) == ["done", "waiting", "done", "done"]
    assert events[-1].payload == {"index": 1, "kept": ["trial-1"], "ended": ["trial-3"]}


def test_settling_twice_decides_once():
    trials, progress = [trial(i) for i in range(2)], [at_rung(1.0), at_rung(2.0)]
    assert settle_rungs(trials, progress, HALVE)
    assert settle_rungs(trials, progress, HALVE) == []
    assert settle_rungs(trials, [TrialProgress("done"), TrialProgress("done")], HALVE) == []


def test_progress_survives_a_checkpoint():
    one, progress = trial(), TrialProgress("rung", None, step=5, rung=1, loss_sum=0.1, loss_steps=2)
    record_evaluation(one, progress, math.nan)
    record_evaluation(one, progress, math.inf)
    back = TrialProgress.from_dict(progress.to_dict())
    assert np.isnan(back.val_loss[0]) and back.val_loss[1] == math.inf and back.best_loss == math.inf
    assert repr(back) == repr(progress)


def test_a_trial_that_is_added_is_compared_with_all_that_were_at_its_rung_as_they_were_then():
    """Half of five go on, rounded up: the added one is third where it is 2.5, and fourth where it is 3.5."""
    for loss, phase in ((2.5, "running"), (3.5, "done")):
        trials = [trial(i) for i in range(5)]
        progress = [at_rung(one, slot=i) for i, one in enumerate((1.0, 2.0, 3.0, 4.0))]
        settle_rungs(trials[:4], progress, HALVE)
        assert phases(progress) == ["running", "running", "done", "done"]
        for one in progress[:2]:  # they have gone on, and are better by now
            one.step, one.fraction, one.train_loss, one.val_loss = 10, [0.25, 0.5], [1.0, 0.1], [one.val_loss[0], 0.1]
            one.phase = "rung"
        added = at_rung(loss, slot=4)
        events = settle_rungs(trials, [*progress, added], HALVE)
        assert added.phase == phase
        assert progress[2].status == progress[3].status == "stopped"
        assert [event.trial for event in events if event.kind == "end" and event.trial != "trial-4"] in (
            [],
            ["trial-1"],
        )
