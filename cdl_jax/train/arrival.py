"""How a stream arrives: trigger by trigger, paced or as fast as it is taken."""

import time
from collections.abc import Iterator
from typing import NamedTuple


class Trigger(NamedTuple):
    """New samples that trigger a step: positions [start, stop) of the data set."""

    start: int
    stop: int
    full_at: float  # seconds since the epoch when the last of them arrived


class Arrivals:
    """Triggers over samples [start, stop), the last one perhaps not full."""

    def __init__(self, start: int, stop: int, trigger: int, pace: float | None):
        self.start, self.stop = start, stop
        self._trigger, self._pace = trigger, pace
        self._begun, self._next = time.monotonic(), start

    def __iter__(self) -> Iterator[Trigger]:
        self._begun = time.monotonic()
        while self._next < self.stop:
            start = self._next
            stop = min(start + self._trigger, self.stop)
            wait = self._wait(stop)
            if wait > 0:
                time.sleep(wait)
            late = max(0.0, -wait) if self._pace else 0.0
            self._next = stop
            yield Trigger(start, stop, time.time() - late)

    def next_is_here(self) -> bool:
        """Whether the next trigger is full already, so that there is no time to lose."""
        stop = min(self._next + self._trigger, self.stop)
        return self._next < self.stop and self._wait(stop) <= 0

    def _wait(self, stop: int) -> float:
        if self._pace is None:
            return 0.0
        return self._begun + (stop - self.start) / self._pace - time.monotonic()
