"""How a stream arrives: trigger by trigger, paced or as fast as it is taken."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cdl_jax.data.live import LiveData


class Trigger(NamedTuple):
    """New samples that trigger a step: positions [start, stop) of the data set."""

    start: int
    stop: int
    first_at: float  # seconds since the epoch when the first of them arrived
    full_at: float  # and the last


class Arrivals:
    """Triggers over samples [start, stop), the last one perhaps not full.

    Args:
      start, stop: the stream's samples.
      trigger: new samples that trigger a step, or the most that one takes where `seconds` is set.
      pace: samples a second; None for as fast as they are taken.
      seconds: take what has arrived every so many seconds; nothing arrived, nothing triggered.
      recorded: where the first triggers ended in an earlier life; these come again, at once.
      size: gives how many new samples trigger the step at a position, where it is not always
        `trigger`.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        trigger: int,
        pace: float | None,
        *,
        seconds: float | None = None,
        recorded: Sequence[int] = (),
        size: Callable[[int], int] | None = None,
    ):
        self.start, self.stop = start, stop
        self._trigger, self._pace, self._seconds = trigger, pace, seconds
        self._size = size or (lambda position: trigger)
        self._recorded = [end for end in recorded if start < end <= stop][::-1]
        self._begun, self._next = time.monotonic(), start
        self._fired, self._offset = self._begun, start

    def __iter__(self) -> Iterator[Trigger]:
        self._restart()
        while self._next < self.stop:
            start = self._next
            if self._recorded:
                self._next = self._recorded.pop()
                now = time.time()
                yield Trigger(start, self._next, now, now)
                self._restart()
                continue
            self._sleep_until_due()
            stop = self._due()
            self._next = stop
            full_at = time.time() - (max(0.0, -self._wait(stop)) if self._pace else 0.0)
            fills = (stop - start - 1) / self._pace if self._pace else 0.0
            yield Trigger(start, stop, full_at - fills, full_at)

    def next_is_here(self) -> bool:
        """Whether the next trigger is full already, so that there is no time to lose."""
        if self._recorded:
            return True
        if self._seconds is not None:
            return self._next < self.stop and self._arrived() - self._next >= self._trigger
        return self._next < self.stop and self._wait(self._full()) <= 0

    def _restart(self) -> None:
        self._begun, self._offset, self._fired = time.monotonic(), self._next, time.monotonic()

    def _full(self) -> int:
        return min(self._next + self._size(self._next), self.stop)

    def _due(self) -> int:
        full = self._full()
        return full if self._seconds is None else min(full, max(self._arrived(), self._next + 1))

    def _sleep_until_due(self) -> None:
        wait = max(0.0, self._wait(self._full()))
        if self._seconds is not None:
            wait = min(wait, max(0.0, self._fired + self._seconds - time.monotonic()))
            wait = max(wait, self._wait(self._next + 1))
        if wait > 0:
            time.sleep(wait)
        self._fired = time.monotonic()

    def _arrived(self) -> int:
        if self._pace is None:
            return self.stop
        here = self._offset + int((time.monotonic() - self._begun) * self._pace)
        return min(max(here, self._next), self.stop)

    def _wait(self, stop: int) -> float:
        if self._pace is None:
            return 0.0
        return self._begun + (stop - self._offset) / self._pace - time.monotonic()


class LiveArrivals:
    """Triggers over a live stream's samples from `start` on; arguments as of `Arrivals`.

    Args:
      data: the stream.
      stop: gives where the run ends, as far as that is known.
      delay: samples that come between a sample and its label, behind which it may trigger.
    """

    def __init__(
        self,
        start: int,
        data: LiveData,
        trigger: int,
        stop: Callable[[], int],
        *,
        delay: int = 0,
        seconds: float | None = None,
        recorded: Sequence[int] = (),
        size: Callable[[int], int] | None = None,
    ):
        self._data, self._stop, self._seconds = data, stop, seconds
        self._size = size or (lambda position: trigger)
        self._delay = delay
        self._recorded = [end for end in recorded if start < end][::-1]
        self._next, self._fired = start, time.monotonic()

    def __iter__(self) -> Iterator[Trigger]:
        while True:
            start, self._next = self._next, self._due()
            if self._next <= start:
                return
            yield Trigger(start, self._next, self._stamp(start), self._stamp(self._next - 1))

    def next_is_here(self) -> bool:
        """Whether the next trigger is full already, so that there is no time to lose."""
        full = min(self._next + self._size(self._next), self._stop())
        here = min(full + self._delay, self._stop()) <= len(self._data)
        return bool(self._recorded) or (self._next < full and here)

    def _labelled(self, stop: int, seconds: float | None = None) -> int:
        """Waits for the labels of the samples before `stop`; how many have come.

        No more samples come behind the end: then all have their labels.
        """
        here = self._data.wait(min(stop + self._delay, self._stop()), seconds)
        return here if here >= self._stop() else here - self._delay

    def _stamp(self, place: int) -> float:
        return self._data.arrived_at(min(place + self._delay, len(self._data) - 1))

    def _due(self) -> int:
        if self._recorded:
            end = self._recorded.pop()
            self._labelled(end)
            return end
        full = min(self._next + self._size(self._next), self._stop())
        wait = None
        if self._seconds is not None:
            wait = max(0.0, self._fired + self._seconds - time.monotonic())
        here = self._labelled(full, wait)
        if here <= self._next:
            here = self._labelled(min(self._next + 1, full))
        self._fired = time.monotonic()
        return min(here, full)
