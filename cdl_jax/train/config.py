"""The settings of a training run."""

import dataclasses
from typing import Any, Literal

from cdl_jax.data import DATASETS, SCENARIOS
from cdl_jax.data.files import KINDS
from cdl_jax.data.live import LIVE
from cdl_jax.data.sources import TFDS, Kind
from cdl_jax.deploy.outbox import FailurePolicy, OnFailure
from cdl_jax.deploy.retention import Retention
from cdl_jax.errors import ConfigError, masked
from cdl_jax.models import MODELS
from cdl_jax.models.torchvision import content_digest
from cdl_jax.train.checks import check, one_of

Policy = Literal["uniform", "window", "exponential", "inverse_use", "balanced", "reservoir"]
Strategy = Literal["sparse", "proactive", "online", "full", "frozen"]
OWN = (*KINDS, TFDS, *LIVE)  # data sets of one's own

# The bits do not depend on these.
_FREE = (
    "data_dir", "log", "run", "limit", "pace", "snapshot_every", "digest_every",
    "checkpoint_every", "keep_checkpoints", "new_lineage", "snapshot_bytes", "keep_versions",
    "keep_seconds", "keep_bytes", "on_log_failure", "log_patience", "log_memory", "sign_key",
    "track", "initial", "init_weights", "devices", "coordinator", "processes", "process_id",
    "stall_seconds", "on_stall", "metrics", "window", "fading_factor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `cdl-jax train`. The defaults are the paper's, but for sparse updates."""

    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist or cifar10 (from --data-dir); others:
    tfds:NAME or tfds:NAME:SPLIT there, with features image and label; of your own:
    numpy:FILE.npz or FOLDER of .npy, parquet:FILE or FOLDER, hf:FOLDER (of save_to_disk),
    redis://HOST:PORT/STREAM, or iterator:MODULE:FUNCTION. Fields by name, the class in label."""
    data_dir: str | None = None
    """Folder of tensorflow_datasets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    scenario: str = "none"
    """How the stream drifts up to its end (--limit), for experiments, in data sets of any kind:
    none, class_incremental, rotation (of images), label_permutation or noise."""
    model: str = "lenet5"
    """lenet5, resnet18, resnet50, mobilenet_v2, densenet161 or mlp, or MODULE:FACTORY, called
    with the data, which gives init_fn, loss_fn and predict_fn as cdl_jax.models.classifier."""
    metrics: str | None = None
    """MODULE:FUNCTION for metrics of your own beside accuracy and loss: called, inside a compiled
    program, with the model's outputs and a batch, it gives a dict of number[samples] by name.
    What is not finite is left out of its mean."""
    window: int = 1000
    """Samples in the window of the scores named window_..."""
    fading_factor: float = 0.002
    """Weight of the newest sample in the scores named fading_..., in (0, 1]."""
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
    (larger updates), trigger (more steps), reset (of the optimizer). Empty: nothing."""
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
    drift_trigger: int = 2
    """New samples that trigger a step meanwhile."""
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
        one_of("scenario", self.scenario, ("none", *SCENARIOS))
        if ":" not in self.model:
            one_of("model", self.model, MODELS)
        initial = kind.initial_samples if self.initial_samples == -1 else self.initial_samples
        triggers = {"online": 128, "frozen": 128, "full": initial}
        defaults = {
            "initial_samples": initial,
            "epochs": kind.epochs,
            "trigger": triggers.get(self.strategy, 8),
        }
        missing = {name: x for name, x in defaults.items() if getattr(self, name) == -1}
        filled = dataclasses.replace(self, **missing)
        check(filled)
        return filled

    def _kind(self) -> Kind:
        """What is known of the data set; of one's own, the run that suits it."""
        if self.dataset.partition(":")[0] not in OWN:
            known = (*DATASETS, *(f"{kind}:..." for kind in OWN))
            one_of("dataset", self.dataset, dict.fromkeys(known, 0))
            return DATASETS[self.dataset]
        if self.initial_samples == -1:
            raise ConfigError(
                f"{masked(self.dataset)} needs --initial-samples: how many of its first samples "
                "the initial training takes"
            )
        return Kind("own", (), (), self.initial_samples, 10)

    def bits_depend_on(self) -> dict[str, Any]:
        """The settings that the bits of the log depend on: all but places, pace and length.

        Of the initial weights it is the file's content.

        Raises:
          ConfigError: when it cannot be read.
        """
        weights, free = self.init_weights, set(_FREE)
        if self.scenario != "none" and self.limit is not None:
            free.remove("limit")  # it is where the drift ends
        content = {} if weights is None else {"init_weights": content_digest(weights)}
        return {name: x for name, x in vars(self).items() if name not in free} | content

    def scores_depend_on(self) -> dict[str, Any]:
        """The settings that the scores' means depend on, beside those of the log."""
        return {"window": self.window, "fading_factor": self.fading_factor}

    def recorded(self) -> dict[str, Any]:
        """All settings as others may see them: without passwords."""
        return {k: masked(v) if isinstance(v, str) else v for k, v in vars(self).items()}

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
