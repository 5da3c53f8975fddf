"""What a writer does while its log cannot be written."""

import collections
import dataclasses
import time
from typing import Literal

from cdl_jax.deploy.log import Ownership, UpdateLog
from cdl_jax.errors import ConfigError, StoreError

OnFailure = Literal["stop", "wait", "go_on"]
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """What to do when the store is full, forbidden or out of reach.

    Attributes:
      on_failure: `stop` raises at once; `wait` tries again, with pauses that double up to 2 s;
        `go_on` keeps what could not be written in memory and writes it, in order, later.
      patience: seconds that `wait` tries, and `go_on` once its memory or the run is at its end.
      memory: bytes that `go_on` keeps at most.
    """

    on_failure: OnFailure = "stop"
    patience: float = 60.0
    memory: int = 1 << 28

    def __post_init__(self):
        if self.patience < 0 or self.memory < 0:
            raise ConfigError(
                f"log_patience is {self.patience} and log_memory {self.memory}; give 0 or more"
            )


@dataclasses.dataclass(frozen=True)
class _Parcel:
    version: int
    update: bytes | None  # None: a snapshot
    snapshot: bytes | None

    @property
    def size(self) -> int:
        return len(self.update or b"") + len(self.snapshot or b"")


class Outbox:
    """Updates and snapshots on their way into a log, in order.

    Attributes:
      failures: attempts that the store refused.
      last_error: the newest of their sentences.
    """

    def __init__(self, log: UpdateLog, owner: Ownership, policy: FailurePolicy):
        self._log, self._owner, self._policy = log, owner, policy
        self._waiting: collections.deque[_Parcel] = collections.deque()
        self._pause, self._next_try = _FIRST_PAUSE, 0.0
        self.failures, self.last_error = 0, ""

    @property
    def empty(self) -> bool:
        """Whether the log holds all that was sent."""
        return not self._waiting

    def update(self, version: int, blob: bytes) -> bool:
        """Sends an update; whether the log has acknowledged it. May raise StoreError."""
        return self._send(_Parcel(version, blob, None))

    def snapshot(self, version: int, blob: bytes) -> bool:
        """Sends a snapshot, which is never written before the update that leads to it."""
        return self._send(_Parcel(version, None, blob))

    def flush(self) -> None:
        """Writes all that waits, within the policy's patience; raises StoreError after it."""
        self._next_try = 0.0
        self._retry(self._policy.patience)

    def _send(self, parcel: _Parcel) -> bool:
        self._waiting.append(parcel)
        if self._policy.on_failure == "stop":
            self._retry(0.0)
        elif self._policy.on_failure == "wait" or self._is_full():
            self._retry(self._policy.patience)
        elif time.monotonic() >= self._next_try:
            self._drain()
        return self.empty

    def _retry(self, patience: float) -> None:
        end = time.monotonic() + patience
        while not self._drain():
            if time.monotonic() >= end:
                first = self._waiting[0].version
                raise StoreError(
                    f"{self.last_error}; versions from {first} on are not in the log: mend the "
                    "store and start the same command again"
                )
            time.sleep(min(self._pause, max(0.0, end - time.monotonic())))

    def _drain(self) -> bool:
        """Writes what waits until the store fails; whether nothing waits any more."""
        while self._waiting:
            try:
                self._write(self._waiting[0])
            except StoreError as error:
                self.failures, self.last_error = self.failures + 1, str(error)
                self._next_try = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                return False
            self._waiting.popleft()
        self._pause = _FIRST_PAUSE
        return True

    def _write(self, parcel: _Parcel) -> None:
        if parcel.update is not None:
            self._log.append(parcel.version, parcel.update, self._owner)
        if parcel.snapshot is not None:
            self._log.write_snapshot(parcel.version, parcel.snapshot, self._owner)

    def _is_full(self) -> bool:
        return sum(parcel.size for parcel in self._waiting) > self._policy.memory
