"""Special tokens stand once, and every row's end is known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import TINY, byte_level_tokenizer, write_gguf
from tokenizers import AddedToken, processors

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import read_training
from jaxlm.data.documents import Chat, Message, Pair, Text
from jaxlm.data.encoding import Encoder
from jaxlm.files.tokenizer import load_tokenizer

LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
BARE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def surrounded(*around, **settings):
    """A byte-level tokenizer whose post-processor writes `around`, where None is the text."""
    tokenizer = byte_level_tokenizer([], ["<s>", "</s>"], bos_token="<s>", eos_token="</s>", **settings)
    single = " ".join("$A" if one is None else one for one in around)
    ids = [(one, tokenizer.convert_tokens_to_ids(one)) for one in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def spelled(tokenizer, encoded):
    """Tokens, those that are learnt with a star."""
    tokens = tokenizer.convert_ids_to_tokens(encoded.tokens.tolist())
    return " ".join("*" * int(learnt) + token for token, learnt in zip(tokens, encoded.targets, strict=True))


def chat(*contents):
    roles = ["user", "assistant"] * len(contents)
    return Chat(tuple(Message(role, content) for role, content in zip(roles, contents, strict=False)))


@pytest.mark.parametrize("around", [("<s>", None), ("<s>", None, "</s>"), (None, "</s>"), (None,)])
@pytest.mark.parametrize("text", ["ab", "<s>ab", "<s>ab</s>", "ab</s>", "ab</s>\n", "ab</s></s>"])
def test_a_text_has_one_beginning_which_is_not_learnt_and_one_end_which_is(around, text):
    tokenizer = surrounded(*around)
    begins = "<s>" in around or text.startswith("<s>")
    rest = " Ċ" * text.endswith("\n")
    expected = ("<s> *a" if begins else "a") + " *b *</s>" + rest
    assert spelled(tokenizer, Encoder(tokenizer).encode(Text(text))) == expected


@pytest.mark.parametrize("around", [("<s>", None), ("<s>", None, "</s>")])
def test_a_prompt_begins_as_its_row_did_and_has_no_end(around):
    tokenizer = surrounded(*around)
    for prompt in ("q", "<s>q"):
        encoder = Encoder(tokenizer)
        document = Pair(prompt, "a</s>")
        assert spelled(tokenizer, encoder.encode(document)) == "<s> q Ċ *a *</s>"
        assert tokenizer.convert_ids_to_tokens(encoder.prompt(document).tokens) == ["<s>", "q", "Ċ"]


@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_a_template_that_writes_the_beginning_itself_is_given_no_other(train_on):
    tokenizer = surrounded("<s>", None)
    tokenizer.chat_template = LLAMA2
    encoder = Encoder(tokenizer, train_on=train_on)
    encoded = encoder.encode(chat("q", "a", "r", "b"))
    assert tokenizer.decode(encoded.tokens) == "<s>[INST] q [/INST] a</s><s>[INST] r [/INST] b</s>"
    assert not encoded.targets[encoded.tokens == tokenizer.bos_token_id].any()
    assert encoded.targets[encoded.tokens == tokenizer.eos_token_id].all()
    assert tokenizer.decode(encoder.prompt(chat("q", "a")).tokens) == "<s>[INST] q [/INST]"


def test_a_beginning_that_is_also_the_end_is_learnt_as_the_end():
    tokenizer = byte_level_tokenizer([], ["<end>"], bos_token="<end>", eos_token="<end>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", tokenizer.eos_token_id)]
    )
    assert spelled(tokenizer, Encoder(tokenizer).encode(Text("ab"))) == "<end> *a *b *<end>"


@pytest.mark.parametrize("add_eos", [False, True])
def test_a_gguf_tokenizer_begins_and_ends_a_text_once(add_eos, tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "\n", "\u2581a"]
    scores = [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -0.5]
    path = tmp_path / "t.gguf"
    fields = {"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": True, "add_eos_token": add_eos}
    write_gguf(path, tokens, [2, 3, 3, 1, 1, 1, 1, 1], model="llama", scores=scores, **fields)
    tokenizer = load_tokenizer(path)
    encoder = Encoder(tokenizer, separator="")
    for text in ("ab", "<s>ab", "ab</s>"):
        assert encoder.encode(Text(text)).tokens.tolist()[:1] == [1]
        assert tokenizer.decode(encoder.encode(Text(text)).tokens).replace(" ", "") == "<s>ab</s>"
    # A completion that cannot be tokenized along with its prompt gets no space in front of it.
    assert tokenizer.decode(encoder.encode(Pair("b ", "a")).tokens) == "<s> b a</s>"


def test_the_end_of_a_turn_is_found_whatever_the_tokenizer_calls_it():
    tokenizer = load_tokenizer(TINY)
    tokenizer.add_tokens([AddedToken("<turn>", special=False, normalized=False)])
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<turn>\n{% endfor %}"
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    encoder = Encoder(tokenizer)
    encoded = encoder.encode(chat("q", "a", "r", "b"))
    assert encoder.turn_ends == (turn,)
    assert encoded.tokens[list(encoded.ends)].tolist() == [turn, turn]
    assert tokenizer.eos_token_id not in encoded.tokens


@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_an_answer_that_brings_its_end_is_ended_once(train_on):
    tokenizer = load_tokenizer(TINY)
    encoder = Encoder(tokenizer, train_on=train_on)
    once, twice = encoder.encode(chat("q", "a")), encoder.encode(chat("q", "a<|im_end|>"))
    assert twice.tokens.tolist() == once.tokens.tolist()
    assert (twice.targets.tolist(), twice.ends) == (once.targets.tolist(), once.ends)


def test_a_special_token_within_an_answer_does_not_end_it():
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = BARE
    encoded = Encoder(tokenizer).encode(chat("q", "a<|im_end|> and more"))
    assert tokenizer.decode(encoded.tokens).endswith("a<|im_end|> and more\n<|im_end|>")
    assert encoded.ends == (len(encoded.tokens) - 1,)


@settings(max_examples=40, deadline=None)
@given(
    answers=st.lists(st.text("ab <|im_end|>\n", min_size=1).filter(str.strip), min_size=1, max_size=3),
    train_on=st.sampled_from(["completion", "all"]),
    eos=st.sampled_from(["<|im_end|>", "<|endoftext|>"]),
)
def test_every_turn_of_a_template_that_ends_turns_learns_its_end(answers, train_on, eos):
    tokenizer = load_tokenizer(TINY)
    tokenizer.eos_token = eos
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    encoded = Encoder(tokenizer, train_on=train_on).encode(chat(*(one for a in answers for one in ("q", a))))
    assert encoded.tokens[list(encoded.ends)].tolist() == [end] * (len(answers) if train_on == "completion" else 1)
    assert encoded.targets[list(encoded.ends)].all()


def rows_of(tmp_path, rows, tokenizer, **settings):
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train=str(tmp_path / "r.jsonl"), **settings)
    return read_training(config, tokenizer)


def test_rows_that_learn_no_end_are_counted_in_one_line(tmp_path):
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a" * 40}]
    tokenizer = load_tokenizer(TINY)
    data = rows_of(tmp_path, rows, tokenizer, max_length=40)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [(one.ends, one.ended) for one in data.examples] == [((end,), True), ((), False)]
    assert data.examples[1].tokens[-1] != end
    assert data.ends == (end,)
    assert [line for line in data.summary() if "without an end" in line] == [
        f"{data.name}: 1 row without an end to learn (cut before it): nothing there stops generation"
    ]
    tokenizer.eos_token = None
    tokenizer.chat_template = None
    data = rows_of(tmp_path, [{"text": "once"}, {"text": "twice"}], tokenizer)
    assert data.ends == ()
    assert any("2 rows without an end to learn (no token ends them)" in line for line in data.summary())
    assert not any("without an end" in line for line in rows_of(tmp_path, rows[:1], load_tokenizer(TINY)).summary())


def test_ends_are_known_most_frequent_first(tmp_path):
    tokenizer = load_tokenizer(TINY)
    tokenizer.eos_token = "<|endoftext|>"
    rows = [{"text": "a"}, *[{"prompt": "q", "completion": "a"}] * 2]
    named = tokenizer.convert_ids_to_tokens(list(rows_of(tmp_path, rows, tokenizer).ends))
    assert named == ["<|im_end|>", "<|endoftext|>"]
    assert np.all([one.ended for one in rows_of(tmp_path, rows, tokenizer).examples])
