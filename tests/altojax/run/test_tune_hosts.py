"""Several processes tune as one does; whatever happens to one of them, they end together and resume together."""

import json
import signal
from pathlib import Path

import pytest
from rich.console import Console
from stopping import AskedAfter

from altojax.config.tune_config import TuneConfig
from altojax.run.loop.train_loop import TrainLoop
from altojax.run.tuner import Tuner
from jaxrun.config.config import load_config
from jaxrun.store.journal import Journal

ROOT = Path(__file__).parents[3]
CONFIG = f"""
output_dir: run
model: {{model_name_or_path: {ROOT}/configs/tiny, random_init: true, dtype: float32}}
slots: 4
mesh: {{adapter: 4, shard_base: true}}
eval_samples: 0.2
early_exit: {{preset: none, not_finite: {{enabled: true}}, halving: {{first: 0.25, eta: 1.5}}}}
checkpoint_samples: 0.05
search:
  configurations:
    - {{lora_rank: 4, learning_rate: 3.0e-3, lora_dropout: 0.1}}
    - {{lora_rank: 2, learning_rate: 1.0e-2, weight_decay: 0.1}}
    - {{lora_rank: 4, learning_rate: 3.0e-3, target_modules: [q_proj, down_proj]}}
    - {{lora_rank: 4, learning_rate: 2.0e-3}}
    - {{lora_rank: 2, learning_rate: 1.0e-3}}
    - {{lora_rank: 4, learning_rate: 1.0e-5}}
  target_modules: [q_proj]
  batch_size: 2
  train_samples: 40
tasks:
  - name: sums
    data:
      {{train: sums.jsonl, validation_samples: 6, test: test.jsonl, max_length: 32, chat_template: false}}
"""
# Runs the program, which draws no report; after a tick, one process sends itself a signal, or one ends its trials
# where the others go on.
PROGRAM = """
import os, sys
from altojax.device import executor
from altojax.report import write_report
from altojax.run.loop import train_loop
from altojax.cli import main
from altojax.run.decisions import end

number, after, wrong = (int(sys.argv.pop(1)) for _ in range(3))
advance, judge = train_loop.TrainLoop.advance, train_loop.judge

def signalled(self):
    advance(self)
    if number and self.tick == after:
        os.kill(os.getpid(), number)

def mistaken(trial, progress, rules, wish):
    if wrong and progress.step > 8:
        return [end(trial, progress, "stopped", "not finite", "")]
    return judge(trial, progress, rules, wish)

train_loop.TrainLoop.advance, train_loop.judge = signalled, mistaken
write_report.write_report = lambda run_dir: []
executor.compile_tokens = lambda prices: 10**9  # few shapes
sys.exit(main())
"""
LOST = "altojax: error: another process of this run has ended"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run of six trials in four slots, one on each of four devices, in a folder beside its data."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "tune.yaml").write_text(CONFIG)
    write_data(folder)
    return folder / "tune.yaml"


def write_data(folder, first=0):
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(first, 8) for b in range(8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": f"{a}+9=", "completion": str(a + 9)} for a in range(7)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def processes(config, run_together):
    """Runs `altojax tune` in processes that share no folder but four devices; one gets a signal after a tick."""

    def run(count, run_dir, *, number=0, to=0, after=0, wrong=None, folders=None):
        arguments = [
            [number * (one == to), after, int(one == wrong), "tune", config, f"output_dir={run_dir}{one or ''}"]
            for one in range(count)
        ]
        ended = run_together(PROGRAM, arguments, folders or [config.parent] * count, devices=4 // count)
        assert not any(Path(f"{run_dir}{one}").exists() for one in range(1, count))
        assert not any(one.out for one in ended[1:])
        return ended

    return run


@pytest.fixture(scope="module")
def here(config, few_shapes):
    """Tunes in this process, maybe until a tick has passed; returns the exit code."""

    def run(name, *overrides, until=None):
        asked, advance = AskedAfter(10**9), TrainLoop.advance

        def watched(self):
            advance(self)
            if self.tick == until:
                asked.looks = 0

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(TrainLoop, "advance", watched)
            patched.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
            patched.chdir(config.parent)
            given = load_config(TuneConfig, config, [*overrides, f"output_dir={config.parent / name}"])
            return Tuner(given, console=Console(quiet=True)).run(asked)

    return run


@pytest.fixture(scope="module")
def alone(config, here, script):
    """What one process makes that nobody disturbs: every kind of decision among it."""
    assert here("alone") == 0
    made = outcome(script, config.parent / "alone")
    kinds = {json.loads(line)[1] for line in made["decisions"]}
    assert {"start", "park", "resume", "rung", "end", "export", "best", "test", "finish"} <= kinds
    assert any('"stopped"' in line for line in made["decisions"]) and len(made["adapters"]) == 7
    return made


def outcome(script, run_dir):
    """Decisions, every loss and bits of adapters."""
    return script("kill_runs").outcome(run_dir)


@pytest.mark.slow
def test_four_devices_decide_as_one_does_and_lose_no_more_than_rounding(config, here, alone):
    assert here("single", "mesh=null") == 0
    losses, decisions = [], []
    for name, devices in (("alone", 4), ("single", 1)):
        with Journal.read(config.parent / name) as journal:
            losses.append({(one.trial, one.split, one.step): one.loss for one in journal.points()})
            ends = [event for event in journal.events() if event.kind in ("rung", "end", "best")]
            decisions.append([(one.kind, one.trial, one.payload.get("status")) for one in ends])
            assert journal.get("clock")["devices"] == devices
    assert decisions[0] == decisions[1] and losses[0].keys() == losses[1].keys()
    assert max(abs(losses[0][key] - losses[1][key]) for key in losses[0]) < 1e-5


def test_any_number_of_processes_make_what_one_makes_to_the_bit_whichever_is_interrupted_or_lost(
    config, processes, here, script, alone
):
    run_dir = config.parent / "run"
    ended = processes(4, run_dir, number=signal.SIGKILL, to=2, after=4)
    assert ended[2].code == -signal.SIGKILL
    for other in (ended[0], ended[1], ended[3]):
        assert other.code == 1, other.err
        assert other.err.startswith(LOST) and len(other.err.splitlines()) == 1
    assert "resuming" not in ended[0].out
    leader, follower = processes(2, run_dir, number=signal.SIGINT, to=1, after=9)
    assert (leader.code, follower.code) == (130, 130), leader.err + follower.err
    assert "resuming from tick " in leader.out
    assert "interrupted, with all saved; the same command resumes it" in leader.out
    assert follower.err == "stopping as soon as all is saved; once more stops at once\n"
    assert not leader.err
    assert here("run", until=13) == 130
    leader, follower = processes(2, run_dir)
    assert (leader.code, follower.code) == (0, 0), leader.err + follower.err
    assert "resuming from tick 13" in leader.out and "sums: best is" in leader.out
    assert not leader.err + follower.err
    assert outcome(script, run_dir) == alone


def test_a_process_with_other_data_ends_all_in_one_line(config, processes, tmp_path):
    write_data(tmp_path, first=1)
    both = processes(2, config.parent / "apart", folders=[config.parent, tmp_path])
    assert [ended.code for ended in both] == [2, 2]
    for ended, begins in zip(both, ("altojax: error: process 1: config, ", "altojax: error: config, "), strict=True):
        assert (
            ended.err.startswith(f"{begins}models and data: rows of task 'sums' (")
            and " where process 0 has " in ended.err
        )
        assert len(ended.err.splitlines()) == 1
    assert not (config.parent / "apart").exists()


def test_a_process_that_decides_otherwise_ends_all_in_one_line(config, processes):
    both = processes(2, config.parent / "torn", wrong=1)
    assert [ended.code for ended in both] == [2, 2]
    for ended in both:
        assert "decisions at tick " in ended.err and "done (not finite)" in ended.err
        assert len(ended.err.splitlines()) == 1
