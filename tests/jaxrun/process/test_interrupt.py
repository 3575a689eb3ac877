"""The first Ctrl-C asks, the second one insists, and afterwards everything is as before."""

import os
import signal
import threading

import pytest

from jaxrun.process.interrupt import CAUGHT, Interrupt, catch_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_only_asks(number, capfd):
    with catch_interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
    assert capfd.readouterr().err == "stopping as soon as all is saved; once more stops at once\n"


def test_the_second_signal_insists():
    with pytest.raises(KeyboardInterrupt), catch_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


class JaxRuntimeError(RuntimeError):
    """What JAX raises, by its name."""


PTXAS = "INTERNAL: ptxas exited with non-zero error code 15"


def test_a_compiler_that_the_signal_ended_too_is_the_interruption():
    with pytest.raises(KeyboardInterrupt), catch_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        raise JaxRuntimeError(PTXAS)


@pytest.mark.parametrize(
    ("asks", "error"),
    [(False, JaxRuntimeError(PTXAS)), (True, JaxRuntimeError("RESOURCE_EXHAUSTED: ...")), (True, ValueError(PTXAS))],
)
def test_any_other_error_stays_what_it_is(asks, error):
    with pytest.raises(type(error)), catch_interrupt() as interrupt:
        interrupt.requested = asks
        raise error


def test_the_handlers_come_back():
    before = [signal.getsignal(number) for number in CAUGHT]
    with pytest.raises(ZeroDivisionError), catch_interrupt():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in CAUGHT] == before


def test_other_threads_run_without_it():
    seen = []

    def work():
        with catch_interrupt() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_another_thread_can_ask_too():
    interrupt = Interrupt()
    asking = threading.Thread(target=interrupt.request)
    asking.start()
    asking.join()
    assert interrupt.requested
