"""The public file of curves: one row an evaluation, each average in the column of its window, no group twice."""

import csv
import gzip
import re

import pytest

from altojax.config.search.space import TrialConfig
from altojax.config.tune_config import TuneConfig
from altojax.report.curve_files import read_curves
from jaxrun.config.config import check_config, dump_config
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal
from jaxrun.store.records import Point


def run(folder, windows, seed=3):
    """A run of one trial, evaluated at the steps 2 and 4; its averages only at the end."""
    given = {"output_dir": "x", "model": {"model_name_or_path": "base"}, "average": {"windows": windows}}
    config = check_config(TuneConfig, {**given, "tasks": [{"name": "task", "data": {"train": "x.jsonl"}}]}, "x")
    settings = TrialConfig(learning_rate=2e-4, lora_rank=16, warmup_ratio=0.03, batch_size=2).model_dump(mode="json")
    facts = {"task": "task", "trial": "trial-0", "config": {**settings, "seed": seed}}
    sizes = {"total_steps": 4, "total_samples": 8, "schedule": {"total_steps": 4, "twice": 1.0, "warmup": 0.03}}
    splits = ["average", *(f"average_{window}" for window in range(2, len(windows) + 1))]
    points = [Point("task", "trial-0", step, 0, 0, split, loss)
              for step, losses in ((2, (1.0, 0.5)), (4, (0.75, 0.25)))
              for split, loss in zip(("train", "validation"), losses, strict=True)]  # fmt: skip
    points += [Point("task", "trial-0", 4, 0, 0, split, window / 8) for split, window in zip(splits, windows)]  # noqa: B905
    with Journal.open(folder, config_text=dump_config(config), identity="d") as journal:
        journal.set("trials", [{**facts, **sizes}])
        journal.append(0, [], points)
    return str(folder)


def test_each_average_is_in_the_column_of_its_window(script, tmp_path):
    packed = script("gather_curves").gathered([run(tmp_path / "run", [3.0, 8.0])])
    first, last = csv.DictReader(gzip.decompress(packed).decode().splitlines())
    assert (last["average_val_loss"], last["average_val_loss_2"], last["average_val_loss_3"]) == ("1", "0.375", "")
    assert (first["average_val_loss"], first["val_loss"], first["train_loss"]) == ("", "0.5", "1")
    names = ("group", "schedule", "learning_rate", "rank", "batch_size", "warmup_ratio", "step", "max_steps")
    assert [first[name] for name in names] == ["task-3", "cosine", "0.0002", "16", "2", "0.03", "2", "4"]


def test_files_and_runs_are_put_together_and_read_back(script, tmp_path):
    gathered, path = script("gather_curves").gathered, tmp_path / "curves.csv.gz"
    path.write_bytes(gathered([run(tmp_path / "one", [8.0])]))
    both = gathered([str(path), run(tmp_path / "two", [8.0], seed=4)])
    assert both == gathered([str(path), str(tmp_path / "two")]), "the same bytes each time"
    path.write_bytes(both)
    assert {name: list(trials) for name, trials in read_curves(path).items()} == {
        "task-3": ["trial-0"],
        "task-4": ["trial-0"],
    }
    with pytest.raises(UserError, match=re.escape(f"two: group task-4 is in {path} too, expected each once")):
        gathered([str(path), str(tmp_path / "two")])


def test_what_has_no_column_and_what_is_no_such_file_are_refused(script, tmp_path):
    gathered = script("gather_curves").gathered
    with pytest.raises(UserError, match=r"run: average.windows: given 5, expected some of 8, 3, 30"):
        gathered([run(tmp_path / "run", [5.0])])
    other = tmp_path / "other.csv.gz"
    other.write_bytes(gzip.compress(b"group,trial\ng,a\n"))
    with pytest.raises(UserError, match=r"other.csv.gz: its columns are others, expected group, trial, schedule"):
        gathered([str(other)])
    other.write_text("group,trial\n")
    with pytest.raises(UserError, match=r"other.csv.gz: .* expected a run's folder or a file of this script"):
        gathered([str(other)])
