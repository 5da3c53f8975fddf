"""How the plots look, and that each file says where it comes from."""

import pathlib
from typing import Any

import matplotlib
import matplotlib.figure

WIDTH, HEIGHT = 7.2, 4.2  # inches
COLOURS = {
    "frozen": "#9a9a9a", "online": "#b07aa1", "full": "#59504c", "proactive": "#1f6fb4",
    "tensor": "#e8752a", "global": "#2a9d5c", "before": "#c43c3c", "random_k": "#c9a227",
    "qsgd": "#7b8f3a",
}  # fmt: skip


def figure(
    title: str, xlabel: str, ylabel: str, panels: int = 1
) -> tuple[matplotlib.figure.Figure, Any]:
    """A figure with one plot, or with several side by side; the y label is the first's."""
    fig = matplotlib.figure.Figure(figsize=(WIDTH * (1 + panels) / 2, HEIGHT), layout="constrained")
    each = fig.subplots(1, panels, squeeze=False)[0]
    for axes in each:
        axes.set(xlabel=xlabel)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    each[0].set(ylabel=ylabel)
    if panels > 1:
        fig.suptitle(title)
        return fig, each
    each[0].set(title=title)
    return fig, each[0]


def save(fig: matplotlib.figure.Figure, path: pathlib.Path, caption: str) -> None:
    """Writes a PNG that carries its caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110, metadata={"Description": caption, "Software": None})
