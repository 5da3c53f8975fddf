"""Table: compressed after the optimizer against before it (the paper's order), by real bytes.

Before the optimizer an update carries whatever Adam's moments moved. The last columns take, for
each density of the paper's order, the run after the optimizer that comes nearest to its real bytes
without sending more, and the difference paired by seed.
"""

import pathlib

from experiments.cells import DENSITIES, SCOPES
from experiments.figures.labels import density as say
from experiments.figures.labels import label
from experiments.figures.results import Results, interval, paired, plus_minus

HEAD = (
    "| density | before: accuracy, % | bytes an update | changed a step, % | after: nearest in "
    "bytes, not above | its bytes an update | minus before, points |\n"
    "|---|---|---|---|---|---|---|\n"
)
AFTER = [f"top_k-{d:g}-{s}-float32" for d in DENSITIES for s in SCOPES]


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Returns the table's Markdown."""
    del folder, command
    before = [f"top_k-{d:g}-tensor-float32-before" for d in DENSITIES[:3]]
    rows = [_row(results, d, cell) for d, cell in zip(DENSITIES, before, strict=False)]
    return HEAD + "\n".join(rows) + "\n"


def _row(results: Results, density: float, cell: str) -> str:
    runs = results.get(cell)
    if not runs:
        return f"| {say(density)} | not run | - | - | - | - | - |"
    bytes_ = _bytes(results, cell)
    entries = sum(p["entries"] for p in runs[0].points) / len(runs[0].points)
    share = 100 * entries / (runs[0].summary["dense_bytes"] / 4)
    nearest = max(
        (c for c in AFTER if results.get(c) and _bytes(results, c) <= bytes_),
        key=lambda c: _bytes(results, c),
        default=None,
    )
    first = (
        f"| {say(density)} | {plus_minus([r.accuracy for r in runs])} | {bytes_:,.0f} "
        f"| {share:.1f} "
    )
    if nearest is None:
        return first + "| not run | - | - |"
    apart = plus_minus(paired(results.get(nearest), runs), 3)
    return first + f"| {label(nearest)} | {_bytes(results, nearest):,.0f} | {apart} |"


def _bytes(results: Results, cell: str) -> float:
    return interval([r.bytes_an_update for r in results.get(cell)])[0]
