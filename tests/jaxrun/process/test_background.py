"""Work beside the main thread: nobody waits for it once it is not wanted, not even the process as it ends."""

import subprocess
import sys
import threading
from concurrent.futures import CancelledError, Future

import pytest

from jaxrun.process.background import Background, busy
from jaxrun.process.interrupt import Interrupt, Stopped, wait_for


def test_work_brings_its_result_or_raises_what_it_raised():
    background = Background(2, "test")
    made = [background.submit(lambda i=i: i * i) for i in range(9)]
    failed = background.submit(lambda: 1 // 0)
    assert [future.result() for future in made] == [i * i for i in range(9)]
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_no_more_than_so_much_goes_on_at_a_time_but_what_is_wanted_at_once():
    background, gate, begun = Background(1, "test"), threading.Event(), threading.Event()

    def blocks() -> str:
        begun.set()
        gate.wait()
        return "first"

    first, second = background.submit(blocks), background.submit(lambda: "second")
    begun.wait()
    assert background.submit(lambda: "at once", at_once=True).result() == "at once"
    assert busy() and not second.done()
    gate.set()
    assert [first.result(), second.result()] == ["first", "second"]


def test_closing_cancels_what_waits_and_waits_for_nothing():
    background, gate, begun = Background(1, "test"), threading.Event(), threading.Event()
    first = background.submit(lambda: (begun.set(), gate.wait()))
    second = background.submit(lambda: "never")
    begun.wait()
    background.close()
    assert second.cancelled() and not first.done()
    with pytest.raises(CancelledError):
        second.result()
    with pytest.raises(RuntimeError, match="closed"):
        background.submit(lambda: 1)
    gate.set()
    first.result()


def test_who_waits_is_told_to_stop():
    interrupt, never = Interrupt(), Future()
    threading.Timer(0.05, interrupt.request).start()
    with pytest.raises(Stopped):
        wait_for(never, interrupt)
    done: Future[int] = Future()
    done.set_result(3)
    assert wait_for(done, interrupt) == 3, "what is there is taken"


ENDS = """
import sys, time
from jaxrun.process.background import Background, leave
one = Background(1, "test")
begun = []
one.submit(lambda: (begun.append(1), time.sleep(600)))
while not begun:
    time.sleep(0.01)
print("said")
sys.exit(leave(7))
"""


def test_a_program_ends_at_once_with_its_exit_code_while_work_goes_on():
    ended = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "said\n", "")
