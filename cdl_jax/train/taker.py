"""Takes the steps of triggers: gathers their samples, scores what arrived, dispatches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.step import TrainState, deployed
from cdl_jax.data.samples import Samples
from cdl_jax.models import Classifier
from cdl_jax.train.arrival import Trigger
from cdl_jax.train.cluster import Cluster
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.drift import Watch
from cdl_jax.train.feed import Feed, shapes
from cdl_jax.train.initial import Trained
from cdl_jax.train.inputs import metrics_for
from cdl_jax.train.scanned import Positions, Scan
from cdl_jax.train.scoring import Scores
from cdl_jax.train.steps import strategy
from cdl_jax.train.strategies import Outcome


class Pending(NamedTuple):
    """A step that is on its way on the device."""

    trigger: Trigger
    arrived: int  # of the scored samples; the rest only fill up
    outcome: Outcome  # scores are the deployed model's before it


class Taker:
    """A step for each trigger, or one compiled loop for a few.

    Args:
      config, data, model: of the run.
      untrained: where a full retraining starts.
      cluster: where the steps run.
      watch: says what answers to a drift.
      stop: gives the end of the stream.

    Attributes:
      feed: chooses and gathers the samples.
      steps: the strategy's.
      arriving_most: samples that a trigger brings at most.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Samples,
        model: Classifier,
        untrained: Callable[[], Trained],
        cluster: Cluster,
        watch: Watch,
        stop: Callable[[], int],
    ):
        self.feed = Feed(config, data)
        self.arriving_most = config.trigger if config.trigger_seconds is None else config.batch_size
        self._config, self._cluster, self._watch, self._stop = config, cluster, watch, stop
        self._shapes = shapes(config, data)
        metrics = metrics_for(config)
        self.steps = strategy(config, model, untrained, cluster.replicated, metrics)
        self._scan = None
        if config.scan > 1:
            self._scan = Scan(config, data.batch(np.arange(len(data))), model, metrics)

    def example(self, state: TrainState) -> SparseUpdate:
        """The shapes of the updates that the steps will make."""
        return self.steps.example(state, self._shapes)

    def warm_up(self, state: TrainState, position: int) -> None:
        """Compiles what a trigger needs, with a sample from before `position`; the state stays."""
        if self._scan is not None:
            row = (np.zeros(n, np.int64) for n in (self.arriving_most, self._config.batch_size))
            return self._scan.warm_up(state, Positions(*row))
        new = self.feed.read(position - 1, position, size=self.arriving_most)
        with self._cluster.over():
            self.steps.warm_up(state, self._cluster.put(self._shapes), self._cluster.put(new))

    def take(
        self, state: TrainState, some: Sequence[Trigger], version: int
    ) -> tuple[TrainState, list[Pending]]:
        """The steps of some triggers behind `version`: one, or up to `config.scan`."""
        if self._scan is not None:
            return self._block(self._scan, state, some, version)
        return self._step(state, some[0], version)

    def score(self, state: TrainState, start: int, stop: int) -> Scores:
        """Of the deployed model on samples [start, stop)."""
        batch = self._cluster.put(self.feed.read(start, stop))
        with self._cluster.over():
            return self.steps.scorer(deployed(state), batch)()

    def _step(
        self, state: TrainState, trigger: Trigger, version: int
    ) -> tuple[TrainState, list[Pending]]:
        start, stop = self._arriving(trigger)
        first, size = min(start, self._stop() - 1), self.arriving_most
        new = self._cluster.put(self.feed.read(first, stop, size=size))
        batch = self._cluster.put(self.feed.batch(*self._draw(trigger, version)))
        state = self.steps.prepare(state, self._watch, version + 1, trigger.start)
        with self._cluster.over(), jax.transfer_guard_device_to_host("disallow"):
            state, outcome = self.steps.take(state, batch, new)
        return state, [Pending(trigger, stop - start, outcome)]

    def _block(
        self, scan: Scan, state: TrainState, some: Sequence[Trigger], version: int
    ) -> tuple[TrainState, list[Pending]]:
        rows, arrived = [], []
        for ahead, trigger in enumerate(some):
            start, stop = self._arriving(trigger)
            first = min(start, self._stop() - 1)
            arriving = self.feed.span(first, stop, size=self.arriving_most)
            rows.append(
                Positions(arriving, self.feed.positions(*self._draw(trigger, version + ahead)))
            )
            arrived.append(stop - start)
        state, outcomes = scan.take(state, rows)
        return state, [
            Pending(trigger, count, lambda place=place: outcomes.at(place))
            for place, (trigger, count) in enumerate(zip(some, arrived, strict=True))
        ]

    def _arriving(self, trigger: Trigger) -> tuple[int, int]:
        """Start and stop of the samples that come with the trigger's labels."""
        start, stop = (min(x + self._config.label_delay, self._stop()) for x in trigger[:2])
        return start, stop

    def _draw(self, trigger: Trigger, version: int) -> tuple[Any, ...]:
        """What the feed's draw of the step behind `version` depends on."""
        config, answers = self._config, self._watch.answers
        share, window = config.new_share, None
        if answers("share", version + 1, trigger.start):
            share = max(share, config.drift_share)
        if answers("window", version + 1, trigger.start):
            window = config.drift_window
        return trigger, version, share, window
