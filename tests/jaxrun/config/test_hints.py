"""A hint names what was meant, or nothing: it is strict about spelling, and knows what other tools call a key."""

import json
from typing import ClassVar

import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxrun.config.config import StrictModel, check_config
from jaxrun.config.config_keys import Ours
from jaxrun.process.errors import UserError, misspelt, nearest

NAMES = (
    "learning_rate", "lora_rank", "lora_alpha", "use_rslora", "warmup_ratio", "train_samples", "random_init", "top_k",
    "adam_beta1", "max_length", "seed", "constant", "cosine", "linear", "warmup_stable_decay", "output_dir",
)  # fmt: skip


def slips(one: str, other: str) -> int:
    """Fewest insertions, deletions and substitutions, by the plain recurrence."""
    rows = [list(range(len(other) + 1))]
    for i, mine in enumerate(one, start=1):
        rows.append([i])
        for j, its in enumerate(other, start=1):
            rows[i].append(min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (mine != its)))
    return rows[-1][-1]


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        ("load_in_4bit", "random_init"),
        ("cosine_with_restarts", "constant"),
        ("warmup_steps", "warmup_ratio"),
        ("max_samples", "train_samples"),
        ("min_length", "max_length"),
        ("use_lora", "use_rslora"),
        ("eval_batch_size", "batch_size"),
        ("top_p", "top_k"),
        ("adam_beta3", "adam_beta1"),
        ("trial-08", "trial-07"),
        ("qwen3_moe", "qwen3"),
        ("r", "lr"),
    ],
)
def test_a_name_that_means_something_else_is_no_hint(given, valid):
    assert misspelt(given, [valid]) is None


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lerning_rate", "learning_rate"),
        ("learnign_rate", "learning_rate"),
        ("learningRate", "learning_rate"),
        ("LEARNING-RATE", "learning_rate"),
        ("cosin", "cosine"),
        ("warmup_satble_deacy", "warmup_stable_decay"),
        ("sead", "seed"),
    ],
)
def test_a_misspelt_name_is_found(given, meant):
    assert misspelt(given, NAMES) == meant


def test_of_two_that_are_as_near_none_is_named():
    assert misspelt("tran", ["trial", "train"]) == "train"
    assert misspelt("traix", ["trait", "train"]) is None


@settings(deadline=None)
@given(st.one_of(st.text("abdeilmnorstu_", max_size=16), st.sampled_from(NAMES).map(lambda name: name[3:] + name[:3])))
@example("load_in_4bit")
@example("cosine_with_restarts")
def test_a_hint_is_never_further_than_a_slip_for_each_word(name):
    found = misspelt(name, NAMES)
    assert nearest(name, NAMES) == (f" (did you mean '{found}'?)" if found else "")
    if found:
        plain, theirs = name.replace("_", ""), found.replace("_", "")
        # A slip exchanges two letters at most, which is two substitutions; a word of eight letters may have two.
        allowed = sum(0 if len(word) < 3 else 2 if len(word) < 8 else 4 for word in found.split("_"))
        assert slips(plain, theirs) <= allowed


@settings(deadline=None)
@given(st.sampled_from([name for name in NAMES if len(name) > 5]), st.data())
def test_one_slip_in_a_word_is_always_found(name, data):
    places = [at for at in range(len(name)) if name[at].isalpha() and len(word_at(name, at)) > 3]
    at = data.draw(st.sampled_from(places))
    how = data.draw(st.sampled_from(["drop", "double", "wrong"]))
    written = name[:at] + {"drop": "", "double": 2 * name[at], "wrong": "q"}[how] + name[at + 1 :]
    assert misspelt(written, NAMES) == name


def word_at(name: str, at: int) -> str:
    return name[name.rfind("_", 0, at) + 1 :].partition("_")[0]


class Data(StrictModel):
    train: str = "x"
    max_length: int = 8
    foreign_names: ClassVar[dict[str, str | Ours]] = {"cutoff_len": "max_length"}


class Early(StrictModel):
    patience: int = 1
    limit: int = 1


class Other(StrictModel):
    patience: int = 1
    limit: int = 1


class Third(StrictModel):
    patience: int = 1


class Task(StrictModel):
    name: str = "a"
    data: Data = Data()


class Model(StrictModel):
    dtype: str = "auto"
    foreign_names: ClassVar[dict[str, str | Ours]] = {
        "bf16": Ours("dtype", "it takes bfloat16"),
        "load_in_4bit": Ours(note="not supported yet"),
    }


class Run(StrictModel):
    model: Model = Model()
    tasks: list[Task] = pydantic.Field(default=[])
    named: dict[str, Data] = pydantic.Field(default={})
    early: Early = Early()
    other: Other = Other()
    third: Third = Third()


@pytest.mark.parametrize(
    ("tree", "hint"),
    [
        ({"dtype": "x"}, " (did you mean 'model.dtype'?)"),
        ({"bf16": True}, " (did you mean 'model.dtype'? it takes bfloat16)"),
        ({"load_in_4bit": True}, " (not supported yet)"),
        ({"model": {"load_in_4bit": True}}, " (not supported yet)"),
        ({"cutoff_len": 3}, " (did you mean 'named.NAME.max_length'?)"),
        ({"tasks": [{}, {"cutoff_len": 3}]}, " (did you mean 'tasks.1.data.max_length'?)"),
        ({"tasks": [{"data": {"dtype": "x"}}]}, " (did you mean 'model.dtype'?)"),
        ({"tasks": [{"data": {"cutoff_len": 3}}]}, " (did you mean 'max_length'?)"),
        ({"patience": 3}, ""),
        ({"limit": 3}, " (did you mean 'early.limit' or 'other.limit'?)"),
        ({"max_lenght": 3}, " (did you mean 'named.NAME.max_length'?)"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_its_own(tree, hint):
    with pytest.raises(UserError) as caught:
        check_config(Run, json.loads(json.dumps(tree)), "run.yaml")
    said = str(caught.value)
    assert said.endswith(f"expected one of {said.rpartition('expected one of ')[2].partition(' (')[0]}{hint}")


def test_all_wrong_keys_are_named_with_what_they_stand_for():
    with pytest.raises(UserError) as caught:
        check_config(Run, {"dtype": "x", "bf16": True, "load_in_4bit": True, "nothing": 1}, "run.yaml")
    assert str(caught.value).endswith("; also wrong: bf16 (model.dtype), load_in_4bit, nothing")
