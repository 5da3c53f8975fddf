"""Tables and figures: streams that change, by how the trainer draws and answers (`drift_cells`).

A row is a mean and 95% interval of the seeds. "After" counts every sample from the first change of
the stream on, "soon after" the first 2,000 behind each change, both in blocks of 128 samples that
lie wholly there; a change is where labels take other meanings, or where the next class begins.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments import drift_cells
from experiments.figures import plotting
from experiments.figures.results import (
    Result,
    Results,
    caption,
    mean_bytes,
    pairs,
    plus_minus,
)

SOON = 2_000  # samples
TITLES = {
    "label_permutation": "Sudden drift: from the middle on every label means another class",
    "class_incremental": "Class-incremental: the samples come class by class",
}
ROWS = {
    "online": "online, trigger 128",
    "uniform": "proactive, uniform",
    "window": "proactive, window",
    "exponential": "proactive, exponential",
    "inverse_use": "proactive, inverse use",
    "balanced": "proactive, balanced",
    "reservoir": "proactive, reservoir",
    "exponential_2000": "proactive, exponential, half-life 2,000",
    "drift_aware": "**the same, and on a drift share+density**",
    "drift_window": "proactive, window, and on a drift share+window+density",
}
HEAD = (
    "| strategy | whole stream, % | after the drift, % | soon after a change, % "
    "| the bold row minus it, after, points | drifts found, changes | bytes an update |\n"
    "|---|---|---|---|---|---|---|\n"
)
COLOURS = ("#b07aa1", "#1f6fb4", "#2a9d5c", "#c9a227", "#7b8f3a", "#59504c", "#9a9a9a", "#e9b48c",
           "#e8752a", "#c43c3c")  # fmt: skip
SMOOTH = 8  # blocks that a point of the plot averages


def draw(results: Results, folder: pathlib.Path, command: str) -> str:
    """Writes a plot for each scenario; returns tables and plots as Markdown."""
    return "\n".join(_scenario(results, s, folder, command) for s in drift_cells.SCENARIOS)


def accuracy(run: Result, where: Callable[[dict[str, Any]], np.ndarray]) -> float:
    """Of the blocks that `where` marks; percent."""
    stream = run.header["stream"]
    marked = where(stream)
    return 100 * float(np.array(stream["correct"])[marked].sum() / _sizes(stream)[marked].sum())


def whole(stream: dict[str, Any]) -> np.ndarray:
    """All blocks."""
    return np.ones(len(stream["correct"]), bool)


def after(stream: dict[str, Any]) -> np.ndarray:
    """Blocks that begin at the first change or later."""
    return _firsts(stream) >= stream["changes"][0]


def soon(stream: dict[str, Any]) -> np.ndarray:
    """Blocks within the first samples behind a change."""
    first, size = _firsts(stream), _sizes(stream)
    near = [(first >= c) & (first + size <= c + SOON) for c in stream["changes"]]
    return np.any(near, axis=0)


def _scenario(results: Results, scenario: str, folder: pathlib.Path, command: str) -> str:
    runs = {kind: results.get(drift_cells.name(scenario, kind)) for kind in ROWS}
    rows = "\n".join(_row(kind, some, runs["drift_aware"]) for kind, some in runs.items())
    text = caption(results, [drift_cells.name(scenario, kind) for kind in ROWS], command)
    _plot(scenario, runs, folder, text)
    picture = f"![accuracy along the stream](drift_{scenario}.png)"
    return f"## {TITLES[scenario]}\n\n{HEAD}{rows}\n\n{picture}\n\n{text}\n"


def _row(kind: str, runs: Sequence[Result], aware: Sequence[Result]) -> str:
    if not runs:
        return f"| {ROWS[kind]} | not run | - | - | - | - | - |"
    parts = [plus_minus([accuracy(r, where) for r in runs]) for where in (whole, after, soon)]
    apart = [accuracy(a, after) - accuracy(b, after) for a, b in pairs(aware, runs)]
    parts.append("-" if kind == "drift_aware" else plus_minus(apart))
    watched = bool(runs[0].header["settings"].get("on_drift"))
    parts.append("; ".join(map(_found, runs)) if watched else "-")
    parts.append(f"{mean_bytes(runs):,.0f}")
    return f"| {ROWS[kind]} | {' | '.join(parts)} |"


def _found(run: Result) -> str:
    stream = run.header["stream"]
    return f"{len(stream['drifts'])}, {len(stream['changes'])}"


def _plot(scenario: str, runs: dict[str, list[Result]], folder: pathlib.Path, text: str) -> None:
    fig, axes = plotting.figure(
        f"{TITLES[scenario].partition(':')[0]}: prequential accuracy, mean of the seeds",
        "samples of the stream", f"accuracy in {SMOOTH * drift_cells.BLOCK:,} samples, %",
    )  # fmt: skip
    for (kind, some), colour in zip(runs.items(), COLOURS, strict=True):
        if some:
            curves = [_curve(run.header["stream"]) for run in some]
            x, y = curves[0][0], np.mean([c[1] for c in curves], axis=0)
            width = 2.0 if kind == "drift_aware" else 1.0
            axes.plot(x, y, color=colour, lw=width, label=ROWS[kind].strip("*"))
    if any(runs.values()):
        axes.legend(fontsize=7)
    plotting.save(fig, folder / f"drift_{scenario}.png", text)


def _curve(stream: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.arange(0, len(stream["correct"]), SMOOTH)
    right = np.add.reduceat(np.array(stream["correct"]), starts)
    count = np.add.reduceat(_sizes(stream), starts)
    return starts * stream["block"] + count, 100 * right / count


def _firsts(stream: dict[str, Any]) -> np.ndarray:
    return np.arange(len(stream["correct"])) * stream["block"]


def _sizes(stream: dict[str, Any]) -> np.ndarray:
    return np.minimum(stream["block"], stream["samples"] - _firsts(stream))
