"""Old content as a new version, so that every replica goes back in order."""

import dataclasses
from typing import Self

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import SparseUpdate, TreeSpec, dtype_of, unescape
from cdl_jax.deploy.log import open_log
from cdl_jax.deploy.publisher import Publisher
from cdl_jax.deploy.replica import Replica
from cdl_jax.errors import ConfigError, LogError
from cdl_jax.wire import signing


@dataclasses.dataclass(frozen=True, kw_only=True)
class RollbackConfig:
    """Settings of `cdl-jax rollback`."""

    log: str | None = None
    """Log of versions: a folder or URL. Its trainer must have stopped."""
    to: int | None = None
    """Version whose content the log's next version gets."""
    sign_key: str | None = None
    """PEM file of the key that signs the log; needed where the log is signed."""

    def checked(self) -> Self:
        """Itself; raises ConfigError for a value that cannot be."""
        if self.log is None or self.to is None:
            raise ConfigError("rollback needs --log, a folder or URL, and --to, a version")
        if self.to < 0:
            raise ConfigError(f"to is {self.to}; give 0 or more")
        return self


def rollback(config: RollbackConfig) -> str:
    """Publishes the content of an old version as the newest; says what it did.

    The writer is the log's owner for as long as this takes. A run that made the versions in
    between does not go on from here: what it would publish next is taken.

    Raises:
      OwnershipError: while a trainer owns the log.
      LogError: when the log does not hold the version, or its head cannot be rebuilt.
    """
    key = None if config.sign_key is None else signing().read_signing_key(config.sign_key)
    public = None if key is None else key.public
    log, to = open_log(config.log or ""), config.to or 0
    if log.manifest() is None:
        raise LogError(f"the log {log.name} is empty; there is nothing to go back to")
    with log.claim() as owner:
        old, newest = Replica(log, at=to, key=public), Replica(log, key=public)
        newest.catch_up()
        if newest.version != log.head():
            raise LogError(f"version {newest.version} is the last that {log.name} still leads to")
        with old.lease() as target, newest.lease() as head:
            version = head.version + 1
            update = difference(old, newest)
            publisher = Publisher.going_on(log, owner, key)
            publisher.publish(update, target.tree)
    entries = int(update.counts.sum())
    return (
        f"version {version} has the content of version {to}: {entries:,} entries changed, digest "
        f"{digests.to_hex(update.digest)}"
    )


def difference(target: Replica, base: Replica) -> SparseUpdate:
    """The update that follows what `base` serves and leads to the content that `target` serves."""
    spec = target.manifest.spec
    sections, indices, values = [], [], []
    with target.lease() as wanted, base.lease() as found:
        flat = zip(_leaves(wanted.tree, spec), _leaves(found.tree, spec), strict=True)
        for place, (new, old) in enumerate(flat):
            at = np.flatnonzero(_bits(new) != _bits(old))
            if at.size:
                sections.append((place,))
                indices.append(at.astype(np.int32))
                values.append(new[at])
        return SparseUpdate(
            indices=tuple(indices),
            values=tuple(values),
            counts=np.array([at.size for at in indices], np.int32),
            base=np.uint32(found.version),
            version=np.uint32(found.version + 1),
            digest=wanted.digest,
            sections=tuple(sections),
            fingerprint=spec.fingerprint,
        )


def _leaves(tree: dict, spec: TreeSpec) -> list[np.ndarray]:
    out = []
    for leaf in spec.leaves:
        node = tree
        for key in map(unescape, leaf.name.split("/")):
            node = node[key]
        out.append(np.asarray(node).reshape(-1))
    return out


def _bits(values: np.ndarray) -> np.ndarray:
    return values.view(f"u{dtype_of(values.dtype.name).itemsize}")
