"""One run on several hosts: its processes join one JAX process group, decide together and end together.

All processes are started with the same command. Under Slurm, Open MPI, Kubernetes jobs and on TPU pods JAX finds out
who they are; elsewhere ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` say so. A run of one
process joins nothing.
"""

import atexit
import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxlm.devices.native_output import REASON, filter_native_output
from jaxrun.process.errors import UserError

JOIN_TIMEOUT_S = 300
HEARTBEAT_TIMEOUT_S = 30
"""Seconds after which a process that does not answer counts as lost; one whose connections close does at once."""

_BY_HAND = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_FRAME_BYTES = 4096
_MOST_BYTES = 2**24
"""Of what is sent at once; larger arrays and texts go in several frames."""
_LOST = re.compile(r"gloo|nccl|coordination|distributed service|heartbeat|connection (closed|reset)", re.IGNORECASE)


class _Agreed(UserError):
    """An error of some process, raised on all of them at the same place."""


@dataclass(frozen=True)
class Hosts:
    """The processes of a run, as one of them sees them; with one process every method is for free.

    Attributes:
        process: This one's number; process 0 leads.
        processes: How many there are.
    """

    process: int = 0
    processes: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.process == 0

    def gather(self, value: Any) -> list[Any]:
        """Returns what every process gave, in their order; all of them must call it.

        Args:
            value: Small JSON data, at most 4096 bytes as text.

        Raises:
            ValueError: It is larger.
        """
        if self.processes == 1:
            return [value]
        text = json.dumps(value).encode()
        if len(text) > _FRAME_BYTES:
            raise ValueError(f"{len(text)} bytes to gather, expected at most {_FRAME_BYTES}")
        frames = multihost_utils.process_allgather(np.frombuffer(text.ljust(_FRAME_BYTES), np.uint8))
        return [json.loads(frame.tobytes()) for frame in np.asarray(frames)]

    def decide(self, value: Any) -> Any:
        """Returns what the leader gave, which is JSON data of any size; all processes must call it."""
        if self.processes == 1:
            return value
        text = json.dumps(value).encode() if self.leads else b""
        fits = len(text) <= _FRAME_BYTES - 16
        said = self.gather([len(text), value if fits else None] if self.leads else None)[0]
        if said[0] <= _FRAME_BYTES - 16:
            return said[1]
        return json.loads(self._send(np.frombuffer(text, np.uint8), said[0]).tobytes())

    def same(self, what: str, facts: Sequence[str]) -> None:
        """Ends all processes where one of them has other facts than the leader; all must call it.

        Args:
            what: What the facts are, for the line that names the first difference.
            facts: In an order that they share.

        Raises:
            UserError: Some process has others.
        """
        if self.processes == 1:
            return
        digests = self.gather(hashlib.sha256(json.dumps(list(facts)).encode()).hexdigest())
        if len(set(digests)) == 1:
            return
        pairs = zip_longest(facts, self.decide(list(facts)), fillvalue="nothing")
        with self.together():
            for mine, theirs in pairs:
                if mine != theirs:
                    given, other = textwrap.shorten(mine, 150), textwrap.shorten(theirs, 150)
                    raise UserError(f"{what}: {given} where process 0 has {other}, expected the same on every host")

    def barrier(self) -> None:
        """Returns once all processes have come here."""
        self.gather(None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Ends a block on all processes in the same way; nothing in it may wait for another process after an error.

        Raises:
            UserError: Some process raised one.
        """
        if self.processes == 1:
            yield
            return
        own = None
        try:
            yield
        except UserError as error:
            own = str(error)
        said = self.gather(own and textwrap.shorten(own, _FRAME_BYTES // 8))
        wrong = [number for number, text in enumerate(said) if text is not None]
        if own is not None:
            raise _Agreed(own)
        if wrong:
            raise _Agreed(said[0] if wrong[0] == 0 else f"process {wrong[0]}: {said[wrong[0]]}")

    def broadcast(self, tree: Any, like: Any) -> Any:
        """Returns the leader's arrays on all processes, to the bit; no shared file system is needed.

        Args:
            tree: Arrays; only the leader's are looked at.
            like: A tree of the same structure, shapes and dtypes.

        Returns:
            The leader's own tree where there is one process, else NumPy arrays.
        """
        if self.processes == 1:
            return tree
        shapes, structure = jax.tree.flatten(like)
        leaves = jax.tree.leaves(tree) if self.leads else []
        sizes = [one.size * one.dtype.itemsize for one in shapes]
        got: list[np.ndarray] = []
        for span in _spans(sizes):
            pairs = zip(leaves[span], shapes[span], strict=False)
            own = [np.asarray(leaf, one.dtype).reshape(-1).view(np.uint8) for leaf, one in pairs]
            sent = self._send(np.concatenate(own) if self.leads else np.empty(0, np.uint8), sum(sizes[span]))
            parts = np.split(sent, np.cumsum(sizes[span])[:-1])
            got += [
                part.copy().view(one.dtype).reshape(one.shape) for part, one in zip(parts, shapes[span], strict=True)
            ]
        return jax.tree.unflatten(structure, got)

    def _send(self, raw: np.ndarray, size: int) -> np.ndarray:
        """Returns the leader's `size` bytes, uint8 [size], in frames of few lengths: each length compiles once."""
        got = np.empty(size, np.uint8)
        for first in range(0, size, _MOST_BYTES):
            count = min(size - first, _MOST_BYTES)
            frame = np.zeros(max(_FRAME_BYTES, 1 << (count - 1).bit_length()), np.uint8)
            frame[:count] = raw[first : first + count] if self.leads else 0
            # Broadcasting adds zeros, which would make a zero of a negative one: bits are sent.
            sent = multihost_utils.broadcast_one_to_all(frame.view(np.uint32))
            got[first : first + count] = np.asarray(sent).view(np.uint8)[:count]
        return got


def _spans(sizes: Sequence[int]) -> Iterator[slice]:
    """Cuts arrays of so many bytes into runs that are worth a frame; the last of a run may be larger than that."""
    first = total = 0
    for number, size in enumerate(sizes):
        total += size
        if total >= _MOST_BYTES or number == len(sizes) - 1:
            yield slice(first, number + 1)
            first, total = number + 1, 0


ALONE = Hosts()


@contextlib.contextmanager
def join(program: str) -> Iterator[Hosts]:
    """Joins the run's process group where the environment names one, before anything else of JAX is used.

    A process that ends by an error of its own, or that loses another one, ends at once and takes the others with it.

    Args:
        program: Its name, for the line of a process that native code ends.

    Raises:
        UserError: The environment contradicts itself, or the coordinator cannot be set up. Where the others do not
            come in time the process ends with exit code 2 and one line.
    """
    given = given_by(os.environ)
    if given is None:
        yield ALONE
        return
    try:
        _initialize(program, given)
        hosts = Hosts(jax.process_index(), jax.process_count())
        hosts.barrier()
        yield hosts
    except _Agreed:
        raise
    except BaseException as error:
        # What fetching an array raises is a ValueError where the computation failed after it was launched.
        if isinstance(error, jax.errors.JaxRuntimeError | ValueError) and _LOST.search(str(error)):
            # The filter says it in one line, however many threads have found it out.
            os.write(2, REASON + textwrap.shorten(str(error), 300).encode() + b"\n")
            _leave(1)
        codes = {UserError: 2, KeyboardInterrupt: 130}
        atexit.register(_leave, codes.get(type(error), 1))
        raise


def given_by(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize` that an environment gives by hand, or None for one process.

    Raises:
        UserError: A number is none.
    """
    given: dict[str, Any] = {key: environment[name] for key, name in _BY_HAND.items() if name in environment}
    for key in ("num_processes", "process_id"):
        if key in given:
            if not given[key].isdecimal():
                raise UserError(f"{_BY_HAND[key]}: given '{given[key]}', expected a whole number")
            given[key] = int(given[key])
    if given.get("num_processes") == 1:
        return None
    slurm = _number(environment, "SLURM_STEP_NUM_TASKS") > 1 and "SLURM_STEP_NODELIST" in environment
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    launched = (
        bool(given)
        or "JAX_COORDINATOR_PORT" in environment
        or slurm
        or _number(environment, "OMPI_COMM_WORLD_SIZE") > 1
        or (kubernetes and importlib.util.find_spec("kubernetes") is not None)
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or _number(environment, "MEGASCALE_NUM_SLICES") > 1
    )
    return given if launched else None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 0


def _initialize(program: str, given: dict[str, Any]) -> None:
    own = f"process {given.get('process_id', '(detected)')} of {given.get('num_processes', '(detected)')}"
    address = given.get("coordinator_address", "the one that was detected")
    not_joined = (
        f"{program}: error: {own}: no process group after {JOIN_TIMEOUT_S} s with coordinator {address}, "
        "expected all processes to be started at about the same time and to reach the coordinator's address"
    )
    lost = (
        f"{program}: error: another process of this run has ended or cannot be reached; "
        "start all of them again to resume from the last checkpoint"
    )
    _keep.append(filter_native_output(not_joined, lost))
    _exit_on_abort(2)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # native code waits there, and Python's handler would, too
    try:
        jax.distributed.initialize(
            **given,
            cluster_detection_method="deactivate" if len(given) == len(_BY_HAND) else None,
            initialization_timeout=JOIN_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    except (ValueError, RuntimeError) as error:
        names = ", ".join(_BY_HAND.values())
        raise UserError(
            f"{own}: cannot join a process group ({error}), expected a cluster that JAX detects, or {names}"
        ) from error
    finally:
        signal.signal(signal.SIGINT, before)
    _exit_on_abort(1)


_keep: list[Any] = []
"""Objects that must live as long as the process: the filter, and callbacks of native code."""


def _exit_on_abort(code: int) -> None:
    """Lets native code that aborts end this process with an exit code, and without a core file."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: _leave(code))
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    _keep.append(handler)


def _leave(code: int) -> None:
    """Ends this process without waiting for the others, as JAX would."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
