"""Table: the paper's strategies side by side, with paired differences to dense proactive."""

import pathlib

from experiments.cells import DENSITIES, MATCHED, SCOPES, TRIGGERS
from experiments.figures import labels
from experiments.figures.results import Result, Results, paired, signatures, sizes

CELLS = (
    "full", "online-128", *(f"proactive-{t}" for t in TRIGGERS),
    *(f"top_k-{d:g}-{s}-float32" for d in DENSITIES for s in SCOPES),
    *(f"top_k-{d:g}-tensor-float32" for d in MATCHED),
    *(f"random_k-{d:g}-tensor-float32" for d in DENSITIES),
    *(f"top_k-{d:g}-tensor-float32-before" for d in DENSITIES),
)  # fmt: skip
BASE = "proactive-8"
HEAD = (
    "| strategy | prequential accuracy, % | minus dense proactive, points | bytes an update, "
    "signed | times less than the model |\n|---|---|---|---|---|\n"
)
NOTE = (
    "Mean ± 95% interval, differences paired by seed. Where a difference's interval includes 0, or "
    "there is one seed, these seeds do not tell the two apart; a bound on it holds where the whole "
    "interval lies within it. Whole models are counted without a header."
)


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Returns the table's Markdown."""
    del folder, command
    rows = [_row(results, cell) for cell in CELLS]
    base = results.get(BASE)
    if base:
        rows.insert(0, _frozen(results, base))
    added = signatures([r for cell in CELLS for r in results.get(cell)])
    return HEAD + "\n".join(rows) + f"\n\n{NOTE} {added}".rstrip() + "\n"


def _frozen(results: Results, base: list[Result]) -> str:
    frozen = [100 * r.summary["frozen_accuracy"] for r in base]
    apart = [x - r.accuracy for x, r in zip(frozen, base, strict=True)]
    said = f"{results.plus_minus(frozen)} | {results.plus_minus(apart, 3)}"
    return f"| frozen initial model | {said} | - | - |"


def _row(results: Results, cell: str) -> str:
    runs = results.get(cell)
    if not runs:
        return f"| {labels.label(cell)} | not run | - | - | - |"
    accuracy = results.plus_minus([r.accuracy for r in runs])
    pairs = paired(runs, results.get(BASE))
    apart = "-" if cell == BASE or not pairs else results.plus_minus(pairs, 3)
    return f"| {labels.label(cell)} | {accuracy} | {apart} | {sizes(runs)} |"
