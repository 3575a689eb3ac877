"""Running averages are those of the formula, whenever a slot steps, and cost no program."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ROWS, difference, make_runner, shared_executor, tick

from altojax.device.optimizer import Gradients, adamw, empty_hyper

SLOTS, SHAPE = 2, (1, 2, 3, 2)


def averaged(windows, turns, seed):
    """Yields weights and averages of a half of two adapters after every step."""
    random, one, nothing = np.random.default_rng(seed), np.ones(SLOTS, np.float32), {"a": jnp.zeros(SHAPE)}
    fields = empty_hyper(SLOTS)._replace(learning_rate=one, beta1=0.5 * one, beta2=0.5 * one, epsilon=one)
    weights, mu, nu, means = nothing, nothing, nothing, tuple(nothing for _ in windows)
    steps = jnp.zeros(SLOTS, jnp.int32)
    for turn in turns:
        gradient = {"a": jnp.asarray(random.normal(size=SHAPE).astype(np.float32))}
        new = adamw(
            weights, Gradients(gradient), mu, nu, steps, fields, jnp.array(turn), averages=means, windows=windows
        )
        weights, mu, nu, steps, means = new.weights, new.mu, new.nu, new.steps, new.averages
        yield np.asarray(weights["a"]), [np.asarray(mean["a"]) for mean in means]


@given(
    windows=st.lists(st.floats(0, 64, width=32), min_size=1, max_size=3, unique=True),
    turns=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_they_follow_the_formula_in_float64_and_rest_where_a_slot_does_not_step(windows, turns, seed):
    before = [np.zeros(SHAPE, np.float32) for _ in windows]
    wanted = [np.zeros(SHAPE) for _ in windows]
    steps = np.zeros(SLOTS, np.int32)
    for turn, (weights, found) in zip(turns, averaged(windows, turns, seed), strict=True):
        steps += np.array(turn)
        for window, old, new, mean in zip(windows, before, found, wanted, strict=True):
            for slot in range(SLOTS):
                if turn[slot]:
                    share = (window + 1) / (steps[slot] + window)
                    mean[:, slot] += share * (weights[:, slot] - mean[:, slot])
                else:
                    np.testing.assert_array_equal(new[:, slot], old[:, slot])
            np.testing.assert_allclose(new, mean, rtol=0, atol=2e-6)
        before = found


def test_a_window_of_zero_is_the_plain_mean():
    weights, means = zip(*averaged((0.0,), [(True, True)] * 7, 0), strict=True)
    np.testing.assert_allclose(means[-1][0], np.mean(weights, axis=0), atol=1e-6)


@pytest.mark.slow
def test_an_average_is_measured_and_kept_like_the_adapter_that_it_is():
    runner = make_runner(0, 4, 1)
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
