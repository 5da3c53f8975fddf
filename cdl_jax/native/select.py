"""Error feedback and exact top-k selection in one pass over memory, on the CPU."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core.joined import join, room
from cdl_jax.core.ragged import Ragged, table
from cdl_jax.native import available

__all__ = ["error_feedback_top_k", "most_changed"]


def error_feedback_top_k(
    updates: Sequence[jax.Array],
    residuals: Sequence[jax.Array],
    ks: tuple[int, ...],
    *,
    global_scope: bool,
) -> tuple[Ragged, Ragged, Ragged]:
    r"""Add, select the k largest magnitudes, send them and keep the rest.

    With :math:`acc = update + residual`, one float32 addition an entry with subnormals
    flushed to zero, sent and residual partition ``acc`` by bits: each entry is in exactly one
    of them and +0.0 in the other. Ties go to the lowest flat position.

    One XLA call for all tensors, whatever their number. The residuals' arrays are updated in
    place where their buffers may be reused (donated, or carried by a loop).

    Args:
        updates: float32 arrays of any shape, n_t entries each.
        residuals: rows float32[n_t].
        ks: how many entries to select, one number a tensor; a single one for all tensors
            together with ``global_scope``.
        global_scope: select over the concatenation of all tensors in the order given.

    Returns:
        ``(indices, sent, residuals)``. ``indices``: rows int32[k_t] of flat C-order positions,
        ascending, for each tensor (one int32[k] of positions in the concatenation with
        ``global_scope``). ``sent``: rows float32 of the same sizes, ``acc`` at these positions.
        ``residuals``: rows, ``acc`` with +0.0 at these positions.

    Raises:
        ValueError: shapes or dtypes that do not match, a k outside 0..n, or too many entries
            for int32 positions.
        RuntimeError: the kernels are not built; ask :func:`cdl_jax.native.available` first.
    """
    if not available():
        raise RuntimeError(
            "cdl_jax.native is not built: install with a C++17 compiler, or use the XLA form"
        )
    old = join(residuals)
    _check_pairs(_flat_shapes(updates), _row_shapes(old))
    sizes = [update.size for update in updates]
    _check_ks(ks, [sum(sizes)] if global_scope else sizes)
    positions, rows = room(ks, [jnp.int32] * len(ks))
    sent, _ = room(ks, [jnp.float32] * len(ks))
    kept = [jax.ShapeDtypeStruct(array.shape, jnp.float32) for array in old.arrays]
    few = len(positions)
    call = jax.ffi.ffi_call(
        "cdl_jax_error_feedback_top_k",
        [*positions, *sent, *kept],
        input_output_aliases={len(updates) + a: 2 * few + a for a in range(len(kept))},
        vmap_method="sequential",
    )
    out = tuple(call(*updates, *old.arrays, rows=table(rows), residuals=table(old.rows)))
    positions, sent, kept = out[:few], out[few : 2 * few], out[2 * few :]
    return Ragged(positions, rows), Ragged(sent, rows), Ragged(kept, old.rows)


def most_changed(
    olds: Sequence[jax.Array], news: Sequence[jax.Array], ks: tuple[int, ...]
) -> Ragged:
    """Flat positions of the k largest ``|new - old|``, a row int32[k_t] a tensor, ascending.

    One XLA call for all tensors. Equal bits are no distance, subnormals are zeros, NaN is larger
    than anything, ties go to the lowest position.

    Args:
        olds: rows float32[n_t].
        news: float32 arrays of any shape, n_t entries each.
        ks: how many entries to select of each.

    Raises:
        ValueError, RuntimeError: as :func:`error_feedback_top_k`.
    """
    if not available():
        raise RuntimeError(
            "cdl_jax.native is not built: install with a C++17 compiler, or use the XLA form"
        )
    before = join(olds)
    _check_pairs(_flat_shapes(news), _row_shapes(before))
    _check_ks(ks, [new.size for new in news])
    results, rows = room(ks, [jnp.int32] * len(ks))
    call = jax.ffi.ffi_call("cdl_jax_most_changed", results, vmap_method="sequential")
    found = call(*news, *before.arrays, rows=table(rows), olds=table(before.rows))
    return Ragged(tuple(found), rows)


def _flat_shapes(arrays: Sequence[jax.Array]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((array.size,), array.dtype) for array in arrays]


def _row_shapes(rows: Ragged) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct((row.stop - row.start,), rows.arrays[row.array].dtype)
        for row in rows.rows
    ]


def _check_pairs(updates: Sequence[Any], residuals: Sequence[Any]) -> None:
    """Shapes and dtypes of what belongs together."""
    if len(updates) != len(residuals):
        raise ValueError(f"{len(updates)} updates but {len(residuals)} residuals")
    for t, (update, residual) in enumerate(zip(updates, residuals, strict=True)):
        if update.shape != residual.shape:
            raise ValueError(f"tensor {t}: update {update.shape}, residual {residual.shape}")
        if update.dtype != jnp.float32 or residual.dtype != jnp.float32:
            raise ValueError(
                f"tensor {t}: update is {update.dtype}, residual {residual.dtype}; "
                "both must be float32 (cast the update)"
            )


def _check_ks(ks: tuple[int, ...], sizes: list[int]) -> None:
    if len(ks) != len(sizes):
        raise ValueError(f"{len(ks)} values in ks for {len(sizes)} selections")
    limit = np.iinfo(np.int32).max
    for k, n in zip(ks, sizes, strict=True):
        if not 0 <= k <= n:
            raise ValueError(f"k = {k} is outside 0..{n}, the number of entries")
        if n + k > limit:
            raise ValueError(
                f"{n} entries and k = {k} exceed int32 positions ({limit}); select per tensor"
            )
