"""A search that learns: what it proposes, when, from what, and that it can be interrupted anywhere."""

import json
from pathlib import Path

import pytest

from altojax.config.tune_config import TuneConfig
from altojax.report.record_tables import trial_rows
from altojax.report.run_record import read_record
from altojax.run.load_base import course_of, largest_step, plan_of
from altojax.run.prepare import prepare
from altojax.run.tasks.search import fill_planned
from altojax.run.trial import TrialProgress
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal

pytestmark = pytest.mark.slow

pytest.importorskip("optuna")

LOSS_BOUND = 2e-6  # other neighbours, or slots: another order of float32 sums (test_solo_law.py)
TRIALS = 10
CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
slots: 2
eval_samples: 0.25
checkpoint_samples: 0.05
early_exit: {{preset: none, not_finite: true, underperforming: {{at: [0.5], keep: [0.5]}}}}
search:
  method: refine
  trials: 10
  lora_rank: [2, 4, 8]
  batch_size: [1, 2]
  learning_rate: {{min: 1.0e-4, max: 3.0e-2, log: true}}
  lora_dropout: [0.0, 0.05]
  train_samples: 16
tasks:
  - name: sums
    data: {{train: {folder}/rows.jsonl, validation_samples: 6, max_length: 32}}
    search: {{target_modules: [[q_proj], [q_proj, v_proj]]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds rows and a config; the runs of all tests."""
    folder = tmp_path_factory.mktemp("searches")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def read(folder: Path, *overrides: str) -> TuneConfig:
    return load_config(TuneConfig, folder / "run.yaml", overrides)


def told(run: Path) -> tuple[list, list]:
    """What a run proposed and decided, in order, and every loss that it measured."""
    with Journal.read(run) as journal:
        kinds = ("propose", "start", "rung", "end")
        payload_of = {one: {"slot_s"} for one in kinds}
        events = [
            (one.kind, one.trial, {k: v for k, v in one.payload.items() if k not in payload_of[one.kind]})
            for one in journal.events()
            if one.kind in kinds
        ]
        return events, [(one.trial, one.step, one.split, one.loss) for one in journal.points()]


def test_a_third_begins_and_the_others_are_proposed_from_what_is_known_when_their_slots_fall_free(whole):
    events, _ = told(whole)
    proposed = [trial for kind, trial, _ in events if kind == "propose"]
    assert proposed == [f"trial-{i}" for i in range(4, TRIALS)]
    kinds = [(kind, trial) for kind, trial, _ in events]
    for kind, trial, payload in events:
        if kind == "propose":
            before = {name for what, name in kinds[: kinds.index((kind, trial))] if what == "start"}
            assert {f"trial-{i}" for i in range(4)} <= before and set(payload["around"]) <= before
            assert payload["around"], "each was new to the sampler"
            between = kinds[kinds.index((kind, trial)) : kinds.index(("start", trial))]
            assert {what for what, _ in between} <= {"propose", "start"}, "it waits for no slot"
    first_rung = next(i for i, (kind, _) in enumerate(kinds) if kind == "rung")
    assert first_rung < kinds.index(("propose", "trial-4"))


def test_no_configuration_is_tried_twice_and_all_are_of_the_search_space(whole):
    with Journal.read(whole) as journal:
        record = read_record(journal)
    tried = [json.dumps(one.config, sort_keys=True) for one in record.trials]
    assert len(set(tried)) == TRIALS
    for one in record.trials:
        assert one.config["lora_rank"] in (2, 4, 8) and 1e-4 <= one.config["learning_rate"] <= 3e-2
        assert one.status in ("completed", "stopped")


def test_each_is_compared_with_all_that_were_at_its_rung_before(whole):
    events, _ = told(whole)
    rungs = [payload for kind, _, payload in events if kind == "rung"]
    assert len(rungs[0]["kept"]) + len(rungs[0]["ended"]) == 4
    assert all(len(one["kept"]) + len(one["ended"]) == 1 for one in rungs[1:]) and len(rungs) == 1 + TRIALS - 4
    details = [payload["detail"] for kind, _, payload in events if kind == "end" and payload["status"] == "stopped"]
    assert any(f"of {n}" in detail for detail in details for n in range(5, TRIALS + 1))


def test_reports_say_around_which_trials_one_was_proposed(whole):
    with Journal.read(whole) as journal:
        rows = trial_rows(read_record(journal))
    around = {row["trial"]: row["proposed_around"] for row in rows}
    assert around["trial-0"] == "" and around["trial-9"].startswith("trial-")


def test_a_run_that_resumes_proposes_and_measures_the_same(folder, tune, whole):
    looks = (3, 4, 9, 7, 12)
    assert [tune("interrupted", looks=one) for one in looks] == [130] * len(looks)
    assert tune("interrupted") == 0
    assert told(folder / "interrupted") == told(whole)


def test_a_proposed_trial_is_what_it_is_alone(folder, tune, whole):
    with Journal.read(whole) as journal:
        record = read_record(journal)
    one = min(record.trials[4:], key=lambda one: one.best_loss)
    given = {k: v for k, v in one.config.items() if v is not None}
    space = json.dumps({"method": None, "trials": None, "configurations": [given]})
    alone = "tasks=" + json.dumps(
        [{"name": "sums", "data": {"train": f"{folder}/rows.jsonl", "validation_samples": 6, "max_length": 32}}]
    )
    assert tune("alone", f"search={space}", alone, "early_exit=none") == 0
    with Journal.read(folder / "alone") as journal:
        (solo,) = read_record(journal).trials
    losses = {point.step: point.loss for point in solo.validation}
    for point in one.validation:
        assert losses[point.step] == pytest.approx(point.loss, abs=LOSS_BOUND)


def test_memory_and_shapes_are_planned_for_the_largest_that_may_be_proposed(folder):
    config = read(folder, "seed=3", "slots=4")
    (base,) = prepare(config).bases
    plan = plan_of(config, base, 4, "xla")
    assert plan.rank == 8 and plan.drops and len(plan.projections) == 2
    loads, _ = course_of(base, 4, None)
    first = [load for load, trial in zip(loads, base.trials, strict=True) if not trial.proposed]
    assert len(base.trials) == TRIALS and len(first) == 4
    assert {load.rows for load, trial in zip(loads, base.trials, strict=True) if trial.proposed} == {2}
    widest = sum(sorted(load.tokens for load in loads)[-4:])
    assert largest_step(base, loads, 1, 4).tokens >= widest > sum(sorted(load.tokens for load in first)[-4:])


def test_a_space_is_proposed_to_its_last_configuration(folder):
    axes = {"lora_rank": [2, 4, 8], "learning_rate": [1e-3, 2e-3], "lora_dropout": 0.0, "batch_size": [1, 2]}
    config = read(folder, *(f"search.{name}={json.dumps(one)}" for name, one in axes.items()), "search.trials=24")
    (base,) = prepare(config).bases
    progress = [TrialProgress(phase="planned" if one.proposed else "done") for one in base.trials]
    for i, one in enumerate(progress[:8]):
        one.fraction, one.val_loss, one.train_loss = [1.0], [float(i)], [1.0]
    events = fill_planned(100, base.trials, progress, base.searches)
    assert len(events) == 16 and len({one.identity() for one in base.trials}) == len(base.trials) == 24
    assert not any(one.phase == "planned" for one in progress)
    assert fill_planned(1, base.trials, progress, base.searches) == []


def test_another_search_space_is_another_run(folder, tune):
    assert tune("other", looks=3) == 130
    for changed in ("search.trials=12", "search.lora_rank=[2, 4]", "search.learning_rate.max=1.0e-2"):
        with pytest.raises(UserError, match=r"tasks\.sums\.search\."):
            tune("other", changed)
