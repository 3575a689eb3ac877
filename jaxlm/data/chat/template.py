"""Conversations as a chat template writes them."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase

from jaxlm.data.chat.rendering import render
from jaxlm.data.documents import Chat, Message, RowError

Turn = dict[str, Any]
_TELLING = 8
"""Characters of a text that is not found elsewhere by chance."""


class Conversation:
    """One conversation and the template that writes it.

    Templates differ in what they take for an answer that only calls tools: most write arguments that are objects and
    skip a content that is null; some join arguments as text, fail at null, or write it as the word. The first form that
    the template writes as meant is taken for the whole conversation.

    Attributes:
        turns: The turns as the template gets them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: Chat, day: date | None = None) -> None:
        """Chooses the form.

        Args:
            tokenizer: With a chat template.
            chat: The conversation.
            day: What the template takes for today, if it asks for it.

        Raises:
            RowError: The template refuses the conversation in every form.
        """
        self._tokenizer, self._day = tokenizer, day
        self._special = tokenizer.special_tokens_map
        self._given = dict(chat.given)
        self._beginnings: dict[tuple[int, bool], str | RowError] = {}
        self.turns = self._readable(chat.messages)

    def write(self, turns: Sequence[Turn]) -> str:
        """Returns what the template writes for some turns.

        Raises:
            RowError: There are no turns, or the template refuses them.
        """
        return self._write(turns, self._given)

    def beginning(self, count: int | None = None, *, generate: bool = False) -> str:
        """Returns what it writes for the first turns, or for all, and with `generate` how it begins an answer.

        Raises:
            RowError: As `write`.
        """
        key = len(self.turns) if count is None else count, generate
        self.prepare([key])
        found = self._beginnings[key]
        if isinstance(found, RowError):
            raise found
        return found

    def prepare(self, wanted: Sequence[tuple[int, bool]]) -> None:
        """Writes several beginnings at once, which is faster, for `beginning` to return.

        Args:
            wanted: How many turns each has, and whether that of an answer is written after them.
        """
        missing = [key for key in dict.fromkeys(wanted) if key not in self._beginnings]
        if missing:
            self._beginnings |= zip(missing, self._write_all(self.turns, self._given, missing), strict=True)

    def unwritten(self, written: set[tuple[str, str]]) -> Iterator[str]:
        """Yields what of the conversation the template does not write, such as ``column 'tools'``.

        Args:
            written: Who said what under which key that is known to be written; grows.
        """
        whole = self.beginning()
        for name in self._given:
            if name not in ("tools", "documents"):
                if not re.search(rf"\b{re.escape(name)}\b", str(self._tokenizer.chat_template)):
                    yield f"'{name}' of chat_template_kwargs"
            elif ("", name) not in written:
                rest = {key: value for key, value in self._given.items() if key != name}
                if self._same(whole, self.turns, rest):
                    yield f"column '{name}'"
                else:
                    written.add(("", name))
        texts = Counter(value.strip() for turn in self.turns for value in turn.values() if isinstance(value, str))
        for place, turn in enumerate(self.turns):
            for key, value in turn.items():
                known = (turn["role"], key) in written
                if key == "role" or not value or _found(value, whole, known, texts):
                    continue
                less = {**turn, "content": ""} if key == "content" else {k: v for k, v in turn.items() if k != key}
                if self._same(whole, [*self.turns[:place], less, *self.turns[place + 1 :]], self._given):
                    yield f"'{key}' of {turn['role']} turns"
                else:
                    written.add((turn["role"], key))

    def _same(self, whole: str, turns: Sequence[Turn], given: Mapping[str, Any]) -> bool:
        try:
            return self._write(turns, given) == whole
        except RowError:
            return False

    def _readable(self, messages: Sequence[Message]) -> list[Turn]:
        calls = any(call["function"]["arguments"] for one in messages for call in one.more.get("tool_calls", ()))
        null = any(one.content is None for one in messages)
        forms = [
            [_turn(one, as_text=as_text, empty=empty) for one in messages]
            for as_text in ((False, True) if calls else (False,))
            for empty in ((None, "") if null else (None,))
        ]
        if len(forms) == 1:
            return forms[0]
        refusal = None
        for turns in forms:
            try:
                text = self._write(turns, self._given)
            except RowError as error:
                refusal = refusal or error
                continue
            if not self._misread(turns, text):
                return turns
        raise refusal or RowError("the chat template writes null or arguments of tool calls as Python does")

    def _misread(self, turns: Sequence[Turn], text: str) -> bool:
        """Whether the template writes a null as a word, or an object as Python shows it."""
        for turn in turns:
            for call in turn.get("tool_calls", ()):
                arguments = call["function"]["arguments"]
                if isinstance(arguments, dict) and str(arguments) in text and str(arguments) != json.dumps(arguments):
                    return True
        if "None" not in text:
            return False
        words = [{**turn, "content": "None"} if turn["content"] is None else turn for turn in turns]
        return words != list(turns) and self._same(text, words, self._given)

    def _write(self, turns: Sequence[Turn], given: Mapping[str, Any]) -> str:
        (found,) = self._write_all(turns, given, [(len(turns), False)])
        if isinstance(found, RowError):
            raise found
        return found

    def _write_all(
        self, turns: Sequence[Turn], given: Mapping[str, Any], wanted: Sequence[tuple[int, bool]]
    ) -> list[str | RowError]:
        if any(count == 0 for count, _ in wanted):
            raise RowError("the conversation begins with the assistant, expected a user's turn before it")
        try:
            template = self._tokenizer.get_chat_template(tools=given.get("tools"))
        except ValueError as error:
            raise RowError(f"the chat template refuses the conversation ({error})") from error
        # As transformers has it: a key that is null is not there.
        said = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
        return render(template, said, {**self._special, **given}, wanted, self._day)


def _turn(message: Message, *, as_text: bool, empty: str | None) -> Turn:
    turn = {"role": message.role, "content": empty if message.content is None else message.content, **message.more}
    if as_text and "tool_calls" in turn:
        turn["tool_calls"] = [_as_text(call) for call in turn["tool_calls"]]
    return turn


def _as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _found(value: Any, whole: str, known: bool, texts: Mapping[str, int]) -> bool:
    """Whether a value is written for certain: as text, as often as the turns have it."""
    if not isinstance(value, str):
        return known
    text = value.strip()
    return (known or len(text) >= _TELLING) and whole.count(text) >= texts[text]
