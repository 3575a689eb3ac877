"""From a document to tokens, and which of them the loss counts."""

from dataclasses import dataclass
from typing import Literal

import jinja2
import numpy as np
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerBase

from backbone.data.formats import Chat, Document, Message, Pair, RowError, Text


class TemplateError(Exception):
    """The chat template writes a conversation's beginning differently once the conversation goes on."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question to generate from, and the answer to compare with.

    Attributes:
        tokens: int32 [length]; up to where the answer begins.
        answer: The reference completion as text.
    """

    tokens: Int32[np.ndarray, " length"]
    answer: str


class Encoder:
    """Writes documents as tokens.

    Args:
        tokenizer: With a chat template, if conversations are to be written.
        train_on: Count completions only, or every token; running text always counts in full.
        separator: Stands between prompt and completion of a `Pair` that has no white space where they meet.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        train_on: Literal["completion", "all"] = "completion",
        separator: str = "\n",
    ) -> None:
        self._tokenizer = tokenizer
        self._train_on = train_on
        self._separator = separator
        self._special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self._leading = self._before_every_text()

    def encode(self, document: Document) -> tuple[Int32[np.ndarray, " length"], Bool[np.ndarray, " length"]]:
        """Returns a document's tokens and which of them are loss targets.

        A completion's targets are its own tokens and the one that ends it: the end-of-turn token of the chat template,
        or the end-of-text token where no template ends it. The tokens of the first prompt are those of `prompt`.

        Raises:
            RowError: The chat template refuses the conversation.
            TemplateError: The completions cannot be told from the rest of what the template writes.
        """
        pieces = self._pieces(document)
        parts = self._tokenize([text for text, _ in pieces])
        if isinstance(document, Chat):
            marks = [self._until_end_of_turn(ids, learnt) for ids, (_, learnt) in zip(parts, pieces, strict=True)]
            ended = not self._special.isdisjoint(parts[-1])
        else:
            parts[0] = self._leading + parts[0]
            marks = [[learnt] * len(ids) for ids, (_, learnt) in zip(parts, pieces, strict=True)]
            ended = parts[-1][-1:] == [self._tokenizer.eos_token_id]
        if pieces[-1][1] and not ended and self._tokenizer.eos_token_id is not None:
            parts.append([self._tokenizer.eos_token_id])
            marks.append([True])
        tokens = np.array([token for ids in parts for token in ids], np.int32)
        targets = np.array([mark for part in marks for mark in part], bool)
        if self._train_on == "all":
            targets[:] = True
        targets[:1] = False  # nothing comes before it to predict it from
        return tokens, targets

    def prompt(self, document: Document) -> Prompt:
        """Returns what to generate from, and the reference answer, for exact-match evaluation.

        Raises:
            RowError: The document is running text, or a conversation that does not end with an answer.
        """
        if isinstance(document, Text):
            raise RowError("running text has no prompt, expected a prompt and a completion")
        if isinstance(document, Pair):
            ids = self._leading + self._ids(self._prompt_text(document))
            return Prompt(np.array(ids, np.int32), document.completion)
        last = document.messages[-1]
        if last.role != "assistant":
            raise RowError(f"the last turn is by '{last.role}', expected the assistant's answer")
        text = self._render(document.messages[:-1], generate=True)
        return Prompt(np.array(self._ids(text), np.int32), last.content)

    def _pieces(self, document: Document) -> list[tuple[str, bool]]:
        """Cuts what is to be written into consecutive texts, each with whether it is to be learnt."""
        if isinstance(document, Text):
            return [(document.text, True)]
        if isinstance(document, Pair):
            return [(self._prompt_text(document), False), (document.completion, True)]
        messages = document.messages
        whole = self._render(messages)
        if self._train_on == "all":
            return [(whole, True)]
        pieces: list[tuple[str, bool]] = []
        at = 0
        for index in range(document.first, len(messages)):
            if messages[index].role != "assistant":
                continue
            before = self._render(messages[:index], generate=True)
            end = self._end_of_turn(messages, index, whole)
            if not whole.startswith(before) or not at <= len(before) < end:
                raise TemplateError(f"the chat template rewrites what stands before turn {index + 1}")
            pieces += [(whole[at : len(before)], False), (whole[len(before) : end], True)]
            at = end
        return [*pieces, (whole[at:], False)] if at < len(whole) else pieces

    def _prompt_text(self, pair: Pair) -> str:
        spaced = pair.prompt[-1:].isspace() or pair.completion[:1].isspace()
        return pair.prompt if spaced else pair.prompt + self._separator

    def _end_of_turn(self, messages: tuple[Message, ...], index: int, whole: str) -> int:
        """Returns where in `whole` the turn at `index` ends."""
        through = self._render(messages[: index + 1])
        if whole.startswith(through):
            return len(through)
        # Some templates (Qwen3's) write an answer differently once another question follows. The answer then ends
        # where that question begins, and the question is what they write for it when the answer is left out.
        following = self._render(messages[: index + 2])
        without = self._render((*messages[:index], messages[index + 1]))
        beginning = self._render(messages[:index])
        question = without[len(beginning) :]
        if whole.startswith(following) and without.startswith(beginning) and question and following.endswith(question):
            return len(following) - len(question)
        raise TemplateError(f"the chat template rewrites turn {index + 1} as the conversation goes on")

    def _render(self, messages: tuple[Message, ...], *, generate: bool = False) -> str:
        """Returns what the template writes, and with `generate` also how it begins the next answer."""
        if not messages:
            raise RowError("the conversation begins with the assistant, expected a user's turn before it")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate))
        except (jinja2.TemplateError, IndexError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RowError(f"the chat template refuses the conversation ({reason})") from error

    def _until_end_of_turn(self, ids: list[int], learnt: bool) -> list[bool]:
        """Counts a turn up to its last special token, so not the line break that templates like to write after it."""
        last = max((place for place, token in enumerate(ids) if token in self._special), default=-1)
        if last >= 0 and not str(self._tokenizer.decode(ids[last + 1 :])).strip():
            return [learnt and place <= last for place in range(len(ids))]
        return [learnt] * len(ids)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Tokenizes consecutive pieces of a text: as one while no token crosses a seam, from there each by itself."""
        parts: list[list[int]] = []
        whole = ""
        ids: list[int] = []
        for place, text in enumerate(texts):
            whole += text
            longer = self._ids(whole)
            if longer[: len(ids)] != ids:
                return parts + [self._ids(rest) for rest in texts[place:]]
            parts.append(longer[len(ids) :])
            ids = longer
        return parts

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _before_every_text(self) -> list[int]:
        """Returns what the tokenizer puts before a text, such as BOS."""
        bare, dressed = self._ids("a"), list(self._tokenizer("a")["input_ids"])
        starts = range(len(dressed) - len(bare) + 1)
        return next((dressed[:start] for start in starts if dressed[start : start + len(bare)] == bare), [])
