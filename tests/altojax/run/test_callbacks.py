"""A callback sees every evaluation and may end a trial; what it decided stands, whenever the run is stopped."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from altojax.config.tune_config import TuneConfig
from altojax.early_exit.callbacks import NOBODY, Evaluation, Observers
from altojax.report.run_record import read_record
from altojax.run.tuner import Tuner
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import Interrupt
from jaxrun.store.journal import Journal


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds rows, and the runs of all tests."""
    made = tmp_path_factory.mktemp("callbacks")
    rows = [{"prompt": "x" * (1 + a), "completion": str(a)} for a in range(12)]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture(scope="module")
def tune(folder):
    """Makes a run, or resumes it; returns its exit code."""

    def run(name: str, observers: Observers = NOBODY, interrupt: Interrupt | None = None, **keys: object) -> int:
        config = load_config(TuneConfig, config_of(folder, name), keys)
        return Tuner(config, console=Console(quiet=True), observers=observers).run(interrupt or Interrupt())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
        yield run


def config_of(folder: Path, name: str) -> dict:
    """Two trials of eight steps, evaluated after every second one."""
    return {
        "output_dir": folder / name,
        "model": {"model_name_or_path": Path("configs/tiny"), "random_init": True, "dtype": "float32"},
        "search": {"target_modules": ["q_proj"], "lora_rank": 2, "learning_rate": (1e-2, 1e-3), "batch_size": 2},
        "slots": 2,
        "eval_samples": 0.25,
        "checkpoint_samples": 0.75,
        "early_exit": {"preset": "none"},
        "tasks": [
            {
                "name": "rows",
                "data": {
                    "train": folder / "rows.jsonl",
                    "validation_samples": 4,
                    "max_length": 32,
                    "chat_template": False,
                },
            }
        ],
    }


def record(folder: Path, name: str):
    with Journal.read(folder / name) as journal:
        return read_record(journal)


def log(folder: Path, name: str) -> list[str]:
    with Journal.read(folder / name) as journal:
        return journal.decision_log()


class Slower:
    """Ends the trial of the lower learning rate at its second evaluation; keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[Evaluation] = []

    def __call__(self, evaluation: Evaluation) -> str | None:
        self.seen.append(evaluation)
        slow = evaluation.settings["learning_rate"] == 1e-3
        return f"gained only {evaluation.metrics['gap']}" if slow and evaluation.fraction >= 0.5 else None


def gap(evaluation: Evaluation) -> dict[str, float]:
    return {"gap": evaluation.base_loss - evaluation.val_loss}


@pytest.fixture(scope="module")
def whole(folder, tune) -> Slower:
    """What a callback saw of a run that nobody stopped."""
    slower = Slower()
    assert tune("whole", Observers([slower], gap)) == 0
    return slower


def test_a_callback_sees_every_evaluation_as_the_journal_has_it(folder, whole):
    trials = record(folder, "whole").trials
    points = {(one.trial, point.step): point for one in trials for point in one.validation}
    assert {(one.trial, one.step) for one in whole.seen} == set(points) and len(points) == len(whole.seen) == 6
    for one in whole.seen:
        assert one.val_loss == points[one.trial, one.step].loss and one.samples == points[one.trial, one.step].samples
        assert one.best_loss <= one.val_loss and math.isfinite(one.train_loss)
        assert one.base_loss == record(folder, "whole").base_loss["rows"] and one.task == "rows"
        assert one.metrics == gap(one)
    assert len({one.metrics["gap"] for one in whole.seen}) > 2


def test_a_trial_that_a_callback_ends_is_stopped_for_its_reason_and_the_other_goes_on(folder, whole):
    kept, ended = record(folder, "whole").trials
    assert (kept.status, kept.steps) == ("completed", kept.total_steps)
    last = [one for one in whole.seen if one.trial == ended.trial][-1]
    assert (ended.status, ended.reason) == ("stopped", "callback")
    assert ended.detail == f"gained only {last.base_loss - last.val_loss}"
    assert ended.steps < ended.total_steps and ended.saved_samples > 0


def test_numbers_of_a_metric_are_in_the_journal(folder, whole):
    with Journal.read(folder / "whole") as journal:
        metrics = journal.events("metric")
    assert [(one.trial, one.payload["step"]) for one in metrics] == [(one.trial, one.step) for one in whole.seen]
    assert [one.payload["metrics"] for one in metrics] == [gap(one) for one in whole.seen]


def test_what_a_callback_decided_after_the_last_checkpoint_stands_without_the_callback(folder, tune, whole):
    """The run is killed after the decision and before the next checkpoint, which goes back to before it."""

    class Killed(BaseException):
        pass

    def kills(evaluation: Evaluation) -> None:
        if len(slower.seen) == len(whole.seen) - 1:
            raise Killed

    slower = Slower()
    with pytest.raises(Killed):
        tune("killed", Observers([slower, kills], gap))
    assert any('"callback"' in line for line in log(folder, "killed")), "the decision was recorded"
    with Journal.read(folder / "killed") as journal:
        assert journal.last_checkpoint() is None, "and is forgotten by who resumes"
    assert tune("killed", Observers(metric=gap)) == 0
    assert log(folder, "killed") == log(folder, "whole")


def test_a_stopped_run_resumes_with_its_callback_to_the_same_decisions(folder, tune, whole):
    interrupt, slower = Interrupt(), Slower()

    def stops(evaluation: Evaluation) -> None:
        interrupt.request()

    assert tune("stopped", Observers([slower, stops], gap), interrupt) == 130
    assert 0 < len(slower.seen) < len(whole.seen)
    assert tune("stopped", Observers([slower], gap)) == 0
    assert slower.seen == whole.seen
    assert log(folder, "stopped") == log(folder, "whole")


@pytest.mark.parametrize(
    ("observers", "said"),
    [
        (Observers([lambda one: True]), "callback <lambda>: returned True, expected None, or a text"),
        (Observers([lambda one: " "]), "callback <lambda>: returned ' ', expected None, or a text"),
        (Observers(metric=lambda one: 1.0), "metric: returned 1.0, expected a dict of numbers by name"),
        (Observers(metric=lambda one: {"n": np.zeros(2)}), "metric: n: returned array([0., 0.]), expected a number"),
        (Observers(metric=lambda one: {"step": 1}), "metric: named a number 'step', expected a name that no field"),
        (Observers(metric=lambda one: {"right": "all"}), "metric: right: returned 'all', expected a number"),
    ],
)
def test_what_an_observer_may_not_return_is_one_line(observers, said):
    evaluation = Evaluation("t", "trial-0", {}, 1, 1, 0.5, 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(UserError, match="expected") as caught:
        observers.verdict(observers.measured(evaluation))
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@pytest.mark.parametrize("callbacks", [None, print, [3], "print", {print}])
def test_callbacks_that_are_no_list_of_functions_are_one_line(callbacks):
    with pytest.raises(UserError, match=r"^callbacks: given .*, expected a list of functions$"):
        Observers.of(callbacks, None)
    with pytest.raises(UserError, match=r"^metric: given 'loss', expected a function, or None$"):
        Observers.of([print], "loss")
