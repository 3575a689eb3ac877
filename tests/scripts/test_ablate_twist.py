import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def ablation(script, called, tmp_path, capsys):
    """Runs the script on its tiny model, in a folder of the test's; gives its exit code and what it printed."""
    module = script("ablate_twist")

    def run(*arguments):
        words = ("--tiny", f"output_dir={tmp_path}", "subnetworks.kappa=[0.5]", "--times", "1", *arguments)
        code = called(module, "configs/twistjax/reproduce.yaml", *words)
        return code, capsys.readouterr().out

    return run


def test_an_arm_is_trained_once_and_only_what_it_found_stays(ablation, tmp_path):
    speed = {"models": [{"kappa": 0.5, "tokens/s reading": 1234.0, "tokens/s writing": 56.0}]}
    (tmp_path / "speed-cpu.json").write_text(json.dumps(speed))
    code, told = ablation("--parts", "outer", "speed", "--draws", "2")
    assert code == 0
    found = json.loads((tmp_path / "arms" / "outer-x1.json").read_text())
    tickets = found["kappas"]["0.5"]
    assert found["tokens"] == 1024 and len(tickets["losses"]) == 2
    assert not (tmp_path / "outer-x1").exists()
    row = next(line for line in told.splitlines() if line.startswith("| outer | 1 | 0.5 | 2 |"))
    assert f"| {tickets['parameters']:,} | 1,234 | 56 |" in row
    code, again = ablation("--parts", "outer")
    assert code == 0 and "round 1 of" not in again and row in again
    plan = ablation("--plan")[1]
    assert "| twist | 1 | 1 |" in plan and "| baselines | 1 | 4 |" in plan and "| outer |" not in plan
