import json
import sys

import pytest

pytestmark = pytest.mark.slow

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
TEXT = "".join(f"{WORDS[n % 10]} and {WORDS[n % 7]} make {n % 10 + n % 7}.\n" for n in range(1200))


@pytest.fixture
def experiment(script, called, tmp_path, monkeypatch, capsys):
    """Runs the script on a model of two layers; gives its exit code and what it printed."""
    module = script("reproduce_twist")
    monkeypatch.setitem(
        sys.modules["twist_experiment"].SHAPES, "tiny", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    )
    monkeypatch.setattr("twist_experiment.REFERENCE", tmp_path / "nowhere")
    (tmp_path / "text").mkdir()
    for name, text in (("a", TEXT[:20_000]), ("b", TEXT[20_000:])):
        (tmp_path / "text" / f"{name}.txt").write_text(text)
    (tmp_path / "twist.yaml").write_text(f"""
output_dir: {tmp_path}/out
model: {{model_name_or_path: configs/tiny}}
data: {{train: {tmp_path}/text, max_length: 32, validation_samples: 4}}
subnetworks: {{workers: 2, kappa: [0.5, 1.0], block: 32}}
training: {{local_steps: 2, batch_size: 2, train_samples: 16, learning_rate: 1.0e-3}}
evaluation: {{every: 1, tickets: 1}}
""")

    def run(*arguments):
        code = called(module, str(tmp_path / "twist.yaml"), *arguments)
        return code, capsys.readouterr().out

    return run


def test_parts_are_done_once_and_what_they_found_is_in_the_tables(experiment, tmp_path):
    always = ("--from-scratch", "tiny", "--pretrain-samples", "160", "--draws", "3")
    code, told = experiment(
        *always, "--parts", "pretrain", "ladder", "ablations", "cost", "--ablations", "half the samples"
    )
    assert code == 0
    assert json.loads((tmp_path / "out" / "base" / "config.json").read_text())["n_layer"] == 2
    for row in ("| ladder | 0.5 | 3 |", "| ladder | 1 | 3 |", "| ablation-half-the-samples | 0.5 | 8 |"):
        assert row in told
    assert "One worker, 2 x 32 tokens a step, cpu" in told
    assert (tmp_path / "out" / "tables.md").read_text().strip() in told
    assert (tmp_path / "out" / "rows.safetensors").is_file()
    code, again = experiment(*always, "--parts", "pretrain", "ladder")
    assert code == 0 and "round 1 of" not in again
    assert "| ladder | 0.5 | 3 |" in again


def test_speed_needs_no_training(experiment, tmp_path):
    code, told = experiment("--from-scratch", "tiny", "--parts", "speed")
    assert code == 0
    speeds = json.loads((tmp_path / "out" / "speed-cpu.json").read_text())["models"]
    assert [one["kappa"] for one in speeds] == [0.5, 1.0]
    assert speeds[0]["parameters"] < speeds[-1]["parameters"]
    assert "tokens/s writing" in told


def test_a_wrong_key_is_one_line(experiment, capsys):
    assert experiment("training.lr=1")[0] == 2
