"""One writer per log: records that are created once, and a heartbeat beside the newest.

Writer e creates `owner/<e>.json`, which succeeds for one process only, and renews
`owner/<e>.beat`. Whoever finds a newest record claims the next number, if that record's writer
has released the log, or lived on this machine and is gone, or lets its heartbeat stand still for
as long as the newcomer's patience. A writer that finds a record after its own has lost the log.
No clock is compared across machines.
"""

import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from typing import Any

import obstore
from obstore.exceptions import BaseError

from cdl_jax.deploy.stores import Objects
from cdl_jax.errors import OwnershipError

BEATS_PER_PATIENCE = 5


def claim(store: Any, name: str, *, patience: float) -> "StoreOwnership":
    """Becomes the writer of the log in `store`.

    Args:
      store: an obstore store.
      name: the log's, for messages.
      patience: seconds without a heartbeat after which a writer counts as dead.

    Raises:
      OwnershipError: when another writer lives, or was quicker.
    """
    newest = _newest(store)
    if newest and not _is_gone(store, newest, patience):
        writer = _read_json(store, _key(newest, "json"))
        raise OwnershipError(
            f"the log {name} has a live writer (process {writer.get('pid')} on "
            f"{writer.get('host')}); stop it first, or give a new folder"
        )
    period = patience / BEATS_PER_PATIENCE
    record = {
        "writer": secrets.token_hex(8), "pid": os.getpid(), "host": _host(), "period": period
    }  # fmt: skip
    if not Objects(store, name).put_new(_key(newest + 1, "json"), json.dumps(record).encode()):
        raise OwnershipError(f"another writer has just claimed the log {name}")
    return StoreOwnership(store, name, newest + 1, period)


class StoreOwnership:
    """A claim that stands; renews its heartbeat from a thread of its own until released."""

    def __init__(self, store: Any, name: str, number: int, period: float):
        self._store, self._name, self.number = store, name, number
        self._objects, self._next = Objects(store, name), _key(number + 1, "json")
        self._stop = threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._run, args=(period,), daemon=True)
        self._thread.start()

    def ensure(self) -> None:
        """Raises OwnershipError when another writer took over, StoreError when nobody can say."""
        if self._objects.has(self._next):
            raise OwnershipError(f"another writer took over the log {self._name}; this one stops")

    def release(self) -> None:
        """Gives the log back, so that the next writer need not wait."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            with contextlib.suppress(BaseError, OSError):  # then the next writer has to wait
                obstore.put(self._store, _key(self.number, "released"), b"")

    def __enter__(self) -> "StoreOwnership":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _run(self, period: float) -> None:
        count = 1
        while not self._stop.wait(period):
            try:
                self._beat(count)
            except (BaseError, OSError):
                continue  # the next append meets the same store, and says what is wrong
            count += 1

    def _beat(self, count: int) -> None:
        obstore.put(self._store, _key(self.number, "beat"), str(count).encode())


def _is_gone(store: Any, number: int, patience: float) -> bool:
    if _exists(store, _key(number, "released")):
        return True
    writer = _read_json(store, _key(number, "json"))
    if writer.get("host") == _host() and not _runs(writer.get("pid")):
        return True
    first = _read(store, _key(number, "beat"))
    period = writer.get("period")
    if isinstance(period, float):
        patience = max(patience, BEATS_PER_PATIENCE * period)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(patience / BEATS_PER_PATIENCE)
        if _read(store, _key(number, "beat")) != first:
            return False
    return True


def _newest(store: Any) -> int:
    paths = [x["path"] for page in obstore.list(store, "owner/") for x in page]
    return max((int(pathlib.PurePath(p).stem) for p in paths if p.endswith(".json")), default=0)


def _key(number: int, kind: str) -> str:
    return f"owner/{number:08d}.{kind}"


def _exists(store: Any, key: str) -> bool:
    try:
        obstore.head(store, key)
    except FileNotFoundError:
        return False
    return True


def _read(store: Any, key: str) -> bytes:
    try:
        return bytes(obstore.get(store, key).bytes())
    except FileNotFoundError:
        return b""


def _read_json(store: Any, key: str) -> dict[str, Any]:
    try:
        record = json.loads(_read(store, key))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _host() -> str:
    """This machine in this boot: a process number means nothing in another one."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text().strip() if boot.exists() else ''}"


def _runs(pid: Any) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
