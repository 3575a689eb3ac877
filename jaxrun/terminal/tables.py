"""Tables for a terminal."""

from collections.abc import Collection, Sequence

from jaxrun.terminal.printable import printable


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> None:
    """Prints rows below their headings; the columns `right` are aligned to the right."""
    rows = [columns, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    for row in rows:
        cells = [cell.rjust(widths[at]) if at in right else cell.ljust(widths[at]) for at, cell in enumerate(row)]
        print("  ".join(cells).rstrip())
