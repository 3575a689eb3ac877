"""Several sources: their shares of an epoch, what each calls its columns, and which template writes them all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import TINY

from jaxlm.data.batching.mixing import repetitions, weighted_counts
from jaxlm.data.chat.chat_templates import template_text, with_template
from jaxlm.data.chat.template_setting import NAMES
from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import load_datasets
from jaxlm.data.text_rows import read_text
from jaxlm.files.tokenizer import load_tokenizer
from jaxrun.config.config import check_config, dump_config
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.process.errors import UserError

TOKENIZER = load_tokenizer(TINY)
WEIGHTS = st.floats(0.01, 100)


@given(sources=st.lists(st.tuples(st.integers(1, 500), WEIGHTS), min_size=1, max_size=5))
def test_every_row_comes_and_shares_are_those_of_the_weights(sources):
    rows, weights = zip(*sources, strict=True)
    counts = weighted_counts(rows, weights)
    assert any(count == n for count, n in zip(counts, rows, strict=True)), "an epoch is no longer than it must be"
    scale = max(n / weight for n, weight in sources)
    for n, weight, count in zip(rows, weights, counts, strict=True):
        assert abs(count - scale * weight) <= 1
        times = repetitions(n, count, 0)
        assert sum(times) == count and min(times) >= 1 and max(times) - min(times) <= 1
        assert times == repetitions(n, count, 0)


def check(**tree):
    return check_config(DataConfig, tree, "a.yaml")


@pytest.fixture
def files(tmp_path):
    """20 pairs as JSON lines, and 10 as a table with other names."""
    pairs = [{"prompt": f"{n}+{n}?", "completion": str(2 * n)} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "b.csv").write_text("question,answer,id\n" + "".join(f"{n}-{n}?,0,{n}\n" for n in range(10)))
    return str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv")


def both(files, *weights, **more):
    columns = {"prompt": "question", "completion": "answer"}
    sources = [{"path": files[0]}, {"path": files[1], "columns": columns}]
    for source, weight in zip(sources, weights, strict=False):
        source |= {"weight": weight}
    return load_datasets(check(train=sources, **more), TOKENIZER)


def by_file(data, files):
    return [sum(example.source == file for example in data.examples) for file in files]


def test_sources_without_weights_are_all_of_their_rows(files):
    train, validation = both(files, validation_samples=3)
    assert len(train) == 27 and len(validation) == 3
    assert train.name == f"{files[0]} + {files[1]}"
    assert train.notes == (f"{files[1]}: column 'id' is not used (10 rows)",)
    assert by_file(both(files, max_samples=12, validation_samples=2)[0], files) != [10, 0]


def test_weights_are_shares_of_an_epoch_and_no_row_is_in_both_parts(files):
    train, validation = both(files, 1, 3, validation_samples=6)
    a, b = by_file(train, files)
    assert 3 * a == b and a == 20 - by_file(validation, files)[0]
    assert not {(one.source, one.line) for one in train.examples} & {(v.source, v.line) for v in validation.examples}
    assert train.notes[-1] == f"{files[1]}: weight 3: {b} of {a + b} samples of an epoch, from {10 - 6 + 20 - a} rows"
    assert both(files, 1, 3, validation_samples=6)[0].digest == train.digest


def test_validation_may_have_weights_too(files):
    data = check(train=files[0], validation=[{"path": files[0], "weight": 1}, {"path": files[0], "weight": 2}])
    assert len(load_datasets(data, TOKENIZER)[1]) == 60


def test_weighted_text_is_not_split_for_validation(files):
    with pytest.raises(UserError, match=r"data.train: weights repeat text, expected data.validation"):
        read_text(check(train=[{"path": files[0], "weight": 2}], max_length=8), TOKENIZER)
    for key, value in {"packing": True, "truncation": "drop"}.items():
        with pytest.raises(UserError, match=f"data.{key}: texts are joined and cut"):
            read_text(check(train=files[0], max_length=8, **{key: value}), TOKENIZER)


def test_running_text_says_what_is_skipped_and_not_used(files, tmp_path):
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"text": "abc " * 30, "id": 1}) + "\n{\n" + json.dumps({"text": "def " * 30}) + "\n")
    train, validation = read_text(check(train=str(more), max_length=8, validation_samples=2), TOKENIZER)
    assert train.summary()[1:] == [
        f"{more}: 1 row skipped",
        f"  {more}:2: not valid JSON (Expecting property name enclosed in double quotes at column 2)",
        f"{more}: WARNING: 1 of 3 rows are skipped, more than a tenth",
        f"{more}: column 'id' is not used (1 row)",
    ]
    assert not validation.notes


def test_files_of_a_folder_that_are_not_read_are_said(files, tmp_path):
    (tmp_path / "b.csv").unlink()
    (tmp_path / "notes.xlsx").write_text("x")
    (tmp_path / "more").mkdir()
    train, _ = load_datasets(check(train=str(tmp_path)), TOKENIZER)
    assert train.notes == (f"{tmp_path}: not read: more/, notes.xlsx",)


def test_a_named_column_that_no_row_has_is_said(files):
    train, _ = load_datasets(check(train=files[0], columns={"system": "sys"}), TOKENIZER)
    assert train.notes == (f"{files[0]}: columns.system: no row has a column 'sys'",)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": []}, "train.*at least 1 items"),
        ({"train": 3}, "train: given 3, expected a string or a list"),
        ({"train": [{"path": "a", "weight": 0}]}, "weight.*more than 0"),
        ({"train": [{"path": "a", "wieght": 1}]}, r"wieght.*did you mean 'weight'"),
        ({"train": "a", "columns": {"promt": "x"}}, r"promt.*did you mean 'prompt'"),
        ({"train": "a", "columns": {"role_tag": "x"}}, r"role_tag.*did you mean 'role'"),
        ({"train": "a", "chat_template": 3}, "chat_template.*given 3"),
        ({"train": "a", "separator": "\ud800"}, r'separator: given "\\ud800", half a surrogate pair, expected valid'),
        ({"train": ["\ud800"]}, r"train.0: given .*half a surrogate pair"),
        ({"train": "a", "roles": {"\ud800": "user"}}, r"roles: given .*half a surrogate pair"),
    ],
)
def test_a_wrong_source_is_one_line(tree, message):
    with pytest.raises(UserError, match=message) as caught:
        check(**tree)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_sources_survive_being_written_down(files):
    config = check(
        train=[files[0], {"path": files[1], "weight": 2.0, "columns": {"prompt": "q"}}], roles={"me": "user"}
    )
    assert check(**parse_yaml(dump_config(config), "written")) == config


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " hi "},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "bye"},
]
WRITTEN = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n hi <|im_end|>\n"
    "<|im_start|>assistant\nyo<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nbye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<|begin|><start_of_turn>user\nBe brief.\n\nhi<end_of_turn>\n<start_of_turn>model\nyo<end_of_turn>\n"
    "<start_of_turn>user\nbye<end_of_turn>\n<start_of_turn>model\n",
    "alpaca": "Be brief.\n\n### Instruction:\n hi \n\n### Response:\nyo<|im_end|>\n\n"
    "### Instruction:\nbye\n\n### Response:\n",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_template_that_is_known_by_name_writes_what_its_model_was_taught(name):
    tokenizer = load_tokenizer(TINY)
    tokenizer.bos_token = "<|begin|>"
    text = with_template(tokenizer, name).apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert text == WRITTEN[name]


def test_a_template_replaces_the_tokenizers_own_and_leaves_the_tokenizer(files, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}")
    before = TOKENIZER.chat_template
    train, _ = load_datasets(check(train=files[0], chat_template=str(path)), TOKENIZER)
    assert TOKENIZER.decode(train.examples[0].tokens).startswith("user: 0+0?<|im_end|>\nassistant: 0<|im_end|>")
    assert TOKENIZER.chat_template == before and template_text(path.read_text()) == path.read_text()
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = None
    assert load_datasets(check(train=files[0], chat_template="chatml"), tokenizer)[0].notes == ()


def test_tags_that_are_no_tokens_are_said(files):
    train, _ = load_datasets(check(train=files[0], chat_template="gemma"), TOKENIZER)
    assert train.notes[:2] == tuple(
        f"chat_template: '{tag}' is no token of this tokenizer and is written letter by letter"
        for tag in ("<start_of_turn>", "<end_of_turn>")
    )


@pytest.mark.parametrize(
    ("given", "content", "message"),
    [
        (
            "chatlm",
            None,
            r"no file chatlm \(did you mean 'chatml'\?\), expected true, false, a file .* or one of alpaca",
        ),
        ("mine.jinja", "{% for m in messages", "mine.jinja: line 1: .*expected valid Jinja"),
        ("mine.jinja", "hello", "mine.jinja: never mentions 'messages'"),
        ("mine.jinja", "{{ messages | random }}", "mine.jinja: draws by 'random'"),
        ("mine.jinja", b"{{ messages }}\xff", "mine.jinja: not UTF-8 text"),
    ],
)
def test_what_is_no_template_is_refused_in_one_line(given, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / given).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        template_text(given)
    assert "\n" not in str(caught.value)
