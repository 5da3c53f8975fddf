"""The writer's side of a log: encodes updates, appends them, writes snapshots."""

import dataclasses
import secrets
from typing import Any

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import SparseUpdate, TreeSpec
from cdl_jax.deploy.log import Manifest, Ownership, UpdateLog
from cdl_jax.errors import LogError
from cdl_jax.wire import Snapshot, encode_snapshot, encode_update


@dataclasses.dataclass(frozen=True)
class Publisher:
    """Publishes versions to a log that it owns. Make one with `Publisher.begin`.

    Attributes:
      log, owner: where to, and the right to it.
      manifest: the log's first record.
      snapshot_every: versions between snapshots.
    """

    log: UpdateLog
    owner: Ownership
    manifest: Manifest
    snapshot_every: int

    @classmethod
    def begin(
        cls,
        log: UpdateLog,
        owner: Ownership,
        spec: TreeSpec,
        *,
        program: dict[str, Any],
        config: dict[str, Any],
        snapshot_every: int = 500,
    ) -> "Publisher":
        """Begins a log, or stands at the front of one that the same run began.

        A run is a function of its settings: started again on its own log it makes the same
        bytes, which `publish` finds there, and goes on where the log ends.

        Raises:
          LogError: when the log is of another model, program or configuration.
        """
        manifest = log.manifest()
        if manifest is None:
            manifest = Manifest(secrets.token_bytes(16), spec, program, config)
            log.create(manifest)
        for what, mine, its in (
            ("model", spec.to_json(), manifest.spec.to_json()),
            ("program", program, manifest.program),
            ("configuration", config, manifest.config),
        ):
            if mine != its:
                raise LogError(
                    f"the log {log.name} is of another {what} ({_difference(mine, its)}); give a "
                    "new folder"
                )
        return cls(log, owner, manifest, snapshot_every)

    def publish(self, update: SparseUpdate, tensors: dict[str, Any] | None) -> bytes:
        """Appends one version, and its snapshot where one is due; returns the update's bytes.

        Args:
          update: arrays of NumPy or JAX.
          tensors: the deployed tree at the update's version by canonical path; needed where
            `snapshot_due` says so.
        """
        blob = encode_update(update, lineage=self.manifest.lineage)
        version = int(update.version)
        self.log.append(version, blob, self.owner)
        if tensors is not None:
            self.snapshot(version, tensors, np.asarray(update.digest))
        return blob

    def snapshot_due(self, version: int) -> bool:
        """Whether this version gets a snapshot."""
        return version % self.snapshot_every == 0

    def snapshot(self, version: int, tensors: dict[str, Any], digest: np.ndarray) -> None:
        """Writes a snapshot, unless the full digest says that the tensors are not that version.

        Raises:
          LogError: when an entry was changed behind the step's back.
        """
        arrays = {name: np.asarray(tensors[name]) for name in sorted(tensors)}
        full = digests.numpy_digest(arrays)
        if not np.array_equal(full, digest):
            raise LogError(
                f"version {version} has the full digest {digests.to_hex(full)}, its updates lead "
                f"to {digests.to_hex(digest)}: a parameter was changed outside the step; nothing "
                "was written, start again from the log's newest snapshot"
            )
        blob = encode_snapshot(
            Snapshot(self.manifest.spec, arrays, version, self.manifest.lineage, full)
        )
        self.log.write_snapshot(version, blob, self.owner)


def _difference(mine: Any, its: Any) -> str:
    if not isinstance(mine, dict) or not isinstance(its, dict):
        return "names, shapes or dtypes of its tensors differ"
    keys = sorted(k for k in {*mine, *its} if mine.get(k) != its.get(k))
    return "; ".join(f"{k} is {mine.get(k)!r} here, {its.get(k)!r} there" for k in keys)
