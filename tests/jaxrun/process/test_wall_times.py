"""Wall-clock times accumulate over the parts of a run, without the time between them."""

import pytest

from jaxrun.process.wall_times import WallTimes


@pytest.fixture
def now(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_times_of_a_resumed_run_are_those_of_all_its_parts(now):
    first = WallTimes()
    with first.measure("checkpoint_s"):
        now[0] = 3.0
    first.add("training_s", 2.0)
    first.tokens = 8
    kept = first.to_dict()
    assert kept == {"before_s": 3.0, "training_s": 2.0, "evaluation_s": 0.0, "checkpoint_s": 3.0, "tokens": 8}
    now[0] = 1000.0
    second = WallTimes.from_dict(kept)
    now[0] = 1001.0
    assert second.elapsed_s == pytest.approx(4.0) and second.tokens_per_s == pytest.approx(4.0)


def test_a_piece_is_counted_when_it_fails_and_must_exist(now):
    times = WallTimes()
    with pytest.raises(RuntimeError), times.measure("evaluation_s"):
        now[0] = 5.0
        raise RuntimeError
    assert times.evaluation_s == pytest.approx(5.0)
    with pytest.raises(AttributeError):
        times.add("evaluations_s", 1.0)
