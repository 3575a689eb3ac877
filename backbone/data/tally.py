"""What of the rows of a source is not used: counted by row, told once."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from backbone.data.documents import printable


class Tally:
    """Counts rows by what of them is not used."""

    def __init__(self) -> None:
        self._columns: Counter[str] = Counter()
        self._others: Counter[str] = Counter()

    def count(self, columns: Iterable[str], others: Iterable[str]) -> None:
        """Counts one row.

        Args:
            columns: Names of columns that are not used.
            others: What else is not used, as whole clauses.
        """
        self._columns.update(columns)
        self._others.update(others)

    def lines(self, source: str) -> tuple[str, ...]:
        """Returns a line for each thing, and one for all columns that the same number of rows have."""
        together: defaultdict[int, list[str]] = defaultdict(list)
        for name, rows in self._columns.items():
            together[rows].append(f"'{name}'")
        told = [(_not_used(names), rows) for rows, names in together.items()]
        told += self._others.items()
        return tuple(f"{source}: {printable(what)} ({_rows(rows)})" for what, rows in told)


def _not_used(names: Sequence[str]) -> str:
    return f"column {names[0]} is not used" if len(names) == 1 else f"columns {', '.join(names)} are not used"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
