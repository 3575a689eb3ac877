"""The date that a chat template may ask for, fixed for all rows of a run."""

import re
from datetime import UTC, date, datetime
from functools import lru_cache

import jinja2
from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

from jaxrun.process.errors import UserError

_CLOCK = "strftime_now"
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_CHANCE = {"random": nodes.Filter, "lipsum": nodes.Name}
"""Functions of Jinja whose results are random."""


@lru_cache
def asks_for_time(template: str) -> bool:
    """Whether what a template writes depends on when it is written.

    Args:
        template: Its source.

    Raises:
        UserError: The template draws at random, or is no template.
    """
    try:
        tree = _compile_jinja_template(template).environment.parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat template: line {error.lineno}: {error.message}, expected valid Jinja") from error
    for name, kind in _CHANCE.items():
        if any(node.name == name for node in tree.find_all(kind)):
            raise UserError(f"chat template: draws by '{name}', expected one that writes a row the same way every time")
    return any(node.name == _CLOCK for node in tree.find_all(nodes.Name))


def set_clock(template: str, day: date) -> None:
    """Makes midnight at the beginning of `day` what a template sees when it asks for the time.

    transformers compiles a template once for a process, so this has to be said before each use.

    Args:
        template: Its source.
        day: The day.
    """
    _compile_jinja_template(template).environment.globals[_CLOCK] = lambda format: write_time(format, day)


def write_time(format: str, day: date) -> str:
    """Returns midnight of a day as `strftime` writes it in English, whatever the machine's language and time zone are.

    Args:
        format: As for `strftime`.
        day: The day.
    """
    midnight = datetime(day.year, day.month, day.day)
    english = {
        "%a": _DAYS[day.weekday()][:3],
        "%A": _DAYS[day.weekday()],
        "%b": _MONTHS[day.month - 1][:3],
        "%h": _MONTHS[day.month - 1][:3],
        "%B": _MONTHS[day.month - 1],
        "%p": "AM",
        "%P": "am",
        "%c": f"{_DAYS[day.weekday()][:3]} {_MONTHS[day.month - 1][:3]} {day.day:2} 00:00:00 {day.year}",
        "%x": f"{day:%m/%d/%y}",
        "%X": "00:00:00",
        "%r": "12:00:00 AM",
        "%s": str(int(midnight.replace(tzinfo=UTC).timestamp())),
        "%%": "%%",
    }
    return midnight.strftime(re.sub(r"%.", lambda found: english.get(found[0], found[0]), format))
