"""The live table of a tune: time so far, time left without compilations, settings that tell trials apart."""

import io
from types import SimpleNamespace

from rich.console import Console

from altojax.config.search.space import TrialConfig
from altojax.device.batch import Stream
from altojax.run.live_table import TrialTable
from altojax.run.run_times import RunTimes
from altojax.run.trial import Trial, TrialProgress


def trial(index: int, **values) -> Trial:
    return Trial(index, "sums", f"trial-{index}", TrialConfig(**values), {}, Stream([], 0, 100, 1, 1), 0, 32)


def shown(trials, progress, clock, *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160, height=30, color_system=None)
    prepared = SimpleNamespace(data={"sums": SimpleNamespace(notes=())}, bases=[SimpleNamespace(trials=trials)])
    with TrialTable(console, prepared) as screen:
        screen.show(trials, progress, clock, 3)
    return out.getvalue()


def test_what_is_left_is_told_at_the_pace_of_training_and_not_of_compiling(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = RunTimes(setup_s=100.0)
    clock.start_training()
    now[0] += 8.0
    clock.stop_training()
    now[0] += 2.0
    clock.add("evaluation_s", 2.0)
    now[0] += 500.0  # a compilation that training waited for
    trials = [trial(0), trial(1, lora_rank=4)]
    progress = [TrialProgress("running", 0, step=10), TrialProgress("running", 1, step=10)]
    line = shown(trials, progress, clock, terminal=False)
    # 20 of 200 samples in 10 seconds; 610 seconds have gone by.
    assert "1 min 30 s to go" in line and "10 min 10 s so far" in line


def test_trials_are_told_apart_by_what_varies():
    trials = [trial(0, lora_rank=16, learning_rate=3e-4), trial(1, lora_rank=8, learning_rate=3e-4)]
    table = shown(trials, [TrialProgress("running", 0, step=1), TrialProgress()], RunTimes(), terminal=True)
    assert "settings" in table and "r16" in table and "r8" in table and "lr3e-4" not in table
