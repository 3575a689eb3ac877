"""Tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def fact_table(facts: Mapping[str, Any]) -> str:
    """Returns a table of two columns without headings: names and values."""
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items())])


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table with a heading for each column."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return str(value).replace("|", "\\|").replace("\n", " ")
