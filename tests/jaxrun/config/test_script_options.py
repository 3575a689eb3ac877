"""Scripts take their options as the programs take keys, and what is wrong with one is one line."""

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altojax.config.tune_config import TuneConfig
from jaxrun.config.script_options import ScriptOptions
from jaxrun.process.errors import UserError

OPTIONS = {"window-s": "2.5", "out": "a=b", "parts": "laws,kernels", "train": "true", "peers": "false", "rank": "-1"}
READ = {"window_s": 2.5, "out": Path("a=b"), "parts": ["laws", "kernels"], "train": True, "peers": False, "rank": -1}


def options(config=None) -> ScriptOptions:
    made = ScriptOptions("A script.", config)
    made.add_argument("model", nargs="?", default="base")
    made.add_argument("--window-s", type=float, default=1.0)
    made.add_argument("--out", type=Path)
    made.add_argument("--parts", nargs="+", choices=("laws", "kernels", "step"), default=["step"])
    made.add_argument("--train", action="store_true")
    made.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--rank", type=int, default=8)
    return made


def spellings(name: str, value: str) -> list[list[str]]:
    names = (name, name.replace("-", "_"))
    found = [[f"{dashes}{one}={value}"] for one in names for dashes in ("", "--")] + [[f"--{names[1]}", value]]
    return found + {
        "parts": [["--parts", "laws", "kernels"], ["parts=[laws,kernels]"]],
        "train": [["--train"]],
        "peers": [["--no-peers"], ["--no_peers"]],
    }.get(name, [])


@given(data=st.data())
def test_every_spelling_of_an_option_is_the_same(data):
    chosen = data.draw(st.lists(st.sampled_from(sorted(OPTIONS)), unique=True), "options")
    words = [word for name in chosen for word in data.draw(st.sampled_from(spellings(name, OPTIONS[name])), name)]
    read = vars(options().read(["mine", *words]))
    names = [name.replace("-", "_") for name in chosen]
    assert read == vars(options().read(["mine"])) | {name: READ[name] for name in names}


def test_an_option_that_is_true_swallows_no_argument():
    assert options().read(["--train", "mine"]).model == options().read(["--rank", "4", "mine"]).model == "mine"
    assert options().read(["--", "--mine"]).model == "--mine"


def test_keys_of_a_config_are_overrides():
    words = ["--search.lora-rank", "8,16", "seed=1", "mine", "--parts", "laws", "--tasks.0.data.train=x", "rank=2"]
    read = options(TuneConfig).read(words)
    assert read.overrides == ["search.lora_rank=8,16", "seed=1", "tasks.0.data.train=x"]
    assert (read.parts, read.rank) == (["laws"], 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--windows-s", "1"], "unknown option '--windows-s' (did you mean '--window-s'?), expected one that --help"),
        (["--train=maybe"], "--train: given 'maybe', expected true or false"),
        (["--rank", "x"], "argument --rank: invalid int value: 'x'"),
        (["--rank"], "argument --rank: expected one argument"),
        (["parts=laws,all"], "argument --parts: invalid choice: 'all'"),
        (["a", "b"], "unrecognized arguments: b"),
    ],
)
def test_what_is_wrong_is_one_line(words, said):
    with pytest.raises(UserError) as caught:
        options().read(words)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--lr", "search.learning_rate"),
        ("--search.lr", "search.learning_rate"),
        ("--search.lora-rnk", "search.lora_rank"),
        ("--serch.lora_rank", "search.lora_rank"),
        ("--nothing.lora_rank", "search.lora_rank"),
        ("--tasks.0.dta.train", "tasks.0.data.train"),
        ("--xyz", None),
    ],
)
def test_an_unknown_flag_beside_a_config_is_told_the_key_that_is_meant(flag, key):
    with pytest.raises(UserError) as caught:
        options(TuneConfig).read([flag, "1"])
    assert str(caught.value).startswith(f"unknown flag '{flag}'" + (f" (did you mean '{key}'?)" if key else ""))
    assert ("did you mean" in str(caught.value)) == (key is not None)
