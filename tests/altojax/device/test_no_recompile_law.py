"""The no-recompile law: adding, ending, parking or exchanging a trial is data, not shape. Traces are counted."""

import numpy as np
import pytest
from tiny import ROWS, make_executor, make_runner, shared_executor, tick

from altojax.device import executor as executor_module
from altojax.device.batch_shapes import Shape

pytestmark = pytest.mark.slow


def test_trials_come_end_park_and_are_exchanged_without_a_single_compile(compile_log, caplog):
    executor = shared_executor(slots=8, rank=8)
    first = [make_runner(seed, rank, 2) for seed, rank in ((1, 4), (2, 8), (3, 2))]
    for slot, runner in enumerate(first):
        runner.enter(executor, slot)
    for _ in range(2):
        tick(executor, first)
    executor.evaluate([(slot, ROWS[:8]) for slot in range(3)], 8)
    first[0].leave(executor)
    first[0].enter(executor, 0)
    first[0].leave(executor)
    steps = len(executor.programs.stats().done)
    caplog.clear()
    others = [
        make_runner(4, 1, 2, learning_rate=1e-4, dropout=0.3),
        make_runner(5, 8, 2, schedule=0, keys=("self_attn.v_proj",)),
    ]
    for runner in others:
        for slot in (0, 2):
            if first[2].slot == 2:
                first[2].leave(executor)
            runner.enter(executor, slot)
            for _ in range(2):
                tick(executor, [first[1], runner, *([first[2]] if first[2].slot >= 0 else [])])
            runner.leave(executor)
        first[2].enter(executor, 2)
        tick(executor, [first[1], first[2]])
        executor.evaluate([(1, ROWS[:8]), (2, ROWS[:8])], 8)
    assert len(executor.programs.stats().done) == steps and compile_log() == []


def test_the_same_line_up_of_other_trials_compiles_nothing(compile_log, caplog):
    """However many shapes its batches have."""
    executor = make_executor(slots=2, rank=8)

    def line_up(seed: int, rank: int, rate: float) -> None:
        pair = [make_runner(seed, rank, 1, learning_rate=rate), make_runner(seed + 1, rank, 1, dropout=rate)]
        for slot, runner in enumerate(pair):
            runner.enter(executor, slot)
        for turn in range(3):
            tick(executor, pair[turn % 2 :])
        executor.evaluate([(0, ROWS[:2]), (1, ROWS[:2])], 8)
        for runner in pair:
            runner.leave(executor)

    line_up(1, 8, 0.01)
    compiled = len(executor.programs.stats().done)
    assert compiled > 2
    caplog.clear()
    line_up(11, 3, 0.2)
    line_up(21, 1, 0.001)
    assert len(executor.programs.stats().done) == compiled
    assert compile_log() == []


def trained_with(executor) -> int:
    """How many shapes training steps had."""
    return len(executor.programs.shapes()["shapes"]["train"])


def test_every_shape_is_compiled_once_and_where_compiling_is_dear_they_are_fewer_and_losses_stay(monkeypatch):
    def race(tokens: int):
        monkeypatch.setattr(executor_module, "compile_tokens", lambda *_, **__: tokens)
        executor = make_executor(slots=2, rank=8)
        first, second = runners = [make_runner(1, 4, 2, dropout=0.1), make_runner(2, 8, 1)]
        for slot, runner in enumerate(runners):
            runner.enter(executor, slot)
        turns = [*[runners] * 3, *[[first]] * 3, *[[second]] * 2, runners, [first], [second]]
        losses = [tick(executor, turn) for turn in turns]
        shapes = [(done.step, done.shape) for done in executor.programs.stats().done]
        assert len(shapes) == len(set(shapes))
        return executor, losses

    plain, expected = race(0)
    dear, losses = race(3000)
    assert trained_with(dear) < trained_with(plain)
    for mine, theirs in zip(losses, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-6)


def test_a_step_that_was_compiled_ahead_is_waited_for_and_not_compiled_again():
    executor = make_executor(slots=2, rank=8)
    shape = Shape(1, 32, 32)
    executor.programs.begin("train", shape)
    executor.programs.begin("eval", shape)
    step = executor.programs.get("train", shape)
    assert executor.programs.get("train", shape) is step
    executor.programs.get("eval", shape)
    assert sorted(done.step for done in executor.programs.stats().done) == ["eval", "train"]
    assert executor.programs.stats().waited_s > 0
