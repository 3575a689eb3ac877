"""Shapes of coming batches are predicted, and compiled before they are needed."""

import json

import pytest
from rich.console import Console
from stopping import AskedAfter
from tiny import ROWS, make_executor

from altojax.config.search.space import TrialConfig
from altojax.config.tune_config import TuneConfig
from altojax.device import executor as executor_module
from altojax.device.batch import Stream, next_part
from altojax.device.batch_shapes import Shape
from altojax.report.run_record import read_record
from altojax.run.loop import train_loop as race_module
from altojax.run.loop.shape_forecast import SAMPLES, Runner, forecast, foresee_first
from altojax.run.trial import Trial, TrialProgress
from altojax.run.tuner import Tuner
from jaxrun.config.config import load_config
from jaxrun.store.journal import Journal


def trial(index: int, *, steps: int, batch: int = 2, accumulation: int = 1, rungs: tuple[int, ...] = ()) -> Trial:
    stream = Stream(ROWS, 3, steps * batch * accumulation, batch, accumulation)
    config = TrialConfig(batch_size=batch, gradient_accumulation_steps=accumulation)
    return Trial(index, "task", f"trial-{index}", config, {}, stream, index, 32, (*rungs, steps), rungs)


@pytest.mark.parametrize(("accumulation", "micro"), [(1, 0), (3, 0), (3, 2)])
def test_the_rows_foreseen_are_the_rows_that_come(accumulation, micro):
    one = trial(0, steps=20, accumulation=accumulation)
    runner = Runner(one, TrialProgress("running", 5, step=4, micro=micro), 5)
    ticks, times = forecast([runner], 512, waiting=False)
    assert times == 1 and len(ticks) == runner.left == 16 * accumulation - micro
    step = 4
    for (part,) in ticks:
        mine = next_part(5, one.stream, one.seed, step, micro)
        assert part.slot == 5 and all(a is b for a, b in zip(part.rows, mine.rows, strict=True))
        step, micro = (step + 1, 0) if mine.apply else (step, micro + 1)
    assert step == 20


def test_a_trial_is_foreseen_beyond_rungs_to_its_end_and_all_until_the_first_has_trained_all_where_others_wait():
    runners = [
        Runner(trial(0, steps=40, rungs=(10, 30)), TrialProgress("running", 0, step=10, rung=1), 0),
        Runner(trial(1, steps=30, rungs=(8,)), TrialProgress("running", 1, step=2), 1),
        Runner(trial(2, steps=16, rungs=(4,)), TrialProgress("running", 2, step=4, rung=1), 2),
    ]
    assert [runner.left for runner in runners] == [30, 28, 12]
    ticks, _ = forecast(runners, 512, waiting=False)
    assert [[part.slot for part in parts] for parts in ticks] == [[0, 1, 2]] * 12 + [[0, 1]] * 16 + [[0]] * 2
    ticks, _ = forecast(runners, 512, waiting=True)
    assert [[part.slot for part in parts] for parts in ticks] == [[0, 1, 2]] * 12, "another follows one that ends early"
    runners[2].progress.step = 16
    ticks, _ = forecast(runners, 512, waiting=True)
    assert [[part.slot for part in parts] for parts in ticks] == [[0, 1]] * 28, "one that has trained all is out"
    assert forecast([], 512, waiting=False) == ([], 1)


def test_a_long_way_is_looked_at_in_samples():
    runner = Runner(trial(0, steps=1500), TrialProgress("running", 0), 0)
    ticks, times = forecast([runner], 512, waiting=False)
    assert len(ticks) == SAMPLES and times == 512 // SAMPLES
    assert [parts[0].rows[0] for parts in ticks[:2]] == [
        runner.trial.stream.effective_batch(step)[0] for step in (0, 512 // SAMPLES)
    ]


def test_the_first_steps_have_a_shape_of_their_own_beside_the_largest(monkeypatch):
    monkeypatch.setattr(executor_module, "compile_tokens", lambda *_, **__: 3000)
    executor, largest = make_executor(slots=4, rank=8), Shape(64, 32, 1024)
    executor.programs.add_shape("train", largest)
    trials = [trial(i, steps=60, batch=1 + i % 2) for i in range(8)]
    foresee_first(executor, trials, [one.load for one in trials], largest)
    saved = executor.programs.shapes()
    first = Shape(*saved["shapes"]["train"][-1])
    assert not saved["coming"] and first.tokens < largest.tokens
    # The longest schedules first, all equal here, then the largest batches: four trials of two rows.
    runners = [Runner(trials[i], TrialProgress(), slot) for slot, i in enumerate((1, 3, 5, 7))]
    ticks, _ = forecast(runners, 512, waiting=True)
    assert any(executor.programs.shape_of("train", parts) == first for parts in ticks)
    executor.programs.get("train", first)
    assert [done.shape for done in executor.programs.stats().done] == [first]


@pytest.mark.slow
def test_a_run_that_stops_and_goes_on_takes_the_same_shapes_to_the_same_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(executor_module, "compile_tokens", lambda *_, **__: 3000)
    monkeypatch.setattr(race_module, "LOOK_TICKS", 4)
    monkeypatch.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
    rows = [{"prompt": "x" * (1 + a * b % 23 * 4), "completion": str(a + b)} for a in range(8) for b in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(f"""
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
search: {{lora_rank: [2], learning_rate: [1.0e-2, 1.0e-3], batch_size: [1, 2, 4], train_samples: 32}}
slots: 4
eval_samples: 0.25
early_exit: {{preset: eager}}
tasks:
  - name: rows
    data: {{train: {tmp_path}/rows.jsonl, validation_samples: 6, max_length: 128, chat_template: false}}
    search: {{target_modules: [q_proj]}}
""")

    def run(name: str, looks: int, code: int) -> tuple[dict, list[tuple[str, float, int]]]:
        config = load_config(TuneConfig, tmp_path / "run.yaml", [f"output_dir={tmp_path}/{name}"])
        assert Tuner(config, console=Console(quiet=True)).run(AskedAfter(looks)) == code
        with Journal.read(tmp_path / name) as journal:
            manifest = journal.last_checkpoint().manifest
            return manifest, [(one.trial, one.best_loss, one.steps) for one in read_record(journal).trials]

    whole, trials = run("whole", 10_000, 0)
    assert len(whole["shapes"]["train"]) >= 3, "a shape was made beside the largest and the first"
    first, _ = run("stopped", 8, 130)
    assert "train" in first["coming"] and first["shapes"]["train"] != whole["shapes"]["train"]
    last, same = run("stopped", 10_000, 0)
    assert (last["shapes"], same) == (whole["shapes"], trials)
