"""What each step sees: the new samples, and a draw from the history, as one batch."""

from typing import Any

import numpy as np

from cdl_jax.data import History, ImageData, WindowHistory, history
from cdl_jax.data.history import State
from cdl_jax.train.arrival import Trigger
from cdl_jax.train.config import TrainConfig


class Feed:
    """Chooses the samples of each step and gathers them on the host.

    A batch has one size, whatever arrives, so the step is one program; it is smaller only while
    the history is, and for the online strategy, whose batch is what arrived.
    """

    def __init__(self, config: TrainConfig, data: ImageData):
        self._config, self._data = config, data
        self._sampler = history(config.history, seed=config.seed, size=config.history_size)
        self._sampler.join(data.labels[: config.initial_samples])

    def batch(
        self, trigger: Trigger, version: int, share: float, window: int | None
    ) -> dict[str, np.ndarray]:
        """The batch at `positions` of the same arguments."""
        return self._data.batch(self.positions(trigger, version, share, window))

    def positions(
        self, trigger: Trigger, version: int, share: float, window: int | None
    ) -> np.ndarray:
        """The samples of the step that follows `version`; the trigger's join the history.

        Args:
          trigger: the new samples.
          version: what the draw is a function of.
          share: least share of the batch that are the most recent samples.
          window: draw uniformly from so many samples back, instead of by the policy.

        Returns:
          int64 positions; no fewer than the batch size where there are as many in the history.
        """
        sampler = self._sampler if window is None else WindowHistory(self._config.seed, window)
        return self._chosen(trigger, version, share, sampler)

    def read(self, start: int, stop: int, *, size: int = 0) -> dict[str, np.ndarray]:
        """Samples [start, stop), the last one repeated up to `size`."""
        return self._data.batch(self.span(start, stop, size=size))

    def span(self, start: int, stop: int, *, size: int = 0) -> np.ndarray:
        """Positions of `read`'s samples."""
        return np.minimum(np.arange(start, max(stop, start + size)), stop - 1)

    def state(self) -> State:
        """The sampler's."""
        return self._sampler.state()

    def restore(self, state: State) -> None:
        """Goes on from `state`."""
        self._sampler.restore(state)

    def _chosen(self, trigger: Trigger, version: int, share: float, sampler: History) -> np.ndarray:
        config, labels = self._config, self._data.labels[trigger.start : trigger.stop]
        if config.strategy in ("online", "frozen"):
            return np.arange(trigger.start, trigger.stop)
        if config.strategy == "full":
            return np.arange(trigger.stop)
        if not config.include_new:
            self._sampler.join(labels)
            return sampler.draw(version, trigger.stop, config.batch_size)
        recent = max(trigger.stop - trigger.start, round(share * config.batch_size))
        first = max(0, trigger.stop - recent)
        old = sampler.draw(version, first, config.batch_size - (trigger.stop - first))
        self._sampler.join(labels)
        return np.concatenate([old, np.arange(first, trigger.stop)])


def shapes(config: TrainConfig, data: ImageData) -> Any:
    """A batch of the size that most steps see, for its shapes alone."""
    if config.strategy in ("online", "frozen"):
        return data.batch(np.zeros(config.trigger, np.int64))
    past = config.initial_samples + (0 if config.include_new else config.trigger)
    new = config.trigger if config.include_new else 0
    return data.batch(np.zeros(min(config.batch_size, past + new), np.int64))
