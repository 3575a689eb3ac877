"""A recorded run replayed with its own rules ends its own trials at its own steps, whatever the rules."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_runs import ends, made_up, play, write
from rich.console import Console

from altojax.cli import main
from altojax.config.tune_config import TuneConfig
from altojax.early_exit.milestones import rung_steps
from altojax.early_exit.presets import PRESETS
from altojax.early_exit.replay import RecordedTrial
from altojax.early_exit.rules import Rules
from altojax.report.recorded_curves import read_run
from altojax.report.run_record import read_record
from altojax.run.decisions import BAD_STEPS, judge, record_evaluation, settle_rungs
from altojax.run.trial import Trial, TrialProgress
from altojax.run.tuner import Tuner
from jaxrun.config.config import check_config
from jaxrun.store.journal import Journal
from jaxrun.store.records import Event

TINY = Path(__file__).parents[3] / "configs" / "tiny"


def run(rules: Rules, trials: list[Trial], random: np.random.Generator) -> tuple[list[TrialProgress], list[Event]]:
    """Takes all decisions of a run, evaluation by evaluation, in whatever order trials come to them."""
    progress, events = [TrialProgress("running") for _ in trials], []
    level, fall = random.uniform(0.5, 2, len(trials)), random.normal(-0.4, 0.5, len(trials))
    breaks = random.uniform(0, 4, len(trials))
    while any(one.phase in ("running", "waiting") for one in progress):
        i = int(random.choice([i for i, one in enumerate(progress) if one.phase in ("running", "waiting")]))
        trial, one = trials[i], progress[i]
        one.step = min(step for step in trial.eval_steps if step > one.step)
        share = one.step / trial.stream.total_steps
        loss = level[i] + fall[i] * share + random.normal(0, 0.1)
        one.loss_sum, one.loss_steps = loss + random.normal(-0.1, 0.1), 1
        if share > breaks[i]:
            one.bad_steps = BAD_STEPS if i % 2 else 0
            loss = math.nan if i % 3 else loss
        record_evaluation(trial, one, loss)
        events += judge(trial, one, rules) + settle_rungs(trials, progress, rules)
    return progress, events


@settings(max_examples=30, deadline=None)
@given(preset=st.sampled_from(sorted(PRESETS)), seed=st.integers(0, 10**6), count=st.integers(1, 11))
def test_a_replay_with_a_runs_own_rules_is_the_run(tmp_path_factory, preset, seed, count):
    changes = {"stalled": {"patience": 4}} if preset != "none" else {}
    rules = Rules.model_validate({"preset": preset, **changes}).for_curves(set())
    random = np.random.default_rng(seed)
    trials = made_up(rules, random, count)
    progress, events = run(rules, trials, random)
    recorded = read_run(write(tmp_path_factory.mktemp("run"), rules, trials, progress, events))
    assert recorded.rules == rules
    found = rung_steps(rules, [recorded.groups["task"][trial.name].schedule for trial in trials])
    assert found == [trial.rungs for trial in trials], "rungs in replay are those of the run, warm-up and all"
    assert ends(rules, recorded.groups["task"]) == {
        trial.name: one.step for trial, one in zip(trials, progress, strict=True)
    }


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_rules_replayed_on_trials_that_all_went_to_their_end_decide_what_a_run_would_have(preset):
    """The full curves are known; the rules see no more of them than a run does."""
    rules = Rules(preset=preset).for_curves(set())
    differ = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        trials = made_up(rules, random, 10)
        losses = {one.name: np.ones((2, len(one.eval_steps))) for one in trials}
        for one in losses.values():
            one[1] = random.uniform(1, 3) + random.normal(0, 0.2, one.shape[1])
        progress, _ = play(rules, trials, losses)
        full = {}
        for trial in trials:
            steps = np.array(trial.eval_steps, float)
            done = TrialProgress("done", fraction=list(steps / steps[-1]), train_loss=[1.0] * len(steps))
            done.val_loss = list(losses[trial.name][1])
            full[trial.name] = RecordedTrial(steps, int(steps[-1]), done.curve(), trial.schedule)
        found = {trial.name: one.step for trial, one in zip(trials, progress, strict=True)}
        assert ends(rules, full) == found
        differ += any(step < trial.stream.total_steps for trial, step in zip(trials, found.values(), strict=True))
    assert (differ > 8) == (preset != "none")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, few_shapes):
    """A real run, with rungs that the warm-up puts off."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "output_dir": str(folder / "run"),
        "model": {"model_name_or_path": str(TINY), "random_init": True, "dtype": "float32"},
        "search": {
            "learning_rate": [1e-4, 3e-3, 1e-2, 1e-1], "batch_size": 2, "train_samples": 40,
            "warmup_ratio": 0.15, "lora_rank": 4, "target_modules": ["q_proj"],
        },
        "early_exit": {"preset": "halving"}, "eval_samples": 0.05, "keep_adapters": "best", "slots": 3,
        "tasks": [{"name": "sums", "data": {"train": str(folder / "sums.jsonl"), "validation_samples": 6,
                                            "max_length": 32}}],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
        assert Tuner(check_config(TuneConfig, config, "x"), console=Console(quiet=True)).run() == 0
    return folder / "run"


@pytest.mark.slow
def test_a_real_run_is_replayed_to_its_own_ends(tuned):
    with Journal.read(tuned) as journal:
        record = read_record(journal)
    recorded = read_run(tuned)
    assert {trial.status for trial in record.trials} == {"completed", "stopped"}
    assert ends(recorded.rules, recorded.groups["sums"]) == {trial.trial: trial.steps for trial in record.trials}
    for trial in record.trials:
        if trial.reason == "underperforming":
            assert len(trial.validation) >= 2 and trial.steps >= math.ceil(0.15 * trial.total_steps)


@pytest.mark.slow
def test_the_verb_reads_a_runs_folder_and_says_what_its_curves_lack(tuned, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["replay", str(tuned)]) == 0
    told = capsys.readouterr().out
    assert "trials were ended early and their curves stop there" in told
    own = next(line for line in told.splitlines() if line.split()[1:2] == ["own"])
    assert "0.0%" in own, "with its own rules a run saves nothing more"
    assert main(["replay", str(tuned), "rules=own,halving"]) == 0


def test_a_run_without_curves_is_one_line(tmp_path, capsys):
    with Journal.open(tmp_path / "empty", config_text="output_dir: x\n", identity="d"):
        pass
    rules = Rules()
    trials = made_up(rules, np.random.default_rng(0), 2)
    write(tmp_path / "begun", rules, trials, [TrialProgress(), TrialProgress()], [])
    (tmp_path / "none").mkdir()
    for folder, said in (("empty", "no trials"), ("begun", "no curves yet"), ("none", "no run here")):
        assert main(["replay", str(tmp_path / folder)]) == 2
        line = capsys.readouterr().err
        assert said in line and line.count("\n") == 1


def test_own_rules_are_those_of_a_run_alone(tmp_path, capsys):
    path = tmp_path / "curves.csv"
    path.write_text("group,trial,step,max_steps,train_loss,val_loss\ng,a,1,2,1,1\ng,a,2,2,1,1\n")
    assert main(["replay", str(path), "rules=own"]) == 2
    assert "given 'own'" in capsys.readouterr().err
