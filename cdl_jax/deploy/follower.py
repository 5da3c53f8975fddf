"""A thread that keeps a replica at its log's end, and one that watches how far behind it is."""

import collections
import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from typing import Any

from cdl_jax.deploy.follow import Pauses
from cdl_jax.deploy.log import UpdateLog
from cdl_jax.deploy.metrics import Metrics
from cdl_jax.deploy.replica import Replica
from cdl_jax.errors import LogError

WATCH_SECONDS = 1.0
WAIT_SECONDS = 0.5
NICENESS = 15  # a thirtieth of a busy core: 20 updates of a ResNet18 a second still fit


@dataclasses.dataclass(frozen=True)
class Lag:
    """How far a replica is behind its log.

    Attributes:
      versions: in the log and not served.
      seconds: age of the oldest of them; 0 where there is none.
    """

    versions: int = 0
    seconds: float = 0.0


class Follower:
    """Advances a replica from a thread until it is closed; whatever fails, it tries again.

    Attributes:
      lag: as of the last look, every second.
      status: what the trainer last said of itself (`Publisher.tell`).
      last_error: why the newest version could not be taken, or None.
    """

    def __init__(self, replica: Replica, log: UpdateLog, metrics: Metrics):
        self._replica, self._log, self._metrics = replica, log, metrics
        self._stop = threading.Event()
        self._refused: collections.Counter[str] = collections.Counter()
        self.lag, self.last_error = Lag(), None
        self.status: dict[str, Any] = {}
        metrics.version.set(replica.version)
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._follow, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether both threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Ends the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _follow(self) -> None:
        _give_way()
        pauses = Pauses()
        while not self._stop.is_set():
            try:
                self._advance()
                self.last_error = None
                pauses.over()
                self._replica.wait(WAIT_SECONDS)
            except Exception as error:  # a full memory, say: what is served stays whole
                self.last_error = str(error) or repr(error)
                pauses.take(error)
            self._count_refused()

    def _advance(self) -> None:
        before, begun = self._replica.version, time.perf_counter()
        size = self._replica.advance()
        if size is None:
            return
        metrics, version = self._metrics, self._replica.version
        metrics.bytes.inc(size)
        if version != before:
            metrics.apply.observe(time.perf_counter() - begun)
            metrics.swaps.inc()
            metrics.version.set(version)
            written = self._log.written_at(version) if size else None
            if written is not None:
                metrics.freshness.observe(max(0.0, time.time() - written))
                metrics.first_answer.written(version, written)

    def _count_refused(self) -> None:
        """Those too that a newer snapshot made good at once."""
        for reason, count in self._replica.refused.items():
            self._metrics.refused.labels(reason).inc(count - self._refused[reason])
        self._refused = self._replica.refused.copy()

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_SECONDS):
            with contextlib.suppress(LogError):  # `_follow` says so
                self._look()

    def _look(self) -> None:
        version, head = self._replica.version, self._log.head() or 0
        behind, age = max(0, head - version), 0.0
        written = self._log.written_at(version + 1) if behind else None
        if written is not None:
            age = max(0.0, time.time() - written)
        self.lag = Lag(behind, age)
        self._metrics.behind.set(behind)
        self._metrics.age.set(age)
        blob = self._log.read_status()
        with contextlib.suppress(ValueError):
            self.status = json.loads(blob) if blob else {}


def _give_way() -> None:
    """Lets requests come before updates where both want the processor."""
    if sys.platform != "linux":  # elsewhere a thread has no nice value of its own
        return
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
