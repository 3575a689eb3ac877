"""A folder is a run's: what a run may resume with, in what order it finds its trials, and how trials are added."""

import json
import shutil
from pathlib import Path
from unittest.mock import create_autospec

import jax
import pytest
from rich.console import Console
from stopping import AskedAfter

from altojax.cli import main
from altojax.config.tune_config import TuneConfig
from altojax.device.executor import Executor
from altojax.device.memory import Capacity
from altojax.device.programs import Programs
from altojax.report.run_record import read_record
from altojax.run.checkpoint import plain_capacity, resume
from altojax.run.prepare import prepare
from altojax.run.run_identity import as_begun, changes, differences, facts_of, identity_of
from altojax.run.tuner import Tuner
from jaxlm.models.computation import Remat
from jaxrun.config.config import dump_config, load_config
from jaxrun.files.atomic import digest_of
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Checkpoint, Journal

LOSS_BOUND = 2e-6  # other neighbours, slots or layers computed again: another order of float32 sums (test_solo_law.py)
CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
slots: 3
eval_samples: 0.25
checkpoint_samples: 0.1
early_exit: {{preset: none}}
search: {{lora_rank: [2, 4], learning_rate: [3.0e-3, 1.0e-2], batch_size: 2, train_samples: 32}}
tasks:
  - name: sums
    data: {{train: {folder}/rows.jsonl, validation_samples: 6, max_length: 32}}
    search: {{target_modules: [q_proj]}}
"""
MORE = "search={lora_rank: [2, 4], learning_rate: [1.0e-3, 3.0e-3, 1.0e-2], batch_size: 2, train_samples: 32}"
MOST = """search={lora_rank: 2, learning_rate: 3.0e-3, batch_size: 2, train_samples: 32, configurations: [
  {lora_rank: 8, gradient_accumulation_steps: 2}, {}, {lora_rank: 4}, {learning_rate: 1.0e-2}, {learning_rate: 1.0e-3},
  {learning_rate: 1.0e-2, lora_rank: 4}, {learning_rate: 1.0e-3, lora_rank: 4}]}"""
"""Of a larger rank, and with gradients gathered over micro-batches, which no state had before."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds rows and a config; the runs of all tests."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def read(folder: Path, *overrides: str) -> TuneConfig:
    return load_config(TuneConfig, folder / "run.yaml", overrides)


@pytest.fixture(scope="module")
def whole(folder, tune) -> Path:
    """A run that began with the most trials."""
    assert tune("whole", MOST) == 0
    return folder / "whole"


def losses(run: Path) -> dict[tuple[float, ...], float]:
    """The best loss of every trial, by what it is."""
    with Journal.read(run) as journal:
        record = read_record(journal)
    assert record.finished and all(trial.status in ("completed", "stopped") for trial in record.trials)
    varied = ("lora_rank", "learning_rate", "batch_size", "gradient_accumulation_steps")
    return {tuple(trial.config[name] for name in varied): trial.best_loss for trial in record.trials}


def log(run: Path) -> list[str]:
    with Journal.read(run) as journal:
        return journal.decision_log()


def without_end(lines: list[str]) -> list[str]:
    return [line for line in lines if not any(kind in line for kind in ('"export"', '"best"', '"finish"'))]


def adapters(run: Path) -> dict[str, str]:
    return {path.parent.name: digest_of(path) for path in run.glob("sums/trial-*/adapter_model.safetensors")}


@pytest.mark.slow
def test_trials_are_added_to_a_run_that_was_stopped_and_to_one_that_is_finished(folder, tune, whole):
    """Old ones stay as they are; wherever it is stopped after that, it resumes to the same bits."""
    run, copy = folder / "run", folder / "copy"
    assert tune("run", looks=12) == 130
    shutil.copytree(run, copy)
    assert tune("run", MORE) == 0
    assert tune("copy", MORE, looks=7) == 130
    assert tune("copy", MORE) == 0
    assert (log(copy), adapters(copy)) == (log(run), adapters(run))
    first, kept, before = losses(run), adapters(run), log(run)
    assert len(first) == 6 and kept.keys() == {f"trial-{number}" for number in range(6)}
    assert tune("run", MOST) == 0
    second, after = losses(run), adapters(run)
    assert second | first == second and after | kept == after
    assert [name for name in after if name not in kept] == ["trial-6"]
    assert (own := without_end(before)) == without_end(log(run))[: len(own)]
    starts = [line for line in log(run) if '"start"' in line]
    assert len(starts) == 7 and "trial-6" in starts[-1]
    assert losses(whole) == pytest.approx(second, abs=LOSS_BOUND)


@pytest.mark.slow
def test_what_does_not_decide_results_may_change_while_a_run_goes_on(folder, tune, whole):
    run = folder / "changing"
    assert tune("changing", looks=8) == 130
    changes = ["slots=1", "model.remat=full", "model.kernels=xla", "model.scan_layers=true", "memory_budget=3GiB"]
    assert tune("changing", *changes, "checkpoint_samples=0.5", "keep_adapters=best", looks=4) == 130
    assert tune("changing", "slots=4", "mesh={adapter: 2, data: 2}") == 0
    found, expected = losses(run), losses(whole)
    assert min(found, key=found.__getitem__) == min(found, key=expected.__getitem__), "the winner, too"
    assert losses(whole) == pytest.approx(losses(whole) | losses(run), abs=LOSS_BOUND)
    with Journal.read(run) as journal:
        assert "slots: 4" in journal.config_text == (run / "config.yaml").read_text()
        spans = [len(trial.spans) for trial in read_record(journal).trials]
        devices = [one.payload["device"] for one in journal.events("run_start")]
    assert devices[-1] == "4 × cpu", "those of its mesh, not all that can be seen"
    assert len(spans) == 4 and max(spans) > 1, "a trial whose slot was taken away went on in another"


@pytest.mark.slow
def test_memory_that_runs_out_in_a_step_loses_nothing_and_fewer_slots_go_on(folder, whole, monkeypatch, capsys):
    run = folder / "exhausted"
    steps, train = [], Executor.train

    def exhausts(*arguments):
        steps.append(1)
        if len(steps) > 20:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9.5GiB.")
        return train(*arguments)

    words = ["tune", str(folder / "run.yaml"), f"output_dir={run}"]
    with monkeypatch.context() as patched:
        patched.setattr(Executor, "train", exhausts)
        assert main(words) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "when 9.5GiB more were asked for" in said
        and "expected slots=3 memory_budget=" in said
    )
    with Journal.read(run) as journal:
        assert journal.last_checkpoint() is not None
    assert main([*words, "slots=1", "model.remat=full"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "model.remat auto → full, slots 3 → 1; losses are the same up to rounding" in said
    assert losses(whole) == pytest.approx(losses(whole) | losses(run), abs=LOSS_BOUND)


@pytest.mark.parametrize(("now", "same"), [(2**30, True), (2**31, True), (2**30 - 1, False)])
def test_what_a_device_held_is_chosen_anew_on_a_smaller_one(now, same):
    executor = create_autospec(Executor, instance=True)
    executor.programs = create_autospec(Programs, instance=True)
    capacity = Capacity(512, 2**30, 2**20, 2**20, Remat("none", True))
    found = resume(executor, Checkpoint(3, {"held": {}, "capacity": plain_capacity(capacity)}), {}, now)
    assert found == (capacity if same else None)
    assert executor.programs.restore.called == same


def test_what_changed_since_the_last_call_is_one_line(folder):
    before = read(folder)
    assert changes(before, before) is None and changes(before, read(folder, "search.lora_rank=[2, 4, 8]")) is None
    kept = changes(before, read(folder, "keep_adapters=best", "report_to=[tensorboard]"))
    assert kept == (
        "resumes with other settings, keep_adapters all → best, report_to [] → [tensorboard]; losses are the same"
    )
    moved = changes(before, read(folder, "mesh={tensor: 2}", "model.kernels=xla"))
    assert moved is not None and "model.kernels auto → xla, mesh null → {tensor: 2, data: 1}" in moved
    assert moved.endswith("; losses are the same up to rounding")


@pytest.mark.slow
def test_a_trial_that_rests_while_others_that_accumulate_are_added_goes_on(folder, tune, whole):
    """What it left on disk is shaped by itself, not by neighbours that came later."""
    assert tune("resting", looks=3) == 130
    assert tune("resting", MOST, "slots=1", looks=0) == 130
    assert tune("resting", MOST) == 0
    assert losses(whole) == pytest.approx(losses(folder / "resting"), abs=LOSS_BOUND)


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_config_yaml(folder, tune):
    """Where `configurations` stand beside shared values: no default wins over these when it is read again."""
    listed = "[{lora_rank: 2}, {lora_rank: 4, seed: 3}, {lora_rank: 4}]"
    search = f"search={{train_samples: 32, batch_size: 2, warmup_ratio: 0.1, configurations: {listed}}}"
    assert tune("listed", search, looks=4) == 130
    own = load_config(TuneConfig, folder / "listed" / "config.yaml", [])
    assert Tuner(own, console=Console(quiet=True)).run(AskedAfter(10_000)) == 0
    with Journal.read(folder / "listed") as journal:
        trials = read_record(journal).trials
    assert [trial.config["warmup_ratio"] for trial in trials] == [0.1] * 3
    assert [trial.samples for trial in trials] == [32] * 3


def test_a_run_with_moments_in_8_bits_goes_on_to_the_same_bits(folder, tune):
    keys = "optimizer_state=int8", "search={lora_rank: [2, 4], learning_rate: 1.0e-2, batch_size: 2, train_samples: 24}"
    assert tune("packed", *keys) == 0
    assert tune("stopped", *keys, looks=6) == 130
    assert tune("stopped", *keys) == 0
    assert losses(folder / "stopped") == losses(folder / "packed")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1", "seed"),
        ("eval_samples=0.5", "eval_samples"),
        ("optimizer_state=int8", "optimizer_state"),
        ("early_exit.stalled={patience: 3}", "early_exit.stalled.enabled, early_exit.stalled.patience"),
        ("search.weight_decay=0.5", "tasks.sums.search.weight_decay"),
        ("search.train_samples=31", "tasks.sums.search.train_samples"),
        ("search.lora_rank=[2]", "tasks.sums.search (without 2 of its trials, such as that of lora_rank 4"),
        ("model.dtype=bfloat16", "tasks.sums.model.dtype"),
        ("model.quantize=int8", "tasks.sums.model.quantize"),
        ("tasks.0.data.train_on=all", "tasks.sums.data.train_on"),
        ("tasks.0.data.validation_samples=7", "tasks.sums.data.validation_samples"),
        ("tasks.0.name=other", "tasks.sums, tasks.other"),
    ],
)
def test_what_decides_results_may_not_change_and_is_named(tmp_path, folder, override, said):
    first, second = read(folder), read(folder, override)
    old, new = (json.loads(json.dumps(identity_of(config, prepare(config)))) for config in (first, second))
    (tmp_path / "run").mkdir()
    with Journal.open(tmp_path / "run", config_text=dump_config(first), identity=old):
        pass
    with pytest.raises(UserError) as error:
        Journal.open(tmp_path / "run", config_text="", identity=new, differences=differences)
    assert f"differs in {said}" in str(error.value) and "\n" not in str(error.value)
    with Journal.open(tmp_path / "run", config_text=dump_config(first), identity=old, differences=differences) as same:
        assert same.identity == old


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=elsewhere",
        "report_to=[tensorboard]",
        "slots=7",
        "mesh={adapter: 2}",
        "memory_budget=9GiB",
        "checkpoint_samples=3.0",
        "keep_adapters=best",
        "model.kernels=xla",
        "model.remat=dots",
        "model.scan_layers=false",
        "model.dtype=auto",  # which is float32 here
        "model.quantize=none",  # of what is not quantised
        "tasks.0.data.truncation=drop",  # of rows none of which is too long
        "search={lora_rank: [4, 2], learning_rate: [1.0e-2, 3.0e-3], batch_size: [2], train_samples: 32, seed: 0}",
        "early_exit.preset=none",
        MORE,
        MOST,
    ],
)
def test_a_run_goes_on_with_what_decides_no_result_and_with_more_trials(folder, override):
    old, new = (identity_of(config, prepare(config)) for config in (read(folder), read(folder, override)))
    assert differences(json.loads(json.dumps(old)), json.loads(json.dumps(new))) == []


def test_trials_that_were_begun_keep_order_name_and_rungs_and_added_ones_come_after_them(folder):
    """Ten more trials, one with a longer warm-up: no digit is added to a name, and no rung of an old one moves."""
    old = prepare(read(folder, "early_exit.preset=eager", "search.batch_size=[2]"))
    facts = json.loads(json.dumps([facts_of(trial) for trial in old.bases[0].trials]))
    grown = prepare(
        read(folder, "early_exit.preset=eager", "search.batch_size=[1,2,4]", "search.warmup_ratio=[0.2,0.03]")
    )  # fmt: skip
    begun = as_begun(grown, facts)
    trials = begun.bases[0].trials
    assert [trial.name for trial in trials] == [f"trial-{number}" for number in range(24)]
    assert [trial.index for trial in trials] == list(range(24))
    assert json.loads(json.dumps([facts_of(trial) for trial in trials[:4]])) == facts
    assert {(one.config.batch_size, one.config.warmup_ratio) for one in trials[:4]} == {(2, 0.03)}
    assert as_begun(begun, facts) == begun and as_begun(grown, []) == grown
