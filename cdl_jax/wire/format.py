"""An update as bytes, format version 2: header, body (see `codec`), signature, checksum.

FORMAT.md specifies all of it. The header's numbers are little endian:

    0   8  magic 89 43 44 4C 4A 58 0D 0A (a text transfer would damage it)
    8   2  format version, 2
    10  2  flags, 1 where a signature follows the body
    12 16  fingerprint of the deployed tree (names, shapes, dtypes)
    28 16  lineage, the log's own random number
    44  4  base version
    48  4  new version
    52 16  digest that the tree has at the new version, 4 words
    68  4  length of the body
    72     body
    .. 64  Ed25519 signature of "cdl_jax update", a zero byte, header and body
    .. 16  xxh3-128 of everything before, big endian as xxhash writes it
"""

import dataclasses
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash

from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.ragged import on_host
from cdl_jax.wire.codec import CODES, DTYPES, Piece, decode_body, encode_body
from cdl_jax.wire.error import SignatureError, WireError

if TYPE_CHECKING:  # needs cryptography, which signing alone asks for
    from cdl_jax.wire.keys import PublicKey, SigningKey

MAGIC = b"\x89CDLJX\r\n"
FORMAT = 2
SIGNED = 1
_HEADER = struct.Struct("<8sHH16s16sII16sI")
_CHECKSUM, _SIGNATURE = 16, 64
_PURPOSE = b"cdl_jax update\0"
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


def encode_update(
    update: SparseUpdate, *, lineage: bytes = NO_LINEAGE, key: "SigningKey | None" = None
) -> bytes:
    """An update as bytes; the same content gives the same bytes.

    Args:
      update: arrays of NumPy or JAX; padding is left out.
      lineage: 16 bytes that name the log.
      key: signs the update; None leaves it unsigned.

    Raises:
      ValueError: for a lineage of another length or a dtype the format does not know.
    """
    if len(lineage) != 16:
        raise ValueError(f"lineage has {len(lineage)} bytes; give 16")
    body = encode_body(_pieces(update))
    digest = np.asarray(update.digest).astype("<u4").tobytes()
    head = _HEADER.pack(
        MAGIC, FORMAT, 0 if key is None else SIGNED, update.fingerprint, lineage,
        int(update.base), int(update.version), digest, len(body),
    )  # fmt: skip
    content = head + body
    if key is not None:
        content += key.sign(_PURPOSE + content)
    return content + xxhash.xxh3_128_digest(content)


def decode_update(blob: bytes, *, key: "PublicKey | None" = None) -> SparseUpdate:
    """Inverse of `encode_update`, with NumPy arrays that hold no padding.

    Positions are ascending and unique; whether they lie inside the tree is checked against the
    tree (`check.check_update`), which the bytes do not describe.

    Args:
      blob: the bytes.
      key: must have signed them. None takes signed and unsigned ones alike.

    Raises:
      WireError: when the bytes are cut, damaged, foreign, not signed by the key, or not in the
        one canonical form.
    """
    return decode_with_header(blob, key=key)[1]


def decode_with_header(
    blob: bytes, *, key: "PublicKey | None" = None
) -> tuple[Header, SparseUpdate]:
    """`read_header` and `decode_update` in one; the checksum is computed once."""
    opened = _open(blob)
    _check_signature(opened, key)
    header, groups = opened.header, decode_body(opened.body)
    counts = [count for group in groups for count in group.counts.tolist()]
    update = SparseUpdate(
        indices=tuple(p for group in groups for p in _cut(group.positions, group.counts)),
        values=tuple(v for group in groups for v in _cut(group.values, group.counts)),
        counts=np.array(counts, np.int32),
        base=np.uint32(header.base),
        version=np.uint32(header.version),
        digest=header.digest,
        sections=tuple(owner for group in groups for owner in group.owners),
        fingerprint=header.fingerprint,
        scales=tuple(_scale(e) for group in groups for e in group.scales),
    )
    return header, update


def read_header(blob: bytes) -> Header:
    """The header of an update whose checksum holds; raises WireError."""
    return _open(blob).header


class _Opened(NamedTuple):
    """An update whose checksum holds, cut into its parts."""

    header: Header
    signed: bytes  # header and body
    body: bytes
    signature: bytes  # or nothing


def _check_signature(opened: _Opened, key: "PublicKey | None") -> None:
    if key is None:
        return
    if not opened.signature:
        raise SignatureError("it is not signed, and this reader was given a public key")
    if not key.verifies(opened.signature, _PURPOSE + opened.signed):
        raise SignatureError("its signature is not by the public key that this reader was given")


def _cut(joined: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    """A view for each section."""
    start = 0
    for stop in np.cumsum(counts).tolist():
        yield joined[start:stop]
        start = stop


def _scale(exponent: int | None) -> np.float32 | None:
    return None if exponent is None else np.uint32(exponent << 23).view(np.float32)


def _exponent(scale: object) -> int | None:
    """E of the scale 2^(e - 127)."""
    if scale is None:
        return None
    bits = int(np.asarray(scale, np.float32).view(np.uint32))
    if bits & 0x807FFFFF or not 0 < bits >> 23 < 255:
        raise ValueError(f"scale is {scale}; give a power of two from 2^-126 to 2^127")
    return bits >> 23


def _pieces(update: SparseUpdate) -> list[Piece]:
    pieces = []
    rows = on_host(update.indices), on_host(update.values)
    columns = (update.sections, *rows, update.section_scales())
    counts = np.asarray(update.counts).tolist()
    for leaves, indices, values, scale, count in zip(*columns, counts, strict=True):
        if count:
            positions = indices[:count].astype(np.int32, copy=False)
            known = _known(values[:count])
            pieces.append(Piece(leaves, positions, known, _exponent(scale)))
    return sorted(pieces, key=lambda p: p.leaves)


def _known(values: np.ndarray) -> np.ndarray:
    if values.dtype not in CODES:
        raise ValueError(f"the format has no dtype {values.dtype.name}; it knows {DTYPES}")
    return values


def _open(blob: bytes) -> _Opened:
    blob = bytes(blob)
    if blob[: len(MAGIC)] != MAGIC:
        raise WireError(f"these are not the bytes of an update: they begin {blob[:8].hex()!r}")
    if len(blob) < _HEADER.size + _CHECKSUM:
        raise WireError(f"cut short: {len(blob)} bytes, a header alone has {_HEADER.size}")
    _, version, flags, fingerprint, lineage, base, new, digest, length = _HEADER.unpack_from(blob)
    if version != FORMAT or flags not in (0, SIGNED):
        raise WireError(
            f"format version {version}, flags {flags}: this reader knows {FORMAT} and flags 0 or 1"
        )
    stop, signature = _HEADER.size + length, _SIGNATURE if flags else 0
    if len(blob) != stop + signature + _CHECKSUM:
        raise WireError(
            f"{len(blob)} bytes, but header and body make {stop + signature + _CHECKSUM}"
        )
    if xxhash.xxh3_128_digest(blob[:-_CHECKSUM]) != blob[-_CHECKSUM:]:
        raise WireError("the checksum does not match: the bytes are damaged")
    if new != base + 1:
        raise WireError(f"version {new} does not follow base {base}")
    lanes = np.frombuffer(digest, "<u4").astype(np.uint32)
    header = Header(fingerprint, lineage, base, new, lanes)
    return _Opened(header, blob[:stop], blob[_HEADER.size : stop], blob[stop:-_CHECKSUM])
