"""A self-contained page: no request leaves it, everything in it is escaped, light and dark as the reader prefers."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")

_HUGE = 1e12
_MANY = 9
"""Columns from which on a table is set smaller, so that a page shows it whole."""


class Html(str):
    """A piece of page that is safe as it stands; every other string is escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """One part of a page: a heading and what stands below it."""

    heading: str
    parts: Sequence[Html | str]


def page(title: str, sections: Sequence[Section | tuple[str, Sequence[Html | str]]], *, subtitle: str = "") -> str:
    """Returns a whole page.

    Args:
        title: The page's title and heading.
        sections: Its sections; plain strings in them become paragraphs. Four or more get a table of contents.
        subtitle: A line below the heading.
    """
    every = [section if isinstance(section, Section) else Section(*section) for section in sections]
    anchors = _anchors([section.heading for section in every])
    links = [
        f'<a href="#{anchor}">{_text(section.heading)}</a>' for anchor, section in zip(anchors, every, strict=True)
    ]
    contents = f"<nav aria-label='Contents'>{''.join(links)}</nav>" if len(every) > 3 else ""
    body = "".join(
        f'<section id="{anchor}"><h2>{_text(section.heading)}</h2>{"".join(map(_block, section.parts))}</section>'
        for anchor, section in zip(anchors, every, strict=True)
    )
    below = f'<p class="subtitle">{_text(subtitle)}</p>' if subtitle else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
        " style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{_text(title)}</h1>{below}</header>\n{contents}\n<main>{body}</main>\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    sortable: bool = True,
    caption: str = "",
    highlight: int | None = None,
) -> Html:
    """Returns a table; a click on a heading sorts it.

    Args:
        columns: The headings.
        rows: The cells. Numbers align right and sort as numbers, None is a dash, `Html` stands as it is.
        sortable: Whether headings sort.
        caption: Above the table.
        highlight: The index of a row to set off, e.g. the best.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """
    rows = [list(row) for row in rows]
    ragged = [index for index, row in enumerate(rows) if len(row) != len(columns)]
    if ragged:
        raise ValueError(f"row {ragged[0]} has {len(rows[ragged[0]])} cells, expected {len(columns)}")
    numeric = [_is_numeric_column([row[at] for row in rows]) for at in range(len(columns))]
    heads = "".join(
        f'<th scope="col"{_class("number" if number else "")}>'
        + (f'<button type="button">{_text(name)}</button>' if sortable else _text(name))
        + "</th>"
        for name, number in zip(columns, numeric, strict=True)
    )
    body = "".join(
        f"<tr{_class('best' if index == highlight else '')}>"
        + "".join(_cell(cell, number) for cell, number in zip(row, numeric, strict=True))
        + "</tr>"
        for index, row in enumerate(rows)
    )
    above = f"<caption>{_text(caption)}</caption>" if caption else ""
    kind = _class("many" if len(columns) > _MANY else "") + (" data-sortable" if sortable else "")
    empty = f'<tr><td colspan="{len(columns)}" class="empty">nothing yet</td></tr>' if not rows else ""
    return Html(
        f'<div class="scroll" tabindex="0"><table{kind}>{above}<thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}{empty}</tbody></table></div>"
    )


def figure(svg: str, caption: str = "") -> Html:
    """Returns a figure on a card.

    Args:
        svg: What `plots.as_svg` returned; it is not escaped.
        caption: Below the picture.
    """
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return Html(f'<figure><div class="plot">{svg}</div>{below}</figure>')


def facts(items: Mapping[str, Any]) -> Html:
    """Returns a row of cards, each with a number or word and what it is."""
    cards = "".join(f"<div><dt>{_text(name)}</dt><dd>{_shown(value)}</dd></div>" for name, value in items.items())
    return Html(f'<dl class="facts">{cards}</dl>')


def badge(text: str, colour: str = "") -> Html:
    """Returns a word with a dot of colour before it, e.g. a status in the colour that the plots give it."""
    safe = colour if re.fullmatch(r"#[0-9a-fA-F]{3,8}", colour) else "currentColor"
    return Html(f'<span class="badge"><i style="background: {safe}"></i>{_text(text)}</span>')


def code(text: str) -> Html:
    """Returns a block of commands or of a config, as typed."""
    return Html(f"<pre><code>{_text(text)}</code></pre>")


def note(text: str) -> Html:
    """Returns a paragraph set off as a remark."""
    return Html(f'<p class="note">{_text(text)}</p>')


def details(summary: str, parts: Sequence[Html | str], *, is_open: bool = False) -> Html:
    """Returns parts that unfold at a click."""
    state = " open" if is_open else ""
    return Html(f"<details{state}><summary>{_text(summary)}</summary>{''.join(map(_block, parts))}</details>")


def _text(value: Any) -> str:
    return value if isinstance(value, Html) else html.escape(str(value))


def _block(part: Html | str) -> str:
    return part if isinstance(part, Html) else f"<p>{_text(part)}</p>"


def _cell(value: Any, number: bool) -> str:
    classes = "number" if number else ""
    sort_as = ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        sort_as = f' data-value="{float(value):.17g}"'.replace("inf", "Infinity").replace("nan", "NaN")
    return f"<td{_class(classes)}{sort_as}>{_shown(value)}</td>"


def _shown(value: Any) -> str:
    if value is None:
        return '<span class="none">–</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _float(value)
    return _text(value)


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


def _is_numeric_column(cells: Sequence[Any]) -> bool:
    known = [cell for cell in cells if cell is not None]
    return bool(known) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in known)


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _anchors(headings: Sequence[str]) -> list[str]:
    """Returns a distinct id for each heading."""
    taken: set[str] = set()
    anchors = []
    for heading in headings:
        base = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        anchor, count = base, 2
        while anchor in taken:
            anchor, count = f"{base}-{count}", count + 1
        taken.add(anchor)
        anchors.append(anchor)
    return anchors
