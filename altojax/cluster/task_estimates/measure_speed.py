"""A short run of a task that leaves nothing but how fast it is: for who wants to know before the task itself runs.

    python -m altojax.cluster.task_estimates.measure_speed FOLDER ATTEMPT

An engine starts it in place of the worker (its `command`), on as many GPUs as it is to measure. It trains the first
base of ``FOLDER/task.yaml`` for some steps in a temporary folder and writes ``FOLDER/profile.json``.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from altojax.cluster.engines import worker
from jaxrun.files.atomic import write_atomic
from jaxrun.files.temporary import scratch_folder
from jaxrun.process.background import leave

if TYPE_CHECKING:
    from altojax.cluster.task_estimates.speed_profile import Profile
    from altojax.config.tune_config import TuneConfig
    from jaxlm.devices.hosts import Hosts

_TICKS = 100
"""Steps: three fetches of losses (`altojax.run.loop.train_loop.FLUSH_TICKS`), of which the first is not counted."""


class _Ticks:
    """Asks a run to stop once it has been looked at so often, which is once a step."""

    def __init__(self, ticks: int) -> None:
        self._left = ticks

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0


def measure(config: "TuneConfig", ticks: int = _TICKS) -> "Profile | None":
    """Trains the first base of a config for some steps; returns what that took.

    Args:
        config: The task; its folder is not touched.
        ticks: Steps, with the first ones, which are not counted.

    Returns:
        The measurement, or None where the schedules are too short for one.

    Raises:
        UserError: Anything wrong with the task.
    """
    from altojax.cluster.task_estimates.speed_profile import read_profile, workloads_of
    from altojax.run.tuner import Tuner

    with scratch_folder("altojax-profile") as folder:
        tuner = Tuner(
            config.model_copy(update={"output_dir": str(folder), "report_to": (), "checkpoint_samples": 0.99})
        )
        tuner.run(_Ticks(ticks))
        return read_profile(folder, workloads_of(config, tuner.prepared))


def measure_task(folder: Path, hosts: "Hosts") -> int:
    """Measures the task of a folder, on one host; returns exit code 0."""
    worker.check_devices(os.environ)
    profile = measure(worker.read_task(folder))
    write_atomic(folder / "profile.json", "null" if profile is None else profile.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(leave(worker.main(run=measure_task)))
