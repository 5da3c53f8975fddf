"""Forms of the new values on MNIST: replicas compared with the trainer at every version.

The paper's MNIST settings (Prapas et al. 2021, section 5), sparse updates at 1e-3 per tensor, whose
new values are rounded to 16 bits or sent as increments of 8, 4 or 2 bits (see `cdl_jax.top_k`):
2,000 versions in each form, followed by a NumPy and a JAX replica, all full digests compared.
Expected: equal. (What the forms cost in accuracy is in the report: `make mnist`.)

    python -m experiments.mnist_values          about 20 minutes on 2 CPU cores
"""

import dataclasses
import sys
from typing import Any

import tyro

from experiments.cells import FORMS
from experiments.mnist_digests import Options as Comparison
from experiments.mnist_digests import compare
from experiments.runs import conditions, save

KEPT = ("replica", "values", "versions_compared", "full_digests_equal",
        "sha256_of_all_lines_version_digest")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the comparison."""

    values: tuple[str, ...] = FORMS
    """Forms of values."""
    backends: tuple[str, ...] = ("numpy", "jax")
    """Of the replicas that are compared."""
    results: str = "experiments/results"
    """Folder of the results."""


def main(options: Options) -> int:
    """Writes mnist_values.json after every form; 0 when all digests are equal."""
    rows: list[dict[str, Any]] = []
    result = {"digests": rows, **conditions("python -m experiments.mnist_values")}
    for values in options.values:
        found = compare(Comparison(values=values, limit=16_000), options.backends)
        rows.extend({name: row[name] for name in KEPT} for row in found)
        save(options.results, "mnist_values.json", result)
    return 0 if all(r["full_digests_equal"] == r["versions_compared"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
