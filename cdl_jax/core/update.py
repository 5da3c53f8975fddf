"""Apply sparse updates to a deployed tree, and keep its digest."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import digest, sections
from cdl_jax.core.joined import Leaves, apart
from cdl_jax.core.layout import SparseUpdate, TreeSpec
from cdl_jax.core.tree import Sorted, flatten, to_bits, tree_spec
from cdl_jax.native import available, entries

jax.tree_util.register_dataclass(
    SparseUpdate,
    data_fields=["indices", "values", "counts", "base", "version", "digest", "scales"],
    meta_fields=["sections", "fingerprint"],
)


def apply_update(deployed: Any, update: SparseUpdate) -> Any:
    """Writes an update's entries into a tree; everything else keeps its bits.

    It means `for i, v in zip(indices, values): leaf.reshape(-1)[i] = v` for every leaf, with
    slots of padding dropped. Values are absolute, so applying an update twice is harmless; but
    the levels of a section with a scale are increments, right at the update's base alone.

    Args:
      deployed: pytree of arrays, `{"params": ..., "model_state": ...}` as `deployed(state)`
        gives it, any dtypes of 1 to 8 bytes.
      update: made for a tree of the same paths, shapes and dtypes.

    Returns:
      The new tree. Version, base and digest are the caller's to check (`Replica` does).

    Raises:
      ValueError: when the update was made for a tree of another fingerprint.

    References:
      Prapas et al., Continuous Training and Deployment of Deep Learning Models, 2021, section 4.
    """
    flat = flatten(deployed)
    return flat.rebuild(list(written(_leaves(flat), tree_spec(deployed), update)))


@functools.partial(jax.jit, donate_argnums=0)
def apply_update_in_place(deployed: Any, update: SparseUpdate) -> Any:
    """`apply_update` that takes over the tree's buffers and writes k entries, O(k).

    The arrays of `deployed` are gone afterwards. A NumPy view that somebody holds on one of
    them disables the donation on a CPU, silently: the result is right, but a copy.
    """
    return apply_update(deployed, update)


def apply_with_digest(
    deployed: Any, update: SparseUpdate, current: jax.Array
) -> tuple[Any, jax.Array]:
    """`apply_update`, and the digest that the new tree has, given that of `deployed`.

    Inside jit, with `deployed` donated, it is O(k) where the native kernels are. XLA's own form
    copies a leaf that is hashed and written in one program: there `updated_digest` comes first.
    """
    flat = flatten(deployed)
    new, current = rewritten(_leaves(flat), tree_spec(deployed), update, current)
    return flat.rebuild(list(new)), current


def updated_digest(deployed: Any, update: SparseUpdate, current: jax.Array) -> jax.Array:
    """The digest that `deployed`, of digest `current`, has after the update; uint32[4], O(k)."""
    return digest_after(_leaves(flatten(deployed)), tree_spec(deployed), update, current)


def written(leaves: Leaves, spec: TreeSpec, update: SparseUpdate) -> Leaves:
    """`apply_update` to the leaves of a tree, however they lie."""
    plans, indices, bits, old = _parts(leaves, spec, update)
    return sections.write(plans, leaves, indices, bits, old)


def rewritten(
    leaves: Leaves, spec: TreeSpec, update: SparseUpdate, current: jax.Array
) -> tuple[Leaves, jax.Array]:
    """`apply_with_digest` to the leaves of a tree, however they lie."""
    plans, indices, bits, old = _parts(leaves, spec, update)
    leaves, change = sections.rewrite(plans, leaves, indices, bits, old)
    return leaves, current + change


def digest_after(
    leaves: Leaves, spec: TreeSpec, update: SparseUpdate, current: jax.Array
) -> jax.Array:
    """`updated_digest` of the leaves of a tree, however they lie."""
    plans, indices, bits, _ = _parts(leaves, spec, update)
    return current + sections.change(plans, leaves, indices, bits)


def digest_words(tree: Any) -> jax.Array:
    """Full digest of a tree of JAX arrays, uint32[4]. Traceable; reads every entry."""
    return full_digest(_arrays(flatten(tree).leaves), tree_spec(tree))


def full_digest(leaves: Sequence[jax.Array], spec: TreeSpec) -> jax.Array:
    """`digest_words` of the leaves of a tree, in sorted order."""
    seeds = [digest.seeds(like.name, like.dtype) for like in spec.leaves]
    if not leaves:
        return jnp.zeros(digest.LANES, jnp.uint32)

    def in_native(leaves: Sequence[jax.Array]) -> jax.Array:
        return entries.full_digest(leaves, np.stack(seeds))

    def in_xla(leaves: Sequence[jax.Array]) -> jax.Array:
        lanes = [_leaf_digest(leaf, seed) for leaf, seed in zip(leaves, seeds, strict=True)]
        return jnp.sum(jnp.stack(lanes), axis=0, dtype=jnp.uint32)

    if not available():
        return in_xla(leaves)
    return jax.lax.platform_dependent(tuple(leaves), cpu=in_native, default=in_xla)


def tree_digest(tree: Any) -> str:
    """Full digest of a deployed tree, 32 hex digits; reads every entry.

    Trees with equal digests hold, but for an accident of 1 in 2^128, the same bits under the
    same paths. It finds faults; against an attacker sign the updates.

    Args:
      tree: pytree of JAX or NumPy arrays, which have the same digest.

    Examples:
      >>> tree_digest({"params": {"w": np.zeros(3, np.float32)}}) == tree_digest(
      ...     {"params": {"w": jnp.zeros(3)}})
      True
    """
    flat, _ = flatten(tree), tree_spec(tree)
    # Not through JAX, which without x64 would narrow an 8-byte array.
    if any(isinstance(leaf, np.ndarray | np.generic) for leaf in flat.leaves):
        named = dict(zip(flat.names, map(np.asarray, flat.leaves), strict=True))
        return digest.to_hex(digest.numpy_digest(named))
    return digest.to_hex(_digest_words(tree))


_digest_words = jax.jit(digest_words)


class _Parts(NamedTuple):
    plans: list[sections.Section]
    indices: list[jax.Array]
    bits: list[jax.Array]
    old: Sequence[jax.Array]  # the entries as they were, where levels need them


def _parts(leaves: Leaves, spec: TreeSpec, update: SparseUpdate) -> _Parts:
    plans, indices = _plan(spec, update), _arrays(update.indices)
    old = sections.read(plans, leaves, indices) if any(_scales(update)) else []
    return _Parts(plans, indices, _bits(plans, update, old), old)


def _plan(spec: TreeSpec, update: SparseUpdate) -> list[sections.Section]:
    if spec.fingerprint != update.fingerprint:
        raise ValueError(
            f"the update is for a tree of fingerprint {update.fingerprint.hex()}, this tree has "
            f"{spec.fingerprint.hex()}: paths, shapes or dtypes differ; apply it to the model "
            "that it was made from"
        )
    return [
        sections.make_section(spec, places, indices.size)
        for places, indices in zip(update.sections, update.indices, strict=True)
    ]


def _leaves(flat: Sorted) -> Leaves:
    return apart(_arrays(flat.leaves))


def _arrays(arrays: Sequence[Any]) -> list[jax.Array]:
    return [jnp.asarray(x) for x in arrays]


def _scales(update: SparseUpdate) -> list[bool]:
    return [scale is not None for scale in update.section_scales()]


def _bits(
    plans: list[sections.Section], update: SparseUpdate, old: Sequence[jax.Array]
) -> list[jax.Array]:
    was_there = old or [None] * len(plans)
    rows = zip(plans, was_there, update.values, update.section_scales(), strict=True)
    return [sections.resolved(plan, was, jnp.asarray(v), scale) for plan, was, v, scale in rows]


def _leaf_digest(leaf: jax.Array, seed: np.ndarray) -> jax.Array:
    bits = to_bits(leaf).reshape(-1)
    if bits.dtype.itemsize == 8:
        bits = jax.lax.bitcast_convert_type(bits, jnp.uint32).reshape(-1)
    words = bits.astype(jnp.uint32)
    places = jax.lax.iota(jnp.uint32, words.size)
    mixes = digest.mix(jnp, places, words, jnp.asarray(seed)[:, None])
    return jnp.sum(mixes, axis=1, dtype=jnp.uint32)
