"""Redis streams as a source: what is lost is told, what is not is not."""

import json

import numpy as np
import pytest
import redis

from cdl_jax.data.redis_source import _Reader, _sample, from_redis
from cdl_jax.errors import ConfigError, DataError
from tests.deploy.broker import Broker, needs_redis


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = Broker(tmp_path_factory.mktemp("broker"))
    yield broker
    broker.kill()


class Producer:
    """A stream of numbered entries, and lives that read it."""

    def __init__(self, broker, stream):
        self.client, self.stream, self.made = redis.Redis(port=broker.port), stream, 0
        self.url = f"redis://127.0.0.1:{broker.port}/{stream}"
        self.ids = []

    def add(self, count, keep=None):
        for _ in range(count):
            row = {"x": json.dumps(self.made), "label": "0"}
            self.ids.append(self.client.xadd(self.stream, row, maxlen=keep, approximate=False))
            self.made += 1

    def life(self, last=None):
        _, source = from_redis(self.url)
        return source(0, last)


@pytest.fixture
def producer(broker, request):
    return Producer(broker, request.node.name)


def take(life, count):
    """The numbers of so many samples, and the last of these."""
    samples = [next(life) for _ in range(count)]
    return [int(s["x"]) for s in samples], samples[-1]


@needs_redis
def test_a_run_that_began_behind_the_streams_first_entry_goes_on(producer):
    producer.add(30, keep=10)
    numbers, last = take(producer.life(), 10)
    assert numbers == list(range(20, 30))
    producer.add(10, keep=10)  # what is held is trimmed, what is not is not
    assert take(producer.life(last), 10)[0] == list(range(30, 40))


@needs_redis
@pytest.mark.parametrize("held", [4, 10])
def test_what_was_trimmed_between_two_lives_is_told(producer, held):
    producer.add(30, keep=10)
    _, last = take(producer.life(), held)
    producer.add(11, keep=10)
    with pytest.raises(DataError, match=f"{31 - 20 - held} entries of .* were trimmed before this"):
        take(producer.life(last), 1)
    producer.client.xtrim(producer.stream, maxlen=0)
    with pytest.raises(DataError, match=f"{41 - 20 - held} entries of .* were trimmed before this"):
        next(producer.life(last))


@needs_redis
def test_what_is_trimmed_within_a_life_is_told(producer, monkeypatch):
    monkeypatch.setattr("cdl_jax.data.redis_source._AT_ONCE", 8)
    producer.add(20)
    life = producer.life()
    assert take(life, 8)[0] == list(range(8))
    producer.add(10, keep=22)  # 0 to 7 go
    assert take(life, 3)[0] == [8, 9, 10]
    producer.add(20, keep=30)  # to 19: 8 to 15 are in hand, 16 to 19 are not
    assert take(life, 5)[0] == list(range(11, 16))
    with pytest.raises(DataError, match=r"^4 entries of .* are lost; let the producer keep more"):
        next(life)


class Canned:
    """A client whose pipeline gives one answer: what was read, and what the stream is like then."""

    def __init__(self, read, **about):
        entries = [(f"{i}-0".encode(), {b"x": b"1"}) for i in read]
        first = about.pop("first")
        ids = {"newest": "last-generated-id", "deleted": "max-deleted-entry-id"}
        about = {ids.get(n, n.replace("_", "-")): x for n, x in about.items()}
        about |= {n: f"{about[n]}-0".encode() for n in ids.values()}
        about["first-entry"] = None if first is None else (f"{first}-0".encode(), {})
        self.answer = [[[b"s", entries]] if entries else [], about]

    def pipeline(self, transaction):
        assert not transaction  # in one a read would not wait
        return self

    def xread(self, *_, **__):
        pass

    xinfo_stream = xread

    def execute(self, raise_on_error):
        assert not raise_on_error
        return self.answer


def read_on(client, after=4, place=14):
    """Reads on behind entry 4-0, the 14th; the place of the last one then."""
    last = {"_id": np.frombuffer(f"{after}-0 ".encode(), np.uint8),
            "_place": np.frombuffer(place.to_bytes(8, "little"), np.uint8)}  # fmt: skip
    reader = _Reader(client, "s", "s", last)
    samples = list(reader.samples())
    places = [int.from_bytes(s["_place"].tobytes(), "little") for s in samples]
    assert places == list(range(reader._place - len(samples) + 1, reader._place + 1))
    return reader._place


def test_what_goes_between_the_read_and_the_question_was_read():
    state = {"newest": 9, "entries_added": 19, "deleted": 0}
    assert read_on(Canned([5, 6, 7], first=5, length=5, **state)) == 17
    assert read_on(Canned([5, 6, 7], first=7, length=3, **state)) == 17
    assert read_on(Canned([5, 6, 7], first=8, length=2, **state)) == 17
    with pytest.raises(DataError, match="1 entries of s behind 4-0 were trimmed"):
        read_on(Canned([5, 6, 7], first=9, length=1, **state))
    with pytest.raises(DataError, match="2 entries"):
        read_on(Canned([5, 6, 7], first=None, length=0, **state))
    with pytest.raises(DataError, match="1 entries"):
        read_on(Canned([6, 7], first=6, length=4, **state))


def test_the_places_stay_right_beside_entries_that_xdel_took():
    state = {"newest": 9, "entries_added": 19, "length": 3}
    # 5 to 7 are gone, unread; that all of these were deleted is known while 4 is there.
    assert read_on(Canned([8, 9], first=4, deleted=7, **state)) == 19
    with pytest.raises(DataError, match="3 entries"):
        read_on(Canned([8, 9], first=8, deleted=7, **state | {"length": 2}))
    assert read_on(Canned([6, 7, 8], first=6, deleted=5, **state | {"length": 4})) == 18
    assert read_on(Canned([5, 6, 7], first=5, deleted=8, **state | {"length": 4})) == 17
    assert read_on(Canned([], first=None, deleted=9, newest=4, entries_added=14, length=0)) == 14


def test_a_stream_that_was_made_anew_is_told():
    with pytest.raises(DataError, match="took 3 entries so far, but this run has had 15: it was"):
        read_on(Canned([9], first=9, newest=9, entries_added=3, length=1, deleted=0))


@needs_redis
def test_what_xdel_took_is_no_loss(producer):
    producer.add(12)
    life = producer.life()
    _, last = take(life, 12)
    producer.add(5)
    producer.client.xdel(producer.stream, *producer.ids[3:6], *producer.ids[13:16])
    assert take(life, 2)[0] == [12, 16]
    numbers, last = take(producer.life(last), 2)
    assert numbers == [12, 16]
    producer.add(6, keep=6)  # all that is held goes
    assert take(life, 6)[0] == take(producer.life(last), 6)[0] == list(range(17, 23))


@needs_redis
def test_a_broker_or_stream_that_is_not_there_is_waited_for(producer, capsys, monkeypatch):
    monkeypatch.setattr("cdl_jax.data.redis_source._BLOCK", 10)
    monkeypatch.setattr("cdl_jax.data.redis_source._PAUSE", 0.01)
    reader = _Reader(producer.client, producer.stream, "s", None)
    for _ in range(3):
        assert list(reader.samples()) == []
    assert capsys.readouterr().err == "cdl-jax: waiting for s: there is no such stream yet\n"
    producer.add(1)
    assert len(list(reader.samples())) == 1
    reader._client = redis.Redis(port=1, retry=None)
    for _ in range(3):
        assert list(reader.samples()) == []
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("cdl-jax: waiting for s: ")
    assert "refused" in said[0]


@needs_redis
def test_what_waiting_does_not_mend_is_an_error_at_once(producer, broker):
    producer.client.set(producer.stream, "no stream")
    with pytest.raises(DataError, match="cannot be read: WRONGTYPE .*; mend the URL or the stream"):
        next(producer.life())
    producer.client.config_set("requirepass", "right")
    try:
        for secret in ("", ":wrong@", "nobody:right@"):
            _, source = from_redis(f"redis://{secret}127.0.0.1:{broker.port}/s")
            with pytest.raises(DataError, match=r"^redis://127.*/s refuses this user and password"):
                next(source(0, None))
    finally:
        producer.client.config_set("requirepass", "")
    producer.client.delete(producer.stream)
    producer.client.xadd(producer.stream, {"x": "[1, 2"})
    with pytest.raises(
        DataError, match=r"entry \d+-0 of .* is no sample: .*; take it out with XDEL"
    ):
        next(producer.life())


@needs_redis
def test_a_password_may_hold_any_letters(producer, broker):
    producer.client.execute_command("ACL SETUSER who on >p@ss/word ~* +@all")
    producer.add(1)
    url = producer.url.replace("//", "//who:p%40ss%2Fword@")
    name, source = from_redis(url)
    assert name == producer.url
    assert int(next(source(0, None))["x"]) == 0


def forged(shape, descr="'<f4'", version=1):
    """8 bytes under a header that says something else of them."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = len(header).to_bytes(2, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (forged(f"({1 << 50},)"), f"array float32\\[{1 << 50}\\] takes {1 << 52} bytes, but 8 are"),
        (forged(f"({1 << 80},)"), f"takes {1 << 82} bytes, but 8 are there"),
        (forged("(1,)"), "takes 4 bytes, but 8 are there"),
        (forged(f"({1 << 80}, 0)", "[]"), "bytes, but 8"),
        (forged("(2,)", version=3), "of a form that numpy.save gives to no numbers"),
        (forged("(1,(1,("), ""),  # tokenize's own error
        (forged("(True,)", "'<f8'"), ""),  # a TypeError
        (forged("(1,)", "'|O'"), ""),
    ],
    ids=range(8),
)
def test_a_forged_array_is_refused_by_its_entrys_id(content, words):
    with pytest.raises(DataError, match=rf"^entry 7-1 of s is no sample: .*{words}.*; take it out"):
        _sample("s", b"7-1", {b"x": content}, 1)
    whole = _sample("s", b"7-1", {b"x": forged("(1, 2)")}, 1)["x"]
    assert (whole.dtype, whole.tolist()) == (np.float32, [[0, 0]])


@pytest.mark.parametrize(
    ("url", "name"),
    [("redis:///s", "redis://127.0.0.1:6379/s"), ("redis://me:pw@h/s?db=0", "redis://h:6379/s"),
     ("rediss://h:1/s?db=2", "rediss://h:1/s?db=2"), ("redis://u:12/34@h/s", "redis://***@h/s")],
)  # fmt: skip
def test_a_source_is_named_by_where_it_is(url, name):
    assert from_redis(url)[0] == name


@pytest.mark.parametrize("url", ["redis://h:abc/s", "redis://h/s?db=x", "redis://[::1/s"])
def test_what_is_no_address_is_said_without_its_password(url):
    for secret in ("", "me:hunter2@", ":hunter2/x@", "me:hunter2?@"):
        with pytest.raises(ConfigError, match="is no address of a stream; give redis://HOST") as e:
            from_redis(url.replace("//", f"//{secret}"))
        assert url.partition("//")[2] in str(e.value)
        assert "hunter2" not in str(e.value)
