"""Processes meet and part; here each is a thread, with a socket of its own."""

import contextlib
import functools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cdl_jax.errors import ConfigError, TrainingError
from cdl_jax.train import link as module
from cdl_jax.train.link import Link


@pytest.fixture
def place():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


@pytest.fixture
def left(monkeypatch):
    """What processes said as they were ended from within."""
    said = []
    monkeypatch.setattr(Link.__init__, "__defaults__", (said.append,))
    monkeypatch.setattr(module, "_SECONDS_TO_END", {True: 0.5, False: 0.5})
    monkeypatch.setattr(module, "_SECONDS_TO_LEAVE", 0.2)
    return said


def service(place):
    """What JAX does there, once the processes have met."""
    host, port = place.split(":")
    return socket.create_server((host, int(port)))


@contextlib.contextmanager
def met(place, count):
    """The links of a run's processes."""
    with ThreadPoolExecutor(count) as pool:
        lead = pool.submit(Link.meet, place, count, 0, 5)
        others = [pool.submit(Link.meet, place, count, i, 5) for i in range(1, count)]
        first = lead.result()
        with service(place):
            links = [first, *(other.result() for other in others)]
    try:
        yield links
    finally:
        for link in links:
            link.end(None)
        for link in links:
            link.close(1)


def fall(link):
    """What the kernel does when a process dies."""
    for peer in link._peers.values():
        peer.shutdown(socket.SHUT_RDWR)


def until(holds):
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_ends_as_planned_is_not_missed(place, left):
    with met(place, 3) as links:
        for link in links:
            with link.together():
                pass
        time.sleep(0.2)
        assert [link.gone for link in links] == [None] * 3
    assert not left


def test_process_0_ends_in_order_when_another_dies_and_tells_the_rest(place, left):
    with met(place, 3) as links:
        fall(links[2])
        words = "process 2 is gone; start all processes again"
        with pytest.raises(TrainingError, match=words), links[0].together():
            raise ValueError("Gloo all-reduce failed")
        until(lambda: links[1].gone is not None)
        assert str(links[1].gone).startswith("process 2 is gone")
        until(lambda: left)
    assert not any(why.startswith("process 1") for why in left)


def test_a_collective_that_never_returns_does_not_hold_process_0(place, left):
    with met(place, 3) as links:
        fall(links[1])
        until(lambda: links[2].gone is not None)
        assert str(links[2].gone).startswith("process 1 is gone")
        until(lambda: any(why.startswith("process 1 is gone") for why in left))


def test_the_others_end_at_once_when_process_0_dies(place, left):
    with met(place, 2) as links:
        fall(links[0])
        until(lambda: any(why.startswith("process 0 is gone") for why in left))
        assert str(links[1].gone).startswith("process 0 is gone")


def test_the_reason_of_an_end_reaches_the_others(place, left):
    with met(place, 2) as links:
        with pytest.raises(ConfigError, match="no seed"), links[1].together():
            raise ConfigError("no seed\nat all")
        words = "^process 1 stopped: no seed$"
        with pytest.raises(TrainingError, match=words), links[0].together():
            raise RuntimeError("Gloo")
    assert not left


def test_an_error_of_ones_own_stays_what_it_is(place, left, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_TO_SHOW", 0.1)
    with met(place, 2) as links:
        with pytest.raises(ZeroDivisionError), links[0].together():
            print(1 // 0)
        until(lambda: links[1].gone is not None)
        assert links[1].gone == "process 0 stopped: integer division or modulo by zero"


def test_who_never_comes_is_named(place):
    with ThreadPoolExecutor(2) as pool:
        lead = pool.submit(Link.meet, place, 4, 0, 1.0)
        other = pool.submit(Link.meet, place, 4, 2, 1.0)
        with pytest.raises(TrainingError, match=r"process 1, 3 of 4 did not come to .* in 1 s"):
            lead.result()
        with pytest.raises(TrainingError, match=r"process 2 did not meet .*: process 1, 3 of 4"):
            other.result()


def test_no_process_0_is_said_in_time(place):
    with pytest.raises(TrainingError, match=r"process 1 of 2 did not meet .*refused\); start proc"):
        Link.meet(place, 2, 1, 0.3)
    with service(place):  # of somebody else
        with pytest.raises(TrainingError, match="what answers there is no process 0 of this run"):
            Link.meet(place, 2, 1, 0.3)
        with pytest.raises(TrainingError, match="process 0 cannot listen .*in use; give another"):
            Link.meet(place, 2, 0, 0.3)


def test_other_settings_are_refused_on_both_sides(place):
    for others, words in ([(1, 3)], "1 of 3 came to a run of 2"), ([(1, 3)] * 2, "1 of 3 came twi"):
        with ThreadPoolExecutor(3) as pool:
            lead = pool.submit(Link.meet, place, 1 + len(others), 0, 5)
            started = [pool.submit(Link.meet, place, of, number, 5) for number, of in others]
            for future in (lead, *started):
                with pytest.raises(TrainingError, match=words):
                    future.result()


def test_strangers_are_sent_away(place):
    with ThreadPoolExecutor(2) as pool:
        lead = pool.submit(Link.meet, place, 2, 0, 5)
        host, port = place.split(":")
        for hello in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b""):
            until(functools.partial(_knocked, host, int(port), hello))
        other = pool.submit(Link.meet, place, 2, 1, 5)
        first = lead.result()
        with service(place):
            second = other.result()
    for link in (first, second):
        link.end(None)
    for link in (first, second):
        link.close(1)


def _knocked(host, port, hello):
    try:
        with socket.create_connection((host, port)) as peer:
            peer.sendall(hello)
            return True
    except OSError:
        return False


def test_no_thread_outlives_the_run(place, left):
    def work(link):
        with link.together():
            pass

    before = threading.active_count()
    with met(place, 2) as links:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, links))
        assert all(peer.fileno() == -1 for link in links for peer in link._peers.values())
        until(lambda: threading.active_count() == before)
    assert not left
