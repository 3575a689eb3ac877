"""Work on what others wrote, done in a process of its own that has little time and memory and cannot harm this one."""

import atexit
import contextlib
import importlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxrun.process.errors import UserError

LIMIT_S = 10.0
"""Seconds of computing that one request may take."""
MEMORY_BYTES = 2**30
"""Memory that the process may take beyond its own at the start."""
ANSWER_BYTES = 2**26
_ROOT = Path(__file__).parents[2]
_SIZE = struct.Struct("<Q")

type Json = dict[str, Any]


class Exceeded(UserError):
    """Work on others' input took more time or memory than it may; the message says which."""


class Confined:
    """A process that answers one request after another; started at the first, and again after it has been ended.

    It ends itself when its time is up, also inside a library that never looks at the clock, and when this process has
    gone. Requests and answers are JSON.
    """

    def __init__(self, function: str, *, limit_s: float | None = None) -> None:
        """Starts nothing yet.

        Args:
            function: What answers a request, as ``package.module:name``.
            limit_s: Seconds of computing that a request may take; None is `LIMIT_S`.
        """
        self._function, self._limit_s = function, limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._mutex = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> Json:
        """Returns the answer to a request.

        Raises:
            Exceeded: It takes too much time or memory, or its answer is too long.
            TypeError: The request holds what JSON has not.
        """
        limit_s = LIMIT_S if self._limit_s is None else self._limit_s
        given = json.dumps({**request, "limit_s": limit_s})
        with self._mutex:
            process = self._process or self._start()
            try:
                _send(process.stdin, given.encode())
                answer = _receive(process.stdout)
            except BaseException as error:
                code = self._end()
                if not isinstance(error, OSError | EOFError):
                    raise
                took = f"more than {limit_s:g} s" if code == -signal.SIGPROF else "more memory than there is for it"
                raise Exceeded(f"takes {took}") from error
        found: Json = json.loads(answer)
        if "exceeds" in found:
            raise Exceeded(found["exceeds"])
        return found

    def close(self) -> None:
        """Ends the process, if there is one."""
        with self._mutex:
            self._end()

    def _start(self) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # -P: no module is taken from the working folder.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "jaxrun.untrusted.confined", self._function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        atexit.register(self.close)
        return self._process

    def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        atexit.unregister(self.close)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            return process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def serve(answer: Callable[[Json], Json]) -> None:
    """Answers the requests that come in on standard input until it ends."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    _confine()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            request = json.loads(_receive(requests))
            signal.setitimer(signal.ITIMER_PROF, request.pop("limit_s"))
            try:
                said = json.dumps(answer(request)).encode()
            except Exception as error:
                if isinstance(error, MemoryError):
                    why = f"takes more than {MEMORY_BYTES / 2**30:g} GiB of memory"
                else:
                    why = f"fails ({type(error).__name__}: {str(error)[:200]})"
                said = json.dumps({"exceeds": why}).encode()
            if len(said) > ANSWER_BYTES:
                said = json.dumps({"exceeds": f"writes more than {ANSWER_BYTES // 2**20} MiB"}).encode()
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(answers, said)


def _confine() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _send(pipe: Any, content: bytes) -> None:
    pipe.write(_SIZE.pack(len(content)) + content)
    pipe.flush()


def _receive(pipe: Any) -> bytes:
    size = _read(pipe, _SIZE.size)
    return _read(pipe, _SIZE.unpack(size)[0])


def _read(pipe: Any, size: int) -> bytes:
    content: bytes = pipe.read(size)
    if len(content) < size:
        raise EOFError
    return content


if __name__ == "__main__":
    _module, _, _name = sys.argv[1].partition(":")
    serve(getattr(importlib.import_module(_module), _name))
