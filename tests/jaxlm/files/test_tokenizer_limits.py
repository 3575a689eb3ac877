"""A tokenizer whose rules run away, give up or write without end is one line; usual ones are not tried at all."""

import os

import pytest
from tokenizer_files import TINY, byte_level_tokenizer
from tokenizers import Regex, normalizers, pre_tokenizers, processors

from jaxlm.data import Encoder, Text
from jaxlm.files.gguf_reader import TOKEN_BYTES
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.tokenizer_bounds import check_tokenizer, trial_of
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


def test_a_text_that_is_put_in_many_times_is_refused():
    many = processors.TemplateProcessing(single=" ".join(["$A"] * 1000), pair="$A $B", special_tokens=[])
    with pytest.raises(UserError, match="model: its tokenizer's post_processor may write texts without bounds"):
        check_tokenizer(tokenizer(after=many), "model")


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
