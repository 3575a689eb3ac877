"""A run keeps the day on which it first opened, whatever happened to it since."""

from datetime import date

import pytest

from jaxrun.config.config import StrictModel
from jaxrun.files.atomic import digest_of
from jaxrun.process.errors import UserError
from jaxrun.store.opening import RunOpening, day_of

DAY = date(2026, 3, 1)


class Config(StrictModel):
    """A run that has nothing to do.

    Attributes:
        output_dir: Its folder.
    """

    output_dir: str


def opening(folder, day, **more):
    config = Config(output_dir=str(folder))
    return RunOpening(config, folder, {"rows": "none"}, makes=("config.yaml", "made"), day=day, **more)


def opened(folder, day, **more):
    return opening(folder, day, **more).open()


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


def test_a_check_refuses_what_opening_refuses_and_writes_nothing(tmp_path):
    def opening(folder, rows="none", **more):
        config = Config(output_dir=str(folder))
        return RunOpening(config, folder, {"rows": rows}, makes=("config.yaml",), day=DAY, **more)

    opening(tmp_path / "new").check()
    assert not (tmp_path / "new").exists()
    opening(tmp_path / "run").open().close()
    before = digest_of(tmp_path / "run")
    opening(tmp_path / "run").check()
    opening(tmp_path / "run", "others", overwrite=True).check()
    for refused in (opening(tmp_path / "run", "others").check, opening(tmp_path / "run", "others").open):
        with pytest.raises(UserError, match=f"{tmp_path}/run: holds a run whose config differs in rows"):
            refused()
    assert digest_of(tmp_path / "run") == before
    with pytest.raises(UserError, match="free, expected at least"):
        opening(tmp_path / "new", least_bytes=2**60).check()


def test_what_a_run_reads_is_not_removed_to_start_it_anew(tmp_path):
    opened(tmp_path, DAY).close()
    for name in ("made", "mine"):
        (tmp_path / name / "model").mkdir(parents=True)
    opening(tmp_path, DAY, overwrite=True, reads={"model": str(tmp_path / "mine"), "data": "a/hub-id"}).check()
    inside = {"teacher": str(tmp_path / "made" / "model")}
    opening(tmp_path, DAY, reads=inside).check()
    with pytest.raises(UserError, match=r"teacher: .*/made/model is in .*, which overwrite removes, expected it else"):
        opening(tmp_path, DAY, overwrite=True, reads=inside).check()
