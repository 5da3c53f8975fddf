"""Figure: accuracy against bytes an update, every compressed strategy."""

import pathlib

from experiments.cells import BITS, DENSITIES, FORMS, MATCHED
from experiments.figures import plotting
from experiments.figures.results import Results, caption, interval, mean_bytes

_EACH = [f"top_k-{d:g}-tensor-float32" for d in sorted({*DENSITIES, *MATCHED}, reverse=True)]
FAMILIES: dict[str, tuple[str, list[str], str]] = {
    "top-k, per tensor": ("tensor", _EACH, "o-"),
    "top-k, global": ("global", [f"top_k-{d:g}-global-float32" for d in DENSITIES], "o-"),
    "narrow values, per tensor": (
        "tensor", [f"top_k-{d:g}-tensor-{v}" for d in DENSITIES for v in FORMS], "+",
    ),
    "narrow values, global": (
        "global", [f"top_k-{d:g}-global-{v}" for d in DENSITIES for v in FORMS], "+",
    ),
    "random-k": ("random_k", [f"random_k-{d:g}-tensor-float32" for d in DENSITIES], "s--"),
    "top-k before the optimizer (the paper's order)": (
        "before", [f"top_k-{d:g}-tensor-float32-before" for d in DENSITIES], "s--",
    ),
    "QSGD": ("qsgd", [f"qsgd-{b}" for b in BITS], "^--"),
    "dense proactive": ("proactive", ["proactive-8"], "D"),
}  # fmt: skip


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Writes the plot; returns its Markdown."""
    fig, axes = plotting.figure(
        f"Accuracy against bytes an update: {results.model} on {results.dataset}, trigger 8",
        "bytes an update on the wire, signed", "prequential accuracy, %",
    )  # fmt: skip
    axes.set_xscale("log")
    shown = []
    for name, (colour, cells, style) in FAMILIES.items():
        there = [cell for cell in cells if results.get(cell)]
        points = [
            (mean_bytes(results.get(c)), interval([r.accuracy for r in results.get(c)])[0])
            for c in there
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, style, color=plotting.COLOURS[colour], label=name, ms=5)
        shown += there
    if shown:
        frozen = 100 * results.get(shown[0])[0].summary["frozen_accuracy"]
        axes.axhline(frozen, ls=":", color=plotting.COLOURS["frozen"], label="frozen (seed 0)")
        axes.legend(fontsize=8)
    text = caption(results, shown, command)
    plotting.save(fig, folder / "accuracy_bytes.png", text)
    return "![accuracy against bytes](accuracy_bytes.png)\n"
