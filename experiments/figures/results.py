"""What the grid's result files say, by cell."""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

RESULTS = pathlib.Path("experiments/results")
# Two-sided 95% points of Student's t for 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclasses.dataclass(frozen=True)
class Result:
    """One run: what it was, its curve, its summary."""

    header: dict[str, Any]
    points: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.header["seed"]

    @property
    def accuracy(self) -> float:
        """Prequential, of the deployed model, over the whole stream; percent."""
        return 100 * self.summary["accuracy"]

    @property
    def bytes_an_update(self) -> float:
        """On the wire, headers, digest and BatchNorm statistics included."""
        return self.summary["bytes_sent"] / self.summary["versions"]

    @property
    def times_less(self) -> float:
        """The dense float32 model with its statistics, in updates."""
        return self.summary["dense_bytes"] / self.bytes_an_update


@dataclasses.dataclass(frozen=True)
class Results:
    """All results of a data set, profile and model: by cell, each a list by seed."""

    dataset: str
    profile: str
    model: str
    by_cell: dict[str, list[Result]]

    def get(self, cell: str) -> list[Result]:
        """A cell's runs; none when it has not been run."""
        return self.by_cell.get(cell, [])

    @property
    def title(self) -> str:
        """What the results are of."""
        return f"{self.model} on {self.dataset}, {self.profile} profile"


def load(dataset: str, profile: str, model: str) -> Results:
    """Reads the result files; a cell that has none was not run."""
    by_cell: dict[str, list[Result]] = {}
    for path in sorted((RESULTS / f"{dataset}-{profile}").glob(f"{model}-*.jsonl")):
        header, *points, last = map(json.loads, path.read_text().splitlines())
        result = Result(header, points, last["summary"])
        by_cell.setdefault(header["cell"], []).append(result)
    for runs in by_cell.values():
        runs.sort(key=lambda r: r.seed)
    return Results(dataset, profile, model, by_cell)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95% confidence interval (Student's t); None for one value.

    Examples:
      >>> interval([1.0, 2.0, 3.0])
      (2.0, 2.484...)
    """
    if len(values) < 2:
        return values[0], None
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), STUDENT[len(values) - 2] * spread


def plus_minus(values: Sequence[float], digits: int = 2) -> str:
    """Mean and 95% interval for a table's cell; the number of runs where it is one."""
    if not values:
        return "not run"
    mean, half = interval(values)
    if half is None:
        return f"{mean:.{digits}f} (1 seed)"
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def paired(runs: Sequence[Result], base: Sequence[Result]) -> list[float]:
    """Differences in accuracy by seed, points of a percent, of the seeds that both have."""
    theirs = {r.seed: r.accuracy for r in base}
    return [r.accuracy - theirs[r.seed] for r in runs if r.seed in theirs]


def caption(results: Results, cells: Sequence[str], command: str) -> str:
    """Where and how: device, versions, seeds, initial weights, data and command."""
    runs = [r for cell in cells for r in results.get(cell)]
    if not runs:
        return f"{results.title}: not run. Command: {command}"
    seeds = sorted({r.seed for r in runs})
    devices = sorted({f"{r.header['device']}, {p['threads']} thread(s)"
                      for r in runs for p in r.header["programs"]})  # fmt: skip
    versions = sorted({", ".join(f"{k} {v}" for k, v in r.header["versions"].items())
                       for r in runs})  # fmt: skip
    weights = sorted({r.header["initial_weights"] for r in runs})
    return (
        f"{results.title}. Seeds {', '.join(map(str, seeds))}; initial weights: "
        f"{'; '.join(weights)}; data: tensorflow_datasets' {results.dataset}, train split in its "
        f"order; device: {'; '.join(devices)}; {'; '.join(versions)}. Command: {command}"
    )
