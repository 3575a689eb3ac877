"""What users of a queue wrote commands nobody's terminal."""

import re

import pytest
from queues import put

from altojax.cli import main


@pytest.mark.parametrize("words", [[], ["sums-1"]])
def test_a_folder_with_an_escape_sequence_in_its_name_is_shown_as_text(in_memory, capsys, words):
    put(in_memory / "queue", in_memory / "a\x1b[2J\x9bx")
    assert main(["queue", *words, f"queue={in_memory / 'queue'}"]) == 0
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", out) and "sums-1" in out
    assert (r"a\x1b[2J\x9bx" in out) == bool(words)
