"""Prequential evaluation: every sample is scored before the model learns from it."""

import collections
from collections.abc import Iterable
from typing import Any


class Prequential:
    """Mean of a per-sample score, over all samples, the last ones, and with fading.

    A score is 1 or 0 for accuracy, or a loss, or any number; samples are added in their order.

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
        self._fading_factor = fading_factor
        self._window: collections.deque[Any] = collections.deque(maxlen=window)

    def add(self, values: Iterable[Any]) -> None:
        """Adds one value per sample: int, bool or float."""
        for value in values:
            weight = self._fading_factor if self.seen else 1.0
            self.fading_mean = weight * value + (1 - weight) * self.fading_mean
            self.total, self.seen = self.total + value, self.seen + 1
            self._window.append(value)

    @property
    def mean(self) -> float:
        """Over all samples so far; 0 before the first one, as are the others."""
        return self.total / self.seen if self.seen else 0.0

    @property
    def window_mean(self) -> float:
        """Over the last samples."""
        return sum(self._window) / len(self._window) if self._window else 0.0

    def state(self) -> dict[str, Any]:
        """All of it, in JSON's types."""
        return {
            "total": self.total, "seen": self.seen, "fading_mean": self.fading_mean,
            "window": list(self._window),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        self.total, self.seen = state["total"], state["seen"]
        self.fading_mean = state["fading_mean"]
        self._window.clear()
        self._window.extend(state["window"])


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
