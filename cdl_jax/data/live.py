"""Streams that cannot be asked twice: a thread takes samples as they come and keeps them.

A source is a function `(held, last) -> iterator of samples`: how many of its samples are kept
already, and the newest of them, or None. A sample is a dict of numbers or arrays by field; the
integer field "label" is the class, and a field whose name begins with _ is the source's own.
"""

import collections
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from cdl_jax.data.live_checks import check_finite_row, check_label, row_of
from cdl_jax.data.samples import LABEL, classes_of
from cdl_jax.data.spool import Spool
from cdl_jax.errors import DataError
from cdl_jax.imports import imported

Source = Callable[[int, Mapping[str, np.ndarray] | None], Iterable[Mapping[str, Any]]]
LIVE = ("redis", "rediss", "iterator")  # kinds of live data sets
END = 1 << 62  # the end of a stream that has none yet
_POLL = 0.05  # seconds


class LiveData:
    """Samples of a live source by their position, as `Samples`.

    Args:
      name: of the source.
      source: gives the samples.
      spool: keeps them.
      stall_seconds: without a sample, after which the stream counts as stalled; None: never.
      on_stall: what a stalled stream is: an error, or at its end.
      initial: samples of the initial training.
      classes: of the labels; 0: as many as the first `initial` samples have.
      finite: whether a sample with a NaN or an infinity is refused.
      on_close: called once the files are closed.
      ahead: samples taken at most ahead of those that were asked for.

    Attributes:
      stop: where the stream ends; `END` while it goes on.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        spool: Spool,
        *,
        stall_seconds: float | None = None,
        on_stall: str = "error",
        initial: int = 0,
        classes: int = 0,
        finite: bool = False,
        on_close: Callable[[], object] = lambda: None,
        ahead: int = 4096,
    ):
        self.name, self.spool, self.classes, self.stop = name, spool, classes, END
        self._initial, self._learnt, self._finite = initial, bool(classes), finite
        self._on_close = on_close
        self._source, self._stall, self._on_stall, self._ahead = (
            source, stall_seconds, on_stall, ahead,
        )  # fmt: skip
        self._asked, self._newest_at, self._error = 0, time.monotonic(), None
        self._stamps: collections.deque[float] = collections.deque(maxlen=2 * ahead)  # the newest
        self._changed, self._closing, self._closed = threading.Condition(), False, False
        self._thread = threading.Thread(target=self._take, name=f"source {name}", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return min(self.spool.stop, self.stop)

    @property
    def labels(self) -> "_Labels":
        """Integers that tell classes apart, by slices."""
        return _Labels(self)

    def batch(self, index: Any) -> dict[str, np.ndarray]:
        """The fields at the given positions, which have come."""
        index = np.arange(index.start or 0, index.stop) if isinstance(index, slice) else index
        rows = self.spool.batch(index)
        return {name: x for name, x in rows.items() if not name.startswith("_")}

    def wait(self, stop: int, seconds: float | None = None) -> int:
        """Returns how many samples have come: `stop` or more, unless the time or stream is over.

        Raises:
          DataError: when the source fails, yields samples of several forms, or stalls.
        """
        end = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            self._asked = max(self._asked, stop)
            self._changed.notify_all()
            while len(self) < stop and self.stop == END and not self._failed():
                left = _POLL if end is None else min(_POLL, end - time.monotonic())
                if left <= 0:
                    break
                self._changed.wait(left)  # in short pieces: Ctrl-C comes between them
            if self._error is not None and len(self) < stop:
                raise self._error
            return len(self)

    def arrived_at(self, place: int) -> float:
        """When a sample came, in seconds since the epoch; now for one of an earlier life."""
        with self._changed:
            back = self.spool.stop - place
            return self._stamps[-back] if 0 < back <= len(self._stamps) else time.time()

    def first(self) -> None:
        """Waits for the samples of the initial training, and learns the classes from them.

        Raises:
          DataError: when the stream ends before.
        """
        if self.wait(self._initial) < self._initial:
            raise DataError(
                f"{self.name} ended after {len(self)} samples, but the initial training takes "
                f"{self._initial}; lower --initial-samples"
            )
        with self._changed:
            self._learn()

    def close(self) -> None:
        """Ends the thread, once the source hands over its next sample, and closes the files."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)  # it may wait in the source for long
        with self._changed:
            self._closed = True
            self.spool.close()
        self._on_close()

    def _take(self) -> None:
        try:
            held = self.spool.stop
            last = {n: x[0] for n, x in self.spool.batch([held - 1]).items()} if held else None
            for sample in self._samples(held, last):
                with self._changed:
                    self._wait_for_room()
                    if self._closed:
                        return
                    self.spool.append(self._checked(sample))
                    self._newest_at = time.monotonic()
                    self._stamps.append(time.time())
                    self._changed.notify_all()
                    if self._closing:
                        return
            self._end(None)
        except DataError as error:
            self._end(error)
        except Exception as error:  # a user's own code; whatever it is, the stream is over
            self._end(DataError(f"{self.name} failed after {self.spool.stop} samples: {error!r}"))

    def _samples(self, held: int, last: Any) -> Iterable[Mapping[str, Any]]:
        samples = self._source(held, last)
        if not isinstance(samples, Iterable):
            raise DataError(
                f"{self.name} gave {type(samples).__name__}; give an iterator of samples"
            )
        return samples

    def _checked(self, sample: Any) -> dict[str, np.ndarray]:
        row = row_of(sample, self.spool)
        if self._finite:
            check_finite_row(row, self.spool)
        if self.spool.stop >= self._initial:
            self._learn()
        check_label(row, self.classes, self.spool)
        return row

    def _learn(self) -> None:
        if self._initial and not self._learnt:
            self.classes, self._learnt = classes_of(self.batch(np.arange(self._initial))), True

    def _wait_for_room(self) -> None:
        while self.spool.stop >= self._asked + self._ahead and not self._closing:
            self._changed.wait(_POLL)
            self._newest_at = time.monotonic()

    def _end(self, error: DataError | None) -> None:
        with self._changed:
            if error is None:
                self.stop = self.spool.stop
            self._error = error
            self._changed.notify_all()

    def _failed(self) -> bool:
        quiet = time.monotonic() - self._newest_at
        if self._error is None and self._stall is not None and quiet > self._stall:
            if self._on_stall == "end":
                self.stop = self.spool.stop
            else:
                self._error = DataError(
                    f"{self.name} brought no sample for {self._stall:g} s, after "
                    f"{self.spool.stop}; mend it and start the same command again, or raise "
                    "--stall-seconds"
                )
        return self._error is not None


class _Labels:
    def __init__(self, data: LiveData):
        self._data = data

    def __getitem__(self, index: slice) -> np.ndarray:
        rows = self._data.batch(index)
        label = rows.get(LABEL)
        if label is None or label.dtype.kind not in "biu" or label.ndim != 1:
            return np.zeros((index.stop or 0) - (index.start or 0), np.int32)
        classes = self._data.classes
        if classes and label.size and not 0 <= label.min() <= label.max() < classes:
            raise DataError(
                f"{self._data.name} has labels from {label.min()} to {label.max()}, but the run's "
                f"are 0 to {classes - 1}; give more --classes and a new --run and --log"
            )
        return label.astype(np.int32)


def from_function(name: str) -> Source:
    """The source `MODULE:FUNCTION`, called with the number of samples that are kept already.

    It is not given the newest of them, as a source in Python is: it finds its place by the number.

    Raises:
      ConfigError: when there is no such function.
    """
    function = imported(name)

    def source(held: int, last: Any) -> Iterable[Mapping[str, Any]]:
        del last
        return function(held)

    return source
