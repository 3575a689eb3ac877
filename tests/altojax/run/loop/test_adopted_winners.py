"""When trials adopt the best adapter of another task, what becomes of them then, and where there is none."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from altojax.config.tune_config import TuneConfig
from altojax.run.loop.starts import adopt_winners, begin_adopted, best_of, new_trial
from altojax.run.prepare import prepare
from altojax.run.trial import TrialProgress
from jaxrun.config.config import check_config

TINY = Path(__file__).parents[4] / "configs" / "tiny"


@pytest.fixture
def base(tmp_path):
    """Three tasks, of which each starts from the best of the one before; the last one searches as it learns."""
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(6) for b in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "sums.jsonl"), "validation_samples": 6, "max_length": 32}
    searches = [
        {"lora_rank": [2, 4], "target_modules": [["q_proj"], ["v_proj"]], "lora_alpha": 7.0},
        {"learning_rate": [1e-3, 1e-2]},
        {"method": "refine", "trials": 4, "learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}},
    ]
    tasks = [{"name": name, "data": data, "search": one} for name, one in zip("abc", searches, strict=True)]
    tasks[1]["init_adapter"], tasks[2]["init_adapter"] = {"best_of": "a"}, {"best_of": "b"}
    model = {"model_name_or_path": str(TINY), "random_init": True}
    given = {"output_dir": "x", "model": model, "tasks": tasks, "early_exit": "none"}
    return prepare(check_config(TuneConfig, given, "x")).bases[0]


def waiting(base) -> list[TrialProgress]:
    return [TrialProgress(phase="waiting" if one.decided else "planned") for one in base.trials]


def finish(base, progress, task: str, losses) -> None:
    own = [progress[one.index] for one in base.trials if one.task == task]
    for state, loss in zip(own, losses, strict=True):
        state.phase, state.best_loss = "done", loss


def phases(base, progress, task: str) -> list[str]:
    return [progress[one.index].phase for one in base.trials if one.task == task]


def test_a_task_begins_with_the_shape_of_the_winner_once_all_trials_before_it_have_ended(base):
    pytest.importorskip("optuna")
    progress = waiting(base)
    assert begin_adopted([base], 0, progress) == [] and phases(base, progress, "b") == ["planned"] * 2
    finish(base, progress, "a", [3.0, 2.0, 1.0, math.inf])
    progress[1].phase = "running"
    assert begin_adopted([base], 0, progress) == []
    progress[1].phase = "done"
    winner = best_of(base, progress)["a"]
    assert winner is not None and winner.name == "trial-2"
    [event] = begin_adopted([base], 0, progress)
    assert (event.kind, event.task, event.payload["from"], event.payload["lora_rank"]) == ("adopt", "b", "a/trial-2", 4)
    assert phases(base, progress, "b") == ["waiting"] * 2 and phases(base, progress, "c") == ["planned"] * 4
    for one in (one for one in base.trials if one.task == "b"):
        assert (one.config.scale, one.modules) == (winner.config.scale, winner.modules)
        assert one.decided and one.settings["lora_rank"] == 4
    assert begin_adopted([base], 0, progress) == [], "it is said once"
    finish(base, progress, "b", [0.5, 0.6])
    [event] = begin_adopted([base], 0, progress)
    assert event.payload["from"] == "b/trial-0" and phases(base, progress, "c") == ["waiting"] * 2 + ["planned"] * 2
    place = base.trials[-1]
    made = base.searches["c"].trial(place, {"learning_rate": 5e-3}, ["trial-0"])
    assert made.decided and made.modules == winner.modules and made.start.trial == "trial-0"
    assert made.config.lora_rank == base.searches["c"].largest.config.lora_rank == 4


def test_a_winner_is_adopted_anew_by_trials_that_are_read_anew(base):
    """As where a run resumes: what was adopted follows from what has ended, and changes no identity."""
    progress = waiting(base)
    before = [one.identity() for one in base.trials]
    finish(base, progress, "a", [3.0, 2.0, 1.0, 4.0])
    adopt_winners([base], progress)
    assert [str(one.start) for one in base.trials if one.task == "b"] == ["a/trial-2"] * 2
    assert [one.identity() for one in base.trials] == before and phases(base, progress, "b") == ["planned"] * 2


def test_where_no_trial_has_an_adapter_those_that_wait_for_it_end_one_after_the_other(base):
    progress = waiting(base)
    finish(base, progress, "a", [math.inf] * 4)
    ended = [*begin_adopted([base], 0, progress), *begin_adopted([base], 0, progress)]
    assert [(one.kind, one.task) for one in ended] == [("end", "b")] * 2 + [("end", "c")] * 4
    assert {(one.payload["status"], one.payload["reason"]) for one in ended} == {("stopped", "no adapter")}
    assert ended[0].payload["detail"] == "no trial of a reached a finite validation loss"
    assert begin_adopted([base], 0, progress) == []


def test_a_new_trial_is_the_winners_adapter_without_its_moments(base):
    progress = waiting(base)
    finish(base, progress, "a", [3.0, 2.0, 1.0, 4.0])
    adopt_winners([base], progress)
    kept = {"self_attn.q_proj": {"a": np.ones((2, 3, 4), np.float32), "b": np.ones((2, 4, 3), np.float32)}}
    found = new_trial(base, {"a/trial-2": kept}.__getitem__, base.trials[4])
    assert found.keys() == {"adapters", "steps"} and found["adapters"] is kept and found["steps"] == 0
    drawn = new_trial(base, {}.__getitem__, base.trials[0])
    assert all("b" not in pair for pair in drawn["adapters"].values())
