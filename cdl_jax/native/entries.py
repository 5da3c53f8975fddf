"""Entries of many arrays, read, hashed or written in one call each, on the CPU."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core.joined import Leaves, room
from cdl_jax.core.ragged import Ragged, Row, row_sizes, table
from cdl_jax.native import available

__all__ = ["digest_change", "full_digest", "read_entries", "rewrite_entries", "write_entries"]


def read_entries(
    leaves: Leaves, sections: Sequence[int], indices: Ragged, dtypes: Sequence[Any]
) -> Ragged:
    """Bits of the entries at ascending positions; zero for positions past the end.

    Args:
        leaves: of all sections, one after the other, of 1 to 8 bytes an entry.
        sections: how many leaves each of them has.
        indices: for each section a row int32[k_s], positions in the concatenation of its leaves.
        dtypes: for each section the unsigned integers that carry the bits, as wide as its
            widest leaf.

    Returns:
        A row [k_s] of its dtype for each section.

    Raises:
        RuntimeError: the kernels are not built; ask :func:`cdl_jax.native.available` first.
    """
    results, rows = room(row_sizes(indices), dtypes)
    call = _call("read_entries", results, leaves, sections, indices, rows)
    return Ragged(tuple(call(*leaves.arrays, *indices.arrays)), rows)


def write_entries(
    leaves: Leaves,
    sections: Sequence[int],
    indices: Ragged,
    bits: Ragged,
    after: Sequence[jax.Array] = (),
) -> Leaves:
    """The leaves with the bits written at the positions of their sections.

    Arguments are those of :func:`read_entries`; a position past the end writes nothing. The
    arrays are changed in place where their buffers may be reused (donated, or carried). `after`
    is not looked at: these arrays are there before anything is written.
    """
    results = _alike(leaves)
    call = _call("write_entries", results, leaves, sections, indices, bits.rows)
    return Leaves(tuple(call(*leaves.arrays, *indices.arrays, *bits.arrays, *after)), leaves.rows)


def digest_change(
    leaves: Leaves,
    sections: Sequence[int],
    indices: Ragged,
    bits: Ragged,
    seeds: Sequence[np.ndarray],
) -> jax.Array:
    """What :func:`write_entries` would add to the digest, uint32[4]; it writes nothing.

    `seeds` has the lanes' seeds of each section's leaves, uint32[4, leaves]. Other arguments are
    those of :func:`write_entries`.
    """
    result = jax.ShapeDtypeStruct((4,), jnp.uint32)
    call = _call("digest_change", result, leaves, sections, indices, bits.rows)
    lanes = np.concatenate(seeds, axis=1).T
    return call(*leaves.arrays, *indices.arrays, *bits.arrays, lanes)


def rewrite_entries(
    leaves: Leaves,
    sections: Sequence[int],
    indices: Ragged,
    bits: Ragged,
    seeds: Sequence[np.ndarray],
    after: Sequence[jax.Array] = (),
) -> tuple[Leaves, jax.Array]:
    """:func:`write_entries` and :func:`digest_change` in one pass over the entries."""
    results = [*_alike(leaves), jax.ShapeDtypeStruct((4,), jnp.uint32)]
    call = _call("rewrite_entries", results, leaves, sections, indices, bits.rows)
    lanes = np.concatenate(seeds, axis=1).T
    *written, change = call(*leaves.arrays, *indices.arrays, *bits.arrays, lanes, *after)
    return Leaves(tuple(written), leaves.rows), change


def full_digest(leaves: Sequence[jax.Array], seeds: np.ndarray) -> jax.Array:
    """The digest over every entry of these arrays, uint32[4]; seeds: uint32[leaves, 4]."""
    result = jax.ShapeDtypeStruct((4,), jnp.uint32)
    call = jax.ffi.ffi_call("cdl_jax_full_digest", result, vmap_method="sequential")
    return call(jnp.asarray(seeds), *leaves)


def _call(
    name: str,
    results: Any,
    leaves: Leaves,
    sections: Sequence[int],
    indices: Ragged,
    bits: tuple[Row, ...],
) -> Any:
    if not available():
        raise RuntimeError(
            "cdl_jax.native is not built: install with a C++17 compiler, or use the XLA form"
        )
    writes = name.endswith("write_entries")
    aliases = {a: a for a in range(len(leaves.arrays))} if writes else {}
    call = jax.ffi.ffi_call(
        f"cdl_jax_{name}", results, input_output_aliases=aliases, vmap_method="sequential"
    )
    attributes = {
        "sections": np.array(sections, np.int64),
        "leaves": table(leaves.rows),
        "positions": table(indices.rows),
        "bits": table(bits),
    }
    return lambda *operands: call(*map(jnp.asarray, operands), **attributes)


def _alike(leaves: Leaves) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in leaves.arrays]
