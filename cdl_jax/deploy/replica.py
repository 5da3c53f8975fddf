"""A replica: follows a log and serves, at every moment, one whole version of the model."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import SparseUpdate, TreeSpec, check_update
from cdl_jax.deploy.log import UpdateLog
from cdl_jax.deploy.numpy_model import NumpyModel
from cdl_jax.errors import LogError, RefusedUpdateError
from cdl_jax.wire import Snapshot, WireError, decode_snapshot, decode_update, read_header


class Model(Protocol):
    """One buffer of a replica, in NumPy or JAX."""

    spec: TreeSpec

    def prepare(self, layout: list[Any]) -> None:
        """Gets ready for updates of a layout (`Manifest.layout`)."""
        ...

    def tree(self) -> Any:
        """The deployed tree."""
        ...

    def tensors(self) -> dict[str, Any]:
        """Its arrays by canonical path."""
        ...

    def changed_digest(self, update: SparseUpdate, digest: np.ndarray) -> np.ndarray:
        """The digest after an update; writes nothing."""
        ...

    def apply(self, update: SparseUpdate) -> None:
        """Writes a checked update."""
        ...

    def full_digest(self) -> np.ndarray:
        """The digest over every entry."""
        ...


@dataclasses.dataclass
class _Buffer:
    model: Model
    version: int
    readers: int = 0


@dataclasses.dataclass(frozen=True)
class Lease:
    """A version that stays as it is for as long as the lease is held."""

    version: int
    tree: Any


class Replica:
    """Follows a log with two buffers: one is served, the other takes the next update.

    An update is checked in full (bytes, lineage, order, model, positions, the digest it must
    lead to) against the served buffer before anything is written. It is then written to the
    spare buffer, the two swap in one assignment, and the next update replays it on the other.
    A reader's lease keeps its buffer from being written.

    Attributes:
      last_error: why the newest update was refused, or None.
    """

    def __init__(self, log: UpdateLog, make_model: Callable[[Snapshot], Model] = NumpyModel):
        """Loads the log's newest snapshot; `make_model` is `NumpyModel` or `JaxModel`.

        Raises:
          LogError: when the log is empty, or its snapshot damaged.
        """
        self._log, self._make_model = log, make_model
        manifest = log.manifest()
        if manifest is None:
            raise LogError(f"the log {log.name} is empty; start a trainer on it first")
        self.lineage = manifest.lineage
        self._manifest = manifest
        self._free = threading.Condition()
        self.last_error: str | None = None
        self._load_newest()

    @property
    def version(self) -> int:
        """The version served."""
        return self._front.version

    @property
    def digest(self) -> np.ndarray:
        """The running digest of the version served, uint32[4]."""
        return self._digest

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """The served version, unchanged until the context ends. Keep nothing of it longer."""
        with self._free:
            buffer = self._front
            buffer.readers += 1
        try:
            yield Lease(buffer.version, buffer.model.tree())
        finally:
            with self._free:
                buffer.readers -= 1
                self._free.notify_all()

    def advance(self) -> int | None:
        """Serves the next version if the log has it; returns its size in bytes, else None.

        Raises:
          RefusedUpdateError: when the next update fails a check and no newer snapshot helps;
            the replica serves on as before.
        """
        blob = self._log.read(self.version + 1)
        if blob is None:
            return None
        try:
            self.apply(blob)
        except RefusedUpdateError as error:
            self.last_error = str(error)
            if (self._log.newest_snapshot() or 0) <= self.version:
                raise
            self._load_newest()
        self.last_error = None
        return len(blob)

    def catch_up(self) -> int:
        """Advances to the log's end; returns the versions taken."""
        count = 0
        while self.advance() is not None:
            count += 1
        return count

    def apply(self, blob: bytes) -> None:
        """Checks one update's bytes, writes it to the spare buffer, and swaps.

        Raises:
          RefusedUpdateError: says which check failed; nothing was written.
        """
        update = self._checked(blob)
        with self._free:
            self._free.wait_for(lambda: self._spare.readers == 0)
        spare = self._spare
        if self._pending is not None:
            spare.model.apply(self._pending)
        spare.model.apply(update)
        spare.version = int(update.version)
        with self._free:
            self._front, self._spare = spare, self._front
            self._digest, self._pending = np.asarray(update.digest), update

    def full_digest(self) -> str:
        """The digest of the served version over every entry, in hex.

        Raises:
          RefusedUpdateError: when it is not the running one: memory was changed from outside.
        """
        full = self._front.model.full_digest()
        if not np.array_equal(full, self._digest):
            raise RefusedUpdateError(
                f"version {self.version} in memory has the digest {digests.to_hex(full)}, its "
                f"updates lead to {digests.to_hex(self._digest)}; start the replica again"
            )
        return digests.to_hex(full)

    def _load_newest(self) -> None:
        version = self._log.newest_snapshot()
        if version is None:
            raise LogError(f"the log {self._log.name} has no snapshot yet; wait for its trainer")
        snapshot = self._snapshot(version)
        front = _Buffer(self._make_model(snapshot), version)
        spare = _Buffer(self._make_model(snapshot), version)
        front.model.prepare(self._manifest.layout)
        with self._free:
            self._front, self._spare, self._digest = front, spare, snapshot.digest
            self._pending: SparseUpdate | None = None

    def _snapshot(self, version: int) -> Snapshot:
        try:
            snapshot = decode_snapshot(self._log.read_snapshot(version))
        except WireError as error:
            raise LogError(f"snapshot {version} in {self._log.name}: {error}") from error
        if (snapshot.lineage, snapshot.version) != (self.lineage, version):
            raise LogError(f"snapshot {version} in {self._log.name} is of another log or version")
        if snapshot.spec.fingerprint != self._manifest.spec.fingerprint:
            raise LogError(f"snapshot {version} in {self._log.name} is of another model")
        return snapshot

    def _checked(self, blob: bytes) -> SparseUpdate:
        expected = self.version + 1
        try:
            header = read_header(blob)
            if header.lineage != self.lineage:
                raise WireError("it is of another log's lineage")
            if header.version != expected:
                raise WireError(f"it is version {header.version}, the next one is {expected}")
            update = decode_update(blob)
            check_update(update, self._front.model.spec)
        except ValueError as error:
            raise RefusedUpdateError(f"update {expected} is refused: {error}") from error
        found = self._front.model.changed_digest(update, self._digest)
        if not np.array_equal(found, update.digest):
            raise RefusedUpdateError(
                f"update {expected} is refused: it leads to the digest {digests.to_hex(found)} "
                f"and should to {digests.to_hex(update.digest)}"
            )
        return update


def model_factory(backend: Literal["numpy", "jax"]) -> Callable[[Snapshot], Model]:
    """The `make_model` of a backend by name."""
    if backend == "numpy":
        return NumpyModel
    from cdl_jax.deploy.jax_model import JaxModel

    return JaxModel
