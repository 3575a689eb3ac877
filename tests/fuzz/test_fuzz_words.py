"""Words after a verb on the command line: bad files, folders and names, and settings of every kind."""

import pytest
from damage import SCALARS, TEXTS
from fuzzing import fuzz, run_verb
from hypothesis import strategies as st

from altojax import cli as altojax
from twistjax import cli as twistjax

PROGRAMS = {"altojax": (altojax.main, altojax.VERBS), "twistjax": (twistjax.main, twistjax.VERBS)}
GIVEN = ["\udcff", *(text for text in TEXTS if not set(text) & {"\0", "\ud800"})]
"""Texts that a program can be given: bytes that are no UTF-8, but no NUL and no other half of a surrogate pair."""
VERBS = [(program, name) for program, (_, verbs) in PROGRAMS.items() for name in verbs if name != "serve"]


@pytest.mark.parametrize(("program", "verb"), VERBS)
def test_words_after_a_verb(program, verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    main, verbs = PROGRAMS[program]
    (tmp_path / "a.yaml").write_text("output_dir: x\n")
    (tmp_path / "empty").mkdir()
    places = st.sampled_from(["a.yaml", "empty", "none", "none.yaml", "/", *GIVEN, "x/" * 3000, "no/such", "a.yaml/x"])
    keys = [
        name
        for model in (verbs[verb].settings, verbs[verb].config and verbs[verb].config())
        if model
        for name in model.model_fields
    ]
    setting = st.tuples(st.sampled_from([*keys, "x"]), SCALARS.map(str) | places).map("=".join)
    words = st.tuples(st.lists(places, max_size=2), st.lists(setting, max_size=2)).map(
        lambda both: [*both[0], *both[1]]
    )
    known = [[place] for place in ("x" * 300, "x" * 5000, "x/" * 3000)]
    fuzz(lambda words: run_verb(main, capsys, verb, *words), words, *known)
