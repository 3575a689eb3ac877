import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from jaxlm.files.hf_config import from_hf
from jaxlm.files.tokenizer import load_tokenizer

TINY = Path(__file__).parent.parent.parent / "configs" / "tiny"
TOKENIZER = load_tokenizer(TINY)


def test_the_files_in_configs_are_what_the_script_writes(script):
    for name, text in script("make_tiny_tokenizer").make_files().items():
        assert json.loads((TINY / name).read_text(encoding="utf-8")) == json.loads(text)


def test_the_tiny_model_has_room_for_every_token():
    config = from_hf(json.loads((TINY / "config.json").read_text(encoding="utf-8")), "configs/tiny")
    assert len(TOKENIZER) == 260 <= config.vocab_size
    assert config.eos_ids == (TOKENIZER.eos_token_id,)
    assert config.pad_id == TOKENIZER.pad_token_id


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<")))
def test_a_token_is_a_byte(text):
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text.encode("utf-8"))
    assert TOKENIZER.decode(ids) == text
