"""The body of an update: sections of positions and values, grouped. FORMAT.md specifies it.

A group is a run of neighbouring sections of one kind that cover one leaf each, or one section
over several leaves. Positions and values of all its sections are coded together, see `positions`
and `values`. Sections without entries are left out.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cdl_jax.core.layout import dtype_of
from cdl_jax.wire import numbers, positions, values
from cdl_jax.wire.error import WireError
from cdl_jax.wire.numbers import MAX_POSITION, varint

DTYPES = (
    "float32", "bfloat16", "float16", "float64", "int8", "int16", "int32", "int64", "uint8",
    "uint16", "uint32", "uint64", "bool", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz",
    "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip
CODES = {dtype_of(name): code for code, name in enumerate(DTYPES)}
SHARED, DENSE, SCALED = 32, 64, 128
MAX_LEAVES = 1 << 17


class Piece(NamedTuple):
    """One section with its padding gone.

    Attributes:
      leaves: the leaves that it covers.
      positions: int32[k], ascending, k >= 1.
      values: [k]; int8 levels where there is a scale.
      scale: None, or e for a scale of 2^(e - 127), 1 to 254.
    """

    leaves: tuple[int, ...]
    positions: np.ndarray
    values: np.ndarray
    scale: int | None = None

    @property
    def kind(self) -> int:
        """The first byte of the group that it belongs to."""
        shared = SHARED * (len(self.leaves) > 1)
        dense = DENSE * positions.is_dense(self.positions)
        return CODES[self.values.dtype] + shared + dense + SCALED * (self.scale is not None)


class Group(NamedTuple):
    """Neighbouring sections of one kind that are coded together.

    Attributes:
      kind: the first byte.
      owners: the leaves of each section.
      counts: int64[sections], the entries of each.
      positions, values: of all sections, one after the other.
      scales: per section None or e, see `Piece`.
    """

    kind: int
    owners: list[tuple[int, ...]]
    counts: np.ndarray
    positions: np.ndarray
    values: np.ndarray
    scales: Sequence[int | None]

    @property
    def last(self) -> int:
        """The last leaf."""
        return self.owners[-1][-1]


def encode_body(pieces: Sequence[Piece]) -> bytes:
    """Pieces, ascending by their first leaf, as bytes."""
    return _encode_groups(_grouped(pieces))


def decode_body(body: bytes) -> list[Group]:
    """The pieces that `encode_body` was given, in groups.

    Trusts no length: it allocates O(len(body)) + MAX_LEAVES.

    Raises:
      WireError: for any bytes that `encode_body` does not write.
    """
    reader = _Reader(body)
    groups: list[Group] = []
    while reader.at < len(body):
        groups.append(_read_group(reader, groups[-1].last if groups else -1))
    # One content has one form, and the encoder says which.
    if not _is_grouped(groups) or _encode_groups(groups) != body:
        raise WireError("the body is not in the one form that its content has")
    return groups


def _encode_groups(groups: Sequence[Group]) -> bytes:
    out, last = [], -1
    for group in groups:
        dense, levels = bool(group.kind & DENSE), bool(group.kind & SCALED)
        leaves = [leaf for owner in group.owners for leaf in owner]
        out += [bytes([group.kind]), _stretches(leaves, last)]
        out.append(numbers.encode((group.counts - 1).astype(np.uint32)))
        last = group.last
        if levels:
            out.append(bytes([scale or 0 for scale in group.scales]))
        out.append(positions.encode(group.positions, group.counts, dense=dense))
        out.append(values.encode(group.values, levels=levels))
    return b"".join(out)


def _is_grouped(groups: Sequence[Group]) -> bool:
    """Whether `_grouped` would group the same sections so."""
    for group in groups:
        dense = positions.are_dense(group.positions, group.counts)
        if (dense != bool(group.kind & DENSE)).any():
            return False
        if group.kind & SHARED and len(group.owners[0]) == 1:
            return False
    pairs = itertools.pairwise(groups)
    return not any(a.kind == b.kind and not a.kind & SHARED for a, b in pairs)


def _grouped(pieces: Sequence[Piece]) -> list[Group]:
    runs: list[tuple[int, list[Piece]]] = []
    for piece in pieces:
        kind = piece.kind
        if runs and kind == runs[-1][0] and not kind & SHARED:
            runs[-1][1].append(piece)
        else:
            runs.append((kind, [piece]))
    return [
        Group(
            kind,
            [piece.leaves for piece in run],
            np.array([piece.positions.size for piece in run]),
            _joined([piece.positions for piece in run]),
            _joined([piece.values for piece in run]),
            [piece.scale for piece in run],
        )
        for kind, run in runs
    ]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)


def _stretches(leaves: list[int], last: int) -> bytes:
    pairs: list[list[int]] = []  # leaves skipped, leaves taken
    for leaf in leaves:  # few, and NumPy's calls would cost more
        if pairs and leaf == last + 1:
            pairs[-1][1] += 1
        else:
            pairs.append([leaf - last - 1, 1])
        last = leaf
    return b"".join(map(varint, [len(pairs), *itertools.chain.from_iterable(pairs)]))


def _read_group(reader: "_Reader", last: int) -> Group:
    kind = reader.take(1, "kind of group")[0]
    if kind % SHARED >= len(DTYPES) or (kind & SCALED and DTYPES[kind % SHARED] != "int8"):
        raise WireError(f"a group is of unknown kind {kind}")
    leaves = _read_leaves(reader, last)
    owners = [tuple(leaves)] if kind & SHARED else [(leaf,) for leaf in leaves]
    less, reader.at = numbers.decode(reader.data, reader.at, len(owners))
    counts = less.astype(np.int64) + 1
    total = int(counts.sum())
    # Every entry takes a bit or more of the positions or of the values.
    if total > min(8 * reader.left, MAX_POSITION):
        raise WireError(f"{total} entries are announced, more than {reader.left} bytes hold")
    scales: Sequence[int | None] = [None] * len(owners)
    if kind & SCALED:
        scales = list(reader.take(len(owners), "scales"))
        if not all(0 < (scale or 0) < 255 for scale in scales):
            raise WireError("a scale is outside 2^-126 to 2^127")
    at, reader.at = positions.decode(reader.data, reader.at, counts, dense=bool(kind & DENSE))
    dtype = dtype_of(DTYPES[kind % SHARED])
    new, reader.at = values.decode(reader.data, reader.at, total, dtype, levels=bool(kind & SCALED))
    return Group(kind, owners, counts, at, new, scales)


def _read_leaves(reader: "_Reader", last: int) -> list[int]:
    leaves: list[int] = []
    for _ in range(reader.varint("stretches", MAX_LEAVES, least=1)):
        start = last + 1 + reader.varint("leaves skipped", MAX_LEAVES)
        take = reader.varint("leaves taken", MAX_LEAVES, least=1)
        if start + take > MAX_LEAVES:
            raise WireError(f"leaf {start + take} is announced, past the limit of {MAX_LEAVES}")
        leaves += range(start, start + take)
        last = leaves[-1]
    return leaves


class _Reader:
    """Takes bytes off the front, never more than there are."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise WireError(f"cut short in the {what}: {size} bytes wanted, {self.left} left")
        self.at += size
        return self.data[self.at - size : self.at]

    def varint(self, what: str, most: int, *, least: int = 0) -> int:
        number = 0
        for place in range(9):
            byte = self.take(1, what)[0]
            number |= (byte & 127) << (7 * place)
            if byte < 128:
                break
        else:
            raise WireError(f"the {what} has more than nine digits")
        if not least <= number <= most:
            raise WireError(f"the {what} is {number}, outside {least} to {most}")
        return number
