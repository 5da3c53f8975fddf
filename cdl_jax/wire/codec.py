"""The body of an update: sections of positions and values, grouped.

A group is a run of neighbouring sections with the same dtype that cover one leaf each, or one
section over several leaves. Numbers are LEB128 varints. Per group:

    kind      byte: dtype code + 32 for one section over several leaves + 64 for a run
    leaves    varint number of stretches, then per stretch: varint leaves skipped since the
              last one, varint leaves taken
    counts    a varint per section, at least 1
    positions nothing for a run (0, 1, 2, ... in every section); else byte b, varint length of
              the quotients, low bits, quotients: Golomb-Rice of the gaps p[i] - p[i-1] - 1,
              each section starting at p[-1] = -1
    values    raw, little endian

Sections without entries are left out. One content has one form: a decoder refuses what an
encoder would have written otherwise.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from cdl_jax.core.layout import bits_dtype, dtype_of
from cdl_jax.wire import bitstream
from cdl_jax.wire.error import WireError

DTYPES = (
    "float32", "bfloat16", "float16", "float64", "int8", "int16", "int32", "int64", "uint8",
    "uint16", "uint32", "uint64", "bool", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz",
    "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip
SHARED, RUN = 32, 64
MAX_LEAVES = 1 << 17
MAX_POSITION = 2**31 - 1
MIN_RUN = 32


@dataclasses.dataclass(frozen=True)
class Piece:
    """One section with its padding gone: leaves, positions int64[k], values [k]; k >= 1."""

    leaves: tuple[int, ...]
    positions: np.ndarray
    values: np.ndarray

    @property
    def is_run(self) -> bool:
        """Whether the positions are 0, 1, 2, ..., as those of a whole leaf."""
        k = self.positions.size
        return k >= MIN_RUN and int(self.positions[-1]) == k - 1

    @property
    def kind(self) -> int:
        """The group's first byte."""
        code = DTYPES.index(self.values.dtype.name)
        return code + SHARED * (len(self.leaves) > 1) + RUN * self.is_run


def encode_body(pieces: Sequence[Piece]) -> bytes:
    """Pieces, ascending by their first leaf, as bytes."""
    groups = [list(group) for group in _grouped(pieces)]
    out = [_varint(len(groups))]
    last = -1
    for group in groups:
        leaves = [leaf for piece in group for leaf in piece.leaves]
        out += [bytes([group[0].kind]), _stretches(leaves, last)]
        last = leaves[-1]
        out += [_varint(piece.positions.size) for piece in group]
        if not group[0].is_run:
            out += _positions(group)
        out += [np.ascontiguousarray(p.values).tobytes() for p in group]
    return b"".join(out)


def decode_body(body: bytes) -> list[Piece]:
    """Inverse of `encode_body`. Trusts no length: it allocates O(len(body)) + MAX_LEAVES.

    Raises:
      WireError: for any bytes that `encode_body` does not write.
    """
    reader = _Reader(body)
    pieces: list[Piece] = []
    last = -1
    for _ in range(reader.varint("number of groups", len(body))):
        group = _read_group(reader, last)
        if pieces and _merge(pieces[-1], group[0]):
            raise WireError("two groups stand where one belongs")
        pieces += group
        last = group[-1].leaves[-1]
    reader.finish()
    return pieces


def _merge(a: Piece, b: Piece) -> bool:
    return a.kind == b.kind and not a.kind & SHARED


def _grouped(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    for piece in pieces:
        if group and not _merge(group[-1], piece):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _stretches(leaves: list[int], last: int) -> bytes:
    steps = np.diff(np.asarray(leaves), prepend=last)
    starts = np.flatnonzero(np.r_[True, steps[1:] != 1])
    takes = np.diff(np.r_[starts, len(leaves)])
    parts = [_varint(len(starts))]
    for start, take in zip(starts, takes, strict=True):
        parts += [_varint(int(steps[start]) - 1), _varint(int(take))]
    return b"".join(parts)


def _positions(group: list[Piece]) -> list[bytes]:
    gaps = np.concatenate([np.diff(p.positions, prepend=-1) for p in group]) - 1
    b = bitstream.best_parameter(gaps)
    low, unary = bitstream.encode(gaps, b)
    return [bytes([b]), _varint(len(unary)), low, unary]


def _read_group(reader: "_Reader", last: int) -> list[Piece]:
    kind = reader.take(1, "kind of group")[0]
    code = kind % SHARED
    if kind >= 2 * RUN or code >= len(DTYPES):
        raise WireError(f"a group is of unknown kind {kind}")
    leaves = _read_leaves(reader, last)
    owners = [tuple(leaves)] if kind & SHARED else [(leaf,) for leaf in leaves]
    if kind & SHARED and len(leaves) < 2:
        raise WireError("a shared section covers fewer than two leaves")
    dtype = dtype_of(DTYPES[code])
    counts = [reader.varint("count", reader.left // dtype.itemsize, least=1) for _ in owners]
    total = sum(counts)
    if total * dtype.itemsize > reader.left:
        raise WireError(f"{total} entries are announced, more than the {reader.left} bytes hold")
    positions = _runs(counts) if kind & RUN else _read_positions(reader, counts)
    raw = reader.take(total * dtype.itemsize, "values")
    values = np.frombuffer(raw, bits_dtype(dtype).newbyteorder("<"))
    if dtype == np.bool_ and values.size and values.max() > 1:
        raise WireError("a bool is neither 0 nor 1")
    values = values.astype(bits_dtype(dtype)).view(dtype)
    cuts = np.cumsum(counts)[:-1]
    parts = zip(owners, np.split(positions, cuts), np.split(values, cuts), strict=True)
    pieces = [Piece(*part) for part in parts]
    if any(piece.kind != kind for piece in pieces):
        raise WireError(f"a group of kind {kind} holds a section of another kind")
    return pieces


def _read_leaves(reader: "_Reader", last: int) -> list[int]:
    leaves: list[int] = []
    for turn in range(reader.varint("stretches", MAX_LEAVES, least=1)):
        least = 1 if turn else 0
        start = last + 1 + reader.varint("leaves skipped", MAX_LEAVES, least=least)
        take = reader.varint("leaves taken", MAX_LEAVES, least=1)
        if start + take > MAX_LEAVES:
            raise WireError(f"leaf {start + take} is announced, past the limit of {MAX_LEAVES}")
        leaves += range(start, start + take)
        last = leaves[-1]
    return leaves


def _read_positions(reader: "_Reader", counts: list[int]) -> np.ndarray:
    total = sum(counts)
    b = reader.take(1, "Rice parameter")[0]
    if b > bitstream.MAX_PARAMETER:
        raise WireError(f"Rice parameter {b} is past the limit of {bitstream.MAX_PARAMETER}")
    length = reader.varint("length of the quotients", reader.left)
    low = reader.take(bitstream.low_bytes(total, b), "low bits")
    gaps = bitstream.decode(low, reader.take(length, "quotients"), total, b)
    if int(gaps.max(initial=0)) > MAX_POSITION or bitstream.best_parameter(gaps) != b:
        raise WireError(f"the gaps do not belong to Rice parameter {b}")
    after = np.cumsum(gaps + 1)
    before = np.r_[0, after[np.cumsum(counts)[:-1] - 1]]
    positions = after - 1 - np.repeat(before, counts)
    if int(positions.max(initial=0)) > MAX_POSITION:
        raise WireError(f"a position is past the limit of {MAX_POSITION}")
    return positions


def _runs(counts: list[int]) -> np.ndarray:
    return np.concatenate([np.arange(k, dtype=np.int64) for k in counts])


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


class _Reader:
    """Takes bytes off the front, never more than there are."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise WireError(f"cut short in the {what}: {size} bytes wanted, {self.left} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def varint(self, what: str, most: int, *, least: int = 0) -> int:
        number = 0
        for place in itertools.count():
            byte = self.take(1, what)[0]
            number |= (byte & 127) << (7 * place)
            if byte < 128:
                break
            if place == 8:
                raise WireError(f"the {what} has more than nine digits")
        if place and not byte:
            raise WireError(f"the {what} is written with leading zeros")
        if not least <= number <= most:
            raise WireError(f"the {what} is {number}, outside {least} to {most}")
        return number

    def finish(self) -> None:
        if self.left:
            raise WireError(f"{self.left} bytes follow the end")
