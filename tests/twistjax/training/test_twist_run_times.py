"""Time left of a training is predicted at its pace, in which compiling has no part."""

import pytest

from twistjax.training.run_times import TrainingTimes


def test_what_the_first_evaluation_compiles_is_not_expected_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = TrainingTimes()
    clock.add_evaluation(300.0)
    clock.training_s = 20.0
    assert clock.left_s(4, 6, 3) == pytest.approx(30.0)
    clock.add_evaluation(2.0)
    assert clock.left_s(4, 6, 3) == pytest.approx(36.0)
    assert clock.evaluation_s == 302.0
    now[0] = 400.0
    assert TrainingTimes(**clock.to_dict()).before_s == pytest.approx(400.0)
