"""Tally of rows that are not used: counted by row, reported once."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from jaxrun.terminal.sizes import counted


class Tally:
    """Counts rows by what of them is not used."""

    def __init__(self) -> None:
        self._columns: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._seen: set[str] = set()

    def count(self, row: Iterable[str], columns: Iterable[str], others: Iterable[str]) -> None:
        """Counts one row.

        Args:
            row: Names of all its columns.
            columns: Names of columns that are not used.
            others: What else is not used, as whole clauses.
        """
        self._seen.update(row)
        self._columns.update(columns)
        self._others.update(others)

    def lines(self, source: str, named: Mapping[str, str]) -> list[str]:
        """Returns a line for each thing, and one for all columns that the same number of rows have.

        Args:
            source: Where the rows are from.
            named: Our names of columns -> those that a config says the source has.
        """
        together: defaultdict[int, list[str]] = defaultdict(list)
        for name, rows in self._columns.items():
            together[rows].append(f"'{name}'")
        told = [(_not_used(names), rows) for rows, names in together.items()]
        told += self._others.items()
        missing = [
            f"columns.{ours}: no row has a column '{name}'" for ours, name in named.items() if name not in self._seen
        ]
        return [
            *(f"{source}: {what} ({counted(rows, 'row')})" for what, rows in told),
            *(f"{source}: {one}" for one in missing),
        ]


def _not_used(names: Sequence[str]) -> str:
    return f"column {names[0]} is not used" if len(names) == 1 else f"columns {', '.join(names)} are not used"
