"""How quantised increments become values. Needs no JAX: one text serves NumPy and JAX.

A level l with the scale s, a power of two, moves a float32 entry from x to x + l s. The product is
exact, so fused and unfused additions agree. Subnormal numbers count as +0.0, before and after:
XLA flushes them, NumPy would not.
"""

from typing import Any

import numpy as np

_EXPONENT = np.uint32(0x7F800000)


def resolve(xp: Any, old: Any, levels: Any, scale: Any) -> Any:
    """New bits of entries, uint32[k].

    Args:
      xp: `numpy` or `jax.numpy`.
      old: their bits so far, uint32[k].
      levels: int8[k].
      scale: float32 [], or [k].
    """
    new = _without_subnormals(xp, old).view(xp.float32) + levels.astype(xp.float32) * scale
    return _without_subnormals(xp, new.view(xp.uint32))


def numpy_resolve(old: np.ndarray, levels: np.ndarray, scale: np.float32) -> np.ndarray:
    """`resolve` in NumPy; an infinity is a value like any other."""
    with np.errstate(over="ignore", invalid="ignore"):
        return resolve(np, old, levels, np.float32(scale))


def _without_subnormals(xp: Any, bits: Any) -> Any:
    return xp.where((bits & _EXPONENT) != 0, bits, xp.uint32(0))
