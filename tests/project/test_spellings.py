"""``key=value``, ``--key=value`` and ``--key value`` are one, for every key of every verb of both programs."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altojax import cli as altojax_cli
from altojax.config.tune_config import TuneConfig
from jaxrun.config.cli import main
from jaxrun.config.config import load_config
from jaxrun.config.config_help import told
from jaxrun.config.config_keys import Key, find_key, keys_of
from jaxrun.config.flags import read_flags
from jaxrun.config.verbs import Args, Verb
from twistjax import cli as twistjax_cli
from twistjax.config import TwistConfig

CONFIGS = Path(__file__).parents[2] / "configs"
VERBS: dict[str, Mapping[str, Verb]] = {"altojax": altojax_cli.VERBS, "twistjax": twistjax_cli.VERBS}
KEYED = [(program, verb) for program, verbs in VERBS.items() for verb in verbs.values() if verb.models()]
VALUES = st.text("aZ09 =-_.:{}[]'\"#\né", max_size=12).filter(lambda text: not text.startswith("--"))
TYPED = {
    "seed": "7",
    "search.lora_rank": "8,16",
    "search.learning_rate": "{min: 1e-5, max: 1e-3, log: true}",
    "tasks.0.data.train": "x",
    "tasks.1.data.train_on": "all",
    "early_exit.preset": "none",
    "search.train_samples": "8",
    "model.scan_layers": "true",
    "output_dir": "runs/--x",
}
TYPED_TWIST = {
    "seed": "7",
    "subnetworks.kappa": "0.5, 0.75",
    "training.learning_rate": "1e-3",
    "data.train": "x",
    "training.train_samples": "8",
    "model.scan_layers": "false",
}


@cache
def keys(program: str, name: str) -> list[Key]:
    return [key for model in VERBS[program][name].models() for key in keys_of(model)]


def parsed(program: str, verb: Verb, words: list[str]) -> Args:
    """What a verb is given for words, without running it."""
    seen: list[Args] = []
    record = dataclasses.replace(verb, run=lambda args: seen.append(args) or 0)
    assert main(program, {verb.name: record}, [verb.name, *words]) == 0, words
    return seen[0]


def spellings(key: str, value: str) -> list[list[str]]:
    dashed = key.replace("_", "-")
    return [
        [f"{key}={value}"],
        [f"{dashed}={value}"],
        *([f"--{name}={value}"] for name in (key, dashed)),
        *([f"--{name}", value] for name in (key, dashed)),
    ]


def takes(program: str, verb: Verb, key: str) -> set[type]:
    return set(next(found[1] for model in verb.models() if (found := find_key(model, key))))


@pytest.mark.parametrize(("program", "verb"), KEYED, ids=lambda one: getattr(one, "name", one))
@given(data=st.data())
def test_every_spelling_of_a_key_is_the_same_to_its_verb(program, verb, data):
    key = data.draw(st.sampled_from(keys(program, verb.name)), "key").dotted
    plain = takes(program, verb, key)
    value = data.draw(st.sampled_from(["true", "false"]) if bool in plain else VALUES, "value")
    placed = [f"--{one.name}=a.yaml" for one in verb.positionals]
    first, *others = [parsed(program, verb, [*words, *placed]) for words in spellings(key, value)]
    assert first.overrides == (f"{key}={value}",)
    assert all(other == first for other in others)
    assert first.values == dict.fromkeys((one.name for one in verb.positionals), "a.yaml")
    assert parsed(program, verb, [*spellings(key, value)[-1], *(["a.yaml"] * len(placed))]) == first
    if plain <= {bool, type(None)}:
        assert parsed(program, verb, [f"--{key}" if value == "true" else f"--no-{key}", *placed]) == first


@pytest.mark.parametrize(
    ("model", "path", "typed"),
    [
        (TuneConfig, CONFIGS / "quickstart.yaml", TYPED),
        (TwistConfig, CONFIGS / "twistjax" / "quickstart.yaml", TYPED_TWIST),
    ],
)
@given(data=st.data())
def test_every_spelling_gives_the_same_config(model, path, typed, data):
    chosen = data.draw(st.lists(st.sampled_from(sorted(typed)), min_size=1, unique=True), "keys")
    words = [word for key in chosen for word in data.draw(st.sampled_from(spellings(key, typed[key])), key)]
    plain, overrides = read_flags(words, [model])
    assert not plain
    expected = load_config(model, path, [f"{key}={typed[key]}" for key in chosen])
    assert load_config(model, path, overrides) == expected != load_config(model, path)


@pytest.mark.parametrize(("program", "verb"), KEYED, ids=lambda one: getattr(one, "name", one))
def test_no_argument_has_the_name_of_a_key_and_no_key_that_of_a_common_flag(program, verb):
    names = {name for model in verb.models() for name in told(model)}
    assert not names & {one.name for one in verb.positionals} and not names & {"help", "debug", "version"}


def test_doctor_takes_the_keys_of_what_submit_and_serve_read():
    doctor = VERBS["altojax"]["doctor"]
    words = ["--queue.gpus", "1,2", "--tenants.my-team.trust-remote-code", "a.yaml"]
    args = parsed("altojax", doctor, words)
    assert args.overrides == ("queue.gpus=1,2", "tenants.my-team.trust_remote_code=true")
    assert args["config"] == "a.yaml"
