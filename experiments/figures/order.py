"""Table: compressed after the optimizer against before it (the paper's order), by real bytes.

Before the optimizer an update carries whatever Adam's moments moved. Each density of the paper's
order stands beside the runs after the optimizer that come nearest to its real bytes without sending
more, with the differences paired by seed.
"""

import itertools
import pathlib

from experiments.cells import DENSITIES, MATCHED, SCOPES
from experiments.figures.labels import density as say
from experiments.figures.labels import label
from experiments.figures.results import Results, interval, mean_bytes, paired, signatures

HEAD = (
    "| before: density | accuracy, % | bytes an update, signed | changed a step, % "
    "| after: nearest in bytes, not above | its bytes | times fewer | minus before, points "
    "| beyond the noise |\n|---|---|---|---|---|---|---|---|---|\n"
)
BEFORE = {d: f"top_k-{d:g}-tensor-float32-before" for d in DENSITIES}
PAIRS = (*itertools.product(DENSITIES, SCOPES), *((d, "tensor") for d in MATCHED))
AFTER = [f"top_k-{d:g}-{s}-float32" for d, s in PAIRS]
NEAREST = 2  # rows


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Returns the table's Markdown."""
    del folder, command
    rows = [row for d, cell in BEFORE.items() for row in _rows(results, d, cell)]
    missing = [label(c) for c in (*BEFORE.values(), *AFTER) if not results.get(c)]
    runs = [r for c in (*BEFORE.values(), *AFTER) for r in results.get(c)]
    note = (
        "Beyond the noise: whether the difference's 95% interval leaves out 0. Changed a step: the "
        f"mean over stream and seeds. {signatures(runs)}"
        + (f"Not run: {'; '.join(missing)}." if missing else "")
    )
    return HEAD + "\n".join(rows) + f"\n\n{note.rstrip()}\n"


def nearest(results: Results, cell: str) -> list[str]:
    """The cells after the optimizer of at most a cell's bytes, those of the most bytes first."""
    limit = _bytes(results, cell)
    there = [c for c in AFTER if results.get(c) and _bytes(results, c) <= limit]
    return sorted(there, key=lambda c: -_bytes(results, c))[:NEAREST]


def _rows(results: Results, density: float, cell: str) -> list[str]:
    runs = results.get(cell)
    if not runs:
        return [f"| {say(density)} | not run | - | - | - | - | - | - | - |"]
    shares = [
        p["entries"] / (r.summary["dense_bytes"] / 4) for r in runs for p in r.points
    ]  # fmt: skip
    first = (
        f"| {say(density)} | {results.plus_minus([r.accuracy for r in runs])} "
        f"| {_bytes(results, cell):,.0f} | {100 * sum(shares) / len(shares):.1f} "
    )
    found = nearest(results, cell)
    return [first + _beside(results, cell, c) for c in found] or [
        first + "| not run | - | - | - | - |"
    ]


def _beside(results: Results, before: str, after: str) -> str:
    apart = paired(results.get(after), results.get(before))
    mine, theirs = _bytes(results, after), _bytes(results, before)
    columns = (
        label(after), f"{mine:,.0f}", f"{theirs / mine:,.1f}", results.plus_minus(apart, 3),
        _told_apart(apart),
    )  # fmt: skip
    return f"| {' | '.join(columns)} |"


def _told_apart(apart: list[float]) -> str:
    if len(apart) < 2:
        return "one seed" if apart else "no seed in both"
    mean, half = interval(apart)
    assert half is not None
    if abs(mean) <= half:
        return "no"
    return "yes, better" if mean > 0 else "yes, worse"


def _bytes(results: Results, cell: str) -> float:
    return mean_bytes(results.get(cell))
