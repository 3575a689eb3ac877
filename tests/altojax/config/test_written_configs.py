"""A run's config.yaml, read again, comes to the same trials and rules."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altojax.cluster.service.shared_runs.merged_tasks import merged_config
from altojax.cluster.service.submission_builder import absolute
from altojax.cluster.service.verbs.serve import ServeConfig
from altojax.cluster.simulation.workload import Workload
from altojax.config.search.configurations import configurations
from altojax.config.search.space import TrialConfig
from altojax.config.tune_config import TuneConfig, model_of
from jaxrun.config.config import StrictModel, apply_override, check_config, dump_config, dump_config_json, what_was_set
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.process.errors import UserError
from twistjax.config import TwistConfig

ROOT = Path(__file__).parents[3]
BASE = {"model_name_or_path": "base"}
FIXED = {"output_dir": "runs/x", "model": BASE, "tasks": [{"name": "x", "data": {"train": "x"}}]}


def shown() -> dict[str, tuple[type[StrictModel], dict[str, Any]]]:
    """Every config that the repository has or shows, by where it stands."""
    found: dict[str, tuple[type[StrictModel], dict[str, Any]]] = {}
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        kind = {"twistjax": TwistConfig, "simulate": Workload}.get(path.parent.name, TuneConfig)
        found[str(path.relative_to(ROOT))] = kind, parse_yaml(path.read_text(), path.name)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)):
            tree = parse_yaml(block, path.name)
            if {"search", "early_exit", "mesh"} & tree.keys():
                found[f"{path.name}, block {number}"] = TuneConfig, {**FIXED, **tree}
            elif "tenants" in tree:
                found[f"{path.name}, block {number}"] = ServeConfig, tree
            elif "subnetworks" in tree:
                found[f"{path.name}, block {number}"] = TwistConfig, {"model": BASE, "data": {"train": "x"}, **tree}
    return found


SHOWN = shown()
numbers = st.integers(1, 64)
fields = {
    "lora_rank": numbers,
    "lora_alpha": st.none() | st.floats(0.5, 64),
    "use_rslora": st.booleans(),
    "target_modules": st.sampled_from(["all-linear", ["q_proj", "v_proj"], r".*\.mlp\..*"]),
    "learning_rate": st.floats(1e-6, 1),
    "warmup_ratio": st.sampled_from([0.0, 0.03, 0.05]),
    "max_grad_norm": st.sampled_from([0.0, 1.0, float("inf")]),
    "batch_size": numbers,
    "num_train_epochs": st.floats(0.1, 9),
    "train_samples": st.none() | numbers,
    "seed": st.none() | numbers,
}
configuration = st.fixed_dictionaries({}, optional=fields)
axes = st.fixed_dictionaries(
    {"target_modules": fields["target_modules"]},
    optional={
        name: one | st.lists(one, min_size=1, max_size=3) for name, one in fields.items() if "modules" not in name
    },
)
listed = st.builds(
    lambda shared, some: {**shared, "configurations": some},
    configuration,
    st.lists(configuration, min_size=1, max_size=4),
)
search = axes | listed | st.builds(lambda given, count: {**given, "trials": count}, axes, numbers)
rules = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.sampled_from(["default", "eager", "paper", "none"]),
        "overfitting": st.booleans() | st.fixed_dictionaries({}, optional={"gap": st.floats(0.0, 1.0)}),
        "blown_up": st.fixed_dictionaries({}, optional={"factor": st.just(float("inf")), "enabled": st.booleans()}),
    },
)
model = st.fixed_dictionaries(
    {"model_name_or_path": st.sampled_from(["base", "other"])},
    optional={"dtype": st.sampled_from(["auto", "float32"]), "scan_layers": st.none() | st.booleans()},
)
runs = st.builds(
    lambda first, second, other, early_exit, seed: {
        **FIXED,
        "seed": seed,
        "search": first,
        "early_exit": early_exit,
        "tasks": [
            {"name": "a", "data": {"train": "a", "max_length": 32}, "search": second},
            {"name": "b", "data": {"train": "b", "validation": None}, "model": other},
        ],
    },
    configuration,
    search,
    model,
    rules,
    numbers,
)


def checked(kind: type[StrictModel], tree: dict[str, Any]) -> Any:
    return check_config(kind, tree, "here")


def meant(config: TuneConfig) -> list[Any]:
    """All that a run takes from its config."""
    tasks = [(task.name, task.data, model_of(config, task), configurations(config, task)) for task in config.tasks]
    rest = {name: getattr(config, name) for name in TuneConfig.model_fields if name not in ("tasks", "model", "search")}
    return [tasks, rest]


def ways_to_read_again(config: StrictModel) -> list[Any]:
    kind = type(config)
    by_yaml = checked(kind, parse_yaml(dump_config(config), "written"))
    return [
        by_yaml,
        checked(kind, parse_yaml(dump_config(by_yaml), "twice")),
        kind.model_validate_json(dump_config_json(config)),
    ]


@pytest.mark.parametrize("where", SHOWN)
def test_every_config_of_the_repository_is_read_again_as_it_was(where):
    kind, tree = SHOWN[where]
    config = checked(kind, tree)
    for again in ways_to_read_again(config):
        assert again == config
        assert what_was_set(again) == what_was_set(config)
        if kind is TuneConfig:
            assert meant(again) == meant(config)


def test_all_configs_are_tried_and_one_lists_configurations_beside_shared_values():
    assert len(SHOWN) > 10
    beside = [tree["search"] for kind, tree in SHOWN.values() if kind is TuneConfig and "search" in tree]
    assert any("configurations" in one and len(one) > 1 for one in beside)


@given(runs)
def test_any_config_that_is_written_and_read_again_comes_to_the_same_trials(tree):
    config = checked(TuneConfig, tree)
    for again in ways_to_read_again(config):
        assert meant(again) == meant(config)


@given(runs)
def test_a_config_that_is_submitted_comes_to_the_same_trials(tree):
    """With absolute paths, alone and as part of a run that it shares."""
    config = checked(TuneConfig, tree)
    submitted = TuneConfig.model_validate_json(dump_config_json(absolute(config)))
    for task in config.tasks:
        assert configurations(submitted, task) == configurations(config, task)
        assert model_of(submitted, task) == model_of(config, task)
    assert submitted.early_exit == config.early_exit
    shared = TuneConfig.model_validate_json(dump_config_json(merged_config({"job-1": submitted}, "runs/shared")))
    for mine, own in zip(shared.tasks, config.tasks, strict=True):
        assert configurations(shared, mine) == configurations(config, own)


@given(
    runs, st.sampled_from(["early_exit.preset=median", "search.weight_decay=0.7", "tasks.0.search.batch_size=[3,5]"])
)
def test_an_override_means_the_same_for_a_written_config_as_for_the_first(tree, override):
    """What a default or a preset gave is not written, or it would win over what is given later."""
    if "configurations" in tree["tasks"][0]["search"] and "batch_size" in override:
        return
    once, again = what_was_set(checked(TuneConfig, tree)), parse_yaml(dump_config(checked(TuneConfig, tree)), "written")
    for one in (first := {**tree, "tasks": [dict(task) for task in tree["tasks"]]}, once, again):
        one.setdefault("early_exit", {})
        apply_override(TuneConfig, one, override)
    read = [checked(TuneConfig, one) for one in (first, once, again)]
    assert meant(read[0]) == meant(read[1]) == meant(read[2])


def test_nothing_but_what_was_set_is_written():
    tree = {**FIXED, "search": {"train_samples": 48, "configurations": [{"lora_rank": 8}, {"train_samples": None}]}}
    tree["early_exit"] = {"preset": "paper", "overfitting": {"gap": 0.2}, "diverging": False}
    written = parse_yaml(dump_config(checked(TuneConfig, tree)), "written")
    assert written == {**tree, "early_exit": {**tree["early_exit"], "diverging": False}}
    assert configurations(checked(TuneConfig, written), checked(TuneConfig, tree).tasks[0]) == [
        TrialConfig(lora_rank=8, train_samples=48),
        TrialConfig(),
    ]


def test_a_number_of_a_rule_that_is_off_is_refused_over_what_was_written_too():
    tree = {**FIXED, "early_exit": {"overfitting": False}}
    for one in (tree, parse_yaml(dump_config(checked(TuneConfig, tree)), "written")):
        with pytest.raises(UserError, match=r"early_exit\.overfitting is a plain value"):
            apply_override(TuneConfig, one, "early_exit.overfitting.gap=0.3")
