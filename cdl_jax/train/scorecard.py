"""What a run has scored so far: the deployed model, and the initial one on the same samples."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cdl_jax.train.arrival import Trigger
from cdl_jax.train.frozen import FrozenModel
from cdl_jax.train.prequential import Awaited, Prequential
from cdl_jax.train.progress import Summary
from cdl_jax.train.scoring import Scores

# Of each labelled sample: right (1, 0 or a score), loss, and what the user's metrics know of it.
Scored = list[tuple[Any, float, dict[str, float]]]
_NONE: dict[str, float] = {}


class Scorecard:
    """Prequential accuracy, loss and metrics, counted when the labels come.

    A loss that is not finite is counted, and left out of the means: one would be in them for ever.

    Args:
      frozen: the initial model.
      window, fading_factor: see `Prequential`.
    """

    def __init__(self, frozen: FrozenModel, window: int, fading_factor: float):
        self.frozen, self._awaited = frozen, Awaited()
        self._score = functools.partial(Prequential, window=window, fading_factor=fading_factor)
        self._accuracy, self._loss, self._frozen_accuracy = (self._score() for _ in range(3))
        self._metrics: dict[str, Prequential] = {}  # by name, each from its first value on

    @property
    def awaited(self) -> int:
        """Samples that wait for their labels."""
        return self._awaited.count

    def predicted(self, scores: Scores, count: int) -> None:
        """The first `count` of these scores are of samples that arrived; the rest fill up."""
        right, loss = (np.asarray(x)[:count].tolist() for x in scores[:2])
        metrics = _by_sample(scores.metrics, count)
        self._awaited.predicted(zip((x * 1 for x in right), loss, metrics, strict=True))

    def labelled(self, samples: int) -> Scored:
        """The labels of so many samples arrived; their scores."""
        return self._awaited.labelled(samples)

    def count(
        self, scored: Scored, losses: list[float], trigger: Trigger, summary: Summary
    ) -> dict[str, Any]:
        """Counts a trigger's scores into the summary; what its record says of them.

        Args:
          scored, losses: see `labelled` and `finite_losses`.
          trigger: of these samples.
          summary: counts on in it.
        """
        accuracy, loss, frozen = self._accuracy, self._loss, self._frozen_accuracy
        accuracy.add(right for right, _, _ in scored)
        loss.add(losses)
        frozen.add(self.frozen.right(trigger.start, trigger.stop))
        summary.samples = accuracy.seen
        summary.accuracy, summary.loss = accuracy.mean, loss.mean
        summary.frozen_accuracy = frozen.mean
        return {
            "accuracy": accuracy.mean,
            "window_accuracy": accuracy.window_mean,
            "fading_accuracy": accuracy.fading_mean,
            "mean_loss": loss.mean,
            "window_loss": loss.window_mean,
            "fading_loss": loss.fading_mean,
            "frozen_accuracy": frozen.mean,
        } | self._count_metrics(scored, summary)

    def _count_metrics(self, scored: Scored, summary: Summary) -> dict[str, dict[str, float]]:
        """The user's, which not every sample need have."""
        out: dict[str, float] = {}
        for name in dict.fromkeys(name for _, _, own in scored for name in own):
            score = self._metrics.setdefault(name, self._score())
            score.add(own[name] for _, _, own in scored if name in own)
            summary.metrics = {**summary.metrics, name: score.mean}
            out |= {name: score.mean, f"window_{name}": score.window_mean}
            out[f"fading_{name}"] = score.fading_mean
        return {"scores": out} if out else {}

    def state(self) -> dict[str, Any]:
        """All of it, in JSON's types."""
        return {
            "scores": [score.state() for score in self._scores],
            "metrics": {name: score.state() for name, score in self._metrics.items()},
            "awaited": self._awaited.state(),
            "frozen": self.frozen.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        for score, its in zip(self._scores, state["scores"], strict=True):
            score.restore(its)
        for name, its in state["metrics"].items():
            self._metrics.setdefault(name, self._score()).restore(its)
        self._awaited.restore(state["awaited"])
        self.frozen.restore(state["frozen"])

    @property
    def _scores(self) -> Sequence[Prequential]:
        return self._accuracy, self._loss, self._frozen_accuracy


def finite_losses(scored: Scored) -> list[float]:
    """The losses that can be counted."""
    return [loss for _, loss, _ in scored if math.isfinite(loss)]


def _by_sample(metrics: dict[str, Any], count: int) -> list[dict[str, float]]:
    if not metrics:
        return [_NONE] * count
    columns = {name: np.asarray(x)[:count].tolist() for name, x in metrics.items()}
    return [
        {name: x for name, x in zip(columns, row, strict=True) if math.isfinite(x)}
        for row in zip(*columns.values(), strict=True)
    ]
