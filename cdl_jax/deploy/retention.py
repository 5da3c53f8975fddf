"""How much of a log is kept: by count, age or bytes, in whole stretches from a snapshot on."""

import bisect
import dataclasses
from typing import NamedTuple

from cdl_jax.errors import ConfigError


class Kept(NamedTuple):
    """One update or snapshot in a log."""

    version: int
    size: int  # bytes
    age: float  # seconds since it was written, by the store's clock


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """Upper limits of what a log keeps; None sets no limit.

    A log keeps a snapshot and every update after it, so that each version that is left can be
    reached. The newest snapshot and what follows it always stay, whatever the limits say.

    Attributes:
      versions: updates.
      seconds: age of the oldest update.
      bytes: of updates and snapshots together.
    """

    versions: int | None = None
    seconds: float | None = None
    bytes: int | None = None

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise ConfigError(f"keep_{name} is {value}; give more than 0")

    @property
    def limited(self) -> bool:
        """Whether anything is ever trimmed."""
        return any(value is not None for value in dataclasses.astuple(self))

    def horizon(self, updates: list[Kept], snapshots: list[Kept], newest: int) -> int:
        """The snapshot to keep from: the oldest that meets every limit, else the newest.

        Args:
          updates, snapshots: ascending by version.
          newest: the snapshot that readers are pointed to.
        """
        starts = [s.version for s in snapshots if s.version < newest]
        numbers = [u.version for u in updates]
        for start in starts:
            tail = updates[bisect.bisect_right(numbers, start) :]
            if self._meets(tail, [s for s in snapshots if s.version >= start]):
                return start
        return newest

    def _meets(self, updates: list[Kept], snapshots: list[Kept]) -> bool:
        size = sum(x.size for x in updates) + sum(x.size for x in snapshots)
        return (
            (self.versions is None or len(updates) <= self.versions)
            and (self.seconds is None or max((u.age for u in updates), default=0) <= self.seconds)
            and (self.bytes is None or size <= self.bytes)
        )
