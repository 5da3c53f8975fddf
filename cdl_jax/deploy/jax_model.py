"""A deployed tree on a JAX device, changed in place by donation."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import tree as trees
from cdl_jax.core.digest import LANES
from cdl_jax.core.layout import SparseUpdate, TreeSpec, dtype_of, nested
from cdl_jax.core.sections import make_section
from cdl_jax.core.update import apply_update, apply_with_digest, digest_words, updated_digest
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
            nothing = self._form(_nothing(layout, self.spec), [k for _, k, _ in layout])
            for plans in ([nothing], [nothing, nothing]):
                self.write(plans, np.zeros(LANES, np.uint32))

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

    def write(self, plans: Sequence[Plan], digest: np.ndarray) -> np.ndarray:
        """Writes plans in order; the digest after the last one, given the one before it.

        O(k), unless somebody holds a NumPy view of the arrays.
        """
        for form, packed in plans[:-2]:  # rare: two at once is what a replica's buffers need
            self._tree = _applied(self._tree, packed, form=form)
        write = _written if _joins() else _hashed_and_written
        self._tree, found = write(self._tree, plans[-2:], digest)
        return np.asarray(found)

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
    """Whether kernels do it, for which many leaves are as cheap as one, and one call best."""
    return jax.default_backend() == "cpu" and available()


def _written(tree: Any, plans: Sequence[Plan], digest: Any) -> tuple[Any, jax.Array]:
    forms, packed = zip(*plans, strict=True)
    return _together(tree, packed, digest, forms=forms)


def _hashed_and_written(tree: Any, plans: Sequence[Plan], digest: Any) -> tuple[Any, jax.Array]:
    for form, packed in plans[:-1]:
        tree = _applied(tree, packed, form=form)
    form, packed = plans[-1]
    digest = _digest_after(tree, packed, digest, form=form)
    return _applied(tree, packed, form=form), digest


@functools.partial(jax.jit, static_argnames="forms", donate_argnums=0)
def _together(
    tree: Any, packed: tuple[Packed, ...], digest: Any, *, forms: tuple[Form, ...]
) -> tuple[Any, jax.Array]:
    *earlier, last = (unpack(*each) for each in zip(forms, packed, strict=True))
    for update in earlier:
        tree = apply_update(tree, update)
    return apply_with_digest(tree, last, digest)


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
