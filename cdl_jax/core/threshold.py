"""The k largest magnitudes without a sort: a threshold by its bits, then compaction.

XLA sorts a whole array for `lax.top_k` on a GPU (k > 16). Here the k-th magnitude is found two
bits at a time, each by one read of the array, and the positions are compacted block by block.
"""

import jax
import jax.numpy as jnp

from cdl_jax.core import layout
from cdl_jax.core.tree import to_bits

_BLOCK = 64  # entries; k of them are looked at one by one
_DIGIT = 2  # bits settled by one read


def top_k_positions(x: jax.Array, k: int) -> jax.Array:
    """Positions of the k largest |x|, ties and NaNs to the lowest position; int32[k], ascending.

    Args:
      x: float[n] of 2 or 4 bytes, 1 <= k <= n. NaNs count as the largest, and as equal.
    """
    magnitudes = _magnitudes(x)
    kth = _kth(magnitudes, k)
    padded = jnp.pad(magnitudes, (0, -x.size % _BLOCK)).reshape(-1, _BLOCK)
    # The padding ties with a k-th magnitude of zero, but comes after every entry that does.
    more, tied = padded > kth, padded == kth
    ties = k - jnp.sum(more, dtype=jnp.int32)
    tied_here = jnp.sum(tied, axis=1, dtype=jnp.int32)
    tied_before = jnp.cumsum(tied_here) - tied_here
    allowed = jnp.clip(ties - tied_before, 0, tied_here)
    here = jnp.sum(more, axis=1, dtype=jnp.int32) + allowed
    upto = jnp.cumsum(here)
    slot = jax.lax.iota(jnp.int32, k)
    block = jnp.searchsorted(upto, slot, side="right").astype(jnp.int32)
    taken = more[block] | (
        tied[block] & (jnp.cumsum(tied[block], axis=1, dtype=jnp.int32) <= allowed[block][:, None])
    )
    rank = slot - (upto - here)[block]
    within = jnp.argmax(jnp.cumsum(taken, axis=1, dtype=jnp.int32) == rank[:, None] + 1, axis=1)
    return block * _BLOCK + within.astype(jnp.int32)


def _magnitudes(x: jax.Array) -> jax.Array:
    """Unsigned integers in the order of |x|, a NaN above everything."""
    bits = to_bits(jnp.abs(x))
    return jnp.where(jnp.isnan(x), bits.dtype.type(jnp.iinfo(bits.dtype).max), bits)


def _kth(magnitudes: jax.Array, k: int) -> jax.Array:
    """The k-th largest: the greatest value that at least k entries reach."""
    width = 8 * layout.bits_dtype(magnitudes.dtype).itemsize
    digits = [magnitudes.dtype.type(d) for d in range(1, 1 << _DIGIT)]

    def settle(turn: jax.Array, low: jax.Array) -> jax.Array:
        shift = (width - _DIGIT * (turn + 1)).astype(magnitudes.dtype)
        for candidate in [low | (digit << shift) for digit in digits]:
            enough = jnp.sum(magnitudes >= candidate, dtype=jnp.int32) >= k
            low = jnp.where(enough, candidate, low)
        return low

    start = jnp.zeros((), magnitudes.dtype)
    return jax.lax.fori_loop(0, width // _DIGIT, settle, start)
