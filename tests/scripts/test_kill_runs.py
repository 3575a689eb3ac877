"""Killed anywhere, commands lose nothing: a few kills of each here, a thousand by `scripts/stress/kill_runs.py`."""

from pathlib import Path

import pytest

from jaxrun.files.exports import make_way, write_export

ROOT = Path(__file__).parent.parent.parent


PROGRAM = """
import runpy, sys
from pathlib import Path

from altojax.device import executor
from altojax.report import write_report

write_report.write_report = lambda run_dir: []
executor.compile_tokens = lambda prices: 10**9  # few shapes
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_what_was_killed_ends_as_what_was_not(tmp_path, forks):
    words = ["--seed", "1", "--parts", "tune=1", "adapter=3", "--out", tmp_path / "killed"]
    [done] = forks.begin(PROGRAM, [[ROOT / "scripts/stress/kill_runs.py", *words]], [ROOT], {}).ended()
    assert done.code == 0, done.out + done.err[-3000:]
    assert "4 kills (seed 1): nothing lost, nothing left over, the same bits" in done.out


def test_a_file_more_a_loss_less_and_an_export_that_is_neither_are_told(tmp_path, script):
    runs = script("kill_runs")
    assert runs.first_difference({"losses": [[1, "a"]]}, {"losses": [[1, "b"]]}) == "/losses[0][1]: 'b', not 'a'"
    assert runs.first_difference({"names": ["a"]}, {"names": ["a", "b"]}) == "/names: 2 entries, not 1"
    part = runs.Victim("any", lambda folder: (), runs.files_of, lambda folder: None)
    (tmp_path / "out" / "tmp").mkdir(parents=True)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_text("a")
    assert list(runs.finished(part, tmp_path / "made", tmp_path / "out")) == ["a"]
    for left in (tmp_path / "made" / ".tmp-a", tmp_path / "out" / "tmp" / "journal"):
        left.touch()
        with pytest.raises(runs.Different, match=f"{left.name} is left over"):
            runs.finished(part, tmp_path / "made", tmp_path / "out")
        left.unlink()
    adapter = next(part for part in runs.parts(tmp_path) if part.name == "adapter")
    for folder, word in (("alone/old adapter", "old"), ("alone/adapter/out", "new"), ("killed/out", "neither")):
        make_way(tmp_path / folder, overwrite=False)
        with write_export(tmp_path / folder, "test") as partial:
            (partial / "a").write_text(word)
    adapter.check(tmp_path / "alone" / "adapter")
    with pytest.raises(runs.Different, match="is neither the old export nor the new one"):
        adapter.check(tmp_path / "killed")
