"""The test at the end: of the exported adapter, over rows that nobody trained on or chose by, and never twice."""

import json
from pathlib import Path

import pytest

import altojax
import altojax.run.results.finish_run as finish_module
import altojax.run.results.measure_held_out as measuring
from altojax.cli import main
from altojax.config.tune_config import TuneConfig
from altojax.report.run_record import record_of
from altojax.run.prepare import prepare
from jaxrun.config.config import load_config
from jaxrun.process.interrupt import Stopped
from jaxrun.store.journal import Journal

LOSS_BOUND = 2e-6  # batches of other shapes: another order of float32 sums (test_solo_law.py)
CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
slots: 3
eval_samples: 0.5
early_exit: {{preset: none}}
search: {{lora_rank: [2, 4], learning_rate: [3.0e-3, 1.0e-2], batch_size: 2, train_samples: 16}}
tasks:
  - name: sums
    data: {{train: {folder}/rows.jsonl, validation_samples: 6, test: {folder}/test.jsonl, max_length: 32}}
    search: {{target_modules: [q_proj]}}
"""
MORE = "search.learning_rate=[3.0e-3,1.0e-2,3.0e-2]"


class Killed(BaseException):
    """The end of a process, as far as a test can have it."""


def write(path: Path, rows) -> None:
    path.write_text("".join(json.dumps({"prompt": f"{a}+{b}=", "completion": str(a + b)}) + "\n" for a, b in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    write(folder / "rows.jsonl", [(a, b) for a in range(8) for b in range(8)])
    write(folder / "test.jsonl", [(a, 9) for a in range(10)] + [(3, 3)])
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def looks_of(run: Path) -> list[dict]:
    with Journal.read(run) as journal:
        return [event.payload for event in journal.events("test")]


def test_it_is_the_loss_of_the_exported_adapter_and_of_the_base(folder, whole):
    best = altojax.open_run(whole).best()
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()][:10]
    assert best.held_out is not None and (best.held_out.trial, best.held_out.rows) == (best.trial, 10)
    for adapter, loss in ((None, best.held_out.loss), (False, best.held_out.base_loss)):
        assert altojax.load(whole, adapter=adapter).loss(rows) == pytest.approx(loss, abs=LOSS_BOUND)
    assert best.held_out.loss != best.held_out.base_loss and 0 < best.held_out.error < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("mesh={adapter: 2, data: 2}", "slots=4", "search.lora_rank=[2,4]"),
        (
            *("tasks.0.data.packing=true", "search.gradient_accumulation_steps=2", "slots=1", "memory_budget=3GiB"),
            *("search.use_rslora=true", "search.lora_dropout=0.1"),
        ),
    ],
    ids=["meshed", "alone, packed, accumulated and scaled"],
)
def test_it_is_so_however_the_run_was_trained(folder, tune, overrides, request):
    name = request.node.callspec.id
    assert tune(name, "search.lora_rank=[4]", *overrides) == 0
    found = record_of(folder / name).held_out["sums"]
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()][:10]
    for adapter, loss in ((None, found.loss), (False, found.base_loss)):
        assert altojax.load(folder / name, adapter=adapter).loss(rows) == pytest.approx(loss, abs=LOSS_BOUND)


def test_it_is_told_in_the_table_on_the_card_and_by_status(whole, capsys):
    found = record_of(whole).held_out["sums"]
    rows = altojax.open_run(whole).trials()
    rows = rows if isinstance(rows, list) else rows.to_dict("records")
    assert [row["trial"] for row in rows if row["test_loss"] == found.loss] == [found.trial]
    for name in ("best", found.trial):
        assert found.sentence() in (whole / "sums" / name / "README.md").read_text()
    assert main(["status", str(whole)]) == 0
    assert f"sums: {found.trial}: {found.sentence()}" in capsys.readouterr().out


def test_trials_come_out_as_they_do_without_it(folder, tune, whole):
    assert tune("untested", "tasks.0.data.test=null") == 0
    logs = []
    for run in (whole, folder / "untested"):
        with Journal.read(run) as journal:
            logs.append([line for line in journal.decision_log() if '"test"' not in line])
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_ctrl_c_while_it_measures_ends_with_130_and_the_next_call_measures(folder, tune, whole):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "row_losses", lambda *args: asks_for_a_stop())
        assert tune("stopped") == 130
    assert looks_of(folder / "stopped") == [] and not record_of(folder / "stopped").finished
    assert tune("stopped") == 0
    assert looks_of(folder / "stopped") == looks_of(whole)


def asks_for_a_stop():
    raise Stopped


def test_rows_of_the_test_are_nowhere_else_and_a_twin_is_named(folder):
    data = prepare(load_config(TuneConfig, folder / "run.yaml", [])).data["sums"]
    test = {row.tokens.tobytes() for row in data.test}
    assert len(test) == 10 and not test & {row.tokens.tobytes() for row in (*data.train, *data.validation)}
    (note,) = (note for note in data.notes if "left out of the test" in note)
    assert "1 of 11 rows are training or validation rows, too" in note and "test.jsonl:11)" in note


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before", "measured", "noted"])
def test_a_run_that_is_killed_on_the_way_measures_what_is_left_and_nothing_twice(folder, tune, whole, where):
    name, calls = f"killed-{where}", []

    def dies(*args, **kwargs):
        raise Killed

    def counts(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs)

    real = measuring.row_losses
    places = {
        "before": (finish_module, "measure_held_out"),
        "measured": (measuring.HeldOut, "of_rows"),
        "noted": (finish_module, "_write_cards"),
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "row_losses", counts)
        with pytest.MonkeyPatch.context() as killing:
            killing.setattr(*places[where], dies)
            with pytest.raises(Killed):
                tune(name)
        assert looks_of(folder / name) == []
        before = len(calls)
        assert tune(name) == 0 and tune(name) == 0
    assert len(calls) - before == (0 if where == "noted" else 1)
    assert looks_of(folder / name) == looks_of(whole)
    card = (folder / name / "sums" / "best" / "README.md").read_text()
    assert record_of(folder / name).held_out["sums"].sentence() in card


@pytest.mark.slow
def test_another_winner_of_a_run_that_was_added_to_is_a_second_look(tune, folder):
    assert tune("grown") == 0
    (first,) = looks_of(folder / "grown")
    assert tune("grown", MORE) == 0
    (second,) = looks_of(folder / "grown")
    assert second["trial"] != first["trial"] and (first["look"], second["look"]) == (1, 2)
    assert second["base_loss"] == pytest.approx(first["base_loss"], abs=LOSS_BOUND)
