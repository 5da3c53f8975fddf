"""The XLA forms of the sections' reads, writes and digests, for any backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import digest, layout
from cdl_jax.core.tree import from_bits, is_trainable, to_bits

if TYPE_CHECKING:
    from cdl_jax.core.sections import Section

INT32_MAX = 2**31 - 1
_SMALL = 1 << 10  # slots


def gather(section: Section, leaves: list[jax.Array], indices: jax.Array) -> jax.Array:
    """Bits of a section's entries; 0 in slots of padding.

    Over several leaves, leaf t reads min(k, n_t) slots from its first one on and leaves what
    lies beyond it to its successors, which overwrite it.
    """
    if not section.total:
        return jnp.zeros(indices.size, section.bits)
    flats = [leaf.reshape(-1) for leaf in leaves]
    if len(flats) == 1:
        return to_bits(flats[0]).at[indices].get(mode="fill", fill_value=0, **_ORDERED)
    starts, offsets, longest = _starts(section, indices)
    padded = jnp.pad(indices, (0, longest), constant_values=INT32_MAX)
    out = jnp.zeros(indices.size + longest, section.bits)
    for t, flat in enumerate(flats):
        span = min(indices.size, flat.size)
        local = jax.lax.dynamic_slice(padded, (starts[t],), (span,)) - offsets[t]
        found = to_bits(flat).at[local].get(mode="fill", fill_value=0, indices_are_sorted=True)
        out = jax.lax.dynamic_update_slice(out, found.astype(section.bits), (starts[t],))
    valid = indices < section.total
    return jnp.where(valid, out[: indices.size], jnp.zeros((), section.bits))


def scatter(
    plans: Sequence[Section], groups: Any, indices: Any, bits: Any, after: Any
) -> list[jax.Array]:
    """All leaves of the groups, with the bits written, once `after` is there."""
    groups, _ = jax.lax.optimization_barrier((groups, after))
    parts = zip(plans, groups, indices, bits, strict=True)
    return [leaf for each in parts for leaf in _scatter_one(*each)]


def _scatter_one(
    section: Section, leaves: list[jax.Array], indices: jax.Array, bits: jax.Array
) -> list[jax.Array]:
    if len(leaves) == 1:
        return [_set(leaves[0], indices, bits, **_ORDERED)]
    starts, offsets, longest = _starts(section, indices)
    padded = jnp.pad(indices, (0, longest), constant_values=INT32_MAX)
    values = jnp.pad(bits, (0, longest))
    out = []
    for t, leaf in enumerate(leaves):
        span = min(indices.size, leaf.size)
        local = jax.lax.dynamic_slice(padded, (starts[t],), (span,)) - offsets[t]
        value = jax.lax.dynamic_slice(values, (starts[t],), (span,))
        out.append(_set(leaf, local, value, indices_are_sorted=True))
    return out


_ORDERED: dict[str, Any] = {"unique_indices": True, "indices_are_sorted": True}


def _set(leaf: jax.Array, indices: jax.Array, bits: jax.Array, **how: Any) -> jax.Array:
    """Writes bits into a leaf, every other entry keeps its own."""
    bits, flat = bits.astype(layout.bits_dtype(leaf.dtype)), leaf.reshape(-1)
    if flat.dtype.name in _MOVED or not is_trainable(flat):
        flat = flat.at[indices].set(from_bits(bits, flat.dtype), mode="drop", **how)
    else:
        flat = from_bits(to_bits(flat).at[indices].set(bits, mode="drop", **how), flat.dtype)
    return flat.reshape(leaf.shape)


# XLA's CPU (jax 0.10) scatters other floats as wider ones, which quiets signalling NaNs and
# flushes subnormals: they go as bits, at the price of a copy.
_MOVED = ("float16", "float32", "float64")


def _starts(section: Section, indices: jax.Array) -> tuple[jax.Array, np.ndarray, int]:
    offsets = layout.ends(section.sizes)[:-1].astype(np.int32)
    starts = jnp.searchsorted(indices, jnp.asarray(offsets)).astype(jnp.int32)
    return starts, offsets, min(indices.size, max(section.sizes))


def _seed_and_place(section: Section, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Seeds uint32[4, k] and positions within the leaf, uint32[k]."""
    table = jnp.asarray(section.seeds)
    if len(section.sizes) == 1:
        return jnp.broadcast_to(table, (digest.LANES, indices.size)), indices.astype(jnp.uint32)
    offsets = jnp.asarray(layout.ends(section.sizes)[:-1].astype(np.int32))
    leaf = jnp.searchsorted(offsets, indices, side="right") - 1
    return table[:, leaf], (indices - offsets[leaf]).astype(jnp.uint32)


def change(
    plans: Sequence[Section],
    indices: Sequence[jax.Array],
    old: Sequence[jax.Array],
    new: Sequence[jax.Array],
) -> jax.Array:
    """What new bits in the place of the old ones add to the digest, uint32[4]."""
    total = jnp.zeros(digest.LANES, jnp.uint32)
    for batch in batches(indices):
        words = [w for s in batch for w in _words(plans[s], indices[s], old[s], new[s])]
        seed, place, before, after, valid = (
            jnp.concatenate(parts, axis=-1) for parts in zip(*words, strict=True)
        )
        delta = digest.mix(jnp, place, after, seed) - digest.mix(jnp, place, before, seed)
        total = total + jnp.sum(delta * valid, axis=1, dtype=jnp.uint32)
    return total


def _words(
    section: Section, indices: jax.Array, old: jax.Array, new: jax.Array
) -> list[tuple[jax.Array, ...]]:
    """Per 32-bit word of an entry: seeds [4, k], places, old, new, and validity, each [k]."""
    seed, local = _seed_and_place(section, indices)
    valid = (indices < section.total).astype(jnp.uint32)
    if old.dtype.itemsize < 8:
        return [(seed, local, old.astype(jnp.uint32), new.astype(jnp.uint32), valid)]
    halves = [[(bits >> shift).astype(jnp.uint32) for bits in (old, new)] for shift in (0, 32)]
    return [(seed, 2 * local + jnp.uint32(i), *half, valid) for i, half in enumerate(halves)]


def batches(indices: Sequence[jax.Array]) -> list[list[int]]:
    """Places of sections, small ones together: a hundred kernels cost more than their work."""
    small = [s for s, at in enumerate(indices) if at.size <= _SMALL]
    return [
        batch for batch in [small, *([s] for s in range(len(indices)) if s not in small)] if batch
    ]
