"""Passes native code's output on to stderr line by line; its many lines on a lost process group become one.

JAX's coordination client ends a process that can no longer reach the others with a page of text that no setting
silences. This file is run as a script of its own, so that it outlives the process whose text it reads; it imports
nothing but the standard library.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from typing import BinaryIO, TextIO

FATAL = b"JAX distributed service detected fatal errors"
REASON = FATAL + b": "
"""What to write, with the reason behind it, for the line on a lost process."""
_JOINING = b"RegisterTask"
_BEGINS = (b"coordination_service", b"preemption_sync", FATAL)
# What Gloo says of every connection, in pieces that its threads mix.
_CHATTER = re.compile(
    rb"(\[Gloo\] Rank |\d+| is connected to | peer ranks\. |Expected number of connected peer ranks is : )*\n?"
)


def filter_native_output(not_joined: str, lost: str) -> "subprocess.Popen[bytes]":
    """Leads file descriptors 1 and 2 through a filter process to stderr; Python's own output stays where it was.

    Args:
        not_joined: The line for a process group that never came together.
        lost: The line for one that has lost a process.

    Returns:
        The filter; it ends by itself when this process has ended.
    """
    command = [sys.executable, "-I", "-S", __file__, not_joined, lost]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    assert process.stdin is not None
    sys.stdout = _moved(sys.stdout, process.stdin.fileno())
    sys.stderr = _moved(sys.stderr, process.stdin.fileno())
    process.stdin.close()
    return process


def _moved(stream: TextIO, instead: int) -> TextIO:
    """Returns a stream to where `stream` writes, whose own descriptor becomes `instead`."""
    stream.flush()
    real = os.dup(stream.fileno())
    os.dup2(instead, stream.fileno())
    return os.fdopen(real, "w", buffering=1, encoding=stream.encoding, errors=stream.errors)


def pass_on(lines: Iterable[bytes], out: BinaryIO, not_joined: str, lost: str) -> None:
    """Copies lines until they end; those from the first one on a process group on are held back until then."""
    held = b""
    for line in lines:
        if held or any(words in line for words in _BEGINS):
            held += line
        elif not _CHATTER.fullmatch(line):
            out.write(line)
            out.flush()
    if FATAL in held:
        reason = held.partition(REASON)[2].partition(b"\n")[0]
        line = (not_joined if _JOINING in held else lost).encode()
        held = line + (b" (" + reason + b")" if reason else b"") + b"\n"
    out.write(held)
    out.flush()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    pass_on(sys.stdin.buffer, sys.stderr.buffer, *sys.argv[1:3])
