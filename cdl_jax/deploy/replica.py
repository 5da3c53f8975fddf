"""A replica: follows a log and serves, at every moment, one whole version of the model."""

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.check import check_update
from cdl_jax.core.layout import SparseUpdate
from cdl_jax.deploy.buffers import Buffer, Buffers, DigestMismatch, Model
from cdl_jax.deploy.gate import Gate
from cdl_jax.deploy.log import UpdateLog
from cdl_jax.deploy.numpy_model import NumpyModel
from cdl_jax.errors import LogError, RefusedUpdateError
from cdl_jax.wire import (
    SignatureError,
    Snapshot,
    WireError,
    decode_snapshot,
    decode_with_header,
)

if TYPE_CHECKING:
    from cdl_jax.wire.keys import PublicKey

_LOOK_SECONDS = 0.5  # between looks at the newest snapshot
_FAR_BEHIND = 2000  # versions; a snapshot is loaded sooner than as many updates


@dataclasses.dataclass(frozen=True)
class Lease:
    """A version that stays as it is for as long as the lease is held."""

    version: int
    digest: np.ndarray  # uint32 [4]
    model: Model

    @property
    def tree(self) -> Any:
        """The deployed tree."""
        return self.model.tree()


class Replica:
    """Follows a log with two buffers: one is served, the other takes the next update.

    An update is checked (bytes, lineage, order, model, positions), written to the spare buffer,
    and served if that has the digest which the update names: the two swap in one assignment, and
    the other takes it together with the next one. A spare buffer of a wrong digest is thrown
    away. A reader's lease keeps its buffer from being written. Where a gate does not let a
    version pass, the served one stays, the spare goes on following the log, and the first
    version that passes is served.

    Attributes:
      last_error: why the newest update was refused, or None.
      refused: updates that `advance` refused, by reason (`RefusedUpdateError.reason`).
      held_back: why the gate keeps the newest version from being served, or None.
    """

    def __init__(
        self,
        log: UpdateLog,
        make_model: Callable[[Snapshot], Model] = NumpyModel,
        *,
        at: int | None = None,
        gate: Gate | None = None,
        key: "PublicKey | None" = None,
    ):
        """Loads a snapshot of the log.

        Args:
          log: what to follow.
          make_model: `NumpyModel` or `JaxModel`.
          at: the version to stay at, see `pin`; None follows the log.
          gate: what a version must show before it is served; the first one is not asked.
          key: must have signed the log's first record, every update and every snapshot; None
            takes what is unsigned too.

        Raises:
          LogError: when the log is empty, its snapshot damaged, or version `at` not in it.
          RefusedUpdateError: when the first record is not signed by the key.
        """
        self._log, self._gate, self._key = log, gate, key
        manifest = log.manifest()
        if manifest is None:
            raise LogError(f"the log {log.name} is empty; start a trainer on it first")
        if key is not None and not manifest.is_signed_by(key):
            raise RefusedUpdateError(
                f"the first record of the log {log.name} is not signed by the public key given",
                reason="signature",
            )
        self.lineage, self.manifest = manifest.lineage, manifest
        self.last_error: str | None = None
        self.refused: collections.Counter[str] = collections.Counter()
        self.held_back: str | None = None
        self._pinned, self._looked = at, time.monotonic()
        snapshot = self._newest_whole() if at is None else self._snapshot(self._start_of(at))
        front, spare = (
            Buffer(make_model(snapshot), snapshot.version, snapshot.digest) for _ in range(2)
        )
        front.model.prepare(manifest.layout)
        self._buffers = Buffers(front, spare)
        if gate is not None:
            self._passes(front)
            self.held_back = None
        if at is not None:
            self._follow_to(at)

    @property
    def version(self) -> int:
        """The version served."""
        return self._buffers.front.version

    @property
    def digest(self) -> np.ndarray:
        """The running digest of the version served, uint32[4]."""
        return self._buffers.front.digest

    @property
    def pinned(self) -> int | None:
        """The version that the replica stays at, or None."""
        return self._pinned

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """The served version, unchanged until the context ends. Keep nothing of it longer."""
        with self._buffers.lease() as buffer:
            yield Lease(buffer.version, buffer.digest, buffer.model)

    def advance(self) -> int | None:
        """Takes the next version if the log has it; returns its size in bytes, else None.

        What was trimmed, or is far behind the newest snapshot, is passed over by loading that: 0.

        Raises:
          RefusedUpdateError: when the next update fails a check and no newer snapshot helps;
            the replica serves on as before.
          StoreError: when the log cannot be read; the replica serves on as before.
        """
        following = self._buffers.tip.version + 1
        if self._pinned is not None and following > self._pinned:
            return None
        look = time.monotonic() - self._looked >= _LOOK_SECONDS
        if look and self._jump(_FAR_BEHIND):
            return 0
        blob = self._log.read(following)
        if blob is None:  # not there yet, or no longer where there is a snapshot ahead
            return 0 if look and self._jump(1) else None
        try:
            self.apply(blob)
        except RefusedUpdateError as error:
            self.last_error = str(error)
            self.refused[error.reason] += 1
            if not self._jump(following - self._buffers.tip.version):  # past what is refused
                raise
            blob = b""
        self.last_error = None
        return len(blob)

    def wait(self, seconds: float) -> None:
        """Returns once the log may have what `advance` takes next, after so many seconds at most.

        Raises:
          StoreError: when the log cannot be read.
        """
        following = self._buffers.tip.version + 1
        if self._pinned is not None and following > self._pinned:
            time.sleep(seconds)
        else:
            self._log.wait(following, seconds)

    def catch_up(self) -> int:
        """Advances to the log's end; returns the versions taken."""
        begun = self._buffers.tip.version
        while self.advance() is not None or self._jump(1):
            pass
        return self._buffers.tip.version - begun

    def apply(self, blob: bytes) -> None:
        """Checks one update's bytes, writes it to the spare buffer, and swaps.

        Raises:
          RefusedUpdateError: says which check failed; the replica serves on as before.
        """
        self._serve(self._written(blob, self._buffers.ready()))

    def pin(self, version: int | None) -> None:
        """Stays at a version, an older one too, until it is called with another one or None.

        Raises:
          LogError: when the log does not hold that version, or no longer; nothing changes then.
        """
        if version is not None and version != self.version:
            self._follow_to(version)
        self._pinned = version

    def full_digest(self) -> str:
        """The digest of the served version over every entry, in hex.

        Raises:
          RefusedUpdateError: when it is not the running one: memory was changed from outside.
        """
        with self._buffers.lease() as buffer:
            full = buffer.model.full_digest()
            if np.array_equal(full, buffer.digest):
                return digests.to_hex(full)
            raise RefusedUpdateError(
                f"version {buffer.version} in memory has the digest {digests.to_hex(full)}, its "
                f"updates lead to {digests.to_hex(buffer.digest)}; start the replica again",
                reason="memory",
            )

    def _serve(self, candidate: Buffer) -> None:
        if self._gate is None or self._passes(candidate):
            self._buffers.swap()
            self.held_back = None

    def _passes(self, candidate: Buffer) -> bool:
        assert self._gate is not None
        try:
            reason = self._gate(candidate.model.tree())
        except Exception as error:  # a gate is the user's; whatever it raises, nothing is served
            reason = f"the gate failed: {error!r}"
        self.held_back = None if reason is None else f"version {candidate.version}: {reason}"
        return reason is None

    def _follow_to(self, version: int) -> None:
        """Serves a version, building it aside from a snapshot where it is an older one."""
        start = self._buffers.ready()
        if version < start.version:
            start = self._buffers.load(self._snapshot(self._start_of(version)))
        while start.version < version:
            blob = self._log.read(start.version + 1)
            if blob is None:
                raise self._not_held(version)
            start = self._written(blob, start)
        self._buffers.swap()
        self.held_back = None

    def _start_of(self, version: int) -> int:
        snapshots = [s for s in self._log.snapshots() if s <= version]
        if not snapshots or version > (self._log.head() or 0):
            raise self._not_held(version)
        return snapshots[-1]

    def _not_held(self, version: int) -> LogError:
        first, last = min(self._log.snapshots(), default=0), self._log.head()
        return LogError(
            f"the log {self._log.name} does not hold version {version}: it has {first} to {last}"
        )

    def _jump(self, least: int) -> bool:
        """Loads the newest snapshot where it is ahead by `least`."""
        self._looked = time.monotonic()
        newest = self._newest()
        if newest < self._buffers.tip.version + least:
            return False
        if self._pinned is not None and newest > self._pinned:
            return False
        self._serve(self._buffers.load(self._snapshot(newest)))
        return True

    def _newest_whole(self) -> Snapshot:
        """The newest snapshot that is not damaged; the updates after it lead on."""
        newest = self._newest()
        try:
            return self._snapshot(newest)
        except LogError:
            for version in reversed(self._log.snapshots()):
                if version < newest:
                    with contextlib.suppress(LogError):
                        return self._snapshot(version)
            raise

    def _newest(self) -> int:
        version = self._log.newest_snapshot()
        if version is None:
            raise LogError(f"the log {self._log.name} has no snapshot yet; wait for its trainer")
        return version

    def _snapshot(self, version: int) -> Snapshot:
        try:
            snapshot = decode_snapshot(self._log.read_snapshot(version), key=self._key)
        except WireError as error:
            raise LogError(f"snapshot {version} in {self._log.name}: {error}") from error
        if (snapshot.lineage, snapshot.version) != (self.lineage, version):
            raise LogError(f"snapshot {version} in {self._log.name} is of another log or version")
        if snapshot.spec.fingerprint != self.manifest.spec.fingerprint:
            raise LogError(f"snapshot {version} in {self._log.name} is of another model")
        return snapshot

    def _written(self, blob: bytes, base: Buffer) -> Buffer:
        refused = functools.partial(_refused, base.version + 1)
        update, plan = self._checked(blob, base)
        try:
            return self._buffers.write(plan, int(update.version), np.asarray(update.digest))
        except DigestMismatch as error:
            found, its = digests.to_hex(error.found), digests.to_hex(update.digest)
            raise refused("digest", f"it leads to the digest {found} and should to {its}") from None

    def _checked(self, blob: bytes, base: Buffer) -> tuple[SparseUpdate, Any]:
        """An update, and its plan."""
        expected = base.version + 1
        refused = functools.partial(_refused, expected)
        try:
            header, update = decode_with_header(blob, key=self._key)
        except SignatureError as error:
            raise refused("signature", error) from error
        except WireError as error:
            raise refused("damaged", error) from error
        if header.lineage != self.lineage:
            raise refused("foreign", "it is of another log's lineage")
        if header.version != expected:
            raise refused("order", f"it is version {header.version}, the next one is {expected}")
        try:
            check_update(update, base.model.spec)
        except ValueError as error:
            raise refused("model", error) from error
        return update, base.model.plan(update)


def _refused(version: int, reason: str, error: object) -> RefusedUpdateError:
    return RefusedUpdateError(f"update {version} is refused: {error}", reason=reason)


def model_factory(backend: Literal["numpy", "jax"]) -> Callable[[Snapshot], Model]:
    """The `make_model` of a backend by name."""
    if backend == "numpy":
        return NumpyModel
    from cdl_jax.deploy.jax_model import JaxModel

    return JaxModel
