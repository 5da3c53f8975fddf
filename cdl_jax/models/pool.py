"""Pooling as operations over slices, which XLA's CPU backend runs on all cores."""

from functools import reduce

import jax.numpy as jnp
from jax import Array, lax

from cdl_jax.models import formulations as forms


def max_pool(x: Array, size: int, stride: int, padding: int = 0) -> Array:
    """Maximum over windows of `size` x `size`, [N, H, W, C] -> [N, OH, OW, C].

    Values of a window that tie share its gradient. `lax.reduce_window` and its
    select-and-scatter gradient are several times slower on a CPU.
    """
    ends = (padding, padding)
    x = forms.pad(x, (ends, ends), value=-jnp.inf)
    x = reduce(jnp.maximum, forms.taps(x, (size, 1), (stride, 1)))
    # Rows first, then columns; fused into one loop again, it takes twice the time.
    x = lax.optimization_barrier(x)
    return reduce(jnp.maximum, forms.taps(x, (1, size), (1, stride)))


def avg_pool(x: Array, size: int) -> Array:
    """Mean over windows of `size` x `size` that do not overlap, odd ends left out."""
    parts = forms.taps(x, (size, size), (size, size))
    return sum(parts[1:], parts[0]) / len(parts)
