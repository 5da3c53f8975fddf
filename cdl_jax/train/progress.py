"""How a run goes and how it went: a summary, a progress bar."""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import rich.progress

from cdl_jax.train import plain_json

_PAUSE = 0.1  # seconds from one drawing to the next


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
    nonfinite_losses: int = 0  # of samples; left out of the loss
    drifts: int = 0  # found
    seconds: float = 0.0  # of the continuous part
    interrupted: bool = False

    def to_json(self) -> str:
        """JSON, one field a line."""
        return json.dumps(plain_json.finite(dataclasses.asdict(self)), indent=1) + "\n"


class Bar:
    """A progress bar with accuracy, bytes and versions a second, drawn ten times a second."""

    def __init__(self, title: str, total: int | None):
        columns = rich.progress.Progress.get_default_columns()
        self._bar = rich.progress.Progress(
            *columns, rich.progress.TextColumn("{task.fields[note]}"), console=_stderr()
        )
        self._task = self._bar.add_task(title, total=total, note="")
        self._begun, self._drawn = time.monotonic(), -_PAUSE
        self._behind, self._note = 0, lambda: ""

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._draw()
        self._bar.stop()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Moves on by `amount`; a note is drawn at once."""
        self._move(amount, lambda: note)
        if note:
            self._draw()

    def show(self, summary: Summary, amount: int) -> None:
        """Moves on by `amount` samples and shows the summary so far."""
        self._move(amount, lambda: self._words(summary))

    def _words(self, summary: Summary) -> str:
        rate = summary.versions / max(1e-9, time.monotonic() - self._begun)
        megabytes = f"{summary.bytes_sent / 1e6:.2f} MB"
        return f"accuracy {summary.accuracy:.4f}  {megabytes}  {rate:.0f} versions/s"

    def _move(self, amount: int, note: Callable[[], str]) -> None:
        self._behind, self._note = self._behind + amount, note
        if time.monotonic() - self._drawn >= _PAUSE:
            self._draw()

    def _draw(self) -> None:
        self._bar.update(self._task, advance=self._behind, note=self._note())
        self._behind, self._drawn = 0, time.monotonic()


def _stderr() -> Any:
    import rich.console

    return rich.console.Console(stderr=True)
