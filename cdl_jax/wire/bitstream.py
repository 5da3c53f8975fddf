"""Golomb-Rice codes of non-negative integers, whole arrays at a time.

A value v with parameter b is its quotient v >> b in unary (that many zeros, then a one) and its
b low bits. Quotients and low bits lie in two streams, both filled from the highest bit of each
byte, the last byte padded with zeros; so no loop over entries is needed either way.
"""

import numpy as np

from cdl_jax.wire.error import WireError

MAX_PARAMETER = 31


def best_parameter(values: np.ndarray) -> int:
    """The b that makes the two streams of these values shortest, the lowest of equals."""
    if not values.size:
        return 0
    guess = int(np.log2(max(1.0, float(values.mean()))))
    near = range(max(0, guess - 1), min(MAX_PARAMETER, guess + 1) + 1)
    return min(near, key=lambda b: (values.size * (b + 1) + int((values >> b).sum()), b))


def encode(values: np.ndarray, b: int) -> tuple[bytes, bytes]:
    """`(low bits, unary quotients)` of int64 values below 2^32."""
    ends = np.cumsum((values >> b) + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1 if values.size else 0, np.uint8)
    bits[ends] = 1
    return pack_low(values, b), np.packbits(bits).tobytes()


def decode(low: bytes, unary: bytes, count: int, b: int) -> np.ndarray:
    """Inverse of `encode`, int64[count].

    Allocates at most 16 bytes per bit of the streams.

    Raises:
      WireError: when the streams do not hold exactly `count` values, or pad with ones.
    """
    bits = np.unpackbits(np.frombuffer(unary, np.uint8))
    ends = np.flatnonzero(bits)
    if ends.size != count or (count and len(unary) != ends[-1] // 8 + 1) or (not count and unary):
        raise WireError(f"the quotients hold {ends.size} values in {len(unary)} bytes, not {count}")
    quotients = np.diff(ends, prepend=-1) - 1
    return (quotients << b) | unpack_low(low, count, b)


def low_bytes(count: int, b: int) -> int:
    """Length of the stream of low bits."""
    return (count * b + 7) // 8


def pack_low(values: np.ndarray, b: int) -> bytes:
    """The b low bits of each value, highest first."""
    shifts = np.arange(b - 1, -1, -1, dtype=np.uint32)
    bits = (values.astype(np.uint32)[:, None] >> shifts) & np.uint32(1)
    return np.packbits(bits.astype(np.uint8)).tobytes()


def unpack_low(low: bytes, count: int, b: int) -> np.ndarray:
    """Inverse of `pack_low`, int64[count]."""
    bits = np.unpackbits(np.frombuffer(low, np.uint8))
    if bits[count * b :].any():
        raise WireError("the low bits are padded with ones")
    weights = np.int64(1) << np.arange(b - 1, -1, -1, dtype=np.int64)
    return bits[: count * b].reshape(count, b) @ weights
