"""A value that is typed on a command line is what its key takes: nobody's folder loses a piece to YAML."""

from pathlib import Path
from typing import Literal

import pydantic
import pytest

from jaxrun.config.config import StrictModel, load_config
from jaxrun.config.flags import read_flags
from jaxrun.process.errors import UserError


class Inner(StrictModel):
    name: str = "inner"


class Keys(StrictModel):
    folder: str = "runs"
    place: Path = Path()
    maybe: str | None = None
    line: int | str | None = None
    share: float | str = 0.0
    rows: str | list[str | Inner] = "rows"
    size: int | Literal["auto"] = "auto"
    sizes: int | list[int] = 1
    inner: list[Inner] = pydantic.Field(default=[])


TEXT = (
    "a: b",
    "x #2.jsonl",
    "[x",
    "*x",
    "&a b",
    "2026",
    "1e3",
    "true",
    "@x",
    "- x",
    "ü/ 名",
    "a\nb",
    "%x",
    "!t",
    "{a}",
)


@pytest.mark.parametrize("key", ["folder", "place", "maybe", "inner.0.name"])
@pytest.mark.parametrize("text", TEXT)
def test_a_key_of_text_takes_what_was_typed(key, text):
    for words in ([f"{key}={text}"], [f"--{key}={text}"], *([[f"--{key}", text]] if text != "--" else [])):
        found = load_config(Keys, {}, read_flags(words, [Keys])[1])
        assert str(found.inner[0].name if "." in key else getattr(found, key)) == text


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("folder='a b'", "a b"),
        ('folder="a\\tb"', "a\tb"),
        ("folder=null", "null"),
        ("maybe=null", None),
        ("maybe=~", None),
        ("maybe=", None),
        ("line=3", 3),
        ("line=0.5", "0.5"),
        ("line=true", "true"),
        ("line=a.jsonl:3", "a.jsonl:3"),
        ("share=3", 3.0),
        ("share=1e-1", 0.1),
        ("share=x # y", "x # y"),
        ("rows=2026", "2026"),
        ("rows=a #1", "a #1"),
        ("rows=[a, b]", ["a", "b"]),
        ("rows=a,b", "a,b"),
        ("size=auto", "auto"),
        ("size=8", 8),
        ("sizes=8,16", [8, 16]),
        ("sizes=[8, 16]", [8, 16]),
        ("sizes=8", 8),
    ],
)
def test_quotes_null_numbers_and_lists_are_what_they_are_in_a_config(word, value):
    assert getattr(load_config(Keys, {}, [word]), word.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("folder=", "command line: folder: given null, expected a string"),
        ("folder=a\x1b[2J", "override 'folder=a\\x1b[2J':1: not valid YAML: a control character, expected plain text"),
        ("size=x", "command line: size: given \"x\", expected a whole number or one of 'auto'"),
        ("sizes=8,,9", "override 'sizes=8,,9':1: not valid YAML: expected the node content, but found ','"),
    ],
)
def test_what_fits_no_type_is_refused(word, said):
    with pytest.raises(UserError) as refused:
        load_config(Keys, {}, [word])
    assert str(refused.value) == said


@pytest.mark.parametrize(("flag", "hint"), [("--inner.name", "inner.0.name"), ("--inner.nam", "inner.0.name")])
def test_a_flag_that_forgets_the_place_in_a_list_is_told_it(flag, hint):
    with pytest.raises(UserError, match=rf"unknown flag '{flag}' \(did you mean '{hint}'\?\)"):
        read_flags([flag, "x"], [Keys])
