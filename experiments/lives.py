"""Lives of a short run, each a process of its own that may be killed, and what they leave.

A life is forked from a process that has imported everything and has not touched a device, which
saves the seconds that imports take.
"""

import dataclasses
import functools
import json
import os
import pathlib
import signal
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from cdl_jax.data import load, spool
from cdl_jax.deploy import publisher
from cdl_jax.train import TrainConfig, checkpoint, drift, run
from cdl_jax.train.checkpoint import Checkpoints
from cdl_jax.train.records import Records

CLOCKS = ("first_at", "full_at", "made_at", "acknowledged_at")
KINDS = (
    "once", "twice", "while a checkpoint is written", "before a checkpoint",
    "before the first checkpoint is whole",
)  # fmt: skip
CHECKPOINT_EVERY, TRIGGER, PACE = 4, 8, 200.0
TIMED, LIVE = "time trigger", "live stream"
# By name, what a run does otherwise than by default.
SETTINGS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "inverse_use": {"history": "inverse_use"},
    "reservoir": {"history": "reservoir"},
    "balanced": {"history": "balanced"},
    "window": {"history": "window"},
    "exponential": {"history": "exponential"},
    TIMED: {"trigger_seconds": TRIGGER / PACE},
    "drifts": {
        "on_drift": "share+window+density+reset", "detector": "accuracy", "drift_window": 40,
        "drift_samples": 12 * TRIGGER,
    },
    "smaller triggers": {
        "on_drift": "trigger", "detector": "accuracy", "drift_trigger": 4,
        "drift_samples": 3 * TRIGGER,
    },
    "late labels": {"label_delay": 12},
    "scan": {"scan": 3, "pace": None},
    "int8": {"values": "int8"},
    LIVE: {"dataset": "iterator", "history": "reservoir", "pace": None},
}  # fmt: skip


def config(place: pathlib.Path, name: str) -> TrainConfig:
    """A short run on the digits, with a checkpoint every few versions."""
    usual = TrainConfig(
        initial_samples=128, epochs=1, limit=30 * TRIGGER, trigger=TRIGGER, batch_size=32,
        density=0.01, snapshot_every=10, digest_every=0, checkpoint_every=CHECKPOINT_EVERY,
        history_size=64, pace=PACE, log=str(place / "log"), run=str(place / "run"),
    )  # fmt: skip
    return dataclasses.replace(usual, **SETTINGS[name]).checked()


def source(held: int, last: Any) -> Iterator[Mapping[str, Any]]:
    """The digits as they come."""
    del last
    digits = load("digits")
    for place in range(held, len(digits)):
        time.sleep(1 / PACE if place > 128 else 0)
        yield {"image": digits.images[place], "label": digits.labels[place]}


class EveryTenth:
    """A detector that finds a drift while the one before is still answered."""

    def __init__(self, *_: Any):
        self._count = 0

    def update(self, value: float) -> bool:
        """Whether it is the tenth version since the last one."""
        del value
        self._count += 1
        return self._count % 10 == 0


@dataclasses.dataclass(frozen=True)
class Instant:
    """When a life ends: so long after the log has reached a version, or after the start."""

    version: int
    wait: float  # seconds
    kind: str

    @classmethod
    def draw(cls, rng: Any, kind: str, seconds: float, versions: int) -> "Instant":
        """One kill in ten falls anywhere in the start, the others in the stream."""
        if kind == KINDS[3]:
            version = CHECKPOINT_EVERY * int(rng.integers(1, versions // CHECKPOINT_EVERY + 1))
            return cls(version, rng.uniform(0, 0.005), kind)
        if kind == KINDS[4]:
            return cls(int(rng.integers(1, CHECKPOINT_EVERY)), rng.uniform(0, 0.1), kind)
        version = int(rng.integers(-versions // 10, versions))
        return cls(version, rng.uniform(0, seconds / 2 if version < 0 else 0.1), kind)

    def has_come(self, place: pathlib.Path, reached: float | None) -> bool:
        """Whether it is time, given when the version was reached (None: not yet)."""
        late = reached is not None and time.monotonic() - reached > self.wait
        return late and (self.kind != KINDS[2] or is_saving(place))


def live(
    place: pathlib.Path, name: str, *, instant: Instant | None = None, again: bool = False
) -> int:
    """One life of a run: its exit status; -1 when killed, -2 when killed in a checkpoint.

    Args:
      place: folder of its log and records.
      name: of its settings.
      instant: when it is killed, unless it ends before.
      again: takes the triggers that are there, though the log has no version yet.
    """
    place.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if not child:
        os._exit(_child(place, name, again, instant is not None and instant.kind == KINDS[4]))
    reached = None
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if instant is not None:
            if reached is None and newest(place / "log" / "updates") >= instant.version:
                reached = time.monotonic()
            if instant.has_come(place, reached):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return -2 if is_saving(place) else -1
        time.sleep(0.003)
    return os.waitstatus_to_exitcode(ended[1])


def _child(place: pathlib.Path, name: str, again: bool, slow: bool) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # Updates name their log's lineage, which is random: the same one makes them comparable.
    publisher.secrets = SimpleNamespace(token_bytes=bytes)  # type: ignore
    drift.AccuracyFall = EveryTenth  # type: ignore
    spool._SEGMENT_ROWS = 16  # of which a short stream forgets some
    if again:
        begin = Records.begin
        Records.begin = lambda self, **_: begin(self, again=True)
    if slow:
        checkpoint._write = functools.partial(_slow_at_first, checkpoint._write)
    try:
        run(config(place, name), source if name == LIVE else None)
    except BaseException as error:
        (place / "error.txt").write_text(repr(error))
        return 1
    return 0


def _slow_at_first(write: Any, path: pathlib.Path, arrays: Any) -> None:
    """A disk so slow that versions are in the log before the first checkpoint is whole."""
    if (path.parent.name, path.name) == ("newest", "0"):
        time.sleep(30)
    write(path, arrays)


def is_saving(place: pathlib.Path) -> bool:
    """Whether a checkpoint is half written."""
    return any(not p.name.isdigit() for p in checkpoints(place).glob("*"))


def newest(folder: pathlib.Path) -> int:
    """The newest version in a folder with an entry for each."""
    return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=-1)


def checkpoints(place: pathlib.Path) -> pathlib.Path:
    """Where a run's checkpoints are."""
    return place / "run" / "checkpoints" / "newest"


def remains(place: pathlib.Path) -> dict[str, Any]:
    """All that a run leaves, by name: its last checkpoint's arrays, its metrics, its log."""
    return in_a_child(_remains, place)


def _remains(place: pathlib.Path) -> dict[str, Any]:
    saved = Checkpoints(checkpoints(place)).newest()
    assert saved is not None
    out: dict[str, Any] = {f"state {k}": v.tobytes().hex() for k, v in saved.arrays.items()}
    progress = saved.record["progress"]
    progress["summary"].pop("seconds")
    progress.pop("metrics_bytes")  # clock values take more digits or fewer
    out["progress"] = progress
    rows = [json.loads(x) for x in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    out["metrics"] = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]
    out["triggers"] = (place / "run" / "triggers.txt").read_text()
    for path in sorted((place / "log").rglob("*")):
        # What a kill cut short in being put, under a name with a #, is no object.
        hidden = "owner" in path.parts or path.name == "status.json" or "#" in path.name
        if path.is_file() and not hidden:
            out[f"log {path.relative_to(place / 'log')}"] = path.read_bytes().hex()
    return out


def compare(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))


def in_a_child(function: Any, *arguments: Any) -> dict[str, Any]:
    """A function's JSON result, from a process of its own: this one must not touch a device."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        with os.fdopen(write, "w") as out:
            json.dump(function(*arguments), out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)
