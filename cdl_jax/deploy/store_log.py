"""A log in an object store (obstore): a local directory by default.

    log.json                    first record, written once
    owner/00000001.json ...     one record per writer so far, see `owner`
    updates/000000000001 ...    one object per version, written once
    snapshots/000000000000.safetensors ..., snapshots/newest
    snapshots/oldest            the versions up to this one have been trimmed
    status.json                 how training goes, in the writer's words

An object is written once by a put that fails where the key is taken; object stores and local
directories both do that atomically, so a torn object is never seen.
"""

import pathlib
import time
from typing import Any

from obstore.store import LocalStore, MemoryStore

from cdl_jax.deploy.log import Manifest, Ownership, another_update
from cdl_jax.deploy.owner import StoreOwnership, claim
from cdl_jax.deploy.retention import Kept, Retention
from cdl_jax.deploy.stores import Objects, explained, open_store
from cdl_jax.errors import LogError

_NEWEST, _OLDEST = "snapshots/newest", "snapshots/oldest"
_AT_ONCE = 1000  # keys in a request that deletes


def open_store_log(url: str, *, create: bool = False) -> "StoreLog":
    """The log at a URL; arguments and errors as in `deploy.open_log`."""
    return StoreLog(open_store(url, create=create), url)


class StoreLog:
    """An `UpdateLog` in an object store; see the module.

    Attributes:
      poll: seconds between two looks for the next version.
    """

    def __init__(self, store: Any, name: str):
        self.store, self.name = store, name
        self._objects = Objects(store, name)
        self._trimmed: int | None = None
        self.poll = 0.002 if isinstance(store, LocalStore | MemoryStore) else 0.05

    def manifest(self) -> Manifest | None:
        """See `UpdateLog`."""
        blob = self._objects.get("log.json")
        return None if blob is None else Manifest.from_bytes(blob)

    def create(self, manifest: Manifest) -> None:
        """See `UpdateLog`."""
        if not self._objects.put_new("log.json", manifest.to_bytes()):
            raise LogError(f"the log {self.name} exists already; give a new folder")

    def claim(self, *, patience: float = 5.0) -> StoreOwnership:
        """See `UpdateLog`; a writer that shows no sign for `patience` seconds counts as dead."""
        with explained(self.name, "claim"):
            return claim(self.store, self.name, patience=patience)

    def append(self, version: int, blob: bytes, owner: Ownership) -> None:
        """See `UpdateLog`."""
        owner.ensure()
        if self._trimmed is None:  # a log has one writer, who alone trims
            self._trimmed = self.oldest()
        if version <= self._trimmed:
            return  # was written and trimmed; the digests of later versions vouch for it
        if not self._objects.put_new(_update_key(version), blob):
            owner.ensure()
            raise another_update(version, self.name)

    def read(self, version: int) -> bytes | None:
        """See `UpdateLog`."""
        return self._objects.get(_update_key(version))

    def written_at(self, version: int) -> float | None:
        """See `UpdateLog`; the store's clock."""
        return self._objects.written_at(_update_key(version))

    def wait(self, version: int, seconds: float) -> None:
        """See `UpdateLog`; a store wakes nobody."""
        end = time.monotonic() + seconds
        while not self._has(version) and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self.poll))

    def write_status(self, blob: bytes) -> None:
        """See `UpdateLog`."""
        self._objects.put("status.json", blob)

    def read_status(self) -> bytes | None:
        """See `UpdateLog`."""
        return self._objects.get("status.json")

    def head(self) -> int | None:
        """See `UpdateLog`; asks for O(log n) names, for there are no gaps."""
        start = self.newest_snapshot()
        if start is None:
            return None
        reach = 1
        while self._has(start + reach):
            reach *= 2
        low, high = start + reach // 2, start + reach
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._has(middle) else (low, middle)
        return low

    def write_snapshot(self, version: int, blob: bytes, owner: Ownership) -> None:
        """See `UpdateLog`."""
        owner.ensure()
        if version < self.oldest():
            return
        # One that is there stays: safetensors orders its metadata anew each time.
        self._objects.put_new(_snapshot_key(version), blob)
        newest = self.newest_snapshot()
        if newest is None or version > newest:
            self._objects.put(_NEWEST, str(version).encode())

    def newest_snapshot(self) -> int | None:
        """See `UpdateLog`."""
        return self._number(_NEWEST)

    def read_snapshot(self, version: int) -> bytes:
        """See `UpdateLog`."""
        blob = self._objects.get(_snapshot_key(version))
        if blob is None:
            raise LogError(f"the log {self.name} has no snapshot of version {version}")
        return blob

    def snapshots(self) -> list[int]:
        """See `UpdateLog`."""
        return [x.version for x in self._list("snapshots/")]

    def oldest(self) -> int:
        """See `UpdateLog`."""
        return self._number(_OLDEST) or 0

    def trim(self, retention: Retention, owner: Ownership) -> int:
        """See `UpdateLog`."""
        owner.ensure()
        newest = self.newest_snapshot()
        if newest is None or not retention.limited:
            return self.oldest()
        updates, snapshots = self._updates(), self._list("snapshots/")
        start = max(self.oldest(), retention.horizon(updates, snapshots, newest))
        if not self._objects.has(_snapshot_key(start)):
            raise LogError(f"nothing is trimmed in {self.name}: its snapshot {start} is missing")
        self._objects.put(_OLDEST, str(start).encode())
        self._trimmed = start
        self._trim_updates(updates, start)
        self._delete([_snapshot_key(x.version) for x in snapshots if x.version < start])
        return start

    def _updates(self) -> list[Kept]:
        return self._list("updates/")

    def _trim_updates(self, updates: list[Kept], start: int) -> None:
        self._delete([_update_key(x.version) for x in updates if x.version <= start])

    def _delete(self, keys: list[str]) -> None:
        for first in range(0, len(keys), _AT_ONCE):
            self._objects.delete(keys[first : first + _AT_ONCE])

    def _list(self, folder: str) -> list[Kept]:
        now = time.time()
        found = [(pathlib.PurePath(x["path"]).stem, x) for x in self._objects.list(folder)]
        return sorted(
            Kept(int(stem), x["size"], now - x["last_modified"].timestamp())
            for stem, x in found
            if stem.isdigit()
        )

    def _number(self, key: str) -> int | None:
        blob = self._objects.get(key)
        if blob is None:
            return None
        if not blob.isdigit():
            raise LogError(f"{key} in {self.name} is damaged: {blob[:40]!r}")
        return int(blob)

    def _has(self, version: int) -> bool:
        return self._objects.has(_update_key(version))


def _update_key(version: int) -> str:
    return f"updates/{version:012d}"


def _snapshot_key(version: int) -> str:
    return f"snapshots/{version:012d}.safetensors"
