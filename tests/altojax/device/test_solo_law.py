"""The solo law: a trial gets what it would have got alone, whatever its slot, its neighbours, parking or resuming.

The bound is float32 rounding: other neighbours mean other matrix shapes and so another order of sums, and AdamW's
division by a small root lets a last-bit difference of a gradient grow. Losses agree within 2e-6 (of about 4) and
adapters within 2e-5 (of about 0.1) after 8 ticks; what needs no sum over neighbours is compared bit for bit.
"""

import jax
import numpy as np
import pytest
from tiny import PROJECTIONS, ROWS, difference, heterogeneous, make_runner, shared_executor, tick

pytestmark = pytest.mark.slow

LOSS_BOUND, ADAPTER_BOUND = 2e-6, 2e-5
TICKS = 8
ALONE = ((1, 4), (2, 8), (1, 4), (1, 4))
"""Slots and rank of the executor that each trial has to itself."""


@pytest.fixture(scope="module")
def alone():
    """Losses and final snapshot of each trial trained by itself."""
    found = []
    for runner, (slots, rank) in zip(heterogeneous(), ALONE, strict=True):
        executor = shared_executor(slots, rank)
        runner.enter(executor, slots - 1)
        losses = [tick(executor, [runner])[0] for _ in range(TICKS)]
        loss = executor.evaluate([(runner.slot, ROWS)], 8)[runner.slot]
        runner.leave(executor)
        found.append((losses, loss, runner.snapshot))
    return found


def agree(alone, runners, losses, evaluations) -> None:
    for (solo_losses, solo_loss, solo), runner, mine, loss in zip(alone, runners, losses, evaluations, strict=True):
        assert np.abs(np.array(mine) - np.array(solo_losses)).max() <= LOSS_BOUND
        assert abs(loss - solo_loss) <= LOSS_BOUND
        assert difference(runner.snapshot["adapters"], solo["adapters"]) <= ADAPTER_BOUND
        assert difference(runner.snapshot["averages"][0], solo["averages"][0]) <= ADAPTER_BOUND
        assert int(runner.snapshot["steps"]) == int(solo["steps"])


def test_four_unlike_trials_together_get_what_each_gets_alone(alone):
    runners = heterogeneous()
    executor = shared_executor(slots=8, rank=8)
    for slot, runner in zip((4, 0, 2, 1), runners, strict=True):
        runner.enter(executor, slot)
    losses = np.array([tick(executor, runners) for _ in range(TICKS)]).T
    found = executor.evaluate([(one.slot, ROWS) for one in runners], 8)
    evaluations = [found[one.slot] for one in runners]
    for runner in runners:
        runner.leave(executor)
    agree(alone, runners, losses, evaluations)


def test_trials_that_step_apart_get_what_they_get_together(alone):
    runners = heterogeneous()
    executor = shared_executor(slots=8, rank=8)
    for slot, runner in zip((4, 0, 2, 1), runners, strict=True):
        runner.enter(executor, slot)
    losses: list[list[float]] = [[] for _ in runners]
    for turn in range(TICKS):
        for chosen in ((0, 1, 2), (3,)) if turn % 2 else ((1,), (0, 2, 3)):
            for i, loss in zip(chosen, tick(executor, [runners[i] for i in chosen]), strict=True):
                losses[i].append(loss)
    found = executor.evaluate([(one.slot, ROWS) for one in runners], 8)
    evaluations = [found[one.slot] for one in runners]
    for runner in runners:
        runner.leave(executor)
    agree(alone, runners, losses, evaluations)


def test_parking_and_resuming_elsewhere_changes_nothing(alone):
    runners = heterogeneous()
    executor = shared_executor(slots=8, rank=8)
    losses: list[list[float]] = [[] for _ in runners]
    turn = 0
    while any(len(mine) < TICKS for mine in losses):
        waiting = [i for i, mine in enumerate(losses) if len(mine) < TICKS]
        chosen = [waiting[(turn + k) % len(waiting)] for k in range(min(2, len(waiting)))]
        for place, i in enumerate(chosen):
            runners[i].enter(executor, (turn + place) % 3)
        active = [runners[i] for i in chosen]
        for _ in range(2):
            for i, loss in zip(chosen, tick(executor, active), strict=True):
                losses[i].append(loss)
        for runner in active:
            runner.leave(executor)
        turn += 1
    evaluations = []
    for runner in runners:
        runner.enter(executor, 0)
        evaluations.append(executor.evaluate([(0, ROWS)], 8)[0])
        runner.leave(executor)
    agree(alone, runners, [mine[:TICKS] for mine in losses], evaluations)


def test_a_parked_trial_resumes_bit_for_bit():
    runner = heterogeneous()[0]
    executor = shared_executor(slots=2, rank=8)
    runner.enter(executor, 0)
    for _ in range(3):
        tick(executor, [runner])
    runner.leave(executor)
    before = runner.snapshot
    runner.enter(executor, 1)
    runner.leave(executor)
    assert difference(before, runner.snapshot) == 0.0


def test_a_neighbours_poison_stays_its_own():
    """A neighbour with non-finite weights changes no bit of my losses or my adapter."""

    def run(poisoned: bool):
        mine, neighbour = make_runner(1, 4, 2, dropout=0.1), make_runner(2, 4, 2)
        if poisoned:
            neighbour.snapshot["adapters"] = jax.tree.map(
                lambda a: np.full_like(a, np.nan), neighbour.snapshot["adapters"]
            )
        executor = shared_executor(slots=2, rank=8)
        mine.enter(executor, 0)
        neighbour.enter(executor, 1)
        losses = [tick(executor, [mine, neighbour])[0] for _ in range(4)]
        mine.leave(executor)
        return losses, mine.snapshot

    (clean, snapshot), (beside_poison, other) = run(False), run(True)
    assert clean == beside_poison
    assert difference(snapshot, other) == 0.0


def test_a_neighbours_weight_decay_does_not_touch_my_adapter():
    def run(decay: float):
        mine, neighbour = make_runner(1, 4, 2, weight_decay=0.0), make_runner(2, 4, 2, weight_decay=decay)
        executor = shared_executor(slots=2, rank=8)
        mine.enter(executor, 0)
        neighbour.enter(executor, 1)
        for _ in range(4):
            tick(executor, [mine, neighbour])
        mine.leave(executor)
        neighbour.leave(executor)
        return mine.snapshot, neighbour.snapshot

    (mine, neighbour), (mine_again, decayed) = run(0.0), run(0.5)
    assert difference(mine, mine_again) == 0.0
    assert difference(neighbour["adapters"], decayed["adapters"]) > 0.0


def test_a_trial_that_sits_still_keeps_every_bit():
    mine, neighbour = make_runner(1, 4, 1), make_runner(2, 4, 1, weight_decay=0.1)
    executor = shared_executor(slots=2, rank=8)
    mine.enter(executor, 0)
    neighbour.enter(executor, 1)
    tick(executor, [mine, neighbour])
    before = executor.take(0, 4, mine.keys)
    for _ in range(3):
        tick(executor, [neighbour])
    assert difference(before, executor.take(0, 4, mine.keys)) == 0.0


def test_a_fresh_adapter_is_the_identity():
    executor = shared_executor(slots=2, rank=8)
    base = executor.evaluate([(0, ROWS)], 8)[0]
    runner = heterogeneous()[1]
    runner.enter(executor, 0)
    assert executor.evaluate([(0, ROWS)], 8)[0] == base


def test_a_cleared_slot_keeps_nothing_of_its_trial():
    executor = shared_executor(slots=2, rank=8)
    runner = heterogeneous()[0]
    runner.enter(executor, 1)
    tick(executor, [runner])
    runner.leave(executor)
    for slot in range(2):
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(executor.take(slot, 8, tuple(PROJECTIONS))))


def test_accumulated_micro_batches_equal_one_large_batch():
    many, one = make_runner(1, 4, 1, accumulation=4), make_runner(1, 4, 4)
    results = []
    for runner, ticks in ((many, 8), (one, 2)):
        executor = shared_executor(slots=1, rank=4)
        runner.enter(executor, 0)
        for _ in range(ticks):
            tick(executor, [runner])
        runner.leave(executor)
        results.append(runner.snapshot)
    assert int(results[0]["steps"]) == int(results[1]["steps"]) == 2
    assert difference(results[0]["adapters"], results[1]["adapters"]) <= ADAPTER_BOUND


def test_projections_a_trial_does_not_adapt_stay_zero_beside_a_neighbour_that_does():
    few = make_runner(3, 2, 2, keys=("self_attn.q_proj",))
    executor = shared_executor(slots=2, rank=8)
    few.enter(executor, 0)
    neighbour = heterogeneous()[1]
    neighbour.enter(executor, 1)
    for _ in range(3):
        tick(executor, [few, neighbour])
    everything = executor.take(0, 8, tuple(neighbour.keys))["adapters"]
    for key, pair in everything.items():
        assert pair["b"].any() == (key == "self_attn.q_proj")
    assert not everything["self_attn.q_proj"]["a"][:, :, 2:].any()
