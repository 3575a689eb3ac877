"""Snapshots stay on the device while there is room, and a checkpoint has them all."""

import numpy as np
import pytest
from tiny import difference, make_runner, shared_executor

from altojax.device.slots import OnDevice
from altojax.run.snapshots import Snapshots


@pytest.fixture(scope="module")
def parked():
    """Two trials, parked on the device, and what they are on the host."""
    executor, found = shared_executor(5, 8), []
    for slot in range(2):
        runner = make_runner(slot, 4, 2)
        runner.enter(executor, slot)
        found.append((executor.lift(slot, runner.rank, runner.keys), runner.snapshot))
    return found


def on_device(snapshots: Snapshots, names) -> list[bool]:
    return [isinstance(snapshots.get("state", name), OnDevice) for name in names]


def test_what_has_no_room_on_the_device_goes_to_the_host(tmp_path, parked):
    snapshots = Snapshots(tmp_path)
    snapshots.room_bytes = parked[0][0].bytes + parked[1][0].bytes // 2
    for number, (lifted, _) in enumerate(parked):
        snapshots.put("state", f"t/{number}", lifted)
    assert on_device(snapshots, ("t/0", "t/1")) == [True, False]
    assert difference(snapshots.get("state", "t/1"), parked[1][1]) == 0
    snapshots.put("state", "t/0", parked[1][0])
    assert on_device(snapshots, ("t/0",)) == [True], "it takes the place of the one before it"
    snapshots.bring_home()
    assert difference(snapshots.get("state", "t/0"), parked[1][1]) == 0


def test_a_checkpoint_has_what_is_on_the_device(tmp_path, parked):
    snapshots = Snapshots(tmp_path)
    snapshots.room_bytes = 2**30
    for number, (lifted, _) in enumerate(parked):
        snapshots.put("state", f"t/{number}", lifted)
    named = snapshots.save(1, {})
    assert on_device(snapshots, ("t/0", "t/1")) == [True, True]
    assert snapshots.save(2, {}) == named, "written once"
    restored = Snapshots(tmp_path)
    restored.restore(named, {"state": {f"t/{number}": host for number, (_, host) in enumerate(parked)}}, {})
    for number, (_, host) in enumerate(parked):
        assert difference(restored.get("state", f"t/{number}"), host) == 0
        assert np.asarray(restored.get("state", f"t/{number}")["steps"]) == 0
