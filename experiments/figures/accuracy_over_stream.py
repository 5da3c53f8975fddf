"""Figure: prequential accuracy over the stream, all strategies (Prapas et al. 2021, section 5).

On the left the strategies that replace whole models. On the right the compressed ones less dense
proactive training, paired by seed: they lie too close to it to be told apart otherwise.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.cells import BITS
from experiments.figures import labels, plotting
from experiments.figures.results import Result, Results, caption, pairs

BASE = "proactive-8"
WHOLE = (
    ("full", "full", "o-"),
    ("online-128", "online", "-"),
    (BASE, "proactive", "-"),
    ("proactive-16", "proactive", "--"),
    ("proactive-32", "proactive", "-."),
    ("proactive-64", "proactive", ":"),
)
COMPRESSED = (
    ("top_k-0.01-tensor-float32", "tensor", "--"),
    ("top_k-0.001-tensor-float32", "tensor", "-"),
    ("top_k-0.0001-global-float32", "global", "-"),
    ("random_k-0.001-tensor-float32", "random_k", "-"),
    ("top_k-0.001-tensor-float32-before", "before", "-"),
    *((f"qsgd-{b}", "qsgd", s) for b, s in zip(BITS, ("-", "--", "-.", ":", "-"), strict=True)),
)
LINEAR = 0.25  # points around dense training, beyond which the right scale is logarithmic


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Writes the plot; returns its Markdown."""
    fig, (left, right) = plotting.figure(
        f"Prequential accuracy of the served model: {results.model} on {results.dataset}",
        "samples of the stream", "accuracy so far, %", panels=2,
    )  # fmt: skip
    for cell, colour, style in WHOLE:
        if runs := results.get(cell):
            _line(left, results, cell, curve(runs, "accuracy"), (colour, style), len(runs))
    if base := results.get(BASE):
        x, y = curve(base, "frozen_accuracy")
        left.plot(x, y, ":", color=plotting.COLOURS["frozen"], label="frozen initial model")
    right.set(ylabel="accuracy so far minus dense proactive's, points")
    right.set_yscale("symlog", linthresh=LINEAR)
    for cell, colour, style in COMPRESSED:
        if both := pairs(results.get(cell), base):
            runs, same = zip(*both, strict=True)
            (x, y), (_, dense) = curve(runs, "accuracy"), curve(same, "accuracy")
            apart = [a - b for a, b in zip(y, dense, strict=False)]
            _line(right, results, cell, (x, apart), (colour, style), len(runs))
    for axes in (left, right):
        if axes.lines:
            axes.legend(fontsize=6.5, loc="lower right")
    shown = [cell for cell, *_ in (*WHOLE, *COMPRESSED) if results.get(cell)]
    plotting.save(fig, folder / "accuracy_over_stream.png", caption(results, shown, command))
    return "![accuracy over the stream](accuracy_over_stream.png)\n"


def curve(runs: Sequence[Result], field: str) -> tuple[list[float], list[float]]:
    """The mean over the seeds by the stream's samples so far, percent; the first points jump."""
    start = runs[0].header["settings"]["initial_samples"]
    columns = zip(*(r.points for r in runs), strict=False)
    rows = [(c[0]["position"] - start, sum(p[field] for p in c) / len(c)) for c in columns]
    rows = rows[1:] if len(rows) > 10 else rows
    return [x for x, _ in rows], [100 * y for _, y in rows]


def _line(
    axes: Any,
    results: Results,
    cell: str,
    points: tuple[list[float], list[float]],
    look: tuple[str, str],
    seeds: int,
) -> None:
    few = f" ({seeds} seed{'s' * (seeds > 1)})" if seeds < results.seeds else ""
    name = labels.label(cell) + few
    axes.plot(*points, look[1], color=plotting.COLOURS[look[0]], label=name, lw=1.2, ms=4)
