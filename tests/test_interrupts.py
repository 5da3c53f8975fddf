"""The first interrupt waits for the work in hand, the second does not."""

import signal
import threading
import time

import pytest

from cdl_jax.interrupts import Interrupts


def test_a_wait_is_cut_short():
    def forever():
        yield 1
        time.sleep(60)
        yield 2

    begun, seen = time.monotonic(), []
    with Interrupts() as interrupts:
        for item in interrupts.between(forever()):
            seen.append(item)
            timer = threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, 2])
            timer.start()
    timer.join()
    assert seen == [1]
    assert interrupts.came
    assert time.monotonic() - begun < 30


def test_a_second_one_raises_at_once():
    done = []

    def work():
        with Interrupts() as interrupts:
            for _ in interrupts.between([1]):
                signal.raise_signal(signal.SIGINT)
                done.append("after the first")
                signal.raise_signal(signal.SIGINT)
                done.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["after the first"]


@pytest.mark.parametrize("own", [signal.SIG_DFL, signal.default_int_handler])
def test_the_handlers_come_back(own):
    """A signal that Python does not handle stays with whoever does."""
    was = signal.signal(signal.SIGTERM, own)
    before = signal.getsignal(signal.SIGINT)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGINT) != before
            assert (signal.getsignal(signal.SIGTERM) == own) == (own == signal.SIG_DFL)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (before, own)
    finally:
        signal.signal(signal.SIGTERM, was)


def test_another_thread_is_let_alone():
    out = []

    def work():
        with Interrupts() as interrupts:
            out.extend(interrupts.between([1, 2]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert out == [1, 2]
