"""The continuous loop: score, step, publish, record, trigger by trigger."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.step import StepInfo, deployed
from cdl_jax.core.update import tree_digest
from cdl_jax.data import ImageData
from cdl_jax.deploy import Publisher
from cdl_jax.errors import TrainingError
from cdl_jax.interrupts import Interrupts
from cdl_jax.models import Classifier
from cdl_jax.train.arrival import Arrivals, Trigger
from cdl_jax.train.cluster import Cluster
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.drift import Watch
from cdl_jax.train.feed import Feed, shapes
from cdl_jax.train.frozen import FrozenModel
from cdl_jax.train.initial import Trained
from cdl_jax.train.prequential import Awaited, Prequential
from cdl_jax.train.records import Bar, Records, Summary
from cdl_jax.train.resume import Start, Writer
from cdl_jax.train.steps import stepper

_AT_ONCE = 500  # samples that are scored by one call, where very many arrive


class _Pending(NamedTuple):
    """A step that is on its way on the device."""

    trigger: Trigger
    scores: (
        Any  # right: bool, loss: float [arrived and more], of the deployed model before the step
    )
    arrived: int
    info: StepInfo


class ContinuousTrainer:
    """Feeds a stream to the step and the step's updates to a log.

    A step's results are fetched while the next one runs, unless the next trigger is not full
    yet or a whole tree is to be hashed, written or kept, which the next step would donate.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageData,
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
        self.publisher: Publisher | None = None
        self._config, self._records, self._writer = config, records, writer
        self._shapes = shapes(config, data)
        self._feed = Feed(config, data)
        self._steps = stepper(config, model.loss_fn, untrained, self._cluster.replicated)
        self._score = _scorer(model, self._cluster.replicated)
        self._accuracy, self._loss, self._frozen_accuracy = (Prequential() for _ in range(3))
        self._awaited, self._watch, self._in_a_row = Awaited(), Watch(config), 0
        self._version = int(start.state.version)
        self._stop = min(len(data), config.initial_samples + (config.limit or len(data)))
        self._position = config.initial_samples
        self._frozen = FrozenModel(start.initial, _scorer(model), self._feed.read, self._stop)
        self.summary.dense_bytes = sum(x.nbytes for x in jax.tree.leaves(start.initial))
        if start.progress is not None:
            self._restore(start)
        self._meet(self._position + self._awaited.count, self._position + config.label_delay)

    def example(self) -> SparseUpdate:
        """The shapes of the updates that the steps will make."""
        return self._steps.example(self.state, self._shapes)

    @property
    def _arriving_most(self) -> int:
        config = self._config
        return config.trigger if config.trigger_seconds is None else config.batch_size

    @property
    def left(self) -> int:
        """Samples that the stream will still bring."""
        return self._stop - self._position

    def run(self, bar: Bar) -> Summary:
        """Takes the whole stream; Ctrl-C or SIGTERM ends it between two versions."""
        self._steps.tell = lambda note: bar.advance(0, note)
        if self.left:
            self._warm_up()
        arrivals = self._arrivals()
        begun, before, pending = time.monotonic(), self.summary.seconds, None
        with Interrupts() as interrupts:
            for trigger in self._cluster.led(interrupts.between(arrivals)):
                current = self._dispatch(trigger)
                if pending is not None:
                    self._finish(pending, bar)
                pending = current
                if self._whole_tree_due(trigger) or not arrivals.next_is_here():
                    pending = self._finish(pending, bar)
            if pending is not None:
                self._finish(pending, bar)
        self.summary.interrupted = interrupts.came
        self.summary.seconds = before + time.monotonic() - begun
        self.summary.digest = self._full_digest()
        self._cluster.check_digest(self._version, digests.from_hex(self.summary.digest))
        return self.summary

    def keep(self) -> None:
        """Begins to write a checkpoint of the state between two versions.

        Not while the log lacks a version: a resume would have to make it from nothing.
        """
        acknowledged = self.publisher is None or self.publisher.outbox.empty
        if self._writer is not None and acknowledged:
            state = self._steps.as_usual(self._cluster.local(self.state))
            self._writer.save(self._version, state, self._feed.state(), self._progress())

    def _warm_up(self) -> None:
        """Compiles what a trigger needs; once the clock runs, samples would wait for it."""
        sample = self._feed.read(self._position, self._position + 1, size=self._arriving_most)
        with self._cluster.over():
            self._steps.warm_up(self.state, self._cluster.put(self._shapes))
            self._score(deployed(self.state), self._cluster.put(sample))
        self._frozen.right(self._position, self._position + 1)

    def _arrivals(self) -> Arrivals:
        return Arrivals(
            self._position, self._stop, self._arriving_most, self._config.pace,
            seconds=self._config.trigger_seconds,
            recorded=self._records.triggers_after(self._version),
        )  # fmt: skip

    def _dispatch(self, trigger: Trigger) -> _Pending:
        # Written before anything depends on it: a replay must cut the stream at the same places.
        self._records.trigger(self._version + 1, trigger.stop)
        arrived, new = self._arriving(trigger)
        new, batch = self._cluster.put(new), self._cluster.put(self._batch(trigger))
        self.state = self._steps.prepare(self.state, self._watch, self._version + 1, trigger.start)
        with self._cluster.over(), jax.transfer_guard("disallow"):
            scores = self._score(deployed(self.state), new)
            self.state, info = self._steps.take(self.state, batch)
        self._version, self._position = self._version + 1, trigger.stop
        return _Pending(trigger, scores, arrived, info)

    def _arriving(self, trigger: Trigger) -> tuple[int, Any]:
        """The samples that come with the trigger's labels, in a batch of one size."""
        delay, most = self._config.label_delay, self._arriving_most
        start, stop = (min(x + delay, self._stop) for x in trigger[:2])
        return stop - start, self._feed.read(min(start, self._stop - 1), stop, size=most)

    def _batch(self, trigger: Trigger) -> Any:
        config, answers = self._config, self._watch.answers
        share, window = config.new_share, None
        if answers("share", self._version + 1, trigger.start):
            share = max(share, config.drift_share)
        if answers("window", self._version + 1, trigger.start):
            window = config.drift_window
        return self._feed.batch(trigger, self._version, share=share, window=window)

    def _meet(self, start: int, stop: int) -> None:
        """Scores the samples that arrive before the first label."""
        if start < min(stop, self._stop):
            batch = self._cluster.put(self._feed.read(start, min(stop, self._stop)))
            with self._cluster.over():
                scores = self._score(deployed(self.state), batch)
            self._await(scores, min(stop, self._stop) - start)

    def _await(self, scores: Any, count: int) -> None:
        right, loss = (np.asarray(x)[:count].tolist() for x in scores)
        self._awaited.predicted(zip(map(int, right), loss, strict=True))

    def _finish(self, pending: _Pending, bar: Bar) -> None:
        info: StepInfo = jax.device_get(pending.info)
        made_at = time.time()
        version, samples = int(info.update.version), pending.trigger.stop - pending.trigger.start
        self._await(pending.scores, pending.arrived)
        scored = self._awaited.labelled(samples)
        record = {
            "version": version,
            "position": pending.trigger.stop,
            "samples": samples,
            "correct": sum(right for right, _ in scored),
            "prequential_loss": sum(loss for _, loss in scored) / samples,
            "loss": float(info.loss),
            "metrics": jax.tree.map(float, info.metrics),
            "skipped": bool(info.skipped),
            "entries": int(info.update.counts.sum()),
            "full_at": pending.trigger.full_at,
            "made_at": made_at,
        }
        self._check_skipped(record)
        record |= self._publish(info, pending.trigger)
        self._count(record, pending.trigger, scored)
        self._records.line(record)
        if self.publisher is not None:
            self.publisher.tell(vars(self.summary))
        if self._checkpoint_due(version):
            self.keep()
        bar.show(self.summary, samples)

    def _publish(self, info: StepInfo, trigger: Trigger) -> dict[str, Any]:
        out: dict[str, Any] = {}
        version = int(info.update.version)
        if self._digest_due(version):
            out["full_digest"] = self._check_digest(info)
        if self.publisher is not None:
            due = self.publisher.snapshot_due(version) or trigger.stop == self._stop
            blob = self.publisher.publish(info.update, deployed(self.state) if due else None)
            out["bytes"] = len(blob)
            if self.publisher.outbox.empty:
                out["acknowledged_at"] = time.time()
        return out

    def _full_digest(self) -> str:
        return tree_digest(deployed(self._cluster.local(self.state)))

    def _check_digest(self, info: StepInfo) -> str:
        full = self._full_digest()
        self._cluster.check_digest(int(info.update.version), digests.from_hex(full))
        running = digests.to_hex(info.update.digest)
        if full != running:
            raise TrainingError(
                f"version {int(info.update.version)} has the full digest {full}, its updates lead "
                f"to {running}: a parameter was changed outside the step; start again on a new log"
            )
        self.summary.full_digests += 1
        return full

    def _check_skipped(self, record: dict[str, Any]) -> None:
        self.summary.skipped += record["skipped"]
        self._in_a_row = self._in_a_row + 1 if record["skipped"] else 0
        if self._in_a_row >= self._config.max_skipped:
            raise TrainingError(
                f"{self._in_a_row} steps in a row had a non-finite loss or gradient and were "
                "skipped; lower --learning-rate, or raise --max-skipped"
            )

    def _count(self, record: dict[str, Any], trigger: Trigger, scored: list[Any]) -> None:
        accuracy, loss, frozen = self._accuracy, self._loss, self._frozen_accuracy
        accuracy.add(right for right, _ in scored)
        loss.add(value for _, value in scored)
        frozen.add(self._frozen.right(trigger.start, trigger.stop))
        summary = self.summary
        if self._watch.update(record):
            record["drift"], summary.drifts = True, summary.drifts + 1
        summary.versions, summary.samples = record["version"], accuracy.seen
        summary.accuracy = record["accuracy"] = accuracy.mean
        summary.loss = loss.mean
        record["window_accuracy"] = accuracy.window_mean
        record["fading_accuracy"], record["fading_loss"] = accuracy.fading_mean, loss.fading_mean
        summary.frozen_accuracy = record["frozen_accuracy"] = frozen.mean
        summary.bytes_sent += record.get("bytes", 0)

    def _whole_tree_due(self, trigger: Trigger) -> bool:
        publisher, version = self.publisher, self._version
        snapshot = publisher is not None and publisher.snapshot_due(version)
        due = snapshot or self._digest_due(version) or self._checkpoint_due(version)
        return due or trigger.stop == self._stop

    def _digest_due(self, version: int) -> bool:
        every = self._config.digest_every
        return bool(every) and version % every == 0

    def _checkpoint_due(self, version: int) -> bool:
        every = self._config.checkpoint_every
        return self._writer is not None and bool(every) and version % every == 0

    def _progress(self) -> dict[str, Any]:
        return {
            "position": self._position,
            "scores": [s.state() for s in (self._accuracy, self._loss, self._frozen_accuracy)],
            "awaited": self._awaited.state(),
            "frozen": self._frozen.state(),
            "in_a_row": self._in_a_row,
            "summary": vars(self.summary).copy(),
            "metrics_bytes": self._records.position(),
            "bytes_since": 0 if self.publisher is None else self.publisher.bytes_since,
        }

    def _restore(self, start: Start) -> None:
        progress: Any = start.progress
        self._position = progress["position"]
        scores = (self._accuracy, self._loss, self._frozen_accuracy)
        for score, state in zip(scores, progress["scores"], strict=True):
            score.restore(state)
        self._awaited.restore(progress["awaited"])
        self._frozen.restore(progress["frozen"])
        self._in_a_row = progress["in_a_row"]
        self.summary = Summary(**progress["summary"])
        self._feed.restore(start.sampler)
        for record in start.records:
            self._watch.update(record)


def _scorer(model: Classifier, sharding: Any = None) -> Any:
    def score(tree: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Whether each sample is right, and its loss."""
        logits = model.predict_fn(tree["params"], tree["model_state"], batch["image"])
        labels = batch["label"]
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.argmax(logits, axis=-1) == labels, loss

    one_call = jax.jit(score, out_shardings=sharding)

    def in_pieces(tree: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        count = len(batch["label"])
        if count <= 2 * _AT_ONCE:
            return one_call(tree, batch)
        cuts = [(first, min(first + _AT_ONCE, count)) for first in range(0, count, _AT_ONCE)]
        parts = [one_call(tree, _part(batch, *cut)) for cut in cuts]
        right, loss = zip(*parts, strict=True)
        return jnp.concatenate(right), jnp.concatenate(loss)

    return in_pieces


def _part(batch: Any, first: int, end: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, first, end), batch)
