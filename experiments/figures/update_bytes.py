"""Figure and table: bytes an update against density, every model, scope and form of values.

Bytes are those of `experiments.update_bytes`: real updates of real steps, BatchNorm statistics,
headers and digest included. Accuracies are the grid's, where a cell has been run.
"""

import json
import pathlib
from typing import Any

from experiments.cells import MODELS
from experiments.figures import plotting
from experiments.figures.labels import density as say
from experiments.figures.results import RESULTS, Results, load, plus_minus

FILE = "update_bytes.json"
HEAD = (
    "| model | density | scope | values | bytes an update | times less than the model "
    "| prequential accuracy, % |\n|---|---|---|---|---|---|---|\n"
)
COLOURS = ("#1f6fb4", "#e8752a", "#2a9d5c", "#c43c3c", "#7b5aa6")


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Writes the plot; returns the table's Markdown and its own."""
    path = RESULTS / FILE
    if not path.exists():
        return f"Bytes of real updates: not run. Command: {command}\n"
    measured = json.loads(path.read_text())
    text = (
        f"{measured['about']} Device: {measured['device']}; "
        f"{', '.join(f'{k} {v}' for k, v in measured['versions'].items())}. "
        f"Command: {measured['command']}. Accuracies: {results.profile} profile of the grid, whose "
        "files say the rest; not run means that no device for it was to be had."
    )
    _plot(measured["rows"], folder, text)
    accuracy = {m: load(d, results.profile, m) for d, names in MODELS.items() for m in names}
    rows = [_row(row, accuracy[row["model"]]) for row in measured["rows"]]
    plot = "![bytes an update](update_bytes.png)"
    return HEAD + "\n".join(rows) + f"\n\n{plot}\n\n{text}\n"


def _plot(rows: list[dict[str, Any]], folder: pathlib.Path, text: str) -> None:
    fig, axes = plotting.figure(
        "Bytes an update against density, global scope", "density",
        "dense float32 model / update, in bytes",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model, colour in zip(models, COLOURS, strict=False):
        for values, style in (("float32", "o-"), ("int8", "o--")):
            mine = [
                (r["density"], r["times_less"])
                for r in rows
                if (r["model"], r["scope"], r["values"]) == (model, "global", values)
            ]
            if mine:
                x, y = zip(*sorted(mine), strict=True)
                axes.plot(x, y, style, color=colour, label=f"{model}, {values}", ms=4)
    axes.axhline(1e3, color="#bbbbbb", lw=0.8)
    axes.axhline(1e4, color="#bbbbbb", lw=0.8)
    axes.legend(fontsize=7, ncols=2)
    plotting.save(fig, folder / "update_bytes.png", text)


def _row(row: dict[str, Any], results: Results) -> str:
    runs = results.get(f"top_k-{row['density']:g}-{row['scope']}-{row['values']}")
    return (
        f"| {row['model']} | {say(row['density'])} | {row['scope']} | {row['values']} "
        f"| {row['bytes']:,.0f} | {row['times_less']:,.0f} "
        f"| {plus_minus([r.accuracy for r in runs])} |"
    )
