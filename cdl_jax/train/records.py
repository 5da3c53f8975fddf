"""What a run writes down and shows: JSON lines, a summary, a progress bar."""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import rich.progress

from cdl_jax.errors import CheckpointError, ConfigError
from cdl_jax.train.tracking import Tracker, numbers, tracker

_PACKAGES = ("cdl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Records:
    """A run's folder. None writes nothing.

    metrics.jsonl has a line per version; triggers.txt a line "version stop" per step, written
    before the step is taken, where stop is the position behind its newest sample; summary.json
    the outcome.
    """

    def __init__(self, folder: str | None):
        self.folder = None if folder is None else _make(pathlib.Path(folder))
        self._lines: Any = None
        self._stops: Any = None
        self._recorded: dict[int, int] = {}
        self._trackers: list[Tracker] = []

    def about(self, facts: dict[str, Any]) -> None:
        """Writes about.json: the facts, the versions of what made them, and the commit."""
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=pathlib.Path(__file__).parent,
            capture_output=True, text=True, check=False,
        ).stdout.strip() if shutil.which("git") else ""  # fmt: skip
        versions = {d.name: d.version for d in importlib.metadata.distributions()}
        made_by = {name: versions.get(name, "") for name in _PACKAGES}
        about = {**facts, "versions": {"python": platform.python_version(), **made_by}}
        self.text("about.json", json.dumps({**about, "commit": commit}, indent=1) + "\n")

    def track(self, names: Sequence[str], config: dict[str, Any]) -> None:
        """Sends the numbers of every version from now on to these trackers, too."""
        if self.folder is not None:
            self._trackers += [tracker(name, self.folder, config) for name in names]

    def begin(self) -> None:
        """Starts both files anew."""
        if self.folder is not None:
            self._lines = _open(self.folder / "metrics.jsonl", "w")
            self._stops = _open(self.folder / "triggers.txt", "w")

    def resume(self, version: int, metrics_bytes: int) -> None:
        """Goes on behind `version`: cuts the metrics there, keeps the triggers that come.

        Raises:
          CheckpointError: when the metrics are shorter than they were at that version.
        """
        if self.folder is None:
            return
        self._stops = _open(self.folder / "triggers.txt", "a")
        self._recorded = _triggers_behind(self.folder / "triggers.txt", version, self._stops)
        self._lines = _open(self.folder / "metrics.jsonl", "a")
        if self._lines.tell() < metrics_bytes:
            raise CheckpointError(
                f"{self.folder}/metrics.jsonl has {self._lines.tell()} bytes, at version {version} "
                f"it had {metrics_bytes}: it was changed; give a new --run folder"
            )
        self._lines.truncate(metrics_bytes)

    def line(self, record: dict[str, Any]) -> None:
        """Appends one record, and tells the trackers its numbers."""
        if self._lines is not None:
            self._lines.write(json.dumps(record) + "\n")
        for writer in self._trackers:
            writer.log(record["version"], numbers(record))

    def lines(self, metrics_bytes: int) -> Iterator[dict[str, Any]]:
        """The records in the first so many bytes of the metrics."""
        if self.folder is not None:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                yield from map(json.loads, file.read(metrics_bytes).splitlines())

    def position(self) -> int:
        """Bytes of metrics written so far."""
        return 0 if self._lines is None else self._lines.tell()

    def trigger(self, version: int, stop: int) -> None:
        """Writes where the samples of a version end, unless an earlier life did."""
        if self._stops is not None and version not in self._recorded:
            self._stops.write(f"{version} {stop}\n")

    def triggers_after(self, version: int) -> list[int]:
        """Where the samples of the versions behind `version` ended in an earlier life."""
        out = []
        while (version := version + 1) in self._recorded:
            out.append(self._recorded[version])
        return out

    def text(self, name: str, content: str) -> None:
        """Writes a small file."""
        if self.folder is not None:
            (self.folder / name).write_text(content)

    def close(self) -> None:
        """Closes the files and the trackers."""
        for file in (self._lines, self._stops, *self._trackers):
            if file is not None:
                file.close()


@dataclasses.dataclass
class Summary:
    """The outcome of a run, as summary.json holds it."""

    strategy: str
    versions: int = 0
    samples: int = 0
    accuracy: float = 0.0  # prequential, of the deployed model
    loss: float = 0.0  # of the same
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)  # of the same, prequential
    frozen_accuracy: float = 0.0  # of the initial model on the same samples
    bytes_sent: int = 0
    dense_bytes: int = 0  # one whole model
    digest: str = ""  # full, of the last version
    full_digests: int = 0  # recomputed over all entries and found equal to the running one
    skipped: int = 0
    drifts: int = 0  # found
    seconds: float = 0.0  # of the continuous part
    interrupted: bool = False

    def to_json(self) -> str:
        """JSON, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


class Bar:
    """A progress bar with accuracy, bytes and versions a second."""

    def __init__(self, title: str, total: int | None):
        columns = rich.progress.Progress.get_default_columns()
        self._bar = rich.progress.Progress(
            *columns, rich.progress.TextColumn("{task.fields[note]}"), console=_stderr()
        )
        self._task = self._bar.add_task(title, total=total, note="")
        self._begun = time.monotonic()

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Moves on by `amount`."""
        self._bar.update(self._task, advance=amount, note=note)

    def show(self, summary: Summary, amount: int) -> None:
        """Moves on by `amount` samples and shows the summary so far."""
        rate = summary.versions / max(1e-9, time.monotonic() - self._begun)
        self.advance(
            amount,
            f"accuracy {summary.accuracy:.4f}  {summary.bytes_sent / 1e6:.2f} MB  "
            f"{rate:.0f} versions/s",
        )


def _stderr() -> Any:
    import rich.console

    return rich.console.Console(stderr=True)


def _make(folder: pathlib.Path) -> pathlib.Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {folder}: {error.strerror}") from error
    return folder


def _open(path: pathlib.Path, mode: str) -> Any:
    try:
        return path.open(mode, buffering=1)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _triggers_behind(path: pathlib.Path, version: int, file: Any) -> dict[int, int]:
    """Triggers of the versions behind `version`; cuts off a last line that a kill cut short."""
    whole = path.read_text().rpartition("\n")[0]
    file.truncate(len(whole) + 1 if whole else 0)
    pairs = (map(int, line.split()) for line in whole.splitlines())
    return {v: stop for v, stop in pairs if v > version}
