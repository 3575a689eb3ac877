"""From a document to tokens, and which of them the loss counts."""

from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerBase

from jaxlm.data.chat.answer_spans import answer_span
from jaxlm.data.chat.chat_templates import with_template
from jaxlm.data.chat.rendering import asks_for_time
from jaxlm.data.chat.template import Conversation
from jaxlm.data.config import DataConfig
from jaxlm.data.documents import Chat, Document, Message, Pair, RowError, Text
from jaxlm.files.tokenizer_bounds import panics, trial_of
from jaxrun.process.errors import UserError


class Encoded(NamedTuple):
    """A document as tokens.

    Attributes:
        tokens: int32 [length].
        targets: bool [length]; which of them the loss counts.
        ends: Places of the tokens that end what is learnt: of each of the assistant's turns, of a completion, of a
            text. The last stretch has none where there is no token to end it with.
    """

    tokens: Int32[np.ndarray, " length"]
    targets: Bool[np.ndarray, " length"]
    ends: tuple[int, ...]


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
    """Writes documents as tokens; the same ones for training, evaluation and generation.

    Attributes:
        template: Whether the tokenizer's chat template writes prompts and completions.
        day: What the chat template takes for today.
        asks_for_day: Whether the chat template asks for it, so that what it writes depends on it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        train_on: Literal["completion", "all"] = "completion",
        separator: str = "\n",
        template: bool | None = None,
        day: date | None = None,
    ) -> None:
        """Looks at what the tokenizer adds to texts.

        Args:
            tokenizer: With a chat template, if conversations are to be written.
            train_on: Count completions only, or every token; running text always counts in full.
            separator: Stands between prompt and completion of a `Pair` that has no white space where they meet.
            template: Whether the chat template is used; None is where there is one.
            day: What the chat template takes for today; None is today.

        Raises:
            UserError: There is no chat template to use, or it draws at random.
        """
        if template and tokenizer.chat_template is None:
            raise UserError("chat_template is true but the tokenizer has no chat template, expected false or null")
        self._tokenizer = tokenizer
        self._train_on = train_on
        self._separator = separator
        self.template = tokenizer.chat_template is not None if template is None else template
        self.day = day or date.today()
        self.asks_for_day = self.template and any(asks_for_time(one) for one in _templates(tokenizer))
        self._special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self._try = trial_of(tokenizer)
        self._leading = self._before_every_text()
        self._written: set[tuple[str, str]] = set()
        self._newest: tuple[Chat, Conversation] | None = None

    @classmethod
    def of(cls, config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None) -> Self:
        """Returns the encoder of a task's rows, which is also that of what is asked of its adapters.

        Raises:
            UserError: As the constructor.
        """
        template = True if isinstance(config.chat_template, str) else config.chat_template
        tokenizer = with_template(tokenizer, config.chat_template)
        return cls(tokenizer, train_on=config.train_on, separator=config.separator, template=template, day=day)

    @cached_property
    def turn_ends(self) -> tuple[int, ...]:
        """Tokens with which the chat template ends the assistant's turn; none where it has no token for that."""
        if not self.template:
            return ()
        answer = "xyzzy"
        try:
            written = self._conversation(Chat((Message("user", "a"), Message("assistant", answer)))).beginning()
        except RowError:
            return ()
        after = self._ids(written.rpartition(answer)[2])
        place = self._last(after, {*self._tokenizer.added_tokens_decoder, self._tokenizer.eos_token_id})
        return () if place is None else (after[place],)

    @cached_property
    def _closing(self) -> set[int | None]:
        """Tokens that may end a turn: special ones, and the template's own whatever the tokenizer calls it."""
        return {*self._special, *self.turn_ends, self._tokenizer.eos_token_id}

    def encode(self, document: Document) -> Encoded:
        """Returns a document's tokens and which of them are loss targets.

        A completion's targets are its own tokens and the one that ends it: the end-of-turn token of the chat template,
        or the end-of-text token where no template ends it. The tokens of the first prompt are those of `prompt`.
        What the tokenizer puts before every text stands there once, and is never a target.

        Raises:
            RowError: The chat template refuses the conversation.
            TemplateError: The completions cannot be separated from the rest of what the template writes.
        """
        pieces = self._pieces(document)
        parts = self._tokenize([text for text, _ in pieces])
        if isinstance(document, Chat):
            closing = self._closing
        else:
            parts[0] = self._begun(parts[0])
            closing = {self._tokenizer.eos_token_id}
        tokens: list[int] = []
        targets: list[bool] = []
        ends: list[int] = []
        for number, (ids, (_, learnt)) in enumerate(zip(parts, pieces, strict=True)):
            # A turn counts up to the token that ends it, so not with the line break that templates write after that.
            last = self._last(ids, closing) if learnt else None
            if learnt and last is None and number == len(parts) - 1 and self._tokenizer.eos_token_id is not None:
                ids, last = [*ids, self._tokenizer.eos_token_id], len(ids)
            if last is not None:
                ids, last = _ended_once(ids, last)
                ends.append(len(tokens) + last)
            targets += [learnt and (last is None or place <= last) for place in range(len(ids))]
            tokens += ids
        row, counted = np.array(tokens, np.int32), np.array(targets, bool)
        if self._train_on == "all":
            counted[:] = True
        never = set(self._leading) - {tokens[place] for place in ends} - {self._tokenizer.eos_token_id}
        counted[np.isin(row, list(never))] = False
        counted[:1] = False  # nothing comes before it to predict it from
        return Encoded(row, counted, tuple(ends))

    def prompt(self, document: Document) -> Prompt:
        """Returns what to generate from, and the reference answer, for exact-match evaluation.

        Raises:
            RowError: The document is running text, or a conversation that does not end with an answer.
        """
        if isinstance(document, Text):
            raise RowError("running text has no prompt, expected a prompt and a completion")
        if isinstance(document, Pair):
            ids = self._begun(self._ids(self._prompt_text(document)))
            return Prompt(np.array(ids, np.int32), document.completion)
        last = document.messages[-1]
        if last.role != "assistant":
            raise RowError(f"the last turn is by '{last.role}', expected the assistant's answer")
        conversation = self._conversation(document)
        text = conversation.beginning(len(conversation.turns) - 1, generate=True)
        answer = last.content or ""
        if last.more:  # what it calls and thinks is written by the template, and is part of the answer
            rest = conversation.beginning()[len(text) :]
            answer = str(self._tokenizer.decode(self._ids(rest), skip_special_tokens=True))
        return Prompt(np.array(self._ids(text), np.int32), answer)

    def asked(self, document: Document) -> Int32[np.ndarray, " length"]:
        """Returns what to continue: a question as `prompt` has it, or running text without its end.

        Raises:
            RowError: The chat template refuses the question.
        """
        if isinstance(document, Text):
            return np.array(self._begun(self._ids(document.text)), np.int32)
        return self.prompt(document).tokens

    def unwritten(self, document: Document) -> list[str]:
        """Returns what of a conversation the chat template does not write, such as ``column 'tools'``."""
        if not isinstance(document, Chat):
            return []
        return list(dict.fromkeys(self._conversation(document).unwritten(self._written)))

    def _conversation(self, chat: Chat) -> Conversation:
        if self._newest is None or self._newest[0] is not chat:
            self._newest = chat, Conversation(self._tokenizer, chat, self.day if self.asks_for_day else None)
        return self._newest[1]

    def _pieces(self, document: Document) -> list[tuple[str, bool]]:
        """Cuts what is to be written into consecutive texts, each with whether it is to be learnt."""
        if isinstance(document, Text):
            return [(document.text, True)]
        if isinstance(document, Pair):
            return [(self._prompt_text(document), False), (document.completion, True)]
        messages, conversation = document.messages, self._conversation(document)
        if self._train_on == "all":
            return [(conversation.beginning(), True)]
        answers = [
            index
            for index in range(document.first, len(messages))
            if messages[index].role == "assistant" and messages[index].learnt
        ]
        spans = [key for index in answers if index for key in ((index, True), (index + 1, False))]
        conversation.prepare([(len(messages), False), *spans])
        whole = conversation.beginning()
        pieces: list[tuple[str, bool]] = []
        at = 0
        for index in answers:
            start, end = answer_span(conversation, index, whole, at)
            pieces += [(whole[at:start], False), (whole[start:end], True)]
            at = end
        return [*pieces, (whole[at:], False)] if at < len(whole) else pieces

    def _prompt_text(self, pair: Pair) -> str:
        spaced = pair.prompt[-1:].isspace() or pair.completion[:1].isspace()
        return pair.prompt if spaced else pair.prompt + self._separator

    def _last(self, ids: list[int], closing: set[int | None]) -> int | None:
        """Returns where a text's last token of `closing` is, if nothing but white space follows."""
        last = next((place for place in reversed(range(len(ids))) if ids[place] in closing), None)
        if last is None or str(self._tokenizer.decode(ids[last + 1 :])).strip():
            return None
        return last

    def _begun(self, ids: list[int]) -> list[int]:
        """Puts before a text what the tokenizer puts there, unless the text brings it."""
        return ids if ids[: len(self._leading)] == self._leading else self._leading + ids

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Tokenizes consecutive pieces of a text: as one while no token crosses a seam, from there each by itself."""
        parts: list[list[int]] = []
        whole = ""
        ids: list[int] = []
        for place, text in enumerate(texts):
            whole += text
            longer = self._ids(whole)
            if longer[: len(ids)] != ids:
                return parts + [self._inside(rest) for rest in texts[place:]]
            parts.append(longer[len(ids) :])
            ids = longer
        return parts

    def _inside(self, text: str) -> list[int]:
        """Tokenizes text that follows other text: without the space that some tokenizers put before a beginning."""
        line_break = self._ids("\n")
        ids = self._ids("\n" + text)
        return ids[len(line_break) :] if ids[: len(line_break)] == line_break else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        if self._try is not None:
            self._try(text)
        with panics("tokenizer"):
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _before_every_text(self) -> list[int]:
        """Returns what the tokenizer puts before a text, such as BOS."""
        bare, dressed = self._ids("a"), list(self._tokenizer("a")["input_ids"])
        starts = range(len(dressed) - len(bare) + 1)
        return next((dressed[:start] for start in starts if dressed[start : start + len(bare)] == bare), [])


def _templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns a tokenizer's chat template, or all where it has several by name."""
    given = tokenizer.chat_template
    return list(given.values()) if isinstance(given, dict) else [given]


def _ended_once(ids: list[int], last: int) -> tuple[list[int], int]:
    """Drops all but one of the equal tokens that end at `last`: an answer may bring the end that a template adds."""
    first = last
    while first > 0 and ids[first - 1] == ids[last]:
        first -= 1
    return ids[: first + 1] + ids[last + 1 :], first
