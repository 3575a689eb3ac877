"""The clock of benchmarks, on a simulated device."""

import pytest

from jaxrun.terminal import timing


@pytest.mark.parametrize(("host", "device", "each"), [(1.0, 10.0, 10.0), (3.0, 2.0, 3.0)])
def test_only_the_slower_of_host_and_device_counts(monkeypatch, host, device, each):
    now = busy_until = 0.0

    def call():
        nonlocal now, busy_until
        now += host
        busy_until = max(busy_until, now) + device
        return busy_until

    def wait(done):
        nonlocal now
        now = max(now, done)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    assert timing.seconds_in_flight(call, wait) == pytest.approx(each, rel=0.3)
    if device > host:
        assert timing.seconds_in_flight(call, wait) == device
