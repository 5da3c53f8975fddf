"""What a run writes down: JSON lines, triggers, lives."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from cdl_jax.errors import CheckpointError, ConfigError
from cdl_jax.train import plain_json
from cdl_jax.train.provenance import made_by
from cdl_jax.train.tracking import Place, Trackers


class Records:
    """A run's folder, which is there. None writes nothing.

    metrics.jsonl has a line per version; triggers.txt a line "version stop" per step, written
    before the step is taken, where stop is the position behind its newest sample; summary.json
    the outcome; about.json a list of the run's lives, begun by one command each. JSON as RFC 8259
    has it: null for a number that is not finite.
    """

    def __init__(self, folder: str | None):
        self.folder = None if folder is None else pathlib.Path(folder)
        self._lines: Any = None
        self._stops: Any = None
        self._recorded: dict[int, int] = {}
        self._trackers = None if self.folder is None else Trackers(self.folder)
        self._version = self._newest = 0  # where this life goes on, and where the last one ended
        self._kept = 0, 0  # bytes of the metrics and of the triggers that stay

    def about(self, facts: dict[str, Any]) -> None:
        """Adds this life to about.json: the facts, and what it was made by."""
        if self.folder is not None:
            life = {"version": self._version, **facts, **made_by()}
            lives = [*_lives(self.folder / "about.json"), life]
            self.text("about.json", json.dumps(lives, indent=1) + "\n")

    def track(self, names: Sequence[str], config: dict[str, Any]) -> None:
        """Sends the numbers of every version from now on to these trackers, too."""
        if self.folder is not None and self._trackers is not None:
            place = Place(self.folder, config, version=self._version)
            self._trackers.begin(names, place, self._newest)

    def begin(self, *, again: bool = False) -> None:
        """Starts all of it anew.

        Args:
          again: for a log that has versions already: the triggers stay, for its versions to be
            made again from the same samples.
        """
        if self.folder is not None and self._trackers is not None:
            self._trackers.forget()
            (self.folder / "about.json").unlink(missing_ok=True)
            self._lines = _open(self.folder / "metrics.jsonl", "w")
            self._stops = _open(self.folder / "triggers.txt", "a" if again else "w")
            self._recorded, here = _triggers_behind(self.folder / "triggers.txt", 0)
            self._stops.truncate(here)

    def look(self, version: int, metrics_bytes: int, *, again: bool = True) -> None:
        """Reads what an earlier life left behind a checkpoint, and changes nothing.

        Args:
          version, metrics_bytes: of the checkpoint.
          again: keeps the triggers that come, for their versions to be made again from the same
            samples; not for a log that has none of these versions.

        Raises:
          CheckpointError: when the metrics are shorter than they were at that version, or a file
            was damaged.
        """
        if self.folder is not None:
            self._check_length(version, metrics_bytes)
            _lives(self.folder / "about.json")
            metrics, triggers = self.folder / "metrics.jsonl", self.folder / "triggers.txt"
            behind, here = _triggers_behind(triggers, version)
            self._recorded = behind if again else {}
            self._kept = metrics_bytes, here if again else _length_up_to(triggers, version)
            self._version, self._newest = version, _newest_behind(metrics, metrics_bytes, version)

    def resume(self) -> None:
        """Goes on behind the version that was looked at: cuts off what is to come again."""
        if self.folder is not None:
            self._lines = _open(self.folder / "metrics.jsonl", "a")
            self._stops = _open(self.folder / "triggers.txt", "a")
            for file, length in zip((self._lines, self._stops), self._kept, strict=True):
                file.truncate(length)

    def line(self, record: dict[str, Any]) -> None:
        """Appends one record, and tells the trackers its numbers."""
        if self._lines is not None:
            self._lines.write(plain_json.line(record) + "\n")
        if self._trackers is not None:
            self._trackers.log(record)

    def lines(self, version: int, metrics_bytes: int) -> Iterator[bytes]:
        """The metrics up to `version`, line by line: there may be many.

        Raises:
          CheckpointError: when they are shorter than they were at that version.
        """
        if self.folder is not None:
            self._check_length(version, metrics_bytes)
            with (self.folder / "metrics.jsonl").open("rb") as file:
                while metrics_bytes > 0 and (line := file.readline(metrics_bytes)):
                    metrics_bytes -= len(line)
                    yield line

    def _check_length(self, version: int, metrics_bytes: int) -> None:
        path = pathlib.Path(str(self.folder), "metrics.jsonl")
        size = path.stat().st_size if path.exists() else 0
        if size < metrics_bytes:
            raise CheckpointError(
                f"{path} has {size} bytes, at version {version} it had {metrics_bytes}: it was "
                "changed; give a new --run folder"
            )

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
        """Writes a small file, whole or not at all."""
        if self.folder is not None:
            draft = self.folder / f".{name}.part"
            with _open(draft, "w") as file:
                file.write(content)
            draft.rename(self.folder / name)

    def close(self) -> None:
        """Closes the files and the trackers."""
        for file in (self._lines, self._stops, self._trackers):
            if file is not None:
                file.close()


def _newest_behind(path: pathlib.Path, metrics_bytes: int, version: int) -> int:
    """The version of the last line behind so many bytes; `version` where there is none."""
    if not path.exists():
        return version
    with path.open("rb") as file:
        file.seek(metrics_bytes)
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a kill cut it short
            return int(json.loads(line)["version"])
    return version


def _lives(path: pathlib.Path) -> list[Any]:
    try:
        lives = json.loads(path.read_text()) if path.exists() else []
    except ValueError:
        lives = None
    if not isinstance(lives, list):
        raise CheckpointError(f"{path} is no list of the run's lives: it was changed; remove it")
    return lives


def _open(path: pathlib.Path, mode: str) -> Any:
    try:
        return path.open(mode, buffering=1)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _triggers_behind(path: pathlib.Path, version: int) -> tuple[dict[int, int], int]:
    """Triggers of the versions behind `version`, and the bytes of all whole lines.

    A kill may have cut the last one short.
    """
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    try:
        pairs = [(int(v), int(stop)) for v, stop in map(bytes.split, whole.splitlines())]
    except ValueError as error:
        raise CheckpointError(
            f"{path} has a line that is not VERSION STOP ({error}): it was changed; give a new "
            "--run folder"
        ) from error
    return {v: stop for v, stop in pairs if v > version}, len(whole) + 1 if whole else 0


def _length_up_to(path: pathlib.Path, version: int) -> int:
    """Bytes of the whole lines of the versions up to this one."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return sum(len(line) for line in whole if int(line.split()[0]) <= version)
