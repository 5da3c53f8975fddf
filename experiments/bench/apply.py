"""Check, digest and write one update in a replica's buffer, in NumPy and JAX.

    python -m experiments.bench.apply --n 1e8 --k 1e4 --reps 15

`numpy` and `jax` are what `deploy.Replica` does for one update on one buffer: the digest it will
have (gather, hash), then the write of k entries in place. `add` is r = u + r over n float32, three
passes, in the same rounds. Prints one line of JSON, quartiles in milliseconds. Target at n = 1e8,
k = 1e4 on two CPU cores: 1.5 ms.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np

from cdl_jax.core.digest import LANES
from cdl_jax.core.layout import LeafSpec, SparseUpdate, TreeSpec
from cdl_jax.deploy.jax_model import JaxModel
from cdl_jax.deploy.numpy_model import NumpyModel
from cdl_jax.deploy.replica import Model
from cdl_jax.wire import Snapshot
from experiments.bench.dense_step import interleave
from experiments.bench.selection import environment
from experiments.bench.sparse_step import add


def make_update(spec: TreeSpec, k: int, seed: int) -> SparseUpdate:
    """K random positions with random values."""
    rng = np.random.default_rng(seed)
    n = spec.leaves[0].size
    at = np.sort(rng.choice(n, k, replace=False)).astype(np.int32)
    values = rng.standard_normal(k).astype(np.float32)
    return SparseUpdate(
        (at,), (values,), np.array([k], np.int32), np.uint32(0), np.uint32(1),
        np.zeros(LANES, np.uint32), ((0,),), spec.fingerprint,
    )  # fmt: skip


def applying(model: Model, updates: list[SparseUpdate]) -> Callable[[], None]:
    """A function that takes the next update."""
    digest, turn = np.zeros(LANES, np.uint32), 0

    def run() -> None:
        nonlocal digest, turn
        update = updates[turn % len(updates)]
        digest, turn = model.changed_digest(update, digest), turn + 1
        model.apply(update)

    return run


def main() -> None:
    """Measures one size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=float, default=1e8)
    parser.add_argument("--k", type=float, default=1e4)
    parser.add_argument("--reps", type=int, default=15)
    arguments = parser.parse_args()
    n, k = int(arguments.n), int(arguments.k)
    spec = TreeSpec((LeafSpec("params/w", (n,), "float32"),))
    tensors = {"params/w": np.zeros(n, np.float32)}
    snapshot = Snapshot(spec, tensors, 0, bytes(16), np.zeros(LANES, np.uint32))
    updates = [make_update(spec, k, seed) for seed in range(4)]
    times = interleave(
        {
            "add": add(n),
            "numpy": applying(NumpyModel(snapshot), updates),
            "jax": applying(JaxModel(snapshot), updates),
        },
        arguments.reps,
    )
    quartiles = {
        name: [round(float(q), 3) for q in np.percentile(values, [25, 50, 75])]
        for name, values in times.items()
    }
    row = {"n": n, "k": k, "reps": arguments.reps, "ms": quartiles}
    print(json.dumps(row | environment()))


if __name__ == "__main__":
    main()
