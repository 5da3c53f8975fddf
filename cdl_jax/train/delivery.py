"""How versions reach the log, and when a whole tree is hashed, written or kept."""

import time
from typing import Any

import jax
import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.step import StepInfo, TrainState, deployed
from cdl_jax.core.update import tree_digest
from cdl_jax.deploy import Publisher
from cdl_jax.errors import TrainingError
from cdl_jax.train.cluster import Cluster
from cdl_jax.train.config import TrainConfig


class Delivery:
    """Publishes a run's versions and compares full digests with the running ones.

    Args:
      config: of the run.
      cluster: its processes, which must all hold one model.
      keeps: whether the run has checkpoints.

    Attributes:
      publisher: to the log; None publishes nothing.
    """

    def __init__(self, config: TrainConfig, cluster: Cluster, *, keeps: bool):
        self.publisher: Publisher | None = None
        self._config, self._cluster, self._keeps = config, cluster, keeps

    def whole_tree_due(self, version: int) -> bool:
        """Whether the tree of this version is to be hashed, written or kept."""
        publisher = self.publisher
        snapshot = publisher is not None and publisher.snapshot_due(version)
        kept = self._keeps and self.checkpoint_due(version)
        return snapshot or self._digest_due(version) or kept

    def checkpoint_due(self, version: int) -> bool:
        """Whether a checkpoint follows this version, in a run that has them."""
        every = self._config.checkpoint_every
        return bool(every) and version % every == 0

    def deliver(self, info: StepInfo, state: TrainState) -> dict[str, Any]:
        """Publishes a step's update; what its record says of that.

        Args:
          info: the step's, as NumPy arrays.
          state: behind it; read where a whole tree is due.

        Raises:
          TrainingError: when an entry was changed outside the step.
          LogError, StoreError: as `Publisher.publish`.
        """
        out: dict[str, Any] = {}
        version = int(info.update.version)
        if self._digest_due(version):
            out["full_digest"] = self._check_digest(info, state)
        if self.publisher is not None:
            due = self.publisher.snapshot_due(version)
            blob = self.publisher.publish(info.update, self._tree(state) if due else None)
            out["bytes"] = len(blob)
            if self.publisher.outbox.empty:
                out["acknowledged_at"] = time.time()
        return out

    def finish(self, version: int, state: TrainState) -> None:
        """Gives the version that a stream ends with a snapshot."""
        if self.publisher is not None:
            self.publisher.last(
                version, self._tree(state), np.asarray(jax.device_get(state.digest))
            )

    def full_digest(self, version: int, state: TrainState) -> str:
        """Over all entries of this version, on every process the same."""
        full = tree_digest(self._tree(state))
        self._cluster.check_digest(version, digests.from_hex(full))
        return full

    def _tree(self, state: TrainState) -> Any:
        """The deployed tree, made of what this process holds alone: only one publishes."""
        return deployed(self._cluster.local(state))

    def _digest_due(self, version: int) -> bool:
        every = self._config.digest_every
        return bool(every) and version % every == 0

    def _check_digest(self, info: StepInfo, state: TrainState) -> str:
        version = int(info.update.version)
        full, running = self.full_digest(version, state), digests.to_hex(info.update.digest)
        if full != running:
            raise TrainingError(
                f"version {version} has the full digest {full}, its updates lead to {running}: a "
                "parameter was changed outside the step; start again on a new log"
            )
        return full
