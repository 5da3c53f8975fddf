"""A deployed tree on a JAX device, changed in place by donation."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core.digest import LANES
from cdl_jax.core.joined import Leaves
from cdl_jax.core.layout import LeafSpec, SparseUpdate, TreeSpec
from cdl_jax.core.ragged import Row, arrange
from cdl_jax.core.sections import make_section
from cdl_jax.core.tree import Structure
from cdl_jax.core.update import digest_after, full_digest, rewritten, written
from cdl_jax.deploy.gate import PredictFn, predict
from cdl_jax.deploy.merged import groups, merged
from cdl_jax.deploy.packed import Form, Packed, pack, unpack
from cdl_jax.deploy.structure import structure_of
from cdl_jax.native import available
from cdl_jax.wire import Snapshot

Plan = tuple[Form, Packed]

SMALL = 1 << 12  # entries; to copy so many takes no longer than to hand over their array


class JaxModel:
    """Holds a tree of JAX arrays, changes k entries of it in O(k), hashes it.

    A compiled program pays for each array, so small leaves lie end to end in few. A jitted
    predict function is compiled together with what takes them apart; who asks for the tree pays
    for it once a version.
    """

    def __init__(self, snapshot: Snapshot, template: Any = None):
        """Loads a snapshot into nested dicts, or into the structure of `template`."""
        self.spec = snapshot.spec
        self._structure = structure_of(self.spec, template)
        self.load(snapshot.tensors)

    def prepare(self, layout: list[Any]) -> None:
        """Compiles what updates of this layout need, by one that changes nothing."""
        self.full_digest()
        if layout:
            nothing = self._room(layout)
            for plans in ([nothing], [nothing, nothing]):
                self.write(plans, np.zeros(LANES, np.uint32))

    def tree(self) -> Any:
        """The tree; its arrays are gone after the model's next change."""
        if self._tree is None:
            self._tree = self._structure.tree(self._apart())
        return self._tree

    def predict(self, predict_fn: PredictFn, inputs: Any) -> Any:
        """Outputs of the tree."""
        if not isinstance(predict_fn, jax.stages.Wrapped):
            return predict(predict_fn, self.tree(), inputs)
        known = {"predict_fn": predict_fn, "spec": self.spec, "structure": self._structure}
        return _outputs(self._leaves, inputs, **known)

    def tensors(self) -> dict[str, Any]:
        """The arrays by canonical path; views in NumPy of those that share one."""
        rows = zip(self.spec.leaves, self._leaves.rows, strict=True)
        return {leaf.name: _view(self._leaves.arrays[row.array], row, leaf) for leaf, row in rows}

    def load(self, tensors: dict[str, Any]) -> None:
        """Takes over copies of tensors of the same spec."""
        self._tree, self._leaves = None, Leaves((), ())  # the new ones may have the memory
        arrays = [tensors[leaf.name] for leaf in self.spec.leaves]
        self._leaves = jax.block_until_ready(_joined(arrays))

    def plan(self, update: SparseUpdate) -> Plan:
        """An update as few arrays."""
        return pack(merged(update, self.spec) if _joins() else update)

    def write(self, plans: Sequence[Plan], digest: np.ndarray) -> np.ndarray:
        """Writes plans in order; the digest after the last one, given the one before it.

        O(k), unless somebody holds a NumPy view of the arrays.
        """
        self._tree = None
        for form, packed in plans[:-2]:  # rare: two at once is what a replica's buffers need
            self._leaves = _applied(self._leaves, packed, form=form, spec=self.spec)
        write = _written if _joins() else _hashed_and_written
        self._leaves, found = write(self._leaves, plans[-2:], digest, self.spec)
        return np.asarray(found)

    def full_digest(self) -> np.ndarray:
        """The digest over every entry, uint32[4]."""
        return np.asarray(_full_digest(self._leaves, spec=self.spec))

    def _apart(self) -> list[jax.Array]:
        """The leaves in arrays of their own: copies of those that share one."""
        whole = [self._leaves.arrays[row.array] for row in self._leaves.rows]
        shapes = [leaf.shape for leaf in self.spec.leaves]
        joined = [i for i, array in enumerate(whole) if array.shape != shapes[i]]
        shared, _ = self._leaves.only(joined)
        for i, copy in zip(joined, _shaped(shared, tuple(shapes[i] for i in joined)), strict=True):
            whole[i] = copy
        return whole

    def _room(self, layout: list[Any]) -> Plan:
        """The plan of an update of this layout that changes nothing, with all its room."""
        nothing, least = _nothing(layout, self.spec), [k for _, k, _ in layout]
        if not _joins():
            return pack(nothing, tuple(least))
        room = tuple(sum(least[s] for s in group.sections) for group in groups(nothing, self.spec))
        return pack(merged(nothing, self.spec), room)


def _joins() -> bool:
    """Whether kernels do it, for which many leaves are as cheap as one, and one call best."""
    return jax.default_backend() == "cpu" and available()


def _joined(tensors: list[Any]) -> Leaves:
    """Copies, since JAX on a CPU may take over a NumPy buffer, which must not be donated."""
    most = SMALL if _joins() else 0
    rows, members = arrange([x.size for x in tensors], [x.dtype for x in tensors], most)
    return Leaves(tuple(_end_to_end([tensors[i] for i in places]) for places in members), rows)


def _view(array: jax.Array, row: Row, leaf: LeafSpec) -> Any:
    if array.shape == leaf.shape:
        return array
    return np.asarray(array)[row.start : row.stop].reshape(leaf.shape)


def _end_to_end(parts: list[Any]) -> jax.Array:
    if len(parts) == 1:
        return jnp.array(parts[0], copy=True)
    return jnp.array(np.concatenate([np.asarray(x).reshape(-1) for x in parts]), copy=True)


@functools.partial(jax.jit, static_argnames=("predict_fn", "spec", "structure"))
def _outputs(
    leaves: Leaves, inputs: Any, *, predict_fn: PredictFn, spec: TreeSpec, structure: Structure
) -> Any:
    shaped = [x.reshape(like.shape) for x, like in zip(leaves, spec.leaves, strict=True)]
    return predict(predict_fn, structure.tree(shaped), inputs)


@functools.partial(jax.jit, static_argnames="shapes")
def _shaped(leaves: Leaves, shapes: tuple[tuple[int, ...], ...]) -> list[jax.Array]:
    return [leaf.reshape(shape) for leaf, shape in zip(leaves, shapes, strict=True)]


@functools.partial(jax.jit, static_argnames="spec")
def _full_digest(leaves: Leaves, *, spec: TreeSpec) -> jax.Array:
    return full_digest(leaves, spec)


def _written(
    leaves: Leaves, plans: Sequence[Plan], digest: Any, spec: TreeSpec
) -> tuple[Leaves, jax.Array]:
    forms, packed = zip(*plans, strict=True)
    return _together(leaves, packed, digest, forms=forms, spec=spec)


def _hashed_and_written(
    leaves: Leaves, plans: Sequence[Plan], digest: Any, spec: TreeSpec
) -> tuple[Leaves, jax.Array]:
    for form, packed in plans[:-1]:
        leaves = _applied(leaves, packed, form=form, spec=spec)
    form, packed = plans[-1]
    digest = _digest_after(leaves, packed, digest, form=form, spec=spec)
    return _applied(leaves, packed, form=form, spec=spec), digest


@functools.partial(jax.jit, static_argnames=("forms", "spec"), donate_argnums=0)
def _together(
    leaves: Leaves,
    packed: tuple[Packed, ...],
    digest: Any,
    *,
    forms: tuple[Form, ...],
    spec: TreeSpec,
) -> tuple[Leaves, jax.Array]:
    *earlier, last = (unpack(*each) for each in zip(forms, packed, strict=True))
    for update in earlier:
        leaves = written(leaves, spec, update)
    return rewritten(leaves, spec, last, digest)


@functools.partial(jax.jit, static_argnames=("form", "spec"))
def _digest_after(
    leaves: Leaves, packed: Packed, digest: Any, *, form: Form, spec: TreeSpec
) -> jax.Array:
    return digest_after(leaves, spec, unpack(form, packed), digest)


@functools.partial(jax.jit, static_argnames=("form", "spec"), donate_argnums=0)
def _applied(leaves: Leaves, packed: Packed, *, form: Form, spec: TreeSpec) -> Leaves:
    return written(leaves, spec, unpack(form, packed))


def _nothing(layout: list[Any], spec: TreeSpec) -> SparseUpdate:
    """An update of a layout without entries."""
    places, _, scaled = zip(*layout, strict=True)
    return SparseUpdate(
        indices=tuple(np.zeros(0, np.int32) for _ in places),
        values=tuple(
            np.zeros(0, np.int8 if levels else make_section(spec, p, 0).dtype)
            for p, levels in zip(places, scaled, strict=True)
        ),
        counts=np.zeros(len(layout), np.int32),
        base=np.uint32(0),
        version=np.uint32(1),
        digest=np.zeros(LANES, np.uint32),
        sections=tuple(map(tuple, places)),
        fingerprint=spec.fingerprint,
        scales=tuple(np.float32(1) if levels else None for levels in scaled),
    )
