"""The actor of one process of an attempt: it starts the worker on its node and knows what becomes of it.

An actor is not bound to the orchestrator: a later one finds it by its name. Its worker is bound to it, so that what Ray
takes for free is free.
"""

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, prctl(2)
_NOT_FOUND = 127  # as a shell says it


class Member:
    """One process of a gang."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = False

    def address(self) -> str:
        """Returns where the processes of a gang that this one leads can meet."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def launch(self, command: Sequence[str], environment: Mapping[str, str], log: str, address: str | None) -> None:
        """Starts the worker, unless that was done before.

        Args:
            command: The worker and its arguments.
            environment: What it has beside this actor's own, in which Ray names its GPUs.
            log: Where its output is appended.
            address: Where the gang meets; None for one process alone.
        """
        if self._process is not None:
            return
        own = {**os.environ, **environment}
        if address is not None:
            own["JAX_COORDINATOR_ADDRESS"] = address
        libc = ctypes.CDLL(None)

        def bind() -> None:
            libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)

        with Path(log).open("ab") as out:
            try:
                self._process = subprocess.Popen(
                    command,
                    env=own,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    preexec_fn=bind,
                )
            except OSError as error:
                self._failed = True
                out.write(f"{command[0]}: {error.strerror}\n".encode())

    def code(self) -> int | None:
        """Returns the worker's exit code, negative for a signal, 127 where there is none; None while it runs."""
        if self._process is None:
            return _NOT_FOUND if self._failed else None
        return self._process.poll()

    def stop(self) -> None:
        """Tells the worker to save and stop."""
        if self._process is not None:
            self._process.terminate()
