"""Values narrower than their leaf, and what each form loses: the rest stays in the residual."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from cdl_jax.core.levels import resolve

Values = Literal["float32", "bf16", "f16", "int8", "int4", "int2"]
BITS = {"int8": 8, "int4": 4, "int2": 2}


class Rounded(NamedTuple):
    """What is sent of some entries.

    Attributes:
      values: [k], new values, or int8 levels.
      scale: float32 [], a power of two, with levels; else None.
      moved: [k], the change that was applied.
    """

    values: jax.Array
    scale: jax.Array | None
    moved: jax.Array


def check(values: str) -> None:
    """Raises ValueError for an unknown form of values."""
    if values not in get_args(Values):
        raise ValueError(f"values is {values!r}; give one of {', '.join(get_args(Values))}")


def round_entries(old: jax.Array, increments: jax.Array, values: Values) -> Rounded:
    """What is sent for float32 entries `old` that shall move by `increments`, both [k].

    `bf16` and `f16` give the new absolute values, rounded to nearest. The integers give levels
    of magnitude 1 to 2^(bits - 1), at most 127, 0 for an increment of 0. Their scale is the power
    of two next to c / 2^(bits - 1), where c is the largest increment or 2^(bits / 2) times the
    mean one, whichever is less: what lies above is sent in part, and the rest later.
    """
    if values in BITS:
        scale, levels = _quantize(increments, BITS[values])
        return Rounded(levels, scale, levels.astype(jnp.float32) * scale)
    new = (_to_bf16 if values == "bf16" else _to_f16)(old + increments)
    return Rounded(new, None, new - old)


def round_absolute(new: jax.Array, values: Values) -> jax.Array:
    """Float32 values of no increments as `bf16` and `f16` send them; other forms leave them.

    What is beyond float16's range becomes a bfloat16: a variance must not be cut to 65504.
    """
    if values == "bf16":
        return _to_bf16(new)
    if values == "f16":
        return jnp.where(jnp.abs(new) > 65504, _to_bf16(new), _to_f16(new))
    return new


def resolve_levels(old: jax.Array, levels: jax.Array, scale: jax.Array) -> jax.Array:
    """New bits of entries of old bits, uint32[k]: the replicas' own arithmetic."""
    return resolve(jnp, old, levels, scale)


def _quantize(increments: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    size = jnp.abs(increments)
    top = 2 ** (bits - 1)
    reach = jnp.minimum(jnp.max(size), jnp.float32(2 ** (bits / 2)) * jnp.mean(size))
    mantissa, exponent = jnp.frexp(reach / jnp.float32(top))
    nearest = exponent - (mantissa < jnp.float32(0.5**0.5)).astype(exponent.dtype)
    scale = jnp.ldexp(jnp.float32(1), jnp.clip(nearest, -126, 127))
    level = jnp.clip(jnp.round(size / scale), 1, min(top, 127))
    return scale, (jnp.sign(increments) * level).astype(jnp.int8)


def _to_bf16(x: jax.Array) -> jax.Array:
    # Not by a cast and back, which XLA may leave out.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _to_f16(x: jax.Array) -> jax.Array:
    """To the nearest float16, its subnormals included and its infinities not."""
    normal = jax.lax.reduce_precision(jnp.clip(x, -65504, 65504), exponent_bits=5, mantissa_bits=10)
    step = jnp.float32(2.0**-24)
    return jnp.where(jnp.abs(x) < 2.0**-14, jnp.round(x / step) * step, normal)
