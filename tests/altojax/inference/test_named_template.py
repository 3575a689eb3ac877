"""A chat template that the config names goes with the run: into its adapters, and into what evaluates and asks them."""

import json

import pytest
from runs import TINY

from altojax.cli import main
from altojax.cluster.service.submission_builder import absolute
from altojax.cluster.tenancy.run_paths import reads_of
from altojax.config.tune_config import TuneConfig
from altojax.inference.loaded_model import load_adapted
from altojax.inference.model_source import find_source
from jaxlm.files.tokenizer import load_tokenizer
from jaxrun.config.config import check_config

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}> {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant> {% endif %}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, few_shapes):
    """A finished run of two tasks, one with a template of its own; the template's file is gone."""
    folder = tmp_path_factory.mktemp("named")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": str(n)}) + "\n" for n in range(8)))
    template = folder / "mine.jinja"
    template.write_text(TEMPLATE)
    data = {"train": str(rows), "max_length": 64, "validation_samples": 2}
    config = {
        "output_dir": str(folder / "run"),
        "model": {"model_name_or_path": str(TINY), "random_init": True},
        "search": {"lora_rank": [2], "train_samples": 4, "batch_size": 2, "target_modules": ["q_proj"]},
        "early_exit": {"preset": "none"},
        "tasks": [{"name": "own", "data": {**data, "chat_template": str(template)}}, {"name": "base", "data": data}],
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
        assert main(["tune", str(folder / "run.yaml")]) == 0
    template.unlink()
    return folder


def test_the_adapter_brings_the_template_it_was_trained_with(run):
    assert load_tokenizer(run / "run" / "own" / "best").chat_template == TEMPLATE
    assert load_tokenizer(run / "run" / "base" / "best").chat_template == load_tokenizer(TINY).chat_template


def test_a_run_is_evaluated_with_its_template_when_the_file_is_gone(run, capsys):
    loaded = load_adapted(find_source(str(run / "run"), task="own"))
    assert loaded.tokenizer.chat_template == TEMPLATE
    assert main(["evaluate", str(run / "run"), "task=own"]) == 0
    assert "2 rows" in capsys.readouterr().out


def test_the_same_command_needs_its_template(run, capsys):
    assert main(["tune", str(run / "run.yaml")]) == 2
    assert "chat_template: no file" in capsys.readouterr().err


def test_a_queue_is_told_where_sources_and_templates_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.csv", "mine.jinja"):
        (tmp_path / name).write_text("x")
    task = {
        "name": "t",
        "data": {"train": ["a.jsonl", {"path": "b.csv", "weight": 2.0}], "chat_template": "mine.jinja"},
    }
    tree = {"output_dir": "run", "model": {"model_name_or_path": "some/base"}, "tasks": [task]}
    config = check_config(TuneConfig, tree, "a.yaml")
    [there] = absolute(config).tasks
    assert [source.path for source in there.data.train_sources] == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv")]
    assert there.data.train_sources[1].weight == 2 and there.data.chat_template == str(tmp_path / "mine.jinja")
    assert reads_of(config) == {
        "tasks.0.data.train.0": "a.jsonl",
        "tasks.0.data.train.1": "b.csv",
        "tasks.0.data.chat_template": "mine.jinja",
    }
    named = task | {"data": {"train": "a.jsonl", "chat_template": "chatml"}}
    [there] = absolute(check_config(TuneConfig, tree | {"tasks": [named]}, "a.yaml")).tasks
    assert there.data.chat_template == "chatml"
