"""The settings of a training run."""

import dataclasses
from typing import Any, Literal

from cdl_jax.data import DATASETS
from cdl_jax.deploy.outbox import FailurePolicy, OnFailure
from cdl_jax.deploy.retention import Retention
from cdl_jax.errors import ConfigError
from cdl_jax.models import MODELS

Strategy = Literal["sparse", "proactive", "online"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `cdl-jax train`. The defaults are the paper's, but for sparse updates."""

    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist or cifar10 (from --data-dir)."""
    data_dir: str | None = None
    """Folder of tensorflow_datasets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    model: str = "lenet5"
    """lenet5, resnet18, resnet50, mobilenet_v2 or densenet161."""
    strategy: Strategy = "sparse"
    """sparse: proactive steps, sparse updates. proactive: dense ones. online: new samples only,
    dense updates. The frozen initial model is scored beside each."""
    log: str | None = None
    """Log of versions to publish to: a folder or URL. None publishes nothing."""
    run: str | None = None
    """Folder for metrics.jsonl, summary.json and config.toml. None writes nothing."""
    seed: int = 0
    """Of initial weights, sampling and compression."""
    initial_samples: int = -1
    """Samples of the initial training; the rest is the stream. -1: the data set's default."""
    epochs: int = -1
    """Epochs of the initial training. -1: the data set's default."""
    batch_size: int = 128
    """Samples in a step: the new ones and a sample of the history."""
    trigger: int = -1
    """New samples that trigger a step. -1: 8, or 128 for the online strategy."""
    include_new: bool = True
    """Put all new samples into the batch; else it is drawn from history and new ones alike."""
    learning_rate: float = 1e-3
    """Of Adam with AMSGrad."""
    compressor: Literal["top_k", "random_k", "quantize"] = "top_k"
    """What a sparse update sends: the largest entries, random ones, or all, quantised (QSGD)."""
    density: float = 1e-2
    """Share of the entries that top_k and random_k send, in (0, 1]."""
    scope: Literal["tensor", "global"] = "tensor"
    """Select in each tensor, or over all of them."""
    bits: int = 4
    """Of quantize, sign included, 1 to 16."""
    limit: int | None = None
    """Stop after so many samples of the stream. None: take all."""
    pace: float | None = None
    """Samples a second at which the stream arrives. None: as fast as they are trained on."""
    sign_key: str | None = None
    """PEM file of the key (cdl-jax keygen) that signs the log. None signs nothing."""
    snapshot_every: int = 500
    """Versions between the log's snapshots."""
    snapshot_bytes: int | None = None
    """Bytes of updates after which a snapshot comes sooner. None: never."""
    keep_versions: int | None = None
    """Updates that the log keeps at most, trimmed up to a snapshot. None: all."""
    keep_seconds: float | None = None
    """Age up to which the log keeps updates, in seconds. None: all."""
    keep_bytes: int | None = None
    """Bytes of updates and snapshots that the log keeps at most. None: all."""
    on_log_failure: OnFailure = "stop"
    """While the log's store fails: stop; wait, trying again; or go_on with the training, keeping
    the updates in memory until they can be written."""
    log_patience: float = 60.0
    """Seconds that wait tries, and go_on at the end of the run or of its memory."""
    log_memory: int = 1 << 28
    """Bytes of unwritten updates and snapshots that go_on keeps in memory."""
    digest_every: int = 100
    """Versions between recomputations of the full digest; 0 leaves them to the snapshots."""
    max_skipped: int = 20
    """Stop after so many steps in a row with a non-finite loss or gradient."""

    def checked(self) -> "TrainConfig":
        """The settings with the data set's defaults filled in.

        Raises:
          ConfigError: for a value that cannot be.
        """
        _one_of("dataset", self.dataset, DATASETS)
        _one_of("model", self.model, MODELS)
        kind = DATASETS[self.dataset]
        defaults = {
            "initial_samples": kind.initial_samples,
            "epochs": kind.epochs,
            "trigger": 128 if self.strategy == "online" else 8,
        }
        missing = {name: x for name, x in defaults.items() if getattr(self, name) == -1}
        filled = dataclasses.replace(self, **missing)
        filled._check()
        return filled

    def bits_depend_on(self) -> dict[str, Any]:
        """The settings that the bits of the log depend on: all but places, pace and length."""
        free = ("data_dir", "log", "run", "limit", "pace", "snapshot_every", "digest_every")
        free += ("sign_key", "snapshot_bytes", "keep_versions", "keep_seconds", "keep_bytes")
        free += ("on_log_failure", "log_patience", "log_memory")
        return {name: x for name, x in vars(self).items() if name not in free}

    def retention(self) -> Retention:
        """What the log keeps."""
        return Retention(
            versions=self.keep_versions, seconds=self.keep_seconds, bytes=self.keep_bytes
        )

    def failure_policy(self) -> FailurePolicy:
        """What to do while the log's store fails."""
        return FailurePolicy(
            on_failure=self.on_log_failure, patience=self.log_patience, memory=self.log_memory
        )

    def _check(self) -> None:
        for name in ("initial_samples", "batch_size", "trigger", "snapshot_every", "max_skipped"):
            _at_least(name, getattr(self, name), 1)
        for name in ("epochs", "seed", "digest_every"):
            _at_least(name, getattr(self, name), 0)
        if self.limit is not None:
            _at_least("limit", self.limit, 1)
        if self.snapshot_bytes is not None:
            _at_least("snapshot_bytes", self.snapshot_bytes, 1)
        self.retention()  # it checks its own values, and so does the other
        self.failure_policy()
        if not 0 < self.density <= 1:
            raise ConfigError(f"density is {self.density}; give a share in (0, 1]")
        if not 1 <= self.bits <= 16:
            raise ConfigError(f"bits is {self.bits}; give 1 to 16")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate is {self.learning_rate}; give a number above 0")
        if self.pace is not None and not 0 < self.pace < float("inf"):
            raise ConfigError(f"pace is {self.pace}; give samples a second, above 0")
        if self.strategy != "online" and self.trigger > self.batch_size:
            raise ConfigError(
                f"trigger is {self.trigger}, larger than batch_size {self.batch_size}: the new "
                "samples would not fit; lower the one or raise the other"
            )


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; give one of {', '.join(known)}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; give {least} or more")
