"""What a replica takes from a log: whole snapshots, and updates that may follow a version."""

import contextlib
import functools
from typing import TYPE_CHECKING

from cdl_jax.core.check import check_update
from cdl_jax.core.layout import SparseUpdate, TreeSpec
from cdl_jax.deploy.log import UpdateLog
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


class Intake:
    """A log as a replica reads it: what it gives is checked, but for the digest it leads to.

    Attributes:
      manifest: the log's first record.
    """

    def __init__(self, log: UpdateLog, key: "PublicKey | None"):
        """Reads the first record; `key` must have signed it and all that follows, None takes any.

        Raises:
          LogError: when the log is empty.
          RefusedUpdateError: when the first record is not signed by the key.
        """
        self._log, self._key = log, key
        manifest = log.manifest()
        if manifest is None:
            raise LogError(f"the log {log.name} is empty; start a trainer on it first")
        if key is not None and not manifest.is_signed_by(key):
            raise RefusedUpdateError(
                f"the first record of the log {log.name} is not signed by the public key given",
                reason="signature",
            )
        self.manifest = manifest

    def before(self, version: int) -> Snapshot:
        """The last snapshot from which the updates lead on to a version.

        Raises:
          LogError: when the log does not hold that version, or no longer.
        """
        return self.snapshot(self._start_of(version))

    def newest_whole(self) -> Snapshot:
        """The newest snapshot that is not damaged; the updates after it lead on."""
        newest = self.newest()
        try:
            return self.snapshot(newest)
        except LogError:
            for version in reversed(self._log.snapshots()):
                if version < newest:
                    with contextlib.suppress(LogError):
                        return self.snapshot(version)
            raise

    def newest(self) -> int:
        """The version of the newest snapshot; raises LogError where there is none yet."""
        version = self._log.newest_snapshot()
        if version is None:
            raise LogError(f"the log {self._log.name} has no snapshot yet; wait for its trainer")
        return version

    def snapshot(self, version: int) -> Snapshot:
        """A snapshot; raises LogError when it is damaged or of another log, version or model."""
        try:
            snapshot = decode_snapshot(self._log.read_snapshot(version), key=self._key)
        except WireError as error:
            raise LogError(f"snapshot {version} in {self._log.name}: {error}") from error
        if (snapshot.lineage, snapshot.version) != (self.manifest.lineage, version):
            raise LogError(f"snapshot {version} in {self._log.name} is of another log or version")
        if snapshot.spec.fingerprint != self.manifest.spec.fingerprint:
            raise LogError(f"snapshot {version} in {self._log.name} is of another model")
        return snapshot

    def update(self, blob: bytes, following: int, spec: TreeSpec) -> SparseUpdate:
        """The update that these bytes hold, which must be that of version `following`.

        Args:
          blob: the bytes.
          following: one more than the version held.
          spec: of the model held, whose own object finds what is kept by it the fastest.

        Raises:
          RefusedUpdateError: says which check failed.
        """
        because = functools.partial(refused, following)
        try:
            header, update = decode_with_header(blob, key=self._key)
        except SignatureError as error:
            raise because("signature", error) from error
        except WireError as error:
            raise because("damaged", error) from error
        if header.lineage != self.manifest.lineage:
            raise because("foreign", "it is of another log's lineage")
        if header.version != following:
            raise because("order", f"it is version {header.version}, the next one is {following}")
        try:
            check_update(update, spec)
        except ValueError as error:
            raise because("model", error) from error
        return update

    def not_held(self, version: int) -> LogError:
        """The error that says which versions there are."""
        first, last = min(self._log.snapshots(), default=0), self._log.head()
        return LogError(
            f"the log {self._log.name} does not hold version {version}: it has {first} to {last}"
        )

    def _start_of(self, version: int) -> int:
        snapshots = [s for s in self._log.snapshots() if s <= version]
        if not snapshots or version > (self._log.head() or 0):
            raise self.not_held(version)
        return snapshots[-1]


def refused(version: int, reason: str, error: object) -> RefusedUpdateError:
    """The error that says so."""
    return RefusedUpdateError(f"update {version} is refused: {error}", reason=reason)
