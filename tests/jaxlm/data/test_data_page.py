"""Rows in docs/how-to/data.md are what is encoded, and learnt."""

import json
import re
from pathlib import Path

import pytest
from test_data_masks import with_template
from test_data_turns import TOOLS

from jaxlm.data.encoding import Encoder
from jaxlm.data.sources.formats import RowFormat, read_row

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "data.md").read_text()
SHOWN = re.findall(r"^```json\n(.*?)\n```\n\n```text\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_shows_rows():
    assert len(SHOWN) >= 6 and len(SHOWN) == PAGE.count("```json")


@pytest.mark.parametrize(("row", "written"), SHOWN)
def test_a_row_that_is_shown_is_written_as_shown(row, written):
    tokenizer = with_template(TOOLS)
    encoder = Encoder(tokenizer)
    reading = read_row(json.loads(row), RowFormat(), template=True)
    tokens, targets, _ = encoder.encode(reading.document)
    assert not reading.unused and not reading.notes and not encoder.unwritten(reading.document)
    text, learnt = "", False
    for token, target in zip([*tokens.tolist(), None], [*targets.tolist(), False], strict=True):
        text += ("⟦" if target else "⟧") * (target != learnt) + ("" if token is None else tokenizer.decode([token]))
        learnt = target
    assert text.rstrip("\n") == written
