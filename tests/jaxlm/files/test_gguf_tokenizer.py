import json
import re

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import byte_vocabulary, write_gguf
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from jaxlm.files.tokenizer import load_tokenizer, save_tokenizer
from jaxrun.process.errors import UserError

STRINGS = [
    "Hello, world!",
    "",
    " ",
    "   leading and trailing   ",
    "def f(x, *args):\n    return {x: [y**2 for y in args]}  # don't, we'll, I'm\n",
    "tabs\tand\r\nline\n\n\nbreaks\n",
    "Prices: 12345.67 in 1999, not 2000",
    "x=1;y=22;z=333",
    "Grüße aus Köln — naïve café, Ελληνικά, Русский, 中文字符, 日本語, 한국어, عربى, हिन्दी",
    "emoji 🙂👩‍👩‍👧‍👦 ☃ ♥",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <repo_name>x<file_sep>y",
    "https://example.org/a?b=c&d=%20#e",
    "zero\u200bwidth \u00a0nbsp \u0301combining",
    "ALLCAPS CamelCase snake_case kebab-case it's 'quoted' \"double\"",
    "\\frac{a}{b} $x_{i}^{2}$ \u2264 ∑",
]


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(smollm2)


def test_smollm2_gives_the_ids_of_transformers(tokenizer, smollm2, reference, tmp_path):
    (tmp_path / "strings.json").write_text(json.dumps(STRINGS), encoding="utf-8")
    theirs = json.loads(reference("tokenize_gguf.py", smollm2, tmp_path / "strings.json"))
    for text, ids in zip(STRINGS, theirs["ids"], strict=True):
        assert tokenizer(text)["input_ids"] == ids, text
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == theirs["chat"]
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == theirs["special"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, we can use", [19556, 28, 392, 416, 722]),
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
        ("<|im_start|>user", [1, 4093]),
    ],
)
def test_smollm2_ids_stay(tokenizer, text, ids):
    assert tokenizer(text)["input_ids"] == ids


def test_smollm2_cuts_digits_off_before_anything_else(tokenizer):
    # Here transformers differs: from a GGUF file it rebuilds GPT-2's rules, which let a space join what follows it.
    assert tokenizer.tokenize("x =  12") == ["x", "Ġ=", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("a ½")[:2] == ["a", "Ġ"]


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"], max_codepoint=0x3FFFF), max_size=80))
def test_every_text_survives_encoding(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_byte_outside_the_vocabulary_does_not_end_the_text(tokenizer):
    # SmolLM2 names <|endoftext|> its unknown token and has no token for some control characters.
    assert tokenizer("a\x16b")["input_ids"] == tokenizer("a")["input_ids"] + tokenizer("b")["input_ids"]


def test_a_saved_tokenizer_reloads_the_same(tokenizer, tmp_path):
    save_tokenizer(tmp_path, tokenizer)
    again = load_tokenizer(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert [again(text)["input_ids"] for text in STRINGS] == [tokenizer(text)["input_ids"] for text in STRINGS]
    assert again.chat_template == tokenizer.chat_template
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_folders_own_rules_win_over_its_class_name(tokenizer, tmp_path):
    save_tokenizer(tmp_path, tokenizer)
    settings_file = tmp_path / "tokenizer_config.json"
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), "tokenizer_class": "GPT2Tokenizer"}))
    assert load_tokenizer(tmp_path).tokenize("x =  12") == ["x", "Ġ=", "ĠĠ", "1", "2"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A SentencePiece model as Llama 2 has one, and the GGUF file that llama.cpp's converter would make of it."""
    folder = tmp_path_factory.mktemp("llama")
    words = "the cat sat on the mat while the other cats sat there and that is that, isn't it? 12 plus 30 is 42."
    (folder / "text.txt").write_text("\n".join([words, words.upper(), words.title(), "naïve café — grüße"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "model"),
        model_type="bpe",
        vocab_size=380,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["<think>"],
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "model.model"))
    kinds = []
    for index in range(pieces.get_piece_size()):
        kind = 1
        if pieces.is_unknown(index):
            kind = 2
        elif pieces.is_control(index):
            kind = 3
        elif pieces.is_byte(index):
            kind = 6
        elif pieces.id_to_piece(index) == "<think>":
            kind = 4
        kinds.append(kind)
    tokens = [pieces.id_to_piece(index) for index in range(len(kinds))]
    scores = [pieces.get_score(index) for index in range(len(kinds))]
    write_gguf(
        folder / "model.gguf",
        tokens,
        kinds,
        model="llama",
        scores=scores,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        chat_template="{{ messages[0]['content'] }}",
    )
    return pieces, load_tokenizer(folder / "model.gguf")


WORDS = ["the", "cat", "sat", "CATS", "While", "", "\n", "4", "2", "é", "ß", "世", "🙂", "isn't", "that"]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0<"), max_size=30)
    | st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
)
def test_llama_ids_are_those_of_sentencepiece(llama, text):
    pieces, tokenizer = llama
    if text:  # llama.cpp, like transformers, gives the empty text no leading space
        expected = pieces.encode(text)
        given_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert given_ids == expected
        assert tokenizer.decode(given_ids) == text


def test_llama_begins_with_bos_and_keeps_its_template(llama):
    _, tokenizer = llama
    assert tokenizer("cat")["input_ids"][0] == 1
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert [tokenizer.tokenize("<think>the cat</s>")[place] for place in (0, -1)] == ["<think>", "</s>"]


def byte_level(path, pre, **fields):
    tokens = [*byte_vocabulary(), "ab", "abc", "<|end|>", "<think>"]
    kinds = [1] * 258 + [3, 4]
    write_gguf(path, tokens, kinds, model="gpt2", pre=pre, merges=["a b"], eos_token_id=258, **fields)
    return load_tokenizer(path)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_qwen2_cuts_text_as_transformers_does(tmp_path_factory, text):
    ours = byte_level(tmp_path_factory.mktemp("qwen") / "m.gguf", "qwen2").backend_tokenizer
    theirs = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[]).backend_tokenizer
    clean = theirs.normalizer.normalize_str(text)
    assert ours.normalizer.normalize_str(text) == clean
    assert ours.pre_tokenizer.pre_tokenize_str(clean) == theirs.pre_tokenizer.pre_tokenize_str(clean)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "I'm 1234 ok\n\n x", ["I", "'m", " 1234", " ok", "\n\n", " x"]),
        ("smollm", "I'm 1234 ok", ["I", "'m", " ", "1", "2", "3", "4", " ok"]),
        ("llama-bpe", "I'M 1234 ok\n\n x", ["I", "'M", " ", "123", "4", " ok", "\n\n", " x"]),
        ("lfm2", "I'M 1234 ok\n\n x", ["I", "'M", " ", "123", "4", " ok", "\n\n", " x"]),
        ("qwen2", "I'M 123 ok...\n x", ["I", "'M", " ", "1", "2", "3", " ok", "...\n", " x"]),
        ("tekken", "camelCase 12 don't", ["camel", "Case", " ", "1", "2", " don", "'t"]),
    ],
)
def test_each_family_cuts_text_its_own_way(tmp_path, pre, text, pieces):
    tokenizer = byte_level(tmp_path / "m.gguf", pre).backend_tokenizer
    spans = [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[start:stop] for start, stop in spans] == pieces


def test_llama3_takes_whole_words_from_its_vocabulary(tmp_path):
    # "abc" is in the vocabulary, but no merge leads to it.
    assert byte_level(tmp_path / "a.gguf", "llama-bpe").tokenize("abc") == ["abc"]
    assert byte_level(tmp_path / "b.gguf", "gpt-2").tokenize("abc") == ["ab", "c"]


def test_tokens_that_a_file_marks_stay_whole(tmp_path):
    tokenizer = byte_level(tmp_path / "m.gguf", "gpt-2")
    assert tokenizer.tokenize("a<think>b<|end|>") == ["a", "<think>", "b", "<|end|>"]
    assert tokenizer.decode(tokenizer("a<think><|end|>")["input_ids"], skip_special_tokens=True) == "a<think>"


@pytest.mark.parametrize(("says", "begins"), [(True, True), (False, False)])
def test_a_file_says_whether_texts_begin_with_bos(tmp_path, says, begins):
    tokenizer = byte_level(tmp_path / "m.gguf", "llama-bpe", bos_token_id=258, add_bos_token=says)
    assert (tokenizer("ab")["input_ids"][0] == 258) is begins


def test_a_damaged_file_is_one_line(tmp_path, smollm2):
    whole = smollm2.read_bytes()[: 1 << 20]
    for name, content in {
        "cut": whole,
        "empty": b"",
        "text": b"GGUF but no more than that",
        "zeros": bytes(4096),
    }.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.gguf: cannot be read as GGUF") as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "smolm"}, r"tokenizer\.ggml\.pre is 'smolm'.*did you mean 'smollm'"),
        ({"model": "bert"}, r"tokenizer\.ggml\.model is 'bert', expected 'gpt2' or 'llama'"),
        ({"eos_token_id": 999}, r"eos_token_id is 999, expected an id below 3"),
        ({"merges": ["a z"]}, r"m\.gguf: .*`z` out of vocabulary"),
        ({"kinds": [1]}, r"1 token types for 3 tokens"),
        ({"model": "llama"}, r"0 tokenizer\.ggml\.scores for 3 tokens"),
    ],
)
def test_a_strange_vocabulary_is_refused_by_name(tmp_path, changes, message):
    fields = {"kinds": [1, 1, 1], "model": "gpt2", "pre": "gpt-2", **changes}
    write_gguf(tmp_path / "m.gguf", ["a", "b", "c"], **fields)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path / "m.gguf")


def test_a_folder_without_a_tokenizer_points_at_what_it_has(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"no tokenizer in this folder.*did you mean '.*model\.gguf'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "BPE"}}', "\0"])
def test_a_broken_tokenizer_json_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    said = r"(: its tokenizer cannot be read|/tokenizer\.json: (not valid JSON|holds a list))"
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))}{said}") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
