"""The settings of a training run."""

import dataclasses
from typing import Any, Literal

from cdl_jax.data import DATASETS, POLICIES, SCENARIOS
from cdl_jax.data.sources import Kind
from cdl_jax.deploy.outbox import FailurePolicy, OnFailure
from cdl_jax.deploy.retention import Retention
from cdl_jax.errors import ConfigError
from cdl_jax.models import MODELS
from cdl_jax.models.torchvision import content_digest
from cdl_jax.train.tracking import TRACKERS

Policy = Literal["uniform", "window", "exponential", "inverse_use", "balanced", "reservoir"]
Strategy = Literal["sparse", "proactive", "online", "full", "frozen"]
OWN = ("numpy", "parquet", "hf", "redis", "rediss", "iterator")  # data sets of one's own
REACTIONS = ("share", "density", "window", "reset")

# The bits do not depend on these.
_FREE = (
    "data_dir", "log", "run", "limit", "pace", "snapshot_every", "digest_every",
    "checkpoint_every", "keep_checkpoints", "new_lineage", "snapshot_bytes", "keep_versions",
    "keep_seconds", "keep_bytes", "on_log_failure", "log_patience", "log_memory", "sign_key",
    "track", "initial", "init_weights", "devices", "coordinator", "processes", "process_id",
    "stall_seconds", "on_stall",
)  # fmt: skip

_COUNTS = (
    "initial_samples", "batch_size", "trigger", "scan", "snapshot_every", "max_skipped",
    "history_size",
    "keep_checkpoints", "drift_samples", "drift_window",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `cdl-jax train`. The defaults are the paper's, but for sparse updates."""

    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist or cifar10 (from --data-dir); of your own:
    numpy:FILE.npz or FOLDER of .npy, parquet:FILE or FOLDER, hf:FOLDER (of save_to_disk),
    redis://HOST:PORT/STREAM, or iterator:MODULE:FUNCTION. Fields by name, the class in label."""
    data_dir: str | None = None
    """Folder of tensorflow_datasets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    scenario: str = "none"
    """How the stream drifts, for experiments: none, class_incremental, rotation,
    label_permutation or noise."""
    model: str = "lenet5"
    """lenet5, resnet18, resnet50, mobilenet_v2, densenet161 or mlp, or MODULE:FACTORY, called
    with the data, which gives init_fn, loss_fn and predict_fn as cdl_jax.models.classifier."""
    init_weights: str | None = None
    """safetensors file of a torchvision state_dict from which the initial training starts (or,
    with --epochs 0, the stream). A head of other classes starts anew. None: random weights."""
    strategy: Strategy = "sparse"
    """sparse: proactive steps, sparse updates. proactive: dense ones. online: new samples only,
    dense updates. full: training from scratch on all samples so far, each time the trigger is
    full. frozen: the initial model stays; it is scored beside each of the others, too."""
    log: str | None = None
    """Log of versions to publish to: a folder or URL. None publishes nothing."""
    run: str | None = None
    """Folder for metrics.jsonl, summary.json and config.toml. None writes nothing."""
    track: str = ""
    """Where the metrics go besides --run, joined by +: tensorboard, wandb, mlflow."""
    seed: int = 0
    """Of initial weights, sampling and compression."""
    initial_samples: int = -1
    """Samples of the initial training; the rest is the stream. -1: the data set's default."""
    epochs: int = -1
    """Epochs of the initial training. -1: the data set's default."""
    batch_size: int = 128
    """Samples in a step: the new ones and a sample of the history."""
    initial: str | None = None
    """Folder that keeps models after initial training: runs that begin alike share one."""
    trigger: int = -1
    """New samples that trigger a step. -1: 8; 128 for online and frozen; for full, as many as the
    initial training has."""
    scan: int = 1
    """Triggers that one program takes, with the data on the device; 1: a step each. For
    accelerators, 50 or so; only a stream without --pace has so many at once."""
    include_new: bool = True
    """Put all new samples into the batch; else it is drawn from history and new ones alike."""
    trigger_seconds: float | None = None
    """Trigger a step every so many seconds with what has arrived, up to a whole batch, instead."""
    history: Policy = "uniform"
    """How a batch's old samples are drawn: uniform; window, exponential: recent ones more;
    inverse_use: those drawn less before more; balanced: evenly by class; reservoir: uniform from
    a kept sample of fixed size."""
    history_size: int = 5000
    """Samples of the window, of the exponential's half-life, or in the reservoir."""
    new_share: float = 0.0
    """Least share of a batch that are the most recent samples; 0: the new ones alone."""
    classes: int = 0
    """Of the labels of a live stream. 0: as many as the initial training saw."""
    stall_seconds: float | None = None
    """Without a sample, after which a live stream counts as stalled. None: it is waited for."""
    on_stall: Literal["error", "end"] = "error"
    """What a stalled stream is: an error, or at its end."""
    label_delay: int = 0
    """Samples that arrive between a sample and its label: it is scored by the model that met it,
    and trained on, once the label is here."""
    on_drift: str = ""
    """What a drift is answered with, joined by +: share and window (recent samples more), density
    (larger updates), reset (of the optimizer). Empty: nothing."""
    detector: Literal["adwin", "page_hinkley", "accuracy"] = "adwin"
    """Of drift: River's ADWIN or Page-Hinkley on the prequential loss, or a fall of accuracy."""
    drift_threshold: float | None = None
    """ADWIN's delta, Page-Hinkley's threshold, or a fall of accuracy. None: 0.002, 5 or 0.1."""
    drift_samples: int = 2000
    """Samples for which the answer lasts."""
    drift_share: float = 0.5
    """Least share of the most recent samples meanwhile."""
    drift_density: float = 0.1
    """Density meanwhile; a step compiled for it."""
    drift_window: int = 1000
    """Samples back that the history reaches meanwhile."""
    learning_rate: float = 1e-3
    """Of Adam with AMSGrad."""
    compressor: Literal["top_k", "random_k", "quantize"] = "top_k"
    """What a sparse update sends: the largest entries, random ones, or all, quantised (QSGD)."""
    order: Literal["after", "before"] = "after"
    """Compress the optimizer's update, or, as the paper does, the gradient before the optimizer:
    then an update sends every entry that changed, which are many more."""
    density: float = 1e-2
    """Share of the entries that top_k and random_k send, in (0, 1]."""
    values: Literal["float32", "bf16", "f16", "int8", "int4", "int2"] = "float32"
    """How top_k and random_k send new values: exactly, rounded to 16 bits, or as increments of so
    many bits. What that loses is sent later."""
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
    checkpoint_every: int = 500
    """Versions between the checkpoints in --run; 0: only one at the start and one at the end."""
    keep_checkpoints: int = 2
    """Checkpoints that stay."""
    new_lineage: bool = False
    """Go on from --run's newest checkpoint with another program or other settings, on a new
    --log."""
    max_skipped: int = 20
    """Stop after so many steps in a row with a non-finite loss or gradient."""
    devices: int = 1
    """Devices of each process that a batch is shared out to; 0: all."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 meets the others, where several train one model. It alone has
    the log and the run folder, and when it ends, all do."""
    processes: int = 1
    """Processes that train one model, usually one a host; each is given the same settings."""
    process_id: int = 0
    """Which one this is, from 0."""

    def checked(self) -> "TrainConfig":
        """The settings with the data set's defaults filled in.

        Raises:
          ConfigError: for a value that cannot be.
        """
        kind = self._kind()
        _one_of("scenario", self.scenario, ("none", *SCENARIOS))
        if ":" not in self.model:
            _one_of("model", self.model, MODELS)
        initial = kind.initial_samples if self.initial_samples == -1 else self.initial_samples
        triggers = {"online": 128, "frozen": 128, "full": initial}
        defaults = {
            "initial_samples": initial,
            "epochs": kind.epochs,
            "trigger": triggers.get(self.strategy, 8),
        }
        missing = {name: x for name, x in defaults.items() if getattr(self, name) == -1}
        filled = dataclasses.replace(self, **missing)
        filled._check()
        return filled

    def _kind(self) -> Kind:
        """What is known of the data set; of one's own, the run that suits it."""
        if self.dataset.partition(":")[0] not in OWN:
            known = (*DATASETS, *(f"{kind}:..." for kind in OWN))
            _one_of("dataset", self.dataset, dict.fromkeys(known, 0))
            return DATASETS[self.dataset]
        if self.initial_samples == -1:
            raise ConfigError(
                f"{self.dataset} needs --initial-samples: how many of its first samples the "
                "initial training takes"
            )
        return Kind("own", (), (), self.initial_samples, 10)

    def bits_depend_on(self) -> dict[str, Any]:
        """The settings that the bits of the log depend on: all but places, pace and length.

        Of the initial weights it is the file's content.

        Raises:
          ConfigError: when it cannot be read.
        """
        weights = self.init_weights
        content = {} if weights is None else {"init_weights": content_digest(weights)}
        return {name: x for name, x in vars(self).items() if name not in _FREE} | content

    def trackers(self) -> list[str]:
        """Where the metrics go, too."""
        return self.track.split("+") if self.track else []

    def reactions(self) -> list[str]:
        """What a drift is answered with."""
        return self.on_drift.split("+") if self.on_drift else []

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
        for name in _COUNTS:
            _at_least(name, getattr(self, name), 1)
        for name in (
            "epochs",
            "seed",
            "digest_every",
            "checkpoint_every",
            "label_delay",
            "devices",
        ):
            _at_least(name, getattr(self, name), 0)
        if self.limit is not None:
            _at_least("limit", self.limit, 1)
        if self.snapshot_bytes is not None:
            _at_least("snapshot_bytes", self.snapshot_bytes, 1)
        self._check_processes()
        self._check_live()
        self.retention()  # it checks its own values, and so does the other
        self.failure_policy()
        for name in ("density", "drift_density", "drift_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a share in (0, 1]")
        for name in self.trackers():
            _one_of("track", name, TRACKERS)
        for name in self.reactions():
            _one_of("on_drift", name, REACTIONS)
        if self.compressor == "quantize" and self.values != "float32":
            raise ConfigError(
                f"values is {self.values}, but quantize sends values of --bits; give float32"
            )
        if not 1 <= self.bits <= 16:
            raise ConfigError(f"bits is {self.bits}; give 1 to 16")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate is {self.learning_rate}; give a number above 0")
        if not 0 <= self.new_share <= 1:
            raise ConfigError(f"new_share is {self.new_share}; give a share in [0, 1]")
        _one_of("history", self.history, POLICIES)
        if self.trigger_seconds is not None:
            self._check_seconds(self.trigger_seconds)
        if self.new_lineage and self.run is None:
            raise ConfigError("new_lineage needs --run, the folder of the run that it goes on from")
        if self.pace is not None and not 0 < self.pace < float("inf"):
            raise ConfigError(f"pace is {self.pace}; give samples a second, above 0")
        if self.order == "before" and self.values != "float32":
            raise ConfigError(
                f"values is {self.values}, but with order 'before' the optimizer makes the new "
                "values, which are sent exactly; give float32"
            )
        if self.strategy == "full" and (self.trigger_seconds or self.label_delay or self.on_drift):
            raise ConfigError(
                "full retrains on all samples every --trigger samples; trigger_seconds, "
                "label_delay and on_drift belong to the other strategies"
            )
        if self.scan > 1:
            self._check_scan()
        if self.strategy in ("sparse", "proactive") and self.trigger > self.batch_size:
            raise ConfigError(
                f"trigger is {self.trigger}, larger than batch_size {self.batch_size}: the new "
                "samples would not fit; lower the one or raise the other"
            )

    def _check_live(self) -> None:
        if self.stall_seconds is not None and not self.stall_seconds > 0:
            raise ConfigError(f"stall_seconds is {self.stall_seconds}; give seconds, above 0")
        if self.dataset.partition(":")[0] not in ("redis", "rediss", "iterator"):
            return
        for name in ("label_delay", "pace"):
            if getattr(self, name):
                raise ConfigError(f"{name} is for data sets; a live stream brings its own")
        if self.processes > 1 or self.scenario != "none":
            raise ConfigError("a live stream is for a run of one process, without a scenario")
        if self.log is not None and self.run is None:
            raise ConfigError(
                "a live stream needs --run beside --log: only samples that are kept let a "
                "stopped run make its log's bytes again"
            )

    def _check_processes(self) -> None:
        if not 0 <= self.process_id < self.processes:
            raise ConfigError(
                f"process_id is {self.process_id} of {self.processes} processes; give 0 to "
                "processes - 1"
            )
        if (self.processes > 1) != (self.coordinator is not None):
            raise ConfigError(
                f"processes is {self.processes}, coordinator is {self.coordinator}; several "
                "processes need --coordinator HOST:PORT, a single one none"
            )
        if (self.processes > 1 or self.devices != 1) and self.strategy in ("full", "frozen"):
            raise ConfigError(f"strategy {self.strategy} runs on one device of one process")
        if self.processes > 1 and self.initial is not None:
            raise ConfigError("initial is for a run of one process; leave it out")

    def _check_scan(self) -> None:
        beside = {
            "strategy": self.strategy not in ("sparse", "proactive"),
            "on_drift": bool(self.on_drift),
            "trigger_seconds": self.trigger_seconds is not None,
            "devices": self.devices != 1,
            "processes": self.processes != 1,
            "dataset": self.dataset.partition(":")[0] in ("redis", "rediss", "iterator"),
        }
        wrong = [f"{name} {getattr(self, name)!r}" for name, odd in beside.items() if odd]
        if wrong:
            raise ConfigError(
                f"scan is {self.scan}, which one device takes in proactive steps of one size; it "
                f"does not go with {', '.join(wrong)}; give 1"
            )
        if self.initial_samples + self.trigger * (not self.include_new) < self.batch_size:
            raise ConfigError(
                f"scan is {self.scan}, but initial_samples {self.initial_samples} do not fill a "
                f"batch of {self.batch_size}; give more samples, a smaller batch, or scan 1"
            )

    def _check_seconds(self, seconds: float) -> None:
        if not 0 < seconds < float("inf"):
            raise ConfigError(f"trigger_seconds is {seconds}; give seconds, above 0")
        if self.log is not None and self.run is None:
            raise ConfigError(
                "trigger_seconds needs --run: only a record of when it fired lets a stopped run "
                "make its log's bytes again"
            )


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; give one of {', '.join(known)}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; give {least} or more")
