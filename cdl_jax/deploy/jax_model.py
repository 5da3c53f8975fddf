"""A deployed tree on a JAX device, changed in place by donation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import tree as trees
from cdl_jax.core.digest import LANES
from cdl_jax.core.layout import SparseUpdate, TreeSpec, dtype_of, nested
from cdl_jax.core.sections import make_section
from cdl_jax.core.update import apply_update_in_place, digest_words, updated_digest
from cdl_jax.errors import LogError
from cdl_jax.wire import Snapshot

_full_digest = jax.jit(digest_words)


class JaxModel:
    """Holds a tree of JAX arrays, changes k entries of it in O(k), hashes it."""

    def __init__(self, snapshot: Snapshot, template: Any = None):
        """Loads a snapshot into nested dicts, or into the structure of `template`."""
        self.spec = snapshot.spec
        self._template = template
        self.load(snapshot.tensors)

    def prepare(self, layout: list[Any]) -> None:
        """Compiles what updates of this layout need, by one that changes nothing."""
        self.full_digest()
        if layout:
            nothing = _nothing(layout, self.spec)
            jax.block_until_ready(updated_digest(self._tree, nothing, nothing.digest))
            self._tree = jax.block_until_ready(apply_update_in_place(self._tree, nothing))

    def tree(self) -> Any:
        """The tree; its arrays are gone after the model's next change."""
        return self._tree

    def tensors(self) -> dict[str, Any]:
        """The arrays by canonical path."""
        return dict(zip(*trees.flatten(self._tree)[:2], strict=True))

    def load(self, tensors: dict[str, Any]) -> None:
        """Takes over copies of tensors of the same spec."""
        # Copies, since JAX on a CPU may take over a NumPy buffer, which must not be donated.
        self._tree = None
        arrays = {name: jnp.array(x, copy=True) for name, x in tensors.items()}
        jax.block_until_ready(arrays)
        self._tree = nested(arrays) if self._template is None else _placed(arrays, self._template)

    def changed_digest(self, update: SparseUpdate, digest: np.ndarray) -> np.ndarray:
        """The digest after an update, given the one before; writes nothing, O(k)."""
        return np.asarray(updated_digest(self._tree, padded(update), jnp.asarray(digest)))

    def apply(self, update: SparseUpdate) -> None:
        """Writes an update; O(k), unless somebody holds a NumPy view of the arrays."""
        self._tree = jax.block_until_ready(apply_update_in_place(self._tree, padded(update)))

    def full_digest(self) -> np.ndarray:
        """The digest over every entry, uint32[4]."""
        return np.asarray(_full_digest(self._tree))


def _nothing(layout: list[Any], spec: TreeSpec) -> SparseUpdate:
    """An update whose slots are padding, of the shapes that `padded` gives."""
    places, slots, scaled = zip(*layout, strict=True)
    empty = SparseUpdate(
        indices=tuple(np.zeros(0, np.int32) for _ in slots),
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
    return padded(empty, list(slots))


def padded(update: SparseUpdate, slots: list[int] | None = None) -> SparseUpdate:
    """The update with every section's slots a power of two, so that few programs are compiled.

    Args:
      update: NumPy arrays without padding.
      slots: for how many entries a section, at least; by default those it has.
    """
    slots = [at.size for at in update.indices] if slots is None else slots
    indices, values = [], []
    for at, new, least in zip(update.indices, update.values, slots, strict=True):
        room = (1 << max(0, int(least) - 1).bit_length()) - at.size
        # From the top of int32 down lies past the end of any section (`make_section` sees to it).
        tail = np.arange(2**31 - room, 2**31, dtype=np.int64)
        indices.append(np.concatenate([at, tail]).astype(np.int32))
        values.append(np.concatenate([new, np.zeros(room, new.dtype)]))
    scales = update.section_scales()  # one structure for no scales, so one program
    return dataclasses.replace(update, indices=tuple(indices), values=tuple(values), scales=scales)


def _placed(arrays: dict[str, Any], template: Any) -> Any:
    flat = trees.flatten(template)
    for name, like in zip(flat.names, flat.leaves, strict=True):
        if name not in arrays or arrays[name].shape != like.shape:
            raise LogError(f"the log's model does not fit the template at {name}")
        if arrays[name].dtype != dtype_of(np.dtype(like.dtype).name):
            raise LogError(f"{name} is {arrays[name].dtype} in the log, {like.dtype} here")
    if len(arrays) != len(flat.names):
        raise LogError(f"the log's model has {len(arrays)} tensors, the template {len(flat.names)}")
    return flat.rebuild([arrays[name] for name in flat.names])
