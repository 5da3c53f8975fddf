"""Going on from a run's newest checkpoint, or refusing to."""

import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.step import TrainState, deployed
from cdl_jax.data.history import State, carried, history
from cdl_jax.data.live import LiveData
from cdl_jax.data.samples import Samples
from cdl_jax.deploy import UpdateLog
from cdl_jax.deploy.publisher import difference
from cdl_jax.errors import CheckpointError, ConfigError, DataError
from cdl_jax.train.checkpoint import Checkpoints
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.feed import Feed, with_rows
from cdl_jax.train.saved import Saved
from cdl_jax.wire import decode_update

FORM = 3  # of what a checkpoint's record and sampler hold; another form needs another number
# What a drift is found in, of a line of the metrics.
_WATCHED = {
    "version", "position", "samples", "correct", "prequential_loss", "nonfinite_losses",
}  # fmt: skip
_REACH = (
    "history", "history_size", "batch_size", "strategy", "include_new", "on_drift", "drift_window",
)  # fmt: skip
_READ_AT_ONCE = 4096  # samples


class Start(NamedTuple):
    """Where a run starts: at version 0, or from a checkpoint."""

    state: TrainState
    initial: Any  # the tree deployed at version 0; never donated
    sampler: dict[str, np.ndarray]
    progress: dict[str, Any] | None  # None at version 0
    records: Iterable[dict[str, Any]] = ()  # the metrics so far, where a drift may be in them


class Writer:
    """Writes a run's checkpoints, and the initial model once.

    Args:
      folder: the run's.
      keep: checkpoints that stay.
      facts: what a resume must find unchanged, in JSON's types: program and config.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int, facts: dict[str, Any]):
        self._initial = Checkpoints(
            folder / "checkpoints" / "initial", keep=1, mend="give a new --run folder"
        )
        self._newest = Checkpoints(folder / "checkpoints" / "newest", keep=keep)
        self.folder, self.facts = folder, facts

    def newest(self) -> Saved | None:
        """The checkpoint to go on from."""
        return self._newest.newest()

    def save_initial(self, tree: Any) -> None:
        """Keeps the tree deployed at version 0; durable on return."""
        self._initial.save(0, tree, {})
        self._initial.wait()

    def initial(self) -> Saved:
        """The tree deployed at version 0."""
        saved = self._initial.newest()
        if saved is None:
            raise CheckpointError(
                f"{self.folder} has checkpoints but no initial model; give a new --run folder"
            )
        return saved

    def save(self, version: int, state: TrainState, sampler: Any, progress: Any) -> None:
        """Begins to write a checkpoint."""
        record = {"form": FORM, "progress": progress, **self.facts}
        self._newest.save(version, {"state": state, "sampler": sampler}, record)

    def close(self) -> None:
        """Waits for what is being written."""
        self._initial.close()
        self._newest.close()


def start_from(
    saved: Saved, initial: Saved, like: TrainState, records: Iterable[dict[str, Any]]
) -> Start:
    """The start that a checkpoint holds.

    Args:
      saved: the checkpoint.
      initial: of the tree deployed at version 0.
      like: a state of this run's shapes.
      records: see `Start`.

    Raises:
      CheckpointError: when it is of another model or optimizer.
    """
    state = saved.restore("state", like)
    tree = initial.restore("", deployed(like))
    return Start(state, tree, saved.under("sampler"), saved.record["progress"], records)


def sampler_for(saved: Saved, config: TrainConfig, data: Samples) -> State:
    """A checkpoint's sampler as this run goes on from it, which may ask for another policy.

    Raises:
      CheckpointError: when a live stream's samples that it needs are gone.
    """
    state, its = saved.under("sampler"), saved.record["config"]
    mine = config.bits_depend_on()
    if all(mine[name] == its[name] for name in _REACH):
        return state
    position = saved.record["progress"]["position"]
    now = history(config.history, seed=config.seed, size=config.history_size)
    was = its["history"], its["history_size"]
    try:
        _read_all(data, Feed(config, data).oldest(position), position)
        new = carried(state, was, now, lambda: data.labels[:position])
        return new if new.keys() > {"kept", "seen"} else with_rows(new, data)
    except DataError as error:
        raise CheckpointError(
            f"{config.run} cannot go on with --history {config.history} of {config.history_size}: "
            f"{error}; keep --history {was[0]} of {was[1]}, or give a new --run folder"
        ) from error


def _read_all(data: Samples, start: int, stop: int) -> None:
    """Finds out what a live stream has let go of; what it has not, an array has anyway."""
    if isinstance(data, LiveData):
        for first in range(start, stop, _READ_AT_ONCE):
            data.batch(slice(first, min(stop, first + _READ_AT_ONCE)))


def parsed(lines: Iterable[bytes], folder: str | None) -> Iterator[dict[str, Any]]:
    """Lines of the metrics as what a drift is found in.

    Raises:
      CheckpointError: for a line that is no version's.
    """
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not record.keys() >= _WATCHED:
            raise CheckpointError(
                f"line {number} of {folder}/metrics.jsonl is no version's: it was changed; give a "
                "new --run folder"
            )
        yield record


def check_same(saved: Saved, config: TrainConfig, writer: Writer) -> None:
    """Whether this run makes the checkpoint's bits again.

    Raises:
      CheckpointError: names what is other, unless a new lineage is asked for; also where another
        version of this library wrote it in a form of its own.
    """
    form = saved.record.get("form")
    if form != FORM:
        raise CheckpointError(
            f"the checkpoints in {writer.folder} have form {form}, this cdl_jax reads {FORM}: go "
            "on with the version that wrote them, or give a new --run folder and a new --log"
        )
    for what in ("program", "config"):
        mine, its = writer.facts[what], saved.record.get(what)
        if mine != its and not config.new_lineage:
            name = {"config": "configuration"}.get(what, what)
            raise CheckpointError(
                f"the checkpoints in {writer.folder} are of another {name} "
                f"({difference(mine, its)}); give a new --run folder, or --new-lineage and a new "
                "--log"
            )


def check_limit(config: TrainConfig, recorded: Sequence[int]) -> None:
    """Whether the run still takes the samples of the versions that it is to make again.

    Args:
      config: of the run.
      recorded: where these versions' samples end.

    Raises:
      ConfigError: says what limit there has to be.
    """
    made = recorded[-1] - config.initial_samples if recorded else 0
    if config.limit is not None and config.limit < made:
        raise ConfigError(
            f"limit is {config.limit}, but the versions that {config.run} is to make again took "
            f"{made} samples of the stream; give {made} or more"
        )


def check_log(saved: Saved, state: TrainState, log: UpdateLog, config: TrainConfig) -> None:
    """Whether a log is the one that a checkpoint stands in.

    Raises:
      CheckpointError: when it lacks the checkpoint's version, or holds another model there.
    """
    manifest = log.manifest()
    lineage = None if manifest is None else manifest.lineage.hex()
    if config.new_lineage and lineage != saved.record["lineage"]:
        return
    head = log.head()
    if lineage != saved.record["lineage"] or head is None or head < saved.version:
        raise CheckpointError(
            f"the log {log.name} does not hold version {saved.version}, from which {config.run} "
            "goes on; give the log that belongs to it, or --new-lineage and a new --log"
        )
    blob = log.read(saved.version) if saved.version else None
    if blob is not None and not np.array_equal(decode_update(blob).digest, _digest(state)):
        raise CheckpointError(
            f"version {saved.version} in the log {log.name} leads to another model than the "
            f"checkpoint in {config.run} holds ({digests.to_hex(_digest(state))}); give a new "
            "--run folder"
        )


def _digest(state: TrainState) -> np.ndarray:
    return np.asarray(jax.device_get(state.digest))
