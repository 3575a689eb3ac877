"""Configs, as YAML and with keys from the command line."""

from pathlib import Path

import pytest
from damage import ANYTHING, as_json, changed, damaged
from fuzzing import fuzz
from hypothesis import strategies as st

from altojax.cluster.service.submission_builder import SubmitConfig
from altojax.cluster.service.verbs.serve import ServeConfig
from altojax.cluster.simulation.arrivals import arrivals
from altojax.cluster.simulation.workload import Workload
from altojax.config.search.configurations import configurations
from altojax.config.tune_config import TuneConfig
from jaxrun.config.config import check_config, dump_config, load_config
from jaxrun.config.strict_yaml import dump_yaml, parse_yaml
from twistjax.config import TwistConfig

CONFIGS = Path(__file__).parent.parent.parent / "configs"
WORDS = [
    word.encode()
    for word in (
        "&a ",
        "*a",
        "<<: *a",
        "<<: [*a]",
        "? ",
        "!!python/object:os.system ",
        "!!binary aGk=",
        "!!set {}",
        "!!timestamp 2026-01-01",
        "!!omap []",
        "!!int ",
        "!!float x",
        "!!null ",
        "!x ",
        "%YAML 9.9\n---\n",
        "---\n",
        "...\n",
        "\t",
        "- ",
        ": ",
        "#",
        "|\n",
        ">-\n",
        "'",
        "{",
        "0x",
        "0o9",
        "1_000",
        ".inf",
        "-.inf",
        ".nan",
        "~",
        "[]",
        "{}",
        "=",
    )
]
SERVE = """
queue: runs/queue
engine: {kind: local, gpus: 2, grace_s: 30.0}
tenants: {research: {weight: 2.0, quota: 4, users: [ann, bob]}, others: {weight: 1.0}}
policy: {plan: cp_sat, cp_sat_s: 1.0}
page: {port: 8000}
on_stop: halt
"""
SUBMIT = "queue: {gpus: [1, 2], tenant: research}\n" + (CONFIGS / "quickstart.yaml").read_text()
CASES = {
    "tune": (TuneConfig, (CONFIGS / "quickstart.yaml").read_text()),
    "twist": (TwistConfig, (CONFIGS / "twistjax" / "quickstart.yaml").read_text()),
    "submit": (SubmitConfig, SUBMIT),
    "serve": (ServeConfig, SERVE),
    "simulate": (Workload, (CONFIGS / "simulate" / "forty.yaml").read_text()),
}


def use(config) -> None:
    """What is done with a config before anything is loaded."""
    dump_config(config)
    if isinstance(config, TuneConfig):
        for task in config.tasks:
            configurations(config, task)
    if isinstance(config, Workload):
        arrivals(config, CONFIGS / "simulate")


@pytest.mark.parametrize("name", CASES)
def test_the_text_of_a_config(name, tmp_path):
    model, text = CASES[name]
    path = tmp_path / "config.yaml"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        use(load_config(model, path))

    fuzz(read, damaged(text.encode(), WORDS), *(word + b"\n" + text.encode() for word in WORDS))


@pytest.mark.parametrize("name", CASES)
def test_the_values_of_a_config(name):
    model, text = CASES[name]
    tree = parse_yaml(text, name)
    fuzz(
        lambda changed: use(check_config(model, changed, "config.yaml")),
        changed(tree).filter(lambda t: isinstance(t, dict)),
    )


@pytest.mark.parametrize("name", CASES)
def test_keys_from_the_command_line(name, tmp_path):
    model, text = CASES[name]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    tree = parse_yaml(text, name)
    names = sorted({*_names(tree), *model.model_fields, "0", "9" * 400, "x", "", " "})
    key = st.lists(st.sampled_from(names), min_size=1, max_size=4).map(".".join) | st.text(max_size=5)
    value = (
        st.text(max_size=8)
        | st.sampled_from([word.decode() for word in WORDS])
        | ANYTHING.map(lambda one: dump_yaml({"": one})[3:])
    )
    words = st.lists(st.tuples(key, value).map("=".join) | key, min_size=1, max_size=3)
    fuzz(lambda words: use(load_config(model, path, words)), words)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_traces(kind, tmp_path):
    task = {"name": "a", "speeds": {"1": 2.0, "2": 3.5}, "samples": 100, "arrival_s": 3}
    table = b"name,samples,speed_1,speed_2,arrival_s\na,100,2.0,3.5,3\nb,50,1,,\n"
    text = as_json(task) + b"\n" + as_json(task | {"name": "b"}) if kind == "jsonl" else table
    workload = Workload.model_validate({"cluster": {"a": 8}, "trace": f"trace.{kind}"})

    def read(content: bytes) -> None:
        (tmp_path / f"trace.{kind}").write_bytes(content)
        arrivals(workload, tmp_path)

    fuzz(read, damaged(text))


def _names(tree) -> set[str]:
    if isinstance(tree, dict):
        return {*map(str, tree), *(name for value in tree.values() for name in _names(value))}
    return {name for value in tree for name in _names(value)} if isinstance(tree, list) else set()
