"""An update as bytes, format version 1: header, body (see `codec`), checksum.

All numbers little endian:

    0   8  magic 89 43 44 4C 4A 58 0D 0A (a text transfer would damage it)
    8   2  format version, 1
    10  2  flags, 0
    12 16  fingerprint of the deployed tree (names, shapes, dtypes)
    28 16  lineage, the log's own random number
    44  4  base version
    48  4  new version
    52 16  digest that the tree has at the new version, 4 words
    68  4  length of the body
    72     body
    .. 16  xxh3-128 of everything before, big endian as xxhash writes it
"""

import dataclasses
import struct

import numpy as np
import xxhash

from cdl_jax.core.layout import SparseUpdate
from cdl_jax.wire.codec import DTYPES, Piece, decode_body, encode_body
from cdl_jax.wire.error import WireError

MAGIC = b"\x89CDLJX\r\n"
FORMAT = 1
_HEADER = struct.Struct("<8sHH16s16sII16sI")
_CHECKSUM = 16
NO_LINEAGE = bytes(16)


@dataclasses.dataclass(frozen=True)
class Header:
    """What an update says of itself before its body.

    Attributes:
      fingerprint: 16 bytes, `TreeSpec.fingerprint` of the tree it is for.
      lineage: 16 bytes, the log it belongs to; zeros for none.
      base, version: the version it follows and the one it makes.
      digest: uint32[4], of the whole tree at `version`.
    """

    fingerprint: bytes
    lineage: bytes
    base: int
    version: int
    digest: np.ndarray


def encode_update(update: SparseUpdate, *, lineage: bytes = NO_LINEAGE) -> bytes:
    """An update as bytes; the same content gives the same bytes.

    Args:
      update: arrays of NumPy or JAX; padding is left out.
      lineage: 16 bytes that name the log.

    Raises:
      ValueError: for a lineage of another length or a dtype the format does not know.
    """
    if len(lineage) != 16:
        raise ValueError(f"lineage has {len(lineage)} bytes; give 16")
    body = encode_body(_pieces(update))
    digest = np.asarray(update.digest).astype("<u4").tobytes()
    head = _HEADER.pack(
        MAGIC, FORMAT, 0, update.fingerprint, lineage,
        int(update.base), int(update.version), digest, len(body),
    )  # fmt: skip
    return head + body + xxhash.xxh3_128_digest(head + body)


def decode_update(blob: bytes) -> SparseUpdate:
    """Inverse of `encode_update`, with NumPy arrays that hold no padding.

    Positions are ascending and unique; whether they lie inside the tree is checked against the
    tree (`layout.check_update`), which the bytes do not describe.

    Raises:
      WireError: when the bytes are cut, damaged, foreign, or not in the one canonical form.
    """
    header, body = _open(blob)
    pieces = decode_body(body)
    return SparseUpdate(
        indices=tuple(p.positions.astype(np.int32) for p in pieces),
        values=tuple(p.values for p in pieces),
        counts=np.array([p.positions.size for p in pieces], np.int32),
        base=np.uint32(header.base),
        version=np.uint32(header.version),
        digest=header.digest,
        sections=tuple(p.leaves for p in pieces),
        fingerprint=header.fingerprint,
    )


def read_header(blob: bytes) -> Header:
    """The header of an update whose checksum holds; raises WireError."""
    return _open(blob)[0]


def _pieces(update: SparseUpdate) -> list[Piece]:
    pieces = []
    counts = np.asarray(update.counts)
    for leaves, indices, values, count in zip(
        update.sections, update.indices, update.values, counts, strict=True
    ):
        if count:
            positions = np.asarray(indices)[:count].astype(np.int64)
            pieces.append(Piece(leaves, positions, _known(np.asarray(values)[:count])))
    return sorted(pieces, key=lambda p: p.leaves)


def _known(values: np.ndarray) -> np.ndarray:
    if values.dtype.name not in DTYPES:
        raise ValueError(f"the format has no dtype {values.dtype.name}; it knows {DTYPES}")
    return values


def _open(blob: bytes) -> tuple[Header, bytes]:
    blob = bytes(blob)
    if blob[: len(MAGIC)] != MAGIC:
        raise WireError(f"these are not the bytes of an update: they begin {blob[:8].hex()!r}")
    if len(blob) < _HEADER.size + _CHECKSUM:
        raise WireError(f"cut short: {len(blob)} bytes, a header alone has {_HEADER.size}")
    _, version, flags, fingerprint, lineage, base, new, digest, length = _HEADER.unpack_from(blob)
    if version != FORMAT or flags:
        raise WireError(
            f"format version {version}, flags {flags}: this reader knows {FORMAT} and 0"
        )
    if len(blob) != _HEADER.size + length + _CHECKSUM:
        raise WireError(f"{len(blob)} bytes, but header and body make {_HEADER.size + length + 16}")
    if xxhash.xxh3_128_digest(blob[:-_CHECKSUM]) != blob[-_CHECKSUM:]:
        raise WireError("the checksum does not match: the bytes are damaged")
    if new != base + 1:
        raise WireError(f"version {new} does not follow base {base}")
    lanes = np.frombuffer(digest, "<u4").astype(np.uint32)
    return Header(fingerprint, lineage, base, new, lanes), blob[_HEADER.size : -_CHECKSUM]
