"""The log of versions: what it promises, and how it is opened."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Protocol, Self

from cdl_jax.core.layout import TreeSpec
from cdl_jax.deploy.retention import Retention
from cdl_jax.errors import LogError

if TYPE_CHECKING:
    from cdl_jax.wire.keys import PublicKey, SigningKey

FORMAT = "cdl_jax.log.1"
_PURPOSE = b"cdl_jax log\0"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A log's first record.

    Attributes:
      lineage: 16 random bytes, in every update of the log.
      spec: the deployed tree's paths, shapes and dtypes.
      program: what the bits depend on: jax version, backend, device, threads, flags, form.
      config: the settings of the run, for people.
      layout: leaves, slots, and whether there is a scale, of each section of its updates, where
        they are the same in all; a replica that compiles its writes does so before the first
        update comes.
      signature: 64 bytes, Ed25519 of all above, or nothing.
    """

    lineage: bytes
    spec: TreeSpec
    program: dict[str, Any]
    config: dict[str, Any]
    layout: list[Any] = dataclasses.field(default_factory=list)
    signature: bytes = b""

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps(self._record() | {"signature": self.signature.hex()}, indent=1).encode()

    def signed(self, key: "SigningKey | None") -> "Manifest":
        """The same with this key's signature; itself for no key."""
        if key is None:
            return self
        return dataclasses.replace(self, signature=key.sign(self._message()))

    def is_signed_by(self, key: "PublicKey") -> bool:
        """Whether the signature is this key's, for what stands here."""
        return key.verifies(self.signature, self._message())

    def _message(self) -> bytes:
        return _PURPOSE + json.dumps(self._record(), sort_keys=True, separators=(",", ":")).encode()

    def _record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "lineage": self.lineage.hex(),
            "spec": self.spec.to_json(),
            "program": self.program,
            "config": self.config,
            "layout": self.layout,
        }

    @classmethod
    def from_bytes(cls, blob: bytes) -> "Manifest":
        """Inverse of `to_bytes`; raises LogError for anything else."""
        try:
            record = json.loads(blob)
            if record["format"] != FORMAT:
                raise ValueError(
                    f"its format is {record['format']!r}, this reader knows {FORMAT!r}"
                )
            lineage, spec = bytes.fromhex(record["lineage"]), TreeSpec.from_json(record["spec"])
            layout = [
                [tuple(map(int, places)), int(slots), bool(scaled)]
                for places, slots, scaled in record["layout"]
            ]
            signature = bytes.fromhex(record["signature"])
            settings = dict(record["program"]), dict(record["config"])
            return cls(lineage, spec, *settings, layout, signature)
        except (KeyError, ValueError, TypeError) as error:
            raise LogError(f"the log's first record cannot be read: {error}") from error


class UpdateLog(Protocol):
    """Versions by number, without gaps, written once; snapshots of some of them.

    A reader asks for version n + 1 by name and never lists. All blobs are opaque here.
    """

    name: str

    def manifest(self) -> Manifest | None:
        """The first record; None for a log that nobody has begun."""
        ...

    def create(self, manifest: Manifest) -> None:
        """Writes the first record; raises LogError when there is one."""
        ...

    def claim(self, *, patience: float = 5.0) -> "Ownership":
        """Becomes the log's one writer; raises OwnershipError while another lives."""
        ...

    def append(self, version: int, blob: bytes, owner: "Ownership") -> None:
        """Writes a version. Finding the same bytes there already is success.

        Raises:
          OwnershipError: when another writer took the log over.
          StoreError: when the store fails; the same call may succeed later.
          LogError: when other bytes stand there.
        """
        ...

    def read(self, version: int) -> bytes | None:
        """A version's update, or None where there is none yet."""
        ...

    def written_at(self, version: int) -> float | None:
        """When a version was written, in seconds since the epoch; None where there is none."""
        ...

    def wait(self, version: int, seconds: float) -> None:
        """Returns when a version may be there, at the latest after so many seconds."""
        ...

    def write_status(self, blob: bytes) -> None:
        """Replaces the writer's last words on how it goes; no part of any version."""
        ...

    def read_status(self) -> bytes | None:
        """The writer's last words, or None."""
        ...

    def head(self) -> int | None:
        """The newest version; None for a log without a snapshot."""
        ...

    def write_snapshot(self, version: int, blob: bytes, owner: "Ownership") -> None:
        """Writes a snapshot, then points to it as the newest."""
        ...

    def newest_snapshot(self) -> int | None:
        """The newest snapshot's version."""
        ...

    def read_snapshot(self, version: int) -> bytes:
        """A snapshot; raises LogError where there is none."""
        ...

    def snapshots(self) -> list[int]:
        """The versions that have a snapshot, ascending. Lists: not for the steady state."""
        ...

    def oldest(self) -> int:
        """The versions up to this one have been trimmed; 0 where none were."""
        ...

    def trim(self, retention: Retention, owner: "Ownership") -> int:
        """Deletes what lies beyond the limits, never past the newest snapshot; `oldest` then."""
        ...


class Ownership(Protocol):
    """A writer's right to a log; as a context manager it releases at the end.

    Attributes:
      number: counts the log's writers; a later one has a higher number.
    """

    number: int

    def ensure(self) -> None:
        """Raises OwnershipError when another writer took over."""
        ...

    def release(self) -> None:
        """Gives the log back, so that the next writer need not wait."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def another_update(version: int, name: str) -> LogError:
    """What is said of a put that finds other bytes in its place."""
    return LogError(
        f"version {version} in {name} holds another update already: this run does not continue "
        "that log, but makes other bytes, as another machine, number of threads, version of a "
        "library, changed data or a writer between them would; go on with what began it, or give "
        "a new --log and a new --run (or --new-lineage)"
    )


def open_log(url: str, *, create: bool = False) -> UpdateLog:
    """Opens a log by URL: a folder, or `file://`, `memory://`, `s3://`, `gs://`, `az://`, `redis://`.

    Args:
      url: where the log lies.
      create: make a local folder that does not exist.

    Raises:
      LogError: when the folder does not exist or the URL is of another kind.
    """
    if url.startswith(("redis://", "rediss://")):
        from cdl_jax.deploy.redis_log import open_redis_log

        return open_redis_log(url, create=create)
    from cdl_jax.deploy.store_log import open_store_log

    return open_store_log(url, create=create)
