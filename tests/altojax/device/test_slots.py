"""Trials go into slots and out of them to the bit: new ones, those from the host, and those parked on the device."""

import jax
import numpy as np
import pytest
from tiny import HYPER, PROJECTIONS, difference, make_runner, shared_executor, tick

from altojax.device.slots import empty_snapshot, fresh

KEYS = tuple(PROJECTIONS)


@pytest.mark.parametrize("mesh", [None, pytest.param({"adapter": 2, "tensor": 2, "data": 2}, marks=pytest.mark.slow)])
def test_a_new_trial_finds_nothing_of_what_was_in_its_slot(mesh):
    executor, neighbour = shared_executor(8, 8, mesh), make_runner(5, 8, 2)
    neighbour.enter(executor, 1)
    noise = empty_snapshot(PROJECTIONS, 8, accumulates=True, averages=1)
    noise = jax.tree.map(lambda array: array + np.full_like(array, 3), noise)
    executor.put(6, noise, HYPER)
    begun = fresh(PROJECTIONS, dict.fromkeys(KEYS, (0, 1)), 4, seed=7)
    executor.put(6, begun, HYPER)
    wanted = empty_snapshot(PROJECTIONS, 4, accumulates=True, averages=1)
    for key, pair in begun["adapters"].items():
        wanted["adapters"][key] |= pair
    assert difference(executor.take(6, 4, KEYS), wanted) == 0
    whole = executor.take(6, 8, KEYS)
    assert not any(pair["a"][:, :, 4:].any() or pair["b"].any() for pair in whole["adapters"].values())
    assert difference(executor.take(1, 8, KEYS), neighbour.snapshot) == 0


def test_a_trial_that_was_parked_on_the_device_goes_on_to_the_bit():
    executor = shared_executor(5, 8)
    executor.make_places(3)
    ways = {}
    for way in ("stays", "host", "device"):
        runner, other = make_runner(1, 4, 2, accumulation=2), make_runner(2, 8, 1)
        runner.enter(executor, 3)
        losses = [tick(executor, [runner]) for _ in range(3)]
        if way != "stays":
            taken = executor.take(3, runner.rank, runner.keys)
            executor.keep([3])
            executor.park(3, 2)
            executor.clear(3)
            other.enter(executor, 3)
            tick(executor, [other])
            executor.keep([3])
            if way == "device":
                assert difference(executor.parking.take(2, runner.rank, runner.keys), taken) == 0
                assert difference(executor.parking.kept(2, runner.rank, runner.keys), taken["adapters"]) == 0
                executor.resume(2, 1, runner.rank, runner.hyper)
                assert difference(executor.kept(1, runner.rank, runner.keys), taken["adapters"]) == 0
            else:
                executor.put(1, taken, runner.hyper)
            runner.slot = 1
        losses += [tick(executor, [runner]) for _ in range(3)]
        ways[way] = losses, executor.take(runner.slot, runner.rank, runner.keys)
        for slot in range(5):
            executor.clear(slot)
    for way in ("host", "device"):
        assert ways[way][0] == ways["stays"][0]
        assert difference(ways[way][1], ways["stays"][1]) == 0


def test_what_a_trial_does_not_gather_is_not_taken_with_it():
    executor, runner = shared_executor(5, 8), make_runner(1, 4, 2)
    runner.enter(executor, 0)
    assert "gathered" in executor.take(0, 4, runner.keys)
    taken = executor.take(0, 4, runner.keys, gathers=False)
    assert "gathered" not in taken
    executor.put(2, taken, runner.hyper)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(executor.take(2, 4, runner.keys)["gathered"]))
