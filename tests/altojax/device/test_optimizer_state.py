"""Moments in fewer bits go into slots and out of them to the bit, and are a trial's own."""

import jax
import numpy as np
import pytest
from tiny import difference, make_executor, make_runner, of_few_shapes, tick

SLOTS = 2


def trained(executor, way: str):
    """Losses and state of a trial after four steps, of which it is parked after two, or has a neighbour of NaN."""
    mine, neighbour = make_runner(1, 4, 2, dropout=0.1), make_runner(2, 8, 2)
    if way == "poison":
        neighbour.snapshot["adapters"] = jax.tree.map(lambda a: np.full_like(a, np.nan), neighbour.snapshot["adapters"])
    mine.enter(executor, 0)
    neighbour.enter(executor, 1)
    losses = [tick(executor, [mine, neighbour])[0] for _ in range(2)]
    if way in ("host", "device"):
        taken = executor.take(0, mine.rank, mine.keys)
        executor.park(0, 0)
        for slot in range(SLOTS):
            executor.clear(slot)
        if way == "device":
            executor.resume(0, 0, mine.rank, mine.hyper)
        else:
            executor.put(0, taken, mine.hyper)
        neighbour.enter(executor, 1)
    losses += [tick(executor, [mine, neighbour])[0] for _ in range(2)]
    found = executor.take(mine.slot, mine.rank, mine.keys)
    for slot in range(SLOTS):
        executor.clear(slot)
    return losses, found


def test_a_trial_parks_and_goes_on_to_the_bit_beside_any_neighbour_and_nothing_is_compiled():
    executor = of_few_shapes(make_executor(SLOTS, 8, optimizer_state="int8"))
    executor.make_places(1)
    losses, state = trained(executor, "alone")
    compiled = len(executor.programs.stats().done)
    assert np.asarray([one["b"].any() for one in state["nu"].values()]).all()
    for way in ("host", "device", "poison"):
        again, found = trained(executor, way)
        assert again == losses, way
        assert difference(found, state) == 0, way
    assert len(executor.programs.stats().done) == compiled


@pytest.mark.slow
def test_devices_that_share_an_adapter_keep_and_give_back_its_moments():
    mesh = {"adapter": 2, "tensor": 2, "data": 2}
    executor = of_few_shapes(make_executor(2 * SLOTS, 8, mesh=mesh, optimizer_state="int8"))
    runner = make_runner(1, 4, 2)
    runner.enter(executor, 0)
    for _ in range(3):
        tick(executor, [runner])
    first = executor.take(0, 4, runner.keys)
    assert all(pair["a"].any() and pair["b"].any() for pair in first["nu"].values())
    executor.put(3, first, runner.hyper)
    assert difference(executor.take(3, 4, runner.keys), first) == 0
