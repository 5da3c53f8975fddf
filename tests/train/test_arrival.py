import itertools
import time
from typing import Any

import pytest

from cdl_jax.train.arrival import Arrivals, LiveArrivals


def test_triggers_cover_the_stream_once_and_the_last_may_be_short():
    spans = [(t.start, t.stop) for t in Arrivals(10, 31, 8, None)]
    assert spans == [(10, 18), (18, 26), (26, 31)]


def test_unpaced_triggers_are_there_until_the_last():
    arrivals = Arrivals(0, 16, 8, None)
    seen = [arrivals.next_is_here() for _ in arrivals]
    assert seen == [True, False]


def test_paced_triggers_wait_for_their_last_sample():
    arrivals = Arrivals(0, 12, 4, pace=40.0)
    begin, stamps = time.time(), []
    for trigger in arrivals:
        assert not arrivals.next_is_here()
        stamps.append(trigger.full_at - begin)
        assert trigger.full_at - trigger.first_at == pytest.approx(3 / 40, abs=1e-5)
    for stamp, due in zip(stamps, (0.1, 0.2, 0.3), strict=True):
        assert due - 0.01 <= stamp  # never before it could be full
    late = Arrivals(0, 8, 4, pace=100.0)
    iterator = iter(late)
    next(iterator)
    time.sleep(0.1)
    assert late.next_is_here()
    assert next(iterator).full_at <= time.time() - 0.03  # full when it arrived, not when taken


def test_recorded_triggers_come_again_at_once_and_then_the_others():
    begin = time.monotonic()
    arrivals = Arrivals(0, 40, 8, pace=100.0, recorded=[5, 11, 30])
    spans = [(t.start, t.stop) for t in arrivals]
    assert spans == [(0, 5), (5, 11), (11, 30), (30, 38), (38, 40)]
    assert time.monotonic() - begin >= 0.1  # the pace begins after the recorded ones


def test_a_trigger_may_be_of_another_size_at_some_positions():
    arrivals = Arrivals(0, 31, 8, pace=200.0, recorded=[8], size=lambda at: 2 if at < 14 else 8)
    spans = [(t.start, t.stop) for t in arrivals]
    assert spans == [(0, 8), (8, 10), (10, 12), (12, 14), (14, 22), (22, 30), (30, 31)]
    late = Arrivals(0, 16, 8, pace=20.0, size=lambda at: 1)
    begin = time.monotonic()
    next(iter(late))
    assert time.monotonic() - begin < 0.3  # a sample's time, not eight


def test_a_live_trigger_may_be_of_another_size_at_some_positions():
    class Here:
        __len__ = wait = lambda self, *_: 20

        def arrived_at(self, place):
            return float(place)

    data: Any = Here()
    arrivals = LiveArrivals(0, data, 8, lambda: 31, size=lambda at: 2 if at in (8, 10) else 8)
    spans, here = [], []
    for trigger in itertools.islice(arrivals, 4):
        spans.append((trigger.start, trigger.stop))
        here.append(arrivals.next_is_here())
    assert spans == [(0, 8), (8, 10), (10, 12), (12, 20)]
    assert here == [True, True, True, False]


def test_a_time_trigger_takes_what_has_arrived_up_to_a_batch():
    spans = [(t.start, t.stop) for t in Arrivals(0, 60, 16, pace=200.0, seconds=0.05)]
    assert [a for a, _ in spans[1:]] == [b for _, b in spans[:-1]]
    assert (spans[0][0], spans[-1][1]) == (0, 60)
    sizes = [b - a for a, b in spans]
    assert max(sizes) <= 16
    assert min(sizes) >= 1
    assert min(sizes[:-1]) < 16  # about ten each
    late = Arrivals(0, 32, 16, pace=1e6, seconds=60.0)
    assert [(t.start, t.stop) for t in late] == [(0, 16), (16, 32)]  # full batches do not wait
