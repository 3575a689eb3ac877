"""Processes that run a program, forked from one that has imported what takes longer to import than the rest takes."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).parents[2]
LIMIT_S = 600
LAST_WORDS_S = 10
# Its children leave the loops, so that they end as any Python process does; no backend of JAX is started before a fork.
# It ends when who started it has left and nobody else is connected.
SERVER = """
import json, os, select, socket, sys

import jax
import altojax.cli, altojax.run.tuner, altojax.report.run_record, twistjax.cli, twistjax.training.trainer

listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
connected, begun_by, connections = None, [0], 0
while connected is None and (begun_by or connections):
    ready, _, _ = select.select([listening, *begun_by], [], [], 0.5)
    while connections and os.waitpid(-1, os.WNOHANG)[0]:
        connections -= 1
    if 0 in ready and not os.read(0, 1):
        begun_by = []
    if listening in ready:
        accepted, _ = listening.accept()
        if os.fork():
            connections += 1
            accepted.close()
        else:
            connected = accepted
listening.close()

own, asked = None, connected and connected.makefile("rw")
while asked and own is None and (line := asked.readline()):
    processes, begun = json.loads(line), []
    for one in processes:
        if not (child := os.fork()):
            own = one
            break
        begun.append(child)
    else:
        print(json.dumps(begun), file=asked, flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in begun]
        print(json.dumps(codes), file=asked, flush=True)

if own is not None:
    for number, path in enumerate(("/dev/null", own["out"], own["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
    asked.close()
    connected.close()
    os.chdir(own["folder"])
    os.environ.update(own["environment"])
    for name, text in own["environment"].items():
        if (name := name.lower()) in jax.config.values:  # was read from the environment before
            jax.config.update(name, json.loads(text) if text[0] in "0123456789tf" else text)
    sys.argv = ["-c", *own["words"]]
    exec(compile(own["program"], "<program>", "exec"), {"__name__": "__main__"})
"""


class Ended(NamedTuple):
    """What became of a process."""

    code: int
    out: str
    err: str


class Begun:
    """Processes that were started at once."""

    def __init__(self, forks: "Forks", pids: list[int], files: list[tuple[Path, Path]]):
        self._forks, self._files, self.pids = forks, files, pids
        self._codes: list[int] | None = None

    def ended(self, limit_s: float = LIMIT_S) -> list[Ended]:
        """Waits for all of them, which are killed where that takes too long."""
        if self._codes is None:
            late = threading.Timer(limit_s, self._kill)
            late.start()
            try:
                self._codes = self._forks.answer()
            finally:
                late.cancel()
        return [
            Ended(code, out.read_text(), _last_words(err) if code > 0 else err.read_text())
            for code, (out, err) in zip(self._codes, self._files, strict=True)
        ]

    def said(self) -> str:
        """Returns what the first of them has printed so far."""
        return self._files[0][0].read_text()

    def _kill(self) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _last_words(err: Path) -> str:
    """Returns why a process failed, which what filters its errors may write after its end."""
    late = time.monotonic() + LAST_WORDS_S
    while not err.stat().st_size and time.monotonic() < late:
        time.sleep(0.05)
    return err.read_text()


class Forks:
    """Starts such processes; what a test has left running is killed before the next ones begin."""

    def __init__(self, folder: Path, shared: Path):
        """Connects to the process that has imported what they use; the first one starts it.

        Args:
            folder: For what they print.
            shared: A folder of all who share that process.
        """
        self._folder, self._count = folder, 0
        self._begun: Begun | None = None
        self._errors, address = shared / "forks.err", shared / "forks"
        self._server: subprocess.Popen[bytes] | None = None
        with (shared / "forks.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._socket = socket.socket(socket.AF_UNIX)
            while self._socket.connect_ex(str(address)):
                if self._server is None:
                    self._server = self._start(address)
                assert self._server.poll() is None, self._errors.read_text()[-4000:]
                time.sleep(0.05)
        self._asked = self._socket.makefile("rw")

    def _start(self, address: Path) -> subprocess.Popen[bytes]:
        address.unlink(missing_ok=True)
        with self._errors.open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-c", SERVER, str(address)],
                env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def begin(
        self, program: str, words: Sequence[Sequence[object]], folders: Sequence[Path], *environments: dict[str, str]
    ) -> Begun:
        """Starts processes of a program.

        Args:
            program: Its text.
            words: That each is given.
            folders: Where each works.
            environments: What is added to that of each.
        """
        if self._begun is not None:
            self._begun.ended(limit_s=0)
        files, processes = [], []
        for own, folder, environment in zip(words, folders, environments, strict=True):
            self._count += 1
            files.append((self._folder / f"{self._count}.out", self._folder / f"{self._count}.err"))
            for file in files[-1]:
                file.touch()
            named = dict(zip(("out", "err"), map(str, files[-1]), strict=True))
            place = {"folder": str(folder), "environment": environment}
            processes.append({"program": program, "words": list(map(str, own)), **place, **named})
        print(json.dumps(processes), file=self._asked, flush=True)
        self._begun = Begun(self, self.answer(), files)
        return self._begun

    def answer(self) -> Any:
        """Returns the next line of the process that forks."""
        line = self._asked.readline()
        assert line, self._errors.read_text()[-4000:]
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._asked.close()
        self._socket.close()
        if self._server is not None:
            self._server.communicate()
