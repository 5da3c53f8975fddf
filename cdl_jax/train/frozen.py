"""The initial model, scored beside the deployed one on the same samples."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cdl_jax.train.scoring import Scores


class FrozenModel:
    """Says how right the initial model is on samples of the stream, some way ahead of it.

    Args:
      tree: deployed at version 0; never donated, so the caller's own copy.
      score: as `scoring.scorer` gives it.
      read: `(start, stop) -> batch` of the stream's samples.
      stop: gives the end of what is there.
      ahead: samples scored at a time.
    """

    def __init__(
        self,
        tree: Any,
        score: Callable[[Any, Any], Callable[[], Scores]],
        read: Callable[[int, int], Any],
        stop: Callable[[], int],
        ahead: int = 500,
    ):
        self._tree, self._score, self._read = tree, score, read
        self._stop, self._ahead = stop, ahead
        self._first, self._marks = 0, np.zeros(0, bool)

    def right(self, start: int, stop: int) -> list[Any]:
        """For each of the samples [start, stop) 1 where the model is right, else 0; or a score."""
        while stop > self._first + len(self._marks):
            self._score_more(start)
        return (self._marks[start - self._first : stop - self._first] * 1).tolist()

    def state(self) -> dict[str, Any]:
        """What was scored and not yet asked for, in JSON's types."""
        return {"first": self._first, "marks": (self._marks * 1).tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        marks = state["marks"]
        self._first, self._marks = state["first"], np.array(marks) if marks else np.zeros(0, bool)

    def _score_more(self, start: int) -> None:
        end = self._first + len(self._marks)
        if start >= end:
            self._first, self._marks, end = start, self._marks[:0], start
        kept = self._marks[start - self._first :]
        until = min(end + self._ahead, self._stop())
        right = self._score(self._tree, self._read(end, until))().right
        self._first, self._marks = start, np.concatenate([kept, right])
