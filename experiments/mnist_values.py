"""Forms of the new values on MNIST: accuracy, bytes, and replicas compared at every version.

The paper's MNIST settings (Prapas et al. 2021, section 5) with sparse updates at three densities,
whose new values are sent exactly, rounded to 16 bits, or as increments of 8, 4 or 2 bits (see
`cdl_jax.top_k`). The prequential accuracy is the served model's. Expected: within 0.15 points of
float32 at 1e-2 and 1e-3. Then 2,000 versions at 1e-3 in each form, followed by a NumPy and a JAX
replica, all full digests compared: equal.

    python -m experiments.mnist_values          about an hour on 2 CPU cores
"""

import dataclasses
import sys
from typing import Any

import tyro

from experiments.mnist_digests import Options as Comparison
from experiments.mnist_digests import compare
from experiments.runs import conditions, save, train

VALUES = ("float32", "bf16", "f16", "int8", "int4", "int2")
DENSITIES = (1e-2, 1e-3, 1e-4)
KEPT = ("replica", "values", "versions_compared", "full_digests_equal",
        "sha256_of_all_lines_version_digest")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the comparison."""

    densities: tuple[float, ...] = DENSITIES
    """Shares of entries sent."""
    values: tuple[str, ...] = VALUES
    """Forms of values."""
    backends: tuple[str, ...] = ("numpy", "jax")
    """Of the replicas that are compared; none leaves the comparison out."""
    seed: int = 0
    """Of all runs."""
    results: str = "experiments/results"
    """Folder of the results."""


def main(options: Options) -> int:
    """Runs what is missing, writes mnist_values.json after every cell; 0 when digests are equal."""
    result: dict[str, Any] = {"digests": [], "accuracy": []}
    result |= conditions("python -m experiments.mnist_values")
    for values in options.values if options.backends else ():
        for found in compare(Comparison(values=values, limit=16_000), options.backends):
            result["digests"].append({name: found[name] for name in KEPT})
        save(options.results, "mnist_values.json", result)
    for density in options.densities:
        for values in options.values:
            result["accuracy"].append(cell(density, values, options.seed))
            save(options.results, "mnist_values.json", result)
    rows = result["digests"]
    return 0 if all(r["full_digests_equal"] == r["versions_compared"] for r in rows) else 1


def cell(density: float, values: str, seed: int) -> dict[str, Any]:
    """One run: what was served, and what it cost."""
    run = train(dataset="mnist", strategy="sparse", density=density, values=values, seed=seed,
                log=f"runs/values/{density:g}-{values}-{seed}")  # fmt: skip
    return {
        "density": density,
        "values": values,
        "accuracy": run["accuracy"],
        "frozen": run["frozen_accuracy"],
        "bytes_an_update": round(run["bytes_sent"] / run["versions"], 1),
        "dense_bytes": run["dense_bytes"],
    }


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
