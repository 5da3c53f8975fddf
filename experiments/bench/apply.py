"""Check, digest and write one update in a replica's buffer, in NumPy and JAX.

    python -m experiments.bench.apply --n 1e8 --k 1e4 --reps 15

`numpy` and `jax` are what `deploy.Replica` does for one decoded update on one buffer: whether it
fits the tree, the digest it will have (gather, hash), the write of k entries in place. `add` is
r = u + r over n float32, three passes, in the same rounds. Prints one line of JSON, quartiles in
milliseconds. Targets on two CPU cores: 1.5 ms at n = 1e8, k = 1e4; 3 ms for the trees of ResNet50
and DenseNet161 at 1e-3.
"""

import argparse
import json
from collections.abc import Callable

import jax
import numpy as np

from cdl_jax.core.check import check_update
from cdl_jax.core.compress import entries_sent
from cdl_jax.core.digest import LANES
from cdl_jax.core.layout import LeafSpec, SparseUpdate, TreeSpec
from cdl_jax.core.tree import tree_spec
from cdl_jax.deploy.jax_model import JaxModel
from cdl_jax.deploy.numpy_model import NumpyModel
from cdl_jax.deploy.replica import Model
from cdl_jax.models import classifier, create_model
from cdl_jax.wire import Snapshot
from experiments.bench.steps import make_batch
from experiments.bench.timing import add, environment, interleave, quartiles


def make_update(spec: TreeSpec, ks: list[int], seed: int) -> SparseUpdate:
    """Random positions with random values, ks[t] of them in leaf t."""
    rng = np.random.default_rng(seed)
    pairs = zip(spec.leaves, ks, strict=True)
    at = [np.sort(rng.choice(leaf.size, k, replace=False)).astype(np.int32) for leaf, k in pairs]
    values = [rng.standard_normal(k).astype(np.float32) for k in ks]
    return SparseUpdate(
        tuple(at), tuple(values), np.array(ks, np.int32), np.uint32(0), np.uint32(1),
        np.zeros(LANES, np.uint32), tuple((i,) for i in range(len(ks))), spec.fingerprint,
    )  # fmt: skip


def model_spec(model: str) -> TreeSpec:
    """The deployed tree of a model."""
    init_fn = classifier(create_model(model)).init_fn
    params, state = jax.eval_shape(init_fn, jax.random.key(0), make_batch(model, 1)[0])
    return tree_spec({"params": params, "model_state": state})


def applying(model: Model, updates: list[SparseUpdate]) -> Callable[[], None]:
    """A function that takes the next update."""
    digest, turn = np.zeros(LANES, np.uint32), 0

    def run() -> None:
        nonlocal digest, turn
        update = updates[turn % len(updates)]
        check_update(update, model.spec)
        plan = model.plan(update)
        digest, turn = model.write([plan], digest), turn + 1

    return run


def main() -> None:
    """Measures one size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=float, default=1e8)
    parser.add_argument("--k", type=float, default=1e4)
    parser.add_argument("--reps", type=int, default=15)
    parser.add_argument("--model", help="a model's tree at --density instead of one of n")
    parser.add_argument("--density", type=float, default=1e-3)
    arguments = parser.parse_args()
    if arguments.model:
        spec = model_spec(arguments.model)
        ks = [entries_sent(arguments.density, leaf.size) for leaf in spec.leaves]
    else:
        spec = TreeSpec((LeafSpec("params/w", (int(arguments.n),), "float32"),))
        ks = [int(arguments.k)]
    n, k = sum(leaf.size for leaf in spec.leaves), sum(ks)
    tensors = {leaf.name: np.zeros(leaf.shape, np.float32) for leaf in spec.leaves}
    snapshot = Snapshot(spec, tensors, 0, bytes(16), np.zeros(LANES, np.uint32))
    updates = [make_update(spec, ks, seed) for seed in range(4)]
    models: dict[str, Model] = {"numpy": NumpyModel(snapshot), "jax": JaxModel(snapshot)}
    columns = {name: applying(model, updates) for name, model in models.items()}
    times = interleave({"add": add(n)} | columns, arguments.reps)
    row = {"model": arguments.model, "leaves": len(ks), "n": n, "k": k}
    row |= {"reps": arguments.reps, "ms": quartiles(times)}
    print(json.dumps(row | environment()))


if __name__ == "__main__":
    main()
