"""Compressors for `error_feedback`: what of an accumulated update is sent at a step."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from cdl_jax.core import rounding, select
from cdl_jax.core.rounding import Values

Scope = Literal["tensor", "global"]


@dataclasses.dataclass(frozen=True)
class Compressor:
    """How to split update + residual into what is sent and what is kept.

    Attributes:
      density: share of entries sent, for documentation and as the default of the model state's.
      scope: "tensor" picks in each tensor, "global" over their concatenation.
      slots: entries to reserve for a tensor (or concatenation) of n entries.
      values: how the new values of float32 leaves are sent, see `top_k`.
      compress: `(updates, residuals, ks, global_scope=, key=)` to
        `(indices, sent, residuals)`, as in `core.select`; all but the updates are rows, in any
        sequences.
    """

    density: float
    scope: Scope
    slots: Callable[[int], int]
    compress: Callable[..., tuple[Sequence[jax.Array], Sequence[jax.Array], Sequence[jax.Array]]]
    values: Values = "float32"


def top_k(density: float, *, scope: Scope = "tensor", values: Values = "float32") -> Compressor:
    """Sends the entries of largest magnitude, ties to the lowest index.

    Args:
      density: share of entries sent, in (0, 1]; of n entries max(1, floor(density * n)) are.
      scope: "tensor" (the paper's) or "global".
      values: of float32 leaves: "float32" exactly; "bf16", "f16" new values rounded to 16 bits;
        "int8", "int4", "int2" increments of so many bits, with a power of two as the section's
        scale. What the rounding loses stays in the residual.

    Raises:
      ValueError: for another density, scope or form of values.

    References:
      Prapas et al. 2021, section 4; Stich et al., Sparsified SGD with Memory, 2018.
    """
    _check(density, scope, values)

    def compress(updates, residuals, ks, *, global_scope, key):
        del key
        return select.error_feedback_top_k(updates, residuals, ks, global_scope=global_scope)

    return Compressor(density, scope, _share(density), compress, values)


def random_k(density: float, *, scope: Scope = "tensor", values: Values = "float32") -> Compressor:
    """Sends entries drawn uniformly without replacement; arguments as in `top_k`.

    References:
      Stich et al., Sparsified SGD with Memory, 2018.
    """
    _check(density, scope, values)
    return Compressor(density, scope, _share(density), select.error_feedback_random_k, values)


def quantize(bits: int) -> Compressor:
    """QSGD: rounds each entry at random, without bias, to one of 2^(bits - 1) levels and a sign.

    The scale is the least power of two at or above the tensor's largest magnitude, not its
    Euclidean norm, so that every level is exact in floating point and fused and unfused adds
    agree. Entries that round to zero are not sent.

    Args:
      bits: 1 to 16, sign included; 1 bit gives the levels -1, 0, 1 times the scale.

    Raises:
      ValueError: for other bits.

    References:
      Alistarh et al., QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding,
      2017.
    """
    if not _is_number(bits, numbers.Integral) or not 1 <= bits <= 16:
        raise ValueError(f"bits is {bits!r}; give a whole number from 1 to 16")
    levels = 2.0 ** (bits - 1)

    def compress(updates, residuals, ks, *, global_scope, key):
        del ks, global_scope
        keys = jax.random.split(key, len(updates))
        parts = [
            _quantize(u, r, levels, k) for u, r, k in zip(updates, residuals, keys, strict=True)
        ]
        indices, sent, kept = zip(*parts, strict=True)
        return indices, sent, kept

    return Compressor(1.0, "tensor", lambda n: n, compress)


def entries_sent(density: float, n: int) -> int:
    """max(1, floor(density * n)), and 0 for an empty tensor.

    Examples:
      >>> [entries_sent(1e-3, n) for n in (0, 1, 6, 48_000)]
      [0, 1, 1, 48]
    """
    # The nudge makes 0.01 * 100 one entry where the product is 0.999... in binary.
    return min(n, max(1, math.floor(density * n * (1 + 1e-12)))) if n else 0


def _share(density: float) -> Callable[[int], int]:
    return lambda n: entries_sent(density, n)


def _check(density: float, scope: str, values: str) -> None:
    rounding.check(values)
    if isinstance(density, jax.Array):
        raise TypeError(
            "density must be a Python number, for it sets shapes; under optax.inject_hyperparams "
            "name it in static_args"
        )
    if not _is_number(density, numbers.Real) or not 0 < density <= 1:
        raise ValueError(f"density is {density!r}; give the share of entries sent, in (0, 1]")
    if scope not in ("tensor", "global"):
        raise ValueError(f"scope is {scope!r}; give 'tensor' or 'global'")


def _is_number(x: object, kind: type) -> bool:
    return isinstance(x, kind) and not isinstance(x, bool)


def _quantize(update, residual, levels: float, key) -> tuple[jax.Array, ...]:
    n, dtype = update.size, update.dtype
    acc = jax.lax.optimization_barrier(update.reshape(-1) + residual)
    step = _power_of_two_above(jnp.max(jnp.abs(acc))) / levels
    exact = jnp.abs(acc) / jnp.where(step > 0, step, 1)
    # The draw is not added: the sum would round, and reach past the last level.
    up = jax.random.uniform(key, acc.shape, dtype) < exact - jnp.floor(exact)
    level = jnp.floor(exact) + up.astype(dtype)
    sent = jnp.sign(acc) * level * step
    found = sent != 0
    slot = jnp.cumsum(found, dtype=jnp.int32) - 1
    order = jax.lax.iota(jnp.int32, n)
    # Padding is n + slot, so positions stay distinct and ascending past the last entry found.
    indices = (n + order - slot[-1] - 1).at[jnp.where(found, slot, n)].set(order, mode="drop")
    values = jnp.zeros(n, dtype).at[jnp.where(found, slot, n)].set(sent, mode="drop")
    return indices, values, acc - sent


def _power_of_two_above(x: jax.Array) -> jax.Array:
    mantissa, exponent = jnp.frexp(x)
    return jnp.ldexp(jnp.ones((), x.dtype), exponent - (mantissa == 0.5).astype(exponent.dtype))
