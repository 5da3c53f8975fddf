"""A log in a table: versions, sizes, entries, digests."""

import dataclasses
from typing import Self

import rich.console
import rich.table

from cdl_jax.core import digest as digests
from cdl_jax.deploy.log import UpdateLog, open_log
from cdl_jax.errors import ConfigError, LogError
from cdl_jax.wire import WireError, decode_with_header


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Settings of `cdl-jax inspect`."""

    log: str | None = None
    """Log of versions to list: a folder or URL."""
    last: int = 20
    """Versions to list, counted from the newest."""

    def checked(self) -> Self:
        """Itself; raises ConfigError for a value that cannot be."""
        if self.log is None:
            raise ConfigError("inspect needs --log, the folder or URL of a log")
        if self.last < 1:
            raise ConfigError(f"last is {self.last}; give 1 or more")
        return self


def show(config: InspectConfig) -> None:
    """Prints a log's first record and its newest versions.

    Raises:
      LogError: when there is no log, or nothing in it.
    """
    url, last = config.log or "", config.last
    log = open_log(url)
    manifest, head = log.manifest(), log.head()
    if manifest is None or head is None:
        raise LogError(f"the log {url} is empty; start a trainer on it first")
    console = rich.console.Console()
    entries = sum(leaf.size for leaf in manifest.spec.leaves)
    console.print(
        f"log {url}  lineage {manifest.lineage.hex()}\n"
        f"{len(manifest.spec.leaves)} tensors, {entries:,} entries, fingerprint "
        f"{manifest.spec.fingerprint.hex()}\n"
        f"head {head}, newest snapshot {log.newest_snapshot()}",
        highlight=False,
    )
    console.print(_table(log, range(max(1, head - last + 1), head + 1)))


def _table(log: UpdateLog, versions: range) -> rich.table.Table:
    table = rich.table.Table("version", "bytes", "entries", "digest", box=None)
    for version in versions:
        blob = log.read(version)
        if blob is not None:
            table.add_row(str(version), f"{len(blob):,}", *_described(blob))
    return table


def _described(blob: bytes) -> tuple[str, str]:
    try:
        header, update = decode_with_header(blob)
        return f"{int(update.counts.sum()):,}", digests.to_hex(header.digest)
    except WireError as error:
        return "-", f"damaged: {error}"
