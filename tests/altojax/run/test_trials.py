"""Trials of a task on its model and data: each once, with milestones that can be kept."""

import json
from functools import partial
from pathlib import Path

import pytest

from altojax.config.tune_config import TuneConfig
from altojax.run.prepare import prepare
from jaxrun.config.config import check_config

TINY = Path(__file__).parents[3] / "configs" / "tiny"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def prepared(tmp_path):
    """The trials of a task on the tiny base, and the lines that the user reads about them."""
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(6) for b in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(search: dict, **run):
        data = {"train": str(tmp_path / "sums.jsonl"), "validation_samples": 6, "max_length": 32}
        base = {"model_name_or_path": str(TINY), "random_init": True}
        config = {"output_dir": "x", "model": base, "search": search, "tasks": [{"name": "sums", "data": data}], **run}
        made = prepare(check_config(TuneConfig, config, "x"))
        return made.bases[0].trials, made.data["sums"].notes

    return make


@pytest.mark.parametrize(
    ("search", "count"),
    [
        ({"target_modules": ["all-linear", ALL, ["q_proj"]]}, 2),
        ({"configurations": [{"target_modules": ["v_proj"]}, {"target_modules": r".*\.v_proj"}]}, 1),
        ({"configurations": [{"lora_rank": 4}, {"lora_rank": 4, "use_rslora": True, "lora_alpha": 4.0}]}, 1),
        ({"configurations": [{"num_train_epochs": 1.0}, {"train_samples": 30}]}, 1),
        ({"min_lr_ratio": [0.0, 0.1], "lr_scheduler_type": ["linear", "cosine"]}, 3),
        ({"decay_ratio": [0.1, 0.2], "lr_scheduler_type": ["cosine", "warmup_stable_decay"]}, 3),
        ({"seed": [0, 1]}, 2),
    ],
)
def test_configurations_that_train_alike_are_one_trial_and_said(prepared, search, count):
    trials, notes = prepared(search)
    assert len(trials) == count == len({trial.identity() for trial in trials})
    said = [note for note in notes if "different trials" in note]
    assert len(said) == (search != {"seed": [0, 1]})


def test_random_draws_go_on_until_they_are_as_many_different_trials_as_asked_for(prepared):
    search = {"method": "random", "trials": 6, "target_modules": ["all-linear", ALL], "lora_rank": [1, 2, 3, 4, 5, 6]}
    for seed in range(3):
        trials, notes = prepared(search, seed=seed)
        assert len({trial.identity() for trial in trials}) == 6
        assert not any("search" in note for note in notes)


def test_where_rungs_are_later_than_the_rules_say_that_is_said(prepared):
    ranks = {"lora_rank": [1, 2], "train_samples": 160}
    prepared = partial(prepared, early_exit="cautious")
    _, notes = prepared(ranks)
    assert not any("early_exit" in note for note in notes)
    trials, notes = prepared(ranks, eval_samples=0.25)
    assert [note for note in notes if "early_exit first compares trials at 50 % of their schedules, not 10 %" in note]
    assert trials[0].rungs == (20, 24, 32)
    trials, notes = prepared(ranks, eval_samples=0.9)
    assert [note for note in notes if "early_exit compares no trials" in note]
    assert trials[0].rungs == (40, 40, 40) and trials[0].eval_steps == (36, 40)
