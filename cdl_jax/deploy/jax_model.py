"""A deployed tree on a JAX device, changed in place by donation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import tree as trees
from cdl_jax.core.digest import LANES
from cdl_jax.core.layout import SparseUpdate, TreeSpec, dtype_of, nested
from cdl_jax.core.sections import make_section
from cdl_jax.core.update import apply_update, digest_words, updated_digest
from cdl_jax.deploy.merged import groups, merged
from cdl_jax.deploy.packed import Form, Packed, pack, unpack
from cdl_jax.errors import LogError
from cdl_jax.native import available
from cdl_jax.wire import Snapshot

Plan = tuple[Form, Packed]

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
            form, nothing = self._form(_nothing(layout, self.spec), [k for _, k, _ in layout])
            zero = np.zeros(LANES, np.uint32)
            jax.block_until_ready(_digest_after(self._tree, nothing, zero, form=form))
            self._tree = jax.block_until_ready(_applied(self._tree, nothing, form=form))

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

    def plan(self, update: SparseUpdate) -> Plan:
        """An update as few arrays."""
        return self._form(update, [at.size for at in update.indices])

    def changed_digest(self, plan: Plan, digest: np.ndarray) -> np.ndarray:
        """The digest after a plan, given the one before; writes nothing, O(k)."""
        form, packed = plan
        return np.asarray(_digest_after(self._tree, packed, digest, form=form))

    def apply(self, plan: Plan) -> None:
        """Writes a plan; O(k), unless somebody holds a NumPy view of the arrays."""
        form, packed = plan
        self._tree = jax.block_until_ready(_applied(self._tree, packed, form=form))

    def full_digest(self) -> np.ndarray:
        """The digest over every entry, uint32[4]."""
        return np.asarray(_full_digest(self._tree))

    def _form(self, update: SparseUpdate, least: list[int]) -> Plan:
        """Packed with room for `least` entries in each section."""
        if not _joins():
            return pack(update, tuple(least))
        room = tuple(sum(least[s] for s in group) for group in groups(update, self.spec))
        return pack(merged(update, self.spec), room)


def _joins() -> bool:
    """Whether sections over many leaves are as cheap as those over one: the kernels' are."""
    return jax.default_backend() == "cpu" and available()


@functools.partial(jax.jit, static_argnames="form")
def _digest_after(tree: Any, packed: Packed, digest: Any, *, form: Form) -> jax.Array:
    return updated_digest(tree, unpack(form, packed), digest)


@functools.partial(jax.jit, static_argnames="form", donate_argnums=0)
def _applied(tree: Any, packed: Packed, *, form: Form) -> Any:
    return apply_update(tree, unpack(form, packed))


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
