"""Prequential evaluation: every sample is scored before the model learns from it."""

import collections
import functools
import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Any


class Prequential:
    """Mean of a per-sample score, over all samples, the last ones, and with fading.

    A score is 1 or 0 for accuracy, or a loss, or any finite number; samples are added in their
    order.

    Args:
      window: samples in the sliding window.
      fading_factor: weight of the newest sample in the fading mean, which begins at the first.

    Examples:
      >>> score = Prequential(window=2, fading_factor=0.5)
      >>> score.add([1, 1, 0])
      >>> round(score.mean, 3), score.window_mean, score.fading_mean
      (0.667, 0.5, 0.5)

    References:
      Gama et al., On evaluating stream learning algorithms, 2013; River's `utils.Rolling` and
      `stats.EWMean`, whose results these are.
    """

    def __init__(self, *, window: int = 1000, fading_factor: float = 0.002):
        self.total, self.seen, self.fading_mean = 0, 0, 0.0
        self._fading_factor, self._window = fading_factor, Window(window)

    def add(self, values: Iterable[Any]) -> None:
        """Adds one value per sample: int, bool or float."""
        values = list(values)
        total, weight = self.total, self._fading_factor
        fading = self.fading_mean if self.seen or not values else float(values[0])
        for value in values:  # a version waits for this: names of the function's own are quicker
            total += value
            fading += weight * (value - fading)
        self.total, self.fading_mean, self.seen = total, fading, self.seen + len(values)
        self._window.add(values)

    @property
    def mean(self) -> float:
        """Over all samples so far; 0 before the first one, as are the others."""
        return self.total / self.seen if self.seen else 0.0

    @property
    def window_mean(self) -> float:
        """Over the last samples."""
        return self._window.sum / len(self._window) if self.seen else 0.0

    def state(self) -> dict[str, Any]:
        """All of it, in JSON's types."""
        return {
            "total": self.total, "seen": self.seen, "fading_mean": self.fading_mean,
            "window": self._window.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`; its window may be of another size."""
        self.total, self.seen = state["total"], state["seen"]
        self.fading_mean = state["fading_mean"]
        self._window.restore(state["window"])


class Window:
    """The newest values and their sum, in a few operations a value, however many they are.

    The older half has the sum from each value to its end, the newer half a running sum; when the
    older half is used up, the newer one takes its place. So nothing is ever subtracted, and a huge
    value leaves no trace once it is out.

    Examples:
      >>> window = Window(2)
      >>> window.add([1e300, 0.1, 0.2])
      >>> len(window), round(window.sum, 3)
      (2, 0.3)
    """

    def __init__(self, size: int):
        self._size = size
        self._old: list[Any] = []  # its newest value first
        self._sums: list[Any] = []  # from each of the old values to the newest of them
        self._new: list[Any] = []
        self._new_sum: Any = 0

    def __len__(self) -> int:
        return len(self._old) + len(self._new)

    @property
    def sum(self) -> Any:
        """Of the values."""
        return self._sums[-1] + self._new_sum if self._sums else self._new_sum

    def add(self, values: Sequence[Any]) -> None:
        """Adds values; the oldest ones leave where there is no more room."""
        leave = len(self) + len(values) - self._size
        if leave > len(self._old) and len(values) > 1:
            for value in values:
                self.add([value])
            return
        if leave > 0:
            self._leave(leave)
        self._new += values
        for value in values:
            self._new_sum += value

    def _leave(self, count: int) -> None:
        if not self._old:
            self._set(self._new[::-1], [])
        del self._old[-count:], self._sums[-count:]

    def _set(self, old: list[Any], new: list[Any]) -> None:
        self._old, self._sums = old, list(itertools.accumulate(old))
        # Not sum(): newer Pythons' rounds better, and a resume must round as the run does.
        self._new, self._new_sum = new, functools.reduce(operator.add, new, 0)

    def state(self) -> dict[str, list[Any]]:
        """The values, in JSON's types."""
        return {"old": self._old[:], "new": self._new[:]}

    def restore(self, state: dict[str, list[Any]]) -> None:
        """Goes on from `state`; of a larger window the newest values stay."""
        self._set(list(state["old"]), list(state["new"]))
        while len(self) > self._size:
            self._leave(1)


class Awaited:
    """Scores of samples whose labels are still to come: of the model that met the sample.

    Examples:
      >>> scores = Awaited()
      >>> scores.predicted([1, 0, 1])  # three samples arrive and are predicted
      >>> scores.labelled(2)  # the labels of the first two arrive
      [1, 0]
    """

    def __init__(self) -> None:
        self._scores: collections.deque[Any] = collections.deque()

    @property
    def count(self) -> int:
        """Samples that wait for their labels."""
        return len(self._scores)

    def predicted(self, scores: Iterable[Any]) -> None:
        """Samples arrived; their scores, that nobody may know yet."""
        self._scores.extend(scores)

    def labelled(self, count: int) -> list[Any]:
        """The next `count` labels arrived; returns the scores that they reveal."""
        return [self._scores.popleft() for _ in range(count)]

    def state(self) -> list[Any]:
        """All of it, in JSON's types."""
        return list(self._scores)

    def restore(self, state: list[Any]) -> None:
        """Goes on from `state`."""
        self._scores = collections.deque(state)
