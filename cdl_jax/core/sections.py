"""One section of an update over its leaves: gather, write and hash k entries, in O(k).

Leaves are handled as flat arrays of their own dtype, the entries of an update as bits. To view a
whole leaf as bits would copy it: XLA's CPU and GPU run a bitcast to another dtype as a kernel.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import digest, layout
from cdl_jax.core.tree import from_bits, is_trainable, to_bits

INT32_MAX = 2**31 - 1


class Section(NamedTuple):
    """The leaves that a section covers and where they lie in its concatenation; all static."""

    places: tuple[int, ...]  # in the tree's sorted order
    sizes: tuple[int, ...]
    seeds: np.ndarray  # uint32[4, leaves]
    dtypes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Entries in the concatenation."""
        return sum(self.sizes)

    @property
    def dtype(self) -> np.dtype:
        """What `SparseUpdate.values` has here: the common dtype, or uint32 for a mixture."""
        if len(set(self.dtypes)) == 1:
            return layout.dtype_of(self.dtypes[0])
        return np.dtype(np.uint32)

    @property
    def bits(self) -> np.dtype:
        """The carrier of the values' bits."""
        return layout.bits_dtype(self.dtype)


def make_section(spec: layout.TreeSpec, places: tuple[int, ...], slots: int) -> Section:
    """The section of `spec` over the leaves at `places`, with room for `slots` paddings."""
    leaves = [spec.leaves[i] for i in places]
    sizes = tuple(leaf.size for leaf in leaves)
    if sum(sizes) + slots > INT32_MAX:
        raise ValueError(
            f"a section of {sum(sizes)} entries and {slots} slots passes int32's {INT32_MAX}; "
            "use scope='tensor' or split the tensor"
        )
    dtypes = tuple(leaf.dtype for leaf in leaves)
    if len(set(dtypes)) > 1 and any(layout.dtype_of(t).itemsize > 4 for t in dtypes):
        raise ValueError(f"global scope cannot mix 8-byte leaves with others, got {set(dtypes)}")
    table = np.stack([digest.seeds(leaf.name, leaf.dtype) for leaf in leaves], axis=1)
    return Section(places, sizes, table, dtypes)


def carry(section: Section, values: jax.Array) -> jax.Array:
    """`SparseUpdate.values` of a section as bits, [k]."""
    return to_bits(values) if values.dtype != section.bits else values


def uncarry(section: Section, bits: jax.Array) -> jax.Array:
    """Inverse of `carry`."""
    return from_bits(bits, section.dtype) if bits.dtype != section.dtype else bits


def gather(section: Section, flats: list[jax.Array], indices: jax.Array) -> jax.Array:
    """Bits of the entries at `indices`, [k]; 0 in slots of padding.

    Over several leaves, leaf t reads min(k, n_t) slots from its first one on and leaves what
    lies beyond it to its successors, which overwrite it.
    """
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
    section: Section, flats: list[jax.Array], indices: jax.Array, bits: jax.Array
) -> list[jax.Array]:
    """The leaves with `bits` written at `indices`; slots of padding are dropped."""
    if len(flats) == 1:
        return [_set(flats[0], indices, bits, **_ORDERED)]
    starts, offsets, longest = _starts(section, indices)
    padded = jnp.pad(indices, (0, longest), constant_values=INT32_MAX)
    values = jnp.pad(bits, (0, longest))
    out = []
    for t, flat in enumerate(flats):
        span = min(indices.size, flat.size)
        local = jax.lax.dynamic_slice(padded, (starts[t],), (span,)) - offsets[t]
        value = jax.lax.dynamic_slice(values, (starts[t],), (span,))
        out.append(_set(flat, local, value, indices_are_sorted=True))
    return out


def change(section: Section, indices: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """What replacing `old` bits by `new` ones adds to the digest, uint32[4]."""
    seed, local = _seed_and_place(section, indices)
    valid = (indices < section.total).astype(jnp.uint32)
    total = jnp.zeros(digest.LANES, jnp.uint32)
    old_words, new_words = _words(old), _words(new)
    stride = jnp.uint32(len(old_words))
    for i, (a, b) in enumerate(zip(old_words, new_words, strict=True)):
        place = (local * stride + jnp.uint32(i))[None]
        delta = digest.mix(jnp, place, b[None], seed) - digest.mix(jnp, place, a[None], seed)
        total = total + jnp.sum(delta * valid[None], axis=1, dtype=jnp.uint32)
    return total


_ORDERED: dict[str, Any] = {"unique_indices": True, "indices_are_sorted": True}


def _set(flat: jax.Array, indices: jax.Array, bits: jax.Array, **how: Any) -> jax.Array:
    """Writes bits into a leaf, every other entry keeps its own."""
    bits = bits.astype(layout.bits_dtype(flat.dtype))
    if flat.dtype.name in _MOVED or not is_trainable(flat):
        return flat.at[indices].set(from_bits(bits, flat.dtype), mode="drop", **how)
    return from_bits(to_bits(flat).at[indices].set(bits, mode="drop", **how), flat.dtype)


# XLA's CPU (jax 0.10) scatters other floats as wider ones, which quiets signalling NaNs and
# flushes subnormals: they go as bits, at the price of a copy.
_MOVED = ("float16", "float32", "float64")


def _starts(section: Section, indices: jax.Array) -> tuple[jax.Array, np.ndarray, int]:
    offsets = layout.ends(section.sizes)[:-1].astype(np.int32)
    starts = jnp.searchsorted(indices, jnp.asarray(offsets)).astype(jnp.int32)
    return starts, offsets, min(indices.size, max(section.sizes))


def _seed_and_place(section: Section, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Seeds uint32[4, k or 1] and positions within the leaf, uint32[k]."""
    table = jnp.asarray(section.seeds)
    if len(section.sizes) == 1:
        return table, indices.astype(jnp.uint32)
    offsets = jnp.asarray(layout.ends(section.sizes)[:-1].astype(np.int32))
    leaf = jnp.searchsorted(offsets, indices, side="right") - 1
    return table[:, leaf], (indices - offsets[leaf]).astype(jnp.uint32)


def _words(bits: jax.Array) -> list[jax.Array]:
    if bits.dtype.itemsize < 8:
        return [bits.astype(jnp.uint32)]
    return [bits.astype(jnp.uint32), (bits >> 32).astype(jnp.uint32)]
