"""The doctor refuses what tune refuses, in the same words, and writes nothing."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from altojax.cli import main
from altojax.config.tune_config import MAKES
from jaxlm.files.hf import save_model
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model
from jaxrun.store.journal import Journal
from jaxrun.store.run_folder import take_lock

TINY = Path(__file__).parent.parent.parent / "configs" / "tiny"


@pytest.fixture
def given(tmp_path):
    """Writes a config; keys replace others."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row number {i}"}) + "\n" for i in range(12)))
    run = {
        "output_dir": str(tmp_path / "run"),
        "model": {"model_name_or_path": str(TINY), "random_init": True},
        "search": {"lora_rank": 2, "train_samples": 4, "target_modules": ["q_proj"]},
        "early_exit": "none",
        "tasks": [{"name": "rows", "data": {"train": str(rows), "max_length": 32}}],
    }

    def write(**more):
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(run | more))
        return str(path)

    return write


def refusals(capsys, config, *more):
    """What doctor and tune say, which must be one and the same line."""
    said = []
    for verb in ("doctor", "tune"):
        assert main([verb, config, *more]) == 2, verb
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] and said[0].count("\n") == 1
    return said[0]


def files_in(folder):
    """All files but what SQLite puts beside a journal for whoever reads it."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("journal.db-")]
    return {str(path): path.read_bytes() for path in files}


def test_a_folder_of_somebody_is_refused(given, tmp_path, capsys):
    (tmp_path / "run" / "rows").mkdir(parents=True)
    assert "holds rows but no run's journal" in refusals(capsys, given())


def test_what_a_run_reads_is_not_removed_with_an_older_run(given, tmp_path, capsys):
    """Wherever it lies among the results: rows, one file of several, a chat template, the base of one task."""
    Journal.open(tmp_path / "run", config_text="a: 1\n", identity="x").close()
    inside = tmp_path / "run" / "rows"
    inside.mkdir()
    rows, template = shutil.copy(tmp_path / "rows.jsonl", inside), inside / "mine.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    base = shutil.copytree(TINY, inside / "base")
    path = given()
    for key, value in {
        "data.train.1": f"tasks.0.data.train=[{tmp_path}/rows.jsonl, {rows}]",
        "data.chat_template": f"tasks.0.data.chat_template={template}",
        "model": f"tasks.0.model={{model_name_or_path: {base}, random_init: true}}",
    }.items():
        said = refusals(capsys, path, "overwrite=true", value)
        assert said.startswith(f"altojax: error: tasks.0.{key}: ")
        assert "which overwrite removes, expected it elsewhere" in said
    assert inside.is_dir() and len(list(inside.iterdir())) == 3


def test_a_file_where_the_folder_should_be_is_refused(given, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert f"{tmp_path / 'file'}: is a file, expected a folder" in refusals(
        capsys, given(output_dir=str(tmp_path / "file"))
    )
    assert "is a file" in refusals(capsys, given(output_dir=str(tmp_path / "file" / "run")))


def test_a_place_that_cannot_be_written_is_refused(given, tmp_path, capsys, monkeypatch):
    assert "cannot be written in /proc" in refusals(capsys, given(output_dir="/proc/run"))
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **named: Path(path) != tmp_path and real(path, mode, **named))
    assert f"cannot be written in {tmp_path}" in refusals(capsys, given())
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_too_small_is_refused(given, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "1000 bytes free, expected at least" in refusals(capsys, given())


def test_a_tracker_without_its_package_is_refused(given, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    said = refusals(capsys, given(report_to=["trackio"]))
    assert "report_to: trackio needs the package trackio, which is not installed" in said


@pytest.mark.parametrize("name", [*MAKES, "Plots", "journal.db"])
def test_a_task_named_like_what_a_run_makes_is_refused(given, capsys, tmp_path, name):
    tasks = [{"name": name, "data": {"train": str(tmp_path / "rows.jsonl")}}]
    assert f"a task is named '{name}', which a run makes in its folder" in refusals(capsys, given(tasks=tasks))


@pytest.mark.slow
@pytest.mark.usefixtures("unreported", "few_shapes")
def test_a_finished_run_is_fine_another_config_and_a_live_run_are_refused_and_nothing_is_written(
    given, tmp_path, capsys
):
    config, run = given(), tmp_path / "run"
    assert main(["tune", config]) == 0
    before = files_in(run)
    capsys.readouterr()
    assert main(["doctor", config]) == 0
    capsys.readouterr()
    assert "holds a run whose config differs in" in refusals(capsys, config, "search.learning_rate=0.5")
    assert main(["doctor", config, "search.learning_rate=0.5", "overwrite=true"]) == 0
    capsys.readouterr()
    assert files_in(run) == before
    lock = take_lock(run)
    assert f"another process (process {os.getpid()} on" in refusals(capsys, config)
    os.close(lock)


DAMAGE = {
    "is missing, expected by its config": lambda tensors: tensors.popitem(),
    "is unexpected for its config": lambda tensors: tensors.update(extra=np.zeros(2, np.float32)),
    "has shape (2,), expected": lambda tensors: tensors.update({"model.norm.weight": np.zeros(2, np.float32)}),
    "weight model.norm.weight is I32, expected one of": lambda tensors: tensors.update(
        {"model.norm.weight": np.zeros(64, np.int32)}
    ),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_weights_that_cannot_be_loaded_are_refused(given, tmp_path, capsys, said):
    base = tmp_path / "base"
    _, model = load_model(TINY, dtype=jnp.float32, random_init=True)
    save_model(base, model.config, model, dtype=jnp.float32, tokenizer=load_tokenizer(TINY))
    config = given(model={"model_name_or_path": str(base)})
    assert main(["doctor", config]) == 0
    capsys.readouterr()
    tensors = load_file(base / "model.safetensors")
    DAMAGE[said](tensors)
    save_file(tensors, base / "model.safetensors")
    assert said in refusals(capsys, config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("unreported")
def test_a_run_that_was_killed_as_it_made_its_journal_begins_anew(given, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.db").touch()
    config = given()
    assert main(["doctor", config]) == 0
    assert main(["tune", config]) == 0
    assert (tmp_path / "run" / "rows" / "best").is_dir()
