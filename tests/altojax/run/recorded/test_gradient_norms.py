"""The norm of a trial's own gradient stands beside its training losses, and survives a stop."""

import json
import math

import pytest
from rich.console import Console

from altojax.config.tune_config import TuneConfig
from altojax.run.tuner import Tuner
from jaxrun.config.config import load_config
from jaxrun.process.interrupt import Interrupt
from jaxrun.store.journal import Journal


class StopAfter(Interrupt):
    """Asks to stop once it has been looked at so often."""

    def __init__(self, looks: int):
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.fixture
def norms(tmp_path, monkeypatch, few_shapes):
    """Makes a run of two trials, maybe stopped and resumed; returns the norms by trial and step."""
    monkeypatch.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
    rows = [{"prompt": "x" * (1 + a), "completion": str(a)} for a in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str, slots: int, *looks: int) -> dict[tuple[str, int], float]:
        config = {
            "output_dir": tmp_path / name,
            "model": {"model_name_or_path": "configs/tiny", "random_init": True, "dtype": "float32"},
            "search": {"target_modules": ["q_proj"], "lora_rank": (2, 8), "learning_rate": 1e-3, "batch_size": 2},
            "slots": slots,
            "eval_samples": 0.25,
            "checkpoint_samples": 0.25,
            "early_exit": {"preset": "none"},
            "tasks": [{"name": "rows", "data": {"train": tmp_path / "rows.jsonl", "validation_samples": 4}}],
        }
        for count in (*looks, 10_000):
            interrupt = StopAfter(count)
            ended = Tuner(load_config(TuneConfig, config, {}), console=Console(quiet=True)).run(interrupt)
            assert ended == (0 if count == 10_000 else 130)
        with Journal.read(tmp_path / name) as journal:
            points = journal.points()
        assert all(point.grad_norm is None for point in points if point.split != "train")
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["grad_norm"] for line in lines] == [point.grad_norm for point in points]
        return {(str(point.trial), point.step): point.grad_norm for point in points if point.split == "train"}

    return run


@pytest.mark.slow
def test_each_trial_has_its_own_norms_whatever_trains_beside_it_and_whenever_it_stops(norms):
    together, alone = norms("together", 2), norms("alone", 1)
    assert together.keys() == alone.keys() and len(together) >= 6
    assert norms("stopped", 2, 3) == together
    for (trial, step), norm in together.items():
        other = alone["trial-1" if trial == "trial-0" else "trial-0", step]
        assert math.isfinite(norm) and norm > 0
        assert abs(norm - alone[trial, step]) < 1e-3 * abs(norm - other)
