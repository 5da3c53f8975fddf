"""What each step sees: the new samples, and a draw from the history, as one batch."""

from typing import Any

import numpy as np

from cdl_jax.data import History, WindowHistory, history
from cdl_jax.data.history import State
from cdl_jax.data.live import LiveData
from cdl_jax.data.samples import Samples
from cdl_jax.train.arrival import Trigger
from cdl_jax.train.config import TrainConfig

_ROWS = "row of "


class Feed:
    """Chooses the samples of each step and gathers them on the host.

    A batch has one size, whatever arrives, so the step is one program; it is smaller only while
    the history is, and for the online strategy, whose batch is what arrived.
    """

    def __init__(self, config: TrainConfig, data: Samples):
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
        """The sampler's, and what it keeps of a live stream."""
        return with_rows(self._sampler.state(), self._data)

    def restore(self, state: State) -> None:
        """Goes on from `state`."""
        self._sampler.restore(state)
        if isinstance(self._data, LiveData) and "kept" in state:
            spool = self._data.spool
            # A checkpoint holds the bits of floats.
            rows = {n: state[_ROWS + n].view(dtype) for n, (dtype, _) in spool.fields.items()}
            spool.restore(state["kept"], rows)

    def oldest(self, position: int) -> int:
        """No step behind this position needs older samples, but those that a reservoir keeps."""
        config, reach = self._config, self._config.batch_size
        if "window" in config.reactions():
            reach = max(reach, config.drift_window)
        if config.strategy in ("online", "frozen"):
            return max(0, position - reach)  # they draw nothing
        if config.strategy == "full" or config.history in ("uniform", "inverse_use", "balanced"):
            return 0
        past = {"window": config.history_size, "exponential": 40 * config.history_size}
        return max(0, position - max(reach, past.get(config.history, 0)))

    def forget(self, before: int) -> None:
        """Lets samples of a live stream go, but for the initial training's.

        From these a resume learns shapes, classes and scales.
        """
        if isinstance(self._data, LiveData):
            kept, start = self._sampler.state().get("kept", ()), self._config.initial_samples
            self._data.spool.forget(before, kept, start=start)

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


def with_rows(state: State, data: Samples) -> State:
    """A sampler's state, with the rows of a live stream that only it keeps from going."""
    if not isinstance(data, LiveData) or "kept" not in state:
        return state
    return state | {_ROWS + n: x for n, x in data.spool.batch(state["kept"]).items()}


def shapes(config: TrainConfig, data: Samples) -> Any:
    """A batch of the size that most steps see, for its shapes alone."""
    if config.strategy in ("online", "frozen"):
        return data.batch(np.zeros(config.trigger, np.int64))
    past = config.initial_samples + (0 if config.include_new else config.trigger)
    new = config.trigger if config.include_new else 0
    return data.batch(np.zeros(min(config.batch_size, past + new), np.int64))
