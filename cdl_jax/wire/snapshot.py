"""A whole deployed tree as bytes: a safetensors file that any of its readers opens.

The tensors stand under their canonical paths. The metadata holds `format`, `version`, `digest`,
`lineage`, `spec` (paths, shapes, dtypes) and `seal`, the xxh3-128 of these five; a `signature`
is of these five and of the SHA-256 of every tensor.
"""

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
import xxhash

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import TreeSpec, dtype_of
from cdl_jax.wire.error import SignatureError, WireError

if TYPE_CHECKING:
    from cdl_jax.wire.keys import PublicKey, SigningKey

FORMAT = "cdl_jax.snapshot.1"
_PURPOSE = b"cdl_jax snapshot\0"
_FIELDS = ("format", "version", "digest", "lineage", "spec")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One version of a deployed tree.

    Attributes:
      spec: paths, shapes and dtypes.
      tensors: NumPy arrays by canonical path.
      version: 0 to 2^32 - 1.
      lineage: 16 bytes, the log's.
      digest: uint32[4], of the tensors.
    """

    spec: TreeSpec
    tensors: dict[str, np.ndarray]
    version: int
    lineage: bytes
    digest: np.ndarray


def encode_snapshot(snapshot: Snapshot, *, key: "SigningKey | None" = None) -> bytes:
    """A snapshot as bytes, signed where there is a key."""
    metadata = {
        "format": FORMAT,
        "version": str(snapshot.version),
        "digest": digests.to_hex(snapshot.digest),
        "lineage": snapshot.lineage.hex(),
        "spec": json.dumps(snapshot.spec.to_json(), separators=(",", ":")),
    }
    metadata["seal"] = _seal(metadata)
    tensors = {name: np.ascontiguousarray(x) for name, x in snapshot.tensors.items()}
    for name, like in snapshot.tensors.items():
        tensors[name] = tensors[name].reshape(like.shape)  # ascontiguousarray makes 0-d 1-d
    if key is not None:
        metadata["signature"] = key.sign(_message(metadata, tensors)).hex()
    return _ordered(safetensors.numpy.save(tensors, metadata))


def decode_snapshot(blob: bytes, *, key: "PublicKey | None" = None) -> Snapshot:
    """Inverse of `encode_snapshot`; recomputes the digest over every entry.

    Args:
      blob: the bytes.
      key: must have signed them. None takes signed and unsigned ones alike.

    Raises:
      WireError: when the bytes are cut, damaged or foreign, not signed by the key, or the
        digest differs.
    """
    blob = bytes(blob)
    metadata = _metadata(blob)
    try:
        spec = TreeSpec.from_json(json.loads(metadata["spec"]))
        lineage, version = bytes.fromhex(metadata["lineage"]), int(metadata["version"])
        expected = digests.from_hex(metadata["digest"])
        tensors = _tensors(blob, spec)
        signature = bytes.fromhex(metadata.get("signature", ""))
    except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise WireError(f"the snapshot is damaged: {error}") from error
    if not np.array_equal(digests.numpy_digest(tensors), expected):
        raise WireError(f"the snapshot of version {version} does not have its digest: damaged")
    if key is not None and not key.verifies(signature, _message(metadata, tensors)):
        raise SignatureError(f"the snapshot of version {version} is not signed by the key given")
    return Snapshot(spec, tensors, version, lineage, expected)


def _ordered(blob: bytes) -> bytes:
    """The same bytes with the metadata in order, which is another one at every save."""
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    return len(text).to_bytes(8, "little") + text + blob[8 + size :]


def _tensors(blob: bytes, spec: TreeSpec) -> dict[str, np.ndarray]:
    raw = dict(safetensors.deserialize(blob))
    if sorted(raw) != [leaf.name for leaf in spec.leaves]:
        raise ValueError("its tensors are not those it lists")
    tensors = {}
    for leaf in spec.leaves:
        values = np.frombuffer(raw[leaf.name]["data"], dtype_of(leaf.dtype))
        tensors[leaf.name] = values.reshape(leaf.shape)
    return tensors


def _metadata(blob: bytes) -> dict[str, Any]:
    size = int.from_bytes(blob[:8], "little")
    try:
        metadata = json.loads(blob[8 : 8 + min(size, len(blob))])["__metadata__"]
        sealed = metadata["seal"] == _seal(metadata)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise WireError("these are not the bytes of a snapshot") from error
    if metadata["format"] != FORMAT or not sealed:
        raise WireError(f"a snapshot of format {metadata['format']!r}, or its seal is broken")
    return metadata


def _seal(metadata: dict[str, str]) -> str:
    return xxhash.xxh3_128_hexdigest(_lines(metadata))


def _lines(metadata: dict[str, str]) -> bytes:
    return "".join(f"{field}={metadata[field]}\n" for field in _FIELDS).encode()


def _message(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> bytes:
    """What is signed."""
    hashes = [hashlib.sha256(tensors[name].tobytes()).digest() for name in sorted(tensors)]
    return b"".join([_PURPOSE, _lines(metadata), *hashes])
