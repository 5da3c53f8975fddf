"""Whether a tree of gradients holds an infinity or a NaN, at the speed of memory."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cdl_jax.native import available

__all__ = ["all_finite"]


def all_finite(arrays: Sequence[jax.Array]) -> jax.Array:
    """Whether every entry is finite: ``all(jnp.isfinite(x).all() for x in arrays)``.

    One XLA call for all float32 arrays; other floating dtypes go through XLA.

    Args:
        arrays: arrays of any shape and dtype.

    Returns:
        bool scalar; True for no arrays.

    Raises:
        RuntimeError: the kernels are not built; ask :func:`cdl_jax.native.available` first.
    """
    if not available():
        raise RuntimeError(
            "cdl_jax.native is not built: install with a C++17 compiler, or use jnp.isfinite"
        )
    native = [x for x in arrays if x.dtype == jnp.float32]
    others = [x for x in arrays if x.dtype != jnp.float32]
    call = jax.ffi.ffi_call(
        "cdl_jax_all_finite", jax.ShapeDtypeStruct((), jnp.bool), vmap_method="sequential"
    )
    finite = call(*native)
    for x in others:
        finite &= jnp.isfinite(x).all()
    return finite
