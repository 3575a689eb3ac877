"""The tokenizer that a GGUF file describes in its metadata, rebuilt as a `tokenizers` pipeline.

A GGUF file names the algorithm (``tokenizer.ggml.model``) and, for byte-level BPE, how text is cut before the merges
(``tokenizer.ggml.pre``); the rules behind those names are llama.cpp's (``src/llama-vocab.cpp``) and agree with the
``tokenizer.json`` of the models they were made from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jaxrun.process.errors import UserError, nearest

MERGES_LENGTH = 2**26
"""Characters of all merges that are found from scores; those of 260,000 words have 2**22."""
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
_SPACE = "\u2581"

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_TAIL}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Cut:
    """The cuts of text before the merges of a byte-level vocabulary.

    Attributes:
        pattern: Matches stay together; None is GPT-2's pattern.
        digits: Every digit stands alone, before the pattern is tried.
        nfc: Text is brought to Unicode NFC first.
        whole_words: A piece that is itself in the vocabulary skips the merges.
        bos: Whether texts begin with the BOS token when the file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    bos: bool = False


_LLAMA3_CUT = _Cut(pattern=_LLAMA3, whole_words=True, bos=True)
_CUTS = {
    "gpt-2": _Cut(),
    "smollm": _Cut(digits=True),
    "starcoder": _Cut(digits=True),
    "refact": _Cut(digits=True),
    "command-r": _Cut(digits=True),
    "llama-bpe": _LLAMA3_CUT,
    "llama3": _LLAMA3_CUT,
    "llama-v3": _LLAMA3_CUT,
    "lfm2": _LLAMA3_CUT,
    "smaug-bpe": _Cut(pattern=_LLAMA3),
    "qwen2": _Cut(pattern=_QWEN2, nfc=True),
    "deepseek-r1-qwen": _Cut(pattern=_QWEN2, nfc=True),
    "tekken": _Cut(pattern=_TEKKEN, whole_words=True, bos=True),
}
_PLAIN = "gpt-2"
PATTERNS = frozenset(cut.pattern for cut in _CUTS.values() if cut.pattern is not None)
"""The patterns by which the known vocabularies cut text."""


def cut_name(pipeline: Mapping[str, Any]) -> str | None:
    """Returns what GGUF calls the cuts of a byte-level tokenizer.

    Args:
        pipeline: It, as tokenizer.json has it.

    Returns:
        The value of ``tokenizer.ggml.pre``; None where it is of another kind, or its cuts have no name.
    """
    model, first = pipeline.get("model") or {}, pipeline.get("pre_tokenizer") or {}
    stages = first.get("pretokenizers", [first])
    by_kind = {stage.get("type"): stage for stage in stages}
    to_bytes, split = by_kind.get("ByteLevel"), by_kind.get("Split")
    if model.get("type") != "BPE" or to_bytes is None or to_bytes.get("add_prefix_space"):
        return None
    if not model.get("merges"):  # every byte is a token by itself, whatever is cut
        return _PLAIN
    if len(by_kind) != len(stages) or by_kind.keys() - {"Digits", "Split", "ByteLevel"}:
        return None
    normalizer = (pipeline.get("normalizer") or {}).get("type")
    cut = _Cut(
        pattern=None if split is None else split.get("pattern", {}).get("Regex"),
        digits=bool(by_kind.get("Digits", {}).get("individual_digits")),
        nfc=normalizer == "NFC",
        whole_words=bool(model.get("ignore_merges")),
    )
    if normalizer not in (None, "NFC") or bool(to_bytes.get("use_regex", True)) != (cut.pattern is None):
        return None
    return next((name for name, known in _CUTS.items() if replace(known, bos=False) == cut), None)


def build_tokenizer(metadata: Mapping[str, Any], source: str) -> tuple[Tokenizer, dict[str, Any]]:
    """Builds the tokenizer that GGUF metadata describes.

    Args:
        metadata: GGUF keys such as ``tokenizer.ggml.tokens`` with plain values.
        source: What to call the file in messages.

    Returns:
        The pipeline and what else the file says of it: the special tokens (``bos_token``, ``eos_token``, ...) and
        the ``chat_template``, where it has them.

    Raises:
        UserError: No vocabulary, or an algorithm or a pre-tokenizer that is not known here.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise UserError(f"{source}: no tokenizer.ggml.tokens in it, expected a GGUF file with its vocabulary")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(kinds) != len(tokens):
        raise UserError(f"{source}: {len(kinds)} token types for {len(tokens)} tokens, expected as many")
    named = _named_tokens(metadata, tokens, source)

    algorithm = metadata.get("tokenizer.ggml.model")
    if algorithm == "gpt2":
        name = str(metadata.get("tokenizer.ggml.pre", "default"))
        if name not in _CUTS:
            known = ", ".join(_CUTS)
            raise UserError(
                f"{source}: tokenizer.ggml.pre is '{name}', expected one of {known}{nearest(name, _CUTS)}; "
                "a model folder with tokenizer.json works for every model"
            )
        cut = _CUTS[name]
        tokenizer = _byte_level(tokens, metadata.get("tokenizer.ggml.merges") or [], cut, source)
        bos = cut.bos
    elif algorithm == "llama":
        tokens = _respell_spaces(tokens, kinds)
        tokenizer = _sentencepiece(tokens, kinds, metadata, source)
        bos = True
    else:
        raise UserError(f"{source}: tokenizer.ggml.model is '{algorithm}', expected 'gpt2' or 'llama'")

    _add_whole_tokens(tokenizer, tokens, kinds)
    bos = metadata.get("tokenizer.ggml.add_bos_token", bos)
    _surround(tokenizer, named, bos=bos, eos=metadata.get("tokenizer.ggml.add_eos_token", False))
    extras: dict[str, Any] = dict(named)
    if metadata.get("tokenizer.chat_template"):
        extras["chat_template"] = metadata["tokenizer.chat_template"]
    return tokenizer, extras


def _named_tokens(metadata: Mapping[str, Any], tokens: Sequence[str], source: str) -> dict[str, str]:
    named = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is None:
            continue
        if not 0 <= token_id < len(tokens):
            raise UserError(
                f"{source}: tokenizer.ggml.{key}_token_id is {token_id}, expected an id below {len(tokens)}"
            )
        named[f"{name}_token"] = tokens[token_id]
    return named


def _byte_level(tokens: Sequence[str], merges: Sequence[str], cut: _Cut, source: str) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = _bpe(vocabulary, pairs, source, ignore_merges=cut.whole_words)
    stages: list[pre_tokenizers.PreTokenizer] = []
    if cut.digits:
        stages.append(pre_tokenizers.Digits(individual_digits=True))
    if cut.pattern is not None:
        stages.append(pre_tokenizers.Split(Regex(cut.pattern), behavior="isolated"))
    stages.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(stages)
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]], source: str, **settings: Any) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(vocabulary, merges, **settings))
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"{source}: {error}, expected merges of tokens in the vocabulary") from error


def _respell_spaces(tokens: Sequence[str], kinds: Sequence[int]) -> list[str]:
    """Writes runs of spaces as SentencePiece spells them; GGUF stores those a model defines itself as real spaces."""
    return [
        _SPACE * len(token) if kind == USER_DEFINED and token and not token.strip(" ") else token
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def _sentencepiece(tokens: Sequence[str], kinds: Sequence[int], metadata: Mapping[str, Any], source: str) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise UserError(f"{source}: {len(scores)} tokenizer.ggml.scores for {len(tokens)} tokens, expected as many")
    if str(metadata.get("general.architecture", "")).startswith("gemma"):
        # Gemma's scores do not follow its merge order; the order of its vocabulary does.
        scores = [-index for index in range(len(tokens))]
    mergeable = [
        kind not in (UNKNOWN, CONTROL, UNUSED) and (kind != USER_DEFINED or not token.strip(_SPACE))
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    merges = _merges_from_scores(vocabulary, scores, mergeable, source)
    tokenizer = _bpe(vocabulary, merges, source, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges_from_scores(
    vocabulary: Mapping[str, int], scores: Sequence[float], mergeable: Sequence[bool], source: str
) -> list[tuple[str, str]]:
    """SentencePiece always joins the pair whose union scores best: every way to split a piece, best piece first.

    Raises:
        UserError: There are more ways than words have.
    """
    merges, length = [], 0
    for token, index in vocabulary.items():
        if not mergeable[index]:
            continue
        for middle in range(1, len(token)):
            left, right = vocabulary.get(token[:middle]), vocabulary.get(token[middle:])
            if left is not None and right is not None and mergeable[left] and mergeable[right]:
                merges.append((-scores[index], left, right, token[:middle], token[middle:]))
                length += len(token)
        if length > MERGES_LENGTH:
            raise UserError(f"{source}: its tokens join in more than {len(merges):,} ways, expected a usual vocabulary")
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _add_whole_tokens(tokenizer: Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Marks the tokens that are found in the text as they stand: control tokens, and those a model defines itself."""
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    defined = [token for token, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED and token.strip(_SPACE)]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in defined])


def _surround(tokenizer: Tokenizer, named: Mapping[str, str], *, bos: bool, eos: bool) -> None:
    before = [named["bos_token"]] if bos and "bos_token" in named else []
    after = [named["eos_token"]] if eos and "eos_token" in named else []
    if before or after:
        special = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*before, *after])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], pair=[*before, "$A", *after, *before, "$B", *after], special_tokens=special
        )
