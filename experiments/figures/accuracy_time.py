"""Figure and table: accuracy against training time, in full retraining's times.

Times are those of `experiments.training_time`, accuracies the grid's.
"""

import json
import pathlib
import statistics
from typing import Any

from experiments.figures import labels, plotting
from experiments.figures.results import RESULTS, Results, caption, interval, plus_minus

FILE = "training_time.json"
HEAD = (
    "| strategy | steps | time / full retraining | steps / full retraining | off by | "
    "one retraining / one step | prequential accuracy, % |\n|---|---|---|---|---|---|---|\n"
)


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Writes the plot; returns the table's Markdown and its own."""
    path = RESULTS / FILE
    if (results.model, results.profile) != ("lenet5", "full") or not path.exists():
        return "Training time was measured for LeNet5 on MNIST, full profile, alone.\n"
    measured = json.loads(path.read_text())
    cells = list(dict.fromkeys(row["cell"] for row in measured["cells"]))
    shown = [(c, [r for r in measured["cells"] if r["cell"] == c]) for c in cells]
    totals = ", ".join(f"{sum(r['seconds']):.1f}" for r in measured["retraining"])
    text = (
        f"Times: {measured['device']}, {measured['command']}; total of full retraining "
        f"by seed, s: {totals}"
    )
    note = caption(results, ["full", *cells], command)
    _plot(results, shown, folder, f"{note}. {text}")
    rows = [_row(results, cell, rows) for cell, rows in shown]
    plot = "![accuracy against training time](accuracy_time.png)"
    return HEAD + "\n".join(rows) + f"\n\n{plot}\n\n{text}\n"


def _plot(results: Results, shown: Any, folder: pathlib.Path, text: str) -> None:
    fig, axes = plotting.figure(
        f"Accuracy against training time: {results.model} on {results.dataset}",
        "training time of the stream, full retraining = 1", "prequential accuracy, %",
    )  # fmt: skip
    axes.set_xscale("log")
    points = [
        (c, statistics.median(r["time / full retraining"] for r in rows)) for c, rows in shown
    ]
    for cell, time in [("full", 1.0), *points]:
        runs = results.get(cell)
        if runs:
            family = cell.split("-")[0].replace("top_k", "tensor")
            mean, half = interval([r.accuracy for r in runs])
            axes.errorbar(time, mean, half or 0, fmt="o", color=plotting.COLOURS[family], capsize=2)
            name = labels.label(cell).replace(", per tensor", "")
            axes.annotate(name, (time, mean), fontsize=7, xytext=(4, 4), textcoords="offset points")
    axes.margins(x=0.2)
    plotting.save(fig, folder / "accuracy_time.png", text)


def _row(results: Results, cell: str, rows: list[dict[str, Any]]) -> str:
    ratio = statistics.median(r["time / full retraining"] for r in rows)
    steps = rows[0]["steps / full retraining"]
    spread = [r["time / full retraining"] for r in rows]
    one = [x for r in rows for x in r["one retraining / one step"]]
    runs = results.get(cell)
    return (
        f"| {labels.label(cell)} | {rows[0]['steps']:,} | {ratio:.3f} "
        f"({min(spread):.3f} to {max(spread):.3f}) | {steps:.3f} "
        f"| {100 * (ratio / steps - 1):+.0f}% "
        f"| {min(one):,.0f} to {max(one):,.0f} | {plus_minus([r.accuracy for r in runs])} |"
    )
