"""A Redis stream of samples: redis://HOST:PORT/STREAM, rediss:// for TLS, ?db=NUMBER.

An entry's fields are the sample's: JSON (`XADD s * x '[0.1, 2]' label 3`) or an array as
`numpy.save` writes it (`to_entry`). Each entry's id is kept beside its sample, so a run that was
stopped goes on behind the newest one that it has.
"""

import io
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from cdl_jax.data.live import Source
from cdl_jax.errors import ConfigError, DataError

_ID = "_id"
_ID_BYTES = 41  # of two 64-bit numbers and a dash
_MAGIC = b"\x93NUMPY"
_BLOCK, _TIMEOUT, _PAUSE = 1000, 5.0, 0.5  # ms, s, s


def from_redis(url: str) -> tuple[str, Source]:
    """The name, without a password, and the source at a URL.

    Raises:
      ConfigError: when it names no stream, or redis is not installed.
    """
    try:
        import redis
    except ImportError as error:
        raise ConfigError("a redis:// stream needs more: pip install 'cdl_jax[redis]'") from error
    parts = urlsplit(url)
    stream = parts.path.strip("/")
    if not stream:
        raise ConfigError(f"{parts.scheme}://{parts.hostname} names no stream; give "
                          "redis://HOST:PORT/STREAM")  # fmt: skip
    client = redis.Redis(
        host=parts.hostname or "127.0.0.1", port=parts.port or 6379, username=parts.username,
        password=parts.password, db=int(parse_qs(parts.query).get("db", ["0"])[0]),
        ssl=parts.scheme == "rediss", socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT,
    )  # fmt: skip
    name = f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}/{stream}"

    def source(held: int, last: Mapping[str, np.ndarray] | None) -> Iterator[Mapping[str, Any]]:
        after = "0-0" if last is None else last[_ID].tobytes().decode().strip()
        if last is not None:
            _check_not_trimmed(client, stream, name, after, held)
        while True:
            for entry, fields in _read(client, stream, after):
                yield _sample(name, entry, fields)
                after = entry.decode()

    return name, source


def to_entry(sample: Mapping[str, Any]) -> dict[str, bytes]:
    """A sample as the fields of a stream entry, for `XADD`; arrays keep their dtypes."""
    out = {}
    for field, value in sample.items():
        file = io.BytesIO()
        np.save(file, np.asarray(value), allow_pickle=False)
        out[field] = file.getvalue()
    return out


def _read(client: Any, stream: str, after: str) -> list[Any]:
    """What came behind an entry; nothing while the broker is out of reach, which is a stall."""
    import redis

    try:
        found = client.xread({stream: after}, count=256, block=_BLOCK)
    except redis.RedisError:
        time.sleep(_PAUSE)
        return []
    return found[0][1] if found else []


def _check_not_trimmed(client: Any, stream: str, name: str, after: str, held: int) -> None:
    """Whether the entry behind the newest one that is held can still be there.

    Redis counts the entries it ever took: more gone than are held, with the newest of these among
    the gone, means that others went unread.
    """
    import redis

    try:
        about = client.xinfo_stream(stream)
    except redis.RedisError:  # out of reach, or no such stream yet
        return
    first = about["first-entry"]
    here = first is not None and _number(first[0].decode()) <= _number(after)
    if not here and about["entries-added"] - about["length"] > held:
        raise DataError(
            f"{name} was trimmed behind {after}, the newest entry of this run: some are lost; "
            "give a new --run and --log"
        )


def _number(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-")))


def _sample(name: str, entry: bytes, fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    try:
        out = {field.decode(): _value(content) for field, content in fields.items()}
    except ValueError as error:
        raise DataError(f"entry {entry.decode()} of {name} is no sample: {error}") from error
    return out | {_ID: np.frombuffer(entry.ljust(_ID_BYTES), np.uint8)}


def _value(content: bytes) -> np.ndarray:
    if content.startswith(_MAGIC):
        return np.load(io.BytesIO(content), allow_pickle=False)
    return np.asarray(json.loads(content))
