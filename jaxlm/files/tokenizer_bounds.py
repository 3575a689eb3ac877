"""Tokenizers that others wrote: rules that can run away are tried on each text in a process of its own first."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from jaxlm.files.gguf.tokenizer import PATTERNS
from jaxrun.process.errors import UserError
from jaxrun.untrusted.confined import Confined, Exceeded

if TYPE_CHECKING:  # without it the process that tries texts starts in a tenth of the time
    from transformers import PreTrainedTokenizerBase

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_KNOWN = PATTERNS | {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Patterns that match in a time that grows with the text alone: those of the usual models."""
_GROWING = ("ByteLevel", "BertNormalizer", "Precompiled", "Metaspace")
_STEPS, _GROWTHS, _ADDED, _PIECES = 16, 3, 16, 16
_BEFORE = ("normalizer", "pre_tokenizer")
_TRIAL = Confined("jaxlm.files.tokenizer_bounds:answer")


def check_rules(rules: Mapping[str, Any], texts: Iterable[str], where: str) -> None:
    """Refuses rules by which a tokenizer may grow a text without bounds.

    Args:
        rules: Its parts, as in tokenizer.json.
        texts: What it cuts as it is loaded: its own added tokens.
        where: What to call it in messages.

    Raises:
        UserError: It puts the text in many times, its decoder has patterns or texts of its own, or it runs away on
            one of the texts.
    """
    after, decoder = rules.get("post_processor"), rules.get("decoder")
    pieces = max((len(one.get(key) or ()) for one in _steps(after) for key in ("single", "pair")), default=0)
    if pieces > _PIECES or not _is_plain(decoder):
        which = "post_processor" if pieces > _PIECES else "decoder"
        raise UserError(f"{where}: its tokenizer's {which} may write texts without bounds, expected a usual one")
    if (tried := _trial(rules)) is not None:
        for text in ("a b", *texts):
            with _named(where):
                tried(text)


def rules_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Returns the parts of a tokenizer that is loaded, as in tokenizer.json."""
    return {name: _part(tokenizer, name) for name in (*_BEFORE, "post_processor", "decoder")}


def texts_in(data: Any) -> Iterator[str]:
    """Yields every text of JSON data."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping | list):
        for one in [*data, *data.values()] if isinstance(data, Mapping) else data:
            yield from texts_in(one)


def trial_of(tokenizer: "PreTrainedTokenizerBase") -> Callable[[str], None] | None:
    """Returns a function that tries a text before the tokenizer cuts it, or None where its rules are usual ones.

    The call raises `Exceeded` where a text takes too much time or memory, or a pattern gives up on it.
    """
    return _trial(rules_of(tokenizer))


def _trial(given: Mapping[str, Any]) -> Callable[[str], None] | None:
    parts = {name: given.get(name) for name in _BEFORE}
    if all(map(_is_plain, parts.values())):
        return None
    around = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    rules = json.dumps({"version": "1.0", **around, "added_tokens": [], **parts, "model": model})

    def tried(text: str) -> None:
        try:
            found = _TRIAL.ask({"rules": rules, "text": text})
        except Exceeded as error:
            raise Exceeded(f"tokenizer: {error} for {len(text):,} characters, expected one whose rules end") from error
        if "wrong" in found:
            raise Exceeded(
                f"tokenizer: gives up on {len(text):,} characters ({found['wrong']}), expected one that cuts"
            )

    return tried


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except Exceeded as error:
        raise UserError(f"{where}: {error}") from error


@contextlib.contextmanager
def panics(where: str) -> Iterator[None]:
    """Turns a panic of the tokenizers package, which is no `Exception`, into one line.

    Raises:
        UserError: In place of a panic.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{where}: {_first_line(error)}, expected a usual tokenizer") from error


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Cuts a text in a process of its own."""
    try:
        _tokenizer(request["rules"]).encode(request["text"])
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return {"wrong": _first_line(error)}
    return {}


@lru_cache(maxsize=4)
def _tokenizer(rules: str) -> Tokenizer:
    return Tokenizer.from_str(rules)


def _part(tokenizer: "PreTrainedTokenizerBase", name: str) -> Any:
    part = getattr(getattr(tokenizer, "backend_tokenizer", None), name, None)
    return None if part is None else json.loads(part.__getstate__())


def _steps(state: Any) -> Iterator[dict[str, Any]]:
    """Yields the steps of a part, of whatever depth."""
    if isinstance(state, dict):
        if "type" in state:
            yield state
        for inner in state.values():
            yield from _steps(inner)
    elif isinstance(state, list):
        for inner in state:
            yield from _steps(inner)


def _is_plain(state: Any) -> bool:
    """Whether the time that a part takes, and the text that it makes, grow with the text alone and by little."""
    steps = list(_steps(state))
    patterns = [step["pattern"] for step in steps if isinstance(step.get("pattern"), dict)]
    if len(steps) > _STEPS or any("Regex" in one and one["Regex"] not in _KNOWN for one in patterns):
        return False
    added = [step for step in steps if step["type"] in ("Replace", "Prepend")]
    longer = [one for one in added if len(_written(one)) > len((one.get("pattern") or {}).get("String", ""))]
    growths = len(longer) + sum(step["type"] in _GROWING for step in steps)
    return growths <= _GROWTHS and all(len(_written(one)) <= _ADDED for one in added)


def _written(step: dict[str, Any]) -> str:
    return str(step.get("content") or step.get("prepend") or "")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__
