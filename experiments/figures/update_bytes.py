"""Figure and table: bytes an update against density, every model, scope and form of values.

Bytes are those of `experiments.update_bytes`: real updates of real steps, BatchNorm statistics,
headers, digest and signature included. Accuracies are the grid's, where a cell has been run.
"""

import itertools
import json
import pathlib
from typing import Any

from experiments.cells import DENSITIES, FORMS, MODELS, SCOPES
from experiments.figures import plotting
from experiments.figures.labels import density as say
from experiments.figures.results import RESULTS, Results, load
from experiments.origin import BEFORE

FILE = "update_bytes.json"
HEAD = (
    "| model | density | scope | values | bytes an update, signed | times less than the model "
    "| prequential accuracy, %, profile |\n|---|---|---|---|---|---|---|\n"
)
COLOURS = ("#1f6fb4", "#e8752a", "#2a9d5c", "#c43c3c", "#7b5aa6")


NOTE = (
    "Accuracies are those of the grid's runs of the same cell, of the full profile where there are "
    "any, else of the quick one. Not run: nobody has measured that row's bytes, or run the grid's "
    "cell for its accuracy, so far."
)


def draw(folder: pathlib.Path, command: str) -> str:
    """Writes the plot; returns the table's Markdown and its own."""
    path = RESULTS / FILE
    if not path.exists():
        return f"Bytes of real updates: not run. Command: {command}\n"
    measured = json.loads(path.read_text())
    known = {(r["model"], r["density"], r["scope"], r["values"]): r for r in measured["rows"]}
    runs = {
        model: [load(dataset, profile, model) for profile in ("full", "quick")]
        for dataset, models in MODELS.items()
        for model in models
    }
    rows = [
        _row(key, known.get(key), runs[key[0]])
        for key in itertools.product(runs, DENSITIES, SCOPES, ("float32", *FORMS))
    ]
    text = f"{_caption(measured)} {NOTE}"
    _plot(measured["rows"], folder, text)
    plot = "![bytes an update](update_bytes.png)"
    return HEAD + "\n".join(rows) + f"\n\n{plot}\n\n{text}\n"


def _caption(measured: dict[str, Any]) -> str:
    """Where and how: each row's own where it says so, else the file's."""
    rows = [{**measured, **row} for row in measured["rows"]]
    devices = {f"{r['device']}, {r.get('threads', 'unrecorded')} thread(s)" for r in rows}
    versions = {", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in rows}
    of = {model: dataset for dataset, models in MODELS.items() for model in models}
    data = {r.get("data") or BEFORE[of[r["model"]]] for r in rows}
    return (
        f"{measured['about']} Data: {'; '.join(sorted(data))}. Device: "
        f"{'; '.join(sorted(devices))}; {'; '.join(sorted(versions))}. "
        f"Command: {measured['command']}."
    )


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
    axes.legend(fontsize=7, ncols=2, handlelength=4)
    plotting.save(fig, folder / "update_bytes.png", text)


def _row(key: tuple[Any, ...], row: dict[str, Any] | None, profiles: list[Results]) -> str:
    model, density, scope, values = key
    cell = f"top_k-{density:g}-{scope}-{values}"
    results = next((r for r in profiles if r.get(cell)), profiles[0])
    runs = results.get(cell)
    size = f"{row['bytes']:,.0f} | {row['times_less']:,.0f}" if row else "not run | -"
    accuracy = results.plus_minus([r.accuracy for r in runs])
    profile = f", {results.profile}" if runs else ""
    return f"| {model} | {say(density)} | {scope} | {values} | {size} | {accuracy}{profile} |"
