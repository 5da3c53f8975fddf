"""Figure and table: accuracy against training time, in full retraining's times.

Times are those of `experiments.training_time`, accuracies the grid's.
"""

import json
import pathlib
import statistics
from typing import Any

from experiments.figures import labels, plotting
from experiments.figures.results import RESULTS, Results, caption, interval, plus_minus
from experiments.origin import BEFORE

FILE = "training_time.json"
HEAD = (
    "| strategy | steps | time / full retraining: median (range) | steps / full retraining "
    "| off by, median | off by, %, mean ± 95% interval of the seeds | one retraining / one step "
    "| prequential accuracy, % |\n|---|---|---|---|---|---|---|---|\n"
)
BOUND = 10  # percent, that the issue allows
OLD = (
    "Measured before retrainings were kept from compiling: all but the first compiled the step for "
    "their short last batch, once, within their time, which makes the others look faster."
)


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Writes the plot; returns the table's Markdown and its own."""
    path = RESULTS / FILE
    if (results.model, results.profile, results.weights) != (
        "lenet5",
        "full",
        "",
    ) or not path.exists():
        return "Training time was measured for LeNet5 on MNIST, full profile, alone.\n"
    measured = json.loads(path.read_text())
    cells = list(dict.fromkeys(row["cell"] for row in measured["cells"]))
    shown = [(c, [r for r in measured["cells"] if r["cell"] == c]) for c in cells]
    totals = ", ".join(f"{sum(r['seconds']):.1f}" for r in measured["retraining"])
    text = (
        f"Times: {measured['device']}, {_threads(measured)}, random initial weights, data: "
        f"{measured.get('data') or BEFORE['mnist']}; {measured['command']}; total of full "
        f"retraining by seed, s: {totals}. {_deviation(shown)}"
    )
    if any("method" not in row for row in measured["cells"]):
        text += f" {OLD}"
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


def off_by(rows: list[dict[str, Any]]) -> list[float]:
    """By seed: how much more time than the step counts say, against full retraining; percent."""
    ratios = [r["time / full retraining"] / r["steps / full retraining"] for r in rows]
    return [100 * (x - 1) for x in ratios]


def _deviation(shown: list[tuple[str, list[dict[str, Any]]]]) -> str:
    """Which strategies are further from the step counts than the bound, and which way."""
    medians = {labels.label(c): statistics.median(off_by(rows)) for c, rows in shown}
    far = [
        f"{name} {abs(x):.1f}% {'faster' if x < 0 else 'slower'}"
        for name, x in medians.items()
        if abs(x) > BOUND
    ]
    said = f"In the median all are within {BOUND}% of what the step counts say"
    if far:
        said = f"Over {BOUND}% from what the step counts say, in the median: {'; '.join(far)}"
    wide = [labels.label(c) for c, rows in shown if not _within(off_by(rows))]
    return said + (f"; intervals that reach beyond: {', '.join(wide)}." if wide else ".")


def _within(apart: list[float]) -> bool:
    mean, half = interval(apart)
    return half is not None and abs(mean) + half <= BOUND


def _threads(measured: dict[str, Any]) -> str:
    found = sorted({r["threads"] for r in measured["cells"] if "threads" in r})
    return f"{', '.join(map(str, found))} thread(s)" if found else "threads not recorded"


def _row(results: Results, cell: str, rows: list[dict[str, Any]]) -> str:
    spread = [r["time / full retraining"] for r in rows]
    one = [x for r in rows for x in r["one retraining / one step"]]
    apart = off_by(rows)
    columns = (
        labels.label(cell), f"{rows[0]['steps']:,}",
        f"{statistics.median(spread):.3f} ({min(spread):.3f} to {max(spread):.3f})",
        f"{rows[0]['steps / full retraining']:.3f}", f"{statistics.median(apart):+.1f}%",
        plus_minus(apart, 1), f"{min(one):,.0f} to {max(one):,.0f}",
        results.plus_minus([r.accuracy for r in results.get(cell)]),
    )  # fmt: skip
    return f"| {' | '.join(columns)} |"
