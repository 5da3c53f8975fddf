"""The runs behind the drift table: MNIST streams that change, and what may answer to that.

LeNet5, initial training on 30,000 samples, the other 30,000 as the stream, batch 128, one version
every 16 samples, sparse updates at a density of 1e-2. `label_permutation`: from the stream's middle
on every label means another class. `class_incremental`: the samples come class by class; half the
classes are known from the initial training, the others come in the stream.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from cdl_jax.train import TrainConfig
from cdl_jax.train.config import Policy
from cdl_jax.train.inputs import open_data
from experiments.cells import Cell

BLOCK = 128  # samples; every trigger here divides it
SCENARIOS = ("label_permutation", "class_incremental")
POLICIES = get_args(Policy)
# Chosen on seed 10, which is none of the table's. The past fades, and never goes at once: it is
# worth keeping where classes come, and has to go where labels change their meaning.
RECENT = {"history": "exponential", "history_size": 2000}
SETTINGS: dict[str, dict[str, Any]] = {
    "online": {"strategy": "online", "trigger": 128},
    **{policy: {"history": policy} for policy in POLICIES},
    "exponential_2000": RECENT,
    "drift_aware": {**RECENT, "on_drift": "share+density", "drift_samples": 5000},
    "drift_window": {
        "history": "window", "on_drift": "share+window+density", "drift_samples": 5000,
    },
}  # fmt: skip


def cells() -> list[Cell]:
    """All runs of the table."""
    return [_cell(scenario, kind) for scenario in SCENARIOS for kind in SETTINGS]


def name(scenario: str, kind: str) -> str:
    """Of a cell."""
    return f"{scenario}-{kind}"


def stream(config: TrainConfig, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the table is computed from.

    Args:
      config: of the run.
      lines: of its metrics.

    Returns:
      `correct`: right answers of the served model in each `block` samples of the stream, the last
      block perhaps short; `changes`: samples of the stream before which it changes; `drifts`:
      samples of the stream behind which one was found.
    """
    start = config.initial_samples
    correct = [0] * -(-(lines[-1]["position"] - start) // BLOCK)
    for line in lines:
        correct[(line["position"] - start - 1) // BLOCK] += line["correct"]
    return {
        "samples": lines[-1]["position"] - start,
        "block": BLOCK,
        "correct": correct,
        "changes": changes(config),
        "drifts": [x["position"] - start for x in lines if x.get("drift")],
    }


def changes(config: TrainConfig) -> list[int]:
    """Samples of the stream before which it changes."""
    labels = open_data(config).labels[config.initial_samples :][: config.limit]
    return [int(x) for x in _CHANGES[config.scenario](labels)]


def _at_every_class(labels: np.ndarray) -> Sequence[int]:
    return (np.flatnonzero(np.diff(labels)) + 1).tolist()


def _in_the_middle(labels: np.ndarray) -> Sequence[int]:
    return [len(labels) // 2]


_CHANGES: dict[str, Callable[[np.ndarray], Sequence[int]]] = {
    "class_incremental": _at_every_class,
    "label_permutation": _in_the_middle,
}


def _cell(scenario: str, kind: str) -> Cell:
    proactive = {"strategy": "sparse", "trigger": 16, "density": 1e-2}
    chosen = {"scenario": scenario, **proactive, **SETTINGS[kind]}
    return dataclasses.replace(
        Cell(name(scenario, kind), chosen), ships=chosen["strategy"] == "sparse"
    )
