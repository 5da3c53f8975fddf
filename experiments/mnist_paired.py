"""Sparse against dense proactive training on MNIST, paired by seed.

The paper's MNIST settings (Prapas et al. 2021, section 5: LeNet5, 10,000 samples of initial
training, trigger 8, batch 128, Adam with AMSGrad at 1e-3), density 1e-3 per tensor, sparsified
after the optimizer. Expected: a mean difference in prequential accuracy of at most 0.15 points.

    python -m experiments.mnist_paired          3 seeds, about 15 minutes on 2 CPU cores
"""

import dataclasses
import statistics
import sys
from typing import Any

import tyro

from experiments.runs import conditions, save, train

# Two-sided 95% points of Student's t for 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the comparison."""

    seeds: int = 3
    """Seeds 0, 1, ...; 2 to 10."""
    density: float = 1e-3
    """Of the sparse runs."""
    results: str = "experiments/results"
    """Folder of the results."""


def main(options: Options) -> int:
    """Runs what is missing, writes mnist_paired.json, prints it."""
    rows = [pair(seed, options.density) for seed in range(options.seeds)]
    differences = [row["difference_points"] for row in rows]
    mean, half = interval(differences)
    result = {
        "seeds": rows,
        "density": options.density,
        "mean_difference_points": mean,
        "interval_95_points": [mean - half, mean + half],
        **conditions(f"python -m experiments.mnist_paired --seeds {options.seeds}"),
    }
    save(options.results, "mnist_paired.json", result)
    return 0


def pair(seed: int, density: float) -> dict[str, Any]:
    """Both runs of one seed; accuracies, and sparse minus dense in points of a percent."""
    sparse = train(dataset="mnist", strategy="sparse", density=density, seed=seed)
    dense = train(dataset="mnist", strategy="proactive", seed=seed)
    return {
        "seed": seed,
        "sparse": sparse["accuracy"],
        "dense": dense["accuracy"],
        "frozen": sparse["frozen_accuracy"],
        "difference_points": 100 * (sparse["accuracy"] - dense["accuracy"]),
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95% confidence interval (Student's t)."""
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), STUDENT[len(values) - 2] * spread


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
