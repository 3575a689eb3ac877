import sys

import numpy as np
import pytest

from altojax.report.curve_files import read_curves

pytestmark = pytest.mark.slow


def test_recorded_curves_can_be_replayed_and_some_trials_learn(script, tmp_path, monkeypatch):
    small = script("train_small_curves")
    sizes = {
        "STEPS": 40,
        "EVALUATIONS": 4,
        "TRIALS": 4,
        "GROUP": 2,
        "VALIDATION_WINDOWS": 32,
        "VALIDATION_CHARACTERS": 400,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(small, name, value)
    monkeypatch.setattr(small, "BASE_CHARACTERS", 800)
    monkeypatch.setattr(small, "TRAIN_CHARACTERS", (800,))
    for name, text in (("base", "the cat sat on the mat. "), ("other", "a dog ran in the fog, and sat. ")):
        (tmp_path / f"{name}.txt").write_text(text * 60)
    arguments = [str(tmp_path / name) for name in ("curves.csv", "base.txt", "other.txt")]
    monkeypatch.setattr(sys, "argv", ["train_small_curves.py", *arguments])
    small.main()
    groups = read_curves(arguments[0])
    assert list(groups) == ["other-full-0", "other-full-1", "other-lora-0", "other-lora-1"]
    curves = [trial.curve.val_loss for trials in groups.values() for trial in trials.values()]
    assert [len(curve) for curve in curves] == [4] * 8
    assert np.nanmin(curves) < 0.8 * np.nanmax([curve[0] for curve in curves])
