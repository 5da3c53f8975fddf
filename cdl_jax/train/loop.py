"""The continuous loop: score, step, publish, record, trigger by trigger."""

import collections
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from cdl_jax.core.layout import SparseUpdate
from cdl_jax.data.live import END, LiveData
from cdl_jax.data.samples import Samples
from cdl_jax.errors import TrainingError
from cdl_jax.interrupts import Interrupts
from cdl_jax.models import Classifier
from cdl_jax.train.arrival import Arrivals, LiveArrivals, Trigger
from cdl_jax.train.cluster import Cluster
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.delivery import Delivery
from cdl_jax.train.drift import Watch
from cdl_jax.train.frozen import FrozenModel
from cdl_jax.train.initial import Trained
from cdl_jax.train.progress import Bar, Summary
from cdl_jax.train.records import Records
from cdl_jax.train.resume import Start, Writer
from cdl_jax.train.scorecard import Scorecard, Scored, finite_losses
from cdl_jax.train.scoring import scorer
from cdl_jax.train.taker import Pending, Taker

_FROZEN_AHEAD = 500  # samples that the initial model scores at a time


class ContinuousTrainer:
    """Feeds a stream to the step and the step's updates to a log.

    A step's results are fetched while the next one runs, unless the next trigger is not full
    yet or a whole tree is to be hashed, written or kept, which the next step would donate.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Samples,
        model: Classifier,
        start: Start,
        untrained: Callable[[], Trained],
        records: Records,
        writer: Writer | None = None,
        cluster: Cluster | None = None,
    ):
        self._cluster = cluster or Cluster()
        self.state = self._cluster.replicate(start.state)
        self.summary = Summary(strategy=config.strategy)
        self.delivery = Delivery(config, self._cluster, keeps=writer is not None)
        self._config, self._records, self._writer = config, records, writer
        self._watch, self._in_a_row, self._data = Watch(config), 0, data
        self._taker = Taker(
            config, data, model, untrained, self._cluster, self._watch, lambda: self._stop
        )
        self._version = int(start.state.version)
        self._kept_from = collections.deque[int](maxlen=config.keep_checkpoints + 1)
        self._position = config.initial_samples
        ahead = self._taker.arriving_most if self._live else _FROZEN_AHEAD
        read, score = self._taker.feed.read, scorer(model)
        frozen = FrozenModel(start.initial, score, read, self._here, ahead)
        self._scores = Scorecard(frozen, config.window, config.fading_factor)
        self.summary.dense_bytes = sum(x.nbytes for x in jax.tree.leaves(start.initial))
        if start.progress is not None:
            self._restore(start)
        self._meet(self._position + self._scores.awaited, self._position + config.label_delay)

    def example(self) -> SparseUpdate:
        """The shapes of the updates that the steps will make."""
        return self._taker.example(self.state)

    @property
    def left(self) -> int | None:
        """Samples that the stream will still bring; None where nobody knows."""
        return None if self._stop >= END else self._stop - self._position

    @property
    def _live(self) -> bool:
        return isinstance(self._data, LiveData)

    @property
    def _stop(self) -> int:
        """Where the run ends; `END` or more while a live stream goes on."""
        whole = self._data.stop if isinstance(self._data, LiveData) else len(self._data)
        return min(whole, self._config.initial_samples + (self._config.limit or END))

    def _here(self) -> int:
        return min(self._stop, len(self._data))

    def run(self, bar: Bar) -> Summary:
        """Takes the whole stream; Ctrl-C or SIGTERM ends it between two versions."""
        self._taker.steps.tell = lambda note: bar.advance(0, note)
        if self.left != 0:
            self._warm_up()
        arrivals = self._arrivals()
        begun, before = time.monotonic(), self.summary.seconds
        pending: list[Pending] = []
        with Interrupts() as interrupts:
            triggers = self._cluster.led(interrupts.between(arrivals))
            for some in self._together(triggers, arrivals):
                current = self._dispatch(some)
                self._finish_all(pending, bar)
                pending = current
                if self.delivery.whole_tree_due(self._version) or not arrivals.next_is_here():
                    pending = self._finish_all(pending, bar)
            self._finish_all(pending, bar)
            if self._position == self._stop:  # known of a live stream only now
                self.delivery.finish(self._version, self.state)
        self.summary.interrupted = interrupts.came
        self.summary.seconds = before + time.monotonic() - begun
        self.summary.digest = self.delivery.full_digest(self._version, self.state)
        return self.summary

    def keep(self) -> None:
        """Begins to write a checkpoint of the state between two versions.

        Not while the log lacks a version: a resume would have to make it from nothing.
        """
        publisher = self.delivery.publisher
        acknowledged = publisher is None or publisher.outbox.empty
        if self._writer is not None and acknowledged:
            state = self._cluster.local(self.state)
            self._writer.save(self._version, state, self._taker.feed.state(), self._progress())
            self._forget()

    def _forget(self) -> None:
        """Lets go what neither this run nor a resume from a checkpoint that stays will draw."""
        self._kept_from.append(self._taker.feed.oldest(self._position))
        if len(self._kept_from) == self._kept_from.maxlen:
            self._taker.feed.forget(self._kept_from[0])

    def _warm_up(self) -> None:
        """Compiles what a trigger needs; once the clock runs, samples would wait for it."""
        if not self._live:
            self._scores.frozen.right(self._position, self._position + 1)
        self._taker.warm_up(self.state, self._position)

    def _arrivals(self) -> Arrivals | LiveArrivals:
        recorded = self._records.triggers_after(self._version)
        if isinstance(self._data, LiveData):
            return LiveArrivals(
                self._position, self._data, self._taker.arriving_most, lambda: self._stop,
                delay=self._config.label_delay, seconds=self._config.trigger_seconds,
                recorded=recorded, size=self._size,
            )  # fmt: skip
        return Arrivals(
            self._position, self._stop, self._taker.arriving_most, self._config.pace,
            seconds=self._config.trigger_seconds, recorded=recorded, size=self._size,
        )  # fmt: skip

    def _size(self, position: int) -> int:
        sooner = self._watch.answers("trigger", self._version + 1, position)
        return self._config.drift_trigger if sooner else self._taker.arriving_most

    def _together(
        self, triggers: Iterable[Trigger], arrivals: Arrivals | LiveArrivals
    ) -> Iterator[list[Trigger]]:
        """Triggers that run as one program: a few that are here already, or one."""
        some: list[Trigger] = []
        for trigger in triggers:
            some.append(trigger)
            due = self.delivery.whole_tree_due(self._version + len(some))
            if len(some) >= self._config.scan or due or not arrivals.next_is_here():
                yield some
                some = []
        if some:
            yield some

    def _dispatch(self, some: Sequence[Trigger]) -> list[Pending]:
        # Written before anything depends on it: a replay must cut the stream at the same places.
        for ahead, trigger in enumerate(some):
            self._records.trigger(self._version + 1 + ahead, trigger.stop)
        self.state, pending = self._taker.take(self.state, some, self._version)
        self._version, self._position = self._version + len(some), some[-1].stop
        return pending

    def _meet(self, start: int, stop: int) -> None:
        """Scores the samples that arrive before the first label."""
        stop = min(stop, self._stop)
        if start < stop and isinstance(self._data, LiveData):
            stop = min(stop, self._data.wait(stop))
        if start < stop:
            self._scores.predicted(self._taker.score(self.state, start, stop), stop - start)

    def _finish_all(self, pending: Sequence[Pending], bar: Bar) -> list[Pending]:
        for one in pending:
            self._finish(one, bar)
        return []

    def _finish(self, pending: Pending, bar: Bar) -> None:
        scores, info = pending.outcome()
        made_at = time.time()
        version, samples = int(info.update.version), pending.trigger.stop - pending.trigger.start
        self._scores.predicted(scores, pending.arrived)
        scored = self._scores.labelled(samples)
        losses = finite_losses(scored)
        record = {
            "version": version,
            "position": pending.trigger.stop,
            "samples": samples,
            "correct": sum(right for right, _, _ in scored),
            "prequential_loss": sum(losses) / len(losses) if losses else None,
            "nonfinite_losses": samples - len(losses),
            "loss": float(info.loss),
            "metrics": jax.tree.map(float, info.metrics),
            "skipped": bool(info.skipped),
            "entries": int(info.update.counts.sum()),
            "first_at": pending.trigger.first_at,
            "full_at": pending.trigger.full_at,
            "made_at": made_at,
        }
        self._check_skipped(record)
        record |= self.delivery.deliver(info, self.state)
        self._count(record, pending.trigger, scored, losses)
        self._records.line(record)
        if self.delivery.publisher is not None:
            self.delivery.publisher.tell(vars(self.summary))
        if self.delivery.checkpoint_due(version):
            self.keep()
            if self._writer is None:
                self._forget()
        bar.show(self.summary, samples)

    def _check_skipped(self, record: dict[str, Any]) -> None:
        self.summary.skipped += record["skipped"]
        self._in_a_row = self._in_a_row + 1 if record["skipped"] else 0
        if self._in_a_row >= self._config.max_skipped:
            raise TrainingError(
                f"{self._in_a_row} steps in a row had a non-finite loss or gradient and were "
                "skipped; lower --learning-rate, or raise --max-skipped"
            )

    def _count(
        self, record: dict[str, Any], trigger: Trigger, scored: Scored, losses: list[float]
    ) -> None:
        summary = self.summary
        if self._watch.update(record):
            record["drift"], summary.drifts = True, summary.drifts + 1
        record |= self._scores.count(scored, losses, trigger, summary)
        summary.versions = record["version"]
        summary.bytes_sent += record.get("bytes", 0)
        summary.full_digests += "full_digest" in record
        summary.nonfinite_losses += record["nonfinite_losses"]

    def _progress(self) -> dict[str, Any]:
        publisher = self.delivery.publisher
        return {
            "position": self._position,
            "scores": self._scores.state(),
            "in_a_row": self._in_a_row,
            "summary": vars(self.summary).copy(),
            "metrics_bytes": self._records.position(),
            "bytes_since": 0 if publisher is None else publisher.bytes_since,
        }

    def _restore(self, start: Start) -> None:
        progress: Any = start.progress
        self._position = progress["position"]
        self._scores.restore(progress["scores"])
        self._in_a_row = progress["in_a_row"]
        self.summary = Summary(**progress["summary"])
        self._taker.feed.restore(start.sampler)
        for record in start.records:
            self._watch.update(record)
