"""What the grid's result files say, by cell."""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import scipy.special

from experiments.origin import BEFORE

RESULTS = pathlib.Path("experiments/results")
SIGNATURE = 64  # bytes of an update, always (cdl_jax/wire/FORMAT.md)


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
    def unsigned(self) -> bool:
        """Whether its updates went through the wire without a signature."""
        return self.header["settings"].get("strategy") == "sparse" and not self.header.get("signed")

    @property
    def bytes_an_update(self) -> float:
        """On the wire, headers, digest, signature and BatchNorm statistics included."""
        sent = self.summary["bytes_sent"] / self.summary["versions"]
        return sent + SIGNATURE * self.unsigned


@dataclasses.dataclass(frozen=True)
class Results:
    """All results of a data set, profile, model and initial weights: by cell, each by seed."""

    dataset: str
    profile: str
    model: str
    by_cell: dict[str, list[Result]]
    weights: str = ""  # "" for random ones, else the folders' suffix

    def get(self, cell: str) -> list[Result]:
        """A cell's runs; none when it has not been run."""
        return self.by_cell.get(cell, [])

    @property
    def title(self) -> str:
        """What the results are of."""
        weights = f", weights {self.weights[1:]}" if self.weights else ""
        return f"{self.model} on {self.dataset}, {self.profile} profile{weights}"

    @property
    def seeds(self) -> int:
        """That the cell with the most has: a table marks what has fewer."""
        return max((len(runs) for runs in self.by_cell.values()), default=0)

    def plus_minus(self, values: Sequence[float], digits: int = 2) -> str:
        """Mean and interval, and how many seeds where others have more."""
        return plus_minus(values, digits, of=self.seeds)


def load(dataset: str, profile: str, model: str, weights: str = "") -> Results:
    """Reads the result files; a cell that has none was not run."""
    by_cell: dict[str, list[Result]] = {}
    for path in sorted((RESULTS / f"{dataset}-{profile}{weights}").glob(f"{model}-*.jsonl")):
        header, *points, last = map(json.loads, path.read_text().splitlines())
        result = Result(header, points, last["summary"])
        by_cell.setdefault(header["cell"], []).append(result)
    for runs in by_cell.values():
        runs.sort(key=lambda r: r.seed)
    return Results(dataset, profile, model, by_cell, weights)


def weights_of(dataset: str, profile: str) -> list[str]:
    """The suffixes of the folders of a profile's results: "" of random weights first."""
    name = f"{dataset}-{profile}"
    return sorted({"", *(path.name.removeprefix(name) for path in RESULTS.glob(f"{name}-*"))})


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95% confidence interval (Student's t); None for one value.

    Examples:
      >>> interval([1.0, 2.0, 3.0])
      (2.0, 2.484...)
    """
    if len(values) < 2:
        return values[0], None
    spread = statistics.stdev(values) / len(values) ** 0.5
    student = float(scipy.special.stdtrit(len(values) - 1, 0.975))
    return statistics.fmean(values), student * spread


def plus_minus(values: Sequence[float], digits: int = 2, of: int = 0) -> str:
    """Mean and 95% interval for a table's cell; the number of runs where it is one, or below `of`.

    Examples:
      >>> plus_minus([0.1, 0.2, 0.3], of=6)
      '0.20 ± 0.25 (3 seeds)'
    """
    if not values:
        return "not run"
    mean, half = interval(values)
    if half is None:
        return f"{mean:.{digits}f} (1 seed)"
    few = f" ({len(values)} seeds)" if len(values) < of else ""
    return f"{mean:.{digits}f} ± {half:.{digits}f}{few}"


def pairs(runs: Sequence[Result], base: Sequence[Result]) -> list[tuple[Result, Result]]:
    """The runs of the seeds that both have, each beside its base."""
    theirs = {r.seed: r for r in base}
    return [(r, theirs[r.seed]) for r in runs if r.seed in theirs]


def paired(runs: Sequence[Result], base: Sequence[Result]) -> list[float]:
    """Differences in accuracy by seed, points of a percent, of the seeds that both have."""
    return [mine.accuracy - theirs.accuracy for mine, theirs in pairs(runs, base)]


def mean_bytes(runs: Sequence[Result]) -> float:
    """Of an update of some runs."""
    return statistics.fmean(r.bytes_an_update for r in runs)


def sizes(runs: Sequence[Result]) -> str:
    """Two columns: mean bytes an update, and how often the dense float32 model holds them."""
    mean = mean_bytes(runs)
    return f"{mean:,.0f} | {runs[0].summary['dense_bytes'] / mean:,.0f}"


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
    data = sorted({r.header.get("data") or BEFORE[results.dataset] for r in runs})
    return (
        f"{results.title}. Seeds {', '.join(map(str, seeds))}; initial weights: "
        f"{'; '.join(weights)}; data: {'; '.join(data)}; "
        f"device: {'; '.join(devices)}; {'; '.join(versions)}. {signatures(runs)}Command: {command}"
    )


def signatures(runs: Sequence[Result]) -> str:
    """That signatures were added to the bytes of runs that had none; empty when all were signed."""
    without = [r for r in runs if r.unsigned]
    shipping = [r for r in runs if r.unsigned or r.header.get("signed")]
    if not without:
        return ""
    return (
        f"Bytes an update have a signature's {SIGNATURE}, added for the {len(without)} of "
        f"{len(shipping)} runs that were not signed. "
    )
