"""Table: forms of the new values, by density and scope: accuracy, bytes, times less."""

import pathlib

from experiments.cells import BITS, DENSITIES, FORMS, SCOPES
from experiments.figures.labels import density as say
from experiments.figures.results import Results, paired, plus_minus

HEAD = (
    "| density | scope | values | prequential accuracy, % | minus float32, points "
    "| bytes an update | times less than the model |\n|---|---|---|---|---|---|---|\n"
)


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Returns the table's Markdown."""
    del folder, command
    rows, cells = [], []
    for density in DENSITIES[:3]:
        for scope in SCOPES:
            for values in ("float32", *FORMS):
                cells.append(f"top_k-{density:g}-{scope}-{values}")
                base = f"top_k-{density:g}-{scope}-float32"
                first = f"| {say(density)} | {scope} | {values} "
                rows.append(first + _rest(results, cells[-1], base))
    for bits in BITS:
        cells.append(f"qsgd-{bits}")
        rows.append(f"| all | tensor | QSGD, {bits} bits " + _rest(results, cells[-1], ""))
    return HEAD + "\n".join(rows) + "\n"


def _rest(results: Results, cell: str, base: str) -> str:
    runs = results.get(cell)
    if not runs:
        return "| not run | - | - | - |"
    same = [r for r in results.get(base) if r.seed in {x.seed for x in runs}]
    apart = "-" if cell == base or not same else plus_minus(paired(runs, same), 3)
    mean = sum(r.bytes_an_update for r in runs) / len(runs)
    less = runs[0].summary["dense_bytes"] / mean
    return f"| {plus_minus([r.accuracy for r in runs])} | {apart} | {mean:,.0f} | {less:,.0f} |"
