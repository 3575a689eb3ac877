"""Wall-clock times of a run, and of the same work one trial at a time."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from runs import write_run

from altojax.report.figures import run_pictures
from altojax.report.page import report_page
from altojax.report.run_record import read_record
from altojax.report.write_report import write_report
from altojax.run.run_times import RunTimes
from jaxrun.store.journal import Journal


@pytest.fixture
def clock(monkeypatch):
    """A clock and the seconds that it is told."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return RunTimes(), now


def train(clock, now, step_s, token_s, windows):
    """Trains windows of (steps, tokens of a step, trials), each trial of which has its share of the tokens alone."""
    for steps, tokens, trials in windows:
        clock.start_training()
        for _ in range(steps):
            clock.count_step(trials, tokens, [tokens], [tokens // trials] * trials)
            now[0] += step_s + token_s * tokens
        clock.stop_training()


WINDOWS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 40).map(lambda k: 120 * k), st.integers(1, 5)), min_size=2, max_size=6
)


@given(WINDOWS, st.floats(0.001, 1), st.floats(1e-6, 1e-2))
def test_both_sides_have_the_same_work_and_the_same_other_times(windows, step_s, token_s):
    assume(max(t for _, t, _ in windows) > 1.3 * min(t for _, t, _ in windows))
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: now[0])
        clock = RunTimes(setup_s=40.0)
        train(clock, now, step_s, token_s, windows)
        for piece, seconds in (("evaluation_s", 7.0), ("checkpoint_s", 2.0), ("exchange_s", 3.0)):
            now[0] += seconds
            clock.add(piece, seconds)
        now[0] += 11.0  # a compilation
        steps = sum(count * trials for count, _, trials in windows)
        tokens = sum(count * (tokens // trials) * trials for count, tokens, trials in windows)
        other = 40.0 + 7.0 + 2.0 + 11.0
        assert clock.whole_s == pytest.approx(other + 3.0 + clock.training_s)
        assert clock.alone_s() == pytest.approx(other + step_s * steps + token_s * tokens, rel=1e-6)


def test_steps_that_are_alike_tell_nothing(clock):
    clock, now = clock
    assert clock.alone_s() is None and clock.fixed_s() == 0.0
    train(clock, now, 0.1, 0.001, [(3, 240, 2), (4, 250, 2)])
    assert clock.alone_s() is None and clock.fixed_s() == 0.0


def test_what_steps_take_whatever_their_tokens_is_told_from_windows_that_differ(clock):
    clock, now = clock
    train(clock, now, 0.5, 0.002, [(10, 100, 1), (20, 25, 1), (5, 800, 2)])
    assert clock.fixed_s() == pytest.approx(35 * 0.5)


def test_where_more_tokens_take_less_time_steps_take_it_all(clock):
    clock, now = clock
    train(clock, now, 0.5, -0.001, [(10, 100, 1), (10, 300, 3)])
    assert clock.fixed_s() == pytest.approx(clock.training_s)


def test_a_clock_goes_on_where_it_was(clock):
    clock, now = clock
    train(clock, now, 0.5, 0.002, [(10, 100, 1), (5, 800, 2)])
    again = RunTimes.from_dict(clock.to_dict())
    now[0] += 5.0
    assert again.whole_s == pytest.approx(clock.whole_s)
    assert again.alone_s() == pytest.approx(clock.alone_s())


def test_compilations_have_no_part_in_the_pace(clock):
    clock, now = clock
    clock.start_training()
    now[0] += 1.0
    clock.add("exchange_s", 60.0)
    assert clock.working_s == 0.0, "nothing was fetched yet"
    clock.count_step(1, 100, [100], [100])
    clock.stop_training()
    clock.start_training()
    now[0] += 1.0
    assert clock.working_s == pytest.approx(2.0)
    now[0] += 100.0
    clock.leave_out(100.0)
    assert clock.working_s == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("alone_s", "said"),
    [
        (2521.0, ("2.0×", "42 min 01 s")),
        (660.5, ("0.5×", "11 min 00 s")),
        (1250.0, ("1.0×", "20 min 50 s")),
    ],
)
def test_a_report_says_which_is_faster(tmp_path, alone_s, said):
    folder = write_run(tmp_path / "run", tasks=("sql",), trials=3)
    with Journal.read(folder) as journal:
        record = read_record(journal)
    record = dataclasses.replace(record, clock={**record.clock, "alone_s": alone_s})
    page = report_page(folder, record, {"sql": []}, [], "x: 1\n")
    tile = "<dt>the same steps one trial at a time (estimate, {} this run)</dt><dd>{}</dd>"
    assert tile.format(*said) in page


def test_where_nothing_can_be_said_of_one_at_a_time_nothing_is(tmp_path):
    folder = write_run(tmp_path / "run", tasks=("sql",), trials=3)
    with Journal.read(folder) as journal:
        record = read_record(journal)
    silent = dataclasses.replace(record, clock={**record.clock, "alone_s": None})
    assert all("one trial at a time" not in picture.caption for picture in run_pictures(silent))
    assert any("one trial at a time" in picture.caption for picture in run_pictures(record))
    write_report(folder)
