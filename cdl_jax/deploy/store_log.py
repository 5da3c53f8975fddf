"""A log in an object store (obstore): a local directory by default.

    log.json                    first record, written once
    owner/00000001.json ...     one record per writer so far, see `owner`
    updates/000000000001 ...    one object per version, written once
    snapshots/000000000000.safetensors ..., snapshots/newest

An object is written once by a put that fails where the key is taken; object stores and local
directories both do that atomically, so a torn object is never seen.
"""

import pathlib
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, from_url

from cdl_jax.deploy.log import Manifest, Ownership
from cdl_jax.deploy.owner import StoreOwnership, claim
from cdl_jax.errors import LogError

_NEWEST = "snapshots/newest"


def open_store_log(url: str, *, create: bool = False) -> "StoreLog":
    """The log at a URL; arguments and errors as in `deploy.open_log`."""
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return StoreLog(MemoryStore(), url)
    if scheme in ("", "file"):
        return StoreLog(_local(pathlib.Path(urlsplit(url).path if scheme else url), create), url)
    try:
        return StoreLog(from_url(url), url)
    except (BaseError, ValueError) as error:
        raise LogError(
            f"cannot open a log at {url!r}: give a folder, or a URL that begins with file://, "
            f"memory://, s3://, gs:// or az:// ({_first_line(error)})"
        ) from error


class StoreLog:
    """An `UpdateLog` in an object store; see the module."""

    def __init__(self, store: Any, name: str):
        self._store, self.name = store, name

    def manifest(self) -> Manifest | None:
        """See `UpdateLog`."""
        blob = self._get("log.json")
        return None if blob is None else Manifest.from_bytes(blob)

    def create(self, manifest: Manifest) -> None:
        """See `UpdateLog`."""
        if not self._put_new("log.json", manifest.to_bytes()):
            raise LogError(f"the log {self.name} exists already; give a new folder")

    def claim(self, *, patience: float = 5.0) -> StoreOwnership:
        """See `UpdateLog`; a writer that shows no sign for `patience` seconds counts as dead."""
        with _explained(self.name, "claim"):
            return claim(self._store, self.name, patience=patience)

    def append(self, version: int, blob: bytes, owner: Ownership) -> None:
        """See `UpdateLog`."""
        owner.ensure()
        if not self._put_new(_update_key(version), blob):
            owner.ensure()
            if self.read(version) != blob:
                raise LogError(
                    f"version {version} in {self.name} holds another update already: this run "
                    "does not continue that log; give a new folder"
                )

    def read(self, version: int) -> bytes | None:
        """See `UpdateLog`."""
        return self._get(_update_key(version))

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
        self._put_new(_snapshot_key(version), blob)
        if version >= (self.newest_snapshot() or 0):
            with _explained(self.name, "write"):
                obstore.put(self._store, _NEWEST, str(version).encode())

    def newest_snapshot(self) -> int | None:
        """See `UpdateLog`."""
        blob = self._get(_NEWEST)
        if blob is None:
            return None
        if not blob.isdigit():
            raise LogError(f"{_NEWEST} in {self.name} is damaged: {blob[:40]!r}")
        return int(blob)

    def read_snapshot(self, version: int) -> bytes:
        """See `UpdateLog`."""
        blob = self._get(_snapshot_key(version))
        if blob is None:
            raise LogError(f"the log {self.name} has no snapshot of version {version}")
        return blob

    def _has(self, version: int) -> bool:
        with _explained(self.name, "read"):
            try:
                obstore.head(self._store, _update_key(version))
            except FileNotFoundError:
                return False
            return True

    def _get(self, key: str) -> bytes | None:
        with _explained(self.name, "read"):
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def _put_new(self, key: str, blob: bytes) -> bool:
        with _explained(self.name, "write"):
            try:
                obstore.put(self._store, key, blob, mode="create")
            except AlreadyExistsError:
                return False
            return True


class _explained:
    """Turns a store's failure into one sentence."""

    def __init__(self, name: str, deed: str):
        self._name, self._deed = name, deed

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, (BaseError, OSError)):
            raise LogError(
                f"cannot {self._deed} the log {self._name}: {_first_line(error)}"
            ) from error


def _local(path: pathlib.Path, create: bool) -> LocalStore:
    if path.exists() and not path.is_dir():
        raise LogError(f"the log {path} is a file; give a folder")
    if not path.exists() and not create:
        raise LogError(f"there is no log at {path}; start a trainer on it, or mend the path")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LogError(f"cannot make the folder {path}: {error.strerror}") from error
    return LocalStore(path.resolve())


def _update_key(version: int) -> str:
    return f"updates/{version:012d}"


def _snapshot_key(version: int) -> str:
    return f"snapshots/{version:012d}.safetensors"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
