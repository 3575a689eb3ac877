"""The folder of a run that the other program made is refused in one line, and nothing is written into it."""

from datetime import date
from typing import Any

import pytest

from altojax import cli as altojax
from jaxrun.config.config import StrictModel
from jaxrun.store.opening import RunOpening
from twistjax import cli as twistjax


class Run(StrictModel):
    """What decides whose a run is.

    Attributes:
        output_dir: Its folder.
        tasks: What altojax's runs have.
        data: What twistjax's runs have.
    """

    output_dir: str
    tasks: list[Any] | None = None
    data: dict[str, Any] | None = None


@pytest.mark.parametrize("verb", ["status", "report"])
@pytest.mark.parametrize(
    ("main", "theirs", "expected"),
    [
        (altojax.main, {"data": {"train": "a.txt"}}, "its config has 'data', expected a run of altojax tune"),
        (twistjax.main, {"tasks": [{"name": "a"}]}, "its config has 'tasks', expected a run of twistjax train"),
    ],
)
def test_a_run_of_the_other_program_is_refused(main, theirs, expected, verb, tmp_path, capsys):
    config = Run(output_dir=str(tmp_path), **theirs)
    RunOpening(config, tmp_path, {}, makes=("config.yaml",), day=date(2026, 3, 1)).open().close()
    assert main([verb, str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [f"{main.__module__.split('.')[0]}: error: {tmp_path}: {expected}"]
    assert not {"plots", "report.html", "trials.csv"} & {path.name for path in tmp_path.iterdir()}
