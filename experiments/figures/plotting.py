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


def figure(title: str, xlabel: str, ylabel: str) -> tuple[matplotlib.figure.Figure, Any]:
    """A figure with one plot."""
    fig = matplotlib.figure.Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = fig.add_subplot()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return fig, axes


def save(fig: matplotlib.figure.Figure, path: pathlib.Path, caption: str) -> None:
    """Writes a PNG that carries its caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110, metadata={"Description": caption, "Software": None})
