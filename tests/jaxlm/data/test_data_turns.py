"""Conversations with tools: nothing of a row is dropped unsaid, and only what the assistant says is learnt."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_masks import learnt, with_template

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import load_datasets, read_training
from jaxlm.data.documents import Chat, Message, Pair, RowError
from jaxlm.data.encoding import Encoder
from jaxlm.data.sources.formats import RowFormat, read_row
from jaxlm.data.sources.turns import TurnReader
from jaxrun.process.errors import UserError

TOOLS = (
    "{% if tools %}<|im_start|>system\nTOOLS {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like DeepSeek's: arguments are joined as text.
JOINED = TOOLS.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
# Writes whatever it gets, so None and Python's dictionaries as well.
CARELESS = TOOLS.replace("{{ m.content or '' }}", "{{ m.content }}").replace("arguments | tojson", "arguments")
# Like Llama 3.1's: an answer that calls tools is the call alone.
CALL_ALONE = TOOLS.replace("{{ m.content or '' }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}")
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

# Like Qwen3's: thoughts are written after the last question only, and what tools say stands in turns of the user.
LATE = (
    "{% set last = namespace(at=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set last.at = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > last.at and (loop.last or m.reasoning_content) %}"
    "<think>{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if quiet %}<think></think>{% endif %}{% endif %}"
)

WEIGH = {"type": "function", "function": {"name": "weigh", "parameters": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weigh", "arguments": {"item": "brick"}}}
TURNS = [
    {"role": "user", "content": "How heavy?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "3 kg"},
    {"role": "assistant", "content": "3 kg."},
]
ROW = {"tools": [WEIGH], "messages": TURNS}
LEARNT = ['<call>weigh {"item": "brick"}</call><|im_end|>', "3 kg.<|im_end|>"]


def read(row, layout=None, template=True):
    return read_row(row, layout or RowFormat(), template=template)


def written(template, row, **keys):
    """The text of a row, what of it is learnt, and what the template does not write."""
    tokenizer = with_template(template)
    encoder = Encoder(tokenizer, **keys)
    document = read(row).document
    tokens, targets, _ = encoder.encode(document)
    return tokenizer.decode(tokens), learnt(tokenizer, tokens, targets), encoder.unwritten(document)


@pytest.mark.parametrize("template", [TOOLS, JOINED, CARELESS], ids=["objects", "joined", "careless"])
def test_calls_are_learnt_and_what_tools_answer_is_not(template):
    text, stretches, unwritten = written(template, ROW)
    assert stretches == LEARNT
    assert text.startswith("<|im_start|>system\nTOOLS [" + json.dumps(WEIGH)) and "tool\n3 kg<|im_end|>" in text
    assert not unwritten and "None" not in text and "{'" not in text


def as_function(**change):
    return {**CALL, "function": {**CALL["function"], **change}}


SAME_CALLS = [
    [as_function(arguments='{"item": "brick"}')],
    json.dumps([CALL]),
    [json.dumps(CALL)],
    [{"name": "weigh", "arguments": {"item": "brick"}}],
    CALL,
]


@pytest.mark.parametrize("calls", SAME_CALLS, ids=["arguments as text", "calls as text", "each as text", "bare", "one"])
@pytest.mark.parametrize(
    "tools", [json.dumps([WEIGH]), [json.dumps(WEIGH)], [WEIGH["function"]], json.dumps([WEIGH["function"]])]
)
def test_tools_and_calls_may_be_kept_in_any_of_their_forms(calls, tools):
    row = {"tools": tools, "messages": [TURNS[0], {**TURNS[1], "tool_calls": calls}, *TURNS[2:]]}
    assert written(TOOLS, row) == written(TOOLS, ROW)


def test_sharegpt_calls_are_the_same_conversation():
    row = {
        "tools": json.dumps([WEIGH["function"]]),
        "conversations": [
            {"from": "human", "value": "How heavy?"},
            {"from": "function_call", "value": json.dumps(CALL["function"])},
            {"from": "observation", "value": "3 kg"},
            {"from": "gpt", "value": "3 kg."},
        ],
    }
    assert written(TOOLS, row) == written(TOOLS, ROW)


def test_the_answer_to_generate_is_what_the_template_writes_of_a_call():
    tokenizer = with_template(TOOLS)
    prompt = Encoder(tokenizer).prompt(read({"messages": TURNS[:2]}).document)
    assert prompt.answer.strip() == '<call>weigh {"item": "brick"}</call>'
    assert tokenizer.decode(prompt.tokens).endswith("How heavy?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("template", "row", "said"),
    [
        (PLAIN, {"tools": [WEIGH], "messages": [TURNS[0], TURNS[3]]}, ["column 'tools'"]),
        (
            PLAIN,
            {"messages": [TURNS[0], {**TURNS[3], "reasoning_content": "hm"}]},
            ["'reasoning_content' of assistant"],
        ),
        (PLAIN, {"messages": [TURNS[0], {**TURNS[3], "id": 7}]}, ["'id' of assistant turns"]),
        (PLAIN, {"messages": [TURNS[0], {**TURNS[3], "tool_calls": [CALL]}]}, ["'tool_calls' of assistant turns"]),
        (TOOLS, {"messages": [*TURNS[:2], {**TURNS[2], "name": "weigh"}, TURNS[3]]}, ["'name' of tool turns"]),
        (TOOLS, {"documents": [{"text": "a"}], "messages": [TURNS[0], TURNS[3]]}, ["column 'documents'"]),
        (TOOLS, {"chat_template_kwargs": {"shout": True}, "messages": [TURNS[0], TURNS[3]]}, ["'shout' of chat_temp"]),
        (CALL_ALONE, {"messages": [TURNS[0], {**TURNS[1], "content": "I weigh."}]}, ["'content' of assistant turns"]),
        (TOOLS, {"messages": [TURNS[0], {**TURNS[1], "reasoning_content": "hm"}, *TURNS[2:]]}, []),
    ],
)
def test_what_the_template_does_not_write_is_said(template, row, said):
    found = written(template, row)[2]
    assert len(found) == len(said) and all(one.startswith(start) for one, start in zip(found, said, strict=True))


@pytest.mark.parametrize("thoughts", [("thought first", "thought last"), ("the same thought", "the same thought")])
def test_a_thought_that_is_written_in_one_turn_only_is_said_for_the_other(thoughts):
    template = TOOLS.replace("{% if m.reasoning_content %}", "{% if m.reasoning_content and loop.last %}")
    turns = [TURNS[0], {**TURNS[3], "reasoning_content": thoughts[0]}]
    row = {"messages": [*turns, TURNS[0], {**TURNS[3], "reasoning_content": thoughts[1]}]}
    assert written(template, row)[2] == ["'reasoning_content' of assistant turns"]


def test_settings_of_a_row_reach_the_template():
    template = "{% if loud %}LOUD{% endif %}" + PLAIN
    row = {"chat_template_kwargs": {"loud": True}, "messages": [TURNS[0], TURNS[3]]}
    assert written(template, row)[0].startswith("LOUD<|im_start|>")
    with pytest.raises(
        RowError, match="'chat_template_kwargs' sets 'tokenize', expected settings of the chat template"
    ):
        read({**row, "chat_template_kwargs": {"tokenize": True}})


@pytest.mark.parametrize("key", ["train", "training", "weight", "loss"])
def test_turns_that_are_marked_are_not_learnt(key):
    row = {"messages": [TURNS[0], {**TURNS[3], key: 0}, TURNS[0], {"role": "assistant", "content": "yes", key: True}]}
    text, stretches, unwritten = written(TOOLS, row)
    assert stretches == ["yes<|im_end|>"] and not unwritten and "3 kg.<|im_end|>" in text
    with pytest.raises(RowError, match=rf"messages\[1\] has 0.5 as '{key}', expected true or false, or 1 or 0"):
        read({"messages": [TURNS[0], {**TURNS[3], key: 0.5}]})
    with pytest.raises(RowError, match="no assistant turn that is to be learnt"):
        read({"messages": [TURNS[0], {**TURNS[3], key: False}]})
    assert read({"messages": [{**TURNS[0], key: 1}, TURNS[3]]}).notes == (f"'{key}' of user turns is not used",)


@pytest.mark.parametrize(
    ("row", "document"),
    [
        (
            {"system": "Brief.", "prompt": "hi", "completion": "yo"},
            Chat((Message("system", "Brief."), Message("user", "hi"), Message("assistant", "yo"))),
        ),
        (
            {
                "system": "Brief.",
                "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
            },
            Chat((Message("system", "Brief."), Message("user", "hi"), Message("assistant", "yo"))),
        ),
        (
            {"instruction": "hi", "output": "yo", "history": [["a", "b"]]},
            Chat((Message("user", "a"), Message("assistant", "b"), Message("user", "hi"), Message("assistant", "yo"))),
        ),
        (
            {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yo"}]}
            | {"system": "Brief."},
            Chat((Message("system", "Brief."), Message("user", "hi"), Message("assistant", "yo")), 2),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]}
            | {"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]'},
            Chat((Message("user", "hi"), Message("assistant", "yo"))),
        ),
    ],
)
def test_columns_beside_a_conversation_are_part_of_it(row, document):
    found = read(row)
    assert found.document == document and not found.unused


def test_a_system_prompt_stands_before_a_prompt_without_a_template():
    row = {"system": "Brief.", "prompt": "hi", "completion": "yo"}
    assert read(row, template=False).document == Pair("Brief.\n\nhi", "yo")
    with pytest.raises(RowError, match="'history' needs a chat template"):
        read({"instruction": "hi", "output": "yo", "history": [["a", "b"]]}, template=False)


WORDS = st.text("ab <>xyP.", min_size=1, max_size=6).filter(str.strip)
ANSWERS = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": WORDS},
    optional={"reasoning_content": WORDS, "tool_calls": st.just([CALL])},
)
ROUNDS = st.lists(st.tuples(WORDS, st.lists(st.tuples(ANSWERS, WORDS), max_size=2), ANSWERS), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(rounds=ROUNDS, quiet=st.booleans())
def test_every_answer_is_learnt_as_it_stands_where_thoughts_are_dropped_later(rounds, quiet):
    turns, expected = [], []
    for number, (question, calls, answer) in enumerate(rounds):
        turns.append({"role": "user", "content": question})
        for called, result in calls:
            turns += [called, {"role": "tool", "content": result}]
        turns.append(answer)
        for one in [*(called for called, _ in calls), answer]:
            late = number == len(rounds) - 1 and (one is turns[-1] or "reasoning_content" in one)
            think = f"<think>{one.get('reasoning_content', '')}</think>" if late else ""
            if quiet:  # then the prompt to generate from has it already
                think = "" if think == "<think></think>" else think.removeprefix("<think>")
            call = "<call>weigh</call>" if "tool_calls" in one else ""
            expected.append(f"{think}{one['content']}{call}<|im_end|>")
    _, stretches, _ = written(LATE, {"messages": turns, "chat_template_kwargs": {"quiet": quiet}})
    assert stretches == expected


PART = {"type": "text", "text": "hi"}
BROKEN = {
    r"content\[1\] is of type 'image_url', expected text": [PART, {"type": "image_url", "image_url": {"url": "x"}}],
    r"content\[0\] has null as 'text'": [{"type": "text"}],
    r"content\[0\] is a number, expected a part": [3],
    "has a number as 'content', expected a string": 3,
    "holds half a surrogate pair": "\ud800",
    "has an empty list as 'content', expected a string": [],
}


@pytest.mark.parametrize(("reason", "content"), BROKEN.items())
def test_content_that_is_no_text_is_named(reason, content):
    with pytest.raises(RowError, match=reason):
        read({"messages": [{"role": "user", "content": content}, TURNS[3]]})


HALF = "\ud83d"


@pytest.mark.parametrize(
    "turn",
    [
        {"role": HALF, "content": "x"},
        {"role": "user", "content": "x", "name": HALF},
        {"role": "user", "content": "x", HALF: "x"},
        {"role": "assistant", "tool_calls": [as_function(name=HALF)]},
        {"role": "assistant", "tool_calls": [as_function(arguments={HALF: 1})]},
        {"role": "assistant", "tool_calls": [as_function(arguments=json.dumps({"item": HALF}))]},
        {"role": "assistant", "content": "x", "reasoning_content": HALF},
    ],
)
def test_half_a_surrogate_anywhere_in_a_turn_is_a_reason_that_can_be_printed(turn):
    with pytest.raises(RowError, match="half a surrogate pair") as caught:
        read({"messages": [TURNS[0], turn, TURNS[3]]})
    str(caught.value).encode()


@pytest.mark.parametrize("column", ["tools", "documents", "chat_template_kwargs", "system"])
def test_half_a_surrogate_anywhere_beside_a_conversation_is_a_reason_that_can_be_printed(column):
    value = {"system": HALF, "chat_template_kwargs": {"a": HALF}}.get(column, [{"a": {HALF: 1}}])
    with pytest.raises(RowError, match="half a surrogate pair") as caught:
        read({column: value, "messages": [TURNS[0], TURNS[3]]})
    str(caught.value).encode()


NAMES = ["role", "content", "tool_calls", "function", "name", "arguments", "weight", "type", "text", "tools", "system"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["assistant", "user", "{", "[1]", HALF, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, HALF]), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(more=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), tools=VALUES, system=VALUES, given=VALUES)
def test_no_turn_at_all_gets_past_as_anything_but_tokens_or_a_reason(more, tools, system, given):
    row = {"tools": tools, "system": system, "chat_template_kwargs": given}
    row["messages"] = [TURNS[0], {**TURNS[1], **more}, *TURNS[2:]]
    try:
        text, stretches, unwritten = written(TOOLS, row)
    except RowError as error:
        str(error).encode()
    else:
        assert all(one in text for one in stretches) and all(isinstance(one, str) for one in unwritten)


def rows_of(path, rows, **keys):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_training(DataConfig(train=str(path), **keys), with_template(TOOLS))


def test_columns_and_keys_that_are_not_used_are_said_once_with_their_count(tmp_path):
    path = tmp_path / "support.jsonl"
    rows = [
        {"prompt": f"{n}?", "completion": "yes", "score": n, "topic": "x", "note": None, HALF: 1} for n in range(30)
    ]
    rows += [{"messages": [TURNS[0], {**TURNS[3], "id": "x"}]}, {"messages": [TURNS[0], TURNS[3]], "topic": "y"}]
    data = rows_of(path, rows)
    assert len(data) == 32
    assert data.summary()[1:] == [
        f"{path}: columns 'score', '\\ud83d' are not used (30 rows)",
        f"{path}: column 'topic' is not used (31 rows)",
        f"{path}: 'id' of assistant turns is not written by the chat template (1 row)",
    ]


def test_a_role_that_is_misspelt_is_said(tmp_path):
    rows = [{"messages": [*TURNS[:1], {"role": "asistant", "content": "x"}, *TURNS]}]
    [line] = rows_of(tmp_path / "a.jsonl", rows).notes
    assert line.endswith("turns by 'asistant' (did you mean 'assistant'?) are not learnt (1 row)")


def test_training_on_all_says_that_marks_do_not_count(tmp_path):
    rows = [{"messages": [TURNS[0], {**TURNS[3], "train": False}, *TURNS]}]
    [line] = rows_of(tmp_path / "a.jsonl", rows, train_on="all").notes
    assert line.endswith("turns that are marked as not to be learnt are learnt, as train_on: all says (1 row)")


def test_nulls_that_parquet_puts_into_tools_are_not_written(tmp_path):
    other = {"type": "function", "function": {"name": "cut", "parameters": {}, "strict": True}}
    calls = {"role": "assistant", "content": "", "tool_calls": [as_function(arguments={"depth": 3})]}
    rows = [ROW, {"tools": [WEIGH, other], "messages": [TURNS[0], calls, *TURNS[2:]]}]
    for row in rows:
        for tool in row["tools"]:
            tool["function"].pop("parameters", None)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    tokenizer = with_template(TOOLS)
    data = read_training(DataConfig(train=str(tmp_path / "a.parquet")), tokenizer)
    texts = [tokenizer.decode(example.tokens) for example in data.examples]
    assert "null" not in texts[0] + texts[1]
    assert '{"item": "brick"}' in texts[0] and '{"depth": 3}' in texts[1]


def test_names_of_roles_and_keys_can_be_told():
    layout = RowFormat(turns=TurnReader("speaker", "says", {"caller": "user", "agent": "assistant"}))
    row = {"messages": [{"speaker": "caller", "says": "hi"}, {"speaker": "agent", "says": "yo"}]}
    assert read(row, layout).document == Chat((Message("user", "hi"), Message("assistant", "yo")))


@pytest.mark.parametrize(("bad", "outcome"), [(1, "quiet"), (2, "warned"), (5, "warned"), (6, "refused")])
def test_many_bad_rows_are_a_warning_and_most_are_an_error(tmp_path, bad, outcome):
    rows = [{"prompt": f"{n}?", "completion": "yes"} for n in range(10 - bad)] + [{"prompt": n} for n in range(bad)]
    path = tmp_path / "a.jsonl"
    if outcome == "refused":
        with pytest.raises(
            UserError, match=r"6 of 10 rows cannot be used, expected at most half; the first: .*:5: col"
        ):
            rows_of(path, rows)
        return
    warned = [note for note in rows_of(path, rows).notes if "WARNING" in note]
    assert warned == (
        [f"{path}: WARNING: {bad} of 10 rows are skipped, more than a tenth"] if outcome == "warned" else []
    )


def test_rows_that_are_there_twice_are_said(tmp_path):
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    rows = [{"prompt": f"{n}?", "completion": "yes"} for n in range(6)]
    train.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[:2]]))
    validation.write_text(
        "".join(json.dumps({**row, "id": 1}) + "\n" for row in [*rows[3:], {"prompt": "z", "completion": "z"}])
    )
    loaded = load_datasets(DataConfig(train=str(train), validation=str(validation)), with_template(TOOLS))
    assert loaded[0].summary()[1:] == [f"{train}: 2 of 8 rows are the same as an earlier one"]
    assert loaded[1].summary()[-1] == f"{validation}: 3 of 4 rows are training rows, too"
