"""Tokenizers: from a Hugging Face folder or hub id, or out of a GGUF file's own metadata."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jaxlm.files.gguf.file import read_metadata
from jaxlm.files.gguf.reader import TOKEN_BYTES
from jaxlm.files.gguf.tokenizer import build_tokenizer
from jaxlm.files.hub import find_model
from jaxlm.files.tokenizer_bounds import check_rules, panics, rules_of, texts_in
from jaxlm.files.tokenizer_settings import check_settings
from jaxrun.files.atomic import write_atomic
from jaxrun.files.foreign_files import check_regular, read_json
from jaxrun.process.errors import UserError

FILE_BYTES = 2**28
"""Most bytes of a tokenizer's file."""
_FILES_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads a model's own tokenizer, with its special tokens and its chat template.

    A ``tokenizer.json`` is used as it stands, whatever class ``tokenizer_config.json`` names: transformers rebuilds
    some classes from vocabulary and merges alone and so loses SmolLM2's rule that every digit stands alone.

    Args:
        source: A Hugging Face folder, a ``.gguf`` file, or a hub id.
        trust_remote_code: Run tokenizer code that comes with the model; only for models without ``tokenizer.json``.

    Raises:
        UserError: There is no tokenizer at `source`, it cannot be read, or the hub cannot be reached.
    """
    path = find_model(source, weights=False)
    with panics(str(path)):
        return _from_folder(path, trust_remote_code) if path.is_dir() else _from_gguf(path)


def save_tokenizer(folder: str | Path, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int] = ()) -> None:
    """Writes the tokenizer's files into an existing folder, for transformers 4 and 5 alike.

    transformers 5 writes names that transformers 4 refuses; both read the older ones.

    Args:
        folder: Where to.
        tokenizer: The tokenizer.
        ends: Tokens that end a text of its model, the most frequent first: that becomes the end-of-text token,
            unless the chat template writes this by its name.
    """
    tokenizer.save_pretrained(str(folder))
    config = Path(folder) / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if named := settings.pop("model_specific_special_tokens", None):
        settings["extra_special_tokens"] = named
    for own in ("backend", "is_local", "local_files_only"):
        settings.pop(own, None)
    if ends and not _names_the_end(tokenizer):
        settings["eos_token"] = tokenizer.convert_ids_to_tokens(ends[0])
    write_atomic(config, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def end_tokens(
    learnt: Iterable[int], of_model: Iterable[int], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[int, ...]:
    """Returns all tokens that end a text, each once: those learnt, then the model's and the tokenizer's."""
    own = None if tokenizer is None else tokenizer.eos_token_id
    return tuple(dict.fromkeys([*learnt, *of_model, *([own] if isinstance(own, int) else [])]))


def _names_the_end(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat template writes the end-of-text token by its name."""
    given = tokenizer.chat_template or ""
    return any("eos_token" in one for one in (given.values() if isinstance(given, dict) else [given]))


def _from_gguf(path: Path) -> PreTrainedTokenizerFast:
    metadata = read_metadata(path, "tokenizer.", "general.architecture")
    tokenizer, extras = build_tokenizer(metadata, str(path))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **extras)


def _check_files(folder: Path) -> None:
    """Refuses pipes and devices, which transformers would wait for, and files larger than a tokenizer's can be."""
    for path in (*(folder / name for name in (*_TOKENIZER_FILES, *_FILES_BESIDE)), *folder.glob("*.jinja")):
        if os.path.lexists(path) and (size := check_regular(path)) > FILE_BYTES:
            raise UserError(f"{path}: has {size:,} bytes, expected at most {FILE_BYTES:,}")
    model = folder / "tokenizer.model"
    if not model.is_file() or (folder / "tokenizer.json").is_file():
        return
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2 as protocol
    except ImportError:  # then transformers cannot read it either, and says so
        return
    try:
        pieces = protocol.ModelProto.FromString(model.read_bytes()).pieces  # type: ignore[attr-defined]  # generated
    except DecodeError as error:
        raise UserError(f"{model}: cannot be read as sentencepiece, expected an undamaged file") from error
    longest = max((len(piece.piece) for piece in pieces), default=0)
    if longest > TOKEN_BYTES:
        raise UserError(f"{model}: a token of {longest:,} characters, expected at most {TOKEN_BYTES:,}")


def _added_texts(folder: Path, rules: Mapping[str, Any]) -> Iterator[str]:
    """Yields candidates for tokens that are added to a vocabulary as it is loaded, which normalizes them."""
    yield from texts_in(rules.get("added_tokens"))
    for name in _FILES_BESIDE:
        if name.endswith(".json") and (folder / name).is_file():
            yield from texts_in(read_json(folder / name, FILE_BYTES))


def _from_folder(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    _check_files(folder)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        packed = sorted(folder.glob("*.gguf"))
        hint = f" (did you mean '{packed[0]}'?)" if len(packed) == 1 else ""
        raise UserError(f"{folder}: no tokenizer in this folder, expected {' or '.join(_TOKENIZER_FILES)}{hint}")
    check_settings(folder)
    if (folder / "tokenizer.json").is_file():
        rules = read_json(folder / "tokenizer.json", FILE_BYTES)
        check_rules(rules, _added_texts(folder, rules), str(folder))
    # The parsers behind these calls raise bare Exceptions.
    try:
        if (folder / "tokenizer.json").is_file():
            found = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            found = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
            check_rules(rules_of(found), (), str(folder))
        found.decode(found("a b")["input_ids"])  # what only fails when it is used fails here
        return found
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{folder}: its tokenizer cannot be read ({reason}), expected undamaged files") from error
