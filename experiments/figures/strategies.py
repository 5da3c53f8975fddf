"""Table: the paper's strategies side by side, with paired differences to dense proactive."""

import pathlib

from experiments.cells import DENSITIES, SCOPES, TRIGGERS
from experiments.figures import labels
from experiments.figures.results import Results, paired, plus_minus

CELLS = (
    "full", "online-128", *(f"proactive-{t}" for t in TRIGGERS),
    *(f"top_k-{d:g}-{s}-float32" for d in DENSITIES for s in SCOPES),
    *(f"random_k-{d:g}-tensor-float32" for d in DENSITIES),
    *(f"top_k-{d:g}-tensor-float32-before" for d in DENSITIES[:3]),
)  # fmt: skip
HEAD = (
    "| strategy | prequential accuracy, % | minus dense proactive, points | bytes an update "
    "| times less than the model |\n|---|---|---|---|---|\n"
)


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Returns the table's Markdown."""
    del folder, command
    base = _base(results)
    rows = [_row(results, cell, base) for cell in CELLS]
    some = next((r for runs in results.by_cell.values() for r in runs), None)
    if some is not None:
        frozen = [100 * r.summary["frozen_accuracy"] for r in results.get(base)]
        rows.insert(0, f"| frozen initial model | {plus_minus(frozen)} | - | - | - |")
    return HEAD + "\n".join(rows) + "\n"


def _base(results: Results) -> str:
    return "proactive-8"


def _row(results: Results, cell: str, base: str) -> str:
    runs = results.get(cell)
    if not runs:
        return f"| {labels.label(cell)} | not run | - | - | - |"
    accuracy = plus_minus([r.accuracy for r in runs])
    apart = "-" if cell == base else plus_minus(paired(runs, results.get(base)), 3)
    mean = sum(r.bytes_an_update for r in runs) / len(runs)
    less = runs[0].summary["dense_bytes"] / mean
    return f"| {labels.label(cell)} | {accuracy} | {apart} | {mean:,.0f} | {less:,.0f} |"
