"""A chat template that never ends, fills the memory or writes without end is one line; other templates still run."""

from datetime import date

import pytest
from tokenizer_files import TINY

from jaxlm.data.chat import rendering
from jaxlm.data.chat.rendering import render
from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import load_datasets
from jaxlm.data.documents import Chat, Message, RowError
from jaxlm.data.encoding import Encoder
from jaxlm.files.tokenizer import load_tokenizer
from jaxrun.process.errors import UserError
from jaxrun.untrusted import confined

CHAT = Chat((Message("user", "a"), Message("assistant", "b")))
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
FORTY = "{% for i in range(40) %}"


@pytest.fixture(autouse=True)
def little_time(monkeypatch):
    monkeypatch.setattr(confined, "LIMIT_S", 0.3)


def encoder(template):
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = template.replace("{# as it was #}", tokenizer.chat_template)
    return Encoder(tokenizer)


@pytest.mark.parametrize(
    "beginning",
    [
        LOOP,
        f"{{% set ns = namespace(n=7) %}}{FORTY}{{% set ns.n = ns.n * ns.n %}}{{% endfor %}}",
        "{{ 'a' * 10 ** 10 }}",
        f"{{% set ns = namespace(s='ab') %}}{FORTY}{{% set ns.s = ns.s ~ ns.s %}}{{% endfor %}}",
    ],
    ids=["loop", "number", "constant", "doubling"],
)
def test_a_template_without_bounds_is_one_line(beginning):
    with pytest.raises(UserError, match=r"^chat template: (takes|writes) more than [^\n]*, expected one that"):
        encoder(beginning + "{# as it was #}").encode(CHAT)
    assert encoder("{# as it was #}").encode(CHAT).tokens.size


def test_the_row_is_named_and_no_other_is_tried(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 50)
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = LOOP + tokenizer.chat_template
    with pytest.raises(UserError, match=rf"^{rows}:1: chat template: takes more than 0\.3 s"):
        load_datasets(DataConfig(train=str(rows), validation_samples=5), tokenizer)


@pytest.mark.parametrize(
    "template",
    ["a" * (rendering.LONGEST + 1), f"{{{{ {'(' * 5000}1{')' * 5000} }}}}", "{% if 1 %}" * 5000],
    ids=["long", "brackets", "blocks"],
)
def test_a_template_too_large_to_compile_is_one_line(template):
    with pytest.raises(UserError, match=r"^chat template: .*expected"):
        encoder(template)


def test_a_value_that_json_has_not_is_refused_and_not_written_as_something_else():
    turns = [{"role": "user", "content": "Hello", "sent": date(2026, 1, 2)}]
    [refused] = render("{{ messages[0].sent }}", turns, {}, [(1, False)])
    assert isinstance(refused, RowError) and "JSON has not" in str(refused)
