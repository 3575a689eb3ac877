"""A run ends, or stops when it is asked to, whatever is being compiled or evaluated; and resumes to the same end."""

import gc
import json
import threading
from functools import partial

import jax
import pytest
from rich.console import Console
from tiny import make_executor

from altojax.config.tune_config import TuneConfig
from altojax.device import programs as programs_module
from altojax.device.batch_shapes import Shape
from altojax.device.executor import Executor
from altojax.report.run_record import read_record
from altojax.run.loop.train_loop import TrainLoop
from altojax.run.tuner import Tuner
from jaxrun.config.config import load_config
from jaxrun.process.interrupt import Interrupt, Stopped
from jaxrun.store.journal import Journal

NEVER_USED = Shape(77, 32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small config and its data."""
    made = tmp_path_factory.mktemp("stopping")
    rows = [{"prompt": "x" * (1 + a), "completion": str(a)} for a in range(12)]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "run.yaml").write_text(f"""
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
search: {{target_modules: [q_proj], lora_rank: [2], learning_rate: [1.0e-2, 1.0e-3], batch_size: 2, train_samples: 12}}
slots: 2
eval_samples: 0.5
early_exit: {{preset: none}}
tasks:
  - {{name: rows, data: {{train: {made}/rows.jsonl, validation_samples: 4, max_length: 32, chat_template: false}}}}
""")
    return made


def run(folder, name: str, interrupt: Interrupt) -> int:
    """Runs the config into a folder of this name; returns the exit code."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("altojax.report.write_report.write_report", lambda run_dir: [])
        config = load_config(TuneConfig, folder / "run.yaml", [f"output_dir={folder}/{name}"])
        return Tuner(config, console=Console(quiet=True)).run(interrupt)


def results(folder, name: str) -> tuple[int, list]:
    """The last tick, and of every trial its best loss and its steps."""
    with Journal.read(folder / name) as journal:
        trials = [(one.trial, one.best_loss, one.steps) for one in read_record(journal).trials]
        return journal.last_checkpoint().tick, trials


@pytest.fixture(scope="module")
def whole(folder):
    """What comes out of a run that nobody stops."""
    assert run(folder, "whole", Interrupt()) == 0
    return results(folder, "whole")


@pytest.fixture
def slow(monkeypatch):
    """Makes some compilations wait: `slow(wanted)` returns (it has begun, it may end)."""
    begun, gate = threading.Event(), threading.Event()
    compile_now = programs_module._compile

    def wait(wanted, jitted, operands, step, shape, done):
        if wanted(step, shape):
            begun.set()
            gate.wait()
            raise RuntimeError("nobody asks for this any more")
        return compile_now(jitted, operands, step, shape, done)

    def start(wanted):
        monkeypatch.setattr(programs_module, "_compile", partial(wait, wanted))
        return begun, gate

    yield start
    gate.set()


def test_a_run_ends_while_a_step_is_being_compiled_and_what_waits_is_cancelled(folder, slow, monkeypatch):
    begun, gate = slow(lambda step, shape: shape == NEVER_USED)
    executors, advance = [], TrainLoop.advance

    def looks_ahead(self: TrainLoop) -> None:
        if not executors:
            executors.append(self.executor)
            for step in ("train", "eval"):  # both threads
                self.executor.programs.begin(step, NEVER_USED)
            self.executor.programs.begin("train", Shape(78, 32, 32))
        advance(self)

    monkeypatch.setattr(TrainLoop, "advance", looks_ahead)
    assert run(folder, "ended", Interrupt()) == 0
    assert begun.is_set() and not gate.is_set()
    with pytest.raises(RuntimeError, match="closed"):
        executors[0].programs.begin("train", Shape(79, 32, 32))
    gate.set()
    assert all(done.shape.rows < 77 for done in executors[0].programs.stats().done)


def test_ctrl_c_while_the_next_step_is_being_compiled_saves_and_stops_and_the_run_goes_on(
    folder, whole, slow, monkeypatch
):
    interrupt, compile_now = Interrupt(), programs_module._compile
    begun, gate = slow(lambda step, shape: step == "eval")
    threading.Thread(target=lambda: (begun.wait(), interrupt.request()), daemon=True).start()
    assert run(folder, "stopped", interrupt) == 130
    assert not gate.is_set()
    assert results(folder, "stopped")[0] == 0
    monkeypatch.setattr(programs_module, "_compile", compile_now)
    assert run(folder, "stopped", Interrupt()) == 0
    assert results(folder, "stopped") == whole


@pytest.fixture
def dying(monkeypatch):
    """Has the first compilation of a step end as that of a GPU's does when Ctrl-C reaches the compiler, too."""
    compile_now, died = programs_module._compile, []

    def start(which: str, interrupt: Interrupt, asks: bool = True) -> None:
        def dies(jitted, operands, step, shape, done):
            if step == which and not died:
                died.append(shape)
                interrupt.requested = asks
                raise jax.errors.JaxRuntimeError("INTERNAL: ptxas exited with non-zero error code 15")
            return compile_now(jitted, operands, step, shape, done)

        monkeypatch.setattr(programs_module, "_compile", dies)

    return start


def test_ctrl_c_that_ends_the_compiler_too_saves_and_stops_and_the_run_goes_on(folder, whole, dying):
    interrupt = Interrupt()
    dying("eval", interrupt)
    assert run(folder, "died", interrupt) == 130
    assert run(folder, "died", Interrupt()) == 0
    assert results(folder, "died") == whole


def test_a_step_that_is_waited_for_all_the_same_is_compiled_again(dying):
    interrupt = Interrupt()
    dying("train", interrupt)
    with make_executor(2, 4) as executor:
        executor.programs.get("train", Shape(4, 32, 64), interrupt, gives_up=False)
        assert len(executor.programs.stats().done) == 1


def test_a_compiler_that_dies_of_something_else_is_an_error_and_may_be_asked_again(dying):
    interrupt = Interrupt()
    dying("train", interrupt, asks=False)
    with make_executor(2, 4) as executor:
        with pytest.raises(jax.errors.JaxRuntimeError, match="ptxas"):
            executor.programs.get("train", Shape(4, 32, 64), interrupt)
        executor.programs.get("train", Shape(4, 32, 64), interrupt)


def test_a_training_step_is_not_waited_for_either(slow):
    interrupt, executor = Interrupt(), make_executor(2, 4)
    slow(lambda step, shape: True)
    interrupt.request()
    with pytest.raises(Stopped):
        executor.programs.get("train", NEVER_USED, interrupt)


def test_ctrl_c_in_an_evaluation_stops_between_its_batches_and_it_comes_first_when_the_run_goes_on(
    folder, whole, monkeypatch
):
    interrupt, measure = Interrupt(), Executor.measure

    def asks(self, due, rows_at_once, **named):
        if len(due) > 1:
            interrupt.request()
        return measure(self, due, rows_at_once, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Executor, "measure", asks)
        assert run(folder, "stopped-evaluating", interrupt) == 130
    tick, trials = results(folder, "stopped-evaluating")
    assert tick == whole[0] / 2 and not any(steps for *_, steps in trials), "trained, and nothing evaluated"
    assert run(folder, "stopped-evaluating", Interrupt()) == 0
    assert results(folder, "stopped-evaluating") == whole


def test_an_executor_that_nobody_holds_compiles_no_more():
    with make_executor(2, 4) as executor:
        programs = executor.programs
    with pytest.raises(RuntimeError, match="closed"):
        programs.begin("train", NEVER_USED)
    dropped = make_executor(2, 4).programs._pool
    gc.collect()
    assert dropped.closed
