"""The turns of a conversation, in the forms in which people keep them.

A turn has a role and a content under ``role`` and ``content``, or ``from`` and ``value``. Content is text, a list of
text parts, or nothing beside tool calls. What else a turn has goes to the chat template as it is, but for the keys that
say whether it is learnt.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlm.data.documents import Message, RowError
from jaxrun.process.errors import nearest

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "function_call",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_ROLES = ("assistant", "user", "system", "developer", "tool", "function", "ipython")
_LEARNT_KEYS = ("train", "training", "weight", "loss")
_CALLS = "tool_calls"


@dataclass(frozen=True)
class Turns:
    """A list of turns as read.

    Attributes:
        messages: The turns.
        notes: What of them is not used, such as ``'train' of user turns is not used``.
    """

    messages: tuple[Message, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TurnReader:
    """Reads lists of turns.

    Attributes:
        role_key: Who speaks; None is ``role`` or ``from``, whichever the first turn has.
        content_key: What is said; None is ``content`` or ``value``.
        roles: The data's own names of roles -> ours.
    """

    role_key: str | None = None
    content_key: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)

    def read(self, given: Any, column: str, *, known: Mapping[str, str] | None = None) -> Turns:
        """Reads one list.

        Args:
            given: The list, or JSON of it.
            column: Where it stands.
            known: The only names that roles may have -> ours; None takes any.

        Raises:
            RowError: It is no list of turns that can be used.
        """
        turns = from_json(given)
        if not isinstance(turns, list) or not turns:
            raise RowError(f"'{column}' is {kind_of(turns)}, expected a list of messages")
        first = turns[0] if isinstance(turns[0], Mapping) else {}
        role, content = ("from", "value") if "from" in first and "role" not in first else ("role", "content")
        keys = self.role_key or role, self.content_key or content
        notes: list[str] = []
        messages = [self._turn(turn, f"{column}[{number}]", keys, known, notes) for number, turn in enumerate(turns)]
        return Turns(tuple(messages), tuple(notes))

    def _turn(
        self, turn: Any, where: str, keys: tuple[str, str], known: Mapping[str, str] | None, notes: list[str]
    ) -> Message:
        role_key, content_key = keys
        if not isinstance(turn, Mapping):
            raise RowError(f"{where} is {kind_of(turn)}, expected an object with '{role_key}' and '{content_key}'")
        role = self._role(turn.get(role_key), where, role_key, known)
        content, more = turn.get(content_key), {key: value for key, value in turn.items() if key not in keys}
        if role == "function_call":
            role, content, more = "assistant", None, {**more, _CALLS: content}
        text = _content(content, where, content_key, notes)
        more = {key: value for key, value in more.items() if not is_nothing(value)}
        marks = {key: more.pop(key) for key in _LEARNT_KEYS if key in more}
        check_unicode(more, where)
        if _CALLS in more:
            more[_CALLS] = _calls(more[_CALLS], f"{where}.{_CALLS}")
        learnt = _learnt(marks, role, where, notes)
        if role not in _ROLES:
            notes.append(f"turns by '{role}'{nearest(role, _ROLES)} are not learnt")
        if text is None and (role != "assistant" or not more):
            raise RowError(f"{where} has null as '{content_key}', expected a string")
        if role == "assistant" and learnt and not more and not str(text).strip():
            raise RowError(f"{where} is empty, expected something to learn")
        return Message(role, text, more, learnt)

    def _role(self, role: Any, where: str, key: str, known: Mapping[str, str] | None) -> str:
        if not isinstance(role, str) or not role:
            raise RowError(f"{where} has no '{key}', expected who speaks")
        check_unicode(role, f"{where}.{key}")
        if role in self.roles:
            return self.roles[role]
        if known is not None and role not in known:
            valid = [*self.roles, *known]
            raise RowError(f"{where} is by '{role}'{nearest(role, valid)}, expected one of {', '.join(valid)}")
        return role if known is None else known[role]


def read_tools(given: Any, where: str) -> list[dict[str, Any]]:
    """Reads what an assistant may call: a list of descriptions, or JSON of one.

    A bare function, as OpenAI's older form and LLaMA-Factory's have it, becomes ``{"type": "function", ...}``.

    Raises:
        RowError: It is no list of objects.
    """
    tools = _each_from_json(from_json(given))
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError(f"'{where}' is {_list_of(tools)}, expected a list of objects that describe tools, or JSON of it")
    check_unicode(tools, where)
    return [dict(tool) if "name" not in tool or "type" in tool else _function(tool) for tool in tools]


def from_json(value: Any) -> Any:
    """Returns what a string of a JSON list or object holds; every other value passes unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _each_from_json(value: Any) -> Any:
    """Reads what a list has as JSON, one text for each: columnar files cannot hold objects that differ."""
    return [from_json(one) for one in value] if isinstance(value, list) else value


def is_nothing(value: Any) -> bool:
    """Whether a value says no more than its absence: null, or an empty text, list or object."""
    return value is None or (isinstance(value, str | list | Mapping) and not value)


def check_unicode(value: Any, where: str) -> None:
    """Checks every text in a value, names of keys included.

    Raises:
        RowError: One holds half of a surrogate pair.
    """
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(f"'{where}' holds half a surrogate pair, expected valid Unicode") from error
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_unicode(key, f"a key of {where}")
            check_unicode(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            check_unicode(inner, f"{where}[{number}]")


def kind_of(value: Any) -> str:
    """Names the kind of a JSON value."""
    if value is None:
        return "null"
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), f"a {type(value).__name__}")


def _content(value: Any, where: str, key: str, notes: list[str]) -> str | None:
    """Returns a turn's text: of a list of parts (``[{"type": "text", "text": ...}]``) all of them joined."""
    if isinstance(value, list) and value:
        value = "".join(_part(part, f"{where}.{key}[{number}]", notes) for number, part in enumerate(value))
    if value is not None and not isinstance(value, str):
        raise RowError(f"{where} has {kind_of(value)} as '{key}', expected a string")
    check_unicode(value, where)
    return value


def _part(part: Any, where: str, notes: list[str]) -> str:
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind is None or not isinstance(kind, str):
        raise RowError(f"{where} is {kind_of(part)}, expected a part such as {{'type': 'text', 'text': ...}}")
    if kind != "text":
        raise RowError(f"{where} is of type '{kind}', expected text: nothing else is learnt here")
    if not isinstance(part.get("text"), str):
        raise RowError(f"{where} has {kind_of(part.get('text'))} as 'text', expected a string")
    extra = [key for key, value in part.items() if key not in ("type", "text") and not is_nothing(value)]
    notes += [f"'{key}' of content parts is not used" for key in extra]
    return str(part["text"])


def _calls(given: Any, where: str) -> list[dict[str, Any]]:
    """Reads tool calls; arguments become objects, which is what chat templates are given in transformers."""
    calls = from_json(given)
    calls = [calls] if isinstance(calls, Mapping) else _each_from_json(calls)
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise RowError(f"'{where}' is {_list_of(calls)}, expected a list of tool calls, or JSON of it")
    check_unicode(calls, where)
    return [_call(call, f"{where}[{number}]") for number, call in enumerate(calls)]


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    whole = dict(call) if isinstance(call.get("function"), Mapping) else _function(call)
    function = dict(whole["function"])
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError(f"{where} has no 'name', expected which tool is called")
    arguments = from_json(function.get("arguments"))
    arguments = {} if is_nothing(arguments) else arguments
    if not isinstance(arguments, Mapping):
        raise RowError(f"{where} has {kind_of(arguments)} as 'arguments', expected an object, or JSON of one")
    check_unicode(arguments, f"{where}.arguments")
    return {**whole, "function": {**function, "arguments": arguments}}


def _function(bare: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": dict(bare)}


def _learnt(marks: Mapping[str, Any], role: str, where: str, notes: list[str]) -> bool:
    for key, value in marks.items():
        if value not in (0, 1):
            given = value if isinstance(value, int | float) else kind_of(value)
            raise RowError(f"{where} has {given} as '{key}', expected true or false, or 1 or 0")
        if value and role != "assistant":
            notes.append(f"'{key}' of {role} turns is not used")
    return all(marks.values())


def _list_of(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return kind_of(value)
    return f"a list with {next(kind_of(one) for one in value if not isinstance(one, Mapping))}"


def first_system(messages: Sequence[Message]) -> bool:
    """Whether a conversation brings its own system prompt."""
    return bool(messages) and messages[0].role in ("system", "developer")
