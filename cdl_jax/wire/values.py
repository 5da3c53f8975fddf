"""Values of a group, without loss: raw, or with their exponents coded; and quantised levels.

The first byte is the form:

    0   raw, little endian
    1   float32, bfloat16 or float16 in three streams (see `numbers`) behind a byte t: per 64
        values their largest exponent, as zigzag differences (0 before the first); that less
        each exponent; sign and mantissa without the t low bits, which are zero in all of them
    2   levels, none of them 0: 2 (|level| - 1) + (1 where negative), as such a stream
    3   levels: 2 |level| - (1 where negative)

So a float32 that a bfloat16 or float16 holds exactly takes no more than 16 bits, and the
exponents, close to each other in one tensor, cost about 3 bits and not 8.
"""

from typing import NamedTuple

import numpy as np

from cdl_jax.core.layout import bits_dtype
from cdl_jax.wire import numbers
from cdl_jax.wire.error import WireError

RAW, SPLIT, LEVELS, LEVELS_WITH_ZERO = range(4)


class _Float(NamedTuple):
    mantissa: int  # bits
    exponent: int


_FLOATS = {"float32": _Float(23, 8), "bfloat16": _Float(7, 8), "float16": _Float(10, 5)}


def encode(values: np.ndarray, *, levels: bool) -> bytes:
    """Values of one dtype, or int8 levels, as bytes."""
    if levels:
        return _encode_levels(values.astype(np.int32))
    bits, kind = values.view(bits_dtype(values.dtype)), _FLOATS.get(values.dtype.name)
    split = None if kind is None else _encode_split(bits.astype(np.uint32, copy=False), kind)
    if split is not None and len(split) < 1 + bits.nbytes:
        return split
    return bytes([RAW]) + bits.astype("<" + _code(values)).tobytes()


def decode(
    data: bytes, at: int, count: int, dtype: np.dtype, *, levels: bool
) -> tuple[np.ndarray, int]:
    """Inverse of `encode`, and the place behind.

    Raises:
      WireError: for what cannot be values of this dtype. Other forms of them may pass.
    """
    if at >= len(data):
        raise WireError("cut short in the form of values")
    form, at = data[at], at + 1
    if levels:
        return _decode_levels(data, at, count, form)
    if form == SPLIT and dtype.name in _FLOATS:
        return _decode_split(data, at, count, dtype)
    if form != RAW:
        raise WireError(f"values of {dtype} are of unknown form {form}")
    return _decode_raw(data, at, count, dtype)


def _code(values: np.ndarray) -> str:
    return f"u{values.dtype.itemsize}"


def _decode_raw(data: bytes, at: int, count: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
    size = count * dtype.itemsize
    if size > len(data) - at:
        raise WireError(f"cut short in the values: {size} bytes wanted, {len(data) - at} left")
    bits = np.frombuffer(data, f"<u{dtype.itemsize}", count, at).astype(bits_dtype(dtype))
    if dtype == np.bool_ and bits.max() > 1:
        raise WireError("a bool is neither 0 nor 1")
    return bits.view(dtype), at + size


def _encode_split(bits: np.ndarray, kind: _Float) -> bytes:
    if numbers._codec is None:
        return numpy_encode_split(bits, kind)
    return bytes([SPLIT]) + numbers._codec.encode_floats(np.ascontiguousarray(bits), *kind)


def _decode_split(data: bytes, at: int, count: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
    kind = _FLOATS[dtype.name]
    if numbers._codec is None:
        bits, at = numpy_decode_split(data, at, count, kind)
    else:
        try:
            raw, at = numbers._codec.decode_floats(data, at, count, *kind)
        except ValueError as error:
            raise WireError(str(error)) from None
        bits = np.frombuffer(raw, np.uint32)
    return bits.astype(bits_dtype(dtype), copy=False).view(dtype), at


def numpy_encode_split(bits: np.ndarray, kind: _Float) -> bytes:
    """Form 1 of bits widened to uint32, in NumPy alone."""
    mantissa = bits & np.uint32((1 << kind.mantissa) - 1)
    exponent = bits >> np.uint32(kind.mantissa) & np.uint32((1 << kind.exponent) - 1)
    sign = bits >> np.uint32(kind.mantissa + kind.exponent)
    used = int(np.bitwise_or.reduce(mantissa))
    spare = (used & -used).bit_length() - 1 if used else kind.mantissa
    largest = np.maximum.reduceat(exponent, np.arange(0, bits.size, numbers.BLOCK))
    below = np.repeat(largest, numbers.BLOCK)[: bits.size] - exponent
    signed = sign << np.uint32(kind.mantissa - spare) | mantissa >> np.uint32(spare)
    steps = np.diff(largest.astype(np.int64), prepend=0)
    streams = [_zigzag(steps), below, signed]
    return bytes([SPLIT, spare]) + b"".join(numbers.encode(stream) for stream in streams)


def numpy_decode_split(data: bytes, at: int, count: int, kind: _Float) -> tuple[np.ndarray, int]:
    """Inverse of `numpy_encode_split` behind its first byte, and the place behind."""
    spare = data[at] if at < len(data) else 255
    if spare > kind.mantissa:
        raise WireError(f"{spare} bits of a mantissa of {kind.mantissa} are spared")
    steps, at = numbers.decode(data, at + 1, -(-count // numbers.BLOCK))
    below, at = numbers.decode(data, at, count)
    signed, at = numbers.decode(data, at, count)
    largest = np.repeat(np.cumsum(_unzigzag(steps)), numbers.BLOCK)[:count]
    exponent = largest - below
    kept = kind.mantissa - spare
    if exponent.min() < 0 or largest.max() >> kind.exponent or int(signed.max()) >> (kept + 1):
        raise WireError("an exponent or a mantissa is outside its range")
    bits = exponent.astype(np.uint32) << np.uint32(kind.mantissa)
    bits |= signed >> np.uint32(kept) << np.uint32(kind.mantissa + kind.exponent)
    bits |= (signed & np.uint32((1 << kept) - 1)) << np.uint32(spare)
    return bits, at


def _encode_levels(levels: np.ndarray) -> bytes:
    negative = levels < 0
    if levels.all():
        coded = 2 * (np.abs(levels) - 1) + negative
        return bytes([LEVELS]) + numbers.encode(coded.astype(np.uint32))
    return bytes([LEVELS_WITH_ZERO]) + numbers.encode(
        (2 * np.abs(levels) - negative).astype(np.uint32)
    )


def _decode_levels(data: bytes, at: int, count: int, form: int) -> tuple[np.ndarray, int]:
    if form not in (LEVELS, LEVELS_WITH_ZERO):
        raise WireError(f"levels are of unknown form {form}")
    coded, at = numbers.decode(data, at, count)
    coded = coded.astype(np.int64)
    odd = coded & 1
    size = (coded >> 1) + 1 if form == LEVELS else (coded + 1) >> 1
    levels = np.where(odd == 1, -size, size)
    if levels.min() < -127 or levels.max() > 127:
        raise WireError("a level is outside -127 to 127")
    return levels.astype(np.int8), at


def _zigzag(steps: np.ndarray) -> np.ndarray:
    return np.where(steps < 0, -2 * steps - 1, 2 * steps).astype(np.uint32)


def _unzigzag(numbers_: np.ndarray) -> np.ndarray:
    halves = (numbers_ >> np.uint32(1)).astype(np.int64)
    return np.where(numbers_ & np.uint32(1), -halves - 1, halves)
