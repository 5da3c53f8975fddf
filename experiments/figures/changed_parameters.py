"""Figure: parameters that change in a step, compressed after and before the optimizer."""

import pathlib

from experiments.cells import DENSITIES
from experiments.figures import labels, plotting
from experiments.figures.results import Results, caption

STYLES = ("-", "--", "-.", ":")


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Writes the plot; returns its Markdown."""
    fig, axes = plotting.figure(
        f"Parameters that change in a step: {results.model} on {results.dataset}, seed 0",
        "version", "share of the parameters, %",
    )  # fmt: skip
    axes.set_yscale("log")
    lines = [("proactive-8-changed", "proactive", "-")]
    for density, style in zip(DENSITIES, STYLES, strict=True):
        lines.append((f"top_k-{density:g}-tensor-float32-before", "before", style))
        lines.append((f"top_k-{density:g}-tensor-float32", "tensor", style))
    shown = [cell for cell, *_ in lines if results.get(cell)]
    for cell, colour, style in lines:
        for run in (r for r in results.get(cell) if r.seed == 0):
            entries = run.summary["dense_bytes"] / 4
            x = [p["version"] for p in run.points]
            y = [100 * p["entries"] / entries for p in run.points]
            name = labels.label(cell).replace(", per tensor", "")
            axes.plot(x, y, style, color=plotting.COLOURS[colour], label=name)
    if shown:
        axes.legend(fontsize=7, ncols=2)
    text = caption(results, shown, command)
    plotting.save(fig, folder / "changed_parameters.png", text)
    return "![parameters that change](changed_parameters.png)\n"
