"""Table: forms of the new values, by density and scope: accuracy, bytes, times less.

A form is compared with float32 of its density and scope, QSGD with dense proactive training.
"""

import pathlib

from experiments.cells import BITS, DENSITIES, FORMS, SCOPES
from experiments.figures.labels import density as say
from experiments.figures.results import Results, paired, signatures, sizes

HEAD = (
    "| density | scope | values | prequential accuracy, % | minus float32 (QSGD: minus dense "
    "proactive), points | bytes an update, signed | times less than the model |\n"
    "|---|---|---|---|---|---|---|\n"
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
        rows.append(
            f"| all | tensor | QSGD, {bits} bits " + _rest(results, cells[-1], "proactive-8")
        )
    added = signatures([r for cell in cells for r in results.get(cell)])
    note = "One seed does not tell a difference this small from the noise."
    return HEAD + "\n".join(rows) + f"\n\n{note} {added}".rstrip() + "\n"


def _rest(results: Results, cell: str, base: str) -> str:
    runs = results.get(cell)
    if not runs:
        return "| not run | - | - | - |"
    pairs = paired(runs, results.get(base))
    apart = "-" if cell == base or not pairs else results.plus_minus(pairs, 3)
    accuracy = results.plus_minus([r.accuracy for r in runs])
    return f"| {accuracy} | {apart} | {sizes(runs)} |"
