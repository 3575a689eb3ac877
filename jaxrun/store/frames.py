"""Rows of results as a table for people who compute with them."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any


def frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Returns a pandas DataFrame where pandas is installed, else the rows as a list of dicts."""
    if importlib.util.find_spec("pandas") is None:
        return [dict(row) for row in rows]
    import pandas

    return pandas.DataFrame(rows)
