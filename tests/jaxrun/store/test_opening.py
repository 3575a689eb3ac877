"""A run keeps the day on which it first opened, whatever happened to it since."""

from datetime import date

import pytest

from jaxrun.config.config import StrictModel
from jaxrun.store.opening import day_of, open_run

DAY = date(2026, 3, 1)


class Config(StrictModel):
    """A run that has nothing to do.

    Attributes:
        output_dir: Its folder.
    """

    output_dir: str


def opened(folder, day, **more):
    return open_run(Config(output_dir=str(folder)), folder, {"rows": "none"}, makes=("config.yaml",), day=day, **more)


def test_the_day_is_that_of_the_first_opening_until_the_run_is_discarded(tmp_path):
    opened(tmp_path / "run", DAY).close()
    assert day_of(tmp_path / "run") == DAY
    with opened(tmp_path / "run", date(2027, 1, 1)) as journal:
        assert journal.get("day") == "2026-03-01"
        assert day_of(tmp_path / "run") == DAY, "also while it is live"
    assert day_of(tmp_path / "run", overwrite=True) == date.today()
    opened(tmp_path / "run", date(2027, 1, 1), overwrite=True).close()
    assert day_of(tmp_path / "run") == date(2027, 1, 1)


@pytest.mark.parametrize("content", [None, b"", b"no database at all"])
def test_where_there_is_no_run_it_is_today(tmp_path, content):
    if content is not None:
        (tmp_path / "journal.db").write_bytes(content)
    assert day_of(tmp_path) == date.today()
