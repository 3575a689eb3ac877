"""The doctor refuses what training would refuse, and status tells where a run stands."""

import sys

import pytest
from twist_runs import write_twist_config

from jaxrun.store.run_folder import take_lock
from twistjax.cli import main


@pytest.fixture
def config(tmp_path):
    return write_twist_config(
        tmp_path,
        """
subnetworks: {workers: 2, kappa: [0.5, 1], block: 16, workers_at_once: 1}
training: {local_steps: 2, batch_size: 2, train_samples: 16}
""",
    )


def said(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "fine" not in out
    return err


def test_it_tells_the_machine_and_what_a_run_would_be(config, tmp_path, capsys):
    told = said(capsys, "doctor", config)
    for word in (
        "jax ",
        "device",
        "compile cache",
        "fine",
        "kappa 0.5",
        "kappa 1",
        "(100%)",
        "rounds of 2 steps",
        "4 rows",
    ):
        assert word in told
    assert not (tmp_path / "run").exists()
    assert "device" in said(capsys, "doctor")


def test_it_refuses_what_training_refuses_in_the_same_words(config, tmp_path, capsys, monkeypatch):
    def both(*words: str) -> str:
        errors = {refused(capsys, verb, config, *words) for verb in ("doctor", "train")}
        assert len(errors) == 1
        return errors.pop()

    assert "data.max_length" in both("data.max_length=4096")
    assert "importance_rows: nothing is ranked" in both("subnetworks.importance_rows=7")
    assert "lerning_rate" in both("training.lerning_rate=1")
    (tmp_path / "file").write_text("")
    assert "file" in both(f"output_dir={tmp_path}/file/run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.html").write_text("mine")
    assert "no run's journal" in both(f"output_dir={tmp_path}/full")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "wandb" in both("report_to=[wandb]")
    (tmp_path / "held").mkdir()
    take_lock(tmp_path / "held")
    assert "another process" in both(f"output_dir={tmp_path}/held")


@pytest.mark.slow
def test_status_tells_rounds_perplexities_and_how_the_run_ended(config, tmp_path, capsys):
    assert main(["train", str(config), "subnetworks.kappa=0.5"]) == 0
    capsys.readouterr()
    told = said(capsys, "status", tmp_path / "run")
    for word in ("full", "kappa 0.5", "perplexity before", "round 2 of 2", "compilations", "finished"):
        assert word in told
    assert refused(capsys, "doctor", config, "seed=1") == refused(capsys, "train", config, "seed=1")
    assert "no run here" in refused(capsys, "status", tmp_path / "nothing")
