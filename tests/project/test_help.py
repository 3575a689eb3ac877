"""Help, hints and error messages show only what exists and is accepted: keys, names of other tools, examples."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from altojax import cli as altojax_cli
from altojax.config.search.space import SearchSpace, TrialConfig
from altojax.config.tune_config import TuneConfig
from altojax.early_exit.rules import Rules
from jaxrun.config.cli import main
from jaxrun.config.config import check_config
from jaxrun.config.config_help import ALL, told
from jaxrun.config.config_keys import Ours, field_names, keys_of, meant
from jaxrun.config.verbs import Verb
from jaxrun.process.errors import UserError
from twistjax import cli as twistjax_cli
from twistjax.config import TwistConfig

ROOT = Path(__file__).parents[2]
VERBS: dict[str, Mapping[str, Verb]] = {"altojax": altojax_cli.VERBS, "twistjax": twistjax_cli.VERBS}
ALL_VERBS = [(program, verb) for program, verbs in VERBS.items() for verb in verbs.values()]
MODELS = list(dict.fromkeys(model for _, verb in ALL_VERBS for model in verb.models()))
SECTIONS = list(dict.fromkeys(key.section for model in MODELS for key in keys_of(model)))
DOTTED = {key.dotted for model in MODELS for key in keys_of(model)}
WIDTHS = (80, 100)
FLAT = {
    "learning_rate": "search.learning_rate",
    "per_device_train_batch_size": "search.batch_size",
    "gradient_accumulation_steps": "search.gradient_accumulation_steps",
    "lora_r": "search.lora_rank",
    "lora_alpha": "search.lora_alpha",
    "lora_target_modules": "search.target_modules",
    "max_steps": "search.train_samples",
    "warmup_steps": "search.warmup_ratio",
    "bf16": "model.dtype",
    "torch_dtype": "model.dtype",
    "gradient_checkpointing": "model.remat",
    "packing": "tasks.0.data.packing",
    "max_seq_length": "tasks.0.data.max_length",
    "dataset_path": "tasks.0.data.train",
    "eval_steps": "eval_samples",
    "save_steps": "checkpoint_samples",
    "early_stopping_patience": "early_exit.stalled.patience",
    "load_in_4bit": "model.quantize",
    "quantization": "model.quantize",
    "optim": "",
    "use_dora": "",
    "deepspeed": "mesh",
}
"""Flat keys of trainers, and where altojax has them; empty where it has none and says so."""


def shown(program: str, words: list[str], capsys) -> str:
    code = main(program, VERBS[program], words)
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), err
    return out


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_of_every_section_is_described(section):
    silent = [name for name, entry in told(section).items() if not entry.meaning or not entry.kind]
    assert not silent
    assert set(told(section)) == set(field_names(section))


@pytest.mark.parametrize(("program", "verb"), ALL_VERBS, ids=lambda one: getattr(one, "name", one))
@pytest.mark.parametrize("width", WIDTHS)
def test_the_help_of_a_verb_lists_the_keys_it_takes(program, verb, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    short = shown(program, [verb.name, "--help"], capsys)
    for model in verb.models():
        for name in field_names(model):
            assert re.search(rf"^  {name}( |$)", short, re.MULTILINE)
    if verb.models():
        long = shown(program, [verb.name, "--help", ALL], capsys)
        listed = set(re.findall(r"^  ([a-zA-Z_0-9.]+)", long, re.MULTILINE))
        assert listed >= {key.dotted for model in verb.models() for key in keys_of(model)}
        assert max(map(len, long.splitlines())) <= width
    keys = short.partition("key=value, --key=value")[2].partition("\nexamples:")[0]
    assert max(map(len, keys.splitlines()), default=0) <= width


@pytest.mark.parametrize(("program", "verb"), ALL_VERBS, ids=lambda one: getattr(one, "name", one))
def test_every_key_can_be_asked_for_alone(program, verb, capsys):
    for key in [key.dotted for model in verb.models() for key in keys_of(model)][::5]:
        assert shown(program, [verb.name, "--help", key], capsys).startswith(f"  {key}\n")
    if verb.config:
        assert main(program, VERBS[program], [verb.name, "--help", "no_such_key"]) == 2
        assert "no key 'no_such_key'" in capsys.readouterr().err


@pytest.mark.parametrize("model", [TrialConfig, TuneConfig, TwistConfig], ids=lambda model: model.__name__)
def test_defaults_that_help_shows_are_those_of_the_config(model):
    for name, entry in told(model).items():
        field = model.model_fields[name]
        if entry.default and entry.kind not in ("text",):
            value = yaml.safe_load(entry.default)
            default = field.get_default(call_default_factory=True)
            assert value == (list(default) if isinstance(default, tuple) else default) or float(value) == default


def test_an_axis_is_described_as_the_field_whose_axis_it_is():
    axes, fields = told(SearchSpace), told(TrialConfig)
    for name, entry in fields.items():
        assert (axes[name].meaning, axes[name].default) == (entry.meaning, entry.default)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_name_of_another_tool_stands_for_a_key_that_exists_or_says_why_not(section):
    keys = {key.dotted for key in keys_of(section)}
    for name, ours in section.foreign_names.items():
        one = Ours(ours) if isinstance(ours, str) else ours
        assert name not in field_names(section)
        assert one.key in keys if one.key else one.note, (name, one)
    choices = " ".join(entry.kind for entry in told(section).values())
    assert all(value in re.split(r"[^\w-]+", choices) for value in section.foreign_values.values())


@pytest.mark.parametrize("name", FLAT)
def test_flat_keys_of_trainers_are_told_their_place(name):
    [found] = meant(name, TuneConfig)
    assert found.key == FLAT[name]
    assert found.key in DOTTED if found.key else found.note
    with pytest.raises(UserError, match="unknown key") as caught:
        check_config(TuneConfig, {name: 1, "output_dir": "x", "tasks": []}, "run.yaml")
    assert found.key in str(caught.value) and found.note in str(caught.value)


@pytest.mark.parametrize("name", ["max_steps", "warmup_steps", "num_warmup_steps", "eval_steps", "save_steps"])
@pytest.mark.parametrize("model", [TuneConfig, TwistConfig])
def test_where_units_differ_the_hint_says_so(name, model):
    [found] = meant(name, model)
    assert re.search(r"it counts (samples|rows|rounds)|it is a share", found.note)


@pytest.mark.parametrize("preset", ["none", "paper", "halving"])
def test_a_bare_preset_stands_for_the_section(preset):
    assert Rules.model_validate(preset) == Rules.model_validate({"preset": preset})


@pytest.mark.parametrize("given", [False, True, 3])
def test_early_exit_that_is_no_preset_says_what_is(given):
    tree = {"output_dir": "x", "early_exit": given, "model": {"model_name_or_path": "b"}, "tasks": []}
    with pytest.raises(UserError, match=r"early_exit: expected a preset, such as none, or a section of keys: preset,"):
        check_config(TuneConfig, tree, "run.yaml")


def test_a_schedule_that_is_not_here_is_answered_with_those_that_are():
    tree = {"output_dir": "x", "search": {"lr_scheduler_type": "cosine_with_restarts"}}
    with pytest.raises(UserError) as caught:
        check_config(TuneConfig, {**tree, "model": {"model_name_or_path": "b"}, "tasks": []}, "run.yaml")
    assert "'constant', 'linear', 'cosine' or 'warmup_stable_decay'" in str(caught.value)
    assert "did you mean" not in str(caught.value)


def messages() -> list[tuple[str, str]]:
    """Every text of a `UserError` or `ValueError` that the packages raise, what is filled in left out as ``…``."""
    found = []
    for package in ("altojax", "twistjax", "jaxlm", "jaxrun"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    parts = [one for argument in node.exc.args for one in ast.walk(argument)]
                    words = [one.value for one in parts if isinstance(one, ast.Constant) and isinstance(one.value, str)]
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno}", "…".join(words)))
    return found


def test_keys_that_errors_tell_the_user_to_give_exist():
    last = {key.rpartition(".")[2] for key in DOTTED}
    named = re.compile(r"(?<![\w$.{\"'-])([a-z_]{2,}(?:\.[a-z_]+)*)=(?=[\w\"…'\[{-]|$| )")
    given = [(where, key) for where, text in messages() for key in named.findall(text.partition("expected")[2])]
    assert len(given) > 10
    assert not [(where, key) for where, key in given if key not in (*DOTTED, *last, "key")]


def test_examples_in_docstrings_of_configs_are_accepted():
    found = 0
    for section in SECTIONS:
        for text in re.findall(r"``(\w+: [^`]+)``", " ".join((section.__doc__ or "").split())):
            for key, value in yaml.safe_load(text).items():
                owners = [one for one in MODELS if key in one.model_fields]
                for owner in owners:
                    try:
                        check_config(owner, {key: value}, "docstring")
                    except UserError as error:
                        assert not re.match(rf"docstring: {key}\b", str(error)), error
                    found += 1
    assert found


def test_keys_that_readme_and_docs_name_exist():
    sections = {key.partition(".")[0] for key in DOTTED if "." in key}
    named = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for span in re.findall(r"`([^`\n]+)`", path.read_text()):
            key, equals, _ = span.partition("=")
            dotted = re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) and key.partition(".")[0] in sections
            if not re.search(r"\.(py|md|json|yaml|jsonl|png|db)$", key) and (
                dotted or re.fullmatch(r"[a-z_]+=", key + equals)
            ):
                named.append((path.name, key))
    last = {key.rpartition(".")[2] for key in DOTTED}
    assert len(named) > 5
    assert not [(path, key) for path, key in named if key not in DOTTED and key not in last]
