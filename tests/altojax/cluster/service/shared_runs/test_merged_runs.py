"""The solo law of merged tasks: what a task gets out of a run that it shared is what it would have got alone.

Bounds as in test_solo_law.py: other neighbours mean other shapes and so another order of float32 sums.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from altojax.cluster.service.shared_runs.delivery import deliver
from altojax.cluster.service.shared_runs.merged_tasks import merged_config, name_in
from altojax.cluster.service.submission_builder import SubmitConfig, submission_of
from altojax.config.tune_config import TuneConfig
from altojax.inference.model_source import find_source
from altojax.report import status
from altojax.report.record_tables import trials_csv
from altojax.report.run_record import read_record
from altojax.run.tuner import Tuner
from jaxrun.config.config import check_config, dump_config
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.config.verbs import Args
from jaxrun.files.atomic import digest_of
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal

pytestmark = pytest.mark.slow

TINY = Path(__file__).parents[5] / "configs" / "tiny"
LOSS_BOUND, ADAPTER_BOUND = 2e-6, 2e-5


def run_of(folder: Path, name: str, **search: object) -> TuneConfig:
    rows = [{"prompt": f"{a}{name[0]}{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return check_config(
        TuneConfig,
        {
            "output_dir": str(folder / name),
            "model": {"model_name_or_path": str(TINY), "random_init": True, "dtype": "float32"},
            "seed": 3,
            "slots": 4,
            "eval_samples": 0.5,
            "early_exit": {"preset": "topk", "top_k": {"steps": 0.5, "keep": 2}},
            "search": {"train_samples": 24, "lora_dropout": 0.1, "target_modules": ["q_proj", "down_proj"], **search},
            "tasks": [
                {
                    "name": "sums",
                    "data": {"train": str(folder / f"{name}.jsonl"), "validation_samples": 6, "max_length": 32},
                }
            ],
        },
        name,
    )


def runs_of(folder: Path) -> dict[str, TuneConfig]:
    """A run that draws its configurations and one that tries a grid, of one family; their tasks have one name.

    Both have as many slots as the run that they share: what is compiled for one serves all.
    """
    rate = {"min": 1e-3, "max": 1e-2, "log": True}
    return {
        "sums-1": run_of(folder, "drawn", method="random", trials=4, learning_rate=rate, lora_rank=[2, 4]),
        "sums-2": run_of(folder, "grid", lora_rank=[2, 4], learning_rate=[1e-3, 3e-3]),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory, few_shapes):
    """Folder with the first run alone, and folder with both delivered from one that they shared."""
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    members = runs_of(together)
    shared = merged_config(members, str(together / "shared"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
        assert Tuner(runs_of(alone)["sums-1"]).run() == 0
        read_back = check_config(TuneConfig, parse_yaml(dump_config(shared), "task.yaml"), "task.yaml")
        assert Tuner(read_back).run() == 0
    for name, config in members.items():
        deliver(together / "shared", name, config)
    return alone, together


def rows_of(run: Path) -> list[dict[str, str]]:
    with Journal.read(run) as journal:
        return list(csv.DictReader(trials_csv(read_record(journal)).splitlines()))


def curves_of(run: Path) -> dict[tuple[str, str, str], list[tuple[int, float]]]:
    with Journal.read(run) as journal:
        points = journal.points()
    found: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for point in points:
        found.setdefault((str(point.task), str(point.trial), point.split), []).append((point.step, point.loss or 0.0))
    return found


def test_losses_decisions_and_adapters_are_those_of_a_run_alone(both):
    alone, together = both[0] / "drawn", both[1] / "drawn"
    mine, theirs = rows_of(together), rows_of(alone)
    measured = ("best_val_loss", "base_val_loss", "slot_seconds", "detail")
    assert [{k: v for k, v in row.items() if k not in measured} for row in mine] == [
        {k: v for k, v in row.items() if k not in measured} for row in theirs
    ]
    for run in (together, alone):
        with Journal.read(run) as journal:
            assert (journal.get("result"), journal.get("select_by")) == ("best", "loss")
    curves, others = curves_of(together), curves_of(alone)
    assert curves.keys() == others.keys() and len(curves) > 4
    for key, curve in curves.items():
        assert [step for step, _ in curve] == [step for step, _ in others[key]]
        assert np.abs(np.array(curve) - np.array(others[key])).max() <= LOSS_BOUND
    adapters = sorted(path.relative_to(alone) for path in alone.rglob("adapter_model.safetensors"))
    assert adapters == sorted(path.relative_to(together) for path in together.rglob("adapter_model.safetensors"))
    for path in adapters:
        ours, wanted = load_file(together / path), load_file(alone / path)
        assert ours.keys() == wanted.keys()
        assert max(float(np.abs(ours[key] - wanted[key]).max()) for key in ours) <= ADAPTER_BOUND


@pytest.mark.parametrize("name", ["drawn", "grid"])
def test_what_is_delivered_is_a_run_like_any_other(both, name, capsys):
    run = both[1] / name
    alone = {path.name for path in (both[0] / "drawn").iterdir() if any(path.iterdir() if path.is_dir() else [path])}
    assert {path.name for path in run.iterdir()} >= {*alone, "report.html", "trials.csv", "plots"}
    assert status.run(Args({"run": str(run)})) == 0
    told = capsys.readouterr().out
    assert "(best)" in told and "\nfinished" in told
    with Journal.read(run) as journal, Journal.read(both[1] / "shared") as shared:
        began = {event.wall_s for event in shared.events("start")}
        assert {event.wall_s for event in journal.events("start")} <= began, "they began when they did"
    source = find_source(str(run))
    assert source.task == "sums" and list(source.adapters) == ["sums/best"]
    for file in (run / "report.html", run / "metrics.jsonl", run / "sums" / "best" / "README.md"):
        assert "sums-" not in file.read_text(), f"{file} tells of the shared run"


def test_tuning_again_where_it_was_delivered_trains_nothing(both, monkeypatch):
    run = both[1] / "grid"
    before = digest_of(run / "sums")
    config = runs_of(both[1])["sums-2"]
    with Journal.read(run) as journal:
        events = len(journal.events())
    monkeypatch.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
    assert Tuner(config).run() == 0
    with Journal.read(run) as journal:
        assert [event.kind for event in journal.events()[events:]] == ["run_start"]
    assert digest_of(run / "sums") == before


def test_a_delivery_that_was_cut_off_is_begun_anew_and_a_whole_one_is_left_alone(both, tmp_path, monkeypatch):
    config = runs_of(both[1])["sums-1"].model_copy(update={"output_dir": str(tmp_path / "out")})
    shared, calls = both[1] / "shared", []
    commit = Journal.commit_checkpoint
    for method in ("set", "append", "commit_checkpoint"):
        with monkeypatch.context() as patched:
            real = getattr(Journal, method)

            def fail(self, *arguments, real=real, **named):
                real(self, *arguments, **named)
                raise KeyboardInterrupt

            patched.setattr(Journal, method, fail)
            with pytest.raises(KeyboardInterrupt):
                deliver(shared, "sums-1", config)
    monkeypatch.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
    monkeypatch.setattr(Journal, "commit_checkpoint", lambda *given: (calls.append(1), commit(*given)))
    deliver(shared, "sums-1", config)
    assert len(calls) == 1
    assert curves_of(tmp_path / "out") == curves_of(both[1] / "drawn")
    assert rows_of(tmp_path / "out") == rows_of(both[1] / "drawn")
    deliver(shared, "sums-1", config)
    assert len(calls) == 1


def test_a_task_of_which_no_trial_reached_an_adapter_is_delivered_all_the_same(both, tmp_path, monkeypatch):
    shared = Path(shutil.copytree(both[1] / "shared", tmp_path / "shared"))
    shutil.rmtree(shared / name_in("sums-1", "sums"))
    monkeypatch.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
    deliver(shared, "sums-1", runs_of(both[1])["sums-1"].model_copy(update={"output_dir": str(tmp_path / "out")}))
    assert curves_of(tmp_path / "out") == curves_of(both[1] / "drawn")
    assert not list((tmp_path / "out").rglob("adapter_config.json"))


def test_what_has_not_ended_is_not_delivered(both, tmp_path):
    config = runs_of(tmp_path)["sums-1"]
    with pytest.raises(UserError, match="not finished, expected the run that sums-9 shared"):
        deliver(both[1] / "shared", "sums-9", config)


def test_only_tasks_that_lose_nothing_by_it_are_of_one_family(tmp_path):
    def key(**changed: object) -> str:
        config = run_of(tmp_path, "grid", lora_rank=[2, 8])
        plain = {**config.model_dump(mode="json", exclude_unset=True), **changed, "queue": {}}
        return submission_of(check_config(SubmitConfig, plain, "x")).key

    one = key()
    assert one and key(output_dir="elsewhere") == key(search={"train_samples": 8}) == one
    other_model = {"model_name_or_path": str(TINY), "random_init": True}
    changes: list[dict[str, object]] = [
        {"seed": 4},
        {"model": other_model},
        {"early_exit": {"preset": "paper"}},
        {"eval_samples": 0.25},
        {"slots": 2},
        {"queue": {}, "memory_budget": "1GiB"},
    ]
    assert one not in {key(**changed) for changed in changes}
    assert key(report_to=["tensorboard"]) == ""
