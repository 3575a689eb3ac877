"""Text of a damaged or hostile journal commands no terminal, and stays text in every file of a report."""

import re

import pytest

from altojax.cli import main
from altojax.report.write_report import write_report
from jaxrun.store.journal import Journal
from jaxrun.store.records import Event, Point

NAME = "\x1b[2J\x9b1mx\x07\r\u202e<b>\x00"
ATTACK = f"{NAME}\ud800"
SHOWN = r"\x1b[2J\x9b1mx\x07\r\u202e<b>\x00"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@pytest.fixture
def run_dir(tmp_path):
    """A run whose every text is hostile."""
    with Journal.open(tmp_path / "run", config_text="output_dir: x\n", identity="d") as journal:
        config = {"lora_rank": 8, "lora_alpha": 8.0, "target_modules": [ATTACK], "lr_scheduler_type": ATTACK}
        about = {"task": NAME, "trial": NAME, "total_steps": 4, "total_samples": 8, "config": config}
        about |= {"schedule": {"total_steps": 4, "twice": 0.5, "warmup": 0.0}}
        journal.set("trials", [about, {**about, "trial": "two", "config": {**config, "lora_rank": 4}}])
        at = {"slot": 0, "step": 0, "samples": 0}
        journal.append(0, [Event("run_start", payload={ATTACK: ATTACK, "device": ATTACK})])
        for name, loss in ((NAME, 1.0), ("two", 2.0)):
            journal.append(1, [Event("start", NAME, name, at)], [])
            journal.append(2, [], [Point(NAME, name, 2, 4, 9, "validation", loss)])
            end = {"slot": 0, "step": 2, "samples": 4, "status": "stopped", "reason": ATTACK, "detail": ATTACK}
            journal.append(3, [Event("end", NAME, name, end)])
    return tmp_path / "run"


def test_no_file_of_a_report_holds_a_control_character(run_dir, recwarn):
    write_report(run_dir)
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert not CONTROL.search(page) and SHOWN.replace("<b>", "&lt;b&gt;") in page and "<b>" not in page
    table = (run_dir / "trials.csv").read_text(encoding="utf-8")
    assert not CONTROL.search(table) and table.count(SHOWN) >= 6
    assert not [warning for warning in recwarn if CONTROL.search(str(warning.message))]


def test_status_commands_no_terminal(run_dir, capsys):
    assert main(["status", str(run_dir)]) == 0
    told = capsys.readouterr()
    assert not CONTROL.search(told.out + told.err) and SHOWN in told.out
