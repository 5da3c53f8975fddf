"""A replica as a process: follow a log, write down every version served."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Literal, Self

from cdl_jax.core import digest as digests
from cdl_jax.deploy.log import UpdateLog, open_log
from cdl_jax.deploy.replica import Replica, model_factory
from cdl_jax.errors import ConfigError, LogError, RefusedUpdateError, StoreError
from cdl_jax.interrupts import Interrupts
from cdl_jax.wire import signing

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FollowConfig:
    """Settings of `cdl-jax replica`."""

    log: str | None = None
    """Log of versions to follow: a folder or URL."""
    backend: Literal["numpy", "jax"] = "numpy"
    """numpy needs no JAX; jax holds the model on JAX's default device."""
    run: str | None = None
    """Folder for metrics.jsonl and summary.json. None writes nothing."""
    verify_every: int = 100
    """Versions between recomputations of the full digest; 0 does it at the end alone."""
    poll: float = 0.5
    """Longest wait for the next version, in seconds: a Redis log wakes its replicas, other logs
    are looked at every 2 ms (a folder) or 50 ms (an object store)."""
    at: int | None = None
    """Stay at this version. None: follow the log."""
    until: int | None = None
    """Stop at this version. None: follow until interrupted."""
    wait: float = 60.0
    """Seconds to wait for a log that has no snapshot yet."""
    public_key: str | None = None
    """PEM file of the trainer's public key: what it did not sign is refused. None: no check."""

    def checked(self) -> Self:
        """Itself; raises ConfigError for a value that cannot be."""
        if self.log is None:
            raise ConfigError("replica needs --log, the folder or URL that a trainer publishes to")
        if self.at is not None and self.at < 0:
            raise ConfigError(f"at is {self.at}; give a version, 0 or more")
        for name in ("verify_every", "poll", "wait"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more")
        return self


@dataclasses.dataclass
class FollowSummary:
    """The outcome of following, as summary.json holds it."""

    version: int
    digest: str  # full, over every entry of the version served last
    versions: int = 0  # taken by this process
    full_digests: int = 0  # recomputed over all entries and found equal to the running one
    refused: int = 0

    def to_json(self) -> str:
        """JSON, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def follow(config: FollowConfig) -> FollowSummary:
    """Follows a log until `config.until`, Ctrl-C or SIGTERM; ends with a full digest.

    Raises:
      LogError: when there is no such log, or none appears within `config.wait` seconds.
      RefusedUpdateError: when the log's first record is not signed by `config.public_key`.
    """
    key = None if config.public_key is None else signing().read_public_key(config.public_key)
    log = open_first(config.log or "", config.wait)
    replica = Replica(log, model_factory(config.backend), at=config.at, key=key)
    summary = FollowSummary(replica.version, "")
    pauses = Pauses()
    with _lines(config.run) as lines, Interrupts() as interrupts:
        for _ in interrupts.between(_turns(replica, config)):
            try:
                _advance(replica, config, summary, lines)
                pauses.over()
            except (RefusedUpdateError, StoreError) as error:
                pauses.take(error)
    summary.version, summary.digest = replica.version, replica.full_digest()
    summary.refused = replica.refused.total()
    if config.run is not None:
        (pathlib.Path(config.run) / "summary.json").write_text(summary.to_json())
    return summary


class Pauses:
    """What lies between two tries after a failure: longer each time, and a sentence once."""

    def __init__(self) -> None:
        self._pause, self._said = FIRST_PAUSE, ""

    def over(self) -> None:
        """All is well again."""
        if self._said:
            print("cdl-jax: the log is read again", flush=True)
        self._pause, self._said = FIRST_PAUSE, ""

    def take(self, error: Exception) -> None:
        """Says what is wrong, where that is new, and waits."""
        if str(error) != self._said:
            self._said = str(error)
            print(f"cdl-jax: {error}; the replica serves on", flush=True)
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def _turns(replica: Replica, config: FollowConfig) -> Iterator[None]:
    """A turn for every look at the log, as soon as it may have something."""
    while config.until is None or replica.version < config.until:
        yield
        with contextlib.suppress(StoreError):  # the next look says so
            replica.wait(config.poll)


def _advance(replica: Replica, config: FollowConfig, summary: FollowSummary, lines: Any) -> None:
    before = replica.version
    size = replica.advance()
    if size is None or replica.version == before:
        return
    record = {"version": replica.version, "served_at": time.time(), "bytes": size}
    if config.verify_every and replica.version % config.verify_every == 0:
        record["full_digest"] = replica.full_digest()
        summary.full_digests += 1
    else:
        record["digest"] = digests.to_hex(replica.digest)
    summary.versions += 1
    lines.write(json.dumps(record) + "\n")


def open_first(url: str, wait: float) -> UpdateLog:
    """The log, once it has begun: its trainer may still be at the initial model."""
    end = time.monotonic() + wait
    while True:
        try:
            log = open_log(url)
            if log.newest_snapshot() is not None:
                return log
            problem = LogError(f"the log {url} is empty; start a trainer on it first")
        except LogError as error:
            problem = error
        if time.monotonic() >= end:
            raise problem
        time.sleep(min(0.1, wait))


def _lines(run: str | None) -> Any:
    if run is None:
        return open("/dev/null", "w")
    folder = pathlib.Path(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / "metrics.jsonl").open("w", buffering=1)
    except OSError as error:
        raise LogError(f"cannot write into the run folder {folder}: {error.strerror}") from error
