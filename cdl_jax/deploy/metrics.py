"""What a server tells Prometheus."""

import threading
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_MILLISECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters and histograms of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.freshness = self._histogram(
            "freshness_seconds", "From written to the log to served, by the store's clock"
        )
        self.first_answer = FirstAnswer(self._histogram(
            "first_answer_seconds", "From written to the log to the first answer by the version"
        ))  # fmt: skip
        self.apply = self._histogram("apply_seconds", "Check and write of one version, with swap")
        self.latency = self._histogram("request_seconds", "Answering a request", ["route"])
        self.batch = Histogram(
            "cdl_batch_samples", "Samples in a batch", registry=self.registry,
            buckets=[2**i for i in range(11)],
        )  # fmt: skip
        self.swaps = self._counter("swaps", "Versions served one after the other")
        self.bytes = self._counter("received_bytes", "Bytes of updates")
        self.refused = self._counter("refused_updates", "Updates not applied", ["reason"])
        self.requests = self._counter("requests", "Requests", ["route", "status"])
        self.version = self._gauge("version", "The version served")
        self.behind = self._gauge("lag_versions", "Versions in the log after the one served")
        self.age = self._gauge("lag_seconds", "Age of the oldest version not served yet")

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, what: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(
            f"cdl_{name}", what, labels or [], registry=self.registry, buckets=_MILLISECONDS
        )

    def _counter(self, name: str, what: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"cdl_{name}", what, labels or [], registry=self.registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"cdl_{name}", what, registry=self.registry)


class FirstAnswer:
    """Time from a version's writing to its first answer; the two are told by different threads."""

    def __init__(self, seconds: Histogram):
        self._seconds, self._lock = seconds, threading.Lock()
        self._written = self._answered = (-1, 0.0)  # newest version, time

    def written(self, version: int, at: float) -> None:
        """When the version now served was written."""
        with self._lock:
            self._written = version, at
            self._observe()

    def answered(self, version: int) -> None:
        """A request was answered by this version."""
        with self._lock:
            if version > self._answered[0]:
                self._answered = version, time.time()
                self._observe()

    def _observe(self) -> None:
        if self._written[0] == self._answered[0]:
            self._seconds.observe(max(0.0, self._answered[1] - self._written[1]))
