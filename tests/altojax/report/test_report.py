"""A report tells what the journal holds: no more, no less, whenever it is asked."""

import csv
import io
import itertools
import math
import re
import statistics
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from runs import BASE, name, write_run

from altojax.cli import main
from altojax.report.figures import run_pictures, saved_share, task_pictures, varied
from altojax.report.record_tables import trials_csv
from altojax.report.run_record import read_record
from altojax.report.write_report import write_report
from jaxrun.store.journal import Journal

COLUMNS = (
    "task,trial,status,reason,detail,proposed_around,started_from,rank,alpha,use_rslora,dropout,target_modules,"
    "target_parameters,learning_rate,lr_scheduler_type,warmup_ratio,weight_decay,batch_size,"
    "gradient_accumulation_steps,loss_type,beta,label_smoothing,simpo_gamma,sft_weight,desirable_weight,undesirable_weight,seed,"
    "best_val_loss,best_step,averaged,base_val_loss,metric,metric_error,base_metric,"
    "test_loss,base_test_loss,test_error,test_accuracy,steps,total_steps,samples,total_samples,tokens,slot_seconds"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def written(finished):
    return write_report(finished)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "live", live_at=90)


def record_of(run_dir):
    with Journal.read(run_dir) as journal:
        return read_record(journal)


def test_the_csv_has_one_row_a_trial_with_every_column(finished):
    text = trials_csv(record_of(finished))
    assert text.splitlines()[0] == COLUMNS
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["task"], row["trial"]) for row in rows] == [(task, name(i, 8)) for task in BASE for i in range(8)]


def test_a_trial_is_told_as_it_was_recorded(finished):
    with Journal.read(finished) as journal:
        mine = ("sql", "trial-5", "validation")
        losses = {p.step: p.loss for p in journal.points() if (p.task, p.trial, p.split) == mine}
    row = next(
        r
        for r in csv.DictReader(io.StringIO(trials_csv(record_of(finished))))
        if r["task"] == "sql" and r["seed"] == "5"
    )
    best = min(losses, key=losses.get)
    assert (float(row["best_val_loss"]), int(row["best_step"])) == (losses[best], best)
    assert (row["status"], row["reason"], row["steps"], row["samples"]) == ("stopped", "overfitting", "130", "1040")
    assert (row["target_modules"], float(row["base_val_loss"]), row["tokens"]) == ("all-linear", 2.4, "117000")
    assert float(row["slot_seconds"]) == pytest.approx(52.0)


def test_a_loss_that_is_not_finite_is_never_the_best(finished):
    trial = next(t for t in record_of(finished).trials if t.reason == "not finite")
    assert any(not math.isfinite(p.loss) for p in trial.validation) and math.isfinite(trial.best_loss)


def test_the_best_of_a_task_has_its_lowest_loss(finished):
    record = record_of(finished)
    for task in record.tasks:
        assert record.best_of(task).best_loss == min(trial.best_loss for trial in record.of_task(task))


def test_slots_hold_one_trial_at_a_time(finished):
    spans = sorted((s.slot, s.begin, s.end) for t in record_of(finished).trials for s in t.spans)
    assert len(spans) == 24 + 12, "a stay for every start and every resume"
    for (slot, _, end), (next_slot, begin, _) in itertools.pairwise(spans):
        assert slot != next_slot or end <= begin


def test_saved_samples_are_those_that_ended_trials_left(finished):
    trials = list(record_of(finished).trials)
    left = sum(1600 - t.samples for t in trials if t.status == "stopped")
    assert saved_share(trials) == pytest.approx(left / (24 * 1600))
    reasons = {t.reason for t in trials if t.status == "stopped"}
    assert sum(saved_share(trials, reason) for reason in reasons) == pytest.approx(saved_share(trials))


def test_pictures_are_made_of_runs_that_end_for_falling_behind_those_that_did(finished):
    record = record_of(finished)
    for trial in record.trials:
        if trial.fate == "underperforming":
            last = trial.validation[-1]
            at_that_step = [
                point.loss
                for one in record.of_task(trial.task)
                for point in one.validation
                if point.step == last.step and math.isfinite(point.loss or math.nan)
            ]
            assert last.loss > statistics.median(at_that_step)


def test_losses_are_in_nats_but_those_of_pairs_are_each_trials_own(finished):
    record = record_of(finished)
    of_pairs = replace(record, trials=[replace(trial, select_by="preference") for trial in record.trials])
    for one, unit in ((record, "nats per token"), (of_pairs, "each trial's own")):
        labels = {ax.get_ylabel() for picture in task_pictures(one, record.tasks[0]) for ax in picture.figure.axes}
        assert f"validation loss ({unit})" in labels


def test_a_live_run_shows_who_runs_parks_and_waits(live):
    record = record_of(live)
    assert {trial.status for trial in record.trials} == {"running", "parked", "waiting", "stopped"}
    assert not record.finished
    running = [span for trial in record.trials for span in trial.spans if span.end is None]
    assert sorted(span.slot for span in running) == sorted({span.slot for span in running})


def test_only_what_varies_gets_an_axis(finished):
    assert varied(record_of(finished).of_task("sql")) == ["rank", "target_modules", "learning_rate", "batch_size"]


def test_the_page_needs_nothing_from_outside_and_shows_every_trial(finished, written):
    page = (finished / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page) and "@import" not in page
    assert page.count("<svg") == 3 * 2 + 3
    for trial in record_of(finished).trials:
        assert trial.trial in page
    for word in (
        "underperforming",
        "diverging",
        "overfitting",
        "not finite",
        "38.8 %",
        "4.9×",
        "One Fast Card",
        "flax 0.12.12",
    ):
        assert word in page


def test_every_picture_of_the_page_is_also_a_file(finished, written):
    record = record_of(finished)
    names = {p.name for task in record.tasks for p in task_pictures(record, task)}
    names |= {p.name for p in run_pictures(record)}
    assert {path.stem for path in (finished / "plots").iterdir()} == names
    assert all(path.exists() for path in written)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (finished / "plots").iterdir())


def test_svg_pieces_are_well_formed(written):
    page = written[-1].read_text()
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)


def test_a_run_that_has_only_begun_can_be_reported(tmp_path):
    with Journal.open(tmp_path / "run", config_text="output_dir: x\n", identity="d"):
        pass
    assert [path.name for path in write_report(tmp_path / "run")] == ["trials.csv", "plots", "report.html"]
    assert main(["status", str(tmp_path / "run")]) == 0


def test_a_live_run_can_be_reported(live):
    write_report(live)
    assert "interrupted" in (live / "report.html").read_text()


def test_status_lists_every_trial(live, capsys):
    assert main(["status", str(live)]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = record_of(live)
    for line, trial in zip(lines[1:], record.trials, strict=False):
        status = "interrupted" if trial.status == "running" else trial.status
        assert line.split()[:3] == [trial.task, trial.trial, status] and "lr" in line
    assert lines[-1] == "interrupted; run tune again to resume"
    assert sum("(best)" in line for line in lines) == sum(record.best_of(task) is not None for task in record.tasks)


def test_status_and_report_tell_a_live_run_from_an_interrupted_and_a_finished_one(live, finished, capsys):
    with Journal.open(live, config_text="output_dir: x\n", identity="d"):
        assert main(["status", str(live)]) == 0
        told = capsys.readouterr().out
        assert told.splitlines()[-1] == "live" and "running" in told and "interrupted" not in told
        write_report(live)
        assert "the run is live." in (live / "report.html").read_text()
    assert main(["status", str(live)]) == 0
    assert "interrupted; run tune again" in capsys.readouterr().out
    assert main(["status", str(finished)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "finished"


@pytest.mark.parametrize("verb", ["status", "report"])
def test_a_folder_without_a_run_is_one_line(tmp_path, capsys, verb):
    assert main([verb, str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
