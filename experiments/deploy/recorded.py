"""A log of a model's size whose updates are recorded once and replayed as often as needed."""

from typing import Any, NamedTuple

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import SparseUpdate, TreeSpec
from cdl_jax.deploy.log import Manifest, Ownership, UpdateLog
from cdl_jax.deploy.numpy_model import NumpyModel
from cdl_jax.wire import Snapshot, encode_snapshot, encode_update

LINEAGE = bytes(range(16))


class Recorded(NamedTuple):
    """A first record, a snapshot of version 0, and the updates from 1 on."""

    manifest: Manifest
    snapshot: bytes
    updates: list[bytes]
    newest: bytes  # a snapshot of the last version


def resnet18(versions: int, density: float, seed: int = 0) -> Recorded:
    """ResNet18 for 32 x 32 images with random weights; each update moves random entries a bit."""
    import jax
    import jax.numpy as jnp

    from cdl_jax.core import tree
    from cdl_jax.models import classifier, create_model

    key, image = jax.random.key(seed), jnp.zeros((1, 32, 32, 3))
    params, state = classifier(create_model("resnet18")).init_fn(key, image)
    deployed = {"params": params, "model_state": state}
    flat, spec = tree.flatten(deployed), tree.tree_spec(deployed)
    tensors = {n: np.asarray(x) for n, x in zip(flat.names, flat.leaves, strict=True)}
    return record(spec, tensors, versions, density, seed)


def record(
    spec: TreeSpec, tensors: dict[str, np.ndarray], versions: int, density: float, seed: int
) -> Recorded:
    """Makes the updates, floor(density n) entries of each tensor, at least one."""
    start = Snapshot(spec, tensors, 0, LINEAGE, digests.numpy_digest(tensors))
    model, digest, updates = NumpyModel(start), start.digest, []
    rng = np.random.default_rng(seed)
    slots = [max(1, int(density * leaf.size)) for leaf in spec.leaves]
    for version in range(1, versions + 1):
        update = _update(model, spec, slots, version, rng)
        plan = model.plan(update)
        update.digest[:] = digest = model.write([plan], digest)
        updates.append(encode_update(update, lineage=LINEAGE))
    config = {"model": "resnet18", "dataset": "cifar10"}
    layout: list[Any] = [[(i,), k, False] for i, k in enumerate(slots)]
    newest = Snapshot(spec, model.tensors(), versions, LINEAGE, digest)
    return Recorded(
        Manifest(LINEAGE, spec, {}, config, layout),
        encode_snapshot(start), updates, encode_snapshot(newest),
    )  # fmt: skip


def begin(log: UpdateLog, owner: Ownership, recorded: Recorded) -> None:
    """Gives a log its first record and snapshot."""
    log.create(recorded.manifest)
    log.write_snapshot(0, recorded.snapshot, owner)


def _update(
    model: NumpyModel, spec: TreeSpec, slots: list[int], version: int, rng: np.random.Generator
) -> SparseUpdate:
    tensors, indices, values = model.tensors(), [], []
    for leaf, k in zip(spec.leaves, slots, strict=True):
        at = np.unique(rng.integers(0, leaf.size, k))
        old = tensors[leaf.name].reshape(-1)[at]
        indices.append(at.astype(np.int32))
        values.append((old + rng.normal(scale=1e-4, size=at.size)).astype(old.dtype))
    return SparseUpdate(
        tuple(indices), tuple(values), np.array([at.size for at in indices], np.int32),
        np.uint32(version - 1), np.uint32(version), np.zeros(4, np.uint32),
        tuple((i,) for i in range(len(slots))), spec.fingerprint,
    )  # fmt: skip
