"""A chat template's text depends on the row and the given day alone."""

import time
from datetime import date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import TINY
from transformers.utils import chat_template_utils

from jaxlm.data.chat.template_date import write_time
from jaxlm.data.documents import Chat, Message
from jaxlm.data.encoding import Encoder
from jaxlm.files.tokenizer import load_tokenizer
from jaxrun.process.errors import UserError

DAY = date(2026, 3, 1)
CHAT = Chat((Message("user", "a"), Message("assistant", "b")))
# As Llama 3's template has it.
LLAMA3 = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}Today: {{ date_string }}\n"
)


def written(beginning, day=None):
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = beginning + tokenizer.chat_template
    encoder = Encoder(tokenizer, day=day)
    return encoder, tokenizer.decode(encoder.encode(CHAT).tokens).partition("<|im_start|>")[0]


class Later(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 12, 24, 18, 30)


@pytest.mark.parametrize("beginning", [LLAMA3, "Today: {{ strftime_now('%d %b %Y') }}\n"])
def test_a_template_writes_the_day_that_it_is_told_whatever_the_clock_says(beginning, monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    one, other = written(beginning, DAY), written(beginning, date(2027, 11, 9))
    assert (one[1], other[1]) == ("Today: 01 Mar 2026\n", "Today: 09 Nov 2027\n")
    assert one[0].asks_for_day
    # Two encoders of one process, in turn.
    assert one[0].encode(CHAT).tokens.tolist() != other[0].encode(CHAT).tokens.tolist()
    assert one[0].prompt(CHAT).tokens.tolist() == one[0].encode(CHAT).tokens.tolist()[: len(one[0].prompt(CHAT).tokens)]


def test_without_a_day_it_is_today():
    encoder, text = written("{{ strftime_now('%Y-%m-%d') }}")
    assert text == str(encoder.day) and abs((date.today() - encoder.day).days) <= 1
    assert not written("Today")[0].asks_for_day


def test_the_time_of_day_and_the_zone_are_not_seen(monkeypatch):
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert written("{{ strftime_now('%H:%M:%S %Z %s %c %p') }}", DAY)[1] == (
            "00:00:00  1772323200 Sun Mar  1 00:00:00 2026 AM"
        )
    monkeypatch.undo()
    time.tzset()


@given(
    day=st.dates(date(1970, 1, 1), date(2100, 1, 1)),
    format=st.lists(st.sampled_from([*(f"%{one}" for one in "aAbBhdejmyYUwpcxXrHMS%"), "-", " ", "x"])).map("".join),
)
def test_time_is_written_in_english_as_the_machine_writes_it(day, format):
    assert write_time(format, day) == datetime(day.year, day.month, day.day).strftime(format)


@pytest.mark.parametrize("beginning", ["{{ ['a', 'b'] | random }}", "{{ lipsum(n=1) }}"])
def test_a_template_that_draws_at_random_is_refused(beginning):
    with pytest.raises(UserError, match="expected one that writes a row the same way every time"):
        written(beginning)


def test_a_template_that_is_none_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"chat template: line 1: .*expected valid Jinja"):
        written("{% if %}")
