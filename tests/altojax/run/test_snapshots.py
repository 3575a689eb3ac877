"""Snapshots leave parked trials on the device, and a checkpoint has them all."""

from functools import partial

import numpy as np
import pytest
from tiny import difference, make_runner, shared_executor

from altojax.run.snapshots import OnDevice, Snapshots

NAMES = ("t/0", "t/1")


@pytest.fixture(scope="module")
def parked():
    """Two trials, parked on the device, and what they are on the host."""
    executor, found = shared_executor(5, 8), []
    executor.make_places(2)
    for place in range(2):
        runner = make_runner(place, 4, 2)
        runner.enter(executor, 3)
        executor.park(3, place)
        executor.clear(3)
        read = partial(executor.parking.take, place, runner.rank, runner.keys)
        found.append((OnDevice(read), runner.snapshot))
    return found


def on_device(snapshots: Snapshots) -> list[bool]:
    return [isinstance(snapshots.get("state", name), OnDevice) for name in NAMES]


def test_a_checkpoint_has_what_is_on_the_device_and_so_has_the_host_once_it_is_brought_home(tmp_path, parked):
    snapshots = Snapshots(tmp_path)
    for name, (place, _) in zip(NAMES, parked, strict=True):
        snapshots.put("state", name, place)
    named = snapshots.save(1, {})
    assert on_device(snapshots) == [True, True]
    assert snapshots.save(2, {}) == named, "written once"
    restored = Snapshots(tmp_path)
    restored.restore(named, {"state": {name: host for name, (_, host) in zip(NAMES, parked, strict=True)}}, {})
    snapshots.bring_home()
    assert on_device(snapshots) == [False, False]
    for name, (_, host) in zip(NAMES, parked, strict=True):
        for one in (restored, snapshots):
            assert difference(one.get("state", name), host) == 0
            assert np.asarray(one.get("state", name)["steps"]) == 0
