"""A replica: follows a log and serves, at every moment, one whole version of the model."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.deploy.buffers import Buffer, Buffers, DigestMismatch, Lease, Model
from cdl_jax.deploy.gate import Gate
from cdl_jax.deploy.intake import Intake, refused
from cdl_jax.deploy.log import UpdateLog
from cdl_jax.deploy.numpy_model import NumpyModel
from cdl_jax.errors import RefusedUpdateError
from cdl_jax.wire import Snapshot

if TYPE_CHECKING:
    from cdl_jax.wire.keys import PublicKey

_LOOK_SECONDS = 0.5  # between looks at the newest snapshot
_FAR_BEHIND = 2000  # versions; a snapshot is loaded sooner than as many updates


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
        self._log, self._gate, self._intake = log, gate, Intake(log, key)
        self.manifest = self._intake.manifest
        self.lineage = self.manifest.lineage
        self.last_error: str | None = None
        self.refused: collections.Counter[str] = collections.Counter()
        self.held_back: str | None = None
        self._pinned, self._looked = at, time.monotonic()
        snapshot = self._intake.newest_whole() if at is None else self._intake.before(at)
        front, spare = (
            Buffer(make_model(snapshot), snapshot.version, snapshot.digest) for _ in range(2)
        )
        front.model.prepare(self.manifest.layout)
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
            yield Lease(buffer.version, buffer.digest, buffer)

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
            start = self._buffers.load(self._intake.before(version))
        while start.version < version:
            blob = self._log.read(start.version + 1)
            if blob is None:
                raise self._intake.not_held(version)
            start = self._written(blob, start)
        self._buffers.swap()
        self.held_back = None

    def _jump(self, least: int) -> bool:
        """Loads the newest snapshot where it is ahead by `least`."""
        self._looked = time.monotonic()
        newest = self._intake.newest()
        if newest < self._buffers.tip.version + least:
            return False
        if self._pinned is not None and newest > self._pinned:
            return False
        self._serve(self._buffers.load(self._intake.snapshot(newest)))
        return True

    def _written(self, blob: bytes, base: Buffer) -> Buffer:
        following = base.version + 1
        update = self._intake.update(blob, following, base.model.spec)
        try:
            plan = base.model.plan(update)
            return self._buffers.write(plan, following, np.asarray(update.digest))
        except DigestMismatch as error:
            found, its = digests.to_hex(error.found), digests.to_hex(update.digest)
            what = f"it leads to the digest {found} and should to {its}"
            raise refused(following, "digest", what) from None


def model_factory(backend: Literal["numpy", "jax"]) -> Callable[[Snapshot], Model]:
    """The `make_model` of a backend by name."""
    if backend == "numpy":
        return NumpyModel
    from cdl_jax.deploy.jax_model import JaxModel

    return JaxModel
