"""A log whose updates travel through a Redis stream; all else lies in an object store beside it.

    redis://HOST:PORT/NAME?store=FOLDER_OR_URL      also rediss://, user:password@, db=NUMBER

The stream NAME has one entry per version, with the version as its id: `u` the update, `t` the
writer's clock in seconds. One script checks the owner's number and that no version is left out,
and adds the entry, in one round trip. First record, owner records and snapshots are those of
`store_log`. The writer keeps the updates since the newest snapshot in memory: a broker that comes
back with less than it acknowledged gets them again; older ones are then gone, as if trimmed.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from cdl_jax.deploy.log import Ownership, another_update
from cdl_jax.deploy.owner import StoreOwnership
from cdl_jax.deploy.retention import Kept
from cdl_jax.deploy.store_log import StoreLog
from cdl_jax.deploy.stores import first_line, open_store
from cdl_jax.errors import LogError, OwnershipError, StoreError

SECONDS_TO_ANSWER = 5.0
_RETRIES, _FIRST_PAUSE, _LONGEST_PAUSE = 4, 0.02, 0.5
_LOST, _GAP, _TAKEN, _DONE = -2, -1, 0, 1

_APPEND = """
local epoch = tonumber(redis.call('GET', KEYS[2]) or '0')
local mine, version, base = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[5])
if epoch > mine then return {-2, epoch} end
if epoch < mine then redis.call('SET', KEYS[2], mine) end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local head = base
if last then head = math.max(base, tonumber(string.match(last[1], '^%d+'))) end
if version <= head then return {0, head} end
if version > head + 1 then return {-1, head} end
redis.call('XADD', KEYS[1], ARGV[2] .. '-0', 'u', ARGV[3], 't', ARGV[4])
return {1, version}
"""
_SIZES = """
local out = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', 1000)) do
  out[#out + 1] = {entry[1], #entry[2][2], entry[2][4]}
end
return out
"""


def open_redis_log(url: str, *, create: bool = False) -> "RedisLog":
    """The log at a URL; arguments and errors as in `deploy.open_log`."""
    try:
        import redis
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise LogError("a redis:// log needs more: pip install 'cdl_jax[redis]'") from error
    parts, query = urlsplit(url), parse_qs(urlsplit(url).query)
    name, beside = parts.path.strip("/"), query.get("store", [""])[0]
    if not name or not beside:
        raise LogError(
            f"{_without_password(parts)} names no stream or no store for snapshots; give "
            "redis://HOST:PORT/NAME?store=FOLDER"
        )
    backoff = ExponentialBackoff(cap=_LONGEST_PAUSE, base=_FIRST_PAUSE)
    try:
        client = redis.Redis(
            host=parts.hostname or "127.0.0.1", port=parts.port or 6379,
            username=parts.username, password=parts.password,
            db=int(query.get("db", ["0"])[0]), ssl=parts.scheme == "rediss",
            socket_timeout=SECONDS_TO_ANSWER, socket_connect_timeout=SECONDS_TO_ANSWER,
            retry=Retry(backoff, _RETRIES), protocol=2,
        )  # fmt: skip
    except ValueError as error:
        raise LogError(f"cannot open a log at {_without_password(parts)}: {error}") from error
    store = open_store(beside, create=create)
    return RedisLog(client, name, StoreLog(store, _without_password(parts)))


class RedisLog(StoreLog):
    """An `UpdateLog` with its updates in a Redis stream; see the module."""

    def __init__(self, client: Any, stream: str, beside: StoreLog):
        super().__init__(beside.store, beside.name)
        self._redis, self._stream = client, stream
        self._append = client.register_script(_APPEND)
        self._sizes = client.register_script(_SIZES)
        self._recent: dict[int, bytes] = {}  # of this writer, since the newest snapshot
        self._base = 0  # the newest snapshot that this writer knows of
        self._come: tuple[int, dict[bytes, bytes]] | None = None  # what woke `wait`, not yet read
        self._times: tuple[int, float] | None = None  # of the version read last

    def claim(self, *, patience: float = 5.0) -> StoreOwnership:
        """See `UpdateLog`."""
        owner = super().claim(patience=patience)
        self._base, self._recent = self.newest_snapshot() or 0, {}
        return owner

    def append(self, version: int, blob: bytes, owner: Ownership) -> None:
        """See `UpdateLog`."""
        if version <= self._base:
            return owner.ensure()  # a snapshot stands for it
        self._recent[version] = blob
        status, head = self._add(version, blob, owner)
        if status == _GAP:
            self._fill(head + 1, version, owner)
            status, head = self._add(version, blob, owner)
        if status == _LOST:
            raise OwnershipError(f"another writer took over the log {self.name}; this one stops")
        if status == _TAKEN and self.read(version) != blob:
            del self._recent[version]
            raise another_update(version, self.name)

    def read(self, version: int) -> bytes | None:
        """See `UpdateLog`."""
        come, self._come = self._come, None  # once: a copy that is refused is fetched anew
        fields = come[1] if come and come[0] == version else self._entry(version)
        if fields is None:
            return None
        self._times = version, float(fields[b"t"])
        return fields[b"u"]

    def written_at(self, version: int) -> float | None:
        """See `UpdateLog`."""
        times = self._times
        if times is not None and times[0] == version:
            return times[1]
        fields = self._entry(version)
        return None if fields is None else float(fields[b"t"])

    def wait(self, version: int, seconds: float) -> None:
        """See `UpdateLog`; the broker wakes the reader, and sends along what it waits for."""
        block = max(1, int(1e3 * min(seconds, SECONDS_TO_ANSWER / 2)))
        with self._explained("read"):
            rows = self._redis.xread({self._stream: f"{version - 1}-0"}, count=1, block=block)
        self._come = next(((_version(i), fields) for _, found in rows for i, fields in found), None)

    def head(self) -> int | None:
        """See `UpdateLog`."""
        newest = self.newest_snapshot()
        with self._explained("read"):
            last = self._redis.xrevrange(self._stream, count=1)
        return newest if newest is None or not last else max(newest, _version(last[0][0]))

    def write_snapshot(self, version: int, blob: bytes, owner: Ownership) -> None:
        """See `UpdateLog`."""
        super().write_snapshot(version, blob, owner)
        self._base = max(self._base, version)
        self._recent = {v: b for v, b in self._recent.items() if v > self._base}

    def _updates(self) -> list[Kept]:
        out, first, now = [], "-", time.time()
        while True:
            with self._explained("read"):
                rows = self._sizes(keys=[self._stream], args=[first])
            out += [Kept(_version(i), int(size), now - float(t)) for i, size, t in rows]
            if not rows:
                return out
            first = f"({rows[-1][0].decode()}"

    def _trim_updates(self, updates: list[Kept], start: int) -> None:
        with self._explained("trim"):
            self._redis.xtrim(self._stream, minid=start + 1, approximate=False)

    def _add(self, version: int, blob: bytes, owner: Ownership) -> tuple[int, int]:
        args = [owner.number, version, blob, repr(time.time()), self._base]
        with self._explained("write"):
            status, head = self._append(keys=[self._stream, f"{self._stream}:owner"], args=args)
        return status, head

    def _fill(self, first: int, stop: int, owner: Ownership) -> None:
        """Gives the broker again what it acknowledged and lost."""
        for version in range(first, stop):
            if version not in self._recent:
                raise LogError(
                    f"{self.name} lost version {version}, which this writer no longer holds: start "
                    "the same command again"
                )
            self._add(version, self._recent[version], owner)

    def _entry(self, version: int) -> dict[bytes, bytes] | None:
        with self._explained("read"):
            entries = self._redis.xrange(self._stream, version, version, count=1)
        return entries[0][1] if entries else None

    @contextlib.contextmanager
    def _explained(self, deed: str) -> Iterator[None]:
        import redis

        try:
            yield
        except redis.RedisError as error:
            raise StoreError(f"cannot {deed} the log {self.name}: {first_line(error)}") from error


def _version(entry: bytes) -> int:
    return int(entry.split(b"-")[0])


def _without_password(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"
