"""The sections of an update over their leaves: read, write and hash k entries, in O(k).

Leaves are handled in their own dtype, the entries of an update as bits. To view a whole leaf as
bits would copy it: XLA's CPU and GPU run a bitcast to another dtype as a kernel. A reshape before
a native kernel would copy it too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import digest, layout, rounding
from cdl_jax.core.tree import from_bits, is_trainable, to_bits
from cdl_jax.native import available, entries

INT32_MAX = 2**31 - 1
_SMALL = 1 << 10  # slots


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
        what = f"the tensor {leaves[0].name}" if len(leaves) == 1 else f"{len(leaves)} tensors"
        mend = "split it" if len(leaves) == 1 else "use scope='tensor'"
        raise ValueError(
            f"{what} of {sum(sizes)} entries and {slots} slots passes int32's {INT32_MAX}; {mend}"
        )
    dtypes = tuple(leaf.dtype for leaf in leaves)
    if len(set(dtypes)) > 1 and any(layout.dtype_of(t).itemsize > 4 for t in dtypes):
        raise ValueError(f"global scope cannot mix 8-byte leaves with others, got {set(dtypes)}")
    table = np.stack([digest.seeds(leaf.name, leaf.dtype) for leaf in leaves], axis=1)
    return Section(places, sizes, table, dtypes)


def carry(section: Section, values: jax.Array) -> jax.Array:
    """`SparseUpdate.values` of a section as bits, [k]."""
    return to_bits(values) if values.dtype != section.bits else values


def bits_of(
    section: Section, old: jax.Array | None, values: jax.Array, scale: jax.Array | None
) -> jax.Array:
    """New bits of entries, from their values, or from their `old` bits, levels and a scale."""
    if scale is None:
        return carry(section, values)
    if set(section.dtypes) != {"float32"}:
        raise ValueError(f"levels are for float32 leaves, got {sorted(set(section.dtypes))}")
    assert old is not None
    return rounding.resolve_levels(old, values, scale)


def uncarry(section: Section, bits: jax.Array) -> jax.Array:
    """Inverse of `carry`."""
    return from_bits(bits, section.dtype) if bits.dtype != section.dtype else bits


def read(
    plans: Sequence[Section], leaves: Sequence[jax.Array], indices: Sequence[jax.Array]
) -> list[jax.Array]:
    """Bits of the entries of all sections, [k] for each; 0 in slots of padding.

    Args:
      plans: the sections.
      leaves: all of the tree, in its sorted order.
      indices: per section int32[k], ascending, padded past the end.
    """
    if not plans:
        return []
    groups = [[leaves[i] for i in plan.places] for plan in plans]

    def in_xla(groups: Any, indices: Any) -> list[jax.Array]:
        return [_gather(*each) for each in zip(plans, groups, indices, strict=True)]

    def in_native(groups: Any, indices: Any) -> list[jax.Array]:
        return list(entries.read_entries(groups, indices, [plan.bits for plan in plans]))

    return _by_platform(in_native, in_xla, groups, list(indices))


def write(
    plans: Sequence[Section],
    leaves: Sequence[jax.Array],
    indices: Sequence[jax.Array],
    bits: Sequence[jax.Array],
    after: Sequence[jax.Array] = (),
) -> list[jax.Array]:
    """All leaves, with the sections' bits written; slots of padding are dropped.

    Args:
      plans, leaves, indices: as in `read`.
      bits: per section its new bits, [k].
      after: what `read` or `change` gave of the same leaves. Without the order that this states
        XLA would copy the leaves, for the reader's sake.
    """
    groups = [[leaves[i] for i in plan.places] for plan in plans]

    def in_xla(groups: Any, indices: Any, bits: Any, after: Any) -> list[jax.Array]:
        groups, _ = jax.lax.optimization_barrier((groups, after))
        parts = zip(plans, groups, indices, bits, strict=True)
        return [leaf for each in parts for leaf in _scatter(*each)]

    def in_native(groups: Any, indices: Any, bits: Any, after: Any) -> list[jax.Array]:
        return list(entries.write_entries(groups, indices, bits, after))

    out = list(leaves)
    if not plans:
        return out
    places = [i for plan in plans for i in plan.places]
    words = [new.astype(plan.bits) for plan, new in zip(plans, bits, strict=True)]
    operands = groups, list(indices), words, list(after)
    written = _by_platform(in_native, in_xla, *operands)
    for i, leaf in zip(places, written, strict=True):
        out[i] = leaf
    return out


def change(
    plans: Sequence[Section],
    leaves: Sequence[jax.Array],
    indices: Sequence[jax.Array],
    bits: Sequence[jax.Array],
) -> jax.Array:
    """What writing the sections' new bits would add to the digest, uint32[4]; as in `write`."""
    if not plans:
        return jnp.zeros(digest.LANES, jnp.uint32)
    groups = [[leaves[i] for i in plan.places] for plan in plans]

    def in_xla(groups: Any, indices: Any, bits: Any) -> jax.Array:
        old = [_gather(*each) for each in zip(plans, groups, indices, strict=True)]
        return _change(plans, indices, old, bits)

    def in_native(groups: Any, indices: Any, bits: Any) -> jax.Array:
        return entries.digest_change(groups, indices, bits, [plan.seeds for plan in plans])

    words = [new.astype(plan.bits) for plan, new in zip(plans, bits, strict=True)]
    return _by_platform(in_native, in_xla, groups, list(indices), words)


def counts(plans: Sequence[Section], indices: Sequence[jax.Array]) -> jax.Array:
    """Slots in use of each section, int32[number of sections]."""
    out = jnp.zeros(len(plans), jnp.int32)
    for batch in _batches(indices):
        sizes = [indices[s].size for s in batch]
        # By NumPy: XLA would fold a repeat of constants for seconds.
        limits = np.repeat(np.array([plans[s].total for s in batch], np.int32), sizes)
        used = jnp.cumsum(jnp.concatenate([indices[s] for s in batch]) < limits, dtype=jnp.int32)
        upto = jnp.pad(used, (1, 0))[layout.ends(sizes)]
        out = out.at[np.array(batch)].set(upto[1:] - upto[:-1])
    return out


def _batches(indices: Sequence[jax.Array]) -> list[list[int]]:
    """Small sections together, for a hundred kernels cost more to launch than their work."""
    small = [s for s, at in enumerate(indices) if at.size <= _SMALL]
    return [
        batch for batch in [small, *([s] for s in range(len(indices)) if s not in small)] if batch
    ]


def _by_platform(in_native: Any, in_xla: Any, *operands: Any) -> Any:
    if not available():
        return in_xla(*operands)
    return jax.lax.platform_dependent(*operands, cpu=in_native, default=in_xla)


def _gather(section: Section, leaves: list[jax.Array], indices: jax.Array) -> jax.Array:
    """Over several leaves, leaf t reads min(k, n_t) slots from its first one on and leaves what
    lies beyond it to its successors, which overwrite it.
    """
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


def _scatter(
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


def _change(
    plans: Sequence[Section],
    indices: Sequence[jax.Array],
    old: Sequence[jax.Array],
    new: Sequence[jax.Array],
) -> jax.Array:
    total = jnp.zeros(digest.LANES, jnp.uint32)
    for batch in _batches(indices):
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
