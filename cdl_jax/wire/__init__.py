"""Bytes <-> updates and snapshots. NumPy only: importable where JAX is not installed."""

from cdl_jax.wire.error import WireError
from cdl_jax.wire.format import Header, decode_update, encode_update, read_header
from cdl_jax.wire.snapshot import Snapshot, decode_snapshot, encode_snapshot

__all__ = [
    "Header",
    "Snapshot",
    "WireError",
    "decode_snapshot",
    "decode_update",
    "encode_snapshot",
    "encode_update",
    "read_header",
]
