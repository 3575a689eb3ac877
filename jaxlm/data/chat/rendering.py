"""Chat templates are programs that others wrote: each runs in a process of its own, within limits."""

from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from jaxlm.data.chat import template_date
from jaxlm.data.documents import RowError
from jaxrun.process.errors import UserError
from jaxrun.untrusted.confined import Confined, Exceeded

LONGEST = 2**20
"""Characters of a template."""
# What the code of a template may raise at what it does not expect.
_REFUSALS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_AT_ONCE = 32
"""Beginnings that share the time of one request."""
_PROCESS = Confined("jaxlm.data.chat.rendering:answer")


@lru_cache
def asks_for_time(template: str) -> bool:
    """Whether what a template writes depends on when it is written.

    Args:
        template: Its source.

    Raises:
        UserError: The template draws at random, or is no template.
    """
    if len(template) > LONGEST:
        raise UserError(f"chat template: {len(template):,} characters, expected at most {LONGEST:,}")
    found = _ask({"template": template})
    if "wrong" in found:
        raise UserError(found["wrong"])
    return bool(found["asks"])


def render(
    template: str,
    turns: Sequence[Mapping[str, Any]],
    given: Mapping[str, Any],
    wanted: Sequence[tuple[int, bool]],
    day: date | None = None,
) -> list[str | RowError]:
    """Returns what a template writes for the beginnings of a conversation, or why it refuses one.

    Args:
        template: Its source.
        turns: The conversation.
        given: What else it gets by name.
        wanted: How many turns a beginning has, and whether that of an answer is written after them.
        day: What it takes for today, if it asks.

    Raises:
        Exceeded: It takes more time or memory, or writes more, than a template may.
    """
    request = {"template": template, "turns": turns, "given": given, "day": None if day is None else day.isoformat()}
    found: list[str | RowError] = []
    for first in range(0, len(wanted), _AT_ONCE):
        try:
            said = _ask({**request, "wanted": wanted[first : first + _AT_ONCE]})
        except TypeError as error:  # such as a date in a tool's arguments
            return [RowError(f"the conversation holds what JSON has not ({error})")] * len(wanted)
        found += [_text(one, said["longest"]) for one in said["written"]]
    return found


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Does in the process of its own what `asks_for_time` and `render` ask for."""
    if "wanted" not in request:
        try:
            return {"asks": template_date.asks_for_time(request["template"])}
        except UserError as error:
            return {"wrong": str(error)}
        except (RecursionError, SyntaxError):
            return {"wrong": "chat template: nested too deeply, expected one that can be compiled"}
    written = [_write(request, count, generate) for count, generate in request["wanted"]]
    longest = max((one for one in written if isinstance(one, str)), key=len, default="")
    # Beginnings of the longest text go back as their lengths.
    short = [len(one) if isinstance(one, str) and longest.startswith(one) else one for one in written]
    return {"longest": longest, "written": short}


def _write(request: Mapping[str, Any], count: int, generate: bool) -> str | list[str]:
    template = request["template"]
    try:
        if request["day"] is not None:
            template_date.set_clock(template, date.fromisoformat(request["day"]))
        written: Any = render_jinja_template(
            [request["turns"][:count]], chat_template=template, add_generation_prompt=generate, **request["given"]
        )
        return str(written[0][0])
    except (*_REFUSALS, SyntaxError) as error:
        return [" ".join(str(error).split())[:500] or type(error).__name__]


def _text(answer: str | int | list[str], longest: str) -> str | RowError:
    if isinstance(answer, list):
        return RowError(f"the chat template refuses the conversation ({answer[0]})")
    return answer if isinstance(answer, str) else longest[:answer]


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _PROCESS.ask(request)
    except Exceeded as error:
        raise Exceeded(f"chat template: {error}, expected one that writes a conversation and ends") from error
