"""What a run writes down and shows: JSON lines, a summary, a progress bar."""

import dataclasses
import json
import pathlib
import time
from typing import Any

import rich.progress

from cdl_jax.errors import ConfigError


class Records:
    """A run's folder: metrics.jsonl, a line per version, and summary.json. None writes nothing."""

    def __init__(self, folder: str | None):
        self._folder = None if folder is None else _make(pathlib.Path(folder))
        self._lines = None if self._folder is None else _open(self._folder / "metrics.jsonl")

    def line(self, record: dict[str, Any]) -> None:
        """Appends one record."""
        if self._lines is not None:
            self._lines.write(json.dumps(record) + "\n")

    def text(self, name: str, content: str) -> None:
        """Writes a small file."""
        if self._folder is not None:
            (self._folder / name).write_text(content)

    def close(self) -> None:
        """Closes the file of lines."""
        if self._lines is not None:
            self._lines.close()


@dataclasses.dataclass
class Summary:
    """The outcome of a run, as summary.json holds it."""

    strategy: str
    versions: int = 0
    samples: int = 0
    accuracy: float = 0.0  # prequential, of the deployed model
    frozen_accuracy: float = 0.0  # of the initial model on the same samples
    bytes_sent: int = 0
    dense_bytes: int = 0  # one whole model
    digest: str = ""  # full, of the last version
    full_digests: int = 0  # recomputed over all entries and found equal to the running one
    skipped: int = 0
    seconds: float = 0.0  # of the continuous part
    interrupted: bool = False

    def to_json(self) -> str:
        """JSON, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


class Bar:
    """A progress bar with accuracy, bytes and versions a second."""

    def __init__(self, title: str, total: int):
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


def _open(path: pathlib.Path) -> Any:
    try:
        return path.open("w", buffering=1)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
