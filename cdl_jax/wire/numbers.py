"""Streams of integers below 2^32, whole arrays at a time: gaps, exponents, levels.

A Rice code with parameter b writes a number v as its quotient v >> b in unary (that many zeros,
then a one) and its b low bits. Quotients and low bits lie in two streams, so no loop over numbers
is needed either way. Bits fill a byte from its lowest one up; the last byte is padded with zeros.
The first byte of a stream is its form:

    0 to 31   Rice, with this parameter: varint length of the quotients, low bits, quotients
    32        Rice, a parameter for each 64 numbers: the parameters' differences from their
              predecessors (0 before the first), zigzag, as such a stream of another form; then
              as above
    33 to 64  the low bits of each number, as many as the form less 32

Real supports cluster: parameters of their own let 64 gaps cost what these need. A parameter is
the least that makes its numbers shortest, a width that of the largest number, the form the
smallest (of equals: fixed width, one parameter, blocks). `cdl_jax.native` does the same sooner.
"""

import importlib
from collections.abc import Iterator

import numpy as np

from cdl_jax.wire.error import WireError

BLOCK = 64
BLOCKS = 32
FIXED = 32
AT_ONCE = 512  # blocks whose bits NumPy holds apart, up to 20 kB a block
MAX_POSITION = 2**31 - 1

try:
    _codec = importlib.import_module("cdl_jax.native._codec")
except ImportError:  # installed without a compiler
    _codec = None


def encode(numbers: np.ndarray) -> bytes:
    """One or more numbers, uint32, as bytes."""
    if _codec is not None:
        return _codec.encode(np.ascontiguousarray(numbers))
    return numpy_encode(numbers)


def decode(data: bytes, at: int, count: int) -> tuple[np.ndarray, int]:
    """`count` >= 1 numbers at place `at`, uint32, and the place behind them.

    It reads whatever decodes, in the canonical form or not, and allocates no more than a fixed
    multiple of what is left of the data.

    Raises:
      WireError: when the bytes end before the numbers do, or hold something else.
    """
    if _codec is None:
        return numpy_decode(data, at, count)
    try:
        raw, end = _codec.decode(data, at, count)
    except ValueError as error:
        raise WireError(str(error)) from None
    return np.frombuffer(raw, np.uint32), end


def encode_gaps(positions: np.ndarray, counts: np.ndarray) -> bytes:
    """The gaps p[i] - p[i-1] - 1 of int32 positions, in sections that each start at p[-1] = -1."""
    if _codec is not None:
        return _codec.encode_gaps(np.ascontiguousarray(positions), counts.astype(np.int32))
    return numpy_encode_gaps(positions, counts)


def decode_gaps(data: bytes, at: int, counts: np.ndarray) -> tuple[np.ndarray, int]:
    """Inverse of `encode_gaps`, int32, and the place behind; bounded and refusing as `decode`."""
    if _codec is None:
        return numpy_decode_gaps(data, at, counts)
    try:
        raw, end = _codec.decode_gaps(data, at, counts.astype(np.int32))
    except ValueError as error:
        raise WireError(str(error)) from None
    return np.frombuffer(raw, np.int32), end


def numpy_encode_gaps(positions: np.ndarray, counts: np.ndarray) -> bytes:
    """`encode_gaps` in NumPy alone."""
    starts = _starts(counts)
    gaps = np.diff(positions, prepend=np.int32(-1))
    gaps -= 1
    gaps[starts] = positions[starts]
    return numpy_encode(gaps.view(np.uint32))


def numpy_decode_gaps(data: bytes, at: int, counts: np.ndarray) -> tuple[np.ndarray, int]:
    """`decode_gaps` in NumPy alone."""
    gaps, at = numpy_decode(data, at, int(counts.sum()))
    after = np.cumsum(gaps, dtype=np.int64) + np.arange(1, gaps.size + 1)
    starts = _starts(counts)
    positions = after - 1 - np.repeat(np.where(starts > 0, after[starts - 1], 0), counts)
    if int(positions.max()) > MAX_POSITION:
        raise WireError("a position is past 2^31 - 1")
    return positions.astype(np.int32), at


def numpy_encode(numbers: np.ndarray) -> bytes:
    """`encode` in NumPy alone."""
    width = max(1, int(numbers.max()).bit_length())
    forms = [bytes([FIXED + width]) + _pack(numbers, np.full(_blocks(numbers.size), width))]
    forms.append(_rice(numbers, np.full(_blocks(numbers.size), _best(numbers[None])[0])))
    if numbers.size > BLOCK:
        forms.append(_blocks_form(numbers))
    return min(forms, key=len)


def numpy_decode(data: bytes, at: int, count: int) -> tuple[np.ndarray, int]:
    """`decode` in NumPy alone."""
    if not 0 < count <= 8 * (len(data) - at):
        raise WireError("cut short: more numbers are announced than bytes hold")
    form, at = data[at], at + 1
    if form > FIXED + 32:
        raise WireError("numbers are of an unknown form")
    if form > FIXED:
        fixed, at = _unpack(data, at, count, np.full(_blocks(count), form - FIXED))
        return fixed.astype(np.uint32), at
    if form == BLOCKS:
        parameters, at = _read_parameters(data, at, _blocks(count))
    else:
        parameters = np.full(_blocks(count), form)
    size, at = read_varint(data, at)
    low, at = _unpack(data, at, count, parameters)
    quotients = _quotients(data[at : at + size], size, count)
    numbers = (quotients << np.repeat(parameters, BLOCK)[:count]) | low
    if int(numbers.max()) >> 32:
        raise WireError("a number is past 32 bits")
    return numbers.astype(np.uint32), at + size


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each section begins."""
    return np.cumsum(counts) - counts


def _blocks_form(numbers: np.ndarray) -> bytes:
    size = numbers.size // BLOCK * BLOCK
    parameters = _best(numbers[:size].reshape(-1, BLOCK))
    if size < numbers.size:
        parameters = np.append(parameters, _best(numbers[None, size:]))
    steps = np.diff(parameters, prepend=0)
    zigzag = np.where(steps < 0, -2 * steps - 1, 2 * steps).astype(np.uint32)
    width = max(1, int(zigzag.max()).bit_length())
    fixed = bytes([FIXED + width]) + _pack(zigzag, np.full(_blocks(zigzag.size), width))
    one = _rice(zigzag, np.full(_blocks(zigzag.size), _best(zigzag[None])[0]))
    side = min(fixed, one, key=len)
    return bytes([BLOCKS]) + side + _rice(numbers, parameters)[1:]


def _best(rows: np.ndarray) -> np.ndarray:
    """Per row the least parameter that makes its numbers shortest."""
    out = np.full(len(rows), 31)
    for b in range(30, -1, -1):  # lengths are convex in the parameter
        halves = (rows >> np.uint32(b)).astype(np.int64) + 1 >> 1
        enough = halves.sum(axis=1) <= rows.shape[1]
        if not enough.any():
            break
        out[enough] = b
    return out


def _rice(numbers: np.ndarray, parameters: np.ndarray) -> bytes:
    """A Rice code behind the form byte that one parameter for all would have."""
    shifts = np.repeat(parameters, BLOCK)[: numbers.size].astype(np.uint32)
    ends = np.cumsum((numbers >> shifts).astype(np.int64) + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1, np.uint8)
    bits[ends] = 1
    unary = np.packbits(bits, bitorder="little").tobytes()
    return bytes([parameters[0]]) + varint(len(unary)) + _pack(numbers, parameters) + unary


def _pack(numbers: np.ndarray, parameters: np.ndarray) -> bytes:
    """The low bits of each number, as many as its block says."""
    padded = np.zeros(parameters.size * BLOCK, np.uint32)
    padded[: numbers.size] = numbers
    rows = padded.reshape(-1, BLOCK)
    places = np.cumsum(np.r_[0, 8 * parameters])  # 64 numbers of b bits take 8 b bytes
    out = np.zeros(int(places[-1]), np.uint8)
    for b, mine in _alike(parameters):
        shifts = np.arange(b, dtype=np.uint32)
        bits = (rows[mine][:, :, None] >> shifts & np.uint32(1)).astype(np.uint8)
        packed = np.packbits(bits.reshape(mine.size, -1), axis=1, bitorder="little")
        out[places[mine][:, None] + np.arange(8 * b)] = packed
    return out[: _low_bytes(numbers.size, parameters)].tobytes()


def _unpack(data: bytes, at: int, count: int, parameters: np.ndarray) -> tuple[np.ndarray, int]:
    """Inverse of `_pack`, int64[count], and the place behind it."""
    size = _low_bytes(count, parameters)
    if size > len(data) - at:
        raise WireError("cut short in numbers")
    places = np.cumsum(np.r_[0, 8 * parameters])
    raw = np.zeros(int(places[-1]), np.uint8)
    raw[:size] = np.frombuffer(data, np.uint8, size, at)
    out = np.zeros((parameters.size, BLOCK), np.int64)
    for b, mine in _alike(parameters):
        packed = raw[places[mine][:, None] + np.arange(8 * b)]
        bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(mine.size, BLOCK, b)
        out[mine] = bits @ (np.int64(1) << np.arange(b, dtype=np.int64))
    flat = out.reshape(-1)
    if flat[count:].any():
        raise WireError("the low bits are padded with ones")
    return flat[:count], at + size


def _alike(parameters: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each parameter above 0, with the blocks that have it, not too many at once."""
    for b in np.unique(parameters[parameters > 0]).tolist():
        mine = np.flatnonzero(parameters == b)
        for start in range(0, mine.size, AT_ONCE):
            yield b, mine[start : start + AT_ONCE]


def _low_bytes(count: int, parameters: np.ndarray) -> int:
    last = count - (parameters.size - 1) * BLOCK
    return 8 * int(parameters[:-1].sum()) + (last * int(parameters[-1]) + 7) // 8


def _quotients(unary: bytes, size: int, count: int) -> np.ndarray:
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(unary, np.uint8), bitorder="little"))
    if len(unary) != size or ends.size != count or size != ends[-1] // 8 + 1:
        raise WireError(f"the quotients hold {ends.size} numbers in {len(unary)} bytes")
    return np.diff(ends, prepend=-1) - 1


def _read_parameters(data: bytes, at: int, blocks: int) -> tuple[np.ndarray, int]:
    if at < len(data) and data[at] == BLOCKS:
        raise WireError("the parameters of blocks are blocks themselves")
    zigzag, at = numpy_decode(data, at, blocks)
    halves = (zigzag >> np.uint32(1)).astype(np.int64)
    parameters = np.cumsum(np.where(zigzag & np.uint32(1), -halves - 1, halves))
    if parameters.min() < 0 or parameters.max() > 31:
        raise WireError("a Rice parameter is outside 0 to 31")
    return parameters, at


def varint(number: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first, the highest bit set in all but the last."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at place `at`, and the place behind it; raises WireError."""
    number = 0
    for place, byte in enumerate(data[at : at + 9]):
        number |= (byte & 127) << (7 * place)
        if byte < 128:
            return number, at + place + 1
    raise WireError("cut short in a varint, or it has more than nine digits")


def _blocks(count: int) -> int:
    return (count + BLOCK - 1) // BLOCK
