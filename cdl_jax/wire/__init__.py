"""Bytes <-> updates and snapshots. NumPy only: importable where JAX is not installed."""

import importlib
from typing import Any

from cdl_jax.errors import ConfigError
from cdl_jax.wire.error import SignatureError, WireError
from cdl_jax.wire.format import (
    Header,
    decode_update,
    decode_with_header,
    encode_update,
    read_header,
)
from cdl_jax.wire.snapshot import Snapshot, decode_snapshot, encode_snapshot

__all__ = [
    "Header",
    "SignatureError",
    "Snapshot",
    "WireError",
    "decode_snapshot",
    "decode_update",
    "decode_with_header",
    "encode_snapshot",
    "encode_update",
    "read_header",
    "signing",
]


def signing() -> Any:
    """The module of signatures; raises ConfigError where cryptography is not installed."""
    try:
        return importlib.import_module("cdl_jax.wire.keys")
    except ImportError as error:
        raise ConfigError(f"signing needs more: pip install 'cdl_jax[sign]' ({error})") from error
