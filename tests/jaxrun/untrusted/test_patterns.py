"""Patterns of users and files are matched as Python does, and none holds a program up."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrun.process.errors import UserError
from jaxrun.untrusted.patterns import LONGEST, Pattern

PATHS = ("model.layers.3.self_attn.q_proj", "model.layers.10.mlp.gate_proj", "lm_head", "")


@given(st.sampled_from([r".*\.(q|v)_proj", r"(^|.*\.)layers\.(3|7)\..*", r"[^.]*", r".*mlp.*", r"lm_head", "q_proj"]))
def test_a_pattern_matches_what_python_matches(text):
    pattern = Pattern(text, "target_modules")
    for path in PATHS:
        for kind in ("fullmatch", "match", "search"):
            found, expected = getattr(pattern, kind)(path), getattr(re, kind)(text, path)
            assert (found and found.span()) == (expected and expected.span())
        last = pattern.last(path)
        assert (last and last.span()) == next((one.span() for one in reversed(list(re.finditer(text, path)))), None)


@pytest.mark.parametrize("text", [r"(a|aa)+$", r"([a-z]|[a-z][a-z])+$"])
def test_a_pattern_that_never_comes_to_an_end_is_one_line(text):
    with pytest.raises(UserError, match=r"target_modules: .*takes too long"):
        Pattern(text, "target_modules", limit_s=0.05).fullmatch("a" * 60 + "!")


@pytest.mark.parametrize("text", ["(", "[", "a{99999999999999}", "(?<n>a)(?<n", "(" * 5000, "a" * (LONGEST + 1)])
def test_what_is_no_pattern_is_one_line(text):
    with pytest.raises(UserError, match="target_modules"):
        Pattern(text, "target_modules")
