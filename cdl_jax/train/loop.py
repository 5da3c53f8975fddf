"""The continuous loop: score, step, publish, record, trigger by trigger."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.step import StepInfo, TrainState, deployed, make_step
from cdl_jax.core.update import tree_digest
from cdl_jax.data import ImageData, UniformHistory
from cdl_jax.deploy import Publisher
from cdl_jax.errors import TrainingError
from cdl_jax.interrupts import Interrupts
from cdl_jax.models import Classifier
from cdl_jax.train.arrival import Arrivals, Trigger
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.prequential import Prequential
from cdl_jax.train.records import Bar, Records, Summary
from cdl_jax.train.strategies import plan

_FROZEN_BATCH = 500


class _Pending(NamedTuple):
    """A step that is on its way on the device."""

    trigger: Trigger
    right: jax.Array  # bool [samples], by the deployed model before the step
    info: StepInfo


class ContinuousTrainer:
    """Feeds a stream to the step and the step's updates to a log.

    A step's results are fetched while the next one runs, unless the next trigger is not full
    yet or a whole tree is to be hashed or written, which the next step would donate.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageData,
        model: Classifier,
        state: TrainState,
        records: Records,
    ):
        chosen = plan(config)
        self.state, self.summary = state, Summary(strategy=config.strategy)
        self.publisher: Publisher | None = None
        self._config, self._data = config, data
        self._records, self._uses_history = records, chosen.uses_history
        self._sampler = UniformHistory(config.seed)
        self._step = make_step(model.loss_fn, chosen.tx, update=chosen.update)
        self._score = _scorer(model)
        self._deployed_score, self._frozen_score = Prequential(), Prequential()
        self._frozen, self._in_a_row = np.zeros(0, bool), 0
        self._version = int(state.version)
        self._last_version = self._version - (-self.stream_size // config.trigger)
        leaves = jax.tree.leaves(deployed(state))
        self.summary.dense_bytes = sum(x.nbytes for x in leaves)

    def example(self) -> SparseUpdate:
        """The shapes of the updates that the steps will make."""
        first = next(iter(self._arrivals(None)))
        batches = self._batches(first, self._data.batch(slice(first.start, first.stop)))
        return jax.eval_shape(self._step, self.state, *batches)[1].update

    @property
    def stream_size(self) -> int:
        """Samples that the stream will bring."""
        arrivals = self._arrivals(None)
        return arrivals.stop - arrivals.start

    def run(self, bar: Bar) -> Summary:
        """Takes the whole stream; Ctrl-C or SIGTERM ends it between two versions."""
        arrivals = self._arrivals(self._config.pace)
        self._frozen = self._score_frozen(arrivals)
        begun, pending = time.monotonic(), None
        with Interrupts() as interrupts:
            for trigger in interrupts.between(arrivals):
                current = self._dispatch(trigger)
                if pending is not None:
                    self._finish(pending, bar)
                pending = current
                if self._whole_tree_due() or not arrivals.next_is_here():
                    pending = self._finish(pending, bar)
            if pending is not None:
                self._finish(pending, bar)
        self.summary.interrupted = interrupts.came
        self.summary.seconds = time.monotonic() - begun
        self.summary.digest = tree_digest(deployed(self.state))
        return self.summary

    def _arrivals(self, pace: float | None) -> Arrivals:
        config = self._config
        start = config.initial_samples
        stop = min(len(self._data), start + (config.limit or len(self._data)))
        return Arrivals(start, stop, config.trigger, pace)

    def _dispatch(self, trigger: Trigger) -> _Pending:
        new = jax.device_put(self._data.batch(slice(trigger.start, trigger.stop)))
        history, stream = self._batches(trigger, new)
        with jax.transfer_guard("disallow"):
            right = self._score(deployed(self.state), new)
            self.state, info = self._step(self.state, history, stream)
        self._version += 1
        return _Pending(trigger, right, info)

    def _batches(self, trigger: Trigger, new: Any) -> tuple[Any, Any]:
        if not self._uses_history:
            return None, new
        size, past = self._config.batch_size, trigger.stop
        if self._config.include_new:
            size, past = size - (trigger.stop - trigger.start), trigger.start
        index = self._sampler.draw(self._version, past, size)
        history = jax.device_put(self._data.batch(index)) if index.size else None
        return history, new if self._config.include_new else None

    def _finish(self, pending: _Pending, bar: Bar) -> None:
        info: StepInfo = jax.device_get(pending.info)
        made_at = time.time()
        version = int(info.update.version)
        record = {
            "version": version,
            "samples": pending.trigger.stop - pending.trigger.start,
            "correct": int(np.sum(pending.right)),
            "loss": float(info.loss),
            "skipped": bool(info.skipped),
            "entries": int(info.update.counts.sum()),
            "full_at": pending.trigger.full_at,
            "made_at": made_at,
        }
        self._check_skipped(record)
        record |= self._publish(info, version)
        self._count(record, pending.trigger)
        self._records.line(record)
        if self.publisher is not None:
            self.publisher.tell(vars(self.summary))
        bar.show(self.summary, record["samples"])

    def _publish(self, info: StepInfo, version: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self._digest_due(version):
            out["full_digest"] = self._check_digest(info)
        if self.publisher is not None:
            due = self.publisher.snapshot_due(version) or version == self._last_version
            blob = self.publisher.publish(info.update, deployed(self.state) if due else None)
            out["bytes"] = len(blob)
            if self.publisher.outbox.empty:
                out["acknowledged_at"] = time.time()
        return out

    def _check_digest(self, info: StepInfo) -> str:
        full = tree_digest(deployed(self.state))
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

    def _count(self, record: dict[str, Any], trigger: Trigger) -> None:
        self._deployed_score.add(record["correct"], record["samples"])
        offset = self._config.initial_samples
        right = self._frozen[trigger.start - offset : trigger.stop - offset]
        self._frozen_score.add(int(right.sum()), record["samples"])
        summary = self.summary
        summary.versions, summary.samples = record["version"], self._deployed_score.seen
        summary.accuracy = record["accuracy"] = self._deployed_score.accuracy
        summary.frozen_accuracy = record["frozen_accuracy"] = self._frozen_score.accuracy
        summary.bytes_sent += record.get("bytes", 0)

    def _whole_tree_due(self) -> bool:
        publisher = self.publisher
        snapshot = publisher is not None and publisher.snapshot_due(self._version)
        last = self._version == self._last_version
        return snapshot or last or self._digest_due(self._version)

    def _digest_due(self, version: int) -> bool:
        every = self._config.digest_every
        return bool(every) and version % every == 0

    def _score_frozen(self, arrivals: Arrivals) -> np.ndarray:
        """Whether the initial model is right, per sample of the stream; bool[N]."""
        tree, marks = deployed(self.state), [np.zeros(0, bool)]
        for start in range(arrivals.start, arrivals.stop, _FROZEN_BATCH):
            stop = min(start + _FROZEN_BATCH, arrivals.stop)
            marks.append(np.asarray(self._score(tree, self._data.batch(slice(start, stop)))))
        return np.concatenate(marks)


def _scorer(model: Classifier) -> Any:
    def score(tree: Any, batch: Any) -> jax.Array:
        logits = model.predict_fn(tree["params"], tree["model_state"], batch["image"])
        return jnp.argmax(logits, axis=-1) == batch["label"]

    return jax.jit(score)
