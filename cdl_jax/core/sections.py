"""The sections of an update over their leaves: read, write and hash k entries, in O(k).

Leaves are handled in their own dtype, the entries of an update as bits. To view a whole leaf as
bits would copy it: XLA's CPU and GPU run a bitcast to another dtype as a kernel. A reshape before
a native kernel would copy it too.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import digest, layout, rounding, xla_sections
from cdl_jax.core.joined import Leaves, apart, join
from cdl_jax.core.ragged import Ragged
from cdl_jax.core.tree import from_bits, to_bits
from cdl_jax.native import available, entries

INT32_MAX = xla_sections.INT32_MAX


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


def resolved(
    section: Section, old: jax.Array | None, values: jax.Array, scale: jax.Array | None
) -> jax.Array:
    """New values of entries, or their bits: these values, or `old` ones and levels of a scale."""
    if scale is None:
        return values
    if set(section.dtypes) != {"float32"}:
        raise ValueError(f"levels are for float32 leaves, got {sorted(set(section.dtypes))}")
    assert old is not None
    return rounding.resolve_levels(to_bits(old), values, scale)


def uncarry(section: Section, bits: jax.Array) -> jax.Array:
    """Inverse of `carry`."""
    return from_bits(bits, section.dtype) if bits.dtype != section.dtype else bits


def read(
    plans: Sequence[Section], leaves: Sequence[jax.Array], indices: Sequence[jax.Array]
) -> Ragged:
    """The entries of all sections as `SparseUpdate.values` has them; 0 in slots of padding.

    Args:
      plans: the sections.
      leaves: all of the tree, in its sorted order: arrays, or `Leaves`.
      indices: per section int32[k], ascending, padded past the end.
    """
    if not plans:
        return join([])
    mine, _ = _only(plans, leaves)

    def in_xla(mine: Leaves, indices: Ragged) -> Ragged:
        rows = zip(plans, _groups(plans, mine), indices, strict=True)
        return join([uncarry(row[0], xla_sections.gather(*row)) for row in rows])

    def in_native(mine: Leaves, indices: Ragged) -> Ragged:
        return entries.read_entries(mine, _sizes(plans), indices, [plan.dtype for plan in plans])

    return _by_platform(in_native, in_xla, mine, join(indices))


def write(
    plans: Sequence[Section],
    leaves: Sequence[jax.Array],
    indices: Sequence[jax.Array],
    bits: Sequence[jax.Array],
    after: Any = (),
) -> Leaves:
    """All leaves, with the sections' bits written; slots of padding are dropped.

    Args:
      plans, leaves, indices: as in `read`.
      bits: per section its new values, or their bits, [k].
      after: what `read` or `change` gave of the same leaves. Without the order that this states
        XLA would copy the leaves, for the reader's sake.
    """
    if not plans:
        return apart(leaves)
    mine, arrays = _only(plans, leaves)

    def in_xla(mine: Leaves, indices: Any, bits: Any, after: Any) -> Leaves:
        groups, words = _groups(plans, mine), _words_of(plans, bits)
        return mine.replaced(xla_sections.scatter(plans, groups, indices, words, after))

    def in_native(mine: Leaves, indices: Any, bits: Any, after: Any) -> Leaves:
        return entries.write_entries(mine, _sizes(plans), indices, bits, after)

    operands = mine, join(indices), _wide_enough(plans, bits), jax.tree.leaves(after)
    return _back(leaves, arrays, _by_platform(in_native, in_xla, *operands))


def rewrite(
    plans: Sequence[Section],
    leaves: Sequence[jax.Array],
    indices: Sequence[jax.Array],
    bits: Sequence[jax.Array],
    after: Any = (),
) -> tuple[Leaves, jax.Array]:
    """`write` and `change` of the same leaves; one pass where the kernels do it."""
    if not plans:
        return apart(leaves), jnp.zeros(digest.LANES, jnp.uint32)
    mine, arrays = _only(plans, leaves)

    def in_xla(mine: Leaves, indices: Any, bits: Any, after: Any) -> tuple[Leaves, Any]:
        groups, words = _groups(plans, mine), _words_of(plans, bits)
        old = [xla_sections.gather(*each) for each in zip(plans, groups, indices, strict=True)]
        delta = xla_sections.change(plans, indices, old, words)
        written = xla_sections.scatter(plans, groups, indices, words, [delta, *after])
        return mine.replaced(written), delta

    def in_native(mine: Leaves, indices: Any, bits: Any, after: Any) -> tuple[Leaves, Any]:
        seeds = [plan.seeds for plan in plans]
        return entries.rewrite_entries(mine, _sizes(plans), indices, bits, seeds, after)

    operands = mine, join(indices), _wide_enough(plans, bits), jax.tree.leaves(after)
    written, delta = _by_platform(in_native, in_xla, *operands)
    return _back(leaves, arrays, written), delta


def change(
    plans: Sequence[Section],
    leaves: Sequence[jax.Array],
    indices: Sequence[jax.Array],
    bits: Sequence[jax.Array],
) -> jax.Array:
    """What writing the sections' new bits would add to the digest, uint32[4]; as in `write`."""
    if not plans:
        return jnp.zeros(digest.LANES, jnp.uint32)
    mine, _ = _only(plans, leaves)

    def in_xla(mine: Leaves, indices: Any, bits: Any) -> jax.Array:
        rows = zip(plans, _groups(plans, mine), indices, strict=True)
        old = [xla_sections.gather(*each) for each in rows]
        return xla_sections.change(plans, indices, old, _words_of(plans, bits))

    def in_native(mine: Leaves, indices: Any, bits: Any) -> jax.Array:
        seeds = [plan.seeds for plan in plans]
        return entries.digest_change(mine, _sizes(plans), indices, bits, seeds)

    return _by_platform(in_native, in_xla, mine, join(indices), _wide_enough(plans, bits))


def _only(plans: Sequence[Section], leaves: Sequence[jax.Array]) -> tuple[Leaves, list[int]]:
    """The sections' leaves, one after the other, and which of all arrays they lie in."""
    return apart(leaves).only([i for plan in plans for i in plan.places])


def _sizes(plans: Sequence[Section]) -> list[int]:
    return [len(plan.places) for plan in plans]


def _groups(plans: Sequence[Section], mine: Leaves) -> list[list[jax.Array]]:
    turn = iter(mine)
    return [list(itertools.islice(turn, n)) for n in _sizes(plans)]


def _back(leaves: Sequence[jax.Array], arrays: list[int], written: Leaves) -> Leaves:
    everything = apart(leaves)
    new = dict(enumerate(everything.arrays)) | dict(zip(arrays, written.arrays, strict=True))
    return dataclasses.replace(everything, arrays=tuple(new.values()))


def _wide_enough(plans: Sequence[Section], bits: Sequence[jax.Array]) -> Ragged:
    """The kernels take values for their bits: on a CPU each bitcast is a copy and a thunk."""
    return join(
        [
            new if new.dtype.itemsize == plan.bits.itemsize else carry(plan, new).astype(plan.bits)
            for plan, new in zip(plans, bits, strict=True)
        ]
    )


def _words_of(plans: Sequence[Section], bits: Sequence[jax.Array]) -> list[jax.Array]:
    return [carry(plan, new).astype(plan.bits) for plan, new in zip(plans, bits, strict=True)]


def counts(plans: Sequence[Section], indices: Sequence[jax.Array]) -> jax.Array:
    """Slots in use of each section, int32[number of sections]."""
    joined, out = join(indices), jnp.zeros(len(plans), jnp.int32)
    for number, array in enumerate(joined.arrays):
        here = [s for s, row in enumerate(joined.rows) if row.array == number]
        starts, stops = np.array([joined.rows[s][1:] for s in here], np.int32).T
        ends = np.array([plans[s].total for s in here], np.int32)
        out = out.at[np.array(here)].set(_first_from(array, starts, stops, ends) - starts)
    return out


def _first_from(array: jax.Array, starts: Any, stops: Any, ends: Any) -> Any:
    """Where each ascending row of an array reaches its end; its stop where it does not.

    A search of all rows at once, by 16 steps a round: of halves, each fed by those before it,
    LLVM's vectorizer makes a tree that grows threefold a round, and compiles for minutes.
    """
    low, width = jnp.asarray(starts), int((stops - starts).max())
    while width:
        step = -(-width // 16)
        last = low[:, None] + step * np.arange(1, -(-width // step) + 1, dtype=np.int32) - 1
        passed = (last < stops[:, None]) & (array.at[last].get(mode="clip") < ends[:, None])
        low, width = low + step * passed.sum(1, dtype=jnp.int32), step - 1
    return low


def _by_platform(in_native: Any, in_xla: Any, *operands: Any) -> Any:
    if not available():
        return in_xla(*operands)
    return jax.lax.platform_dependent(*operands, cpu=in_native, default=in_xla)
