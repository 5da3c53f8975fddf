"""Figure: prequential accuracy over the stream, all strategies (Prapas et al. 2021, section 5)."""

import pathlib

from experiments.figures import labels, plotting
from experiments.figures.results import Result, Results, caption

LINES = {
    "full": ("full", "-"),
    "online-128": ("online", "-"),
    "proactive-8": ("proactive", "-"),
    "top_k-0.001-tensor-float32": ("tensor", "-"),
    "top_k-0.0001-global-float32": ("global", "-"),
    "random_k-0.001-tensor-float32": ("random_k", "--"),
    "top_k-0.001-tensor-float32-before": ("before", "--"),
}


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Writes the plot; returns its Markdown."""
    shown = [cell for cell in LINES if results.get(cell)]
    fig, axes = plotting.figure(
        f"Prequential accuracy of the served model: {results.model} on {results.dataset}",
        "samples of the stream", "accuracy so far, %",
    )  # fmt: skip
    for cell in shown:
        colour, style = LINES[cell]
        x, y = _mean_curve(results.get(cell), "accuracy")
        axes.plot(x, y, style, color=plotting.COLOURS[colour], label=labels.label(cell))
    if shown:
        x, y = _mean_curve(results.get(shown[-1]), "frozen_accuracy")
        axes.plot(x, y, ":", color=plotting.COLOURS["frozen"], label="frozen initial model")
        axes.legend(fontsize=8)
    text = caption(results, shown, command)
    plotting.save(fig, folder / "accuracy_over_stream.png", text)
    return "![accuracy over the stream](accuracy_over_stream.png)\n"


def _mean_curve(runs: list[Result], field: str) -> tuple[list[float], list[float]]:
    """The mean over the seeds, from the second point on: the first ones jump."""
    columns = zip(*(r.points for r in runs), strict=False)
    rows = [(c[0]["position"], sum(p[field] for p in c) / len(c)) for c in columns]
    first = runs[0].points[0]["position"] - runs[0].points[0]["version"]
    start = min(first, rows[0][0])
    rows = rows[1:] if len(rows) > 10 else rows
    return [x - start for x, _ in rows], [100 * y for _, y in rows]
