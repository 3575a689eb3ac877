"""Pages from jinja2 templates: everything that is put in is escaped, and nothing that is missing passes for empty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jaxrun.terminal.printable import visible

STYLE = Path(__file__).with_name("templates") / "page.css"
"""The look of all pages; `templates/base.html.j2` puts it into those that stand alone."""

_HUGE = 1e12
_MANY = 9
"""Columns from which on a table is set smaller, so that a page shows it whole."""


@dataclass(frozen=True)
class Badge:
    """A word with a dot of colour before it, e.g. a status in the colour that plots give it; "" is that of the text."""

    text: str
    colour: str = ""


@dataclass(frozen=True)
class Table:
    """A table for the macro of that name in `templates/parts.html.j2`.

    Attributes:
        columns: The headings.
        rows: The cells: text, numbers, a `Badge`, or None for a dash.
        sortable: Whether a click on a heading sorts.
        best: The index of a row to set off, or None.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sortable: bool = True
    best: int | None = None

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {index} has {len(row)} cells, expected {len(self.columns)}")

    @property
    def is_wide(self) -> bool:
        """Whether it has many columns."""
        return len(self.columns) > _MANY

    @property
    def numeric(self) -> list[bool]:
        """For every column whether it holds numbers alone, which are then aligned."""
        return [_are_numbers([row[at] for row in self.rows]) for at in range(len(self.columns))]


def render(package: str, template: str, **content: Any) -> str:
    """Returns a page.

    Args:
        package: Where its template lies, in the folder ``templates``; it may extend and import those of this package.
        template: Name of its file.
        content: What it takes by name. Control characters are shown as escapes; `Markup` stands as it is.

    Raises:
        jinja2.UndefinedError: Something that it takes is not given.
    """
    return environment(package).get_template(template).render(**content)


@cache
def environment(package: str) -> Environment:
    """Returns what finds the templates of a package and renders them."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__name__.rpartition(".")[0])]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    found.filters |= {"shown": shown, "sort_value": _sort_value}
    found.tests |= {"badge": lambda value: isinstance(value, Badge), "a_number": _is_number}
    return found


def shown(value: Any) -> str:
    """Returns a value as people write it: ``yes``, ``1,234,567``, ``0.1235``, ``3e-4``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return _float(value) if isinstance(value, float) else str(value)


def _float(value: float) -> str:
    """Returns four significant digits; small and huge numbers as people write learning rates, ``3e-4``."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "NaN")
    size = abs(value)
    if 1000 <= size < _HUGE:
        return f"{value:,.0f}"
    if size == 0 or 1e-3 <= size < 1000:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _sort_value(value: float) -> str:
    """Returns a number as JavaScript reads it."""
    return f"{float(value):.17g}".replace("inf", "Infinity").replace("nan", "NaN")


def _harmless(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(cells: Sequence[Any]) -> bool:
    known = [cell for cell in cells if cell is not None]
    return bool(known) and all(map(_is_number, known))
