"""What a run has scored so far: the deployed model, and the initial one on the same samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cdl_jax.train.arrival import Trigger
from cdl_jax.train.frozen import FrozenModel
from cdl_jax.train.prequential import Awaited, Prequential
from cdl_jax.train.records import Summary
from cdl_jax.train.scoring import Scores

Scored = list[tuple[Any, float]]  # right (1, 0 or a score) and loss of each labelled sample


class Scorecard:
    """Prequential accuracy and loss, counted when the labels come.

    Args:
      frozen: the initial model.
    """

    def __init__(self, frozen: FrozenModel):
        self.frozen, self._awaited = frozen, Awaited()
        self._accuracy, self._loss, self._frozen_accuracy = (Prequential() for _ in range(3))

    @property
    def awaited(self) -> int:
        """Samples that wait for their labels."""
        return self._awaited.count

    def predicted(self, scores: Scores, count: int) -> None:
        """The first `count` of these scores are of samples that arrived; the rest fill up."""
        right, loss = (np.asarray(x)[:count].tolist() for x in scores)
        self._awaited.predicted(zip((x * 1 for x in right), loss, strict=True))

    def labelled(self, samples: int) -> Scored:
        """The labels of so many samples arrived; their scores."""
        return self._awaited.labelled(samples)

    def count(self, scored: Scored, trigger: Trigger, summary: Summary) -> dict[str, float]:
        """Counts a trigger's scores into the summary; what its record says of them."""
        accuracy, loss, frozen = self._accuracy, self._loss, self._frozen_accuracy
        accuracy.add(right for right, _ in scored)
        loss.add(value for _, value in scored)
        frozen.add(self.frozen.right(trigger.start, trigger.stop))
        summary.samples = accuracy.seen
        summary.accuracy, summary.loss = accuracy.mean, loss.mean
        summary.frozen_accuracy = frozen.mean
        return {
            "accuracy": accuracy.mean,
            "window_accuracy": accuracy.window_mean,
            "fading_accuracy": accuracy.fading_mean,
            "fading_loss": loss.fading_mean,
            "frozen_accuracy": frozen.mean,
        }

    def state(self) -> dict[str, Any]:
        """All of it, in JSON's types."""
        return {
            "scores": [score.state() for score in self._scores],
            "awaited": self._awaited.state(),
            "frozen": self.frozen.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        for score, its in zip(self._scores, state["scores"], strict=True):
            score.restore(its)
        self._awaited.restore(state["awaited"])
        self.frozen.restore(state["frozen"])

    @property
    def _scores(self) -> Sequence[Prequential]:
        return self._accuracy, self._loss, self._frozen_accuracy
