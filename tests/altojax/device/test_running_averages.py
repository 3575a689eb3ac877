"""Running averages are those of the formula, whenever a slot steps, and cost no program."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import ROWS, difference, make_runner, shared_executor, tick

from altojax.device.optimizer import running_averages


@given(
    windows=st.lists(st.floats(0, 64, width=32), min_size=1, max_size=3, unique=True),
    turns=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_they_follow_the_formula_in_float64_and_rest_where_a_slot_does_not_step(windows, turns, seed):
    random = np.random.default_rng(seed)
    found = tuple(jnp.zeros((1, 2, 3, 2)) for _ in windows)
    wanted = [np.zeros((1, 2, 3, 2)) for _ in windows]
    steps = np.zeros(2, np.int32)
    for turn in turns:
        stepped = np.array(turn)
        steps += stepped
        weights = random.normal(size=(1, 2, 3, 2)).astype(np.float32)
        before, found = found, running_averages(found, windows, jnp.asarray(weights), jnp.asarray(steps), stepped)
        for window, old, new, mean in zip(windows, before, found, wanted, strict=True):
            for slot in range(2):
                if turn[slot]:
                    share = (window + 1) / (steps[slot] + window)
                    mean[:, slot] += share * (weights[:, slot] - mean[:, slot])
                else:
                    np.testing.assert_array_equal(new[:, slot], old[:, slot])
            np.testing.assert_allclose(new, mean, rtol=0, atol=2e-6)


def test_a_window_of_zero_is_the_plain_mean():
    weights = np.random.default_rng(0).normal(size=(7, 1, 1, 2, 2)).astype(np.float32)
    mean = (jnp.zeros((1, 1, 2, 2)),)
    for step, one in enumerate(weights, 1):
        mean = running_averages(mean, (0.0,), one, jnp.array([step]), jnp.array([True]))
    np.testing.assert_allclose(mean[0], weights.mean(0), atol=1e-6)


@pytest.mark.slow
def test_an_average_is_measured_and_kept_like_the_adapter_that_it_is():
    runner = make_runner(0, 4, 2)
    executor = shared_executor(slots=5, rank=8)
    runner.enter(executor, 3)
    for _ in range(6):
        tick(executor, [runner])
    raw = executor.evaluate([(3, ROWS)], 8)[3]
    compiled = len(executor.programs.stats().done)
    mean = executor.evaluate([(3, ROWS)], 8, average=0)[3]
    assert len(executor.programs.stats().done) == compiled
    assert mean != raw
    executor.keep([3], 0)
    kept = executor.kept(3, runner.rank, runner.keys)
    runner.leave(executor)
    assert difference(kept, runner.snapshot["averages"][0]) == 0
    assert difference(kept, runner.snapshot["adapters"]) > 0
    runner.snapshot = {**runner.snapshot, "adapters": kept}
    runner.enter(executor, 1)
    assert executor.evaluate([(1, ROWS)], 8)[1] == pytest.approx(mean, abs=2e-6)
