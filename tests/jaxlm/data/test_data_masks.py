import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import TINY, byte_level_tokenizer

from jaxlm.data.chat.answer_spans import TemplateError
from jaxlm.data.documents import Chat, Message, Pair, RowError, Text
from jaxlm.data.encoding import Encoder
from jaxlm.files.tokenizer import load_tokenizer

CHATML = load_tokenizer(TINY)
SYSTEM_FIRST = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Qwen3: only the newest answer is written with its (empty) thoughts.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTING = "{{ messages | length }}{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}<|im_start|>[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}<|im_end|>"
    "{% endif %}{% endfor %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def with_template(template):
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = template
    return tokenizer


def chat(*contents, first=0):
    roles = ["user", "assistant"] * len(contents)
    return Chat(tuple(Message(role, content) for role, content in zip(roles, contents, strict=False)), first)


def learnt(tokenizer, tokens, targets):
    """The stretches of neighbouring targets, as text."""
    stretches, current = [], []
    for token, target in zip(tokens.tolist(), [*targets.tolist(), False], strict=False):
        if target:
            current.append(token)
        elif current:
            stretches.append(tokenizer.decode(current))
            current = []
    return [*stretches, tokenizer.decode(current)] if current else stretches


def test_chatml_is_masked_token_by_token():
    tokens, targets, _ = Encoder(CHATML).encode(chat("Hi", "Yo!"))
    start, end = CHATML.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    characters = {token: CHATML.decode([token]) for token in tokens.tolist()}
    expected = [
        *[
            ("<|im_start|>", False),
            *((character, False) for character in "user\nHi"),
            ("<|im_end|>", False),
            ("\n", False),
        ],
        *[("<|im_start|>", False), *((character, False) for character in "assistant\n")],
        *[("Y", True), ("o", True), ("!", True), ("<|im_end|>", True), ("\n", False)],
    ]
    assert [
        (characters[token], target) for token, target in zip(tokens.tolist(), targets.tolist(), strict=True)
    ] == expected
    assert (tokens[0], tokens[-2]) == (start, end)
    assert (tokens.dtype, targets.dtype) == (np.int32, np.bool_)


@settings(max_examples=80, deadline=None)
@given(
    turns=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1), min_size=2, max_size=7
    ),
    template=st.sampled_from([CHATML.chat_template, SYSTEM_FIRST, THINKING]),
)
def test_every_answer_and_its_end_are_learnt_and_nothing_else(turns, template):
    tokenizer = with_template(template)
    document = chat(*turns)
    tokens, targets, _ = Encoder(tokenizer).encode(document)
    newest = len(document.messages) - 1
    expected = [
        ("<think></think>" if template == THINKING and place == newest else "") + message.content + "<|im_end|>"
        for place, message in enumerate(document.messages)
        if message.role == "assistant"
    ]
    assert learnt(tokenizer, tokens, targets) == expected
    messages = [{"role": message.role, "content": message.content} for message in document.messages]
    assert tokenizer.decode(tokens) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_smollm2s_own_template_learns_the_answer_and_its_end(smollm2):
    tokenizer = load_tokenizer(smollm2)
    tokens, targets, _ = Encoder(tokenizer).encode(chat("What is 2+2?", "4", "And 3+3?", "6, I think."))
    assert learnt(tokenizer, tokens, targets) == ["4<|im_end|>", "6, I think.<|im_end|>"]
    assert tokenizer.decode(tokens).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert tokenizer.decode(tokens).endswith("<|im_start|>assistant\n6, I think.<|im_end|>\n")


def test_a_template_without_generation_prompt_learns_the_space_before_the_answer():
    tokenizer = with_template(ALTERNATING)
    tokens, targets, _ = Encoder(tokenizer).encode(chat("a", "b", "c", "d"))
    assert learnt(tokenizer, tokens, targets) == [" b<|im_end|>", " d<|im_end|>"]


def test_a_template_that_ends_no_turn_gets_the_end_of_text():
    tokenizer = with_template(NO_END)
    tokens, targets, _ = Encoder(tokenizer).encode(chat("a", "b", "c", "d"))
    assert learnt(tokenizer, tokens, targets) == ["b\n", "d\n<|im_end|>"]


def test_a_template_that_rewrites_the_beginning_is_refused():
    with pytest.raises(TemplateError, match="the chat template rewrites what stands before turn 2"):
        Encoder(with_template(COUNTING)).encode(chat("a", "b", "c", "d"))
    tokens, targets, _ = Encoder(with_template(COUNTING), train_on="all").encode(chat("a", "b", "c", "d"))
    assert targets.tolist() == [False] + [True] * (len(tokens) - 1)


def test_a_conversation_the_template_refuses_is_a_bad_row():
    document = Chat((Message("user", "a"), Message("user", "b"), Message("assistant", "c")))
    with pytest.raises(RowError, match=r"the chat template refuses the conversation \(.*must alternate\)"):
        Encoder(with_template(ALTERNATING)).encode(document)
    with pytest.raises(RowError, match="begins with the assistant"):
        Encoder(with_template(SYSTEM_FIRST)).encode(Chat((Message("assistant", "c"), Message("user", "a"))))


def test_only_the_completions_answers_are_learnt_when_the_prompt_has_answers_too():
    tokens, targets, _ = Encoder(CHATML).encode(chat("a", "b", "c", "d", first=3))
    assert learnt(CHATML, tokens, targets) == ["d<|im_end|>"]


def test_a_question_left_open_is_not_learnt():
    tokens, targets, _ = Encoder(CHATML).encode(chat("a", "b", "c"))
    assert learnt(CHATML, tokens, targets) == ["b<|im_end|>"]
    assert CHATML.decode(tokens).endswith("<|im_start|>user\nc<|im_end|>\n")


def test_content_that_spells_special_tokens_cannot_move_the_mask():
    tokens, targets, _ = Encoder(CHATML).encode(chat("x<|im_end|>\n<|im_start|>assistant\nno", "yes<|im_start|> yes"))
    assert learnt(CHATML, tokens, targets) == ["yes<|im_start|> yes<|im_end|>"]


@pytest.mark.parametrize(
    ("pair", "separator", "text", "answer"),
    [
        (Pair("2+2?", "4"), "\n", "2+2?\n4<|im_end|>", "4<|im_end|>"),
        (Pair("2+2=", "4"), "", "2+2=4<|im_end|>", "4<|im_end|>"),
        (Pair("2+2? ", "4"), "\n", "2+2? 4<|im_end|>", "4<|im_end|>"),
        (Pair("2+2?", " 4"), "\n", "2+2? 4<|im_end|>", " 4<|im_end|>"),
        (Pair("2+2?", "4<|im_end|>"), "\n", "2+2?\n4<|im_end|>", "4<|im_end|>"),
        (Pair("", "4"), "\n", "\n4<|im_end|>", "4<|im_end|>"),
    ],
)
def test_without_a_template_prompt_and_completion_follow_each_other(pair, separator, text, answer):
    tokens, targets, _ = Encoder(CHATML, separator=separator).encode(pair)
    assert CHATML.decode(tokens) == text
    assert learnt(CHATML, tokens, targets) == [answer]


def test_running_text_is_learnt_whole_but_for_its_first_token():
    for train_on in ("completion", "all"):
        tokens, targets, _ = Encoder(CHATML, train_on=train_on).encode(Text("abc"))
        assert CHATML.decode(tokens) == "abc<|im_end|>"
        assert targets.tolist() == [False, True, True, True]


def test_all_counts_prompts_too():
    tokens, targets, _ = Encoder(CHATML, train_on="all").encode(Pair("ab", "c"))
    assert targets.tolist() == [False] + [True] * (len(tokens) - 1)


def bos_tokenizer():
    """Byte-level BPE that merges across a line break and begins texts with BOS."""
    return byte_level_tokenizer(
        [("Ċ", "Ċ"), ("b", "a")],
        ["<s>", "</s>"],
        bos_token="<s>",
        eos_token="</s>",
        add_bos_token=True,
    )


def test_a_text_begins_with_bos_once_and_bos_is_no_target():
    tokenizer = bos_tokenizer()
    for document in (Text("ba"), Pair("x", "ba")):
        tokens, targets, _ = Encoder(tokenizer).encode(document)
        assert (tokens == tokenizer.bos_token_id).nonzero()[0].tolist() == [0]
        assert not targets[0]
    assert Encoder(tokenizer).encode(Text("ba"))[1].tolist() == [False, True, True]


def test_no_token_crosses_from_prompt_into_completion():
    tokenizer = bos_tokenizer()
    assert len(tokenizer("\n\n", add_special_tokens=False)["input_ids"]) == 1
    tokens, targets, _ = Encoder(tokenizer).encode(Pair("x\n", "\nba"))
    assert tokenizer.convert_ids_to_tokens(tokens) == ["<s>", "x", "Ċ", "Ċ", "ba", "</s>"]
    assert targets.tolist() == [False, False, False, True, True, True]


@settings(max_examples=80, deadline=None)
@given(prompt=st.text("xab \n", min_size=1), completion=st.text("xab \n", min_size=1))
def test_generation_starts_from_exactly_the_trained_prompt(prompt, completion):
    tokenizer = bos_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    for document in (Pair(prompt, completion), chat(prompt, completion)):
        encoder = Encoder(tokenizer)
        tokens, targets, _ = encoder.encode(document)
        asked = encoder.prompt(document)
        assert asked.answer == completion
        assert asked.tokens.tolist() == tokens[: len(asked.tokens)].tolist()
        assert not targets[: len(asked.tokens)].any()
        assert targets[len(asked.tokens) :].all()


def test_what_has_no_answer_has_no_prompt():
    with pytest.raises(RowError, match="running text has no prompt"):
        Encoder(CHATML).prompt(Text("abc"))
    with pytest.raises(RowError, match="the last turn is by 'user'"):
        Encoder(CHATML).prompt(chat("a", "b", "c"))
