"""The process in which one attempt of one task runs, whatever engine started it.

    python -m altojax.cluster.engines.worker FOLDER ATTEMPT

It tunes ``FOLDER/task.yaml``, from the last checkpoint on where there is one, writes its progress to stdout and what
became of it to ``FOLDER/attempt-N.json``. SIGTERM, Ctrl-C and SIGUSR1 make it save and stop; a second one stops it at
once. Exit codes: 0 ended, 1 an unexpected failure, 2 wrong input, 3 nothing to do, since a newer attempt has taken its
place or this one has ended before, 130 saved and stopped. Of a gang's processes the first one alone says how it ended.
"""

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from altojax.cluster.engines.attempts import End, newest_attempt, one_line, read_end, write_end
from altojax.cluster.engines.engine import Blame
from jaxrun.process.background import leave
from jaxrun.process.environment import set_environment
from jaxrun.process.errors import Failure, UserError
from jaxrun.process.interrupt import CAUGHT, Interrupt
from jaxrun.store.run_folder import JOURNAL_NAME, Occupied, take_lock

if TYPE_CHECKING:
    from altojax.config.tune_config import TuneConfig
    from jaxlm.devices.hosts import Hosts

REPLACED = 3
"""Exit code of a worker that a newer attempt has replaced, or that was started again after its end."""
_LOOK_S = 1.0
"""Seconds between two looks at the fence."""
_GIVE_WAY_S = 60.0
"""Seconds that an older attempt, which has a fence to notice, may take to let go of the run's folder."""
_BROKEN = re.compile(
    r"CUDA_ERROR_(ECC|NVLINK|NO_DEVICE|DEVICE_UNAVAILABLE|SYSTEM|HARDWARE|CONTAINED)|Unable to initialize backend|"
    r"uncorrectable|fallen off the bus",
    re.IGNORECASE,
)
"""Messages of libraries by which a node is at fault."""


class DevicesMissing(Exception):
    """This node does not have the GPUs that the attempt was given."""


def tune(folder: Path, hosts: "Hosts", interrupt: Interrupt | None = None, out: TextIO | None = None) -> int:
    """Tunes the task of a folder to its end, or until it is asked to stop.

    Args:
        folder: Holds ``task.yaml``.
        hosts: The processes of the attempt.
        interrupt: Asks it to stop; None is signals.
        out: Where its progress is written; None is stdout.

    Returns:
        Exit code 0, or 130 after a checkpoint.

    Raises:
        UserError: Anything wrong with the task.
        Occupied: An older attempt does not let go of the run.
        DevicesMissing: This node is not what it should be.
        Failure: Memory ran out.
    """
    from rich.console import Console

    from altojax.run.tuner import Tuner

    check_devices(os.environ)
    with hosts.together():
        config = read_task(folder)
        check_task(folder, config)
    if hosts.leads:
        await_writer(Path(config.output_dir))
    return Tuner(config, hosts=hosts, console=Console(file=out)).run(interrupt)


def read_task(folder: Path) -> "TuneConfig":
    """Reads ``task.yaml``.

    Raises:
        UserError: It is no config.
    """
    import jax

    from altojax.config.tune_config import TuneConfig
    from jaxlm.devices.mesh_spec import MeshSpec
    from jaxrun.config.config import load_config

    config = load_config(TuneConfig, folder / "task.yaml")
    if config.mesh is None and jax.default_backend() == "cpu" and jax.local_device_count() > 1:
        # Simulated devices are not used unless a config asks for them; an engine that simulates several does.
        config = config.model_copy(update={"mesh": MeshSpec()})
    return config


def check_task(folder: Path, config: "TuneConfig") -> None:
    """Refuses a task that the queue did not write, and paths outside its tenant's roots, as they are now.

    Raises:
        UserError: It is one, or a path leads out of the roots.
    """
    from altojax.cluster.tenancy.roots import check_paths, roots_in

    path = folder / "task.yaml"
    if path.lstat().st_uid != folder.parent.stat().st_uid:
        raise UserError(f"{path}: was written by user {path.lstat().st_uid}, expected it as the queue wrote it")
    if (roots := roots_in(folder)) is not None:
        check_paths(config, roots)


def check_devices(environment: Mapping[str, str]) -> None:
    """Makes sure that JAX has the GPUs of this attempt, and all of them.

    Raises:
        DevicesMissing: It has not.
    """
    import jax

    given = environment.get("CUDA_VISIBLE_DEVICES")
    if environment.get("JAX_PLATFORMS") != "cuda" or given is None:
        return
    wanted = len(given.split(","))
    try:
        found, why = jax.local_device_count(), ""
    except (RuntimeError, AssertionError) as error:  # JAX asserts that it has found something
        found, why = 0, f": {error}" if str(error) else ""
    if found != wanted:
        raise DevicesMissing(f"given GPUs {given}, but JAX finds {found}{why}")


def await_writer(run_dir: Path, patience_s: float = _GIVE_WAY_S) -> None:
    """Returns once nobody writes a run: an attempt that was cut off may take a moment to notice that it was replaced.

    Raises:
        Occupied: Somebody still does when `patience_s` seconds are over.
    """
    deadline = time.monotonic() + patience_s
    while (run_dir / JOURNAL_NAME).exists():
        try:
            os.close(take_lock(run_dir))
        except Occupied:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def end_of(error: BaseException) -> End:
    """Says what an exception makes of an attempt."""
    if isinstance(error, KeyboardInterrupt):
        return End(code=130, outcome="halted", reason="stopped at once; what came after the last checkpoint is lost")
    text = str(error)
    if isinstance(error, UserError):
        # Who still writes the run is an older attempt on a node that cannot be reached.
        blame: Blame = "node" if isinstance(error, Occupied) else "task"
        return End(code=2, outcome="failed", reason=one_line(text), blame=blame)
    if isinstance(error, Failure):
        return End(code=2, outcome="failed", reason=one_line(text))
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return End(code=1, outcome="failed", reason=one_line(f"out of memory: {text}"))
    blame = "node" if isinstance(error, DevicesMissing) or _BROKEN.search(text) else "task"
    return End(code=1, outcome="failed", reason=one_line(f"{type(error).__name__}: {text}"), blame=blame)


def main(argv: Sequence[str] | None = None, run: "Callable[[Path, Hosts], int] | None" = None) -> int:
    """Runs one attempt; returns the exit code.

    Args:
        argv: A task's folder and the attempt's number; ``sys.argv[1:]`` by default.
        run: What is done with the folder; None is `tune`.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 2 or not arguments[1].isdecimal():
        print(f"worker: error: given {arguments}, expected FOLDER ATTEMPT", file=sys.stderr)
        return 2
    folder, attempt = Path(arguments[0]), int(arguments[1])
    before = {number: signal.signal(number, _stop_at_once) for number in CAUGHT}
    over = threading.Event()
    try:
        if newest_attempt(folder) > attempt:
            return _give_way(folder, attempt)
        if read_end(folder, attempt) is not None:
            print(f"worker: attempt {attempt} has ended before", file=sys.stderr)
            return REPLACED
        threading.Thread(target=_watch_fence, args=(folder, attempt, over), name="fence", daemon=True).start()
        return _attempt(folder, attempt, run or tune)
    except UserError as error:
        print(f"worker: error: {error}", file=sys.stderr)
        return 2
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _attempt(folder: Path, attempt: int, run: "Callable[[Path, Hosts], int]") -> int:
    leads = True
    try:
        set_environment("altojax")
        from jaxlm.devices.hosts import join

        with join("altojax") as hosts:
            leads = hosts.leads
            code = run(folder, hosts)
        end = End(code=code, outcome="halted" if code else "ended")
    except BaseException as error:
        end = end_of(error)
        if end.code == 1:
            traceback.print_exc()
        print(f"altojax: {end.outcome}: {end.reason}", file=sys.stderr)
    for number in CAUGHT:  # all is saved; only the word is left to be said
        signal.signal(number, signal.SIG_IGN)
    if leads and not write_end(folder, attempt, end):
        return _give_way(folder, attempt)
    return end.code


def _watch_fence(folder: Path, attempt: int, over: threading.Event) -> None:
    """Ends this process as soon as a newer attempt is named, so that it writes no more into a run that is not its own.

    At once, without another checkpoint: what it would save, the newer attempt has given up already.
    """
    while not over.wait(_LOOK_S):
        try:
            newest = newest_attempt(folder)
        except UserError:  # the folder has gone, or its file system is away for a moment
            continue
        if newest > attempt:
            os._exit(_give_way(folder, attempt))


def _give_way(folder: Path, attempt: int) -> int:
    line = f"worker: attempt {attempt} gives way to attempt {newest_attempt(folder)}\n"
    os.write(2, line.encode())
    return REPLACED


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    """Until the run catches signals itself there is nothing to save."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(leave(main()))
