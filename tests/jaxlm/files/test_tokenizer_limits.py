"""A tokenizer whose rules run away, give up or write without end is one line; usual ones are not tried at all."""

import json
import os
import shutil

import pytest
from tokenizer_files import TINY, byte_level_tokenizer
from tokenizers import Regex, normalizers, pre_tokenizers, processors

from jaxlm.data.documents import Text
from jaxlm.data.encoding import Encoder
from jaxlm.files.gguf.reader import TOKEN_BYTES
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.tokenizer_bounds import trial_of
from jaxrun.process.errors import UserError
from jaxrun.untrusted import confined


def tokenizer(*, normalizer=None, cut=None, after=None):
    made = byte_level_tokenizer([], ["<end>"], eos_token="<end>")
    if normalizer is not None:
        made.backend_tokenizer.normalizer = normalizer
    if cut is not None:
        byte_level = made.backend_tokenizer.pre_tokenizer
        first = pre_tokenizers.Split(Regex(cut), behavior="isolated")
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    if after is not None:
        made.backend_tokenizer.post_processor = after
    return made


def test_usual_tokenizers_are_not_tried():
    assert trial_of(load_tokenizer(TINY)) is None
    assert trial_of(tokenizer()) is None
    letters, rest = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    usual = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{letters}|{rest}"
    assert trial_of(tokenizer(cut=usual)) is None
    assert trial_of(tokenizer(cut="a+b")) is not None


def test_a_pattern_of_its_own_cuts_as_it_says():
    encoder = Encoder(tokenizer(cut="[0-9]"))
    assert len(encoder.encode(Text("a1b")).tokens) == 4


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"cut": "(a+)+$"}, r"gives up on 41 characters \(Onig: .*retry-limit"),
        ({"normalizer": normalizers.Sequence([normalizers.Replace("a", "aa")] * 36)}, "takes more"),
    ],
    ids=["pattern", "doubling"],
)
def test_rules_without_bounds_are_one_line(monkeypatch, capfd, rules, why):
    monkeypatch.setattr(confined, "LIMIT_S", 0.5)
    with pytest.raises(UserError, match=f"^tokenizer: {why}") as error:
        Encoder(tokenizer(**rules)).encode(Text("a" * 40 + "b"))
    assert "\n" not in str(error.value) and "panicked" not in capfd.readouterr().err


MANY = processors.TemplateProcessing(single=" ".join(["$A"] * 1000), pair="$A $B", special_tokens=[])
GROWING = {"type": "Replace", "pattern": {"String": "q"}, "content": "q" * 10_000}
ADDED = {"id": 9000, "content": "q", "normalized": True, "special": False}


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"post_processor": json.loads(MANY.__getstate__())}, "its tokenizer's post_processor may write texts without"),
        ({"decoder": {"type": "Sequence", "decoders": [GROWING] * 4}}, "its tokenizer's decoder may write texts"),
        (
            {
                "normalizer": {"type": "Sequence", "normalizers": [GROWING] * 4},
                "added_tokens": [{**ADDED, "single_word": False, "lstrip": False, "rstrip": False}],
            },
            "tokenizer: takes more memory than there is for it for 1 characters",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_tokenizer_that_would_fill_the_memory_as_it_is_loaded_is_refused_before(tmp_path, parts, why):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)
    rules = json.loads((TINY / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**rules, **parts}))
    with pytest.raises(UserError, match=f"^{tmp_path}: {why}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "merges.txt", "chat_template.jinja"])
def test_pipes_among_a_tokenizers_files_are_refused_and_not_waited_for(tmp_path, name):
    if name != "tokenizer.json":
        (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: is a pipe, expected a plain file"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_token_of_megabytes_is_refused_before_its_cuts_are_tried(tmp_path):
    pb = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    model = pb.ModelProto(pieces=[pb.ModelProto.SentencePiece(piece="a" * (TOKEN_BYTES + 1), score=0.0)])
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"tokenizer\.model: a token of 2,049 characters, expected at most 2,048"):
        load_tokenizer(tmp_path)
