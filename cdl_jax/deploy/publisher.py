"""The writer's side of a log: encodes updates, appends them, writes snapshots."""

import contextlib
import dataclasses
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import SparseUpdate, TreeSpec
from cdl_jax.core.ragged import row_sizes
from cdl_jax.deploy.log import Manifest, Ownership, UpdateLog
from cdl_jax.deploy.outbox import FailurePolicy, Outbox
from cdl_jax.deploy.retention import Retention
from cdl_jax.errors import LogError, StoreError
from cdl_jax.wire import Snapshot, encode_snapshot, encode_update

if TYPE_CHECKING:
    from cdl_jax.wire.keys import SigningKey

_KEEP_ALL, _STOP = Retention(), FailurePolicy()


@dataclasses.dataclass
class Publisher:
    """Publishes versions to a log that it owns. Make one with `Publisher.begin`.

    Attributes:
      log, owner: where to, and the right to it.
      manifest: the log's first record.
      snapshot_every: versions between snapshots.
      snapshot_bytes: bytes of updates after which a snapshot comes sooner, or None.
      retention: what is trimmed after a snapshot has been written.
      outbox: what is on its way into the log; `outbox.empty` once all is acknowledged.
      key: signs all that is published; None for none.
    """

    log: UpdateLog
    owner: Ownership
    manifest: Manifest
    snapshot_every: int
    snapshot_bytes: int | None
    retention: Retention
    outbox: Outbox
    key: "SigningKey | None" = None
    bytes_since: int = 0  # of updates since the last snapshot
    _told: float = -1.0  # when `tell` last wrote

    @classmethod
    def begin(
        cls,
        log: UpdateLog,
        owner: Ownership,
        deployed: Any,
        *,
        version: int = 0,
        program: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        example: SparseUpdate | None = None,
        snapshot_every: int = 500,
        snapshot_bytes: int | None = None,
        retention: Retention = _KEEP_ALL,
        on_failure: FailurePolicy = _STOP,
        key: "SigningKey | None" = None,
    ) -> "Publisher":
        """Begins a log with a snapshot, or stands at the front of one that the same run began.

        A run is a function of its settings: started again on its own log it makes the same
        bytes, which `publish` finds there, and goes on where the log ends.

        Args:
          log, owner: the log, and its `claim`.
          deployed: the tree as `cdl_jax.deployed(state)` gives it, NumPy or JAX arrays.
          version: of that tree.
          program, config: what the bits depend on, in JSON's types; another run's are refused.
          example: an update, or its shapes (`jax.eval_shape(step, ...)[1].update`), by which
            replicas compile their writes before the first one comes.
          snapshot_every: versions between snapshots, from 1.
          snapshot_bytes: bytes of updates after which a snapshot comes sooner.
          retention: what to trim; by default nothing.
          on_failure: what to do while the store fails; by default raise at once.
          key: signs the first record, every update and every snapshot.

        Raises:
          LogError: when the log is of another model, program, configuration or key.
        """
        tensors, spec = _named(deployed)
        layout = [] if example is None else _layout(example)
        mine = Manifest(secrets.token_bytes(16), spec, program or {}, config or {}, layout)
        manifest = log.manifest()
        if manifest is None:
            log.create(manifest := mine.signed(key))
        _check_key(log, manifest, key)
        for what, own, found in (
            ("model", spec.to_json(), manifest.spec.to_json()),
            ("program", mine.program, manifest.program),
            ("configuration", mine.config, manifest.config),
        ):
            if own != found:
                raise LogError(
                    f"the log {log.name} is of another {what} ({difference(own, found)}); give "
                    "a new folder"
                )
        outbox = Outbox(log, owner, on_failure)
        publisher = cls(
            log, owner, manifest, snapshot_every, snapshot_bytes, retention, outbox, key
        )
        head = log.head()  # a broker may have lost what led to this version
        if head is None or head < version:
            publisher._snapshot(version, tensors, digests.numpy_digest(tensors))
        return publisher

    @classmethod
    def going_on(
        cls, log: UpdateLog, owner: Ownership, key: "SigningKey | None" = None
    ) -> "Publisher":
        """For a log that somebody else began, whatever program and configuration it is of."""
        manifest = log.manifest()
        if manifest is None:
            raise LogError(f"the log {log.name} is empty; start a trainer on it first")
        _check_key(log, manifest, key)
        return cls(log, owner, manifest, 500, None, _KEEP_ALL, Outbox(log, owner, _STOP), key)

    def publish(self, update: SparseUpdate, deployed: Any = None) -> bytes:
        """Appends one version, and a snapshot where a tree is given; returns the update's bytes.

        Args:
          update: arrays of NumPy or JAX.
          deployed: the tree at the update's version, which `snapshot_due` versions need. It is
            read at once and may be donated afterwards.

        Raises:
          StoreError: when the log cannot be written, as `on_failure` has it.
          LogError: when the tree's full digest is not the update's: an entry was changed behind
            the step's back. Nothing is written then.
        """
        version, digest = int(update.version), np.asarray(update.digest)
        tensors = None if deployed is None else _named(deployed)[0]
        if tensors is not None:
            self._check(version, tensors, digest)
        blob = encode_update(update, lineage=self.manifest.lineage, key=self.key)
        self.outbox.update(version, blob)
        self.bytes_since += len(blob)
        if tensors is not None:
            self._snapshot(version, tensors, digest)
        return blob

    def last(self, version: int, deployed: Any, digest: np.ndarray) -> None:
        """Writes a snapshot of the last version of a stream, unless the log has it.

        Args:
          version: the newest published.
          deployed: the tree at that version.
          digest: to which its updates lead.

        Raises:
          StoreError, LogError: as `publish`.
        """
        there = None
        with contextlib.suppress(StoreError):  # the outbox knows what to do
            there = self.log.newest_snapshot()
        if there is None or there < version:
            tensors = _named(deployed)[0]
            self._check(version, tensors, digest)
            self._snapshot(version, tensors, digest)
        self.bytes_since = 0

    def tell(self, status: dict[str, Any]) -> None:
        """Leaves a few words on how training goes beside the log, every second at most."""
        if time.monotonic() - self._told >= 1.0:
            self._told = time.monotonic()
            with contextlib.suppress(StoreError):  # it is said again
                self.log.write_status(json.dumps(status).encode())

    def snapshot_due(self, version: int) -> bool:
        """Whether this version, the one after the newest published, gets a snapshot."""
        if self.snapshot_bytes is not None and self.bytes_since >= self.snapshot_bytes:
            return True
        return version % self.snapshot_every == 0

    def _check(self, version: int, tensors: dict[str, np.ndarray], digest: np.ndarray) -> None:
        full = digests.numpy_digest(tensors)
        if not np.array_equal(full, digest):
            raise LogError(
                f"version {version} has the full digest {digests.to_hex(full)}, its updates lead "
                f"to {digests.to_hex(digest)}: a parameter was changed outside the step; start "
                "again from the log's newest snapshot"
            )

    def _snapshot(self, version: int, tensors: dict[str, np.ndarray], digest: np.ndarray) -> None:
        snapshot = Snapshot(self.manifest.spec, tensors, version, self.manifest.lineage, digest)
        written = self.outbox.snapshot(version, encode_snapshot(snapshot, key=self.key))
        self.bytes_since = 0
        if written and self.retention.limited:
            with contextlib.suppress(StoreError):  # it is tried again after the next snapshot
                self.log.trim(self.retention, self.owner)


def _check_key(log: UpdateLog, manifest: Manifest, key: "SigningKey | None") -> None:
    if manifest.signature != (b"" if key is None else manifest.signed(key).signature):
        raise LogError(
            f"the log {log.name} was begun under another signing key, or none; give that one as "
            "--sign-key"
        )


def _layout(update: SparseUpdate) -> list[Any]:
    rows = zip(update.sections, row_sizes(update.indices), update.section_scales(), strict=True)
    return [[places, k, scale is not None] for places, k, scale in rows]


def _named(deployed: Any) -> tuple[dict[str, np.ndarray], TreeSpec]:
    """Copies by canonical path: a view would disable the donation of the next step."""
    from cdl_jax.core import tree  # a writer trains and so has JAX, a reader of this package not

    flat, spec = tree.flatten(deployed), tree.tree_spec(deployed)
    return {n: np.array(x) for n, x in zip(flat.names, flat.leaves, strict=True)}, spec


def difference(mine: Any, its: Any) -> str:
    """Where two records of JSON differ, for a sentence."""
    if not isinstance(mine, dict) or not isinstance(its, dict):
        return "names, shapes or dtypes of its tensors differ"
    keys = sorted(k for k in {*mine, *its} if mine.get(k) != its.get(k))
    return "; ".join(f"{k} is {mine.get(k)!r} here, {its.get(k)!r} there" for k in keys)
