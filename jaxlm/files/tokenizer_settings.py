"""The settings of a tokenizer, whose values transformers takes as they are and fails at when a text comes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxrun.files.foreign_files import read_json
from jaxrun.process.errors import UserError

NAME = "tokenizer_config.json"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_token(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, Mapping) and _is_text(value.get("content")))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_template(value: Any) -> bool:
    if isinstance(value, list):
        return all(
            isinstance(one, Mapping) and all(_is_text(one.get(key)) for key in ("name", "template")) for one in value
        )
    return _is_text(value) or (isinstance(value, Mapping) and all(map(_is_text, value.values())))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_tokens(value: Any) -> bool:
    listed = list(value.values()) if isinstance(value, Mapping) else value
    return isinstance(listed, list) and all(map(_is_token, listed))


_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "split_special_tokens")
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_TOKENS, (_is_token, "a token's text")),
    **dict.fromkeys(_FLAGS, (_is_flag, "true or false")),
    "additional_special_tokens": (_are_tokens, "a list of tokens"),
    "extra_special_tokens": (_are_tokens, "a list of tokens"),
    "added_tokens_decoder": (_are_tokens, "tokens by their ids"),
    "chat_template": (_is_template, "a template, or several by name"),
    "model_input_names": (_are_texts, "a list of names"),
    "model_max_length": (_is_length, "a number of tokens"),
    "tokenizer_class": (_is_text, "a name"),
}
"""Keys, each with the check of its value, and the words of what is expected."""


def check_settings(folder: Path) -> None:
    """Makes sure that every value of tokenizer_config.json is of its key's kind, where there is such a file.

    Raises:
        UserError: One is not, or the file holds no JSON object.
    """
    path = folder / NAME
    if not path.is_file():
        return
    for key, value in read_json(path).items():
        holds, expected = _KINDS.get(key, (None, ""))
        if holds is not None and value is not None and not holds(value):
            raise UserError(f"{path}: {key} is {value!r:.80}, expected {expected}")
