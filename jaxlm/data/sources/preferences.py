"""Preference pairs: two answers to one prompt, in the forms in which people keep them.

The answers are in ``chosen`` and ``rejected``, as texts or as turns. The prompt is in ``prompt`` (TRL), in
``instruction`` and ``input`` or in ``conversations`` (LLaMA-Factory's ranking format), or in ``messages`` (axolotl); or
it is what both answers begin with (TRL's implicit prompt).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxlm.data.documents import Chat, Document, Message, Pair, RowError, shared_beginning
from jaxlm.data.sources.cells import Cells, alpaca, conversation, prompted
from jaxlm.data.sources.turns import SHAREGPT_ROLES, from_json, kind_of

ANSWERS = ("chosen", "rejected")


def read_preference(cells: Cells) -> tuple[Document, Document]:
    """Reads a pair: the answer that is preferred, and the other, each behind its prompt.

    Raises:
        RowError: An answer or the prompt is missing or of another type than expected, or both answers are the same.
    """
    given = tuple(_turns_in(cells.take(column), cells) for column in ANSWERS)
    names = " and ".join(f"'{cells.name(column)}'" for column in ANSWERS)
    if given[0] == given[1]:
        raise RowError(f"{names} are the same, expected two answers of which one is preferred")
    texts = [isinstance(one, str) for one in given]
    if texts[0] != texts[1]:
        raise RowError(f"one of {names} is a string, expected both or none")
    return _texts(cells) if texts[0] and not _prompt_is_turns(cells) else _turns(cells, given)


def _turns_in(value: Any, cells: Cells) -> Any:
    """Returns the turns that a text holds as JSON; other JSON is an answer like any text."""
    found = from_json(value)
    if found is value:
        return value
    turns = found if isinstance(found, list) else [found]
    return found if turns and all(cells.is_turn(turn) for turn in turns) else value


def _last_alone(document: Document) -> Document:
    """Returns an answer without what a history before it has the assistant say: that is of both answers."""
    return replace(document, first=len(document.messages) - 1) if isinstance(document, Chat) else document


def _prompt_is_turns(cells: Cells) -> bool:
    if cells.has("prompt"):
        return not isinstance(_turns_in(cells.take("prompt"), cells), str)
    return not cells.has("instruction") and (cells.has("conversations") or cells.has("messages"))


def _texts(cells: Cells) -> tuple[Document, Document]:
    chosen, rejected = (cells.text(column) for column in ANSWERS)
    if cells.has("prompt"):
        prompt = cells.take("prompt")
        if prompt.strip() and chosen.startswith(prompt) and rejected.startswith(prompt):
            cells.notes.append(f"both answers begin with '{cells.name('prompt')}', which is written before them, too")
        return prompted(cells, chosen), prompted(cells, rejected)
    if cells.has("instruction"):
        return _last_alone(alpaca(cells, chosen)), _last_alone(alpaca(cells, rejected))
    at = shared_beginning(chosen, rejected)
    while at and not chosen[at - 1].isspace():  # answers may begin with the same letters
        at -= 1
    if at and chosen[at - 1] == " ":  # which belongs to the answer
        at -= 1
    if not chosen[:at].strip() or not chosen[at:].strip() or not rejected[at:].strip():
        raise RowError(f"no prompt, and the answers do not begin with one, {_expected(cells)}")
    return Pair(chosen[:at], chosen[at:]), Pair(rejected[:at], rejected[at:])


def _turns(cells: Cells, given: Sequence[Any]) -> tuple[Document, Document]:
    column = next((one for one in ("prompt", "conversations", "messages") if cells.has(one)), None)
    known = SHAREGPT_ROLES if column == "conversations" else None
    chosen, rejected = (
        cells.read_turns(_as_turns(one), cells.name(name), known) for name, one in zip(ANSWERS, given, strict=True)
    )
    shared = shared_beginning(chosen, rejected)
    before: tuple[Message, ...] = ()
    if column is not None:
        prompt = _turns_in(cells.take(column), cells)
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        before = cells.read_turns(turns, cells.name(column), known)
        said = [_stripped(message) for message in before]
        if said == [_stripped(message) for message in chosen[:shared]][-len(said) :]:  # the answers bring it
            before = ()
        elif before and shared and before[-1].role == chosen[0].role:
            names = " and ".join(f"'{cells.name(answer)}'" for answer in ANSWERS)
            raise RowError(
                f"'{cells.name(column)}' is another turn of the {chosen[0].role} than that with which {names} begin, "
                "expected the same, or one of them alone"
            )
    if not before and not shared:
        raise RowError(f"no prompt, and the answers do not begin with the same turns, {_expected(cells)}")
    if shared in (len(chosen), len(rejected)):
        raise RowError("one answer is the beginning of the other, expected two answers")
    first = len(before) + shared
    return conversation(cells, (*before, *chosen), first), conversation(cells, (*before, *rejected), first)


def _stripped(message: Message) -> str | None:
    return message.content if message.content is None else message.content.strip()


def _expected(cells: Cells) -> str:
    columns = [f"'{cells.name(column)}'" for column in ("prompt", "instruction", "conversations", "messages")]
    return f"expected one in {', '.join(columns[:-1])} or {columns[-1]}; data.columns can name others"


def _as_turns(given: Any) -> Any:
    """Returns an answer as turns: of a text or of a single turn a list."""
    if isinstance(given, str):
        return [{"role": "assistant", "content": given}]
    if isinstance(given, Mapping):
        return [given]
    if not isinstance(given, list):
        raise RowError(f"an answer is {kind_of(given)}, expected a string, a turn or a list of turns")
    return given
