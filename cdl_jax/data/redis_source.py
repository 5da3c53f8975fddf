"""A Redis stream of samples: redis://HOST:PORT/STREAM, rediss:// for TLS, ?db=NUMBER.

An entry's fields are the sample's: JSON (`XADD s * x '[0.1, 2]' label 3`) or an array as
`numpy.save` writes it (`to_entry`). Each entry's id, and which one of the stream's it is, are kept
beside its sample, so a run that was stopped goes on behind the newest one that it has.

What is promised: no entry that the producer trims (`XADD MAXLEN`, `XTRIM`) before it was read is
missed in silence, neither between two lives of a run nor in one. Redis counts all entries that it
ever took, from which follows how many came before the oldest one that is there: more than were
read is a loss, and an error. What `XDEL` took before it was read is no loss, as far as Redis can
tell: always while the stream still has an entry that was read, and else for one entry; more of
them count as lost. Where `XDEL` took entries out of what the first read finds, as many may be
missed until the reader next comes to the stream's end.
"""

import io
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from cdl_jax.data.live import Source
from cdl_jax.data.spool import ID
from cdl_jax.errors import ConfigError, DataError, masked

_PLACE = "_place"  # of an entry among all that the stream ever took, from 1
_ID_BYTES = 41  # of two 64-bit numbers and a dash
_MAGIC = b"\x93NUMPY"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_BLOCK, _TIMEOUT, _PAUSE = 1000, 5.0, 0.5  # ms, s, s
_AT_ONCE = 256  # entries

Entries = Sequence[tuple[bytes, Mapping[bytes, bytes]]]
Id = tuple[int, int]


def from_redis(url: str) -> tuple[str, Source]:
    """The name, without a password, and the source at a URL.

    Raises:
      ConfigError: when it is no URL of a stream, or redis is not installed.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise ConfigError("a redis:// stream needs more: pip install 'cdl_jax[redis]'") from error
    options, name, stream = _parsed(url)
    client = redis.Redis(
        **options, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT,
        retry=Retry(NoBackoff(), 0),  # it is tried again here, where a stall can be told
    )  # fmt: skip

    def source(held: int, last: Mapping[str, np.ndarray] | None) -> Iterator[Mapping[str, Any]]:
        del held
        reader = _Reader(client, stream, name, last)
        while True:
            yield from reader.samples()

    return name, source


def to_entry(sample: Mapping[str, Any]) -> dict[str, bytes]:
    """A sample as the fields of a stream entry, for `XADD`; arrays keep their dtypes."""
    out = {}
    for field, value in sample.items():
        file = io.BytesIO()
        np.save(file, np.asarray(value), allow_pickle=False)
        out[field] = file.getvalue()
    return out


def _parsed(url: str) -> tuple[dict[str, Any], str, str]:
    """The connection, the name without a password, and the stream."""
    scheme = url.partition(":")[0]
    try:
        parts = urlsplit(url)
        port, database = parts.port or 6379, int(parse_qs(parts.query).get("db", ["0"])[0])
    except ValueError:  # its words may hold a piece of the password
        raise ConfigError(
            f"{masked(url)} is no address of a stream; give redis://HOST:PORT/STREAM?db=NUMBER, "
            "and %2F, %3F and %23 for /, ? and # in a password"
        ) from None
    host, stream = parts.hostname or "127.0.0.1", parts.path.strip("/")
    if not stream:
        raise ConfigError(f"{masked(url)} names no stream; give redis://HOST:PORT/STREAM")
    options = {
        "host": host, "port": port, "db": database, "ssl": scheme == "rediss",
        "username": parts.username and unquote(parts.username),
        "password": parts.password and unquote(parts.password),
    }  # fmt: skip
    name = f"{scheme}://{host}:{port}/{stream}" + (f"?db={database}" if database else "")
    return options, masked(name), stream


class _Reader:
    """Reads a stream on from a sample that is held; None: from its beginning."""

    def __init__(self, client: Any, stream: str, name: str, last: Mapping[str, np.ndarray] | None):
        self._client, self._stream, self._name = client, stream, name
        self._after, self._waits = "0-0", False
        self._place: int | None = None  # of the entry `after`
        if last is not None:
            self._after = last[ID].tobytes().decode().strip()
            self._place = int.from_bytes(last[_PLACE].tobytes(), "little")

    def samples(self) -> Iterator[Mapping[str, Any]]:
        """What came next; nothing while the broker is out of reach, which is a stall."""
        entries, about = self._read()
        if about is None:
            return
        end = self._end(entries, about)
        for place, (entry, fields) in enumerate(entries, end - len(entries) + 1):
            yield _sample(self._name, entry, fields, place)
        self._place = end
        if entries:
            self._after = entries[-1][0].decode()

    def _end(self, entries: Entries, about: Mapping[str, Any]) -> int:
        """The place of the last entry that was read.

        Raises:
          DataError: when others were trimmed before they were read.
        """
        state = _State.of(about, self._name)
        after = _number(self._after)
        last = _number(entries[-1][0].decode()) if entries else after
        still_there = state.first is not None and state.first <= after
        # Of those that are no longer there, some were read before they went.
        gone = [e for e, _ in entries if state.first is None or _number(e.decode()) < state.first]
        begin = state.before - len(gone)
        place = begin if self._place is None else self._place
        if state.added < place + len(entries):
            raise DataError(
                f"{self._name} took {state.added} entries so far, but this run has had "
                f"{place + len(entries)}: it was made anew; give a new --run and --log"
            )
        if not still_there and begin - place > (state.deleted > after):
            raise DataError(
                f"{begin - place} entries of {self._name} behind {self._after} were trimmed before "
                "this run read them: they are lost; let the producer keep more, and give a new "
                "--run and --log"
            )
        if state.newest == last:
            return state.added
        exact = not still_there and state.deleted <= last
        return (begin if exact else place) + len(entries)

    def _read(self) -> tuple[Entries, Mapping[str, Any] | None]:
        """The next entries, and what the stream is like right after they were read."""
        from redis import exceptions as errors

        # One round trip; not a transaction, in which a read does not wait.
        both = self._client.pipeline(transaction=False)
        both.xread({self._stream: self._after}, count=_AT_ONCE, block=_BLOCK)
        both.xinfo_stream(self._stream)
        try:
            found, about = both.execute(raise_on_error=False)
            for answer in (found, about):
                if isinstance(answer, Exception):
                    raise answer
        except (errors.AuthenticationError, errors.AuthorizationError) as error:
            raise DataError(
                f"{self._name} refuses this user and password, or wants one; give them as "
                "redis://USER:PASSWORD@HOST:PORT/STREAM"
            ) from error
        except (errors.ConnectionError, errors.TimeoutError, errors.BusyLoadingError) as error:
            return self._wait(str(error), _PAUSE)
        except errors.ResponseError as error:
            if "no such key" in str(error):
                return self._wait("there is no such stream yet", 0.0)
            raise DataError(
                f"{self._name} cannot be read: {error}; mend the URL or the stream"
            ) from error
        self._waits = False
        return found[0][1] if found else [], about

    def _wait(self, why: str, seconds: float) -> tuple[Entries, None]:
        if not self._waits:
            print(f"cdl-jax: waiting for {self._name}: {why}", file=sys.stderr)
        self._waits = True
        time.sleep(seconds)
        return [], None


class _State(NamedTuple):
    """What XINFO STREAM says; ids as numbers."""

    added: int  # entries that the stream ever took
    before: int  # of them, those that are no longer there
    first: Id | None  # oldest that is there
    newest: Id  # that ever was
    deleted: Id  # newest that XDEL took; 0-0 where there is none

    @classmethod
    def of(cls, about: Mapping[str, Any], name: str) -> "_State":
        if "entries-added" not in about:
            raise DataError(f"{name} does not count its entries; give a Redis of 7.0 or newer")
        added, first = about["entries-added"], about["first-entry"]
        return cls(
            added=added,
            before=added - about["length"],
            first=None if first is None else _number(first[0].decode()),
            newest=_number(about["last-generated-id"].decode()),
            deleted=_number(about["max-deleted-entry-id"].decode()),
        )


def _number(entry: str) -> Id:
    time_, number = map(int, entry.split("-"))
    return time_, number


def _sample(name: str, entry: bytes, fields: Mapping[bytes, bytes], place: int) -> dict[str, Any]:
    try:
        out = {field.decode(): _value(content) for field, content in fields.items()}
    except Exception as error:  # of a damaged header come tokenize's, Python's own, and NumPy's
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"entry {entry.decode()} of {name} is no sample: {first}; take it out with XDEL, and "
            "start the same command again"
        ) from error
    own = {ID: entry.ljust(_ID_BYTES), _PLACE: place.to_bytes(8, "little")}
    return out | {field: np.frombuffer(content, np.uint8) for field, content in own.items()}


def _value(content: bytes) -> np.ndarray:
    if content.startswith(_MAGIC):
        return _array(content)
    return np.asarray(json.loads(content))


def _array(content: bytes) -> np.ndarray:
    """What `numpy.save` wrote; memory is taken once it is known to be as long as it says."""
    file = io.BytesIO(content)
    header = _HEADERS.get(np.lib.format.read_magic(file))
    if header is None:
        raise ValueError("its array is of a form that numpy.save gives to no numbers")
    shape, _, dtype = header(file)
    size, there = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if size != there:
        raise ValueError(
            f"its array {dtype}{list(shape)} takes {size} bytes, but {there} are there"
        )
    return np.load(io.BytesIO(content), allow_pickle=False)
