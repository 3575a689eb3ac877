"""The clock of benchmarks: what a call takes of a device that never waits for its next one."""

import time
from collections.abc import Callable
from typing import Any

CALLS = 4


def seconds_in_flight(call: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
    """Returns the mean seconds of a call over a few, from the end of one on, another always in flight.

    What the host takes to launch counts only where it takes longer than the device.

    Args:
        call: Launches one and returns what `wait` takes.
        wait: Returns when that call is done.
    """
    first, last = call(), call()
    wait(first)
    begin = time.perf_counter()
    for _ in range(CALLS - 1):
        last = call()
    wait(last)
    return (time.perf_counter() - begin) / CALLS
