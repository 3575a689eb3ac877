"""A step computes nothing of slots that have no targets in its batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tiny import difference, make_runner, shared_executor, tick

from altojax.device.batch import Batch
from altojax.device.step import SLOTS_OF, slots_with_targets

SLOTS = 8


def batch_of(target_slots: list[int], weights: list[float], rows: int) -> Batch:
    ints, flags = jnp.zeros(rows, jnp.int32), jnp.zeros(SLOTS, bool)
    targets = jnp.zeros(len(weights), jnp.int32)
    weight = jnp.array(weights, jnp.float32)
    empty = {**dict.fromkeys(Batch._fields), **dict.fromkeys(SLOTS_OF, ints)}
    fields = {"target_slots": jnp.array(target_slots, jnp.int32), "target_weight": weight, "target_at": targets}
    return Batch(**{**empty, "begin": flags, "apply": flags, **fields})


def test_slots_with_targets_have_places_and_others_none_or_what_is_left():
    places = slots_with_targets(batch_of([6, 1, 1, 0], [0.5, 0.5, 0.1, 0], rows=3))
    assert sorted(places.slots[:2].tolist()) == [1, 6] and places.slots.shape == (3,)
    np.testing.assert_array_equal(places.of[places.slots], np.arange(3))
    assert sorted(places.of.tolist()) == list(range(SLOTS))
    spread = places.of_all_slots(jnp.array([10.0, 20.0, 0.0]))
    assert {spread[1].item(), spread[6].item()} == {10.0, 20.0} and spread.sum() == 30.0
    assert slots_with_targets(batch_of([0] * SLOTS, [1.0] * SLOTS, rows=SLOTS)) is None


def test_a_trial_beside_many_empty_slots_is_what_it_is_alone_whatever_they_hold():
    found = []
    for slots, beside in ((1, None), (SLOTS, None), (SLOTS, 0.5), (SLOTS, np.nan)):
        executor, runner = shared_executor(slots, 4), make_runner(3, 4, 1)
        if beside is not None:
            for slot in (0, 3, SLOTS - 1):
                other = make_runner(slot, 4, 1)
                full_of = partial(jax.tree.map, partial(np.add, np.float32(beside)))
                other.snapshot |= {name: full_of(other.snapshot[name]) for name in ("adapters", "mu", "averages")}
                executor.put(slot, other.snapshot, other.hyper)
        runner.enter(executor, slots - 2 if slots > 1 else 0)
        losses = [tick(executor, [runner]) for _ in range(4)]
        runner.leave(executor)
        found.append((losses, runner.snapshot))
    alone, empty, full, poisoned = found
    np.testing.assert_allclose(empty[0], alone[0], rtol=0, atol=5e-7)
    assert difference(empty[1], alone[1]) <= 2e-6
    for other in (full, poisoned):
        assert other[0] == empty[0] and difference(other[1], empty[1]) == 0
