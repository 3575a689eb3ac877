"""Chat templates: the tokenizer's own, one of a file, or a named one."""

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from jaxlm.data.chat.rendering import LONGEST, asks_for_time
from jaxlm.data.chat.template_setting import FOLDER, NAMES, is_source
from jaxrun.files.foreign_files import read_bytes
from jaxrun.files.home import from_home
from jaxrun.process.errors import UserError, nearest

_TAG = re.compile(r"<\|\w+\|>|<(?:start|end)_of_\w+>")


def template_text(given: str) -> str:
    """Returns the source of a template.

    Args:
        given: The path of a file, one of `NAMES`, or the source itself.

    Raises:
        UserError: There is no such file or name, or what it holds is no template.
    """
    if is_source(given):
        text, where = given, "chat_template"
    elif given in NAMES:
        return (FOLDER / f"{given}.jinja").read_text(encoding="utf-8")
    else:
        text, where = _read(from_home(given)), f"chat_template: {given}"
    if not re.search(r"\bmessages\b", text):
        raise UserError(f"{where}: never mentions 'messages', expected a Jinja template that writes them")
    try:
        asks_for_time(text)
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('chat template: ')}") from error
    return text


def with_template(tokenizer: PreTrainedTokenizerBase, setting: bool | str | None) -> PreTrainedTokenizerBase:
    """Returns the tokenizer with the chat template that ``data.chat_template`` says; the given one stays as it is.

    Raises:
        UserError: As `template_text`.
    """
    if not isinstance(setting, str):
        return tokenizer
    other = copy.copy(tokenizer)
    other.chat_template = template_text(setting)
    return other


def foreign_tags(tokenizer: PreTrainedTokenizerBase, setting: bool | str | None) -> Iterator[str]:
    """Yields the tags of a template, such as ``<|im_start|>``, that are no tokens of the tokenizer."""
    if isinstance(setting, str):
        for tag in dict.fromkeys(_TAG.findall(template_text(setting))):
            if tokenizer.convert_tokens_to_ids(tag) in (None, tokenizer.unk_token_id):
                yield tag


def _read(path: Path) -> str:
    try:
        return read_bytes(path, LONGEST).decode("utf-8")
    except (OSError, UserError) as error:
        if os.path.lexists(path):
            raise UserError(f"chat_template: {error}") from error
        beside = [other.name for other in path.parent.glob("*.jinja*")] if path.parent.is_dir() else []
        hint = nearest(str(path), NAMES) or nearest(path.name, beside)
        raise UserError(
            f"chat_template: no file {path}{hint}, expected true, false, a file such as chat.jinja, "
            f"or one of {', '.join(NAMES)}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"chat_template: {path}: not UTF-8 text (byte {error.start + 1}), expected a template"
        ) from error
