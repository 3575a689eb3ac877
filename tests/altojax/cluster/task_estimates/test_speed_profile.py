"""Speeds are what was measured where it was, and elsewhere what the formulas make of it; nothing is faster for free."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import make_order

from altojax.cluster.engines import worker
from altojax.cluster.task_estimates.speed_profile import (
    BaseWorkload,
    Profile,
    estimate,
    family_of,
    read_profile,
    speeds,
    workloads_from_json,
    workloads_of,
    workloads_to_json,
)
from altojax.estimates.speed_model import AdapterLoad as Load
from altojax.run.prepare import prepare
from altojax.run.run_times import Pace, RunTimes
from jaxlm.families.registry import random_config
from jaxrun.process.errors import UserError

MODEL = replace(random_config("llama"), num_layers=16, hidden_size=2048, intermediate_size=8192, num_heads=32)
KEYS = ("self_attn.q_proj", "mlp.down_proj")
LOAD = Load(MODEL, 16, KEYS, rows=2, length=512, trials=64)
WORK = BaseWorkload("one", LOAD, None, 64_000)
GPU = "NVIDIA H100 80GB HBM3"
MEASURED = Profile(
    base="one",
    length=512,
    rank=16,
    device=GPU,
    gpus=2,
    step_s=0.05,
    sample_s=0.004,
    mean_samples=64.0,
    mean_s=0.306,
    predicted_s=0.153,
    overhead=0.25,
    setup_s=40.0,
    most_tokens=16_384,
    samples=10_000,
)


def test_only_a_base_that_is_large_for_a_gpu_is_predicted_to_pay_for_gathers():
    large = replace(MODEL, num_layers=80, hidden_size=8192, intermediate_size=28672, num_heads=64, head_dim=128)

    def grows(config):
        one, two = (
            estimate([], replace(WORK, load=replace(LOAD, config=config)), GPU, gpus).line.at(64 * gpus)
            for gpus in (1, 2)
        )
        return two / one

    assert grows(MODEL) == pytest.approx(1.0)
    assert grows(large) > 1.01


def test_a_batch_of_short_texts_takes_whole_tiles_and_no_more():
    def step_s(rows, length, device):
        work = replace(WORK, load=replace(LOAD, rows=rows, length=length))
        return estimate([], work, device, 1).line.at(8 * rows)

    assert step_s(1, 8, GPU) == pytest.approx(step_s(1, 128, GPU), rel=0.02), "a tile has 128 tokens"
    assert step_s(8, 16, GPU) == pytest.approx(step_s(1, 128, GPU), rel=0.02), "which texts share"
    assert step_s(1, 129, GPU) > 1.5 * step_s(1, 128, GPU)
    assert step_s(1, 128, "cpu") > 3 * step_s(1, 16, "cpu"), "16 on a CPU"


def test_a_pace_is_the_line_through_steps_of_unlike_sizes_without_the_first_window():
    clock = RunTimes()
    clock.here = [
        (1, 8, 60.0),
        *((steps, steps * size, steps * (0.2 + 0.03 * size)) for steps, size in ((5, 8), (7, 2))),
    ]
    pace = clock.pace()
    assert (pace.steps, pace.samples) == (12, 54)
    assert pace.step_s == pytest.approx(0.2) and pace.sample_s == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([], None),
        ([(9, 72, 1.0)], None),
        ([(9, 72, 5.0), (4, 32, 2.0), (4, 33, 2.1)], Pace(8, 65, 4.1, None, None)),
        ([(9, 72, 5.0), (4, 32, 1.0), (4, 8, 2.0)], Pace(8, 40, 3.0, None, None)),  # more samples in less time
    ],
)
def test_steps_that_are_alike_or_absurd_give_their_mean_alone(windows, expected):
    clock = RunTimes()
    clock.here = windows
    assert clock.pace() == expected


def test_a_clock_measures_the_windows_of_its_own_process_only(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = RunTimes()
    for samples in (8, 8, 2):
        clock.start_training()
        clock.count_step(samples, 100, [90], [60, 60])
        now[0] += 0.1 + 0.05 * samples
        clock.stop_training()
    pace = clock.pace()
    assert (pace.steps, pace.samples) == (2, 10) and pace.sample_s == pytest.approx(0.05)
    later = RunTimes.from_dict(clock.to_dict())
    assert later.pace() is None and len(later.windows) == 3


def test_what_was_measured_is_taken_as_it_is():
    found = estimate([MEASURED], WORK, GPU, 2)
    assert found.measured and (found.line.step_s, found.line.sample_s) == (0.05, 0.004)
    # 16,384 tokens a GPU are 32 rows, less than 32 slots of two rows.
    assert (found.slots, found.samples, found.lockstep, found.setup_s) == (64, 64.0, 64.0, 40.0)
    assert found.speed == pytest.approx(64 / (0.306 * 1.25))


def test_parts_that_were_not_told_apart_keep_the_mean_that_was_measured():
    alike = MEASURED.model_copy(update={"step_s": None, "sample_s": None})
    line = estimate([alike], WORK, GPU, 2).line
    assert line.at(64) == pytest.approx(0.306) and line.step_s > 0 and line.sample_s > 0


@settings(max_examples=40, deadline=None)
@given(
    gpus=st.sampled_from([1, 2, 4, 8, 16, 64]),
    at=st.sampled_from([1, 2, 8]),
    trials=st.integers(1, 70),
    rows=st.integers(1, 9),
    slots=st.none() | st.integers(1, 40),
    device=st.sampled_from([GPU, "cpu", ""]),
    told_apart=st.booleans(),
)
def test_more_gpus_are_never_more_than_as_many_times_faster(gpus, at, trials, rows, slots, device, told_apart):
    parts = {} if told_apart else {"step_s": None, "sample_s": None}
    known = MEASURED.model_copy(update={"gpus": at, "device": device, **parts})
    work = replace(WORK, load=replace(LOAD, trials=trials, rows=rows), slots=slots)
    for profiles in ([], [known], [known.model_copy(update={"base": "other"})]):
        one, more = estimate(profiles, work, device, gpus), estimate(profiles, work, device, 2 * gpus)
        assert one.line.step_s > 0 and one.line.sample_s > 0
        assert one.samples <= one.lockstep
        assert 0 < more.speed <= 2.0001 * one.speed


def test_one_trial_gains_nothing_from_a_second_gpu():
    alone = replace(WORK, load=replace(LOAD, trials=1))
    found = speeds([MEASURED], [alone], GPU, [1, 2, 8])
    assert found[2] <= found[1] and found[8] <= found[1]


def test_a_base_that_nobody_ran_is_as_far_from_its_prediction_as_others_were():
    unknown = replace(WORK, base="two")
    before, after = (speeds(known, [unknown], GPU, [1])[1] for known in ([], [MEASURED]))
    assert after == pytest.approx(before / 2 / 1.25)  # twice the predicted seconds, and a fifth of all for evaluation
    assert speeds([MEASURED], [unknown], "cpu", [1]) == speeds([], [unknown], "cpu", [1])


def test_longer_rows_take_longer():
    long = replace(WORK, load=replace(LOAD, length=1024))
    same, longer = (estimate([MEASURED], one, GPU, 2) for one in (WORK, long))
    assert longer.line.sample_s == pytest.approx(2 * same.line.sample_s, rel=0.1) and not longer.measured


def test_bases_of_a_task_train_one_after_the_other():
    twice = speeds([MEASURED], [WORK, replace(WORK, samples=1)], GPU, [2])
    assert twice[2] == pytest.approx(speeds([MEASURED], [WORK], GPU, [2])[2])
    slow = replace(WORK, load=replace(LOAD, length=4096), samples=WORK.samples)
    alone = speeds([MEASURED], [slow], GPU, [2])[2]
    assert alone < speeds([MEASURED], [WORK, slow], GPU, [2])[2] < 2 * alone


def test_a_family_has_what_its_estimates_say():
    family = family_of([MEASURED], WORK, GPU, [1, 2], key="us/one")
    assert (family.key, family.trials, family.batch) == ("us/one", 64, 2)
    assert family.slots == {1: 32, 2: 64} and (family.step_s[2], family.sample_s[2]) == (0.05, 0.004)


def test_profiles_and_workloads_survive_the_store():
    assert Profile.model_validate_json(MEASURED.model_dump_json()) == MEASURED
    assert workloads_from_json(workloads_to_json([WORK])) == [WORK]
    assert MEASURED.key != MEASURED.model_copy(update={"gpus": 1}).key


def test_a_run_says_how_fast_it_was(tmp_path, capfd):
    order = make_order(tmp_path / "sums-1", {}, mesh="{adapter: 1}", samples=200)
    with pytest.raises(UserError, match="no run here"):
        read_profile(order.folder / "run", [])
    assert worker.main([str(order.folder), "1"]) == 0
    config = worker.read_task(order.folder)
    [work] = workloads_of(config, prepare(config))
    profile = read_profile(order.folder / "run", [work])
    assert (profile.base, profile.length, profile.rank, profile.device, profile.gpus) == (work.base, 7, 4, "cpu", 1)
    assert profile.mean_samples == 4.0 and profile.mean_s > 0 and profile.samples >= 100
    assert estimate([profile], work, "cpu", 1).measured
    assert work.samples == 400
