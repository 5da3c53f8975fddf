"""Whether a run's settings can be, each and together; `TrainConfig.checked` calls it."""

import re
from typing import TYPE_CHECKING, Any

from cdl_jax.data import POLICIES
from cdl_jax.data.live import LIVE
from cdl_jax.errors import MASK, ConfigError, masked
from cdl_jax.train.tracking import TRACKERS

if TYPE_CHECKING:
    from cdl_jax.train.config import TrainConfig

_PLACE = re.compile(r"[^\s:/]+:\d{1,5}|\[[\da-fA-F:.]+\]:\d{1,5}")
REACTIONS = ("share", "density", "window", "trigger", "reset")
_THRESHOLDS = {"adwin": 1.0, "page_hinkley": float("inf"), "accuracy": 1.0}  # below these, above 0
_COUNTS = (
    "initial_samples", "batch_size", "trigger", "scan", "snapshot_every", "max_skipped",
    "history_size", "keep_checkpoints", "drift_samples", "drift_trigger",
    "drift_window", "window",
)  # fmt: skip
_FROM_ZERO = ("epochs", "seed", "digest_every", "checkpoint_every", "label_delay", "devices")


def check(config: "TrainConfig") -> None:
    """Whether the values can be, each and together.

    Raises:
      ConfigError: names the value, what is allowed, and the mend.
    """
    for name in _COUNTS:
        _at_least(name, getattr(config, name), 1)
    for name in _FROM_ZERO:
        _at_least(name, getattr(config, name), 0)
    if config.limit is not None:
        _at_least("limit", config.limit, 1)
    if config.snapshot_bytes is not None:
        _at_least("snapshot_bytes", config.snapshot_bytes, 1)
    config.retention()  # it checks its own values, and so does the other
    config.failure_policy()
    _check_numbers(config)
    _check_names(config)
    _check_together(config)
    _check_history(config)
    _check_drift(config)
    _check_processes(config)
    _check_live(config)
    if config.trigger_seconds is not None:
        _check_seconds(config, config.trigger_seconds)
    if config.scan > 1:
        _check_scan(config)


def _check_numbers(config: "TrainConfig") -> None:
    for name in ("density", "drift_density", "drift_share", "fading_factor"):
        if not 0 < getattr(config, name) <= 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; give a share in (0, 1]")
    if not 1 <= config.bits <= 16:
        raise ConfigError(f"bits is {config.bits}; give 1 to 16")
    if not 0 < config.learning_rate < float("inf"):
        raise ConfigError(f"learning_rate is {config.learning_rate}; give a number above 0")
    if not 0 <= config.new_share <= 1:
        raise ConfigError(f"new_share is {config.new_share}; give a share in [0, 1]")
    if config.pace is not None and not 0 < config.pace < float("inf"):
        raise ConfigError(f"pace is {config.pace}; give samples a second, above 0")


def _check_names(config: "TrainConfig") -> None:
    for name in config.trackers():
        one_of("track", name, TRACKERS)
    for name in config.reactions():
        one_of("on_drift", name, REACTIONS)
    one_of("history", config.history, POLICIES)
    for name in ("dataset", "log"):
        value = getattr(config, name)
        if value is not None and f"{MASK}@" in value:
            raise ConfigError(
                f"{name} is {value!r}, as a run records it: without the user and password; give "
                f"them with --{name}"
            )


def _check_together(config: "TrainConfig") -> None:
    if config.new_lineage and config.run is None:
        raise ConfigError("new_lineage needs --run, the folder of the run that it goes on from")
    if config.track and config.run is None:
        raise ConfigError("track needs --run, the folder of the run that is tracked")
    if config.compressor == "quantize" and config.values != "float32":
        raise ConfigError(
            f"values is {config.values}, but quantize sends values of --bits; give float32"
        )
    if config.order == "before" and config.values != "float32":
        raise ConfigError(
            f"values is {config.values}, but with order 'before' the optimizer makes the new "
            "values, which are sent exactly; give float32"
        )
    others = [n for n in ("trigger_seconds", "label_delay", "on_drift") if getattr(config, n)]
    if config.strategy == "full" and others:
        given = ", ".join(f"{name} {getattr(config, name)}" for name in others)
        raise ConfigError(
            f"strategy full retrains on all samples every --trigger samples and takes no {given}; "
            "leave it out, or give another --strategy"
        )
    if config.strategy in ("sparse", "proactive") and config.trigger > config.batch_size:
        raise ConfigError(
            f"trigger is {config.trigger}, larger than batch_size {config.batch_size}: the new "
            "samples would not fit; lower the one or raise the other"
        )


def _check_history(config: "TrainConfig") -> None:
    draws = config.strategy in ("sparse", "proactive")
    if config.new_share and not (draws and config.include_new):
        why = "include_new is off" if draws else f"strategy {config.strategy} draws no history"
        raise ConfigError(f"new_share {config.new_share} would change nothing: {why}; give 0")
    if config.history != "uniform" and not draws:
        raise ConfigError(
            f"history {config.history} would change nothing: strategy {config.strategy} draws no "
            "history; leave it out"
        )
    sizes = {
        "history_size": config.history in ("window", "reservoir"),
        "drift_window": "window" in config.reactions(),
    }
    for name, counts in sizes.items():
        # A stream's last trigger may bring one sample; the history fills the batch's other places.
        if draws and counts and getattr(config, name) < config.batch_size:
            raise ConfigError(
                f"{name} is {getattr(config, name)}, too few to fill a batch from; give "
                f"{config.batch_size} (batch_size) or more"
            )


def _check_drift(config: "TrainConfig") -> None:
    below, threshold = _THRESHOLDS[config.detector], config.drift_threshold
    if threshold is not None and not 0 < threshold < below:
        range_ = "above 0" if below == float("inf") else f"in (0, {below:g})"
        raise ConfigError(
            f"drift_threshold is {threshold}; give a number {range_} for {config.detector}"
        )
    new = max(config.trigger, round(config.new_share * config.batch_size))
    share = f"drift_share {config.drift_share} of batch_size {config.batch_size}"
    out, strategy = "leave it out", config.strategy
    idle = {
        "frozen takes no steps; " + out: (strategy == "frozen", REACTIONS),
        "online trains on what arrived; " + out: (strategy == "online", ("share", "window")),
        "online would take smaller batches; " + out: (strategy == "online", ("trigger",)),
        "the clock triggers; " + out: (config.trigger_seconds is not None, ("trigger",)),
        f"drift_trigger is {config.drift_trigger}, and {config.trigger} new samples trigger a step "
        f"already; give fewer, or {out}": (
            config.drift_trigger >= config.trigger, ("trigger",),
        ),
        f"{strategy} sends dense updates; {out}": (strategy != "sparse", ("density",)),
        "quantize sends every entry; " + out: (config.compressor == "quantize", ("density",)),
        f"drift_density is {config.drift_density}, and it is the density already; give another, "
        f"or {out}": (config.drift_density == config.density, ("density",)),
        "include_new is off; " + out: (not config.include_new, ("share",)),
        f"{share} is no more than the {new} samples of a batch that are new already; give a larger "
        f"drift_share, or {out}": (
            round(config.drift_share * config.batch_size) <= new, ("share",),
        ),
    }  # fmt: skip
    for why, (so, answers) in idle.items():
        for name in config.reactions():
            if so and name in answers:
                raise ConfigError(f"on_drift {name} is of no use: {why}")


def _check_live(config: "TrainConfig") -> None:
    if config.stall_seconds is not None and not config.stall_seconds > 0:
        raise ConfigError(f"stall_seconds is {config.stall_seconds}; give seconds, above 0")
    if config.dataset.partition(":")[0] not in LIVE:
        return
    if config.pace is not None:
        raise ConfigError(f"pace is {config.pace}, but a live stream brings its own; leave it out")
    if config.processes > 1 or config.scenario != "none":
        raise ConfigError(
            f"processes is {config.processes} and scenario {config.scenario}, but a live stream "
            "is for one process without a scenario; leave them out"
        )
    if config.log is not None and config.run is None:
        raise ConfigError(
            "a live stream needs --run beside --log: only samples that are kept let a "
            "stopped run make its log's bytes again"
        )


def _check_processes(config: "TrainConfig") -> None:
    if not 0 <= config.process_id < config.processes:
        raise ConfigError(
            f"process_id is {config.process_id} of {config.processes} processes; give 0 to "
            "processes - 1"
        )
    if (config.processes > 1) != (config.coordinator is not None):
        raise ConfigError(
            f"processes is {config.processes}, coordinator is {config.coordinator}; several "
            "processes need --coordinator HOST:PORT, a single one none"
        )
    if config.coordinator is not None and not _is_place(config.coordinator):
        raise ConfigError(
            f"coordinator is {config.coordinator!r}; give HOST:PORT of process 0, such as "
            "10.0.0.1:8476, with a port from 1 to 65535"
        )
    if (config.processes > 1 or config.devices != 1) and config.strategy in ("full", "frozen"):
        raise ConfigError(
            f"strategy {config.strategy} runs on one device of one process, but devices is "
            f"{config.devices} and processes {config.processes}; give 1"
        )
    if config.processes > 1 and config.initial is not None:
        raise ConfigError(
            f"initial is {config.initial}, but it is for one process, not {config.processes}; "
            "leave it out"
        )


def _is_place(coordinator: str) -> bool:
    found = _PLACE.fullmatch(coordinator) is not None
    return found and 1 <= int(coordinator.rpartition(":")[2]) <= 65535


def _check_scan(config: "TrainConfig") -> None:
    beside = {
        "strategy": config.strategy not in ("sparse", "proactive"),
        "on_drift": bool(config.on_drift),
        "trigger_seconds": config.trigger_seconds is not None,
        "devices": config.devices != 1,
        "processes": config.processes != 1,
        "dataset": config.dataset.partition(":")[0] in LIVE,
    }
    wrong = [f"{name} {getattr(config, name)!r}" for name, odd in beside.items() if odd]
    if wrong:
        raise ConfigError(
            f"scan is {config.scan}, which one device takes in proactive steps of one size; it "
            f"does not go with {', '.join(wrong)}; give 1"
        )
    if config.initial_samples + config.trigger * (not config.include_new) < config.batch_size:
        raise ConfigError(
            f"scan is {config.scan}, but initial_samples {config.initial_samples} do not fill a "
            f"batch of {config.batch_size}; give more samples, a smaller batch, or scan 1"
        )


def _check_seconds(config: "TrainConfig", seconds: float) -> None:
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"trigger_seconds is {seconds}; give seconds, above 0")
    if config.strategy == "online":
        raise ConfigError(
            "trigger_seconds would give online a batch of another size, and so another program, "
            "at each step; give --trigger, or proactive, whose batches the history fills"
        )
    if config.log is not None and config.run is None:
        raise ConfigError(
            "trigger_seconds needs --run: only a record of when it fired lets a stopped run "
            "make its log's bytes again"
        )


def one_of(name: str, value: str, known: Any) -> None:
    """Raises ConfigError when `value` is not among the known ones."""
    if value not in known:
        raise ConfigError(f"{name} is {masked(value)!r}; give one of {', '.join(known)}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; give {least} or more")
